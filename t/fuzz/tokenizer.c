/*
 * Fuzz entry of the tokenizer.  The first byte picks what the rest is: a text,
 * a list of ids, a model file, a tokenizer_config.json.  Runs from the
 * repository's root (models/demo); GLM_FUZZ_MODEL names another directory.
 * Seeds: t/data/tokenizer/fuzz.
 *
 *   clang -std=gnu11 -D_GNU_SOURCE -Iengine -g -O1 -fsanitize=fuzzer,address,undefined \
 *       t/fuzz/tokenizer.c engine/tokenizer*.c engine/detok.c engine/utf8.c -ljansson
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tokenizer.h"
#include "utf8.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static glm_tokenizer_t *
demo(void)
{
    static glm_tokenizer_t  *t;
    glm_err_t                err = {0};
    const char              *dir = getenv("GLM_FUZZ_MODEL");

    if (t != NULL) return t;
    if (glm_tokenizer_load(&t, dir != NULL ? dir : "models/demo", &err) != 0 || t == NULL) {
        fprintf(stderr, "no tokenizer: %s\n", err.text);
        exit(1);
    }
    return t;
}

static void
must(int cond)
{
    if (!cond) abort();
}

/* A stream of ids is valid at every step, and no less than their decode. */
static void
check_ids(const glm_tokenizer_t *t, const int32_t *ids, size_t n)
{
    size_t       i, from;
    glm_text_t   sent = {0}, whole = {0};
    glm_detok_t  d;

    glm_detok_init(&d, t);
    for (i = 0; i < n; i++) {
        from = sent.n;
        must(glm_detok_push(&d, ids[i], &sent) == 0);
        if (sent.n == from) continue;
        must(glm_utf8_valid(sent.s + from, sent.n - from) == sent.n - from);
    }
    must(glm_detok_flush(&d, 1, &sent) == 0);
    must(glm_decode(t, ids, n, GLM_DECODE_MASK_NAMES, &whole) == 0);
    must(glm_utf8_valid(whole.s, whole.n) == whole.n);
    whole.n = 0;
    must(glm_decode(t, ids, n, 0, &whole) == 0);
    if (sent.n == 0 || memchr(sent.s, '<', sent.n) == NULL) {
        must(sent.n == whole.n && (sent.n == 0 || memcmp(sent.s, whole.s, sent.n) == 0));
    }
    glm_text_free(&sent);
    glm_text_free(&whole);
}

static void
check_text(const glm_tokenizer_t *t, const char *s, size_t n)
{
    size_t     i;
    glm_ids_t  ids = {0};

    must(glm_encode(t, s, n, &ids) == 0);
    for (i = 0; i < ids.n; i++) must(glm_token_kind(t, ids.id[i]) != GLM_TOK_NONTEXT);
    check_ids(t, ids.id, ids.n);
    ids.n = 0;
    must(glm_encode_no_prefix(t, s, n, &ids) == 0);
    must(glm_encode_masks(t, s, n, &ids) == 0);
    glm_ids_free(&ids);
}

/* Two bytes an id, also such as are in no vocabulary. */
static void
fuzz_ids(const uint8_t *data, size_t size)
{
    size_t    i, n = size / 2;
    int32_t  *ids = malloc((n + 1) * sizeof(*ids));

    must(ids != NULL);
    for (i = 0; i < n; i++) ids[i] = (data[2 * i] | data[2 * i + 1] << 8) % 8300 - 100;
    check_ids(demo(), ids, n);
    free(ids);
}

/* First byte: how many pieces the config announces. */
static void
fuzz_model(const uint8_t *data, size_t size)
{
    int               len;
    char              config[160];
    glm_err_t         err = {0};
    glm_tokenizer_t  *t;

    if (size == 0) return;
    len = snprintf(config, sizeof(config), "{\"type\": \"icetk\", \"model_file\": \"m\", "
                   "\"image_tokens\": 7, \"num_text_tokens\": %d, \"unk_id\": 7}", data[0]);
    if (glm_tokenizer_load_mem(&t, config, (size_t) len, data + 1, size - 1, &err) != 0) {
        must(t == NULL && err.text[0] != '\0');
        return;
    }
    check_text(t, "XyX  \n\t\xFF\xC3\xA9 <n>X\0X", 18);
    check_text(t, (const char *) data + size / 2, size - size / 2);
    glm_tokenizer_free(t);
}

static void
fuzz_config(const uint8_t *data, size_t size)
{
    glm_err_t         err = {0};
    glm_tokenizer_t  *t;

    /* The empty model is refused in the end, whatever the config says. */
    must(glm_tokenizer_load_mem(&t, (const char *) data, size, "", 0, &err) != 0);
    must(t == NULL && err.text[0] != '\0');
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0) return 0;
    switch (data[0] % 4) {
    case 0:
        check_text(demo(), (const char *) data + 1, size - 1);
        break;
    case 1:
        fuzz_ids(data + 1, size - 1);
        break;
    case 2:
        fuzz_model(data + 1, size - 1);
        break;
    default:
        fuzz_config(data + 1, size - 1);
    }
    return 0;
}
