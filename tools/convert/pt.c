/*
 * pt: the tensors of a checkpoint file.  Everything that the pickle says is
 * compared with the file here, before the first value is read.
 */
#include <stdlib.h>
#include <string.h>

#include "pt_impl.h"

#define PT_CHUNK     (1u << 20)         /* bytes handed to a sink at most */
#define PT_MAX_NAME  255


static int
pt_by_name(const void *a, const void *b)
{
    return strcmp(((const pt_tensor_t *) a)->name, ((const pt_tensor_t *) b)->name);
}


/* A name goes into messages and file headers. */
static int
pt_name_ok(pk_str_t s)
{
    size_t  i;

    for (i = 0; i < s.len; i++) {
        if (s.s[i] < 0x21 || s.s[i] > 0x7e) return 0;
    }
    return s.len > 0 && s.len <= PT_MAX_NAME;
}


static void
pt_note_other(pt_file_t *f, const pk_value_t *key, const char *in)
{
    size_t  used = strlen(f->others), left = sizeof(f->others) - used;
    int     named = key->type == PK_STR && pt_name_ok(key->str) && key->str.len < 64;

    if (left < 80) {
        if (used < 3 || strcmp(f->others + used - 3, "...") != 0) strcat(f->others, ", ...");
        return;
    }
    snprintf(f->others + used, left, "%s%s%.*s", used ? ", " : "", in,
             named ? (int) key->str.len : 1, named ? key->str.s : "?");
}


static int
pt_add(pt_file_t *f, pk_str_t name, const pk_tensor_t *t, glm_err_t *err)
{
    pt_tensor_t       *slot = &f->tensors[f->ntensors];
    const pt_store_t  *s = pt_find_store(f, t->storage->key);
    uint64_t           need;

    if (!pt_name_ok(name)) {
        return glm_fail(err, GLM_EFORMAT, "%s: a tensor's name is empty, too long or not plain "
                        "ASCII", f->path);
    }
    need = t->storage->numel * pt_dtype_size(t->storage->dtype);
    if (s == NULL || !s->present) {
        return glm_fail(err, GLM_EFORMAT, "%s: %.*s: its values (storage %.*s) are not in the "
                        "file: is it cut short?", f->path, (int) name.len, name.s,
                        (int) t->storage->key.len, t->storage->key.s);
    }
    if (s->bytes < need) {
        return glm_fail(err, GLM_EFORMAT, "%s: %.*s: its storage %.*s has %llu bytes of %llu: is "
                        "the file cut short?", f->path, (int) name.len, name.s, (int) s->key.len,
                        s->key.s, (unsigned long long) s->bytes, (unsigned long long) need);
    }
    slot->name = strndup(name.s, name.len);
    if (slot->name == NULL) return glm_fail(err, GLM_ENOMEM, "%s: no memory", f->path);
    slot->t = t;
    slot->store = s;
    f->ntensors++;
    return 0;
}


static int
pt_list_tensors(pt_file_t *f, const pk_value_t *module, glm_err_t *err)
{
    const pk_value_t  *key, *v;
    size_t             i;
    int                rc;

    f->tensors = calloc(module->seq.n / 2 + 1, sizeof(*f->tensors));
    if (f->tensors == NULL) return glm_fail(err, GLM_ENOMEM, "%s: no memory", f->path);
    for (i = 0; i + 1 < module->seq.n; i += 2) {
        key = module->seq.item[i];
        v = module->seq.item[i + 1];
        if (v->type != PK_TENSOR || key->type != PK_STR) {
            pt_note_other(f, key, "module.");
            continue;
        }
        if ((rc = pt_add(f, key->str, v->tensor, err)) != 0) return rc;
    }
    if (f->ntensors > 1) qsort(f->tensors, f->ntensors, sizeof(*f->tensors), pt_by_name);
    for (i = 1; i < f->ntensors; i++) {
        if (strcmp(f->tensors[i - 1].name, f->tensors[i].name) == 0) {
            return glm_fail(err, GLM_EFORMAT, "%s: %s occurs twice", f->path, f->tensors[i].name);
        }
    }
    return 0;
}


static int
pt_list(pt_file_t *f, glm_err_t *err)
{
    const pk_value_t  *module = pk_get(f->top, "module");
    size_t             i;
    int                rc;

    if (module == NULL || module->type != PK_DICT) {
        return glm_fail(err, GLM_EFORMAT, "%s: no dict \"module\" in it: not a checkpoint of this "
                        "kind", f->path);
    }
    if ((rc = pt_index_stores(f, err)) != 0) return rc;
    if ((rc = pt_list_tensors(f, module, err)) != 0) return rc;
    for (i = 0; i + 1 < f->top->seq.n; i += 2) {
        if (f->top->seq.item[i + 1] != module) pt_note_other(f, f->top->seq.item[i], "");
    }
    return 0;
}


int
pt_open_at(pt_file_t **out, const vol_t *v, uint64_t at, uint64_t size, const char *path,
    glm_err_t *err)
{
    pt_file_t  *f = calloc(1, sizeof(*f));
    int         rc;

    *out = NULL;
    if (f == NULL) return glm_fail(err, GLM_ENOMEM, "%s: no memory", path);
    f->vol = v;
    f->at = at;
    f->size = size;
    f->path = strdup(path);
    f->arena = pk_arena_new();
    if (f->path == NULL || f->arena == NULL) {
        rc = glm_fail(err, GLM_ENOMEM, "%s: no memory", path);

    } else if ((rc = pt_load(f, err)) == 0) {
        rc = pt_list(f, err);
    }
    if (rc != 0) {
        pt_close(f);
        return rc;
    }
    *out = f;
    return 0;
}


int
pt_open(pt_file_t **out, const char *path, glm_err_t *err)
{
    char   *name = (char *) path;
    vol_t  *v;
    int     rc;

    *out = NULL;
    if ((rc = vol_open(&v, &name, 1, err)) != 0) return rc;
    if ((rc = pt_open_at(out, v, 0, vol_size(v), path, err)) != 0) {
        vol_close(v);
        return rc;
    }
    (*out)->own = v;
    return 0;
}


void
pt_close(pt_file_t *f)
{
    size_t  i;

    if (f == NULL) return;
    for (i = 0; i < f->ntensors; i++) free(f->tensors[i].name);
    free(f->tensors);
    free(f->stores);
    free(f->pickle);
    pk_arena_free(f->arena);
    if (f->zip != NULL) zip_discard(f->zip);
    vol_close(f->own);
    free(f->path);
    free(f);
}


const vol_file_t *
pt_vol_file(const pt_file_t *f)
{
    return f->own ? vol_file(f->own, 0) : NULL;
}


const char *
pt_path(const pt_file_t *f)
{
    return f->path;
}


const char *
pt_others(const pt_file_t *f)
{
    return f->others;
}


size_t
pt_count(const pt_file_t *f)
{
    return f->ntensors;
}


pt_tensor_t *
pt_at(pt_file_t *f, size_t i)
{
    return i < f->ntensors ? &f->tensors[i] : NULL;
}


pt_tensor_t *
pt_find(pt_file_t *f, const char *name)
{
    pt_tensor_t  key = { .name = (char *) name };

    if (f->ntensors == 0) return NULL;
    return bsearch(&key, f->tensors, f->ntensors, sizeof(key), pt_by_name);
}


static int
pt_contiguous(const pk_tensor_t *t)
{
    uint64_t  want = 1;
    int       i;

    for (i = t->ndim - 1; i >= 0; i--) {
        if (t->dim[i] != 1 && (uint64_t) t->stride[i] != want) return 0;
        want *= (uint64_t) t->dim[i];
    }
    return 1;
}


static int
pt_read_run(pt_file_t *f, const pt_tensor_t *t, pt_sink_pt sink, void *arg, glm_err_t *err)
{
    size_t       size = pt_dtype_size(t->store->dtype), n;
    uint64_t     left = t->t->numel;
    pt_stream_t  s;
    void        *buf = malloc(PT_CHUNK);
    int          rc;

    if (buf == NULL) return glm_fail(err, GLM_ENOMEM, "%s: no memory", f->path);
    rc = pt_stream_open(&s, f, t->store, t->t->offset * size, err);
    while (rc == 0 && left > 0) {
        n = left < PT_CHUNK / size ? (size_t) left : PT_CHUNK / size;
        if ((rc = pt_stream_read(&s, buf, n * size, err)) != 0) break;
        rc = sink(arg, buf, n);
        left -= n;
    }
    if (rc == 0 && (t->t->offset + t->t->numel) * size == t->store->bytes) {
        rc = pt_stream_verify(&s, err);
    }
    pt_stream_close(&s);
    free(buf);
    return rc;
}


/* Walks the elements of a loaded span in row-major order. */
static int
pt_gather(const pk_tensor_t *t, const uint8_t *span, size_t size, uint8_t *buf, pt_sink_pt sink,
    void *arg)
{
    int64_t   at[PK_MAX_DIMS] = { 0 };
    uint64_t  left, src = 0;
    size_t    n = 0;
    int       d, rc;

    for (left = t->numel; left > 0; left--) {
        memcpy(buf + n++ * size, span + src * size, size);
        if (n == PT_CHUNK / size || left == 1) {
            if ((rc = sink(arg, buf, n)) != 0) return rc;
            n = 0;
        }
        for (d = t->ndim - 1; d >= 0; d--) {
            src += (uint64_t) t->stride[d];
            if (++at[d] < t->dim[d]) break;
            src -= (uint64_t) t->stride[d] * (uint64_t) t->dim[d];
            at[d] = 0;
        }
    }
    return 0;
}


static int
pt_read_strided(pt_file_t *f, const pt_tensor_t *t, pt_sink_pt sink, void *arg, glm_err_t *err)
{
    size_t       size = pt_dtype_size(t->store->dtype);
    uint64_t     span = 1;
    pt_stream_t  s;
    uint8_t     *bytes, *buf = NULL;
    int          d, rc;

    for (d = 0; d < t->t->ndim; d++) {
        span += (uint64_t) (t->t->dim[d] - 1) * (uint64_t) t->t->stride[d];
    }
    if (span / 64 > t->t->numel + (1u << 20)) {
        return glm_fail(err, GLM_ELIMIT, "%s: %s: %llu elements are spread over %llu", f->path,
                        t->name, (unsigned long long) t->t->numel, (unsigned long long) span);
    }
    bytes = malloc(span * size);
    buf = malloc(PT_CHUNK);
    if (bytes == NULL || buf == NULL) {
        rc = glm_fail(err, GLM_ENOMEM, "%s: %s: no memory for %llu elements", f->path, t->name,
                      (unsigned long long) span);

    } else {
        rc = pt_stream_open(&s, f, t->store, t->t->offset * size, err);
        if (rc == 0) rc = pt_stream_read(&s, bytes, span * size, err);
        pt_stream_close(&s);
        if (rc == 0) rc = pt_gather(t->t, bytes, size, buf, sink, arg);
    }
    free(bytes);
    free(buf);
    return rc;
}


int
pt_read(pt_file_t *f, const pt_tensor_t *t, pt_sink_pt sink, void *arg, glm_err_t *err)
{
    glm_err_t  cause = { "" };
    int        rc;

    if (t->t->numel == 0) return 0;
    rc = pt_contiguous(t->t) ? pt_read_run(f, t, sink, arg, &cause)
                             : pt_read_strided(f, t, sink, arg, &cause);
    if (rc != 0 && cause.text[0] != '\0') {
        glm_fail(err, rc, "%.380s (in %.100s)", cause.text, t->name);
    }
    return rc;
}
