/*
 * fake_model: glm_model_* without a model.  Its logits are a hash of the (token,
 * position, slot) triples that a row can see through its block table, so a wrong
 * page, slot, position or order of computing changes what is generated.  Checks
 * its caller: fake_wrong > 0 is a failure.  A gate stops it inside a call.  With
 * fake_overlap it takes steps in three calls: things are done when they are asked for, as
 * a device's order promises, and told when they are read.
 */
#ifndef GLM_T_FAKE_MODEL_H
#define GLM_T_FAKE_MODEL_H

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "model.h"

#define FAKE_NAN_ID    7          /* in slot 1: NaN logits */

#ifndef FAKE_OVERLAP
#define FAKE_OVERLAP   0          /* rows of a step that begins before the one before is read */
#endif

struct glm_model_s {
    glm_config_t      cfg;
    glm_model_opts_t  o;
    uint64_t         *kv;         /* (pages, 16) hash of what was written */
    void             *scratch;
    float            *logits;
    int               layer, n, ncontexts;        /* of the prefill under way */

    int               begun, sampled;     /* rows of a step; 0: none */
    float            *all;        /* (max_rows, vocab) logits of the step begun */
    int32_t          *ids;        /* (max_rows) of the step sampled */
    glm_sampled_t    *out;        /* (max_rows) */
    int              *asked;      /* (max_rows) */
};

static atomic_int       fake_fault, fake_wrong, fake_fail, fake_step_ns, fake_steps, fake_slices;
static atomic_int       fake_max_rows_seen, fake_fail_in, fake_ahead;
static atomic_int       fake_late_fault;      /* what glm_model_wait() finds */
static atomic_int       fake_overlap = FAKE_OVERLAP;
static atomic_int       fake_together;        /* tokens of contexts in one pass */
static atomic_int       fake_bad_prefill;     /* its code */
static int              fake_shut, fake_waiting;
static pthread_mutex_t  fake_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t   fake_cond = PTHREAD_COND_INITIALIZER;

static uint64_t
fake_mix(uint64_t x)
{
    x += 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

static uint64_t
fake_entry(int32_t token, int32_t position, int32_t slot)
{
    return fake_mix(fake_mix(fake_mix((uint64_t) token) + (uint64_t) position)
                    + (uint64_t) slot) | 1;
}

static void
fake_logits(uint64_t hash, int32_t vocab, float *x)
{
    for (int32_t i = 0; i < vocab; i++)
        x[i] = (float) (fake_mix(hash + (uint64_t) i) >> 40) / 16777216.0f * 8.0f;
}

/* Waits while the gate is shut. */
static void
fake_pass(void)
{
    pthread_mutex_lock(&fake_lock);
    fake_waiting++;
    pthread_cond_broadcast(&fake_cond);
    while (fake_shut) pthread_cond_wait(&fake_cond, &fake_lock);
    fake_waiting--;
    pthread_mutex_unlock(&fake_lock);
    if (fake_step_ns > 0) nanosleep(&(struct timespec) { .tv_nsec = fake_step_ns }, NULL);
}

__attribute__((unused))
static void
fake_gate(int shut)
{
    pthread_mutex_lock(&fake_lock);
    fake_shut = shut;
    pthread_cond_broadcast(&fake_cond);
    pthread_mutex_unlock(&fake_lock);
}

/* Until the step thread stands at the gate. */
__attribute__((unused))
static void
fake_wait_at_gate(void)
{
    pthread_mutex_lock(&fake_lock);
    while (fake_waiting == 0) pthread_cond_wait(&fake_cond, &fake_lock);
    pthread_mutex_unlock(&fake_lock);
}

int
glm_model_load(glm_model_t **out, const glm_model_opts_t *o, glm_err_t *err)
{
    glm_model_t  *m = calloc(1, sizeof(*m));

    if (glm_config_load(&m->cfg, o->dir, err) != 0) {
        free(m);
        return GLM_EINVAL;
    }
    m->o = *o;
    if (o->kv_pages == 0) m->o.kv_pages = m->cfg.max_seq;       /* 16 prompts */
    m->kv = calloc((size_t) m->o.kv_pages * GLM_KV_PAGE, sizeof(uint64_t));
    m->logits = malloc((size_t) m->cfg.vocab * sizeof(float));
    m->all = malloc((size_t) o->max_rows * (size_t) m->cfg.vocab * sizeof(float));
    m->ids = calloc((size_t) o->max_rows, sizeof(int32_t));
    m->out = calloc((size_t) o->max_rows, sizeof(glm_sampled_t));
    m->asked = calloc((size_t) o->max_rows, sizeof(int));
    if (posix_memalign(&m->scratch, 64, glm_sample_scratch(m->cfg.vocab)) != 0) abort();
    *out = m;
    return 0;
}

void
glm_model_free(glm_model_t *m)
{
    if (m == NULL) return;
    free(m->kv);
    free(m->logits);
    free(m->all);
    free(m->ids);
    free(m->out);
    free(m->asked);
    free(m->scratch);
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
    (void) m;
    return 42;
}

int32_t
glm_model_kv_pages(const glm_model_t *m)
{
    return m->o.kv_pages;
}

int
glm_model_fault(const glm_model_t *m, const char **text)
{
    (void) m;
    *text = "a fault of the fake";
    return atomic_load(&fake_fault);
}

int
glm_model_wait(glm_model_t *m)
{
    (void) m;
    if (fake_late_fault != 0) atomic_store(&fake_fault, fake_late_fault);
    return atomic_load(&fake_fault);
}

int
glm_model_plan(const glm_model_opts_t *opts, FILE *out, glm_err_t *err)
{
    (void) opts;
    (void) out;
    return glm_fail(err, GLM_EINVAL, "a fake has no plan");
}

size_t
glm_model_kv_page_bytes(const glm_model_t *m)
{
    (void) m;
    return GLM_KV_PAGE * sizeof(uint64_t);
}

const char *
glm_model_isa(const glm_model_t *m)
{
    (void) m;
    return "fake";
}

static uint64_t *
fake_slot(glm_model_t *m, const int32_t *pages, int32_t slot)
{
    int32_t  page = pages[slot / GLM_KV_PAGE];

    if (page < 0 || page >= m->o.kv_pages) abort();
    return &m->kv[page * GLM_KV_PAGE + slot % GLM_KV_PAGE];
}

/* Writes what a row says, and the logits of what it sees. */
static void
fake_forward(glm_model_t *m, const glm_row_t *row, int32_t token, float *logits)
{
    uint64_t  hash = 0;

    *fake_slot(m, row->pages, row->slot) = fake_entry(token, row->position, row->slot);
    for (int32_t s = 0; s <= row->slot; s++) {
        uint64_t  v = *fake_slot(m, row->pages, s);

        hash = fake_mix(hash ^ v);
    }
    fake_logits(hash, m->cfg.vocab, logits);
    if (*fake_slot(m, row->pages, 1) == fake_entry(FAKE_NAN_ID, 1, 1)) logits[3] = NAN;
}

static void
fake_row(glm_model_t *m, const glm_row_t *row, glm_sampled_t *out)
{
    if (row->token < 0 || row->token >= m->cfg.vocab) fake_wrong++;
    if (row->sample == NULL) {
        *fake_slot(m, row->pages, row->slot) = fake_entry(row->token, row->position, row->slot);
        return;
    }
    fake_forward(m, row, row->token, m->logits);
    glm_sample(m->logits, m->cfg.vocab, row->sample, m->scratch, out);
}

/* Before every step, and every call of a step in three. */
static int
fake_begin(int nrows, int most)
{
    if (nrows < 1 || nrows > most) fake_wrong++;
    if (nrows > fake_max_rows_seen) fake_max_rows_seen = nrows;
    return fake_fail || (fake_fail_in > 0 && --fake_fail_in == 0) ? GLM_EGPU : 0;
}

int
glm_model_step(glm_model_t *m, const glm_row_t *rows, int nrows, glm_sampled_t *out,
    float *logits)
{
    (void) logits;
    fake_pass();
    fake_steps++;
    if (m->begun > 0 || m->sampled > 0) fake_wrong++;
    if (fake_begin(nrows, m->o.max_rows) != 0) return GLM_EGPU;
    for (int i = 0; i < nrows; i++) fake_row(m, &rows[i], &out[i]);
    return 0;
}

int32_t
glm_model_overlap(const glm_model_t *m)
{
    return fake_overlap < m->o.max_rows ? fake_overlap : m->o.max_rows;
}

int
glm_model_begin(glm_model_t *m, const glm_row_t *rows, int nrows)
{
    fake_pass();
    fake_steps++;
    fake_ahead += m->sampled > 0;
    if (m->begun > 0) fake_wrong++;
    if (fake_begin(nrows, glm_model_overlap(m)) != 0) return GLM_EGPU;
    for (int i = 0; i < nrows; i++) {
        int32_t  token = rows[i].token, row = -1 - token;

        if (token < 0 && (row >= m->sampled || !m->asked[row])) fake_wrong++;
        fake_forward(m, &rows[i], token < 0 ? m->ids[row] : token,
            m->all + (size_t) i * (size_t) m->cfg.vocab);
    }
    m->begun = nrows;
    return 0;
}

int
glm_model_sample(glm_model_t *m, const glm_row_t *rows, int nrows)
{
    if (m->sampled > 0 || nrows != m->begun) fake_wrong++;
    m->begun = 0;
    if (fake_begin(nrows, glm_model_overlap(m)) != 0) return GLM_EGPU;
    for (int i = 0; i < nrows; i++) {
        m->asked[i] = rows[i].sample != NULL;
        if (!m->asked[i]) continue;
        glm_sample(m->all + (size_t) i * (size_t) m->cfg.vocab, m->cfg.vocab, rows[i].sample,
            m->scratch, &m->out[i]);
        m->ids[i] = m->out[i].id;
    }
    m->sampled = nrows;
    return 0;
}

int
glm_model_read(glm_model_t *m, glm_sampled_t *out)
{
    int  n = m->sampled;

    fake_pass();
    m->sampled = 0;
    if (fake_begin(n, glm_model_overlap(m)) != 0) return GLM_EGPU;
    for (int i = 0; i < n; i++)
        if (m->asked[i]) out[i] = m->out[i];
    return 0;
}

int32_t
glm_model_together(const glm_model_t *m)
{
    (void) m;
    return fake_together;
}

int
glm_model_prefill_all(glm_model_t *m, const glm_context_t *c, int nc, int first, int last)
{
    int  n = 0;

    fake_pass();
    fake_slices++;
    if (m->sampled > 0 || m->begun > 0) fake_wrong++;     /* its tokens would wait */
    for (int i = 0; i < nc; i++) {
        n += c[i].n;
        if (first > 0) continue;
        if (c[i].pages == NULL) fake_wrong++;             /* why begin it? */
        for (int t = 0; t < c[i].n; t++) fake_wrong += c[i].tokens[t] >= m->cfg.vocab;
    }
    if (first >= last || last > m->cfg.layers || nc < 1 || n < 1) fake_wrong++;
    if (nc > 1 && n > fake_together) fake_wrong++;
    if (first != 0 && (first != m->layer || n != m->n || nc != m->ncontexts)) fake_wrong++;
    if (fake_bad_prefill) return fake_bad_prefill;
    m->layer = last;
    m->n = n;
    m->ncontexts = nc;
    for (int i = 0; i < nc && last == m->cfg.layers; i++) {
        for (int t = 0; t < c[i].n && c[i].pages != NULL; t++) {
            *fake_slot(m, c[i].pages, t) = fake_entry(c[i].tokens[t], t, t);
        }
    }
    return 0;
}

int
glm_model_copy_page(glm_model_t *m, int32_t dst, int32_t src)
{
    if (dst == src) fake_wrong++;
    memcpy(m->kv + dst * GLM_KV_PAGE, m->kv + src * GLM_KV_PAGE,
           GLM_KV_PAGE * sizeof(uint64_t));
    return 0;
}

void
glm_model_trace(glm_model_t *m, glm_trace_pt fn, void *arg)
{
    (void) m;
    (void) fn;
    (void) arg;
}

#endif
