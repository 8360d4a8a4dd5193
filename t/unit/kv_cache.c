/*
 * kv_cache: breaks when a page leaks, is given out twice, or is taken back while
 * somebody still holds it.
 */
#include "error.h"
#include "kv_cache.h"
#include "model.h"
#include "tap.h"

#define PAGES   64
#define TABLES  12

/* No page is in two places unless the count says so. */
static int
consistent(const glm_kv_t *kv, const glm_table_t *t, int n)
{
    int32_t  held[PAGES] = {0};

    for (int i = 0; i < n; i++)
        for (int32_t k = 0; k < t[i].n; k++) held[t[i].page[k]]++;
    for (int32_t i = 0; i < kv->nfree; i++)
        if (held[kv->free[i]]++ != 0) return 0;
    for (int i = 0; i < PAGES; i++)
        if (held[i] < 1) return 0;
    return 1;
}

static void
test_basics(void)
{
    glm_kv_t     kv;
    glm_table_t  a, b, c;

    ok(glm_kv_init(&kv, 10) == 0 && kv.nfree == 10, "ten pages, all free");
    ok(glm_kv_pages(0) == 0 && glm_kv_pages(1) == 1 && glm_kv_pages(16) == 1
       && glm_kv_pages(17) == 2, "pages of a number of tokens");
    glm_table_init(&a, 10);
    glm_table_init(&b, 10);
    glm_table_init(&c, 10);

    ok(glm_table_grow(&kv, &a, 4) == 0 && kv.nfree == 6, "four are taken");
    ok(glm_table_fork(&kv, &b, &a, 3, 5) == 0 && kv.nfree == 4, "a fork shares three, takes two");
    ok(b.page[2] == a.page[2] && b.page[3] != a.page[3], "shared ones are the same");
    ok(glm_table_grow(&kv, &c, 5) == GLM_EBUSY && c.n == 0 && kv.nfree == 4,
       "too many: none is taken");
    ok(glm_table_fork(&kv, &c, &a, 2, 7) == GLM_EBUSY && c.n == 0 && kv.nfree == 4,
       "a fork that does not fit takes none and shares none");
    glm_table_clear(&kv, &a);
    ok(kv.nfree == 5, "the first goes: only its own page is free");
    glm_table_clear(&kv, &b);
    ok(kv.nfree == 10, "the fork goes: all are free");

    glm_table_destroy(&a);
    glm_table_destroy(&b);
    glm_table_destroy(&c);
    glm_kv_destroy(&kv);
}

/* Pages that a job keeps for itself while its tables change. */
static void
test_spare(void)
{
    glm_kv_t     kv;
    glm_table_t  a, b, spare;

    glm_kv_init(&kv, 10);
    glm_table_init(&a, 10);
    glm_table_init(&b, 10);
    glm_table_init(&spare, 10);
    glm_table_grow(&kv, &a, 3);
    glm_table_grow(&kv, &spare, 2);
    glm_table_fork(&kv, &b, &a, 2, 2);
    glm_table_move(&b, &spare);
    ok(b.n == 3 && b.page[2] == 4 && spare.n == 1 && kv.nfree == 5, "a page of the spare ones");
    glm_table_recycle(&kv, &a, &spare);
    ok(a.n == 0 && spare.n == 2 && spare.page[1] == 2 && kv.nfree == 5,
       "what another one shares stays his, the rest is spare again");
    glm_table_recycle(&kv, &b, &spare);
    ok(b.n == 0 && spare.n == 5 && kv.nfree == 5, "then that, too");
    glm_table_clear(&kv, &spare);
    ok(kv.nfree == 10, "and in the end it is everybody's");

    glm_table_destroy(&a);
    glm_table_destroy(&b);
    glm_table_destroy(&spare);
    glm_kv_destroy(&kv);
}

static void
test_random(void)
{
    glm_kv_t     kv;
    glm_table_t  t[TABLES];
    unsigned     s = 1;
    int          bad = 0;

    glm_kv_init(&kv, PAGES);
    for (int i = 0; i < TABLES; i++) glm_table_init(&t[i], PAGES);

    for (int round = 0; round < 20000; round++) {
        glm_table_t  *x = &t[(s = s * 1103515245 + 12345) / 65536 % TABLES];
        glm_table_t  *y = &t[(s = s * 1103515245 + 12345) / 65536 % TABLES];
        int32_t       n = (int32_t) ((s = s * 1103515245 + 12345) / 65536 % 20);
        int32_t       before = kv.nfree, had = x->n;

        if (x->n > 0 && n % 3 == 0) glm_table_clear(&kv, x);
        else if (x->n == 0 && x != y && y->n > 0)
            bad += glm_table_fork(&kv, x, y, y->n - 1, y->n - 1 + n) == GLM_EBUSY
                   && (x->n != 0 || kv.nfree != before);
        else if (n > x->n) bad += glm_table_grow(&kv, x, n) == GLM_EBUSY && x->n != had;
        if (round % 50 == 0) bad += !consistent(&kv, t, TABLES);
    }
    ok(bad == 0, "20,000 random grows, forks and clears keep the counts right");
    for (int i = 0; i < TABLES; i++) {
        glm_table_clear(&kv, &t[i]);
        glm_table_destroy(&t[i]);
    }
    ok(kv.nfree == PAGES, "nothing leaked");
    glm_kv_destroy(&kv);
}

int
main(void)
{
    test_basics();
    test_spare();
    test_random();
    return tap_done();
}
