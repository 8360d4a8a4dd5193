/*
 * model_cuda_report: the memory plan in words, for --plan and the log.
 */
#include <stdlib.h>
#include <string.h>

#include "log.h"
#include "model_cuda.h"

static const char *const  kind_name[GLM_MEM_KINDS] = {
    "linears, int4", "linears, int8", "linears, fp16", "head", "biases, norms, rotary table",
    "a step: activations, logits, workspaces", "a context: activations", "KV cache"
};

/* 84,462,796,800 */
static const char *
grouped(char out[32], size_t n)
{
    char  digits[32];
    int   len = snprintf(digits, sizeof(digits), "%zu", n), at = 0;

    for (int i = 0; i < len; i++) {
        if (i > 0 && (len - i) % 3 == 0) out[at++] = ',';
        out[at++] = digits[i];
    }
    out[at] = '\0';
    return out;
}

static void
line(FILE *out, const char *what, size_t bytes)
{
    char  text[32];

    fprintf(out, "  %-42s %16s\n", what, grouped(text, bytes));
}

static void
print(const glm_cuda_model_t *m, FILE *out)
{
    const glm_cuda_plan_t  *p = &m->plan;
    char                    text[32];

    fprintf(out, "%s on %s: bytes\n", m->base.cfg.name[0] ? m->base.cfg.name : "the model",
        p->card);
    for (int i = 0; i < GLM_MEM_KV; i++) {
        if (p->bytes[i] > 0) line(out, kind_name[i], p->bytes[i]);
    }
    line(out, "left to CUDA: graphs, modules", p->reserve);
    line(out, kind_name[GLM_MEM_KV], p->bytes[GLM_MEM_KV]);
    line(out, "all", p->total + p->reserve);
    if (p->device != 0) line(out, "of", p->device);
    fprintf(out, "KV: %s tokens of %zu bytes, %s; head %s; rows of a step %d, tokens of a "
        "sequence %d\n", grouped(text, (size_t) m->base.kv_pages * GLM_KV_PAGE), p->kv_token,
        m->kv_int8 ? "int8" : "fp16", m->head_int8 ? "int8" : "fp16", m->base.max_rows,
        m->base.max_seq);
    fprintf(out, "pinned host memory: %s bytes, the embedding among them",
        grouped(text, p->pinned));
    if (p->loading > 0) {
        fprintf(out, "; while loading, %s", grouped(text, p->pinned + p->loading));
    }
    fputc('\n', out);
}

void
glm_cuda_log_plan(const glm_cuda_model_t *m)
{
    const glm_cuda_plan_t  *p = &m->plan;
    size_t                  weights = 0;

    for (int i = GLM_MEM_INT4; i <= GLM_MEM_VECTORS; i++) weights += p->bytes[i];
    glm_log(GLM_LOG_NOTICE, "%s: weights %.2f GB, head %s, workspaces %.2f GB, KV %.2f GB for %d "
        "tokens in %s, left to CUDA %.2f GB; of %.2f GB", p->card, (double) weights * 1e-9,
        m->head_int8 ? "int8" : "fp16",
        (double) (p->bytes[GLM_MEM_STEP] + p->bytes[GLM_MEM_PREFILL]) * 1e-9,
        (double) p->bytes[GLM_MEM_KV] * 1e-9, m->base.kv_pages * GLM_KV_PAGE,
        m->kv_int8 ? "int8" : "fp16", (double) (p->device - p->total) * 1e-9,
        (double) p->device * 1e-9);
}

/* The card that is here, or one of device_memory bytes. */
void
glm_cuda_plan_card(glm_cuda_model_t *m, const glm_gpu_info_t *info, uint64_t device_memory)
{
    glm_cuda_plan_t  *p = &m->plan;

    snprintf(p->card, sizeof(p->card), "%s", info != NULL ? info->name : "a card");
    if (info != NULL) {
        p->sms = info->sms;
        p->device = info->free;
    }
    if (device_memory == 0) return;
    if (info == NULL || device_memory < p->device) p->device = (size_t) device_memory;
}

static int
plan_of(glm_cuda_model_t *m, const glm_model_opts_t *o, glm_err_t *err)
{
    glm_loader_t    *l = NULL;
    glm_gpu_info_t   info;
    glm_err_t        none = { "" };
    int              rc, here;

    if ((rc = glm_loader_open(&l, o->dir, &m->base.cfg, o->dummy, err)) != 0) return rc;
    here = o->device_memory == 0 && glm_cuda_card(&info, &none) == 0;
    glm_cuda_options(m, o);
    glm_cuda_plan_card(m, here ? &info : NULL, o->device_memory);
    rc = glm_cuda_describe(m, l, err);
    if (rc == 0) rc = glm_cuda_plan(m, err);
    if (rc == 0) rc = glm_cuda_plan_load(m, l, err);
    glm_loader_close(l);
    return rc;
}

int
glm_model_plan(const glm_model_opts_t *opts, FILE *out, glm_err_t *err)
{
    glm_cuda_model_t  *m = calloc(1, sizeof(*m));
    int                rc;

    if (m == NULL) return glm_fail(err, GLM_ENOMEM, "no memory for a plan");
    if ((rc = glm_model_setup(&m->base, &glm_backend_cuda, opts, err)) == 0) {
        rc = plan_of(m, opts, err);
        if (rc == 0 || rc == GLM_ENOMEM) print(m, out);
    }
    free(m->layer);
    free(m);
    return rc;
}
