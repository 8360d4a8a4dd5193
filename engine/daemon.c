/*
 * daemon: see daemon.h.  Main thread; signals come through a signalfd, blocked
 * in every thread.  SIGTERM drains, a second one or SIGINT ends at once with
 * errors to the clients.
 */
#include "daemon.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "log.h"
#include "sockpath.h"

#define DRAIN_POLL_MS  20
#define FLUSH_MS       1000       /* for clients to take their last messages */

typedef enum { LOADING, SERVING, DRAINING, ENDING } state_t;

typedef struct {
    const glm_daemon_opts_t  *o;
    state_t          state;
    int              signal_fd, loaded_fd, failed_fd;
    glm_sockpath_t   sock;
    glm_server_t    *server;
    glm_engine_t    *engine;
    pthread_t        loader;
    int              joined;      /* loading is over */
    int              load_rc;
    glm_err_t        load_err;
    atomic_int       fault;       /* code of what happened to the device */
    glm_err_t        fault_err;   /* before fault is set */
    uint64_t         idle_since;  /* ms; draining: the engine has nothing left */
} daemon_t;

static uint64_t
now_ms(void)
{
    struct timespec  ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t) ts.tv_sec * 1000 + (uint64_t) ts.tv_nsec / 1000000;
}

static sigset_t
own_signals(void)
{
    sigset_t  set;

    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    return set;
}

void
glm_daemon_block_signals(void)
{
    sigset_t  set = own_signals();

    pthread_sigmask(SIG_BLOCK, &set, NULL);
}

static int
signals(daemon_t *d, glm_err_t *err)
{
    sigset_t  set = own_signals();

    glm_daemon_block_signals();
    signal(SIGPIPE, SIG_IGN);
    d->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    d->loaded_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    d->failed_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (d->signal_fd < 0 || d->loaded_fd < 0 || d->failed_fd < 0) {
        return glm_fail(err, GLM_EIO, "signalfd() failed: %s", strerror(errno));
    }
    return 0;
}

/* Each client costs a few descriptors for a moment. */
static void
raise_limits(void)
{
    struct rlimit  r;

    if (getrlimit(RLIMIT_NOFILE, &r) != 0) return;
    r.rlim_cur = r.rlim_max;
    setrlimit(RLIMIT_NOFILE, &r);
}

static void
knock(int fd)
{
    uint64_t  one = 1;
    ssize_t   n = write(fd, &one, sizeof(one));

    (void) n;
}

/* On the step thread. */
static void
on_failure(void *arg, int code, const char *text)
{
    daemon_t  *d = arg;

    (void) glm_fail(&d->fault_err, code, "the device failed: %s", text);
    atomic_store(&d->fault, code);
    knock(d->failed_fd);
}

static void *
load(void *arg)
{
    daemon_t           *d = arg;
    glm_engine_opts_t   o = d->o->engine;

    if (d->o->loading_ms) usleep(d->o->loading_ms * 1000);
    o.on_failure = on_failure;
    o.on_failure_arg = d;
    d->load_rc = glm_engine_start(&d->engine, &o, &d->load_err);
    knock(d->loaded_fd);
    return NULL;
}

static int
start(daemon_t *d, glm_err_t *err)
{
    int  rc;

    d->signal_fd = d->loaded_fd = d->failed_fd = d->sock.fd = d->sock.lock_fd = -1;
    rc = signals(d, err);
    if (rc == 0) {
        rc = glm_sockpath_open(&d->sock, d->o->socket, d->o->socket_group, d->o->socket_mode,
                               err);
    }
    if (rc == 0) rc = glm_server_start(&d->server, &d->o->server, d->sock.fd, err);
    if (rc == 0 && (errno = pthread_create(&d->loader, NULL, load, d)) != 0) {
        rc = glm_fail(err, GLM_EIO, "pthread_create() failed: %s", strerror(errno));
    }
    return rc;
}

/* 0, or the exit status when the model cannot be served. */
static int
on_loaded(daemon_t *d)
{
    int        rc;
    glm_err_t  err = {{0}};

    pthread_join(d->loader, NULL);
    d->joined = 1;
    if (d->load_rc != 0) {
        glm_log(GLM_LOG_ERR, "%s", d->load_err.text[0] ? d->load_err.text
                                                       : "the model cannot be loaded");
        return glm_daemon_status(d->load_rc);
    }
    rc = glm_server_engine(d->server, d->engine, &err);
    if (rc != 0) {
        glm_log(GLM_LOG_ERR, "%s", err.text);
        return 1;
    }
    d->state = SERVING;
    glm_log(GLM_LOG_NOTICE, "serving \"%s\" on %s", glm_engine_name(d->engine), d->sock.path);
    return 0;
}

static void
on_signal(daemon_t *d, int sig)
{
    if (sig == SIGHUP) return;    /* nothing to reread; a terminal that closes is no reason */
    if (d->state == SERVING && sig == SIGTERM) {
        glm_log(GLM_LOG_NOTICE, "SIGTERM: draining, new requests are refused");
        glm_server_drain(d->server);
        glm_engine_drain(d->engine);
        d->state = DRAINING;
        return;
    }
    glm_log(GLM_LOG_NOTICE, "%s: ending at once", sig == SIGTERM ? "SIGTERM" : "SIGINT");
    d->state = ENDING;
}

/* Everything has run; clients that do not take the rest get as long as a paused
 * request would. */
static int
drained(daemon_t *d)
{
    if (!glm_engine_idle(d->engine)) {
        d->idle_since = 0;
        return 0;
    }
    if (glm_server_idle(d->server)) return 1;
    if (d->idle_since == 0) d->idle_since = now_ms();
    return now_ms() - d->idle_since >= d->o->server.pause_ms;
}

/* 0, or the exit status after the device failed. */
static int
device_status(daemon_t *d)
{
    int  code = atomic_load(&d->fault);

    if (code == 0) return 0;
    glm_log(GLM_LOG_ERR, "%s", d->fault_err.text);
    return glm_daemon_status(code);
}

static int
serve(daemon_t *d)
{
    int                      status;
    uint64_t                 count;
    struct pollfd            p[3] = { { .fd = d->signal_fd, .events = POLLIN },
                                      { .fd = d->loaded_fd, .events = POLLIN },
                                      { .fd = d->failed_fd, .events = POLLIN } };
    struct signalfd_siginfo  si;

    while (d->state != ENDING) {
        poll(p, 3, d->state == DRAINING ? DRAIN_POLL_MS : -1);
        while (read(d->signal_fd, &si, sizeof(si)) == (ssize_t) sizeof(si)) {
            on_signal(d, (int) si.ssi_signo);
        }
        if (d->state == LOADING && read(d->loaded_fd, &count, sizeof(count)) > 0
            && (status = on_loaded(d)) != 0)
        {
            return status;
        }
        if ((status = device_status(d)) != 0) return status;
        if (d->state == DRAINING && drained(d)) d->state = ENDING;
    }
    return 0;
}

static void
finish(daemon_t *d)
{
    if (d->engine != NULL) {
        glm_server_detach(d->server);
        glm_engine_stop(d->engine);
    }
    glm_server_stop(d->server, FLUSH_MS);
    glm_sockpath_close(&d->sock);
    if (d->signal_fd >= 0) close(d->signal_fd);
    if (d->loaded_fd >= 0) close(d->loaded_fd);
    if (d->failed_fd >= 0) close(d->failed_fd);
}

int
glm_daemon_status(int rc)
{
    switch (rc) {
    case GLM_ENOMEM:    return 3;
    case GLM_EGPU:      return 4;
    case GLM_ELOST:     return 5;
    case GLM_ETIMEOUT:  return 6;
    case GLM_ENAN:      return 7;
    default:            return 1;
    }
}

int
glm_daemon_run(const glm_daemon_opts_t *o, int *abandoned)
{
    int              status;
    glm_err_t        err = {{0}};
    static daemon_t  d;           /* outlives this call where the loader does */

    d = (daemon_t) { .o = o };
    *abandoned = 0;
    raise_limits();
    if (start(&d, &err) != 0) {
        glm_log(GLM_LOG_ERR, "%s", err.text);
        finish(&d);
        return 1;
    }
    status = serve(&d);
    if (!d.joined) {
        glm_sockpath_close(&d.sock);     /* the loader cannot be interrupted */
        *abandoned = 1;
        return 0;
    }
    finish(&d);
    if (status == 0) status = device_status(&d);    /* that it failed while it stopped */
    *abandoned = atomic_load(&d.fault) != 0 || status == glm_daemon_status(GLM_ETIMEOUT);
    if (status == 0) glm_log(GLM_LOG_NOTICE, "ended");
    return status;
}
