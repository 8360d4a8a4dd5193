/*
 * ring_stats: the statistics memfd.  The writable mapping is made before the
 * seal, so no descriptor in any process can write it; clients get a read-only
 * one.  The I/O thread publishes, any thread may count a finished request.
 */
#include "ring_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE  0x0010
#endif

static int
seal(glm_server_t *s, int fd, size_t size, glm_err_t *err)
{
    char  path[40];

    if (ftruncate(fd, (off_t) size) != 0) {
        return glm_fail(err, GLM_EIO, "statistics: ftruncate() failed: %s", strerror(errno));
    }
    s->stats = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    if (s->stats == MAP_FAILED) {
        s->stats = NULL;
        return glm_fail(err, GLM_EIO, "statistics: mmap() failed: %s", strerror(errno));
    }
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL)
        != 0)
    {
        return glm_fail(err, GLM_EIO, "statistics: sealing failed: %s", strerror(errno));
    }
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    s->stats_fd = open(path, O_RDONLY | O_CLOEXEC);
    if (s->stats_fd < 0) {
        return glm_fail(err, GLM_EIO, "%s: open() failed: %s", path, strerror(errno));
    }
    return 0;
}

int
glm_stats_open(glm_server_t *s, glm_err_t *err)
{
    int  fd, rc;

    s->stats_fd = -1;
    fd = memfd_create("glm-stats", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0) {
        return glm_fail(err, GLM_EIO, "statistics: memfd_create() failed: %s", strerror(errno));
    }
    rc = seal(s, fd, sizeof(glm_wire_stats_t), err);
    close(fd);
    if (rc == 0) glm_stats_publish(s);
    return rc;
}

void
glm_stats_close(glm_server_t *s)
{
    if (s->stats != NULL) munmap(s->stats, sizeof(glm_wire_stats_t));
    if (s->stats_fd >= 0) close(s->stats_fd);
}

static void
from_engine(glm_wire_stats_t *w, const glm_engine_stats_t *e)
{
    w->heartbeat_ns = e->heartbeat;
    w->started_ns = e->started;
    w->running = e->running;
    w->waiting = e->waiting;
    w->paused = e->paused;
    w->draining = e->draining;
    w->kv_pages_total = e->kv_pages_total;
    w->kv_pages_used = e->kv_pages_used;
    w->requests = e->requests;
    w->accepted = e->accepted;
    w->refused = e->refused;
    w->finished_stop = e->finished_stop;
    w->finished_length = e->finished_length;
    w->finished_cancel = e->finished_cancel;
    w->finished_error = e->finished_error;
    w->prompt_tokens = e->prompt_tokens;
    w->generated_tokens = e->generated_tokens;
    w->steps = e->steps;
    w->prefills = e->prefills;
    w->rows = e->rows;
}

void
glm_stats_publish(glm_server_t *s)
{
    glm_engine_stats_t  e;

    if (s->engine != NULL) glm_engine_stats(s->engine, &e);

    pthread_mutex_lock(&s->hist_lock);
    if (s->engine != NULL) from_engine(&s->own, &e);
    if (s->draining) s->own.draining = 1;
    s->own.clients = (uint32_t) s->nconn;
    s->own.spool_bytes = atomic_load(&s->spool);
    glm_stats_write(s->stats, &s->own);
    pthread_mutex_unlock(&s->hist_lock);
}

static void
observe(glm_stats_hist_t *h, uint64_t ns)
{
    int                    i;
    uint64_t               us = ns / 1000;
    static const uint64_t  bound[GLM_STATS_BUCKETS - 1] = GLM_STATS_BOUNDS_US;

    for (i = 0; i < GLM_STATS_BUCKETS - 1; i++) {
        if (us <= bound[i]) break;
    }
    h->bucket[i]++;
    h->count++;
    h->sum_us += us;
}

void
glm_stats_done(glm_server_t *s, const glm_done_t *d)
{
    pthread_mutex_lock(&s->hist_lock);
    if (d->t_admit > d->t_submit) observe(&s->own.queue, d->t_admit - d->t_submit);
    if (d->t_first > d->t_submit) observe(&s->own.ttft, d->t_first - d->t_submit);
    if (!d->cancelled && d->t_done > d->t_submit) {
        observe(&s->own.e2e, d->t_done - d->t_submit);
    }
    if (d->completion_tokens > 1 && d->t_first != 0 && d->t_done > d->t_first) {
        observe(&s->own.tpot, (d->t_done - d->t_first) / (uint64_t) (d->completion_tokens - 1));
    }
    pthread_mutex_unlock(&s->hist_lock);
}
