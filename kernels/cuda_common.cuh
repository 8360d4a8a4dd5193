/*
 * cuda_common: what every kernel file shares.  A file is compiled once for each
 * architecture with GLM_ARCH = 80 or 90; GLM_OP() names its launcher, and
 * nothing else leaves the file.
 */
#pragma once
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#include "glm_cuda.h"

#if GLM_ARCH == 90
#define GLM_OP(name) glm_##name##_sm90
#elif GLM_ARCH == 80
#define GLM_OP(name) glm_##name##_sm80
#endif

struct glm_stream_s {
    cudaStream_t  cuda;
    int           sms;
};

/* Notes a failed status under the name of its launcher; in cuda_ops.cu. */
int glm_cuda_status(const char *name, cudaError_t e);

#ifdef GLM_OP

namespace {

/*
 * Programmatic dependent launch.  grid_go(): the next kernel may start; what it
 * does before its own grid_wait() must not touch anything a kernel writes.
 * grid_wait(): all kernels before have ended and their writes are visible.
 */
__device__ __forceinline__ void grid_go()
{
#if GLM_ARCH == 90
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

__device__ __forceinline__ void grid_wait()
{
#if GLM_ARCH == 90
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

template <typename... P, typename... A>
int launch(const char *name, void (*kernel)(P...), dim3 grid, int block, size_t smem,
           [[maybe_unused]] int cluster, glm_stream_t *s, A... args)
{
    cudaLaunchConfig_t    c = {};
    cudaLaunchAttribute   attr[2] = {};
    cudaError_t           e;

    if (smem > 48 * 1024) {
        e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int) smem);
        if (e != cudaSuccess) return glm_cuda_status(name, e);
    }
    c.gridDim = grid;
    c.blockDim = dim3(block);
    c.dynamicSmemBytes = smem;
    c.stream = s->cuda;
    c.attrs = attr;
#if GLM_ARCH == 90
    attr[c.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attr[c.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
    if (cluster > 1) {
        attr[c.numAttrs].id = cudaLaunchAttributeClusterDimension;
        attr[c.numAttrs].val.clusterDim.x = cluster;
        attr[c.numAttrs].val.clusterDim.y = 1;
        attr[c.numAttrs++].val.clusterDim.z = 1;
    }
#endif
    return glm_cuda_status(name, cudaLaunchKernelEx(&c, kernel, args...));
}

__device__ __forceinline__ uint32_t smem_addr(const void *p)
{
    return (uint32_t) __cvta_generic_to_shared(p);
}

__device__ __forceinline__ void copy16(uint32_t dst, const void *src)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(dst), "l"(src) : "memory");
}

__device__ __forceinline__ float2 half2_float2(uint32_t v)
{
    return __half22float2(*(const __half2 *) &v);
}

__device__ __forceinline__ uint32_t float2_half2(float x, float y)
{
    __half2  h = __floats2half2_rn(x, y);

    return *(uint32_t *) &h;
}

__device__ __forceinline__ void unpack8(uint4 v, float (&f)[8])
{
    const uint32_t  w[4] = {v.x, v.y, v.z, v.w};

#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float2  p = half2_float2(w[i]);

        f[2 * i] = p.x, f[2 * i + 1] = p.y;
    }
}

__device__ __forceinline__ uint4 float8_half8(const float (&v)[8])
{
    return make_uint4(float2_half2(v[0], v[1]), float2_half2(v[2], v[3]), float2_half2(v[4], v[5]),
                      float2_half2(v[6], v[7]));
}

/* Dimensions i and i + d / 2 of a q or key, turned by (cos, sin): section 1 of the reference. */
__device__ __forceinline__ float2 rotated(float x, float y, __half2 turn)
{
    const float2  c = __half22float2(turn);

    return make_float2(fmaf(x, c.x, -(y * c.y)), fmaf(y, c.x, x * c.y));
}

inline bool bucket_ok(int rows, int bucket)
{
    return rows >= 1 && rows <= bucket
           && (bucket == 8 || bucket == 16 || bucket == 32 || bucket == 64
               || bucket == GLM_CUDA_PREFILL_ROWS);
}

/* Pieces of 16 bytes of a packed buffer, `pieces` wide, before piece c of a row:
 * glm_cuda_packed() / 8. */
__device__ __forceinline__ size_t piece_at(int pieces, int c, int row, int bucket)
{
    if (bucket <= GLM_CUDA_BLOCK) return (size_t) c * bucket + row;
    return ((size_t) (row / GLM_CUDA_BLOCK) * pieces + c) * GLM_CUDA_BLOCK + row % GLM_CUDA_BLOCK;
}

inline bool aligned16(const void *p)
{
    return ((uintptr_t) p & 15) == 0;
}

}  // namespace

#endif
