/*
 * sampler_scan: the passes of the sampler over a whole row of logits.  Each is
 * one body in 16-lane vectors, compiled for several instruction sets; lanes and
 * the order of sums are fixed and nothing is fused, so the bits of a result
 * do not depend on which of them runs.
 */
#ifndef GLM_SAMPLER_SCAN_H
#define GLM_SAMPLER_SCAN_H

#include <stdint.h>

#include "sample_math.h"           /* GLM_SCAN_BLOCK */

typedef struct {
    float  max;                   /* of all ids; -inf when there is none */
    float  max_allowed;           /* of the ids in allow */
    int    bad;                   /* a NaN or +inf is among the logits */
} glm_scan_max_t;

typedef struct {
    /* allow (see glm_sample_t) may be NULL in all of these. */
    void (*max)(const float *x, int32_t n, const uint64_t *allow, glm_scan_max_t *out);

    /* First allowed id with x[id] >= v and id >= from; n: none. */
    int32_t (*find)(const float *x, int32_t n, const uint64_t *allow, float v, int32_t from);

    /*
     * e = exp((x - max) / t), 0 for what is not allowed.  sums gets one double a
     * block of GLM_SCAN_BLOCK; w (room for n rounded up to 16) gets e unless NULL.
     */
    void (*exps)(const float *x, int32_t n, const uint64_t *allow, float max, float t,
        double *sums, float *w);
} glm_scan_t;

/* "avx512", "avx2", "plain", or NULL for the best one here; NULL when the
 * machine lacks it. */
const glm_scan_t *glm_scan_get(const char *isa);

#endif
