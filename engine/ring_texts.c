/*
 * ring_texts: what each id prints, made once at start, for log-probabilities:
 * a step may need twenty of them a row.  Immutable after glm_texts_make(): any
 * thread.
 */
#include "ring_impl.h"

#include <stdlib.h>

struct glm_texts_s {
    int32_t     vocab;
    uint32_t   *at;           /* vocab + 1 offsets into text */
    glm_text_t  text;
};

/* A piece as it prints inside a text (a leading blank stays), a byte token as
 * its byte, anything else by its name. */
static int
add_one(struct glm_texts_s *x, const glm_tokenizer_t *t, int32_t id)
{
    size_t        n;
    char          byte;
    glm_detok_t   d;
    const char   *name = glm_token_name(t, id, &n);

    switch (glm_token_kind(t, id)) {
    case GLM_TOK_TEXT:
        glm_detok_init(&d, t);
        d.started = 1;
        return glm_detok_push(&d, id, &x->text);
    case GLM_TOK_BYTE:        /* "<0x0A>" */
        if (n < 6) return 0;
        byte = (char) strtoul(name + 3, NULL, 16);
        return glm_text_add(&x->text, &byte, 1);
    default:
        return glm_text_add(&x->text, name, n);
    }
}

/* NULL: no memory.  t may be NULL: no id prints anything. */
struct glm_texts_s *
glm_texts_make(const glm_tokenizer_t *t, int32_t vocab)
{
    int32_t              id;
    struct glm_texts_s  *x = calloc(1, sizeof(*x));

    if (x == NULL) return NULL;
    if (t == NULL) return x;
    x->at = calloc((size_t) vocab + 1, sizeof(*x->at));
    if (x->at == NULL) goto fail;
    for (id = 0; id < vocab; id++) {
        if (add_one(x, t, id) != 0) goto fail;
        x->at[id + 1] = (uint32_t) x->text.n;
    }
    x->vocab = vocab;
    return x;

fail:
    glm_texts_free(x);
    return NULL;
}

void
glm_texts_free(struct glm_texts_s *x)
{
    if (x == NULL) return;
    free(x->at);
    glm_text_free(&x->text);
    free(x);
}

const char *
glm_texts_get(void *arg, int32_t id, size_t *n)
{
    const struct glm_texts_s  *x = arg;

    *n = 0;
    if (id < 0 || id >= x->vocab) return "";
    *n = x->at[id + 1] - x->at[id];
    return x->text.s + x->at[id];
}
