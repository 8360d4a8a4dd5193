/*
 * fake_script: the word list of a request, parsed.
 */
#ifndef GLM_FAKE_SCRIPT_H
#define GLM_FAKE_SCRIPT_H

#include "engine.h"

typedef struct {
    int            tokens, delay, first, burst, accept, bytes;
    int            utf8, held, echo, nofinish, nodone, nocancel, noids, bychoice;
    int            blanks, nofilled, badspan, skipblank;
    int            error, errorat, hangat, dieat, garbageat;   /* -1: never; 0: at submit */
    int            stall;                                      /* ms; -1: no; 0: for good */
    int            queue, cached, stop_index, stop_id;
    glm_finish_t   reason;                                     /* NONE: by itself */
    char           text[64];
    glm_refusal_t  refusal;
} fake_script_t;

/* Words end at a newline. */
void fake_script_parse(fake_script_t *s, const char *words, size_t n);

#endif
