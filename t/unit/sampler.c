/*
 * sampler: breaks when an id that BaseStrategy would not draw can be drawn, when
 * ties, bans, NaN or log-probabilities go wrong, or when the bits depend on the
 * instruction set.
 */
#include <math.h>
#include <string.h>
#include <time.h>

#include "golden.h"
#include "sampler.h"
#include "sampler_scan.h"
#include "tap.h"

#define MAXV  150528

static float    x[MAXV], p[MAXV], q[MAXV];
static double   ref[MAXV];
static void    *scratch;

static uint32_t
rnd(void)
{
    static uint64_t  s = 88172645463325252ull;

    s ^= s << 13;
    s ^= s >> 7;
    s ^= s << 17;
    return (uint32_t) (s >> 16);
}

static float
normal(void)
{
    double  u = (rnd() + 1.0) / 4294967297.0, v = rnd() / 4294967296.0;

    return (float) (sqrt(-2 * log(u)) * cos(6.283185307179586 * v));
}

static int
may(const glm_sample_t *a, int i)
{
    return a->allow == NULL || (a->allow[i / 64] >> (i % 64) & 1);
}

static int  order[MAXV];

static int
by_logit(const void *a, const void *b)
{
    int  i = *(const int *) a, j = *(const int *) b;

    if (x[i] != x[j]) return x[i] < x[j] ? 1 : -1;
    return i - j;
}

/* The reference by sorting, in double. */
static void
slow_probs(int v, const glm_sample_t *a)
{
    int     n = 0, keep;
    double  z = 0, cum = 0, max;

    for (int i = 0; i < v; i++) {
        ref[i] = 0;
        if (may(a, i)) order[n++] = i;
    }
    qsort(order, (size_t) n, sizeof(int), by_logit);
    keep = n;
    if (a->top_k > 0 && a->top_k < n)
        for (keep = a->top_k; keep < n && x[order[keep]] == x[order[keep - 1]];) keep++;
    max = (double) x[order[0]];
    for (int i = 0; i < keep; i++)
        z += ref[order[i]] = exp(((double) x[order[i]] - max) / (double) a->temperature);
    for (int i = 0; i < keep; i++) {
        double  w = ref[order[i]];

        if (a->top_p > 0 && a->top_p < 1 && cum > (double) a->top_p * z) ref[order[i]] = 0;
        if (w < (double) a->min_p) ref[order[i]] = 0;
        cum += w;
    }
    z = 0;
    for (int i = 0; i < v; i++) z += ref[i];
    for (int i = 0; i < v; i++) ref[i] /= z;
}

static void
test_philox(void)
{
    static const uint32_t  kat[3][10] = {
        { 0, 0, 0, 0, 0, 0, 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8 },
        { 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff,
          0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd },
        { 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0,
          0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1 }
    };

    for (int i = 0; i < 3; i++) {
        uint32_t  out[4];

        glm_philox(kat[i], kat[i] + 4, out);
        ok(memcmp(out, kat[i] + 6, sizeof(out)) == 0, "Philox known answer %d", i);
    }
}

static int
golden_case(const json_t *c, double *worst)
{
    const json_t  *logits = json_object_get(c, "logits"), *probs = json_object_get(c, "probs");
    int            v = (int) json_array_size(logits), same = 1;
    size_t         kept = 0, want = json_array_size(json_object_get(c, "kept"));
    glm_sample_t   a = { .temperature = (float) golden_num(c, "temperature"),
                         .top_k = (int32_t) golden_num(c, "top_k"),
                         .top_p = (float) golden_num(c, "top_p"), .nlogprobs = -1 };

    for (int i = 0; i < v; i++) x[i] = (float) json_number_value(json_array_get(logits, i));
    glm_sample_probs(x, v, &a, scratch, p);
    for (int i = 0; i < v; i++) {
        double  d = fabs((double) p[i] - json_number_value(json_array_get(probs, i)));

        if (d > *worst) *worst = d;
        if (p[i] > 0 && kept++ < want)
            same &= json_integer_value(json_array_get(json_object_get(c, "kept"), kept - 1)) == i;
    }
    return same && kept == want;
}

static void
test_goldens(void)
{
    json_t  *g = golden_load("goldens/sampling.json", "reference/goldens/sampling.json");
    double   worst = 0;
    size_t   good = 0;

    if (g == NULL) {
        skip("no sampling.json");
        return;
    }
    for (size_t i = 0; i < json_array_size(g); i++) {
        const json_t  *c = json_array_get(g, i);

        if (golden_case(c, &worst)) good++;
        else diag("kept set differs: %s", json_string_value(json_object_get(c, "name")));
    }
    ok(good == json_array_size(g) && good > 0, "sampling.json: kept sets, %zu of %zu", good,
       json_array_size(g));
    ok(worst < 2e-6, "sampling.json: probabilities within %.2g", worst);
    json_decref(g);
}

static void
fill(int v, int shape)
{
    for (int i = 0; i < v; i++) {
        x[i] = shape == 2 ? (float) (rnd() % 7) : normal() * (shape == 1 ? 6.0f : 2.0f);
        if (shape == 3) x[i] = rnd() % 3 ? 0.0f : -0.0f;     /* equal, with other bits */
    }
}

static uint64_t  allow[MAXV / 64 + 1];

static void
test_random(void)
{
    double  worst = 0;
    int     cut_differs = 0;

    for (int round = 0; round < 300; round++) {
        int           v = round % 10 == 0 ? 8192 : 1 + (int) (rnd() % 700);
        glm_sample_t  a = { .temperature = 0.2f + (float) (rnd() % 200) / 100,
                            .top_k = rnd() % 3 ? 0 : (int32_t) (rnd() % 300),
                            .top_p = rnd() % 3 ? 0 : (float) (rnd() % 100) / 100,
                            .min_p = rnd() % 4 ? 0 : (float) (rnd() % 50) / 100 };

        fill(v, round % 4);
        if (round % 3 == 0) {
            for (int i = 0; i <= v / 64; i++) allow[i] = (uint64_t) rnd() << 32 | rnd();
            allow[0] |= 1;
            a.allow = allow;
        }
        slow_probs(v, &a);
        glm_sample_probs(x, v, &a, scratch, p);
        for (int i = 0; i < v; i++) {
            double  d = fabs((double) p[i] - ref[i]);

            if (d > worst) worst = d;
            /* What is below float's range is 0 here, and nobody's loss. */
            if (ref[i] > 1e-30 || ref[i] <= 0) cut_differs += (p[i] > 0) != (ref[i] > 0);
        }
    }
    ok(worst < 3e-6, "300 random rows equal a sort in double: worst %.2g", worst);
    ok(cut_differs == 0, "the same ids are kept: %d differ", cut_differs);
}

static void
test_draws(void)
{
    enum { V = 400, N = 200000 };
    static int     count[V];
    glm_sampled_t  out;
    glm_sample_t   a = { .temperature = 0.8f, .top_p = 0.9f, .seed = 7, .nlogprobs = -1 };
    double         chi = 0;
    int            kinds = 0, outside = 0;

    fill(V, 0);
    for (int with = 0; with < 2; with++) {
        memset(count, 0, sizeof(count));
        chi = kinds = outside = 0;
        a.top_p = with ? 0.9f : 0;
        glm_sample_probs(x, V, &a, scratch, p);
        for (uint32_t i = 0; i < N; i++) {
            a.ntokens = i;
            glm_sample(x, V, &a, scratch, &out);
            count[out.id]++;
        }
        for (int i = 0; i < V; i++) {
            double  e = (double) p[i] * N;

            outside += p[i] <= 0 && count[i] > 0;
            if (e < 5) continue;
            chi += (count[i] - e) * (count[i] - e) / e;
            kinds++;
        }
        ok(outside == 0 && kinds > 20 && fabs(chi - kinds) < 5 * sqrt(2.0 * kinds),
           "%d draws follow the probabilities (top_p %g): chi2 %.0f of %d", N, (double) a.top_p,
           chi, kinds);
    }
    a.ntokens = 5;
    glm_sample(x, V, &a, scratch, &out);
    for (uint32_t c = kinds = 0; c < 64; c++) {
        glm_sampled_t  o;

        a.choice = c;
        glm_sample(x, V, &a, scratch, &o);
        kinds += o.id != out.id;
    }
    ok(kinds > 30, "choices draw differently: %d of 64", kinds);
}

static void
test_greedy(void)
{
    glm_sampled_t  out;
    glm_sample_t   a = { .nlogprobs = -1 };
    int            bad = 0;

    for (int round = 0; round < 2000; round++) {
        int  v = 1 + (int) (rnd() % 600), want = -2;

        fill(v, 2);
        for (int i = 0; i <= v / 64; i++) allow[i] = (uint64_t) rnd() << 32 | rnd();
        a.allow = round & 1 ? allow : NULL;
        for (int i = 0; i < v; i++)
            if (may(&a, i) && (want < 0 || x[i] > x[want])) want = i;
        glm_sample(x, v, &a, scratch, &out);
        bad += out.id != want;
    }
    ok(bad == 0, "greedy: the first of equals among the allowed");

    a.allow = NULL;
    fill(100, 0);
    x[70] = NAN;
    glm_sample(x, 100, &a, scratch, &out);
    ok(out.id == -1, "a NaN logit: nothing is picked");
    a.temperature = 1;
    glm_sample(x, 100, &a, scratch, &out);
    ok(out.id == -1, "a NaN logit: nothing is drawn");
    x[70] = INFINITY;
    glm_sample(x, 100, &a, scratch, &out);
    ok(out.id == -1, "an infinite logit likewise");
    x[70] = 0;
    memset(allow, 0, sizeof(allow));
    a.allow = allow;
    glm_sample(x, 100, &a, scratch, &out);
    ok(out.id == -2, "nothing allowed: nothing is drawn");
    a.allow = NULL;
    a.temperature = 1e-40f;
    glm_sample(x, 100, &a, scratch, &out);
    for (int i = 0; i < 100 && out.id >= 0; i++)
        if (x[i] > x[out.id]) out.id = -1;
    ok(out.id >= 0, "a temperature near 0 draws the best");
}

static void
test_logprobs(void)
{
    glm_sampled_t  out;
    double         worst = 0;
    int            wrong = 0;

    for (int round = 0; round < 200; round++) {
        int           v = 30 + (int) (rnd() % 3000);
        glm_sample_t  a = { .temperature = round % 2 ? 0 : 1.3f, .top_k = 9, .seed = 3,
                            .ntokens = (uint32_t) round, .nlogprobs = round % 21,
                            .allow = round % 5 ? NULL : allow };
        double        z = 0, max;

        memset(allow, 0x55, sizeof(allow));
        fill(v, round % 4);
        for (int i = 0; i < v; i++) order[i] = i;
        qsort(order, (size_t) v, sizeof(int), by_logit);
        max = (double) x[order[0]];
        for (int i = 0; i < v; i++) z += exp((double) x[i] - max);
        glm_sample(x, v, &a, scratch, &out);

        wrong += out.ntop != a.nlogprobs || !may(&a, out.id);
        worst = fmax(worst, fabs((double) out.logprob - ((double) x[out.id] - max - log(z))));
        for (int i = 0; i < out.ntop; i++) {
            wrong += out.top[i].id != order[i];
            wrong += out.top[i].id == out.id && out.top[i].logprob != out.logprob;
            worst = fmax(worst, fabs((double) out.top[i].logprob
                                     - ((double) x[order[i]] - max - log(z))));
        }
    }
    ok(wrong == 0, "top log-probabilities: ids, order, ties, equal numbers");
    ok(worst < 2e-6, "log-probabilities within %.2g", worst);
}

/* Every allowed id in the order of a sort, ranked by a distribution over the allowed. */
static double
rank_row(int v, const glm_sample_t *a, const glm_sampled_t *o, const float *raw, int *wrong)
{
    int     n = 0;
    double  z = 0, zraw = 0, worst = 0;

    for (int i = 0; i < v; i++) {
        if (may(a, i) && x[i] > -INFINITY) order[n++] = i;
        zraw += exp((double) raw[i]);
    }
    qsort(order, (size_t) n, sizeof(int), by_logit);
    for (int i = 0; i < n; i++) z += exp((double) x[order[i]]);

    *wrong += o->nrank != (n < a->rank ? n : a->rank) || o->id != order[0];
    for (int i = 0; i < o->nrank; i++) {
        const glm_ranked_t  *r = &o->rank[i];

        *wrong += r->id != order[i];
        if (r->id != order[i]) break;
        worst = fmax(worst, fabs((double) r->logprob - ((double) x[r->id] - log(z))));
        if (a->nlogprobs >= 0)
            worst = fmax(worst, fabs((double) r->raw - ((double) raw[r->id] - log(zraw))));
        else *wrong += r->raw < 0 || r->raw > 0;
    }
    return worst;
}

static void
test_rank(void)
{
    static float   raw[3000];
    glm_sampled_t  out;
    double         worst = 0;
    int            wrong = 0, few = 0;

    for (int round = 0; round < 600; round++) {
        int           v = 1 + (int) (rnd() % 3000);
        glm_adjust_t  adjust = { .id = (int32_t) (rnd() % (uint32_t) v), .bias = 3 };
        int32_t       ban[40];
        glm_sample_t  a = { .rank = 1 + (int32_t) (rnd() % GLM_MAX_RANK), .temperature = 2,
                            .nlogprobs = round % 3 - 1, .top_k = 3, .top_p = 0.1f, .min_p = 0.5f,
                            .force = 1, .seed = (uint64_t) round };

        fill(v, round % 4);
        memcpy(raw, x, (size_t) v * sizeof(float));
        if (round % 2) {
            for (int i = 0; i <= v / 64; i++)
                allow[i] = round % 3 ? (uint64_t) rnd() << 32 | rnd() : 1ull << (rnd() % 64);
            allow[0] |= 1;
            a.allow = allow;
        }
        if (round % 5 == 0) {
            x[adjust.id] += adjust.bias;
            a.adjust = &adjust;
            a.nadjust = 1;
        }
        if (round % 7 == 0 && v > 1) {
            a.ban = ban;
            for (; a.nban < 40 && a.nban < v - 1; a.nban++)
                x[ban[a.nban] = v - 1 - a.nban] = -INFINITY;
        }
        glm_sample(raw, v, &a, scratch, &out);
        worst = fmax(worst, rank_row(v, &a, &out, raw, &wrong));
        few += out.nrank < a.rank;
        wrong += out.ntop != (a.nlogprobs < 0 ? 0 : a.nlogprobs < v ? a.nlogprobs : v);
    }
    ok(wrong == 0 && few > 30, "ranks: ids, order, ties, %d rows with fewer ids: %d wrong", few,
       wrong);
    ok(worst < 3e-6, "ranks: log-probabilities within %.2g", worst);

    {
        int32_t       all[3] = { 0, 1, 2 };
        glm_sample_t  a = { .rank = 5, .nlogprobs = -1, .ban = all, .nban = 3 };

        fill(3, 0);
        glm_sample(x, 3, &a, scratch, &out);
        ok(out.id == -2 && out.nrank == 0, "ranks: nothing is left to pick");
        x[1] = NAN;
        glm_sample(x, 3, &a, scratch, &out);
        ok(out.id == -1 && out.nrank == 0, "ranks: a NaN logit");
    }
}

static void
test_isa(void)
{
    static const char *const  names[3] = { "plain", "avx2", "avx512" };
    static double             sums[2][MAXV / GLM_SCAN_BLOCK + 1];
    const glm_scan_t         *plain = glm_scan_get("plain");

    memset(allow, 0x6d, sizeof(allow));
    for (int k = 0; k < 3; k++) {
        const glm_scan_t  *s = glm_scan_get(names[k]);
        int                bad = 0;

        if (s == NULL) {
            skip("this machine lacks the instructions");
            continue;
        }
        for (int round = 0; round < 200; round++) {
            int              v = 1 + (int) (rnd() % 5000);
            const uint64_t  *al = round % 2 ? allow : NULL;
            glm_scan_max_t   m0, m1;

            fill(v, round % 4);
            plain->max(x, v, al, &m0);
            s->max(x, v, al, &m1);
            plain->exps(x, v, al, m0.max, 0.7f, sums[0], p);
            s->exps(x, v, al, m0.max, 0.7f, sums[1], q);
            bad += m0.max != m1.max || m0.max_allowed != m1.max_allowed || m1.bad;
            bad += memcmp(p, q, (size_t) v * sizeof(float)) != 0;
            bad += memcmp(sums[0], sums[1], (size_t) ((v + 255) / 256) * sizeof(double)) != 0;
            bad += plain->find(x, v, al, m0.max_allowed, 0) != s->find(x, v, al, m0.max_allowed, 0);
        }
        ok(bad == 0, "%s gives the bits of plain", names[k]);
    }
}

static void
bench(const char *what, int v, glm_sample_t a)
{
    struct timespec  t0, t1;
    glm_sampled_t    out;
    enum { N = 300 };

    clock_gettime(CLOCK_MONOTONIC, &t0);
    for (uint32_t i = 0; i < N; i++) {
        a.ntokens = i;
        glm_sample(x, v, &a, scratch, &out);
    }
    clock_gettime(CLOCK_MONOTONIC, &t1);
    diag("%-24s V %6d: %7.1f us", what, v,
         ((double) (t1.tv_sec - t0.tv_sec) * 1e9 + (double) (t1.tv_nsec - t0.tv_nsec)) / N / 1e3);
}

static void
bench_all(int v)
{
    fill(v, 0);
    memset(allow, 0xff, sizeof(allow));
    bench("greedy", v, (glm_sample_t) { .nlogprobs = -1 });
    bench("greedy, allow", v, (glm_sample_t) { .nlogprobs = -1, .allow = allow });
    bench("greedy, 0 logprobs", v, (glm_sample_t) { .nlogprobs = 0 });
    bench("greedy, 20 logprobs", v, (glm_sample_t) { .nlogprobs = 20 });
    bench("temperature", v, (glm_sample_t) { .temperature = 1, .nlogprobs = -1 });
    bench("rank 12, allow", v,
          (glm_sample_t) { .rank = 12, .nlogprobs = -1, .allow = allow });
    bench("rank 48, allow", v,
          (glm_sample_t) { .rank = 48, .nlogprobs = -1, .allow = allow });
    bench("top_k 40", v, (glm_sample_t) { .temperature = 1, .top_k = 40, .nlogprobs = -1 });
    bench("top_k 500", v, (glm_sample_t) { .temperature = 1, .top_k = 500, .nlogprobs = -1 });
    bench("top_p 0.7, flat", v,
          (glm_sample_t) { .temperature = 1, .top_p = 0.7f, .nlogprobs = -1 });
    for (int i = 0; i < v; i++) x[i] *= 3;
    bench("top_p 0.7, peaked", v,
          (glm_sample_t) { .temperature = 1, .top_p = 0.7f, .nlogprobs = -1 });
}

/* Adjusted rows are picked from as if the model had said so, and its own words are
 * what log-probabilities are of. */
static void
test_adjust(void)
{
    enum { K = 40 };
    static float    raw[600];
    glm_adjust_t    adjust[K];
    int32_t         ban[K];
    int             bad = 0, moved = 0;

    for (int round = 0; round < 3000; round++) {
        glm_sampled_t  a, b, plain;
        int            v = 100 + (int) (rnd() % 500);
        glm_sample_t   s = {
            .temperature = (float) (round % 3) * 0.5f, .top_p = round & 4 ? 0.8f : 0,
            .top_k = round & 8 ? 20 : 0, .seed = (uint64_t) round, .nlogprobs = 3,
            .presence = 1.5f, .frequency = -0.5f, .repetition = 1.3f
        };

        fill(v, 2);
        memcpy(raw, x, (size_t) v * sizeof(float));
        glm_sample(x, v, &s, scratch, &plain);
        for (int i = 0; i < K; i++) {
            float  y;

            adjust[i] = (glm_adjust_t) { .id = i * v / K, .count = i % 4, .seen = i % 3 != 0,
                                         .bias = (float) (i % 7) - 3 };
            ban[i] = (adjust[i].id + (i & 1)) % v;
            y = x[adjust[i].id] + adjust[i].bias;
            if (adjust[i].seen) y = y > 0 ? y / 1.3f : y * 1.3f;
            y = y + 0.5f * (float) adjust[i].count - (adjust[i].count > 0 ? 1.5f : 0);
            x[adjust[i].id] = y;
        }
        for (int i = 0; i < K / 4; i++) x[ban[i]] = -INFINITY;
        glm_sample(x, v, &s, scratch, &b);

        s.adjust = adjust;
        s.nadjust = K;
        s.ban = ban;
        s.nban = K / 4;
        glm_sample(raw, v, &s, scratch, &a);
        bad += a.id != b.id || memcmp(a.top, plain.top, 3 * sizeof(a.top[0])) != 0;
        for (int i = 0; i < 3; i++) bad += a.top[i].id == a.id && a.top[i].logprob != a.logprob;
        moved += a.id != plain.id;
    }
    ok(bad == 0 && moved > 500, "penalties, biases and bans: %d of 3000 rows moved", moved);

    {
        glm_sampled_t  o;
        glm_sample_t   s = { .temperature = 1, .repetition = 1e-30f, .nadjust = 1, .nlogprobs = 0,
                             .adjust = adjust };

        fill(100, 0);
        adjust[0] = (glm_adjust_t) { .id = 5, .seen = 1 };
        x[5] = 1e20f;
        glm_sample(x, 100, &s, scratch, &o);
        ok(o.id == 5, "a penalty that overflows is no broken model");
    }
}

int
main(void)
{
    if (posix_memalign(&scratch, 64, glm_sample_scratch(MAXV)) != 0) bail_out("no memory");

    test_philox();
    test_goldens();
    test_random();
    test_draws();
    test_greedy();
    test_logprobs();
    test_adjust();
    test_rank();
    test_isa();
    if (getenv("GLM_BENCH") != NULL) {
        bench_all(8192);
        bench_all(MAXV);
    }
    free(scratch);
    return tap_done();
}
