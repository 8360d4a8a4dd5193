/*
 * job: a conversion under way, for convert.c (its order) and tensors.c (its work).
 */
#ifndef GLM_CV_JOB_H
#define GLM_CV_JOB_H

#include <limits.h>

#include "calib.h"
#include "comm.h"
#include "convert.h"
#include "progress.h"
#include "stw.h"

typedef struct {
    const cv_options_t  *opt;
    glm_config_t         cfg;
    char                 home[PATH_MAX - 64];   /* the source's directory, or an archive's */
    char                *text;          /* the source's config.json */
    size_t               text_len;
    char                *config;        /* text of the new one */
    cv_calib_t          *calib;         /* NULL: none */
    uint32_t             text_crc;      /* of the ids of its text */
    cv_source_t          source;
    cv_forms_t           forms;
    glm_comm_t          *team;          /* for weights that are not calibrated */
    cv_out_t            *out;
    cv_journal_t        *journal;
    stw_t               *stw;
    glm_progress_t        progress;
    glm_err_t           *err;
} cv_job_t;

/* Tells the writer what will come, in the order of the plan. */
int cv_declare(cv_job_t *j);
/* All tensors, and the index. */
int cv_put_tensors(cv_job_t *j);
/* Bytes of room for any tensor of the plan with its integers, and for the scales of any. */
void cv_needs(const cv_job_t *j, size_t *whole, size_t *scale);

#endif
