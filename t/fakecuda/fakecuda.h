/*
 * fakecuda: the CUDA runtime calls and kernel launchers that the engine uses, on
 * host memory: a card for tests where there is none.  Streams run late: an operation
 * is carried out when somebody waits for it, so what reads a result too early, or
 * reuses a buffer too early, is seen.  Captured operations are kept and replayed.
 * Addresses of operations are checked; one outside of what was allocated is
 * cudaErrorIllegalAddress from then on, as on a card.
 *
 * Environment, for whole programs: FAKECUDA_MEMORY (bytes), FAKECUDA_DEVICES,
 * FAKECUDA_CAPABILITY (90).
 */
#ifndef FAKECUDA_H
#define FAKECUDA_H

#include <stddef.h>

#include "glm_cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* For tests. */
void fakecuda_memory(size_t bytes);
void fakecuda_devices(int n);
void fakecuda_capability(int mm);       /* 90 */
void fakecuda_hang(int after);          /* events that still come; -1: all */
void fakecuda_doze(int ms);             /* the next look at an event that has not come takes
                                           so long to return */
int fakecuda_live(void);                /* allocations, pins, events, streams, graphs */
size_t fakecuda_pinned(void);           /* most bytes pinned at a time since the last call */
int fakecuda_pending(void);             /* operations that wait in streams */
int fakecuda_early(void);               /* what was given back while operations waited that
                                           may use it */
int fakecuda_late(void);                /* what a card would have taken memory for: kernels
                                           whose code was not there yet, graphs that were
                                           not uploaded */
void fakecuda_unload(void);             /* all code goes, as before the first launch */
void fakecuda_fail_launch(int status);  /* of the next kernel; the card goes on */
int fakecuda_launches(void);            /* kernels and graphs launched so far */
void fakecuda_reset(void);              /* the error state */

/* For the launchers: an operation with a copy of arg. */
int fakecuda_enqueue(glm_stream_t *s, void (*run)(void *arg), const void *arg, size_t size);
/* Which of the launcher's kernels that was, where it has several. */
void fakecuda_code(void (*run)(void *arg), int variant);
/* Of a running operation: whether the card may use this memory; if not, the card is
 * broken from now on. */
int fakecuda_may(const void *p, size_t bytes);

#ifdef __cplusplus
}
#endif

#endif
