/*
 * tokenizer_util: what the tokenizer's two test programs share: loading the
 * demo and the real tokenizer, reading goldens, random numbers.
 */
#ifndef GLM_TOKENIZER_UTIL_H
#define GLM_TOKENIZER_UTIL_H

#include <jansson.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include "tap.h"
#include "tokenizer.h"

#ifndef DEMO_MODEL
#define DEMO_MODEL    "models/demo"
#define DEMO_GOLDENS  "t/data/demo/goldens.json"
#endif
#define REAL_CONFIG   "t/data/tokenizer/glm-130b/tokenizer_config.json"
#define REAL_GOLDENS  "t/data/tokenizer/icetk-goldens.json"
#define DEMO_RANDOM   "t/data/tokenizer/demo-random.json"
#define REAL_RANDOM   "t/data/tokenizer/glm-130b-random.json"
#define NO_REAL       "no ice_text.model (set GLM_ICE_TEXT_MODEL)"

/* A whole file, NUL-terminated; NULL if it cannot be read. */
__attribute__((unused))
static char *
slurp(const char *path, size_t *len)
{
    long   n;
    char  *s = NULL;
    FILE  *f = fopen(path, "rb");

    *len = 0;
    if (f == NULL) return NULL;
    if (fseek(f, 0, SEEK_END) == 0 && (n = ftell(f)) >= 0) {
        rewind(f);
        s = malloc((size_t) n + 1);
        *len = fread(s, 1, (size_t) n, f);
        s[*len] = '\0';
    }
    fclose(f);
    return s;
}

/* Where the real model is; NULL if it is not on this machine. */
__attribute__((unused))
static const char *
real_model(void)
{
    const char  *path = getenv("GLM_ICE_TEXT_MODEL");

    if (path == NULL || *path == '\0') path = "../shared/icetk/ice_text.model";
    return access(path, R_OK) == 0 ? path : NULL;
}

/* The real tokenizer, loaded from a directory as the engine does; NULL if absent. */
__attribute__((unused))
static glm_tokenizer_t *
load_real(void)
{
    char              dir[] = "/tmp/glm-tok-XXXXXX", model[64], config[64], *file, *conf;
    glm_err_t         err = {0};
    const char       *path = real_model();
    glm_tokenizer_t  *t = NULL;

    if (path == NULL) return NULL;
    file = realpath(path, NULL);
    conf = realpath(REAL_CONFIG, NULL);
    if (file == NULL || conf == NULL || mkdtemp(dir) == NULL) bail_out("cannot make a model dir");
    snprintf(model, sizeof(model), "%s/ice_text.model", dir);
    snprintf(config, sizeof(config), "%s/tokenizer_config.json", dir);
    if (symlink(file, model) != 0 || symlink(conf, config) != 0) bail_out("symlink() failed");
    if (glm_tokenizer_load(&t, dir, &err) != 0) diag("%s", err.text);
    unlink(model);
    unlink(config);
    rmdir(dir);
    free(file);
    free(conf);
    if (t == NULL) bail_out("the real tokenizer does not load");
    return t;
}

__attribute__((unused))
static glm_tokenizer_t *
load_demo(void)
{
    glm_err_t         err = {0};
    glm_tokenizer_t  *t = NULL;

    if (glm_tokenizer_load(&t, DEMO_MODEL, &err) != 0) diag("%s", err.text);
    if (t == NULL) bail_out("the demo's tokenizer does not load");
    return t;
}

__attribute__((unused))
static json_t *
load_json(const char *path)
{
    json_t        *root;
    json_error_t   e;

    root = json_load_file(path, JSON_ALLOW_NUL, &e);
    if (root == NULL) {
        diag("%s: line %d: %s", path, e.line, e.text);
        bail_out("no goldens");
    }
    return root;
}

/* The number list obj[key] behind what is in ids. */
__attribute__((unused))
static void
add_ids(const json_t *list, glm_ids_t *ids)
{
    size_t   i;
    json_t  *v;

    json_array_foreach(list, i, v) {
        if (glm_ids_push(ids, (int32_t) json_integer_value(v)) != 0) bail_out("no memory");
    }
}

/* Whether ids are the number list; tells the first difference. */
__attribute__((unused))
static int
same_ids(const glm_ids_t *ids, const json_t *list, const char *what, size_t at)
{
    size_t     i, n;
    glm_ids_t  want = {0};

    add_ids(list, &want);
    n = want.n < ids->n ? want.n : ids->n;
    for (i = 0; i < n && ids->id[i] == want.id[i]; i++) { /* up to a difference */ }
    if (i == want.n && i == ids->n) {
        glm_ids_free(&want);
        return 1;
    }
    diag("%s %zu: %zu ids instead of %zu; at %zu: %d instead of %d", what, at, ids->n, want.n, i,
         i < ids->n ? ids->id[i] : -1, i < want.n ? want.id[i] : -1);
    glm_ids_free(&want);
    return 0;
}

/* Whether text is the JSON string. */
__attribute__((unused))
static int
same_text(const glm_text_t *text, const json_t *string, const char *what, size_t at)
{
    size_t  n = json_string_length(string);

    if (text->n == n && (n == 0 || memcmp(text->s, json_string_value(string), n) == 0)) return 1;
    diag("%s %zu: \"%.*s\" instead of \"%s\"", what, at, (int) text->n,
         text->s == NULL ? "" : text->s, json_string_value(string));
    return 0;
}

/* xorshift64*: the same numbers everywhere. */
__attribute__((unused))
static uint32_t
rnd(uint64_t *state)
{
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return (uint32_t) (*state * 0x2545F4914F6CDD1Dull >> 32);
}

#endif
