/*
 * score: breaks when a choice's log-probabilities are not the original's, or depend on
 * its place, its company or how many rows and pages there are; when bad choices are not
 * refused by name; when a page is lost.  Goldens of the random models and of the demo.
 */
#define T_CHOICES  1000
#include "engine_util.h"
#include "golden.h"
#include "tap.h"
#include "real_util.h"
#include "score.h"

static glm_engine_t *
start(const char *dir, int tp, int max_rows, int64_t kv_tokens)
{
    return real_start(dir, tp, (glm_engine_opts_t) { .max_num_seqs = 4, .kv_tokens = kv_tokens,
                                                     .model.max_rows = max_rows });
}

/* The engine takes its choices as n; the sink of these tests looks at it. */
static t_req_t *
scoring(glm_engine_t *e, const glm_segment_t *choice, size_t n)
{
    t_req_t  *t = t_new(e);

    t->r.op = GLM_OP_SCORE;
    t->r.nseg = 0;
    t->r.choice = choice;
    t->r.nchoice = n;
    t->r.n = n >= 1 && n <= T_CHOICES ? (int32_t) n : 1;
    t->r.sample.nlogprobs = 0;
    return t;
}

static void
set_ids(t_req_t *t, const int32_t *ids, int32_t n)
{
    t->seg = (glm_segment_t) { .kind = GLM_SEG_IDS, .ids = ids, .n = (size_t) n };
    t->r.nseg = 1;
}

static void
set_text(t_req_t *t, const char *text)
{
    t->seg = (glm_segment_t) { .kind = GLM_SEG_TEXT, .text = text, .n = strlen(text) };
    t->r.nseg = 1;
}

static glm_segment_t
plain(const char *text)
{
    return (glm_segment_t) { .kind = GLM_SEG_PLAIN, .text = text, .n = strlen(text) };
}

/* Ran, and every choice was told in full: ids, their sum, an end. */
static int
run(t_req_t *t)
{
    int32_t  total = 0;
    int      good = ran(t);

    for (int k = 0; k < t->r.n && good; k++) {
        const t_choice_t  *c = &t->c[k];
        double             sum = 0;

        for (size_t i = 0; i < c->n; i++) sum += (double) c->sampled[i].logprob;
        total += (int32_t) c->n;
        good = c->finished && c->n > 0 && c->fin.reason == GLM_FINISH_LENGTH
               && c->fin.nkept == (int32_t) c->n && c->fin.score == (float) sum
               && c->fin.stop_id == -1 && c->fin.stop_index == -1;
    }
    return good && t->done.completion_tokens == total;
}

/* ---- the original's numbers ---- */

static double
golden_sample(glm_engine_t *e, const json_t *s, int gmask)
{
    const json_t   *choices = json_object_get(s, "choices"), *want = json_object_get(s, "log_probs");
    int32_t         ids[MAXN], n = golden_ids(json_object_get(s, "text"), ids, MAXN);
    int32_t         list[8][16];
    glm_segment_t   seg[8];
    size_t          nchoice = json_array_size(choices);
    double          worst = 0;
    t_req_t        *t;

    for (size_t k = 0; k < nchoice; k++)
        seg[k] = (glm_segment_t) { .kind = GLM_SEG_IDS, .ids = list[k],
                                   .n = (size_t) golden_ids(json_array_get(choices, k), list[k], 16) };
    t = scoring(e, seg, nchoice);
    set_ids(t, ids, n);
    t->r.gmask = gmask;
    if (!run(t)) worst = 1e9;
    for (size_t k = 0; k < nchoice; k++)
        worst = fmax(worst, fabs((double) t->c[k].fin.score
                                 - json_number_value(json_array_get(want, k))));
    t_free(t);
    return worst;
}

static double
golden_choices(glm_engine_t *e, const json_t *c)
{
    const json_t  *samples = json_object_get(c, "samples");
    double         worst = 0;

    /* position ids of the original's multitask training: not offered */
    if (json_is_true(json_object_get(c, "unified_multitask_encoding"))) return 0;
    for (size_t i = 0; i < json_array_size(samples); i++)
        worst = fmax(worst, golden_sample(e, json_array_get(samples, i),
                                          json_is_true(json_object_get(c, "use_task_mask"))));
    return worst;
}

/* One window: what is before it is the prompt, the rest the one choice. */
static double
golden_window(glm_engine_t *e, const json_t *c, const int32_t *text, int32_t n, int w)
{
    int32_t         max = (int32_t) golden_num(c, "max_seq_length") - 1;
    int32_t         gen = (int32_t) golden_num(c, "generation_length"), at = w * gen;
    int             uni = json_is_true(json_object_get(c, "unidirectional"));
    int32_t         len = n - at < max ? n - at : max, np = w > 0 && !uni ? max - gen : 0;
    const json_t   *win = json_array_get(json_object_get(c, "windows"), (size_t) w);
    glm_segment_t   seg = { .kind = GLM_SEG_IDS, .ids = text + at + np, .n = (size_t) (len - np) };
    t_req_t        *t = scoring(e, &seg, 1);
    double          d = 1e9;

    set_ids(t, text + at, np);
    t->r.mode = uni ? GLM_UNIDIRECTIONAL : GLM_BIDIRECTIONAL;
    t->r.gmask = json_is_true(json_object_get(c, "use_task_mask"));
    t->r.count_positions = 1;
    if (run(t) && (int32_t) t->c[0].n == (int32_t) golden_num(win, "loss_tokens"))
        d = fabs((double) t->c[0].fin.score + golden_num(win, "loss_sum"));
    t_free(t);
    return d;
}

static double
golden_windows(glm_engine_t *e, const json_t *c)
{
    int32_t  text[MAXN], n = golden_ids(json_object_get(c, "text"), text, MAXN);
    double   worst = 0;

    for (size_t w = 0; w < json_array_size(json_object_get(c, "windows")); w++)
        worst = fmax(worst, golden_window(e, c, text, n, (int) w));
    return worst;
}

static glm_engine_t *
start_random(const char *dir, int tp)
{
    return start(dir, tp, 64, 4096);
}

static void
test_goldens(glm_engine_t *e, const char *model, const char *what)
{
    glm_segment_t  text = plain("a");

    /* the original's own fp16: choices up to 0.16 off; a window's loss is a longer sum */
    run_file(e, model, "cond_log_prob", golden_choices, model_tolerance(1e-3, 0.16), what);
    run_file(e, model, "lm_loss", golden_windows, model_tolerance(2e-3, 0.3), what);
    refuses(scoring(e, &text, 1), "choices", "text, and no tokenizer");
}

static int
demo_case(glm_engine_t *e, const json_t *c)
{
    const json_t   *choices = json_object_get(c, "choices");
    const char     *prompt = json_string_value(json_object_get(c, "prompt"));
    int32_t         ids[MAXN], nids = golden_ids(json_object_get(c, "prompt_ids"), ids, MAXN);
    glm_segment_t   seg[8];
    size_t          n = json_array_size(choices);
    t_req_t        *t;
    int             good;

    for (size_t k = 0; k < n; k++)
        seg[k] = plain(json_string_value(json_object_get(json_array_get(choices, k), "text")));
    t = scoring(e, seg, n);
    set_text(t, prompt);
    t->r.gmask = 1;
    /* Its prompts are those of completions: with eos behind a mask inside. */
    t->r.add_special = strstr(prompt, "[MASK]") == NULL;
    if (!t->r.add_special) set_ids(t, ids, nids);
    good = run(t);
    for (size_t k = 0; k < n && good; k++) {
        const json_t  *w = json_array_get(choices, k), *want = json_object_get(w, "ids");

        good = t->c[k].n == json_array_size(want) && strcmp(t->c[k].text, seg[k].text) == 0
               && fabs((double) t->c[k].fin.score - golden_num(w, "logprob"))
                  < model_tolerance(2e-3, 5e-2);
        for (size_t i = 0; i < t->c[k].n && good; i++)
            good = t->c[k].id[i] == json_integer_value(json_array_get(want, i))
                   && fabs((double) t->c[k].sampled[i].logprob - json_number_value(
                           json_array_get(json_object_get(w, "logprobs"), i))) < model_tolerance(1e-3, 2e-2);
    }
    if (!good) diag("%s: %s %g", prompt, t->c[0].text, (double) t->c[0].fin.score);
    t_free(t);
    return good;
}

static void
test_demo(glm_engine_t *e)
{
    json_t        *g = golden_load("demo/goldens.json", "demo/goldens.json");
    const json_t  *cases = json_object_get(g, "score");
    size_t         good = 0;

    for (size_t i = 0; i < json_array_size(cases); i++)
        good += (size_t) demo_case(e, json_array_get(cases, i));
    ok(good > 0 && good == json_array_size(cases), "demo: %zu of %zu cases", good,
       json_array_size(cases));
    json_decref(g);
}

/* ---- bits ---- */

#define NBITS  45

/* Choice k: of one id or of some, the same every time. */
static glm_segment_t
bits_choice(int k)
{
    static int32_t  ids[NBITS][12];
    int             n = k % 3 == 0 ? 1 : 1 + k % 11;

    for (int i = 0; i < n; i++) ids[k][i] = 100 + (k * 37 + i * 101) % 7000;
    return (glm_segment_t) { .kind = GLM_SEG_IDS, .ids = ids[k], .n = (size_t) n };
}

static t_req_t *
bits(glm_engine_t *e, const glm_segment_t *seg, size_t n, int mode, int tops)
{
    t_req_t  *t = scoring(e, seg, n);

    set_text(t, mode == 2 ? "English: The file is [MASK]. German:" : "The package manager of");
    t->r.gmask = mode == 1;
    if (mode == 3) t->r.mode = GLM_UNIDIRECTIONAL;
    t->r.sample.nlogprobs = tops;
    return t;
}

/* Choices that differ in some bit from the same ones alone. */
static int
differ(glm_engine_t *e, t_req_t *const *alone, int mode, int tops, int reverse)
{
    glm_segment_t  seg[NBITS];
    t_req_t       *t;
    int            bad = 0;

    for (int k = 0; k < NBITS; k++) seg[reverse ? NBITS - 1 - k : k] = bits_choice(k);
    t = bits(e, seg, NBITS, mode, tops);
    bad += !run(t);
    for (int k = 0; k < NBITS && !bad; k++) {
        const t_choice_t  *a = &alone[k]->c[0], *b = &t->c[reverse ? NBITS - 1 - k : k];

        bad += a->n != b->n || a->fin.score != b->fin.score || strcmp(a->text, b->text) != 0;
        for (size_t i = 0; i < a->n && !bad; i++)
            bad += a->id[i] != b->id[i] || a->sampled[i].logprob != b->sampled[i].logprob
                   || a->offset[i] != b->offset[i] || b->sampled[i].ntop != tops
                   || memcmp(a->sampled[i].top, b->sampled[i].top,
                             (size_t) tops * sizeof(glm_logprob_t)) != 0;
    }
    t_free(t);
    return bad;
}

static void
test_bits(void)
{
    glm_engine_t  *e = start("models/demo", 1, 256, 8192), *small = start("models/demo", 1, 9, 64);
    t_req_t       *alone[NBITS], *beside[3];

    for (int mode = 0; mode < fewer(4); mode++) {
        int  bad = 0;

        for (int k = 0; k < NBITS; k++) {
            glm_segment_t  seg = bits_choice(k);

            alone[k] = bits(e, &seg, 1, mode, 4);
            bad += !run(alone[k]);
        }
        for (int i = 0; i < 3; i++) {
            beside[i] = t_new_text(e, "English: Where is the file? German:");
            beside[i]->r.max_tokens = 200;
            beside[i]->r.ignore_eos = 1;
            t_submit(beside[i]);
        }
        bad += differ(e, alone, mode, 0, 0) + differ(e, alone, mode, 4, 1);
        bad += differ(small, alone, mode, 0, 1) + differ(small, alone, mode, 4, 0);
        for (int i = 0; i < 3; i++) {
            glm_req_cancel(e, &beside[i]->r);
            t_wait(&beside[i]->ended, 1);
            t_free(beside[i]);
        }
        ok(bad == 0, "%d choices, way %d: each the bits it has alone, in any order, with few rows "
           "and pages, beside streams", NBITS, mode);
        for (int k = 0; k < NBITS; k++) t_free(alone[k]);
    }
    glm_engine_stop(e);
    glm_engine_stop(small);
}

/* Numbers of a time when nothing runs. */
static void
settled(glm_engine_t *e, glm_engine_stats_t *st)
{
    uint64_t  now = t_now();

    T_UNTIL((glm_engine_stats(e, st), st->running == 0 && st->heartbeat >= now));
}

/* A thousand words in some steps, not one a step. */
static void
test_many(glm_engine_t *e)
{
    static int32_t        ids[GLM_MAX_SCORED];
    static glm_segment_t  seg[GLM_MAX_SCORED];
    glm_engine_stats_t    before, after;
    t_req_t              *t;

    for (int k = 0; k < GLM_MAX_SCORED; k++) {
        ids[k] = 100 + k;
        seg[k] = (glm_segment_t) { .kind = GLM_SEG_IDS, .ids = &ids[k], .n = 1 };
    }
    t = scoring(e, seg, GLM_MAX_SCORED);
    set_text(t, "The package manager of Debian is called");
    settled(e, &before);
    ok(run(t), "1,000 choices of one id");
    settled(e, &after);
    ok(after.rows - before.rows == GLM_MAX_SCORED / GLM_MAX_LOGPROBS
       && after.finished_length - before.finished_length == GLM_MAX_SCORED
       && after.prefills - before.prefills == 1,
       "share %llu rows and one context", (unsigned long long) (after.rows - before.rows));
    t_free(t);
}

/* Unidirectional, a choice is the rest of a text: what an echoed prompt says of it. */
static void
test_echo(glm_engine_t *e)
{
    static const int32_t  ids[12] = { 84, 160, 2788, 13, 556, 26, 991, 5, 2737, 30, 10, 227 };
    glm_segment_t         rest = { .kind = GLM_SEG_IDS, .ids = ids + 8, .n = 4 };
    t_req_t              *whole = t_new_ids(e, ids, 12), *t = scoring(e, &rest, 1);
    int                   same;

    whole->r.mode = t->r.mode = GLM_UNIDIRECTIONAL;
    whole->r.want_prompt_logprobs = 1;
    whole->r.nprompt_logprobs = t->r.sample.nlogprobs = 5;
    whole->r.max_tokens = 0;
    set_ids(t, ids, 8);
    same = t_run(whole) && run(t) && whole->prompt.n == 12 && t->c[0].n == 4;
    for (int i = 0; i < 4 && same; i++) {
        const glm_sampled_t  *a = &whole->prompt.sampled[8 + i], *b = &t->c[0].sampled[i];

        same = a->logprob == b->logprob && a->ntop == 5
               && memcmp(a->top, b->top, 5 * sizeof(a->top[0])) == 0;
    }
    ok(same, "unidirectional: the bits of an echoed prompt");
    t_free(whole);
    t_free(t);
}

/* ---- what is told beside ---- */

static uint32_t
characters(const char *s, size_t n)
{
    uint32_t  k = 0;

    for (size_t i = 0; i < n; i++) k += (s[i] & 0xC0) != 0x80;
    return k;
}

/* Each id stands where the text of those before it ends. */
static void
test_offsets(glm_engine_t *e)
{
    glm_segment_t  seg[2] = { plain("M\xC3\xB6" "chten Sie die \xE6\x96\x87 l\xC3\xB6schen?"), plain("a") };
    t_req_t       *t = scoring(e, seg, 2);
    t_choice_t    *c = &t->c[0];
    int            good;

    set_text(t, "English: Do you want to delete the file? German:");
    good = run(t) && c->n > 4 && c->offset[0] == 0 && strcmp(c->text, seg[0].text) == 0
           && t->c[1].offset[0] == 0;
    for (size_t i = 1; i < c->n && good; i++) {
        size_t       n;
        const char  *s = glm_token_name(glm_engine_tokenizer(e), c->id[i], &n);

        if (glm_token_kind(glm_engine_tokenizer(e), c->id[i]) != GLM_TOK_TEXT) continue;
        good = c->offset[i] + characters(s, n)
               == (i + 1 < c->n ? c->offset[i + 1] : characters(c->text, c->ntext));
    }
    ok(good, "offsets count characters");
    t_free(t);
}

/* The log-probabilities that are asked for, and those that are told anyhow. */
static void
test_asked(glm_engine_t *e)
{
    static const int32_t  beside[3] = { 300, 1200, 7 }, ids[2] = { 900, 901 };
    glm_segment_t         seg[2];
    t_req_t              *t[3];
    int                   good = 1;

    for (int k = 0; k < 2; k++) seg[k] = (glm_segment_t) { .kind = GLM_SEG_IDS, .ids = &ids[k], .n = 1 };
    for (int i = 0; i < 3; i++) {
        t[i] = scoring(e, seg, 2);
        set_text(t[i], "The package manager of Debian is called");
        t[i]->r.sample.nlogprobs = i - 1;
    }
    t[2]->r.score_id = beside;
    t[2]->r.nscore_id = 3;
    for (int i = 0; i < 3; i++) good &= run(t[i]);
    for (int k = 0; k < 2 && good; k++) {
        const glm_sampled_t  *o = &t[2]->c[k].sampled[0];

        good = t[0]->c[k].fin.score == t[1]->c[k].fin.score && t[0]->c[k].fin.score < 0
               && t[0]->c[k].fin.score == t[2]->c[k].fin.score && o->ntop == 3;
        for (int i = 0; i < 3 && good; i++) {
            good = o->top[i].id == 300 || o->top[i].id == 1200 || o->top[i].id == 7;
            good &= i == 0 || o->top[i].logprob <= o->top[i - 1].logprob;
        }
    }
    ok(good, "a choice's own are told without logprobs, and those of logprob_token_ids beside them");
    for (int i = 0; i < 3; i++) t_free(t[i]);
}

/* As many lanes as fill a step with rows. */
static void
test_lanes(glm_engine_t *e)
{
    static const int32_t  ids[30] = { 900, 901, 902, 903 };
    const glm_vocab_t     v = { glm_engine_config(e), glm_engine_tokenizer(e) };
    glm_segment_t         seg[30];
    glm_req_t             r = { .choice = seg, .nchoice = 30, .sample.nlogprobs = 0 };
    glm_refusal_t         no;
    glm_score_t          *c;

    for (int k = 0; k < 30; k++)
        seg[k] = (glm_segment_t) { .kind = GLM_SEG_IDS, .ids = ids, .n = k < 20 ? 1 : 4 };
    if (glm_score_make(&c, &v, NULL, &r, &no) != 0) bail_out(no.text);
    ok(c->nruns == 11 && c->nrows == 41, "20 choices in one row, and 10 of 4 rows");
    ok(glm_score_lanes(c, 8) == 3 && glm_score_lanes(c, 20) == 6 && glm_score_lanes(c, 1000) == 11,
       "lanes fill a step, and are no more than what runs");
    glm_score_free(c);
}

/* ---- refusals ---- */

static t_req_t *
one_choice(glm_engine_t *e, const glm_segment_t *seg)
{
    t_req_t  *t = scoring(e, seg, 1);

    set_text(t, "The file");
    return t;
}

static void
test_refusals(glm_engine_t *e)
{
    static int32_t        ids[2000];
    static glm_segment_t  many[GLM_MAX_SCORED + 1];
    glm_segment_t   some[3] = { plain("a"), plain(""), plain("c") };
    glm_segment_t   id = { .kind = GLM_SEG_IDS, .ids = ids, .n = 1 }, mask = plain("[MASK]");
    int32_t         room = glm_engine_config(e)->max_seq;
    t_req_t        *t;

    t = scoring(e, some, 0);
    ok(t_run(t) && t->ended == 2 && t->no.limit == 1 && t->no.value == 0, "none: %s", t->no.text);
    t_free(t);
    for (int i = 0; i <= GLM_MAX_SCORED; i++) many[i] = plain("a");
    t = scoring(e, many, GLM_MAX_SCORED + 1);
    ok(t_run(t) && t->ended == 2 && !strcmp(t->no.param, "choices") && t->no.limit == GLM_MAX_SCORED
       && t->no.value == GLM_MAX_SCORED + 1, "1,001: %s", t->no.text);
    t_free(t);
    refuses(scoring(e, some, 3), "choices", "an empty one");
    ids[0] = glm_engine_config(e)->mask;
    t = one_choice(e, &id);
    ok(t_run(t) && t->ended == 2 && !strcmp(t->no.param, "choices") && t->no.value == ids[0],
       "a mask's id: %s", t->no.text);
    t_free(t);
    ids[0] = glm_engine_config(e)->vocab;
    refuses(one_choice(e, &id), "choices", "an id past the vocabulary");
    ids[0] = glm_engine_config(e)->eop;
    t = one_choice(e, &id);
    ok(run(t), "eop is what a model says: it can be scored");
    t_free(t);
    t = one_choice(e, &mask);
    ok(run(t) && t->c[0].n > 1 && strcmp(t->c[0].text, "[MASK]") == 0, "[MASK] in a choice is text");
    t_free(t);

    for (int i = 0; i < 2000; i++) ids[i] = 100 + i;
    id.n = (size_t) room - 1;
    t = scoring(e, &id, 1);
    ok(run(t) && t->done.prompt_tokens == 1, "no prompt, and all the room there is");
    t_free(t);
    id.n++;
    t = scoring(e, &id, 1);
    ok(t_run(t) && t->ended == 2 && !strcmp(t->no.code, "context_length_exceeded")
       && t->no.limit == room - 1 && t->no.value == room, "one id more: %s", t->no.text);
    t_free(t);
    some[1] = id;
    t = scoring(e, some, 3);
    ok(t_run(t) && t->ended == 2 && t->no.value == room && strstr(t->no.text, "Choice 1 has") != NULL,
       "the one that does not fit is named");
    t_free(t);
    id.n = 20;
    t = scoring(e, &id, 1);
    set_ids(t, ids, 1200);
    ok(t_run(t) && t->ended == 2 && !strcmp(t->no.param, "prompt"), "too long a prompt: %s",
       t->no.text);
    t_free(t);
    t = scoring(e, &id, 1);
    set_ids(t, ids, 1200);
    t->r.truncate = -1;
    ok(run(t) && t->done.prompt_tokens == room - 20, "truncated: its end stays, and 20 fit");
    t_free(t);
    t = one_choice(e, &some[0]);
    t->r.mode = GLM_UNIDIRECTIONAL;
    set_text(t, "a [MASK] b");
    refuses(t, "prompt", "unidirectional with a mask");
}

/* ---- cancels ---- */

static void
test_cancels(void)
{
    glm_engine_t        *e = start("models/demo", 1, 16, 1024);
    glm_engine_stats_t   st;
    glm_segment_t        seg[NBITS];
    int                  bad = 0, cut = 0, times = fewer(40);

    for (int k = 0; k < NBITS; k++) seg[k] = bits_choice(k);
    for (int n = 0; n < times; n++) {
        t_req_t  *t = bits(e, seg, NBITS, n % 4, n % 2);

        t_submit(t);
        t_wait_tokens(t, n, (size_t) (n % 3));
        glm_req_cancel(e, &t->r);
        bad += !t_wait(&t->ended, 1) || t->wrong || t->ended != 1;
        for (int k = 0; k < NBITS && t->accepted; k++)
            bad += !t->c[k].finished || t->c[k].fin.ntokens != (int32_t) t->c[k].n;
        cut += t->done.cancelled;
        t_free(t);
    }
    settled(e, &st);
    ok(bad == 0 && cut > 2 && st.kv_pages_used == 0,
       "%d cancels, %d before the end: each choice has an end, pages are back", times, cut);
    glm_engine_stop(e);
}

int
main(void)
{
    glm_engine_t  *e;

    each_model(start_random, test_goldens);
    if (access("models/demo/config.json", R_OK) != 0) {
        skip("no demo model");
        return tap_done();
    }
    e = start("models/demo", 2, 0, 0);
    test_demo(e);
    if (model_cuda) {             /* the rest is the engine's, whatever computes */
        glm_engine_stop(e);
        return tap_done();
    }
    test_many(e);
    test_echo(e);
    test_offsets(e);
    test_asked(e);
    test_lanes(e);
    test_refusals(e);
    glm_engine_stop(e);
    test_bits();
    test_cancels();
    return tap_done();
}
