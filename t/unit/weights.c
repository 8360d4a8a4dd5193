/*
 * weights: quantised model directories, whole path: each form gives the numbers
 * of an fp16 model with the same weights, at every degree; what is wrong with a
 * file is found at load and named; dummy weights.  Would break: a nibble, scale
 * or group that lands elsewhere, and a damaged file that serves.
 */
#include <sys/stat.h>
#include <zlib.h>

#include "cpu/half.h"
#include "glm_hash.h"
#include "glm_kernels.h"
#include "loader.h"
#include "model_util.h"
#include "st_util.h"

enum { H = 64, INNER = 128, HEADS = 4, V = 64, LAYERS = 2, N = 24, C = 15 };

static char  dir[] = "/tmp/glm-weights-XXXXXX";

static const struct { const char *name; int rows, cols; } tensors[] = {
    { "input_layernorm.weight", H, -1 },
    { "input_layernorm.bias", H, -1 },
    { "attention.query_key_value.weight", 3 * H, H },
    { "attention.query_key_value.bias", 3 * H, -1 },
    { "attention.dense.weight", H, H },
    { "attention.dense.bias", H, -1 },
    { "post_attention_layernorm.weight", H, -1 },
    { "post_attention_layernorm.bias", H, -1 },
    { "mlp.dense_h_to_4h.weight", 2 * INNER, H },
    { "mlp.dense_h_to_4h.bias", 2 * INNER, -1 },
    { "mlp.dense_4h_to_h.weight", H, INNER },
    { "mlp.dense_4h_to_h.bias", H, -1 },
    { "word_embeddings.weight", V, H },
    { "final_layernorm.weight", H, -1 },
    { "final_layernorm.bias", H, -1 },
};
#define NTENSORS  15
#define NLAYER    12              /* of them in each layer */

/* What to write: the form of the linears, and one thing that is wrong. */
typedef struct {
    int          bits[4];         /* of qkv, dense, h_to_4h, 4h_to_h */
    int          group[4];        /* 0: the row */
    int          twin;            /* fp16 of the same values */
    const char  *meta;            /* metadata of the file */
    /* of layers.1.attention.dense.weight */
    int          no_scale, scale_rows, scale_groups, scale_at, zero_row, with_scale;
    uint16_t     scale;
    const char  *scale_type;
    const char  *i8;              /* a tensor written as I8 without more */
} form_t;

static const form_t  fp16 = { .bits = { 16, 16, 16, 16 }, .scale_at = -1 };

static form_t
all(int bits, int group)
{
    form_t  f = { .scale_at = -1 };

    for (int i = 0; i < 4; i++) {
        f.bits[i] = bits;
        f.group[i] = group;
    }
    return f;
}

/* Scales of four significant bits: q times one is an fp16 value. */
static uint16_t
scale_of(uint32_t seed, int i)
{
    return glm_float_to_half((float) (8 + glm_hash(seed, (uint64_t) i) % 8) * 0x1p-12f);
}

/* In -7 .. 7 or -127 .. 127. */
static int
q_of(uint32_t seed, int bits, int i)
{
    int  m = bits == 4 ? 7 : 127;

    return (int) (glm_hash(seed + 1, (uint64_t) i) % (unsigned) (2 * m + 1)) - m;
}

static void
put_halves(st_out_t *f, const char *name, int rows, int cols, uint32_t seed)
{
    static uint16_t  h[2 * INNER * H];
    int              n = rows * (cols > 0 ? cols : 1);
    float            base = strstr(name, "norm.weight") ? 1 : 0;

    for (int i = 0; i < n; i++) {
        h[i] = glm_float_to_half(base + (float) (int) (glm_hash(seed, (uint64_t) i) % 201)
                                 * 0.003f - 0.3f);
    }
    st_put(f, name, "F16", rows, cols, h, (size_t) n * 2);
}

static void
put_twin(st_out_t *f, const char *name, int rows, int cols, uint32_t seed, int bits, int group)
{
    static uint16_t  h[2 * INNER * H];

    for (int i = 0; i < rows * cols; i++) {
        h[i] = glm_float_to_half((float) q_of(seed, bits, i)
                                 * glm_half_to_float(scale_of(seed, i / group)));
    }
    st_put(f, name, "F16", rows, cols, h, (size_t) (rows * cols) * 2);
}

static void
put_quant(st_out_t *f, const char *name, int rows, int cols, uint32_t seed, int bits, int group,
    const form_t *form)
{
    static uint8_t   b[2 * INNER * H];
    static uint16_t  s[2 * INNER * H];
    int              special = strcmp(name, "layers.1.attention.dense.weight") == 0, q;
    int              groups = cols / group, srows = rows, n = rows * cols;
    char             scale[128];

    memset(b, 0, sizeof(b));
    for (int i = 0; i < n; i++) {
        q = special && form->zero_row && i / cols == 5 ? 0 : q_of(seed, bits, i);
        if (bits == 8) b[i] = (uint8_t) q;
        else b[i / 2] |= (uint8_t) ((q & 15) << (i % 2 ? 0 : 4));
    }
    for (int i = 0; i < n / group; i++) s[i] = scale_of(seed, i);
    st_put(f, name, "I8", rows, bits == 8 ? cols : cols / 2, b, (size_t) (n * bits / 8));
    if (special) {
        if (form->no_scale) return;
        if (form->scale_at >= 0) s[form->scale_at] = form->scale;
        if (form->scale_rows) srows = form->scale_rows;
        if (form->scale_groups) groups = form->scale_groups;
    }
    snprintf(scale, sizeof(scale), "%s_scale", name);
    st_put(f, scale, special && form->scale_type ? form->scale_type : "F16", srows, groups, s,
        (size_t) (srows * groups) * (special && form->scale_type ? 4 : 2));
}

static void
put_tensor(st_out_t *f, const form_t *form, int layer, int i)
{
    static const int  linear[NTENSORS] = { [2] = 1, [4] = 2, [8] = 3, [10] = 4 };
    int               rows = tensors[i].rows, cols = tensors[i].cols, k = linear[i] - 1, group;
    uint32_t          seed = (uint32_t) (1000 * layer + 10 * i);
    char              name[96];

    if (i < NLAYER) snprintf(name, sizeof(name), "layers.%d.%s", layer, tensors[i].name);
    else snprintf(name, sizeof(name), "%s", tensors[i].name);
    if (form->i8 != NULL && strcmp(form->i8, name) == 0) {
        static uint8_t  zeros[2 * INNER * H];

        st_put(f, name, "I8", rows, cols, zeros, (size_t) (rows * (cols > 0 ? cols : 1)));
        return;
    }
    if (k < 0 || form->bits[k] == 16) {
        put_halves(f, name, rows, cols, seed);
        if (form->with_scale && strcmp(name, "layers.1.attention.dense.weight") == 0) {
            put_halves(f, "layers.1.attention.dense.weight_scale", rows, 1, 1);
        }
        return;
    }
    group = form->group[k] ? form->group[k] : cols;
    if (form->twin) put_twin(f, name, rows, cols, seed, form->bits[k], group);
    else put_quant(f, name, rows, cols, seed, form->bits[k], group, form);
}

static const char *
in_dir(const char *name)
{
    static char  path[128];

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    return path;
}

static void
write_config(const char *more)
{
    FILE  *f = fopen(in_dir("config.json"), "w");

    if (f == NULL || fprintf(f, "{\"name\": \"w\", \"num_layers\": %d, \"hidden_size\": %d, "
        "\"inner_hidden_size\": %d, \"num_attention_heads\": %d, \"vocab_size\": %d, "
        "\"max_sequence_length\": 64, \"end_tokens\": [1]%s}", LAYERS, H, INNER, HEADS, V,
        more) < 0 || fclose(f) != 0) bail_out("cannot write config.json");
}

static void
write_model(const form_t *form)
{
    st_out_t  f;

    write_config("");
    st_begin(&f, form->meta);
    for (int l = 0; l < LAYERS; l++) {
        for (int i = 0; i < NLAYER; i++) put_tensor(&f, form, l, i);
    }
    for (int i = NLAYER; i < NTENSORS; i++) put_tensor(&f, form, 0, i);
    st_end(&f, in_dir("model.safetensors"));
}

static glm_model_t *
load(int tp, int threads, const char *isa, int dummy, glm_err_t *err)
{
    glm_model_opts_t  o = { .dir = dir, .tp = tp, .threads = threads, .isa = isa, .kv_pages = 8,
                            .max_rows = N, .dummy = dummy };
    glm_model_t      *m;

    err->text[0] = '\0';
    return glm_model_load(&m, &o, err) == 0 ? m : NULL;
}

/* logits (N, V): a context and rows. */
static int
logits_of(int tp, int threads, const char *isa, int dummy, int step, float *logits)
{
    int32_t       token[N], position[N], pages[2] = { 5, 2 };
    pass_t        p = { token, position, pages, N, C, 0, step };
    glm_err_t     err;
    glm_model_t  *m = load(tp, threads, isa, dummy, &err);

    if (m == NULL) {
        diag("%s", err.text);
        return -1;
    }
    for (int i = 0; i < N; i++) {
        token[i] = i * 29 % V;
        position[i] = i;
    }
    (void) model_pass(m, &p, logits);
    glm_model_free(m);
    return 0;
}

/* The quantised model against fp16 of the same values; all in one order of bits. */
static void
check_form(form_t form, const char *what)
{
    static float       want[N * V], got[N * V], first[N * V];
    static const char *isas[] = { "avx512", "avx2", "plain" };
    double             d, size = 0;

    form.twin = 1;
    write_model(&form);
    if (logits_of(1, 1, NULL, 0, 1, want) != 0) bail_out("the twin does not load");
    for (int i = 0; i < N * V; i++) size = fmax(size, fabs(want[i]));
    form.twin = 0;
    write_model(&form);
    for (int tp = 1; tp <= 4; tp *= 2) {
        memset(got, 0, sizeof(got));
        d = logits_of(tp, tp, NULL, 0, 1, got) == 0 ? max_diff(want, got, N * V) : 1;
        ok(d < 1e-4 && size > 1, "%s on %d ranks: %.1e from fp16 of the same values", what, tp, d);
        if (tp == 1) memcpy(first, got, sizeof(first));
    }
    for (int i = 0; i < 3; i++) {
        if (glm_cpu_ops(isas[i]) == NULL) continue;
        (void) logits_of(1, 1 + i, isas[i], 0, 9, got);
        ok(memcmp(first, got, sizeof(got)) == 0, "%s: the same bits with %s, %d threads, 9 rows "
            "a step", what, isas[i], 1 + i);
    }
}

static void
check_forms(void)
{
    form_t  mixed = { .bits = { 4, 8, 16, 4 }, .group = { 16, 32, 0, 64 }, .scale_at = -1 };

    check_form(all(8, 0), "int8");
    check_form(all(4, 0), "int4");
    check_form(all(8, 32), "int8-g32");
    check_form(all(4, 32), "int4-g32");
    check_form(all(4, 16), "int4-g16");
    check_form(mixed, "a mixture");
}

static void
refused(const form_t *form, const char *one, const char *two)
{
    glm_err_t     err;
    glm_model_t  *m;

    write_model(form);
    m = load(1, 1, NULL, 0, &err);
    ok(m == NULL && strstr(err.text, one) && strstr(err.text, two), "%s", err.text);
    if (m != NULL) glm_model_free(m);
}

#define DENSE  "layers.1.attention.dense.weight"

static void
check_scales(void)
{
    form_t        f = all(4, 32), bad = f;
    glm_err_t     err;
    glm_model_t  *m;

    bad.no_scale = 1;
    refused(&bad, DENSE "_scale F16 [64, groups] is missing", "safetensors");
    bad = f;
    bad.scale_rows = 63;
    refused(&bad, DENSE "_scale is F16 [63, 2]", "[64, groups]");
    bad = f;
    bad.scale_groups = 3;
    refused(&bad, DENSE "_scale is F16 [64, 3]", "16");
    bad.scale_groups = 8;                       /* groups of 8 columns */
    refused(&bad, DENSE "_scale is F16 [64, 8]", "16");
    bad = f;
    bad.scale_type = "F32";
    refused(&bad, DENSE "_scale is F32", "F16");
    for (int i = 0; i < 3; i++) {
        static const uint16_t  values[3] = { 0x7e01, 0x7c00, 0x9000 };
        static const char     *texts[3] = { "nan", "inf", "-0." };

        bad = f;
        bad.scale_at = 2 * 41 + 1;
        bad.scale = values[i];
        refused(&bad, DENSE "_scale, row 41, group 1", texts[i]);
    }
    bad.scale = 0;
    refused(&bad, DENSE "_scale, row 41, group 1", "where weights are not 0");
    bad.scale_at = 2 * 5;
    bad.zero_row = 1;
    write_model(&bad);
    m = load(1, 1, NULL, 0, &err);
    ok(m != NULL, "a scale of 0 where all weights are 0 is fine %s", err.text);
    glm_model_free(m);
    bad = fp16;
    bad.with_scale = 1;
    refused(&bad, DENSE "_scale is there", "is F16");
    bad = f;
    bad.i8 = "word_embeddings.weight";
    refused(&bad, "word_embeddings.weight is I8 [64, 64]", "wants F16");
    bad.i8 = "layers.0.mlp.dense_4h_to_h.bias";
    refused(&bad, "dense_4h_to_h.bias is I8 [64]", "wants F16");
}

static void
record(const char *quantization, const char *says)
{
    char          more[256];
    glm_err_t     err;
    glm_model_t  *m;

    snprintf(more, sizeof(more), ", \"quantization\": {%s}", quantization);
    write_config(more);
    m = load(1, 1, NULL, 0, &err);
    if (says == NULL) ok(m != NULL, "recorded as %s %s", quantization, err.text);
    else ok(m == NULL && strstr(err.text, says), "%s", err.text);
    if (m != NULL) glm_model_free(m);
}

static void
check_record(void)
{
    form_t        f = { .bits = { 4, 8, 4, 4 }, .group = { 32, 0, 32, 32 }, .scale_at = -1 };
    char          text[128];
    glm_err_t     err;
    glm_model_t  *m;
    uint64_t      bytes;

    write_model(&f);
    record("\"type\": \"int4\", \"group_size\": 32", "layers.0.attention.dense.weight is int8");
    record("\"type\": \"int4\", \"group_size\": 64, \"tensors\": {\"layers.0.attention.dense.weight"
        "\": \"int8\", \"" DENSE "\": \"int8\"}", "query_key_value.weight is int4-g32, config.json "
        "records int4-g64");
    record("\"type\": \"int4\", \"group_size\": 32, \"tensors\": {\"layers.0.attention.dense.weight"
        "\": \"int8\", \"" DENSE "\": \"int8\"}", NULL);
    record("\"type\": \"int4\", \"tensors\": {\"layers.0.attention.dense.weight"
        "\": \"int8\", \"" DENSE "\": \"int8-g64\"}", NULL);
    record("\"type\": \"fp16\"", "config.json records fp16");
    record("\"type\": \"int4\", \"tensors\": {\"layers.2.attention.dense.weight\": \"int8\"}",
        "layers.2.attention.dense.weight, which is no weight");

    write_config("");
    m = load(1, 1, NULL, 0, &err);
    snprintf(text, sizeof(text), "%s", m ? glm_model_weights(m, &bytes) : "");
    ok(strcmp(text, "int4-g32 (6), int8 (2)") == 0, "told as %s", text);
    glm_model_free(m);
}

static uint64_t
print_of(const form_t *form)
{
    glm_err_t     err;
    glm_model_t  *m;
    uint64_t      print;

    write_model(form);
    if ((m = load(1, 1, NULL, 0, &err)) == NULL) bail_out(err.text);
    print = glm_model_fingerprint(m);
    glm_model_free(m);
    return print;
}

/* An int8 tensor and an int4 one of twice its width may have the same bytes. */
static void
check_fingerprint(void)
{
    form_t    f = all(4, 32), g = f;
    uint64_t  print = print_of(&f);

    ok(print_of(&f) == print, "the same fingerprint each time");
    g.scale_at = 3;
    g.scale = 0x1234;
    ok(print_of(&g) != print, "another for another scale");
    g = all(4, 64);
    ok(print_of(&g) != print, "for other groups");
    g = all(8, 32);
    ok(print_of(&g) != print, "for another type");
    g = f;
    g.meta = "{\"format\": \"pt\"}";
    ok(print_of(&g) == print, "not for other metadata");
}

/* Flips a bit of the byte at `at` from the end of the file, or cuts there. */
static void
damage(long at, int cut)
{
    const char  *path = in_dir("model.safetensors");
    FILE        *f = fopen(path, "r+b");
    int          c;

    if (f == NULL || fseek(f, -at, SEEK_END) != 0) bail_out(path);
    if (cut) {
        if (ftruncate(fileno(f), ftell(f)) != 0) bail_out(path);
    } else {
        c = getc(f);
        fseek(f, -at, SEEK_END);
        putc(c ^ 4, f);
    }
    fclose(f);
}

static void
check_load(const char *one, const char *two, const char *what)
{
    glm_err_t     err;
    glm_model_t  *m = load(1, 1, NULL, 0, &err);

    if (one == NULL) ok(m != NULL, "%s %s", what, err.text);
    else ok(m == NULL && strstr(err.text, one) && strstr(err.text, two), "%s: %s", what, err.text);
    if (m != NULL) glm_model_free(m);
}

/* CRC-32 of a tensor as it was written last. */
static unsigned
crc_of(const char *name)
{
    glm_config_t   cfg;
    glm_loader_t  *l;
    glm_tensor_t   t;
    unsigned       crc;
    int            scale = strstr(name, "_scale") != NULL;
    char           weight[96];

    snprintf(weight, sizeof(weight), "%.*s", (int) strlen(name) - (scale ? 6 : 0), name);
    if (glm_config_load(&cfg, dir, NULL) != 0 || glm_loader_open(&l, dir, &cfg, 0, NULL) != 0
        || glm_loader_tensor(l, weight, &t, NULL) != 0) bail_out("cannot read what was written");
    crc = (unsigned) (scale ? crc32_z(0, (const uint8_t *) t.scale, t.scale_size)
                            : crc32_z(0, t.data, t.size));
    glm_loader_close(l);
    return crc;
}

static void
check_checksums(void)
{
    static const char  last[] = "final_layernorm.bias", scale[] = DENSE "_scale";
    form_t             f = all(4, 0);
    char               meta[256], index[4096];
    unsigned           crc, crc_scale;

    write_model(&f);
    crc = crc_of(last);
    crc_scale = crc_of(scale);
    snprintf(meta, sizeof(meta), "{\"format\": \"pt\", \"crc32.%s\": \"%08x\", \"crc32.%s\": "
        "\"%08X\"}", last, crc, scale, crc_scale);
    f.meta = meta;
    write_model(&f);
    check_load(NULL, NULL, "right checksums");
    damage(1, 0);
    check_load(last, "model.safetensors: tensor final_layernorm.bias is damaged", "a flipped bit");
    snprintf(meta, sizeof(meta), "{\"crc32.%s\": \"%08x\"}", scale, crc_scale ^ 1);
    write_model(&f);
    check_load(scale, "is damaged", "a wrong checksum of scales");
    snprintf(meta, sizeof(meta), "{\"crc32.%s\": \"0x1234\"}", last);
    write_model(&f);
    check_load(last, "8 hexadecimal digits", "no checksum");
    snprintf(meta, sizeof(meta), "{\"crc32.layers.2.x\": \"%08x\"}", crc);
    write_model(&f);
    check_load("layers.2.x", "not here", "of no tensor");

    f.meta = NULL;                              /* in the index */
    write_model(&f);
    {
        FILE  *out = fopen(in_dir("model.safetensors.index.json"), "w");
        int    n = snprintf(index, sizeof(index), "{\"metadata\": {\"crc32.%s\": \"%08x\"}, "
                            "\"weight_map\": {", last, crc);

        for (int l = 0; l < LAYERS; l++) {
            for (int i = 0; i < NLAYER; i++) {
                n += snprintf(index + n, sizeof(index) - (size_t) n, "\"layers.%d.%s\": "
                    "\"model.safetensors\", ", l, tensors[i].name);
                if (i % 2 || i == 0 || i == 6) continue;
                n += snprintf(index + n, sizeof(index) - (size_t) n, "\"layers.%d.%s_scale\": "
                    "\"model.safetensors\", ", l, tensors[i].name);
            }
        }
        for (int i = NLAYER; i < NTENSORS; i++) {
            n += snprintf(index + n, sizeof(index) - (size_t) n, "\"%s\": \"model.safetensors\"%s",
                tensors[i].name, i + 1 < NTENSORS ? ", " : "}}");
        }
        if (out == NULL || fwrite(index, (size_t) n, 1, out) != 1 || fclose(out) != 0) {
            bail_out("cannot write the index");
        }
    }
    check_load(NULL, NULL, "a right checksum in the index");
    damage(3, 0);
    check_load(last, "is damaged", "a flipped bit, found by the index");
    unlink(in_dir("model.safetensors.index.json"));
    write_model(&f);
    damage(7, 1);
    check_load("model.safetensors", "the file is cut short", "a file cut short");
}

/* Values by the rule in glm_hash.h, the same in every slice. */
static void
check_dummy_values(void)
{
    glm_config_t   cfg;
    glm_loader_t  *l;
    glm_tensor_t   t;
    uint8_t        b[H / 2], part[8];
    uint16_t       h[H], s[H];
    int            good = 1;

    write_config(", \"quantization\": {\"type\": \"int4\", \"group_size\": 32}");
    if (glm_config_load(&cfg, dir, NULL) != 0 || glm_loader_open(&l, dir, &cfg, 1, NULL) != 0) {
        bail_out("no dummy");
    }
    ok(glm_loader_tensor(l, DENSE, &t, NULL) == 0 && t.type == GLM_T_INT4 && t.groups == 2
        && t.data == NULL && t.fd < 0 && t.size == H * H / 2 && t.scale_size == H * 2 * 2
        && t.seed == 0x16813273u, "a dummy's description, FNV-1a of its name");
    glm_tensor_slice(&t, &(glm_slice_t) { 7, 1, 0, H }, b);
    for (int i = 0; i < H / 2; i++) {
        uint64_t  at = 7 * (H / 2) + (uint64_t) i;

        good &= b[i] == (uint8_t) (glm_hash(t.seed, at / 4) >> at % 4 * 8);
    }
    ok(good, "bytes of a dummy are the hash");
    glm_tensor_slice(&t, &(glm_slice_t) { 7, 1, 10, 16 }, part);
    ok(memcmp(part, b + 5, 8) == 0, "a slice has the whole's bytes");
    good = glm_tensor_scales(&t, &(glm_slice_t) { 7, 1, 0, H }, s) == 2;
    for (int g = 0; g < 2; g++) {
        float  u = (float) (glm_hash(t.seed ^ 0x5ca1eu, 7 * 2 + (uint64_t) g) >> 8) * 0x1p-24f;

        good &= s[g] == glm_float_to_half(fmaf(t.hi - t.lo, u, t.lo)) && s[g] > 0;
    }
    ok(good, "scales of a dummy");
    ok(glm_tensor_scales(&t, &(glm_slice_t) { 7, 1, 32, 16 }, h) == 1 && h[0] == s[1],
        "scales of a slice are those of its groups");
    ok(glm_loader_tensor(l, "word_embeddings.weight", &t, NULL) == 0 && t.type == GLM_T_F16
        && t.groups == 0, "the embedding stays fp16");
    ok(glm_loader_tensor(l, "layers.2.attention.dense.weight", &t, NULL) == GLM_EINVAL
        && glm_loader_tensor(l, "layers.01.attention.dense.weight", &t, NULL) == GLM_EINVAL,
        "names outside the architecture are refused");
    glm_loader_close(l);
}

static void
check_dummy(const char *quantization, const char *told)
{
    static float  one[N * V], many[N * V];
    glm_err_t     err;
    glm_model_t  *m;
    uint64_t      bytes;
    double        size = 0;
    char          more[128];

    snprintf(more, sizeof(more), ", \"quantization\": {%s}", quantization);
    write_config(more);
    m = load(1, 1, NULL, 1, &err);
    ok(m != NULL && strcmp(glm_model_weights(m, &bytes), told) == 0, "dummy %s %s", told, err.text);
    glm_model_free(m);
    (void) logits_of(1, 1, NULL, 1, 1, one);
    for (int i = 0; i < N * V; i++) size += one[i] * one[i] / (N * V);
    ok(size > 0.5 && size < 16, "logits of standard deviation %.2f", sqrt(size));
    for (int tp = 2; tp <= 4; tp *= 2) {
        (void) logits_of(tp, tp, NULL, 1, 3, many);
        ok(max_diff(one, many, N * V) < 1e-4, "the same model on %d ranks", tp);
    }
}

/* Parts of 24 columns are no multiple of 16; as fp16 they are possible. */
static void
check_cut(void)
{
    FILE         *f = fopen(in_dir("config.json"), "w");
    glm_err_t     err;
    glm_model_t  *m;

    if (f == NULL || fprintf(f, "{\"num_layers\": 1, \"hidden_size\": 64, \"inner_hidden_size\": 96, "
        "\"num_attention_heads\": 4, \"vocab_size\": 64, \"max_sequence_length\": 64, "
        "\"quantization\": {\"type\": \"int8\"}}") < 0 || fclose(f) != 0) bail_out("config.json");
    m = load(4, 4, NULL, 1, &err);
    ok(m == NULL && strstr(err.text, "degree 4") && strstr(err.text, "dense_4h_to_h.weight has 24 "
        "columns a rank"), "%s", err.text);
    m = load(2, 2, NULL, 1, &err);
    ok(m != NULL, "parts of 48 are %s", err.text);
    glm_model_free(m);
}

int
main(void)
{
    if (mkdtemp(dir) == NULL) bail_out("mkdtemp() failed");
    check_forms();
    check_scales();
    check_record();
    check_fingerprint();
    check_checksums();
    check_dummy_values();
    check_dummy("\"type\": \"int8\"", "int8");
    check_dummy("\"type\": \"int4\", \"group_size\": 32", "int4-g32");
    check_cut();
    unlink(in_dir("config.json"));
    unlink(in_dir("model.safetensors"));
    rmdir(dir);
    return tap_done();
}
