/*
 * cuda_size: bytes of tiles, pages and workspaces.  Plain C, so that a memory plan
 * needs neither a card nor nvcc.
 */
#include "cuda_size.h"
#include "glm_cuda.h"
#include "sample_ws.h"

size_t
glm_cuda_tile_bytes(int type, int k, int n)
{
    size_t  pairs = ((size_t) n + GLM_TILE_ROWS - 1) / GLM_TILE_ROWS;

    return 2 * pairs * (size_t) (k / GLM_TILE) * (size_t) GLM_TILE_BYTES(type);
}

/*
 * Counters, then the published segments of each CTA: 256 outputs of up to 64 rows,
 * or 128 of 128.
 */
size_t
glm_cuda_linear_ws_sms(int sms, int bucket)
{
    size_t  rows = bucket < GLM_CUDA_MAX_ROWS ? (size_t) bucket : GLM_CUDA_MAX_ROWS;

    return GLM_COUNTERS * sizeof(int32_t)
        + (size_t) sms * GLM_SEGMENTS * rows * GLM_TILE_ROWS * sizeof(float);
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

    return GLM_ATTN_COUNTERS(heads) + pairs * chunks * (size_t) (d + 4) * 4;
}

size_t
glm_cuda_sample_ws(int rows, int vocab)
{
    return (size_t) rows * glm_sample_ws_row(vocab);
}

/* The next `bytes` of a buffer, on a boundary of 256. */
static void *
cut(void *base, size_t *used, size_t bytes)
{
    void  *p = base == NULL ? NULL : (char *) base + *used;

    *used += (bytes + 255) / 256 * 256;
    return p;
}

size_t
glm_cuda_prefill_ws(int tokens, int dim, int attn, int inner, void *base, glm_prefill_bufs_t *out)
{
    const size_t        n = (size_t) tokens, pass = GLM_CUDA_PREFILL_ROWS;
    const size_t        whole = (n + pass - 1) / pass * pass;
    size_t              used = 0;
    glm_prefill_bufs_t  p;

    p.y = cut(base, &used, n * (size_t) dim * sizeof(float));
    p.a = cut(base, &used, whole * (size_t) dim * 2);
    p.qkv = cut(base, &used, n * 3 * (size_t) attn * 2);
    p.attn = cut(base, &used, whole * (size_t) attn * 2);
    p.glu = cut(base, &used, pass * (size_t) inner * 2);
    if (out != NULL) *out = p;
    return used;
}
