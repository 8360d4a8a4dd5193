/*
 * ring_submit: the submission ring's only reader.  Copies records out, puts
 * messages together within bounds, and hands requests to the engine.  What no
 * correct client sends drops the client; what only this engine cannot do is an
 * ERROR for that request.  I/O thread.
 */
#include "ring_impl.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* Work for one client before the next one's turn. */
#define TURN_RECORDS  64
#define TURN_BYTES    (256 * 1024)

static const glm_refusal_t  detached = {
    .status = 503, .code = "engine_draining", .retry_after = 1,
    .text = "the engine is shutting down",
};
static const glm_refusal_t  too_much = {
    .status = 503, .code = "server_is_overloaded", .retry_after = 1,
    .text = "too many bytes of prompts wait in the engine for this client",
};
const glm_refusal_t  glm_no_request = {
    .status = 503, .code = "server_is_overloaded", .retry_after = 1,
    .text = "the engine has no memory for this request",
};

/* ---- live requests ---- */

static unsigned
hash(uint64_t id)
{
    return (unsigned) ((id * 0x9e3779b97f4a7c15u) >> 56) % GLM_HASH_SIZE;
}

glm_live_t *
glm_live_find(glm_conn_t *c, uint64_t id)
{
    glm_live_t  *l;

    for (l = c->hash[hash(id)]; l != NULL; l = l->hash_next) {
        if (l->id == id) return l;
    }
    return NULL;
}

static glm_live_t *
live_new(glm_conn_t *c, uint64_t id, size_t held)
{
    unsigned     h = hash(id);
    glm_live_t  *l = calloc(1, sizeof(*l));

    if (l == NULL) return NULL;
    l->client = c;
    l->id = id;
    l->held = held;
    l->hash_next = c->hash[h];
    c->hash[h] = l;
    c->nlive++;
    c->held += held;
    atomic_fetch_add(&c->s->nlive, 1);
    return l;
}

/* client.lock held.  A request may be made ready while it is being ended. */
static void
unready(glm_live_t *l)
{
    glm_conn_t  *c = l->client;
    glm_live_t  *p, *before = NULL;

    for (p = c->ready; p != l; p = p->ready_next) before = p;
    if (before == NULL) c->ready = l->ready_next;
    else before->ready_next = l->ready_next;
    if (c->ready_last == l) c->ready_last = before;
}

void
glm_live_free(glm_live_t *l)
{
    glm_conn_t   *c = l->client;
    glm_live_t  **p = &c->hash[hash(l->id)];

    while (*p != l) p = &(*p)->hash_next;
    *p = l->hash_next;
    c->nlive--;
    c->held -= l->held;
    if (l->paused_at) c->npaused--;

    pthread_mutex_lock(&c->lock);
    if (l->ready) unready(l);
    glm_outbox_free(&l->out);
    glm_live_charge(l);
    pthread_mutex_unlock(&c->lock);

    atomic_fetch_sub(&c->s->nlive, 1);
    glm_wbuf_free(&l->msg);
    glm_submit_free(&l->sub);
    free(l);
}

/* ---- SUBMIT ---- */

static uint64_t
deadline(uint64_t us)
{
    uint64_t  now = glm_server_now();

    if (us == 0) return 0;
    return us < (UINT64_MAX - now) / 1000 ? now + us * 1000 : UINT64_MAX;
}

/* The exact name of the eos token, and nothing else, is that token. */
static void
eos_by_name(glm_server_t *s, glm_submit_t *sub)
{
    size_t       n;
    const char  *name;
    glm_req_t   *r = &sub->req;

    if (!sub->eos_text || r->op != GLM_OP_TOKENIZE || s->tokenizer == NULL || s->eos < 0) return;
    if (r->nseg != 1 || r->seg[0].kind != GLM_SEG_TEXT) return;
    name = glm_token_name(s->tokenizer, s->eos, &n);
    if (n == 0 || n != r->seg[0].n || memcmp(name, r->seg[0].text, n) != 0) return;
    r->seg = &s->eos_seg;
    r->add_special = 0;
}

glm_req_t *
glm_live_start(glm_live_t *l)
{
    glm_server_t  *s = l->client->s;
    glm_req_t     *r = &l->sub.req;

    r->owner = l;
    r->sink = &s->sink;
    r->deadline = deadline(l->sub.deadline_us);
    eos_by_name(s, &l->sub);
    l->submitted = 1;
    return r;
}

static int
drop(glm_conn_t *c, const char *why)
{
    glm_conn_drop(c, why);
    return -1;
}

/* A whole SUBMIT; takes msg. */
static int
submit(glm_conn_t *c, uint64_t id, glm_wbuf_t *msg)
{
    int                   rc;
    char                  why[600];
    glm_live_t           *l;
    glm_refusal_t         refusal;
    const glm_refusal_t  *no = NULL;
    glm_server_t         *s = c->s;

    l = live_new(c, id, msg->n);
    if (l == NULL) {
        glm_wbuf_free(msg);
        return drop(c, "no memory for a request");
    }
    rc = glm_wire_decode_submit(&l->sub, msg->p, msg->n, &s->limits, &refusal);
    l->sub.req.owner = l;

    if (rc == GLM_EINVAL) {
        snprintf(why, sizeof(why), "sent %s", refusal.text);
        return drop(c, why);
    }
    l->window = l->sub.window > INT64_MAX / 2 ? INT64_MAX / 2 : (int64_t) l->sub.window;
    if (rc == GLM_ENOMEM) no = &glm_no_request;
    else if (rc != 0) no = &refusal;
    else if (c->held > GLM_MAX_HELD) no = &too_much;
    else if (s->engine == NULL) no = &detached;

    if (l->sub.group_count > 1) return glm_group_join(l, no);
    if (no != NULL) glm_live_error(l, no);
    else glm_engine_submit(s->engine, glm_live_start(l));
    return 0;
}

/* ---- messages ---- */

static glm_partial_t *
partial_find(glm_conn_t *c, uint64_t id)
{
    int  i;

    for (i = 0; i < GLM_MAX_PARTIALS; i++) {
        if (c->partial[i].used && c->partial[i].id == id) return &c->partial[i];
    }
    return NULL;
}

/* Where the first record of a SUBMIT goes; NULL: c was dropped. */
static glm_partial_t *
partial_new(glm_conn_t *c, uint64_t id)
{
    int  i, used = 0;

    for (i = 0; i < GLM_MAX_PARTIALS; i++) used += c->partial[i].used;
    if (glm_live_find(c, id) != NULL) {
        drop(c, "submitted an id that is in use");
        return NULL;
    }
    if (c->nlive + used >= GLM_SERVER_MAX_LIVE) {
        drop(c, "submitted more requests than it may have at a time");
        return NULL;
    }
    for (i = 0; i < GLM_MAX_PARTIALS; i++) {
        if (c->partial[i].used) continue;
        c->partial[i] = (glm_partial_t) { .used = 1, .id = id };
        return &c->partial[i];
    }
    drop(c, "began more messages than it may at a time");
    return NULL;
}

static int
on_submit(glm_conn_t *c, const glm_rec_t *rec, const uint8_t *payload, size_t n)
{
    glm_wbuf_t      msg;
    glm_partial_t  *p = partial_find(c, rec->id);

    if (p == NULL && (p = partial_new(c, rec->id)) == NULL) return -1;

    if (p->buf.n + n > GLM_SERVER_MAX_MESSAGE || c->assembling + n > GLM_MAX_ASSEMBLY) {
        return drop(c, "sent a message that is too large");
    }
    glm_wbuf_put(&p->buf, payload, n);
    if (p->buf.failed) return drop(c, "no memory for a message");
    c->assembling += n;
    if (rec->flags & GLM_REC_MORE) return 0;

    msg = p->buf;
    c->assembling -= msg.n;
    *p = (glm_partial_t) {0};
    return submit(c, rec->id, &msg);
}

static int
on_window(glm_conn_t *c, glm_live_t *l, const uint8_t *payload, size_t n)
{
    uint64_t  bytes;

    if (glm_wire_decode_window(payload, n, &bytes) != 0) return drop(c, "sent a bad window");
    if (l == NULL || bytes == 0) return 0;
    if (bytes > INT64_MAX / 2) bytes = INT64_MAX / 2;
    if (l->window > INT64_MAX / 2) l->window = INT64_MAX / 2;
    l->window += (int64_t) bytes;
    pthread_mutex_lock(&c->lock);
    glm_live_ready(l);
    pthread_mutex_unlock(&c->lock);
    return 0;
}

static void
cancel(glm_live_t *l)
{
    if (l->cancelled) return;
    if (l->group != NULL) {
        glm_group_cancel(l);
        return;
    }
    l->cancelled = 1;
    glm_live_mute(l);
    if (l->submitted && l->client->s->engine != NULL) {
        glm_req_cancel(l->client->s->engine, &l->sub.req);
    }
}

/* GO and CANCEL: an id that is not live has just ended, and its client could not
 * know. */
static int
on_short(glm_conn_t *c, const glm_rec_t *rec, glm_live_t *l, const uint8_t *payload, size_t n)
{
    if (glm_wire_decode_empty(payload, n) != 0) return drop(c, "sent a bad record");
    if (l == NULL) return 0;
    if (rec->type == GLM_MSG_CANCEL) {
        cancel(l);
    } else if (l->submitted && c->s->engine != NULL) {
        glm_req_go(c->s->engine, &l->sub.req);
    }
    return 0;
}

static int
on_record(glm_conn_t *c, const uint8_t *buf)
{
    size_t          n;
    glm_rec_t       rec;
    const uint8_t  *payload = buf + sizeof(rec);

    memcpy(&rec, buf, sizeof(rec));
    n = rec.size - sizeof(rec);
    if (rec.flags & ~GLM_REC_MORE) return drop(c, "sent a record with unknown flags");

    if (rec.type == GLM_MSG_SUBMIT) return on_submit(c, &rec, payload, n);
    if (rec.flags & GLM_REC_MORE) return drop(c, "sent a short message in pieces");
    if (partial_find(c, rec.id) != NULL) return drop(c, "sent a record inside of a message");

    switch (rec.type) {
    case GLM_MSG_WINDOW: return on_window(c, glm_live_find(c, rec.id), payload, n);
    case GLM_MSG_GO:
    case GLM_MSG_CANCEL: return on_short(c, &rec, glm_live_find(c, rec.id), payload, n);
    default:             return drop(c, "sent a record of an unknown type");
    }
}

int
glm_conn_receive(glm_conn_t *c)
{
    int        i, rc;
    size_t     bytes = 0;
    glm_rec_t  rec;

    for (i = 0; i < TURN_RECORDS && bytes < TURN_BYTES; i++) {
        rc = glm_ring_read(&c->sub, c->s->rx, sizeof(c->s->rx));
        if (rc == GLM_RING_BROKEN) return drop(c, "broke its submission ring");
        if (rc == GLM_RING_EMPTY) break;
        memcpy(&rec, c->s->rx, sizeof(rec));
        bytes += rec.size;
        if (on_record(c, c->s->rx) != 0) return -1;
    }
    if (glm_ring_release(&c->sub)) glm_conn_bell(c);
    if (i == TURN_RECORDS || bytes >= TURN_BYTES) return 0;     /* rx stays: come back */

    rc = glm_ring_sleep(&c->sub);
    if (rc == GLM_RING_BROKEN) return drop(c, "broke its submission ring");
    c->rx = rc == 0;
    return 0;
}
