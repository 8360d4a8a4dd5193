/*
 * ring_impl: what the files of the ring server share, and nobody else (the
 * scriptable fake engine aside, which breaks things on purpose).
 *
 *   ring_server.c   thread, event loop, commands
 *   ring_client.c   a client: accept, hello, welcome, bells, leaving
 *   ring_submit.c   submission ring -> messages -> requests
 *   ring_group.c    prompts that go together
 *   ring_sink.c     the engine's callbacks -> outbox (engine threads)
 *   ring_send.c     outbox -> completion ring, windows, pauses
 *   ring_stats.c    statistics memfd
 *   ring_texts.c    what each id prints
 *
 * Locks: client.lock guards the fields marked L, and is never held while the
 * engine is called.  Everything else of a client belongs to the I/O thread.
 */
#ifndef GLM_RING_IMPL_H
#define GLM_RING_IMPL_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

#include "glm_ring.h"
#include "ring_server.h"
#include "spool.h"
#include "wire_decode.h"

#define GLM_HASH_SIZE       256
#define GLM_MAX_PARTIALS    16
#define GLM_MAX_ASSEMBLY    (2 * (size_t) GLM_SERVER_MAX_MESSAGE)   /* of a client */
#define GLM_MAX_HELD        (16 * (size_t) GLM_SERVER_MAX_MESSAGE)  /* messages of live ones */
#define GLM_MAX_GREETERS    64           /* connected, no HELLO yet */
#define GLM_HELLO_NS        5000000000u  /* time for it */
#define GLM_TICK_MS         100

typedef struct glm_conn_s  glm_conn_t;
typedef struct glm_live_s  glm_live_t;
typedef struct glm_group_s  glm_group_t;

/* A request between SUBMIT and the record that ends it. */
struct glm_live_s {
    glm_submit_t   sub;           /* first: sub.req.owner points here */
    glm_conn_t    *client;
    uint64_t       id;
    glm_live_t    *hash_next;
    size_t         held;          /* bytes of the message */

    int64_t        window;        /* bytes of output still granted */
    uint16_t       msg_type;      /* the message on its way into the ring */
    uint32_t       msg_off;
    glm_wbuf_t     msg;
    int            cancelled;     /* by its client */
    glm_group_t   *group;         /* waits for the others of it; or NULL */
    int            submitted;     /* the engine has it until ended */
    uint64_t       paused_at;     /* ns; 0: runs */

    const glm_refusal_t *killed;  /* L: ends with this instead of what the engine says */
    glm_outbox_t   out;           /* L */
    glm_live_t    *ready_next;    /* L: in client.ready */
    int            ready;         /* L */
    int            mute;          /* L: output is thrown away */
    int            nomem;         /* L: a callback found no memory */
    int            braked;        /* L: paused by its sink, see ring_send.c */
    int            ended;         /* L: done or error was said */
    uint16_t       end_type;      /* L */
    uint32_t       end_size;      /* L */
    size_t         charged;       /* L: bytes of out counted in client.spool */
    _Alignas(8) uint8_t  end[GLM_WIRE_END_MAX];   /* L: the last message */
};

typedef struct {
    int         used;
    uint64_t    id;
    glm_wbuf_t  buf;
} glm_partial_t;

typedef enum {
    GLM_CONN_GREETING,            /* no HELLO yet */
    GLM_CONN_SERVED,
    GLM_CONN_GONE                 /* its requests still end in the engine */
} glm_conn_state_t;

struct glm_conn_s {
    glm_server_t      *s;
    int                fd;
    glm_conn_state_t   state;
    uint64_t           since;     /* ns */
    pid_t              pid;       /* SO_PEERCRED; 0 unknown */
    uid_t              uid;
    char               name[33];

    uint8_t           *map;       /* the ring memfd */
    size_t             map_bytes;
    glm_ring_t         sub, com;  /* submission (read), completion (written) */

    int                in;        /* the socket has something */
    int                rx;        /* look into the submission ring */
    int                tx;        /* try the completion ring */
    int                ring_full; /* records wait for room */
    int                npaused;

    glm_live_t        *hash[GLM_HASH_SIZE];
    int                nlive;
    size_t             held;
    glm_group_t       *groups;    /* not all of whose members have come */
    glm_partial_t      partial[GLM_MAX_PARTIALS];
    size_t             assembling;

    pthread_mutex_t    lock;
    glm_live_t        *ready, *ready_last;   /* L: have something to send or to end */
    atomic_size_t      spool;                /* bytes kept for this client */
    atomic_int         dirty;                /* ready is not empty */
    atomic_int         braked;               /* one of its requests is */
};

struct glm_server_s {
    glm_server_opts_t   o;
    glm_engine_t       *engine;   /* NULL: loading, or detached */
    glm_sink_t          sink;
    int                 listen_fd, epoll_fd, event_fd;
    int                 listening;           /* its events are asked for */
    int                 accepting;           /* one came */
    pthread_t           thread;

    pthread_mutex_t     lock;     /* commands */
    pthread_cond_t      cond;
    glm_engine_t       *new_engine;
    int                *add;      /* descriptors to become clients */
    int                 nadd;
    int                 want_drain, want_detach, want_stop, flush_ms;
    unsigned            commands, handled;   /* counts; equal: all are done */

    int                 draining, detached;
    uint64_t            stop_at;  /* ns; 0: goes on */
    glm_conn_t        **conn;     /* conn_max entries, NULL: free */
    int                 conn_max, nconn, ngreeters;
    unsigned            turn;     /* who comes first */
    uint8_t             rx[GLM_WIRE_MAX_RECORD];

    uint64_t            instance, created;
    glm_decode_limits_t limits;
    const glm_tokenizer_t *tokenizer;    /* or NULL; good until the engine is stopped */
    glm_segment_t       eos_seg;  /* what TOKENIZE makes of the exact eos name */
    int32_t             eos;
    struct glm_texts_s *texts;

    atomic_int          wake;     /* something was put into a spool */
    atomic_size_t       spool;    /* bytes over all clients */
    atomic_int          nlive;    /* over all clients */
    int                 stats_fd; /* read-only */
    glm_wire_stats_t   *stats;    /* the writable mapping */
    pthread_mutex_t     hist_lock;
    glm_wire_stats_t    own;      /* counters that are ours; histograms under hist_lock */
};

uint64_t glm_server_now(void);                       /* ns, CLOCK_MONOTONIC */

/* ring_client.c */
void glm_conn_accept(glm_server_t *s);
glm_conn_t *glm_conn_new(glm_server_t *s, int fd);   /* takes fd; NULL: closed */
int glm_conn_socket(glm_conn_t *c);                  /* -1: c was dropped */
void glm_conn_bell(glm_conn_t *c);
/* Leaves at once: cancels its requests, frees what it can.  why NULL: no line. */
void glm_conn_drop(glm_conn_t *c, const char *why);
/* Frees a client that left when its last request has ended. */
void glm_conn_reap(glm_conn_t *c);
void glm_conn_greeters(glm_server_t *s, uint64_t now);

/* ring_submit.c: -1: c was dropped. */
int glm_conn_receive(glm_conn_t *c);
glm_live_t *glm_live_find(glm_conn_t *c, uint64_t id);
void glm_live_free(glm_live_t *l);                   /* out of c, charges returned */

/* Fills in what the engine needs; the caller submits it. */
glm_req_t *glm_live_start(glm_live_t *l);

/* ring_submit.c, ring_sink.c: there is no memory for a request, or for its answer */
extern const glm_refusal_t  glm_no_request, glm_no_answer;

/* ring_group.c */
/* A member has come; no: it is refused.  -1: its client was dropped. */
int glm_group_join(glm_live_t *l, const glm_refusal_t *no);
/* Ends all that came of l's group as cancelled. */
void glm_group_cancel(glm_live_t *l);
void glm_groups_tick(glm_conn_t *c, uint64_t now);
void glm_groups_free(glm_conn_t *c);                 /* the members stay */

/* ring_sink.c */
void glm_sink_init(glm_server_t *s);
/* Says the end from the I/O thread. */
void glm_live_error(glm_live_t *l, const glm_refusal_t *e);
void glm_live_cancelled(glm_live_t *l);
void glm_live_ready(glm_live_t *l);                  /* client.lock held */
void glm_live_charge(glm_live_t *l);                 /* client.lock held */

/* ring_send.c: -1: c was dropped. */
int glm_conn_send(glm_conn_t *c);
void glm_conn_tick(glm_conn_t *c, uint64_t now);     /* pauses that took too long */
void glm_live_mute(glm_live_t *l);

/* ring_stats.c */
int glm_stats_open(glm_server_t *s, glm_err_t *err);
void glm_stats_close(glm_server_t *s);
void glm_stats_publish(glm_server_t *s);
void glm_stats_done(glm_server_t *s, const glm_done_t *d);   /* any thread */

/* ring_texts.c */
struct glm_texts_s *glm_texts_make(const glm_tokenizer_t *t, int32_t vocab);
void glm_texts_free(struct glm_texts_s *x);
const char *glm_texts_get(void *x, int32_t id, size_t *n);

#endif
