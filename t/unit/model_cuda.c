/*
 * model_cuda: the CUDA backend over t/fakecuda: what does not fit, the memory plan,
 * quantised weights and KV, the sampler's lists, steps that overlap.  Would break: a card
 * that is asked for more than it has, other tokens than the CPU's, a leak.
 */
#include "dummy_util.h"

#ifndef GLM_FAKECUDA

int
main(void)
{
    skip_all("the headers of CUDA are not here");
}

#else

#include "fakecuda.h"
#include "gpu.h"
#include "model_cuda.h"

/* The logits of the last row of 20 tokens of context and 20 rows, rows a step. */
static int
run(glm_model_t *m, int rows, float *logits)
{
    pass_t   p = { token, token, pages, TOKENS, TOKENS / 2, 1, rows };
    int32_t  position[TOKENS];
    float   *all = calloc((size_t) TOKENS * VOCAB, sizeof(float));
    int      rc;

    for (int i = 0; i < TOKENS; i++) position[i] = i;
    p.position = position;
    rc = model_pass(m, &p, all);
    memcpy(logits, all + (size_t) (TOKENS - 1) * VOCAB, VOCAB * sizeof(float));
    free(all);
    return rc;
}

static double
rms(const float *a, const float *b)
{
    double  s = 0, size = 0;

    for (int i = 0; i < VOCAB; i++) {
        s += (double) (a[i] - b[i]) * (double) (a[i] - b[i]);
        size += (double) a[i] * (double) a[i];
    }
    return sqrt(s / size);
}

/* ---- the plan ---- */

static long
plan_tokens(const char *model, uint64_t memory, int kv_int8, glm_err_t *err)
{
    glm_model_opts_t  o = { .dir = model, .dummy = 1, .tp = 1, .max_rows = 256,
                            .kv_int8 = kv_int8, .device_memory = memory };
    char             *text = NULL, *at;
    size_t            n;
    FILE             *f = open_memstream(&text, &n);
    int               rc = glm_model_plan(&o, f, err);
    long              tokens = -1;

    fclose(f);
    at = strstr(text, "KV: ");
    if (at != NULL && rc == 0) {
        tokens = 0;
        for (at += 4; *at == ',' || (*at >= '0' && *at <= '9'); at++) {
            if (*at != ',') tokens = tokens * 10 + *at - '0';
        }
    }
    free(text);
    return tokens;
}

static void
check_plan(void)
{
    static const char  big[] = "t/data/glm-130b-int4";
    glm_err_t          err = { "" };
    long               n;

    n = plan_tokens(big, 84462796800u, 1, &err);
    ok(n >= 8960 && n < 9400, "GLM-130B int4 on an H100 80GB: %ld tokens of int8 KV (%s)", n,
        err.text);
    n = plan_tokens(big, 84462796800u, 0, &err);
    ok(n > 4000 && n < 5000, "in fp16: %ld", n);
    err.text[0] = '\0';
    n = plan_tokens(big, 60000000000u, 1, &err);
    ok(n < 0 && strstr(err.text, "there are 60000000000") && strstr(err.text, "too few"),
        "on 60 GB: %s", err.text);
}

/* A number of the plan, behind what. */
static size_t
planned(glm_model_opts_t o, const char *what)
{
    glm_err_t   err = { "" };
    char       *text = NULL, *at;
    size_t      n = 0, size;
    FILE       *f = open_memstream(&text, &size);

    o.dir = dir;
    o.dummy = o.tp = 1;
    o.max_rows = 128;
    if (glm_model_plan(&o, f, &err) != 0) bail_out(err.text);
    fclose(f);
    at = strstr(text, what);
    for (at = at == NULL ? text : at + strlen(what); *at == ',' || (*at >= '0' && *at <= '9'); at++) {
        if (*at != ',') n = n * 10 + (size_t) (*at - '0');
    }
    free(text);
    return n;
}

/* Pinned memory is what the plan says, with the readers' buffers and without. */
static void
check_pinned(int readers, size_t piece, int kv_pages)
{
    glm_model_opts_t   o = { .backend = GLM_BACKEND_CUDA, .kv_pages = kv_pages,
                             .readers = readers, .piece = piece };
    glm_model_t       *m;
    glm_err_t          err;
    size_t             most, after, loading, serving;

    write_config(2, 768, 64, "{\"type\": \"int4\", \"group_size\": 128}");
    loading = planned(o, "while loading, ");
    serving = planned(o, "pinned host memory: ");
    (void) fakecuda_pinned();
    if (load(&m, o, &err) != 0) bail_out(err.text);
    most = fakecuda_pinned();
    after = fakecuda_pinned();
    glm_model_free(m);
    ok(most == loading && after == serving && most > after, "%d readers, pieces of %zu: %zu bytes "
        "pinned, planned %zu; then %zu, %zu", readers, piece, most, loading, after, serving);
}

/* ---- start ---- */

static void
check_start(void)
{
    static const struct { int inner, head_dim, tp; const char *quant, *says; } bad[] = {
        { 384, 64, 1, "", "inner_hidden_size 384" },
        { 512, 32, 1, "", "head size 32" },
        { 512, 64, 2, "", "--tp 2" },
        { 512, 64, 1, "{\"type\": \"int4\", \"group_size\": 64}", "scale for 64 columns" },
    };
    glm_model_t  *m;
    glm_err_t     err;
    int           rc;

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        write_config(1, bad[i].inner, bad[i].head_dim, bad[i].quant);
        rc = load(&m, (glm_model_opts_t) { .backend = GLM_BACKEND_CUDA, .tp = bad[i].tp }, &err);
        ok(rc == GLM_EINVAL && strstr(err.text, bad[i].says), "refused: %s", err.text);
    }
    write_config(1, 512, 64, "");
    fakecuda_memory(2000000);
    rc = load(&m, (glm_model_opts_t) { .backend = GLM_BACKEND_CUDA }, &err);
    ok(rc == GLM_ENOMEM && strstr(err.text, "there are 2000000"), "a card of 2 MB: %s", err.text);
    fakecuda_memory((size_t) 1 << 30);
    rc = load(&m, (glm_model_opts_t) { .backend = GLM_BACKEND_CUDA, .kv_pages = 1 << 20 }, &err);
    ok(rc == GLM_ENOMEM && strstr(err.text, "of KV for 16777216 tokens"), "too much KV: %s",
        err.text);
    rc = load(&m, (glm_model_opts_t) { .backend = GLM_BACKEND_CUDA,
                                       .device_memory = 3000000 }, &err);
    ok(rc == GLM_ENOMEM && strstr(err.text, "there are 3000000"), "--device-memory is a limit");

    fakecuda_devices(0);
    rc = load(&m, (glm_model_opts_t) { .backend = GLM_BACKEND_CUDA }, &err);
    ok(rc == GLM_EGPU && strstr(err.text, "no CUDA"), "no card: %s", err.text);
    rc = load(&m, (glm_model_opts_t) { .backend = GLM_BACKEND_AUTO }, &err);
    ok(rc == 0 && strncmp(glm_model_isa(m), "sm_", 3) != 0, "auto without a card: the CPU");
    glm_model_free(m);
    fakecuda_devices(1);
    fakecuda_capability(75);
    rc = load(&m, (glm_model_opts_t) { .backend = GLM_BACKEND_CUDA }, &err);
    ok(rc == GLM_EGPU && strstr(err.text, "7.5"), "an old card: %s", err.text);
    fakecuda_capability(86);
    rc = load(&m, (glm_model_opts_t) { .backend = GLM_BACKEND_CUDA }, &err);
    ok(rc == GLM_EGPU && strstr(err.text, "101376 bytes of shared memory, needed are 163840"),
       "a card of 8.6: %s", err.text);
    fakecuda_capability(80);
    rc = load(&m, (glm_model_opts_t) { .backend = GLM_BACKEND_AUTO }, &err);
    ok(rc == 0 && strcmp(glm_model_isa(m), "sm_80") == 0, "auto with a card: the card");
    ok(glm_model_kv_pages(m) == 128 * MAX_SEQ / 16, "as many pages as all rows can fill");
    glm_model_free(m);
    fakecuda_capability(90);
    ok(fakecuda_live() == 0, "nothing is left");
}

/* ---- weights, KV, sampling ---- */

static void
check_kinds(void)
{
    static const struct { const char *quant; int head, kv_int8; double most; } kinds[] = {
        { "", GLM_HEAD_F16, 0, 2e-3 },
        { "", GLM_HEAD_AUTO, 1, 1e-2 },
        { "", GLM_HEAD_INT8, 0, 1e-2 },
        { "{\"type\": \"int8\"}", GLM_HEAD_F16, 0, 2e-3 },
        { "{\"type\": \"int4\"}", GLM_HEAD_F16, 0, 2e-3 },
        { "{\"type\": \"int4\", \"group_size\": 128}", GLM_HEAD_F16, 0, 2e-3 },
        { "{\"type\": \"int4\", \"group_size\": 128}", GLM_HEAD_AUTO, 1, 2e-2 },
    };
    float         want[VOCAB], got[VOCAB], other[VOCAB];
    uint64_t      print[8];
    glm_model_t  *cpu, *m;
    glm_err_t     err;
    int           rc;

    for (int i = 0; i < 7; i++) {
        glm_model_opts_t  o = { .backend = GLM_BACKEND_CUDA, .kv_pages = 16, .head = kinds[i].head,
                                .kv_int8 = kinds[i].kv_int8 };

        write_config(2, 768, i % 2 ? 128 : 64, kinds[i].quant);
        if (load(&cpu, (glm_model_opts_t) { .backend = GLM_BACKEND_CPU, .kv_pages = 16 }, &err) != 0
            || load(&m, o, &err) != 0)
        {
            ok(0, "loads: %s", err.text);
            continue;
        }
        run(cpu, 1, want);
        rc = run(m, 1, got);
        ok(rc == 0 && rms(want, got) < kinds[i].most,
            "weights %s, head %d, KV %s: %.1e from the CPU", kinds[i].quant, kinds[i].head,
            kinds[i].kv_int8 ? "int8" : "fp16", rms(want, got));
        run(m, 20, other);
        ok(memcmp(got, other, sizeof(got)) == 0, "20 rows a step: the same bits");
        print[i] = glm_model_fingerprint(m);
        for (int j = 0; j < i; j++) {
            if (print[j] == print[i]) ok(0, "fingerprints %d and %d are equal", i, j);
        }
        glm_model_free(m);
        glm_model_free(cpu);
    }
    ok(fakecuda_live() == 0, "nothing is left");
}

/* Eight ids in the last piece of the head, when it is loaded and when logits of a context
 * are made: as many as check_sizes() lets a vocabulary have past its last 256. */
static void
check_last_piece(int head)
{
    enum { IDS = VOCAB + 8, N = 20 };
    static float       want[N * IDS], got[N * IDS];
    glm_model_opts_t   o = { .kv_pages = 8, .piece = 1 };
    glm_row_t          row = { 5, N, N, pages, NULL };
    glm_model_t       *m;
    glm_err_t          err;
    double             off = 0;
    int                bad = 0;

    vocab = IDS;
    write_config(2, 512, 64, "");
    vocab = VOCAB;
    for (int card = 0; card < 2; card++) {
        float  *to = card ? got : want;

        o.backend = card ? GLM_BACKEND_CUDA : GLM_BACKEND_CPU;
        o.head = card ? head : GLM_HEAD_AUTO;
        if (load(&m, o, &err) != 0) {
            ok(0, "%d ids: %s", IDS, err.text);
            return;
        }
        bad += glm_model_prefill(m, token, N, pages, 0, 2, to) != 0;
        bad += glm_model_step(m, &row, 1, NULL, to) != 0;     /* in the place of the first */
        glm_model_free(m);
    }
    for (int i = 0; i < N; i++) {
        off = fmax(off, rms(want + i * IDS + 8, got + i * IDS + 8));    /* the last 1024 */
    }
    ok(bad == 0 && off < (head == GLM_HEAD_F16 ? 2e-3 : 1e-2), "%d ids, head %d: %.1e from the CPU",
        IDS, head, off);
}

/* Another generation of cards is another fingerprint; another table of kernels, or a
 * smaller step of the same generation, is not. */
static void
check_generations(void)
{
    static const int  card[] = { 90, 80, 87, 100 };
    uint64_t          print[4] = { 0 };
    glm_model_t      *m;

    write_config(1, 512, 64, "");
    for (int i = 0; i < 4; i++) {
        fakecuda_capability(card[i]);
        m = loaded();
        print[i] = glm_model_fingerprint(m);
        glm_model_free(m);
    }
    fakecuda_capability(90);
    ok(print[0] != print[1] && print[0] != print[3] && print[1] != print[3],
        "cards of 8, 9 and 10: three fingerprints");
    ok(print[1] == print[2], "8.0 and 8.7: one");
}

/* Everything that a card would take memory for is there before the first request. */
static void
check_late(const char *quant)
{
    glm_sample_t   greedy = { .nlogprobs = -1 };
    glm_row_t      row[64];
    glm_sampled_t  out[64];
    int32_t        tokens[128];
    glm_model_t   *m;
    int            before, bad = 0;

    max_seq = 128;
    write_config(2, 512, 64, quant);
    max_seq = MAX_SEQ;
    fakecuda_unload();
    m = loaded();
    before = fakecuda_late();
    for (int i = 0; i < 128; i++) tokens[i] = i;
    for (int n = 1; n <= 128; n += 127) bad += glm_model_prefill(m, tokens, n, pages, 0, 2, NULL) != 0;
    for (int n = 8; n <= 64; n *= 2) {
        for (int i = 0; i < n; i++) row[i] = (glm_row_t) { i, i, i, pages, &greedy };
        bad += glm_model_step(m, row, n, out, NULL) != 0;
    }
    ok(bad == 0 && before > 0 && fakecuda_late() == before, "%s: nothing is loaded late (%d)",
        quant[0] ? quant : "fp16", fakecuda_late() - before);
    glm_model_free(m);
}

/* Masks and lists as the sampler on the card finds them. */
static void
check_sample(glm_model_t *m)
{
    static uint64_t  allow[2][VOCAB / 64];
    glm_adjust_t     adjust[2] = { { 5, 2, 1, 3.5f }, { 7, 0, 1, 20 } };
    int32_t          ban[3] = { 7, 9, 11 }, score[2] = { 3, 4 };
    glm_sample_t     s[5] = {
        { .temperature = 0, .nlogprobs = 3 },
        { .temperature = 1, .top_p = 0.9f, .seed = 7, .nlogprobs = -1, .allow = allow[0] },
        { .nlogprobs = 0, .adjust = adjust, .nadjust = 2, .frequency = 0.5f, .ban = ban,
          .nban = 3, .allow = allow[1] },
        { .temperature = 0.7f, .seed = 9, .top_k = 20, .allow = allow[0], .score = score,
          .nscore = 2, .nlogprobs = 1 },
        { .force = 123, .nlogprobs = 0 }
    };
    glm_row_t        row[6] = { { 0 } };
    glm_sampled_t    out[6], want;
    float           *logits = malloc(6 * VOCAB * sizeof(float));
    void            *scratch = aligned_alloc(64, (glm_sample_scratch(VOCAB) + 63) / 64 * 64);

    for (int i = 100; i < 200; i++) allow[0][i / 64] |= 1ull << i % 64;
    memset(allow[1], 0xff, sizeof(allow[1]));
    for (int i = 0; i < 6; i++) row[i] = (glm_row_t) { 3 + i, i, i, pages, i < 5 ? &s[i] : NULL };
    ok(glm_model_step(m, row, 6, out, logits) == 0, "rows of five kinds of sampling");
    for (int i = 0; i < 5; i++) {
        glm_sample(logits + i * VOCAB, VOCAB, &s[i], scratch, &want);
        ok(out[i].id == want.id && out[i].logprob == want.logprob && out[i].ntop == want.ntop
           && memcmp(out[i].top, want.top, (size_t) want.ntop * sizeof(want.top[0])) == 0,
            "sampling %d: id %d", i, out[i].id);
    }
    free(logits);
    free(scratch);
}

/* Steps in order, and each begun before the one before is read, rows in another order
 * every time: the same ids and log-probabilities.  What cannot be asked for is refused. */
static void
check_overlap(glm_model_t *m)
{
    enum { STEPS = 30, ROWS = 4 };
    glm_sample_t    s[ROWS];
    glm_row_t       row[ROWS];
    glm_sampled_t   want[ROWS] = { { 0 } }, got[ROWS];
    glm_sampled_t   all[STEPS][ROWS];
    int32_t         table[ROWS][2] = { { 0, 1 }, { 2, 3 }, { 4, 5 }, { 6, 7 } };
    int             bad = 0;

    for (int i = 0; i < ROWS; i++) {
        s[i] = (glm_sample_t) { .temperature = 20, .seed = (uint64_t) i, .nlogprobs = 0 };
        want[i].id = 10 + i;
    }
    for (int t = 0; t < STEPS; t++) {
        for (int i = 0; i < ROWS; i++) {
            row[i] = (glm_row_t) { want[i].id, t, t, table[i], &s[i] };
            s[i].ntokens = (uint32_t) t;
        }
        bad += glm_model_step(m, row, ROWS, want, NULL) != 0;
        memcpy(all[t], want, sizeof(want));
    }
    ok(bad == 0 && want[0].id != all[STEPS - 2][0].id, "steps in order");
    for (int t = 0; t < STEPS; t++) {
        for (int i = 0; i < ROWS; i++) {
            /* rows of the step before were the other way round */
            row[i] = (glm_row_t) { t > 0 ? GLM_PICKED(ROWS - 1 - i) : 10 + (t % 2 ? i : ROWS - 1 - i),
                                   t, t, table[t % 2 ? i : ROWS - 1 - i], NULL };
        }
        bad += glm_model_begin(m, row, ROWS) != 0 || glm_model_begin(m, row, ROWS) != GLM_EINVAL
               || glm_model_step(m, row, ROWS, got, NULL) != GLM_EINVAL;
        memset(row, 0x55, sizeof(row));           /* nothing of it is looked at again */
        memset(table, 0x55, t == STEPS - 1 ? sizeof(table) : 0);
        if (t > 0) bad += glm_model_sample(m, row, ROWS) != GLM_EINVAL || glm_model_read(m, got) != 0;
        for (int i = 0; i < ROWS && t > 0; i++) {
            const glm_sampled_t  *w = &all[t - 1][(t - 1) % 2 ? i : ROWS - 1 - i];

            bad += got[i].id != w->id || got[i].logprob != w->logprob;
        }
        for (int i = 0; i < ROWS; i++) {
            s[i].ntokens = (uint32_t) t;
            row[i].sample = &s[t % 2 ? i : ROWS - 1 - i];
        }
        bad += glm_model_sample(m, row, ROWS - 1) != GLM_EINVAL || glm_model_sample(m, row, ROWS) != 0;
        memset(row, 0x55, sizeof(row));
    }
    bad += glm_model_read(m, got) != 0 || glm_model_read(m, got) != GLM_EINVAL;
    row[0] = (glm_row_t) { GLM_PICKED(0), 0, 0, pages, NULL };
    bad += glm_model_begin(m, row, 1) != GLM_EINVAL;
    ok(bad == 0, "each begun before the one before is read: the same ids, and order is kept");
}

int
main(void)
{
    glm_model_t  *m;
    glm_err_t     err;

    dummy_begin();
    check_plan();
    check_pinned(1, 0, 8);
    check_pinned(3, 100000, 64);
    check_pinned(16, 1, 512);
    check_start();
    check_kinds();
    check_last_piece(GLM_HEAD_F16);
    check_last_piece(GLM_HEAD_INT8);
    check_generations();
    check_late("");
    check_late("{\"type\": \"int4\", \"group_size\": 128}");
    write_config(2, 512, 64, "");
    if (ok(load(&m, (glm_model_opts_t) { .backend = GLM_BACKEND_CUDA, .kv_pages = 8 }, &err) == 0,
           "a model loads"))
    {
        check_sample(m);
        check_overlap(m);
        glm_model_free(m);
    }
    dummy_end();
    return tap_done();
}
#endif
