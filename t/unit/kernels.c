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

static glm_mat_t
packed(const glm_ops_t *ops, const uint16_t *w, int n, int k, float *bias)
{
    glm_mat_t  m = { NULL, bias, k, n };
    size_t     size = glm_pack_size(n, k) * sizeof(uint16_t);

    m.w = aligned_alloc(64, (size + 8192 + 63) / 64 * 64);
    memset(m.w, 0, size);
    for (int o = 0, c; o < n; o += c) {         /* in pieces, as a loader does */
        c = n - o < 64 ? n - o : 64;
        ops->pack(m.w, o, w + (size_t) o * (size_t) k, c, k);
    }
    return m;
}

/* (rows, k) x (n, k); ld > width, and nothing past n may be written. */
static void
check_linear(int rows, int k, int n, int with_bias)
{
    size_t     ldx = (size_t) k + 3, ldy = (size_t) n + 5;
    float     *x = floats((size_t) rows * ldx, 2), *first = NULL;
    float     *bias = with_bias ? floats((size_t) glm_panels(n) * 32, 1) : NULL;
    uint16_t  *w = halves((size_t) n * (size_t) k, 1);

    for (int s = 0; s < nsets; s++) {
        glm_mat_t  m = packed(sets[s], w, n, k, bias);
        float     *y = floats((size_t) rows * ldy, 1), *keep = floats((size_t) rows * ldy, 1);
        int        good = 1, clean = 1, np = glm_panels(n), cut = np / 3;

        memcpy(keep, y, (size_t) rows * ldy * sizeof(float));
        sets[s]->linear(y, ldy, x, ldx, rows, &m, cut, np, NULL);
        sets[s]->linear(y, ldy, x, ldx, rows, &m, 0, cut, NULL);
        for (int r = 0; r < rows; r++) {
            for (int o = 0; o < n; o++) {
                double  sum = 0, size = 0, t;

                for (int i = 0; i < k; i++) {
                    t = (double) x[(size_t) r * ldx + (size_t) i]
                        * glm_half_to_float(w[(size_t) o * (size_t) k + (size_t) i]);
                    sum += t;
                    size += fabs(t);
                }
                if (bias != NULL) sum += bias[o];
                good &= near(y[(size_t) r * ldy + (size_t) o], sum, 1e-6 * (size + 1), 0);
            }
            clean &= memcmp(y + (size_t) r * ldy + n, keep + (size_t) r * ldy + n,
                            5 * sizeof(float)) == 0;
        }
        ok(good, "%s: linear %d x %d x %d%s", sets[s]->isa, rows, k, n, bias ? " + bias" : "");
        ok(clean, "%s: linear keeps to its columns", sets[s]->isa);
        if (s == 0) {
            first = y;
        } else {
            good = 1;
            for (int r = 0; r < rows; r++) {
                good &= memcmp(y + (size_t) r * ldy, first + (size_t) r * ldy,
                               (size_t) n * sizeof(float)) == 0;
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
    free(w);
}

/* Each row alone and in every size of block: the same bits. */
static void
check_linear_rows(void)
{
    const int  k = 80, n = 8 * 32, rows = 31;
    float     *x = floats((size_t) (rows * k), 2), *y = floats((size_t) (rows * n), 1);
    float     *z = floats((size_t) (rows * n), 1);
    uint16_t  *w = halves((size_t) (n * k), 1);

    for (int s = 0; s < nsets; s++) {
        glm_mat_t  m = packed(sets[s], w, n, k, NULL);
        int        equal = 1;

        for (int r = 0; r < rows; r++) {
            sets[s]->linear(y + r * n, (size_t) n, x + r * k, (size_t) k, 1, &m, 0, 8, NULL);
        }
        for (int b = 2; b <= rows; b++) {
            sets[s]->linear(z, (size_t) n, x + (rows - b) * k, (size_t) k, b, &m, 0, 8, NULL);
            equal &= memcmp(z, y + (rows - b) * n, (size_t) (b * n) * sizeof(float)) == 0;
        }
        ok(equal, "%s: linear, 2 to %d rows: the bits of one", sets[s]->isa, rows);
        free(m.w);
    }
    free(x);
    free(y);
    free(z);
    free(w);
}

static void
check_embed(void)
{
    enum { V = 70, K = 48 };
    const int32_t   id[4] = { 100, 169, 99, 170 };      /* two here, two not */
    uint16_t       *w = halves(V * K, 1);

    for (int s = 0; s < nsets; s++) {
        glm_mat_t  m = packed(sets[s], w, V, K, NULL);
        float      y[4 * K];
        int        good = 1;

        memset(y, 0x7f, sizeof(y));
        sets[s]->embed(y, K, id, 100, 4, &m);
        for (int r = 0; r < 4; r++) {
            for (int i = 0; i < K; i++) {
                int    here = r < 2;
                float  e = here ? glm_half_to_float(w[(id[r] - 100) * K + i]) : 0;

                good &= y[r * K + i] == e;
            }
        }
        ok(good, "%s: embedding, zeros for ids of other ranks", sets[s]->isa);
        free(m.w);
    }
    free(w);
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

    check_linear(1, 64, 32, 0);
    check_linear(1, 33, 170, 1);                /* 4 panels, 1, and a part of one */
    check_linear(2, 100, 97, 1);
    check_linear(5, 7, 64, 0);
    check_linear(12, 96, 70, 1);
    check_linear(29, 48, 130, 1);
    check_linear(14, 2100, 300, 0);             /* more than a group of panels */
    check_linear_rows();
    check_embed();
    check_norm(16, 1);
    check_norm(256, 0);
    check_norm(768, 1);
    check_geglu();
    return tap_done();
}
