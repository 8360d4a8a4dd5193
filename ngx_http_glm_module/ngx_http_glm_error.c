
#include "ngx_http_glm_module.h"


static const char *ngx_http_glm_error_type(ngx_uint_t status);
static ngx_int_t ngx_http_glm_error_header_filter(ngx_http_request_t *r);
static ngx_int_t ngx_http_glm_error_body_filter(ngx_http_request_t *r,
    ngx_chain_t *in);


static ngx_http_output_header_filter_pt  ngx_http_next_header_filter;
static ngx_http_output_body_filter_pt    ngx_http_next_body_filter;


/* Sets the request's error; the first one stays.  Always NGX_ERROR. */

ngx_int_t
ngx_http_glm_error(ngx_http_glm_ctx_t *ctx, ngx_uint_t status,
    const char *code, const char *param, const char *fmt, ...)
{
    size_t                 len;
    u_char                *p;
    va_list                args;
    ngx_http_glm_error_t  *e;

    if (ctx->error) {
        return NGX_ERROR;
    }

    e = ngx_pcalloc(ctx->request->pool, sizeof(ngx_http_glm_error_t));
    if (e == NULL) {
        return NGX_ERROR;
    }

    e->status = status;

    if (status == NGX_HTTP_SERVICE_UNAVAILABLE) {
        e->retry_after = 1;
    }

    if (code) {
        ngx_cpystrn((u_char *) e->code_data, (u_char *) code,
                    sizeof(e->code_data));
        e->code = e->code_data;
    }

    if (param) {
        ngx_cpystrn((u_char *) e->param_data, (u_char *) param,
                    sizeof(e->param_data));
        e->param = e->param_data;
    }

    va_start(args, fmt);
    p = ngx_vslprintf(e->text_data, e->text_data + sizeof(e->text_data), fmt,
                      args);
    va_end(args);

    len = p - e->text_data;

    /* it is logged, too */

    ngx_http_glm_printable(e->text_data, len);

    /* a cut may have left half a character */

    for ( /* void */ ;
         len && ngx_http_glm_utf8(e->text_data, len, NULL) != NGX_OK;
         len--)
    {
        /* void */
    }

    e->text.data = e->text_data;
    e->text.len = len;

    ctx->error = e;

    return NGX_ERROR;
}


/* The engine is not there: says why, as far as it is known. */

ngx_int_t
ngx_http_glm_error_engine(ngx_http_glm_ctx_t *ctx)
{
    switch (ctx->peer->refused) {

    case GLM_REFUSE_LOADING:
        return ngx_http_glm_error(ctx, NGX_HTTP_SERVICE_UNAVAILABLE,
                                  "engine_loading", NULL,
                                  "The engine is loading the model.");

    case GLM_REFUSE_DRAINING:
        return ngx_http_glm_error(ctx, NGX_HTTP_SERVICE_UNAVAILABLE,
                                  "engine_draining", NULL,
                                  "The engine is shutting down.");

    case GLM_REFUSE_CLIENTS:
        return ngx_http_glm_error(ctx, NGX_HTTP_SERVICE_UNAVAILABLE,
                                  "server_is_overloaded", NULL,
                                  "The engine has too many clients.");

    default:
        return ngx_http_glm_error(ctx, NGX_HTTP_SERVICE_UNAVAILABLE,
                                  "engine_unavailable", NULL,
                                  "The engine is not available.");
    }
}


static const char *
ngx_http_glm_error_type(ngx_uint_t status)
{
    switch (status) {

    case NGX_HTTP_FORBIDDEN:
        return "request_forbidden";

    case NGX_HTTP_TOO_MANY_REQUESTS:
        return "rate_limit_error";

    case NGX_HTTP_NOT_IMPLEMENTED:
        return "not_implemented";

    case NGX_HTTP_BAD_GATEWAY:
    case NGX_HTTP_SERVICE_UNAVAILABLE:
        return "service_unavailable_error";

    case NGX_HTTP_GATEWAY_TIME_OUT:
        return "timeout";

    default:
        return status < 500 ? "invalid_request_error" : "server_error";
    }
}


void
ngx_http_glm_error_out(ngx_http_glm_out_t *out, ngx_http_glm_error_t *e)
{
    ngx_http_glm_lit(out, "{\"error\":{\"message\":");
    ngx_http_glm_put_string(out, e->text.data, e->text.len);
    ngx_http_glm_lit(out, ",\"type\":\"");
    ngx_http_glm_put_str(out, ngx_http_glm_error_type(e->status));
    ngx_http_glm_lit(out, "\",\"param\":");

    if (e->param && e->param[0]) {
        ngx_http_glm_put_string(out, (u_char *) e->param,
                                ngx_strlen(e->param));
    } else {
        ngx_http_glm_lit(out, "null");
    }

    ngx_http_glm_lit(out, ",\"code\":");

    if (e->code && e->code[0]) {
        ngx_http_glm_put_string(out, (u_char *) e->code, ngx_strlen(e->code));
    } else {
        ngx_http_glm_lit(out, "null");
    }

    ngx_http_glm_lit(out, "}}");
}


/* Sends ctx->error as an answer of its own; returns what to finalize with. */

ngx_int_t
ngx_http_glm_error_send(ngx_http_request_t *r, ngx_http_glm_ctx_t *ctx)
{
    ngx_str_t              value;
    ngx_uint_t             level;
    ngx_http_glm_error_t  *e;

    e = ctx->error;

    if (e == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;    /* no memory */
    }

    level = e->status < 500 || e->status == NGX_HTTP_NOT_IMPLEMENTED
            ? NGX_LOG_INFO : NGX_LOG_ERR;

    ngx_log_error(level, r->connection->log, 0,
                  "glm request ends with %ui: %V", e->status, &e->text);

    if (e->retry_after) {
        value.data = ngx_pnalloc(r->pool, NGX_INT_T_LEN);
        if (value.data == NULL) {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }

        value.len = ngx_sprintf(value.data, "%ui", e->retry_after)
                    - value.data;

        if (ngx_http_glm_header(r, "Retry-After", &value) != NGX_OK) {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }
    }

    if (e->status == NGX_HTTP_NOT_IMPLEMENTED) {
        ngx_str_set(&value, "false");

        if (ngx_http_glm_header(r, "x-should-retry", &value) != NGX_OK) {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }
    }

    ngx_http_glm_out_init(&ctx->out, r->pool);
    ngx_http_glm_error_out(&ctx->out, e);

    return ngx_http_glm_send(r, ctx, e->status, "application/json");
}


ngx_int_t
ngx_http_glm_header(ngx_http_request_t *r, const char *name, ngx_str_t *value)
{
    ngx_table_elt_t  *h;

    h = ngx_list_push(&r->headers_out.headers);
    if (h == NULL) {
        return NGX_ERROR;
    }

    h->hash = 1;
#if (nginx_version >= 1023000)
    h->next = NULL;
#endif
    h->key.data = (u_char *) name;
    h->key.len = ngx_strlen(name);
    h->lowcase_key = NULL;
    h->value = *value;

    return NGX_OK;
}


/* What every answer carries. */

ngx_int_t
ngx_http_glm_headers(ngx_http_request_t *r, ngx_http_glm_ctx_t *ctx)
{
    ngx_str_t    value;
    ngx_msec_t   ms;
    ngx_time_t  *tp;

    if (ngx_http_glm_header(r, "x-request-id", &ctx->request_id) != NGX_OK) {
        return NGX_ERROR;
    }

    tp = ngx_timeofday();
    ms = (tp->sec - r->start_sec) * 1000 + (tp->msec - r->start_msec);

    value.data = ngx_pnalloc(r->pool, NGX_INT_T_LEN);
    if (value.data == NULL) {
        return NGX_ERROR;
    }

    value.len = ngx_sprintf(value.data, "%M",
                            (ngx_msec_int_t) ms < 0 ? 0 : ms)
                - value.data;

    return ngx_http_glm_header(r, "openai-processing-ms", &value);
}


/* Sends what is in ctx->out as a whole answer. */

ngx_int_t
ngx_http_glm_send(ngx_http_request_t *r, ngx_http_glm_ctx_t *ctx,
    ngx_uint_t status, const char *type)
{
    ngx_int_t  rc;

    if (ctx->out.failed || ngx_http_glm_headers(r, ctx) != NGX_OK) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    r->headers_out.status = status;
    r->headers_out.content_length_n = ctx->out.size;
    r->headers_out.content_type.data = (u_char *) type;
    r->headers_out.content_type.len = ngx_strlen(type);
    r->headers_out.content_type_len = strcspn(type, ";");
    r->headers_out.content_type_lowcase = NULL;

    ctx->header_sent = 1;

    rc = ngx_http_send_header(r);

    if (rc == NGX_ERROR || rc > NGX_OK || r->header_only) {
        return rc;
    }

    return ngx_http_output_filter(r, ngx_http_glm_out_take(&ctx->out,
                                                           r == r->main, 0));
}


/*
 * nginx's own refusals in a location with glm_pass, made JSON: the page that
 * ngx_http_special_response_handler() sends has no module context.
 */

static ngx_int_t
ngx_http_glm_error_header_filter(ngx_http_request_t *r)
{
    ngx_uint_t                status;
    ngx_http_glm_ctx_t       *ctx;
    ngx_http_glm_loc_conf_t  *glcf;

    glcf = ngx_http_get_module_loc_conf(r, ngx_http_glm_module);
    status = r->headers_out.status;

    if (glcf->peer == NULL || !glcf->json_errors || r != r->main
        || r->err_status == 0 || status < 400 || r->header_only
        || (r->error_page && r->internal))
    {
        return ngx_http_next_header_filter(r);
    }

    ctx = ngx_http_glm_get_ctx(r);

    if (ctx == NULL || ctx->header_sent) {
        return ngx_http_next_header_filter(r);
    }

    switch (status) {

    case NGX_HTTP_REQUEST_ENTITY_TOO_LARGE:
        (void) ngx_http_glm_error(ctx, status, "request_too_large", NULL,
                                  "The request body is too large.");
        break;

    case NGX_HTTP_TOO_MANY_REQUESTS:
        (void) ngx_http_glm_error(ctx, status, "rate_limit_exceeded", NULL,
                                  "Too many requests.");
        break;

    case NGX_HTTP_SERVICE_UNAVAILABLE:
        (void) ngx_http_glm_error(ctx, status, "server_is_overloaded", NULL,
                                  "The server is overloaded.");
        break;

    default:
        (void) ngx_http_glm_error(ctx, status, NULL, NULL,
                                  status < 500
                                  ? "The request was refused (%ui)."
                                  : "The request failed (%ui).", status);
    }

    if (ctx->error == NULL || ngx_http_glm_headers(r, ctx) != NGX_OK) {
        return NGX_ERROR;
    }

    ngx_http_glm_out_init(&ctx->out, r->pool);
    ngx_http_glm_error_out(&ctx->out, ctx->error);

    if (ctx->out.failed) {
        return NGX_ERROR;
    }

    r->headers_out.content_length_n = ctx->out.size;
    ngx_str_set(&r->headers_out.content_type, "application/json");
    r->headers_out.content_type_len = r->headers_out.content_type.len;
    r->headers_out.content_type_lowcase = NULL;

    ctx->header_sent = 1;
    ctx->replace = 1;

    return ngx_http_next_header_filter(r);
}


static ngx_int_t
ngx_http_glm_error_body_filter(ngx_http_request_t *r, ngx_chain_t *in)
{
    ngx_chain_t         *cl;
    ngx_http_glm_ctx_t  *ctx;

    ctx = ngx_http_get_module_ctx(r, ngx_http_glm_module);

    if (ctx == NULL || !ctx->replace || in == NULL) {
        return ngx_http_next_body_filter(r, in);
    }

    /* nginx's page comes in one chain and is dropped */

    for (cl = in; cl; cl = cl->next) {
        cl->buf->pos = cl->buf->last;
    }

    ctx->replace = 0;

    return ngx_http_next_body_filter(r, ngx_http_glm_out_take(&ctx->out, 1,
                                                              0));
}


ngx_int_t
ngx_http_glm_error_filter_init(ngx_conf_t *cf)
{
    ngx_http_next_header_filter = ngx_http_top_header_filter;
    ngx_http_top_header_filter = ngx_http_glm_error_header_filter;

    ngx_http_next_body_filter = ngx_http_top_body_filter;
    ngx_http_top_body_filter = ngx_http_glm_error_body_filter;

    return NGX_OK;
}
