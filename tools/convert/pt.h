/*
 * pt: a checkpoint file of torch.save, zip form or legacy form.  Opening
 * reads the pickle and checks every tensor of "module" against the file;
 * values are streamed tensor by tensor.  One thread a file.
 */
#ifndef GLM_PT_H
#define GLM_PT_H

#include "pickle.h"
#include "vol.h"

typedef struct pt_store_s  pt_store_t;

typedef struct {
    char               *name;           /* "transformer.layers.0..." */
    const pk_tensor_t  *t;              /* dtype, dims, strides */
    const pt_store_t   *store;
    int                 used;           /* for the caller; 0 at first */
} pt_tensor_t;

typedef struct pt_file_s  pt_file_t;

/* A few elements in row-major order, little-endian; nonzero ends the read. */
typedef int (*pt_sink_pt)(void *arg, const void *elems, size_t n);

int pt_open(pt_file_t **out, const char *path, glm_err_t *err);
/* The same of size bytes of a larger volume, which stays the caller's; path is
   for messages. */
int pt_open_at(pt_file_t **out, const vol_t *v, uint64_t at, uint64_t size, const char *path,
    glm_err_t *err);
void pt_close(pt_file_t *f);                    /* NULL is fine */

/* The file itself; NULL for a part of a larger volume. */
const vol_file_t *pt_vol_file(const pt_file_t *f);
const char *pt_path(const pt_file_t *f);
size_t pt_count(const pt_file_t *f);
pt_tensor_t *pt_at(pt_file_t *f, size_t i);     /* in the order of names */
pt_tensor_t *pt_find(pt_file_t *f, const char *name);

/* What the file holds beside tensors in "module", as one line, cut when it
   is long; "" when there is nothing. */
const char *pt_others(const pt_file_t *f);

/*
 * Hands all values of t to the sink.  Memory: 1 MiB, or for a tensor that is
 * not contiguous the part of its storage that it spans.  A sink's nonzero
 * code is returned as it is.
 */
int pt_read(pt_file_t *f, const pt_tensor_t *t, pt_sink_pt sink, void *arg, glm_err_t *err);

#endif
