/*
 * ops: what the files of launcher twins share.  A twin checks what its kernel's
 * launcher checks, keeps a copy of its arguments and of the structures they point
 * to, and computes the contract of glm_cuda.h in fp32 with the same roundings.
 */
#ifndef FAKECUDA_OPS_H
#define FAKECUDA_OPS_H

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/half.h"
#include "fakecuda.h"

static inline int
fc_aligned(const void *p)
{
    return ((uintptr_t) p & 15) == 0;
}

static inline int
fc_bucket_ok(int rows, int bucket)
{
    return rows >= 1 && rows <= bucket && (bucket == 8 || bucket == 16 || bucket == 32
                                           || bucket == 64 || bucket == GLM_CUDA_PREFILL_ROWS);
}

/* The compiler's own vectors where the machine has them. */
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define FC_FAST  __attribute__((target_clones("avx2", "default")))
#else
#define FC_FAST
#endif

/* Sum of products in 32 lanes, then of the lanes; n is a multiple of 32. */
static inline float
fc_dot(const float *a, const float *b, int n)
{
    float  lane[32] = { 0 };

    for (int i = 0; i < n; i += 32) {
        for (int j = 0; j < 32; j++) lane[j] += a[i + j] * b[i + j];
    }
    for (int half = 16; half > 0; half /= 2) {
        for (int j = 0; j < half; j++) lane[j] += lane[j + half];
    }
    return lane[0];
}

int fc_pack(const glm_pack_args_t *a, glm_stream_t *s);
int fc_fill(const glm_fill_args_t *a, glm_stream_t *s);
int fc_linear(const glm_linear_args_t *a, glm_stream_t *s);
int fc_norm(const glm_gnorm_args_t *a, glm_stream_t *s);
int fc_repack(const glm_repack_args_t *a, glm_stream_t *s);
int fc_embed(const glm_embed_args_t *a, glm_stream_t *s);
int fc_kv_write(const glm_attn_args_t *a, glm_stream_t *s);
int fc_attn_row(const glm_attn_args_t *a, glm_stream_t *s);
int fc_attn_context(const glm_context_args_t *a, glm_stream_t *s);
int fc_sample(const glm_sample_args_t *a, glm_stream_t *s);

#endif
