/*
 * ring_server: see ring_server.h.  The I/O thread's loop and the commands that
 * other threads give it.  A turn: events, commands, then each client once, in
 * rotating order and with bounded work, so that none starves another.
 */
#include "ring_impl.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "log.h"

#define EVENTS        64
#define IDLE_TICK_MS  1000

uint64_t
glm_server_now(void)
{
    struct timespec  ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t) ts.tv_sec * 1000000000u + (uint64_t) ts.tv_nsec;
}

/* ---- commands ---- */

static void
poke(glm_server_t *s)
{
    uint64_t  one = 1;
    ssize_t   n = write(s->event_fd, &one, sizeof(one));

    (void) n;
}

/* lock held: tells the I/O thread and waits until it has heard. */
static void
command(glm_server_t *s)
{
    unsigned  mine = ++s->commands;

    poke(s);
    while ((int) (s->handled - mine) < 0) pthread_cond_wait(&s->cond, &s->lock);
}

static void
take_commands(glm_server_t *s)
{
    int  i;

    pthread_mutex_lock(&s->lock);
    if (s->commands != s->handled) {
        if (s->new_engine != NULL && !s->want_detach) s->engine = s->new_engine;
        if (s->want_drain) s->draining = 1;
        if (s->want_detach) {
            s->engine = NULL;
            s->detached = 1;
        }
        if (s->want_stop && s->stop_at == 0) {
            s->stop_at = glm_server_now() + (uint64_t) s->flush_ms * 1000000 + 1;
        }
        for (i = 0; i < s->nadd; i++) glm_conn_new(s, s->add[i]);
        s->nadd = 0;
        s->handled = s->commands;
        pthread_cond_broadcast(&s->cond);
    }
    pthread_mutex_unlock(&s->lock);
}

/* ---- the loop ---- */

static void
event(glm_server_t *s, const struct epoll_event *ev)
{
    uint64_t  count;
    ssize_t   n;

    if (ev->data.ptr == s) {
        n = read(s->event_fd, &count, sizeof(count));
        (void) n;
    } else if (ev->data.ptr == &s->listen_fd) {
        s->accepting = 1;         /* later: it may drop one that has an event here */
    } else {
        ((glm_conn_t *) ev->data.ptr)->in = 1;
    }
}

/* One client's turn.  Each call may drop it, and then c is not touched again. */
static void
serve(glm_conn_t *c)
{
    if (c->in) {
        c->in = 0;
        if (glm_conn_socket(c) != 0) return;
    }
    if (c->rx && glm_conn_receive(c) != 0) return;
    if (atomic_exchange(&c->dirty, 0) || c->tx) glm_conn_send(c);
}

static int
busy(glm_server_t *s)
{
    int          i;
    glm_conn_t  *c;

    for (i = 0; i < s->conn_max; i++) {
        c = s->conn[i];
        if (c != NULL && (c->rx || atomic_load(&c->dirty))) return 1;
    }
    return 0;
}

static void
tick(glm_server_t *s, uint64_t now)
{
    int                 i;
    struct epoll_event  ev = { .events = EPOLLIN, .data.ptr = &s->listen_fd };

    for (i = 0; i < s->conn_max; i++) {
        if (s->conn[i] != NULL && s->conn[i]->state == GLM_CONN_SERVED) {
            glm_conn_tick(s->conn[i], now);
        }
    }
    glm_conn_greeters(s, now);
    if (!s->listening && s->listen_fd >= 0) {
        s->listening = epoll_ctl(s->epoll_fd, EPOLL_CTL_MOD, s->listen_fd, &ev) == 0;
    }
}

static int
wait_ms(glm_server_t *s)
{
    if (busy(s)) return 0;
    if (s->stop_at != 0) return 10;
    if (atomic_load(&s->nlive) > 0 || s->ngreeters > 0 || !s->listening) return GLM_TICK_MS;
    return IDLE_TICK_MS;
}

/* Everything was said, or its time is up. */
static int
stopped(glm_server_t *s)
{
    if (s->stop_at == 0) return 0;
    return atomic_load(&s->nlive) == 0 || glm_server_now() >= s->stop_at;
}

static void *
io_thread(void *arg)
{
    int                 i, n;
    uint64_t            now, ticked = 0;
    glm_server_t       *s = arg;
    glm_conn_t         *c;
    struct epoll_event  ev[EVENTS];

    while (!stopped(s)) {
        n = epoll_wait(s->epoll_fd, ev, EVENTS, wait_ms(s));
        for (i = 0; i < n; i++) event(s, &ev[i]);
        if (s->accepting) glm_conn_accept(s);
        take_commands(s);
        for (i = 0; i < s->conn_max; i++) {
            c = s->conn[(s->turn + (unsigned) i) % (unsigned) s->conn_max];
            if (c != NULL) serve(c);
        }
        s->turn++;
        now = glm_server_now();
        if (now - ticked >= GLM_TICK_MS * 1000000u) {
            tick(s, now);
            ticked = now;
        }
        glm_stats_publish(s);
    }
    return NULL;
}

/* ---- life ---- */

static void
free_server(glm_server_t *s)
{
    if (s == NULL) return;
    glm_stats_close(s);
    if (s->epoll_fd >= 0) close(s->epoll_fd);
    if (s->event_fd >= 0) close(s->event_fd);
    glm_texts_free(s->texts);
    pthread_mutex_destroy(&s->lock);
    pthread_mutex_destroy(&s->hist_lock);
    pthread_cond_destroy(&s->cond);
    free(s->conn);
    free(s->add);
    free(s);
}

static int
watch(glm_server_t *s, glm_err_t *err)
{
    struct epoll_event  ev = { .events = EPOLLIN, .data.ptr = s };

    s->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    s->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (s->epoll_fd < 0 || s->event_fd < 0
        || epoll_ctl(s->epoll_fd, EPOLL_CTL_ADD, s->event_fd, &ev) != 0)
    {
        return glm_fail(err, GLM_EIO, "epoll failed: %s", strerror(errno));
    }
    ev.data.ptr = &s->listen_fd;
    if (s->listen_fd >= 0 && epoll_ctl(s->epoll_fd, EPOLL_CTL_ADD, s->listen_fd, &ev) != 0) {
        return glm_fail(err, GLM_EIO, "epoll_ctl() failed: %s", strerror(errno));
    }
    s->listening = 1;
    return 0;
}

static glm_server_t *
new_server(const glm_server_opts_t *o, int listen_fd)
{
    glm_server_t  *s = calloc(1, sizeof(*s));

    if (s == NULL) return NULL;
    s->o = *o;
    s->listen_fd = listen_fd;
    s->epoll_fd = s->event_fd = s->stats_fd = -1;
    /* those that left and still end have places, too, or reconnecting would fail */
    s->conn_max = 2 * o->max_clients + GLM_MAX_GREETERS;
    s->conn = calloc((size_t) s->conn_max, sizeof(glm_conn_t *));
    s->add = calloc((size_t) s->conn_max, sizeof(int));
    pthread_mutex_init(&s->lock, NULL);
    pthread_mutex_init(&s->hist_lock, NULL);
    pthread_cond_init(&s->cond, NULL);
    if (s->conn == NULL || s->add == NULL
        || getrandom(&s->instance, sizeof(s->instance), 0) != sizeof(s->instance))
    {
        free_server(s);
        return NULL;
    }
    glm_sink_init(s);
    return s;
}

int
glm_server_start(glm_server_t **out, const glm_server_opts_t *o, int listen_fd, glm_err_t *err)
{
    int            rc;
    glm_server_t  *s = new_server(o, listen_fd);

    *out = NULL;
    if (s == NULL) return glm_fail(err, GLM_ENOMEM, "no memory for the ring server");
    rc = watch(s, err);
    if (rc == 0) rc = glm_stats_open(s, err);
    if (rc == 0 && (errno = pthread_create(&s->thread, NULL, io_thread, s)) != 0) {
        rc = glm_fail(err, GLM_EIO, "pthread_create() failed: %s", strerror(errno));
    }
    if (rc != 0) {
        free_server(s);
        return rc;
    }
    *out = s;
    return 0;
}

int
glm_server_engine(glm_server_t *s, glm_engine_t *e, glm_err_t *err)
{
    const glm_config_t  *cfg = glm_engine_config(e);

    s->tokenizer = glm_engine_tokenizer(e);
    s->texts = glm_texts_make(s->tokenizer, cfg->vocab);
    if (s->texts == NULL) return glm_fail(err, GLM_ENOMEM, "no memory for the texts of tokens");
    s->created = (uint64_t) time(NULL);
    s->limits = (glm_decode_limits_t) {
        .vocab = cfg->vocab, .max_stops = GLM_SERVER_MAX_STOPS,
        .max_n = s->o.max_n ? s->o.max_n : 1, .max_logprobs = GLM_MAX_LOGPROBS,
    };
    s->eos = cfg->eos;
    s->eos_seg = (glm_segment_t) { .kind = GLM_SEG_IDS, .ids = &s->eos, .n = 1 };

    pthread_mutex_lock(&s->lock);
    s->new_engine = e;
    command(s);
    pthread_mutex_unlock(&s->lock);
    return 0;
}

int
glm_server_add(glm_server_t *s, int fd)
{
    pthread_mutex_lock(&s->lock);
    s->add[s->nadd++] = fd;       /* handled before this returns: never full */
    command(s);
    pthread_mutex_unlock(&s->lock);
    return 0;
}

void
glm_server_drain(glm_server_t *s)
{
    pthread_mutex_lock(&s->lock);
    s->want_drain = 1;
    command(s);
    pthread_mutex_unlock(&s->lock);
}

int
glm_server_idle(glm_server_t *s)
{
    return atomic_load(&s->nlive) == 0;
}

void
glm_server_detach(glm_server_t *s)
{
    pthread_mutex_lock(&s->lock);
    s->want_detach = 1;
    command(s);
    pthread_mutex_unlock(&s->lock);
}

/* The thread has ended, the engine too: every request was ended by it. */
static void
drop_all(glm_server_t *s)
{
    int          i;
    glm_conn_t  *c;

    s->engine = NULL;
    for (i = 0; i < s->conn_max; i++) {
        c = s->conn[i];
        if (c == NULL) continue;
        glm_conn_drop(c, NULL);
        if (s->conn[i] == c) glm_conn_send(c);
    }
}

void
glm_server_stop(glm_server_t *s, int flush_ms)
{
    if (s == NULL) return;
    pthread_mutex_lock(&s->lock);
    s->want_stop = 1;
    s->flush_ms = flush_ms;
    s->commands++;
    poke(s);
    pthread_mutex_unlock(&s->lock);
    pthread_join(s->thread, NULL);
    drop_all(s);
    free_server(s);
}
