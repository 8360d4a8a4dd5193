/*
 * loader: see loader.h.  Everything it knows about the architecture is the
 * table of tensors below.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/half.h"
#include "loader.h"
#include "safetensors.h"

struct glm_loader_s {
    glm_st_reader_t     *st;      /* NULL: dummy */
    const glm_config_t  *cfg;
    char                 dir[256];   /* for messages */
};

typedef enum { DIM_ONE, DIM_V, DIM_H, DIM_3H, DIM_2I, DIM_I } dim_t;

typedef struct {
    const char  *name;            /* after "layers.N." for those of a layer */
    dim_t        rows, cols;      /* DIM_ONE columns: a vector */
} spec_t;

static const spec_t  per_layer[] = {
    { "input_layernorm.weight", DIM_H, DIM_ONE },
    { "input_layernorm.bias", DIM_H, DIM_ONE },
    { "attention.query_key_value.weight", DIM_3H, DIM_H },
    { "attention.query_key_value.bias", DIM_3H, DIM_ONE },
    { "attention.dense.weight", DIM_H, DIM_H },
    { "attention.dense.bias", DIM_H, DIM_ONE },
    { "post_attention_layernorm.weight", DIM_H, DIM_ONE },
    { "post_attention_layernorm.bias", DIM_H, DIM_ONE },
    { "mlp.dense_h_to_4h.weight", DIM_2I, DIM_H },
    { "mlp.dense_h_to_4h.bias", DIM_2I, DIM_ONE },
    { "mlp.dense_4h_to_h.weight", DIM_H, DIM_I },
    { "mlp.dense_4h_to_h.bias", DIM_H, DIM_ONE },
};
static const spec_t  global[] = {
    { "word_embeddings.weight", DIM_V, DIM_H },
    { "final_layernorm.weight", DIM_H, DIM_ONE },
    { "final_layernorm.bias", DIM_H, DIM_ONE },
};

#define COUNT(a)  ((int) (sizeof(a) / sizeof((a)[0])))

static int64_t
dim_of(const glm_config_t *cfg, dim_t d)
{
    switch (d) {
    case DIM_V:   return cfg->vocab;
    case DIM_H:   return cfg->hidden;
    case DIM_3H:  return 3 * (int64_t) cfg->hidden;
    case DIM_2I:  return 2 * (int64_t) cfg->inner;
    case DIM_I:   return cfg->inner;
    default:      return 1;
    }
}

/* Tensor number i of the architecture; -1 past the last. */
static int
spec_at(const glm_config_t *cfg, int i, char name[128], const spec_t **spec)
{
    int  layer = i / COUNT(per_layer);

    if (layer < cfg->layers) {
        *spec = &per_layer[i % COUNT(per_layer)];
        snprintf(name, 128, "layers.%d.%s", layer, (*spec)->name);
        return 0;
    }
    i -= cfg->layers * COUNT(per_layer);
    if (i >= COUNT(global)) return -1;
    *spec = &global[i];
    snprintf(name, 128, "%s", (*spec)->name);
    return 0;
}

static void
shape_text(char out[64], int ndim, const int64_t *dim)
{
    int  n = 0;

    n += snprintf(out, 64, "[");
    for (int i = 0; i < ndim && n < 40; i++) {
        n += snprintf(out + n, 64 - (size_t) n, i ? ", %lld" : "%lld", (long long) dim[i]);
    }
    snprintf(out + n, 64 - (size_t) n, "]");
}

static int
check_tensor(const glm_loader_t *l, const char *name, const spec_t *spec, glm_err_t *err)
{
    const glm_tensor_t  *t = glm_st_find(l->st, name);
    int64_t              want[2] = { dim_of(l->cfg, spec->rows), dim_of(l->cfg, spec->cols) };
    int                  ndim = spec->cols == DIM_ONE ? 1 : 2;
    char                 has[64], wants[64];

    shape_text(wants, ndim, want);
    if (t == NULL) {
        return glm_fail(err, GLM_ENOENT, "%s: tensor %s F16 %s is missing", l->dir, name,
            wants);
    }
    if (t->dtype == GLM_F16 && t->ndim == ndim
        && memcmp(t->dim, want, (size_t) ndim * sizeof(want[0])) == 0) return 0;
    shape_text(has, t->ndim, t->dim);
    return glm_fail(err, GLM_EFORMAT, "%s: tensor %s is %s %s, config.json wants F16 %s",
        t->file, name, glm_dtype_name(t->dtype), has, wants);
}

int
glm_loader_check(const glm_loader_t *l, glm_err_t *err)
{
    const spec_t  *spec;
    char           name[128];
    int            rc;

    if (l->st == NULL) return 0;
    for (int i = 0; spec_at(l->cfg, i, name, &spec) == 0; i++) {
        if ((rc = check_tensor(l, name, spec, err)) != 0) return rc;
    }
    return 0;
}

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

static int
ends_with(const char *s, const char *end)
{
    size_t  n = strlen(s), m = strlen(end);

    return n >= m && strcmp(s + n - m, end) == 0;
}

static void
dummy_slice(const glm_slice_t *s, uint16_t *dst)
{
    uint64_t  seed = fnv1a64(s->name), i;
    float     base = 0, amp = sqrtf(3.0f / (float) s->cols), u;

    if (ends_with(s->name, "layernorm.weight")) {
        base = 1;
        amp = 0.1f;
    } else if (ends_with(s->name, ".bias")) {
        amp = 0.02f;
    } else if (strcmp(s->name, "word_embeddings.weight") == 0) {
        amp = sqrtf(12.0f / (float) s->cols);
    }
    for (int32_t r = s->row; r < s->row + s->nrows; r++) {
        i = (uint64_t) r * (uint64_t) s->cols + (uint64_t) s->col;
        for (int32_t c = 0; c < s->ncols; c++, i++) {
            u = (float) (splitmix64(seed + i) >> 40) * 0x1p-23f - 1;
            *dst++ = glm_float_to_half(fmaf(amp, u, base));
        }
    }
}

int
glm_loader_slice(const glm_loader_t *l, const glm_slice_t *s, uint16_t *dst, glm_err_t *err)
{
    const glm_tensor_t  *t;
    const uint16_t      *src;

    if (l->st == NULL) {
        dummy_slice(s, dst);
        return 0;
    }
    t = glm_st_find(l->st, s->name);
    if (t == NULL || t->size != (size_t) s->rows * (size_t) s->cols * sizeof(uint16_t)) {
        return glm_fail(err, GLM_EFORMAT, "%s: tensor %s is not what it was", l->dir, s->name);
    }
    src = (const uint16_t *) t->data + (size_t) s->row * (size_t) s->cols + s->col;
    for (int32_t r = 0; r < s->nrows; r++, src += s->cols, dst += s->ncols) {
        memcpy(dst, src, (size_t) s->ncols * sizeof(uint16_t));
    }
    return 0;
}

/* Four lanes of xor and multiply, folded: as fast as memory gives it. */
static uint64_t
hash_bytes(uint64_t h, const void *data, size_t n)
{
    const uint8_t  *p = data;
    uint64_t        lane[4] = { h, h + 1, h + 2, h + 3 }, w[4];

    for (size_t left = n; left > 0; p += sizeof(w)) {
        size_t  k = left < sizeof(w) ? left : sizeof(w);

        memset(w, 0, sizeof(w));
        memcpy(w, p, k);
        for (int i = 0; i < 4; i++) {
            lane[i] = (lane[i] ^ w[i]) * 0x9e3779b97f4a7c15u;
            lane[i] ^= lane[i] >> 29;
        }
        left -= k;
        if (left == 0) break;
    }
    h = splitmix64(n);
    for (int i = 0; i < 4; i++) h = splitmix64(h ^ lane[i]);
    return h;
}

uint64_t
glm_loader_hash(const glm_loader_t *l)
{
    const glm_config_t  *c = l->cfg;
    const glm_tensor_t  *t;
    const spec_t        *spec;
    int32_t              size[8] = { c->layers, c->hidden, c->inner, c->heads, c->vocab,
                                     c->max_seq, (int32_t) c->quant, c->quant_group };
    uint64_t             h = hash_bytes(fnv1a64("glm"), size, sizeof(size));
    char                 name[128];

    h = hash_bytes(h, &c->ln_eps, sizeof(c->ln_eps));
    if (l->st == NULL) return h ^ fnv1a64("dummy");
    for (int i = 0; spec_at(c, i, name, &spec) == 0; i++) {
        t = glm_st_find(l->st, name);
        if (t != NULL) h = hash_bytes(h ^ fnv1a64(name), t->data, t->size);
    }
    return h;
}

int
glm_loader_open(glm_loader_t **out, const char *dir, const glm_config_t *cfg, int dummy,
    glm_err_t *err)
{
    glm_loader_t  *l;
    int            rc;

    *out = NULL;
    if (cfg->quant != GLM_QUANT_NONE) {
        return glm_fail(err, GLM_EINVAL, "%s: %s weights cannot be loaded by this build", dir,
            cfg->quant == GLM_QUANT_INT8 ? "int8" : "int4");
    }
    l = calloc(1, sizeof(*l));
    if (l == NULL) return glm_fail(err, GLM_ENOMEM, "no memory for the loader");
    l->cfg = cfg;
    snprintf(l->dir, sizeof(l->dir), "%s", dir);
    if (!dummy && (rc = glm_st_open(&l->st, dir, err)) != 0) {
        free(l);
        return rc;
    }
    *out = l;
    return 0;
}

void
glm_loader_close(glm_loader_t *l)
{
    if (l == NULL) return;
    if (l->st != NULL) glm_st_close(l->st);
    free(l);
}
