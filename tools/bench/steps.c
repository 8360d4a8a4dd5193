/*
 * steps: whole steps of a model on any backend, as the engine asks for them: rows in,
 * sampled ids out; where the backend overlaps steps, each begins before the ids of the
 * one before are read.  For each number of rows the median of some steps that end at a
 * context; then whole prefills.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "model.h"
#include "options.h"

#define MOST_ROWS   64
#define MOST_COUNTS 16

typedef struct {
    glm_engine_opts_t   engine;
    int32_t             rows[MOST_COUNTS], prefill[MOST_COUNTS];
    int                 nrows, nprefill;
    int32_t             context, steps;
    int                 json;
    glm_model_t        *m;
    int32_t            *pages;           /* (MOST_ROWS * each) */
    int32_t             each;
    int32_t             top_k;
} run_t;

static const char *const  noarg[] = { "json", NULL };

/* "1,8,16" */
static int
list(const char *name, const char *s, int32_t most, int32_t *out, int *n, glm_err_t *err)
{
    char  *end;

    for (*n = 0; ; s = end + 1) {
        long  v = strtol(s, &end, 10);

        if (end == s || v < 1 || v > most || *n == MOST_COUNTS || (*end != ',' && *end != '\0')) {
            return glm_fail(err, GLM_EINVAL, "--%s: up to %d numbers from 1 to %d", name,
                            MOST_COUNTS, most);
        }
        out[(*n)++] = (int32_t) v;
        if (*end == '\0') return 1;
    }
}

static int
option(void *run, const char *name, const char *value, glm_err_t *err)
{
    run_t  *r = run;

    if (strcmp(name, "json") == 0) return r->json = 1;
    if (strcmp(name, "rows") == 0) {
        return list(name, value, MOST_ROWS, r->rows, &r->nrows, err);
    }
    if (strcmp(name, "prefill") == 0) {
        return list(name, value, 1 << 20, r->prefill, &r->nprefill, err);
    }
    if (strcmp(name, "context") == 0) return bench_number(name, value, 2, 1 << 20, &r->context, err);
    if (strcmp(name, "steps") == 0) return bench_number(name, value, 1, 1 << 16, &r->steps, err);
    if (strcmp(name, "top-k") == 0) return bench_number(name, value, 0, 1 << 20, &r->top_k, err);
    return glm_option_engine(&r->engine, name, value, err);
}

static int
options(run_t *r, int argc, char **argv, glm_err_t *err)
{
    int  rc = bench_options("steps", argc, argv, noarg, option, r, err);

    if (rc == 0 && r->engine.model_dir == NULL) {
        rc = glm_fail(err, GLM_EINVAL, "--model DIR is needed");
    }
    return rc;
}

/* The pages of the longest prefill, or of all rows. */
static int
load(run_t *r, glm_err_t *err)
{
    int                  rc;
    int32_t              most = 0, pages;
    glm_model_opts_t    *o = &r->engine.model;
    const glm_config_t  *c;

    r->each = r->context / GLM_KV_PAGE + 1;
    pages = MOST_ROWS * r->each;
    for (int i = 0; i < r->nprefill; i++) if (r->prefill[i] > most) most = r->prefill[i];
    if (pages < most / GLM_KV_PAGE + 1) pages = most / GLM_KV_PAGE + 1;
    o->dir = r->engine.model_dir;
    o->kv_pages = pages;
    o->max_rows = MOST_ROWS;
    if ((rc = glm_model_load(&r->m, o, err)) != 0) return rc;
    c = glm_model_config(r->m);
    if (r->context > c->max_seq || most > c->max_seq) {
        return glm_fail(err, GLM_EINVAL, "the model takes %d tokens", c->max_seq);
    }
    r->pages = malloc((size_t) pages * sizeof(*r->pages));
    if (r->pages == NULL) return glm_fail(err, GLM_ENOMEM, "no memory");
    for (int32_t i = 0; i < pages; i++) r->pages[i] = i;
    return 0;
}

/* Rows of a step, and what they are asked. */
typedef struct {
    glm_row_t      row[MOST_ROWS];
    glm_sample_t   sample[MOST_ROWS];
    glm_sampled_t  out[MOST_ROWS];
    int            n;
} step_t;

static void
make_step(step_t *s, const run_t *r, int32_t slot, const int32_t *token)
{
    for (int i = 0; i < s->n; i++) {
        s->sample[i] = (glm_sample_t) { .nlogprobs = -1, .temperature = r->top_k > 0 ? 1 : 0,
                                        .top_k = r->top_k, .seed = (uint64_t) i,
                                        .ntokens = (uint32_t) slot };
        s->row[i] = (glm_row_t) { .token = token[i], .position = slot, .slot = slot,
                                  .pages = r->pages + i * r->each, .sample = &s->sample[i] };
    }
}

/* Each row takes the id that it picked last.  Times of the steps from `first` on. */
static int
in_turn(run_t *r, step_t *s, int32_t slot, int32_t first, bench_times_t *times)
{
    int32_t  token[MOST_ROWS];
    double   t;

    for (int i = 0; i < s->n; i++) token[i] = 1 + i;
    for (; slot < r->context; slot++) {
        make_step(s, r, slot, token);
        t = bench_now();
        if (glm_model_step(r->m, s->row, s->n, s->out, NULL) != 0) return -1;
        if (slot >= first) bench_add(times, bench_now() - t);
        for (int i = 0; i < s->n; i++) token[i] = s->out[i].id >= 0 ? s->out[i].id : 0;
    }
    return 0;
}

/* The same with each step begun before the one before is read; a step's time is that
 * between its ids and those before. */
static int
overlapped(run_t *r, step_t *s, int32_t slot, int32_t first, bench_times_t *times)
{
    int32_t  token[MOST_ROWS];
    double   t = 0, before;

    for (int i = 0; i < s->n; i++) token[i] = 1 + i;
    for (int32_t at = slot; at <= r->context; at++) {
        make_step(s, r, at, token);
        if (at < r->context && glm_model_begin(r->m, s->row, s->n) != 0) return -1;
        if (at > slot) {
            before = t;
            if (glm_model_read(r->m, s->out) != 0) return -1;
            t = bench_now();
            if (at > first && at > slot + 1) bench_add(times, t - before);
        }
        if (at < r->context && glm_model_sample(r->m, s->row, s->n) != 0) return -1;
        for (int i = 0; i < s->n; i++) token[i] = GLM_PICKED(i);
    }
    return 0;
}

/* Milliseconds of a step of n rows: the median of those that end at the context. */
static int
steps(run_t *r, int n, double *ms)
{
    int32_t        first = r->context > r->steps ? r->context - r->steps : 0;
    int32_t        slot = first > 4 ? first - 4 : 0;     /* a few that are not counted */
    step_t         s = { .n = n };
    bench_times_t  times = {0};
    int            rc = n <= glm_model_overlap(r->m) ? overlapped(r, &s, slot, first, &times)
                                                     : in_turn(r, &s, slot, first, &times);

    *ms = rc == 0 ? bench_median(&times) * 1e3 : 0;
    bench_free(&times);
    return rc;
}

/* The median of three, after one. */
static int
prefill(run_t *r, int n, double *ms)
{
    int             layers = glm_model_config(r->m)->layers;
    int32_t        *ids = malloc((size_t) n * sizeof(*ids));
    bench_times_t   times = {0};

    if (ids == NULL) return -1;
    for (int i = 0; i < n; i++) ids[i] = (i * 37 + 11) % (glm_model_config(r->m)->vocab - 16);
    for (int i = 0; i < 4; i++) {
        double  t = bench_now();

        if (glm_model_prefill(r->m, ids, n, r->pages, 0, layers, NULL) != 0) break;
        if (i > 0) bench_add(&times, bench_now() - t);
    }
    free(ids);
    *ms = bench_median(&times) * 1e3;
    n = times.n;
    bench_free(&times);
    return n == 3 ? 0 : -1;
}

static int
measure(run_t *r)
{
    double  ms;

    for (int i = 0; i < r->nrows; i++) {
        if (steps(r, r->rows[i], &ms) != 0) return -1;
        printf(r->json ? "{\"rows\": %d, \"ms\": %.3f, \"tokens_per_s\": %.1f}\n"
                       : "%4d rows  %9.3f ms a step  %10.1f tokens/s\n", r->rows[i], ms,
               r->rows[i] / ms * 1e3);
        fflush(stdout);
    }
    for (int i = 0; i < r->nprefill; i++) {
        if (prefill(r, r->prefill[i], &ms) != 0) return -1;
        printf(r->json ? "{\"prefill\": %d, \"ms\": %.3f, \"tokens_per_s\": %.1f}\n"
                       : "%4d prompt%9.3f ms         %10.1f tokens/s\n", r->prefill[i], ms,
               r->prefill[i] / ms * 1e3);
        fflush(stdout);
    }
    return 0;
}

int
bench_steps(int argc, char **argv)
{
    int        rc, status;
    double     t = bench_now();
    glm_err_t  err = {{0}};
    run_t      r = {
        .engine = GLM_ENGINE_OPTS_DEFAULT, .rows = { 1, 8, 16, 32, 64 }, .nrows = 5,
        .prefill = { 512 }, .nprefill = 1, .context = 128, .steps = 50,
    };

    rc = options(&r, argc, argv, &err);
    status = rc == 0 ? 1 : 2;
    if (rc == 0) rc = load(&r, &err);
    if (rc != 0) {
        fprintf(stderr, "glm-bench: %s\n", err.text);
        glm_model_free(r.m);
        return status;
    }
    printf(r.json ? "{\"isa\": \"%s\", \"load_s\": %.2f}\n" : "%s, loaded in %.2f s\n",
           glm_model_isa(r.m), bench_now() - t);
    rc = measure(&r);
    if (rc != 0) fprintf(stderr, "glm-bench: a step failed\n");
    free(r.pages);
    glm_model_free(r.m);
    return rc == 0 ? 0 : 1;
}
