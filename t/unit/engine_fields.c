/*
 * engine_fields: breaks when a field of a request does not do what it says: which
 * choices are told, which ids may be picked, when a choice ends.  A fake model over
 * the demo model's tokenizer; each result against its definition.
 */
#include <unistd.h>

#include "fake_model.h"
#include "engine_util.h"
#include "tap.h"

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

static void
down(glm_engine_t *e, const char *what)
{
    glm_engine_stats_t  st;

    ok(T_UNTIL((glm_engine_stats(e, &st), glm_engine_idle(e) && st.kv_pages_used == 0)),
       "%s: idle, every page is back", what);
    glm_engine_stop(e);
}

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

static int
good(t_req_t *t)
{
    int  ran = t_run(t) && t->ended == 1 && !t->wrong;

    if (!ran) diag("ended %d, wrong %d: %s", t->ended, t->wrong, t->no.text);
    return ran;
}

/* Refused with this status, and this field named. */
static int
refused(t_req_t *t, int status, const char *param)
{
    int  right = t_run(t) && t->ended == 2 && t->no.status == status
                 && strcmp(t->no.param, param) == 0 && t->no.text[0] != '\0';

    if (!right) diag("ended %d: %d %s: %s", t->ended, t->no.status, t->no.param, t->no.text);
    t_free(t);
    return right;
}

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

/* ---- best_of ---- */

static double
mean(const t_choice_t *c)
{
    double  sum = 0;

    for (size_t i = 0; i < c->n; i++) sum += (double) c->sampled[i].logprob;
    return sum / (double) c->n;
}

/* The choice of all that is told as number k, by the definition. */
static const t_choice_t *
ranked(const t_req_t *all, int k)
{
    for (int i = 0; i < all->r.n; i++) {
        int  before = 0;

        for (int j = 0; j < all->r.n; j++)
            before += mean(&all->c[j]) > mean(&all->c[i]);
        if (before == k) return &all->c[i];
    }
    return NULL;
}

static int
best_is_right(glm_engine_t *e, uint64_t seed, int n, int logprobs)
{
    t_req_t  *all = text(e, "Where is the file?", 30, seed);
    t_req_t  *some = text(e, "Where is the file?", 30, seed);
    int       right, total = 0;

    all->r.n = some->r.best_of = 7;
    all->r.sample.nlogprobs = 2;
    some->r.n = n;
    some->r.sample.nlogprobs = logprobs ? 2 : -1;
    right = good(all) && good(some);
    for (int k = 0; k < 7; k++) total += (int) all->c[k].n;
    for (int k = 0; k < n && right; k++) right = same(ranked(all, k), &some->c[k], logprobs);
    right = right && some->done.completion_tokens == total;
    t_free(all);
    t_free(some);
    return right;
}

static void
test_best(void)
{
    int  bad = 0;

    for (int seqs = 2; seqs <= 9; seqs += 7) {
        glm_engine_t  *e = up(seqs, 4096, 10);
        t_req_t       *t;

        for (uint64_t seed = 0; seed < 12; seed++)
            bad += !best_is_right(e, seed, 1 + (int) seed % 6, seed % 2 != 0);
        ok(bad == 0, "best_of: the best of seven, best first, all counted, %d at a time", seqs);

        t = text(e, "ab", 0, 1);
        t->r.best_of = 3;
        ok(good(t) && t->c[0].finished && t->c[0].fin.reason == GLM_FINISH_LENGTH,
           "max_tokens 0: one empty choice");
        t_free(t);

        t = text(e, "ab", 200, 1);
        t->r.n = 2;
        t->r.best_of = 5;
        t->r.ignore_eos = 1;
        fake_step_ns = 1000000;
        t_submit(t);
        glm_req_cancel(e, &t->r);
        ok(t_wait(&t->ended, 1) && t->done.cancelled, "cancelled");
        fake_step_ns = 0;
        t_free(t);

        t = text(e, "ab", 2, 1);
        t->r.n = 3;
        t->r.best_of = 2;
        ok(refused(t, 400, "best_of"), "best_of below n");
        t = text(e, "ab", 2, 1);
        t->r.best_of = GLM_MAX_CHOICES + 1;
        ok(refused(t, 400, "best_of"), "best_of beyond the limit");
        down(e, "best_of");
    }
}

int
main(void)
{
    if (access("models/demo/config.json", R_OK) != 0) skip_all("no demo model");
    test_best();
    return tap_done();
}
