/*
 * form: the choice for each weight, and what config.json says of it.
 */
#include <fnmatch.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "form.h"
#include "quant.h"


int
cv_choice_parse(const char *text, glm_quant_t *out)
{
    if (glm_quant_parse(out, text) != 0) return -1;
    if (out->group == 0) return 0;
    return out->type == GLM_T_INT4 && (out->group == 32 || out->group == 128) ? 0 : -1;
}


static int
cv_choice_same(glm_quant_t a, glm_quant_t b)
{
    return a.type == b.type && a.group == b.group;
}


static glm_quant_t
cv_chosen(const cv_quantise_t *q, const char *name, int *used)
{
    glm_quant_t  c = q->choice;
    int          i;

    for (i = 0; i < q->nexcept; i++) {
        if (fnmatch(q->except[i].pattern, name, 0) != 0) continue;
        c = q->except[i].choice;
        used[i] = 1;
    }
    return c;
}


/* How many scales a row has; a group must divide the columns. */
static int
cv_form_groups(cv_form_t *f, const cv_item_t *item, int32_t ranks, glm_err_t *err)
{
    int64_t  cols = item->dim[1], parts = item->cut == CV_COLS ? ranks : 1, wide;
    char     text[32];

    if (f->choice.type == GLM_T_F16) return 0;
    wide = f->choice.group ? f->choice.group : cols / parts;
    if (f->choice.group ? cols % wide != 0 : cols % parts != 0) {
        return glm_fail(err, GLM_EINVAL, "%s has %lld columns: not a multiple of %lld, which %s "
                        "asks for", item->name, (long long) cols, (long long)
                        (f->choice.group ? wide : parts), f->choice.group
                        ? glm_quant_text(f->choice, text) : "--quant-ranks");
    }
    if (f->choice.type == GLM_T_INT4 && wide % 2 != 0) {
        return glm_fail(err, GLM_EINVAL, "%s: groups of %lld columns cannot be packed in pairs",
                        item->name, (long long) wide);
    }
    f->groups = (int32_t) (cols / wide);
    return 0;
}


static int
cv_form_choose(cv_form_t *f, const cv_item_t *item, const cv_quantise_t *q, const cv_source_t *s,
    int *used, glm_err_t *err)
{
    glm_quant_t  has = { cv_source_quant(s, item), 0 };
    char         text[32];

    if (!item->linear) return 0;
    if (has.type != GLM_T_F16 && q->on) {
        return glm_fail(err, GLM_EINVAL, "%s: %s is %s already; quantise from the fp16 checkpoint, "
                        "or leave --quant out to keep it as it is", pt_path(s->rank[0]), item->name,
                        glm_quant_text(has, text));
    }
    f->given = has.type != GLM_T_F16;
    f->choice = has;
    if (q->on) f->choice = cv_chosen(q, item->name, used);
    return cv_form_groups(f, item, f->given ? s->ranks : q->ranks, err);
}


int
cv_forms_choose(cv_forms_t *f, const cv_quantise_t *q, const cv_source_t *s,
    const glm_config_t *cfg, glm_err_t *err)
{
    cv_item_t  item;
    int        used[CV_MAX_EXCEPT] = { 0 }, i, rc;
    size_t     k, other = 0;

    f->n = cv_plan_count(cfg);
    f->of = calloc(f->n, sizeof(*f->of));
    if (f->of == NULL) return glm_fail(err, GLM_ENOMEM, "no memory for the table of tensors");
    f->most = q->choice;
    for (k = 0; k < f->n; k++) {
        cv_plan_at(cfg, k, &item);
        if ((rc = cv_form_choose(&f->of[k], &item, q, s, used, err)) != 0) return rc;
        if (f->of[k].given && f->most.type == GLM_T_F16) f->most = f->of[k].choice;
    }
    for (k = 0; k < f->n; k++) {
        cv_plan_at(cfg, k, &item);
        other += item.linear && !cv_choice_same(f->of[k].choice, f->most);
    }
    if (other > GLM_MAX_QUANT_TENSORS) {
        return glm_fail(err, GLM_ELIMIT, "%zu weights are exceptions, %d can be recorded", other,
                        GLM_MAX_QUANT_TENSORS);
    }
    for (i = 0; i < q->nexcept; i++) {
        if (used[i]) continue;
        return glm_fail(err, GLM_EINVAL, "--quant-except %s fits no weight that is quantised, such "
                        "as layers.0.attention.dense.weight", q->except[i].pattern);
    }
    return 0;
}


uint64_t
cv_form_bytes(const cv_form_t *f, const cv_item_t *item)
{
    if (f->choice.type == GLM_T_F16) return (uint64_t) (item->dim[0] * item->dim[1] * 2);
    return (uint64_t) (item->dim[0]
                       * (glm_quant_row_bytes(f->choice.type, item->dim[1]) + 2 * f->groups));
}


uint64_t
cv_forms_bytes(const cv_forms_t *f, const glm_config_t *cfg)
{
    cv_item_t  item;
    uint64_t   sum = 0;
    size_t     i;

    for (i = 0; i < f->n; i++) {
        cv_plan_at(cfg, i, &item);
        sum += cv_form_bytes(&f->of[i], &item);
    }
    return sum;
}


void
cv_forms_free(cv_forms_t *f)
{
    free(f->of);
}


/* {"name": "fp16"} of the weights that are not like most; NULL without any. */
static json_t *
cv_forms_except(const cv_forms_t *f, const glm_config_t *cfg)
{
    cv_item_t  item;
    json_t    *all = json_object();
    char       text[32];
    size_t     i;

    for (i = 0; i < f->n; i++) {
        cv_plan_at(cfg, i, &item);
        if (!item.linear || cv_choice_same(f->of[i].choice, f->most)) continue;
        json_object_set_new(all, item.name, json_string(glm_quant_text(f->of[i].choice, text)));
    }
    if (json_object_size(all) > 0) return all;
    json_decref(all);
    return NULL;
}


static json_t *
cv_forms_json(const cv_forms_t *f, const glm_config_t *cfg)
{
    char  text[32];

    return json_pack("{s:s, s:i, s:o*}", "type",
                     glm_quant_text((glm_quant_t) { f->most.type, 0 }, text),
                     "group_size", (int) f->most.group, "tensors", cv_forms_except(f, cfg));
}


char *
cv_forms_config(const cv_forms_t *f, const glm_config_t *cfg, const char *text, size_t len)
{
    json_t  *root = json_loadb(text, len, 0, NULL), *quant = cv_forms_json(f, cfg);
    char    *body = NULL, *out = NULL;

    json_object_del(root, "model_parallel_size");
    json_object_del(root, "quantization");
    if (f->most.type != GLM_T_F16) json_object_set(root, "quantization", quant);
    if (root != NULL && quant != NULL) body = json_dumps(root, JSON_INDENT(1) | JSON_REAL_PRECISION(15));
    if (body == NULL || asprintf(&out, "%s\n", body) < 0) out = NULL;
    free(body);
    json_decref(quant);
    json_decref(root);
    return out;
}
