
#include "ngx_http_glm_module.h"


static ngx_int_t ngx_http_glm_get_ids(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v);
static ngx_uint_t ngx_http_glm_is(json_t *v, const char *s);


static ngx_int_t
ngx_http_glm_get_ids(ngx_http_glm_ctx_t *ctx, const ngx_http_glm_field_t *f,
    json_t *v)
{
    size_t                    i, size;
    int64_t                   last;
    json_int_t                n;
    ngx_http_glm_params_t    *p;
    ngx_http_glm_loc_conf_t  *glcf;

    p = &ctx->params;
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

    p->ids = ngx_palloc(ctx->request->pool, (size + 1) * sizeof(int32_t));
    if (p->ids == NULL) {
        return NGX_ERROR;
    }

    for (i = 0; i < size; i++) {
        (void) ngx_http_glm_get_int(json_array_get(v, i), &n);
        p->ids[i] = n;
    }

    p->nids = size;
    p->has_ids = 1;

    return NGX_OK;
}


/* A string may hold NUL, and then is none of ours. */

static ngx_uint_t
ngx_http_glm_is(json_t *v, const char *s)
{
    return json_is_string(v) && json_string_length(v) == ngx_strlen(s)
           && ngx_memcmp(json_string_value(v), s, ngx_strlen(s)) == 0;
}


ngx_int_t
ngx_http_glm_set_prompt(ngx_http_glm_ctx_t *ctx, const ngx_http_glm_field_t *f,
    json_t *v)
{
    size_t                    i, size;
    json_t                   *first;
    ngx_str_t                 s;
    ngx_http_glm_params_t    *p;
    ngx_http_glm_loc_conf_t  *glcf;

    p = &ctx->params;
    glcf = ngx_http_get_module_loc_conf(ctx->request, ngx_http_glm_module);

    if (json_is_array(v) && ctx->api->bit == NGX_HTTP_GLM_API_COMPLETIONS) {
        size = json_array_size(v);
        first = json_array_get(v, 0);

        if (size == 0) {
            return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL,
                                      f->name, "prompt must not be empty.");
        }

        if (json_is_number(first)) {
            return ngx_http_glm_get_ids(ctx, f, v);
        }

        for (i = 0; i < size; i++) {
            if (json_typeof(json_array_get(v, i)) != json_typeof(first)
                || !(json_is_string(first) || json_is_array(first)))
            {
                return ngx_http_glm_field_type(ctx, f, "a string, a list of "
                                               "token ids, or a list of "
                                               "either");
            }
        }

        if (size > 1) {
            ngx_http_glm_field_later(ctx, f);
        }

        v = first;
    }

    if (json_is_array(v) && ctx->api->bit == NGX_HTTP_GLM_API_COMPLETIONS) {
        if (json_array_size(v) == 0) {
            return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL,
                                      f->name, "prompt must not be empty.");
        }

        return ngx_http_glm_get_ids(ctx, f, v);
    }

    if (!json_is_string(v)) {
        return ngx_http_glm_field_type(ctx, f, ctx->api->bit
                                       == NGX_HTTP_GLM_API_COMPLETIONS
                                       ? "a string, a list of token ids, or "
                                         "a list of either" : "a string");
    }

    if (ngx_http_glm_get_string(ctx, f, v, &s) != NGX_OK) {
        return NGX_ERROR;
    }

    if (s.len == 0 && ctx->api->bit == NGX_HTTP_GLM_API_COMPLETIONS) {
        return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL, f->name,
                                  "prompt must not be empty.");
    }

    if (s.len > glcf->max_prompt) {
        return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL, f->name,
                                  "prompt has %uz bytes, the limit is %uz.",
                                  s.len, glcf->max_prompt);
    }

    p->prompt = s;
    p->has_text = 1;

    return NGX_OK;
}


ngx_int_t
ngx_http_glm_set_tokens(ngx_http_glm_ctx_t *ctx, const ngx_http_glm_field_t *f,
    json_t *v)
{
    if (!json_is_array(v)) {
        return ngx_http_glm_field_type(ctx, f, "a list of token ids");
    }

    return ngx_http_glm_get_ids(ctx, f, v);
}


ngx_int_t
ngx_http_glm_set_stop(ngx_http_glm_ctx_t *ctx, const ngx_http_glm_field_t *f,
    json_t *v)
{
    size_t                    i, size;
    json_t                   *e;
    ngx_http_glm_params_t    *p;
    ngx_http_glm_loc_conf_t  *glcf;

    p = &ctx->params;
    glcf = ngx_http_get_module_loc_conf(ctx->request, ngx_http_glm_module);

    if (!json_is_string(v) && !json_is_array(v)) {
        return ngx_http_glm_field_type(ctx, f, "a string or a list of "
                                       "strings");
    }

    size = json_is_array(v) ? json_array_size(v) : 1;

    if (size > (size_t) glcf->max_stops) {
        return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL, f->name,
                                  "stop may have %i strings, not %uz.",
                                  glcf->max_stops, size);
    }

    p->stops = ngx_palloc(ctx->request->pool,
                          (size + 1) * sizeof(ngx_str_t));
    if (p->stops == NULL) {
        return NGX_ERROR;
    }

    for (i = 0; i < size; i++) {
        e = json_is_array(v) ? json_array_get(v, i) : v;

        if (ngx_http_glm_get_string(ctx, f, e, &p->stops[i]) != NGX_OK) {
            return NGX_ERROR;
        }

        if (p->stops[i].len == 0) {
            return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL,
                                      f->name,
                                      "stop must not hold an empty string.");
        }
    }

    p->nstops = size;

    return NGX_OK;
}


ngx_int_t
ngx_http_glm_set_n(ngx_http_glm_ctx_t *ctx, const ngx_http_glm_field_t *f,
    json_t *v)
{
    ngx_http_glm_loc_conf_t  *glcf;

    glcf = ngx_http_get_module_loc_conf(ctx->request, ngx_http_glm_module);

    if (ngx_http_glm_get_int(v, &ctx->params.n) != NGX_OK) {
        return ngx_http_glm_field_type(ctx, f, "an integer");
    }

    if (ctx->params.n < 1 || ctx->params.n > glcf->max_n) {
        return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL, f->name,
                                  "n must be from 1 to %i, not %L.",
                                  glcf->max_n, (int64_t) ctx->params.n);
    }

    if (ctx->params.n != 1) {
        ngx_http_glm_field_later(ctx, f);
    }

    return NGX_OK;
}


ngx_int_t
ngx_http_glm_set_seed(ngx_http_glm_ctx_t *ctx, const ngx_http_glm_field_t *f,
    json_t *v)
{
    if (ngx_http_glm_get_int(v, &ctx->params.seed) != NGX_OK) {
        return ngx_http_glm_field_type(ctx, f, "an integer of 64 bits");
    }

    ctx->params.has_seed = 1;

    return NGX_OK;
}


ngx_int_t
ngx_http_glm_set_mode(ngx_http_glm_ctx_t *ctx, const ngx_http_glm_field_t *f,
    json_t *v)
{
    if (ngx_http_glm_is(v, "bidirectional")) {
        ctx->params.mode = 0;

    } else if (ngx_http_glm_is(v, "unidirectional")) {
        ctx->params.mode = 1;

    } else {
        return ngx_http_glm_field_type(ctx, f, "\"bidirectional\" or "
                                       "\"unidirectional\"");
    }

    return NGX_OK;
}


ngx_int_t
ngx_http_glm_set_request_id(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v)
{
    ngx_str_t  s;

    if (ngx_http_glm_get_string(ctx, f, v, &s) != NGX_OK) {
        return NGX_ERROR;
    }

    if (!ngx_http_glm_sane_id(&s)) {
        return ngx_http_glm_field_type(ctx, f, "1 to 128 characters of "
                                       "A-Z a-z 0-9 _ . : -");
    }

    ctx->params.request_id = s;

    return NGX_OK;
}


ngx_int_t
ngx_http_glm_set_stream_options(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v)
{
    json_t      *e;
    const char  *name;

    if (!json_is_object(v)) {
        return ngx_http_glm_field_type(ctx, f, "an object");
    }

    ctx->params.has_stream_options = 1;

    json_object_foreach(v, name, e) {

        if (ngx_strcmp(name, "include_usage") != 0
            && ngx_strcmp(name, "continuous_usage_stats") != 0
            && ngx_strcmp(name, "include_obfuscation") != 0)
        {
            continue;
        }

        if (json_is_null(e)) {
            continue;
        }

        if (!json_is_boolean(e)) {
            return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL,
                                      f->name,
                                      "stream_options.%s must be true or "
                                      "false.", name);
        }

        if (name[0] == 'c' && json_is_true(e)) {
            ngx_http_glm_field_later(ctx, f);
        }

        if (ngx_strcmp(name, "include_usage") == 0) {
            ctx->params.include_usage = json_is_true(e) ? 1 : 0;
        }
    }

    return NGX_OK;
}


ngx_int_t
ngx_http_glm_set_response_format(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v)
{
    json_t  *type;

    type = json_object_get(v, "type");

    if (!ngx_http_glm_is(type, "text")
        && !ngx_http_glm_is(type, "json_object")
        && !ngx_http_glm_is(type, "json_schema"))
    {
        return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL, f->name,
                                  "response_format.type must be \"text\", "
                                  "\"json_object\" or \"json_schema\".");
    }

    if (ngx_http_glm_is(type, "json_schema")
        && !json_is_object(json_object_get(v, "json_schema")))
    {
        return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL, f->name,
                                  "response_format.json_schema is required.");
    }

    if (!ngx_http_glm_is(type, "text")) {
        ngx_http_glm_field_later(ctx, f);
    }

    return NGX_OK;
}


ngx_int_t
ngx_http_glm_set_bias(ngx_http_glm_ctx_t *ctx, const ngx_http_glm_field_t *f,
    json_t *v)
{
    double       x;
    json_t      *e;
    const char  *name;

    if (!json_is_object(v)) {
        return ngx_http_glm_field_type(ctx, f, "an object");
    }

    json_object_foreach(v, name, e) {

        if (ngx_atoi((u_char *) name, ngx_strlen(name)) == NGX_ERROR) {
            return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL,
                                      f->name, "A key of logit_bias is no "
                                      "token id.");
        }

        if (!json_is_number(e)) {
            return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL,
                                      f->name, "A value of logit_bias is no "
                                      "number.");
        }

        x = json_number_value(e);

        if (x < -100 || x > 100) {
            return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL,
                                      f->name, "The values of logit_bias must "
                                      "be from -100 to 100.");
        }
    }

    if (json_object_size(v)) {
        ngx_http_glm_field_later(ctx, f);
    }

    return NGX_OK;
}


/* min: the least number of ids */

ngx_int_t
ngx_http_glm_set_id_list(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v)
{
    size_t      i;
    json_int_t  n;

    if (!json_is_array(v)) {
        return ngx_http_glm_field_type(ctx, f, "a list of token ids");
    }

    if (json_array_size(v) < f->min) {
        return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL, f->name,
                                  "%s must not be empty.", f->name);
    }

    for (i = 0; i < json_array_size(v); i++) {
        if (ngx_http_glm_get_int(json_array_get(v, i), &n) != NGX_OK
            || n < 0 || n > INT32_MAX)
        {
            return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL,
                                      f->name, "Entry %uz of %s is no token "
                                      "id.", i, f->name);
        }
    }

    if (json_array_size(v)) {
        ngx_http_glm_field_later(ctx, f);
    }

    if (f->name[0] == 'l') {
        ctx->params.has_logprob_ids = 1;
    }

    return NGX_OK;
}


ngx_int_t
ngx_http_glm_set_truncate(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v)
{
    json_int_t  n;

    if (ngx_http_glm_get_int(v, &n) != NGX_OK) {
        return ngx_http_glm_field_type(ctx, f, "an integer");
    }

    if (n < -1 || n == 0 || n > INT32_MAX) {
        return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL, f->name,
                                  "%s must be -1 or at least 1, not %L.",
                                  f->name, (int64_t) n);
    }

    ngx_http_glm_field_later(ctx, f);

    return NGX_OK;
}


ngx_int_t
ngx_http_glm_set_side(ngx_http_glm_ctx_t *ctx, const ngx_http_glm_field_t *f,
    json_t *v)
{
    if (ngx_http_glm_is(v, "left")) {
        return NGX_OK;
    }

    if (ngx_http_glm_is(v, "right")) {
        ngx_http_glm_field_later(ctx, f);
        return NGX_OK;
    }

    return ngx_http_glm_field_type(ctx, f, "\"left\" or \"right\"");
}


ngx_int_t
ngx_http_glm_set_prompt_logprobs(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v)
{
    json_int_t  n;

    if (ngx_http_glm_get_int(v, &n) != NGX_OK) {
        return ngx_http_glm_field_type(ctx, f, "an integer");
    }

    if (n < -1 || n > NGX_HTTP_GLM_MAX_LOGPROBS) {
        return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL, f->name,
                                  "%s must be from -1 to %d, not %L.",
                                  f->name, NGX_HTTP_GLM_MAX_LOGPROBS,
                                  (int64_t) n);
    }

    ctx->params.has_prompt_logprobs = 1;
    ngx_http_glm_field_later(ctx, f);

    return NGX_OK;
}
