/*
 * fake_job: see fake_job.h.
 */
#include "fake_job.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../../engine/ring_impl.h"

/* ---- a request comes ---- */

static void
read_prompt(job_t *j)
{
    size_t             i, k, n;
    const char        *s;
    glm_text_t         t = {0};
    const glm_req_t   *r = j->r;

    for (i = 0; i < r->nseg; i++) {
        if (r->seg[i].kind != GLM_SEG_IDS) {
            glm_text_add(&t, r->seg[i].text, r->seg[i].n);
            j->prompt_tokens += (int) r->seg[i].n;
            continue;
        }
        for (k = 0; k < r->seg[i].n; k++) {
            s = fake_token_text(NULL, r->seg[i].ids[k], &n);
            glm_text_add(&t, s, n);
        }
        j->prompt_tokens += (int) r->seg[i].n;
    }
    if (r->add_special) j->prompt_tokens += 2;
    j->prompt = t.s;
    j->nprompt = t.n;
}

/* Words for this prompt: its own, a line of the script file, or the defaults. */
static void
read_script(const glm_engine_t *e, job_t *j)
{
    char   *p, line[1024], *words;
    FILE   *f;

    p = j->nprompt ? memmem(j->prompt, j->nprompt, "fake:", 5) : NULL;
    if (p != NULL) {
        p += 5;
        fake_script_parse(&j->s, p, j->nprompt - (size_t) (p - j->prompt));
        return;
    }
    fake_script_parse(&j->s, e->opts.defaults, strlen(e->opts.defaults));
    f = e->opts.script != NULL ? fopen(e->opts.script, "re") : NULL;
    if (f == NULL) return;
    while (fgets(line, sizeof(line), f) != NULL) {
        words = line + strcspn(line, " \n");
        if (*words) *words++ = '\0';
        if (strcmp(line, "*") != 0
            && (j->nprompt == 0 || memmem(j->prompt, j->nprompt, line, strlen(line)) == NULL))
        {
            continue;
        }
        fake_script_parse(&j->s, words, strlen(words));
        break;
    }
    fclose(f);
}

static void
job_free(glm_engine_t *e, job_t *j)
{
    int      i;
    job_t  **p = &e->jobs;

    while (*p != j) p = &(*p)->next;
    *p = j->next;
    if (j->running) e->nrunning--;
    else if (j->accepted) e->nwaiting--;
    for (i = 0; j->fill != NULL && i < j->r->n * j->nblanks; i++) glm_text_free(&j->fill[i]);
    free(j->fill);
    free(j->prompt);
    glm_text_free(&j->held);
    free(j);
    atomic_fetch_sub(&e->njobs, 1);
}

static void
end_error(glm_engine_t *e, job_t *j, const glm_refusal_t *why)
{
    glm_req_t      *r = j->r;
    glm_refusal_t   copy = *why;      /* it may be the job's own */

    pthread_mutex_lock(&e->lock);
    if (j->accepted) e->stats.finished_error++;
    else e->stats.refused++;
    pthread_mutex_unlock(&e->lock);
    job_free(e, j);
    r->sink->error(r, &copy);
}

static void
end_with(glm_engine_t *e, job_t *j, int status, const char *code, const char *param,
    const char *text, int retry)
{
    glm_refusal_t  why = { .status = status, .retry_after = (uint32_t) retry };

    snprintf(why.code, sizeof(why.code), "%s", code);
    snprintf(why.param, sizeof(why.param), "%s", param);
    snprintf(why.text, sizeof(why.text), "%s", text);
    end_error(e, j, &why);
}

/*
 * As a broken engine would: a tail that no record ends at.  Again and again, since
 * the server may still publish what was said before.
 */
static void
garbage(job_t *j)
{
    glm_live_t         *l = j->r->owner;
    glm_conn_t         *c = l->client;
    glm_ring_shared_t  *ring = c->com.shared;

    j->silent = 1;
    j->garbage = 1;
    pthread_mutex_lock(&c->lock);
    if (!l->mute) {               /* else that client has left, and its ring */
        __atomic_store_n(&ring->tail, __atomic_load_n(&ring->tail, __ATOMIC_SEQ_CST) | 5,
                         __ATOMIC_SEQ_CST);
        glm_conn_bell(c);
    }
    pthread_mutex_unlock(&c->lock);
}

/* 1: one of the accidents at token k happened and the job says no more (or is
 * gone). */
static int
accident(glm_engine_t *e, job_t *j, int k)
{
    if (j->s.dieat == k) _exit(70);
    if (j->s.errorat == k) {
        end_error(e, j, &j->s.refusal);
        return 1;
    }
    if (j->s.garbageat == k) garbage(j);
    if (j->s.hangat == k) j->silent = 1;
    return j->silent;
}

static void
run_tokenizer(glm_engine_t *e, job_t *j)
{
    glm_req_t   *r = j->r;
    glm_done_t   d = { .prompt_tokens = j->prompt_tokens, .t_submit = j->t_submit,
                       .t_done = fake_now() };

    if (j->s.error) {
        end_error(e, j, &j->s.refusal);
        return;
    }
    if (r->op == GLM_OP_TOKENIZE) fake_say_ids(j);
    else r->sink->text(r, j->prompt, j->nprompt);
    job_free(e, j);
    r->sink->done(r, &d);
}

void
fake_begin(glm_engine_t *e, glm_req_t *r)
{
    job_t  *j = calloc(1, sizeof(*j));

    j->r = r;
    j->t_submit = fake_now();
    j->next = e->jobs;
    e->jobs = j;
    read_prompt(j);
    read_script(e, j);
    j->due = j->t_submit + (uint64_t) j->s.accept * MS;
    if (j->s.stall >= 0) {
        e->stall_until = j->s.stall ? j->t_submit + (uint64_t) j->s.stall * MS : UINT64_MAX;
    }
    if (r->op == GLM_OP_TOKENIZE || r->op == GLM_OP_DETOKENIZE) {
        run_tokenizer(e, j);
        return;
    }

    j->nblanks = r->op != GLM_OP_INFILL ? 1 : j->s.blanks ? j->s.blanks : fake_count_masks(j);
    if (j->nblanks == 0 && j->s.error == 0) {
        end_with(e, j, 400, "", "prompt", "the prompt has no mask", 0);
        return;
    }
    if (r->op == GLM_OP_INFILL) j->fill = calloc((size_t) (r->n * j->nblanks), sizeof(glm_text_t));
    j->max_tokens = r->op == GLM_OP_SCORE ? 0 : r->max_tokens;
    if (j->max_tokens < 0) j->max_tokens = e->opts.max_seq - j->prompt_tokens - 1;
    if (j->s.tokens < 0) j->s.tokens = r->max_tokens >= 0 ? r->max_tokens : 16;
    if (j->s.tokens > j->max_tokens) j->s.tokens = j->max_tokens;
    if (j->s.echo) j->s.tokens = (int) j->nprompt;

    if (j->s.error == 0 && j->prompt_tokens + 1 + j->max_tokens > e->opts.max_seq) {
        end_with(e, j, 400, "context_length_exceeded", "max_tokens",
                 "prompt and max_tokens exceed the context", 0);
        return;
    }
    accident(e, j, 0);
}

/* ---- and goes on ---- */

static void
accept_job(glm_engine_t *e, job_t *j)
{
    glm_accepted_t  a = { .prompt_tokens = j->prompt_tokens, .max_tokens = j->max_tokens,
                          .seed = j->r->has_seed ? j->r->sample.seed : 12345 };

    if (e->opts.slots && e->nrunning >= e->opts.slots && e->nwaiting >= e->opts.max_queue) {
        end_with(e, j, 503, "server_is_overloaded", "", "the queue is full", 1);
        return;
    }
    a.queue_depth = j->s.queue ? j->s.queue : e->nwaiting;
    j->accepted = 1;
    e->nwaiting++;
    pthread_mutex_lock(&e->lock);
    e->stats.accepted++;
    e->stats.prompt_tokens += (uint64_t) j->prompt_tokens;
    pthread_mutex_unlock(&e->lock);
    j->r->sink->accepted(j->r, &a);
    if (j->r->want_ids && !j->s.noids) fake_say_ids(j);
    fake_say_prompt(j);
}

static void
finish_job(glm_engine_t *e, job_t *j, int cancelled)
{
    int               c;
    glm_req_t        *r = j->r;
    glm_finish_out_t  f = { .stop_id = j->s.stop_id, .stop_index = j->s.stop_index,
                            .ntokens = j->i, .nkept = j->i };
    glm_done_t        d = {
        .prompt_tokens = j->prompt_tokens,
        .completion_tokens = j->i * (r->best_of > r->n ? r->best_of : r->n)
                             + j->blank * j->s.tokens * (r->beams > 1 ? 1 : r->n),
        .cached_tokens = j->s.cached, .cancelled = cancelled, .t_submit = j->t_submit,
        .t_admit = j->t_admit, .t_first = j->t_first, .t_done = fake_now(),
    };

    f.reason = cancelled ? GLM_FINISH_CANCEL : j->s.reason != GLM_FINISH_NONE ? j->s.reason
               : j->s.stop_index >= 0 || j->s.stop_id >= 0 || j->i < j->max_tokens
               ? GLM_FINISH_STOP : GLM_FINISH_LENGTH;
    f.blank = j->blank;
    for (c = 0; c < r->n && j->accepted && !j->s.nofinish && r->op != GLM_OP_SCORE; c++) {
        if (c > 0 && r->beams > 1 && j->blank + 1 < j->nblanks) break;
        f.choice = c;
        if (r->beams > 1) f.score = -1.5f * (float) (c + 1);
        r->sink->finish(r, &f);
    }
    if (!cancelled && j->blank + 1 < j->nblanks) {
        j->blank += 1 + j->s.skipblank;
        j->i = 0;
        j->held.n = 0;            /* half a character */
        return;
    }
    for (c = 0; c < r->n && j->fill != NULL && !cancelled && !j->s.nofilled; c++) fake_say_filled(j, c);
    if (j->s.nodone && !cancelled) {
        j->silent = 1;
        return;
    }
    pthread_mutex_lock(&e->lock);
    if (cancelled) e->stats.finished_cancel++;
    else if (f.reason == GLM_FINISH_STOP) e->stats.finished_stop++;
    else e->stats.finished_length++;
    pthread_mutex_unlock(&e->lock);
    job_free(e, j);
    r->sink->done(r, &d);
}

static void
step_job(glm_engine_t *e, job_t *j, uint64_t now)
{
    int  k, burst = j->r->beams > 1 ? j->s.tokens : j->s.burst;

    if (!j->running) {
        j->running = 1;
        e->nwaiting--;
        e->nrunning++;
        j->t_admit = now;
        j->due = now + (uint64_t) (j->s.first + j->s.delay * (j->r->beams > 1 ? burst : 1)) * MS;
        if (j->due > now) return;
    }
    if (j->r->op == GLM_OP_SCORE) {
        fake_say_scores(j);
        finish_job(e, j, 0);
        return;
    }
    for (k = 0; k < burst && j->i < j->s.tokens; k++) {
        fake_say_token(j, j->i == j->s.tokens - 1);
        if (j->i == 1) j->t_first = now;
        pthread_mutex_lock(&e->lock);
        e->stats.generated_tokens += (uint64_t) j->r->n;
        e->stats.steps++;
        pthread_mutex_unlock(&e->lock);
        if (accident(e, j, j->i)) return;
    }
    if (j->i >= j->s.tokens) {
        finish_job(e, j, 0);
        return;
    }
    j->due = now + (uint64_t) j->s.delay * MS;
}

static int
may_run(const glm_engine_t *e, const job_t *j)
{
    if (j->running) return 1;
    if (j->r->hold && !atomic_load(&j->r->go)) return 0;
    return e->opts.slots == 0 || e->nrunning < e->opts.slots;
}

/* One job's due work.  1: something was said. */
int
fake_run_job(glm_engine_t *e, job_t *j, uint64_t now)
{
    if (atomic_load(&j->r->cancel) && !j->s.nocancel) {
        finish_job(e, j, 1);
        return 1;
    }
    if (e->stop) {
        end_with(e, j, 503, "engine_draining", "", "the engine is shutting down", 1);
        return 1;
    }
    if (j->r->deadline && now > j->r->deadline && !j->running) {
        end_with(e, j, 504, "deadline_exceeded", "", "the deadline passed in the queue", 0);
        return 1;
    }
    if (j->garbage) garbage(j);
    if (j->silent || now < j->due || atomic_load(&j->r->paused)) return 0;
    if (!j->accepted) {
        accept_job(e, j);
        return 1;
    }
    if (!may_run(e, j)) return 0;
    step_job(e, j, now);
    return 1;
}
