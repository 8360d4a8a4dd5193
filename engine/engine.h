/*
 * engine: takes requests, runs them over the model by continuous batching and
 * reports what happens to each through a sink.  Knows no wire, socket or HTTP.
 *
 * Threads: any thread submits, cancels, pauses and lets go; tokenizer workers
 * turn prompts into ids and serve TOKENIZE and DETOKENIZE; one step thread runs
 * everything else.  Sink functions are called on the step thread or a tokenizer
 * worker, never two at once for one request.
 */
#ifndef GLM_ENGINE_H
#define GLM_ENGINE_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "error.h"
#include "model.h"
#include "sampler.h"
#include "tokenizer.h"

#define GLM_MAX_CHOICES  1024
#define GLM_MAX_REPEAT   1024     /* ids of a piece that repetition_detection finds */
#define GLM_MAX_LIST     1024     /* stop ids, biases, bad words: each */
#define GLM_MAX_BLANKS   256      /* masks that one INFILL fills */
#define GLM_MAX_SCORED   1000     /* choices of a SCORE */
#define GLM_MAX_BEAMS    16

typedef struct glm_engine_s  glm_engine_t;
typedef struct glm_req_s     glm_req_t;

typedef enum {
    GLM_OP_GENERATE,          /* at most one mask */
    GLM_OP_TOKENIZE,
    GLM_OP_DETOKENIZE,
    GLM_OP_INFILL,            /* every mask of the kind to fill, left to right: each a
                                 generation over the context with earlier fills in it */
    GLM_OP_SCORE              /* log-probabilities of given continuations */
} glm_op_t;

typedef enum {
    GLM_SEG_TEXT,             /* text, masks recognised */
    GLM_SEG_PLAIN,            /* text, masks are text */
    GLM_SEG_IDS               /* int32 ids */
} glm_seg_kind_t;

/* A prompt is a list of segments; adjacent text of one kind is joined and
 * encoded in one go. */
typedef struct {
    glm_seg_kind_t   kind;
    const char      *text;    /* valid UTF-8 (the maker checks) */
    const int32_t   *ids;
    size_t           n;       /* bytes or ids */
} glm_segment_t;

typedef enum { GLM_BIDIRECTIONAL, GLM_UNIDIRECTIONAL } glm_mode_t;

typedef struct {
    const char  *s;           /* not empty, valid UTF-8 */
    size_t       n;
} glm_stop_t;

typedef struct {
    int32_t      id;
    float        bias;        /* -100 .. 100 */
} glm_logit_bias_t;

/* A choice ends when a piece of min_length .. max_length ids came min_count times
 * in a row. */
typedef struct {
    int32_t      min_length, max_length;   /* max_length 0: off */
    int32_t      min_count;   /* >= 2 */
} glm_repeat_t;

typedef enum {
    GLM_FINISH_NONE,
    GLM_FINISH_STOP,          /* end token, stop string or stop id */
    GLM_FINISH_LENGTH,
    GLM_FINISH_CANCEL,        /* cancelled by its owner */
    GLM_FINISH_ERROR,
    GLM_FINISH_REPEAT         /* repetition_detection */
} glm_finish_t;

/* Why a request or its field is refused; class as in HTTP. */
typedef struct {
    int         status;       /* 400, 404, 500, 501, 503, 504 */
    char        code[48];     /* "context_length_exceeded", "" for null */
    char        param[48];    /* the field, "" for none */
    char        text[512];    /* one sentence for the client */
    int64_t     limit, value; /* 0 where there is none */
    uint32_t    retry_after;  /* seconds; 0: none */
} glm_refusal_t;

typedef struct {
    int32_t   prompt_tokens;  /* ids before generation, sop not counted */
    int32_t   max_tokens;     /* largest completion a choice may have */
    uint64_t  seed;           /* the seed used */
    int32_t   queue_depth;    /* requests waiting before this one */
} glm_accepted_t;

/* One token of a choice, or a last piece of text without one (id -1). */
typedef struct {
    int32_t               choice, blank;
    int32_t               id;          /* -1: only text */
    const char           *text;        /* now safe to send; may be empty */
    size_t                ntext;
    uint32_t              offset;      /* characters of the answer's decoded text
                                          (held back or not) before this token */
    const glm_sampled_t  *sampled;     /* log-probabilities; NULL: none asked */
} glm_token_out_t;

typedef struct {
    int32_t       choice, blank;
    glm_finish_t  reason;
    int32_t       stop_id;             /* entry of stop_id that hit, or -1 */
    int32_t       stop_index;          /* index of the stop string, or -1 */
    int32_t       ntokens;             /* generated, a final end token counted */
    int32_t       nkept;               /* of them, how many belong to the answer: a
                                          cut stop string and an end token go */
    float         score;               /* beams: with the length penalty; SCORE: the sum
                                          of the choice's log-probabilities; else 0 */
} glm_finish_out_t;

/* INFILL: a choice with all its blanks filled.  text is the decoded prompt with the
 * fills in place of their masks (an eos that the engine added is gone); blank b is its
 * characters span[b].start .. span[b].end - 1, the text that its tokens told. */
typedef struct { uint32_t start, end; } glm_span_t;

typedef struct {
    int32_t            choice;
    const char        *text;
    size_t             ntext;
    const glm_span_t  *span;           /* (nblanks) */
    int32_t            nblanks;
} glm_filled_t;

/* End of a request; times in ns of CLOCK_MONOTONIC, 0 where it never came. */
typedef struct {
    int32_t   prompt_tokens, completion_tokens, cached_tokens;
    int       cancelled;
    uint64_t  t_submit, t_admit, t_first, t_done;
} glm_done_t;

/*
 * What the owner of a request hears.  Order: accepted; tokens and finish of each
 * choice; then exactly one of done or error, after which the engine never
 * touches the request again.  A refused request hears error alone.
 * TOKENIZE: accepted is not called; ids, then done.  DETOKENIZE: text, done.
 * INFILL: tokens and finish of each blank of a choice in turn, filled after the last
 * one; choices may interleave.  prompt_tokens of accepted are the first round's, those
 * of done the sum over all rounds, as every round computes a context of its own;
 * max_tokens of accepted are those of all blanks together.  max_tokens 0 fills with
 * nothing.  A cancel ends each blank that is open, and is no filled.
 * SCORE: of each choice its ids with their log-probabilities (sampled is never NULL,
 * text is that of the id) and finish (LENGTH); choices in any order.  completion_tokens
 * of done are the ids of all choices.
 * Beams: nothing until the search ends; then the n best choices, best first, each as
 * tokens and finish; several blanks: as the original, each round goes on from the best
 * candidate (choice 0 tells its fill) and the last blank has n.
 * GENERATE with want_ids: ids (the prompt's, as counted in prompt_tokens) once,
 * between accepted and the first token; with want_text likewise text, the decoded
 * prompt: the user's own ids, masks by name.
 */
typedef struct {
    void (*accepted)(glm_req_t *r, const glm_accepted_t *a);
    void (*token)(glm_req_t *r, const glm_token_out_t *t);
    void (*finish)(glm_req_t *r, const glm_finish_out_t *f);
    void (*ids)(glm_req_t *r, const int32_t *ids, size_t n);
    void (*text)(glm_req_t *r, const char *s, size_t n);
    void (*done)(glm_req_t *r, const glm_done_t *d);
    void (*error)(glm_req_t *r, const glm_refusal_t *e);
    void (*flush)(void *arg);          /* after each step or worker job: time to
                                          wake whoever reads the above; may come
                                          after the done or error of a request, so
                                          arg outlives the engine.  Or NULL */
    void  *flush_arg;
    /* GENERATE with want_prompt_logprobs: each of the user's own ids of the prompt,
       in order, before the first token.  Its text is empty, its offset that in the
       decoded prompt; sampled is NULL for the first.  Or NULL. */
    void (*prompt)(glm_req_t *r, const glm_token_out_t *t);
    void (*filled)(glm_req_t *r, const glm_filled_t *f);     /* INFILL; or NULL */
} glm_sink_t;

/*
 * A request.  The maker fills the first part, with everything it points to
 * staying good until done or error, and frees it after that.
 */
struct glm_req_s {
    void                 *owner;       /* the maker's own */
    const glm_sink_t     *sink;
    glm_op_t              op;

    const glm_segment_t  *seg;         /* prompt; DETOKENIZE: one of ids */
    size_t                nseg;
    int32_t               truncate;    /* of the user's ids at most so many stay; -1: as
                                          many as leave room for max_tokens; 0: all */
    int                   truncate_right;   /* the first ones stay, else the last */
    int                   add_special; /* add mask and eos as generate.py does */
    glm_mode_t            mode;

    int32_t               n;           /* choices, 1 .. GLM_MAX_CHOICES; as many run
                                          at once as rows and pages allow */
    int32_t               best_of;     /* 0 or n: n choices are made.  More: of so many
                                          the n with the highest mean log-probability
                                          are told, best first, when all have ended */
    int32_t               max_tokens;  /* >= 0; -1: what the context leaves */
    int32_t               min_tokens;  /* no end, stop id or stop string before */
    int32_t               ignore_eos;
    int                   special_text;     /* control ids print their names */
    int64_t               priority;         /* lower starts first */
    const int32_t        *score_id;         /* log-probabilities of these take the place
                                               of the best ones; needs nlogprobs >= 0 */
    size_t                nscore_id;        /* <= GLM_MAX_LOGPROBS */
    glm_sample_t          sample;      /* temperature, top_k, top_p, min_p, seed,
                                          nlogprobs, presence, frequency (of what
                                          was generated), repetition (of prompt
                                          and that); the rest is the engine's */
    const glm_logit_bias_t  *bias;
    size_t                nbias;
    const int32_t        *allow;       /* only these may be picked; NULL: those with
                                          text and the end tokens */
    size_t                nallow;      /* > 0 when allow is there */
    const glm_stop_t     *bad;         /* bad_words */
    size_t                nbad;
    const int32_t        *stop_id;     /* end a choice; without text unless
                                          include_stop */
    size_t                nstop_id;
    glm_repeat_t          repeat;
    int                   has_seed;    /* 0: the engine draws one */
    const glm_stop_t     *stop;
    size_t                nstop;
    int                   include_stop;

    const char           *suffix;      /* GENERATE: the prompt has no mask; one and this
                                          plain text follow it, and are no part of its
                                          ids and text.  NULL: none */
    size_t                nsuffix;
    int                   gmask;       /* the mask that a suffix or SCORE adds is [gMASK],
                                          else [MASK] */
    int32_t               beams;       /* 0 or 1: no beam search; else n <= beams <=
                                          GLM_MAX_BEAMS, temperature 0, no best_of; the
                                          original's min_gen_length is min_tokens */
    float                 length_penalty;
    int32_t               no_repeat_ngram;   /* 0: off */
    const glm_segment_t  *choice;      /* SCORE: PLAIN or IDS each */
    size_t                nchoice;     /* 1 .. GLM_MAX_SCORED */
    int                   count_positions;   /* SCORE: positions go on after the context
                                          whatever the mask (perplexity windows) */
    uint64_t              deadline;    /* ns, CLOCK_MONOTONIC: not started by then
                                          is a 504; 0: none */
    int                   hold;        /* accepted, then waits for glm_req_go() */
    int                   want_ids;    /* GENERATE: report the prompt's ids */
    int                   want_text;   /* GENERATE: report the prompt's text */
    int                   echo;        /* the answer's text is the prompt's and what
                                          comes then: offsets begin behind it */
    int                   want_prompt_logprobs;   /* unidirectional, no mask */
    int32_t               nprompt_logprobs;       /* best ones beside each, 0 .. 20 */

    /* Shared flags: set by anyone through the functions below. */
    atomic_int            cancel;
    atomic_int            paused;
    atomic_int            go;

    void                 *priv;        /* the engine's; NULL at submit */
    struct {
        glm_req_t  *next;
        glm_req_t  *mate;              /* the next of its group */
        uint64_t    serial, t_submit;
        int         late;              /* came after drain or stop began */
    } link;                            /* the engine's; needs no value at submit */
};

typedef struct {
    const char  *model_dir;
    const char  *served_name;          /* NULL: config's name */
    glm_model_opts_t  model;           /* dir is taken from model_dir */
    int32_t      max_num_seqs;         /* choices in a step, --max-num-seqs; 0: a default */
    int64_t      kv_tokens;            /* --kv-tokens; 0: a default */
    int32_t      max_queue;            /* requests accepted and waiting; 0: a default;
                                          < 0: none waits */
    int          tokenizer_threads;
    int64_t      prefill_budget;       /* tokens x layers of context computed between
                                          two decode steps, a pass of few counted as
                                          glm_model_together(); 0: what takes some 20 ms */
    /* The device failed (glm_model_fault()); every request has been told and any
       further one is refused.  Once, on the step thread.  Or NULL */
    void       (*on_failure)(void *arg, int code, const char *text);
    void        *on_failure_arg;
} glm_engine_opts_t;

/* Prints what the model of these options needs on a card; see glm_model_plan(). */
int glm_engine_plan(const glm_engine_opts_t *opts, FILE *out, glm_err_t *err);

/* Loads the model and starts the threads; flush is called without a request,
 * too.  Failure: err says which file and why. */
int glm_engine_start(glm_engine_t **out, const glm_engine_opts_t *opts, glm_err_t *err);

/* Stops admission; what is accepted goes on.  New requests: 503 engine_draining. */
void glm_engine_drain(glm_engine_t *e);
int glm_engine_idle(const glm_engine_t *e);          /* nothing queued or running */

/* Ends everything still running (error, 503), joins the threads, frees. */
void glm_engine_stop(glm_engine_t *e);

const glm_config_t *glm_engine_config(const glm_engine_t *e);
const glm_tokenizer_t *glm_engine_tokenizer(const glm_engine_t *e);   /* or NULL */
const char *glm_engine_name(const glm_engine_t *e);
uint64_t glm_engine_fingerprint(const glm_engine_t *e);

/* Never blocks, never fails: a refusal comes through the sink. */
void glm_engine_submit(glm_engine_t *e, glm_req_t *r);

/*
 * The n prompts of one request, of GENERATE or SCORE: accepted together or, for the same
 * reason, refused together.  One that is cancelled before ends alone.  After that
 * each goes its own way.
 */
void glm_engine_submit_group(glm_engine_t *e, glm_req_t *const *r, size_t n);

/*
 * Each may be called at any time from submit until the maker frees r, also while
 * done or error is being reported on another thread (it then does nothing): they
 * touch e and the shared flags of r, never priv.  Not called from a sink.
 * Cancel: done (cancelled = 1) follows within a step.
 */
void glm_req_cancel(glm_engine_t *e, glm_req_t *r);
void glm_req_pause(glm_engine_t *e, glm_req_t *r, int on);
void glm_req_go(glm_engine_t *e, glm_req_t *r);

/* Numbers for /metrics and /health; a consistent copy.  Counters only grow. */
typedef struct {
    uint64_t  heartbeat;               /* ns, CLOCK_MONOTONIC: last time the step
                                          thread finished a step or was idle */
    uint64_t  started;                 /* ns, CLOCK_MONOTONIC */
    uint32_t  running, waiting, paused;
    uint32_t  kv_pages_total, kv_pages_used;
    uint32_t  draining;
    uint64_t  requests, accepted, refused;
    /* Choices, by how they ended; all that a failed request left open are errors. */
    uint64_t  finished_stop, finished_length, finished_cancel, finished_error;
    uint64_t  prompt_tokens, generated_tokens;
    uint64_t  steps, prefills, rows;
} glm_engine_stats_t;
void glm_engine_stats(const glm_engine_t *e, glm_engine_stats_t *out);

#endif
