/*
 * scheduler: which requests run, and what each step computes.  Continuous batching:
 * between any two steps requests join and leave.  Admission is by priority, then
 * first come, first served, and reserves every page a request can need, so what is admitted always
 * finishes.  Owns the queue, the pages and the step's buffers; knows no thread,
 * lock or wire.  Step thread only; time comes in as an argument where it matters.
 */
#ifndef GLM_SCHEDULER_H
#define GLM_SCHEDULER_H

#include <stdatomic.h>

#include "seq.h"

#define GLM_SCHED_SINKS     64
#define GLM_SCHED_CONTEXTS  64

/* Who is to be woken after this step. */
typedef struct {
    void (*flush)(void *arg);
    void  *arg;
} glm_wake_t;

/* Rows that are computed together. */
typedef struct {
    int32_t        n;             /* 0: there is no such step */
    int            alone;         /* the next one can only be made when this one is read */
    glm_row_t     *rows;          /* (max_rows) */
    glm_seq_t    **seq;           /* (max_rows) NULL: a prompt's row */
    glm_job_t    **job;           /* (max_rows) NULL: nobody waits for it any more */
    glm_sample_t  *score;         /* (max_rows) of rows that tell the log-probability of
                                     a given next id */
} glm_batch_t;

/* Contexts that are computed together, some layers at a time. */
typedef struct {
    int32_t        n;             /* 0: there are none */
    int32_t        tokens;        /* of all */
    int            layer;         /* the next one */
    glm_job_t     *job[GLM_SCHED_CONTEXTS];        /* NULL: ended meanwhile */
    glm_context_t  context[GLM_SCHED_CONTEXTS];
} glm_prefill_t;

typedef struct {
    glm_model_t          *model;
    const glm_config_t   *cfg;
    int32_t               max_seqs;    /* choices in a step */
    int32_t               max_rows;    /* rows in a step: theirs and those of causal
                                          prompts; as many as glm_model_overlap() where
                                          that is less and not 0 */
    int32_t               max_queue;
    int64_t               budget;      /* tokens x layers a slice, a pass
                                          counted as glm_model_together() at
                                          least; 0: adapt */

    glm_kv_t              kv;
    glm_jobs_t            queue;       /* accepted, by priority and arrival */
    glm_jobs_t            run;         /* admitted, by arrival */
    glm_jobs_t            ended;       /* to be freed before the step returns */
    glm_seqs_t            lanes;       /* running choices, next to be served first */
    int32_t               nqueue, nrun;    /* requests: each once, in the queue until
                                              its first round is admitted */
    uint64_t              next_deadline;   /* no queued one is earlier; or UINT64_MAX */
    glm_prefill_t         prefill;
    double                cost;        /* ns a token x layer of contexts, smoothed */

    int                   overlap;     /* a step begins before the one before is read */
    glm_batch_t           batch[2];
    glm_batch_t          *made;        /* the step being made, or taken */
    glm_batch_t          *sent;        /* with overlap: the one to be read */
    glm_sampled_t        *out;         /* (max_rows) */

    glm_wake_t            wake[GLM_SCHED_SINKS];
    int                   nwake;
    atomic_int           *live;        /* requests not ended, counted down here */
    glm_engine_stats_t    st;          /* what this thread counts */
} glm_sched_t;

/* The caller fills model .. budget and live first.  kv_pages as the model has. */
int glm_sched_init(glm_sched_t *s, int32_t kv_pages, glm_err_t *err);
void glm_sched_destroy(glm_sched_t *s);

/* A job that its owner has not heard about, and its mates: all are accepted, or all
 * refused.  Takes them over. */
void glm_sched_arrive(glm_sched_t *s, glm_job_t *j, uint64_t now);

/* Ends what was cancelled. */
void glm_sched_sweep(glm_sched_t *s, uint64_t now);

/* Admits, computes one step and reports it; with overlap, computes one and reports
 * the one before.  0: there was nothing to compute, and will not be before an event or
 * next_deadline. */
int glm_sched_step(glm_sched_t *s, uint64_t now);

/* Ends everything with an error. */
void glm_sched_abort(glm_sched_t *s, const glm_refusal_t *why);

/* What they are told when the device has failed. */
void glm_sched_broken(glm_refusal_t *no);

/* Calls the flush of whoever heard something since the last time. */
void glm_sched_wake(glm_sched_t *s);

/* Fills the gauges of s->st. */
void glm_sched_gauges(glm_sched_t *s);

/* ns, CLOCK_MONOTONIC */
uint64_t glm_now(void);

/* Between scheduler.c, scheduler_prefill.c, scheduler_step.c and scheduler_take.c. */
void glm_sched_end(glm_sched_t *s, glm_job_t *j);
void glm_sched_fail(glm_sched_t *s, glm_job_t *j, const glm_refusal_t *why);
void glm_sched_touch(glm_sched_t *s, const glm_job_t *j);
void glm_sched_finish(glm_sched_t *s, glm_job_t *j, uint64_t now);  /* max_tokens 0 */
int glm_sched_round(glm_sched_t *s, glm_job_t *j, int32_t choice);
int glm_sched_compute(glm_sched_t *s);
/* Slices worth the budget, at least one layer.  Returns whether there were any. */
int glm_sched_contexts(glm_sched_t *s);
int glm_sched_contexts_wait(const glm_sched_t *s);
int glm_sched_has_context(const glm_sched_t *s, const glm_job_t *j);    /* not computed yet */
void glm_sched_forget_context(glm_sched_t *s, const glm_job_t *j);
int64_t glm_sched_budget(const glm_sched_t *s);     /* of a slice, tokens x layers */
void glm_sched_fail_job(glm_sched_t *s, glm_job_t *j, const char *text);
void glm_sched_run_beam(glm_sched_t *s, glm_seq_t *q);
/* Rows of a job that has ended; rows of choices that have: nothing is to be sampled. */
void glm_sched_forget(glm_sched_t *s, const glm_job_t *j);
void glm_sched_drop(glm_batch_t *b);
/* Of a step whose rows failed, or whose results are in s->out; it is over then. */
void glm_sched_fail_rows(glm_sched_t *s, glm_batch_t *b);
void glm_sched_take(glm_sched_t *s, glm_batch_t *b);
int glm_job_paused(const glm_job_t *j);

#endif
