/*
 * floor: see bench.h.  The loops here are the simplest that keep up with
 * memory; what they take is what a step cannot be much faster than.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "bench.h"
#include "cpu/half.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

struct bench_floor_s {
    glm_comm_t       *team;
    const glm_ops_t  *ops;
    uint16_t         *w;          /* rows, or panels */
    size_t            bytes;
    int               rows, k;
    int               panels;     /* which of the two loops */
    float            *x;          /* (k) */
    float            *y;          /* (rows) */
};

typedef void (*rows_pt)(float *y, const uint16_t *w, const float *x, int rows, int k);

static void
rows_plain(float *y, const uint16_t *w, const float *x, int rows, int k)
{
    for (int r = 0; r < rows; r++, w += k) {
        float  s = 0;

        for (int i = 0; i < k; i++) s += glm_half_to_float(w[i]) * x[i];
        y[r] = s;
    }
}

#if defined(__x86_64__)

__attribute__((target("avx512f")))
static void
rows_avx512(float *y, const uint16_t *w, const float *x, int rows, int k)
{
    for (int r = 0; r + 8 <= rows; r += 8, w += 8 * (size_t) k) {
        __m512  s[8], v;

        for (int j = 0; j < 8; j++) s[j] = _mm512_setzero_ps();
        for (int i = 0; i < k; i += 16) {
            v = _mm512_loadu_ps(x + i);
            _Pragma("GCC unroll 8")
            for (int j = 0; j < 8; j++) {
                const __m256i  *p = (const __m256i *) (w + (size_t) j * (size_t) k + i);

                s[j] = _mm512_fmadd_ps(_mm512_cvtph_ps(_mm256_loadu_si256(p)), v, s[j]);
            }
        }
        _Pragma("GCC unroll 8")
        for (int j = 0; j < 8; j++) y[r + j] = _mm512_reduce_add_ps(s[j]);
    }
}

__attribute__((target("avx2,fma,f16c")))
static void
rows_avx2(float *y, const uint16_t *w, const float *x, int rows, int k)
{
    for (int r = 0; r + 8 <= rows; r += 8, w += 8 * (size_t) k) {
        __m256  s[8], v;
        float   t[8];

        for (int j = 0; j < 8; j++) s[j] = _mm256_setzero_ps();
        for (int i = 0; i < k; i += 8) {
            v = _mm256_loadu_ps(x + i);
            _Pragma("GCC unroll 8")
            for (int j = 0; j < 8; j++) {
                const __m128i  *p = (const __m128i *) (w + (size_t) j * (size_t) k + i);

                s[j] = _mm256_fmadd_ps(_mm256_cvtph_ps(_mm_loadu_si128(p)), v, s[j]);
            }
        }
        for (int j = 0; j < 8; j++) {
            _mm256_storeu_ps(t, s[j]);
            y[r + j] = t[0] + t[1] + t[2] + t[3] + t[4] + t[5] + t[6] + t[7];
        }
    }
}

#endif

static rows_pt
rows_of(const glm_ops_t *ops)
{
#if defined(__x86_64__)
    if (strcmp(ops->isa, "avx512") == 0) return rows_avx512;
    if (strcmp(ops->isa, "avx2") == 0) return rows_avx2;
#endif
    (void) ops;
    return rows_plain;
}

static void
part(const glm_member_t *me, void *arg)
{
    bench_floor_t  *f = arg;
    int             n = glm_panels(f->rows), p0, p1, r0;
    glm_mat_t       m = { .w = f->w, .k = f->k, .n = f->rows, .bits = 16 };

    p0 = (int) ((int64_t) n * me->id / me->n);
    p1 = (int) ((int64_t) n * (me->id + 1) / me->n);
    if (f->panels) {
        f->ops->linear(f->y, (size_t) f->rows, f->x, (size_t) f->k, 1, &m, p0, p1, NULL);
        return;
    }
    r0 = p0 * GLM_PANEL;
    rows_of(f->ops)(f->y + r0, f->w + (size_t) r0 * (size_t) f->k, f->x, (p1 - p0) * GLM_PANEL,
        f->k);
}

bench_floor_t *
bench_floor_new(glm_comm_t *team, const glm_ops_t *ops, size_t n, int k)
{
    bench_floor_t  *f = calloc(1, sizeof(*f));

    if (f == NULL) return NULL;
    f->team = team;
    f->ops = ops;
    f->k = k;
    f->rows = (int) (n / (size_t) k / GLM_PANEL * GLM_PANEL);
    f->bytes = (size_t) f->rows * (size_t) k * sizeof(uint16_t);
    f->w = aligned_alloc((size_t) 2 << 20, (f->bytes + ((size_t) 4 << 20) - 1) >> 21 << 21);
    f->x = malloc((size_t) k * sizeof(float));
    f->y = malloc((size_t) f->rows * sizeof(float));
    if (f->w == NULL || f->x == NULL || f->y == NULL) {
        bench_floor_free(f);
        return NULL;
    }
    (void) madvise(f->w, f->bytes, MADV_HUGEPAGE);
    for (size_t i = 0; i < f->bytes / 2; i++) f->w[i] = (uint16_t) (0x2c00 + i % 1021);
    for (int i = 0; i < k; i++) f->x[i] = (float) (i % 13) * 0.1f - 0.6f;
    return f;
}

void
bench_floor_free(bench_floor_t *f)
{
    if (f == NULL) return;
    free(f->w);
    free(f->x);
    free(f->y);
    free(f);
}

double
bench_floor_run(bench_floor_t *f, int panels)
{
    double  t = bench_now();

    f->panels = panels;
    glm_comm_run(f->team, part, f);
    return bench_now() - t;
}
