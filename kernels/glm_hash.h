/*
 * glm_hash: dummy weights, so that every backend makes the same values for any
 * slice.  With the 32-bit seed of a tensor:
 *     32-bit word i of quantised bytes = glm_hash(seed, i)
 *     fp16 element i = lo + (hi - lo) * u, u = (glm_hash(seed, i) >> 8) / 2^24,
 *     one fp32 fma, rounded once
 */
#ifndef GLM_HASH_H
#define GLM_HASH_H

#include <stdint.h>

#ifdef __CUDACC__
__host__ __device__
#endif
static inline uint32_t
glm_hash(uint32_t seed, uint64_t i)
{
    uint64_t  x = (i + 1) * 0x9e3779b97f4a7c15u ^ (uint64_t) seed << 32;

    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return (uint32_t) (x >> 32);
}

#endif
