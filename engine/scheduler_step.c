/*
 * scheduler_step: one step.  A slice of contexts; then one row for every running choice,
 * filled up with rows of causal prompts.  Where the model can, a step begins before the
 * one before is read: with the rows that are known by then, of which some turn out not
 * to be wanted.
 */
#include <string.h>

#include "beam.h"
#include "scheduler.h"

#define MIN_CAUSAL_ROWS 16

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
        glm_sched_fail_job(s, j, "Copying the prompt's KV cache failed.");
        return rc;
    }
    glm_seq_start(q);
    TAILQ_INSERT_TAIL(&s->lanes, q, link);
    return 0;
}

/* Its first row, unless it has begun.  How many rows that takes now. */
static int32_t
start_search(glm_sched_t *s, glm_job_t *j)
{
    if (j->beams->nlive > 0) return 0;
    glm_beam_start(j);
    glm_sched_run_beam(s, &j->lane[0]);
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
        if (j->prompt.max_tokens == 0) continue;       /* ends when its prompt is read */
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
    glm_batch_t      *b = s->made;

    b->n = i + 1;
    b->job[i] = j;
    b->seq[i] = q;
    b->rows[i] = (glm_row_t) {
        .token = token, .position = position(j, slot), .slot = slot,
        .pages = owner->table.page, .sample = q != NULL ? &q->sample : NULL
    };
    b->alone |= j->beams != NULL || (j->score != NULL && q != NULL);
}

/* A row that is asked what it says of a given next id. */
static void
ask(glm_sched_t *s, int32_t i, const glm_sample_t *a)
{
    s->made->score[i] = *a;
    s->made->rows[i].sample = &s->made->score[i];
}

/* A row of a prompt; it may be asked what it says of the next id. */
static void
set_prompt_row(glm_sched_t *s, int32_t i, glm_job_t *j, int32_t slot)
{
    set_row(s, i, j, NULL, j->prompt.ids[slot], slot);
    if (slot < glm_job_scored(j)) return;
    ask(s, i, &(glm_sample_t) {
        .nlogprobs = j->r->nprompt_logprobs, .force = j->prompt.ids[slot + 1] + 1
    });
}

/* The next row of a choice; while one of it is to be read, the row behind that one, unless
 * the choice is known to end there.  How many rows that is. */
static int32_t
set_lane_row(glm_sched_t *s, int32_t i, glm_seq_t *q)
{
    glm_job_t  *j = q->job;

    if (q->row == 0) {
        set_row(s, i, j, q, q->token, q->slot);
        return 1;
    }
    if ((int32_t) q->sample.ntokens + 1 == j->prompt.max_tokens) return 0;
    set_row(s, i, j, q, GLM_PICKED(q->row - 1), q->slot + 1);
    return 1;
}

/* Does it want rows that nobody's next token waits for?  What it says piles up as
 * tokens do. */
static int
wants_rows(const glm_sched_t *s, const glm_job_t *j)
{
    if (glm_sched_has_context(s, j)) return 0;
    if ((j->r->want_prompt_logprobs || j->score != NULL) && glm_job_paused(j)) return 0;
    return !glm_job_ready(j) || j->score != NULL;
}

/* Rows for running choices.  Where there is little room beside them and somebody wants
 * some, they take turns. */
static int32_t
most_lanes(const glm_sched_t *s)
{
    int32_t           kept = s->max_rows / 4, most = s->max_rows;
    const glm_job_t  *j;

    if (kept > MIN_CAUSAL_ROWS) kept = MIN_CAUSAL_ROWS;
    TAILQ_FOREACH(j, &s->run, link) {
        if (!wants_rows(s, j)) continue;
        most -= kept;
        break;
    }
    return most < s->max_seqs ? most : s->max_seqs;
}

/* Rows of running choices; those that get one go behind those that do not. */
static int32_t
take_lanes(glm_sched_t *s)
{
    glm_seq_t  *q, *next;
    int32_t     n = 0, most = most_lanes(s);

    for (q = TAILQ_FIRST(&s->lanes); q != NULL && n < most; q = next) {
        next = TAILQ_NEXT(q, link);
        if (!glm_job_paused(q->job)) n += set_lane_row(s, n, q);
    }
    for (int32_t i = 0; i < n; i++) {
        TAILQ_REMOVE(&s->lanes, s->made->seq[i], link);
        TAILQ_INSERT_TAIL(&s->lanes, s->made->seq[i], link);
    }
    return n;
}

/* Rows of a prompt before its last id. */
static int32_t
take_prompt_rows(glm_sched_t *s, int32_t n, int32_t end, glm_job_t *j)
{
    for (; j->nready < j->nshared && n < end; j->nready++) set_prompt_row(s, n++, j, j->nready);
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
            glm_sched_fail_job(s, j, "Copying the prompt's KV cache failed.");
            return -1;
        }
    }
    while (n < end && glm_score_row(j->score, lane, j->r, &row)) {
        set_row(s, n, j, q, row.token >= 0 ? row.token : j->prompt.ids[j->nshared],
                j->nshared + row.slot);
        ask(s, n++, &row.sample);
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
static void
take_causal(glm_sched_t *s, int32_t n)
{
    int64_t     left = glm_sched_budget(s) / s->cfg->layers;
    int32_t     end;
    glm_job_t  *j, *next;

    if (left < MIN_CAUSAL_ROWS) left = MIN_CAUSAL_ROWS;
    if (left > s->max_rows - n) left = s->max_rows - n;
    end = n + (int32_t) left;

    for (j = TAILQ_FIRST(&s->run); j != NULL && n < end; j = next) {
        next = TAILQ_NEXT(j, link);
        if (!wants_rows(s, j)) continue;
        if (!glm_job_ready(j)) n = take_prompt_rows(s, n, end, j);
        else n = take_scored(s, n, end, j);
    }
}

/* ---- a step ---- */

static void
make_step(glm_sched_t *s)
{
    glm_batch_t  *b = s->made;

    b->n = b->alone = 0;
    start_choices(s);
    take_causal(s, take_lanes(s));
    s->st.steps += b->n > 0;
    s->st.rows += (uint64_t) b->n;
}

static void
compute_step(glm_sched_t *s)
{
    glm_batch_t  *b = s->made;

    if (glm_model_step(s->model, b->rows, b->n, s->out, NULL) != 0) glm_sched_fail_rows(s, b);
    else glm_sched_take(s, b);
}

static void
read_step(glm_sched_t *s)
{
    glm_batch_t  *b = s->sent;

    for (int32_t i = 0; i < b->n; i++)
        if (b->seq[i] != NULL) b->seq[i]->row = 0;
    if (glm_model_read(s->model, s->out) != 0) glm_sched_fail_rows(s, b);
    else glm_sched_take(s, b);
}

/*
 * The forward pass of the step made begins; while it runs, the one before is read.  What
 * that one says decides which rows are still wanted, and what the sampler is asked.
 */
static void
send_step(glm_sched_t *s)
{
    glm_batch_t  *b = s->made;

    if (glm_model_begin(s->model, b->rows, b->n) != 0) glm_sched_fail_rows(s, b);
    if (s->sent->n > 0) read_step(s);
    if (b->n == 0) return;
    glm_sched_drop(b);
    if (glm_model_sample(s->model, b->rows, b->n) != 0) {
        glm_sched_fail_rows(s, b);
        return;
    }
    for (int32_t i = 0; i < b->n; i++)
        if (b->seq[i] != NULL) b->seq[i]->row = i + 1;
    s->made = s->sent;
    s->sent = b;
}

/* Must the step sent be read before another one is made?  A slice of a context would hold
 * its tokens up. */
static int
must_read(const glm_sched_t *s)
{
    return s->sent->n > 0 && (s->sent->alone || glm_sched_contexts_wait(s));
}

int
glm_sched_compute(glm_sched_t *s)
{
    int  worked = must_read(s);

    if (worked) read_step(s);
    worked |= glm_sched_contexts(s);
    make_step(s);
    if (s->made->n > 0) {
        if (s->overlap) send_step(s);
        else compute_step(s);
        return 1;
    }
    if (s->sent->n == 0) return worked;
    read_step(s);
    return 1;
}
