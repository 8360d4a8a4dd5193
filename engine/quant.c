/*
 * quant: written so that compilers make vectors of the loops over a run of
 * columns; each is exact, so the bits do not depend on what they made.
 */
#include <string.h>

#include "cpu/half.h"
#include "quant.h"

#define RUN  512           /* columns quantised at once; even */

uint16_t
glm_quant_scale(glm_ttype_t type, uint16_t max)
{
    return glm_float_to_half(glm_half_to_float(max) / (float) glm_quant_max(type));
}

/* Largest magnitude, as bits without the sign: their order is that of values. */
static int16_t
most_magnitude(const uint16_t *w, int64_t n)
{
    int16_t  most = 0, h;
    int64_t  i;

    for (i = 0; i < n; i++) {
        h = (int16_t) (w[i] & 0x7fff);
        most = h > most ? h : most;
    }
    return most;
}

/*
 * q of n weights.  The quotient is made without its sign, which changes no
 * rounding.  Of two fp16 values it is never halfway between two others, so half
 * a step is added and the rest cut off.  Adding and taking away 2^23 rounds to an
 * integer, half to even.
 */
static void
quantize_run(const uint16_t *w, int64_t n, float scale, float m, int8_t *q)
{
    union { uint32_t u; float f; }  x;
    int32_t  k;
    int64_t  i;

    for (i = 0; i < n; i++) {
        x.u = (uint32_t) (w[i] & 0x7fff) << 13;
        x.f = x.f * 0x1p112f / scale;
        x.u = (x.u + 0x1000) & ~0x1fffu;        /* to fp16's eleven bits */
        x.f = x.f < m ? x.f : m;
        k = (int32_t) (x.f + 0x1p23f - 0x1p23f);
        q[i] = (int8_t) (w[i] & 0x8000 ? -k : k);
    }
}

void
glm_quant_pack(glm_ttype_t type, const int8_t *q, int64_t n, uint8_t *out)
{
    int64_t  i;

    if (type == GLM_T_INT8) {
        memcpy(out, q, (size_t) n);
        return;
    }
    for (i = 0; i < n / 2; i++) out[i] = (uint8_t) (q[2 * i] * 16 | (q[2 * i + 1] & 15));
}

/* One group.  out may lie in w, at or before the group: a run is read whole
   before anything is written, and never grows. */
static void
quantize_group(const glm_quantize_t *z, const uint16_t *w, uint16_t scale, uint8_t *out)
{
    int8_t   q[RUN] = { 0 };
    int64_t  c, n;

    for (c = 0; c < z->group; c += n) {
        n = z->group - c < RUN ? z->group - c : RUN;
        if (scale != 0) {
            quantize_run(w + c, n, glm_half_to_float(scale), (float) glm_quant_max(z->type), q);
        }
        glm_quant_pack(z->type, q, n, out + glm_quant_row_bytes(z->type, c));
    }
}

/* Where the first value that is not finite is: there is one in the group. */
static int64_t
culprit(const uint16_t *w)
{
    int64_t  i;

    for (i = 0; (w[i] & 0x7c00) != 0x7c00; i++) { /* void */ }
    return i;
}

int
glm_quantize(const glm_quantize_t *z, const uint16_t *w, uint8_t *q, uint16_t *scale, int64_t *row,
    int64_t *col)
{
    int64_t   r, c, bytes = glm_quant_row_bytes(z->type, z->cols);
    uint16_t  most;

    for (r = 0; r < z->rows; r++) {
        for (c = 0; c < z->cols; c += z->group) {
            most = (uint16_t) most_magnitude(w + r * z->cols + c, z->group);
            if (most >= 0x7c00) {
                *row = r;
                *col = c + culprit(w + r * z->cols + c);
                return -1;
            }
            *scale = glm_quant_scale(z->type, most);
            quantize_group(z, w + r * z->cols + c, *scale++,
                           q + r * bytes + glm_quant_row_bytes(z->type, c));
        }
    }
    return 0;
}
