/*
 * gptq: blocks of columns, so that most of the work is products of matrices.  Threads
 * share rows or columns of a result, never a sum: its bits do not depend on
 * their number.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "gptq.h"
#include "half.h"

#define CV_BLOCK  128             /* columns of a step */
#define CV_ROWS   96              /* rows of the weight that a thread takes at once */

struct cv_gptq_s {
    glm_comm_t       *comm;
    const glm_ops_t  *ops;
    int64_t           cap, cols;
    float            *u;          /* (cols, cols): H, then U; the upper half counts */
    float            *t;          /* (CV_BLOCK, cols): minus a block of U, transposed */
    float            *diagonal;   /* (cols) of U */
    float            *e, *s;      /* a thread: (CV_ROWS, cols) errors, (CV_ROWS, CV_BLOCK) */
    float             least;      /* no pivot is below, but for rounding */
};


uint64_t
cv_gptq_bytes(int64_t cols, int threads)
{
    uint64_t  n = (uint64_t) cols;

    return 4 * (n * n + n * (CV_BLOCK + 1) + (uint64_t) threads * CV_ROWS * (n + CV_BLOCK));
}


int
cv_gptq_new(cv_gptq_t **out, glm_comm_t *comm, const glm_ops_t *ops, int64_t cols, glm_err_t *err)
{
    cv_gptq_t  *g = calloc(1, sizeof(*g));
    size_t      n = (size_t) cols, threads = (size_t) glm_comm_threads(comm);

    *out = g;
    if (g != NULL) {
        g->comm = comm;
        g->ops = ops;
        g->cap = cols;
        g->u = malloc(n * n * sizeof(float));
        g->t = malloc(n * CV_BLOCK * sizeof(float));
        g->diagonal = malloc(n * sizeof(float));
        g->e = malloc(threads * CV_ROWS * n * sizeof(float));
        g->s = malloc(threads * CV_ROWS * CV_BLOCK * sizeof(float));
    }
    if (g != NULL && g->u && g->t && g->diagonal && g->e && g->s) return 0;
    cv_gptq_free(g);
    *out = NULL;
    return glm_fail(err, GLM_ENOMEM, "no memory for calibration, %llu bytes",
                    (unsigned long long) cv_gptq_bytes(cols, (int) threads));
}


void
cv_gptq_free(cv_gptq_t *g)
{
    if (g == NULL) return;
    free(g->u);
    free(g->t);
    free(g->diagonal);
    free(g->e);
    free(g->s);
    free(g);
}


/* ---- H ---- */

typedef struct {
    cv_gptq_t    *g;
    const float  *x;
    size_t        ld;
    int64_t       n;
} cv_inputs_t;


/* Panels of columns, dealt out in turn as later ones are longer; rows above the
   diagonal and some below it. */
static void
cv_add_inputs(const glm_member_t *me, void *arg)
{
    const cv_inputs_t  *in = arg;
    int64_t             cols = in->g->cols, j, w, p, n;

    for (j = CV_BLOCK * me->id; j < cols; j += CV_BLOCK * me->n) {
        w = cols - j < CV_BLOCK ? cols - j : CV_BLOCK;
        for (p = 0; p < in->n; p += n) {
            n = in->n - p < 4096 ? in->n - p : 4096;
            in->g->ops->gemm(in->g->u + j, (size_t) cols, in->x + (size_t) p * in->ld, 1, in->ld,
                             in->x + (size_t) p * in->ld + j, in->ld, (int) (j + w), (int) w, (int) n);
        }
    }
}


/* ---- H = U U^T, from the last block to the first ---- */

typedef struct {
    cv_gptq_t  *g;
    int64_t     first, last;      /* the block */
} cv_step_t;


/* U[i, first .. last - 1] for a row above the block, or of it up to the diagonal: in each
   column what the columns behind it leave. */
static void
cv_solve_row(const cv_step_t *st, int64_t i)
{
    float    *u = st->g->u, *row = u + i * st->g->cols, sum;
    int64_t   n = st->g->cols, j, p;

    for (j = st->last - 1; j >= st->first && j >= i; j--) {
        const float  *uj = u + j * n;

        sum = row[j];
        for (p = j + 1; p < st->last; p++) sum -= row[p] * uj[p];
        row[j] = j > i ? sum / uj[j] : sqrtf(sum > st->g->least ? sum : st->g->least);
    }
}


static void
cv_solve_rows(const glm_member_t *me, void *arg)
{
    const cv_step_t  *st = arg;
    cv_gptq_t        *g = st->g;
    int64_t           i, p;

    for (i = me->id; i < st->first; i += me->n) {
        cv_solve_row(st, i);
        for (p = st->first; p < st->last; p++) g->t[(p - st->first) * g->cols + i] = -g->u[i * g->cols + p];
    }
}


/* What the block leaves of the columns before it. */
static void
cv_take_away(const glm_member_t *me, void *arg)
{
    const cv_step_t  *st = arg;
    cv_gptq_t        *g = st->g;
    int64_t           j, w;

    for (j = CV_BLOCK * me->id; j < st->first; j += CV_BLOCK * me->n) {
        w = st->first - j < CV_BLOCK ? st->first - j : CV_BLOCK;
        g->ops->gemm(g->u + j, (size_t) g->cols, g->u + st->first, (size_t) g->cols, 1, g->t + j,
                     (size_t) g->cols, (int) (j + w), (int) w, (int) (st->last - st->first));
    }
}


static void
cv_factor(cv_gptq_t *g)
{
    cv_step_t  st = { g, 0, g->cols };
    int64_t    i;

    while (st.last > 0) {
        st.first = (st.last - 1) / CV_BLOCK * CV_BLOCK;
        for (i = st.last - 1; i >= st.first; i--) cv_solve_row(&st, i);
        glm_comm_run(g->comm, cv_solve_rows, &st);
        glm_comm_run(g->comm, cv_take_away, &st);
        st.last = st.first;
    }
}


void
cv_gptq_inputs(cv_gptq_t *g, const float *x, size_t ld, int64_t n, int64_t cols)
{
    cv_inputs_t  in = { g, x, ld, n };
    double       mean = 0;
    int64_t      i;

    g->cols = cols;
    memset(g->u, 0, (size_t) (cols * cols) * sizeof(float));
    glm_comm_run(g->comm, cv_add_inputs, &in);
    for (i = 0; i < cols; i++) mean += (double) g->u[i * cols + i] / (double) cols;
    g->least = (float) mean * CV_DAMPING + 1e-20f;
    for (i = 0; i < cols; i++) g->u[i * cols + i] += g->least;
    cv_factor(g);
}


/* ---- rounding ---- */

typedef struct {
    cv_gptq_t             *g;
    const glm_quantize_t  *z;
    const uint16_t        *w;
    uint8_t               *q;
    uint16_t              *scale;
} cv_round_t;

/* Rows row .. of the weight, in a thread's room. */
typedef struct {
    int64_t  row, n;
    float   *e;               /* (n, cols) the weight, then w - q of columns done */
    float   *s;               /* (n, CV_BLOCK) what errors so far do to the block's components */
} cv_rows_t;


static float
cv_nearest(float x, float m)
{
    x = rintf(x);
    return x > m ? m : x < -m ? -m : x;
}


/* The scale of n targets that makes their errors, weighed by U's diagonal, smallest: that
   of the largest target, or of a part of it. */
static uint16_t
cv_best_scale(const float *target, const float *weight, int64_t n, float m)
{
    float     most = 0, s, d;
    double    loss, least = INFINITY;
    uint16_t  h, best = 0;
    int64_t   i;
    int       k, fits = 1;

    for (i = 0; i < n; i++) most = fabsf(target[i]) > most ? fabsf(target[i]) : most;
    for (k = 0; k < 20; k++) {
        h = cv_half(fminf(most, 65504) * (1 - 0.025f * (float) k) / m, &fits);
        if (h == 0) break;
        s = cv_float_of_half(h);
        for (i = 0, loss = 0; i < n; i++) {
            d = (target[i] - s * cv_nearest(target[i] / s, m)) * weight[i];
            loss += (double) (d * d);
        }
        if (loss >= least) continue;
        least = loss;
        best = h;
    }
    return best;
}


/* The scale of the group that begins with column c.  A group of one block is judged by
   what its columns are to become, a longer one by the weight. */
static uint16_t
cv_choose_scale(const cv_round_t *r, const float *e, const float *s, const float *diagonal, int64_t c)
{
    float    target[CV_BLOCK];
    int64_t  group = r->z->group, i;

    if (group > CV_BLOCK) {
        return cv_best_scale(e + c, diagonal + c, group, (float) glm_quant_max(r->z->type));
    }
    for (i = 0; i < group; i++) target[i] = e[c + i] + s[i] / diagonal[c + i];
    return cv_best_scale(target, diagonal + c, group, (float) glm_quant_max(r->z->type));
}


/* Columns c .. c + n - 1 of a row. */
static void
cv_round_block(const cv_round_t *r, int64_t row, float *e, float *s, const float *diagonal, int64_t c,
    int64_t n)
{
    const float  *u;
    int64_t       cols = r->g->cols, group = r->z->group, j, k;
    uint16_t     *scale = r->scale + row * (cols / group) + c / group;
    float         step, m = (float) glm_quant_max(r->z->type);
    int8_t        q[CV_BLOCK];

    if (c % group == 0) *scale = cv_choose_scale(r, e, s, diagonal, c);
    step = cv_float_of_half(*scale);
    for (j = 0; j < n; j++) {
        u = r->g->u + (c + j) * cols + c;
        q[j] = step == 0 ? 0 : (int8_t) cv_nearest((e[c + j] + s[j] / u[j]) / step, m);
        e[c + j] -= (float) q[j] * step;
        for (k = j + 1; k < n; k++) s[k] += e[c + j] * u[k];
    }
    glm_quant_pack(r->z->type, q, n, r->q + row * glm_quant_row_bytes(r->z->type, cols)
                   + glm_quant_row_bytes(r->z->type, c));
}


static void
cv_round_chunk(const cv_round_t *r, const cv_rows_t *k)
{
    const cv_gptq_t  *g = r->g;
    int64_t           cols = g->cols, i, c, n;

    for (i = 0; i < k->n * cols; i++) k->e[i] = cv_float_of_half(r->w[k->row * cols + i]);
    for (c = 0; c < cols; c += n) {
        n = r->z->group < CV_BLOCK ? r->z->group : CV_BLOCK;
        if (c % r->z->group + n > r->z->group) n = r->z->group - c % r->z->group;
        memset(k->s, 0, (size_t) (k->n * CV_BLOCK) * sizeof(float));
        g->ops->gemm(k->s, CV_BLOCK, k->e, (size_t) cols, 1, g->u + c, (size_t) cols, (int) k->n,
                     (int) n, (int) c);
        for (i = 0; i < k->n; i++) {
            cv_round_block(r, k->row + i, k->e + i * cols, k->s + i * CV_BLOCK, g->diagonal, c, n);
        }
    }
}


static void
cv_round_rows(const glm_member_t *me, void *arg)
{
    const cv_round_t  *r = arg;
    const cv_gptq_t   *g = r->g;
    cv_rows_t          k = { .e = g->e + (size_t) me->id * CV_ROWS * (size_t) g->cap,
                             .s = g->s + (size_t) me->id * CV_ROWS * CV_BLOCK };

    for (k.row = CV_ROWS * me->id; k.row < r->z->rows; k.row += CV_ROWS * me->n) {
        k.n = r->z->rows - k.row < CV_ROWS ? r->z->rows - k.row : CV_ROWS;
        cv_round_chunk(r, &k);
    }
}


int
cv_gptq_quantize(cv_gptq_t *g, const glm_quantize_t *z, const uint16_t *w, uint8_t *q,
    uint16_t *scale, int64_t *row, int64_t *col)
{
    cv_round_t  r = { g, z, w, q, scale };
    int64_t     i;

    for (i = 0; i < z->rows * z->cols; i++) {
        if ((w[i] & 0x7c00) != 0x7c00) continue;
        *row = i / z->cols;
        *col = i % z->cols;
        return -1;
    }
    for (i = 0; i < g->cols; i++) g->diagonal[i] = g->u[i * (g->cols + 1)];
    glm_comm_run(g->comm, cv_round_rows, &r);
    return 0;
}
