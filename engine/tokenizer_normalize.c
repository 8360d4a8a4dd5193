/*
 * tokenizer_normalize: icetk's rewriting of newline, tab and blanks, then
 * SentencePiece's normaliser (nmt_nfkc by a precompiled table).  The table is
 * checked once; after that no walk through it can leave it.
 */
#include "tokenizer_impl.h"

#include <stdlib.h>
#include <string.h>

#include "utf8.h"

/* What one step reads and writes; out points into the text or a table. */
typedef struct {
    size_t       used;        /* bytes of input, at least 1 */
    const char  *out;
    size_t       len;
} step_t;

static inline size_t
unit_offset(uint32_t u)
{
    return (size_t) (u >> 10) << ((u & 0x200) >> 6);
}

static inline int
unit_has_value(uint32_t u)
{
    return (u >> 8) & 1;
}

/* Leaves hold values, not offsets; they carry the top bit, which no byte has. */
static int
check_units(const glm_charsmap_t *m)
{
    size_t    i, at, value;
    uint32_t  u;

    if (m->unit[0] & 0x80000000u) return GLM_EFORMAT;
    for (i = 0; i < m->nunit; i++) {
        u = m->unit[i];
        if (u & 0x80000000u) continue;
        /* nunit is a multiple of 256, so at ^ byte stays inside where at does. */
        at = i ^ unit_offset(u);
        if (at >= m->nunit) return GLM_EFORMAT;
        if (!unit_has_value(u)) continue;
        value = m->unit[at] & 0x7FFFFFFF;
        if (value >= m->nrepl) return GLM_EFORMAT;
        if (((uint8_t) m->repl[value] & 0xC0) == 0x80) return GLM_EFORMAT;
    }
    return 0;
}

int
glm_charsmap_init(glm_charsmap_t *m, const void *data, size_t len, const char **why)
{
    size_t          i, size;
    const uint8_t  *p = data;

    *why = "its normaliser table is cut short";
    if (len < 4) return GLM_EFORMAT;
    size = p[0] | p[1] << 8 | p[2] << 16 | (size_t) p[3] << 24;
    if (size > len - 4) return GLM_EFORMAT;
    *why = "its normaliser table has a bad size";
    if (size == 0 || size % 1024 != 0) return GLM_EFORMAT;
    m->nunit = size / 4;
    m->nrepl = len - 4 - size;
    m->unit = malloc(size);
    m->repl = malloc(m->nrepl + 1);
    *why = "no memory for its normaliser table";
    if (m->unit == NULL || m->repl == NULL) return GLM_ENOMEM;
    for (i = 0, p += 4; i < m->nunit; i++, p += 4) {
        m->unit[i] = p[0] | p[1] << 8 | p[2] << 16 | (uint32_t) p[3] << 24;
    }
    memcpy(m->repl, p, m->nrepl);
    *why = "its normaliser's replacements are not NUL-terminated UTF-8";
    if (m->nrepl == 0 || m->repl[m->nrepl - 1] != '\0') return GLM_EFORMAT;
    if (glm_utf8_valid(m->repl, m->nrepl) != m->nrepl) return GLM_EFORMAT;
    *why = "its normaliser table points outside itself";
    return check_units(m);
}

void
glm_charsmap_free(glm_charsmap_t *m)
{
    free(m->unit);
    free(m->repl);
    *m = (glm_charsmap_t) {0};
}

/*
 * The longest key at s, if any.  The bound on a key's length is there for
 * tables that run in circles: time stays linear in the text.
 */
static int
charsmap_find(const glm_charsmap_t *m, const char *s, size_t n, step_t *step)
{
    size_t    i, pos, found = 0, value = 0;
    uint32_t  u = m->unit[0];

    if (n > GLM_TOK_MAX_KEY) n = GLM_TOK_MAX_KEY;
    pos = unit_offset(u);
    for (i = 0; i < n; i++) {
        pos ^= (uint8_t) s[i];
        u = m->unit[pos];
        if ((u & 0x800000FF) != (uint8_t) s[i]) break;
        pos ^= unit_offset(u);
        if (unit_has_value(u)) {
            found = i + 1;
            value = m->unit[pos] & 0x7FFFFFFF;
        }
    }
    if (found == 0) return 0;
    step->used = found;
    step->out = m->repl + value;
    step->len = strlen(step->out);
    return 1;
}

/* The longest user-defined piece at s, 0 if there is none. */
static size_t
user_defined(const glm_trie_t *t, const char *s, size_t n)
{
    size_t    i, found = 0;
    uint32_t  node = 0;

    for (i = 0; i < n; i++) {
        node = glm_trie_step(t, node, (uint8_t) s[i]);
        if (node == 0) break;
        if (t->node[node].index >= 0) found = i + 1;
    }
    return found;
}

static void
next_step(const glm_tokenizer_t *t, const char *s, size_t n, step_t *step)
{
    size_t  len;

    step->out = s;
    len = user_defined(&t->user, s, n);
    if (len == 0) {
        if (charsmap_find(&t->map, s, n, step)) return;
        len = glm_utf8_char(s, n);
    }
    step->used = step->len = len;
    if (len == 0) {
        step->used = 1;
        step->out = GLM_UTF8_REPLACEMENT;
        step->len = 3;
    }
}

/* Appends a step's output; *blank tells whether the text ends with a blank. */
static int
emit(const step_t *step, int *blank, glm_text_t *out)
{
    size_t       n = step->len, i;
    const char  *s = step->out;

    while (*blank && n > 0 && *s == ' ') s++, n--;
    if (n == 0) return 0;
    if (glm_text_reserve(out, n * GLM_TOK_SPACE_LEN) != 0) return GLM_ENOMEM;
    for (i = 0; i < n; i++) {
        if (s[i] != ' ') {
            out->s[out->n++] = s[i];
            continue;
        }
        memcpy(out->s + out->n, GLM_TOK_SPACE, GLM_TOK_SPACE_LEN);
        out->n += GLM_TOK_SPACE_LEN;
    }
    *blank = s[n - 1] == ' ';
    return 0;
}

int
glm_normalize(const glm_tokenizer_t *t, const char *s, size_t n, glm_text_t *out)
{
    int          blank = 1;
    size_t       start = out->n;
    step_t       step;
    const char  *end;

    if (n == 0) return 0;       /* s may be NULL */
    end = s + n;
    /* The prefix counts as a blank, so that blanks at the start vanish. */
    if (glm_text_add(out, GLM_TOK_SPACE, GLM_TOK_SPACE_LEN) != 0) return GLM_ENOMEM;
    for (; s < end; s += step.used) {
        next_step(t, s, (size_t) (end - s), &step);
        if (emit(&step, &blank, out) != 0) return GLM_ENOMEM;
    }
    while (out->n - start >= GLM_TOK_SPACE_LEN
           && memcmp(out->s + out->n - GLM_TOK_SPACE_LEN, GLM_TOK_SPACE, GLM_TOK_SPACE_LEN) == 0)
    {
        out->n -= GLM_TOK_SPACE_LEN;
    }
    return 0;
}

/* A run of blanks as blank pieces, the longest first; one alone stays. */
static int
add_blanks(size_t run, glm_text_t *out)
{
    int     len;
    char    word[24];
    size_t  n;

    while (run > 1) {
        n = run < GLM_TOK_MAX_BLANK ? run : GLM_TOK_MAX_BLANK;
        len = snprintf(word, sizeof(word), "<|blank_%zu|>", n);
        if (glm_text_add(out, word, (size_t) len) != 0) return GLM_ENOMEM;
        run -= n;
    }
    return run == 1 ? glm_text_add(out, " ", 1) : 0;
}

int
glm_preprocess(const char *s, size_t n, glm_text_t *out)
{
    int     rc = 0;
    size_t  i = 0, from;

    while (i < n && rc == 0) {
        from = i;
        if (s[i] == '\n') {
            rc = glm_text_add(out, GLM_TOK_NEWLINE, strlen(GLM_TOK_NEWLINE));
            i++;
        } else if (s[i] == '\t') {
            rc = glm_text_add(out, GLM_TOK_TAB, strlen(GLM_TOK_TAB));
            i++;
        } else if (s[i] == ' ') {
            while (i < n && s[i] == ' ') i++;
            rc = add_blanks(i - from, out);
        } else {
            while (i < n && s[i] != '\n' && s[i] != '\t' && s[i] != ' ') i++;
            rc = glm_text_add(out, s + from, i - from);
        }
    }
    return rc;
}
