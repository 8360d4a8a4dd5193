/*
 * rules: what a request says about which ids its next token may be: penalties,
 * biases, bans, a mask of its own, and an end at repetitions.  Keeps per choice
 * what the sampler is given; the sampler does the arithmetic.  A request without
 * such fields has no rules and pays nothing.  Made on a tokenizer worker, then the
 * step thread's; allocates only when made.
 */
#ifndef GLM_RULES_H
#define GLM_RULES_H

#include "engine.h"
#include "prompt.h"

typedef struct {
    int32_t  *id;                  /* (n), n >= 2 */
    int32_t   n;
} glm_bad_t;

/* Of a request; immutable, shared by its choices. */
typedef struct {
    uint64_t      *allow;          /* (vocab bits) allowed_token_ids, or NULL */
    glm_adjust_t  *first;          /* (nfirst) biases and ids of the prompt */
    int32_t        nfirst;
    int32_t        cap;            /* ids a choice may come to have adjusted */
    int            counts;         /* generated ids are counted */
    int32_t       *banned;         /* (nbanned) bad words of one id */
    int32_t        nbanned;
    glm_bad_t     *bad;            /* (nbad) longer ones */
    int32_t        nbad;
    int32_t       *early;          /* (nearly) may not come before min_tokens */
    int32_t        nearly, min_tokens;
    glm_repeat_t   repeat;
    int32_t        max_tokens;
} glm_rules_t;

/* *out is NULL, with 0 returned, when the request has no rules. */
int glm_rules_make(glm_rules_t **out, const glm_vocab_t *v, const glm_req_t *r,
    const glm_prompt_t *p, glm_refusal_t *no);
void glm_rules_free(glm_rules_t *u);

/* What a choice has come to. */
typedef struct {
    const glm_rules_t  *rules;     /* NULL: none; then nothing below is there */
    glm_adjust_t       *adjust;    /* (rules->cap) */
    int32_t             nadjust;
    int32_t            *slot;      /* (mask + 1) hash of ids: index in adjust, or -1 */
    uint32_t            mask;
    int32_t            *ban;       /* banned ids: constant ones, early ones, ends of
                                      bad words that have begun */
    int32_t            *said;      /* (max_tokens) generated ids */
    int32_t             nsaid;
    int32_t            *run;       /* (max_length + 1) per distance: how many of the
                                      last ids equal those so far before them */
} glm_ruled_t;

int glm_ruled_init(glm_ruled_t *c, const glm_rules_t *u);      /* or GLM_ENOMEM */
void glm_ruled_destroy(glm_ruled_t *c);

/* Makes dst, of the same rules, what src has come to. */
void glm_ruled_copy(glm_ruled_t *dst, const glm_ruled_t *src);

/* Points s at the state of a choice that begins. */
void glm_ruled_start(glm_ruled_t *c, glm_sample_t *s);

/* A generated id.  Whether it completes a repetition that ends the choice. */
int glm_ruled_token(glm_ruled_t *c, glm_sample_t *s, int32_t id);

#endif
