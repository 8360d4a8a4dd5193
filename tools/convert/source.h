/*
 * source: a checkpoint of the original, as a directory or in an archive: `latest`,
 * and the files of all ranks of one iteration, open and checked against the
 * configuration.
 */
#ifndef GLM_CV_SOURCE_H
#define GLM_CV_SOURCE_H

#include "archive.h"
#include "plan.h"
#include "pt.h"

#define CV_MAX_RANKS  100     /* two digits in the file names */

typedef struct {
    pt_file_t    *rank[CV_MAX_RANKS];
    int           ranks;
    cv_archive_t  archive;    /* vol is NULL for a directory */
} cv_source_t;

/*
 * Opens every rank file and checks that each has every tensor of cfg in the
 * shape of its part; the error names file, tensor and both shapes.
 */
int cv_source_open(cv_source_t *s, const char *path, const glm_config_t *cfg, glm_err_t *err);
void cv_source_close(cv_source_t *s);

/* The i-th file on disk that it reads; NULL after the last. */
const vol_file_t *cv_source_file(const cv_source_t *s, size_t i);

/* How the files hold a tensor: none is fp16, or what becomes it. */
glm_ttype_t cv_source_quant(const cv_source_t *s, const cv_item_t *item);

/* Calls say() with a line for each thing in the files that no one needs. */
void cv_source_unused(cv_source_t *s, void (*say)(const char *line));

#endif
