
#include "ngx_http_glm_module.h"


/* A string may hold NUL, and then is none of ours. */

ngx_uint_t
ngx_http_glm_is(json_t *v, const char *s)
{
    return json_is_string(v) && json_string_length(v) == ngx_strlen(s)
           && ngx_memcmp(json_string_value(v), s, ngx_strlen(s)) == 0;
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

    return NGX_OK;
}


ngx_int_t
ngx_http_glm_set_seed(ngx_http_glm_ctx_t *ctx, const ngx_http_glm_field_t *f,
    json_t *v)
{
    if (ngx_http_glm_get_int(v, &ctx->params.seed) != NGX_OK) {
        return ngx_http_glm_field_type(ctx, f, "an integer of 64 bits");
    }

    /* of an editor -1 is what llama.cpp takes for none */

    ctx->params.has_seed = ctx->api->bit != NGX_HTTP_GLM_API_EDITOR
                           || ctx->params.seed != -1;

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

    ctx->params.has_mode = 1;

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

        if (name[0] == 'c') {
            ctx->params.continuous_usage = json_is_true(e) ? 1 : 0;

        } else if (ngx_strcmp(name, "include_usage") == 0) {
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
    double                  x;
    json_t                 *e;
    ngx_int_t               id;
    const char             *name;
    ngx_http_glm_params_t  *p;

    p = &ctx->params;

    if (!json_is_object(v)) {
        return ngx_http_glm_field_type(ctx, f, "an object");
    }

    p->bias = ngx_palloc(ctx->request->pool, (json_object_size(v) + 1)
                                             * sizeof(glm_bias_t));
    if (p->bias == NULL) {
        return NGX_ERROR;
    }

    json_object_foreach(v, name, e) {

        id = ngx_atoi((u_char *) name, ngx_strlen(name));

        if (id == NGX_ERROR || id > INT32_MAX) {
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

        p->bias[p->nbias].id = id;
        p->bias[p->nbias].bias = x;
        p->nbias++;
    }

    return NGX_OK;
}


ngx_int_t
ngx_http_glm_set_bad_words(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v)
{
    size_t                  i, size;
    ngx_http_glm_params_t  *p;

    p = &ctx->params;

    if (!json_is_array(v)) {
        return ngx_http_glm_field_type(ctx, f, "a list of strings");
    }

    size = json_array_size(v);

    p->bad = ngx_palloc(ctx->request->pool, (size + 1) * sizeof(ngx_str_t));
    if (p->bad == NULL) {
        return NGX_ERROR;
    }

    for (i = 0; i < size; i++) {
        if (ngx_http_glm_get_string(ctx, f, json_array_get(v, i), &p->bad[i])
            != NGX_OK)
        {
            return NGX_ERROR;
        }

        if (p->bad[i].len == 0) {
            return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL,
                                      f->name, "bad_words must not hold an "
                                      "empty string.");
        }
    }

    p->nbad = size;

    return NGX_OK;
}


/* max_pattern_size 0: off */

ngx_int_t
ngx_http_glm_set_repeat(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v)
{
    json_t            *e;
    ngx_uint_t         i;
    json_int_t         n[3];
    glm_sec_repeat_t  *repeat;

    static const char  *names[] = {
        "max_pattern_size", "min_pattern_size", "min_count"
    };

    if (!json_is_object(v)) {
        return ngx_http_glm_field_type(ctx, f, "an object");
    }

    for (i = 0; i < 3; i++) {
        n[i] = 0;
        e = json_object_get(v, names[i]);

        if (e == NULL || json_is_null(e)) {
            continue;
        }

        if (ngx_http_glm_get_int(e, &n[i]) != NGX_OK || n[i] < 0
            || n[i] > INT32_MAX)
        {
            return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL,
                                      f->name, "repetition_detection.%s must "
                                      "be an integer from 0 to %D.",
                                      names[i], (int32_t) INT32_MAX);
        }
    }

    if (n[0] == 0) {
        return NGX_OK;
    }

    if (n[1] > n[0] || n[2] < 2) {
        return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL, f->name,
                                  "repetition_detection needs a min_count of "
                                  "at least 2 and a min_pattern_size of at "
                                  "most max_pattern_size.");
    }

    repeat = &ctx->params.repeat;

    repeat->size = sizeof(glm_sec_repeat_t);
    repeat->max_length = n[0];
    repeat->min_length = n[1] ? n[1] : 1;
    repeat->min_count = n[2];

    return NGX_OK;
}


/* min and max: how many ids */

ngx_int_t
ngx_http_glm_set_id_list(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v)
{
    size_t               i, size;
    json_int_t           n;
    ngx_http_glm_ids_t  *ids;

    if (!json_is_array(v)) {
        return ngx_http_glm_field_type(ctx, f, "a list of token ids");
    }

    size = json_array_size(v);

    if (size < f->min) {
        return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL, f->name,
                                  "%s must not be empty.", f->name);
    }

    if (size > f->max) {
        return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL, f->name,
                                  "%s may have %uz token ids, not %uz.",
                                  f->name, (size_t) f->max, size);
    }

    ids = (ngx_http_glm_ids_t *) ((char *) &ctx->params + f->offset);

    ids->elts = ngx_palloc(ctx->request->pool, (size + 1) * sizeof(int32_t));
    if (ids->elts == NULL) {
        return NGX_ERROR;
    }

    for (i = 0; i < size; i++) {
        if (ngx_http_glm_get_int(json_array_get(v, i), &n) != NGX_OK
            || n < 0 || n > INT32_MAX)
        {
            return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL,
                                      f->name, "Entry %uz of %s is no token "
                                      "id.", i, f->name);
        }

        ids->elts[i] = n;
    }

    ids->n = size;

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

    ctx->params.truncate = n;

    return NGX_OK;
}


ngx_int_t
ngx_http_glm_set_side(ngx_http_glm_ctx_t *ctx, const ngx_http_glm_field_t *f,
    json_t *v)
{
    if (ngx_http_glm_is(v, "left")) {
        ctx->params.truncate_right = 0;
        return NGX_OK;
    }

    if (ngx_http_glm_is(v, "right")) {
        ctx->params.truncate_right = 1;
        return NGX_OK;
    }

    return ngx_http_glm_field_type(ctx, f, "\"left\" or \"right\"");
}
