/*
 * ring_server: serves the wire.  One I/O thread owns sockets and rings, is the
 * sole reader of what clients write, and turns it into glm_req_t; whatever the
 * engine says goes through a spool per request, at the pace of its reader.  A
 * client that talks nonsense is dropped alone.  docs/wire.md is its contract.
 *
 * Life: start (clients are told LOADING), engine (served), drain (newcomers are
 * told DRAINING), detach (the engine is not called any more and can be
 * stopped), stop.  These are called from one thread.
 */
#ifndef GLM_RING_SERVER_H
#define GLM_RING_SERVER_H

#include "engine.h"
#include "wire_encode.h"

#define GLM_SERVER_MAX_LIVE     1024                 /* requests of a client */
#define GLM_SERVER_MAX_MESSAGE  (2 * 1024 * 1024)    /* bytes of a SUBMIT */
#define GLM_SERVER_MAX_RING     (4 * 1024 * 1024)    /* bytes of one ring's data */
#define GLM_SERVER_MAX_STOPS    64

typedef struct glm_server_s  glm_server_t;

typedef struct {
    int       max_clients;    /* with those that left and whose requests still end */
    uint64_t  spool_bytes;    /* output kept for all clients; a quarter for one */
    uint32_t  pause_ms;       /* a request paused for longer ends with an error */
    uint32_t  max_n;          /* choices of a request */
    glm_token_text_pt  token_text;   /* NULL: from the engine's tokenizer */
    void     *token_arg;
} glm_server_opts_t;

/* Defaults that --help tells. */
#define GLM_SERVER_OPTS_DEFAULT \
    { .max_clients = 64, .spool_bytes = 256 << 20, .pause_ms = 30000, .max_n = 128 }

/* listen_fd: non-blocking, stays the caller's; -1: only glm_server_add(). */
int glm_server_start(glm_server_t **out, const glm_server_opts_t *o, int listen_fd,
    glm_err_t *err);

/* From now on clients are welcome.  e lives until after glm_server_detach(). */
int glm_server_engine(glm_server_t *s, glm_engine_t *e, glm_err_t *err);

/* A connected SOCK_SEQPACKET socket (of a socketpair) becomes a client; s owns
 * fd from now on. */
int glm_server_add(glm_server_t *s, int fd);

void glm_server_drain(glm_server_t *s);

/* Every request has ended and its client has all of it in its ring. */
int glm_server_idle(glm_server_t *s);

void glm_server_detach(glm_server_t *s);

/* Gives clients flush_ms to take what waits for them, then ends the thread and
 * frees all.  The engine must be stopped before. */
void glm_server_stop(glm_server_t *s, int flush_ms);

#endif
