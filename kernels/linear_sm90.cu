/*
 * linear (sm_90a): y[rows][n] = x W^T for 1..64 rows.  One lane streams whole
 * tiles and activations with cp.async.bulk into a ring in shared memory; eight
 * warps dequantise in registers and multiply, weights as the matrix unit's row
 * operand: to 8 rows mma.sync; from 16 on wgmma, two CTAs a cluster that fetches
 * activations once.  Both give the same bits.  With dependent launch the ring fills
 * with weights before the previous kernel ends.
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
        const int  tile = min(f / a.groups * C::CL + rank, a.tiles - 1);      /* past the end: any */

        bar_expect(full + st, C::kW + C::kX);
#pragma unroll
        for (int m = 0; m < C::WM; m++)
            bulk_stream(smem + st * C::kStage + m * C::KG * C::kTile,
                        a.w + ((size_t) (tile * C::WM + m) * a.groups + kk) * C::kTile,
                        C::KG * C::kTile, full + st);
    };
    auto load_x = [&](int i, int st) {
        const uint8_t  *x = a.x + (size_t) ((f0 + i * C::KG) % a.groups) * C::kX1;
        const int       part = C::kX / C::CL * rank;

        if constexpr (C::CL == 1) bulk(smem + st * C::kStage + C::kW, x, C::kX, full + st);
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
 * One stage of two groups by wgmma.  A group is dequantised while the tensor cores
 * work on the one before, also across stages: `before`, the stage before this
 * one, is free when its last group has landed.  ptxas would serialise two groups
 * in flight whose sums are read in between (C7514); two warpgroups fill the gap.
 */
template <class C>
__device__ __forceinline__ void wgmma_stage(const uint8_t *sw, Flight<C> &g,
                                            float (&acc)[C::WM][C::NT][4], uint64_t *before)
{
    static_assert(C::WM == 1 && C::KG == 2, "fragments alternate by group");
    const int       warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    /* K-major, no swizzle: 8 x 16-byte core matrices, R * 16 bytes apart along
     * k and 128 along rows. */
    const uint64_t  desc = ((uint64_t) (128 >> 4) << 32) | ((uint64_t) (C::NT * 128 >> 4) << 16);

#pragma unroll
    for (int kg = 0; kg < 2; kg++) {
        fragments<C::WT>(sw + kg * C::kTile, warp, 0, lane, *(uint32_t (*)[4][4]) g.f[kg][0]);
        fragments<C::WT>(sw + kg * C::kTile, warp, 1, lane, *(uint32_t (*)[4][4]) g.f[kg][4]);
        if (kg == 0) land<C, 1>(g, acc);
        else land<C, 0>(g, acc);
        if (kg == 0 && before != nullptr) bar_arrive<C::CL>(before, lane);
        wgmma_fence();
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const uint32_t  x = smem_addr(sw + C::kW) + (kg * 8 + j) * C::NT * 256;
            const uint64_t  d = desc | (x & 0x3ffff) >> 4;

            if (j == 0) wgmma<C::NT * 8, true>(&g.p[0][0], g.f[kg][j], d);
            else wgmma<C::NT * 8, false>(&g.p[0][0], g.f[kg][j], d);
        }
        wgmma_commit();
        g.s = scales<C::WT>(sw + kg * C::kTile, warp, lane);
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
        float  acc[C::WM][C::NT][4], sum[C::WM][C::NT][4];
        int    st = 0, ph = 0;

        [[maybe_unused]] Flight<C>  g = {};
        Late<C>  late;

        if constexpr (C::WG) asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        for (int u = u0; u < u1; u++) {
            const int  end = min((u % a.segs + 1) * a.seg_groups, a.groups);
            const int  stages = (end - u % a.segs * a.seg_groups) / C::KG;
            uint64_t  *before = nullptr;

            late.look(a, u, u0, u1);
            zero<C>(acc);
            if constexpr (C::WG) {            /* nothing to add before the first group */
                zero<C>(*(float (*)[1][C::NT][4]) g.p);
                g.s = make_float2(0.f, 0.f);
            }
            for (int i = 0; i < stages; i++) {
                bar_wait(full + st, ph);
                if constexpr (C::WG) {
                    wgmma_stage<C>(smem + st * C::kStage, g, acc, before);
                    before = empty + st;
                } else {
                    mma_stage<C>(smem + st * C::kStage, acc);
                    __syncwarp();
                    bar_arrive<C::CL>(empty + st, lane);
                }
                if (++st == a.stages) st = 0, ph ^= 1;
            }
            if constexpr (C::WG) {
                land<C, 1>(g, acc);
                bar_arrive<C::CL>(before, lane);
            }
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

    static_assert(ST * C::kStage <= kMaxRing && ST <= kMaxStages, "ring does not fit");
    const int  stages = a->ring ? a->ring : ST;

    if (stages > kMaxStages || stages * C::kStage > kMaxRing) return GLM_EINVAL;
    linear_args<C>(&l, a, s);
    l.stages = stages;
    return launch("linear", linear90_kernel<C>, l.workers * C::CL,
                  C::kThreads + (C::WG ? 128 : 32), (size_t) l.stages * C::kStage, C::CL, s, l);
}

}  // namespace

int GLM_OP(linear)(const glm_linear_args_t *a, glm_stream_t *s)
{
    if (a == NULL || s == NULL || !linear_ok(a)) return GLM_EINVAL;
    switch (a->w->type * 100 + a->bucket) {
    case GLM_W_INT4 * 100 + 8:  return run<Cfg<GLM_W_INT4, 1, 1, 2, false>, 9>(a, s);
    case GLM_W_INT4 * 100 + 16: return run<Cfg<GLM_W_INT4, 2, 1, 2, true, 2>, 8>(a, s);
    case GLM_W_INT4 * 100 + 32: return run<Cfg<GLM_W_INT4, 4, 1, 2, true, 2>, 6>(a, s);
    case GLM_W_INT4 * 100 + 64: return run<Cfg<GLM_W_INT4, 8, 1, 2, true, 2>, 4>(a, s);
    case GLM_W_INT8 * 100 + 8:  return run<Cfg<GLM_W_INT8, 1, 1, 2, false>, 5>(a, s);
    case GLM_W_INT8 * 100 + 16: return run<Cfg<GLM_W_INT8, 2, 1, 2, true, 2>, 5>(a, s);
    case GLM_W_INT8 * 100 + 32: return run<Cfg<GLM_W_INT8, 4, 1, 2, true, 2>, 4>(a, s);
    case GLM_W_INT8 * 100 + 64: return run<Cfg<GLM_W_INT8, 8, 1, 2, true, 2>, 3>(a, s);
    case GLM_W_F16 * 100 + 8:   return run<Cfg<GLM_W_F16, 1, 1, 2, false>, 3>(a, s);
    case GLM_W_F16 * 100 + 16:  return run<Cfg<GLM_W_F16, 2, 1, 2, true, 2>, 3>(a, s);
    case GLM_W_F16 * 100 + 32:  return run<Cfg<GLM_W_F16, 4, 1, 2, true, 2>, 2>(a, s);
    case GLM_W_F16 * 100 + 64:  return run<Cfg<GLM_W_F16, 8, 1, 2, true, 2>, 2>(a, s);
    default:                    return GLM_EINVAL;
    }
}
