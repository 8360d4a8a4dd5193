/*
 * tokenizer_model: reads a SentencePiece model file (the few fields of its
 * protobuf that matter here), checks that it is of icetk's kind, and appends
 * the pieces that icetk appends.  Trusts no byte of the file; nothing of it is
 * referred to after loading.
 */
#include "tokenizer_impl.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "utf8.h"

#define UNK_PENALTY  10.0f
#define MIN_SCORE    (-1e9f)

#define PB_VARINT    0
#define PB_FIXED64   1
#define PB_BYTES     2
#define PB_FIXED32   5

/* Unread bytes of a message, and the field read last. */
typedef struct {
    const uint8_t  *p, *end;
    uint32_t        field;
    uint32_t        wire;       /* PB_* */
    uint64_t        value;      /* of a number; length of bytes */
    const uint8_t  *bytes;
} pb_t;

typedef struct {
    const char      *path;
    glm_err_t       *err;
    glm_piece_t     *piece;     /* (npiece + GLM_TOK_NAPPEND) */
    size_t           npiece;
    const uint8_t   *map;       /* precompiled_charsmap, in the file */
    size_t           map_len;
    char            *words;     /* text of the appended pieces */
} load_t;

static int
pb_varint(pb_t *m, uint64_t *value)
{
    int      shift;
    uint8_t  c;

    *value = 0;
    for (shift = 0; shift < 64 && m->p < m->end; shift += 7) {
        c = *m->p++;
        *value |= (uint64_t) (c & 0x7F) << shift;
        if (c < 0x80) return 1;
    }
    return -1;
}

/* Little-endian number of n bytes. */
static int
pb_fixed(pb_t *m, size_t n)
{
    size_t  i;

    if ((size_t) (m->end - m->p) < n) return -1;
    for (m->value = 0, i = 0; i < n; i++) m->value |= (uint64_t) *m->p++ << (8 * i);
    return 1;
}

static int
pb_bytes(pb_t *m)
{
    if (pb_varint(m, &m->value) < 0 || m->value > (uint64_t) (m->end - m->p)) return -1;
    m->bytes = m->p;
    m->p += m->value;
    return 1;
}

/* The next field: 1, 0 at the end, -1 when the message is broken. */
static int
pb_next(pb_t *m)
{
    uint64_t  tag;

    if (m->p == m->end) return 0;
    if (pb_varint(m, &tag) < 0 || tag >> 3 == 0 || tag >> 32 != 0) return -1;
    m->field = (uint32_t) (tag >> 3);
    m->wire = tag & 7;
    switch (m->wire) {
    case PB_VARINT:
        return pb_varint(m, &m->value);
    case PB_FIXED64:
        return pb_fixed(m, 8);
    case PB_BYTES:
        return pb_bytes(m);
    case PB_FIXED32:
        return pb_fixed(m, 4);
    default:
        return -1;
    }
}

static pb_t
pb_sub(const pb_t *m)
{
    return (pb_t) { .p = m->bytes, .end = m->bytes + m->value };
}

static int
broken(load_t *l, const char *what)
{
    return glm_fail(l->err, GLM_EFORMAT, "%s: not a SentencePiece model: broken %s", l->path,
                    what);
}

static int
bad_piece(load_t *l, size_t i, const char *what)
{
    return glm_fail(l->err, GLM_EFORMAT, "%s: piece %zu %s", l->path, i, what);
}

static int
check_piece(load_t *l, size_t i)
{
    const glm_piece_t  *p = &l->piece[i];

    if (p->len == 0) return bad_piece(l, i, "is empty");
    if (p->len > GLM_TOK_MAX_PIECE) return bad_piece(l, i, "is longer than 127 bytes");
    if (glm_utf8_valid(p->s, p->len) != p->len) return bad_piece(l, i, "is not UTF-8");
    if (p->type < GLM_PIECE_NORMAL || p->type > GLM_PIECE_BYTE) {
        return bad_piece(l, i, "has an unknown type");
    }
    /* A positive score would change what the library gives user-defined ones. */
    if (!isfinite(p->score) || p->score > 0 || p->score < MIN_SCORE) {
        return bad_piece(l, i, "has a score that is not from -1e9 to 0");
    }
    return 0;
}

static int
read_piece(load_t *l, pb_t m)
{
    int           rc;
    uint32_t      bits;
    glm_piece_t  *p = &l->piece[l->npiece];

    *p = (glm_piece_t) { .s = "", .type = GLM_PIECE_NORMAL };
    while ((rc = pb_next(&m)) > 0) {
        if (m.field == 1 && m.wire == PB_BYTES) {
            p->s = (const char *) m.bytes;
            p->len = m.value > UINT32_MAX ? UINT32_MAX : (uint32_t) m.value;
        } else if (m.field == 2 && m.wire == PB_FIXED32) {
            bits = (uint32_t) m.value;
            memcpy(&p->score, &bits, sizeof(bits));
        } else if (m.field == 3 && m.wire == PB_VARINT) {
            p->type = m.value > GLM_PIECE_BYTE ? 0 : (uint8_t) m.value;
        }
    }
    if (rc < 0) return broken(l, "piece");
    rc = check_piece(l, l->npiece);
    if (rc == 0) l->npiece++;
    return rc;
}

static int
read_trainer(load_t *l, pb_t m)
{
    int  rc;

    while ((rc = pb_next(&m)) > 0) {
        if (m.wire != PB_VARINT) continue;
        if (m.field == 3 && m.value != 1) {
            return glm_fail(l->err, GLM_EFORMAT, "%s: not a unigram model", l->path);
        }
        if (m.field == 24 && m.value != 0) {
            return glm_fail(l->err, GLM_EFORMAT, "%s: has blanks at the end of pieces", l->path);
        }
    }
    return rc < 0 ? broken(l, "trainer_spec") : 0;
}

static int
read_normalizer(load_t *l, pb_t m)
{
    int  rc;

    while ((rc = pb_next(&m)) > 0) {
        if (m.field == 2 && m.wire == PB_BYTES) {
            l->map = m.bytes;
            l->map_len = m.value;
        } else if (m.field >= 3 && m.field <= 5 && m.wire == PB_VARINT && m.value == 0) {
            /* add_dummy_prefix, remove_extra_whitespaces, escape_whitespaces */
            return glm_fail(l->err, GLM_EFORMAT, "%s: its normaliser treats blanks otherwise",
                            l->path);
        }
    }
    return rc < 0 ? broken(l, "normalizer_spec") : 0;
}

/* Room for all pieces: counts them first. */
static int
count_pieces(load_t *l, pb_t m)
{
    int     rc;
    size_t  n = 0;

    while ((rc = pb_next(&m)) > 0) n += m.field == 1 && m.wire == PB_BYTES;
    if (rc < 0) return broken(l, "message");
    if (n == 0) return glm_fail(l->err, GLM_EFORMAT, "%s: has no pieces", l->path);
    if (n > GLM_TOK_MAX_IDS) return glm_fail(l->err, GLM_ELIMIT, "%s: too many pieces", l->path);
    l->piece = calloc(n + GLM_TOK_NAPPEND, sizeof(*l->piece));
    if (l->piece == NULL) return glm_fail(l->err, GLM_ENOMEM, "%s: no memory", l->path);
    return 0;
}

static int
read_model(load_t *l, const void *data, size_t len)
{
    int   rc;
    pb_t  m = { .p = data, .end = (const uint8_t *) data + len };

    rc = count_pieces(l, m);
    while (rc == 0 && pb_next(&m) > 0) {
        if (m.wire != PB_BYTES) continue;
        if (m.field == 1) rc = read_piece(l, pb_sub(&m));
        else if (m.field == 2) rc = read_trainer(l, pb_sub(&m));
        else if (m.field == 3) rc = read_normalizer(l, pb_sub(&m));
    }
    if (rc == 0 && l->map == NULL) {
        rc = glm_fail(l->err, GLM_EFORMAT, "%s: has no normaliser table", l->path);
    }
    return rc;
}

/* Text of appended piece k into word (16); returns its type. */
static glm_piece_type_t
appended_word(size_t k, char *word)
{
    if (k < GLM_TOK_NSPECIAL) {
        strcpy(word, glm_tok_special[k]);
        return GLM_PIECE_CONTROL;
    }
    k -= GLM_TOK_NSPECIAL;
    if (k == 0) {
        strcpy(word, GLM_TOK_TAB);
        return GLM_PIECE_USER;
    }
    if (k <= GLM_TOK_NBLANK) {
        snprintf(word, 16, "<|blank_%u|>", (unsigned) (k + 1) & 0xFF);
        return GLM_PIECE_USER;
    }
    snprintf(word, 16, "<0x%02X>", (unsigned) (k - 1 - GLM_TOK_NBLANK) & 0xFF);
    return GLM_PIECE_BYTE;
}

/*
 * Puts icetk's own pieces behind the first ones.  A file that has them already
 * (ChatGLM-6B's) must have the same text and bytes; its names of the special
 * ones differ, and ours are kept.
 */
static int
append_pieces(load_t *l, size_t first)
{
    char              *word = l->words = malloc(GLM_TOK_NAPPEND * 16);
    size_t             k;
    glm_piece_t       *p;
    glm_piece_type_t   type;

    if (word == NULL) return glm_fail(l->err, GLM_ENOMEM, "%s: no memory", l->path);
    for (k = 0; k < GLM_TOK_NAPPEND; k++, word += 16) {
        type = appended_word(k, word);
        p = &l->piece[first + k];
        if (first + k < l->npiece && k >= GLM_TOK_NSPECIAL
            && (p->len != strlen(word) || memcmp(p->s, word, p->len) != 0))
        {
            return glm_fail(l->err, GLM_EFORMAT, "%s: piece %zu is not %s", l->path, first + k,
                            word);
        }
        *p = (glm_piece_t) { word, (uint32_t) strlen(word), 0, (uint8_t) type };
    }
    l->npiece = first + GLM_TOK_NAPPEND;
    return 0;
}

/* The pieces before the appended ones: one unknown where the config says, no bytes. */
static int
check_base(load_t *l, const glm_tokenizer_config_t *c)
{
    size_t  i, unk = (size_t) (c->unk - c->images), n = (size_t) c->npieces;

    if (l->npiece != n && l->npiece != n + GLM_TOK_NAPPEND) {
        return glm_fail(l->err, GLM_EFORMAT, "%s: has %zu pieces, tokenizer_config.json says "
                        "%zu (or %zu with the appended ones)", l->path, l->npiece, n,
                        n + GLM_TOK_NAPPEND);
    }
    for (i = 0; i < n; i++) {
        if (l->piece[i].type == GLM_PIECE_BYTE) return bad_piece(l, i, "is a byte");
        if ((l->piece[i].type == GLM_PIECE_UNKNOWN) != (i == unk)) {
            return bad_piece(l, i, i == unk ? "is not the unknown, but unk_id names it"
                                            : "is the unknown, but unk_id is another");
        }
    }
    return 0;
}

/* Finds <n>, and the score of characters without a piece. */
static int
scan_base(load_t *l, glm_tokenizer_t *t)
{
    float               min = 0;
    size_t              i;
    const glm_piece_t  *p;

    t->newline = -1;
    for (i = 0; i < (size_t) t->npieces; i++) {
        p = &l->piece[i];
        if (p->type == GLM_PIECE_NORMAL && p->score < min) min = p->score;
        if (p->type == GLM_PIECE_USER && p->len == strlen(GLM_TOK_NEWLINE)
            && memcmp(p->s, GLM_TOK_NEWLINE, p->len) == 0)
        {
            t->newline = t->images + (int32_t) i;
        }
    }
    t->unk_score = min - UNK_PENALTY;
    if (t->newline >= 0) return 0;
    return glm_fail(l->err, GLM_EFORMAT, "%s: has no user-defined piece %s", l->path,
                    GLM_TOK_NEWLINE);
}

static void
set_layout(glm_tokenizer_t *t, const glm_tokenizer_config_t *c)
{
    t->images = c->images;
    t->npieces = c->npieces;
    t->special = c->images + c->npieces;
    t->tab = t->special + GLM_TOK_NSPECIAL;
    t->blank = t->tab + 1;
    t->byte = t->blank + GLM_TOK_NBLANK;
    t->vocab = t->byte + GLM_TOK_NBYTE;
}

/* The piece's text for people: a blank for U+2581.  Returns its bytes. */
static uint32_t
write_name(char *to, const glm_piece_t *p)
{
    char      *start = to;
    uint32_t   i = 0;

    while (i < p->len) {
        if (p->len - i >= GLM_TOK_SPACE_LEN
            && memcmp(p->s + i, GLM_TOK_SPACE, GLM_TOK_SPACE_LEN) == 0)
        {
            *to++ = ' ';
            i += GLM_TOK_SPACE_LEN;
        } else {
            *to++ = p->s[i++];
        }
    }
    *to++ = '\0';
    return (uint32_t) (to - start);
}

static int
make_names(load_t *l, glm_tokenizer_t *t)
{
    size_t    i, total = 0;
    uint32_t  at = 0;

    for (i = 0; i < l->npiece; i++) total += l->piece[i].len + 1;
    t->type = malloc(l->npiece);
    t->name_at = malloc((l->npiece + 1) * sizeof(*t->name_at));
    t->names = malloc(total);
    if (t->type == NULL || t->name_at == NULL || t->names == NULL) {
        return glm_fail(l->err, GLM_ENOMEM, "%s: no memory", l->path);
    }
    for (i = 0; i < l->npiece; i++) {
        t->type[i] = l->piece[i].type;
        t->name_at[i] = at;
        at += write_name(t->names + at, &l->piece[i]);
    }
    t->name_at[i] = at;
    return 0;
}

static int
make_tries(load_t *l, glm_tokenizer_t *t)
{
    int     rc;
    size_t  twice = 0;

    rc = glm_trie_build(&t->pieces, l->piece, l->npiece,
                        1u << GLM_PIECE_NORMAL | 1u << GLM_PIECE_USER, &twice);
    if (rc == 0) {
        rc = glm_trie_build(&t->user, l->piece, l->npiece, 1u << GLM_PIECE_USER, &twice);
    }
    if (rc == GLM_EFORMAT) return bad_piece(l, twice, "is there twice");
    return rc == 0 ? 0 : glm_fail(l->err, rc, "%s: no memory", l->path);
}

int
glm_tokenizer_model(glm_tokenizer_t *t, const glm_tokenizer_config_t *c, const void *data,
    size_t len, const char *path, glm_err_t *err)
{
    int          rc;
    load_t       l = { .path = path, .err = err };
    const char  *why;

    set_layout(t, c);
    rc = read_model(&l, data, len);
    if (rc == 0) rc = check_base(&l, c);
    if (rc == 0) rc = append_pieces(&l, (size_t) c->npieces);
    if (rc == 0) rc = scan_base(&l, t);
    if (rc == 0) rc = make_names(&l, t);
    if (rc == 0) rc = make_tries(&l, t);
    if (rc == 0) {
        rc = glm_charsmap_init(&t->map, l.map, l.map_len, &why);
        if (rc != 0) glm_fail(err, rc, "%s: %s", path, why);
    }
    free(l.piece);
    free(l.words);
    return rc;
}
