/*
 * sample: glm_sample() (engine/sampler.h) on a GPU, in three kernels.
 *
 *     scan    logits as adjusted; the largest of each block of 256
 *     weigh   sums of exp of each block; where filters need it, weights by bins
 *     pick    a CTA a row draws, others list log-probabilities and ranks
 *
 * What does not commute is done in the CPU's order (a block's exps in 16 lanes, then
 * block after block); all else is maxima and integer sums.  So a row's result depends
 * neither on the cut of rows into CTAs nor on the other rows.  An ideal run reads the
 * logits once: rows * vocab * 4 bytes; this one twice, from L2 the second time, and
 * as often again as filters need.
 *
 * C and CUDA both compile this file: t/unit/sampler_gpu.c runs it without a GPU.
 */
#pragma once

#include "sample_math.h"
#include "sample_ws.h"

enum {
    kBlock = GLM_SCAN_BLOCK,
    kBins = GLM_SAMPLE_BINS,
    kScanThreads = 256,
    kWeighBlocks = kScanThreads / 16         /* blocks of logits that weigh does at once */
};

/* A row as the threads of a CTA see it. */
typedef struct {
    const glm_gsample_t  *s;      /* in shared memory */
    const float          *raw, *x;
    glm_sample_ws_t       ws;
    int32_t               vocab, blocks;
    int                   picks;  /* an id is picked, none is forced */
    int                   draws;  /* by a random number */
    int                   ranks;  /* beams: the best of what may be picked */
    int                   adjusts;
    float                 t;      /* temperature of the sums of what may be picked */
    int                   bins;   /* top_k or top_p looks at weights by bins */
} row_t;

/* 0: no such row.  All threads call it. */
static __device__ int row_open(row_t *r, const glm_sample_args_t *a, glm_gsample_t *s)
{
    const int  row = (int) blockIdx.y;

    if (threadIdx.x == 0) *s = a->row[row];
    __syncthreads();
    if (!s->live) return 0;
    r->s = s;
    r->ws = glm_sample_ws_of(a, row);
    r->vocab = a->vocab;
    r->blocks = (int32_t) glm_sample_blocks(a->vocab);
    r->ranks = s->rank > 0;
    r->picks = r->ranks || s->force <= 0;
    r->draws = r->picks && !r->ranks && s->temperature > 0;
    r->t = r->ranks ? 1 : s->temperature;
    r->adjusts = r->picks && (s->nadjust > 0 || s->nban > 0);
    r->bins = r->draws && ((s->top_k > 0 && s->top_k < r->vocab) || (s->top_p > 0 && s->top_p < 1));
    r->raw = a->logits + (size_t) row * a->ldl;
    r->x = r->adjusts ? r->ws.x : r->raw;
    return 1;
}

typedef struct { float f[4]; } four_t;

/* x[i .. i + 3]; -inf past the end. */
static __device__ four_t load4(const float *x, int32_t i, int32_t n)
{
    four_t  q;

    if (i + 4 <= n) {
        const float4  v = *(const float4 *) (x + i);

        q.f[0] = v.x, q.f[1] = v.y, q.f[2] = v.z, q.f[3] = v.w;
    } else {
        for (int k = 0; k < 4; k++) q.f[k] = i + k < n ? x[i + k] : -INFINITY;
    }
    return q;
}

/* Bit k: id i + k may be picked.  i is a multiple of 4. */
static __device__ uint32_t allowed4(const row_t *r, int32_t i)
{
    if (r->s->allow == NULL) return 15;
    return i < r->vocab ? (uint32_t) (r->s->allow[i / 64] >> (i % 64)) & 15 : 0;
}

static __device__ int allowed(const row_t *r, int32_t i)
{
    return r->s->allow == NULL || (r->s->allow[i / 64] >> (i % 64) & 1);
}

/* Largest and smallest of a value a thread, for all threads; warp: room for 32. */
static __device__ uint32_t cta_max(uint32_t v, uint32_t *warp)
{
    v = __reduce_max_sync(~0u, v);
    __syncthreads();
    if (threadIdx.x % 32 == 0) warp[threadIdx.x / 32] = v;
    __syncthreads();
    for (unsigned w = 0; w < blockDim.x / 32; w++) v = warp[w] > v ? warp[w] : v;
    return v;
}

static __device__ uint32_t cta_min(uint32_t v, uint32_t *warp)
{
    return ~cta_max(~v, warp);
}

/* Largest of a row's blocks. */
static __device__ float row_max(const float *max, int32_t blocks, uint32_t *warp)
{
    uint32_t  m = glm_logit_key(-INFINITY);

    for (int32_t b = (int32_t) threadIdx.x; b < blocks; b += (int32_t) blockDim.x) {
        const uint32_t  k = glm_logit_key(max[b]);

        m = k > m ? k : m;
    }
    return glm_key_logit(cta_max(m, warp));
}

/* (x - max) / t, never above 0. */
static __device__ float scaled(const row_t *r, float max, float x)
{
    return r->t == 1 ? x - max : (x - max) / r->t;
}

/* Falls as the weight rises: ids of one bin are neighbours in the order of logits. */
static __device__ uint32_t bin_of(float z)
{
    const float  b = z * -32;

    return b < kBins - 1 ? (uint32_t) b : kBins - 1;
}

/* A weight in units of 2^-44, rounded down. */
static __device__ uint64_t weight_units(float w)
{
    uint32_t  bits;
    int       shift;

    memcpy(&bits, &w, sizeof(bits));
    shift = (int) (bits >> 23) - 127 + 44 - 23;
    bits = (bits & 0x7fffff) | 0x800000;
    if (shift < -23) return 0;
    return shift < 0 ? bits >> -shift : (uint64_t) bits << shift;
}

/* Shared atomics of 64 bits are loops: two halves with a carry. */
typedef struct {
    uint32_t  n[kBins], lo[kBins], hi[kBins];
} bins_t;

static __device__ void bins_clear(bins_t *h)
{
    for (unsigned i = threadIdx.x; i < kBins; i += blockDim.x) h->n[i] = h->lo[i] = h->hi[i] = 0;
    __syncthreads();
}

static __device__ uint64_t bin_weight(const bins_t *h, unsigned i)
{
    return (uint64_t) h->hi[i] << 32 | h->lo[i];
}

static __device__ void bins_add(bins_t *h, uint32_t bin, uint32_t n, uint64_t w)
{
    if (n > 0) atomicAdd(&h->n[bin], n);
    if (w > 0) {
        const uint32_t  lo = (uint32_t) w, old = atomicAdd(&h->lo[bin], lo);
        const uint32_t  hi = (uint32_t) (w >> 32) + (old + lo < old);

        if (hi > 0) atomicAdd(&h->hi[bin], hi);
    }
}

/* ---- scan ---- */

/* The part's logits as adjusted, in the workspace. */
static __device__ void adjust(const row_t *r, const char *lists, int32_t first, int32_t end)
{
    const glm_adjust_t  *t = (const glm_adjust_t *) (lists + r->s->adjust);
    const int32_t       *ban = (const int32_t *) (lists + r->s->ban);
    float               *x = r->ws.x;

    for (int32_t i = first + (int32_t) threadIdx.x; i < end; i += (int32_t) blockDim.x) x[i] = r->raw[i];
    __syncthreads();
    for (int32_t i = (int32_t) threadIdx.x; i < r->s->nadjust; i += (int32_t) blockDim.x) {
        const glm_adjust_t  c = t[i];

        if (c.id < first || c.id >= end) continue;
        x[c.id] = glm_adjusted(&c, r->s->presence, r->s->frequency, r->s->repetition, x[c.id]);
    }
    __syncthreads();
    for (int32_t i = (int32_t) threadIdx.x; i < r->s->nban; i += (int32_t) blockDim.x)
        if (ban[i] >= first && ban[i] < end) x[ban[i]] = -INFINITY;
    __syncthreads();
}

/* A warp's block: both maxima as keys. */
static __device__ void scan_block(const row_t *r, int32_t b)
{
    const int  lane = (int) threadIdx.x % 32;
    float      raw = -INFINITY, may = -INFINITY;
    int        bad = 0;

    for (int h = 0; h < 2; h++) {
        const int32_t   i = b * kBlock + h * 128 + lane * 4;
        const four_t    q = load4(r->raw, i, r->vocab);
        const four_t    x = r->adjusts ? load4(r->x, i, r->vocab) : q;
        const uint32_t  ok = allowed4(r, i);

        for (int k = 0; k < 4; k++) {
            bad |= !(q.f[k] <= FLT_MAX);
            raw = q.f[k] > raw ? q.f[k] : raw;
            may = (ok >> k & 1) && x.f[k] > may ? x.f[k] : may;
        }
    }
    const uint32_t  k0 = __reduce_max_sync(~0u, glm_logit_key(bad ? INFINITY : raw));
    const uint32_t  k1 = __reduce_max_sync(~0u, glm_logit_key(may));

    if (lane == 0) r->ws.raw_max[b] = glm_key_logit(k0), r->ws.max[b] = glm_key_logit(k1);
}

/* Grid: (parts of a row, rows). */
static __global__ void __launch_bounds__(kScanThreads) sample_scan_kernel(const glm_sample_args_t a)
{
    __shared__ glm_gsample_t  s;
    row_t                     r;

    grid_go();
    grid_wait();
    if (!row_open(&r, &a, &s)) return;
    const int32_t  first = (int32_t) ((int64_t) r.blocks * blockIdx.x / gridDim.x);
    const int32_t  last = (int32_t) ((int64_t) r.blocks * (blockIdx.x + 1) / gridDim.x);

    if (r.adjusts)
        adjust(&r, (const char *) a.lists, first * kBlock, last * kBlock < r.vocab ? last * kBlock : r.vocab);
    if (r.bins)
        for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < kBins; i += gridDim.x * blockDim.x)
            r.ws.bin_w[i] = 0, r.ws.bin_n[i] = 0;
    for (int32_t b = first + (int32_t) threadIdx.x / 32; b < last; b += kScanThreads / 32) scan_block(&r, b);
}

/* ---- weigh ---- */

/* Sum of a half-warp's lanes in the order of glm_scan_t.exps. */
static __device__ double lanes_total(float s)
{
    double  d = (double) s + (double) __shfl_xor_sync(~0u, s, 8);

    d += __shfl_xor_sync(~0u, d, 4);
    d += __shfl_xor_sync(~0u, d, 2);
    d += __shfl_xor_sync(~0u, d, 1);
    return d;
}

/* A half-warp's block; real: there is one. */
static __device__ void weigh_block(const row_t *r, int32_t b, int real, float raw_max, float max, bins_t *h)
{
    const int    lane = (int) threadIdx.x % 16, probs = r->s->nlogprobs >= 0;
    const int    same = probs && !r->adjusts && max == raw_max && r->t == 1;
    const int    counts = r->s->top_k > 0, weighs = r->s->top_p > 0 && r->s->top_p < 1;
    float        raw_sum = 0, sum = 0;

#pragma unroll 4
    for (int j = 0; j < kBlock; j += 16) {
        const int32_t  i = b * kBlock + j + lane;
        const int      in = real && i < r->vocab;
        const float    v = in ? r->raw[i] : -INFINITY;
        float          e = 0;

        if (probs) raw_sum += e = glm_exp_neg(v - raw_max);
        if ((r->draws || r->ranks) && in && allowed(r, i)) {
            const float  x = r->adjusts ? r->x[i] : v, z = scaled(r, max, x);

            if (!same) e = glm_exp_neg(z);
            sum += e;
            if (r->bins && x > -INFINITY) bins_add(h, bin_of(z), counts, weighs ? weight_units(e) : 0);
        }
    }
    const double  d0 = lanes_total(raw_sum), d1 = lanes_total(sum);

    if (real && lane == 0) r->ws.raw_sum[b] = d0, r->ws.sum[b] = d1;
}

/* Grid: (parts of a row, rows). */
static __global__ void __launch_bounds__(kScanThreads) sample_weigh_kernel(const glm_sample_args_t a)
{
    __shared__ glm_gsample_t  s;
    __shared__ bins_t         h;
    __shared__ uint32_t       warp[32];
    row_t                     r;
    float                     raw_max, max;

    grid_go();
    grid_wait();
    if (!row_open(&r, &a, &s)) return;
    if (!r.draws && !r.ranks && s.nlogprobs < 0) return;
    raw_max = row_max(r.ws.raw_max, r.blocks, warp);
    max = row_max(r.ws.max, r.blocks, warp);
    if (raw_max == INFINITY || (r.picks && max == -INFINITY)) return;
    const int32_t  first = (int32_t) ((int64_t) r.blocks * blockIdx.x / gridDim.x);
    const int32_t  last = (int32_t) ((int64_t) r.blocks * (blockIdx.x + 1) / gridDim.x);

    if (r.bins) bins_clear(&h);
    for (int32_t b = first + (int32_t) threadIdx.x / 32 * 2; b < last; b += kWeighBlocks) {
        const int32_t  own = b + (int32_t) threadIdx.x % 32 / 16;

        weigh_block(&r, own, own < last, raw_max, max, &h);
    }
    if (!r.bins) return;
    __syncthreads();
    for (unsigned i = threadIdx.x; i < kBins; i += blockDim.x) {
        const uint64_t  w = bin_weight(&h, i);

        if (h.n[i] > 0) atomicAdd(&r.ws.bin_n[i], h.n[i]);
        if (w > 0) atomicAdd((unsigned long long *) &r.ws.bin_w[i], (unsigned long long) w);
    }
}

/* CTAs of a row in scan and weigh: about eight a multiprocessor, whole turns of weigh. */
static inline int sample_parts(const glm_sample_args_t *a, int sms)
{
    const int  turns = (int) (glm_sample_blocks(a->vocab) + kWeighBlocks - 1) / kWeighBlocks;
    const int  most = 8 * sms / a->rows < 1 ? 1 : 8 * sms / a->rows;
    const int  each = (turns + most - 1) / most;

    return (turns + each - 1) / each;
}
