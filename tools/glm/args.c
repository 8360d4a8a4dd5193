/*
 * args: the command line of glm.
 */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "eval.h"
#include "options.h"

#define MAX_PROMPT  (64u << 20)

static const char *const  noarg[] = { "help", "version", "ids", "json", "plain", "no-special",
                                       "echo", "gmask", "unidirectional", "eop", NULL };

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
flag(glm_args_t *a, const char *name)
{
    glm_cli_t  *o = &a->cli;
    int         complete = a->command == GLM_COMPLETE, eval = a->command == GLM_EVAL;

    if (strcmp(name, "json") == 0) o->json = 1;
    else if (!eval && strcmp(name, "ids") == 0) o->ids = 1;
    else if (!eval && strcmp(name, "plain") == 0) o->plain = 1;
    else if (!eval && strcmp(name, "no-special") == 0) o->no_special = 1;
    else if (complete && strcmp(name, "echo") == 0) o->echo = 1;
    else if ((eval || a->command == GLM_SCORE) && strcmp(name, "gmask") == 0) a->eval.gmask = 1;
    else if (eval && strcmp(name, "unidirectional") == 0) a->eval.unidirectional = 1;
    else if (eval && strcmp(name, "eop") == 0) a->eval.eop = 1;
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
    return 0;
}

static int
beams(glm_sec_sampling_t *s, const char *name, const char *value, glm_err_t *err)
{
    int      rc = 0;
    int32_t  n = 0;

    if (strcmp(name, "length-penalty") == 0) {
        return real(name, value, -100, 100, &s->length_penalty, err);
    }
    if (strcmp(name, "min-tokens") == 0) {
        return whole(name, value, 0, INT32_MAX, &s->min_tokens, err);
    }
    if (strcmp(name, "num-beams") == 0) {
        if ((rc = whole(name, value, 1, GLM_MAX_BEAMS, &n, err)) == 1) s->beams = (uint32_t) n;
    } else if (strcmp(name, "no-repeat-ngram-size") == 0) {
        if ((rc = whole(name, value, 0, 1024, &n, err)) == 1) s->no_repeat_ngram = (uint32_t) n;
    }
    return rc;
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
    return penalty(s, name, value, err);
}

static int
stop(glm_cli_t *o, const char *value, glm_err_t *err)
{
    if (o->nstop == GLM_CLI_STOPS) {
        return glm_fail(err, GLM_EINVAL, "--stop: at most %d of them", GLM_CLI_STOPS);
    }
    o->stop[o->nstop++] = value;
    return 1;
}

static int
eval(glm_eval_opts_t *o, const char *name, const char *value, glm_err_t *err)
{
    if (strcmp(name, "max-seq-length") == 0) {
        return whole(name, value, 8, INT32_MAX, &o->max_seq_length, err);
    }
    if (strcmp(name, "max-gen-length") == 0) {
        return whole(name, value, 1, INT32_MAX, &o->max_gen_length, err);
    }
    if (strcmp(name, "generation-length") == 0) {
        return whole(name, value, 1, INT32_MAX, &o->generation_length, err);
    }
    if (strcmp(name, "parallel") == 0) return whole(name, value, 1, 256, &o->parallel, err);
    if (strcmp(name, "documents") == 0) o->documents = value;
    else if (strcmp(name, "resume") == 0) o->resume = value;
    else return 0;
    return 1;
}

static int
option(glm_args_t *a, const char *name, const char *value, glm_err_t *err)
{
    int         rc = flag(a, name);
    int         writes = a->command == GLM_COMPLETE || a->command == GLM_INFILL;
    glm_cli_t  *o = &a->cli;

    if (rc == 0 && strcmp(name, "socket") == 0) {
        o->socket = value;
        rc = 1;
    }
    if (rc == 0 && writes && strcmp(name, "stop") == 0) rc = stop(o, value, err);
    if (rc == 0 && writes) rc = sampling(o, name, value, err);
    if (rc == 0 && a->command == GLM_SCORE && strcmp(name, "mode") == 0) rc = mode(o, value, err);
    if (rc == 0 && a->command == GLM_EVAL) rc = eval(&a->eval, name, value, err);
    if (rc == 0 && (writes || a->command == GLM_EVAL)) rc = beams(&o->sampling, name, value, err);
    if (rc == 0) rc = glm_option_engine(&o->engine, name, value, err);
    if (rc == 0) rc = glm_fail(err, GLM_EINVAL, "unknown option --%s; glm --help lists them", name);
    return rc;
}

/* ---- what is no option ---- */

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

int
glm_cli_wrong(const char *text)
{
    glm_cli_fail(text);
    return GLM_CLI_USAGE;
}

/* eval: the kind, then files; score: the prompt, then choices; else one prompt. */
static int
words(glm_args_t *a, char **word, int n)
{
    static const char *const  kinds[] = { "mul", "gen", "ppl" };

    if (a->command != GLM_EVAL) {
        if (n == 0) return glm_cli_wrong("one prompt is needed; glm --help tells more");
        if (a->command != GLM_SCORE && n > 1) return glm_cli_wrong("one prompt is needed");
        a->choice = word + 1;
        a->nchoice = n - 1;
        if (a->command == GLM_SCORE && n < 2) return glm_cli_wrong("score needs choices");
        return get_prompt(&a->cli, word[0]);
    }
    a->eval.kind = GLM_EVAL_PPL + 1;
    for (int i = 0; n > 0 && i <= GLM_EVAL_PPL; i++)
        if (strcmp(word[0], kinds[i]) == 0) a->eval.kind = (glm_eval_kind_t) i;
    if (a->eval.kind > GLM_EVAL_PPL) return glm_cli_wrong("eval needs a task: mul, gen or ppl");
    if (n < 2) return glm_cli_wrong("eval needs files");
    if (a->eval.unidirectional && !a->eval.gmask) {
        return glm_cli_wrong("--unidirectional needs --gmask");
    }
    a->eval.cli = &a->cli;
    a->eval.file = word + 1;
    a->eval.nfile = n - 1;
    return GLM_CLI_OK;
}

static int
check(const glm_args_t *a)
{
    const glm_cli_t  *o = &a->cli;

    if (a->command == GLM_COMPLETE && o->sampling.logprobs >= 0 && !o->json) {
        return glm_cli_wrong("--logprobs needs --json");
    }
    if (o->sampling.beams > 1 && o->sampling.temperature > 0) {
        return glm_cli_wrong("--num-beams goes with --temperature 0");
    }
    return GLM_CLI_OK;
}

int
glm_cli_args(glm_args_t *a, int argc, char **argv)
{
    int          rc, i = 0, n = 0, all = 0;
    char         name[64];
    glm_err_t    err = {{0}};
    const char  *value;

    while (i < argc) {            /* words move to the front of argv */
        rc = all ? 0 : strcmp(argv[i], "--") == 0 ? 2
             : glm_option_next(argc, argv, &i, noarg, name, &value, &err);
        if (rc == 2) all = 1, i++;
        if (rc == 0) argv[n++] = argv[i++];
        if (rc == 1 && strcmp(name, "help") == 0) {
            a->command = GLM_HELP;
            return GLM_CLI_OK;
        }
        if (rc == 1) rc = option(a, name, value, &err);
        if (rc < 0) return glm_cli_wrong(err.text);
    }
    rc = words(a, argv, n);
    return rc == GLM_CLI_OK ? check(a) : rc;
}
