/*
 * bench: glm-bench's parts.  Each measurement is many short repetitions, taken
 * in turns with what it is compared with, and told as median and minimum.
 */
#ifndef GLM_BENCH_H
#define GLM_BENCH_H

#include <stddef.h>
#include <stdint.h>

#include "comm.h"
#include "error.h"
#include "glm_kernels.h"

/* Times of one thing, seconds. */
typedef struct {
    double  *t;
    int      n, room;
} bench_times_t;

double bench_now(void);                         /* seconds, monotonic */
void bench_cpu_time(void);                      /* from now on: of this thread */
void bench_add(bench_times_t *b, double t);     /* ends the program without memory */
double bench_median(bench_times_t *b);          /* sorts */
double bench_least(bench_times_t *b);
void bench_free(bench_times_t *b);

/* One option: 1, 0 where there is none of that name, or an error. */
typedef int (*bench_option_pt)(void *run, const char *name, const char *value, glm_err_t *err);

/* The options of a command; noarg: those without a value, as in options.h. */
int bench_options(const char *command, int argc, char **argv, const char *const *noarg,
    bench_option_pt option, void *run, glm_err_t *err);
/* An option's number of lo .. hi: as bench_option_pt, never 0. */
int bench_number(const char *name, const char *value, int64_t lo, int64_t hi, int32_t *out,
    glm_err_t *err);

/* glm-bench cpu ...; arguments after the word; exit status. */
int bench_cpu(int argc, char **argv);
/* glm-bench steps ... */
int bench_steps(int argc, char **argv);
/* glm-bench load ... */
int bench_load(int argc, char **argv);

/*
 * floor: what reading the weights costs.  n values of fp16 are multiplied with
 * one vector by plain matrix-vector loops over all threads, with no barrier but
 * the last.  Two loops: rows of k values, eight at a time; and the panels of
 * linear().
 */
typedef struct bench_floor_s  bench_floor_t;

bench_floor_t *bench_floor_new(glm_comm_t *team, const glm_ops_t *ops, size_t n, int k);
void bench_floor_free(bench_floor_t *f);
double bench_floor_run(bench_floor_t *f, int panels);   /* seconds */

/*
 * gemm: OpenBLAS's sgemm on the model's linears at m rows, found at run time.
 * One set is qkv, dense, h_to_4h and 4h_to_h of one layer.
 */
typedef struct bench_gemm_s  bench_gemm_t;

/* NULL, with the reason in why, where there is no OpenBLAS. */
bench_gemm_t *bench_gemm_new(int m, int hidden, int inner, int threads, const char **why);
void bench_gemm_free(bench_gemm_t *g);
/* Seconds of one set; transposed: weights [out, in] as in files, or [in, out]. */
double bench_gemm_run(bench_gemm_t *g, int transposed);
double bench_gemm_flops(const bench_gemm_t *g); /* of one set */
const char *bench_gemm_config(const bench_gemm_t *g);

#endif
