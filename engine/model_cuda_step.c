/*
 * model_cuda_step: rows.  What a step reads is written to pinned memory and copied: its
 * rows, then the graph of the forward pass of its bucket; what its sampler is asked,
 * then the sampler's graph.  Both have all rows of the bucket: those past the last have
 * slot -1 and are not live.  A sampler's ids stay on the card, where the forward pass
 * of the next step finds them, so that it may start before the host has read any.
 */
#include <stdlib.h>
#include <string.h>

#include "cpu/half.h"
#include "model_cuda.h"

static int
bucket_of(int rows)
{
    return rows <= 8 ? 0 : rows <= 16 ? 1 : rows <= 32 ? 2 : 3;
}

static int
bucket_rows(int b)
{
    return 8 << b;
}

/* ---- launches ---- */

int
glm_cuda_linear(glm_cuda_model_t *m, const glm_tiles_t *w, const void *x, void *y, size_t ldy,
    int out, int rows, int bucket)
{
    glm_linear_args_t  a = { .w = w, .x = x, .y = y, .ldy = ldy, .out = out, .rows = rows,
                             .bucket = bucket, .ws = m->ws };

    return GLM_GPU_OP(m->gpu, "linear", m->ops->linear(&a, m->stream));
}

int
glm_cuda_norm(glm_cuda_model_t *m, const glm_cuda_norm_t *nm, const float *y,
    const void *residual, void *out, int rows, int bucket)
{
    int               hidden = m->base.cfg.hidden;
    glm_gnorm_args_t  a = { .y = y, .ldy = (size_t) hidden, .a = residual,
                            .weight = nm->weight, .bias = nm->bias, .out = out,
                            .alpha = m->alpha, .eps = m->base.cfg.ln_eps, .dim = hidden,
                            .rows = rows, .bucket = bucket };

    return GLM_GPU_OP(m->gpu, "norm", m->ops->norm(&a, m->stream));
}

static const glm_cuda_rows_t *
rows_of(const char *base)
{
    return (const glm_cuda_rows_t *) (const void *) base;
}

static glm_cuda_picks_t *
picks_of(char *base)
{
    return (glm_cuda_picks_t *) (void *) base;
}

static int
embed(glm_cuda_model_t *m, int rows)
{
    const glm_config_t  *c = &m->base.cfg;
    glm_embed_args_t     a = { .y = m->y, .ldy = (size_t) c->hidden, .table = m->table,
                               .token = rows_of(m->rows)->token, .vocab = c->vocab,
                               .dim = c->hidden, .rows = rows, .ids = m->ids };

    return GLM_GPU_OP(m->gpu, "embed", m->ops->embed(&a, m->stream));
}

static int
attention(glm_cuda_model_t *m, const glm_cuda_layer_t *l, int rows)
{
    const glm_cuda_rows_t  *r = rows_of(m->rows);
    glm_grows_t             at = { .slot = r->slot, .position = r->position,
                                   .pages = (const int32_t *) (const void *) (r + 1),
                                   .ldpages = m->ldpages, .rows = rows };
    glm_attn_args_t         a = { .kv = &l->kv, .rows = &at, .qkv = m->qkv, .rope = m->rope,
                                  .out = m->ctx, .bucket = rows, .ws = m->attn_ws,
                                  .ws_bytes = m->attn_ws_bytes };
    int                     rc;

    rc = GLM_GPU_OP(m->gpu, "kv_write", m->ops->kv_write(&a, m->stream));
    if (rc != 0) return rc;
    return GLM_GPU_OP(m->gpu, "attn_row", m->ops->attn_row(&a, m->stream));
}

static int
layer(glm_cuda_model_t *m, int i, int rows)
{
    const glm_cuda_layer_t  *l = &m->layer[i];
    size_t                   hidden = (size_t) m->base.cfg.hidden;
    int                      rc;

    if ((rc = glm_cuda_norm(m, &l->ln[0], m->y, i == 0 ? NULL : m->a, m->a, rows, rows)) != 0
        || (rc = glm_cuda_linear(m, &l->w[GLM_CUDA_QKV], m->a, m->qkv, 3 * hidden, GLM_OUT_F16,
                                 rows, rows)) != 0
        || (rc = attention(m, l, rows)) != 0
        || (rc = glm_cuda_linear(m, &l->w[GLM_CUDA_DENSE], m->ctx, m->y, hidden, GLM_OUT_F32,
                                 rows, rows)) != 0
        || (rc = glm_cuda_norm(m, &l->ln[1], m->y, m->a, m->a, rows, rows)) != 0
        || (rc = glm_cuda_linear(m, &l->w[GLM_CUDA_UP], m->a, m->act,
                                 (size_t) l->w[GLM_CUDA_UP].n, GLM_OUT_GLU, rows, rows)) != 0)
    {
        return rc;
    }
    return glm_cuda_linear(m, &l->w[GLM_CUDA_DOWN], m->act, m->y, hidden, GLM_OUT_F32, rows,
        rows);
}

static int
head(glm_cuda_model_t *m, int rows)
{
    int  rc = glm_cuda_norm(m, &m->final, m->y, m->a, m->a, rows, rows);

    if (rc != 0) return rc;
    return glm_cuda_linear(m, &m->head, m->a, m->logits, (size_t) m->base.cfg.vocab,
        GLM_OUT_F32, rows, rows);
}

static int
forward(glm_cuda_model_t *m, int rows)
{
    int  rc = embed(m, rows);

    for (int i = 0; i < m->base.cfg.layers && rc == 0; i++) rc = layer(m, i, rows);
    return rc != 0 ? rc : head(m, rows);
}

static int
sample(glm_cuda_model_t *m, int rows)
{
    glm_sample_args_t  a = { .logits = m->logits, .ldl = (size_t) m->base.cfg.vocab,
                             .row = picks_of(m->picks)->row,
                             .lists = m->picks + sizeof(glm_cuda_picks_t),
                             .out = m->sampled, .ids = m->ids, .vocab = m->base.cfg.vocab,
                             .rows = rows, .ws = m->sample_ws };

    return GLM_GPU_OP(m->gpu, "sample", m->ops->sample(&a, m->stream));
}

static int
capture(glm_cuda_model_t *m, int (*what)(glm_cuda_model_t *, int), int rows,
    glm_gpu_graph_t **out)
{
    int  rc = glm_gpu_capture(m->gpu, m->stream);

    if (rc != 0) return rc;
    return glm_gpu_captured(m->gpu, m->stream, what(m, rows), out);
}

int
glm_cuda_graphs(glm_cuda_model_t *m)
{
    int  rc = 0;

    for (int b = 0; b < GLM_CUDA_BUCKETS && rc == 0; b++) {
        rc = capture(m, forward, bucket_rows(b), &m->forward[b]);
        if (rc == 0) rc = capture(m, sample, bucket_rows(b), &m->sampler[b]);
    }
    return rc;
}

/* ---- what a step reads ---- */

/* Rows n .. of the bucket are none; a token that is none is embedded as zeros. */
static int
send_rows(glm_cuda_model_t *m, const glm_row_t *rows, int n, int bucket)
{
    char             *host = m->host_rows[m->turn];
    glm_cuda_rows_t  *r = (glm_cuda_rows_t *) (void *) host;
    int32_t          *pages = (int32_t *) (void *) (r + 1);

    for (int i = 0; i < bucket; i++) {
        int  some = i < n;

        r->token[i] = some ? rows[i].token : m->base.cfg.vocab;
        r->slot[i] = some ? rows[i].slot : -1;
        r->position[i] = some ? rows[i].position : 0;
        if (!some) continue;
        memcpy(pages + (size_t) i * (size_t) m->ldpages, rows[i].pages,
            ((size_t) rows[i].slot / GLM_KV_PAGE + 1) * sizeof(int32_t));
    }
    return glm_gpu_copy(m->gpu, m->rows, host,
        sizeof(*r) + (size_t) n * (size_t) m->ldpages * sizeof(int32_t), m->stream);
}

typedef struct {
    glm_cuda_model_t  *m;
    glm_gsample_t     *row;
    char              *lists;
    size_t             used;      /* of them */
} picks_t;

/* A mask of allowed ids, once however many rows have it.  Contents are copied at
 * every step, as their owner may change them between two. */
static int
put_mask(picks_t *p, const glm_row_t *rows, int i)
{
    glm_cuda_model_t  *m = p->m;
    size_t             bytes = ((size_t) m->base.cfg.vocab + 63) / 64 * sizeof(uint64_t);

    for (int j = 0; j < i; j++) {
        if (rows[j].sample == NULL || rows[j].sample->allow != rows[i].sample->allow) continue;
        p->row[i].allow = p->row[j].allow;
        return 0;
    }
    if (bytes > m->lists_bytes - p->used) return GLM_ELIMIT;
    memcpy(p->lists + p->used, rows[i].sample->allow, bytes);
    p->row[i].allow = (const uint64_t *) (const void *) (m->picks + sizeof(glm_cuda_picks_t)
                                                         + p->used);
    p->used += (bytes + 15) / 16 * 16;
    return 0;
}

static int
put_row(picks_t *p, const glm_row_t *rows, int i)
{
    const glm_sample_t  *s = rows[i].sample;
    int                  rc;

    rc = glm_cuda_sample_pack(s, NULL, p->lists, p->m->lists_bytes, &p->used, &p->row[i]);
    return rc == 0 && s->allow != NULL ? put_mask(p, rows, i) : rc;
}

/* What is asked of each row; rows that nobody asks are not live. */
static int
send_picks(glm_cuda_model_t *m, const glm_row_t *rows, int n, int bucket)
{
    picks_t  p = { m, picks_of(m->host_picks)->row, m->host_picks + sizeof(glm_cuda_picks_t), 0 };
    int      rc = 0;

    memset(p.row, 0, (size_t) bucket * sizeof(*p.row));
    for (int i = 0; i < n && rc == 0; i++) {
        if (rows[i].sample != NULL) rc = put_row(&p, rows, i);
    }
    if (rc != 0) return rc;
    return glm_gpu_copy(m->gpu, m->picks, m->host_picks, sizeof(glm_cuda_picks_t) + p.used,
        m->stream);
}

/* ---- a step ---- */

int
glm_cuda_output(glm_cuda_model_t *m, const float *y, const void *a, int rows, int bucket,
    float *x)
{
    size_t     hidden = (size_t) m->base.cfg.hidden, bytes = (size_t) bucket * hidden * 2;
    uint16_t  *h = malloc(bytes);
    int        rc;

    if (h == NULL) return GLM_ENOMEM;
    if ((rc = glm_gpu_copy(m->gpu, h, a, bytes, m->stream)) == 0
        && (rc = glm_gpu_copy(m->gpu, x, y, (size_t) rows * hidden * sizeof(float),
                              m->stream)) == 0
        && (rc = glm_cuda_sync(m)) == 0)
    {
        for (size_t i = 0; i < (size_t) rows * hidden; i++) {
            size_t  at = glm_cuda_packed((int) hidden, (int) (i % hidden), (int) (i / hidden),
                                         bucket);

            x[i] += m->alpha * glm_half_to_float(h[at]);
        }
    }
    free(h);
    return rc;
}

/* Without a graph, a look at every layer. */
static int
traced(glm_cuda_model_t *m, int rows, int bucket)
{
    float  *x = malloc((size_t) rows * (size_t) m->base.cfg.hidden * sizeof(float));
    int     rc = x == NULL ? GLM_ENOMEM : embed(m, bucket);

    for (int i = 0; i < m->base.cfg.layers && rc == 0; i++) {
        if ((rc = layer(m, i, bucket)) != 0) break;
        rc = glm_cuda_output(m, m->y, m->a, rows, bucket, x);
        if (rc == 0) m->base.trace(m->base.trace_arg, i, x, rows);
    }
    free(x);
    return rc != 0 ? rc : head(m, bucket);
}

int
glm_cuda_begin(glm_model_t *model, const glm_row_t *rows, int n)
{
    glm_cuda_model_t  *m = (glm_cuda_model_t *) model;
    int                b = bucket_of(n), rc = send_rows(m, rows, n, bucket_rows(b));

    if (rc != 0) return rc;
    if (model->trace != NULL) rc = traced(m, n, bucket_rows(b));
    else rc = glm_gpu_launch(m->gpu, m->forward[b], m->stream);
    if (rc == 0) m->turn = !m->turn;
    return rc;
}

static int
pick(glm_cuda_model_t *m, const glm_row_t *rows, int n)
{
    const glm_cuda_rows_t  *r = rows_of(m->host_rows[!m->turn]);    /* as it began */
    size_t                  vocab = (size_t) m->base.cfg.vocab;
    int                     b = bucket_of(n), last = -1, rc;

    for (int i = 0; i < n; i++) {
        int32_t  token = r->token[i];

        m->asked[i] = (glm_cuda_asked_t) {
            .asked = rows[i].sample != NULL, .slot = r->slot[i],
            .token = token >= 0 ? token : m->sampled[-1 - token].id
        };
        if (m->asked[i].asked) last = i;
    }
    m->nasked = n;
    if (last >= 0) {
        if ((rc = send_picks(m, rows, n, bucket_rows(b))) != 0
            || (rc = glm_gpu_spoil(m->gpu, m->logits + (size_t) last * vocab + vocab / 2, m->stream)) != 0
            || (rc = glm_gpu_launch(m->gpu, m->sampler[b], m->stream)) != 0)
        {
            return rc;
        }
    }
    return glm_gpu_record(m->gpu, m->done, m->stream);
}

/* The step before this one is read, so the sampler's memory is free.  If this one is
 * not to be read, its forward pass is waited for: the next steps are written where its
 * rows are. */
int
glm_cuda_sample(glm_model_t *model, const glm_row_t *rows, int n)
{
    glm_cuda_model_t  *m = (glm_cuda_model_t *) model;
    int                rc = pick(m, rows, n);

    if (rc != 0) (void) glm_cuda_sync(m);
    return rc;
}

/* Where logits are no numbers, what else this card gives cannot be trusted: none of the
 * step's ids is told. */
static int
check_finite(glm_cuda_model_t *m)
{
    char  text[128];
    int   bad = 0, first = 0;

    for (int i = m->nasked - 1; i >= 0; i--) {
        if (!m->asked[i].asked || m->sampled[i].id != -1) continue;
        bad++;
        first = i;
    }
    if (bad == 0) return 0;
    snprintf(text, sizeof(text), "NaN or infinity in %d of %d rows; row %d: token %d, slot %d",
        bad, m->nasked, first, m->asked[first].token, m->asked[first].slot);
    return glm_gpu_spoilt(m->gpu, GLM_ENAN, "logits", text);
}

int
glm_cuda_read(glm_model_t *model, glm_sampled_t *out)
{
    glm_cuda_model_t  *m = (glm_cuda_model_t *) model;
    int                rc = glm_gpu_wait(m->gpu, m->done);

    if (rc != 0 || (rc = check_finite(m)) != 0) return rc;
    for (int i = 0; i < m->nasked; i++) {
        if (m->asked[i].asked) out[i] = m->sampled[i];
    }
    return 0;
}

/* At most GLM_CUDA_MAX_ROWS of them. */
static int
some_rows(glm_cuda_model_t *m, const glm_row_t *rows, int n, glm_sampled_t *out, float *logits)
{
    size_t  bytes = (size_t) n * (size_t) m->base.cfg.vocab * sizeof(float);
    int     rc;

    if ((rc = glm_cuda_begin(&m->base, rows, n)) != 0
        || (rc = glm_cuda_sample(&m->base, rows, n)) != 0)
    {
        return rc;
    }
    if (logits != NULL) {
        rc = glm_gpu_copy(m->gpu, logits, m->logits, bytes, m->stream);
        if (rc == 0) rc = glm_cuda_sync(m);
    }
    return rc != 0 ? rc : glm_cuda_read(&m->base, out);
}

int
glm_cuda_step(glm_model_t *model, const glm_row_t *rows, int nrows, glm_sampled_t *out,
    float *logits)
{
    glm_cuda_model_t  *m = (glm_cuda_model_t *) model;
    size_t             vocab = (size_t) model->cfg.vocab;
    int                rc = 0, n;

    for (int i = 0; i < nrows && rc == 0; i += n) {
        n = nrows - i < GLM_CUDA_MAX_ROWS ? nrows - i : GLM_CUDA_MAX_ROWS;
        rc = some_rows(m, rows + i, n, out == NULL ? NULL : out + i,
            logits == NULL ? NULL : logits + (size_t) i * vocab);
    }
    return rc;
}
