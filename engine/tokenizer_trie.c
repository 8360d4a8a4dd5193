/*
 * tokenizer_trie: builds the tries over pieces.  The pieces are sorted; then a
 * node is a range of the sorted list, and its children are the runs of equal
 * next bytes, made level by level.
 */
#include "tokenizer_impl.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    uint64_t      head;       /* first 8 bytes, big-endian, 0-padded */
    const char   *s;
    uint32_t      len;
    uint32_t      index;
} entry_t;

typedef struct {
    uint32_t  lo, hi;         /* entries that share the node's bytes */
    uint32_t  depth;          /* how many bytes */
} range_t;

typedef struct {
    entry_t            *entry;
    size_t              n;
    range_t            *range;    /* by node */
    const glm_piece_t  *piece;
} build_t;

static int
compare(const void *a, const void *b)
{
    int             c;
    const entry_t  *x = a, *y = b;

    if (x->head != y->head) return x->head < y->head ? -1 : 1;
    c = memcmp(x->s, y->s, x->len < y->len ? x->len : y->len);
    if (c != 0) return c;
    return (x->len > y->len) - (x->len < y->len);
}

/* Sorted list of the wanted pieces. */
static int
collect(build_t *b, const glm_piece_t *piece, size_t n, unsigned types)
{
    size_t     i, k;
    entry_t   *e;

    b->piece = piece;
    b->entry = calloc(n + 1, sizeof(*b->entry));
    if (b->entry == NULL) return GLM_ENOMEM;
    for (i = 0; i < n; i++) {
        if (!(types >> piece[i].type & 1)) continue;
        e = &b->entry[b->n++];
        e->s = piece[i].s;
        e->len = piece[i].len;
        e->index = (uint32_t) i;
        for (k = 0; k < 8; k++) {
            e->head = e->head << 8 | (k < e->len ? (uint8_t) e->s[k] : 0);
        }
    }
    qsort(b->entry, b->n, sizeof(*b->entry), compare);
    return 0;
}

/*
 * A new node for the entries of r.  There are never more nodes than bytes in
 * all pieces and the root, which is what reserve() made room for.
 */
static uint32_t
add_node(glm_trie_t *t, build_t *b, range_t r, uint8_t label)
{
    uint32_t  at = t->nnode++;

    t->node[at].index = -1;
    t->label[at] = label;
    b->range[at] = r;
    return at;
}

/* Where the run of entries ends that share the byte at depth with lo. */
static uint32_t
run_end(const build_t *b, uint32_t lo, uint32_t hi, uint32_t depth)
{
    uint32_t  i = lo + 1;
    char      c = b->entry[lo].s[depth];

    while (i < hi && b->entry[i].s[depth] == c) i++;
    return i;
}

/* Makes the children of a node; its own piece, if any, sorts first. */
static int
expand(glm_trie_t *t, build_t *b, uint32_t at, size_t *twice)
{
    range_t             r = b->range[at];
    uint8_t             label;
    uint32_t            child, end;
    glm_trie_node_t    *n = &t->node[at];
    const glm_piece_t  *piece;

    if (r.lo < r.hi && b->entry[r.lo].len == r.depth) {
        n->index = (int32_t) b->entry[r.lo].index;
        piece = &b->piece[n->index];
        n->score = piece->score;
        n->user = piece->type == GLM_PIECE_USER;
        if (++r.lo < r.hi && b->entry[r.lo].len == r.depth) {
            *twice = b->entry[r.lo].index;
            return GLM_EFORMAT;
        }
    }
    n->child = t->nnode;
    while (r.lo < r.hi) {
        label = (uint8_t) b->entry[r.lo].s[r.depth];
        end = run_end(b, r.lo, r.hi, r.depth);
        child = add_node(t, b, (range_t) { r.lo, end, r.depth + 1 }, label);
        if (at == 0) t->root[label] = child;
        n->nchild++;
        r.lo = end;
    }
    return 0;
}

/* Room for every node that there can be; given back at the end. */
static int
reserve(glm_trie_t *t, build_t *b)
{
    size_t  i, cap = 1;

    for (i = 0; i < b->n; i++) cap += b->entry[i].len;
    t->node = calloc(cap, sizeof(*t->node));
    t->label = malloc(cap);
    b->range = malloc(cap * sizeof(*b->range));
    return t->node == NULL || t->label == NULL || b->range == NULL ? GLM_ENOMEM : 0;
}

static void
shrink(glm_trie_t *t)
{
    void  *p;

    if ((p = realloc(t->node, t->nnode * sizeof(*t->node))) != NULL) t->node = p;
    if ((p = realloc(t->label, t->nnode)) != NULL) t->label = p;
}

int
glm_trie_build(glm_trie_t *t, const glm_piece_t *piece, size_t n, unsigned types, size_t *twice)
{
    int       rc;
    build_t   b = {0};
    uint32_t  at;

    *t = (glm_trie_t) {0};
    if ((rc = collect(&b, piece, n, types)) != 0 || (rc = reserve(t, &b)) != 0) goto done;
    add_node(t, &b, (range_t) { 0, (uint32_t) b.n, 0 }, 0);
    for (at = 0; at < t->nnode && rc == 0; at++) rc = expand(t, &b, at, twice);
    if (rc == 0) shrink(t);
done:
    free(b.entry);
    free(b.range);
    return rc;
}

void
glm_trie_free(glm_trie_t *t)
{
    free(t->node);
    free(t->label);
    *t = (glm_trie_t) {0};
}
