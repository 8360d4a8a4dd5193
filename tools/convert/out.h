/*
 * out: files of a new model directory.  They are written under other names
 * (NAME.tmp) and renamed when all are complete, config.json last; a directory
 * without config.json is no model.  What a killed conversion left can be gone on
 * with.
 */
#ifndef GLM_CV_OUT_H
#define GLM_CV_OUT_H

#include <stdint.h>

#include "error.h"

#define CV_JOURNAL  "convert.journal"          /* .tmp while it lasts */

typedef struct cv_out_s  cv_out_t;

/*
 * Makes dir if need be and locks it.  Refused when it holds a model already,
 * unless replace is set.  Files of an unfinished conversion stay as they are.
 */
int cv_out_open(cv_out_t **out, const char *dir, int replace, glm_err_t *err);
/* Removes what an unfinished conversion left. */
int cv_out_clear(cv_out_t *o, glm_err_t *err);
/* An error when less than bytes are free where dir is; what an unfinished
   conversion has there counts as free. */
int cv_out_room(cv_out_t *o, uint64_t bytes, glm_err_t *err);

/* A file, open for writing behind its first keep bytes, which an unfinished
   conversion left; 0: a new one. */
int cv_out_create(cv_out_t *o, const char *name, uint64_t keep, glm_err_t *err);
int cv_out_write(cv_out_t *o, const void *buf, size_t n, glm_err_t *err);     /* to the last one */
/* Its first bytes again. */
int cv_out_head(cv_out_t *o, const void *buf, size_t n, glm_err_t *err);
/* Begins to bring what was written to the disk; returns when it is there. */
void cv_out_flush(cv_out_t *o);
int cv_out_sync(cv_out_t *o, glm_err_t *err);

/* NAME.tmp, as openat() opens it with these flags; the caller's, -1 with errno. */
int cv_out_left(const cv_out_t *o, const char *name, int flags);
const char *cv_out_dir(const cv_out_t *o);

/* Last step: the files get their names, what an old model left goes away. */
int cv_out_commit(cv_out_t *o, glm_err_t *err);
/* Without a commit, cv_out_close() leaves the files for another try. */
void cv_out_keep(cv_out_t *o);
/* Frees; without a commit all that is unfinished is removed, once a file was created.
   NULL is fine. */
void cv_out_close(cv_out_t *o);

#endif
