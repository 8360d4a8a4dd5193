/*
 * half: fp32 and bf16 to fp16 and back, round to nearest, ties to even, in integers
 * so that every machine gives the same bits.
 */
#ifndef GLM_CV_HALF_H
#define GLM_CV_HALF_H

#include <stdint.h>
#include <string.h>

/*
 * Sets *ok to 0 when x is not finite or rounds to more than 65504; such a
 * value has no fp16.
 */
static inline uint16_t
cv_half(float x, int *ok)
{
    uint32_t  u, sign, e, m, drop, half, rest;

    memcpy(&u, &x, 4);
    sign = u >> 16 & 0x8000;
    e = u >> 23 & 0xff;
    m = u & 0x7fffff;
    if (e >= 143) {                             /* 2^16 and above, inf, nan */
        *ok = 0;
        return (uint16_t) (sign | 0x7c00);
    }
    if (e < 102) return (uint16_t) sign;        /* below 2^-25: less than half a step */
    m |= 0x800000;
    drop = e >= 113 ? 13 : 126 - e;             /* bits below fp16's last one */
    half = m >> drop;
    rest = m & ((1u << drop) - 1);
    if (rest > 1u << (drop - 1) || (rest == 1u << (drop - 1) && (half & 1))) half++;
    /* a carry out of the mantissa raises the exponent, as it should */
    if (e >= 113) half += (e - 113) << 10;
    if (half >= 0x7c00) *ok = 0;
    return (uint16_t) (sign | half);
}

static inline float
cv_float_of_half(uint16_t h)
{
    uint32_t  u = (uint32_t) (h & 0x7fff) << 13;
    float     x;

    memcpy(&x, &u, 4);
    x *= 0x1p112f;                              /* fp16's bias to fp32's; exact, finite h only */
    return h & 0x8000 ? -x : x;
}

static inline float
cv_float_of_bf16(uint16_t b)
{
    uint32_t  u = (uint32_t) b << 16;
    float     x;

    memcpy(&x, &u, 4);
    return x;
}

#endif
