/*
 * wire_lists: sections of a SUBMIT that hold lists, and what goes with one
 * operation alone: stops, ids, biases, repetition, suffix, choices.
 */
#include "wire_decode_impl.h"

#include <stdlib.h>
#include <string.h>

#include "utf8.h"

/* A list of strings under construction. */
typedef struct {
    const char   *param;
    uint32_t      max;
    glm_stop_t  **list;
    size_t       *n;
} strings_t;

static int
add_string(glm_decode_t *d, const strings_t *l, const uint8_t *p, uint32_t n)
{
    if (n == 0) return glm_wd_refuse(d, 400, l->param, "a string of %s is empty", l->param);
    if (glm_utf8_valid((const char *) p, n) != n) {
        return glm_wd_refuse(d, 400, l->param, "a string of %s is not valid UTF-8", l->param);
    }
    if (*l->n == l->max) {
        d->why->limit = l->max;
        return glm_wd_refuse(d, 400, l->param, "%s has more than %u strings", l->param, l->max);
    }
    if (*l->list == NULL) {
        *l->list = calloc(l->max, sizeof(glm_stop_t));
        if (*l->list == NULL) return GLM_ENOMEM;
    }
    (*l->list)[(*l->n)++] = (glm_stop_t) { .s = (const char *) p, .n = n };
    return 0;
}

static int
strings(glm_decode_t *d, const strings_t *l, const uint8_t *p, size_t n)
{
    int        rc;
    size_t     at, padded;
    glm_str_t  str;

    for (at = 0; at < n; at += padded) {
        if (n - at < sizeof(str)) return glm_wd_nonsense(d, "a string list that is cut");
        memcpy(&str, p + at, sizeof(str));
        at += sizeof(str);
        padded = ((size_t) str.size + 3) & ~(size_t) 3;
        if (str.size > n - at) return glm_wd_nonsense(d, "a string longer than its list");
        rc = add_string(d, l, p + at, str.size);
        if (rc != 0) return rc;
        if (padded > n - at) break;      /* the last one may lack its padding */
    }
    return 0;
}

int
glm_wd_stops(glm_decode_t *d, const uint8_t *p, size_t n)
{
    const strings_t  l = { "stop", d->lim->max_stops, &d->out->stop, &d->nstop };

    return strings(d, &l, p, n);
}

int
glm_wd_bad_words(glm_decode_t *d, const uint8_t *p, size_t n)
{
    const strings_t  l = { "bad_words", GLM_MAX_LIST, &d->out->bad, &d->out->req.nbad };

    return strings(d, &l, p, n);
}

static int
too_many(glm_decode_t *d, const char *param, size_t n, size_t max)
{
    d->why->value = (int64_t) n;
    d->why->limit = (int64_t) max;
    return glm_wd_refuse(d, 400, param, "%s has %zu entries, and may have %zu", param, n, max);
}

/* Ids of a field; *list points into the message. */
static int
id_list(glm_decode_t *d, const char *param, size_t max, const uint8_t *p, size_t n,
    const int32_t **list, size_t *count)
{
    if (n % sizeof(int32_t)) return glm_wd_nonsense(d, "ids of %zu bytes", n);
    *list = (const int32_t *) (const void *) p;      /* 8-byte aligned */
    *count = n / sizeof(int32_t);
    if (*count > max) return too_many(d, param, *count, max);
    return glm_wd_ids(d, param, *list, *count);
}

int
glm_wd_stop_ids(glm_decode_t *d, const uint8_t *p, size_t n)
{
    return id_list(d, "stop_token_ids", GLM_MAX_LIST, p, n, &d->out->req.stop_id,
                   &d->out->req.nstop_id);
}

int
glm_wd_score_ids(glm_decode_t *d, const uint8_t *p, size_t n)
{
    return id_list(d, "logprob_token_ids", GLM_MAX_LOGPROBS, p, n, &d->out->req.score_id,
                   &d->out->req.nscore_id);
}

/* None allowed is something else than any allowed. */
int
glm_wd_allowed_ids(glm_decode_t *d, const uint8_t *p, size_t n)
{
    if (n == 0) return glm_wd_refuse(d, 400, "allowed_token_ids", "allowed_token_ids is empty");
    return id_list(d, "allowed_token_ids", (size_t) d->lim->vocab, p, n, &d->out->req.allow,
                   &d->out->req.nallow);
}

_Static_assert(sizeof(glm_bias_t) == sizeof(glm_logit_bias_t)
               && offsetof(glm_bias_t, bias) == offsetof(glm_logit_bias_t, bias),
               "biases are used as they lie in the message");

int
glm_wd_biases(glm_decode_t *d, const uint8_t *p, size_t n)
{
    int                      rc;
    size_t                   i;
    const glm_logit_bias_t  *b = (const glm_logit_bias_t *) (const void *) p;

    if (n % sizeof(*b)) return glm_wd_nonsense(d, "biases of %zu bytes", n);
    n /= sizeof(*b);
    if (n > GLM_MAX_LIST) return too_many(d, "logit_bias", n, GLM_MAX_LIST);
    for (i = 0; i < n; i++) {
        rc = glm_wd_ids(d, "logit_bias", &b[i].id, 1);
        if (rc != 0) return rc;
        rc = glm_wd_interval(d, "logit_bias", b[i].bias, -100, 100);
        if (rc != 0) return rc;
    }
    d->out->req.bias = b;
    d->out->req.nbias = n;
    return 0;
}

int
glm_wd_repeat(glm_decode_t *d, const uint8_t *p, size_t n)
{
    int               rc;
    size_t            used;
    glm_sec_repeat_t  r;
    const char       *param = "repetition_detection";

    if (n == 0) return 0;
    rc = glm_wd_fixed(d, &r, sizeof(r), p, n, &used, "the repetition section");
    if (rc != 0) return rc;
    if (used != n) return glm_wd_nonsense(d, "bytes after the repetition structure");
    if (r.max_length == 0) return 0;
    if (r.max_length > GLM_MAX_REPEAT) return glm_wd_range(d, param, r.max_length, 1,
                                                           GLM_MAX_REPEAT);
    if (r.min_length > r.max_length) return glm_wd_range(d, param, r.min_length, 0, r.max_length);
    if (r.min_count < 2 || r.min_count > INT32_MAX) {
        return glm_wd_range(d, param, r.min_count, 2, INT32_MAX);
    }
    d->out->req.repeat = (glm_repeat_t) {
        .min_length = (int32_t) r.min_length, .max_length = (int32_t) r.max_length,
        .min_count = (int32_t) r.min_count,
    };
    return 0;
}

int
glm_wd_suffix(glm_decode_t *d, const uint8_t *p, size_t n)
{
    size_t  good = glm_utf8_valid((const char *) p, n);

    if (n == 0) return 0;
    if (d->m.op != GLM_SUBMIT_GENERATE) {
        return glm_wd_refuse(d, 400, "suffix", "a suffix goes with a completion only");
    }
    if (good != n) {
        return glm_wd_refuse(d, 400, "suffix", "the suffix is not valid UTF-8 at byte %zu", good);
    }
    d->out->req.suffix = (const char *) p;
    d->out->req.nsuffix = n;
    return 0;
}

/* ---- choices of a score ---- */

/* The choice at *at; moves on.  The last one may lack its padding. */
static int
next_choice(glm_decode_t *d, const uint8_t *p, size_t n, size_t *at, glm_choice_t *c)
{
    size_t  padded;

    if (n - *at < sizeof(*c)) return glm_wd_nonsense(d, "a list of choices that is cut");
    memcpy(c, p + *at, sizeof(*c));
    *at += sizeof(*c);
    if (c->size > n - *at) return glm_wd_nonsense(d, "a choice longer than its list");
    padded = ((size_t) c->size + 3) & ~(size_t) 3;
    *at = padded < n - *at ? *at + padded : n;
    return 0;
}

static int
take_choice(glm_decode_t *d, const glm_choice_t *c, const uint8_t *p, size_t i)
{
    glm_segment_t  *seg = &d->out->choice[i];
    size_t          good;

    if (c->size == 0) {
        d->why->value = (int64_t) i;
        return glm_wd_refuse(d, 400, "choices", "choice %zu is empty", i);
    }
    if (c->kind == GLM_SEC_PLAIN) {
        good = glm_utf8_valid((const char *) p, c->size);
        if (good != c->size) {
            return glm_wd_refuse(d, 400, "choices", "choice %zu is not valid UTF-8 at byte %zu", i,
                                 good);
        }
        *seg = (glm_segment_t) { .kind = GLM_SEG_PLAIN, .text = (const char *) p, .n = c->size };
        return 0;
    }
    if (c->kind != GLM_SEC_IDS) return glm_wd_nonsense(d, "a choice of kind %u", c->kind);
    if (c->size % sizeof(int32_t)) return glm_wd_nonsense(d, "ids of %u bytes", c->size);
    *seg = (glm_segment_t) { .kind = GLM_SEG_IDS, .n = c->size / sizeof(int32_t),
                             .ids = (const int32_t *) (const void *) p };   /* 4-byte aligned */
    return glm_wd_ids(d, "choices", seg->ids, seg->n);
}

int
glm_wd_choices(glm_decode_t *d, const uint8_t *p, size_t n)
{
    int            rc;
    size_t         at, start, i, count = 0;
    glm_choice_t   c;

    if (n == 0) return 0;
    if (d->m.op != GLM_SUBMIT_SCORE) {
        return glm_wd_refuse(d, 400, "choices", "choices go with a score only");
    }
    for (at = 0; at < n; count++) {
        if ((rc = next_choice(d, p, n, &at, &c)) != 0) return rc;
    }
    if (count > GLM_MAX_SCORED) return too_many(d, "choices", count, GLM_MAX_SCORED);
    d->out->choice = calloc(count, sizeof(glm_segment_t));
    if (d->out->choice == NULL) return GLM_ENOMEM;
    for (at = 0, i = 0; i < count; i++) {
        start = at + sizeof(c);
        if ((rc = next_choice(d, p, n, &at, &c)) != 0) return rc;
        if ((rc = take_choice(d, &c, p + start, i)) != 0) return rc;
    }
    d->out->req.nchoice = count;
    return 0;
}
