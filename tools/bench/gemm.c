/* gemm: see bench.h.  OpenBLAS is looked for when it runs; nothing links it. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "bench.h"

enum { ROW_MAJOR = 101, NO_TRANS = 111, TRANS = 112 };      /* cblas.h */

typedef void (*sgemm_pt)(int order, int ta, int tb, int m, int n, int k, float alpha,
    const float *a, int lda, const float *b, int ldb, float beta, float *c, int ldc);

struct bench_gemm_s {
    void        *lib;
    sgemm_pt     sgemm;
    const char  *config;
    int          m;
    int          n[4], k[4];
    float       *x, *w, *y;
};

static void
gemm_open(bench_gemm_t *g, int threads, const char **why)
{
    void  (*set)(int);
    char *(*config)(void);

    g->lib = dlopen("libopenblas.so.0", RTLD_NOW | RTLD_LOCAL);
    if (g->lib == NULL) {
        *why = "libopenblas.so.0 is not installed";
        return;
    }
    g->sgemm = (sgemm_pt) dlsym(g->lib, "cblas_sgemm");
    set = (void (*)(int)) dlsym(g->lib, "openblas_set_num_threads");
    config = (char *(*)(void)) dlsym(g->lib, "openblas_get_config");
    if (g->sgemm == NULL || set == NULL || config == NULL) {
        *why = "libopenblas.so.0 lacks cblas_sgemm";
        g->sgemm = NULL;
        return;
    }
    set(threads);
    g->config = config();
}

static float *
values(size_t n)
{
    float  *p = aligned_alloc((size_t) 2 << 20, (n * sizeof(float) + ((size_t) 4 << 20)) >> 21 << 21);

    if (p == NULL) return NULL;
    (void) madvise(p, n * sizeof(float), MADV_HUGEPAGE);
    for (size_t i = 0; i < n; i++) p[i] = (float) (i % 97) * 0.01f - 0.5f;
    return p;
}

bench_gemm_t *
bench_gemm_new(int m, int hidden, int inner, int threads, const char **why)
{
    bench_gemm_t  *g = calloc(1, sizeof(*g));
    int            big = 2 * inner > 3 * hidden ? 2 * inner : 3 * hidden;

    *why = "no memory";
    if (g == NULL) return NULL;
    gemm_open(g, threads, why);
    g->m = m;
    g->n[0] = 3 * hidden;   g->k[0] = hidden;
    g->n[1] = hidden;       g->k[1] = hidden;
    g->n[2] = 2 * inner;    g->k[2] = hidden;
    g->n[3] = hidden;       g->k[3] = inner;
    if (g->sgemm != NULL) {
        g->x = values((size_t) m * (size_t) (hidden > inner ? hidden : inner));
        g->w = values((size_t) big * (size_t) (hidden > inner ? hidden : inner));
        g->y = values((size_t) m * (size_t) big);
    }
    if (g->x != NULL && g->w != NULL && g->y != NULL) return g;
    bench_gemm_free(g);
    return NULL;
}

void
bench_gemm_free(bench_gemm_t *g)
{
    if (g == NULL) return;
    free(g->x);
    free(g->w);
    free(g->y);
    if (g->lib != NULL) dlclose(g->lib);
    free(g);
}

double
bench_gemm_run(bench_gemm_t *g, int transposed)
{
    double  t = bench_now();

    for (int i = 0; i < 4; i++) {
        g->sgemm(ROW_MAJOR, NO_TRANS, transposed ? TRANS : NO_TRANS, g->m, g->n[i], g->k[i], 1,
            g->x, g->k[i], g->w, transposed ? g->k[i] : g->n[i], 0, g->y, g->n[i]);
    }
    return bench_now() - t;
}

double
bench_gemm_flops(const bench_gemm_t *g)
{
    double  sum = 0;

    for (int i = 0; i < 4; i++) sum += 2.0 * g->m * g->n[i] * g->k[i];
    return sum;
}

const char *
bench_gemm_config(const bench_gemm_t *g)
{
    return g->config;
}
