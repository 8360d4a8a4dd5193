/*
 * loader_hash: the one pass over all values: their hash, and their checksums
 * where the files have them.  Threads take whole tensors; what comes out does
 * not depend on how many there are.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include <zlib.h>

#include "comm.h"
#include "loader.h"

#define HASH_PIECE    ((size_t) 1 << 18)    /* stays in the cache between the two */
#define HASH_THREADS  16

typedef struct {
    const glm_loader_t  *l;
    int                  n;       /* tensors */
    uint64_t            *hash;    /* (n) */
    atomic_int           next;
    pthread_mutex_t      lock;    /* of what follows */
    int                  bad;     /* the first tensor that failed; n: none */
    int                  rc;
    glm_err_t           *err;
} pass_t;

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

/* Four lanes of xor and multiply: as fast as memory gives it.  n is a multiple
 * of 32 but at the end. */
static void
mix(uint64_t lane[4], const uint8_t *p, size_t n)
{
    uint64_t  w[4];
    size_t    k;

    for ( ; n > 0; p += k, n -= k) {
        k = n < sizeof(w) ? n : sizeof(w);
        memset(w, 0, sizeof(w));
        memcpy(w, p, k);
        for (int i = 0; i < 4; i++) {
            lane[i] = (lane[i] ^ w[i]) * 0x9e3779b97f4a7c15u;
            lane[i] ^= lane[i] >> 29;
        }
    }
}

/* h and the values; crc, when not NULL, gets theirs. */
static uint64_t
hash_bytes(uint64_t h, const void *data, size_t n, uint32_t *crc)
{
    const uint8_t  *p = data;
    uint64_t        lane[4] = { h, h + 1, h + 2, h + 3 };

    for (size_t at = 0, k; at < n; at += k) {
        k = n - at < HASH_PIECE ? n - at : HASH_PIECE;
        if (crc != NULL) *crc = (uint32_t) crc32_z(*crc, p + at, k);
        mix(lane, p + at, k);
    }
    h = splitmix64(n);
    for (int i = 0; i < 4; i++) h = splitmix64(h ^ lane[i]);
    return h;
}

static int
checked(uint64_t *h, const void *data, uint64_t size, int64_t crc, const char *file,
    const char *name, const char *what, glm_err_t *err)
{
    uint32_t  is = 0;

    *h = hash_bytes(*h, data, (size_t) size, crc >= 0 ? &is : NULL);
    if (crc < 0 || is == (uint32_t) crc) return 0;
    return glm_fail(err, GLM_EFORMAT, "%s: tensor %s%s is damaged: its CRC-32 is %08x, not %08x",
        file, name, what, (unsigned) is, (unsigned) crc);
}

static int
tensor_hash(const glm_loader_t *l, const char *name, uint64_t *h, glm_err_t *err)
{
    glm_tensor_t  t;
    int32_t       stored[2];
    int           rc;

    if ((rc = glm_loader_tensor(l, name, &t, err)) != 0) return rc;
    stored[0] = (int32_t) t.type;
    stored[1] = t.groups;
    *h = hash_bytes(fnv1a64(name), stored, sizeof(stored), NULL);
    if (t.data == NULL) return 0;
    rc = checked(h, t.data, t.size, t.crc, t.file, name, "", err);
    if (rc != 0 || t.scale == NULL) return rc;
    return checked(h, t.scale, t.scale_size, t.scale_crc, t.file, name, "_scale", err);
}

static void *
hash_some(void *arg)
{
    pass_t     *p = arg;
    glm_err_t   err;
    char        name[128];
    int         i, rc;

    while ((i = atomic_fetch_add(&p->next, 1)) < p->n) {
        err.text[0] = '\0';
        (void) glm_loader_name(p->l, i, name);
        if ((rc = tensor_hash(p->l, name, &p->hash[i], &err)) == 0) continue;
        pthread_mutex_lock(&p->lock);
        if (i < p->bad) {
            p->bad = i;
            p->rc = rc;
            if (p->err != NULL) *p->err = err;
        }
        pthread_mutex_unlock(&p->lock);
    }
    return NULL;
}

static void
hash_all(pass_t *p)
{
    pthread_t  thread[HASH_THREADS];
    int        n = 0, cores = glm_comm_cores();

    /* this thread is one of them, and all where no other can be had */
    while (n < cores - 1 && n < HASH_THREADS
           && pthread_create(&thread[n], NULL, hash_some, p) == 0) n++;
    (void) hash_some(p);
    while (n > 0) pthread_join(thread[--n], NULL);
}

int
glm_loader_hash(const glm_loader_t *l, uint64_t *out, glm_err_t *err)
{
    const glm_config_t  *c = glm_loader_config(l);
    int32_t              size[6] = { c->layers, c->hidden, c->inner, c->heads, c->vocab,
                                     c->max_seq };
    pass_t               p = { .l = l, .err = err };
    glm_tensor_t         t;
    char                 name[128];

    while (glm_loader_name(l, p.n, name) == 0) p.n++;
    p.bad = p.n;
    p.hash = calloc((size_t) p.n, sizeof(*p.hash));
    if (p.hash == NULL) return glm_fail(err, GLM_ENOMEM, "no memory to hash the weights");
    pthread_mutex_init(&p.lock, NULL);
    hash_all(&p);
    pthread_mutex_destroy(&p.lock);

    *out = hash_bytes(fnv1a64("glm"), size, sizeof(size), NULL);
    *out = hash_bytes(*out, &c->ln_eps, sizeof(c->ln_eps), NULL);
    if (p.rc == 0 && glm_loader_tensor(l, name, &t, NULL) == 0 && t.data == NULL) {
        *out ^= fnv1a64("dummy");
    }
    for (int i = 0; i < p.n; i++) *out = splitmix64(*out ^ p.hash[i]);
    free(p.hash);
    return p.rc;
}
