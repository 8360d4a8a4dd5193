/*
 * link: the way to an engine: a socket, or an engine in this process behind the
 * same server over a socketpair, so that both take the same path.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "cli.h"
#include "log.h"

#define POLL_MS  200              /* a signal between two looks is seen by then */

static volatile sig_atomic_t  interrupted;

int
glm_cli_fail(const char *text)
{
    fprintf(stderr, "glm: %s\n", text);
    return GLM_CLI_FAIL;
}

int
glm_cli_refused(const glm_event_t *ev)
{
    fprintf(stderr, "glm: %.*s (%u%s%s%s%s)\n", (int) ev->ntext, ev->ntext ? ev->text : "",
            ev->error.status, ev->error.code[0] ? " " : "", ev->error.code,
            ev->error.param[0] ? ", " : "", ev->error.param);
    return GLM_CLI_FAIL;
}

static void
on_signal(int sig)
{
    (void) sig;
    if (interrupted) _exit(130);  /* pressed twice: no waiting */
    interrupted = 1;
}

void
glm_cli_signals(void)
{
    struct sigaction  sa = { .sa_handler = on_signal };

    sigaction(SIGINT, &sa, NULL); /* no SA_RESTART: poll() returns */
    sigaction(SIGTERM, &sa, NULL);
    signal(SIGPIPE, SIG_IGN);
}

int
glm_cli_interrupted(void)
{
    return interrupted;
}

/* Threads of the engine leave signals to this one. */
static int
start_engine(glm_link_t *l, const glm_cli_t *o, glm_err_t *err)
{
    int                 rc;
    sigset_t            all, old;
    glm_server_opts_t   so = GLM_SERVER_OPTS_DEFAULT;

    glm_log_level("error");
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    rc = glm_engine_start(&l->engine, &o->engine, err);
    if (rc == 0) rc = glm_server_start(&l->server, &so, -1, err);
    if (rc == 0) rc = glm_server_engine(l->server, l->engine, err);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return rc;
}

/* A client over a socketpair of the server in this process. */
static int
attach(glm_client_t **out, glm_server_t *server, glm_err_t *err)
{
    int                       fd[2];
    const glm_client_opts_t   co = { .name = "glm", .kind = 2 };

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fd) != 0) {
        return glm_fail(err, GLM_EIO, "socketpair() failed: %s", strerror(errno));
    }
    glm_server_add(server, fd[0]);
    return glm_client_attach(out, fd[1], &co, err);
}

static int
open_local(glm_link_t *l, const glm_cli_t *o, glm_err_t *err)
{
    int  rc = start_engine(l, o, err);

    return rc == 0 ? attach(&l->client, l->server, err) : rc;
}

int
glm_cli_join(glm_link_t *out, const glm_link_t *l, const glm_cli_t *o, glm_err_t *err)
{
    const glm_client_opts_t  co = { .name = "glm", .kind = 2 };

    *out = (glm_link_t) {0};
    if (l->server != NULL) return attach(&out->client, l->server, err);
    return glm_client_connect(&out->client, o->socket, &co, err);
}

int
glm_cli_open(glm_link_t *l, const glm_cli_t *o)
{
    int                       rc;
    glm_err_t                 err = {{0}};
    const glm_client_opts_t   co = { .name = "glm", .kind = 2 };

    *l = (glm_link_t) {0};
    if (o->engine.model_dir != NULL) rc = open_local(l, o, &err);
    else rc = glm_client_connect(&l->client, o->socket, &co, &err);
    if (rc == 0) return GLM_CLI_OK;
    glm_cli_close(l);
    return glm_cli_fail(err.text);
}

void
glm_cli_close(glm_link_t *l)
{
    glm_client_free(l->client);
    if (l->server != NULL) glm_server_detach(l->server);
    if (l->engine != NULL) glm_engine_stop(l->engine);
    glm_server_stop(l->server, 0);
    *l = (glm_link_t) {0};
}

/* ---- the prompt ---- */

/* Numbers between blanks, commas or brackets; a NUL is behind them. */
int
glm_cli_ids(const char *s, size_t size, glm_wbuf_t *out)
{
    long         n;
    char        *end;
    int32_t      id;
    const char  *p = s, *last = s + size;

    for ( ;; ) {
        p += strspn(p, " \t\r\n,[]");
        if (p >= last) return 0;
        errno = 0;
        n = strtol(p, &end, 10);
        if (end == p || errno != 0 || n < INT32_MIN || n > INT32_MAX) return -1;
        id = (int32_t) n;
        glm_wbuf_put(out, &id, sizeof(id));
        p = end;
    }
}

int
glm_cli_prompt(const glm_cli_t *o, glm_client_submit_t *s)
{
    glm_wbuf_t  ids = {0};

    if (!o->ids) {
        glm_wire_section(&s->sections, o->plain ? GLM_SEC_PLAIN : GLM_SEC_TEXT, o->prompt.s,
                         o->prompt.n);
        return GLM_CLI_OK;
    }
    if (glm_cli_ids(o->prompt.s, o->prompt.n, &ids) != 0) {
        glm_wbuf_free(&ids);
        glm_cli_fail("--ids: the prompt must be numbers");
        return GLM_CLI_USAGE;
    }
    glm_wire_section(&s->sections, GLM_SEC_IDS, ids.p, ids.n);
    s->sections.failed |= ids.failed;
    glm_wbuf_free(&ids);
    return GLM_CLI_OK;
}

/* ---- a request ---- */

static int
ended(const glm_event_t *ev, int failed)
{
    if (ev->type == GLM_MSG_ERROR) return glm_cli_refused(ev);
    if (interrupted) return glm_cli_fail("interrupted");
    return failed || ev->done.cancelled ? GLM_CLI_FAIL : GLM_CLI_OK;
}

int
glm_cli_run(glm_link_t *l, glm_client_submit_t *s, glm_cli_event_pt event, void *arg)
{
    int          rc, cancelled = 0, failed = 0;
    glm_err_t    err = {{0}};
    glm_event_t  ev;

    s->m.window = GLM_CLIENT_WINDOW;
    rc = glm_client_submit(l->client, 1, s, &err);
    while (rc >= 0) {
        rc = glm_client_next(l->client, &ev, POLL_MS, &err);
        if (rc == 1 && !failed && event(arg, &ev) != 0) failed = 1;
        if (rc == 1 && (ev.type == GLM_MSG_DONE || ev.type == GLM_MSG_ERROR)) {
            return ended(&ev, failed);
        }
        if ((failed || interrupted) && !cancelled) {
            cancelled = 1;
            if (glm_client_cancel(l->client, 1) != 0) rc = glm_fail(&err, GLM_EIO, "engine gone");
        }
    }
    return glm_cli_fail(err.text);
}
