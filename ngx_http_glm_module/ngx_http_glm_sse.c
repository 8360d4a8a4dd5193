
#include "ngx_http_glm_module.h"


static ngx_int_t ngx_http_glm_stream_roles(ngx_http_glm_ctx_t *ctx);
static ngx_int_t ngx_http_glm_stream_head(ngx_http_glm_ctx_t *ctx);
static ngx_uint_t ngx_http_glm_stream_ready(ngx_http_glm_ctx_t *ctx,
    ngx_http_glm_choice_t *ch, size_t *size);
static void ngx_http_glm_stream_consume(ngx_http_glm_choice_t *ch,
    ngx_uint_t n, size_t size);
static void ngx_http_glm_plain_choices(ngx_http_glm_out_t *out,
    ngx_http_glm_call_t *call);
static void ngx_http_glm_put_info(ngx_http_glm_out_t *out,
    ngx_http_glm_ctx_t *ctx);
static void ngx_http_glm_put_tokenized(ngx_http_glm_out_t *out,
    ngx_http_glm_ctx_t *ctx);
static ngx_int_t ngx_http_glm_stream_wait(ngx_http_glm_ctx_t *ctx);


/* The engine has accepted it: the status is 200, whatever comes. */

ngx_int_t
ngx_http_glm_stream_start(ngx_http_glm_ctx_t *ctx)
{
    ngx_int_t                  rc;
    ngx_str_t                  value;
    ngx_http_request_t        *r;
    ngx_http_core_loc_conf_t  *clcf;

    static ngx_str_t  type = ngx_string("text/event-stream; charset=utf-8");

    r = ctx->request;

    if (ngx_http_glm_headers(r, ctx) != NGX_OK) {
        return NGX_ERROR;
    }

    ngx_str_set(&value, "no-cache");

    if (ngx_http_glm_header(r, "Cache-Control", &value) != NGX_OK) {
        return NGX_ERROR;
    }

    ngx_str_set(&value, "no");

    if (ngx_http_glm_header(r, "X-Accel-Buffering", &value) != NGX_OK) {
        return NGX_ERROR;
    }

    /* an event does not wait for the acknowledgement of the last one */

    clcf = ngx_http_get_module_loc_conf(r, ngx_http_core_module);

    if (clcf->tcp_nodelay && ngx_tcp_nodelay(r->connection) != NGX_OK) {
        return NGX_ERROR;
    }

    r->headers_out.status = NGX_HTTP_OK;
    r->headers_out.content_type = type;
    r->headers_out.content_type_len = sizeof("text/event-stream") - 1;
    r->headers_out.content_type_lowcase = NULL;

    ngx_http_clear_content_length(r);
    ngx_http_clear_accept_ranges(r);

    if (ctx->api->bit == NGX_HTTP_GLM_API_CHAT
        && ngx_http_glm_stream_roles(ctx) != NGX_OK)
    {
        return NGX_ERROR;
    }

    ctx->header_sent = 1;
    ctx->rearm = 1;
    ctx->last_sent = ngx_current_msec;

    rc = ngx_http_send_header(r);

    if (rc == NGX_ERROR || rc > NGX_OK) {
        return NGX_ERROR;
    }

    if (ctx->out.first) {
        return NGX_OK;    /* goes with the first event */
    }

    return ngx_http_send_special(r, NGX_HTTP_FLUSH) == NGX_ERROR
           ? NGX_ERROR : NGX_OK;
}


/* A chat's choices begin before their first token. */

static ngx_int_t
ngx_http_glm_stream_roles(ngx_http_glm_ctx_t *ctx)
{
    ngx_uint_t            i;
    ngx_http_glm_call_t  *call;

    if (ctx->head.len == 0 && ngx_http_glm_stream_head(ctx) != NGX_OK) {
        return NGX_ERROR;
    }

    call = ctx->calls;

    for (i = 0; i < call->nchoices; i++) {
        ngx_http_glm_stream_role(call, &call->choices[i]);
    }

    return NGX_OK;
}


/* What all chunks of this answer begin with. */

static ngx_int_t
ngx_http_glm_stream_head(ngx_http_glm_ctx_t *ctx)
{
    u_char              *p;
    ngx_chain_t         *cl;
    ngx_http_glm_out_t   out;

    ngx_http_glm_out_init(&out, ctx->request->pool);

    ngx_http_glm_lit(&out, "data: ");
    ngx_http_glm_put_answer(&out, ctx);

    if (out.failed) {
        return NGX_ERROR;
    }

    p = ngx_pnalloc(ctx->request->pool, out.size);
    if (p == NULL) {
        return NGX_ERROR;
    }

    ctx->head.data = p;

    for (cl = out.first; cl; cl = cl->next) {
        p = ngx_cpymem(p, cl->buf->pos, cl->buf->last - cl->buf->pos);
    }

    ctx->head.len = p - ctx->head.data;

    /* its buffers are the stream's first ones */

    *out.last = ctx->out.free;
    ctx->out.free = out.first;

    return NGX_OK;
}


/* Makes an event of what may be sent, if there is anything. */

void
ngx_http_glm_stream_choice(ngx_http_glm_call_t *call,
    ngx_http_glm_choice_t *ch)
{
    size_t                  size;
    ngx_uint_t              n;
    ngx_http_glm_ctx_t     *ctx;
    ngx_http_glm_params_t  *p;

    ctx = call->ctx;
    p = &ctx->params;

    /* candidates of a beam search come whole */

    if (!ch->reason && p->beams > 1) {
        return;
    }

    if (!ch->reason && ch->shown && p->stream_interval > 1
        && ch->ntokens - ch->shown < (ngx_uint_t) p->stream_interval)
    {
        return;
    }

    n = ngx_http_glm_stream_ready(ctx, ch, &size);

    if (ch->text.len == 0 && n == 0 && !ch->reason) {
        return;
    }

    if (ctx->head.len == 0 && ngx_http_glm_stream_head(ctx) != NGX_OK) {
        ctx->nomem = 1;
        return;
    }

    switch (ctx->api->bit) {

    case NGX_HTTP_GLM_API_CHAT:
        ngx_http_glm_stream_message(call, ch, n);
        break;

    case NGX_HTTP_GLM_API_INFILL:
        ngx_http_glm_stream_blank(call, ch, n);
        break;

    case NGX_HTTP_GLM_API_EDITOR:
        ngx_http_glm_stream_editor(call, ch);
        break;

    default:
        ngx_http_glm_put(&ctx->out, ctx->head.data, ctx->head.len);
        ngx_http_glm_put_choice(&ctx->out, call, ch, n);
        ngx_http_glm_stream_tail(call, ch->ntokens);
    }

    ch->shown = ch->ntokens;

    ngx_http_glm_stream_consume(ch, n, size);
}


/* The beginning of an event, up to what a choice has of its own. */

ngx_http_glm_out_t *
ngx_http_glm_stream_begin(ngx_http_glm_ctx_t *ctx, ngx_http_glm_choice_t *ch)
{
    ngx_http_glm_put(&ctx->out, ctx->head.data, ctx->head.len);
    ngx_http_glm_put_index(&ctx->out, ch->index);

    return &ctx->out;
}


/* The end of an event; usage of ntokens, if each one is to tell it. */

void
ngx_http_glm_stream_tail(ngx_http_glm_call_t *call, ngx_uint_t ntokens)
{
    ngx_http_glm_ctx_t  *ctx;

    ctx = call->ctx;

    if (!ctx->params.include_usage) {
        ngx_http_glm_lit(&ctx->out, "]}\n\n");

    } else if (!ctx->params.continuous_usage) {
        ngx_http_glm_lit(&ctx->out, "],\"usage\":null}\n\n");

    } else {
        ngx_http_glm_lit(&ctx->out, "],");
        ngx_http_glm_put_usage(&ctx->out, call->prompt_tokens, ntokens, 0);
        ngx_http_glm_lit(&ctx->out, "}\n\n");
    }
}


/*
 * How many tokens go with the text that there is.  An id goes with the first
 * character of its text: a token that a stop string swallows whole is never
 * seen.
 */

static ngx_uint_t
ngx_http_glm_stream_ready(ngx_http_glm_ctx_t *ctx, ngx_http_glm_choice_t *ch,
    size_t *size)
{
    ngx_uint_t           n, have;
    ngx_http_glm_mark_t  m;

    *size = 0;

    if (!ctx->keep_ids) {
        return 0;
    }

    have = ch->marks.len / sizeof(ngx_http_glm_mark_t);

    if (ch->reason) {
        have = ngx_min(have, ch->nkept - ngx_min(ch->nkept, ch->released));
    }

    for (n = 0; n < have; n++) {
        ngx_memcpy(&m, ch->marks.start + n * sizeof(ngx_http_glm_mark_t),
                   sizeof(ngx_http_glm_mark_t));

        if (!ch->reason && m.offset >= ch->chars) {
            break;
        }

        *size += m.size;
    }

    return n;
}


static void
ngx_http_glm_stream_consume(ngx_http_glm_choice_t *ch, ngx_uint_t n,
    size_t size)
{
    size_t  len;

    ch->text.len = 0;

    if (n == 0) {
        return;
    }

    ch->released += n;

    len = n * sizeof(int32_t);
    ch->ids.len -= len;
    ngx_memmove(ch->ids.start, ch->ids.start + len, ch->ids.len);

    len = n * sizeof(ngx_http_glm_mark_t);
    ch->marks.len -= len;
    ngx_memmove(ch->marks.start, ch->marks.start + len, ch->marks.len);

    if (size) {
        ch->logprobs.len -= size;
        ngx_memmove(ch->logprobs.start, ch->logprobs.start + size,
                    ch->logprobs.len);
    }
}


void
ngx_http_glm_stream_done(ngx_http_glm_ctx_t *ctx)
{
    if (ctx->api->bit == NGX_HTTP_GLM_API_EDITOR) {
        ngx_http_glm_lit(&ctx->out, "data: ");
        ngx_http_glm_put_editor(&ctx->out, ctx);
        ngx_http_glm_lit(&ctx->out, "\n\n");
        return;
    }

    if (ctx->params.include_usage) {
        ngx_http_glm_put(&ctx->out, ctx->head.data, ctx->head.len);
        ngx_http_glm_lit(&ctx->out, "],");
        ngx_http_glm_put_usage(&ctx->out, ctx->prompt_tokens,
                               ctx->completion_tokens, ctx->cached_tokens);
        ngx_http_glm_lit(&ctx->out, "}\n\n");
    }

    ngx_http_glm_lit(&ctx->out, "data: [DONE]\n\n");
}


void
ngx_http_glm_stream_error(ngx_http_glm_ctx_t *ctx)
{
    ngx_http_glm_lit(&ctx->out, "data: ");
    ngx_http_glm_error_out(&ctx->out, ctx->error);
    ngx_http_glm_lit(&ctx->out, "\n\n");

    if (ctx->api->bit != NGX_HTTP_GLM_API_EDITOR) {
        ngx_http_glm_lit(&ctx->out, "data: [DONE]\n\n");
    }

    ctx->finished = 1;
}


/*
 * Sends what there is, and then grants the engine more.  While the client does
 * not read, events gather here up to the window that was granted before.
 */

ngx_int_t
ngx_http_glm_stream_send(ngx_http_glm_ctx_t *ctx)
{
    ngx_int_t             rc;
    ngx_uint_t            i;
    ngx_chain_t          *cl;
    ngx_http_request_t   *r;
    ngx_http_glm_out_t   *out;
    ngx_http_glm_call_t  *call;

    r = ctx->request;
    out = &ctx->out;

    if (out->failed) {
        return NGX_ERROR;
    }

    if (out->busy && !ctx->finished) {
        return NGX_AGAIN;
    }

    rc = NGX_OK;

    if (out->first) {
        cl = ngx_http_glm_out_take(out, ctx->finished && r == r->main, 1);

        rc = ngx_http_output_filter(r, cl);

        ngx_chain_update_chains(r->pool, &out->free, &out->busy, &cl,
                                (ngx_buf_tag_t) &ngx_http_glm_module);

        ctx->last_sent = ngx_current_msec;

        if (rc == NGX_ERROR) {
            return NGX_ERROR;
        }
    }

    if (ctx->finished) {
        return rc;
    }

    if (ngx_http_glm_stream_wait(ctx) != NGX_OK) {
        return NGX_ERROR;
    }

    for (i = 0; out->busy == NULL && i < ctx->ncalls; i++) {
        call = &ctx->calls[i];

        if (call->peer && call->owed >= call->share / 2) {
            ngx_http_glm_ring_grant(call);
        }
    }

    return rc;
}


/* A client that does not read for send_timeout is gone. */

static ngx_int_t
ngx_http_glm_stream_wait(ngx_http_glm_ctx_t *ctx)
{
    ngx_event_t               *wev;
    ngx_connection_t          *c;
    ngx_http_request_t        *r;
    ngx_http_core_loc_conf_t  *clcf;

    r = ctx->request;
    c = r->connection;
    wev = c->write;

    if (!ctx->out.busy && !r->buffered && !c->buffered) {
        if (wev->timer_set && !wev->delayed) {
            ngx_del_timer(wev);
        }

        return NGX_OK;
    }

    clcf = ngx_http_get_module_loc_conf(r, ngx_http_core_module);

    if (!wev->delayed) {
        ngx_add_timer(wev, clcf->send_timeout);
    }

    return ngx_handle_write_event(wev, clcf->send_lowat);
}


void
ngx_http_glm_stream_writer(ngx_http_request_t *r)
{
    ngx_int_t            rc;
    ngx_chain_t         *cl;
    ngx_event_t         *wev;
    ngx_connection_t    *c;
    ngx_http_glm_ctx_t  *ctx;

    c = r->connection;
    wev = c->write;
    ctx = ngx_http_get_module_ctx(r, ngx_http_glm_module);

    if (wev->timedout) {
        ngx_log_error(NGX_LOG_INFO, c->log, NGX_ETIMEDOUT,
                      "client timed out");
        c->timedout = 1;
        ngx_http_glm_finalize(ctx, NGX_HTTP_REQUEST_TIME_OUT);
        return;
    }

    if (!ctx->stream || !ctx->header_sent || wev->delayed || r->aio) {
        if (ngx_handle_write_event(wev, 0) != NGX_OK) {
            ngx_http_glm_finalize(ctx, NGX_ERROR);
        }

        return;
    }

    if (ctx->out.busy || r->buffered || c->buffered) {
        rc = ngx_http_output_filter(r, NULL);

        cl = NULL;
        ngx_chain_update_chains(r->pool, &ctx->out.free, &ctx->out.busy, &cl,
                                (ngx_buf_tag_t) &ngx_http_glm_module);

        if (rc == NGX_ERROR || ngx_http_glm_stream_wait(ctx) != NGX_OK) {
            ngx_http_glm_finalize(ctx, NGX_ERROR);
            return;
        }
    }

    if (ngx_http_glm_stream_send(ctx) == NGX_ERROR) {
        ngx_http_glm_finalize(ctx, NGX_ERROR);
    }
}


/* The whole answer, into ctx->out. */

void
ngx_http_glm_plain(ngx_http_glm_ctx_t *ctx)
{
    ngx_uint_t            i;
    ngx_http_glm_out_t   *out;
    ngx_http_glm_call_t  *call;

    out = &ctx->out;
    call = ctx->calls;

    switch (ctx->api->bit) {

    case NGX_HTTP_GLM_API_TOKENIZE:
        ngx_http_glm_put_tokenized(out, ctx);
        return;

    case NGX_HTTP_GLM_API_INFO:
        ngx_http_glm_put_info(out, ctx);
        return;

    case NGX_HTTP_GLM_API_DETOKENIZE:
        ngx_http_glm_lit(out, "{\"prompt\":");
        ngx_http_glm_put_string(out, call->text.start, call->text.len);
        ngx_http_glm_lit(out, "}");
        return;

    case NGX_HTTP_GLM_API_EDITOR:
        ngx_http_glm_put_editor(out, ctx);
        return;

    case NGX_HTTP_GLM_API_SCORE:
        ngx_http_glm_put_answer(out, ctx);
        ngx_http_glm_put_scores(out, ctx);
        return;
    }

    ngx_http_glm_put_answer(out, ctx);

    for (i = 0; i < ctx->ncalls; i++) {
        ngx_http_glm_plain_choices(out, &ctx->calls[i]);
    }

    ngx_http_glm_lit(out, "],");
    ngx_http_glm_put_usage(out, ctx->prompt_tokens, ctx->completion_tokens,
                           ctx->cached_tokens);

    if (ctx->api->bit == NGX_HTTP_GLM_API_CHAT
        && ctx->params.prompt_logprobs >= 0)
    {
        ngx_http_glm_lit(out, ",\"prompt_logprobs\":");
        ngx_http_glm_put_prompt_logprobs(out, call);
    }

    ngx_http_glm_lit(out, "}");
}


static void
ngx_http_glm_plain_choices(ngx_http_glm_out_t *out, ngx_http_glm_call_t *call)
{
    ngx_uint_t              n, i;
    ngx_http_glm_choice_t  *ch;

    for (i = 0; i < call->nchoices; i++) {
        ch = &call->choices[i];

        if (ch->index) {
            ngx_http_glm_lit(out, ",");
        }

        n = ngx_min(ch->nkept, ch->marks.len / sizeof(ngx_http_glm_mark_t));

        switch (call->ctx->api->bit) {

        case NGX_HTTP_GLM_API_CHAT:
            ngx_http_glm_put_message(out, call, ch, n);
            break;

        case NGX_HTTP_GLM_API_INFILL:
            ngx_http_glm_put_filled(out, call, ch);
            break;

        default:
            ngx_http_glm_put_choice(out, call, ch, n);
        }
    }
}


static void
ngx_http_glm_put_info(ngx_http_glm_out_t *out, ngx_http_glm_ctx_t *ctx)
{
    ngx_http_glm_loc_conf_t  *glcf;

    glcf = ngx_http_get_module_loc_conf(ctx->request, ngx_http_glm_module);

    ngx_http_glm_lit(out, "{\"tokenizer_class\":\"icetk\",\"eos_token\":");

    if (ctx->calls->ids.len == sizeof(int32_t)) {
        ngx_http_glm_lit(out, "\"" NGX_HTTP_GLM_EOS "\"");

    } else {
        ngx_http_glm_lit(out, "null");
    }

    ngx_http_glm_lit(out, ",\"bos_token\":null,\"pad_token\":null,"
                          "\"chat_template\":");
    ngx_http_glm_chat_jinja(out, glcf->chat);
    ngx_http_glm_lit(out, "}");
}


static void
ngx_http_glm_put_tokenized(ngx_http_glm_out_t *out, ngx_http_glm_ctx_t *ctx)
{
    size_t                len;
    u_char               *p;
    ngx_uint_t            n;
    glm_logprob_rec_t     rec;
    ngx_http_glm_call_t  *call;

    call = ctx->calls;
    n = call->ids.len / sizeof(int32_t);

    ngx_http_glm_lit(out, "{\"count\":");
    ngx_http_glm_put_int(out, n);
    ngx_http_glm_lit(out, ",\"max_model_len\":");
    ngx_http_glm_put_int(out, ctx->max_seq);
    ngx_http_glm_lit(out, ",\"tokens\":");
    ngx_http_glm_put_ids(out, call->ids.start, n);
    ngx_http_glm_lit(out, ",\"token_strs\":");

    if (!ctx->params.return_token_strs) {
        ngx_http_glm_lit(out, "null}");
        return;
    }

    ngx_http_glm_lit(out, "[");

    p = call->strs.start;
    len = call->strs.len;

    while (len) {    /* checked when it came */
        if (p != call->strs.start) {
            ngx_http_glm_lit(out, ",");
        }

        ngx_memcpy(&rec, p, sizeof(glm_logprob_rec_t));
        p += sizeof(glm_logprob_rec_t);

        ngx_http_glm_put_token(out, ctx, &rec, p);

        p += ngx_align(rec.text_size, 4);
        len -= sizeof(glm_logprob_rec_t) + ngx_align(rec.text_size, 4);
    }

    ngx_http_glm_lit(out, "]}");
}
