/*
 * eval_file: what a file holds: JSON lines, or a text cut into documents and windows.
 */
#include <stdlib.h>
#include <string.h>

#include "eval.h"

/* ---- JSON lines ---- */

static int
add_line(glm_eval_t *e, glm_eval_file_t *f, size_t lineno, const char *s, size_t n)
{
    json_t        *item, **p;
    json_error_t   at;

    if (strspn(s, " \t\r\n") >= n) return 0;
    item = json_loadb(s, n, 0, &at);
    if (!json_is_object(item)) {
        json_decref(item);
        return glm_fail(&e->err, GLM_EFORMAT, "%s:%zu: %s", f->name, lineno,
                        item != NULL ? "no JSON object" : at.text);
    }
    p = realloc(f->line, (f->n + 1) * sizeof(*p));
    if (p == NULL) {
        json_decref(item);
        return glm_fail(&e->err, GLM_ENOMEM, "no memory for %s", f->name);
    }
    f->line = p;
    f->line[f->n++] = item;
    return 0;
}

static int
load_lines(glm_eval_t *e, glm_eval_file_t *f, FILE *in)
{
    int      rc = 0;
    char    *line = NULL;
    size_t   cap = 0, lineno = 0;
    ssize_t  n;

    while (rc == 0 && (n = getline(&line, &cap, in)) >= 0) {
        rc = add_line(e, f, ++lineno, line, (size_t) n);
    }
    free(line);
    return rc;
}

/* ---- text ---- */

static int
read_all(glm_eval_t *e, glm_eval_file_t *f, FILE *in, glm_wbuf_t *text)
{
    char    buf[65536];
    size_t  n;

    while ((n = fread(buf, 1, sizeof(buf), in)) > 0) glm_wbuf_put(text, buf, n);
    glm_wbuf_put(text, "", 1);
    if (text->failed) return glm_fail(&e->err, GLM_ENOMEM, "no memory for %s", f->name);
    text->n--;
    return 0;
}

/* len(text.strip().split(" ")), which the original divides the loss by. */
static int64_t
count_words(const char *s, size_t n)
{
    int64_t  words = 1;

    while (n > 0 && strchr(" \t\r\n\v\f", s[n - 1]) != NULL) n--;
    while (n > 0 && strchr(" \t\r\n\v\f", *s) != NULL) s++, n--;
    for (size_t i = 0; i < n; i++) words += s[i] == ' ';
    return words;
}

/* A document's tokens behind those before it. */
static int
add_document(glm_eval_t *e, glm_eval_file_t *f, const char *s, size_t n, glm_wbuf_t *ids)
{
    int            rc;
    size_t        *p;
    glm_answer_t   a = {0};

    rc = glm_eval_tokenize(e, s, n, &a);
    if (rc == 0 && a.ids.n > 0) {
        f->words += count_words(s, n);
        f->bytes += (int64_t) n;
        glm_wbuf_put(ids, a.ids.p, a.ids.n);
        if (e->o->eop) glm_wbuf_put(ids, &e->eop, sizeof(e->eop));
        p = realloc(f->start, (f->ndocs + 2) * sizeof(*p));
        if (p == NULL || ids->failed) rc = glm_fail(&e->err, GLM_ENOMEM, "no memory for tokens");
        if (p != NULL) f->start = p;
        if (rc == 0) {
            if (f->ndocs == 0) f->start[0] = 0;
            f->start[++f->ndocs] = ids->n / sizeof(int32_t);
        }
    }
    glm_answer_free(&a);
    return rc;
}

/* The line that parts documents, at or behind s; NULL: none. */
static const char *
next_part(const char *s, const char *mark, size_t n)
{
    for (; *s; s = strchr(s, '\n') + 1) {
        if (strncmp(s, mark, n) == 0 && (s[n] == '\n' || s[n] == '\0')) return s;
        if (strchr(s, '\n') == NULL) return NULL;
    }
    return NULL;
}

static int
add_documents(glm_eval_t *e, glm_eval_file_t *f, const glm_wbuf_t *text, glm_wbuf_t *ids)
{
    int          rc = 0;
    size_t       n, len;
    const char  *s = (const char *) text->p, *end = s + text->n, *part;

    if (e->o->documents == NULL) return add_document(e, f, s, text->n, ids);
    n = strlen(e->o->documents);
    while (rc == 0 && s < end) {
        part = next_part(s, e->o->documents, n);
        len = (size_t) ((part != NULL ? part : end) - s);
        if (len > 0 && s[len - 1] == '\n') len--;       /* the mark's own line break */
        if (len > 0) rc = add_document(e, f, s, len, ids);
        if (part == NULL) break;
        s = part[n] == '\n' ? part + n + 1 : end;
    }
    return rc;
}

/*
 * Windows of max_seq - 1 tokens that advance by generation_length.  From the second
 * on, bidirectional, what comes before the last generation_length tokens is given;
 * else all of a window is to be predicted.
 */
static int
cut(glm_eval_t *e, glm_eval_file_t *f, size_t from, size_t end)
{
    size_t                     i, at, span = (size_t) e->max_seq - 1;
    size_t                     step = (size_t) e->o->generation_length, n = 1;
    struct glm_eval_window_s  *p;

    if (end - from > span) n += (end - from - span + step - 1) / step;
    p = realloc(f->window, (f->n + n) * sizeof(*p));
    if (p == NULL) return glm_fail(&e->err, GLM_ENOMEM, "no memory for windows");
    f->window = p;
    for (i = 0; i < n; i++) {
        at = from + i * step;
        p = &f->window[f->n];
        p->from = at;
        p->end = at + span < end ? at + span : end;
        p->prompt = i == 0 || e->o->unidirectional ? at : at + span - step;
        f->n += p->prompt < p->end;
    }
    return 0;
}

static int
load_text(glm_eval_t *e, glm_eval_file_t *f, FILE *in)
{
    int         rc;
    glm_wbuf_t  text = {0}, ids = {0};

    rc = read_all(e, f, in, &text);
    if (rc == 0 && memchr(text.p, 0, text.n) != NULL) {
        rc = glm_fail(&e->err, GLM_EFORMAT, "%s has a NUL: no text", f->name);
    }
    if (rc == 0) rc = add_documents(e, f, &text, &ids);
    glm_wbuf_free(&text);
    f->ids = (int32_t *) (void *) ids.p;
    for (size_t i = 0; i < f->ndocs && rc == 0; i++) rc = cut(e, f, f->start[i], f->start[i + 1]);
    return rc;
}

int
glm_eval_load(glm_eval_t *e, glm_eval_file_t *f)
{
    int    rc;
    FILE  *in = fopen(f->name, "r");

    if (in == NULL) return glm_fail(&e->err, GLM_ENOENT, "%s cannot be opened", f->name);
    rc = e->o->kind == GLM_EVAL_PPL ? load_text(e, f, in) : load_lines(e, f, in);
    if (rc == 0 && ferror(in)) rc = glm_fail(&e->err, GLM_EIO, "%s cannot be read", f->name);
    fclose(in);
    if (rc == 0 && f->n == 0) rc = glm_fail(&e->err, GLM_EFORMAT, "%s holds nothing", f->name);
    if (rc != 0) return rc;
    f->result = calloc(f->n, sizeof(*f->result));
    return f->result != NULL ? 0 : glm_fail(&e->err, GLM_ENOMEM, "no memory for results");
}

void
glm_eval_unload(glm_eval_file_t *f)
{
    for (size_t i = 0; f->line != NULL && i < f->n; i++) json_decref(f->line[i]);
    free(f->line);
    free(f->ids);
    free(f->start);
    free(f->window);
    free(f->result);
}
