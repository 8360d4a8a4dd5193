/*
 * vol: bytes on disk that can be read at any place: a file, or several that
 * follow one another as if they were one.  Messages name file and byte.
 */
#ifndef GLM_CV_VOL_H
#define GLM_CV_VOL_H

#include <stddef.h>
#include <stdint.h>

#include "error.h"

typedef struct vol_s  vol_t;

int vol_open(vol_t **out, char *const *paths, size_t n, glm_err_t *err);
void vol_close(vol_t *v);                       /* NULL is fine */
uint64_t vol_size(const vol_t *v);

/* All of n bytes, or an error with the place of the first that is not there. */
int vol_read(const vol_t *v, void *buf, size_t n, uint64_t at, glm_err_t *err);

/* "FILE, byte N", as text for a message; returns out. */
const char *vol_place(const vol_t *v, uint64_t at, char *out, size_t size);

/* The i-th file; NULL after the last. */
typedef struct {
    const char  *path;
    uint64_t     size;
    int64_t      mtime;       /* nanoseconds */
} vol_file_t;

const vol_file_t *vol_file(const vol_t *v, size_t i);

#endif
