
#include "ngx_http_glm_module.h"


#define NGX_HTTP_GLM_SEQ_TRIES   1000


static void ngx_http_glm_put_model(ngx_http_glm_out_t *out,
    ngx_http_glm_peer_t *peer);
static ngx_int_t ngx_http_glm_ready(ngx_http_glm_ctx_t *ctx);


/*
 * A consistent copy of the engine's numbers; what an older engine does not
 * know is zero.  Bounded: a writer that died inside leaves seq odd.
 */

ngx_int_t
ngx_http_glm_stats(ngx_http_glm_peer_t *peer, glm_wire_stats_t *st)
{
    size_t             size;
    uint32_t           seq;
    ngx_uint_t         i;
    const uint32_t    *shared;

    if (peer->stats == NULL) {
        return NGX_ERROR;
    }

    shared = (const uint32_t *) peer->stats;
    size = ngx_min(peer->stats_size, sizeof(glm_wire_stats_t));

    for (i = 0; i < NGX_HTTP_GLM_SEQ_TRIES; i++) {

        seq = __atomic_load_n(shared, __ATOMIC_ACQUIRE);

        if (seq & 1) {
            ngx_cpu_pause();
            continue;
        }

        ngx_memzero(st, sizeof(glm_wire_stats_t));
        ngx_memcpy(st, peer->stats, size);

        __atomic_thread_fence(__ATOMIC_ACQUIRE);

        if (__atomic_load_n(shared, __ATOMIC_RELAXED) == seq) {

            if (st->size < size) {
                if (st->size < offsetof(glm_wire_stats_t, requests)) {
                    return NGX_ERROR;
                }

                ngx_memzero((u_char *) st + st->size,
                            sizeof(glm_wire_stats_t) - st->size);
            }

            return NGX_OK;
        }
    }

    return NGX_ERROR;
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
ngx_http_glm_put_model(ngx_http_glm_out_t *out, ngx_http_glm_peer_t *peer)
{
    ngx_http_glm_lit(out, "{\"id\":");
    ngx_http_glm_put_string(out, peer->model.data, peer->model.len);
    ngx_http_glm_lit(out, ",\"object\":\"model\",\"created\":");
    ngx_http_glm_put_int(out, peer->welcome.created);
    ngx_http_glm_lit(out, ",\"owned_by\":\"glm\",\"root\":");
    ngx_http_glm_put_string(out, peer->model.data, peer->model.len);
    ngx_http_glm_lit(out, ",\"parent\":null,\"max_model_len\":");
    ngx_http_glm_put_int(out, peer->welcome.max_seq);
    ngx_http_glm_lit(out, ",\"permission\":[]}");
}


ngx_int_t
ngx_http_glm_models(ngx_http_request_t *r, ngx_http_glm_ctx_t *ctx)
{
    ngx_str_t            *id;
    ngx_http_glm_peer_t  *peer;

    peer = ctx->peer;
    id = &ctx->model_id;

    if (ngx_http_glm_ready(ctx) != NGX_OK) {
        return ngx_http_glm_error_send(r, ctx);
    }

    if (id->len == 0) {
        ngx_http_glm_lit(&ctx->out, "{\"object\":\"list\",\"data\":[");
        ngx_http_glm_put_model(&ctx->out, peer);
        ngx_http_glm_lit(&ctx->out, "]}");

        return ngx_http_glm_send(r, ctx, NGX_HTTP_OK, "application/json");
    }

    if (id->len != peer->model.len
        || ngx_memcmp(id->data, peer->model.data, id->len) != 0)
    {
        (void) ngx_http_glm_error(ctx, NGX_HTTP_NOT_FOUND, "model_not_found",
                                  "model", "The model does not exist, this "
                                  "is \"%V\".", &peer->model);
        return ngx_http_glm_error_send(r, ctx);
    }

    ngx_http_glm_put_model(&ctx->out, peer);

    return ngx_http_glm_send(r, ctx, NGX_HTTP_OK, "application/json");
}


/* The worker's own view, for people: /metrics is for machines. */

ngx_int_t
ngx_http_glm_status(ngx_http_request_t *r, ngx_http_glm_ctx_t *ctx)
{
    ngx_http_glm_out_t   *out;
    ngx_http_glm_peer_t  *peer;
    glm_wire_stats_t      st;

    static const char  *states[] = { "absent", "connecting", "ready" };

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

    ngx_http_glm_lit(out, "{\"running\":");
    ngx_http_glm_put_int(out, st.running);
    ngx_http_glm_lit(out, ",\"waiting\":");
    ngx_http_glm_put_int(out, st.waiting);
    ngx_http_glm_lit(out, ",\"paused\":");
    ngx_http_glm_put_int(out, st.paused);
    ngx_http_glm_lit(out, ",\"kv_pages_used\":");
    ngx_http_glm_put_int(out, st.kv_pages_used);
    ngx_http_glm_lit(out, ",\"kv_pages_total\":");
    ngx_http_glm_put_int(out, st.kv_pages_total);
    ngx_http_glm_lit(out, ",\"clients\":");
    ngx_http_glm_put_int(out, st.clients);
    ngx_http_glm_lit(out, ",\"requests\":");
    ngx_http_glm_put_int(out, st.requests);
    ngx_http_glm_lit(out, ",\"refused\":");
    ngx_http_glm_put_int(out, st.refused);
    ngx_http_glm_lit(out, "}}");

    return ngx_http_glm_send(r, ctx, NGX_HTTP_OK, "application/json");
}
