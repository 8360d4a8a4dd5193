/*
 * sample_ws: what the kernels of the sampler leave each other about a row, in the
 * workspace of glm_sample_args_t.
 */
#ifndef GLM_SAMPLE_WS_H
#define GLM_SAMPLE_WS_H

#include "glm_cuda.h"
#include "sample_math.h"

/*
 * Bin of a weight w <= 1: -32 ln w, the last takes all the rest.  Weights are added up
 * as integers of 2^-44: exactly, in any order.
 */
#define GLM_SAMPLE_BINS   2048
#define GLM_SAMPLE_MOST   (1 << 19)          /* vocab; their weights fit 64 bits */
#define GLM_SAMPLE_UNIT   17592186044416.0   /* 2^44 */

typedef struct {
    double    *raw_sum, *sum;     /* (blocks) of exp, as glm_scan_t makes them: of the raw
                                     logits; of those to pick from, by temperature */
    uint64_t  *bin_w;             /* (bins) weight of the ids in it */
    uint32_t  *bin_n;             /* (bins) how many they are */
    float     *raw_max, *max;     /* (blocks) +inf: a NaN or +inf is in it; max: of what
                                     may be picked */
    float     *x;                 /* (vocab) logits as adjusted; rows without keep none */
} glm_sample_ws_t;

GLM_BOTH size_t
glm_sample_blocks(int32_t vocab)
{
    return ((size_t) vocab + GLM_SCAN_BLOCK - 1) / GLM_SCAN_BLOCK;
}

GLM_BOTH size_t
glm_sample_ws_x(int32_t vocab)
{
    return (glm_sample_blocks(vocab) * 24 + GLM_SAMPLE_BINS * 12 + 255) / 256 * 256;
}

/* Bytes of a row. */
GLM_BOTH size_t
glm_sample_ws_row(int32_t vocab)
{
    return glm_sample_ws_x(vocab) + glm_sample_blocks(vocab) * GLM_SCAN_BLOCK * sizeof(float);
}

GLM_BOTH glm_sample_ws_t
glm_sample_ws_of(const glm_sample_args_t *a, int row)
{
    const size_t      blocks = glm_sample_blocks(a->vocab);
    char             *p = (char *) a->ws + (size_t) row * glm_sample_ws_row(a->vocab);
    glm_sample_ws_t   w;

    w.x = (float *) (p + glm_sample_ws_x(a->vocab));
    w.raw_sum = (double *) p;
    w.sum = w.raw_sum + blocks;
    w.bin_w = (uint64_t *) (w.sum + blocks);
    w.bin_n = (uint32_t *) (w.bin_w + GLM_SAMPLE_BINS);
    w.raw_max = (float *) (w.bin_n + GLM_SAMPLE_BINS);
    w.max = w.raw_max + blocks;
    return w;
}

/* What a launcher must refuse. */
GLM_BOTH int
glm_sample_args_ok(const glm_sample_args_t *a)
{
    return a != NULL && a->logits != NULL && a->row != NULL && a->out != NULL && a->ids != NULL
           && a->ws != NULL && a->rows >= 1 && a->rows <= GLM_CUDA_MAX_ROWS && a->vocab >= 1
           && a->vocab <= GLM_SAMPLE_MOST && a->ldl >= (size_t) a->vocab && a->ldl % 4 == 0
           && (uintptr_t) a->logits % 16 == 0 && (uintptr_t) a->ws % 16 == 0
           && (uintptr_t) a->row % 8 == 0;
}

#endif
