/*
 * engine_util: a request with a sink that remembers everything, for tests of the
 * engine.  Checks the order of events as it goes: wrong > 0 is a failure.
 */
#ifndef GLM_T_ENGINE_UTIL_H
#define GLM_T_ENGINE_UTIL_H

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine.h"

#ifndef T_CHOICES
#define T_CHOICES  8
#endif

typedef struct {
    int32_t           *id;        /* (n) */
    glm_sampled_t     *sampled;   /* (n) when log-probabilities were asked */
    uint32_t          *offset;
    size_t             n, cap;
    char              *text;
    size_t             ntext;
    glm_finish_out_t   fin;
    int                finished;
} t_choice_t;

typedef struct {
    glm_req_t          r;
    glm_segment_t      seg;
    glm_engine_t      *e;
    t_choice_t         c[T_CHOICES];      /* INFILL: (choices, blanks) */
    int                blanks;            /* masks of the prompt; 1 but for INFILL */
    struct {
        char          *text;
        glm_span_t    *span;
    }                  filled[T_CHOICES];
    int                accepted, ended;   /* ended: 1 done, 2 error */
    int                wrong;
    int                cancel_after;      /* tokens, then cancel from elsewhere */
    glm_accepted_t     acc;
    glm_done_t         done;
    glm_refusal_t      no;
    t_choice_t         prompt;            /* its ids with log-probabilities */
    int32_t           *ids;
    size_t             nids;
    char              *text;
    size_t             ntext;
    uint64_t           t_ended;
    int                order;             /* of ends, over all requests */
} t_req_t;

static pthread_mutex_t  t_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t   t_cond = PTHREAD_COND_INITIALIZER;
static int              t_ends, t_tokens, t_flushes;

static t_req_t *
t_of(glm_req_t *r)
{
    return r->owner;
}

static t_choice_t *
t_at(t_req_t *t, int32_t choice, int32_t blank)
{
    return &t->c[choice * t->blanks + blank];
}

static void
t_accepted(glm_req_t *r, const glm_accepted_t *a)
{
    t_req_t  *t = t_of(r);

    pthread_mutex_lock(&t_lock);
    t->wrong += t->accepted || t->ended;
    t->accepted = 1;
    t->acc = *a;
    pthread_cond_broadcast(&t_cond);
    pthread_mutex_unlock(&t_lock);
}

static void
t_keep(t_choice_t *c, const glm_token_out_t *o)
{
    if (c->n == c->cap) {
        c->cap = c->cap ? 2 * c->cap : 16;
        c->id = realloc(c->id, c->cap * sizeof(*c->id));
        c->sampled = realloc(c->sampled, c->cap * sizeof(*c->sampled));
        c->offset = realloc(c->offset, c->cap * sizeof(*c->offset));
    }
    memset(&c->sampled[c->n], 0, sizeof(*c->sampled));
    if (o->sampled != NULL) {
        c->sampled[c->n].id = o->sampled->id;
        c->sampled[c->n].logprob = o->sampled->logprob;
        c->sampled[c->n].ntop = o->sampled->ntop;
        memcpy(c->sampled[c->n].top, o->sampled->top,
               (size_t) o->sampled->ntop * sizeof(glm_logprob_t));
    }
    c->offset[c->n] = o->offset;
    c->id[c->n++] = o->id;
}

static void
t_token(glm_req_t *r, const glm_token_out_t *o)
{
    t_req_t     *t = t_of(r);
    t_choice_t  *c = t_at(t, o->choice, o->blank);

    pthread_mutex_lock(&t_lock);
    t->wrong += o->blank >= t->blanks || t->filled[o->choice].text != NULL
                || (o->blank > 0 && r->beams < 2 && !c[-1].finished);
    t->wrong += !t->accepted || t->ended || c->finished || o->choice >= r->n;
    t->wrong += (o->sampled != NULL) != (r->sample.nlogprobs >= 0 || r->op == GLM_OP_SCORE);
    if (o->id >= 0) {
        t_keep(c, o);
        t_tokens++;
    }
    c->text = realloc(c->text, c->ntext + o->ntext + 1);
    memcpy(c->text + c->ntext, o->text, o->ntext);
    c->ntext += o->ntext;
    c->text[c->ntext] = '\0';
    pthread_cond_broadcast(&t_cond);
    pthread_mutex_unlock(&t_lock);
}

/* The prompt's ids come before all tokens; the first has no log-probability. */
static void
t_prompt(glm_req_t *r, const glm_token_out_t *o)
{
    t_req_t  *t = t_of(r);

    pthread_mutex_lock(&t_lock);
    t->wrong += !t->accepted || t->ended || (o->sampled != NULL) != (t->prompt.n > 0);
    for (int k = 0; k < T_CHOICES; k++) t->wrong += t->c[k].n > 0 || t->c[k].finished;
    t_keep(&t->prompt, o);
    pthread_cond_broadcast(&t_cond);
    pthread_mutex_unlock(&t_lock);
}

static void
t_finish(glm_req_t *r, const glm_finish_out_t *f)
{
    t_req_t     *t = t_of(r);
    t_choice_t  *c = t_at(t, f->choice, f->blank);

    pthread_mutex_lock(&t_lock);
    t->wrong += !t->accepted || t->ended || c->finished;
    t->wrong += f->ntokens != (int32_t) c->n || f->nkept > f->ntokens;
    c->finished = 1;
    c->fin = *f;
    pthread_mutex_unlock(&t_lock);
}

/* The part of a text between two characters is what a choice said; a byte token may make
 * any byte of either, 0 too. */
static int
t_is_span(const glm_filled_t *f, glm_span_t span, const t_choice_t *said)
{
    uint32_t  at = 0;
    size_t    i = 0;

    for (; i < f->ntext && at < span.start; at++)
        do i++; while (i < f->ntext && (f->text[i] & 0xC0) == 0x80);
    if (at != span.start || said->ntext > f->ntext - i) return 0;
    if (said->ntext > 0 && memcmp(f->text + i, said->text, said->ntext) != 0) return 0;
    for (size_t k = 0; k < said->ntext; k++) at += (said->text[k] & 0xC0) != 0x80;
    return at == span.end;
}

/* All blanks have ended before, and what they told is in their places. */
static void
t_filled(glm_req_t *r, const glm_filled_t *f)
{
    t_req_t     *t = t_of(r);
    t_choice_t  *c = t_at(t, f->choice, 0);
    int          first = r->beams > 1 && f->choice > 0 ? t->blanks - 1 : 0;

    pthread_mutex_lock(&t_lock);
    t->wrong += t->ended || f->nblanks != t->blanks || t->filled[f->choice].text != NULL;
    t->filled[f->choice].text = calloc(f->ntext + 1, 1);
    memcpy(t->filled[f->choice].text, f->text, f->ntext);
    t->filled[f->choice].span = malloc((size_t) f->nblanks * sizeof(glm_span_t));
    memcpy(t->filled[f->choice].span, f->span, (size_t) f->nblanks * sizeof(glm_span_t));
    for (int b = first; b < f->nblanks; b++)
        t->wrong += !c[b].finished || !t_is_span(f, f->span[b], &c[b]);
    pthread_mutex_unlock(&t_lock);
}

static void
t_ids(glm_req_t *r, const int32_t *ids, size_t n)
{
    t_req_t  *t = t_of(r);

    t->wrong += t->ids != NULL || (r->op == GLM_OP_GENERATE && !t->accepted);
    t->ids = malloc((n + 1) * sizeof(int32_t));
    if (n > 0) memcpy(t->ids, ids, n * sizeof(int32_t));
    t->nids = n;
}

static void
t_text(glm_req_t *r, const char *s, size_t n)
{
    t_req_t  *t = t_of(r);

    t->text = malloc(n + 1);
    memcpy(t->text, s, n);
    t->text[n] = '\0';
    t->ntext = n;
}

static uint64_t
t_now(void)
{
    struct timespec  ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t) ts.tv_sec * 1000000000u + (uint64_t) ts.tv_nsec;
}

static void
t_end(t_req_t *t, int how)
{
    t->wrong += t->ended != 0;
    t->ended = how;
    t->t_ended = t_now();
    t->order = t_ends++;
    pthread_cond_broadcast(&t_cond);
}

static int
t_tells_all(const glm_req_t *r)
{
    return r->op == GLM_OP_GENERATE || r->op == GLM_OP_INFILL;
}

static void
t_done(glm_req_t *r, const glm_done_t *d)
{
    t_req_t  *t = t_of(r);
    int32_t   n = 0;

    pthread_mutex_lock(&t_lock);
    for (int k = 0; k < r->n && t_tells_all(r); k++) {
        t->wrong += t->accepted && r->op == GLM_OP_INFILL
                    && !d->cancelled && t->filled[k].text == NULL;
        for (int b = k > 0 && r->beams > 1 ? t->blanks - 1 : 0; b < t->blanks; b++) {
            n += (int32_t) t_at(t, k, b)->n;
            t->wrong += t->accepted && !t_at(t, k, b)->finished;
        }
    }
    if (t_tells_all(r))
        t->wrong += r->best_of > r->n ? n > d->completion_tokens : n != d->completion_tokens;
    t->done = *d;
    t_end(t, 1);
    pthread_mutex_unlock(&t_lock);
}

static void
t_error(glm_req_t *r, const glm_refusal_t *no)
{
    t_req_t  *t = t_of(r);

    pthread_mutex_lock(&t_lock);
    t->no = *no;
    t_end(t, 2);
    pthread_mutex_unlock(&t_lock);
}

static void
t_flush(void *arg)
{
    (void) arg;
    pthread_mutex_lock(&t_lock);
    t_flushes++;
    pthread_mutex_unlock(&t_lock);
}

static const glm_sink_t  t_sink = {
    .accepted = t_accepted, .token = t_token, .finish = t_finish, .ids = t_ids,
    .text = t_text, .done = t_done, .error = t_error, .flush = t_flush, .prompt = t_prompt,
    .filled = t_filled
};

/* A request with defaults: greedy, one choice. */
__attribute__((unused))
static t_req_t *
t_new(glm_engine_t *e)
{
    t_req_t  *t = calloc(1, sizeof(*t));

    t->e = e;
    t->r.owner = t;
    t->r.sink = &t_sink;
    t->blanks = 1;
    t->r.seg = &t->seg;
    t->r.nseg = 1;
    t->r.add_special = 1;
    t->r.n = 1;
    t->r.max_tokens = 16;
    t->r.sample.nlogprobs = -1;
    return t;
}

__attribute__((unused))
static t_req_t *
t_new_ids(glm_engine_t *e, const int32_t *ids, size_t n)
{
    t_req_t  *t = t_new(e);

    t->seg = (glm_segment_t) { .kind = GLM_SEG_IDS, .ids = ids, .n = n };
    return t;
}

__attribute__((unused))
static t_req_t *
t_new_text(glm_engine_t *e, const char *text)
{
    t_req_t  *t = t_new(e);

    t->seg = (glm_segment_t) { .kind = GLM_SEG_TEXT, .text = text, .n = strlen(text) };
    return t;
}

__attribute__((unused))
static void
t_submit(t_req_t *t)
{
    glm_engine_submit(t->e, &t->r);
}

/* Waits until *what reaches at least value; 0 after a minute without. */
__attribute__((unused))
static int
t_wait(const int *what, int value)
{
    struct timespec  until;
    int              rc = 0, good;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 60;
    pthread_mutex_lock(&t_lock);
    while (*what < value && rc == 0) rc = pthread_cond_timedwait(&t_cond, &t_lock, &until);
    good = *what >= value;
    pthread_mutex_unlock(&t_lock);
    return good;
}

/* Waits for n tokens of choice k. */
__attribute__((unused))
static int
t_wait_tokens(t_req_t *t, int k, size_t n)
{
    struct timespec  until;
    int              rc = 0, good;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 60;
    pthread_mutex_lock(&t_lock);
    while (t->c[k].n < n && !t->ended && rc == 0)
        rc = pthread_cond_timedwait(&t_cond, &t_lock, &until);
    good = t->c[k].n >= n;
    pthread_mutex_unlock(&t_lock);
    return good;
}

__attribute__((unused))
static int
t_run(t_req_t *t)
{
    t_submit(t);
    return t_wait(&t->ended, 1);
}

__attribute__((unused))
static void
t_free(t_req_t *t)
{
    for (int k = 0; k < T_CHOICES; k++) {
        free(t->c[k].id);
        free(t->c[k].sampled);
        free(t->c[k].offset);
        free(t->c[k].text);
        free(t->filled[k].text);
        free(t->filled[k].span);
    }
    free(t->prompt.id);
    free(t->prompt.sampled);
    free(t->prompt.offset);
    free(t->ids);
    free(t->text);
    free(t);
}

/* Polls a condition for up to a minute. */
#define T_UNTIL(cond)                                                       \
    ({                                                                      \
        uint64_t  t_until = t_now() + 60000000000u;                         \
        while (!(cond) && t_now() < t_until)                                \
            nanosleep(&(struct timespec) { .tv_nsec = 1000000 }, NULL);     \
        (cond);                                                             \
    })

#endif
