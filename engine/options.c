/*
 * options: see options.h.
 */
#include "options.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "log.h"
#include "sockpath.h"
#include "utf8.h"

int
glm_option_size(const char *name, const char *value, int64_t lo, int64_t hi, int64_t *out,
    glm_err_t *err)
{
    int        shift = 0;
    char      *end;
    long long  n;

    errno = 0;
    n = strtoll(value, &end, 10);
    if (*end == 'k' || *end == 'K') shift = 10;
    else if (*end == 'm' || *end == 'M') shift = 20;
    else if (*end == 'g' || *end == 'G') shift = 30;
    if (shift) end++;

    if (errno != 0 || end == value || *end != '\0' || value[0] == ' ' || value[0] == '\t'
        || n > (INT64_MAX >> shift) || n < 0 || n << shift < lo || n << shift > hi)
    {
        return glm_fail(err, GLM_EINVAL, "--%s: \"%.40s\" is not a number from %lld to %lld", name,
                        value, (long long) lo, (long long) hi);
    }
    *out = n << shift;
    return 0;
}

static int
mode_option(const char *value, mode_t *mode, glm_err_t *err)
{
    char           *end;
    unsigned long   n = strtoul(value, &end, 8);

    if (*value < '0' || *value > '7' || *end != '\0' || n > 0777) {
        return glm_fail(err, GLM_EINVAL, "--socket-mode: \"%.40s\" is not an octal mode from 0 "
                        "to 777", value);
    }
    *mode = (mode_t) n;
    return 1;
}

int
glm_option_server(glm_daemon_opts_t *o, const char *name, const char *value, glm_err_t *err)
{
    int      rc;
    int64_t  n;

    if (strcmp(name, "socket") == 0) {
        o->socket = value;
        rc = glm_sockpath_check(value, err);
        return rc == 0 ? 1 : rc;
    }
    if (strcmp(name, "socket-group") == 0) {
        o->socket_group = value;
        return 1;
    }
    if (strcmp(name, "socket-mode") == 0) return mode_option(value, &o->socket_mode, err);
    if (strcmp(name, "log-level") == 0) {
        if (glm_log_level(value) == 0) return 1;
        return glm_fail(err, GLM_EINVAL, "--log-level: \"%.40s\" is none of error, warn, notice, "
                        "info, debug", value);
    }
    if (strcmp(name, "max-clients") == 0) {
        if ((rc = glm_option_size(name, value, 1, 4096, &n, err)) != 0) return rc;
        o->server.max_clients = (int) n;
        return 1;
    }
    if (strcmp(name, "spool-bytes") == 0) {
        rc = glm_option_size(name, value, 64 * 1024, (int64_t) 1 << 40, &n, err);
        if (rc != 0) return rc;
        o->server.spool_bytes = (uint64_t) n;
        return 1;
    }
    if (strcmp(name, "pause-timeout") == 0) {
        if ((rc = glm_option_size(name, value, 1, 86400, &n, err)) != 0) return rc;
        o->server.pause_ms = (uint32_t) n * 1000;
        return 1;
    }
    return 0;
}

/* ---- the engine's ---- */

/* One of the names in list ("a, b, c"), or an error that shows them. */
static int
one_of(const char *name, const char *value, const char *list, glm_err_t *err)
{
    size_t       n = strlen(value);
    const char  *p = n > 0 && strchr(value, ',') == NULL ? list : NULL;

    while (p != NULL && (p = strstr(p, value)) != NULL) {
        if ((p == list || p[-1] == ' ') && (p[n] == ',' || p[n] == '\0')) return 1;
        p++;
    }
    return glm_fail(err, GLM_EINVAL, "--%s: \"%.40s\" is none of %s", name, value, list);
}

static int
number(const char *name, const char *value, int64_t lo, int64_t hi, int32_t *out, glm_err_t *err)
{
    int      rc;
    int64_t  n = 0;

    rc = glm_option_size(name, value, lo, hi, &n, err);
    if (rc != 0) return rc;
    *out = (int32_t) n;
    return 1;
}

static int
served_name(glm_engine_opts_t *o, const char *value, glm_err_t *err)
{
    size_t  n = strlen(value);

    if (n == 0 || n >= GLM_WIRE_NAME || glm_utf8_valid(value, n) != n) {
        return glm_fail(err, GLM_EINVAL, "--served-model-name: must be UTF-8 of 1 to %d bytes",
                        GLM_WIRE_NAME - 1);
    }
    o->served_name = value;
    return 1;
}

static int
backend(glm_engine_opts_t *o, const char *value, glm_err_t *err)
{
    o->model.backend = strcmp(value, "cuda") == 0 ? GLM_BACKEND_CUDA
                     : strcmp(value, "cpu") == 0 ? GLM_BACKEND_CPU : GLM_BACKEND_AUTO;
    return one_of("backend", value, "auto, cpu, cuda", err);
}

static int
load_format(glm_engine_opts_t *o, const char *value, glm_err_t *err)
{
    o->model.dummy = strcmp(value, "dummy") == 0;
    return one_of("load-format", value, "auto, dummy", err);
}

int
glm_option_engine(glm_engine_opts_t *o, const char *name, const char *value, glm_err_t *err)
{
    int      rc;
    int64_t  n = 0;

    if (strcmp(name, "model") == 0) {
        o->model_dir = value;
        return 1;
    }
    if (strcmp(name, "isa") == 0) {
        o->model.isa = value;
        return one_of(name, value, "plain, avx2, avx512", err);
    }
    if (strcmp(name, "backend") == 0) return backend(o, value, err);
    if (strcmp(name, "load-format") == 0) return load_format(o, value, err);
    if (strcmp(name, "served-model-name") == 0) return served_name(o, value, err);
    if (strcmp(name, "tp") == 0) return number(name, value, 1, 8, &o->model.tp, err);
    if (strcmp(name, "threads") == 0) return number(name, value, 1, 1024, &o->model.threads, err);
    if (strcmp(name, "max-num-seqs") == 0) {
        return number(name, value, 1, 65536, &o->max_num_seqs, err);
    }
    if (strcmp(name, "max-queue") == 0) {
        rc = number(name, value, 0, 1 << 20, &o->max_queue, err);
        if (rc == 1 && o->max_queue == 0) o->max_queue = -1;     /* 0 is "the default" there */
        return rc;
    }
    if (strcmp(name, "tokenizer-threads") == 0) {
        return number(name, value, 1, 256, &o->tokenizer_threads, err);
    }
    if (strcmp(name, "kv-dtype") == 0) {
        o->model.kv_int8 = strcmp(value, "int8") == 0;
        return one_of(name, value, "fp16, int8", err);
    }
    if (strcmp(name, "head") == 0) {
        o->model.head = strcmp(value, "int8") == 0 ? GLM_HEAD_INT8 : GLM_HEAD_F16;
        return one_of(name, value, "fp16, int8", err);
    }
    if (strcmp(name, "gpu-timeout") == 0) {
        return number(name, value, 1, 3600, &o->model.gpu_timeout, err);
    }
    if (strcmp(name, "device-memory") == 0) {
        rc = glm_option_size(name, value, 1 << 20, (int64_t) 1 << 44, &n, err);
        o->model.device_memory = (uint64_t) n;
        return rc == 0 ? 1 : rc;
    }
    if (strcmp(name, "kv-tokens") == 0) {
        rc = glm_option_size(name, value, GLM_KV_PAGE, INT32_MAX / 2, &o->kv_tokens, err);
        return rc == 0 ? 1 : rc;
    }
    return 0;
}

/* ---- argv ---- */

int
glm_option_next(int argc, char **argv, int *i, const char *const *noarg, char name[64],
    const char **value, glm_err_t *err)
{
    size_t       n;
    const char  *arg = argv[*i], *eq;

    if (strncmp(arg, "--", 2) != 0 || arg[2] == '\0') return 0;
    arg += 2;
    eq = strchr(arg, '=');
    n = eq != NULL ? (size_t) (eq - arg) : strlen(arg);
    if (n > 63) return glm_fail(err, GLM_EINVAL, "unknown option --%.63s...", arg);
    memcpy(name, arg, n);
    name[n] = '\0';
    ++*i;

    *value = eq != NULL ? eq + 1 : NULL;
    for (; *noarg != NULL; noarg++) {
        if (strcmp(*noarg, name) != 0) continue;
        if (eq != NULL) return glm_fail(err, GLM_EINVAL, "--%s takes no value", name);
        return 1;
    }
    if (eq == NULL) {
        if (*i >= argc) return glm_fail(err, GLM_EINVAL, "--%s needs a value", name);
        *value = argv[(*i)++];
    }
    return 1;
}
