/*
 * safetensors: reader of *.safetensors, with or without
 * model.safetensors.index.json (glm-convert has the writer).  Format: u64 LE header length, JSON header
 * {name: {dtype, shape, data_offsets: [begin, end]}, "__metadata__": {..}},
 * then the values, little-endian, row-major.  "__metadata__", and "metadata" of
 * the index, may hold "crc32.NAME": "8 hex digits" for any of the tensors.
 */
#ifndef GLM_SAFETENSORS_H
#define GLM_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "error.h"

#define GLM_ST_MAX_DIMS  4

typedef enum { GLM_F32, GLM_F16, GLM_BF16, GLM_I8, GLM_U8, GLM_I32, GLM_I64 } glm_dtype_t;

size_t glm_dtype_size(glm_dtype_t t);
const char *glm_dtype_name(glm_dtype_t t);      /* "F16" */

typedef struct {
    const char   *name;         /* owned by the reader */
    glm_dtype_t   dtype;
    int           ndim;
    int64_t       dim[GLM_ST_MAX_DIMS];
    size_t        size;         /* bytes of values */
    const void   *data;         /* mapped read-only, 8-byte aligned */
    const char   *file;         /* path, for messages */
    int           fd;           /* of the file; open as long as the reader */
    uint64_t      offset;       /* of the values, from the file's start */
    int64_t       crc;          /* CRC-32 that the values should have; -1: not
                                   given.  Opening does not read values */
} glm_stored_t;

typedef struct glm_st_reader_s  glm_st_reader_t;

#define GLM_ST_MAX_HEADER  (4u << 20)           /* bytes of a file's header */
#define GLM_ST_INDEX       "model.safetensors.index.json"

/*
 * Maps the files that the index of a model directory names, or all its
 * *.safetensors when it has no index.  Every offset, shape and size is
 * checked against the file's length before anything is returned; values fill
 * each file without gap or overlap, and a name occurs once.  A truncated or
 * lying file is named in err.  Tensors come in the order of their names.
 */
int glm_st_open(glm_st_reader_t **out, const char *dir, glm_err_t *err);
/* NULL when there is no tensor of that name. */
const glm_stored_t *glm_st_find(const glm_st_reader_t *r, const char *name);
size_t glm_st_count(const glm_st_reader_t *r);
const glm_stored_t *glm_st_at(const glm_st_reader_t *r, size_t i);
void glm_st_close(glm_st_reader_t *r);          /* NULL is fine; unmaps */

#endif
