/*
 * tar: one pass from header to header; what lies between is not read.
 */
#include <stdlib.h>
#include <string.h>

#include "tar.h"

#define TAR_BLOCK      512
#define TAR_MAX_FILES  10000
#define TAR_MAX_EXTRA  (1u << 20)       /* bytes of a long name, or of a pax header */
#define TAR_MAX_NAME   4096

typedef struct {
    const vol_t    *v;
    uint64_t        at;                 /* of the header */
    uint8_t         block[TAR_BLOCK];
    char           *name;               /* told by a header before, or NULL */
    int64_t         told;               /* size, likewise, or -1 */
    uint64_t        size;               /* of the member */
    glm_err_t      *err;
} tar_walk_t;


static int
tar_bad(const tar_walk_t *w, uint64_t at, const char *what)
{
    char  place[300];

    return glm_fail(w->err, GLM_EFORMAT, "%s: %s", vol_place(w->v, at, place, sizeof(place)), what);
}


/* Octal digits, or base-256 when the first bit is set; -1 for nonsense. */
static int64_t
tar_number(const uint8_t *p, size_t n)
{
    int64_t  x = 0;
    size_t   i;

    if (*p & 0x80) {
        for (i = 1; i < n; i++) {
            if (x >> 54) return -1;
            x = x << 8 | p[i];
        }
        return *p == 0x80 ? x : -1;
    }
    for (i = 0; i < n && p[i] == ' '; i++) { /* void */ }
    for ( ; i < n && p[i] >= '0' && p[i] <= '7'; i++) x = x << 3 | (p[i] - '0');
    return i == n || p[i] == '\0' || p[i] == ' ' ? x : -1;
}


static int
tar_sum_ok(const uint8_t *b)
{
    int64_t  sum = 0;
    int      i;

    for (i = 0; i < TAR_BLOCK; i++) sum += i >= 148 && i < 156 ? ' ' : b[i];
    return tar_number(b + 148, 8) == sum;
}


static int
tar_is_zero(const uint8_t *b)
{
    static const uint8_t  zero[TAR_BLOCK];

    return memcmp(b, zero, TAR_BLOCK) == 0;
}


/* The values of a member that describes the next one; the caller's. */
static int
tar_slurp(tar_walk_t *w, char **out)
{
    int  rc;

    *out = NULL;
    if (w->size > TAR_MAX_EXTRA) return tar_bad(w, w->at, "a header's extension of over 1 MiB");
    *out = malloc((size_t) w->size + 1);
    if (*out == NULL) return glm_fail(w->err, GLM_ENOMEM, "no memory for a header");
    (*out)[w->size] = '\0';
    rc = vol_read(w->v, *out, (size_t) w->size, w->at + TAR_BLOCK, w->err);
    if (rc == 0) return 0;
    free(*out);
    *out = NULL;
    return rc;
}


/* Records "LENGTH KEY=VALUE\n"; of them path and size matter. */
static int
tar_pax(tar_walk_t *w, const char *text)
{
    const char  *p = text, *end = text + w->size, *key, *value;
    char        *after;
    size_t       len;

    while (p < end) {
        len = strtoul(p, &after, 10);
        if (*p < '1' || *p > '9' || *after != ' ' || len > (size_t) (end - p) || p[len - 1] != '\n') {
            return tar_bad(w, w->at, "a pax header that is none");
        }
        key = after + 1;
        value = memchr(key, '=', (size_t) (p + len - key));
        if (value == NULL) return tar_bad(w, w->at, "a pax header that is none");
        value++;
        if (strncmp(key, "path=", 5) == 0) {
            free(w->name);
            w->name = strndup(value, (size_t) (p + len - 1 - value));
            if (w->name == NULL) return glm_fail(w->err, GLM_ENOMEM, "no memory for a header");

        } else if (strncmp(key, "size=", 5) == 0) {
            w->told = strtoll(value, NULL, 10);
        }
        p += len;
    }
    return 0;
}


/* Name of a ustar header: prefix/name, neither of them ended when full. */
static int
tar_own_name(tar_walk_t *w)
{
    const char  *b = (const char *) w->block;
    int          ustar = memcmp(b + 257, "ustar\0", 6) == 0 && b[345] != '\0';

    if (w->name != NULL) return 0;
    if (asprintf(&w->name, "%.155s%s%.100s", ustar ? b + 345 : "", ustar ? "/" : "", b) >= 0) return 0;
    w->name = NULL;
    return glm_fail(w->err, GLM_ENOMEM, "no memory for a header");
}


/* A name goes into messages, which are one line. */
static int
tar_name_ok(const char *name)
{
    size_t  i;

    for (i = 0; name[i] != '\0'; i++) {
        if (i == TAR_MAX_NAME || (unsigned char) name[i] < 0x20 || name[i] == 0x7f) return 0;
    }
    return 1;
}


static int
tar_add(tar_walk_t *w, tar_t *t)
{
    char    from[300], line[512];
    void   *more = reallocarray(t->file, t->n + 1, sizeof(*t->file));
    int     rc;

    if (more == NULL) return glm_fail(w->err, GLM_ENOMEM, "no memory for a header");
    t->file = more;
    if (t->n == TAR_MAX_FILES) return tar_bad(w, w->at, "more files than an archive may hold");
    if ((rc = tar_own_name(w)) != 0) return rc;
    if (!tar_name_ok(w->name)) {
        return tar_bad(w, w->at, "a file name of over 4096 bytes, or with control characters");
    }
    if (w->size > vol_size(w->v) - w->at - TAR_BLOCK) {
        vol_place(w->v, vol_size(w->v), from, sizeof(from));
        snprintf(line, sizeof(line), "%.280s: the archive ends here, %llu bytes before the end of "
                 "%.80s: a part is cut short, or parts after it are missing", from,
                 (unsigned long long) (w->size - (vol_size(w->v) - w->at - TAR_BLOCK)), w->name);
        return glm_fail(w->err, GLM_EFORMAT, "%s", line);
    }
    t->file[t->n++] = (tar_file_t) { w->name, w->at + TAR_BLOCK, w->size };
    w->name = NULL;
    return 0;
}


/* One header; *more is cleared at the end of the archive. */
static int
tar_step(tar_walk_t *w, tar_t *t, int *more)
{
    char     *text = NULL, type;
    int64_t   own;
    int       rc = vol_read(w->v, w->block, TAR_BLOCK, w->at, w->err);

    if (rc != 0) return rc;
    if (tar_is_zero(w->block)) {
        *more = 0;
        return 0;
    }
    own = tar_number(w->block + 124, 12);
    if (!tar_sum_ok(w->block) || own < 0) {
        return tar_bad(w, w->at, w->at ? "no header of a tar archive: damaged, or a part before it is "
                       "not whole" : "no header of a tar archive: is the first part missing?");
    }
    type = (char) w->block[156];
    w->size = (uint64_t) (w->told >= 0 && type != 'x' && type != 'g' ? w->told : own);
    if (type == 'L' || type == 'x') {
        if ((rc = tar_slurp(w, &text)) != 0) return rc;
        if (type == 'x') {
            rc = tar_pax(w, text);
            free(text);

        } else {
            free(w->name);
            w->name = text;
        }
        w->at += TAR_BLOCK + (w->size + TAR_BLOCK - 1) / TAR_BLOCK * TAR_BLOCK;
        return rc;
    }
    if (type == '0' || type == '\0') rc = tar_add(w, t);
    free(w->name);
    w->name = NULL;
    w->told = -1;
    w->at += TAR_BLOCK + (w->size + TAR_BLOCK - 1) / TAR_BLOCK * TAR_BLOCK;
    return rc;
}


int
tar_list(tar_t *t, const vol_t *v, glm_err_t *err)
{
    tar_walk_t  w = { .v = v, .told = -1, .err = err };
    int         rc = 0, more = 1;

    *t = (tar_t) { NULL, 0 };
    while (rc == 0 && more && w.at < vol_size(v)) rc = tar_step(&w, t, &more);
    free(w.name);
    if (rc != 0) tar_free(t);
    return rc;
}


void
tar_free(tar_t *t)
{
    while (t->n > 0) free(t->file[--t->n].name);
    free(t->file);
    t->file = NULL;
}
