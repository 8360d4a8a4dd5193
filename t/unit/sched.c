/*
 * sched: breaks when a request is given other tokens than it would get alone, is
 * overtaken, stalled or never ended, or when a page is not given back.  Drives the
 * scheduler by hand, without threads, over a fake model.
 */
#include "fake_model.h"
#include "scheduler.h"
#include "engine_util.h"
#include "tap.h"
#include "sched_util.h"

#define LATER  (FAKE_OVERLAP > 0)     /* a step's tokens are told in the next one */

static void
test_alone(void)
{
    int32_t   masked[5] = { 30, 31, MASK, 32, 33 }, uni[40];
    t_req_t  *a = request(0, 33, 40), *b, *c;

    up(4, 8, 40, 10, 0);
    arrive(a);
    run_all();
    ok(right(a), "[gMASK]: positions run on");
    b = t_new_ids(NULL, masked, 5);
    b->r.ignore_eos = 1;
    b->r.n = 3;
    b->r.sample = (glm_sample_t) { .temperature = 0.7f, .seed = 5, .nlogprobs = 2 };
    b->r.has_seed = 1;
    arrive(b);
    run_all();
    {
        int32_t  in[7] = { 30, 31, MASK, 32, 33, 2, SOP };

        ok(as_alone(b, 0, in, 7, 6, 2) && as_alone(b, 1, in, 7, 6, 2)
           && as_alone(b, 2, in, 7, 6, 2), "[MASK], three choices: positions are frozen at the mask");
        ok(memcmp(b->c[0].id, b->c[1].id, 16 * 4) != 0, "choices differ");
    }
    c = request(7, 37, 20);
    c->r.mode = GLM_UNIDIRECTIONAL;
    c->r.n = 2;
    c->r.want_ids = 1;
    arrive(c);
    run_all();
    uni[0] = GMASK;
    uni[1] = SOP;
    memcpy(uni + 2, c->seg.ids, 37 * sizeof(int32_t));
    ok(as_alone(c, 0, uni, 39, 0, -1) && as_alone(c, 1, uni, 39, 0, -1),
       "unidirectional, two choices: causal rows, 8 at a time");
    ok(c->nids == 38 && c->ids[0] == GMASK && memcmp(c->ids + 1, c->seg.ids, 37 * 4) == 0,
       "the prompt's ids are those counted: no sop");
    ok(fake_max_rows_seen <= 8, "no step was larger than allowed");
    t_free(a);
    t_free(b);
    t_free(c);
    down("alone");
}

/* Contexts and cut points of all kinds: shared pages and copies. */
static void
test_turns(void)
{
    int  bad = 0;

    for (int n = 1; n <= 50; n++) {
        t_req_t  *t = request(n, n, 1 + n % 23);

        up(2 + n % 3, 16, glm_kv_pages(n + 60) + n % 4, 10, 0);
        t->r.n = 1 + n % 8;
        arrive(t);
        run_all();
        bad += !right(t);
        if (n % 10 == 0) ok(t->done.completion_tokens == t->r.n * t->r.max_tokens,
                            "%d choices in turns over few rows and pages", t->r.n);
        t_free(t);
        bad += S.kv.nfree != S.kv.total;
        down_quietly();
    }
    ok(bad == 0, "choices in turns get the tokens they would get alone");
}

/* A mix at once equals each alone; together: tokens of contexts in one pass. */
static void
test_mix(int together)
{
    enum { N = 60 };
    t_req_t  *t[N];
    int       bad = 0;

    fake_together = together;
    up(5, 12, 60, N, 50);
    for (int i = 0; i < N; i++) {
        t[i] = request(i, 1 + i * 7 % 90, 1 + i * 5 % 40);
        t[i]->r.n = 1 + i % 3;
        arrive(t[i]);
        if (i % 3 == 0) step();
    }
    run_all();
    for (int i = 0; i < N; i++) {
        bad += !right(t[i]);
        t_free(t[i]);
    }
    ok(bad == 0, "60 requests at once, %d tokens together: each as if alone", together);
    fake_together = 0;
    ok(fake_max_rows_seen <= 12, "rows within the limit");
    down("mix");
}

/* Contexts that wait at the same time share a pass: those of 20, 10 and 30 tokens here, while
 * the one of 50 in between is too long for it. */
static void
test_together(void)
{
    static const int  n[] = { 20, 50, 10, 30 };
    t_req_t          *t[4];
    int               bad = 0, firsts;

    fake_together = 64;
    up(16, 32, 100, 20, 64);
    for (int i = 0; i < 4; i++) arrive(t[i] = request(i, n[i] - 1, 20));
    step();
    ok(S.prefill.n == 3 && S.prefill.tokens == 60 && S.prefill.layer == 1, "three of four contexts have a "
       "pass, a layer a slice: %d, %d tokens", S.prefill.n, S.prefill.tokens);
    for (int i = 1; i < LAYERS; i++) step();
    ok(fake_slices == LAYERS && t[1]->c[0].n == 0, "%d slices for all three", fake_slices);
    firsts = !LATER ? (t[0]->c[0].n > 0) + (t[2]->c[0].n > 0) + (t[3]->c[0].n > 0) : 3;
    ok(firsts == 3 && S.st.prefills == 3, "and all three begin");
    run_all();
    for (int i = 0; i < 4; i++) bad += !right(t[i]);
    for (int i = 0; i < 4; i++) t_free(t[i]);
    ok(bad == 0, "the right tokens");
    down("together");
    fake_together = 0;
}

/* What ends in the middle of a pass that it shares; what fails there. */
static void
test_together_ends(void)
{
    t_req_t  *t[3], *d;
    int32_t   had;
    int       slices;

    fake_together = 64;
    up(16, 32, 40, 20, 64);
    for (int i = 0; i < 3; i++) arrive(t[i] = request(i, 15, 20));
    step();
    had = S.kv.nfree;
    cancel(t[1]);
    ok(t[1]->ended == 1 && S.kv.nfree > had && S.prefill.n == 3 && S.prefill.job[1] == NULL
       && S.prefill.context[1].pages == NULL, "one of three ends: its pages are back at once");
    arrive(d = request(9, 30, 10));
    run_all();
    ok(right(t[0]) && right(t[2]) && right(d), "the others go on");
    for (int i = 0; i < 3; i++) t_free(t[i]);
    t_free(d);

    for (int i = 0; i < 3; i++) arrive(t[i] = request(i, 15, 20));
    step();
    for (int i = 0; i < 3; i++) cancel(t[i]);
    ok(S.prefill.n == 0 && S.kv.nfree == S.kv.total, "all end: there is no pass any more");
    for (int i = 0; i < 3; i++) t_free(t[i]);

    S.budget = 64 * LAYERS + 10;      /* a pass, and a bit of no use */
    slices = fake_slices;
    for (int i = 0; i < 3; i++) arrive(t[i] = request(i, i == 0 ? 49 : 19, 20));
    step();
    ok(S.prefill.n == 0 && fake_slices == slices + 1, "two wait for the next pass");
    cancel(t[1]);
    arrive(d = request(3, 24, 20));
    step();
    ok(fake_slices == slices + 2 && S.prefill.n == 0, "one of them ends, one that came later joins");
    run_all();
    ok(fake_slices == slices + 2 && right(t[0]) && right(t[2]) && right(d), "with the right tokens");
    for (int i = 0; i < 3; i++) t_free(t[i]);
    t_free(d);
    S.budget = 64;

    for (int from = 0; from < 2; from++) {
        for (int i = 0; i < 3; i++) arrive(t[i] = request(i, 15, 20));
        if (from > 0) step();
        fake_bad_prefill = GLM_EINVAL;
        step();
        fake_bad_prefill = 0;
        ok(t[0]->ended == 2 && t[1]->ended == 2 && t[2]->ended == 2 && S.prefill.n == 0 && S.kv.nfree == S.kv.total,
           "layer %d fails: all three hear so", from);
        for (int i = 0; i < 3; i++) t_free(t[i]);
    }
    down("ends together");
    fake_together = 0;
}

static void
test_slices(void)
{
    t_req_t  *a = request(0, 4, 200), *b = request(0, 299, 5), *s[8];
    size_t    before;
    int       steps = 0;

    up(16, 32, 100, 20, 300);
    arrive(a);
    while (a->c[0].n < 3) step();
    arrive(b);
    before = a->c[0].n;
    while (b->c[0].n == 0) steps += step();
    ok(steps == LAYERS + LATER && a->c[0].n - before == LAYERS + LATER,
       "a context of 300 at 300 tokens x layers: %d steps, the stream got %zu tokens", steps,
       a->c[0].n - before);
    ok(fake_slices == 1 + LAYERS, "in slices of one layer");

    fake_slices = steps = 0;
    for (int i = 0; i < 8; i++) arrive(s[i] = request(i, 7, 2));
    while (s[7]->c[0].n == 0) steps += step();
    ok(steps == 2 + LATER, "eight contexts of 8: six fit a slice's budget, %d steps", steps);
    run_all();
    ok(right(a) && right(b) && right(s[0]) && right(s[7]), "all as if alone");
    for (int i = 0; i < 8; i++) t_free(s[i]);
    t_free(a);
    t_free(b);
    down("slices");

    up(16, 32, 100, 20, 100);
    for (int i = 0; i < 3; i++) arrive(s[i] = request(i, 7, 2));
    step();
    ok(fake_slices == 2, "two of three fill the budget: the third waits, %d begun", fake_slices);
    run_all();
    for (int i = 0; i < 3; i++) t_free(s[i]);
    down("whole contexts");
}

/* Choices need pages of their own: two such requests do not fit at once. */
static void
test_pages(void)
{
    t_req_t  *a = request(0, 20, 40), *b = request(50, 20, 40);

    up(16, 32, 20, 5, 0);
    a->r.n = b->r.n = 4;
    arrive(a);
    arrive(b);
    step();
    ok(S.kv.total - S.kv.nfree == 4 + 3 * 3 && S.nrun == 1 && S.nqueue == 1,
       "four choices of 61 slots, 16 of them shared, hold 13 pages: %d", S.kv.total - S.kv.nfree);
    run_all();
    ok(right(a) && right(b), "one after the other, as if alone");
    t_free(a);
    t_free(b);
    down("pages");
}

static void
test_fifo(void)
{
    t_req_t  *a = request(0, 10, 20), *big = request(0, 100, 50), *small = request(0, 5, 5);

    up(4, 8, 11, 10, 0);             /* 176 tokens: big needs 151, so all of it but one */
    arrive(a);
    step();
    arrive(big);
    arrive(small);
    ok(big->accepted && small->accepted && big->acc.queue_depth == 0
       && small->acc.queue_depth == 1, "both wait");
    while (!a->ended) step();
    ok(small->c[0].n == 0 && !small->ended, "the small one does not overtake the big one");
    run_all();
    ok(big->ended == 1 && small->ended == 1 && big->c[0].n == 50, "all end");
    ok(right(a) && right(big) && right(small), "as if alone");
    t_free(a);
    t_free(big);
    t_free(small);
    down("fifo");
}

static void
test_limits(void)
{
    t_req_t  *a = request(0, 100, 100), *t[4];

    up(1, 4, 8, 2, 0);
    ok(!arrive(a) && a->no.status == 400 && a->no.limit == 128 && a->no.value == 201,
       "more than the cache holds: %s", a->no.text);
    a->r.max_tokens = 27;            /* 101 + 27 = 128: exactly all of it */
    ok(arrive(a), "exactly the cache is taken");
    step();
    for (int i = 0; i < 3; i++) arrive(t[i] = request(0, 3, 3));
    ok(t[0]->accepted && t[1]->accepted && !t[2]->accepted && t[2]->ended == 2
       && t[2]->no.status == 503 && !strcmp(t[2]->no.code, "server_is_overloaded")
       && t[2]->no.retry_after > 0, "the queue is full: %s", t[2]->no.text);
    run_all();
    ok(a->ended == 1 && t[0]->ended == 1 && t[1]->ended == 1, "the others end");
    ok(S.st.refused == 1 && S.st.accepted == 3, "counted");
    for (int i = 0; i < 3; i++) t_free(t[i]);
    t_free(a);

    a = request(0, 3, 3);
    a->r.n = 0;
    ok(!arrive(a) && !strcmp(a->no.param, "n"), "n 0: %s", a->no.text);
    a->r.n = 1;
    a->r.sample.temperature = NAN;
    ok(!arrive(a) && !strcmp(a->no.param, "temperature"), "temperature NaN: %s", a->no.text);
    a->r.sample.temperature = 1;
    a->r.sample.nlogprobs = 21;
    ok(!arrive(a) && !strcmp(a->no.param, "logprobs"), "21 logprobs: %s", a->no.text);
    a->r.sample.nlogprobs = -1;
    a->r.max_tokens = 0;
    a->r.n = 2;
    ok(arrive(a) && a->ended == 1 && !a->wrong && a->c[1].fin.reason == GLM_FINISH_LENGTH
       && a->done.completion_tokens == 0 && a->done.prompt_tokens == 4,
       "max_tokens 0: ends with length at once");
    t_free(a);
    down("limits");

    up(1, 4, 8, 0, 0);
    arrive(a = request(0, 3, 3));
    step();
    arrive(t[0] = request(0, 3, 3));
    ok(a->accepted && t[0]->no.status == 503, "a queue of 0: runs at once or not at all");
    run_all();
    t_free(a);
    t_free(t[0]);
    down("no queue");
}

static void
test_deadline(void)
{
    t_req_t  *a = request(0, 3, 30), *b = request(0, 3, 3), *c = request(0, 3, 3), *d;

    up(1, 4, 8, 5, 0);
    arrive(a);
    step();
    b->r.deadline = now + 100;
    c->r.deadline = now + 50;
    arrive(b);
    arrive(c);
    ok(S.next_deadline == now + 50, "the earliest deadline is known");
    now += 60;
    step();
    ok(c->ended == 2 && c->no.status == 504 && !strcmp(c->no.code, "deadline_exceeded")
       && !b->ended, "past it: %s", c->no.text);
    ok(S.next_deadline == now + 40, "the next one is known");
    d = request(0, 3, 3);
    d->r.deadline = now;
    arrive(d);
    ok(d->ended == 2 && !d->accepted && d->no.status == 504, "late on arrival");
    now += 100;
    step();
    ok(b->ended == 2 && S.next_deadline == UINT64_MAX, "past the other");
    a->r.deadline = now - 1;
    run_all();
    ok(a->ended == 1 && right(a), "a deadline is for starting, not for ending");
    t_free(a);
    t_free(b);
    t_free(c);
    t_free(d);
    down("deadline");
}

static void
test_hold(void)
{
    t_req_t  *a = request(0, 3, 3), *b = request(0, 3, 3);

    up(1, 4, 8, 5, 0);
    a->r.hold = 1;
    arrive(a);
    ok(a->accepted && a->acc.prompt_tokens == 4 && a->acc.max_tokens == 3 && a->acc.seed == 99,
       "held: accepted with its numbers");
    ok(step() == 0 && a->c[0].n == 0, "and nothing more");
    arrive(b);
    run_all();
    ok(b->ended == 1 && !a->ended, "others pass it by");
    atomic_store(&a->r.go, 1);
    run_all();
    ok(a->ended == 1 && right(a), "go");
    t_free(a);
    t_free(b);
    down("hold");
}

static void
test_cancel(void)
{
    t_req_t  *a = request(0, 100, 30), *b = request(0, 3, 3), *c = request(0, 40, 10), *d;
    size_t    had;

    up(1, 4, 20, 5, 100);
    atomic_store(&b->r.cancel, 1);
    arrive(b);
    ok(b->ended == 1 && b->done.cancelled && !b->accepted, "before it arrived");
    t_free(b);

    arrive(a);
    step();
    ok(S.prefill.n == 1, "a context is half done");
    arrive(b = request(0, 3, 3));
    cancel(b);
    ok(b->ended == 1 && b->done.cancelled && b->c[0].fin.reason == GLM_FINISH_CANCEL, "queued");
    cancel(a);
    ok(a->ended == 1 && a->done.cancelled && S.prefill.n == 0 && S.kv.nfree == 20,
       "in the middle of its context: pages are back at once");

    c->r.mode = GLM_UNIDIRECTIONAL;
    arrive(c);
    step();
    ok(c->c[0].n == 0, "a causal prompt is half done");
    cancel(c);
    ok(c->ended == 1 && S.kv.nfree == 20, "there, too");

    d = request(0, 5, 30);
    d->r.n = 4;
    arrive(d);
    while (d->c[0].n < 5) step();
    had = d->c[0].n;
    cancel(d);
    ok(d->ended == 1 && d->done.cancelled && !d->wrong && d->c[0].fin.ntokens == (int32_t) had
       && d->c[3].fin.reason == GLM_FINISH_CANCEL && d->done.completion_tokens == (int32_t) had,
       "while decoding: every choice hears it");
    ok(S.st.finished_cancel == 7, "choices counted: %d", (int) S.st.finished_cancel);
    t_free(a);
    t_free(b);
    t_free(c);
    t_free(d);
    down("cancel");
}

static void
test_pause(void)
{
    t_req_t  *a = request(0, 3, 30), *b = request(0, 9, 30), *c = request(0, 5, 30);
    size_t    na, nb;

    up(2, 4, 20, 5, 0);
    arrive(a);
    arrive(b);
    step();
    atomic_store(&a->r.paused, 1);
    if (LATER) step();
    na = a->c[0].n;
    for (int i = 0; i < 5; i++) step();
    ok(a->c[0].n == na && b->c[0].n >= 5, "a paused one gets nothing, the other goes on");
    arrive(c);
    step();
    if (LATER) step();
    ok(c->c[0].n == 1, "its row is free for another");
    atomic_store(&a->r.paused, 0);
    na = a->c[0].n;
    nb = b->c[0].n;
    for (int i = 0; i < 12; i++) step();
    ok(a->c[0].n - na == 8 && b->c[0].n - nb == 8, "three choices share two rows in turn: %zu %zu",
       a->c[0].n - na, b->c[0].n - nb);
    atomic_store(&a->r.paused, 1);
    run_all();
    ok(b->ended == 1 && c->ended == 1 && !a->ended && S.kv.nfree < 20, "it keeps its pages");
    glm_sched_gauges(&S);
    ok(S.st.paused == 1 && S.st.running == 1, "and is counted");
    atomic_store(&a->r.paused, 0);
    run_all();
    ok(right(a) && right(b) && right(c), "as if alone");
    t_free(a);
    t_free(b);
    t_free(c);
    down("pause");
}

static void
test_faults(void)
{
    int32_t        nan[2] = { 30, FAKE_NAN_ID };
    t_req_t       *a = request(0, 3, 10), *b = t_new_ids(NULL, nan, 2), *c = request(0, 8, 10);
    glm_refusal_t  why;

    up(8, 16, 20, 5, 0);
    b->r.n = 3;
    arrive(a);
    arrive(b);
    arrive(c);
    run_all();
    ok(b->ended == 2 && b->no.status == 500 && !b->wrong, "NaN logits: %s", b->no.text);
    ok(right(a) && right(c), "the others go on");
    t_free(a);
    t_free(b);
    t_free(c);

    arrive(a = request(0, 3, 10));
    arrive(b = request(0, 3, 10));
    b->r.n = 1;
    step();
    fake_fail = 1;
    step();
    fake_fail = 0;
    ok(a->ended == 2 && b->ended == 2 && a->no.status == 500, "a failed step: %s", a->no.text);
    t_free(a);
    t_free(b);

    arrive(a = request(0, 3, 10));
    arrive(b = request(0, 3, 10));
    b->r.hold = 1;
    step();
    glm_refuse(&why, 503, "engine_draining", "", "bye");
    glm_sched_abort(&S, &why);
    ok(a->ended == 2 && b->ended == 2 && a->no.status == 503, "abort ends all");
    t_free(a);
    t_free(b);
    down("faults");
}

/* End tokens: greedy finds some sooner or later. */
static void
test_ends(void)
{
    t_req_t  *t;
    int       stops = 0, bad = 0;

    up(8, 16, 200, 400, 0);
    for (int i = 0; i < 300; i++) {
        int32_t  last;

        t = request(i, 5, 100);
        t->r.ignore_eos = 0;
        t->r.sample.seed = (uint64_t) i;
        arrive(t);
        run_all();
        last = t->c[0].id[t->c[0].n - 1];
        if (t->c[0].fin.reason == GLM_FINISH_STOP) {
            stops++;
            bad += last != 501 && last != 2;
            bad += t->c[0].fin.nkept != t->c[0].fin.ntokens - 1;
        } else {
            bad += t->c[0].fin.nkept != 100 || t->c[0].n != 100;
        }
        for (size_t k = 0; k + 1 < t->c[0].n; k++)
            bad += t->c[0].id[k] == 501 || t->c[0].id[k] == 2;
        bad += t->wrong || t->c[0].fin.stop_id != -1 || t->c[0].fin.stop_index != -1;
        t_free(t);
    }
    ok(stops > 20 && bad == 0, "eop and eos end a choice, are counted and not kept (%d)", stops);
    down("ends");
}

int
main(void)
{
    write_config();
    test_alone();
    test_turns();
    test_mix(0);
    test_mix(64);
    test_mix(17);
    test_together();
    test_together_ends();
    test_slices();
    test_pages();
    test_fifo();
    test_limits();
    test_deadline();
    test_hold();
    test_cancel();
    test_pause();
    test_faults();
    test_ends();
    ok(fake_wrong == 0, "the model was called as its header says");
    remove_config();
    return tap_done();
}
