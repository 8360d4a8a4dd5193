/*
 * seq: turns what the sampler picked into what the owner hears.
 */
#include "seq.h"

int
glm_job_ready(const glm_job_t *j)
{
    return j->nready == j->nshared;
}

/* ---- what the owner hears ---- */

/* The prompt as counted, or what comes before a suffix.  sop, where it stands second,
 * steps aside for the call. */
static void
tell_ids(glm_job_t *j)
{
    const glm_prompt_t  *p = &j->prompt;
    int32_t             *ids = p->ids, first = ids[0];
    int                  swap = p->ncontext == 0 && p->prompt_tokens < p->n;

    if (j->r->nsuffix > 0) {
        j->r->sink->ids(j->r, ids, (size_t) p->nown);
        return;
    }
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
        .prompt_tokens = j->prompt.prompt_tokens,
        .max_tokens = j->prompt.max_tokens * (j->infill != NULL ? j->infill->nblanks : 1),
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
        .prompt_tokens = j->usage->prompt_tokens,
        .completion_tokens = j->usage->completion_tokens,
        .cancelled = cancelled, .t_submit = j->r->link.t_submit, .t_admit = j->usage->t_admit,
        .t_first = j->usage->t_first, .t_done = now
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
        .choice = (int32_t) q->sample.choice, .blank = q->job->blank, .id = o->id, .text = "",
        .offset = offset, .sampled = q->sample.nlogprobs >= 0 ? o : NULL
    };

    if (q->job->vocab.tok != NULL) t.text = glm_stopper_take(&q->stopper, last, &t.ntext);
    if (q->job->best != NULL) return glm_best_token(q->job->best, &t);
    if (q->job->infill != NULL && glm_infill_token(q->job->infill, &t) != 0) return GLM_ENOMEM;
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
    glm_finish_out_t   f = {
        .choice = (int32_t) q->sample.choice, .blank = j->blank, .stop_id = -1, .score = q->score
    };

    check_id(q, o->id, &f);
    cut = f.reason != GLM_FINISH_NONE && !(f.stop_id >= 0 && j->r->include_stop);
    if (q->start != NULL) q->start[q->sample.ntokens] = glm_stopper_length(&q->stopper);
    q->stopper.deaf = (int32_t) q->sample.ntokens < j->r->min_tokens;
    if (!cut && j->vocab.tok != NULL && add_text(q, o->id) != 0) return GLM_FINISH_ERROR;

    repeated = glm_ruled_token(&q->ruled, &q->sample, o->id);
    q->sample.ntokens++;
    q->token = o->id;
    q->slot++;
    j->usage->completion_tokens++;

    f.stop_index = q->stopper.hit;
    if (f.stop_index >= 0) f.reason = GLM_FINISH_STOP;
    if (f.reason == GLM_FINISH_NONE && (int32_t) q->sample.ntokens == j->prompt.max_tokens)
        f.reason = GLM_FINISH_LENGTH;
    if (f.reason == GLM_FINISH_NONE && repeated) f.reason = GLM_FINISH_REPEAT;

    if (tell_token(q, o, offset, f.reason != GLM_FINISH_NONE) != 0) return GLM_FINISH_ERROR;
    if (f.reason == GLM_FINISH_NONE) return GLM_FINISH_NONE;

    f.ntokens = (int32_t) q->sample.ntokens;
    f.nkept = kept(q, cut);
    if (j->infill != NULL && glm_infill_end(j->infill, &f) != 0) return GLM_FINISH_ERROR;
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

static void
finish_choices(glm_job_t *j, glm_finish_t reason)
{
    /* Of these nothing was told yet, and their choices have no ranks. */
    if (j->best != NULL || j->beams != NULL) {
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

int
glm_job_finish(glm_job_t *j, glm_finish_t reason)
{
    if (j->infill != NULL) return glm_infill_finish(j->infill, reason);
    if (j->score != NULL) glm_score_finish(j->score, j->r, reason);
    else finish_choices(j, reason);
    return 0;
}

int32_t
glm_job_left(const glm_job_t *j)
{
    if (j->infill != NULL) return j->infill->nchoices - j->infill->nfilled;
    return j->nchoices - j->nfinished;
}
