/*
 * tokenizer: icetk's text tokenizer (SentencePiece unigram, nmt_nfkc), as
 * GLM-130B uses it.  Text <-> ids, and streaming detokenisation.  A loaded
 * tokenizer is immutable: any number of threads may use it at once.
 */
#ifndef GLM_TOKENIZER_H
#define GLM_TOKENIZER_H

#include <stddef.h>
#include <stdint.h>

#include "error.h"

typedef struct glm_tokenizer_s  glm_tokenizer_t;

/*
 * Loads tokenizer_config.json and the model file that it names from a model
 * directory.  *out is NULL, with 0 returned, when the directory has no
 * tokenizer_config.json: such a model takes and gives ids only.
 */
int glm_tokenizer_load(glm_tokenizer_t **out, const char *dir, glm_err_t *err);
/* The same from memory: the text of a tokenizer_config.json, the bytes of a model file. */
int glm_tokenizer_load_mem(glm_tokenizer_t **out, const char *config, size_t config_len,
    const void *model, size_t model_len, glm_err_t *err);
void glm_tokenizer_free(glm_tokenizer_t *t);

int32_t glm_tokenizer_vocab_size(const glm_tokenizer_t *t);   /* ids in use */

/* What an id is.  Ids outside the vocabulary and image ids are NONTEXT. */
typedef enum {
    GLM_TOK_TEXT,       /* a piece, newline, tab, blanks */
    GLM_TOK_BYTE,       /* one byte of a character */
    GLM_TOK_NONTEXT     /* masks, sop, eos, unk, image, padding: no text */
} glm_token_kind_t;
glm_token_kind_t glm_token_kind(const glm_tokenizer_t *t, int32_t id);

/* How an id is named to people: the piece with blank for U+2581, "[MASK]",
 * "<0x0A>"; "" for ids without a name.  Static storage of t, UTF-8. */
const char *glm_token_name(const glm_tokenizer_t *t, int32_t id, size_t *len);

/* A growing list of ids: start with {0}, free with glm_ids_free(). */
typedef struct {
    int32_t  *id;
    size_t    n, cap;
} glm_ids_t;
int glm_ids_push(glm_ids_t *ids, int32_t id);      /* 0 or GLM_ENOMEM */
void glm_ids_free(glm_ids_t *ids);

/*
 * Appends the ids of text (any bytes; malformed UTF-8 becomes U+FFFD bytes as
 * in the original).  Masks in text are plain text here.  Linear in len.
 */
int glm_encode(const glm_tokenizer_t *t, const char *text, size_t len, glm_ids_t *ids);
/* The original's option add_dummy_prefix=False. */
int glm_encode_no_prefix(const glm_tokenizer_t *t, const char *text, size_t len, glm_ids_t *ids);
/*
 * As glm_encode(), but [MASK], [gMASK] and [sMASK] (exact case) become their
 * ids; each stretch between them is encoded on its own.
 */
int glm_encode_masks(const glm_tokenizer_t *t, const char *text, size_t len, glm_ids_t *ids);

/* A growing text: start with {0}, free with glm_text_free().  Not NUL-terminated. */
typedef struct {
    char    *s;
    size_t   n, cap;
} glm_text_t;
int glm_text_add(glm_text_t *t, const char *s, size_t n);
void glm_text_free(glm_text_t *t);

/* flags of glm_decode() and glm_detok_t */
#define GLM_DECODE_MASK_NAMES  1    /* masks print as [MASK]; else nothing */
#define GLM_DECODE_ALL_NAMES   2    /* every control id prints its name */

/* Appends the text of ids: the original's decode (U+FFFD for a broken byte). */
int glm_decode(const glm_tokenizer_t *t, const int32_t *ids, size_t n, unsigned flags,
    glm_text_t *out);

/*
 * Streaming decode.  Appends to out what may be sent after each id: never half
 * a UTF-8 character, and the concatenation is a prefix of glm_decode() of all
 * ids.  Constant memory; start with glm_detok_init().
 */
typedef struct {
    const glm_tokenizer_t  *t;
    uint8_t   pending[4];     /* bytes of an unfinished character */
    uint8_t   npending;
    uint8_t   started;        /* some text was made: a leading blank stays */
    uint8_t   flags;          /* GLM_DECODE_*: set after glm_detok_init(), which
                                 leaves 0 */
    uint8_t   reserved;
} glm_detok_t;
void glm_detok_init(glm_detok_t *d, const glm_tokenizer_t *t);
int glm_detok_push(glm_detok_t *d, int32_t id, glm_text_t *out);
/*
 * The end: with replace != 0 an unfinished character comes out as U+FFFD a
 * byte (the original), else it is dropped (an API answer cut in the middle).
 */
int glm_detok_flush(glm_detok_t *d, int replace, glm_text_t *out);

#endif
