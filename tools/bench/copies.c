/*
 * copies: pinned memory to the card, by as many threads as a load has readers, each
 * with a stream and two buffers: what a load does after reading, without packing.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "gpu.h"
#include "load.h"
#include "model.h"

typedef struct {
    bench_copies_t   *c;
    pthread_t         thread;
    glm_stream_t     *stream;
    char             *host[2], *dev[2];
    glm_gpu_event_t  *done[2];
} copier_t;

struct bench_copies_s {
    glm_gpu_t      *gpu;
    copier_t        copier[GLM_LOAD_READERS];
    int             n;
    size_t          piece;
    uint64_t        bytes;
    atomic_ullong   next;         /* byte */
    atomic_int      rc;
};

static int
open_copier(copier_t *k, bench_copies_t *c, char *dev)
{
    int  rc = glm_gpu_stream(c->gpu, &k->stream);

    k->c = c;
    for (int i = 0; i < 2 && rc == 0; i++) {
        k->dev[i] = dev + (size_t) i * c->piece;
        if ((rc = glm_gpu_pin(c->gpu, (void **) &k->host[i], c->piece)) != 0
            || (rc = glm_gpu_event(c->gpu, &k->done[i])) != 0) break;
        memset(k->host[i], 1, c->piece);
    }
    return rc;
}

int
bench_copies_new(bench_copies_t **out, int n, size_t piece, glm_err_t *err)
{
    bench_copies_t  *c = calloc(1, sizeof(*c));
    char            *dev;
    int              rc;

    *out = NULL;
    if (c == NULL) return glm_fail(err, GLM_ENOMEM, "no memory");
    c->piece = piece;
    if ((rc = glm_gpu_open(&c->gpu, 0, GLM_GPU_TIMEOUT, err)) != 0) {
        bench_copies_free(c);
        return rc;
    }
    rc = glm_gpu_alloc(c->gpu, (void **) &dev, 2 * (size_t) n * piece);
    for (c->n = 0; c->n < n && rc == 0; c->n++) {
        rc = open_copier(&c->copier[c->n], c, dev + 2 * (size_t) c->n * piece);
    }
    if (rc != 0) {
        (void) glm_fail(err, rc, "buffers for copies: %s", glm_gpu_error(c->gpu));
        bench_copies_free(c);
        return rc;
    }
    *out = c;
    return 0;
}

void
bench_copies_free(bench_copies_t *c)
{
    if (c == NULL) return;
    for (int i = 0; i < GLM_LOAD_READERS && c->gpu != NULL; i++) {
        for (int k = 0; k < 2; k++) {
            glm_gpu_event_free(c->gpu, c->copier[i].done[k]);
            glm_gpu_unpin(c->gpu, c->copier[i].host[k]);
        }
        glm_gpu_stream_free(c->gpu, c->copier[i].stream);
    }
    glm_gpu_close(c->gpu);
    free(c);
}

const char *
bench_copies_card(const bench_copies_t *c)
{
    return glm_gpu_info(c->gpu)->name;
}

static void *
copy_some(void *arg)
{
    copier_t        *k = arg;
    bench_copies_t  *c = k->c;
    uint64_t         at;
    int              turn = 0, rc = glm_gpu_thread(c->gpu);

    for ( ; rc == 0 && (at = atomic_fetch_add(&c->next, c->piece)) < c->bytes; turn++) {
        int     i = turn % 2;
        size_t  n = c->bytes - at < c->piece ? (size_t) (c->bytes - at) : c->piece;

        if (turn > 1 && (rc = glm_gpu_wait(c->gpu, k->done[i])) != 0) break;
        if ((rc = glm_gpu_copy(c->gpu, k->dev[i], k->host[i], n, k->stream)) != 0) break;
        rc = glm_gpu_record(c->gpu, k->done[i], k->stream);
    }
    for (int i = 0; i < 2 && i < turn && rc == 0; i++) rc = glm_gpu_wait(c->gpu, k->done[i]);
    if (rc != 0) atomic_store(&c->rc, rc);
    return NULL;
}

int
bench_copies_run(bench_copies_t *c, uint64_t bytes, double *seconds, glm_err_t *err)
{
    double  t = bench_now();
    int     n = 0, rc;

    c->bytes = bytes;
    atomic_store(&c->next, 0);
    while (n < c->n
           && pthread_create(&c->copier[n].thread, NULL, copy_some, &c->copier[n]) == 0) n++;
    for (int i = 0; i < n; i++) pthread_join(c->copier[i].thread, NULL);
    *seconds = bench_now() - t;
    rc = n == c->n ? atomic_load(&c->rc) : GLM_ENOMEM;
    return rc == 0 ? 0 : glm_fail(err, rc, "copies to the card: %s", glm_gpu_error(c->gpu));
}
