/*
 * goldens: breaks when the engine with a real model no longer gives the original's
 * ids: greedy and evaluation goldens of the random models at every number of ranks,
 * completions and fills of the demo model with their text.  On a card (fp16) ids may
 * differ from where the two best logits are nearer than FP16_GAP.
 */
#include <math.h>
#include <unistd.h>

#include "engine_util.h"
#include "golden.h"
#include "model_util.h"

#define MAXN  1024

static glm_engine_t *
start(const char *dir, int tp)
{
    glm_engine_t       *e;
    glm_err_t           err = {0};
    glm_engine_opts_t   o = { .model_dir = dir, .max_num_seqs = 8, .kv_tokens = 8192,
                              .model = { .backend = MODEL_BACKEND, .tp = tp, .threads = tp } };

    if (glm_engine_start(&e, &o, &err) == 0) return e;
    ok(0, "%s starts at tp %d: %s", dir, tp, err.text);
    return NULL;
}

/* ---- random models: ids only ---- */

/* Compares ids and log-probabilities with a golden's steps; the worst distance, or
 * 1e9 when ids differ.  From where fp16 may take the other of two ids on, nothing is
 * compared. */
static double
distance(const t_choice_t *c, const json_t *steps)
{
    double  worst = 0;

    for (size_t i = 0; i < json_array_size(steps); i++) {
        const json_t         *s = json_array_get(steps, i);
        const glm_sampled_t  *o = &c->sampled[i];

        if (i == c->n) return 1e9;
        if (c->id[i] != (int32_t) golden_num(s, "token")) {
            return model_cuda && golden_num(s, "gap") < FP16_GAP ? worst : 1e9;
        }
        worst = fmax(worst, fabs((double) o->logprob - golden_num(s, "logprob")));
        for (int k = 0; k < 5; k++) {
            const json_t  *top = json_array_get(json_object_get(s, "top5"), (size_t) k);

            worst = fmax(worst, fabs((double) o->top[k].logprob
                                     - json_number_value(json_array_get(top, 1))));
        }
    }
    return c->n == json_array_size(steps) ? worst : 1e9;
}

static double
run_ids(glm_engine_t *e, const int32_t *ids, int32_t n, int special, glm_mode_t mode,
    int32_t max_tokens, const json_t *steps)
{
    t_req_t  *t = t_new_ids(e, ids, (size_t) n);
    double    d = 1e9;

    t->r.add_special = special;
    t->r.mode = mode;
    t->r.max_tokens = max_tokens;
    t->r.sample.nlogprobs = 5;
    if (t_run(t) && t->ended == 1 && !t->wrong) d = distance(&t->c[0], steps);
    if (t->ended == 2) diag("%s", t->no.text);
    t_free(t);
    return d;
}

static int
has(const int32_t *ids, int32_t n, int32_t id)
{
    for (int32_t i = 0; i < n; i++)
        if (ids[i] == id) return 1;
    return 0;
}

static double
greedy_case(glm_engine_t *e, const json_t *c)
{
    const glm_config_t  *cfg = glm_engine_config(e);
    const json_t        *round = json_array_get(json_object_get(c, "blanks"), 0);
    int32_t              ids[MAXN], n = golden_ids(json_object_get(c, "prompt_ids"), ids, MAXN);
    int32_t              last = ids[n - 1], context = n;
    int                  masked = has(ids, n, cfg->mask) || has(ids, n, cfg->smask)
                                  || has(ids, n, cfg->gmask);

    if (!masked || (last != cfg->mask && last != cfg->smask && last != cfg->gmask)) context++;
    return run_ids(e, ids, n, 1, GLM_BIDIRECTIONAL,
                   (int32_t) golden_num(c, "out_seq_length") - context - 1,
                   json_object_get(round, "steps"));
}

static double
eval_case(glm_engine_t *e, const json_t *c)
{
    int32_t     ids[MAXN], n = golden_ids(json_object_get(c, "text"), ids, MAXN - 1);
    int32_t     ctx[MAXN], nctx = golden_ids(json_object_get(c, "context_ids"), ctx, MAXN);
    glm_mode_t  mode = json_is_true(json_object_get(c, "unidirectional"))
                       ? GLM_UNIDIRECTIONAL : GLM_BIDIRECTIONAL;

    /* The original appends the mask here and never eos: that is what the ids say. */
    if (mode == GLM_BIDIRECTIONAL && n < nctx - 1) ids[n++] = ctx[nctx - 2];
    return run_ids(e, ids, n, mode == GLM_UNIDIRECTIONAL, mode,
                   (int32_t) golden_num(c, "max_gen_length"), json_object_get(c, "steps"));
}

static void
run_file(glm_engine_t *e, const char *model, const char *file,
    double (*one)(glm_engine_t *, const json_t *), const char *what)
{
    json_t  *g = golden_random(model, file);
    double   worst = 0;
    size_t   good = 0, cases = 0;

    if (g == NULL) {
        skip("no golden file");
        return;
    }
    for (size_t i = 0; i < json_array_size(g); i++) {
        const json_t  *c = json_array_get(g, i);
        double         d;

        /* Several blanks are rounds of requests; the engine fills one. */
        if (json_array_size(json_object_get(c, "blanks")) > 1) continue;
        cases++;
        d = one(e, c);
        if (d < 1e8) good++;
        else diag("%s differs", json_string_value(json_object_get(c, "name")));
        worst = fmax(worst, d);
    }
    ok(cases > 0 && good == cases && worst < model_tolerance(1e-3, FP16_LOGPROB), "%s: %zu of %zu "
       "%s cases, log-probabilities within %.2g", what, good, cases, file, worst);
    json_decref(g);
}

static void
test_random_models(const char *base)
{
    static const char *const  names[5] = { "mini-tp1", "mini-tp2", "mini-tp4", "tiny-tp1",
                                           "tiny-tp2" };

    for (int m = 0; m < 5; m += model_cuda ? 3 : 1) {
        for (int tp = 1; tp <= (model_cuda ? 1 : 4); tp *= 2) {
            char           dir[512], model[5], what[64];
            glm_engine_t  *e;

            snprintf(dir, sizeof(dir), "%s/%s", base, names[m]);
            snprintf(model, sizeof(model), "%s", names[m]);
            snprintf(what, sizeof(what), "%s, %d ranks", names[m], tp);
            if (access(dir, R_OK) != 0) {
                skip("this model directory was not converted");
                continue;
            }
            if ((e = start(dir, tp)) == NULL) continue;
            run_file(e, model, "greedy", greedy_case, what);
            run_file(e, model, "eval_generate", eval_case, what);
            glm_engine_stop(e);
        }
    }
}

/* ---- the demo model: text ---- */

static int
ids_equal(const t_choice_t *c, const json_t *want)
{
    if (c->n != json_array_size(want)) return 0;
    for (size_t i = 0; i < c->n; i++)
        if (c->id[i] != json_integer_value(json_array_get(want, i))) return 0;
    return 1;
}

static int
prompt_equal(const t_req_t *t, const json_t *want)
{
    if (t->nids != json_array_size(want)) return 0;
    for (size_t i = 0; i < t->nids; i++)
        if (t->ids[i] != json_integer_value(json_array_get(want, i))) return 0;
    return 1;
}

/* Whether fp16 may answer otherwise. */
static int
near(const json_t *c, const char *margin)
{
    return model_cuda && golden_num(c, margin) < FP16_GAP;
}

static int
demo_completion(glm_engine_t *e, const json_t *c, int ignore_eos)
{
    t_req_t     *t = t_new_text(e, json_string_value(json_object_get(c, "prompt")));
    const char  *finish = json_string_value(json_object_get(c, "finish"));
    int          good;

    t->r.max_tokens = 48;
    t->r.want_ids = 1;
    t->r.ignore_eos = ignore_eos;
    good = t_run(t) && t->ended == 1 && !t->wrong
           && prompt_equal(t, json_object_get(c, "prompt_ids"))
           && ids_equal(&t->c[0], json_object_get(c, ignore_eos ? "ignore_eos_ids" : "token_ids"));
    if (good && !ignore_eos)
        good = strcmp(t->c[0].text, json_string_value(json_object_get(c, "text"))) == 0
               && t->c[0].fin.reason == (strcmp(finish, "stop") == 0 ? GLM_FINISH_STOP
                                                                     : GLM_FINISH_LENGTH);
    if (!good) diag("%s: \"%s\" %s", t->seg.text, t->c[0].text, t->no.text);
    good |= t->ended == 1 && !t->wrong
            && near(c, ignore_eos ? "ignore_eos_min_margin" : "min_margin");
    t_free(t);
    return good;
}

static int
demo_fill(glm_engine_t *e, const json_t *c)
{
    t_req_t       *t = t_new_text(e, json_string_value(json_object_get(c, "prompt")));
    const json_t  *fill = json_array_get(json_object_get(c, "fills"), 0);
    int            good;

    t->r.max_tokens = 32;
    t->r.want_ids = 1;
    good = t_run(t) && t->ended == 1 && !t->wrong
           && prompt_equal(t, json_object_get(c, "prompt_ids"))
           && ids_equal(&t->c[0], json_array_get(json_object_get(c, "fill_ids"), 0))
           && strcmp(t->c[0].text, json_string_value(fill)) == 0;
    if (!good) diag("%s: \"%s\" %s", t->seg.text, t->c[0].text, t->no.text);
    t_free(t);
    return good;
}

static void
test_demo(int tp)
{
    json_t        *g = golden_load("demo/goldens.json", "demo/goldens.json");
    const json_t  *cases = json_object_get(g, "cases"), *blanks = json_object_get(g, "blanks");
    glm_engine_t  *e;
    size_t         good = 0, ignoring = 0, fills = 0, single = 0, n = 0;

    if (g == NULL || access("models/demo/config.json", R_OK) != 0) {
        skip("no demo model or no goldens of it");
        json_decref(g);
        return;
    }
    if ((e = start("models/demo", tp)) != NULL) {
        for (size_t i = 0; i < json_array_size(cases); i += (size_t) model_few(), n++) {
            good += (size_t) demo_completion(e, json_array_get(cases, i), 0);
            ignoring += (size_t) demo_completion(e, json_array_get(cases, i), 1);
        }
        ok(good == n && n > 0, "demo, %d ranks: %zu of %zu completions", tp, good, n);
        ok(ignoring == n, "demo, %d ranks: %zu of %zu ignoring eos", tp, ignoring, n);
        for (size_t i = 0; i < json_array_size(blanks); i++) {
            if (json_array_size(json_object_get(json_array_get(blanks, i), "fills")) > 1) continue;
            single++;
            fills += (size_t) demo_fill(e, json_array_get(blanks, i));
        }
        ok(fills == single && single > 0, "demo, %d ranks: %zu of %zu fills", tp, fills, single);
        glm_engine_stop(e);
    }
    json_decref(g);
}

int
main(void)
{
    const char  *base = getenv("GLM_TEST_MODELS");

    for (int tp = 1; tp <= (model_cuda ? 1 : 4); tp *= 2) test_demo(tp);
    test_random_models(base != NULL ? base : "build/models");
    return tap_done();
}
