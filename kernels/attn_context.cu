/*
 * attn_context: attention of a bidirectional context, every row over all its tokens,
 * by wgmma (sm_90) or mma.sync, which give the same bits.  A tile is 192 rows of a
 * head (sm_80: 64), a warp has 16 of them, and walks the tokens in blocks of 64 with a
 * running maximum and sum in fp32.  A row's order of
 * arithmetic is that of the blocks, whatever rows are beside it.  Rotated q is in
 * shared memory (sm_80: in fragments) from the start; K and V, which kv_write left beside
 * it, pass through shared memory.  On sm_90 one thread copies them, ahead of three warpgroups
 * that wait for blocks, not for each other: one's weights are worked out beside others' products.
 * An ideal run does 4 * rows * tokens * heads * d operations and reads q once, and K
 * and V of a head once a tile, from L2 but for the first.
 */
#include "cuda_common.cuh"
#include "mma.cuh"
#if GLM_ARCH == 90
#include "cluster.cuh"
#include "tensor.cuh"
#include "wgmma.cuh"
#endif

namespace {

constexpr int    kWarps = GLM_ARCH == 90 ? 12 : 4, kStages = GLM_ARCH == 90 ? 4 : 2;
constexpr int    kThreads = kWarps * 32 + (GLM_ARCH == 90 ? 128 : 0), kRows = kWarps * 16, kTokens = 64;
constexpr float  kLog2e = 1.4426950408889634f;

/* A row's maximum is left as it is until a score is more than this above.  Weights are 256 at most
 * then: fp16 rounds them as it does those below 1, the sums are fp32. */
constexpr float  kSlack = 8.f / kLog2e;

struct Context {
    const int32_t  *position;
    const __half   *qkv;
    const __half2  *rope;
    __half         *out;
    int             heads, tokens, first, rows;
    float           rsqrt_d;
};

/* Shared memory: fp16 K and V [64][D], blocks in turn; on sm_90 q of each warpgroup [64][D], and
 * barriers. */
template <int D>
struct Room {
    static constexpr int  kHalf = kTokens * D * 2, kBlock = 2 * kHalf;      /* K or V; both */
    static constexpr int  kQ = kStages * kBlock, kBars = kQ + kRows * D * 2;
    static constexpr int  kBytes = GLM_ARCH == 90 ? kBars + kStages * 16 : kQ;
};

/* Byte of 16-byte piece c of a token in K or V, of a row in q: 64 dimensions of all 64
 * tokens, then the next; eight tokens on eight banks.  wgmma calls it the swizzle of
 * 128 bytes. */
constexpr int  kLine = 128;

__device__ __forceinline__ int place(int token, int c)
{
    return (c / 8 * kTokens + token) * kLine + (c % 8 ^ token % 8) * 16;
}

__device__ __forceinline__ float exp2_fast(float x)
{
    float  r;

    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}

/* A row of q, and of the rotary table; rows past the end: any. */
template <int D>
__device__ __forceinline__ const __half *q_row(const Context &c, int head, int row, const __half2 *&rope)
{
    row = min(row, c.first + c.rows - 1);
    rope = c.rope + (size_t) c.position[row] * (D / 2);
    return c.qkv + ((size_t) row * c.heads + head) * 3 * D;
}

/* Dimensions i, i + 1 in x and i + d / 2, i + 1 + d / 2 in y: rotated, / sqrt(d), rounded. */
__device__ __forceinline__ void rotate(const Context &c, const __half2 *rope, uint32_t &x, uint32_t &y)
{
    const float2  a = half2_float2(x), b = half2_float2(y);
    const float2  r0 = rotated(a.x, b.x, rope[0]), r1 = rotated(a.y, b.y, rope[1]);

    x = float2_half2(r0.x * c.rsqrt_d, r1.x * c.rsqrt_d);
    y = float2_half2(r0.y * c.rsqrt_d, r1.y * c.rsqrt_d);
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

/* A warpgroup's 64 rows of q, from row0 on, to shared memory. */
template <int D>
__device__ __forceinline__ void put_q(const Context &c, int head, int row0, uint8_t *to)
{
    constexpr int  kPieces = D / 16;

#pragma unroll
    for (int i = 0; i < 64 * kPieces / 128; i++) {
        const int       at = i * 128 + threadIdx.x % 128, row = at / kPieces, piece = at % kPieces;
        const __half2  *rope;
        const __half   *q = q_row<D>(c, head, row0 + row, rope) + piece * 8;

        alignas(16) __half2   turn[8];
        alignas(16) uint32_t  x[4], y[4];

        *(uint4 *) x = *(const uint4 *) q, *(uint4 *) y = *(const uint4 *) (q + D / 2);
        *(uint4 *) turn = *(const uint4 *) (rope + piece * 8);
        *(uint4 *) (turn + 4) = *(const uint4 *) (rope + piece * 8 + 4);
#pragma unroll
        for (int j = 0; j < 4; j++) rotate(c, turn + 2 * j, x[j], y[j]);
        *(uint4 *) (to + place(row, piece)) = *(const uint4 *) x;
        *(uint4 *) (to + place(row, piece + kPieces)) = *(const uint4 *) y;
    }
}

/* Starts the scores of a block; q, k: where a warpgroup's and its K are in shared memory. */
template <int D>
__device__ __forceinline__ void start_scores(uint32_t q, uint32_t k, float (&s)[kTokens / 8][4])
{
    wgmma_fence();
#pragma unroll
    for (int kk = 0; kk < D / 16; kk++) {
        const uint32_t  a = (q + kk / 4 * kTokens * kLine + kk % 4 * 32) >> 4;
        const uint32_t  b = (k + kk / 4 * kTokens * kLine + kk % 4 * 32) >> 4;

        if (kk == 0) wgmma_shared<kTokens, kZero>(&s[0][0], a, b, kHigh);
        else wgmma_shared<kTokens, kAdd>(&s[0][0], a, b, kHigh);
    }
    wgmma_commit();
}

#else

/* bytes 16, or 0: zeros. */
__device__ __forceinline__ void copy16_or_zero(uint32_t dst, const void *src, int bytes)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(bytes)
                 : "memory");
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

        copy16_or_zero(to + place(t, piece % (D / 8)), in ? from : c.qkv, in ? 16 : 0);
        from += (size_t) kStep * c.heads * 3 * D;
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* A fragments of this warp's rows.  Dimensions i and i + d / 2 are in the same lane. */
template <int D>
__device__ __forceinline__ void fetch_q(const Context &c, int head, int row0, uint32_t (&q)[D / 16][4])
{
    const int  g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;

#pragma unroll
    for (int h = 0; h < 2; h++) {
        const __half2  *rope;
        const __half   *p = q_row<D>(c, head, row0 + g + h * 8, rope);

#pragma unroll
        for (int kk = 0; kk < D / 32; kk++) {
#pragma unroll
            for (int k8 = 0; k8 < 2; k8++) {
                const int  i = kk * 16 + k8 * 8 + t * 2;
                uint32_t  &x = q[kk][k8 * 2 + h], &y = q[kk + D / 32][k8 * 2 + h];

                x = *(const uint32_t *) (p + i), y = *(const uint32_t *) (p + i + D / 2);
                rotate(c, rope + i, x, y);
            }
        }
    }
}

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

            ldmatrix(b, k + place(j * 16 + token, kk * 2 + c));
            mma(s[2 * j], q[kk], b[0], b[1]);
            mma(s[2 * j + 1], q[kk], b[2], b[3]);
        }
    }
}

#endif

/* What was summed fades where a row's maximum moved: a factor of 1 changes no bit of a row beside. */
template <int D>
__device__ __forceinline__ void fade(State<D> &w, const float (&x)[2])
{
    if (!__any_sync(~0u, x[0] != 1.f || x[1] != 1.f)) return;
#pragma unroll
    for (int h = 0; h < 2; h++) {
#pragma unroll
        for (int i = 0; i < D / 8; i++) w.o[i][2 * h] *= x[h], w.o[i][2 * h + 1] *= x[h];
    }
}

/* Scores to weights; x: by what w.o is to fade.  A row's maximum moves for scores far above it. */
template <int D>
__device__ __forceinline__ void weigh(State<D> &w, float (&s)[kTokens / 8][4], int left, float (&x)[2])
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
        float  top = fmaxf(s[0][2 * h], s[0][2 * h + 1]);

#pragma unroll
        for (int i = 1; i < kTokens / 8; i++) top = fmaxf(top, fmaxf(s[i][2 * h], s[i][2 * h + 1]));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
        const bool  moves = top - w.m[h] > kSlack;

        x[h] = moves ? exp2_fast((w.m[h] - top) * kLog2e) : 1.f;
        if (moves) w.m[h] = top;
        w.l[h] *= x[h];
        const float  base = w.m[h] * kLog2e;

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

/* Weights, 16 tokens each, as A fragments of the next product. */
__device__ __forceinline__ void round_weights(const float (&s)[kTokens / 8][4], uint32_t (&p)[kTokens / 16][4])
{
#pragma unroll
    for (int i = 0; i < kTokens / 4; i++)
        p[i / 4][i % 4] = float2_half2(s[i / 2][i % 2 * 2], s[i / 2][i % 2 * 2 + 1]);
}

/* o += weights V, started (sm_90) or done; v: where V is in shared memory. */
#if GLM_ARCH == 90

template <int D>
__device__ __forceinline__ void start_values(State<D> &w, uint32_t v, const uint32_t (&p)[kTokens / 16][4])
{
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < kTokens / 16; j++)
        wgmma_across<D>(&w.o[0][0], p[j], ((v + j * 16 * kLine) >> 4) + kLow, kHigh);
    wgmma_commit();
}

#else

template <int D>
__device__ __forceinline__ void add_values(State<D> &w, uint32_t v, const uint32_t (&p)[kTokens / 16][4])
{
    const int  lane = threadIdx.x % 32, token = lane / 8 % 2 * 8 + lane % 8, c = lane / 16;

#pragma unroll
    for (int j = 0; j < kTokens / 16; j++) {
#pragma unroll
        for (int i = 0; i < D / 16; i++) {
            uint32_t  b[4];

            ldmatrix_t(b, v + place(j * 16 + token, i * 2 + c));
            mma(w.o[2 * i], p[j], b[0], b[1]);
            mma(w.o[2 * i + 1], p[j], b[2], b[3]);
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
        l = 1.f / l;
#pragma unroll
        for (int i = 0; i < D / 8; i++) {
            const size_t  at = piece_at(c.heads * D / 8, head * (D / 8) + i, row, GLM_CUDA_PREFILL_ROWS);

            *(uint32_t *) (c.out + at * 8 + t * 2) = float2_half2(w.o[i][2 * h] * l, w.o[i][2 * h + 1] * l);
        }
    }
}

#if GLM_ARCH == 90

/* A tile: rows of a head, those of a context next to each other. */
struct Tile {
    int  head, row;

    __device__ __forceinline__ Tile(const Context &c, int tile)
    {
        const int  per = (c.rows + kRows - 1) / kRows;

        head = tile / per, row = c.first + tile % per * kRows;
    }
};

/* A stage of the ring, and how often it was come by, even or odd. */
struct Turn {
    int  stage, parity;

    __device__ __forceinline__ void next()
    {
        if (++stage == kStages) stage = 0, parity ^= 1;
    }
};

/* full, empty: the barriers of a stage. */
__device__ __forceinline__ uint32_t full(uint32_t bars, const Turn &t) { return bars + t.stage * 16; }

__device__ __forceinline__ uint32_t empty(uint32_t bars, const Turn &t) { return bars + t.stage * 16 + 8; }

/* The thread that copies: all blocks of the CTA's tiles. */
template <int D>
__device__ __forceinline__ void copy_blocks(const Context &c, const CUtensorMap &map, int tiles, int blocks,
                                            uint32_t ring, uint32_t bars)
{
    Turn  turn = {0, 1};

    for (int i = blockIdx.x; i < tiles; i += gridDim.x) {
        const Tile  tile(c, i);

        for (int b = 0; b < blocks; b++, turn.next()) {
            bar_wait(empty(bars, turn), turn.parity);
            bar_expect(full(bars, turn), Room<D>::kBlock);
            for (int part = 0; part < D / 32; part++)            /* 64 dimensions of K, then of V */
                bulk_tensor(ring + turn.stage * Room<D>::kBlock + part * kTokens * kLine, map,
                            tile.head * 3 * D + D + part * 64, b * kTokens, full(bars, turn));
        }
    }
}

/* A warpgroup: 64 rows of each tile. */
template <int D>
__device__ __forceinline__ void attend(const Context &c, int tiles, int blocks, uint8_t *smem, uint32_t bars)
{
    const int       group = __shfl_sync(~0u, threadIdx.x / 128, 0);
    uint8_t        *to = smem + Room<D>::kQ + group * 64 * D * 2;
    const uint32_t  ring = smem_addr(smem), q = smem_addr(to);
    Turn            turn = {0, 0}, ahead = turn;         /* of values, of scores */

    auto pass = [&] {
        bar_wait(full(bars, turn), turn.parity);
        if (threadIdx.x % 32 == 0) bar_arrive(empty(bars, turn));
        turn.next(), ahead = turn;
    };
    auto meet = [&] { asm volatile("bar.sync %0, 128;" ::"r"(1 + group) : "memory"); };

    for (int i = blockIdx.x; i < tiles; i += gridDim.x) {
        const Tile  tile(c, i);
        const int   row0 = tile.row + group * 64;
        const bool  any = row0 < c.first + c.rows;
        State<D>    w = {{-INFINITY, -INFINITY}, {0.f, 0.f}, {}};

        meet();                                   /* the tile before has been read */
        if (any) put_q<D>(c, tile.head, row0, to);
        fence_writes();
        meet();
        if (!any) {
            for (int b = 0; b < blocks; b++) pass();
            continue;
        }
        float     s[kTokens / 8][4], x[2];
        uint32_t  p[kTokens / 16][4];
        auto      score = [&] {
            bar_wait(full(bars, ahead), ahead.parity);
            start_scores<D>(q, ring + ahead.stage * Room<D>::kBlock, s);
            ahead.next();
        };
        auto      value = [&] {
            start_values<D>(w, ring + turn.stage * Room<D>::kBlock + Room<D>::kHalf, p);
        };
        auto      done = [&] {
            wgmma_wait<0, D / 2>(&w.o[0][0]);
            if (threadIdx.x % 32 == 0) bar_arrive(empty(bars, turn));
            turn.next();
        };

        score();
        wgmma_wait<0, kTokens / 2>(&s[0][0]);
        weigh<D>(w, s, c.tokens, x);
        round_weights(s, p);
        for (int b = 1; b < blocks; b++) {
            score();
            value();
            wgmma_wait<1, kTokens / 2>(&s[0][0]);
            weigh<D>(w, s, c.tokens - b * kTokens, x);
            done();
            fade(w, x);
            round_weights(s, p);
        }
        value();
        done();
        put_out<D>(c, tile.head, row0 + threadIdx.x / 32 % 4 * 16, w);
    }
}

template <int D>
__global__ void __launch_bounds__(kThreads, 1) attn_context_kernel(
    const Context c, const __grid_constant__ CUtensorMap map, int tiles)
{
    extern __shared__ __align__(1024) uint8_t smem[];
    const int       blocks = (c.tokens + kTokens - 1) / kTokens;
    const uint32_t  bars = smem_addr(smem) + Room<D>::kBars;

    grid_go();
    if (threadIdx.x == 0) {
        prefetch_map(map);
        for (int i = 0; i < kStages; i++) bar_init(bars + i * 16, 1), bar_init(bars + i * 16 + 8, kWarps);
        bar_init_done();
    }
    __syncthreads();
    grid_wait();
    const int  warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
    if (warp >= kWarps) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        if (threadIdx.x == kWarps * 32) copy_blocks<D>(c, map, tiles, blocks, smem_addr(smem), bars);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 160;");
        attend<D>(c, tiles, blocks, smem, bars);
    }
}

template <int D>
int run(const Context &c, glm_stream_t *s)
{
    const int          tiles = (c.rows + kRows - 1) / kRows * c.heads;
    CUtensorMap        map;
    const cudaError_t  e = tensor_map(&map, c.qkv, c.heads * 3 * D, c.tokens, kTokens);

    if (e != cudaSuccess) return glm_cuda_status("attn_context", e);
    return launch("attn_context", attn_context_kernel<D>, tiles < s->sms ? tiles : s->sms, kThreads,
                  Room<D>::kBytes, 1, s, c, map, tiles);
}

#else

template <int D>
__global__ void __launch_bounds__(kThreads, 3) attn_context_kernel(const Context c)
{
    using           R = Room<D>;
    extern __shared__ __align__(1024) uint8_t smem[];
    const int       head = blockIdx.y, blocks = (c.tokens + kTokens - 1) / kTokens;
    const int       row0 = c.first + blockIdx.x * kRows + threadIdx.x / 32 * 16;
    const uint32_t  ring = smem_addr(smem);
    uint32_t        q[D / 16][4];
    State<D>        w = {{-INFINITY, -INFINITY}, {0.f, 0.f}, {}};

    issue<D>(c, head, 0, ring);
    fetch_q<D>(c, head, row0, q);
    for (int b = 0; b < blocks; b++) {
        const uint32_t  k = ring + b % 2 * R::kBlock;
        float           s[kTokens / 8][4], x[2];
        uint32_t        p[kTokens / 16][4];

        asm volatile("cp.async.wait_group 0;" ::: "memory");
        __syncthreads();              /* and all are done with the block before */
        if (b + 1 < blocks) issue<D>(c, head, b + 1, ring + (b + 1) % 2 * R::kBlock);
        scores<D>(k, q, s);
        weigh<D>(w, s, c.tokens - b * kTokens, x);
        fade(w, x);
        round_weights(s, p);
        add_values<D>(w, k + R::kHalf, p);
    }
    put_out<D>(c, head, row0, w);
}

template <int D>
int run(const Context &c, glm_stream_t *s)
{
    return launch("attn_context", attn_context_kernel<D>, dim3((c.rows + kRows - 1) / kRows, c.heads), kThreads,
                  Room<D>::kBytes, 1, s, c);
}

#endif

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
    const Context  c = {a->position, (const __half *) a->qkv, (const __half2 *) a->rope, (__half *) a->out,
                        a->heads, a->tokens, a->first, a->rows, 1.f / sqrtf((float) a->d)};

    return a->d == 128 ? run<128>(c, s) : run<64>(c, s);
}
