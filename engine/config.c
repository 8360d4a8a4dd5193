/*
 * config: reads config.json into a checked glm_config_t.  Fields of other
 * programs are ignored; a field that would make the model another
 * architecture is refused, as running it would give wrong numbers.
 */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "config.h"

#define CONFIG_MAX_BYTES  (1u << 20)
#define CONFIG_MAX_SIZE   (1 << 24)     /* every size is below */

typedef struct {
    json_t      *root;
    const char  *where;       /* file, for messages */
    glm_err_t   *err;
} config_src_t;


static int
config_size(const config_src_t *s, const char *field, int32_t *out)
{
    json_t      *v = json_object_get(s->root, field);
    json_int_t   n;

    if (v == NULL) {
        return glm_fail(s->err, GLM_EFORMAT, "%s: \"%s\" is missing", s->where, field);
    }
    if (!json_is_integer(v)) {
        return glm_fail(s->err, GLM_EFORMAT, "%s: \"%s\" is not an integer", s->where, field);
    }
    n = json_integer_value(v);
    if (n <= 0 || n >= CONFIG_MAX_SIZE) {
        return glm_fail(s->err, GLM_EFORMAT, "%s: \"%s\" is %lld, allowed are 1 to %d",
                        s->where, field, (long long) n, CONFIG_MAX_SIZE - 1);
    }
    *out = (int32_t) n;
    return 0;
}


static int
config_sizes(glm_config_t *cfg, const config_src_t *s)
{
    const struct {
        const char  *field;
        int32_t     *out;
    } sizes[] = {
        { "num_layers",          &cfg->layers  },
        { "hidden_size",         &cfg->hidden  },
        { "inner_hidden_size",   &cfg->inner   },
        { "num_attention_heads", &cfg->heads   },
        { "vocab_size",          &cfg->vocab   },
        { "max_sequence_length", &cfg->max_seq },
    };
    size_t  i;
    int     rc;

    for (i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        if ((rc = config_size(s, sizes[i].field, sizes[i].out)) != 0) return rc;
    }
    if (cfg->hidden % cfg->heads != 0) {
        return glm_fail(s->err, GLM_EFORMAT, "%s: \"hidden_size\" %d is not a multiple of "
                        "\"num_attention_heads\" %d", s->where, cfg->hidden, cfg->heads);
    }
    cfg->head_dim = cfg->hidden / cfg->heads;
    if (cfg->head_dim % 2 != 0) {
        return glm_fail(s->err, GLM_EFORMAT, "%s: \"hidden_size\" / \"num_attention_heads\" is %d, "
                        "which rotary embedding cannot halve", s->where, cfg->head_dim);
    }
    return 0;
}


static int
config_epsilon(glm_config_t *cfg, const config_src_t *s)
{
    json_t  *v = json_object_get(s->root, "layernorm_epsilon");

    cfg->ln_eps = 1e-5f;
    if (v == NULL) return 0;
    if (!json_is_number(v) || !(json_number_value(v) > 0 && json_number_value(v) < 1)
        || (float) json_number_value(v) <= 0)
    {
        return glm_fail(s->err, GLM_EFORMAT, "%s: \"layernorm_epsilon\" is not a number "
                        "between 0 and 1", s->where);
    }
    cfg->ln_eps = (float) json_number_value(v);
    return 0;
}


static int
config_quant(glm_config_t *cfg, const config_src_t *s)
{
    static const char *const  names[] = { "none", "int8", "int4" };
    json_t      *v = json_object_get(s->root, "quantization");
    const char  *name;
    int          i;

    cfg->quant = GLM_QUANT_NONE;
    cfg->quant_group = 0;
    if (v != NULL && !json_is_null(v)) {
        if ((name = json_string_value(v)) == NULL) {
            return glm_fail(s->err, GLM_EFORMAT, "%s: \"quantization\" is not a string", s->where);
        }
        for (i = 0; i < 3 && strcmp(name, names[i]) != 0; i++) { /* void */ }
        if (i == 3) {
            return glm_fail(s->err, GLM_EFORMAT, "%s: \"quantization\" is \"%.32s\", known are "
                            "none, int8 and int4", s->where, name);
        }
        cfg->quant = (glm_quant_t) i;
    }

    v = json_object_get(s->root, "quantization_group");
    if (v == NULL || (json_is_integer(v) && json_integer_value(v) == 0)) return 0;
    return config_size(s, "quantization_group", &cfg->quant_group);
}


static int
config_token(const config_src_t *s, json_t *v, const char *field, int32_t vocab, int32_t *out)
{
    if (!json_is_integer(v)) {
        return glm_fail(s->err, GLM_EFORMAT, "%s: \"%s\" is not an integer", s->where, field);
    }
    if (json_integer_value(v) < 0 || json_integer_value(v) >= vocab) {
        return glm_fail(s->err, GLM_EFORMAT, "%s: \"%s\" is %lld, outside the vocabulary of %d",
                        s->where, field, (long long) json_integer_value(v), vocab);
    }
    *out = (int32_t) json_integer_value(v);
    return 0;
}


static int
config_specials(glm_config_t *cfg, const config_src_t *s)
{
    const struct {
        const char  *key;
        int32_t     *out;
    } tokens[] = {
        { "[MASK]", &cfg->mask }, { "[gMASK]", &cfg->gmask }, { "[sMASK]", &cfg->smask },
        { "eod", &cfg->eod }, { "sop", &cfg->sop }, { "eop", &cfg->eop },
        { "ENC", &cfg->enc }, { "dBLOCK", &cfg->dblock }, { "eos", &cfg->eos },
    };
    json_t  *map = json_object_get(s->root, "special_tokens"), *v;
    char     field[64];
    size_t   i;
    int      rc;

    if (map != NULL && !json_is_object(map)) {
        return glm_fail(s->err, GLM_EFORMAT, "%s: \"special_tokens\" is not an object", s->where);
    }
    for (i = 0; i < sizeof(tokens) / sizeof(tokens[0]); i++) {
        *tokens[i].out = GLM_NO_TOKEN;
        v = json_object_get(map, tokens[i].key);
        if (v == NULL || json_is_null(v)) continue;
        snprintf(field, sizeof(field), "special_tokens.%s", tokens[i].key);
        if ((rc = config_token(s, v, field, cfg->vocab, tokens[i].out)) != 0) return rc;
    }
    return 0;
}


/* Without a list of their own, eop and eos end a text, as in the original. */
static int
config_end_tokens(glm_config_t *cfg, const config_src_t *s)
{
    json_t  *list = json_object_get(s->root, "end_tokens");
    size_t   i;
    int      rc;

    cfg->nend_tokens = 0;
    if (list == NULL) {
        if (cfg->eop != GLM_NO_TOKEN) cfg->end_tokens[cfg->nend_tokens++] = cfg->eop;
        if (cfg->eos != GLM_NO_TOKEN) cfg->end_tokens[cfg->nend_tokens++] = cfg->eos;
        return 0;
    }
    if (!json_is_array(list)) {
        return glm_fail(s->err, GLM_EFORMAT, "%s: \"end_tokens\" is not an array", s->where);
    }
    if (json_array_size(list) > GLM_MAX_END_TOKENS) {
        return glm_fail(s->err, GLM_ELIMIT, "%s: \"end_tokens\" has %zu ids, %d are allowed",
                        s->where, json_array_size(list), GLM_MAX_END_TOKENS);
    }
    for (i = 0; i < json_array_size(list); i++) {
        rc = config_token(s, json_array_get(list, i), "end_tokens", cfg->vocab,
                          &cfg->end_tokens[i]);
        if (rc != 0) return rc;
        cfg->nend_tokens++;
    }
    return 0;
}


static int
config_name(glm_config_t *cfg, const config_src_t *s)
{
    const char  *field = "name", *p;
    json_t      *v = json_object_get(s->root, field);

    if (v == NULL) v = json_object_get(s->root, field = "model");
    if (v == NULL) return 0;
    if (!json_is_string(v) || json_string_length(v) == 0) {
        return glm_fail(s->err, GLM_EFORMAT, "%s: \"%s\" is not a string with text", s->where,
                        field);
    }
    if (json_string_length(v) >= sizeof(cfg->name)) {
        return glm_fail(s->err, GLM_ELIMIT, "%s: \"%s\" is longer than %zu bytes", s->where, field,
                        sizeof(cfg->name) - 1);
    }
    for (p = json_string_value(v); *p; p++) {
        if ((unsigned char) *p < 0x20 || *p == 0x7f) {
            return glm_fail(s->err, GLM_EFORMAT, "%s: \"%s\" holds a control character", s->where,
                            field);
        }
    }
    strcpy(cfg->name, json_string_value(v));
    return 0;
}


static int
config_architecture(const config_src_t *s)
{
    json_t  *order = json_object_get(s->root, "layernorm_order");

    if (order != NULL
        && (!json_is_string(order) || strcmp(json_string_value(order), "post") != 0))
    {
        return glm_fail(s->err, GLM_EFORMAT, "%s: \"layernorm_order\" is not \"post\", the only "
                        "one known here", s->where);
    }
    if (json_is_true(json_object_get(s->root, "no_glu"))) {
        return glm_fail(s->err, GLM_EFORMAT, "%s: \"no_glu\" is true, but only GLU models are "
                        "known here", s->where);
    }
    if (json_is_true(json_object_get(s->root, "position_encoding_2d"))) {
        return glm_fail(s->err, GLM_EFORMAT, "%s: \"position_encoding_2d\" is true, but only "
                        "models with one position an id are known here", s->where);
    }
    return 0;
}


int
glm_config_parse(glm_config_t *cfg, const char *text, size_t len, const char *where,
    glm_err_t *err)
{
    config_src_t  s = { .where = where, .err = err };
    json_error_t  jerr;
    int           rc;

    memset(cfg, 0, sizeof(*cfg));
    if (len > CONFIG_MAX_BYTES) {
        return glm_fail(err, GLM_ELIMIT, "%s: longer than %u bytes", where, CONFIG_MAX_BYTES);
    }
    s.root = json_loadb(text, len, JSON_REJECT_DUPLICATES, &jerr);
    if (s.root == NULL) {
        return glm_fail(err, GLM_EFORMAT, "%s: line %d: not JSON (%s)", where, jerr.line,
                        json_error_code(&jerr) == json_error_duplicate_key ? "a key occurs twice"
                                                                           : "syntax");
    }
    if (!json_is_object(s.root)) {
        rc = glm_fail(err, GLM_EFORMAT, "%s: not a JSON object", where);
        goto done;
    }
    if ((rc = config_architecture(&s)) != 0) goto done;
    if ((rc = config_sizes(cfg, &s)) != 0) goto done;
    if ((rc = config_epsilon(cfg, &s)) != 0) goto done;
    if ((rc = config_quant(cfg, &s)) != 0) goto done;
    if ((rc = config_specials(cfg, &s)) != 0) goto done;
    if ((rc = config_end_tokens(cfg, &s)) != 0) goto done;
    rc = config_name(cfg, &s);

done:
    json_decref(s.root);
    return rc;
}


int
glm_config_load_file(glm_config_t *cfg, const char *path, glm_err_t *err)
{
    FILE    *f = fopen(path, "re");
    char    *text;
    size_t   len;
    int      rc;

    memset(cfg, 0, sizeof(*cfg));
    if (f == NULL) {
        return glm_fail(err, errno == ENOENT ? GLM_ENOENT : GLM_EIO, "%s: %s", path,
                        strerror(errno));
    }
    text = malloc(CONFIG_MAX_BYTES + 1);
    if (text == NULL) {
        fclose(f);
        return glm_fail(err, GLM_ENOMEM, "%s: no memory", path);
    }
    len = fread(text, 1, CONFIG_MAX_BYTES + 1, f);
    if (ferror(f)) {
        rc = glm_fail(err, GLM_EIO, "%s: read() failed: %s", path, strerror(errno));

    } else {
        rc = glm_config_parse(cfg, text, len, path, err);
    }
    free(text);
    fclose(f);
    return rc;
}


/* A model without a name goes by that of its directory. */
static void
config_name_of_dir(glm_config_t *cfg, const char *dir)
{
    char        *real = realpath(dir, NULL);
    const char  *base = real ? strrchr(real, '/') : NULL;

    snprintf(cfg->name, sizeof(cfg->name), "%.*s", (int) sizeof(cfg->name) - 1,
             base && base[1] ? base + 1 : "glm");
    free(real);
}


int
glm_config_load(glm_config_t *cfg, const char *dir, glm_err_t *err)
{
    char  path[PATH_MAX];
    int   rc;

    memset(cfg, 0, sizeof(*cfg));
    if ((size_t) snprintf(path, sizeof(path), "%s/config.json", dir) >= sizeof(path)) {
        return glm_fail(err, GLM_EINVAL, "%.64s...: path is too long", dir);
    }
    rc = glm_config_load_file(cfg, path, err);
    if (rc == 0 && cfg->name[0] == '\0') config_name_of_dir(cfg, dir);
    return rc;
}
