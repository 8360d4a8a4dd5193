/*
 * sockpath: a listening Unix SOCK_SEQPACKET socket at a path, with a lock file
 * beside it, so that a socket left by a dead engine is replaced and that of a
 * live one is not.  Owns both files while it is open.  Main thread only.
 */
#ifndef GLM_SOCKPATH_H
#define GLM_SOCKPATH_H

#include <sys/types.h>

#include "error.h"

#define GLM_SOCKPATH_MAX  107         /* sun_path without its NUL */

typedef struct {
    int   fd;                         /* listening, non-blocking; -1: none */
    int   lock_fd;
    char  path[GLM_SOCKPATH_MAX + 1];
} glm_sockpath_t;

/* Checks length alone. */
int glm_sockpath_check(const char *path, glm_err_t *err);

/* group: NULL leaves the process's.  GLM_EBUSY: an engine has it ("already
 * running"). */
int glm_sockpath_open(glm_sockpath_t *s, const char *path, const char *group, mode_t mode,
    glm_err_t *err);

/* Removes socket and lock file and closes both. */
void glm_sockpath_close(glm_sockpath_t *s);

#endif
