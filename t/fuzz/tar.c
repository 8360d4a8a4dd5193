/*
 * tar fuzzer: the table of an archive over any bytes, with the checksum of each
 * header made right first, or nothing behind it would be reached.
 * Build with -fsanitize=fuzzer,address,undefined.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../../tools/convert/tar.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);


static void
seal(uint8_t *b)
{
    unsigned  sum = 0, i;

    memset(b + 148, ' ', 8);
    for (i = 0; i < 512; i++) sum += b[i];
    snprintf((char *) b + 148, 8, "%06o", sum);
}


int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t    *copy = malloc(size + 1);
    char        path[64], *paths[1] = { path };
    glm_err_t   err = { "" };
    size_t      i;
    vol_t      *v;
    tar_t       t;
    int         fd = memfd_create("fuzz", MFD_CLOEXEC);

    if (fd < 0 || copy == NULL) abort();
    memcpy(copy, data, size);
    for (i = 0; i + 512 <= size; i += 512) {
        if (copy[i + 511] & 1) seal(copy + i);          /* the last byte is no field's */
    }
    if (write(fd, copy, size) != (ssize_t) size) abort();
    free(copy);
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    if (vol_open(&v, paths, 1, &err) != 0) abort();
    if (tar_list(&t, v, &err) == 0) {
        for (i = 0; i < t.n; i++) {
            if (t.file[i].at > size || t.file[i].size > size - t.file[i].at) abort();
        }

    } else if (err.text[0] == '\0' || strchr(err.text, '\n') != NULL) {
        abort();                                        /* every refusal says why, in a line */
    }
    tar_free(&t);
    vol_close(v);
    close(fd);
    return 0;
}
