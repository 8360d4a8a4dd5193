/*
 * glm_kernels: the operations of the forward pass, one table a backend.  No
 * thread, no model and no request is known here: the caller says which rows,
 * heads or output panels a call makes, so that any number of threads can share
 * an operation, and a CUDA twin can take the whole.  Nothing allocates.
 *
 * Values are fp32; weights are those stored, exactly.  The bits of an output
 * depend on its own inputs only: never on the number of rows of a call, on the
 * row's place, on the range asked for or on the instruction set.  Every sum has
 * one order, given at its prototype ("fma" is one rounding).
 *
 * Strides (ld*) count floats.  A row buffer must have room up to the next
 * multiple of 16 floats of its width, and x of linear() is read in its first k
 * floats only.
 */
#ifndef GLM_KERNELS_H
#define GLM_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#define GLM_KERNEL_GENERATION  1  /* goes up when any output bit may change */

#define GLM_PANEL     32          /* outputs of a weight panel */
#define GLM_KV_TOKENS 16          /* tokens of a KV page */

/*
 * A linear weight in panels of 32 outputs, one after another, made by pack();
 * 64-byte aligned, outputs past n are zero.  A panel of 32p .. 32p+31:
 *   16 bits  [k][32] fp16
 *    8 bits  for each group [group][32] int8, then its 32 scales, fp16
 *    4 bits  for each group [group / 8][32] words, then its 32 scales, fp16; a
 *            word is one output's weights of 8 inputs, the first in its highest
 *            nibble (so a file's four bytes, read big-endian)
 * A load is then always 16 outputs at the same input, which is how an output's
 * chain of additions does not depend on the vector's width; a word a lane makes
 * the next nibbles of 16 outputs a rotation and a look-up.  All bytes lie in the
 * order of use, scales included: one stream a panel.
 */
typedef struct {
    void      *w;
    float     *bias;              /* (n rounded up to 32) or NULL */
    int32_t    k;                 /* inputs */
    int32_t    n;                 /* outputs */
    int32_t    bits;              /* of a weight: 16, 8 or 4 */
    int32_t    group;             /* inputs that share a scale: a multiple of 16
                                     that divides k; 16 bits: not used */
} glm_mat_t;

/*
 * Keys and values of one layer on one rank.  Page p starts at p * page_floats and
 * holds, head by head, keys [d][16 tokens] and then values [16 tokens][d].
 */
typedef struct {
    float    *base;               /* 64-byte aligned */
    size_t    page_floats;        /* 2 * heads * d * 16 */
    int32_t   heads;              /* of this rank */
    int32_t   d;                  /* head size, a multiple of 16 */
} glm_kv_t;

/* Where a row stands. */
typedef struct {
    int32_t         position;     /* row of the rotary table */
    int32_t         slot;         /* its token's place in the sequence */
    const int32_t  *pages;        /* block table of the sequence */
} glm_at_t;

/*
 * KV that an attention will read soon: heads h0 .. h1-1 of the pages of some
 * rows.  linear() brings it into the cache piece by piece, which costs nothing
 * where it has enough rows to be bound by arithmetic.  Zeroed: nothing.
 */
typedef struct {
    const glm_kv_t  *kv;
    const glm_at_t  *at;
    int              rows, h0, h1;
    int              row, page;   /* where it is */
    size_t           off;         /* bytes into the heads of that page */
} glm_fetch_t;

/* (max_seq, d/2) each: fp16 values as section 1 of the reference makes them. */
typedef struct {
    const float  *cos;
    const float  *sin;
    int32_t       d;
} glm_rope_t;

/* One row of layernorm(); see there. */
typedef struct {
    float        *weight, *bias;  /* (dim) */
    float        *ybias;          /* (dim), added to y; NULL: none */
    float         alpha;          /* of the residual */
    float         eps;
    int32_t       dim;            /* a multiple of 16 */
} glm_norm_t;

typedef struct {
    const char  *isa;             /* "plain", "avx2", "avx512" */

    /*
     * Packs outputs first .. first+nrows-1, first a multiple of 32, of src
     * (nrows, k) row-major as in model files: fp16, int8, or int4 two a byte,
     * the even column high; scale (nrows, k / group), NULL with 16 bits.
     */
    void (*pack)(const glm_mat_t *w, int32_t first, const void *src, const uint16_t *scale,
        int32_t nrows);

    /*
     * y (rows, k) = row token - first of the embedding w (n, k) fp16, packed;
     * zeros where that row is not here.
     */
    void (*embed)(float *y, size_t ldy, const int32_t *token, int32_t first, int rows,
        const glm_mat_t *w);

    /*
     * x = y                                   (a == NULL)
     * x = fma(alpha, a, y + ybias)            the residual is the normalised input
     * out = fma((x - mean) / sqrt(var + eps), weight, bias)
     * out, a, y: (rows, dim); out may be a.  Sums over dim: 16 lanes (i mod 16),
     * each in ascending order, then halves added: 8, 4, 2, 1.
     */
    void (*layernorm)(float *out, size_t ldo, const float *a, size_t lda, const float *y,
        size_t ldy, int rows, const glm_norm_t *nm);

    /* x of the above alone (what a trace shows). */
    void (*residual)(float *x, size_t ldx, const float *a, size_t lda, const float *y,
        size_t ldy, int rows, const glm_norm_t *nm);

    /*
     * y[:, 32 p0 .. 32 p1) = x w^T + bias; x (rows, k).  fp16: each output is one
     * fma chain over k ascending from 0, then + bias.  Quantised: a group is one
     * fma chain over its inputs ascending from 0, of x * q; the output is
     * fma(scale, group, output) from 0 over groups ascending, then + bias.  A
     * weight is therefore q * scale in real numbers, as in the CUDA kernels, and
     * not rounded to fp16 (the original's is: at most 2^-11 of it away).
     * Nothing past column n is written.  fetch may be NULL; it moves on.
     */
    void (*linear)(float *y, size_t ldy, const float *x, size_t ldx, int rows,
        const glm_mat_t *w, int p0, int p1, glm_fetch_t *fetch);

    /*
     * For heads h0 .. h1-1 of qkv (rows, heads * 3d; head h: q k v of d each):
     * rotates q in place, writes the rotated k and v to the row's KV slot.
     * out[i] = x[i] cos - x[i+d/2] sin, out[i+d/2] = x[i+d/2] cos + x[i] sin:
     * fma(x, cos, -+(x' sin)).
     */
    void (*rope_kv)(float *qkv, size_t ld, const glm_at_t *at, int rows,
        const glm_rope_t *rope, const glm_kv_t *kv, int h0, int h1);

    /*
     * Attention of heads h0 .. h1-1; q inside qkv as rope_kv() leaves it, out
     * (rows, heads * d).  score = (fma chain over d) / sqrt(d) (a product with
     * the rounded 1/sqrt(d)); p = exp(score - max); sum of p by 16 lanes (slot
     * mod 16), then as layernorm(); out = (fma chain of p v over slots
     * ascending) * (1 / sum).
     * attn_row: each row sees slots 0 .. slot.
     * attn_context: every row sees slots 0 .. n-1 of one block table.
     * scratch: glm_attn_scratch(largest number of slots) floats, 64-byte aligned.
     */
    void (*attn_row)(float *out, size_t ldo, const float *qkv, size_t ldq,
        const glm_at_t *at, int rows, const glm_kv_t *kv, int h0, int h1, float *scratch);
    void (*attn_context)(float *out, size_t ldo, const float *qkv, size_t ldq, int rows,
        int n, const int32_t *pages, const glm_kv_t *kv, int h0, int h1, float *scratch);

    /*
     * act = u1 * gelu(u2), gelu(u) = 0.5 u (1 + erf(u / sqrt 2)); erf within 2e-7.
     * (rows, n) each; n is rounded up to 16.
     */
    void (*geglu)(float *act, size_t lda, const float *u1, const float *u2, size_t ldu,
        int rows, int n);

    /*
     * c (m, n) += a (m, k) b (k, n), fp32: each a chain of fma over k ascending,
     * from c.  a[i, p] is at a + i * row + p * col.  For calibration only.
     */
    void (*gemm)(float *c, size_t ldc, const float *a, size_t row, size_t col, const float *b,
        size_t ldb, int m, int n, int k);
} glm_ops_t;

static inline int
glm_panels(int n)
{
    return (n + GLM_PANEL - 1) / GLM_PANEL;
}

/* Bytes of one group of a panel, its scales included; 16 bits: of a panel. */
static inline size_t
glm_group_bytes(const glm_mat_t *w)
{
    if (w->bits == 16) return (size_t) w->k * GLM_PANEL * 2;
    return (size_t) w->group * GLM_PANEL * (size_t) w->bits / 8 + GLM_PANEL * 2;
}

static inline size_t
glm_panel_bytes(const glm_mat_t *w)
{
    return w->bits == 16 ? glm_group_bytes(w)
                         : (size_t) (w->k / w->group) * glm_group_bytes(w);
}

static inline size_t
glm_mat_bytes(const glm_mat_t *w)
{
    return (size_t) glm_panels(w->n) * glm_panel_bytes(w);
}

#define GLM_ATTN_ROWS  12         /* most rows attention takes at once */

static inline size_t
glm_attn_scratch(int slots)
{
    return (size_t) GLM_ATTN_ROWS * (((size_t) slots + 31) / 32 * 32 + 16);
}

/*
 * The operations of an instruction set; NULL or "" as isa: the best this
 * machine runs.  NULL when it is unknown, not built in, or cannot run here.
 */
const glm_ops_t *glm_cpu_ops(const char *isa);

#endif
