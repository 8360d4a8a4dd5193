/*
 * model_cuda_plan: where everything lies on the card.  One walk names and counts
 * each buffer; loading walks it again from the address of the one allocation, so
 * what is planned is what is taken.  Needs no card and no CUDA.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model_cuda.h"

#define RESERVE       ((size_t) 512 << 20)    /* at most; a 64th of a small card */
#define SMS_UNKNOWN   132                     /* an H100's */
#define LIST_EXTRA    2048                    /* biases, bad words beside the sequence */

typedef struct {
    char    *base;                /* NULL: counting */
    size_t   used;
    size_t  *bytes;               /* (GLM_MEM_KINDS) */
} arena_t;

static void *
take(arena_t *a, int kind, size_t bytes)
{
    void  *p = a->base == NULL ? NULL : a->base + a->used;

    bytes = (bytes + 255) / 256 * 256;
    a->used += bytes;
    if (a->bytes != NULL) a->bytes[kind] += bytes;
    return p;
}

/* ---- weights ---- */

static const char *const  linear_name[GLM_CUDA_LINEARS] = {
    "attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"
};

static int
describe_linear(glm_cuda_model_t *m, const glm_loader_t *l, int layer, int i, glm_err_t *err)
{
    static const int   types[] = { [GLM_T_F16] = GLM_W_F16, [GLM_T_INT8] = GLM_W_INT8,
                                   [GLM_T_INT4] = GLM_W_INT4 };
    glm_cuda_layer_t  *to = &m->layer[layer];
    glm_tensor_t       t;
    char               name[128];
    int                rc;

    snprintf(name, sizeof(name), "layers.%d.%s.weight", layer, linear_name[i]);
    if ((rc = glm_loader_tensor(l, name, &t, err)) != 0) return rc;
    if (t.groups > 1 && (t.type != GLM_T_INT4 || t.cols != t.groups * 128)) {
        return glm_fail(err, GLM_EINVAL, "%s is %s with a scale for %d columns: the CUDA kernels "
            "take int4 with 128 and whole rows, int8 with whole rows", name,
            t.type == GLM_T_INT4 ? "int4" : "int8", t.cols / t.groups);
    }
    to->w[i] = (glm_tiles_t) { .k = t.cols, .n = t.rows, .type = types[t.type],
                               .glu = i == GLM_CUDA_UP };
    to->groups[i] = t.groups;
    return 0;
}

static int
check_sizes(const glm_config_t *c, glm_err_t *err)
{
    const struct { const char *what; int value, ok; const char *want; } size[] = {
        { "head size", c->head_dim, c->head_dim == 64 || c->head_dim == 128, "64 or 128" },
        { "hidden_size", c->hidden, c->hidden % 256 == 0 && c->hidden <= 12288,
          "a multiple of 256 up to 12288" },
        { "inner_hidden_size", c->inner, c->inner % 256 == 0 && c->inner <= 1 << 17,
          "a multiple of 256 up to 131072" },
        { "vocab_size", c->vocab, c->vocab % 8 == 0 && c->vocab <= 1 << 19,
          "a multiple of 8 up to 524288" },
    };

    for (size_t i = 0; i < sizeof(size) / sizeof(size[0]); i++) {
        if (size[i].ok) continue;
        return glm_fail(err, GLM_EINVAL, "%s %d: the CUDA kernels take %s (--backend cpu takes "
            "this model)", size[i].what, size[i].value, size[i].want);
    }
    return 0;
}

static int
any_quantised(const glm_cuda_model_t *m)
{
    for (int i = 0; i < m->base.cfg.layers; i++) {
        for (int k = 0; k < GLM_CUDA_LINEARS; k++) {
            if (m->layer[i].w[k].type != GLM_W_F16) return 1;
        }
    }
    return 0;
}

void
glm_cuda_options(glm_cuda_model_t *m, const glm_model_opts_t *o)
{
    m->kv_int8 = o->kv_int8;
    m->head_type = o->head;
    m->timeout = o->gpu_timeout > 0 ? o->gpu_timeout : GLM_GPU_TIMEOUT;
    m->readers = o->readers;
    m->piece = o->piece > 0 ? o->piece : GLM_LOAD_PIECE;
}

int
glm_cuda_describe(glm_cuda_model_t *m, const glm_loader_t *l, glm_err_t *err)
{
    const glm_config_t  *c = &m->base.cfg;
    int                  rc;

    if (m->base.tp != 1) {
        return glm_fail(err, GLM_EINVAL, "--tp %d: the CUDA backend runs on one card so far (1)",
            m->base.tp);
    }
    if ((rc = check_sizes(c, err)) != 0) return rc;
    m->alpha = sqrtf(2 * (float) c->layers);
    m->ldpages = (m->base.max_seq + GLM_KV_PAGE - 1) / GLM_KV_PAGE;
    m->page_bytes = (size_t) c->heads * glm_cuda_kv_head_bytes(c->head_dim, m->kv_int8);
    m->page_bytes = (m->page_bytes + 127) / 128 * 128;
    m->layer = calloc((size_t) c->layers, sizeof(*m->layer));
    if (m->layer == NULL) return glm_fail(err, GLM_ENOMEM, "no memory for %d layers", c->layers);
    for (int i = 0; i < c->layers; i++) {
        for (int k = 0; k < GLM_CUDA_LINEARS; k++) {
            if ((rc = describe_linear(m, l, i, k, err)) != 0) return rc;
        }
    }
    m->head_int8 = m->head_type == GLM_HEAD_INT8
        || (m->head_type == GLM_HEAD_AUTO && any_quantised(m));
    m->head = (glm_tiles_t) { .k = c->hidden, .n = c->vocab,
                              .type = m->head_int8 ? GLM_W_INT8 : GLM_W_F16 };
    return 0;
}

static void
lay_tiles(arena_t *a, int kind, glm_tiles_t *w)
{
    w->tiles = take(a, kind, glm_cuda_tile_bytes(w->type, w->k, w->n));
}

static void
lay_norm(arena_t *a, glm_cuda_norm_t *nm, const glm_config_t *c)
{
    nm->weight = take(a, GLM_MEM_VECTORS, (size_t) c->hidden * 2);
    nm->bias = take(a, GLM_MEM_VECTORS, (size_t) c->hidden * 2);
}

static void
lay_weights(arena_t *a, glm_cuda_model_t *m)
{
    static const int     kinds[] = { [GLM_W_INT4] = GLM_MEM_INT4, [GLM_W_INT8] = GLM_MEM_INT8,
                                     [GLM_W_F16] = GLM_MEM_F16 };
    const glm_config_t  *c = &m->base.cfg;

    for (int i = 0; i < c->layers; i++) {
        glm_cuda_layer_t  *l = &m->layer[i];

        for (int k = 0; k < GLM_CUDA_LINEARS; k++) {
            lay_tiles(a, kinds[l->w[k].type], &l->w[k]);
            l->bias[k] = take(a, GLM_MEM_VECTORS, (size_t) l->w[k].n * 2);
            l->w[k].bias = l->bias[k];
        }
        lay_norm(a, &l->ln[0], c);
        lay_norm(a, &l->ln[1], c);
    }
    lay_tiles(a, GLM_MEM_HEAD, &m->head);
    lay_norm(a, &m->final, c);
    m->rope = take(a, GLM_MEM_VECTORS, (size_t) m->base.max_seq * (size_t) c->head_dim * 2);
}

/* ---- buffers ---- */

/* Most that the sampler's masks and lists of a step can take. */
static size_t
most_lists(const glm_cuda_model_t *m)
{
    size_t  ids = (size_t) m->base.max_seq + LIST_EXTRA;
    size_t  mask = ((size_t) m->base.cfg.vocab + 63) / 64 * 8;

    return GLM_CUDA_MAX_ROWS
        * ((mask + 15) / 16 * 16 + glm_cuda_sample_lists(ids, ids, GLM_MAX_LOGPROBS));
}

/* Also of a pass of prefill, 256 columns at least (tests). */
static size_t
logits_bytes(int vocab)
{
    size_t  step = (size_t) GLM_CUDA_MAX_ROWS * (size_t) vocab;
    size_t  pass = (size_t) GLM_CUDA_PREFILL_ROWS * 256;

    return (step > pass ? step : pass) * sizeof(float);
}

static void
lay_step(arena_t *a, glm_cuda_model_t *m)
{
    const glm_config_t  *c = &m->base.cfg;
    const size_t         rows = GLM_CUDA_MAX_ROWS, hidden = (size_t) c->hidden;

    m->rows_bytes = sizeof(glm_cuda_rows_t) + rows * (size_t) m->ldpages * sizeof(int32_t);
    m->lists_bytes = most_lists(m);
    m->attn_ws_bytes = glm_cuda_attn_ws((int) rows, c->heads, c->head_dim,
        m->ldpages * GLM_KV_PAGE);

    m->rows = take(a, GLM_MEM_STEP, m->rows_bytes);
    m->picks = take(a, GLM_MEM_STEP, sizeof(glm_cuda_picks_t) + m->lists_bytes);
    m->ids = take(a, GLM_MEM_STEP, rows * sizeof(int32_t));
    m->y = take(a, GLM_MEM_STEP, rows * hidden * sizeof(float));
    m->a = take(a, GLM_MEM_STEP, rows * hidden * 2);
    m->ctx = take(a, GLM_MEM_STEP, rows * hidden * 2);
    m->qkv = take(a, GLM_MEM_STEP, rows * 3 * hidden * 2);
    m->act = take(a, GLM_MEM_STEP, rows * (size_t) c->inner * 2);
    m->logits = take(a, GLM_MEM_STEP, logits_bytes(c->vocab));
    m->ws = take(a, GLM_MEM_STEP, glm_cuda_linear_ws_sms(m->plan.sms, GLM_CUDA_PREFILL_ROWS));
    m->attn_ws = take(a, GLM_MEM_STEP, m->attn_ws_bytes);
    m->sample_ws = take(a, GLM_MEM_STEP, glm_cuda_sample_ws((int) rows, c->vocab));
}

size_t
glm_cuda_context_bytes(const glm_cuda_model_t *m)
{
    int32_t  pages = m->ldpages > GLM_CUDA_TOGETHER ? m->ldpages : GLM_CUDA_TOGETHER;

    return (3 * (size_t) m->base.max_seq + (size_t) pages) * sizeof(int32_t);
}

static size_t
lay_context(glm_cuda_context_t *x, const glm_cuda_model_t *m, char *base)
{
    size_t   n = (size_t) m->base.max_seq;
    int32_t  *p = (int32_t *) base;

    if (p != NULL) *x = (glm_cuda_context_t) { p, p + n, p + 2 * n, p + 3 * n };
    return glm_cuda_context_bytes(m);
}

/* Returns where the staging area begins, behind which nothing lies but the KV cache. */
static size_t
lay_prefill(arena_t *a, glm_cuda_model_t *m)
{
    const glm_config_t  *c = &m->base.cfg;
    size_t               bytes, at;
    char                *p;

    p = take(a, GLM_MEM_PREFILL, lay_context(&m->context, m, NULL));
    lay_context(&m->context, m, p);
    at = a->used;
    bytes = glm_cuda_prefill_ws(m->base.max_seq, c->hidden, c->hidden, c->inner, NULL, NULL);
    p = take(a, GLM_MEM_PREFILL, bytes);
    if (p != NULL) glm_cuda_prefill_ws(m->base.max_seq, c->hidden, c->hidden, c->inner, p, &m->pre);
    m->stage = p;
    return at;
}

static void
lay_kv(arena_t *a, glm_cuda_model_t *m)
{
    const glm_config_t  *c = &m->base.cfg;

    for (int i = 0; i < c->layers; i++) {
        m->layer[i].kv = (glm_gkv_t) {
            .base = take(a, GLM_MEM_KV, m->page_bytes * (size_t) m->base.kv_pages),
            .page_bytes = m->page_bytes, .heads = c->heads, .d = c->head_dim,
            .int8 = m->kv_int8
        };
    }
}

void
glm_cuda_lay(glm_cuda_model_t *m, char *base)
{
    arena_t  a = { base, 0, base == NULL ? m->plan.bytes : NULL };
    size_t   stage;

    if (base == NULL) memset(m->plan.bytes, 0, sizeof(m->plan.bytes));
    lay_weights(&a, m);
    lay_step(&a, m);
    stage = lay_prefill(&a, m);
    lay_kv(&a, m);
    m->plan.total = a.used;
    m->stage_bytes = a.used - stage;
}

size_t
glm_cuda_lay_host(glm_cuda_model_t *m, char *base)
{
    arena_t  a = { base, 0, NULL };
    char    *p;

    for (int i = 0; i < 2; i++) m->host_rows[i] = take(&a, 0, m->rows_bytes);
    m->host_picks = take(&a, 0, sizeof(glm_cuda_picks_t) + m->lists_bytes);
    m->sampled = take(&a, 0, GLM_CUDA_MAX_ROWS * sizeof(glm_sampled_t));
    p = take(&a, 0, lay_context(&m->host_context, m, NULL));
    lay_context(&m->host_context, m, p);
    return a.used;
}

/* ---- the budget ---- */

static size_t
table_bytes(const glm_config_t *c)
{
    return (size_t) c->vocab * (size_t) c->hidden * 2;
}

static size_t
sum(const glm_cuda_plan_t *p)
{
    return p->total + p->reserve;
}

static int
too_large(const glm_cuda_model_t *m, glm_err_t *err)
{
    const glm_cuda_plan_t  *p = &m->plan;
    size_t                  kv = p->bytes[GLM_MEM_KV], step, weights = 0;

    for (int i = GLM_MEM_INT4; i <= GLM_MEM_VECTORS; i++) weights += p->bytes[i];
    step = p->bytes[GLM_MEM_STEP] + p->bytes[GLM_MEM_PREFILL];
    return glm_fail(err, GLM_ENOMEM, "the model does not fit %s: %zu bytes of weights, %zu of "
        "workspaces, %zu of KV for %d tokens and a reserve of %zu are %zu; there are %zu "
        "(%zu too few)", p->card, weights, step, kv, m->base.kv_pages * GLM_KV_PAGE, p->reserve,
        sum(p), p->device, sum(p) - p->device);
}

/* As many pages as fit, but no more than all rows could fill. */
static int32_t
pages_that_fit(const glm_cuda_model_t *m)
{
    const glm_cuda_plan_t  *p = &m->plan;
    size_t                  page = m->page_bytes * (size_t) m->base.cfg.layers, n;
    size_t                  most = (size_t) m->base.max_rows * (size_t) m->ldpages;

    const size_t            round = (size_t) m->base.cfg.layers * 256;

    if (p->device < sum(p) + round + page) return 1;        /* is told with its numbers */
    n = (p->device - sum(p) - round) / page;
    n = n < most ? n : most;
    return n < INT32_MAX / GLM_KV_PAGE ? (int32_t) n : INT32_MAX / GLM_KV_PAGE;
}

int
glm_cuda_plan(glm_cuda_model_t *m, glm_err_t *err)
{
    glm_cuda_plan_t  *p = &m->plan;
    int32_t           want = m->base.kv_pages;

    if (p->sms == 0) p->sms = SMS_UNKNOWN;
    p->reserve = p->device == 0 || p->device / 64 > RESERVE ? RESERVE : p->device / 64;
    p->kv_token = m->page_bytes * (size_t) m->base.cfg.layers / GLM_KV_PAGE;
    m->base.kv_pages = 0;
    glm_cuda_lay(m, NULL);
    if (want == 0) want = p->device == 0 ? m->ldpages : pages_that_fit(m);
    m->base.kv_pages = want;
    glm_cuda_lay(m, NULL);
    p->pinned = table_bytes(&m->base.cfg) + glm_cuda_lay_host(m, NULL);
    return p->device != 0 && sum(p) > p->device ? too_large(m, err) : 0;
}
