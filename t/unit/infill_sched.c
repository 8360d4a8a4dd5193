/*
 * infill_sched: breaks when a round of several blanks is given another context, choice
 * or blank number than it should, is overtaken, refused or forgotten, or when an end of
 * its request leaves a round or a page behind.  The scheduler by hand, over the fake
 * model; what each round must be given is computed here.
 */
#include "fake_model.h"
#include "scheduler.h"
#define T_CHOICES  64
#include "engine_util.h"
#include "tap.h"
#include "sched_util.h"

#define SMASK  498
#define EOS    2
#define EOP    501

/* ids with masks of `kind` among them. */
static t_req_t *
blanks(const int32_t *ids, int32_t n, int32_t kind, int32_t max_tokens)
{
    t_req_t  *t = t_new_ids(NULL, ids, (size_t) n);

    t->r.op = GLM_OP_INFILL;
    t->blanks = 0;
    for (int32_t i = 0; i < n; i++) t->blanks += ids[i] == kind;
    t->r.max_tokens = max_tokens;
    t->r.sample = (glm_sample_t) { .temperature = 1, .seed = 7, .nlogprobs = -1 };
    t->r.has_seed = 1;
    return t;
}

/* ---- what its rounds must be given ---- */

/* The first mask not filled yet, counted in the prompt: those of a fill are ids. */
typedef struct {
    int32_t  id[600];
    int32_t  n;
    int32_t  at[8];        /* of the prompt's masks */
} context_t;

static void
context(context_t *c, const t_req_t *t, int32_t kind)
{
    const int32_t  last = t->seg.ids[t->seg.n - 1];
    int            k = 0;

    c->n = (int32_t) t->seg.n;
    memcpy(c->id, t->seg.ids, t->seg.n * sizeof(int32_t));
    for (int32_t i = 0; i < c->n; i++)
        if (c->id[i] == kind) c->at[k++] = i;
    if (last != MASK && last != GMASK && last != SMASK) c->id[c->n++] = EOS;
}

/* Puts what was kept of a blank in its place. */
static void
splice(context_t *c, int b, const t_choice_t *fill, int blanks_)
{
    int32_t  at = c->at[b], n = fill->fin.nkept;

    memmove(c->id + at + n, c->id + at + 1, (size_t) (c->n - at - 1) * sizeof(int32_t));
    memcpy(c->id + at, fill->id, (size_t) n * sizeof(int32_t));
    c->n += n - 1;
    for (int i = b + 1; i < blanks_; i++) c->at[i] += n - 1;
}

/* A blank's tokens, from first principles. */
static int
is_round(const t_req_t *t, const context_t *c, int k, int b, int32_t kind)
{
    int32_t            tok[600], pos[600], n = c->n;
    glm_sample_t       a = t->r.sample;
    const t_choice_t  *got = &t->c[k * t->blanks + b];

    for (int32_t i = 0; i < n; i++) {
        tok[i] = c->id[i];
        pos[i] = i;
    }
    tok[n] = SOP;
    pos[n] = kind != GMASK ? c->at[b] : n;
    n++;
    a.choice = (uint32_t) k;
    a.blank = (uint32_t) b;
    for (size_t i = 0; i < got->n; i++, n++) {
        a.ntokens = (uint32_t) i;
        tok[n] = next_token(tok, pos, n, &a);
        pos[n] = kind != GMASK ? c->at[b] : n;
        if (got->id[i] != tok[n]) return 0;
    }
    return got->finished && (got->fin.nkept == t->r.max_tokens
                             || tok[n - 1] == EOP || tok[n - 1] == EOS);
}

static int
right_fills(const t_req_t *t, int32_t kind)
{
    if (t->ended != 1 || t->wrong) return 0;
    for (int k = 0; k < t->r.n; k++) {
        context_t  c;

        context(&c, t, kind);
        for (int b = 0; b < t->blanks; b++) {
            if (!is_round(t, &c, k, b, kind)) return 0;
            splice(&c, b, &t->c[k * t->blanks + b], t->blanks);
        }
    }
    return 1;
}

static const int32_t  three[9] = { 30, 29, MASK, 32, MASK, MASK, 33, GMASK, 34 };
static const int32_t  smasks[5] = { SMASK, 39, 40, 41, SMASK };
static const int32_t  gmasks[6] = { 50, 49, GMASK, 51, GMASK, 52 };

static void
test_rounds(void)
{
    t_req_t  *t[9];
    int       good = 0;

    up(4, 16, 40, 10, 0);
    for (int i = 0; i < 9; i++) {
        const int32_t  *ids[3] = { three, smasks, gmasks };
        const int32_t   n[3] = { 9, 5, 6 }, kind[3] = { MASK, SMASK, GMASK };

        t[i] = blanks(ids[i % 3], n[i % 3], kind[i % 3], 1 + 5 * (i / 3));
        t[i]->r.n = 1 + i / 3;
        t[i]->r.ignore_eos = i % 2;
        arrive(t[i]);
        if (i % 4 == 3) step();
    }
    run_all();
    for (int i = 0; i < 9; i++) {
        const int32_t  kind[3] = { MASK, SMASK, GMASK };
        int            one = right_fills(t[i], kind[i % 3]);

        good += one;
        if (!one) diag("request %d is not right", i);
        t_free(t[i]);
    }
    ok(good == 9, "each kind, 1 to 3 choices each on its own: contexts, positions, numbers of choice "
       "and blank");
    down("rounds");
}

/* Without a tokenizer nothing is banned: what the model says is a mask, is none. */
static void
test_said_masks(void)
{
    static const int32_t  mask = MASK;
    t_req_t              *t = blanks(three, 9, MASK, 4);

    up(4, 16, 40, 10, 0);
    t->r.allow = &mask;
    t->r.nallow = 1;
    arrive(t);
    run_all();
    ok(t->ended == 1 && !t->wrong && t->done.completion_tokens == 12 && t->c[2].id[3] == MASK
       && t->filled[0].text != NULL, "three blanks filled with masks: three rounds");
    t_free(t);
    down("masks");
}

/* Everything that came later waits, and no queue is too full for a round. */
static void
test_order(void)
{
    t_req_t  *t = blanks(three, 9, MASK, 6), *later[3], *full = request(0, 3, 3);
    int       before = 1;

    up(1, 8, 6, 3, 0);
    t->r.n = 2;
    t->r.ignore_eos = 1;
    arrive(t);
    step();
    for (int i = 0; i < 3; i++) arrive(later[i] = request(i, 3, 3));
    arrive(full);
    ok(full->ended == 2 && full->no.status == 503 && later[2]->accepted, "the queue is full");
    while (!t->ended) {
        step();
        for (int i = 0; i < 3; i++) before &= t->ended || later[i]->c[0].n == 0;
        glm_sched_gauges(&S);
        before &= t->ended || (S.st.running == 1 && S.st.waiting == 3);
    }
    ok(right_fills(t, MASK) && before && S.st.finished_length == 2,
       "later requests wait for all rounds; one request runs, 3 wait");
    run_all();
    ok(right(later[0]) && right(later[1]) && right(later[2]), "then they run");
    for (int i = 0; i < 3; i++) t_free(later[i]);
    t_free(full);
    t_free(t);
    down("order");
}

/* Rounds of many requests over a cache that holds one: all end. */
static void
test_little_room(void)
{
    t_req_t  *t[12];
    int       good = 0;

    up(3, 8, 2, 20, 7);
    for (int i = 0; i < 12; i++) {
        t[i] = blanks(three, 9, MASK, 6);
        t[i]->r.sample.seed = (uint64_t) i;
        t[i]->r.n = 1 + i % 3;
        arrive(t[i]);
    }
    run_all();
    for (int i = 0; i < 12; i++) {
        good += right_fills(t[i], MASK);
        t_free(t[i]);
    }
    ok(good == 12, "12 requests with three blanks over two pages: each as if alone");
    down("little room");
}

/* At every step of its life; beside it another request goes on. */
static void
test_cancels(int beams)
{
    int  bad = 0, n = 0, ended = 0;

    up(4, 16, 40, 10, 20);
    for (; !ended && n < 500; n++) {
        t_req_t  *t = blanks(three, 9, MASK, 5), *beside = request(0, 20, 30);
        int       open = 0;

        t->r.n = 3;
        t->r.ignore_eos = 1;
        if (beams) {
            t->r.beams = 3;
            t->r.has_seed = 0;
            t->r.sample.temperature = 0;
        }
        arrive(beside);
        arrive(t);
        for (int i = 0; i < n; i++) step();
        ended = t->ended;
        cancel(t);
        bad += t->ended != 1 || t->wrong || t->done.cancelled == ended;
        for (int b = 0; b < 9 && !beams; b++) open += !t->c[b].finished;
        bad += open;
        run_all();
        bad += !right(beside) || live != 0 || S.kv.nfree != S.kv.total || S.nrun || S.nqueue;
        t_free(beside);
        t_free(t);
    }
    ok(bad == 0 && ended && n > 10, "cancelled after each of %d steps%s: every blank ends once, pages "
       "are back, the other request goes on", n, beams ? ", beams" : "");
    down("cancels");
}

/* A failure anywhere ends the whole request once. */
static void
test_failures(void)
{
    glm_refusal_t  why;
    int            bad = 0, n, ended = 0;

    up(4, 16, 40, 10, 20);
    for (n = 0; !ended && n < 500; n++) {
        t_req_t  *t = blanks(three, 9, MASK, 5);

        t->r.n = 3;
        arrive(t);
        for (int i = 0; i < n; i++) step();
        ended = t->ended;
        if (n % 2) {
            glm_refuse(&why, 503, "engine_draining", "", "bye");
            glm_sched_abort(&S, &why);
        } else {
            fake_fail = 1;
            for (int i = 0; i < 30 && !t->ended; i++) step();
            fake_fail = 0;
        }
        bad += !t->ended || t->wrong || (!ended && (t->ended != 2 || t->no.status < 500));
        bad += live != 0 || S.kv.nfree != S.kv.total || S.nrun || S.nqueue;
        t_free(t);
    }
    ok(bad == 0 && ended && n > 20, "failed or aborted after each of %d steps", n);
    ok(S.st.finished_error > 30, "choices that were open are counted as errors");
    down("failures");
}

static void
test_waiting(void)
{
    t_req_t  *t = blanks(three, 9, MASK, 5), *big = request(0, 60, 60);
    size_t    had;

    up(4, 16, 9, 10, 0);
    t->r.deadline = now + 50;
    t->r.hold = 1;
    arrive(t);
    run_all();
    ok(t->accepted && t->c[0].n == 0 && t->acc.max_tokens == 15, "held: 15 tokens at most");
    atomic_store(&t->r.go, 1);
    step();
    now += 100;
    while (t->c[0].n == 0) step();
    atomic_store(&t->r.paused, 1);
    if (FAKE_OVERLAP > 0) step();          /* the one under way is read */
    had = t->c[0].n;
    for (int i = 0; i < 10; i++) step();
    glm_sched_gauges(&S);
    ok(t->c[0].n == had && S.st.paused == 1 && S.st.running == 1, "paused");
    atomic_store(&t->r.paused, 0);
    arrive(big);
    while (!t->ended) {
        S.next_deadline = 0;               /* looks through the queue */
        step();
    }
    run_all();
    ok(right_fills(t, MASK) && right(big), "a deadline is for starting: later rounds are never late");
    t_free(t);
    t_free(big);
    down("waiting");
}

int
main(void)
{
    write_config();
    test_rounds();
    test_said_masks();
    test_order();
    test_little_room();
    test_cancels(0);
    test_cancels(1);
    test_failures();
    test_waiting();
    ok(fake_wrong == 0, "the model was called as its header says");
    remove_config();
    return tap_done();
}
