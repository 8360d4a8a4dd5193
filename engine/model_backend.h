/*
 * model_backend: what stands behind model.h: one table of operations a backend,
 * and the part of a model that all of them share.  model.c checks what a caller
 * gives, so a backend sees only rows, pages and layers that exist.
 */
#ifndef GLM_MODEL_BACKEND_H
#define GLM_MODEL_BACKEND_H

#include "digest.h"
#include "model.h"

typedef struct {
    const char  *name;            /* "cpu", "cuda" */
    size_t       size;            /* of its model; a glm_model_t comes first */
    uint64_t     generation;      /* of its kernels: part of the fingerprint */

    /* 0 when this machine has what it needs; else err says what is missing. */
    int (*probe)(glm_err_t *err);

    /*
     * Memory and weights; m->kv_pages becomes what there are, and m->variant a
     * number of what else changes bits.  Every row goes to d as it is read.  m is zeroed
     * but for the shared part; after a failure free() is called all the same.
     */
    int (*load)(glm_model_t *m, const glm_model_opts_t *opts, const glm_loader_t *l,
        glm_digest_t *d, glm_err_t *err);
    void (*free)(glm_model_t *m);       /* all but m itself */

    size_t (*kv_page_bytes)(const glm_model_t *m);
    const char *(*isa)(const glm_model_t *m);

    int (*step)(glm_model_t *m, const glm_row_t *rows, int nrows, glm_sampled_t *out,
        float *logits);
    /* A step in three calls; overlap: rows of the largest, 0: there are none such. */
    int32_t overlap;
    int (*begin)(glm_model_t *m, const glm_row_t *rows, int nrows);
    int (*sample)(glm_model_t *m, const glm_row_t *rows, int nrows);
    int (*read)(glm_model_t *m, glm_sampled_t *out);

    int32_t together;             /* tokens of contexts in one pass; 0: of one */
    int (*prefill)(glm_model_t *m, const glm_context_t *c, int nc, int first, int last,
        float *logits);
    int (*copy_page)(glm_model_t *m, int32_t dst, int32_t src);

    /* 0, or the code of a failure after which nothing can be computed any more, and
     * what it was.  NULL: there are none. */
    int (*fault)(const glm_model_t *m, const char **text);
    /* For all that was begun.  NULL: it is over when a call returns. */
    int (*wait)(glm_model_t *m);
} glm_backend_t;

extern const glm_backend_t  glm_backend_cpu, glm_backend_cuda;

struct glm_model_s {
    const glm_backend_t  *backend;
    glm_config_t          cfg;
    int                   tp;
    int32_t               kv_pages, max_rows, max_seq;
    uint64_t              digest;         /* of sizes and weights */
    uint64_t              fingerprint, variant;
    char                  weights[128];   /* how they are stored, in words */
    uint64_t              weight_bytes;
    double                load_seconds;   /* from files to where they stay; CPU: 0 */
    int                   begun;          /* rows of the step to be sampled; 0: none */
    int                   sampled;        /* and of the one to be read */
    int                   prefill_n;      /* contexts of the prefill under way */
    int32_t               prefill_tokens;
    int                   prefill_next;   /* its next layer; 0: none */
    glm_trace_pt          trace;
    void                 *trace_arg;
};

/* Reads config.json and fills the shared part of m. */
int glm_model_setup(glm_model_t *m, const glm_backend_t *b, const glm_model_opts_t *opts,
    glm_err_t *err);

/* The rotary table of section 1, (npos, d / 2) each: fp16 values. */
void glm_model_rope(int d, int npos, float *cos, float *sin);

#endif
