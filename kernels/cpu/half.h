/*
 * half: fp16 <-> fp32 without instructions for it.  Exact; to fp16 rounds half
 * to even, as F16C does.
 */
#ifndef GLM_CPU_HALF_H
#define GLM_CPU_HALF_H

#include <stdint.h>
#include <string.h>

static inline float
glm_half_to_float(uint16_t h)
{
    uint32_t  sign = (uint32_t) (h & 0x8000) << 16, e = h >> 10 & 31, m = h & 0x3ff, u;
    float     f;

    if (e == 0) {                              /* zero or subnormal: m * 2^-24 */
        f = (float) m * 0x1p-24f;
        memcpy(&u, &f, 4);
        u |= sign;
    } else {
        u = sign | (e == 31 ? 0x7f800000u : (e + 112) << 23) | m << 13;
    }
    memcpy(&f, &u, 4);
    return f;
}

static inline uint16_t
glm_float_to_half(float f)
{
    uint32_t  u, sign, a, r;

    memcpy(&u, &f, 4);
    sign = u >> 16 & 0x8000;
    a = u & 0x7fffffff;
    if (a > 0x7f800000) return (uint16_t) (sign | 0x7e00);
    if (a >= 0x477ff000) return (uint16_t) (sign | 0x7c00);     /* 65520 and up */
    if (a < 0x38800000) {                      /* subnormal: the FPU rounds for us */
        memcpy(&f, &a, 4);
        f += 0.5f;                             /* unit in the last place 2^-24 */
        memcpy(&r, &f, 4);
        return (uint16_t) (sign | (r - 0x3f000000));
    }
    r = a + 0xfff + (a >> 13 & 1);
    return (uint16_t) (sign | (r - 0x38000000) >> 13);
}

#endif
