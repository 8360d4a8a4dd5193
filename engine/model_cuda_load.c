/*
 * model_cuda_load: weights from files to tiles.  Readers take piece after piece: read
 * into pinned memory (O_DIRECT where the file system has it), copy to the staging
 * area, pack, and meanwhile digest; two pieces each, so that one is read while the
 * other is copied and packed.  The staging area is where a context and the KV cache
 * will be.  Dummy weights are made on the card instead of read.
 */
#include "model_cuda_load.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "comm.h"
#include "log.h"
#include "progress.h"
#include "quant.h"

#define LOOK_MS      20           /* between two looks at the readers */
#define TELL_S       10           /* between two lines of a log */

typedef struct {
    char             *host;       /* pinned, page-aligned */
    char             *dev;
    glm_gpu_event_t  *done;
    int               busy;
} slot_t;

typedef struct {
    glm_cuda_model_t  *m;
    const glm_pieces_t *pieces;
    glm_digest_t      *digest;
    int                direct[GLM_LOAD_FILES];  /* descriptors; -1: buffered reads */
    atomic_int         next;      /* piece */
    atomic_int         running;   /* readers */
    atomic_ullong      bytes;     /* done */
    atomic_int         buffered;  /* whether a file was read through the page cache */
    int                nreaders;
    atomic_int         rc;
    pthread_mutex_t    lock;      /* of err */
    glm_err_t         *err;
} load_t;

typedef struct {
    load_t                 *l;
    const glm_load_room_t  *room;
    pthread_t               thread;
    glm_stream_t           *stream;
    char                   *stage;    /* of all its slots */
    slot_t                  slot[2];
} reader_t;

static int
fail(load_t *l, int rc, const char *text)
{
    int  none = 0;

    pthread_mutex_lock(&l->lock);
    (void) glm_fail(l->err, rc, "%s", text);
    (void) atomic_compare_exchange_strong(&l->rc, &none, rc);
    pthread_mutex_unlock(&l->lock);
    return rc;
}

/* ---- reading ---- */

/* A whole block before and behind, so that O_DIRECT takes it; *data is where the
 * part begins. */
static int
read_part(load_t *l, const glm_part_t *s, char *buf, char **data)
{
    uint64_t  from = s->offset / GLM_LOAD_BLOCK * GLM_LOAD_BLOCK;
    size_t    skip = (size_t) (s->offset - from), need = skip + s->bytes, got = 0;
    size_t    whole = (need + GLM_LOAD_BLOCK - 1) / GLM_LOAD_BLOCK * GLM_LOAD_BLOCK;
    int       fd = l->direct[s->file];
    ssize_t   n;
    char      text[160];

    *data = buf + skip;
    while (got < need) {
        n = pread(fd < 0 ? l->pieces->fd[s->file] : fd, buf + got, whole - got,
            (off_t) (from + got));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EINVAL && fd >= 0) {
            fd = -1;              /* this file system does not after all */
            continue;
        }
        if (n <= 0) {
            snprintf(text, sizeof(text), "reading weights failed: %s",
                n < 0 ? strerror(errno) : "the file is shorter than it says");
            return fail(l, GLM_EIO, text);
        }
        got += (size_t) n;
        if (fd >= 0 && got % GLM_LOAD_BLOCK != 0 && got < need) fd = -1;
    }
    if (fd < 0) atomic_store(&l->buffered, 1);
    return 0;
}

static int
gpu(load_t *l, int rc)
{
    char  text[256];

    if (rc == 0) return 0;
    snprintf(text, sizeof(text), "loading weights failed: %s", glm_gpu_error(l->m->gpu));
    return fail(l, rc, text);
}

static int
fill(reader_t *r, const glm_part_t *s, void *dst)
{
    load_t           *l = r->l;
    glm_fill_args_t   a = { .dst = dst, .count = s->bytes / (s->f16 ? 2 : 4), .seed = s->seed,
                            .f16 = s->f16, .lo = s->lo, .hi = s->hi, .first = s->first };

    return gpu(l, GLM_GPU_OP(l->m->gpu, "fill", l->m->ops->fill(&a, r->stream)));
}

/* Parts to the card, at dst; *data is where the host has each. */
static int
send_parts(reader_t *r, const glm_piece_t *p, slot_t *s, char *dst, char *data[4])
{
    load_t  *l = r->l;
    char    *buf = s->host;
    int      rc = 0;

    for (int i = 0; i < p->nparts && rc == 0; i++) {
        const glm_part_t  *part = &p->part[i];

        if (part->file < 0) {
            rc = fill(r, part, dst + part->at);
            continue;
        }
        if ((rc = read_part(l, part, buf, &data[i])) != 0) return rc;
        rc = gpu(l, glm_gpu_copy(l->m->gpu, dst + part->at, data[i], part->bytes, r->stream));
        buf += part->bytes + 2 * GLM_LOAD_BLOCK;
        buf -= (uintptr_t) buf % GLM_LOAD_BLOCK;
    }
    return rc;
}

static int
pack(reader_t *r, const glm_piece_t *p, const slot_t *s)
{
    load_t           *l = r->l;
    glm_pack_args_t   a = { .w = &p->w, .src = s->dev, .groups = p->groups > 0 ? p->groups : 1,
                            .scale = p->groups > 0 ? s->dev + p->scale_at : NULL };

    return gpu(l, GLM_GPU_OP(l->m->gpu, "pack", l->m->ops->pack(&a, r->stream)));
}

/* ---- the embedding ---- */

static int
wait_slot(reader_t *r, slot_t *s)
{
    int  rc = s->busy ? glm_gpu_wait(r->l->m->gpu, s->done) : 0;

    s->busy = 0;
    return gpu(r->l, rc);
}

static int
mark_slot(reader_t *r, slot_t *s)
{
    s->busy = 1;
    return gpu(r->l, glm_gpu_record(r->l->m->gpu, s->done, r->stream));
}

/* Rows of fp16 into the table, by the host or, dummy ones, by the card. */
static int
table_rows(reader_t *r, const glm_piece_t *p, slot_t *s)
{
    const glm_part_t  *part = &p->part[0];
    char              *data;
    int                rc;

    if (part->file < 0) {
        if ((rc = fill(r, part, p->dst)) != 0 || (rc = mark_slot(r, s)) != 0) return rc;
        return wait_slot(r, s);
    }
    if ((rc = read_part(r->l, part, s->host, &data)) != 0) return rc;
    memcpy(p->dst, data, part->bytes);
    return 0;
}

static int
table_int8(reader_t *r, const glm_piece_t *p, slot_t *s)
{
    load_t          *l = r->l;
    glm_quantize_t   z = { GLM_T_INT8, p->w.n, p->w.k, p->w.k };
    int64_t          row, col;
    char             text[120];

    if (glm_quantize(&z, p->dst, (uint8_t *) s->host,
                     (uint16_t *) (void *) (s->host + p->scale_at), &row, &col) != 0)
    {
        snprintf(text, sizeof(text), "word_embeddings.weight: row %lld, column %lld of a piece "
            "is not finite", (long long) row, (long long) col);
        return fail(l, GLM_EFORMAT, text);
    }
    return gpu(l, glm_gpu_copy(l->m->gpu, s->dev, s->host, p->stage, r->stream));
}

static int
table(reader_t *r, const glm_piece_t *p, slot_t *s)
{
    load_t  *l = r->l;
    int      rc = table_rows(r, p, s);

    if (rc != 0) return rc;
    if (p->groups > 0) rc = table_int8(r, p, s);
    else rc = gpu(l, glm_gpu_copy(l->m->gpu, s->dev, p->dst, p->stage, r->stream));
    return rc != 0 ? rc : pack(r, p, s);
}

/* ---- readers ---- */

/* Its rows, while the card has them too. */
static int
digest(load_t *l, const glm_piece_t *p, char *const data[4])
{
    glm_err_t  err = { "" };
    int        rc = 0;

    if (p->part[0].file < 0) return 0;
    for (int i = 0; i < p->runs && rc == 0; i++) {
        rc = glm_digest_rows(l->digest, p->tensor, p->row[i], p->rows, data[i],
            p->nparts > p->runs ? data[p->runs + i] : NULL, &err);
    }
    return rc == 0 ? 0 : fail(l, rc, err.text);
}

static int
take(reader_t *r, int i, slot_t *s)
{
    load_t             *l = r->l;
    const glm_piece_t  *p = &l->pieces->list[i];
    char               *data[4] = { p->dst };
    int                 rc = wait_slot(r, s);

    if (rc != 0) return rc;
    if (p->kind == GLM_PIECE_TABLE) rc = table(r, p, s);
    else rc = send_parts(r, p, s, p->kind == GLM_PIECE_COPY ? p->dst : s->dev, data);
    if (rc == 0 && p->kind == GLM_PIECE_PACK) rc = pack(r, p, s);
    if (rc != 0 || (rc = mark_slot(r, s)) != 0 || (rc = digest(l, p, data)) != 0) return rc;
    for (int k = 0; k < p->nparts; k++) atomic_fetch_add(&l->bytes, p->part[k].bytes);
    return 0;
}

/* A stream, and a place for each piece.  Pinning takes the system a while: each reader
 * does its own, while those before it read. */
static int
open_reader(reader_t *r)
{
    load_t  *l = r->l;
    int      rc = glm_gpu_thread(l->m->gpu);

    if (rc == 0) rc = glm_gpu_stream(l->m->gpu, &r->stream);
    for (int i = 0; i < r->room->slots && rc == 0; i++) {
        r->slot[i].dev = r->stage + (size_t) i * r->room->dev;
        rc = glm_gpu_pin(l->m->gpu, (void **) &r->slot[i].host, r->room->host);
        if (rc == 0) rc = glm_gpu_event(l->m->gpu, &r->slot[i].done);
    }
    return gpu(l, rc);
}

static void *
reader_main(void *arg)
{
    reader_t  *r = arg;
    load_t    *l = r->l;
    int        i, turn = 0, rc = open_reader(r);

    while (rc == 0 && atomic_load(&l->rc) == 0) {
        if ((i = atomic_fetch_add(&l->next, 1)) >= l->pieces->n) break;
        rc = take(r, i, &r->slot[turn++ % r->room->slots]);
    }
    /* what was begun ends before its memory goes, also that of a piece which failed
       halfway and has no mark */
    glm_gpu_settle(l->m->gpu, r->stream);
    atomic_fetch_sub(&l->running, 1);
    return NULL;
}

static void
close_reader(reader_t *r, glm_gpu_t *g)
{
    for (int i = 0; i < 2; i++) {
        glm_gpu_event_free(g, r->slot[i].done);
        glm_gpu_unpin(g, r->slot[i].host);
    }
    glm_gpu_stream_free(g, r->stream);
}

/* Progress while readers work, drawn on a terminal, else a line of the log now and
 * then. */
static void
watch(load_t *l)
{
    int             bar = isatty(STDERR_FILENO);
    glm_progress_t  p;
    uint64_t        seen = 0, now;

    glm_progress_begin(&p, l->pieces->bytes, NULL, !bar);
    for (int looks = 1; atomic_load(&l->running) > 0; looks++) {
        usleep(LOOK_MS * 1000);
        now = atomic_load(&l->bytes);
        glm_progress_add(&p, now - seen, "weights");
        seen = now;
        if (bar || looks % (TELL_S * 1000 / LOOK_MS) != 0) continue;
        glm_log(GLM_LOG_NOTICE, "weights: %.1f of %.1f GB, %d s left", (double) now * 1e-9,
            (double) l->pieces->bytes * 1e-9, glm_progress_left(&p));
    }
    glm_progress_clear(&p);
}

static int
run_readers(load_t *l, reader_t *r, int n)
{
    int  started = 0, rc = 0;

    atomic_store(&l->running, n);
    for (; started < n; started++) {
        if ((rc = pthread_create(&r[started].thread, NULL, reader_main, &r[started])) != 0) break;
    }
    if (started < n) {
        atomic_fetch_sub(&l->running, n - started);
        if (started == 0) (void) fail(l, GLM_EIO, strerror(rc));
    }
    watch(l);
    for (int i = 0; i < started; i++) pthread_join(r[i].thread, NULL);
    return atomic_load(&l->rc);
}

static int
read_all(load_t *l)
{
    reader_t         reader[GLM_LOAD_READERS] = { 0 };
    glm_load_room_t  room = glm_cuda_load_room(l->m, l->pieces);
    int              rc;

    if (room.readers < 1) return fail(l, GLM_ENOMEM, "no room to stage a piece of the weights");
    l->nreaders = room.readers;
    for (int i = 0; i < room.readers; i++) {
        reader[i].l = l;
        reader[i].room = &room;
        reader[i].stage = l->m->stage + (size_t) (i * room.slots) * room.dev;
    }
    rc = run_readers(l, reader, room.readers);
    for (int i = 0; i < room.readers; i++) close_reader(&reader[i], l->m->gpu);
    return rc;
}

/* A second descriptor of each file: O_DIRECT belongs to the open file. */
static void
open_direct(load_t *l)
{
    char  path[64];

    for (int i = 0; i < l->pieces->nfiles; i++) {
        snprintf(path, sizeof(path), "/proc/self/fd/%d", l->pieces->fd[i]);
        l->direct[i] = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
    }
}

static void
tell(const load_t *l, double seconds)
{
    double       gb = (double) l->pieces->bytes * 1e-9;
    const char  *how = l->pieces->nfiles == 0 ? "made there"
                     : atomic_load(&l->buffered) ? "buffered reads" : "O_DIRECT";

    glm_log(GLM_LOG_NOTICE, "%.2f GB of weights in %.1f s, %.2f GB/s; %d reader%s, %s", gb,
        seconds, seconds > 0 ? gb / seconds : 0, l->nreaders, l->nreaders == 1 ? "" : "s", how);
}

int
glm_cuda_fill(glm_cuda_model_t *m, const glm_loader_t *loader, glm_digest_t *d,
    glm_err_t *err)
{
    glm_pieces_t     *pieces = calloc(1, sizeof(*pieces));
    load_t           *l = calloc(1, sizeof(*l));
    struct timespec   t0, t1;
    int               rc;

    if (pieces == NULL || l == NULL) {
        free(pieces);
        free(l);
        return glm_fail(err, GLM_ENOMEM, "no memory to load weights");
    }
    clock_gettime(CLOCK_MONOTONIC, &t0);
    *l = (load_t) { .m = m, .pieces = pieces, .digest = d, .err = err };
    pthread_mutex_init(&l->lock, NULL);
    if ((rc = glm_cuda_pieces(pieces, m, loader, err)) == 0) {
        open_direct(l);
        rc = read_all(l);
        for (int i = 0; i < pieces->nfiles; i++) {
            if (l->direct[i] >= 0) close(l->direct[i]);
        }
    }
    clock_gettime(CLOCK_MONOTONIC, &t1);
    m->base.load_seconds = (double) (t1.tv_sec - t0.tv_sec)
                           + (double) (t1.tv_nsec - t0.tv_nsec) * 1e-9;
    if (rc == 0) tell(l, m->base.load_seconds);
    pthread_mutex_destroy(&l->lock);
    free(pieces->list);
    free(pieces);
    free(l);
    return rc;
}
