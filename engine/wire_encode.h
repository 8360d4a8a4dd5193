/*
 * wire_encode: builds messages of the wire in private memory.  Knows the layout
 * (glm_wire.h) and nothing of rings, sockets or requests.  Both the engine (its
 * answers) and clients (SUBMIT) build with it.  No threads, no locks.
 */
#ifndef GLM_WIRE_ENCODE_H
#define GLM_WIRE_ENCODE_H

#include <stddef.h>
#include <stdint.h>

#include "engine.h"
#include "glm_wire.h"

/* A growing buffer: start with {0}.  After a failed allocation it takes nothing
 * more and failed stays set, so that callers check once at the end. */
typedef struct {
    uint8_t  *p;
    size_t    n, cap;
    int       failed;
} glm_wbuf_t;

void glm_wbuf_put(glm_wbuf_t *b, const void *s, size_t n);
void glm_wbuf_pad(glm_wbuf_t *b, size_t align);
void glm_wbuf_free(glm_wbuf_t *b);

/* A section: header, n bytes of payload, padding to 8. */
void glm_wire_section(glm_wbuf_t *b, uint16_t type, const void *s, size_t n);
/* A string of a list within a section: size, bytes, padding to 4. */
void glm_wire_string(glm_wbuf_t *b, const void *s, size_t n);

/* What an id prints, for log-probabilities: bytes, their number in *n. */
typedef const char *(*glm_token_text_pt)(void *arg, int32_t id, size_t *n);

/* The records of one token: its own, then the best ones. */
void glm_wire_logprobs(glm_wbuf_t *b, const glm_sampled_t *s, uint32_t offset,
    glm_token_text_pt text, void *arg);
/* One record of an id that has only a name. */
void glm_wire_token_name(glm_wbuf_t *b, int32_t id, const char *s, size_t n);

void glm_wire_accepted(glm_wbuf_t *b, const glm_accepted_t *a);
void glm_wire_prompt_head(glm_wbuf_t *b);
void glm_wire_tokens_head(glm_wbuf_t *b, int32_t choice, int32_t blank, uint32_t ntokens);
/* stop: the stop string that hit, or NULL. */
void glm_wire_finish(glm_wbuf_t *b, const glm_finish_out_t *f, const glm_stop_t *stop);
void glm_wire_filled(glm_wbuf_t *b, const glm_filled_t *f);

/* The two that end a request are written without allocating: they must not fail. */
#define GLM_WIRE_END_MAX  (sizeof(glm_msg_error_t) + sizeof(glm_sec_t) + 512)
size_t glm_wire_done(uint8_t *out, const glm_done_t *d);
size_t glm_wire_error(uint8_t *out, const glm_refusal_t *e);

#endif
