/*
 * engine: the threads of the engine and its life.  Requests go submit -> worker
 * -> step thread, one owner at a time; other threads only set a request's shared
 * flags and knock.  The step thread sleeps when there is nothing to compute.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine_impl.h"

#define DEFAULT_SEQS        64
#define DEFAULT_ROWS        256
#define DEFAULT_QUEUE       1024

/* ---- the step thread ---- */

/* Takes what came in; whether to stop.  *kick: some request's flags changed. */
static int
collect(glm_engine_t *e, glm_jobs_t *jobs, int *kick)
{
    int  stop;

    TAILQ_INIT(jobs);
    pthread_mutex_lock(&e->lock);
    TAILQ_CONCAT(jobs, &e->jobs, link);
    *kick = e->kick;
    e->kick = 0;
    stop = e->stop_step;
    pthread_mutex_unlock(&e->lock);
    return stop;
}

static void
publish(glm_engine_t *e)
{
    uint64_t  now = glm_now();

    glm_sched_gauges(&e->sched);
    pthread_mutex_lock(&e->lock);
    e->stats = e->sched.st;
    e->stats.heartbeat = now;
    pthread_mutex_unlock(&e->lock);
}

/* Until an event, or the next deadline of the queue. */
static void
sleep_idle(glm_engine_t *e)
{
    uint64_t         until = e->sched.next_deadline;
    struct timespec  t = {
        .tv_sec = (time_t) (until / 1000000000u), .tv_nsec = (long) (until % 1000000000u)
    };

    pthread_mutex_lock(&e->lock);
    e->idle = 1;
    while (TAILQ_EMPTY(&e->jobs) && !e->kick && !e->stop_step) {
        if (until == UINT64_MAX) pthread_cond_wait(&e->event, &e->lock);
        else if (pthread_cond_timedwait(&e->event, &e->lock, &t) == ETIMEDOUT) break;
    }
    e->idle = 0;
    e->stats.heartbeat = glm_now();
    pthread_mutex_unlock(&e->lock);
}

/* The device has failed: whatever is here, and whatever comes, ends with an error.
 * The owner is told once, and is expected to end the process. */
static void
end_all(glm_engine_t *e, int code, const char *text)
{
    glm_refusal_t  no;

    glm_sched_broken(&no);
    glm_sched_abort(&e->sched, &no);
    if (e->on_failure != NULL) e->on_failure(e->on_failure_arg, code, text);
    e->on_failure = NULL;
}

static int
end_if_failed(glm_engine_t *e)
{
    const char  *why;
    int          fault = glm_model_fault(e->model, &why);

    if (fault != 0) end_all(e, fault, why);
    return fault != 0;
}

static void *
step_main(void *engine)
{
    glm_engine_t   *e = engine;
    glm_sched_t    *s = &e->sched;
    glm_refusal_t   no;
    glm_jobs_t      jobs;
    glm_job_t      *j;
    int             kick, stop, worked = 1;

    pthread_setname_np(pthread_self(), "glm-step");
    do {
        if (!worked) sleep_idle(e);
        stop = collect(e, &jobs, &kick);
        while ((j = TAILQ_FIRST(&jobs)) != NULL) {
            TAILQ_REMOVE(&jobs, j, link);
            glm_sched_arrive(s, j, glm_now());
        }
        if (kick) glm_sched_sweep(s, glm_now());
        worked = stop ? 0 : glm_sched_step(s, glm_now());
        if (end_if_failed(e)) worked = 0;
        publish(e);
        glm_sched_wake(s);
    } while (!stop);

    glm_refuse(&no, 503, "engine_draining", "", "The server is shutting down.");
    no.retry_after = 5;
    glm_sched_abort(s, &no);
    publish(e);
    glm_sched_wake(s);

    /* a step that nobody reads any more may be the one that fails */
    if (glm_model_wait(e->model) != 0) (void) end_if_failed(e);
    return NULL;
}

/* ---- start ---- */

/* Ids that print something, and the end tokens; see sampler.h on allow. */
static int
make_allow(glm_engine_t *e, glm_err_t *err)
{
    size_t  words = ((size_t) e->cfg.vocab + 63) / 64;

    if (e->tok == NULL) return 0;
    e->allow = calloc(words, sizeof(uint64_t));
    if (e->allow == NULL) return glm_fail(err, GLM_ENOMEM, "no memory for the token mask");

    for (int32_t id = 0; id < e->cfg.vocab; id++)
        if (glm_token_kind(e->tok, id) != GLM_TOK_NONTEXT)
            e->allow[id / 64] |= 1ull << (id % 64);
    for (int32_t i = 0; i < e->cfg.nend_tokens; i++) {
        int32_t  id = e->cfg.end_tokens[i];

        e->allow[id / 64] |= 1ull << (id % 64);
    }
    return 0;
}

/* A tokenizer of another model would give ids that the weights do not have. */
static int
check_tokenizer(const glm_engine_t *e, const char *dir, glm_err_t *err)
{
    static const char *const  names[3] = { "[MASK]", "[gMASK]", "[sMASK]" };
    const int32_t             ids[3] = { e->cfg.mask, e->cfg.gmask, e->cfg.smask };

    if (e->tok == NULL) return 0;
    if (glm_tokenizer_vocab_size(e->tok) > e->cfg.vocab)
        return glm_fail(err, GLM_EFORMAT, "%s: the tokenizer has %d ids, the model %d", dir,
                        glm_tokenizer_vocab_size(e->tok), e->cfg.vocab);
    for (int i = 0; i < 3; i++) {
        size_t       len = 0;
        const char  *name = ids[i] >= 0 ? glm_token_name(e->tok, ids[i], &len) : "";

        if (len != strlen(names[i]) || memcmp(name, names[i], len) != 0)
            return glm_fail(err, GLM_EFORMAT, "%s: %s is id %d in config.json, and another in the "
                            "tokenizer", dir, names[i], ids[i]);
    }
    return 0;
}

/* What the model is asked for. */
static int
model_opts(const glm_engine_opts_t *o, glm_model_opts_t *m, glm_err_t *err)
{
    int32_t  seqs = o->max_num_seqs > 0 ? o->max_num_seqs : DEFAULT_SEQS;

    if (o->kv_tokens > (int64_t) INT32_MAX / 2)
        return glm_fail(err, GLM_ELIMIT, "a KV cache of %lld tokens is too large",
                        (long long) o->kv_tokens);
    *m = o->model;
    m->dir = o->model_dir;
    m->kv_pages = o->kv_tokens > 0 ? glm_kv_pages(o->kv_tokens) : 0;
    if (m->max_rows <= 0) m->max_rows = DEFAULT_ROWS;
    if (m->max_rows < seqs) m->max_rows = seqs;
    return 0;
}

int
glm_engine_plan(const glm_engine_opts_t *o, FILE *out, glm_err_t *err)
{
    glm_model_opts_t  m;
    int               rc = model_opts(o, &m, err);

    return rc != 0 ? rc : glm_model_plan(&m, out, err);
}

static int
load(glm_engine_t *e, const glm_engine_opts_t *o, int32_t *pages, glm_err_t *err)
{
    glm_model_opts_t  m;
    glm_sched_t      *s = &e->sched;
    int32_t           overlap;
    int               rc = glm_config_load(&e->cfg, o->model_dir, err);

    if (rc != 0) return rc;
    if ((rc = glm_tokenizer_load(&e->tok, o->model_dir, err)) != 0) return rc;
    if ((rc = check_tokenizer(e, o->model_dir, err)) != 0) return rc;

    if ((rc = model_opts(o, &m, err)) != 0) return rc;
    if ((rc = glm_model_load(&e->model, &m, err)) != 0) return rc;

    *pages = glm_model_kv_pages(e->model);
    s->max_seqs = o->max_num_seqs > 0 ? o->max_num_seqs : DEFAULT_SEQS;
    s->max_rows = m.max_rows;
    if ((overlap = glm_model_overlap(e->model)) > 0 && overlap < s->max_rows) s->max_rows = overlap;
    s->max_queue = o->max_queue > 0 ? o->max_queue : o->max_queue < 0 ? 0 : DEFAULT_QUEUE;
    s->budget = o->prefill_budget;
    return make_allow(e, err);
}

static void
set_up(glm_engine_t *e, const glm_engine_opts_t *o, int32_t pages)
{
    glm_sched_t  *s = &e->sched;

    snprintf(e->name, sizeof(e->name), "%s", o->served_name ? o->served_name : e->cfg.name);
    s->model = e->model;
    s->cfg = &e->cfg;
    s->live = &e->live;
    e->on_failure = o->on_failure;
    e->on_failure_arg = o->on_failure_arg;
    s->st.started = glm_now();
    e->stats.started = e->stats.heartbeat = s->st.started;
    e->lim = (glm_limits_t) {
        .vocab = { &e->cfg, e->tok }, .allow = e->allow, .max_seqs = s->max_seqs,
        .max_rows = s->max_rows, .kv_pages = pages
    };
}

static int
start_threads(glm_engine_t *e, int nworkers, glm_err_t *err)
{
    int  n = nworkers > 0 ? nworkers : 1, rc;

    e->workers = calloc((size_t) n, sizeof(pthread_t));
    if (e->workers == NULL) return glm_fail(err, GLM_ENOMEM, "no memory for %d threads", n);

    rc = pthread_create(&e->step_thread, NULL, step_main, e);
    if (rc != 0) goto fail;
    for (; e->nworkers < n; e->nworkers++) {
        rc = pthread_create(&e->workers[e->nworkers], NULL, glm_worker_main, e);
        if (rc != 0) goto fail;
    }
    return 0;

fail:
    return glm_fail(err, GLM_EIO, "cannot start a thread: %s", strerror(rc));
}

static void
init_locks(glm_engine_t *e)
{
    pthread_condattr_t  attr;

    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&e->lock, NULL);
    pthread_cond_init(&e->work, &attr);
    pthread_cond_init(&e->event, &attr);
    pthread_condattr_destroy(&attr);
    TAILQ_INIT(&e->jobs);
    e->reqs.last = &e->reqs.first;
}

static void
release(glm_engine_t *e)
{
    glm_sched_destroy(&e->sched);
    glm_model_free(e->model);
    glm_tokenizer_free(e->tok);
    free(e->allow);
    free(e->workers);
    pthread_cond_destroy(&e->work);
    pthread_cond_destroy(&e->event);
    pthread_mutex_destroy(&e->lock);
    free(e);
}

/* Signals are for the main thread: those started here block them all. */
static int
start_quietly(glm_engine_t *e, int nworkers, glm_err_t *err)
{
    sigset_t  all, old;
    int       rc;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    rc = start_threads(e, nworkers, err);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return rc;
}

int
glm_engine_start(glm_engine_t **out, const glm_engine_opts_t *opts, glm_err_t *err)
{
    glm_engine_t  *e = calloc(1, sizeof(*e));
    int32_t        pages = 0;
    int            rc;

    *out = NULL;
    if (e == NULL) return glm_fail(err, GLM_ENOMEM, "no memory for an engine");
    init_locks(e);

    if ((rc = load(e, opts, &pages, err)) != 0) goto fail;
    set_up(e, opts, pages);
    if ((rc = glm_sched_init(&e->sched, pages, err)) != 0) goto fail;
    if ((rc = start_quietly(e, opts->tokenizer_threads, err)) != 0) {
        if (e->step_thread == 0) goto fail;
        glm_engine_stop(e);
        return rc;
    }
    *out = e;
    return 0;

fail:
    release(e);
    return rc;
}

/* ---- stop ---- */

void
glm_engine_drain(glm_engine_t *e)
{
    pthread_mutex_lock(&e->lock);
    e->draining = 1;
    pthread_mutex_unlock(&e->lock);
}

int
glm_engine_idle(const glm_engine_t *e)
{
    return atomic_load(&e->live) == 0;
}

void
glm_engine_stop(glm_engine_t *e)
{
    if (e == NULL) return;

    /* Workers first: what they hold goes to the step thread or ends. */
    pthread_mutex_lock(&e->lock);
    e->draining = e->stop_workers = 1;
    pthread_cond_broadcast(&e->work);
    pthread_mutex_unlock(&e->lock);
    for (int i = 0; i < e->nworkers; i++) pthread_join(e->workers[i], NULL);

    pthread_mutex_lock(&e->lock);
    e->stop_step = 1;
    pthread_cond_signal(&e->event);
    pthread_mutex_unlock(&e->lock);
    pthread_join(e->step_thread, NULL);
    release(e);
}

/* ---- requests ---- */

void
glm_engine_submit(glm_engine_t *e, glm_req_t *r)
{
    glm_engine_submit_group(e, &r, 1);
}

void
glm_engine_submit_group(glm_engine_t *e, glm_req_t *const *r, size_t n)
{
    uint64_t  now = glm_now();

    atomic_fetch_add(&e->live, (int) n);
    pthread_mutex_lock(&e->lock);
    for (size_t i = 0; i < n; i++) {
        r[i]->link.next = NULL;
        r[i]->link.mate = i + 1 < n ? r[i + 1] : NULL;
        r[i]->link.t_submit = now;
        r[i]->link.serial = e->serial++;
        r[i]->link.late = e->draining;
    }
    e->requests += n;
    *e->reqs.last = r[0];
    e->reqs.last = &r[0]->link.next;
    pthread_cond_signal(&e->work);
    pthread_mutex_unlock(&e->lock);
}

static void
knock(glm_engine_t *e)
{
    pthread_mutex_lock(&e->lock);
    e->kick = 1;
    pthread_cond_signal(&e->event);
    pthread_mutex_unlock(&e->lock);
}

void
glm_req_cancel(glm_engine_t *e, glm_req_t *r)
{
    atomic_store(&r->cancel, 1);
    knock(e);
}

void
glm_req_pause(glm_engine_t *e, glm_req_t *r, int on)
{
    atomic_store(&r->paused, on);
    if (!on) knock(e);
}

void
glm_req_go(glm_engine_t *e, glm_req_t *r)
{
    atomic_store(&r->go, 1);
    knock(e);
}

/* ---- what it is ---- */

const glm_config_t *
glm_engine_config(const glm_engine_t *e)
{
    return &e->cfg;
}

const glm_tokenizer_t *
glm_engine_tokenizer(const glm_engine_t *e)
{
    return e->tok;
}

const char *
glm_engine_name(const glm_engine_t *e)
{
    return e->name;
}

uint64_t
glm_engine_fingerprint(const glm_engine_t *e)
{
    return glm_model_fingerprint(e->model);
}

void
glm_engine_stats(const glm_engine_t *engine, glm_engine_stats_t *out)
{
    glm_engine_t  *e = (glm_engine_t *) engine;      /* the lock changes, nothing else */

    pthread_mutex_lock(&e->lock);
    *out = e->stats;
    if (e->idle) out->heartbeat = glm_now();
    out->requests = e->requests;
    out->refused += e->refused;
    out->draining = (uint32_t) e->draining;
    pthread_mutex_unlock(&e->lock);
}
