/*
 * real_util: real models, the goldens of the original on them, and requests of the
 * operations beside GENERATE.  Needs engine_util.h, golden.h and tap.h before it.
 * On a card (model_util.h) fp16 has tolerances of its own, models one cut and one rank.
 */
#ifndef GLM_T_REAL_UTIL_H
#define GLM_T_REAL_UTIL_H

#include "model_util.h"

#define MAXN  1024               /* ids of a golden */

/* o: what is not the model's directory and ranks. */
static glm_engine_t *
real_start(const char *dir, int tp, glm_engine_opts_t o)
{
    glm_engine_t  *e;
    glm_err_t      err = {0};

    o.model_dir = dir;
    o.model.backend = MODEL_BACKEND;
    o.model.tp = o.model.threads = model_cuda ? 1 : tp;
    if (glm_engine_start(&e, &o, &err) == 0) return e;
    bail_out(err.text);
}

/* A sanitizer is slow, and looks for other faults than numbers. */
static int
fewer(int n)
{
    return getenv("GLM_SANITIZED") != NULL ? (n + 4) / 5 : n;
}

/* Ran to its end in the right order. */
static int
ran(t_req_t *t)
{
    if (!t_run(t)) bail_out("a request did not end");
    if (t->ended == 2) diag("%s", t->no.text);
    return t->ended == 1 && !t->wrong;
}

static void
refuses(t_req_t *t, const char *param, const char *what)
{
    ok(t_run(t) && t->ended == 2 && t->no.status == 400 && !strcmp(t->no.param, param)
       && !t->accepted, "%s: %s", what, t->no.text);
    t_free(t);
}

/* Every case of a file; one: how far the engine is from it, above 1e8: not the same. */
static void
run_file(glm_engine_t *e, const char *model, const char *file,
    double (*one)(glm_engine_t *, const json_t *), double tolerance, const char *what)
{
    json_t  *g = golden_random(model, file);
    double   worst = 0;

    if (g == NULL) {
        skip("no golden file");
        return;
    }
    for (size_t i = 0; i < json_array_size(g); i++) {
        const json_t  *c = json_array_get(g, i);
        double         d;

        /* a case whose scores are too near each other for fp16 */
        if (model_cuda && json_is_false(json_object_get(c, "fp16_original_same"))) continue;
        d = one(e, c);
        if (d > 1e8) diag("%s differs", json_string_value(json_object_get(c, "name")));
        worst = fmax(worst, d);
    }
    ok(json_array_size(g) > 0 && worst < tolerance, "%s: %s within %.2g", what, file, worst);
    json_decref(g);
}

/* The random models that were converted, each with its ranks. */
static void
each_model(glm_engine_t *(*start)(const char *dir, int tp),
    void (*test)(glm_engine_t *e, const char *model, const char *what))
{
    static const char *const  names[5] = { "mini-tp1", "mini-tp2", "mini-tp4", "tiny-tp1",
                                           "tiny-tp2" };
    static const int          ranks[5] = { 1, 2, 4, 1, 2 };
    const char               *base = getenv("GLM_TEST_MODELS");

    for (int m = 0; m < fewer(5); m += model_cuda ? 3 : 1) {
        char           dir[512], what[64];
        glm_engine_t  *e;

        snprintf(dir, sizeof(dir), "%s/%s", base != NULL ? base : "build/models", names[m]);
        snprintf(what, sizeof(what), "%s, %d ranks", names[m], ranks[m]);
        if (access(dir, R_OK) != 0) {
            skip("this model directory was not converted");
            continue;
        }
        e = start(dir, ranks[m]);
        test(e, names[m], what);
        glm_engine_stop(e);
    }
}

#endif
