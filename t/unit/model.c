/*
 * model: what must not change a bit (rows in a step, place in a batch, pages,
 * slices, threads, instruction set, the degree files were cut at), and what is
 * refused.  Would break: scheduling that is visible in a stream.
 */
#include "model_util.h"

#define N      75                 /* tokens of the pass: odd, several pages */
#define C      41                 /* of them context */

static int32_t  token[N], position[N], pages[64], plain_pages[64];
static size_t   vocab;
static float   *want, *got;       /* (N, vocab) */

static void
make_pass(const glm_config_t *cfg)
{
    for (int i = 0; i < N; i++) {
        token[i] = (int32_t) ((uint32_t) i * 7919 % (uint32_t) (cfg->vocab - 16));
        position[i] = i < C ? i : i % 3 ? C - 1 : i;     /* frozen and not */
    }
    for (int i = 0; i < 64; i++) plain_pages[i] = i;
    shuffle_pages(pages, 64, 5);
    vocab = (size_t) cfg->vocab;
    want = calloc(N * vocab, sizeof(float));
    got = calloc(N * vocab, sizeof(float));
}

static int
same(void)
{
    return memcmp(want, got, N * vocab * sizeof(float)) == 0;
}

static pass_t
pass(const int32_t *table, int slice, int step)
{
    return (pass_t) { token, position, table, N, C, slice, step };
}

static void
check_rows(glm_model_t *m)
{
    static const int  steps[] = { 2, 3, 7, 8, 9, 13, N };
    pass_t            p = pass(plain_pages, 0, 1);

    model_pass(m, &p, want);
    for (int i = 0; i < 7; i++) {
        p = pass(plain_pages, 0, steps[i]);
        memset(got, 0, N * vocab * sizeof(float));
        model_pass(m, &p, got);
        ok(same(), "%d rows a step: the bits of one at a time", steps[i]);
    }
    p = pass(pages, 0, 5);
    model_pass(m, &p, got);
    ok(same(), "shuffled pages: the same bits");
    p = pass(plain_pages, 1, 5);
    model_pass(m, &p, got);
    ok(same(), "prefill cut by layers: the same bits");
}

/* Rows of this pass among rows of other sequences, at other places. */
static void
check_mix(glm_model_t *m)
{
    glm_row_t  row[20];
    float     *logits = calloc(20 * vocab, sizeof(float));
    int        equal = 1, places[] = { 0, 1, 7, 8, 11, 12, 18, 19 }, at;
    pass_t     p = pass(plain_pages, 0, 1);

    p.n = C;                                    /* the context, and two others */
    model_pass(m, &p, NULL);
    for (int s = 1; s < 3; s++) {
        p.pages = plain_pages + 20 * s;
        p.c = 9 * s;
        p.n = 9 * s;
        model_pass(m, &p, NULL);
    }
    for (int i = C; i < N; i++) {
        at = places[i % 8];
        for (int j = 0; j < 20; j++) {
            int  s = 1 + j % 2;

            row[j] = (glm_row_t) { token[(i + j) % N], i, 9 * s, plain_pages + 20 * s, NULL };
        }
        row[at] = (glm_row_t) { token[i], position[i], i, plain_pages, NULL };
        glm_model_step(m, row, at + 1 + i % (20 - at), NULL, logits);
        equal &= memcmp(logits + (size_t) at * vocab, want + (size_t) i * vocab,
                        vocab * sizeof(float)) == 0;
    }
    ok(equal, "among other sequences' rows: the same bits");
    free(logits);
}

/* A step, and a step of another sequence, between the slices of a prefill. */
static void
check_between(glm_model_t *m)
{
    const glm_config_t  *cfg = glm_model_config(m);
    glm_row_t            row = { token[0], 0, 0, plain_pages + 40, NULL };

    for (int l = 0; l < cfg->layers; l++) {
        glm_model_prefill(m, token, C, plain_pages, l, l + 1, NULL);
        glm_model_step(m, &row, 1, NULL, got);
    }
    for (int i = C; i < N; i++) {
        row = (glm_row_t) { token[i], position[i], i, plain_pages, NULL };
        glm_model_step(m, &row, 1, NULL, got + (size_t) i * vocab);
    }
    ok(memcmp(want + C * vocab, got + C * vocab, (N - C) * vocab * sizeof(float)) == 0,
        "steps between slices, keys alone in the last layer: the same bits");
}

/* A fork continues from a copied page as the original does. */
static void
check_copy(glm_model_t *m)
{
    int32_t    fork[64];
    glm_row_t  row;

    memcpy(fork, plain_pages, sizeof(fork));
    fork[C / 16] = 100;                         /* never written before */
    glm_model_prefill(m, token, C, plain_pages, 0, glm_model_config(m)->layers, NULL);
    ok(glm_model_copy_page(m, 100, C / 16) == 0, "a page is copied");
    row = (glm_row_t) { token[C], position[C], C, fork, NULL };
    glm_model_step(m, &row, 1, NULL, got);
    ok(memcmp(got, want + C * vocab, vocab * sizeof(float)) == 0, "a fork: the same bits");
    ok(glm_model_copy_page(m, 128, 0) == GLM_EINVAL && glm_model_copy_page(m, 0, -1)
        == GLM_EINVAL, "pages that are not there are not copied");
}

/* The sampler sees each row's logits, whichever rows ask for it. */
static void
check_sample(glm_model_t *m)
{
    glm_sample_t   greedy = { .temperature = 0, .nlogprobs = 0 };
    glm_row_t      row[N];
    glm_sampled_t  out[N];
    int            equal = 1;
    pass_t         p = pass(plain_pages, 0, 1);

    p.n = C;
    model_pass(m, &p, NULL);
    memset(out, 0x55, sizeof(out));
    for (int i = C; i < N; i++) {
        row[i] = (glm_row_t) { token[i], position[i], i, plain_pages, i % 3 ? &greedy : NULL };
    }
    glm_model_step(m, row + C, N - C, out + C, NULL);
    for (int i = C; i < N; i++) {
        const float  *l = want + (size_t) i * vocab;
        int           best = 0;

        for (size_t k = 1; k < vocab; k++) if (l[k] > l[best]) best = (int) k;
        equal &= i % 3 ? out[i].id == best : out[i].id == 0x55555555;
    }
    ok(equal, "greedy ids of the rows that ask, nothing for the others");
}

static void
check_refused(glm_model_t *m)
{
    int32_t    bad[64], L = glm_model_config(m)->layers, max = glm_model_config(m)->max_seq;
    glm_row_t  good = { 1, 0, 0, plain_pages, NULL }, r, many[600];
    int32_t    tok[4] = { 1, 2, 3, 1 << 24 };

    memcpy(bad, plain_pages, sizeof(bad));
    bad[1] = 1 << 20;
    for (int i = 0; i < 600; i++) many[i] = good;
#define STEP(n)  glm_model_step(m, n > 1 ? many : &r, n, NULL, got)
    r = good; ok(STEP(1) == 0, "a good row goes");
    ok(glm_model_step(m, &r, 0, NULL, got) == GLM_EINVAL, "no rows: refused");
    ok(glm_model_step(m, many, 513, NULL, NULL) == GLM_EINVAL, "more than max_rows: refused");
    r.token = (int32_t) vocab; ok(STEP(1) == GLM_EINVAL, "an id past the vocabulary: refused");
    r = good; r.token = -1; ok(STEP(1) == GLM_EINVAL, "a negative id: refused");
    r = good; r.position = max; ok(STEP(1) == GLM_EINVAL, "a position past the table: refused");
    r = good; r.slot = max; ok(STEP(1) == GLM_EINVAL, "a slot past max_seq: refused");
    r = good; r.pages = bad; r.slot = 16; ok(STEP(1) == GLM_EINVAL, "a page not there: refused");
#undef STEP
#define PRE(t, n, p, a, b)  glm_model_prefill(m, t, n, p, a, b, NULL)
    ok(PRE(tok, 3, plain_pages, 0, L) == 0, "a good prefill goes");
    ok(PRE(tok, 4, plain_pages, 0, L) == GLM_EINVAL, "an id past the vocabulary: refused");
    ok(PRE(tok, 0, plain_pages, 0, L) == GLM_EINVAL, "an empty context: refused");
    ok(PRE(token, max + 1, plain_pages, 0, L) == GLM_EINVAL, "n > max_seq: refused");
    ok(PRE(token, 17, bad, 0, L) == GLM_EINVAL, "a page not there: refused");
    ok(PRE(tok, 3, plain_pages, 0, L + 1) == GLM_EINVAL, "more layers than there are: refused");
    ok(PRE(tok, 3, plain_pages, 1, L) == GLM_EINVAL, "a slice with none before it: refused");
    ok(PRE(tok, 3, plain_pages, 0, 1) == 0 && PRE(tok, 2, plain_pages, 1, L) == GLM_EINVAL,
        "a slice of another length: refused");
#undef PRE
}

/* Another way to run the same directory or files: the same bits, or close. */
static void
check_other(const char *dir, int tp, int threads, const char *isa, int exact, uint64_t print,
    const char *what)
{
    glm_model_t  *m = model_open(dir, tp, threads, isa);
    pass_t        p = pass(pages, 0, 6);
    double        d;

    if (m == NULL) {
        if (isa != NULL && strcmp(isa, "plain") != 0) skip("not on this machine");
        else ok(0, "%s loads", what);
        return;
    }
    memset(got, 0, N * vocab * sizeof(float));
    model_pass(m, &p, got);
    d = max_diff(want, got, N * vocab);
    ok(exact ? same() : d < 1e-3 && !same(), "%s: %s (%.1e)", what,
        exact ? "the same bits" : "close, and another order of sums", d);
    ok((glm_model_fingerprint(m) == print) == exact, "%s: fingerprint %s", what,
        exact ? "equal" : "differs");
    glm_model_free(m);
}

static void
check_load_errors(const char *dir)
{
    static const struct { glm_model_opts_t o; const char *says; } bad[] = {
        { { .tp = 3, .kv_pages = 1, .max_rows = 1 }, "degree 3" },
        { { .tp = 8, .kv_pages = 1, .max_rows = 1 }, "does not divide" },
        { { .tp = 1, .kv_pages = -1, .max_rows = 1 }, "-1 KV pages" },
        { { .tp = 1, .kv_pages = 1, .max_rows = 1, .isa = "sse2" }, "\"sse2\"" },
    };
    glm_model_t  *m;

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        glm_model_opts_t  o = bad[i].o;
        glm_err_t         err = { "" };

        o.dir = dir;
        o.backend = GLM_BACKEND_CPU;
        ok(glm_model_load(&m, &o, &err) < 0 && m == NULL && strstr(err.text, bad[i].says),
            "refused: %s", err.text);
    }
}

/* The same of quantised weights. */
static void
check_quant(const char *name)
{
    const char   *dir = model_dir(name);
    glm_model_t  *m = dir == NULL ? NULL : model_open(dir, 1, 1, NULL);
    uint64_t      print;

    if (!ok(m != NULL, "%s loads", name)) return;
    print = glm_model_fingerprint(m);
    check_rows(m);
    check_mix(m);
    check_between(m);
    glm_model_free(m);
    check_other(dir, 1, 3, NULL, 1, print, "3 threads");
    check_other(dir, 1, 2, "avx2", 1, print, "avx2");
    check_other(dir, 1, 2, "plain", 1, print, "plain C");
    check_other(dir, 4, 4, NULL, 0, print, "four ranks");
}

int
main(void)
{
    const char   *dir = model_dir("mini-tp1"), *two = model_dir("mini-tp2");
    glm_model_t  *m;
    uint64_t      print;

    if (dir == NULL || two == NULL) skip_all("models are not converted (make test does)");
    m = model_open(dir, 1, 1, NULL);
    if (!ok(m != NULL, "the mini model loads")) return tap_done();
    make_pass(glm_model_config(m));
    diag("instruction set %s, %zu bytes a KV page", glm_model_isa(m),
        glm_model_kv_page_bytes(m));
    ok(glm_model_kv_page_bytes(m) == 2 * 2 * 256 * 16 * (model_cuda ? 2 : 4),
        "size of a KV page");
    print = glm_model_fingerprint(m);
    check_rows(m);
    check_mix(m);
    check_between(m);
    check_copy(m);
    check_sample(m);
    check_refused(m);
    glm_model_free(m);

    check_other(two, 1, 2, NULL, 1, print, "files cut in two");
    if (model_cuda) goto done;
    check_other(dir, 1, 2, NULL, 1, print, "2 threads");
    check_other(dir, 1, 3, NULL, 1, print, "3 threads");
    check_other(dir, 1, 5, NULL, 1, print, "5 threads");
    check_other(dir, 1, 2, "avx2", 1, print, "avx2");
    check_other(dir, 1, 2, "plain", 1, print, "plain C");
    check_other(dir, 2, 2, NULL, 0, print, "two ranks");
    check_other(dir, 4, 4, NULL, 0, print, "four ranks");
    check_other(dir, 2, 4, NULL, 0, print, "two ranks of two threads");
    check_load_errors(dir);
    check_quant("mini-int8-tp2");
    check_quant("mini-int4-g32");

done:
    free(want);
    free(got);
    return tap_done();
}
