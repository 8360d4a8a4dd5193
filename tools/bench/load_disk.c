/*
 * load_disk: reads of a file by several threads, as a load does them but for what it
 * does with the bytes; and what of it the page cache holds.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "load.h"
#include "model.h"

#define ALIGN  4096               /* O_DIRECT */

typedef struct {
    int            fd;
    uint64_t       size;
    size_t         block;
    atomic_ullong  next;          /* byte */
    atomic_int     failed;        /* errno */
} reads_t;

/* A whole block, or what is left of the file. */
static int
read_block(reads_t *r, char *buf, uint64_t at)
{
    size_t   want = r->size - at < r->block ? (size_t) (r->size - at) : r->block, got = 0;
    ssize_t  n;

    while (got < want) {
        n = pread(r->fd, buf + got, r->block - got, (off_t) (at + got));
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return n < 0 ? errno : EIO;
        got += (size_t) n;
    }
    return 0;
}

static void *
read_some(void *arg)
{
    reads_t   *r = arg;
    char      *buf = aligned_alloc(ALIGN, r->block);
    uint64_t   at;
    int        rc = buf == NULL ? ENOMEM : 0;

    while (rc == 0 && (at = atomic_fetch_add(&r->next, r->block)) < r->size) {
        rc = read_block(r, buf, at);
    }
    free(buf);
    if (rc != 0) atomic_store(&r->failed, rc);
    return NULL;
}

int
bench_disk_read(const char *path, int n, size_t block, int *direct, double *seconds,
    glm_err_t *err)
{
    reads_t      r = { .fd = -1, .block = (block + ALIGN - 1) / ALIGN * ALIGN };
    pthread_t    thread[GLM_LOAD_READERS];
    struct stat  sb;
    int          started = 0, rc = 0;
    double       t;

    if (*direct) r.fd = open(path, O_RDONLY | O_CLOEXEC | O_DIRECT);
    *direct = r.fd >= 0;
    if (r.fd < 0) r.fd = open(path, O_RDONLY | O_CLOEXEC);
    if (r.fd < 0 || fstat(r.fd, &sb) != 0) {
        rc = errno;
        goto done;
    }
    r.size = (uint64_t) sb.st_size;
    t = bench_now();
    while (started < n && (rc = pthread_create(&thread[started], NULL, read_some, &r)) == 0) {
        started++;
    }
    for (int i = 0; i < started; i++) pthread_join(thread[i], NULL);
    *seconds = bench_now() - t;
    if (started == n) rc = atomic_load(&r.failed);

done:
    if (r.fd >= 0) close(r.fd);
    if (rc == EINVAL && *direct) {              /* this file system does not after all */
        *direct = 0;
        return bench_disk_read(path, n, block, direct, seconds, err);
    }
    return rc == 0 ? 0 : glm_fail(err, GLM_EIO, "%s: reading it failed: %s", path, strerror(rc));
}

/* Which part of a file the page cache holds. */
static double
cached(int fd, size_t size)
{
    size_t          pages = (size + 4095) / 4096, n = 0;
    unsigned char  *in = malloc(pages);
    void           *map = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);

    if (in != NULL && map != MAP_FAILED && mincore(map, size, in) == 0) {
        for (size_t i = 0; i < pages; i++) n += in[i] & 1;
    }
    if (map != MAP_FAILED) munmap(map, size);
    free(in);
    return (double) n / (double) pages;
}

/* Whether the system let go of all that it holds. */
static int
drop_all(void)
{
    int  fd = open("/proc/sys/vm/drop_caches", O_WRONLY | O_CLOEXEC), ok;

    if (fd < 0) return 0;
    ok = write(fd, "3", 1) == 1;
    close(fd);
    return ok;
}

double
bench_disk_drop(const char *path, int *all, glm_err_t *err)
{
    struct stat  sb;
    int          fd = open(path, O_RDONLY | O_CLOEXEC);
    double       left = -1;

    if (fd < 0 || fstat(fd, &sb) != 0 || fsync(fd) != 0) {
        (void) glm_fail(err, GLM_EIO, "%s: %s", path, strerror(errno));
    } else {
        (void) posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
        if (*all) *all = drop_all();
        left = cached(fd, (size_t) sb.st_size);
    }
    if (fd >= 0) close(fd);
    return left;
}
