/*
 * spool: see spool.h.
 */
#include "spool.h"

#include <math.h>
#include <stdlib.h>

/* How far back a token looks for waiting tokens of its choice.  Choices of one
 * request take turns, so without looking back none would ever merge. */
#define LOOK_BACK  16

static size_t
item_bytes(const glm_item_t *it)
{
    return sizeof(*it) + it->body.n + it->ids.n + it->text.n + it->logprobs.n;
}

static void
item_free(glm_item_t *it)
{
    if (it == NULL) return;
    glm_wbuf_free(&it->body);
    glm_wbuf_free(&it->ids);
    glm_wbuf_free(&it->text);
    glm_wbuf_free(&it->logprobs);
    free(it);
}

static void
append(glm_outbox_t *o, glm_item_t *it)
{
    it->prev = o->tail;
    if (o->tail != NULL) o->tail->next = it;
    else o->head = it;
    o->tail = it;
    o->bytes += item_bytes(it);
}

static void
detach(glm_outbox_t *o, glm_item_t *it)
{
    if (it->prev != NULL) it->prev->next = it->next;
    else o->head = it->next;
    if (it->next != NULL) it->next->prev = it->prev;
    else o->tail = it->prev;
    o->bytes -= item_bytes(it);
}

int
glm_outbox_add(glm_outbox_t *o, uint16_t type, glm_wbuf_t *body)
{
    glm_item_t  *it = body->failed ? NULL : calloc(1, sizeof(*it));

    if (it == NULL) {
        glm_wbuf_free(body);
        return GLM_ENOMEM;
    }
    it->type = type;
    it->body = *body;
    *body = (glm_wbuf_t) {0};
    append(o, it);
    return 0;
}

/* Waiting tokens of the same choice and blank with room for more, or NULL.
 * Between choices order means nothing; anything else is a fence. */
static glm_item_t *
find_open(const glm_outbox_t *o, const glm_token_out_t *t)
{
    int          i;
    glm_item_t  *it;

    for (it = o->tail, i = 0; it != NULL && i < LOOK_BACK; it = it->prev, i++) {
        if (it->type != GLM_MSG_TOKENS) return NULL;
        if (it->choice == t->choice && it->blank == t->blank) {
            return it->ids.n + it->text.n + it->logprobs.n < GLM_SPOOL_MERGE ? it : NULL;
        }
    }
    return NULL;
}

int
glm_outbox_token(glm_outbox_t *o, const glm_token_out_t *t, glm_token_text_pt text, void *arg)
{
    size_t       before;
    glm_item_t  *it = find_open(o, t);

    if (it == NULL) {
        it = calloc(1, sizeof(*it));
        if (it == NULL) return GLM_ENOMEM;
        it->type = GLM_MSG_TOKENS;
        it->choice = t->choice;
        it->blank = t->blank;
        append(o, it);
    }

    before = item_bytes(it);
    if (t->id >= 0) {
        glm_wbuf_put(&it->ids, &t->id, sizeof(t->id));
        it->ntokens++;
    }
    glm_wbuf_put(&it->text, t->text, t->ntext);
    if (t->sampled != NULL && t->id >= 0) {
        glm_wire_logprobs(&it->logprobs, t->sampled, t->offset, text, arg);
    }
    o->bytes += item_bytes(it) - before;
    return it->ids.failed || it->text.failed || it->logprobs.failed ? GLM_ENOMEM : 0;
}

int
glm_outbox_prompt(glm_outbox_t *o, const glm_token_out_t *t, glm_token_text_pt text, void *arg)
{
    size_t          before;
    glm_item_t     *it = o->tail;
    glm_sampled_t   none = { .id = t->id, .logprob = NAN };

    if (it == NULL || it->type != GLM_MSG_PROMPT || it->logprobs.n == 0
        || it->logprobs.n >= GLM_SPOOL_MERGE)
    {
        it = calloc(1, sizeof(*it));
        if (it == NULL) return GLM_ENOMEM;
        it->type = GLM_MSG_PROMPT;
        append(o, it);
    }
    before = item_bytes(it);
    glm_wire_logprobs(&it->logprobs, t->sampled != NULL ? t->sampled : &none, t->offset, text,
                      arg);
    o->bytes += item_bytes(it) - before;
    return it->logprobs.failed ? GLM_ENOMEM : 0;
}

int
glm_outbox_costs(const glm_outbox_t *o)
{
    return o->head != NULL && GLM_MSG_COSTS(o->head->type);
}

static void
encode_tokens(glm_item_t *it)
{
    glm_wbuf_t  *b = &it->body;

    glm_wire_tokens_head(b, it->choice, it->blank, it->ntokens);
    if (it->ids.n) glm_wire_section(b, GLM_SEC_IDS, it->ids.p, it->ids.n);
    if (it->text.n) glm_wire_section(b, GLM_SEC_TEXT, it->text.p, it->text.n);
    if (it->logprobs.n) {
        glm_wire_section(b, GLM_SEC_LOGPROBS, it->logprobs.p, it->logprobs.n);
    }
}

int
glm_outbox_take(glm_outbox_t *o, uint16_t *type, glm_wbuf_t *body)
{
    int          rc;
    glm_item_t  *it = o->head;

    if (it == NULL) return 0;
    detach(o, it);
    if (it->type == GLM_MSG_TOKENS) encode_tokens(it);
    if (it->type == GLM_MSG_PROMPT && it->logprobs.n) {
        glm_wire_prompt_head(&it->body);
        glm_wire_section(&it->body, GLM_SEC_LOGPROBS, it->logprobs.p, it->logprobs.n);
    }
    *type = it->type;
    *body = it->body;
    rc = it->body.failed || it->ids.failed || it->text.failed || it->logprobs.failed
         ? GLM_ENOMEM : 1;
    it->body = (glm_wbuf_t) {0};
    item_free(it);
    if (rc < 0) glm_wbuf_free(body);
    return rc;
}

void
glm_outbox_drop_output(glm_outbox_t *o)
{
    glm_item_t  *it, *next;

    for (it = o->head; it != NULL; it = next) {
        next = it->next;
        if (!GLM_MSG_COSTS(it->type)) continue;
        detach(o, it);
        item_free(it);
    }
}

void
glm_outbox_free(glm_outbox_t *o)
{
    glm_item_t  *it, *next;

    for (it = o->head; it != NULL; it = next) {
        next = it->next;
        item_free(it);
    }
    *o = (glm_outbox_t) {0};
}
