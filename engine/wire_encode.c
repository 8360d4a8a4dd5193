/*
 * wire_encode: see wire_encode.h.
 */
#include "wire_encode.h"

#include <stdlib.h>
#include <string.h>

static const uint8_t  zeros[8];

void
glm_wbuf_put(glm_wbuf_t *b, const void *s, size_t n)
{
    size_t    cap;
    uint8_t  *p;

    if (b->failed || n == 0) return;
    if (n > b->cap - b->n) {
        cap = b->cap + b->cap / 2;
        if (cap < b->n + n) cap = b->n + n;
        if (cap < 64) cap = 64;
        p = realloc(b->p, cap);
        if (p == NULL) {
            b->failed = 1;
            return;
        }
        b->p = p;
        b->cap = cap;
    }
    memcpy(b->p + b->n, s, n);
    b->n += n;
}

void
glm_wbuf_pad(glm_wbuf_t *b, size_t align)
{
    glm_wbuf_put(b, zeros, (align - b->n % align) % align);
}

void
glm_wbuf_free(glm_wbuf_t *b)
{
    free(b->p);
    *b = (glm_wbuf_t) {0};
}

void
glm_wire_section(glm_wbuf_t *b, uint16_t type, const void *s, size_t n)
{
    glm_sec_t  sec = { .type = type, .size = (uint32_t) n };

    glm_wbuf_put(b, &sec, sizeof(sec));
    glm_wbuf_put(b, s, n);
    glm_wbuf_pad(b, GLM_WIRE_ALIGN);
}

void
glm_wire_string(glm_wbuf_t *b, const void *s, size_t n)
{
    glm_str_t  str = { .size = (uint32_t) n };

    glm_wbuf_put(b, &str, sizeof(str));
    glm_wbuf_put(b, s, n);
    glm_wbuf_pad(b, 4);
}

static void
logprob(glm_wbuf_t *b, glm_logprob_rec_t *rec, const char *s, size_t n)
{
    if (n > UINT16_MAX) n = UINT16_MAX;
    rec->text_size = (uint16_t) n;
    glm_wbuf_put(b, rec, sizeof(*rec));
    glm_wbuf_put(b, s, n);
    glm_wbuf_pad(b, 4);
}

void
glm_wire_logprobs(glm_wbuf_t *b, const glm_sampled_t *s, uint32_t offset,
    glm_token_text_pt text, void *arg)
{
    int                i;
    size_t             n;
    const char        *t;
    glm_logprob_rec_t  rec;

    rec = (glm_logprob_rec_t) { .id = s->id, .logprob = s->logprob, .offset = offset,
                                .ntop = (uint16_t) s->ntop };
    t = text(arg, s->id, &n);
    logprob(b, &rec, t, n);

    for (i = 0; i < s->ntop; i++) {
        rec = (glm_logprob_rec_t) { .id = s->top[i].id, .logprob = s->top[i].logprob };
        t = text(arg, rec.id, &n);
        logprob(b, &rec, t, n);
    }
}

void
glm_wire_token_name(glm_wbuf_t *b, int32_t id, const char *s, size_t n)
{
    glm_logprob_rec_t  rec = { .id = id };

    logprob(b, &rec, s, n);
}

void
glm_wire_accepted(glm_wbuf_t *b, const glm_accepted_t *a)
{
    glm_msg_accepted_t  m = {
        .size = sizeof(m), .prompt_tokens = a->prompt_tokens, .max_tokens = a->max_tokens,
        .queue_depth = (uint32_t) a->queue_depth, .seed = a->seed,
    };

    glm_wbuf_put(b, &m, sizeof(m));
}

void
glm_wire_prompt_head(glm_wbuf_t *b)
{
    glm_msg_prompt_t  m = { .size = sizeof(m) };

    glm_wbuf_put(b, &m, sizeof(m));
}

void
glm_wire_tokens_head(glm_wbuf_t *b, int32_t choice, int32_t blank, uint32_t ntokens)
{
    glm_msg_tokens_t  m = { .size = sizeof(m), .choice = (uint32_t) choice,
                            .blank = (uint32_t) blank, .ntokens = ntokens };

    glm_wbuf_put(b, &m, sizeof(m));
}

static uint32_t
reason(glm_finish_t f)
{
    switch (f) {
    case GLM_FINISH_STOP:   return GLM_REASON_STOP;
    case GLM_FINISH_LENGTH: return GLM_REASON_LENGTH;
    case GLM_FINISH_REPEAT: return GLM_REASON_REPEAT;
    case GLM_FINISH_CANCEL: return GLM_REASON_CANCEL;
    default:                return GLM_REASON_ERROR;
    }
}

void
glm_wire_finish(glm_wbuf_t *b, const glm_finish_out_t *f, const glm_stop_t *stop)
{
    glm_msg_finish_t  m = {
        .size = sizeof(m), .choice = (uint32_t) f->choice, .blank = (uint32_t) f->blank,
        .reason = reason(f->reason), .stop_id = f->stop_id, .stop_index = f->stop_index,
        .ntokens = (uint32_t) f->ntokens, .nkept = (uint32_t) f->nkept, .score = f->score,
    };

    glm_wbuf_put(b, &m, sizeof(m));
    if (stop != NULL) glm_wire_section(b, GLM_SEC_STOPTEXT, stop->s, stop->n);
}

_Static_assert(sizeof(glm_span_t) == sizeof(glm_span_rec_t)
               && offsetof(glm_span_t, end) == offsetof(glm_span_rec_t, end),
               "spans are sent as the engine has them");

void
glm_wire_filled(glm_wbuf_t *b, const glm_filled_t *f)
{
    glm_msg_filled_t  m = { .size = sizeof(m), .choice = (uint32_t) f->choice };

    glm_wbuf_put(b, &m, sizeof(m));
    glm_wire_section(b, GLM_SEC_TEXT, f->text, f->ntext);
    glm_wire_section(b, GLM_SEC_SPANS, f->span, (size_t) f->nblanks * sizeof(*f->span));
}

static uint64_t
since(uint64_t from, uint64_t to)
{
    return from != 0 && to > from ? to - from : 0;
}

size_t
glm_wire_done(uint8_t *out, const glm_done_t *d)
{
    glm_msg_done_t  m = {
        .size = sizeof(m), .cancelled = d->cancelled != 0,
        .prompt_tokens = (uint32_t) d->prompt_tokens,
        .completion_tokens = (uint32_t) d->completion_tokens,
        .cached_tokens = (uint32_t) d->cached_tokens,
        .queue_ns = since(d->t_submit, d->t_admit),
        .first_ns = since(d->t_submit, d->t_first),
        .total_ns = since(d->t_submit, d->t_done),
    };

    memcpy(out, &m, sizeof(m));
    return sizeof(m);
}

size_t
glm_wire_error(uint8_t *out, const glm_refusal_t *e)
{
    size_t           n = strnlen(e->text, sizeof(e->text) - 1);
    size_t           padded = (n + 7) & ~(size_t) 7;
    glm_sec_t        sec = { .type = GLM_SEC_TEXT, .size = (uint32_t) n };
    glm_msg_error_t  m = {
        .size = sizeof(m), .status = (uint32_t) e->status, .retry_after = e->retry_after,
        .limit = e->limit, .value = e->value,
    };

    memcpy(m.code, e->code, strnlen(e->code, sizeof(m.code) - 1));
    memcpy(m.param, e->param, strnlen(e->param, sizeof(m.param) - 1));
    memcpy(out, &m, sizeof(m));
    if (n == 0) return sizeof(m);

    memset(out + sizeof(m), 0, sizeof(sec) + padded);
    memcpy(out + sizeof(m), &sec, sizeof(sec));
    memcpy(out + sizeof(m) + sizeof(sec), e->text, n);
    return sizeof(m) + sizeof(sec) + padded;
}
