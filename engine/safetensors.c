/*
 * safetensors: maps the weight files of a model directory and checks their
 * headers.  Owns the mappings and the table of tensors; knows no tensor's
 * meaning.  A file is untrusted: nothing of it is used before it is checked.
 * Not thread safe while opening; afterwards read-only for everyone.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <jansson.h>

#include "safetensors.h"

#define ST_MAX_DEPTH  8                 /* real headers have 3 */
#define ST_MAX_COPY   (256u << 20)      /* values copied to align them */
#define ST_MAX_INDEX  (4u << 20)

typedef struct {
    char     *path;
    int       fd;
    uint8_t  *map;            /* NULL while not mapped */
    size_t    len;
    json_t   *meta;           /* only while opening */
} st_file_t;

struct glm_st_reader_s {
    st_file_t     *files;
    size_t         nfiles, files_cap;
    glm_stored_t  *tensors;   /* sorted by name once open */
    size_t         ntensors, tensors_cap;
    void         **copies;    /* aligned copies of misplaced values */
    size_t         ncopies, copies_cap, copied;
    json_t        *index;     /* only while opening */
};

static const struct {
    const char  *name;
    size_t       size;
} st_dtypes[] = {
    [GLM_F32]  = { "F32", 4 }, [GLM_F16] = { "F16", 2 }, [GLM_BF16] = { "BF16", 2 },
    [GLM_I8]   = { "I8", 1 },  [GLM_U8]  = { "U8", 1 },  [GLM_I32]  = { "I32", 4 },
    [GLM_I64]  = { "I64", 8 },
};

#define ST_NDTYPES  (sizeof(st_dtypes) / sizeof(st_dtypes[0]))


size_t
glm_dtype_size(glm_dtype_t t)
{
    return (size_t) t < ST_NDTYPES ? st_dtypes[t].size : 0;
}


const char *
glm_dtype_name(glm_dtype_t t)
{
    return (size_t) t < ST_NDTYPES ? st_dtypes[t].name : "?";
}


/* Room for one more element of an array that grows by doubling. */
static int
st_grow(void *array, size_t n, size_t *cap, size_t elem, glm_err_t *err)
{
    void   *p;
    size_t  want = *cap ? *cap * 2 : 16;

    if (n < *cap) return 0;
    memcpy(&p, array, sizeof(p));       /* array: the address of a T *, any T */
    p = reallocarray(p, want, elem);
    if (p == NULL) return glm_fail(err, GLM_ENOMEM, "no memory for the table of tensors");
    memcpy(array, &p, sizeof(p));
    *cap = want;
    return 0;
}


/*
 * jansson recurses once a level and builds everything before we see it, so
 * a header of brackets alone is turned away first.
 */
static int
st_too_deep(const char *s, size_t n)
{
    int     depth = 0, quoted = 0;
    size_t  i;

    for (i = 0; i < n; i++) {
        if (quoted) {
            if (s[i] == '\\') {
                i++;

            } else if (s[i] == '"') {
                quoted = 0;
            }
            continue;
        }
        if (s[i] == '"') quoted = 1;
        if (s[i] == '[' || s[i] == '{') depth++;
        if (s[i] == ']' || s[i] == '}') depth--;
        if (depth > ST_MAX_DEPTH) return 1;
    }
    return 0;
}


static int
st_json(json_t **out, const char *text, size_t len, const char *path, const char *what,
    glm_err_t *err)
{
    json_error_t  jerr;

    if (st_too_deep(text, len)) {
        return glm_fail(err, GLM_ELIMIT, "%s: %s is nested deeper than %d", path, what,
                        ST_MAX_DEPTH);
    }
    *out = json_loadb(text, len, JSON_REJECT_DUPLICATES, &jerr);
    if (*out == NULL) {
        return glm_fail(err, GLM_EFORMAT, "%s: %s is not JSON (%s, byte %d)", path, what,
                        json_error_code(&jerr) == json_error_duplicate_key ? "a key occurs twice"
                                                                           : "syntax",
                        jerr.position);
    }
    if (!json_is_object(*out)) {
        json_decref(*out);
        *out = NULL;
        return glm_fail(err, GLM_EFORMAT, "%s: %s is not a JSON object", path, what);
    }
    return 0;
}


/* Names appear in messages, which are one line. */
static int
st_name_ok(const char *name)
{
    const unsigned char  *p;

    for (p = (const unsigned char *) name; *p; p++) {
        if (*p < 0x20 || *p == 0x7f) return 0;
    }
    return name[0] != '\0' && strlen(name) < 256;
}


static int
st_dtype(glm_stored_t *t, json_t *v, glm_err_t *err)
{
    const char  *name = json_string_value(v);
    size_t       i;

    if (name == NULL) {
        return glm_fail(err, GLM_EFORMAT, "%s: %s: \"dtype\" is missing", t->file, t->name);
    }
    for (i = 0; i < ST_NDTYPES; i++) {
        if (strcmp(name, st_dtypes[i].name) == 0) {
            t->dtype = (glm_dtype_t) i;
            return 0;
        }
    }
    return glm_fail(err, GLM_EFORMAT, "%s: %s: dtype %.16s is not one that is known here", t->file,
                    t->name, st_name_ok(name) ? name : "?");
}


/* Sets the dims, and in size the bytes that they take. */
static int
st_shape(glm_stored_t *t, json_t *v, glm_err_t *err)
{
    json_int_t  n;
    size_t      i;

    if (!json_is_array(v)) {
        return glm_fail(err, GLM_EFORMAT, "%s: %s: \"shape\" is not an array", t->file, t->name);
    }
    if (json_array_size(v) > GLM_ST_MAX_DIMS) {
        return glm_fail(err, GLM_ELIMIT, "%s: %s: %zu dimensions, %d are allowed", t->file, t->name,
                        json_array_size(v), GLM_ST_MAX_DIMS);
    }
    t->ndim = (int) json_array_size(v);
    t->size = st_dtypes[t->dtype].size;
    for (i = 0; i < (size_t) t->ndim; i++) {
        n = json_integer_value(json_array_get(v, i));
        if (!json_is_integer(json_array_get(v, i)) || n < 0) {
            return glm_fail(err, GLM_EFORMAT, "%s: %s: \"shape\" holds what is no size", t->file,
                            t->name);
        }
        t->dim[i] = n;
        if (__builtin_mul_overflow(t->size, (size_t) n, &t->size)) {
            return glm_fail(err, GLM_EFORMAT, "%s: %s: the shape is too large for any file",
                            t->file, t->name);
        }
    }
    return 0;
}


/* base: where the file's values begin. */
static int
st_offsets(glm_stored_t *t, const st_file_t *f, size_t base, json_t *v, glm_err_t *err)
{
    json_t      *jb = json_array_get(v, 0), *je = json_array_get(v, 1);
    json_int_t   begin = json_integer_value(jb), end = json_integer_value(je);

    if (json_array_size(v) != 2 || !json_is_integer(jb) || !json_is_integer(je) || begin < 0
        || end < begin)
    {
        return glm_fail(err, GLM_EFORMAT, "%s: %s: \"data_offsets\" is not [begin, end]", t->file,
                        t->name);
    }
    if ((uint64_t) end > f->len - base) {
        return glm_fail(err, GLM_EFORMAT, "%s: %s: values end at byte %lld of %zu: the file is cut "
                        "short", t->file, t->name, (long long) end, f->len - base);
    }
    if ((uint64_t) (end - begin) != t->size) {
        return glm_fail(err, GLM_EFORMAT, "%s: %s: %lld bytes of values, but its shape takes %zu",
                        t->file, t->name, (long long) (end - begin), t->size);
    }
    t->offset = base + (uint64_t) begin;
    t->data = f->map + t->offset;
    return 0;
}


static int
st_add(glm_st_reader_t *r, const st_file_t *f, size_t base, const char *name, json_t *v,
    glm_err_t *err)
{
    glm_stored_t  *t;
    int            rc;

    if (!st_name_ok(name)) {
        return glm_fail(err, GLM_EFORMAT, "%s: a tensor name is empty, longer than 255 bytes or "
                        "holds a control character", f->path);
    }
    rc = st_grow(&r->tensors, r->ntensors, &r->tensors_cap, sizeof(*t), err);
    if (rc != 0) return rc;
    t = &r->tensors[r->ntensors];
    memset(t, 0, sizeof(*t));
    t->file = f->path;
    t->fd = f->fd;
    t->crc = -1;
    t->name = strdup(name);
    if (t->name == NULL) return glm_fail(err, GLM_ENOMEM, "%s: no memory", f->path);
    r->ntensors++;

    if ((rc = st_dtype(t, json_object_get(v, "dtype"), err)) != 0) return rc;
    if ((rc = st_shape(t, json_object_get(v, "shape"), err)) != 0) return rc;
    return st_offsets(t, f, base, json_object_get(v, "data_offsets"), err);
}


static int
st_by_offset(const void *a, const void *b)
{
    const glm_stored_t  *x = a, *y = b;

    if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
    return x->size < y->size ? -1 : x->size > y->size;    /* empty ones first */
}


static int
st_by_name(const void *a, const void *b)
{
    return strcmp(((const glm_stored_t *) a)->name, ((const glm_stored_t *) b)->name);
}


/* The format has no holes, so a hole is a sign of a lie or of a cut. */
static int
st_check_layout(glm_st_reader_t *r, const st_file_t *f, size_t first, size_t base, glm_err_t *err)
{
    glm_stored_t  *t = r->tensors + first;
    uint64_t       at = base;
    size_t         i, n = r->ntensors - first;

    if (n > 1) qsort(t, n, sizeof(*t), st_by_offset);
    for (i = 0; i < n; i++) {
        if (t[i].offset < at) {
            return glm_fail(err, GLM_EFORMAT, "%s: %s and %s overlap", f->path, t[i - 1].name,
                            t[i].name);
        }
        if (t[i].offset > at) {
            return glm_fail(err, GLM_EFORMAT, "%s: %llu bytes before %s belong to no tensor",
                            f->path, (unsigned long long) (t[i].offset - at), t[i].name);
        }
        at += t[i].size;
    }
    if (at != f->len) {
        return glm_fail(err, GLM_EFORMAT, "%s: the last %llu bytes belong to no tensor", f->path,
                        (unsigned long long) (f->len - at));
    }
    return 0;
}


/*
 * Files whose values do not start at a multiple of 8 exist (odd shapes, old
 * writers).  The promise of aligned data is kept by copying those tensors.
 */
static int
st_align(glm_st_reader_t *r, glm_stored_t *t, glm_err_t *err)
{
    void  *copy;
    int    rc;

    if ((uintptr_t) t->data % 8 == 0 || t->size == 0) return 0;
    if (t->size > ST_MAX_COPY - r->copied) {
        return glm_fail(err, GLM_ELIMIT, "%s: %s: values do not start at a multiple of 8 bytes; "
                        "write the file anew with a current safetensors", t->file, t->name);
    }
    rc = st_grow(&r->copies, r->ncopies, &r->copies_cap, sizeof(*r->copies), err);
    if (rc != 0) return rc;
    copy = malloc(t->size);
    if (copy == NULL) return glm_fail(err, GLM_ENOMEM, "%s: no memory", t->file);
    r->copies[r->ncopies++] = copy;
    r->copied += t->size;
    memcpy(copy, t->data, t->size);
    t->data = copy;
    return 0;
}


static int
st_read_header(glm_st_reader_t *r, st_file_t *f, glm_err_t *err)
{
    json_t      *header = NULL, *v;
    uint64_t     hlen = 0;
    const char  *name;
    size_t       i, first = r->ntensors, base;
    int          rc;

    if (f->len < 8) {
        return glm_fail(err, GLM_EFORMAT, "%s: %zu bytes are no safetensors file", f->path, f->len);
    }
    for (i = 0; i < 8; i++) hlen |= (uint64_t) f->map[i] << (8 * i);
    if (hlen > GLM_ST_MAX_HEADER) {
        return glm_fail(err, GLM_ELIMIT, "%s: a header of %llu bytes, %u are allowed: no "
                        "safetensors file?", f->path, (unsigned long long) hlen, GLM_ST_MAX_HEADER);
    }
    if (hlen > f->len - 8) {
        return glm_fail(err, GLM_EFORMAT, "%s: cut short within its header", f->path);
    }
    base = 8 + (size_t) hlen;
    rc = st_json(&header, (const char *) f->map + 8, (size_t) hlen, f->path, "its header", err);
    if (rc != 0) return rc;

    json_object_foreach(header, name, v) {
        if (strcmp(name, "__metadata__") == 0) {
            f->meta = json_incref(v);
            continue;
        }
        if ((rc = st_add(r, f, base, name, v, err)) != 0) goto done;
    }
    if ((rc = st_check_layout(r, f, first, base, err)) != 0) goto done;
    for (i = first; i < r->ntensors; i++) {
        if ((rc = st_align(r, &r->tensors[i], err)) != 0) goto done;
    }

done:
    json_decref(header);
    return rc;
}


/* Adds dir/name as the reader's last file. */
static int
st_map(glm_st_reader_t *r, const char *dir, const char *name, glm_err_t *err)
{
    st_file_t    *f;
    struct stat   sb;
    void         *map;
    int           rc;

    if ((rc = st_grow(&r->files, r->nfiles, &r->files_cap, sizeof(*f), err)) != 0) return rc;
    f = &r->files[r->nfiles];
    memset(f, 0, sizeof(*f));
    f->fd = -1;
    if (asprintf(&f->path, "%s/%s", dir, name) < 0) {
        return glm_fail(err, GLM_ENOMEM, "%s: no memory", dir);
    }
    r->nfiles++;

    f->fd = open(f->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);    /* a fifo must not hang us */
    if (f->fd < 0) {
        return glm_fail(err, errno == ENOENT ? GLM_ENOENT : GLM_EIO, "%s: %s", f->path,
                        strerror(errno));
    }
    if (fstat(f->fd, &sb) != 0 || !S_ISREG(sb.st_mode)) {
        return glm_fail(err, GLM_EFORMAT, "%s: not a plain file", f->path);
    }
    if (sb.st_size > 0) {
        map = mmap(NULL, (size_t) sb.st_size, PROT_READ, MAP_SHARED, f->fd, 0);
        if (map == MAP_FAILED) {
            return glm_fail(err, GLM_EIO, "%s: mmap() failed: %s", f->path, strerror(errno));
        }
        f->map = map;
        f->len = (size_t) sb.st_size;
    }
    return 0;
}


static int
st_by_string(const void *a, const void *b)
{
    return strcmp(*(char *const *) a, *(char *const *) b);
}


static int
st_names_add(char ***names, size_t *n, size_t *cap, const char *name, glm_err_t *err)
{
    int  rc = st_grow(names, *n, cap, sizeof(**names), err);

    if (rc != 0) return rc;
    (*names)[*n] = strdup(name);
    if ((*names)[*n] == NULL) return glm_fail(err, GLM_ENOMEM, "no memory for file names");
    (*n)++;
    return 0;
}


/* All *.safetensors of dir; those being written have another ending. */
static int
st_list_dir(char ***names, size_t *n, size_t *cap, const char *dir, glm_err_t *err)
{
    const char     *end = ".safetensors";
    struct dirent  *e;
    DIR            *d = opendir(dir);
    size_t          len;
    int             rc = 0;

    if (d == NULL) {
        return glm_fail(err, errno == ENOENT ? GLM_ENOENT : GLM_EIO, "%s: %s", dir,
                        strerror(errno));
    }
    while (rc == 0 && (e = readdir(d)) != NULL) {
        len = strlen(e->d_name);
        if (e->d_name[0] == '.' || len < strlen(end)) continue;
        if (strcmp(e->d_name + len - strlen(end), end) != 0) continue;
        rc = st_names_add(names, n, cap, e->d_name, err);
    }
    closedir(d);
    if (rc == 0 && *n == 0) rc = glm_fail(err, GLM_ENOENT, "%s: no *.safetensors in it", dir);
    return rc;
}


static int
st_list_index(char ***names, size_t *n, size_t *cap, json_t *map, const char *path, glm_err_t *err)
{
    const char  *tensor, *file;
    json_t      *v;
    int          rc;

    json_object_foreach(map, tensor, v) {
        file = json_string_value(v);
        if (file == NULL || strchr(file, '/') != NULL || file[0] == '.' || !st_name_ok(file)) {
            return glm_fail(err, GLM_EFORMAT, "%s: \"weight_map\" names a file that is not a plain "
                            "name in this directory", path);
        }
        if ((rc = st_names_add(names, n, cap, file, err)) != 0) return rc;
    }
    if (*n == 0) return glm_fail(err, GLM_EFORMAT, "%s: \"weight_map\" is missing or empty", path);
    return 0;
}


/* The whole of a file; *text is the caller's to free.  NULL without a file. */
static int
st_slurp(char **text, size_t *len, const char *path, size_t max, glm_err_t *err)
{
    struct stat   sb;
    FILE         *f = fopen(path, "re");
    int           rc = 0;

    *text = NULL;
    if (f == NULL) {
        return errno == ENOENT ? 0 : glm_fail(err, GLM_EIO, "%s: %s", path, strerror(errno));
    }
    if (fstat(fileno(f), &sb) != 0 || !S_ISREG(sb.st_mode)) {
        rc = glm_fail(err, GLM_EFORMAT, "%s: not a plain file", path);

    } else if ((uint64_t) sb.st_size > max) {
        rc = glm_fail(err, GLM_ELIMIT, "%s: longer than %zu bytes", path, max);

    } else if ((*text = malloc((size_t) sb.st_size + 1)) == NULL) {
        rc = glm_fail(err, GLM_ENOMEM, "%s: no memory", path);

    } else {
        *len = fread(*text, 1, (size_t) sb.st_size, f);
        if (ferror(f)) rc = glm_fail(err, GLM_EIO, "%s: read() failed", path);
    }
    fclose(f);
    return rc;
}


/* Fills the list of files, and r->index where the directory has an index. */
static int
st_list(glm_st_reader_t *r, char ***names, size_t *n, const char *dir, glm_err_t *err)
{
    char    path[PATH_MAX], *text = NULL;
    size_t  cap = 0, len = 0;
    int     rc;

    if ((size_t) snprintf(path, sizeof(path), "%s/%s", dir, GLM_ST_INDEX) >= sizeof(path)) {
        return glm_fail(err, GLM_EINVAL, "%.64s...: path is too long", dir);
    }
    if ((rc = st_slurp(&text, &len, path, ST_MAX_INDEX, err)) != 0) goto done;
    if (text == NULL) {
        rc = st_list_dir(names, n, &cap, dir, err);
        goto done;
    }
    if ((rc = st_json(&r->index, text, len, path, "it", err)) != 0) goto done;
    rc = st_list_index(names, n, &cap, json_object_get(r->index, "weight_map"), path, err);

done:
    free(text);
    if (*n > 1) qsort(*names, *n, sizeof(**names), st_by_string);
    return rc;
}


static int
st_check_index(const glm_st_reader_t *r, const char *dir, glm_err_t *err)
{
    json_t              *map = json_object_get(r->index, "weight_map"), *v;
    const glm_stored_t  *t;
    const char          *name, *base;
    size_t               i;

    json_object_foreach(map, name, v) {
        t = glm_st_find(r, name);
        base = t ? strrchr(t->file, '/') + 1 : "";
        if (t == NULL || strcmp(base, json_string_value(v)) != 0) {
            return glm_fail(err, GLM_ENOENT, "%s/%s: %s is not in %s", dir, GLM_ST_INDEX,
                            st_name_ok(name) ? name : "a tensor", json_string_value(v));
        }
    }
    for (i = 0; i < r->ntensors; i++) {
        if (json_object_get(map, r->tensors[i].name) == NULL) {
            return glm_fail(err, GLM_EFORMAT, "%s: %s is not in %s", r->tensors[i].file,
                            r->tensors[i].name, GLM_ST_INDEX);
        }
    }
    return 0;
}


/* The checksums among the metadata of a file, or of the index (file NULL). */
static int
st_checksums(glm_st_reader_t *r, json_t *meta, const char *file, const char *dir, glm_err_t *err)
{
    glm_stored_t  *t;
    const char    *key, *hex, *where = file ? file : dir;
    json_t        *v;

    json_object_foreach(meta, key, v) {
        if (strncmp(key, "crc32.", 6) != 0) continue;
        t = (glm_stored_t *) glm_st_find(r, key + 6);
        if (t == NULL || (file != NULL && strcmp(t->file, file) != 0)) {
            return glm_fail(err, GLM_EFORMAT, "%s: a checksum of %s, which is not here", where,
                            st_name_ok(key + 6) ? key + 6 : "a tensor");
        }
        hex = json_string_value(v);
        if (hex == NULL || strlen(hex) != 8 || strspn(hex, "0123456789abcdefABCDEF") != 8) {
            return glm_fail(err, GLM_EFORMAT, "%s: the checksum of %s is not 8 hexadecimal digits",
                            where, t->name);
        }
        if (t->crc >= 0 && t->crc != (int64_t) strtoul(hex, NULL, 16)) {
            return glm_fail(err, GLM_EFORMAT, "%s: %s has another checksum in %s", t->file, t->name,
                            GLM_ST_INDEX);
        }
        t->crc = (int64_t) strtoul(hex, NULL, 16);
    }
    return 0;
}


static int
st_load(glm_st_reader_t *r, const char *dir, char **names, size_t n, glm_err_t *err)
{
    glm_stored_t  *t;
    size_t         i;
    int            rc;

    for (i = 0; i < n; i++) {
        if (i > 0 && strcmp(names[i], names[i - 1]) == 0) continue;
        if ((rc = st_map(r, dir, names[i], err)) != 0) return rc;
        if ((rc = st_read_header(r, &r->files[r->nfiles - 1], err)) != 0) return rc;
    }
    if (r->ntensors > 1) qsort(r->tensors, r->ntensors, sizeof(*t), st_by_name);
    for (i = 1; i < r->ntensors; i++) {
        t = &r->tensors[i];
        if (strcmp(t[-1].name, t->name) == 0) {
            return glm_fail(err, GLM_EFORMAT, "%s: %s is in %s too", t->file, t->name, t[-1].file);
        }
    }
    for (i = 0; i < r->nfiles; i++) {
        rc = st_checksums(r, r->files[i].meta, r->files[i].path, dir, err);
        if (rc != 0) return rc;
    }
    if (r->index == NULL) return 0;
    if ((rc = st_check_index(r, dir, err)) != 0) return rc;
    return st_checksums(r, json_object_get(r->index, "metadata"), NULL, dir, err);
}


int
glm_st_open(glm_st_reader_t **out, const char *dir, glm_err_t *err)
{
    glm_st_reader_t  *r = calloc(1, sizeof(*r));
    char            **names = NULL;
    size_t            i, n = 0;
    int               rc;

    *out = NULL;
    if (r == NULL) return glm_fail(err, GLM_ENOMEM, "%s: no memory", dir);
    rc = st_list(r, &names, &n, dir, err);
    if (rc == 0) rc = st_load(r, dir, names, n, err);

    for (i = 0; i < n; i++) free(names[i]);
    free(names);
    for (i = 0; i < r->nfiles; i++) {
        json_decref(r->files[i].meta);
        r->files[i].meta = NULL;
    }
    json_decref(r->index);
    r->index = NULL;
    if (rc != 0) {
        glm_st_close(r);
        return rc;
    }
    *out = r;
    return 0;
}


const glm_stored_t *
glm_st_find(const glm_st_reader_t *r, const char *name)
{
    glm_stored_t  key = { .name = name };

    if (r->ntensors == 0) return NULL;
    return bsearch(&key, r->tensors, r->ntensors, sizeof(key), st_by_name);
}


size_t
glm_st_count(const glm_st_reader_t *r)
{
    return r->ntensors;
}


const glm_stored_t *
glm_st_at(const glm_st_reader_t *r, size_t i)
{
    return i < r->ntensors ? &r->tensors[i] : NULL;
}


void
glm_st_close(glm_st_reader_t *r)
{
    size_t  i;

    if (r == NULL) return;
    for (i = 0; i < r->ntensors; i++) free((void *) r->tensors[i].name);
    for (i = 0; i < r->ncopies; i++) free(r->copies[i]);
    for (i = 0; i < r->nfiles; i++) {
        if (r->files[i].map != NULL) munmap(r->files[i].map, r->files[i].len);
        if (r->files[i].fd >= 0) close(r->files[i].fd);
        free(r->files[i].path);
    }
    free(r->tensors);
    free(r->copies);
    free(r->files);
    free(r);
}
