/*
 * linear (sm_90a): y[rows][n] = x W^T for 1..256 rows.  One lane streams whole
 * tiles and activations with cp.async.bulk into a ring in shared memory; eight
 * warps dequantise in registers and multiply, weights as the matrix unit's row
 * operand: to 8 rows mma.sync; from 16 on wgmma, two CTAs a cluster that fetches
 * activations once.  Both give the same bits.  With dependent launch the ring fills
 * with weights before the previous kernel ends.  A pass of prefill (bucket 256) is
 * worked on in blocks of 64 rows, as decode's 64, or of 128: half the copies a row,
 * the sums of a tile in shared memory.
 * An ideal run reads the tiles once: n * k / 2 + n * k / 64 bytes (int4).
 */
#include "linear.cuh"
#include "wgmma.cuh"

namespace {

constexpr int  kMaxStages = 16;
constexpr int  kMaxRing = 226 * 1024;

__device__ __forceinline__ void bar_init(uint64_t *b, int n)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(smem_addr(b)), "r"(n));
}

__device__ __forceinline__ void bar_expect(uint64_t *b, int bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(smem_addr(b)),
                 "r"(bytes) : "memory");
}

/* A warp frees a stage, in every CTA of the cluster. */
template <int CL>
__device__ __forceinline__ void bar_arrive(uint64_t *b, int lane)
{
    if (lane >= CL) return;
    if constexpr (CL == 1)
        asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(smem_addr(b)) : "memory");
    else
        asm volatile("{\n.reg .b32 r;\nmapa.shared::cluster.u32 r, %0, %1;\n"
                     "mbarrier.arrive.shared::cluster.b64 _, [r];\n}" ::"r"(smem_addr(b)), "r"(lane)
                     : "memory");
}

__device__ __forceinline__ void bar_wait(uint64_t *b, int parity)
{
    asm volatile("{\n.reg .pred p;\nL: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
                 "@!p bra L;\n}" ::"r"(smem_addr(b)), "r"(parity) : "memory");
}

__device__ __forceinline__ void bulk(void *dst, const void *src, int bytes, uint64_t *b)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], "
                 "%2, [%3];" ::"r"(smem_addr(dst)), "l"(src), "r"(bytes), "r"(smem_addr(b))
                 : "memory");
}

/* To the same place in all CTAs of the cluster. */
template <int CL>
__device__ __forceinline__ void bulk_all(void *dst, const void *src, int bytes, uint64_t *b)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes."
                 "multicast::cluster [%0], [%1], %2, [%3], %4;" ::"r"(smem_addr(dst)), "l"(src),
                 "r"(bytes), "r"(smem_addr(b)), "h"((uint16_t) ((1 << CL) - 1)) : "memory");
}

__device__ __forceinline__ void cluster_sync()
{
    asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}

/* Read once: leaves L2 first (the constant evict-first policy). */
__device__ __forceinline__ void bulk_stream(void *dst, const void *src, int bytes, uint64_t *b)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes."
                 "L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(smem_addr(dst)), "l"(src),
                 "r"(bytes), "r"(smem_addr(b)), "l"(0x12F0000000000000ull) : "memory");
}

/* The copying lane: every stage of this CTA's range of groups, in order. */
template <class C>
__device__ __forceinline__ void produce(const Linear &a, int f0, int n, uint8_t *smem,
                                        uint64_t *full, uint64_t *empty)
{
    const int  rank = blockIdx.x % C::CL;

    auto load_w = [&](int i, int st) {
        const int  f = f0 + i * C::KG, kk = f % a.groups;
        const int  tile = min(strip_of<C>(a, f / a.groups) * C::CL + rank,
                              a.tiles - 1);                               /* past the end: any */

        bar_expect(full + st, C::kW + C::kX);
#pragma unroll
        for (int m = 0; m < C::WM; m++)
            bulk_stream(smem + st * C::kStage + m * C::KG * C::kTile,
                        a.w + ((size_t) (tile * C::WM + m) * a.groups + kk) * C::kTile,
                        C::KG * C::kTile, full + st);
    };
    auto load_x = [&](int i, int st) {
        const int       kk = (f0 + i * C::KG) % a.groups, part = C::kX / C::CL * rank;
        const uint8_t  *x = a.x + (size_t) kk * C::kX1;

        if constexpr (C::MANY) {
            constexpr int   kPiece = C::NT * 128;            /* 8 inputs of a block's rows */
            const int       row0 = first_row<C>(a, (f0 + i * C::KG) / a.groups);
            const uint8_t  *from = a.x + ((size_t) kk * (kGroup / 8) * a.bucket + row0) * 16;

            for (int p = part / kPiece; p < (part + C::kX / C::CL) / kPiece; p++)
                bulk_all<C::CL>(smem + st * C::kStage + C::kW + p * kPiece,
                                from + (size_t) p * a.bucket * 16, kPiece, full + st);
        } else if constexpr (C::CL == 1) bulk(smem + st * C::kStage + C::kW, x, C::kX, full + st);
        else bulk_all<C::CL>(smem + st * C::kStage + C::kW + part, x + part, C::kX / C::CL, full + st);
    };
    const int  pre = min(n, a.stages);
    int        st = 0, ph = 0;

    for (int i = 0; i < pre; i++) load_w(i, i);
    grid_wait();                  /* weights are constant, activations are not */
    for (int i = 0; i < pre; i++) load_x(i, i);
    for (int i = pre; i < n; i++) {
        bar_wait(empty + st, ph);
        load_w(i, st);
        load_x(i, st);
        if (++st == a.stages) st = 0, ph ^= 1;
    }
}

/*
 * What wgmma works on after its instruction is issued: fragments of two groups in
 * turn, and the sum of one.
 */
template <class C>
struct Flight {
    uint32_t  f[2][8][4];
    float     p[C::NT][4];
    float2    s;                  /* scales of p */
};

/* Waits for group I and adds it.  Its registers are read here, so that nothing
 * takes them before. */
template <class C, int I>
__device__ __forceinline__ void land(Flight<C> &g, float (&acc)[C::WM][C::NT][4])
{
    wgmma_wait();
#pragma unroll
    for (int i = 0; i < 8; i++)
        asm volatile("" ::"r"(g.f[I][i][0]), "r"(g.f[I][i][1]), "r"(g.f[I][i][2]),
                     "r"(g.f[I][i][3]) : "memory");
#pragma unroll
    for (int b = 0; b < C::NT; b++) {
#pragma unroll
        for (int e = 0; e < 4; e++) asm volatile("" : "+f"(g.p[b][e]) :: "memory");
    }
    add_group<C::NT>(acc[0], g.p, g.s);
}

/*
 * Issues group I by wgmma: w its tile, x its activations.  A group is dequantised
 * while the tensor cores work on the one before, also across stages: `before`, the
 * stage of that one where it is not this group's own, is free when it has landed.
 * ptxas would serialise two groups in flight whose sums are read in between
 * (C7514); two warpgroups fill the gap.
 */
template <class C, int I>
__device__ __forceinline__ void wgmma_group(const uint8_t *w, const uint8_t *x, Flight<C> &g,
                                            float (&acc)[C::WM][C::NT][4], uint64_t *before)
{
    static_assert(C::WM == 1, "one block of outputs a warpgroup");
    const int       warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    /* K-major, no swizzle: 8 x 16-byte core matrices, R * 16 bytes apart along
     * k and 128 along rows. */
    const uint64_t  desc = ((uint64_t) (128 >> 4) << 32) | ((uint64_t) (C::NT * 128 >> 4) << 16);

    fragments<C::WT>(w, warp, 0, lane, *(uint32_t (*)[4][4]) g.f[I][0]);
    fragments<C::WT>(w, warp, 1, lane, *(uint32_t (*)[4][4]) g.f[I][4]);
    land<C, 1 - I>(g, acc);
    if (before != nullptr) bar_arrive<C::CL>(before, lane);
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < 8; j++) {
        const uint64_t  d = desc | ((smem_addr(x) + j * C::NT * 256) & 0x3ffff) >> 4;

        if (j == 0) wgmma<C::NT * 8, true>(&g.p[0][0], g.f[I][j], d);
        else wgmma<C::NT * 8, false>(&g.p[0][0], g.f[I][j], d);
    }
    wgmma_commit();
    g.s = scales<C::WT>(w, warp, lane);
}

/* A place in the ring. */
struct Turn {
    int  st, ph;

    __device__ __forceinline__ void next(int stages)
    {
        if (++st == stages) st = 0, ph ^= 1;
    }
};

/* A segment of `stages` stages by wgmma; fragments alternate by group, of which a
 * segment has an even number. */
template <class C>
__device__ __forceinline__ void wgmma_segment(const Linear &a, const uint8_t *smem, uint64_t *full,
                                              uint64_t *empty, int stages, Turn &turn, Flight<C> &g,
                                              float (&acc)[C::WM][C::NT][4])
{
    static_assert(C::KG <= 2, "one or two groups a stage");
    uint64_t  *before = nullptr;

    zero<C>(*(float (*)[1][C::NT][4]) g.p);       /* nothing to add before the first group */
    g.s = make_float2(0.f, 0.f);
    for (int i = 0; i < stages; i += 3 - C::KG) {
        const uint8_t  *w = smem + turn.st * C::kStage;

        bar_wait(full + turn.st, turn.ph);
        wgmma_group<C, 0>(w, w + C::kW, g, acc, before);
        before = empty + turn.st;
        if constexpr (C::KG == 2) {
            wgmma_group<C, 1>(w + C::kTile, w + C::kW + C::kX1, g, acc, nullptr);
        } else {
            turn.next(a.stages);
            w = smem + turn.st * C::kStage;
            bar_wait(full + turn.st, turn.ph);
            wgmma_group<C, 1>(w, w + C::kW, g, acc, before);
            before = empty + turn.st;
        }
        turn.next(a.stages);
    }
    land<C, 1>(g, acc);
    bar_arrive<C::CL>(before, threadIdx.x % 32);
}

template <class C>
__device__ __forceinline__ void mma_segment(const Linear &a, const uint8_t *smem, uint64_t *full,
                                            uint64_t *empty, int stages, Turn &turn,
                                            float (&acc)[C::WM][C::NT][4])
{
    for (int i = 0; i < stages; i++) {
        bar_wait(full + turn.st, turn.ph);
        mma_stage<C>(smem + turn.st * C::kStage, acc);
        __syncwarp();
        bar_arrive<C::CL>(empty + turn.st, threadIdx.x % 32);
        turn.next(a.stages);
    }
}

template <class C>
__global__ void __launch_bounds__(C::kThreads + (C::WG ? 128 : 32), 1)
linear90_kernel(const __grid_constant__ Linear a)
{
    extern __shared__ __align__(128) uint8_t smem[];
    __shared__ uint64_t  full[kMaxStages], empty[kMaxStages];
    const int  worker = blockIdx.x / C::CL;
    const int  u0 = first_unit(a, worker), u1 = first_unit(a, worker + 1);
    const int  warp = threadIdx.x / 32, lane = threadIdx.x % 32;

    if (threadIdx.x == 0) {
        for (int i = 0; i < a.stages; i++) {
            bar_init(full + i, 1);
            bar_init(empty + i, C::WARPS * C::CL);
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
        float    acc[C::WM][C::NT][4];
        Turn     turn = {0, 0};
        Late<C>  late;

        [[maybe_unused]] float      sum[C::WM][C::NT][4];
        [[maybe_unused]] Flight<C>  g = {};

        if constexpr (C::WG) asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        for (int u = u0; u < u1; u++) {
            const int  end = min((u % a.segs + 1) * a.seg_groups, a.groups);
            const int  stages = (end - u % a.segs * a.seg_groups) / C::KG;

            late.look(a, u, u0, u1);
            zero<C>(acc);
            if constexpr (C::WG) wgmma_segment<C>(a, smem, full, empty, stages, turn, g, acc);
            else mma_segment<C>(a, smem, full, empty, stages, turn, acc);
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
    return run<Cfg<WT, 8, 1, 2, true, 2, true>, ST64>(a, s);
}

}  // namespace

int GLM_OP(linear)(const glm_linear_args_t *a, glm_stream_t *s)
{
    if (a == NULL || s == NULL || !linear_ok(a)) return GLM_EINVAL;
    switch (a->w->type * 1000 + a->bucket) {
    case GLM_W_INT4 * 1000 + 8:   return run<Cfg<GLM_W_INT4, 1, 1, 2, false>, 9>(a, s);
    case GLM_W_INT4 * 1000 + 16:  return run<Cfg<GLM_W_INT4, 2, 1, 2, true, 2>, 8>(a, s);
    case GLM_W_INT4 * 1000 + 32:  return run<Cfg<GLM_W_INT4, 4, 1, 2, true, 2>, 6>(a, s);
    case GLM_W_INT4 * 1000 + 64:  return run<Cfg<GLM_W_INT4, 8, 1, 2, true, 2>, 4>(a, s);
    case GLM_W_INT8 * 1000 + 8:   return run<Cfg<GLM_W_INT8, 1, 1, 2, false>, 5>(a, s);
    case GLM_W_INT8 * 1000 + 16:  return run<Cfg<GLM_W_INT8, 2, 1, 2, true, 2>, 5>(a, s);
    case GLM_W_INT8 * 1000 + 32:  return run<Cfg<GLM_W_INT8, 4, 1, 2, true, 2>, 4>(a, s);
    case GLM_W_INT8 * 1000 + 64:  return run<Cfg<GLM_W_INT8, 8, 1, 2, true, 2>, 3>(a, s);
    case GLM_W_F16 * 1000 + 8:    return run<Cfg<GLM_W_F16, 1, 1, 2, false>, 3>(a, s);
    case GLM_W_F16 * 1000 + 16:   return run<Cfg<GLM_W_F16, 2, 1, 2, true, 2>, 3>(a, s);
    case GLM_W_F16 * 1000 + 32:   return run<Cfg<GLM_W_F16, 4, 1, 2, true, 2>, 2>(a, s);
    case GLM_W_F16 * 1000 + 64:   return run<Cfg<GLM_W_F16, 8, 1, 2, true, 2>, 2>(a, s);
    case GLM_W_INT4 * 1000 + 256: return pass<GLM_W_INT4, 4, 4>(a, s);
    case GLM_W_INT8 * 1000 + 256: return pass<GLM_W_INT8, 3, 3>(a, s);
    case GLM_W_F16 * 1000 + 256:  return pass<GLM_W_F16, 2, 0>(a, s);
    default:                      return GLM_EINVAL;
    }
}
