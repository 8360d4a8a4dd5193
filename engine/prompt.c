/*
 * prompt: segments -> ids -> the model's input, by generate.py's rules.
 */
#include <stdlib.h>
#include <string.h>

#include "prompt.h"

int
glm_refuse(glm_refusal_t *no, int status, const char *code, const char *param,
    const char *fmt, ...)
{
    va_list  ap;

    memset(no, 0, sizeof(*no));
    no->status = status;
    snprintf(no->code, sizeof(no->code), "%s", code);
    snprintf(no->param, sizeof(no->param), "%s", param);
    va_start(ap, fmt);
    vsnprintf(no->text, sizeof(no->text), fmt, ap);
    va_end(ap);
    return status == 400 ? GLM_EINVAL : GLM_EBUSY;
}

static int
refuse_memory(glm_refusal_t *no)
{
    return glm_refuse(no, 500, "", "", "The server has no memory for this request.");
}

static int
refuse_limit(glm_refusal_t *no, int64_t limit, int64_t value)
{
    no->limit = limit;
    no->value = value;
    return GLM_EINVAL;
}

void
glm_prompt_free(glm_prompt_t *p)
{
    free(p->ids);
    *p = (glm_prompt_t) {0};
}

int
glm_prompt_check_ids(const int32_t *ids, size_t n, const glm_vocab_t *v, const char *param,
    glm_refusal_t *no)
{
    for (size_t i = 0; i < n; i++) {
        if (ids[i] >= 0 && ids[i] < v->cfg->vocab) continue;
        glm_refuse(no, 400, "", param,
                   "Token id %d at index %zu is not in the vocabulary: ids are 0 to %d.",
                   ids[i], i, v->cfg->vocab - 1);
        return refuse_limit(no, v->cfg->vocab - 1, ids[i]);
    }
    return 0;
}

/* Encodes text segments first .. last-1, of one kind, in one go. */
static int
encode_run(glm_ids_t *out, const glm_vocab_t *v, const glm_segment_t *seg, size_t n)
{
    glm_text_t   joined = {0};
    const char  *s = seg[0].text;
    size_t       len = seg[0].n;
    int          rc = 0;

    if (n > 1) {
        for (size_t i = 0; i < n && rc == 0; i++) rc = glm_text_add(&joined, seg[i].text, seg[i].n);
        s = joined.s;
        len = joined.n;
    }
    if (rc == 0 && len > 0)
        rc = seg[0].kind == GLM_SEG_TEXT ? glm_encode_masks(v->tok, s, len, out)
                                         : glm_encode(v->tok, s, len, out);
    glm_text_free(&joined);
    return rc;
}

static int
add_ids(glm_ids_t *out, const glm_vocab_t *v, const glm_segment_t *seg, glm_refusal_t *no)
{
    int  rc = glm_prompt_check_ids(seg->ids, seg->n, v, "prompt", no);

    for (size_t i = 0; i < seg->n && rc == 0; i++)
        if (glm_ids_push(out, seg->ids[i]) != 0) rc = refuse_memory(no);
    return rc;
}

/* The ids that the user's own segments give. */
static int
encode(glm_ids_t *out, const glm_vocab_t *v, const glm_req_t *r, glm_refusal_t *no)
{
    size_t  i = 0, n;

    while (i < r->nseg) {
        const glm_segment_t  *seg = &r->seg[i];

        n = 1;
        if (seg->kind == GLM_SEG_IDS) {
            if (add_ids(out, v, seg, no) != 0) return GLM_EINVAL;

        } else if (v->tok == NULL) {
            return glm_refuse(no, 400, "", "prompt", "The model \"%s\" has no tokenizer: its "
                              "prompts are token ids.", v->cfg->name);
        } else {
            while (i + n < r->nseg && r->seg[i + n].kind == seg->kind) n++;
            if (encode_run(out, v, seg, n) != 0) return refuse_memory(no);
        }
        i += n;
    }
    return 0;
}

static int
is_mask(const glm_config_t *c, int32_t id)
{
    return id >= 0 && (id == c->mask || id == c->smask || id == c->gmask);
}

/* How often id stands in ids; *last: the index of the last one. */
static int32_t
count(const glm_ids_t *ids, int32_t id, int32_t *last)
{
    int32_t  n = 0;

    for (size_t i = 0; i < ids->n && id >= 0; i++) {
        if (ids->id[i] != id) continue;
        n++;
        *last = (int32_t) i;
    }
    return n;
}

/*
 * Does the prompt end with a mask?  A blank behind it gives no id, but the original
 * looks at the text; with anything else behind it the last id is no mask.
 */
static int
ends_with_mask(const glm_ids_t *ids, const glm_config_t *c, const glm_req_t *r, int cut)
{
    size_t  i = r->nseg;

    if (!is_mask(c, ids->id[ids->n - 1])) return 0;
    if (cut && r->truncate_right) return 1;       /* of the text's end nothing is left */
    while (i > 0 && r->seg[i - 1].n == 0) i--;
    if (i == 0 || r->seg[i - 1].kind == GLM_SEG_IDS) return 1;
    return r->seg[i - 1].kind == GLM_SEG_TEXT
           && r->seg[i - 1].text[r->seg[i - 1].n - 1] == ']';
}

/* Rules 1 and 2: a prompt without a mask gets [gMASK]; one that goes on after
 * its mask gets eos. */
static int
add_special(glm_ids_t *ids, const glm_config_t *c, const glm_req_t *r, int cut,
    glm_refusal_t *no)
{
    int  masks = 0;

    for (size_t i = 0; i < ids->n; i++) masks += is_mask(c, ids->id[i]);
    if (masks == 0 && c->gmask < 0)
        return glm_refuse(no, 400, "", "prompt",
                          "The model \"%s\" has no [gMASK] to add to the prompt.", c->name);
    if (masks == 0) return glm_ids_push(ids, c->gmask) == 0 ? 0 : refuse_memory(no);

    if (c->eos < 0 || ends_with_mask(ids, c, r, cut)) return 0;
    return glm_ids_push(ids, c->eos) == 0 ? 0 : refuse_memory(no);
}

static int
insert_first(glm_ids_t *ids, int32_t id)
{
    int  rc = glm_ids_push(ids, id);

    if (rc != 0) return rc;
    memmove(ids->id + 1, ids->id, (ids->n - 1) * sizeof(int32_t));
    ids->id[0] = id;
    return 0;
}

/* Rule 3: the mask to fill freezes positions at its place, unless it is [gMASK]. */
static int
find_mask(const glm_ids_t *ids, const glm_config_t *c, int32_t *frozen, glm_refusal_t *no)
{
    const int32_t             kinds[3] = { c->mask, c->smask, c->gmask };
    static const char *const  names[3] = { "[MASK]", "[sMASK]", "[gMASK]" };

    *frozen = -1;
    for (int k = 0; k < 3; k++) {
        int32_t  at = -1, n = count(ids, kinds[k], &at);

        if (n == 0) continue;
        if (n > 1) {
            glm_refuse(no, 400, "", "prompt", "The prompt has %d %s tokens; a completion fills "
                       "exactly one.", n, names[k]);
            return refuse_limit(no, 1, n);
        }
        if (k < 2) *frozen = at;
        return 0;
    }
    return 0;
}

/* `[gMASK] sop text`: causal from the start. */
static int
make_unidirectional(glm_ids_t *ids, const glm_config_t *c, const glm_req_t *r, glm_refusal_t *no)
{
    if (!r->add_special && !r->want_prompt_logprobs) return 0;

    for (size_t i = 0; i < ids->n; i++)
        if (is_mask(c, ids->id[i]))
            return glm_refuse(no, 400, "", "prompt", r->want_prompt_logprobs
                              ? "A prompt with a mask has no log-probabilities of its own: what "
                                "is around a mask is context that sees itself whole."
                              : "A prompt with a mask cannot be continued in the unidirectional "
                                "mode.");
    if (!r->add_special) return 0;
    if (c->gmask < 0 || c->sop < 0)
        return glm_refuse(no, 400, "", "mode", "The model \"%s\" lacks [gMASK] or sop, which the "
                          "unidirectional mode needs.", c->name);
    if (insert_first(ids, c->sop) != 0 || insert_first(ids, c->gmask) != 0)
        return refuse_memory(no);
    return 0;
}

/* prompt + sop + completion must fit; fills max_tokens. */
static int
check_length(glm_prompt_t *p, const glm_config_t *c, int32_t max_tokens, glm_refusal_t *no)
{
    int32_t  nsop = p->n - p->prompt_tokens;
    int64_t  rest = (int64_t) c->max_seq - p->n;
    int64_t  want = max_tokens >= 0 ? max_tokens : rest > 0 ? rest : 1;

    p->max_tokens = (int32_t) want;
    if (want <= rest) return 0;

    glm_refuse(no, 400, "context_length_exceeded", rest > 0 ? "max_tokens" : "prompt",
               "This model's maximum context length is %d tokens. However, you requested %lld "
               "tokens (%d in the prompt, %d for sop, %lld for the completion). Please reduce "
               "your prompt or the completion length.", c->max_seq, (long long) (p->n + want),
               p->prompt_tokens, nsop, (long long) want);
    return refuse_limit(no, c->max_seq, p->n + want);
}

static int
make_bidirectional(glm_ids_t *ids, glm_prompt_t *p, const glm_config_t *c, const glm_req_t *r,
    int cut, glm_refusal_t *no)
{
    int  rc = r->add_special ? add_special(ids, c, r, cut, no) : 0;

    if (rc == 0) rc = find_mask(ids, c, &p->frozen, no);
    if (rc != 0) return rc;

    if (c->sop < 0)
        return glm_refuse(no, 400, "", "prompt", "The model \"%s\" has no sop token: only the "
                          "unidirectional mode with add_special_tokens false can be used.",
                          c->name);
    p->ncontext = (int32_t) ids->n;
    return glm_ids_push(ids, c->sop) == 0 ? 0 : refuse_memory(no);
}

/* How many of the user's ids leave room for the rest. */
static int64_t
room(const glm_config_t *c, const glm_req_t *r)
{
    int  special = r->mode == GLM_BIDIRECTIONAL ? 1 + (r->add_special != 0)
                                                : 2 * (r->add_special != 0);

    return (int64_t) c->max_seq - special - (r->max_tokens >= 0 ? r->max_tokens : 1);
}

/* truncate_prompt_tokens; whether something was cut.  Without any room nothing is:
 * the check of the length says what is wrong. */
static int
truncate_ids(glm_ids_t *ids, const glm_config_t *c, const glm_req_t *r)
{
    int64_t  keep = r->truncate < 0 ? room(c, r) : r->truncate;

    if (r->truncate == 0 || keep < 1 || keep >= (int64_t) ids->n) return 0;
    if (!r->truncate_right)
        memmove(ids->id, ids->id + ids->n - (size_t) keep, (size_t) keep * sizeof(int32_t));
    ids->n = (size_t) keep;
    return 1;
}

int
glm_prompt_make(glm_prompt_t *out, const glm_vocab_t *v, const glm_req_t *r, glm_refusal_t *no)
{
    glm_ids_t  ids = {0};
    int        rc = encode(&ids, v, r, no), special = r->add_special, cut = 0;

    *out = (glm_prompt_t) { .frozen = -1 };
    if (rc == 0) cut = truncate_ids(&ids, v->cfg, r);
    out->nown = (int32_t) ids.n;
    if (rc == 0 && ids.n == 0) rc = glm_refuse(no, 400, "", "prompt", "The prompt is empty.");
    if (rc == 0)
        rc = r->mode == GLM_UNIDIRECTIONAL
             ? make_unidirectional(&ids, v->cfg, r, no)
             : make_bidirectional(&ids, out, v->cfg, r, cut, no);
    if (rc == 0 && ids.n > INT32_MAX / 2)
        rc = glm_refuse(no, 400, "context_length_exceeded", "prompt", "The prompt is too long.");
    if (rc == 0) {
        out->n = (int32_t) ids.n;
        if (r->mode == GLM_UNIDIRECTIONAL) out->own = out->n - out->nown;
        out->prompt_tokens = out->n - (r->mode == GLM_BIDIRECTIONAL || special);
        rc = check_length(out, v->cfg, r->max_tokens, no);
    }
    if (rc != 0) {
        glm_ids_free(&ids);
        return rc;
    }
    out->ids = ids.id;
    return 0;
}

int
glm_prompt_tokenize(glm_ids_t *ids, const glm_vocab_t *v, const glm_req_t *r, glm_refusal_t *no)
{
    int  rc = encode(ids, v, r, no);

    if (rc != 0 || !r->add_special) return rc;
    if (r->mode == GLM_BIDIRECTIONAL) return add_special(ids, v->cfg, r, 0, no);
    if (v->cfg->gmask >= 0 && insert_first(ids, v->cfg->gmask) != 0) return refuse_memory(no);
    return 0;
}
