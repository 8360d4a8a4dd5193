/*
 * model_cpu_weights: one arena a rank, laid out by a pass that only counts and then
 * by the same pass again; slices of the neutral tensors packed into it.
 */
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "cpu/half.h"
#include "model_cpu.h"

#define HUGE_PAGE  ((size_t) 2 << 20)

typedef struct {
    char                *base;    /* NULL: counting */
    size_t               used;
    const glm_loader_t  *loader;  /* knows how weights are stored */
    int                  tp;
    char                 prefix[32];      /* of tensors: the layer */
    int                  rc;      /* the first failure, told in err */
    glm_err_t           *err;
} arena_t;

static void *
take(arena_t *a, size_t n, size_t size)
{
    void  *p = a->base == NULL ? NULL : a->base + a->used;

    a->used += (n * size + 63) / 64 * 64;
    return p;
}

static float *
take_floats(arena_t *a, size_t n)
{
    return take(a, n, sizeof(float));
}

typedef struct {
    volatile char  *base;
    size_t          size;
} range_t;

/* A thread's share of fresh memory, which is zeroed: it has only to be there. */
static void
touch(const glm_member_t *me, void *arg)
{
    const range_t  *r = arg;
    size_t          pages = (r->size + 4095) / 4096;
    size_t          end = pages * ((size_t) me->id + 1) / (size_t) me->n;

    for (size_t i = pages * (size_t) me->id / (size_t) me->n; i < end; i++) r->base[i * 4096] = 0;
}

/* Fresh zeroed memory in large pages; resident when it returns. */
static void *
map_arena(glm_comm_t *team, size_t size, glm_err_t *err)
{
    size_t  whole = size + HUGE_PAGE;
    char   *p, *q;

    p = mmap(NULL, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) {
        (void) glm_fail(err, GLM_ENOMEM, "no memory for %zu bytes of weights and KV", size);
        return NULL;
    }
    q = (char *) (((uintptr_t) p + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE);
    if (q > p) munmap(p, (size_t) (q - p));
    if (q + size < p + whole) {
        size_t  end = ((size_t) (q - p) + size + 4095) / 4096 * 4096;

        if (end < whole) munmap(p + end, whole - end);
    }
    (void) madvise(q, size, MADV_HUGEPAGE);     /* without it: slower, not wrong */
    glm_comm_run(team, touch, &(range_t) { q, size });
    return q;
}

static void
unmap_arena(void *p, size_t size)
{
    if (p != NULL) munmap(p, (size + 4095) / 4096 * 4096);
}

/* A rank's groups: the tensor's, or where a cut splits them, even parts. */
static int
fit_groups(const arena_t *a, const char *name, const glm_tensor_t *t, glm_mat_t *w)
{
    int32_t  width = t->cols / t->groups, part = width, rest = w->k, tmp;

    while (rest != 0) {                         /* part = gcd(width, k) */
        tmp = part % rest;
        part = rest;
        rest = tmp;
    }
    w->group = part;
    if (part % 16 == 0) return 0;
    return glm_fail(a->err, GLM_EINVAL, "tensor parallel degree %d: %s has %d columns a rank, "
        "which cuts its groups of %d into parts of %d; a multiple of 16 is possible", a->tp, name,
        w->k, width, part);
}

static int
fit(const arena_t *a, const char *name, glm_mat_t *w)
{
    static const int  bits[] = { [GLM_T_F16] = 16, [GLM_T_INT8] = 8, [GLM_T_INT4] = 4 };
    glm_tensor_t      t;
    char              full[128];
    int               rc;

    snprintf(full, sizeof(full), "%s%s.weight", a->prefix, name);
    if ((rc = glm_loader_tensor(a->loader, full, &t, a->err)) != 0) return rc;
    w->bits = bits[t.type];
    w->group = 0;
    return t.type == GLM_T_F16 ? 0 : fit_groups(a, full, &t, w);
}

static void
lay_mat(arena_t *a, const char *name, glm_mat_t *w, int n, int k, int bias)
{
    int  rc;

    w->n = n;
    w->k = k;
    if ((rc = fit(a, name, w)) != 0) {
        if (a->rc == 0) a->rc = rc;
        return;
    }
    w->w = take(a, glm_mat_bytes(w), 1);
    w->bias = bias ? take_floats(a, (size_t) glm_panels(n) * GLM_PANEL) : NULL;
}

static void
lay_norm(arena_t *a, glm_norm_t *nm, const glm_config_t *cfg)
{
    nm->weight = take_floats(a, (size_t) cfg->hidden);
    nm->bias = take_floats(a, (size_t) cfg->hidden);
    nm->alpha = sqrtf(2 * (float) cfg->layers);
    nm->eps = cfg->ln_eps;
    nm->dim = cfg->hidden;
}

static void
lay_layer(arena_t *a, glm_layer_t *l, const glm_cpu_model_t *m)
{
    const glm_config_t  *cfg = &m->base.cfg;
    int                  hidden = cfg->hidden, t = m->base.tp;

    lay_norm(a, &l->ln1, cfg);
    lay_mat(a, "attention.query_key_value", &l->qkv, 3 * hidden / t, hidden, 1);
    lay_mat(a, "attention.dense", &l->dense, hidden, hidden / t, 0);
    lay_norm(a, &l->ln2, cfg);
    l->ln2.ybias = take_floats(a, (size_t) hidden);
    lay_mat(a, "mlp.dense_h_to_4h", &l->u1, cfg->inner / t, hidden, 1);
    lay_mat(a, "mlp.dense_h_to_4h", &l->u2, cfg->inner / t, hidden, 1);
    lay_mat(a, "mlp.dense_4h_to_h", &l->down, hidden, cfg->inner / t, 0);
    l->down_bias = take_floats(a, (size_t) hidden);
}

static void
lay_kv(arena_t *a, glm_kv_t *kv, const glm_cpu_model_t *m)
{
    kv->heads = m->base.cfg.heads / m->base.tp;
    kv->d = m->base.cfg.head_dim;
    kv->page_floats = 2 * (size_t) kv->heads * (size_t) kv->d * GLM_KV_TOKENS;
    kv->base = take_floats(a, kv->page_floats * (size_t) m->base.kv_pages);
}

static size_t
most_rows(const glm_cpu_model_t *m)
{
    return (size_t) (m->base.max_rows > m->base.max_seq ? m->base.max_rows : m->base.max_seq);
}

static void
lay_rank(arena_t *a, glm_rank_t *r, const glm_cpu_model_t *m)
{
    const glm_config_t  *cfg = &m->base.cfg;
    size_t               rows = most_rows(m);

    r->layer = take(a, (size_t) cfg->layers, sizeof(glm_layer_t));
    for (int i = 0; i < cfg->layers; i++) {
        glm_layer_t  count, *l = a->base == NULL ? &count : &r->layer[i];

        snprintf(a->prefix, sizeof(a->prefix), "layers.%d.", i);
        lay_layer(a, l, m);
        lay_kv(a, &l->kv, m);
    }
    a->prefix[0] = '\0';
    lay_norm(a, &r->final, cfg);
    lay_mat(a, "word_embeddings", &r->embed, cfg->vocab / m->base.tp, cfg->hidden, 0);
    r->a = take_floats(a, rows * m->ld_h);
    r->y = take_floats(a, rows * m->ld_h);
    r->pa = take_floats(a, (size_t) m->base.max_seq * m->ld_h);
    r->py = take_floats(a, (size_t) m->base.max_seq * m->ld_h);
    r->h = take_floats(a, rows * m->ld_h);
    r->qkv = take_floats(a, rows * m->ld_qkv);
    r->att = take_floats(a, rows * m->ld_att);
    r->u1 = take_floats(a, rows * m->ld_i);
    r->u2 = take_floats(a, rows * m->ld_i);
}

static void
lay_shared(arena_t *a, glm_cpu_model_t *m)
{
    size_t  vocab = (size_t) m->base.cfg.vocab, max_rows = (size_t) m->base.max_rows;
    size_t  rows = most_rows(m);
    size_t  table = (size_t) m->base.max_seq * (size_t) m->base.cfg.head_dim / 2;

    m->rope_cos = take_floats(a, table);
    m->rope_sin = take_floats(a, table);
    m->logits = take_floats(a, max_rows * vocab);
    m->trace_x = take_floats(a, rows * (size_t) m->base.cfg.hidden);
    m->at = take(a, max_rows, sizeof(glm_at_t));
    m->prefill_at = take(a, (size_t) m->base.max_seq, sizeof(glm_at_t));
    m->token = take(a, max_rows, sizeof(int32_t));
    m->head = take(a, rows, sizeof(int32_t));
    for (int i = 0; i < m->nthreads; i++) {
        m->thread[i].a = take_floats(a, GLM_OWN_ROWS * m->ld_h);
        m->thread[i].attn = take_floats(a, glm_attn_scratch(m->base.max_seq));
        m->thread[i].sample = take(a, glm_sample_scratch(m->base.cfg.vocab), 1);
    }
}

/* Rows start 64 bytes past a multiple of their width, or rows of a power of two
 * would fall into the same few sets of the L1. */
static size_t
row_floats(int width)
{
    return ((size_t) width + 15) / 16 * 16 + 16;
}

int
glm_cpu_alloc(glm_cpu_model_t *m, const glm_loader_t *l, glm_err_t *err)
{
    arena_t  count = { .loader = l, .tp = m->base.tp, .err = err }, a;

    m->ld_h = row_floats(m->base.cfg.hidden);
    m->ld_qkv = row_floats(3 * m->base.cfg.hidden / m->base.tp);
    m->ld_att = row_floats(m->base.cfg.hidden / m->base.tp);
    m->ld_i = row_floats(m->base.cfg.inner / m->base.tp);
    m->rank = calloc((size_t) m->base.tp, sizeof(*m->rank));
    m->thread = calloc((size_t) m->nthreads, sizeof(*m->thread));
    if (m->rank == NULL || m->thread == NULL) {
        return glm_fail(err, GLM_ENOMEM, "no memory for %d ranks", m->base.tp);
    }

    a = count;
    lay_shared(&a, m);
    m->shared_size = a.used;
    if ((m->shared = map_arena(m->comm, a.used, err)) == NULL) return GLM_ENOMEM;
    a = count;
    a.base = m->shared;
    lay_shared(&a, m);

    for (int i = 0; i < m->base.tp; i++) {
        a = count;
        lay_rank(&a, &m->rank[i], m);
        if (a.rc != 0) return a.rc;
        m->rank[i].arena_size = a.used;
        if ((m->rank[i].arena = map_arena(m->comm, a.used, err)) == NULL) return GLM_ENOMEM;
        a = count;
        a.base = m->rank[i].arena;
        lay_rank(&a, &m->rank[i], m);
    }
    return 0;
}

void
glm_cpu_release(glm_cpu_model_t *m)
{
    for (int i = 0; i < m->base.tp && m->rank != NULL; i++) {
        unmap_arena(m->rank[i].arena, m->rank[i].arena_size);
    }
    unmap_arena(m->shared, m->shared_size);
    free(m->rank);
    free(m->thread);
}

/* What filling needs: a staging buffers for slices, the rank, the layer. */
typedef struct {
    const glm_loader_t  *loader;
    const glm_cpu_model_t   *m;
    uint16_t            *stage;   /* (GLM_PANEL, widest k) fp16 */
    uint16_t            *scale;   /* (2, GLM_PANEL, widest k / 16) fp16 */
    int                  rank;
    char                 prefix[32];
    glm_err_t           *err;
} fill_t;

static int
find(const fill_t *f, const char *name, glm_tensor_t *t)
{
    char  full[128];

    snprintf(full, sizeof(full), "%s%s", f->prefix, name);
    return glm_loader_tensor(f->loader, full, t, f->err);
}

/* dst[0 .. n) = elements first .. of a vector. */
static int
fill_vector(fill_t *f, const char *name, int first, int n, float *dst)
{
    glm_tensor_t  t;
    int           rc, k;

    if ((rc = find(f, name, &t)) != 0) return rc;
    for (int i = 0; i < n; i += k) {
        k = n - i < GLM_PANEL ? n - i : GLM_PANEL;
        glm_tensor_slice(&t, &(glm_slice_t) { first + i, k, 0, 1 }, f->stage);
        for (int j = 0; j < k; j++) dst[i + j] = glm_half_to_float(f->stage[j]);
    }
    return 0;
}

/* Scales of w's own groups, which may be parts of the tensor's. */
static const uint16_t *
get_scales(fill_t *f, const glm_tensor_t *t, const glm_slice_t *s, const glm_mat_t *w)
{
    int        groups, n, width;
    uint16_t  *raw, *scale = f->scale;

    if (t->groups == 0) return NULL;
    groups = w->k / w->group;
    width = t->cols / t->groups;
    raw = scale + GLM_PANEL * groups;
    n = glm_tensor_scales(t, s, raw);
    for (int r = 0; r < s->nrows; r++) {
        for (int g = 0; g < groups; g++) {
            scale[r * groups + g] = raw[r * n + (s->col + g * w->group) / width
                                        - s->col / width];
        }
    }
    return scale;
}

/* Rows row .., columns col .. col + w->k - 1. */
static int
fill_mat(fill_t *f, const char *name, int row, int col, const glm_mat_t *w)
{
    glm_tensor_t  t;
    int           rc, n;

    if ((rc = find(f, name, &t)) != 0) return rc;
    for (int i = 0; i < w->n; i += n) {
        n = w->n - i < GLM_PANEL ? w->n - i : GLM_PANEL;
        glm_slice_t  s = { row + i, n, col, w->k };

        glm_tensor_slice(&t, &s, f->stage);
        f->m->ops->pack(w, i, f->stage, get_scales(f, &t, &s, w), n);
    }
    return 0;
}

/* A row-sliced linear with its bias. */
static int
fill_linear(fill_t *f, const char *name, int row, const glm_mat_t *w)
{
    char  full[96];
    int   rc;

    snprintf(full, sizeof(full), "%s.weight", name);
    if ((rc = fill_mat(f, full, row, 0, w)) != 0) return rc;
    snprintf(full, sizeof(full), "%s.bias", name);
    return fill_vector(f, full, row, w->n, w->bias);
}

static int
fill_norm(fill_t *f, const char *name, const glm_norm_t *nm)
{
    char  full[96];
    int   rc;

    snprintf(full, sizeof(full), "%s.weight", name);
    if ((rc = fill_vector(f, full, 0, nm->dim, nm->weight)) != 0) return rc;
    snprintf(full, sizeof(full), "%s.bias", name);
    return fill_vector(f, full, 0, nm->dim, nm->bias);
}

/* The slices of section 2 of the reference: see docs/MODEL.md. */
static int
fill_layer(fill_t *f, const glm_layer_t *l)
{
    const glm_config_t  *c = &f->m->base.cfg;
    int                  H = c->hidden, I = c->inner, t = f->m->base.tp, r = f->rank, rc;

    if ((rc = fill_norm(f, "input_layernorm", &l->ln1)) != 0
        || (rc = fill_linear(f, "attention.query_key_value", r * (3 * H / t), &l->qkv)) != 0
        || (rc = fill_mat(f, "attention.dense.weight", 0, r * (H / t), &l->dense)) != 0
        || (rc = fill_vector(f, "attention.dense.bias", 0, H, l->ln2.ybias)) != 0
        || (rc = fill_norm(f, "post_attention_layernorm", &l->ln2)) != 0
        || (rc = fill_linear(f, "mlp.dense_h_to_4h", r * (I / t), &l->u1)) != 0
        || (rc = fill_linear(f, "mlp.dense_h_to_4h", I + r * (I / t), &l->u2)) != 0
        || (rc = fill_mat(f, "mlp.dense_4h_to_h.weight", 0, r * (I / t), &l->down)) != 0)
    {
        return rc;
    }
    return fill_vector(f, "mlp.dense_4h_to_h.bias", 0, H, l->down_bias);
}

/* A rank's final norm, and its rows of the embedding. */
static int
fill_final(fill_t *f, glm_rank_t *r)
{
    const glm_config_t  *c = &f->m->base.cfg;
    int                  rc;

    if ((rc = fill_norm(f, "final_layernorm", &r->final)) != 0) return rc;
    r->v0 = f->rank * (c->vocab / f->m->base.tp);
    return fill_mat(f, "word_embeddings.weight", r->v0, 0, &r->embed);
}

static int
fill_numbered(fill_t *f, glm_rank_t *r, int i)
{
    glm_norm_t  *above = i + 1 < f->m->base.cfg.layers ? &r->layer[i + 1].ln1 : &r->final;

    snprintf(f->prefix, sizeof(f->prefix), "layers.%d.", i);
    above->ybias = r->layer[i].down_bias;
    return fill_layer(f, &r->layer[i]);
}

/* What threads share while they fill. */
typedef struct {
    const glm_loader_t  *loader;
    glm_cpu_model_t     *m;
    atomic_int           next;    /* of the ranks' final parts, which are the largest,
                                     then layers */
    atomic_int           rc;
    pthread_mutex_t      lock;    /* of err */
    glm_err_t           *err;
} job_t;

static int
fill_next(fill_t *f, job_t *j)
{
    int  tp = f->m->base.tp, i, rc = 0;

    while (rc == 0 && atomic_load(&j->rc) == 0
           && (i = atomic_fetch_add(&j->next, 1)) < tp * (f->m->base.cfg.layers + 1))
    {
        f->rank = i % tp;
        f->prefix[0] = '\0';
        rc = i < tp ? fill_final(f, &j->m->rank[f->rank])
           : fill_numbered(f, &j->m->rank[f->rank], i / tp - 1);
    }
    return rc;
}

static void
fill_some(const glm_member_t *me, void *arg)
{
    job_t               *j = arg;
    const glm_config_t  *c = &j->m->base.cfg;
    glm_err_t            err = { "" };
    fill_t               f = { .loader = j->loader, .m = j->m, .err = &err };
    size_t               widest = (size_t) (c->hidden > c->inner ? c->hidden : c->inner);
    int                  rc;

    (void) me;
    f.stage = malloc(widest * GLM_PANEL * sizeof(uint16_t));
    f.scale = malloc(2 * (widest / 16 + 1) * GLM_PANEL * sizeof(uint16_t));
    if (f.stage == NULL || f.scale == NULL) {
        rc = glm_fail(&err, GLM_ENOMEM, "no memory to load weights");
    } else {
        rc = fill_next(&f, j);
    }
    free(f.stage);
    free(f.scale);
    if (rc == 0) return;
    pthread_mutex_lock(&j->lock);
    (void) glm_fail(j->err, rc, "%s", err.text);
    pthread_mutex_unlock(&j->lock);
    atomic_store(&j->rc, rc);
}

int
glm_cpu_fill(glm_cpu_model_t *m, const glm_loader_t *l, glm_err_t *err)
{
    job_t  j = { .loader = l, .m = m, .err = err };

    pthread_mutex_init(&j.lock, NULL);
    glm_comm_run(m->comm, fill_some, &j);
    pthread_mutex_destroy(&j.lock);
    return atomic_load(&j.rc);
}
