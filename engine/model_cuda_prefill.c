/*
 * model_cuda_prefill: a bidirectional context, some layers a call, in passes of 512
 * rows.  Between two calls it lives in its own y and a; steps use others.
 */
#include <stdlib.h>
#include <string.h>

#include "model_cuda.h"

#define PASS  GLM_CUDA_PREFILL_ROWS

typedef struct {
    glm_cuda_model_t  *m;
    int                n;         /* tokens */
    int                first, rows;   /* of the pass */
    float             *y;         /* of the pass */
    char              *a, *attn, *qkv;
} pass_t;

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
    p->qkv = (char *) b->qkv + 6 * at;
    return 1;
}

static int
send_context(glm_cuda_model_t *m, const int32_t *tokens, int n, const int32_t *pages)
{
    const glm_cuda_context_t  *h = &m->host_context;
    size_t                     bytes = (3 * (size_t) m->base.max_seq + (size_t) m->ldpages)
                                       * sizeof(int32_t);

    memcpy(h->token, tokens, (size_t) n * sizeof(int32_t));
    for (int i = 0; i < n; i++) h->slot[i] = h->position[i] = i;
    memcpy(h->pages, pages, ((size_t) (n - 1) / GLM_KV_PAGE + 1) * sizeof(int32_t));
    return glm_gpu_copy(m->gpu, m->context.token, h->token, bytes, m->stream);
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

/* All rows of a pass have the one block table of the context. */
static int
write_kv(pass_t *p, const glm_cuda_layer_t *l)
{
    glm_cuda_model_t  *m = p->m;
    glm_grows_t        at = { .slot = m->context.slot + p->first,
                              .position = m->context.position + p->first,
                              .pages = m->context.pages, .ldpages = 0, .rows = p->rows };
    glm_attn_args_t    a = { .kv = &l->kv, .rows = &at, .qkv = p->qkv, .rope = m->rope,
                             .bucket = PASS };

    return GLM_GPU_OP(m->gpu, "kv_write", m->ops->kv_write(&a, m->stream));
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

static int
attend(glm_cuda_model_t *m, const glm_cuda_layer_t *l, int n)
{
    glm_context_args_t  a = { .position = m->context.position, .qkv = m->pre.qkv, .rope = m->rope,
                              .out = m->pre.attn, .heads = l->kv.heads, .d = l->kv.d,
                              .tokens = n, .rows = n };

    return GLM_GPU_OP(m->gpu, "attn_context", m->ops->attn_context(&a, m->stream));
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
    if ((rc = attend(p.m, l, p.n)) != 0 || (rc = from_kv(p, l)) != 0) return rc;
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
glm_cuda_prefill(glm_model_t *model, const int32_t *tokens, int n, const int32_t *pages,
    int first, int last, float *logits)
{
    glm_cuda_model_t  *m = (glm_cuda_model_t *) model;
    pass_t             p = { .m = m, .n = n };
    int                top = last == model->cfg.layers, rc = 0;

    if (first == 0 && ((rc = send_context(m, tokens, n, pages)) != 0 || (rc = embed(m, n)) != 0)) {
        return rc;
    }
    for (int i = first; i < last && rc == 0; i++) {
        rc = layer(p, i, logits == NULL && i + 1 == model->cfg.layers);
    }
    if (rc == 0 && top && logits != NULL) rc = all_logits(p, logits);
    return rc != 0 ? rc : glm_cuda_sync(m);
}
