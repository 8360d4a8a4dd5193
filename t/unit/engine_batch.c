/*
 * engine_batch: breaks when what runs beside a request changes a bit of it: ids,
 * text, log-probabilities.  The demo model; every request alone first, then in
 * mixes of several sizes, with prompts cut into slices.
 */
#include <unistd.h>

#include "engine_util.h"
#include "golden.h"
#include "tap.h"

#define N  200         /* requests; fewer of them on more ranks */

static char  *prompts[64];
static int    nprompts;

static void
load_prompts(void)
{
    static const char *const  keys[2] = { "cases", "blanks" };
    json_t                   *g = golden_load("demo/goldens.json", "demo/goldens.json");

    if (g == NULL || access("models/demo/config.json", R_OK) != 0)
        skip_all("no demo model or no goldens of it");
    for (int k = 0; k < 2; k++) {
        const json_t  *list = json_object_get(g, keys[k]);

        for (size_t i = 0; i < json_array_size(list); i++) {
            const char  *p = json_string_value(json_object_get(json_array_get(list, i), "prompt"));
            const char  *mask = strstr(p, "[MASK]");

            if (mask != NULL && strstr(mask + 1, "[MASK]") != NULL) continue;
            if (nprompts < 64) prompts[nprompts++] = strdup(p);
        }
    }
    json_decref(g);
}

static glm_engine_t *
up(int tp, int max_seqs, int max_rows, int64_t kv_tokens, int64_t budget)
{
    glm_engine_t       *e;
    glm_err_t           err = {0};
    glm_engine_opts_t   o = {
        .model_dir = "models/demo",
        .model = { .tp = tp, .threads = 2, .max_rows = max_rows },
        .max_num_seqs = max_seqs, .kv_tokens = kv_tokens, .tokenizer_threads = 2,
        .prefill_budget = budget
    };

    if (glm_engine_start(&e, &o, &err) != 0) bail_out(err.text);
    return e;
}

/* Fields that change single ids, best_of and others: every third request has some. */
static void
add_rules(t_req_t *t, unsigned *s)
{
    static const glm_logit_bias_t  bias[2] = { { 300, 3 }, { 7813, -2 } };
    static const glm_stop_t        bad[1] = { { "the", 3 } };
    static int32_t                 ids[40];

    for (int i = 0; i < 40; i++) ids[i] = 7813 - 100 * i;

    t->r.sample.presence = (float) (rand_r(s) % 3);
    t->r.sample.frequency = (float) (rand_r(s) % 2) * 0.5f;
    t->r.sample.repetition = (float) (rand_r(s) % 3) * 0.75f;
    t->r.min_tokens = (int) (rand_r(s) % 4);
    if (rand_r(s) % 2) {
        t->r.bias = bias;
        t->r.nbias = 2;
        t->r.bad = bad;
        t->r.nbad = 1;
    }
    if (rand_r(s) % 2) t->r.best_of = t->r.n + 2;
    if (rand_r(s) % 4 == 0) {
        t->r.allow = ids;
        t->r.nallow = 40;
        t->r.repeat = (glm_repeat_t) { 1, 6, 3 };
        t->r.special_text = 1;
    }
    if (rand_r(s) % 4 == 0) {
        t->r.score_id = t->r.stop_id = ids + 30;
        t->r.nscore_id = t->r.nstop_id = 3;
    }
    if (rand_r(s) % 4 == 0) t->r.truncate = 1 + (int) (rand_r(s) % 6);
}

/* As many beams as the smallest mix has rows. */
static void
make_search(t_req_t *t)
{
    t->r.beams = 3;
    t->r.length_penalty = 0.6f;
    t->r.no_repeat_ngram = 3;
    t->r.sample.temperature = 0;
    t->r.has_seed = t->r.best_of = 0;
    t->r.nstop = 0;
    t->r.repeat.max_length = 0;
}

/* Request i, the same every time. */
static t_req_t *
request(glm_engine_t *e, int i)
{
    static const glm_stop_t  stops[2] = { { ".", 1 }, { "the file", 8 } };
    unsigned                 s = (unsigned) i * 7919 + 1;
    t_req_t                 *t = t_new_text(e, prompts[rand_r(&s) % (unsigned) nprompts]);

    t->r.max_tokens = 4 + (int) (rand_r(&s) % 30);
    t->r.n = 1 + (int) (rand_r(&s) % 3);
    t->r.ignore_eos = rand_r(&s) % 4 == 0;
    if (strstr(t->seg.text, "[MASK]") == NULL && rand_r(&s) % 3 == 0)
        t->r.mode = GLM_UNIDIRECTIONAL;
    if (rand_r(&s) % 4 == 0) {
        t->r.stop = stops;
        t->r.nstop = 2;
    }
    t->r.has_seed = 1;
    t->r.sample = (glm_sample_t) {
        .temperature = (float) (rand_r(&s) % 4) * 0.5f, .top_k = rand_r(&s) % 2 ? 0 : 30,
        .top_p = rand_r(&s) % 2 ? 0 : 0.8f, .seed = rand_r(&s), .nlogprobs = (int) (rand_r(&s) % 6)
    };
    if (t->r.mode == GLM_UNIDIRECTIONAL) {
        t->r.echo = t->r.want_text = t->r.want_prompt_logprobs = 1;
        t->r.nprompt_logprobs = (int) (rand_r(&s) % 6);
        if (rand_r(&s) % 3 == 0) t->r.max_tokens = (int) (rand_r(&s) % 2);
    }
    if (t->r.max_tokens > 3 && rand_r(&s) % 3 == 0) add_rules(t, &s);
    if (i % 9 == 4) make_search(t);
    return t;
}

static int
equal_prompt(const t_choice_t *a, const t_choice_t *b)
{
    return a->n == b->n
           && (a->n == 0 || (memcmp(a->id, b->id, a->n * sizeof(int32_t)) == 0
                             && memcmp(a->offset, b->offset, a->n * sizeof(uint32_t)) == 0
                             && memcmp(a->sampled, b->sampled, a->n * sizeof(*a->sampled)) == 0));
}

static int
equal(const t_req_t *a, const t_req_t *b)
{
    if (!equal_prompt(&a->prompt, &b->prompt)) return 0;
    for (int k = 0; k < a->r.n; k++) {
        const t_choice_t  *x = &a->c[k], *y = &b->c[k];

        if (x->n != y->n || x->ntext != y->ntext || x->fin.reason != y->fin.reason
            || x->fin.nkept != y->fin.nkept || x->fin.stop_index != y->fin.stop_index
            || memcmp(&x->fin.score, &y->fin.score, sizeof(float)) != 0)
            return 0;
        if (x->ntext > 0 && memcmp(x->text, y->text, x->ntext) != 0) return 0;
        if (x->n > 0 && (memcmp(x->id, y->id, x->n * sizeof(int32_t)) != 0
                         || memcmp(x->sampled, y->sampled, x->n * sizeof(*x->sampled)) != 0))
            return 0;
    }
    return a->ended == 1 && b->ended == 1 && !a->wrong && !b->wrong;
}

/* A long prompt that will be cancelled while it is computed. */
static t_req_t *
noise(glm_engine_t *e, int i)
{
    static int32_t  ids[300];
    t_req_t        *t;

    for (int k = 0; k < 300; k++) ids[k] = 100 + k;
    t = t_new_ids(e, ids, 200 + (size_t) i);
    t_submit(t);
    return t;
}

/* At most `at_once` in flight; how many differ from the ones alone. */
static int
run_mix(glm_engine_t *e, t_req_t *const *alone, int nreq, int at_once)
{
    t_req_t  *t[N], *lost[N / 5];
    int       differ = 0;

    for (int i = 0; i < nreq; i++) {
        if (i >= at_once) t_wait(&t[i - at_once]->ended, 1);
        if (i % 5 == 4) glm_req_cancel(e, &lost[i / 5]->r);
        t_submit(t[i] = request(e, i));
        if (i % 5 == 0) lost[i / 5] = noise(e, i);
    }
    for (int i = 0; i < nreq / 5; i++) {
        t_wait(&lost[i]->ended, 1);
        t_free(lost[i]);
    }
    for (int i = 0; i < nreq; i++) {
        t_wait(&t[i]->ended, 1);
        if (alone != NULL && !equal(alone[i], t[i])) {
            differ++;
            diag("request %d differs: \"%s\" \"%s\" %s", i, alone[i]->c[0].text, t[i]->c[0].text,
                 t[i]->no.text);
        }
    }
    for (int i = 0; i < nreq; i++) t_free(t[i]);
    return differ;
}

static void
test_rank(int tp, int nreq)
{
    const int         at_once[4] = { 2, 9, 25, nreq };
    t_req_t          *alone[N];
    glm_engine_t     *e = up(tp, 4, 64, 8192, 0);
    size_t            tokens = 0, scored = 0;

    for (int i = 0; i < nreq; i++) {
        t_run(alone[i] = request(e, i));
        for (int k = 0; k < alone[i]->r.n; k++) tokens += alone[i]->c[k].n;
        scored += alone[i]->prompt.n;
    }
    glm_engine_stop(e);
    ok(tokens > 500 && scored > 300, "%d ranks: %d requests alone, %zu tokens, %zu of prompts "
       "scored", tp, nreq, tokens, scored);

    for (int i = 0; i < 4; i++) {
        int  differ;

        e = up(tp, 3 + 13 * i, 40 + 50 * i, 800 + 3000 * i, i == 3 ? 0 : 30 + 100 * i);
        differ = run_mix(e, alone, nreq, at_once[i]);
        ok(differ == 0, "%d ranks, %d at once: %d differ in some bit", tp, at_once[i], differ);
        glm_engine_stop(e);
    }
    for (int i = 0; i < nreq; i++) t_free(alone[i]);
}

/* What a prompt says of itself depends on nothing else: not on what is asked
 * beside it, nor on max_tokens, nor on how many rows a step takes. */
static void
test_scored(void)
{
    t_req_t  *first[8];
    size_t    n = 0;
    int       bad = 0;

    for (int v = 0; v < 6; v++) {
        glm_engine_t  *e = up(1, 4, v & 1 ? 4 : 60, 4000, v < 3 ? 0 : 8);

        for (int i = 0; i < 8; i++) {
            static const int  tops[3] = { 20, 0, 3 };
            t_req_t          *t = t_new_text(e, prompts[i]);
            t_choice_t       *p = &t->prompt, *q = v > 0 ? &first[i]->prompt : p;

            t->r.mode = GLM_UNIDIRECTIONAL;
            t->r.want_prompt_logprobs = 1;
            t->r.nprompt_logprobs = tops[v % 3];
            t->r.max_tokens = v % 2;
            t->r.sample.nlogprobs = v - 1;
            t_run(t);
            if (v == 0 && t->ended == 1) n += p->n;
            bad += t->ended != (v > 0 ? first[i]->ended : t->ended) || p->n != q->n || t->wrong;
            for (size_t k = 0; k < p->n && k < q->n; k++)
                bad += p->id[k] != q->id[k] || p->sampled[k].logprob != q->sampled[k].logprob
                       || memcmp(p->sampled[k].top, q->sampled[k].top,
                                 (size_t) p->sampled[k].ntop * sizeof(glm_logprob_t)) != 0;
            if (v == 0) first[i] = t;
            else t_free(t);
        }
        glm_engine_stop(e);
    }
    for (int i = 0; i < 8; i++) t_free(first[i]);
    ok(bad == 0 && n > 50, "%zu log-probabilities of prompts: the same bits in 6 settings", n);
}

int
main(void)
{
    load_prompts();
    test_scored();
    test_rank(1, N);
    test_rank(2, 40);
    for (int i = 0; i < nprompts; i++) free(prompts[i]);
    return tap_done();
}
