/*
 * loader: whole fp16 tensors of a model directory, handed out in the slices a
 * rank needs.  Owns the mapped files; never touches a kernel's layout.
 *
 * With dummy, nothing but config.json is read and the element i (row-major, of
 * the whole tensor) of tensor `name` is
 *     x = splitmix64(fnv1a64(name) + i);  u = (x >> 40) / 2^23 - 1  in [-1, 1)
 *     value = fp16(base + amp * u), one fp32 fma, rounded to fp16
 * the same at any tensor-parallel degree.  base is 1 for *layernorm.weight and 0
 * elsewhere; amp is 0.1 for them, 0.02 for every bias, sqrt(3 / in) for linears
 * (outputs of variance 1) and sqrt(12 / hidden) for the embedding (logits of
 * standard deviation 2).
 */
#ifndef GLM_LOADER_H
#define GLM_LOADER_H

#include <stdint.h>

#include "config.h"
#include "error.h"

typedef struct glm_loader_s  glm_loader_t;

/* cfg must outlive the loader. */
int glm_loader_open(glm_loader_t **out, const char *dir, const glm_config_t *cfg,
    int dummy, glm_err_t *err);
void glm_loader_close(glm_loader_t *l);         /* NULL is fine */

/*
 * Checks that each tensor of the architecture is there as F16 of its shape.  The
 * error names file, tensor and both shapes (or that it is missing).
 */
int glm_loader_check(const glm_loader_t *l, glm_err_t *err);

/* A part of a whole tensor; for a vector cols is 1. */
typedef struct {
    const char  *name;
    int32_t      rows, cols;      /* the whole: [out, in] */
    int32_t      row, nrows;      /* wanted */
    int32_t      col, ncols;
} glm_slice_t;

/* dst: (nrows, ncols) fp16.  Only for slices of checked tensors. */
int glm_loader_slice(const glm_loader_t *l, const glm_slice_t *s, uint16_t *dst,
    glm_err_t *err);

/*
 * Hash of the sizes in config.json and of all weights (dummy: of that word in
 * their place).
 */
uint64_t glm_loader_hash(const glm_loader_t *l);

#endif
