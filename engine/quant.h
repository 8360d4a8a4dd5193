/*
 * quant: rows of fp16 to integers and scales, by the arithmetic of the
 * original: symmetric, one scale for each group of columns.
 *
 *     scale = fp16(max|w| / m)        m = 127 or 7
 *     q     = round_half_even(fp16(w / scale)), cut to [-m, m]
 *
 * where scale is 0 every q is 0.
 */
#ifndef GLM_QUANT_H
#define GLM_QUANT_H

#include <stdint.h>

#include "config.h"

/* Bytes of a row of cols values; int4 puts two in a byte. */
static inline int64_t
glm_quant_row_bytes(glm_ttype_t type, int64_t cols)
{
    return type == GLM_T_INT4 ? cols / 2 : cols;
}

static inline int
glm_quant_max(glm_ttype_t type)
{
    return type == GLM_T_INT4 ? 7 : 127;
}

typedef struct {
    glm_ttype_t  type;        /* int8 or int4 */
    int64_t      rows, cols;
    int64_t      group;       /* divides cols; even for int4 */
} glm_quantize_t;

/*
 * w: (rows, cols) fp16; q: rows of glm_quant_row_bytes(), which may begin where
 * w begins; scale: (rows, cols / group).  A weight that is not finite ends it:
 * -1, and *row, *col tell where.
 */
int glm_quantize(const glm_quantize_t *z, const uint16_t *w, uint8_t *q, uint16_t *scale, int64_t *row,
    int64_t *col);

/* n integers, each within its range, as they are stored: n or n / 2 bytes. */
void glm_quant_pack(glm_ttype_t type, const int8_t *q, int64_t n, uint8_t *out);

/* The scale of a group of weights up to max (fp16 bits, finite, no sign). */
uint16_t glm_quant_scale(glm_ttype_t type, uint16_t max);

#endif
