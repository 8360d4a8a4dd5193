/*
 * comm: barriers, all-reduce and shares of threads as ranks.  Would break:
 * every result on more than one thread.
 */
#include <string.h>

#include "comm.h"
#include "tap.h"

#define ROUNDS  400
#define ROWS    3
#define DIM     37
#define LD      48

typedef struct {
    _Atomic int   seen[64];       /* calls of each member */
    int           turn[64];       /* plain: only barriers order it */
    _Atomic int   wrong;
    float         buf[8][ROWS * LD];
    float        *ptr[8];
} job_t;

/* Everyone writes its turn, and after the barrier sees everyone's. */
static void
turns(const glm_member_t *me, void *arg)
{
    job_t  *j = arg;

    atomic_fetch_add(&j->seen[me->id], 1);
    for (int i = 1; i <= ROUNDS; i++) {
        j->turn[me->id] = i;
        glm_comm_barrier_all(me);
        for (int k = 0; k < me->n; k++) if (j->turn[k] != i) atomic_fetch_add(&j->wrong, 1);
        glm_comm_barrier_all(me);
    }
}

static void
rank_turns(const glm_member_t *me, void *arg)
{
    job_t  *j = arg;
    int     first = me->rank * me->threads;

    for (int i = 1; i <= ROUNDS; i++) {
        j->turn[me->id] = i;
        glm_comm_barrier_rank(me);
        for (int k = first; k < first + me->threads; k++) {
            if (j->turn[k] != i) atomic_fetch_add(&j->wrong, 1);
        }
        glm_comm_barrier_rank(me);
    }
}

/* Sums whose bits depend on the order of ranks. */
static float
part(int rank, int i, int round)
{
    return (float) (rank + 1) * 0.1f + (float) i * 1e-3f + (float) round * (rank % 2 ? -7.3f : 7.1f);
}

static void
reduce(const glm_member_t *me, void *arg)
{
    job_t  *j = arg;
    float   want;

    for (int i = 0; i < 50; i++) {
        if (me->thread == 0) {
            for (int k = 0; k < ROWS * LD; k++) j->buf[me->rank][k] = part(me->rank, k, i);
        }
        glm_comm_barrier_rank(me);
        glm_comm_allreduce(me, j->ptr, ROWS, DIM, LD);
        for (int k = 0; k < ROWS * LD; k++) {
            want = part(k % LD < DIM ? 0 : me->rank, k, i);
            for (int r = 1; r < me->ranks && k % LD < DIM; r++) want += part(r, k, i);
            if (j->buf[me->rank][k] != want) atomic_fetch_add(&j->wrong, 1);
        }
        glm_comm_barrier_all(me);
    }
}

static void
check_team(int ranks, int per)
{
    static job_t  j;
    glm_comm_t   *c;
    int           all = 1;

    memset(&j, 0, sizeof(j));
    for (int r = 0; r < 8; r++) j.ptr[r] = j.buf[r];
    if (!ok(glm_comm_new(&c, ranks, per, NULL) == 0, "%d ranks of %d threads", ranks, per)) return;
    ok(glm_comm_threads(c) == ranks * per, "count of threads");
    glm_comm_run(c, turns, &j);
    glm_comm_run(c, turns, &j);
    for (int i = 0; i < ranks * per; i++) all &= j.seen[i] == 2;
    ok(all, "every member runs every job once");
    ok(j.wrong == 0, "a barrier of all orders writes and reads");
    glm_comm_run(c, rank_turns, &j);
    ok(j.wrong == 0, "so does a barrier of the rank");
    glm_comm_run(c, reduce, &j);
    ok(j.wrong == 0, "all-reduce: sums in rank order, and nothing past dim");
    glm_comm_free(c);
}

static void
check_shares(void)
{
    int  good = 1, first, last, next;

    for (int n = 0; n < 50; n++) {
        for (int t = 1; t < 9; t++) {
            next = 0;
            for (int i = 0; i < t; i++) {
                glm_member_t  me = { .thread = i, .threads = t };

                glm_comm_share(&me, n, &first, &last);
                good &= first == next && last >= first && last - first <= n / t + 1;
                next = last;
            }
            good &= next == n;
        }
    }
    ok(good, "shares cover everything once, evenly");
}

int
main(void)
{
    glm_err_t    err = { "" };
    glm_comm_t  *c;

    ok(glm_comm_cores() >= 1, "there is a core");
    check_shares();
    check_team(1, 1);
    check_team(1, 2);
    check_team(1, 3);
    check_team(2, 1);
    check_team(4, 2);
    ok(glm_comm_new(&c, 0, 1, &err) == GLM_EINVAL && c == NULL, "no ranks: %s", err.text);
    glm_comm_free(NULL);
    return tap_done();
}
