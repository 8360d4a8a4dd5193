/*
 * parts: their order is that of their names, and names must be without a gap:
 * what is joined in another order, or without one, would be read as nonsense.
 */
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "parts.h"

#define CV_MAX_PARTS  10000
#define CV_MARK       ".tar.part_"


static int
cv_is_archive(const char *name)
{
    size_t  n = strlen(name);

    return strstr(name, CV_MARK) != NULL || (n > 4 && strcmp(name + n - 4, ".tar") == 0);
}


/* Bytes of a name up to the number of the part; all of a whole archive. */
static size_t
cv_stem(const char *name)
{
    const char  *mark = strstr(name, CV_MARK);

    return mark ? (size_t) (mark - name) + strlen(CV_MARK) : strlen(name);
}


/* 00, 01 .. or aa, ab ..; -1 for anything else. */
static long
cv_number(const char *s)
{
    int   letters = *s >= 'a' && *s <= 'z';
    char  first = letters ? 'a' : '0', last = letters ? 'z' : '9';
    long  n = 0;

    if (*s == '\0' || strlen(s) > 6) return -1;
    for ( ; *s; s++) {
        if (*s < first || *s > last) return -1;
        n = n * (letters ? 26 : 10) + (*s - first);
    }
    return n;
}


/* The name of the part that comes after another one. */
static void
cv_next_name(char *name)
{
    char  *p = name + strlen(name) - 1;

    while (*p == '9' || *p == 'z') {
        *p = *p == '9' ? '0' : 'a';
        p--;
    }
    ++*p;
}


static int
cv_by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *) a, *(char *const *) b);
}


static int
cv_add_part(cv_parts_t *p, const char *dir, const char *name, glm_err_t *err)
{
    void  *more;

    if (p->n == CV_MAX_PARTS) {
        return glm_fail(err, GLM_ELIMIT, "%s: more than %d parts", dir, CV_MAX_PARTS);
    }
    more = reallocarray(p->path, p->n + 1, sizeof(*p->path));
    if (more != NULL) p->path = more;
    if (more == NULL || asprintf(&p->path[p->n], "%s%s%s", dir, dir[strlen(dir) - 1] == '/' ? "" : "/",
                                 name) < 0)
    {
        return glm_fail(err, GLM_ENOMEM, "%s: no memory", dir);
    }
    p->n++;
    return 0;
}


/* All of the archive that stem belongs to; NULL: of the only one there is. */
static int
cv_gather(cv_parts_t *p, const char *dir, const char *stem, size_t len, glm_err_t *err)
{
    char            first[256] = "";
    DIR            *d = opendir(dir);
    struct dirent  *e;
    int             rc = 0;

    if (d == NULL && errno == ENOENT) return GLM_ENOENT;
    if (d == NULL) return glm_fail(err, GLM_EIO, "%s: %s", dir, strerror(errno));
    while (rc == 0 && (e = readdir(d)) != NULL) {
        if (!cv_is_archive(e->d_name)) continue;
        if (stem == NULL) {
            stem = strcpy(first, e->d_name);
            len = cv_stem(stem);
        }
        if (cv_stem(e->d_name) == len && strncmp(e->d_name, stem, len) == 0) {
            rc = cv_add_part(p, dir, e->d_name, err);

        } else if (stem == first) {
            rc = glm_fail(err, GLM_EINVAL, "%s: has %.*s and %s: name one of them", dir, (int) len,
                          stem, e->d_name);
        }
    }
    closedir(d);
    return rc == 0 && p->n == 0 ? GLM_ENOENT : rc;
}


/* Each part is followed by the next number, from 0 or 1. */
static int
cv_check_parts(cv_parts_t *p, glm_err_t *err)
{
    const char  *base = strrchr(p->path[0], '/') + 1, *number = base + cv_stem(base);
    char         next[4400];
    size_t       i;

    if (*number == '\0') return 0;
    if (cv_number(number) < 0 || cv_number(number) > 1) {
        return glm_fail(err, GLM_ENOENT, "%s: is the first part there is, the ones before it are "
                        "missing", p->path[0]);
    }
    for (i = 1; i < p->n; i++) {
        snprintf(next, sizeof(next), "%s", p->path[i - 1]);
        cv_next_name(next);
        if (strcmp(next, p->path[i]) != 0) {
            return glm_fail(err, GLM_ENOENT, "%s: missing, but %s is there", next,
                            strrchr(p->path[i], '/') + 1);
        }
    }
    return 0;
}


/* Parts are equal in size but for the last. */
static int
cv_check_sizes(const cv_parts_t *p, glm_err_t *err)
{
    struct stat  sb;
    off_t        most = 0;
    size_t       i;

    for (i = 0; i < p->n; i++) {
        if (stat(p->path[i], &sb) != 0) {
            return glm_fail(err, GLM_EIO, "%s: %s", p->path[i], strerror(errno));
        }
        if (sb.st_size > most) most = sb.st_size;
    }
    for (i = 0; i + 1 < p->n; i++) {
        if (stat(p->path[i], &sb) != 0 || sb.st_size == most) continue;
        return glm_fail(err, GLM_EFORMAT, "%s, byte %lld: the part ends here, others have %lld bytes: "
                        "it is damaged or not whole", p->path[i], (long long) sb.st_size,
                        (long long) most);
    }
    return 0;
}


int
cv_parts_find(cv_parts_t *p, const char *path, glm_err_t *err)
{
    char         dir[4096];
    const char  *base;
    struct stat  sb;
    int          rc;

    *p = (cv_parts_t) { NULL, 0 };
    if (strlen(path) >= sizeof(dir)) {
        return glm_fail(err, GLM_EINVAL, "%.64s...: path is too long", path);
    }
    if (stat(path, &sb) == 0 && S_ISDIR(sb.st_mode)) {
        rc = cv_gather(p, path, NULL, 0, err);

    } else {
        base = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
        if (!cv_is_archive(base)) return GLM_ENOENT;
        snprintf(dir, sizeof(dir), "%.*s", (int) (base - path), path);
        rc = cv_gather(p, dir[0] ? dir : "./", base, cv_stem(base), err);
    }
    if (rc == 0) {
        qsort(p->path, p->n, sizeof(*p->path), cv_by_name);
        rc = cv_check_parts(p, err);
    }
    if (rc == 0) rc = cv_check_sizes(p, err);
    if (rc != 0) cv_parts_free(p);
    return rc;
}


void
cv_parts_free(cv_parts_t *p)
{
    while (p->n > 0) free(p->path[--p->n]);
    free(p->path);
    p->path = NULL;
}
