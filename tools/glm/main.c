/*
 * glm: the smallest client of an engine.  Options and the choice of a command.
 * Exit status: 0; 1 the engine or the way to it failed; 2 wrong use.
 */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"
#include "log.h"
#include "options.h"
#include "version.h"

#define MAX_PROMPT  (64u << 20)

static const char *const  noarg[] = { "help", "version", "ids", "json", "plain", "no-special",
                                       "echo", NULL };

static const char  usage[] =
    "Usage: glm complete [options] PROMPT|-\n"
    "       glm tokenize [options] TEXT|-\n"
    "\n"
    "  --socket PATH          of a running glm-engine ($GLM_SOCKET, or " GLM_DAEMON_SOCKET ")\n"
    "  --model DIR            no server: an engine inside of this process; also takes\n"
    "                         --backend --tp --threads --isa --load-format --kv-tokens\n"
    "  --ids                  complete: the prompt is ids, ids are printed\n"
    "                         tokenize: TEXT is ids, its text is printed\n"
    "  --json                 one JSON object\n"
    "  --plain                [MASK], [gMASK] and [sMASK] in the prompt are text\n"
    "  --no-special           add no mask and eos to the prompt\n"
    "\n"
    "complete:\n"
    "  --max-tokens N         -1: as many as the context leaves (128)\n"
    "  --temperature X        0: greedy (0)\n"
    "  --top-k N  --top-p X  --min-p X  --seed N\n"
    "  --presence-penalty X  --frequency-penalty X       -2 to 2 (0)\n"
    "  --repetition-penalty X (1)  --min-tokens N\n"
    "  --stop TEXT            may be repeated\n"
    "  --echo                 the prompt's text comes first\n"
    "  --logprobs N           0 to 20, with --json\n"
    "  --mode bidirectional|unidirectional\n"
    "\n"
    "A prompt of - is read from standard input, newlines and all.  Text is printed as it\n"
    "comes; Ctrl-C cancels.\n";

/* ---- values ---- */

static int
real(const char *name, const char *value, double lo, double hi, float *out, glm_err_t *err)
{
    char    *end;
    double   x = strtod(value, &end);

    if (end == value || *end != '\0' || !(x >= lo && x <= hi)) {
        return glm_fail(err, GLM_EINVAL, "--%s: \"%.40s\" is not a number from %g to %g", name,
                        value, lo, hi);
    }
    *out = (float) x;
    return 1;
}

static int
whole(const char *name, const char *value, int64_t lo, int64_t hi, int32_t *out, glm_err_t *err)
{
    char       *end;
    long long   n;

    errno = 0;
    n = strtoll(value, &end, 10);
    if (errno != 0 || end == value || *end != '\0' || n < lo || n > hi) {
        return glm_fail(err, GLM_EINVAL, "--%s: \"%.40s\" is not a number from %lld to %lld", name,
                        value, (long long) lo, (long long) hi);
    }
    *out = (int32_t) n;
    return 1;
}

static int
seed(glm_cli_t *o, const char *value, glm_err_t *err)
{
    char  *end;

    errno = 0;
    o->sampling.seed = strtoull(value, &end, 0);
    if (errno != 0 || end == value || *end != '\0') {
        return glm_fail(err, GLM_EINVAL, "--seed: \"%.40s\" is not a 64-bit number", value);
    }
    o->sampling.flags |= GLM_SAMPLING_SEED;
    return 1;
}

static int
mode(glm_cli_t *o, const char *value, glm_err_t *err)
{
    o->mode = strcmp(value, "unidirectional") == 0;
    if (o->mode || strcmp(value, "bidirectional") == 0) return 1;
    return glm_fail(err, GLM_EINVAL, "--mode: \"%.40s\" is none of bidirectional, unidirectional",
                    value);
}

/* ---- options ---- */

static int
flag(glm_cli_t *o, int complete, const char *name)
{
    if (strcmp(name, "ids") == 0) o->ids = 1;
    else if (strcmp(name, "json") == 0) o->json = 1;
    else if (strcmp(name, "plain") == 0) o->plain = 1;
    else if (strcmp(name, "no-special") == 0) o->no_special = 1;
    else if (complete && strcmp(name, "echo") == 0) o->echo = 1;
    else return 0;
    return 1;
}

static int
penalty(glm_sec_sampling_t *s, const char *name, const char *value, glm_err_t *err)
{
    if (strcmp(name, "presence-penalty") == 0) return real(name, value, -2, 2, &s->presence, err);
    if (strcmp(name, "frequency-penalty") == 0) return real(name, value, -2, 2, &s->frequency, err);
    if (strcmp(name, "repetition-penalty") == 0) {
        return real(name, value, 1e-6, 1e6, &s->repetition, err);
    }
    if (strcmp(name, "min-tokens") == 0) {
        return whole(name, value, 0, INT32_MAX, &s->min_tokens, err);
    }
    return 0;
}

static int
sampling(glm_cli_t *o, const char *name, const char *value, glm_err_t *err)
{
    glm_sec_sampling_t  *s = &o->sampling;

    if (strcmp(name, "temperature") == 0) return real(name, value, 0, 100, &s->temperature, err);
    if (strcmp(name, "top-p") == 0) return real(name, value, 0, 1, &s->top_p, err);
    if (strcmp(name, "min-p") == 0) return real(name, value, 0, 1, &s->min_p, err);
    if (strcmp(name, "top-k") == 0) return whole(name, value, 0, INT32_MAX, &s->top_k, err);
    if (strcmp(name, "seed") == 0) return seed(o, value, err);
    if (strcmp(name, "mode") == 0) return mode(o, value, err);
    if (strcmp(name, "logprobs") == 0) {
        return whole(name, value, 0, GLM_MAX_LOGPROBS, &s->logprobs, err);
    }
    if (strcmp(name, "max-tokens") == 0) {
        return whole(name, value, -1, INT32_MAX, &o->max_tokens, err);
    }
    return 0;
}

static int
option(glm_cli_t *o, int complete, const char *name, const char *value, glm_err_t *err)
{
    int  rc = flag(o, complete, name);

    if (rc == 0 && strcmp(name, "socket") == 0) {
        o->socket = value;
        rc = 1;
    }
    if (rc == 0 && complete && strcmp(name, "stop") == 0) {
        if (o->nstop == GLM_CLI_STOPS) {
            return glm_fail(err, GLM_EINVAL, "--stop: at most %d of them", GLM_CLI_STOPS);
        }
        o->stop[o->nstop++] = value;
        rc = 1;
    }
    if (rc == 0 && complete) rc = sampling(o, name, value, err);
    if (rc == 0 && complete) rc = penalty(&o->sampling, name, value, err);
    if (rc == 0) rc = glm_option_engine(&o->engine, name, value, err);
    if (rc == 0) rc = glm_fail(err, GLM_EINVAL, "unknown option --%s; glm --help lists them", name);
    return rc;
}

static int
read_stdin(glm_text_t *t)
{
    char    buf[65536];
    size_t  n;

    while ((n = fread(buf, 1, sizeof(buf), stdin)) > 0) {
        if (t->n + n > MAX_PROMPT) return glm_cli_fail("standard input is above 64 MiB");
        if (glm_text_add(t, buf, n) != 0) return glm_cli_fail("no memory for the prompt");
    }
    return ferror(stdin) ? glm_cli_fail("standard input cannot be read") : GLM_CLI_OK;
}

static int
get_prompt(glm_cli_t *o, const char *arg)
{
    int  rc = GLM_CLI_OK;

    if (strcmp(arg, "-") == 0) rc = read_stdin(&o->prompt);
    else if (glm_text_add(&o->prompt, arg, strlen(arg)) != 0) rc = glm_cli_fail("no memory");
    if (rc == GLM_CLI_OK && glm_text_add(&o->prompt, "", 1) != 0) rc = glm_cli_fail("no memory");
    o->prompt.n -= rc == GLM_CLI_OK;     /* the NUL is for --ids alone */
    return rc;
}

static int
wrong(const char *text)
{
    glm_cli_fail(text);
    return GLM_CLI_USAGE;
}

/* -1: go on; else the exit status. */
static int
options(glm_cli_t *o, int argc, char **argv, int complete)
{
    int          i, rc;
    char         name[64];
    glm_err_t    err = {{0}};
    const char  *value, *prompt = NULL;

    for (i = 2; i < argc; ) {
        rc = prompt != NULL || strcmp(argv[i], "--") != 0
             ? glm_option_next(argc, argv, &i, noarg, name, &value, &err) : 0;
        if (rc == 0) {
            if (strcmp(argv[i], "--") == 0) i++;
            if (prompt != NULL || i >= argc) return wrong("one prompt is needed");
            prompt = argv[i++];
            continue;
        }
        if (rc == 1 && strcmp(name, "help") == 0) {
            fputs(usage, stdout);
            return GLM_CLI_OK;
        }
        if (rc == 1) rc = option(o, complete, name, value, &err);
        if (rc < 0) return wrong(err.text);
    }
    if (prompt == NULL) return wrong("one prompt is needed; glm --help tells more");
    if (o->sampling.logprobs >= 0 && !o->json) return wrong("--logprobs needs --json");
    if (glm_model_backend(o->engine.model.backend, &err) != 0) return glm_cli_fail(err.text);
    rc = get_prompt(o, prompt);
    return rc == GLM_CLI_OK ? -1 : rc;
}

int
main(int argc, char **argv)
{
    int          rc, complete;
    const char  *socket = getenv("GLM_SOCKET");
    glm_cli_t    o = {
        .socket = socket != NULL && *socket ? socket : GLM_DAEMON_SOCKET, .max_tokens = 128,
        .sampling = { .size = sizeof(o.sampling), .logprobs = -1, .prompt_logprobs = -1 },
        .engine = GLM_ENGINE_OPTS_DEFAULT,
    };

    if (argc >= 2 && strcmp(argv[1], "--version") == 0) {
        printf("glm %s, wire ABI %d\n", GLM_VERSION, GLM_WIRE_ABI);
        return GLM_CLI_OK;
    }
    if (argc >= 2 && strcmp(argv[1], "--help") == 0) {
        fputs(usage, stdout);
        return GLM_CLI_OK;
    }
    complete = argc >= 2 && strcmp(argv[1], "complete") == 0;
    if (!complete && (argc < 2 || strcmp(argv[1], "tokenize") != 0)) {
        return wrong("a command is needed: complete or tokenize; glm --help tells more");
    }
    glm_cli_signals();
    glm_log_level("warn");       /* an engine inside has no log of its own */
    rc = options(&o, argc, argv, complete);
    if (rc < 0) rc = complete ? glm_cli_complete(&o) : glm_cli_tokenize(&o);
    glm_text_free(&o.prompt);
    return rc;
}
