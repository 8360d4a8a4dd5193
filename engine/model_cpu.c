/*
 * model_cpu: the CPU backend's entry points.  Threads as ranks; the pass is in
 * model_cpu_forward.c, memory and slicing in model_cpu_weights.c.
 */
#include <stdlib.h>
#include <string.h>

#include "model_cpu.h"

#define DEFAULT_PROMPTS  16        /* of full length, that the KV cache holds */

static glm_cpu_model_t *
cpu(glm_model_t *m)
{
    return (glm_cpu_model_t *) m;
}

static int
cpu_probe(glm_err_t *err)
{
    (void) err;
    return 0;
}

static int
choose_ops(glm_cpu_model_t *m, const glm_model_opts_t *o, glm_err_t *err)
{
    const char  *isa = o->isa != NULL ? o->isa : getenv("GLM_ISA");

    m->ops = glm_cpu_ops(isa);
    if (m->ops != NULL) return 0;
    return glm_fail(err, GLM_EINVAL, "instruction set \"%s\" is unknown or not of this machine "
        "(plain, avx2, avx512)", isa);
}

static int
start_team(glm_cpu_model_t *m, const glm_model_opts_t *o, glm_err_t *err)
{
    int  threads = o->threads > 0 ? o->threads : glm_comm_cores(), tp = m->base.tp, per, rc;
    int  heads = m->base.cfg.heads / tp, d = m->base.cfg.head_dim;

    per = threads / tp > 0 ? threads / tp : 1;
    if ((rc = glm_comm_new(&m->comm, tp, per, err)) != 0) return rc;
    m->nthreads = glm_comm_threads(m->comm);
    m->fused = heads % per == 0 && 3 * d % GLM_PANEL == 0;
    return 0;
}

static int
cpu_load(glm_model_t *model, const glm_model_opts_t *opts, const glm_loader_t *l,
    glm_digest_t *d, glm_err_t *err)
{
    glm_cpu_model_t  *m = cpu(model);
    int               size = model->cfg.head_dim, rc;

    if (size % 16 != 0) {
        return glm_fail(err, GLM_EINVAL, "head size %d is not a multiple of 16", size);
    }
    if (opts->kv_int8 || opts->head == GLM_HEAD_INT8) {
        return glm_fail(err, GLM_EINVAL, "--%s int8 is the CUDA backend's: this one keeps fp32",
            opts->kv_int8 ? "kv-dtype" : "head");
    }
    if (model->kv_pages == 0) {
        model->kv_pages = DEFAULT_PROMPTS * ((model->max_seq + GLM_KV_PAGE - 1) / GLM_KV_PAGE);
    }
    if ((rc = choose_ops(m, opts, err)) != 0
        || (rc = start_team(m, opts, err)) != 0
        || (rc = glm_digest_mapped(d, err)) != 0    /* on all cores; the packing that
                                                       follows finds the files cached */
        || (rc = glm_cpu_alloc(m, l, err)) != 0
        || (rc = glm_cpu_fill(m, l, err)) != 0)
    {
        return rc;
    }
    glm_model_rope(size, model->max_seq, m->rope_cos, m->rope_sin);
    m->rope = (glm_rope_t) { m->rope_cos, m->rope_sin, size };
    return 0;
}

static void
cpu_free(glm_model_t *model)
{
    glm_comm_free(cpu(model)->comm);
    glm_cpu_release(cpu(model));
}

static size_t
cpu_kv_page_bytes(const glm_model_t *m)
{
    return 2 * (size_t) m->cfg.layers * (size_t) m->cfg.hidden * GLM_KV_PAGE * sizeof(float);
}

static const char *
cpu_isa(const glm_model_t *m)
{
    return ((const glm_cpu_model_t *) m)->ops->isa;
}

static int
cpu_step(glm_model_t *model, const glm_row_t *rows, int nrows, glm_sampled_t *out,
    float *logits)
{
    glm_cpu_model_t  *m = cpu(model);
    glm_pass_t        p = { .n = nrows, .last = model->cfg.layers, .token = m->token,
                            .at = m->at, .head = m->head, .rows = rows, .out = out };

    for (int i = 0; i < nrows; i++) {
        m->token[i] = rows[i].token;
        m->at[i] = (glm_at_t) { rows[i].position, rows[i].slot, rows[i].pages };
        if (logits != NULL || rows[i].sample != NULL) m->head[p.nhead++] = i;
    }
    p.logits = logits != NULL ? logits : m->logits;
    glm_cpu_run(m, &p);
    return 0;
}

static int
cpu_prefill(glm_model_t *model, const glm_context_t *c, int nc, int first, int last, float *logits)
{
    glm_cpu_model_t  *m = cpu(model);
    int               n = c->n;
    glm_pass_t        p = { .context = 1, .n = n, .first = first, .last = last,
                            .token = c->tokens, .at = m->prefill_at, .head = m->head,
                            .logits = logits };

    (void) nc;                    /* one */
    for (int i = 0; i < n; i++) m->prefill_at[i] = (glm_at_t) { i, i, c->pages };
    if (last == model->cfg.layers) {
        p.keys_only = logits == NULL;
        for (int i = 0; i < n && logits != NULL; i++) m->head[p.nhead++] = i;
    }
    glm_cpu_run(m, &p);
    return 0;
}

static int
cpu_copy_page(glm_model_t *model, int32_t dst, int32_t src)
{
    for (int r = 0; r < model->tp; r++) {
        for (int i = 0; i < model->cfg.layers; i++) {
            const glm_kv_t  *kv = &cpu(model)->rank[r].layer[i].kv;

            memcpy(kv->base + (size_t) dst * kv->page_floats,
                kv->base + (size_t) src * kv->page_floats,
                kv->page_floats * sizeof(float));
        }
    }
    return 0;
}

const glm_backend_t  glm_backend_cpu = {
    .name = "cpu", .size = sizeof(glm_cpu_model_t), .generation = GLM_KERNEL_GENERATION,
    .probe = cpu_probe, .load = cpu_load, .free = cpu_free,
    .kv_page_bytes = cpu_kv_page_bytes, .isa = cpu_isa,
    .step = cpu_step, .prefill = cpu_prefill, .copy_page = cpu_copy_page,
};
