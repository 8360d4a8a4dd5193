/*
 * engine_fields: breaks when a field of a request does not do what it says: which
 * ids may be picked, what the prompt's own are told, when a choice ends.  A fake model
 * over the demo model's tokenizer; each result against its definition.
 */
#include <unistd.h>

#include "fake_model.h"
#include "engine_util.h"
#include "tap.h"
#include "fields_util.h"

/* ---- which ids may be picked ---- */

/* Whether the n ids of w end the nsaid ids at said. */
static int
ends_with(const int32_t *said, int nsaid, const int32_t *w, int n)
{
    return n <= nsaid && memcmp(said + nsaid - n, w, (size_t) n * sizeof(int32_t)) == 0;
}

static int
bad_word(const t_req_t *t, const int32_t *said, int nsaid, int32_t id)
{
    const glm_tokenizer_t  *tok = glm_engine_tokenizer(t->e);
    int                     hit = 0;

    for (size_t i = 0; i < 2 * t->r.nbad; i++) {
        const glm_stop_t  *w = &t->r.bad[i / 2];
        glm_ids_t          ids = {0};

        if (i % 2) glm_encode(tok, w->s, w->n, &ids);
        else glm_encode_no_prefix(tok, w->s, w->n, &ids);
        hit |= ids.n > 0 && ids.id[ids.n - 1] == id
               && ends_with(said, nsaid, ids.id, (int) ids.n - 1);
        glm_ids_free(&ids);
    }
    return hit;
}

static int
in(const int32_t *list, size_t n, int32_t id)
{
    for (size_t i = 0; i < n; i++)
        if (list[i] == id) return 1;
    return 0;
}

static int
is_end(int32_t id)
{
    return id == 7813 || id == 2;
}

static int
may(const t_req_t *t, const int32_t *said, int nsaid, int32_t id)
{
    const glm_req_t  *r = &t->r;

    if (r->allow != NULL && !in(r->allow, r->nallow, id)) return 0;
    if (r->allow == NULL && !is_end(id)
        && glm_token_kind(glm_engine_tokenizer(t->e), id) == GLM_TOK_NONTEXT) return 0;
    if (nsaid < r->min_tokens && (is_end(id) || in(r->stop_id, r->nstop_id, id))) return 0;
    return !bad_word(t, said, nsaid, id);
}

/* A logit as the fields change it; the prompt's ids are all the user's. */
static float
changed(const t_req_t *t, const int32_t *said, int nsaid, int32_t id, float x)
{
    const glm_req_t  *r = &t->r;
    int               count = 0;

    for (int i = 0; i < nsaid; i++) count += said[i] == id;
    for (size_t i = 0; i < r->nbias; i++) x += r->bias[i].id == id ? r->bias[i].bias : 0;
    if (r->sample.repetition > 0 && (count > 0 || in(t->ids, t->nids - 1, id)))
        x = x > 0 ? x / r->sample.repetition : x * r->sample.repetition;
    x -= r->sample.frequency * (float) count;
    return count > 0 ? x - r->sample.presence : x;
}

/* Is every id of choice k, greedy, the one that the definition picks? */
static int
as_defined(const t_req_t *t, int k)
{
    static float       x[16384];
    const t_choice_t  *c = &t->c[k];
    int32_t            vocab = glm_engine_config(t->e)->vocab, slot = 0;
    uint64_t           hash = 0;

    for (; slot < (int32_t) t->nids; slot++)
        hash = fake_mix(hash ^ fake_entry(t->ids[slot], slot, slot));
    for (int i = 0; i < (int) c->n; i++, slot++) {
        int32_t  best = -1;
        float    most = 0;

        hash = fake_mix(hash ^ fake_entry(i == 0 ? glm_engine_config(t->e)->sop : c->id[i - 1],
                                          slot, slot));
        fake_logits(hash, vocab, x);
        for (int32_t id = 0; id < vocab; id++) {
            float  y = changed(t, c->id, i, id, x[id]);

            if ((best >= 0 && y <= most) || !may(t, c->id, i, id)) continue;
            best = id;
            most = y;
        }
        if (best != c->id[i]) return 0;
    }
    return 1;
}

/* Runs t and compares; frees it. */
static int
defined(t_req_t *t)
{
    int  right;

    t->r.want_ids = 1;
    t->r.sample.temperature = 0;
    right = good(t);
    for (int k = 0; k < t->r.n && right; k++) right = as_defined(t, k);
    t_free(t);
    return right;
}

static t_req_t *
greedy(glm_engine_t *e, int32_t max_tokens)
{
    t_req_t  *t = text(e, "Where is the file?", max_tokens, 0);

    t->r.ignore_eos = 1;
    return t;
}

static int32_t  some[400];

/* ---- the prompt itself ---- */

/* The log-probability of id after n ids in slots 0 .., and the best ones. */
static glm_sampled_t
said_of(const int32_t *ids, int n, int32_t id, int32_t vocab)
{
    static float   x[16384];
    static void   *scratch;
    uint64_t       hash = 0;
    glm_sampled_t  out;
    glm_sample_t   a = { .nlogprobs = GLM_MAX_LOGPROBS, .force = id + 1 };

    if (scratch == NULL && posix_memalign(&scratch, 64, glm_sample_scratch(16384))) abort();
    for (int s = 0; s < n; s++) hash = fake_mix(hash ^ fake_entry(ids[s], s, s));
    fake_logits(hash, vocab, x);
    glm_sample(x, vocab, &a, scratch, &out);
    return out;
}

static t_req_t *
scored(glm_engine_t *e, const char *prompt, int top, int32_t max_tokens)
{
    t_req_t  *t = text(e, prompt, max_tokens, 3);

    t->r.mode = GLM_UNIDIRECTIONAL;
    t->r.echo = t->r.want_text = t->r.want_ids = 1;
    t->r.want_prompt_logprobs = 1;
    t->r.nprompt_logprobs = top;
    return t;
}

/* Ids, offsets and numbers of the prompt, each by its definition. */
static int
scored_right(const t_req_t *t, int top)
{
    const glm_config_t  *cfg = glm_engine_config(t->e);
    const t_choice_t    *p = &t->prompt;
    int32_t              in_[600] = { cfg->gmask, cfg->sop };
    glm_detok_t          d;
    glm_text_t           s = {0};
    int                  right = p->n == t->nids - 1;

    glm_detok_init(&d, glm_engine_tokenizer(t->e));
    for (size_t i = 0; i < p->n && right; i++) {
        uint32_t       chars = 0;
        glm_sampled_t  o = said_of(in_, 2 + (int) i, p->id[i], cfg->vocab);

        for (size_t k = 0; k < s.n; k++) chars += (s.s[k] & 0xC0) != 0x80;
        right = p->id[i] == t->ids[i + 1] && p->offset[i] == chars;
        if (i > 0)
            right = right && p->sampled[i].logprob == o.logprob && p->sampled[i].ntop == top
                    && memcmp(p->sampled[i].top, o.top, (size_t) top * sizeof(o.top[0])) == 0;
        in_[2 + i] = p->id[i];
        glm_detok_push(&d, p->id[i], &s);
    }
    right = right && s.n == t->ntext && memcmp(s.s, t->text, s.n) == 0;
    glm_text_free(&s);
    return right;
}

static const char  long_text[] = "Where is the file? It is not where you said that it would be, and "
    "nobody else has seen it. \xE6\xBC\xA2\xE5\xAD\x97 and \xF0\x9F\x98\x80 and more of it, again "
    "and again and again and again until the page is full of words.";

static void
test_scored(void)
{
    static const int  tops[4] = { 0, 1, 5, 20 };
    int               bad = 0;

    for (int i = 0; i < 8; i++) {         /* rows, chunks, max_tokens, company */
        glm_engine_t  *e = up(1 + i, 4096, 100);
        t_req_t       *t = scored(e, long_text, tops[i % 4], i % 3);
        t_req_t       *u = text(e, "Where is the file?", 40, 1);

        t->r.n = 1 + i % 2;
        if (i % 2) t_submit(u);
        bad += !good(t) || !scored_right(t, tops[i % 4]);
        bad += (int) t->c[0].n != i % 3 && t->c[0].fin.reason != GLM_FINISH_STOP;
        bad += t->done.completion_tokens > t->r.n * (i % 3);
        if (t->c[0].n > 0) bad += t->c[0].offset[0] < 180;
        if (i % 2) t_wait(&u->ended, 1);
        t_free(t);
        t_free(u);
        down(e, "scored");
    }
    ok(bad == 0, "log-probabilities of the prompt: those of the causal rows");
}

static void
test_echo(glm_engine_t *e)
{
    t_req_t     *t = text(e, "A [MASK] file", 30, 5), *u = text(e, "A [MASK] file", 30, 5);
    glm_text_t   s = {0};
    int          n;
    glm_ids_t    ids = {0};
    glm_logit_bias_t  up[1];
    int32_t      one[1] = { 300 }, masked[3] = { 300, 0, 301 };

    t->r.echo = t->r.want_text = 1;
    n = good(t) && good(u);
    ok(n && t->ntext == 12 && memcmp(t->text, "A[MASK] file", 12) == 0,
       "echo: the prompt's text, the mask by name: %s", t->text);
    ok(t->c[0].n == u->c[0].n && memcmp(t->c[0].id, u->c[0].id, 4 * t->c[0].n) == 0
       && t->c[0].offset[0] == 12 && u->c[0].offset[0] == 0, "the same ids, offsets go on");
    {
        glm_detok_t  d;

        glm_detok_init(&d, glm_engine_tokenizer(e));
        d.started = 1;
        for (size_t i = 0; i < t->c[0].n; i++) glm_detok_push(&d, t->c[0].id[i], &s);
        ok(t->c[0].ntext <= s.n && memcmp(s.s, t->c[0].text, t->c[0].ntext) == 0,
           "a blank between prompt and answer stays");
        glm_text_free(&s);
    }
    t_free(t);
    t_free(u);
    glm_encode(glm_engine_tokenizer(e), "file", 4, &ids);
    up[0] = (glm_logit_bias_t) { ids.id[0], 60 };
    t = text(e, "A", 1, 5);
    t->r.echo = 1;
    t->r.bias = up;
    t->r.nbias = 1;
    ok(good(t) && t->c[0].ntext > 1 && t->c[0].text[0] == ' ', "also before the first token");
    glm_ids_free(&ids);
    t_free(t);

    t = scored(e, "x", 2, 0);
    t->seg = (glm_segment_t) { .kind = GLM_SEG_IDS, .ids = one, .n = 1 };
    ok(good(t) && t->prompt.n == 1 && t->prompt.sampled[0].ntop == 0, "one id: nothing precedes it");
    t_free(t);
    t = scored(e, "x", 2, 0);
    t->seg = (glm_segment_t) { .kind = GLM_SEG_IDS, .ids = one, .n = 1 };
    t->r.add_special = 0;
    ok(good(t) && t->prompt.n == 1, "and without [gMASK]");
    t_free(t);

    t = scored(e, "a prompt", 0, 1);
    t->r.mode = GLM_BIDIRECTIONAL;
    ok(refused(t, 400, "mode"), "in the bidirectional mode there are none");
    ok(refused(scored(e, "a [MASK] prompt", 0, 1), 400, "prompt"), "nor with a mask");
    masked[1] = glm_engine_config(e)->mask;
    t = scored(e, "x", 0, 1);
    t->seg = (glm_segment_t) { .kind = GLM_SEG_IDS, .ids = masked, .n = 3 };
    t->r.add_special = 0;
    ok(refused(t, 400, "prompt"), "nor with its id");
    ok(refused(scored(e, "x", 21, 1), 400, "prompt_logprobs"), "more than 20");
}

static void
test_penalties(glm_engine_t *e)
{
    glm_logit_bias_t  bias[3] = { { 300, 3.5f }, { 301, -100 }, { 305, 6 } };
    int32_t           own[40];
    size_t            nown;
    t_req_t          *t = greedy(e, 40);

    ok(defined(t), "no rules: as defined");
    for (int i = 0; i < 4; i++) {
        t = greedy(e, 100);
        t->r.allow = some;                /* few ids, so that they come again */
        t->r.nallow = 30;
        t->r.n = 2;
        if (i == 0) t->r.sample.presence = 1.5f;
        if (i == 1) t->r.sample.frequency = 0.7f;
        if (i == 2) t->r.sample.repetition = 1.8f;
        if (i == 3) {
            t->r.sample.presence = -0.5f;
            t->r.sample.frequency = 0.3f;
            t->r.sample.repetition = 0.9f;
            t->r.bias = bias;
            t->r.nbias = 3;
        }
        ok(defined(t), "penalties, set %d: as defined", i);
    }
    t = text(e, "Where is the file?", 1, 0);
    t->r.want_ids = 1;
    good(t);
    memcpy(own, t->ids, (t->nids - 1) * sizeof(int32_t));
    own[t->nids - 1] = 300;
    nown = t->nids;
    t_free(t);
    t = greedy(e, 20);
    t->r.allow = own;                     /* all were said but one */
    t->r.nallow = nown;
    t->r.sample.repetition = 1.4f;
    ok(defined(t), "the prompt's ids are punished, too");

    t = greedy(e, 60);
    t->r.bias = bias;
    t->r.nbias = 3;
    ok(defined(t), "logit_bias: as defined");
}

static void
test_bans(glm_engine_t *e)
{
    static const glm_stop_t  words[4] = { { "the", 3 }, { "file system", 11 }, { "e", 1 },
                                          { " of course", 10 } };
    static const int32_t     sop_only[2] = { 7812, 7811 };
    t_req_t                 *t = greedy(e, 60);
    glm_logit_bias_t         up[9];
    glm_ids_t                ids = {0};
    int                      n = 0;

    t->r.allow = some;
    t->r.nallow = 5;
    ok(defined(t), "allowed_token_ids: as defined");

    /* Ids of the words are raised, so that they would come. */
    glm_encode(glm_engine_tokenizer(e), "file system", 11, &ids);
    for (; n < 8 && n < (int) ids.n; n++) up[n] = (glm_logit_bias_t) { ids.id[n], 20 };
    up[n++] = (glm_logit_bias_t) { 300, 20 };
    t = greedy(e, 60);
    t->r.bias = up;
    t->r.nbias = (size_t) n;
    ok(ids.n >= 2, "\"file system\" has %zu ids", ids.n);
    good(t);
    {
        int  seen = 0;

        for (size_t i = 0; i + ids.n <= t->c[0].n; i++)
            seen += memcmp(&t->c[0].id[i], ids.id, ids.n * sizeof(int32_t)) == 0;
        ok(seen > 0, "raised, they come %d times", seen);
    }
    t_free(t);
    t = greedy(e, 60);
    t->r.bias = up;
    t->r.nbias = (size_t) n;
    t->r.bad = words;
    t->r.nbad = 4;
    ok(defined(t), "bad_words: as defined");
    glm_ids_free(&ids);

    t = greedy(e, 5);
    t->r.allow = sop_only;
    t->r.nallow = 2;
    ok(good(t) && in(sop_only, 2, t->c[0].id[0]) && t->c[0].ntext == 0,
       "ids without text are picked when the request allows them");
    t_free(t);
}

static void
test_min_tokens(glm_engine_t *e)
{
    glm_logit_bias_t   up[3] = { { 7813, 50 }, { 2, 30 }, { 300, 40 } };
    static const int32_t  stop_ids[2] = { 300, 301 };
    glm_stop_t         any = { "a", 1 };
    t_req_t           *t = greedy(e, 20), *u;

    t->r.ignore_eos = 0;
    t->r.bias = up;
    t->r.nbias = 3;
    t->r.min_tokens = 5;
    ok(good(t) && t->c[0].n == 6 && t->c[0].id[5] == 7813 && t->c[0].fin.nkept == 5
       && t->c[0].fin.reason == GLM_FINISH_STOP && t->c[0].fin.stop_id == -1,
       "min_tokens 5: the end token is the sixth");
    t_free(t);

    t = greedy(e, 20);
    t->r.bias = up + 2;
    t->r.nbias = 1;
    t->r.stop_id = stop_ids;
    t->r.nstop_id = 2;
    t->r.min_tokens = 7;
    u = greedy(e, 20);
    u->r.bias = up + 2;
    u->r.nbias = 1;
    u->r.stop_id = stop_ids;
    u->r.nstop_id = 2;
    u->r.min_tokens = 7;
    u->r.include_stop = 1;
    ok(good(t) && t->c[0].n == 8 && t->c[0].id[7] == 300 && t->c[0].fin.stop_id == 300
       && t->c[0].fin.nkept == 7 && t->c[0].fin.reason == GLM_FINISH_STOP,
       "stop ids as well, and the one that hit is told");
    ok(good(u) && u->c[0].fin.nkept == 8 && u->c[0].ntext > t->c[0].ntext
       && memcmp(u->c[0].text, t->c[0].text, t->c[0].ntext) == 0,
       "its text belongs to the answer with include_stop alone");
    t_free(t);
    t_free(u);

    t = greedy(e, 60);
    t->r.stop = &any;
    t->r.nstop = 1;
    t->r.min_tokens = 10;
    ok(good(t) && t->c[0].n > 10 && t->c[0].fin.reason == GLM_FINISH_STOP
       && memchr(t->c[0].text, 'a', t->c[0].ntext) != NULL,
       "stop strings are none before: %zu tokens", t->c[0].n);
    t_free(t);

    t = greedy(e, 20);
    t->r.bias = up;
    t->r.nbias = 2;
    t->r.min_tokens = 20;
    ok(good(t) && t->c[0].n == 20 && !in(t->c[0].id, 20, 7813),
       "ignore_eos with min_tokens: none before, either");
    t_free(t);
    t = greedy(e, 20);
    t->r.bias = up;
    t->r.nbias = 1;
    ok(good(t) && t->c[0].n == 20 && t->c[0].id[3] == 7813 && t->c[0].ntext == 0,
       "ignore_eos with a bias: end tokens like others, without text");
    t_free(t);
    t = greedy(e, 20);
    t->r.min_tokens = 21;
    ok(refused(t, 400, "min_tokens"), "min_tokens above max_tokens");
}

static void
test_repeat(glm_engine_t *e)
{
    glm_logit_bias_t  up[1] = { { 300, 90 } };
    t_req_t          *t = greedy(e, 50);
    int               bad = 0, hits = 0;

    t->r.bias = up;
    t->r.nbias = 1;
    t->r.repeat = (glm_repeat_t) { 3, 5, 4 };
    ok(good(t) && t->c[0].n == 12 && t->c[0].fin.reason == GLM_FINISH_REPEAT
       && t->c[0].fin.nkept == 12, "three ids four times: ends after %zu", t->c[0].n);
    t_free(t);
    t = greedy(e, 50);
    t->r.bias = up;
    t->r.nbias = 1;
    t->r.repeat = (glm_repeat_t) { 0, 1, 3 };
    t->r.min_tokens = 17;
    ok(good(t) && t->c[0].n == 17, "not before min_tokens");
    t_free(t);

    for (uint64_t seed = 0; seed < 60; seed++) {      /* of two ids: by the definition */
        glm_repeat_t  p = { 1 + (int32_t) seed % 3, 4, 2 + (int32_t) seed % 3 };
        int           end = 0;

        t = text(e, "x", 60, seed);
        t->r.allow = some;
        t->r.nallow = 2;
        t->r.repeat = p;
        bad += !good(t);
        for (int n = 1; n <= (int) t->c[0].n && !end; n++)
            for (int len = p.min_length; len <= p.max_length; len++) {
                int  same_ = len * p.min_count <= n;

                for (int i = n - 1; same_ && i >= n - len * (p.min_count - 1); i--)
                    same_ = t->c[0].id[i] == t->c[0].id[i - len];
                if (same_) end = n;
            }
        bad += t->c[0].fin.reason == GLM_FINISH_REPEAT ? end != (int) t->c[0].n : end != 0;
        hits += end != 0;
        t_free(t);
    }
    ok(bad == 0 && hits > 30, "repetition_detection: as defined, %d of 60 end so", hits);
}

/* ---- what is left ---- */

static void
test_truncate(glm_engine_t *e)
{
    int32_t   max = glm_engine_config(e)->max_seq, *ids = malloc(5000 * sizeof(int32_t));
    int32_t   masked[4] = { 300, 301, glm_engine_config(e)->mask, 302 };
    t_req_t  *t;
    int       bad = 0, keep, n;

    for (int i = 0; i < 5000; i++) ids[i] = 300 + i;
    for (int right = 0; right < 2; right++)
        for (int uni = 0; uni < 2; uni++)
            for (int special = 0; special < 2; special++) {
                int32_t  left = max - 7 - (uni ? 2 * special : 1 + special);
                size_t   at = uni && special ? 1 : 0;

                t = t_new_ids(e, ids, 5000);
                t->r.max_tokens = 7;
                t->r.want_ids = 1;
                t->r.truncate = -1;
                t->r.truncate_right = right;
                t->r.mode = uni ? GLM_UNIDIRECTIONAL : GLM_BIDIRECTIONAL;
                t->r.add_special = special;
                bad += !good(t) || t->nids != (size_t) left + (size_t) special
                       || t->ids[at] != (right ? 300 : 300 + 5000 - left);
                t_free(t);
            }
    ok(bad == 0, "truncate -1: what the model can take, of either side");

    t = t_new_ids(e, ids, 50);
    t->r.want_ids = 1;
    t->r.truncate = 3;
    ok(good(t) && t->nids == 4 && t->ids[0] == 347 && t->ids[2] == 349
       && t->acc.prompt_tokens == 4, "truncate 3: the last three, and [gMASK]");
    t_free(t);
    t = t_new_ids(e, ids, 3);
    t->r.want_ids = 1;
    t->r.truncate = 3;
    ok(good(t) && t->nids == 4 && t->ids[0] == 300, "no more than three stay as they are");
    t_free(t);
    t = t_new_ids(e, masked, 4);
    t->r.want_ids = t->r.truncate_right = 1;
    t->r.truncate = 3;
    ok(good(t) && t->nids == 3, "a mask that is last after the cut gets no eos");
    t_free(t);
    t = text(e, "A [MASK] file", 1, 0);
    t->r.want_ids = 1;
    good(t);
    for (keep = 0; keep < (int) t->nids && t->ids[keep] != masked[2]; keep++) { }
    n = (int) t->nids;
    t_free(t);
    t = text(e, "A [MASK] file", 1, 0);
    t->r.want_ids = t->r.truncate_right = 1;
    t->r.truncate = keep + 1;
    ok(good(t) && keep + 2 < n && (int) t->nids == keep + 1, "nor does one of a text");
    t_free(t);
    t = t_new_ids(e, ids, 3);
    t->r.truncate = -2;
    ok(refused(t, 400, "truncate_prompt_tokens"), "truncate -2");
    t = t_new_ids(e, ids, 3);
    t->r.truncate = -1;
    t->r.max_tokens = max;
    ok(refused(t, 400, "max_tokens"), "no room for any");
    free(ids);
}

static void
test_names(glm_engine_t *e)
{
    static const int32_t  sop_only[1] = { 7812 };
    size_t                n;
    const char           *name = glm_token_name(glm_engine_tokenizer(e), 7812, &n);
    t_req_t              *t = greedy(e, 3);

    t->r.allow = sop_only;
    t->r.nallow = 1;
    t->r.special_text = 1;
    ok(good(t) && t->c[0].ntext == 3 * n && n > 0 && memcmp(t->c[0].text, name, n) == 0,
       "special_text: names of control ids");
    t_free(t);
}

static void
test_priority(void)
{
    glm_engine_t  *e = up(1, 4096, 10);
    t_req_t       *t[5];
    int64_t        priority[5] = { 0, 5, 0, -3, 0 };
    glm_engine_stats_t  st;

    make(e, t, 5);
    t[0]->r.max_tokens = 200;
    t[0]->r.ignore_eos = 1;
    fake_step_ns = 2000000;
    for (int i = 0; i < 5; i++) {
        t[i]->r.priority = priority[i];
        t_submit(t[i]);
        T_UNTIL((glm_engine_stats(e, &st), st.running == 1 && st.waiting == (uint32_t) i));
    }
    fake_step_ns = 0;
    for (int i = 0; i < 5; i++) t_wait(&t[i]->ended, 1);
    ok(t[0]->order < t[3]->order && t[3]->order < t[2]->order && t[2]->order < t[4]->order
       && t[4]->order < t[1]->order, "lower priority first, then by arrival: %d %d %d %d %d",
       t[0]->order, t[1]->order, t[2]->order, t[3]->order, t[4]->order);
    for (int i = 0; i < 5; i++) t_free(t[i]);
    down(e, "priority");
}

static void
test_score_ids(glm_engine_t *e)
{
    static const int32_t  ids[3] = { 900, 300, 7813 };
    t_req_t              *t = greedy(e, 10), *u = greedy(e, 10);
    int                   bad;

    t->r.want_ids = 1;
    t->r.sample.nlogprobs = u->r.sample.nlogprobs = 0;
    t->r.score_id = ids;
    t->r.nscore_id = 3;
    bad = !good(t) || !good(u);
    for (size_t i = 0; i < t->c[0].n && !bad; i++) {
        const glm_sampled_t  *s = &t->c[0].sampled[i];
        int32_t               in_[100];
        int32_t               n = 0;

        for (; n < (int32_t) t->nids; n++) in_[n] = t->ids[n];
        in_[n++] = glm_engine_config(e)->sop;
        for (size_t k = 0; k < i; k++) in_[n++] = t->c[0].id[k];
        bad = s->ntop != 3 || s->logprob != u->c[0].sampled[i].logprob;
        for (int k = 0; k < 3; k++) {
            bad = bad || !in(ids, 3, s->top[k].id)
                  || s->top[k].logprob
                     != said_of(in_, n, s->top[k].id, glm_engine_config(e)->vocab).logprob;
            bad = bad || (k > 0 && s->top[k].logprob > s->top[k - 1].logprob);
        }
    }
    ok(!bad, "logprob_token_ids: these, best first");
    t_free(t);
    t_free(u);
    t = greedy(e, 1);
    t->r.score_id = ids;
    t->r.nscore_id = 3;
    ok(refused(t, 400, "logprob_token_ids"), "not without logprobs");
}

#define REFUSED(param, ...)                                                       \
    do {                                                                          \
        t_req_t  *t_ = greedy(e, 5);                                              \
        glm_req_t *r = &t_->r;                                                    \
        __VA_ARGS__;                                                              \
        ok(refused(t_, 400, param), "%s: %s", param, #__VA_ARGS__);               \
    } while (0)

static void
test_refusals(glm_engine_t *e)
{
    static const int32_t  out[2] = { 5, 1 << 20 }, end[1] = { 300 };
    glm_logit_bias_t      b = { 5, 100.5f }, c = { -1, 1 }, d = { 5, NAN };
    glm_stop_t            empty = { "", 0 };

    REFUSED("presence_penalty", r->sample.presence = 2.5f);
    REFUSED("presence_penalty", r->sample.presence = NAN);
    REFUSED("frequency_penalty", r->sample.frequency = -2.5f);
    REFUSED("repetition_penalty", r->sample.repetition = -1);
    REFUSED("repetition_penalty", r->sample.repetition = INFINITY);
    REFUSED("min_tokens", r->min_tokens = -1);
    REFUSED("allowed_token_ids", r->allow = out; r->nallow = 0);
    REFUSED("allowed_token_ids", r->allow = out; r->nallow = 2);
    REFUSED("stop_token_ids", r->stop_id = out; r->nstop_id = 2);
    REFUSED("logit_bias", r->bias = &b; r->nbias = 1);
    REFUSED("logit_bias", r->bias = &c; r->nbias = 1);
    REFUSED("logit_bias", r->bias = &d; r->nbias = 1);
    REFUSED("bad_words", r->bad = &empty; r->nbad = 1);
    REFUSED("repetition_detection", r->repeat.max_length = 3);
    REFUSED("repetition_detection", r->repeat = ((glm_repeat_t) { 4, 3, 2 }));
    REFUSED("repetition_detection", r->repeat = ((glm_repeat_t) { 1, 1025, 2 }));
    REFUSED("allowed_token_ids", r->allow = end; r->nallow = 1; r->stop_id = end;
            r->nstop_id = 1; r->min_tokens = 2);
}

int
main(void)
{
    glm_engine_t  *e;

    if (access("models/demo/config.json", R_OK) != 0) skip_all("no demo model");
    for (int i = 0; i < 400; i++) some[i] = 300 + i;
    test_scored();
    test_priority();
    e = up(4, 4096, 100);
    test_penalties(e);
    test_bans(e);
    test_min_tokens(e);
    test_repeat(e);
    test_refusals(e);
    test_echo(e);
    test_truncate(e);
    test_names(e);
    test_score_ids(e);
    down(e, "fields");
    return tap_done();
}
