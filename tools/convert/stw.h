/*
 * stw: writes *.safetensors in shards, and their index.  All tensors are
 * declared first, so that every header is known before its values come.
 */
#ifndef GLM_CV_STW_H
#define GLM_CV_STW_H

#include "out.h"
#include "safetensors.h"

typedef struct stw_s  stw_t;

/* shard_bytes: values of a file, at most, unless one tensor is larger. */
int stw_open(stw_t **out, cv_out_t *o, uint64_t shard_bytes, glm_err_t *err);
/* name: printable, unique.  Values come in the order of declaration. */
int stw_declare(stw_t *w, const char *name, glm_dtype_t dtype, int ndim, const int64_t *dim,
    glm_err_t *err);
/* All values of the next tensor; size is what its shape takes. */
int stw_write(stw_t *w, const void *values, size_t size, glm_err_t *err);
/* After the last tensor: writes the index. */
int stw_finish(stw_t *w, glm_err_t *err);
int stw_shards(const stw_t *w);
void stw_close(stw_t *w);                       /* NULL is fine */

#endif
