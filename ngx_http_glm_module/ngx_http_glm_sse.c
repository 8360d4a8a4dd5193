
#include "ngx_http_glm_module.h"


static ngx_int_t ngx_http_glm_stream_head(ngx_http_glm_ctx_t *ctx);
static void ngx_http_glm_put_head(ngx_http_glm_out_t *out,
    ngx_http_glm_ctx_t *ctx);
static void ngx_http_glm_put_choice(ngx_http_glm_out_t *out,
    ngx_http_glm_ctx_t *ctx, ngx_http_glm_choice_t *ch, ngx_uint_t n);
static void ngx_http_glm_put_finish(ngx_http_glm_out_t *out,
    ngx_http_glm_ctx_t *ctx, ngx_http_glm_choice_t *ch);
static void ngx_http_glm_put_ids(ngx_http_glm_out_t *out, u_char *p,
    ngx_uint_t n);
static void ngx_http_glm_put_logprobs(ngx_http_glm_out_t *out,
    ngx_http_glm_choice_t *ch, ngx_uint_t n);
static u_char *ngx_http_glm_put_top(ngx_http_glm_out_t *out, u_char *p,
    glm_logprob_rec_t *chosen);
static void ngx_http_glm_put_token(ngx_http_glm_out_t *out, u_char *p,
    size_t n);
static void ngx_http_glm_put_usage(ngx_http_glm_out_t *out,
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


/* What all chunks of this answer begin with. */

static ngx_int_t
ngx_http_glm_stream_head(ngx_http_glm_ctx_t *ctx)
{
    u_char              *p;
    ngx_chain_t         *cl;
    ngx_http_glm_out_t   out;

    ngx_http_glm_out_init(&out, ctx->request->pool);

    ngx_http_glm_lit(&out, "data: ");
    ngx_http_glm_put_head(&out, ctx);

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


static void
ngx_http_glm_put_head(ngx_http_glm_out_t *out, ngx_http_glm_ctx_t *ctx)
{
    u_char  fingerprint[sizeof("fp_") - 1 + 16];

    ngx_http_glm_lit(out, "{\"id\":");
    ngx_http_glm_put_string(out, ctx->id.data, ctx->id.len);
    ngx_http_glm_lit(out, ",\"object\":\"text_completion\",\"created\":");
    ngx_http_glm_put_int(out, ctx->created);
    ngx_http_glm_lit(out, ",\"model\":");
    ngx_http_glm_put_string(out, ctx->model.data, ctx->model.len);
    ngx_http_glm_lit(out, ",\"system_fingerprint\":\"");
    ngx_http_glm_put(out, fingerprint,
                     ngx_sprintf(fingerprint, "fp_%016xL", ctx->fingerprint)
                     - fingerprint);
    ngx_http_glm_lit(out, "\",\"choices\":[");
}


/* Makes an event of what may be sent, if there is anything. */

void
ngx_http_glm_stream_choice(ngx_http_glm_ctx_t *ctx, ngx_http_glm_choice_t *ch)
{
    size_t                size;
    ngx_uint_t            n, i, have;
    ngx_http_glm_out_t   *out;
    ngx_http_glm_mark_t   m;

    n = 0;
    size = 0;

    /*
     * An id goes with the first character of its text: a token that a stop
     * string swallows whole is never seen.
     */

    if (ctx->keep_ids) {
        have = ch->marks.len / sizeof(ngx_http_glm_mark_t);

        if (ch->reason) {
            have = ngx_min(have, ch->nkept - ngx_min(ch->nkept,
                                                     ch->released));
        }

        for ( /* void */ ; n < have; n++) {
            ngx_memcpy(&m, ch->marks.start + n * sizeof(ngx_http_glm_mark_t),
                       sizeof(ngx_http_glm_mark_t));

            if (!ch->reason && m.offset >= ch->chars) {
                break;
            }

            size += m.size;
        }
    }

    if (ch->text.len == 0 && n == 0 && !ch->reason) {
        return;
    }

    if (ctx->head.len == 0 && ngx_http_glm_stream_head(ctx) != NGX_OK) {
        ctx->nomem = 1;
        return;
    }

    out = &ctx->out;

    ngx_http_glm_put(out, ctx->head.data, ctx->head.len);
    ngx_http_glm_put_choice(out, ctx, ch, n);

    if (ctx->params.include_usage) {
        ngx_http_glm_lit(out, "],\"usage\":null}\n\n");

    } else {
        ngx_http_glm_lit(out, "]}\n\n");
    }

    ch->text.len = 0;

    if (n == 0) {
        return;
    }

    ch->released += n;

    i = n * sizeof(int32_t);
    ch->ids.len -= i;
    ngx_memmove(ch->ids.start, ch->ids.start + i, ch->ids.len);

    i = n * sizeof(ngx_http_glm_mark_t);
    ch->marks.len -= i;
    ngx_memmove(ch->marks.start, ch->marks.start + i, ch->marks.len);

    if (size) {
        ch->logprobs.len -= size;
        ngx_memmove(ch->logprobs.start, ch->logprobs.start + size,
                    ch->logprobs.len);
    }
}


/* A choice with its first n tokens. */

static void
ngx_http_glm_put_choice(ngx_http_glm_out_t *out, ngx_http_glm_ctx_t *ctx,
    ngx_http_glm_choice_t *ch, ngx_uint_t n)
{
    ngx_http_glm_call_t  *call;

    ngx_http_glm_lit(out, "{\"index\":");
    ngx_http_glm_put_int(out, ch->index);
    ngx_http_glm_lit(out, ",\"text\":\"");
    ngx_http_glm_put_escaped(out, ch->text.start, ch->text.len);
    ngx_http_glm_lit(out, "\",\"logprobs\":");

    if (ctx->params.logprobs < 0) {
        ngx_http_glm_lit(out, "null");

    } else {
        ngx_http_glm_put_logprobs(out, ch, n);
    }

    ngx_http_glm_put_finish(out, ctx, ch);

    if (ctx->params.return_token_ids) {
        ngx_http_glm_lit(out, ",\"token_ids\":");
        ngx_http_glm_put_ids(out, ch->ids.start, n);

        call = ctx->call;

        if (call->prompted && !ch->told) {
            ngx_http_glm_lit(out, ",\"prompt_token_ids\":");
            ngx_http_glm_put_ids(out, call->ids.start,
                                 call->ids.len / sizeof(int32_t));
            ch->told = 1;
        }
    }

    ngx_http_glm_lit(out, "}");
}


static void
ngx_http_glm_put_finish(ngx_http_glm_out_t *out, ngx_http_glm_ctx_t *ctx,
    ngx_http_glm_choice_t *ch)
{
    ngx_str_t  *stop;

    switch (ch->reason) {

    case 0:
        ngx_http_glm_lit(out, ",\"finish_reason\":null");
        break;

    case GLM_REASON_LENGTH:
        ngx_http_glm_lit(out, ",\"finish_reason\":\"length\"");
        break;

    case GLM_REASON_REPEAT:
        ngx_http_glm_lit(out, ",\"finish_reason\":\"repetition\"");
        break;

    default: /* GLM_REASON_STOP */
        ngx_http_glm_lit(out, ",\"finish_reason\":\"stop\"");
    }

    ngx_http_glm_lit(out, ",\"stop_reason\":");

    if (ch->reason == GLM_REASON_STOP && ch->stop_index >= 0) {
        stop = &ctx->params.stops[ch->stop_index];
        ngx_http_glm_put_string(out, stop->data, stop->len);

    } else if (ch->reason == GLM_REASON_STOP && ch->stop_id >= 0) {
        ngx_http_glm_put_int(out, ch->stop_id);

    } else {
        ngx_http_glm_lit(out, "null");
    }
}


static void
ngx_http_glm_put_ids(ngx_http_glm_out_t *out, u_char *p, ngx_uint_t n)
{
    int32_t     id;
    ngx_uint_t  i;

    ngx_http_glm_lit(out, "[");

    for (i = 0; i < n; i++) {
        ngx_memcpy(&id, p + i * sizeof(int32_t), sizeof(int32_t));

        if (i) {
            ngx_http_glm_lit(out, ",");
        }

        ngx_http_glm_put_int(out, id);
    }

    ngx_http_glm_lit(out, "]");
}


/* The legacy shape: four arrays over the same tokens, so four passes. */

static void
ngx_http_glm_put_logprobs(ngx_http_glm_out_t *out, ngx_http_glm_choice_t *ch,
    ngx_uint_t n)
{
    u_char              *p;
    ngx_uint_t           i, k, pass;
    glm_logprob_rec_t    rec;

    static const char  *names[] = {
        "{\"tokens\":[", "],\"token_logprobs\":[", "],\"top_logprobs\":[",
        "],\"text_offset\":["
    };

    if (ch->logprobs.len == 0) {
        n = 0;
    }

    for (pass = 0; pass < 4; pass++) {
        ngx_http_glm_put_str(out, names[pass]);

        p = ch->logprobs.start;

        for (i = 0; i < n; i++) {

            if (i) {
                ngx_http_glm_lit(out, ",");
            }

            ngx_memcpy(&rec, p, sizeof(glm_logprob_rec_t));

            if (pass == 2) {
                p = ngx_http_glm_put_top(out, p, &rec);
                continue;
            }

            if (pass == 0) {
                ngx_http_glm_put_token(out, p + sizeof(glm_logprob_rec_t),
                                       rec.text_size);

            } else if (pass == 1) {
                ngx_http_glm_put_num(out, rec.logprob);

            } else {
                ngx_http_glm_put_int(out, rec.offset);
            }

            for (k = rec.ntop + 1; k; k--) {
                ngx_memcpy(&rec, p, sizeof(glm_logprob_rec_t));
                p += sizeof(glm_logprob_rec_t) + ngx_align(rec.text_size, 4);
            }
        }
    }

    ngx_http_glm_lit(out, "]}");
}


/* The best ones and the chosen one; of ids that print alike the better. */

static u_char *
ngx_http_glm_put_top(ngx_http_glm_out_t *out, u_char *p,
    glm_logprob_rec_t *chosen)
{
    u_char              *texts[NGX_HTTP_GLM_MAX_LOGPROBS + 2];
    ngx_uint_t           i, k, n, some;
    glm_logprob_rec_t    recs[NGX_HTTP_GLM_MAX_LOGPROBS + 2];

    n = ngx_min(chosen->ntop, NGX_HTTP_GLM_MAX_LOGPROBS + 1) + 1;

    for (i = 0; i < n; i++) {
        ngx_memcpy(&recs[i], p, sizeof(glm_logprob_rec_t));
        texts[i] = p + sizeof(glm_logprob_rec_t);
        p = texts[i] + ngx_align(recs[i].text_size, 4);
    }

    some = 0;

    ngx_http_glm_lit(out, "{");

    for (i = 1; i <= n; i++) {

        /* the chosen one comes last, if it is not among the best */

        chosen = &recs[i % n];

        for (k = 0; k < n; k++) {
            if (k != i % n && recs[k].text_size == chosen->text_size
                && ngx_memcmp(texts[k], texts[i % n], chosen->text_size) == 0
                && (recs[k].logprob > chosen->logprob
                    || (recs[k].logprob == chosen->logprob
                        && (k ? k : n) < i)))
            {
                break;
            }
        }

        if (k < n) {
            continue;
        }

        if (some++) {
            ngx_http_glm_lit(out, ",");
        }

        ngx_http_glm_put_token(out, texts[i % n], chosen->text_size);
        ngx_http_glm_lit(out, ":");
        ngx_http_glm_put_num(out, chosen->logprob);
    }

    ngx_http_glm_lit(out, "}");

    return p;
}


/* A token may be a part of a character: its bytes then, as OpenAI prints. */

static void
ngx_http_glm_put_token(ngx_http_glm_out_t *out, u_char *p, size_t n)
{
    size_t  i;
    u_char  buf[sizeof("\\\\xff") - 1];

    if (ngx_http_glm_utf8(p, n, NULL) == NGX_OK) {
        ngx_http_glm_put_string(out, p, n);
        return;
    }

    ngx_http_glm_lit(out, "\"bytes:");

    for (i = 0; i < n; i++) {
        (void) ngx_sprintf(buf, "\\\\x%02xd", (int) p[i]);
        ngx_http_glm_put(out, buf, sizeof(buf));
    }

    ngx_http_glm_lit(out, "\"");
}


static void
ngx_http_glm_put_usage(ngx_http_glm_out_t *out, ngx_http_glm_ctx_t *ctx)
{
    glm_msg_done_t  *done;

    done = &ctx->call->done;

    ngx_http_glm_lit(out, "\"usage\":{\"prompt_tokens\":");
    ngx_http_glm_put_int(out, done->prompt_tokens);
    ngx_http_glm_lit(out, ",\"completion_tokens\":");
    ngx_http_glm_put_int(out, done->completion_tokens);
    ngx_http_glm_lit(out, ",\"total_tokens\":");
    ngx_http_glm_put_int(out, (int64_t) done->prompt_tokens
                              + done->completion_tokens);
    ngx_http_glm_lit(out, ",\"prompt_tokens_details\":{\"cached_tokens\":");
    ngx_http_glm_put_int(out, done->cached_tokens);
    ngx_http_glm_lit(out, "}}");
}


void
ngx_http_glm_stream_done(ngx_http_glm_ctx_t *ctx)
{
    if (ctx->params.include_usage) {
        ngx_http_glm_put(&ctx->out, ctx->head.data, ctx->head.len);
        ngx_http_glm_lit(&ctx->out, "],");
        ngx_http_glm_put_usage(&ctx->out, ctx);
        ngx_http_glm_lit(&ctx->out, "}\n\n");
    }

    ngx_http_glm_lit(&ctx->out, "data: [DONE]\n\n");
}


void
ngx_http_glm_stream_error(ngx_http_glm_ctx_t *ctx)
{
    ngx_http_glm_lit(&ctx->out, "data: ");
    ngx_http_glm_error_out(&ctx->out, ctx->error);
    ngx_http_glm_lit(&ctx->out, "\n\ndata: [DONE]\n\n");

    ctx->finished = 1;
}


/*
 * Sends what there is, and then grants the engine more.  While the client does
 * not read, events gather here up to the window that was granted before.
 */

ngx_int_t
ngx_http_glm_stream_send(ngx_http_glm_ctx_t *ctx)
{
    ngx_int_t                 rc;
    ngx_chain_t              *cl;
    ngx_http_glm_out_t       *out;
    ngx_http_request_t       *r;
    ngx_http_glm_loc_conf_t  *glcf;

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

    if (out->busy == NULL && ctx->call->peer) {
        glcf = ngx_http_get_module_loc_conf(r, ngx_http_glm_module);

        if (ctx->call->owed >= glcf->buffer_size / 2) {
            ngx_http_glm_ring_grant(ctx->call);
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
    ngx_uint_t              n, i;
    ngx_http_glm_out_t     *out;
    ngx_http_glm_call_t    *call;
    ngx_http_glm_choice_t  *ch;

    out = &ctx->out;
    call = ctx->call;

    switch (ctx->api->bit) {

    case NGX_HTTP_GLM_API_TOKENIZE:
        ngx_http_glm_put_tokenized(out, ctx);
        return;

    case NGX_HTTP_GLM_API_DETOKENIZE:
        ngx_http_glm_lit(out, "{\"prompt\":");
        ngx_http_glm_put_string(out, call->text.start, call->text.len);
        ngx_http_glm_lit(out, "}");
        return;
    }

    ngx_http_glm_put_head(out, ctx);

    for (i = 0; i < call->nchoices; i++) {
        if (i) {
            ngx_http_glm_lit(out, ",");
        }

        ch = &call->choices[i];
        n = ngx_min(ch->nkept, ch->marks.len / sizeof(ngx_http_glm_mark_t));

        ngx_http_glm_put_choice(out, ctx, ch, n);
    }

    ngx_http_glm_lit(out, "],");
    ngx_http_glm_put_usage(out, ctx);
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

    call = ctx->call;
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

        ngx_http_glm_put_token(out, p, rec.text_size);

        p += ngx_align(rec.text_size, 4);
        len -= sizeof(glm_logprob_rec_t) + ngx_align(rec.text_size, 4);
    }

    ngx_http_glm_lit(out, "]}");
}
