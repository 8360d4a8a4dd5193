/*
 * calib: runs a text through the model while it is being converted, layer by layer,
 * so that each weight is quantised for the inputs that it will have: those that the
 * layers below, quantised already, give it.  Holds one linear's weight and the
 * activations of all the text.
 */
#ifndef GLM_CV_CALIB_H
#define GLM_CV_CALIB_H

#include "form.h"
#include "gptq.h"

typedef struct cv_calib_s  cv_calib_t;

#define CV_CALIB_TOKENS  65536    /* of the text, at most, unless told otherwise */

/* What it will take; the time from a measurement on this machine. */
typedef struct {
    size_t    tokens, windows;
    uint64_t  bytes;          /* beside the tensor that is being converted */
    double    seconds;
} cv_calib_cost_t;

/*
 * ids: of a text, without special tokens; it is cut into windows, each of which becomes
 * "[gMASK] sop text" in the unidirectional mode.  forms says what will be quantised.
 */
int cv_calib_new(cv_calib_t **out, const glm_config_t *cfg, const cv_forms_t *forms,
    const int32_t *ids, size_t n, glm_err_t *err);
void cv_calib_free(cv_calib_t *c);              /* NULL is fine */
void cv_calib_cost(const cv_calib_t *c, cv_calib_cost_t *cost);

/* The i-th tensor of the plan, a linear's weight; see cv_gptq_quantize().  All before it have
   been taken. */
int cv_calib_quantize(cv_calib_t *c, size_t i, const glm_quantize_t *z, const uint16_t *w, uint8_t *q,
    uint16_t *scale, int64_t *row, int64_t *col);

/*
 * The i-th tensor of the plan as it is stored; each once, in order.  The text goes on as far
 * as it can.
 */
int cv_calib_take(cv_calib_t *c, size_t i, const void *values, const uint16_t *scale, glm_err_t *err);

/* For tests: what the layers so far make of the first n tokens, special ones included, before
   the next norm; x: (n, hidden). */
void cv_calib_output(const cv_calib_t *c, int n, float *x);

#endif
