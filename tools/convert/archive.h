/*
 * archive: a checkpoint in a tar archive, whole or in parts, as it lies on disk:
 * it is neither joined nor unpacked.
 */
#ifndef GLM_CV_ARCHIVE_H
#define GLM_CV_ARCHIVE_H

#include "tar.h"

typedef struct {
    vol_t  *vol;
    tar_t   tar;
    char   *name;             /* of the archive, for messages: ".../x.tar.part_*" */
} cv_archive_t;

/* path: as cv_parts_find() takes it; GLM_ENOENT, with no text, for no archive. */
int cv_archive_open(cv_archive_t *a, const char *path, glm_err_t *err);
void cv_archive_close(cv_archive_t *a);

const tar_file_t *cv_archive_find(const cv_archive_t *a, const char *name);
/* The file whose name is base, in whatever folder; NULL: none. */
const tar_file_t *cv_archive_base(const cv_archive_t *a, const char *base);

#endif
