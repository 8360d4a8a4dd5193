/*
 * glm-engine: serves a model on a Unix socket.  Options, then daemon.c, whose exit
 * status it is: 0 after a signal, 2 for a wrong option, else see daemon.h.
 */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "glm_wire.h"
#include "options.h"
#include "version.h"

static const char *const  noarg[] = { "help", "plan", "version", NULL };

static const char  usage[] =
    "Usage: glm-engine --model DIR [options]\n"
    "\n"
    "Model\n"
    "  --model DIR              model directory (config.json, *.safetensors, tokenizer)\n"
    "  --load-format auto|dummy dummy: weights from a fixed hash; only config.json is read\n"
    "  --served-model-name NAME name that clients see (config.json's)\n"
    "\n"
    "Running\n"
    "  --backend auto|cpu|cuda  (auto)\n"
    "  --tp N                   tensor parallel ranks: 1, 2, 4 or 8 (1)\n"
    "  --threads N              CPU threads over all ranks, 1 to 1024 (all cores)\n"
    "  --isa plain|avx2|avx512  CPU instruction set (the best there is)\n"
    "  --max-num-seqs N         rows of a decode step, 1 to 65536\n"
    "  --kv-tokens N            tokens that the KV cache holds, 16 to 1g (cuda: what fits)\n"
    "  --max-queue N            requests that may wait, 0 to 1m\n"
    "  --tokenizer-threads N    1 to 256 (2)\n"
    "\n"
    "On a card\n"
    "  --kv-dtype fp16|int8     of keys and values (fp16)\n"
    "  --head fp16|int8         output head (int8 where linears are quantised, else fp16)\n"
    "  --device-memory N        bytes to use at most, 1m to 16384g (what is free)\n"
    "  --gpu-timeout S          seconds that a step may take, 1 to 3600 (60)\n"
    "  --plan                   print what the model needs, on the card that is here or on\n"
    "                           one of --device-memory bytes, and end\n"
    "\n"
    "Serving\n"
    "  --socket PATH            at most 107 bytes (" GLM_DAEMON_SOCKET ")\n"
    "  --socket-group GROUP     name or number (the process's)\n"
    "  --socket-mode MODE       octal (0660)\n"
    "  --max-clients N          1 to 4096 (64)\n"
    "  --spool-bytes N          output kept for slow readers, 64k to 1024g (256m)\n"
    "  --pause-timeout S        seconds that a paused request lives, 1 to 86400 (30)\n"
    "  --log-level LEVEL        error, warn, notice, info or debug (notice)\n"
    "\n"
    "  --help, --version\n"
    "\n"
    "Sizes take k, m, g.  SIGTERM: refuse new requests, finish the running ones, end;\n"
    "a second SIGTERM, or SIGINT: end at once.\n";

static int
fail(const char *text)
{
    fprintf(stderr, "glm-engine: %s\n", text);
    return 2;
}

/* -1: go on; else the exit status. */
static int
options(int argc, char **argv, glm_daemon_opts_t *o, int *plan)
{
    int          i, rc;
    char         name[64];
    glm_err_t    err = {{0}};
    const char  *value;

    for (i = 1; i < argc; ) {
        rc = glm_option_next(argc, argv, &i, noarg, name, &value, &err);
        if (rc == 0) return fail("arguments are options only; --help lists them");
        if (rc == 1 && strcmp(name, "help") == 0) {
            fputs(usage, stdout);
            return 0;
        }
        if (rc == 1 && strcmp(name, "version") == 0) {
            printf("glm-engine %s, wire ABI %d\n", GLM_VERSION, GLM_WIRE_ABI);
            return 0;
        }
        if (rc == 1 && strcmp(name, "plan") == 0) {
            *plan = 1;
            continue;
        }
        if (rc == 1) rc = glm_option_server(o, name, value, &err);
        if (rc == 0) rc = glm_option_engine(&o->engine, name, value, &err);
        if (rc == 0) rc = glm_fail(&err, GLM_EINVAL, "unknown option --%s; --help lists them", name);
        if (rc < 0) return fail(err.text);
    }
    if (o->engine.model_dir == NULL) return fail("--model DIR is needed; --help lists all options");
    return -1;
}

/* The budget on standard output; status 3 when the model does not fit. */
static int
print_plan(const glm_engine_opts_t *o)
{
    glm_err_t  err = {{0}};
    int        rc = glm_engine_plan(o, stdout, &err);

    if (rc == 0) return 0;
    fprintf(stderr, "glm-engine: %s\n", err.text);
    return glm_daemon_status(rc);
}

int
main(int argc, char **argv)
{
    int                status, abandoned, plan = 0;
    glm_err_t          err = {{0}};
    glm_daemon_opts_t  o = GLM_DAEMON_OPTS_DEFAULT;

    o.engine = (glm_engine_opts_t) GLM_ENGINE_OPTS_DEFAULT;
    status = options(argc, argv, &o, &plan);
    if (status >= 0) return status;
    if (plan) return print_plan(&o.engine);
    glm_daemon_block_signals();
    if (glm_model_backend(o.engine.model.backend, &err) != 0) {
        fprintf(stderr, "glm-engine: %s\n", err.text);
        return 1;
    }
    status = glm_daemon_run(&o, &abandoned);
    if (abandoned) _exit(status);
    return status;
}
