/*
 * prompt: from the segments of a request to what the model is given: which ids,
 * how many of them see each other, what is causal, which position ids.  Knows
 * the original's rules (masks, eos, sop); decides by ids, so that a prompt of
 * text and the same prompt as ids are one.  Pure functions, any thread.
 */
#ifndef GLM_PROMPT_H
#define GLM_PROMPT_H

#include <stdint.h>

#include "config.h"
#include "engine.h"
#include "tokenizer.h"

/*
 * ids[0 .. ncontext) is the bidirectional context (slots and positions 0, 1, ..);
 * the rest is causal, slot by slot, and the first token comes from the last id.
 * Position of a causal slot s, generated tokens included: frozen, or s if -1.
 */
typedef struct {
    int32_t  *ids;                /* (n) */
    int32_t   n, ncontext;
    int32_t   own, nown;          /* the user's own ids: nown of them from own on */
    int32_t   frozen;
    int32_t   kind, nblanks;      /* the mask to fill, and how often it is there; -1, 0 */
    int32_t   prompt_tokens;      /* ids before generation, sop not counted */
    int32_t   max_tokens;         /* of a choice; INFILL: of a blank; SCORE: room for
                                     a choice */
} glm_prompt_t;

void glm_prompt_free(glm_prompt_t *p);

/* What the rules need to know; tok may be NULL: ids only. */
typedef struct {
    const glm_config_t     *cfg;
    const glm_tokenizer_t  *tok;
} glm_vocab_t;

/*
 * Fills out for GENERATE, INFILL (its first round) or SCORE (longest: ids of its
 * longest choice).  0, or negative with the refusal filled (its status is 500 for
 * want of memory).
 */
int glm_prompt_make(glm_prompt_t *out, const glm_vocab_t *v, const glm_req_t *r,
    int32_t longest, glm_refusal_t *no);

/* Ids that /tokenize shows: those of a completion without sop; any number of
 * masks, any length.  The caller owns *ids. */
int glm_prompt_tokenize(glm_ids_t *ids, const glm_vocab_t *v, const glm_req_t *r,
    glm_refusal_t *no);

/* Are the ids inside the vocabulary?  param names the field in the refusal. */
int glm_prompt_check_ids(const int32_t *ids, size_t n, const glm_vocab_t *v,
    const char *param, glm_refusal_t *no);

/* Fills a refusal and returns GLM_EINVAL (400s) or GLM_EBUSY. */
__attribute__((format(printf, 5, 6)))
int glm_refuse(glm_refusal_t *no, int status, const char *code, const char *param,
    const char *fmt, ...);
int glm_refuse_memory(glm_refusal_t *no);
/* Adds the numbers to a refusal that was filled. */
int glm_refuse_limit(glm_refusal_t *no, int64_t limit, int64_t value);

#endif
