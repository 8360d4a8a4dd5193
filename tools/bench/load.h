/*
 * load: glm-bench load's parts.  load.c takes measurements in turns and tells them;
 * load_files.c writes the model they are of; load_disk.c reads it without a model;
 * copies.c brings pinned memory to the card (copies_none.c: where CUDA is not built
 * in).
 */
#ifndef GLM_BENCH_LOAD_H
#define GLM_BENCH_LOAD_H

#include "bench.h"
#include "config.h"
#include "error.h"

/* ---- the model: whole layers of a shape, with dummy weights ---- */

typedef struct {
    const char   *dir;
    glm_config_t  cfg;            /* the shape; then as many layers as were asked for */
    int32_t       whole;          /* layers of the shape */
    char          path[512];      /* of the weights */
    uint64_t      layer_bytes, bytes;     /* of a layer; of all tensors */
    double        written_s;      /* 0: they were there already */
} bench_files_t;

/* shape: "130b", or a directory whose config.json has it; at least `size` bytes of
 * whole layers, and the same part of the vocabulary as of the layers. */
int bench_files_plan(bench_files_t *f, const char *dir, const char *shape, glm_quant_t as,
    int64_t size, glm_err_t *err);
/* Writes them, unless a complete one of the same plan is there. */
int bench_files_write(bench_files_t *f, glm_err_t *err);
/* Takes away what bench_files_write() wrote in dir, and dir if nothing else is there. */
int bench_files_remove(const char *dir, glm_err_t *err);

/* ---- the file alone ---- */

/* Reads it with n threads, `block` bytes at a time; *direct asks for O_DIRECT and says
 * whether it was. */
int bench_disk_read(const char *path, int n, size_t block, int *direct, double *seconds,
    glm_err_t *err);
/* Out of the page cache: the file's pages; *all asks for all that the system holds and
 * says whether that was allowed.  Returns which part of it is cached still, 0 to 1;
 * below 0: err. */
double bench_disk_drop(const char *path, int *all, glm_err_t *err);

/* ---- copies ---- */

typedef struct bench_copies_s  bench_copies_t;

/* n streams of two buffers each; err: no card. */
int bench_copies_new(bench_copies_t **out, int n, size_t piece, glm_err_t *err);
void bench_copies_free(bench_copies_t *c);      /* NULL is fine */
const char *bench_copies_card(const bench_copies_t *c);
/* That many bytes from pinned memory to the card. */
int bench_copies_run(bench_copies_t *c, uint64_t bytes, double *seconds, glm_err_t *err);

#endif
