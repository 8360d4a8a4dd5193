
#include "ngx_http_glm_module.h"


/* One of the four arrays over tokens. */

typedef enum {
    NGX_HTTP_GLM_TOKENS = 0,
    NGX_HTTP_GLM_LOGPROBS,
    NGX_HTTP_GLM_TOP,
    NGX_HTTP_GLM_OFFSETS
} ngx_http_glm_array_e;


typedef struct {
    ngx_http_glm_out_t       *out;
    ngx_http_glm_ctx_t       *ctx;
    ngx_http_glm_array_e      array;
    ngx_uint_t                some;          /* entries so far */
} ngx_http_glm_array_t;


static const char *ngx_http_glm_object(ngx_http_glm_ctx_t *ctx);
static ngx_uint_t ngx_http_glm_end_entry(ngx_http_glm_params_t *p,
    ngx_http_glm_choice_t *ch, ngx_uint_t n);
static void ngx_http_glm_put_prompt_array(ngx_http_glm_array_t *a,
    ngx_http_glm_call_t *call);
static u_char *ngx_http_glm_put_entry(ngx_http_glm_array_t *a, u_char *p,
    ngx_uint_t top);
static void ngx_http_glm_put_top(ngx_http_glm_out_t *out,
    ngx_http_glm_ctx_t *ctx, u_char *p, ngx_uint_t top);
static ngx_uint_t ngx_http_glm_collides(ngx_http_glm_ctx_t *ctx,
    glm_logprob_rec_t *recs, u_char **texts, ngx_uint_t n, ngx_uint_t i);
static u_char *ngx_http_glm_put_prompt_token(ngx_http_glm_out_t *out,
    ngx_http_glm_ctx_t *ctx, u_char *p);
static void ngx_http_glm_put_ranked(ngx_http_glm_out_t *out,
    ngx_http_glm_ctx_t *ctx, u_char *p, ngx_uint_t rank, ngx_uint_t comma);


void
ngx_http_glm_put_answer(ngx_http_glm_out_t *out, ngx_http_glm_ctx_t *ctx)
{
    u_char  fingerprint[sizeof("fp_") - 1 + 16];

    ngx_http_glm_lit(out, "{\"id\":");
    ngx_http_glm_put_string(out, ctx->id.data, ctx->id.len);
    ngx_http_glm_lit(out, ",\"object\":\"");
    ngx_http_glm_put_str(out, ngx_http_glm_object(ctx));
    ngx_http_glm_lit(out, "\",\"created\":");
    ngx_http_glm_put_int(out, ctx->created);
    ngx_http_glm_lit(out, ",\"model\":");
    ngx_http_glm_put_string(out, ctx->model.data, ctx->model.len);
    ngx_http_glm_lit(out, ",\"system_fingerprint\":\"");
    ngx_http_glm_put(out, fingerprint,
                     ngx_sprintf(fingerprint, "fp_%016xL", ctx->fingerprint)
                     - fingerprint);
    ngx_http_glm_lit(out, "\"");

    if (ctx->api->bit == NGX_HTTP_GLM_API_INFILL) {
        ngx_http_glm_put_warnings(out, ctx);
    }

    ngx_http_glm_lit(out, ",\"choices\":[");
}


static const char *
ngx_http_glm_object(ngx_http_glm_ctx_t *ctx)
{
    switch (ctx->api->bit) {

    case NGX_HTTP_GLM_API_CHAT:
        return ctx->stream ? "chat.completion.chunk" : "chat.completion";

    case NGX_HTTP_GLM_API_INFILL:
        return "infill";

    case NGX_HTTP_GLM_API_SCORE:
        return "score";

    default:
        return "text_completion";
    }
}


/*
 * With echo the end token has its entry, too: who scores a prompt takes the
 * last entry for the generated one, whatever it was.
 */

static ngx_uint_t
ngx_http_glm_end_entry(ngx_http_glm_params_t *p, ngx_http_glm_choice_t *ch,
    ngx_uint_t n)
{
    return p->echo && ch->reason == GLM_REASON_STOP && ch->stop_id < 0
           && ch->stop_index < 0
           && ch->marks.len / sizeof(ngx_http_glm_mark_t) > n;
}


/* An object that is left open. */

void
ngx_http_glm_put_index(ngx_http_glm_out_t *out, ngx_uint_t i)
{
    ngx_http_glm_lit(out, "{\"index\":");
    ngx_http_glm_put_int(out, i);
}


/* A choice with its first n tokens; at its first time with the prompt. */

void
ngx_http_glm_put_choice(ngx_http_glm_out_t *out, ngx_http_glm_call_t *call,
    ngx_http_glm_choice_t *ch, ngx_uint_t n)
{
    ngx_http_glm_ctx_t     *ctx;
    ngx_http_glm_params_t  *p;

    ctx = call->ctx;
    p = &ctx->params;

    ngx_http_glm_put_index(out, ch->index);
    ngx_http_glm_lit(out, ",\"text\":\"");

    if (p->echo && !ch->told) {
        ngx_http_glm_put_escaped(out, call->text.start, call->text.len);
    }

    ngx_http_glm_put_escaped(out, ch->text.start, ch->text.len);
    ngx_http_glm_lit(out, "\",\"logprobs\":");
    ngx_http_glm_put_logprobs(out, call, ch,
                              n + ngx_http_glm_end_entry(p, ch, n));
    ngx_http_glm_put_finish(out, ctx, ch);
    ngx_http_glm_put_score(out, ctx, ch);

    if (p->return_token_ids) {
        ngx_http_glm_lit(out, ",\"token_ids\":");
        ngx_http_glm_put_ids(out, ch->ids.start, n);

        if (call->ids.len && !ch->told) {
            ngx_http_glm_lit(out, ",\"prompt_token_ids\":");
            ngx_http_glm_put_ids(out, call->ids.start,
                                 call->ids.len / sizeof(int32_t));
        }
    }

    if (p->prompt_logprobs >= 0) {
        ngx_http_glm_lit(out, ",\"prompt_logprobs\":");
        ngx_http_glm_put_prompt_logprobs(out, call);
    }

    ngx_http_glm_lit(out, "}");

    ch->told = 1;
}


void
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

    if (ch->reason == GLM_REASON_STOP && ch->stop_index >= 0
        && (ngx_uint_t) ch->stop_index < ctx->params.nown)
    {
        stop = &ctx->params.stops[ch->stop_index];
        ngx_http_glm_put_string(out, stop->data, stop->len);

    } else if (ch->reason == GLM_REASON_STOP && ch->stop_id >= 0) {
        ngx_http_glm_put_int(out, ch->stop_id);

    } else {
        ngx_http_glm_lit(out, "null");
    }
}


/* Of the candidates of a beam search. */

void
ngx_http_glm_put_score(ngx_http_glm_out_t *out, ngx_http_glm_ctx_t *ctx,
    ngx_http_glm_choice_t *ch)
{
    if (ctx->params.beams > 1 && ch->reason) {
        ngx_http_glm_lit(out, ",\"score\":");
        ngx_http_glm_put_num(out, ch->score);
    }
}


void
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

void
ngx_http_glm_put_logprobs(ngx_http_glm_out_t *out, ngx_http_glm_call_t *call,
    ngx_http_glm_choice_t *ch, ngx_uint_t n)
{
    u_char                *p;
    ngx_uint_t             i;
    ngx_http_glm_ctx_t    *ctx;
    ngx_http_glm_array_t   a;

    static const char  *names[] = {
        "{\"tokens\":[", "],\"token_logprobs\":[", "],\"top_logprobs\":[",
        "],\"text_offset\":["
    };

    ctx = call->ctx;

    if (ctx->params.logprobs < 0) {
        ngx_http_glm_lit(out, "null");
        return;
    }

    if (ch->logprobs.len == 0) {
        n = 0;
    }

    a.out = out;
    a.ctx = ctx;

    for (a.array = NGX_HTTP_GLM_TOKENS; a.array <= NGX_HTTP_GLM_OFFSETS;
         a.array++)
    {
        ngx_http_glm_put_str(out, names[a.array]);

        a.some = 0;
        p = ch->logprobs.start;

        if (ctx->params.echo && !ch->told) {
            ngx_http_glm_put_prompt_array(&a, call);
        }

        for (i = 0; i < n; i++) {
            p = ngx_http_glm_put_entry(&a, p, NGX_HTTP_GLM_MAX_TOP);
        }
    }

    ngx_http_glm_lit(out, "]}");
}


/* The user's own tokens; nothing comes before the first one. */

static void
ngx_http_glm_put_prompt_array(ngx_http_glm_array_t *a,
    ngx_http_glm_call_t *call)
{
    u_char  *p, *last;

    p = call->strs.start;
    last = p + call->strs.len;

    while (p < last) {

        if (p == call->strs.start
            && (a->array == NGX_HTTP_GLM_LOGPROBS
                || a->array == NGX_HTTP_GLM_TOP))
        {
            ngx_http_glm_lit(a->out, "null");
            a->some = 1;
            p = ngx_http_glm_next_token(p);
            continue;
        }

        p = ngx_http_glm_put_entry(a, p, a->ctx->params.logprobs);
    }
}


/* Returns where the next token's records begin. */

static u_char *
ngx_http_glm_put_entry(ngx_http_glm_array_t *a, u_char *p, ngx_uint_t top)
{
    glm_logprob_rec_t  rec;

    ngx_memcpy(&rec, p, sizeof(glm_logprob_rec_t));

    if (a->some++) {
        ngx_http_glm_lit(a->out, ",");
    }

    switch (a->array) {

    case NGX_HTTP_GLM_TOKENS:
        ngx_http_glm_put_token(a->out, a->ctx, &rec,
                               p + sizeof(glm_logprob_rec_t));
        break;

    case NGX_HTTP_GLM_LOGPROBS:
        ngx_http_glm_put_logprob(a->out, rec.logprob);
        break;

    case NGX_HTTP_GLM_TOP:
        ngx_http_glm_put_top(a->out, a->ctx, p, top);
        break;

    case NGX_HTTP_GLM_OFFSETS:
        ngx_http_glm_put_int(a->out, rec.offset);
        break;
    }

    return ngx_http_glm_next_token(p);
}


u_char *
ngx_http_glm_next_token(u_char *p)
{
    ngx_uint_t          n;
    glm_logprob_rec_t   rec;

    ngx_memcpy(&rec, p, sizeof(glm_logprob_rec_t));

    for (n = rec.ntop + 1; n; n--) {
        ngx_memcpy(&rec, p, sizeof(glm_logprob_rec_t));
        p += sizeof(glm_logprob_rec_t) + ngx_align(rec.text_size, 4);
    }

    return p;
}


/* The top best ones and the chosen one; of ids that print alike the better. */

static void
ngx_http_glm_put_top(ngx_http_glm_out_t *out, ngx_http_glm_ctx_t *ctx,
    u_char *p, ngx_uint_t top)
{
    u_char             *texts[NGX_HTTP_GLM_MAX_TOP + 1];
    ngx_uint_t          i, n, some;
    glm_logprob_rec_t   recs[NGX_HTTP_GLM_MAX_TOP + 1];

    ngx_memcpy(&recs[0], p, sizeof(glm_logprob_rec_t));

    n = ngx_min(ngx_min(recs[0].ntop, top), NGX_HTTP_GLM_MAX_TOP) + 1;

    for (i = 0; i < n; i++) {
        ngx_memcpy(&recs[i], p, sizeof(glm_logprob_rec_t));
        texts[i] = p + sizeof(glm_logprob_rec_t);
        p = texts[i] + ngx_align(recs[i].text_size, 4);
    }

    some = 0;

    ngx_http_glm_lit(out, "{");

    for (i = 1; i <= n; i++) {

        /* the chosen one comes last, if it is not among the best */

        if (ngx_http_glm_collides(ctx, recs, texts, n, i)) {
            continue;
        }

        if (some++) {
            ngx_http_glm_lit(out, ",");
        }

        ngx_http_glm_put_token(out, ctx, &recs[i % n], texts[i % n]);
        ngx_http_glm_lit(out, ":");
        ngx_http_glm_put_logprob(out, recs[i % n].logprob);
    }

    ngx_http_glm_lit(out, "}");
}


/* A better one, or an equal one before it, prints the same. */

static ngx_uint_t
ngx_http_glm_collides(ngx_http_glm_ctx_t *ctx, glm_logprob_rec_t *recs,
    u_char **texts, ngx_uint_t n, ngx_uint_t i)
{
    ngx_uint_t          k;
    glm_logprob_rec_t  *rec;

    rec = &recs[i % n];

    for (k = 0; k < n; k++) {

        if (k == i % n
            || recs[k].logprob < rec->logprob
            || (recs[k].logprob == rec->logprob && (k ? k : n) > i))
        {
            continue;
        }

        if (ctx->params.tokens_as_ids) {
            if (recs[k].id == rec->id) {
                return 1;
            }

            continue;
        }

        if (recs[k].text_size == rec->text_size
            && ngx_memcmp(texts[k], texts[i % n], rec->text_size) == 0)
        {
            return 1;
        }
    }

    return 0;
}


/* A token may be a part of a character: its bytes then, as OpenAI prints. */

void
ngx_http_glm_put_token(ngx_http_glm_out_t *out, ngx_http_glm_ctx_t *ctx,
    glm_logprob_rec_t *rec, u_char *text)
{
    size_t  i;
    u_char  buf[sizeof("\\\\xff") - 1];

    if (ctx->params.tokens_as_ids) {
        ngx_http_glm_lit(out, "\"token_id:");
        ngx_http_glm_put_int(out, rec->id);
        ngx_http_glm_lit(out, "\"");
        return;
    }

    if (ngx_http_glm_utf8(text, rec->text_size, NULL) == NGX_OK) {
        ngx_http_glm_put_string(out, text, rec->text_size);
        return;
    }

    ngx_http_glm_lit(out, "\"bytes:");

    for (i = 0; i < rec->text_size; i++) {
        (void) ngx_sprintf(buf, "\\\\x%02xd", (int) text[i]);
        ngx_http_glm_put(out, buf, sizeof(buf));
    }

    ngx_http_glm_lit(out, "\"");
}


/* vLLM's shape: an object a token, whose keys are ids. */

void
ngx_http_glm_put_prompt_logprobs(ngx_http_glm_out_t *out,
    ngx_http_glm_call_t *call)
{
    u_char  *p, *last;

    p = call->strs.start;
    last = p + call->strs.len;

    ngx_http_glm_lit(out, "[");

    if (p < last) {
        ngx_http_glm_lit(out, "null");
        p = ngx_http_glm_next_token(p);
    }

    while (p < last) {
        ngx_http_glm_lit(out, ",");
        p = ngx_http_glm_put_prompt_token(out, call->ctx, p);
    }

    ngx_http_glm_lit(out, "]");
}


/* The token itself and the best ones; a rank is known among these only. */

static u_char *
ngx_http_glm_put_prompt_token(ngx_http_glm_out_t *out, ngx_http_glm_ctx_t *ctx,
    u_char *p)
{
    int32_t             id;
    u_char             *own, *next;
    ngx_uint_t          i, top, found;
    glm_logprob_rec_t   rec;

    own = p;
    next = ngx_http_glm_next_token(p);

    ngx_memcpy(&rec, p, sizeof(glm_logprob_rec_t));
    id = rec.id;
    top = ngx_min(rec.ntop, (ngx_uint_t) ctx->params.prompt_logprobs);
    found = 0;

    ngx_http_glm_lit(out, "{");

    for (i = 1; i <= top; i++) {
        ngx_memcpy(&rec, p, sizeof(glm_logprob_rec_t));
        p += sizeof(glm_logprob_rec_t) + ngx_align(rec.text_size, 4);

        ngx_memcpy(&rec, p, sizeof(glm_logprob_rec_t));
        found |= rec.id == id;

        ngx_http_glm_put_ranked(out, ctx, p, i, i > 1);
    }

    if (!found) {
        ngx_http_glm_put_ranked(out, ctx, own, 0, top > 0);
    }

    ngx_http_glm_lit(out, "}");

    return next;
}


/* rank 0: none */

static void
ngx_http_glm_put_ranked(ngx_http_glm_out_t *out, ngx_http_glm_ctx_t *ctx,
    u_char *p, ngx_uint_t rank, ngx_uint_t comma)
{
    glm_logprob_rec_t  rec;

    ngx_memcpy(&rec, p, sizeof(glm_logprob_rec_t));

    if (comma) {
        ngx_http_glm_lit(out, ",");
    }

    ngx_http_glm_lit(out, "\"");
    ngx_http_glm_put_int(out, rec.id);
    ngx_http_glm_lit(out, "\":{\"logprob\":");
    ngx_http_glm_put_logprob(out, rec.logprob);
    ngx_http_glm_lit(out, ",\"rank\":");

    if (rank) {
        ngx_http_glm_put_int(out, rank);

    } else {
        ngx_http_glm_lit(out, "null");
    }

    ngx_http_glm_lit(out, ",\"decoded_token\":");
    ngx_http_glm_put_token(out, ctx, &rec, p + sizeof(glm_logprob_rec_t));
    ngx_http_glm_lit(out, "}");
}


void
ngx_http_glm_put_usage(ngx_http_glm_out_t *out, uint64_t prompt,
    uint64_t completion, uint64_t cached)
{
    ngx_http_glm_lit(out, "\"usage\":{\"prompt_tokens\":");
    ngx_http_glm_put_int(out, prompt);
    ngx_http_glm_lit(out, ",\"completion_tokens\":");
    ngx_http_glm_put_int(out, completion);
    ngx_http_glm_lit(out, ",\"total_tokens\":");
    ngx_http_glm_put_int(out, prompt + completion);
    ngx_http_glm_lit(out, ",\"prompt_tokens_details\":{\"cached_tokens\":");
    ngx_http_glm_put_int(out, cached);
    ngx_http_glm_lit(out, "}}");
}
