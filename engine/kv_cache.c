/*
 * kv_cache: a stack of free pages and a count of holders for each.
 */
#include <assert.h>
#include <stdlib.h>

#include "error.h"
#include "kv_cache.h"
#include "model.h"

int
glm_kv_init(glm_kv_t *kv, int32_t pages)
{
    *kv = (glm_kv_t) { .total = pages, .nfree = pages };
    kv->free = malloc((size_t) pages * sizeof(int32_t));
    kv->refs = calloc((size_t) pages, sizeof(int32_t));
    if (kv->free == NULL || kv->refs == NULL) {
        glm_kv_destroy(kv);
        return GLM_ENOMEM;
    }
    /* The lowest page is on top: small loads stay in little memory. */
    for (int32_t i = 0; i < pages; i++) kv->free[i] = pages - 1 - i;
    return 0;
}

void
glm_kv_destroy(glm_kv_t *kv)
{
    free(kv->free);
    free(kv->refs);
    *kv = (glm_kv_t) {0};
}

int32_t
glm_kv_pages(int64_t tokens)
{
    return (int32_t) ((tokens + GLM_KV_PAGE - 1) / GLM_KV_PAGE);
}

int
glm_table_init(glm_table_t *t, int32_t cap)
{
    *t = (glm_table_t) { .cap = cap };
    t->page = malloc((size_t) (cap > 0 ? cap : 1) * sizeof(int32_t));
    return t->page != NULL ? 0 : GLM_ENOMEM;
}

void
glm_table_destroy(glm_table_t *t)
{
    free(t->page);
    *t = (glm_table_t) {0};
}

int
glm_table_grow(glm_kv_t *kv, glm_table_t *t, int32_t n)
{
    assert(n <= t->cap);
    if (n - t->n > kv->nfree) return GLM_EBUSY;

    while (t->n < n) {
        int32_t  page = kv->free[--kv->nfree];

        kv->refs[page] = 1;
        t->page[t->n++] = page;
    }
    return 0;
}

int
glm_table_fork(glm_kv_t *kv, glm_table_t *dst, const glm_table_t *src, int32_t nshared,
    int32_t n)
{
    assert(dst->n == 0 && nshared <= src->n && nshared <= n);
    if (n - nshared > kv->nfree) return GLM_EBUSY;

    for (int32_t i = 0; i < nshared; i++) {
        dst->page[i] = src->page[i];
        kv->refs[src->page[i]]++;
    }
    dst->n = nshared;
    return glm_table_grow(kv, dst, n);
}

void
glm_table_clear(glm_kv_t *kv, glm_table_t *t)
{
    while (t->n > 0) {
        int32_t  page = t->page[--t->n];

        assert(kv->refs[page] > 0);
        if (--kv->refs[page] == 0) kv->free[kv->nfree++] = page;
    }
}

void
glm_table_recycle(glm_kv_t *kv, glm_table_t *t, glm_table_t *spare)
{
    while (t->n > 0) {
        int32_t  page = t->page[--t->n];

        if (kv->refs[page] > 1) {
            kv->refs[page]--;
            continue;
        }
        assert(spare->n < spare->cap);
        spare->page[spare->n++] = page;
    }
}

void
glm_table_move(glm_table_t *t, glm_table_t *spare)
{
    assert(spare->n > 0 && t->n < t->cap);
    t->page[t->n++] = spare->page[--spare->n];
}
