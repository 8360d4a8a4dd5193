/*
 * scheduler: the life of a job: queue, admission, end.  What a step computes is in
 * scheduler_step.c.
 */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "beam.h"
#include "scheduler.h"

uint64_t
glm_now(void)
{
    struct timespec  t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t) t.tv_sec * 1000000000u + (uint64_t) t.tv_nsec;
}

static int
make_batch(glm_batch_t *b, size_t n)
{
    b->rows = calloc(n, sizeof(*b->rows));
    b->seq = calloc(n, sizeof(*b->seq));
    b->job = calloc(n, sizeof(*b->job));
    b->score = calloc(n, sizeof(*b->score));
    return b->rows != NULL && b->seq != NULL && b->job != NULL && b->score != NULL
           ? 0 : GLM_ENOMEM;
}

static void
free_batch(glm_batch_t *b)
{
    free(b->rows);
    free(b->seq);
    free(b->job);
    free(b->score);
}

int
glm_sched_init(glm_sched_t *s, int32_t kv_pages, glm_err_t *err)
{
    size_t  n = (size_t) s->max_rows;

    s->overlap = glm_model_overlap(s->model) > 0;
    TAILQ_INIT(&s->queue);
    TAILQ_INIT(&s->run);
    TAILQ_INIT(&s->ended);
    TAILQ_INIT(&s->lanes);
    s->next_deadline = UINT64_MAX;
    s->made = &s->batch[0];
    s->sent = &s->batch[1];
    s->out = calloc(n, sizeof(*s->out));
    if (make_batch(s->made, n) != 0 || make_batch(s->sent, n) != 0 || s->out == NULL
        || glm_kv_init(&s->kv, kv_pages) != 0)
        return glm_fail(err, GLM_ENOMEM, "no memory for a step of %zu rows", n);
    return 0;
}

void
glm_sched_destroy(glm_sched_t *s)
{
    free_batch(&s->batch[0]);
    free_batch(&s->batch[1]);
    free(s->out);
    glm_kv_destroy(&s->kv);
}

/* ---- who has heard something ---- */

void
glm_sched_wake(glm_sched_t *s)
{
    for (int i = 0; i < s->nwake; i++) s->wake[i].flush(s->wake[i].arg);
    s->nwake = 0;
}

void
glm_sched_touch(glm_sched_t *s, const glm_job_t *j)
{
    glm_wake_t  w = { j->r->sink->flush, j->r->sink->flush_arg };

    if (w.flush == NULL) return;
    for (int i = s->nwake - 1; i >= 0; i--)
        if (s->wake[i].flush == w.flush && s->wake[i].arg == w.arg) return;
    if (s->nwake == GLM_SCHED_SINKS) glm_sched_wake(s);
    s->wake[s->nwake++] = w;
}

/* ---- ends ---- */

/* Out of every list and step, pages back; freed when the step is over, as its caller may
 * still look at it.  What the device still computes for it writes to these pages before
 * anybody else does.  The owner is told by the caller, before.  With the last of its
 * rounds a request of several blanks is over. */
void
glm_sched_end(glm_sched_t *s, glm_job_t *j)
{
    for (int32_t i = 0; i < j->width; i++) {
        glm_seq_t  *q = &j->lane[i];

        if (q->running) TAILQ_REMOVE(&s->lanes, q, link);
        q->running = 0;
        glm_table_clear(&s->kv, &q->table);
    }
    if (j->beams != NULL) glm_table_clear(&s->kv, &j->beams->spare);
    glm_sched_forget_context(s, j);
    glm_sched_forget(s, j);
    TAILQ_REMOVE(j->admitted ? &s->run : &s->queue, j, link);
    j->r = NULL;
    TAILQ_INSERT_TAIL(&s->ended, j, link);
    if (j->infill != NULL && --j->infill->nopen > 0) return;

    if (j->admitted || j->blank > 0) s->nrun--;
    else s->nqueue--;
    atomic_fetch_sub(s->live, 1);
}

static void
end_rounds(glm_sched_t *s, glm_jobs_t *list, const glm_infill_t *f)
{
    glm_job_t  *j, *next;

    for (j = TAILQ_FIRST(list); j != NULL; j = next) {
        next = TAILQ_NEXT(j, link);
        if (j->infill == f) glm_sched_end(s, j);
    }
}

/* The request that j belongs to, whatever its rounds are doing. */
static void
end_request(glm_sched_t *s, glm_job_t *j)
{
    const glm_infill_t  *f = j->infill;

    if (f == NULL) {
        glm_sched_end(s, j);
        return;
    }
    end_rounds(s, &s->queue, f);
    end_rounds(s, &s->run, f);
}

static void
free_ended(glm_sched_t *s)
{
    glm_job_t  *j;

    while ((j = TAILQ_FIRST(&s->ended)) != NULL) {
        TAILQ_REMOVE(&s->ended, j, link);
        glm_job_free(j);
    }
}

void
glm_sched_fail(glm_sched_t *s, glm_job_t *j, const glm_refusal_t *why)
{
    s->st.finished_error += (uint64_t) glm_job_left(j);
    glm_sched_touch(s, j);
    glm_job_error(j, why);
    end_request(s, j);
}

/* Every choice that is not finished hears so: the running ones, then the rest. */
static void
cancel(glm_sched_t *s, glm_job_t *j, uint64_t now)
{
    s->st.finished_cancel += (uint64_t) glm_job_left(j);
    glm_sched_touch(s, j);
    glm_job_finish(j, GLM_FINISH_CANCEL);
    glm_job_done(j, 1, now);
    end_request(s, j);
}

static void
sweep(glm_sched_t *s, glm_jobs_t *list, uint64_t now)
{
    glm_job_t  *j, *next;

    for (j = TAILQ_FIRST(list); j != NULL; j = next) {
        next = TAILQ_NEXT(j, link);
        if (!atomic_load(&j->r->cancel)) continue;
        cancel(s, j, now);
        if (j->infill != NULL) next = TAILQ_FIRST(list);    /* other rounds went with it */
    }
}

void
glm_sched_sweep(glm_sched_t *s, uint64_t now)
{
    sweep(s, &s->queue, now);
    sweep(s, &s->run, now);
    free_ended(s);
}

void
glm_sched_abort(glm_sched_t *s, const glm_refusal_t *why)
{
    glm_job_t  *j;

    while ((j = TAILQ_FIRST(&s->queue)) != NULL) glm_sched_fail(s, j, why);
    while ((j = TAILQ_FIRST(&s->run)) != NULL) glm_sched_fail(s, j, why);
    free_ended(s);
}

void
glm_sched_broken(glm_refusal_t *no)
{
    glm_refuse(no, 503, "engine_failed", "", "The engine failed.");
    no->retry_after = 5;
}

/* ---- queue ---- */

/* What has begun is never late. */
static int
late(const glm_job_t *j, uint64_t now)
{
    return j->r->deadline != 0 && j->blank == 0 && j->r->deadline <= now;
}

static void
too_late(glm_refusal_t *no)
{
    glm_refuse(no, 504, "deadline_exceeded", "",
               "The server could not start this request in time.");
}

static void
note_deadline(glm_sched_t *s, const glm_job_t *j)
{
    if (j->r->deadline != 0 && j->blank == 0 && j->r->deadline < s->next_deadline)
        s->next_deadline = j->r->deadline;
}

static void
expire(glm_sched_t *s, uint64_t now)
{
    glm_refusal_t  no;
    glm_job_t     *j, *next;

    if (now < s->next_deadline) return;
    s->next_deadline = UINT64_MAX;
    too_late(&no);
    for (j = TAILQ_FIRST(&s->queue); j != NULL; j = next) {
        next = TAILQ_NEXT(j, link);
        if (late(j, now)) glm_sched_fail(s, j, &no);
        else note_deadline(s, j);
    }
}

int
glm_job_paused(const glm_job_t *j)
{
    return atomic_load_explicit(&j->r->paused, memory_order_relaxed);
}

static int
held(const glm_job_t *j)
{
    return j->r->hold && !atomic_load(&j->r->go);
}

/* Rows that admitted requests will want, paused ones left out.  Scores take what
 * others leave. */
static int64_t
wanted(const glm_sched_t *s)
{
    const glm_job_t  *j;
    int64_t           n = 0;

    TAILQ_FOREACH(j, &s->run, link) {
        int32_t  left = j->beams != NULL ? j->width : j->nchoices - j->nfinished;

        if (!glm_job_paused(j) && j->score == NULL) n += left < j->width ? left : j->width;
    }
    return n;
}

/* Rows that must be free for it to begin: choices wait for each other, beams do not. */
static int32_t
least_rows(const glm_job_t *j)
{
    return j->beams != NULL ? j->width : 1;
}

static int
fits(const glm_sched_t *s, const glm_job_t *j)
{
    if (j->width == 0) return 1;
    if (j->npages > s->kv.nfree) return 0;
    return j->score != NULL || wanted(s) + least_rows(j) <= s->max_seqs;
}

/* Tokenizer workers may finish in another order than they began. */
static int
comes_before(const glm_job_t *a, const glm_job_t *b)
{
    if (a->r->priority != b->r->priority) return a->r->priority < b->r->priority;
    return a->r->link.serial < b->r->link.serial;
}

static void
enqueue(glm_sched_t *s, glm_job_t *j)
{
    glm_job_t  *before = TAILQ_LAST(&s->queue, glm_jobs_s);

    while (before != NULL && comes_before(j, before))
        before = TAILQ_PREV(before, glm_jobs_s, link);
    if (before != NULL) TAILQ_INSERT_AFTER(&s->queue, before, j, link);
    else TAILQ_INSERT_HEAD(&s->queue, j, link);
    s->nqueue += j->blank == 0;
    note_deadline(s, j);
}

/* Enough pages are free. */
static void
reserve(glm_sched_t *s, glm_job_t *j)
{
    int32_t  shared = j->nshared / GLM_KV_PAGE;
    int32_t  n = glm_kv_pages((int64_t) j->nshared + j->prompt.max_tokens);

    if (j->beams != NULL) {
        glm_table_grow(&s->kv, &j->lane[0].table, shared + 1);
        glm_table_grow(&s->kv, &j->beams->spare, j->npages - shared - 1);
        return;
    }
    glm_table_grow(&s->kv, &j->lane[0].table, n);
    for (int32_t i = 1; i < j->width; i++)
        glm_table_fork(&s->kv, &j->lane[i].table, &j->lane[0].table, shared, n);
}

/* max_tokens 0: every choice is at its limit already. */
void
glm_sched_finish(glm_sched_t *s, glm_job_t *j, uint64_t now)
{
    int32_t        left = glm_job_left(j);
    glm_refusal_t  no;

    glm_sched_touch(s, j);
    if (glm_job_finish(j, GLM_FINISH_LENGTH) != 0) {
        glm_refuse_memory(&no);
        glm_sched_fail(s, j, &no);
        return;
    }
    s->st.finished_length += (uint64_t) left;
    glm_job_done(j, 0, now);
    glm_sched_end(s, j);
}

/*
 * The blank of a choice is filled: its next round queues at the request's own place,
 * so before all that came later, and for whatever the queue's limit is; it holds no page
 * while it waits.  1: it was the last blank; negative: the request failed.
 */
int
glm_sched_round(glm_sched_t *s, glm_job_t *j, int32_t choice)
{
    glm_infill_t   *f = j->infill;
    glm_job_t      *round;
    glm_refusal_t   no;

    if (f->choice[choice].blank == f->nblanks) {
        if (glm_infill_tell(f, choice) == 0) return 1;
        glm_refuse_memory(&no);
        glm_sched_fail(s, j, &no);
        return GLM_ENOMEM;
    }
    if (glm_job_make_round(&round, f, choice, &no) != 0) {
        glm_sched_fail(s, j, &no);
        return GLM_ENOMEM;
    }
    enqueue(s, round);
    return 0;
}

static void
admit_job(glm_sched_t *s, glm_job_t *j, uint64_t now)
{
    if (j->usage->t_admit == 0) j->usage->t_admit = now;
    if (j->blank > 0) j->usage->prompt_tokens += j->prompt.prompt_tokens;
    s->st.prompt_tokens += (uint64_t) j->prompt.prompt_tokens;
    if (j->width == 0) {
        glm_sched_finish(s, j, now);
        return;
    }
    TAILQ_REMOVE(&s->queue, j, link);
    TAILQ_INSERT_TAIL(&s->run, j, link);
    s->nqueue -= j->blank == 0;
    s->nrun += j->blank == 0;
    j->admitted = 1;
    reserve(s, j);
}

/* In the queue's order; the first that does not fit stops those behind it, so that
 * it cannot starve.  Held ones are passed by. */
static void
admit(glm_sched_t *s, uint64_t now)
{
    glm_job_t  *j, *next;

    for (j = TAILQ_FIRST(&s->queue); j != NULL; j = next) {
        next = TAILQ_NEXT(j, link);
        if (held(j)) continue;
        if (!fits(s, j)) break;
        admit_job(s, j, now);
    }
}

/* A job and its mates. */
static void
refuse(glm_sched_t *s, glm_job_t *j, const glm_refusal_t *no)
{
    glm_job_t  *mate;

    for (; j != NULL; j = mate) {
        mate = j->mate;
        s->st.refused++;
        glm_sched_touch(s, j);
        glm_job_error(j, no);
        glm_job_free(j);
        atomic_fetch_sub(s->live, 1);
    }
}

static void
refuse_late(glm_sched_t *s, glm_job_t *j)
{
    glm_refusal_t  no;

    too_late(&no);
    refuse(s, j, &no);
}

static void
refuse_full(glm_sched_t *s, glm_job_t *j, int32_t n)
{
    glm_refusal_t  no;

    if (n > s->max_queue + s->max_seqs) {
        glm_refuse(&no, 400, "", "prompt", "This request has %d prompts, and the server never "
                   "takes more than %d at once.", n, s->max_queue + s->max_seqs);
        glm_refuse_limit(&no, s->max_queue + s->max_seqs, n);
    } else {
        glm_refuse(&no, 503, "server_is_overloaded", "",
                   "The server is overloaded: %d requests are waiting, and it takes %d.",
                   s->nqueue, s->max_queue);
        glm_refuse_limit(&no, s->max_queue, s->nqueue);
        no.retry_after = 1;
    }
    refuse(s, j, &no);
}

/* Would they run at once? */
static int
at_once(const glm_sched_t *s, const glm_job_t *j)
{
    const glm_job_t  *w;
    int64_t           pages = 0, rows = wanted(s);

    TAILQ_FOREACH(w, &s->queue, link)
        if (!held(w)) return 0;
    for (; j != NULL; j = j->mate) {
        if (held(j)) return 0;
        if (j->width == 0) continue;
        pages += j->npages;
        if (pages > s->kv.nfree) return 0;
        if (j->score != NULL) continue;
        if (rows + least_rows(j) > s->max_seqs) return 0;
        rows += j->width;
    }
    return 1;
}

/* Ends those that were cancelled; the rest. */
static glm_job_t *
drop_cancelled(glm_sched_t *s, glm_job_t *j, uint64_t now)
{
    glm_job_t  *first = NULL, **last = &first, *mate;

    for (; j != NULL; j = mate) {
        mate = j->mate;
        if (!atomic_load(&j->r->cancel)) {
            *last = j;
            last = &j->mate;
            continue;
        }
        glm_sched_touch(s, j);
        glm_job_done(j, 1, now);
        glm_job_free(j);
        atomic_fetch_sub(s->live, 1);
    }
    *last = NULL;
    return first;
}

static void
accept(glm_sched_t *s, glm_job_t *j)
{
    glm_job_t  *mate;

    for (; j != NULL; j = mate) {
        int32_t  depth = s->nqueue;

        mate = j->mate;
        j->mate = NULL;
        s->st.accepted++;
        enqueue(s, j);
        glm_sched_touch(s, j);
        glm_job_accept(j, depth);
    }
}

void
glm_sched_arrive(glm_sched_t *s, glm_job_t *j, uint64_t now)
{
    int32_t  n = 0;
    int      is_late = 0;

    j = drop_cancelled(s, j, now);
    if (j == NULL) return;
    expire(s, now);
    for (const glm_job_t *i = j; i != NULL; i = i->mate, n++) is_late |= late(i, now);
    if (is_late) {
        refuse_late(s, j);
        return;
    }
    if (s->nqueue + n > s->max_queue) admit(s, now);
    if (s->nqueue + n > s->max_queue && !at_once(s, j)) {
        refuse_full(s, j, n);
        free_ended(s);
        return;
    }
    accept(s, j);
    admit(s, now);
    free_ended(s);
}

int
glm_sched_step(glm_sched_t *s, uint64_t now)
{
    int  worked;

    expire(s, now);
    admit(s, now);
    worked = glm_sched_compute(s);
    free_ended(s);
    return worked;
}

/* A paused request counts once, however many of its rounds run. */
static uint32_t
paused_first(glm_job_t *j)
{
    if (!glm_job_paused(j)) return 0;
    return j->infill == NULL || j->infill->counted++ == 0;
}

void
glm_sched_gauges(glm_sched_t *s)
{
    glm_job_t  *j;

    s->st.running = (uint32_t) s->nrun;
    s->st.waiting = (uint32_t) s->nqueue;
    s->st.paused = 0;
    TAILQ_FOREACH(j, &s->run, link)
        if (j->infill != NULL) j->infill->counted = 0;
    TAILQ_FOREACH(j, &s->run, link) s->st.paused += paused_first(j);
    s->st.kv_pages_total = (uint32_t) s->kv.total;
    s->st.kv_pages_used = (uint32_t) (s->kv.total - s->kv.nfree);
}
