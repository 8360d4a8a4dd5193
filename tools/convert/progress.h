/*
 * progress: how far a long job is: a bar that is drawn over on a terminal,
 * otherwise a plain line now and then.  Writes to stderr.
 */
#ifndef GLM_CV_PROGRESS_H
#define GLM_CV_PROGRESS_H

#include <stdint.h>
#include <time.h>

typedef struct {
    uint64_t         total, done;       /* bytes */
    int              bar, quiet, drawn;
    int              tenths;            /* plain: tenths told already */
    struct timespec  began, last;
} cv_progress_t;

void cv_progress_begin(cv_progress_t *p, uint64_t total, int quiet);
void cv_progress_add(cv_progress_t *p, uint64_t bytes, const char *what);
/* Takes the bar away, so that a line can be printed. */
void cv_progress_clear(cv_progress_t *p);

#endif
