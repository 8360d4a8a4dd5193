/*
 * stop: finds stop strings in a growing text and says how much of it may be
 * sent: never a byte of a stop string, never held back longer than something
 * can still match.  Works on bytes; as text and stops are valid UTF-8 that is
 * matching by characters.  Linear in the text, whatever the stops are.
 */
#ifndef GLM_STOP_H
#define GLM_STOP_H

#include <stddef.h>
#include <stdint.h>

#include "engine.h"
#include "tokenizer.h"

/* The stop strings of a request, compiled; immutable, shared by its choices. */
typedef struct {
    glm_stop_t  *stop;            /* (n) points to the request's strings */
    int32_t    **fail;            /* (n) per stop and length: the longest proper
                                     border (Knuth, Morris, Pratt) */
    size_t       n;
    int          include;         /* the stop string belongs to the answer */
} glm_stops_t;

/* 0 or GLM_ENOMEM.  The strings must outlive the result.  NULL when n is 0. */
int glm_stops_make(glm_stops_t **out, const glm_stop_t *stop, size_t n, int include);
void glm_stops_free(glm_stops_t *s);

/* One text being watched. */
typedef struct {
    const glm_stops_t  *stops;    /* NULL: nothing is ever held back */
    int32_t            *state;    /* (stops->n) bytes matched of each */
    glm_text_t          text;     /* text from byte base of the answer on */
    size_t              head;     /* bytes of text that were sent already */
    size_t              seen;     /* bytes of text that were matched */
    uint64_t            base;
    int                 deaf;     /* a stop found now is none; set by the owner */
    int32_t             hit;      /* index of the stop found, or -1 */
} glm_stopper_t;

int glm_stopper_init(glm_stopper_t *s, const glm_stops_t *stops);   /* or GLM_ENOMEM */
void glm_stopper_reset(glm_stopper_t *s);            /* for another text */
void glm_stopper_destroy(glm_stopper_t *s);

/*
 * Append to s->text, then call this.  On a hit s->text is cut to the answer and
 * hit is set: of the stops that end first, the longest.  Call it no more then.
 */
void glm_stopper_scan(glm_stopper_t *s);

/* What may be sent now and was not yet; all that is left when last is set.
 * Good until text is appended; sent when the next call comes. */
const char *glm_stopper_take(glm_stopper_t *s, int last, size_t *n);

/* Bytes of the answer so far (up to the cut after a hit). */
uint64_t glm_stopper_length(const glm_stopper_t *s);

#endif
