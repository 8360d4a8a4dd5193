/*
 * engine: breaks when threads lose or leak a request, when text, stops or offsets
 * are wrong, when an id without text is generated, or when the engine does not
 * wake, drain or stop.  A fake model over the demo model's tokenizer.
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

static glm_engine_stats_t
stats(const glm_engine_t *e)
{
    glm_engine_stats_t  st;

    glm_engine_stats(e, &st);
    return st;
}

static void
down(glm_engine_t *e, const char *what)
{
    ok(T_UNTIL(glm_engine_idle(e) && stats(e).kv_pages_used == 0 && stats(e).running == 0
               && stats(e).waiting == 0), "%s: idle, every page is back", what);
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

/* ---- text ---- */

/* Bytes and characters of what the first n ids print, nothing unfinished. */
static size_t
printed(glm_engine_t *e, const t_choice_t *c, size_t n, uint32_t *chars, glm_text_t *out)
{
    glm_detok_t  d;
    glm_text_t   own = {0}, *t = out != NULL ? out : &own;
    size_t       len;

    glm_detok_init(&d, glm_engine_tokenizer(e));
    for (size_t i = 0; i < n; i++) glm_detok_push(&d, c->id[i], t);
    len = t->n;
    *chars = 0;
    for (size_t i = 0; i < len; i++) *chars += (t->s[i] & 0xC0) != 0x80;
    glm_text_free(&own);
    return len;
}

static int
is_end(int32_t id)
{
    return id == 7813 || id == 2;
}

static void
test_text(glm_engine_t *e)
{
    int  bad = 0, offsets = 0, banned = 0, bytes = 0;

    for (uint64_t seed = 0; seed < 40; seed++) {
        t_req_t     *t = text(e, "Where is the file?", 60, seed);
        t_choice_t  *c = &t->c[0];
        glm_text_t   want = {0};
        uint32_t     chars;

        t->r.ignore_eos = seed % 2;
        t->r.sample.nlogprobs = 2;
        bad += !t_run(t) || t->ended != 1 || t->wrong;
        printed(e, c, c->n - (c->fin.reason == GLM_FINISH_STOP), &chars, &want);
        bad += want.n != c->ntext || memcmp(want.s ? want.s : "", c->text, want.n) != 0;
        for (size_t i = 0; i < c->n; i++) {
            glm_token_kind_t  kind = glm_token_kind(glm_engine_tokenizer(e), c->id[i]);

            printed(e, c, i, &chars, NULL);
            offsets += chars != c->offset[i];
            bytes += kind == GLM_TOK_BYTE;
            banned += kind == GLM_TOK_NONTEXT && !is_end(c->id[i]);
            bad += c->sampled[i].id != c->id[i] || c->sampled[i].ntop != 2;
        }
        glm_text_free(&want);
        t_free(t);
    }
    ok(bad == 0, "the text is that of the ids, whatever the end was");
    ok(offsets == 0, "offsets count the characters before a token");
    ok(banned == 0 && bytes > 20, "only ids that print are generated (%d bytes among them)", bytes);
}

/* Kept tokens by the definition: the text before the token is shorter than the cut. */
static int32_t
should_keep(glm_engine_t *e, const t_choice_t *c, size_t cut)
{
    int32_t   n = 0;
    uint32_t  chars;

    for (size_t i = 0; i < c->n; i++) n += printed(e, c, i, &chars, NULL) < cut;
    return n;
}

static void
test_stops(glm_engine_t *e)
{
    int  bad = 0, hits = 0;

    for (uint64_t seed = 100; seed < 160; seed++) {
        t_req_t     *a = text(e, "Where is the file?", 50, seed), *b;
        glm_stop_t   stop[3] = { { "never so", 8 }, { NULL, 0 }, { "\x01\x02", 2 } };
        size_t       at, cut;

        t_run(a);
        at = a->c[0].ntext / 3 + seed % 9;
        stop[1] = (glm_stop_t) { a->c[0].text + at, 1 + seed % 7 };
        if (at + stop[1].n > a->c[0].ntext) {
            t_free(a);
            continue;
        }

        b = text(e, "Where is the file?", 50, seed);
        b->r.stop = stop;
        b->r.nstop = 3;
        b->r.include_stop = seed % 2;
        t_run(b);
        for (cut = 0; memcmp(a->c[0].text + cut, stop[1].s, stop[1].n) != 0;) cut++;
        if (b->r.include_stop) cut += stop[1].n;
        hits += b->c[0].fin.reason == GLM_FINISH_STOP && b->c[0].fin.stop_index == 1;
        bad += b->wrong || b->c[0].fin.stop_index != 1 || b->c[0].ntext != cut
               || memcmp(b->c[0].text, a->c[0].text, cut) != 0
               || b->c[0].fin.nkept != should_keep(e, &b->c[0], cut);
        t_free(a);
        t_free(b);
    }
    ok(bad == 0 && hits > 30, "%d stops: text and tokens are cut, nothing leaks", hits);
}

static void
test_jobs(glm_engine_t *e)
{
    int32_t   ids[3] = { 7808, 22, 9000 };
    t_req_t  *t = t_new_text(e, "Where is [MASK]?");

    t->r.op = GLM_OP_TOKENIZE;
    t_run(t);
    ok(t->ended == 1 && !t->accepted && t->nids > 3 && t->ids[t->nids - 1] == 2,
       "tokenize: ids with eos");
    t_free(t);

    t = t_new_ids(e, ids, 2);
    t->r.op = GLM_OP_DETOKENIZE;
    t_run(t);
    ok(t->ended == 1 && t->text != NULL && !strncmp(t->text, "[MASK]", 6), "detokenize: %s",
       t->text);
    t_free(t);
    t = t_new_ids(e, ids, 3);
    t->r.op = GLM_OP_DETOKENIZE;
    t_run(t);
    ok(t->ended == 2 && !strcmp(t->no.param, "tokens") && t->no.value == 9000, "detokenize: %s",
       t->no.text);
    t_free(t);
    t = t_new_ids(e, ids, 0);
    t->r.op = GLM_OP_DETOKENIZE;
    t_run(t);
    ok(t->ended == 1 && t->ntext == 0, "detokenize nothing");
    t_free(t);

    t = t_new_text(e, "a");
    t->r.max_tokens = 5000;
    t_run(t);
    ok(t->ended == 2 && !t->accepted && !strcmp(t->no.code, "context_length_exceeded"),
       "a refused request hears error alone");
    t_free(t);
    t = text(e, "a", 8, 0);
    t->r.has_seed = 0;
    t->r.n = 4;
    t_run(t);
    ok(t->ended == 1 && t->acc.seed != 0 && t->acc.seed < 1ull << 53, "a seed is drawn");
    ok(t->done.t_submit <= t->done.t_admit && t->done.t_admit <= t->done.t_first
       && t->done.t_first <= t->done.t_done && t->done.t_submit > 0, "times in order");
    t_free(t);
}

/* ---- threads ---- */

static void
test_stages(void)
{
    glm_engine_t  *e = up(2, 4096, 3);
    t_req_t       *t[8];
    uint64_t       beat;

    fake_gate(1);
    for (int i = 0; i < 2; i++) t_submit(t[i] = text(e, "Where is the file?", 20, 1));
    fake_wait_at_gate();
    for (int i = 2; i < 7; i++) t_submit(t[i] = text(e, "a", 20, 1));
    beat = stats(e).heartbeat;
    glm_req_cancel(e, &t[1]->r);
    glm_req_cancel(e, &t[3]->r);
    nanosleep(&(struct timespec) { .tv_nsec = 30000000 }, NULL);
    ok(stats(e).heartbeat == beat, "a step that hangs stops the heartbeat");
    fake_gate(0);
    for (int i = 0; i < 7; i++) t_wait(&t[i]->ended, 1);
    ok(t[1]->done.cancelled && t[3]->done.cancelled, "cancelled ones end");
    ok(t[0]->ended == 1 && !t[0]->done.cancelled && t[0]->c[0].n > 0, "others run");
    for (int i = 0; i < 7; i++) {
        if (t[i]->ended == 2 && t[i]->no.status != 503) ok(0, "unexpected: %s", t[i]->no.text);
        t_free(t[i]);
    }
    ok(T_UNTIL((beat = t_now(), stats(e).heartbeat >= beat)), "an idle engine's heart beats");
    down(e, "stages");
}

static void
test_latency(void)
{
    glm_engine_t  *e = up(2, 4096, 3);
    t_req_t       *t = text(e, "Where is the file?", 900, 1);

    fake_step_ns = 2000000;
    t->r.ignore_eos = 1;
    t_submit(t);
    t_wait_tokens(t, 0, 5);
    {
        int  steps;

        fake_gate(1);
        fake_wait_at_gate();
        steps = fake_steps;
        glm_req_cancel(e, &t->r);
        fake_gate(0);
        t_wait(&t->ended, 1);
        ok(t->done.cancelled && fake_steps - steps <= 1, "cancel takes effect behind the step that "
           "runs: %d", fake_steps - steps);
    }
    fake_step_ns = 0;
    t_free(t);
    down(e, "latency");
}

static void
test_sleep(void)
{
    glm_engine_t  *e = up(2, 4096, 3);
    t_req_t       *a = text(e, "a", 5, 1), *b = text(e, "a", 500, 2);
    uint64_t       due = t_now() + 2000000000;
    int            steps;

    a->r.hold = 1;
    a->r.deadline = due;
    t_submit(a);
    t_wait(&a->ended, 1);
    ok(a->accepted && a->ended == 2 && a->no.status == 504 && a->t_ended >= due,
       "the deadline of a held request wakes the engine");
    t_free(a);

    b->r.ignore_eos = 1;
    t_submit(b);
    t_wait_tokens(b, 0, 3);
    glm_req_pause(e, &b->r, 1);
    T_UNTIL(stats(e).paused == 1);
    nanosleep(&(struct timespec) { .tv_nsec = 20000000 }, NULL);
    steps = fake_steps;
    nanosleep(&(struct timespec) { .tv_nsec = 50000000 }, NULL);
    ok(fake_steps == steps && !b->ended, "paused: no step is made");
    glm_req_pause(e, &b->r, 0);
    t_wait(&b->ended, 1);
    ok(b->ended == 1 && b->c[0].n == 500, "and it goes on");
    t_free(b);

    a = text(e, "a", 5, 1);
    a->r.hold = 1;
    t_submit(a);
    t_wait(&a->accepted, 1);
    glm_req_go(e, &a->r);
    t_wait(&a->ended, 1);
    ok(a->ended == 1 && t_wait(&t_flushes, 1), "go wakes it");
    t_free(a);
    down(e, "sleep");
}

static void
test_drain_stop(void)
{
    glm_engine_t  *e = up(2, 4096, 10);
    t_req_t       *t[6];
    int            bad = 0;

    fake_gate(1);
    t_submit(t[0] = text(e, "a", 30, 1));
    fake_wait_at_gate();
    glm_engine_drain(e);
    t_submit(t[1] = text(e, "a", 30, 1));
    t_wait(&t[1]->ended, 1);
    ok(t[1]->ended == 2 && t[1]->no.status == 503 && !strcmp(t[1]->no.code, "engine_draining")
       && stats(e).draining, "draining: %s", t[1]->no.text);
    ok(!glm_engine_idle(e), "not idle yet");
    fake_gate(0);
    t_wait(&t[0]->ended, 1);
    ok(t[0]->ended == 1 && T_UNTIL(glm_engine_idle(e)), "what was accepted ends, then idle");
    t_free(t[0]);
    t_free(t[1]);
    glm_engine_stop(e);

    e = up(1, 4096, 10);
    fake_step_ns = 20000000;             /* none gets to its end before the stop */
    for (int i = 0; i < 6; i++) {
        t[i] = text(e, "a", 900, 1);
        t[i]->r.ignore_eos = 1;
        t[i]->r.hold = i == 4;
        t_submit(t[i]);
        t_wait(&t[0]->accepted, 1);      /* another worker may be faster with the next */
    }
    t_wait_tokens(t[0], 0, 1);
    glm_req_pause(e, &t[0]->r, 1);
    glm_engine_stop(e);
    fake_step_ns = 0;
    for (int i = 0; i < 6; i++) {
        if (t[i]->ended == 2 && t[i]->no.status == 503 && !t[i]->wrong) continue;
        diag("request %d: ended %d, status %d, wrong %d, %zu tokens", i, t[i]->ended,
             t[i]->no.status, t[i]->wrong, t[i]->c[0].n);
        bad++;
    }
    for (int i = 0; i < 6; i++) t_free(t[i]);
    ok(bad == 0, "stop: running, paused, queued and held ones hear a 503");
}

/* ---- a storm ---- */

#define STORM    1000
#define SENDERS  3

static t_req_t       *storm[STORM];
static glm_engine_t  *storm_engine;

static void
make_storm(glm_engine_t *e, unsigned *s)
{
    static const char *const   prompts[4] = { "a", "Where is the [MASK]?", "Save the file German:",
                                              "This package provides a library for [gMASK]" };
    static const glm_stop_t    stops[2] = { { "e", 1 }, { "the", 3 } };

    for (int i = 0; i < STORM; i++) {
        t_req_t  *t = text(e, prompts[rand_r(s) % 4], (int) (rand_r(s) % 40), rand_r(s));

        t->r.n = 1 + (int) (rand_r(s) % 3);
        t->r.hold = rand_r(s) % 8 == 0;
        t->r.mode = rand_r(s) % 4 == 0 && strchr(t->seg.text, '[') == NULL;
        if (rand_r(s) % 10 == 0) t->r.deadline = t_now() + rand_r(s) % 300000000;
        if (rand_r(s) % 3 == 0) {
            t->r.stop = stops;
            t->r.nstop = 2;
        }
        if (rand_r(s) % 12 == 0) t->r.op = GLM_OP_TOKENIZE;
        t->r.sample.nlogprobs = rand_r(s) % 5 == 0 ? 3 : -1;
        storm[i] = t;
    }
}

static void *
send_storm(void *arg)
{
    int       me = (int) (intptr_t) arg;
    unsigned  s = (unsigned) me + 1;

    for (int i = me; i < STORM; i += SENDERS) {
        int       before = (int) (rand_r(&s) % (unsigned) (i / SENDERS + 1));
        t_req_t  *t = storm[i], *other = storm[me + before * SENDERS];

        t_submit(t);
        if (rand_r(&s) % 4 == 0) glm_req_cancel(storm_engine, &other->r);
        if (rand_r(&s) % 6 == 0) glm_req_pause(storm_engine, &other->r, 1);
        if (rand_r(&s) % 8 == 0) glm_req_go(storm_engine, &other->r);
        if (rand_r(&s) % 3 == 0) usleep(rand_r(&s) % 500);
    }
    for (int i = me; i < STORM; i += SENDERS) {
        glm_req_go(storm_engine, &storm[i]->r);
        glm_req_pause(storm_engine, &storm[i]->r, 0);
        if (rand_r(&s) % 16 == 0) glm_req_cancel(storm_engine, &storm[i]->r);
    }
    return NULL;
}

static void
test_storm(void)
{
    pthread_t            th[SENDERS];
    unsigned             s = 7;
    int                  wrong = 0, lost = 0, done = 0, cancelled = 0, refused = 0;
    glm_engine_stats_t   st;

    storm_engine = up(6, 1500, 1000);
    make_storm(storm_engine, &s);
    for (intptr_t i = 0; i < SENDERS; i++) pthread_create(&th[i], NULL, send_storm, (void *) i);
    for (int i = 0; i < SENDERS; i++) pthread_join(th[i], NULL);
    for (int i = 0; i < STORM; i++) {
        lost += !t_wait(&storm[i]->ended, 1);
        wrong += storm[i]->wrong;
        refused += storm[i]->ended == 2;
        cancelled += storm[i]->done.cancelled;
        done += storm[i]->ended == 1 && !storm[i]->done.cancelled;
    }
    ok(lost == 0 && wrong == 0, "1000 requests of three threads: each ends once, in order");
    ok(done > 100 && cancelled > 50, "%d done, %d cancelled, %d refused or late", done, cancelled,
       refused);
    T_UNTIL(glm_engine_idle(storm_engine));
    st = stats(storm_engine);
    ok(st.requests == STORM, "counted: %d requests", (int) st.requests);
    down(storm_engine, "storm");
    for (int i = 0; i < STORM; i++) t_free(storm[i]);
}

/* A directory with the demo's tokenizer and a config.json changed by sed. */
static int
start_changed(const char *sed, glm_err_t *err)
{
    char                dir[] = "/tmp/glm-engine-XXXXXX", cmd[256];
    glm_engine_t       *e = NULL;
    glm_engine_opts_t   o = { .model_dir = dir };
    int                 rc;

    if (mkdtemp(dir) == NULL) bail_out("no temporary directory");
    snprintf(cmd, sizeof(cmd), "cp models/demo/tok* %s && sed '%s' models/demo/config.json "
             "> %s/config.json", dir, sed, dir);
    if (system(cmd) != 0) bail_out("no copy of the demo model");
    err->text[0] = '\0';
    rc = glm_engine_start(&e, &o, err);
    if (rc == 0) glm_engine_stop(e);
    snprintf(cmd, sizeof(cmd), "rm -r %s", dir);
    if (system(cmd) != 0) diag("%s stays", dir);
    return rc;
}

static void
test_start(void)
{
    glm_err_t          err = {0};
    glm_engine_t      *e;
    glm_engine_opts_t  o = { .model_dir = "/nonexistent" };

    ok(start_changed("", &err) == 0, "the demo's tokenizer belongs to its model: %s", err.text);
    ok(start_changed("s/8192/8000/", &err) != 0 && strstr(err.text, "8152"), "fewer rows than "
       "ids: %s", err.text);
    ok(start_changed("s/7808/7600/", &err) != 0 && strstr(err.text, "[MASK]"), "another [MASK]: %s",
       err.text);
    err.text[0] = '\0';
    ok(glm_engine_start(&e, &o, &err) != 0 && e == NULL && err.text[0], "no model: %s", err.text);
}

static int  failures, failed_with;

static void
on_failure(void *arg, int code, const char *why)
{
    failures += arg == &failures && why[0] != '\0';
    failed_with = code;
}

/* The device fails after nobody reads a step any more: its owner hears of it. */
static void
test_late_fault(void)
{
    glm_engine_t       *e;
    glm_err_t           err = {0};
    glm_engine_opts_t   o = { .model_dir = "models/demo", .tokenizer_threads = 1,
                              .on_failure = on_failure, .on_failure_arg = &failures };

    for (int late = 0; late < 2; late++) {
        failures = 0;
        if (glm_engine_start(&e, &o, &err) != 0) bail_out(err.text);
        fake_late_fault = late ? GLM_ETIMEOUT : 0;
        glm_engine_stop(e);
        ok(failures == late && (!late || failed_with == GLM_ETIMEOUT), "%s while it stopped",
           late ? "a failure" : "no failure");
    }
    fake_late_fault = fake_fault = 0;
}

int
main(void)
{
    glm_engine_t  *e;

    if (access("models/demo/config.json", R_OK) != 0) skip_all("no demo model");
    e = up(8, 8192, 100);
    test_text(e);
    test_stops(e);
    test_jobs(e);
    down(e, "text");
    test_stages();
    test_latency();
    test_sleep();
    test_drain_stop();
    test_late_fault();
    test_start();
    test_storm();
    ok(fake_wrong == 0, "the model was called as its header says");
    return tap_done();
}
