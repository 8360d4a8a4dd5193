/*
 * The buffers of a context in prefill overlap or are too small for its last pass,
 * or the plan counts other bytes than the kernels are given.
 */
#include "cuda_size.h"
#include "glm_cuda.h"
#include "tap.h"

enum { DIM = 12288, INNER = 32768 };

static void
test_prefill(int tokens, size_t passes)
{
    static char         base[1];
    glm_prefill_bufs_t  b;
    const size_t        n = (size_t) tokens, whole = passes * GLM_CUDA_PREFILL_ROWS;
    const size_t        need[] = { n * DIM * 4, whole * DIM * 2, n * 3 * DIM * 2, whole * DIM * 2,
                                   (size_t) GLM_CUDA_PREFILL_ROWS * INNER * 2 };
    const size_t        bytes = glm_cuda_prefill_ws(tokens, DIM, DIM, INNER, base, &b);
    const uintptr_t     at[] = { (uintptr_t) b.y, (uintptr_t) b.a, (uintptr_t) b.qkv,
                                 (uintptr_t) b.attn, (uintptr_t) b.glu, (uintptr_t) base + bytes };
    int                 bad = at[0] != (uintptr_t) base;

    for (int i = 0; i < 5; i++) {
        bad += at[i + 1] < at[i] + need[i] || at[i + 1] > at[i] + need[i] + 255;
        bad += (at[i] - at[0]) % 256 != 0;
    }
    ok(bad == 0, "%d tokens: five buffers, side by side (%d wrong)", tokens, bad);
    ok(bytes == glm_cuda_prefill_ws(tokens, DIM, DIM, INNER, NULL, NULL),
       "%d tokens: as many bytes without memory", tokens);
}

int
main(void)
{
    test_prefill(1, 1);
    test_prefill(512, 1);
    test_prefill(513, 2);
    test_prefill(2048, 4);

    /* A pass works in blocks of rows that publish what a step of 64 does. */
    ok(glm_cuda_linear_ws_sms(132, GLM_CUDA_PREFILL_ROWS)
           == glm_cuda_linear_ws_sms(132, GLM_CUDA_MAX_ROWS),
       "linears of 512 rows need no more workspace than of 64");
    ok(glm_cuda_linear_ws_sms(132, 8) < glm_cuda_linear_ws_sms(132, 16), "8 rows need less");
    /* Steps of 1 and of 64 rows share attn_row's buffer: what follows the counters begins
     * behind those of the larger. */
    ok(glm_cuda_attn_ws(1, 96, 128, 512) - 96 * 2 * 132 * 4 == glm_cuda_attn_ws(64, 96, 128, 512)
           - (size_t) 64 * 96 * 2 * 132 * 4
           && glm_cuda_attn_ws(1, 96, 128, 512) - 96 * 2 * 132 * 4 >= (size_t) 64 * 96 * 4,
       "attn_row counts in the same place whatever the rows");
    return tap_done();
}
