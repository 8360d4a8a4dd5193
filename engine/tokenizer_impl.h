/*
 * tokenizer_impl: what the tokenizer's own files share.  Nobody else includes
 * it; the public contract is tokenizer.h.
 *
 * Order of ids: images, the pieces of the model file ("index" counts from
 * here), then the pieces that icetk appends: 8 special ones, the tab, 79
 * blanks, 256 bytes.
 */
#ifndef GLM_TOKENIZER_IMPL_H
#define GLM_TOKENIZER_IMPL_H

#include "tokenizer.h"

#define GLM_TOK_NSPECIAL   8
#define GLM_TOK_MAX_BLANK  80         /* blanks in the longest blank piece */
#define GLM_TOK_NBLANK     (GLM_TOK_MAX_BLANK - 1)
#define GLM_TOK_NBYTE      256
#define GLM_TOK_NAPPEND    (GLM_TOK_NSPECIAL + 1 + GLM_TOK_NBLANK + GLM_TOK_NBYTE)

#define GLM_TOK_MAX_IDS    (1 << 24)
#define GLM_TOK_MAX_FILE   (256u << 20)
#define GLM_TOK_MAX_PIECE  127        /* bytes; the real model's longest is 48 */
#define GLM_TOK_MAX_KEY    64         /* bytes of a charsmap key that are looked at */

#define GLM_TOK_SPACE      "\xE2\x96\x81"    /* U+2581, a blank inside pieces */
#define GLM_TOK_SPACE_LEN  3
#define GLM_TOK_NEWLINE    "<n>"
#define GLM_TOK_TAB        "<|tab|>"

/* SentencePiece's piece types, as in the file. */
typedef enum {
    GLM_PIECE_NORMAL = 1,
    GLM_PIECE_UNKNOWN,
    GLM_PIECE_CONTROL,
    GLM_PIECE_USER,
    GLM_PIECE_UNUSED,
    GLM_PIECE_BYTE
} glm_piece_type_t;

/* A piece while loading; s is not NUL-terminated and belongs to the file. */
typedef struct {
    const char  *s;
    uint32_t     len;
    float        score;
    uint8_t      type;        /* glm_piece_type_t */
} glm_piece_t;

/*
 * Trie over bytes.  Nodes are in breadth-first order, so the children of a
 * node are neighbours, ordered by byte; node 0 is the root.
 */
typedef struct {
    uint32_t  child;          /* first child */
    uint16_t  nchild;
    uint16_t  user;           /* 1: user-defined, score is not used */
    int32_t   index;          /* piece that ends here, -1 none */
    float     score;
} glm_trie_node_t;

typedef struct {
    glm_trie_node_t  *node;
    uint8_t          *label;        /* (nnode) byte that leads to a node */
    uint32_t          nnode;
    uint32_t          root[256];    /* child of the root by byte, 0 none */
} glm_trie_t;

/* The normaliser's table: a darts-clone double array and replacements. */
typedef struct {
    uint32_t  *unit;
    size_t     nunit;         /* a multiple of 256 */
    char      *repl;          /* NUL-terminated strings, valid UTF-8 */
    size_t     nrepl;
} glm_charsmap_t;

/* tokenizer_config.json, checked. */
typedef struct {
    char     model_file[256];
    int32_t  images;          /* ids before the first piece */
    int32_t  npieces;         /* pieces without the appended ones */
    int32_t  unk;             /* id */
    int32_t  padded;          /* rows of the embedding */
} glm_tokenizer_config_t;

struct glm_tokenizer_s {
    int32_t          images;
    int32_t          npieces;       /* without the appended ones */
    int32_t          vocab;         /* images + npieces + appended */
    int32_t          newline;       /* ids from here on */
    int32_t          special;       /* first of [MASK] [gMASK] [sMASK] ... */
    int32_t          tab;
    int32_t          blank;         /* first, two blanks */
    int32_t          byte;          /* first, 0x00 */
    float            unk_score;     /* of a character without a piece */
    uint8_t         *type;          /* (npieces + appended) glm_piece_type_t */
    uint32_t        *name_at;       /* (npieces + appended + 1) into names */
    char            *names;         /* NUL-terminated, blank for U+2581 */
    glm_trie_t       pieces;        /* NORMAL and USER */
    glm_trie_t       user;          /* USER alone, for the normaliser */
    glm_charsmap_t   map;
};

/* tokenizer_config.c: path is for error texts alone */
int glm_tokenizer_config(glm_tokenizer_config_t *c, const char *json, size_t len,
    const char *path, glm_err_t *err);

/* tokenizer_model.c: fills t from the bytes of a model file */
int glm_tokenizer_model(glm_tokenizer_t *t, const glm_tokenizer_config_t *c,
    const void *data, size_t len, const char *path, glm_err_t *err);

/*
 * tokenizer_trie.c: takes the pieces of n whose type has its bit in types.
 * *twice is the index of a piece that is there two times, when GLM_EFORMAT is
 * returned.  What is built so far is freed by glm_trie_free() also on failure.
 */
int glm_trie_build(glm_trie_t *t, const glm_piece_t *piece, size_t n, unsigned types,
    size_t *twice);
void glm_trie_free(glm_trie_t *t);

/* tokenizer_normalize.c */
int glm_charsmap_init(glm_charsmap_t *m, const void *data, size_t len, const char **why);
void glm_charsmap_free(glm_charsmap_t *m);
/* Appends icetk's own rewriting of newline, tab and blanks. */
int glm_preprocess(const char *s, size_t n, glm_text_t *out);
/* Appends the normalised text: valid UTF-8, blanks as U+2581. */
int glm_normalize(const glm_tokenizer_t *t, const char *s, size_t n, glm_text_t *out);

/* tokenizer.c: names of the special ids, in their order; the first three are masks */
extern const char *const glm_tok_special[GLM_TOK_NSPECIAL];

/* tokenizer.c: room for n more bytes */
int glm_text_reserve(glm_text_t *t, size_t n);

/* The child of node by byte c, 0 if there is none. */
static inline uint32_t
glm_trie_step(const glm_trie_t *t, uint32_t node, uint8_t c)
{
    const glm_trie_node_t  *n = &t->node[node];
    const uint8_t          *label = t->label + n->child;
    uint32_t                lo, hi, mid;

    if (node == 0) return t->root[c];
    if (n->nchild <= 8) {
        for (lo = 0; lo < n->nchild; lo++) {
            if (label[lo] == c) return n->child + lo;
        }
        return 0;
    }
    for (lo = 0, hi = n->nchild; lo < hi;) {
        mid = (lo + hi) / 2;
        if (label[mid] < c) lo = mid + 1;
        else hi = mid;
    }
    return lo < n->nchild && label[lo] == c ? n->child + lo : 0;
}

#endif
