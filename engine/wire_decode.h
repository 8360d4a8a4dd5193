/*
 * wire_decode: from the bytes of a client's message to a request, with every
 * length, count, index, flag and character checked.  Works on a private copy
 * only: never on shared memory.  Knows the layout and the engine's request; no
 * ring, socket or lock.
 */
#ifndef GLM_WIRE_DECODE_H
#define GLM_WIRE_DECODE_H

#include <stddef.h>
#include <stdint.h>

#include "engine.h"
#include "glm_wire.h"

#define GLM_WIRE_MAX_SEGMENTS  4096
#define GLM_WIRE_MAX_GROUP     256

typedef struct {
    int32_t   vocab;          /* ids are below it */
    uint32_t  max_stops;
    uint32_t  max_n;          /* of n and best_of */
    int32_t   max_logprobs;
} glm_decode_limits_t;

/* A decoded SUBMIT.  req points into the rest. */
typedef struct {
    glm_req_t       req;          /* owner, sink, deadline: the caller's */
    uint64_t        group;        /* good also when the request is refused */
    uint32_t        group_index;
    uint32_t        group_count;  /* 1: none */
    uint64_t        window;       /* bytes granted */
    uint64_t        deadline_us;  /* from receipt; 0: none */
    int             token_strs;   /* TOKENIZE: names, too */
    int             eos_text;     /* TOKENIZE: the exact eos name is its id */
    uint8_t        *msg;          /* the message itself, owned */
    glm_segment_t  *seg, *choice;
    glm_stop_t     *stop, *bad;
} glm_submit_t;

/*
 * Takes msg (malloc, 8-byte aligned) in any case; free with glm_submit_free().
 *   0            out->req can be submitted
 *   GLM_ELIMIT   well-formed, but refused: why goes to the client as ERROR
 *   GLM_EINVAL   no SUBMIT at all: why->text tells the log, drop the client
 *   GLM_ENOMEM
 */
int glm_wire_decode_submit(glm_submit_t *out, uint8_t *msg, size_t len,
    const glm_decode_limits_t *lim, glm_refusal_t *why);
void glm_submit_free(glm_submit_t *s);

/* Payload of a WINDOW; GLM_EINVAL when it is none. */
int glm_wire_decode_window(const uint8_t *msg, size_t len, uint64_t *bytes);

/* GO and CANCEL: nothing, or zeros of a newer client. */
int glm_wire_decode_empty(const uint8_t *msg, size_t len);

/*
 * A structure that begins with its size, out of avail bytes: missing bytes are
 * zero, bytes beyond what we know must be zero.  *used: its size there.
 * 0, GLM_EINVAL (no structure), GLM_ELIMIT (unknown bytes that are set).
 */
int glm_wire_fixed(void *dst, size_t known, const uint8_t *src, size_t avail, size_t *used);

#endif
