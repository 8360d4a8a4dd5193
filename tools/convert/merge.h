/*
 * merge: one whole tensor from the parts of all ranks: fp16, or the bytes of
 * one that is quantised.
 */
#ifndef GLM_CV_MERGE_H
#define GLM_CV_MERGE_H

#include <signal.h>

#include "source.h"

/*
 * whole: room for the tensor, row-major, 2 bytes a value or 1 of int8.  Parts are read in rank order and
 * put in place as they come.  *differ: 0, or the first rank whose copy of a
 * CV_COPY tensor is not that of rank 0, whose values are the result.  stop:
 * when it becomes nonzero the answer is GLM_ECANCEL.
 */
int cv_merge(const cv_source_t *s, const cv_item_t *item, void *whole, int *differ,
    const volatile sig_atomic_t *stop, glm_err_t *err);

#endif
