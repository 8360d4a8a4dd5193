/*
 * tokenizer_encode: text to ids.  The segmentation is SentencePiece's unigram
 * Viterbi, with its mixture of float and double kept exactly: other rounding
 * gives other ids on long texts.
 */
#include "tokenizer_impl.h"

#include <stdlib.h>
#include <string.h>

#include "utf8.h"

/*
 * What the library gives a user-defined piece, whatever its length: it means
 * length * max_score - 0.1, but its max_score is FLT_MIN when all are negative.
 */
#define USER_SCORE  (-0.1)

#define WINDOW      (GLM_TOK_MAX_PIECE + 1)    /* a power of two */
#define UNKNOWN     0x80                       /* in back[]: no piece */

_Static_assert((WINDOW & (WINDOW - 1)) == 0 && WINDOW <= UNKNOWN, "ring of scores");

typedef struct {
    const glm_tokenizer_t  *t;
    const char             *s;          /* normalised text */
    size_t                  n;
    uint8_t                *back;       /* (n + 1) bytes of the piece that ends here, 0 unset */
    float                   best[WINDOW];    /* its path's score, by position % WINDOW */
} viterbi_t;

/* The float arithmetic of the unknown is the library's, unlike a piece's. */
static void
try_unknown(viterbi_t *v, size_t i, size_t len)
{
    float   cand = v->best[i % WINDOW] + v->t->unk_score;
    size_t  end = i + len;

    if (v->back[end] == 0 || cand > v->best[end % WINDOW]) {
        v->best[end % WINDOW] = cand;
        v->back[end] = (uint8_t) (UNKNOWN | len);
    }
}

/* All pieces that start at i; returns the length of the character there. */
static size_t
advance(viterbi_t *v, size_t i)
{
    int                     single = 0;
    size_t                  end, len = glm_utf8_char(v->s + i, v->n - i);
    double                  cand, from = v->best[i % WINDOW];
    uint32_t                node = 0;
    const glm_trie_t       *trie = &v->t->pieces;
    const glm_trie_node_t  *p;

    if (len == 0) len = 1;      /* cannot be: normalised text is valid */
    for (end = i + 1; end <= v->n; end++) {
        node = glm_trie_step(trie, node, (uint8_t) v->s[end - 1]);
        if (node == 0) break;
        p = &trie->node[node];
        if (p->index < 0) continue;
        if (end - i == len) single = 1;
        cand = (p->user ? USER_SCORE : (double) p->score) + from;
        if (v->back[end] == 0 || cand > (double) v->best[end % WINDOW]) {
            v->best[end % WINDOW] = (float) cand;
            v->back[end] = (uint8_t) (end - i);
        }
    }
    if (!single) try_unknown(v, i, len);
    return len;
}

/* The id of a piece that is known to be in the trie. */
static int32_t
lookup(const glm_tokenizer_t *t, const char *s, size_t len)
{
    size_t    i;
    uint32_t  node = 0;

    for (i = 0; i < len; i++) node = glm_trie_step(&t->pieces, node, (uint8_t) s[i]);
    return t->images + t->pieces.node[node].index;
}

static void
reverse(int32_t *id, size_t n)
{
    size_t   i;
    int32_t  x;

    for (i = 0; i < n / 2; i++) {
        x = id[i];
        id[i] = id[n - 1 - i];
        id[n - 1 - i] = x;
    }
}

/* Follows back[] from the end; an unknown character becomes its bytes. */
static int
collect(const viterbi_t *v, glm_ids_t *ids)
{
    int     rc = 0;
    size_t  at = v->n, i, len, first = ids->n;

    while (at > 0 && rc == 0) {
        len = v->back[at] & ~UNKNOWN;
        if (v->back[at] & UNKNOWN) {
            for (i = 0; i < len && rc == 0; i++) {
                rc = glm_ids_push(ids, v->t->byte + (uint8_t) v->s[at - 1 - i]);
            }
        } else {
            rc = glm_ids_push(ids, lookup(v->t, v->s + at - len, len));
        }
        at -= len;
    }
    if (rc == 0) reverse(ids->id + first, ids->n - first);
    return rc;
}

static int
segment(const glm_tokenizer_t *t, const glm_text_t *text, glm_ids_t *ids)
{
    int        rc;
    size_t     i;
    viterbi_t  v;

    if (text->n == 0) return 0;
    v.t = t;
    v.s = text->s;
    v.n = text->n;
    v.best[0] = 0;
    v.back = calloc(v.n + 1, 1);
    if (v.back == NULL) return GLM_ENOMEM;
    for (i = 0; i < v.n;) i += advance(&v, i);
    rc = collect(&v, ids);
    free(v.back);
    return rc;
}

/* before goes in front of the preprocessed text. */
static int
encode(const glm_tokenizer_t *t, const char *before, const char *text, size_t len, glm_ids_t *ids)
{
    int         rc;
    size_t      first = ids->n;
    glm_text_t  pre = {0}, norm = {0};

    rc = glm_text_add(&pre, before, strlen(before));
    if (rc == 0) rc = glm_preprocess(text, len, &pre);
    if (rc == 0) rc = glm_normalize(t, pre.s, pre.n, &norm);
    glm_text_free(&pre);
    if (rc == 0) rc = segment(t, &norm, ids);
    glm_text_free(&norm);
    if (rc != 0) ids->n = first;
    return rc;
}

int
glm_encode(const glm_tokenizer_t *t, const char *text, size_t len, glm_ids_t *ids)
{
    return encode(t, "", text, len, ids);
}

int
glm_encode_no_prefix(const glm_tokenizer_t *t, const char *text, size_t len, glm_ids_t *ids)
{
    int     rc;
    size_t  first = ids->n, drop;

    /* A newline in front takes the prefix; both are cut off again. */
    rc = encode(t, GLM_TOK_NEWLINE, text, len, ids);
    if (rc != 0) return rc;
    drop = ids->n - first < 2 ? ids->n - first : 2;
    ids->n -= drop;
    if (ids->n > first) {
        memmove(ids->id + first, ids->id + first + drop, (ids->n - first) * sizeof(*ids->id));
    }
    return 0;
}

/* Which mask starts at s: 0-2 in the order of ids, -1 none. */
static int
mask_at(const char *s, size_t n, size_t *len)
{
    int  i;

    for (i = 0; i < 3; i++) {
        *len = strlen(glm_tok_special[i]);
        if (n >= *len && memcmp(s, glm_tok_special[i], *len) == 0) return i;
    }
    return -1;
}

int
glm_encode_masks(const glm_tokenizer_t *t, const char *text, size_t len, glm_ids_t *ids)
{
    int         rc = 0, mask;
    size_t      first = ids->n, n;
    const char  *s = text, *end, *open = s;

    if (len == 0) return 0;     /* text may be NULL */
    end = text + len;
    while (rc == 0 && open < end && (open = memchr(open, '[', (size_t) (end - open))) != NULL) {
        mask = mask_at(open, (size_t) (end - open), &n);
        if (mask < 0) {
            open++;
            continue;
        }
        rc = glm_encode(t, s, (size_t) (open - s), ids);
        if (rc == 0) rc = glm_ids_push(ids, t->special + mask);
        s = open += n;
    }
    if (rc == 0) rc = glm_encode(t, s, (size_t) (end - s), ids);
    if (rc != 0) ids->n = first;
    return rc;
}
