/*
 * wire_decode: see wire_decode.h.
 */
#include "wire_decode_impl.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "utf8.h"


/* ---- the two ways to say no ---- */

int
glm_wd_nonsense(glm_decode_t *d, const char *fmt, ...)
{
    va_list  ap;

    va_start(ap, fmt);
    vsnprintf(d->why->text, sizeof(d->why->text), fmt, ap);
    va_end(ap);
    return GLM_EINVAL;
}

int
glm_wd_refuse(glm_decode_t *d, int status, const char *param, const char *fmt, ...)
{
    va_list         ap;
    glm_refusal_t  *why = d->why;

    why->status = status;
    snprintf(why->code, sizeof(why->code), "%s", status == 501 ? "not_implemented" : "");
    snprintf(why->param, sizeof(why->param), "%s", param);
    va_start(ap, fmt);
    vsnprintf(why->text, sizeof(why->text), fmt, ap);
    va_end(ap);
    return GLM_ELIMIT;
}

static int
later(glm_decode_t *d, const char *param)
{
    return glm_wd_refuse(d, 501, param, "%s is not supported by this engine", param);
}

/* A number outside lo .. hi. */
int
glm_wd_range(glm_decode_t *d, const char *param, int64_t value, int64_t lo, int64_t hi)
{
    d->why->value = value;
    d->why->limit = value < lo ? lo : hi;
    return glm_wd_refuse(d, 400, param, "%s must be between %lld and %lld, it is %lld", param,
                         (long long) lo, (long long) hi, (long long) value);
}

/* ---- structures ---- */

int
glm_wire_fixed(void *dst, size_t known, const uint8_t *src, size_t avail, size_t *used)
{
    size_t    i;
    uint32_t  size;

    if (avail < 8) return GLM_EINVAL;
    memcpy(&size, src, sizeof(size));
    if (size < 8 || size > avail || size % GLM_WIRE_ALIGN) return GLM_EINVAL;

    memset(dst, 0, known);
    memcpy(dst, src, size < known ? size : known);
    for (i = known; i < size; i++) {
        if (src[i] != 0) return GLM_ELIMIT;
    }
    *used = size;
    return 0;
}

int
glm_wd_fixed(glm_decode_t *d, void *dst, size_t known, const uint8_t *src, size_t avail,
             size_t *used, const char *what)
{
    int  rc = glm_wire_fixed(dst, known, src, avail, used);

    if (rc == GLM_EINVAL) return glm_wd_nonsense(d, "%s of a wrong size", what);
    if (rc == GLM_ELIMIT) {
        return glm_wd_refuse(d, 501, "", "%s has fields that this engine does not know", what);
    }
    return 0;
}

int
glm_wire_decode_window(const uint8_t *msg, size_t len, uint64_t *bytes)
{
    size_t            used;
    glm_msg_window_t  w;

    if (glm_wire_fixed(&w, sizeof(w), msg, len, &used) != 0) return GLM_EINVAL;
    if (w.reserved != 0 || used != len) return GLM_EINVAL;
    *bytes = w.bytes;
    return 0;
}

int
glm_wire_decode_empty(const uint8_t *msg, size_t len)
{
    size_t  i;

    for (i = 0; i < len; i++) {
        if (msg[i] != 0) return GLM_EINVAL;
    }
    return 0;
}

/* A fraction outside lo .. hi. */
int
glm_wd_interval(glm_decode_t *d, const char *param, float x, int lo, int hi)
{
    if (x >= (float) lo && x <= (float) hi) return 0;      /* NaN is neither */
    d->why->value = (int64_t) (x >= -1e9f && x <= 1e9f ? x : 0);
    d->why->limit = x < (float) lo ? lo : hi;
    return glm_wd_refuse(d, 400, param, "%s must be between %d and %d, it is %g", param, lo, hi,
                         (double) x);
}

int
glm_wd_ids(glm_decode_t *d, const char *param, const int32_t *ids, size_t n)
{
    size_t  i;

    for (i = 0; i < n; i++) {
        if (ids[i] >= 0 && ids[i] < d->lim->vocab) continue;
        d->why->value = ids[i];
        d->why->limit = d->lim->vocab - 1;
        return glm_wd_refuse(d, 400, param,
                             "token id %d is not in the vocabulary: ids are 0 to %d", ids[i],
                             d->lim->vocab - 1);
    }
    return 0;
}

/* ---- prompt ---- */

static const char *
prompt_param(const glm_decode_t *d)
{
    return d->m.op == GLM_SUBMIT_DETOKENIZE ? "tokens" : "prompt";
}

static int
add_segment(glm_decode_t *d, glm_segment_t seg)
{
    size_t          cap;
    glm_segment_t  *p;

    if (seg.n == 0) return 0;
    if (d->nseg == GLM_WIRE_MAX_SEGMENTS) {
        d->why->limit = GLM_WIRE_MAX_SEGMENTS;
        return glm_wd_refuse(d, 400, prompt_param(d), "the prompt has more than %d parts",
                             GLM_WIRE_MAX_SEGMENTS);
    }
    if (d->nseg == d->segcap) {
        cap = d->segcap ? d->segcap * 2 : 4;
        p = realloc(d->out->seg, cap * sizeof(*p));
        if (p == NULL) return GLM_ENOMEM;
        d->out->seg = p;
        d->segcap = cap;
    }
    d->out->seg[d->nseg++] = seg;
    return 0;
}

static int
prompt_text(glm_decode_t *d, glm_seg_kind_t kind, const uint8_t *p, size_t n)
{
    size_t  good = glm_utf8_valid((const char *) p, n);

    if (good != n) {
        return glm_wd_refuse(d, 400, prompt_param(d), "the text is not valid UTF-8 at byte %zu",
                             good);
    }
    return add_segment(d, (glm_segment_t) { .kind = kind, .text = (const char *) p, .n = n });
}

static int
prompt_ids(glm_decode_t *d, const uint8_t *p, size_t n)
{
    int             rc;
    const int32_t  *ids = (const int32_t *) (const void *) p;   /* 8-byte aligned */

    if (n % sizeof(int32_t)) return glm_wd_nonsense(d, "ids of %zu bytes", n);
    n /= sizeof(int32_t);
    rc = glm_wd_ids(d, prompt_param(d), ids, n);
    if (rc != 0) return rc;
    return add_segment(d, (glm_segment_t) { .kind = GLM_SEG_IDS, .ids = ids, .n = n });
}

/* ---- sections ---- */

/* Sections of later features, by the field that they come from. */
static const char *
later_param(uint16_t type, const uint8_t *p, size_t n)
{
    glm_sec_grammar_t  g = {0};

    switch (type) {
    case GLM_SEC_RESUME:    return "resume";
    case GLM_SEC_GRAMMAR:
        memcpy(&g, p, n < sizeof(g) ? n : sizeof(g));
        return g.kind == 1 || g.kind == 2 ? "response_format" : "structured_outputs";
    default:                return NULL;
    }
}

static int
sampling(glm_decode_t *d, const uint8_t *p, size_t n)
{
    int     rc;
    size_t  used;

    rc = glm_wd_fixed(d, &d->s, sizeof(d->s), p, n, &used, "the sampling section");
    if (rc != 0) return rc;
    if (used != n) return glm_wd_nonsense(d, "bytes after the sampling structure");
    if (d->s.reserved != 0 || (d->s.flags & ~(uint32_t) GLM_SAMPLING_SEED)) {
        return glm_wd_refuse(d, 501, "",
                             "the sampling section has flags that this engine does not know");
    }
    return 0;
}

static int
section(glm_decode_t *d, const glm_sec_t *sec, const uint8_t *p)
{
    const char  *param;

    switch (sec->type) {
    case GLM_SEC_TEXT:     return prompt_text(d, GLM_SEG_TEXT, p, sec->size);
    case GLM_SEC_PLAIN:    return prompt_text(d, GLM_SEG_PLAIN, p, sec->size);
    case GLM_SEC_IDS:      return prompt_ids(d, p, sec->size);
    case GLM_SEC_SAMPLING: return sampling(d, p, sec->size);
    case GLM_SEC_STOPS:    return glm_wd_stops(d, p, sec->size);
    case GLM_SEC_STOP_IDS: return glm_wd_stop_ids(d, p, sec->size);
    case GLM_SEC_BIAS:     return glm_wd_biases(d, p, sec->size);
    case GLM_SEC_ALLOW:    return glm_wd_allowed_ids(d, p, sec->size);
    case GLM_SEC_BAD:      return glm_wd_bad_words(d, p, sec->size);
    case GLM_SEC_SCORE_IDS: return glm_wd_score_ids(d, p, sec->size);
    case GLM_SEC_REPEAT:   return glm_wd_repeat(d, p, sec->size);
    case GLM_SEC_SUFFIX:   return glm_wd_suffix(d, p, sec->size);
    case GLM_SEC_CHOICES:  return glm_wd_choices(d, p, sec->size);
    case GLM_SEC_USER:     return 0;
    }

    param = later_param(sec->type, p, sec->size);
    if (param != NULL) {
        /* an empty list is what a client has that never heard of the field */
        if (sec->size == 0) return 0;
        return later(d, param);
    }
    if (sec->flags & GLM_SEC_CRITICAL) {
        return glm_wd_refuse(d, 501, "", "section %u is not supported by this engine", sec->type);
    }
    return 0;
}

static int
section_head(glm_decode_t *d, const glm_sec_t *sec, size_t room)
{
    if (sec->size > room) return glm_wd_nonsense(d, "section %u longer than its message",
                                                 sec->type);
    if (sec->flags & ~GLM_SEC_CRITICAL) {
        return glm_wd_refuse(d, 501, "", "section %u has flags that this engine does not know",
                             sec->type);
    }
    if (sec->type < GLM_SEC_SAMPLING || sec->type >= 64) return 0;   /* may repeat */
    if (d->seen & ((uint64_t) 1 << sec->type)) {
        return glm_wd_nonsense(d, "section %u comes twice", sec->type);
    }
    d->seen |= (uint64_t) 1 << sec->type;
    return 0;
}

static int
sections(glm_decode_t *d, const uint8_t *msg, size_t len, size_t at)
{
    int        rc;
    size_t     padded;
    glm_sec_t  sec;

    while (at < len) {
        if (len - at < sizeof(sec)) return glm_wd_nonsense(d, "a section that is cut");
        memcpy(&sec, msg + at, sizeof(sec));
        at += sizeof(sec);
        rc = section_head(d, &sec, len - at);
        if (rc == 0) rc = section(d, &sec, msg + at);
        if (rc != 0) return rc;
        padded = ((size_t) sec.size + 7) & ~(size_t) 7;
        if (padded >= len - at) break;   /* the last one may lack its padding */
        at += padded;
    }
    return 0;
}

/* ---- fields ---- */

static int
check_flags(glm_decode_t *d)
{
    uint32_t  f = d->m.flags;

    if (f & ~(uint32_t) GLM_F_ALL) {
        return glm_wd_refuse(d, 501, "", "the request has flags that this engine does not know");
    }
    return 0;
}

/* Alone it is refused for its group's size, or each would wait for the others. */
static int
check_group(glm_decode_t *d)
{
    uint32_t  count = d->m.group_count ? d->m.group_count : 1;

    d->out->group_count = 1;
    if (d->m.group_index >= count) return glm_wd_nonsense(d, "a group index beyond its group");
    if (count > 1 && d->m.op != GLM_SUBMIT_GENERATE && d->m.op != GLM_SUBMIT_SCORE) {
        return glm_wd_nonsense(d, "a group of no prompts");
    }
    if (count > GLM_WIRE_MAX_GROUP) {
        d->why->value = count;
        d->why->limit = GLM_WIRE_MAX_GROUP;
        return glm_wd_refuse(d, 400, "prompt", "a request may have %d prompts, this one has %u",
                             GLM_WIRE_MAX_GROUP, count);
    }
    d->out->group = d->m.group;
    d->out->group_index = d->m.group_index;
    d->out->group_count = count;
    return 0;
}

static int
check_submit(glm_decode_t *d)
{
    const glm_msg_submit_t  *m = &d->m;

    if (m->reserved0 || m->reserved1 || m->reserved2) {
        return glm_wd_refuse(d, 501, "", "the request has reserved fields that are set");
    }
    if (m->op < GLM_SUBMIT_GENERATE || m->op > GLM_SUBMIT_DETOKENIZE) {
        return glm_wd_refuse(d, 501, "", "operation %u is not supported by this engine", m->op);
    }
    if (m->mode > 1) return glm_wd_refuse(d, 501, "mode", "mode %u is not supported", m->mode);

    if (m->n > d->lim->max_n) return glm_wd_range(d, "n", m->n, 1, d->lim->max_n);
    if (m->best_of != 0 && (m->best_of < m->n || m->best_of > d->lim->max_n)) {
        return glm_wd_range(d, "best_of", m->best_of, m->n, d->lim->max_n);
    }
    if (m->truncate < -1) {
        return glm_wd_range(d, "truncate_prompt_tokens", m->truncate, -1, INT32_MAX);
    }
    if (m->max_tokens < -1) return glm_wd_range(d, "max_tokens", m->max_tokens, -1, INT32_MAX);
    return check_flags(d);
}

/* Beams of the search, or 0: use_beam_search alone makes as many as choices. */
static uint32_t
beams(const glm_decode_t *d)
{
    uint32_t  n = d->s.beams;

    if (n == 0 && (d->m.flags & GLM_F_BEAM)) n = d->m.n;
    return n > 1 ? n : 0;
}

/* What they may be beside other fields is the engine's to say. */
static int
check_beams(glm_decode_t *d)
{
    const glm_sec_sampling_t  *s = &d->s;

    if (beams(d) > GLM_MAX_BEAMS) return glm_wd_range(d, "num_beams", beams(d), 1, GLM_MAX_BEAMS);
    if (!isfinite(s->length_penalty)) {
        return glm_wd_refuse(d, 400, "length_penalty", "length_penalty must be a number");
    }
    if (s->no_repeat_ngram > INT32_MAX) {
        return glm_wd_range(d, "no_repeat_ngram_size", s->no_repeat_ngram, 0, INT32_MAX);
    }
    if (s->no_repeat_ngram != 0 && beams(d) == 0) {
        return glm_wd_refuse(d, 400, "no_repeat_ngram_size",
                             "no_repeat_ngram_size needs a beam search: num_beams above 1");
    }
    return 0;
}

/* penalties and what else changes single ids */
static int
check_rules(glm_decode_t *d)
{
    int                        rc;
    const glm_sec_sampling_t  *s = &d->s;

    if ((rc = glm_wd_interval(d, "presence_penalty", s->presence, -2, 2)) != 0) return rc;
    if ((rc = glm_wd_interval(d, "frequency_penalty", s->frequency, -2, 2)) != 0) return rc;
    if (!isfinite(s->repetition) || s->repetition < 0) {
        return glm_wd_refuse(d, 400, "repetition_penalty",
                             "repetition_penalty must be a number above 0");
    }
    if (d->out->req.nscore_id > 0 && s->logprobs < 0) {
        return glm_wd_refuse(d, 400, "logprob_token_ids", "logprob_token_ids needs logprobs");
    }
    if (s->min_tokens < 0) return glm_wd_range(d, "min_tokens", s->min_tokens, 0, INT32_MAX);
    if (d->m.max_tokens >= 0 && s->min_tokens > d->m.max_tokens) {
        return glm_wd_range(d, "min_tokens", s->min_tokens, 0, d->m.max_tokens);
    }
    return 0;
}

static int
check_sampling(glm_decode_t *d)
{
    int                        rc;
    const glm_sec_sampling_t  *s = &d->s;

    rc = check_beams(d);
    if (rc != 0) return rc;
    if (!isfinite(s->temperature) || s->temperature < 0) {
        return glm_wd_refuse(d, 400, "temperature", "temperature must be a number not below 0");
    }
    if ((rc = glm_wd_interval(d, "top_p", s->top_p, 0, 1)) != 0) return rc;
    if ((rc = glm_wd_interval(d, "min_p", s->min_p, 0, 1)) != 0) return rc;
    if (s->top_k < 0) return glm_wd_range(d, "top_k", s->top_k, 0, INT32_MAX);
    if (s->logprobs < -1 || s->logprobs > d->lim->max_logprobs) {
        return glm_wd_range(d, "logprobs", s->logprobs, -1, d->lim->max_logprobs);
    }
    if (s->prompt_logprobs < -1 || s->prompt_logprobs > d->lim->max_logprobs) {
        return glm_wd_range(d, "prompt_logprobs", s->prompt_logprobs, -1, d->lim->max_logprobs);
    }
    return check_rules(d);
}

/* A score may have the mask alone as its context, a suffix nothing before its mask. */
static int
may_be_empty(const glm_decode_t *d)
{
    return d->m.op == GLM_SUBMIT_TOKENIZE || d->m.op == GLM_SUBMIT_SCORE
           || d->out->req.nsuffix > 0;
}

/* What an operation needs of its prompt, beyond what any prompt needs. */
static int
check_prompt(glm_decode_t *d)
{
    size_t  i;

    if (d->m.op == GLM_SUBMIT_SCORE && d->out->req.nchoice == 0) {
        return glm_wd_refuse(d, 400, "choices", "choices is empty");
    }
    if (d->nseg == 0 && !may_be_empty(d)) {
        return glm_wd_refuse(d, 400, prompt_param(d), "%s is empty", prompt_param(d));
    }
    for (i = 0; i < d->nseg; i++) {
        if (d->m.op == GLM_SUBMIT_DETOKENIZE && d->out->seg[i].kind != GLM_SEG_IDS) {
            return glm_wd_refuse(d, 400, "tokens", "tokens must be ids");
        }
        if (d->m.op == GLM_SUBMIT_TOKENIZE && d->out->seg[i].kind == GLM_SEG_IDS) {
            return glm_wd_refuse(d, 400, "prompt", "prompt must be text");
        }
    }
    if (d->m.op == GLM_SUBMIT_DETOKENIZE && d->nseg != 1) {
        return glm_wd_refuse(d, 400, "tokens", "tokens must be one list");
    }
    return 0;
}

static glm_op_t
operation(uint8_t op)
{
    switch (op) {
    case GLM_SUBMIT_INFILL:     return GLM_OP_INFILL;
    case GLM_SUBMIT_SCORE:      return GLM_OP_SCORE;
    case GLM_SUBMIT_TOKENIZE:   return GLM_OP_TOKENIZE;
    case GLM_SUBMIT_DETOKENIZE: return GLM_OP_DETOKENIZE;
    default:                    return GLM_OP_GENERATE;
    }
}

static void
fill(glm_decode_t *d)
{
    glm_submit_t  *out = d->out;
    glm_req_t     *r = &out->req;
    uint32_t       f = d->m.flags;

    r->op = operation(d->m.op);
    r->seg = out->seg;
    r->nseg = d->nseg;
    r->add_special = (f & GLM_F_ADD_SPECIAL) != 0;
    r->mode = d->m.mode ? GLM_UNIDIRECTIONAL : GLM_BIDIRECTIONAL;
    r->n = d->m.n ? (int32_t) d->m.n : 1;
    r->best_of = (int32_t) d->m.best_of;
    r->max_tokens = d->m.max_tokens;
    r->truncate = d->m.truncate;
    r->truncate_right = (f & GLM_F_TRUNCATE_RIGHT) != 0;
    r->special_text = (f & GLM_F_SPECIAL_TEXT) != 0;
    r->priority = d->m.priority;
    r->ignore_eos = (f & GLM_F_IGNORE_EOS) != 0;
    r->include_stop = (f & GLM_F_INCLUDE_STOP) != 0;
    r->hold = (f & GLM_F_HOLD) != 0;
    r->want_ids = (f & GLM_F_PROMPT_IDS) != 0;
    r->echo = (f & GLM_F_ECHO) != 0;
    r->want_text = (f & (GLM_F_ECHO | GLM_F_PROMPT_TEXT)) != 0;
    r->want_prompt_logprobs = d->s.prompt_logprobs >= 0;
    r->nprompt_logprobs = r->want_prompt_logprobs ? d->s.prompt_logprobs : 0;
    r->stop = out->stop;
    r->nstop = d->nstop;
    r->bad = out->bad;
    r->min_tokens = d->s.min_tokens;
    r->gmask = (f & GLM_F_GMASK) != 0;
    r->count_positions = (f & GLM_F_COUNT_POSITIONS) != 0;
    r->choice = out->choice;
    r->beams = (int32_t) beams(d);
    r->length_penalty = d->s.length_penalty;
    r->no_repeat_ngram = (int32_t) d->s.no_repeat_ngram;
    r->has_seed = (d->s.flags & GLM_SAMPLING_SEED) != 0;
    r->sample = (glm_sample_t) {
        .temperature = d->s.temperature, .top_k = d->s.top_k, .top_p = d->s.top_p,
        .min_p = d->s.min_p, .seed = d->s.seed, .nlogprobs = d->s.logprobs,
        .presence = d->s.presence, .frequency = d->s.frequency, .repetition = d->s.repetition,
    };
    out->window = d->m.window;
    out->deadline_us = d->m.deadline;
    out->token_strs = (f & GLM_F_TOKEN_STRS) != 0;
    out->eos_text = (f & GLM_F_EOS_TEXT) != 0;
}

int
glm_wire_decode_submit(glm_submit_t *out, uint8_t *msg, size_t len,
    const glm_decode_limits_t *lim, glm_refusal_t *why)
{
    int       rc;
    size_t    used = 0;
    glm_decode_t  d = { .out = out, .lim = lim, .why = why };

    memset(out, 0, sizeof(*out));
    memset(why, 0, sizeof(*why));
    out->msg = msg;
    d.s.logprobs = -1;
    d.s.prompt_logprobs = -1;

    rc = glm_wd_fixed(&d, &d.m, sizeof(d.m), msg, len, &used, "the request");
    if (rc == 0) rc = check_group(&d);
    if (rc == 0) rc = check_submit(&d);
    if (rc == 0) rc = sections(&d, msg, len, used);
    if (rc == 0) rc = check_sampling(&d);
    if (rc == 0) rc = check_prompt(&d);
    if (rc == 0) fill(&d);
    return rc;
}

void
glm_submit_free(glm_submit_t *s)
{
    free(s->msg);
    free(s->seg);
    free(s->stop);
    free(s->bad);
    free(s->choice);
    s->msg = NULL;
    s->seg = NULL;
    s->stop = NULL;
    s->bad = NULL;
    s->choice = NULL;
}
