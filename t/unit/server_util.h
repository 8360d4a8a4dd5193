/*
 * server_util: a ring server over the fake engine in this process, correct
 * clients, and raw ones that can say anything.
 */
#ifndef GLM_SERVER_UTIL_H
#define GLM_SERVER_UTIL_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "../../tools/glm/client.h"
#include "../fake/fake_engine.h"
#include "log.h"
#include "ring_impl.h"
#include "tap.h"

typedef struct {
    glm_server_t  *server;
    glm_engine_t  *engine;
} world_t;

__attribute__((unused))
static world_t
world_start(const glm_server_opts_t *o, const fake_opts_t *f)
{
    world_t             w = {0};
    glm_err_t           err = {{0}};
    glm_server_opts_t   so = *o;
    glm_engine_opts_t   eo = {0};

    fake_engine_opts(f);
    so.token_text = fake_token_text;
    if (glm_engine_start(&w.engine, &eo, &err) != 0 || glm_server_start(&w.server, &so, -1, &err)
        || glm_server_engine(w.server, w.engine, &err))
    {
        bail_out(err.text);
    }
    return w;
}

__attribute__((unused))
static void
world_stop(world_t *w)
{
    glm_server_detach(w->server);
    glm_engine_stop(w->engine);
    glm_server_stop(w->server, 100);
}

/* ---- correct clients ---- */

__attribute__((unused))
static glm_client_t *
join(world_t *w, const glm_client_opts_t *o)
{
    int            fd[2];
    glm_err_t      err = {{0}};
    glm_client_t  *c;

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fd) != 0) bail_out("socketpair");
    glm_server_add(w->server, fd[0]);
    if (glm_client_attach(&c, fd[1], o, &err) != 0) {
        diag("%s", err.text);
        return NULL;
    }
    return c;
}

__attribute__((unused))
static int
ask(glm_client_t *c, uint64_t id, const char *prompt, int32_t max_tokens, uint64_t window,
    uint32_t flags)
{
    glm_err_t            err = {{0}};
    glm_client_submit_t  s = { .m = { .op = GLM_SUBMIT_GENERATE, .n = 1, .flags = flags,
                                      .max_tokens = max_tokens, .window = window } };

    glm_wire_section(&s.sections, GLM_SEC_TEXT, prompt, strlen(prompt));
    return glm_client_submit(c, id, &s, &err);
}

/* The next message within a minute; its type, 0 when none comes. */
__attribute__((unused))
static int
hear(glm_client_t *c, glm_event_t *ev)
{
    glm_err_t  err = {{0}};

    return glm_client_next(c, ev, 60000, &err) == 1 ? ev->type : 0;
}

/* What a request said until it ended. */
typedef struct {
    char            text[70000];
    size_t          ntext, nids, cost, nmsgs;
    int             accepted, finished, ended, order;   /* order: 1 while right */
    glm_msg_done_t  done;
    glm_msg_error_t error;
} answer_t;

__attribute__((unused))
static void
take(answer_t *a, const glm_event_t *ev)
{
    switch (ev->type) {
    case GLM_MSG_ACCEPTED:
        a->order &= !a->accepted && !a->ended;
        a->accepted = 1;
        break;
    case GLM_MSG_TOKENS:
        a->order &= a->accepted && !a->finished && !a->ended;
        a->nmsgs++;
        a->nids += ev->nids;
        if (a->ntext + ev->ntext > sizeof(a->text)) bail_out("more text than the test expects");
        if (ev->ntext) memcpy(a->text + a->ntext, ev->text, ev->ntext);
        a->ntext += ev->ntext;
        break;
    case GLM_MSG_FINISH:
        a->order &= a->accepted && !a->ended;
        a->finished = 1;
        break;
    case GLM_MSG_DONE:
    case GLM_MSG_ERROR:
        a->order &= !a->ended;
        a->ended = ev->type;
        a->done = ev->done;
        a->error = ev->error;
        break;
    }
    a->cost += ev->cost;
}

/* Reads until the request ends, or nothing comes for a minute. */
__attribute__((unused))
static answer_t
answer(glm_client_t *c, uint64_t id)
{
    answer_t     a = { .order = 1 };
    glm_event_t  ev;

    while (!a.ended && hear(c, &ev) != 0) if (ev.id == id) take(&a, &ev);
    return a;
}

/* The text that "bytes=N" makes. */
__attribute__((unused))
static int
right_text(const answer_t *a, int tokens, int nbytes)
{
    int  i, k;

    if (a->ntext != (size_t) (tokens * nbytes)) return 0;
    for (i = 0; i < tokens; i++) {
        for (k = 0; k < nbytes; k++) {
            if (a->text[i * nbytes + k] != "abcdefghijklmnop"[(i + k) % 16]) return 0;
        }
    }
    return 1;
}

/* ---- a good client that asks all the time, beside whatever happens ---- */

typedef struct {
    world_t     *w;
    pthread_t    thread;
    atomic_int   stop, answers, wrong;
    long         slowest_ms;
} neighbour_t;

__attribute__((unused))
static long
ms_now(void)
{
    return (long) (glm_server_now() / 1000000);
}

__attribute__((unused))
static void *
neighbour_main(void *arg)
{
    long           t;
    answer_t      *a = malloc(sizeof(*a));
    neighbour_t   *n = arg;
    glm_client_t  *c = join(n->w, NULL);
    uint64_t       id = 1;

    while (c != NULL && !n->stop) {
        t = ms_now();
        if (ask(c, id, "fake: tokens=30 bytes=9 delay=1", 30, 1 << 20, 0) != 0) break;
        *a = answer(c, id++);
        if (a->ended != GLM_MSG_DONE || !a->order || !right_text(a, 30, 9)) n->wrong++;
        if (ms_now() - t > n->slowest_ms) n->slowest_ms = ms_now() - t;
        n->answers++;
    }
    if (!n->stop) n->wrong++;
    glm_client_free(c);
    free(a);
    return NULL;
}

__attribute__((unused))
static void
neighbour_start(neighbour_t *n, world_t *w)
{
    *n = (neighbour_t) { .w = w };
    pthread_create(&n->thread, NULL, neighbour_main, n);
}

/* Waits until it has had some more answers, so that it saw what happened. */
__attribute__((unused))
static int
neighbour_well(neighbour_t *n)
{
    int   want = n->answers + 2;
    long  end = ms_now() + 60000;

    while (n->answers < want && !n->wrong && ms_now() < end) usleep(1000);
    return n->wrong == 0 && n->answers >= want;
}

__attribute__((unused))
static int
neighbour_end(neighbour_t *n)
{
    n->stop = 1;
    pthread_join(n->thread, NULL);
    return n->wrong == 0 && n->answers > 0;
}

/* ---- raw clients ---- */

typedef struct {
    int                 fd;
    glm_sock_welcome_t  w;
    uint32_t            refused;       /* reason of a REFUSE */
    uint8_t            *map;
    glm_ring_t          sub, com;
} raw_t;

__attribute__((unused))
static void
raw_connect(raw_t *r, world_t *w)
{
    int  fd[2];

    *r = (raw_t) { .fd = -1 };
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fd) != 0) bail_out("socketpair");
    glm_server_add(w->server, fd[0]);
    r->fd = fd[1];
}

/* Sends n bytes as HELLO; takes the answer.  GLM_SOCK_*, or 0 for EOF. */
__attribute__((unused))
static int
raw_hello(raw_t *r, const void *hello, size_t n)
{
    int                fds[2] = { -1, -1 };
    ssize_t            got;
    struct pollfd      p = { .fd = r->fd, .events = POLLIN };
    union { glm_sock_head_t h; glm_sock_welcome_t w; glm_sock_refuse_t r; }  m;
    struct iovec       iov = { .iov_base = &m, .iov_len = sizeof(m) };
    union { struct cmsghdr a; char b[CMSG_SPACE(sizeof(fds))]; }  ctl = {0};
    struct msghdr      mh = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = ctl.b,
                              .msg_controllen = sizeof(ctl.b) };

    send(r->fd, hello, n, MSG_NOSIGNAL);
    if (poll(&p, 1, 60000) != 1) return -1;
    got = recvmsg(r->fd, &mh, MSG_CMSG_CLOEXEC);
    if (got <= 0) return 0;
    if (m.h.type == GLM_SOCK_REFUSE) r->refused = m.r.reason;
    if (m.h.type != GLM_SOCK_WELCOME) return m.h.type;

    r->w = m.w;
    memcpy(fds, CMSG_DATA(CMSG_FIRSTHDR(&mh)), sizeof(fds));
    r->map = mmap(NULL, r->w.ring_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fds[0], 0);
    if (r->map == MAP_FAILED) bail_out("mmap");
    glm_ring_init(&r->sub, r->map + r->w.submit_offset, r->w.submit_bytes);
    glm_ring_init(&r->com, r->map + r->w.complete_offset, r->w.complete_bytes);
    close(fds[0]);
    close(fds[1]);
    return m.h.type;
}

__attribute__((unused))
static glm_sock_hello_t
raw_valid_hello(void)
{
    return (glm_sock_hello_t) {
        .head = { GLM_WIRE_MAGIC, GLM_SOCK_HELLO, 0 }, .size = sizeof(glm_sock_hello_t),
        .abi_min = 1, .abi_max = 1, .submit_bytes = GLM_WIRE_MIN_RING,
        .complete_bytes = GLM_WIRE_MIN_RING, .kind = 3, .name = "raw",
    };
}

/* A welcome client with the smallest rings. */
__attribute__((unused))
static int
raw_join(raw_t *r, world_t *w)
{
    glm_sock_hello_t  h = raw_valid_hello();

    raw_connect(r, w);
    return raw_hello(r, &h, sizeof(h)) == GLM_SOCK_WELCOME;
}

__attribute__((unused))
static void
raw_bell(raw_t *r)
{
    static const glm_sock_head_t  h = { GLM_WIRE_MAGIC, GLM_SOCK_BELL, 0 };

    send(r->fd, &h, sizeof(h), MSG_DONTWAIT | MSG_NOSIGNAL);
}

__attribute__((unused))
static int
raw_put(raw_t *r, uint16_t type, uint16_t flags, uint64_t id, const void *s, size_t n)
{
    void       *at;
    glm_rec_t   rec = { .size = (uint32_t) (sizeof(rec) + n), .type = type, .flags = flags,
                        .id = id };

    if (glm_ring_reserve(&r->sub, rec.size, &at) != GLM_RING_OK) return -1;
    memcpy(at, &rec, sizeof(rec));
    if (n) memcpy((uint8_t *) at + sizeof(rec), s, n);
    return 0;
}

__attribute__((unused))
static void
raw_go(raw_t *r)
{
    glm_ring_publish(&r->sub);
    raw_bell(r);
}

/* A whole SUBMIT with this prompt. */
__attribute__((unused))
static int
raw_ask(raw_t *r, uint64_t id, const char *prompt, int32_t max_tokens, uint64_t window)
{
    int               rc;
    glm_wbuf_t        b = {0};
    glm_msg_submit_t  m = { .size = sizeof(m), .op = GLM_SUBMIT_GENERATE, .n = 1,
                            .max_tokens = max_tokens, .window = window };

    glm_wbuf_put(&b, &m, sizeof(m));
    glm_wire_section(&b, GLM_SEC_TEXT, prompt, strlen(prompt));
    rc = raw_put(r, GLM_MSG_SUBMIT, 0, id, b.p, b.n);
    glm_wbuf_free(&b);
    return rc;
}

/* 1 when the server drops us within a minute. */
__attribute__((unused))
static int
raw_dropped(raw_t *r)
{
    char           b[512];
    long           end = ms_now() + 60000;
    ssize_t        n;
    struct pollfd  p = { .fd = r->fd, .events = POLLIN };

    while (ms_now() < end) {
        if (poll(&p, 1, 100) != 1) continue;
        n = recv(r->fd, b, sizeof(b), MSG_DONTWAIT);
        if (n == 0 || (n < 0 && errno == ECONNRESET)) return 1;
    }
    return 0;
}

__attribute__((unused))
static void
raw_close(raw_t *r)
{
    if (r->fd >= 0) close(r->fd);
    if (r->map != NULL) munmap(r->map, r->w.ring_bytes);
    *r = (raw_t) { .fd = -1 };
}

/* ---- the process ---- */

__attribute__((unused))
static int
open_fds(void)
{
    int   n = 0;
    DIR  *d = opendir("/proc/self/fd");

    while (readdir(d) != NULL) n++;
    closedir(d);
    return n;
}

/* 1 when cond becomes true within a minute. */
#define WAIT_FOR(cond)                                                            \
    ({                                                                            \
        int   met_;                                                               \
        long  end_ = ms_now() + 60000;                                            \
        while (!(met_ = (cond)) && ms_now() < end_) usleep(1000);                 \
        met_;                                                                     \
    })

#endif
