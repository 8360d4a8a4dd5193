
#include "ngx_http_glm_module.h"


/* What llama.cpp answers, as far as there is such a thing here. */

typedef enum {
    NGX_HTTP_GLM_EDITOR_INDEX = 0,
    NGX_HTTP_GLM_EDITOR_CONTENT,
    NGX_HTTP_GLM_EDITOR_STOP,
    NGX_HTTP_GLM_EDITOR_MODEL,
    NGX_HTTP_GLM_EDITOR_PREDICTED,
    NGX_HTTP_GLM_EDITOR_EVALUATED,
    NGX_HTTP_GLM_EDITOR_CACHED,
    NGX_HTTP_GLM_EDITOR_NEW_LINE,
    NGX_HTTP_GLM_EDITOR_STOP_TYPE,
    NGX_HTTP_GLM_EDITOR_STOPPING_WORD,
    NGX_HTTP_GLM_EDITOR_TIMINGS,
    NGX_HTTP_GLM_EDITOR_TIMING,              /* the first of eight */
    NGX_HTTP_GLM_EDITOR_FIELDS = NGX_HTTP_GLM_EDITOR_TIMING + 8
} ngx_http_glm_editor_e;


#define NGX_HTTP_GLM_EDITOR_ALL                                               \
    ((1 << (NGX_HTTP_GLM_EDITOR_TIMINGS + 1)) - 1)


static size_t ngx_http_glm_editor_size(ngx_http_glm_params_t *p);
static u_char *ngx_http_glm_editor_before(ngx_http_glm_params_t *p,
    u_char *data);
static void ngx_http_glm_editor_field(ngx_http_glm_out_t *out,
    ngx_http_glm_ctx_t *ctx, ngx_uint_t i);
static void ngx_http_glm_editor_stop(ngx_http_glm_out_t *out,
    ngx_http_glm_ctx_t *ctx, ngx_uint_t word);
static void ngx_http_glm_editor_timings(ngx_http_glm_out_t *out,
    ngx_http_glm_ctx_t *ctx);
static void ngx_http_glm_editor_timing(ngx_http_glm_out_t *out,
    ngx_http_glm_ctx_t *ctx, ngx_uint_t i);


/* as response_fields names them: what is in an object by its path */

static const char  *ngx_http_glm_editor_names[NGX_HTTP_GLM_EDITOR_FIELDS] = {
    "index",
    "content",
    "stop",
    "model",
    "tokens_predicted",
    "tokens_evaluated",
    "tokens_cached",
    "has_new_line",
    "stop_type",
    "stopping_word",
    "timings",
    "timings/prompt_n",
    "timings/prompt_ms",
    "timings/prompt_per_token_ms",
    "timings/prompt_per_second",
    "timings/predicted_n",
    "timings/predicted_ms",
    "timings/predicted_per_token_ms",
    "timings/predicted_per_second"
};


/* Pieces of other files: { filename, text } each. */

ngx_int_t
ngx_http_glm_set_extra(ngx_http_glm_ctx_t *ctx, const ngx_http_glm_field_t *f,
    json_t *v)
{
    size_t      i;
    json_t     *e, *name;
    ngx_str_t   s;

    if (!json_is_array(v)) {
        return ngx_http_glm_field_type(ctx, f, "a list of objects");
    }

    json_array_foreach(v, i, e) {
        name = json_object_get(e, "filename");

        if (!json_is_string(json_object_get(e, "text"))
            || (name && !json_is_null(name) && !json_is_string(name)))
        {
            return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL,
                                      f->name, "input_extra[%uz] must have a "
                                      "text, and may have a filename: both "
                                      "are strings.", i);
        }

        if (ngx_http_glm_get_string(ctx, f, json_object_get(e, "text"), &s)
            != NGX_OK
            || (json_is_string(name)
                && ngx_http_glm_get_string(ctx, f, name, &s) != NGX_OK))
        {
            return NGX_ERROR;
        }
    }

    ctx->params.editor.extra = v;

    return NGX_OK;
}


/* Unknown ones are left out, as llama.cpp does. */

ngx_int_t
ngx_http_glm_set_response_fields(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v)
{
    size_t                  i, k;
    json_t                 *e;
    ngx_http_glm_editor_t  *editor;

    editor = &ctx->params.editor;

    if (!json_is_array(v)) {
        return ngx_http_glm_field_type(ctx, f, "a list of strings");
    }

    editor->fields = 0;
    editor->named = 1;

    json_array_foreach(v, i, e) {
        if (!json_is_string(e)) {
            return ngx_http_glm_field_type(ctx, f, "a list of strings");
        }

        for (k = 0; k < NGX_HTTP_GLM_EDITOR_FIELDS; k++) {
            if (ngx_http_glm_is(e, ngx_http_glm_editor_names[k])) {
                editor->fields |= (ngx_uint_t) 1 << k;
            }
        }
    }

    return NGX_OK;
}


/* One text before the blank; what is behind it is the suffix. */

ngx_int_t
ngx_http_glm_editor_together(ngx_http_glm_ctx_t *ctx)
{
    size_t                    size;
    u_char                   *data;
    ngx_http_glm_params_t    *p;
    ngx_http_glm_prompt_t    *prompt;
    ngx_http_glm_loc_conf_t  *glcf;

    p = &ctx->params;
    glcf = ngx_http_get_module_loc_conf(ctx->request, ngx_http_glm_module);

    size = ngx_http_glm_editor_size(p);

    if (size > glcf->max_prompt) {
        return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL,
                                  "input_prefix", "input_extra, input_prefix "
                                  "and prompt have %uz bytes together, the "
                                  "limit is %uz.", size, glcf->max_prompt);
    }

    if (size == 0 && p->suffix.len == 0) {
        return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL,
                                  "input_prefix", "input_prefix, "
                                  "input_suffix and prompt are empty.");
    }

    prompt = ngx_pcalloc(ctx->request->pool, sizeof(ngx_http_glm_prompt_t));
    data = ngx_pnalloc(ctx->request->pool, size + 1);
    if (prompt == NULL || data == NULL) {
        return NGX_ERROR;
    }

    prompt->text.data = data;
    prompt->text.len = ngx_http_glm_editor_before(p, data) - data;

    p->prompts = prompt;
    p->nprompts = 1;
    p->has_text = 1;

    /* code is text, and of what is too long the end is wanted */

    p->parse_masks = 0;
    p->truncate = -1;

    if (!p->editor.named) {
        p->editor.fields = NGX_HTTP_GLM_EDITOR_ALL;
    }

    return NGX_OK;
}


static size_t
ngx_http_glm_editor_size(ngx_http_glm_params_t *p)
{
    size_t   i, size;
    json_t  *e;

    size = p->editor.prefix.len;

    if (p->nprompts) {
        size += p->prompts->text.len;
    }

    json_array_foreach(p->editor.extra, i, e) {
        size += json_string_length(json_object_get(e, "filename"))
                + json_string_length(json_object_get(e, "text")) + 2;
    }

    return size;
}


static u_char *
ngx_http_glm_editor_before(ngx_http_glm_params_t *p, u_char *data)
{
    size_t   i;
    json_t  *e, *name, *text;

    json_array_foreach(p->editor.extra, i, e) {
        name = json_object_get(e, "filename");
        text = json_object_get(e, "text");

        if (json_string_length(name)) {
            data = ngx_cpymem(data, json_string_value(name),
                              json_string_length(name));
            *data++ = '\n';
        }

        data = ngx_cpymem(data, json_string_value(text),
                          json_string_length(text));
        *data++ = '\n';
    }

    if (p->editor.prefix.len) {
        data = ngx_cpymem(data, p->editor.prefix.data, p->editor.prefix.len);
    }

    if (p->nprompts) {
        data = ngx_cpymem(data, p->prompts->text.data, p->prompts->text.len);
    }

    return data;
}


/* What llama.cpp calls a field. */

const char *
ngx_http_glm_editor_param(const char *name)
{
    ngx_uint_t  i;

    static const char  *names[] = {
        "max_tokens", "n_predict",
        "suffix", "input_suffix",
        "repetition_penalty", "repeat_penalty"
    };

    for (i = 0; i < sizeof(names) / sizeof(names[0]); i += 2) {
        if (ngx_strcmp(name, names[i]) == 0) {
            return names[i + 1];
        }
    }

    return name;
}


/*
 * Editors send as much as llama.cpp cuts off.  The engine keeps the end of what
 * is before the blank; what is behind it may take half of the context, of which
 * a token is a byte or more, and the answer a quarter if it has no limit.
 */

void
ngx_http_glm_editor_fit(ngx_http_glm_ctx_t *ctx)
{
    ngx_str_t              *s;
    ngx_http_glm_params_t  *p;

    p = &ctx->params;
    s = &p->suffix;

    if (s->len > ctx->max_seq / 2) {
        s->len = ctx->max_seq / 2;

        while (s->len && ngx_http_glm_utf8(s->data, s->len, NULL) != NGX_OK) {
            s->len--;
        }
    }

    if (p->max_tokens < 0) {
        p->max_tokens = ctx->max_seq / 4;
    }
}


/* t_max_predict_ms: a line is there, and the time is over. */

void
ngx_http_glm_editor_late(ngx_http_glm_call_t *call, ngx_str_t *text)
{
    ngx_http_glm_ctx_t  *ctx;

    ctx = call->ctx;

    if (text->len && memchr(text->data, '\n', text->len)) {
        ctx->new_line = 1;
    }

    if (ctx->params.editor.max_ms && ctx->new_line && !ctx->cut
        && (ngx_msec_int_t) (ngx_current_msec - ctx->start
                             - ctx->ttft_us / 1000)
           >= (ngx_msec_int_t) ctx->params.editor.max_ms)
    {
        ctx->cut = 1;
        ngx_http_glm_ring_cancel(call);
    }
}


/* The whole answer, or the last event of a stream. */

void
ngx_http_glm_put_editor(ngx_http_glm_out_t *out, ngx_http_glm_ctx_t *ctx)
{
    ngx_uint_t  i, some;

    some = 0;

    ngx_http_glm_lit(out, "{");

    for (i = 0; i < NGX_HTTP_GLM_EDITOR_FIELDS; i++) {

        if (!(ctx->params.editor.fields & ((ngx_uint_t) 1 << i))) {
            continue;
        }

        if (some++) {
            ngx_http_glm_lit(out, ",");
        }

        ngx_http_glm_lit(out, "\"");
        ngx_http_glm_put_str(out, ngx_http_glm_editor_names[i]);
        ngx_http_glm_lit(out, "\":");
        ngx_http_glm_editor_field(out, ctx, i);
    }

    ngx_http_glm_lit(out, "}");
}


static void
ngx_http_glm_editor_field(ngx_http_glm_out_t *out, ngx_http_glm_ctx_t *ctx,
    ngx_uint_t i)
{
    ngx_http_glm_choice_t  *ch;

    ch = ctx->calls->choices;

    switch (i) {

    case NGX_HTTP_GLM_EDITOR_INDEX:
        ngx_http_glm_lit(out, "0");
        return;

    case NGX_HTTP_GLM_EDITOR_CONTENT:
        ngx_http_glm_put_string(out, ch->text.start, ch->text.len);
        return;

    case NGX_HTTP_GLM_EDITOR_STOP:
        ngx_http_glm_lit(out, "true");
        return;

    case NGX_HTTP_GLM_EDITOR_MODEL:
        ngx_http_glm_put_string(out, ctx->model.data, ctx->model.len);
        return;

    case NGX_HTTP_GLM_EDITOR_PREDICTED:
        ngx_http_glm_put_int(out, ctx->completion_tokens);
        return;

    case NGX_HTTP_GLM_EDITOR_EVALUATED:
        ngx_http_glm_put_int(out, ctx->prompt_tokens);
        return;

    case NGX_HTTP_GLM_EDITOR_CACHED:
        ngx_http_glm_put_int(out, ctx->cached_tokens);
        return;

    case NGX_HTTP_GLM_EDITOR_NEW_LINE:
        ngx_http_glm_put_str(out, ctx->new_line ? "true" : "false");
        return;

    case NGX_HTTP_GLM_EDITOR_STOP_TYPE:
    case NGX_HTTP_GLM_EDITOR_STOPPING_WORD:
        ngx_http_glm_editor_stop(out, ctx,
                                 i == NGX_HTTP_GLM_EDITOR_STOPPING_WORD);
        return;

    case NGX_HTTP_GLM_EDITOR_TIMINGS:
        ngx_http_glm_editor_timings(out, ctx);
        return;

    default:
        ngx_http_glm_editor_timing(out, ctx, i - NGX_HTTP_GLM_EDITOR_TIMING);
    }
}


/* Why it ended, or the string that ended it. */

static void
ngx_http_glm_editor_stop(ngx_http_glm_out_t *out, ngx_http_glm_ctx_t *ctx,
    ngx_uint_t word)
{
    ngx_str_t              *stop;
    ngx_http_glm_choice_t  *ch;

    ch = ctx->calls->choices;
    stop = ch->reason == GLM_REASON_STOP && ch->stop_index >= 0
           ? &ctx->params.stops[ch->stop_index] : NULL;

    if (!word) {
        ngx_http_glm_put_str(out, stop ? "\"word\""
                                  : ch->reason == GLM_REASON_STOP ? "\"eos\""
                                  : "\"limit\"");

    } else if (stop) {
        ngx_http_glm_put_string(out, stop->data, stop->len);

    } else {
        ngx_http_glm_lit(out, "\"\"");
    }
}


static void
ngx_http_glm_editor_timings(ngx_http_glm_out_t *out, ngx_http_glm_ctx_t *ctx)
{
    ngx_uint_t   i;
    const char  *name;

    for (i = 0; i < 8; i++) {
        name = ngx_http_glm_editor_names[NGX_HTTP_GLM_EDITOR_TIMING + i];

        ngx_http_glm_put_str(out, i ? ",\"" : "{\"");
        ngx_http_glm_put_str(out, name + sizeof("timings/") - 1);
        ngx_http_glm_lit(out, "\":");
        ngx_http_glm_editor_timing(out, ctx, i);
    }

    ngx_http_glm_lit(out, "}");
}


/* 0 to 3: of the prompt; 4 to 7: of the answer */

static void
ngx_http_glm_editor_timing(ngx_http_glm_out_t *out, ngx_http_glm_ctx_t *ctx,
    ngx_uint_t i)
{
    double    ms;
    uint64_t  n, us;

    n = i < 4 ? ctx->prompt_tokens : ctx->completion_tokens;
    us = i < 4 ? ctx->ttft_us - ngx_min(ctx->ttft_us, ctx->queue_us)
               : ctx->span_us;
    ms = us / 1000.0;

    switch (i % 4) {

    case 0:
        ngx_http_glm_put_int(out, n);
        return;

    case 1:
        ngx_http_glm_put_num(out, ms);
        return;

    case 2:
        ngx_http_glm_put_num(out, n ? ms / n : 0);
        return;

    default:
        ngx_http_glm_put_num(out, us ? n * 1000.0 / ms : 0);
    }
}


/* What is new. */

void
ngx_http_glm_stream_editor(ngx_http_glm_call_t *call,
    ngx_http_glm_choice_t *ch)
{
    ngx_http_glm_out_t  *out;

    if (ch->text.len == 0) {
        return;
    }

    out = &call->ctx->out;

    ngx_http_glm_lit(out, "data: {\"index\":0,\"content\":");
    ngx_http_glm_put_string(out, ch->text.start, ch->text.len);
    ngx_http_glm_lit(out, ",\"stop\":false,\"tokens_predicted\":");
    ngx_http_glm_put_int(out, ch->ntokens);
    ngx_http_glm_lit(out, ",\"tokens_evaluated\":");
    ngx_http_glm_put_int(out, call->prompt_tokens);
    ngx_http_glm_lit(out, "}\n\n");
}
