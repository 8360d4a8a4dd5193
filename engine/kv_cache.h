/*
 * kv_cache: which page of the KV memory belongs to whom.  Counts references, so
 * that choices share the pages of their context; knows no tensor (the model
 * holds the memory) and no request.  Step thread only, no locks.
 */
#ifndef GLM_KV_CACHE_H
#define GLM_KV_CACHE_H

#include <stdint.h>

typedef struct {
    int32_t  *free;               /* stack of pages nobody holds */
    int32_t  *refs;               /* (total) holders of each page */
    int32_t   total, nfree;       /* pages of GLM_KV_PAGE tokens */
} glm_kv_t;

/* 0 or GLM_ENOMEM.  Pages are 0 .. pages - 1. */
int glm_kv_init(glm_kv_t *kv, int32_t pages);
void glm_kv_destroy(glm_kv_t *kv);

/* The pages that n tokens fill, the last one perhaps in part. */
int32_t glm_kv_pages(int64_t tokens);

/* A block table: slot s of a sequence lies in page[s / GLM_KV_PAGE]. */
typedef struct {
    int32_t  *page;               /* (cap), the first n are held */
    int32_t   n, cap;
} glm_table_t;

int glm_table_init(glm_table_t *t, int32_t cap);     /* 0 or GLM_ENOMEM */
void glm_table_destroy(glm_table_t *t);              /* frees no page */

/*
 * Takes fresh pages until the table holds n (<= cap).  All or none: GLM_EBUSY
 * when there are too few.
 */
int glm_table_grow(glm_kv_t *kv, glm_table_t *t, int32_t n);

/*
 * Makes the empty table dst share the first nshared pages of src, and takes
 * fresh ones until it holds n.  All or none, as above.  What a partial page
 * between them holds is the caller's to copy.
 */
int glm_table_fork(glm_kv_t *kv, glm_table_t *dst, const glm_table_t *src, int32_t nshared,
    int32_t n);

/* Gives every page back that nobody else holds; the table is empty then. */
void glm_table_clear(glm_kv_t *kv, glm_table_t *t);

/* The same, but what nobody else holds goes to spare, which has room. */
void glm_table_recycle(glm_kv_t *kv, glm_table_t *t, glm_table_t *spare);

/* Takes the last page of spare, which has one. */
void glm_table_move(glm_table_t *t, glm_table_t *spare);

#endif
