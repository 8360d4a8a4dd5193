/*
 * tensor: a block of a matrix in global memory copied to shared memory by one thread, as wgmma
 * wants it (sm_90): pieces of 128 bytes in the swizzle of 128 bytes, a row after the other.
 */
#pragma once
#include <cuda.h>

#include "cuda_common.cuh"

namespace {

typedef decltype(&cuTensorMapEncodeTiled)  encode_t;

/* The driver's; NULL where it has none. */
inline encode_t driver_encode()
{
    void                             *f = NULL;
    cudaDriverEntryPointQueryResult   found;
    const cudaError_t                 e = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &f, 12000,
                                                                           cudaEnableDefault, &found);

    return e == cudaSuccess && found == cudaDriverEntryPointSuccess ? (encode_t) f : NULL;
}

/*
 * Of fp16 [rows][width], 16-byte aligned, copies of 64 columns of `count` rows; rows past the end
 * are zeros.
 */
inline cudaError_t tensor_map(CUtensorMap *map, const void *x, int width, int rows, int count)
{
    static const encode_t  encode = driver_encode();
    const cuuint64_t  size[] = {(cuuint64_t) width, (cuuint64_t) rows}, pitch[] = {(cuuint64_t) width * 2};
    const cuuint32_t  box[] = {64, (cuuint32_t) count}, step[] = {1, 1};

    if (encode == NULL) return cudaErrorSymbolNotFound;
    return encode(map, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2, (void *) x, size, pitch, box, step,
                  CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                  CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

/* Starts the copy from column x and row y on; dst on 1024 bytes.  bar counts its bytes. */
__device__ __forceinline__ void bulk_tensor(uint32_t dst, const CUtensorMap &map, int x, int y, uint32_t bar)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], "
                 "[%4];" ::"r"(dst), "l"(&map), "r"(x), "r"(y), "r"(bar) : "memory");
}

/* Before the first copy: the map itself is fetched. */
__device__ __forceinline__ void prefetch_map(const CUtensorMap &map)
{
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

}  // namespace
