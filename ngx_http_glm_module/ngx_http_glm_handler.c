
#include "ngx_http_glm_module.h"


static const ngx_http_glm_api_t *ngx_http_glm_find(ngx_http_request_t *r,
    ngx_http_glm_ctx_t *ctx, ngx_uint_t mask);
static ngx_int_t ngx_http_glm_choose_id(ngx_http_request_t *r,
    ngx_http_glm_ctx_t *ctx);
static ngx_int_t ngx_http_glm_refuse_method(ngx_http_request_t *r,
    ngx_http_glm_ctx_t *ctx, ngx_uint_t methods);
static ngx_int_t ngx_http_glm_read_body(ngx_http_request_t *r,
    ngx_http_glm_ctx_t *ctx);
static void ngx_http_glm_body_handler(ngx_http_request_t *r);
static ngx_int_t ngx_http_glm_info(ngx_http_request_t *r,
    ngx_http_glm_ctx_t *ctx);
static ngx_int_t ngx_http_glm_watch_client(ngx_http_request_t *r);
static ngx_int_t ngx_http_glm_start(ngx_http_request_t *r,
    ngx_http_glm_ctx_t *ctx);
static void ngx_http_glm_progress(ngx_http_glm_ctx_t *ctx);
static void ngx_http_glm_fail(ngx_http_glm_ctx_t *ctx);
static ngx_int_t ngx_http_glm_empty(ngx_http_glm_ctx_t *ctx);
static void ngx_http_glm_arm(ngx_http_glm_ctx_t *ctx);
static void ngx_http_glm_timer_handler(ngx_event_t *ev);
static void ngx_http_glm_release(void *data);


#define NGX_HTTP_GLM_GET   (NGX_HTTP_GET|NGX_HTTP_HEAD)

/* a path that ends with a slash has a name of its own behind it */

const ngx_http_glm_api_t  ngx_http_glm_apis[] = {

    { ngx_string("chat"), ngx_string("/v1/chat/completions"),
      NGX_HTTP_GLM_API_CHAT, NGX_HTTP_POST, ngx_http_glm_read_body },

    { ngx_string("completions"), ngx_string("/v1/completions"),
      NGX_HTTP_GLM_API_COMPLETIONS, NGX_HTTP_POST, ngx_http_glm_read_body },

    { ngx_string("infill"), ngx_string("/v1/infill"),
      NGX_HTTP_GLM_API_INFILL, NGX_HTTP_POST, ngx_http_glm_read_body },

    { ngx_string("infill"), ngx_string("/infill"),
      NGX_HTTP_GLM_API_EDITOR, NGX_HTTP_POST, ngx_http_glm_read_body },

    { ngx_string("score"), ngx_string("/v1/score"),
      NGX_HTTP_GLM_API_SCORE, NGX_HTTP_POST, ngx_http_glm_read_body },

    { ngx_string("models"), ngx_string("/v1/models"),
      NGX_HTTP_GLM_API_MODELS, NGX_HTTP_GLM_GET, ngx_http_glm_models },

    { ngx_string("models"), ngx_string("/v1/models/"),
      NGX_HTTP_GLM_API_MODELS, NGX_HTTP_GLM_GET, ngx_http_glm_models },

    { ngx_string("health"), ngx_string("/health"),
      NGX_HTTP_GLM_API_HEALTH, NGX_HTTP_GLM_GET, ngx_http_glm_health },

    { ngx_string("ping"), ngx_string("/ping"),
      NGX_HTTP_GLM_API_PING, NGX_HTTP_GLM_GET|NGX_HTTP_POST,
      ngx_http_glm_health },

    { ngx_string("version"), ngx_string("/version"),
      NGX_HTTP_GLM_API_VERSION, NGX_HTTP_GLM_GET, ngx_http_glm_version },

    { ngx_string("tokenize"), ngx_string("/tokenize"),
      NGX_HTTP_GLM_API_TOKENIZE, NGX_HTTP_POST, ngx_http_glm_read_body },

    { ngx_string("tokenize"), ngx_string("/v1/tokenize"),
      NGX_HTTP_GLM_API_TOKENIZE, NGX_HTTP_POST, ngx_http_glm_read_body },

    { ngx_string("detokenize"), ngx_string("/detokenize"),
      NGX_HTTP_GLM_API_DETOKENIZE, NGX_HTTP_POST, ngx_http_glm_read_body },

    { ngx_string("detokenize"), ngx_string("/v1/detokenize"),
      NGX_HTTP_GLM_API_DETOKENIZE, NGX_HTTP_POST, ngx_http_glm_read_body },

    { ngx_string("tokenizer_info"), ngx_string("/tokenizer_info"),
      NGX_HTTP_GLM_API_INFO, NGX_HTTP_GLM_GET, ngx_http_glm_info },

    { ngx_string("tokenizer_info"), ngx_string("/v1/tokenizer_info"),
      NGX_HTTP_GLM_API_INFO, NGX_HTTP_GLM_GET, ngx_http_glm_info },

    { ngx_string("openapi"), ngx_string("/openapi.json"),
      NGX_HTTP_GLM_API_OPENAPI, NGX_HTTP_GLM_GET, ngx_http_glm_openapi },

    { ngx_string("metrics"), ngx_string("/metrics"),
      NGX_HTTP_GLM_API_METRICS, NGX_HTTP_GLM_GET, ngx_http_glm_metrics },

    { ngx_string("status"), ngx_string("/status"),
      NGX_HTTP_GLM_API_STATUS, NGX_HTTP_GLM_GET, ngx_http_glm_status },

    { ngx_null_string, ngx_null_string, 0, 0, NULL }
};


ngx_int_t
ngx_http_glm_handler(ngx_http_request_t *r)
{
    ngx_int_t                  rc;
    ngx_http_glm_ctx_t        *ctx;
    const ngx_http_glm_api_t  *api;
    ngx_http_glm_loc_conf_t   *glcf;

    glcf = ngx_http_get_module_loc_conf(r, ngx_http_glm_module);

    ctx = ngx_http_glm_get_ctx(r);
    if (ctx == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    api = ngx_http_glm_find(r, ctx, glcf->api);
    ctx->api = api;

    if (api && (r->method & api->methods) && api->handler
        == ngx_http_glm_read_body)
    {
        return api->handler(r, ctx);
    }

    rc = ngx_http_discard_request_body(r);
    if (rc != NGX_OK) {
        return rc;
    }

    if (api == NULL) {
        (void) ngx_http_glm_error(ctx, NGX_HTTP_NOT_FOUND, NULL, NULL,
                                  "Unknown path, or not served here.");
        return ngx_http_glm_error_send(r, ctx);
    }

    if (!(r->method & api->methods)) {
        return ngx_http_glm_refuse_method(r, ctx, api->methods);
    }

    return api->handler(r, ctx);
}


ngx_http_glm_ctx_t *
ngx_http_glm_get_ctx(ngx_http_request_t *r)
{
    ngx_http_glm_ctx_t       *ctx;
    ngx_http_glm_loc_conf_t  *glcf;

    ctx = ngx_http_get_module_ctx(r, ngx_http_glm_module);
    if (ctx) {
        return ctx;
    }

    ctx = ngx_pcalloc(r->pool, sizeof(ngx_http_glm_ctx_t));
    if (ctx == NULL) {
        return NULL;
    }

    glcf = ngx_http_get_module_loc_conf(r, ngx_http_glm_module);

    ctx->request = r;
    ctx->peer = glcf->peer;
    ctx->start = ngx_current_msec;

    ngx_http_glm_out_init(&ctx->out, r->pool);

    if (ngx_http_glm_choose_id(r, ctx) != NGX_OK) {
        return NULL;
    }

    ngx_http_set_ctx(r, ctx, ngx_http_glm_module);

    return ctx;
}


/* The longest path that ends the URI, of those in mask. */

static const ngx_http_glm_api_t *
ngx_http_glm_find(ngx_http_request_t *r, ngx_http_glm_ctx_t *ctx,
    ngx_uint_t mask)
{
    size_t                     len;
    u_char                    *p, *last;
    const ngx_http_glm_api_t  *api, *found;

    found = NULL;
    len = 0;

    for (api = ngx_http_glm_apis; api->path.len; api++) {

        if (!(api->bit & mask) || r->uri.len < api->path.len) {
            continue;
        }

        if (api->path.data[api->path.len - 1] == '/') {

            /* a name may have slashes, too: the first such path begins it */

            last = r->uri.data + r->uri.len - api->path.len;

            for (p = r->uri.data; p < last; p++) {
                if (ngx_strncmp(p, api->path.data, api->path.len) == 0) {
                    break;
                }
            }

            if (p < last && (size_t) (r->uri.data + r->uri.len - p) > len) {
                ctx->model_id.data = p + api->path.len;
                ctx->model_id.len = last - p;
                len = r->uri.data + r->uri.len - p;
                found = api;
            }

            continue;
        }

        if (api->path.len > len
            && ngx_strncmp(r->uri.data + r->uri.len - api->path.len,
                           api->path.data, api->path.len)
               == 0)
        {
            len = api->path.len;
            found = api;
        }
    }

    return found;
}


ngx_uint_t
ngx_http_glm_sane_id(ngx_str_t *s)
{
    u_char  ch;
    size_t  i;

    if (s->len == 0 || s->len > 128) {
        return 0;
    }

    for (i = 0; i < s->len; i++) {
        ch = s->data[i];

        if (!((ch >= 'A' && ch <= 'Z') || (ch >= 'a' && ch <= 'z')
              || (ch >= '0' && ch <= ':')
              || ch == '_' || ch == '.' || ch == '-'))
        {
            return 0;
        }
    }

    return 1;
}


static ngx_int_t
ngx_http_glm_choose_id(ngx_http_request_t *r, ngx_http_glm_ctx_t *ctx)
{
    ngx_str_t                  name;
    ngx_uint_t                 i;
    ngx_list_part_t           *part;
    ngx_table_elt_t           *h;
    ngx_http_variable_value_t *vv;

    part = &r->headers_in.headers.part;
    h = part->elts;

    for (i = 0; /* void */ ; i++) {

        if (i >= part->nelts) {
            if (part->next == NULL) {
                break;
            }

            part = part->next;
            h = part->elts;
            i = 0;
        }

        if (h[i].hash == 0
            || h[i].key.len != sizeof("x-request-id") - 1
            || ngx_strncasecmp(h[i].key.data, (u_char *) "x-request-id",
                               sizeof("x-request-id") - 1)
               != 0
            || !ngx_http_glm_sane_id(&h[i].value))
        {
            continue;
        }

        ctx->request_id = h[i].value;
        return NGX_OK;
    }

    ngx_str_set(&name, "request_id");

    vv = ngx_http_get_variable(r, &name,
                               ngx_hash_key(name.data, name.len));
    if (vv == NULL || vv->not_found) {
        return NGX_ERROR;
    }

    ctx->request_id.data = vv->data;
    ctx->request_id.len = vv->len;

    return NGX_OK;
}


static ngx_int_t
ngx_http_glm_refuse_method(ngx_http_request_t *r, ngx_http_glm_ctx_t *ctx,
    ngx_uint_t methods)
{
    ngx_str_t  allow;

    switch (methods) {

    case NGX_HTTP_POST:
        ngx_str_set(&allow, "POST");
        break;

    case NGX_HTTP_GLM_GET:
        ngx_str_set(&allow, "GET, HEAD");
        break;

    default:
        ngx_str_set(&allow, "GET, HEAD, POST");
    }

    (void) ngx_http_glm_error(ctx, NGX_HTTP_NOT_ALLOWED, NULL, NULL,
                              "The method is not allowed here, only %V.",
                              &allow);

    if (ngx_http_glm_header(r, "Allow", &allow) != NGX_OK) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    return ngx_http_glm_error_send(r, ctx);
}


static ngx_int_t
ngx_http_glm_read_body(ngx_http_request_t *r, ngx_http_glm_ctx_t *ctx)
{
    ngx_int_t  rc;

    r->request_body_in_single_buf = 1;

    rc = ngx_http_read_client_request_body(r, ngx_http_glm_body_handler);

    if (rc >= NGX_HTTP_SPECIAL_RESPONSE) {
        return rc;
    }

    return NGX_DONE;
}


static void
ngx_http_glm_body_handler(ngx_http_request_t *r)
{
    ngx_http_glm_ctx_t  *ctx;

    ctx = ngx_http_get_module_ctx(r, ngx_http_glm_module);

    if (ngx_http_glm_request_parse(r, ctx) != NGX_OK
        || ngx_http_glm_start(r, ctx) != NGX_OK)
    {
        ngx_http_glm_fail(ctx);
        return;
    }

    ngx_http_glm_progress(ctx);
}


/* A GET that the engine has to be asked for. */

static ngx_int_t
ngx_http_glm_info(ngx_http_request_t *r, ngx_http_glm_ctx_t *ctx)
{
    r->main->count++;

    if (ngx_http_glm_request_info(r, ctx) != NGX_OK
        || ngx_http_glm_start(r, ctx) != NGX_OK)
    {
        ngx_http_glm_fail(ctx);
        return NGX_DONE;
    }

    ngx_http_glm_progress(ctx);

    return NGX_DONE;
}


/* From here on the request is cancelled when its client leaves. */

static ngx_int_t
ngx_http_glm_watch_client(ngx_http_request_t *r)
{
    ngx_event_t  *rev;

    r->write_event_handler = ngx_http_glm_stream_writer;

    if (r != r->main || r->discard_body) {
        return NGX_OK;
    }

    r->read_event_handler = ngx_http_test_reading;

    rev = r->connection->read;

    if (rev->ready) {
        ngx_post_event(rev, &ngx_posted_events);
        return NGX_OK;
    }

    return ngx_handle_read_event(rev, 0);
}


static ngx_int_t
ngx_http_glm_start(ngx_http_request_t *r, ngx_http_glm_ctx_t *ctx)
{
    ngx_int_t            rc;
    ngx_http_cleanup_t  *cln;

    cln = ngx_http_cleanup_add(r, 0);
    if (cln == NULL) {
        return NGX_ERROR;
    }

    cln->handler = ngx_http_glm_release;
    cln->data = ctx;

    if (ngx_http_glm_watch_client(r) != NGX_OK) {
        return NGX_ERROR;
    }

    ctx->timer.handler = ngx_http_glm_timer_handler;
    ctx->timer.data = ctx;
    ctx->timer.log = r->connection->log;

    ngx_http_glm_arm(ctx);

    ctx->created = ngx_time();
    ctx->waiting = 1;

    rc = ngx_http_glm_attach(ctx->peer, r->connection->log);

    if (rc == NGX_AGAIN) {
        ngx_queue_insert_tail(&ctx->peer->waiting, &ctx->queue);
        ctx->queued = 1;
        return NGX_OK;
    }

    if (rc == NGX_OK) {
        return NGX_OK;
    }

    return ngx_http_glm_error_engine(ctx);
}


/* From an event of the engine or a timer: r may be gone afterwards. */

void
ngx_http_glm_wake(ngx_http_glm_ctx_t *ctx)
{
    ngx_connection_t    *c;
    ngx_http_request_t  *r;

    r = ctx->request;
    c = r->connection;

    ngx_http_set_log_request(c->log, r);

    ngx_http_glm_progress(ctx);

    ngx_http_run_posted_requests(c);
}


static void
ngx_http_glm_progress(ngx_http_glm_ctx_t *ctx)
{
    ngx_int_t            rc;
    ngx_http_request_t  *r;

    r = ctx->request;

    if (ctx->lost) {
        (void) ngx_http_glm_error_engine(ctx);
    }

    if (ctx->error || ctx->nomem) {
        ngx_http_glm_fail(ctx);
        return;
    }

    if (ctx->waiting) {

        if (ctx->queued) {
            return;    /* WELCOME has not come */
        }

        ctx->waiting = 0;

        if (ngx_http_glm_request_check(r, ctx) != NGX_OK
            || (ngx_http_glm_empty(ctx) != NGX_OK
                && ngx_http_glm_submit(ctx) != NGX_OK))
        {
            ngx_http_glm_fail(ctx);
            return;
        }

        /* the engine has it: the longest field need not stay */

        (void) json_object_del(ctx->root, "prompt");

        if (ctx->params.prefix.len == 0) {
            (void) json_object_del(ctx->root, "messages");
        }
    }

    /* an error of any prompt is a status: no header before all are accepted */

    if (ctx->stream && ctx->ncalls && ctx->naccepted == ctx->ncalls) {

        if (!ctx->header_sent && ngx_http_glm_stream_start(ctx) != NGX_OK) {
            ngx_http_glm_finalize(ctx, NGX_ERROR);
            return;
        }

        if (ctx->rearm && !ctx->finished) {
            ngx_http_glm_arm(ctx);
        }

        rc = ngx_http_glm_stream_send(ctx);

        if (rc == NGX_ERROR || ctx->finished) {
            ngx_http_glm_finalize(ctx, rc);
        }

        return;
    }

    if (ctx->finished) {
        ngx_http_glm_plain(ctx);
        ngx_http_glm_finalize(ctx, ngx_http_glm_send(r, ctx, NGX_HTTP_OK,
                                                     "application/json"));
        return;
    }

    if (ctx->rearm) {
        ngx_http_glm_arm(ctx);
    }
}


/* Nothing to tokenize or to detokenize: the answer is known. */

static ngx_int_t
ngx_http_glm_empty(ngx_http_glm_ctx_t *ctx)
{
    ngx_http_glm_params_t  *p;

    p = &ctx->params;

    if (ctx->calls->nchoices || p->prompts->ids.n || p->prompts->text.len
        || (p->has_text && p->add_special))
    {
        return NGX_DECLINED;
    }

    ctx->finished = 1;

    return NGX_OK;
}


/* Ends the request with ctx->error, or with 500 if memory has run out. */

static void
ngx_http_glm_fail(ngx_http_glm_ctx_t *ctx)
{
    if (!ctx->header_sent) {
        ngx_http_glm_release(ctx);
        ngx_http_glm_finalize(ctx, ngx_http_glm_error_send(ctx->request,
                                                           ctx));
        return;
    }

    if (ctx->error == NULL) {
        ngx_http_glm_finalize(ctx, NGX_ERROR);
        return;
    }

    ngx_log_error(NGX_LOG_ERR, ctx->request->connection->log, 0,
                  "glm stream ends with %ui: %V",
                  ctx->error->status, &ctx->error->text);

    ngx_http_glm_stream_error(ctx);
    ngx_http_glm_finalize(ctx, ngx_http_glm_stream_send(ctx));
}


void
ngx_http_glm_finalize(ngx_http_glm_ctx_t *ctx, ngx_int_t rc)
{
    ngx_http_request_t  *r;

    r = ctx->request;

    ngx_http_glm_release(ctx);

    if (rc == NGX_AGAIN) {
        rc = NGX_OK;    /* nginx writes what is left */
    }

    ngx_http_finalize_request(r, rc);
}


/*
 * One timer a request, which is not cancelable: a worker that exits waits for
 * it.  It is set where a deadline comes nearer, not at each token.
 */

static void
ngx_http_glm_arm(ngx_http_glm_ctx_t *ctx)
{
    ngx_msec_t                now, spent, limit, wait;
    ngx_http_glm_loc_conf_t  *glcf;

    glcf = ngx_http_get_module_loc_conf(ctx->request, ngx_http_glm_module);

    now = ngx_current_msec;
    ctx->rearm = 0;

    spent = now - (ctx->got_token ? ctx->last_token : ctx->start);
    limit = ctx->got_token ? glcf->read_timeout : glcf->first_token_timeout;
    wait = limit - ngx_min(spent, limit);

    if (!ctx->header_sent) {
        wait = ngx_min(wait, 1000);    /* to look at the heartbeat */

    } else if (glcf->ping_interval) {
        limit = glcf->ping_interval;

        /* a client that does not read gets no pings */

        spent = ctx->out.busy ? 0 : now - ctx->last_sent;
        spent = limit - ngx_min(spent, limit);
        wait = ngx_min(wait, spent);
    }

    if (ctx->timer.timer_set) {
        ngx_del_timer(&ctx->timer);
    }

    ngx_add_timer(&ctx->timer, ngx_max(wait, 1));
}


static void
ngx_http_glm_timer_handler(ngx_event_t *ev)
{
    ngx_msec_t                now, limit;
    ngx_http_glm_ctx_t       *ctx;
    ngx_http_glm_loc_conf_t  *glcf;

    ctx = ev->data;
    now = ngx_current_msec;

    glcf = ngx_http_get_module_loc_conf(ctx->request, ngx_http_glm_module);

    if (ctx->out.busy) {
        ctx->last_token = now;    /* the client is slow, send_timeout rules */
    }

    limit = ctx->got_token ? glcf->read_timeout : glcf->first_token_timeout;

    if (now - (ctx->got_token ? ctx->last_token : ctx->start) >= limit) {
        (void) ngx_http_glm_error(ctx, NGX_HTTP_GATEWAY_TIME_OUT,
                                  "deadline_exceeded", NULL,
                                  ctx->got_token
                                  ? "No token came for %M ms."
                                  : "No first token came in %M ms.", limit);

    } else if (!ctx->header_sent && ngx_http_glm_stale(ctx->peer)) {
        (void) ngx_http_glm_error(ctx, NGX_HTTP_SERVICE_UNAVAILABLE,
                                  "engine_unavailable", NULL,
                                  "The engine makes no progress.");

    } else {

        if (ctx->header_sent && glcf->ping_interval
            && now - ctx->last_sent >= glcf->ping_interval
            && ctx->out.busy == NULL)
        {
            ngx_http_glm_lit(&ctx->out, ": ping\n\n");
            ctx->last_sent = now;
        }

        ngx_http_glm_arm(ctx);

        if (ctx->out.first == NULL) {
            return;
        }
    }

    ngx_http_glm_wake(ctx);
}


/* Lets go of the engine; the request may go on to send what is left. */

static void
ngx_http_glm_release(void *data)
{
    ngx_http_glm_ctx_t *ctx = data;

    ngx_uint_t  i;

    if (ctx->timer.timer_set) {
        ngx_del_timer(&ctx->timer);
    }

    if (ctx->queued) {
        ngx_queue_remove(&ctx->queue);
        ctx->queued = 0;
    }

    for (i = 0; i < ctx->ncalls; i++) {
        if (ctx->calls[i].peer) {
            ngx_http_glm_ring_detach(&ctx->calls[i]);
        }
    }
}
