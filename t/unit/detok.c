/*
 * Ids to text is not what the original makes of it; or a stream sends half a
 * character, or something that a later id would have changed.
 */
#include "tokenizer_util.h"
#include "utf8.h"

/* All of list: ids -> decoded. */
static void
check_decode(const glm_tokenizer_t *t, const json_t *list, const char *what)
{
    int         good = 1;
    size_t      i;
    json_t     *c;
    glm_ids_t   ids = {0};
    glm_text_t  text = {0};

    json_array_foreach(list, i, c) {
        ids.n = text.n = 0;
        add_ids(json_object_get(c, "ids"), &ids);
        good &= glm_decode(t, ids.id, ids.n, 0, &text) == 0;
        good &= same_text(&text, json_object_get(c, "decoded"), what, i);
    }
    ok(good && i > 0, "%s: %zu lists of ids have the original's text", what, i);
    glm_ids_free(&ids);
    glm_text_free(&text);
}

/* One stream: what each id may send, then what the end brings. */
static int
check_stream(const glm_tokenizer_t *t, const json_t *c, size_t at)
{
    int          good = 1;
    size_t       i;
    json_t      *emit = json_object_get(c, "emit");
    glm_ids_t    ids = {0};
    glm_text_t   text = {0};
    glm_detok_t  d;

    add_ids(json_object_get(c, "ids"), &ids);
    glm_detok_init(&d, t);
    for (i = 0; i < ids.n; i++) {
        text.n = 0;
        good &= glm_detok_push(&d, ids.id[i], &text) == 0;
        good &= same_text(&text, json_array_get(emit, i), "stream", at);
    }
    text.n = 0;
    good &= glm_detok_flush(&d, 1, &text) == 0;
    good &= same_text(&text, json_object_get(c, "flush"), "flush", at);
    glm_ids_free(&ids);
    glm_text_free(&text);
    return good;
}

static void
random_goldens(const glm_tokenizer_t *t, const char *path)
{
    json_t  *g = load_json(path);

    check_decode(t, json_object_get(g, "cases"), path);
    json_decref(g);
}

static void
real_goldens(const glm_tokenizer_t *t)
{
    int      good = 1;
    size_t   i;
    json_t  *c, *g = load_json(REAL_GOLDENS), *list = json_object_get(g, "stream");

    check_decode(t, json_object_get(g, "cases"), "glm-130b cases");
    check_decode(t, json_object_get(g, "decode"), "glm-130b decode");
    json_array_foreach(list, i, c) good &= check_stream(t, c, i);
    ok(good && i > 0, "glm-130b: %zu streams send what the original's prefixes allow", i);
    json_decref(g);
}

/* Ids of a golden list that holds fills instead of its masks. */
static void
fill_masks(const json_t *c, int32_t mask, glm_ids_t *ids)
{
    size_t   i, fill = 0;
    json_t  *v, *ids_in = json_object_get(c, "prompt_ids"), *fills = json_object_get(c, "fill_ids");

    json_array_foreach(ids_in, i, v) {
        if (json_integer_value(v) == mask) add_ids(json_array_get(fills, fill++), ids);
        else glm_ids_push(ids, (int32_t) json_integer_value(v));
    }
}

static int
decodes_to(const glm_tokenizer_t *t, const json_t *list, const json_t *want, size_t at)
{
    int         good;
    glm_ids_t   ids = {0};
    glm_text_t  text = {0};

    add_ids(list, &ids);
    good = glm_decode(t, ids.id, ids.n, 0, &text) == 0;
    good &= same_text(&text, want, "demo", at);
    glm_ids_free(&ids);
    glm_text_free(&text);
    return good;
}

static int
check_blank(const glm_tokenizer_t *t, const json_t *c, int32_t mask, size_t at)
{
    int         good = 1;
    size_t      i;
    json_t     *fill;
    glm_ids_t   ids = {0};
    glm_text_t  text = {0};

    fill_masks(c, mask, &ids);
    good &= glm_decode(t, ids.id, ids.n, 0, &text) == 0;
    good &= same_text(&text, json_object_get(c, "text"), "blanks", at);
    json_array_foreach(json_object_get(c, "fills"), i, fill) {
        good &= decodes_to(t, json_array_get(json_object_get(c, "fill_ids"), i), fill, at);
    }
    glm_ids_free(&ids);
    glm_text_free(&text);
    return good;
}

static void
demo_goldens(const glm_tokenizer_t *t)
{
    int      good = 1;
    size_t   i, k;
    json_t  *c, *choice, *g = load_json(DEMO_GOLDENS);
    int32_t  mask = glm_tokenizer_vocab_size(t) - 344;

    json_array_foreach(json_object_get(g, "cases"), i, c) {
        good &= decodes_to(t, json_object_get(c, "token_ids"), json_object_get(c, "text"), i);
    }
    ok(good && i > 0, "demo: %zu answers have their text", i);
    good = 1;
    json_array_foreach(json_object_get(g, "blanks"), i, c) good &= check_blank(t, c, mask, i);
    ok(good && i > 0, "demo: %zu texts with their blanks filled", i);
    good = 1;
    json_array_foreach(json_object_get(g, "score"), i, c) {
        json_array_foreach(json_object_get(c, "choices"), k, choice) {
            good &= decodes_to(t, json_object_get(choice, "ids"),
                               json_object_get(choice, "text"), i);
        }
    }
    ok(good && i > 0, "demo: %zu scored lists of choices have their text", i);
    json_decref(g);
}

/*
 * Mostly text and bytes, also controls and ids outside the vocabulary.  Pieces
 * that hold a '<' stay away: only they can spell <n>, which a stream does not
 * wait for (spelled_words() is about that).
 */
static int32_t
random_id(const glm_tokenizer_t *t, uint64_t *seed)
{
    size_t       n;
    int32_t      id, vocab = glm_tokenizer_vocab_size(t);
    const char  *s;
    static const uint8_t  likely[] = "\xE4\xBD\xA0\xF0\x9F\x98\x80\xE2\x96\x81";

    for ( ;; ) {
        switch (rnd(seed) % 8) {
        case 0: case 1: case 2:
            id = vocab - 256 + (int32_t) (rnd(seed) % 256);
            break;
        case 3:
            id = vocab - 256 + likely[rnd(seed) % (sizeof(likely) - 1)];
            break;
        case 4:
            id = (int32_t) (rnd(seed) % (uint32_t) (vocab + 100)) - 50;
            break;
        case 5:
            id = (int32_t) (rnd(seed) % 6);      /* the controls, <n>, the blank */
            break;
        default:
            id = (int32_t) (rnd(seed) % (uint32_t) vocab);
        }
        s = glm_token_name(t, id, &n);
        if (id == vocab - 256 + '<') continue;
        if (glm_token_kind(t, id) == GLM_TOK_TEXT && id < vocab - 344 && id != 4
            && memchr(s, '<', n) != NULL) continue;
        return id;
    }
}

/* What a stream sends must be valid alone and lead to the whole's text. */
static int
stream_equals_decode(const glm_tokenizer_t *t, const glm_ids_t *ids)
{
    int          good = 1;
    size_t       i, from;
    glm_text_t   sent = {0}, whole = {0}, part = {0};
    glm_detok_t  d;

    glm_detok_init(&d, t);
    good &= glm_decode(t, ids->id, ids->n, 0, &whole) == 0;
    for (i = 0; i < ids->n; i++) {
        from = sent.n;
        good &= glm_detok_push(&d, ids->id[i], &sent) == 0;
        good &= sent.n == from
                || glm_utf8_valid(sent.s + from, sent.n - from) == sent.n - from;
        /* Nothing is late either: only an unfinished character is held. */
        part.n = 0;
        good &= glm_decode(t, ids->id, i + 1, 0, &part) == 0;
        good &= part.n >= sent.n && part.n - sent.n <= 9;
    }
    good &= glm_detok_flush(&d, 1, &sent) == 0;
    good &= sent.n == whole.n && (sent.n == 0 || memcmp(sent.s, whole.s, sent.n) == 0);
    good &= glm_utf8_valid(whole.s, whole.n) == whole.n;
    glm_text_free(&sent);
    glm_text_free(&whole);
    glm_text_free(&part);
    return good;
}

static void
random_streams(const glm_tokenizer_t *t)
{
    int        i, good = 0;
    size_t     k, n;
    uint64_t   seed = 20221101;
    glm_ids_t  ids = {0};

    for (i = 0; i < 5000; i++) {
        ids.n = 0;
        n = rnd(&seed) % 40;
        for (k = 0; k < n; k++) glm_ids_push(&ids, random_id(t, &seed));
        good += stream_equals_decode(t, &ids);
    }
    ok(good == i, "%d of %d random streams: valid, and equal to the decode", good, i);
    glm_ids_free(&ids);
}

static void
push_bytes(const glm_tokenizer_t *t, const char *s, glm_ids_t *ids)
{
    for (; *s; s++) glm_ids_push(ids, glm_tokenizer_vocab_size(t) - 256 + (uint8_t) *s);
}

/* Words spelled by other pieces: changed in a decode, sent as they are in a stream. */
static void
spelled_words(const glm_tokenizer_t *t)
{
    size_t       i, k;
    glm_ids_t    ids = {0};
    glm_text_t   text = {0};
    glm_detok_t  d;
    static const char  *word[][2] = {
        { "a<n>b", "a\nb" },
        { "<|tab|>", "\t" },
        { "<|blank_3|>", "   " },
        { "<<n>>", "<\n>" },
        { "<|blank_1|>", "<|blank_1|>" },
        { "<|blank_81|>", "<|blank_81|>" },
        { "<|blank_02|>", "<|blank_02|>" },
        { "<|blank_2|", "<|blank_2|" },
        { "<|blank_<n>", "<|blank_\n" },
    };

    for (i = 0; i < sizeof(word) / sizeof(word[0]); i++) {
        ids.n = text.n = 0;
        push_bytes(t, word[i][0], &ids);
        glm_decode(t, ids.id, ids.n, 0, &text);
        ok(text.n == strlen(word[i][1]) && memcmp(text.s, word[i][1], text.n) == 0,
           "%s in a decode", word[i][0]);
        text.n = 0;
        glm_detok_init(&d, t);
        for (k = 0; k < ids.n; k++) glm_detok_push(&d, ids.id[k], &text);
        ok(text.n == ids.n && memcmp(text.s, word[i][0], text.n) == 0, "%s in a stream",
           word[i][0]);
    }
    glm_ids_free(&ids);
    glm_text_free(&text);
}

static int
is(const glm_text_t *text, const char *want)
{
    return text->n == strlen(want) && memcmp(text->s, want, text->n) == 0;
}

/* The end of a cut answer, by both ways. */
static void
cut_answer(const glm_tokenizer_t *t)
{
    int          replace;
    size_t       i;
    glm_ids_t    ids = {0};
    glm_text_t   text = {0};
    glm_detok_t  d;

    push_bytes(t, "ok\xF0\x9F\x98", &ids);
    for (replace = 0; replace < 2; replace++) {
        text.n = 0;
        glm_detok_init(&d, t);
        for (i = 0; i < ids.n; i++) glm_detok_push(&d, ids.id[i], &text);
        ok(is(&text, "ok"), "three bytes of four are held back");
        glm_detok_flush(&d, replace, &text);
        ok(is(&text, replace ? "ok\uFFFD\uFFFD\uFFFD" : "ok"), "flush with replace %d", replace);
        glm_detok_flush(&d, 1, &text);
        ok(text.n == (replace ? 11 : 2), "a second flush brings nothing");
    }
    glm_ids_free(&ids);
    glm_text_free(&text);
}

static void
mask_names(const glm_tokenizer_t *t)
{
    int32_t     mask = glm_tokenizer_vocab_size(t) - 344;
    int32_t     ids[] = { mask, 5, mask + 1, mask + 2, mask + 4, mask + 5, 2 };
    glm_text_t  text = {0};

    glm_decode(t, ids, sizeof(ids) / sizeof(ids[0]), GLM_DECODE_MASK_NAMES, &text);
    ok(is(&text, "[MASK] [gMASK][sMASK]"), "masks by name, other control ids not at all");
    text.n = 0;
    glm_text_add(&text, "before", 6);
    glm_decode(t, ids, sizeof(ids) / sizeof(ids[0]), 0, &text);
    ok(is(&text, "before"), "without the flag they give nothing, nor does a blank at the start");
    glm_text_free(&text);
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
    }
    demo_goldens(demo);
    random_goldens(demo, DEMO_RANDOM);
    random_streams(demo);
    spelled_words(demo);
    cut_answer(demo);
    mask_names(demo);
    glm_tokenizer_free(demo);
    glm_tokenizer_free(real);
    return tap_done();
}
