/*
 * linear (sm_80): y[rows][n] = x W^T for 1..64 rows, to 512 in blocks of 64.  All
 * eight warps copy stages with cp.async and multiply with mma.sync, weights as the
 * 16-row operand.
 * An ideal run reads the tiles once: n * k / 2 + n * k / 64 bytes (int4).
 */
#include "linear.cuh"

namespace {

template <class C>
struct Ring {                     /* stages in the 160 KB an A100's CTA may have */
    static constexpr int  kFit = 160 * 1024 / C::kStage, kStages = kFit < 6 ? kFit : 6;
};

template <class C>
__global__ void __launch_bounds__(C::kThreads, 1) linear80_kernel(const Linear a)
{
    constexpr int  ST = Ring<C>::kStages;
    extern __shared__ __align__(128) uint8_t smem[];
    const int  u0 = first_unit<C>(a, blockIdx.x), u1 = first_unit<C>(a, blockIdx.x + 1);
    const int  f0 = first_group(a, u0), n = (first_group(a, u1) - f0) / C::KG;
    float      acc[C::WM][C::NT][4], sum[C::WM][C::NT][4];
    Late<C>    late;
    const Share<C::WT>  mine(threadIdx.x / 32 * C::WM, threadIdx.x % 32);
    int        issued = 0, st = 0;

    auto issue = [&] {
        if (issued < n) {
            const int       f = f0 + issued * C::KG, kk = f % a.groups;
            const int       tile = strip_of<C>(a, f / a.groups), row0 = first_row<C>(a, f / a.groups);
            const uint32_t  dst = smem_addr(smem) + issued % ST * C::kStage;

            for (int i = threadIdx.x * 16; i < C::kW; i += C::kThreads * 16) {
                const int  m = i / (C::KG * C::kTile), off = i % (C::KG * C::kTile);

                copy16(dst + i, a.w + ((size_t) (tile * C::WM + m) * a.groups + kk) * C::kTile + off);
            }
            for (int i = threadIdx.x * 16; i < C::kX; i += C::kThreads * 16) {
                copy16(dst + C::kW + i, a.x + ((size_t) (row0 / C::kBlock) * a.groups + kk) * C::kXBlock + i);
            }
            issued++;
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    };

    fetch_bias<C>(a, u0, u1);
    for (int i = 0; i < ST - 1; i++) issue();
    for (int u = u0; u < u1; u++) {
        const int  stages = (first_group(a, u + 1) - first_group(a, u)) / C::KG;

        late.look(a, u, u0, u1);
        zero<C>(acc);
        for (int i = 0; i < stages; i++) {
            asm volatile("cp.async.wait_group %0;" ::"n"(ST - 2) : "memory");
            __syncthreads();
            issue();
            mma_stage<C>(smem + st * C::kStage, mine, acc);
            if (++st == ST) st = 0;
        }
        settle<C>(a, u, u0, u + 1 == u1, acc, sum, late);
    }
}

template <class C>
int run(const glm_linear_args_t *a, glm_stream_t *s)
{
    Linear  l;

    static_assert(Ring<C>::kStages >= 2, "two stages at least");
    linear_args<C>(&l, a, s);
    l.stages = Ring<C>::kStages;
    return launch("linear", linear80_kernel<C>, l.workers, C::kThreads,
                  (size_t) Ring<C>::kStages * C::kStage, 1, s, l);
}

template <int WT, int KG, int WM>
int by_bucket(const glm_linear_args_t *a, glm_stream_t *s)
{
    switch (a->bucket) {
    case 8:  return run<Cfg<WT, 1, 1, KG, false>>(a, s);
    case 16: return run<Cfg<WT, 2, 1, KG, false>>(a, s);
    case 32: return run<Cfg<WT, 4, WM, 1, false>>(a, s);
    case 64: return run<Cfg<WT, 8, WM, 1, false>>(a, s);
    default: return run<Cfg<WT, 8, WM, 1, false, 1, true>>(a, s);
    }
}

}  // namespace

int GLM_OP(linear)(const glm_linear_args_t *a, glm_stream_t *s)
{
    if (a == NULL || s == NULL || !linear_ok(a)) return GLM_EINVAL;
    switch (a->w->type) {
    case GLM_W_INT4: return by_bucket<GLM_W_INT4, 2, 2>(a, s);
    case GLM_W_INT8: return by_bucket<GLM_W_INT8, 1, 2>(a, s);
    case GLM_W_F16:  return by_bucket<GLM_W_F16, 1, 1>(a, s);
    default:         return GLM_EINVAL;
    }
}
