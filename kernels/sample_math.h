/*
 * sample_math: the arithmetic of one logit, shared by the sampler of the CPU and
 * that of a GPU, so that both pick the same id.  Nothing is fused and no function
 * of a maths library is called; compile with contraction off.
 */
#ifndef GLM_SAMPLE_MATH_H
#define GLM_SAMPLE_MATH_H

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "sampler.h"

#ifdef __CUDACC__
#define GLM_BOTH  static __host__ __device__ inline
#else
#define GLM_BOTH  static inline
#endif

#define GLM_SCAN_BLOCK  256       /* logits of one partial sum */

/*
 * exp(z) = 2^k * GLM_EXP_POLY(z - k ln 2), k the nearest integer to z / ln 2: Cephes'
 * polynomial, within 2e-7 of it.  Macros: they serve vectors, too.
 */
#define GLM_EXP_MAGIC     12582912.0f        /* 1.5 x 2^23: low bits = integer */
#define GLM_EXP_MAGIC_INT 0x4B400000
#define GLM_EXP_LEAST     -86.0f             /* 0 below: float would soon be subnormal */
#define GLM_EXP_ROUND(z)  ((z) * 1.44269504088896341f + GLM_EXP_MAGIC)
#define GLM_EXP_REST(z, k) ((z) - (k) * 0.693359375f - (k) * -2.12194440e-4f)
#define GLM_EXP_POLY(z)                                                                  \
    (((((((z) * 1.9875691500e-4f + 1.3981999507e-3f) * (z) + 8.3334519073e-3f) * (z)     \
        + 4.1665795894e-2f) * (z) + 1.6666665459e-1f) * (z) + 5.0000001201e-1f)          \
         * ((z) * (z)) + (z) + 1.0f)

/* exp(x) for x <= 0; exactly 1 at 0; 0 for NaN. */
GLM_BOTH float
glm_exp_neg(float x)
{
    float     z = x > GLM_EXP_LEAST ? x : 0, t, p;
    uint32_t  bits, k;

    t = GLM_EXP_ROUND(z);
    z = GLM_EXP_REST(z, t - GLM_EXP_MAGIC);
    p = GLM_EXP_POLY(z);
    memcpy(&bits, &p, sizeof(bits));
    memcpy(&k, &t, sizeof(k));
    bits += (k - GLM_EXP_MAGIC_INT) << 23;
    memcpy(&p, &bits, sizeof(p));
    return x > GLM_EXP_LEAST ? p : 0;
}

/* Natural logarithm of a positive normal number, the same on every machine. */
GLM_BOTH double
glm_log_fixed(double x)
{
    uint64_t  bits;
    int       e;
    double    m, s, s2, sum = 0;

    memcpy(&bits, &x, sizeof(bits));
    e = (int) (bits >> 52) - 1023;
    bits = (bits & 0xfffffffffffffull) | 0x3ff0000000000000ull;
    memcpy(&m, &bits, sizeof(m));
    if (m > 1.4142135623730951) {
        m *= 0.5;
        e++;
    }
    s = (m - 1) / (m + 1);
    s2 = s * s;
    for (int k = 23; k >= 1; k -= 2) sum = sum * s2 + 1.0 / k;
    return 2 * s * sum + e * 0.69314718055994530942;
}

/* Larger logit, larger key. */
GLM_BOTH uint32_t
glm_logit_key(float x)
{
    uint32_t  b;

    x += 0.0f;                     /* -0 and 0 are one value */
    memcpy(&b, &x, sizeof(b));
    return b & 0x80000000u ? ~b : b | 0x80000000u;
}

GLM_BOTH float
glm_key_logit(uint32_t key)
{
    uint32_t  b = key & 0x80000000u ? key & 0x7fffffffu : ~key;
    float     x;

    memcpy(&x, &b, sizeof(x));
    return x;
}

/* See glm_adjust_t.  Stays finite: an infinite logit would pass for a broken model. */
GLM_BOTH float
glm_adjusted(const glm_adjust_t *t, float presence, float frequency, float repetition, float x)
{
    float  r = repetition > 0 ? repetition : 1;

    x += t->bias;
    if (t->seen) x = x > 0 ? x / r : x * r;
    x -= frequency * (float) t->count;
    if (t->count > 0) x -= presence;
    return x < FLT_MAX ? x : FLT_MAX;
}

/* Philox4x32-10: c becomes the output. */
GLM_BOTH void
glm_philox_rounds(uint32_t c[4], uint32_t k0, uint32_t k1)
{
    for (int i = 0; i < 10; i++) {
        uint64_t  a = (uint64_t) 0xD2511F53u * c[0];
        uint64_t  b = (uint64_t) 0xCD9E8D57u * c[2];

        c[0] = (uint32_t) (b >> 32) ^ c[1] ^ k0;
        c[1] = (uint32_t) b;
        c[2] = (uint32_t) (a >> 32) ^ c[3] ^ k1;
        c[3] = (uint32_t) a;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}

/* 53 bits of the generator's output, in [0, 1). */
GLM_BOTH double
glm_uniform(uint64_t seed, uint32_t choice, uint32_t blank, uint32_t ntokens)
{
    uint32_t  c[4] = { ntokens, blank, choice, 0 };

    glm_philox_rounds(c, (uint32_t) seed, (uint32_t) (seed >> 32));
    return (double) (((uint64_t) c[0] << 32 | c[1]) >> 11) * (1.0 / 9007199254740992.0);
}

#endif
