/*
 * parts: the files of an archive that was cut, NAME.tar.part_00 and so on or
 * .part_aa, by one of them or by their directory.
 */
#ifndef GLM_CV_PARTS_H
#define GLM_CV_PARTS_H

#include <stddef.h>

#include "error.h"

typedef struct {
    char   **path;            /* in order */
    size_t   n;
} cv_parts_t;

/*
 * path: a directory with one archive, a part, or a whole *.tar.  GLM_ENOENT,
 * with no text, when there is no such thing.  A gap in the numbers is an error
 * that names the missing part.
 */
int cv_parts_find(cv_parts_t *p, const char *path, glm_err_t *err);
void cv_parts_free(cv_parts_t *p);

#endif
