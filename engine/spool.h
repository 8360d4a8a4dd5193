/*
 * spool: what a request has said and its client has not taken yet, in order.
 * Tokens of one choice that wait together become one message.  Owns the
 * buffers; knows no window, ring or lock: the caller holds the client's lock
 * around every call.
 */
#ifndef GLM_SPOOL_H
#define GLM_SPOOL_H

#include "wire_encode.h"

/* A TOKENS message grows by merging up to this; one token may be larger. */
#define GLM_SPOOL_MERGE  8192

typedef struct glm_item_s  glm_item_t;

struct glm_item_s {
    glm_item_t  *next, *prev;
    uint16_t     type;                /* GLM_MSG_* */
    int32_t      choice, blank;       /* TOKENS */
    uint32_t     ntokens;
    glm_wbuf_t   body;                /* encoded message; TOKENS: made at the end */
    glm_wbuf_t   ids, text, logprobs; /* TOKENS: payloads of its sections */
};

typedef struct {
    glm_item_t  *head, *tail;
    size_t       bytes;               /* host memory held, as it is charged */
} glm_outbox_t;

/* Adds an encoded message and takes its buffer (freed on failure, too). */
int glm_outbox_add(glm_outbox_t *o, uint16_t type, glm_wbuf_t *body);

/* Adds a token, or a piece of text alone (id -1). */
int glm_outbox_token(glm_outbox_t *o, const glm_token_out_t *t, glm_token_text_pt text,
    void *arg);

/* Adds an id of the prompt; sampled may be NULL. */
int glm_outbox_prompt(glm_outbox_t *o, const glm_token_out_t *t, glm_token_text_pt text,
    void *arg);

/* Whether the first message costs window; 0 when empty. */
int glm_outbox_costs(const glm_outbox_t *o);

/*
 * Takes the first message, encoded, into *body (the caller frees it) and its
 * type.  1 when there was one, 0 when empty, GLM_ENOMEM.
 */
int glm_outbox_take(glm_outbox_t *o, uint16_t *type, glm_wbuf_t *body);

/* Throws away what costs window: nobody will read it. */
void glm_outbox_drop_output(glm_outbox_t *o);
void glm_outbox_free(glm_outbox_t *o);

#endif
