/*
 * contexts: several bidirectional contexts in one pass, over t/fakecuda or on a card.  Would
 * break: other bits than each has alone, whatever the company, the cut in slices and the
 * steps in between; a page written that the context lost on its way.
 */
#include "dummy_util.h"

#if !defined(GLM_FAKECUDA) && !defined(GLM_TEST_CUDA)

int
main(void)
{
    skip_all("the CPU computes one at a time, and the headers of CUDA are not here");
}

#else

#define MOST   64
#define PAGES  256

static int32_t  ids[MOST][MOST], table[MOST][4];

/* What a row behind the context says. */
static int
ask(glm_model_t *m, int i, int n, const int32_t *at, float *logits)
{
    glm_row_t  row = { .token = 7 + i, .position = n, .slot = n, .pages = at };

    return glm_model_step(m, &row, 1, NULL, logits);
}

/* Each alone, in the pages behind those of the others. */
static int
alone(glm_model_t *m, const int *n, int nc, float *logits)
{
    int32_t  at[5];
    int      layers = glm_model_config(m)->layers, rc = 0;

    for (int i = 0; i < 5; i++) at[i] = PAGES - 1 - i;
    for (int i = 0; i < nc && rc == 0; i++) {
        rc = glm_model_prefill(m, ids[i], n[i], at, 0, layers, NULL);
        if (rc == 0) rc = ask(m, i, n[i], at, logits + i * VOCAB);
    }
    return rc;
}

/* A row of somebody else between two slices. */
static int
between(glm_model_t *m)
{
    static float    logits[VOCAB];
    static int32_t  at[1] = { PAGES - 6 };
    glm_row_t       row = { .token = 11, .pages = at };

    return glm_model_step(m, &row, 1, NULL, logits);
}

static int
together(glm_model_t *m, glm_context_t *c, int nc, int slice)
{
    int  layers = glm_model_config(m)->layers, rc = 0;

    for (int l = 0; l < layers && rc == 0; l += slice) {
        int  last = l + slice < layers ? l + slice : layers;

        rc = glm_model_prefill_all(m, c, nc, l, last);
        if (rc == 0) rc = between(m);
    }
    return rc;
}

/* Block tables of contexts and a row behind each, in an order that is not theirs. */
static void
place(const int *n, int nc, glm_context_t *c)
{
    int32_t  order[PAGES - 6];
    int      next = 0;

    shuffle_pages(order, PAGES - 6, 5);
    for (int i = 0; i < nc; i++) {
        for (int k = 0; k <= n[i] / GLM_KV_PAGE && k < 4; k++) table[i][k] = order[next++];
        c[i] = (glm_context_t) { ids[i], table[i], n[i] };
    }
}

static void
check(glm_model_t *m, const char *what, const int *n, int nc)
{
    static float   want[MOST * VOCAB], got[MOST * VOCAB];
    glm_context_t  c[MOST];
    int            layers = glm_model_config(m)->layers, differ, rc;

    rc = alone(m, n, nc, want);
    for (int slice = 1; slice <= layers; slice += layers - 1) {
        place(n, nc, c);
        memset(got, 0, sizeof(got));
        if (rc == 0) rc = together(m, c, nc, slice);
        for (int i = 0; i < nc && rc == 0; i++) rc = ask(m, i, n[i], table[i], got + i * VOCAB);
        differ = 0;
        for (int i = 0; i < nc; i++)
            differ += memcmp(want + i * VOCAB, got + i * VOCAB, VOCAB * sizeof(float)) != 0;
        ok(rc == 0 && differ == 0, "%s, %d contexts (%d ..), %d layers a slice: %d with other bits (%d)", what,
            nc, n[0], slice, differ, rc);
    }
}

/* The middle one loses its page behind the first layer to somebody who had computed his: the
 * page is his, and the others do not notice. */
static void
check_lost(glm_model_t *m)
{
    static const int  n[] = { 9, 15, 12 };
    static float      want[3 * VOCAB], got[3 * VOCAB], his[VOCAB], later[VOCAB];
    glm_context_t     c[3];
    int32_t           own[1] = { PAGES - 1 };
    int               layers = glm_model_config(m)->layers, rc;

    rc = alone(m, n, 3, want);
    place(n, 3, c);
    rc |= glm_model_prefill(m, ids[5], 14, own, 0, layers, NULL);
    rc |= ask(m, 5, 14, own, his);
    rc |= glm_model_prefill_all(m, c, 3, 0, 1);
    rc |= glm_model_copy_page(m, table[1][0], own[0]);
    c[1].pages = NULL;
    rc |= glm_model_prefill_all(m, c, 3, 1, layers);
    rc |= ask(m, 5, 14, table[1], later) | ask(m, 0, n[0], table[0], got) | ask(m, 2, n[2], table[2], got + 2 * VOCAB);
    ok(rc == 0 && memcmp(his, later, sizeof(his)) == 0, "a page that one lost is not written (%d)", rc);
    ok(memcmp(want, got, VOCAB * sizeof(float)) == 0
       && memcmp(want + 2 * VOCAB, got + 2 * VOCAB, VOCAB * sizeof(float)) == 0, "the others have their bits");
}

static void
check_refused(glm_model_t *m)
{
    static const int  n[] = { 30, 30, 5 };
    glm_context_t     c[3];
    int               layers = glm_model_config(m)->layers;

    place(n, 3, c);
    ok(glm_model_together(m) == 64, "64 tokens have a pass together");
    ok(glm_model_prefill_all(m, c, 3, 0, layers) == GLM_EINVAL, "65 have not");
    ok(glm_model_prefill_all(m, c, 0, 0, layers) == GLM_EINVAL, "none is no pass");
    ok(glm_model_prefill_all(m, c, 2, 0, 1) == 0 && glm_model_prefill_all(m, c, 1, 1, 2) == GLM_EINVAL
       && glm_model_prefill_all(m, c + 1, 2, 1, 2) == GLM_EINVAL, "they stay the same from slice to slice");
    c[1].pages = NULL;
    ok(glm_model_prefill_all(m, c + 1, 1, 0, layers) == GLM_EINVAL, "one that nobody wants, alone");
    c[1].n = 0;
    ok(glm_model_prefill_all(m, c, 2, 0, layers) == GLM_EINVAL, "one without tokens");
}

static void
check_model(const char *what, int inner, int head_dim, const char *quant, int kv_int8)
{
    static const int  some[] = { 18, 1, 15, 16, 14 }, two[] = { 63, 1 }, three[] = { 1, 47, 16 }, one[] = { 33 };
    int               ones[MOST];
    glm_model_t      *m;
    glm_err_t         err;

    for (int i = 0; i < MOST; i++) ones[i] = 1;
    max_seq = 2 * MAX_SEQ;
    write_config(3, inner, head_dim, quant);
    if (load(&m, (glm_model_opts_t) { .backend = GLM_BACKEND_CUDA, .kv_pages = PAGES, .max_rows = 64,
                                      .kv_int8 = kv_int8 }, &err) != 0) bail_out(err.text);
    check(m, what, some, 5);
    check(m, what, two, 2);
    check(m, what, three, 3);
    check(m, what, one, 1);
    check(m, what, ones, MOST);
    check_lost(m);
    check_refused(m);
    glm_model_free(m);
}

int
main(void)
{
    dummy_begin();
    for (int i = 0; i < MOST; i++)
        for (int t = 0; t < MOST; t++) ids[i][t] = (i * 131 + t * 37 + 11) % 1000;
    check_model("fp16", 512, 64, "", 0);
    check_model("int4, int8 KV", 768, 128, "{\"type\": \"int4\", \"group_size\": 128}", 1);
    dummy_end();
    return tap_done();
}
#endif
