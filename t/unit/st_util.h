/*
 * st_util: writes a safetensors file for a test, tensor by tensor, right or
 * wrong as the test wants it.
 */
#ifndef ST_UTIL_H
#define ST_UTIL_H

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tap.h"

typedef struct {
    char      head[16384];
    size_t    nhead;
    uint8_t  *data;
    size_t    ndata;
} st_out_t;

/* meta: an object of metadata, or NULL. */
static inline void
st_begin(st_out_t *f, const char *meta)
{
    memset(f, 0, sizeof(*f));
    f->nhead = (size_t) snprintf(f->head, sizeof(f->head), "{");
    if (meta != NULL) {
        f->nhead += (size_t) snprintf(f->head + 1, sizeof(f->head) - 1, "\"__metadata__\": %s",
                                      meta);
    }
}

/* cols < 0: a vector.  The values are copied. */
static inline void
st_put(st_out_t *f, const char *name, const char *dtype, int rows, int cols, const void *values,
    size_t size)
{
    char  dim[16] = "";

    if (cols >= 0) snprintf(dim, sizeof(dim), ", %d", cols);
    f->nhead += (size_t) snprintf(f->head + f->nhead, sizeof(f->head) - f->nhead,
        "%s\"%s\": {\"dtype\": \"%s\", \"shape\": [%d%s], \"data_offsets\": [%zu, %zu]}",
        f->nhead > 1 ? ", " : "", name, dtype, rows, dim, f->ndata, f->ndata + size);
    if (f->nhead + 16 > sizeof(f->head)) bail_out("a header too long for st_util");
    f->data = realloc(f->data, f->ndata + size);
    memcpy(f->data + f->ndata, values, size);
    f->ndata += size;
}

static inline void
st_end(st_out_t *f, const char *path)
{
    FILE      *out = fopen(path, "wb");
    uint64_t   n;

    f->head[f->nhead++] = '}';
    while (f->nhead % 8 != 0) f->head[f->nhead++] = ' ';
    n = f->nhead;
    if (out == NULL || fwrite(&n, 8, 1, out) != 1 || fwrite(f->head, n, 1, out) != 1
        || fwrite(f->data, f->ndata, 1, out) != 1 || fclose(out) != 0) bail_out(path);
    free(f->data);
}

#endif
