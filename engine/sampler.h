/*
 * sampler: from a row of logits to one id and its log-probabilities.  A pure
 * function: the same logits and arguments give the same result in any slot,
 * batch or thread.  On a GPU a kernel with these semantics takes its place.
 */
#ifndef GLM_SAMPLER_H
#define GLM_SAMPLER_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define GLM_MAX_LOGPROBS  20
#define GLM_MAX_RANK      64       /* (end tokens + 1) * beams */

/* How the logit x of one id changes: x += bias; with seen, x = x > 0 ? x / repetition
 * : x * repetition; x -= frequency * count; with count, x -= presence. */
typedef struct {
    int32_t  id;
    int32_t  count;                /* times it was generated */
    int32_t  seen;                 /* it is in the prompt or was generated */
    float    bias;
} glm_adjust_t;

typedef struct {
    float            temperature;  /* 0: greedy (first of equals) */
    int32_t          top_k;        /* 0: off; ties with the k-th stay */
    float            top_p;        /* 0 or 1: off; the id that crosses stays */
    float            min_p;        /* 0: off; of the largest probability */

    /* Philox4x32-10: key = seed, counter = (ntokens, blank, choice, 0).
     * One draw a token, u in [0, 1) from 53 bits of the output. */
    uint64_t         seed;
    uint32_t         choice;
    uint32_t         blank;
    uint32_t         ntokens;      /* tokens generated before this one */

    int32_t          nlogprobs;    /* -1: none; 0: the chosen id only; <= 20 */
    const int32_t   *score;        /* (nscore <= 20) ids told instead of the best */
    int32_t          nscore;
    const uint64_t  *allow;        /* ceil(V / 64) words, bit set = may be
                                      picked; NULL: every id may */

    /* Changes of single ids; a row with none costs nothing. */
    float               presence, frequency;
    float               repetition;   /* > 0; 0 as 1 */
    const glm_adjust_t *adjust;       /* (nadjust) each id once, in any order */
    const int32_t      *ban;          /* (nban) may not be picked */
    int32_t             nadjust, nban;

    int32_t             force;        /* 0: pick one; else 1 + the id to take, whatever
                                         the rest says */
    int32_t             rank;         /* beams: 0 off; else (<= GLM_MAX_RANK) so many ids
                                         are told, the best of the distribution over
                                         what may be picked: adjust, ban and allow,
                                         then log softmax.  id is the first of them;
                                         temperature, top_*, min_p and force are not
                                         looked at */
} glm_sample_t;

typedef struct {
    int32_t  id;
    float    logprob;
} glm_logprob_t;

typedef struct {
    int32_t  id;
    float    logprob;              /* among what may be picked */
    float    raw;                  /* log softmax of the raw logits; 0 when
                                      nlogprobs < 0 */
} glm_ranked_t;

typedef struct {
    int32_t        id;             /* chosen; -1: a logit is NaN or infinite, which
                                      on a card is its failure (GLM_ENAN; -infinity
                                      is never picked); -2: nothing may be picked */
    float          logprob;        /* log softmax of the raw logits at id; 0
                                      when nlogprobs < 0 */
    int32_t        ntop;
    int32_t        nrank;          /* fewer than asked for when no more may be picked */
    glm_logprob_t  top[GLM_MAX_LOGPROBS];   /* best first, ties: lower id */
    glm_ranked_t   rank[GLM_MAX_RANK];      /* likewise */
} glm_sampled_t;

/*
 * logits: (vocab) fp32, raw; untouched.  scratch: glm_sample_scratch(vocab)
 * bytes, 64-byte aligned, of the calling thread.  Order of BaseStrategy
 * (reference README, section 5): adjust and ban, temperature, allow, top_k, top_p (min_p
 * after it), draw.  Log-probabilities are of the raw distribution over all ids.
 */
void glm_sample(const float *logits, int32_t vocab, const glm_sample_t *args,
    void *scratch, glm_sampled_t *out);
size_t glm_sample_scratch(int32_t vocab);

/* The probabilities glm_sample() draws from (0 for what was cut); for tests. */
void glm_sample_probs(const float *logits, int32_t vocab, const glm_sample_t *args,
    void *scratch, float *probs);

/* Philox4x32-10 (Salmon et al., SC 2011). */
void glm_philox(const uint32_t ctr[4], const uint32_t key[2], uint32_t out[4]);

#ifdef __cplusplus
}
#endif

#endif
