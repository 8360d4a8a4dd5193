/*
 * fake_say: see fake_job.h.  The ids, texts and numbers of every message.
 */
#include "fake_job.h"

#include <stdlib.h>
#include <string.h>

static const char *const  utf8_text = "\xC3\xA9\xE6\xBC\xA2\xF0\x9F\x98\x80";   /* 2, 3, 4 */

const char *
fake_token_text(void *arg, int32_t id, size_t *n)
{
    static _Thread_local char  text[16];

    (void) arg;
    if (id < 256) {
        text[0] = (char) id;
        *n = 1;
    } else {
        *n = (size_t) snprintf(text, sizeof(text), "t%d ", id);
    }
    if (id == FAKE_MASK) *n = (size_t) snprintf(text, sizeof(text), "[MASK]");
    return text;
}

void
fake_say_ids(job_t *j)
{
    size_t      i, k;
    glm_ids_t   ids = {0};
    glm_req_t  *r = j->r;

    for (i = 0; i < r->nseg; i++) {
        for (k = 0; k < r->seg[i].n; k++) {
            glm_ids_push(&ids, r->seg[i].kind == GLM_SEG_IDS ? r->seg[i].ids[k]
                               : (int32_t) (uint8_t) r->seg[i].text[k]);
        }
    }
    if (r->add_special) {
        glm_ids_push(&ids, FAKE_MASK);
        glm_ids_push(&ids, FAKE_EOS);
    }
    r->sink->ids(r, ids.id, ids.n);
    glm_ids_free(&ids);
}

/* ---- INFILL ---- */

/* The next mask at or after *at, and its size. */
static size_t
next_mask(const job_t *j, size_t *at)
{
    for ( ; *at < j->nprompt; ++*at) {
        if (j->nprompt - *at >= 6 && memcmp(j->prompt + *at, "[MASK]", 6) == 0) return 6;
        if (j->nprompt - *at >= 7 && memcmp(j->prompt + *at, "[sMASK]", 7) == 0) return 7;
    }
    return 0;
}

int
fake_count_masks(const job_t *j)
{
    int     n = 0;
    size_t  at = 0, size;

    if (j->r->nseg == 0 || j->r->seg[0].kind == GLM_SEG_PLAIN) return 0;
    while ((size = next_mask(j, &at)) > 0) {
        n++;
        at += size;
    }
    return n;
}

static uint32_t
characters(const char *s, size_t n)
{
    uint32_t  c = 0;

    while (n-- > 0) c += ((uint8_t) *s++ & 0xC0) != 0x80;
    return c;
}

/* The prompt with the fills of choice c. */
void
fake_say_filled(const job_t *j, int c)
{
    int           b, own = j->r->beams > 1 ? 0 : c;
    size_t        at = 0, from = 0, size;
    glm_text_t    t = {0};
    glm_span_t    span[GLM_MAX_BLANKS] = {{0}};
    const glm_text_t  *f;
    glm_filled_t  out = { .choice = c, .span = span, .nblanks = j->nblanks };

    for (b = 0; b < j->nblanks; b++) {
        f = &j->fill[(b < j->nblanks - 1 ? own : c) * j->nblanks + b];
        size = next_mask(j, &at);
        glm_text_add(&t, j->prompt + from, at - from);
        span[b].start = characters(t.s, t.n);
        glm_text_add(&t, f->s, f->n);
        span[b].end = span[b].start + characters(f->s, f->n);
        at += size;
        from = at;
    }
    glm_text_add(&t, j->prompt + from, j->nprompt - from);
    if (j->s.badspan) span[0].end = 1 << 20;
    out.text = t.s;
    out.ntext = t.n;
    j->r->sink->filled(j->r, &out);
    glm_text_free(&t);
}

/* ---- the prompt ---- */

/* An id a byte; -0.5 - index / 8, itself the second best.  The first has none. */
static void
prompt_logprobs(glm_sampled_t *s, int32_t id, size_t i, int n)
{
    int  k;

    *s = (glm_sampled_t) { .id = id, .logprob = -0.5f - (float) i / 8, .ntop = n };
    for (k = 0; k < n; k++) {
        s->top[k].id = k == 1 ? id : 500 + k;
        s->top[k].logprob = k == 1 ? s->logprob : s->logprob + 0.25f - (float) k / 4;
    }
}

void
fake_say_prompt(job_t *j)
{
    size_t           i, n = j->nprompt;
    glm_sampled_t    s;
    glm_token_out_t  t = { .text = "" };

    if (j->r->want_text) j->r->sink->text(j->r, n > 0 ? j->prompt : "", n);
    for (i = 0; i < n && j->r->want_prompt_logprobs; i++) {
        t.id = (uint8_t) j->prompt[i];
        t.offset = (uint32_t) i;
        prompt_logprobs(&s, t.id, i, j->r->nprompt_logprobs);
        t.sampled = i > 0 ? &s : NULL;
        j->r->sink->prompt(j->r, &t);
    }
}

/* ---- tokens ---- */

static void
logprobs(glm_sampled_t *s, int32_t id, int n)
{
    int  i;

    *s = (glm_sampled_t) { .id = id, .logprob = -0.25f, .ntop = n };
    for (i = 0; i < n; i++) {
        s->top[i].id = i == 0 ? id : 1000 + i;
        s->top[i].logprob = -0.25f - (float) i;
    }
}

/* The id and the text of token i. */
static int32_t
make_text(job_t *j, int i, glm_text_t *t)
{
    int          k;
    char         byte;
    size_t       n;
    const char  *s;

    if (j->s.echo || j->s.utf8) {
        byte = j->s.echo ? j->prompt[i] : utf8_text[i % 9];
        glm_text_add(t, &byte, 1);
        return (uint8_t) byte;
    }
    if (j->s.bytes) {
        for (k = 0; k < j->s.bytes; k++) glm_text_add(t, &"abcdefghijklmnop"[(i + k) % 16], 1);
    } else if (j->s.text[0]) {
        glm_text_add(t, j->s.text, strlen(j->s.text));
    } else {
        s = fake_token_text(NULL, 256 + i % 1000, &n);
        glm_text_add(t, s, n);
    }
    return 256 + i % 1000;
}

/* Held-back text that may go out: whole characters, or all at the end. */
static size_t
ready_bytes(const job_t *j, int last)
{
    size_t   n = j->held.n, back = 0, need;
    uint8_t  b;

    if (j->s.held && !last) return 0;
    while (back < n && back < 3 && ((uint8_t) j->held.s[n - 1 - back] & 0xC0) == 0x80) back++;
    if (n == back) return 0;
    b = (uint8_t) j->held.s[n - 1 - back];
    need = b >= 0xF0 ? 4 : b >= 0xE0 ? 3 : b >= 0xC0 ? 2 : 1;
    return back + 1 < need ? n - back - 1 : n;
}

void
fake_say_token(job_t *j, int last)
{
    int              c;
    char             own[32];
    size_t           n;
    glm_sampled_t    s;
    glm_token_out_t  t = { .offset = (uint32_t) j->i };

    if (j->r->echo) t.offset += (uint32_t) j->nprompt;
    t.id = make_text(j, j->i, &j->held);
    n = ready_bytes(j, last);
    t.text = j->held.s;
    t.ntext = n;
    if (j->r->sample.nlogprobs >= 0) {
        logprobs(&s, t.id, j->r->sample.nlogprobs);
        t.sampled = &s;
    }
    t.blank = j->blank;
    for (c = 0; c < j->r->n; c++) {
        if (c > 0 && j->r->beams > 1 && j->blank + 1 < j->nblanks) break;
        t.choice = c;
        if (j->s.bychoice) {
            t.ntext = (size_t) snprintf(own, sizeof(own), "c%d.%d ", c, j->i);
            t.text = own;
        }
        if (j->fill != NULL && j->blank < j->nblanks) {
            glm_text_add(&j->fill[c * j->nblanks + j->blank], t.text, t.ntext);
        }
        j->r->sink->token(j->r, &t);
    }
    memmove(j->held.s, j->held.s + n, j->held.n - n);
    j->held.n -= n;
    j->i++;
}

/* All choices at once; the first of them decides nothing for the others. */
void
fake_say_scores(job_t *j)
{
    size_t               i, k;
    glm_sampled_t        s = { .ntop = 0 };
    glm_token_out_t      t = {0};
    const glm_segment_t *c;
    glm_finish_out_t     f = { .reason = GLM_FINISH_LENGTH, .stop_id = -1, .stop_index = -1 };

    for (i = 0; i < j->r->nchoice; i++) {
        c = &j->r->choice[i];
        f.score = 0;
        for (k = 0; k < c->n; k++) {
            t.choice = f.choice = (int32_t) i;
            t.id = c->kind == GLM_SEG_IDS ? c->ids[k] : (uint8_t) c->text[k];
            t.text = fake_token_text(NULL, t.id, &t.ntext);
            if (t.ntext == 1 && (uint8_t) t.text[0] >= 0x80) t.ntext = 0;
            s.id = t.id;
            s.logprob = (float) -(t.id % 8 + 1) / 8 * (j->nprompt > 0 ? 1 : 2);
            t.sampled = &s;
            f.score += s.logprob;
            j->r->sink->token(j->r, &t);
        }
        j->i += (int) c->n;
        f.ntokens = f.nkept = (int32_t) c->n;
        j->r->sink->finish(j->r, &f);
    }
}
