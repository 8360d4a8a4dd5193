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

constexpr int  kWarps = 4, kThreads = kWarps * 32, kAhead = 2, kCtas = 6;

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
    static constexpr int  kHalf = NI * 512;                /* bytes of K or V of a step */
    static constexpr int  kBytes = 2 * kHalf + (INT8 ? 64 : 0);
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

template <int D, bool INT8>
struct Shared {
    uint8_t  ring[kWarps][kAhead][Step<D, INT8>::kBytes];
    float    q[D];
    float    o[kWarps][D];
    float    m[kWarps], l[kWarps];
    int      chunks[GLM_CUDA_MAX_ROWS + 1];   /* prefix sums over rows */
    int      last;
};

/* A place in the units of this CTA; u < 0: past their end. */
struct Unit {
    int  u, row, head, chunk, len;
};

template <class S>
__device__ __forceinline__ Unit unit_at(const Attn &a, const S &sh, int u)
{
    Unit  n = {-1, 0, 0, 0, 0};

    if (u >= sh.chunks[a.r.rows] * a.kv.heads) return n;
    const int  flat = u / a.kv.heads;

    for (int x = 32; x; x >>= 1)
        if (n.row + x < a.r.rows && sh.chunks[n.row + x] <= flat) n.row += x;
    n.u = u, n.head = u % a.kv.heads;
    n.chunk = flat - sh.chunks[n.row], n.len = a.r.slot[n.row] + 1;
    return n;
}

/* The copies of a warp: its steps, one unit after the other, kAhead early. */
template <int D, bool INT8>
struct Copies {
    using  S = Step<D, INT8>;
    using  H = Head<D, INT8>;

    Unit  n;
    int   t, t1, page, stage;     /* page: of the chunk's page `lane` */

    __device__ __forceinline__ void enter(const Attn &a, const Shared<D, INT8> &sh, int u)
    {
        const int  lane = threadIdx.x % 32, warp = threadIdx.x / 32;

        for (;; u += gridDim.x) {
            n = unit_at(a, sh, u);
            if (n.u < 0) return;
            t = n.chunk * kChunk + warp * S::kTokens;
            t1 = min(n.len, (n.chunk + 1) * kChunk);
            if (t < t1) break;
        }
        const int  first = n.chunk * (kChunk / kPage), i = first + lane % (kChunk / kPage);

        page = a.r.pages[(size_t) n.row * a.r.ldpages + (i * kPage < n.len ? i : first)];
    }

    __device__ __forceinline__ void issue(const Attn &a, Shared<D, INT8> &sh)
    {
        const int  lane = threadIdx.x % 32, warp = threadIdx.x / 32;

        if (n.u >= 0) {
            const int       at = t % kPage, id = __shfl_sync(~0u, page, t / kPage % (kChunk / kPage));
            const uint8_t  *head = head_at<D, INT8>(a.kv, id, n.head);
            const uint32_t  dst = smem_addr(sh.ring[warp][stage]);

#pragma unroll
            for (int i = 0; i < S::NI; i++) {
                copy16(dst + i * 512 + lane * 16, head + at * H::kToken + i * 512 + lane * 16);
                copy16(dst + S::kHalf + i * 512 + lane * 16,
                       head + (kPage + at) * H::kToken + i * 512 + lane * 16);
            }
            if (INT8 && lane < 4)
                copy16(dst + 2 * S::kHalf + lane * 16, head + H::kScales + lane * 16);
            stage = stage + 1 == kAhead ? 0 : stage + 1;
            t += kWarps * S::kTokens;
            if (t >= t1) enter(a, sh, n.u + gridDim.x);
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    }
};

/* What a thread of the first D / 2 needs for q of a unit. */
struct Query {
    __half   x, y;
    __half2  c;
};

template <int D>
__device__ __forceinline__ Query fetch_q(const Attn &a, const Unit &n)
{
    const int  i = threadIdx.x;
    Query      q = {};

    if (n.u >= 0 && i < D / 2) {
        const __half  *p = a.qkv + ((size_t) n.row * a.kv.heads + n.head) * 3 * D;

        q.x = p[i], q.y = p[i + D / 2];
        q.c = a.rope[(size_t) a.r.position[n.row] * (D / 2) + i];
    }
    return q;
}

/* Rotated, times 1 / sqrt(d). */
template <int D, bool INT8>
__device__ __forceinline__ void place_q(const Attn &a, const Query &q, Shared<D, INT8> &sh)
{
    const float2  c = __half22float2(q.c);
    const float   x = __half2float(q.x), y = __half2float(q.y);

    if (threadIdx.x >= D / 2) return;
    sh.q[threadIdx.x] = fmaf(x, c.x, -(y * c.y)) * a.rsqrt_d;
    sh.q[threadIdx.x + D / 2] = fmaf(y, c.x, x * c.y) * a.rsqrt_d;
}

/* One warp's steps of a unit; leaves o, m, l in shared memory. */
template <int D, bool INT8>
__device__ __forceinline__ void warp_chunk(const Attn &a, const Unit &n, Copies<D, INT8> &copies,
                                           int &stage, Shared<D, INT8> &sh)
{
    using            S = Step<D, INT8>;
    constexpr int    E = S::E, NI = S::NI;
    const int        warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int        c = lane % S::LT, tg = lane / S::LT;
    const int        t0 = n.chunk * kChunk, t1 = min(n.len, t0 + kChunk);
    float            m = -INFINITY, l = 0.f, o[E] = {}, q[E];

#pragma unroll
    for (int e = 0; e < E; e++) q[e] = sh.q[c * E + e];
    for (int t = t0 + warp * S::kTokens; t < t1; t += kWarps * S::kTokens) {
        const uint8_t  *k = sh.ring[warp][stage], *v = k + S::kHalf;
        const __half   *scales = (const __half *) (k + 2 * S::kHalf) + t % kPage + tg;
        float           s[NI], top = -INFINITY;

        asm volatile("cp.async.wait_group %0;" ::"n"(kAhead - 1) : "memory");
        __syncwarp();
#pragma unroll
        for (int i = 0; i < NI; i++) {
            float  f[E], p = 0.f;

            values<INT8>(*(const uint4 *) (k + i * 512 + lane * 16), f);
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
            values<INT8>(*(const uint4 *) (v + i * 512 + lane * 16), f);
#pragma unroll
            for (int e = 0; e < E; e++) o[e] = p > 0.f ? fmaf(p, f[e], o[e]) : o[e];
        }
        __syncwarp();
        copies.issue(a, sh);
        stage = stage + 1 == kAhead ? 0 : stage + 1;
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
template <int D, bool INT8>
__device__ __forceinline__ void join(const Attn &a, const Unit &n, Shared<D, INT8> &sh)
{
    const int  row = n.row, head = n.head, nchunks = (n.len + kChunk - 1) / kChunk;
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
    float        *p = a.partial + pair * a.max_chunks * (D + 4), *mine = p + n.chunk * (D + 4);

    if (i < D) mine[i] = o;
    if (i == 0) mine[D] = m, mine[D + 1] = l;
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
__global__ void __launch_bounds__(kThreads, kCtas) attn_row_kernel(const Attn a)
{
    __shared__ __align__(16) Shared<D, INT8>  sh;

    grid_go();
    if (threadIdx.x == 0) sh.chunks[0] = 0;
    if (threadIdx.x < 32) {                   /* rows do not change within a step */
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
    Copies<D, INT8>  copies;
    int              stage = 0;
    Unit             n = unit_at(a, sh, blockIdx.x);

    copies.stage = 0;
    copies.enter(a, sh, blockIdx.x);
    grid_wait();
    for (int i = 0; i < kAhead; i++) copies.issue(a, sh);
    Query  q = fetch_q<D>(a, n);

    while (n.u >= 0) {
        const Unit  next = unit_at(a, sh, n.u + gridDim.x);

        place_q<D, INT8>(a, q, sh);
        q = fetch_q<D>(a, next);
        __syncthreads();
        warp_chunk<D, INT8>(a, n, copies, stage, sh);
        __syncthreads();
        join<D, INT8>(a, n, sh);
        __syncthreads();
        n = next;
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
    return launch("attn_row", attn_row_kernel<D, INT8>, s->sms * kCtas, kThreads, 0, 1, s, t);
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
