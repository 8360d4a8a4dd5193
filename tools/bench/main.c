/* main: glm-bench's commands, their options, and times. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bench.h"
#include "kernels.h"
#include "options.h"

static clockid_t  bench_clock = CLOCK_MONOTONIC;

void
bench_cpu_time(void)
{
    bench_clock = CLOCK_THREAD_CPUTIME_ID;
}

double
bench_now(void)
{
    struct timespec  t;

    clock_gettime(bench_clock, &t);
    return (double) t.tv_sec + (double) t.tv_nsec * 1e-9;
}

void
bench_add(bench_times_t *b, double t)
{
    if (b->n == b->room) {
        b->room = b->room ? 2 * b->room : 64;
        b->t = realloc(b->t, (size_t) b->room * sizeof(*b->t));
        if (b->t == NULL) {
            fprintf(stderr, "glm-bench: no memory\n");
            exit(1);
        }
    }
    b->t[b->n++] = t;
}

static int
by_size(const void *a, const void *b)
{
    double  x = *(const double *) a, y = *(const double *) b;

    return x < y ? -1 : x > y;
}

double
bench_median(bench_times_t *b)
{
    if (b->n == 0) return 0;
    qsort(b->t, (size_t) b->n, sizeof(*b->t), by_size);
    return b->t[b->n / 2];
}

double
bench_least(bench_times_t *b)
{
    double  least = b->n ? b->t[0] : 0;

    for (int i = 1; i < b->n; i++) if (b->t[i] < least) least = b->t[i];
    return least;
}

void
bench_free(bench_times_t *b)
{
    free(b->t);
}

int
bench_options(const char *command, int argc, char **argv, const char *const *noarg,
    bench_option_pt option, void *run, glm_err_t *err)
{
    int          rc = 1;
    char         name[64];
    const char  *value;

    for (int i = 0; i < argc && rc > 0; ) {
        int  first = i;

        rc = glm_option_next(argc, argv, &i, noarg, name, &value, err);
        if (rc == 1) rc = option(run, name, value, err);
        if (rc == 0) {
            rc = glm_fail(err, GLM_EINVAL, "%s: not an option of %s", argv[first], command);
        }
    }
    return rc < 0 ? rc : 0;
}

int
bench_number(const char *name, const char *value, int64_t lo, int64_t hi, int32_t *out,
    glm_err_t *err)
{
    int64_t  n;
    int      rc = glm_option_size(name, value, lo, hi, &n, err);

    if (rc == 0) *out = (int32_t) n;
    return rc < 0 ? rc : 1;
}

static int
usage(FILE *f)
{
    fprintf(f,
        "usage: glm-bench cpu --model DIR [--json] [--rounds N] [--threads N] [--tp N]\n"
        "                     [--isa plain|avx2|avx512] [--context N] [--dummy]\n"
        "                     [--cpu-time] [--against DIR]\n"
        "--cpu-time: one thread, and the time that it has the core: for a machine that\n"
        "others use too; --against: steps of one row alone, in turns with those of DIR\n"
        "       glm-bench steps --model DIR [--backend auto|cpu|cuda] [--load-format dummy]\n"
        "                     [--rows 1,8,16,32,64] [--context N] [--steps N] [--top-k N]\n"
        "                     [--prefill 512] [--json] and what else loads a model\n"
        "medians of whole steps that end at the context (128), and of whole prefills\n"
        "       glm-bench kernels [--layers N] [--arch 80|90] [--ring ROWS,N] [what ..]\n"
        "each of the card's kernels at GLM-130B's shapes, beside its read peak: kernels, attn,\n"
        "linears, steps, prefill\n"
        "       glm-bench load --dir DIR [--size 16g] [--shape 130b|DIR] [--weights int4-g128]\n"
        "                     [--readers N] [--piece 16m] [--rounds 3] [--seconds N]\n"
        "                     [--drop-caches] [--remove] and what else loads a model\n"
        "writes a model of at least that size of whole layers to DIR, and loads it, beside\n"
        "raw reads and copies; --seconds: no round begins later;\n"
        "--drop-caches: the system's page cache, not the file's alone; --remove: takes the\n"
        "model away, and measures nothing\n");
    return f == stdout ? 0 : 2;
}

int
main(int argc, char **argv)
{
    static const struct {
        const char  *name;
        int        (*run)(int, char **);
    } command[] = {
        { "cpu", bench_cpu }, { "steps", bench_steps }, { "kernels", bench_kernels },
        { "load", bench_load },
    };

    for (int i = 1; i < argc; i++) if (strcmp(argv[i], "--help") == 0) return usage(stdout);
    for (size_t i = 0; argc >= 2 && i < sizeof(command) / sizeof(command[0]); i++)
        if (strcmp(argv[1], command[i].name) == 0) return command[i].run(argc - 2, argv + 2);
    return usage(stderr);
}
