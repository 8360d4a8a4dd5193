/*
 * ring_sink: what the engine says about a request goes into its outbox, encoded.
 * Runs on engine threads (and, for refusals, on the I/O thread) under the
 * client's lock; the I/O thread is woken once, by flush.  Never blocks on a
 * client: nothing here waits for room.
 */
#include "ring_impl.h"

#include <unistd.h>

const glm_refusal_t  glm_no_answer = {
    .status = 503, .code = "server_is_overloaded", .retry_after = 1,
    .text = "the engine has no memory for this answer",
};

void
glm_live_ready(glm_live_t *l)
{
    glm_conn_t  *c = l->client;

    if (!l->ready) {
        l->ready = 1;
        l->ready_next = NULL;
        if (c->ready == NULL) c->ready = l;
        else c->ready_last->ready_next = l;
        c->ready_last = l;
    }
    atomic_store(&c->dirty, 1);
    atomic_store(&c->s->wake, 1);
}

void
glm_live_charge(glm_live_t *l)
{
    size_t  delta = l->out.bytes - l->charged;   /* wraps when it shrank */

    l->charged = l->out.bytes;
    atomic_fetch_add(&l->client->spool, delta);
    atomic_fetch_add(&l->client->s->spool, delta);
}

/*
 * The I/O thread decides on pauses, but on a busy machine it comes late.  Far over
 * the share the request stops here and now; the flag is the engine's own, read on
 * this thread before the next step.
 */
static void
brake(glm_live_t *l)
{
    glm_conn_t  *c = l->client;
    size_t       all = c->s->o.spool_bytes;

    if (l->braked || l->charged == 0) return;
    if (atomic_load(&c->spool) <= all / 2 && atomic_load(&c->s->spool) <= all + all / 4) return;
    l->braked = 1;
    atomic_store(&l->sub.req.paused, 1);
    atomic_store(&c->braked, 1);
}

static void
leave(glm_live_t *l, int rc)
{
    if (rc != 0) l->nomem = 1;
    glm_live_charge(l);
    brake(l);
    glm_live_ready(l);
    pthread_mutex_unlock(&l->client->lock);
}

/* Locks; NULL, unlocked, when nobody reads this any more. */
static glm_live_t *
enter(glm_req_t *r)
{
    glm_live_t  *l = r->owner;

    pthread_mutex_lock(&l->client->lock);
    if (!l->mute) return l;
    pthread_mutex_unlock(&l->client->lock);
    return NULL;
}

static void
on_accepted(glm_req_t *r, const glm_accepted_t *a)
{
    glm_wbuf_t   b = {0};
    glm_live_t  *l = enter(r);

    if (l == NULL) return;
    glm_wire_accepted(&b, a);
    leave(l, glm_outbox_add(&l->out, GLM_MSG_ACCEPTED, &b));
}

static const char *
token_text(void *arg, int32_t id, size_t *n)
{
    glm_server_t  *s = arg;

    if (s->o.token_text != NULL) return s->o.token_text(s->o.token_arg, id, n);
    return glm_texts_get(s->texts, id, n);
}

static void
on_token(glm_req_t *r, const glm_token_out_t *t)
{
    glm_live_t  *l = enter(r);

    if (l == NULL) return;
    leave(l, glm_outbox_token(&l->out, t, token_text, l->client->s));
}

static void
on_prompt(glm_req_t *r, const glm_token_out_t *t)
{
    glm_live_t  *l = enter(r);

    if (l == NULL) return;
    leave(l, glm_outbox_prompt(&l->out, t, token_text, l->client->s));
}

static void
on_finish(glm_req_t *r, const glm_finish_out_t *f)
{
    glm_wbuf_t         b = {0};
    glm_live_t        *l = enter(r);
    const glm_stop_t  *stop = NULL;

    if (l == NULL) return;
    if (f->stop_index >= 0 && (size_t) f->stop_index < r->nstop) stop = &r->stop[f->stop_index];
    glm_wire_finish(&b, f, stop);
    leave(l, glm_outbox_add(&l->out, GLM_MSG_FINISH, &b));
}

static void
on_filled(glm_req_t *r, const glm_filled_t *f)
{
    glm_wbuf_t   b = {0};
    glm_live_t  *l = enter(r);

    if (l == NULL) return;
    glm_wire_filled(&b, f);
    leave(l, glm_outbox_add(&l->out, GLM_MSG_FILLED, &b));
}

/* Names as people write them: a byte token is "<0x0A>" here. */
static void
add_names(glm_wbuf_t *b, const glm_tokenizer_t *t, const int32_t *ids, size_t n)
{
    size_t       i, len;
    glm_wbuf_t   names = {0};
    const char  *s;

    for (i = 0; i < n; i++) {
        s = glm_token_name(t, ids[i], &len);
        glm_wire_token_name(&names, ids[i], s, len);
    }
    glm_wire_section(b, GLM_SEC_LOGPROBS, names.p, names.n);
    b->failed |= names.failed;
    glm_wbuf_free(&names);
}

static void
on_ids(glm_req_t *r, const int32_t *ids, size_t n)
{
    glm_wbuf_t              b = {0};
    glm_live_t             *l = enter(r);
    const glm_tokenizer_t  *t;

    if (l == NULL) return;
    glm_wire_prompt_head(&b);
    glm_wire_section(&b, GLM_SEC_IDS, ids, n * sizeof(*ids));
    if (l->sub.token_strs && r->op == GLM_OP_TOKENIZE) {
        t = l->client->s->tokenizer;
        if (t != NULL) add_names(&b, t, ids, n);
    }
    leave(l, glm_outbox_add(&l->out, GLM_MSG_PROMPT, &b));
}

static void
on_text(glm_req_t *r, const char *s, size_t n)
{
    glm_wbuf_t   b = {0};
    glm_live_t  *l = enter(r);

    if (l == NULL) return;
    glm_wire_prompt_head(&b);
    glm_wire_section(&b, GLM_SEC_TEXT, s, n);
    leave(l, glm_outbox_add(&l->out, GLM_MSG_PROMPT, &b));
}

/* client.lock held; the request is the I/O thread's from here on. */
static void
end_with_error(glm_live_t *l, const glm_refusal_t *e)
{
    l->end_type = GLM_MSG_ERROR;
    l->end_size = (uint32_t) glm_wire_error(l->end, e);
    l->ended = 1;
    glm_live_ready(l);
}

static void
on_done(glm_req_t *r, const glm_done_t *d)
{
    glm_live_t  *l = r->owner;
    glm_conn_t  *c = l->client;

    if (r->op == GLM_OP_GENERATE || r->op == GLM_OP_INFILL) glm_stats_done(c->s, d);

    pthread_mutex_lock(&c->lock);
    if (l->nomem && l->killed == NULL) l->killed = &glm_no_answer;
    if (l->killed != NULL) {
        end_with_error(l, l->killed);
    } else {
        l->end_type = GLM_MSG_DONE;
        l->end_size = (uint32_t) glm_wire_done(l->end, d);
        l->ended = 1;
        glm_live_ready(l);
    }
    pthread_mutex_unlock(&c->lock);
}

static void
on_error(glm_req_t *r, const glm_refusal_t *e)
{
    glm_live_t  *l = r->owner;

    glm_live_error(l, e);
}

void
glm_live_error(glm_live_t *l, const glm_refusal_t *e)
{
    glm_conn_t  *c = l->client;

    pthread_mutex_lock(&c->lock);
    end_with_error(l, l->killed != NULL ? l->killed : e);
    pthread_mutex_unlock(&c->lock);
}

void
glm_live_cancelled(glm_live_t *l)
{
    glm_conn_t  *c = l->client;
    glm_done_t   d = { .cancelled = 1 };

    l->cancelled = 1;
    pthread_mutex_lock(&c->lock);
    l->end_type = GLM_MSG_DONE;
    l->end_size = (uint32_t) glm_wire_done(l->end, &d);
    l->ended = 1;
    glm_live_ready(l);
    pthread_mutex_unlock(&c->lock);
}

static void
on_flush(void *arg)
{
    uint64_t       one = 1;
    ssize_t        n;
    glm_server_t  *s = arg;

    if (!atomic_exchange(&s->wake, 0)) return;
    n = write(s->event_fd, &one, sizeof(one));   /* ours alone: EAGAIN is a full counter */
    (void) n;
}

void
glm_sink_init(glm_server_t *s)
{
    s->sink = (glm_sink_t) {
        .accepted = on_accepted, .token = on_token, .finish = on_finish, .ids = on_ids,
        .text = on_text, .done = on_done, .error = on_error, .flush = on_flush,
        .flush_arg = s, .prompt = on_prompt, .filled = on_filled,
    };
}
