/*
 * sample: launches the sampler's kernels (sample.cuh, sample_pick.cuh).  This file is
 * compiled without fused multiply-adds: the CPU's sampler has none.
 */
#include "cuda_common.cuh"

#include "sample_pick.cuh"

int GLM_OP(sample)(const glm_sample_args_t *a, glm_stream_t *s)
{
    int  rc;

    if (s == NULL || !glm_sample_args_ok(a)) return GLM_EINVAL;
    const dim3  grid(sample_parts(a, s->sms), a->rows);

    rc = launch("sample scan", sample_scan_kernel, grid, kScanThreads, 0, 1, s, *a);
    if (rc == 0) rc = launch("sample weigh", sample_weigh_kernel, grid, kScanThreads, 0, 1, s, *a);
    if (rc == 0) rc = launch("sample pick", sample_pick_kernel, dim3(3, a->rows), kPickThreads, 0, 1, s, *a);
    return rc;
}
