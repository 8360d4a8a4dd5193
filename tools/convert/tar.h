/*
 * tar: which files a tar archive holds, and where: ustar, GNU and pax headers,
 * sizes beyond 8 GiB.  Nothing is unpacked.
 */
#ifndef GLM_CV_TAR_H
#define GLM_CV_TAR_H

#include "vol.h"

typedef struct {
    char      *name;
    uint64_t   at, size;      /* of its bytes in the volume */
} tar_file_t;

typedef struct {
    tar_file_t  *file;
    size_t       n;
} tar_t;

/* Plain files only.  An error names the part of the volume and the byte. */
int tar_list(tar_t *t, const vol_t *v, glm_err_t *err);
void tar_free(tar_t *t);

#endif
