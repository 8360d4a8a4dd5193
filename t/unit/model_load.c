/*
 * model_load: what a model directory must hold and how its absence is told; the
 * rotary table; dummy weights.  Would break: a model that loads and is wrong.
 */
#include <jansson.h>
#include <sys/stat.h>

#include "model_cpu.h"
#include "model_util.h"
#include "st_util.h"

static const struct { const char *name; int rows, cols; } shapes[] = {
    { "word_embeddings.weight", 32, 32 },
    { "final_layernorm.weight", 32, 0 },
    { "final_layernorm.bias", 32, 0 },
    { "layers.0.input_layernorm.weight", 32, 0 },
    { "layers.0.input_layernorm.bias", 32, 0 },
    { "layers.0.attention.query_key_value.weight", 96, 32 },
    { "layers.0.attention.query_key_value.bias", 96, 0 },
    { "layers.0.attention.dense.weight", 32, 32 },
    { "layers.0.attention.dense.bias", 32, 0 },
    { "layers.0.post_attention_layernorm.weight", 32, 0 },
    { "layers.0.post_attention_layernorm.bias", 32, 0 },
    { "layers.0.mlp.dense_h_to_4h.weight", 40, 32 },
    { "layers.0.mlp.dense_h_to_4h.bias", 40, 0 },
    { "layers.0.mlp.dense_4h_to_h.weight", 32, 20 },
    { "layers.0.mlp.dense_4h_to_h.bias", 32, 0 },
};
#define NSHAPES  ((int) (sizeof(shapes) / sizeof(shapes[0])))

static char  dir[64] = "/tmp/glm-model-load-XXXXXX";

static void
write_file(const char *name, const void *data, size_t n)
{
    char   path[128];
    FILE  *f;

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    f = fopen(path, "wb");
    if (f == NULL || fwrite(data, 1, n, f) != n || fclose(f) != 0) bail_out(path);
}

static void
write_config(int max_seq, int head_dim, const char *more)
{
    char  text[1024];
    int   n;

    n = snprintf(text, sizeof(text), "{\"name\": \"t\", \"num_layers\": 1, \"hidden_size\": %d, "
        "\"inner_hidden_size\": 20, \"num_attention_heads\": 2, \"vocab_size\": 32, "
        "\"max_sequence_length\": %d, \"end_tokens\": [1]%s}", 2 * head_dim, max_seq, more);
    write_file("config.json", text, (size_t) n);
}

/* All tensors but `without`; `odd` gets one more row or another type. */
static void
write_tensors(int without, int odd, const char *type, uint16_t fill)
{
    static uint16_t  values[100 * 40 * 2];
    st_out_t         f;
    char             path[128];

    for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++) values[i] = fill;
    st_begin(&f, NULL);
    for (int i = 0; i < NSHAPES; i++) {
        int          rows = shapes[i].rows + (i == odd && type == NULL);
        const char  *t = i == odd && type != NULL ? type : "F16";
        int          n = rows * (shapes[i].cols ? shapes[i].cols : 1);

        if (i == without) continue;
        st_put(&f, shapes[i].name, t, rows, shapes[i].cols ? shapes[i].cols : -1, values,
            (size_t) n * (strcmp(t, "F16") == 0 ? 2 : strcmp(t, "I64") == 0 ? 8 : 4));
    }
    snprintf(path, sizeof(path), "%s/model.safetensors", dir);
    st_end(&f, path);
}

static int
load(glm_model_t **m, int tp, int dummy, glm_err_t *err)
{
    glm_model_opts_t  o = { .backend = GLM_BACKEND_CPU, .dir = dir, .tp = tp, .threads = 1,
                            .kv_pages = 8, .max_rows = 4, .dummy = dummy };

    err->text[0] = '\0';
    return glm_model_load(m, &o, err);
}

static void
check_tensors(void)
{
    glm_model_t  *m;
    glm_err_t     err;
    uint64_t      print;
    char          want[96];

    write_config(64, 16, "");
    write_tensors(-1, -1, NULL, 0x3800);
    ok(load(&m, 1, 0, &err) == 0, "the whole model loads %s", err.text);
    if (m == NULL) return;
    print = glm_model_fingerprint(m);
    glm_model_free(m);
    load(&m, 1, 0, &err);
    ok(m != NULL && glm_model_fingerprint(m) == print, "a fingerprint is the same each time");
    glm_model_free(m);
    write_tensors(-1, -1, NULL, 0x3801);
    load(&m, 1, 0, &err);
    ok(m != NULL && glm_model_fingerprint(m) != print, "and another for other weights");
    glm_model_free(m);

    for (int i = 0; i < NSHAPES; i++) {
        write_tensors(i, -1, NULL, 0x3800);
        ok(load(&m, 1, 0, &err) == GLM_ENOENT && m == NULL && strstr(err.text, shapes[i].name)
            && strstr(err.text, "missing"), "%s", err.text);
        write_tensors(-1, i, NULL, 0x3800);
        snprintf(want, sizeof(want), "[%d", shapes[i].rows + 1);
        ok(load(&m, 1, 0, &err) == GLM_EFORMAT && m == NULL && strstr(err.text, shapes[i].name)
            && strstr(err.text, want) && strstr(err.text, "model.safetensors"), "%s", err.text);
    }
    write_tensors(-1, 5, "F32", 0x3800);
    ok(load(&m, 1, 0, &err) == GLM_EFORMAT && strstr(err.text, "F32 [96, 32]")
        && strstr(err.text, "F16 [96, 32]"), "%s", err.text);
    write_tensors(-1, 6, "I64", 0x3800);
    ok(load(&m, 1, 0, &err) == GLM_EFORMAT, "%s", err.text);
}

static void
check_refusals(void)
{
    glm_model_t  *m;
    glm_err_t     err;

    write_tensors(-1, -1, NULL, 0x3800);
    write_config(64, 16, ", \"quantization\": {\"type\": \"int8\"}");
    ok(load(&m, 1, 0, &err) == GLM_EFORMAT && strstr(err.text, "config.json records int8"), "%s",
        err.text);
    write_config(64, 16, ", \"quantization\": {\"type\": \"fp16\", \"tensors\": "
        "{\"word_embeddings.weight\": \"int8\"}}");
    ok(load(&m, 1, 0, &err) == GLM_EFORMAT && strstr(err.text, "word_embeddings.weight"), "%s",
        err.text);
    write_config(64, 24, "");
    ok(load(&m, 1, 1, &err) < 0 && strstr(err.text, "head size 24"), "%s", err.text);
    setenv("GLM_ISA", "vax", 1);
    write_config(64, 16, "");
    ok(load(&m, 1, 0, &err) < 0 && strstr(err.text, "vax"), "GLM_ISA: %s", err.text);
    setenv("GLM_ISA", "plain", 1);
    ok(load(&m, 1, 0, &err) == 0 && strcmp(glm_model_isa(m), "plain") == 0,
        "GLM_ISA picks the instruction set");
    glm_model_free(m);
    unsetenv("GLM_ISA");
}

/* The original's table, value by value. */
static void
check_rotary(json_t *golden, const char *key, int d)
{
    glm_model_t  *m;
    glm_rope_t   *rope;
    glm_err_t     err;
    json_t       *rows = json_object_get(json_object_get(golden, "head_dim"), key), *r;
    size_t        i, at;
    int           good = 1;

    write_config(2048, d, "");
    if (!ok(load(&m, 1, 1, &err) == 0, "dummy weights, heads of %d", d)) return;
    rope = &((glm_cpu_model_t *) m)->rope;
    json_array_foreach(rows, i, r) {
        at = (size_t) (json_integer_value(json_array_get(r, 0)) * (d / 2)
                       + json_integer_value(json_array_get(r, 1)));
        good &= rope->cos[at] == (float) json_number_value(json_array_get(r, 4));
        good &= rope->sin[at] == (float) json_number_value(json_array_get(r, 5));
    }
    ok(good && i > 50, "rotary table of %d: %zu values of the original", d, i);
    glm_model_free(m);
}

/* The same weights at any degree: logits agree, and are of a sane size. */
static void
check_dummy(void)
{
    static const int32_t  tok[] = { 3, 1, 4, 1, 5, 9, 2, 6 };
    int32_t               pages[1] = { 3 };
    float                 logits[2][8 * 32];
    double                size = 0;
    glm_model_t          *m;
    glm_err_t             err;

    write_config(64, 32, "");
    for (int tp = 1; tp <= 2; tp++) {
        if (!ok(load(&m, tp, 1, &err) == 0, "dummy weights on %d ranks", tp)) return;
        glm_model_prefill(m, tok, 8, pages, 0, 1, logits[tp - 1]);
        glm_model_free(m);
    }
    for (int i = 0; i < 8 * 32; i++) size += logits[0][i] * logits[0][i] / (8 * 32);
    ok(max_diff(logits[0], logits[1], 8 * 32) < 1e-4, "the same model at any degree");
    ok(size > 0.5 && size < 16, "logits of standard deviation %.2f", sqrt(size));
}

int
main(void)
{
    json_t  *golden = json_load_file("t/data/goldens/rotary.json", 0, NULL);
    char     cmd[128];

    if (golden == NULL) golden = json_load_file("../shared/reference/goldens/rotary.json", 0, NULL);
    if (mkdtemp(dir) == NULL) bail_out("mkdtemp() failed");
    check_tensors();
    check_refusals();
    if (golden == NULL) {
        skip("no goldens");
    } else {
        check_rotary(golden, "64", 64);
        check_rotary(golden, "128", 128);
    }
    check_dummy();
    json_decref(golden);
    snprintf(cmd, sizeof(cmd), "%s/config.json", dir);
    unlink(cmd);
    snprintf(cmd, sizeof(cmd), "%s/model.safetensors", dir);
    unlink(cmd);
    rmdir(dir);
    return tap_done();
}
