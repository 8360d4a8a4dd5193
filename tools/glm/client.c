/*
 * client: see client.h.
 */
#include "client.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define MAX_ASSEMBLY  (64u << 20)
#define HELLO_MS      10000

typedef struct part_s  part_t;

struct part_s {                   /* a request that is live, and its message so far */
    part_t      *next;
    uint64_t     id;
    glm_wbuf_t   buf;
    size_t       cost;
};

struct glm_client_s {
    int                 fd, nowait;
    glm_sock_welcome_t  w;
    uint8_t            *map;
    size_t              map_bytes;
    void               *stats;
    size_t              stats_bytes;
    glm_ring_t          sub, com;
    part_t             *live;
    int                 nlive;
    glm_wbuf_t          event;    /* the last message */
    uint8_t             record[GLM_WIRE_MAX_RECORD];
};

/* ---- greeting ---- */

static int
send_hello(int fd, const glm_client_opts_t *o, glm_err_t *err)
{
    glm_sock_hello_t  h = {
        .head = { GLM_WIRE_MAGIC, GLM_SOCK_HELLO, 0 }, .size = sizeof(h),
        .abi_min = GLM_WIRE_ABI_OLDEST, .abi_max = GLM_WIRE_ABI, .kind = o->kind,
        .submit_bytes = o->submit_bytes, .complete_bytes = o->complete_bytes,
    };
    const char       *name = o->name != NULL ? o->name : "glm";

    memcpy(h.name, name, strnlen(name, sizeof(h.name)));
    if (send(fd, &h, sizeof(h), MSG_NOSIGNAL) == (ssize_t) sizeof(h)) return 0;
    return glm_fail(err, GLM_EIO, "send() failed: %s", strerror(errno));
}

static int
refused(const glm_sock_refuse_t *r, glm_err_t *err)
{
    int  again = r->reason != GLM_REFUSE_ABI && r->reason != GLM_REFUSE_HELLO;

    return glm_fail(err, again ? GLM_EBUSY : GLM_EFORMAT, "%.*s",
                    (int) strnlen(r->text, sizeof(r->text)), r->text);
}

/* The answer, with its descriptors in fds. */
static int
recv_welcome(int fd, glm_sock_welcome_t *w, int fds[2], glm_err_t *err)
{
    ssize_t          n;
    struct pollfd    p = { .fd = fd, .events = POLLIN };
    union { glm_sock_head_t head; glm_sock_welcome_t w; glm_sock_refuse_t r; }  m = {0};
    struct iovec     iov = { .iov_base = &m, .iov_len = sizeof(m) };
    struct cmsghdr  *cm;
    union { struct cmsghdr align; char buf[CMSG_SPACE(2 * sizeof(int))]; }  ctl = {0};
    struct msghdr    mh = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = ctl.buf,
                            .msg_controllen = sizeof(ctl.buf) };

    if (poll(&p, 1, HELLO_MS) == 0) return glm_fail(err, GLM_EIO, "the engine does not answer");
    n = recvmsg(fd, &mh, MSG_CMSG_CLOEXEC);
    if (n <= 0) return glm_fail(err, GLM_EIO, "the engine closed the connection");
    cm = CMSG_FIRSTHDR(&mh);
    if (cm != NULL && cm->cmsg_type == SCM_RIGHTS && cm->cmsg_len == CMSG_LEN(2 * sizeof(int))) {
        memcpy(fds, CMSG_DATA(cm), 2 * sizeof(int));
    }
    if (n >= (ssize_t) sizeof(m.head) && m.head.magic == GLM_WIRE_MAGIC) {
        if (m.head.type == GLM_SOCK_REFUSE) return refused(&m.r, err);
        if (m.head.type == GLM_SOCK_WELCOME && n >= (ssize_t) sizeof(m.w) && fds[1] >= 0) {
            *w = m.w;
            return 0;
        }
    }
    return glm_fail(err, GLM_EFORMAT, "the socket is not a glm-engine's");
}

static int
bad_ring(const glm_sock_welcome_t *w, uint64_t offset, uint32_t size)
{
    return size < GLM_WIRE_MIN_RING || size > GLM_WIRE_MAX_RING || (size & (size - 1))
           || offset % GLM_RING_LINE || offset > w->ring_bytes
           || w->ring_bytes - offset < sizeof(glm_ring_shared_t) + size;
}

static int
map_all(glm_client_t *c, const int fds[2], glm_err_t *err)
{
    void         *p;
    struct stat   st;

    if (fstat(fds[0], &st) != 0 || (uint64_t) st.st_size < c->w.ring_bytes
        || c->w.ring_bytes > (1u << 30) || bad_ring(&c->w, c->w.submit_offset, c->w.submit_bytes)
        || bad_ring(&c->w, c->w.complete_offset, c->w.complete_bytes))
    {
        return glm_fail(err, GLM_EFORMAT, "the engine's rings are malformed");
    }
    c->map_bytes = c->w.ring_bytes;
    p = mmap(NULL, c->map_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fds[0], 0);
    if (p == MAP_FAILED) return glm_fail(err, GLM_EIO, "mmap() failed: %s", strerror(errno));
    c->map = p;
    glm_ring_init(&c->sub, c->map + c->w.submit_offset, c->w.submit_bytes);
    glm_ring_init(&c->com, c->map + c->w.complete_offset, c->w.complete_bytes);

    if (fstat(fds[1], &st) != 0 || st.st_size < 8 || st.st_size > (1 << 20)) {
        return glm_fail(err, GLM_EFORMAT, "the engine's statistics are malformed");
    }
    c->stats_bytes = (size_t) st.st_size;
    p = mmap(NULL, c->stats_bytes, PROT_READ, MAP_SHARED, fds[1], 0);
    if (p == MAP_FAILED) return glm_fail(err, GLM_EIO, "mmap() failed: %s", strerror(errno));
    c->stats = p;
    return 0;
}

int
glm_client_attach(glm_client_t **out, int fd, const glm_client_opts_t *o, glm_err_t *err)
{
    int                       rc, fds[2] = { -1, -1 };
    glm_client_t             *c = calloc(1, sizeof(*c));
    const glm_client_opts_t   none = {0};

    if (o == NULL) o = &none;
    *out = NULL;
    if (c == NULL) {
        close(fd);
        return glm_fail(err, GLM_ENOMEM, "no memory");
    }
    c->fd = fd;
    c->nowait = o->nowait;
    rc = send_hello(fd, o, err);
    if (rc == 0) rc = recv_welcome(fd, &c->w, fds, err);
    if (rc == 0) rc = map_all(c, fds, err);
    if (fds[0] >= 0) close(fds[0]);
    if (fds[1] >= 0) close(fds[1]);
    if (rc != 0) {
        glm_client_free(c);
        return rc;
    }
    *out = c;
    return 0;
}

int
glm_client_connect(glm_client_t **out, const char *path, const glm_client_opts_t *o,
    glm_err_t *err)
{
    int                 fd;
    struct sockaddr_un  sun = { .sun_family = AF_UNIX };

    *out = NULL;
    if (strlen(path) >= sizeof(sun.sun_path)) {
        return glm_fail(err, GLM_ELIMIT, "%.80s...: socket path above %zu bytes", path,
                        sizeof(sun.sun_path) - 1);
    }
    memcpy(sun.sun_path, path, strlen(path));
    fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd < 0) return glm_fail(err, GLM_EIO, "socket() failed: %s", strerror(errno));
    if (connect(fd, (struct sockaddr *) &sun, sizeof(sun)) != 0) {
        glm_fail(err, GLM_ENOENT, "%s: no engine there: %s", path, strerror(errno));
        close(fd);
        return GLM_ENOENT;
    }
    return glm_client_attach(out, fd, o, err);
}

static void
part_free(glm_client_t *c, part_t *p)
{
    part_t  **at = &c->live;

    while (*at != p) at = &(*at)->next;
    *at = p->next;
    c->nlive--;
    glm_wbuf_free(&p->buf);
    free(p);
}

void
glm_client_free(glm_client_t *c)
{
    if (c == NULL) return;
    while (c->live != NULL) part_free(c, c->live);
    if (c->map != NULL) munmap(c->map, c->map_bytes);
    if (c->stats != NULL) munmap(c->stats, c->stats_bytes);
    glm_wbuf_free(&c->event);
    close(c->fd);
    free(c);
}

const glm_sock_welcome_t *
glm_client_welcome(const glm_client_t *c)
{
    return &c->w;
}

int
glm_client_fd(const glm_client_t *c)
{
    return c->fd;
}

int
glm_client_live(const glm_client_t *c)
{
    return c->nlive;
}

int
glm_client_stats(const glm_client_t *c, glm_wire_stats_t *out)
{
    return glm_stats_read(c->stats, c->stats_bytes, out) == 0 ? 0 : GLM_EBUSY;
}

/* ---- sending ---- */

static void
bell(glm_client_t *c)
{
    ssize_t          n;
    glm_sock_head_t  h = { GLM_WIRE_MAGIC, GLM_SOCK_BELL, 0 };

    n = send(c->fd, &h, sizeof(h), MSG_DONTWAIT | MSG_NOSIGNAL);
    (void) n;                     /* EAGAIN: one is pending; others: EOF follows */
}

/* Takes waiting bells.  -1: the engine is gone. */
static int
drain_socket(glm_client_t *c)
{
    char     buf[64];
    ssize_t  n;

    do n = recv(c->fd, buf, sizeof(buf), MSG_DONTWAIT); while (n > 0);
    return n < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : -1;
}

/* Until a bell rings.  1; 0: time is up or a signal; -1: the engine is gone. */
static int
wait_bell(glm_client_t *c, int timeout_ms)
{
    int            n;
    struct pollfd  p = { .fd = c->fd, .events = POLLIN };

    n = poll(&p, 1, timeout_ms);
    if (n <= 0) return 0;
    return drain_socket(c) == 0 ? 1 : -1;
}

static part_t *
find(glm_client_t *c, uint64_t id)
{
    part_t  *p;

    for (p = c->live; p != NULL && p->id != id; p = p->next) { /* next */ }
    return p;
}

/* A record of n bytes of payload, with spare bytes of room left behind it. */
static int
put_record(glm_client_t *c, uint16_t type, uint64_t id, const void *s, size_t n, int more,
    size_t spare)
{
    int        rc;
    void      *at;
    int64_t    room;
    glm_rec_t  rec = { .size = (uint32_t) (sizeof(rec) + n), .type = type,
                       .flags = more ? GLM_REC_MORE : 0, .id = id };

    for ( ;; ) {
        room = glm_ring_room(&c->sub);
        if (room < 0) return GLM_EFORMAT;
        rc = GLM_RING_FULL;
        if (room >= (int64_t) (rec.size + spare)) rc = glm_ring_reserve(&c->sub, rec.size, &at);
        if (rc != GLM_RING_FULL) break;
        if (glm_ring_publish(&c->sub)) bell(c);
        glm_ring_want_room(&c->sub);
        if (glm_ring_room(&c->sub) >= (int64_t) (rec.size + spare)) {
            rc = glm_ring_reserve(&c->sub, rec.size, &at);
            if (rc != GLM_RING_FULL) break;
        }
        if (wait_bell(c, 1000) < 0) return GLM_EIO;
    }
    if (rc != GLM_RING_OK) return GLM_EFORMAT;
    memcpy(at, &rec, sizeof(rec));
    if (n) memcpy((uint8_t *) at + sizeof(rec), s, n);
    return 0;
}

static int
lost(int rc, glm_err_t *err)
{
    return glm_fail(err, rc, rc == GLM_EFORMAT ? "the engine broke the ring"
                                               : "the engine is gone");
}

/* A whole message in records; a CANCEL for each live request fits behind it. */
static int
put_message(glm_client_t *c, uint64_t id, const glm_wbuf_t *b, glm_err_t *err)
{
    int     rc;
    size_t  at, n, max = glm_ring_max_record(&c->sub) - sizeof(glm_rec_t);
    size_t  spare = (size_t) (c->nlive + 1) * sizeof(glm_rec_t);
    size_t  whole = b->n + (b->n / max + 1) * sizeof(glm_rec_t) + max;   /* and a pad */

    if (c->nowait && glm_ring_room(&c->sub) < (int64_t) (whole + spare)) {
        return glm_fail(err, GLM_EBUSY, "the submission ring is full");
    }
    for (at = 0; at < b->n; at += n) {
        n = b->n - at < max ? b->n - at : max;
        rc = put_record(c, GLM_MSG_SUBMIT, id, b->p + at, n, at + n < b->n, spare);
        if (rc != 0) return lost(rc, err);
    }
    if (glm_ring_publish(&c->sub)) bell(c);
    return 0;
}

int
glm_client_submit(glm_client_t *c, uint64_t id, glm_client_submit_t *s, glm_err_t *err)
{
    int         rc = 0;
    part_t     *p;
    glm_wbuf_t  b = {0};

    s->m.size = sizeof(s->m);
    glm_wbuf_put(&b, &s->m, sizeof(s->m));
    glm_wbuf_put(&b, s->sections.p, s->sections.n);
    p = calloc(1, sizeof(*p));

    if (b.failed || s->sections.failed || p == NULL) rc = glm_fail(err, GLM_ENOMEM, "no memory");
    else if (b.n > c->w.max_message) {
        rc = glm_fail(err, GLM_ELIMIT, "request of %zu bytes, the engine takes %u", b.n,
                      c->w.max_message);
    } else if ((uint32_t) c->nlive >= c->w.max_live) {
        rc = glm_fail(err, GLM_ELIMIT, "%d requests at a time is the limit", c->nlive);
    } else if (find(c, id) != NULL) {
        rc = glm_fail(err, GLM_EINVAL, "the id is in use");
    }
    if (rc == 0) rc = put_message(c, id, &b, err);
    if (rc == 0) {
        p->id = id;
        p->next = c->live;
        c->live = p;
        c->nlive++;
        p = NULL;
    }
    free(p);
    glm_wbuf_free(&b);
    glm_wbuf_free(&s->sections);
    return rc;
}

static int
put_short(glm_client_t *c, uint16_t type, uint64_t id, const void *s, size_t n)
{
    int  rc = put_record(c, type, id, s, n, 0, 0);

    if (rc == 0 && glm_ring_publish(&c->sub)) bell(c);
    return rc;
}

int
glm_client_window(glm_client_t *c, uint64_t id, uint64_t bytes)
{
    glm_msg_window_t  w = { .size = sizeof(w), .bytes = bytes };

    return put_short(c, GLM_MSG_WINDOW, id, &w, sizeof(w));
}

int
glm_client_cancel(glm_client_t *c, uint64_t id)
{
    return put_short(c, GLM_MSG_CANCEL, id, NULL, 0);
}

int
glm_client_go(glm_client_t *c, uint64_t id)
{
    return put_short(c, GLM_MSG_GO, id, NULL, 0);
}

/* ---- receiving ---- */

/* The fixed part: missing bytes are zero, those of a newer engine are skipped. */
static int
fixed(void *dst, size_t known, const glm_wbuf_t *b, size_t *at)
{
    uint32_t  size;

    if (b->n < sizeof(size)) return -1;
    memcpy(&size, b->p, sizeof(size));
    if (size < sizeof(size) || size > b->n || size % GLM_WIRE_ALIGN) return -1;
    memset(dst, 0, known);
    memcpy(dst, b->p, size < known ? size : known);
    *at = size;
    return 0;
}

static int
sections(glm_event_t *ev, const glm_wbuf_t *b, size_t at)
{
    size_t          padded;
    glm_sec_t       sec;
    const uint8_t  *p;

    while (at < b->n) {
        if (b->n - at < sizeof(sec)) return -1;
        memcpy(&sec, b->p + at, sizeof(sec));
        at += sizeof(sec);
        if (sec.size > b->n - at) return -1;
        p = b->p + at;
        if (sec.type == GLM_SEC_TEXT || sec.type == GLM_SEC_STOPTEXT) {
            ev->text = (const char *) p;
            ev->ntext = sec.size;
        } else if (sec.type == GLM_SEC_IDS) {
            ev->ids = (const int32_t *) (const void *) p;
            ev->nids = sec.size / sizeof(int32_t);
        } else if (sec.type == GLM_SEC_LOGPROBS) {
            ev->logprobs = p;
            ev->nlogprobs = sec.size;
        } else if (sec.type == GLM_SEC_SPANS) {
            ev->spans = (const glm_span_rec_t *) (const void *) p;
            ev->nspans = sec.size / sizeof(glm_span_rec_t);
        }
        padded = ((size_t) sec.size + 7) & ~(size_t) 7;
        if (padded >= b->n - at) return 0;
        at += padded;
    }
    return 0;
}

static int
decode(glm_event_t *ev, const glm_wbuf_t *b)
{
    int               rc = -1;
    size_t            at = 0;
    glm_msg_prompt_t  prompt;

    switch (ev->type) {
    case GLM_MSG_ACCEPTED: rc = fixed(&ev->accepted, sizeof(ev->accepted), b, &at); break;
    case GLM_MSG_PROMPT:   rc = fixed(&prompt, sizeof(prompt), b, &at); break;
    case GLM_MSG_TOKENS:   rc = fixed(&ev->tokens, sizeof(ev->tokens), b, &at); break;
    case GLM_MSG_FINISH:   rc = fixed(&ev->finish, sizeof(ev->finish), b, &at); break;
    case GLM_MSG_FILLED:   rc = fixed(&ev->filled, sizeof(ev->filled), b, &at); break;
    case GLM_MSG_DONE:     rc = fixed(&ev->done, sizeof(ev->done), b, &at); break;
    case GLM_MSG_ERROR:    rc = fixed(&ev->error, sizeof(ev->error), b, &at); break;
    }
    if (rc == 0) rc = sections(ev, b, at);
    ev->error.code[sizeof(ev->error.code) - 1] = '\0';
    ev->error.param[sizeof(ev->error.param) - 1] = '\0';
    return rc;
}

/* A record that is in c->record.  1: *ev is whole; 0: more comes; -1: nonsense. */
static int
take_record(glm_client_t *c, glm_event_t *ev)
{
    part_t     *p;
    glm_rec_t   rec;

    memcpy(&rec, c->record, sizeof(rec));
    p = find(c, rec.id);
    if (p == NULL) return -1;
    glm_wbuf_put(&p->buf, c->record + sizeof(rec), rec.size - sizeof(rec));
    p->cost += rec.size;
    if (p->buf.failed || p->buf.n > MAX_ASSEMBLY) return -1;
    if (rec.flags & GLM_REC_MORE) return 0;

    *ev = (glm_event_t) { .type = rec.type, .id = rec.id, .cost = p->cost };
    glm_wbuf_free(&c->event);
    c->event = p->buf;
    p->buf = (glm_wbuf_t) {0};
    p->cost = 0;
    if (decode(ev, &c->event) != 0) return -1;
    if (!GLM_MSG_COSTS(ev->type)) ev->cost = 0;
    if (ev->type == GLM_MSG_DONE || ev->type == GLM_MSG_ERROR) part_free(c, p);
    return 1;
}

/* What is in the ring.  1, 0, -1 as above. */
static int
take_message(glm_client_t *c, glm_event_t *ev)
{
    int  rc;

    for ( ;; ) {
        rc = glm_ring_read(&c->com, c->record, sizeof(c->record));
        if (rc == GLM_RING_BROKEN) return -1;
        if (rc == GLM_RING_EMPTY) {
            if (glm_ring_release(&c->com)) bell(c);
            return 0;
        }
        rc = take_record(c, ev);
        if (rc == 0) continue;
        if (glm_ring_release(&c->com)) bell(c);
        return rc;
    }
}

static int64_t
now_ms(void)
{
    struct timespec  ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t) ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

int
glm_client_next(glm_client_t *c, glm_event_t *ev, int timeout_ms, glm_err_t *err)
{
    int      rc, gone = 0, left = timeout_ms;
    int64_t  end = now_ms() + timeout_ms;

    for ( ;; ) {
        rc = take_message(c, ev);
        if (rc == 1) return 1;
        if (rc < 0) return lost(GLM_EFORMAT, err);
        if (gone) return lost(GLM_EIO, err);
        rc = glm_ring_sleep(&c->com);
        if (rc == GLM_RING_BROKEN) return lost(GLM_EFORMAT, err);
        if (rc == 0) continue;
        if (timeout_ms >= 0) {
            left = (int) (end - now_ms());
            if (left < 0) left = 0;
        }
        rc = wait_bell(c, left);
        if (rc == 0) return 0;
        gone = rc < 0;            /* what it wrote before is still there */
    }
}

int
glm_event_logprob(const glm_event_t *ev, size_t *at, glm_logprob_rec_t *rec, const char **text)
{
    size_t  n;

    if (*at > ev->nlogprobs || ev->nlogprobs - *at < sizeof(*rec)) return 0;
    memcpy(rec, ev->logprobs + *at, sizeof(*rec));
    n = sizeof(*rec) + (((size_t) rec->text_size + 3) & ~(size_t) 3);
    if (ev->nlogprobs - *at < sizeof(*rec) + rec->text_size) return 0;
    *text = (const char *) ev->logprobs + *at + sizeof(*rec);
    *at += n;
    return 1;
}
