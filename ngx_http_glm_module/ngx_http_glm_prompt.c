
#include "ngx_http_glm_module.h"


static ngx_int_t ngx_http_glm_prompt_ids(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v, ngx_http_glm_prompt_t *prompt);
static ngx_int_t ngx_http_glm_prompt_text(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v, ngx_str_t *text);
static ngx_int_t ngx_http_glm_prompt_list(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v);
static ngx_int_t ngx_http_glm_prompt_type(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f);


#define NGX_HTTP_GLM_API_IDS                                                  \
    (NGX_HTTP_GLM_API_COMPLETIONS|NGX_HTTP_GLM_API_INFILL                     \
     |NGX_HTTP_GLM_API_SCORE|NGX_HTTP_GLM_API_DETOKENIZE)


/* A text or ids; of completions also a list of either. */

ngx_int_t
ngx_http_glm_set_prompt(ngx_http_glm_ctx_t *ctx, const ngx_http_glm_field_t *f,
    json_t *v)
{
    size_t                   i, size;
    json_t                  *e;
    ngx_uint_t               list;
    ngx_http_glm_params_t   *p;

    p = &ctx->params;
    list = 0;
    size = 1;

    if (ctx->api->bit == NGX_HTTP_GLM_API_COMPLETIONS && json_is_array(v)) {

        if (ngx_http_glm_prompt_list(ctx, f, v) != NGX_OK) {
            return NGX_ERROR;
        }

        if (!json_is_number(json_array_get(v, 0))) {
            list = 1;
            size = json_array_size(v);
        }
    }

    p->prompts = ngx_pcalloc(ctx->request->pool,
                             size * sizeof(ngx_http_glm_prompt_t));
    if (p->prompts == NULL) {
        return NGX_ERROR;
    }

    for (i = 0; i < size; i++) {
        e = list ? json_array_get(v, i) : v;

        if (ngx_http_glm_prompt_one(ctx, f, e, &p->prompts[i]) != NGX_OK) {
            return NGX_ERROR;
        }

        if (json_is_array(e)) {
            p->has_ids = 1;

        } else {
            p->has_text = 1;
        }
    }

    p->nprompts = size;

    return NGX_OK;
}


/* A text, or ids where they are taken; also a choice of a score. */

ngx_int_t
ngx_http_glm_prompt_one(ngx_http_glm_ctx_t *ctx, const ngx_http_glm_field_t *f,
    json_t *v, ngx_http_glm_prompt_t *prompt)
{
    if (json_is_array(v) && (ctx->api->bit & NGX_HTTP_GLM_API_IDS)) {
        return ngx_http_glm_prompt_ids(ctx, f, v, prompt);
    }

    if (!json_is_string(v)) {
        return ngx_http_glm_prompt_type(ctx, f);
    }

    return ngx_http_glm_prompt_text(ctx, f, v, &prompt->text);
}


static ngx_int_t
ngx_http_glm_prompt_type(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f)
{
    if (ctx->api->bit == NGX_HTTP_GLM_API_COMPLETIONS) {
        return ngx_http_glm_field_type(ctx, f, "a string, a list of token "
                                       "ids, or a list of either");
    }

    return ngx_http_glm_field_type(ctx, f, ctx->api->bit
                                           & NGX_HTTP_GLM_API_IDS
                                           ? "a string or a list of token ids"
                                           : "a string");
}


/* Numbers, or entries of one other type. */

static ngx_int_t
ngx_http_glm_prompt_list(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v)
{
    size_t   i, size;
    json_t  *first;

    size = json_array_size(v);
    first = json_array_get(v, 0);

    if (size == 0) {
        return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL, f->name,
                                  "prompt must not be empty.");
    }

    if (json_is_number(first)) {
        return NGX_OK;
    }

    for (i = 0; i < size; i++) {
        if (json_typeof(json_array_get(v, i)) != json_typeof(first)
            || !(json_is_string(first) || json_is_array(first)))
        {
            return ngx_http_glm_prompt_type(ctx, f);
        }
    }

    return NGX_OK;
}


/* Text that the model gets: a prompt, or what stands beside it. */

static ngx_int_t
ngx_http_glm_prompt_text(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v, ngx_str_t *text)
{
    ngx_http_glm_loc_conf_t  *glcf;

    glcf = ngx_http_get_module_loc_conf(ctx->request, ngx_http_glm_module);

    if (ngx_http_glm_get_string(ctx, f, v, text) != NGX_OK) {
        return NGX_ERROR;
    }

    if (text->len > glcf->max_prompt) {
        return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL, f->name,
                                  "%s has %uz bytes, the limit is %uz.",
                                  f->name, text->len, glcf->max_prompt);
    }

    return NGX_OK;
}


ngx_int_t
ngx_http_glm_set_text(ngx_http_glm_ctx_t *ctx, const ngx_http_glm_field_t *f,
    json_t *v)
{
    return ngx_http_glm_prompt_text(ctx, f, v,
                                    (ngx_str_t *) ((char *) &ctx->params
                                                   + f->offset));
}


static ngx_int_t
ngx_http_glm_prompt_ids(ngx_http_glm_ctx_t *ctx, const ngx_http_glm_field_t *f,
    json_t *v, ngx_http_glm_prompt_t *prompt)
{
    size_t                    i, size;
    int64_t                   last;
    json_int_t                n;
    ngx_http_glm_loc_conf_t  *glcf;

    glcf = ngx_http_get_module_loc_conf(ctx->request, ngx_http_glm_module);

    /* no engine came yet: the request ends as a 503 later */

    last = glcf->peer->welcome.vocab ? glcf->peer->welcome.vocab - 1
                                     : INT32_MAX;

    size = json_array_size(v);

    for (i = 0; i < size; i++) {
        if (ngx_http_glm_get_int(json_array_get(v, i), &n) != NGX_OK) {
            return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL,
                                      f->name, "%s must hold integers only, "
                                      "entry %uz is none.", f->name, i);
        }

        if (n < 0 || n > last) {
            return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL,
                                      f->name, "%s holds %L, token ids are "
                                      "from 0 to %L.", f->name, (int64_t) n,
                                      last);
        }
    }

    if (size * sizeof(int32_t) > glcf->max_prompt) {
        return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL, f->name,
                                  "%s has %uz token ids, the limit is %uz.",
                                  f->name, size,
                                  glcf->max_prompt / sizeof(int32_t));
    }

    prompt->ids.elts = ngx_palloc(ctx->request->pool,
                                  (size + 1) * sizeof(int32_t));
    if (prompt->ids.elts == NULL) {
        return NGX_ERROR;
    }

    for (i = 0; i < size; i++) {
        (void) ngx_http_glm_get_int(json_array_get(v, i), &n);
        prompt->ids.elts[i] = n;
    }

    prompt->ids.n = size;

    return NGX_OK;
}


ngx_int_t
ngx_http_glm_set_tokens(ngx_http_glm_ctx_t *ctx, const ngx_http_glm_field_t *f,
    json_t *v)
{
    ngx_http_glm_params_t  *p;

    p = &ctx->params;

    if (!json_is_array(v)) {
        return ngx_http_glm_field_type(ctx, f, "a list of token ids");
    }

    p->prompts = ngx_pcalloc(ctx->request->pool,
                             sizeof(ngx_http_glm_prompt_t));
    if (p->prompts == NULL) {
        return NGX_ERROR;
    }

    p->nprompts = 1;
    p->has_ids = 1;

    return ngx_http_glm_prompt_ids(ctx, f, v, p->prompts);
}


/* The field that a prompt comes from. */

const char *
ngx_http_glm_prompt_param(ngx_http_glm_ctx_t *ctx)
{
    if (ctx->api->bit == NGX_HTTP_GLM_API_DETOKENIZE) {
        return "tokens";
    }

    return ctx->api->bit == NGX_HTTP_GLM_API_CHAT || ctx->params.nmessages
           ? "messages" : "prompt";
}


ngx_uint_t
ngx_http_glm_prompt_masked(ngx_str_t *s)
{
    ngx_uint_t  i;

    static const char  *masks[] = { "[MASK]", "[gMASK]", "[sMASK]" };

    for (i = 0; s->len && i < 3; i++) {
        if (memmem(s->data, s->len, masks[i], ngx_strlen(masks[i]))) {
            return 1;
        }
    }

    return 0;
}


/* NGX_OK: a prompt's text holds a mask. */

ngx_int_t
ngx_http_glm_prompt_mask(ngx_http_glm_ctx_t *ctx)
{
    ngx_uint_t              i;
    ngx_http_glm_params_t  *p;

    p = &ctx->params;

    for (i = 0; p->parse_masks && i < p->nprompts; i++) {
        if (ngx_http_glm_prompt_masked(&p->prompts[i].text)) {
            return NGX_OK;
        }
    }

    return NGX_DECLINED;
}


/* What may stand for an empty prompt: nothing, or what comes with it. */

ngx_int_t
ngx_http_glm_prompt_empty(ngx_http_glm_ctx_t *ctx)
{
    ngx_uint_t              i;
    ngx_http_glm_params_t  *p;

    p = &ctx->params;

    if (!(ctx->api->bit & (NGX_HTTP_GLM_API_COMPLETIONS
                           |NGX_HTTP_GLM_API_INFILL|NGX_HTTP_GLM_API_SCORE))
        || p->suffix.len || p->unconditional)
    {
        return NGX_OK;
    }

    for (i = 0; i < p->nprompts; i++) {
        if (p->prompts[i].text.len == 0 && p->prompts[i].ids.n == 0) {
            return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL,
                                      "prompt", "prompt must not be empty.");
        }
    }

    return NGX_OK;
}


/* What only the engine's WELCOME tells. */

ngx_int_t
ngx_http_glm_prompt_check(ngx_http_glm_ctx_t *ctx)
{
    ngx_uint_t               i, max;
    const char              *name;
    ngx_http_glm_peer_t     *peer;
    ngx_http_glm_params_t   *p;

    p = &ctx->params;
    peer = ctx->peer;
    name = ngx_http_glm_prompt_param(ctx);

    max = ngx_min(peer->nslots, NGX_HTTP_GLM_MAX_PROMPTS);

    if (p->nprompts > max
        || p->nprompts * p->n > NGX_HTTP_GLM_MAX_CHOICES)
    {
        return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL, name,
                                  "prompt may have %ui entries and ask for "
                                  "%d choices in all, not %ui and %ui.",
                                  max, NGX_HTTP_GLM_MAX_CHOICES,
                                  p->nprompts, (ngx_uint_t)
                                               (p->nprompts * p->n));
    }

    for (i = 0; i < p->nprompts; i++) {
        if (ngx_http_glm_request_ids(ctx, name, &p->prompts[i].ids)
            != NGX_OK)
        {
            return NGX_ERROR;
        }
    }

    for (i = 0; i < p->nscored; i++) {
        if (ngx_http_glm_request_ids(ctx, "choices", &p->scored[i].ids)
            != NGX_OK)
        {
            return NGX_ERROR;
        }
    }

    return NGX_OK;
}
