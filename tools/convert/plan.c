/*
 * plan: the table of GLM-130B's tensors.
 */
#include <stdio.h>

#include "plan.h"
#include "quant.h"

/* Sizes of a shape, in terms of the configuration. */
enum { ONE, V, H, H3, I, I2 };

typedef struct {
    const char  *name;
    cv_cut_t     cut;
    int          rows, cols;
} cv_row_t;

static const cv_row_t  cv_layer[] = {
    { "input_layernorm.weight",             CV_COPY, H,  ONE },
    { "input_layernorm.bias",               CV_COPY, H,  ONE },
    { "attention.query_key_value.weight",   CV_ROWS, H3, H   },
    { "attention.query_key_value.bias",     CV_ROWS, H3, ONE },
    { "attention.dense.weight",             CV_COLS, H,  H   },
    { "attention.dense.bias",               CV_COPY, H,  ONE },
    { "post_attention_layernorm.weight",    CV_COPY, H,  ONE },
    { "post_attention_layernorm.bias",      CV_COPY, H,  ONE },
    { "mlp.dense_h_to_4h.weight",           CV_GLU,  I2, H   },
    { "mlp.dense_h_to_4h.bias",             CV_GLU,  I2, ONE },
    { "mlp.dense_4h_to_h.weight",           CV_COLS, H,  I   },
    { "mlp.dense_4h_to_h.bias",             CV_COPY, H,  ONE },
};

static const cv_row_t  cv_first = { "word_embeddings.weight", CV_ROWS, V, H };
static const cv_row_t  cv_last[] = {
    { "final_layernorm.weight",             CV_COPY, H,  ONE },
    { "final_layernorm.bias",               CV_COPY, H,  ONE },
};

#define CV_PER_LAYER  (sizeof(cv_layer) / sizeof(cv_layer[0]))


static int64_t
cv_size(const glm_config_t *cfg, int which)
{
    switch (which) {
    case V:  return cfg->vocab;
    case H:  return cfg->hidden;
    case H3: return 3 * (int64_t) cfg->hidden;
    case I:  return cfg->inner;
    case I2: return 2 * (int64_t) cfg->inner;
    default: return 1;
    }
}


size_t
cv_plan_count(const glm_config_t *cfg)
{
    return 1 + CV_PER_LAYER * (size_t) cfg->layers + 2;
}


void
cv_plan_at(const glm_config_t *cfg, size_t i, cv_item_t *out)
{
    size_t           body = CV_PER_LAYER * (size_t) cfg->layers;
    const cv_row_t  *row = i == 0 ? &cv_first : i <= body ? &cv_layer[(i - 1) % CV_PER_LAYER]
                                              : &cv_last[i - 1 - body];

    if (i == 0 || i > body) {
        snprintf(out->name, sizeof(out->name), "%s", row->name);

    } else {
        snprintf(out->name, sizeof(out->name), "layers.%zu.%s", (i - 1) / CV_PER_LAYER, row->name);
    }
    out->cut = row->cut;
    out->linear = i > 0 && i <= body && row->cols != ONE;
    out->ndim = row->cols == ONE ? 1 : 2;
    out->dim[0] = cv_size(cfg, row->rows);
    out->dim[1] = cv_size(cfg, row->cols);
}


uint64_t
cv_plan_bytes(const glm_config_t *cfg)
{
    cv_item_t  item;
    uint64_t   layer = 0, ends = 0;
    size_t     i;

    for (i = 0; i < 1 + CV_PER_LAYER; i++) {
        cv_plan_at(cfg, i, &item);
        *(i ? &layer : &ends) += (uint64_t) (item.dim[0] * item.dim[1]) * 2;
    }
    return ends + layer * (uint64_t) cfg->layers + 4 * (uint64_t) cfg->hidden;
}


void
cv_plan_quantised(const cv_item_t *item, glm_ttype_t type, int ranks, cv_item_t *bytes,
    cv_item_t *scale)
{
    *bytes = *item;
    bytes->dim[1] = glm_quant_row_bytes(type, item->dim[1]);
    *scale = *item;
    snprintf(scale->name, sizeof(scale->name), "%.72s_scale", item->name);
    scale->linear = 0;
    scale->ndim = 1;
    scale->dim[1] = item->cut == CV_COLS ? ranks : 1;
}


void
cv_part_dims(const cv_item_t *item, int ranks, int64_t dim[2])
{
    dim[0] = item->dim[0] / (item->cut == CV_ROWS || item->cut == CV_GLU ? ranks : 1);
    dim[1] = item->dim[1] / (item->cut == CV_COLS ? ranks : 1);
}


int
cv_plan_divides(const glm_config_t *cfg, int ranks, glm_err_t *err)
{
    const struct {
        const char  *field;
        int32_t      n;
    } sizes[] = {
        { "num_attention_heads", cfg->heads },
        { "inner_hidden_size", cfg->inner },
        { "vocab_size", cfg->vocab },
    };
    size_t  i;

    for (i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        if (sizes[i].n % ranks != 0) {
            return glm_fail(err, GLM_EFORMAT, "%d rank files, but \"%s\" is %d, which cannot be "
                            "cut into as many parts: is one missing or too many?", ranks,
                            sizes[i].field, sizes[i].n);
        }
    }
    return 0;
}
