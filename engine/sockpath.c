/*
 * sockpath: see sockpath.h.  The lock is flock() on PATH.lock: the kernel drops
 * it with the process however that ends.  The file is removed at exit, so a
 * lock that was won may be on a file that is no longer there: then once more.
 */
#include "sockpath.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define LOCK_TRIES  100
#define BACKLOG     128

int
glm_sockpath_check(const char *path, glm_err_t *err)
{
    size_t  n = strlen(path);

    if (n == 0) return glm_fail(err, GLM_EINVAL, "the socket path is empty");
    if (n > GLM_SOCKPATH_MAX) {
        return glm_fail(err, GLM_ELIMIT, "socket path of %zu bytes, the limit is %d: %.80s...", n,
                        GLM_SOCKPATH_MAX, path);
    }
    return 0;
}

static void
lock_path(char *out, size_t size, const char *path)
{
    snprintf(out, size, "%s.lock", path);
}

/* 1: locked and in place, 0: it was removed meanwhile, or an error. */
static int
try_lock(glm_sockpath_t *s, const char *file, glm_err_t *err)
{
    int          fd, rc = 0;
    struct stat  mine, there;

    fd = open(file, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) return glm_fail(err, GLM_EIO, "%s: open() failed: %s", file, strerror(errno));

    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        rc = errno == EWOULDBLOCK
             ? glm_fail(err, GLM_EBUSY, "%s: an engine is already running on this socket", s->path)
             : glm_fail(err, GLM_EIO, "%s: flock() failed: %s", file, strerror(errno));
    } else if (fstat(fd, &mine) == 0 && stat(file, &there) == 0 && mine.st_ino == there.st_ino
               && mine.st_dev == there.st_dev)
    {
        s->lock_fd = fd;
        return 1;
    }
    close(fd);
    return rc;
}

static int
take_lock(glm_sockpath_t *s, glm_err_t *err)
{
    int   i, rc;
    char  file[GLM_SOCKPATH_MAX + 8];

    lock_path(file, sizeof(file), s->path);
    for (i = 0; i < LOCK_TRIES; i++) {
        rc = try_lock(s, file, err);
        if (rc != 0) return rc < 0 ? rc : 0;
    }
    return glm_fail(err, GLM_EBUSY, "%s: lock file does not stay in place", file);
}

static struct sockaddr_un
address(const char *path)
{
    struct sockaddr_un  sun = { .sun_family = AF_UNIX };

    memcpy(sun.sun_path, path, strlen(path));
    return sun;
}

/* Whether somebody listens there although the lock was free (its file was
 * deleted by hand). */
static int
answers(const char *path)
{
    int                 fd, rc;
    struct sockaddr_un  sun = address(path);

    fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return 0;
    rc = connect(fd, (struct sockaddr *) &sun, sizeof(sun));
    if (rc != 0 && errno == EAGAIN) rc = 0;      /* its backlog is full */
    close(fd);
    return rc == 0;
}

/* Makes way for bind(). */
static int
remove_stale(const char *path, glm_err_t *err)
{
    struct stat  st;

    if (lstat(path, &st) != 0) {
        if (errno == ENOENT) return 0;
        return glm_fail(err, GLM_EIO, "%s: stat() failed: %s", path, strerror(errno));
    }
    if (!S_ISSOCK(st.st_mode)) {
        return glm_fail(err, GLM_EIO, "%s: exists and is no socket", path);
    }
    if (answers(path)) {
        return glm_fail(err, GLM_EBUSY, "%s: an engine is already running on this socket", path);
    }
    if (unlink(path) != 0 && errno != ENOENT) {
        return glm_fail(err, GLM_EIO, "%s: unlink() failed: %s", path, strerror(errno));
    }
    return 0;
}

static int
find_group(const char *name, gid_t *gid, glm_err_t *err)
{
    char           *end;
    unsigned long   n;
    struct group   *gr = getgrnam(name);

    if (gr != NULL) {
        *gid = gr->gr_gid;
        return 0;
    }
    n = strtoul(name, &end, 10);
    if (*name < '0' || *name > '9' || *end != '\0' || n > 0xfffffffeu) {
        return glm_fail(err, GLM_EINVAL, "--socket-group: no group \"%.64s\"", name);
    }
    *gid = (gid_t) n;
    return 0;
}

/* Bound with nobody's rights, opened to the wanted ones before listen(). */
static int
bind_socket(glm_sockpath_t *s, gid_t gid, mode_t mode, glm_err_t *err)
{
    int                 rc;
    mode_t              old;
    struct sockaddr_un  sun = address(s->path);

    s->fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (s->fd < 0) return glm_fail(err, GLM_EIO, "socket() failed: %s", strerror(errno));

    old = umask(0777);
    rc = bind(s->fd, (struct sockaddr *) &sun, sizeof(sun));
    umask(old);
    if (rc != 0) {
        rc = glm_fail(err, GLM_EIO, "%s: bind() failed: %s", s->path, strerror(errno));
        close(s->fd);         /* the path is not ours: close() must not unlink it */
        s->fd = -1;
        return rc;
    }
    if (gid != (gid_t) -1 && chown(s->path, (uid_t) -1, gid) != 0) {
        return glm_fail(err, GLM_EIO, "%s: chown() failed: %s", s->path, strerror(errno));
    }
    if (chmod(s->path, mode) != 0) {
        return glm_fail(err, GLM_EIO, "%s: chmod() failed: %s", s->path, strerror(errno));
    }
    if (listen(s->fd, BACKLOG) != 0) {
        return glm_fail(err, GLM_EIO, "%s: listen() failed: %s", s->path, strerror(errno));
    }
    return 0;
}

int
glm_sockpath_open(glm_sockpath_t *s, const char *path, const char *group, mode_t mode,
    glm_err_t *err)
{
    int    rc;
    gid_t  gid = (gid_t) -1;

    *s = (glm_sockpath_t) { .fd = -1, .lock_fd = -1 };
    rc = glm_sockpath_check(path, err);
    if (rc != 0) return rc;
    memcpy(s->path, path, strlen(path) + 1);

    if (group != NULL && (rc = find_group(group, &gid, err)) != 0) return rc;
    rc = take_lock(s, err);
    if (rc != 0) return rc;
    rc = remove_stale(path, err);
    if (rc == 0) rc = bind_socket(s, gid, mode, err);
    if (rc != 0) glm_sockpath_close(s);
    return rc;
}

void
glm_sockpath_close(glm_sockpath_t *s)
{
    char  file[GLM_SOCKPATH_MAX + 8];

    if (s->fd >= 0) {
        unlink(s->path);
        close(s->fd);
    }
    if (s->lock_fd >= 0) {
        lock_path(file, sizeof(file), s->path);
        unlink(file);
        close(s->lock_fd);
    }
    s->fd = -1;
    s->lock_fd = -1;
}
