/*
 * wgmma: m64nNk16 with the weights (A) in registers, the activations (B) in
 * shared memory and fp32 sums; 64 outputs of a warpgroup, N rows.
 */
#pragma once
#include <stdint.h>

namespace {

/* To d; to zeros; to zeros in d's own registers, where the compiler has none to spare. */
enum { kAdd, kZero, kZeroInPlace };

/* d (+)= a b.  b: low and high word of its descriptor. */
template <int N, int HOW>
__device__ void wgmma(float *d, const uint32_t a[4], uint32_t b_low, uint32_t b_high);

/* The same with a in shared memory as b is; HOW: kAdd, kZero. */
template <int N, int HOW>
__device__ void wgmma_shared(float *d, uint32_t a_low, uint32_t b_low, uint32_t high);

/* d += a b, N lying together in b instead of K. */
template <int N>
__device__ void wgmma_across(float *d, const uint32_t a[4], uint32_t b_low, uint32_t b_high);

#define D4(how, i)  how(d[i]), how(d[i + 1]), how(d[i + 2]), how(d[i + 3])
#define D8(how)     D4(how, 0), D4(how, 4)
#define D16(how, i) D4(how, i), D4(how, i + 4), D4(how, i + 8), D4(how, i + 12)
#define D16_(how)   D16(how, 0)
#define D32(how)    D16(how, 0), D16(how, 16)
#define D64(how)    D32(how), D16(how, 32), D16(how, 48)
#define OPERATION(name, how, n, regs, b, add, across, d_)                                             \
    template <>                                                                                \
    __device__ __forceinline__ void name(float *d, const uint32_t a[4], uint32_t low, uint32_t high) \
    {                                                                                          \
        asm volatile("wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.f16.f16 {" regs "}, " b   \
                     ", " add ", 1, 1, " across ";"                                            \
                     : d_(how) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]),                   \
                       "l"((uint64_t) high << 32 | low));                                      \
    }
#define WGMMA(n, regs, b, d_)                                                                 \
    OPERATION(wgmma<n COMMA kAdd>, "+f", n, regs, b, "1", "0", d_)                            \
    OPERATION(wgmma<n COMMA kZero>, "=f", n, regs, b, "0", "0", d_)                           \
    OPERATION(wgmma<n COMMA kZeroInPlace>, "+f", n, regs, b, "0", "0", d_)
#define SHARED(n, what, how, regs, a, b, add, d_)                                              \
    template <>                                                                                \
    __device__ __forceinline__ void wgmma_shared<n, what>(float *d, uint32_t a_low, uint32_t b_low, \
                                                          uint32_t high)                       \
    {                                                                                          \
        asm volatile("wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.f16.f16 {" regs "}, " a ", " b \
                     ", " add ", 1, 1, 0, 0;"                                                  \
                     : d_(how) : "l"((uint64_t) high << 32 | a_low), "l"((uint64_t) high << 32 | b_low)); \
    }
#define COMMA ,
#define R8   "%0, %1, %2, %3, %4, %5, %6, %7"
#define R16  R8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define R32  R16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define R64  R32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46" \
             ", %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

WGMMA(16, R8 "}, {%8, %9, %10, %11", "%12", D8)
WGMMA(32, R16 "}, {%16, %17, %18, %19", "%20", D16_)
WGMMA(64, R32 "}, {%32, %33, %34, %35", "%36", D32)
SHARED(64, kAdd, "+f", R32, "%32", "%33", "1", D32)
SHARED(64, kZero, "=f", R32, "%32", "%33", "0", D32)
OPERATION(wgmma_across<64>, "+f", 64, R32 "}, {%32, %33, %34, %35", "%36", "1", "1", D32)
OPERATION(wgmma_across<128>, "+f", 128, R64 "}, {%64, %65, %66, %67", "%68", "1", "1", D64)

#undef D4
#undef D8
#undef D16
#undef D16_
#undef D32
#undef D64
#undef OPERATION
#undef WGMMA
#undef R8
#undef R16
#undef R32
#undef R64
#undef COMMA
#undef SHARED

__device__ __forceinline__ void wgmma_fence()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/* Waits for all groups but the LEFT last; the N sums at d are there, and are read nowhere before. */
template <int LEFT, int N>
__device__ __forceinline__ void wgmma_wait(float *d)
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i]) :: "memory");
}

}  // namespace
