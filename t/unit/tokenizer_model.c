/*
 * A broken model file or tokenizer_config.json takes the engine down, loads
 * with wrong ids, or is refused without saying which file and why.
 */
#include <sys/stat.h>

#include "tokenizer_util.h"
#include "utf8.h"

#define NPIECES  17

/* A small model: what differs from a good one in a test. */
typedef struct {
    int          extra;         /* pieces behind the good ones */
    const char  *s;             /* piece at index at, if s is not NULL */
    int          at;
    size_t       len;           /* of s; 0: strlen(s) */
    float        score;
    int          type;          /* of the piece at index at */
    int          map;           /* MAP_* */
    const char  *spec;          /* more bytes at the end of the file */
    size_t       spec_len;
} spec_t;

enum {
    MAP_GOOD, MAP_NONE, MAP_EMPTY, MAP_CUT, MAP_SIZE, MAP_NO_NUL, MAP_NOT_UTF8, MAP_OUTSIDE,
    MAP_VALUE, MAP_INSIDE_CHAR, MAP_ROOT_LEAF
};

static void
put_number(glm_text_t *t, size_t n)
{
    char  c;

    do {
        c = (char) ((n & 0x7F) | (n > 0x7F ? 0x80 : 0));
        glm_text_add(t, &c, 1);
    } while (n >>= 7);
}

static void
put_bytes(glm_text_t *t, int field, const void *s, size_t n)
{
    put_number(t, (size_t) field << 3 | 2);
    put_number(t, n);
    glm_text_add(t, s, n);
}

static void
put_piece(glm_text_t *t, const char *s, size_t n, float score, int type)
{
    glm_text_t  m = {0};

    put_bytes(&m, 1, s, n);
    put_number(&m, 2 << 3 | 5);
    glm_text_add(&m, (char *) &score, 4);
    put_number(&m, 3 << 3);
    put_number(&m, (size_t) type);
    put_bytes(t, 1, m.s, m.n);
    glm_text_free(&m);
}

/*
 * A double array of 512 units with one key, X, whose replacement is yy: the
 * root's children are at 256 ^ byte, X is at 344, its value at 300.
 */
static void
put_map(glm_text_t *t, int kind)
{
    size_t      nrepl = 8;
    uint32_t    table[513] = { 2048 }, *unit = table + 1;
    char        repl[8] = "\xC3\xA9\0yy\0\0";
    glm_text_t  map = {0}, m = {0};

    unit[0] = 256u << 10;
    unit[344] = (344u ^ 300u) << 10 | 1u << 8 | 'X';
    unit[300] = 0x80000000u | 3;
    if (kind == MAP_SIZE) table[0] = 2044;
    if (kind == MAP_OUTSIDE) unit[7] = 512u << 10;
    if (kind == MAP_VALUE) unit[300] = 0x80000000u | 8;
    if (kind == MAP_INSIDE_CHAR) unit[300] = 0x80000000u | 1;
    if (kind == MAP_ROOT_LEAF) unit[0] |= 0x80000000u;
    if (kind == MAP_NO_NUL) repl[7] = 'x';
    if (kind == MAP_NOT_UTF8) repl[1] = 'x';
    glm_text_add(&map, (char *) table, kind == MAP_CUT ? 2000 : sizeof(table));
    glm_text_add(&map, repl, nrepl);
    if (kind == MAP_CUT) map.n = 2000;
    if (kind == MAP_EMPTY) map.n = 0;
    put_bytes(&m, 1, "nmt_nfkc", 8);
    if (kind != MAP_NONE) put_bytes(&m, 2, map.s, map.n);
    put_bytes(t, 3, m.s, m.n);
    glm_text_free(&map);
    glm_text_free(&m);
}

static void
put_model(glm_text_t *t, const spec_t *spec)
{
    int   i;
    char  name[16];
    static const struct {
        const char  *s;
        float        score;
        int          type;
    } good[NPIECES] = {
        { "<unk>", 0, 2 }, { "<s>", 0, 3 }, { "</s>", 0, 3 }, { "<pad>", -40, 3 }, { "<n>", 0, 4 },
        { "\xE2\x96\x81", -2, 1 }, { "y", -3, 1 }, { "yy", -4, 1 }, { "\xE2\x96\x81y", -4.5f, 1 },
        { "yyy", -20, 1 }, { "\xC3\xA9", -5, 1 }, { "a", -14, 1 }, { "ab", -1, 1 },
        { "bc", -14, 1 }, { "d", -20, 1 }, { "de", -1, 1 }, { "ef", -20, 1 },
    };

    for (i = 0; i < NPIECES; i++) {
        if (spec->s != NULL && spec->at == i) {
            put_piece(t, spec->s, spec->len ? spec->len : strlen(spec->s), spec->score,
                      spec->type);
        } else {
            put_piece(t, good[i].s, strlen(good[i].s), good[i].score, good[i].type);
        }
    }
    for (i = 0; i < spec->extra; i++) {
        put_piece(t, name, (size_t) snprintf(name, sizeof(name), "extra%d", i), -3, 1);
    }
    put_map(t, spec->map);
    glm_text_add(t, spec->spec, spec->spec_len);
}

static const char  good_config[] = "{\"type\": \"icetk\", \"model_file\": \"small.model\", "
    "\"image_tokens\": 100, \"num_text_tokens\": 17, \"unk_id\": 100}";

static int
load(glm_tokenizer_t **t, const glm_text_t *model, glm_err_t *err)
{
    *err = (glm_err_t) {0};
    return glm_tokenizer_load_mem(t, good_config, strlen(good_config), model->s, model->n, err);
}

/* Whether text gives these ids, up to a -1. */
static int
gives(const glm_tokenizer_t *t, const char *text, const int32_t *want)
{
    int        good;
    size_t     i;
    glm_ids_t  ids = {0};

    good = glm_encode(t, text, strlen(text), &ids) == 0;
    for (i = 0; i < ids.n && want[i] == ids.id[i]; i++) { /* up to a difference */ }
    good &= i == ids.n && want[i] == -1;
    glm_ids_free(&ids);
    return good;
}

/* The small model is a model: what each test below breaks does work. */
static void
good_model(void)
{
    glm_err_t         err;
    glm_text_t        model = {0};
    glm_tokenizer_t  *t = NULL;

    put_model(&model, &(spec_t) {0});
    if (!ok(load(&t, &model, &err) == 0, "the small model loads")) bail_out(err.text);
    ok(gives(t, "y", (int32_t[]) { 108, -1 }), "the better of two ways: one piece");
    ok(gives(t, "yy", (int32_t[]) { 105, 107, -1 }), "the better of two ways: two pieces");
    ok(gives(t, "X", (int32_t[]) { 105, 107, -1 }), "the normaliser replaces");
    ok(gives(t, "X\nX", (int32_t[]) { 105, 107, 104, 107, -1 }), "the newline is a piece");
    ok(gives(t, "\u00E9z", (int32_t[]) { 105, 110, 117 + 88 + 'z', -1 }),
       "a character without a piece is its bytes");
    /* a + bc = -28, ab + unknown = -31; d + ef = -40, de + unknown = -31 */
    ok(gives(t, "abc", (int32_t[]) { 105, 111, 113, -1 }), "pieces win where they score more");
    ok(gives(t, "def", (int32_t[]) { 105, 115, 117 + 88 + 'f', -1 }), "the unknown, where it does");
    glm_tokenizer_free(t);
    glm_text_free(&model);
}

static void
refused(const spec_t *spec, const char *why)
{
    glm_err_t         err;
    glm_text_t        model = {0};
    glm_tokenizer_t  *t = NULL;

    put_model(&model, spec);
    ok(load(&t, &model, &err) == GLM_EFORMAT && t == NULL && strstr(err.text, why) != NULL
       && strncmp(err.text, "small.model: ", 13) == 0, "refused: %s", err.text);
    glm_tokenizer_free(t);
    glm_text_free(&model);
}

static void
bad_pieces(void)
{
    char  long_piece[128];

    memset(long_piece, 'y', sizeof(long_piece));
    refused(&(spec_t) { .s = "yy", .at = 6, .score = -3, .type = 1 }, "is there twice");
    refused(&(spec_t) { .s = "<n>", .at = 6, .score = -3, .type = 1 }, "is there twice");
    refused(&(spec_t) { .s = "<|tab|>", .at = 6, .score = -3, .type = 1 }, "is there twice");
    refused(&(spec_t) { .s = "", .at = 6, .score = -3, .type = 1 }, "piece 6 is empty");
    refused(&(spec_t) { .s = "a\xC0\x80", .at = 6, .score = -3, .type = 1 }, "is not UTF-8");
    refused(&(spec_t) { .s = long_piece, .at = 6, .len = 128, .score = -3, .type = 1 },
            "piece 6 is longer than 127 bytes");
    refused(&(spec_t) { .s = "y", .at = 6, .score = 0.5f, .type = 1 }, "has a score");
    refused(&(spec_t) { .s = "y", .at = 6, .score = -2e9f, .type = 1 }, "has a score");
    refused(&(spec_t) { .s = "y", .at = 6, .score = __builtin_nanf(""), .type = 1 },
            "has a score");
    refused(&(spec_t) { .s = "y", .at = 6, .score = -__builtin_inff(), .type = 1 },
            "has a score");
    refused(&(spec_t) { .s = "y", .at = 6, .score = -3, .type = 0 }, "unknown type");
    refused(&(spec_t) { .s = "y", .at = 6, .score = -3, .type = 263 }, "unknown type");
    refused(&(spec_t) { .s = "y", .at = 6, .score = -3, .type = 6 }, "piece 6 is a byte");
    refused(&(spec_t) { .s = "y", .at = 6, .score = -3, .type = 2 }, "piece 6 is the unknown");
    refused(&(spec_t) { .s = "<unk>", .at = 0, .score = 0, .type = 1 }, "is not the unknown");
    refused(&(spec_t) { .s = "<n>", .at = 4, .score = 0, .type = 1 }, "no user-defined piece <n>");
    refused(&(spec_t) { .extra = 1 }, "has 18 pieces, tokenizer_config.json says 17");
    refused(&(spec_t) { .extra = 344 }, "piece 25 is not <|tab|>");
}

static void
bad_specs(void)
{
    refused(&(spec_t) { .map = MAP_NONE }, "no normaliser table");
    refused(&(spec_t) { .map = MAP_EMPTY }, "is cut short");
    refused(&(spec_t) { .map = MAP_CUT }, "is cut short");
    refused(&(spec_t) { .map = MAP_SIZE }, "has a bad size");
    refused(&(spec_t) { .map = MAP_NO_NUL }, "not NUL-terminated UTF-8");
    refused(&(spec_t) { .map = MAP_NOT_UTF8 }, "not NUL-terminated UTF-8");
    refused(&(spec_t) { .map = MAP_OUTSIDE }, "points outside itself");
    refused(&(spec_t) { .map = MAP_VALUE }, "points outside itself");
    refused(&(spec_t) { .map = MAP_INSIDE_CHAR }, "points outside itself");
    refused(&(spec_t) { .map = MAP_ROOT_LEAF }, "points outside itself");
    refused(&(spec_t) { .spec = "\x12\x02\x18\x02", .spec_len = 4 }, "not a unigram model");
    refused(&(spec_t) { .spec = "\x12\x03\xC0\x01\x01", .spec_len = 5 }, "at the end of pieces");
    refused(&(spec_t) { .spec = "\x1A\x02\x18\x00", .spec_len = 4 }, "treats blanks otherwise");
    refused(&(spec_t) { .spec = "\x1A\x02\x28\x00", .spec_len = 4 }, "treats blanks otherwise");
    refused(&(spec_t) { .spec = "\x12\x02\x18\x80", .spec_len = 4 }, "broken trainer_spec");
    refused(&(spec_t) { .spec = "\x1A\x02\x12\x05", .spec_len = 4 }, "broken normalizer_spec");
    refused(&(spec_t) { .spec = "\x0A\x02\x0A\x05", .spec_len = 4 }, "broken piece");
    refused(&(spec_t) { .spec = "\x0B", .spec_len = 1 }, "broken message");
    refused(&(spec_t) { .spec = "\x02\x00", .spec_len = 2 }, "broken message");
    refused(&(spec_t) { .spec = "\x0A\xFF\xFF\xFF\xFF\x0F", .spec_len = 6 }, "broken message");
    refused(&(spec_t) { .spec = "\x20\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x01",
            .spec_len = 13 }, "broken message");
    /* a length that would step back, and around for ever */
    refused(&(spec_t) { .spec = "\x22\xF5\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x01",
            .spec_len = 11 }, "broken message");
    refused(&(spec_t) { .spec = "\x2D\x00\x00", .spec_len = 3 }, "broken message");
}

/* Every beginning of the file is refused, with a reason. */
static void
cut_files(void)
{
    int               good = 0;
    char             *part;
    size_t            i, n;
    glm_err_t         err;
    glm_text_t        model = {0}, cut;
    glm_tokenizer_t  *t = NULL;

    put_model(&model, &(spec_t) {0});
    for (n = model.n, i = 0; i < n; i++) {
        part = malloc(i + 1);       /* its own block, so that ASan sees its end */
        memcpy(part, model.s, i);
        cut = (glm_text_t) { part, i, i };
        good += load(&t, &cut, &err) == GLM_EFORMAT && t == NULL && err.text[0] != '\0';
        free(part);
    }
    ok(good == (int) n, "%d of %zu cut files are refused", good, n);
    glm_text_free(&model);
}

/* One or two bytes changed: refused, or a tokenizer that stays in its bounds. */
static void
changed_files(void)
{
    int               loads = 0, bad = 0, rc;
    size_t            i, k;
    uint64_t          seed = 1;
    glm_err_t         err;
    glm_ids_t         ids = {0};
    glm_text_t        model = {0}, text = {0};
    glm_tokenizer_t  *t = NULL;

    for (i = 0; i < 20000; i++) {
        model.n = text.n = ids.n = 0;
        put_model(&model, &(spec_t) {0});
        for (k = 0; k < 2; k++) {
            model.s[rnd(&seed) % (i % 2 ? 200 : model.n)] = (char) rnd(&seed);
        }
        rc = load(&t, &model, &err);
        if (rc != 0) {
            bad += t != NULL || err.text[0] == '\0';
            continue;
        }
        loads++;
        bad += glm_encode(t, "XyX  \n\xFF\xC3\xA9 X\0X", 13, &ids) != 0;
        bad += glm_decode(t, ids.id, ids.n, 0, &text) != 0;
        bad += glm_utf8_valid(text.s, text.n) != text.n;
        glm_tokenizer_free(t);
    }
    ok(bad == 0 && loads > 100 && loads < 19900, "%d of %zu changed files load, none does harm",
       loads, i);
    glm_ids_free(&ids);
    glm_text_free(&model);
    glm_text_free(&text);
}

static void
bad_configs(void)
{
    size_t            i;
    glm_err_t         err;
    glm_tokenizer_t  *t;
#define HEAD  "{\"type\": \"icetk\", \"model_file\": \"m\", \"image_tokens\": 100, " \
              "\"num_text_tokens\": 11, \"unk_id\": 100"
    static const char  *bad[][2] = {
        { "", "line 1" },
        { "[]", "not an object" },
        { "{}", "no type" },
        { "{\"type\": \"gpt2\"}", "type is not \"icetk\"" },
        { "{\"type\": 7}", "type is not \"icetk\"" },
        { "{\"type\": \"icetk\"}", "no model_file" },
        { "{\"type\": \"icetk\", \"model_file\": \"../m\"}", "model_file is not the name" },
        { "{\"type\": \"icetk\", \"model_file\": \"\"}", "model_file is not the name" },
        { "{\"type\": \"icetk\", \"model_file\": \"m\"}", "no image_tokens" },
        { "{\"type\": \"icetk\", \"model_file\": \"m\", \"image_tokens\": -1}", "image_tokens is" },
        { "{\"type\": \"icetk\", \"model_file\": \"m\", \"image_tokens\": 1.5}",
          "image_tokens is" },
        { "{\"type\": \"icetk\", \"model_file\": \"m\", \"image_tokens\": 16777216, "
          "\"num_text_tokens\": 16777216, \"unk_id\": 0}", "16777216 num_text_tokens" },
        { HEAD ", \"type\": \"icetk\"}", "duplicate" },
        { HEAD ", \"max_blank_length\": 64}", "max_blank_length is 64" },
        { HEAD ", \"byte_fallback\": false}", "byte_fallback is not true" },
        { HEAD ", \"newline_piece\": \"<nl>\"}", "newline_piece is not \"<n>\"" },
        { HEAD ", \"special_tokens\": {\"[gMASK]\": 111}}", "special_tokens.[gMASK] is 111" },
        { HEAD ", \"tab_token\": {\"id\": 118}}", "tab_token.id is 118, by the order of ids" },
        { HEAD ", \"blank_tokens\": {\"first_id\": 121}}", "blank_tokens.first_id is 121" },
        { HEAD ", \"byte_tokens\": {\"last_id\": 455}}", "byte_tokens.last_id is 455" },
        { HEAD ", \"vocab_size\": 454}", "vocab_size is 454" },
        { HEAD ", \"padded_vocab_size\": 454}", "padded_vocab_size 454 is less than the 455" },
    };

    for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        err = (glm_err_t) {0};
        ok(glm_tokenizer_load_mem(&t, bad[i][0], strlen(bad[i][0]), "", 0, &err) == GLM_EFORMAT
           && t == NULL && strncmp(err.text, "tokenizer_config.json: ", 23) == 0
           && strstr(err.text, bad[i][1]) != NULL, "refused: %s", err.text);
    }
}

static void
write_file(const char *path, const char *s, size_t n)
{
    FILE  *f = fopen(path, "wb");

    if (f == NULL || fwrite(s, 1, n, f) != n || fclose(f) != 0) bail_out("cannot write a file");
}

/* What can be wrong in a directory. */
static void
directories(void)
{
    int               rc;
    char              dir[] = "/tmp/glm-tok-XXXXXX", config[64], model[64];
    glm_err_t         err = {0};
    glm_text_t        data = {0};
    glm_tokenizer_t  *t = (glm_tokenizer_t *) dir;

    if (mkdtemp(dir) == NULL) bail_out("mkdtemp() failed");
    snprintf(config, sizeof(config), "%s/tokenizer_config.json", dir);
    snprintf(model, sizeof(model), "%s/small.model", dir);
    ok(glm_tokenizer_load(&t, dir, &err) == 0 && t == NULL && err.text[0] == '\0',
       "a directory without tokenizer_config.json has no tokenizer");
    write_file(config, good_config, strlen(good_config));
    rc = glm_tokenizer_load(&t, dir, &err);
    ok(rc == GLM_ENOENT && t == NULL && strstr(err.text, model) != NULL, "refused: %s", err.text);
    write_file(model, "", 0);
    err = (glm_err_t) {0};
    rc = glm_tokenizer_load(&t, dir, &err);
    ok(rc == GLM_EFORMAT && t == NULL && strstr(err.text, "has no pieces") != NULL,
       "refused: %s", err.text);
    put_model(&data, &(spec_t) {0});
    write_file(model, data.s, data.n);
    ok(glm_tokenizer_load(&t, dir, &err) == 0 && t != NULL, "both files make one");
    glm_tokenizer_free(t);
    unlink(model);
    if (mkdir(model, 0700) != 0) bail_out("mkdir() failed");
    err = (glm_err_t) {0};
    rc = glm_tokenizer_load(&t, dir, &err);
    ok(rc == GLM_EFORMAT && t == NULL && strstr(err.text, "not a regular file") != NULL,
       "refused: %s", err.text);
    rmdir(model);
    unlink(config);
    rmdir(dir);
    glm_text_free(&data);
}

int
main(void)
{
    good_model();
    bad_pieces();
    bad_specs();
    bad_configs();
    cut_files();
    changed_files();
    directories();
    glm_tokenizer_free(NULL);
    return tap_done();
}
