/*
 * model_cuda_prefill: a bidirectional context, some layers a call, in passes of 512
 * rows; or several that fit a block of rows, one behind the other in one pass: weights
 * are read once, keys, values and attention are each one's own.  Between two calls they
 * live in their own y and a; steps use others.
 */
#include <stdlib.h>
#include <string.h>

#include "model_cuda.h"

#define PASS  GLM_CUDA_PREFILL_ROWS

typedef struct {
    glm_cuda_model_t     *m;
    const glm_context_t  *c;      /* (nc) */
    int                   nc, n;  /* contexts, all their tokens */
    int                   first, rows;    /* of the pass */
    float                *y;      /* of the pass */
    char                 *a, *attn, *qkv;
} pass_t;

/* From row `row` of all contexts on. */
static void *
qkv_at(const glm_cuda_model_t *m, int row)
{
    return (char *) m->pre.qkv + 6 * (size_t) row * (size_t) m->base.cfg.hidden;
}

/* The next pass; 0 after the last. */
static int
next_pass(pass_t *p)
{
    const glm_prefill_bufs_t  *b = &p->m->pre;
    size_t                     hidden = (size_t) p->m->base.cfg.hidden, at;

    p->first += p->rows;
    if (p->first >= p->n) return 0;
    at = (size_t) p->first * hidden;
    p->rows = p->n - p->first < PASS ? p->n - p->first : PASS;
    p->y = b->y + at;
    p->a = (char *) b->a + 2 * at;
    p->attn = (char *) b->attn + 2 * at;
    p->qkv = qkv_at(p->m, p->first);
    return 1;
}

/* A context among those of a pass: its first row, and where its block table begins. */
typedef struct {
    const glm_context_t  *c;
    int                   row, page;
} part_t;

static part_t
first_part(const pass_t *p)
{
    return (part_t) { p->c, 0, 0 };
}

static int
is_part(const pass_t *p, const part_t *x)
{
    return x->c < p->c + p->nc;
}

static void
next_part(part_t *x)
{
    x->row += x->c->n;
    x->page += (x->c->n - 1) / GLM_KV_PAGE + 1;
    x->c++;
}

static int
send_contexts(const pass_t *p)
{
    glm_cuda_model_t          *m = p->m;
    const glm_cuda_context_t  *h = &m->host_context;

    for (part_t x = first_part(p); is_part(p, &x); next_part(&x)) {
        size_t  n = (size_t) x.c->n;

        memcpy(h->token + x.row, x.c->tokens, n * sizeof(int32_t));
        for (int i = 0; i < x.c->n; i++) h->slot[x.row + i] = h->position[x.row + i] = i;
        if (x.c->pages == NULL) continue;
        memcpy(h->pages + x.page, x.c->pages, ((n - 1) / GLM_KV_PAGE + 1) * sizeof(int32_t));
    }
    return glm_gpu_copy(m->gpu, m->context.token, h->token, glm_cuda_context_bytes(m), m->stream);
}

static int
embed(glm_cuda_model_t *m, int n)
{
    const glm_config_t  *c = &m->base.cfg;
    glm_embed_args_t     a = { .y = m->pre.y, .ldy = (size_t) c->hidden, .table = m->table,
                               .token = m->context.token, .vocab = c->vocab, .dim = c->hidden,
                               .rows = n };

    return GLM_GPU_OP(m->gpu, "embed", m->ops->embed(&a, m->stream));
}

/* All rows of a context have its one block table. */
static int
write_rows(const pass_t *p, const glm_cuda_layer_t *l, const part_t *x, int from, int to)
{
    glm_cuda_model_t  *m = p->m;
    glm_grows_t        at = { .slot = m->context.slot + from, .position = m->context.position + from,
                              .pages = m->context.pages + x->page, .ldpages = 0,
                              .rows = to - from };
    glm_attn_args_t    a = { .kv = &l->kv, .rows = &at, .qkv = qkv_at(m, from), .rope = m->rope,
                             .bucket = PASS };

    return GLM_GPU_OP(m->gpu, "kv_write", m->ops->kv_write(&a, m->stream));
}

static int
write_kv(const pass_t *p, const glm_cuda_layer_t *l)
{
    int  rc = 0;

    for (part_t x = first_part(p); rc == 0 && is_part(p, &x); next_part(&x)) {
        int  from = x.row, to = x.row + x.c->n;

        if (from < p->first) from = p->first;
        if (to > p->first + p->rows) to = p->first + p->rows;
        if (from < to && x.c->pages != NULL) rc = write_rows(p, l, &x, from, to);
    }
    return rc;
}

static int
to_kv(pass_t p, const glm_cuda_layer_t *l, int bottom)
{
    size_t  width = (size_t) l->w[GLM_CUDA_QKV].n;
    int     rc = 0;

    while (rc == 0 && next_pass(&p)) {
        if ((rc = glm_cuda_norm(p.m, &l->ln[0], p.y, bottom ? NULL : p.a, p.a, p.rows,
                                PASS)) != 0
            || (rc = glm_cuda_linear(p.m, &l->w[GLM_CUDA_QKV], p.a, p.qkv, width, GLM_OUT_F16,
                                     p.rows, PASS)) != 0)
        {
            return rc;
        }
        rc = write_kv(&p, l);
    }
    return rc;
}

/* Several contexts are rows of one block, in which a row's pieces of eight elements are
 * behind those of the row before. */
static int
attend(const pass_t *p, const glm_cuda_layer_t *l)
{
    glm_cuda_model_t  *m = p->m;
    int                rc = 0;

    for (part_t x = first_part(p); rc == 0 && is_part(p, &x); next_part(&x)) {
        glm_context_args_t  a = { .position = m->context.position + x.row, .qkv = qkv_at(m, x.row),
                                  .rope = m->rope, .out = (char *) m->pre.attn + 16 * x.row,
                                  .heads = l->kv.heads, .d = l->kv.d, .tokens = x.c->n,
                                  .rows = x.c->n };

        if (x.c->pages == NULL) continue;
        rc = GLM_GPU_OP(m->gpu, "attn_context", m->ops->attn_context(&a, m->stream));
    }
    return rc;
}

static int
from_kv(pass_t p, const glm_cuda_layer_t *l)
{
    size_t  hidden = (size_t) p.m->base.cfg.hidden, up = (size_t) l->w[GLM_CUDA_UP].n;
    int     rc = 0;

    while (rc == 0 && next_pass(&p)) {
        if ((rc = glm_cuda_linear(p.m, &l->w[GLM_CUDA_DENSE], p.attn, p.y, hidden, GLM_OUT_F32,
                                  p.rows, PASS)) != 0
            || (rc = glm_cuda_norm(p.m, &l->ln[1], p.y, p.a, p.a, p.rows, PASS)) != 0
            || (rc = glm_cuda_linear(p.m, &l->w[GLM_CUDA_UP], p.a, p.m->pre.glu, up,
                                     GLM_OUT_GLU, p.rows, PASS)) != 0)
        {
            return rc;
        }
        rc = glm_cuda_linear(p.m, &l->w[GLM_CUDA_DOWN], p.m->pre.glu, p.y, hidden, GLM_OUT_F32,
            p.rows, PASS);
    }
    return rc;
}

static int
trace(pass_t p, int layer)
{
    size_t  width = (size_t) p.m->base.cfg.hidden;
    float  *x = malloc((size_t) p.n * width * sizeof(float));
    int     rc = x == NULL ? GLM_ENOMEM : 0;

    while (rc == 0 && next_pass(&p)) {
        rc = glm_cuda_output(p.m, p.y, p.a, p.rows, PASS, x + (size_t) p.first * width);
    }
    if (rc == 0) p.m->base.trace(p.m->base.trace_arg, layer, x, p.n);
    free(x);
    return rc;
}

static int
layer(pass_t p, int i, int keys_only)
{
    const glm_cuda_layer_t  *l = &p.m->layer[i];
    int                      rc = to_kv(p, l, i == 0);

    if (rc != 0 || keys_only) return rc;
    if ((rc = attend(&p, l)) != 0 || (rc = from_kv(p, l)) != 0) return rc;
    return p.m->base.trace == NULL ? 0 : trace(p, i);
}

/* Some columns of the head at a time: 512 rows of as many as the logits of a step
 * have room for. */
static int
head(pass_t *p, float *logits)
{
    glm_cuda_model_t  *m = p->m;
    int                vocab = m->base.cfg.vocab, step = vocab / (PASS / GLM_CUDA_MAX_ROWS) / 256 * 256, n, rc;
    glm_tiles_t        w = m->head;

    if (step == 0) step = 256;
    for (int i = 0; i < vocab; i += n) {
        n = vocab - i < step ? vocab - i : step;
        w.n = n;
        w.tiles = (char *) m->head.tiles + glm_cuda_tile_bytes(w.type, w.k, i);
        rc = glm_cuda_linear(m, &w, p->a, m->logits, (size_t) n, GLM_OUT_F32, p->rows, PASS);
        if (rc != 0) return rc;
        rc = glm_gpu_copy_rows(m->gpu, logits + (size_t) p->first * (size_t) vocab + i,
            (size_t) vocab * sizeof(float), m->logits, (size_t) n * sizeof(float),
            (size_t) n * sizeof(float), (size_t) p->rows, m->stream);
        if (rc != 0) return rc;
    }
    return 0;
}

static int
all_logits(pass_t p, float *logits)
{
    int  rc = 0;

    while (rc == 0 && next_pass(&p)) {
        rc = glm_cuda_norm(p.m, &p.m->final, p.y, p.a, p.a, p.rows, PASS);
        if (rc == 0) rc = head(&p, logits);
    }
    return rc;
}

int
glm_cuda_prefill(glm_model_t *model, const glm_context_t *c, int nc, int first, int last,
    float *logits)
{
    glm_cuda_model_t  *m = (glm_cuda_model_t *) model;
    pass_t             p = { .m = m, .c = c, .nc = nc };
    int                top = last == model->cfg.layers, rc = 0;

    for (int i = 0; i < nc; i++) p.n += c[i].n;
    if (first == 0 && ((rc = send_contexts(&p)) != 0 || (rc = embed(m, p.n)) != 0)) return rc;
    for (int i = first; i < last && rc == 0; i++) {
        rc = layer(p, i, logits == NULL && i + 1 == model->cfg.layers);
    }
    if (rc == 0 && top && logits != NULL) rc = all_logits(p, logits);
    return rc != 0 ? rc : glm_cuda_sync(m);
}
