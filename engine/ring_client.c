/*
 * ring_client: a client's coming and going: accept, HELLO, WELCOME with its ring
 * memfd and the statistics, bells, and leaving, which cancels its requests and
 * waits for the engine to let go of them before it frees anything.  I/O thread.
 */
#include "ring_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "log.h"

#define ACCEPTS_PER_TURN  32
#define BELLS_PER_TURN    16
#define DEFAULT_SUBMIT    (256 * 1024)
#define DEFAULT_COMPLETE  (1024 * 1024)

_Static_assert(GLM_SERVER_MAX_RING <= GLM_WIRE_MAX_RING, "the wire's limit comes first");
/* a CANCEL for each live request fits beside each other in the smallest ring */
_Static_assert(GLM_SERVER_MAX_LIVE * sizeof(glm_rec_t) <= GLM_WIRE_MIN_RING / 4, "room");

/* ---- leaving ---- */

static void
forget(glm_conn_t *c)
{
    int            i;
    glm_server_t  *s = c->s;

    for (i = 0; i < s->conn_max; i++) {
        if (s->conn[i] == c) s->conn[i] = NULL;
    }
    pthread_mutex_destroy(&c->lock);
    free(c);
}

void
glm_conn_reap(glm_conn_t *c)
{
    if (c->state == GLM_CONN_GONE && c->nlive == 0) {
        c->s->nconn--;
        forget(c);
    }
}

static void
cancel_all(glm_conn_t *c)
{
    int            i;
    glm_live_t    *l;
    glm_server_t  *s = c->s;

    for (i = 0; i < GLM_HASH_SIZE; i++) {
        for (l = c->hash[i]; l != NULL; l = l->hash_next) {
            glm_live_mute(l);
            if (l->submitted && s->engine != NULL) {
                glm_req_cancel(s->engine, &l->sub.req);
                if (l->paused_at) glm_req_pause(s->engine, &l->sub.req, 0);
            }
            if (!l->submitted) continue;
            l->cancelled = 1;
        }
    }
}

/* Requests that the engine never got, and messages that never became one. */
static void
free_unsubmitted(glm_conn_t *c)
{
    int          i;
    glm_live_t  *l, *next;

    for (i = 0; i < GLM_HASH_SIZE; i++) {
        for (l = c->hash[i]; l != NULL; l = next) {
            next = l->hash_next;
            if (!l->submitted) glm_live_free(l);
        }
    }
    for (i = 0; i < GLM_MAX_PARTIALS; i++) glm_wbuf_free(&c->partial[i].buf);
}

void
glm_conn_drop(glm_conn_t *c, const char *why)
{
    int  greeting = c->state == GLM_CONN_GREETING;

    if (c->state == GLM_CONN_GONE) return;
    if (why != NULL) {
        glm_log(GLM_LOG_WARN, "client %d \"%s\" %s, dropped", (int) c->pid, c->name, why);
    }
    close(c->fd);                 /* leaves the epoll set, too */
    c->fd = -1;
    c->state = GLM_CONN_GONE;
    c->in = c->rx = c->tx = 0;

    if (greeting) {
        c->s->ngreeters--;
        forget(c);
        return;
    }
    glm_log(GLM_LOG_INFO, "client %d \"%s\" left, %d requests running", (int) c->pid, c->name,
            c->nlive);
    glm_groups_free(c);
    cancel_all(c);
    free_unsubmitted(c);
    munmap(c->map, c->map_bytes);
    c->map = NULL;
    atomic_store(&c->dirty, 1);   /* ends that are there already; reaped from there */
}

/* ---- accepting ---- */

static void
drop_oldest_greeter(glm_server_t *s)
{
    int          i;
    glm_conn_t  *c, *oldest = NULL;

    for (i = 0; i < s->conn_max; i++) {
        c = s->conn[i];
        if (c == NULL || c->state != GLM_CONN_GREETING) continue;
        if (oldest == NULL || c->since < oldest->since) oldest = c;
    }
    if (oldest != NULL) glm_conn_drop(oldest, NULL);
}

void
glm_conn_greeters(glm_server_t *s, uint64_t now)
{
    int          i;
    glm_conn_t  *c;

    if (s->ngreeters == 0) return;
    for (i = 0; i < s->conn_max; i++) {
        c = s->conn[i];
        if (c == NULL || c->state != GLM_CONN_GREETING || now - c->since < GLM_HELLO_NS) continue;
        glm_conn_drop(c, "said no hello");
    }
}

glm_conn_t *
glm_conn_new(glm_server_t *s, int fd)
{
    int                 i;
    socklen_t           len;
    glm_conn_t         *c;
    struct ucred        cred = {0};
    struct epoll_event  ev = { .events = EPOLLIN | EPOLLRDHUP };

    if (s->ngreeters >= GLM_MAX_GREETERS) drop_oldest_greeter(s);
    for (i = 0; i < s->conn_max && s->conn[i] != NULL; i++) { /* the first free one */ }
    c = i < s->conn_max ? calloc(1, sizeof(*c)) : NULL;
    if (c == NULL) {
        close(fd);
        return NULL;
    }
    len = sizeof(cred);
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) != 0) cred = (struct ucred) {0};
    *c = (glm_conn_t) { .s = s, .fd = fd, .since = glm_server_now(), .pid = cred.pid,
                        .uid = cred.uid };
    pthread_mutex_init(&c->lock, NULL);

    ev.data.ptr = c;
    if (epoll_ctl(s->epoll_fd, EPOLL_CTL_ADD, fd, &ev) != 0) {
        glm_log(GLM_LOG_ERR, "epoll_ctl() failed: %s", strerror(errno));
        close(fd);
        pthread_mutex_destroy(&c->lock);
        free(c);
        return NULL;
    }
    s->conn[i] = c;
    s->ngreeters++;
    return c;
}

void
glm_conn_accept(glm_server_t *s)
{
    int                 i, fd;
    struct epoll_event  ev = {0};

    s->accepting = 0;
    for (i = 0; i < ACCEPTS_PER_TURN; i++) {
        fd = accept4(s->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd >= 0) {
            glm_conn_new(s, fd);
            continue;
        }
        if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED) return;
        /* no descriptors: the tick asks again, or epoll would spin */
        glm_log(GLM_LOG_ERR, "accept4() failed: %s", strerror(errno));
        epoll_ctl(s->epoll_fd, EPOLL_CTL_MOD, s->listen_fd, &ev);
        s->listening = 0;
        return;
    }
}

/* ---- HELLO ---- */

static void
send_refuse(glm_conn_t *c, uint32_t reason, const char *text)
{
    ssize_t            n;
    glm_sock_refuse_t  m = { .head = { GLM_WIRE_MAGIC, GLM_SOCK_REFUSE, 0 },
                             .size = sizeof(m), .reason = reason };

    snprintf(m.text, sizeof(m.text), "%s", text);
    n = send(c->fd, &m, sizeof(m), MSG_DONTWAIT | MSG_NOSIGNAL);
    (void) n;                     /* it may be gone */
    glm_log(GLM_LOG_INFO, "client %d uid %d refused: %s", (int) c->pid, (int) c->uid, text);
    glm_conn_drop(c, NULL);
}

static uint32_t
clamp_ring(uint32_t wish, uint32_t fallback)
{
    uint32_t  size = GLM_WIRE_MIN_RING;

    if (wish == 0) wish = fallback;
    while (size < wish && size < GLM_SERVER_MAX_RING) size *= 2;
    return size;
}

/* The memfd, sealed against every change of size, its pages there: no access
 * to it can fault on either side.  The mapping is c's. */
static int
make_rings(glm_conn_t *c, glm_sock_welcome_t *w)
{
    int     fd;
    void   *map;

    w->submit_offset = 0;
    w->complete_offset = sizeof(glm_ring_shared_t) + w->submit_bytes;
    w->ring_bytes = w->complete_offset + sizeof(glm_ring_shared_t) + w->complete_bytes;

    fd = memfd_create("glm-ring", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0) return -1;
    if (ftruncate(fd, (off_t) w->ring_bytes) != 0
        || fallocate(fd, 0, 0, (off_t) w->ring_bytes) != 0
        || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)
    {
        goto fail;
    }
    map = mmap(NULL, w->ring_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    if (map == MAP_FAILED) goto fail;

    c->map = map;
    c->map_bytes = w->ring_bytes;
    glm_ring_init(&c->sub, c->map + w->submit_offset, w->submit_bytes);
    glm_ring_init(&c->com, c->map + w->complete_offset, w->complete_bytes);
    glm_ring_sleep(&c->sub);      /* the first record rings */
    return fd;

fail:
    close(fd);
    return -1;
}

static void
fill_welcome(glm_server_t *s, glm_sock_welcome_t *w)
{
    const char          *name = glm_engine_name(s->engine);
    const glm_config_t  *cfg = glm_engine_config(s->engine);

    w->head = (glm_sock_head_t) { GLM_WIRE_MAGIC, GLM_SOCK_WELCOME, 0 };
    w->size = sizeof(*w);
    w->abi = GLM_WIRE_ABI;
    w->flags = s->tokenizer != NULL || s->o.token_text != NULL ? GLM_WELCOME_TOKENIZER : 0;
    w->instance = s->instance;
    w->fingerprint = glm_engine_fingerprint(s->engine);
    w->created = s->created;
    w->max_live = GLM_SERVER_MAX_LIVE;
    w->max_message = GLM_SERVER_MAX_MESSAGE;
    w->max_seq = (uint32_t) cfg->max_seq;
    w->vocab = (uint32_t) cfg->vocab;
    w->max_stops = s->limits.max_stops;
    w->max_logprobs = (uint32_t) s->limits.max_logprobs;
    w->max_n = s->limits.max_n;
    w->spool_share = s->o.spool_bytes / 4;
    w->name_size = (uint32_t) strnlen(name, sizeof(w->name));
    memcpy(w->name, name, w->name_size);
}

static int
send_welcome(glm_conn_t *c, const glm_sock_welcome_t *w, int ring_fd)
{
    int              fds[2] = { ring_fd, c->s->stats_fd };
    ssize_t          n;
    struct iovec     iov = { .iov_base = (void *) (uintptr_t) w, .iov_len = sizeof(*w) };
    struct cmsghdr  *cm;
    union { struct cmsghdr align; char buf[CMSG_SPACE(sizeof(fds))]; }  ctl = {0};
    struct msghdr    mh = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = ctl.buf,
                            .msg_controllen = sizeof(ctl.buf) };

    cm = CMSG_FIRSTHDR(&mh);
    cm->cmsg_level = SOL_SOCKET;
    cm->cmsg_type = SCM_RIGHTS;
    cm->cmsg_len = CMSG_LEN(sizeof(fds));
    memcpy(CMSG_DATA(cm), fds, sizeof(fds));
    n = sendmsg(c->fd, &mh, MSG_DONTWAIT | MSG_NOSIGNAL);
    return n == (ssize_t) sizeof(*w) ? 0 : -1;
}

static int
welcome(glm_conn_t *c, const glm_sock_hello_t *h)
{
    int                 fd, rc;
    glm_server_t       *s = c->s;
    glm_sock_welcome_t  w = {0};

    w.submit_bytes = clamp_ring(h->submit_bytes, DEFAULT_SUBMIT);
    w.complete_bytes = clamp_ring(h->complete_bytes, DEFAULT_COMPLETE);
    fill_welcome(s, &w);
    fd = make_rings(c, &w);
    if (fd < 0) {
        glm_log(GLM_LOG_ERR, "no memory for the rings of client %d: %s", (int) c->pid,
                strerror(errno));
        send_refuse(c, GLM_REFUSE_CLIENTS, "no memory for rings");
        return -1;
    }
    rc = send_welcome(c, &w, fd);
    close(fd);
    s->ngreeters--;
    s->nconn++;
    c->state = GLM_CONN_SERVED;
    if (rc != 0) {
        glm_conn_drop(c, "did not take its welcome");
        return -1;
    }
    glm_log(GLM_LOG_INFO, "client %d uid %d \"%s\" kind %u: rings of %u and %u bytes",
            (int) c->pid, (int) c->uid, c->name, h->kind, w.submit_bytes, w.complete_bytes);
    return 0;
}

/* Whether the n bytes are a HELLO; missing bytes are zero, unknown ones must be. */
static int
parse_hello(glm_sock_hello_t *h, const uint8_t *p, size_t n)
{
    size_t  i;

    memset(h, 0, sizeof(*h));
    if (n < offsetof(glm_sock_hello_t, submit_bytes)) return 0;
    memcpy(h, p, n < sizeof(*h) ? n : sizeof(*h));
    for (i = sizeof(*h); i < n; i++) {
        if (p[i] != 0) return 0;
    }
    return h->head.magic == GLM_WIRE_MAGIC && h->head.type == GLM_SOCK_HELLO
           && h->head.reserved == 0 && h->size == n && h->reserved == 0
           && h->abi_min <= h->abi_max;
}

static int
hello(glm_conn_t *c, const uint8_t *p, size_t n)
{
    glm_server_t      *s = c->s;
    glm_sock_hello_t   h;

    if (!parse_hello(&h, p, n)) {
        send_refuse(c, GLM_REFUSE_HELLO, "malformed hello");
        return -1;
    }
    memcpy(c->name, h.name, sizeof(h.name));
    if (h.abi_max < GLM_WIRE_ABI_OLDEST || h.abi_min > GLM_WIRE_ABI) {
        send_refuse(c, GLM_REFUSE_ABI, "this engine speaks another version of the wire");
    } else if (s->draining || s->detached) {
        send_refuse(c, GLM_REFUSE_DRAINING, "the engine is shutting down");
    } else if (s->engine == NULL) {
        send_refuse(c, GLM_REFUSE_LOADING, "the engine is loading its model");
    } else if (s->nconn >= s->o.max_clients) {
        send_refuse(c, GLM_REFUSE_CLIENTS, "the engine has as many clients as it may have");
    } else {
        return welcome(c, &h);
    }
    return -1;
}

/* ---- the socket ---- */

static int
bell(glm_conn_t *c, const uint8_t *p, size_t n)
{
    glm_sock_head_t  h;

    if (n != sizeof(h)) return 0;
    memcpy(&h, p, sizeof(h));
    if (h.magic != GLM_WIRE_MAGIC || h.type != GLM_SOCK_BELL || h.reserved != 0) return 0;
    c->rx = 1;
    c->tx = 1;
    return 1;
}

int
glm_conn_socket(glm_conn_t *c)
{
    int      i;
    uint8_t  buf[512];
    ssize_t  n;

    for (i = 0; i < BELLS_PER_TURN; i++) {
        /* recv() takes no descriptors: those that a client sends are closed */
        n = recv(c->fd, buf, sizeof(buf), MSG_DONTWAIT | MSG_TRUNC);
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) return 0;
        if (n <= 0) {
            glm_conn_drop(c, NULL);
            return -1;
        }
        if (c->state == GLM_CONN_GREETING) {
            if (n > (ssize_t) sizeof(buf)) n = 0;
            if (hello(c, buf, (size_t) n) != 0) return -1;
        } else if (!bell(c, buf, (size_t) n)) {
            glm_conn_drop(c, "sent garbage on its socket");
            return -1;
        }
    }
    return 0;
}

void
glm_conn_bell(glm_conn_t *c)
{
    ssize_t                       n;
    static const glm_sock_head_t  h = { GLM_WIRE_MAGIC, GLM_SOCK_BELL, 0 };

    /* EAGAIN: bells are waiting there already; others: EOF follows */
    n = send(c->fd, &h, sizeof(h), MSG_DONTWAIT | MSG_NOSIGNAL);
    (void) n;
}
