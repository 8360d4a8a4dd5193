/*
 * attn_context: attention of a bidirectional context, every row over all its tokens,
 * by wgmma (sm_90) or mma.sync, which give the same bits.  A CTA takes 128 rows of a
 * head (sm_80: 64), a warp 16 of them, and walks the tokens in blocks of 64 with a
 * running maximum and sum in fp32.  A row's order of
 * arithmetic is that of the blocks, whatever rows are beside it.  Rotated q is in
 * shared memory (sm_80: in fragments) from the start; K and V pass through shared
 * memory, the next block under way while one is worked on; int8 becomes fp16 there.
 * An ideal run does 4 * rows * tokens * heads * d operations and reads q once, and K
 * and V of a head once a CTA, from L2 but for the first.
 */
#include "attn.cuh"
#include "mma.cuh"
#include "tiles.cuh"
#if GLM_ARCH == 90
#include "wgmma.cuh"
#endif

namespace {

constexpr int    kWarps = GLM_ARCH == 90 ? 8 : 4, kCtas = GLM_ARCH == 90 ? 2 : 3;
constexpr int    kThreads = kWarps * 32, kRows = kWarps * 16, kTokens = 64;
constexpr int    kPages = kTokens / kPage;
constexpr float  kLog2e = 1.4426950408889634f;

struct Context {
    Kv              kv;
    const int32_t  *pages, *position;
    const __half   *qkv;
    const __half2  *rope;
    __half         *out;
    int             tokens, first, rows;
    float           rsqrt_d;
};

/*
 * Shared memory: fp16 K and V [64][D], two blocks in turn, or one and the next as the
 * int8 pages have it, scales behind; q (sm_90).
 */
template <int D, bool INT8>
struct Room {
    static constexpr int  kHalf = kTokens * D * 2;                   /* K or V in fp16 */
    static constexpr int  kRaw = INT8 ? kPages * (Head<D, INT8>::kBytes + 64) : 0;        /* K and V in int8 */
    static constexpr int  kQ = (INT8 ? 2 : 4) * kHalf, kRawAt = kQ + (GLM_ARCH == 90 ? kRows * D * 2 : 0);
    static constexpr int  kBytes = kRawAt + kRaw;
};

/* Byte of 16-byte piece c of a token in K or V, of a row in q: 64 dimensions of all
 * tokens, then the next 64; eight tokens on eight banks.  wgmma calls it the swizzle of
 * 128 bytes. */
constexpr int  kLine = 128;

template <int TOKENS = kTokens>
__device__ __forceinline__ int place(int token, int c)
{
    return (c / 8 * TOKENS + token) * kLine + (c % 8 ^ token % 8) * 16;
}

/* bytes 16, or 0: zeros. */
__device__ __forceinline__ void copy16_or_zero(uint32_t dst, const void *src, int bytes)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ float exp2_fast(float x)
{
    float  r;

    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}

/* Pages of a block; past the context's end its last one. */
__device__ __forceinline__ void page_ids(const Context &c, int block, int (&id)[kPages])
{
#pragma unroll
    for (int i = 0; i < kPages; i++)
        id[i] = c.pages[min(block * kPages + i, (c.tokens - 1) / kPage)];
}

/* Starts the copies of a block to `to`; tokens past the end are zeros in fp16. */
template <int D, bool INT8>
__device__ __forceinline__ void issue(const Context &c, int head, int block, const int (&id)[kPages],
                                      uint32_t to)
{
    using           H = Head<D, INT8>;
    constexpr int   kPieces = H::kToken / 16;        /* of a token's K */

#pragma unroll
    for (int p = 0; p < kPages; p++) {
        const uint8_t  *from = head_at<D, INT8>(c.kv, id[p], head);

#pragma unroll
        for (int i = threadIdx.x; i < 2 * kPage * kPieces; i += kThreads) {
            if (INT8) {
                copy16(to + p * H::kBytes + i * 16, from + i * 16);
                continue;
            }
            const int  v = i / (kPage * kPieces), t = p * kPage + i / kPieces % kPage;

            copy16_or_zero(to + v * Room<D, INT8>::kHalf + place<>(t, i % kPieces), from + i * 16,
                           block * kTokens + t < c.tokens ? 16 : 0);
        }
        if (INT8 && threadIdx.x < 4)
            copy16(to + kPages * H::kBytes + p * 64 + threadIdx.x * 16,
                   scales_at<D, INT8>(c.kv, id[p], head) + threadIdx.x * 8);
    }
}

/* Scale of a token of a block, twice; 0 past the context's end.  127 of a larger one than
 * 515.5 would be infinite: such a key, with an element past 65468, is made smaller as
 * a whole. */
template <int D>
__device__ __forceinline__ __half2 scale_at(const uint8_t *raw, int v, int token, int left)
{
    const __half  *s = (const __half *) (raw + kPages * Head<D, true>::kBytes + token / kPage * 64)
                       + v * kPage + token % kPage;

    return __half2half2(token < left ? __hmin_nan(*s, __float2half(515.5f)) : __float2half(0.f));
}

/* Four int8 as bytes + 128, times their scale: by two, rounded. */
__device__ __forceinline__ void scaled(uint32_t w, __half2 low, __half2 high, uint32_t &l, uint32_t &h)
{
    const uint32_t  a = byte_pair(w, 0x4140), b = byte_pair(w, 0x4342);
    const __half2   x = __hmul2(*(const __half2 *) &a, low), y = __hmul2(*(const __half2 *) &b, high);

    l = *(const uint32_t *) &x, h = *(const uint32_t *) &y;
}

/* A block of int8 pages to fp16 K and V; `left` tokens of it are of the context. */
template <int D>
__device__ __forceinline__ void convert(const uint8_t *raw, uint8_t *to, int left)
{
    using  H = Head<D, true>;

#pragma unroll
    for (int i = threadIdx.x; i < kTokens * D / 16; i += kThreads) {
        const int       t = i / (D / 16), c = i % (D / 16);
        const uint4     q = *(const uint4 *) (raw + t / kPage * H::kBytes + t % kPage * D + c * 16);
        const __half2   s = scale_at<D>(raw, 0, t, left);
        const uint32_t  w[4] = {q.x, q.y, q.z, q.w};
        uint32_t        h[8];

#pragma unroll
        for (int e = 0; e < 4; e++) scaled(w[e] ^ 0x80808080, s, s, h[2 * e], h[2 * e + 1]);
        *(uint4 *) (to + place<>(t, 2 * c)) = make_uint4(h[0], h[1], h[2], h[3]);
        *(uint4 *) (to + place<>(t, 2 * c + 1)) = make_uint4(h[4], h[5], h[6], h[7]);
    }
    /* V: words of four tokens of a dimension; eight of them are a piece of each token. */
#pragma unroll
    for (int i = threadIdx.x; i < kTokens / 4 * (D / 8); i += kThreads) {
        const int       quad = i / (D / 8), c = i % (D / 8);
        const uint8_t  *v = raw + quad / 4 * H::kBytes + kPage * D + (quad % 4 * D + c * 8) * 4;
        const uint4     a = *(const uint4 *) v, b = *(const uint4 *) (v + 16);
        const uint32_t  w[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};

#pragma unroll
        for (int t = 0; t < 4; t += 2) {
            const __half2  s0 = scale_at<D>(raw, 1, quad * 4 + t, left);
            const __half2  s1 = scale_at<D>(raw, 1, quad * 4 + t + 1, left);
            uint32_t       h[2][4];

#pragma unroll
            for (int e = 0; e < 4; e++)       /* two dimensions of token t, then of t + 1 */
                scaled(__byte_perm(w[2 * e], w[2 * e + 1], t ? 0x7362 : 0x5140) ^ 0x80808080, s0, s1,
                       h[0][e], h[1][e]);
#pragma unroll
            for (int k = 0; k < 2; k++)
                *(uint4 *) (to + Room<D, true>::kHalf + place<>(quad * 4 + t + k, c)) =
                    make_uint4(h[k][0], h[k][1], h[k][2], h[k][3]);
        }
    }
}

/* A fragments of this warp's rows: rotated, / sqrt(d), rounded.  Dimensions i and
 * i + d / 2 are in the same lane. */
template <int D>
__device__ __forceinline__ void fetch_q(const Context &c, int head, int row0, uint32_t (&q)[D / 16][4])
{
    const int  g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;

#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int       row = min(row0 + g + h * 8, c.first + c.rows - 1);       /* past the end: any */
        const __half   *p = c.qkv + ((size_t) row * c.kv.heads + head) * 3 * D;
        const __half2  *rope = c.rope + (size_t) c.position[row] * (D / 2);

#pragma unroll
        for (int kk = 0; kk < D / 32; kk++) {
#pragma unroll
            for (int k8 = 0; k8 < 2; k8++) {
                const int     i = kk * 16 + k8 * 8 + t * 2;
                const float2  x = __half22float2(*(const __half2 *) (p + i));
                const float2  y = __half22float2(*(const __half2 *) (p + i + D / 2));
                const float2  c0 = __half22float2(rope[i]), c1 = __half22float2(rope[i + 1]);

                q[kk][k8 * 2 + h] = float2_half2(fmaf(x.x, c0.x, -(y.x * c0.y)) * c.rsqrt_d,
                                                 fmaf(x.y, c1.x, -(y.y * c1.y)) * c.rsqrt_d);
                q[kk + D / 32][k8 * 2 + h] = float2_half2(fmaf(y.x, c0.x, x.x * c0.y) * c.rsqrt_d,
                                                          fmaf(y.y, c1.x, x.y * c1.y) * c.rsqrt_d);
            }
        }
    }
}

/* What a warp has of its rows: lane 4 g + t has rows g and g + 8. */
template <int D>
struct State {
    float  m[2], l[2], o[D / 8][4];
};

#if GLM_ARCH == 90

/* What threads wrote to shared memory is read by wgmma: before the barrier in between. */
__device__ __forceinline__ void fence_writes()
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* Descriptors: eight tokens are 1024 bytes apart; the next 64 dimensions of V all tokens. */
constexpr uint32_t  kHigh = (8 * kLine >> 4) | 1u << 30, kLow = (uint32_t) (kTokens * kLine >> 4) << 16;

/* Rows of a warp to q's place in shared memory. */
template <int D>
__device__ __forceinline__ void put_q(uint8_t *to, const uint32_t (&q)[D / 16][4])
{
    const int  lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4;

#pragma unroll
    for (int i = 0; i < D / 4; i++)           /* fragment kk, i % 4: rows + 8, inputs + 8 */
        *(uint32_t *) (to + place<kRows>(row + i % 2 * 8, i / 4 * 2 + i % 4 / 2) + lane % 4 * 4) =
            q[i / 4][i % 4];
}

/* Scores of a block; q, k: where it and its K are in shared memory. */
template <int D>
__device__ __forceinline__ void scores(uint32_t q, uint32_t k, float (&s)[kTokens / 8][4])
{
    q += threadIdx.x / 128 * 64 * kLine;
    wgmma_fence();
#pragma unroll
    for (int kk = 0; kk < D / 16; kk++) {
        const uint32_t  a = (q + kk / 4 * kRows * kLine + kk % 4 * 32) >> 4;
        const uint32_t  b = (k + kk / 4 * kTokens * kLine + kk % 4 * 32) >> 4;

        if (kk == 0) wgmma_shared<kTokens, kZero>(&s[0][0], a, b, kHigh);
        else wgmma_shared<kTokens, kAdd>(&s[0][0], a, b, kHigh);
    }
    wgmma_commit();
    wgmma_wait<kTokens / 2>(&s[0][0]);
}

#else

__device__ __forceinline__ void fence_writes() {}

/* Scores of a block; k: where its K is in shared memory. */
template <int D>
__device__ __forceinline__ void scores(uint32_t k, const uint32_t (&q)[D / 16][4],
                                       float (&s)[kTokens / 8][4])
{
    const int  lane = threadIdx.x % 32, token = lane / 16 * 8 + lane % 8, c = lane / 8 % 2;

#pragma unroll
    for (int i = 0; i < kTokens / 8; i++) s[i][0] = s[i][1] = s[i][2] = s[i][3] = 0.f;
#pragma unroll
    for (int kk = 0; kk < D / 16; kk++) {
#pragma unroll
        for (int j = 0; j < kTokens / 16; j++) {
            uint32_t  b[4];

            ldmatrix(b, k + place<>(j * 16 + token, kk * 2 + c));
            mma(s[2 * j], q[kk], b[0], b[1]);
            mma(s[2 * j + 1], q[kk], b[2], b[3]);
        }
    }
}

#endif

/* Scores to weights, and the new maximum; what was summed fades. */
template <int D>
__device__ __forceinline__ void weigh(State<D> &w, float (&s)[kTokens / 8][4], int left)
{
    const int  t = threadIdx.x % 4;

    if (left < kTokens) {
#pragma unroll
        for (int i = 0; i < kTokens / 8; i++) {
#pragma unroll
            for (int e = 0; e < 4; e++) s[i][e] = i * 8 + t * 2 + e % 2 < left ? s[i][e] : -INFINITY;
        }
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float  top = w.m[h];

#pragma unroll
        for (int i = 0; i < kTokens / 8; i++) top = fmaxf(top, fmaxf(s[i][2 * h], s[i][2 * h + 1]));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
        const float  fade = exp2_fast((w.m[h] - top) * kLog2e), base = top * kLog2e;

        w.m[h] = top;
        w.l[h] *= fade;
#pragma unroll
        for (int i = 0; i < D / 8; i++) w.o[i][2 * h] *= fade, w.o[i][2 * h + 1] *= fade;
#pragma unroll
        for (int i = 0; i < kTokens / 8; i++) {
#pragma unroll
            for (int e = 2 * h; e < 2 * h + 2; e++) {
                s[i][e] = exp2_fast(fmaf(s[i][e], kLog2e, -base));
                w.l[h] += s[i][e];
            }
        }
    }
}

/* Weights of 16 tokens, as the A fragment of the next product. */
__device__ __forceinline__ void weights_of(const float (&s)[kTokens / 8][4], int j, uint32_t (&p)[4])
{
    const float  *x = s[2 * j], *y = s[2 * j + 1];

    p[0] = float2_half2(x[0], x[1]), p[1] = float2_half2(x[2], x[3]);
    p[2] = float2_half2(y[0], y[1]), p[3] = float2_half2(y[2], y[3]);
}

/* o += weights V; v: where V is in shared memory. */
#if GLM_ARCH == 90

template <int D>
__device__ __forceinline__ void add_values(State<D> &w, uint32_t v, const float (&s)[kTokens / 8][4])
{
    uint32_t  p[kTokens / 16][4];

#pragma unroll
    for (int j = 0; j < kTokens / 16; j++) weights_of(s, j, p[j]);
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < kTokens / 16; j++)
        wgmma_across<D>(&w.o[0][0], p[j], ((v + j * 16 * kLine) >> 4) + kLow, kHigh);
    wgmma_commit();
    wgmma_wait<D / 2>(&w.o[0][0]);
}

#else

template <int D>
__device__ __forceinline__ void add_values(State<D> &w, uint32_t v, const float (&s)[kTokens / 8][4])
{
    const int  lane = threadIdx.x % 32, token = lane / 8 % 2 * 8 + lane % 8, c = lane / 16;

#pragma unroll
    for (int j = 0; j < kTokens / 16; j++) {
        uint32_t  p[4];

        weights_of(s, j, p);
#pragma unroll
        for (int i = 0; i < D / 16; i++) {
            uint32_t  b[4];

            ldmatrix_t(b, v + place<>(j * 16 + token, i * 2 + c));
            mma(w.o[2 * i], p, b[0], b[1]);
            mma(w.o[2 * i + 1], p, b[2], b[3]);
        }
    }
}

#endif

template <int D>
__device__ __forceinline__ void put_out(const Context &c, int head, int row0, State<D> &w)
{
    const int  g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;

#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int  row = row0 + g + h * 8;
        float      l = w.l[h];

        l += __shfl_xor_sync(~0u, l, 1);
        l += __shfl_xor_sync(~0u, l, 2);
        if (row >= c.first + c.rows) continue;
#pragma unroll
        for (int i = 0; i < D / 8; i++) {
            const size_t  at = piece_at(c.kv.heads * D / 8, head * (D / 8) + i, row, GLM_CUDA_PREFILL_ROWS);

            *(uint32_t *) (c.out + at * 8 + t * 2) = float2_half2(w.o[i][2 * h] / l, w.o[i][2 * h + 1] / l);
        }
    }
}

template <int D, bool INT8>
__global__ void __launch_bounds__(kThreads, kCtas) attn_context_kernel(const Context c)
{
    using           R = Room<D, INT8>;
    extern __shared__ __align__(1024) uint8_t smem[];
    const int       head = blockIdx.y, blocks = (c.tokens + kTokens - 1) / kTokens;
    const int       row0 = c.first + blockIdx.x * kRows + threadIdx.x / 32 * 16;
    const uint32_t  ring = smem_addr(smem);
    int             id[kPages];
    uint32_t        q[D / 16][4];
    State<D>        w = {{-INFINITY, -INFINITY}, {0.f, 0.f}, {}};

    grid_go();
    page_ids(c, 0, id);               /* tables do not change within a context */
    grid_wait();
    issue<D, INT8>(c, head, 0, id, ring + (INT8 ? R::kRawAt : 0));
    asm volatile("cp.async.commit_group;" ::: "memory");
    page_ids(c, 1, id);
    fetch_q<D>(c, head, row0, q);
#if GLM_ARCH == 90
    put_q<D>(smem + R::kQ, q);
    fence_writes();
#endif
    for (int b = 0; b < blocks; b++) {
        const int       left = c.tokens - b * kTokens;
        const uint32_t  k = ring + (INT8 ? 0 : b % 2 * 2 * R::kHalf);
        float           s[kTokens / 8][4];

        asm volatile("cp.async.wait_group 0;" ::: "memory");
        if (!INT8) fence_writes();
        __syncthreads();              /* and all are done with the block before */
        if constexpr (INT8) {
            convert<D>(smem + R::kRawAt, smem, left);
            fence_writes();
            __syncthreads();
        }
        if (b + 1 < blocks)
            issue<D, INT8>(c, head, b + 1, id, ring + (INT8 ? R::kRawAt : (b + 1) % 2 * 2 * R::kHalf));
        asm volatile("cp.async.commit_group;" ::: "memory");
        page_ids(c, b + 2, id);
#if GLM_ARCH == 90
        scores<D>(ring + R::kQ, k, s);
#else
        scores<D>(k, q, s);
#endif
        weigh<D>(w, s, left);
        add_values<D>(w, k + R::kHalf, s);
    }
    put_out<D>(c, head, row0, w);
}

template <int D, bool INT8>
int run(const glm_context_args_t *a, glm_stream_t *s)
{
    const Context  c = {{(uint8_t *) a->kv->base, a->kv->page_bytes, a->kv->heads},
                        a->pages, a->position, (const __half *) a->qkv, (const __half2 *) a->rope,
                        (__half *) a->out, a->tokens, a->first, a->rows, 1.f / sqrtf((float) D)};

    return launch("attn_context", attn_context_kernel<D, INT8>,
                  dim3((a->rows + kRows - 1) / kRows, a->kv->heads), kThreads, Room<D, INT8>::kBytes, 1,
                  s, c);
}

}  // namespace

int GLM_OP(attn_context)(const glm_context_args_t *a, glm_stream_t *s)
{
    if (a == NULL || s == NULL || !kv_ok(a->kv) || a->pages == NULL || a->position == NULL
        || a->qkv == NULL || a->rope == NULL || a->out == NULL || !aligned16(a->qkv)
        || !aligned16(a->rope) || !aligned16(a->out) || a->first < 0 || a->rows < 1
        || a->tokens < a->first + a->rows)
    {
        return GLM_EINVAL;
    }
    if (a->kv->int8) return a->kv->d == 128 ? run<128, true>(a, s) : run<64, true>(a, s);
    return a->kv->d == 128 ? run<128, false>(a, s) : run<64, false>(a, s);
}
