/*
 * out: the order of names is the whole point here: at no moment does a
 * half-written directory pass for a model, and a kill leaves only *.tmp.  While
 * names change hands a list of them is there, by which the change is undone.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "out.h"

#define CV_CONFIG    "config.json"
#define CV_INDEX     "model.safetensors.index.json"
#define CV_SUFFIX    ".tmp"
#define CV_LIST      "convert.names"
#define CV_MAX_FILES 100000

struct cv_out_s {
    char   *dir;
    int     dirfd;            /* holds the lock */
    int     made;             /* the directory is ours */
    int     replaces;         /* a model was here */
    int     fd;               /* of the last file, else -1 */
    char  **name;             /* final names, in order of creation */
    size_t  n;
    int     committed, keep;
    int     ours;             /* what is unfinished here is ours to remove */
    uint64_t  left;           /* bytes that an unfinished conversion has on disk */
};


static int
cv_errno(const cv_out_t *o, const char *name, const char *call, glm_err_t *err)
{
    return glm_fail(err, GLM_EIO, "%s%s%s: %s failed: %s", o->dir, name[0] ? "/" : "", name, call,
                    strerror(errno));
}


static int
cv_ends(const char *s, const char *end)
{
    size_t  n = strlen(s), m = strlen(end);

    return n >= m && strcmp(s + n - m, end) == 0;
}


static int
cv_is_model(const char *name)
{
    return strcmp(name, CV_CONFIG) == 0 || strcmp(name, CV_INDEX) == 0
           || cv_ends(name, ".safetensors");
}


static int
cv_is_tokenizer(const char *name)
{
    return strcmp(name, "tokenizer.model") == 0 || strcmp(name, "tokenizer_config.json") == 0
           || strcmp(name, "ice_text.model") == 0;
}


/* What a conversion that was killed left. */
static int
cv_is_leftover(const char *name)
{
    char  base[256];

    if (!cv_ends(name, CV_SUFFIX)) return 0;
    snprintf(base, sizeof(base), "%.*s", (int) (strlen(name) - strlen(CV_SUFFIX)), name);
    return cv_is_model(base) || cv_is_tokenizer(base) || strcmp(base, CV_JOURNAL) == 0
           || strcmp(base, CV_LIST) == 0;
}


static int
cv_is_written(const cv_out_t *o, const char *name)
{
    size_t  i;

    for (i = 0; i < o->n; i++) {
        if (strcmp(o->name[i], name) == 0) return 1;
    }
    return 0;
}


/* Calls that are about the directory's entries: stop at the first nonzero. */
typedef int (*cv_entry_pt)(cv_out_t *o, const char *name, glm_err_t *err);


static int
cv_each_entry(cv_out_t *o, cv_entry_pt each, glm_err_t *err)
{
    int             fd = openat(o->dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), rc = 0;
    DIR            *d = fd < 0 ? NULL : fdopendir(fd);
    struct dirent  *e;

    if (d == NULL) {
        if (fd >= 0) close(fd);
        return cv_errno(o, "", "opendir()", err);
    }
    while (rc == 0 && (e = readdir(d)) != NULL) rc = each(o, e->d_name, err);
    closedir(d);
    return rc;
}


int
cv_out_left(const cv_out_t *o, const char *name, int flags)
{
    char  tmp[300];

    snprintf(tmp, sizeof(tmp), "%s" CV_SUFFIX, name);
    return openat(o->dirfd, tmp, flags | O_NOFOLLOW | O_CLOEXEC, 0666);
}


static int
cv_remove(cv_out_t *o, const char *name, glm_err_t *err)
{
    return unlinkat(o->dirfd, name, 0) == 0 ? 0 : cv_errno(o, name, "unlink()", err);
}


static int
cv_drop_leftover(cv_out_t *o, const char *name, glm_err_t *err)
{
    return cv_is_leftover(name) ? cv_remove(o, name, err) : 0;
}


/* The old model's files under names that the new one does not use. */
static int
cv_drop_old(cv_out_t *o, const char *name, glm_err_t *err)
{
    if (cv_is_written(o, name)) return 0;
    return cv_is_model(name) || cv_is_tokenizer(name) ? cv_remove(o, name, err) : 0;
}


static int
cv_find_model(cv_out_t *o, const char *name, glm_err_t *err)
{
    if (!cv_is_model(name)) return 0;
    return glm_fail(err, GLM_EBUSY, "%s: has a %s already; --force replaces the model there",
                    o->dir, name);
}


static int
cv_there(const cv_out_t *o, const char *name, const char *suffix)
{
    struct stat  sb;
    char         full[300];

    snprintf(full, sizeof(full), "%.255s%s", name, suffix);
    return fstatat(o->dirfd, full, &sb, AT_SYMLINK_NOFOLLOW) == 0;
}


/* Takes a name of the list back: what has no NAME.tmp any more was renamed. */
static int
cv_unrename(cv_out_t *o, const char *name, glm_err_t *err)
{
    char  tmp[300];

    snprintf(tmp, sizeof(tmp), "%.255s" CV_SUFFIX, name);
    if (cv_there(o, name, CV_SUFFIX) || !cv_there(o, name, "")) return 0;
    return renameat(o->dirfd, name, o->dirfd, tmp) == 0 ? 0 : cv_errno(o, name, "rename()", err);
}


/* After a kill between the first rename and the last: as before the first. */
static int
cv_undo_commit(cv_out_t *o, glm_err_t *err)
{
    char   line[300];
    int    fd = cv_out_left(o, CV_LIST, O_RDONLY), rc = 0;
    FILE  *f = fd < 0 ? NULL : fdopen(fd, "r");

    if (f == NULL) {
        if (fd >= 0) close(fd);
        return 0;
    }
    if (!cv_there(o, CV_CONFIG, "")) {          /* otherwise the last one was done */
        while (rc == 0 && fgets(line, sizeof(line), f) != NULL) {
            line[strcspn(line, "\n")] = '\0';
            if (cv_is_model(line) || cv_is_tokenizer(line)) rc = cv_unrename(o, line, err);
        }
    }
    fclose(f);
    return rc ? rc : cv_remove(o, CV_LIST CV_SUFFIX, err);
}


static int
cv_out_enter(cv_out_t *o, int replace, glm_err_t *err)
{
    glm_err_t  found = { "" };
    int        rc;

    if (mkdir(o->dir, 0777) == 0) {
        o->made = 1;

    } else if (errno != EEXIST) {
        return cv_errno(o, "", "mkdir()", err);
    }
    o->dirfd = open(o->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (o->dirfd < 0) return cv_errno(o, "", "open()", err);
    if (flock(o->dirfd, LOCK_EX | LOCK_NB) != 0) {
        return glm_fail(err, GLM_EBUSY, "%s: another conversion writes to it", o->dir);
    }
    if ((rc = cv_undo_commit(o, err)) != 0) return rc;
    rc = cv_each_entry(o, cv_find_model, &found);
    o->replaces = rc == GLM_EBUSY;
    if (rc != 0 && !(o->replaces && replace)) return glm_fail(err, rc, "%s", found.text);
    return 0;
}


int
cv_out_clear(cv_out_t *o, glm_err_t *err)
{
    o->ours = 1;
    return cv_each_entry(o, cv_drop_leftover, err);
}


int
cv_out_open(cv_out_t **out, const char *dir, int replace, glm_err_t *err)
{
    cv_out_t  *o = calloc(1, sizeof(*o));
    int        rc;

    *out = NULL;
    if (o == NULL) return glm_fail(err, GLM_ENOMEM, "%s: no memory", dir);
    o->fd = o->dirfd = -1;
    o->dir = strdup(dir);
    rc = o->dir ? cv_out_enter(o, replace, err) : glm_fail(err, GLM_ENOMEM, "%s: no memory", dir);
    if (rc != 0) {
        cv_out_close(o);
        return rc;
    }
    *out = o;
    return 0;
}


static int
cv_add_left(cv_out_t *o, const char *name, glm_err_t *err)
{
    struct stat  sb;

    (void) err;
    if (cv_is_leftover(name) && fstatat(o->dirfd, name, &sb, AT_SYMLINK_NOFOLLOW) == 0) {
        o->left += (uint64_t) sb.st_blocks * 512;
    }
    return 0;
}


int
cv_out_room(cv_out_t *o, uint64_t bytes, glm_err_t *err)
{
    struct statvfs  fs;
    uint64_t        avail;

    if (fstatvfs(o->dirfd, &fs) != 0) return 0;         /* then writing will tell */
    if (__builtin_mul_overflow((uint64_t) fs.f_bavail, (uint64_t) fs.f_frsize, &avail)) return 0;
    o->left = 0;
    cv_each_entry(o, cv_add_left, NULL);
    avail += o->left;
    if (avail >= bytes) return 0;
    return glm_fail(err, GLM_ELIMIT, "%s: the model takes %llu MB, and %llu MB are free", o->dir,
                    (unsigned long long) (bytes / 1000000), (unsigned long long) (avail / 1000000));
}


/* Bytes reach the disk before the name that vouches for them. */
static int
cv_out_end_file(cv_out_t *o, glm_err_t *err)
{
    int  fd = o->fd;

    o->fd = -1;
    if (fd < 0) return 0;
    if (fsync(fd) != 0) {
        cv_errno(o, o->name[o->n - 1], "fsync()", err);
        close(fd);
        return GLM_EIO;
    }
    return close(fd) == 0 ? 0 : cv_errno(o, o->name[o->n - 1], "close()", err);
}


int
cv_out_create(cv_out_t *o, const char *name, uint64_t keep, glm_err_t *err)
{
    char  tmp[300], *copy;
    void *bigger;
    int   rc;

    if ((rc = cv_out_end_file(o, err)) != 0) return rc;
    if (o->n == CV_MAX_FILES) return glm_fail(err, GLM_ELIMIT, "%s: too many files", o->dir);
    bigger = reallocarray(o->name, o->n + 1, sizeof(*o->name));
    copy = strdup(name);
    if (bigger != NULL) o->name = bigger;
    if (bigger == NULL || copy == NULL) {
        free(copy);
        return glm_fail(err, GLM_ENOMEM, "%s: no memory", o->dir);
    }
    snprintf(tmp, sizeof(tmp), "%s" CV_SUFFIX, name);
    o->fd = openat(o->dirfd, tmp, O_WRONLY | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0666);
    if (o->fd < 0 || ftruncate(o->fd, (off_t) keep) != 0 || lseek(o->fd, 0, SEEK_END) < 0) {
        free(copy);
        return cv_errno(o, tmp, "open()", err);
    }
    o->name[o->n++] = copy;
    o->ours = 1;
    return 0;
}


int
cv_out_write(cv_out_t *o, const void *buf, size_t n, glm_err_t *err)
{
    const char  *p = buf;
    ssize_t      put;

    while (n > 0) {
        put = write(o->fd, p, n < 1u << 30 ? n : 1u << 30);
        if (put < 0 && errno == EINTR) continue;
        if (put <= 0) return cv_errno(o, o->name[o->n - 1], "write()", err);
        p += put;
        n -= (size_t) put;
    }
    return 0;
}


int
cv_out_head(cv_out_t *o, const void *buf, size_t n, glm_err_t *err)
{
    ssize_t  put = pwrite(o->fd, buf, n, 0);

    return put == (ssize_t) n ? 0 : cv_errno(o, o->name[o->n - 1], "write()", err);
}


void
cv_out_flush(cv_out_t *o)
{
    sync_file_range(o->fd, 0, 0, SYNC_FILE_RANGE_WRITE);
}


int
cv_out_sync(cv_out_t *o, glm_err_t *err)
{
    return fdatasync(o->fd) == 0 ? 0 : cv_errno(o, o->name[o->n - 1], "fdatasync()", err);
}


static int
cv_rename(cv_out_t *o, const char *name, glm_err_t *err)
{
    char  tmp[300];

    snprintf(tmp, sizeof(tmp), "%s" CV_SUFFIX, name);
    if (renameat(o->dirfd, tmp, o->dirfd, name) != 0) return cv_errno(o, name, "rename()", err);
    return 0;
}


static int
cv_sync_dir(cv_out_t *o, glm_err_t *err)
{
    /* some file systems cannot; then there is nothing more to be done */
    return fsync(o->dirfd) == 0 || errno == EINVAL ? 0 : cv_errno(o, "", "fsync()", err);
}


/* The names that are about to change. */
static int
cv_write_list(cv_out_t *o, glm_err_t *err)
{
    size_t  i, n = o->n;
    int     rc = cv_out_create(o, CV_LIST, 0, err);

    if (rc != 0) return rc;
    for (i = 0; i < n && rc == 0; i++) {
        rc = cv_out_write(o, o->name[i], strlen(o->name[i]), err);
        if (rc == 0) rc = cv_out_write(o, "\n", 1, err);
    }
    if (rc == 0) rc = cv_out_end_file(o, err);
    if (rc == 0) rc = cv_sync_dir(o, err);
    free(o->name[--o->n]);                      /* it is none of them */
    return rc;
}


int
cv_out_commit(cv_out_t *o, glm_err_t *err)
{
    size_t  i;
    int     rc;

    if ((rc = cv_out_end_file(o, err)) != 0) return rc;
    if ((rc = cv_write_list(o, err)) != 0) return rc;
    /* from here to the last rename the directory is no model */
    if (unlinkat(o->dirfd, CV_CONFIG, 0) != 0 && errno != ENOENT) {
        return cv_errno(o, CV_CONFIG, "unlink()", err);
    }
    if ((rc = cv_sync_dir(o, err)) != 0) return rc;
    for (i = 0; i < o->n; i++) {
        if (strcmp(o->name[i], CV_CONFIG) == 0) continue;
        if ((rc = cv_rename(o, o->name[i], err)) != 0) return rc;
    }
    if (o->replaces && (rc = cv_each_entry(o, cv_drop_old, err)) != 0) return rc;
    if ((rc = cv_sync_dir(o, err)) != 0) return rc;
    if ((rc = cv_rename(o, CV_CONFIG, err)) != 0) return rc;
    o->committed = 1;
    if ((rc = cv_sync_dir(o, err)) != 0) return rc;
    return cv_out_clear(o, err);
}


void
cv_out_keep(cv_out_t *o)
{
    o->keep = 1;
}


const char *
cv_out_dir(const cv_out_t *o)
{
    return o->dir;
}


void
cv_out_close(cv_out_t *o)
{
    if (o == NULL) return;
    if (o->fd >= 0) close(o->fd);
    if (o->ours && !o->committed && !o->keep) cv_each_entry(o, cv_drop_leftover, NULL);
    while (o->n > 0) free(o->name[--o->n]);
    free(o->name);
    if (o->dirfd >= 0) close(o->dirfd);
    if (o->made && !o->committed && !o->keep) rmdir(o->dir);
    free(o->dir);
    free(o);
}
