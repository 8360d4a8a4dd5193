/*
 * sample_rows: steps of random rows for the GPU's sampler, and what the CPU's says of
 * them.  Logits of many shapes, arguments in all combinations; C and C++ both take it.
 */
#ifndef GLM_SAMPLE_ROWS_H
#define GLM_SAMPLE_ROWS_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "glm_cuda.h"
#include "sample_math.h"

enum { SAMPLE_LISTS = 300 };      /* ids adjusted, banned: at most so many a row */

typedef struct {
    int32_t         vocab, rows, words;
    size_t          ldl, size, used;
    float          *logits;       /* [rows][ldl], NaN past the end */
    uint64_t       *allow;        /* [rows][words] */
    char           *lists;        /* (size) of which used are */
    void           *scratch;
    glm_sample_t    a[GLM_CUDA_MAX_ROWS];
    glm_gsample_t   row[GLM_CUDA_MAX_ROWS];
    glm_sampled_t   want[GLM_CUDA_MAX_ROWS];
    glm_adjust_t    adjust[GLM_CUDA_MAX_ROWS][SAMPLE_LISTS];
    int32_t         ban[GLM_CUDA_MAX_ROWS][SAMPLE_LISTS];
    int32_t         score[GLM_CUDA_MAX_ROWS][GLM_MAX_LOGPROBS];
} sample_rows_t;

static uint64_t  sample_state = 1;

static uint32_t
sample_rnd(void)
{
    sample_state ^= sample_state << 13;
    sample_state ^= sample_state >> 7;
    sample_state ^= sample_state << 17;
    return (uint32_t) (sample_state >> 16);
}

static int
sample_below(int n)
{
    return (int) (sample_rnd() % (uint32_t) n);
}

static float
sample_normal(void)
{
    float  s = 0;

    for (int i = 0; i < 4; i++) s += (float) (sample_rnd() >> 8) * (1.0f / 16777216);
    return (s - 2) * 1.7320508f;
}

#define SAMPLE_PICK(list)  ((list)[sample_below((int) (sizeof(list) / sizeof((list)[0])))])

static void *
sample_memory(size_t n)
{
    void  *p = NULL;

    if (posix_memalign(&p, 256, n) != 0) abort();
    memset(p, 0xff, n);
    return p;
}

/* Room for any step of up to so many rows and ids. */
static void
sample_rows_init(sample_rows_t *s, int32_t vocab, int32_t rows)
{
    size_t  n = (size_t) rows;

    s->size = n * glm_cuda_sample_lists(SAMPLE_LISTS, SAMPLE_LISTS, GLM_MAX_LOGPROBS);
    s->logits = (float *) sample_memory(n * ((size_t) vocab + 12) * sizeof(float));
    s->allow = (uint64_t *) sample_memory(n * ((size_t) vocab / 64 + 1) * sizeof(uint64_t));
    s->lists = (char *) sample_memory(s->size);
    s->scratch = sample_memory(glm_sample_scratch(vocab));
}

static void
sample_rows_free(sample_rows_t *s)
{
    free(s->logits);
    free(s->allow);
    free(s->lists);
    free(s->scratch);
}

/* One shape of a row of logits. */
static void
sample_logits(float *x, int32_t v, int shape)
{
    float  base = sample_normal() * 20;

    for (int32_t i = 0; i < v; i++) {
        float  n = sample_normal();

        switch (shape) {
        case 0: x[i] = base + 2.3f * n; break;
        case 1: x[i] = 2 * n; break;
        case 2: x[i] = floorf(n * 4) * 0.5f; break;                  /* many ties */
        case 3: x[i] = base; break;
        case 4: x[i] = n > 0 ? 0.0f : -0.0f; break;
        case 5: x[i] = n > 0.5f ? -INFINITY : 3 * n; break;
        case 6: x[i] = base + 0.001f * n; break;
        case 7: x[i] = 30 * n; break;
        case 8: x[i] = n > 1.5f ? 3e38f : -3e38f * n * n; break;
        default: x[i] = 2.3f * n;
        }
    }
    if (shape == 1)                /* as a model that is sure has them */
        for (int k = 0; k < 6; k++) x[sample_below(v)] = 12 + 2 * sample_normal();
    if (shape == 8)
        for (int32_t i = 0; i < v; i++) x[i] = fminf(fmaxf(x[i], -3.4e38f), 3.4e38f);
    if (shape == 9) x[sample_below(v)] = sample_below(2) ? NAN : INFINITY;
    if (shape == 10)
        for (int32_t i = 0; i < v; i++) x[i] = -INFINITY;
}

/* Ids that differ, spread over the vocabulary. */
static int
sample_adjusts(glm_adjust_t *t, int32_t v)
{
    const int  n = 1 + sample_below(v < SAMPLE_LISTS ? v : SAMPLE_LISTS), from = sample_below(v);

    for (int i = 0; i < n; i++) {
        t[i].id = (int32_t) ((from + (int64_t) i * v / n) % v);
        t[i].seen = sample_below(2);
        t[i].count = t[i].seen ? sample_below(4) : 0;
        t[i].bias = sample_below(3) ? 0 : 4 * sample_normal();
    }
    return n;
}

static void
sample_filters(glm_sample_t *a, int32_t v)
{
    const float    temperature[] = { 0, 1, 1, 1, 0.7f, 1.3f, 0.05f, 2, 100, 1e-6f };
    const float    top_p[] = { 0, 0, 0, 1, 0.1f, 0.5f, 0.7f, 0.9f, 0.99f, 0.99999994f };
    const float    min_p[] = { 0, 0, 0, 0.05f, 0.5f, 1, 1e-6f };
    const int32_t  top_k[] = { 0, 0, 0, 1, 2, 5, 40, 64, 65, 100, 500, v - 1, v, v + 5 };

    a->temperature = SAMPLE_PICK(temperature);
    a->top_k = SAMPLE_PICK(top_k);
    a->top_p = SAMPLE_PICK(top_p);
    a->min_p = SAMPLE_PICK(min_p);
    if (a->top_k < 0) a->top_k = 0;
}

static void
sample_one(sample_rows_t *s, int r)
{
    const int32_t  v = s->vocab;
    glm_sample_t  *a = &s->a[r];
    uint64_t      *allow = s->allow + (size_t) r * (size_t) s->words;
    int            dense = sample_below(8);

    memset(a, 0, sizeof(*a));
    sample_filters(a, v);
    a->seed = (uint64_t) sample_rnd() << 32 | sample_rnd();
    a->choice = (uint32_t) sample_below(4);
    a->blank = (uint32_t) sample_below(3);
    a->ntokens = (uint32_t) sample_below(2000);
    a->nlogprobs = sample_below(3) == 0 ? -1 : sample_below(GLM_MAX_LOGPROBS + 1);
    a->presence = sample_normal();
    a->frequency = sample_normal();
    a->repetition = sample_below(2) ? 1.2f : 0;
    a->force = sample_below(10) == 0 ? 1 + sample_below(v) : 0;
    a->rank = sample_below(6) == 0 ? 1 + sample_below(GLM_MAX_RANK) : 0;
    if (dense > 2) a->allow = allow;
    for (int32_t w = 0; w < s->words; w++) {
        allow[w] = (uint64_t) sample_rnd() << 32 | sample_rnd();
        if (dense == 4) allow[w] = ~0ull;
        if (dense == 5) allow[w] &= (uint64_t) sample_rnd() << 20;
        if (dense == 6) allow[w] = sample_below(10) == 0 || (v < 640 && w == 0);
        if (dense == 7 && sample_below(2)) allow[w] = 0;
    }
    if (sample_below(3) == 0) {
        a->adjust = s->adjust[r];
        a->nadjust = sample_adjusts(s->adjust[r], v);
    }
    if (sample_below(3) == 0) {
        a->ban = s->ban[r];
        a->nban = 1 + sample_below(v < SAMPLE_LISTS ? (v + 1) / 2 : SAMPLE_LISTS);
        for (int i = 0; i < a->nban; i++) s->ban[r][i] = sample_below(v);
    }
    if (a->nlogprobs >= 0 && sample_below(4) == 0) {
        a->score = s->score[r];
        a->nscore = 1 + sample_below(GLM_MAX_LOGPROBS);
        for (int i = 0; i < a->nscore; i++) s->score[r][i] = sample_below(v);
    }
}

/* Packs what is in s->a, with masks at `allow` for the device, and asks the CPU. */
static void
sample_rows_pack(sample_rows_t *s, const uint64_t *allow)
{
    s->used = 0;
    for (int r = 0; r < s->rows; r++) {
        const uint64_t  *own = s->a[r].allow != NULL ? allow + (size_t) r * (size_t) s->words : NULL;

        if (glm_cuda_sample_pack(&s->a[r], own, s->lists, s->size, &s->used, &s->row[r]) != 0) abort();
        glm_sample(s->logits + (size_t) r * s->ldl, s->vocab, &s->a[r], s->scratch, &s->want[r]);
    }
}

static void
sample_rows_shape(sample_rows_t *s, int32_t vocab, int32_t rows)
{
    s->vocab = vocab;
    s->rows = rows;
    s->words = (vocab + 63) / 64;
    s->ldl = (size_t) (vocab + 3) / 4 * 4 + (size_t) sample_below(3) * 4;
}

/* A step of random rows.  One in sixteen is broken: NaN, infinite, or nothing to pick. */
static void
sample_rows_make(sample_rows_t *s, int32_t vocab, int32_t rows, const uint64_t *allow)
{
    sample_rows_shape(s, vocab, rows);
    for (int r = 0; r < rows; r++) {
        float  *x = s->logits + (size_t) r * s->ldl;

        for (size_t i = 0; i < s->ldl; i++) x[i] = NAN;
        sample_logits(x, vocab, sample_below(16) == 0 ? 9 + sample_below(2) : sample_below(9));
        sample_one(s, r);
    }
    sample_rows_pack(s, allow);
}

static int
sample_same_float(float a, float b)
{
    return memcmp(&a, &b, sizeof(a)) == 0;
}

/* Nonzero when a result differs in a bit; says how. */
static int
sample_differs(const sample_rows_t *s, int r, const glm_sampled_t *got)
{
    const glm_sampled_t  *want = &s->want[r];
    const glm_sample_t   *a = &s->a[r];
    int                   bad = got->id != want->id || got->ntop != want->ntop || got->nrank != want->nrank
                                || !sample_same_float(got->logprob, want->logprob);

    for (int i = 0; i < want->ntop && !bad; i++)
        bad = got->top[i].id != want->top[i].id
              || !sample_same_float(got->top[i].logprob, want->top[i].logprob);
    for (int i = 0; i < want->nrank && !bad; i++)
        bad = got->rank[i].id != want->rank[i].id
              || !sample_same_float(got->rank[i].logprob, want->rank[i].logprob)
              || !sample_same_float(got->rank[i].raw, want->rank[i].raw);
    if (bad)
        printf("# V %d row %d of %d: id %d (want %d) logprob %.9g (%.9g) ntop %d (%d); temperature %g "
               "top_k %d top_p %.9g min_p %g adjust %d ban %d allow %d force %d nlogprobs %d score %d rank %d\n",
               s->vocab, r, s->rows, got->id, want->id, (double) got->logprob, (double) want->logprob,
               got->ntop, want->ntop, (double) a->temperature, a->top_k, (double) a->top_p,
               (double) a->min_p, a->nadjust, a->nban, a->allow != NULL, a->force, a->nlogprobs, a->nscore, a->rank);
    return bad;
}

#endif
