/*
 * detok: ids to text, as a stream or in one go.  glm_decode() is the stream
 * plus the original's last step on the whole string, which cannot be streamed
 * without holding text back: words such as <n> that ordinary pieces spelled
 * letter by letter become what they name.
 */
#include "tokenizer_impl.h"

#include <string.h>

#include "utf8.h"

#define UNKNOWN_TEXT  " \xE2\x81\x87 "     /* blank, U+2047, blank */

void
glm_detok_init(glm_detok_t *d, const glm_tokenizer_t *t)
{
    *d = (glm_detok_t) { .t = t };
}

static int
emit(glm_detok_t *d, const char *s, size_t n, glm_text_t *out)
{
    if (n > 0) d->started = 1;
    return glm_text_add(out, s, n);
}

static int
emit_blanks(glm_detok_t *d, size_t n, glm_text_t *out)
{
    int  rc = 0;

    while (n-- > 0 && rc == 0) rc = emit(d, " ", 1, out);
    return rc;
}

static void
drop_pending(glm_detok_t *d, size_t n)
{
    d->npending = (uint8_t) (d->npending - n);
    memmove(d->pending, d->pending + n, d->npending);
}

/* Whether more bytes could still make the pending ones a character. */
static int
unfinished(const glm_detok_t *d)
{
    size_t  i;

    for (i = 1; i < d->npending; i++) {
        if ((d->pending[i] & 0xC0) != 0x80) return 0;
    }
    return d->npending < glm_utf8_need(d->pending[0]);
}

static int
push_byte(glm_detok_t *d, uint8_t byte, glm_text_t *out)
{
    int     rc = 0;
    size_t  len;

    d->pending[d->npending++] = byte;
    while (d->npending > 0 && !unfinished(d) && rc == 0) {
        len = glm_utf8_char((const char *) d->pending, d->npending);
        if (len > 0) {
            rc = emit(d, (const char *) d->pending, len, out);
        } else {
            rc = emit(d, GLM_UTF8_REPLACEMENT, 3, out);
            len = 1;
        }
        drop_pending(d, len);
    }
    return rc;
}

int
glm_detok_flush(glm_detok_t *d, int replace, glm_text_t *out)
{
    int  rc = 0;

    for (; d->npending > 0 && replace && rc == 0; d->npending--) {
        rc = emit(d, GLM_UTF8_REPLACEMENT, 3, out);
    }
    d->npending = 0;
    return rc;
}

static int
push_piece(glm_detok_t *d, int32_t id, glm_text_t *out)
{
    size_t                  n;
    const char             *s;
    const glm_tokenizer_t  *t = d->t;

    if (id == t->newline) return emit(d, "\n", 1, out);
    if (id == t->tab) return emit(d, "\t", 1, out);
    if (id >= t->blank && id < t->blank + GLM_TOK_NBLANK) {
        return emit_blanks(d, (size_t) (id - t->blank) + 2, out);
    }
    s = glm_token_name(t, id, &n);
    if (!d->started && n > 0 && *s == ' ') s++, n--;
    return emit(d, s, n, out);
}

static int
push(glm_detok_t *d, int32_t id, glm_text_t *out)
{
    int                     rc;
    size_t                  n;
    const char             *s;
    const glm_tokenizer_t  *t = d->t;
    glm_token_kind_t        kind = glm_token_kind(t, id);

    if (kind == GLM_TOK_BYTE) return push_byte(d, (uint8_t) (id - t->byte), out);
    rc = glm_detok_flush(d, 1, out);      /* the run of bytes ends here */
    if (rc != 0) return rc;
    if (kind == GLM_TOK_TEXT) return push_piece(d, id, out);
    if (id < t->images || id >= t->vocab) return 0;
    if (t->type[id - t->images] == GLM_PIECE_UNKNOWN) {
        return emit(d, UNKNOWN_TEXT, strlen(UNKNOWN_TEXT), out);
    }
    if (!(d->flags & GLM_DECODE_ALL_NAMES)
        && (!(d->flags & GLM_DECODE_MASK_NAMES) || id < t->special || id >= t->special + 3))
    {
        return 0;
    }
    s = glm_token_name(t, id, &n);
    return emit(d, s, n, out);
}

int
glm_detok_push(glm_detok_t *d, int32_t id, glm_text_t *out)
{
    return push(d, id, out);
}

/* N of a whole <|blank_N|> at s, with its length; 0 if there is none. */
static size_t
blank_word(const char *s, size_t n, size_t *len)
{
    size_t              i, count = 0;
    static const char   head[] = "<|blank_";

    i = sizeof(head) - 1;
    if (n < i || memcmp(s, head, i) != 0 || i == n || s[i] == '0') return 0;
    for (; i < n && s[i] >= '0' && s[i] <= '9' && count <= GLM_TOK_MAX_BLANK; i++) {
        count = count * 10 + (size_t) (s[i] - '0');
    }
    *len = i + 2;
    if (n < *len || s[i] != '|' || s[i + 1] != '>') return 0;
    return count >= 2 && count <= GLM_TOK_MAX_BLANK ? count : 0;
}

/* Appends what the '<' at s starts; *used tells how much of s that is. */
static int
add_word(const char *s, size_t n, size_t *used, glm_text_t *out)
{
    int     rc = 0;
    size_t  blanks;

    *used = strlen(GLM_TOK_NEWLINE);
    if (n >= *used && memcmp(s, GLM_TOK_NEWLINE, *used) == 0) return glm_text_add(out, "\n", 1);
    *used = strlen(GLM_TOK_TAB);
    if (n >= *used && memcmp(s, GLM_TOK_TAB, *used) == 0) return glm_text_add(out, "\t", 1);
    blanks = blank_word(s, n, used);
    if (blanks == 0) {
        *used = 1;
        return glm_text_add(out, s, 1);
    }
    while (blanks-- > 0 && rc == 0) rc = glm_text_add(out, " ", 1);
    return rc;
}

/* One pass is enough: no word holds another's '<', and none makes a new one. */
static int
replace_words(const char *s, size_t n, glm_text_t *out)
{
    int          rc = 0;
    size_t       used;
    const char  *end, *p;

    if (n == 0) return 0;       /* s may be NULL */
    end = s + n;
    while (s < end && rc == 0) {
        p = memchr(s, '<', (size_t) (end - s));
        if (p == NULL) p = end;
        rc = glm_text_add(out, s, (size_t) (p - s));
        s = p;
        if (rc == 0 && s < end) {
            rc = add_word(s, (size_t) (end - s), &used, out);
            s += used;
        }
    }
    return rc;
}

int
glm_decode(const glm_tokenizer_t *t, const int32_t *ids, size_t n, unsigned flags,
    glm_text_t *out)
{
    int          rc = 0;
    size_t       i, first = out->n;
    glm_text_t   text = {0};
    glm_detok_t  d;

    glm_detok_init(&d, t);
    d.flags = (uint8_t) flags;
    for (i = 0; i < n && rc == 0; i++) rc = push(&d, ids[i], &text);
    if (rc == 0) rc = glm_detok_flush(&d, 1, &text);
    if (rc == 0) rc = replace_words(text.s, text.n, out);
    if (rc != 0) out->n = first;
    glm_text_free(&text);
    return rc;
}
