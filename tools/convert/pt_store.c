/*
 * pt_store: where the storages of a .pt file of either form are.  Zip: a member
 * each, found by name.  Legacy: they follow the pickles, each after its count of
 * elements.
 */
#include <stdlib.h>
#include <string.h>

#include "pt_impl.h"

/* 0x1950a86a20f9469cfc6c, low byte first */
static const uint8_t  pt_magic[] = { 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19 };


/* The folder that all members are in: the one with data.pkl. */
static int
pt_zip_root(pt_file_t *f, zip_uint64_t *pickle, glm_err_t *err)
{
    zip_int64_t  i, n = zip_get_num_entries(f->zip, 0);
    const char  *name, *slash;

    for (i = 0; i < n; i++) {
        name = zip_get_name(f->zip, (zip_uint64_t) i, ZIP_FL_ENC_RAW);
        slash = name ? strchr(name, '/') : NULL;
        if (slash == NULL || strcmp(slash, "/data.pkl") != 0) continue;
        if ((size_t) (slash - name) + 2 > sizeof(f->root)) break;
        memcpy(f->root, name, (size_t) (slash - name) + 1);
        *pickle = (zip_uint64_t) i;
        return 0;
    }
    return glm_fail(err, GLM_EFORMAT, "%s: no data.pkl in this zip: not a file of torch.save",
                    f->path);
}


/* The whole of a small member. */
static int
pt_zip_slurp(pt_file_t *f, zip_uint64_t member, const char *what, size_t max, uint8_t **out,
    size_t *len, glm_err_t *err)
{
    zip_file_t   *z;
    zip_stat_t    st;
    zip_int64_t   got;
    char          more, text[128];

    zip_stat_init(&st);
    if (zip_stat_index(f->zip, member, 0, &st) != 0 || !(st.valid & ZIP_STAT_SIZE)) {
        return glm_fail(err, GLM_EFORMAT, "%s: %s: no size in the zip", f->path, what);
    }
    if (st.size > max) {
        return glm_fail(err, GLM_ELIMIT, "%s: %s has %llu bytes, %zu are allowed", f->path, what,
                        (unsigned long long) st.size, max);
    }
    *out = malloc(st.size + 1);
    if (*out == NULL) return glm_fail(err, GLM_ENOMEM, "%s: no memory", f->path);
    f->zip_from = UINT64_MAX;
    z = zip_fopen_index(f->zip, member, 0);
    got = z ? zip_fread(z, *out, st.size) : -1;
    if (got >= 0 && zip_fread(z, &more, 1) != 0) got = -1;       /* libzip checks the CRC here */
    if (z != NULL) zip_fclose(z);
    if (got < 0 || (zip_uint64_t) got != st.size) {
        snprintf(text, sizeof(text), "%.32s cannot be read: the file is damaged or cut short", what);
        return pt_damaged(f, text, err);
    }
    *len = st.size;
    return 0;
}


/* Newer writers say in which order a number's bytes are. */
static int
pt_zip_byteorder(pt_file_t *f, glm_err_t *err)
{
    char          name[300];
    zip_int64_t   i;
    uint8_t      *text = NULL;
    size_t        len = 0;
    int           rc;

    snprintf(name, sizeof(name), "%sbyteorder", f->root);
    if ((i = zip_name_locate(f->zip, name, ZIP_FL_ENC_RAW)) < 0) return 0;
    rc = pt_zip_slurp(f, (zip_uint64_t) i, "byteorder", 64, &text, &len, err);
    if (rc == 0 && (len < 6 || memcmp(text, "little", 6) != 0)) {
        rc = glm_fail(err, GLM_EFORMAT, "%s: written by a big-endian machine", f->path);
    }
    free(text);
    return rc;
}


static int
pt_zip_load(pt_file_t *f, glm_err_t *err)
{
    zip_uint64_t  member = 0;
    size_t        used;
    int           rc;

    if ((rc = pt_zip_open(f, err)) != 0) return rc;
    if ((rc = pt_zip_root(f, &member, err)) != 0) return rc;
    if ((rc = pt_zip_byteorder(f, err)) != 0) return rc;
    rc = pt_zip_slurp(f, member, "data.pkl", PK_MAX_INPUT, &f->pickle, &f->pickle_len, err);
    if (rc != 0) return rc;
    return pk_load(f->arena, f->pickle, f->pickle_len, f->path, &f->top, &used, err);
}


int
pt_pread(const pt_file_t *f, void *buf, size_t n, uint64_t at, glm_err_t *err)
{
    char  place[300];

    if (at <= f->size && n <= f->size - at) return vol_read(f->vol, buf, n, f->at + at, err);
    return glm_fail(err, GLM_EFORMAT, "%s: cut short", pt_place(f, f->size, place, sizeof(place)));
}


/* The pickles at the start: magic, protocol, machine, object, keys. */
static int
pt_legacy_pickles(pt_file_t *f, glm_err_t *err)
{
    const pk_value_t  *v[5], *little;
    size_t             i, used;
    int                rc;

    for (i = 0; i < 5; i++) {
        rc = pk_load(f->arena, f->pickle + f->tail, f->pickle_len - f->tail, f->path, &v[i], &used,
                     err);
        if (rc != 0) return rc;
        f->tail += used;
        if (i == 0 && (v[0]->type != PK_BIGINT || v[0]->str.len != sizeof(pt_magic)
                       || memcmp(v[0]->str.s, pt_magic, sizeof(pt_magic)) != 0))
        {
            return glm_fail(err, GLM_EFORMAT, "%s: not a file of torch.save", f->path);
        }
    }
    if (v[1]->type != PK_INT || v[1]->i != 1001) {
        return glm_fail(err, GLM_EFORMAT, "%s: a protocol of torch.save that is not 1001", f->path);
    }
    little = pk_get(v[2], "little_endian");
    if (little == NULL || little->type != PK_BOOL || !little->i) {
        return glm_fail(err, GLM_EFORMAT, "%s: written by a big-endian machine", f->path);
    }
    if (v[4]->type != PK_LIST) {
        return glm_fail(err, GLM_EFORMAT, "%s: no list of storages", f->path);
    }
    f->top = v[3];
    f->keys = v[4];
    return 0;
}


static int
pt_legacy_load(pt_file_t *f, glm_err_t *err)
{
    int  rc;

    f->pickle_len = f->size < PK_MAX_INPUT ? (size_t) f->size : PK_MAX_INPUT;
    f->pickle = malloc(f->pickle_len + 1);
    if (f->pickle == NULL) return glm_fail(err, GLM_ENOMEM, "%s: no memory", f->path);
    if ((rc = pt_pread(f, f->pickle, f->pickle_len, 0, err)) != 0) return rc;
    return pt_legacy_pickles(f, err);
}


int
pt_load(pt_file_t *f, glm_err_t *err)
{
    uint8_t  head[4];
    int      rc;

    if (f->size < sizeof(head)) {
        return glm_fail(err, GLM_EFORMAT, "%s: %llu bytes are no checkpoint file", f->path,
                        (unsigned long long) f->size);
    }
    if ((rc = pt_pread(f, head, sizeof(head), 0, err)) != 0) return rc;
    if (memcmp(head, "PK\3\4", 4) == 0) return pt_zip_load(f, err);
    if (head[0] != 0x80) {                       /* PROTO begins every pickle */
        return glm_fail(err, GLM_EFORMAT, "%s: neither form of torch.save", f->path);
    }
    return pt_legacy_load(f, err);
}


static int
pt_key_cmp(pk_str_t a, pk_str_t b)
{
    size_t  n = a.len < b.len ? a.len : b.len;
    int     c = memcmp(a.s, b.s, n);

    return c ? c : (a.len > b.len) - (a.len < b.len);
}


static int
pt_by_key(const void *a, const void *b)
{
    return pt_key_cmp(((const pt_store_t *) a)->key, ((const pt_store_t *) b)->key);
}


const pt_store_t *
pt_find_store(const pt_file_t *f, pk_str_t key)
{
    pt_store_t  want = { .key = key };

    if (f->nstores == 0) return NULL;
    return bsearch(&want, f->stores, f->nstores, sizeof(want), pt_by_key);
}


/* One entry a key; two namings of one key must agree. */
static int
pt_collect_stores(pt_file_t *f, glm_err_t *err)
{
    const pk_storage_t  *s;
    pt_store_t          *st;
    size_t               i, n = 0;

    for (s = pk_storages(f->arena); s != NULL; s = s->next) n++;
    f->stores = calloc(n + 1, sizeof(*f->stores));
    if (f->stores == NULL) return glm_fail(err, GLM_ENOMEM, "%s: no memory", f->path);
    for (s = pk_storages(f->arena), i = 0; s != NULL; s = s->next, i++) {
        f->stores[i].key = s->key;
        f->stores[i].dtype = s->dtype;
        f->stores[i].numel = s->numel;
    }
    if (n > 1) qsort(f->stores, n, sizeof(*f->stores), pt_by_key);
    for (i = 0; i < n; i++) {
        st = f->nstores ? &f->stores[f->nstores - 1] : NULL;
        if (st == NULL || pt_by_key(st, &f->stores[i]) != 0) {
            f->stores[f->nstores++] = f->stores[i];
            continue;
        }
        if (st->dtype != f->stores[i].dtype || st->numel != f->stores[i].numel) {
            return glm_fail(err, GLM_EFORMAT, "%s: storage %.*s is described in two ways", f->path,
                            (int) st->key.len, st->key.s);
        }
    }
    return 0;
}


static void
pt_zip_locate(pt_file_t *f, pt_store_t *s)
{
    char         name[400];
    zip_stat_t   st;
    zip_int64_t  i;

    snprintf(name, sizeof(name), "%sdata/%.*s", f->root, (int) s->key.len, s->key.s);
    zip_stat_init(&st);
    i = zip_name_locate(f->zip, name, ZIP_FL_ENC_RAW);
    if (i < 0 || zip_stat_index(f->zip, (zip_uint64_t) i, 0, &st) != 0
        || !(st.valid & ZIP_STAT_SIZE) || !(st.valid & ZIP_STAT_COMP_METHOD))
    {
        return;
    }
    s->present = 1;
    s->member = (zip_uint64_t) i;
    s->bytes = st.size;
    s->packed = st.comp_method != ZIP_CM_STORE;
}


/* Storages that lie past the file's end stay absent; whoever needs one says so. */
static int
pt_legacy_locate(pt_file_t *f, glm_err_t *err)
{
    pt_store_t  *s;
    uint64_t     at = f->tail, bytes;
    int64_t      count;
    size_t       i;
    int          rc;

    for (i = 0; i < f->keys->seq.n; i++) {
        s = f->keys->seq.item[i]->type != PK_STR
            ? NULL : (pt_store_t *) pt_find_store(f, f->keys->seq.item[i]->str);
        if (s == NULL || s->present) {
            return glm_fail(err, GLM_EFORMAT, "%s: the list of storages names one that no tensor "
                            "uses, or one twice", f->path);
        }
        if (f->size - at < sizeof(count)) return 0;
        if ((rc = pt_pread(f, &count, sizeof(count), at, err)) != 0) return rc;
        at += sizeof(count);
        if (count < 0 || (uint64_t) count != s->numel) {
            return glm_fail(err, GLM_EFORMAT, "%s: storage %.*s has %lld elements, its tensors say "
                            "%llu", f->path, (int) s->key.len, s->key.s, (long long) count,
                            (unsigned long long) s->numel);
        }
        bytes = s->numel * pt_dtype_size(s->dtype);     /* numel is below 2^60 */
        s->offset = at;
        s->bytes = bytes < f->size - at ? bytes : f->size - at;
        s->present = 1;
        if (s->bytes < bytes) return 0;
        at += bytes;
    }
    return 0;
}


int
pt_index_stores(pt_file_t *f, glm_err_t *err)
{
    size_t  i;
    int     rc = pt_collect_stores(f, err);

    if (rc != 0) return rc;
    if (f->zip == NULL) return pt_legacy_locate(f, err);
    for (i = 0; i < f->nstores; i++) pt_zip_locate(f, &f->stores[i]);
    return 0;
}
