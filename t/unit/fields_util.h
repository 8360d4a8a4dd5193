/*
 * fields_util: an engine over the fake model and requests of it, for the tests of
 * fields.  Needs fake_model.h, engine_util.h and tap.h before it.
 */
#ifndef GLM_T_FIELDS_UTIL_H
#define GLM_T_FIELDS_UTIL_H

__attribute__((unused))
static glm_engine_t *
up(int max_seqs, int64_t kv_tokens, int max_queue)
{
    glm_engine_t       *e;
    glm_err_t           err = {0};
    glm_engine_opts_t   o = { .model_dir = "models/demo", .max_num_seqs = max_seqs,
                              .kv_tokens = kv_tokens, .max_queue = max_queue,
                              .tokenizer_threads = 2, .prefill_budget = 64 };

    if (glm_engine_start(&e, &o, &err) != 0) bail_out(err.text);
    return e;
}

__attribute__((unused))
static void
down(glm_engine_t *e, const char *what)
{
    glm_engine_stats_t  st;

    ok(T_UNTIL((glm_engine_stats(e, &st), glm_engine_idle(e) && st.kv_pages_used == 0)),
       "%s: idle, every page is back", what);
    glm_engine_stop(e);
}

__attribute__((unused))
static t_req_t *
text(glm_engine_t *e, const char *prompt, int32_t max_tokens, uint64_t seed)
{
    t_req_t  *t = t_new_text(e, prompt);

    t->r.max_tokens = max_tokens;
    t->r.sample.temperature = 1;
    t->r.sample.seed = seed;
    t->r.has_seed = 1;
    return t;
}

__attribute__((unused))
static int
good(t_req_t *t)
{
    int  ran = t_run(t) && t->ended == 1 && !t->wrong;

    if (!ran) diag("ended %d, wrong %d: %s", t->ended, t->wrong, t->no.text);
    return ran;
}

/* Refused with this status, and this field named. */
__attribute__((unused))
static int
refused(t_req_t *t, int status, const char *param)
{
    int  right = t_run(t) && t->ended == 2 && t->no.status == status
                 && strcmp(t->no.param, param) == 0 && t->no.text[0] != '\0';

    if (!right) diag("ended %d: %d %s: %s", t->ended, t->no.status, t->no.param, t->no.text);
    t_free(t);
    return right;
}

__attribute__((unused))
static int
same(const t_choice_t *a, const t_choice_t *b, int logprobs)
{
    return a->n == b->n && a->ntext == b->ntext && a->fin.reason == b->fin.reason
           && memcmp(a->id, b->id, a->n * sizeof(int32_t)) == 0
           && memcmp(a->offset, b->offset, a->n * sizeof(uint32_t)) == 0
           && (a->ntext == 0 || memcmp(a->text, b->text, a->ntext) == 0)
           && (!logprobs
               || memcmp(a->sampled, b->sampled, a->n * sizeof(glm_sampled_t)) == 0);
}

/* n requests that differ in their seed. */
__attribute__((unused))
static void
make(glm_engine_t *e, t_req_t **t, int n)
{
    for (int i = 0; i < n; i++) t[i] = text(e, "Where is the file?", 5, (uint64_t) i);
}

#endif
