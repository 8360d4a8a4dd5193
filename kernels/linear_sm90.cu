/*
 * linear (sm_90a): y[rows][n] = x W^T for 1..256 rows.  One lane streams whole
 * tiles and activations with cp.async.bulk into a ring in shared memory; eight
 * warps dequantise in registers and multiply, weights as the matrix unit's row
 * operand: to 8 rows mma.sync; from 16 on wgmma, two CTAs a cluster that fetches
 * activations once.  Both give the same bits.  With dependent launch the ring fills
 * with weights before the previous kernel ends.  A pass of prefill (bucket 256) is
 * worked on 64 rows at a time, as decode's 64, or 128: weights are dequantised half as
 * often, the sums of a tile in shared memory.
 * An ideal run reads the tiles once: n * k / 2 + n * k / 64 bytes (int4).
 */
#include "linear.cuh"
#include "wgmma.cuh"

namespace {

constexpr int  kMaxStages = 16;
constexpr int  kMaxRing = 226 * 1024;

__device__ __forceinline__ void bar_init(uint32_t bar, int n)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(n));
}

__device__ __forceinline__ void bar_expect(uint32_t bar, int bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void bar_wait(uint32_t bar, int parity)
{
    asm volatile("{\n.reg .pred p;\nL: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
                 "@!p bra L;\n}" ::"r"(bar), "r"(parity) : "memory");
}

/* bar of CTA `rank` of the cluster. */
template <int CL>
__device__ __forceinline__ uint32_t bar_of(uint32_t bar, int rank)
{
    if constexpr (CL > 1) asm("mapa.shared::cluster.u32 %0, %0, %1;" : "+r"(bar) : "r"(rank));
    return bar;
}

/* A warp frees a stage, in every CTA of the cluster: a lane each, bar is that CTA's. */
template <int CL>
__device__ __forceinline__ void bar_arrive(uint32_t bar)
{
    if (threadIdx.x % 32 >= CL) return;
    if constexpr (CL == 1)
        asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
    else
        asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(bar) : "memory");
}

__device__ __forceinline__ void bulk(void *dst, const void *src, int bytes, uint32_t bar)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], "
                 "%2, [%3];" ::"r"(smem_addr(dst)), "l"(src), "r"(bytes), "r"(bar)
                 : "memory");
}

/* To the same place in all CTAs of the cluster. */
template <int CL>
__device__ __forceinline__ void bulk_all(void *dst, const void *src, int bytes, uint32_t bar)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes."
                 "multicast::cluster [%0], [%1], %2, [%3], %4;" ::"r"(smem_addr(dst)), "l"(src),
                 "r"(bytes), "r"(bar), "h"((uint16_t) ((1 << CL) - 1)) : "memory");
}

__device__ __forceinline__ void cluster_sync()
{
    asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}

/* Read once: leaves L2 first (the constant evict-first policy). */
__device__ __forceinline__ void bulk_stream(void *dst, const void *src, int bytes, uint32_t bar)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes."
                 "L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(smem_addr(dst)), "l"(src),
                 "r"(bytes), "r"(bar), "l"(0x12F0000000000000ull) : "memory");
}

/* The copying lane: every stage of this CTA's range of groups, in order. */
template <class C>
__device__ __forceinline__ void produce(const Linear &a, int f0, int n, uint8_t *smem,
                                        uint32_t full, uint32_t empty)
{
    const int  rank = blockIdx.x % C::CL;

    auto load_w = [&](int i, int st) {
        const int  f = f0 + i * C::KG, kk = f % a.groups;
        const int  tile = min(strip_of<C>(a, f / a.groups) * C::CL + rank,
                              a.tiles - 1);                               /* past the end: any */

        bar_expect(full + st * 8, C::kW + C::kX);
#pragma unroll
        for (int m = 0; m < C::WM; m++)
            bulk_stream(smem + st * C::kStage + m * C::KG * C::kTile,
                        a.w + ((size_t) (tile * C::WM + m) * a.groups + kk) * C::kTile,
                        C::KG * C::kTile, full + st * 8);
    };
    auto load_x = [&](int i, int st) {
        constexpr int   kPart = (C::MANY ? C::kXBlock : C::kX) / C::CL;
        const int       f = f0 + i * C::KG, kk = f % a.groups, row0 = first_row<C>(a, f / a.groups);
        uint8_t        *to = smem + st * C::kStage + C::kW + kPart * rank;
        const uint8_t  *x = a.x + kPart * rank;

#pragma unroll
        for (int b = 0; b < C::kBlocks; b++) {
            const uint8_t  *from = x + ((size_t) (row0 / C::kBlock + b) * a.groups + kk) * C::kXBlock;

            if constexpr (C::CL == 1) bulk(to, from, kPart, full + st * 8);
            else bulk_all<C::CL>(to + b * C::kXBlock, from, kPart, full + st * 8);
        }
    };
    const int  pre = min(n, a.stages);
    int        st = 0, ph = 0;

    for (int i = 0; i < pre; i++) load_w(i, i);
    grid_wait();                  /* weights are constant, activations are not */
    for (int i = 0; i < pre; i++) load_x(i, i);
    for (int i = pre; i < n; i++) {
        bar_wait(empty + st * 8, ph);
        load_w(i, st);
        load_x(i, st);
        if (++st == a.stages) st = 0, ph ^= 1;
    }
}

/*
 * What wgmma works on after its instruction is issued: fragments, scales and sums of two
 * groups in turn.  With 128 rows registers hold the sums of one.
 */
template <class C>
struct Flight {
    static constexpr int   kSums = C::NT > 8 ? 1 : 2;

    uint32_t  f[2][8][4];
    float2    s[2];
    float     p[kSums][C::NT][4];

    __device__ __forceinline__ float (&sums(int i))[C::NT][4] { return p[i % kSums]; }
};

/* Group I from its tile. */
template <class C, int I>
__device__ __forceinline__ void dequantise(const uint8_t *w, Flight<C> &g)
{
    static_assert(C::WM == 1 && C::KG == 1, "one block of outputs a warpgroup, one group a stage");
    const int  warp = threadIdx.x / 32, lane = threadIdx.x % 32;

    fragments<C::WT>(w, warp, 0, lane, *(uint32_t (*)[4][4]) g.f[I][0]);
    fragments<C::WT>(w, warp, 1, lane, *(uint32_t (*)[4][4]) g.f[I][4]);
    g.s[I] = scales<C::WT>(w, warp, lane);
}

/* Issues group I by wgmma; x: its activations in shared memory. */
template <class C, int I>
__device__ __forceinline__ void issue(uint32_t x, Flight<C> &g)
{
    /* K-major, no swizzle: 8 x 16-byte core matrices, kBlock * 16 bytes apart along
     * k and 128 along rows. */
    constexpr uint32_t  kHigh = 128 >> 4, kLow = (uint32_t) (C::kBlock * 16 >> 4) << 16;
    const uint32_t      at = (x & 0x3ffff) >> 4;           /* without the CTA's place in the cluster */
    constexpr int       kRows = C::kBlock / 8, kFirst = Flight<C>::kSums == 1 ? kZeroInPlace : kZero;

    wgmma_fence();
#pragma unroll
    for (int j = 0; j < 8; j++) {
#pragma unroll
        for (int b = 0; b < C::kBlocks; b++) {
            const uint32_t  low = at + kLow + (b * C::kXBlock + j * C::kBlock * 32) / 16;

            if (j == 0) wgmma<C::kBlock, kFirst>(&g.sums(I)[b * kRows][0], g.f[I][j], low, kHigh);
            else wgmma<C::kBlock, kAdd>(&g.sums(I)[b * kRows][0], g.f[I][j], low, kHigh);
        }
    }
    wgmma_commit();
}

/* Waits for group I. */
template <class C, int I>
__device__ __forceinline__ void land(Flight<C> &g)
{
    wgmma_wait();
#pragma unroll
    for (int b = 0; b < C::NT; b++) {
#pragma unroll
        for (int e = 0; e < 4; e++) asm volatile("" : "+f"(g.sums(I)[b][e]) :: "memory");
    }
}

/* A place in the ring. */
struct Turn {
    int  st, ph;

    __device__ __forceinline__ void next(int stages)
    {
        if (++st == stages) st = 0, ph ^= 1;
    }
};

/* The ring as consumers see it; empty: in the CTA of the cluster that this lane tells. */
struct Ring {
    const uint8_t  *smem;
    uint32_t        full, empty;
    int             stages;
};

/*
 * A segment of `groups` groups, an even number, by wgmma.  A group is dequantised, and
 * the one before it added, while the tensor cores work on the one in between.  That is a
 * block of its own between branches, for the odd group by a condition that always
 * holds: in one block with the wait for the group in between, ptxas would put it behind
 * that wait.
 */
template <class C>
__device__ __forceinline__ void wgmma_segment(const Ring &r, int groups, Turn &turn, Flight<C> &g,
                                              float (&acc)[C::WM][C::NT][4])
{
    constexpr bool  kLate = Flight<C>::kSums == 2;         /* added after the next is issued */
    uint32_t        stage = 0;

    auto at = [&] { return r.smem + turn.st * C::kStage; };
    auto go = [&] { stage = r.empty + turn.st * 8, turn.next(r.stages); };
    auto add = [&](int i) { add_group<C::NT>(acc[0], g.sums(i), g.s[i]); };

    zero<C>(*(float (*)[1][C::NT][4]) g.sums(1));          /* nothing to add before the first */
    g.s[1] = make_float2(0.f, 0.f);
    bar_wait(r.full + turn.st * 8, turn.ph);
    dequantise<C, 0>(at(), g);
    for (int i = 0; i < groups; i += 2) {
        land<C, 1>(g);
        if (i > 0) bar_arrive<C::CL>(stage);
        if (!kLate) add(1);
        issue<C, 0>(smem_addr(at()) + C::kW, g);
        go();
        if (i + 1 < groups) {
            if (kLate) add(1);
            bar_wait(r.full + turn.st * 8, turn.ph);
            dequantise<C, 1>(at(), g);
        }
        land<C, 0>(g);
        bar_arrive<C::CL>(stage);
        if (!kLate) add(0);
        issue<C, 1>(smem_addr(at()) + C::kW, g);
        go();
        if (i + 2 < groups) {
            if (kLate) add(0);
            bar_wait(r.full + turn.st * 8, turn.ph);
            dequantise<C, 0>(at(), g);
        }
    }
    if (kLate) add(0);
    land<C, 1>(g);
    bar_arrive<C::CL>(stage);
    add(1);
}

template <class C>
__device__ __forceinline__ void mma_segment(const Ring &r, int stages, Turn &turn,
                                            float (&acc)[C::WM][C::NT][4])
{
    for (int i = 0; i < stages; i++) {
        bar_wait(r.full + turn.st * 8, turn.ph);
        mma_stage<C>(r.smem + turn.st * C::kStage, acc);
        __syncwarp();
        bar_arrive<C::CL>(r.empty + turn.st * 8);
        turn.next(r.stages);
    }
}

template <class C>
__global__ void __launch_bounds__(C::kThreads + (C::WG ? 128 : 32), 1)
linear90_kernel(const __grid_constant__ Linear a)
{
    extern __shared__ __align__(128) uint8_t smem[];
    __shared__ uint64_t  bars[2][kMaxStages];
    const int  worker = blockIdx.x / C::CL;
    const int  u0 = first_unit(a, worker), u1 = first_unit(a, worker + 1);
    const int  warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint32_t  full = smem_addr(bars[0]), empty = smem_addr(bars[1]);

    if (threadIdx.x == 0) {
        for (int i = 0; i < a.stages; i++) {
            bar_init(full + i * 8, 1);
            bar_init(empty + i * 8, C::WARPS * C::CL);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    if constexpr (C::CL > 1) cluster_sync();
    else __syncthreads();
    grid_go();

    if (warp >= C::WARPS) {
        const int  f0 = first_group(a, u0), n = (first_group(a, u1) - f0) / C::KG;

        if constexpr (C::WG) asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (warp == C::WARPS && lane == 0) produce<C>(a, f0, n, smem, full, empty);
    } else {
        const Ring  ring = {smem, full, bar_of<C::CL>(empty, lane % C::CL), a.stages};
        float       acc[C::WM][C::NT][4];
        Turn        turn = {0, 0};
        Late<C>     late;

        [[maybe_unused]] float      sum[C::WM][C::NT][4];
        [[maybe_unused]] Flight<C>  g = {};

        if constexpr (C::WG) asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        fetch_bias<C>(a, u0, u1);
        for (int u = u0; u < u1; u++) {
            const int  end = min((u % a.segs + 1) * a.seg_groups, a.groups);
            const int  stages = (end - u % a.segs * a.seg_groups) / C::KG;

            late.look(a, u, u0, u1);
            zero<C>(acc);
            if constexpr (C::WG) wgmma_segment<C>(ring, stages, turn, g, acc);
            else mma_segment<C>(ring, stages, turn, acc);
            if constexpr (C::kSums)
                settle_shared<C>(a, u, u0, u1, acc, (float4 *) (smem + a.stages * C::kStage), late);
            else
                settle<C>(a, u, u0, u1, acc, sum, late);
        }
    }
    /* The other CTA may still free stages, and write activations, here. */
    if constexpr (C::CL > 1) {
        __syncwarp();
        cluster_sync();
    }
}

template <class C, int ST>
int run(const glm_linear_args_t *a, glm_stream_t *s)
{
    Linear  l;

    static_assert(ST * C::kStage + C::kSums <= kMaxRing && ST <= kMaxStages, "ring does not fit");
    const int  stages = a->ring ? a->ring : ST;

    if (stages < 2 || stages > kMaxStages || stages * C::kStage + C::kSums > kMaxRing)
        return GLM_EINVAL;
    linear_args<C>(&l, a, s);
    l.stages = stages;
    return launch("linear", linear90_kernel<C>, l.workers * C::CL,
                  C::kThreads + (C::WG ? 128 : 32), (size_t) l.stages * C::kStage + C::kSums, C::CL,
                  s, l);
}

/* A pass of prefill.  fp16 weights fill too many registers for blocks of 128. */
template <int WT, int ST64, int ST128>
int pass(const glm_linear_args_t *a, glm_stream_t *s)
{
    if constexpr (WT != GLM_W_F16)
        if (a->block != 64 && a->rows > 64) return run<Cfg<WT, 16, 1, 1, true, 2, true>, ST128>(a, s);
    return run<Cfg<WT, 8, 1, 1, true, 2, true>, ST64>(a, s);
}

}  // namespace

int GLM_OP(linear)(const glm_linear_args_t *a, glm_stream_t *s)
{
    if (a == NULL || s == NULL || !linear_ok(a)) return GLM_EINVAL;
    switch (a->w->type * 1000 + a->bucket) {
    case GLM_W_INT4 * 1000 + 8:   return run<Cfg<GLM_W_INT4, 1, 1, 2, false>, 9>(a, s);
    case GLM_W_INT4 * 1000 + 16:  return run<Cfg<GLM_W_INT4, 2, 1, 1, true, 2>, 16>(a, s);
    case GLM_W_INT4 * 1000 + 32:  return run<Cfg<GLM_W_INT4, 4, 1, 1, true, 2>, 13>(a, s);
    case GLM_W_INT4 * 1000 + 64:  return run<Cfg<GLM_W_INT4, 8, 1, 1, true, 2>, 9>(a, s);
    case GLM_W_INT8 * 1000 + 8:   return run<Cfg<GLM_W_INT8, 1, 1, 2, false>, 5>(a, s);
    case GLM_W_INT8 * 1000 + 16:  return run<Cfg<GLM_W_INT8, 2, 1, 1, true, 2>, 11>(a, s);
    case GLM_W_INT8 * 1000 + 32:  return run<Cfg<GLM_W_INT8, 4, 1, 1, true, 2>, 9>(a, s);
    case GLM_W_INT8 * 1000 + 64:  return run<Cfg<GLM_W_INT8, 8, 1, 1, true, 2>, 7>(a, s);
    case GLM_W_F16 * 1000 + 8:    return run<Cfg<GLM_W_F16, 1, 1, 2, false>, 3>(a, s);
    case GLM_W_F16 * 1000 + 16:   return run<Cfg<GLM_W_F16, 2, 1, 1, true, 2>, 6>(a, s);
    case GLM_W_F16 * 1000 + 32:   return run<Cfg<GLM_W_F16, 4, 1, 1, true, 2>, 5>(a, s);
    case GLM_W_F16 * 1000 + 64:   return run<Cfg<GLM_W_F16, 8, 1, 1, true, 2>, 4>(a, s);
    case GLM_W_INT4 * 1000 + 256: return pass<GLM_W_INT4, 9, 4>(a, s);
    case GLM_W_INT8 * 1000 + 256: return pass<GLM_W_INT8, 7, 3>(a, s);
    case GLM_W_F16 * 1000 + 256:  return pass<GLM_W_F16, 4, 0>(a, s);
    default:                      return GLM_EINVAL;
    }
}
