/*
 * fields: what a request's fields may be.  The wire's makers check too; the engine
 * relies on none of them.
 */
#include "beam.h"

static int
refuse_field(glm_refusal_t *no, const char *field, const char *must)
{
    return glm_refuse(no, 400, "", field, "\"%s\" must be %s.", field, must);
}

static int
check_repeat(const glm_repeat_t *p, glm_refusal_t *no)
{
    if (p->max_length == 0) return 0;
    if (p->min_length >= 0 && p->max_length >= p->min_length && p->max_length <= GLM_MAX_REPEAT
        && p->min_count >= 2)
        return 0;
    return refuse_field(no, "repetition_detection", "lengths from 0 to 1024, the smaller one "
                        "first, and a count of 2 or more");
}

static int
check_rules(const glm_req_t *r, glm_refusal_t *no)
{
    const glm_sample_t  *s = &r->sample;

    if (!(s->presence >= -2 && s->presence <= 2))
        return refuse_field(no, "presence_penalty", "-2 to 2");
    if (!(s->frequency >= -2 && s->frequency <= 2))
        return refuse_field(no, "frequency_penalty", "-2 to 2");
    if (!(s->repetition >= 0 && s->repetition <= 3e38f))
        return refuse_field(no, "repetition_penalty", "above 0");
    if (r->nscore_id > GLM_MAX_LOGPROBS)
        return refuse_field(no, "logprob_token_ids", "a list of up to 20");
    if (r->nscore_id > 0 && s->nlogprobs < 0)
        return refuse_field(no, "logprob_token_ids", "used together with \"logprobs\"");
    if (r->min_tokens < 0) return refuse_field(no, "min_tokens", "0 or more");
    if (r->allow != NULL && r->nallow == 0)
        return refuse_field(no, "allowed_token_ids", "a list that is not empty");
    if (r->nstop_id > GLM_MAX_LIST)
        return refuse_field(no, "stop_token_ids", "a list of up to 1024");
    if (r->nbias > GLM_MAX_LIST) return refuse_field(no, "logit_bias", "a map of up to 1024");
    if (r->nbad > GLM_MAX_LIST) return refuse_field(no, "bad_words", "a list of up to 1024");
    for (size_t i = 0; i < r->nbias; i++)
        if (!(r->bias[i].bias >= -100 && r->bias[i].bias <= 100))
            return refuse_field(no, "logit_bias", "a map to numbers from -100 to 100");
    for (size_t i = 0; i < r->nbad; i++)
        if (r->bad[i].n == 0) return refuse_field(no, "bad_words", "strings that are not empty");
    return check_repeat(&r->repeat, no);
}

/* Ids that index something. */
static int
check_ids(const glm_req_t *r, const glm_vocab_t *v, glm_refusal_t *no)
{
    int  rc = glm_prompt_check_ids(r->stop_id, r->nstop_id, v, "stop_token_ids", no);

    if (rc == 0)
        rc = glm_prompt_check_ids(r->score_id, r->nscore_id, v, "logprob_token_ids", no);
    if (rc == 0) rc = glm_prompt_check_ids(r->allow, r->nallow, v, "allowed_token_ids", no);
    for (size_t i = 0; i < r->nbias && rc == 0; i++)
        rc = glm_prompt_check_ids(&r->bias[i].id, 1, v, "logit_bias", no);
    return rc;
}

/* What a beam search leaves no choice about. */
static int
check_beam_fields(const glm_req_t *r, glm_refusal_t *no)
{
    const char  *field = NULL;

    if (r->n > r->beams) return refuse_field(no, "n", "at most \"num_beams\"");
    if (r->sample.temperature > 0)
        return refuse_field(no, "temperature", "0 with a beam search, which draws nothing");
    if (!(r->length_penalty >= -100 && r->length_penalty <= 100))
        return refuse_field(no, "length_penalty", "-100 to 100");
    if (r->no_repeat_ngram < 0) return refuse_field(no, "no_repeat_ngram_size", "0 or more");

    if (r->best_of > r->n) field = "best_of";
    else if (r->has_seed) field = "seed";
    else if (r->nstop > 0) field = "stop";
    else if (r->repeat.max_length > 0) field = "repetition_detection";
    if (field == NULL) return 0;
    return glm_refuse(no, 400, "", field, "\"%s\" cannot be used with a beam search.", field);
}

static int
check_beams(const glm_req_t *r, const glm_config_t *cfg, glm_refusal_t *no)
{
    int32_t  end[GLM_MAX_RANK], nend, max;

    if (r->beams < 0) return refuse_field(no, "num_beams", "0 or more");
    if (r->beams <= 1) return 0;
    nend = glm_beam_ends(end, r, cfg);
    max = GLM_MAX_RANK / ((nend > 0 ? nend : 1) + 1);
    if (max > GLM_MAX_BEAMS) max = GLM_MAX_BEAMS;
    if (r->beams <= max) return check_beam_fields(r, no);

    glm_refuse(no, 400, "", "num_beams", "\"num_beams\" is %d, and may be %d with %d tokens that "
               "end a choice.", r->beams, max, nend);
    return glm_refuse_limit(no, max, r->beams);
}

static int
check_fields(const glm_req_t *r, glm_refusal_t *no)
{
    const glm_sample_t  *s = &r->sample;

    if (r->n < 1 || r->n > GLM_MAX_CHOICES) return refuse_field(no, "n", "1 to 1024");
    if (r->best_of != 0 && (r->best_of < r->n || r->best_of > GLM_MAX_CHOICES))
        return refuse_field(no, "best_of", "n to 1024");
    if (r->op == GLM_OP_INFILL && r->best_of > r->n)
        return glm_refuse(no, 400, "", "best_of", "\"best_of\" cannot be used with blanks.");
    if (r->op == GLM_OP_INFILL && r->echo)
        return glm_refuse(no, 400, "", "echo", "\"echo\" cannot be used with blanks: their whole "
                          "text is told when all are filled.");
    if (r->truncate < -1) return refuse_field(no, "truncate_prompt_tokens", "-1, or 1 or more");
    if (r->max_tokens < -1) return refuse_field(no, "max_tokens", "0 or more");
    if (!(s->temperature >= 0 && s->temperature <= 1e6f))
        return refuse_field(no, "temperature", "0 or more");
    if (!(s->top_p >= 0 && s->top_p <= 1)) return refuse_field(no, "top_p", "0 to 1");
    if (!(s->min_p >= 0 && s->min_p <= 1)) return refuse_field(no, "min_p", "0 to 1");
    if (s->top_k < 0) return refuse_field(no, "top_k", "0 or more");
    if (r->op == GLM_OP_SCORE && r->want_prompt_logprobs)
        return refuse_field(no, "prompt_logprobs", "left out: choices are scored");
    if (r->op == GLM_OP_SCORE && r->beams > 1)
        return refuse_field(no, "num_beams", "left out: choices are scored");
    if (r->want_prompt_logprobs && r->mode == GLM_BIDIRECTIONAL)
        return glm_refuse(no, 400, "", "mode", "Log-probabilities of a prompt exist only in the "
                          "unidirectional mode: in the bidirectional one every token of the "
                          "context sees those behind it.");
    if (r->want_prompt_logprobs
        && (r->nprompt_logprobs < 0 || r->nprompt_logprobs > GLM_MAX_LOGPROBS))
        return refuse_field(no, "prompt_logprobs", "0 to 20");
    if (s->nlogprobs < -1 || s->nlogprobs > GLM_MAX_LOGPROBS)
        return refuse_field(no, "logprobs", "0 to 20");
    for (size_t i = 0; i < r->nstop; i++)
        if (r->stop[i].n == 0) return refuse_field(no, "stop", "strings that are not empty");
    return check_rules(r, no);
}

int
glm_fields_check(const glm_req_t *r, const glm_vocab_t *v, glm_refusal_t *no)
{
    int  rc = check_fields(r, no);

    if (rc == 0) rc = check_beams(r, v->cfg, no);
    return rc == 0 ? check_ids(r, v, no) : rc;
}
