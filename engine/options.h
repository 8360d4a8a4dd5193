/*
 * options: command-line values of the programs that serve or load an engine:
 * numbers with a range and k, m, g; the options that every server has.  An
 * error is one line that names the option and its range.
 */
#ifndef GLM_OPTIONS_H
#define GLM_OPTIONS_H

#include "daemon.h"
#include "glm_wire.h"

/* A whole number with an optional k, m or g (1024s), lo .. hi. */
int glm_option_size(const char *name, const char *value, int64_t lo, int64_t hi, int64_t *out,
    glm_err_t *err);

/*
 * Takes one of --socket, --socket-group, --socket-mode, --max-clients,
 * --spool-bytes, --pause-timeout, --log-level.  1: taken; 0: none of these;
 * GLM_EINVAL.
 */
int glm_option_server(glm_daemon_opts_t *o, const char *name, const char *value, glm_err_t *err);

/*
 * Takes one of --model, --backend, --tp, --threads, --isa, --load-format,
 * --max-num-seqs, --kv-tokens, --kv-dtype, --head, --device-memory, --gpu-timeout, --max-queue, --served-model-name,
 * --tokenizer-threads.  1: taken; 0: none of these; GLM_EINVAL.
 */
int glm_option_engine(glm_engine_opts_t *o, const char *name, const char *value, glm_err_t *err);

#define GLM_ENGINE_OPTS_DEFAULT  { .model = { .tp = 1 }, .tokenizer_threads = 2 }

/*
 * The next option of argv, both "--name value" and "--name=value": its name (of
 * at most 63 bytes) and value.  *i moves on.  noarg: NULL-terminated names that
 * take none.  1; 0: argv[*i] is no option; GLM_EINVAL.
 */
int glm_option_next(int argc, char **argv, int *i, const char *const *noarg, char name[64],
    const char **value, glm_err_t *err);

#endif
