/*
 * ring_send: from outboxes into the completion ring, fairly over the requests of
 * a client, as far as windows and room allow; and the pauses of requests whose
 * readers let too much pile up.  I/O thread; never waits.
 *
 * Pauses.  A client over its share of the spool has those of its requests
 * paused that hold at least an equal part of it; over twice its share, all that
 * hold anything.  When the spool as a whole is full the shares shrink to an
 * equal part.  So a client that never reads keeps a bounded amount, and a
 * request that is read in time is not touched.  When this thread comes too late
 * for that, the sink brakes (ring_sink.c), and it is decided here what of it stays.
 */
#include "ring_impl.h"

#include <string.h>

#define TURN_BYTES  (256 * 1024)     /* of a client before the next one's turn */
#define LIVE_BYTES  (64 * 1024)      /* of a request before the next one's */

typedef enum { SENT_ALL, SENT_WINDOW, SENT_MORE, SENT_FULL, SENT_END, SENT_BROKEN } sent_t;

static const glm_refusal_t  paused_too_long = {
    .status = 504, .code = "read_timeout",
    .text = "the answer was not read for too long while the engine's spool was full",
};

/* ---- one request ---- */

void
glm_live_mute(glm_live_t *l)
{
    glm_conn_t  *c = l->client;

    pthread_mutex_lock(&c->lock);
    l->mute = 1;
    glm_outbox_drop_output(&l->out);
    glm_live_charge(l);
    glm_live_ready(l);
    pthread_mutex_unlock(&c->lock);
}

static void
kill_live(glm_live_t *l, const glm_refusal_t *why)
{
    glm_conn_t  *c = l->client;

    pthread_mutex_lock(&c->lock);
    if (l->killed == NULL) l->killed = why;
    if (l->ended) {               /* what was lost must not look complete */
        l->end_type = GLM_MSG_ERROR;
        l->end_size = (uint32_t) glm_wire_error(l->end, why);
    }
    pthread_mutex_unlock(&c->lock);
    glm_live_mute(l);
    if (l->submitted && c->s->engine != NULL) glm_req_cancel(c->s->engine, &l->sub.req);
}

/* The next message into l->msg.  1: there is one; 0: nothing, see *why. */
static int
next_message(glm_live_t *l, sent_t *why)
{
    int          rc = 0, nomem, end;
    glm_conn_t  *c = l->client;

    glm_wbuf_free(&l->msg);
    l->msg_off = 0;

    pthread_mutex_lock(&c->lock);
    end = l->ended && l->out.head == NULL;
    nomem = l->nomem && l->killed == NULL;
    if (glm_outbox_costs(&l->out) && l->window <= 0) {
        *why = SENT_WINDOW;
    } else {
        rc = glm_outbox_take(&l->out, &l->msg_type, &l->msg);
        glm_live_charge(l);
        *why = end ? SENT_END : SENT_ALL;
    }
    pthread_mutex_unlock(&c->lock);

    if (rc < 0 || nomem) kill_live(l, &glm_no_answer);
    return rc == 1;
}

/* Reserves, asking for a bell when there is no room; GLM_RING_*. */
static int
reserve(glm_conn_t *c, uint32_t size, void **rec)
{
    int  rc = glm_ring_reserve(&c->com, size, rec);

    if (rc != GLM_RING_FULL) return rc;
    glm_ring_want_room(&c->com);
    rc = glm_ring_reserve(&c->com, size, rec);
    if (rc == GLM_RING_FULL && !c->ring_full) {
        c->ring_full = 1;
        c->s->own.ring_full++;
    }
    return rc;
}

static sent_t
write_record(glm_live_t *l, uint16_t type, const uint8_t *p, uint32_t n, int more)
{
    int        rc;
    void      *at;
    glm_rec_t  rec = { .size = (uint32_t) sizeof(rec) + n, .type = type,
                       .flags = more ? GLM_REC_MORE : 0, .id = l->id };

    rc = reserve(l->client, rec.size, &at);
    if (rc != GLM_RING_OK) return rc == GLM_RING_FULL ? SENT_FULL : SENT_BROKEN;
    memcpy(at, &rec, sizeof(rec));
    memcpy((uint8_t *) at + sizeof(rec), p, n);
    return SENT_ALL;
}

/* As many records of l->msg as window and room allow.  One that was begun is
 * finished without a window when nobody wants the rest: what follows must not
 * come inside of it. */
static sent_t
write_message(glm_live_t *l, size_t *bytes)
{
    sent_t    rc;
    uint32_t  n, left, max = glm_ring_max_record(&l->client->com) - (uint32_t) sizeof(glm_rec_t);

    while ((left = (uint32_t) l->msg.n - l->msg_off) > 0) {
        if (GLM_MSG_COSTS(l->msg_type) && l->window <= 0 && !l->mute) return SENT_WINDOW;
        n = left < max ? left : max;
        rc = write_record(l, l->msg_type, l->msg.p + l->msg_off, n, n < left);
        if (rc != SENT_ALL) return rc;
        l->msg_off += n;
        n += (uint32_t) sizeof(glm_rec_t);
        if (GLM_MSG_COSTS(l->msg_type)) l->window -= n;
        *bytes += n;
    }
    return SENT_ALL;
}

static sent_t
send_live(glm_live_t *l, size_t *bytes)
{
    size_t  before = *bytes;
    sent_t  rc;

    for ( ;; ) {
        rc = write_message(l, bytes);
        if (rc != SENT_ALL) return rc;
        if (*bytes - before >= LIVE_BYTES) return SENT_MORE;
        if (!next_message(l, &rc)) break;
    }
    if (rc != SENT_END) return rc;
    rc = write_record(l, l->end_type, l->end, l->end_size, 0);
    return rc == SENT_ALL ? SENT_END : rc;
}

/* ---- pauses ---- */

static size_t
share(glm_server_t *s)
{
    int     i, n = 0;
    size_t  all, part = s->o.spool_bytes / 4;

    all = atomic_load(&s->spool);
    if (all <= s->o.spool_bytes) return part;
    for (i = 0; i < s->conn_max; i++) {
        if (s->conn[i] != NULL && atomic_load(&s->conn[i]->spool) > 0) n++;
    }
    all = s->o.spool_bytes / (size_t) (n ? n : 1);
    return all < part ? all : part;
}

static void
pause_live(glm_live_t *l, int on)
{
    glm_conn_t  *c = l->client;

    if (on == (l->paused_at != 0)) return;
    l->paused_at = on ? glm_server_now() : 0;
    c->npaused += on ? 1 : -1;
    if (c->s->engine != NULL) glm_req_pause(c->s->engine, &l->sub.req, on);
}

/* How many requests of c hold something. */
static int
count_holders(glm_conn_t *c)
{
    int          i, n = 0;
    glm_live_t  *l;

    pthread_mutex_lock(&c->lock);
    for (i = 0; i < GLM_HASH_SIZE; i++) {
        for (l = c->hash[i]; l != NULL; l = l->hash_next) n += l->charged > 0;
    }
    pthread_mutex_unlock(&c->lock);
    return n ? n : 1;
}

static void
balance_live(glm_live_t *l, size_t all, size_t part, int holders)
{
    int     ended, braked;
    size_t  held;

    pthread_mutex_lock(&l->client->lock);
    held = l->charged;
    ended = l->ended;
    braked = l->braked;
    l->braked = 0;
    pthread_mutex_unlock(&l->client->lock);

    if (braked) pause_live(l, 1);
    if (!l->submitted || ended) {
        pause_live(l, 0);
    } else if (l->paused_at) {
        if (held == 0 || all <= part / 2 || l->mute) pause_live(l, 0);
    } else if (held > 0 && !l->mute && all > part
               && (all > 2 * part || held >= part / (size_t) holders))
    {
        pause_live(l, 1);
    }
}

static void
balance(glm_conn_t *c)
{
    int          i, holders;
    size_t       all, part = share(c->s);
    glm_live_t  *l;

    if (!atomic_exchange(&c->braked, 0) && c->npaused == 0 && atomic_load(&c->spool) <= part) {
        return;
    }
    all = atomic_load(&c->spool);
    holders = count_holders(c);
    for (i = 0; i < GLM_HASH_SIZE; i++) {
        for (l = c->hash[i]; l != NULL; l = l->hash_next) {
            balance_live(l, all, part, holders);
        }
    }
}

void
glm_conn_tick(glm_conn_t *c, uint64_t now)
{
    int          i;
    uint64_t     limit = (uint64_t) c->s->o.pause_ms * 1000000;
    glm_live_t  *l;

    glm_groups_tick(c, now);
    if (c->npaused == 0) return;
    balance(c);
    for (i = 0; i < GLM_HASH_SIZE; i++) {
        for (l = c->hash[i]; l != NULL; l = l->hash_next) {
            if (l->paused_at == 0 || now - l->paused_at < limit) continue;
            kill_live(l, &paused_too_long);
            pause_live(l, 0);
        }
    }
}

/* ---- one client ---- */

static glm_live_t *
pop_ready(glm_conn_t *c)
{
    glm_live_t  *l;

    pthread_mutex_lock(&c->lock);
    l = c->ready;
    if (l != NULL) {
        c->ready = l->ready_next;
        l->ready = 0;
    }
    pthread_mutex_unlock(&c->lock);
    return l;
}

/* Back to the front: it keeps its turn for when there is room. */
static void
push_front(glm_live_t *l)
{
    glm_conn_t  *c = l->client;

    pthread_mutex_lock(&c->lock);
    if (!l->ready) {
        l->ready = 1;
        l->ready_next = c->ready;
        if (c->ready == NULL) c->ready_last = l;
        c->ready = l;
    }
    pthread_mutex_unlock(&c->lock);
}

static void
push_back(glm_live_t *l)
{
    pthread_mutex_lock(&l->client->lock);
    glm_live_ready(l);
    pthread_mutex_unlock(&l->client->lock);
}

/* Nobody reads: only ends matter. */
static void
reap_ready(glm_conn_t *c)
{
    int          ended;
    glm_live_t  *l;

    while ((l = pop_ready(c)) != NULL) {
        pthread_mutex_lock(&c->lock);
        ended = l->ended;
        pthread_mutex_unlock(&c->lock);
        if (ended) glm_live_free(l);
    }
    glm_conn_reap(c);
}

/* -1: the ring is broken. */
static int
send_ready(glm_conn_t *c)
{
    size_t       bytes = 0;
    sent_t       rc;
    glm_live_t  *l;

    while ((l = pop_ready(c)) != NULL) {
        rc = send_live(l, &bytes);
        if (rc == SENT_BROKEN) return -1;
        if (rc == SENT_END) glm_live_free(l);
        if (rc == SENT_MORE) push_back(l);
        if (rc == SENT_FULL) {
            push_front(l);
            return 0;
        }
        if (bytes >= TURN_BYTES) {
            atomic_store(&c->dirty, 1);      /* come back */
            return 0;
        }
    }
    return 0;
}

int
glm_conn_send(glm_conn_t *c)
{
    int  rc;

    c->tx = 0;
    if (c->state == GLM_CONN_GONE) {
        reap_ready(c);
        return -1;
    }
    c->ring_full = 0;
    rc = send_ready(c);
    if (glm_ring_publish(&c->com)) glm_conn_bell(c);
    if (rc != 0) {
        glm_conn_drop(c, "broke its completion ring");
        return -1;
    }
    balance(c);
    return 0;
}
