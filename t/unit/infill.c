/*
 * infill: breaks when a blank is not filled as the original fills it, when the text or
 * the places of blanks do not fit what was told, when a bad request is not refused by
 * name, or when rounds are lost, mixed up or leave pages behind.  Real models.
 */
#define T_CHOICES  300
#include "engine_util.h"
#include "golden.h"
#include "tap.h"
#include "real_util.h"

static glm_engine_t *
start(const char *dir, int tp, int max_seqs, int64_t kv_tokens)
{
    return real_start(dir, tp, (glm_engine_opts_t) { .max_num_seqs = max_seqs,
                                                     .kv_tokens = kv_tokens,
                                                     .prefill_budget = 40 });
}

static t_req_t *
infill(t_req_t *t, int blanks, int32_t max_tokens)
{
    t->r.op = GLM_OP_INFILL;
    t->blanks = blanks;
    t->r.max_tokens = max_tokens;
    return t;
}

static t_req_t *
infill_text(glm_engine_t *e, const char *text, int32_t max_tokens)
{
    int  blanks = 0;

    for (const char *s = text; (s = strstr(s, "[MASK]")) != NULL; s++) blanks++;
    return infill(t_new_text(e, text), blanks, max_tokens);
}

static const char *
said(const t_req_t *t, int k)
{
    return t->c[k].text != NULL ? t->c[k].text : "";
}

/* ---- the original's fills ---- */

/* The mask to fill of a prompt; how many there are. */
static int
kind_of(const int32_t *ids, int32_t n, const glm_config_t *c, int32_t *kind)
{
    const int32_t  kinds[3] = { c->mask, c->smask, c->gmask };
    int            count = 0;

    for (int k = 0; k < 3 && count == 0; k++) {
        *kind = kinds[k];
        for (int32_t i = 0; i < n; i++) count += ids[i] == *kind;
    }
    return count;
}

/* Puts a fill in place of the first mask. */
static int32_t
replace(int32_t *ids, int32_t n, int32_t kind, const int32_t *fill, int32_t nfill)
{
    int32_t  at = 0;

    while (ids[at] != kind) at++;
    memmove(ids + at + nfill, ids + at + 1, (size_t) (n - at - 1) * sizeof(*ids));
    memcpy(ids + at, fill, (size_t) nfill * sizeof(*ids));
    return n - 1 + nfill;
}

/* Golden steps of a round against a blank; the worst log-probability, or 1e9. */
static double
distance(const t_choice_t *c, const json_t *steps)
{
    double  worst = 0;

    for (size_t i = 0; i < json_array_size(steps); i++) {
        const json_t  *s = json_array_get(steps, i);

        if (i >= c->n || c->id[i] != (int32_t) golden_num(s, "token")) return 1e9;
        worst = fmax(worst, fabs((double) c->sampled[i].logprob - golden_num(s, "logprob")));
    }
    return worst;
}

/*
 * The original limits all rounds together, so its first one takes nearly all and those
 * behind it one token each: two requests, one for the first round, and one for the others
 * with its fill in the prompt.
 */
static double
greedy_case(glm_engine_t *e, const json_t *g)
{
    const json_t  *rounds = json_object_get(g, "blanks"), *first = json_array_get(rounds, 0);
    const json_t  *steps = json_object_get(first, "steps");
    int32_t        ids[MAXN], fill[MAXN], kind, nfill = 0;
    int32_t        n = golden_ids(json_object_get(g, "prompt_ids"), ids, MAXN / 2);
    int            blanks = kind_of(ids, n, glm_engine_config(e), &kind);
    size_t         nsteps = json_array_size(steps);
    double         worst = 0;
    t_req_t       *t;

    if (blanks == 0) return 0;                /* nothing to fill: a completion */
    t = infill(t_new_ids(e, ids, (size_t) n), blanks, (int32_t) nsteps);
    t->r.sample.nlogprobs = 0;
    worst = ran(t) ? distance(&t->c[0], steps) : 1e9;
    t_free(t);
    if (blanks != (int) json_array_size(rounds)) return 1e9;
    if (blanks == 1) return worst;

    for (size_t i = 0; i + (json_is_true(json_object_get(first, "ended")) != 0) < nsteps; i++)
        fill[nfill++] = (int32_t) golden_num(json_array_get(steps, i), "token");
    n = replace(ids, n, kind, fill, nfill);
    t = infill(t_new_ids(e, ids, (size_t) n), blanks - 1, 1);
    t->r.sample.nlogprobs = 0;
    if (!ran(t)) worst = 1e9;
    for (int b = 1; b < blanks; b++)
        worst = fmax(worst, distance(&t->c[b - 1], json_object_get(json_array_get(rounds, (size_t) b),
                                                                   "steps")));
    t_free(t);
    return worst;
}

static int
is_beam(const t_choice_t *c, const json_t *beam)
{
    int32_t  ids[MAXN], n = golden_ids(json_array_get(beam, 0), ids, MAXN);

    if (json_is_object(beam)) n = golden_ids(json_object_get(beam, "ids"), ids, MAXN);
    return n == c->fin.nkept && (n == 0 || memcmp(ids, c->id, (size_t) n * sizeof(*ids)) == 0);
}

static t_req_t *
beams(glm_engine_t *e, const int32_t *ids, int32_t n, int blanks, int32_t max_tokens,
    const json_t *set)
{
    t_req_t  *t = infill(t_new_ids(e, ids, (size_t) n), blanks, max_tokens);

    t->r.beams = t->r.n = (int32_t) golden_num(set, "num_beams");
    t->r.length_penalty = (float) golden_num(set, "length_penalty");
    t->r.no_repeat_ngram = (int32_t) golden_num(set, "no_repeat_ngram_size");
    t->r.min_tokens = (int32_t) golden_num(set, "min_gen_length");
    if (t->r.min_tokens > max_tokens) t->r.min_tokens = max_tokens;
    return t;
}

/* As above: the best fill of the first round, then the candidates of the last. */
static double
beam_case(glm_engine_t *e, const json_t *g)
{
    const json_t  *rounds = json_object_get(g, "rounds"), *set = json_object_get(g, "settings");
    const json_t  *first = json_array_get(rounds, 0), *last;
    const json_t  *best = json_array_get(json_object_get(first, "beams"), 0);
    int32_t        ids[MAXN], fill[MAXN], kind, nfill;
    int32_t        n = golden_ids(json_object_get(g, "prompt_ids"), ids, MAXN / 2);
    int            blanks = kind_of(ids, n, glm_engine_config(e), &kind), good;
    t_req_t       *t;

    if (blanks == 0) return 0;
    t = beams(e, ids, n, blanks, (int32_t) json_array_size(json_object_get(first, "steps")), set);
    good = ran(t) && is_beam(&t->c[0], best);
    t_free(t);
    if (!good || blanks == 1) return good ? 0 : 1e9;

    nfill = golden_ids(json_object_get(best, "ids"), fill, MAXN);
    n = replace(ids, n, kind, fill, nfill);
    last = json_array_get(rounds, (size_t) blanks - 1);
    t = beams(e, ids, n, blanks - 1, (int32_t) json_array_size(json_object_get(last, "steps")), set);
    good = blanks == 2 && ran(t);
    for (int k = 0; k < t->r.n && good; k++)
        good = is_beam(&t->c[k], json_array_get(json_object_get(last, "beams"), (size_t) k));
    t_free(t);
    return good ? 0 : 1e9;
}

static glm_engine_t *
start_random(const char *dir, int tp)
{
    return start(dir, tp, 16, 4096);
}

static void
test_goldens(glm_engine_t *e, const char *model, const char *what)
{
    run_file(e, model, "greedy", greedy_case, model_tolerance(1e-3, FP16_LOGPROB), what);
    run_file(e, model, "beam", beam_case, 1e-3, what);
}

static int
demo_case(glm_engine_t *e, const json_t *c)
{
    const json_t  *fills = json_object_get(c, "fills"), *ids = json_object_get(c, "fill_ids");
    t_req_t       *t = infill_text(e, json_string_value(json_object_get(c, "prompt")), 32);
    int            good = ran(t) && t->blanks == (int) json_array_size(fills);

    for (int b = 0; b < t->blanks && good; b++) {
        const json_t  *want = json_array_get(ids, (size_t) b);

        good = strcmp(said(t, b), json_string_value(json_array_get(fills, (size_t) b))) == 0
               && t->c[b].n == json_array_size(want);
        for (size_t i = 0; i < t->c[b].n && good; i++)
            good = t->c[b].id[i] == json_integer_value(json_array_get(want, i));
    }
    good &= strcmp(t->filled[0].text, json_string_value(json_object_get(c, "text"))) == 0;
    if (!good) diag("%s: %s", t->seg.text, t->filled[0].text);
    t_free(t);
    return good;
}

static void
test_demo(glm_engine_t *e, const char *what)
{
    json_t        *g = golden_load("demo/goldens.json", "demo/goldens.json");
    const json_t  *cases = json_object_get(g, "blanks");
    size_t         good = 0;

    for (size_t i = 0; i < (size_t) fewer((int) json_array_size(cases)); i++)
        good += (size_t) demo_case(e, json_array_get(cases, i));
    ok(good > 0 && (int) good == fewer((int) json_array_size(cases)), "demo, %s: %zu of %zu texts",
       what, good, json_array_size(cases));
    json_decref(g);
}

/* ---- rounds ---- */

/* The text with the first [MASK] replaced; the caller frees it. */
static char *
with_fill(const char *text, const char *fill)
{
    const char  *at = strstr(text, "[MASK]");
    size_t       size = strlen(text) + strlen(fill) + 1;
    char        *s = malloc(size);

    snprintf(s, size, "%.*s%s%s", (int) (at - text), text, fill, at + 6);
    return s;
}

/* A stop string inside a token: the next round knows what was kept, not the token. */
static void
test_cut(glm_engine_t *e)
{
    static const char         text[] = "Debian is a free [MASK] system. This is the [MASK] package.";
    static const glm_stop_t   stops[2] = { { "twar", 4 }, { "NU C", 4 } };
    t_req_t                  *t = infill_text(e, text, 24), *u;
    char                     *second;

    t->r.stop = stops;
    t->r.nstop = 2;
    t->r.ignore_eos = 1;
    ran(t);
    ok(t->ended == 1 && strcmp(said(t, 0), "sof") == 0 && t->c[0].fin.stop_index == 0
       && t->c[0].fin.reason == GLM_FINISH_STOP, "a fill that a stop string cuts: \"%s\"", said(t, 0));
    second = with_fill(text, said(t, 0));
    u = infill_text(e, second, 24);
    u->r.stop = stops;
    u->r.nstop = 2;
    u->r.ignore_eos = 1;
    ok(ran(u) && u->c[0].n == t->c[1].n && memcmp(u->c[0].id, t->c[1].id, u->c[0].n * 4) == 0
       && strcmp(u->filled[0].text, t->filled[0].text) == 0,
       "the next blank is filled as beside that text: \"%s\"", t->filled[0].text);
    free(second);
    t_free(t);
    t_free(u);
}

/* A token whose text without its last character takes at least n ids; the text. */
static int32_t
long_cut(const glm_tokenizer_t *tok, size_t n, char *kept, size_t size, char last[2])
{
    for (int32_t id = 0; id < glm_tokenizer_vocab_size(tok); id++) {
        size_t       len;
        const char  *s = glm_token_name(tok, id, &len);
        glm_ids_t    ids = {0};

        if (glm_token_kind(tok, id) != GLM_TOK_TEXT || len < 3 || len >= size) continue;
        if (*s == ' ') s++, len--;
        snprintf(kept, size, "%.*s", (int) len - 1, s);
        if (s[len - 1] < 0 || strchr(kept, s[len - 1]) != NULL) continue;
        last[0] = s[len - 1];
        last[1] = '\0';
        glm_encode(tok, kept, len - 1, &ids);
        if (ids.n >= n) {
            glm_ids_free(&ids);
            return id;
        }
        glm_ids_free(&ids);
    }
    return -1;
}

/* What is kept of a cut token may need more ids than there is room for, in the model and
 * in the cache. */
static void
test_long_cut(glm_engine_t *e)
{
    static int32_t   ids[2000];
    char             kept[64], last[2];
    int32_t          max = glm_engine_config(e)->max_seq, mask = glm_engine_config(e)->mask;
    int32_t          id = long_cut(glm_engine_tokenizer(e), 3, kept, sizeof(kept), last);
    glm_stop_t       stop = { last, 1 };
    glm_engine_t    *small = start("models/demo", 1, 4, 64);
    int              bad = 0;

    for (int i = 0; i < 2000; i++) ids[i] = 100 + i;
    /* whole contexts of the model take a sanitizer minutes */
    for (int i = fewer(5) == 5 ? 0 : 1; i < 2; i++) {
        int32_t   n = (i == 0 ? max : 64) - 5;
        t_req_t  *t;

        for (int k = 0; k < 4; k++) ids[n - 2 * k - 1] = mask;
        t = infill(t_new_ids(i == 0 ? e : small, ids, (size_t) n), 4, 1);
        t->r.add_special = 0;
        t->r.allow = &id;
        t->r.nallow = 1;
        t->r.stop = &stop;
        t->r.nstop = 1;
        bad += id < 0 || !ran(t);
        for (int b = 0; b < 4; b++) bad += strcmp(said(t, b), kept) != 0;
        t_free(t);
        for (int k = 0; k < 4; k++) ids[n - 2 * k - 1] = 100;
    }
    ok(bad == 0, "cut tokens that take more ids than they were, and no room for them: \"%s|%s\"", kept,
       last);
    glm_engine_stop(small);
}

/* A suffix is a mask and text that the client does not hear of. */
static void
test_suffix(glm_engine_t *e)
{
    t_req_t  *t = t_new_text(e, "Debian is a free"), *u = infill_text(e, "Debian is a free [MASK] system.", 12);
    t_req_t  *v = t_new_text(e, "Debian is a free");

    t->r.suffix = " system.";
    t->r.nsuffix = 8;
    t->r.max_tokens = 12;
    t->r.echo = t->r.want_text = t->r.want_ids = 1;
    v->r.want_ids = 1;
    ok(ran(t) && ran(u) && ran(v) && t->c[0].n == u->c[0].n
       && memcmp(t->c[0].id, u->c[0].id, t->c[0].n * sizeof(int32_t)) == 0
       && t->done.prompt_tokens == u->done.prompt_tokens, "a suffix: what [MASK] is filled with");
    ok(strcmp(t->text, "Debian is a free") == 0 && t->c[0].offset[0] == 16 && t->nids + 1 == v->nids
       && memcmp(t->ids, v->ids, t->nids * sizeof(int32_t)) == 0,
       "text, ids and offsets are those of the prompt alone");
    t_free(t);
    t_free(u);
    t_free(v);
}

/* Beams: every blank but the last has the best fill, the last n. */
static void
test_beams(glm_engine_t *e)
{
    static const char   text[] = "This is the [MASK] package, which contains the [MASK] for "
                                 "development.";
    t_req_t            *t = infill_text(e, text, 8), *u;
    char               *second;
    int                 good;

    t->r.beams = 4;
    t->r.n = 3;
    t->r.length_penalty = 1;
    good = ran(t) && t->filled[2].text != NULL;
    second = with_fill(text, said(t, 0));
    u = infill_text(e, second, 8);
    u->r.beams = 4;
    u->r.n = 3;
    u->r.length_penalty = 1;
    good &= ran(u);
    for (int k = 0; k < 3 && good; k++)
        good = strcmp(t->filled[k].text, u->filled[k].text) == 0
               && t->c[2 * k + 1].fin.score == u->c[k].fin.score
               && (k == 0 || (t->c[2 * k].n == 0
                              && strcmp(t->filled[k].text, t->filled[k - 1].text) != 0));
    ok(good, "beams: the best fill, then 3 candidates: \"%s\", \"%s\"", t->filled[0].text,
       t->filled[2].text);
    free(second);
    t_free(t);
    t_free(u);
}

/* What is not a fill is the prompt, but for blanks. */
static int
is_prompt(const t_req_t *t, int k)
{
    const char         *p = t->seg.text, *s = t->filled[k].text;
    const glm_span_t   *span = t->filled[k].span;
    uint32_t            at = 0;
    int                 b = 0;

    for (; *p != '\0' || *s != '\0'; ) {
        if (b < t->blanks && at == span[b].start && strncmp(p, "[MASK]", 6) == 0) {
            for (; at < span[b].end; at++) {
                s++;
                while ((*s & 0xC0) == 0x80) s++;
            }
            p += 6;
            b++;
        } else if (*p == ' ') {
            p++;
        } else if (*s == ' ') {
            s++;
            at++;
        } else if (*p == *s) {
            at += (*++s & 0xC0) != 0x80;
            p++;
        } else {
            return 0;
        }
    }
    return b == t->blanks;
}

static const char *const  prompts[] = {
    "[MASK]", "[MASK][MASK]", "[MASK] [MASK] [MASK]", "a[MASK]", "[MASK]b",
    "The [MASK] is the name of the [MASK]", "[MASK] is a library for [MASK] and [MASK] files.",
    "M\xC3\xB6" "chten Sie die Datei [MASK]? \xE6\x96\x87 [MASK] \xE6\x96\x87",
    "def [MASK](a, b):\n    return [MASK]\n"
};
#define NPROMPTS  (int) (sizeof(prompts) / sizeof(prompts[0]))

/* Request i, the same every time. */
static t_req_t *
random_request(glm_engine_t *e, int i)
{
    static const glm_stop_t  stops[3] = { { "e", 1 }, { " ", 1 }, { "the", 3 } };
    unsigned                 s = (unsigned) i * 7919 + 11;
    t_req_t                 *t = infill_text(e, prompts[rand_r(&s) % NPROMPTS], 1);

    t->r.max_tokens = 1 + (int) (rand_r(&s) % 12);
    t->r.n = 1 + (int) (rand_r(&s) % 4);
    t->r.has_seed = 1;
    t->r.sample = (glm_sample_t) { .temperature = (float) (rand_r(&s) % 4), .seed = rand_r(&s),
                                   .nlogprobs = (int) (rand_r(&s) % 3) - 1,
                                   .repetition = rand_r(&s) % 3 == 0 ? 1.3f : 0 };
    t->r.special_text = rand_r(&s) % 4 == 0;
    t->r.min_tokens = rand_r(&s) % 3 == 0;
    t->r.include_stop = rand_r(&s) % 2 != 0;
    if (rand_r(&s) % 2) {
        t->r.stop = stops;
        t->r.nstop = 3;
    }
    if (rand_r(&s) % 5 == 0) {
        t->r.sample.temperature = 0;
        t->r.has_seed = 0;
        t->r.nstop = 0;
        t->r.beams = t->r.n + 1;
    }
    return t;
}

static int
equal(const t_req_t *a, const t_req_t *b)
{
    for (int k = 0; k < a->r.n; k++) {
        if (strcmp(a->filled[k].text, b->filled[k].text) != 0) return 0;
        for (int i = k * a->blanks; i < (k + 1) * a->blanks; i++) {
            const t_choice_t  *x = &a->c[i], *y = &b->c[i];

            if (x->n != y->n || x->fin.nkept != y->fin.nkept || x->fin.reason != y->fin.reason
                || strcmp(said(a, i), said(b, i)) != 0)
                return 0;
            if (x->n > 0 && (memcmp(x->id, y->id, x->n * sizeof(int32_t)) != 0
                             || memcmp(x->sampled, y->sampled, x->n * sizeof(*x->sampled)) != 0))
                return 0;
        }
    }
    return a->done.prompt_tokens == b->done.prompt_tokens;
}

#define NRANDOM  60

/* Alone; then all at once, with few rows and pages. */
static void
test_company(glm_engine_t *e)
{
    t_req_t             *alone[NRANDOM], *t[NRANDOM];
    glm_engine_t        *small = start("models/demo", 1, 5, 700);
    glm_engine_stats_t   st;
    int                  bad = 0, differ = 0, n = fewer(NRANDOM);

    for (int i = 0; i < n; i++) {
        alone[i] = random_request(e, i);
        bad += !ran(alone[i]);
        for (int k = 0; k < alone[i]->r.n && alone[i]->ended == 1; k++) {
            if (alone[i]->r.special_text || is_prompt(alone[i], k)) continue;
            bad++;
            diag("\"%s\" became \"%s\"", alone[i]->seg.text, alone[i]->filled[k].text);
        }
    }
    ok(bad == 0, "%d requests: each blank is where it says, around it is the prompt", n);
    for (int i = 0; i < n; i++) t_submit(t[i] = random_request(small, i));
    for (int i = 0; i < n; i++) {
        t_wait(&t[i]->ended, 1);
        if (t[i]->ended == 1 && !t[i]->wrong && equal(alone[i], t[i])) continue;
        differ++;
        diag("%d: \"%s\" \"%s\" %s", i, alone[i]->filled[0].text, t[i]->filled[0].text, t[i]->no.text);
    }
    ok(differ == 0, "all at once, with few rows and pages: the same bits");
    T_UNTIL((glm_engine_stats(small, &st), st.running == 0));
    ok(st.kv_pages_used == 0 && st.waiting == 0 && glm_engine_idle(small), "no page is left");
    for (int i = 0; i < n; i++) {
        t_free(alone[i]);
        t_free(t[i]);
    }
    glm_engine_stop(small);
}

/* Ids that are no text are not generated; where a client allows a mask, it is text that
 * prints nothing, and no blank. */
static void
test_masks(glm_engine_t *e)
{
    const glm_config_t  *c = glm_engine_config(e);
    t_req_t             *t = infill_text(e, "The [MASK] and the [MASK].", fewer(300));
    int                  bad = 0;

    t->r.sample.temperature = 100;
    t->r.ignore_eos = 1;
    ok(ran(t) && (int) t->c[1].n == fewer(300), "%d ids at random", 2 * fewer(300));
    for (int b = 0; b < 2; b++)
        for (size_t i = 0; i < t->c[b].n; i++)
            bad += glm_token_kind(glm_engine_tokenizer(e), t->c[b].id[i]) == GLM_TOK_NONTEXT
                   && t->c[b].id[i] != c->eop && t->c[b].id[i] != c->eos;
    ok(bad == 0, "are all text or ends: no mask, no sop, no image, no padding");
    t_free(t);

    t = infill_text(e, "The [MASK] and the [MASK].", 3);
    t->r.allow = &c->mask;
    t->r.nallow = 1;
    ok(ran(t) && t->c[0].n == 3 && t->c[0].id[0] == c->mask && t->c[1].n == 3
       && t->done.completion_tokens == 6, "allowed masks are generated and never filled");
    t_free(t);
}

/* ---- numbers and refusals ---- */

static void
test_refusals(glm_engine_t *e)
{
    static int32_t       many[257];
    static const char    two[] = "The [MASK] and the [MASK].";
    glm_engine_t        *small = start("models/demo", 1, 5, 64);
    int32_t              max = glm_engine_config(e)->max_seq;
    t_req_t             *t;

    for (int i = 0; i < 257; i++) many[i] = glm_engine_config(e)->mask;
    refuses(infill(t_new_text(e, "The file"), 1, 5), "prompt", "no mask");
    t = infill(t_new_ids(e, many, 257), 257, 1);
    ok(t_run(t) && t->no.limit == 256 && t->no.value == 257, "257 masks: %s", t->no.text);
    t_free(t);
    t = infill(t_new_ids(e, many, 256), 256, 0);
    ok(ran(t), "256 masks");
    t_free(t);
    t = infill_text(e, two, 5);
    t->r.best_of = 3;
    refuses(t, "best_of", "best_of");
    t = infill_text(e, two, 5);
    t->r.echo = t->r.want_text = 1;
    refuses(t, "echo", "echo");
    t = infill_text(e, two, 5);
    t->r.mode = GLM_UNIDIRECTIONAL;
    refuses(t, "mode", "unidirectional");
    t = infill_text(e, two, 5);
    t->r.suffix = "x";
    t->r.nsuffix = 1;
    refuses(t, "suffix", "a suffix");
    refuses(infill_text(small, two, 30), "max_tokens", "more than the cache holds");
    glm_engine_stop(small);

    t = infill_text(e, two, -1);
    t_run(t);
    ok(t->ended == 1 && t->acc.max_tokens == 2 * ((max - t->acc.prompt_tokens - 1) / 2),
       "max_tokens -1: the rest, divided: %d", t->acc.max_tokens);
    t_free(t);
    t = infill_text(e, two, max / 2);
    ok(t_run(t) && t->ended == 2 && !strcmp(t->no.code, "context_length_exceeded")
       && t->no.limit == max && t->no.value > max && !strcmp(t->no.param, "max_tokens"),
       "blanks that could be too long: %s", t->no.text);
    t_free(t);

    t = infill_text(e, two, 0);
    t->r.n = 2;
    ok(ran(t) && t->filled[1].text != NULL && t->c[3].fin.reason == GLM_FINISH_LENGTH
       && t->done.completion_tokens == 0 && strcmp(t->filled[1].text, "The and the .") == 0,
       "max_tokens 0 fills with nothing");
    t_free(t);
    t = infill_text(e, two, 4);
    t->r.ignore_eos = 1;
    t->r.n = 2;
    ok(ran(t) && t->acc.max_tokens == 8 && t->done.completion_tokens == 16
       && t->done.prompt_tokens == t->acc.prompt_tokens + 2 * (t->acc.prompt_tokens + 3)
       && t->done.t_first > 0 && t->done.t_first >= t->done.t_admit
       && t->done.t_done > t->done.t_first, "usage: one context for all first blanks, then each its "
       "own");
    t_free(t);
}

/* ---- ends ---- */

/* After so many tokens of so many blanks. */
static void
test_cancels(void)
{
    glm_engine_t        *e = start("models/demo", 1, 4, 400);
    glm_engine_stats_t   st;
    int                  bad = 0, cut = 0, n = fewer(80);

    for (int i = 0; i < n; i++) {
        t_req_t  *t = infill_text(e, prompts[6], 6);

        t->r.n = 1 + i % 4;
        t->r.sample.temperature = 1;
        if (i % 5 == 0) {
            t->r.sample.temperature = 0;
            t->r.beams = 4;
        }
        t_submit(t);
        if (i % 7 < 5) t_wait_tokens(t, i % (3 * t->r.n), (size_t) (i % 4));
        glm_req_cancel(e, &t->r);
        if (!t_wait(&t->ended, 1) || t->wrong || t->ended != 1) {
            bad++;
            diag("%d: %d wrong, %s", i, t->wrong, t->no.text);
        }
        cut += t->done.cancelled;
        t_free(t);
    }
    T_UNTIL((glm_engine_stats(e, &st), st.running == 0));
    ok(bad == 0 && cut > n / 3 && st.kv_pages_used == 0 && glm_engine_idle(e),
       "%d cancels, %d before the end: each blank has an end, pages are back", n, cut);
    glm_engine_stop(e);
}

static void
test_stop(void)
{
    glm_engine_t  *e = start("models/demo", 1, 3, 400);
    t_req_t       *t[12];
    int            bad = 0, done = 0;

    for (int i = 0; i < 12; i++) {
        t[i] = infill_text(e, prompts[6], 8);
        t[i]->r.n = 4;
        t[i]->r.ignore_eos = 1;
        t[i]->r.sample.temperature = 1;
        t_submit(t[i]);
    }
    t_wait_tokens(t[0], 1, 1);
    glm_req_pause(e, &t[1]->r, 1);
    glm_engine_drain(e);
    t_wait(&t[0]->ended, 1);
    glm_engine_stop(e);
    for (int i = 0; i < 12; i++) {
        bad += t[i]->ended == 0 || t[i]->wrong || (t[i]->ended == 2 && t[i]->no.status != 503);
        done += t[i]->ended == 1;
        t_free(t[i]);
    }
    ok(bad == 0 && done > 0 && done < 12, "a stop ends what is half filled: %d of 12 were done", done);
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
    if (fewer(5) == 5 && !model_cuda) {
        e = start("models/demo", 2, 16, 0);
        test_demo(e, "2 ranks");
        glm_engine_stop(e);
    }
    e = start("models/demo", 1, 16, 0);
    test_demo(e, "1 rank");
    if (model_cuda) {             /* the rest is the engine's, whatever computes */
        glm_engine_stop(e);
        return tap_done();
    }
    test_cut(e);
    test_long_cut(e);
    test_suffix(e);
    test_beams(e);
    test_masks(e);
    test_refusals(e);
    test_company(e);
    glm_engine_stop(e);
    test_cancels();
    test_stop();
    return tap_done();
}
