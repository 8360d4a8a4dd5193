/*
 * calib: the pass of model_cpu_forward.c with the loops turned round: all windows of
 * the text go through a linear before the next one is looked at.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "calib.h"
#include "half.h"
#include "model_backend.h"

#define CV_WINDOW  512            /* tokens of a window, with its two special ones */

/* The order of a layer's tensors in the plan. */
enum {
    LN1_WEIGHT, LN1_BIAS, QKV_WEIGHT, QKV_BIAS, DENSE_WEIGHT, DENSE_BIAS, LN2_WEIGHT, LN2_BIAS,
    UP_WEIGHT, UP_BIAS, DOWN_WEIGHT, DOWN_BIAS, PER_LAYER
};

struct cv_calib_s {
    const glm_config_t  *cfg;
    const cv_forms_t    *forms;
    const glm_ops_t     *ops;
    glm_comm_t          *comm;
    cv_gptq_t           *gptq;
    int32_t             *token;         /* (rows) all windows */
    int                  rows, window;  /* window: rows of each but the last */
    size_t               ld_h, ld_i, ld_t;
    float               *a, *y;         /* (rows, ld_h) normed; output of the sublayer */
    float               *wide;          /* (rows, ld_i) attention's output, then act's */
    float               *temp;          /* (window, ld_t) qkv, or both halves of act's input */
    float               *scratch;       /* of attention, for each thread */
    size_t               scratch_size;
    glm_norm_t           norm;          /* the one being taken; its ybias is of what is below */
    glm_mat_t            mat;           /* the linear being taken */
    glm_kv_t             kv;            /* of a window */
    int32_t             *pages;
    glm_at_t            *at;            /* (window) */
    glm_rope_t           rope;
    float               *cos, *sin;
    int                  bottom;        /* no residual yet */
};


static size_t
cv_row_floats(int64_t width)
{
    return ((size_t) width + 15) / 16 * 16 + 16;
}


static float *
cv_floats(size_t n)
{
    return aligned_alloc(64, (n * sizeof(float) + 63) / 64 * 64);
}


static int64_t
cv_widest(const glm_config_t *cfg)
{
    return cfg->hidden > cfg->inner ? cfg->hidden : cfg->inner;
}


/* ---- windows ---- */

static int
cv_cut(cv_calib_t *c, const int32_t *ids, size_t n, glm_err_t *err)
{
    int     text, w = c->cfg->max_seq < CV_WINDOW ? c->cfg->max_seq : CV_WINDOW;
    size_t  i;

    text = w - 2;
    c->token = malloc((n + 2 * (n / (size_t) text + 1)) * sizeof(int32_t));
    if (c->token == NULL) return glm_fail(err, GLM_ENOMEM, "no memory for the text");
    for (i = 0; i < n; i++) {
        if (ids[i] < 0 || ids[i] >= c->cfg->vocab) {
            return glm_fail(err, GLM_EINVAL, "the text has the id %d, the model's vocabulary %d: is it "
                            "another's tokenizer?", ids[i], c->cfg->vocab);
        }
        if (i % (size_t) text == 0) {
            c->token[c->rows++] = c->cfg->gmask;
            c->token[c->rows++] = c->cfg->sop;
        }
        c->token[c->rows++] = ids[i];
    }
    c->window = w;
    return 0;
}


/* Rows of the window that begins with row first. */
static int
cv_window_rows(const cv_calib_t *c, int first)
{
    return c->rows - first < c->window ? c->rows - first : c->window;
}


/* ---- making and freeing ---- */

static int
cv_calib_kv(cv_calib_t *c)
{
    int  d = c->cfg->head_dim, pages = (c->window + GLM_KV_TOKENS - 1) / GLM_KV_TOKENS, i;

    c->kv = (glm_kv_t) { NULL, 2 * (size_t) c->cfg->heads * (size_t) d * GLM_KV_TOKENS, c->cfg->heads, d };
    c->kv.base = cv_floats(c->kv.page_floats * (size_t) pages);
    c->pages = malloc((size_t) pages * sizeof(*c->pages));
    c->at = malloc((size_t) c->window * sizeof(*c->at));
    c->cos = cv_floats((size_t) c->window * (size_t) d / 2);
    c->sin = cv_floats((size_t) c->window * (size_t) d / 2);
    if (!c->kv.base || !c->pages || !c->at || !c->cos || !c->sin) return -1;
    for (i = 0; i < pages; i++) c->pages[i] = i;
    for (i = 0; i < c->window; i++) c->at[i] = (glm_at_t) { i, i, c->pages };
    memset(c->kv.base, 0, c->kv.page_floats * (size_t) pages * sizeof(float));
    glm_model_rope(d, c->window, c->cos, c->sin);
    c->rope = (glm_rope_t) { c->cos, c->sin, d };
    return 0;
}


static int
cv_calib_room(cv_calib_t *c, glm_err_t *err)
{
    const glm_config_t  *cfg = c->cfg;
    size_t               rows = (size_t) c->rows, h = (size_t) cfg->hidden;
    int                  threads = glm_comm_threads(c->comm);

    c->ld_h = cv_row_floats(cfg->hidden);
    c->ld_i = cv_row_floats(cv_widest(cfg));
    c->ld_t = cv_row_floats(cfg->hidden * 3 > cfg->inner * 2 ? cfg->hidden * 3 : cfg->inner * 2);
    c->a = cv_floats(rows * c->ld_h);
    c->y = cv_floats(rows * c->ld_h);
    c->wide = cv_floats(rows * c->ld_i);
    c->temp = cv_floats((size_t) c->window * c->ld_t);
    c->scratch_size = glm_attn_scratch(c->window);
    c->scratch = cv_floats((size_t) threads * c->scratch_size);
    c->norm = (glm_norm_t) { cv_floats(h), cv_floats(h), cv_floats(h), sqrtf(2 * (float) cfg->layers),
                             cfg->ln_eps, cfg->hidden };
    if (!c->a || !c->y || !c->wide || !c->temp || !c->scratch || !c->norm.weight || !c->norm.bias
        || !c->norm.ybias || cv_calib_kv(c) != 0)
    {
        return glm_fail(err, GLM_ENOMEM, "no memory for the activations of %d tokens", c->rows);
    }
    return cv_gptq_new(&c->gptq, c->comm, c->ops, cv_widest(cfg), err);
}


/* What the kernels can run. */
static int
cv_check_sizes(const cv_calib_t *c, glm_err_t *err)
{
    cv_item_t  item;
    size_t     i;

    if (c->cfg->gmask == GLM_NO_TOKEN || c->cfg->sop == GLM_NO_TOKEN) {
        return glm_fail(err, GLM_EINVAL, "calibration needs [gMASK] and sop in config.json");
    }
    if (c->cfg->head_dim % 16 != 0 || c->cfg->inner % 16 != 0) {
        return glm_fail(err, GLM_EINVAL, "calibration needs heads and an inner size that are multiples "
                        "of 16, not %d and %d", c->cfg->head_dim, c->cfg->inner);
    }
    for (i = 0; i < c->forms->n; i++) {
        cv_plan_at(c->cfg, i, &item);
        if (c->forms->of[i].groups == 0 || item.dim[1] / c->forms->of[i].groups % 16 == 0) continue;
        return glm_fail(err, GLM_EINVAL, "%s: calibration needs groups that are multiples of 16 columns, "
                        "not %d", item.name, (int) item.dim[1] / c->forms->of[i].groups);
    }
    return 0;
}


int
cv_calib_new(cv_calib_t **out, const glm_config_t *cfg, const cv_forms_t *forms,
    const int32_t *ids, size_t n, glm_err_t *err)
{
    cv_calib_t  *c = calloc(1, sizeof(*c));
    int          rc;

    *out = NULL;
    if (c == NULL) return glm_fail(err, GLM_ENOMEM, "no memory for calibration");
    c->cfg = cfg;
    c->forms = forms;
    c->ops = glm_cpu_ops(getenv("GLM_ISA"));
    c->bottom = 1;
    if (c->ops == NULL || n == 0) {
        rc = glm_fail(err, GLM_EINVAL, n == 0 ? "the text for calibration is empty"
                      : "GLM_ISA names no instruction set of this machine");

    } else if ((rc = cv_check_sizes(c, err)) == 0
               && (rc = glm_comm_new(&c->comm, 1, glm_comm_cores(), err)) == 0
               && (rc = cv_cut(c, ids, n, err)) == 0)
    {
        rc = cv_calib_room(c, err);
    }
    if (rc != 0) {
        cv_calib_free(c);
        return rc;
    }
    *out = c;
    return 0;
}


void
cv_calib_free(cv_calib_t *c)
{
    if (c == NULL) return;
    cv_gptq_free(c->gptq);
    glm_comm_free(c->comm);
    free(c->token);
    free(c->a);
    free(c->y);
    free(c->wide);
    free(c->temp);
    free(c->scratch);
    free(c->norm.weight);
    free(c->norm.bias);
    free(c->norm.ybias);
    free(c->mat.w);
    free(c->mat.bias);
    free(c->kv.base);
    free(c->pages);
    free(c->at);
    free(c->cos);
    free(c->sin);
    free(c);
}


/* ---- what it takes ---- */

typedef struct {
    const cv_calib_t  *c;
    float             *c_, *a, *b;      /* a small product for each thread */
} cv_trial_t;

#define CV_TRIAL_K  512


static void
cv_trial(const glm_member_t *me, void *arg)
{
    const cv_trial_t  *t = arg;
    int                i;

    for (i = 0; i < 20; i++) {
        t->c->ops->gemm(t->c_ + me->id * 96 * 128, 128, t->a, CV_TRIAL_K, 1, t->b, 128, 96, 128, CV_TRIAL_K);
    }
}


/* Operations a second of products, over all threads. */
static double
cv_rate(const cv_calib_t *c)
{
    int              n = glm_comm_threads(c->comm), i;
    cv_trial_t       t = { c, cv_floats((size_t) n * 96 * 128), cv_floats(96 * CV_TRIAL_K),
                           cv_floats(CV_TRIAL_K * 128) };
    struct timespec  from, to;

    if (t.c_ == NULL || t.a == NULL || t.b == NULL) return 1e9;
    for (i = 0; i < n * 96 * 128; i++) t.c_[i] = 0;
    for (i = 0; i < 96 * CV_TRIAL_K; i++) t.a[i] = 1;
    for (i = 0; i < CV_TRIAL_K * 128; i++) t.b[i] = 1;
    clock_gettime(CLOCK_MONOTONIC, &from);
    glm_comm_run(c->comm, cv_trial, &t);
    clock_gettime(CLOCK_MONOTONIC, &to);
    free(t.c_);
    free(t.a);
    free(t.b);
    return n * 20.0 * 2 * 96 * 128 * CV_TRIAL_K
           / ((double) (to.tv_sec - from.tv_sec) + (double) (to.tv_nsec - from.tv_nsec) * 1e-9 + 1e-9);
}


void
cv_calib_cost(const cv_calib_t *c, cv_calib_cost_t *cost)
{
    cv_item_t  item;
    double     ops = 0, rows = (double) c->rows, in, out;
    size_t     i, windows = ((size_t) c->rows + (size_t) c->window - 1) / (size_t) c->window;

    for (i = 0; i < c->forms->n; i++) {
        cv_plan_at(c->cfg, i, &item);
        if (!item.linear) continue;
        out = (double) item.dim[0];
        in = (double) item.dim[1];
        ops += 2 * rows * in * out;                     /* the pass */
        if (c->forms->of[i].choice.type == GLM_T_F16) continue;
        ops += rows * in * in + in * in * in / 3 + out * in * in;       /* H, U, rounding */
    }
    *cost = (cv_calib_cost_t) {
        .tokens = (size_t) c->rows - 2 * windows, .windows = windows,
        .bytes = cv_gptq_bytes(cv_widest(c->cfg), glm_comm_threads(c->comm))
                 + 4 * ((uint64_t) c->rows * (2 * c->ld_h + c->ld_i) + (uint64_t) c->window * c->ld_t
                        + c->kv.page_floats * (uint64_t) (c->window / GLM_KV_TOKENS + 1)),
        .seconds = ops / cv_rate(c),
    };
}


/* ---- the pass ---- */

/* A piece of work for the threads: which rows, and where from and to. */
typedef struct {
    cv_calib_t   *c;
    const float  *x;
    float        *y;
    size_t        ldx, ldy;
    int           rows;
    const void   *values;
    const uint16_t *scale;
} cv_work_t;


static void
cv_run_norm(const glm_member_t *me, void *arg)
{
    cv_calib_t  *c = arg;
    int          r0, r1;
    size_t       at;

    glm_comm_share(me, c->rows, &r0, &r1);
    at = (size_t) r0 * c->ld_h;
    c->ops->layernorm(c->a + at, c->ld_h, c->bottom ? NULL : c->a + at, c->ld_h, c->y + at, c->ld_h,
                      r1 - r0, &c->norm);
}


static void
cv_run_linear(const glm_member_t *me, void *arg)
{
    const cv_work_t  *w = arg;
    int               p0, p1;

    glm_comm_share(me, glm_panels(w->c->mat.n), &p0, &p1);
    w->c->ops->linear(w->y, w->ldy, w->x, w->ldx, w->rows, &w->c->mat, p0, p1, NULL);
}


static void
cv_run_pack(const glm_member_t *me, void *arg)
{
    const cv_work_t  *w = arg;
    const glm_mat_t  *m = &w->c->mat;
    int               p0, p1, i, n;
    size_t            row = (size_t) m->k * (size_t) m->bits / 8;

    glm_comm_share(me, glm_panels(m->n), &p0, &p1);
    for (i = p0 * GLM_PANEL; i < p1 * GLM_PANEL && i < m->n; i += n) {
        n = m->n - i < GLM_PANEL ? m->n - i : GLM_PANEL;
        w->c->ops->pack(m, i, (const uint8_t *) w->values + (size_t) i * row,
                        w->scale ? w->scale + (size_t) i * (size_t) (m->k / m->group) : NULL, n);
    }
}


/* Heads of a window whose q, k and v are in temp; its output goes to y. */
static void
cv_run_attention(const glm_member_t *me, void *arg)
{
    const cv_work_t  *w = arg;
    cv_calib_t       *c = w->c;
    int               h0, h1;

    glm_comm_share(me, c->cfg->heads, &h0, &h1);
    if (h0 == h1) return;
    c->ops->rope_kv(c->temp, c->ld_t, c->at, w->rows, &c->rope, &c->kv, h0, h1);
    c->ops->attn_row(w->y, w->ldy, c->temp, c->ld_t, c->at, w->rows, &c->kv, h0, h1,
                     c->scratch + (size_t) me->id * c->scratch_size);
}


static void
cv_run_act(const glm_member_t *me, void *arg)
{
    const cv_work_t  *w = arg;
    const cv_calib_t *c = w->c;
    int               r0, r1;
    const float      *u;

    glm_comm_share(me, w->rows, &r0, &r1);
    u = c->temp + (size_t) r0 * c->ld_t;
    c->ops->geglu(w->y + (size_t) r0 * w->ldy, w->ldy, u, u + c->cfg->inner, c->ld_t, r1 - r0, c->cfg->inner);
}


/* All windows through the first linear of a sublayer and what follows it. */
static void
cv_windows(cv_calib_t *c, glm_comm_pt after)
{
    cv_work_t  w = { .c = c };
    int        first;

    for (first = 0; first < c->rows; first += w.rows) {
        w.rows = cv_window_rows(c, first);
        w.x = c->a + (size_t) first * c->ld_h;
        w.ldx = c->ld_h;
        w.y = c->temp;
        w.ldy = c->ld_t;
        glm_comm_run(c->comm, cv_run_linear, &w);
        w.y = c->wide + (size_t) first * c->ld_i;
        w.ldy = c->ld_i;
        glm_comm_run(c->comm, after, &w);
    }
}


/* ---- tensors ---- */

static void
cv_take_vector(float *dst, const uint16_t *values, int64_t n)
{
    int64_t  i;

    for (i = 0; i < n; i++) dst[i] = cv_float_of_half(values[i]);
}


static void
cv_take_embedding(cv_calib_t *c, const uint16_t *e)
{
    int  i;

    for (i = 0; i < c->rows; i++) {
        cv_take_vector(c->y + (size_t) i * c->ld_h, e + (int64_t) c->token[i] * c->cfg->hidden, c->cfg->hidden);
    }
}


static int
cv_take_weight(cv_calib_t *c, const cv_item_t *item, const cv_form_t *form, const void *values,
    const uint16_t *scale, glm_err_t *err)
{
    static const int  bits[] = { [GLM_T_F16] = 16, [GLM_T_INT8] = 8, [GLM_T_INT4] = 4 };
    cv_work_t         w = { .c = c, .values = values, .scale = scale };
    glm_mat_t        *m = &c->mat;

    *m = (glm_mat_t) { .k = (int32_t) item->dim[1], .n = (int32_t) item->dim[0], .bits = bits[form->choice.type] };
    if (form->groups > 0) m->group = (int32_t) (item->dim[1] / form->groups);
    m->w = aligned_alloc(64, (glm_mat_bytes(m) + 63) / 64 * 64);
    if (m->w == NULL) return glm_fail(err, GLM_ENOMEM, "%s: no memory to calibrate with it", item->name);
    memset(m->w, 0, glm_mat_bytes(m));
    if (form->groups == 0) w.scale = NULL;
    glm_comm_run(c->comm, cv_run_pack, &w);
    return 0;
}


static int
cv_take_linear_bias(cv_calib_t *c, const uint16_t *values, int64_t n, glm_err_t *err)
{
    c->mat.bias = cv_floats((size_t) glm_panels(c->mat.n) * GLM_PANEL);
    if (c->mat.bias == NULL) return glm_fail(err, GLM_ENOMEM, "no memory for a bias");
    memset(c->mat.bias, 0, (size_t) glm_panels(c->mat.n) * GLM_PANEL * sizeof(float));
    cv_take_vector(c->mat.bias, values, n);
    return 0;
}


static void
cv_drop_mat(cv_calib_t *c)
{
    free(c->mat.w);
    free(c->mat.bias);
    c->mat = (glm_mat_t) { .w = NULL };
}


/* y = wide w^T, the last linear of a sublayer; its bias is the next norm's. */
static void
cv_close_sublayer(cv_calib_t *c)
{
    cv_work_t  w = { .c = c, .x = c->wide, .ldx = c->ld_i, .y = c->y, .ldy = c->ld_h, .rows = c->rows };

    glm_comm_run(c->comm, cv_run_linear, &w);
    cv_drop_mat(c);
}


int
cv_calib_take(cv_calib_t *c, size_t i, const void *values, const uint16_t *scale, glm_err_t *err)
{
    cv_item_t  item;
    int        rc = 0, last = i > PER_LAYER * (size_t) c->cfg->layers;

    cv_plan_at(c->cfg, i, &item);
    if (i == 0) {
        cv_take_embedding(c, values);
        return 0;
    }
    if (item.linear) rc = cv_take_weight(c, &item, &c->forms->of[i], values, scale, err);
    if (rc != 0 || last) return rc;
    switch ((i - 1) % PER_LAYER) {
    case LN1_WEIGHT:
    case LN2_WEIGHT:
        cv_take_vector(c->norm.weight, values, item.dim[0]);
        break;
    case LN1_BIAS:
    case LN2_BIAS:
        cv_take_vector(c->norm.bias, values, item.dim[0]);
        if (c->bottom) memset(c->norm.ybias, 0, (size_t) c->cfg->hidden * sizeof(float));
        glm_comm_run(c->comm, cv_run_norm, c);
        c->bottom = 0;
        break;
    case QKV_BIAS:
    case UP_BIAS:
        if ((rc = cv_take_linear_bias(c, values, item.dim[0], err)) != 0) break;
        cv_windows(c, (i - 1) % PER_LAYER == QKV_BIAS ? cv_run_attention : cv_run_act);
        cv_drop_mat(c);
        break;
    case DENSE_WEIGHT:
    case DOWN_WEIGHT:
        cv_close_sublayer(c);
        break;
    case DENSE_BIAS:
    case DOWN_BIAS:
        cv_take_vector(c->norm.ybias, values, item.dim[0]);
        break;
    default:
        break;
    }
    return rc;
}


int
cv_calib_quantize(cv_calib_t *c, size_t i, const glm_quantize_t *z, const uint16_t *w, uint8_t *q,
    uint16_t *scale, int64_t *row, int64_t *col)
{
    int  kind = (int) ((i - 1) % PER_LAYER), normed = kind == QKV_WEIGHT || kind == UP_WEIGHT;

    cv_gptq_inputs(c->gptq, normed ? c->a : c->wide, normed ? c->ld_h : c->ld_i, c->rows, z->cols);
    return cv_gptq_quantize(c->gptq, z, w, q, scale, row, col);
}


void
cv_calib_output(const cv_calib_t *c, int n, float *x)
{
    c->ops->residual(x, (size_t) c->cfg->hidden, c->a, c->ld_h, c->y, c->ld_h, n, &c->norm);
}
