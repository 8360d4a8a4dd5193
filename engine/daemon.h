/*
 * daemon: the life of an engine process: socket and lock, loading beside a
 * server that says so, serving, draining, the end.  Owns signals and the order
 * of things; the program around it owns options and exit.
 */
#ifndef GLM_DAEMON_H
#define GLM_DAEMON_H

#include <sys/types.h>

#include "engine.h"
#include "ring_server.h"

#define GLM_DAEMON_SOCKET  "/run/glm/engine.sock"

typedef struct {
    const char         *socket;
    const char         *socket_group;   /* NULL: the process's */
    mode_t              socket_mode;
    uint32_t            loading_ms;     /* tests: loading takes this much longer */
    glm_server_opts_t   server;
    glm_engine_opts_t   engine;
} glm_daemon_opts_t;

#define GLM_DAEMON_OPTS_DEFAULT                                                   \
    { .socket = GLM_DAEMON_SOCKET, .socket_mode = 0660,                           \
      .server = GLM_SERVER_OPTS_DEFAULT }

/* Before the first call that may start a thread, as the driver's do: one that does
 * not block the daemon's signals would be ended by them. */
void glm_daemon_block_signals(void);

/*
 * Exit statuses: 0 after a signal, 1 when it cannot serve, 3 when the model does not
 * fit in memory, and of a card that failed, at start or later: 4 a CUDA error, 5 the
 * card is gone, 6 it did not finish in time, 7 it computed NaN.  Of one of our codes:
 */
int glm_daemon_status(int rc);

/*
 * Runs until a signal or a failed card ends it; failures are logged in one line.
 * Returns the exit status.  *abandoned: a thread is still loading, or the card failed and
 * may hold whoever calls it, so end with _exit().
 */
int glm_daemon_run(const glm_daemon_opts_t *o, int *abandoned);

#endif
