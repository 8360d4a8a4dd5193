/*
 * server: what a correct client may rely on: order, windows, merging, cancel,
 * spool and pauses, statistics, the states of an engine's life.
 */
#include <math.h>

#include "server_util.h"

#include "../fake/fake_engine.c"
#include "../fake/fake_job.c"
#include "../fake/fake_say.c"
#include "../fake/fake_script.c"

static const fake_opts_t  fake = { .max_seq = 1 << 22, .max_queue = 100 };
static world_t            world;

/* A writer that lost its core in the middle is waited for. */
static glm_wire_stats_t
statistics(const glm_client_t *c)
{
    glm_wire_stats_t  s;

    if (!WAIT_FOR(glm_client_stats(c, &s) == 0)) bail_out("no statistics for a minute");
    return s;
}

/* What the server keeps for clients, from its statistics. */
static uint64_t
spooled(glm_client_t *c)
{
    return statistics(c).spool_bytes;
}

static uint32_t
paused(glm_client_t *c)
{
    return statistics(c).paused;
}

/* As the engine counts them; what a client can read of that comes later. */
static uint64_t
requests(const world_t *w)
{
    glm_engine_stats_t  s;

    glm_engine_stats(w->engine, &s);
    return s.requests;
}

/* The engine has got all that were sent, and is done with them. */
static int
ran(const world_t *w, uint64_t before, int n)
{
    return WAIT_FOR(requests(w) == before + (uint64_t) n && fake_engine_jobs() == 0);
}

/* Nothing within ms. */
static int
silent(glm_client_t *c, int ms)
{
    glm_err_t    err = {{0}};
    glm_event_t  ev;

    return glm_client_next(c, &ev, ms, &err) == 0;
}

/* ---- order and content ---- */

static void
test_order(glm_client_t *c)
{
    answer_t     a;
    glm_event_t  ev;

    ask(c, 1, "fake: tokens=20 bytes=7", 20, 1 << 20, 0);
    a = answer(c, 1);
    ok(a.ended == GLM_MSG_DONE && a.order && a.accepted && a.finished, "one request, in order");
    ok(right_text(&a, 20, 7) && a.nids == 20, "its text and ids");
    ok(a.done.completion_tokens == 20 && a.done.prompt_tokens == 23 && !a.done.cancelled
       && a.done.total_ns >= a.done.first_ns && a.done.first_ns > 0, "its numbers");
    ask(c, 1, "fake: tokens=1", 1, 1 << 20, GLM_F_PROMPT_IDS);
    ok(hear(c, &ev) == GLM_MSG_ACCEPTED && ev.id == 1 && ev.accepted.seed == 12345
       && ev.accepted.max_tokens == 1, "the id is free again; ACCEPTED has the seed");
    ok(hear(c, &ev) == GLM_MSG_PROMPT && ev.nids == 14 && ev.ids[0] == 'f', "PROMPT has the ids");
    ok(hear(c, &ev) == GLM_MSG_TOKENS && ev.ntext == 5 && memcmp(ev.text, "t256 ", 5) == 0,
       "TOKENS");
    ok(hear(c, &ev) == GLM_MSG_FINISH && ev.finish.reason == GLM_REASON_LENGTH
       && ev.finish.ntokens == 1 && ev.finish.stop_index == -1, "FINISH");
    ok(hear(c, &ev) == GLM_MSG_DONE && silent(c, 30), "DONE, and nothing after it");
}

static void
test_errors(glm_client_t *c)
{
    answer_t              a;
    glm_client_submit_t   s = { .m = { .op = GLM_SUBMIT_GENERATE, .mode = 2,
                                      .max_tokens = 1 } };
    glm_err_t             err = {{0}};

    ask(c, 1, "fake: error=429 code=rate param=foo retry=3 limit=5 value=6", 1, 0, 0);
    a = answer(c, 1);
    ok(a.ended == GLM_MSG_ERROR && !a.accepted && a.error.status == 429 && a.error.retry_after == 3
       && a.error.limit == 5 && a.error.value == 6 && strcmp(a.error.code, "rate") == 0
       && strcmp(a.error.param, "foo") == 0, "a refusal, without a window");
    ask(c, 1, "fake: tokens=3 bytes=1 errorat=2 error=500", 3, 1000, 0);
    a = answer(c, 1);
    ok(a.ended == GLM_MSG_ERROR && a.order && right_text(&a, 2, 1), "an error in mid-stream");
    glm_wire_section(&s.sections, GLM_SEC_TEXT, "x", 1);
    glm_client_submit(c, 1, &s, &err);
    a = answer(c, 1);
    ok(a.ended == GLM_MSG_ERROR && a.error.status == 501 && strcmp(a.error.param, "mode") == 0
       && strcmp(a.error.code, "not_implemented") == 0, "a later feature is a 501");
    ask(c, 1, "\xff", 1, 0, 0);
    a = answer(c, 1);
    ok(a.error.status == 400 && strcmp(a.error.param, "prompt") == 0, "bad UTF-8 is a 400");
}

static void
test_tokenize(glm_client_t *c)
{
    glm_err_t             err = {{0}};
    glm_event_t           ev;
    const int32_t         ids[] = { 'h', 'i', 300 };
    glm_client_submit_t   s = { .m = { .op = GLM_SUBMIT_TOKENIZE, .window = 1000 } };

    glm_wire_section(&s.sections, GLM_SEC_TEXT, "hi", 2);
    glm_client_submit(c, 5, &s, &err);
    ok(hear(c, &ev) == GLM_MSG_PROMPT && ev.nids == 2 && ev.ids[1] == 'i', "TOKENIZE: ids");
    ok(hear(c, &ev) == GLM_MSG_DONE, "TOKENIZE: done");
    s = (glm_client_submit_t) { .m = { .op = GLM_SUBMIT_DETOKENIZE, .window = 1000 } };
    glm_wire_section(&s.sections, GLM_SEC_IDS, ids, sizeof(ids));
    glm_client_submit(c, 5, &s, &err);
    ok(hear(c, &ev) == GLM_MSG_PROMPT && ev.ntext == 7 && memcmp(ev.text, "hit300 ", 7) == 0,
       "DETOKENIZE: text");
    ok(hear(c, &ev) == GLM_MSG_DONE, "DETOKENIZE: done");
}

static void
test_logprobs(glm_client_t *c)
{
    size_t               at = 0;
    glm_err_t            err = {{0}};
    const char          *text;
    glm_event_t          ev;
    glm_logprob_rec_t    r;
    glm_sec_sampling_t   sm = { .size = sizeof(sm), .logprobs = 2, .prompt_logprobs = -1 };
    glm_client_submit_t  s = { .m = { .op = GLM_SUBMIT_GENERATE, .n = 1, .max_tokens = 1,
                                      .window = 10000 } };

    glm_wire_section(&s.sections, GLM_SEC_TEXT, "fake: tokens=1", 14);
    glm_wire_section(&s.sections, GLM_SEC_SAMPLING, &sm, sizeof(sm));
    glm_client_submit(c, 5, &s, &err);
    while (hear(c, &ev) != 0 && ev.type != GLM_MSG_TOKENS) { /* skip */ }
    ok(glm_event_logprob(&ev, &at, &r, &text) == 1 && r.id == 256 && r.ntop == 2
       && r.logprob == -0.25f && r.text_size == 5 && memcmp(text, "t256 ", 5) == 0,
       "a token's own log-probability");
    ok(glm_event_logprob(&ev, &at, &r, &text) && r.id == 256
       && glm_event_logprob(&ev, &at, &r, &text) && r.id == 1001 && r.logprob == -1.25f
       && memcmp(text, "t1001 ", 6) == 0 && !glm_event_logprob(&ev, &at, &r, &text),
       "and the best ones");
    answer(c, 5);
}

/* A prompt of many records comes through, and comes back byte by byte. */
static void
test_large(glm_client_t *c)
{
    size_t     i, n = 60000;
    char      *p = malloc(n + 1);
    answer_t  *a = malloc(sizeof(*a));
    uint64_t   before = requests(&world);

    for (i = 0; i < n; i++) p[i] = (char) ('a' + i * 7 % 26);
    memcpy(p, "fake: echo burst=1000\n", 22);
    p[n] = '\0';
    ask(c, 9, p, -1, 0, 0);
    ran(&world, before, 1);                  /* a message has what waited together */
    glm_client_window(c, 9, 1 << 30);
    *a = answer(c, 9);
    ok(a->ended == GLM_MSG_DONE && a->ntext == n && memcmp(a->text, p, n) == 0,
       "a prompt of %zu bytes, echoed", n);
    ok(a->nmsgs < n / 50, "in %zu messages", a->nmsgs);
    free(p);
    free(a);
}

static void
test_many(glm_client_t *c)
{
    int          i, wrong = 0, left = 500;
    answer_t    *a = calloc(500, sizeof(answer_t));
    glm_event_t  ev;

    for (i = 0; i < 500; i++) {
        a[i].order = 1;
        ask(c, (uint64_t) i + 1000, "fake: tokens=40 bytes=11", 40, 1 << 20, 0);
    }
    while (left > 0 && hear(c, &ev) != 0) {
        take(&a[ev.id - 1000], &ev);
        if (a[ev.id - 1000].ended) left--;
    }
    for (i = 0; i < 500; i++) wrong += !(a[i].order && right_text(&a[i], 40, 11));
    ok(left == 0 && wrong == 0, "500 requests at a time");
    free(a);
}

/* ---- windows ---- */

static void
test_windows(glm_client_t *c)
{
    size_t       granted = 0, sent = 0, over = 0;
    answer_t     a = { .order = 1 };
    glm_event_t  ev;

    ask(c, 1, "fake: tokens=1000 bytes=10", 1000, 0, 0);
    ok(hear(c, &ev) == GLM_MSG_ACCEPTED, "no window: ACCEPTED comes");
    ok(WAIT_FOR(fake_engine_jobs() == 0), "the request runs and ends in the engine");
    ok(silent(c, 50), "and none of it is sent");
    glm_client_window(c, 1, 1);
    ok(hear(c, &ev) == GLM_MSG_TOKENS && silent(c, 50), "one byte of window: one record");
    ok(ev.nids > 100, "tokens that waited are one message: %zu", ev.nids);
    a.accepted = 1;
    take(&a, &ev);
    granted = 1;
    sent = ev.cost;
    while (!a.ended && a.order) {
        while (sent >= granted) glm_client_window(c, 1, 500), granted += 500;
        if (!hear(c, &ev)) break;
        take(&a, &ev);
        if (ev.cost && sent >= granted) over++;
        sent += ev.cost;
    }
    ok(a.ended == GLM_MSG_DONE && a.order && right_text(&a, 1000, 10), "bit by bit, all of it");
    ok(over == 0, "nothing was sent without a window");
}

static void
test_held_text(glm_client_t *c)
{
    glm_event_t  ev;

    ask(c, 1, "fake: utf8 tokens=9 hangat=1", 9, 1 << 20, 0);
    while (hear(c, &ev) != GLM_MSG_TOKENS) { /* ACCEPTED */ }
    ok(ev.nids == 1 && ev.ntext == 0, "an id comes although its text is held back");
    glm_client_cancel(c, 1);
    answer(c, 1);
    ask(c, 2, "fake: utf8 tokens=9", 9, 1 << 20, 0);
    ok(answer(c, 2).nids == 9, "all ids");
}

/* A message of many records stops between two of them, and is never left half. */
static void
test_pieces(void)
{
    int                  i;
    char                *text = malloc(40001);
    uint64_t             before;
    glm_err_t            err = {{0}};
    glm_event_t          ev;
    glm_client_opts_t    o = { .complete_bytes = GLM_WIRE_MIN_RING };
    glm_client_t        *c = join(&world, &o);
    glm_client_submit_t  s;

    memset(text, 'x', 40000);
    for (i = 0; i < 2; i++) {
        s = (glm_client_submit_t) { .m = { .op = GLM_SUBMIT_TOKENIZE, .window = 1 } };
        glm_wire_section(&s.sections, GLM_SEC_TEXT, text, 40000);
        before = requests(&world);
        glm_client_submit(c, 1, &s, &err);
        ok(ran(&world, before, 1) && silent(c, 50), "PROMPT of 160 kB: no window, no end");
        if (i == 0) glm_client_window(c, 1, 1 << 20);
        else glm_client_cancel(c, 1);
        ok(hear(c, &ev) == GLM_MSG_PROMPT && ev.nids == 40000 && ev.ids[39999] == 'x',
           i ? "cancelled in its middle, it comes whole" : "with a window it comes whole");
        ok(hear(c, &ev) == GLM_MSG_DONE, "then DONE");
    }
    glm_client_free(c);
    free(text);
}

/* The log-probabilities of a prompt: in pieces, by the window, each id once. */
static void
test_prompt(void)
{
    enum { N = 3000, TOP = 5 };
    int                  n = 0, bad = 0, pieces = 0, texts = 0, i;
    size_t               at;
    char                *text = malloc(N + 1);
    const char          *s;
    glm_err_t            err = {{0}};
    glm_event_t          ev;
    glm_logprob_rec_t    rec;
    glm_client_t        *c = join(&world, NULL);
    glm_sec_sampling_t   sp = { .size = sizeof(sp), .logprobs = 0, .prompt_logprobs = TOP };
    glm_client_submit_t  sub = { .m = { .op = GLM_SUBMIT_GENERATE, .n = 1, .max_tokens = 1,
                                        .mode = 1, .flags = GLM_F_ECHO, .window = 1 } };

    memset(text, 'y', N);
    glm_wire_section(&sub.sections, GLM_SEC_TEXT, text, N);
    glm_wire_section(&sub.sections, GLM_SEC_SAMPLING, &sp, sizeof(sp));
    glm_client_submit(c, 1, &sub, &err);
    while (hear(c, &ev) == GLM_MSG_ACCEPTED || ev.type == GLM_MSG_PROMPT) {
        if (ev.type == GLM_MSG_ACCEPTED) continue;
        glm_client_window(c, 1, ev.cost);
        texts += ev.ntext == N && memcmp(ev.text, text, N) == 0;
        pieces += ev.nlogprobs > 0;
        bad += ev.nlogprobs > 2 * GLM_SPOOL_MERGE;
        for (at = 0; glm_event_logprob(&ev, &at, &rec, &s); n++) {
            bad += rec.id != 'y' || rec.offset != (uint32_t) n || rec.ntop != (n ? TOP : 0);
            bad += n ? rec.logprob != -0.5f - (float) n / 8 : !isnan(rec.logprob);
            for (i = rec.ntop; i > 0; i--) glm_event_logprob(&ev, &at, &rec, &s);
        }
    }
    ok(texts == 1 && n == N && bad == 0 && pieces > 10,
       "a prompt of %d ids and their log-probabilities, in %d pieces", n, pieces);
    at = 0;
    ok(ev.type == GLM_MSG_TOKENS && glm_event_logprob(&ev, &at, &rec, &s) && rec.offset == N,
       "echo: the answer's offsets begin behind it");
    glm_client_window(c, 1, 1 << 20);
    ok(answer(c, 1).ended == GLM_MSG_DONE, "then its end");
    glm_client_free(c);
    free(text);
}

/* What a client's live requests hold of the engine's memory has an end. */
static void
test_held(void)
{
    int            i, refused = 0;
    char          *text = malloc(2000001);
    answer_t       a;
    glm_client_t  *c = join(&world, NULL);

    memset(text, ' ', 2000000);
    memcpy(text, "fake: hang", 10);
    text[2000000] = '\0';
    for (i = 0; i < 17; i++) ask(c, (uint64_t) i, text, 1, 0, 0);
    a = answer(c, 16);
    refused = a.ended == GLM_MSG_ERROR && a.error.status == 503;
    ok(refused, "34 MB of prompts: the last one is refused");
    ok(glm_client_live(c) == 16, "the others are not");
    glm_client_free(c);
    ok(WAIT_FOR(fake_engine_jobs() == 0), "they end with their client");
    free(text);
}

/* ---- cancel ---- */

static void
test_cancel(glm_client_t *c)
{
    answer_t     a;
    uint64_t     before;
    glm_event_t  ev;

    ask(c, 1, "fake: tokens=1000000 delay=5", 1000000, 1 << 20, 0);
    while (hear(c, &ev) != GLM_MSG_TOKENS) { /* it runs */ }
    glm_client_cancel(c, 1);
    a = answer(c, 1);
    ok(a.ended == GLM_MSG_DONE && a.done.cancelled == 1, "cancelled while it runs");
    ok(WAIT_FOR(fake_engine_jobs() == 0), "the engine has let go");

    ask(c, 1, "fake: hang", 10, 1 << 20, 0);
    glm_client_cancel(c, 1);
    glm_client_cancel(c, 1);
    a = answer(c, 1);
    ok(a.done.cancelled == 1 && !a.accepted, "cancelled (twice) before it was accepted");

    before = requests(&world);
    ask(c, 1, "fake: tokens=100", 100, 0, 0);
    ran(&world, before, 1);
    glm_client_cancel(c, 1);
    a = answer(c, 1);
    ok(a.ended == GLM_MSG_DONE && a.done.cancelled == 0 && a.nids == 0 && a.done.completion_tokens
       == 100, "cancelled when it had run, unread: done, and none of its text");
    glm_client_cancel(c, 1);
    glm_client_window(c, 1, 5);
    glm_client_go(c, 1);
    ask(c, 2, "fake: tokens=1", 1, 1000, 0);
    ok(answer(c, 2).ended == GLM_MSG_DONE, "records for an id that has ended do nothing");
}

static void
test_hold(glm_client_t *c)
{
    glm_event_t  ev;

    ask(c, 1, "fake: tokens=1", 1, 1000, GLM_F_HOLD);
    ok(hear(c, &ev) == GLM_MSG_ACCEPTED && silent(c, 50), "HOLD: accepted, then nothing");
    glm_client_go(c, 1);
    ok(hear(c, &ev) == GLM_MSG_TOKENS, "GO: it runs");
    answer(c, 1);
}

/* A CANCEL for every live request fits behind a full ring of SUBMITs. */
static void
test_cancel_fits(void)
{
    int                 fd[2], i, n = 0, rc, bad = 0;
    glm_err_t           err = {{0}};
    glm_client_t       *c;
    glm_client_opts_t   o = { .submit_bytes = GLM_WIRE_MIN_RING, .nowait = 1 };
    glm_server_opts_t   so = GLM_SERVER_OPTS_DEFAULT;
    glm_server_t       *s;

    /* a server whose thread is told to stop serves no more: its rings stay */
    socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fd);
    if (glm_server_start(&s, &so, -1, &err) || glm_server_engine(s, world.engine, &err)) {
        bail_out(err.text);
    }
    glm_server_add(s, fd[0]);
    if (glm_client_attach(&c, fd[1], &o, &err) != 0) bail_out(err.text);
    glm_server_detach(s);
    glm_server_stop(s, 0);

    while ((rc = ask(c, (uint64_t) n, "a prompt of some length, and some more of it", 1, 0, 0)) == 0) n++;
    ok(rc == GLM_EBUSY && n > 200 && n < 1000, "nobody reads: full after %d SUBMITs", n);
    for (i = 0; i < n; i++) bad += glm_client_cancel(c, (uint64_t) i) != 0;
    ok(bad == 0, "each of them can still be cancelled");
    glm_client_free(c);
}

/* ---- spool ---- */

static void
test_spool(void)
{
    int                 i;
    uint64_t            most = 0, now, share;
    answer_t           *a = malloc(sizeof(*a));
    glm_event_t         ev;
    glm_client_t       *c, *good;
    glm_server_opts_t   so = GLM_SERVER_OPTS_DEFAULT;
    world_t             w;

    so.spool_bytes = 128 * 1024;  /* half of it brakes the shorter request before its end, */
    so.pause_ms = 8000;          /* however late the server is; all that follows is done before */
    w = world_start(&so, &fake);
    c = join(&w, NULL);
    good = join(&w, NULL);
    share = glm_client_welcome(c)->spool_share;
    ok(share == 32 * 1024, "a client's share is told");

    ask(c, 1, "fake: tokens=6000 bytes=11 delay=0", 6000, 0, 0);
    ask(c, 2, "fake: tokens=1000000 bytes=100 burst=3", 1000000, 0, 0);
    ok(WAIT_FOR(paused(c) == 2), "two unread requests: both are paused");
    for (i = 0; i < 100; i++) {
        now = spooled(c);
        if (now > most) most = now;
        usleep(1000);
    }
    ok(most > share && most < 3 * share, "%llu bytes are kept for a share of %llu",
       (unsigned long long) most, (unsigned long long) share);

    ask(good, 1, "fake: tokens=500 bytes=50", 500, 1 << 20, 0);
    *a = answer(good, 1);
    ok(a->ended == GLM_MSG_DONE && right_text(a, 500, 50), "another client is not disturbed");
    ask(c, 3, "fake: tokens=50 bytes=5", 50, 1 << 20, 0);
    while (hear(c, &ev) != 0 && ev.id != 3) { /* ACCEPTED of the others */ }
    *a = answer(c, 3);
    ok(a->ended == GLM_MSG_DONE && right_text(a, 50, 5),
       "nor a request of the same client that is read");

    glm_client_window(c, 1, 1 << 30);
    memset(a, 0, sizeof(*a));
    a->order = a->accepted = 1;
    while (!a->ended && hear(c, &ev) != 0) {
        if (ev.id == 1) take(a, &ev);
        else if (ev.type == GLM_MSG_ERROR) break;
    }
    ok(a->ended == GLM_MSG_DONE && a->order && right_text(a, 6000, 11),
       "read at last, it is resumed and nothing is missing");

    while (hear(c, &ev) != 0 && ev.id != 2) { /* nothing */ }
    ok(ev.type == GLM_MSG_ERROR && ev.error.status == 504 && strcmp(ev.error.code, "read_timeout")
       == 0, "paused for too long: that request ends, without a window");
    ok(WAIT_FOR(fake_engine_jobs() == 0) && WAIT_FOR(spooled(c) == 0 && paused(c) == 0),
       "and its spool is free");
    glm_client_free(c);
    glm_client_free(good);
    world_stop(&w);
    free(a);
}

/* ---- n ---- */

static void
test_choices(void)
{
    int                  ids[2] = {0}, fin = 0, msgs = 0;
    glm_err_t            err = {{0}};
    glm_event_t          ev;
    glm_client_t        *c;
    glm_client_submit_t  s = { .m = { .op = GLM_SUBMIT_GENERATE, .n = 2, .max_tokens = 200 } };
    glm_server_opts_t    so = GLM_SERVER_OPTS_DEFAULT;
    world_t              w;

    so.max_n = 4;
    w = world_start(&so, &fake);
    c = join(&w, NULL);
    ok(glm_client_welcome(c)->max_n == 4, "max_n is told");
    glm_wire_section(&s.sections, GLM_SEC_TEXT, "fake: tokens=200", 16);
    glm_client_submit(c, 1, &s, &err);
    ran(&w, 0, 1);
    glm_client_window(c, 1, 1 << 20);
    while (hear(c, &ev) != 0 && ev.type != GLM_MSG_DONE) {
        if (ev.type == GLM_MSG_TOKENS) ids[ev.tokens.choice & 1] += (int) ev.nids, msgs++;
        fin += ev.type == GLM_MSG_FINISH;
    }
    ok(ids[0] == 200 && ids[1] == 200 && fin == 2 && msgs < 10,
       "two choices; those that waited are merged: %d messages", msgs);
    glm_client_free(c);
    world_stop(&w);
}

/* ---- statistics ---- */

static void
test_stats(glm_client_t *c)
{
    int               fd;
    char              name[40];
    void             *p;
    glm_wire_stats_t  s = statistics(c), t;

    ask(c, 1, "fake: tokens=3 delay=20", 3, 1 << 20, 0);
    answer(c, 1);
    ok(WAIT_FOR(glm_client_stats(c, &t) == 0 && t.finished_length == s.finished_length + 1
                && t.running == 0), "a request is counted");
    ok(t.generated_tokens == s.generated_tokens + 3 && t.requests == s.requests + 1
       && t.accepted == s.accepted + 1, "with its tokens");
    ok(t.ttft.count == s.ttft.count + 1 && t.e2e.count == s.e2e.count + 1
       && t.tpot.count == s.tpot.count + 1, "and its times");
    ok(t.ttft.sum_us - s.ttft.sum_us >= 20000 && t.tpot.sum_us - s.tpot.sum_us >= 15000,
       "which are plausible");
    ok(t.heartbeat_ns > s.heartbeat_ns && t.clients == 1 && t.kv_pages_total == 1000,
       "heartbeat, clients, pages");

    snprintf(name, sizeof(name), "/proc/self/fd/%d", world.server->stats_fd);
    fd = open(name, O_RDWR);      /* what a client with our user could do */
    p = mmap(NULL, 1016, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    ok(fd >= 0 && p == MAP_FAILED && errno == EPERM, "nobody can map the statistics for writing");
    ok(pwrite(fd, "x", 1, 0) < 0 && ftruncate(fd, 0) < 0, "or write them");
    close(fd);
}

/* ---- the states of an engine ---- */

static uint32_t
refusal(world_t *w, const void *hello, size_t n)
{
    raw_t     r;
    int       type;
    uint32_t  reason;

    raw_connect(&r, w);
    type = raw_hello(&r, hello, n);
    reason = type == GLM_SOCK_REFUSE ? r.refused : 1000 + (uint32_t) type;
    raw_close(&r);
    return reason;
}

static void
test_hello(world_t *w)
{
    int                i;
    raw_t              r;
    glm_sock_hello_t   h = raw_valid_hello(), v = h;
    char               big[600] = {0};

    ok(refusal(w, &h, 11) == GLM_REFUSE_HELLO, "hello: cut");
    h.size = 60;
    ok(refusal(w, &h, sizeof(h)) == GLM_REFUSE_HELLO, "hello: a size that lies");
    h = v, h.head.magic++;
    ok(refusal(w, &h, sizeof(h)) == GLM_REFUSE_HELLO, "hello: magic");
    h = v, h.reserved = 1;
    ok(refusal(w, &h, sizeof(h)) == GLM_REFUSE_HELLO, "hello: reserved");
    h = v, h.abi_min = 2, h.abi_max = 1;
    ok(refusal(w, &h, sizeof(h)) == GLM_REFUSE_HELLO, "hello: a range that is none");
    h = v, h.abi_min = h.abi_max = 9;
    ok(refusal(w, &h, sizeof(h)) == GLM_REFUSE_ABI, "hello: an ABI of the future");
    h = v, h.abi_max = 9;
    ok(refusal(w, &h, sizeof(h)) == 1000 + GLM_SOCK_WELCOME, "hello: ours among others");
    h = v, h.size = 100;
    memcpy(big, &h, sizeof(h));
    ok(refusal(w, big, 100) == 1000 + GLM_SOCK_WELCOME, "hello: longer, with zeros");
    big[99] = 1;
    ok(refusal(w, big, 100) == GLM_REFUSE_HELLO, "hello: longer, with something");
    ok(refusal(w, big, 600) == GLM_REFUSE_HELLO, "hello: 600 bytes");

    raw_connect(&r, w);
    h = v, h.submit_bytes = 1, h.complete_bytes = UINT32_MAX;
    raw_hello(&r, &h, sizeof(h));
    ok(r.w.submit_bytes == GLM_WIRE_MIN_RING && r.w.complete_bytes == GLM_SERVER_MAX_RING,
       "ring sizes are clamped");
    for (i = 0; i < 100 && r.map[i] == 0; i++) { /* new memory */ }
    ok(r.w.abi == 1 && r.w.vocab == FAKE_VOCAB && r.w.max_n == 128 && r.w.max_live == 1024
       && strcmp(r.w.name, "fake-model") == 0 && (r.w.flags & GLM_WELCOME_TOKENIZER),
       "WELCOME says what there is");
    raw_close(&r);
}

static void
test_life(void)
{
    raw_t               r[3];
    answer_t            a;
    static answer_t     b[4];
    glm_err_t           err = {{0}};
    glm_event_t         ev;
    glm_client_t       *c;
    glm_sock_hello_t    h = raw_valid_hello();
    glm_server_opts_t   so = GLM_SERVER_OPTS_DEFAULT;
    glm_engine_opts_t   eo = {0};
    world_t             w = {0};

    so.max_clients = 2;
    if (glm_server_start(&w.server, &so, -1, &err) != 0) bail_out(err.text);
    ok(refusal(&w, &h, sizeof(h)) == GLM_REFUSE_LOADING, "no engine yet: LOADING");
    if (glm_engine_start(&w.engine, &eo, &err) != 0) bail_out(err.text);
    glm_server_engine(w.server, w.engine, &err);
    ok(raw_join(&r[0], &w) && raw_join(&r[1], &w), "then two clients");
    ok(refusal(&w, &h, sizeof(h)) == GLM_REFUSE_CLIENTS, "a third is one too many");
    raw_close(&r[0]);
    raw_close(&r[1]);
    c = NULL;
    ok(WAIT_FOR(c != NULL || (c = join(&w, NULL)) != NULL), "they leave, and there is room");

    ask(c, 1, "fake: tokens=20 bytes=3 delay=10", 20, 1 << 20, 0);
    ask(c, 2, "fake: hang", 20, 1 << 20, 0);
    ok(WAIT_FOR(fake_engine_jobs() == 2), "two run");
    glm_server_drain(w.server);
    glm_engine_drain(w.engine);
    ok(refusal(&w, &h, sizeof(h)) == GLM_REFUSE_DRAINING, "draining: DRAINING");
    ask(c, 3, "fake: tokens=1", 20, 1 << 20, 0);
    memset(b, 0, sizeof(b));
    b[1].order = 1;
    while ((!b[1].ended || !b[3].ended) && hear(c, &ev) != 0) take(&b[ev.id & 3], &ev);
    ok(b[3].ended == GLM_MSG_ERROR && b[3].error.status == 503
       && strcmp(b[3].error.code, "engine_draining") == 0, "draining: a new request is refused");
    ok(b[1].ended == GLM_MSG_DONE && right_text(&b[1], 20, 3) && !glm_server_idle(w.server),
       "draining: a running one ends well");
    glm_server_detach(w.server);
    ask(c, 4, "fake: tokens=1", 20, 1 << 20, 0);
    a = answer(c, 4);
    ok(a.error.status == 503, "detached: refused by the server itself");
    glm_engine_stop(w.engine);
    glm_server_stop(w.server, 1000);
    a = answer(c, 2);
    ok(a.ended == GLM_MSG_ERROR && a.error.status == 503, "stopped: what ran gets an error");
    ok(hear(c, &(glm_event_t) {0}) == 0, "then the connection ends");
    glm_client_free(c);
}

int
main(void)
{
    glm_client_t       *c;
    glm_server_opts_t   so = GLM_SERVER_OPTS_DEFAULT;

    glm_log_level("error");
    world = world_start(&so, &fake);
    c = join(&world, NULL);
    if (c == NULL) bail_out("no client");
    test_order(c);
    test_errors(c);
    test_tokenize(c);
    test_logprobs(c);
    test_large(c);
    test_many(c);
    test_windows(c);
    test_held_text(c);
    test_pieces();
    test_prompt();
    test_held();
    test_cancel(c);
    test_hold(c);
    test_cancel_fits();
    test_stats(c);
    test_hello(&world);
    glm_client_free(c);
    world_stop(&world);
    test_spool();
    test_choices();
    test_life();
    return tap_done();
}
