/*
 * beam: breaks when a search gives other candidates than the plain statement of its
 * rules below, beams share less or more of the KV cache than they have in common, a
 * page is lost, or a field that a search cannot have is taken.  The scheduler by hand,
 * over the fake model.
 */
#include <math.h>

#include "beam.h"
#include "fake_model.h"
#include "scheduler.h"
#include "engine_util.h"
#include "tap.h"
#include "sched_util.h"

#define MAXT  600

/* ---- the search, stated plainly ---- */

typedef struct {
    int32_t  tok[MAXT];           /* the prompt with sop, then what was generated */
    float    logprob[MAXT];       /* raw, of the latter */
    glm_logprob_t  top[MAXT][2];  /* the best beside them */
    int      n;
    float    score;               /* finished: with the length penalty */
} plain_t;

typedef struct {
    int32_t           ids[MAXT], n, c, frozen;   /* the prompt, as in glm_prompt_t */
    int32_t           own, nown;
    const glm_req_t  *r;
    int32_t           end[8];
    int               nend;
    plain_t           live[GLM_MAX_BEAMS], next[GLM_MAX_BEAMS], done[GLM_MAX_BEAMS];
    int               nlive, nnext, ndone;
} search_t;

static int
ends(const search_t *s, int32_t id)
{
    for (int i = 0; i < s->nend; i++)
        if (s->end[i] == id) return 1;
    return 0;
}

static int
find_ends(search_t *s)
{
    const glm_req_t  *r = s->r;

    s->nend = 0;
    for (int i = 0; i < 2 && !r->ignore_eos; i++) s->end[s->nend++] = i == 0 ? 501 : 2;
    for (size_t i = 0; i < r->nstop_id; i++)
        if (!ends(s, r->stop_id[i])) s->end[s->nend++] = r->stop_id[i];
    return s->nend > 0 ? s->nend : 1;
}

static void
finish(search_t *s, const plain_t *b)
{
    plain_t  f = *b;
    int      i;

    f.score = (float) ((double) b->score
                       / pow((5.0 + b->n) / 6, (double) s->r->length_penalty));
    for (i = 0; i < s->ndone && f.score < s->done[i].score;) i++;
    if (i == s->r->beams) return;
    if (s->ndone < s->r->beams) s->ndone++;
    memmove(&s->done[i + 1], &s->done[i], (size_t) (s->ndone - 1 - i) * sizeof(f));
    s->done[i] = f;
}

/* Every id once, with all that the request says about it. */
static int
adjusts(const search_t *s, const plain_t *b, glm_adjust_t *a)
{
    const glm_req_t  *r = s->r;
    glm_adjust_t      of[512] = {0};
    int               n = 0;

    for (size_t i = 0; i < r->nbias; i++) of[r->bias[i].id].bias += r->bias[i].bias;
    for (int i = 0; i < s->nown; i++) of[s->ids[s->own + i]].seen = 1;
    for (int i = s->n; i < b->n; i++) {
        of[b->tok[i]].seen = 1;
        of[b->tok[i]].count++;
    }
    for (int32_t id = 0; id < 512; id++) {
        of[id].id = id;
        a[n++] = of[id];
    }
    return n;
}

static int
bans(const search_t *s, const plain_t *b, int32_t *ban)
{
    int  g = s->r->no_repeat_ngram, n = 0;

    for (int i = 0; i < s->nend && b->n - s->n < s->r->min_tokens; i++) ban[n++] = s->end[i];
    for (int32_t id = 501; b->n - s->n < s->r->min_tokens && id > 0; id = id == 501 ? 2 : 0)
        if (!ends(s, id)) ban[n++] = id;
    if (g < 2 || b->n <= g) return n;
    for (int i = s->n; i < b->n; i++) {
        int  same = i >= g - 1;

        for (int d = 1; d < g && same; d++) same = b->tok[i - d] == b->tok[b->n - d];
        if (same) ban[n++] = b->tok[i];
    }
    return n;
}

static void
rank_beam(const search_t *s, const plain_t *b, glm_sampled_t *out)
{
    static uint64_t  allow[8];
    glm_adjust_t     adjust[512];
    int32_t          ban[MAXT], pos[MAXT];
    glm_sample_t     a = s->r->sample;

    for (int i = 0; i < b->n; i++) pos[i] = i >= s->c && s->frozen >= 0 ? s->frozen : i;
    memset(allow, 0, sizeof(allow));
    for (size_t i = 0; i < s->r->nallow; i++)
        allow[s->r->allow[i] / 64] |= 1ull << (s->r->allow[i] % 64);
    a.rank = GLM_MAX_RANK;
    a.nlogprobs = 2;
    a.allow = s->r->nallow > 0 ? allow : NULL;
    a.adjust = adjust;
    a.nadjust = adjusts(s, b, adjust);
    a.ban = ban;
    a.nban = bans(s, b, ban);
    sample_of(b->tok, pos, b->n, &a, out);
}

typedef struct {
    float          score, raw;
    int            beam, id, at;
    glm_logprob_t  top[2];
} cand_t;

static int
by_score(const void *x, const void *y)
{
    const cand_t  *a = x, *b = y;

    if (a->score != b->score) return a->score < b->score ? 1 : -1;
    return a->beam != b->beam ? a->beam - b->beam : a->at - b->at;
}

static int
candidates(const search_t *s, cand_t *cand)
{
    int  n = 0;

    for (int k = 0; k < s->nlive; k++) {
        glm_sampled_t  o;

        rank_beam(s, &s->live[k], &o);
        for (int i = 0; i < o.nrank; i++)
            cand[n++] = (cand_t) { s->live[k].score + o.rank[i].logprob, o.rank[i].raw, k,
                                   o.rank[i].id, i, { o.top[0], o.top[1] } };
    }
    qsort(cand, (size_t) n, sizeof(*cand), by_score);
    return n;
}

/* One step; whether it was the last. */
static int
plain_step(search_t *s, int most, int last)
{
    static cand_t  cand[GLM_MAX_BEAMS * GLM_MAX_RANK];
    int            n = candidates(s, cand);

    s->nnext = 0;
    for (int i = 0; i < n && i < most * s->r->beams; i++) {
        static plain_t  b;

        b = s->live[cand[i].beam];
        b.logprob[b.n] = cand[i].raw;
        memcpy(b.top[b.n], cand[i].top, sizeof(cand[i].top));
        b.tok[b.n++] = cand[i].id;
        b.score = cand[i].score;
        if (ends(s, cand[i].id)) finish(s, &b);
        else if (s->nnext < s->r->beams) s->next[s->nnext++] = b;
        else break;
    }
    memcpy(s->live, s->next, sizeof(s->live));
    s->nlive = s->nnext;
    if (s->nlive == 0) return 1;
    if (s->ndone == s->r->beams
        && s->done[s->ndone - 1].score
           >= (float) ((double) s->live[0].score
                       / pow((5.0 + s->live[0].n) / 6, (double) s->r->length_penalty)))
        return 1;
    for (int i = 0; last && i < s->nlive; i++) finish(s, &s->live[i]);
    return last;
}

static void
plain_search(search_t *s, const glm_job_t *j)
{
    int  most;

    memset(s, 0, sizeof(*s));
    s->r = j->r;
    s->n = j->prompt.n;
    s->c = j->prompt.ncontext;
    s->frozen = j->prompt.frozen;
    s->own = j->prompt.own;
    s->nown = j->prompt.nown;
    memcpy(s->ids, j->prompt.ids, (size_t) s->n * sizeof(int32_t));
    memcpy(s->live[0].tok, s->ids, (size_t) s->n * sizeof(int32_t));
    s->live[0].n = s->n;
    s->nlive = 1;
    most = find_ends(s) + 1;
    for (int i = 1; !plain_step(s, most, i == j->prompt.max_tokens); i++) { }
}

static int
equal(const search_t *s, const t_req_t *t)
{
    int32_t  told = 0;

    if (t->wrong || t->ended != 1) return 0;
    for (int k = 0; k < t->r.n; k++) {
        const t_choice_t  *c = &t->c[k];
        const plain_t     *p = &s->done[k];
        int                n = p->n - s->n, ended = ends(s, p->tok[p->n - 1]);

        if ((int) c->n != n || memcmp(c->id, p->tok + s->n, (size_t) n * sizeof(int32_t)) != 0)
            return 0;
        if (memcmp(&c->fin.score, &p->score, sizeof(float)) != 0) return 0;
        if (c->fin.reason != (ended ? GLM_FINISH_STOP : GLM_FINISH_LENGTH)) return 0;
        for (int i = 0; i < n && t->r.sample.nlogprobs >= 0; i++) {
            const glm_sampled_t  *o = &c->sampled[i];

            if (memcmp(&o->logprob, &p->logprob[s->n + i], sizeof(float)) != 0
                || o->ntop != t->r.sample.nlogprobs
                || memcmp(o->top, p->top[s->n + i], (size_t) o->ntop * sizeof(o->top[0])) != 0)
                return 0;
        }
        told += n;
    }
    return t->done.completion_tokens == told;
}

/* ---- requests ---- */

static uint32_t
rnd(uint32_t n)
{
    static uint64_t  s = 1;

    return (uint32_t) (fake_mix(s++) >> 33) % n;
}

static t_req_t *
search_of(int32_t first, int32_t n, int32_t max_tokens, int32_t beams, int32_t nbest)
{
    t_req_t  *t = request(first, n, max_tokens);

    t->r.sample.temperature = 0;
    t->r.has_seed = 0;
    t->r.ignore_eos = 0;
    t->r.beams = beams;
    t->r.n = nbest;
    t->r.length_penalty = 1;
    return t;
}

static const int32_t           stop_ids[3] = { 30, 31, 501 };
static int32_t                 some[40];
static const glm_logit_bias_t  bias[3] = { { 501, 2.5f }, { 2, 1.5f }, { 30, 2 } };
static const glm_logit_bias_t  strong[3] = { { 501, 7 }, { 2, 6 }, { 30, 5 } };

/* Fields of all kinds, so that searches end early, late and at the limit. */
static t_req_t *
any_search(void)
{
    static const float  penalties[6] = { 0, 1, -1, 0.6f, 2, 100 };
    static int32_t      masked[MAXT];
    int32_t             beams = 2 + (int32_t) rnd(15);
    t_req_t            *t = search_of((int32_t) rnd(300), 1 + (int32_t) rnd(60),
                                      1 + (int32_t) rnd(40), beams, 1);

    t->r.n = 1 + (int32_t) rnd(beams < 8 ? (uint32_t) beams : 8);
    t->r.length_penalty = penalties[rnd(6)];
    t->r.no_repeat_ngram = (int32_t) rnd(5);
    t->r.sample.nlogprobs = (int32_t) rnd(4) - 1;
    t->r.bias = rnd(4) ? bias : strong;
    t->r.nbias = rnd(3) ? 3 : 0;
    if (rnd(3) == 0) t->r.mode = GLM_UNIDIRECTIONAL;
    else if (rnd(3) == 0) {
        memcpy(masked, t->seg.ids, t->seg.n * sizeof(int32_t));
        masked[rnd((uint32_t) t->seg.n)] = MASK;
        t->seg.ids = masked;
    }
    if (rnd(4) == 0) t->r.min_tokens = (int32_t) rnd((uint32_t) t->r.max_tokens + 1);
    if (rnd(4) == 0 && beams * 5 <= GLM_MAX_RANK) {
        t->r.stop_id = stop_ids;
        t->r.nstop_id = 3;
        t->r.include_stop = (int) rnd(2);
    }
    if (rnd(4) == 0) t->r.ignore_eos = 1;
    if (rnd(4) == 0) {
        t->r.sample.presence = 1;
        t->r.sample.frequency = 0.5f;
        t->r.sample.repetition = 1.25f;
    }
    if (rnd(6) == 0) {
        for (int i = 0; i < 40; i++) some[i] = i == 0 ? 501 : 21 + i;
        t->r.allow = some;
        t->r.nallow = 20 + rnd(21);
    }
    return t;
}

/* Makes the search's job and arrives; *s: what must come out. */
static glm_job_t *
arrive_search(t_req_t *t, search_t *s)
{
    glm_job_t  *j;

    t->r.link.serial = serial++;
    if (glm_job_make(&j, &t->r, &lim, &t->no) != 0) {
        diag("%s: %s", t->no.param, t->no.text);
        return NULL;
    }
    if (s != NULL) plain_search(s, j);
    live++;
    glm_sched_arrive(&S, j, now);
    return j;
}

/* ---- pages ---- */

static int32_t
token_at(const glm_job_t *j, int32_t lane, int32_t i)
{
    return i < j->prompt.n ? j->prompt.ids[i]
                           : j->beams->beam[lane].said[i - j->prompt.n].id;
}

/* Pages that live beams hold at least: one for each past that fills it, and one each
 * for what they write. */
static int32_t
least_pages(const glm_job_t *j)
{
    const glm_beams_t  *b = j->beams;
    int32_t             slot = j->nshared + b->step, n = b->nlive;

    for (int32_t p = 0; p < slot / GLM_KV_PAGE; p++) {
        for (int32_t k = 0; k < b->nlive; k++) {
            int  fresh = 1;

            for (int32_t l = 0; l < k && fresh; l++) {
                int  same = 1;

                for (int32_t i = 0; i < (p + 1) * GLM_KV_PAGE && same; i++)
                    same = token_at(j, b->live[k], i) == token_at(j, b->live[l], i);
                fresh = !same;
            }
            n += fresh;
        }
    }
    return n;
}

/* Runs a search alone; whether it held what it must at every step. */
static int
run_search(t_req_t *t, const glm_job_t *j, int *shared)
{
    int  wrong = 0;

    while (step() && !t->ended) {
        int32_t  held = j->npages - j->beams->spare.n, each = 0;

        if (j->beams->nlive == 0) continue;
        wrong += held != least_pages(j);
        for (int32_t k = 0; k < j->beams->nlive; k++)
            each += j->lane[j->beams->live[k]].table.n;
        *shared += each > held;
    }
    return wrong == 0;
}

/* ---- tests ---- */

static void
test_plain(void)
{
    static search_t  s;
    int              bad = 0, pages = 0, early = 0, stopped = 0, shared = 0, refused = 0;

    for (int round = 0; round < 400; round++) {
        t_req_t        *t = any_search();
        glm_job_t      *j;
        glm_refusal_t   no;

        /* no page and no row more than the search must have */
        up(t->r.beams, 32, 1000, 10, 0);
        if (glm_job_make(&j, &t->r, &lim, &no) != 0) bail_out(no.text);
        down_quietly();
        up(t->r.beams, 32, j->npages, 10, 0);
        glm_job_free(j);
        if ((j = arrive_search(t, &s)) == NULL) bail_out("no search");
        pages += !run_search(t, j, &shared);
        run_all();
        if (s.ndone < t->r.n) refused += t->ended == 2 && strcmp(t->no.param, "n") == 0;
        else bad += !equal(&s, t);
        early += t->ended == 1 && (int32_t) t->c[0].n < t->r.max_tokens;
        stopped += t->ended == 1 && t->c[0].fin.stop_id >= 0;
        pages += S.kv.nfree != S.kv.total || live != 0 || fake_wrong != 0;
        down_quietly();
        t_free(t);
    }
    ok(bad == 0, "400 searches: the candidates of the plain statement, %d wrong", bad);
    ok(pages == 0, "at every step pages are shared as far as pasts are equal, none is lost");
    ok(early > 50 && stopped > 5 && shared > 500, "%d ended early, %d at a stop id, %d steps "
       "shared pages", early, stopped, shared);
    diag("%d had too few candidates", refused);
}

/* Short prompts and few ids: n-grams repeat at once, beams run out of ids. */
static void
test_tiny(void)
{
    static search_t       s;
    static const int32_t  ids[6] = { 40, 41, 40, 42, 501, 43 };
    int                   bad = 0, few = 0;

    up(16, 32, 100, 10, 0);
    for (int round = 0; round < 400; round++) {
        int32_t   n = 1 + (int32_t) rnd(3), beams = 2 + (int32_t) rnd(4);
        t_req_t  *t = search_of(0, n, 1 + (int32_t) rnd(12), beams, 1 + (int32_t) rnd(2));

        t->seg.ids = ids;
        t->r.mode = GLM_UNIDIRECTIONAL;
        t->r.add_special = 0;
        t->r.allow = ids;
        t->r.nallow = 2 + rnd(5);
        t->r.no_repeat_ngram = (int32_t) rnd(5);
        if (arrive_search(t, &s) == NULL) bail_out("no search");
        run_all();
        if (s.ndone < t->r.n) {
            few++;
            bad += t->ended != 2 || strcmp(t->no.param, "n") != 0 || t->no.limit != s.ndone;
        } else bad += !equal(&s, t);
        t_free(t);
    }
    ok(bad == 0 && few > 20 && few < 200, "400 searches among few ids: %d wrong, %d with too few "
       "candidates", bad, few);
    down("tiny");
}

/* A row that gives n ids from id on, all with the log-probability -1. */
static glm_sampled_t
flat(int32_t id, int32_t n)
{
    glm_sampled_t  o = { .id = id, .nrank = n };

    for (int32_t i = 0; i < n; i++) o.rank[i] = (glm_ranked_t) { id + i, -1, 0 };
    return o;
}

/* Of equal candidates that of the better beam comes first, then the first of a row. */
static void
test_ties(void)
{
    t_req_t        *t = search_of(0, 20, 20, 2, 2);
    glm_sampled_t   first = flat(10, 6), later = flat(20, 6);
    glm_job_t      *j;
    glm_beams_t    *b;
    int             good;

    up(8, 16, 60, 5, 0);
    j = arrive_search(t, NULL);
    b = j->beams;
    glm_beam_start(j);
    good = glm_beam_take(&S.kv, &j->lane[0], &first) == GLM_BEAM_GOES_ON && b->nlive == 2
           && b->next[0].token.id == 10 && b->next[1].token.id == 11;
    good = good && glm_beam_take(&S.kv, &j->lane[b->live[1]], &later) == GLM_BEAM_WAITS;
    good = good && glm_beam_take(&S.kv, &j->lane[b->live[0]], &later) == GLM_BEAM_GOES_ON;
    ok(good && b->next[0].token.id == 20 && b->next[1].token.id == 21
       && b->beam[b->live[0]].said[0].id == 10 && b->beam[b->live[1]].said[0].id == 10,
       "equal candidates: the better beam's, whichever row came first");
    cancel(t);
    t_free(t);
    down("ties");
}

/* The same bits in company, with rows and pages for a part of it at a time. */
static void
test_mix(void)
{
    enum { N = 60 };
    static search_t  s[N];
    t_req_t         *t[N], *o[N];
    int              bad = 0, others = 0;

    up(16, 24, 120, 2 * N, 50);
    for (int i = 0; i < N; i++) {
        t[i] = any_search();
        o[i] = request(i, 1 + i * 7 % 90, 1 + i * 5 % 40);
        o[i]->r.n = 1 + i % 3;
        if (arrive_search(t[i], &s[i]) == NULL) bail_out("no search");
        arrive(o[i]);
        for (uint32_t k = rnd(4); k > 0; k--) step();
        if (i % 5 == 0) atomic_store(&t[i / 2]->r.paused, 1);
        if (i % 5 == 2) atomic_store(&t[i / 2]->r.paused, 0);
        if (i % 7 == 0) cancel(t[rnd((uint32_t) i + 1)]);
    }
    for (int i = 0; i < N; i++) {
        atomic_store(&t[i]->r.paused, 0);
        step();
    }
    run_all();
    for (int i = 0; i < N; i++) {
        others += !right(o[i]);
        if (t[i]->done.cancelled) bad += t[i]->c[0].fin.reason != GLM_FINISH_CANCEL;
        else if (s[i].ndone < t[i]->r.n) bad += t[i]->ended != 2;
        else bad += !equal(&s[i], t[i]);
        t_free(t[i]);
        t_free(o[i]);
    }
    ok(bad == 0 && others == 0, "60 searches and 60 others at once, with pauses and cancels: each "
       "as if alone, %d and %d wrong", bad, others);
    ok(fake_max_rows_seen <= 24, "rows within the limit");
    down("mix");
}

/* Beams of one search in different steps. */
static void
test_turns(void)
{
    static search_t  s;
    t_req_t         *a = request(0, 5, 60), *b = search_of(3, 20, 30, 4, 4);
    int              most = 0;

    up(4, 8, 100, 5, 0);
    a->r.n = 4;
    arrive(a);
    step();
    atomic_store(&a->r.paused, 1);
    arrive_search(b, &s);
    for (int i = 0; i < 5; i++) step();
    atomic_store(&a->r.paused, 0);
    fake_max_rows_seen = 0;
    run_all();
    most = fake_max_rows_seen;
    ok(equal(&s, b) && right(a) && most == 4, "eight lanes take turns on %d rows", most);
    t_free(a);
    t_free(b);
    down("turns");
}

static void
test_cancel(void)
{
    int  bad = 0, steps = 0;

    for (int k = 0;; k++) {
        t_req_t  *t = search_of(k, 18, 20, 4, 3), *o = request(5, 9, 12);
        int       over;

        up(8, 16, 60, 5, 20);
        arrive(t);
        arrive(o);
        for (int i = 0; i < k; i++) step();
        over = t->ended;
        cancel(t);
        bad += t->ended != 1 || t->done.cancelled == over;
        for (int c = 0; c < 3 && !over; c++)
            bad += !t->c[c].finished || t->c[c].fin.reason != GLM_FINISH_CANCEL || t->c[c].n != 0;
        run_all();
        bad += !right(o) || S.kv.nfree != S.kv.total || live != 0
               || S.st.finished_cancel != (over ? 0u : 3u);
        down_quietly();
        t_free(t);
        t_free(o);
        if (over) break;
        steps++;
    }
    ok(bad == 0 && steps > 20, "cancelled after each of %d steps: told so, every page back", steps);
}

static void
test_pause(void)
{
    static search_t  s;
    t_req_t         *t = search_of(0, 18, 20, 4, 4);
    uint64_t         rows;

    up(4, 8, 60, 5, 0);
    arrive_search(t, &s);
    for (int i = 0; i < 9; i++) step();
    atomic_store(&t->r.paused, 1);
    if (FAKE_OVERLAP > 0) step();          /* the one under way is read */
    rows = S.st.rows;
    ok(!step() && S.st.rows == rows, "paused: nothing is computed");
    atomic_store(&t->r.paused, 0);
    run_all();
    ok(equal(&s, t), "paused and resumed: the same candidates");
    ok(S.st.generated_tokens == (uint64_t) t->done.completion_tokens
       && S.st.finished_stop + S.st.finished_length == 4, "the n that are told are counted");
    t_free(t);
    down("pause");
}

/* All rows or none, and in the order of the queue. */
static void
test_admission(void)
{
    static search_t  s;
    t_req_t         *a = request(0, 5, 30), *b = search_of(3, 20, 10, 4, 1), *c = request(9, 5, 3);

    up(4, 8, 100, 5, 0);
    arrive(a);
    arrive_search(b, &s);
    arrive(c);
    step();
    ok(S.nrun == 1 && S.nqueue == 2, "three rows are too few for four beams, and nobody passes");
    run_all();
    ok(b->order < c->order && equal(&s, b) && right(a) && right(c), "then all of them");
    t_free(a);
    t_free(b);
    t_free(c);
    down("admission");
}

static void
test_faults(void)
{
    t_req_t        *t = search_of(0, 20, 20, 4, 2), *nan = search_of(0, 3, 20, 4, 2);
    const int32_t   ids[3] = { 50, FAKE_NAN_ID, 51 };

    up(8, 16, 60, 5, 0);
    nan->seg.ids = ids;
    arrive(nan);
    run_all();
    ok(nan->ended == 2 && nan->no.status == 500, "NaN logits end a search");
    arrive(t);
    for (int i = 0; i < 10; i++) step();
    fake_fail = 1;
    step();
    fake_fail = 0;
    ok(t->ended == 2 && t->no.status == 500 && S.st.finished_error == 4,
       "a step that fails ends a search, once");
    t_free(t);
    t_free(nan);
    down("faults");
}

static void
test_few(void)
{
    static search_t       s;
    static const int32_t  one[1] = { 40 }, two[2] = { 501, 2 }, three[3] = { 501, 40, 41 };
    t_req_t              *t;

    up(8, 16, 60, 5, 0);
    t = search_of(0, 5, 6, 4, 2);
    t->r.allow = one;
    t->r.nallow = 1;
    arrive(t);
    run_all();
    ok(t->ended == 2 && t->no.status == 400 && strcmp(t->no.param, "n") == 0
       && t->no.limit == 1 && t->no.value == 2, "one id to pick: no second candidate");
    t_free(t);

    t = search_of(0, 5, 6, 4, 1);
    t->r.allow = one;
    t->r.nallow = 1;
    arrive_search(t, &s);
    run_all();
    ok(equal(&s, t) && t->c[0].n == 6 && t->c[0].id[5] == 40, "but a first one");
    t_free(t);

    t = search_of(0, 5, 6, 4, 2);
    t->r.allow = two;
    t->r.nallow = 2;
    arrive_search(t, &s);
    run_all();
    ok(equal(&s, t) && t->c[0].n == 1 && t->c[1].n == 1, "only ends: nothing is left to live");
    t_free(t);

    t = search_of(0, 5, 40, 4, 4);
    t->r.allow = three;
    t->r.nallow = 3;
    t->r.no_repeat_ngram = 2;
    arrive_search(t, &s);
    run_all();
    ok(equal(&s, t), "n-grams run out: beams without ids to pick die");
    t_free(t);
    down("few");
}

static int
refused(t_req_t *t, const char *param, int64_t limit, int64_t value)
{
    int  good = !arrive(t) && t->no.status == 400 && strcmp(t->no.param, param) == 0
                && t->no.limit == limit && t->no.value == value && t->no.text[0] != '\0';

    if (!good) diag("%s %lld %lld: %s", t->no.param, (long long) t->no.limit,
                    (long long) t->no.value, t->no.text);
    t_free(t);
    return good;
}

#define REFUSED(param, limit, value, ...)                                                   \
    ({                                                                                      \
        t_req_t  *t = search_of(0, 20, 20, 4, 2);                                           \
        __VA_ARGS__;                                                                        \
        ok(refused(t, param, limit, value), "%s: %s", param, #__VA_ARGS__);                 \
    })

static void
test_fields(void)
{
    static int32_t     many[40];
    static glm_stop_t  stop = { "x", 1 };
    t_req_t           *none;

    for (int i = 0; i < 40; i++) many[i] = 50 + i;
    up(8, 16, 60, 5, 0);
    REFUSED("num_beams", 16, 17, t->r.beams = 17);
    REFUSED("num_beams", 0, 0, t->r.beams = -1);
    REFUSED("num_beams", 3, 4, t->r.stop_id = many, t->r.nstop_id = 15);
    REFUSED("num_beams", 1, 4, t->r.stop_id = many, t->r.nstop_id = 40);
    REFUSED("num_beams", 8, 9, t->r.beams = 9);
    REFUSED("num_beams", 960, 1296, t->r.beams = 8, t->r.max_tokens = 140);
    REFUSED("n", 0, 0, t->r.n = 5);
    REFUSED("temperature", 0, 0, t->r.sample.temperature = 0.5f);
    REFUSED("length_penalty", 0, 0, t->r.length_penalty = NAN);
    REFUSED("length_penalty", 0, 0, t->r.length_penalty = -101);
    REFUSED("no_repeat_ngram_size", 0, 0, t->r.no_repeat_ngram = -1);
    REFUSED("best_of", 0, 0, t->r.best_of = 3);
    REFUSED("seed", 0, 0, t->r.has_seed = 1);
    REFUSED("stop", 0, 0, t->r.stop = &stop, t->r.nstop = 1);
    REFUSED("repetition_detection", 0, 0,
            t->r.repeat = (glm_repeat_t) { .max_length = 3, .min_count = 2 });

    none = search_of(0, 20, 0, 4, 3);
    arrive(none);
    run_all();
    ok(none->ended == 1 && none->c[2].fin.reason == GLM_FINISH_LENGTH
       && none->done.completion_tokens == 0,
       "max_tokens 0: three empty choices");
    t_free(none);
    down("fields");
}

/* A row's ranks, as uneven as a model's. */
static glm_sampled_t
any_row(int32_t nrank)
{
    glm_sampled_t  o = { .id = 5, .nrank = nrank };
    float          logprob = -0.5f;

    for (int32_t k = 0; k < nrank; k++) {
        logprob -= (float) rnd(1000) / 1500;
        o.rank[k] = (glm_ranked_t) { (int32_t) rnd(3000), logprob, 0 };
    }
    return o;
}

/* What a step costs beside the model's work: candidates, forks, n-grams. */
static void
bench(int32_t beams, int32_t ngram, int32_t max_tokens)
{
    t_req_t           *t = search_of(0, 40, max_tokens, beams, 1);
    glm_config_t       cfg;
    glm_beam_state_t   state = GLM_BEAM_WAITS;
    const glm_beams_t *b;
    glm_job_t         *j;
    uint64_t           ns = 0, copies = 0;

    up(16, 32, 10000, 5, 0);
    cfg = model->cfg;
    cfg.max_seq = 2048;
    cfg.vocab = 3000;
    lim.vocab.cfg = &cfg;
    t->r.ignore_eos = 1;
    t->r.no_repeat_ngram = ngram;
    if ((j = arrive_search(t, NULL)) == NULL) bail_out("no search");
    b = j->beams;
    for (glm_beam_start(j); state != GLM_BEAM_OVER; copies += (uint64_t) b->ncopy) {
        int32_t        lane[GLM_MAX_BEAMS], n = b->nlive;
        glm_sampled_t  o[GLM_MAX_BEAMS];
        uint64_t       from;

        for (int32_t i = 0; i < n; i++) o[i] = any_row(b->rank);
        memcpy(lane, b->live, sizeof(lane));
        from = t_now();
        for (int32_t i = 0; i < n; i++) state = glm_beam_take(&S.kv, &j->lane[lane[i]], &o[i]);
        ns += t_now() - from;
    }
    diag("%2d beams, no_repeat_ngram %d, %4d tokens: %6.1f us and %.1f page copies a step", beams,
         ngram, max_tokens, (double) ns / 1e3 / max_tokens, (double) copies / max_tokens);
    cancel(t);
    t_free(t);
    down_quietly();
}

int
main(void)
{
    write_config();
    if (getenv("GLM_BENCH") != NULL) {
        bench(4, 3, 128);
        bench(4, 3, 2000);
        bench(16, 0, 2000);
        bench(16, 3, 2000);
    }
    test_plain();
    test_tiny();
    test_ties();
    test_mix();
    test_turns();
    test_cancel();
    test_pause();
    test_admission();
    test_faults();
    test_few();
    test_fields();
    remove_config();
    return tap_done();
}
