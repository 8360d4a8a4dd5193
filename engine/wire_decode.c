/*
 * wire_decode: see wire_decode.h.
 */
#include "wire_decode.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "utf8.h"

typedef struct {
    glm_submit_t               *out;
    const glm_decode_limits_t  *lim;
    glm_refusal_t              *why;
    glm_msg_submit_t            m;
    glm_sec_sampling_t          s;
    uint64_t                    seen;     /* bits of section types that come once */
    size_t                      nseg, segcap;
    size_t                      nstop;
} decode_t;

/* ---- the two ways to say no ---- */

__attribute__((format(printf, 2, 3)))
static int
nonsense(decode_t *d, const char *fmt, ...)
{
    va_list  ap;

    va_start(ap, fmt);
    vsnprintf(d->why->text, sizeof(d->why->text), fmt, ap);
    va_end(ap);
    return GLM_EINVAL;
}

__attribute__((format(printf, 4, 5)))
static int
refuse(decode_t *d, int status, const char *param, const char *fmt, ...)
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
later(decode_t *d, const char *param)
{
    return refuse(d, 501, param, "%s is not supported by this engine", param);
}

/* A number outside lo .. hi. */
static int
range(decode_t *d, const char *param, int64_t value, int64_t lo, int64_t hi)
{
    d->why->value = value;
    d->why->limit = value < lo ? lo : hi;
    return refuse(d, 400, param, "%s must be between %lld and %lld, it is %lld", param,
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

static int
fixed(decode_t *d, void *dst, size_t known, const uint8_t *src, size_t avail, size_t *used,
    const char *what)
{
    int  rc = glm_wire_fixed(dst, known, src, avail, used);

    if (rc == GLM_EINVAL) return nonsense(d, "%s of a wrong size", what);
    if (rc == GLM_ELIMIT) {
        return refuse(d, 501, "", "%s has fields that this engine does not know", what);
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
static int
interval(decode_t *d, const char *param, float x, int lo, int hi)
{
    if (x >= (float) lo && x <= (float) hi) return 0;      /* NaN is neither */
    d->why->value = (int64_t) (x >= -1e9f && x <= 1e9f ? x : 0);
    d->why->limit = x < (float) lo ? lo : hi;
    return refuse(d, 400, param, "%s must be between %d and %d, it is %g", param, lo, hi,
                  (double) x);
}

static int
check_ids(decode_t *d, const char *param, const int32_t *ids, size_t n)
{
    size_t  i;

    for (i = 0; i < n; i++) {
        if (ids[i] >= 0 && ids[i] < d->lim->vocab) continue;
        d->why->value = ids[i];
        d->why->limit = d->lim->vocab - 1;
        return refuse(d, 400, param, "token id %d is not in the vocabulary: ids are 0 to %d",
                      ids[i], d->lim->vocab - 1);
    }
    return 0;
}

/* ---- prompt ---- */

static const char *
prompt_param(const decode_t *d)
{
    return d->m.op == GLM_SUBMIT_DETOKENIZE ? "tokens" : "prompt";
}

static int
add_segment(decode_t *d, glm_segment_t seg)
{
    size_t          cap;
    glm_segment_t  *p;

    if (seg.n == 0) return 0;
    if (d->nseg == GLM_WIRE_MAX_SEGMENTS) {
        d->why->limit = GLM_WIRE_MAX_SEGMENTS;
        return refuse(d, 400, prompt_param(d), "the prompt has more than %d parts",
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
prompt_text(decode_t *d, glm_seg_kind_t kind, const uint8_t *p, size_t n)
{
    size_t  good = glm_utf8_valid((const char *) p, n);

    if (good != n) {
        return refuse(d, 400, prompt_param(d), "the text is not valid UTF-8 at byte %zu", good);
    }
    return add_segment(d, (glm_segment_t) { .kind = kind, .text = (const char *) p, .n = n });
}

static int
prompt_ids(decode_t *d, const uint8_t *p, size_t n)
{
    int             rc;
    const int32_t  *ids = (const int32_t *) (const void *) p;   /* 8-byte aligned */

    if (n % sizeof(int32_t)) return nonsense(d, "ids of %zu bytes", n);
    n /= sizeof(int32_t);
    rc = check_ids(d, prompt_param(d), ids, n);
    if (rc != 0) return rc;
    return add_segment(d, (glm_segment_t) { .kind = GLM_SEG_IDS, .ids = ids, .n = n });
}

/* ---- lists ---- */

/* A list of strings under construction. */
typedef struct {
    const char   *param;
    uint32_t      max;
    glm_stop_t  **list;
    size_t       *n;
} strings_t;

static int
add_string(decode_t *d, const strings_t *l, const uint8_t *p, uint32_t n)
{
    if (n == 0) return refuse(d, 400, l->param, "a string of %s is empty", l->param);
    if (glm_utf8_valid((const char *) p, n) != n) {
        return refuse(d, 400, l->param, "a string of %s is not valid UTF-8", l->param);
    }
    if (*l->n == l->max) {
        d->why->limit = l->max;
        return refuse(d, 400, l->param, "%s has more than %u strings", l->param, l->max);
    }
    if (*l->list == NULL) {
        *l->list = calloc(l->max, sizeof(glm_stop_t));
        if (*l->list == NULL) return GLM_ENOMEM;
    }
    (*l->list)[(*l->n)++] = (glm_stop_t) { .s = (const char *) p, .n = n };
    return 0;
}

static int
strings(decode_t *d, const strings_t *l, const uint8_t *p, size_t n)
{
    int        rc;
    size_t     at, padded;
    glm_str_t  str;

    for (at = 0; at < n; at += padded) {
        if (n - at < sizeof(str)) return nonsense(d, "a string list that is cut");
        memcpy(&str, p + at, sizeof(str));
        at += sizeof(str);
        padded = ((size_t) str.size + 3) & ~(size_t) 3;
        if (str.size > n - at) return nonsense(d, "a string longer than its list");
        rc = add_string(d, l, p + at, str.size);
        if (rc != 0) return rc;
        if (padded > n - at) break;      /* the last one may lack its padding */
    }
    return 0;
}

static int
stops(decode_t *d, const uint8_t *p, size_t n)
{
    const strings_t  l = { "stop", d->lim->max_stops, &d->out->stop, &d->nstop };

    return strings(d, &l, p, n);
}

static int
bad_words(decode_t *d, const uint8_t *p, size_t n)
{
    const strings_t  l = { "bad_words", GLM_MAX_LIST, &d->out->bad, &d->out->req.nbad };

    return strings(d, &l, p, n);
}

static int
too_many(decode_t *d, const char *param, size_t n, size_t max)
{
    d->why->value = (int64_t) n;
    d->why->limit = (int64_t) max;
    return refuse(d, 400, param, "%s has %zu entries, and may have %zu", param, n, max);
}

/* Ids of a field; *list points into the message. */
static int
id_list(decode_t *d, const char *param, size_t max, const uint8_t *p, size_t n,
    const int32_t **list, size_t *count)
{
    if (n % sizeof(int32_t)) return nonsense(d, "ids of %zu bytes", n);
    *list = (const int32_t *) (const void *) p;      /* 8-byte aligned */
    *count = n / sizeof(int32_t);
    if (*count > max) return too_many(d, param, *count, max);
    return check_ids(d, param, *list, *count);
}

static int
stop_ids(decode_t *d, const uint8_t *p, size_t n)
{
    return id_list(d, "stop_token_ids", GLM_MAX_LIST, p, n, &d->out->req.stop_id,
                   &d->out->req.nstop_id);
}

static int
score_ids(decode_t *d, const uint8_t *p, size_t n)
{
    return id_list(d, "logprob_token_ids", GLM_MAX_LOGPROBS, p, n, &d->out->req.score_id,
                   &d->out->req.nscore_id);
}

/* None allowed is something else than any allowed. */
static int
allowed_ids(decode_t *d, const uint8_t *p, size_t n)
{
    if (n == 0) return refuse(d, 400, "allowed_token_ids", "allowed_token_ids is empty");
    return id_list(d, "allowed_token_ids", (size_t) d->lim->vocab, p, n, &d->out->req.allow,
                   &d->out->req.nallow);
}

_Static_assert(sizeof(glm_bias_t) == sizeof(glm_logit_bias_t)
               && offsetof(glm_bias_t, bias) == offsetof(glm_logit_bias_t, bias),
               "biases are used as they lie in the message");

static int
biases(decode_t *d, const uint8_t *p, size_t n)
{
    int                      rc;
    size_t                   i;
    const glm_logit_bias_t  *b = (const glm_logit_bias_t *) (const void *) p;

    if (n % sizeof(*b)) return nonsense(d, "biases of %zu bytes", n);
    n /= sizeof(*b);
    if (n > GLM_MAX_LIST) return too_many(d, "logit_bias", n, GLM_MAX_LIST);
    for (i = 0; i < n; i++) {
        rc = check_ids(d, "logit_bias", &b[i].id, 1);
        if (rc != 0) return rc;
        rc = interval(d, "logit_bias", b[i].bias, -100, 100);
        if (rc != 0) return rc;
    }
    d->out->req.bias = b;
    d->out->req.nbias = n;
    return 0;
}

static int
repeat(decode_t *d, const uint8_t *p, size_t n)
{
    int               rc;
    size_t            used;
    glm_sec_repeat_t  r;
    const char       *param = "repetition_detection";

    if (n == 0) return 0;
    rc = fixed(d, &r, sizeof(r), p, n, &used, "the repetition section");
    if (rc != 0) return rc;
    if (used != n) return nonsense(d, "bytes after the repetition structure");
    if (r.max_length == 0) return 0;
    if (r.max_length > GLM_MAX_REPEAT) return range(d, param, r.max_length, 1, GLM_MAX_REPEAT);
    if (r.min_length > r.max_length) return range(d, param, r.min_length, 0, r.max_length);
    if (r.min_count < 2 || r.min_count > INT32_MAX) {
        return range(d, param, r.min_count, 2, INT32_MAX);
    }
    d->out->req.repeat = (glm_repeat_t) {
        .min_length = (int32_t) r.min_length, .max_length = (int32_t) r.max_length,
        .min_count = (int32_t) r.min_count,
    };
    return 0;
}

/* ---- sections ---- */

/* Sections of later features, by the field that they come from. */
static const char *
later_param(uint16_t type, const uint8_t *p, size_t n)
{
    glm_sec_grammar_t  g = {0};

    switch (type) {
    case GLM_SEC_CHOICES:   return "choices";
    case GLM_SEC_RESUME:    return "resume";
    case GLM_SEC_SUFFIX:    return "suffix";
    case GLM_SEC_GRAMMAR:
        memcpy(&g, p, n < sizeof(g) ? n : sizeof(g));
        return g.kind == 1 || g.kind == 2 ? "response_format" : "structured_outputs";
    default:                return NULL;
    }
}

static int
sampling(decode_t *d, const uint8_t *p, size_t n)
{
    int     rc;
    size_t  used;

    rc = fixed(d, &d->s, sizeof(d->s), p, n, &used, "the sampling section");
    if (rc != 0) return rc;
    if (used != n) return nonsense(d, "bytes after the sampling structure");
    if (d->s.reserved != 0 || (d->s.flags & ~(uint32_t) GLM_SAMPLING_SEED)) {
        return refuse(d, 501, "", "the sampling section has flags that this engine does not know");
    }
    return 0;
}

static int
section(decode_t *d, const glm_sec_t *sec, const uint8_t *p)
{
    const char  *param;

    switch (sec->type) {
    case GLM_SEC_TEXT:     return prompt_text(d, GLM_SEG_TEXT, p, sec->size);
    case GLM_SEC_PLAIN:    return prompt_text(d, GLM_SEG_PLAIN, p, sec->size);
    case GLM_SEC_IDS:      return prompt_ids(d, p, sec->size);
    case GLM_SEC_SAMPLING: return sampling(d, p, sec->size);
    case GLM_SEC_STOPS:    return stops(d, p, sec->size);
    case GLM_SEC_STOP_IDS: return stop_ids(d, p, sec->size);
    case GLM_SEC_BIAS:     return biases(d, p, sec->size);
    case GLM_SEC_ALLOW:    return allowed_ids(d, p, sec->size);
    case GLM_SEC_BAD:      return bad_words(d, p, sec->size);
    case GLM_SEC_SCORE_IDS: return score_ids(d, p, sec->size);
    case GLM_SEC_REPEAT:   return repeat(d, p, sec->size);
    case GLM_SEC_USER:     return 0;
    }

    param = later_param(sec->type, p, sec->size);
    if (param != NULL) {
        /* an empty list is what a client has that never heard of the field */
        if (sec->size == 0) return 0;
        return later(d, param);
    }
    if (sec->flags & GLM_SEC_CRITICAL) {
        return refuse(d, 501, "", "section %u is not supported by this engine", sec->type);
    }
    return 0;
}

static int
section_head(decode_t *d, const glm_sec_t *sec, size_t room)
{
    if (sec->size > room) return nonsense(d, "section %u longer than its message", sec->type);
    if (sec->flags & ~GLM_SEC_CRITICAL) {
        return refuse(d, 501, "", "section %u has flags that this engine does not know",
                      sec->type);
    }
    if (sec->type < GLM_SEC_SAMPLING || sec->type >= 64) return 0;   /* may repeat */
    if (d->seen & ((uint64_t) 1 << sec->type)) {
        return nonsense(d, "section %u comes twice", sec->type);
    }
    d->seen |= (uint64_t) 1 << sec->type;
    return 0;
}

static int
sections(decode_t *d, const uint8_t *msg, size_t len, size_t at)
{
    int        rc;
    size_t     padded;
    glm_sec_t  sec;

    while (at < len) {
        if (len - at < sizeof(sec)) return nonsense(d, "a section that is cut");
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
check_flags(decode_t *d)
{
    uint32_t  f = d->m.flags;

    if (f & ~(uint32_t) GLM_F_ALL) {
        return refuse(d, 501, "", "the request has flags that this engine does not know");
    }
    if (f & GLM_F_BEAM) return later(d, "use_beam_search");
    return 0;
}

/* Alone it is refused for its group's size, or each would wait for the others. */
static int
check_group(decode_t *d)
{
    uint32_t  count = d->m.group_count ? d->m.group_count : 1;

    d->out->group_count = 1;
    if (d->m.group_index >= count) return nonsense(d, "a group index beyond its group");
    if (count > 1 && d->m.op != GLM_SUBMIT_GENERATE) return nonsense(d, "a group of no prompts");
    if (count > GLM_WIRE_MAX_GROUP) {
        d->why->value = count;
        d->why->limit = GLM_WIRE_MAX_GROUP;
        return refuse(d, 400, "prompt", "a request may have %d prompts, this one has %u",
                      GLM_WIRE_MAX_GROUP, count);
    }
    d->out->group = d->m.group;
    d->out->group_index = d->m.group_index;
    d->out->group_count = count;
    return 0;
}

static int
check_submit(decode_t *d)
{
    const glm_msg_submit_t  *m = &d->m;

    if (m->reserved0 || m->reserved1 || m->reserved2) {
        return refuse(d, 501, "", "the request has reserved fields that are set");
    }
    if (m->op < GLM_SUBMIT_GENERATE || m->op > GLM_SUBMIT_DETOKENIZE) {
        return refuse(d, 501, "", "operation %u is not supported by this engine", m->op);
    }
    if (m->op == GLM_SUBMIT_INFILL) return refuse(d, 501, "", "infill is not supported");
    if (m->op == GLM_SUBMIT_SCORE) return refuse(d, 501, "", "scoring is not supported");
    if (m->mode > 1) return refuse(d, 501, "mode", "mode %u is not supported", m->mode);

    if (m->n > d->lim->max_n) return range(d, "n", m->n, 1, d->lim->max_n);
    if (m->best_of != 0 && (m->best_of < m->n || m->best_of > d->lim->max_n)) {
        return range(d, "best_of", m->best_of, m->n, d->lim->max_n);
    }
    if (m->truncate < -1) {
        return range(d, "truncate_prompt_tokens", m->truncate, -1, INT32_MAX);
    }
    if (m->max_tokens < -1) return range(d, "max_tokens", m->max_tokens, -1, INT32_MAX);
    return check_flags(d);
}

static int
check_later_sampling(decode_t *d)
{
    const glm_sec_sampling_t  *s = &d->s;

    if (s->beams > 1) return later(d, "num_beams");
    if (s->length_penalty != 0 && s->length_penalty != 1) return later(d, "length_penalty");
    if (s->no_repeat_ngram != 0) return later(d, "no_repeat_ngram_size");
    return 0;
}

/* penalties and what else changes single ids */
static int
check_rules(decode_t *d)
{
    int                        rc;
    const glm_sec_sampling_t  *s = &d->s;

    if ((rc = interval(d, "presence_penalty", s->presence, -2, 2)) != 0) return rc;
    if ((rc = interval(d, "frequency_penalty", s->frequency, -2, 2)) != 0) return rc;
    if (!isfinite(s->repetition) || s->repetition < 0) {
        return refuse(d, 400, "repetition_penalty", "repetition_penalty must be a number above 0");
    }
    if (d->out->req.nscore_id > 0 && s->logprobs < 0) {
        return refuse(d, 400, "logprob_token_ids", "logprob_token_ids needs logprobs");
    }
    if (s->min_tokens < 0) return range(d, "min_tokens", s->min_tokens, 0, INT32_MAX);
    if (d->m.max_tokens >= 0 && s->min_tokens > d->m.max_tokens) {
        return range(d, "min_tokens", s->min_tokens, 0, d->m.max_tokens);
    }
    return 0;
}

static int
check_sampling(decode_t *d)
{
    int                        rc;
    const glm_sec_sampling_t  *s = &d->s;

    rc = check_later_sampling(d);
    if (rc != 0) return rc;
    if (!isfinite(s->temperature) || s->temperature < 0) {
        return refuse(d, 400, "temperature", "temperature must be a number not below 0");
    }
    if ((rc = interval(d, "top_p", s->top_p, 0, 1)) != 0) return rc;
    if ((rc = interval(d, "min_p", s->min_p, 0, 1)) != 0) return rc;
    if (s->top_k < 0) return range(d, "top_k", s->top_k, 0, INT32_MAX);
    if (s->logprobs < -1 || s->logprobs > d->lim->max_logprobs) {
        return range(d, "logprobs", s->logprobs, -1, d->lim->max_logprobs);
    }
    if (s->prompt_logprobs < -1 || s->prompt_logprobs > d->lim->max_logprobs) {
        return range(d, "prompt_logprobs", s->prompt_logprobs, -1, d->lim->max_logprobs);
    }
    return check_rules(d);
}

/* What an operation needs of its prompt, beyond what any prompt needs. */
static int
check_prompt(decode_t *d)
{
    size_t  i;

    if (d->nseg == 0 && d->m.op != GLM_SUBMIT_TOKENIZE) {
        return refuse(d, 400, prompt_param(d), "%s is empty", prompt_param(d));
    }
    for (i = 0; i < d->nseg; i++) {
        if (d->m.op == GLM_SUBMIT_DETOKENIZE && d->out->seg[i].kind != GLM_SEG_IDS) {
            return refuse(d, 400, "tokens", "tokens must be ids");
        }
        if (d->m.op == GLM_SUBMIT_TOKENIZE && d->out->seg[i].kind == GLM_SEG_IDS) {
            return refuse(d, 400, "prompt", "prompt must be text");
        }
    }
    if (d->m.op == GLM_SUBMIT_DETOKENIZE && d->nseg != 1) {
        return refuse(d, 400, "tokens", "tokens must be one list");
    }
    return 0;
}

static void
fill(decode_t *d)
{
    glm_submit_t  *out = d->out;
    glm_req_t     *r = &out->req;
    uint32_t       f = d->m.flags;

    r->op = d->m.op == GLM_SUBMIT_TOKENIZE ? GLM_OP_TOKENIZE
            : d->m.op == GLM_SUBMIT_DETOKENIZE ? GLM_OP_DETOKENIZE : GLM_OP_GENERATE;
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
    decode_t  d = { .out = out, .lim = lim, .why = why };

    memset(out, 0, sizeof(*out));
    memset(why, 0, sizeof(*why));
    out->msg = msg;
    d.s.logprobs = -1;
    d.s.prompt_logprobs = -1;

    rc = fixed(&d, &d.m, sizeof(d.m), msg, len, &used, "the request");
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
    s->msg = NULL;
    s->seg = NULL;
    s->stop = NULL;
    s->bad = NULL;
}
