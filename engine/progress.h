/*
 * progress: how far a long job is: a bar that is drawn over on a terminal,
 * otherwise a plain line now and then.  Writes to stderr.
 */
#ifndef GLM_PROGRESS_H
#define GLM_PROGRESS_H

#include <stdint.h>
#include <time.h>

typedef struct {
    const char      *unit;              /* what is counted; NULL: bytes */
    uint64_t         total, done;
    uint64_t         before;            /* done by an earlier run: none of this one's speed */
    int              bar, quiet, drawn;
    int              tenths;            /* plain: tenths told already */
    struct timespec  began, last;
} glm_progress_t;

void glm_progress_begin(glm_progress_t *p, uint64_t total, const char *unit, int quiet);
void glm_progress_add(glm_progress_t *p, uint64_t n, const char *what);
/* The same of what an earlier run has done. */
void glm_progress_found(glm_progress_t *p, uint64_t n, const char *what);
/* Seconds that are left at the speed so far. */
int glm_progress_left(const glm_progress_t *p);
/* Takes the bar away, so that a line can be printed. */
void glm_progress_clear(glm_progress_t *p);

#endif
