/*
 * loader: whole tensors of a model directory, described, and handed out in the
 * slices a rank needs.  Owns the mapped files; never touches a kernel's layout.
 *
 * With dummy, nothing but config.json is read and values come from the hash of
 * kernels/glm_hash.h, the same at any tensor-parallel degree: seed = FNV-1a of
 * the tensor's name (32 bits), 1 +- 0.1 for *layernorm.weight, +- 0.02 for every
 * bias, +- sqrt(3 / in) for linears (outputs of variance 1) and +- sqrt(12 /
 * hidden) for the embedding (logits of standard deviation 2).  "quantization" of
 * config.json makes linears quantised: bytes are all hash, scales such that
 * outputs have variance 1.
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
 * A whole tensor, by its name in the files.  Row-major; a scale belongs to a row
 * and cols / groups columns of it, and a weight is q * scale exactly.
 */
typedef struct {
    int              index;       /* of glm_loader_name() */
    glm_ttype_t      type;
    int32_t          rows, cols;  /* [out, in]; a vector has cols 1 */
    int32_t          groups;      /* scales a row, each of a multiple of 16
                                     columns; 0 for F16 */
    const void      *data;        /* mapped; NULL with dummy */
    const uint16_t  *scale;       /* (rows, groups) fp16, mapped; NULL where there
                                     are none, and with dummy */
    const char      *file;        /* path, for messages; NULL with dummy */
    int              fd, scale_fd;            /* of the files; -1: none */
    uint64_t         offset, size;            /* bytes in fd; size with dummy too */
    uint64_t         scale_offset, scale_size;
    int64_t          crc, scale_crc;          /* CRC-32 that they should have; -1:
                                                 not given */
    uint32_t         seed;        /* dummy: of the data, and ^ GLM_SCALE_SEED of
                                     the scales */
    float            lo, hi;      /* dummy: of fp16 values, or of the scales */
} glm_tensor_t;

#define GLM_SCALE_SEED  0x5ca1eu

/*
 * Describes a tensor of the architecture.  An error names file and tensor: it is
 * missing, has another dtype or shape than the architecture or its own scales
 * allow, or is not what config.json records.
 */
int glm_loader_tensor(const glm_loader_t *l, const char *name, glm_tensor_t *out,
    glm_err_t *err);

const glm_config_t *glm_loader_config(const glm_loader_t *l);

/* Name of tensor number i of the architecture; -1 past the last. */
int glm_loader_name(const glm_loader_t *l, int i, char name[128]);

/* Describes all of them.  Reads no values: those are digest.h's. */
int glm_loader_check(const glm_loader_t *l, glm_err_t *err);

/* A part of a whole tensor. */
typedef struct {
    int32_t  row, nrows;
    int32_t  col, ncols;          /* even for int4 */
} glm_slice_t;

/* dst: (nrows, ncols) as stored: fp16, int8, or int4 two a byte. */
void glm_tensor_slice(const glm_tensor_t *t, const glm_slice_t *s, void *dst);

/* dst: (nrows, n) scales of the groups that have columns in the slice; returns n. */
int32_t glm_tensor_scales(const glm_tensor_t *t, const glm_slice_t *s, uint16_t *dst);

/* How the linears' weights are stored ("int4-g128", or several with their
 * numbers of tensors), and the bytes of all tensors. */
void glm_loader_describe(const glm_loader_t *l, char text[128], uint64_t *bytes);

#endif
