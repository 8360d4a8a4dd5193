/*
 * model: loading, what a caller may ask, and the checks before a pass.  The pass
 * itself is the backend's (model_backend.h).
 */
#include <math.h>
#include <stdlib.h>

#include "cpu/half.h"
#include "log.h"
#include "model_backend.h"

void
glm_model_rope(int d, int npos, float *cos, float *sin)
{
    int    half = d / 2;
    float  inv, ang;

    for (int i = 0; i < half; i++) {
        inv = 1.0f / powf(10000.0f, (float) (2 * i) / (float) d);
        inv = glm_half_to_float(glm_float_to_half(inv));
        for (int p = 0; p < npos; p++) {
            size_t  at = (size_t) p * (size_t) half + (size_t) i;

            ang = glm_half_to_float(glm_float_to_half((float) p)) * inv;
            ang = glm_half_to_float(glm_float_to_half(ang));
            cos[at] = glm_half_to_float(glm_float_to_half(cosf(ang)));
            sin[at] = glm_half_to_float(glm_float_to_half(sinf(ang)));
        }
    }
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
    if (o->kv_pages < 0 || o->max_rows < 1 || o->threads < 0) {
        return glm_fail(err, GLM_EINVAL, "%d KV pages, %d rows, %d threads: not possible",
            o->kv_pages, o->max_rows, o->threads);
    }
    return 0;
}

/* NULL: it cannot be used, and err says why. */
static const glm_backend_t *
choose(int want, glm_err_t *err)
{
    glm_err_t  why = { "" };

    if (want == GLM_BACKEND_CPU) return &glm_backend_cpu;
    if (glm_backend_cuda.probe(&why) == 0) return &glm_backend_cuda;
    if (want == GLM_BACKEND_AUTO) {
        glm_log(GLM_LOG_INFO, "no cuda backend: %s", why.text);
        return &glm_backend_cpu;
    }
    (void) glm_fail(err, GLM_EGPU, "--backend cuda: %s", why.text);
    return NULL;
}

int
glm_model_backend(int want, glm_err_t *err)
{
    return want == GLM_BACKEND_CUDA && choose(want, err) == NULL ? GLM_EGPU : 0;
}

/* Ranks sum in another order at another degree, so it is part of the hash; the
 * instruction set and the number of threads change no bit, so they are not. */
static int
fingerprint(glm_model_t *m, const glm_digest_t *d, glm_err_t *err)
{
    uint64_t  h;
    int       rc;

    if ((rc = glm_digest_end(d, &m->digest, err)) != 0) return rc;
    h = (m->digest ^ (uint64_t) m->tp) * 0x9e3779b97f4a7c15u;
    h ^= h >> 32;
    h = (h ^ m->backend->generation ^ m->variant) * 0x9e3779b97f4a7c15u;
    m->fingerprint = h ^ h >> 32;
    return 0;
}

int
glm_model_setup(glm_model_t *m, const glm_backend_t *b, const glm_model_opts_t *opts,
    glm_err_t *err)
{
    int  rc;

    m->backend = b;
    if ((rc = glm_config_load(&m->cfg, opts->dir, err)) != 0
        || (rc = check_opts(opts, &m->cfg, err)) != 0)
    {
        return rc;
    }
    m->tp = opts->tp;
    m->kv_pages = opts->kv_pages;
    m->max_rows = opts->max_rows;
    m->max_seq = m->cfg.max_seq;
    return 0;
}

static int
load(glm_model_t *m, const glm_model_opts_t *opts, glm_err_t *err)
{
    glm_loader_t  *l = NULL;
    glm_digest_t  *d = NULL;
    int            rc;

    if ((rc = glm_loader_open(&l, opts->dir, &m->cfg, opts->dummy, err)) == 0
        && (rc = glm_loader_check(l, err)) == 0
        && (rc = glm_digest_new(&d, l, err)) == 0
        && (rc = m->backend->load(m, opts, l, d, err)) == 0
        && (rc = fingerprint(m, d, err)) == 0)
    {
        glm_loader_describe(l, m->weights, &m->weight_bytes);
    }
    glm_digest_free(d);
    glm_loader_close(l);
    return rc;
}

int
glm_model_load(glm_model_t **out, const glm_model_opts_t *opts, glm_err_t *err)
{
    const glm_backend_t  *b = choose(opts->backend, err);
    glm_model_t          *m;
    int                   rc;

    *out = NULL;
    if (b == NULL) return GLM_EGPU;
    m = calloc(1, b->size);
    if (m == NULL) return glm_fail(err, GLM_ENOMEM, "no memory for the model");
    if ((rc = glm_model_setup(m, b, opts, err)) != 0 || (rc = load(m, opts, err)) != 0) {
        glm_model_free(m);
        return rc;
    }
    glm_log(GLM_LOG_NOTICE, "backend %s, %s; weights %s, %.2f GB", b->name, glm_model_isa(m),
        m->weights, (double) m->weight_bytes * 1e-9);
    *out = m;
    return 0;
}

void
glm_model_free(glm_model_t *m)
{
    if (m == NULL) return;
    m->backend->free(m);
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
    return m->backend->kv_page_bytes(m);
}

int32_t
glm_model_kv_pages(const glm_model_t *m)
{
    return m->kv_pages;
}

const char *
glm_model_isa(const glm_model_t *m)
{
    return m->backend->isa(m);
}

const char *
glm_model_weights(const glm_model_t *m, uint64_t *bytes)
{
    *bytes = m->weight_bytes;
    return m->weights;
}

double
glm_model_load_seconds(const glm_model_t *m)
{
    return m->load_seconds;
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

/* npicked: rows of the step before, whose ids a token may name. */
static int
row_ok(const glm_model_t *m, const glm_row_t *r, int npicked)
{
    return r->token >= GLM_PICKED(npicked - 1) && r->token < m->cfg.vocab
        && r->position >= 0 && r->position < m->max_seq
        && r->slot >= 0 && r->slot < m->max_seq
        && pages_ok(m, r->pages, r->slot);
}

int
glm_model_step(glm_model_t *m, const glm_row_t *rows, int nrows, glm_sampled_t *out,
    float *logits)
{
    if (nrows < 1 || nrows > m->max_rows || m->begun > 0 || m->sampled > 0) return GLM_EINVAL;
    for (int i = 0; i < nrows; i++) {
        if (!row_ok(m, &rows[i], 0)) return GLM_EINVAL;
        if (rows[i].sample != NULL && out == NULL) return GLM_EINVAL;
    }
    return m->backend->step(m, rows, nrows, out, logits);
}

int32_t
glm_model_overlap(const glm_model_t *m)
{
    int32_t  most = m->backend->overlap;

    return most < m->max_rows ? most : m->max_rows;
}

int
glm_model_begin(glm_model_t *m, const glm_row_t *rows, int nrows)
{
    int  rc;

    if (nrows < 1 || nrows > glm_model_overlap(m) || m->begun > 0) return GLM_EINVAL;
    for (int i = 0; i < nrows; i++) {
        if (!row_ok(m, &rows[i], m->sampled)) return GLM_EINVAL;
    }
    if ((rc = m->backend->begin(m, rows, nrows)) == 0) m->begun = nrows;
    return rc;
}

int
glm_model_sample(glm_model_t *m, const glm_row_t *rows, int nrows)
{
    int  rc;

    if (nrows < 1 || nrows != m->begun || m->sampled > 0) return GLM_EINVAL;
    m->begun = 0;
    if ((rc = m->backend->sample(m, rows, nrows)) == 0) m->sampled = nrows;
    return rc;
}

int
glm_model_read(glm_model_t *m, glm_sampled_t *out)
{
    if (m->sampled == 0) return GLM_EINVAL;
    m->sampled = 0;
    return m->backend->read(m, out);
}

int32_t
glm_model_together(const glm_model_t *m)
{
    return m->backend->together < m->max_seq ? m->backend->together : m->max_seq;
}

static int
context_ok(const glm_model_t *m, const glm_context_t *c, int first)
{
    if (c->n < 1 || c->n > m->max_seq) return 0;
    if (c->pages != NULL && !pages_ok(m, c->pages, c->n - 1)) return 0;
    for (int i = 0; i < c->n && first == 0; i++) {
        if (c->tokens[i] < 0 || c->tokens[i] >= m->cfg.vocab) return 0;
    }
    return 1;
}

/* A prefill goes from layer 0 up without a gap, over the same tokens: how many they are;
 * 0: it does not. */
static int32_t
prefill_tokens(const glm_model_t *m, const glm_context_t *c, int nc, int first, int last)
{
    int32_t  most = nc == 1 ? m->max_seq : glm_model_together(m), n = 0;

    if (nc < 1 || (nc == 1 && c->pages == NULL) || first < 0 || first >= last || last > m->cfg.layers) return 0;
    for (int i = 0; i < nc; i++) {
        if (!context_ok(m, &c[i], first) || c[i].n > most - n) return 0;
        n += c[i].n;
    }
    if (first != 0 && (first != m->prefill_next || nc != m->prefill_n || n != m->prefill_tokens)) {
        return 0;
    }
    return n;
}

static int
prefill(glm_model_t *m, const glm_context_t *c, int nc, int first, int last, float *logits)
{
    int32_t  n = prefill_tokens(m, c, nc, first, last);
    int      rc;

    if (n == 0) return GLM_EINVAL;
    if ((rc = m->backend->prefill(m, c, nc, first, last, logits)) != 0) return rc;
    m->prefill_n = nc;
    m->prefill_tokens = n;
    m->prefill_next = last == m->cfg.layers ? 0 : last;
    return 0;
}

int
glm_model_prefill(glm_model_t *m, const int32_t *tokens, int n, const int32_t *pages,
    int first, int last, float *logits)
{
    glm_context_t  c = { tokens, pages, n };

    if (logits != NULL && m->begun > 0) return GLM_EINVAL;      /* there are those of one */
    return prefill(m, &c, 1, first, last, logits);
}

int
glm_model_prefill_all(glm_model_t *m, const glm_context_t *c, int nc, int first, int last)
{
    return prefill(m, c, nc, first, last, NULL);
}

int
glm_model_fault(const glm_model_t *m, const char **text)
{
    *text = "";
    return m->backend->fault == NULL ? 0 : m->backend->fault(m, text);
}

int
glm_model_wait(glm_model_t *m)
{
    return m->backend->wait == NULL ? 0 : m->backend->wait(m);
}

int
glm_model_copy_page(glm_model_t *m, int32_t dst, int32_t src)
{
    if (dst < 0 || dst >= m->kv_pages || src < 0 || src >= m->kv_pages) return GLM_EINVAL;
    return dst == src ? 0 : m->backend->copy_page(m, dst, src);
}
