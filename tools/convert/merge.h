/*
 * merge: one whole fp16 tensor from the parts of all ranks.
 */
#ifndef GLM_CV_MERGE_H
#define GLM_CV_MERGE_H

#include <signal.h>

#include "source.h"

/*
 * whole: room for the tensor, row-major.  Parts are read in rank order and
 * put in place as they come.  *differ: 0, or the first rank whose copy of a
 * CV_COPY tensor is not that of rank 0, whose values are the result.  stop:
 * when it becomes nonzero the answer is GLM_ECANCEL.
 */
int cv_merge(const cv_source_t *s, const cv_item_t *item, uint16_t *whole, int *differ,
    const volatile sig_atomic_t *stop, glm_err_t *err);

#endif
