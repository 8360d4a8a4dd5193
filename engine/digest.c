/*
 * digest: see digest.h.  A tensor's hash is a sum over its rows, and its CRC-32 the
 * xor of what each run of rows adds to it, so that neither has an order.
 */
#include "digest.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include <zlib.h>

#include "comm.h"
#include "cpu/half.h"

#define RUN_BYTES  ((size_t) 1 << 18)   /* stays in the cache between hash and CRC */
#define THREADS    16

typedef struct {
    glm_tensor_t   t;
    char           name[128];
    uint64_t       key;           /* of name, type and groups */
    atomic_ullong  sum;           /* of the rows' hashes */
    atomic_uint    crc, scale_crc;
    atomic_llong   rows;          /* given */
} entry_t;

struct glm_digest_s {
    const glm_loader_t  *l;
    entry_t             *entry;   /* (n) */
    int                  n;
    atomic_int           next;    /* of glm_digest_mapped() */
    atomic_int           rc;
    pthread_mutex_t      lock;    /* of err */
    glm_err_t           *err;
};

static uint64_t
fnv1a64(const char *s)
{
    uint64_t  h = 0xcbf29ce484222325u;

    for ( ; *s; s++) h = (h ^ (uint8_t) *s) * 0x100000001b3u;
    return h;
}

static uint64_t
splitmix64(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static void
mix(uint64_t lane[4], const uint8_t p[32])
{
    uint64_t  w[4];

    memcpy(w, p, sizeof(w));
    for (int i = 0; i < 4; i++) {
        lane[i] = (lane[i] ^ w[i]) * 0x9e3779b97f4a7c15u;
        lane[i] ^= lane[i] >> 29;
    }
}

/* Four lanes of xor and multiply: as fast as memory gives it.  The last bytes are
 * filled up with zeros. */
static uint64_t
hash_bytes(uint64_t h, const void *data, size_t n)
{
    const uint8_t  *p = data, *end = p + n / 32 * 32;
    uint64_t        lane[4] = { h, h + 1, h + 2, h + 3 };
    uint8_t         last[32] = { 0 };

    for ( ; p < end; p += 32) mix(lane, p);
    if (n % 32 != 0) {
        memcpy(last, p, n % 32);
        mix(lane, last);
    }
    h = splitmix64(n);
    for (int i = 0; i < 4; i++) h = splitmix64(h ^ lane[i]);
    return h;
}

/* ---- rows ---- */

/*
 * Rows of width bytes, the first of them number `first` of the tensor's: their part of
 * its sum.  In crc, when not NULL, what they add to the CRC-32 of all that they
 * belong to, of which `after` bytes follow.
 */
static uint64_t
rows_sum(uint64_t key, uint64_t first, int32_t n, const uint8_t *p, size_t width,
    atomic_uint *crc, uint64_t after)
{
    uint64_t  sum = 0;
    uint32_t  c = 0;
    int32_t   run = (int32_t) (RUN_BYTES / width) + 1, k;

    for (int32_t r = 0; r < n; r += k, p += (size_t) k * width) {
        k = n - r < run ? n - r : run;
        if (crc != NULL) c = (uint32_t) crc32_z(c, p, (size_t) k * width);
        for (int32_t i = 0; i < k; i++) {
            sum += hash_bytes(splitmix64(key + first + (uint64_t) (r + i)),
                p + (size_t) i * width, width);
        }
    }
    /* a CRC of bytes and zeros behind them; those of parts add up by xor */
    if (crc != NULL) atomic_fetch_xor(crc, (unsigned) crc32_combine(c, 0, (off_t) after));
    return sum;
}

/* Whether any q that scale number g of a row belongs to is not 0. */
static int
any_value(const glm_tensor_t *t, const uint8_t *row, int32_t g)
{
    size_t  width = (size_t) t->size / (size_t) t->rows / (size_t) t->groups;

    row += (size_t) g * width;
    for (size_t i = 0; i < width; i++) {
        if (row[i] != 0) return 1;
    }
    return 0;
}

static int
check_scales(const entry_t *e, int32_t row, int32_t n, const uint8_t *data,
    const uint8_t *scale, glm_err_t *err)
{
    const glm_tensor_t  *t = &e->t;
    size_t               width = (size_t) t->size / (size_t) t->rows;
    uint16_t             s;

    for (int32_t r = 0; r < n; r++, data += width) {
        for (int32_t g = 0; g < t->groups; g++, scale += sizeof(s)) {
            memcpy(&s, scale, sizeof(s));
            if (s == 0 ? !any_value(t, data, g) : s < 0x7c00) continue;
            return glm_fail(err, GLM_EFORMAT, "%s: tensor %s_scale, row %d, group %d is %g%s",
                t->file, e->name, row + r, g, (double) glm_half_to_float(s),
                s == 0 ? " where weights are not 0" : ": not finite and positive");
        }
    }
    return 0;
}

int
glm_digest_rows(glm_digest_t *d, int i, int32_t row, int32_t n, const void *data,
    const void *scale, glm_err_t *err)
{
    entry_t             *e = &d->entry[i];
    const glm_tensor_t  *t = &e->t;
    int                  vector = t->cols == 1;
    size_t               width = (size_t) t->size / (vector ? 1 : (size_t) t->rows);
    size_t               swidth = (size_t) t->groups * sizeof(uint16_t);
    uint64_t             left = (uint64_t) (t->rows - row - n), sum;

    sum = rows_sum(e->key, (uint64_t) row, vector ? 1 : n, data, width,
        t->crc >= 0 ? &e->crc : NULL, vector ? 0 : left * width);
    if (scale != NULL) {
        sum += rows_sum(e->key, (uint64_t) t->rows + (uint64_t) row, n, scale, swidth,
            t->scale_crc >= 0 ? &e->scale_crc : NULL, left * swidth);
    }
    atomic_fetch_add(&e->sum, sum);
    atomic_fetch_add(&e->rows, n);
    return scale == NULL ? 0 : check_scales(e, row, n, data, scale, err);
}

/* ---- mapped files ---- */

static void *
some_tensors(void *arg)
{
    glm_digest_t  *d = arg;
    glm_err_t      err;
    int            i, rc;

    while (atomic_load(&d->rc) == 0 && (i = atomic_fetch_add(&d->next, 1)) < d->n) {
        const glm_tensor_t  *t = &d->entry[i].t;

        if (t->data == NULL) continue;
        err.text[0] = '\0';
        if ((rc = glm_digest_rows(d, i, 0, t->rows, t->data, t->scale, &err)) == 0) continue;
        pthread_mutex_lock(&d->lock);
        (void) glm_fail(d->err, rc, "%s", err.text);
        pthread_mutex_unlock(&d->lock);
        atomic_store(&d->rc, rc);
    }
    return NULL;
}

int
glm_digest_mapped(glm_digest_t *d, glm_err_t *err)
{
    pthread_t  thread[THREADS];
    int        n = 0, cores = glm_comm_cores();

    d->err = err;
    /* this thread is one of them, and all where no other can be had */
    while (n < cores - 1 && n < THREADS
           && pthread_create(&thread[n], NULL, some_tensors, d) == 0) n++;
    (void) some_tensors(d);
    while (n > 0) pthread_join(thread[--n], NULL);
    return atomic_load(&d->rc);
}

/* ---- the whole ---- */

static int
describe(entry_t *e, const glm_loader_t *l, int i, glm_err_t *err)
{
    int32_t  stored[2];
    int      rc;

    (void) glm_loader_name(l, i, e->name);
    if ((rc = glm_loader_tensor(l, e->name, &e->t, err)) != 0) return rc;
    stored[0] = (int32_t) e->t.type;
    stored[1] = e->t.groups;
    e->key = hash_bytes(fnv1a64(e->name), stored, sizeof(stored));
    return 0;
}

int
glm_digest_new(glm_digest_t **out, const glm_loader_t *l, glm_err_t *err)
{
    glm_digest_t  *d = calloc(1, sizeof(*d));
    char           name[128];
    int            rc = 0;

    *out = NULL;
    if (d == NULL) return glm_fail(err, GLM_ENOMEM, "no memory to hash the weights");
    d->l = l;
    pthread_mutex_init(&d->lock, NULL);
    while (glm_loader_name(l, d->n, name) == 0) d->n++;
    if ((d->entry = calloc((size_t) d->n, sizeof(*d->entry))) == NULL) {
        rc = glm_fail(err, GLM_ENOMEM, "no memory to hash the weights");
    }
    for (int i = 0; i < d->n && rc == 0; i++) rc = describe(&d->entry[i], l, i, err);
    if (rc == 0) *out = d;
    else glm_digest_free(d);
    return rc;
}

void
glm_digest_free(glm_digest_t *d)
{
    if (d == NULL) return;
    pthread_mutex_destroy(&d->lock);
    free(d->entry);
    free(d);
}

static int
check_crc(const entry_t *e, int64_t want, unsigned is, const char *what, glm_err_t *err)
{
    if (want < 0 || (uint32_t) want == is) return 0;
    return glm_fail(err, GLM_EFORMAT, "%s: tensor %s%s is damaged: its CRC-32 is %08x, not %08x",
        e->t.file, e->name, what, is, (unsigned) want);
}

static int
check_entry(const entry_t *e, glm_err_t *err)
{
    const glm_tensor_t  *t = &e->t;
    long long            rows = atomic_load(&e->rows);
    int                  rc;

    if (t->data == NULL) return 0;
    if (rows != t->rows) {
        return glm_fail(err, GLM_EIO, "%s: tensor %s: %lld of %d rows were read", t->file, e->name,
            rows, t->rows);
    }
    if ((rc = check_crc(e, t->crc, atomic_load(&e->crc), "", err)) != 0) return rc;
    return t->groups == 0 ? 0
         : check_crc(e, t->scale_crc, atomic_load(&e->scale_crc), "_scale", err);
}

int
glm_digest_end(const glm_digest_t *d, uint64_t *out, glm_err_t *err)
{
    const glm_config_t  *c = glm_loader_config(d->l);
    int32_t              size[6] = { c->layers, c->hidden, c->inner, c->heads, c->vocab,
                                     c->max_seq };
    uint64_t             h = hash_bytes(fnv1a64("glm"), size, sizeof(size));
    int                  rc;

    h = hash_bytes(h, &c->ln_eps, sizeof(c->ln_eps));
    if (d->n > 0 && d->entry[0].t.data == NULL) h ^= fnv1a64("dummy");
    for (int i = 0; i < d->n; i++) {
        const entry_t  *e = &d->entry[i];

        if ((rc = check_entry(e, err)) != 0) return rc;
        h = splitmix64(h ^ splitmix64(e->key + atomic_load(&e->sum)));
    }
    *out = h;
    return 0;
}
