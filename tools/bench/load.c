/*
 * load: how fast a model comes from its file to where it computes, beside what the
 * disk gives and what the card takes in the same run.  The load is the engine's own,
 * glm_model_load(); each round measures all in turns, and medians are told.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "load.h"
#include "model.h"
#include "options.h"

#define WANTED      85            /* % of the slower of reads and copies */
#define ALL_BYTES   67e9          /* of GLM-130B in int4-g128, as the plan has it */

enum { READS, COPIES, COLD, WARM, COLD_START, WARM_START, ROWS };

typedef struct {
    glm_engine_opts_t   engine;
    const char         *dir, *shape;
    glm_quant_t         as;
    int64_t             size, piece;
    int32_t             readers, rounds, seconds;
    int                 remove, drop;    /* drop: the system's page cache, too */
    int                 dropped;         /* and whether it was */
    bench_files_t       files;
    bench_copies_t     *copies;   /* NULL: no card, and why */
    glm_err_t           why;
    int                 direct;   /* reads are by O_DIRECT */
    double              left;     /* of the file in the page cache, the most after a drop */
    bench_times_t       t[ROWS];
} run_t;

static const char *const  noarg[] = { "remove", "drop-caches", NULL };

/* ---- options ---- */

static int
option(void *run, const char *name, const char *value, glm_err_t *err)
{
    run_t  *r = run;
    int     rc;

    if (strcmp(name, "remove") == 0) return r->remove = 1;
    if (strcmp(name, "drop-caches") == 0) return r->drop = 1;
    if (strcmp(name, "dir") == 0) {
        r->dir = value;
        return 1;
    }
    if (strcmp(name, "shape") == 0) {
        r->shape = value;
        return 1;
    }
    if (strcmp(name, "weights") == 0) {
        if (glm_quant_parse(&r->as, value) == 0) return 1;
        return glm_fail(err, GLM_EINVAL, "--weights: \"%.40s\" is none of fp16, int8, int4, "
            "int4-g128", value);
    }
    if (strcmp(name, "size") == 0) {
        rc = glm_option_size(name, value, 1, (int64_t) 1 << 44, &r->size, err);
        return rc < 0 ? rc : 1;
    }
    if (strcmp(name, "piece") == 0) {
        rc = glm_option_size(name, value, 4096, (int64_t) 1 << 30, &r->piece, err);
        return rc < 0 ? rc : 1;
    }
    if (strcmp(name, "readers") == 0) {
        return bench_number(name, value, 1, GLM_LOAD_READERS, &r->readers, err);
    }
    if (strcmp(name, "rounds") == 0) return bench_number(name, value, 1, 99, &r->rounds, err);
    if (strcmp(name, "seconds") == 0) return bench_number(name, value, 1, 86400, &r->seconds, err);
    return glm_option_engine(&r->engine, name, value, err);
}

static int
options(run_t *r, int argc, char **argv, glm_err_t *err)
{
    int  rc = bench_options("load", argc, argv, noarg, option, r, err);

    if (rc == 0 && r->dir == NULL) rc = glm_fail(err, GLM_EINVAL, "--dir DIR is needed");
    if (rc == 0 && r->engine.model_dir != NULL) {
        rc = glm_fail(err, GLM_EINVAL, "--model: load writes the model it loads, of --shape");
    }
    if (r->readers == 0) r->readers = glm_comm_cores();
    if (r->readers > GLM_LOAD_READERS) r->readers = GLM_LOAD_READERS;
    return rc;
}

/* ---- measurements ---- */

/* A whole start, and of it what the weights took. */
static int
load(run_t *r, int weights, int start, glm_err_t *err)
{
    glm_model_opts_t  o = r->engine.model;
    glm_model_t      *m;
    double            t = bench_now(), took;
    int               rc;

    o.dir = r->dir;
    o.readers = r->readers;
    o.piece = (size_t) r->piece;
    if (r->copies == NULL) {
        o.backend = GLM_BACKEND_CPU;
        o.kv_pages = 16;          /* its memory is for the weights */
    }
    if (o.max_rows == 0) o.max_rows = 64;
    if ((rc = glm_model_load(&m, &o, err)) != 0) return rc;
    bench_add(&r->t[start], t = bench_now() - t);
    took = glm_model_load_seconds(m);
    bench_add(&r->t[weights], took > 0 ? took : t);
    glm_model_free(m);
    return 0;
}

static int
drop(run_t *r, glm_err_t *err)
{
    double  left;

    r->dropped = r->drop;
    left = bench_disk_drop(r->files.path, &r->dropped, err);
    if (left > r->left) r->left = left;
    return left < 0 ? GLM_EIO : 0;
}

static int
measure_round(run_t *r, glm_err_t *err)
{
    int     rc, no = 0;
    double  t;

    r->direct = 1;
    if ((rc = drop(r, err)) != 0
        || (rc = bench_disk_read(r->files.path, r->readers, (size_t) r->piece, &r->direct, &t,
                                 err)) != 0) return rc;
    bench_add(&r->t[READS], t);
    if (r->copies != NULL) {
        if ((rc = bench_copies_run(r->copies, r->files.bytes, &t, err)) != 0) return rc;
        bench_add(&r->t[COPIES], t);
    }
    if ((rc = drop(r, err)) != 0 || (rc = load(r, COLD, COLD_START, err)) != 0) return rc;
    /* into the page cache */
    if ((rc = bench_disk_read(r->files.path, r->readers, (size_t) r->piece, &no, &t, err)) != 0) {
        return rc;
    }
    return load(r, WARM, WARM_START, err);
}

/* ---- the table ---- */

/* "model name : ..." of a file of /proc. */
static void
processor(char out[96])
{
    char   line[256], *at;
    FILE  *f = fopen("/proc/cpuinfo", "re");

    snprintf(out, 96, "a processor");
    while (f != NULL && fgets(line, sizeof(line), f) != NULL) {
        if (strncmp(line, "model name", 10) != 0 || (at = strchr(line, ':')) == NULL) continue;
        at[strcspn(at, "\n")] = '\0';
        snprintf(out, 96, "%.90s", at + 2);
        break;
    }
    if (f != NULL) fclose(f);
}

static void
print_head(const run_t *r)
{
    const glm_config_t  *c = &r->files.cfg;
    char                 cpu[96], as[32], left[64];
    struct sysinfo       s;

    processor(cpu);
    (void) sysinfo(&s);
    printf("%s, %d cores, %.0f GB of memory; ", cpu, glm_comm_cores(),
        (double) s.totalram * s.mem_unit * 1e-9);
    if (r->copies != NULL) printf("%s\n", bench_copies_card(r->copies));
    else printf("no card (%s): the CPU backend loads\n", r->why.text);
    printf("%d of %d layers of %s, %s, %.2f GB of them, and as much of the vocabulary (%d): "
        "%.2f GB in %s\n", c->layers, r->files.whole, r->shape, glm_quant_text(r->as, as),
        (double) r->files.layer_bytes * c->layers * 1e-9, c->vocab, (double) r->files.bytes * 1e-9,
        r->files.path);
    if (r->files.written_s > 0) printf("written in %.1f s; ", r->files.written_s);
    else printf("was there already; ");
    snprintf(left, sizeof(left), "%.1f %% of it left", r->left * 100);
    printf("%d readers, pieces of %.1f MB, %d rounds, medians\n", r->readers,
        (double) r->piece * 1e-6, r->rounds);
    printf("cold: page cache dropped for the file%s, %s; reads %s\n\n", !r->drop ? ""
        : r->dropped ? " and the system" : " (the system's: not permitted)", left,
        r->direct ? "by O_DIRECT" : "are buffered: the file system refuses O_DIRECT");
}

static void
print_row(run_t *r, const char *what, int row, double slower, int wanted)
{
    double  t = bench_median(&r->t[row]);

    printf("%-24s %8.2f %9.3f %8.2f", what, (double) r->files.bytes * 1e-9, t,
        (double) r->files.bytes * 1e-9 / t);
    if (slower > 0) printf(" %8.1f %%", 100 * slower / t);
    if (wanted) printf(" %6d %%", WANTED);
    printf("\n");
}

static void
print_table(run_t *r)
{
    double  reads = bench_median(&r->t[READS]), copies = bench_median(&r->t[COPIES]), slower;
    double  more = ALL_BYTES / (double) r->files.bytes;
    int     card = r->copies != NULL;

    slower = reads > copies ? reads : copies;
    print_head(r);
    printf("%-24s %8s %9s %8s %10s %8s\n", "", "GB", "s", "GB/s", "of slower", "wanted");
    print_row(r, "raw reads", READS, 0, 0);
    if (card) print_row(r, "pinned copies", COPIES, 0, 0);
    print_row(r, "load, cold", COLD, slower, card);
    print_row(r, "load, file cached", WARM, slower, card);
    if (card) {
        print_row(r, "whole start, cold", COLD_START, slower, 0);
        print_row(r, "whole start, cached", WARM_START, slower, 0);
    }
    printf("\n67 GB at these rates, extrapolated: %.1f s cold, %.1f s with the file cached\n",
        bench_median(&r->t[COLD]) * more, bench_median(&r->t[WARM]) * more);
}

/* As many rounds as were asked for, or begin in time. */
static int
measure_all(run_t *r, double began, glm_err_t *err)
{
    int  i, rc = 0;

    for (i = 0; i < r->rounds && rc == 0; i++) {
        if (i > 0 && r->seconds > 0 && bench_now() - began > r->seconds) break;
        rc = measure_round(r, err);
    }
    r->rounds = i;
    return rc;
}

static int
measure(run_t *r, glm_err_t *err)
{
    double  began = bench_now();
    int     rc;

    if (r->engine.model.backend == GLM_BACKEND_CPU) {
        (void) glm_fail(&r->why, GLM_EGPU, "--backend cpu");
    } else if ((rc = bench_copies_new(&r->copies, r->readers, (size_t) r->piece, &r->why)) != 0
               && r->engine.model.backend == GLM_BACKEND_CUDA)
    {
        return glm_fail(err, rc, "--backend cuda: %s", r->why.text);
    }
    rc = bench_files_plan(&r->files, r->dir, r->shape, r->as, r->size, err);
    if (rc == 0) rc = bench_files_write(&r->files, err);
    if (rc == 0) rc = measure_all(r, began, err);
    if (rc == 0) print_table(r);
    return rc;
}

int
bench_load(int argc, char **argv)
{
    glm_err_t  err = { "" };
    run_t      r = {
        .engine = GLM_ENGINE_OPTS_DEFAULT, .shape = "130b", .as = { GLM_T_INT4, 128 },
        .size = (int64_t) 16 << 30, .piece = (int64_t) GLM_LOAD_PIECE, .rounds = 3
    };
    int        rc = options(&r, argc, argv, &err), status = rc == 0 ? 1 : 2;

    if (rc == 0) rc = r.remove ? bench_files_remove(r.dir, &err) : measure(&r, &err);
    if (rc != 0) fprintf(stderr, "glm-bench: %s\n", err.text);
    bench_copies_free(r.copies);
    for (int i = 0; i < ROWS; i++) bench_free(&r.t[i]);
    return rc == 0 ? 0 : status;
}
