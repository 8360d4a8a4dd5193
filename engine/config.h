/*
 * config: config.json of a model directory (the original's argument names).
 */
#ifndef GLM_CONFIG_H
#define GLM_CONFIG_H

#include <stddef.h>
#include <stdint.h>

#include "error.h"

#define GLM_MAX_END_TOKENS  8
#define GLM_NO_TOKEN        (-1)

#define GLM_MAX_QUANT_TENSORS  512

/* How the values of a tensor are stored. */
typedef enum {
    GLM_T_F16 = 0,
    GLM_T_INT8,               /* I8 [out, in], scale F16 [out, groups] */
    GLM_T_INT4                /* I8 [out, in/2], even column high nibble */
} glm_ttype_t;

/* A choice; as text "fp16", "int8", "int4-g128". */
typedef struct {
    glm_ttype_t  type;
    int32_t      group;       /* columns a scale covers; 0: not said, the whole
                                 row or as the tensor's scales have it */
} glm_quant_t;

typedef struct {
    char         name[64];    /* "layers.0.attention.dense.weight" */
    glm_quant_t  as;
} glm_quant_tensor_t;

typedef struct {
    char      name[128];      /* "name", or "model" in older files */
    int32_t   layers;         /* L, num_layers */
    int32_t   hidden;         /* H, hidden_size */
    int32_t   inner;          /* I, inner_hidden_size */
    int32_t   heads;          /* A, num_attention_heads */
    int32_t   head_dim;       /* d = H / A, even */
    int32_t   vocab;          /* V, rows of the embedding */
    int32_t   max_seq;        /* max_sequence_length, tokens with sop */
    float     ln_eps;         /* layernorm_epsilon, 1e-5 */

    /*
     * "quantization": {"type": "int4", "group_size": 128, "tensors": {name:
     * "int8", ..}}: the record of what was chosen for the linears of layers.
     * Without it (recorded 0) the tensors alone say what they are.
     */
    int                 recorded;
    glm_quant_t         quant;         /* of all but those listed */
    int32_t             nquant_tensors;
    glm_quant_tensor_t  quant_tensors[GLM_MAX_QUANT_TENSORS];

    /* "special_tokens"; GLM_NO_TOKEN where the model has none */
    int32_t   mask, gmask, smask, eod, sop, eop, enc, dblock, eos;

    int32_t   end_tokens[GLM_MAX_END_TOKENS];
    int32_t   nend_tokens;
} glm_config_t;

/*
 * Reads and checks <dir>/config.json (every size positive and below 2^24,
 * heads divide hidden, head_dim even, ids inside the vocabulary).  The error
 * names the file and the field.
 */
int glm_config_load(glm_config_t *cfg, const char *dir, glm_err_t *err);

/* The same of any file, and of text that is in memory already: where names
   it in messages, and name stays "" when the text has none. */
int glm_config_load_file(glm_config_t *cfg, const char *path, glm_err_t *err);
int glm_config_parse(glm_config_t *cfg, const char *text, size_t len,
    const char *where, glm_err_t *err);

/* Text to a choice; -1 when it is none. */
int glm_quant_parse(glm_quant_t *out, const char *text);
const char *glm_quant_text(glm_quant_t q, char out[32]);    /* out */

/* What is recorded for a linear weight; fp16 without a record. */
glm_quant_t glm_config_quant(const glm_config_t *cfg, const char *name);

#endif
