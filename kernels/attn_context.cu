/*
 * attn_context: attention of a bidirectional context, every row over all its tokens,
 * by wgmma (sm_90) or mma.sync, which give the same bits.  A CTA takes 128 rows of a
 * head (sm_80: 64), a warp 16 of them, and walks the tokens in blocks of 64 with a
 * running maximum and sum in fp32.  A row's order of
 * arithmetic is that of the blocks, whatever rows are beside it.  Rotated q is in
 * shared memory (sm_80: in fragments) from the start; K and V, which kv_write left beside
 * it, pass through shared memory, the next block under way while one is worked on.
 * An ideal run does 4 * rows * tokens * heads * d operations and reads q once, and K
 * and V of a head once a CTA, from L2 but for the first.
 */
#include "cuda_common.cuh"
#include "mma.cuh"
#if GLM_ARCH == 90
#include "wgmma.cuh"
#endif

namespace {

constexpr int    kWarps = GLM_ARCH == 90 ? 8 : 4, kCtas = GLM_ARCH == 90 ? 2 : 3;
constexpr int    kThreads = kWarps * 32, kRows = kWarps * 16, kTokens = 64;
constexpr float  kLog2e = 1.4426950408889634f;

struct Context {
    const int32_t  *position;
    const __half   *qkv;
    const __half2  *rope;
    __half         *out;
    int             heads, tokens, first, rows;
    float           rsqrt_d;
};

/* Shared memory: fp16 K and V [64][D], two blocks in turn; q (sm_90). */
template <int D>
struct Room {
    static constexpr int  kHalf = kTokens * D * 2;                   /* K or V */
    static constexpr int  kQ = 4 * kHalf, kBytes = kQ + (GLM_ARCH == 90 ? kRows * D * 2 : 0);
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

/* Starts the copies of a block to `to`; tokens past the end are zeros. */
template <int D>
__device__ __forceinline__ void issue(const Context &c, int head, int block, uint32_t to)
{
    constexpr int  kPieces = D / 4, kStep = kThreads / kPieces;       /* of a token's K, and its V behind */
    const int      piece = threadIdx.x % kPieces, half = piece / (D / 8);
    int            token = block * kTokens + threadIdx.x / kPieces;
    const __half  *from = c.qkv + ((size_t) token * c.heads + head) * 3 * D + D + piece * 8;

    to += half * Room<D>::kHalf;
#pragma unroll
    for (int t = threadIdx.x / kPieces; t < kTokens; t += kStep, token += kStep) {
        const bool  in = token < c.tokens;

        copy16_or_zero(to + place<>(t, piece % (D / 8)), in ? from : c.qkv, in ? 16 : 0);
        from += (size_t) kStep * c.heads * 3 * D;
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
        const __half   *p = c.qkv + ((size_t) row * c.heads + head) * 3 * D;
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
            const size_t  at = piece_at(c.heads * D / 8, head * (D / 8) + i, row, GLM_CUDA_PREFILL_ROWS);

            *(uint32_t *) (c.out + at * 8 + t * 2) = float2_half2(w.o[i][2 * h] / l, w.o[i][2 * h + 1] / l);
        }
    }
}

template <int D>
__global__ void __launch_bounds__(kThreads, kCtas) attn_context_kernel(const Context c)
{
    using           R = Room<D>;
    extern __shared__ __align__(1024) uint8_t smem[];
    const int       head = blockIdx.y, blocks = (c.tokens + kTokens - 1) / kTokens;
    const int       row0 = c.first + blockIdx.x * kRows + threadIdx.x / 32 * 16;
    const uint32_t  ring = smem_addr(smem);
    uint32_t        q[D / 16][4];
    State<D>        w = {{-INFINITY, -INFINITY}, {0.f, 0.f}, {}};

    grid_go();
    grid_wait();
    issue<D>(c, head, 0, ring);
    asm volatile("cp.async.commit_group;" ::: "memory");
    fetch_q<D>(c, head, row0, q);
#if GLM_ARCH == 90
    put_q<D>(smem + R::kQ, q);
#endif
    for (int b = 0; b < blocks; b++) {
        const uint32_t  k = ring + b % 2 * 2 * R::kHalf;
        float           s[kTokens / 8][4];

        asm volatile("cp.async.wait_group 0;" ::: "memory");
        fence_writes();
        __syncthreads();              /* and all are done with the block before */
        if (b + 1 < blocks) issue<D>(c, head, b + 1, ring + (b + 1) % 2 * 2 * R::kHalf);
        asm volatile("cp.async.commit_group;" ::: "memory");
#if GLM_ARCH == 90
        scores<D>(ring + R::kQ, k, s);
#else
        scores<D>(k, q, s);
#endif
        weigh<D>(w, s, c.tokens - b * kTokens);
        add_values<D>(w, k + R::kHalf, s);
    }
    put_out<D>(c, head, row0, w);
}

template <int D>
int run(const glm_context_args_t *a, glm_stream_t *s)
{
    const Context  c = {a->position, (const __half *) a->qkv, (const __half2 *) a->rope, (__half *) a->out,
                        a->heads, a->tokens, a->first, a->rows, 1.f / sqrtf((float) D)};

    return launch("attn_context", attn_context_kernel<D>, dim3((a->rows + kRows - 1) / kRows, a->heads), kThreads,
                  Room<D>::kBytes, 1, s, c);
}

}  // namespace

int GLM_OP(attn_context)(const glm_context_args_t *a, glm_stream_t *s)
{
    if (a == NULL || s == NULL || (a->d != 64 && a->d != 128) || a->heads < 1 || a->position == NULL
        || a->qkv == NULL || a->rope == NULL || a->out == NULL || !aligned16(a->qkv)
        || !aligned16(a->rope) || !aligned16(a->out) || a->first < 0 || a->rows < 1
        || a->tokens < a->first + a->rows)
    {
        return GLM_EINVAL;
    }
    return a->d == 128 ? run<128>(a, s) : run<64>(a, s);
}
