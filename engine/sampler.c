/*
 * sampler: BaseStrategy's filters and one draw, plus log-probabilities.  No
 * sort over the vocabulary: thresholds come from histograms of order-preserving
 * keys, and only what can survive is listed.  A pure function; no libm, whose
 * last bits differ from machine to machine.
 */
#include <math.h>
#include <string.h>

#include "sample_math.h"
#include "sampler.h"
#include "sampler_scan.h"

#define BUCKETS      2048          /* of a histogram: 11 bits of a key */
#define SMALL_K      64            /* up to here the k-th comes by insertion */

typedef struct {
    int32_t   id;
    uint32_t  key;                 /* larger logit, larger key */
} cand_t;

/* What lies in the scratch memory; see carve(). */
typedef struct {
    double   *sums;                /* (blocks) of w */
    double   *hist;                /* (BUCKETS) */
    cand_t   *list, *tmp;          /* (vocab) each */
    float    *w;                   /* (vocab rounded up to 16) weights */
    float    *x;                   /* (vocab) logits as adjusted */
} work_t;

typedef struct {
    const glm_scan_t    *scan;
    const float         *x;        /* logits to pick from */
    int32_t              vocab;
    const glm_sample_t  *args;
    glm_scan_max_t       max;
    float                raw_max;  /* before the adjustments */
    work_t               s;
    int32_t              nlist;    /* -1: all allowed ids are left */
} draw_t;

static size_t
round_up(size_t n)
{
    return (n + 63) & ~(size_t) 63;
}

static size_t
blocks(int32_t vocab)
{
    return ((size_t) vocab + GLM_SCAN_BLOCK - 1) / GLM_SCAN_BLOCK;
}

size_t
glm_sample_scratch(int32_t vocab)
{
    size_t  v = (size_t) vocab;

    return round_up(blocks(vocab) * sizeof(double)) + BUCKETS * sizeof(double)
           + 2 * round_up(v * sizeof(cand_t)) + round_up((v + 15) / 16 * 16 * sizeof(float))
           + round_up(v * sizeof(float));
}

static void
carve(work_t *s, void *scratch, int32_t vocab)
{
    char   *p = scratch;
    size_t  v = (size_t) vocab;

    s->sums = (double *) p;
    p += round_up(blocks(vocab) * sizeof(double));
    s->hist = (double *) p;
    p += BUCKETS * sizeof(double);
    s->list = (cand_t *) p;
    p += round_up(v * sizeof(cand_t));
    s->tmp = (cand_t *) p;
    p += round_up(v * sizeof(cand_t));
    s->w = (float *) p;
    p += round_up((v + 15) / 16 * 16 * sizeof(float));
    s->x = (float *) p;
}

static double
sum_blocks(const double *sums, int32_t vocab)
{
    double  z = 0;

    for (size_t b = 0; b < blocks(vocab); b++) z += sums[b];
    return z;
}

/* The n best allowed ids, best first, ties by id.  Returns how many there are. */
static int
best(const draw_t *d, const uint64_t *allow, int n, glm_logprob_t *top)
{
    int      have = 0;
    float    least = -INFINITY;

    for (int32_t id = 0; id < d->vocab; id++) {
        int  i;

        id = d->scan->find(d->x, d->vocab, allow, least, id);
        if (id == d->vocab) break;
        if (have == n && !(d->x[id] > least)) continue;

        i = have < n ? have++ : n - 1;
        for (; i > 0 && d->x[id] > top[i - 1].logprob; i--) top[i] = top[i - 1];
        top[i] = (glm_logprob_t) { id, d->x[id] };
        if (have == n) least = top[n - 1].logprob;
    }
    return have;
}

/* Lists the allowed ids with v[id] >= least, in id order. */
static int32_t
list_from(const draw_t *d, const float *v, float least, cand_t *list)
{
    int32_t  n = 0;

    for (int32_t id = 0; id < d->vocab; id++) {
        id = d->scan->find(v, d->vocab, d->args->allow, least, id);
        if (id == d->vocab) break;
        list[n++] = (cand_t) { id, glm_logit_key(d->x[id]) };
    }
    return n;
}

/* Keeps of list those whose bits under mask are want; order stays. */
static int32_t
narrow(cand_t *list, int32_t n, uint32_t mask, uint32_t want)
{
    int32_t  m = 0;

    for (int32_t i = 0; i < n; i++)
        if ((list[i].key & mask) == want) list[m++] = list[i];
    return m;
}

static const struct {
    int       shift;
    uint32_t  size;                /* buckets */
    uint32_t  known;               /* bits of the key known after this level */
} levels[3] = {
    { 21, 2048, 0xffe00000u },
    { 10, 2048, 0xfffffc00u },
    { 0, 1024, 0xffffffffu }
};

/* Bucket, from the top, that brings *sum above limit; *sum: all before it. */
static int
cross_bucket(const double *hist, int size, double limit, double *sum)
{
    int     last = -1;
    double  before = 0;

    for (int b = size - 1; b >= 0; b--) {
        if (hist[b] <= 0) continue;
        if (*sum + hist[b] > limit) return b;
        last = b;
        before = *sum;
        *sum += hist[b];
    }
    /* Summed in another order, the bucket fell short by a rounding. */
    if (last >= 0) *sum = before;
    return last;
}

/*
 * Walks list from its largest key down, adding up w (or 1 each when w is NULL),
 * and returns the key at which the sum exceeds limit (the smallest one when it
 * never does); *before gets the sum of what is larger.  Destroys list.
 */
static uint32_t
cross(double *hist, cand_t *list, int32_t n, const float *w, double limit, double *before)
{
    uint32_t  key = 0;

    *before = 0;
    for (int l = 0; l < 3; l++) {
        int  b;

        memset(hist, 0, levels[l].size * sizeof(double));
        for (int32_t i = 0; i < n; i++)
            hist[list[i].key >> levels[l].shift & (levels[l].size - 1)] +=
                w != NULL ? (double) w[list[i].id] : 1.0;
        b = cross_bucket(hist, (int) levels[l].size, limit, before);
        if (b < 0) return 0;
        key |= (uint32_t) b << levels[l].shift;
        n = narrow(list, n, levels[l].known, key);
    }
    return key;
}

static float
kth_largest(draw_t *d, int32_t k)
{
    glm_logprob_t  top[SMALL_K];
    double         before;
    int            have;

    if (k <= SMALL_K) {
        have = best(d, d->args->allow, k, top);
        return have < k ? -INFINITY : top[k - 1].logprob;
    }
    d->nlist = list_from(d, d->x, -INFINITY, d->s.tmp);
    if (k > d->nlist) return -INFINITY;
    return glm_key_logit(cross(d->s.hist, d->s.tmp, d->nlist, NULL, k - 1, &before));
}

static double
sum_list(const draw_t *d)
{
    double  z = 0;

    for (int32_t i = 0; i < d->nlist; i++) z += d->s.w[d->s.list[i].id];
    return z;
}

/* Lists what top_p can reach: ids this light are together less than its rest. */
static void
list_for_top_p(draw_t *d)
{
    double  rest = (1 - (double) d->args->top_p) * sum_blocks(d->s.sums, d->vocab);

    d->nlist = list_from(d, d->s.w, (float) (rest / d->vocab * 0.999), d->s.list);
}

static void
cut_top_p(draw_t *d)
{
    double    z, before;
    uint32_t  key;
    int32_t   n = 0;

    z = d->nlist < 0 ? sum_blocks(d->s.sums, d->vocab) : sum_list(d);
    if (d->nlist < 0) list_for_top_p(d);
    z *= (double) d->args->top_p;

    memcpy(d->s.tmp, d->s.list, (size_t) d->nlist * sizeof(cand_t));
    key = cross(d->s.hist, d->s.tmp, d->nlist, d->s.w, z, &before);

    for (int32_t i = 0; i < d->nlist; i++) {
        cand_t  c = d->s.list[i];

        if (c.key < key || (c.key == key && before > z)) continue;
        if (c.key == key) before += (double) d->s.w[c.id];
        d->s.list[n++] = c;
    }
    d->nlist = n;
}

static void
cut_min_p(draw_t *d)
{
    int32_t  n = 0;

    if (d->nlist < 0) {
        d->nlist = list_from(d, d->s.w, d->args->min_p, d->s.list);
        return;
    }
    for (int32_t i = 0; i < d->nlist; i++)
        if (d->s.w[d->s.list[i].id] >= d->args->min_p) d->s.list[n++] = d->s.list[i];
    d->nlist = n;
}

/* Weights of what may be drawn, relative to the best one's 1. */
static void
filter(draw_t *d)
{
    const glm_sample_t  *a = d->args;

    d->nlist = -1;
    d->scan->exps(d->x, d->vocab, a->allow, d->max.max_allowed, a->temperature, d->s.sums,
                  d->s.w);
    if (a->top_k > 0 && a->top_k < d->vocab) {
        float  least = kth_largest(d, a->top_k);

        d->nlist = least > -INFINITY ? list_from(d, d->x, least, d->s.list) : -1;
    }
    if (a->top_p > 0 && a->top_p < 1) cut_top_p(d);
    if (a->min_p > 0) cut_min_p(d);
}

static int32_t
draw_listed(const draw_t *d, double u)
{
    double   z = u * sum_list(d), sum = 0;
    int32_t  last = d->s.list[0].id;

    for (int32_t i = 0; i < d->nlist; i++) {
        float  w = d->s.w[d->s.list[i].id];

        if (w <= 0) continue;
        last = d->s.list[i].id;
        sum += (double) w;
        if (sum > z) break;
    }
    return last;
}

static int32_t
draw_any(const draw_t *d, double u)
{
    double   z = u * sum_blocks(d->s.sums, d->vocab), sum = 0;
    int32_t  last = -1, b = 0, nblocks = (int32_t) blocks(d->vocab), id;

    while (b < nblocks - 1 && !(sum + d->s.sums[b] > z)) sum += d->s.sums[b++];
    while (b > 0 && d->s.sums[b] <= 0) b--;

    for (id = b * GLM_SCAN_BLOCK; id < d->vocab && id < (b + 1) * GLM_SCAN_BLOCK; id++) {
        if (d->s.w[id] <= 0) continue;
        last = id;
        sum += (double) d->s.w[id];
        if (sum > z) break;
    }
    return last;
}

static int32_t
choose(draw_t *d)
{
    double  u;

    if (d->max.bad) return -1;
    if (!(d->max.max_allowed > -INFINITY)) return -2;

    if (d->args->temperature <= 0 || d->args->rank > 0)
        return d->scan->find(d->x, d->vocab, d->args->allow, d->max.max_allowed, 0);

    filter(d);
    u = glm_uniform(d->args->seed, d->args->choice, d->args->blank, d->args->ntokens);
    return d->nlist < 0 ? draw_any(d, u) : draw_listed(d, u);
}

static int
better(const glm_logprob_t *a, const glm_logprob_t *b)
{
    return a->logprob > b->logprob || (a->logprob == b->logprob && a->id < b->id);
}

/* The ids that were asked for, best first. */
static int
listed(const draw_t *d, glm_logprob_t *top)
{
    int  n = d->args->nscore < GLM_MAX_LOGPROBS ? d->args->nscore : GLM_MAX_LOGPROBS;

    for (int k = 0; k < n; k++) {
        glm_logprob_t  p = { d->args->score[k], d->x[d->args->score[k]] };
        int            i = k;

        for (; i > 0 && better(&p, &top[i - 1]); i--) top[i] = top[i - 1];
        top[i] = p;
    }
    return n;
}

/* Logarithm of the sum of exp(x) over the ids of allow, whose largest is max. */
static double
log_sum_exp(const draw_t *d, const uint64_t *allow, float max)
{
    d->scan->exps(d->x, d->vocab, allow, max, 1, d->s.sums, NULL);
    return (double) max + glm_log_fixed(sum_blocks(d->s.sums, d->vocab));
}

/* What is banned has probability 0, and no rank. */
static void
rank(const draw_t *d, glm_sampled_t *out)
{
    const glm_sample_t  *a = d->args;
    glm_logprob_t        top[GLM_MAX_RANK];
    int                  n = a->rank < GLM_MAX_RANK ? a->rank : GLM_MAX_RANK;
    double               lse = log_sum_exp(d, a->allow, d->max.max_allowed);

    n = best(d, a->allow, n, top);
    while (!(top[n - 1].logprob > -INFINITY)) n--;
    for (int i = 0; i < n; i++)
        out->rank[i] = (glm_ranked_t) {
            .id = top[i].id, .logprob = (float) ((double) top[i].logprob - lse)
        };
    out->nrank = n;
}

/* d->x: the raw logits. */
static void
logprobs(const draw_t *d, glm_sampled_t *out)
{
    int     n = d->args->nlogprobs;
    double  lse = log_sum_exp(d, NULL, d->raw_max);

    out->logprob = (float) ((double) d->x[out->id] - lse);
    for (int i = 0; i < out->nrank; i++)
        out->rank[i].raw = (float) ((double) d->x[out->rank[i].id] - lse);

    if (n > GLM_MAX_LOGPROBS) n = GLM_MAX_LOGPROBS;
    if (d->args->nscore > 0) out->ntop = listed(d, out->top);
    else out->ntop = n > 0 ? best(d, NULL, n, out->top) : 0;
    for (int i = 0; i < out->ntop; i++)
        out->top[i].logprob = (float) ((double) out->top[i].logprob - lse);
}

/* The machine's best passes; racing threads find the same answer. */
static const glm_scan_t *
scan_here(void)
{
    static const glm_scan_t  *scan;
    const glm_scan_t         *s = __atomic_load_n(&scan, __ATOMIC_ACQUIRE);

    if (s == NULL) {
        s = glm_scan_get(NULL);
        __atomic_store_n(&scan, s, __ATOMIC_RELEASE);
    }
    return s;
}

/* Picks from a copy: log-probabilities are of what the model said. */
static void
adjust(draw_t *d)
{
    const glm_sample_t  *a = d->args;
    float               *x = d->s.x;

    if (d->max.bad || (a->nadjust == 0 && a->nban == 0)) return;
    memcpy(x, d->x, (size_t) d->vocab * sizeof(float));
    for (int32_t i = 0; i < a->nadjust; i++)
        x[a->adjust[i].id] = glm_adjusted(&a->adjust[i], a->presence, a->frequency, a->repetition,
                                          x[a->adjust[i].id]);
    for (int32_t i = 0; i < a->nban; i++) x[a->ban[i]] = -INFINITY;
    d->x = x;
    d->scan->max(x, d->vocab, a->allow, &d->max);
}

static void
start(draw_t *d, const float *logits, int32_t vocab, const glm_sample_t *args, void *scratch)
{
    d->scan = scan_here();
    d->x = logits;
    d->vocab = vocab;
    d->args = args;
    carve(&d->s, scratch, vocab);
    d->scan->max(logits, vocab, args->allow, &d->max);
    d->raw_max = d->max.max;
    adjust(d);
}

void
glm_sample(const float *logits, int32_t vocab, const glm_sample_t *args, void *scratch,
    glm_sampled_t *out)
{
    draw_t  d;

    start(&d, logits, vocab, args, scratch);
    if (args->force > 0 && args->rank == 0) out->id = d.max.bad ? -1 : args->force - 1;
    else out->id = choose(&d);
    out->logprob = 0;
    out->ntop = out->nrank = 0;
    if (args->rank > 0 && out->id >= 0) rank(&d, out);
    d.x = logits;
    if (out->id >= 0 && args->nlogprobs >= 0) logprobs(&d, out);
}

void
glm_sample_probs(const float *logits, int32_t vocab, const glm_sample_t *args, void *scratch,
    float *probs)
{
    draw_t   d;
    int32_t  id;
    double   z;

    start(&d, logits, vocab, args, scratch);
    memset(probs, 0, (size_t) vocab * sizeof(float));
    if (args->temperature <= 0) {
        if ((id = choose(&d)) >= 0) probs[id] = 1;
        return;
    }
    if (d.max.bad || !(d.max.max_allowed > -INFINITY)) return;

    filter(&d);
    z = d.nlist < 0 ? sum_blocks(d.s.sums, vocab) : sum_list(&d);
    if (d.nlist < 0)
        for (id = 0; id < vocab; id++) probs[id] = (float) ((double) d.s.w[id] / z);
    for (int32_t i = 0; i < d.nlist; i++) {
        id = d.s.list[i].id;
        probs[id] = (float) ((double) d.s.w[id] / z);
    }
}
