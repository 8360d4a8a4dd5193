
#include "ngx_http_glm_module.h"


static double ngx_http_glm_score_sum(ngx_http_glm_choice_t *ch);
static double ngx_http_glm_score_of(ngx_http_glm_ctx_t *ctx, ngx_uint_t i,
    double sum);
static void ngx_http_glm_put_scored(ngx_http_glm_out_t *out,
    ngx_http_glm_ctx_t *ctx, ngx_uint_t i, double sum, double score);
static void ngx_http_glm_put_token_logprobs(ngx_http_glm_out_t *out,
    ngx_http_glm_choice_t *ch);


ngx_int_t
ngx_http_glm_set_choices(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v)
{
    size_t                  i, size;
    ngx_http_glm_params_t  *p;

    p = &ctx->params;

    if (!json_is_array(v)) {
        return ngx_http_glm_field_type(ctx, f, "a list of strings, or of "
                                       "lists of token ids");
    }

    size = json_array_size(v);

    if (size == 0 || size > NGX_HTTP_GLM_MAX_SCORED) {
        return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL, f->name,
                                  "choices must have 1 to %d entries, "
                                  "not %uz.", NGX_HTTP_GLM_MAX_SCORED, size);
    }

    p->scored = ngx_pcalloc(ctx->request->pool,
                            size * sizeof(ngx_http_glm_prompt_t));
    if (p->scored == NULL) {
        return NGX_ERROR;
    }

    for (i = 0; i < size; i++) {
        if (ngx_http_glm_prompt_one(ctx, f, json_array_get(v, i),
                                    &p->scored[i])
            != NGX_OK)
        {
            return NGX_ERROR;
        }

        if (p->scored[i].text.len == 0 && p->scored[i].ids.n == 0) {
            return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL,
                                      f->name, "choices[%uz] is empty.", i);
        }
    }

    p->nscored = size;

    return NGX_OK;
}


ngx_int_t
ngx_http_glm_set_normalize(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v)
{
    ngx_uint_t  i;

    static const char  *names[] = { "none", "token", "byte" };

    for (i = 0; i < 3; i++) {
        if (ngx_http_glm_is(v, names[i])) {
            ctx->params.normal = i;
            return NGX_OK;
        }
    }

    return ngx_http_glm_field_type(ctx, f, "\"none\", \"token\" or \"byte\"");
}


ngx_int_t
ngx_http_glm_set_mask(ngx_http_glm_ctx_t *ctx, const ngx_http_glm_field_t *f,
    json_t *v)
{
    if (!ngx_http_glm_is(v, "[MASK]") && !ngx_http_glm_is(v, "[gMASK]")) {
        return ngx_http_glm_field_type(ctx, f, "\"[MASK]\" or \"[gMASK]\"");
    }

    ctx->params.gmask = ngx_http_glm_is(v, "[gMASK]");

    return NGX_OK;
}


/* A prompt and its choices; unconditional has an empty prompt beside it. */

ngx_int_t
ngx_http_glm_score_together(ngx_http_glm_ctx_t *ctx)
{
    ngx_uint_t              i;
    ngx_http_glm_params_t  *p;
    ngx_http_glm_prompt_t  *prompts;

    p = &ctx->params;

    if (p->nscored == 0) {
        return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL, "choices",
                                  "choices is required.");
    }

    for (i = 0; p->parse_masks && i < p->nscored; i++) {
        if (ngx_http_glm_prompt_masked(&p->scored[i].text)) {
            return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL,
                                      "choices", "choices[%ui] holds a mask, "
                                      "which is text with parse_masks: false "
                                      "only.", i);
        }
    }

    if (p->stream) {
        return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL, "stream",
                                  "A score cannot be streamed.");
    }

    p->logprobs = 0;

    if (!p->unconditional) {
        return NGX_OK;
    }

    prompts = ngx_pcalloc(ctx->request->pool,
                          2 * sizeof(ngx_http_glm_prompt_t));
    if (prompts == NULL) {
        return NGX_ERROR;
    }

    prompts[0] = p->prompts[0];

    p->prompts = prompts;
    p->nprompts = 2;

    return NGX_OK;
}


/* In double: a thousand floats lose digits. */

static double
ngx_http_glm_score_sum(ngx_http_glm_choice_t *ch)
{
    u_char             *p, *last;
    double              sum;
    glm_logprob_rec_t   rec;

    sum = 0;
    p = ch->logprobs.start;
    last = p + ch->logprobs.len;

    while (p < last) {
        ngx_memcpy(&rec, p, sizeof(glm_logprob_rec_t));
        sum += ngx_max(rec.logprob, -9999.0);
        p = ngx_http_glm_next_token(p);
    }

    return sum;
}


/* The sum of choice i as the request wants it. */

static double
ngx_http_glm_score_of(ngx_http_glm_ctx_t *ctx, ngx_uint_t i, double sum)
{
    size_t                  n;
    ngx_http_glm_choice_t  *ch;

    ch = &ctx->calls->choices[i];

    if (ctx->params.unconditional) {
        sum -= ngx_http_glm_score_sum(&ctx->calls[1].choices[i]);
    }

    switch (ctx->params.normal) {

    case NGX_HTTP_GLM_NORMAL_TOKEN:
        n = ch->ntokens;
        break;

    case NGX_HTTP_GLM_NORMAL_BYTE:
        n = ctx->params.scored[i].ids.n ? ch->text.len
                                        : ctx->params.scored[i].text.len;
        break;

    default:
        n = 1;
    }

    return sum / ngx_max(n, 1);
}


/* The rest of the answer, from the choices on. */

void
ngx_http_glm_put_scores(ngx_http_glm_out_t *out, ngx_http_glm_ctx_t *ctx)
{
    double      sum, score, top;
    ngx_uint_t  i, best;

    best = 0;
    top = 0;

    for (i = 0; i < ctx->calls->nchoices; i++) {
        sum = ngx_http_glm_score_sum(&ctx->calls->choices[i]);
        score = ngx_http_glm_score_of(ctx, i, sum);

        if (i == 0 || score > top) {
            best = i;
            top = score;
        }

        if (i) {
            ngx_http_glm_lit(out, ",");
        }

        ngx_http_glm_put_scored(out, ctx, i, sum, score);
    }

    ngx_http_glm_lit(out, "],\"best\":");
    ngx_http_glm_put_int(out, best);
    ngx_http_glm_lit(out, ",");
    ngx_http_glm_put_usage(out, ctx->prompt_tokens, ctx->completion_tokens,
                           ctx->cached_tokens);
    ngx_http_glm_lit(out, "}");
}


static void
ngx_http_glm_put_scored(ngx_http_glm_out_t *out, ngx_http_glm_ctx_t *ctx,
    ngx_uint_t i, double sum, double score)
{
    ngx_str_t              *text;
    ngx_http_glm_choice_t  *ch;

    ch = &ctx->calls->choices[i];
    text = &ctx->params.scored[i].text;

    ngx_http_glm_put_index(out, i);
    ngx_http_glm_lit(out, ",\"text\":");

    if (text->len) {
        ngx_http_glm_put_string(out, text->data, text->len);

    } else {
        ngx_http_glm_put_string(out, ch->text.start, ch->text.len);
    }

    ngx_http_glm_lit(out, ",\"logprob\":");
    ngx_http_glm_put_num(out, sum);
    ngx_http_glm_lit(out, ",\"score\":");
    ngx_http_glm_put_num(out, score);
    ngx_http_glm_lit(out, ",\"token_ids\":");
    ngx_http_glm_put_ids(out, ch->ids.start, ch->ids.len / sizeof(int32_t));
    ngx_http_glm_lit(out, ",\"token_logprobs\":");
    ngx_http_glm_put_token_logprobs(out, ch);
    ngx_http_glm_lit(out, "}");
}


static void
ngx_http_glm_put_token_logprobs(ngx_http_glm_out_t *out,
    ngx_http_glm_choice_t *ch)
{
    u_char             *p, *last;
    glm_logprob_rec_t   rec;

    p = ch->logprobs.start;
    last = p + ch->logprobs.len;

    ngx_http_glm_lit(out, "[");

    while (p < last) {
        if (p != ch->logprobs.start) {
            ngx_http_glm_lit(out, ",");
        }

        ngx_memcpy(&rec, p, sizeof(glm_logprob_rec_t));
        ngx_http_glm_put_logprob(out, rec.logprob);
        p = ngx_http_glm_next_token(p);
    }

    ngx_http_glm_lit(out, "]");
}
