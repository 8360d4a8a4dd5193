/*
 * fake_engine: see fake_engine.h.  engine.h, and the one thread that runs all that is due.
 */
#include "fake_engine.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "fake_job.h"

static fake_opts_t    opts = { .name = "fake-model", .defaults = "", .max_seq = 2048 };
static glm_engine_t  *current;

void
fake_engine_opts(const fake_opts_t *o)
{
    opts = *o;
    if (opts.name == NULL) opts.name = "fake-model";
    if (opts.defaults == NULL) opts.defaults = "";
    if (opts.max_seq == 0) opts.max_seq = 2048;
}

int
fake_engine_jobs(void)
{
    return current != NULL ? atomic_load(&current->njobs) : 0;
}

uint64_t
fake_now(void)
{
    struct timespec  ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t) ts.tv_sec * 1000000000u + (uint64_t) ts.tv_nsec;
}

/* ---- the thread ---- */

static void
take_new(glm_engine_t *e)
{
    int          i, n;
    glm_req_t  **in;

    pthread_mutex_lock(&e->lock);
    in = e->in;
    n = e->nin;
    e->in = NULL;
    e->nin = e->incap = 0;
    pthread_mutex_unlock(&e->lock);
    for (i = 0; i < n; i++) {
        e->sink = in[i]->sink;
        fake_begin(e, in[i]);
    }
    free(in);
}

static void
update_stats(glm_engine_t *e)
{
    job_t  *j;

    pthread_mutex_lock(&e->lock);
    e->stats.heartbeat = fake_now();
    e->stats.running = (uint32_t) e->nrunning;
    e->stats.waiting = (uint32_t) e->nwaiting;
    e->stats.paused = 0;
    for (j = e->jobs; j != NULL; j = j->next) {
        e->stats.paused += (uint32_t) atomic_load(&j->r->paused);
    }
    e->stats.kv_pages_total = 1000;
    e->stats.kv_pages_used = (uint32_t) (10 * e->nrunning);
    e->stats.draining = (uint32_t) atomic_load(&e->draining);
    pthread_mutex_unlock(&e->lock);
}

/* Until something is due or comes. */
static void
wait_due(glm_engine_t *e)
{
    uint64_t         at = fake_now() + 20 * MS;
    job_t           *j;
    struct timespec  ts;

    for (j = e->jobs; j != NULL; j = j->next) {
        if (!j->silent && j->due < at) at = j->due;
    }
    if (at <= fake_now()) at = fake_now() + MS;
    ts.tv_sec = (time_t) (at / 1000000000u);
    ts.tv_nsec = (long) (at % 1000000000u);
    pthread_mutex_lock(&e->lock);
    if (e->nin == 0 && !e->stop) pthread_cond_timedwait(&e->cond, &e->lock, &ts);
    pthread_mutex_unlock(&e->lock);
}

static void
stand_still(glm_engine_t *e)
{
    while (fake_now() < e->stall_until) {
        usleep(1000);
        if (e->stop) e->stall_until = 0;
    }
}

static void *
run(void *arg)
{
    int            said;
    job_t         *j, *next;
    uint64_t       now;
    glm_engine_t  *e = arg;

    for ( ;; ) {
        take_new(e);
        stand_still(e);
        now = fake_now();
        said = 0;
        for (j = e->jobs; j != NULL; j = next) {
            next = j->next;
            said |= fake_run_job(e, j, now);
        }
        update_stats(e);
        if (e->sink != NULL) e->sink->flush(e->sink->flush_arg);
        if (e->stop && atomic_load(&e->njobs) == 0) break;
        if (!said) wait_due(e);
    }
    return NULL;
}

/* ---- engine.h ---- */

int
glm_engine_start(glm_engine_t **out, const glm_engine_opts_t *o, glm_err_t *err)
{
    pthread_condattr_t   attr;
    glm_engine_t        *e = calloc(1, sizeof(*e));

    (void) o;
    *out = NULL;
    if (e == NULL) return glm_fail(err, GLM_ENOMEM, "no memory");
    e->opts = opts;
    snprintf(e->config.name, sizeof(e->config.name), "%s", opts.name);
    e->config.vocab = FAKE_VOCAB;
    e->config.max_seq = opts.max_seq;
    e->config.eos = FAKE_EOS;
    e->stats.started = fake_now();
    e->stats.heartbeat = e->stats.started;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&e->cond, &attr);
    pthread_mutex_init(&e->lock, NULL);
    pthread_create(&e->thread, NULL, run, e);
    current = e;
    *out = e;
    return 0;
}

static void
wake(glm_engine_t *e)
{
    pthread_mutex_lock(&e->lock);
    pthread_cond_signal(&e->cond);
    pthread_mutex_unlock(&e->lock);
}

void
glm_engine_drain(glm_engine_t *e)
{
    e->draining = 1;
}

int
glm_engine_idle(const glm_engine_t *e)
{
    return atomic_load(&e->njobs) == 0;
}

void
glm_engine_stop(glm_engine_t *e)
{
    pthread_mutex_lock(&e->lock);
    e->stop = 1;
    pthread_cond_signal(&e->cond);
    pthread_mutex_unlock(&e->lock);
    pthread_join(e->thread, NULL);
    current = NULL;
    free(e->in);
    free(e);
}

const glm_config_t *
glm_engine_config(const glm_engine_t *e)
{
    return &e->config;
}

const glm_tokenizer_t *
glm_engine_tokenizer(const glm_engine_t *e)
{
    (void) e;
    return NULL;
}

const char *
glm_engine_name(const glm_engine_t *e)
{
    return e->config.name;
}

uint64_t
glm_engine_fingerprint(const glm_engine_t *e)
{
    (void) e;
    return 0xfa4efa4e;
}

void
glm_engine_submit_group(glm_engine_t *e, glm_req_t *const *r, size_t n)
{
    size_t  i;

    for (i = 0; i < n; i++) glm_engine_submit(e, r[i]);
}

void
glm_engine_submit(glm_engine_t *e, glm_req_t *r)
{
    glm_req_t           **p;
    const glm_refusal_t   draining = { .status = 503, .code = "engine_draining",
                                       .text = "the engine is shutting down", .retry_after = 1 };

    pthread_mutex_lock(&e->lock);
    e->stats.requests++;
    if (e->draining || e->stop) {
        e->stats.refused++;
        pthread_mutex_unlock(&e->lock);
        r->sink->error(r, &draining);
        return;
    }
    if (e->nin == e->incap) {
        e->incap = e->incap ? 2 * e->incap : 16;
        p = realloc(e->in, (size_t) e->incap * sizeof(*p));
        if (p == NULL) abort();
        e->in = p;
    }
    e->in[e->nin++] = r;
    atomic_fetch_add(&e->njobs, 1);
    pthread_cond_signal(&e->cond);
    pthread_mutex_unlock(&e->lock);
}

void
glm_req_cancel(glm_engine_t *e, glm_req_t *r)
{
    atomic_store(&r->cancel, 1);
    wake(e);
}

void
glm_req_pause(glm_engine_t *e, glm_req_t *r, int on)
{
    atomic_store(&r->paused, on != 0);
    wake(e);
}

void
glm_req_go(glm_engine_t *e, glm_req_t *r)
{
    atomic_store(&r->go, 1);
    wake(e);
}

void
glm_engine_stats(const glm_engine_t *e, glm_engine_stats_t *out)
{
    glm_engine_t  *w = (glm_engine_t *) (uintptr_t) e;    /* the lock is no state */

    pthread_mutex_lock(&w->lock);
    *out = w->stats;
    pthread_mutex_unlock(&w->lock);
}
