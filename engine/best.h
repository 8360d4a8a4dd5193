/*
 * best: holds back what the choices of a best_of request say until it is known
 * which are to be reported.  Keeps no more finished choices than will be.  Step
 * thread only; memory grows with the tokens of the choices that are kept.
 */
#ifndef GLM_BEST_H
#define GLM_BEST_H

#include "engine.h"
#include "tokenizer.h"

typedef struct {
    glm_text_t        said;        /* its tokens, packed */
    double            sum;         /* of their log-probabilities */
    glm_finish_out_t  fin;
    int               finished;    /* and not dropped */
} glm_take_t;

typedef struct {
    glm_take_t  *take;             /* (of) by choice */
    int32_t      of, n;            /* n of them are wanted */
    int32_t      nfinished;        /* that are kept, at most n */
} glm_best_t;

int glm_best_make(glm_best_t **out, int32_t of, int32_t n);    /* or GLM_ENOMEM */
void glm_best_free(glm_best_t *b);

/* A token of a choice; sampled must be there.  0 or GLM_ENOMEM. */
int glm_best_token(glm_best_t *b, const glm_token_out_t *t);

/* The end of a choice: one more than n, and the worst of them is forgotten. */
void glm_best_finish(glm_best_t *b, const glm_finish_out_t *f);

/*
 * Tells the owner the n best as choices 0 .. n-1, best first: by the mean
 * log-probability of their tokens, of equal ones the first.
 */
void glm_best_tell(glm_best_t *b, glm_req_t *r);

#endif
