
#include "ngx_http_glm_module.h"

#include <fcntl.h>
#include <sys/mman.h>


#define NGX_HTTP_GLM_BACKOFF_MIN   100
#define NGX_HTTP_GLM_BACKOFF_MAX   1000
#define NGX_HTTP_GLM_DATAGRAMS     64      /* read in one turn */
#define NGX_HTTP_GLM_RING          (4 * 1024 * 1024)   /* wished, each way */
#define NGX_HTTP_GLM_FDS           4       /* of a datagram */
#define NGX_HTTP_GLM_TURNS         1024    /* of a last drain */
#define NGX_HTTP_GLM_SEALS         (F_SEAL_SHRINK|F_SEAL_GROW|F_SEAL_SEAL)
#define NGX_HTTP_GLM_MAX_MAPPING   (64 * 1024 * 1024)

/* fields of WELCOME before name must be there */
#define NGX_HTTP_GLM_WELCOME_MIN   offsetof(glm_sock_welcome_t, name)


static void ngx_http_glm_attach_init(ngx_http_glm_peer_t *peer);
static ngx_int_t ngx_http_glm_attach_connect(ngx_http_glm_peer_t *peer,
    ngx_log_t *log);
static ngx_int_t ngx_http_glm_attach_hello(ngx_socket_t s);
static void ngx_http_glm_attach_read(ngx_event_t *rev);
static ngx_int_t ngx_http_glm_attach_recv(ngx_http_glm_peer_t *peer,
    ngx_connection_t *c);
static ngx_uint_t ngx_http_glm_attach_fds(struct msghdr *msg, int *fds);
static void ngx_http_glm_attach_write(ngx_event_t *wev);
static ngx_int_t ngx_http_glm_attach_datagram(ngx_http_glm_peer_t *peer,
    u_char *p, size_t n, int *fds, ngx_uint_t nfds);
static ngx_int_t ngx_http_glm_attach_welcome(ngx_http_glm_peer_t *peer,
    u_char *p, size_t n, int *fds, ngx_uint_t nfds);
static const char *ngx_http_glm_attach_map(ngx_http_glm_peer_t *peer,
    glm_sock_welcome_t *w, int *fds);
static const char *ngx_http_glm_attach_ring(glm_sock_welcome_t *w,
    uint64_t offset, uint32_t size);
static ngx_int_t ngx_http_glm_attach_slots(ngx_http_glm_peer_t *peer);
static void ngx_http_glm_attach_refused(ngx_http_glm_peer_t *peer, u_char *p,
    size_t n);
static void ngx_http_glm_attach_close(ngx_http_glm_peer_t *peer);
static void ngx_http_glm_attach_wake(ngx_http_glm_peer_t *peer,
    ngx_uint_t lost);
static void ngx_http_glm_attach_timer(ngx_event_t *ev);


static void
ngx_http_glm_attach_init(ngx_http_glm_peer_t *peer)
{
    ngx_queue_init(&peer->waiting);
    ngx_queue_init(&peer->dirty);
    ngx_queue_init(&peer->starved);

    peer->backoff = NGX_HTTP_GLM_BACKOFF_MIN;

    peer->reconnect.handler = ngx_http_glm_attach_timer;
    peer->reconnect.data = peer;
    peer->reconnect.log = ngx_cycle->log;
    peer->reconnect.cancelable = 1;
}


/*
 * NGX_OK: ready; NGX_AGAIN: wait in peer->waiting; NGX_ERROR: the engine is
 * not there, the callee has logged, and the timer tries again.
 */

ngx_int_t
ngx_http_glm_attach(ngx_http_glm_peer_t *peer, ngx_log_t *log)
{
    if (peer->reconnect.handler == NULL) {
        ngx_http_glm_attach_init(peer);    /* a reload without a new process */
    }

    if (peer->failed) {
        return NGX_ERROR;    /* to be torn down in this turn */
    }

    if (peer->state == NGX_HTTP_GLM_PEER_READY) {
        return NGX_OK;
    }

    if (peer->state == NGX_HTTP_GLM_PEER_HELLO) {
        return NGX_AGAIN;
    }

    if (ngx_http_glm_attach_connect(peer, log) == NGX_OK) {
        peer->state = NGX_HTTP_GLM_PEER_HELLO;

        if (peer->reconnect.timer_set) {
            ngx_del_timer(&peer->reconnect);
        }

        ngx_add_timer(&peer->reconnect, NGX_HTTP_GLM_HANDSHAKE);

        return NGX_AGAIN;
    }

    ngx_http_glm_attach_close(peer);

    peer->refused = 0;

    if (!ngx_exiting) {
        ngx_add_timer(&peer->reconnect, peer->backoff);
        peer->backoff = ngx_min(peer->backoff * 2, NGX_HTTP_GLM_BACKOFF_MAX);
    }

    return NGX_ERROR;
}


static ngx_int_t
ngx_http_glm_attach_connect(ngx_http_glm_peer_t *peer, ngx_log_t *log)
{
    ngx_err_t          err;
    ngx_socket_t       s;
    ngx_connection_t  *c;

    s = ngx_socket(AF_UNIX, SOCK_SEQPACKET, 0);
    if (s == (ngx_socket_t) -1) {
        ngx_log_error(NGX_LOG_ALERT, log, ngx_socket_errno,
                      ngx_socket_n " failed");
        return NGX_ERROR;
    }

    /* the cycle's log: the connection outlives the request that asked for it */

    c = ngx_get_connection(s, ngx_cycle->log);
    if (c == NULL) {
        if (ngx_close_socket(s) == -1) {
            ngx_log_error(NGX_LOG_ALERT, log, ngx_socket_errno,
                          ngx_close_socket_n " failed");
        }

        return NGX_ERROR;
    }

    peer->connection = c;

    c->data = peer;
    c->log = ngx_cycle->log;
    c->number = ngx_atomic_fetch_add(ngx_connection_counter, 1);
    c->read->handler = ngx_http_glm_attach_read;
    c->write->handler = ngx_http_glm_attach_write;
    c->read->log = c->log;
    c->write->log = c->log;

    /* a worker that exits does not miss them */
    c->read->channel = 1;
    c->write->channel = 1;

    if (ngx_nonblocking(s) == -1) {
        ngx_log_error(NGX_LOG_ALERT, log, ngx_socket_errno,
                      ngx_nonblocking_n " failed");
        return NGX_ERROR;
    }

    if (fcntl(s, F_SETFD, FD_CLOEXEC) == -1) {
        ngx_log_error(NGX_LOG_ALERT, log, ngx_errno,
                      "fcntl(FD_CLOEXEC) failed");
        return NGX_ERROR;
    }

    if (connect(s, (struct sockaddr *) &peer->sockaddr,
                sizeof(struct sockaddr_un))
        == -1)
    {
        err = ngx_socket_errno;
        goto failed;
    }

    if (ngx_http_glm_attach_hello(s) != NGX_OK) {
        err = ngx_socket_errno;
        goto failed;
    }

    if (ngx_handle_read_event(c->read, 0) != NGX_OK) {
        return NGX_ERROR;
    }

    return NGX_OK;

failed:

    /* it is tried every second: the first failure tells */

    ngx_log_error((peer->quiet ? NGX_LOG_INFO : NGX_LOG_ERR), log, err,
                  "connect() to engine \"%V\" failed", &peer->name);

    peer->quiet = 1;

    return NGX_ERROR;
}


static ngx_int_t
ngx_http_glm_attach_hello(ngx_socket_t s)
{
    glm_sock_hello_t  hello;

    ngx_memzero(&hello, sizeof(glm_sock_hello_t));

    hello.head.magic = GLM_WIRE_MAGIC;
    hello.head.type = GLM_SOCK_HELLO;
    hello.size = sizeof(glm_sock_hello_t);
    hello.abi_min = GLM_WIRE_ABI;
    hello.abi_max = GLM_WIRE_ABI;
    hello.submit_bytes = NGX_HTTP_GLM_RING;
    hello.complete_bytes = NGX_HTTP_GLM_RING;
    hello.kind = 1;

    (void) ngx_snprintf((u_char *) hello.name, sizeof(hello.name), "nginx %P",
                        ngx_pid);

    return send(s, &hello, sizeof(glm_sock_hello_t),
                MSG_DONTWAIT|MSG_NOSIGNAL)
           == sizeof(glm_sock_hello_t) ? NGX_OK : NGX_ERROR;
}


static void
ngx_http_glm_attach_read(ngx_event_t *rev)
{
    ngx_int_t             rc;
    ngx_uint_t            i, turn;
    ngx_connection_t     *c;
    ngx_http_glm_peer_t  *peer;

    c = rev->data;
    peer = c->data;
    rc = NGX_OK;

    for (turn = 0;
         turn < NGX_HTTP_GLM_DATAGRAMS && rc == NGX_OK && !peer->failed;
         turn++)
    {
        rc = ngx_http_glm_attach_recv(peer, c);
    }

    if (peer->state == NGX_HTTP_GLM_PEER_READY && !peer->failed) {

        /* an engine that ends may have left a ring full of good answers */

        i = rc == NGX_DONE ? NGX_HTTP_GLM_TURNS : 1;

        while (i-- && ngx_http_glm_ring_drain(peer) == NGX_AGAIN) {
            turn = NGX_HTTP_GLM_DATAGRAMS;    /* the rest in the next turn */
        }
    }

    if (rc == NGX_DONE) {
        peer->failed = 1;
    }

    if (!peer->failed) {
        ngx_http_glm_ring_flush(peer);
    }

    /* requests that were woken may have found it broken */

    if (peer->failed) {
        ngx_http_glm_attach_lost(peer);
        return;
    }

    if (turn == NGX_HTTP_GLM_DATAGRAMS) {
        ngx_post_event(rev, &ngx_posted_next_events);
        return;
    }

    if (ngx_handle_read_event(rev, 0) != NGX_OK) {
        ngx_http_glm_attach_lost(peer);
    }
}


/*
 * One datagram.  NGX_OK: there may be more; NGX_AGAIN: there is none;
 * NGX_DONE: the engine has closed.
 */

static ngx_int_t
ngx_http_glm_attach_recv(ngx_http_glm_peer_t *peer, ngx_connection_t *c)
{
    int                   fds[NGX_HTTP_GLM_FDS];
    u_char                buf[512];
    ssize_t               n;
    ngx_err_t             err;
    ngx_uint_t            i, nfds;
    struct iovec          iov;
    struct msghdr         msg;
    union {
        struct cmsghdr    cm;
        u_char            space[CMSG_SPACE(sizeof(fds))];
    } control;

    iov.iov_base = buf;
    iov.iov_len = sizeof(buf);

    ngx_memzero(&msg, sizeof(struct msghdr));
    msg.msg_iov = &iov;
    msg.msg_iovlen = 1;
    msg.msg_control = &control;
    msg.msg_controllen = sizeof(control.space);

    n = recvmsg(c->fd, &msg, MSG_DONTWAIT|MSG_CMSG_CLOEXEC);

    if (n == -1) {
        err = ngx_socket_errno;

        if (err == NGX_EINTR) {
            return NGX_OK;
        }

        c->read->ready = 0;

        if (err == NGX_EAGAIN) {
            return NGX_AGAIN;
        }

        ngx_log_error(NGX_LOG_ERR, c->log, err,
                      "recvmsg() from engine \"%V\" failed", &peer->name);

        return NGX_DONE;
    }

    nfds = ngx_http_glm_attach_fds(&msg, fds);

    if (n == 0 && nfds == 0) {
        ngx_log_error(NGX_LOG_ERR, c->log, 0,
                      "engine \"%V\" closed connection", &peer->name);
        return NGX_DONE;
    }

    if (msg.msg_flags & (MSG_TRUNC|MSG_CTRUNC)) {
        ngx_http_glm_ring_fail(peer, "a datagram is too long");

    } else if (ngx_http_glm_attach_datagram(peer, buf, n, fds, nfds)
               != NGX_OK)
    {
        peer->failed = 1;
    }

    for (i = 0; i < nfds; i++) {
        (void) close(fds[i]);
    }

    return NGX_OK;
}


static ngx_uint_t
ngx_http_glm_attach_fds(struct msghdr *msg, int *fds)
{
    ngx_uint_t       n, nfds;
    struct cmsghdr  *cmsg;

    nfds = 0;

    for (cmsg = CMSG_FIRSTHDR(msg); cmsg; cmsg = CMSG_NXTHDR(msg, cmsg)) {

        if (cmsg->cmsg_level != SOL_SOCKET || cmsg->cmsg_type != SCM_RIGHTS) {
            continue;
        }

        n = (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        n = ngx_min(n, NGX_HTTP_GLM_FDS - nfds);

        ngx_memcpy(&fds[nfds], CMSG_DATA(cmsg), n * sizeof(int));
        nfds += n;
    }

    return nfds;
}


static void
ngx_http_glm_attach_write(ngx_event_t *wev)
{
    /* bells are sent at once or not at all */
}


static ngx_int_t
ngx_http_glm_attach_datagram(ngx_http_glm_peer_t *peer, u_char *p, size_t n,
    int *fds, ngx_uint_t nfds)
{
    glm_sock_head_t  head;

    if (n < sizeof(glm_sock_head_t)) {
        ngx_http_glm_ring_fail(peer, "a datagram is too short");
        return NGX_ERROR;
    }

    ngx_memcpy(&head, p, sizeof(glm_sock_head_t));

    if (head.magic != GLM_WIRE_MAGIC) {
        ngx_http_glm_ring_fail(peer, "a datagram has a wrong magic");
        return NGX_ERROR;
    }

    switch (head.type) {

    case GLM_SOCK_WELCOME:
        if (peer->state == NGX_HTTP_GLM_PEER_HELLO) {
            return ngx_http_glm_attach_welcome(peer, p, n, fds, nfds);
        }
        break;

    case GLM_SOCK_REFUSE:
        if (peer->state == NGX_HTTP_GLM_PEER_HELLO && nfds == 0) {
            ngx_http_glm_attach_refused(peer, p, n);
            return NGX_ERROR;
        }
        break;

    case GLM_SOCK_BELL:
        if (peer->state == NGX_HTTP_GLM_PEER_READY && nfds == 0) {
            return NGX_OK;
        }
        break;
    }

    ngx_http_glm_ring_fail(peer, "an unexpected datagram");
    return NGX_ERROR;
}


static ngx_int_t
ngx_http_glm_attach_welcome(ngx_http_glm_peer_t *peer, u_char *p, size_t n,
    int *fds, ngx_uint_t nfds)
{
    size_t               i;
    const char          *why;
    glm_sock_welcome_t  *w;

    w = &peer->welcome;

    ngx_memzero(w, sizeof(glm_sock_welcome_t));
    ngx_memcpy(w, p, ngx_min(n, sizeof(glm_sock_welcome_t)));

    /* a newer engine may say more, but nothing that must be understood */

    for (i = sizeof(glm_sock_welcome_t); i < n; i++) {
        if (p[i]) {
            ngx_http_glm_ring_fail(peer, "WELCOME holds unknown fields");
            return NGX_ERROR;
        }
    }

    if (n < NGX_HTTP_GLM_WELCOME_MIN || w->size != n
        || nfds != 2
        || w->abi != GLM_WIRE_ABI
        || w->name_size == 0 || w->name_size > GLM_WIRE_NAME
        || ngx_http_glm_utf8((u_char *) w->name, w->name_size, NULL) != NGX_OK
        || w->max_live == 0 || w->max_message < 4096
        || w->max_seq == 0 || w->max_seq > INT32_MAX
        || w->vocab == 0 || w->vocab > INT32_MAX)
    {
        ngx_http_glm_ring_fail(peer, "WELCOME is malformed");
        return NGX_ERROR;
    }

    why = ngx_http_glm_attach_map(peer, w, fds);
    if (why) {
        ngx_http_glm_ring_fail(peer, why);
        return NGX_ERROR;
    }

    if (ngx_http_glm_attach_slots(peer) != NGX_OK) {
        return NGX_ERROR;
    }

    peer->model.data = (u_char *) w->name;
    peer->model.len = w->name_size;

    peer->state = NGX_HTTP_GLM_PEER_READY;
    peer->backoff = NGX_HTTP_GLM_BACKOFF_MIN;
    peer->quiet = 0;
    peer->refused = 0;

    if (peer->reconnect.timer_set) {
        ngx_del_timer(&peer->reconnect);
    }

    ngx_log_error(NGX_LOG_NOTICE, ngx_cycle->log, 0,
                  "attached to engine \"%V\", model \"%V\", instance %016xL",
                  &peer->name, &peer->model, w->instance);

    ngx_http_glm_attach_wake(peer, 0);

    return NGX_OK;
}


/* Returns what is wrong, or NULL. */

static const char *
ngx_http_glm_attach_map(ngx_http_glm_peer_t *peer, glm_sock_welcome_t *w,
    int *fds)
{
    int           seals;
    void         *p;
    const char   *why;
    struct stat   st;

    seals = fcntl(fds[0], F_GET_SEALS);

    if (seals == -1 || (seals & NGX_HTTP_GLM_SEALS) != NGX_HTTP_GLM_SEALS) {
        return "the ring's memory is not sealed";
    }

    if (fstat(fds[0], &st) == -1
        || w->ring_bytes > NGX_HTTP_GLM_MAX_MAPPING
        || st.st_size < 0 || (uint64_t) st.st_size != w->ring_bytes)
    {
        return "the ring's memory has a wrong size";
    }

    why = ngx_http_glm_attach_ring(w, w->submit_offset, w->submit_bytes);
    if (why == NULL) {
        why = ngx_http_glm_attach_ring(w, w->complete_offset,
                                       w->complete_bytes);
    }

    if (why) {
        return why;
    }

    if (w->submit_offset < w->complete_offset
        ? w->submit_offset + sizeof(glm_ring_shared_t) + w->submit_bytes
          > w->complete_offset
        : w->complete_offset + sizeof(glm_ring_shared_t) + w->complete_bytes
          > w->submit_offset)
    {
        return "the rings overlap";
    }

    seals = fcntl(fds[1], F_GET_SEALS);

    if (seals == -1 || !(seals & F_SEAL_SHRINK)) {
        return "the statistics are not sealed";
    }

    if (fstat(fds[1], &st) == -1
        || st.st_size < (off_t) offsetof(glm_wire_stats_t, requests)
        || st.st_size > NGX_HTTP_GLM_MAX_MAPPING)
    {
        return "the statistics have a wrong size";
    }

    p = mmap(NULL, w->ring_bytes, PROT_READ|PROT_WRITE,
             MAP_SHARED|MAP_POPULATE, fds[0], 0);
    if (p == MAP_FAILED) {
        ngx_log_error(NGX_LOG_ALERT, ngx_cycle->log, ngx_errno,
                      "mmap() failed");
        return "the ring cannot be mapped";
    }

    peer->rings = p;
    peer->rings_size = w->ring_bytes;

    p = mmap(NULL, st.st_size, PROT_READ, MAP_SHARED, fds[1], 0);
    if (p == MAP_FAILED) {
        ngx_log_error(NGX_LOG_ALERT, ngx_cycle->log, ngx_errno,
                      "mmap() failed");
        return "the statistics cannot be mapped";
    }

    peer->stats = p;
    peer->stats_size = st.st_size;

    glm_ring_init(&peer->submit, peer->rings + w->submit_offset,
                  w->submit_bytes);
    glm_ring_init(&peer->complete, peer->rings + w->complete_offset,
                  w->complete_bytes);

    return NULL;
}


static const char *
ngx_http_glm_attach_ring(glm_sock_welcome_t *w, uint64_t offset, uint32_t size)
{
    if (size < GLM_WIRE_MIN_RING || size > GLM_WIRE_MAX_RING
        || (size & (size - 1)))
    {
        return "a ring has a wrong size";
    }

    if (offset % GLM_RING_LINE || offset > w->ring_bytes
        || w->ring_bytes - offset < sizeof(glm_ring_shared_t) + size)
    {
        return "a ring lies outside its memory";
    }

    return NULL;
}


static ngx_int_t
ngx_http_glm_attach_slots(ngx_http_glm_peer_t *peer)
{
    uint32_t  i;

    peer->nslots = ngx_min(peer->welcome.max_live, NGX_HTTP_GLM_MAX_SLOTS);
    peer->slots = ngx_calloc(peer->nslots * sizeof(ngx_http_glm_slot_t),
                             ngx_cycle->log);
    peer->record = ngx_alloc(GLM_WIRE_MAX_RECORD, ngx_cycle->log);

    if (peer->slots == NULL || peer->record == NULL) {
        return NGX_ERROR;
    }

    for (i = 0; i < peer->nslots; i++) {
        peer->slots[i].next = i + 1;
    }

    peer->free = 0;
    peer->nlive = 0;
    peer->assembled = 0;

    return NGX_OK;
}


static void
ngx_http_glm_attach_refused(ngx_http_glm_peer_t *peer, u_char *p, size_t n)
{
    size_t              len;
    ngx_str_t           text;
    glm_sock_refuse_t   refuse;

    ngx_memzero(&refuse, sizeof(glm_sock_refuse_t));
    ngx_memcpy(&refuse, p, ngx_min(n, sizeof(glm_sock_refuse_t)));

    for (len = 0; len < sizeof(refuse.text) && refuse.text[len]; len++) {
        if ((u_char) refuse.text[len] < 0x20) {
            refuse.text[len] = ' ';
        }
    }

    text.len = len;
    text.data = (u_char *) refuse.text;

    peer->refused = refuse.reason;

    ngx_log_error((peer->quiet ? NGX_LOG_INFO : NGX_LOG_ERR), ngx_cycle->log,
                  0, "engine \"%V\" refused: %uD %V", &peer->name,
                  refuse.reason, &text);

    peer->quiet = 1;
}


/* The engine went, or broke the wire: its requests end, the timer is set. */

void
ngx_http_glm_attach_lost(ngx_http_glm_peer_t *peer)
{
    uint32_t             i;
    ngx_http_glm_ctx_t  *ctx;

    for (i = 0; i < peer->nslots; i++) {
        if (peer->slots[i].call) {
            ctx = peer->slots[i].call->ctx;
            ctx->lost = 1;
            peer->slots[i].call->peer = NULL;
            peer->slots[i].call->starved = 0;
            ngx_http_glm_ring_dirty(peer, ctx);
        }
    }

    ngx_queue_init(&peer->starved);

    ngx_http_glm_attach_close(peer);

    if (!ngx_exiting && !ngx_terminate) {
        ngx_add_timer(&peer->reconnect, peer->backoff);
        peer->backoff = ngx_min(peer->backoff * 2, NGX_HTTP_GLM_BACKOFF_MAX);
    }

    ngx_http_glm_attach_wake(peer, 1);
    ngx_http_glm_ring_flush(peer);
}


static void
ngx_http_glm_attach_close(ngx_http_glm_peer_t *peer)
{
    uint32_t  i;

    if (peer->connection) {
        ngx_close_connection(peer->connection);
        peer->connection = NULL;
    }

    if (peer->rings) {
        (void) munmap(peer->rings, peer->rings_size);
        peer->rings = NULL;
    }

    if (peer->stats) {
        (void) munmap((void *) peer->stats, peer->stats_size);
        peer->stats = NULL;
    }

    if (peer->slots) {
        for (i = 0; i < peer->nslots; i++) {
            if (peer->slots[i].part.start) {
                ngx_free(peer->slots[i].part.start);
            }
        }

        ngx_free(peer->slots);
        peer->slots = NULL;
    }

    if (peer->record) {
        ngx_free(peer->record);
        peer->record = NULL;
    }

    if (peer->reconnect.timer_set) {
        ngx_del_timer(&peer->reconnect);
    }

    peer->nslots = 0;
    peer->nlive = 0;
    peer->failed = 0;
    peer->state = NGX_HTTP_GLM_PEER_IDLE;
}


/* A worker told to stop at once does not cut its streams without a word. */

void
ngx_http_glm_attach_exit(ngx_http_glm_peer_t *peer)
{
    uint32_t             i;
    ngx_http_glm_ctx_t  *ctx;

    if (peer->reconnect.handler == NULL) {
        return;    /* init process has not come this far */
    }

    for (i = 0; i < peer->nslots; i++) {
        if (peer->slots[i].call) {
            ctx = peer->slots[i].call->ctx;

            (void) ngx_http_glm_error(ctx, NGX_HTTP_SERVICE_UNAVAILABLE,
                                      "server_is_overloaded", NULL,
                                      "The server is shutting down.");
            ngx_http_glm_ring_dirty(peer, ctx);
        }
    }

    ngx_http_glm_ring_flush(peer);

    ngx_http_glm_attach_close(peer);
}


/* Requests that waited for WELCOME go on, or hear that there is none. */

static void
ngx_http_glm_attach_wake(ngx_http_glm_peer_t *peer, ngx_uint_t lost)
{
    ngx_queue_t         *q;
    ngx_http_glm_ctx_t  *ctx;

    while (!ngx_queue_empty(&peer->waiting)) {
        q = ngx_queue_head(&peer->waiting);
        ctx = ngx_queue_data(q, ngx_http_glm_ctx_t, queue);

        ngx_queue_remove(q);
        ctx->queued = 0;

        if (lost) {
            ctx->lost = 1;
        }

        ngx_http_glm_ring_dirty(peer, ctx);
    }
}


static void
ngx_http_glm_attach_timer(ngx_event_t *ev)
{
    ngx_http_glm_peer_t *peer = ev->data;

    if (peer->state == NGX_HTTP_GLM_PEER_HELLO) {
        ngx_log_error(NGX_LOG_ERR, ngx_cycle->log, 0,
                      "engine \"%V\" did not answer in %d ms",
                      &peer->name, NGX_HTTP_GLM_HANDSHAKE);
        ngx_http_glm_attach_lost(peer);
        return;
    }

    if (ngx_exiting || ngx_terminate) {
        return;
    }

    (void) ngx_http_glm_attach(peer, ngx_cycle->log);
}
