/*
 * model_cpu_forward: the pass of a step or of a prefill's layers, as each thread of
 * each rank runs it.  Between operations that read what other threads wrote
 * there is a barrier of the rank; partial sums of ranks meet in two all-reduces
 * a layer.  A layer's output x is never stored: the next norm makes it of
 * a (the normed input), y (the sublayer's sum over ranks) and the bias.
 */
#include <string.h>

#include "model_cpu.h"

typedef struct {
    glm_cpu_model_t         *m;
    const glm_pass_t    *p;
    const glm_member_t  *me;
    glm_rank_t          *r;
    glm_thread_t        *t;
    int                  own;     /* a is this thread's own, of all rows */
    float               *a, *y;
    glm_fetch_t          fetch;   /* KV of the next attention */
} fwd_t;

/* a = norm(alpha a + y + bias), or norm(y) at the bottom. */
static void
norm(fwd_t *f, const glm_norm_t *nm, int bottom)
{
    size_t  ld = f->m->ld_h, at;
    int     first = 0, last = f->p->n;

    if (!f->own) glm_comm_share(f->me, f->p->n, &first, &last);
    at = (size_t) first * ld;
    f->m->ops->layernorm(f->a + at, ld, bottom ? NULL : f->a + at, ld, f->y + at, ld,
        last - first, nm);
    if (!f->own) glm_comm_barrier_rank(f->me);
}

/* y (or its rank's part) = x w^T, this thread's panels. */
static void
linear(fwd_t *f, float *y, size_t ldy, const float *x, size_t ldx, const glm_mat_t *w)
{
    int  p0, p1;

    glm_comm_share(f->me, glm_panels(w->n), &p0, &p1);
    f->m->ops->linear(y, ldy, x, ldx, f->p->n, w, p0, p1, &f->fetch);
}

static void
reduce(fwd_t *f)
{
    float  *buf[64];

    for (int i = 0; i < f->m->base.tp; i++) {
        buf[i] = f->p->context ? f->m->rank[i].py : f->m->rank[i].y;
    }
    glm_comm_allreduce(f->me, buf, f->p->n, f->m->base.cfg.hidden, f->m->ld_h);
}

/* q, k, v of heads h0 .. h1-1 by the thread that will need them. */
static void
qkv_heads(fwd_t *f, const glm_layer_t *l, int h0, int h1, int keys_only)
{
    const glm_cpu_model_t  *m = f->m;
    int                 d = m->base.cfg.head_dim, per = 3 * d / GLM_PANEL, skip;

    if (!keys_only || d % GLM_PANEL != 0) {
        m->ops->linear(f->r->qkv, m->ld_qkv, f->a, m->ld_h, f->p->n, &l->qkv, h0 * per,
            h1 * per, &f->fetch);
        return;
    }
    skip = d / GLM_PANEL;
    for (int h = h0; h < h1; h++) {
        m->ops->linear(f->r->qkv, m->ld_qkv, f->a, m->ld_h, f->p->n, &l->qkv,
            h * per + skip, (h + 1) * per, NULL);
    }
}

static void
rope_kv(fwd_t *f, const glm_layer_t *l, int r0, int r1, int h0, int h1)
{
    f->m->ops->rope_kv(f->r->qkv + (size_t) r0 * f->m->ld_qkv, f->m->ld_qkv, f->p->at + r0,
        r1 - r0, &f->m->rope, &l->kv, h0, h1);
}

static void
attend(fwd_t *f, const glm_layer_t *l, int r0, int r1, int h0, int h1)
{
    const glm_cpu_model_t  *m = f->m;
    const glm_pass_t   *p = f->p;
    float              *out = f->r->att + (size_t) r0 * m->ld_att;
    const float        *qkv = f->r->qkv + (size_t) r0 * m->ld_qkv;

    if (p->context) {
        m->ops->attn_context(out, m->ld_att, qkv, m->ld_qkv, r1 - r0, p->n, p->at[0].pages,
            &l->kv, h0, h1, f->t->attn);
    } else {
        m->ops->attn_row(out, m->ld_att, qkv, m->ld_qkv, p->at + r0, r1 - r0, &l->kv, h0, h1,
            f->t->attn);
    }
}

/* The linears from here to the next attention fetch what that will read. */
static void
fetch_next(fwd_t *f, const glm_layer_t *l, int h0, int h1)
{
    memset(&f->fetch, 0, sizeof(f->fetch));
    if (f->p->context || l + 1 == f->r->layer + f->p->last) return;
    f->fetch = (glm_fetch_t) { .kv = &l[1].kv, .at = f->p->at, .rows = f->p->n, .h0 = h0,
                               .h1 = h1 };
}

/* Heads shared out whole: what a thread reads it has written itself. */
static void
attention_fused(fwd_t *f, const glm_layer_t *l, int keys_only)
{
    int  h0, h1;

    glm_comm_share(f->me, l->kv.heads, &h0, &h1);
    qkv_heads(f, l, h0, h1, keys_only);
    rope_kv(f, l, 0, f->p->n, h0, h1);
    if (!keys_only) attend(f, l, 0, f->p->n, h0, h1);
    fetch_next(f, l, h0, h1);
}

/* Any number of threads: panels, then rows, then blocks of rows of a head. */
static void
attention_split(fwd_t *f, const glm_layer_t *l, int keys_only)
{
    int  n = f->p->n, block = f->p->context ? GLM_ATTN_ROWS : 1, blocks, t0, t1, r0, r1;

    linear(f, f->r->qkv, f->m->ld_qkv, f->a, f->m->ld_h, &l->qkv);
    glm_comm_barrier_rank(f->me);
    glm_comm_share(f->me, n, &r0, &r1);
    rope_kv(f, l, r0, r1, 0, l->kv.heads);
    glm_comm_barrier_rank(f->me);
    if (keys_only) return;

    blocks = (n + block - 1) / block;
    glm_comm_share(f->me, blocks * l->kv.heads, &t0, &t1);
    for (int t = t0; t < t1; t++) {
        int  h = t / blocks, first = t % blocks * block;

        attend(f, l, first, first + block < n ? first + block : n, h, h + 1);
    }
}

static void
mlp(fwd_t *f, const glm_layer_t *l)
{
    const glm_cpu_model_t  *m = f->m;
    glm_rank_t         *r = f->r;
    int                 p0, p1, n;
    size_t              at;

    linear(f, r->u1, m->ld_i, f->a, m->ld_h, &l->u1);
    linear(f, r->u2, m->ld_i, f->a, m->ld_h, &l->u2);

    glm_comm_share(f->me, glm_panels(l->u1.n), &p0, &p1);
    at = (size_t) p0 * GLM_PANEL;
    n = (p1 * GLM_PANEL < l->u1.n ? p1 * GLM_PANEL : l->u1.n) - p0 * GLM_PANEL;
    if (n > 0) m->ops->geglu(r->u1 + at, m->ld_i, r->u1 + at, r->u2 + at, m->ld_i, f->p->n, n);
    glm_comm_barrier_rank(f->me);
    linear(f, f->y, m->ld_h, r->u1, m->ld_i, &l->down);
}

static void
trace(fwd_t *f, int layer, const glm_norm_t *above)
{
    glm_cpu_model_t  *m = f->m;

    if (f->me->id == 0) {
        m->ops->residual(m->trace_x, (size_t) m->base.cfg.hidden, f->a, m->ld_h, f->y, m->ld_h,
            f->p->n, above);
        m->base.trace(m->base.trace_arg, layer, m->trace_x, f->p->n);
    }
    glm_comm_barrier_all(f->me);
}

static void
layer(fwd_t *f, int i)
{
    glm_layer_t  *l = &f->r->layer[i];
    int           top = i + 1 == f->m->base.cfg.layers, keys_only = top && f->p->keys_only;

    norm(f, &l->ln1, i == 0);
    if (f->m->fused) attention_fused(f, l, keys_only);
    else attention_split(f, l, keys_only);
    if (keys_only) return;
    glm_comm_barrier_rank(f->me);
    linear(f, f->y, f->m->ld_h, f->r->att, f->m->ld_att, &l->dense);
    reduce(f);
    norm(f, &l->ln2, 0);
    mlp(f, l);
    reduce(f);
    if (f->m->base.trace != NULL) trace(f, i, top ? &f->r->final : &l[1].ln1);
}

static void
embed(fwd_t *f)
{
    size_t  ld = f->m->ld_h;
    int     r0, r1;

    glm_comm_share(f->me, f->p->n, &r0, &r1);
    f->m->ops->embed(f->y + (size_t) r0 * ld, ld, f->p->token + r0, f->r->v0, r1 - r0,
        &f->r->embed);
    reduce(f);
}

/* Rows that want logits: final norm into x (nhead rows), then the head. */
static void
head(fwd_t *f)
{
    const glm_cpu_model_t  *m = f->m;
    const glm_pass_t   *p = f->p;
    size_t              ld = m->ld_h;
    float              *x = f->own ? f->a : f->r->h;
    int                 first = 0, last = p->nhead, p0, p1;

    if (!f->own) glm_comm_share(f->me, p->nhead, &first, &last);
    for (int j = first; j < last; j++) {        /* own: j <= head[j], so in place */
        size_t  at = (size_t) p->head[j] * ld;

        m->ops->layernorm(x + (size_t) j * ld, ld, f->a + at, ld, f->y + at, ld, 1,
            &f->r->final);
    }
    if (!f->own) glm_comm_barrier_rank(f->me);
    glm_comm_share(f->me, glm_panels(f->r->embed.n), &p0, &p1);
    m->ops->linear(p->logits + f->r->v0, (size_t) m->base.cfg.vocab, x, ld, p->nhead,
        &f->r->embed, p0, p1, NULL);
    glm_comm_barrier_all(f->me);
}

static void
sample(fwd_t *f)
{
    const glm_pass_t  *p = f->p;
    size_t             vocab = (size_t) f->m->base.cfg.vocab;

    for (int j = f->me->id; j < p->nhead; j += f->me->n) {
        int  i = p->head[j];

        if (p->rows[i].sample == NULL) continue;
        glm_sample(p->logits + (size_t) j * vocab, f->m->base.cfg.vocab, p->rows[i].sample,
            f->t->sample, &p->out[i]);
    }
}

typedef struct {
    glm_cpu_model_t       *m;
    const glm_pass_t  *p;
} job_t;

static void
forward(const glm_member_t *me, void *arg)
{
    job_t  *job = arg;
    fwd_t   f = { .m = job->m, .p = job->p, .me = me, .r = &job->m->rank[me->rank],
                  .t = &job->m->thread[me->id] };

    /* a prefill's a and y must last until its next slice */
    f.own = !f.p->context && f.p->n <= GLM_OWN_ROWS;
    f.a = f.own ? f.t->a : f.p->context ? f.r->pa : f.r->a;
    f.y = f.p->context ? f.r->py : f.r->y;

    if (f.p->first == 0) embed(&f);
    for (int i = f.p->first; i < f.p->last; i++) layer(&f, i);
    if (f.p->nhead > 0) head(&f);
    if (f.p->rows != NULL) sample(&f);
}

void
glm_cpu_run(glm_cpu_model_t *m, const glm_pass_t *pass)
{
    job_t  job = { m, pass };

    glm_comm_run(m->comm, forward, &job);
}
