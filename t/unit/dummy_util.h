/*
 * dummy_util: a small model of dummy weights in a directory of its own, which the tests of
 * the CUDA backend load again and again.  A test begins with dummy_begin() and ends with
 * dummy_end().
 */
#ifndef DUMMY_UTIL_H
#define DUMMY_UTIL_H

#include "model_util.h"

#define VOCAB    1024
#define MAX_SEQ  64
#define TOKENS   40               /* of a sequence: 20 of them context */

static char     dir[256];
static int      max_seq = MAX_SEQ, vocab = VOCAB;
static int32_t  pages[32], token[TOKENS];

static inline void
write_config(int layers, int inner, int head_dim, const char *quant)
{
    char   path[300];
    FILE  *f;

    snprintf(path, sizeof(path), "%s/config.json", dir);
    f = fopen(path, "w");
    fprintf(f, "{\"name\": \"dummy\", \"num_layers\": %d, \"hidden_size\": 256, "
        "\"inner_hidden_size\": %d, \"num_attention_heads\": %d, \"vocab_size\": %d, "
        "\"max_sequence_length\": %d, \"layernorm_order\": \"post\", \"layernorm_epsilon\": 1e-5%s%s, "
        "\"special_tokens\": {\"[MASK]\": 1008, \"[gMASK]\": 1009, \"[sMASK]\": 1010, "
        "\"eod\": 1011, \"sop\": 1012, \"eop\": 1013, \"ENC\": 1014, \"dBLOCK\": 1015, \"eos\": 2}, "
        "\"end_tokens\": [1013, 2]}", layers, inner, 256 / head_dim, vocab, max_seq,
        quant[0] ? ", \"quantization\": " : "", quant);
    fclose(f);
}

static inline int
load(glm_model_t **m, glm_model_opts_t o, glm_err_t *err)
{
    err->text[0] = '\0';
    o.dir = dir;
    o.dummy = 1;
    o.tp = o.tp ? o.tp : 1;
    o.max_rows = o.max_rows ? o.max_rows : 128;
    return glm_model_load(m, &o, err);
}

/* On the card, with a short time-out; what it is asked here it can do. */
static inline glm_model_t *
loaded(void)
{
    glm_model_t  *m;
    glm_err_t     err;

    if (load(&m, (glm_model_opts_t) { .backend = GLM_BACKEND_CUDA, .kv_pages = 8,
                                      .gpu_timeout = 1 }, &err) != 0) bail_out(err.text);
    return m;
}

static inline void
dummy_begin(void)
{
    snprintf(dir, sizeof(dir), "/tmp/glm-cuda.XXXXXX");
    if (mkdtemp(dir) == NULL) bail_out("no directory for a model");
    shuffle_pages(pages, 8, 11);
    for (int i = 0; i < TOKENS; i++) token[i] = (i * 37 + 11) % 1000;
}

static inline void
dummy_end(void)
{
    char  path[300];

    snprintf(path, sizeof(path), "%s/config.json", dir);
    unlink(path);
    rmdir(dir);
}

#endif
