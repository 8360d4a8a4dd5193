
#include "ngx_http_glm_module.h"


static void ngx_http_glm_put_model(ngx_http_glm_out_t *out,
    ngx_http_glm_peer_t *peer, ngx_str_t *id);
static ngx_int_t ngx_http_glm_ready(ngx_http_glm_ctx_t *ctx);


/*
 * A consistent copy of the engine's numbers; what an older engine does not
 * know is zero.  Bounded: a writer that died inside leaves seq odd.
 */

ngx_int_t
ngx_http_glm_stats(ngx_http_glm_peer_t *peer, glm_wire_stats_t *st)
{
    if (peer->stats == NULL
        || glm_stats_read(peer->stats, peer->stats_size, st) != 0
        || st->size < offsetof(glm_wire_stats_t, requests))
    {
        return NGX_ERROR;
    }

    return NGX_OK;
}


/* The step thread stands still though there is work. */

ngx_uint_t
ngx_http_glm_stale(ngx_http_glm_peer_t *peer)
{
    uint64_t          now;
    struct timespec   ts;
    glm_wire_stats_t  st;

    if (peer->state != NGX_HTTP_GLM_PEER_READY
        || ngx_http_glm_stats(peer, &st) != NGX_OK)
    {
        return 0;
    }

    (void) clock_gettime(CLOCK_MONOTONIC, &ts);
    now = (uint64_t) ts.tv_sec * 1000000000 + ts.tv_nsec;

    if (now < st.heartbeat_ns
        || now - st.heartbeat_ns < NGX_HTTP_GLM_STALE * 1000000ULL)
    {
        return 0;
    }

    /* work that the engine has seen, or has not even looked at */

    return st.running || st.waiting
           || (peer->nlive
               && ngx_current_msec - peer->busy >= NGX_HTTP_GLM_STALE);
}


static ngx_int_t
ngx_http_glm_ready(ngx_http_glm_ctx_t *ctx)
{
    if (ngx_http_glm_attach(ctx->peer, ctx->request->connection->log)
        != NGX_OK)
    {
        return ngx_http_glm_error_engine(ctx);
    }

    return NGX_OK;
}


ngx_int_t
ngx_http_glm_health(ngx_http_request_t *r, ngx_http_glm_ctx_t *ctx)
{
    glm_wire_stats_t  st;

    if (ngx_http_glm_ready(ctx) != NGX_OK) {
        return ngx_http_glm_error_send(r, ctx);
    }

    if (ngx_http_glm_stats(ctx->peer, &st) == NGX_OK && st.draining) {
        (void) ngx_http_glm_error(ctx, NGX_HTTP_SERVICE_UNAVAILABLE,
                                  "engine_draining", NULL,
                                  "The engine is shutting down.");
        return ngx_http_glm_error_send(r, ctx);
    }

    if (ngx_http_glm_stale(ctx->peer)) {
        (void) ngx_http_glm_error(ctx, NGX_HTTP_SERVICE_UNAVAILABLE,
                                  "engine_unavailable", NULL,
                                  "The engine makes no progress.");
        return ngx_http_glm_error_send(r, ctx);
    }

    ngx_http_glm_lit(&ctx->out, "{\"status\":\"ok\",\"model\":");
    ngx_http_glm_put_string(&ctx->out, ctx->peer->model.data,
                            ctx->peer->model.len);
    ngx_http_glm_lit(&ctx->out, "}");

    return ngx_http_glm_send(r, ctx, NGX_HTTP_OK, "application/json");
}


ngx_int_t
ngx_http_glm_version(ngx_http_request_t *r, ngx_http_glm_ctx_t *ctx)
{
    ngx_http_glm_lit(&ctx->out, "{\"version\":\"" NGX_HTTP_GLM_VERSION
                     "\",\"abi\":");
    ngx_http_glm_put_int(&ctx->out, GLM_WIRE_ABI);
    ngx_http_glm_lit(&ctx->out, "}");

    return ngx_http_glm_send(r, ctx, NGX_HTTP_OK, "application/json");
}


static void
ngx_http_glm_put_model(ngx_http_glm_out_t *out, ngx_http_glm_peer_t *peer,
    ngx_str_t *id)
{
    ngx_http_glm_lit(out, "{\"id\":");
    ngx_http_glm_put_string(out, id->data, id->len);
    ngx_http_glm_lit(out, ",\"object\":\"model\",\"created\":");
    ngx_http_glm_put_int(out, peer->welcome.created);
    ngx_http_glm_lit(out, ",\"owned_by\":\"glm\",\"root\":");
    ngx_http_glm_put_string(out, peer->model.data, peer->model.len);
    ngx_http_glm_lit(out, ",\"parent\":null,\"max_model_len\":");
    ngx_http_glm_put_int(out, peer->welcome.max_seq);
    ngx_http_glm_lit(out, ",\"permission\":[]}");
}


/* Is it the served model's name, or one of glm_model_alias? */

ngx_uint_t
ngx_http_glm_is_model(ngx_http_request_t *r, ngx_str_t *served,
    ngx_str_t *name)
{
    ngx_str_t                *alias;
    ngx_uint_t                i;
    ngx_http_glm_loc_conf_t  *glcf;

    if (name->len == served->len
        && ngx_memcmp(name->data, served->data, name->len) == 0)
    {
        return 1;
    }

    glcf = ngx_http_get_module_loc_conf(r, ngx_http_glm_module);

    if (glcf->aliases == NULL) {
        return 0;
    }

    alias = glcf->aliases->elts;

    for (i = 0; i < glcf->aliases->nelts; i++) {
        if (name->len == alias[i].len
            && ngx_memcmp(name->data, alias[i].data, name->len) == 0)
        {
            return 1;
        }
    }

    return 0;
}


ngx_int_t
ngx_http_glm_models(ngx_http_request_t *r, ngx_http_glm_ctx_t *ctx)
{
    ngx_str_t                *id, *alias;
    ngx_uint_t                i;
    ngx_http_glm_peer_t      *peer;
    ngx_http_glm_loc_conf_t  *glcf;

    peer = ctx->peer;
    id = &ctx->model_id;
    glcf = ngx_http_get_module_loc_conf(r, ngx_http_glm_module);

    if (ngx_http_glm_ready(ctx) != NGX_OK) {
        return ngx_http_glm_error_send(r, ctx);
    }

    if (id->len == 0) {
        ngx_http_glm_lit(&ctx->out, "{\"object\":\"list\",\"data\":[");
        ngx_http_glm_put_model(&ctx->out, peer, &peer->model);

        if (glcf->aliases) {
            alias = glcf->aliases->elts;

            for (i = 0; i < glcf->aliases->nelts; i++) {
                ngx_http_glm_lit(&ctx->out, ",");
                ngx_http_glm_put_model(&ctx->out, peer, &alias[i]);
            }
        }

        ngx_http_glm_lit(&ctx->out, "]}");

        return ngx_http_glm_send(r, ctx, NGX_HTTP_OK, "application/json");
    }

    if (!ngx_http_glm_is_model(r, &peer->model, id)) {
        (void) ngx_http_glm_error(ctx, NGX_HTTP_NOT_FOUND, "model_not_found",
                                  "model", "The model does not exist, this "
                                  "is \"%V\".", &peer->model);
        return ngx_http_glm_error_send(r, ctx);
    }

    ngx_http_glm_put_model(&ctx->out, peer, id);

    return ngx_http_glm_send(r, ctx, NGX_HTTP_OK, "application/json");
}


/* The worker's own view, for people: /metrics is for machines. */

ngx_int_t
ngx_http_glm_status(ngx_http_request_t *r, ngx_http_glm_ctx_t *ctx)
{
    u_char               *p;
    ngx_uint_t            i;
    ngx_http_glm_out_t   *out;
    ngx_http_glm_peer_t  *peer;
    glm_wire_stats_t      st;

    static const char  *states[] = { "absent", "connecting", "ready" };

    static const struct {
        const char       *name;
        size_t            offset;
        ngx_uint_t        wide;
    } numbers[] = {
        { "running", offsetof(glm_wire_stats_t, running), 0 },
        { "waiting", offsetof(glm_wire_stats_t, waiting), 0 },
        { "paused", offsetof(glm_wire_stats_t, paused), 0 },
        { "kv_pages_used", offsetof(glm_wire_stats_t, kv_pages_used), 0 },
        { "kv_pages_total", offsetof(glm_wire_stats_t, kv_pages_total), 0 },
        { "clients", offsetof(glm_wire_stats_t, clients), 0 },
        { "requests", offsetof(glm_wire_stats_t, requests), 1 },
        { "refused", offsetof(glm_wire_stats_t, refused), 1 }
    };

    out = &ctx->out;
    peer = ctx->peer;

    ngx_http_glm_lit(out, "{\"engine\":");
    ngx_http_glm_put_string(out, peer->name.data, peer->name.len);
    ngx_http_glm_lit(out, ",\"state\":\"");
    ngx_http_glm_put_str(out, states[peer->state]);
    ngx_http_glm_lit(out, "\",\"worker\":{\"pid\":");
    ngx_http_glm_put_int(out, ngx_pid);
    ngx_http_glm_lit(out, ",\"live\":");
    ngx_http_glm_put_int(out, peer->nlive);
    ngx_http_glm_lit(out, "},\"statistics\":");

    if (ngx_http_glm_stats(peer, &st) != NGX_OK) {
        ngx_http_glm_lit(out, "null}");
        return ngx_http_glm_send(r, ctx, NGX_HTTP_OK, "application/json");
    }

    for (i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        p = (u_char *) &st + numbers[i].offset;

        ngx_http_glm_put_str(out, i ? ",\"" : "{\"");
        ngx_http_glm_put_str(out, numbers[i].name);
        ngx_http_glm_lit(out, "\":");
        ngx_http_glm_put_int(out, numbers[i].wide ? *(uint64_t *) p
                                                  : *(uint32_t *) p);
    }

    ngx_http_glm_lit(out, "}}");

    return ngx_http_glm_send(r, ctx, NGX_HTTP_OK, "application/json");
}
