/*
 * pt_impl: shared by pt.c (what is in a file), pt_store.c (where its bytes are)
 * and pt_stream.c (how they are read).
 */
#ifndef GLM_PT_IMPL_H
#define GLM_PT_IMPL_H

#include <zip.h>

#include "pt.h"

struct pt_store_s {
    pk_str_t      key;
    pt_dtype_t    dtype;
    uint64_t      numel;
    uint64_t      bytes;      /* in the file; 0 when it is not there */
    int           present;
    int           packed;     /* zip: compressed, cannot seek */
    zip_uint64_t  member;     /* zip */
    uint64_t      offset;     /* legacy: from the file's start */
};

struct pt_file_s {
    char              *path;
    const vol_t       *vol;             /* bytes at .. at + size of it are the file */
    vol_t             *own;             /* the same when it is ours to close, or NULL */
    uint64_t           at, size;
    zip_t             *zip;             /* NULL: legacy form */
    zip_error_t        zip_error;       /* of our source of bytes */
    glm_err_t          read_error;      /* what it could not read */
    uint64_t           zip_pos;         /* its next byte */
    uint64_t           zip_from;        /* first byte read since a stream was opened */
    char               root[256];       /* zip: "archive/" */
    uint8_t           *pickle;          /* strings of values point into it */
    size_t             pickle_len;
    pk_arena_t        *arena;
    const pk_value_t  *top;             /* the saved object */
    const pk_value_t  *keys;            /* legacy: list of storage keys */
    size_t             tail;            /* legacy: first byte after the pickles */
    pt_store_t        *stores;          /* sorted by key */
    size_t             nstores;
    pt_tensor_t       *tensors;         /* sorted by name */
    size_t             ntensors;
    char               others[256];
};

/* Reads the pickle of a file of either form: path and vol are set before. */
int pt_load(pt_file_t *f, glm_err_t *err);
/* n bytes of the file, from its byte at on. */
int pt_pread(const pt_file_t *f, void *buf, size_t n, uint64_t at, glm_err_t *err);
/* Opens f->zip, which reads through the volume. */
int pt_zip_open(pt_file_t *f, glm_err_t *err);
/* An error with what is wrong in the bytes that libzip has read last. */
int pt_damaged(const pt_file_t *f, const char *what, glm_err_t *err);
/* "FILE, byte N" of a byte of this file. */
const char *pt_place(const pt_file_t *f, uint64_t at, char *out, size_t size);
/* Fills f->stores: which storages there are, and where. */
int pt_index_stores(pt_file_t *f, glm_err_t *err);
const pt_store_t *pt_find_store(const pt_file_t *f, pk_str_t key);

/* Bytes of a storage from some byte on, one after another. */
typedef struct {
    pt_file_t   *f;
    zip_file_t  *z;
    uint64_t     at;          /* legacy: next byte of the file */
    int          whole;       /* zip: read from its start, so its CRC can be checked */
} pt_stream_t;

int pt_stream_open(pt_stream_t *s, pt_file_t *f, const pt_store_t *store, uint64_t from,
    glm_err_t *err);
int pt_stream_read(pt_stream_t *s, void *buf, size_t n, glm_err_t *err);
/* After the last byte of the storage: what zip knows about damage. */
int pt_stream_verify(pt_stream_t *s, glm_err_t *err);
void pt_stream_close(pt_stream_t *s);

#endif
