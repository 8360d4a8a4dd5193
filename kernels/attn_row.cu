/*
 * attn_row: attention of decode rows over paged keys and values, one query a
 * head.  A unit is (row, chunk of 256 tokens, head), whatever else runs; four
 * warps take the chunk's steps of 8 or 16 tokens in turn and join in order; the
 * last CTA to end a (row, head) joins its chunks in order.  The grid is fixed
 * and walks the units of the lengths it finds, so that one graph serves any
 * context.  An ideal run reads the visible pages once: tokens * heads *
 * 2 d * (2, or 1 + 2 / d) bytes.
 */
#include "attn.cuh"

namespace {

constexpr int  kWarps = 4, kThreads = kWarps * 32;

struct Attn {
    Kv              kv;
    Rows            r;
    const __half   *qkv;
    const __half2  *rope;
    __half         *out;
    int            *counters;     /* (rows, heads): chunks done; 0 between launches */
    float          *partial;      /* (rows, heads, chunks)[d + 4]: o, m, l */
    int             bucket, max_chunks;
    float           rsqrt_d;
};

/* How a warp reads a step of tokens: LT lanes a token, E values a lane. */
template <int D, bool INT8>
struct Step {
    static constexpr int  E = INT8 ? 16 : 8, LT = D / E, kPer = 32 / LT;
    static constexpr int  NI = 4 * kPer < kPage ? 4 : kPage / kPer, kTokens = NI * kPer;
};

/* 16 stored bytes as values; int8 without its scale. */
template <bool INT8>
__device__ __forceinline__ void values(uint4 q, float *f)
{
    const uint32_t  w[4] = {q.x, q.y, q.z, q.w};

#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (INT8) {
#pragma unroll
            for (int e = 0; e < 4; e++)     /* 2^23 + byte, less 2^23 + 128 */
                f[i * 4 + e] = __uint_as_float(__byte_perm(w[i], 0x4b000000, 0x7650 + e))
                               - 8388736.f;
        } else {
            float2  p = half2_float2(w[i]);

            f[2 * i] = p.x, f[2 * i + 1] = p.y;
        }
    }
}

template <int D>
struct Shared {
    float  q[D];
    float  o[kWarps][D];
    float  m[kWarps], l[kWarps];
    int    chunks[GLM_CUDA_MAX_ROWS + 1];   /* prefix sums over rows */
    int    last;
};

/* q rotated, times 1 / sqrt(d). */
template <int D>
__device__ __forceinline__ void load_q(const Attn &a, int row, int head, Shared<D> &sh)
{
    const int  i = threadIdx.x;

    if (i >= D / 2) return;
    const __half  *q = a.qkv + ((size_t) row * a.kv.heads + head) * 3 * D;
    const float2   c = __half22float2(a.rope[(size_t) a.r.position[row] * (D / 2) + i]);
    const float    x = __half2float(q[i]), y = __half2float(q[i + D / 2]);

    sh.q[i] = fmaf(x, c.x, -(y * c.y)) * a.rsqrt_d;
    sh.q[i + D / 2] = fmaf(y, c.x, x * c.y) * a.rsqrt_d;
}

/* One warp's steps of tokens t0 .. t1-1; leaves o, m, l in shared memory. */
template <int D, bool INT8>
__device__ __forceinline__ void warp_chunk(const Attn &a, int row, int head, int t0, int t1,
                                           Shared<D> &sh)
{
    using            S = Step<D, INT8>;
    using            H = Head<D, INT8>;
    constexpr int    E = S::E, NI = S::NI;
    const int        warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int        c = lane % S::LT, tg = lane / S::LT;
    const int32_t   *pages = a.r.pages + (size_t) row * a.r.ldpages;
    float            m = -INFINITY, l = 0.f, o[E] = {}, q[E];

#pragma unroll
    for (int e = 0; e < E; e++) q[e] = sh.q[c * E + e];
    for (int t = t0 + warp * S::kTokens; t < t1; t += kWarps * S::kTokens) {
        const uint8_t  *at = head_at<D, INT8>(a.kv, pages[t / kPage], head);
        const uint8_t  *kp = at + (t % kPage + tg) * H::kToken + c * 16;
        const __half   *scales = (const __half *) (at + H::kScales) + t % kPage + tg;
        uint4           k[NI], v[NI];
        float           s[NI], top = -INFINITY;

#pragma unroll
        for (int i = 0; i < NI; i++) k[i] = __ldcs((const uint4 *) (kp + i * S::kPer * H::kToken));
#pragma unroll
        for (int i = 0; i < NI; i++)
            v[i] = __ldcs((const uint4 *) (kp + (kPage + i * S::kPer) * H::kToken));
#pragma unroll
        for (int i = 0; i < NI; i++) {
            float  f[E], p = 0.f;

            values<INT8>(k[i], f);
#pragma unroll
            for (int e = 0; e < E; e++) p = fmaf(q[e], f[e], p);
#pragma unroll
            for (int x = 1; x < S::LT; x <<= 1) p += __shfl_xor_sync(~0u, p, x);
            if (INT8) p *= __half2float(scales[i * S::kPer]);
            s[i] = t + i * S::kPer + tg < t1 ? p : -INFINITY;
            top = fmaxf(top, s[i]);
        }
#pragma unroll
        for (int x = S::LT; x < 32; x <<= 1) top = fmaxf(top, __shfl_xor_sync(~0u, top, x));
        top = fmaxf(top, m);
        const float  fade = __expf(m - top);

        m = top;
        l *= fade;
#pragma unroll
        for (int e = 0; e < E; e++) o[e] *= fade;
#pragma unroll
        for (int i = 0; i < NI; i++) {
            float  f[E], p = __expf(s[i] - m);

            l += p;
            /* A token past the end may hold anything, NaN too. */
            if (INT8) p = p > 0.f ? p * __half2float(scales[kPage + i * S::kPer]) : 0.f;
            values<INT8>(v[i], f);
#pragma unroll
            for (int e = 0; e < E; e++) o[e] = p > 0.f ? fmaf(p, f[e], o[e]) : o[e];
        }
    }
#pragma unroll
    for (int x = S::LT; x < 32; x <<= 1) {
        l += __shfl_xor_sync(~0u, l, x);
#pragma unroll
        for (int e = 0; e < E; e++) o[e] += __shfl_xor_sync(~0u, o[e], x);
    }
    if (tg == 0) {
#pragma unroll
        for (int e = 0; e < E; e++) sh.o[warp][c * E + e] = o[e];
    }
    if (lane == 0) sh.m[warp] = m, sh.l[warp] = l;
}

template <int D>
__device__ __forceinline__ void put_out(const Attn &a, int row, int head, float o)
{
    const int  i = head * D + threadIdx.x;

    a.out[((size_t) (i / 8) * a.bucket + row) * 8 + i % 8] = __float2half_rn(o);
}

/* Joins the warps; a lone chunk is the result, others wait for the last one. */
template <int D>
__device__ __forceinline__ void join(const Attn &a, int row, int head, int chunk, int nchunks,
                                     Shared<D> &sh)
{
    const int  i = threadIdx.x;
    float      m = sh.m[0], l = 0.f, o = 0.f;

#pragma unroll
    for (int w = 1; w < kWarps; w++) m = fmaxf(m, sh.m[w]);
#pragma unroll
    for (int w = 0; w < kWarps; w++) {
        const float  f = __expf(sh.m[w] - m);

        l = fmaf(sh.l[w], f, l);
        if (i < D) o = fmaf(sh.o[w][i], f, o);
    }
    if (nchunks == 1) {
        if (i < D) put_out<D>(a, row, head, o / l);
        return;
    }
    const size_t  pair = (size_t) row * a.kv.heads + head;
    float        *p = a.partial + pair * a.max_chunks * (D + 4);

    if (i < D) p[chunk * (D + 4) + i] = o;
    if (i == 0) p[chunk * (D + 4) + D] = m, p[chunk * (D + 4) + D + 1] = l;
    __threadfence();
    __syncthreads();
    if (i == 0) sh.last = atomicAdd(a.counters + pair, 1) == nchunks - 1;
    __syncthreads();
    if (!sh.last) return;
    __threadfence();
    if (i == 0) a.counters[pair] = 0;
    m = -INFINITY, l = 0.f, o = 0.f;
    for (int c = 0; c < nchunks; c++) m = fmaxf(m, __ldcg(p + c * (D + 4) + D));
    for (int c = 0; c < nchunks; c++) {
        const float  f = __expf(__ldcg(p + c * (D + 4) + D) - m);

        l = fmaf(__ldcg(p + c * (D + 4) + D + 1), f, l);
        if (i < D) o = fmaf(__ldcg(p + c * (D + 4) + i), f, o);
    }
    if (i < D) put_out<D>(a, row, head, o / l);
}

template <int D, bool INT8>
__global__ void __launch_bounds__(kThreads, 4) attn_row_kernel(const Attn a)
{
    __shared__ Shared<D>  sh;

    grid_go();
    grid_wait();
    if (threadIdx.x == 0) sh.chunks[0] = 0;
    if (threadIdx.x < 32) {
        int  before = 0;

        for (int r0 = 0; r0 < a.r.rows; r0 += 32) {
            const int  r = r0 + threadIdx.x;
            int        n = r < a.r.rows ? (a.r.slot[r] + kChunk) / kChunk : 0;

#pragma unroll
            for (int x = 1; x < 32; x <<= 1) {
                const int  v = __shfl_up_sync(~0u, n, x);

                if ((int) threadIdx.x >= x) n += v;
            }
            if (r < a.r.rows) sh.chunks[r + 1] = before + n;
            before += __shfl_sync(~0u, n, 31);
        }
    }
    __syncthreads();
    const int  units = sh.chunks[a.r.rows] * a.kv.heads;

    for (int u = blockIdx.x; u < units; u += gridDim.x) {
        const int  flat = u / a.kv.heads, head = u % a.kv.heads;
        int        row = 0;

        for (int x = 32; x; x >>= 1)
            if (row + x < a.r.rows && sh.chunks[row + x] <= flat) row += x;
        const int  chunk = flat - sh.chunks[row], len = a.r.slot[row] + 1;

        load_q<D>(a, row, head, sh);
        __syncthreads();
        warp_chunk<D, INT8>(a, row, head, chunk * kChunk, min(len, (chunk + 1) * kChunk), sh);
        __syncthreads();
        join<D>(a, row, head, chunk, (len + kChunk - 1) / kChunk, sh);
        __syncthreads();
    }
}

template <int D, bool INT8>
int run(const glm_attn_args_t *a, glm_stream_t *s)
{
    const size_t  pairs = (size_t) a->rows->rows * a->kv->heads;
    const size_t  counters = (pairs * 4 + 127) / 128 * 128;
    const size_t  chunk = pairs * (D + 4) * 4;
    Attn          t = {};

    if (a->ws_bytes < counters + chunk) return GLM_EINVAL;
    t.kv = {(uint8_t *) a->kv->base, a->kv->page_bytes, a->kv->heads};
    t.r = {a->rows->slot, a->rows->position, a->rows->pages, a->rows->ldpages, a->rows->rows};
    t.qkv = (const __half *) a->qkv;
    t.rope = (const __half2 *) a->rope;
    t.out = (__half *) a->out;
    t.counters = (int *) a->ws;
    t.partial = (float *) ((uint8_t *) a->ws + counters);
    t.bucket = a->bucket;
    t.max_chunks = (a->rows->ldpages * kPage + kChunk - 1) / kChunk;
    t.rsqrt_d = 1.f / sqrtf((float) D);
    if (a->ws_bytes < counters + chunk * t.max_chunks) return GLM_EINVAL;
    return launch("attn_row", attn_row_kernel<D, INT8>, s->sms * 4, kThreads, 0, 1, s, t);
}

}  // namespace

int GLM_OP(attn_row)(const glm_attn_args_t *a, glm_stream_t *s)
{
    if (s == NULL || !attn_ok(a) || a->out == NULL || a->ws == NULL || !aligned16(a->out)
        || !aligned16(a->ws))
    {
        return GLM_EINVAL;
    }
    if (a->kv->int8) return a->kv->d == 128 ? run<128, true>(a, s) : run<64, true>(a, s);
    return a->kv->d == 128 ? run<128, false>(a, s) : run<64, false>(a, s);
}
