/*
 * float64: the output of each of two layers, and logits, against a computation in
 * double of the same dummy weights: a bidirectional context and 64 rows behind it, in
 * steps of 64, 8 and 1.  On a card the width is GLM-130B's (float64 12288 96 32768),
 * with every weight type and KV, and with loud norms and biases as trained models
 * have.  Would break: a sum in too few bits, an fp16 that overflows, a row that
 * depends on its company.
 */
#include "float64_util.h"
#ifdef GLM_TEST_CUDA
#include "model_cuda.h"
#endif

#define VOCAB  1024
#define FAR    1900               /* position of the first row: angles with few bits */

/*
 * Relative norms of a row, ||out - ref|| / ||ref||, for each layer that it went through.
 * In fp16 what a matrix reads was rounded by 2.8e-4 rms at most, some times a layer, and
 * int8 keys and values to 1/254 of the largest of a head.
 */
#define TOLERANCE_F32      1e-5
#define TOLERANCE_F16      1e-3
#define TOLERANCE_KV_INT8  4e-3
#define TOLERANCE_LOUD     2      /* times that: loud columns carry most of a row's error */

static const struct {
    const char  *name, *quant;    /* of config.json; "" fp16 */
    int          loud, kv_int8;   /* int8 KV: after the same with fp16, whose reference
                                     it shares */
} runs[] = {
    { "fp16", "", LOUD_NONE, 0 },
    { "fp16, beyond fp16", "", LOUD_BEYOND, 0 },
    { "int8", "{\"type\": \"int8\"}", LOUD_NONE, 0 },
    { "int4-g128", "{\"type\": \"int4\", \"group_size\": 128}", LOUD_NONE, 0 },
    { "int4-g128, int8 KV", "{\"type\": \"int4\", \"group_size\": 128}", LOUD_NONE, 1 },
    { "int4-g128, loud", "{\"type\": \"int4\", \"group_size\": 128}", LOUD_TRAINED, 0 },
    { "int4-g128, loud, int8 KV", "{\"type\": \"int4\", \"group_size\": 128}", LOUD_TRAINED, 1 },
};

static char          dir[256];
static int32_t       pages[TOKENS / GLM_KV_PAGE];
static glm_config_t  cfg;

static void
write_config(const char *quant)
{
    char   path[300];
    FILE  *f;

    snprintf(path, sizeof(path), "%s/config.json", dir);
    f = fopen(path, "w");
    fprintf(f, "{\"name\": \"dummy\", \"num_layers\": 2, \"hidden_size\": %d, "
        "\"inner_hidden_size\": %d, \"num_attention_heads\": %d, \"vocab_size\": %d, "
        "\"max_sequence_length\": %d, \"layernorm_order\": \"post\", \"layernorm_epsilon\": 1e-5"
        "%s%s, \"special_tokens\": {\"[MASK]\": 1008, \"[gMASK]\": 1009, \"[sMASK]\": 1010, "
        "\"eod\": 1011, \"sop\": 1012, \"eop\": 1013, \"ENC\": 1014, \"dBLOCK\": 1015, \"eos\": 2}, "
        "\"end_tokens\": [1013, 2]}", hidden, inner, heads, VOCAB, MAX_SEQ,
        quant[0] ? ", \"quantization\": " : "", quant);
    fclose(f);
}

/* ---- the model ---- */

static glm_model_t *
open_model(int kv_int8)
{
    glm_model_opts_t  o = { .backend = MODEL_BACKEND, .dir = dir, .dummy = 1, .tp = 1,
                            .kv_pages = TOKENS / GLM_KV_PAGE, .max_rows = ROWS,
                            .kv_int8 = kv_int8, .head = GLM_HEAD_F16 };
    glm_err_t         err = { "" };
    glm_model_t      *m;

    if (glm_model_load(&m, &o, &err) != 0) bail_out(err.text);
    return m;
}

#ifdef GLM_TEST_CUDA

static int
put_vector(glm_cuda_model_t *m, const char *name, void *dst)
{
    int        n, rc;
    uint16_t  *h = vector(name, &n);

    rc = glm_gpu_copy(m->gpu, dst, h, (size_t) n * 2, m->stream);
    if (rc == 0) rc = glm_cuda_sync(m);
    free(h);
    return rc;
}

/* Norms, and the biases that are loud in some run, as vector() has them now. */
static void
put_loud(glm_model_t *model)
{
    static const char *const  norms[2] = { "input_layernorm", "post_attention_layernorm" };
    static const struct { const char *name; int at; } biases[3] = {
        { "attention.dense", GLM_CUDA_DENSE }, { "mlp.dense_h_to_4h", GLM_CUDA_UP },
        { "mlp.dense_4h_to_h", GLM_CUDA_DOWN }
    };
    glm_cuda_model_t         *m = (glm_cuda_model_t *) model;
    char                      name[128];
    int                       rc = 0;

    for (int i = 0; i < 2; i++) {
        glm_cuda_layer_t  *l = &m->layer[i];

        for (int k = 0; k < 2; k++) {
            snprintf(name, sizeof(name), "layers.%d.%s.weight", i, norms[k]);
            rc |= put_vector(m, name, l->ln[k].weight);
            snprintf(name, sizeof(name), "layers.%d.%s.bias", i, norms[k]);
            rc |= put_vector(m, name, l->ln[k].bias);
        }
        for (int k = 0; k < 3; k++) {
            snprintf(name, sizeof(name), "layers.%d.%s.bias", i, biases[k].name);
            rc |= put_vector(m, name, l->bias[biases[k].at]);
        }
    }
    rc |= put_vector(m, "final_layernorm.weight", m->final.weight);
    rc |= put_vector(m, "final_layernorm.bias", m->final.bias);
    if (rc != 0) bail_out("loud vectors cannot be copied");
}

#else

static void
put_loud(glm_model_t *model)
{
    (void) model;
}

#endif

typedef struct {
    float  *x[2];                 /* [TOKENS][hidden] of each layer */
    int     next[2];              /* row that it tells next */
} seen_t;

static void
on_layer(void *arg, int i, const float *x, int nrows)
{
    seen_t  *s = arg;

    memcpy(s->x[i] + (size_t) (s->next[i] * hidden), x,
        (size_t) (nrows * hidden) * sizeof(*x));
    s->next[i] += nrows;
}

/* ---- comparisons ---- */

/* Worst ||out - ref|| / ||ref|| of the rows from `first` on, over the loud elements or
 * the others; NaN and infinity are what they are. */
static double
distance(const float *got, const double *want, int width, int first, int last, int of_loud)
{
    double  worst = 0;

    for (int r = first; r < last; r++) {
        double  d = 0, all = 0;

        for (int i = 0; i < width; i++) {
            double  w = want[r * width + i], e = (double) got[r * width + i] - w;

            if ((width == hidden && loud_at(i)) != of_loud) continue;
            d += e * e;
            all += w * w;
        }
        d = all > 0 ? sqrt(d / all) : 0;
        if (!(d <= worst)) worst = d;
    }
    return worst;
}

static void
compare(const float *got, const double *want, int width, double most, const char *what)
{
    double  context = distance(got, want, width, 0, CONTEXT, 0);
    double  rows = distance(got, want, width, CONTEXT, TOKENS, 0);
    double  outliers = distance(got, want, width, 0, TOKENS, 1);

    ok(context < most && rows < most && outliers < most, "%s: context %.1e, rows %.1e, loud "
        "elements %.1e from float64 (%.0e)", what, context, rows, outliers, most);
}

static double
tolerance(int kv_int8, int layers)
{
    double  most = !model_cuda ? TOLERANCE_F32 : kv_int8 ? TOLERANCE_KV_INT8 : TOLERANCE_F16;

    return layers * most * (loud != LOUD_NONE ? TOLERANCE_LOUD : 1);
}

/* Without a trace graphs run; and the rows in smaller steps. */
static void
check_steps(glm_model_t *m, pass_t p, const float *logits, const char *what)
{
    size_t  n = (size_t) TOKENS * VOCAB * sizeof(float);
    float  *other = malloc(n);
    int     differ = 0;

    glm_model_trace(m, NULL, NULL);
    for (p.step = ROWS; p.step > 0; p.step /= 8) {
        memset(other, 0xff, n);
        differ += model_pass(m, &p, other) != 0 || memcmp(other, logits, n) != 0;
    }
    ok(differ == 0, "%s: the same bits in steps of 64, 8 and 1 rows", what);
    free(other);
}

static void
check(int kv_int8, const char *name)
{
    glm_model_t  *m = open_model(kv_int8);
    seen_t        s = { { NULL, NULL }, { 0, 0 } };
    pass_t        p = { token, position, pages, TOKENS, CONTEXT, 0, ROWS };
    float        *logits = calloc((size_t) TOKENS * VOCAB, sizeof(float));
    char          what[240];

    if (loud != LOUD_NONE) put_loud(m);
    for (int i = 0; i < 2; i++) s.x[i] = calloc((size_t) (TOKENS * hidden), sizeof(float));
    glm_model_trace(m, on_layer, &s);
    if (ok(model_pass(m, &p, logits) == 0 && s.next[1] == TOKENS, "%s: computed", name)) {
        for (int i = 0; i < 2; i++) {
            snprintf(what, sizeof(what), "%s, layer %d", name, i);
            compare(s.x[i], ref[i], hidden, tolerance(kv_int8, i + 1), what);
        }
        snprintf(what, sizeof(what), "%s, logits", name);
        compare(logits, ref[2], VOCAB, tolerance(kv_int8, 2), what);
        check_steps(m, p, logits, name);
    }
    for (int i = 0; i < 2; i++) free(s.x[i]);
    free(logits);
    glm_model_free(m);
}

static void
open_reference(const char *quant)
{
    glm_err_t  err = { "" };

    glm_loader_close(loader);
    write_config(quant);
    if (glm_config_load(&cfg, dir, &err) != 0
        || glm_loader_open(&loader, dir, &cfg, 1, &err) != 0) bail_out(err.text);
}

static void
check_run(int i, char **archs)
{
    char  name[200];

    if (archs[0] == NULL) {
        check(runs[i].kv_int8, runs[i].name);
        return;
    }
    for (int k = 0; archs[k] != NULL; k++) {
        setenv("GLM_CUDA_ARCH", archs[k], 1);
        snprintf(name, sizeof(name), "sm_%s, %s", archs[k], runs[i].name);
        check(runs[i].kv_int8, name);
    }
}

static void
start(int argc, char **argv)
{
    glm_err_t  err = { "" };

    if (argc > 3) {
        hidden = atoi(argv[1]);
        heads = atoi(argv[2]);
        inner = atoi(argv[3]);
    }
    if (argc == 2 || argc == 3 || hidden < 256 || heads < 1 || inner < 256) {
        bail_out("usage: float64 [hidden heads inner [arch ..]]");
    }
    if (glm_model_backend(MODEL_BACKEND, &err) != 0) bail_out(err.text);
    snprintf(dir, sizeof(dir), "/tmp/glm-float64.XXXXXX");
    if (mkdtemp(dir) == NULL) bail_out("no directory for a model");
    if (glm_comm_new(&team, 1, glm_comm_cores(), &err) != 0) bail_out(err.text);
    shuffle_pages(pages, TOKENS / GLM_KV_PAGE, 5);
    for (int i = 0; i < TOKENS; i++) {
        token[i] = (i * 37 + 11) % 1000;
        position[i] = i < CONTEXT ? i : FAR + i - CONTEXT;
    }
}

int
main(int argc, char **argv)
{
    char  path[300];

    start(argc, argv);
    for (int i = 0; i < (int) (sizeof(runs) / sizeof(runs[0])); i++) {
        /* the CPU's vectors, keys and values are as they are */
        if (!model_cuda && (runs[i].loud || runs[i].kv_int8)) continue;
        loud = runs[i].loud;
        open_reference(runs[i].quant);
        if (!runs[i].kv_int8) reference();
        check_run(i, argv + (argc < 4 ? argc : 4));
    }
    for (int i = 0; i < 3; i++) free(ref[i]);
    glm_loader_close(loader);
    glm_comm_free(team);
    snprintf(path, sizeof(path), "%s/config.json", dir);
    unlink(path);
    rmdir(dir);
    return tap_done();
}
