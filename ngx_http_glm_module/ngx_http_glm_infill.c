
#include "ngx_http_glm_module.h"


static ngx_int_t ngx_http_glm_infill_next(ngx_http_glm_call_t *call,
    ngx_http_glm_choice_t *ch, ngx_uint_t n);
static ngx_int_t ngx_http_glm_infill_spans(ngx_str_t *s, ngx_uint_t n,
    ngx_uint_t chars);
static void ngx_http_glm_put_span(ngx_http_glm_out_t *out, u_char *spans,
    ngx_uint_t i);
static void ngx_http_glm_put_blank(ngx_http_glm_out_t *out,
    ngx_http_glm_call_t *call, ngx_http_glm_choice_t *blank, u_char *spans,
    ngx_uint_t i);
static void ngx_http_glm_stream_filled(ngx_http_glm_call_t *call,
    ngx_http_glm_choice_t *ch);


ngx_int_t
ngx_http_glm_infill_together(ngx_http_glm_ctx_t *ctx)
{
    ngx_str_t              *s;
    ngx_http_glm_params_t  *p;

    p = &ctx->params;
    s = &p->prompts->text;

    if (p->mode) {
        return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL, "mode",
                                  "Blanks are filled in the bidirectional "
                                  "mode only.");
    }

    /* the text is gone when the answer begins */

    p->untrained = p->parse_masks && s->len
                   && memmem(s->data, s->len, "[sMASK]",
                             sizeof("[sMASK]") - 1);

    return NGX_OK;
}


/* Is blank n of choice i the one that is being filled, or the next one? */

ngx_int_t
ngx_http_glm_infill_blank(ngx_http_glm_call_t *call, ngx_uint_t i,
    ngx_uint_t n)
{
    ngx_http_glm_choice_t  *ch;

    ch = &call->choices[i];

    if (n == ch->blank && !ch->filled) {
        return NGX_OK;
    }

    if (call->ctx->api->bit != NGX_HTTP_GLM_API_INFILL || ch->filled
        || n < ch->blank || n >= NGX_HTTP_GLM_MAX_BLANKS)
    {
        return NGX_ERROR;
    }

    /* of beams the first candidate alone tells all blanks but the last, and
       is there already */

    if (call->ctx->params.beams > 1 && i && ch->ntokens == 0 && !ch->reason) {
        ch->blank = n;
        return n == call->choices->blank ? NGX_OK : NGX_ERROR;
    }

    if (n != ch->blank + 1 || !ch->reason) {
        return NGX_ERROR;
    }

    return ngx_http_glm_infill_next(call, ch, n);
}


/* A stream has sent the blank before; a plain answer keeps it. */

static ngx_int_t
ngx_http_glm_infill_next(ngx_http_glm_call_t *call, ngx_http_glm_choice_t *ch,
    ngx_uint_t n)
{
    ngx_http_glm_choice_t   next, *blank;

    ngx_memzero(&next, sizeof(ngx_http_glm_choice_t));

    next.index = ch->index;
    next.blank = n;
    next.before = ch->before + ch->ntokens;

    if (call->ctx->stream) {
        next.text = ch->text;
        next.ids = ch->ids;
        next.logprobs = ch->logprobs;
        next.marks = ch->marks;

        next.text.len = 0;
        next.ids.len = 0;
        next.logprobs.len = 0;
        next.marks.len = 0;

        *ch = next;
        return NGX_OK;
    }

    next.blanks = ch->blanks;

    if (next.blanks == NULL) {
        next.blanks = ngx_array_create(call->ctx->request->pool, 4,
                                       sizeof(ngx_http_glm_choice_t));
    }

    blank = next.blanks ? ngx_array_push(next.blanks) : NULL;

    if (blank) {
        *blank = *ch;

    } else {
        call->ctx->nomem = 1;
        ngx_http_glm_ring_dirty(call->peer, call->ctx);
    }

    *ch = next;

    return NGX_OK;
}


/* A choice is whole. */

ngx_int_t
ngx_http_glm_reply_filled(ngx_http_glm_call_t *call, u_char *p, size_t len)
{
    ngx_int_t                 rc;
    ngx_uint_t                chars;
    glm_msg_filled_t          m;
    ngx_http_glm_ctx_t       *ctx;
    ngx_http_glm_choice_t    *ch;
    ngx_http_glm_sections_t   s;

    ctx = call->ctx;

    if (ngx_http_glm_section_read(&m, sizeof(glm_msg_filled_t), &s, p, len)
        != NGX_OK
        || ctx->api->bit != NGX_HTTP_GLM_API_INFILL
        || m.choice >= call->nchoices
        || ngx_http_glm_utf8(s.text.data, s.text.len, &chars) != NGX_OK)
    {
        return ngx_http_glm_reply_nonsense(call, "FILLED is malformed");
    }

    ch = &call->choices[m.choice];

    if (!ch->reason || ch->filled
        || ngx_http_glm_infill_spans(&s.spans, ch->blank + 1, chars)
           != NGX_OK)
    {
        return ngx_http_glm_reply_nonsense(call, "FILLED is malformed");
    }

    ch->filled = 1;
    call->nfinished++;

    rc = ngx_http_glm_reply_add(call, &ch->whole, &s.text);

    if (rc == NGX_OK) {
        rc = ngx_http_glm_reply_add(call, &ch->spans, &s.spans);
    }

    if (rc != NGX_OK || ctx->nomem) {
        return rc;
    }

    if (ctx->stream) {
        ngx_http_glm_stream_filled(call, ch);
        ngx_http_glm_ring_dirty(call->peer, ctx);
    }

    ngx_http_glm_reply_grant(call);

    return NGX_OK;
}


/* One a blank, in order, within the text. */

static ngx_int_t
ngx_http_glm_infill_spans(ngx_str_t *s, ngx_uint_t n, ngx_uint_t chars)
{
    uint32_t         last;
    ngx_uint_t       i;
    glm_span_rec_t   span;

    if (s->len != n * sizeof(glm_span_rec_t)) {
        return NGX_ERROR;
    }

    last = 0;

    for (i = 0; i < n; i++) {
        ngx_memcpy(&span, s->data + i * sizeof(glm_span_rec_t),
                   sizeof(glm_span_rec_t));

        if (span.start < last || span.end < span.start) {
            return NGX_ERROR;
        }

        last = span.end;
    }

    return last <= chars ? NGX_OK : NGX_ERROR;
}


/* [sMASK] is in the vocabulary, and GLM-130B was not trained with it. */

void
ngx_http_glm_put_warnings(ngx_http_glm_out_t *out, ngx_http_glm_ctx_t *ctx)
{
    if (ctx->params.untrained) {
        ngx_http_glm_lit(out, ",\"warnings\":[\"GLM-130B was not trained with "
                              "[sMASK]: use [MASK] or [gMASK].\"]");
    }
}


/* A choice of a plain answer: its blanks, all of them. */

void
ngx_http_glm_put_filled(ngx_http_glm_out_t *out, ngx_http_glm_call_t *call,
    ngx_http_glm_choice_t *ch)
{
    ngx_uint_t              i;
    ngx_array_t            *blanks;
    ngx_http_glm_choice_t  *before;

    /* candidates of a beam search differ in the last one only */

    blanks = ch->blanks ? ch->blanks : call->choices->blanks;
    before = blanks ? blanks->elts : NULL;

    ngx_http_glm_put_index(out, ch->index);
    ngx_http_glm_lit(out, ",\"text\":");
    ngx_http_glm_put_string(out, ch->whole.start, ch->whole.len);
    ngx_http_glm_lit(out, ",\"blanks\":[");

    for (i = 0; i <= ch->blank; i++) {
        if (i) {
            ngx_http_glm_lit(out, ",");
        }

        ngx_http_glm_put_blank(out, call, i < ch->blank ? &before[i] : ch,
                               ch->spans.start, i);
    }

    ngx_http_glm_lit(out, "]");
    ngx_http_glm_put_score(out, call->ctx, ch);
    ngx_http_glm_lit(out, "}");
}


static void
ngx_http_glm_put_span(ngx_http_glm_out_t *out, u_char *spans, ngx_uint_t i)
{
    glm_span_rec_t  span;

    ngx_memcpy(&span, spans + i * sizeof(glm_span_rec_t),
               sizeof(glm_span_rec_t));

    ngx_http_glm_put_index(out, i);
    ngx_http_glm_lit(out, ",\"start\":");
    ngx_http_glm_put_int(out, span.start);
    ngx_http_glm_lit(out, ",\"end\":");
    ngx_http_glm_put_int(out, span.end);
}


static void
ngx_http_glm_put_blank(ngx_http_glm_out_t *out, ngx_http_glm_call_t *call,
    ngx_http_glm_choice_t *blank, u_char *spans, ngx_uint_t i)
{
    ngx_uint_t  n;

    n = ngx_min(blank->nkept,
                blank->marks.len / sizeof(ngx_http_glm_mark_t));

    ngx_http_glm_put_span(out, spans, i);
    ngx_http_glm_lit(out, ",\"text\":");
    ngx_http_glm_put_string(out, blank->text.start, blank->text.len);
    ngx_http_glm_lit(out, ",\"token_ids\":");
    ngx_http_glm_put_ids(out, blank->ids.start, n);
    ngx_http_glm_put_finish(out, call->ctx, blank);
    ngx_http_glm_lit(out, ",\"logprobs\":");
    ngx_http_glm_put_logprobs(out, call, blank, n);
    ngx_http_glm_lit(out, "}");
}


/* What is new of a blank, with n tokens. */

void
ngx_http_glm_stream_blank(ngx_http_glm_call_t *call,
    ngx_http_glm_choice_t *ch, ngx_uint_t n)
{
    ngx_http_glm_ctx_t  *ctx;
    ngx_http_glm_out_t  *out;

    ctx = call->ctx;
    out = ngx_http_glm_stream_begin(ctx, ch);

    ngx_http_glm_lit(out, ",\"blank\":");
    ngx_http_glm_put_int(out, ch->blank);
    ngx_http_glm_lit(out, ",\"text\":");
    ngx_http_glm_put_string(out, ch->text.start, ch->text.len);
    ngx_http_glm_lit(out, ",\"logprobs\":");
    ngx_http_glm_put_logprobs(out, call, ch, n);
    ngx_http_glm_put_finish(out, ctx, ch);

    if (ctx->params.return_token_ids) {
        ngx_http_glm_lit(out, ",\"token_ids\":");
        ngx_http_glm_put_ids(out, ch->ids.start, n);
    }

    ngx_http_glm_lit(out, "}");
    ngx_http_glm_stream_tail(call, ch->before + ch->ntokens);
}


/* The last chunk of a choice: no blank's, but the whole. */

static void
ngx_http_glm_stream_filled(ngx_http_glm_call_t *call,
    ngx_http_glm_choice_t *ch)
{
    ngx_uint_t           i;
    ngx_http_glm_ctx_t  *ctx;
    ngx_http_glm_out_t  *out;

    ctx = call->ctx;
    out = ngx_http_glm_stream_begin(ctx, ch);

    ngx_http_glm_lit(out, ",\"blank\":null,\"text\":");
    ngx_http_glm_put_string(out, ch->whole.start, ch->whole.len);
    ngx_http_glm_lit(out, ",\"blanks\":[");

    for (i = 0; i <= ch->blank; i++) {
        if (i) {
            ngx_http_glm_lit(out, ",");
        }

        ngx_http_glm_put_span(out, ch->spans.start, i);
        ngx_http_glm_lit(out, "}");
    }

    ngx_http_glm_lit(out, "]");
    ngx_http_glm_put_finish(out, ctx, ch);
    ngx_http_glm_put_score(out, ctx, ch);
    ngx_http_glm_lit(out, "}");
    ngx_http_glm_stream_tail(call, ch->before + ch->ntokens);

    (void) ngx_pfree(ctx->request->pool, ch->whole.start);
}
