/*
 * attn_row: attention of decode rows over paged keys and values, one query a
 * head.  A unit is (row, chunk of 256 tokens, head), whatever else runs; four
 * warps take the chunk's steps of 8 or 16 tokens in turn and join in order; the
 * last warp to end a (row, head) joins its chunks in order.  The grid is fixed
 * and walks the units of the lengths it finds, so that one graph serves any
 * context.  An ideal run reads the visible pages once: tokens * heads *
 * 2 d * (2, or 1 + 2 / d) bytes.
 */
#include "attn.cuh"
#include "cuda_size.h"

namespace {

constexpr int  kWarps = 4, kThreads = kWarps * 32, kAhead = 2, kCtas = 6;

struct Attn {
    Kv              kv;
    Rows            r;
    const __half   *qkv;
    const __half2  *rope;
    __half         *out;
    int            *counters;     /* (rows, heads): warps done; 0 between launches */
    float          *partial;      /* (rows, heads, chunks)[d + 4]: o, m, l */
    int             bucket, max_chunks;
    float           rsqrt_d;
};

/*
 * How a warp reads a step of tokens.  K, and V in fp16: LT lanes a token, E values
 * a lane.  V in int8: a lane has 4 dims of D / 32 quads of tokens.
 */
template <int D, bool INT8>
struct Step {
    static constexpr int  E = INT8 ? 16 : 8, LT = D / E, kPer = 32 / LT;
    static constexpr int  NI = 4 * kPer < kPage ? 4 : kPage / kPer, kTokens = NI * kPer;
    static constexpr int  kHalf = NI * 512;                /* bytes of K or V of a step */
    static constexpr int  kBytes = 2 * kHalf + (INT8 ? 64 : 0);
    static constexpr int  kOut = INT8 ? 4 : E;             /* outputs of a lane */
    static constexpr int  kFirst = INT8 ? D / 4 : LT;      /* lanes with outputs of their own */
};

constexpr float  kFix = 32767.f;  /* 16-bit fixed point of q and of weights */

template <int D, bool INT8>
struct alignas(16) Shared {
    uint8_t  ring[kWarps][kAhead][Step<D, INT8>::kBytes];
    alignas(16) float  q[2][D];             /* int8: bytes [2][D], high and low, then the scale */
    alignas(16) uint8_t  p[kWarps][2][kPage];             /* int8: weights of a page, high, low */
    float    o[kWarps][D];
    float    m[kWarps], l[kWarps];
    int      chunks[GLM_CUDA_MAX_ROWS + 1];   /* prefix sums over rows */
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
                copy16(dst + 2 * S::kHalf + lane * 16, scales_at<D, INT8>(a.kv, id, n.head) + lane * 8);
            stage = stage + 1 == kAhead ? 0 : stage + 1;
            t += kWarps * S::kTokens;
            if (t >= t1) enter(a, sh, n.u + gridDim.x);
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    }
};

/* What a lane of the first warp needs for q of a unit: pairs D/64 lane + e. */
template <int D>
struct Query {
    __half   x[D / 64], y[D / 64];
    __half2  c[D / 64];
};

template <int D>
__device__ __forceinline__ void fetch_q(const Attn &a, const Unit &n, Query<D> &q)
{
    if (n.u < 0 || threadIdx.x >= 32) return;
    const int       i = threadIdx.x * (D / 64);
    const __half   *p = a.qkv + ((size_t) n.row * a.kv.heads + n.head) * 3 * D + i;
    const __half2  *c = a.rope + (size_t) a.r.position[n.row] * (D / 2) + i;

#pragma unroll
    for (int e = 0; e < D / 64; e++) q.x[e] = p[e], q.y[e] = p[e + D / 2], q.c[e] = c[e];
}

/* Rotated, times 1 / sqrt(d); for int8 keys in fixed point of the largest. */
template <int D, bool INT8>
__device__ __forceinline__ void place_q(const Attn &a, const Query<D> &q, float *to)
{
    constexpr int  E = D / 64;
    const int      i = threadIdx.x * E;
    float          v[2 * E], top = 0.f;

    if (threadIdx.x >= 32) return;
#pragma unroll
    for (int e = 0; e < E; e++) {
        const float2  c = __half22float2(q.c[e]);
        const float   x = __half2float(q.x[e]), y = __half2float(q.y[e]);

        v[e] = fmaf(x, c.x, -(y * c.y)) * a.rsqrt_d;
        v[e + E] = fmaf(y, c.x, x * c.y) * a.rsqrt_d;
        top = fmaxf(top, fmaxf(fabsf(v[e]), fabsf(v[e + E])));
    }
    if (INT8) {
#pragma unroll
        for (int x = 16; x; x >>= 1) top = fmaxf(top, __shfl_xor_sync(~0u, top, x));
        if (threadIdx.x == 0) to[D - 1] = top / kFix;
    }
#pragma unroll
    for (int e = 0; e < 2 * E; e++) {
        const int  at = i + e % E + e / E * (D / 2);

        if (INT8) {
            const int  f = top > 0.f ? __float2int_rn(v[e] * (kFix / top)) : 0;

            ((uint8_t *) to)[at] = (uint8_t) (f >> 8), ((uint8_t *) to)[D + at] = (uint8_t) f;
        } else {
            to[at] = v[e];
        }
    }
}

__device__ __forceinline__ int dot4(uint32_t k, uint32_t high, int sum)
{
    return __dp4a((int) k, (int) high, sum);
}

__device__ __forceinline__ int dot4_low(uint32_t k, uint32_t low, int sum)
{
    int  r;

    asm("dp4a.s32.u32 %0, %1, %2, %3;" : "=r"(r) : "r"(k), "r"(low), "r"(sum));
    return r;
}

/* Sum of 16 int8 values times 16-bit values, exactly. */
__device__ __forceinline__ int dot16(uint4 k, uint4 high, uint4 low)
{
    const int  h = dot4(k.w, high.w, dot4(k.z, high.z, dot4(k.y, high.y, dot4(k.x, high.x, 0))));
    const int  l = dot4_low(k.x, low.x, 0), m = dot4_low(k.z, low.z, dot4_low(k.y, low.y, l));

    return h * 256 + dot4_low(k.w, low.w, m);
}

__device__ __forceinline__ void unpack8(uint4 q, float *f)
{
    const uint32_t  w[4] = {q.x, q.y, q.z, q.w};

#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2  p = half2_float2(w[i]);

        f[2 * i] = p.x, f[2 * i + 1] = p.y;
    }
}

/* What a warp has of a unit: the largest score, its weights' sum, outputs. */
template <int D, bool INT8>
struct State {
    float  m, l, o[Step<D, INT8>::kOut];
};

/* New largest score; what was summed fades. */
template <int D, bool INT8>
__device__ __forceinline__ void raise(State<D, INT8> &w, float top)
{
    using        S = Step<D, INT8>;

#pragma unroll
    for (int x = S::LT; x < 32; x <<= 1) top = fmaxf(top, __shfl_xor_sync(~0u, top, x));
    top = fmaxf(top, w.m);
    const float  fade = __expf(w.m - top);

    w.m = top;
    w.l *= fade;
#pragma unroll
    for (int e = 0; e < S::kOut; e++) w.o[e] *= fade;
}

/* One step, `left` tokens of it visible; k: its bytes in shared memory. */
template <int D>
__device__ __forceinline__ void step_fp16(const uint8_t *k, int left, const float *shq, State<D, false> &w)
{
    using          S = Step<D, false>;
    const int      lane = threadIdx.x % 32, c = lane % S::LT, tg = lane / S::LT;
    float          s[S::NI], q[S::E], top = -INFINITY;

#pragma unroll
    for (int e = 0; e < S::E; e += 4) *(float4 *) (q + e) = *(const float4 *) (shq + c * S::E + e);
#pragma unroll
    for (int i = 0; i < S::NI; i++) {
        float  f[S::E], p = 0.f;

        unpack8(*(const uint4 *) (k + i * 512 + lane * 16), f);
#pragma unroll
        for (int e = 0; e < S::E; e++) p = fmaf(q[e], f[e], p);
#pragma unroll
        for (int x = 1; x < S::LT; x <<= 1) p += __shfl_xor_sync(~0u, p, x);
        s[i] = i * S::kPer + tg < left ? p : -INFINITY;
        top = fmaxf(top, s[i]);
    }
    raise(w, top);
#pragma unroll
    for (int i = 0; i < S::NI; i++) {
        float        f[S::E];
        const float  p = __expf(s[i] - w.m);

        w.l += p;
        unpack8(*(const uint4 *) (k + S::kHalf + i * 512 + lane * 16), f);
#pragma unroll
        for (int e = 0; e < S::E; e++)      /* a token past the end may hold NaN */
            w.o[e] = p > 0.f ? fmaf(p, f[e], w.o[e]) : w.o[e];
    }
}

/* In integers: q and the weights of the step are fixed point, products exact. */
template <int D>
__device__ __forceinline__ void step_int8(const uint8_t *k, int left, const float *shq, uint8_t (*shp)[kPage],
                                          State<D, true> &w)
{
    using           S = Step<D, true>;
    const int       lane = threadIdx.x % 32, c = lane % S::LT, tg = lane / S::LT;
    const __half   *scales = (const __half *) (k + 2 * S::kHalf) + tg;
    const uint4     qh = ((const uint4 *) shq)[c], ql = ((const uint4 *) shq)[D / 16 + c];
    float           s[S::NI], p[S::NI], top = -INFINITY, most = 0.f;

#pragma unroll
    for (int i = 0; i < S::NI; i++) {
        int  d = dot16(*(const uint4 *) (k + i * 512 + lane * 16), qh, ql);

#pragma unroll
        for (int x = 1; x < S::LT; x <<= 1) d += __shfl_xor_sync(~0u, d, x);
        s[i] = i * S::kPer + tg < left
                   ? (float) d * (shq[D - 1] * __half2float(scales[i * S::kPer])) : -INFINITY;
        top = fmaxf(top, s[i]);
    }
    raise(w, top);
#pragma unroll
    for (int i = 0; i < S::NI; i++) {
        p[i] = __expf(s[i] - w.m);
        w.l += p[i];
        p[i] = p[i] > 0.f ? p[i] * __half2float(scales[kPage + i * S::kPer]) : 0.f;
        most = fmaxf(most, p[i]);
    }
#pragma unroll
    for (int x = S::LT; x < 32; x <<= 1) most = fmaxf(most, __shfl_xor_sync(~0u, most, x));
    const float  fix = most > 0.f ? kFix / most : 0.f, unfix = most / kFix;

#pragma unroll
    for (int i = 0; i < S::NI; i++) {
        const int  f = __float2int_rn(p[i] * fix);

        if (c == i) {
            shp[0][i * S::kPer + tg] = (uint8_t) (f >> 8);
            shp[1][i * S::kPer + tg] = (uint8_t) f;
        }
    }
    __syncwarp();
    int  high[4] = {}, low[4] = {};

#pragma unroll
    for (int i = 0; i < S::NI; i++) {
        const uint4     v = *(const uint4 *) (k + S::kHalf + i * 512 + lane * 16);
        const int       quad = (i * 32 + lane) / (D / 4);
        const uint32_t  ph = ((const uint32_t *) shp[0])[quad], pl = ((const uint32_t *) shp[1])[quad];

        high[0] = dot4(v.x, ph, high[0]), low[0] = dot4_low(v.x, pl, low[0]);
        high[1] = dot4(v.y, ph, high[1]), low[1] = dot4_low(v.y, pl, low[1]);
        high[2] = dot4(v.z, ph, high[2]), low[2] = dot4_low(v.z, pl, low[2]);
        high[3] = dot4(v.w, ph, high[3]), low[3] = dot4_low(v.w, pl, low[3]);
    }
#pragma unroll
    for (int e = 0; e < 4; e++) w.o[e] = fmaf(unfix, (float) (high[e] * 256 + low[e]), w.o[e]);
}

/* One warp's steps of a unit; leaves o, m, l in shared memory. */
template <int D, bool INT8>
__device__ __forceinline__ void warp_chunk(const Attn &a, const Unit &n, Copies<D, INT8> &copies,
                                           int &stage, const float *q, Shared<D, INT8> &sh)
{
    using            S = Step<D, INT8>;
    const int        warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int        t0 = n.chunk * kChunk, t1 = min(n.len, t0 + kChunk);
    State<D, INT8>   w = {-INFINITY, 0.f, {}};

    for (int t = t0 + warp * S::kTokens; t < t1; t += kWarps * S::kTokens) {
        asm volatile("cp.async.wait_group %0;" ::"n"(kAhead - 1) : "memory");
        __syncwarp();
        if constexpr (INT8) step_int8<D>(sh.ring[warp][stage], t1 - t, q, sh.p[warp], w);
        else step_fp16<D>(sh.ring[warp][stage], t1 - t, q, w);
        __syncwarp();
        copies.issue(a, sh);
        stage = stage + 1 == kAhead ? 0 : stage + 1;
    }
#pragma unroll
    for (int x = S::LT; x < 32; x <<= 1) w.l += __shfl_xor_sync(~0u, w.l, x);
#pragma unroll
    for (int x = S::kFirst; x < 32; x <<= 1) {
#pragma unroll
        for (int e = 0; e < S::kOut; e++) w.o[e] += __shfl_xor_sync(~0u, w.o[e], x);
    }
    if (lane < S::kFirst) {
#pragma unroll
        for (int e = 0; e < S::kOut; e++) sh.o[warp][lane * S::kOut + e] = w.o[e];
    }
    if (lane == 0) sh.m[warp] = w.m, sh.l[warp] = w.l;
}

template <int D>
__device__ __forceinline__ void put_out(const Attn &a, const Unit &n, int dim, float o)
{
    const int  i = n.head * D + dim;

    a.out[((size_t) (i / 8) * a.bucket + n.row) * 8 + i % 8] = __float2half_rn(o);
}

/* All chunks of a (row, head), by one warp. */
template <int D>
__device__ __forceinline__ void join_chunks(const Attn &a, const Unit &n, const float *p, int nchunks)
{
    float  m = -INFINITY, l = 0.f, o[D / 32] = {};

    for (int c = 0; c < nchunks; c++) m = fmaxf(m, __ldcg(p + c * (D + 4) + D));
    for (int c = 0; c < nchunks; c++) {
        const float  *q = p + c * (D + 4), f = __expf(__ldcg(q + D) - m);

        l = fmaf(__ldcg(q + D + 1), f, l);
#pragma unroll
        for (int e = 0; e < D / 32; e++) o[e] = fmaf(__ldcg(q + threadIdx.x % 32 + 32 * e), f, o[e]);
    }
#pragma unroll
    for (int e = 0; e < D / 32; e++) put_out<D>(a, n, threadIdx.x % 32 + 32 * e, o[e] / l);
}

/* Joins the warps.  A lone chunk is the result; else the warp that comes last of
 * all warps of all chunks joins the chunks. */
template <int D, bool INT8>
__device__ __forceinline__ void join(const Attn &a, const Unit &n, Shared<D, INT8> &sh)
{
    const int  i = threadIdx.x, nchunks = (n.len + kChunk - 1) / kChunk;
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
        if (i < D) put_out<D>(a, n, i, o / l);
        return;
    }
    const size_t  pair = (size_t) n.row * a.kv.heads + n.head;
    float        *p = a.partial + pair * a.max_chunks * (D + 4), *mine = p + n.chunk * (D + 4);
    int           last = 0;

    if (i < D) mine[i] = o;
    if (i == 0) mine[D] = m, mine[D + 1] = l;
    __syncwarp();
    if (i % 32 == 0) {
        __threadfence();
        last = atomicAdd(a.counters + pair, 1) == nchunks * kWarps - 1;
        __threadfence();
        if (last) a.counters[pair] = 0;
    }
    if (__shfl_sync(~0u, last, 0)) join_chunks<D>(a, n, p, nchunks);
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
    Query<D>  q = {};
    int       turn = 0;

    fetch_q<D>(a, n, q);
    place_q<D, INT8>(a, q, sh.q[0]);
    __syncthreads();
    while (n.u >= 0) {
        const Unit  next = unit_at(a, sh, n.u + gridDim.x);

        fetch_q<D>(a, next, q);
        warp_chunk<D, INT8>(a, n, copies, stage, sh.q[turn], sh);
        turn ^= 1;
        place_q<D, INT8>(a, q, sh.q[turn]);
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
    const size_t  counters = GLM_ATTN_COUNTERS(a->kv->heads);
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
    if (s == NULL || !attn_ok(a) || a->bucket > GLM_CUDA_MAX_ROWS || a->rows->ldpages < 1
        || a->out == NULL || a->ws == NULL || !aligned16(a->out) || !aligned16(a->ws))
    {
        return GLM_EINVAL;
    }
    if (a->kv->int8) return a->kv->d == 128 ? run<128, true>(a, s) : run<64, true>(a, s);
    return a->kv->d == 128 ? run<128, false>(a, s) : run<64, false>(a, s);
}
