/*
 * fake_engine: the program.  Options of glm-engine's server, and:
 *   --default WORDS  --script FILE  --name NAME  --max-seq N  --slots N
 *   --max-queue N    --loading MS   (LOADING for so long)   --no-tokenizer
 *   --max-n N (64)   --record FILE   (each SUBMIT, JSON a line)
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../../engine/options.h"
#include "fake_engine.h"
#include "fake_wire.h"

static const char *const  noarg[] = { "no-tokenizer", NULL };

static int
number(const char *name, const char *value, int *out, glm_err_t *err)
{
    int      rc;
    int64_t  n = 0;

    rc = glm_option_size(name, value, 0, 1 << 30, &n, err);
    *out = (int) n;
    return rc == 0 ? 1 : rc;
}

static int
option(glm_daemon_opts_t *o, fake_opts_t *f, const char *name, const char *value, glm_err_t *err)
{
    int  n, rc;

    if (strcmp(name, "default") == 0) f->defaults = value;
    else if (strcmp(name, "script") == 0) f->script = value;
    else if (strcmp(name, "name") == 0) f->name = value;
    else if (strcmp(name, "record") == 0) fake_wire_record(value);
    else if (strcmp(name, "no-tokenizer") == 0) o->server.token_text = NULL;
    else if (strcmp(name, "max-seq") == 0) return number(name, value, &f->max_seq, err);
    else if (strcmp(name, "slots") == 0) return number(name, value, &f->slots, err);
    else if (strcmp(name, "max-queue") == 0) return number(name, value, &f->max_queue, err);
    else if (strcmp(name, "max-n") == 0) {
        rc = number(name, value, &n, err);
        o->server.max_n = (uint32_t) n;
        return rc;
    } else if (strcmp(name, "loading") == 0) {
        rc = number(name, value, &n, err);
        o->loading_ms = (uint32_t) n;
        return rc;
    } else {
        return glm_option_server(o, name, value, err);
    }
    return 1;
}

int
main(int argc, char **argv)
{
    int                i, rc, status, abandoned;
    char               name[64];
    glm_err_t          err = {{0}};
    const char        *value;
    fake_opts_t        f = {0};
    glm_daemon_opts_t  o = GLM_DAEMON_OPTS_DEFAULT;

    o.server.token_text = fake_token_text;
    o.server.max_n = 64;
    for (i = 1; i < argc; ) {
        rc = glm_option_next(argc, argv, &i, noarg, name, &value, &err);
        if (rc == 1) rc = option(&o, &f, name, value, &err);
        if (rc == 1) continue;
        fprintf(stderr, "fake_engine: %s\n", rc < 0 ? err.text : "unknown option");
        return 2;
    }
    fake_engine_opts(&f);
    status = glm_daemon_run(&o, &abandoned);
    if (abandoned) _exit(status);
    return status;
}
