/*
 * gptq: products of matrices, the factor of H, and weights that make a text's outputs
 * closer than the nearest integers do.  What would break: a calibrated model that is
 * worse than one that is not, or that has other bits on another number of cores.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../../tools/convert/gptq.h"
#include "../../tools/convert/half.h"
#include "tap.h"

static uint32_t  seed = 1;


static float
rnd(void)
{
    seed = seed * 1664525 + 1013904223;
    return (float) (int32_t) seed * 0x1p-31f;
}


static float *
floats(size_t n)
{
    float   *p = malloc(n * sizeof(float));
    size_t   i;

    for (i = 0; i < n; i++) p[i] = rnd();
    return p;
}


/* c += a b of every instruction set, and all of them alike. */
static void
test_gemm(int m, int n, int k, int transposed)
{
    static const char *const  isa[] = { "plain", "avx2", "avx512" };
    float   *a = floats((size_t) (m * k)), *b = floats((size_t) (k * n)), *c0 = floats((size_t) (m * n));
    float   *c = malloc((size_t) (m * n) * 4), *first = malloc((size_t) (m * n) * 4);
    size_t   row = transposed ? 1 : (size_t) k, col = transposed ? (size_t) m : 1;
    int      s, i, j, p, bad = 0, differ = 0;

    for (s = 0; s < 3; s++) {
        const glm_ops_t  *ops = glm_cpu_ops(isa[s]);

        if (ops == NULL) continue;
        memcpy(c, c0, (size_t) (m * n) * 4);
        ops->gemm(c, (size_t) n, a, row, col, b, (size_t) n, m, n, k);
        for (i = 0; i < m; i++) {
            for (j = 0; j < n; j++) {
                double  sum = (double) c0[i * n + j];

                for (p = 0; p < k; p++) sum += (double) a[(size_t) i * row + (size_t) p * col] * (double) b[p * n + j];
                bad += fabs(sum - (double) c[i * n + j]) > 1e-5 * (k + 10);
            }
        }
        if (s == 0) memcpy(first, c, (size_t) (m * n) * 4);
        differ |= memcmp(first, c, (size_t) (m * n) * 4) != 0;
    }
    ok(bad == 0 && !differ, "%d x %d x %d%s", m, n, k, transposed ? ", a transposed" : "");
    free(a);
    free(b);
    free(c0);
    free(c);
    free(first);
}


enum { COLS = 352, ROWS = 200, TOKENS = 900 };

static float     x[TOKENS * (COLS + 16)];
static uint16_t  w[ROWS * COLS];

typedef struct {
    uint8_t   q[ROWS * COLS];
    uint16_t  scale[ROWS * COLS / 32];
} result_t;


/* Inputs that depend on each other, some loud; a weight of usual size. */
static void
make_problem(void)
{
    int    t, c, fits = 1;
    float  mood[8];

    for (t = 0; t < TOKENS; t++) {
        for (c = 0; c < 8; c++) mood[c] = rnd();
        for (c = 0; c < COLS; c++) {
            x[t * (COLS + 16) + c] = (c % 50 == 7 ? 8.f : 1.f) * (mood[c % 8] + 0.4f * rnd());
        }
    }
    for (c = 0; c < ROWS * COLS; c++) w[c] = cv_half((rnd() + rnd() + rnd()) * 0.05f, &fits);
}


static int
integer(glm_ttype_t type, const uint8_t *row, int c)
{
    if (type == GLM_T_INT8) return (int8_t) row[c];
    return (int8_t) (c % 2 ? row[c / 2] << 4 : row[c / 2]) >> 4;
}


/* The squared error of the outputs. */
static double
output_error(const glm_quantize_t *z, const result_t *r)
{
    double         sum = 0, y;
    static float   d[COLS];
    int            i, t, c;
    const uint8_t *row;

    for (i = 0; i < ROWS; i++) {
        row = r->q + i * glm_quant_row_bytes(z->type, COLS);
        for (c = 0; c < COLS; c++) {
            d[c] = cv_float_of_half(w[i * COLS + c]) - (float) integer(z->type, row, c)
                   * cv_float_of_half(r->scale[i * (COLS / z->group) + c / z->group]);
        }
        for (t = 0; t < TOKENS; t++) {
            for (c = 0, y = 0; c < COLS; c++) y += (double) (d[c] * x[t * (COLS + 16) + c]);
            sum += y * y;
        }
    }
    return sum;
}


static int
calibrated(const glm_quantize_t *z, int threads, result_t *r)
{
    glm_comm_t  *comm = NULL;
    cv_gptq_t   *g = NULL;
    glm_err_t    err = { "" };
    int64_t      row, col;
    int          rc = glm_comm_new(&comm, 1, threads, &err);

    memset(r, 0, sizeof(*r));
    if (rc == 0) rc = cv_gptq_new(&g, comm, glm_cpu_ops(NULL), COLS + 64, &err);
    if (rc == 0) {
        cv_gptq_inputs(g, x, COLS + 16, TOKENS, COLS);
        rc = cv_gptq_quantize(g, z, w, r->q, r->scale, &row, &col);
    }
    cv_gptq_free(g);
    glm_comm_free(comm);
    return rc;
}


static void
test_quantize(glm_ttype_t type, int64_t group, double part)
{
    static result_t  nearest, one, three;
    glm_quantize_t   z = { type, ROWS, COLS, group };
    int64_t          row, col;
    double           before, after;

    memset(&nearest, 0, sizeof(nearest));
    glm_quantize(&z, w, nearest.q, nearest.scale, &row, &col);
    ok(calibrated(&z, 1, &one) == 0 && calibrated(&z, 3, &three) == 0
       && memcmp(&one, &three, sizeof(one)) == 0, "int%d, groups of %d: one thread and three agree",
       type == GLM_T_INT4 ? 4 : 8, (int) group);
    before = output_error(&z, &nearest);
    after = output_error(&z, &one);
    ok(after < part * before, "outputs' error is %.3f of that of the nearest integers", after / before);
}


/* H = U U^T in double, one element at a time. */
static void
plain_factor(double u[COLS][COLS])
{
    double  mean = 0;
    int     i, j, t, p;

    for (i = 0; i < COLS; i++) {
        for (j = i; j < COLS; j++) {
            for (t = 0, u[i][j] = 0; t < TOKENS; t++) {
                u[i][j] += (double) x[t * (COLS + 16) + i] * (double) x[t * (COLS + 16) + j];
            }
        }
        mean += u[i][i] / COLS;
    }
    for (i = 0; i < COLS; i++) u[i][i] += mean * (double) CV_DAMPING;
    for (j = COLS - 1; j >= 0; j--) {
        for (i = j; i >= 0; i--) {
            for (p = j + 1; p < COLS; p++) u[i][j] -= u[i][p] * u[j][p];
            u[i][j] = i == j ? sqrt(u[i][j]) : u[i][j] / u[j][j];
        }
    }
}


/* Integers by the definition in gptq.h, with the scales that were chosen: few differ, by
   what fp32 does to a number that lies between two. */
static void
test_definition(void)
{
    static double    u[COLS][COLS], e[COLS];
    static result_t  r;
    glm_quantize_t   z = { GLM_T_INT4, ROWS, COLS, COLS };
    int              row, i, j, differ = 0;
    double           t, step;

    plain_factor(u);
    calibrated(&z, 2, &r);
    for (row = 0; row < ROWS; row++) {
        step = (double) cv_float_of_half(r.scale[row]);
        for (j = 0; j < COLS; j++) {
            e[j] = (double) cv_float_of_half(w[row * COLS + j]);
            for (i = 0, t = e[j]; i < j; i++) t += e[i] * u[i][j] / u[j][j];
            t = fmax(-7, fmin(7, rint(t / step)));
            differ += (int) t != integer(GLM_T_INT4, r.q + row * COLS / 2, j);
            e[j] -= integer(GLM_T_INT4, r.q + row * COLS / 2, j) * step;
        }
    }
    ok(differ < ROWS * COLS / 1000, "%d of %d integers differ from the definition's", differ, ROWS * COLS);
}


static void
test_refused(void)
{
    static result_t  r;
    glm_quantize_t   z = { GLM_T_INT4, ROWS, COLS, 32 };
    uint16_t         good = w[7 * COLS + 9];

    w[7 * COLS + 9] = 0x7c00;
    ok(calibrated(&z, 2, &r) == -1, "infinity is refused");
    w[7 * COLS + 9] = good;
    memset(x, 0, sizeof(x));
    ok(calibrated(&z, 2, &r) == 0, "inputs that are all 0 are no harm");
}


int
main(void)
{
    test_gemm(1, 16, 1, 0);
    test_gemm(37, 80, 300, 0);
    test_gemm(48, 64, 513, 1);
    test_gemm(13, 112, 0, 0);
    make_problem();
    test_quantize(GLM_T_INT4, COLS, 0.2);
    test_quantize(GLM_T_INT4, COLS / 2, 0.2);
    test_quantize(GLM_T_INT4, 32, 0.2);
    test_quantize(GLM_T_INT8, COLS, 0.2);
    test_definition();
    test_refused();
    return tap_done();
}
