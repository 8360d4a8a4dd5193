/*
 * gptq: integers for a linear's weight that keep its outputs, not the weight
 * itself, close: the error of a column is made up for by the columns after it,
 * as far as inputs of the calibration text make them alike.
 *
 * With H = sum of x x^T over inputs, damped, and H = U U^T, U upper triangular, the
 * error of outputs is |(w - q) U|^2.  Its j-th component depends on columns up to
 * j alone, so columns are rounded in order, each to what makes its own component
 * smallest:
 *     q[j] = round((w[j] + sum over i < j of (w[i] - q[i]) U[i, j] / U[j, j]) / scale)
 * which is what GPTQ computes through the inverse of H.
 */
#ifndef GLM_CV_GPTQ_H
#define GLM_CV_GPTQ_H

#include "comm.h"
#include "glm_kernels.h"
#include "quant.h"

typedef struct cv_gptq_s  cv_gptq_t;

#define CV_DAMPING  0.01f         /* of H's mean diagonal, added to it */

/* Room for weights of up to cols inputs: 4 cols^2 bytes, and some for each thread. */
int cv_gptq_new(cv_gptq_t **out, glm_comm_t *comm, const glm_ops_t *ops, int64_t cols,
    glm_err_t *err);
void cv_gptq_free(cv_gptq_t *g);                /* NULL is fine */
uint64_t cv_gptq_bytes(int64_t cols, int threads);

/* H of n inputs x (n, cols), ld floats apart; then its factor. */
void cv_gptq_inputs(cv_gptq_t *g, const float *x, size_t ld, int64_t n, int64_t cols);

/*
 * As glm_quantize(), for a weight of these inputs; q may not lie in w.
 */
int cv_gptq_quantize(cv_gptq_t *g, const glm_quantize_t *z, const uint16_t *w, uint8_t *q,
    uint16_t *scale, int64_t *row, int64_t *col);

#endif
