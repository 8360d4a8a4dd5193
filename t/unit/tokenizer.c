/*
 * Text to ids is not what the original makes of it; or a broken model file, or
 * hostile text, takes the engine down.
 */
#include <time.h>

#include "tokenizer_util.h"
#include "utf8.h"

typedef int (*encode_pt)(const glm_tokenizer_t *t, const char *text, size_t len, glm_ids_t *ids);

/* All of list: text -> ids. */
static void
check_encode(const glm_tokenizer_t *t, const json_t *list, encode_pt encode, const char *what)
{
    int         good = 1;
    size_t      i;
    json_t     *c, *text;
    glm_ids_t   ids = {0};

    json_array_foreach(list, i, c) {
        ids.n = 0;
        text = json_object_get(c, "text");
        good &= encode(t, json_string_value(text), json_string_length(text), &ids) == 0;
        good &= same_ids(&ids, json_object_get(c, "ids"), what, i);
    }
    ok(good && i > 0, "%s: %zu texts have the original's ids", what, i);
    glm_ids_free(&ids);
}

static int
ends_with(const char *s, size_t n, const char *tail)
{
    size_t  len = strlen(tail);

    return n >= len && memcmp(s + n - len, tail, len) == 0;
}

/*
 * What generate.py appends to a prompt, before sop: [gMASK] where there is no
 * mask, the end of text where the mask is not the end.
 */
static void
append_prompt_ids(const json_t *text, int32_t gmask, int32_t eos, glm_ids_t *ids)
{
    size_t       n = json_string_length(text);
    const char  *s = json_string_value(text);

    if (strstr(s, "MASK]") == NULL) {
        glm_ids_push(ids, gmask);
    } else if (!ends_with(s, n, "MASK]")) {
        glm_ids_push(ids, eos);
    }
}

/* first: id of [MASK]; sop: whether the list's ids have it. */
static void
check_prompts(const glm_tokenizer_t *t, const json_t *list, const char *text_key,
    const char *ids_key, int32_t first, int32_t eos, int sop, const char *what)
{
    int         good = 1;
    size_t      i;
    json_t     *c, *text;
    glm_ids_t   ids = {0};

    json_array_foreach(list, i, c) {
        ids.n = 0;
        text = json_object_get(c, text_key);
        good &= glm_encode_masks(t, json_string_value(text), json_string_length(text), &ids) == 0;
        append_prompt_ids(text, first + 1, eos, &ids);
        if (sop) glm_ids_push(&ids, first + 4);
        good &= same_ids(&ids, json_object_get(c, ids_key), what, i);
    }
    ok(good && i > 0, "%s: %zu prompts have the original's ids", what, i);
    glm_ids_free(&ids);
}

static void
check_invalid(const glm_tokenizer_t *t, const json_t *list)
{
    int          good = 1;
    char         text[64];
    size_t       i, n;
    json_t      *c;
    unsigned     byte;
    glm_ids_t    ids = {0};
    const char  *hex;

    json_array_foreach(list, i, c) {
        ids.n = 0;
        hex = json_string_value(json_object_get(c, "hex"));
        for (n = 0; n < sizeof(text) && sscanf(hex + 2 * n, "%2x", &byte) == 1; n++) {
            text[n] = (char) byte;
        }
        good &= glm_encode(t, text, n, &ids) == 0;
        good &= same_ids(&ids, json_object_get(c, "ids"), "invalid UTF-8", i);
    }
    ok(good && i > 0, "invalid UTF-8: %zu texts have the original's ids", i);
    glm_ids_free(&ids);
}

/* Random texts; some segment otherwise when a score is rounded otherwise. */
static void
random_goldens(const glm_tokenizer_t *t, const char *path)
{
    json_t  *g = load_json(path);

    check_encode(t, json_object_get(g, "cases"), glm_encode, path);
    json_decref(g);
}

static void
real_goldens(const glm_tokenizer_t *t)
{
    json_t  *g = load_json(REAL_GOLDENS);

    check_encode(t, json_object_get(g, "cases"), glm_encode, "glm-130b");
    check_encode(t, json_object_get(g, "no_dummy_prefix"), glm_encode_no_prefix,
                 "glm-130b without dummy prefix");
    check_prompts(t, json_object_get(g, "prompts"), "text", "ids", 150000, 20002, 1, "glm-130b");
    check_invalid(t, json_object_get(g, "invalid_utf8"));
    json_decref(g);
}

static void
demo_goldens(const glm_tokenizer_t *t)
{
    size_t       i;
    json_t      *g = load_json(DEMO_GOLDENS);
    int32_t      mask = glm_tokenizer_vocab_size(t) - 344;
    const char  *list[] = { "cases", "blanks", "score" };

    for (i = 0; i < 3; i++) {
        check_prompts(t, json_object_get(g, list[i]), "prompt", "prompt_ids", mask, 2, 0, list[i]);
    }
    json_decref(g);
}

/* ChatGLM-6B's file of 130,344 pieces: the appended ones are there already. */
static char *
with_appended(const char *data, size_t len, size_t *out_len)
{
    int         i;
    char        word[24], head[2], type;
    glm_text_t  out = {0};

    glm_text_add(&out, data, len);
    for (i = 0; i < 344; i++) {
        type = i < 8 ? 3 : i < 88 ? 4 : 6;
        if (i < 8) snprintf(word, sizeof(word), "<special%d>", i);
        else if (i == 8) snprintf(word, sizeof(word), "<|tab|>");
        else if (i < 88) snprintf(word, sizeof(word), "<|blank_%d|>", i - 7);
        else snprintf(word, sizeof(word), "<0x%02X>", (unsigned) (i - 88) & 0xFF);
        head[0] = 0x0A;
        head[1] = (char) (strlen(word) + 9);
        glm_text_add(&out, head, 2);
        head[1] = (char) strlen(word);
        glm_text_add(&out, head, 2);
        glm_text_add(&out, word, strlen(word));
        glm_text_add(&out, "\x15\0\0\0\0\x18", 6);
        glm_text_add(&out, &type, 1);
    }
    *out_len = out.n;
    return out.s;
}

static void
real_with_appended(void)
{
    char             *conf, *data, *more;
    size_t            conf_len, len, more_len;
    json_t           *g = load_json(REAL_GOLDENS);
    glm_err_t         err = {0};
    const char       *name;
    glm_tokenizer_t  *t;

    conf = slurp(REAL_CONFIG, &conf_len);
    data = slurp(real_model(), &len);
    more = with_appended(data, len, &more_len);
    if (!ok(glm_tokenizer_load_mem(&t, conf, conf_len, more, more_len, &err) == 0,
            "a model with the appended pieces loads"))
    {
        diag("%s", err.text);
        exit(1);
    }
    check_encode(t, json_object_get(g, "cases"), glm_encode, "130,344 pieces");
    name = glm_token_name(t, 150003, &len);
    ok(strcmp(name, "eod") == 0 && len == 3, "its special pieces are named as GLM-130B's");
    glm_tokenizer_free(t);
    more[more_len - 10] ^= 1;
    ok(glm_tokenizer_load_mem(&t, conf, conf_len, more, more_len, &err) == GLM_EFORMAT
       && t == NULL && strstr(err.text, "ice_text.model: piece 130343 is not <0xFF>") != NULL,
       "one with another last piece does not: %s", err.text);
    json_decref(g);
    free(conf);
    free(data);
    free(more);
}

/* Names and kinds; unk is the id of <unk>, first of [MASK]. */
static void
check_names(const glm_tokenizer_t *t, int32_t unk, int32_t first, const char *what)
{
    int     good = 1;
    size_t  i, n;
    struct {
        int32_t           id;
        const char       *name;
        glm_token_kind_t  kind;
    } want[] = {
        { -1, "", GLM_TOK_NONTEXT }, { unk - 1, "", GLM_TOK_NONTEXT },
        { unk, "<unk>", GLM_TOK_NONTEXT }, { unk + 2, "</s>", GLM_TOK_NONTEXT },
        { unk + 4, "<n>", GLM_TOK_TEXT }, { unk + 5, " ", GLM_TOK_TEXT },
        { first, "[MASK]", GLM_TOK_NONTEXT }, { first + 7, "dBLOCK", GLM_TOK_NONTEXT },
        { first + 8, "<|tab|>", GLM_TOK_TEXT }, { first + 9, "<|blank_2|>", GLM_TOK_TEXT },
        { first + 87, "<|blank_80|>", GLM_TOK_TEXT }, { first + 88, "<0x00>", GLM_TOK_BYTE },
        { first + 343, "<0xFF>", GLM_TOK_BYTE }, { first + 344, "", GLM_TOK_NONTEXT },
        { INT32_MAX, "", GLM_TOK_NONTEXT }, { INT32_MIN, "", GLM_TOK_NONTEXT },
    };

    for (i = 0; i < sizeof(want) / sizeof(want[0]); i++) {
        good &= strcmp(glm_token_name(t, want[i].id, &n), want[i].name) == 0;
        good &= n == strlen(want[i].name) && glm_token_kind(t, want[i].id) == want[i].kind;
        if (!good) diag("%s: id %d", what, want[i].id);
    }
    good &= glm_tokenizer_vocab_size(t) == first + 344;
    ok(good, "%s: names, kinds and number of ids", what);
}

/* Ids that a text may become: never a mask, a control or the unknown. */
static int
only_text(const glm_tokenizer_t *t, const glm_ids_t *ids)
{
    size_t  i;

    for (i = 0; i < ids->n; i++) {
        if (glm_token_kind(t, ids->id[i]) == GLM_TOK_NONTEXT) return 0;
    }
    return 1;
}

static void
random_bytes(const glm_tokenizer_t *t)
{
    int          i, good = 0;
    char         text[256];
    size_t       k, n;
    uint64_t     seed = 130;
    glm_ids_t    ids = {0};
    const char   likely[] = "<|blank_80|><n>[MASK] \n\t \xE2\x96\x81\xEF\xBC\x8C\xF0\x9F";

    for (i = 0; i < 20000; i++) {
        ids.n = 0;
        n = rnd(&seed) % sizeof(text);
        for (k = 0; k < n; k++) {
            text[k] = (char) rnd(&seed);
            if (rnd(&seed) % 3) text[k] = likely[rnd(&seed) % (sizeof(likely) - 1)];
        }
        good += glm_encode(t, text, n, &ids) == 0 && only_text(t, &ids);
        ids.n = 0;
        good += glm_encode_masks(t, text, n, &ids) == 0 && ids.n <= 3 * sizeof(text);
    }
    ok(good == 2 * i, "%d random byte strings become ids of text", i);
    glm_ids_free(&ids);
}

/* Plain text comes back: blanks, tabs and newlines between words of ASCII. */
static void
round_trip(const glm_tokenizer_t *t)
{
    int         i, good = 0;
    char        text[256];
    size_t      k, n, run;
    uint64_t    seed = 30;
    glm_ids_t   ids = {0};
    glm_text_t  back = {0};
    const char  letters[] = "abcxyzABC019.,;:!?(){}[]|_=+-*/\"'#\n\t";

    for (i = 0; i < 20000; i++) {
        ids.n = back.n = 0;
        n = rnd(&seed) % 100;
        text[0] = 'x';
        for (k = 1; k < n; k++) {
            text[k] = letters[rnd(&seed) % (sizeof(letters) - 1)];
            if (rnd(&seed) % 4 == 0 && k < 99) {
                run = rnd(&seed) % 3 ? 1 : rnd(&seed) % 100;
                memset(text + k, ' ', run);
                k += run;
                n += run;
                if (n > 150) n = k;
                text[k] = 'b';
            }
        }
        text[k++] = 'z';
        good += glm_encode(t, text, k, &ids) == 0
                && glm_decode(t, ids.id, ids.n, 0, &back) == 0
                && back.n == k && memcmp(back.s, text, k) == 0;
    }
    ok(good == i, "%d of %d plain texts come back as they were", good, i);
    glm_ids_free(&ids);
    glm_text_free(&back);
}

/* Masks that touch, masks that are none, and what is appended to. */
static void
mask_edges(const glm_tokenizer_t *t)
{
    size_t     i;
    int32_t    mask = glm_tokenizer_vocab_size(t) - 344;
    glm_ids_t  ids = {0};
    static const struct {
        const char  *text;
        int          masks;
    } edge[] = {
        { "", 0 }, { "[", 0 }, { "[MASK", 0 }, { "[MASK]", 1 }, { "[MASK][gMASK][sMASK]", 3 },
        { "[[MASK]]", 1 }, { "[mask]", 0 }, { "[gMASK[MASK]", 1 }, { "[MASK]x[MASK", 1 },
    };

    for (i = 0; i < sizeof(edge) / sizeof(edge[0]); i++) {
        int     masks = 0;
        size_t  k;

        ids.n = 0;
        glm_ids_push(&ids, -7);
        glm_encode_masks(t, edge[i].text, strlen(edge[i].text), &ids);
        for (k = 1; k < ids.n; k++) masks += ids.id[k] >= mask && ids.id[k] < mask + 3;
        ok(masks == edge[i].masks && ids.id[0] == -7, "\"%s\" has %d masks", edge[i].text, masks);
    }
    glm_ids_free(&ids);
}

/* 1 MB of one pattern; a quadratic step anywhere would take minutes. */
static void
hostile(const glm_tokenizer_t *t, const char *pattern, size_t n, const char *what)
{
    char       *text = malloc(1 << 20);
    size_t      i;
    clock_t     start = clock();
    double      seconds;
    glm_ids_t   ids = {0};
    glm_text_t  back = {0};

    for (i = 0; i < 1 << 20; i++) text[i] = pattern[i % n];
    ok(glm_encode(t, text, 1 << 20, &ids) == 0 && only_text(t, &ids) && ids.n > 0
       && glm_decode(t, ids.id, ids.n, 0, &back) == 0, "1 MB of %s", what);
    seconds = (double) (clock() - start) / CLOCKS_PER_SEC;
    ok(seconds < 10, "is done in %.2f s", seconds);
    free(text);
    glm_ids_free(&ids);
    glm_text_free(&back);
}

static void
all_hostile(const glm_tokenizer_t *t)
{
    hostile(t, "a", 1, "one letter");
    hostile(t, "\n", 1, "newlines");
    hostile(t, "\t", 1, "tabs");
    hostile(t, "  \n", 3, "short runs of blanks");
    hostile(t, "\xFF", 1, "bad bytes");
    hostile(t, "\xEF\xB7\xBA", 3, "U+FDFA, which becomes 18 characters");
    hostile(t, "<|blank_8", 9, "words that begin like blanks");
    hostile(t, "[gMASK", 6, "words that begin like masks");
    hostile(t, "\xCC\x81", 2, "lone accents");
}

int
main(void)
{
    glm_tokenizer_t  *demo = load_demo(), *real = load_real();

    if (real == NULL) {
        skip(NO_REAL);
    } else {
        real_goldens(real);
        random_goldens(real, REAL_RANDOM);
        real_with_appended();
        check_names(real, 20000, 150000, "glm-130b");
        all_hostile(real);
    }
    demo_goldens(demo);
    random_goldens(demo, DEMO_RANDOM);
    check_names(demo, 0, 7808, "demo");
    random_bytes(demo);
    round_trip(demo);
    mask_edges(demo);
    all_hostile(demo);
    glm_tokenizer_free(demo);
    glm_tokenizer_free(real);
    return tap_done();
}
