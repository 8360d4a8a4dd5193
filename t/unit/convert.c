/*
 * convert: rounding to fp16, the table of tensors, shards, and the order in
 * which an output directory becomes a model.  What would break: weights that
 * are subtly not the original's, or half a model that passes for a whole one.
 */
#include <dirent.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <jansson.h>

#include "../../tools/convert/convert.h"
#include "../../tools/convert/half.h"
#include "../../tools/convert/plan.h"
#include "../../tools/convert/preset.h"
#include "../../tools/convert/stw.h"
#include "tap.h"

static char  top[] = "/tmp/glm-convert.XXXXXX";


static const char *
in_top(const char *name)
{
    static char  path[2][128];
    static int   turn;

    turn = !turn;
    snprintf(path[turn], sizeof(path[turn]), "%s/%s", top, name);
    return path[turn];
}


static int
exists(const char *name)
{
    return access(in_top(name), F_OK) == 0;
}


static void
touch(const char *name)
{
    FILE  *f = fopen(in_top(name), "w");

    if (f == NULL || fputs("old", f) < 0 || fclose(f) != 0) bail_out("cannot write a test file");
}


/* Entries of a directory, "." and ".." apart; -1 without one. */
static int
entries(const char *name)
{
    DIR  *d = opendir(in_top(name));
    int   n = 0;

    if (d == NULL) return -1;
    while (readdir(d) != NULL) n++;
    closedir(d);
    return n - 2;
}


static void
remove_dir(const char *name)
{
    char            path[400];
    DIR            *d = opendir(in_top(name));
    struct dirent  *e;

    while (d != NULL && (e = readdir(d)) != NULL) {
        snprintf(path, sizeof(path), "%s/%s/%s", top, name, e->d_name);
        unlink(path);
    }
    if (d != NULL) closedir(d);
    rmdir(in_top(name));
}


static float
value(uint32_t half)
{
    int    e = half >> 10 & 31, m = half & 1023;
    float  x = e ? ldexpf((float) (1024 + m), e - 25) : ldexpf((float) m, -24);

    return half & 0x8000 ? -x : x;
}


static int
rounds_to(float x, uint16_t want)
{
    int  fits = 1;

    return cv_half(x, &fits) == want && fits;
}


static int
no_fit(float x)
{
    int  fits = 1;

    cv_half(x, &fits);
    return !fits;
}


static void
test_half(void)
{
    uint32_t  h, bad = 0;
    float     mid;

    for (h = 0; h < 0x10000; h++) {
        if ((h & 0x7c00) == 0x7c00) continue;
        bad += !rounds_to(value(h), (uint16_t) h);
        if ((h & 0x7fff) == 0x7bff) continue;
        mid = (value(h) + value(h + 1)) / 2;            /* exact in fp32 */
        bad += !rounds_to(mid, (uint16_t) (h & 1 ? h + 1 : h));
        bad += !rounds_to(nextafterf(mid, 0), (uint16_t) h);
        bad += !rounds_to(nextafterf(mid, mid * 2), (uint16_t) (h + 1));
    }
    ok(bad == 0, "every fp16, the middle to the next one and both its neighbours round right");
    ok(rounds_to(65519.996f, 0x7bff) && rounds_to(-65519.996f, 0xfbff), "the largest that fits");
    ok(no_fit(65520.0f) && no_fit(-65520.0f) && no_fit(1e30f), "what rounds to infinity does not fit");
    ok(no_fit(INFINITY) && no_fit(-INFINITY) && no_fit(NAN), "nor does infinity or nan");
    ok(rounds_to(0.0f, 0) && rounds_to(-0.0f, 0x8000) && rounds_to(1e-30f, 0), "zeros");
    ok(cv_float_of_bf16(0x3f80) == 1.0f && cv_float_of_bf16(0xc040) == -3.0f, "bf16");
}


static void
test_plan(void)
{
    const char   *text = cv_preset_config("glm-130b");
    glm_config_t  cfg;
    glm_err_t     err = { "" };
    cv_item_t     it;
    int64_t       dim[2], rank = 0;
    size_t        i;

    ok(cv_preset_config("glm") == NULL && text != NULL
       && glm_config_parse(&cfg, text, strlen(text), "preset", &err) == 0, "preset%s", err.text);
    ok(cfg.layers == 70 && cfg.sop == 150004 && cfg.nend_tokens == 2, "its sizes and ids");
    ok(cv_plan_count(&cfg) == 70 * 12 + 3, "number of tensors");
    ok(cv_plan_bytes(&cfg) == 2 * 128697794560ull, "128,697,794,560 parameters");
    for (i = 0; i < cv_plan_count(&cfg); i++) {
        cv_plan_at(&cfg, i, &it);
        cv_part_dims(&it, 8, dim);
        rank += dim[0] * dim[1];
    }
    ok(rank == 16091761664, "16,091,761,664 of them on each of 8 ranks");
    cv_plan_at(&cfg, 1 + 69 * 12 + 10, &it);
    cv_part_dims(&it, 8, dim);
    ok(strcmp(it.name, "layers.69.mlp.dense_4h_to_h.weight") == 0 && it.cut == CV_COLS
       && it.dim[0] == 12288 && it.dim[1] == 32768 && dim[0] == 12288 && dim[1] == 4096,
       "a row-parallel weight");
    cv_plan_at(&cfg, cv_plan_count(&cfg) - 1, &it);
    ok(strcmp(it.name, "final_layernorm.bias") == 0 && it.ndim == 1 && it.cut == CV_COPY, "the last");
    ok(cv_plan_divides(&cfg, 8, &err) == 0 && cv_plan_divides(&cfg, 5, &err) < 0
       && strstr(err.text, "5 rank files") != NULL, "%s", err.text);
}


static void
test_preset_tokenizer(void)
{
    json_t  *t = json_loads(cv_preset_tokenizer, JSON_REJECT_DUPLICATES, NULL);
    int      images = 0, text = 0, mask = 0, byte = 0, last = 0, vocab = 0;

    ok(t != NULL && json_unpack(t, "{s:i,s:i,s:{s:i},s:{s:i,s:i},s:i}", "image_tokens", &images,
                                "num_text_tokens", &text, "special_tokens", "[MASK]", &mask,
                                "byte_tokens", "first_id", &byte, "last_id", &last, "vocab_size",
                                &vocab) == 0, "tokenizer preset is JSON");
    ok(mask == images + text && byte == mask + 8 + 1 + 79 && last == byte + 255
       && vocab == last + 1, "ids follow one another");
    json_decref(t);
}


static const int64_t  shapes[][2] = { { 4, 3 }, { 5, 1 }, { 64, 64 }, { 2, 2 } };
static uint16_t       values[64 * 64 + 4];


static int
write_model(cv_out_t *o, uint64_t shard_bytes, int *shards, glm_err_t *err)
{
    static const char *const  names[] = { "a", "b.bias", "c.weight", "d" };
    cv_journal_t             *j = NULL;
    stw_t                    *w = NULL;
    size_t                    i;
    int                       rc = cv_journal_open(&j, o, "test\n", 0, err);

    if (rc == 0) rc = stw_open(&w, o, j, shard_bytes, 1, err);

    for (i = 0; i < 4 && rc == 0; i++) {
        rc = stw_declare(w, names[i], GLM_F16, i == 1 ? 1 : 2, shapes[i], err);
    }
    for (i = 0; i < 4 && rc == 0; i++) {
        rc = stw_write(w, values + i, (size_t) (shapes[i][0] * shapes[i][1]) * 2, err);
    }
    if (rc == 0) rc = stw_finish(w, err);
    *shards = stw_shards(w);
    stw_close(w);
    cv_journal_close(j);
    if (rc == 0) rc = cv_out_create(o, "config.json", 0, err);
    return rc ? rc : cv_out_write(o, "{}", 2, err);
}


static void
test_shards(uint64_t shard_bytes, int want)
{
    const glm_stored_t  *t;
    glm_st_reader_t     *r = NULL;
    cv_out_t            *o;
    glm_err_t            err = { "" };
    int                  rc, shards = 0;

    rc = cv_out_open(&o, in_top("s"), 0, &err);
    if (rc == 0) rc = write_model(o, shard_bytes, &shards, &err);
    if (rc == 0) rc = cv_out_commit(o, &err);
    cv_out_close(o);
    ok(rc == 0 && shards == want, "shards of %d bytes: %d %s", (int) shard_bytes, shards, err.text);
    ok(entries("s") == want + 2, "%d files and index and config, no other", want);
    rc = glm_st_open(&r, in_top("s"), &err);
    if (!ok(rc == 0 && glm_st_count(r) == 4, "the reader takes them %s", err.text)) return;
    t = glm_st_find(r, "c.weight");
    ok(t && t->ndim == 2 && t->dim[0] == 64 && t->dim[1] == 64
       && memcmp(t->data, values + 2, 64) == 0 && (t->offset % 2) == 0, "values of c.weight");
    t = glm_st_find(r, "b.bias");
    ok(t && t->ndim == 1 && t->dim[0] == 5 && memcmp(t->data, values + 1, 10) == 0, "of b.bias");
    t = glm_st_find(r, "a");
    ok(t && t->offset % 64 == 0 && t->offset >= 64, "values of a file begin at a multiple of 64");
    glm_st_close(r);
    remove_dir("s");
}


static void
test_out(void)
{
    cv_out_t   *o, *second;
    glm_err_t   err = { "" };
    int         shards;

    ok(cv_out_open(&o, in_top("m"), 0, &err) == 0 && write_model(o, 100, &shards, &err) == 0
       && exists("m/config.json.tmp") && !exists("m/config.json")
       && exists("m/model.safetensors.index.json.tmp"), "before the end, other names only");
    ok(cv_out_open(&second, in_top("m"), 0, &err) == GLM_EBUSY
       && strstr(err.text, "another conversion") != NULL, "%s", err.text);
    cv_out_close(o);
    ok(!exists("m"), "without a commit nothing stays, not even the directory");

    mkdir(in_top("m"), 0777);
    touch("m/note.txt");
    touch("m/tokenizer.model");
    touch("m/model-00001-of-00002.safetensors.tmp");
    touch("m/config.json.tmp");
    touch("m/mine.tmp");
    ok(cv_out_open(&o, in_top("m"), 0, NULL) == 0 && entries("m") == 5
       && cv_out_clear(o, NULL) == 0 && entries("m") == 3 && exists("m/mine.tmp"),
       "what a killed conversion left goes away, other files stay");
    cv_out_close(o);
    ok(entries("m") == 3, "a directory that was there stays");

    touch("m/config.json");
    touch("m/old.safetensors");
    err.text[0] = '\0';
    ok(cv_out_open(&o, in_top("m"), 0, &err) < 0 && strstr(err.text, "--force") != NULL, "%s", err.text);
    ok(cv_out_open(&o, in_top("m"), 1, NULL) == 0 && write_model(o, 1 << 20, &shards, NULL) == 0
       && exists("m/old.safetensors"), "replacing leaves the old model until the end");
    ok(cv_out_commit(o, &err) == 0 && !exists("m/old.safetensors") && !exists("m/tokenizer.model")
       && exists("m/note.txt") && exists("m/config.json"), "then its files go, others stay");
    cv_out_close(o);
    ok(entries("m") == 5 && exists("m/config.json"), "closing after the commit removes nothing");
    remove_dir("m");

    err.text[0] = '\0';
    ok(cv_out_open(&o, in_top("a/b"), 0, &err) < 0 && strstr(err.text, "mkdir() failed"), "%s", err.text);
    touch("f");
    err.text[0] = '\0';
    ok(cv_out_open(&o, in_top("f"), 0, &err) < 0 && exists("f"), "DST is a file: %s", err.text);
    unlink(in_top("f"));
}


static int
same_tensors(const char *a, const char *b)
{
    glm_st_reader_t     *x, *y;
    const glm_stored_t  *t, *u;
    size_t               i;
    int                  same;

    if (glm_st_open(&x, a, NULL) != 0) return 0;
    if (glm_st_open(&y, b, NULL) != 0) {
        glm_st_close(x);
        return 0;
    }
    same = glm_st_count(x) == glm_st_count(y);
    for (i = 0; same && i < glm_st_count(x); i++) {
        t = glm_st_at(x, i);
        u = glm_st_find(y, t->name);
        same = u != NULL && t->size == u->size && memcmp(t->data, u->data, t->size) == 0
               && memcmp(t->dim, u->dim, sizeof(t->dim)) == 0;
    }
    glm_st_close(x);
    glm_st_close(y);
    return same;
}


static void
test_convert(void)
{
    volatile sig_atomic_t  stop = 1;
    cv_options_t           opt = {
        .src = "t/data/glm-mini-random/tp2", .config = "t/data/glm-mini-random/config.json",
        .shard_bytes = 500000, .quiet = 1,
    };
    char                   dst[128];
    glm_config_t           cfg;
    glm_err_t              err = { "" };

    snprintf(dst, sizeof(dst), "%s/c", top);
    opt.dst = dst;
    opt.stop = &stop;
    ok(cv_convert(&opt, &err) == GLM_ECANCEL && !exists("c"), "stopped: nothing stays");
    stop = 0;
    err.text[0] = '\0';
    ok(cv_convert(&opt, &err) == 0, "two ranks are converted %s", err.text);
    ok(entries("c") >= 4 && same_tensors(dst, "t/data/glm-mini-random"),
       "to the tensors that one rank gave, in several files");
    ok(glm_config_load(&cfg, dst, &err) == 0 && cfg.layers == 2 && cfg.gmask == 497
       && strcmp(cfg.name, "glm-mini-random") == 0, "with a configuration %s", err.text);
    remove_dir("c");
}


int
main(void)
{
    size_t  i;

    for (i = 0; i < sizeof(values) / 2; i++) values[i] = (uint16_t) (i * 7919);
    if (mkdtemp(top) == NULL) bail_out("mkdtemp() failed");
    test_half();
    test_plan();
    test_preset_tokenizer();
    test_shards(1 << 20, 1);
    test_shards(40, 3);
    test_shards(1, 4);
    test_out();
    test_convert();
    rmdir(top);
    return tap_done();
}
