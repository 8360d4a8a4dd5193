/* main: glm-bench's commands, and times. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bench.h"
#include "kernels.h"

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
main(int argc, char **argv)
{
    if (argc >= 2 && strcmp(argv[1], "cpu") == 0) return bench_cpu(argc - 2, argv + 2);
    if (argc >= 2 && strcmp(argv[1], "steps") == 0) return bench_steps(argc - 2, argv + 2);
    if (argc >= 2 && strcmp(argv[1], "kernels") == 0) return bench_kernels(argc - 2, argv + 2);
    if (argc >= 2 && strcmp(argv[1], "load") == 0) return bench_load(argc - 2, argv + 2);
    fprintf(stderr,
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
    return argc >= 2 && strcmp(argv[1], "--help") == 0 ? 0 : 2;
}
