/*
 * score: the choices of a SCORE request.  A choice goes through a lane as rows over
 * the shared context: the prompt's last id, then all of its own but the last one; each
 * row says the log-probability of the id behind it.  Choices of one id share a row,
 * when nothing but their own log-probabilities is asked.  Made on a tokenizer worker,
 * then the step thread's; allocates only when made, but for text that grows.
 */
#ifndef GLM_SCORE_H
#define GLM_SCORE_H

#include "prompt.h"

/* What goes through a lane in one go: a choice, or some of one id each. */
typedef struct {
    int32_t       first, n;      /* choices order[first] .. order[first + n - 1] */
} glm_run_t;

typedef struct {
    int32_t       run;           /* -1: idle */
    int32_t       nfed;          /* its rows so far */
    double        sum;           /* of log-probabilities */
    uint32_t      nchars;
    glm_detok_t   detok;
} glm_scoring_t;

typedef struct {
    glm_vocab_t     vocab;
    int32_t         nchoices, longest;
    int32_t        *ids;         /* of all choices, one after the other */
    size_t         *at;          /* (nchoices + 1) where each begins */
    int32_t        *order;       /* (nchoices) choices as they run: of one id first */
    int32_t        *single;      /* (choices of one id) that id, in this order */
    int32_t        *told;        /* (nchoices) ids that the owner has heard */
    int32_t         ntold;       /* of all choices */
    glm_run_t      *run;         /* (nruns) */
    int32_t         nruns, nrows;   /* rows: of all runs together */
    int32_t         next;        /* run to be started */
    glm_scoring_t  *lane;        /* (nlanes) */
    int32_t         nlanes;
    glm_text_t      text;        /* of the id being told */
} glm_score_t;

/* Encodes and checks the choices; allow: ids that a choice may have, NULL: all. */
int glm_score_make(glm_score_t **out, const glm_vocab_t *v, const uint64_t *allow,
    const glm_req_t *r, glm_refusal_t *no);
void glm_score_free(glm_score_t *c);

/* Do all choices fit behind the prompt?  Then its max_tokens is what they need. */
int glm_score_fit(const glm_score_t *c, glm_prompt_t *p, glm_refusal_t *no);

/* Lanes that fill a step of max_rows rows. */
int32_t glm_score_lanes(const glm_score_t *c, int32_t max_rows);
int glm_score_set_lanes(glm_score_t *c, int32_t n);         /* or GLM_ENOMEM */

/* Begins the next run in an idle lane; 0: there is none left. */
int glm_score_start(glm_score_t *c, int32_t lane);

/* The next row of a lane, with what it is asked; token: -1 for the prompt's last id.
 * Slots count from that id's.  0: its run has no more rows. */
typedef struct {
    int32_t       token, slot;
    glm_sample_t  sample;
} glm_scored_row_t;
int glm_score_row(glm_score_t *c, int32_t lane, const glm_req_t *r, glm_scored_row_t *out);

/*
 * What the row in this slot said: tells the owner the ids it is about, and the end of
 * choices.  How many ended, or GLM_ENOMEM.
 */
int glm_score_take(glm_score_t *c, int32_t lane, int32_t slot, const glm_sampled_t *o,
    glm_req_t *r);

/* Ends those that are not finished. */
void glm_score_finish(const glm_score_t *c, glm_req_t *r, glm_finish_t reason);

#endif
