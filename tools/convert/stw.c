/*
 * stw: headers are padded with blanks so that values begin at a multiple of
 * 64, where a loader can use them as they are mapped.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <zlib.h>

#include "stw.h"

#define STW_CHUNK  (1u << 20)

typedef struct {
    char         name[128];
    glm_dtype_t  dtype;
    int          ndim;
    int64_t      dim[GLM_ST_MAX_DIMS];
    uint64_t     size;        /* bytes */
    int          shard;
    int          there;       /* on disk, from a conversion before */
    uint32_t     crc;         /* of the bytes, once they are written */
} stw_item_t;

struct stw_s {
    cv_out_t      *out;
    cv_journal_t  *journal;
    int            checksums;
    uint64_t       shard_bytes, filled; /* filled: bytes of the last shard */
    stw_item_t    *item;
    size_t         n, cap, next;
    size_t         marked;              /* items before it are in the journal */
    int            shards;
};


int
stw_open(stw_t **out, cv_out_t *o, cv_journal_t *j, uint64_t shard_bytes, int checksums,
    glm_err_t *err)
{
    stw_t  *w = calloc(1, sizeof(*w));

    *out = w;
    if (w == NULL) return glm_fail(err, GLM_ENOMEM, "no memory");
    w->out = o;
    w->journal = j;
    w->checksums = checksums;
    w->shard_bytes = shard_bytes;
    return 0;
}


void
stw_close(stw_t *w)
{
    if (w != NULL) free(w->item);
    free(w);
}


int
stw_shards(const stw_t *w)
{
    return w->shards;
}


static uint64_t
stw_bytes(const stw_t *w)
{
    uint64_t  total = 0;
    size_t    i;

    for (i = 0; i < w->n; i++) total += w->item[i].size;
    return total;
}


int
stw_declare(stw_t *w, const char *name, glm_dtype_t dtype, int ndim, const int64_t *dim,
    glm_err_t *err)
{
    stw_item_t  *it;
    size_t       cap = w->cap ? w->cap * 2 : 64;
    int          i;

    if (w->n == w->cap) {
        it = reallocarray(w->item, cap, sizeof(*it));
        if (it == NULL) return glm_fail(err, GLM_ENOMEM, "no memory for the table of tensors");
        w->item = it;
        w->cap = cap;
    }
    it = &w->item[w->n];
    memset(it, 0, sizeof(*it));
    snprintf(it->name, sizeof(it->name), "%s", name);
    it->dtype = dtype;
    it->ndim = ndim;
    it->size = glm_dtype_size(dtype);
    for (i = 0; i < ndim; i++) {
        it->dim[i] = dim[i];
        it->size *= (uint64_t) dim[i];
    }
    if (w->shards == 0 || (w->filled > 0 && it->size > w->shard_bytes - w->filled)) {
        w->shards++;
        w->filled = 0;
    }
    w->filled += it->size;
    if (w->filled > w->shard_bytes) w->filled = w->shard_bytes;
    it->shard = w->shards - 1;
    w->n++;
    return 0;
}


static void
stw_shard_name(const stw_t *w, int shard, char *name, size_t size)
{
    snprintf(name, size, "model-%05d-of-%05d.safetensors", shard + 1, w->shards);
}


static int
stw_same_shard(const stw_t *w, size_t i, size_t k)
{
    return i < w->n && k < w->n && w->item[i].shard == w->item[k].shard;
}


/* The header of the shard that begins with an item, length first; its size does
   not depend on the checksums.  *text is the caller's. */
static int
stw_header(const stw_t *w, size_t first, char **text, size_t *len, glm_err_t *err)
{
    const stw_item_t  *it;
    uint64_t           at = 0, word;
    size_t             i;
    FILE              *m = open_memstream(text, len);
    int                d;

    if (m == NULL) return glm_fail(err, GLM_ENOMEM, "no memory for a header");
    fwrite(&at, sizeof(at), 1, m);
    fprintf(m, "{\"__metadata__\":{\"format\":\"pt\"");
    for (i = first; w->checksums && stw_same_shard(w, first, i); i++) {
        fprintf(m, ",\"crc32.%s\":\"%08x\"", w->item[i].name, w->item[i].crc);
    }
    fputc('}', m);
    for (i = first; stw_same_shard(w, first, i); i++) {
        it = &w->item[i];
        fprintf(m, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", it->name, glm_dtype_name(it->dtype));
        for (d = 0; d < it->ndim; d++) fprintf(m, "%s%lld", d ? "," : "", (long long) it->dim[d]);
        fprintf(m, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long) at,
                (unsigned long long) (at + it->size));
        at += it->size;
    }
    fputc('}', m);
    fflush(m);
    while (*len % 64 != 0) {
        fputc(' ', m);
        fflush(m);
    }
    if (fclose(m) != 0) {
        free(*text);
        return glm_fail(err, GLM_ENOMEM, "no memory for a header");
    }
    word = *len - sizeof(word);
    memcpy(*text, &word, sizeof(word));
    return 0;
}


/* The same, and the name of its file. */
static int
stw_shard(const stw_t *w, size_t first, char name[64], char **text, size_t *len, glm_err_t *err)
{
    int  rc = stw_header(w, first, text, len, err);

    stw_shard_name(w, w->item[first].shard, name, 64);
    if (rc != 0 || *len <= GLM_ST_MAX_HEADER) return rc;
    free(*text);
    return glm_fail(err, GLM_ELIMIT, "%s: its header takes %zu bytes, %u are allowed: use smaller "
                    "shards", name, *len, GLM_ST_MAX_HEADER);
}


static int
stw_begin_shard(stw_t *w, glm_err_t *err)
{
    char      name[64], *text = NULL;
    size_t    len = 0, i;
    uint64_t  keep;
    int       rc;

    if ((rc = stw_shard(w, w->next, name, &text, &len, err)) != 0) return rc;
    keep = len;
    for (i = w->next; stw_same_shard(w, w->next, i) && w->item[i].there; i++) keep += w->item[i].size;
    rc = cv_out_create(w->out, name, i > w->next ? keep : 0, err);
    if (rc == 0 && i == w->next) rc = cv_out_write(w->out, text, len, err);
    free(text);
    return rc;
}


/* Marks what has been written; by now it is on its way to the disk. */
static int
stw_settle(stw_t *w, glm_err_t *err)
{
    stw_item_t  *it;
    int          rc = 0, synced = 0;

    for ( ; rc == 0 && w->marked < w->next; w->marked++) {
        it = &w->item[w->marked];
        if (it->there) continue;
        if (!synced) rc = cv_out_sync(w->out, err);
        synced = 1;
        if (rc == 0) rc = cv_journal_mark(w->journal, it->name, it->crc, err);
    }
    return rc;
}


/* The header again, now that the checksums are known. */
static int
stw_end_shard(stw_t *w, glm_err_t *err)
{
    char    name[64], *text = NULL;
    size_t  len = 0, first = w->next - 1;
    int     rc;

    while (first > 0 && stw_same_shard(w, first, first - 1)) first--;
    if ((rc = stw_settle(w, err)) != 0) return rc;
    if ((rc = stw_shard(w, first, name, &text, &len, err)) != 0) return rc;
    rc = cv_out_head(w->out, text, len, err);
    free(text);
    return rc;
}


int
stw_there(const stw_t *w, size_t n)
{
    size_t  i;

    for (i = w->next; i < w->next + n; i++) {
        if (i == w->n || !w->item[i].there) return 0;
    }
    return 1;
}


int
stw_read(const stw_t *w, size_t k, void *values, glm_err_t *err)
{
    size_t    at = w->next + k, first = at, i, len = 0;
    char      name[64], *text = NULL;
    uint64_t  offset, done, n;
    int       fd, rc;

    while (first > 0 && stw_same_shard(w, first, first - 1)) first--;
    if ((rc = stw_shard(w, first, name, &text, &len, err)) != 0) return rc;
    free(text);
    for (i = first, offset = len; i < at; i++) offset += w->item[i].size;
    if ((fd = cv_out_left(w->out, name, O_RDONLY)) < 0) return glm_fail(err, GLM_EIO, "%s: gone", name);
    for (done = 0; done < w->item[at].size; done += n) {
        n = w->item[at].size - done < STW_CHUNK ? w->item[at].size - done : STW_CHUNK;
        if (pread(fd, (char *) values + done, n, (off_t) (offset + done)) != (ssize_t) n) break;
    }
    close(fd);
    return done >= w->item[at].size ? 0 : glm_fail(err, GLM_EIO, "%s: read() failed", name);
}


int
stw_write(stw_t *w, const void *values, size_t size, glm_err_t *err)
{
    stw_item_t  *it = &w->item[w->next];
    int          rc;

    if (w->next == w->n || size != it->size) {
        return glm_fail(err, GLM_EINVAL, "values that were not declared");
    }
    if (w->next == 0 || !stw_same_shard(w, w->next, w->next - 1)) {
        if ((rc = stw_begin_shard(w, err)) != 0) return rc;
    }
    if (!it->there) {
        if ((rc = stw_settle(w, err)) != 0) return rc;
        it->crc = (uint32_t) crc32_z(0, values, size);
        if ((rc = cv_out_write(w->out, values, size, err)) != 0) return rc;
        cv_out_flush(w->out);
    }
    w->next++;
    return stw_same_shard(w, w->next, w->next - 1) ? 0 : stw_end_shard(w, err);
}


/* Whether size bytes of a file have this checksum. */
static int
stw_bytes_are(int fd, uint64_t at, uint64_t size, uint32_t crc, uint8_t *buf)
{
    uint32_t  has = 0;
    size_t    n;

    while (size > 0) {
        n = size < STW_CHUNK ? (size_t) size : STW_CHUNK;
        if (pread(fd, buf, n, (off_t) at) != (ssize_t) n) return 0;
        has = (uint32_t) crc32_z(has, buf, n);
        at += n;
        size -= n;
    }
    return has == crc;
}


/* Tensors of a file are written in order: the first that is not as it was marked, or
   is not marked, ends what can be used. */
static int
stw_resume_shard(stw_t *w, size_t first, uint8_t *buf, glm_err_t *err)
{
    char         name[64], *text = NULL;
    size_t       len = 0, i;
    stw_item_t  *it;
    int          rc = stw_shard(w, first, name, &text, &len, err), fd;

    if (rc != 0) return rc;
    free(text);
    fd = cv_out_left(w->out, name, O_RDONLY);
    for (i = first; fd >= 0 && stw_same_shard(w, first, i); len += it->size, i++) {
        it = &w->item[i];
        if (!cv_journal_find(w->journal, it->name, &it->crc)) break;
        if (!stw_bytes_are(fd, len, it->size, it->crc, buf)) break;
        it->there = 1;
    }
    if (fd >= 0) close(fd);
    return 0;
}


int
stw_resume(stw_t *w, glm_err_t *err)
{
    uint8_t  *buf;
    size_t    i;
    int       rc = 0;

    if (cv_journal_count(w->journal) == 0) return 0;
    if ((buf = malloc(STW_CHUNK)) == NULL) return glm_fail(err, GLM_ENOMEM, "no memory");
    for (i = 0; i < w->n && rc == 0; i++) {
        if (i == 0 || !stw_same_shard(w, i, i - 1)) rc = stw_resume_shard(w, i, buf, err);
    }
    free(buf);
    return rc;
}


int
stw_finish(stw_t *w, glm_err_t *err)
{
    char    *text = NULL, file[64];
    size_t   i, len = 0;
    FILE    *m;
    int      rc;

    if (w->next != w->n) return glm_fail(err, GLM_EINVAL, "%s: no values", w->item[w->next].name);
    if ((m = open_memstream(&text, &len)) == NULL) return glm_fail(err, GLM_ENOMEM, "no memory");
    fprintf(m, "{\n \"metadata\": {\"total_size\": %llu},\n \"weight_map\": {",
            (unsigned long long) stw_bytes(w));
    for (i = 0; i < w->n; i++) {
        stw_shard_name(w, w->item[i].shard, file, sizeof(file));
        fprintf(m, "%s\n  \"%s\": \"%s\"", i ? "," : "", w->item[i].name, file);
    }
    fprintf(m, "\n }\n}\n");
    rc = fclose(m) == 0 ? 0 : glm_fail(err, GLM_ENOMEM, "no memory");
    if (rc == 0) rc = cv_out_create(w->out, GLM_ST_INDEX, 0, err);
    if (rc == 0) rc = cv_out_write(w->out, text, len, err);
    free(text);
    return rc;
}
