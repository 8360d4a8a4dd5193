/*
 * quant: int8 and int4 as the original makes them.  What would break: weights that
 * are one step off, scales of the wrong columns, a packing that no one else reads.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../../tools/convert/convert.h"
#include "../../tools/convert/half.h"
#include "quant.h"
#include "golden.h"
#include "digest.h"
#include "safetensors.h"
#include "tap.h"

static char  top[] = "/tmp/glm-quant.XXXXXX";


static uint16_t
half(float x)
{
    int  fits = 1;

    return cv_half(x, &fits);
}


/* The q-th integer of a row. */
static int
integer(glm_ttype_t type, const uint8_t *row, int64_t c)
{
    if (type == GLM_T_INT8) return (int8_t) row[c];
    return (int8_t) (c % 2 ? row[c / 2] << 4 : row[c / 2]) >> 4;
}


/* ---- one operation at a time, as the reference tells it ---- */

static int
plain_q(uint16_t w, uint16_t scale, int m)
{
    float  x;

    if (scale == 0) return 0;
    x = cv_float_of_half(w) / cv_float_of_half(scale);
    if (fabsf(x) < 60000) x = cv_float_of_half(half(x));
    x = rintf(x);
    return (int) (x > (float) m ? (float) m : x < (float) -m ? (float) -m : x);
}


static int
same_as_plain(const glm_quantize_t *z, const uint16_t *w, const uint8_t *q, const uint16_t *scale)
{
    int64_t   r, c, g, bytes = glm_quant_row_bytes(z->type, z->cols);
    int       m = z->type == GLM_T_INT4 ? 7 : 127;
    float     most;
    uint16_t  s;

    for (r = 0; r < z->rows; r++) {
        for (g = 0; g < z->cols / z->group; g++) {
            const uint16_t  *x = w + r * z->cols + g * z->group;

            for (most = 0, c = 0; c < z->group; c++) most = fmaxf(most, fabsf(cv_float_of_half(x[c])));
            s = half(most / (float) m);
            if (scale[r * (z->cols / z->group) + g] != s) return 0;
            for (c = 0; c < z->group; c++) {
                if (integer(z->type, q + r * bytes, g * z->group + c) != plain_q(x[c], s, m)) return 0;
            }
        }
    }
    return 1;
}


/* Weights of all sizes: small ones give subnormal scales, or none. */
static void
fill(uint16_t *w, int64_t n, int64_t cols)
{
    uint32_t  u = 1;
    int64_t   i;

    for (i = 0; i < n; i++) {
        u = u * 1664525 + 1013904223;
        w[i] = half(ldexpf((float) (int32_t) u, -34 - (int) (i / cols) % 24));
    }
}


static void
test_arithmetic(void)
{
    enum { ROWS = 48, COLS = 1536 };
    static uint16_t           w[ROWS * COLS], in_place[ROWS * COLS], scale[ROWS * COLS / 32];
    static uint8_t            q[ROWS * COLS];
    static const glm_ttype_t  types[] = { GLM_T_INT8, GLM_T_INT4 };
    static const int64_t      groups[] = { COLS, COLS / 2, 128, 32 };
    int64_t                   row, col;

    fill(w, ROWS * COLS, COLS);
    memset(w + 3 * COLS, 0, COLS * 2);
    for (int t = 0; t < 2; t++) {
        for (int g = 0; g < 4; g++) {
            glm_quantize_t  z = { types[t], ROWS, COLS, groups[g] };
            size_t      bytes = (size_t) (ROWS * glm_quant_row_bytes(types[t], COLS));

            ok(glm_quantize(&z, w, q, scale, &row, &col) == 0 && same_as_plain(&z, w, q, scale),
               "int%d, groups of %d, as one operation at a time", t ? 4 : 8, (int) groups[g]);
            memcpy(in_place, w, sizeof(w));
            glm_quantize(&z, in_place, (uint8_t *) in_place, scale, &row, &col);
            ok(memcmp(in_place, q, bytes) == 0, "and in place");
        }
    }
    ok(scale[3 * COLS / 32] == 0 && q[3 * COLS / 2] == 0, "a row of zeros has no scale and no values");
    for (int bad = 0; bad < 2; bad++) {
        glm_quantize_t  z = { GLM_T_INT8, ROWS, COLS, 128 };

        w[5 * COLS + 700] = bad ? 0xfc00 : 0x7e00;
        ok(glm_quantize(&z, w, q, scale, &row, &col) == -1 && row == 5 && col == 700, "%s is found",
           bad ? "infinity" : "nan");
    }
}


static void
test_ties(void)
{
    /* scale 1: halves go to the even side, and so does what fp16 makes a half */
    static const float  x[8] = { 127, 0.5f, 1.5f, -2.5f, 63.5f, -64.5f, 126.5f, -127 };
    static const int    want[8] = { 127, 0, 2, -2, 64, -64, 126, -127 };
    uint16_t            w[8], scale;
    uint8_t             q[8];
    int64_t             row, col;
    glm_quantize_t          z = { GLM_T_INT8, 1, 8, 8 };
    int                 same = 1;

    for (int i = 0; i < 8; i++) w[i] = half(x[i]);
    glm_quantize(&z, w, q, &scale, &row, &col);
    for (int i = 0; i < 8; i++) same &= (int8_t) q[i] == want[i];
    ok(scale == half(1) && same, "halves to even");
    z.type = GLM_T_INT4;
    for (int i = 0; i < 8; i++) w[i] = half((float) (i ? -i : 7));
    glm_quantize(&z, w, q, &scale, &row, &col);
    ok(q[0] == 0x7f && q[1] == 0xed && q[2] == 0xcb && q[3] == 0xa9, "the even column is the high nibble");
}


/* ---- what groups are good for ---- */

/* Squared error of a weight, groups of so many columns. */
static double
weight_error(const uint16_t *w, int64_t rows, int64_t cols, int64_t group)
{
    glm_quantize_t  z = { GLM_T_INT4, rows, cols, group };
    uint16_t       *scale = malloc((size_t) (rows * cols / group) * 2);
    uint8_t        *q = malloc((size_t) (rows * cols / 2));
    int64_t         r, c;
    double          sum = 0, d;

    glm_quantize(&z, w, q, scale, &r, &c);
    for (r = 0; r < rows; r++) {
        for (c = 0; c < cols; c++) {
            d = (double) (cv_float_of_half(w[r * cols + c])
                          - (float) integer(GLM_T_INT4, q + r * (cols / 2), c)
                            * cv_float_of_half(scale[(r * cols + c) / group]));
            sum += d * d;
        }
    }
    free(q);
    free(scale);
    return sum;
}


/* A trained model's weights, each kind over all layers. */
static void
test_groups(void)
{
    static const char *const  kinds[] = { "attention.query_key_value", "attention.dense",
                                          "mlp.dense_h_to_4h", "mlp.dense_4h_to_h" };
    const glm_stored_t       *t;
    glm_st_reader_t          *r = NULL;
    glm_err_t                 err = { "" };
    double                    e[3];
    char                      name[80];

    if (!ok(glm_st_open(&r, "models/demo", &err) == 0, "the demo model %s", err.text)) return;
    for (int kind = 0; kind < 4; kind++) {
        memset(e, 0, sizeof(e));
        for (int layer = 0; ; layer++) {
            snprintf(name, sizeof(name), "layers.%d.%s.weight", layer, kinds[kind]);
            if ((t = glm_st_find(r, name)) == NULL) break;
            e[0] += weight_error(t->data, t->dim[0], t->dim[1], t->dim[1]);
            e[1] += weight_error(t->data, t->dim[0], t->dim[1], 128);
            e[2] += weight_error(t->data, t->dim[0], t->dim[1], 32);
        }
        ok(e[1] <= 0.87 * e[0] && e[2] <= 0.62 * e[0],
           "%s: groups of 128 have %.3f, of 32 %.3f of the squared error of rows", kinds[kind],
           e[1] / e[0], e[2] / e[0]);
    }
    glm_st_close(r);
}


/* ---- the original's own numbers ---- */

/* Where row r, column c of a rank's part is in the whole. */
static void
place(const cv_item_t *it, int ranks, int rank, int64_t *r, int64_t *c)
{
    int64_t  half_rows = it->dim[0] / 2, n = it->dim[0] / ranks;

    if (it->cut == CV_ROWS) *r += rank * n;
    if (it->cut == CV_COLS) *c += rank * it->dim[1] / ranks;
    if (it->cut == CV_GLU) *r = *r < n / 2 ? rank * n / 2 + *r : half_rows + rank * n / 2 + (*r - n / 2);
}


typedef struct {
    cv_item_t            item;
    glm_ttype_t          type;
    int                  ranks, rank;
    const glm_stored_t  *q, *scale;
} weight_t;


static int
q_at(const weight_t *w, int64_t r, int64_t c, uint16_t *scale)
{
    int64_t         bytes = glm_quant_row_bytes(w->type, w->item.dim[1]), groups = w->scale->dim[1];
    const uint16_t  *s = w->scale->data;

    place(&w->item, w->ranks, w->rank, &r, &c);
    *scale = s[r * groups + c * groups / w->item.dim[1]];
    return integer(w->type, (const uint8_t *) w->q->data + r * bytes, c);
}


static float
dequantised(const weight_t *w, int64_t r, int64_t c)
{
    uint16_t  s;
    int       q = q_at(w, r, c, &s);

    return cv_float_of_half(half((float) q * cv_float_of_half(s)));
}


/* Sums in the golden have seven digits. */
static int
sums_agree(const weight_t *w, const json_t *g)
{
    int64_t  dim[2];
    double   sum = 0, abs_sum = 0;

    cv_part_dims(&w->item, w->ranks, dim);
    for (int64_t r = 0; r < dim[0]; r++) {
        for (int64_t c = 0; c < dim[1]; c++) {
            sum += (double) dequantised(w, r, c);
            abs_sum += fabs((double) dequantised(w, r, c));
        }
    }
    return fabs(sum - golden_num(g, "dequantized_sum")) < 2e-5 * fabs(sum) + 1e-3
           && fabs(abs_sum / golden_num(g, "dequantized_abs_sum") - 1) < 1e-6;
}


static int
samples_agree(const weight_t *w, const json_t *g)
{
    const json_t  *v, *row, *values;
    size_t         i, k;
    uint16_t       s;
    int            q, byte;

    json_array_foreach(json_object_get(g, "scale"), i, v) {
        q_at(w, json_integer_value(json_array_get(v, 0)), 0, &s);
        if (fabs((double) cv_float_of_half(s) / json_number_value(json_array_get(v, 1)) - 1) > 1e-6) return 0;
    }
    json_array_foreach(json_object_get(g, "packed"), i, v) {
        row = json_array_get(v, 0);
        json_array_foreach(json_array_get(v, 1), k, values) {
            q = q_at(w, json_integer_value(row), (int64_t) (w->type == GLM_T_INT4 ? 2 * k : k), &s);
            byte = q & 0xff;
            if (w->type == GLM_T_INT4) {
                byte = (q * 16 | (q_at(w, json_integer_value(row), (int64_t) (2 * k + 1), &s) & 15)) & 0xff;
            }
            if (byte != (json_integer_value(values) & 0xff)) return 0;
        }
    }
    json_array_foreach(json_object_get(g, "dequantized_fp16"), i, v) {
        row = json_array_get(v, 0);
        json_array_foreach(json_array_get(v, 1), k, values) {
            if ((double) dequantised(w, json_integer_value(row), (int64_t) k) != json_number_value(values)) return 0;
        }
    }
    return 1;
}


static int
find_weight(weight_t *w, const glm_st_reader_t *r, const glm_config_t *cfg, const char *name)
{
    char    scale[200];
    size_t  i;

    for (i = 0; i < cv_plan_count(cfg); i++) {
        cv_plan_at(cfg, i, &w->item);
        if (strcmp(w->item.name, name) == 0) break;
    }
    snprintf(scale, sizeof(scale), "%s_scale", name);
    w->q = glm_st_find(r, name);
    w->scale = glm_st_find(r, scale);
    return i < cv_plan_count(cfg) && w->q && w->scale && w->scale->ndim == 2;
}


static int
loads(const char *dir, glm_err_t *err)
{
    static glm_config_t  cfg;
    glm_loader_t        *l = NULL;
    glm_digest_t        *d = NULL;
    int                  rc = glm_config_load(&cfg, dir, err);

    if (rc == 0) rc = glm_loader_open(&l, dir, &cfg, 0, err);
    if (rc == 0) rc = glm_loader_check(l, err);
    if (rc == 0) rc = glm_digest_new(&d, l, err);
    if (rc == 0) rc = glm_digest_mapped(d, err);
    glm_digest_free(d);
    glm_loader_close(l);
    return rc == 0 && cfg.recorded;
}


static void
test_variant(const json_t *v)
{
    const json_t     *g;
    const char       *name = json_string_value(json_object_get(v, "variant"));
    int               bits = (int) golden_num(v, "bits"), ranks = name[7] - '0';
    char              dst[128], src[128];
    cv_options_t      opt = {
        .src = src, .dst = dst, .config = "t/data/glm-mini-random/config.json", .quiet = 1,
        .shard_bytes = CV_SHARD_BYTES,
        .quant = { .on = 1, .choice = { bits == 8 ? GLM_T_INT8 : GLM_T_INT4, 0 }, .ranks = ranks },
    };
    glm_st_reader_t  *r = NULL;
    glm_config_t      cfg;
    glm_err_t         err = { "" };
    size_t            i;

    snprintf(dst, sizeof(dst), "%s/%s", top, name);
    snprintf(src, sizeof(src), "t/data/glm-mini-random/tp4");
    if (!ok(glm_config_load_file(&cfg, opt.config, &err) == 0 && cv_convert(&opt, &err) == 0
            && glm_st_open(&r, dst, &err) == 0, "%s is made %s", name, err.text))
    {
        return;
    }
    ok(loads(dst, &err), "the engine's loader takes it %s", err.text);
    json_array_foreach(json_object_get(v, "weights"), i, g) {
        weight_t     w = { .ranks = ranks, .type = opt.quant.choice.type };
        const char  *tensor = json_string_value(json_object_get(g, "tensor"));

        w.rank = (int) golden_num(g, "rank");
        ok(find_weight(&w, r, &cfg, tensor + strlen(CV_PREFIX)) && samples_agree(&w, g)
           && sums_agree(&w, g), "%s, rank %d: %s", name, w.rank, tensor);
    }
    glm_st_close(r);
}


int
main(void)
{
    json_t        *all = golden_load("goldens/glm-mini-random/quantized.json",
                                     "reference/goldens/glm-mini-random/quantized.json");
    const json_t  *v;
    char           cmd[64];
    size_t         i;

    if (mkdtemp(top) == NULL) bail_out("mkdtemp() failed");
    test_arithmetic();
    test_ties();
    test_groups();
    if (!ok(json_array_size(all) == 4, "goldens are there")) return tap_done();
    json_array_foreach(all, i, v) test_variant(v);
    json_decref(all);
    snprintf(cmd, sizeof(cmd), "rm -rf %s", top);
    return system(cmd) == 0 ? tap_done() : 1;
}
