/*
 * stw: headers are padded with blanks so that values begin at a multiple of
 * 64, where a loader can use them as they are mapped.
 */
#include <stdlib.h>
#include <string.h>

#include "stw.h"

typedef struct {
    char         name[128];
    glm_dtype_t  dtype;
    int          ndim;
    int64_t      dim[GLM_ST_MAX_DIMS];
    uint64_t     size;        /* bytes */
    int          shard;
} stw_item_t;

struct stw_s {
    cv_out_t    *out;
    uint64_t     shard_bytes, filled;   /* filled: bytes of the last shard */
    stw_item_t  *item;
    size_t       n, cap, next;
    int          shards;
};


int
stw_open(stw_t **out, cv_out_t *o, uint64_t shard_bytes, glm_err_t *err)
{
    stw_t  *w = calloc(1, sizeof(*w));

    *out = w;
    if (w == NULL) return glm_fail(err, GLM_ENOMEM, "no memory");
    w->out = o;
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


/* The header of the shard that begins with w->next; *text is the caller's. */
static int
stw_header(const stw_t *w, char **text, size_t *len, glm_err_t *err)
{
    const stw_item_t  *it;
    uint64_t           at = 0;
    size_t             i;
    FILE              *m = open_memstream(text, len);
    int                d;

    if (m == NULL) return glm_fail(err, GLM_ENOMEM, "no memory for a header");
    fprintf(m, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (i = w->next; i < w->n && w->item[i].shard == w->item[w->next].shard; i++) {
        it = &w->item[i];
        fprintf(m, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", it->name, glm_dtype_name(it->dtype));
        for (d = 0; d < it->ndim; d++) fprintf(m, "%s%lld", d ? "," : "", (long long) it->dim[d]);
        fprintf(m, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long) at,
                (unsigned long long) (at + it->size));
        at += it->size;
    }
    fputc('}', m);
    fflush(m);
    while ((8 + *len) % 64 != 0) {
        fputc(' ', m);
        fflush(m);
    }
    if (fclose(m) != 0) {
        free(*text);
        return glm_fail(err, GLM_ENOMEM, "no memory for a header");
    }
    return 0;
}


static int
stw_begin_shard(stw_t *w, glm_err_t *err)
{
    char      name[64], *text = NULL;
    uint8_t   word[8];
    size_t    i, len = 0;
    int       rc;

    stw_shard_name(w, w->item[w->next].shard, name, sizeof(name));
    if ((rc = stw_header(w, &text, &len, err)) != 0) return rc;
    for (i = 0; i < 8; i++) word[i] = (uint8_t) ((uint64_t) len >> (8 * i));
    if (len > GLM_ST_MAX_HEADER) {
        rc = glm_fail(err, GLM_ELIMIT, "%s: its header takes %zu bytes, %u are allowed: use "
                      "smaller shards", name, len, GLM_ST_MAX_HEADER);
    }
    if (rc == 0) rc = cv_out_create(w->out, name, NULL, err);
    if (rc == 0) rc = cv_out_write(w->out, word, sizeof(word), err);
    if (rc == 0) rc = cv_out_write(w->out, text, len, err);
    free(text);
    return rc;
}


int
stw_write(stw_t *w, const void *values, size_t size, glm_err_t *err)
{
    int  rc;

    if (w->next == w->n || size != w->item[w->next].size) {
        return glm_fail(err, GLM_EINVAL, "values that were not declared");
    }
    if (w->next == 0 || w->item[w->next - 1].shard != w->item[w->next].shard) {
        if ((rc = stw_begin_shard(w, err)) != 0) return rc;
    }
    if ((rc = cv_out_write(w->out, values, size, err)) != 0) return rc;
    w->next++;
    return 0;
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
    if (rc == 0) rc = cv_out_create(w->out, GLM_ST_INDEX, NULL, err);
    if (rc == 0) rc = cv_out_write(w->out, text, len, err);
    free(text);
    return rc;
}
