/*
 * fake_wire: what of a SUBMIT the fake engine does itself.  It stands before the
 * real decoder (ld --wrap): writes the message to a file, one JSON object a line,
 * remembers what the script needs, and takes out the fields that an engine may not
 * know yet, so that the module's side is tested whatever the engine does.
 */
#ifndef GLM_FAKE_WIRE_H
#define GLM_FAKE_WIRE_H

#include <stdint.h>

typedef struct {
    uint32_t  flags;              /* GLM_F_* as they came */
    int32_t   prompt_logprobs;
    uint32_t  best_of;
} fake_wire_t;

/* Before the server starts; NULL: nothing is written. */
void fake_wire_record(const char *path);

/* What was remembered of a message, once; zeros when there is nothing. */
fake_wire_t fake_wire_take(const uint8_t *msg);

#endif
