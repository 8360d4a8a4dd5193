/*
 * journal: which tensors of an unfinished conversion are on disk, so that the
 * next one goes on where it was killed.
 */
#ifndef GLM_CV_JOURNAL_H
#define GLM_CV_JOURNAL_H

#include "out.h"

typedef struct cv_journal_s  cv_journal_t;

/*
 * identity: lines that say what is converted, and how.  An unfinished conversion
 * of the same identity is gone on with; one of another is an error that tells the
 * first difference, or is removed if replace is set.
 */
int cv_journal_open(cv_journal_t **out, cv_out_t *o, const char *identity, int replace,
    glm_err_t *err);
void cv_journal_close(cv_journal_t *j);         /* NULL is fine */

/* 1, and the checksum, when the tensor is marked. */
int cv_journal_find(const cv_journal_t *j, const char *name, uint32_t *crc);
size_t cv_journal_count(const cv_journal_t *j);
/* Its bytes are on disk: to be called after cv_out_sync(). */
int cv_journal_mark(cv_journal_t *j, const char *name, uint32_t crc, glm_err_t *err);

#endif
