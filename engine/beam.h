/*
 * beam: the original's BeamSearchStrategy, deterministic and with consider_end.  Each
 * live beam runs in a lane of its job; beams of one origin share its KV pages but for
 * the one being written.  Knows no model and no step: the scheduler hands in what the
 * rows gave and copies the pages that are named here.  Step thread only; allocates
 * only when made.
 */
#ifndef GLM_BEAM_H
#define GLM_BEAM_H

#include "seq.h"

/* A token of a beam. */
typedef struct {
    int32_t  id;
    int32_t  row;                 /* step * width + lane: the row that gave it */
    float    logprob;             /* raw; 0 when nobody asked */
} glm_beam_token_t;

typedef struct {
    glm_beam_token_t  *said;      /* (max_tokens) */
    float              score;     /* sum of its log-probabilities */
    int32_t           *ban;       /* ids its next token may not be; NULL without
                                     no_repeat_ngram */
} glm_beam_t;

/* A new token of a beam: what it becomes in the next step. */
typedef struct {
    glm_beam_token_t   token;
    float              score;
    int32_t            from, lane;
} glm_beam_next_t;

/* One that ended, or that the limit ended. */
typedef struct {
    glm_beam_token_t  *said;      /* (max_tokens), n of them */
    int32_t            n;
    float              score;     /* with the length penalty */
} glm_candidate_t;

typedef struct { int32_t dst, src; } glm_page_copy_t;

struct glm_beams_s {
    int32_t           width;      /* beams */
    int32_t           ngram;      /* no_repeat_ngram */
    float             penalty;
    int32_t           rank;       /* candidates looked at in a step */
    int32_t           end[GLM_MAX_RANK];   /* (nend) ids that end a beam */
    int32_t           nend;
    int32_t           ntop;       /* best ids kept beside each token */

    int32_t           step;       /* tokens that each live beam has */
    int32_t           live[GLM_MAX_BEAMS];   /* (nlive) lanes, best first */
    int32_t           nlive;      /* 0: not begun */
    int32_t           waiting;    /* rows of this step that are not in */
    glm_beam_t        beam[GLM_MAX_BEAMS];   /* by lane */
    glm_sampled_t     got[GLM_MAX_BEAMS];    /* by lane: of this step */
    glm_beam_next_t   next[GLM_MAX_BEAMS];   /* (nnext) of the last step, best first */
    int32_t           nnext;
    glm_candidate_t   done[GLM_MAX_BEAMS + 1];   /* (ndone) best first; one to spare */
    int32_t           ndone;

    glm_table_t       spare;      /* pages reserved for the job that no beam holds */
    glm_page_copy_t   copy[GLM_MAX_BEAMS];   /* (ncopy) */
    int32_t           ncopy;
    glm_logprob_t    *top;        /* (max_tokens, width, ntop) by row */
    void             *memory;     /* of all beams and candidates */
};

/* The ids that end a choice, each once; at most GLM_MAX_RANK. */
int32_t glm_beam_ends(int32_t *end, const glm_req_t *r, const glm_config_t *cfg);

/* For a job with its lanes made and max_tokens > 0.  0 or GLM_ENOMEM. */
int glm_beam_make(glm_job_t *j);
void glm_beam_free(glm_beams_t *b);

/* Lane 0 has the row of the prompt's last id; it holds the prompt's pages and the one
 * written next, spare the rest of the job's. */
void glm_beam_start(glm_job_t *j);

typedef enum {
    GLM_BEAM_WAITS,               /* for the rows of other beams */
    GLM_BEAM_GOES_ON,             /* live[] have their next rows, once copy[] is done */
    GLM_BEAM_OVER                 /* done[] is the result; nobody's next row is made */
} glm_beam_state_t;

/* What the row of a beam gave; its id is not -1. */
glm_beam_state_t glm_beam_take(glm_kv_t *kv, glm_seq_t *q, const glm_sampled_t *o);

/* Tells the owner the best candidate that was not told yet, as the job's next choice.
 * As glm_seq_token(). */
glm_finish_t glm_beam_tell(glm_job_t *j);

#endif
