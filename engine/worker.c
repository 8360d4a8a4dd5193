/*
 * worker: tokenizer workers.  They take requests in order of arrival, turn prompts
 * into ids and hand jobs to the step thread; TOKENIZE and DETOKENIZE end here.
 * A worker owns a request from taking it to handing it on.
 */
#include <stdlib.h>

#include "engine_impl.h"

static void
flush(const glm_sink_t *sink)
{
    if (sink->flush != NULL) sink->flush(sink->flush_arg);
}

static void
tell_error(glm_engine_t *e, glm_req_t *r, const glm_refusal_t *no)
{
    const glm_sink_t  *sink = r->sink;

    sink->error(r, no);
    pthread_mutex_lock(&e->lock);
    e->refused++;
    pthread_mutex_unlock(&e->lock);
    atomic_fetch_sub(&e->live, 1);
    flush(sink);
}

static void
tell_done(glm_engine_t *e, glm_req_t *r, int cancelled, int32_t ntokens)
{
    const glm_sink_t  *sink = r->sink;
    glm_done_t         d = {
        .prompt_tokens = ntokens, .cancelled = cancelled, .t_submit = r->link.t_submit,
        .t_done = glm_now()
    };

    sink->done(r, &d);
    atomic_fetch_sub(&e->live, 1);
    flush(sink);
}

static void
tokenize(glm_engine_t *e, glm_req_t *r)
{
    glm_ids_t      ids = {0};
    glm_refusal_t  no;

    if (glm_prompt_tokenize(&ids, &e->lim.vocab, r, &no) != 0) {
        tell_error(e, r, &no);
    } else {
        r->sink->ids(r, ids.id, ids.n);
        tell_done(e, r, 0, (int32_t) ids.n);
    }
    glm_ids_free(&ids);
}

static int
decode(const glm_engine_t *e, const glm_req_t *r, glm_text_t *text, glm_refusal_t *no)
{
    const glm_segment_t  *seg = r->seg;

    if (e->tok == NULL)
        return glm_refuse(no, 400, "", "tokens", "The model \"%s\" has no tokenizer.", e->name);
    if (r->nseg != 1 || seg->kind != GLM_SEG_IDS)
        return glm_refuse(no, 400, "", "tokens", "\"tokens\" must be a list of token ids.");
    if (glm_prompt_check_ids(seg->ids, seg->n, &e->lim.vocab, "tokens", no) != 0)
        return GLM_EINVAL;
    if (glm_decode(e->tok, seg->ids, seg->n, GLM_DECODE_MASK_NAMES, text) != 0)
        return glm_refuse_memory(no);
    return 0;
}

static void
detokenize(glm_engine_t *e, glm_req_t *r)
{
    glm_text_t     text = {0};
    glm_refusal_t  no;

    if (decode(e, r, &text, &no) != 0) {
        tell_error(e, r, &no);
    } else {
        r->sink->text(r, text.n > 0 ? text.s : "", text.n);
        tell_done(e, r, 0, (int32_t) r->seg->n);
    }
    glm_text_free(&text);
}

/* A whole group gets the same answer. */
static void
tell_errors(glm_engine_t *e, glm_req_t *r, const glm_refusal_t *no)
{
    glm_req_t  *mate;

    for (; r != NULL; r = mate) {
        mate = r->link.mate;
        tell_error(e, r, no);
    }
}

static void
generate(glm_engine_t *e, glm_req_t *r)
{
    glm_refusal_t  no;
    glm_job_t     *first = NULL, **last = &first, *mate;
    glm_req_t     *i;

    for (i = r; i != NULL && glm_job_make(last, i, &e->lim, &no) == 0; i = i->link.mate)
        last = &(*last)->mate;

    if (i != NULL) {
        for (; first != NULL; first = mate) {
            mate = first->mate;
            glm_job_free(first);
        }
        tell_errors(e, r, &no);
        return;
    }
    pthread_mutex_lock(&e->lock);
    TAILQ_INSERT_TAIL(&e->jobs, first, link);
    pthread_cond_signal(&e->event);
    pthread_mutex_unlock(&e->lock);
}

/* Ends those of a group that were cancelled; the rest of it. */
static glm_req_t *
drop_cancelled(glm_engine_t *e, glm_req_t *r)
{
    glm_req_t  *first = NULL, **last = &first, *mate;

    for (; r != NULL; r = mate) {
        mate = r->link.mate;
        if (atomic_load(&r->cancel)) {
            tell_done(e, r, 1, 0);
            continue;
        }
        *last = r;
        last = &r->link.mate;
    }
    *last = NULL;
    return first;
}

static void
handle(glm_engine_t *e, glm_req_t *r)
{
    glm_refusal_t  no;

    r = drop_cancelled(e, r);
    if (r == NULL) return;
    if (r->link.late) {
        glm_refuse(&no, 503, "engine_draining", "", "The server is shutting down.");
        no.retry_after = 5;
        tell_errors(e, r, &no);
    } else if (r->op == GLM_OP_TOKENIZE) {
        tokenize(e, r);
    } else if (r->op == GLM_OP_DETOKENIZE) {
        detokenize(e, r);
    } else {
        generate(e, r);
    }
}

/* The oldest request, or NULL when the engine stops and none is left. */
static glm_req_t *
next_request(glm_engine_t *e)
{
    glm_req_t  *r;

    pthread_mutex_lock(&e->lock);
    while (e->reqs.first == NULL && !e->stop_workers) pthread_cond_wait(&e->work, &e->lock);

    r = e->reqs.first;
    if (r != NULL) {
        e->reqs.first = r->link.next;
        if (e->reqs.first == NULL) e->reqs.last = &e->reqs.first;
        if (e->stop_workers) r->link.late = 1;
    }
    pthread_mutex_unlock(&e->lock);
    return r;
}

void *
glm_worker_main(void *engine)
{
    glm_engine_t  *e = engine;
    glm_req_t     *r;

    pthread_setname_np(pthread_self(), "glm-tokenizer");
    while ((r = next_request(e)) != NULL) handle(e, r);
    return NULL;
}
