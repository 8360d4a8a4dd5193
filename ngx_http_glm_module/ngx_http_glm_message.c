
#include "ngx_http_glm_module.h"


static void ngx_http_glm_put_content_logprobs(ngx_http_glm_out_t *out,
    ngx_http_glm_call_t *call, ngx_http_glm_choice_t *ch, ngx_uint_t n);
static u_char *ngx_http_glm_put_content_token(ngx_http_glm_out_t *out,
    ngx_http_glm_ctx_t *ctx, u_char *p, ngx_uint_t *ntop);
static void ngx_http_glm_put_token_ids(ngx_http_glm_out_t *out,
    ngx_http_glm_call_t *call, ngx_http_glm_choice_t *ch, ngx_uint_t n);
static void ngx_http_glm_put_delta(ngx_http_glm_call_t *call,
    ngx_http_glm_choice_t *ch, ngx_uint_t n);
static void ngx_http_glm_put_last(ngx_http_glm_call_t *call,
    ngx_http_glm_choice_t *ch);
static void ngx_http_glm_put_begin(ngx_http_glm_ctx_t *ctx,
    ngx_http_glm_choice_t *ch);


/* A choice of a plain chat answer, with its first n tokens. */

void
ngx_http_glm_put_message(ngx_http_glm_out_t *out, ngx_http_glm_call_t *call,
    ngx_http_glm_choice_t *ch, ngx_uint_t n)
{
    ngx_http_glm_ctx_t  *ctx;

    ctx = call->ctx;

    ngx_http_glm_put_index(out, ch->index);
    ngx_http_glm_lit(out, ",\"message\":{\"role\":\"assistant\","
                          "\"content\":\"");
    ngx_http_glm_put_escaped(out, ctx->params.prefix.data,
                             ctx->params.prefix.len);
    ngx_http_glm_put_escaped(out, ch->text.start, ch->text.len);
    ngx_http_glm_lit(out, "\",\"refusal\":null},\"logprobs\":");
    ngx_http_glm_put_content_logprobs(out, call, ch, n);
    ngx_http_glm_put_finish(out, ctx, ch);
    ngx_http_glm_put_score(out, ctx, ch);
    ngx_http_glm_put_token_ids(out, call, ch, n);
    ngx_http_glm_lit(out, "}");
}


static void
ngx_http_glm_put_token_ids(ngx_http_glm_out_t *out, ngx_http_glm_call_t *call,
    ngx_http_glm_choice_t *ch, ngx_uint_t n)
{
    if (!call->ctx->params.return_token_ids) {
        return;
    }

    ngx_http_glm_lit(out, ",\"token_ids\":");
    ngx_http_glm_put_ids(out, ch->ids.start, n);

    if (call->ids.len && !ch->told_ids) {
        ngx_http_glm_lit(out, ",\"prompt_token_ids\":");
        ngx_http_glm_put_ids(out, call->ids.start,
                             call->ids.len / sizeof(int32_t));
        ch->told_ids = 1;
    }
}


static void
ngx_http_glm_put_content_logprobs(ngx_http_glm_out_t *out,
    ngx_http_glm_call_t *call, ngx_http_glm_choice_t *ch, ngx_uint_t n)
{
    u_char      *p;
    ngx_uint_t   i, k, ntop, some;

    if (call->ctx->params.logprobs < 0) {
        ngx_http_glm_lit(out, "null");
        return;
    }

    if (ch->logprobs.len == 0) {
        n = 0;
    }

    p = ch->logprobs.start;

    ngx_http_glm_lit(out, "{\"content\":[");

    for (i = 0; i < n; i++) {

        if (i) {
            ngx_http_glm_lit(out, ",");
        }

        p = ngx_http_glm_put_content_token(out, call->ctx, p, &ntop);

        ngx_http_glm_lit(out, ",\"top_logprobs\":[");

        for (k = 0; k < ntop; k++) {
            if (k) {
                ngx_http_glm_lit(out, ",");
            }

            p = ngx_http_glm_put_content_token(out, call->ctx, p, &some);
            ngx_http_glm_lit(out, "}");
        }

        ngx_http_glm_lit(out, "]}");
    }

    ngx_http_glm_lit(out, "],\"refusal\":null}");
}


/* An object that is left open; its bytes rejoin what a token border split. */

static u_char *
ngx_http_glm_put_content_token(ngx_http_glm_out_t *out,
    ngx_http_glm_ctx_t *ctx, u_char *p, ngx_uint_t *ntop)
{
    ngx_uint_t          i;
    glm_logprob_rec_t   rec;

    ngx_memcpy(&rec, p, sizeof(glm_logprob_rec_t));
    p += sizeof(glm_logprob_rec_t);

    *ntop = rec.ntop;

    ngx_http_glm_lit(out, "{\"token\":");
    ngx_http_glm_put_token(out, ctx, &rec, p);
    ngx_http_glm_lit(out, ",\"logprob\":");
    ngx_http_glm_put_logprob(out, rec.logprob);
    ngx_http_glm_lit(out, ",\"bytes\":[");

    for (i = 0; i < rec.text_size; i++) {
        if (i) {
            ngx_http_glm_lit(out, ",");
        }

        ngx_http_glm_put_int(out, p[i]);
    }

    ngx_http_glm_lit(out, "]");

    return p + ngx_align(rec.text_size, 4);
}


/* Events of a chat's choice: the role first, its text, {} at its end. */

void
ngx_http_glm_stream_message(ngx_http_glm_call_t *call,
    ngx_http_glm_choice_t *ch, ngx_uint_t n)
{
    ngx_http_glm_stream_role(call, ch);

    if (ch->text.len || n) {
        ngx_http_glm_put_delta(call, ch, n);
        ngx_http_glm_stream_tail(call, ch->ntokens);
    }

    if (ch->reason) {
        ngx_http_glm_put_last(call, ch);
        ngx_http_glm_stream_tail(call, ch->ntokens);
    }
}


/*
 * A choice begins, once.  Text that is there already may have to wait (of a
 * beam search it does) and is not told here.
 */

void
ngx_http_glm_stream_role(ngx_http_glm_call_t *call, ngx_http_glm_choice_t *ch)
{
    if (ch->told) {
        return;
    }

    ngx_http_glm_put_begin(call->ctx, ch);
    ngx_http_glm_stream_tail(call, 0);
    ch->told = 1;
}


static void
ngx_http_glm_put_begin(ngx_http_glm_ctx_t *ctx, ngx_http_glm_choice_t *ch)
{
    ngx_http_glm_out_t  *out;

    out = ngx_http_glm_stream_begin(ctx, ch);

    ngx_http_glm_lit(out, ",\"delta\":{\"role\":\"assistant\","
                          "\"content\":\"");
    ngx_http_glm_put_escaped(out, ctx->params.prefix.data,
                             ctx->params.prefix.len);
    ngx_http_glm_lit(out, "\"},\"logprobs\":null,\"finish_reason\":null,"
                          "\"stop_reason\":null}");
}


static void
ngx_http_glm_put_delta(ngx_http_glm_call_t *call, ngx_http_glm_choice_t *ch,
    ngx_uint_t n)
{
    ngx_http_glm_out_t  *out;

    out = ngx_http_glm_stream_begin(call->ctx, ch);

    ngx_http_glm_lit(out, ",\"delta\":{\"content\":\"");
    ngx_http_glm_put_escaped(out, ch->text.start, ch->text.len);
    ngx_http_glm_lit(out, "\"},\"logprobs\":");
    ngx_http_glm_put_content_logprobs(out, call, ch, n);
    ngx_http_glm_lit(out, ",\"finish_reason\":null,\"stop_reason\":null");
    ngx_http_glm_put_token_ids(out, call, ch, n);
    ngx_http_glm_lit(out, "}");
}


static void
ngx_http_glm_put_last(ngx_http_glm_call_t *call, ngx_http_glm_choice_t *ch)
{
    ngx_http_glm_out_t  *out;

    out = ngx_http_glm_stream_begin(call->ctx, ch);

    ngx_http_glm_lit(out, ",\"delta\":{},\"logprobs\":null");
    ngx_http_glm_put_finish(out, call->ctx, ch);
    ngx_http_glm_put_score(out, call->ctx, ch);
    ngx_http_glm_put_token_ids(out, call, ch, 0);
    ngx_http_glm_lit(out, "}");
}
