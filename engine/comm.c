/*
 * comm: see comm.h.  A barrier is a count of arrivals and a generation; the
 * last to arrive starts the next generation and wakes those who sleep.
 */
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "comm.h"

#define SPIN_MOST   1500          /* pauses before sleeping: 15 to 50 us */
#define SPIN_LEAST  50
#define SPIN_PROBE  64            /* sleeps after which the most is tried again */

/*
 * How long this thread spins.  Where the other threads do not run at the same
 * time (a core is someone else's), spinning only keeps them from running: each
 * vain spin halves it, and a success restores it.
 */
static _Thread_local int  spin_limit = SPIN_MOST, spin_failed;

typedef struct {
    _Alignas(64) _Atomic uint32_t  arrived;
    _Alignas(64) _Atomic uint32_t  gen;
    _Atomic uint32_t               sleepers;
    _Atomic uint32_t               n;
    int                            spin;       /* 0: never */
} barrier_t;

typedef struct {
    glm_member_t  me;
    pthread_t     tid;
} worker_t;

struct glm_comm_s {
    barrier_t     all;
    barrier_t    *rank;           /* (ranks) */
    worker_t     *worker;         /* (n); the caller's is the first */
    int           started;        /* threads that run: worker[1 .. started] */
    int           ranks, per_rank;
    glm_comm_pt   fn;             /* NULL: end */
    void         *arg;
};

static inline void
relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

static void
futex_wait(_Atomic uint32_t *p, uint32_t seen)
{
    (void) syscall(SYS_futex, p, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void
futex_wake(_Atomic uint32_t *p)
{
    (void) syscall(SYS_futex, p, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

static void
barrier_init(barrier_t *b, int n, int spin)
{
    atomic_init(&b->arrived, 0);
    atomic_init(&b->gen, 0);
    atomic_init(&b->sleepers, 0);
    atomic_init(&b->n, (uint32_t) n);
    b->spin = spin;
}

static void
barrier_sleep(barrier_t *b, uint32_t gen)
{
    /* seq_cst here and at the opener: either it sees the sleeper, or the
     * futex sees the new generation */
    atomic_fetch_add(&b->sleepers, 1);
    while (atomic_load(&b->gen) == gen) futex_wait(&b->gen, gen);
    atomic_fetch_sub(&b->sleepers, 1);
}

static int
barrier_spin(barrier_t *b, uint32_t gen)
{
    int  most = spin_failed >= SPIN_PROBE ? SPIN_MOST : spin_limit;

    for (int i = 0; i < most; i++) {
        if (atomic_load_explicit(&b->gen, memory_order_acquire) != gen) {
            if (i > spin_limit / 2) spin_limit = SPIN_MOST;
            spin_failed = 0;
            return 1;
        }
        relax();
    }
    spin_limit = spin_limit / 2 > SPIN_LEAST ? spin_limit / 2 : SPIN_LEAST;
    spin_failed = spin_failed >= SPIN_PROBE ? 0 : spin_failed + 1;
    return 0;
}

static void
barrier_wait(barrier_t *b)
{
    uint32_t  gen = atomic_load_explicit(&b->gen, memory_order_acquire), k;

    k = atomic_fetch_add_explicit(&b->arrived, 1, memory_order_acq_rel) + 1;
    if (k == atomic_load_explicit(&b->n, memory_order_relaxed)) {
        atomic_store_explicit(&b->arrived, 0, memory_order_relaxed);
        atomic_store(&b->gen, gen + 1);
        if (atomic_load(&b->sleepers) != 0) futex_wake(&b->gen);
        return;
    }
    if (!b->spin || !barrier_spin(b, gen)) barrier_sleep(b, gen);
}

void
glm_comm_barrier_all(const glm_member_t *me)
{
    barrier_wait(&me->comm->all);
}

void
glm_comm_barrier_rank(const glm_member_t *me)
{
    barrier_wait(&me->comm->rank[me->rank]);
}

void
glm_comm_allreduce(const glm_member_t *me, float *const *buf, int rows, int dim, size_t ld)
{
    int    first, last;
    float  sum;

    if (me->ranks == 1) {
        glm_comm_barrier_rank(me);
        return;
    }
    glm_comm_barrier_all(me);
    first = (int) ((int64_t) dim * me->id / me->n);
    last = (int) ((int64_t) dim * (me->id + 1) / me->n);
    for (size_t r = 0; r < (size_t) rows; r++) {
        for (int i = first; i < last; i++) {
            sum = buf[0][r * ld + (size_t) i];
            for (int k = 1; k < me->ranks; k++) sum += buf[k][r * ld + (size_t) i];
            for (int k = 0; k < me->ranks; k++) buf[k][r * ld + (size_t) i] = sum;
        }
    }
    glm_comm_barrier_all(me);
}

static void *
work(void *arg)
{
    worker_t    *w = arg;
    glm_comm_t  *c = w->me.comm;

    for ( ;; ) {
        barrier_wait(&c->all);                  /* a job */
        if (c->fn == NULL) return NULL;
        c->fn(&w->me, c->arg);
        barrier_wait(&c->all);                  /* done */
    }
}

void
glm_comm_run(glm_comm_t *c, glm_comm_pt fn, void *arg)
{
    c->fn = fn;
    c->arg = arg;
    barrier_wait(&c->all);
    fn(&c->worker[0].me, arg);
    barrier_wait(&c->all);
}

int
glm_comm_cores(void)
{
    cpu_set_t  set;

    if (sched_getaffinity(0, sizeof(set), &set) == 0) return CPU_COUNT(&set);
    return (int) sysconf(_SC_NPROCESSORS_ONLN);
}

int
glm_comm_threads(const glm_comm_t *c)
{
    return c->ranks * c->per_rank;
}

static int
comm_start(glm_comm_t *c, glm_err_t *err)
{
    sigset_t  every, old;
    int       n = glm_comm_threads(c), rc = 0;

    for (int i = 0; i < n; i++) {
        c->worker[i].me = (glm_member_t) {
            .comm = c, .rank = i / c->per_rank, .ranks = c->ranks,
            .thread = i % c->per_rank, .threads = c->per_rank, .id = i, .n = n,
        };
    }
    sigfillset(&every);                         /* signals are the program's */
    pthread_sigmask(SIG_SETMASK, &every, &old);
    for (int i = 1; i < n && rc == 0; i++) {
        rc = pthread_create(&c->worker[i].tid, NULL, work, &c->worker[i]);
        if (rc == 0) c->started = i;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (rc == 0) return 0;
    return glm_fail(err, GLM_EIO, "pthread_create() failed: %s", strerror(rc));
}

int
glm_comm_new(glm_comm_t **out, int ranks, int per_rank, glm_err_t *err)
{
    glm_comm_t  *c;
    int          n = ranks * per_rank, spin, rc;

    *out = NULL;
    if (ranks < 1 || per_rank < 1 || n > 4096) {
        return glm_fail(err, GLM_EINVAL, "%d ranks of %d threads: not possible", ranks,
            per_rank);
    }
    c = aligned_alloc(64, (sizeof(*c) + 63) / 64 * 64);
    if (c == NULL) return glm_fail(err, GLM_ENOMEM, "no memory for %d threads", n);
    memset(c, 0, sizeof(*c));
    c->ranks = ranks;
    c->per_rank = per_rank;
    spin = n <= glm_comm_cores();
    barrier_init(&c->all, n, spin);
    c->rank = aligned_alloc(64, (size_t) ranks * sizeof(barrier_t));
    c->worker = calloc((size_t) n, sizeof(worker_t));
    if (c->rank == NULL || c->worker == NULL) {
        rc = glm_fail(err, GLM_ENOMEM, "no memory for %d threads", n);
        goto fail;
    }
    for (int i = 0; i < ranks; i++) barrier_init(&c->rank[i], per_rank, spin);
    if ((rc = comm_start(c, err)) != 0) goto fail;
    *out = c;
    return 0;

fail:
    glm_comm_free(c);
    return rc;
}

void
glm_comm_free(glm_comm_t *c)
{
    if (c == NULL) return;
    if (c->started > 0) {
        c->fn = NULL;
        /* fewer than planned, where starting failed */
        atomic_store(&c->all.n, (uint32_t) c->started + 1);
        barrier_wait(&c->all);
        for (int i = 1; i <= c->started; i++) pthread_join(c->worker[i].tid, NULL);
    }
    free(c->worker);
    free(c->rank);
    free(c);
}
