/*
 * beam_goldens: breaks when a beam search no longer makes the original's steps: after
 * each one the live beams' last tokens and scores and how many have ended, and at last
 * the candidates with their scores; on a card the candidates.  Drives the scheduler by
 * hand over the random models, beside another request.
 */
#include <math.h>
#include <unistd.h>

#include "beam.h"
#include "engine_util.h"
#include "golden.h"
#include "model_util.h"
#include "scheduler.h"

#define MAXN   1024
#define PAGES  200

static glm_model_t   *model;
static glm_sched_t    S;
static atomic_int     live;
static glm_job_t     *job;                /* the search's */
static const json_t  *last_step;          /* of the golden, until it was checked */
static const json_t  *live_beams;         /* NULL: the candidates are in the golden */
static double         worst, worst_step;  /* distance of scores: of candidates, in steps */
static int            bad, bad_steps;

static int
up(const char *dir, glm_config_t *cfg)
{
    glm_model_opts_t  o = { .backend = MODEL_BACKEND, .dir = dir, .kv_pages = PAGES, .max_rows = 16,
                            .tp = 1, .threads = 1 };
    glm_err_t         err = {0};

    if (glm_model_load(&model, &o, &err) != 0) {
        ok(0, "%s: %s", dir, err.text);
        return 0;
    }
    *cfg = *glm_model_config(model);
    S = (glm_sched_t) { .model = model, .cfg = cfg, .max_seqs = 16, .max_rows = 16,
                        .max_queue = 10, .live = &live };
    if (glm_sched_init(&S, PAGES, &err) != 0) bail_out(err.text);
    return 1;
}

static double
at(const json_t *a, int32_t i)
{
    return json_number_value(json_array_get(a, (size_t) i));
}

static void
compare(double *most, double a, double b)
{
    *most = fmax(*most, fabs(a - b));
}

/* What the last step left, beside a golden's [last tokens, scores, finished]. */
static void
check_step(const json_t *step, int end)
{
    const glm_beams_t  *b = job->beams;
    const json_t       *tokens = json_array_get(step, 0), *scores = json_array_get(step, 1);

    bad_steps += (size_t) b->nnext != json_array_size(tokens);
    for (int32_t i = 0; i < b->nnext; i++) {
        bad_steps += b->next[i].token.id != (int32_t) at(tokens, i);
        compare(&worst_step, (double) b->next[i].score, at(scores, i));
    }
    /* at the end the live ones have joined the finished ones */
    if (!end) bad_steps += b->ndone != (int32_t) at(step, 2);
}

static int
ends(const glm_config_t *cfg, int32_t id)
{
    for (int32_t i = 0; i < cfg->nend_tokens; i++)
        if (cfg->end_tokens[i] == id) return 1;
    return 0;
}

static void
check_candidate(const t_choice_t *c, const json_t *want, const glm_config_t *cfg)
{
    int32_t  ids[MAXN], n = golden_ids(json_object_get(want, "ids"), ids, MAXN);
    int      ended = c->n > 0 && ends(cfg, c->id[c->n - 1]);

    bad += (int32_t) c->n != n + ended || memcmp(c->id, ids, (size_t) n * sizeof(int32_t)) != 0;
    bad += c->fin.reason != (ended ? GLM_FINISH_STOP : GLM_FINISH_LENGTH) || c->fin.nkept != n;
    compare(&worst, (double) c->fin.score, golden_num(want, "penalized_score"));
}

/* A golden without consider_end has the live beams, with their plain scores. */
static void
check_live(const glm_beams_t *b, const json_t *beams)
{
    for (int32_t i = 0; i < b->nnext; i++) {
        const json_t  *want = json_array_get(beams, (size_t) i);
        int32_t        ids[MAXN], n = golden_ids(json_object_get(want, "ids"), ids, MAXN);

        bad += n != b->step + 1 || b->next[i].token.id != ids[n - 1];
        for (int32_t k = 0; k < b->step; k++)
            bad += b->beam[b->next[i].from].said[k].id != ids[k];
        compare(&worst, (double) b->next[i].score, golden_num(want, "penalized_score"));
    }
}

/* The first token told: the search is over, and the last step still to be seen. */
static void
on_token(glm_req_t *r, const glm_token_out_t *o)
{
    if (last_step != NULL) check_step(last_step, 1);
    if (last_step != NULL && live_beams != NULL) check_live(job->beams, live_beams);
    last_step = NULL;
    t_token(r, o);
}

typedef struct {
    int32_t  ids[MAXN], n;        /* the context, without sop */
    int32_t  kind;                /* id of the mask that is filled */
} context_t;

static int32_t
find(const context_t *c, int32_t id, int32_t from)
{
    for (int32_t i = from; i < c->n; i++)
        if (c->ids[i] == id) return i;
    return -1;
}

static void
make_context(context_t *c, const json_t *golden, const glm_config_t *cfg)
{
    const int32_t  kinds[3] = { cfg->mask, cfg->smask, cfg->gmask };
    int32_t        last;

    c->n = golden_ids(json_object_get(golden, "prompt_ids"), c->ids, MAXN);
    c->kind = -1;
    for (int k = 0; k < 3 && c->kind < 0; k++)
        if (find(c, kinds[k], 0) >= 0) c->kind = kinds[k];
    last = c->ids[c->n - 1];
    if (c->kind < 0) c->ids[c->n++] = c->kind = cfg->gmask;
    else if (last != cfg->mask && last != cfg->smask && last != cfg->gmask)
        c->ids[c->n++] = cfg->eos;
}

/* The mask gives way to the best candidate. */
static void
fill(context_t *c, const json_t *round)
{
    context_t  old = *c;
    int32_t    m = find(c, c->kind, 0);

    c->n = m + golden_ids(json_object_get(json_array_get(json_object_get(round, "beams"), 0),
                                          "ids"), c->ids + m, MAXN);
    for (int32_t i = m + 1; i < old.n; i++) c->ids[c->n++] = old.ids[i];
}

/* A completion fills one mask: later ones are put in behind the check. */
static int
make_job(t_req_t *t, context_t *c, const glm_config_t *cfg)
{
    glm_limits_t   lim = { .vocab = { cfg, NULL }, .max_seqs = 16, .kv_pages = PAGES };
    int32_t        hidden[MAXN], n = 0, m = find(c, c->kind, 0);

    while ((m = find(c, c->kind, m + 1)) >= 0) c->ids[hidden[n++] = m] = 20;
    if (glm_job_make(&job, &t->r, &lim, &t->no) != 0) {
        diag("%s: %s", t->no.param, t->no.text);
        return 0;
    }
    for (int32_t i = 0; i < n; i++) job->prompt.ids[hidden[i]] = c->ids[hidden[i]] = c->kind;
    return 1;
}

static t_req_t *
search(context_t *c, const json_t *golden, const glm_config_t *cfg)
{
    static glm_sink_t  sink;
    const json_t      *s = json_object_get(golden, "settings");
    int32_t            beams = (int32_t) golden_num(s, "num_beams");
    t_req_t           *t = t_new_ids(NULL, c->ids, (size_t) c->n);

    sink = t_sink;
    sink.token = on_token;
    t->r.sink = &sink;
    t->r.add_special = 0;
    t->r.n = beams;
    t->r.beams = beams > 1 ? beams : 2;
    t->r.length_penalty = (float) golden_num(s, "length_penalty");
    t->r.no_repeat_ngram = (int32_t) golden_num(s, "no_repeat_ngram_size");
    t->r.min_tokens = (int32_t) golden_num(s, "min_gen_length");
    t->r.max_tokens = (int32_t) golden_num(golden, "out_seq_length") - c->n - 1;
    if (!make_job(t, c, cfg)) {
        t_free(t);
        return NULL;
    }
    /* One beam is no search to a client; the original has it. */
    if (beams == 1) {
        job->beams->width = 1;
        job->beams->rank /= 2;
    }
    return t;
}

static void
run_round(context_t *c, const json_t *golden, const json_t *round, const glm_config_t *cfg)
{
    const json_t  *steps = json_object_get(round, "steps");
    const json_t  *beams = json_object_get(round, "beams");
    const json_t  *settings = json_object_get(golden, "settings");
    t_req_t       *t = search(c, golden, cfg), *beside = t_new_ids(NULL, c->ids, 1);
    glm_limits_t   lim = { .vocab = { cfg, NULL }, .max_seqs = 16, .kv_pages = PAGES };
    glm_job_t     *other;
    size_t         i = 0;

    if (t == NULL) {
        bad++;
        t_free(beside);
        return;
    }
    live += 2;
    beside->r.add_special = 0;
    beside->r.ignore_eos = 1;
    beside->r.n = 3;
    if (glm_job_make(&other, &beside->r, &lim, &beside->no) != 0) bail_out(beside->no.text);
    last_step = json_array_get(steps, json_array_size(steps) - 1);
    live_beams = json_is_true(json_object_get(settings, "consider_end")) ? NULL : beams;
    glm_sched_arrive(&S, other, 1);
    glm_sched_arrive(&S, job, 1);
    while (!t->ended && glm_sched_step(&S, 1)) {
        if (t->ended || job->beams->step == (int32_t) i) continue;
        check_step(json_array_get(steps, i++), 0);
    }
    bad_steps += i + 1 != json_array_size(steps);
    bad += t->ended != 1 || t->wrong;
    while (glm_sched_step(&S, 1)) { }
    bad += beside->ended != 1 || live != 0 || S.kv.nfree != PAGES;

    for (int32_t k = 0; k < t->r.n && live_beams == NULL; k++)
        check_candidate(&t->c[k], json_array_get(beams, (size_t) k), cfg);
    t_free(t);
    t_free(beside);
}

/* In fp16 two live beams of nearly the same score may change places on the way; where
 * the original's own fp16 ends with the candidates of fp32, so do we. */
static void
judge(const char *model_name, const json_t *c)
{
    const char  *name = json_string_value(json_object_get(c, "name"));

    if (!model_cuda) {
        ok(bad == 0 && bad_steps == 0 && fmax(worst, worst_step) < 1e-3,
           "%s, %s: every step and candidate, scores within %.2g", model_name, name,
           fmax(worst, worst_step));
    } else if (json_is_true(json_object_get(c, "fp16_original_same"))) {
        ok(bad == 0 && worst < FP16_LOGPROB, "%s, %s: every candidate, scores within %.2g (%d beams of "
           "steps differ)", model_name, name, worst, bad_steps);
    } else {
        skip("a case for fp32 only");
    }
}

static void
run_model(const char *base, const char *name)
{
    char          dir[512];
    glm_config_t  cfg;
    json_t       *g = golden_random(name, "beam");

    snprintf(dir, sizeof(dir), "%s/%s-tp1", base, name);
    if (g == NULL || access(dir, R_OK) != 0) {
        skip("no golden file or no model of it");
        json_decref(g);
        return;
    }
    if (!up(dir, &cfg)) return;
    for (size_t i = 0; i < json_array_size(g); i++) {
        const json_t  *c = json_array_get(g, i), *rounds = json_object_get(c, "rounds");
        context_t      context;

        bad = bad_steps = 0;
        worst = worst_step = 0;
        make_context(&context, c, &cfg);
        for (size_t r = 0; r < json_array_size(rounds); r++) {
            run_round(&context, c, json_array_get(rounds, r), &cfg);
            fill(&context, json_array_get(rounds, r));
        }
        judge(name, c);
    }
    json_decref(g);
    glm_sched_wake(&S);
    glm_sched_destroy(&S);
    glm_model_free(model);
}

int
main(void)
{
    const char  *base = getenv("GLM_TEST_MODELS");

    run_model(base != NULL ? base : "build/models", "mini");
    run_model(base != NULL ? base : "build/models", "tiny");
    return tap_done();
}
