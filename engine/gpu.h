/*
 * gpu: one card: its memory, streams, events and graphs, and the state that a
 * failure leaves it in.  The sole user of the CUDA runtime; no CUDA type is named
 * here.  Every status is checked.  Once a call has failed in a way that the card
 * cannot be used after, every further one returns the same code, the first one's, and
 * nothing is launched any more.
 *
 * Codes: GLM_ENOMEM (no room; the card is as before), GLM_ELOST (the card is
 * gone), GLM_ETIMEOUT (a kernel did not end), GLM_ENAN (its user found what it computed
 * to be no numbers), GLM_EGPU (any other CUDA error).
 * All threads may call; a thread of its own begins with glm_gpu_thread().
 */
#ifndef GLM_GPU_H
#define GLM_GPU_H

#include <stddef.h>

#include "error.h"
#include "glm_cuda.h"

typedef struct glm_gpu_s        glm_gpu_t;
typedef struct glm_gpu_event_s  glm_gpu_event_t;
typedef struct glm_gpu_graph_s  glm_gpu_graph_t;

typedef struct {
    char    name[128];
    int     major, minor;         /* compute capability */
    int     sms;                  /* multiprocessors */
    size_t  shared;               /* bytes of shared memory that a block may have */
    size_t  total, free;          /* bytes; free: as found when it was opened */
} glm_gpu_info_t;

/* timeout: seconds after which glm_gpu_wait() gives up. */
int glm_gpu_open(glm_gpu_t **out, int device, int timeout, glm_err_t *err);
/* Frees the device memory.  Once something did not end (GLM_ETIMEOUT, be it the first
 * failure or a later one) nothing is given back, as that might wait for ever: the process
 * is about to end. */
void glm_gpu_close(glm_gpu_t *g);
int glm_gpu_thread(glm_gpu_t *g);

const glm_gpu_info_t *glm_gpu_info(const glm_gpu_t *g);
const glm_cuda_ops_t *glm_gpu_ops(const glm_gpu_t *g);

/* 0, or the code of the failure after which the card cannot be used. */
int glm_gpu_fault(glm_gpu_t *g);
/* What that was: "cudaGraphLaunch: an illegal memory access was encountered"; else the
 * first GLM_ENOMEM, "cudaMalloc: out of memory"; "" while there was none. */
const char *glm_gpu_error(glm_gpu_t *g);

/*
 * A launcher's call, which `what` names: GLM_GPU_OP(g, "norm", ops->norm(&a, stream)).
 * A macro, as the call must not be made once the card cannot be used.
 */
#define GLM_GPU_OP(g, what, call)                                               \
    __extension__ ({                                                            \
        int  op_rc_ = glm_gpu_before(g, what);                                  \
        op_rc_ != 0 ? op_rc_ : glm_gpu_launched(g, what, call);                 \
    })
/* Its parts: 0 if the call may be made; and what it returned. */
int glm_gpu_before(glm_gpu_t *g, const char *what);
int glm_gpu_launched(glm_gpu_t *g, const char *what, int rc);

/* A failure that no call told, but its results: the card cannot be used after.  Returns rc,
 * or the code of the failure before it. */
int glm_gpu_spoilt(glm_gpu_t *g, int rc, const char *what, const char *text);

/* ---- memory ---- */

int glm_gpu_alloc(glm_gpu_t *g, void **p, size_t bytes);
/* Host memory that the card reads and copies from; page-aligned. */
int glm_gpu_pin(glm_gpu_t *g, void **p, size_t bytes);
void glm_gpu_unpin(glm_gpu_t *g, void *p);      /* before glm_gpu_close() */

/* ---- streams; copies are asynchronous ---- */

int glm_gpu_stream(glm_gpu_t *g, glm_stream_t **out);
/* Until s, which may be NULL, has done all it was given, so that what that uses can go:
 * after a failure, too, unless something did not end. */
void glm_gpu_settle(glm_gpu_t *g, glm_stream_t *s);
void glm_gpu_stream_free(glm_gpu_t *g, glm_stream_t *s);

int glm_gpu_copy(glm_gpu_t *g, void *dst, const void *src, size_t bytes, glm_stream_t *s);
/* rows of width bytes */
int glm_gpu_copy_rows(glm_gpu_t *g, void *dst, size_t dst_pitch, const void *src,
    size_t src_pitch, size_t width, size_t rows, glm_stream_t *s);
int glm_gpu_zero(glm_gpu_t *g, void *dst, size_t bytes, glm_stream_t *s);

/* ---- events ---- */

int glm_gpu_event(glm_gpu_t *g, glm_gpu_event_t **out);
void glm_gpu_event_free(glm_gpu_t *g, glm_gpu_event_t *e);
int glm_gpu_record(glm_gpu_t *g, glm_gpu_event_t *e, glm_stream_t *s);
/* Until what was recorded is done: all before it in its stream. */
int glm_gpu_wait(glm_gpu_t *g, glm_gpu_event_t *e);

/* ---- graphs ---- */

int glm_gpu_capture(glm_gpu_t *g, glm_stream_t *s);
/* Ends a capture; with rc != 0, what it gave, that is returned and no graph made.  The
 * graph is on the card when this returns, and its first launch takes no memory. */
int glm_gpu_captured(glm_gpu_t *g, glm_stream_t *s, int rc, glm_gpu_graph_t **out);
int glm_gpu_launch(glm_gpu_t *g, glm_gpu_graph_t *x, glm_stream_t *s);
void glm_gpu_graph_free(glm_gpu_t *g, glm_gpu_graph_t *x);

/* Test builds: makes x, which lies on the card, a NaN once what s was given before is done,
 * if glm_gpu_fault_at() asked for it; others do nothing. */
int glm_gpu_spoil(glm_gpu_t *g, float *x, glm_stream_t *s);

#ifdef GLM_GPU_FAULTS
/*
 * Test builds: what fails at its n-th turn from now on (1: the next); with n = 0 nothing.
 *
 *   NULL       any call that is checked: it is not made, and gives status, a cudaError_t
 *   a name     of a function or of a launcher, "cudaGraphLaunch", "pack": likewise
 *   "hang"     before a graph's launch its stream gets a kernel that does not end;
 *   "astray"   one that writes where no memory is: CUDA's own sticky error
 *   "nan"      glm_gpu_spoil()
 *
 * Returns how many turns there were since the last time.  Environment: GLM_GPU_FAULT=
 * WHAT,N,STATUS.  Not to be called while others use the card.
 */
long glm_gpu_fault_at(const char *what, long n, int status);

/* Kernels for "hang" and "astray": t/gpu/broken.cu, or twins in t/fakecuda. */
#ifdef __cplusplus
extern "C" {
#endif
void glm_broken_hang(glm_stream_t *s);
void glm_broken_astray(glm_stream_t *s);
#ifdef __cplusplus
}
#endif
#endif

#endif
