/*
 * cluster: barriers in shared memory (mbarrier), and how the CTAs of a cluster (sm_90)
 * meet and reach each other's.  Addresses are of shared memory.
 */
#pragma once
#include "cuda_common.cuh"

#if GLM_ARCH == 90

namespace {

__device__ __forceinline__ void bar_init(uint32_t bar, int n)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(n));
}

/* Of what this thread initialised: for the cluster that meets, and for copies. */
__device__ __forceinline__ void bar_init_done()
{
    asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void bar_expect(uint32_t bar, int bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void bar_arrive(uint32_t bar)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}

__device__ __forceinline__ void bar_wait(uint32_t bar, int parity)
{
    asm volatile("{\n.reg .pred p;\nL: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
                 "@!p bra L;\n}" ::"r"(bar), "r"(parity) : "memory");
}

/* For what other CTAs' threads wrote, not copies. */
__device__ __forceinline__ void bar_wait_cluster(uint32_t bar, int parity)
{
    asm volatile("{\n.reg .pred p;\nL: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%0], %1;\n"
                 "@!p bra L;\n}" ::"r"(bar), "r"(parity) : "memory");
}

/* The same place in CTA `rank` of the cluster. */
__device__ __forceinline__ uint32_t of_cta(uint32_t at, int rank)
{
    asm("mapa.shared::cluster.u32 %0, %0, %1;" : "+r"(at) : "r"(rank));
    return at;
}

/*
 * All CTAs have come: every thread of each calls both.  Orders no memory but what a fence
 * before it did: a release would wait for everything under way.
 */
__device__ __forceinline__ void cluster_arrive()
{
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}

__device__ __forceinline__ void cluster_wait()
{
    asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
}

}  // namespace

#endif
