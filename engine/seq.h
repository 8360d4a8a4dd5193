/*
 * seq: a request on its way through the engine (job) and its choices.  A choice
 * runs in a lane, which owns a block table and is used again by the next choice
 * when there are more choices than lanes.  Everything a request hears goes out
 * here.  Made on a tokenizer worker, afterwards the step thread's alone; allocates
 * only when made, but for text that grows.
 */
#ifndef GLM_SEQ_H
#define GLM_SEQ_H

#include <sys/queue.h>

#include "best.h"
#include "engine.h"
#include "infill.h"
#include "kv_cache.h"
#include "prompt.h"
#include "rules.h"
#include "score.h"
#include "stop.h"

typedef struct glm_job_s  glm_job_t;
typedef struct glm_seq_s  glm_seq_t;
typedef struct glm_beams_s  glm_beams_t;

struct glm_seq_s {
    glm_job_t       *job;
    TAILQ_ENTRY(glm_seq_s)  link;   /* among the running ones */
    glm_table_t      table;
    int              running;       /* a choice is in this lane */
    int              forked;        /* its own copy of the partial page is made */

    glm_sample_t     sample;        /* choice and ntokens count in here */
    int32_t          token;         /* to be fed to the model next */
    int32_t          slot;          /* its KV index */
    int32_t          row;           /* where it is in the step to be read, + 1; 0: it is not */
    uint32_t         nchars;        /* characters of decoded text */
    glm_detok_t      detok;
    glm_stopper_t    stopper;
    glm_ruled_t      ruled;
    float            score;         /* that its finish tells */
    uint64_t        *start;         /* (max_tokens) byte of the answer at which each
                                       token's text begins; NULL without stops */
};

struct glm_job_s {
    glm_req_t       *r;
    TAILQ_ENTRY(glm_job_s)  link;   /* queue, running or ended */
    glm_job_t       *mate;          /* until it is accepted: the next of its group */
    glm_vocab_t      vocab;
    glm_prompt_t     prompt;
    glm_stops_t     *stops;         /* NULL: none */
    glm_rules_t     *rules;         /* NULL: none */
    glm_best_t      *best;          /* NULL: choices are told as they come */
    glm_beams_t     *beams;         /* NULL: none; a lane each, told when all is over */
    glm_score_t     *score;         /* SCORE: its lanes are tables only, and are at no
                                       time among the running ones */
    glm_infill_t    *infill;        /* INFILL: that of all its rounds */
    int32_t          blank;         /* INFILL: which one this round fills */
    glm_seq_t       *lane;          /* (width) */
    glm_text_t       text;          /* of the prompt, when somebody wants it */
    uint32_t        *offset;        /* (prompt.nown) characters of it before each id,
                                       for their log-probabilities; or NULL */
    glm_detok_t      behind;        /* echo: how the text goes on */
    uint32_t         nchars;        /* of the echoed prompt */
    int32_t          nchoices;      /* that are made: n or best_of; SCORE: its choices; a
                                       later round of INFILL makes next_choice alone */
    int32_t          width;         /* choices that run at once; 0: none ever does */
    int32_t          npages;        /* KV pages reserved at admission */

    int              admitted;
    int32_t          nshared;       /* slots that all choices share: everything but
                                       the last id of the prompt */
    int32_t          layer;         /* of the context, next to be computed */
    int32_t          nready;        /* shared slots computed, or in a step that has begun:
                                       what begins later sees them */
    int32_t          next_choice;   /* to be started */
    int32_t          nfinished;
    glm_usage_t      own, *usage;   /* of the request: own, or that of all rounds */
};

typedef TAILQ_HEAD(glm_jobs_s, glm_job_s)  glm_jobs_t;
typedef TAILQ_HEAD(glm_seqs_s, glm_seq_s)  glm_seqs_t;

/* What a job may take at most. */
typedef struct glm_limits_s {
    glm_vocab_t      vocab;
    const uint64_t  *allow;         /* ids that may be picked, or NULL */
    int32_t          max_seqs;      /* lanes */
    int32_t          max_rows;      /* of a step */
    int32_t          kv_pages;      /* of the whole cache */
} glm_limits_t;

/* What a request's fields may be, whatever its prompt is (fields.c).  0 or GLM_EINVAL. */
int glm_fields_check(const glm_req_t *r, const glm_vocab_t *v, glm_refusal_t *no);

/* Checks and encodes a request of GENERATE, INFILL or SCORE (job.c).  lim outlives the job.
 * 0 with *out, or negative with no. */
int glm_job_make(glm_job_t **out, glm_req_t *r, const glm_limits_t *lim, glm_refusal_t *no);
/* The round of a choice's next blank, on the step thread. */
int glm_job_make_round(glm_job_t **out, glm_infill_t *f, int32_t choice, glm_refusal_t *no);
void glm_job_free(glm_job_t *j);    /* its tables must be cleared by then */

/* Is everything computed, or about to be, that its choices share? */
int glm_job_ready(const glm_job_t *j);

/* Slots from first on give log-probabilities of the prompt's next id: first ..
 * nshared - 1; none when that is empty. */
int32_t glm_job_scored(const glm_job_t *j);
/* The id in this slot of a prompt, with what the row before it said. */
void glm_job_prompt(glm_job_t *j, int32_t slot, const glm_sampled_t *o);

/* Tells the owner; depth: requests waiting before this one. */
void glm_job_accept(glm_job_t *j, int32_t depth);
/* Last words: the owner may free the request while these run. */
void glm_job_done(glm_job_t *j, int cancelled, uint64_t now);
void glm_job_error(glm_job_t *j, const glm_refusal_t *no);

/* Puts the job's next choice into an idle lane. */
void glm_seq_start(glm_seq_t *q);

/*
 * Takes a sampled id: tells the owner, advances the lane, ends the choice when it
 * is time.  The reason it ended, or GLM_FINISH_NONE; GLM_FINISH_ERROR (nothing
 * was told) when memory ran out.
 */
glm_finish_t glm_seq_token(glm_seq_t *q, const glm_sampled_t *o);

/* Ends every choice that is not finished: its lane is given up, or it has none. */
int glm_job_finish(glm_job_t *j, glm_finish_t reason);    /* 0 or GLM_ENOMEM */

/* Choices that are not finished, in all rounds. */
int32_t glm_job_left(const glm_job_t *j);

#endif
