/*
 * scheduler_take: what the rows of a step have given, and what it means for the jobs
 * that they are of.
 */
#include "beam.h"
#include "scheduler.h"

void
glm_sched_fail_job(glm_sched_t *s, glm_job_t *j, const char *text)
{
    glm_refusal_t   no;
    const char     *why;

    if (glm_model_fault(s->model, &why) != 0) glm_sched_broken(&no);
    else glm_refuse(&no, 500, "", "", "%s", text);
    glm_sched_fail(s, j, &no);
}

void
glm_sched_run_beam(glm_sched_t *s, glm_seq_t *q)
{
    q->running = 1;
    TAILQ_INSERT_TAIL(&s->lanes, q, link);
}

/* Once every choice has begun, an idle lane will not be used again. */
static void
release_idle(glm_sched_t *s, glm_job_t *j)
{
    if (j->score != NULL ? j->score->next < j->score->nruns : j->next_choice < j->nchoices) return;
    for (int32_t i = 0; i < j->width; i++)
        if (j->score != NULL ? j->score->lane[i].run < 0 : !j->lane[i].running)
            glm_table_clear(&s->kv, &j->lane[i].table);
}

static void
count_finish(glm_sched_t *s, glm_finish_t reason)
{
    if (reason == GLM_FINISH_STOP || reason == GLM_FINISH_REPEAT) s->st.finished_stop++;
    if (reason == GLM_FINISH_LENGTH) s->st.finished_length++;
}

/* Nothing was picked: the model's fault, or that of what the request forbids. */
static void
fail_pick(glm_sched_t *s, glm_job_t *j, int32_t id)
{
    glm_refusal_t  no;

    if (id == -1 || j->rules == NULL) {
        glm_sched_fail_job(s, j, "The model gave no usable logits for this request.");
        return;
    }
    glm_refuse(&no, 400, "", j->rules->allow != NULL ? "allowed_token_ids" : "bad_words",
               "No token is left to pick: \"allowed_token_ids\", \"bad_words\" and "
               "\"min_tokens\" forbid them all.");
    glm_sched_fail(s, j, &no);
}

/* A choice, or with blanks its present one, has ended.  Negative: so has its request. */
static int
end_choice(glm_sched_t *s, glm_job_t *j, int32_t choice, glm_finish_t reason)
{
    int  rc = j->infill != NULL ? glm_sched_round(s, j, choice) : 1;

    if (rc > 0) count_finish(s, reason);
    return rc;
}

/* None of its choices is left; of its request there may be other rounds. */
static void
end_job(glm_sched_t *s, glm_job_t *j, uint64_t now)
{
    if (j->infill == NULL || j->infill->nfilled == j->infill->nchoices) glm_job_done(j, 0, now);
    glm_sched_end(s, j);
}

/* Before its last blank, all choices of a search become the best one. */
static int
share_best(glm_infill_t *f)
{
    return f != NULL && f->choice[0].blank == f->nblanks - 1 ? glm_infill_share(f) : 0;
}

/* The n best are told at once, when nothing can change them any more. */
static void
end_search(glm_sched_t *s, glm_job_t *j, uint64_t now)
{
    int32_t        before = j->usage->completion_tokens;
    glm_refusal_t  no;

    if (j->beams->ndone < j->nchoices) {
        glm_refuse(&no, 400, "", "n", "\"n\" is %d, and what this request forbids left %d "
                   "candidates to the beam search.", j->nchoices, j->beams->ndone);
        no.limit = j->beams->ndone;
        no.value = j->nchoices;
        glm_sched_fail(s, j, &no);
        return;
    }
    glm_sched_touch(s, j);
    if (j->usage->t_first == 0) j->usage->t_first = now;
    while (j->next_choice < j->nchoices) {
        int32_t       choice = j->next_choice;
        glm_finish_t  reason = glm_beam_tell(j);

        if (reason == GLM_FINISH_ERROR || share_best(j->infill) != 0) {
            glm_sched_fail_job(s, j, "The server has no memory for this request.");
            return;
        }
        if (end_choice(s, j, choice, reason) < 0) return;
    }
    s->st.generated_tokens += (uint64_t) (j->usage->completion_tokens - before);
    end_job(s, j, now);
}

static void
go_on(glm_sched_t *s, glm_job_t *j)
{
    const glm_beams_t  *b = j->beams;

    for (int32_t i = 0; i < b->ncopy; i++) {
        if (glm_model_copy_page(s->model, b->copy[i].dst, b->copy[i].src) == 0) continue;
        glm_sched_fail_job(s, j, "Copying a beam's KV cache failed.");
        return;
    }
    for (int32_t i = 0; i < b->nlive; i++) glm_sched_run_beam(s, &j->lane[b->live[i]]);
}

/* A beam without ids to pick is none any more; its job goes on without it. */
static void
take_beam(glm_sched_t *s, glm_seq_t *q, const glm_sampled_t *o, uint64_t now)
{
    glm_beam_state_t  state;

    TAILQ_REMOVE(&s->lanes, q, link);
    q->running = 0;
    state = glm_beam_take(&s->kv, q, o);
    if (state == GLM_BEAM_GOES_ON) go_on(s, q->job);
    if (state == GLM_BEAM_OVER) end_search(s, q->job, now);
}

static void
take_result(glm_sched_t *s, glm_seq_t *q, const glm_sampled_t *o, uint64_t now)
{
    glm_job_t     *j = q->job;
    glm_finish_t   reason;

    if (o->id == -1 || (o->id < 0 && j->beams == NULL)) {
        fail_pick(s, j, o->id);
        return;
    }
    if (j->beams != NULL) {
        take_beam(s, q, o, now);
        return;
    }
    glm_sched_touch(s, j);
    if (j->usage->t_first == 0) j->usage->t_first = now;
    s->st.generated_tokens++;

    reason = glm_seq_token(q, o);
    if (reason == GLM_FINISH_NONE) return;
    if (reason == GLM_FINISH_ERROR) {
        glm_sched_fail_job(s, j, "The server has no memory for this request.");
        return;
    }
    TAILQ_REMOVE(&s->lanes, q, link);
    release_idle(s, j);
    if (end_choice(s, j, (int32_t) q->sample.choice, reason) < 0) return;
    if (j->nfinished == j->nchoices) end_job(s, j, now);
}

static void
take_score(glm_sched_t *s, glm_seq_t *q, const glm_row_t *row, const glm_sampled_t *o,
    uint64_t now)
{
    glm_job_t  *j = q->job;
    int32_t     lane = (int32_t) (q - j->lane);
    int         n;

    if (o->id < 0) {
        fail_pick(s, j, o->id);
        return;
    }
    glm_sched_touch(s, j);
    if (j->usage->t_first == 0) j->usage->t_first = now;

    n = glm_score_take(j->score, lane, row->slot - j->nshared, o, j->r);
    if (n < 0) {
        glm_sched_fail_job(s, j, "The server has no memory for this request.");
        return;
    }
    if (n == 0) return;
    j->usage->completion_tokens = j->score->ntold;
    s->st.finished_length += (uint64_t) n;
    j->nfinished += n;
    release_idle(s, j);
    if (j->nfinished < j->nchoices) return;
    glm_job_done(j, 0, now);
    glm_sched_end(s, j);
}

static void
take_prompt(glm_sched_t *s, glm_job_t *j, const glm_row_t *row, const glm_sampled_t *o,
    uint64_t now)
{
    if (row->sample != NULL && o->id < 0) {
        fail_pick(s, j, o->id);
        return;
    }
    if (row->sample != NULL) {
        glm_sched_touch(s, j);
        glm_job_prompt(j, row->slot + 1, o);
    }
    if (row->slot + 1 == j->nshared && j->prompt.max_tokens == 0) glm_sched_finish(s, j, now);
}

/* ---- a step ---- */

void
glm_sched_forget(glm_sched_t *s, const glm_job_t *j)
{
    for (int k = 0; k < 2; k++) {
        glm_batch_t  *b = &s->batch[k];

        for (int32_t i = 0; i < b->n; i++) {
            if (b->job[i] != j) continue;
            b->job[i] = NULL;
            b->seq[i] = NULL;
        }
    }
}

void
glm_sched_drop(glm_batch_t *b)
{
    for (int32_t i = 0; i < b->n; i++) {
        const glm_seq_t  *q = b->seq[i];

        if (q != NULL && q->job->score == NULL && !q->running) {
            b->job[i] = NULL;
            b->seq[i] = NULL;
        }
        if (b->job[i] == NULL) b->rows[i].sample = NULL;
    }
}

void
glm_sched_fail_rows(glm_sched_t *s, glm_batch_t *b)
{
    for (int32_t i = 0; i < b->n; i++)
        if (b->job[i] != NULL) glm_sched_fail_job(s, b->job[i], "Computing a step failed.");
    b->n = 0;
}

void
glm_sched_take(glm_sched_t *s, glm_batch_t *b)
{
    uint64_t  now = glm_now();

    for (int32_t i = 0; i < b->n; i++) {
        glm_job_t            *j = b->job[i];
        const glm_row_t      *row = &b->rows[i];
        const glm_sampled_t  *o = &s->out[i];

        if (j == NULL) continue;          /* ended since, perhaps by a row before */
        if (j->score != NULL && b->seq[i] != NULL) take_score(s, b->seq[i], row, o, now);
        else if (b->seq[i] != NULL) take_result(s, b->seq[i], o, now);
        else take_prompt(s, j, row, o, now);
    }
    b->n = 0;
}
