/*
 * out: files of a new model directory.  They are written under other names
 * (NAME.tmp) and renamed when all are complete, config.json last; a directory
 * without config.json is no model.
 */
#ifndef GLM_CV_OUT_H
#define GLM_CV_OUT_H

#include <stdint.h>

#include "error.h"

typedef struct cv_out_s  cv_out_t;

/* Makes dir if need be and locks it.  Refused when it holds a model already,
   unless replace is set. */
int cv_out_open(cv_out_t **out, const char *dir, int replace, glm_err_t *err);
/* An error when less than bytes are free where dir is. */
int cv_out_room(const cv_out_t *o, uint64_t bytes, glm_err_t *err);
/* A new file, open for writing; the caller writes and out closes it. */
int cv_out_create(cv_out_t *o, const char *name, int *fd, glm_err_t *err);
int cv_out_write(cv_out_t *o, const void *buf, size_t n, glm_err_t *err);     /* to the last one */
/* Last step: the files get their names, what an old model left goes away. */
int cv_out_commit(cv_out_t *o, glm_err_t *err);
/* Frees; without a commit all that was written is removed.  NULL is fine. */
void cv_out_close(cv_out_t *o);

#endif
