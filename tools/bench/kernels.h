/* kernels: glm-bench kernels, which nvcc compiles (kernels_none.c: where CUDA is not
 * built in); arguments after the word; exit status. */
#ifndef GLM_BENCH_KERNELS_H
#define GLM_BENCH_KERNELS_H

#ifdef __cplusplus
extern "C"
#endif
int bench_kernels(int argc, char **argv);

#endif
