
#include "ngx_http_glm_module.h"


static ngx_int_t ngx_http_glm_reply_accepted(ngx_http_glm_call_t *call,
    u_char *p, size_t len);
static ngx_int_t ngx_http_glm_reply_prompt(ngx_http_glm_call_t *call,
    u_char *p, size_t len);
static ngx_int_t ngx_http_glm_reply_tokens(ngx_http_glm_call_t *call,
    u_char *p, size_t len);
static ngx_int_t ngx_http_glm_reply_marks(ngx_http_glm_call_t *call,
    ngx_http_glm_choice_t *ch, ngx_http_glm_sections_t *s, uint32_t n);
static ngx_int_t ngx_http_glm_reply_finish(ngx_http_glm_call_t *call,
    u_char *p, size_t len);
static ngx_int_t ngx_http_glm_reply_done(ngx_http_glm_call_t *call,
    u_char *p, size_t len);
static const char *ngx_http_glm_reply_param(ngx_http_glm_ctx_t *ctx,
    const char *name);
static ngx_int_t ngx_http_glm_reply_error(ngx_http_glm_call_t *call,
    u_char *p, size_t len);


/*
 * One whole message for a request that is still there.  p is a copy of what
 * was in the ring.  NGX_ERROR: nonsense, the peer has been marked as failed.
 */

ngx_int_t
ngx_http_glm_reply(ngx_http_glm_call_t *call, ngx_uint_t type, u_char *p,
    size_t len)
{
    switch (type) {

    case GLM_MSG_ACCEPTED:
        return ngx_http_glm_reply_accepted(call, p, len);

    case GLM_MSG_PROMPT:
        return ngx_http_glm_reply_prompt(call, p, len);

    case GLM_MSG_TOKENS:
        return ngx_http_glm_reply_tokens(call, p, len);

    case GLM_MSG_FINISH:
        return ngx_http_glm_reply_finish(call, p, len);

    case GLM_MSG_FILLED:
        return ngx_http_glm_reply_filled(call, p, len);

    case GLM_MSG_DONE:
        return ngx_http_glm_reply_done(call, p, len);

    default: /* GLM_MSG_ERROR */
        return ngx_http_glm_reply_error(call, p, len);
    }
}


/* Of the first choice, if all of them have ended by themselves. */

const char *
ngx_http_glm_finish_reason(ngx_http_glm_ctx_t *ctx)
{
    ngx_uint_t  i;

    if (ctx->error) {
        return ctx->created ? "error" : NULL;
    }

    if (ctx->ncalls == 0 || ctx->calls->nchoices == 0) {
        return NULL;
    }

    for (i = 0; i < ctx->ncalls; i++) {
        if (ctx->calls[i].nfinished != ctx->calls[i].nchoices) {
            return ctx->calls[i].accepted ? "abort" : NULL;
        }
    }

    switch (ctx->calls->choices->reason) {

    case GLM_REASON_STOP:
        return "stop";

    case GLM_REASON_LENGTH:
        return "length";

    case GLM_REASON_REPEAT:
        return "repetition";

    default:
        return "abort";
    }
}


/* us a token of the longest choice, the first one aside; 0: not known */

uint64_t
ngx_http_glm_tpot(ngx_http_glm_ctx_t *ctx)
{
    uint64_t              us;
    ngx_uint_t            i, k, n;
    ngx_http_glm_call_t  *call;

    n = 0;

    for (i = 0; i < ctx->ncalls; i++) {
        call = &ctx->calls[i];

        for (k = 0; k < call->nchoices; k++) {
            n = ngx_max(n, call->choices[k].before
                           + call->choices[k].ntokens);
        }
    }

    if (n < 2) {
        return 0;
    }

    us = ctx->span_us;

    /* a client that left: as the tokens came here */

    if (us == 0) {
        us = (uint64_t) (ctx->came - ctx->start) * 1000;
        us -= ngx_min(us, ctx->ttft_us);
    }

    return us / (n - 1);
}


static ngx_int_t
ngx_http_glm_reply_accepted(ngx_http_glm_call_t *call, u_char *p, size_t len)
{
    glm_msg_accepted_t       m;
    ngx_http_glm_ctx_t      *ctx;
    ngx_http_glm_sections_t  s;

    ctx = call->ctx;

    if (ngx_http_glm_section_read(&m, sizeof(glm_msg_accepted_t), &s, p, len)
        != NGX_OK
        || call->accepted || call->nchoices == 0
        || m.prompt_tokens < 0 || m.max_tokens < 0
        || (uint32_t) m.prompt_tokens > ctx->max_seq
        || (uint32_t) m.max_tokens > ctx->max_seq)
    {
        return ngx_http_glm_reply_nonsense(call, "ACCEPTED is malformed");
    }

    call->accepted = 1;
    call->max_tokens = ctx->api->bit == NGX_HTTP_GLM_API_SCORE
                       ? ctx->max_seq : (uint32_t) m.max_tokens;
    call->prompt_tokens = m.prompt_tokens;

    ctx->naccepted++;
    ctx->prompt_tokens += m.prompt_tokens;
    ctx->has_usage = 1;

    if (ctx->stream) {
        ngx_http_glm_ring_dirty(call->peer, ctx);
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_glm_reply_prompt(ngx_http_glm_call_t *call, u_char *p, size_t len)
{
    ngx_int_t                rc;
    ngx_uint_t               chars;
    glm_msg_prompt_t         m;
    ngx_http_glm_sections_t  s;

    if (ngx_http_glm_section_read(&m, sizeof(glm_msg_prompt_t), &s, p, len)
        != NGX_OK
        || m.flags
        || s.ids.len % sizeof(int32_t)
        || ngx_http_glm_section_logprobs(&s.logprobs, 0) != NGX_OK
        || ngx_http_glm_utf8(s.text.data, s.text.len, &chars) != NGX_OK)
    {
        return ngx_http_glm_reply_nonsense(call, "PROMPT is malformed");
    }

    call->prompted = 1;
    call->chars += chars;

    rc = ngx_http_glm_reply_add(call, &call->ids, &s.ids);

    if (rc == NGX_OK) {
        rc = ngx_http_glm_reply_add(call, &call->strs, &s.logprobs);
    }

    if (rc == NGX_OK) {
        rc = ngx_http_glm_reply_add(call, &call->text, &s.text);
    }

    /* it is collected, also before a stream */

    if (rc == NGX_OK && call->owed >= call->share / 2) {
        ngx_http_glm_ring_grant(call);
    }

    return rc;
}


static ngx_int_t
ngx_http_glm_reply_tokens(ngx_http_glm_call_t *call, u_char *p, size_t len)
{
    ngx_int_t                 rc;
    ngx_uint_t                chars;
    glm_msg_tokens_t          m;
    ngx_http_glm_ctx_t       *ctx;
    ngx_http_glm_choice_t    *ch;
    ngx_http_glm_sections_t   s;

    ctx = call->ctx;
    chars = 0;

    if (ngx_http_glm_section_read(&m, sizeof(glm_msg_tokens_t), &s, p, len)
        != NGX_OK
        || !call->accepted
        || m.choice >= call->nchoices
        || ngx_http_glm_infill_blank(call, m.choice, m.blank) != NGX_OK
        || s.ids.len != (size_t) m.ntokens * sizeof(int32_t)
        || (s.logprobs.len == 0
            && m.ntokens && ctx->params.logprobs >= 0)
        || (s.logprobs.len
            && (m.ntokens == 0
                || ngx_http_glm_section_logprobs(&s.logprobs, m.ntokens)
                   != NGX_OK))
        || ngx_http_glm_utf8(s.text.data, s.text.len, &chars) != NGX_OK)
    {
        return ngx_http_glm_reply_nonsense(call, "TOKENS is malformed");
    }

    ch = &call->choices[m.choice];

    if (ch->reason || m.ntokens > call->max_tokens - ch->ntokens) {
        return ngx_http_glm_reply_nonsense(call, "too many tokens came");
    }

    if (!ctx->got_token) {
        ctx->got_token = 1;
        ctx->rearm = 1;
        ngx_http_glm_ring_dirty(call->peer, ctx);
    }

    ctx->last_token = ngx_current_msec;
    ctx->came = ngx_current_msec;
    ctx->completion_tokens += m.ntokens;
    call->ntokens += m.ntokens;

    if (ctx->ttft_us == 0) {
        ctx->ttft_us = (uint64_t) (ngx_current_msec - ctx->start) * 1000 + 1;
    }

    ch->ntokens += m.ntokens;
    ch->chars += chars;

    rc = ngx_http_glm_reply_add(call, &ch->text, &s.text);

    if (ctx->api->bit == NGX_HTTP_GLM_API_EDITOR) {
        ngx_http_glm_editor_late(call, &s.text);
    }

    if (rc == NGX_OK && ctx->keep_ids) {
        rc = ngx_http_glm_reply_marks(call, ch, &s, m.ntokens);
    }

    if (rc != NGX_OK) {
        return rc;
    }

    if (ctx->stream) {
        ngx_http_glm_stream_choice(call, ch);
        ngx_http_glm_ring_dirty(call->peer, ctx);
    }

    ngx_http_glm_reply_grant(call);

    return NGX_OK;
}


/* A plain answer is collected here, however long it is. */

void
ngx_http_glm_reply_grant(ngx_http_glm_call_t *call)
{
    if (!call->ctx->stream && call->owed >= call->share / 2) {
        ngx_http_glm_ring_grant(call);
    }
}


/* Keeps ids and log-probabilities, and for each token where its text begins. */

static ngx_int_t
ngx_http_glm_reply_marks(ngx_http_glm_call_t *call, ngx_http_glm_choice_t *ch,
    ngx_http_glm_sections_t *s, uint32_t n)
{
    u_char                *p;
    uint32_t               i, k, base;
    ngx_int_t              rc;
    ngx_str_t              mark;
    glm_logprob_rec_t      rec;
    ngx_http_glm_mark_t    m;

    rc = ngx_http_glm_reply_add(call, &ch->ids, &s->ids);

    if (rc == NGX_OK) {
        rc = ngx_http_glm_reply_add(call, &ch->logprobs, &s->logprobs);
    }

    /* with echo offsets go on from the end of the prompt */

    base = call->echo ? call->chars : 0;

    p = s->logprobs.data;
    mark.data = (u_char *) &m;
    mark.len = sizeof(ngx_http_glm_mark_t);

    for (i = 0; i < n && rc == NGX_OK; i++) {

        m.offset = ch->begins;
        m.size = 0;

        if (s->logprobs.len) {
            ngx_memcpy(&rec, p, sizeof(glm_logprob_rec_t));
            m.offset = rec.offset - ngx_min(rec.offset, base);

            for (k = rec.ntop + 1; k; k--) {
                ngx_memcpy(&rec, p, sizeof(glm_logprob_rec_t));
                m.size += sizeof(glm_logprob_rec_t)
                          + ngx_align(rec.text_size, 4);
                p += sizeof(glm_logprob_rec_t) + ngx_align(rec.text_size, 4);
            }
        }

        rc = ngx_http_glm_reply_add(call, &ch->marks, &mark);
    }

    /* without offsets a token begins where the text ended before it */

    ch->begins = ch->chars;

    return rc;
}


static ngx_int_t
ngx_http_glm_reply_finish(ngx_http_glm_call_t *call, u_char *p, size_t len)
{
    glm_msg_finish_t          m;
    ngx_http_glm_ctx_t       *ctx;
    ngx_http_glm_choice_t    *ch;
    ngx_http_glm_sections_t   s;

    ctx = call->ctx;

    if (ngx_http_glm_section_read(&m, sizeof(glm_msg_finish_t), &s, p, len)
        != NGX_OK
        || !call->accepted
        || m.choice >= call->nchoices
        || ngx_http_glm_infill_blank(call, m.choice, m.blank) != NGX_OK
        || m.reason < GLM_REASON_STOP || m.reason > GLM_REASON_REPEAT
        || m.stop_index < -1
        || (m.stop_index >= 0
            && (ngx_uint_t) m.stop_index >= ctx->params.nstops)
        || m.nkept > m.ntokens || m.ntokens > call->max_tokens)
    {
        return ngx_http_glm_reply_nonsense(call, "FINISH is malformed");
    }

    ch = &call->choices[m.choice];

    if (ch->reason) {
        return ngx_http_glm_reply_nonsense(call, "a second FINISH came");
    }

    ch->reason = m.reason;
    ch->stop_id = m.stop_id;
    ch->stop_index = m.stop_index;
    ch->score = m.score;
    ch->nkept = ngx_min(m.nkept, ch->ntokens);
    ch->ntokens = ngx_max(ch->ntokens, m.ntokens);

    if (ctx->api->bit != NGX_HTTP_GLM_API_INFILL) {
        call->nfinished++;    /* of several blanks FILLED tells */
    }

    if (m.reason == GLM_REASON_CANCEL || m.reason == GLM_REASON_ERROR) {
        (void) ngx_http_glm_error(ctx, NGX_HTTP_INTERNAL_SERVER_ERROR, NULL,
                                  NULL, "The engine gave the request up.");
        ngx_http_glm_ring_dirty(call->peer, ctx);
        return NGX_OK;
    }

    if (ctx->stream) {
        ngx_http_glm_stream_choice(call, ch);
        ngx_http_glm_ring_dirty(call->peer, ctx);
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_glm_reply_done(ngx_http_glm_call_t *call, u_char *p, size_t len)
{
    glm_msg_done_t            m;
    ngx_http_glm_ctx_t       *ctx;
    ngx_http_glm_sections_t   s;

    ctx = call->ctx;

    if (ngx_http_glm_section_read(&m, sizeof(glm_msg_done_t), &s, p, len)
        != NGX_OK
        || call->ended)
    {
        return ngx_http_glm_reply_nonsense(call, "DONE is malformed");
    }

    call->ended = 1;

    ctx->ndone++;
    ctx->has_usage = 1;
    ctx->prompt_tokens += (uint64_t) m.prompt_tokens - call->prompt_tokens;
    ctx->completion_tokens += (uint64_t) m.completion_tokens - call->ntokens;
    ctx->cached_tokens += m.cached_tokens;
    ctx->queue_us = ngx_max(ctx->queue_us, m.queue_ns / 1000);

    /* what the engine measured is better, and the first of several counts */

    if (m.first_ns && (ctx->ndone == 1 || m.first_ns / 1000 < ctx->ttft_us)) {
        ctx->ttft_us = m.first_ns / 1000;
    }

    if (m.first_ns && m.total_ns > m.first_ns) {
        ctx->span_us = ngx_max(ctx->span_us,
                               (m.total_ns - m.first_ns) / 1000);
    }

    if (ctx->cut && call->nfinished == 0) {

        /* after CANCEL no FINISH comes: what there is, is the answer */

        call->choices->reason = GLM_REASON_LENGTH;
        call->choices->nkept = call->choices->ntokens;
        call->nfinished = 1;
    }

    if (call->nfinished != call->nchoices
        || (call->nchoices == 0 && !call->prompted))
    {
        (void) ngx_http_glm_error(ctx, NGX_HTTP_INTERNAL_SERVER_ERROR, NULL,
                                  NULL, "The engine gave the request up.");

    } else if (ctx->error == NULL && ctx->ndone == ctx->ncalls) {
        if (ctx->stream) {
            ngx_http_glm_stream_done(ctx);
        }

        ctx->finished = 1;
    }

    ngx_http_glm_ring_dirty(call->peer, ctx);

    return NGX_OK;
}


/* The engine knows a field by one name. */

static const char *
ngx_http_glm_reply_param(ngx_http_glm_ctx_t *ctx, const char *name)
{
    if (ngx_strcmp(name, "prompt") == 0) {
        return ngx_http_glm_prompt_param(ctx);
    }

    return ctx->api->bit == NGX_HTTP_GLM_API_EDITOR
           ? ngx_http_glm_editor_param(name) : name;
}


static ngx_int_t
ngx_http_glm_reply_error(ngx_http_glm_call_t *call, u_char *p, size_t len)
{
    glm_msg_error_t           m;
    ngx_http_glm_ctx_t       *ctx;
    ngx_http_glm_sections_t   s;

    ctx = call->ctx;

    if (ngx_http_glm_section_read(&m, sizeof(glm_msg_error_t), &s, p, len)
        != NGX_OK
        || ngx_http_glm_utf8(s.text.data, s.text.len, NULL) != NGX_OK)
    {
        return ngx_http_glm_reply_nonsense(call, "ERROR is malformed");
    }

    m.code[sizeof(m.code) - 1] = '\0';
    m.param[sizeof(m.param) - 1] = '\0';

    if (ngx_http_glm_utf8((u_char *) m.code, ngx_strlen(m.code), NULL)
        != NGX_OK
        || ngx_http_glm_utf8((u_char *) m.param, ngx_strlen(m.param), NULL)
           != NGX_OK)
    {
        return ngx_http_glm_reply_nonsense(call, "ERROR is malformed");
    }

    if (m.status < 400 || m.status > 599) {
        m.status = NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    call->ended = 1;

    if (s.text.len == 0) {
        ngx_str_set(&s.text, "The engine refused the request.");
    }

    (void) ngx_http_glm_error(ctx, m.status, m.code,
                              ngx_http_glm_reply_param(ctx, m.param),
                              "%V", &s.text);

    if (ctx->error && m.retry_after) {
        ctx->error->retry_after = ngx_min(m.retry_after, 3600);
    }

    ngx_http_glm_ring_dirty(call->peer, ctx);

    return NGX_OK;
}


ngx_int_t
ngx_http_glm_reply_nonsense(ngx_http_glm_call_t *call, const char *why)
{
    ngx_http_glm_ring_fail(call->peer, why);
    return NGX_ERROR;
}


ngx_int_t
ngx_http_glm_reply_add(ngx_http_glm_call_t *call, ngx_http_glm_blob_t *b,
    ngx_str_t *s)
{
    ngx_int_t            rc;
    ngx_http_glm_ctx_t  *ctx;

    if (s->len == 0) {
        return NGX_OK;
    }

    ctx = call->ctx;

    rc = ngx_http_glm_blob_add(b, ctx->request->pool, s->data, s->len);

    if (rc == NGX_DECLINED) {
        return ngx_http_glm_reply_nonsense(call, "an answer is too long");
    }

    if (rc == NGX_ERROR) {
        ctx->nomem = 1;
        ngx_http_glm_ring_dirty(call->peer, ctx);
    }

    return NGX_OK;
}
