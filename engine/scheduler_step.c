/*
 * scheduler_step: one step.  A slice of a context's layers, or several whole short
 * contexts; then one row for every running choice, filled up with rows of causal
 * prompts.  So nobody's next token waits for more than a slice.
 */
#include <string.h>

#include "beam.h"
#include "scheduler.h"

#define SLICE_NS        20e6       /* a context may hold the streams up this long */
#define FIRST_COST      20000.0    /* ns a token x layer, before one was measured */
#define MIN_CAUSAL_ROWS 16

static int64_t
budget(const glm_sched_t *s)
{
    return s->budget > 0 ? s->budget
                         : (int64_t) (SLICE_NS / (s->cost > 0 ? s->cost : FIRST_COST)) + 1;
}

static void
fail_job(glm_sched_t *s, glm_job_t *j, const char *text)
{
    glm_refusal_t   no;
    const char     *why;

    if (glm_model_fault(s->model, &why) != 0) glm_sched_broken(&no);
    else glm_refuse(&no, 500, "", "", "%s", text);
    glm_sched_fail(s, j, &no);
}

/* ---- contexts ---- */

static int
has_context_left(const glm_sched_t *s, const glm_job_t *j)
{
    return j->prompt.ncontext > 0 && j->layer < s->cfg->layers;
}

/* The one half done, or the oldest not begun. */
static glm_job_t *
next_context(const glm_sched_t *s)
{
    glm_job_t  *j;

    if (s->prefilling != NULL) return s->prefilling;
    TAILQ_FOREACH(j, &s->run, link)
        if (has_context_left(s, j)) return j;
    return NULL;
}

static int
compute_slice(glm_sched_t *s, glm_job_t *j, int last)
{
    const glm_prompt_t  *p = &j->prompt;
    uint64_t             t = glm_now();
    double               cost;
    int                  rc = glm_model_prefill(s->model, p->ids, p->ncontext,
                                                j->lane[0].table.page, j->layer, last, NULL);

    if (rc != 0) return rc;
    cost = (double) (glm_now() - t) / ((double) p->ncontext * (last - j->layer));
    s->cost = s->cost > 0 ? 0.8 * s->cost + 0.2 * cost : cost;

    j->layer = last;
    s->prefilling = last < s->cfg->layers ? j : NULL;
    if (s->prefilling == NULL) {
        j->nready = p->ncontext;
        s->st.prefills++;
    }
    return 0;
}

/* Slices worth the budget, at least one layer.  Returns whether there were any. */
static int
compute_contexts(glm_sched_t *s)
{
    int64_t     left = budget(s);
    int         worked = 0;
    glm_job_t  *j;

    while (left > 0 && (j = next_context(s)) != NULL) {
        int64_t  n = left / j->prompt.ncontext;
        int      last;

        /* A further context that does not fit what is left waits for its turn. */
        if (n < 1 && worked) break;
        if (n < 1) n = 1;
        last = n < s->cfg->layers - j->layer ? j->layer + (int) n : s->cfg->layers;
        left -= (int64_t) (last - j->layer) * j->prompt.ncontext;
        worked = 1;
        if (compute_slice(s, j, last) != 0) fail_job(s, j, "Computing the prompt failed.");
    }
    return worked;
}

/* ---- lanes ---- */

/* Copies what the context has in the last page, which it does not fill.  Lane 0
 * has it: its own choices write behind the context, and it is given up only when
 * no choice is left to start. */
static int
fork_page(glm_sched_t *s, glm_job_t *j, glm_seq_t *q)
{
    int32_t  page = j->nshared / GLM_KV_PAGE;

    if (q->forked || q == &j->lane[0] || j->nshared % GLM_KV_PAGE == 0) return 0;
    q->forked = 1;
    return glm_model_copy_page(s->model, q->table.page[page], j->lane[0].table.page[page]);
}

static int
start_choice(glm_sched_t *s, glm_job_t *j, glm_seq_t *q)
{
    int  rc = fork_page(s, j, q);

    if (rc != 0) {
        fail_job(s, j, "Copying the prompt's KV cache failed.");
        return rc;
    }
    glm_seq_start(q);
    TAILQ_INSERT_TAIL(&s->lanes, q, link);
    return 0;
}

static void
run_beam(glm_sched_t *s, glm_seq_t *q)
{
    q->running = 1;
    TAILQ_INSERT_TAIL(&s->lanes, q, link);
}

/* Its first row, unless it has begun.  How many rows that takes now. */
static int32_t
start_search(glm_sched_t *s, glm_job_t *j)
{
    if (j->beams->nlive > 0) return 0;
    glm_beam_start(j);
    run_beam(s, &j->lane[0]);
    return 1;
}

static int32_t
active_lanes(const glm_sched_t *s)
{
    const glm_seq_t  *q;
    int32_t           n = 0;

    TAILQ_FOREACH(q, &s->lanes, link) n += !glm_job_paused(q->job);
    return n;
}

/* Starts choices in idle lanes while there are rows for them. */
static void
start_choices(glm_sched_t *s)
{
    int32_t     active = active_lanes(s);
    glm_job_t  *j, *next;

    for (j = TAILQ_FIRST(&s->run); j != NULL && active < s->max_seqs; j = next) {
        next = TAILQ_NEXT(j, link);
        if (!glm_job_ready(j) || glm_job_paused(j) || j->score != NULL) continue;
        if (j->beams != NULL) {
            active += start_search(s, j);
            continue;
        }

        for (int32_t i = 0; i < j->width && active < s->max_seqs; i++) {
            if (j->next_choice == j->nchoices) break;
            if (j->lane[i].running) continue;
            if (start_choice(s, j, &j->lane[i]) != 0) return;    /* next may have ended, too */
            active++;
        }
    }
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

/* ---- rows ---- */

static int32_t
position(const glm_job_t *j, int32_t slot)
{
    return slot >= j->prompt.ncontext && j->prompt.frozen >= 0 ? j->prompt.frozen : slot;
}

static void
set_row(glm_sched_t *s, int32_t i, glm_job_t *j, glm_seq_t *q, int32_t token, int32_t slot)
{
    const glm_seq_t  *owner = q != NULL ? q : &j->lane[0];

    s->row_job[i] = j;
    s->row_seq[i] = q;
    s->rows[i] = (glm_row_t) {
        .token = token, .position = position(j, slot), .slot = slot,
        .pages = owner->table.page, .sample = q != NULL ? &q->sample : NULL
    };
}

/* A row of a prompt; it may be asked what it says of the next id. */
static void
set_prompt_row(glm_sched_t *s, int32_t i, glm_job_t *j, int32_t slot)
{
    set_row(s, i, j, NULL, j->prompt.ids[slot], slot);
    if (slot < glm_job_scored(j)) return;
    s->score[i] = (glm_sample_t) {
        .nlogprobs = j->r->nprompt_logprobs, .force = j->prompt.ids[slot + 1] + 1
    };
    s->rows[i].sample = &s->score[i];
}

/* Rows of running choices; those that get one go behind those that do not. */
static int32_t
take_lanes(glm_sched_t *s)
{
    glm_seq_t  *q, *next;
    int32_t     n = 0;

    for (q = TAILQ_FIRST(&s->lanes); q != NULL && n < s->max_seqs; q = next) {
        next = TAILQ_NEXT(q, link);
        if (!glm_job_paused(q->job)) set_row(s, n++, q->job, q, q->token, q->slot);
    }
    for (int32_t i = 0; i < n; i++) {
        TAILQ_REMOVE(&s->lanes, s->row_seq[i], link);
        TAILQ_INSERT_TAIL(&s->lanes, s->row_seq[i], link);
    }
    return n;
}

/* Rows of a prompt before its last id. */
static int32_t
take_prompt_rows(glm_sched_t *s, int32_t n, int32_t end, glm_job_t *j)
{
    for (int32_t slot = j->nready; slot < j->nshared && n < end; slot++)
        set_prompt_row(s, n++, j, slot);
    return n;
}

/* Rows of a lane of SCORE, the next choice begun when it is idle; -1 when its request
 * failed. */
static int32_t
take_scored_rows(glm_sched_t *s, int32_t n, int32_t end, glm_job_t *j, int32_t lane)
{
    glm_seq_t         *q = &j->lane[lane];
    glm_scored_row_t   row;

    if (j->score->lane[lane].run < 0) {
        if (n == end || !glm_score_start(j->score, lane)) return n;
        if (fork_page(s, j, q) != 0) {
            fail_job(s, j, "Copying the prompt's KV cache failed.");
            return -1;
        }
    }
    while (n < end && glm_score_row(j->score, lane, j->r, &row)) {
        set_row(s, n, j, q, row.token >= 0 ? row.token : j->prompt.ids[j->nshared],
                j->nshared + row.slot);
        s->score[n] = row.sample;
        s->rows[n].sample = &s->score[n];
        n++;
    }
    return n;
}

static int32_t
take_scored(glm_sched_t *s, int32_t n, int32_t end, glm_job_t *j)
{
    for (int32_t i = 0; i < j->width && n < end; i++) {
        int32_t  got = take_scored_rows(s, n, end, j, i);

        if (got < 0) return n;
        n = got;
    }
    return n;
}

/* Rows that nobody's next token waits for, oldest request first: of causal prompts,
 * and of scores. */
static int32_t
take_causal(glm_sched_t *s, int32_t n)
{
    int64_t     left = budget(s) / s->cfg->layers;
    int32_t     end;
    glm_job_t  *j, *next;

    if (left < MIN_CAUSAL_ROWS) left = MIN_CAUSAL_ROWS;
    if (left > s->max_rows - n) left = s->max_rows - n;
    end = n + (int32_t) left;

    for (j = TAILQ_FIRST(&s->run); j != NULL && n < end; j = next) {
        next = TAILQ_NEXT(j, link);
        if (has_context_left(s, j)) continue;
        /* what it says piles up as tokens do */
        if ((j->r->want_prompt_logprobs || j->score != NULL) && glm_job_paused(j)) continue;
        if (!glm_job_ready(j)) n = take_prompt_rows(s, n, end, j);
        else if (j->score != NULL) n = take_scored(s, n, end, j);
    }
    return n;
}

/* ---- results ---- */

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
        fail_job(s, j, "The model gave no usable logits for this request.");
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
            fail_job(s, j, "The server has no memory for this request.");
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
        fail_job(s, j, "Copying a beam's KV cache failed.");
        return;
    }
    for (int32_t i = 0; i < b->nlive; i++) run_beam(s, &j->lane[b->live[i]]);
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

    if (!q->running) return;              /* its request failed in this very step */
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
        fail_job(s, j, "The server has no memory for this request.");
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

    if (j->r == NULL) return;             /* failed in this very step */
    if (o->id < 0) {
        fail_pick(s, j, o->id);
        return;
    }
    glm_sched_touch(s, j);
    if (j->usage->t_first == 0) j->usage->t_first = now;

    n = glm_score_take(j->score, lane, row->slot - j->nshared, o, j->r);
    if (n < 0) {
        fail_job(s, j, "The server has no memory for this request.");
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
    if (j->r == NULL) return;             /* failed in this very step */
    if (row->sample != NULL && o->id < 0) {
        fail_pick(s, j, o->id);
        return;
    }
    j->nready = row->slot + 1;
    if (row->sample != NULL) {
        glm_sched_touch(s, j);
        glm_job_prompt(j, row->slot + 1, o);
    }
    if (glm_job_ready(j) && j->prompt.max_tokens == 0) glm_sched_finish(s, j, now);
}

static void
fail_rows(glm_sched_t *s, int32_t n)
{
    for (int32_t i = 0; i < n; i++)
        if (s->row_job[i]->r != NULL) fail_job(s, s->row_job[i], "Computing a step failed.");
}

static void
take_results(glm_sched_t *s, int32_t n)
{
    uint64_t  now = glm_now();

    for (int32_t i = 0; i < n; i++) {
        glm_seq_t  *q = s->row_seq[i];

        if (q != NULL && s->row_job[i]->score != NULL) take_score(s, q, &s->rows[i], &s->out[i], now);
        else if (q != NULL) take_result(s, q, &s->out[i], now);
        else take_prompt(s, s->row_job[i], &s->rows[i], &s->out[i], now);
    }
}

int
glm_sched_compute(glm_sched_t *s)
{
    int      worked = compute_contexts(s);
    int32_t  n;

    start_choices(s);
    n = take_lanes(s);
    n = take_causal(s, n);
    if (n == 0) return worked;

    s->st.steps++;
    s->st.rows += (uint64_t) n;
    if (glm_model_step(s->model, s->rows, n, s->out, NULL) != 0) fail_rows(s, n);
    else take_results(s, n);
    return 1;
}
