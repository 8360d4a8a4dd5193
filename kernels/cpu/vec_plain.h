/*
 * vec_plain: sixteen floats in plain C.  The three vec_*.h have the same
 * functions with the same results to the bit; kernels are written once above
 * them.  Operations are IEEE, fma rounds once.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "half.h"

#define VEC_ISA     "plain"
#define VEC_MR      3             /* rows a kernel keeps in registers */

typedef struct { float f[16]; } v16;

#define V_EACH      for (int l_ = 0; l_ < 16; l_++)
#define V_MAP(expr) v16 r_; V_EACH r_.f[l_] = (expr); return r_

static inline v16 v_set1(float x) { V_MAP(x); }
static inline v16 v_zero(void) { return v_set1(0); }
static inline v16 v_load(const float *p) { V_MAP(p[l_]); }
static inline void v_store(float *p, v16 a) { V_EACH p[l_] = a.f[l_]; }
static inline v16 v_loadh(const uint16_t *p) { V_MAP(glm_half_to_float(p[l_])); }
static inline v16 v_loadb(const int8_t *p) { V_MAP((float) p[l_]); }
static inline v16 v_add(v16 a, v16 b) { V_MAP(a.f[l_] + b.f[l_]); }
static inline v16 v_sub(v16 a, v16 b) { V_MAP(a.f[l_] - b.f[l_]); }
static inline v16 v_mul(v16 a, v16 b) { V_MAP(a.f[l_] * b.f[l_]); }
static inline v16 v_div(v16 a, v16 b) { V_MAP(a.f[l_] / b.f[l_]); }
static inline v16 v_max(v16 a, v16 b) { V_MAP(a.f[l_] > b.f[l_] ? a.f[l_] : b.f[l_]); }
static inline v16 v_fma(v16 a, v16 b, v16 c) { V_MAP(fmaf(a.f[l_], b.f[l_], c.f[l_])); }

/* sixteen words of eight nibbles, signed, the first one highest */
typedef struct { uint32_t u[16]; } w16;

static inline w16
w_load(const uint32_t *p)
{
    w16  w;

    memcpy(&w, p, sizeof(w));
    return w;
}

/* the first nibble of each lane; the next one takes its place */
static inline v16
w_take(w16 *w)
{
    v16  r;

    V_EACH {
        r.f[l_] = (float) ((int) (w->u[l_] >> 28 ^ 8) - 8);
        w->u[l_] <<= 4;
    }
    return r;
}

/* a < b ? x : y, lane by lane */
static inline v16
v_less(v16 a, v16 b, v16 x, v16 y)
{
    V_MAP(a.f[l_] < b.f[l_] ? x.f[l_] : y.f[l_]);
}

static inline v16 v_abs(v16 a) { V_MAP(fabsf(a.f[l_])); }
static inline v16 v_sign(v16 a, v16 s) { V_MAP(copysignf(a.f[l_], s.f[l_])); }

/* a * 2^k where z = 1.5 * 2^23 + k and the result is a normal number */
static inline v16
v_scale(v16 a, v16 z)
{
    uint32_t  u, k;
    v16       r;

    V_EACH {
        memcpy(&u, &a.f[l_], 4);
        memcpy(&k, &z.f[l_], 4);
        u += k << 23;
        memcpy(&r.f[l_], &u, 4);
    }
    return r;
}

/* lanes 0 .. n-1 of a, x in the others */
static inline v16
v_first(v16 a, int n, v16 x)
{
    V_MAP(l_ < n ? a.f[l_] : x.f[l_]);
}

static inline float
v_sum(v16 a)
{
    for (int h = 8; h > 0; h /= 2) {
        for (int l = 0; l < h; l++) a.f[l] += a.f[l + h];
    }
    return a.f[0];
}

static inline float
v_top(v16 a)
{
    for (int h = 8; h > 0; h /= 2) {
        for (int l = 0; l < h; l++) a.f[l] = a.f[l] > a.f[l + h] ? a.f[l] : a.f[l + h];
    }
    return a.f[0];
}
