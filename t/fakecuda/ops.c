/*
 * ops: twins of pack, fill, linear, norm, embed and sample.  Tiles have the sizes and
 * the order of the kernels'; inside one, outputs lie one after the other.
 */
#include "ops.h"

#include "cuda_size.h"
#include "glm_hash.h"

/* ---- weights ---- */

static int
tiles_ok(const glm_tiles_t *w)
{
    return w != NULL && w->k >= 256 && w->k % 256 == 0 && w->n >= 8 && w->n % 8 == 0
        && w->n <= GLM_MAX_TILES * GLM_TILE && w->type >= GLM_W_INT4 && w->type <= GLM_W_F16
        && w->tiles != NULL && fc_aligned(w->tiles) && fc_aligned(w->bias)
        && (!w->glu || w->n % 16 == 0);
}

/* Row of the source at a place of the tiles; -1: padding. */
static int
source_row(const glm_tiles_t *w, int at)
{
    if (at >= w->n) return -1;
    if (!w->glu) return at;
    return at % 16 < 8 ? at / 16 * 8 + at % 16 : w->n / 2 + at / 16 * 8 + at % 16 - 8;
}

static size_t
width_of(int type, int k)
{
    return (size_t) k * (type == GLM_W_INT4 ? 1 : type == GLM_W_INT8 ? 2 : 4) / 2;
}

typedef struct { glm_pack_args_t a; glm_tiles_t w; } pack_t;

/* One output of one tile. */
static void
pack_row(const pack_t *p, char *tile, int o, int row, int g)
{
    size_t           all = width_of(p->w.type, p->w.k), width = width_of(p->w.type, GLM_TILE);
    const uint16_t  *scale = p->a.scale;
    uint16_t         s = 0;
    char            *to = tile + (size_t) o * width;

    memset(to, 0, width);
    if (row >= 0) {
        memcpy(to, (const char *) p->a.src + (size_t) row * all + (size_t) g * width, width);
    }
    if (p->w.type == GLM_W_F16) return;
    if (row >= 0) s = scale[row * p->a.groups + (p->a.groups == 1 ? 0 : g)];
    memcpy(tile + GLM_TILE_DATA(p->w.type) + o * 2, &s, 2);
}

static void
run_pack(void *arg)
{
    pack_t  *p = arg;
    int      groups = p->w.k / GLM_TILE, outputs = (p->w.n + 255) / 256 * 256;
    char    *tile = p->w.tiles;

    if (!fakecuda_may(p->w.tiles, glm_cuda_tile_bytes(p->w.type, p->w.k, p->w.n))
        || !fakecuda_may(p->a.src, (size_t) p->w.n * width_of(p->w.type, p->w.k))
        || (p->w.type != GLM_W_F16
            && !fakecuda_may(p->a.scale, (size_t) p->w.n * (size_t) p->a.groups * 2)))
    {
        return;
    }
    for (int t = 0; t < outputs / GLM_TILE; t++) {
        for (int g = 0; g < groups; g++, tile += GLM_TILE_BYTES(p->w.type)) {
            for (int o = 0; o < GLM_TILE; o++) {
                pack_row(p, tile, o, source_row(&p->w, t * GLM_TILE + o), g);
            }
        }
    }
}

int
fc_pack(const glm_pack_args_t *a, glm_stream_t *s)
{
    pack_t  p;

    if (a == NULL || s == NULL || !tiles_ok(a->w) || a->src == NULL || !fc_aligned(a->src)) {
        return GLM_EINVAL;
    }
    if (a->w->type != GLM_W_F16
        && (a->scale == NULL || (a->groups != 1 && a->groups != a->w->k / GLM_TILE)))
    {
        return GLM_EINVAL;
    }
    p = (pack_t) { *a, *a->w };
    return fakecuda_enqueue(s, run_pack, &p, sizeof(p));
}

static void
run_fill(void *arg)
{
    const glm_fill_args_t  *a = arg;

    if (!fakecuda_may(a->dst, a->count * (a->f16 ? 2 : 4))) return;
    for (uint64_t i = 0; i < a->count; i++) {
        uint32_t  h = glm_hash(a->seed, a->first + i);

        if (!a->f16) {
            ((uint32_t *) a->dst)[i] = h;
            continue;
        }
        ((uint16_t *) a->dst)[i] =
            glm_float_to_half(fmaf(a->hi - a->lo, (float) (h >> 8) * 0x1p-24f, a->lo));
    }
}

int
fc_fill(const glm_fill_args_t *a, glm_stream_t *s)
{
    if (a == NULL || s == NULL || a->dst == NULL || !fc_aligned(a->dst)) return GLM_EINVAL;
    return fakecuda_enqueue(s, run_fill, a, sizeof(*a));
}

/* ---- linear ---- */

typedef struct {
    glm_linear_args_t  a;
    glm_tiles_t        w;
    char               again[GLM_CUDA_PREFILL_ROWS];    /* the row before once more, as
                                                           all are that hold nothing */
} linear_t;

/* A finite fp16, in a form that compilers make vectors of. */
static inline float
finite_half(uint16_t h)
{
    union { uint32_t u; float f; }  x = { (uint32_t) (h & 0x7fff) << 13 };

    x.f *= 0x1p112f;
    x.u |= (uint32_t) (h & 0x8000) << 16;
    return x.f;
}

/* 128 weights of an output; q * scale is exact in fp32. */
__attribute__((always_inline))
static inline void
unpack(const glm_tiles_t *w, const char *tile, int o, float *out)
{
    const uint8_t  *q = (const uint8_t *) tile + (size_t) o * width_of(w->type, GLM_TILE);
    float           scale;
    uint16_t        h, v[GLM_TILE];

    if (w->type == GLM_W_F16) {
        memcpy(v, q, sizeof(v));
        for (int i = 0; i < GLM_TILE; i++) out[i] = finite_half(v[i]);
        return;
    }
    memcpy(&h, tile + GLM_TILE_DATA(w->type) + o * 2, 2);
    scale = finite_half(h);
    for (int i = 0; i < GLM_TILE && w->type == GLM_W_INT8; i++) {
        out[i] = (float) (int8_t) q[i] * scale;
    }
    for (int i = 0; i < GLM_TILE / 2 && w->type == GLM_W_INT4; i++) {
        out[2 * i] = (float) ((int8_t) q[i] >> 4) * scale;
        out[2 * i + 1] = (float) ((int8_t) (q[i] << 4) >> 4) * scale;
    }
}

/* Sums of output `at` for every row; w: room for its weights. */
FC_FAST
static void
sums(const linear_t *l, const float *x, int at, float *w, float *sum)
{
    int          groups = l->w.k / GLM_TILE, k = l->w.k;
    const char  *tile = (const char *) l->w.tiles
                        + (size_t) (at / GLM_TILE * groups) * (size_t) GLM_TILE_BYTES(l->w.type);
    float        bias = 0;

    for (int g = 0; g < groups; g++, tile += GLM_TILE_BYTES(l->w.type)) {
        unpack(&l->w, tile, at % GLM_TILE, w + g * GLM_TILE);
    }
    if (l->w.bias != NULL) {
        bias = glm_half_to_float(((const uint16_t *) l->w.bias)[source_row(&l->w, at)]);
    }
    for (int r = 0; r < l->a.rows; r++) {
        if (l->again[r]) sum[r] = sum[r - 1];
        else sum[r] = fc_dot(w, x + (size_t) r * (size_t) k, k) + bias;
    }
}

static float *
unpack_rows(const linear_t *l)
{
    float           *x = malloc((size_t) l->a.rows * (size_t) l->w.k * sizeof(float));
    const uint16_t  *p = l->a.x;

    for (int r = 0; r < l->a.rows; r++) {
        for (int i = 0; i < l->w.k; i++) {
            x[(size_t) r * (size_t) l->w.k + (size_t) i] =
                glm_half_to_float(p[glm_cuda_packed(l->w.k, i, r, l->a.bucket)]);
        }
    }
    return x;
}

static double
gelu(double u)
{
    return 0.5 * u * (1 + erf(u / sqrt(2.0)));
}

static void
put(const linear_t *l, int at, const float *sum, const float *gate)
{
    const glm_linear_args_t  *a = &l->a;

    for (int r = 0; r < a->rows; r++) {
        size_t  i = (size_t) r * a->ldy + (size_t) at;

        if (a->out == GLM_OUT_F32) ((float *) a->y)[i] = sum[r];
        else if (a->out == GLM_OUT_F16) ((uint16_t *) a->y)[i] = glm_float_to_half(sum[r]);
        else ((uint16_t *) a->y)[glm_cuda_packed(l->w.n / 2, at / 16 * 8 + at % 8, r, a->bucket)] =
            glm_float_to_half((float) (sum[r] * gelu(gate[r])));
    }
}

static int
may_linear(const linear_t *l)
{
    const glm_linear_args_t  *a = &l->a;
    size_t                    n = (size_t) l->w.n, y;

    y = a->out == GLM_OUT_GLU ? n / 2 * (size_t) a->bucket * 2
        : ((size_t) (a->rows - 1) * a->ldy + n) * (a->out == GLM_OUT_F32 ? 4 : 2);
    return fakecuda_may(l->w.tiles, glm_cuda_tile_bytes(l->w.type, l->w.k, l->w.n))
        && fakecuda_may(a->x, (size_t) l->w.k * (size_t) a->bucket * 2)
        && fakecuda_may(a->y, y) && (l->w.bias == NULL || fakecuda_may(l->w.bias, n * 2))
        && fakecuda_may(a->ws, glm_cuda_linear_ws_sms(4, a->bucket));
}

static void
run_linear(void *arg)
{
    linear_t  *l = arg;
    float      sum[GLM_CUDA_PREFILL_ROWS], gate[GLM_CUDA_PREFILL_ROWS], *x, *w;

    if (!may_linear(l)) return;
    x = unpack_rows(l);
    for (int r = 1; r < l->a.rows; r++) {
        const float  *row = x + (size_t) r * (size_t) l->w.k;

        l->again[r] = memcmp(row, row - l->w.k, (size_t) l->w.k * sizeof(float)) == 0;
    }
    w = malloc((size_t) l->w.k * sizeof(float));
    for (int at = 0; at < l->w.n; at++) {
        if (l->w.glu && at % 16 >= 8) continue;
        sums(l, x, at, w, sum);
        if (l->w.glu) sums(l, x, at + 8, w, gate);
        put(l, at, sum, gate);
    }
    free(w);
    free(x);
}

int
fc_linear(const glm_linear_args_t *a, glm_stream_t *s)
{
    linear_t  l;

    if (a == NULL || s == NULL || !tiles_ok(a->w)) return GLM_EINVAL;
    if ((a->w->glu != 0) != (a->out == GLM_OUT_GLU) || a->out < GLM_OUT_F32
        || a->out > GLM_OUT_GLU || !fc_bucket_ok(a->rows, a->bucket))
    {
        return GLM_EINVAL;
    }
    if (a->out != GLM_OUT_GLU && (a->ldy < (size_t) a->w->n || a->ldy % 8)) return GLM_EINVAL;
    if (a->x == NULL || a->y == NULL || a->ws == NULL || !fc_aligned(a->x) || !fc_aligned(a->y)
        || !fc_aligned(a->ws) || a->ring < 0 || a->ctas < 0
        || (a->block != 0 && a->block != 64 && a->block != 128))
    {
        return GLM_EINVAL;
    }
    fakecuda_code(run_linear, a->w->type * 1000 + a->bucket * 2
                  + (a->bucket == GLM_CUDA_PREFILL_ROWS && a->rows > GLM_CUDA_BLOCK));
    l = (linear_t) { *a, *a->w, { 0 } };
    return fakecuda_enqueue(s, run_linear, &l, sizeof(l));
}

/* ---- norm, embedding ---- */

static void
norm_row(const glm_gnorm_args_t *a, int r)
{
    const float     *y = a->y + (size_t) r * a->ldy;
    const uint16_t  *res = a->a, *w = a->weight, *b = a->bias;
    double          *x = malloc((size_t) a->dim * sizeof(double)), mean = 0, var = 0;

    for (int i = 0; i < a->dim; i++) {
        x[i] = (double) y[i];
        if (res != NULL) {
            x[i] += (double) a->alpha
                * (double) glm_half_to_float(res[glm_cuda_packed(a->dim, i, r, a->bucket)]);
        }
        mean += x[i] / a->dim;
    }
    for (int i = 0; i < a->dim; i++) var += (x[i] - mean) * (x[i] - mean) / a->dim;
    for (int i = 0; i < a->dim; i++) {
        ((uint16_t *) a->out)[glm_cuda_packed(a->dim, i, r, a->bucket)] = glm_float_to_half((float)
            ((x[i] - mean) / sqrt(var + (double) a->eps) * (double) glm_half_to_float(w[i])
             + (double) glm_half_to_float(b[i])));
    }
    free(x);
}

static void
run_norm(void *arg)
{
    const glm_gnorm_args_t  *a = arg;
    size_t                   dim = (size_t) a->dim, packed = dim * (size_t) a->bucket * 2;

    if (!fakecuda_may(a->y, ((size_t) (a->rows - 1) * a->ldy + dim) * 4)
        || (a->a != NULL && !fakecuda_may(a->a, packed)) || !fakecuda_may(a->out, packed)
        || !fakecuda_may(a->weight, dim * 2) || !fakecuda_may(a->bias, dim * 2))
    {
        return;
    }
    for (int r = 0; r < a->rows; r++) norm_row(a, r);
}

int
fc_norm(const glm_gnorm_args_t *a, glm_stream_t *s)
{
    if (a == NULL || s == NULL || !fc_bucket_ok(a->rows, a->bucket) || a->y == NULL
        || a->out == NULL || a->weight == NULL || a->bias == NULL || a->dim < 256
        || a->dim % 256 || a->dim > 12288 || a->ldy % 4 || a->ldy < (size_t) a->dim
        || !fc_aligned(a->y) || !fc_aligned(a->a) || !fc_aligned(a->out)
        || !fc_aligned(a->weight) || !fc_aligned(a->bias))
    {
        return GLM_EINVAL;
    }
    return fakecuda_enqueue(s, run_norm, a, sizeof(*a));
}

/* To the end of the last row. */
static size_t
packed_bytes(int width, int rows, int bucket)
{
    return (glm_cuda_packed(width, width - 1, rows - 1, bucket) + 1) * 2;
}

static void
run_repack(void *arg)
{
    const glm_repack_args_t  *a = arg;
    const uint16_t           *x = a->x;

    if (!fakecuda_may(a->x, packed_bytes(a->width, a->from + a->rows, a->from_bucket))
        || !fakecuda_may(a->out, packed_bytes(a->width, a->to + a->rows, a->to_bucket)))
    {
        return;
    }
    for (int r = 0; r < a->rows; r++) {
        for (int i = 0; i < a->width; i++) {
            ((uint16_t *) a->out)[glm_cuda_packed(a->width, i, a->to + r, a->to_bucket)] =
                x[glm_cuda_packed(a->width, i, a->from + r, a->from_bucket)];
        }
    }
}

int
fc_repack(const glm_repack_args_t *a, glm_stream_t *s)
{
    if (a == NULL || s == NULL || a->x == NULL || a->out == NULL || !fc_aligned(a->x)
        || !fc_aligned(a->out) || a->width < 8 || a->width % 8 || a->from < 0 || a->to < 0
        || a->rows < 1 || !fc_bucket_ok(a->from + a->rows, a->from_bucket)
        || !fc_bucket_ok(a->to + a->rows, a->to_bucket))
    {
        return GLM_EINVAL;
    }
    return fakecuda_enqueue(s, run_repack, a, sizeof(*a));
}

static void
run_embed(void *arg)
{
    const glm_embed_args_t  *a = arg;
    const uint16_t          *table = a->table;
    size_t                   dim = (size_t) a->dim;

    if (!fakecuda_may(a->y, ((size_t) (a->rows - 1) * a->ldy + dim) * 4)
        || !fakecuda_may(a->table, (size_t) a->vocab * dim * 2)
        || !fakecuda_may(a->token, (size_t) a->rows * 4))
    {
        return;
    }
    for (int r = 0; r < a->rows; r++) {
        int  t = a->token[r], in;

        if (t < 0 && a->ids != NULL && !fakecuda_may(a->ids - 1 - t, 4)) return;
        if (t < 0 && a->ids != NULL) t = a->ids[-1 - t];
        in = t >= 0 && t < a->vocab;
        for (size_t i = 0; i < dim; i++) {
            a->y[(size_t) r * a->ldy + i] =
                in ? glm_half_to_float(table[(size_t) t * dim + i]) : 0;
        }
    }
}

int
fc_embed(const glm_embed_args_t *a, glm_stream_t *s)
{
    if (a == NULL || s == NULL || a->y == NULL || a->table == NULL || a->token == NULL
        || a->rows < 1 || a->dim < 8 || a->dim % 8 || a->ldy % 4 || a->ldy < (size_t) a->dim
        || !fc_aligned(a->y) || !fc_aligned(a->table))
    {
        return GLM_EINVAL;
    }
    return fakecuda_enqueue(s, run_embed, a, sizeof(*a));
}

/* ---- sample: the CPU's own, of what was packed ---- */

static void
sample_row(const glm_sample_args_t *a, int i, void *scratch)
{
    const glm_gsample_t  *g = &a->row[i];
    const char           *lists = a->lists;
    glm_sample_t          s = {
        .temperature = g->temperature, .top_k = g->top_k, .top_p = g->top_p, .min_p = g->min_p,
        .seed = g->seed, .choice = g->choice, .blank = g->blank, .ntokens = g->ntokens,
        .nlogprobs = g->nlogprobs, .nscore = g->nscore, .allow = g->allow,
        .presence = g->presence, .frequency = g->frequency, .repetition = g->repetition,
        .nadjust = g->nadjust, .nban = g->nban, .force = g->force, .rank = g->rank
    };

    if (g->nadjust > 0) s.adjust = (const void *) (lists + g->adjust);
    if (g->nban > 0) s.ban = (const void *) (lists + g->ban);
    if (g->nscore > 0) s.score = (const void *) (lists + g->score);
    if (g->allow != NULL && !fakecuda_may(g->allow, (size_t) (a->vocab + 63) / 64 * 8)) return;
    glm_sample(a->logits + (size_t) i * a->ldl, a->vocab, &s, scratch, &a->out[i]);
    a->ids[i] = a->out[i].id;
}

static void
run_sample(void *arg)
{
    const glm_sample_args_t  *a = arg;
    size_t                    rows = (size_t) a->rows;
    void                     *scratch;

    if (!fakecuda_may(a->logits, ((rows - 1) * a->ldl + (size_t) a->vocab) * 4)
        || !fakecuda_may(a->row, rows * sizeof(*a->row))
        || !fakecuda_may(a->out, rows * sizeof(*a->out)) || !fakecuda_may(a->ids, rows * 4)
        || !fakecuda_may(a->ws, glm_cuda_sample_ws(a->rows, a->vocab)))
    {
        return;
    }
    scratch = aligned_alloc(64, (glm_sample_scratch(a->vocab) + 63) / 64 * 64);
    for (int i = 0; i < a->rows; i++) {
        if (a->row[i].live) sample_row(a, i, scratch);
    }
    free(scratch);
}

int
fc_sample(const glm_sample_args_t *a, glm_stream_t *s)
{
    if (a == NULL || s == NULL || a->logits == NULL || a->row == NULL || a->out == NULL
        || a->ids == NULL || a->ws == NULL || a->rows < 1 || a->rows > GLM_CUDA_MAX_ROWS
        || a->vocab < 1 || a->vocab > 1 << 19 || a->ldl % 4 || a->ldl < (size_t) a->vocab)
    {
        return GLM_EINVAL;
    }
    return fakecuda_enqueue(s, run_sample, a, sizeof(*a));
}

#define TABLE(arch)                                                             \
    { arch, fc_pack, fc_fill, fc_linear, fc_embed, fc_norm, fc_repack,          \
      fc_kv_write, fc_attn_row, fc_attn_context, fc_sample }

extern const glm_cuda_ops_t  fakecuda_ops80, fakecuda_ops90;
const glm_cuda_ops_t  fakecuda_ops80 = TABLE(80), fakecuda_ops90 = TABLE(90);
