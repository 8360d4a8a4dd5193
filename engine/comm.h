/*
 * comm: threads as ranks.  A team of ranks * per_rank threads runs one function
 * together; the caller's thread is the first of them.  Barriers spin for some
 * microseconds and then sleep in a futex, at once where there are more threads
 * than cores.  Knows no model.
 *
 * Threads: one thread at a time calls glm_comm_run(); the rest of the functions
 * belong to the threads it runs.
 */
#ifndef GLM_COMM_H
#define GLM_COMM_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "error.h"

typedef struct glm_comm_s  glm_comm_t;

/* Who a thread is. */
typedef struct {
    glm_comm_t  *comm;
    int          rank, ranks;
    int          thread, threads;   /* within the rank */
    int          id, n;             /* within the team: rank * threads + thread */
} glm_member_t;

typedef void (*glm_comm_pt)(const glm_member_t *me, void *arg);

/* Cores this process may run on. */
int glm_comm_cores(void);

int glm_comm_new(glm_comm_t **out, int ranks, int per_rank, glm_err_t *err);
void glm_comm_free(glm_comm_t *c);              /* NULL is fine; joins */
int glm_comm_threads(const glm_comm_t *c);      /* ranks * per_rank */

/* Runs fn on every thread of the team; returns when all have. */
void glm_comm_run(glm_comm_t *c, glm_comm_pt fn, void *arg);

/* Everybody before it happens before everybody after it. */
void glm_comm_barrier_rank(const glm_member_t *me);
void glm_comm_barrier_all(const glm_member_t *me);

/*
 * buf[r] is rank r's (rows, dim), ld floats apart: each becomes the sum over
 * ranks, added in rank order.  A barrier of the rank alone where there is one
 * rank.  Complete, and buf safe to change, when it returns.
 */
void glm_comm_allreduce(const glm_member_t *me, float *const *buf, int rows, int dim,
    size_t ld);

/* This thread's share of 0 .. n-1 among the threads of its rank. */
static inline void
glm_comm_share(const glm_member_t *me, int n, int *first, int *last)
{
    *first = (int) ((int64_t) n * me->thread / me->threads);
    *last = (int) ((int64_t) n * (me->thread + 1) / me->threads);
}

#endif
