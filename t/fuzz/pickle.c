/*
 * pickle fuzzer: the .pt reader over any bytes.  Bytes that begin as a zip are
 * a file; others are a pickle on its own, a file of the legacy form, and the
 * data.pkl of a zip that has a few storages.
 * Build with -fsanitize=fuzzer,address,undefined; seeds: t/data/pt-samples.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <zip.h>

#include "../../tools/convert/pt.h"

#define MOST  4096            /* elements read of a tensor */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);


static int
count(void *arg, const void *elems, size_t n)
{
    size_t                  *seen = arg;
    volatile unsigned char   c = 0;

    if (n > 0) c = *(const unsigned char *) elems;      /* so that it is read */
    (void) c;
    *seen += n;
    return *seen > MOST ? GLM_ELIMIT : 0;
}


static void
machine(const uint8_t *data, size_t size)
{
    pk_arena_t        *a = pk_arena_new();
    const pk_value_t  *root;
    glm_err_t          err = { "" };
    size_t             used;

    if (a == NULL) return;
    if (pk_load(a, data, size, "fuzz", &root, &used, &err) == 0) {
        if (used > size) abort();
        (void) pk_get(root, "module");

    } else if (err.text[0] == '\0' || strchr(err.text, '\n') != NULL) {
        abort();                                /* every refusal says why, in a line */
    }
    pk_arena_free(a);
}


static void
file(const uint8_t *data, size_t size)
{
    char        path[64];
    pt_file_t  *f;
    glm_err_t   err = { "" };
    size_t      i, seen;
    int         fd = memfd_create("fuzz", MFD_CLOEXEC);

    if (fd < 0) abort();
    if (write(fd, data, size) != (ssize_t) size) abort();
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    if (pt_open(&f, path, &err) == 0) {
        for (i = 0; i < pt_count(f); i++) {
            seen = 0;
            pt_read(f, pt_at(f, i), count, &seen, NULL);
        }

    } else if (err.text[0] == '\0') {
        abort();
    }
    pt_close(f);
    close(fd);
}


static void
member(struct zip *z, const char *name, const void *bytes, size_t n)
{
    struct zip_source  *s = zip_source_buffer(z, bytes, n, 0);
    zip_int64_t         i = zip_file_add(z, name, s, 0);

    if (i < 0 || zip_set_file_compression(z, (zip_uint64_t) i, ZIP_CM_STORE, 0) != 0) abort();
}


static void
zipped(const uint8_t *data, size_t size)
{
    static const uint8_t  values[64];
    zip_error_t           zerr;
    zip_source_t         *s;
    zip_stat_t            st;
    struct zip           *z;
    void                 *bytes;

    zip_error_init(&zerr);
    s = zip_source_buffer_create(NULL, 0, 0, &zerr);
    z = s ? zip_open_from_source(s, ZIP_CREATE | ZIP_TRUNCATE, &zerr) : NULL;
    if (z == NULL) abort();
    zip_source_keep(s);
    member(z, "a/data.pkl", data, size);
    member(z, "a/data/0", values, sizeof(values));
    member(z, "a/data/1", values, 6);
    if (zip_close(z) != 0) abort();

    zip_stat_init(&st);
    if (zip_source_open(s) != 0 || zip_source_stat(s, &st) != 0) abort();
    bytes = malloc(st.size);
    if (bytes == NULL || zip_source_read(s, bytes, st.size) != (zip_int64_t) st.size) abort();
    zip_source_close(s);
    zip_source_free(s);
    file(bytes, st.size);
    free(bytes);
}


int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size >= 2 && memcmp(data, "PK", 2) == 0) {
        file(data, size);
        return 0;
    }
    machine(data, size);
    file(data, size);
    zipped(data, size);
    return 0;
}
