
#include "ngx_http_glm_module.h"


static ngx_int_t ngx_http_glm_together_lengths(ngx_http_glm_ctx_t *ctx);
static ngx_int_t ngx_http_glm_together_beams(ngx_http_glm_ctx_t *ctx);
static ngx_int_t ngx_http_glm_together_mode(ngx_http_glm_ctx_t *ctx);


/* What two fields say together. */

ngx_int_t
ngx_http_glm_together(ngx_http_glm_ctx_t *ctx)
{
    const char             *name;
    ngx_http_glm_params_t  *p;

    p = &ctx->params;

    p->nown = p->nstops;

    if (ngx_http_glm_together_beams(ctx) != NGX_OK
        || ngx_http_glm_chat_together(ctx) != NGX_OK
        || (ctx->api->bit == NGX_HTTP_GLM_API_EDITOR
            && ngx_http_glm_editor_together(ctx) != NGX_OK))
    {
        return NGX_ERROR;
    }

    if (!p->has_text && !p->has_ids) {
        name = ngx_http_glm_prompt_param(ctx);

        return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL, name,
                                  "%s is required.", name);
    }

    if (ngx_http_glm_prompt_empty(ctx) != NGX_OK
        || (ctx->api->bit == NGX_HTTP_GLM_API_INFILL
            && ngx_http_glm_infill_together(ctx) != NGX_OK)
        || (ctx->api->bit == NGX_HTTP_GLM_API_SCORE
            && ngx_http_glm_score_together(ctx) != NGX_OK))
    {
        return NGX_ERROR;
    }

    if (p->has_stream_options && !p->stream) {
        return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL,
                                  "stream_options",
                                  "stream_options needs stream: true.");
    }

    if (p->best_of >= 0 && p->best_of < p->n) {
        return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL, "best_of",
                                  "best_of must be at least n (%L), not %L.",
                                  (int64_t) p->n, (int64_t) p->best_of);
    }

    if (p->best_of > 1 && p->stream) {
        return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL, "best_of",
                                  "best_of cannot be streamed.");
    }

    if (p->score_ids.n && p->logprobs < 0) {
        return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL,
                                  "logprob_token_ids",
                                  "logprob_token_ids needs logprobs.");
    }

    if (p->prompt_logprobs >= 0 && p->stream) {
        return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL,
                                  "prompt_logprobs",
                                  "prompt_logprobs cannot be streamed.");
    }

    if (ngx_http_glm_together_lengths(ctx) != NGX_OK
        || ngx_http_glm_together_mode(ctx) != NGX_OK)
    {
        return NGX_ERROR;
    }

    if (p->later) {
        return ngx_http_glm_error(ctx, NGX_HTTP_NOT_IMPLEMENTED, NULL,
                                  p->later,
                                  "%s is not implemented yet.", p->later);
    }

    return NGX_OK;
}


/* min_tokens and its other name. */

static ngx_int_t
ngx_http_glm_together_lengths(ngx_http_glm_ctx_t *ctx)
{
    const char             *name;
    ngx_http_glm_params_t  *p;

    p = &ctx->params;
    name = p->min_tokens >= 0 ? "min_tokens" : "min_gen_length";

    if (p->min_tokens >= 0 && p->min_gen_length >= 0
        && p->min_tokens != p->min_gen_length)
    {
        return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL,
                                  "min_gen_length",
                                  "min_tokens (%L) and min_gen_length (%L) "
                                  "are the same and differ.",
                                  (int64_t) p->min_tokens,
                                  (int64_t) p->min_gen_length);
    }

    p->min_tokens = ngx_max(p->min_tokens, p->min_gen_length);

    if (p->max_tokens >= 0 && p->min_tokens > p->max_tokens) {
        return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL, name,
                                  "%s must be at most max_tokens (%L), "
                                  "not %L.", name, (int64_t) p->max_tokens,
                                  (int64_t) p->min_tokens);
    }

    p->min_tokens = ngx_max(p->min_tokens, 0);

    return NGX_OK;
}


/* How wide a beam search is, if it is one: it has nothing to draw. */

static ngx_int_t
ngx_http_glm_together_beams(ngx_http_glm_ctx_t *ctx)
{
    const char             *name;
    ngx_http_glm_params_t  *p;

    p = &ctx->params;

    if (!p->use_beams && p->beams <= 1) {
        p->beams = 1;
        p->temperature = p->temperature < 0 ? 1 : p->temperature;
        return NGX_OK;
    }

    if (p->beams < 0) {
        p->beams = p->n;
    }

    name = p->temperature > 0 ? "temperature" : p->has_seed ? "seed"
           : p->best_of > 1 ? "best_of" : NULL;

    if (name) {
        return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL, name,
                                  "A beam search draws nothing: it excludes "
                                  "%s%s.", name, p->temperature > 0
                                                 ? " above 0" : "");
    }

    if (p->n > p->beams) {
        return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL, "n",
                                  "n must be at most num_beams (%L), not %L.",
                                  (int64_t) p->beams, (int64_t) p->n);
    }

    if (p->beams > NGX_HTTP_GLM_MAX_BEAMS) {
        return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL, "n",
                                  "n must be at most %d with "
                                  "use_beam_search, not %L.",
                                  NGX_HTTP_GLM_MAX_BEAMS, (int64_t) p->n);
    }

    p->temperature = 0;

    return NGX_OK;
}


/*
 * A token has a left-to-right probability only where it sees no more than what
 * is to the left of it.
 */

static ngx_int_t
ngx_http_glm_together_mode(ngx_http_glm_ctx_t *ctx)
{
    const char             *name;
    ngx_http_glm_params_t  *p;

    p = &ctx->params;

    if (p->prompt_logprobs >= 0) {
        name = "prompt_logprobs";

    } else if (p->echo && p->logprobs >= 0
               && ctx->api->bit == NGX_HTTP_GLM_API_COMPLETIONS)
    {
        name = "echo with logprobs";

    } else {
        name = NULL;
    }

    /* behind a blank there is nothing where the context is causal */

    if (p->suffix.len && (name || p->mode)) {
        return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL, "suffix",
                                  "suffix excludes %s: it needs the "
                                  "bidirectional mode.",
                                  name ? name : "the unidirectional mode");
    }

    if (name == NULL) {
        return NGX_OK;
    }

    if (p->has_mode && p->mode == 0) {
        return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL, "mode",
                                  "%s needs the unidirectional mode: in the "
                                  "bidirectional one the tokens of a prompt "
                                  "see each other and have no left-to-right "
                                  "probability.", name);
    }

    if (ngx_http_glm_prompt_mask(ctx) == NGX_OK) {
        return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL, "prompt",
                                  "%s runs in the unidirectional mode, where "
                                  "a prompt cannot hold a mask.", name);
    }

    p->mode = 1;

    return NGX_OK;
}
