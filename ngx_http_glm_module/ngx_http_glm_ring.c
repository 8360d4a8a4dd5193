
#include "ngx_http_glm_module.h"


#define NGX_HTTP_GLM_RECORDS   1024        /* read in one turn */


static ngx_int_t ngx_http_glm_ring_record(ngx_http_glm_peer_t *peer);
static ngx_int_t ngx_http_glm_ring_message(ngx_http_glm_peer_t *peer,
    ngx_http_glm_slot_t *slot, uint16_t type, u_char *p, size_t len);
static void ngx_http_glm_ring_drop(ngx_http_glm_peer_t *peer,
    ngx_http_glm_slot_t *slot);
static void ngx_http_glm_ring_free(ngx_http_glm_peer_t *peer,
    ngx_http_glm_slot_t *slot);
static ngx_int_t ngx_http_glm_ring_part(ngx_http_glm_peer_t *peer,
    ngx_http_glm_slot_t *slot, glm_rec_t *rec, u_char *p, size_t len);
static void ngx_http_glm_ring_end(ngx_http_glm_peer_t *peer,
    ngx_http_glm_call_t *call);
static ngx_int_t ngx_http_glm_ring_control(ngx_http_glm_peer_t *peer,
    uint16_t type, uint64_t id, void *payload, uint32_t len);
static void ngx_http_glm_ring_starved(ngx_http_glm_peer_t *peer);


void
ngx_http_glm_ring_bell(ngx_http_glm_peer_t *peer)
{
    ngx_err_t        err;
    glm_sock_head_t  bell;

    bell.magic = GLM_WIRE_MAGIC;
    bell.type = GLM_SOCK_BELL;
    bell.reserved = 0;

    if (send(peer->connection->fd, &bell, sizeof(glm_sock_head_t),
             MSG_DONTWAIT|MSG_NOSIGNAL)
        != -1)
    {
        return;
    }

    err = ngx_socket_errno;

    /* EAGAIN: bells are pending already; EPIPE: end of file is on its way */

    if (err != NGX_EAGAIN && err != NGX_EPIPE && err != NGX_ECONNRESET) {
        ngx_log_error(NGX_LOG_ERR, ngx_cycle->log, err,
                      "send() to engine \"%V\" failed", &peer->name);
    }
}


/* The engine broke the wire.  It is dropped in an event of its own. */

void
ngx_http_glm_ring_fail(ngx_http_glm_peer_t *peer, const char *why)
{
    if (peer->failed) {
        return;
    }

    ngx_log_error(NGX_LOG_ERR, ngx_cycle->log, 0,
                  "engine \"%V\" broke the protocol: %s", &peer->name, why);

    peer->failed = 1;

    ngx_post_event(peer->connection->read, &ngx_posted_events);
}


/*
 * NGX_OK: empty, and the engine will ring; NGX_AGAIN: more is there;
 * NGX_ERROR: the peer has failed.
 */

ngx_int_t
ngx_http_glm_ring_drain(ngx_http_glm_peer_t *peer)
{
    int         rc;
    ngx_int_t   result;
    ngx_uint_t  n;

    result = NGX_AGAIN;

    for (n = 0; n < NGX_HTTP_GLM_RECORDS; n++) {

        rc = glm_ring_read(&peer->complete, peer->record,
                           GLM_WIRE_MAX_RECORD);

        if (rc == GLM_RING_EMPTY) {
            rc = glm_ring_sleep(&peer->complete);

            if (rc == 1) {
                result = NGX_OK;
                break;
            }

            if (rc == 0) {
                continue;
            }
        }

        if (rc == GLM_RING_BROKEN) {
            ngx_http_glm_ring_fail(peer, "the completion ring is broken");
            return NGX_ERROR;
        }

        if (ngx_http_glm_ring_record(peer) != NGX_OK) {
            return NGX_ERROR;
        }
    }

    if (glm_ring_release(&peer->complete)) {
        ngx_http_glm_ring_bell(peer);
    }

    return result;
}


static ngx_int_t
ngx_http_glm_ring_record(ngx_http_glm_peer_t *peer)
{
    u_char               *p;
    size_t                len;
    uint32_t              i;
    glm_rec_t             rec;
    ngx_int_t             rc;
    ngx_http_glm_call_t  *call;
    ngx_http_glm_slot_t  *slot;

    ngx_memcpy(&rec, peer->record, sizeof(glm_rec_t));

    i = (uint32_t) rec.id;

    if (i >= peer->nslots || peer->slots[i].id != rec.id || rec.id == 0) {
        ngx_http_glm_ring_fail(peer, "a record has an unknown id");
        return NGX_ERROR;
    }

    if (rec.type < GLM_MSG_ACCEPTED || rec.type > GLM_MSG_FILLED
        || (rec.flags & ~GLM_REC_MORE))
    {
        ngx_http_glm_ring_fail(peer, "a record has an unknown type or flag");
        return NGX_ERROR;
    }

    slot = &peer->slots[i];
    call = slot->call;

    p = peer->record + sizeof(glm_rec_t);
    len = rec.size - sizeof(glm_rec_t);

    if (call && GLM_MSG_COSTS(rec.type)) {

        /* what has been granted bounds the memory of a slow client */

        if (call->window <= 0) {
            ngx_http_glm_ring_fail(peer, "a record came without a window");
            return NGX_ERROR;
        }

        call->window -= rec.size;
        call->owed += rec.size;
    }

    if (slot->type || (rec.flags & GLM_REC_MORE)) {

        if (slot->type && slot->type != rec.type) {
            ngx_http_glm_ring_fail(peer, "a message changes its type");
            return NGX_ERROR;
        }

        if (call) {
            rc = ngx_http_glm_ring_part(peer, slot, &rec, p, len);
            if (rc != NGX_OK) {
                return rc;
            }

            p = slot->part.start;
            len = slot->part.len;
        }

        slot->type = rec.type;

        if (rec.flags & GLM_REC_MORE) {

            /* the window must not end in the middle of a message */

            if (call) {
                ngx_http_glm_ring_grant(call);
            }

            return NGX_OK;
        }
    }

    return ngx_http_glm_ring_message(peer, slot, rec.type, p, len);
}


static ngx_int_t
ngx_http_glm_ring_message(ngx_http_glm_peer_t *peer,
    ngx_http_glm_slot_t *slot, uint16_t type, u_char *p, size_t len)
{
    ngx_http_glm_call_t  *call;

    call = slot->call;

    if (call && ngx_http_glm_reply(call, type, p, len) != NGX_OK) {
        return NGX_ERROR;
    }

    slot->type = 0;
    ngx_http_glm_ring_drop(peer, slot);

    if (type != GLM_MSG_DONE && type != GLM_MSG_ERROR) {
        return NGX_OK;
    }

    if (call) {
        if (call->starved) {
            ngx_queue_remove(&call->queue);
            call->starved = 0;
        }

        call->peer = NULL;
    }

    ngx_http_glm_ring_free(peer, slot);

    return NGX_OK;
}


/* Forgets a message, or its beginning. */

static void
ngx_http_glm_ring_drop(ngx_http_glm_peer_t *peer, ngx_http_glm_slot_t *slot)
{
    if (slot->part.start) {
        peer->assembled -= slot->part.size;
        ngx_free(slot->part.start);
        ngx_memzero(&slot->part, sizeof(ngx_http_glm_blob_t));
    }
}


static ngx_int_t
ngx_http_glm_ring_part(ngx_http_glm_peer_t *peer, ngx_http_glm_slot_t *slot,
    glm_rec_t *rec, u_char *p, size_t len)
{
    size_t                size;
    u_char               *start;
    ngx_http_glm_blob_t  *part;

    part = &slot->part;

    if (len > part->size - part->len) {

        if (len > NGX_HTTP_GLM_MAX_MESSAGE - part->len) {
            ngx_http_glm_ring_fail(peer, "a message is too long");
            return NGX_ERROR;
        }

        size = ngx_max(part->size * 2, part->len + len);

        if (size - part->size > NGX_HTTP_GLM_MAX_ASSEMBLY - peer->assembled) {
            ngx_http_glm_ring_fail(peer, "too many unfinished messages");
            return NGX_ERROR;
        }

        start = ngx_alloc(size, ngx_cycle->log);
        if (start == NULL) {
            ngx_http_glm_ring_fail(peer, "no memory for a message");
            return NGX_ERROR;
        }

        if (part->start) {
            ngx_memcpy(start, part->start, part->len);
            ngx_free(part->start);
        }

        peer->assembled += size - part->size;
        part->start = start;
        part->size = size;
    }

    ngx_memcpy(part->start + part->len, p, len);
    part->len += len;

    return NGX_OK;
}


static void
ngx_http_glm_ring_free(ngx_http_glm_peer_t *peer, ngx_http_glm_slot_t *slot)
{
    ngx_http_glm_ring_drop(peer, slot);

    slot->call = NULL;
    slot->id = 0;
    slot->type = 0;
    slot->next = peer->free;

    peer->free = slot - peer->slots;
    peer->nlive--;
}


void
ngx_http_glm_ring_dirty(ngx_http_glm_peer_t *peer, ngx_http_glm_ctx_t *ctx)
{
    if (!ctx->queued) {
        ngx_queue_insert_tail(&peer->dirty, &ctx->queue);
        ctx->queued = 1;
    }
}


/* One write for all that came for a request in this turn. */

void
ngx_http_glm_ring_flush(ngx_http_glm_peer_t *peer)
{
    ngx_queue_t         *q;
    ngx_http_glm_ctx_t  *ctx;

    while (!ngx_queue_empty(&peer->dirty)) {
        q = ngx_queue_head(&peer->dirty);
        ctx = ngx_queue_data(q, ngx_http_glm_ctx_t, queue);

        ngx_queue_remove(q);
        ctx->queued = 0;

        ngx_http_glm_wake(ctx);
    }

    if (!peer->failed && peer->state == NGX_HTTP_GLM_PEER_READY) {
        ngx_http_glm_ring_starved(peer);
    }
}


/* The client needs no more of it: the slot waits for DONE alone. */

void
ngx_http_glm_ring_detach(ngx_http_glm_call_t *call)
{
    ngx_http_glm_peer_t  *peer;
    ngx_http_glm_slot_t  *slot;

    peer = call->peer;
    call->peer = NULL;

    if (call->starved) {
        ngx_queue_remove(&call->queue);
        call->starved = 0;
    }

    slot = &peer->slots[(uint32_t) call->id];
    slot->call = NULL;

    ngx_http_glm_ring_drop(peer, slot);
    ngx_http_glm_ring_end(peer, call);
}


/* What has come is enough: DONE follows. */

void
ngx_http_glm_ring_cancel(ngx_http_glm_call_t *call)
{
    if (call->peer) {
        ngx_http_glm_ring_end(call->peer, call);
    }
}


static void
ngx_http_glm_ring_end(ngx_http_glm_peer_t *peer, ngx_http_glm_call_t *call)
{
    if (peer->failed || call->cancelled) {
        return;
    }

    call->cancelled = 1;

    /* SUBMIT has left room for it */

    if (ngx_http_glm_ring_control(peer, GLM_MSG_CANCEL, call->id, NULL, 0)
        != NGX_OK)
    {
        ngx_http_glm_ring_fail(peer, "no room for CANCEL");
    }
}


/* Grants again what has been read and passed on. */

void
ngx_http_glm_ring_grant(ngx_http_glm_call_t *call)
{
    ngx_int_t             rc;
    glm_msg_window_t      window;
    ngx_http_glm_peer_t  *peer;

    peer = call->peer;

    if (call->owed == 0 || call->starved || peer->failed) {
        return;
    }

    /* what is kept for CANCEL is not for this */

    if (glm_ring_room(&peer->submit)
        < (int64_t) (peer->nlive + 4) * (int64_t) sizeof(glm_rec_t) + 64)
    {
        rc = NGX_AGAIN;

    } else {
        window.size = sizeof(glm_msg_window_t);
        window.reserved = 0;
        window.bytes = call->owed;

        rc = ngx_http_glm_ring_control(peer, GLM_MSG_WINDOW, call->id,
                                       &window, sizeof(glm_msg_window_t));
    }

    if (rc == NGX_OK) {
        call->window += call->owed;
        call->owed = 0;

    } else if (rc == NGX_AGAIN) {
        ngx_queue_insert_tail(&peer->starved, &call->queue);
        call->starved = 1;
        glm_ring_want_room(&peer->submit);

    } else {
        ngx_http_glm_ring_fail(peer, "the submission ring is broken");
    }
}


static ngx_int_t
ngx_http_glm_ring_control(ngx_http_glm_peer_t *peer, uint16_t type,
    uint64_t id, void *payload, uint32_t len)
{
    int        rc;
    void      *p;
    glm_rec_t  rec;

    rec.size = sizeof(glm_rec_t) + len;
    rec.type = type;
    rec.flags = 0;
    rec.id = id;

    rc = glm_ring_reserve(&peer->submit, rec.size, &p);

    if (rc == GLM_RING_FULL) {
        glm_ring_abort(&peer->submit);
        return NGX_AGAIN;
    }

    if (rc != GLM_RING_OK) {
        return NGX_ERROR;
    }

    p = ngx_cpymem(p, &rec, sizeof(glm_rec_t));

    if (len) {
        ngx_memcpy(p, payload, len);
    }

    if (glm_ring_publish(&peer->submit)) {
        ngx_http_glm_ring_bell(peer);
    }

    return NGX_OK;
}


static void
ngx_http_glm_ring_starved(ngx_http_glm_peer_t *peer)
{
    ngx_uint_t            n;
    ngx_queue_t          *q;
    ngx_http_glm_call_t  *call;

    /* each one is tried once: what finds no room again goes to the tail */

    for (n = peer->nlive; n && !ngx_queue_empty(&peer->starved); n--) {
        q = ngx_queue_head(&peer->starved);
        call = ngx_queue_data(q, ngx_http_glm_call_t, queue);

        ngx_queue_remove(q);
        call->starved = 0;

        ngx_http_glm_ring_grant(call);

        if (call->starved) {
            return;
        }
    }
}
