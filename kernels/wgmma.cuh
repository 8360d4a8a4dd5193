/*
 * wgmma: m64nNk16 with the weights (A) in registers, the activations (B) in
 * shared memory and fp32 sums; 64 outputs of a warpgroup, N rows.
 */
#pragma once
#include <stdint.h>

namespace {

/* d (+)= a b; ZERO: d is overwritten. */
template <int N, bool ZERO>
__device__ void wgmma(float *d, const uint32_t a[4], uint64_t b);

#define D4(i)  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define D16(i) D4(i), D4(i + 4), D4(i + 8), D4(i + 12)
#define WGMMA(n, regs, rest, ...)                                                              \
    template <>                                                                                \
    __device__ __forceinline__ void wgmma<n, false>(float *d, const uint32_t a[4], uint64_t b) \
    {                                                                                          \
        asm volatile("wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.f16.f16 {" regs "}, " rest \
                     ", 1, 1, 1, 0;"                                                           \
                     : __VA_ARGS__ : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));      \
    }                                                                                          \
    template <>                                                                                \
    __device__ __forceinline__ void wgmma<n, true>(float *d, const uint32_t a[4], uint64_t b)  \
    {                                                                                          \
        asm volatile("wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.f16.f16 {" regs "}, " rest \
                     ", 0, 1, 1, 0;"                                                           \
                     : __VA_ARGS__ : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));      \
    }
#define R8   "%0, %1, %2, %3, %4, %5, %6, %7"
#define R16  R8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define R32  R16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define R64  R32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46" \
             ", %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

WGMMA(16, R8, "{%8, %9, %10, %11}, %12", D4(0), D4(4))
WGMMA(32, R16, "{%16, %17, %18, %19}, %20", D16(0))
WGMMA(64, R32, "{%32, %33, %34, %35}, %36", D16(0), D16(16))
WGMMA(128, R64, "{%64, %65, %66, %67}, %68", D16(0), D16(16), D16(32), D16(48))

#undef D4
#undef D16
#undef WGMMA
#undef R8
#undef R16
#undef R32
#undef R64

__device__ __forceinline__ void wgmma_fence()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
}

}  // namespace
