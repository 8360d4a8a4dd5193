/*
 * cpu: steps and prefill of a model on the CPU backend, beside the floor of
 * reading its weights and OpenBLAS at its shapes, all in the same run; or its
 * steps beside those of another model.
 */
#include <getopt.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "model.h"

#define PREFILL  512
#define MOST     16               /* rows */

enum { ROWS_1, ROWS_8, ROWS_16, NROWS };

static const int  row_counts[NROWS] = { 1, 8, MOST };

typedef struct {
    const char    *dir, *isa, *against;
    int            threads, tp, rounds, context, json, dummy;
    glm_model_t   *m;
    int32_t       *pages;         /* of all sequences, one after another */
    int32_t        pages_each;
    int32_t        tokens[2048];
    int            prefill;       /* tokens */
    uint64_t       weights;       /* bytes; the embedding, also the head, once */
    bench_times_t  step[NROWS], fill, floor[2], gemm[2];
    double         gemm_flops;
    const char    *gemm_config, *why;
} run_t;

static int
options(run_t *r, int argc, char **argv)
{
    static const struct option  longs[] = {
        { "model", 1, NULL, 'm' }, { "json", 0, NULL, 'j' }, { "rounds", 1, NULL, 'r' },
        { "threads", 1, NULL, 't' }, { "tp", 1, NULL, 'p' }, { "isa", 1, NULL, 'i' },
        { "context", 1, NULL, 'c' }, { "dummy", 0, NULL, 'd' }, { "against", 1, NULL, 'a' },
        { "cpu-time", 0, NULL, 'u' }, { NULL, 0, NULL, 0 },
    };
    int  c;

    optind = 0;
    while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
        switch (c) {
        case 'm':  r->dir = optarg; break;
        case 'j':  r->json = 1; break;
        case 'r':  r->rounds = atoi(optarg); break;
        case 't':  r->threads = atoi(optarg); break;
        case 'p':  r->tp = atoi(optarg); break;
        case 'i':  r->isa = optarg; break;
        case 'c':  r->context = atoi(optarg); break;
        case 'd':  r->dummy = 1; break;
        case 'a':  r->against = optarg; break;
        case 'u':  r->threads = 1; bench_cpu_time(); break;
        default:   return -1;
        }
    }
    if (r->dir != NULL && r->rounds > 0 && r->context > 0 && optind >= argc
        && !(r->json && r->against != NULL)) return 0;
    fprintf(stderr, "glm-bench: --model DIR is needed; --rounds and --context are positive; "
        "--against has no --json\n");
    return -1;
}

static int
load(run_t *r)
{
    glm_model_opts_t     o = { .backend = GLM_BACKEND_CPU, .dir = r->dir,
                               .dummy = r->dummy, .tp = r->tp, .isa = r->isa, .threads = r->threads, .max_rows = MOST };
    glm_err_t            err = { "" };
    const glm_config_t  *c;

    r->pages_each = (r->context + 32) / GLM_KV_PAGE + 1;
    o.kv_pages = MOST * r->pages_each + 2048 / GLM_KV_PAGE;
    if (glm_model_load(&r->m, &o, &err) != 0) {
        fprintf(stderr, "glm-bench: %s\n", err.text);
        return -1;
    }
    c = glm_model_config(r->m);
    if (r->context + 2 > c->max_seq) {
        fprintf(stderr, "glm-bench: --context %d: the model takes %d tokens\n", r->context,
            c->max_seq);
        return -1;
    }
    r->prefill = c->max_seq < PREFILL ? c->max_seq : PREFILL;
    (void) glm_model_weights(r->m, &r->weights);
    r->pages = malloc((size_t) o.kv_pages * sizeof(*r->pages));
    if (r->pages == NULL) return -1;
    for (int i = 0; i < o.kv_pages; i++) r->pages[i] = i;
    for (int i = 0; i < 2048; i++) r->tokens[i] = (i * 37 + 11) % (c->vocab - 16);
    return 0;
}

static int
contexts(run_t *r, int n)
{
    int  layers = glm_model_config(r->m)->layers, rc = 0;

    for (int i = 0; i < n && rc == 0; i++) {
        rc = glm_model_prefill(r->m, r->tokens, r->context, r->pages + i * r->pages_each, 0,
            layers, NULL);
    }
    return rc;
}

/* A step as the engine does it: a greedy token for each row. */
static double
step(run_t *r, int n)
{
    static const glm_sample_t  greedy = { .nlogprobs = -1 };
    glm_row_t                  row[MOST];
    glm_sampled_t              out[MOST];
    double                     t;

    for (int i = 0; i < n; i++) {
        row[i] = (glm_row_t) { r->tokens[i], r->context, r->context,
                               r->pages + i * r->pages_each, &greedy };
    }
    t = bench_now();
    if (glm_model_step(r->m, row, n, out, NULL) != 0) abort();
    return bench_now() - t;
}

static double
prefill(run_t *r)
{
    double  t = bench_now();

    if (glm_model_prefill(r->m, r->tokens, r->prefill, r->pages + MOST * r->pages_each, 0,
                          glm_model_config(r->m)->layers, NULL) != 0) abort();
    return bench_now() - t;
}

/* Products of the linears of one prefill; the last layer makes keys and values
 * only. */
static double
prefill_flops(const run_t *r)
{
    const glm_config_t  *c = glm_model_config(r->m);
    double               h = c->hidden, layer = h * (4 * h + 3.0 * c->inner);

    return 2.0 * r->prefill * ((c->layers - 1) * layer + 2 * h * h);
}

/*
 * n in a row, the first not counted: what ran before has the caches, and the
 * threads sleep.
 */
static void
steps(run_t *r, int which, int n)
{
    for (int i = 0; i <= n; i++) {
        double  t = step(r, row_counts[which]);

        if (i > 0) bench_add(&r->step[which], t);
    }
}

static void
floors(run_t *r, bench_floor_t *floor, int which, int n)
{
    for (int i = 0; i <= n; i++) {
        double  t = bench_floor_run(floor, which);

        if (i > 0) bench_add(&r->floor[which], t);
    }
}

static void
measure(run_t *r, bench_floor_t *floor, bench_gemm_t *gemm)
{
    for (int round = 0; round < r->rounds; round++) {
        for (int i = 0; i < 5; i++) {
            steps(r, ROWS_1, 10);
            floors(r, floor, 0, 5);
            floors(r, floor, 1, 5);
            steps(r, ROWS_8, 4);
            steps(r, ROWS_16, 2);
        }
        (void) prefill(r);
        for (int i = 0; i < 2; i++) {
            bench_add(&r->fill, prefill(r));
            for (int p = 0; p < 2 && gemm != NULL; p++) {
                (void) bench_gemm_run(gemm, p);
                bench_add(&r->gemm[p], bench_gemm_run(gemm, p));
            }
        }
    }
}

typedef struct { double median, least; } pair_t;

static pair_t
pair(bench_times_t *b)
{
    return (pair_t) { bench_median(b), bench_least(b) };
}

static pair_t
smaller(pair_t a, pair_t b)
{
    return (pair_t) { a.median < b.median ? a.median : b.median,
                      a.least < b.least ? a.least : b.least };
}

typedef struct {
    pair_t  step[NROWS], floor, fill, gemm;
} sums_t;

static void
print_text(const run_t *r, const sums_t *s, const char *isa, int threads)
{
    const glm_config_t  *c = glm_model_config(r->m);
    double               rate = prefill_flops(r) / 1e9, blas = r->gemm_flops / 1e9;
    uint64_t             bytes;

    printf("%s: %d layers, hidden %d, inner %d, vocabulary %d; %.1f MB of weights, %s\n",
        c->name, c->layers, c->hidden, c->inner, c->vocab, (double) r->weights * 1e-6,
        glm_model_weights(r->m, &bytes));
    printf("%d threads, %d ranks, %s; context %d; %d rounds; median (least)\n\n", threads, r->tp,
        isa, r->context, r->rounds);
    printf("floor, weights read      %8.1f us (%.1f)  %.1f GB/s\n", s->floor.median * 1e6,
        s->floor.least * 1e6, (double) r->weights * 1e-9 / s->floor.median);
    for (int w = 0; w < NROWS; w++) {
        printf("step of %2d rows          %8.1f us (%.1f)  %.0f tokens/s (%.0f)\n", row_counts[w],
            s->step[w].median * 1e6, s->step[w].least * 1e6, row_counts[w] / s->step[w].median,
            row_counts[w] / s->step[w].least);
    }
    printf("step of 1 row / floor    %8.2f (%.2f)\n", s->step[ROWS_1].median / s->floor.median,
        s->step[ROWS_1].least / s->floor.least);
    printf("8 rows / 1 row           %8.2f (%.2f) times the tokens/s\n",
        8 * s->step[ROWS_1].median / s->step[ROWS_8].median,
        8 * s->step[ROWS_1].least / s->step[ROWS_8].least);
    printf("prefill of %d           %8.2f ms (%.2f)  %.0f tokens/s (%.0f)\n", r->prefill,
        s->fill.median * 1e3, s->fill.least * 1e3, r->prefill / s->fill.median,
        r->prefill / s->fill.least);
    printf("  its linears alone count  %.1f Gflop/s (%.1f)\n", rate / s->fill.median,
        rate / s->fill.least);
    if (r->gemm_flops > 0) {
        printf("OpenBLAS, same shapes      %.1f Gflop/s (%.1f); %s\n", blas / s->gemm.median,
            blas / s->gemm.least, r->gemm_config);
        printf("prefill / OpenBLAS       %8.2f (%.2f)\n",
            rate / s->fill.median / (blas / s->gemm.median),
            rate / s->fill.least / (blas / s->gemm.least));
    } else {
        printf("OpenBLAS: %s\n", r->why);
    }
}

static json_t *
json_pair(pair_t p)
{
    return json_pack("{s:f, s:f}", "median_s", p.median, "least_s", p.least);
}

static void
print_json(const run_t *r, const sums_t *s, const char *isa, int threads)
{
    json_t  *j = json_pack("{s:s, s:i, s:i, s:s, s:i, s:i, s:f, s:o, s:o, s:o, s:o, s:o, s:f}",
        "model", glm_model_config(r->m)->name, "threads", threads, "ranks", r->tp, "isa", isa,
        "context", r->context, "prefill_tokens", r->prefill,
        "weight_bytes", (double) r->weights, "floor", json_pair(s->floor),
        "step_1", json_pair(s->step[ROWS_1]), "step_8", json_pair(s->step[ROWS_8]),
        "step_16", json_pair(s->step[ROWS_16]), "prefill", json_pair(s->fill),
        "prefill_linear_flops", prefill_flops(r));

    if (j == NULL) return;
    if (r->gemm_flops > 0) {
        json_object_set_new(j, "openblas_set", json_pair(s->gemm));
        json_object_set_new(j, "openblas_set_flops", json_real(r->gemm_flops));
        json_object_set_new(j, "openblas_config", json_string(r->gemm_config));
    }
    json_dumpf(j, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(6));
    printf("\n");
    json_decref(j);
}

static void
report(run_t *r, int threads)
{
    sums_t       s;
    const char  *isa = glm_model_isa(r->m);

    for (int w = 0; w < NROWS; w++) s.step[w] = pair(&r->step[w]);
    s.floor = smaller(pair(&r->floor[0]), pair(&r->floor[1]));
    s.fill = pair(&r->fill);
    s.gemm = smaller(pair(&r->gemm[0]), pair(&r->gemm[1]));
    if (r->json) print_json(r, &s, isa, threads);
    else print_text(r, &s, isa, threads);
}

static void
run_free(run_t *r)
{
    glm_model_free(r->m);
    free(r->pages);
    for (int i = 0; i < NROWS; i++) bench_free(&r->step[i]);
    for (int i = 0; i < 2; i++) {
        bench_free(&r->floor[i]);
        bench_free(&r->gemm[i]);
    }
    bench_free(&r->fill);
}

static pair_t
decode(run_t *r, const char *dir)
{
    pair_t       s = pair(&r->step[ROWS_1]);
    const char  *kind = glm_model_weights(r->m, &r->weights);

    printf("%s: %s, %.1f MB; step of 1 row %.2f ms (%.2f), %.1f tokens/s, %.1f GB/s\n", dir, kind,
        (double) r->weights * 1e-6, s.median * 1e3, s.least * 1e3, 1 / s.median,
        (double) r->weights * 1e-9 / s.median);
    return s;
}

/* Steps of one row of both models, in turns. */
static int
compare(run_t *r)
{
    run_t   other = *r;
    pair_t  mine, its;
    int     rc = 1;

    other.dir = r->against;
    other.m = NULL;
    other.pages = NULL;
    if (load(r) != 0 || load(&other) != 0 || contexts(r, 1) != 0 || contexts(&other, 1) != 0) {
        goto done;
    }
    for (int i = 0; i < r->rounds; i++) {
        steps(r, ROWS_1, 4);
        steps(&other, ROWS_1, 2);
    }
    printf("%s, context %d, %d rounds; median (least)\n", glm_model_isa(r->m), r->context,
        r->rounds);
    mine = decode(r, r->dir);
    its = decode(&other, other.dir);
    printf("tokens/s, the first / the second: %.2f (%.2f)\n", its.median / mine.median,
        its.least / mine.least);
    rc = 0;

done:
    run_free(&other);
    return rc;
}

int
bench_cpu(int argc, char **argv)
{
    run_t           r = { .tp = 1, .rounds = 15, .context = 128 };
    bench_floor_t  *floor = NULL;
    bench_gemm_t   *gemm = NULL;
    glm_comm_t     *team = NULL;
    int             threads, rc = 1;

    if (options(&r, argc + 1, argv - 1) != 0) return 2;
    if (r.against != NULL) {
        rc = compare(&r);
        goto done;
    }
    threads = r.threads > 0 ? r.threads : glm_comm_cores();
    if (load(&r) != 0 || contexts(&r, MOST) != 0 || glm_comm_new(&team, 1, threads, NULL) != 0) {
        goto done;
    }
    floor = bench_floor_new(team, glm_cpu_ops(glm_model_isa(r.m)), (size_t) r.weights / 2,
        glm_model_config(r.m)->hidden);
    if (floor == NULL) goto done;
    gemm = bench_gemm_new(r.prefill, glm_model_config(r.m)->hidden,
        glm_model_config(r.m)->inner, threads, &r.why);
    if (gemm != NULL) {
        r.gemm_flops = bench_gemm_flops(gemm);
        r.gemm_config = bench_gemm_config(gemm);
    }
    measure(&r, floor, gemm);
    report(&r, threads);
    rc = 0;

done:
    bench_gemm_free(gemm);
    bench_floor_free(floor);
    glm_comm_free(team);
    run_free(&r);
    return rc;
}
