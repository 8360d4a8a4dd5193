/*
 * cuda_size: bytes of tiles, pages and workspaces.  Plain C, so that a memory plan
 * needs neither a card nor nvcc.
 */
#include "cuda_size.h"
#include "glm_cuda.h"

size_t
glm_cuda_tile_bytes(int type, int k, int n)
{
    size_t  pairs = ((size_t) n + GLM_TILE_ROWS - 1) / GLM_TILE_ROWS;

    return 2 * pairs * (size_t) (k / GLM_TILE) * (size_t) GLM_TILE_BYTES(type);
}

/* Counters, then the published segments of each CTA. */
size_t
glm_cuda_linear_ws_sms(int sms, int bucket)
{
    return GLM_COUNTERS * sizeof(int32_t)
        + (size_t) sms * GLM_SEGMENTS * (size_t) bucket * GLM_TILE_ROWS * sizeof(float);
}

size_t
glm_cuda_kv_head_bytes(int d, int int8)
{
    return (size_t) 2 * GLM_CUDA_KV_TOKENS * (size_t) (int8 ? d + 2 : 2 * d);
}

size_t
glm_cuda_attn_ws(int rows, int heads, int d, int max_tokens)
{
    size_t  chunks = ((size_t) max_tokens + GLM_CUDA_CHUNK - 1) / GLM_CUDA_CHUNK;
    size_t  pairs = (size_t) rows * (size_t) heads;

    return (pairs * 4 + 127) / 128 * 128 + pairs * chunks * (size_t) (d + 4) * 4;
}
