/*
 * engine_beams: breaks when a beam search's candidates are told with other text, order
 * or numbers than they have, when company changes a bit of them, or when one cannot be
 * cancelled or stopped at any time.  Threads; a fake model over the demo model's
 * tokenizer.
 */
#include <unistd.h>

#include "fake_model.h"
#include "engine_util.h"
#include "tap.h"
#include "fields_util.h"

#define EOP  7813                  /* see the demo model's config.json */

static const glm_logit_bias_t  ends = { EOP, 6 };      /* candidates of all lengths */

static t_req_t *
search(glm_engine_t *e, const char *prompt, int32_t max_tokens, int32_t beams, int32_t n)
{
    t_req_t  *t = text(e, prompt, max_tokens, 0);

    t->r.has_seed = 0;
    t->r.sample.temperature = 0;
    t->r.beams = beams;
    t->r.n = n;
    t->r.length_penalty = 1;
    t->r.bias = &ends;
    t->r.nbias = 1;
    return t;
}

/* The text of a candidate is that of its ids, without a final end token. */
static int
text_is_right(glm_engine_t *e, const t_choice_t *c, int flags)
{
    glm_text_t  want = {0};
    size_t      n = c->n - (c->fin.reason == GLM_FINISH_STOP);
    int         same_text;

    if (glm_decode(glm_engine_tokenizer(e), c->id, n, flags, &want) != 0) bail_out("no memory");
    same_text = want.n == c->ntext && (want.n == 0 || memcmp(want.s, c->text, want.n) == 0);
    if (!same_text) diag("\"%s\", not \"%.*s\"", c->text, (int) want.n, want.s ? want.s : "");
    glm_text_free(&want);
    return same_text && c->fin.nkept == (int32_t) n;
}

static void
test_text(void)
{
    glm_engine_t  *e = up(8, 4096, 10);
    t_req_t       *t = search(e, "Where is the [MASK]?", 20, 6, 6), *o;
    int            right = good(t), best_first = 1, stopped = 0, total = 0;

    for (int k = 0; k < 6; k++) {
        const t_choice_t  *c = &t->c[k];

        right = right && c->n > 0 && text_is_right(e, c, 0);
        best_first &= k == 0 || c->fin.score <= t->c[k - 1].fin.score;
        stopped += c->fin.reason == GLM_FINISH_STOP && c->id[c->n - 1] == EOP;
        total += (int) c->n;
    }
    ok(right && stopped > 0, "six candidates with their text, %d of them ended", stopped);
    ok(best_first && t->c[0].fin.score < 0, "best first");
    ok(t->done.completion_tokens == total && t->done.t_first > 0, "their %d tokens are counted",
       total);

    o = search(e, "Where is the [MASK]?", 20, 6, 2);
    o->r.sample.nlogprobs = 3;
    ok(good(o) && same(&o->c[0], &t->c[0], 0) && same(&o->c[1], &t->c[1], 0),
       "fewer are told: the first of them");
    right = 1;
    for (size_t i = 0; i < o->c[0].n; i++) {
        const glm_sampled_t  *s = &o->c[0].sampled[i];

        right &= s->logprob < 0 && s->ntop == 3 && s->top[0].logprob >= s->top[1].logprob
                 && s->top[0].logprob >= s->logprob;
    }
    ok(right, "with log-probabilities and the best ids beside them");
    t_free(o);

    o = search(e, "Where is the [MASK]?", 20, 6, 6);
    o->r.echo = o->r.special_text = 1;
    right = good(o) && o->c[0].offset[0] > 0;
    for (int k = 0; k < 6 && right; k++)
        right = o->c[k].offset[0] == o->c[0].offset[0] && o->c[k].n == t->c[k].n;
    ok(right, "echo: each one's text goes on behind the prompt");
    t_free(o);
    t_free(t);
    down(e, "text");
}

/* A search of number i, the same every time. */
static t_req_t *
any(glm_engine_t *e, int i)
{
    static const char *const  prompts[3] = { "Where is the file?", "The [MASK] of a tree", "a" };
    static const glm_stop_t   bad = { "the", 3 };
    int32_t                   beams = 2 + i % 7;
    t_req_t                  *t = search(e, prompts[i % 3], 1 + i * 7 % 25, beams, 1 + i % beams);

    t->r.length_penalty = (float) (i % 5) * 0.5f;
    t->r.no_repeat_ngram = i % 4;
    t->r.sample.nlogprobs = i % 3 - 1;
    t->r.sample.repetition = i % 2 ? 1.5f : 0;
    t->r.min_tokens = i % 11 == 0 ? t->r.max_tokens / 2 : 0;
    if (i % 4 == 0) {
        t->r.bad = &bad;
        t->r.nbad = 1;
    }
    if (i % 3 == 2) t->r.mode = GLM_UNIDIRECTIONAL;
    return t;
}

static void
test_company(void)
{
    enum { N = 60 };
    glm_engine_t  *e = up(16, 8192, 200);
    t_req_t       *alone[N], *t[N], *o[N];
    int            differ = 0, kept = 0;

    for (int i = 0; i < N; i++)
        if (!good(alone[i] = any(e, i))) differ++;
    glm_engine_stop(e);

    e = up(10, 1024, 200);         /* few rows and pages: they wait for each other */
    for (int i = 0; i < N; i++) {
        t_submit(t[i] = any(e, i));
        o[i] = text(e, "Where is the file?", 5 + i % 20, (uint64_t) i);
        o[i]->r.n = 1 + i % 3;
        t_submit(o[i]);
        if (i % 4 == 1) glm_req_pause(e, &t[i - 1]->r, 1);
        if (i % 4 == 3) glm_req_pause(e, &t[i - 3]->r, 0);
        if (i % 6 == 5) glm_req_cancel(e, &t[i - 2]->r);
    }
    for (int i = 0; i < N; i++) {
        differ += !t_wait(&t[i]->ended, 1) || !t_wait(&o[i]->ended, 1) || t[i]->wrong
                  || o[i]->wrong || o[i]->ended != 1 || t[i]->ended != 1;
        if (!t[i]->done.cancelled) {
            kept++;
            for (int k = 0; k < t[i]->r.n; k++)
                differ += !same(&alone[i]->c[k], &t[i]->c[k], 1)
                          || memcmp(&alone[i]->c[k].fin.score, &t[i]->c[k].fin.score,
                                    sizeof(float)) != 0;
        }
        t_free(alone[i]);
        t_free(t[i]);
        t_free(o[i]);
    }
    ok(differ == 0 && kept >= N - N / 6, "%d searches in company: every bit as alone", kept);
    down(e, "company");
}

static void
test_stop(void)
{
    glm_engine_t  *e = up(8, 2048, 20);
    t_req_t       *t[6];
    int            bad = 0;

    for (int i = 0; i < 6; i++) {
        t[i] = search(e, "Where is the file?", 100, 4, 2);
        t[i]->r.ignore_eos = 1;
        t[i]->r.deadline = i == 5 ? t_now() + 20000000 : 0;
    }
    fake_step_ns = 2000000;
    for (int i = 0; i < 6; i++) t_submit(t[i]);
    glm_req_cancel(e, &t[1]->r);
    ok(t_wait(&t[1]->ended, 1) && t[1]->done.cancelled, "cancelled from another thread");
    ok(t_wait(&t[5]->ended, 1) && t[5]->no.status == 504, "one that waits for rows has a deadline");
    glm_engine_drain(e);
    ok(t_wait(&t[0]->ended, 1) && t[0]->ended == 1 && t[0]->c[1].n == 100,
       "drain: what is accepted goes on");
    glm_engine_stop(e);
    fake_step_ns = 0;
    for (int i = 0; i < 6; i++) {
        bad += !t[i]->ended || t[i]->wrong || (t[i]->ended == 2 && t[i]->no.status < 503);
        t_free(t[i]);
    }
    ok(bad == 0, "stop: every other one has ended or heard that the engine stops");
}

int
main(void)
{
    if (access("models/demo/config.json", R_OK) != 0) skip_all("no demo model");
    test_text();
    test_company();
    test_stop();
    return tap_done();
}
