/*
 * sched_random: breaks when a mix of completions, beams, blanks and scores that come,
 * are cancelled, paused, held and late in any order hangs, ends a request twice or never,
 * or loses a page.  The scheduler by hand, over the fake model with the demo's tokenizer;
 * GLM_LONG=1 makes it fifty times as long, GLM_SEED=N repeats one round.
 */
#include "fake_model.h"
#include "scheduler.h"
#define T_CHOICES  64
#include "engine_util.h"
#include "tap.h"
#include "sched_util.h"

#define MOST  12                 /* requests at a time */

static unsigned          seed;
static glm_tokenizer_t  *tok;

/* 0 .. n - 1 */
static int
upto(int n)
{
    return (int) ((unsigned) rand_r(&seed) % (unsigned) n);
}

static const char *const         texts[6] = {
    "Where is the file?", "a", "The package manager of Debian is called", "M\xC3\xB6" "chten Sie",
    "def empty(self):\n    return", "English: Save the file. German:"
};
static const char *const         masked[5] = {
    "[MASK]", "The [MASK] is [MASK].", "[MASK][MASK][MASK]", "a [sMASK] b [sMASK]", "[gMASK] x [gMASK]"
};
static const glm_stop_t          stops[3] = { { "e", 1 }, { " ", 1 }, { "the", 3 } };
static const glm_logit_bias_t    bias[2] = { { 300, 2 }, { 301, -3 } };
static int32_t                   few[3] = { 900, 901, 5 };

/* ---- a request ---- */

static void
beams(glm_req_t *r)
{
    r->beams = 2 + upto(4);
    r->n = 1 + upto(r->beams);
    r->best_of = 0;
    r->nstop = 0;
    r->has_seed = 0;
    r->sample.temperature = 0;
    r->repeat.max_length = 0;
    r->length_penalty = (float) (upto(5) - 2);
    r->no_repeat_ngram = upto(4);
}

static void
fields(glm_req_t *r)
{
    r->max_tokens = upto(8) == 0 ? upto(2) - 1 : 1 + upto(40);
    r->n = 1 + upto(4);
    if (upto(4) == 0) r->best_of = r->n + upto(3);
    r->sample = (glm_sample_t) { .temperature = (float) upto(3), .seed = (uint64_t) upto(99),
                                 .nlogprobs = upto(5) - 1 };
    r->has_seed = 1;
    if (upto(3) == 0) r->stop = stops, r->nstop = (size_t) (1 + upto(3));
    r->include_stop = upto(2);
    if (upto(4) == 0) r->bias = bias, r->nbias = 2;
    if (upto(4) == 0) r->sample.repetition = 1.5f;
    if (upto(4) == 0) r->min_tokens = upto(5);
    if (upto(4) == 0) r->repeat = (glm_repeat_t) { 1, 3, 2 };
    if (upto(8) == 0) r->allow = few, r->nallow = 3;
    r->ignore_eos = upto(2);
    r->want_ids = upto(2);
    r->want_text = upto(2);
    r->truncate = upto(6) == 0 ? upto(9) - 1 : 0;
}

static void
scoring(glm_req_t *r)
{
    static const int32_t   ids[40] = { 900, 901, 902, 903, 904, 905, 906, 907, 908, 909, 910 };
    static glm_segment_t   seg[64];

    for (int i = 0; i < 64; i++)
        seg[i] = (glm_segment_t) { .kind = GLM_SEG_IDS, .ids = ids + i % 9,
                                   .n = (size_t) (i % 3 == 0 ? 1 : 1 + i % 29) };
    r->op = GLM_OP_SCORE;
    r->choice = seg + upto(9);
    r->n = 1 + upto(50);
    r->nchoice = (size_t) r->n;
    r->best_of = 0;
    r->gmask = upto(2);
    r->count_positions = upto(2);
}

static int
masks_of(const char *s)
{
    int  n = 0;

    for (; (s = strstr(s, "MASK]")) != NULL; s++) n++;
    return n;
}

static t_req_t *
random_request(void)
{
    int       kind = upto(5);
    t_req_t  *t = t_new_text(NULL, kind == 1 ? masked[upto(5)] : texts[upto(6)]);

    fields(&t->r);
    if (kind == 1) {
        t->r.op = GLM_OP_INFILL;
        t->r.best_of = t->r.truncate = 0;
        t->blanks = masks_of(t->seg.text);
    }
    if (kind == 2) scoring(&t->r);
    if (kind != 2 && upto(4) == 0) beams(&t->r);
    if (kind == 3 && t->r.beams == 0) {
        t->r.mode = GLM_UNIDIRECTIONAL;
        t->r.want_prompt_logprobs = upto(2);
        t->r.echo = t->r.want_text;
    }
    if (kind == 4) t->r.suffix = " system", t->r.nsuffix = 7;
    t->r.hold = upto(5) == 0;
    t->r.priority = upto(3);
    if (upto(4) == 0) t->r.deadline = now + (uint64_t) upto(60);
    return t;
}

/* ---- a round ---- */

/* Pages are held by somebody, free, or lost. */
static int
counted(void)
{
    int32_t  used = 0;

    for (int32_t i = 0; i < S.kv.total; i++) used += S.kv.refs[i] > 0;
    return used + S.kv.nfree == S.kv.total && live >= 0 && S.nrun >= 0 && S.nqueue >= 0
           && (live > 0 || S.nrun + S.nqueue == 0);
}

static void
disturb(t_req_t *t)
{
    switch (upto(8)) {
    case 0:  cancel(t); break;
    case 1:
    case 2:  atomic_store(&t->r.paused, 1); break;
    case 3:
    case 4:  atomic_store(&t->r.paused, 0); break;
    case 5:  now += (uint64_t) upto(20); break;
    default: atomic_store(&t->r.go, 1);
    }
}

/* Gone, refused or at its end; freed. */
static int
over(t_req_t **t, int *bad)
{
    if ((*t)->ended == 0) return 0;
    *bad += (*t)->wrong != 0;
    if ((*t)->wrong) diag("%d wrong, op %d: %s", (*t)->wrong, (int) (*t)->r.op, (*t)->no.text);
    t_free(*t);
    *t = NULL;
    return 1;
}

static int
play(int *ended)
{
    t_req_t  *t[MOST] = { NULL };
    int       bad = 0, steps = 100 + upto(200), seqs = 1 + upto(6);

    fake_together = upto(3) * 30;
    /* at most what FAKE_OVERLAP is: engine.c takes care of that */
    up(seqs, seqs + upto(59), 4 + upto(40), upto(8), upto(3) * 20);
    lim.vocab.tok = tok;
    lim.max_rows = S.max_rows;
    for (int i = 0; i < steps && !bad; i++) {
        t_req_t  **one = &t[upto(MOST)];

        if (*one == NULL) {
            *one = random_request();
            if (!arrive(*one)) {
                t_free(*one);
                *one = NULL;
            }
        } else if (upto(3) == 0) {
            disturb(*one);
        }
        step();
        bad += !counted();
        for (int k = 0; k < MOST; k++) if (t[k] != NULL) *ended += over(&t[k], &bad);
    }
    for (int k = 0; k < MOST; k++) {
        if (t[k] == NULL) continue;
        atomic_store(&t[k]->r.paused, 0);
        atomic_store(&t[k]->r.go, 1);
    }
    run_all();
    for (int k = 0; k < MOST; k++) {
        if (t[k] == NULL || over(&t[k], &bad)) continue;
        diag("request of op %d, n %d, never ended", (int) t[k]->r.op, t[k]->r.n);
        bad++;
    }
    bad += live != 0 || S.kv.nfree != S.kv.total || S.nrun != 0 || S.nqueue != 0 || fake_wrong != 0;
    down_quietly();
    live = fake_wrong = 0;
    return bad;
}

int
main(void)
{
    const char  *one = getenv("GLM_SEED");
    int          n = getenv("GLM_LONG") != NULL ? 3000 : 60, bad = 0, ended = 0;
    glm_err_t    err = {0};

    if (access("models/demo/config.json", R_OK) != 0) skip_all("no demo model");
    snprintf(dir, sizeof(dir), "models/demo");
    if (glm_tokenizer_load(&tok, dir, &err) != 0) bail_out(err.text);
    for (int i = one != NULL ? atoi(one) : 1, k = 0; k < (one != NULL ? 1 : n) && bad < 3; i++, k++) {
        int  was = bad;

        seed = (unsigned) i * 2654435761u;
        bad += play(&ended) != 0;
        if (bad > was) diag("GLM_SEED=%d", i);
    }
    ok(bad == 0 && ended > 10, "%d rounds: %d requests end once, every page is back", one ? 1 : n, ended);
    glm_tokenizer_free(tok);
    return tap_done();
}
