/*
 * infill: see infill.h.
 */
#include "seq.h"

#include <stdlib.h>
#include <string.h>

/* ---- making ---- */

static int
make_choices(glm_infill_t *f)
{
    size_t  n = (size_t) f->nchoices, blanks = (size_t) f->nblanks;

    f->choice = calloc(n, sizeof(*f->choice));
    f->memory = calloc(2 * n * blanks, sizeof(*f->memory));
    if (f->choice == NULL || f->memory == NULL) return GLM_ENOMEM;
    for (int32_t k = 0; k < f->nchoices; k++) {
        f->choice[k].end = f->memory + 2 * (size_t) k * blanks;
        f->choice[k].said_end = f->choice[k].end + blanks;
    }
    return 0;
}

int
glm_infill_make(glm_infill_t **out, glm_req_t *r, const glm_limits_t *lim,
    const glm_prompt_t *p)
{
    glm_infill_t  *f = *out = calloc(1, sizeof(*f));
    int32_t        n = 0;

    if (f == NULL) return GLM_ENOMEM;
    f->r = r;
    f->vocab = lim->vocab;
    f->lim = lim;
    f->nids = p->ncontext;
    f->nown = p->nown;
    f->kind = p->kind;
    f->nblanks = p->nblanks;
    f->max_tokens = p->max_tokens;
    f->nchoices = r->n;
    f->beams = r->beams > 1;
    f->nopen = f->nrefs = 1;
    f->ids = malloc((size_t) f->nids * sizeof(*f->ids));
    f->at = malloc((size_t) f->nblanks * sizeof(*f->at));
    if (f->ids == NULL || f->at == NULL || make_choices(f) != 0) return GLM_ENOMEM;

    memcpy(f->ids, p->ids, (size_t) f->nids * sizeof(*f->ids));
    for (int32_t i = 0; i < f->nids; i++)
        if (f->ids[i] == f->kind) f->at[n++] = i;
    return 0;
}

void
glm_infill_free(glm_infill_t *f)
{
    if (f == NULL) return;
    for (int32_t k = 0; k < f->nchoices && f->choice != NULL; k++) {
        glm_ids_free(&f->choice[k].ids);
        glm_text_free(&f->choice[k].said);
    }
    free(f->choice);
    free(f->memory);
    free(f->ids);
    free(f->at);
    free(f);
}

/* ---- a blank ---- */

static size_t
begin(const size_t *end, int32_t blank)
{
    return blank > 0 ? end[blank - 1] : 0;
}

/* What was told of a blank; not NULL. */
static const char *
said_of(const glm_filling_t *c, int32_t blank, size_t *n)
{
    size_t  from = begin(c->said_end, blank);

    *n = c->said_end[blank] - from;
    return *n > 0 ? c->said.s + from : "";
}

int
glm_infill_token(glm_infill_t *f, const glm_token_out_t *t)
{
    glm_filling_t  *c = &f->choice[t->choice];

    if (glm_ids_push(&c->ids, t->id) != 0) return GLM_ENOMEM;
    return glm_text_add(&c->said, t->text, t->ntext);
}

/* Do these ids say this, alone? */
static int
says(const glm_infill_t *f, const int32_t *ids, size_t n, const char *s, size_t len, int *same)
{
    glm_text_t   text = {0};
    glm_detok_t  d;
    int          rc = 0;

    glm_detok_init(&d, f->vocab.tok);
    d.flags = f->r->special_text ? GLM_DECODE_ALL_NAMES : 0;
    for (size_t i = 0; i < n && rc == 0; i++) rc = glm_detok_push(&d, ids[i], &text);
    *same = text.n == len && (len == 0 || memcmp(text.s, s, len) == 0);
    glm_text_free(&text);
    return rc;
}

/*
 * A stop string cut the last token: the fill is what was told of it, encoded anew, with
 * a blank before it if there was one.  That may take more ids than the token it ends in;
 * those past max_tokens have no place in the rounds behind this one.
 */
static int
cut(const glm_infill_t *f, glm_filling_t *c, size_t from)
{
    size_t       n, len, most = from + (size_t) f->max_tokens;
    const char  *s = said_of(c, c->blank, &n), *name;
    int          same, rc;

    if (c->ids.n == from) return 0;
    rc = says(f, c->ids.id + from, c->ids.n - from, s, n, &same);
    if (rc != 0 || same) return rc;

    name = glm_token_name(f->vocab.tok, c->ids.id[from], &len);
    c->ids.n = from;
    rc = len > 0 && *name == ' ' ? glm_encode(f->vocab.tok, s, n, &c->ids)
                                 : glm_encode_no_prefix(f->vocab.tok, s, n, &c->ids);
    if (c->ids.n > most) c->ids.n = most;
    return rc;
}

int
glm_infill_end(glm_infill_t *f, const glm_finish_out_t *fin)
{
    glm_filling_t  *c = &f->choice[fin->choice];
    size_t          from = begin(c->end, c->blank);

    c->ids.n = from + (size_t) fin->nkept;
    c->said_end[c->blank] = c->said.n;
    if (fin->stop_index >= 0 && cut(f, c, from) != 0) return GLM_ENOMEM;
    c->end[c->blank++] = c->ids.n;
    return 0;
}

/* ---- a round ---- */

static void
add(glm_prompt_t *p, const int32_t *ids, size_t n)
{
    if (n > 0) memcpy(p->ids + p->n, ids, n * sizeof(*ids));
    p->n += (int32_t) n;
}

int
glm_infill_context(const glm_infill_t *f, int32_t choice, glm_prompt_t *out)
{
    const glm_filling_t  *c = &f->choice[choice];
    int32_t               from = 0, eos = f->nids - f->nown;

    *out = (glm_prompt_t) { .kind = f->kind, .nblanks = f->nblanks - c->blank,
                            .max_tokens = f->max_tokens };
    out->ids = malloc(((size_t) f->nids + c->ids.n + 1) * sizeof(*out->ids));
    if (out->ids == NULL) return GLM_ENOMEM;
    for (int32_t b = 0; b < c->blank; b++) {
        size_t  first = begin(c->end, b);

        add(out, f->ids + from, (size_t) (f->at[b] - from));
        add(out, c->ids.id + first, c->end[b] - first);
        from = f->at[b] + 1;
    }
    out->frozen = f->kind != f->vocab.cfg->gmask ? out->n + f->at[c->blank] - from : -1;
    add(out, f->ids + from, (size_t) (f->nids - from));
    out->ncontext = out->prompt_tokens = out->n;
    out->nown = out->n - eos;
    add(out, &f->vocab.cfg->sop, 1);
    return 0;
}

int
glm_infill_share(glm_infill_t *f)
{
    const glm_filling_t  *best = &f->choice[0];
    size_t                ends = 2 * (size_t) f->nblanks * sizeof(size_t);

    for (int32_t k = 1; k < f->nchoices; k++) {
        glm_filling_t  *c = &f->choice[k];

        c->blank = best->blank;
        memcpy(c->end, best->end, ends);
        for (size_t i = 0; i < best->ids.n; i++)
            if (glm_ids_push(&c->ids, best->ids.id[i]) != 0) return GLM_ENOMEM;
        if (best->said.n > 0 && glm_text_add(&c->said, best->said.s, best->said.n) != 0)
            return GLM_ENOMEM;
    }
    return 0;
}

/* ---- what the owner hears ---- */

/* The text of a choice as it grows. */
typedef struct {
    glm_text_t   text;
    uint32_t     nchars;
    glm_detok_t  detok;
} splice_t;

/* Counts the characters from byte `from` on. */
static void
count(splice_t *s, size_t from)
{
    for (; from < s->text.n; from++) s->nchars += (s->text.s[from] & 0xC0) != 0x80;
}

static int
add_prompt(splice_t *s, const int32_t *ids, int32_t n)
{
    size_t  from = s->text.n;
    int     rc = 0;

    for (int32_t i = 0; i < n && rc == 0; i++) rc = glm_detok_push(&s->detok, ids[i], &s->text);
    if (rc == 0) rc = glm_detok_flush(&s->detok, 1, &s->text);
    count(s, from);
    return rc;
}

static size_t
leading_blanks(const char *s, size_t n)
{
    size_t  i = 0;

    while (i < n && s[i] == ' ') i++;
    return i;
}

/*
 * A fill as it was told.  It was told from its start, without the blank before its
 * first word: that comes before the span, when something stands there.
 */
static int
add_fill(splice_t *s, const int32_t *ids, size_t n, const char *said, size_t len,
    glm_span_t *span)
{
    glm_text_t  text = {0};
    size_t      from = s->text.n, told = leading_blanks(said, len), have;
    int         rc = 0;

    for (size_t i = 0; i < n && rc == 0; i++) rc = glm_detok_push(&s->detok, ids[i], &text);
    glm_detok_flush(&s->detok, 0, &text);      /* half a character was not told */
    have = leading_blanks(text.s, text.n);
    glm_text_free(&text);
    for (; have > told && rc == 0; have--) rc = glm_text_add(&s->text, " ", 1);
    count(s, from);

    span->start = s->nchars;
    from = s->text.n;
    if (rc == 0) rc = glm_text_add(&s->text, said, len);
    count(s, from);
    span->end = s->nchars;
    return rc;
}

static int
splice(const glm_infill_t *f, const glm_filling_t *c, splice_t *s, glm_span_t *span)
{
    int32_t  from = 0;

    glm_detok_init(&s->detok, f->vocab.tok);
    s->detok.flags = f->r->special_text ? GLM_DECODE_ALL_NAMES : GLM_DECODE_MASK_NAMES;
    for (int32_t b = 0; b < f->nblanks; b++) {
        size_t       first = begin(c->end, b), len;
        const char  *said = said_of(c, b, &len);

        if (add_prompt(s, f->ids + from, f->at[b] - from) != 0
            || add_fill(s, c->ids.id + first, c->end[b] - first, said, len, &span[b]) != 0)
            return GLM_ENOMEM;
        from = f->at[b] + 1;
    }
    return add_prompt(s, f->ids + from, f->nown - from);
}

int
glm_infill_tell(glm_infill_t *f, int32_t choice)
{
    splice_t     s = {0};
    glm_span_t  *span = calloc((size_t) f->nblanks, sizeof(*span));
    int          rc = span == NULL ? GLM_ENOMEM : 0;

    if (rc == 0 && f->vocab.tok != NULL) rc = splice(f, &f->choice[choice], &s, span);
    if (rc == 0 && f->r->sink->filled != NULL) {
        glm_filled_t  t = { .choice = choice, .text = s.text.n > 0 ? s.text.s : "",
                            .ntext = s.text.n, .span = span, .nblanks = f->nblanks };

        f->r->sink->filled(f->r, &t);
    }
    if (rc == 0) f->nfilled++;
    glm_text_free(&s.text);
    free(span);
    return rc;
}

static void
finish(glm_infill_t *f, int32_t choice, int32_t blank, int32_t ntokens, glm_finish_t reason)
{
    glm_finish_out_t  t = {
        .choice = choice, .blank = blank, .reason = reason, .stop_id = -1, .stop_index = -1,
        .ntokens = ntokens, .nkept = ntokens
    };

    f->r->sink->finish(f->r, &t);
}

int
glm_infill_finish(glm_infill_t *f, glm_finish_t reason)
{
    for (int32_t k = 0; k < f->nchoices; k++) {
        glm_filling_t  *c = &f->choice[k];
        int32_t         n;

        if (c->blank == f->nblanks) continue;
        if (f->beams && k > 0) c->blank = f->nblanks - 1;     /* nobody else has the others */
        n = (int32_t) (c->ids.n - begin(c->end, c->blank));
        for (; c->blank < f->nblanks; c->blank++, n = 0) finish(f, k, c->blank, n, reason);
        if (reason == GLM_FINISH_LENGTH && glm_infill_tell(f, k) != 0) return GLM_ENOMEM;
    }
    return 0;
}
