/*
 * engine_groups: breaks when the choices that are told are not the best ones, or
 * the prompts of one request are not admitted or refused together.  A fake model over
 * the demo model's tokenizer.
 */
#include <unistd.h>

#include "fake_model.h"
#include "engine_util.h"
#include "tap.h"
#include "fields_util.h"

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
            before += mean(&all->c[j]) > mean(&all->c[i])
                      || (j < i && mean(&all->c[j]) == mean(&all->c[i]));
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
    const glm_logit_bias_t  ends = { 7813, 9 };      /* of all lengths */

    all->r.bias = some->r.bias = &ends;
    all->r.nbias = some->r.nbias = 1;
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

/* ---- groups ---- */

static void
submit_group(glm_engine_t *e, t_req_t **t, int n)
{
    glm_req_t  *r[16];

    for (int i = 0; i < n; i++) r[i] = &t[i]->r;
    glm_engine_submit_group(e, r, (size_t) n);
}

/* How many of n ended like this (status 0: done); frees them. */
static int
ended(t_req_t **t, int n, int status, const char *code)
{
    int  k = 0;

    for (int i = 0; i < n; i++) {
        if (!t_wait(&t[i]->ended, 1) || t[i]->wrong) k = -100;
        k += status == 0 ? t[i]->ended == 1 && !t[i]->done.cancelled
                         : t[i]->ended == 2 && !t[i]->accepted && t[i]->no.status == status
                           && strcmp(t[i]->no.code, code) == 0
                           && memcmp(&t[i]->no, &t[0]->no, sizeof(t[0]->no)) == 0;
    }
    for (int i = 0; i < n; i++) t_free(t[i]);
    return k;
}

static void
test_groups(void)
{
    t_req_t       *t[16], *running[2];
    glm_engine_t  *e = up(2, 4096, 3);
    int            n;

    make(e, t, 5);
    submit_group(e, t, 5);
    ok(ended(t, 5, 503, "server_is_overloaded") == 5, "five where two run and three wait: refused");
    make(e, t, 6);
    submit_group(e, t, 6);
    ok(ended(t, 6, 400, "") == 6, "six: it could never be");
    make(e, t, 3);
    submit_group(e, t, 3);
    ok(ended(t, 3, 0, "") == 3, "three: all run");

    make(e, t, 3);
    t[1]->r.max_tokens = 100000;
    submit_group(e, t, 3);
    ok(ended(t, 3, 400, "context_length_exceeded") == 3, "one too long: none runs");
    make(e, t, 3);
    t[2]->r.n = 0;
    submit_group(e, t, 3);
    ok(ended(t, 3, 400, "") == 3, "one with a bad field: none runs");

    make(e, running, 2);
    running[0]->r.ignore_eos = running[1]->r.ignore_eos = 1;
    running[0]->r.max_tokens = running[1]->r.max_tokens = 200;
    fake_gate(1);
    t_submit(running[0]);
    t_submit(running[1]);
    fake_wait_at_gate();
    make(e, t, 4);
    submit_group(e, t, 4);
    fake_gate(0);
    ok(ended(t, 4, 503, "server_is_overloaded") == 4, "four beside two that run: refused");
    make(e, t, 3);
    submit_group(e, t, 3);
    ok(ended(t, 3, 0, "") == 3, "three wait, and run");
    ok(ended(running, 2, 0, "") == 2, "those beside them too");

    make(e, t, 3);
    atomic_store(&t[0]->r.cancel, 1);
    atomic_store(&t[2]->r.cancel, 1);
    submit_group(e, t, 3);
    for (n = 0; n < 3; n++) t_wait(&t[n]->ended, 1);
    ok(t[0]->done.cancelled && t[2]->done.cancelled && t[1]->ended == 1
       && !t[1]->done.cancelled && t[1]->c[0].finished, "cancelled ones end alone");
    for (n = 0; n < 3; n++) t_free(t[n]);

    make(e, t, 2);
    t[1]->r.deadline = 1;
    submit_group(e, t, 2);
    ok(ended(t, 2, 504, "deadline_exceeded") == 2, "too late for one: for all");
    glm_engine_drain(e);
    make(e, t, 2);
    submit_group(e, t, 2);
    ok(ended(t, 2, 503, "engine_draining") == 2, "draining: none");
    down(e, "groups");

    e = up(4, 4096, -1);
    make(e, t, 4);
    submit_group(e, t, 4);
    ok(ended(t, 4, 0, "") == 4, "no queue: four run at once");
    make(e, t, 4);
    t[0]->r.n = 2;
    submit_group(e, t, 4);
    ok(ended(t, 4, 503, "server_is_overloaded") == 4, "five choices cannot");
    down(e, "no queue");
}

int
main(void)
{
    if (access("models/demo/config.json", R_OK) != 0) skip_all("no demo model");
    test_best();
    test_groups();
    return tap_done();
}
