/*
 * model_cuda: the CUDA backend's entry points: what is needed at start, in order,
 * and given back in the opposite one.  After start nothing is allocated.
 */
#include "model_cuda.h"

#include <stdlib.h>
#include <string.h>

#include "cpu/half.h"

static glm_cuda_model_t *
cuda(glm_model_t *m)
{
    return (glm_cuda_model_t *) m;
}

int
glm_cuda_card(glm_gpu_info_t *info, glm_err_t *err)
{
    glm_gpu_t  *g;
    int         rc = glm_gpu_open(&g, 0, GLM_GPU_TIMEOUT, err);

    if (rc != 0) return rc;
    *info = *glm_gpu_info(g);
    glm_gpu_close(g);
    return 0;
}

static int
cuda_probe(glm_err_t *err)
{
    glm_gpu_info_t  info;

    return glm_cuda_card(&info, err);
}

/* ---- start ---- */

static int
allocate(glm_cuda_model_t *m, glm_err_t *err)
{
    const glm_config_t  *c = &m->base.cfg;
    size_t               table = (size_t) c->vocab * (size_t) c->hidden * 2, host;
    int                  rc = glm_gpu_alloc(m->gpu, (void **) &m->arena, m->plan.total);

    if (rc != 0) {
        return glm_fail(err, rc, "%s: cannot allocate %zu of %zu bytes that were free: %s",
            m->plan.card, m->plan.total, m->plan.device, glm_gpu_error(m->gpu));
    }
    host = glm_cuda_lay_host(m, NULL);
    if ((rc = glm_gpu_pin(m->gpu, (void **) &m->table, table)) != 0
        || (rc = glm_gpu_pin(m->gpu, (void **) &m->host, host)) != 0)
    {
        return glm_fail(err, rc, "cannot pin %zu bytes of host memory: %s", table + host,
            glm_gpu_error(m->gpu));
    }
    glm_cuda_lay(m, m->arena);
    glm_cuda_lay_host(m, m->host);
    memset(m->host, 0, host);
    return 0;
}

/* The rotary table as the kernels read it: (cos, sin) pairs of fp16. */
static int
send_rope(glm_cuda_model_t *m)
{
    int     d = m->base.cfg.head_dim, rc = 0;
    size_t  n = (size_t) m->base.max_seq * (size_t) d / 2;
    float  *cos = malloc(2 * n * sizeof(float)), *sin;
    void   *half;

    if (cos == NULL) return GLM_ENOMEM;
    sin = cos + n;
    if ((rc = glm_gpu_pin(m->gpu, &half, 2 * n * sizeof(uint16_t))) == 0) {
        uint16_t  *h = half;

        glm_model_rope(d, m->base.max_seq, cos, sin);
        for (size_t i = 0; i < n; i++) {
            h[2 * i] = glm_float_to_half(cos[i]);
            h[2 * i + 1] = glm_float_to_half(sin[i]);
        }
        rc = glm_gpu_copy(m->gpu, m->rope, h, 2 * n * sizeof(uint16_t), m->stream);
        if (rc == 0) rc = glm_cuda_sync(m);
        glm_gpu_settle(m->gpu, m->stream);      /* should that have failed */
        glm_gpu_unpin(m->gpu, half);
    }
    free(cos);
    return rc;
}

/* KV pages too: what a row never sees must still be finite, as 0 * NaN is not 0. */
static int
clear(glm_cuda_model_t *m)
{
    char  *kv = m->layer[0].kv.base, *end = m->arena + m->plan.total;
    int    rc;

    if ((rc = glm_gpu_zero(m->gpu, m->rows, (size_t) (m->stage - m->rows), m->stream)) != 0) {
        return rc;
    }
    return glm_gpu_zero(m->gpu, kv, (size_t) (end - kv), m->stream);
}

/*
 * The driver loads a kernel, and takes the memory it wants, when it is first launched or
 * captured: those of a context by two that nobody asked for, as passes of few rows and of
 * many have kernels of their own.  What they leave in the KV cache is to be cleared.
 * (CUDA_MODULE_LOADING=EAGER would load both tables of kernels, one of them by the
 * driver's compiler.)
 */
static int
warm_up(glm_cuda_model_t *m)
{
    enum { MANY = GLM_CUDA_BLOCK + 1, PAGES = (MANY + GLM_KV_PAGE - 1) / GLM_KV_PAGE };
    int32_t  token[MANY] = { 0 }, pages[PAGES];
    int      room = (m->base.kv_pages < PAGES ? m->base.kv_pages : PAGES) * GLM_KV_PAGE, rc;
    int      most = m->base.max_seq < MANY ? m->base.max_seq : MANY;

    if (most > room) most = room;
    for (int i = 0; i < PAGES; i++) pages[i] = i;
    for (int i = 0; i < 2; i++) {
        glm_context_t  c = { token, pages, i == 0 ? 1 : most };

        rc = glm_cuda_prefill(&m->base, &c, 1, 0, m->base.cfg.layers, NULL);
        if (rc != 0) return rc;
    }
    return 0;
}

static int
start(glm_cuda_model_t *m, const glm_loader_t *l, glm_digest_t *d, glm_err_t *err)
{
    int  rc;

    if ((rc = allocate(m, err)) != 0) return rc;
    if ((rc = glm_gpu_stream(m->gpu, &m->stream)) != 0
        || (rc = glm_gpu_event(m->gpu, &m->done)) != 0
        || (rc = send_rope(m)) != 0
        || (rc = glm_cuda_fill(m, l, d, err)) != 0
        || (rc = clear(m)) != 0
        || (rc = warm_up(m)) != 0
        || (rc = clear(m)) != 0
        || (rc = glm_cuda_graphs(m)) != 0
        || (rc = glm_cuda_sync(m)) != 0)
    {
        return glm_fail(err, rc, "%s: starting failed: %s", m->plan.card,
            glm_gpu_error(m->gpu));
    }
    return 0;
}

/* Sums inside one matrix instruction differ between generations of cards, whichever
 * table of kernels runs there. */
static uint64_t
variant(const glm_cuda_model_t *m, const glm_gpu_info_t *info)
{
    return (uint64_t) info->major << 8 | (uint64_t) (2 * m->kv_int8 + m->head_int8);
}

static int
cuda_load(glm_model_t *model, const glm_model_opts_t *opts, const glm_loader_t *l,
    glm_digest_t *d, glm_err_t *err)
{
    glm_cuda_model_t  *m = cuda(model);
    int                rc;

    glm_cuda_options(m, opts);
    if ((rc = glm_cuda_describe(m, l, err)) != 0
        || (rc = glm_gpu_open(&m->gpu, 0, m->timeout, err)) != 0)
    {
        return rc;
    }
    m->ops = glm_gpu_ops(m->gpu);
    glm_cuda_plan_card(m, glm_gpu_info(m->gpu), opts->device_memory);
    if ((rc = glm_cuda_plan(m, err)) != 0) return rc;
    glm_cuda_log_plan(m);
    model->variant = variant(m, glm_gpu_info(m->gpu));
    return start(m, l, d, err);
}

/* A step may be under way, after a failure too: graphs and pinned memory are in use. */
static void
cuda_free(glm_model_t *model)
{
    glm_cuda_model_t  *m = cuda(model);

    if (m->gpu != NULL) {
        glm_gpu_settle(m->gpu, m->stream);
        for (int i = 0; i < GLM_CUDA_BUCKETS; i++) {
            glm_gpu_graph_free(m->gpu, m->forward[i]);
            glm_gpu_graph_free(m->gpu, m->sampler[i]);
        }
        glm_gpu_event_free(m->gpu, m->done);
        glm_gpu_stream_free(m->gpu, m->stream);
        glm_gpu_unpin(m->gpu, m->host);
        glm_gpu_unpin(m->gpu, m->table);
        glm_gpu_close(m->gpu);
    }
    free(m->layer);
}

/* ---- what it is, and pages ---- */

static size_t
cuda_kv_page_bytes(const glm_model_t *m)
{
    return ((const glm_cuda_model_t *) m)->page_bytes * (size_t) m->cfg.layers;
}

static const char *
cuda_isa(const glm_model_t *m)
{
    return ((const glm_cuda_model_t *) m)->ops->arch == 90 ? "sm_90" : "sm_80";
}

static int
cuda_fault(const glm_model_t *m, const char **text)
{
    glm_gpu_t  *g = ((const glm_cuda_model_t *) m)->gpu;

    *text = glm_gpu_error(g);
    return glm_gpu_fault(g);
}

int
glm_cuda_sync(glm_cuda_model_t *m)
{
    int  rc = glm_gpu_record(m->gpu, m->done, m->stream);

    return rc != 0 ? rc : glm_gpu_wait(m->gpu, m->done);
}

static int
cuda_wait(glm_model_t *model)
{
    return glm_cuda_sync(cuda(model));
}

/* Steps that follow are in the same stream: no need to wait. */
static int
cuda_copy_page(glm_model_t *model, int32_t dst, int32_t src)
{
    glm_cuda_model_t  *m = cuda(model);
    int                rc = 0;

    for (int i = 0; i < model->cfg.layers && rc == 0; i++) {
        char  *base = m->layer[i].kv.base;

        rc = glm_gpu_copy(m->gpu, base + (size_t) dst * m->page_bytes,
            base + (size_t) src * m->page_bytes, m->page_bytes, m->stream);
    }
    return rc;
}

const glm_backend_t  glm_backend_cuda = {
    .name = "cuda", .size = sizeof(glm_cuda_model_t),
    .generation = (uint64_t) 1 << 32 | GLM_CUDA_GENERATION,
    .probe = cuda_probe, .load = cuda_load, .free = cuda_free,
    .kv_page_bytes = cuda_kv_page_bytes, .isa = cuda_isa, .fault = cuda_fault,
    .wait = cuda_wait,
    .step = glm_cuda_step, .overlap = GLM_CUDA_MAX_ROWS, .begin = glm_cuda_begin,
    .sample = glm_cuda_sample, .read = glm_cuda_read,
    .together = GLM_CUDA_TOGETHER, .prefill = glm_cuda_prefill, .copy_page = cuda_copy_page,
};
