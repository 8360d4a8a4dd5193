/*
 * loader: see loader.h.  Everything it knows about the architecture is the
 * table of tensors below.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/half.h"
#include "glm_hash.h"
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
    int          linear;          /* may be quantised */
} spec_t;

static const spec_t  per_layer[] = {
    { "input_layernorm.weight", DIM_H, DIM_ONE, 0 },
    { "input_layernorm.bias", DIM_H, DIM_ONE, 0 },
    { "attention.query_key_value.weight", DIM_3H, DIM_H, 1 },
    { "attention.query_key_value.bias", DIM_3H, DIM_ONE, 0 },
    { "attention.dense.weight", DIM_H, DIM_H, 1 },
    { "attention.dense.bias", DIM_H, DIM_ONE, 0 },
    { "post_attention_layernorm.weight", DIM_H, DIM_ONE, 0 },
    { "post_attention_layernorm.bias", DIM_H, DIM_ONE, 0 },
    { "mlp.dense_h_to_4h.weight", DIM_2I, DIM_H, 1 },
    { "mlp.dense_h_to_4h.bias", DIM_2I, DIM_ONE, 0 },
    { "mlp.dense_4h_to_h.weight", DIM_H, DIM_I, 1 },
    { "mlp.dense_4h_to_h.bias", DIM_H, DIM_ONE, 0 },
};
static const spec_t  global[] = {
    { "word_embeddings.weight", DIM_V, DIM_H, 0 },
    { "final_layernorm.weight", DIM_H, DIM_ONE, 0 },
    { "final_layernorm.bias", DIM_H, DIM_ONE, 0 },
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

/* NULL: no tensor of the architecture has that name.  *index is its number. */
static const spec_t *
spec_of(const glm_config_t *cfg, const char *name, int *index)
{
    const spec_t  *table = global;
    int            n = COUNT(global), layer, at = 0;
    char           again[128];

    if (sscanf(name, "layers.%d.%n", &layer, &at) == 1 && at > 0) {
        snprintf(again, sizeof(again), "layers.%d.", layer);
        if (layer < 0 || layer >= cfg->layers || strncmp(name, again, strlen(again)) != 0) {
            return NULL;
        }
        table = per_layer;
        n = COUNT(per_layer);
        name += at;
    }
    *index = (at > 0 ? layer : cfg->layers) * COUNT(per_layer);
    for (int i = 0; i < n; i++, ++*index) {
        if (strcmp(table[i].name, name) == 0) return &table[i];
    }
    return NULL;
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
has_shape(const glm_stored_t *s, glm_dtype_t dtype, int ndim, int64_t rows, int64_t cols)
{
    return s->dtype == dtype && s->ndim == ndim && s->dim[0] == rows
        && (ndim == 1 || s->dim[1] == cols);
}

/* Type by dtype and shape: int4 has half of the columns. */
static int
find_type(const glm_loader_t *l, const char *name, const spec_t *spec, glm_tensor_t *t,
    glm_err_t *err)
{
    const glm_stored_t  *s = glm_st_find(l->st, name);
    int                  ndim = spec->cols == DIM_ONE ? 1 : 2;
    char                 has[64], wants[64];

    shape_text(wants, ndim, (int64_t [2]) { t->rows, t->cols });
    if (s == NULL) {
        return glm_fail(err, GLM_ENOENT, "%s: tensor %s F16 %s is missing", l->dir, name,
            wants);
    }
    t->data = s->data;
    t->file = s->file;
    t->fd = s->fd;
    t->offset = s->offset;
    t->size = s->size;
    t->crc = s->crc;
    if (has_shape(s, GLM_F16, ndim, t->rows, t->cols)) return 0;
    if (spec->linear && has_shape(s, GLM_I8, 2, t->rows, t->cols)) {
        t->type = GLM_T_INT8;
        return 0;
    }
    if (spec->linear && t->cols % 2 == 0 && has_shape(s, GLM_I8, 2, t->rows, t->cols / 2)) {
        t->type = GLM_T_INT4;
        return 0;
    }
    shape_text(has, s->ndim, s->dim);
    return glm_fail(err, GLM_EFORMAT, "%s: tensor %s is %s %s, config.json wants F16 %s%s",
        s->file, name, glm_dtype_name(s->dtype), has, wants,
        spec->linear ? ", or I8 of that shape, or of half the columns (int4)" : "");
}

/* A group is whole fragments of what kernels take at once. */
static int
groups_ok(int64_t cols, int64_t groups)
{
    return groups > 0 && cols % groups == 0 && cols / groups % 16 == 0;
}

static int
find_scale(const glm_loader_t *l, const char *name, glm_tensor_t *t, glm_err_t *err)
{
    const glm_stored_t  *s;
    char                 full[160], has[64];

    snprintf(full, sizeof(full), "%s_scale", name);
    s = glm_st_find(l->st, full);
    if (t->type == GLM_T_F16) {
        if (s == NULL) return 0;
        return glm_fail(err, GLM_EFORMAT, "%s: %s is there, but %s is F16", s->file, full, name);
    }
    if (s == NULL) {
        return glm_fail(err, GLM_ENOENT, "%s: tensor %s F16 [%d, groups] is missing, and %s is "
            "I8", t->file, full, t->rows, name);
    }
    if (s->dtype != GLM_F16 || s->ndim != 2 || s->dim[0] != t->rows
        || !groups_ok(t->cols, s->dim[1]))
    {
        shape_text(has, s->ndim, s->dim);
        return glm_fail(err, GLM_EFORMAT, "%s: tensor %s is %s %s, wanted is F16 [%d, groups] "
            "such that a group has a multiple of 16 of the %d columns", s->file, full,
            glm_dtype_name(s->dtype), has, t->rows, t->cols);
    }
    t->groups = (int32_t) s->dim[1];
    t->scale = s->data;
    t->scale_fd = s->fd;
    t->scale_offset = s->offset;
    t->scale_size = s->size;
    t->scale_crc = s->crc;
    return 0;
}

static glm_quant_t
quant_of(const glm_tensor_t *t)
{
    return (glm_quant_t) { t->type, t->groups > 1 ? t->cols / t->groups : 0 };
}

static int
check_record(const glm_loader_t *l, const char *name, const glm_tensor_t *t, glm_err_t *err)
{
    glm_quant_t  want = glm_config_quant(l->cfg, name), has = quant_of(t);
    char         wants[32], is[32];

    (void) glm_quant_text(want, wants);
    /* 0: a row, or each rank's part of it in files that the original quantised */
    if (want.group == 0) want.group = has.group;
    else if (want.group == t->cols) want.group = 0;
    if (want.type == has.type && want.group == has.group) return 0;
    return glm_fail(err, GLM_EFORMAT, "%s: tensor %s is %s, config.json records %s", t->file,
        name, glm_quant_text(has, is), wants);
}

static uint32_t
fnv1a32(const char *s)
{
    uint32_t  h = 0x811c9dc5u;

    for ( ; *s; s++) h = (h ^ (uint8_t) *s) * 0x01000193u;
    return h;
}

static int
ends_with(const char *s, const char *end)
{
    size_t  n = strlen(s), m = strlen(end);

    return n >= m && strcmp(s + n - m, end) == 0;
}

/* Mean of q * q where each of its bits is as often 0 as 1. */
static float
mean_square(glm_ttype_t type)
{
    float  n = type == GLM_T_INT8 ? 256 : 16;

    return (n * n + 2) / 12;
}

static int
dummy_quant(const glm_loader_t *l, const char *name, glm_tensor_t *t, glm_err_t *err)
{
    glm_quant_t  q = glm_config_quant(l->cfg, name);
    char         is[32];
    float        s = 1 / sqrtf((float) t->cols * mean_square(q.type));

    t->type = q.type;
    if (q.type == GLM_T_F16) return 0;
    t->groups = q.group == 0 ? 1 : t->cols / q.group;
    if ((q.group != 0 && t->cols % q.group != 0) || !groups_ok(t->cols, t->groups)) {
        return glm_fail(err, GLM_EFORMAT, "%s: \"quantization\" of %s is %s, but it has %d columns: "
            "a group divides them and is a multiple of 16", l->dir, name,
            glm_quant_text(q, is), t->cols);
    }
    t->lo = 0.75f * s;
    t->hi = 1.25f * s;
    return 0;
}

static int
dummy_tensor(const glm_loader_t *l, const char *name, const spec_t *spec, glm_tensor_t *t,
    glm_err_t *err)
{
    float  base = 0, amp = sqrtf(3.0f / (float) t->cols);
    int    rc;

    if (ends_with(name, "layernorm.weight")) {
        base = 1;
        amp = 0.1f;
    } else if (ends_with(name, ".bias")) {
        amp = 0.02f;
    } else if (strcmp(name, "word_embeddings.weight") == 0) {
        amp = sqrtf(12.0f / (float) t->cols);
    }
    t->seed = fnv1a32(name);
    t->lo = base - amp;
    t->hi = base + amp;
    if (spec->linear && (rc = dummy_quant(l, name, t, err)) != 0) return rc;
    t->size = (uint64_t) t->rows * (uint64_t) t->cols;
    t->size = t->type == GLM_T_F16 ? 2 * t->size : t->type == GLM_T_INT4 ? t->size / 2 : t->size;
    t->scale_size = 2 * (uint64_t) t->rows * (uint64_t) t->groups;
    return 0;
}

int
glm_loader_tensor(const glm_loader_t *l, const char *name, glm_tensor_t *out, glm_err_t *err)
{
    int            rc, index;
    const spec_t  *spec = spec_of(l->cfg, name, &index);

    if (spec == NULL) {
        return glm_fail(err, GLM_EINVAL, "%s: no tensor of this model is called %.64s", l->dir,
            name);
    }
    *out = (glm_tensor_t) { .index = index, .rows = (int32_t) dim_of(l->cfg, spec->rows),
                            .cols = (int32_t) dim_of(l->cfg, spec->cols),
                            .fd = -1, .scale_fd = -1, .crc = -1,
                            .scale_crc = -1 };
    if (l->st == NULL) return dummy_tensor(l, name, spec, out, err);
    if ((rc = find_type(l, name, spec, out, err)) != 0
        || (rc = find_scale(l, name, out, err)) != 0) return rc;
    return spec->linear && l->cfg->recorded ? check_record(l, name, out, err) : 0;
}

int
glm_loader_check(const glm_loader_t *l, glm_err_t *err)
{
    const glm_config_t  *c = l->cfg;
    const spec_t        *spec;
    glm_tensor_t         t;
    char                 name[128];
    int                  index, rc;

    for (int i = 0; i < c->nquant_tensors; i++) {
        spec = spec_of(c, c->quant_tensors[i].name, &index);
        if (spec == NULL || !spec->linear) {
            return glm_fail(err, GLM_EFORMAT, "%s: \"quantization.tensors\" of config.json lists "
                "%s, which is no weight of a layer's linear", l->dir, c->quant_tensors[i].name);
        }
    }
    for (int i = 0; spec_at(c, i, name, &spec) == 0; i++) {
        if ((rc = glm_loader_tensor(l, name, &t, err)) != 0) return rc;
    }
    return 0;
}

static void
dummy_halves(uint16_t *dst, uint32_t seed, const glm_tensor_t *t, uint64_t first, int32_t n)
{
    float  span = t->hi - t->lo;

    for (int32_t i = 0; i < n; i++) {
        float  u = (float) (glm_hash(seed, first + (uint64_t) i) >> 8) * 0x1p-24f;

        dst[i] = glm_float_to_half(fmaf(span, u, t->lo));
    }
}

/* n bytes of the tensor from byte `first` on; words are little-endian. */
static void
dummy_bytes(uint8_t *dst, uint32_t seed, uint64_t first, size_t n)
{
    uint32_t  word = 0;

    for (uint64_t i = first; i < first + n; i++) {
        if (i % 4 == 0 || i == first) word = glm_hash(seed, i / 4);
        *dst++ = (uint8_t) (word >> i % 4 * 8);
    }
}

void
glm_tensor_slice(const glm_tensor_t *t, const glm_slice_t *s, void *dst)
{
    size_t    row = (size_t) t->size / (size_t) t->rows, n, at;
    uint8_t  *d = dst;

    n = row * (size_t) s->ncols / (size_t) t->cols;
    for (int32_t r = s->row; r < s->row + s->nrows; r++, d += n) {
        at = (size_t) r * row + row * (size_t) s->col / (size_t) t->cols;
        if (t->data != NULL) {
            memcpy(d, (const uint8_t *) t->data + at, n);
        } else if (t->type == GLM_T_F16) {
            dummy_halves((uint16_t *) (void *) d, t->seed, t, at / 2, s->ncols);
        } else {
            dummy_bytes(d, t->seed, at, n);
        }
    }
}

int32_t
glm_tensor_scales(const glm_tensor_t *t, const glm_slice_t *s, uint16_t *dst)
{
    int32_t   width, g0, n;
    uint64_t  at;

    if (t->groups == 0) return 0;
    width = t->cols / t->groups;
    g0 = s->col / width;
    n = (s->col + s->ncols - 1) / width + 1 - g0;
    for (int32_t r = s->row; r < s->row + s->nrows; r++, dst += n) {
        at = (uint64_t) r * (uint64_t) t->groups + (uint64_t) g0;
        if (t->scale != NULL) memcpy(dst, t->scale + at, (size_t) n * sizeof(*dst));
        else dummy_halves(dst, t->seed ^ GLM_SCALE_SEED, t, at, n);
    }
    return n;
}

const glm_config_t *
glm_loader_config(const glm_loader_t *l)
{
    return l->cfg;
}

int
glm_loader_name(const glm_loader_t *l, int i, char name[128])
{
    const spec_t  *spec;

    return spec_at(l->cfg, i, name, &spec);
}

void
glm_loader_describe(const glm_loader_t *l, char text[128], uint64_t *bytes)
{
    struct { glm_quant_t as; int n; }  kind[6];
    const spec_t  *spec;
    glm_tensor_t   t;
    glm_quant_t    q;
    char           name[128], as[32];
    int            nkinds = 0, k, len = 0;

    *bytes = 0;
    for (int i = 0; spec_at(l->cfg, i, name, &spec) == 0; i++) {
        if (glm_loader_tensor(l, name, &t, NULL) != 0) continue;
        *bytes += t.size + t.scale_size;
        if (!spec->linear) continue;
        q = quant_of(&t);
        for (k = 0; k < nkinds; k++) {
            if (kind[k].as.type == q.type && kind[k].as.group == q.group) break;
        }
        if (k == COUNT(kind)) continue;
        if (k == nkinds) {
            kind[nkinds].as = q;
            kind[nkinds++].n = 0;
        }
        kind[k].n++;
    }
    for (k = 0; k < nkinds; k++) {
        len += snprintf(text + len, 128 - (size_t) len, "%s%s", k > 0 ? ", " : "",
            glm_quant_text(kind[k].as, as));
        if (nkinds > 1) len += snprintf(text + len, 128 - (size_t) len, " (%d)", kind[k].n);
    }
}

int
glm_loader_open(glm_loader_t **out, const char *dir, const glm_config_t *cfg, int dummy,
    glm_err_t *err)
{
    glm_loader_t  *l;
    int            rc;

    *out = NULL;
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
