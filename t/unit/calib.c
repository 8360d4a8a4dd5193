/*
 * calib: the pass that gives calibration its inputs, against the engine's.  What would
 * break: weights that are quantised for inputs which the model will never have.
 */
#include <stdlib.h>
#include <string.h>

#include "../../tools/convert/calib.h"
#include "model.h"
#include "safetensors.h"
#include "tap.h"

enum { TEXT = 700, WINDOW = 512 };

static int32_t  text[TEXT];
static float   *traced;       /* (WINDOW, hidden) of the last layer */
static int      layers, hidden;


static void
on_layer(void *arg, int layer, const float *x, int nrows)
{
    int  *at = arg;

    if (layer + 1 == layers) {
        memcpy(traced + (size_t) *at * (size_t) hidden, x, (size_t) nrows * (size_t) hidden * sizeof(float));
    }
}


/* The first window through the engine, a few rows at a time. */
static int
run_engine(const glm_config_t *cfg, glm_err_t *err)
{
    glm_model_opts_t   o = { .dir = "models/demo", .tp = 1, .threads = 2, .kv_pages = 40, .max_rows = 8 };
    static glm_row_t   row[8];
    static int32_t     pages[WINDOW / GLM_KV_PAGE];
    glm_sampled_t      out[8];
    glm_model_t       *m;
    int                i, k, rc = glm_model_load(&m, &o, err);

    if (rc != 0) return rc;
    for (i = 0; i < WINDOW / GLM_KV_PAGE; i++) pages[i] = i + 3;
    glm_model_trace(m, on_layer, &i);
    for (i = 0; i < WINDOW && rc == 0; i += 8) {
        for (k = 0; k < 8; k++) {
            row[k] = (glm_row_t) { .position = i + k, .slot = i + k, .pages = pages };
            row[k].token = i + k == 0 ? cfg->gmask : i + k == 1 ? cfg->sop : text[i + k - 2];
        }
        rc = glm_model_step(m, row, 8, out, NULL);
    }
    glm_model_free(m);
    return rc;
}


/* All tensors of the model, unquantised, in the order of the plan. */
static int
take_all(cv_calib_t *c, const glm_config_t *cfg, glm_err_t *err)
{
    const glm_stored_t  *t;
    glm_st_reader_t     *r;
    cv_item_t            item;
    size_t               i;
    int                  rc = glm_st_open(&r, "models/demo", err);

    for (i = 0; i < cv_plan_count(cfg) && rc == 0; i++) {
        cv_plan_at(cfg, i, &item);
        t = glm_st_find(r, item.name);
        rc = t ? cv_calib_take(c, i, t->data, NULL, err) : GLM_ENOENT;
    }
    glm_st_close(r);
    return rc;
}


int
main(void)
{
    static glm_config_t  cfg;
    cv_forms_t           forms = { NULL, 0, { GLM_T_F16, 0 } };
    cv_calib_t          *c = NULL;
    glm_err_t            err = { "" };
    size_t               size;
    float               *x;
    int                  i;

    if (glm_config_load(&cfg, "models/demo", &err) != 0) bail_out("no demo model");
    layers = cfg.layers;
    hidden = cfg.hidden;
    size = WINDOW * (size_t) hidden * sizeof(float);
    traced = malloc(size);
    x = malloc(size);
    for (i = 0; i < TEXT; i++) text[i] = 100 + i * 37 % 5000;
    forms.n = cv_plan_count(&cfg);
    forms.of = calloc(forms.n, sizeof(*forms.of));
    ok(run_engine(&cfg, &err) == 0, "the engine runs a text %s", err.text);
    ok(cv_calib_new(&c, &cfg, &forms, text, TEXT, &err) == 0 && take_all(c, &cfg, &err) == 0,
       "calibration too, layer by layer %s", err.text);
    if (c != NULL) cv_calib_output(c, WINDOW, x);
    ok(c != NULL && memcmp(x, traced, size) == 0, "to the same bits after the last layer");
    cv_calib_free(c);
    cv_forms_free(&forms);
    free(traced);
    free(x);
    return tap_done();
}
