/*
 * client: the wire from a client's side, blocking, for the glm program, tests
 * and load generators.  Owns one connection; believes its engine no more than
 * the engine believes it.  One thread at a time.
 */
#ifndef GLM_CLIENT_H
#define GLM_CLIENT_H

#include "glm_ring.h"
#include "wire_encode.h"

#define GLM_CLIENT_WINDOW  ((uint64_t) 1 << 40)     /* "as much as you like" */

typedef struct glm_client_s  glm_client_t;

typedef struct {
    const char  *name;             /* for the engine's log; NULL: "glm" */
    uint32_t     kind;             /* of HELLO */
    uint32_t     submit_bytes, complete_bytes;   /* 0: the engine's choice */
    int          nowait;           /* SUBMIT into a full ring is GLM_EBUSY */
} glm_client_opts_t;

/*
 * Connects and greets.  GLM_ENOENT: no socket or nobody listens; GLM_EBUSY: the
 * engine is loading, draining or full; err has the line to show.  o may be NULL.
 */
int glm_client_connect(glm_client_t **out, const char *path, const glm_client_opts_t *o,
    glm_err_t *err);

/* The same over a connected socket, which it owns from now on. */
int glm_client_attach(glm_client_t **out, int fd, const glm_client_opts_t *o, glm_err_t *err);
void glm_client_free(glm_client_t *c);

const glm_sock_welcome_t *glm_client_welcome(const glm_client_t *c);
int glm_client_fd(const glm_client_t *c);
int glm_client_live(const glm_client_t *c);      /* requests not ended */

/* A SUBMIT under construction: starts with {0}, prompt and other sections are
 * added with glm_wire_section() to sections. */
typedef struct {
    glm_msg_submit_t  m;           /* size is filled in */
    glm_wbuf_t        sections;
} glm_client_submit_t;

/*
 * Sends it under id, which must not be live, and frees sections.  Waits for
 * room unless nowait.  0, GLM_EBUSY, GLM_ELIMIT (over what WELCOME allows),
 * GLM_EIO (connection lost).
 */
int glm_client_submit(glm_client_t *c, uint64_t id, glm_client_submit_t *s, glm_err_t *err);
int glm_client_window(glm_client_t *c, uint64_t id, uint64_t bytes);
int glm_client_cancel(glm_client_t *c, uint64_t id);
int glm_client_go(glm_client_t *c, uint64_t id);

/* A message, decoded; what it points to is good until the next call. */
typedef struct {
    uint16_t             type;     /* GLM_MSG_* */
    uint64_t             id;
    size_t               cost;     /* bytes of window that it took */
    glm_msg_accepted_t   accepted;
    glm_msg_tokens_t     tokens;
    glm_msg_finish_t     finish;
    glm_msg_filled_t     filled;
    glm_msg_done_t       done;
    glm_msg_error_t      error;
    const int32_t       *ids;
    size_t               nids;
    const char          *text;     /* also STOPTEXT, and the sentence of ERROR */
    size_t               ntext;
    const uint8_t       *logprobs; /* glm_logprob_rec_t each */
    size_t               nlogprobs;     /* bytes */
    const glm_span_rec_t  *spans;  /* FILLED: (nspans) */
    size_t               nspans;
} glm_event_t;

/*
 * The next message, waiting timeout_ms (-1: for good).  1; 0: time is up, or a
 * signal came; GLM_EIO: the engine is gone; GLM_EFORMAT: it talks nonsense.
 */
int glm_client_next(glm_client_t *c, glm_event_t *ev, int timeout_ms, glm_err_t *err);

/* Steps through records: *at begins at 0.  1: *rec and *text; 0: end or nonsense. */
int glm_event_logprob(const glm_event_t *ev, size_t *at, glm_logprob_rec_t *rec,
    const char **text);

/* The engine's statistics; 0 or GLM_EBUSY. */
int glm_client_stats(const glm_client_t *c, glm_wire_stats_t *out);

#endif
