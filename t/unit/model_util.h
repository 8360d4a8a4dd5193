/*
 * model_util: what the tests of the forward pass share.  Model directories are
 * those that make test converts (GLM_TEST_MODELS, default build/models) and
 * models/demo; goldens are in t/data.
 */
#ifndef MODEL_UTIL_H
#define MODEL_UTIL_H

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model.h"
#include "tap.h"

/* Built with GLM_TEST_CUDA the same tests run the CUDA backend, in fp16 and on one rank:
 * on a card, or with GLM_FAKECUDA over t/fakecuda. */
#ifdef GLM_TEST_CUDA
#define MODEL_BACKEND  GLM_BACKEND_CUDA
#else
#define MODEL_BACKEND  GLM_BACKEND_CPU
#endif

static const int  model_cuda = MODEL_BACKEND == GLM_BACKEND_CUDA;

/* Of so many cases one is enough: twins of kernels are slow, and kernels that a
 * sanitizer watches much slower. */
static inline int
model_few(void)
{
#ifdef GLM_FAKECUDA
    return 3;
#else
    return model_cuda && getenv("GLM_SANITIZED") != NULL ? 100 : 1;
#endif
}

/* In fp16 two logits that are nearer than this may change places: the random models'
 * prompts were chosen to stay above.  And what log-probabilities may be off. */
#define FP16_GAP      0.04
#define FP16_LOGPROB  0.1

static inline double
model_tolerance(double fp32, double fp16)
{
    return model_cuda ? fp16 : fp32;
}

/* Path of a test model, or NULL when it is not there. */
static inline const char *
model_dir(const char *name)
{
    static char  path[4][512], probe[600];
    static int   turn;
    const char  *base = getenv("GLM_TEST_MODELS");
    char        *p = path[turn++ % 4];

    if (base == NULL) base = "build/models";
    if (strcmp(name, "demo") == 0) snprintf(p, sizeof(path[0]), "models/demo");
    else snprintf(p, sizeof(path[0]), "%s/%s", base, name);
    snprintf(probe, sizeof(probe), "%s/config.json", p);
    return access(probe, R_OK) == 0 ? p : NULL;
}

static inline glm_model_t *
model_open(const char *dir, int tp, int threads, const char *isa)
{
    glm_model_opts_t  o = { .backend = MODEL_BACKEND, .dir = dir, .tp = tp,
                            .threads = threads, .isa = isa, .kv_pages = 128, .max_rows = 512 };
    glm_model_t      *m;
    glm_err_t         err = { "" };

    if (glm_model_load(&m, &o, &err) == 0) return m;
    diag("%s tp %d: %s", dir, tp, err.text);
    return NULL;
}

/*
 * A whole pass: tokens 0 .. c-1 as a context in one prefill (slice layers a
 * call; 0: all at once), the rest as rows, `step` of them a step.  positions of
 * the context are 0 .. c-1.  logits: (n, vocab).
 */
typedef struct {
    const int32_t  *token, *position, *pages;
    int             n, c, slice, step;
} pass_t;

static inline int
model_pass(glm_model_t *m, const pass_t *p, float *logits)
{
    const glm_config_t  *cfg = glm_model_config(m);
    int                  slice = p->slice > 0 ? p->slice : cfg->layers, rc, last, k;
    glm_row_t           *row;

    for (int l = 0; l < cfg->layers && p->c > 0; l = last) {
        last = l + slice < cfg->layers ? l + slice : cfg->layers;
        rc = glm_model_prefill(m, p->token, p->c, p->pages, l, last, logits);
        if (rc != 0) return rc;
    }
    row = calloc((size_t) p->n + 1, sizeof(*row));
    for (int i = p->c; i < p->n; i += k) {
        k = p->n - i < p->step ? p->n - i : p->step;
        for (int j = 0; j < k; j++) {
            row[j] = (glm_row_t) { p->token[i + j], p->position[i + j], i + j, p->pages, NULL };
        }
        rc = glm_model_step(m, row, k, NULL,
            logits == NULL ? NULL : logits + (size_t) i * (size_t) cfg->vocab);
        if (rc != 0) break;
    }
    free(row);
    return p->c < p->n ? rc : 0;
}

/* Pages 0 .. n-1 in an order that is not theirs; a fixed generator. */
static inline void
shuffle_pages(int32_t *pages, int n, uint32_t seed)
{
    for (int i = 0; i < n; i++) pages[i] = i;
    for (int i = n - 1; i > 0; i--) {
        int32_t  t, j;

        seed = seed * 1664525 + 1013904223;
        j = (int32_t) (seed >> 8) % (i + 1);
        t = pages[i];
        pages[i] = pages[j];
        pages[j] = t;
    }
}

static inline double
max_diff(const float *a, const float *b, size_t n)
{
    double  d, max = 0;

    for (size_t i = 0; i < n; i++) {
        d = fabs((double) a[i] - (double) b[i]);
        if (!(d <= max)) max = d;               /* a NaN stays */
    }
    return max;
}

#endif
