/*
 * vol: all files stay open; sixty parts are far below any limit.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vol.h"

typedef struct {
    vol_file_t  file;
    char       *path;
    int         fd;
    uint64_t    at;           /* of its first byte in the whole */
} vol_part_t;

struct vol_s {
    vol_part_t  *part;
    size_t       n;
    uint64_t     size;
};


static int
vol_add(vol_t *v, const char *path, glm_err_t *err)
{
    vol_part_t   *p = &v->part[v->n];
    struct stat   sb;

    p->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);      /* a fifo must not hang us */
    if (p->fd < 0) {
        return glm_fail(err, errno == ENOENT ? GLM_ENOENT : GLM_EIO, "%s: %s", path,
                        strerror(errno));
    }
    v->n++;
    if (fstat(p->fd, &sb) != 0 || !S_ISREG(sb.st_mode)) {
        return glm_fail(err, GLM_EFORMAT, "%s: not a plain file", path);
    }
    p->path = strdup(path);
    if (p->path == NULL) return glm_fail(err, GLM_ENOMEM, "%s: no memory", path);
    p->at = v->size;
    p->file = (vol_file_t) {
        .path = p->path, .size = (uint64_t) sb.st_size,
        .mtime = sb.st_mtim.tv_sec * 1000000000ll + sb.st_mtim.tv_nsec,
    };
    v->size += p->file.size;
    return 0;
}


int
vol_open(vol_t **out, char *const *paths, size_t n, glm_err_t *err)
{
    vol_t   *v = calloc(1, sizeof(*v));
    size_t   i;
    int      rc = 0;

    *out = NULL;
    if (v != NULL) v->part = calloc(n, sizeof(*v->part));
    if (v == NULL || v->part == NULL) rc = glm_fail(err, GLM_ENOMEM, "%s: no memory", paths[0]);
    for (i = 0; i < n && rc == 0; i++) rc = vol_add(v, paths[i], err);
    if (rc != 0) {
        vol_close(v);
        return rc;
    }
    *out = v;
    return 0;
}


void
vol_close(vol_t *v)
{
    if (v == NULL) return;
    while (v->n > 0) {
        v->n--;
        close(v->part[v->n].fd);
        free(v->part[v->n].path);
    }
    free(v->part);
    free(v);
}


uint64_t
vol_size(const vol_t *v)
{
    return v->size;
}


const vol_file_t *
vol_file(const vol_t *v, size_t i)
{
    return i < v->n ? &v->part[i].file : NULL;
}


/* The file with the byte; the last one for what lies behind the end. */
static const vol_part_t *
vol_part(const vol_t *v, uint64_t at)
{
    size_t  i = v->n - 1;

    while (i > 0 && v->part[i].at > at) i--;
    return &v->part[i];
}


const char *
vol_place(const vol_t *v, uint64_t at, char *out, size_t size)
{
    const vol_part_t  *p = vol_part(v, at);

    snprintf(out, size, "%s, byte %llu", p->path, (unsigned long long) (at - p->at));
    return out;
}


int
vol_read(const vol_t *v, void *buf, size_t n, uint64_t at, glm_err_t *err)
{
    const vol_part_t  *p;
    char              *to = buf;
    size_t             some;
    ssize_t            got;

    while (n > 0) {
        p = vol_part(v, at);
        some = p->at + p->file.size - at < n ? (size_t) (p->at + p->file.size - at) : n;
        got = at < v->size ? pread(p->fd, to, some, (off_t) (at - p->at)) : 0;
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) {
            return glm_fail(err, GLM_EIO, "%s, byte %llu: read() failed: %s", p->path,
                            (unsigned long long) (at - p->at), strerror(errno));
        }
        if (got == 0) {
            return glm_fail(err, GLM_EFORMAT, "%s, byte %llu: cut short", p->path,
                            (unsigned long long) (at - p->at));
        }
        to += got;
        at += (uint64_t) got;
        n -= (size_t) got;
    }
    return 0;
}
