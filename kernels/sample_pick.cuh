/*
 * sample_pick: the third kernel of the sampler: the id of a row and its
 * log-probabilities.  Thresholds of top_k and top_p come from the bins that weigh
 * left, then from passes over what lies in one bin; there is no sort and no list.
 */
#pragma once

#include "sample.cuh"

enum { kPickThreads = 1024, kMostBlocks = GLM_SAMPLE_MOST / GLM_SCAN_BLOCK };

typedef struct {
    uint32_t  bin, n;             /* n, w: what is in the bin */
    uint64_t  w;
    uint64_t  before_n, before_w; /* in the bins before it */
} found_t;

/* Ids that are left: larger key, or this key and an id up to last. */
typedef struct {
    uint32_t  key;
    int32_t   last;
    float     min_p;
    int       ties;               /* weight 1 for ids of this very key, else 0 */
} cut_t;

/* Shared memory of a CTA. */
typedef struct {
    union {
        struct { double sum[kMostBlocks], raw_sum[kMostBlocks]; }  a;   /* sum: running */
        struct { bins_t h; uint32_t key[kMostBlocks]; }  b;             /* block's largest */
        struct {
            double    sum[kMostBlocks], raw_sum[kMostBlocks];
            uint32_t  key[kMostBlocks];                                 /* of what is not yet */
            int16_t   last[kMostBlocks];                                /* listed */
        } c;
    } u;
    glm_gsample_t  s;
    int32_t        top[GLM_MAX_RANK], ntop;
    found_t        found;
    double         z;             /* sum of weights */
    double         lse, raw_lse;  /* log-sum-exp of what may be picked; of the raw logits */
    uint64_t       total_n, total_w;
    uint64_t       warp_w[32];
    uint32_t       warp_n[32], warp[32];
    uint32_t       edge[2];
    int32_t        id;
    float          w[kBlock];
} pick_t;

static __device__ int32_t thread_at(void)
{
    return (int32_t) threadIdx.x;
}

/* ---- sums of all ids, one draw from them ---- */

/* One thread, block after block, as the CPU adds. */
static __device__ double log_sum(const double *sum, int32_t blocks, float max)
{
    double  z = 0;

#pragma unroll 8
    for (int32_t b = 0; b < blocks; b++) z += sum[b];
    return (double) max + glm_log_fixed(z);
}

/* sh->z and the running sums, sh->raw_lse. */
static __device__ void add_up(const row_t *r, pick_t *sh, float raw_max)
{
    const int  probs = r->s->nlogprobs >= 0;

    for (int32_t b = thread_at(); b < r->blocks; b += kPickThreads) {
        if (r->draws) sh->u.a.sum[b] = r->ws.sum[b];
        if (probs) sh->u.a.raw_sum[b] = r->ws.raw_sum[b];
    }
    __syncthreads();
    if (thread_at() == 0 && r->draws) {
        double  z = 0;

#pragma unroll 8
        for (int32_t b = 0; b < r->blocks; b++) sh->u.a.sum[b] = z += sh->u.a.sum[b];
        sh->z = z;
    }
    if (thread_at() == 32 && probs) sh->raw_lse = log_sum(sh->u.a.raw_sum, r->blocks, raw_max);
    __syncthreads();
}

static __device__ float weight_of(const row_t *r, float max, float x)
{
    return glm_exp_neg(scaled(r, max, x));
}

/* draw_any() of the CPU: a block by the running sums, an id by its weights. */
static __device__ int32_t draw_any(const row_t *r, pick_t *sh, float max, double u)
{
    const double  z = u * sh->z;
    uint32_t      at = (uint32_t) r->blocks - 1;
    double        sum;
    int32_t       b, i;

    for (b = thread_at(); b < r->blocks - 1; b += kPickThreads)
        if (sh->u.a.sum[b] > z) {
            at = (uint32_t) b;
            break;
        }
    b = (int32_t) cta_min(at, sh->warp);
    sum = b > 0 ? sh->u.a.sum[b - 1] : 0;
    while (b > 0 && r->ws.sum[b] <= 0) b--;

    i = b * kBlock + thread_at();
    if (thread_at() < kBlock)
        sh->w[thread_at()] = i < r->vocab && allowed(r, i) ? weight_of(r, max, r->x[i]) : 0;
    __syncthreads();
    if (thread_at() == 0) {
        int32_t  last = -1;

        for (i = 0; i < kBlock; i++) {
            if (sh->w[i] <= 0) continue;
            last = b * kBlock + i;
            sum += (double) sh->w[i];
            if (sum > z) break;
        }
        sh->id = last;
    }
    __syncthreads();
    return sh->id;
}

/* The first of the largest. */
static __device__ int32_t first_of(const row_t *r, pick_t *sh, float max)
{
    uint32_t  at = ~0u;
    int32_t   i;

    for (int32_t b = thread_at(); b < r->blocks; b += kPickThreads)
        if (r->ws.max[b] == max) {
            at = (uint32_t) b;
            break;
        }
    i = (int32_t) cta_min(at, sh->warp) * kBlock + thread_at();
    at = thread_at() < kBlock && i < r->vocab && allowed(r, i) && r->x[i] >= max ? (uint32_t) i : ~0u;
    return (int32_t) cta_min(at, sh->warp);
}

/* ---- filters ---- */

/*
 * sh->found: the first bin at which the sum of n, or of w, exceeds limit (the last that
 * has any, should the sum fall short); u >= 0: limit is u of the whole sum.
 */
static __device__ void cross(pick_t *sh, int by_weight, uint64_t limit, double u)
{
    const bins_t  *h = &sh->u.b.h;
    const int      lane = thread_at() % 32, warp = thread_at() / 32;
    const unsigned per = kBins / kPickThreads, first = threadIdx.x * per;
    uint64_t       n = 0, w = 0, own_n, own_w, all_n = 0, all_w = 0, total;

    for (unsigned k = 0; k < per; k++) n += h->n[first + k], w += bin_weight(h, first + k);
    own_n = n, own_w = w;
    for (int o = 1; o < 32; o *= 2) {
        const uint64_t  pn = __shfl_up_sync(~0u, n, o), pw = __shfl_up_sync(~0u, w, o);

        if (lane >= o) n += pn, w += pw;
    }
    if (lane == 31) sh->warp_n[warp] = (uint32_t) n, sh->warp_w[warp] = w;
    n -= own_n, w -= own_w;
    __syncthreads();
    for (int k = 0; k < kPickThreads / 32; k++) {
        if (k < warp) n += sh->warp_n[k], w += sh->warp_w[k];
        all_n += sh->warp_n[k], all_w += sh->warp_w[k];
    }
    total = by_weight ? all_w : all_n;
    if (u >= 0) limit = (uint64_t) (u * (double) total);
    if (limit >= total) limit = total - 1;
    if (thread_at() == 0) sh->total_n = all_n, sh->total_w = all_w;

    for (unsigned k = 0; k < per && total > 0; k++) {
        const uint32_t  bn = h->n[first + k];
        const uint64_t  bw = bin_weight(h, first + k), sum = by_weight ? w : n;

        if (sum <= limit && sum + (by_weight ? bw : bn) > limit) {
            sh->found.bin = first + k, sh->found.n = bn, sh->found.w = bw;
            sh->found.before_n = n, sh->found.before_w = w;
        }
        n += bn, w += bw;
    }
    __syncthreads();
}

static __device__ void load_bins(const row_t *r, pick_t *sh)
{
    for (unsigned i = threadIdx.x; i < kBins; i += kPickThreads) {
        const uint64_t  w = r->ws.bin_w[i];

        sh->u.b.h.n[i] = r->ws.bin_n[i];
        sh->u.b.h.lo[i] = (uint32_t) w;
        sh->u.b.h.hi[i] = (uint32_t) (w >> 32);
    }
    __syncthreads();
}

/* The largest key whose bin is this one or a later one. */
static __device__ uint32_t edge_of(const row_t *r, float max, uint32_t bin)
{
    uint32_t  lo = glm_logit_key(-FLT_MAX) - 1, hi = glm_logit_key(max);

    while (lo < hi) {
        const uint32_t  mid = hi - (hi - lo) / 2;

        if (bin_of(scaled(r, max, glm_key_logit(mid))) >= bin) lo = mid;
        else hi = mid - 1;
    }
    return lo;
}

/* Keys lo .. hi of sh->found.bin. */
static __device__ void bin_keys(const row_t *r, pick_t *sh, float max, uint32_t *lo, uint32_t *hi)
{
    if (thread_at() < 2) sh->edge[thread_at()] = edge_of(r, max, sh->found.bin + threadIdx.x);
    __syncthreads();
    *hi = sh->edge[0];
    *lo = sh->edge[1] + 1;
}

/* Adds ids with keys lo .. hi to bins of 2^shift keys, the largest first. */
static __device__ void tally(const row_t *r, pick_t *sh, float max, uint32_t lo, uint32_t hi, int shift)
{
    const int  lane = thread_at() % 32;

    for (int32_t b = thread_at() / 32; b < r->blocks; b += kPickThreads / 32) {
        if (sh->u.b.key[b] < lo) continue;
        for (int h = 0; h < 2; h++) {
            const int32_t   i = b * kBlock + h * 128 + lane * 4;
            const four_t    x = load4(r->x, i, r->vocab);
            const uint32_t  ok = allowed4(r, i);

            for (int k = 0; k < 4; k++) {
                const uint32_t  key = glm_logit_key(x.f[k]);

                if (key < lo || key > hi || !(ok >> k & 1)) continue;
                bins_add(&sh->u.b.h, (hi - key) >> shift, 1, weight_units(weight_of(r, max, x.f[k])));
            }
        }
    }
    __syncthreads();
}

/*
 * The key among lo .. hi at which the sum (of ids, or of weights) exceeds limit;
 * before_n, before_w: what is above lo .. hi, and then what is above the key.
 */
static __device__ uint32_t descend(const row_t *r, pick_t *sh, float max, uint32_t lo, uint32_t hi,
                                   int by_weight, uint64_t limit, uint64_t *before_n, uint64_t *before_w)
{
    for ( ;; ) {
        int  shift = 0;

        while ((hi - lo) >> shift >= kBins) shift++;
        bins_clear(&sh->u.b.h);
        tally(r, sh, max, lo, hi, shift);
        cross(sh, by_weight, limit - (by_weight ? *before_w : *before_n), -1);
        *before_n += sh->found.before_n;
        *before_w += sh->found.before_w;
        hi -= sh->found.bin << shift;
        if (shift == 0) return hi;
        if (hi - lo >= 1u << shift) lo = hi - (1u << shift) + 1;
    }
}

/* What is left of an id's weight. */
static __device__ uint64_t left_of(const row_t *r, const cut_t *c, float max, int32_t id, float x)
{
    const uint32_t  key = glm_logit_key(x);
    float           w;

    if (c->ties) return key == c->key;
    if (key < c->key || (key == c->key && id > c->last)) return 0;
    w = weight_of(r, max, x);
    return w < c->min_p ? 0 : weight_units(w);
}

/* Weights of blocks, into the bins. */
static __device__ void weigh_blocks(const row_t *r, pick_t *sh, const cut_t *c, float max)
{
    const int  lane = thread_at() % 32;

    bins_clear(&sh->u.b.h);
    for (int32_t b = thread_at() / 32; b < r->blocks; b += kPickThreads / 32) {
        uint64_t  w = 0;

        if (sh->u.b.key[b] < c->key) continue;
        for (int h = 0; h < 2; h++) {
            const int32_t   i = b * kBlock + h * 128 + lane * 4;
            const four_t    x = load4(r->x, i, r->vocab);
            const uint32_t  ok = allowed4(r, i);

            for (int k = 0; k < 4; k++)
                if (ok >> k & 1) w += left_of(r, c, max, i + k, x.f[k]);
        }
        for (int o = 16; o > 0; o /= 2) w += __shfl_xor_sync(~0u, w, o);
        if (lane == 0) sh->u.b.h.lo[b] = (uint32_t) w, sh->u.b.h.hi[b] = (uint32_t) (w >> 32);
    }
    __syncthreads();
}

/* The id, in their order, at which what is left exceeds limit, or u of its sum. */
static __device__ int32_t locate(const row_t *r, pick_t *sh, const cut_t *c, float max, uint64_t limit, double u)
{
    enum { EACH = kBlock / 32 };
    uint64_t  w[EACH], sum = 0, before;

    weigh_blocks(r, sh, c, max);
    if (thread_at() == 0) sh->id = -2;
    cross(sh, 1, limit, u);
    if (sh->total_w == 0) return -2;
    if (u >= 0) limit = (uint64_t) (u * (double) sh->total_w);
    if (limit >= sh->total_w) limit = sh->total_w - 1;

    if (thread_at() < 32) {
        const int32_t  first = (int32_t) sh->found.bin * kBlock + thread_at() * EACH;

        for (int k = 0; k < EACH; k++) {
            const int32_t  i = first + k;

            w[k] = i < r->vocab && allowed(r, i) ? left_of(r, c, max, i, r->x[i]) : 0;
            sum += w[k];
        }
        before = sum;
        for (int o = 1; o < 32; o *= 2) {
            const uint64_t  p = __shfl_up_sync(~0u, before, o);

            if (thread_at() >= o) before += p;
        }
        before += sh->found.before_w - sum;
        for (int k = 0; k < EACH; k++) {
            if (before <= limit && before + w[k] > limit) sh->id = first + k;
            before += w[k];
        }
    }
    __syncthreads();
    return sh->id;
}

/* Of the ids of the key that crosses, those stay before which the sum is not above
 * limit: all have one weight, and the first ones stay. */
static __device__ void cut_ties(const row_t *r, pick_t *sh, cut_t *c, float max, uint64_t limit, uint64_t before)
{
    const uint64_t  w = weight_units(weight_of(r, max, glm_key_logit(c->key)));
    const uint64_t  stay = w > 0 ? (limit - before) / w + 1 : sh->found.n;

    if (limit < before || stay >= sh->found.n) return;
    __syncthreads();
    c->ties = 1;
    c->last = locate(r, sh, c, max, stay - 1, -1);
    c->ties = 0;
}

/* 1: c tells what top_k, top_p and min_p leave; 0: they leave everything. */
static __device__ int filter(const row_t *r, pick_t *sh, float max, cut_t *c)
{
    const glm_gsample_t  *s = r->s;
    double                z = sh->z;      /* it lies apart from what is used here */
    uint64_t              before_n, before_w, limit;
    uint32_t              lo, hi;
    int                   any = s->min_p > 0;

    c->key = 0, c->last = INT32_MAX, c->min_p = s->min_p, c->ties = 0;
    for (int32_t b = thread_at(); b < r->blocks; b += kPickThreads)
        sh->u.b.key[b] = glm_logit_key(r->ws.max[b]);
    __syncthreads();

    if (s->top_k > 0 && s->top_k < r->vocab) {
        load_bins(r, sh);
        cross(sh, 0, (uint64_t) s->top_k - 1, -1);
        if (sh->total_n >= (uint64_t) s->top_k) {
            before_n = sh->found.before_n, before_w = sh->found.before_w;
            bin_keys(r, sh, max, &lo, &hi);
            c->key = descend(r, sh, max, lo, hi, 0, (uint64_t) s->top_k - 1, &before_n, &before_w);
            z = (double) (before_w + sh->found.w) / GLM_SAMPLE_UNIT;
            any = 1;
        }
        __syncthreads();
    }
    if (s->top_p > 0 && s->top_p < 1) {
        limit = (uint64_t) (z * (double) s->top_p * GLM_SAMPLE_UNIT);
        load_bins(r, sh);
        cross(sh, 1, limit, -1);
        before_n = sh->found.before_n, before_w = sh->found.before_w;
        bin_keys(r, sh, max, &lo, &hi);
        c->key = descend(r, sh, max, c->key > lo ? c->key : lo, hi, 1, limit, &before_n, &before_w);
        cut_ties(r, sh, c, max, limit, before_w);
        any = 1;
    }
    return any;
}

static __device__ int32_t draw(const row_t *r, pick_t *sh, float raw_max, float max)
{
    const glm_gsample_t  *s = r->s;
    const double          u = glm_uniform(s->seed, s->choice, s->blank, s->ntokens);
    cut_t                 c;

    if (r->bins || s->min_p > 0) {
        if (filter(r, sh, max, &c)) return locate(r, sh, &c, max, 0, u);
        add_up(r, sh, raw_max);    /* the bins lie where the sums were */
    }
    return draw_any(r, sh, max, u);
}

/* ---- log-probabilities ---- */

/*
 * A warp: the n best of x, those of allow unless NULL, best first, ties by id, into
 * sh->top; it ends before what is not above `least`.  Blocks tell their best of what
 * is left.
 */
static __device__ void list_best(const row_t *r, pick_t *sh, const float *x, const uint64_t *allow, int n,
                                 uint32_t least)
{
    enum { EACH = kBlock / 32 };
    const int  lane = thread_at();
    int        t;

    for (t = 0; t < n; t++) {
        uint32_t  key = 0, at = ~0u, first = ~0u, next = 0, k[EACH];
        uint32_t  most, b;

        for (int32_t i = lane; i < r->blocks; i += 32)
            if (sh->u.c.key[i] > key) key = sh->u.c.key[i], at = (uint32_t) i;
        most = __reduce_max_sync(~0u, key);
        b = __reduce_min_sync(~0u, key == most ? at : ~0u);
        if (most <= least) break;

        for (int j = 0; j < EACH; j++) {
            const int32_t  o = j * 32 + lane, i = (int32_t) b * kBlock + o;
            const int      may = i < r->vocab && (allow == NULL || (allow[i / 64] >> (i % 64) & 1));

            k[j] = may ? glm_logit_key(x[i]) : 0;
            if (k[j] == most && o > sh->u.c.last[b] && (uint32_t) o < first) first = (uint32_t) o;
        }
        first = __reduce_min_sync(~0u, first);
        for (int j = 0; j < EACH; j++)
            if ((k[j] < most || (k[j] == most && (uint32_t) (j * 32 + lane) > first)) && k[j] > next)
                next = k[j];
        next = __reduce_max_sync(~0u, next);

        __syncwarp();             /* all have read key and last: a reduction orders no memory */
        if (lane == 0) {
            sh->top[t] = (int32_t) (b * kBlock + first);
            sh->u.c.key[b] = next;
            sh->u.c.last[b] = (int16_t) (next == most ? (int) first : -1);
        }
        __syncwarp();
    }
    if (lane == 0) sh->ntop = t;
}

/* The ids that were asked for, best first: a thread counts those before its own. */
static __device__ void list_score(const row_t *r, pick_t *sh, const int32_t *score, int n)
{
    if (thread_at() < n) {
        const int32_t   id = score[thread_at()];
        const uint32_t  key = glm_logit_key(r->raw[id]);
        int             at = 0;

        for (int j = 0; j < n; j++) {
            const uint32_t  k = glm_logit_key(r->raw[score[j]]);

            at += k > key || (k == key && (score[j] < id || (score[j] == id && j < thread_at())));
        }
        sh->top[at] = id;
    }
    if (thread_at() == 0) sh->ntop = n;
}

/* What the lists start from: sums, and the largest of blocks. */
static __device__ void list_load(const row_t *r, pick_t *sh, const float *max)
{
    for (int32_t b = thread_at(); b < r->blocks; b += kPickThreads) {
        if (r->s->nlogprobs >= 0) sh->u.c.raw_sum[b] = r->ws.raw_sum[b];
        if (r->ranks) sh->u.c.sum[b] = r->ws.sum[b];
        sh->u.c.key[b] = glm_logit_key(max[b]);
        sh->u.c.last[b] = -1;
    }
    __syncthreads();
}

static __device__ void list_top(const row_t *r, pick_t *sh, const char *lists, float raw_max, glm_sampled_t *out)
{
    const int  asked = r->s->nscore > 0 ? r->s->nscore : r->s->nlogprobs;
    const int  n = asked < GLM_MAX_LOGPROBS ? asked : GLM_MAX_LOGPROBS;

    if (n == 0) {
        if (thread_at() == 0) out->ntop = 0;
        return;
    }
    list_load(r, sh, r->ws.raw_max);
    if (thread_at() == 32) sh->raw_lse = log_sum(sh->u.c.raw_sum, r->blocks, raw_max);
    if (r->s->nscore > 0) list_score(r, sh, (const int32_t *) (lists + r->s->score), n);
    else if (thread_at() < 32) list_best(r, sh, r->raw, NULL, n, 0);
    __syncthreads();
    if (thread_at() == 0) out->ntop = sh->ntop;
    if (thread_at() < sh->ntop) {
        const int32_t        id = sh->top[thread_at()];
        const glm_logprob_t  p = { id, (float) ((double) r->raw[id] - sh->raw_lse) };

        out->top[thread_at()] = p;
    }
}

/* What is banned has no rank. */
static __device__ void list_rank(const row_t *r, pick_t *sh, float raw_max, float max, glm_sampled_t *out)
{
    const int  n = r->s->rank < GLM_MAX_RANK ? r->s->rank : GLM_MAX_RANK, probs = r->s->nlogprobs >= 0;

    list_load(r, sh, r->ws.max);
    if (thread_at() == 32 && probs) sh->raw_lse = log_sum(sh->u.c.raw_sum, r->blocks, raw_max);
    if (thread_at() == 64) sh->lse = log_sum(sh->u.c.sum, r->blocks, max);
    if (thread_at() < 32) list_best(r, sh, r->x, r->s->allow, n, glm_logit_key(-INFINITY));
    __syncthreads();
    if (thread_at() == 0) out->nrank = sh->ntop;
    if (thread_at() < sh->ntop) {
        const int32_t       id = sh->top[thread_at()];
        const glm_ranked_t  p = { id, (float) ((double) r->x[id] - sh->lse),
                                  probs ? (float) ((double) r->raw[id] - sh->raw_lse) : 0 };

        out->rank[thread_at()] = p;
    }
}

/* Grid: (3, rows): a CTA for the id, one for the log-probabilities, one for ranks. */
static __global__ void __launch_bounds__(kPickThreads) sample_pick_kernel(const glm_sample_args_t a)
{
    __shared__ pick_t  sh;
    row_t              r;
    glm_sampled_t     *out = a.out + blockIdx.y;
    float              raw_max, max;
    int32_t            id;
    int                probs;

    grid_go();
    grid_wait();
    if (!row_open(&r, &a, &sh.s)) return;
    probs = sh.s.nlogprobs >= 0;
    if ((blockIdx.x == 1 && !probs) || (blockIdx.x == 2 && !r.ranks)) {
        if (thread_at() == 0) *(blockIdx.x == 1 ? &out->ntop : &out->nrank) = 0;
        return;
    }
    raw_max = row_max(r.ws.raw_max, r.blocks, sh.warp);
    max = row_max(r.ws.max, r.blocks, sh.warp);
    id = raw_max == INFINITY ? -1 : r.picks && max == -INFINITY ? -2 : 0;
    if (blockIdx.x == 1) {
        if (id == 0) list_top(&r, &sh, (const char *) a.lists, raw_max, out);
        else if (thread_at() == 0) out->ntop = 0;
        return;
    }
    if (blockIdx.x == 2) {
        if (id == 0) list_rank(&r, &sh, raw_max, max, out);
        else if (thread_at() == 0) out->nrank = 0;
        return;
    }
    if (id == 0) {
        if (r.draws || probs) add_up(&r, &sh, raw_max);
        if (!r.picks) id = sh.s.force - 1;
        else id = r.draws ? draw(&r, &sh, raw_max, max) : first_of(&r, &sh, max);
    }
    if (thread_at() == 0) {
        out->id = id;
        out->logprob = id >= 0 && probs ? (float) ((double) r.raw[id] - sh.raw_lse) : 0;
        a.ids[blockIdx.y] = id;
    }
}
