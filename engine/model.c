/*
 * model: loading, what a caller may ask, and the checks before a pass.  The
 * pass itself is model_forward.c; memory and slicing are model_weights.c.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/half.h"
#include "model_impl.h"

/* The table of section 1: fp16 inverse frequency, angle, cosine and sine. */
static void
rope_table(glm_model_t *m)
{
    int    d = m->cfg.head_dim, half = d / 2;
    float  inv, ang;

    for (int i = 0; i < half; i++) {
        inv = 1.0f / powf(10000.0f, (float) (2 * i) / (float) d);
        inv = glm_half_to_float(glm_float_to_half(inv));
        for (int p = 0; p < m->max_seq; p++) {
            size_t  at = (size_t) p * (size_t) half + (size_t) i;

            ang = glm_half_to_float(glm_float_to_half((float) p)) * inv;
            ang = glm_half_to_float(glm_float_to_half(ang));
            m->rope_cos[at] = glm_half_to_float(glm_float_to_half(cosf(ang)));
            m->rope_sin[at] = glm_half_to_float(glm_float_to_half(sinf(ang)));
        }
    }
    m->rope = (glm_rope_t) { m->rope_cos, m->rope_sin, d };
}

static int
check_opts(const glm_model_opts_t *o, const glm_config_t *c, glm_err_t *err)
{
    if (o->tp != 1 && o->tp != 2 && o->tp != 4 && o->tp != 8) {
        return glm_fail(err, GLM_EINVAL, "tensor parallel degree %d: not 1, 2, 4 or 8", o->tp);
    }
    if (c->heads % o->tp || c->inner % o->tp || c->vocab % o->tp) {
        return glm_fail(err, GLM_EINVAL, "tensor parallel degree %d does not divide %d heads, "
            "inner size %d and vocabulary %d", o->tp, c->heads, c->inner, c->vocab);
    }
    if (c->head_dim % 16 != 0) {
        return glm_fail(err, GLM_EINVAL, "head size %d is not a multiple of 16", c->head_dim);
    }
    if (o->kv_pages < 1 || o->max_rows < 1 || o->threads < 0) {
        return glm_fail(err, GLM_EINVAL, "%d KV pages, %d rows, %d threads: not possible",
            o->kv_pages, o->max_rows, o->threads);
    }
    return 0;
}

static int
choose_ops(glm_model_t *m, const glm_model_opts_t *o, glm_err_t *err)
{
    const char  *isa = o->isa != NULL ? o->isa : getenv("GLM_ISA");

    m->ops = glm_cpu_ops(isa);
    if (m->ops != NULL) return 0;
    return glm_fail(err, GLM_EINVAL, "instruction set \"%s\" is unknown or not of this machine "
        "(plain, avx2, avx512)", isa);
}

/* Ranks sum in another order at another degree, so it is part of the hash; the
 * instruction set and the number of threads change no bit, so they are not. */
static uint64_t
fingerprint(const glm_model_t *m, const glm_loader_t *l)
{
    uint64_t  h = glm_loader_hash(l);

    h = (h ^ (uint64_t) m->tp) * 0x9e3779b97f4a7c15u;
    h ^= h >> 32;
    h = (h ^ GLM_KERNEL_GENERATION) * 0x9e3779b97f4a7c15u;
    return h ^ h >> 32;
}

static int
start_team(glm_model_t *m, const glm_model_opts_t *o, glm_err_t *err)
{
    int  threads = o->threads > 0 ? o->threads : glm_comm_cores(), per, rc;
    int  heads = m->cfg.heads / m->tp, d = m->cfg.head_dim;

    per = threads / m->tp > 0 ? threads / m->tp : 1;
    if ((rc = glm_comm_new(&m->comm, m->tp, per, err)) != 0) return rc;
    m->nthreads = glm_comm_threads(m->comm);
    m->fused = heads % per == 0 && 3 * d % GLM_PANEL == 0;
    return 0;
}

int
glm_model_load(glm_model_t **out, const glm_model_opts_t *opts, glm_err_t *err)
{
    glm_loader_t  *l = NULL;
    glm_model_t   *m;
    int            rc;

    *out = NULL;
    m = calloc(1, sizeof(*m));
    if (m == NULL) return glm_fail(err, GLM_ENOMEM, "no memory for the model");
    if ((rc = glm_config_load(&m->cfg, opts->dir, err)) != 0
        || (rc = check_opts(opts, &m->cfg, err)) != 0
        || (rc = choose_ops(m, opts, err)) != 0
        || (rc = glm_loader_open(&l, opts->dir, &m->cfg, opts->dummy, err)) != 0
        || (rc = glm_loader_check(l, err)) != 0)
    {
        goto fail;
    }
    m->tp = opts->tp;
    m->kv_pages = opts->kv_pages;
    m->max_rows = opts->max_rows;
    m->max_seq = m->cfg.max_seq;
    if ((rc = start_team(m, opts, err)) != 0
        || (rc = glm_model_alloc(m, err)) != 0
        || (rc = glm_model_fill(m, l, err)) != 0)
    {
        goto fail;
    }
    rope_table(m);
    m->fingerprint = fingerprint(m, l);
    glm_loader_close(l);
    *out = m;
    return 0;

fail:
    glm_loader_close(l);
    glm_model_free(m);
    return rc;
}

void
glm_model_free(glm_model_t *m)
{
    if (m == NULL) return;
    glm_comm_free(m->comm);
    glm_model_release(m);
    free(m);
}

const glm_config_t *
glm_model_config(const glm_model_t *m)
{
    return &m->cfg;
}

uint64_t
glm_model_fingerprint(const glm_model_t *m)
{
    return m->fingerprint;
}

size_t
glm_model_kv_page_bytes(const glm_model_t *m)
{
    return 2 * (size_t) m->cfg.layers * (size_t) m->cfg.hidden * GLM_KV_PAGE * sizeof(float);
}

const char *
glm_model_isa(const glm_model_t *m)
{
    return m->ops->isa;
}

void
glm_model_trace(glm_model_t *m, glm_trace_pt fn, void *arg)
{
    m->trace = fn;
    m->trace_arg = arg;
}

static int
pages_ok(const glm_model_t *m, const int32_t *pages, int slot)
{
    for (int i = 0; i <= slot / GLM_KV_PAGE; i++) {
        if (pages[i] < 0 || pages[i] >= m->kv_pages) return 0;
    }
    return 1;
}

static int
row_ok(const glm_model_t *m, const glm_row_t *r)
{
    return r->token >= 0 && r->token < m->cfg.vocab
        && r->position >= 0 && r->position < m->max_seq
        && r->slot >= 0 && r->slot < m->max_seq
        && pages_ok(m, r->pages, r->slot);
}

int
glm_model_step(glm_model_t *m, const glm_row_t *rows, int nrows, glm_sampled_t *out,
    float *logits)
{
    glm_pass_t  p = { .n = nrows, .last = m->cfg.layers, .token = m->token, .at = m->at,
                      .head = m->head, .rows = rows, .out = out };

    if (nrows < 1 || nrows > m->max_rows) return GLM_EINVAL;
    for (int i = 0; i < nrows; i++) {
        if (!row_ok(m, &rows[i])) return GLM_EINVAL;
        if (rows[i].sample != NULL && out == NULL) return GLM_EINVAL;
        m->token[i] = rows[i].token;
        m->at[i] = (glm_at_t) { rows[i].position, rows[i].slot, rows[i].pages };
        if (logits != NULL || rows[i].sample != NULL) m->head[p.nhead++] = i;
    }
    p.logits = logits != NULL ? logits : m->logits;
    glm_model_run(m, &p);
    return 0;
}

/* A prefill goes from layer 0 up without a gap, over the same tokens. */
static int
prefill_ok(const glm_model_t *m, const int32_t *tokens, int n, const int32_t *pages,
    int first, int last)
{
    if (n < 1 || n > m->max_seq || first < 0 || first >= last || last > m->cfg.layers) {
        return 0;
    }
    if (first != 0 && (first != m->prefill_next || n != m->prefill_n)) return 0;
    if (!pages_ok(m, pages, n - 1)) return 0;
    for (int i = 0; i < n && first == 0; i++) {
        if (tokens[i] < 0 || tokens[i] >= m->cfg.vocab) return 0;
    }
    return 1;
}

int
glm_model_prefill(glm_model_t *m, const int32_t *tokens, int n, const int32_t *pages,
    int first, int last, float *logits)
{
    glm_pass_t  p = { .context = 1, .n = n, .first = first, .last = last, .token = tokens,
                      .at = m->prefill_at, .head = m->head, .logits = logits };

    if (!prefill_ok(m, tokens, n, pages, first, last)) return GLM_EINVAL;
    for (int i = 0; i < n; i++) m->prefill_at[i] = (glm_at_t) { i, i, pages };
    if (last == m->cfg.layers) {
        p.keys_only = logits == NULL;
        for (int i = 0; i < n && logits != NULL; i++) m->head[p.nhead++] = i;
    }
    glm_model_run(m, &p);
    m->prefill_n = n;
    m->prefill_next = last == m->cfg.layers ? 0 : last;
    return 0;
}

int
glm_model_copy_page(glm_model_t *m, int32_t dst, int32_t src)
{
    if (dst < 0 || dst >= m->kv_pages || src < 0 || src >= m->kv_pages) return GLM_EINVAL;
    if (dst == src) return 0;
    for (int r = 0; r < m->tp; r++) {
        for (int i = 0; i < m->cfg.layers; i++) {
            const glm_kv_t  *kv = &m->rank[r].layer[i].kv;

            memcpy(kv->base + (size_t) dst * kv->page_floats,
                kv->base + (size_t) src * kv->page_floats,
                kv->page_floats * sizeof(float));
        }
    }
    return 0;
}
