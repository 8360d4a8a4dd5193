/*
 * fake_engine: see fake_engine.h.  One thread runs everything that is due.
 */
#include "fake_engine.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "../../engine/ring_impl.h"
#include "fake_script.h"

#define MS  1000000u

typedef struct job_s  job_t;

struct job_s {
    job_t          *next;
    glm_req_t      *r;
    fake_script_t   s;
    char           *prompt;       /* its bytes, or those of its ids */
    size_t          nprompt;
    int             prompt_tokens, max_tokens;
    int             accepted, running, silent, garbage;
    int             i;            /* tokens said, of each choice */
    int             blank, nblanks;   /* INFILL; else 0 and 1 */
    glm_text_t     *fill;         /* (n, nblanks) INFILL */
    uint64_t        due, t_submit, t_admit, t_first;
    glm_text_t      held;
};

struct glm_engine_s {
    glm_config_t        config;
    pthread_t           thread;
    pthread_mutex_t     lock;     /* in, stats, stop, drain */
    pthread_cond_t      cond;
    glm_req_t         **in;
    int                 nin, incap;
    job_t              *jobs;     /* the thread's own */
    atomic_int          stop, draining;
    atomic_int          njobs;    /* in and jobs */
    int                 nrunning, nwaiting;
    const glm_sink_t   *sink;     /* of the last request: all have one server's */
    uint64_t            stall_until;
    glm_engine_stats_t  stats;
};

static fake_opts_t    opts = { .name = "fake-model", .defaults = "", .max_seq = 2048 };
static glm_engine_t  *current;

static const char *const  utf8_text = "\xC3\xA9\xE6\xBC\xA2\xF0\x9F\x98\x80";   /* 2, 3, 4 */

void
fake_engine_opts(const fake_opts_t *o)
{
    opts = *o;
    if (opts.name == NULL) opts.name = "fake-model";
    if (opts.defaults == NULL) opts.defaults = "";
    if (opts.max_seq == 0) opts.max_seq = 2048;
}

int
fake_engine_jobs(void)
{
    return current != NULL ? atomic_load(&current->njobs) : 0;
}

static uint64_t
now_ns(void)
{
    struct timespec  ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t) ts.tv_sec * 1000000000u + (uint64_t) ts.tv_nsec;
}

const char *
fake_token_text(void *arg, int32_t id, size_t *n)
{
    static _Thread_local char  text[16];

    (void) arg;
    if (id < 256) {
        text[0] = (char) id;
        *n = 1;
    } else {
        *n = (size_t) snprintf(text, sizeof(text), "t%d ", id);
    }
    if (id == FAKE_MASK) *n = (size_t) snprintf(text, sizeof(text), "[MASK]");
    return text;
}

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
read_script(job_t *j)
{
    char   *p, line[1024], *words;
    FILE   *f;

    p = j->nprompt ? memmem(j->prompt, j->nprompt, "fake:", 5) : NULL;
    if (p != NULL) {
        p += 5;
        fake_script_parse(&j->s, p, j->nprompt - (size_t) (p - j->prompt));
        return;
    }
    fake_script_parse(&j->s, opts.defaults, strlen(opts.defaults));
    f = opts.script != NULL ? fopen(opts.script, "re") : NULL;
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

/* ---- TOKENIZE, DETOKENIZE ---- */

static void
say_ids(job_t *j)
{
    size_t      i, k;
    glm_ids_t   ids = {0};
    glm_req_t  *r = j->r;

    for (i = 0; i < r->nseg; i++) {
        for (k = 0; k < r->seg[i].n; k++) {
            glm_ids_push(&ids, r->seg[i].kind == GLM_SEG_IDS ? r->seg[i].ids[k]
                               : (int32_t) (uint8_t) r->seg[i].text[k]);
        }
    }
    if (r->add_special) {
        glm_ids_push(&ids, FAKE_MASK);
        glm_ids_push(&ids, FAKE_EOS);
    }
    r->sink->ids(r, ids.id, ids.n);
    glm_ids_free(&ids);
}

static void
run_tokenizer(glm_engine_t *e, job_t *j)
{
    glm_req_t   *r = j->r;
    glm_done_t   d = { .prompt_tokens = j->prompt_tokens, .t_submit = j->t_submit,
                       .t_done = now_ns() };

    if (j->s.error) {
        end_error(e, j, &j->s.refusal);
        return;
    }
    if (r->op == GLM_OP_TOKENIZE) say_ids(j);
    else r->sink->text(r, j->prompt, j->nprompt);
    job_free(e, j);
    r->sink->done(r, &d);
}

/* ---- INFILL ---- */

/* The next mask at or after *at, and its size. */
static size_t
next_mask(const job_t *j, size_t *at)
{
    for ( ; *at < j->nprompt; ++*at) {
        if (j->nprompt - *at >= 6 && memcmp(j->prompt + *at, "[MASK]", 6) == 0) return 6;
        if (j->nprompt - *at >= 7 && memcmp(j->prompt + *at, "[sMASK]", 7) == 0) return 7;
    }
    return 0;
}

static int
count_masks(const job_t *j)
{
    int     n = 0;
    size_t  at = 0, size;

    if (j->r->nseg == 0 || j->r->seg[0].kind == GLM_SEG_PLAIN) return 0;
    while ((size = next_mask(j, &at)) > 0) {
        n++;
        at += size;
    }
    return n;
}

static uint32_t
characters(const char *s, size_t n)
{
    uint32_t  c = 0;

    while (n-- > 0) c += ((uint8_t) *s++ & 0xC0) != 0x80;
    return c;
}

/* The prompt with the fills of choice c. */
static void
say_filled(const job_t *j, int c)
{
    int           b, own = j->r->beams > 1 ? 0 : c;
    size_t        at = 0, from = 0, size;
    glm_text_t    t = {0};
    glm_span_t    span[GLM_MAX_BLANKS] = {{0}};
    const glm_text_t  *f;
    glm_filled_t  out = { .choice = c, .span = span, .nblanks = j->nblanks };

    for (b = 0; b < j->nblanks; b++) {
        f = &j->fill[(b < j->nblanks - 1 ? own : c) * j->nblanks + b];
        size = next_mask(j, &at);
        glm_text_add(&t, j->prompt + from, at - from);
        span[b].start = characters(t.s, t.n);
        glm_text_add(&t, f->s, f->n);
        span[b].end = span[b].start + characters(f->s, f->n);
        at += size;
        from = at;
    }
    glm_text_add(&t, j->prompt + from, j->nprompt - from);
    if (j->s.badspan) span[0].end = 1 << 20;
    out.text = t.s;
    out.ntext = t.n;
    j->r->sink->filled(j->r, &out);
    glm_text_free(&t);
}

/* ---- GENERATE ---- */

static void
begin(glm_engine_t *e, glm_req_t *r)
{
    job_t  *j = calloc(1, sizeof(*j));

    j->r = r;
    j->t_submit = now_ns();
    j->next = e->jobs;
    e->jobs = j;
    read_prompt(j);
    read_script(j);
    j->due = j->t_submit + (uint64_t) j->s.accept * MS;
    if (j->s.stall >= 0) {
        e->stall_until = j->s.stall ? j->t_submit + (uint64_t) j->s.stall * MS : UINT64_MAX;
    }
    if (r->op == GLM_OP_TOKENIZE || r->op == GLM_OP_DETOKENIZE) {
        run_tokenizer(e, j);
        return;
    }

    j->nblanks = r->op != GLM_OP_INFILL ? 1 : j->s.blanks ? j->s.blanks : count_masks(j);
    if (j->nblanks == 0 && j->s.error == 0) {
        end_with(e, j, 400, "", "prompt", "the prompt has no mask", 0);
        return;
    }
    if (r->op == GLM_OP_INFILL) j->fill = calloc((size_t) (r->n * j->nblanks), sizeof(glm_text_t));
    j->max_tokens = r->op == GLM_OP_SCORE ? 0 : r->max_tokens;
    if (j->max_tokens < 0) j->max_tokens = opts.max_seq - j->prompt_tokens - 1;
    if (j->s.tokens < 0) j->s.tokens = r->max_tokens >= 0 ? r->max_tokens : 16;
    if (j->s.tokens > j->max_tokens) j->s.tokens = j->max_tokens;
    if (j->s.echo) j->s.tokens = (int) j->nprompt;

    if (j->s.error == 0 && j->prompt_tokens + 1 + j->max_tokens > opts.max_seq) {
        end_with(e, j, 400, "context_length_exceeded", "max_tokens",
                 "prompt and max_tokens exceed the context", 0);
        return;
    }
    accident(e, j, 0);
}

static void
logprobs(glm_sampled_t *s, int32_t id, int n)
{
    int  i;

    *s = (glm_sampled_t) { .id = id, .logprob = -0.25f, .ntop = n };
    for (i = 0; i < n; i++) {
        s->top[i].id = i == 0 ? id : 1000 + i;
        s->top[i].logprob = -0.25f - (float) i;
    }
}

/* An id a byte; -0.5 - index / 8, itself the second best.  The first has none. */
static void
prompt_logprobs(glm_sampled_t *s, int32_t id, size_t i, int n)
{
    int  k;

    *s = (glm_sampled_t) { .id = id, .logprob = -0.5f - (float) i / 8, .ntop = n };
    for (k = 0; k < n; k++) {
        s->top[k].id = k == 1 ? id : 500 + k;
        s->top[k].logprob = k == 1 ? s->logprob : s->logprob + 0.25f - (float) k / 4;
    }
}

static void
say_prompt(job_t *j)
{
    size_t           i, n = j->nprompt;
    glm_sampled_t    s;
    glm_token_out_t  t = { .text = "" };

    if (j->r->want_text) j->r->sink->text(j->r, n > 0 ? j->prompt : "", n);
    for (i = 0; i < n && j->r->want_prompt_logprobs; i++) {
        t.id = (uint8_t) j->prompt[i];
        t.offset = (uint32_t) i;
        prompt_logprobs(&s, t.id, i, j->r->nprompt_logprobs);
        t.sampled = i > 0 ? &s : NULL;
        j->r->sink->prompt(j->r, &t);
    }
}

static void
accept_job(glm_engine_t *e, job_t *j)
{
    glm_accepted_t  a = { .prompt_tokens = j->prompt_tokens, .max_tokens = j->max_tokens,
                          .seed = j->r->has_seed ? j->r->sample.seed : 12345 };

    if (opts.slots && e->nrunning >= opts.slots && e->nwaiting >= opts.max_queue) {
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
    if (j->r->want_ids && !j->s.noids) say_ids(j);
    say_prompt(j);
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
        .completion_tokens = (j->i + j->blank * j->s.tokens)
                             * (r->best_of > r->n ? r->best_of : r->n),
        .cached_tokens = j->s.cached, .cancelled = cancelled, .t_submit = j->t_submit,
        .t_admit = j->t_admit, .t_first = j->t_first, .t_done = now_ns(),
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
    for (c = 0; c < r->n && j->fill != NULL && !cancelled && !j->s.nofilled; c++) say_filled(j, c);
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

/* The id and the text of token i. */
static int32_t
make_text(job_t *j, int i, glm_text_t *t)
{
    int          k;
    char         byte;
    size_t       n;
    const char  *s;

    if (j->s.echo || j->s.utf8) {
        byte = j->s.echo ? j->prompt[i] : utf8_text[i % 9];
        glm_text_add(t, &byte, 1);
        return (uint8_t) byte;
    }
    if (j->s.bytes) {
        for (k = 0; k < j->s.bytes; k++) glm_text_add(t, &"abcdefghijklmnop"[(i + k) % 16], 1);
    } else if (j->s.text[0]) {
        glm_text_add(t, j->s.text, strlen(j->s.text));
    } else {
        s = fake_token_text(NULL, 256 + i % 1000, &n);
        glm_text_add(t, s, n);
    }
    return 256 + i % 1000;
}

/* Held-back text that may go out: whole characters, or all at the end. */
static size_t
ready_bytes(const job_t *j, int last)
{
    size_t   n = j->held.n, back = 0, need;
    uint8_t  b;

    if (j->s.held && !last) return 0;
    while (back < n && back < 3 && ((uint8_t) j->held.s[n - 1 - back] & 0xC0) == 0x80) back++;
    if (n == back) return 0;
    b = (uint8_t) j->held.s[n - 1 - back];
    need = b >= 0xF0 ? 4 : b >= 0xE0 ? 3 : b >= 0xC0 ? 2 : 1;
    return back + 1 < need ? n - back - 1 : n;
}

static void
say_token(job_t *j, int last)
{
    int              c;
    char             own[32];
    size_t           n;
    glm_sampled_t    s;
    glm_token_out_t  t = { .offset = (uint32_t) j->i };

    if (j->r->echo) t.offset += (uint32_t) j->nprompt;
    t.id = make_text(j, j->i, &j->held);
    n = ready_bytes(j, last);
    t.text = j->held.s;
    t.ntext = n;
    if (j->r->sample.nlogprobs >= 0) {
        logprobs(&s, t.id, j->r->sample.nlogprobs);
        t.sampled = &s;
    }
    t.blank = j->blank;
    for (c = 0; c < j->r->n; c++) {
        if (c > 0 && j->r->beams > 1 && j->blank + 1 < j->nblanks) break;
        t.choice = c;
        if (j->s.bychoice) {
            t.ntext = (size_t) snprintf(own, sizeof(own), "c%d.%d ", c, j->i);
            t.text = own;
        }
        if (j->fill != NULL && j->blank < j->nblanks) {
            glm_text_add(&j->fill[c * j->nblanks + j->blank], t.text, t.ntext);
        }
        j->r->sink->token(j->r, &t);
    }
    memmove(j->held.s, j->held.s + n, j->held.n - n);
    j->held.n -= n;
    j->i++;
}

/* All choices at once; the first of them decides nothing for the others. */
static void
say_scores(job_t *j)
{
    size_t               i, k;
    glm_sampled_t        s = { .ntop = 0 };
    glm_token_out_t      t = {0};
    const glm_segment_t *c;
    glm_finish_out_t     f = { .reason = GLM_FINISH_LENGTH, .stop_id = -1, .stop_index = -1 };

    for (i = 0; i < j->r->nchoice; i++) {
        c = &j->r->choice[i];
        f.score = 0;
        for (k = 0; k < c->n; k++) {
            t.choice = f.choice = (int32_t) i;
            t.id = c->kind == GLM_SEG_IDS ? c->ids[k] : (uint8_t) c->text[k];
            t.text = fake_token_text(NULL, t.id, &t.ntext);
            if (t.ntext == 1 && (uint8_t) t.text[0] >= 0x80) t.ntext = 0;
            s.id = t.id;
            s.logprob = (float) -(t.id % 8 + 1) / 8 * (j->nprompt > 0 ? 1 : 2);
            t.sampled = &s;
            f.score += s.logprob;
            j->r->sink->token(j->r, &t);
        }
        j->i += (int) c->n;
        f.ntokens = f.nkept = (int32_t) c->n;
        j->r->sink->finish(j->r, &f);
    }
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
        say_scores(j);
        finish_job(e, j, 0);
        return;
    }
    for (k = 0; k < burst && j->i < j->s.tokens; k++) {
        say_token(j, j->i == j->s.tokens - 1);
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
    return opts.slots == 0 || e->nrunning < opts.slots;
}

/* One job's due work.  1: something was said. */
static int
run_job(glm_engine_t *e, job_t *j, uint64_t now)
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

/* ---- the thread ---- */

static void
take_new(glm_engine_t *e)
{
    int          i, n;
    glm_req_t  **in;

    pthread_mutex_lock(&e->lock);
    in = e->in;
    n = e->nin;
    e->in = NULL;
    e->nin = e->incap = 0;
    pthread_mutex_unlock(&e->lock);
    for (i = 0; i < n; i++) {
        e->sink = in[i]->sink;
        begin(e, in[i]);
    }
    free(in);
}

static void
update_stats(glm_engine_t *e)
{
    job_t  *j;

    pthread_mutex_lock(&e->lock);
    e->stats.heartbeat = now_ns();
    e->stats.running = (uint32_t) e->nrunning;
    e->stats.waiting = (uint32_t) e->nwaiting;
    e->stats.paused = 0;
    for (j = e->jobs; j != NULL; j = j->next) {
        e->stats.paused += (uint32_t) atomic_load(&j->r->paused);
    }
    e->stats.kv_pages_total = 1000;
    e->stats.kv_pages_used = (uint32_t) (10 * e->nrunning);
    e->stats.draining = (uint32_t) atomic_load(&e->draining);
    pthread_mutex_unlock(&e->lock);
}

/* Until something is due or comes. */
static void
wait_due(glm_engine_t *e)
{
    uint64_t         at = now_ns() + 20 * MS;
    job_t           *j;
    struct timespec  ts;

    for (j = e->jobs; j != NULL; j = j->next) {
        if (!j->silent && j->due < at) at = j->due;
    }
    if (at <= now_ns()) at = now_ns() + MS;
    ts.tv_sec = (time_t) (at / 1000000000u);
    ts.tv_nsec = (long) (at % 1000000000u);
    pthread_mutex_lock(&e->lock);
    if (e->nin == 0 && !e->stop) pthread_cond_timedwait(&e->cond, &e->lock, &ts);
    pthread_mutex_unlock(&e->lock);
}

static void
stand_still(glm_engine_t *e)
{
    while (now_ns() < e->stall_until) {
        usleep(1000);
        if (e->stop) e->stall_until = 0;
    }
}

static void *
run(void *arg)
{
    int            said;
    job_t         *j, *next;
    uint64_t       now;
    glm_engine_t  *e = arg;

    for ( ;; ) {
        take_new(e);
        stand_still(e);
        now = now_ns();
        said = 0;
        for (j = e->jobs; j != NULL; j = next) {
            next = j->next;
            said |= run_job(e, j, now);
        }
        update_stats(e);
        if (e->sink != NULL) e->sink->flush(e->sink->flush_arg);
        if (e->stop && atomic_load(&e->njobs) == 0) break;
        if (!said) wait_due(e);
    }
    return NULL;
}

/* ---- engine.h ---- */

int
glm_engine_start(glm_engine_t **out, const glm_engine_opts_t *o, glm_err_t *err)
{
    pthread_condattr_t   attr;
    glm_engine_t        *e = calloc(1, sizeof(*e));

    (void) o;
    *out = NULL;
    if (e == NULL) return glm_fail(err, GLM_ENOMEM, "no memory");
    snprintf(e->config.name, sizeof(e->config.name), "%s", opts.name);
    e->config.vocab = FAKE_VOCAB;
    e->config.max_seq = opts.max_seq;
    e->config.eos = FAKE_EOS;
    e->stats.started = now_ns();
    e->stats.heartbeat = e->stats.started;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&e->cond, &attr);
    pthread_mutex_init(&e->lock, NULL);
    pthread_create(&e->thread, NULL, run, e);
    current = e;
    *out = e;
    return 0;
}

static void
wake(glm_engine_t *e)
{
    pthread_mutex_lock(&e->lock);
    pthread_cond_signal(&e->cond);
    pthread_mutex_unlock(&e->lock);
}

void
glm_engine_drain(glm_engine_t *e)
{
    e->draining = 1;
}

int
glm_engine_idle(const glm_engine_t *e)
{
    return atomic_load(&e->njobs) == 0;
}

void
glm_engine_stop(glm_engine_t *e)
{
    pthread_mutex_lock(&e->lock);
    e->stop = 1;
    pthread_cond_signal(&e->cond);
    pthread_mutex_unlock(&e->lock);
    pthread_join(e->thread, NULL);
    current = NULL;
    free(e->in);
    free(e);
}

const glm_config_t *
glm_engine_config(const glm_engine_t *e)
{
    return &e->config;
}

const glm_tokenizer_t *
glm_engine_tokenizer(const glm_engine_t *e)
{
    (void) e;
    return NULL;
}

const char *
glm_engine_name(const glm_engine_t *e)
{
    return e->config.name;
}

uint64_t
glm_engine_fingerprint(const glm_engine_t *e)
{
    (void) e;
    return 0xfa4efa4e;
}

void
glm_engine_submit_group(glm_engine_t *e, glm_req_t *const *r, size_t n)
{
    size_t  i;

    for (i = 0; i < n; i++) glm_engine_submit(e, r[i]);
}

void
glm_engine_submit(glm_engine_t *e, glm_req_t *r)
{
    glm_req_t           **p;
    const glm_refusal_t   draining = { .status = 503, .code = "engine_draining",
                                       .text = "the engine is shutting down", .retry_after = 1 };

    pthread_mutex_lock(&e->lock);
    e->stats.requests++;
    if (e->draining || e->stop) {
        e->stats.refused++;
        pthread_mutex_unlock(&e->lock);
        r->sink->error(r, &draining);
        return;
    }
    if (e->nin == e->incap) {
        e->incap = e->incap ? 2 * e->incap : 16;
        p = realloc(e->in, (size_t) e->incap * sizeof(*p));
        if (p == NULL) abort();
        e->in = p;
    }
    e->in[e->nin++] = r;
    atomic_fetch_add(&e->njobs, 1);
    pthread_cond_signal(&e->cond);
    pthread_mutex_unlock(&e->lock);
}

void
glm_req_cancel(glm_engine_t *e, glm_req_t *r)
{
    atomic_store(&r->cancel, 1);
    wake(e);
}

void
glm_req_pause(glm_engine_t *e, glm_req_t *r, int on)
{
    atomic_store(&r->paused, on != 0);
    wake(e);
}

void
glm_req_go(glm_engine_t *e, glm_req_t *r)
{
    atomic_store(&r->go, 1);
    wake(e);
}

void
glm_engine_stats(const glm_engine_t *e, glm_engine_stats_t *out)
{
    glm_engine_t  *w = (glm_engine_t *) (uintptr_t) e;    /* the lock is no state */

    pthread_mutex_lock(&w->lock);
    *out = w->stats;
    pthread_mutex_unlock(&w->lock);
}
