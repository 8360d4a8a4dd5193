/*
 * sched_overlap: breaks when a step that begins before the one before is read changes
 * what any request is told: another id, log-probability or end, something of a row that
 * nobody wanted, a page that is lost or given away too early.  Mixes of everything, with
 * overlap and without, by hand: over the fake model, and over the CUDA backend
 * (fakecuda_sched_overlap, and on the card).
 */
#ifdef GLM_TEST_CUDA
#include "model_backend.h"
#ifdef GLM_FAKECUDA
#define MIXES   4
#else
#define MIXES   20
#endif
#define LAYERS  2

static int  fake_wrong, fake_steps, fake_slices, fake_max_rows_seen;
#else
#include "fake_model.h"
#ifdef __SANITIZE_ADDRESS__
#define MIXES   40
#else
#define MIXES   150
#endif
#endif

#include "scheduler.h"
#define T_CHOICES  16
#include "engine_util.h"
#include "tap.h"
#include "sched_util.h"

#define N  24                     /* requests of a mix */

static uint64_t  seed;

/* 0 .. n - 1 */
static int32_t
dice(int32_t n)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (int32_t) ((seed >> 33) % (uint64_t) n);
}

static void
up_with(int overlap, int max_seqs, int max_rows, int kv_pages, int budget)
{
#ifndef GLM_TEST_CUDA
    fake_overlap = overlap ? 64 : 0;
#endif
    up(max_seqs, max_rows, kv_pages, 2 * N, budget);
    lim.max_rows = max_rows;
    S.overlap = overlap;
}

/* ---- requests of all kinds ---- */

static int32_t            ids[400], early[2] = { 33, 70 }, few[5] = { 40, 41, 42, 43, 44 };
static const int32_t      none[1] = { 501 };
static glm_logit_bias_t   bias[2] = { { 60, 4.5f }, { 61, -3 } };
static glm_segment_t      choice[6];

static void
ordinary(glm_req_t *r)
{
    r->n = 1 + dice(4);
    r->ignore_eos = dice(2);
    r->sample = (glm_sample_t) { .temperature = dice(3) ? 1 : 0, .nlogprobs = dice(4) - 1,
                                 .top_k = dice(4) ? 0 : 5, .top_p = dice(4) ? 0 : 0.9f };
    if (dice(3) == 0) r->sample.presence = 1.5f;
    if (dice(3) == 0) r->sample.frequency = 0.7f;
    if (dice(3) == 0) r->sample.repetition = 1.3f;
    if (dice(4) == 0) r->best_of = r->n + dice(3);
    if (dice(3) == 0) {
        r->stop_id = early;
        r->nstop_id = 2;
        r->include_stop = dice(2);
    }
    if (dice(4) == 0) r->min_tokens = dice(r->max_tokens + 1);
    if (dice(4) == 0) r->repeat = (glm_repeat_t) { 1, 3, 2 };
    if (dice(4) == 0) {
        r->bias = bias;
        r->nbias = 2;
    }
    if (dice(4) == 0) {
        r->allow = few;
        r->nallow = 5;
    }
}

static void
causal(glm_req_t *r)
{
    r->mode = GLM_UNIDIRECTIONAL;
    if (dice(2)) return;
    r->want_prompt_logprobs = 1;
    r->nprompt_logprobs = dice(3);
    if (dice(2)) r->max_tokens = 0;
}

static void
beams(glm_req_t *r)
{
    r->beams = 2 + dice(3);
    r->n = 1 + dice(2);
    r->no_repeat_ngram = dice(2) * 2;
    r->length_penalty = 1;
    r->has_seed = 0;
    r->sample = (glm_sample_t) { .nlogprobs = dice(2) - 1 };
}

static void
score(glm_req_t *r)
{
    r->op = GLM_OP_SCORE;
    r->choice = choice;
    r->nchoice = (size_t) (1 + dice(6));
    r->n = (int32_t) r->nchoice;
    r->sample = (glm_sample_t) { .nlogprobs = 0 };
}

static void
infill(t_req_t *t)
{
    static const int32_t  masked[2][9] = {
        { 30, 29, MASK, 32, MASK, MASK, 33, GMASK, 34 }, { MASK, 51, 52, 53, MASK }
    };
    int  k = dice(2);

    t->seg.ids = masked[k];
    t->seg.n = k == 0 ? 9 : 5;
    t->blanks = k == 0 ? 3 : 2;
    t->r.op = GLM_OP_INFILL;
    t->r.n = 1 + dice(2);
    t->r.ignore_eos = 0;
    if (dice(4) == 0) {
        t->r.beams = 2;
        t->r.length_penalty = 1;
        t->r.has_seed = 0;
        t->r.sample = (glm_sample_t) { .nlogprobs = -1 };
    }
}

/* Nothing is left to pick from the first token on. */
static void
impossible(glm_req_t *r)
{
    r->allow = none;
    r->nallow = 1;
    r->min_tokens = r->max_tokens;
}

static t_req_t *
any_request(void)
{
    int       kind = dice(12);
    t_req_t  *t = t_new_ids(NULL, ids + dice(200), (size_t) (1 + dice(60)));

    t->r.max_tokens = 1 + dice(30);
    t->r.has_seed = 1;
    t->r.sample = (glm_sample_t) { .temperature = 1, .nlogprobs = -1 };
    t->r.sample.seed = (uint64_t) dice(1000);
    t->r.priority = dice(2);
    if (kind < 6) ordinary(&t->r);
    if (kind == 5 || kind == 6) causal(&t->r);
    if (kind == 7) beams(&t->r);
    if (kind == 8) score(&t->r);
    if (kind == 9) infill(t);
    if (kind == 10) impossible(&t->r);
    if (!t->r.has_seed) t->r.sample.seed = 0;
    return t;
}

/* ---- mixes ---- */

/* What happens to a request, and when, told in tokens that it has heard. */
typedef struct {
    int  arrives;                 /* after so many steps */
    int  cancel, pause, resume;   /* steps later: tokens; -1: never */
    int  paused;
} fate_t;

typedef struct {
    t_req_t  *t[N];
    fate_t    fate[N];
    uint64_t  rows, generated;
} mix_t;

static int
heard(const t_req_t *t)
{
    int  n = (int) t->prompt.n;

    for (int k = 0; k < T_CHOICES; k++) n += (int) t->c[k].n;
    return n;
}

static void
meet_fate(t_req_t *t, fate_t *f)
{
    if (t->ended) return;
    if (f->cancel >= 0 && heard(t) >= f->cancel) {
        cancel(t);
        return;
    }
    if (f->pause >= 0 && heard(t) >= f->pause && !f->paused++) atomic_store(&t->r.paused, 1);
    if (f->paused > 0 && f->paused++ > f->resume) atomic_store(&t->r.paused, 0);
}

static int
all_ended(const mix_t *m, int n)
{
    for (int i = 0; i < n; i++)
        if (!m->t[i]->ended) return 0;
    return 1;
}

/* The same mix, whatever was asked of dice before. */
static void
make_mix(mix_t *m, uint64_t from)
{
    seed = from;
    memset(m, 0, sizeof(*m));
    for (int i = 0; i < N; i++) {
        m->t[i] = any_request();
        m->fate[i] = (fate_t) { .arrives = i == 0 ? 0 : dice(4), .cancel = dice(6) ? -1 : dice(20),
                                .pause = dice(5) ? -1 : dice(10), .resume = 1 + dice(12) };
    }
}

static void
run_mix(mix_t *m)
{
    int  n = 0, wait = 0;

    for (int i = 0; i < 20000 && (n < N || !all_ended(m, n)); i++) {
        for (; n < N && wait-- <= 0; n++) {
            if (!arrive(m->t[n])) m->t[n]->ended = 2;
            wait = n + 1 < N ? m->fate[n + 1].arrives : 0;
        }
        step();
        for (int k = 0; k < n; k++) meet_fate(m->t[k], &m->fate[k]);
    }
    run_all();
    m->rows = S.st.rows;
    m->generated = S.st.generated_tokens;
}

static int
same_token(const t_choice_t *a, const t_choice_t *b, size_t i)
{
    const glm_sampled_t  *x = &a->sampled[i], *y = &b->sampled[i];

    return a->id[i] == b->id[i] && a->offset[i] == b->offset[i] && x->id == y->id
           && x->logprob == y->logprob && x->ntop == y->ntop
           && memcmp(x->top, y->top, (size_t) x->ntop * sizeof(x->top[0])) == 0;
}

static int
same_choice(const t_choice_t *a, const t_choice_t *b, int whole)
{
    if (whole && (a->n != b->n || a->finished != b->finished
                  || memcmp(&a->fin, &b->fin, sizeof(a->fin)) != 0))
        return 0;
    for (size_t i = 0; i < a->n && i < b->n; i++)
        if (!same_token(a, b, i)) return 0;
    return 1;
}

/* Of what was cancelled, what both have heard. */
static int
same(const t_req_t *a, const t_req_t *b, int whole)
{
    if (a->wrong || b->wrong || !a->ended || !b->ended) return 0;
    if (whole && (a->ended != b->ended || a->no.status != b->no.status
                  || strcmp(a->no.param, b->no.param) != 0
                  || a->done.prompt_tokens != b->done.prompt_tokens
                  || a->done.completion_tokens != b->done.completion_tokens))
        return 0;
    for (int k = 0; k < T_CHOICES; k++)
        if (!same_choice(&a->c[k], &b->c[k], whole)) return 0;
    return same_choice(&a->prompt, &b->prompt, whole);
}

/* What ended with an error may have been told more or less of other choices before. */
static int
is_whole(const t_req_t *t, const fate_t *f)
{
    return f->cancel < 0 && (t->ended == 1 || !t->accepted);
}

typedef struct { int seqs, rows, pages, budget; } size_mix_t;

static void
play(mix_t *m, int overlap, uint64_t from, const size_mix_t *z)
{
    make_mix(m, from);
    up_with(overlap, z->seqs, z->rows, z->pages, z->budget);
    run_mix(m);
}

static int
clean(void)
{
    int  good = live == 0 && S.kv.nfree == S.kv.total && S.nrun == 0 && S.nqueue == 0
                && S.sent->n == 0 && fake_wrong == 0;

    down_quietly();
    return good;
}

static void
free_mix(mix_t *m)
{
    for (int i = 0; i < N; i++) t_free(m->t[i]);
}

static void
test_mixes(void)
{
    static mix_t  a, b;
    int           bad = 0, left = 0, told = 0;
    uint64_t      rows = 0, more = 0;

    for (int i = 0; i < MIXES; i++) {
        uint64_t    from = (uint64_t) i * 77 + 5;
        size_mix_t  z;

        seed = from;
        z.seqs = 1 + dice(6);
        z.rows = z.seqs + dice(12);
        z.pages = 8 + dice(40);
        z.budget = dice(3) ? 60 : 2000;
        play(&a, 0, from, &z);
        left += !clean();
        play(&b, 1, from, &z);
        left += !clean();
        for (int k = 0; k < N; k++) {
            int  whole = is_whole(a.t[k], &a.fate[k]);

            told += heard(b.t[k]);
            if (same(a.t[k], b.t[k], whole)) continue;
            bad++;
            diag("mix %d, request %d: op %d, %d beams, ended %d %d, %d and %d tokens, %s %s", i, k,
                 (int) a.t[k]->r.op, a.t[k]->r.beams, a.t[k]->ended, b.t[k]->ended,
                 heard(a.t[k]), heard(b.t[k]), a.t[k]->no.text, b.t[k]->no.text);
        }
        rows += a.rows;
        more += b.rows;
        free_mix(&a);
        free_mix(&b);
    }
    ok(bad == 0, "%d mixes of %d requests: each is told the same, %d tokens", MIXES, N, told);
    ok(left == 0, "and nothing is left of them");
    ok(more != rows, "some rows were for nothing: %d, and without %d", (int) more, (int) rows);
}

/* ---- rows ---- */

static uint64_t
rows_of(int overlap, t_req_t *t, int *stops)
{
    uint64_t  rows;

    up_with(overlap, 4, 16, 40, 0);
    arrive(t);
    run_all();
    rows = S.st.rows;
    *stops = (int) S.st.finished_stop;
    ok(t->ended == 1 && S.st.generated_tokens == (uint64_t) t->done.completion_tokens && clean(),
       "runs: %d tokens in %d rows", t->done.completion_tokens, (int) rows);
    t_free(t);
    return rows;
}

static t_req_t *
to_length(void)
{
    t_req_t  *t = request(0, 20, 30);

    t->r.n = 3;
    return t;
}

static t_req_t *
to_stop(void)
{
    t_req_t  *t = to_length();

    t->r.allow = few;
    t->r.nallow = 5;
    t->r.stop_id = few;
    t->r.nstop_id = 1;
    t->r.max_tokens = 200;
    return t;
}

static void
test_rows(void)
{
    int       stops;
    uint64_t  rows = rows_of(0, to_length(), &stops);

    ok(rows == 90 && rows_of(1, to_length(), &stops) == 90,
       "an end at max_tokens is known: no row is wasted");
    rows = rows_of(0, to_stop(), &stops);
    ok(rows_of(1, to_stop(), &stops) == rows + (uint64_t) stops && stops > 0,
       "another end costs one row a choice: %d", stops);
}

/* Steps until a request is through beside a stream of tokens. */
static int
steps_beside(int overlap, t_req_t *t)
{
    t_req_t  *stream = request(0, 9, 60);
    int       n = 0;

    up_with(overlap, 4, 5, 60, 2000);      /* contexts whole, however slow it is here */
    arrive(stream);
    while (stream->c[0].n < 2) step();
    arrive(t);
    while (!t->ended && n < 1000) n += step();
    run_all();
    ok(t->ended == 1 && !t->wrong && stream->ended == 1 && clean(), "ends after %d steps", n);
    t_free(stream);
    t_free(t);
    return n;
}

static t_req_t *
some_score(void)
{
    static glm_segment_t  pair[T_CHOICES];
    t_req_t              *t = request(9, 20, 1);

    for (int k = 0; k < T_CHOICES; k++)
        pair[k] = (glm_segment_t) { .kind = GLM_SEG_IDS, .ids = ids + 2 * k, .n = 2 };
    score(&t->r);
    t->r.choice = pair;
    t->r.n = (int32_t) (t->r.nchoice = T_CHOICES);
    return t;
}

static t_req_t *
some_search(void)
{
    t_req_t  *t = request(9, 20, 20);

    beams(&t->r);
    t->r.beams = 3;
    return t;
}

/* Their rows are in every step, not in every other one. */
static void
test_alone(void)
{
    int  n = steps_beside(0, some_score());

    ok(steps_beside(1, some_score()) <= n + 1, "beside a stream scores keep their pace");
    seed = 9;
    n = steps_beside(0, some_search());
    seed = 9;
    ok(steps_beside(1, some_search()) <= n + 1, "and so do beams");
}

/* ---- cancels ---- */

/* The next request gets the pages while a row of the first is still under way. */
static void
test_pages(void)
{
    t_req_t  *a, *b, *alone = request(7, 40, 30);
    int       bad = 0;
    size_t    had;

    up_with(0, 4, 16, 20, 0);
    arrive(alone);
    run_all();
    bad += alone->ended != 1 || !clean();
    for (int n = 1; n < 12; n++) {
        up_with(1, 4, 16, 5, 0);
        a = request(0, 40, 30);
        b = request(7, 40, 30);
        if (n % 2 == 1) a->r.mode = b->r.mode = GLM_UNIDIRECTIONAL;
        if (n == 1) alone->r.mode = GLM_BIDIRECTIONAL;
        arrive(a);
        arrive(b);
        for (int i = 0; i < n; i++) step();
        had = a->c[0].n;
        cancel(a);
        bad += a->ended != 1 || S.kv.nfree != 5;
        run_all();
        bad += a->c[0].n != had || b->ended != 1 || b->wrong || b->c[0].n != 30;
        if (n % 2 == 0) bad += !same_choice(&alone->c[0], &b->c[0], 1);
        bad += !clean();
        t_free(a);
        t_free(b);
    }
    t_free(alone);
    ok(bad == 0, "cancelled at any step: silent at once, and its pages serve the next (%d bad)", bad);
}

/* ---- faults ---- */

#ifndef GLM_TEST_CUDA
/* Each call fails once: those it was for hear so, the others are told what they always are. */
static void
test_failures(void)
{
    static mix_t      a, b;
    const size_mix_t  z = { 4, 12, 30, 100 };
    int               bad = 0, left = 0, failed = 0;

    for (int n = 1; n <= 120; n++) {
        uint64_t  from = (uint64_t) (n % 4) * 31;

        play(&a, 0, from, &z);
        left += !clean();
        fake_fail_in = n;
        play(&b, 1, from, &z);
        fake_fail_in = 0;
        left += !clean();
        for (int k = 0; k < N; k++) {
            int  hit = b.t[k]->ended == 2 && b.t[k]->no.status == 500;

            failed += hit;
            if (!same(a.t[k], b.t[k], !hit && is_whole(a.t[k], &a.fate[k]))) bad++;
        }
        free_mix(&a);
        free_mix(&b);
    }
    ok(bad == 0 && failed > 100, "each of 120 calls fails once: no wrong token (%d), %d failed", bad,
       failed);
    ok(left == 0, "and nothing is left");
}

/* All of it ends in the middle of a step. */
static void
test_abort(void)
{
    t_req_t        *a = request(0, 9, 30), *b = request(3, 9, 30);
    glm_refusal_t   why;
    size_t          had;

    up_with(1, 4, 16, 40, 0);
    arrive(a);
    for (int i = 0; i < 5; i++) step();
    had = a->c[0].n;
    glm_refuse(&why, 503, "engine_draining", "", "bye");
    glm_sched_abort(&S, &why);
    ok(a->ended == 2 && a->c[0].n == had && S.sent->n > 0, "ended while a step is under way");
    arrive(b);
    run_all();
    ok(b->ended == 1 && right(b) && clean(), "and the next request is as ever");
    t_free(a);
    t_free(b);
}

static void
test_ahead(void)
{
    t_req_t  *a = request(0, 9, 50);

    fake_ahead = 0;
    up_with(1, 4, 16, 40, 0);
    arrive(a);
    run_all();
    ok(fake_ahead == 49 && right(a), "50 tokens: %d steps began before the one before was read",
       (int) fake_ahead);
    clean();
    t_free(a);
}
#endif

int
main(void)
{
    for (int i = 0; i < 400; i++) ids[i] = 20 + i % 400;
    for (int k = 0; k < 6; k++)
        choice[k] = (glm_segment_t) { .kind = GLM_SEG_IDS, .ids = ids + 9 * k, .n = (size_t) k + 1 };
    write_config();
    test_mixes();
    test_rows();
    test_alone();
    test_pages();
#ifndef GLM_TEST_CUDA
    test_failures();
    test_abort();
    test_ahead();
#endif
    remove_config();
    return tap_done();
}
