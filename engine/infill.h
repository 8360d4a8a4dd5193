/*
 * infill: what a request of several blanks has come to.  Each blank is a round: a job
 * like any other, over the context with the fills so far in it.  The first round has
 * all choices; each later one has one choice, or is a beam search that goes on from the
 * best candidate.  Made on a tokenizer worker, then the step thread's; memory grows
 * with what is generated.
 */
#ifndef GLM_INFILL_H
#define GLM_INFILL_H

#include "prompt.h"

/* A choice's fills, one after the other. */
typedef struct {
    int32_t      blank;           /* being filled; nblanks: none any more */
    glm_ids_t    ids;
    glm_text_t   said;            /* what the owner heard of them */
    size_t      *end;             /* (nblanks) where each fill ends in ids */
    size_t      *said_end;        /* (nblanks) and in said */
} glm_filling_t;

/* What a request has cost so far, and when it came that far. */
typedef struct {
    int32_t   prompt_tokens, completion_tokens;
    uint64_t  t_admit, t_first;
} glm_usage_t;

typedef struct {
    glm_req_t      *r;
    glm_vocab_t     vocab;
    const struct glm_limits_s  *lim;   /* the engine's, for the jobs of rounds */
    int32_t        *ids;          /* (nids) the prompt, and eos where one was added */
    int32_t         nids, nown;
    int32_t         kind;         /* of the masks to fill */
    int32_t        *at;           /* (nblanks) where they are */
    int32_t         nblanks, max_tokens;

    int             beams;        /* the rounds are searches */
    int32_t         nchoices;
    glm_filling_t  *choice;       /* (nchoices) */
    size_t         *memory;       /* of their ends */
    int32_t         nfilled;      /* choices told as filled */
    int32_t         nopen;        /* rounds queued or running; 0: the request is over */
    int32_t         nrefs;        /* jobs that point here */
    int             counted;      /* among the paused ones */
    glm_usage_t     usage;        /* of all rounds together */
} glm_infill_t;

/* p: of the first round.  0 or GLM_ENOMEM. */
int glm_infill_make(glm_infill_t **out, glm_req_t *r, const struct glm_limits_s *lim,
    const glm_prompt_t *p);
void glm_infill_free(glm_infill_t *f);

/* A token of a choice's present blank, as the owner hears it; then the end of the blank.
 * 0 or GLM_ENOMEM. */
int glm_infill_token(glm_infill_t *f, const glm_token_out_t *t);
int glm_infill_end(glm_infill_t *f, const glm_finish_out_t *fin);

/* The context in which a choice's present blank is filled.  0 or GLM_ENOMEM. */
int glm_infill_context(const glm_infill_t *f, int32_t choice, glm_prompt_t *out);

/* Beams: every choice goes on from the fills of the first one.  0 or GLM_ENOMEM. */
int glm_infill_share(glm_infill_t *f);

/* Tells a choice whose blanks are all filled.  0 or GLM_ENOMEM. */
int glm_infill_tell(glm_infill_t *f, int32_t choice);

/* Ends the blanks that are open; of max_tokens 0 (LENGTH) that fills them.  0 or
 * GLM_ENOMEM. */
int glm_infill_finish(glm_infill_t *f, glm_finish_t reason);

#endif
