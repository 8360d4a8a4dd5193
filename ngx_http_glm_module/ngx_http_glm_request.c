
#include "ngx_http_glm_module.h"


static void ngx_http_glm_request_defaults(ngx_http_glm_ctx_t *ctx);
static ngx_int_t ngx_http_glm_request_body(ngx_http_request_t *r,
    ngx_http_glm_ctx_t *ctx, ngx_str_t *body);
static ngx_int_t ngx_http_glm_request_load(ngx_http_request_t *r,
    ngx_http_glm_ctx_t *ctx, ngx_str_t *body);
static ngx_int_t ngx_http_glm_request_syntax(ngx_http_glm_ctx_t *ctx,
    ngx_str_t *body, json_error_t *err);
static void ngx_http_glm_request_unload(void *data);
static ngx_int_t ngx_http_glm_request_fields(ngx_http_request_t *r,
    ngx_http_glm_ctx_t *ctx);
static size_t ngx_http_glm_request_name(u_char *buf, size_t size,
    const char *name);
static ngx_int_t ngx_http_glm_request_id(ngx_http_request_t *r,
    ngx_http_glm_ctx_t *ctx);
static ngx_int_t ngx_http_glm_request_calls(ngx_http_request_t *r,
    ngx_http_glm_ctx_t *ctx);
static ngx_int_t ngx_http_glm_request_limits(ngx_http_glm_ctx_t *ctx,
    glm_sock_welcome_t *w);
static ngx_int_t ngx_http_glm_request_vocab(ngx_http_glm_ctx_t *ctx,
    uint32_t vocab);
static ngx_int_t ngx_http_glm_request_unknown(ngx_http_glm_ctx_t *ctx,
    const char *name, int32_t id, uint32_t vocab);


/* The body, read and checked as far as the model need not be known. */

ngx_int_t
ngx_http_glm_request_parse(ngx_http_request_t *r, ngx_http_glm_ctx_t *ctx)
{
    ngx_str_t               body;
    ngx_int_t               rc;
    ngx_http_glm_params_t  *p;

    p = &ctx->params;

    ngx_http_glm_request_defaults(ctx);

    if (ngx_http_glm_request_body(r, ctx, &body) != NGX_OK) {
        return NGX_ERROR;
    }

    rc = ngx_http_glm_request_load(r, ctx, &body);

    /* a copy of a long body need not stay as long as the answer takes */

    if (body.len && body.data != r->request_body->bufs->buf->pos) {
        (void) ngx_pfree(r->pool, body.data);
    }

    if (rc != NGX_OK
        || ngx_http_glm_request_fields(r, ctx) != NGX_OK
        || ngx_http_glm_together(ctx) != NGX_OK)
    {
        return NGX_ERROR;
    }

    ctx->stream = p->stream ? 1 : 0;
    ctx->keep_ids = p->logprobs >= 0 || p->return_token_ids
                    || (ctx->api->bit == NGX_HTTP_GLM_API_INFILL
                        && !p->stream);

    return ngx_http_glm_request_id(r, ctx);
}


static void
ngx_http_glm_request_defaults(ngx_http_glm_ctx_t *ctx)
{
    ngx_http_glm_params_t  *p;

    p = &ctx->params;

    p->n = 1;
    p->max_tokens = ctx->api->bit & (NGX_HTTP_GLM_API_CHAT
                                     |NGX_HTTP_GLM_API_EDITOR) ? -1 : 16;
    p->max_completion_tokens = -1;
    p->top_logprobs = -1;
    p->add_generation = 2;
    p->logprobs = -1;
    p->best_of = -1;
    p->min_tokens = -1;
    p->min_gen_length = -1;
    p->prompt_logprobs = -1;
    p->repetition = 1;
    p->skip_special = 1;
    p->stream_interval = 1;
    p->temperature = ctx->api->bit == NGX_HTTP_GLM_API_EDITOR ? 0 : -1;
    p->beams = -1;
    p->length_penalty = 1;
    p->top_p = 1;
    p->parse_masks = 1;
    p->add_special = 1;
}


/* The name of the end token is one id, as /tokenize has it: is it this one? */

ngx_int_t
ngx_http_glm_request_info(ngx_http_request_t *r, ngx_http_glm_ctx_t *ctx)
{
    ngx_http_glm_params_t  *p;

    p = &ctx->params;

    ngx_http_glm_request_defaults(ctx);

    p->prompts = ngx_pcalloc(r->pool, sizeof(ngx_http_glm_prompt_t));
    if (p->prompts == NULL) {
        return NGX_ERROR;
    }

    ngx_str_set(&p->prompts->text, NGX_HTTP_GLM_EOS);

    p->nprompts = 1;
    p->has_text = 1;
    p->add_special = 0;

    return NGX_OK;
}


/* One piece of memory, wherever nginx has put the body. */

static ngx_int_t
ngx_http_glm_request_body(ngx_http_request_t *r, ngx_http_glm_ctx_t *ctx,
    ngx_str_t *body)
{
    size_t        size;
    ssize_t       n;
    u_char       *p;
    ngx_buf_t    *b;
    ngx_chain_t  *cl;

    ngx_str_null(body);

    if (r->request_body == NULL || r->request_body->bufs == NULL) {
        return NGX_OK;
    }

    cl = r->request_body->bufs;

    if (cl->next == NULL && !cl->buf->in_file) {
        body->data = cl->buf->pos;
        body->len = cl->buf->last - cl->buf->pos;
        return NGX_OK;
    }

    size = 0;

    for (cl = r->request_body->bufs; cl; cl = cl->next) {
        size += ngx_buf_size(cl->buf);
    }

    p = ngx_pnalloc(r->pool, size);
    if (p == NULL) {
        return NGX_ERROR;
    }

    body->data = p;
    body->len = size;

    for (cl = r->request_body->bufs; cl; cl = cl->next) {
        b = cl->buf;

        if (ngx_buf_size(b) == 0) {
            continue;
        }

        if (!b->in_file) {
            p = ngx_cpymem(p, b->pos, b->last - b->pos);
            continue;
        }

        size = b->file_last - b->file_pos;

        n = ngx_read_file(b->file, p, size, b->file_pos);

        if (n == NGX_ERROR || (size_t) n != size) {
            return NGX_ERROR;    /* ngx_read_file() has logged */
        }

        p += n;
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_glm_request_load(ngx_http_request_t *r, ngx_http_glm_ctx_t *ctx,
    ngx_str_t *body)
{
    json_error_t         err;
    ngx_pool_cleanup_t  *cln;

    if (body->len == 0) {
        return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL, NULL,
                                  "The request body is empty, a JSON object "
                                  "is expected.");
    }

    if (ngx_http_glm_json_depth(body->data, body->len, NGX_HTTP_GLM_MAX_DEPTH)
        != NGX_OK)
    {
        return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL, NULL,
                                  "The JSON is nested too deeply, the limit "
                                  "is %d.", NGX_HTTP_GLM_MAX_DEPTH);
    }

    cln = ngx_pool_cleanup_add(r->pool, 0);
    if (cln == NULL) {
        return NGX_ERROR;
    }

    /* NUL is refused later, by the name of its field */

    ctx->root = json_loadb((char *) body->data, body->len,
                           JSON_REJECT_DUPLICATES|JSON_ALLOW_NUL, &err);

    cln->handler = ngx_http_glm_request_unload;
    cln->data = ctx;

    if (ctx->root == NULL) {
        return ngx_http_glm_request_syntax(ctx, body, &err);
    }

    if (!json_is_object(ctx->root)) {
        return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL, NULL,
                                  "The request body must be a JSON object.");
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_glm_request_syntax(ngx_http_glm_ctx_t *ctx, ngx_str_t *body,
    json_error_t *err)
{
    char       name[64];
    ngx_str_t  key;

    if (ngx_http_glm_utf8((u_char *) err->text, ngx_strlen(err->text), NULL)
        != NGX_OK)
    {
        ngx_cpystrn((u_char *) err->text, (u_char *) "invalid input",
                    sizeof(err->text));
    }

    if (json_error_code(err) == json_error_out_of_memory) {
        return NGX_ERROR;
    }

    if (json_error_code(err) == json_error_numeric_overflow) {
        key = ngx_http_glm_json_key(body->data, body->len, err->position);

        if (key.len && key.len < sizeof(name)
            && ngx_http_glm_utf8(key.data, key.len, NULL) == NGX_OK)
        {
            ngx_cpystrn((u_char *) name, key.data, key.len + 1);

            return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL, name,
                                      "%s holds a number out of range, at "
                                      "line %d, column %d.", name, err->line,
                                      err->column);
        }
    }

    return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL, NULL,
                              "The request body is not valid JSON: %s, at "
                              "line %d, column %d (byte %d).",
                              err->text, err->line, err->column,
                              err->position);
}


static void
ngx_http_glm_request_unload(void *data)
{
    ngx_http_glm_ctx_t *ctx = data;

    json_decref(ctx->root);
    ctx->root = NULL;
}


static ngx_int_t
ngx_http_glm_request_fields(ngx_http_request_t *r, ngx_http_glm_ctx_t *ctx)
{
    u_char                       buf[64];
    json_t                      *v;
    ngx_str_t                    first;
    ngx_uint_t                   unknown;
    const char                  *name;
    const ngx_http_glm_field_t  *f;

    unknown = 0;
    ngx_str_null(&first);

    json_object_foreach(ctx->root, name, v) {

        f = ngx_http_glm_field_find(name, ctx->api->bit);

        if (f == NULL) {
            if (unknown++ == 0) {
                first.data = buf;
                first.len = ngx_http_glm_request_name(buf, sizeof(buf), name);
            }

            continue;
        }

        if (json_is_null(v)) {
            continue;
        }

        if (ngx_http_glm_field_set(ctx, f, v) != NGX_OK) {
            return NGX_ERROR;
        }
    }

    if (unknown) {
        ngx_log_error(NGX_LOG_INFO, r->connection->log, 0,
                      "glm request has %ui unknown fields, first \"%V\"",
                      unknown, &first);
    }

    return NGX_OK;
}


/* For the log: a client may not write there what it likes. */

static size_t
ngx_http_glm_request_name(u_char *buf, size_t size, const char *name)
{
    u_char  ch;
    size_t  i;

    for (i = 0; i < size && name[i]; i++) {
        ch = name[i];

        buf[i] = (ch >= 'A' && ch <= 'Z') || (ch >= 'a' && ch <= 'z')
                 || (ch >= '0' && ch <= '9') || ch == '_' || ch == '-'
                 || ch == '.' ? ch : '?';
    }

    return i;
}


static ngx_int_t
ngx_http_glm_request_id(ngx_http_request_t *r, ngx_http_glm_ctx_t *ctx)
{
    ngx_str_t              *id;
    const char             *kind;
    ngx_http_glm_params_t  *p;

    p = &ctx->params;

    switch (ctx->api->bit) {

    case NGX_HTTP_GLM_API_CHAT:
        kind = "chatcmpl";
        break;

    case NGX_HTTP_GLM_API_COMPLETIONS:
        kind = "cmpl";
        break;

    case NGX_HTTP_GLM_API_INFILL:
        kind = "infill";
        break;

    case NGX_HTTP_GLM_API_SCORE:
        kind = "score";
        break;

    default:
        return NGX_OK;
    }

    id = p->request_id.len ? &p->request_id : &ctx->request_id;

    ctx->id.data = ngx_pnalloc(r->pool, sizeof("chatcmpl-") - 1 + id->len);
    if (ctx->id.data == NULL) {
        return NGX_ERROR;
    }

    ctx->id.len = ngx_sprintf(ctx->id.data, "%s-%V", kind, id) - ctx->id.data;

    return NGX_OK;
}


/* One call a prompt; choices are numbered through all of them. */

static ngx_int_t
ngx_http_glm_request_calls(ngx_http_request_t *r, ngx_http_glm_ctx_t *ctx)
{
    ngx_uint_t              i, k, n;
    ngx_http_glm_call_t    *calls;
    ngx_http_glm_params_t  *p;
    ngx_http_glm_choice_t  *choices;

    p = &ctx->params;
    n = ctx->api->bit == NGX_HTTP_GLM_API_SCORE ? p->nscored
        : ngx_http_glm_generates(ctx) ? (ngx_uint_t) p->n : 0;

    calls = ngx_pcalloc(r->pool, p->nprompts * sizeof(ngx_http_glm_call_t));
    choices = ngx_pcalloc(r->pool, (p->nprompts * n + 1)
                                   * sizeof(ngx_http_glm_choice_t));
    if (calls == NULL || choices == NULL) {
        return NGX_ERROR;
    }

    for (i = 0; i < p->nprompts; i++) {
        calls[i].ctx = ctx;
        calls[i].prompt = &p->prompts[i];
        calls[i].nchoices = n;
        calls[i].choices = choices + i * n;

        for (k = 0; k < n; k++) {
            calls[i].choices[k].index = i * n + k;
        }
    }

    ctx->calls = calls;
    ctx->ncalls = p->nprompts;

    return NGX_OK;
}


/* What only the engine's WELCOME tells. */

ngx_int_t
ngx_http_glm_request_check(ngx_http_request_t *r, ngx_http_glm_ctx_t *ctx)
{
    glm_sock_welcome_t     *w;
    ngx_http_glm_peer_t    *peer;
    ngx_http_glm_params_t  *p;

    p = &ctx->params;
    peer = ctx->peer;
    w = &peer->welcome;

    /* WELCOME came, and then the engine went, in one turn */

    if (peer->failed || peer->state != NGX_HTTP_GLM_PEER_READY) {
        return ngx_http_glm_error_engine(ctx);
    }

    /* another engine may come while this request runs */

    ctx->model.data = ngx_pstrdup(r->pool, &peer->model);
    if (ctx->model.data == NULL) {
        return NGX_ERROR;
    }

    ctx->model.len = peer->model.len;
    ctx->max_seq = w->max_seq;
    ctx->fingerprint = w->fingerprint;

    if (p->model.data && !ngx_http_glm_is_model(r, &ctx->model, &p->model)) {
        p->model.len = ngx_min(p->model.len, 128);

        return ngx_http_glm_error(ctx, NGX_HTTP_NOT_FOUND, "model_not_found",
                                  "model", "The model \"%V\" does not exist, "
                                  "this is \"%V\".", &p->model, &ctx->model);
    }

    if (ngx_http_glm_prompt_check(ctx) != NGX_OK
        || ngx_http_glm_request_limits(ctx, w) != NGX_OK)
    {
        return NGX_ERROR;
    }

    if (ctx->api->bit == NGX_HTTP_GLM_API_EDITOR) {
        ngx_http_glm_editor_fit(ctx);
    }

    return ngx_http_glm_request_calls(r, ctx);
}


static ngx_int_t
ngx_http_glm_request_limits(ngx_http_glm_ctx_t *ctx, glm_sock_welcome_t *w)
{
    const char             *name;
    ngx_http_glm_params_t  *p;

    p = &ctx->params;

    if (ngx_http_glm_request_vocab(ctx, w->vocab) != NGX_OK) {
        return NGX_ERROR;
    }

    if (p->n > w->max_n) {
        if (w->max_n <= 1) {
            return ngx_http_glm_error(ctx, NGX_HTTP_NOT_IMPLEMENTED, NULL,
                                      "n", "n is not supported by this "
                                      "engine.");
        }

        return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL, "n",
                                  "n must be at most %uD, not %L.",
                                  w->max_n, (int64_t) p->n);
    }

    if (p->prompt_logprobs > w->max_logprobs) {
        return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL,
                                  "prompt_logprobs",
                                  "prompt_logprobs must be at most %uD, "
                                  "not %L.", w->max_logprobs,
                                  (int64_t) p->prompt_logprobs);
    }

    if (p->logprobs > w->max_logprobs) {
        return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL, "logprobs",
                                  "logprobs must be at most %uD, not %L.",
                                  w->max_logprobs, (int64_t) p->logprobs);
    }

    if (p->nstops > w->max_stops) {
        return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL, "stop",
                                  "stop may have %uD strings, not %ui.",
                                  w->max_stops, p->nstops);
    }

    if (p->max_tokens > w->max_seq) {
        name = ctx->api->bit == NGX_HTTP_GLM_API_EDITOR
               ? ngx_http_glm_editor_param("max_tokens") : "max_tokens";

        return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST,
                                  "context_length_exceeded", name,
                                  "%s (%L) is more than the model's context "
                                  "of %uD tokens.", name,
                                  (int64_t) p->max_tokens, w->max_seq);
    }

    return NGX_OK;
}


ngx_int_t
ngx_http_glm_request_ids(ngx_http_glm_ctx_t *ctx, const char *name,
    ngx_http_glm_ids_t *ids)
{
    uint32_t    vocab;
    ngx_uint_t  i;

    vocab = ctx->peer->welcome.vocab;

    for (i = 0; i < ids->n; i++) {
        if ((uint32_t) ids->elts[i] >= vocab) {
            return ngx_http_glm_request_unknown(ctx, name, ids->elts[i],
                                                vocab);
        }
    }

    return NGX_OK;
}


/* Ids in other fields than the prompt. */

static ngx_int_t
ngx_http_glm_request_vocab(ngx_http_glm_ctx_t *ctx, uint32_t vocab)
{
    ngx_uint_t              i;
    ngx_http_glm_params_t  *p;

    static const struct {
        const char  *name;
        size_t       offset;
    } lists[] = {
        { "stop_token_ids", offsetof(ngx_http_glm_params_t, stop_ids) },
        { "allowed_token_ids", offsetof(ngx_http_glm_params_t, allow) },
        { "logprob_token_ids", offsetof(ngx_http_glm_params_t, score_ids) }
    };

    p = &ctx->params;

    for (i = 0; i < 3; i++) {
        if (ngx_http_glm_request_ids(ctx, lists[i].name,
                                     (ngx_http_glm_ids_t *)
                                     ((char *) p + lists[i].offset))
            != NGX_OK)
        {
            return NGX_ERROR;
        }
    }

    for (i = 0; i < p->nbias; i++) {
        if ((uint32_t) p->bias[i].id >= vocab) {
            return ngx_http_glm_request_unknown(ctx, "logit_bias",
                                                p->bias[i].id, vocab);
        }
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_glm_request_unknown(ngx_http_glm_ctx_t *ctx, const char *name,
    int32_t id, uint32_t vocab)
{
    return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL, name,
                              "%s holds %D, which is not in the vocabulary "
                              "of %uD.", name, id, vocab);
}
