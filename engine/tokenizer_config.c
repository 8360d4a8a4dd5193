/*
 * tokenizer_config: reads tokenizer_config.json.  Where the ids lie follows
 * from two numbers, image_tokens and num_text_tokens; every other id in the
 * file is only compared, so that a file for another vocabulary is refused
 * instead of making wrong ids.
 */
#include "tokenizer_impl.h"

#include <jansson.h>
#include <string.h>

typedef struct {
    const char  *path;
    glm_err_t   *err;
} where_t;

/* obj[key] as a number in [0, GLM_TOK_MAX_IDS]; name is for the error text. */
static int
get_int(const where_t *w, const json_t *obj, const char *key, const char *name, int32_t *value)
{
    json_int_t     n;
    const json_t  *v = json_object_get(obj, key);

    if (v == NULL) return glm_fail(w->err, GLM_EFORMAT, "%s: no %s", w->path, name);
    n = json_integer_value(v);
    if (!json_is_integer(v) || n < 0 || n > GLM_TOK_MAX_IDS) {
        return glm_fail(w->err, GLM_EFORMAT, "%s: %s is no number from 0 to %d", w->path, name,
                        GLM_TOK_MAX_IDS);
    }
    *value = (int32_t) n;
    return 0;
}

/* obj[key], if it is there, must be the number that follows from the layout. */
static int
same_int(const where_t *w, const json_t *obj, const char *group, const char *key, int32_t want)
{
    int      rc;
    char     name[128];
    int32_t  value;

    if (json_object_get(obj, key) == NULL) return 0;
    snprintf(name, sizeof(name), "%s%s%s", group, group[0] ? "." : "", key);
    rc = get_int(w, obj, key, name, &value);
    if (rc != 0 || value == want) return rc;
    return glm_fail(w->err, GLM_EFORMAT, "%s: %s is %d, by the order of ids it is %d", w->path,
                    name, (int) value, (int) want);
}

static int
same_text(const where_t *w, const json_t *obj, const char *group, const char *key,
    const char *want)
{
    const char    *s;
    const json_t  *v = json_object_get(obj, key);

    if (v == NULL) return 0;
    s = json_string_value(v);
    if (s != NULL && strcmp(s, want) == 0) return 0;
    return glm_fail(w->err, GLM_EFORMAT, "%s: %s%s%s is not \"%s\"", w->path, group,
                    group[0] ? "." : "", key, want);
}

static int
check_special(const where_t *w, const json_t *root, int32_t first)
{
    int            i, rc = 0;
    const json_t  *obj = json_object_get(root, "special_tokens");

    for (i = 0; i < GLM_TOK_NSPECIAL && rc == 0; i++) {
        rc = same_int(w, obj, "special_tokens", glm_tok_special[i], first + i);
    }
    return rc;
}

/* The appended ids, from first on. */
static int
check_appended(const where_t *w, const json_t *root, int32_t first)
{
    int            rc;
    int32_t        tab = first + GLM_TOK_NSPECIAL, blank = tab + 1, byte = blank + GLM_TOK_NBLANK;
    const json_t  *o = json_object_get(root, "tab_token");

    if ((rc = check_special(w, root, first)) != 0) return rc;
    if ((rc = same_int(w, o, "tab_token", "id", tab)) != 0) return rc;
    if ((rc = same_text(w, o, "tab_token", "piece", GLM_TOK_TAB)) != 0) return rc;
    o = json_object_get(root, "blank_tokens");
    if ((rc = same_int(w, o, "blank_tokens", "first_length", 2)) != 0) return rc;
    if ((rc = same_int(w, o, "blank_tokens", "first_id", blank)) != 0) return rc;
    if ((rc = same_int(w, o, "blank_tokens", "last_length", GLM_TOK_MAX_BLANK)) != 0) return rc;
    if ((rc = same_int(w, o, "blank_tokens", "last_id", byte - 1)) != 0) return rc;
    o = json_object_get(root, "byte_tokens");
    if ((rc = same_int(w, o, "byte_tokens", "first_id", byte)) != 0) return rc;
    if ((rc = same_int(w, o, "byte_tokens", "last_id", byte + GLM_TOK_NBYTE - 1)) != 0) return rc;
    return same_int(w, root, "", "vocab_size", byte + GLM_TOK_NBYTE);
}

static int
check_kind(const where_t *w, const json_t *root)
{
    int            rc;
    const json_t  *v = json_object_get(root, "byte_fallback");

    if (json_object_get(root, "type") == NULL) {
        return glm_fail(w->err, GLM_EFORMAT, "%s: no type", w->path);
    }
    if ((rc = same_text(w, root, "", "type", "icetk")) != 0) return rc;
    if ((rc = same_text(w, root, "", "newline_piece", GLM_TOK_NEWLINE)) != 0) return rc;
    if ((rc = same_int(w, root, "", "max_blank_length", GLM_TOK_MAX_BLANK)) != 0) return rc;
    if (v != NULL && !json_is_true(v)) {
        return glm_fail(w->err, GLM_EFORMAT, "%s: byte_fallback is not true", w->path);
    }
    return 0;
}

/* A file beside the config, never a path out of the directory. */
static int
get_model_file(const where_t *w, const json_t *root, char *name, size_t size)
{
    const char  *s = json_string_value(json_object_get(root, "model_file"));

    if (s == NULL) return glm_fail(w->err, GLM_EFORMAT, "%s: no model_file", w->path);
    if (*s == '\0' || strchr(s, '/') != NULL || strlen(s) >= size) {
        return glm_fail(w->err, GLM_EFORMAT, "%s: model_file is not the name of a file beside it",
                        w->path);
    }
    strcpy(name, s);
    return 0;
}

static int
get_layout(const where_t *w, const json_t *root, glm_tokenizer_config_t *c)
{
    int      rc;
    int32_t  first, vocab;

    rc = get_int(w, root, "image_tokens", "image_tokens", &c->images);
    if (rc == 0) rc = get_int(w, root, "num_text_tokens", "num_text_tokens", &c->npieces);
    if (rc == 0) rc = get_int(w, root, "unk_id", "unk_id", &c->unk);
    if (rc != 0) return rc;
    first = c->images + c->npieces;
    vocab = first + GLM_TOK_NAPPEND;
    if (c->npieces == 0 || vocab > GLM_TOK_MAX_IDS) {
        return glm_fail(w->err, GLM_EFORMAT, "%s: %d image_tokens and %d num_text_tokens",
                        w->path, (int) c->images, (int) c->npieces);
    }
    if (c->unk < c->images || c->unk >= first) {
        return glm_fail(w->err, GLM_EFORMAT, "%s: unk_id %d is no piece", w->path, (int) c->unk);
    }
    rc = check_appended(w, root, first);
    c->padded = vocab;
    if (rc == 0 && json_object_get(root, "padded_vocab_size") != NULL) {
        rc = get_int(w, root, "padded_vocab_size", "padded_vocab_size", &c->padded);
    }
    if (rc != 0 || c->padded >= vocab) return rc;
    return glm_fail(w->err, GLM_EFORMAT, "%s: padded_vocab_size %d is less than the %d ids",
                    w->path, (int) c->padded, (int) vocab);
}

int
glm_tokenizer_config(glm_tokenizer_config_t *c, const char *json, size_t len, const char *path,
    glm_err_t *err)
{
    int           rc;
    json_t       *root;
    where_t       w = { path, err };
    json_error_t  e;

    memset(c, 0, sizeof(*c));
    root = json_loadb(json, len, JSON_REJECT_DUPLICATES, &e);
    if (root == NULL) {
        return glm_fail(err, GLM_EFORMAT, "%s: line %d: %s", path, e.line, e.text);
    }
    rc = json_is_object(root) ? check_kind(&w, root)
                              : glm_fail(err, GLM_EFORMAT, "%s: not an object", path);
    if (rc == 0) rc = get_model_file(&w, root, c->model_file, sizeof(c->model_file));
    if (rc == 0) rc = get_layout(&w, root, c);
    json_decref(root);
    return rc;
}
