/*
 * plan: which tensors a model of a given configuration has, their whole
 * shapes, and how a rank of the original holds its part of each.
 */
#ifndef GLM_CV_PLAN_H
#define GLM_CV_PLAN_H

#include <stddef.h>
#include <stdint.h>

#include "config.h"

typedef enum {
    CV_COPY,                  /* every rank has the whole */
    CV_ROWS,                  /* ranks' rows one after another */
    CV_COLS,                  /* ranks' columns side by side */
    CV_GLU                    /* rows; each rank has a part of both halves */
} cv_cut_t;

typedef struct {
    char      name[80];       /* on disk, without the prefix */
    cv_cut_t  cut;
    int       linear;         /* a linear's weight, which may be quantised */
    int       ndim;           /* 1 or 2 */
    int64_t   dim[2];         /* whole; dim[1] is 1 for a vector */
} cv_item_t;

#define CV_PREFIX  "transformer."       /* of names in the original's files */

size_t cv_plan_count(const glm_config_t *cfg);
/* The i-th tensor, in the order in which they are written. */
void cv_plan_at(const glm_config_t *cfg, size_t i, cv_item_t *out);
uint64_t cv_plan_bytes(const glm_config_t *cfg);        /* of all, as fp16 */

/*
 * What ranks hold of a linear's weight that the original quantised: its bytes,
 * and a scale for each row of the rank's part.  Side by side these are
 * (rows, ranks) where the ranks share the columns.
 */
void cv_plan_quantised(const cv_item_t *item, glm_ttype_t type, int ranks, cv_item_t *bytes,
    cv_item_t *scale);

/* The shape of one of ranks parts; ranks divides what is cut. */
void cv_part_dims(const cv_item_t *item, int ranks, int64_t dim[2]);
/* 0, or an error naming what does not divide by ranks. */
int cv_plan_divides(const glm_config_t *cfg, int ranks, glm_err_t *err);

#endif
