/*
 * pt_stream: the bytes of a storage, through libzip or from the file itself, and
 * what libzip reads its zip through.
 */
#include <string.h>

#include "pt_impl.h"


const char *
pt_place(const pt_file_t *f, uint64_t at, char *out, size_t size)
{
    return vol_place(f->vol, f->at + at, out, size);
}


static zip_int64_t
pt_zip_read(pt_file_t *f, void *data, zip_uint64_t n)
{
    if (n > f->size - f->zip_pos) n = f->size - f->zip_pos;
    if (f->zip_pos < f->zip_from) f->zip_from = f->zip_pos;
    if (vol_read(f->vol, data, n, f->at + f->zip_pos, &f->read_error) != 0) {
        zip_error_set(&f->zip_error, ZIP_ER_READ, 0);
        return -1;
    }
    f->zip_pos += n;
    return (zip_int64_t) n;
}


static zip_int64_t
pt_zip_seek(pt_file_t *f, void *data, zip_uint64_t n)
{
    zip_int64_t  pos = zip_source_seek_compute_offset(f->zip_pos, f->size, data, n, &f->zip_error);

    if (pos < 0) return -1;
    f->zip_pos = (uint64_t) pos;
    return 0;
}


static zip_int64_t
pt_zip_stat(const pt_file_t *f, zip_stat_t *st)
{
    zip_stat_init(st);
    st->size = f->size;
    st->valid |= ZIP_STAT_SIZE;
    return sizeof(*st);
}


/* libzip's calls; freeing f is not its business. */
static zip_int64_t
pt_zip_source(void *arg, void *data, zip_uint64_t n, zip_source_cmd_t cmd)
{
    pt_file_t  *f = arg;

    switch (cmd) {
    case ZIP_SOURCE_OPEN:
        f->zip_pos = 0;
        return 0;

    case ZIP_SOURCE_CLOSE:
    case ZIP_SOURCE_FREE:
        return 0;

    case ZIP_SOURCE_READ: return pt_zip_read(f, data, n);
    case ZIP_SOURCE_SEEK: return pt_zip_seek(f, data, n);
    case ZIP_SOURCE_TELL: return (zip_int64_t) f->zip_pos;
    case ZIP_SOURCE_STAT: return pt_zip_stat(f, data);
    case ZIP_SOURCE_ERROR: return zip_error_to_data(&f->zip_error, data, n);

    case ZIP_SOURCE_SUPPORTS:
        return zip_source_make_command_bitmap(ZIP_SOURCE_OPEN, ZIP_SOURCE_READ, ZIP_SOURCE_CLOSE,
                                              ZIP_SOURCE_STAT, ZIP_SOURCE_ERROR, ZIP_SOURCE_FREE,
                                              ZIP_SOURCE_SEEK, ZIP_SOURCE_TELL,
                                              ZIP_SOURCE_SUPPORTS, -1);

    default:
        zip_error_set(&f->zip_error, ZIP_ER_OPNOTSUPP, 0);
        return -1;
    }
}


int
pt_damaged(const pt_file_t *f, const char *what, glm_err_t *err)
{
    char    from[300], to[300];
    size_t  same;

    if (f->read_error.text[0]) return glm_fail(err, GLM_EIO, "%s", f->read_error.text);
    pt_place(f, f->zip_from < f->zip_pos ? f->zip_from : f->zip_pos, from, sizeof(from));
    pt_place(f, f->zip_pos, to, sizeof(to));
    same = (size_t) (strrchr(to, ',') + 2 - to);        /* a path that is the other's is not repeated */
    if (strncmp(from, to, same) != 0) same = 0;
    return glm_fail(err, GLM_EFORMAT, "%s to %s: %s", from, to + same, what);
}


/* The same, of a stream that found it. */
static int
pt_stream_damaged(const pt_stream_t *s, const char *what, glm_err_t *err)
{
    char  text[128];

    snprintf(text, sizeof(text), "%.64s: the file is damaged", what);
    return pt_damaged(s->f, text, err);
}


int
pt_zip_open(pt_file_t *f, glm_err_t *err)
{
    zip_error_t    zerr;
    zip_source_t  *source;
    char           text[128];

    zip_error_init(&zerr);
    zip_error_init(&f->zip_error);
    f->zip_from = UINT64_MAX;
    source = zip_source_function_create(pt_zip_source, f, &zerr);
    f->zip = source ? zip_open_from_source(source, ZIP_RDONLY, &zerr) : NULL;
    if (f->zip == NULL) {
        snprintf(text, sizeof(text), "cannot be read as zip (%.48s): is the file cut short?",
                 zip_error_strerror(&zerr));
        zip_source_free(source);
        zip_error_fini(&zerr);
        return pt_damaged(f, text, err);
    }
    zip_error_fini(&zerr);
    return 0;
}


int
pt_stream_read(pt_stream_t *s, void *buf, size_t n, glm_err_t *err)
{
    char         *p = buf;
    zip_int64_t   got;
    int           rc;

    if (s->z == NULL) {
        if ((rc = pt_pread(s->f, buf, n, s->at, err)) == 0) s->at += n;
        return rc;
    }
    while (n > 0) {
        got = zip_fread(s->z, p, n);
        if (got <= 0) {
            return pt_stream_damaged(s, got < 0 ? zip_file_strerror(s->z)
                                                : "a member ends too early", err);
        }
        p += got;
        n -= (size_t) got;
    }
    return 0;
}


/* A compressed member cannot seek: what comes before is read and dropped. */
static int
pt_stream_skip(pt_stream_t *s, uint64_t n, glm_err_t *err)
{
    char    waste[4096];
    size_t  some;
    int     rc = 0;

    while (n > 0 && rc == 0) {
        some = n < sizeof(waste) ? (size_t) n : sizeof(waste);
        rc = pt_stream_read(s, waste, some, err);
        n -= some;
    }
    return rc;
}


int
pt_stream_open(pt_stream_t *s, pt_file_t *f, const pt_store_t *store, uint64_t from,
    glm_err_t *err)
{
    *s = (pt_stream_t) { .f = f, .at = store->offset + from };
    if (f->zip == NULL) return 0;
    f->zip_from = UINT64_MAX;
    s->z = zip_fopen_index(f->zip, store->member, 0);
    if (s->z == NULL) return pt_stream_damaged(s, zip_strerror(f->zip), err);
    s->whole = from == 0 || store->packed;
    if (from == 0) return 0;
    if (store->packed) return pt_stream_skip(s, from, err);
    if (zip_fseek(s->z, (zip_int64_t) from, SEEK_SET) != 0) {
        return glm_fail(err, GLM_EFORMAT, "%s: %s", f->path, zip_file_strerror(s->z));
    }
    return 0;
}


int
pt_stream_verify(pt_stream_t *s, glm_err_t *err)
{
    char  c;

    if (s->z == NULL || !s->whole || zip_fread(s->z, &c, 1) >= 0) return 0;
    return pt_stream_damaged(s, zip_file_strerror(s->z), err);
}


void
pt_stream_close(pt_stream_t *s)
{
    if (s->z != NULL) zip_fclose(s->z);
    s->z = NULL;
}
