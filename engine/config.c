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


/* Messages are one line. */
static int
config_plain(const char *s)
{
    for ( ; *s; s++) {
        if ((unsigned char) *s < 0x20 || *s == 0x7f) return 0;
    }
    return 1;
}


static const char *const  quant_names[] = { "fp16", "int8", "int4" };


int
glm_quant_parse(glm_quant_t *out, const char *text)
{
    size_t  n = strcspn(text, "-");
    char   *end;
    long    group;
    int     i;

    for (i = 0; i < 3; i++) {
        if (n == strlen(quant_names[i]) && strncmp(text, quant_names[i], n) == 0) break;
    }
    if (i == 3) return -1;
    *out = (glm_quant_t) { (glm_ttype_t) i, 0 };
    if (text[n] == '\0') return 0;
    if (i == GLM_T_F16 || text[n + 1] != 'g' || text[n + 2] < '1' || text[n + 2] > '9') return -1;
    group = strtol(text + n + 2, &end, 10);
    if (*end != '\0' || group >= CONFIG_MAX_SIZE) return -1;
    out->group = (int32_t) group;
    return 0;
}


const char *
glm_quant_text(glm_quant_t q, char out[32])
{
    if (q.group == 0) snprintf(out, 32, "%s", quant_names[q.type]);
    else snprintf(out, 32, "%s-g%d", quant_names[q.type], q.group);
    return out;
}


glm_quant_t
glm_config_quant(const glm_config_t *cfg, const char *name)
{
    int32_t  i;

    for (i = 0; i < cfg->nquant_tensors; i++) {
        if (strcmp(cfg->quant_tensors[i].name, name) == 0) return cfg->quant_tensors[i].as;
    }
    return cfg->quant;
}


static int
config_quant_tensors(glm_config_t *cfg, const config_src_t *s, json_t *map)
{
    glm_quant_tensor_t  *t;
    const char          *name, *as;
    json_t              *v;

    if (map == NULL) return 0;
    if (!json_is_object(map)) {
        return glm_fail(s->err, GLM_EFORMAT, "%s: \"quantization.tensors\" is not an object",
                        s->where);
    }
    if (json_object_size(map) > GLM_MAX_QUANT_TENSORS) {
        return glm_fail(s->err, GLM_ELIMIT, "%s: \"quantization.tensors\" has %zu entries, %d are "
                        "allowed", s->where, json_object_size(map), GLM_MAX_QUANT_TENSORS);
    }
    json_object_foreach(map, name, v) {
        t = &cfg->quant_tensors[cfg->nquant_tensors];
        as = json_string_value(v);
        if (strlen(name) >= sizeof(t->name) || as == NULL || glm_quant_parse(&t->as, as) != 0) {
            return glm_fail(s->err, GLM_EFORMAT, "%s: \"quantization.tensors\": \"%.64s\" is not "
                            "given as \"fp16\", \"int8\", \"int4\" or with a group, "
                            "\"int4-g128\"", s->where, config_plain(name) ? name : "?");
        }
        strcpy(t->name, name);
        cfg->nquant_tensors++;
    }
    return 0;
}


static int
config_quant(glm_config_t *cfg, const config_src_t *s)
{
    json_t       *q = json_object_get(s->root, "quantization"), *group;
    const char   *type;
    json_int_t    n;

    if (q == NULL || json_is_null(q)) return 0;
    if (!json_is_object(q)) {
        return glm_fail(s->err, GLM_EFORMAT, "%s: \"quantization\" is not an object", s->where);
    }
    cfg->recorded = 1;
    type = json_string_value(json_object_get(q, "type"));
    if (type == NULL || glm_quant_parse(&cfg->quant, type) != 0 || cfg->quant.group != 0) {
        return glm_fail(s->err, GLM_EFORMAT, "%s: \"quantization.type\" is \"%.32s\", known are "
                        "fp16, int8 and int4", s->where, type && config_plain(type) ? type : "?");
    }
    group = json_object_get(q, "group_size");
    n = json_integer_value(group);
    if (group != NULL && (!json_is_integer(group) || n < 0 || n >= CONFIG_MAX_SIZE
                          || (n > 0 && cfg->quant.type == GLM_T_F16)))
    {
        return glm_fail(s->err, GLM_EFORMAT, "%s: \"quantization.group_size\" is no number of "
                        "columns that a scale covers, 0 (all) to %d", s->where,
                        CONFIG_MAX_SIZE - 1);
    }
    cfg->quant.group = (int32_t) n;
    return config_quant_tensors(cfg, s, json_object_get(q, "tensors"));
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
    const char  *field = "name";
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
    if (!config_plain(json_string_value(v))) {
        return glm_fail(s->err, GLM_EFORMAT, "%s: \"%s\" holds a control character", s->where,
                        field);
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
