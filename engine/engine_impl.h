/*
 * engine_impl: what engine.c (threads, life) and worker.c (tokenizer workers)
 * share.
 */
#ifndef GLM_ENGINE_IMPL_H
#define GLM_ENGINE_IMPL_H

#include <pthread.h>

#include "scheduler.h"

/* A first in, first out list of requests. */
typedef struct {
    glm_req_t  *first, **last;
} glm_reqs_t;

struct glm_engine_s {
    glm_config_t         cfg;
    char                 name[128];
    glm_tokenizer_t     *tok;           /* NULL: the model has none */
    glm_model_t         *model;
    glm_limits_t         lim;
    uint64_t            *allow;         /* (vocab bits) with a tokenizer */
    glm_sched_t          sched;         /* the step thread's */

    atomic_int           live;          /* requests not ended */
    void               (*on_failure)(void *arg, int code, const char *text);
    void                *on_failure_arg;

    pthread_mutex_t      lock;          /* all below */
    pthread_cond_t       work;          /* for the workers: reqs or stop */
    pthread_cond_t       event;         /* for the step thread: jobs, kick, stop */
    glm_reqs_t           reqs;          /* not looked at yet */
    glm_jobs_t           jobs;          /* made, for the step thread */
    uint64_t             serial;
    int                  kick;          /* a flag of some request changed */
    int                  idle;          /* the step thread waits for an event */
    int                  draining;
    int                  stop_workers, stop_step;
    glm_engine_stats_t   stats;         /* the step thread's, as of its last step */
    uint64_t             requests, refused;    /* the workers' and submit's share */

    pthread_t            step_thread;
    pthread_t           *workers;
    int                  nworkers;
};

void *glm_worker_main(void *engine);

#endif
