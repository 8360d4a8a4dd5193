/*
 * archive: parts, volume and table of files, together.
 */
#include <stdlib.h>
#include <string.h>

#include "archive.h"
#include "parts.h"


/* "DIR/x.tar.part_*" of the parts DIR/x.tar.part_00 .. */
static char *
cv_archive_name(const cv_parts_t *p)
{
    char  *name = NULL, *mark;

    if (p->n == 1) return strdup(p->path[0]);
    mark = strrchr(p->path[0], '_');
    return asprintf(&name, "%.*s*", (int) (mark + 1 - p->path[0]), p->path[0]) < 0 ? NULL : name;
}


int
cv_archive_open(cv_archive_t *a, const char *path, glm_err_t *err)
{
    cv_parts_t  parts;
    int         rc;

    memset(a, 0, sizeof(*a));
    if ((rc = cv_parts_find(&parts, path, err)) != 0) return rc;
    a->name = cv_archive_name(&parts);
    rc = a->name ? vol_open(&a->vol, parts.path, parts.n, err)
                 : glm_fail(err, GLM_ENOMEM, "%s: no memory", path);
    if (rc == 0) rc = tar_list(&a->tar, a->vol, err);
    cv_parts_free(&parts);
    if (rc != 0) cv_archive_close(a);
    return rc;
}


void
cv_archive_close(cv_archive_t *a)
{
    tar_free(&a->tar);
    vol_close(a->vol);
    free(a->name);
    memset(a, 0, sizeof(*a));
}


const tar_file_t *
cv_archive_find(const cv_archive_t *a, const char *name)
{
    size_t  i;

    for (i = 0; i < a->tar.n; i++) {
        if (strcmp(a->tar.file[i].name, name) == 0) return &a->tar.file[i];
    }
    return NULL;
}


const tar_file_t *
cv_archive_base(const cv_archive_t *a, const char *base)
{
    const char  *slash;
    size_t       i;

    for (i = 0; i < a->tar.n; i++) {
        slash = strrchr(a->tar.file[i].name, '/');
        if (strcmp(slash ? slash + 1 : a->tar.file[i].name, base) == 0) return &a->tar.file[i];
    }
    return NULL;
}
