
#include "ngx_http_glm_module.h"


typedef enum {
    NGX_HTTP_GLM_BOOL = 0,
    NGX_HTTP_GLM_INT,
    NGX_HTTP_GLM_NUM,
    NGX_HTTP_GLM_STR,
    NGX_HTTP_GLM_LIST,
    NGX_HTTP_GLM_OBJECT,
    NGX_HTTP_GLM_OWN                 /* set does it all */
} ngx_http_glm_kind_e;


struct ngx_http_glm_field_s {
    const char           *name;
    ngx_uint_t            api;       /* where it is known */
    ngx_http_glm_kind_e   kind;
    ngx_uint_t            later;     /* only the neutral value works now */
    double                neutral;
    double                min;       /* of a number, or of a length */
    double                max;
    size_t                offset;    /* in params; NGX_HTTP_GLM_NOWHERE */
    ngx_int_t           (*set)(ngx_http_glm_ctx_t *ctx,
                               const ngx_http_glm_field_t *f, json_t *v);
};


#define NGX_HTTP_GLM_NOWHERE   ((size_t) -1)

#define ngx_http_glm_at(field)  offsetof(ngx_http_glm_params_t, field)


static ngx_int_t ngx_http_glm_set_prompt(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v);
static ngx_int_t ngx_http_glm_set_tokens(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v);
static ngx_int_t ngx_http_glm_set_stop(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v);
static ngx_int_t ngx_http_glm_set_n(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v);
static ngx_int_t ngx_http_glm_set_seed(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v);
static ngx_int_t ngx_http_glm_set_mode(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v);
static ngx_int_t ngx_http_glm_set_request_id(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v);
static ngx_int_t ngx_http_glm_set_stream_options(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v);
static ngx_int_t ngx_http_glm_set_response_format(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v);
static ngx_int_t ngx_http_glm_set_bias(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v);
static ngx_int_t ngx_http_glm_set_id_list(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v);
static ngx_int_t ngx_http_glm_set_truncate(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v);
static ngx_int_t ngx_http_glm_set_side(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v);
static ngx_int_t ngx_http_glm_set_prompt_logprobs(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v);

static ngx_int_t ngx_http_glm_field_bool(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v);
static ngx_int_t ngx_http_glm_field_number(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v);
static ngx_int_t ngx_http_glm_field_string(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v);
static ngx_int_t ngx_http_glm_field_type(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, const char *what);
static void ngx_http_glm_field_later(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f);
static ngx_int_t ngx_http_glm_get_int(json_t *v, json_int_t *n);
static ngx_int_t ngx_http_glm_get_string(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v, ngx_str_t *s);
static ngx_int_t ngx_http_glm_get_ids(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v);


#define C    NGX_HTTP_GLM_API_COMPLETIONS
#define T    NGX_HTTP_GLM_API_TOKENIZE
#define D    NGX_HTTP_GLM_API_DETOKENIZE

#define ANY  0, 0, 0                 /* neutral, min, max */
#define NO   NGX_HTTP_GLM_NOWHERE

/* FEATURES of the API in its order; a body has few fields, so no hash */

static const ngx_http_glm_field_t  ngx_http_glm_fields[] = {

    { "model", C|T|D, NGX_HTTP_GLM_STR, 0, 0, 0, 65536,
      ngx_http_glm_at(model), NULL },
    { "prompt", C|T, NGX_HTTP_GLM_OWN, 0, ANY, NO, ngx_http_glm_set_prompt },
    { "tokens", D, NGX_HTTP_GLM_OWN, 0, ANY, NO, ngx_http_glm_set_tokens },
    { "messages", T, NGX_HTTP_GLM_LIST, 1, ANY, NO, NULL },
    { "best_of", C, NGX_HTTP_GLM_INT, 1, 1, 0, 20,
      ngx_http_glm_at(best_of), NULL },
    { "echo", C, NGX_HTTP_GLM_BOOL, 1, ANY, NO, NULL },
    { "frequency_penalty", C, NGX_HTTP_GLM_NUM, 1, 0, -2, 2, NO, NULL },
    { "presence_penalty", C, NGX_HTTP_GLM_NUM, 1, 0, -2, 2, NO, NULL },
    { "logit_bias", C, NGX_HTTP_GLM_OWN, 1, ANY, NO, ngx_http_glm_set_bias },
    { "logprobs", C, NGX_HTTP_GLM_INT, 0, 0, 0, NGX_HTTP_GLM_MAX_LOGPROBS,
      ngx_http_glm_at(logprobs), NULL },
    { "max_tokens", C, NGX_HTTP_GLM_INT, 0, 16, 0, INT32_MAX,
      ngx_http_glm_at(max_tokens), NULL },
    { "n", C, NGX_HTTP_GLM_OWN, 1, ANY, NO, ngx_http_glm_set_n },
    { "seed", C, NGX_HTTP_GLM_OWN, 0, ANY, NO, ngx_http_glm_set_seed },
    { "stop", C, NGX_HTTP_GLM_OWN, 0, ANY, NO, ngx_http_glm_set_stop },
    { "stream", C, NGX_HTTP_GLM_BOOL, 0, ANY, ngx_http_glm_at(stream), NULL },
    { "stream_options", C, NGX_HTTP_GLM_OWN, 0, ANY, NO,
      ngx_http_glm_set_stream_options },
    { "suffix", C, NGX_HTTP_GLM_STR, 1, 0, 0, INT32_MAX, NO, NULL },
    { "temperature", C, NGX_HTTP_GLM_NUM, 0, 1, 0, 2,
      ngx_http_glm_at(temperature), NULL },
    { "top_p", C, NGX_HTTP_GLM_NUM, 0, 1, 0, 1,
      ngx_http_glm_at(top_p), NULL },
    { "user", C, NGX_HTTP_GLM_STR, 0, 0, 0, 65536,
      ngx_http_glm_at(user), NULL },

    { "top_k", C, NGX_HTTP_GLM_INT, 0, 0, -1, INT32_MAX,
      ngx_http_glm_at(top_k), NULL },
    { "min_p", C, NGX_HTTP_GLM_NUM, 0, 0, 0, 1,
      ngx_http_glm_at(min_p), NULL },
    { "repetition_penalty", C, NGX_HTTP_GLM_NUM, 1, 1, DBL_MIN, DBL_MAX, NO,
      NULL },
    { "length_penalty", C, NGX_HTTP_GLM_NUM, 1, 1, -DBL_MAX, DBL_MAX, NO,
      NULL },
    { "use_beam_search", C, NGX_HTTP_GLM_BOOL, 1, ANY, NO, NULL },
    { "num_beams", C, NGX_HTTP_GLM_INT, 1, 1, 1, 128, NO, NULL },
    { "no_repeat_ngram_size", C, NGX_HTTP_GLM_INT, 1, 0, 0, INT32_MAX, NO,
      NULL },
    { "stop_token_ids", C, NGX_HTTP_GLM_OWN, 1, ANY, NO,
      ngx_http_glm_set_id_list },
    { "include_stop_str_in_output", C, NGX_HTTP_GLM_BOOL, 0, ANY,
      ngx_http_glm_at(include_stop), NULL },
    { "ignore_eos", C, NGX_HTTP_GLM_BOOL, 0, ANY,
      ngx_http_glm_at(ignore_eos), NULL },
    { "min_tokens", C, NGX_HTTP_GLM_INT, 1, 0, 0, INT32_MAX,
      ngx_http_glm_at(min_tokens), NULL },
    { "min_gen_length", C, NGX_HTTP_GLM_INT, 1, 0, 0, INT32_MAX,
      ngx_http_glm_at(min_gen_length), NULL },
    { "skip_special_tokens", C, NGX_HTTP_GLM_BOOL, 1, 1, 0, 0, NO, NULL },
    { "spaces_between_special_tokens", C, NGX_HTTP_GLM_BOOL, 1, 1, 0, 0, NO,
      NULL },
    { "truncate_prompt_tokens", C, NGX_HTTP_GLM_OWN, 1, ANY, NO,
      ngx_http_glm_set_truncate },
    { "truncation_side", C, NGX_HTTP_GLM_OWN, 1, ANY, NO,
      ngx_http_glm_set_side },
    { "allowed_token_ids", C, NGX_HTTP_GLM_OWN, 1, 0, 1, 0, NO,
      ngx_http_glm_set_id_list },
    { "bad_words", C, NGX_HTTP_GLM_LIST, 1, ANY, NO, NULL },
    { "prompt_logprobs", C, NGX_HTTP_GLM_OWN, 1, ANY, NO,
      ngx_http_glm_set_prompt_logprobs },
    { "logprob_token_ids", C, NGX_HTTP_GLM_OWN, 1, 0, 1, 0, NO,
      ngx_http_glm_set_id_list },
    { "add_special_tokens", C|T, NGX_HTTP_GLM_BOOL, 0, ANY,
      ngx_http_glm_at(add_special), NULL },
    { "response_format", C, NGX_HTTP_GLM_OWN, 1, ANY, NO,
      ngx_http_glm_set_response_format },
    { "structured_outputs", C, NGX_HTTP_GLM_OBJECT, 1, ANY, NO, NULL },
    { "guided_json", C, NGX_HTTP_GLM_OWN, 1, ANY, NO, NULL },
    { "guided_regex", C, NGX_HTTP_GLM_OWN, 1, ANY, NO, NULL },
    { "guided_choice", C, NGX_HTTP_GLM_OWN, 1, ANY, NO, NULL },
    { "guided_grammar", C, NGX_HTTP_GLM_OWN, 1, ANY, NO, NULL },
    { "priority", C, NGX_HTTP_GLM_INT, 1, 0, -9.3e18, 9.3e18, NO, NULL },
    { "request_id", C, NGX_HTTP_GLM_OWN, 0, ANY, NO,
      ngx_http_glm_set_request_id },
    { "return_tokens_as_token_ids", C, NGX_HTTP_GLM_BOOL, 1, ANY, NO, NULL },
    { "return_token_ids", C, NGX_HTTP_GLM_BOOL, 0, ANY,
      ngx_http_glm_at(return_token_ids), NULL },
    { "cache_salt", C, NGX_HTTP_GLM_STR, 1, 0, 1, 128, NO, NULL },
    { "repetition_detection", C, NGX_HTTP_GLM_OBJECT, 1, ANY, NO, NULL },
    { "stream_interval", C, NGX_HTTP_GLM_INT, 1, 1, 1, INT32_MAX, NO, NULL },

    { "mode", C, NGX_HTTP_GLM_OWN, 0, ANY, NO, ngx_http_glm_set_mode },
    { "parse_masks", C|T, NGX_HTTP_GLM_BOOL, 0, ANY,
      ngx_http_glm_at(parse_masks), NULL },
    { "return_token_strs", T, NGX_HTTP_GLM_BOOL, 0, ANY,
      ngx_http_glm_at(return_token_strs), NULL },

    { NULL, 0, 0, 0, 0, 0, 0, 0, NULL }
};

#undef C
#undef T
#undef D
#undef ANY
#undef NO


const ngx_http_glm_field_t *
ngx_http_glm_field_find(const char *name, ngx_uint_t api)
{
    const ngx_http_glm_field_t  *f;

    for (f = ngx_http_glm_fields; f->name; f++) {
        if ((f->api & api) && ngx_strcmp(f->name, name) == 0) {
            return f;
        }
    }

    return NULL;
}


/* v is not null: null is the default everywhere. */

ngx_int_t
ngx_http_glm_field_set(ngx_http_glm_ctx_t *ctx, const ngx_http_glm_field_t *f,
    json_t *v)
{
    if (f->set) {
        return f->set(ctx, f, v);
    }

    switch (f->kind) {

    case NGX_HTTP_GLM_BOOL:
        return ngx_http_glm_field_bool(ctx, f, v);

    case NGX_HTTP_GLM_INT:
    case NGX_HTTP_GLM_NUM:
        return ngx_http_glm_field_number(ctx, f, v);

    case NGX_HTTP_GLM_STR:
        return ngx_http_glm_field_string(ctx, f, v);

    case NGX_HTTP_GLM_LIST:
        if (!json_is_array(v)) {
            return ngx_http_glm_field_type(ctx, f, "a list");
        }

        if (json_array_size(v)) {
            ngx_http_glm_field_later(ctx, f);
        }

        return NGX_OK;

    case NGX_HTTP_GLM_OBJECT:
        if (!json_is_object(v)) {
            return ngx_http_glm_field_type(ctx, f, "an object");
        }

        ngx_http_glm_field_later(ctx, f);
        return NGX_OK;

    default:
        ngx_http_glm_field_later(ctx, f);
        return NGX_OK;
    }
}


static ngx_int_t
ngx_http_glm_field_bool(ngx_http_glm_ctx_t *ctx, const ngx_http_glm_field_t *f,
    json_t *v)
{
    if (!json_is_boolean(v)) {
        return ngx_http_glm_field_type(ctx, f, "true or false");
    }

    if (f->offset != NGX_HTTP_GLM_NOWHERE) {
        *(ngx_uint_t *) ((char *) &ctx->params + f->offset)
            = json_is_true(v) ? 1 : 0;
    }

    if (f->later && (json_is_true(v) ? 1 : 0) != (ngx_int_t) f->neutral) {
        ngx_http_glm_field_later(ctx, f);
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_glm_field_number(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v)
{
    char        min[32], max[32], value[32];
    double      x;
    json_int_t  n;

    n = 0;

    if (f->kind == NGX_HTTP_GLM_INT) {
        if (ngx_http_glm_get_int(v, &n) != NGX_OK) {
            return ngx_http_glm_field_type(ctx, f, "an integer");
        }

        x = (double) n;

    } else {
        if (!json_is_number(v)) {
            return ngx_http_glm_field_type(ctx, f, "a number");
        }

        x = json_number_value(v);
    }

    if (x < f->min || x > f->max) {
        (void) snprintf(min, sizeof(min), "%.15g", f->min);
        (void) snprintf(max, sizeof(max), "%.15g", f->max);
        (void) snprintf(value, sizeof(value), "%.15g", x);

        if (f->min == DBL_MIN) {
            return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL,
                                      f->name, "%s must be above 0, not %s.",
                                      f->name, value);
        }

        if (f->max == INT32_MAX) {
            return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL,
                                      f->name,
                                      "%s must be at least %s and at most "
                                      "%s, not %s.", f->name, min, max,
                                      value);
        }

        return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL, f->name,
                                  "%s must be from %s to %s, not %s.",
                                  f->name, min, max, value);
    }

    if (f->offset != NGX_HTTP_GLM_NOWHERE) {
        if (f->kind == NGX_HTTP_GLM_INT) {
            *(json_int_t *) ((char *) &ctx->params + f->offset) = n;

        } else {
            *(double *) ((char *) &ctx->params + f->offset) = x;
        }
    }

    if (f->later && x != f->neutral) {
        ngx_http_glm_field_later(ctx, f);
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_glm_field_string(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v)
{
    ngx_str_t  s;

    if (ngx_http_glm_get_string(ctx, f, v, &s) != NGX_OK) {
        return NGX_ERROR;
    }

    if (s.len < f->min || s.len > f->max) {
        return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL, f->name,
                                  "%s must have %uz to %uz bytes, not %uz.",
                                  f->name, (size_t) f->min, (size_t) f->max,
                                  s.len);
    }

    if (f->offset != NGX_HTTP_GLM_NOWHERE) {
        *(ngx_str_t *) ((char *) &ctx->params + f->offset) = s;
    }

    if (f->later) {
        ngx_http_glm_field_later(ctx, f);
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_glm_field_type(ngx_http_glm_ctx_t *ctx, const ngx_http_glm_field_t *f,
    const char *what)
{
    return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL, f->name,
                              "%s must be %s.", f->name, what);
}


/* Remembered: what is wrong in other fields comes first. */

static void
ngx_http_glm_field_later(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f)
{
    if (ctx->params.later == NULL) {
        ctx->params.later = f->name;
    }
}


/* 1 and 1.0, not 1.5 and not true. */

static ngx_int_t
ngx_http_glm_get_int(json_t *v, json_int_t *n)
{
    double  x;

    if (json_is_integer(v)) {
        *n = json_integer_value(v);
        return NGX_OK;
    }

    if (!json_is_real(v)) {
        return NGX_ERROR;
    }

    x = json_real_value(v);

    if (x < -9223372036854775808.0 || x >= 9223372036854775808.0
        || x != (double) (json_int_t) x)
    {
        return NGX_ERROR;
    }

    *n = (json_int_t) x;

    return NGX_OK;
}


static ngx_int_t
ngx_http_glm_get_string(ngx_http_glm_ctx_t *ctx, const ngx_http_glm_field_t *f,
    json_t *v, ngx_str_t *s)
{
    if (!json_is_string(v)) {
        return ngx_http_glm_field_type(ctx, f, "a string");
    }

    s->data = (u_char *) json_string_value(v);
    s->len = json_string_length(v);

    if (memchr(s->data, '\0', s->len)) {
        return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL, f->name,
                                  "%s must not hold the character U+0000.",
                                  f->name);
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_glm_get_ids(ngx_http_glm_ctx_t *ctx, const ngx_http_glm_field_t *f,
    json_t *v)
{
    size_t                    i, size;
    json_int_t                n;
    ngx_http_glm_params_t    *p;
    ngx_http_glm_loc_conf_t  *glcf;

    p = &ctx->params;
    glcf = ngx_http_get_module_loc_conf(ctx->request, ngx_http_glm_module);

    size = json_array_size(v);

    for (i = 0; i < size; i++) {
        if (ngx_http_glm_get_int(json_array_get(v, i), &n) != NGX_OK) {
            return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL,
                                      f->name, "%s must hold integers only, "
                                      "entry %uz is none.", f->name, i);
        }

        if (n < 0 || n > INT32_MAX) {
            return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL,
                                      f->name, "%s holds %L, which is not "
                                      "in the vocabulary.", f->name,
                                      (int64_t) n);
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


static ngx_int_t
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


static ngx_int_t
ngx_http_glm_set_tokens(ngx_http_glm_ctx_t *ctx, const ngx_http_glm_field_t *f,
    json_t *v)
{
    if (!json_is_array(v)) {
        return ngx_http_glm_field_type(ctx, f, "a list of token ids");
    }

    return ngx_http_glm_get_ids(ctx, f, v);
}


static ngx_int_t
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


static ngx_int_t
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


static ngx_int_t
ngx_http_glm_set_seed(ngx_http_glm_ctx_t *ctx, const ngx_http_glm_field_t *f,
    json_t *v)
{
    if (ngx_http_glm_get_int(v, &ctx->params.seed) != NGX_OK) {
        return ngx_http_glm_field_type(ctx, f, "an integer of 64 bits");
    }

    ctx->params.has_seed = 1;

    return NGX_OK;
}


static ngx_int_t
ngx_http_glm_set_mode(ngx_http_glm_ctx_t *ctx, const ngx_http_glm_field_t *f,
    json_t *v)
{
    const char  *s;

    s = json_string_value(v);

    if (s && ngx_strcmp(s, "bidirectional") == 0) {
        ctx->params.mode = 0;

    } else if (s && ngx_strcmp(s, "unidirectional") == 0) {
        ctx->params.mode = 1;

    } else {
        return ngx_http_glm_field_type(ctx, f, "\"bidirectional\" or "
                                       "\"unidirectional\"");
    }

    return NGX_OK;
}


static ngx_int_t
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


static ngx_int_t
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


static ngx_int_t
ngx_http_glm_set_response_format(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v)
{
    const char  *type;

    type = json_string_value(json_object_get(v, "type"));

    if (type == NULL
        || (ngx_strcmp(type, "text") != 0
            && ngx_strcmp(type, "json_object") != 0
            && ngx_strcmp(type, "json_schema") != 0))
    {
        return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL, f->name,
                                  "response_format.type must be \"text\", "
                                  "\"json_object\" or \"json_schema\".");
    }

    if (ngx_strcmp(type, "json_schema") == 0
        && !json_is_object(json_object_get(v, "json_schema")))
    {
        return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL, f->name,
                                  "response_format.json_schema is required.");
    }

    if (type[0] != 't') {
        ngx_http_glm_field_later(ctx, f);
    }

    return NGX_OK;
}


static ngx_int_t
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

static ngx_int_t
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


static ngx_int_t
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


static ngx_int_t
ngx_http_glm_set_side(ngx_http_glm_ctx_t *ctx, const ngx_http_glm_field_t *f,
    json_t *v)
{
    const char  *s;

    s = json_string_value(v);

    if (s && ngx_strcmp(s, "left") == 0) {
        return NGX_OK;
    }

    if (s && ngx_strcmp(s, "right") == 0) {
        ngx_http_glm_field_later(ctx, f);
        return NGX_OK;
    }

    return ngx_http_glm_field_type(ctx, f, "\"left\" or \"right\"");
}


static ngx_int_t
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
