/*
 * prompt: segments -> ids -> the model's input, by generate.py's rules.
 */
#include <stdlib.h>
#include <string.h>

#include "prompt.h"

/* A prompt in the making. */
typedef struct {
    const glm_vocab_t   *v;
    const glm_config_t  *c;
    const glm_req_t     *r;
    glm_refusal_t       *no;
    glm_ids_t            ids;
    glm_ids_t            tail;    /* a mask and the suffix */
    int                  cut;     /* truncated */
    int32_t              longest; /* SCORE: ids of the longest choice */
} making_t;

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

int
glm_refuse_memory(glm_refusal_t *no)
{
    return glm_refuse(no, 500, "", "", "The server has no memory for this request.");
}

int
glm_refuse_limit(glm_refusal_t *no, int64_t limit, int64_t value)
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
        return glm_refuse_limit(no, v->cfg->vocab - 1, ids[i]);
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
        if (glm_ids_push(out, seg->ids[i]) != 0) rc = glm_refuse_memory(no);
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
            if (encode_run(out, v, seg, n) != 0) return glm_refuse_memory(no);
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

static int32_t
count(const glm_ids_t *ids, int32_t id)
{
    int32_t  n = 0;

    for (size_t i = 0; i < ids->n && id >= 0; i++) n += ids->id[i] == id;
    return n;
}

static int32_t
count_masks(const glm_ids_t *ids, const glm_config_t *c)
{
    return count(ids, c->mask) + count(ids, c->smask) + count(ids, c->gmask);
}

/*
 * Does the prompt end with a mask?  A blank behind it gives no id, but the original
 * looks at the text; with anything else behind it the last id is no mask.
 */
static int
ends_with_mask(const glm_ids_t *ids, const glm_config_t *c, const glm_req_t *r, int cut)
{
    size_t  i = r->nseg;

    if (r->nsuffix > 0 || !is_mask(c, ids->id[ids->n - 1])) return 0;
    if (cut && r->truncate_right) return 1;       /* of the text's end nothing is left */
    while (i > 0 && r->seg[i - 1].n == 0) i--;
    if (i == 0 || r->seg[i - 1].kind == GLM_SEG_IDS) return 1;
    return r->seg[i - 1].kind == GLM_SEG_TEXT
           && r->seg[i - 1].text[r->seg[i - 1].n - 1] == ']';
}

static int
push(glm_ids_t *ids, int32_t id, glm_refusal_t *no)
{
    return glm_ids_push(ids, id) == 0 ? 0 : glm_refuse_memory(no);
}

/* A mask that the model may lack. */
static int
push_mask(glm_ids_t *ids, const glm_config_t *c, int gmask, glm_refusal_t *no)
{
    int32_t  id = gmask ? c->gmask : c->mask;

    if (id >= 0) return push(ids, id, no);
    return glm_refuse(no, 400, "", "prompt", "The model \"%s\" has no %s to add to the prompt.",
                      c->name, gmask ? "[gMASK]" : "[MASK]");
}

/* Rules 1 and 2: a prompt without a mask gets [gMASK]; one that goes on after
 * its mask gets eos. */
static int
add_special(glm_ids_t *ids, const glm_config_t *c, const glm_req_t *r, int cut,
    glm_refusal_t *no)
{
    if (count_masks(ids, c) == 0) return push_mask(ids, c, 1, no);
    if (c->eos < 0 || ends_with_mask(ids, c, r, cut)) return 0;
    return push(ids, c->eos, no);
}

/* The original's evaluation adds a mask of the kind that was asked for, and no eos. */
static int
add_scored(making_t *m)
{
    if (count_masks(&m->ids, m->c) > 0) return 0;
    return push_mask(&m->ids, m->c, m->r->gmask, m->no);
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

/* How many masks of the kind to fill there may be. */
static int
check_masks(const making_t *m, int32_t n, const char *name)
{
    if (m->r->op == GLM_OP_GENERATE && n > 1) {
        glm_refuse(m->no, 400, "", "prompt", "The prompt has %d %s tokens; a completion fills one. "
                   "/v1/infill fills several.", n, name);
        return glm_refuse_limit(m->no, 1, n);
    }
    if (m->r->op == GLM_OP_INFILL && n > GLM_MAX_BLANKS) {
        glm_refuse(m->no, 400, "", "prompt", "The prompt has %d %s tokens; up to %d are filled.", n,
                   name, GLM_MAX_BLANKS);
        return glm_refuse_limit(m->no, GLM_MAX_BLANKS, n);
    }
    return 0;
}

/* Rule 3: the mask to fill, the first of its kind, freezes positions at its place,
 * unless it is [gMASK]. */
static int
find_mask(const making_t *m, glm_prompt_t *p)
{
    const glm_config_t       *c = m->c;
    const int32_t             kinds[3] = { c->mask, c->smask, c->gmask };
    static const char *const  names[3] = { "[MASK]", "[sMASK]", "[gMASK]" };
    int32_t                   at = 0;

    for (int k = 0; k < 3; k++) {
        p->nblanks = count(&m->ids, kinds[k]);
        if (p->nblanks == 0) continue;
        if (check_masks(m, p->nblanks, names[k]) != 0) return GLM_EINVAL;
        while (m->ids.id[at] != kinds[k]) at++;
        p->kind = kinds[k];
        p->frozen = k < 2 && !(m->r->op == GLM_OP_SCORE && m->r->count_positions) ? at : -1;
        return 0;
    }
    return 0;
}

/* `[gMASK] sop text`: causal from the start. */
static int
make_unidirectional(making_t *m)
{
    const glm_config_t  *c = m->c;
    const glm_req_t     *r = m->r;

    if (r->op == GLM_OP_INFILL)
        return glm_refuse(m->no, 400, "", "mode", "Blanks are filled in the bidirectional mode.");
    if (!r->add_special && !r->want_prompt_logprobs) return 0;

    if (count_masks(&m->ids, c) > 0)
        return glm_refuse(m->no, 400, "", "prompt", r->want_prompt_logprobs
                          ? "A prompt with a mask has no log-probabilities of its own: what "
                            "is around a mask is context that sees itself whole."
                          : "A prompt with a mask cannot be continued in the unidirectional "
                            "mode.");
    if (!r->add_special) return 0;
    if (c->gmask < 0 || c->sop < 0)
        return glm_refuse(m->no, 400, "", "mode", "The model \"%s\" lacks [gMASK] or sop, which "
                          "the unidirectional mode needs.", c->name);
    if (insert_first(&m->ids, c->sop) != 0 || insert_first(&m->ids, c->gmask) != 0)
        return glm_refuse_memory(m->no);
    return 0;
}

/* prompt + sop + completion must fit; fills max_tokens, for each blank. */
static int
check_length(const making_t *m, glm_prompt_t *p)
{
    const glm_req_t  *r = m->r;
    int32_t           max = m->c->max_seq, nsop = p->n - p->prompt_tokens;
    int32_t           blanks = r->op == GLM_OP_INFILL ? p->nblanks : 1;
    int64_t           rest = (int64_t) max - p->n;
    int64_t           want = r->max_tokens >= 0 ? r->max_tokens
                             : rest >= blanks ? rest / blanks : 1;

    p->max_tokens = (int32_t) want;
    want *= blanks;
    if (want <= rest) return 0;

    glm_refuse(m->no, 400, "context_length_exceeded",
               rest > 0 && r->max_tokens >= 0 ? "max_tokens" : "prompt",
               "This model's maximum context length is %d tokens. However, you requested %lld "
               "tokens (%d in the prompt, %d for sop, %lld for the %s). Please reduce "
               "your prompt or the completion length.", max, (long long) (p->n + want),
               p->prompt_tokens, nsop, (long long) want,
               r->op == GLM_OP_INFILL ? "blanks" : "completion");
    return glm_refuse_limit(m->no, max, p->n + want);
}

/* A choice's last id is never fed: it needs no place.  Fills max_tokens with what
 * there is room for. */
static int
check_scored(const making_t *m, glm_prompt_t *p)
{
    p->max_tokens = m->c->max_seq - p->n + 1;
    if (p->max_tokens > 0) return 0;
    glm_refuse(m->no, 400, "context_length_exceeded", "prompt", "This model's maximum context "
               "length is %d tokens. However, your prompt has %d, and leaves no room for a choice.",
               m->c->max_seq, p->prompt_tokens);
    return glm_refuse_limit(m->no, m->c->max_seq, p->n);
}

static int
make_bidirectional(making_t *m, glm_prompt_t *p)
{
    int  rc = 0;

    if (m->r->op == GLM_OP_INFILL && count_masks(&m->ids, m->c) == 0)
        return glm_refuse(m->no, 400, "", "prompt", "The prompt has no mask to fill: write [MASK] "
                          "where text is missing, or use /v1/completions.");
    if (m->r->op == GLM_OP_SCORE) rc = m->r->add_special ? add_scored(m) : 0;
    else if (m->r->add_special) rc = add_special(&m->ids, m->c, m->r, m->cut, m->no);
    if (rc == 0) rc = find_mask(m, p);
    if (rc != 0) return rc;

    if (m->c->sop < 0)
        return glm_refuse(m->no, 400, "", "prompt", "The model \"%s\" has no sop token: only the "
                          "unidirectional mode with add_special_tokens false can be used.",
                          m->c->name);
    p->ncontext = (int32_t) m->ids.n;
    return push(&m->ids, m->c->sop, m->no);
}

/* ---- suffix ---- */

static int
encode_suffix(making_t *m)
{
    const glm_req_t  *r = m->r;

    if (r->nsuffix == 0) return 0;
    if (r->op != GLM_OP_GENERATE)
        return glm_refuse(m->no, 400, "", "suffix", "\"suffix\" is for completions only.");
    if (r->mode == GLM_UNIDIRECTIONAL)
        return glm_refuse(m->no, 400, "", "suffix", "\"suffix\" needs the bidirectional mode: what "
                          "is filled in sees the text behind it.");
    if (m->v->tok == NULL)
        return glm_refuse(m->no, 400, "", "suffix", "The model \"%s\" has no tokenizer: \"suffix\" "
                          "cannot be used.", m->c->name);
    if (push_mask(&m->tail, m->c, r->gmask, m->no) != 0) return GLM_EINVAL;
    if (glm_encode(m->v->tok, r->suffix, r->nsuffix, &m->tail) == 0) return 0;
    return glm_refuse_memory(m->no);
}

static int
add_suffix(making_t *m)
{
    if (m->tail.n > 0 && count_masks(&m->ids, m->c) > 0)
        return glm_refuse(m->no, 400, "", "suffix", "The prompt has a mask already: \"suffix\" puts "
                          "one behind the prompt. Leave one of them out.");
    for (size_t i = 0; i < m->tail.n; i++)
        if (push(&m->ids, m->tail.id[i], m->no) != 0) return GLM_EINVAL;
    return 0;
}

/* ---- truncation ---- */

/* Ids that must find room behind the context: SCORE feeds all of a choice but the
 * last one. */
static int64_t
behind(const making_t *m)
{
    const glm_req_t  *r = m->r;
    int64_t           each = r->max_tokens >= 0 ? r->max_tokens : 1;
    int32_t           n = 0;

    if (r->op == GLM_OP_SCORE) return m->longest - 1;
    if (r->op != GLM_OP_INFILL) return each;
    n = count(&m->ids, m->c->mask);
    if (n == 0) n = count(&m->ids, m->c->smask);
    if (n == 0) n = count(&m->ids, m->c->gmask);
    return each * n;
}

/* How many of the user's ids leave room for the rest. */
static int64_t
room(const making_t *m)
{
    int  special = m->r->mode == GLM_BIDIRECTIONAL ? 1 + (m->r->add_special != 0)
                                                   : 2 * (m->r->add_special != 0);

    return (int64_t) m->c->max_seq - special - (int64_t) m->tail.n - behind(m);
}

/* truncate_prompt_tokens.  Without any room nothing is cut: the check of the length
 * says what is wrong. */
static void
truncate_ids(making_t *m)
{
    glm_ids_t  *ids = &m->ids;
    int64_t     keep = m->r->truncate < 0 ? room(m) : m->r->truncate;

    if (m->r->truncate == 0 || keep < 1 || keep >= (int64_t) ids->n) return;
    if (!m->r->truncate_right)
        memmove(ids->id, ids->id + ids->n - (size_t) keep, (size_t) keep * sizeof(int32_t));
    ids->n = (size_t) keep;
    m->cut = 1;
}

/* ---- all of it ---- */

/* The ids as the model is given them; out: which are whose. */
static int
arrange(making_t *m, glm_prompt_t *out)
{
    const glm_req_t  *r = m->r;
    int               rc = encode(&m->ids, m->v, r, m->no);

    if (rc == 0) rc = encode_suffix(m);
    if (rc != 0) return rc;
    truncate_ids(m);
    out->nown = (int32_t) m->ids.n;
    if (m->ids.n == 0 && m->tail.n == 0 && r->op != GLM_OP_SCORE)
        return glm_refuse(m->no, 400, "", "prompt", "The prompt is empty.");
    rc = add_suffix(m);
    if (rc == 0)
        rc = r->mode == GLM_UNIDIRECTIONAL ? make_unidirectional(m) : make_bidirectional(m, out);
    if (rc == 0 && m->ids.n == 0)
        return glm_refuse(m->no, 400, "", "prompt", "The prompt is empty.");
    return rc;
}

int
glm_prompt_make(glm_prompt_t *out, const glm_vocab_t *v, const glm_req_t *r, int32_t longest,
    glm_refusal_t *no)
{
    making_t  m = { .v = v, .c = v->cfg, .r = r, .no = no, .longest = longest };
    int       rc;

    *out = (glm_prompt_t) { .frozen = -1, .kind = -1 };
    rc = arrange(&m, out);
    if (rc == 0 && m.ids.n > INT32_MAX / 2)
        rc = glm_refuse(no, 400, "context_length_exceeded", "prompt", "The prompt is too long.");
    if (rc == 0) {
        out->n = (int32_t) m.ids.n;
        if (r->mode == GLM_UNIDIRECTIONAL) out->own = out->n - out->nown;
        out->prompt_tokens = out->n - (r->mode == GLM_BIDIRECTIONAL || r->add_special);
        rc = r->op == GLM_OP_SCORE ? check_scored(&m, out) : check_length(&m, out);
    }
    glm_ids_free(&m.tail);
    if (rc != 0) {
        glm_ids_free(&m.ids);
        return rc;
    }
    out->ids = m.ids.id;
    return 0;
}

int
glm_prompt_tokenize(glm_ids_t *ids, const glm_vocab_t *v, const glm_req_t *r, glm_refusal_t *no)
{
    int  rc = encode(ids, v, r, no);

    if (rc != 0 || !r->add_special) return rc;
    if (r->mode == GLM_BIDIRECTIONAL) return add_special(ids, v->cfg, r, 0, no);
    if (v->cfg->gmask >= 0 && insert_first(ids, v->cfg->gmask) != 0) return glm_refuse_memory(no);
    return 0;
}
