/*
 * merge: conversion to fp16 and placement, chunk by chunk.
 */
#include <string.h>

#include "half.h"
#include "merge.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "files are little-endian, and so are we");

typedef struct {
    const cv_item_t    *item;
    const pt_file_t    *file;
    uint8_t            *whole;
    size_t              size;           /* bytes of a value there */
    int                 rank, compare;  /* compare: only say whether it differs */
    int                 differs;
    int64_t             rows, cols;     /* of the part */
    uint64_t            at;             /* elements of the part taken so far */
    pt_dtype_t          dtype;
    const volatile sig_atomic_t  *stop;
    glm_err_t          *err;
} cv_part_t;


/* Where row r of the part begins in the whole, in values. */
static int64_t
cv_row_place(const cv_part_t *p, int64_t r)
{
    int64_t  half = p->rows / 2, wide = p->item->dim[1];

    switch (p->item->cut) {
    case CV_ROWS:
        return (p->rank * p->rows + r) * wide;

    case CV_COLS:
        return r * wide + p->rank * p->cols;

    case CV_GLU:        /* a rank's first halves, then its gates */
        r = r < half ? p->rank * half + r : p->item->dim[0] / 2 + p->rank * half + (r - half);
        return r * wide;

    default:
        return r * wide;
    }
}


/* One element as fp16; *x is its value where it had to be rounded. */
static uint16_t
cv_element(pt_dtype_t dtype, const uint8_t *src, float *x, int *fits)
{
    uint16_t  h;

    if (dtype == PT_FLOAT) {
        memcpy(x, src, 4);
        return cv_half(*x, fits);
    }
    memcpy(&h, src, 2);
    if (dtype == PT_HALF) return h;
    *x = cv_float_of_bf16(h);
    return cv_half(*x, fits);
}


/* n elements that lie within one row. */
static int
cv_put(cv_part_t *p, uint8_t *dst, const uint8_t *src, size_t n)
{
    size_t    i, size = pt_dtype_size(p->dtype);
    uint16_t  h;
    float     x = 0;
    int       fits = 1;

    if ((p->dtype == PT_HALF || p->dtype == PT_CHAR) && !p->compare) {
        memcpy(dst, src, n * size);
        return 0;
    }
    for (i = 0; i < n; i++) {
        h = cv_element(p->dtype, src + i * size, &x, &fits);
        if (!fits) {
            return glm_fail(p->err, GLM_EFORMAT, "%s: " CV_PREFIX "%s: the value %g has no fp16 "
                            "(65504 is the largest)", pt_path(p->file), p->item->name, (double) x);
        }
        if (p->compare) {
            p->differs |= memcmp(dst + 2 * i, &h, 2) != 0;

        } else {
            memcpy(dst + 2 * i, &h, 2);
        }
    }
    return 0;
}


static int
cv_sink(void *arg, const void *elems, size_t n)
{
    cv_part_t      *p = arg;
    const uint8_t  *src = elems;
    size_t          size = pt_dtype_size(p->dtype), run;
    int64_t         col, at;
    int             rc;

    if (p->stop != NULL && *p->stop) return glm_fail(p->err, GLM_ECANCEL, "interrupted");
    while (n > 0) {
        col = (int64_t) (p->at % (uint64_t) p->cols);
        run = (size_t) (p->cols - col) < n ? (size_t) (p->cols - col) : n;
        at = cv_row_place(p, (int64_t) (p->at / (uint64_t) p->cols)) + col;
        if ((rc = cv_put(p, p->whole + (size_t) at * p->size, src, run)) != 0) return rc;
        src += run * size;
        p->at += run;
        n -= run;
    }
    return 0;
}


int
cv_merge(const cv_source_t *s, const cv_item_t *item, void *whole, int *differ,
    const volatile sig_atomic_t *stop, glm_err_t *err)
{
    const pt_tensor_t  *t;
    char                name[128];
    int64_t             dim[2];
    int                 r, rc;

    *differ = 0;
    snprintf(name, sizeof(name), CV_PREFIX "%s", item->name);
    cv_part_dims(item, s->ranks, dim);
    for (r = 0; r < s->ranks; r++) {
        t = pt_find(s->rank[r], name);
        if (t == NULL) {
            return glm_fail(err, GLM_ENOENT, "%s: %s is missing", pt_path(s->rank[r]), name);
        }
        cv_part_t  p = {
            .item = item, .file = s->rank[r], .whole = whole, .rank = r,
            .compare = r > 0 && item->cut == CV_COPY, .rows = dim[0], .cols = dim[1],
            .dtype = t->t->storage->dtype,
            .size = t->t->storage->dtype == PT_CHAR ? 1 : 2, .stop = stop, .err = err,
        };
        if ((rc = pt_read(s->rank[r], t, cv_sink, &p, err)) != 0) return rc;
        if (p.differs && *differ == 0) *differ = r;
    }
    return 0;
}
