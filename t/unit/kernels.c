/*
 * kernels: each CPU kernel of each instruction set against a loop in double,
 * and all of them against each other, to the bit.
 */
#include <math.h>
#include <string.h>

#include "cpu/half.h"
#include "glm_kernels.h"
#include "tap.h"

static const glm_ops_t  *sets[3];
static int               nsets;

static uint32_t  seed = 1;

/* Uniform in [-1, 1). */
static float
rnd(void)
{
    seed = seed * 1664525 + 1013904223;
    return (float) (int32_t) seed * 0x1p-31f;
}

static float *
floats(size_t n, float scale)
{
    float  *p = aligned_alloc(64, (n * sizeof(float) + 63) / 64 * 64);

    for (size_t i = 0; i < n; i++) p[i] = rnd() * scale;
    return p;
}

static uint16_t *
halves(size_t n, float scale)
{
    uint16_t  *p = malloc(n * sizeof(*p));

    for (size_t i = 0; i < n; i++) p[i] = glm_float_to_half(rnd() * scale);
    return p;
}

static int
near(double got, double want, double abs_tol, double rel_tol)
{
    return fabs(got - want) <= abs_tol + rel_tol * fabs(want);
}

/* A weight as in model files; group 0: fp16. */
typedef struct {
    int        bits, group, n, k;
    uint8_t   *data;              /* (n, k) of bits each */
    uint16_t  *scale;             /* (n, k / group) */
} weight_t;

static weight_t
weight_new(int bits, int group, int n, int k)
{
    weight_t  w = { bits, group, n, k, NULL, NULL };
    size_t    bytes = (size_t) n * (size_t) k * (size_t) bits / 8;

    if (bits == 16) {
        w.data = (uint8_t *) halves((size_t) n * (size_t) k, 1);
        return w;
    }
    w.data = malloc(bytes);
    for (size_t i = 0; i < bytes; i++) w.data[i] = (uint8_t) (rnd() * 256);
    w.scale = halves((size_t) n * (size_t) (k / group), 0.1f);
    return w;
}

static void
weight_free(weight_t *w)
{
    free(w->data);
    free(w->scale);
}

/* What weight (o, i) is, exactly. */
static double
weight_at(const weight_t *w, int o, int i)
{
    size_t  at = (size_t) o * (size_t) w->k + (size_t) i;
    int     q;

    if (w->bits == 16) return glm_half_to_float(((const uint16_t *) (void *) w->data)[at]);
    if (w->bits == 8) q = (int8_t) w->data[at];
    else q = (int8_t) (i % 2 ? w->data[at / 2] << 4 : w->data[at / 2] & 0xf0) / 16;
    return q * (double) glm_half_to_float(w->scale[o * (w->k / w->group) + i / w->group]);
}

static glm_mat_t
packed(const glm_ops_t *ops, const weight_t *w, float *bias)
{
    glm_mat_t  m = { NULL, bias, w->k, w->n, w->bits, w->group };
    size_t     size = glm_mat_bytes(&m), row = (size_t) w->k * (size_t) w->bits / 8;

    m.w = aligned_alloc(64, (size + 63) / 64 * 64);
    memset(m.w, 0, size);
    for (int o = 0, c; o < w->n; o += c) {      /* in pieces, as a loader does */
        c = w->n - o < 64 ? w->n - o : 64;
        ops->pack(&m, o, w->data + (size_t) o * row,
            w->scale != NULL ? w->scale + o * (w->k / w->group) : NULL, c);
    }
    return m;
}

/* Of one row: whether y is x w^T + bias. */
static int
is_product(const float *y, const float *x, const weight_t *w, const float *bias)
{
    int  good = 1;

    for (int o = 0; o < w->n; o++) {
        double  sum = 0, size = 0, t;

        for (int i = 0; i < w->k; i++) {
            t = (double) x[i] * weight_at(w, o, i);
            sum += t;
            size += fabs(t);
        }
        if (bias != NULL) sum += bias[o];
        good &= near(y[o], sum, 1e-6 * (size + 1), 0);
    }
    return good;
}

static const char *
kind(const weight_t *w)
{
    static char  text[32];

    if (w->bits == 16) return "fp16";
    snprintf(text, sizeof(text), "int%d g%d", w->bits, w->group);
    return text;
}

/* (rows, k) x w; ld > width, and nothing past n may be written. */
static void
check_linear(int rows, int with_bias, weight_t w)
{
    size_t     n = (size_t) w.n, ldx = (size_t) w.k + 3, ldy = n + 5;
    float     *x = floats((size_t) rows * ldx, 2), *first = NULL;
    float     *bias = with_bias ? floats((size_t) glm_panels(w.n) * 32, 1) : NULL;

    for (int s = 0; s < nsets; s++) {
        glm_mat_t  m = packed(sets[s], &w, bias);
        float     *y = floats((size_t) rows * ldy, 1), *keep = floats((size_t) rows * ldy, 1);
        int        good = 1, clean = 1, np = glm_panels(w.n), cut = np / 3;

        memcpy(keep, y, (size_t) rows * ldy * sizeof(float));
        sets[s]->linear(y, ldy, x, ldx, rows, &m, cut, np, NULL);
        sets[s]->linear(y, ldy, x, ldx, rows, &m, 0, cut, NULL);
        for (size_t r = 0; r < (size_t) rows; r++) {
            good &= is_product(y + r * ldy, x + r * ldx, &w, bias);
            clean &= memcmp(y + r * ldy + n, keep + r * ldy + n, 5 * sizeof(float)) == 0;
        }
        ok(good, "%s: linear %d x %d x %d %s%s", sets[s]->isa, rows, w.k, w.n, kind(&w),
            bias ? " + bias" : "");
        ok(clean, "%s: linear keeps to its columns", sets[s]->isa);
        if (s == 0) {
            first = y;
        } else {
            good = 1;
            for (size_t r = 0; r < (size_t) rows; r++) {
                good &= memcmp(y + r * ldy, first + r * ldy, n * sizeof(float)) == 0;
            }
            ok(good, "%s: linear, the bits of %s", sets[s]->isa, sets[0]->isa);
            free(y);
        }
        free(keep);
        free(m.w);
    }
    free(first);
    free(x);
    free(bias);
    weight_free(&w);
}

/* Each row alone and in every size of block: the same bits. */
static void
check_linear_rows(weight_t w)
{
    const int  k = w.k, n = w.n, rows = 31, np = glm_panels(n);
    float     *x = floats((size_t) (rows * k), 2), *y = floats((size_t) (rows * n), 1);
    float     *z = floats((size_t) (rows * n), 1);

    for (int s = 0; s < nsets; s++) {
        glm_mat_t  m = packed(sets[s], &w, NULL);
        int        equal = 1;

        for (int r = 0; r < rows; r++) {
            sets[s]->linear(y + r * n, (size_t) n, x + r * k, (size_t) k, 1, &m, 0, np, NULL);
        }
        for (int b = 2; b <= rows; b++) {
            sets[s]->linear(z, (size_t) n, x + (rows - b) * k, (size_t) k, b, &m, 0, np, NULL);
            equal &= memcmp(z, y + (rows - b) * n, (size_t) (b * n) * sizeof(float)) == 0;
        }
        for (int p = 0; p < np; p++) {          /* panel by panel */
            sets[s]->linear(z, (size_t) n, x, (size_t) k, 1, &m, p, p + 1, NULL);
        }
        equal &= memcmp(z, y, (size_t) n * sizeof(float)) == 0;
        ok(equal, "%s: linear %s, 2 to %d rows, any panels: the bits of one", sets[s]->isa,
            kind(&w), rows);
        free(m.w);
    }
    free(x);
    free(y);
    free(z);
    weight_free(&w);
}

/* The order of sums that glm_kernels.h gives, step by step. */
static void
check_linear_order(weight_t w)
{
    float  *x = floats((size_t) w.k, 2), *y = floats((size_t) w.n, 1), acc, sum;
    int     good = 1;

    for (int s = 0; s < nsets; s++) {
        glm_mat_t  m = packed(sets[s], &w, NULL);

        sets[s]->linear(y, (size_t) w.n, x, (size_t) w.k, 1, &m, 0, glm_panels(w.n), NULL);
        for (int o = 0; o < w.n; o++) {
            sum = 0;
            for (int g = 0; g < w.k; g += w.group) {
                float  scale = glm_half_to_float(w.scale[(o * w.k + g) / w.group]);

                acc = 0;
                for (int i = g; i < g + w.group; i++) {
                    acc = fmaf(x[i], (float) (weight_at(&w, o, i) / (double) scale), acc);
                }
                sum = fmaf(scale, acc, sum);
            }
            good &= y[o] == sum;
        }
        free(m.w);
    }
    ok(good, "linear %s: the documented order of sums", kind(&w));
    free(x);
    free(y);
    weight_free(&w);
}

static void
check_embed(void)
{
    enum { V = 70, K = 48 };
    const int32_t   id[4] = { 100, 169, 99, 170 };      /* two here, two not */
    weight_t        w = weight_new(16, 0, V, K);

    for (int s = 0; s < nsets; s++) {
        glm_mat_t  m = packed(sets[s], &w, NULL);
        float      y[4 * K];
        int        good = 1;

        memset(y, 0x7f, sizeof(y));
        sets[s]->embed(y, K, id, 100, 4, &m);
        for (int r = 0; r < 4; r++) {
            for (int i = 0; i < K; i++) {
                int    here = r < 2;
                float  e = here ? (float) weight_at(&w, id[r] - 100, i) : 0;

                good &= y[r * K + i] == e;
            }
        }
        ok(good, "%s: embedding, zeros for ids of other ranks", sets[s]->isa);
        free(m.w);
    }
    weight_free(&w);
}

static void
check_norm(int dim, int with_a)
{
    enum { ROWS = 3 };
    size_t      ld = (size_t) dim + 16;
    float      *a = floats(ROWS * ld, 3), *first = NULL;
    float      *y = floats(ROWS * ld, with_a ? 30 : 0.005f);    /* eps counts */
    glm_norm_t  nm = { floats((size_t) dim, 1), floats((size_t) dim, 1),
                       floats((size_t) dim, 1), 11.832159f, 1e-5f, dim };

    for (int s = 0; s < nsets; s++) {
        float  *out = floats(ROWS * ld, 1), *x = floats(ROWS * ld, 1);
        int     good = 1;

        sets[s]->layernorm(out, ld, with_a ? a : NULL, ld, y, ld, ROWS, &nm);
        sets[s]->residual(x, ld, with_a ? a : NULL, ld, y, ld, ROWS, &nm);
        for (int r = 0; r < ROWS; r++) {
            double  v[1024], mean = 0, var = 0, want;

            for (int i = 0; i < dim; i++) {
                size_t  at = (size_t) r * ld + (size_t) i;

                v[i] = with_a ? (double) nm.alpha * a[at] + y[at] + nm.ybias[i] : y[at];
                good &= near(x[at], v[i], 1e-5, 1e-6);
                mean += v[i] / dim;
            }
            for (int i = 0; i < dim; i++) var += (v[i] - mean) * (v[i] - mean) / dim;
            for (int i = 0; i < dim; i++) {
                want = (v[i] - mean) / sqrt(var + 1e-5) * nm.weight[i] + nm.bias[i];
                good &= near(out[(size_t) r * ld + (size_t) i], want, 2e-6, 2e-6);
            }
        }
        ok(good, "%s: layer norm of %d%s", sets[s]->isa, dim, with_a ? ", residual" : "");
        if (s == 0) {
            first = out;
        } else {
            good = 1;
            for (size_t r = 0; r < ROWS; r++) {
                good &= memcmp(out + r * ld, first + r * ld, (size_t) dim * sizeof(float)) == 0;
            }
            ok(good, "%s: layer norm, the bits of %s", sets[s]->isa, sets[0]->isa);
            free(out);
        }
        free(x);
    }
    free(first);
    free(a);
    free(y);
    free(nm.weight);
    free(nm.bias);
    free(nm.ybias);
}

/* gelu over all sizes of argument; the worst is told. */
static void
check_geglu(void)
{
    enum { N = 40000 };
    float  *u1 = floats(N, 1), *u2 = floats(N, 1), *act = floats(N, 1), *first = floats(N, 1);

    for (int i = 0; i < N; i++) {
        u1[i] = 1 + (float) (i % 7);
        u2[i] = ((float) i - N / 2) * (16.0f / N);      /* -8 .. 8 */
    }
    for (int s = 0; s < nsets; s++) {
        double  worst = 0, want;

        sets[s]->geglu(act, N, u1, u2, N, 1, N);
        for (int i = 0; i < N; i++) {
            want = u1[i] * 0.5 * u2[i] * (1 + erf(u2[i] * M_SQRT1_2));
            want = fabs(act[i] - want) / (1 + fabs((double) u1[i] * u2[i]));
            if (!(want <= worst)) worst = want;
        }
        ok(worst < 2e-7, "%s: gated gelu, off by %.1e", sets[s]->isa, worst);
        if (s == 0) memcpy(first, act, N * sizeof(float));
        else ok(memcmp(first, act, N * sizeof(float)) == 0, "%s: the bits of %s", sets[s]->isa,
                sets[0]->isa);
    }
    free(u1);
    free(u2);
    free(act);
    free(first);
}

int
main(void)
{
    static const char  *names[] = { "avx512", "avx2", "plain" };

    for (int i = 0; i < 3; i++) {
        const glm_ops_t  *ops = glm_cpu_ops(names[i]);

        if (ops == NULL) skip(names[i]);
        else if (ok(strcmp(ops->isa, names[i]) == 0, "%s runs here", names[i])) {
            sets[nsets++] = ops;
        }
    }
    ok(glm_cpu_ops("mmx") == NULL, "an unknown set is refused");
    ok(glm_cpu_ops(NULL) == sets[0] && glm_cpu_ops("") == sets[0], "the best is the default");

    check_linear(1, 0, weight_new(16, 0, 32, 64));
    check_linear(1, 1, weight_new(16, 0, 170, 33));     /* 4 panels, 1, and a part of one */
    check_linear(2, 1, weight_new(16, 0, 97, 100));
    check_linear(5, 0, weight_new(16, 0, 64, 7));
    check_linear(12, 1, weight_new(16, 0, 70, 96));
    check_linear(29, 1, weight_new(16, 0, 130, 48));
    check_linear(14, 0, weight_new(16, 0, 300, 2100));  /* more than a group of panels */
    check_linear_rows(weight_new(16, 0, 8 * 32, 80));
    for (int bits = 4; bits <= 8; bits += 4) {
        check_linear(1, 1, weight_new(bits, 128, 170, 384));
        check_linear(1, 0, weight_new(bits, 16, 32, 16));
        check_linear(5, 1, weight_new(bits, 32, 97, 96));
        check_linear(12, 1, weight_new(bits, 48, 70, 96));
        check_linear(29, 1, weight_new(bits, 336, 130, 336));   /* row-wise */
        check_linear(14, 0, weight_new(bits, 1056, 300, 2112));
        check_linear_rows(weight_new(bits, 32, 7 * 32 + 9, 96));
        check_linear_order(weight_new(bits, 32, 97, 160));
    }
    check_embed();
    check_norm(16, 1);
    check_norm(256, 0);
    check_norm(768, 1);
    check_geglu();
    return tap_done();
}
