/*
 * stw: writes *.safetensors in shards, and their index.  All tensors are
 * declared first, so that every header is known before its values come.
 */
#ifndef GLM_CV_STW_H
#define GLM_CV_STW_H

#include "journal.h"
#include "safetensors.h"

typedef struct stw_s  stw_t;

/*
 * shard_bytes: values of a file, at most, unless one tensor is larger.  checksums:
 * headers get "crc32.NAME" of each tensor's bytes, as zlib's crc32().
 */
int stw_open(stw_t **out, cv_out_t *o, cv_journal_t *j, uint64_t shard_bytes, int checksums,
    glm_err_t *err);
/* name: printable, unique.  Values come in the order of declaration. */
int stw_declare(stw_t *w, const char *name, glm_dtype_t dtype, int ndim, const int64_t *dim,
    glm_err_t *err);
/* After the last one: finds the tensors that the journal marks, and compares
   their bytes with its checksums. */
int stw_resume(stw_t *w, glm_err_t *err);
/* Whether the next n tensors are there already; then their values are not looked
   at, and may be NULL. */
int stw_there(const stw_t *w, size_t n);
/* The values of the k-th tensor from here, which is there. */
int stw_read(const stw_t *w, size_t k, void *values, glm_err_t *err);
/* All values of the next tensor; size is what its shape takes. */
int stw_write(stw_t *w, const void *values, size_t size, glm_err_t *err);
/* After the last tensor: writes the index. */
int stw_finish(stw_t *w, glm_err_t *err);
int stw_shards(const stw_t *w);
void stw_close(stw_t *w);                       /* NULL is fine */

#endif
