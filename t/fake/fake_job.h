/*
 * fake_job: a request at the fake engine.  The step thread alone touches jobs;
 * fake_job.c decides what happens to one and when, fake_say.c what it says.
 */
#ifndef GLM_FAKE_JOB_H
#define GLM_FAKE_JOB_H

#include <pthread.h>

#include "fake_engine.h"
#include "fake_script.h"

#define MS  1000000u              /* ns */

typedef struct job_s  job_t;

struct job_s {
    job_t          *next;
    glm_req_t      *r;
    fake_script_t   s;
    char           *prompt;       /* its bytes, or those of its ids */
    size_t          nprompt;
    int             prompt_tokens, max_tokens;
    int             accepted, running, silent, garbage;
    int             i;            /* tokens said, of each choice */
    int             blank, nblanks;   /* INFILL; else 0 and 1 */
    glm_text_t     *fill;         /* (n, nblanks) INFILL */
    uint64_t        due, t_submit, t_admit, t_first;
    glm_text_t      held;
};

struct glm_engine_s {
    fake_opts_t         opts;
    glm_config_t        config;
    pthread_t           thread;
    pthread_mutex_t     lock;     /* in, stats, stop, drain */
    pthread_cond_t      cond;
    glm_req_t         **in;
    int                 nin, incap;
    job_t              *jobs;     /* the thread's own */
    atomic_int          stop, draining;
    atomic_int          njobs;    /* in and jobs */
    int                 nrunning, nwaiting;
    const glm_sink_t   *sink;     /* of the last request: all have one server's */
    uint64_t            stall_until;
    glm_engine_stats_t  stats;
};

/* fake_engine.c */
uint64_t fake_now(void);          /* ns, CLOCK_MONOTONIC */

/* fake_job.c: makes a job of a request; does what is due of one (1: it said
 * something, and may be gone). */
void fake_begin(glm_engine_t *e, glm_req_t *r);
int fake_run_job(glm_engine_t *e, job_t *j, uint64_t now);

/* fake_say.c */
void fake_say_ids(job_t *j);              /* of the prompt */
void fake_say_prompt(job_t *j);           /* text and log-probabilities, if wanted */
void fake_say_token(job_t *j, int last);  /* the next one of all choices */
void fake_say_scores(job_t *j);
int fake_count_masks(const job_t *j);
void fake_say_filled(const job_t *j, int c);

#endif
