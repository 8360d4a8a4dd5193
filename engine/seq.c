/*
 * seq: makes jobs, and turns what the sampler picked into what the owner hears.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "seq.h"

/* ---- making a job ---- */

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

/* The wire's makers check too; the engine relies on none of them. */
static int
check_fields(const glm_req_t *r, glm_refusal_t *no)
{
    const glm_sample_t  *s = &r->sample;

    if (r->n < 1 || r->n > GLM_MAX_CHOICES) return refuse_field(no, "n", "1 to 1024");
    if (r->best_of != 0 && (r->best_of < r->n || r->best_of > GLM_MAX_CHOICES))
        return refuse_field(no, "best_of", "n to 1024");
    if (r->beams > 1) return glm_refuse(no, 501, "not_implemented", "num_beams", "Beam search is "
                                        "not supported by this engine.");
    if (r->nsuffix > 0) return glm_refuse(no, 501, "not_implemented", "suffix", "A suffix is not "
                                          "supported by this engine.");
    if (r->truncate < -1) return refuse_field(no, "truncate_prompt_tokens", "-1, or 1 or more");
    if (r->max_tokens < -1) return refuse_field(no, "max_tokens", "0 or more");
    if (!(s->temperature >= 0 && s->temperature <= 1e6f))
        return refuse_field(no, "temperature", "0 or more");
    if (!(s->top_p >= 0 && s->top_p <= 1)) return refuse_field(no, "top_p", "0 to 1");
    if (!(s->min_p >= 0 && s->min_p <= 1)) return refuse_field(no, "min_p", "0 to 1");
    if (s->top_k < 0) return refuse_field(no, "top_k", "0 or more");
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

static int
check_min_tokens(const glm_job_t *j, glm_refusal_t *no)
{
    int32_t  max = j->prompt.max_tokens;

    if (j->r->min_tokens <= max) return 0;
    glm_refuse(no, 400, "", "min_tokens", "\"min_tokens\" is %d, and a choice may have %d tokens.",
               j->r->min_tokens, max);
    no->limit = max;
    no->value = j->r->min_tokens;
    return GLM_EINVAL;
}

/*
 * How many lanes, and how many pages for them.  As few lanes as it takes to fit
 * the cache: the other choices wait for one.
 */
static int
size_job(glm_job_t *j, const glm_limits_t *lim, glm_refusal_t *no)
{
    int32_t  mine, shared = j->nshared / GLM_KV_PAGE, extra;
    int64_t  slots = (int64_t) j->nshared + j->prompt.max_tokens;

    if (j->prompt.max_tokens == 0 && glm_job_scored(j) >= j->nshared) return 0;

    mine = glm_kv_pages(slots);
    if (mine > lim->kv_pages) {
        glm_refuse(no, 400, "", "max_tokens", "This request needs room for %lld tokens in the KV "
                   "cache, which holds %lld.", (long long) slots,
                   (long long) lim->kv_pages * GLM_KV_PAGE);
        no->limit = (int64_t) lim->kv_pages * GLM_KV_PAGE;
        no->value = slots;
        return GLM_EINVAL;
    }
    if (j->prompt.max_tokens == 0) {        /* only the prompt is computed */
        j->width = 1;
        j->npages = mine;
        return 0;
    }
    extra = mine - shared;                  /* never 0: the first token has a slot */
    j->width = 1 + (lim->kv_pages - mine) / extra;
    if (j->width > j->nchoices) j->width = j->nchoices;
    if (j->width > lim->max_seqs) j->width = lim->max_seqs;
    j->npages = mine + (j->width - 1) * extra;
    return 0;
}

static int
make_lane(glm_job_t *j, glm_seq_t *q, const glm_limits_t *lim)
{
    q->job = j;
    q->sample = j->r->sample;
    q->sample.blank = 0;
    q->sample.score = j->r->score_id;
    q->sample.nscore = (int32_t) j->r->nscore_id;
    if (j->best != NULL && q->sample.nlogprobs < 0) q->sample.nlogprobs = 0;
    q->sample.allow = lim->allow;
    if (glm_ruled_init(&q->ruled, j->rules) != 0) return GLM_ENOMEM;
    if (glm_table_init(&q->table, glm_kv_pages((int64_t) j->nshared + j->prompt.max_tokens)) != 0
        || glm_stopper_init(&q->stopper, j->stops) != 0)
        return GLM_ENOMEM;

    if (j->stops == NULL || j->prompt.max_tokens == 0) return 0;
    q->start = malloc((size_t) j->prompt.max_tokens * sizeof(uint64_t));
    return q->start != NULL ? 0 : GLM_ENOMEM;
}

static int
make_lanes(glm_job_t *j, const glm_limits_t *lim)
{
    const glm_req_t  *r = j->r;

    /* Without a tokenizer there is no text that a stop could be found in. */
    if (lim->vocab.tok != NULL
        && glm_stops_make(&j->stops, r->stop, r->nstop, r->include_stop) != 0)
        return GLM_ENOMEM;

    if (j->nchoices > r->n && glm_best_make(&j->best, j->nchoices, r->n) != 0) return GLM_ENOMEM;

    j->lane = calloc((size_t) (j->width > 0 ? j->width : 1), sizeof(glm_seq_t));
    if (j->lane == NULL) return GLM_ENOMEM;
    for (int32_t i = 0; i < j->width; i++)
        if (make_lane(j, &j->lane[i], lim) != 0) return GLM_ENOMEM;
    return 0;
}

/* Decodes the user's own ids as a stream, so that offsets and text fit. */
static int
decode_prompt(glm_job_t *j)
{
    const glm_req_t  *r = j->r;
    const int32_t    *own = j->prompt.ids + j->prompt.own;

    if (r->want_prompt_logprobs) {
        j->offset = calloc((size_t) j->prompt.nown, sizeof(uint32_t));
        if (j->offset == NULL) return GLM_ENOMEM;
    }
    if (j->vocab.tok == NULL || !(r->want_prompt_logprobs || r->want_text || r->echo)) return 0;

    glm_detok_init(&j->behind, j->vocab.tok);
    j->behind.flags = r->special_text ? GLM_DECODE_ALL_NAMES : GLM_DECODE_MASK_NAMES;
    for (int32_t i = 0; i < j->prompt.nown; i++) {
        size_t  from = j->text.n;

        if (j->offset != NULL) j->offset[i] = j->nchars;
        if (glm_detok_push(&j->behind, own[i], &j->text) != 0) return GLM_ENOMEM;
        for (; from < j->text.n; from++) j->nchars += (j->text.s[from] & 0xC0) != 0x80;
    }
    return 0;
}

/* A drawn seed fits 53 bits, so that a client can read it from JSON and send it. */
static int
draw_seed(glm_req_t *r)
{
    if (r->has_seed) return 0;
    if (getrandom(&r->sample.seed, sizeof(r->sample.seed), 0) != sizeof(r->sample.seed))
        return GLM_EIO;
    r->sample.seed >>= 11;
    return 0;
}

int
glm_job_make(glm_job_t **out, glm_req_t *r, const glm_limits_t *lim, glm_refusal_t *no)
{
    int         rc = check_fields(r, no);
    glm_job_t  *j;

    *out = NULL;
    if (rc == 0) rc = check_ids(r, &lim->vocab, no);
    if (rc != 0) return rc;
    j = calloc(1, sizeof(*j));
    if (j == NULL) goto memory;

    j->r = r;
    j->vocab = lim->vocab;
    j->nchoices = r->best_of > 0 ? r->best_of : r->n;
    if (glm_prompt_make(&j->prompt, &lim->vocab, r, no) != 0) goto fail;
    j->nshared = j->prompt.n - 1;
    if (size_job(j, lim, no) != 0) goto fail;
    if (check_min_tokens(j, no) != 0) goto fail;
    if (glm_rules_make(&j->rules, &lim->vocab, r, &j->prompt, no) != 0) goto fail;
    if (decode_prompt(j) != 0 || make_lanes(j, lim) != 0 || draw_seed(r) != 0) goto memory;

    for (int32_t i = 0; i < j->width; i++) j->lane[i].sample.seed = r->sample.seed;
    *out = j;
    return 0;

memory:
    glm_refuse(no, 500, "", "", "The server has no memory for this request.");
fail:
    glm_job_free(j);
    return GLM_EINVAL;
}

void
glm_job_free(glm_job_t *j)
{
    if (j == NULL) return;
    for (int32_t i = 0; i < j->width && j->lane != NULL; i++) {
        glm_table_destroy(&j->lane[i].table);
        glm_stopper_destroy(&j->lane[i].stopper);
        glm_ruled_destroy(&j->lane[i].ruled);
        free(j->lane[i].start);
    }
    free(j->lane);
    glm_stops_free(j->stops);
    glm_best_free(j->best);
    glm_rules_free(j->rules);
    glm_text_free(&j->text);
    free(j->offset);
    glm_prompt_free(&j->prompt);
    free(j);
}

int
glm_job_ready(const glm_job_t *j)
{
    return j->nready == j->nshared;
}

/* ---- what the owner hears ---- */

/* The prompt as counted: sop, where it stands second, steps aside for the call. */
static void
tell_ids(glm_job_t *j)
{
    const glm_prompt_t  *p = &j->prompt;
    int32_t             *ids = p->ids, first = ids[0];
    int                  swap = p->ncontext == 0 && p->prompt_tokens < p->n;

    if (!swap) {
        j->r->sink->ids(j->r, ids, (size_t) p->prompt_tokens);
        return;
    }
    ids[0] = ids[1];
    ids[1] = first;
    j->r->sink->ids(j->r, ids + 1, (size_t) p->prompt_tokens);
    ids[1] = ids[0];
    ids[0] = first;
}

void
glm_job_accept(glm_job_t *j, int32_t depth)
{
    glm_accepted_t  a = {
        .prompt_tokens = j->prompt.prompt_tokens, .max_tokens = j->prompt.max_tokens,
        .seed = j->r->sample.seed, .queue_depth = depth
    };

    j->r->sink->accepted(j->r, &a);
    if (j->r->want_ids) tell_ids(j);
    if (j->r->want_text) j->r->sink->text(j->r, j->text.n > 0 ? j->text.s : "", j->text.n);
    if (j->r->want_prompt_logprobs) glm_job_prompt(j, j->prompt.own, NULL);
}

int32_t
glm_job_scored(const glm_job_t *j)
{
    return j->r->want_prompt_logprobs ? j->prompt.own : j->nshared;
}

void
glm_job_prompt(glm_job_t *j, int32_t slot, const glm_sampled_t *o)
{
    glm_token_out_t  t = {
        .id = j->prompt.ids[slot], .text = "", .offset = j->offset[slot - j->prompt.own],
        .sampled = o
    };

    j->r->sink->prompt(j->r, &t);
}

void
glm_job_done(glm_job_t *j, int cancelled, uint64_t now)
{
    glm_done_t  d = {
        .prompt_tokens = j->prompt.prompt_tokens, .completion_tokens = j->completion_tokens,
        .cancelled = cancelled, .t_submit = j->r->link.t_submit, .t_admit = j->t_admit,
        .t_first = j->t_first, .t_done = now
    };

    j->r->sink->done(j->r, &d);
}

void
glm_job_error(glm_job_t *j, const glm_refusal_t *no)
{
    j->r->sink->error(j->r, no);
}

/* ---- a choice ---- */

void
glm_seq_start(glm_seq_t *q)
{
    glm_job_t  *j = q->job;

    q->running = 1;
    q->sample.choice = (uint32_t) j->next_choice++;
    q->sample.ntokens = 0;
    q->slot = j->nshared;
    q->token = j->prompt.ids[j->nshared];
    q->nchars = 0;
    glm_stopper_reset(&q->stopper);
    q->stopper.deaf = j->r->min_tokens > 0;
    glm_ruled_start(&q->ruled, &q->sample);
    if (j->vocab.tok != NULL) glm_detok_init(&q->detok, j->vocab.tok);
    if (j->vocab.tok != NULL && j->r->echo) {
        q->detok = j->behind;
        q->nchars = j->nchars;
    }
    q->detok.flags = j->r->special_text ? GLM_DECODE_ALL_NAMES : 0;
}

static int
is_end(const glm_config_t *cfg, int32_t id)
{
    for (int32_t i = 0; i < cfg->nend_tokens; i++)
        if (cfg->end_tokens[i] == id) return 1;
    return 0;
}

/* Appends the id's text to what the stopper watches. */
static int
add_text(glm_seq_t *q, int32_t id)
{
    glm_text_t  *t = &q->stopper.text;
    size_t       from = t->n;

    if (glm_detok_push(&q->detok, id, t) != 0) return GLM_ENOMEM;
    for (size_t i = from; i < t->n; i++) q->nchars += (t->s[i] & 0xC0) != 0x80;
    glm_stopper_scan(&q->stopper);
    return 0;
}

/* Tokens of which a character was kept: those that begin before the cut. */
static int32_t
kept(const glm_seq_t *q, int ended)
{
    int32_t   n = (int32_t) q->sample.ntokens - ended;
    uint64_t  cut = glm_stopper_length(&q->stopper);

    if (q->stopper.hit < 0) return n;
    while (n > 0 && q->start[n - 1] >= cut) n--;
    return n;
}

/* 0, or GLM_ENOMEM for what must be held back. */
static int
tell_token(glm_seq_t *q, const glm_sampled_t *o, uint32_t offset, int last)
{
    glm_req_t        *r = q->job->r;
    glm_token_out_t   t = {
        .choice = (int32_t) q->sample.choice, .id = o->id, .text = "", .offset = offset,
        .sampled = q->sample.nlogprobs >= 0 ? o : NULL
    };

    if (q->job->vocab.tok != NULL) t.text = glm_stopper_take(&q->stopper, last, &t.ntext);
    if (q->job->best != NULL) return glm_best_token(q->job->best, &t);
    r->sink->token(r, &t);
    return 0;
}

static void
tell_finish(glm_job_t *j, const glm_finish_out_t *f)
{
    j->nfinished++;
    if (j->best == NULL) {
        j->r->sink->finish(j->r, f);
        return;
    }
    glm_best_finish(j->best, f);
    if (j->nfinished == j->nchoices) glm_best_tell(j->best, j->r);
}

static int
is_stop_id(const glm_req_t *r, int32_t id)
{
    for (size_t i = 0; i < r->nstop_id; i++)
        if (r->stop_id[i] == id) return 1;
    return 0;
}

/* Does the id end the choice?  Before min_tokens no such id is picked. */
static void
check_id(const glm_seq_t *q, int32_t id, glm_finish_out_t *f)
{
    const glm_req_t  *r = q->job->r;

    if (!r->ignore_eos && is_end(q->job->vocab.cfg, id)) f->reason = GLM_FINISH_STOP;
    else if (is_stop_id(r, id)) {
        f->reason = GLM_FINISH_STOP;
        f->stop_id = id;
    }
}

glm_finish_t
glm_seq_token(glm_seq_t *q, const glm_sampled_t *o)
{
    glm_job_t         *j = q->job;
    int                cut, repeated;
    uint32_t           offset = q->nchars;
    glm_finish_out_t   f = { .choice = (int32_t) q->sample.choice, .stop_id = -1 };

    check_id(q, o->id, &f);
    cut = f.reason != GLM_FINISH_NONE && !(f.stop_id >= 0 && j->r->include_stop);
    if (q->start != NULL) q->start[q->sample.ntokens] = glm_stopper_length(&q->stopper);
    q->stopper.deaf = (int32_t) q->sample.ntokens < j->r->min_tokens;
    if (!cut && j->vocab.tok != NULL && add_text(q, o->id) != 0) return GLM_FINISH_ERROR;

    repeated = glm_ruled_token(&q->ruled, &q->sample, o->id);
    q->sample.ntokens++;
    q->token = o->id;
    q->slot++;
    j->completion_tokens++;

    f.stop_index = q->stopper.hit;
    if (f.stop_index >= 0) f.reason = GLM_FINISH_STOP;
    if (f.reason == GLM_FINISH_NONE && (int32_t) q->sample.ntokens == j->prompt.max_tokens)
        f.reason = GLM_FINISH_LENGTH;
    if (f.reason == GLM_FINISH_NONE && repeated) f.reason = GLM_FINISH_REPEAT;

    if (tell_token(q, o, offset, f.reason != GLM_FINISH_NONE) != 0) return GLM_FINISH_ERROR;
    if (f.reason == GLM_FINISH_NONE) return GLM_FINISH_NONE;

    f.ntokens = (int32_t) q->sample.ntokens;
    f.nkept = kept(q, cut);
    q->running = 0;
    tell_finish(j, &f);
    return f.reason;
}

static void
finish(glm_job_t *j, int32_t choice, int32_t ntokens, glm_finish_t reason)
{
    glm_finish_out_t  f = {
        .choice = choice, .reason = reason, .stop_id = -1, .stop_index = -1,
        .ntokens = ntokens, .nkept = ntokens
    };

    j->r->sink->finish(j->r, &f);
}

void
glm_job_finish(glm_job_t *j, glm_finish_t reason)
{
    /* Of a best_of request nothing was told yet, and its choices have no ranks. */
    if (j->best != NULL) {
        for (int32_t k = 0; k < j->r->n; k++) finish(j, k, 0, reason);
        return;
    }
    for (int32_t i = 0; i < j->width; i++) {
        const glm_seq_t  *q = &j->lane[i];

        if (q->running)
            finish(j, (int32_t) q->sample.choice, (int32_t) q->sample.ntokens, reason);
    }
    for (int32_t k = j->next_choice; k < j->r->n; k++) finish(j, k, 0, reason);
}
