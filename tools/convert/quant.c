/*
 * quant: written so that compilers make vectors of the loops over a run of
 * columns; each is exact, so the bits do not depend on what they made.
 */
#include <string.h>

#include "half.h"
#include "quant.h"

#define CV_RUN  512           /* columns quantised at once; even */


uint16_t
cv_quant_scale(glm_ttype_t type, uint16_t max)
{
    int  fits = 1;

    return cv_half(cv_float_of_half(max) / (float) cv_quant_max(type), &fits);
}


/* Largest magnitude, as bits without the sign: their order is that of values. */
static int16_t
cv_quant_most(const uint16_t *w, int64_t n)
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
cv_quant_run(const uint16_t *w, int64_t n, float scale, float m, int8_t *q)
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


static void
cv_quant_pack(const int8_t *q, int64_t n, uint8_t *out)
{
    int64_t  i;

    for (i = 0; i < n / 2; i++) out[i] = (uint8_t) (q[2 * i] << 4 | (q[2 * i + 1] & 15));
}


/* One group.  out may lie in w, at or before the group: a run is read whole
   before anything is written, and never grows. */
static void
cv_quant_group(const cv_quant_t *z, const uint16_t *w, uint16_t scale, uint8_t *out)
{
    int8_t   q[CV_RUN] = { 0 };
    int64_t  c, n;

    for (c = 0; c < z->group; c += n) {
        n = z->group - c < CV_RUN ? z->group - c : CV_RUN;
        if (scale != 0) {
            cv_quant_run(w + c, n, cv_float_of_half(scale), (float) cv_quant_max(z->type), q);
        }
        if (z->type == GLM_T_INT4) {
            cv_quant_pack(q, n, out + c / 2);

        } else {
            memcpy(out + c, q, (size_t) n);
        }
    }
}


/* Where the first value that is not finite is: there is one in the group. */
static int64_t
cv_quant_culprit(const uint16_t *w)
{
    int64_t  i;

    for (i = 0; (w[i] & 0x7c00) != 0x7c00; i++) { /* void */ }
    return i;
}


int
cv_quant(const cv_quant_t *z, const uint16_t *w, uint8_t *q, uint16_t *scale, int64_t *row,
    int64_t *col)
{
    int64_t   r, c, bytes = cv_quant_row_bytes(z->type, z->cols);
    uint16_t  most;

    for (r = 0; r < z->rows; r++) {
        for (c = 0; c < z->cols; c += z->group) {
            most = (uint16_t) cv_quant_most(w + r * z->cols + c, z->group);
            if (most >= 0x7c00) {
                *row = r;
                *col = c + cv_quant_culprit(w + r * z->cols + c);
                return -1;
            }
            *scale = cv_quant_scale(z->type, most);
            cv_quant_group(z, w + r * z->cols + c, *scale++,
                           q + r * bytes + cv_quant_row_bytes(z->type, c));
        }
    }
    return 0;
}
