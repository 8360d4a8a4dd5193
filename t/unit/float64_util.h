/*
 * float64_util: two layers of GLM in double, from the loader's own values: section 1 of
 * the reference, written for being obviously right.  Rows are a context of CONTEXT
 * tokens that all see each other, and ROWS behind it that see it and themselves.
 */
#ifndef FLOAT64_UTIL_H
#define FLOAT64_UTIL_H

#include "comm.h"
#include "cpu/half.h"
#include "loader.h"
#include "model_backend.h"
#include "model_util.h"

#define CONTEXT  64
#define ROWS     64
#define TOKENS   (CONTEXT + ROWS)
#define MAX_SEQ  2048
#define OUT      8                /* outputs at a time */
#define CHUNK    512              /* inputs: OUT * CHUNK weights stay in the cache */

/* LOUD_BEYOND: sums past what fp16 holds. */
enum { LOUD_NONE, LOUD_TRAINED, LOUD_BEYOND };

static int            hidden = 256, heads = 2, inner = 512;
static int32_t        token[TOKENS], position[TOKENS];
static glm_loader_t  *loader;
static glm_comm_t    *team;
static int            loud;       /* LOUD_* of the run under way */
static double        *ref[3];     /* [layer][TOKENS][hidden], then logits */

/* ---- weights in double ---- */

static glm_tensor_t
tensor(const char *name)
{
    glm_tensor_t  t;
    glm_err_t     err = { "" };

    if (glm_loader_tensor(loader, name, &t, &err) != 0) bail_out(err.text);
    return t;
}

/* Dimensions that are loud somewhere. */
static int
loud_at(int i)
{
    if (loud == LOUD_NONE) return 0;
    return i == 5 || i == 7 || i == 11 || i == 12 || i == hidden / 3 || i == hidden / 2;
}

/* A loud weight of a norm is a loud column of the matrix behind it, a loud bias a loud
 * element of the residual, with which every norm divides. */
static void
make_loud(const char *name, uint16_t *h)
{
    int  residual = strstr(name, "dense.bias") || strstr(name, "dense_4h_to_h.bias");

    if (loud == LOUD_TRAINED && strstr(name, "layernorm.weight")) {
        h[5] = h[hidden / 3] = glm_float_to_half(9);
    }
    if (loud == LOUD_TRAINED && strstr(name, "layernorm.bias")) h[7] = glm_float_to_half(-30);
    if (loud == LOUD_TRAINED && residual) {
        h[11] = glm_float_to_half(100);
        h[hidden / 2] = glm_float_to_half(-60);
    }
    if (loud == LOUD_BEYOND && residual) {
        h[11] = h[hidden / 2] = glm_float_to_half(65504);
        h[12] = glm_float_to_half(-65504);
    }
    /* one element of the GLU that moves these by hundreds, up or down */
    if (loud == LOUD_BEYOND && strstr(name, "h_to_4h.bias") && !strstr(name, "4h_to_h")) {
        h[3] = h[inner + 3] = glm_float_to_half(200);
    }
}

/* A vector as the model under test has it; the caller frees it. */
static uint16_t *
vector(const char *name, int *n)
{
    glm_tensor_t  t = tensor(name);
    glm_slice_t   all = { 0, t.rows, 0, 1 };
    uint16_t     *h = malloc((size_t) t.rows * sizeof(*h));

    glm_tensor_slice(&t, &all, h);
    make_loud(name, h);
    *n = t.rows;
    return h;
}

/* A row of a matrix; raw: room for it as stored. */
static void
row_of(const glm_tensor_t *t, int row, uint16_t *scale, void *raw, double *out)
{
    glm_slice_t    s = { row, 1, 0, t->cols };
    const int8_t  *q = raw;
    int            width = t->groups > 0 ? t->cols / t->groups : t->cols, v;

    glm_tensor_slice(t, &s, raw);
    glm_tensor_scales(t, &s, scale);
    for (int i = 0; i < t->cols; i++) {
        if (t->type == GLM_T_F16) {
            out[i] = (double) glm_half_to_float(((const uint16_t *) raw)[i]);
            continue;
        }
        if (t->type == GLM_T_INT8) v = q[i];
        else v = (int8_t) (i % 2 ? q[i / 2] << 4 : q[i / 2] & 0xf0) / 16;
        out[i] = v * (double) glm_half_to_float(scale[i / width]);
    }
}

/* ---- arithmetic in double ---- */

#define LANES  8

/* Sums of products of x with OUT rows of w, ld apart, each in lanes, then of the lanes. */
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
__attribute__((target_clones("avx512f", "avx2", "default")))
#endif
static void
dots(const double *x, const double *w, size_t ld, int n, double sum[OUT])
{
    double  lane[OUT][LANES] = { { 0 } };

    for (int i = 0; i < n; i += LANES) {
        for (int o = 0; o < OUT; o++) {
            const double  *row = w + (size_t) o * ld + i;

            for (int j = 0; j < LANES; j++) lane[o][j] += x[i + j] * row[j];
        }
    }
    for (int o = 0; o < OUT; o++) {
        for (int j = 0; j < LANES; j++) sum[o] += lane[o][j];
    }
}

typedef struct {
    glm_tensor_t   t;
    const double  *x;             /* [TOKENS][cols] */
    double        *y;             /* [TOKENS][rows] */
} linear_t;

static void
outputs(const linear_t *l, int first, double *w, void *raw, uint16_t *scale)
{
    int     k = l->t.cols, n = l->t.rows - first < OUT ? l->t.rows - first : OUT;
    double  sum[TOKENS][OUT] = { { 0 } };

    for (int o = 0; o < n; o++) row_of(&l->t, first + o, scale, raw, w + (size_t) o * (size_t) k);
    for (int i = 0; i < k; i += CHUNK) {
        for (int r = 0; r < TOKENS; r++) {
            dots(l->x + (size_t) r * (size_t) k + i, w + i, (size_t) k,
                k - i < CHUNK ? k - i : CHUNK, sum[r]);
        }
    }
    for (int r = 0; r < TOKENS; r++) {
        memcpy(l->y + (size_t) r * (size_t) l->t.rows + first, sum[r], (size_t) n * sizeof(double));
    }
}

static void
linear_share(const glm_member_t *me, void *arg)
{
    const linear_t  *l = arg;
    size_t           k = (size_t) l->t.cols;
    double          *w = calloc(OUT * k, sizeof(*w));
    void            *raw = malloc(k * 2);
    uint16_t        *scale = malloc(k * sizeof(*scale));
    int              first, last;

    glm_comm_share(me, (l->t.rows + OUT - 1) / OUT, &first, &last);
    for (int i = first; i < last; i++) outputs(l, i * OUT, w, raw, scale);
    free(w);
    free(raw);
    free(scale);
}

/* y = x W^T + b; the output head has no bias. */
static double *
linear(const char *name, const double *x, int has_bias)
{
    char       bias[160];
    linear_t   l = { .x = x };
    uint16_t  *b;
    int        n;

    snprintf(bias, sizeof(bias), "%s.weight", name);
    l.t = tensor(bias);
    l.y = malloc((size_t) TOKENS * (size_t) l.t.rows * sizeof(double));
    glm_comm_run(team, linear_share, &l);
    if (!has_bias) return l.y;
    snprintf(bias, sizeof(bias), "%s.bias", name);
    b = vector(bias, &n);
    for (int i = 0; i < TOKENS * n; i++) l.y[i] += (double) glm_half_to_float(b[i % n]);
    free(b);
    return l.y;
}

static double *
norm(const char *name, const double *x)
{
    char       path[160];
    int        n;
    uint16_t  *w, *b;
    double    *y = malloc((size_t) (TOKENS * hidden) * sizeof(*y));

    snprintf(path, sizeof(path), "%s.weight", name);
    w = vector(path, &n);
    snprintf(path, sizeof(path), "%s.bias", name);
    b = vector(path, &n);
    for (int r = 0; r < TOKENS; r++) {
        const double  *in = x + r * n;
        double         mean = 0, var = 0;

        for (int i = 0; i < n; i++) mean += in[i] / n;
        for (int i = 0; i < n; i++) var += (in[i] - mean) * (in[i] - mean) / n;
        for (int i = 0; i < n; i++) {
            y[r * n + i] = (in[i] - mean) / sqrt(var + 1e-5) * (double) glm_half_to_float(w[i])
                + (double) glm_half_to_float(b[i]);
        }
    }
    free(w);
    free(b);
    return y;
}

static void
rotate(double *x, const float *cos, const float *sin)
{
    int  half = hidden / heads / 2;

    for (int i = 0; i < half; i++) {
        double  a = x[i], b = x[i + half], c = (double) cos[i], s = (double) sin[i];

        x[i] = a * c - b * s;
        x[i + half] = b * c + a * s;
    }
}

/* Of a row over the tokens that it sees; qkv is rotated. */
static void
attend(const double *qkv, int row, int head, double *out)
{
    int            d = hidden / heads, n = row < CONTEXT ? CONTEXT : row + 1;
    size_t         width = 3 * (size_t) hidden, at = (size_t) head * 3 * (size_t) d;
    const double  *q = qkv + (size_t) row * width + at;
    double         p[TOKENS], top = -INFINITY, sum = 0;

    for (int t = 0; t < n; t++) {
        const double  *k = qkv + (size_t) t * width + at + d;

        p[t] = 0;
        for (int i = 0; i < d; i++) p[t] += q[i] * k[i] / sqrt(d);
        top = fmax(top, p[t]);
    }
    for (int i = 0; i < d; i++) out[i] = 0;
    for (int t = 0; t < n; t++) {
        p[t] = exp(p[t] - top);
        sum += p[t];
    }
    for (int t = 0; t < n; t++) {
        for (int i = 0; i < d; i++) {
            out[i] += p[t] / sum * qkv[(size_t) t * width + at + 2 * (size_t) d + (size_t) i];
        }
    }
}

static double *
attention(double *qkv)
{
    int      d = hidden / heads;
    double  *out = malloc((size_t) (TOKENS * hidden) * sizeof(*out));
    float   *cos = malloc(2 * MAX_SEQ * (size_t) d * sizeof(*cos)), *sin = cos + MAX_SEQ * d;

    glm_model_rope(d, MAX_SEQ, cos, sin);
    for (int i = 0; i < TOKENS * heads; i++) {
        const size_t  at = (size_t) position[i / heads] * (size_t) d / 2;

        rotate(qkv + (size_t) i * 3 * (size_t) d, cos + at, sin + at);
        rotate(qkv + (size_t) i * 3 * (size_t) d + d, cos + at, sin + at);
    }
    for (int i = 0; i < TOKENS * heads; i++) attend(qkv, i / heads, i % heads, out + i * d);
    free(cos);
    return out;
}

static double *
gate(const double *u)
{
    double  *y = malloc((size_t) TOKENS * (size_t) inner * sizeof(*y));

    for (int r = 0; r < TOKENS; r++) {
        const double  *in = u + (size_t) r * 2 * (size_t) inner;

        for (int i = 0; i < inner; i++) {
            double  g = in[inner + i];

            y[(size_t) r * (size_t) inner + (size_t) i] = in[i] * 0.5 * g * (1 + erf(g / sqrt(2)));
        }
    }
    return y;
}

/* x = alpha a + y; gives both back. */
static double *
residual(double *a, double *y)
{
    for (int i = 0; i < TOKENS * hidden; i++) a[i] = 2 * a[i] + y[i];    /* sqrt(2 L) */
    free(y);
    return a;
}

static double *
layer(int i, const double *x)
{
    char     name[5][128];
    double  *a, *y, *t;

    snprintf(name[0], sizeof(name[0]), "layers.%d.input_layernorm", i);
    snprintf(name[1], sizeof(name[1]), "layers.%d.attention.query_key_value", i);
    snprintf(name[2], sizeof(name[2]), "layers.%d.attention.dense", i);
    a = norm(name[0], x);
    t = linear(name[1], a, 1);
    y = attention(t);
    free(t);
    t = linear(name[2], y, 1);
    free(y);
    x = residual(a, t);

    snprintf(name[0], sizeof(name[0]), "layers.%d.post_attention_layernorm", i);
    snprintf(name[3], sizeof(name[3]), "layers.%d.mlp.dense_h_to_4h", i);
    snprintf(name[4], sizeof(name[4]), "layers.%d.mlp.dense_4h_to_h", i);
    a = norm(name[0], x);
    free((void *) (uintptr_t) x);
    t = linear(name[3], a, 1);
    y = gate(t);
    free(t);
    t = linear(name[4], y, 1);
    free(y);
    return residual(a, t);
}

static void
reference(void)
{
    glm_tensor_t  e = tensor("word_embeddings.weight");
    uint16_t     *raw = malloc((size_t) hidden * 2);
    double       *x = malloc((size_t) (TOKENS * hidden) * sizeof(*x));

    for (int r = 0; r < TOKENS; r++) row_of(&e, token[r], NULL, raw, x + r * hidden);
    for (int i = 0; i < 3; i++) free(ref[i]);
    ref[0] = layer(0, x);
    ref[1] = layer(1, ref[0]);
    free(x);
    x = norm("final_layernorm", ref[1]);
    ref[2] = linear("word_embeddings", x, 0);
    free(x);
    free(raw);
}

#endif
