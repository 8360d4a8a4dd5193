/*
 * attn: the pages of keys and values as the kernels see them.
 * fp16  [head]( K [16][d], V [16][d] )
 * int8  [head]( K [16][d], V [4][d][4 tokens] ), [head]( K scales [16], V scales [16] )
 * The scales are apart so that every head starts on a 128-byte line.
 */
#pragma once
#include "cuda_common.cuh"

namespace {

constexpr int  kPage = GLM_CUDA_KV_TOKENS, kChunk = GLM_CUDA_CHUNK;

struct Kv {
    uint8_t  *base;
    size_t    page_bytes;
    int       heads;
};

struct Rows {
    const int32_t  *slot, *position, *pages;
    int             ldpages, rows;
};

template <int D, bool INT8>
struct Head {
    static constexpr int  kToken = INT8 ? D : 2 * D;       /* bytes of a token's K or V */
    static constexpr int  kBytes = 2 * kPage * kToken;     /* without scales */
};

template <int D, bool INT8>
__device__ __forceinline__ uint8_t *head_at(const Kv &kv, int page, int head)
{
    return kv.base + (size_t) page * kv.page_bytes + (size_t) head * Head<D, INT8>::kBytes;
}

/* K scales [16], then V scales [16]. */
template <int D, bool INT8>
__device__ __forceinline__ __half *scales_at(const Kv &kv, int page, int head)
{
    return (__half *) (kv.base + (size_t) page * kv.page_bytes
                       + (size_t) kv.heads * Head<D, INT8>::kBytes) + (size_t) head * 2 * kPage;
}

/* The larger one, NaN if one is: fmaxf() would lose it, and what a faulty card or model
 * left in one token would come out as an answer. */
__device__ __forceinline__ float max_or_nan(float a, float b)
{
    float  m;

    asm("max.NaN.f32 %0, %1, %2;" : "=f"(m) : "f"(a), "f"(b));
    return m;
}

/* Of absolute values, whose bits are in their order, NaN above all. */
__device__ __forceinline__ float warp_max(float v)
{
    return __uint_as_float(__reduce_max_sync(~0u, __float_as_uint(v)));
}

inline bool kv_ok(const glm_gkv_t *kv)
{
    return kv != NULL && (kv->d == 64 || kv->d == 128) && kv->heads >= 1 && kv->base != NULL
           && aligned16(kv->base) && kv->page_bytes % 16 == 0
           && kv->page_bytes >= (size_t) kv->heads * glm_cuda_kv_head_bytes(kv->d, kv->int8);
}

inline bool attn_ok(const glm_attn_args_t *a)
{
    if (a == NULL || a->rows == NULL || a->qkv == NULL || a->rope == NULL) return false;
    const glm_grows_t  *r = a->rows;

    return kv_ok(a->kv) && r->slot && r->position && r->pages && r->ldpages >= 0
           && bucket_ok(r->rows, a->bucket) && aligned16(a->qkv) && aligned16(a->rope);
}

}  // namespace
