
#include "ngx_http_glm_module.h"


#define NGX_HTTP_GLM_NOWHERE   ((size_t) -1)

#define ngx_http_glm_at(field)  offsetof(ngx_http_glm_params_t, field)


static ngx_int_t ngx_http_glm_field_bool(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v);
static ngx_int_t ngx_http_glm_field_number(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v);
static ngx_int_t ngx_http_glm_field_string(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v);


#define L    NGX_HTTP_GLM_API_COMPLETIONS
#define H    NGX_HTTP_GLM_API_CHAT
#define I    NGX_HTTP_GLM_API_INFILL
#define S    NGX_HTTP_GLM_API_SCORE
#define E    NGX_HTTP_GLM_API_EDITOR
#define C    (L|H)
#define G    (L|H|I)                 /* text that is generated */
#define T    NGX_HTTP_GLM_API_TOKENIZE
#define D    NGX_HTTP_GLM_API_DETOKENIZE

#define ANY  0, 0, 0                 /* neutral, min, max */
#define NO   NGX_HTTP_GLM_NOWHERE

/* FEATURES of the API in its order; a body has few fields, so no hash */

static const ngx_http_glm_field_t  ngx_http_glm_fields[] = {

    { "model", G|T|D|S|E, NGX_HTTP_GLM_STR, 0, 0, 0, 65536,
      ngx_http_glm_at(model), NULL },
    { "prompt", L|T|I|S|E, NGX_HTTP_GLM_OWN, 0, ANY, NO,
      ngx_http_glm_set_prompt },
    { "tokens", D, NGX_HTTP_GLM_OWN, 0, ANY, NO, ngx_http_glm_set_tokens },
    { "messages", H|T, NGX_HTTP_GLM_OWN, 0, ANY, NO,
      ngx_http_glm_set_messages },
    { "best_of", L, NGX_HTTP_GLM_INT, 0, 1, 0, 20,
      ngx_http_glm_at(best_of), NULL },
    { "echo", C, NGX_HTTP_GLM_BOOL, 0, ANY,
      ngx_http_glm_at(echo), NULL },
    { "frequency_penalty", G|E, NGX_HTTP_GLM_NUM, 0, 0, -2, 2,
      ngx_http_glm_at(frequency), NULL },
    { "presence_penalty", G|E, NGX_HTTP_GLM_NUM, 0, 0, -2, 2,
      ngx_http_glm_at(presence), NULL },
    { "logit_bias", G, NGX_HTTP_GLM_OWN, 0, ANY, NO, ngx_http_glm_set_bias },
    { "logprobs", L|I, NGX_HTTP_GLM_INT, 0, 0, 0, NGX_HTTP_GLM_MAX_LOGPROBS,
      ngx_http_glm_at(logprobs), NULL },
    { "max_tokens", G, NGX_HTTP_GLM_INT, 0, 16, 0, INT32_MAX,
      ngx_http_glm_at(max_tokens), NULL },
    { "n", G, NGX_HTTP_GLM_OWN, 0, ANY, NO, ngx_http_glm_set_n },
    { "seed", G|E, NGX_HTTP_GLM_OWN, 0, ANY, NO, ngx_http_glm_set_seed },
    { "stop", G|E, NGX_HTTP_GLM_OWN, 0, ANY, NO, ngx_http_glm_set_stop },
    { "stream", G|S|E, NGX_HTTP_GLM_BOOL, 0, ANY,
      ngx_http_glm_at(stream), NULL },
    { "stream_options", G, NGX_HTTP_GLM_OWN, 0, ANY, NO,
      ngx_http_glm_set_stream_options },
    { "suffix", L, NGX_HTTP_GLM_OWN, 0, ANY, ngx_http_glm_at(suffix),
      ngx_http_glm_set_text },
    { "temperature", G|E, NGX_HTTP_GLM_NUM, 0, 1, 0, 2,
      ngx_http_glm_at(temperature), NULL },
    { "top_p", G|E, NGX_HTTP_GLM_NUM, 0, 1, 0, 1,
      ngx_http_glm_at(top_p), NULL },
    { "user", G|S|E, NGX_HTTP_GLM_STR, 0, 0, 0, 65536,
      ngx_http_glm_at(user), NULL },

    { "top_k", G|E, NGX_HTTP_GLM_INT, 0, 0, -1, INT32_MAX,
      ngx_http_glm_at(top_k), NULL },
    { "min_p", G|E, NGX_HTTP_GLM_NUM, 0, 0, 0, 1,
      ngx_http_glm_at(min_p), NULL },
    { "repetition_penalty", G, NGX_HTTP_GLM_NUM, 0, 1, FLT_MIN, FLT_MAX,
      ngx_http_glm_at(repetition), NULL },
    { "length_penalty", G, NGX_HTTP_GLM_NUM, 0, 1, -100, 100,
      ngx_http_glm_at(length_penalty), NULL },
    { "use_beam_search", G, NGX_HTTP_GLM_BOOL, 0, ANY,
      ngx_http_glm_at(use_beams), NULL },
    { "num_beams", G, NGX_HTTP_GLM_INT, 0, 1, 1, NGX_HTTP_GLM_MAX_BEAMS,
      ngx_http_glm_at(beams), NULL },
    { "no_repeat_ngram_size", G, NGX_HTTP_GLM_INT, 0, 0, 0, INT32_MAX,
      ngx_http_glm_at(no_repeat_ngram), NULL },
    { "stop_token_ids", G, NGX_HTTP_GLM_OWN, 0, 0, 0, INT32_MAX,
      ngx_http_glm_at(stop_ids), ngx_http_glm_set_id_list },
    { "include_stop_str_in_output", G, NGX_HTTP_GLM_BOOL, 0, ANY,
      ngx_http_glm_at(include_stop), NULL },
    { "ignore_eos", G|E, NGX_HTTP_GLM_BOOL, 0, ANY,
      ngx_http_glm_at(ignore_eos), NULL },
    { "min_tokens", G, NGX_HTTP_GLM_INT, 0, 0, 0, INT32_MAX,
      ngx_http_glm_at(min_tokens), NULL },
    { "min_gen_length", G, NGX_HTTP_GLM_INT, 0, 0, 0, INT32_MAX,
      ngx_http_glm_at(min_gen_length), NULL },
    { "skip_special_tokens", G, NGX_HTTP_GLM_BOOL, 0, ANY,
      ngx_http_glm_at(skip_special), NULL },
    { "spaces_between_special_tokens", G, NGX_HTTP_GLM_BOOL, 0, ANY, NO,
      NULL },
    { "truncate_prompt_tokens", G, NGX_HTTP_GLM_OWN, 0, ANY, NO,
      ngx_http_glm_set_truncate },
    { "truncation_side", G, NGX_HTTP_GLM_OWN, 0, ANY, NO,
      ngx_http_glm_set_side },
    { "allowed_token_ids", G, NGX_HTTP_GLM_OWN, 0, 0, 1, INT32_MAX,
      ngx_http_glm_at(allow), ngx_http_glm_set_id_list },
    { "bad_words", G, NGX_HTTP_GLM_OWN, 0, ANY, NO,
      ngx_http_glm_set_bad_words },
    { "prompt_logprobs", C, NGX_HTTP_GLM_INT, 0, 0, 0,
      NGX_HTTP_GLM_MAX_LOGPROBS, ngx_http_glm_at(prompt_logprobs), NULL },
    { "logprob_token_ids", G, NGX_HTTP_GLM_OWN, 0, 0, 1,
      NGX_HTTP_GLM_MAX_SCORE_IDS, ngx_http_glm_at(score_ids),
      ngx_http_glm_set_id_list },
    { "add_special_tokens", G|T, NGX_HTTP_GLM_BOOL, 0, ANY,
      ngx_http_glm_at(add_special), NULL },
    { "response_format", G, NGX_HTTP_GLM_OWN, 1, ANY, NO,
      ngx_http_glm_set_response_format },
    { "structured_outputs", G, NGX_HTTP_GLM_OBJECT, 1, ANY, NO, NULL },
    { "guided_json", G, NGX_HTTP_GLM_OWN, 1, ANY, NO, NULL },
    { "guided_regex", G, NGX_HTTP_GLM_OWN, 1, ANY, NO, NULL },
    { "guided_choice", G, NGX_HTTP_GLM_OWN, 1, ANY, NO, NULL },
    { "guided_grammar", G, NGX_HTTP_GLM_OWN, 1, ANY, NO, NULL },
    { "priority", G|S|E, NGX_HTTP_GLM_INT, 0, 0, -9.3e18, 9.3e18,
      ngx_http_glm_at(priority), NULL },
    { "request_id", G|S, NGX_HTTP_GLM_OWN, 0, ANY, NO,
      ngx_http_glm_set_request_id },
    { "return_tokens_as_token_ids", G, NGX_HTTP_GLM_BOOL, 0, ANY,
      ngx_http_glm_at(tokens_as_ids), NULL },
    { "return_token_ids", G, NGX_HTTP_GLM_BOOL, 0, ANY,
      ngx_http_glm_at(return_token_ids), NULL },
    { "cache_salt", G|S, NGX_HTTP_GLM_STR, 1, 0, 1, 128, NO, NULL },
    { "repetition_detection", G, NGX_HTTP_GLM_OWN, 0, ANY, NO,
      ngx_http_glm_set_repeat },
    { "stream_interval", G, NGX_HTTP_GLM_INT, 0, 1, 1, INT32_MAX,
      ngx_http_glm_at(stream_interval), NULL },

    { "mode", G|S, NGX_HTTP_GLM_OWN, 0, ANY, NO, ngx_http_glm_set_mode },
    { "parse_masks", L|T|I|S, NGX_HTTP_GLM_BOOL, 0, ANY,
      ngx_http_glm_at(parse_masks), NULL },
    { "return_token_strs", T, NGX_HTTP_GLM_BOOL, 0, ANY,
      ngx_http_glm_at(return_token_strs), NULL },

    { "logprobs", H, NGX_HTTP_GLM_BOOL, 0, ANY,
      ngx_http_glm_at(chat_logprobs), NULL },
    { "top_logprobs", H, NGX_HTTP_GLM_INT, 0, 0, 0, NGX_HTTP_GLM_MAX_LOGPROBS,
      ngx_http_glm_at(top_logprobs), NULL },
    { "max_completion_tokens", H, NGX_HTTP_GLM_INT, 0, 0, 0, INT32_MAX,
      ngx_http_glm_at(max_completion_tokens), NULL },
    { "tools", H, NGX_HTTP_GLM_OWN, 0, ANY, NO, ngx_http_glm_set_tools },
    { "functions", H, NGX_HTTP_GLM_OWN, 0, ANY, NO, ngx_http_glm_set_tools },
    { "tool_choice", H, NGX_HTTP_GLM_OWN, 0, ANY, NO,
      ngx_http_glm_set_tool_choice },
    { "function_call", H, NGX_HTTP_GLM_OWN, 0, ANY, NO,
      ngx_http_glm_set_tool_choice },
    { "chat_template", H|T, NGX_HTTP_GLM_STR, 1, 0, 0, INT32_MAX, NO, NULL },
    { "add_generation_prompt", H|T, NGX_HTTP_GLM_BOOL, 0, ANY,
      ngx_http_glm_at(add_generation), NULL },
    { "continue_final_message", H|T, NGX_HTTP_GLM_BOOL, 0, ANY,
      ngx_http_glm_at(continue_final), NULL },

    { "choices", S, NGX_HTTP_GLM_OWN, 0, ANY, NO, ngx_http_glm_set_choices },
    { "normalize", S, NGX_HTTP_GLM_OWN, 0, ANY, NO,
      ngx_http_glm_set_normalize },
    { "mask", S, NGX_HTTP_GLM_OWN, 0, ANY, NO, ngx_http_glm_set_mask },
    { "unconditional", S, NGX_HTTP_GLM_BOOL, 0, ANY,
      ngx_http_glm_at(unconditional), NULL },

    { "input_prefix", E, NGX_HTTP_GLM_OWN, 0, ANY,
      ngx_http_glm_at(editor.prefix), ngx_http_glm_set_text },
    { "input_suffix", E, NGX_HTTP_GLM_OWN, 0, ANY,
      ngx_http_glm_at(suffix), ngx_http_glm_set_text },
    { "input_extra", E, NGX_HTTP_GLM_OWN, 0, ANY, NO,
      ngx_http_glm_set_extra },
    { "n_predict", E, NGX_HTTP_GLM_INT, 0, -1, -1, INT32_MAX,
      ngx_http_glm_at(max_tokens), NULL },
    { "repeat_penalty", E, NGX_HTTP_GLM_NUM, 0, 1, FLT_MIN, FLT_MAX,
      ngx_http_glm_at(repetition), NULL },
    { "t_max_predict_ms", E, NGX_HTTP_GLM_INT, 0, 0, 0, INT32_MAX,
      ngx_http_glm_at(editor.max_ms), NULL },
    { "response_fields", E, NGX_HTTP_GLM_OWN, 0, ANY, NO,
      ngx_http_glm_set_response_fields },
    { "samplers", E, NGX_HTTP_GLM_LIST, 0, ANY, NO, NULL },
    { "cache_prompt", E, NGX_HTTP_GLM_BOOL, 0, ANY, NO, NULL },

    { NULL, 0, 0, 0, 0, 0, 0, 0, NULL }
};

#undef L
#undef H
#undef I
#undef S
#undef E
#undef C
#undef G
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

        if (f->later && json_array_size(v)) {
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

        if (f->min == FLT_MIN) {
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


ngx_int_t
ngx_http_glm_field_type(ngx_http_glm_ctx_t *ctx, const ngx_http_glm_field_t *f,
    const char *what)
{
    return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL, f->name,
                              "%s must be %s.", f->name, what);
}


/* Remembered: what is wrong in other fields comes first. */

void
ngx_http_glm_field_later(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f)
{
    if (ctx->params.later == NULL) {
        ctx->params.later = f->name;
    }
}


/* 1 and 1.0, not 1.5 and not true. */

ngx_int_t
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


ngx_int_t
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
