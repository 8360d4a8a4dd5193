/*
 * model: weights and the forward pass over paged KV, on any number of ranks.
 * Knows rows and pages; knows no request, queue or text.  One thread (the step
 * thread) calls it; worker threads (ranks) are its own business.
 *
 * Architecture: ../shared/reference/README.md section 1 as docs/MODEL.md tells it.
 */
#ifndef GLM_MODEL_H
#define GLM_MODEL_H

#include <stddef.h>
#include <stdint.h>

#include "config.h"
#include "error.h"
#include "sampler.h"

#define GLM_KV_PAGE  16           /* tokens of a KV page */

typedef struct glm_model_s  glm_model_t;

/* auto: cuda where it is compiled in and a device can be used, else cpu. */
enum { GLM_BACKEND_AUTO, GLM_BACKEND_CPU, GLM_BACKEND_CUDA };

/* The output head on the card. auto: int8 where linears are quantised, else fp16. */
enum { GLM_HEAD_AUTO, GLM_HEAD_F16, GLM_HEAD_INT8 };

#define GLM_GPU_TIMEOUT  60

typedef struct {
    int          backend;         /* GLM_BACKEND_* */
    const char  *dir;             /* model directory */
    int          dummy;           /* --load-format dummy: only config.json is
                                     read; weights from a hash of (tensor, index) */
    int          tp;              /* ranks; divides heads, inner, vocab */
    int          threads;         /* over all ranks; 0: the cores we may use */
    const char  *isa;             /* NULL: best; "plain", "avx2", "avx512" */
    int32_t      kv_pages;        /* pages of GLM_KV_PAGE tokens; 0: what fits the card,
                                     or as many as some full prompts need (CPU) */
    int32_t      max_rows;        /* largest step, rows */

    /* cuda */
    int          kv_int8;         /* keys and values int8 instead of fp16 */
    int          head;            /* GLM_HEAD_* */
    int          gpu_timeout;     /* s that a step may take; 0: GLM_GPU_TIMEOUT */
    uint64_t     device_memory;   /* use no more; 0: what the card has free */
    int          readers;         /* of the weights; 0: as many as there are cores, at
                                     most GLM_LOAD_READERS */
    size_t       piece;           /* bytes that one takes at a time; 0: GLM_LOAD_PIECE */
} glm_model_opts_t;

#define GLM_LOAD_READERS  16
#define GLM_LOAD_PIECE    ((size_t) 16 << 20)

/* 0 when this backend can be used here; else err says what is missing. */
int glm_model_backend(int backend, glm_err_t *err);

/* Prints what the CUDA backend would hold on a card of opts->device_memory bytes, or
 * on the one that is here, and how many tokens of KV are left.  Loads nothing. */
int glm_model_plan(const glm_model_opts_t *opts, FILE *out, glm_err_t *err);

/* Nothing is allocated after this returns.  err names file, tensor, shapes. */
int glm_model_load(glm_model_t **out, const glm_model_opts_t *opts, glm_err_t *err);
void glm_model_free(glm_model_t *m);

const glm_config_t *glm_model_config(const glm_model_t *m);
/* Hash of weights, quantisation, kernel generation and, of a card, its own generation:
 * equal fingerprints continue each other's streams bit for bit. */
uint64_t glm_model_fingerprint(const glm_model_t *m);
size_t glm_model_kv_page_bytes(const glm_model_t *m);
int32_t glm_model_kv_pages(const glm_model_t *m);
const char *glm_model_isa(const glm_model_t *m);     /* "avx512" */
/* How linears are stored, "int4-g128"; in bytes what all weights take in files. */
const char *glm_model_weights(const glm_model_t *m, uint64_t *bytes);

/* Seconds that weights took from the files to where the card has them; 0: on the CPU. */
double glm_model_load_seconds(const glm_model_t *m);

/* One row of a step: one token of one sequence. */
typedef struct {
    int32_t              token;      /* or GLM_PICKED(row), of begin() */
    int32_t              position;   /* position id, for the rotary table */
    int32_t              slot;       /* its KV index in the sequence: its key
                                        and value are written there, and it
                                        sees slots 0 .. slot */
    const int32_t       *pages;      /* block table: slot s is at entry s % 16
                                        of page pages[s / 16] */
    const glm_sample_t  *sample;     /* NULL: no logits are made for this row */
} glm_row_t;

/*
 * One step: rows of any sequences, several of one allowed in consecutive slots
 * (each sees the earlier ones), none in a slot that another's sequence sees.
 * out[i] belongs to rows[i] and is written where sample is set.  The bits of a row
 * do not depend on what else is in the step.
 * logits, when not NULL, gets (nrows, vocab) fp32 for every row.
 */
int glm_model_step(glm_model_t *m, const glm_row_t *rows, int nrows,
    glm_sampled_t *out, float *logits);

/*
 * The same in three calls, where the device computes while its caller does something
 * else: the forward pass of a step runs while the ids of the one before are read.
 *
 *     begin(1) sample(1)  begin(2) read(1) sample(2)  begin(3) read(2) sample(3)  read(3)
 *
 * The device does things in the order in which they were asked for, copies of pages and
 * contexts too.  All that begin() and sample() are given is theirs only during the call.
 * After a failure the step concerned is none: nothing of it is sampled or read.
 */

/* Rows that begin() takes at most; 0: this backend has no such calls. */
int32_t glm_model_overlap(const glm_model_t *m);

/* As a token: what that row of the step before picks.  The row must be sampled, and
 * what it picked be an id: otherwise what this row computes means nothing. */
#define GLM_PICKED(row)  (-1 - (row))

/* The forward pass of rows; their sample is not looked at. */
int glm_model_begin(glm_model_t *m, const glm_row_t *rows, int nrows);
/* Picks from the step that has begun, for rows whose sample is set.  The step before
 * has been read. */
int glm_model_sample(glm_model_t *m, const glm_row_t *rows, int nrows);
/* Waits for what was sampled; out as that of a step. */
int glm_model_read(glm_model_t *m, glm_sampled_t *out);

/*
 * KV of a bidirectional context: n tokens in slots 0 .. n-1 at positions
 * 0 .. n-1, all seeing each other, in one pass.  Layers [first, last) are
 * computed by this call; a prefill is layers 0 .. L in order, and other steps may
 * run between its slices, but no other prefill.  logits, when not NULL, gets
 * (n, vocab) after the last layer (tests); otherwise the last layer computes
 * keys and values only.
 */
int glm_model_prefill(glm_model_t *m, const int32_t *tokens, int n, const int32_t *pages,
    int first, int last, float *logits);

/* One of several contexts. */
typedef struct {
    const int32_t  *tokens;       /* (n); looked at by the call that begins with layer 0 */
    const int32_t  *pages;        /* NULL: nobody wants it any more, and none are written;
                                     not of all */
    int32_t         n;
} glm_context_t;

/* Tokens that several contexts may have in one pass, which takes as long as one of any of
 * them; 0: this backend computes one at a time. */
int32_t glm_model_together(const glm_model_t *m);

/* What glm_model_prefill() of each does, to the bit, in one pass: of nc contexts, 1 or as
 * many as have at most glm_model_together() tokens.  They stay the same, up to pages,
 * from layer 0 to the last. */
int glm_model_prefill_all(glm_model_t *m, const glm_context_t *c, int nc, int first, int last);

/*
 * 0, or the code of a failure of the device after which nothing can be computed any
 * more (GLM_EGPU, GLM_ELOST, GLM_ETIMEOUT, GLM_ENAN; text tells it): a step or prefill that
 * failed has changed nothing that was reported, and this process should end.
 */
int glm_model_fault(const glm_model_t *m, const char **text);

/* Until the device has done what it was asked for, read or not; 0, or what it failed with:
 * before the end, so that a failure is still told. */
int glm_model_wait(glm_model_t *m);

/* Copies a KV page (all layers), for a fork that writes into a shared page. */
int glm_model_copy_page(glm_model_t *m, int32_t dst, int32_t src);

/*
 * Called after each layer with its output, before the next norm: x is
 * (nrows, hidden) fp32, good during the call.  For tests; NULL switches it off.
 */
typedef void (*glm_trace_pt)(void *arg, int layer, const float *x, int nrows);
void glm_model_trace(glm_model_t *m, glm_trace_pt fn, void *arg);

#endif
