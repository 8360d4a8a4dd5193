/*
 * tokenizer: loading from a model directory, names and kinds of ids, and the
 * growing lists.  Encoding is in tokenizer_encode.c, decoding in detok.c.
 */
#include "tokenizer_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

const char *const glm_tok_special[GLM_TOK_NSPECIAL] = {
    "[MASK]", "[gMASK]", "[sMASK]", "eod", "sop", "eop", "ENC", "dBLOCK"
};

int
glm_text_reserve(glm_text_t *t, size_t n)
{
    size_t   cap;
    char    *s;

    if (n <= t->cap - t->n) return 0;
    if (n > SIZE_MAX / 4 || t->n > SIZE_MAX / 4) return GLM_ENOMEM;
    cap = t->cap + t->cap / 2;
    if (cap < t->n + n) cap = t->n + n;
    if (cap < 64) cap = 64;
    s = realloc(t->s, cap);
    if (s == NULL) return GLM_ENOMEM;
    t->s = s;
    t->cap = cap;
    return 0;
}

int
glm_text_add(glm_text_t *t, const char *s, size_t n)
{
    if (n == 0) return 0;
    if (glm_text_reserve(t, n) != 0) return GLM_ENOMEM;
    memcpy(t->s + t->n, s, n);
    t->n += n;
    return 0;
}

void
glm_text_free(glm_text_t *t)
{
    free(t->s);
    *t = (glm_text_t) {0};
}

int
glm_ids_push(glm_ids_t *ids, int32_t id)
{
    size_t    cap;
    int32_t  *p;

    if (ids->n == ids->cap) {
        cap = ids->cap < 64 ? 64 : ids->cap + ids->cap / 2;
        if (cap > SIZE_MAX / 4 / sizeof(*p)) return GLM_ENOMEM;
        p = realloc(ids->id, cap * sizeof(*p));
        if (p == NULL) return GLM_ENOMEM;
        ids->id = p;
        ids->cap = cap;
    }
    ids->id[ids->n++] = id;
    return 0;
}

void
glm_ids_free(glm_ids_t *ids)
{
    free(ids->id);
    *ids = (glm_ids_t) {0};
}

/* Reads len bytes of fd; a file that shrinks meanwhile is an error. */
static int
read_all(int fd, char *s, size_t len, const char *path, glm_err_t *err)
{
    size_t   at = 0;
    ssize_t  n;

    while (at < len) {
        n = read(fd, s + at, len - at);
        if (n > 0) at += (size_t) n;
        else if (n == 0) return glm_fail(err, GLM_EIO, "%s: ends while it is read", path);
        else if (errno != EINTR) {
            return glm_fail(err, GLM_EIO, "%s: read() failed: %s", path, strerror(errno));
        }
    }
    return 0;
}

/* The whole file into *s (malloc); GLM_ENOENT, without a text, if it is absent. */
static int
read_file(const char *path, size_t max, char **s, size_t *len, glm_err_t *err)
{
    int          fd, rc = 0;
    struct stat  st;

    *s = NULL;
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 && errno == ENOENT) return GLM_ENOENT;
    if (fd < 0) return glm_fail(err, GLM_EIO, "%s: open() failed: %s", path, strerror(errno));
    if (fstat(fd, &st) != 0) {
        rc = glm_fail(err, GLM_EIO, "%s: fstat() failed: %s", path, strerror(errno));
    } else if (!S_ISREG(st.st_mode)) {
        rc = glm_fail(err, GLM_EFORMAT, "%s: not a regular file", path);
    } else if ((uint64_t) st.st_size > max) {
        rc = glm_fail(err, GLM_ELIMIT, "%s: larger than %zu bytes", path, max);
    } else {
        *len = (size_t) st.st_size;
        *s = malloc(*len + 1);
        rc = *s == NULL ? glm_fail(err, GLM_ENOMEM, "%s: no memory for its %zu bytes", path, *len)
                        : read_all(fd, *s, *len, path, err);
    }
    close(fd);
    if (rc != 0) {
        free(*s);
        *s = NULL;
    }
    return rc;
}

static int
load_model(glm_tokenizer_t **out, const glm_tokenizer_config_t *c, const void *data, size_t len,
    const char *path, glm_err_t *err)
{
    int               rc;
    glm_tokenizer_t  *t;

    t = calloc(1, sizeof(*t));
    if (t == NULL) return glm_fail(err, GLM_ENOMEM, "%s: no memory", path);
    rc = glm_tokenizer_model(t, c, data, len, path, err);
    if (rc != 0) {
        glm_tokenizer_free(t);
        return rc;
    }
    *out = t;
    return 0;
}

int
glm_tokenizer_load_mem(glm_tokenizer_t **out, const char *config, size_t config_len,
    const void *model, size_t model_len, glm_err_t *err)
{
    int                     rc;
    glm_tokenizer_config_t  c;

    *out = NULL;
    rc = glm_tokenizer_config(&c, config, config_len, "tokenizer_config.json", err);
    if (rc != 0) return rc;
    return load_model(out, &c, model, model_len, c.model_file, err);
}

/* dir/name into path (PATH_MAX). */
static int
join_path(char *path, const char *dir, const char *name, glm_err_t *err)
{
    int  n = snprintf(path, PATH_MAX, "%s/%s", dir, name);

    if (n < 0 || n >= PATH_MAX) return glm_fail(err, GLM_ELIMIT, "%s: path too long", dir);
    return 0;
}

int
glm_tokenizer_load(glm_tokenizer_t **out, const char *dir, glm_err_t *err)
{
    int                     rc;
    char                    path[PATH_MAX], *s;
    size_t                  len = 0;
    glm_tokenizer_config_t  c;

    *out = NULL;
    rc = join_path(path, dir, "tokenizer_config.json", err);
    if (rc != 0) return rc;
    rc = read_file(path, 1 << 20, &s, &len, err);
    if (rc == GLM_ENOENT) return 0;
    if (rc != 0) return rc;
    rc = glm_tokenizer_config(&c, s, len, path, err);
    free(s);
    if (rc != 0 || (rc = join_path(path, dir, c.model_file, err)) != 0) return rc;
    rc = read_file(path, GLM_TOK_MAX_FILE, &s, &len, err);
    if (rc == GLM_ENOENT) return glm_fail(err, rc, "%s: no such file", path);
    if (rc != 0) return rc;
    rc = load_model(out, &c, s, len, path, err);
    free(s);
    return rc;
}

void
glm_tokenizer_free(glm_tokenizer_t *t)
{
    if (t == NULL) return;
    glm_charsmap_free(&t->map);
    glm_trie_free(&t->pieces);
    glm_trie_free(&t->user);
    free(t->names);
    free(t->name_at);
    free(t->type);
    free(t);
}

int32_t
glm_tokenizer_vocab_size(const glm_tokenizer_t *t)
{
    return t->vocab;
}

glm_token_kind_t
glm_token_kind(const glm_tokenizer_t *t, int32_t id)
{
    if (id < t->images || id >= t->vocab) return GLM_TOK_NONTEXT;
    switch (t->type[id - t->images]) {
    case GLM_PIECE_NORMAL:
    case GLM_PIECE_USER:
    case GLM_PIECE_UNUSED:
        return GLM_TOK_TEXT;
    case GLM_PIECE_BYTE:
        return GLM_TOK_BYTE;
    default:
        return GLM_TOK_NONTEXT;
    }
}

const char *
glm_token_name(const glm_tokenizer_t *t, int32_t id, size_t *len)
{
    uint32_t  at;

    *len = 0;
    if (id < t->images || id >= t->vocab) return "";
    at = t->name_at[id - t->images];
    *len = t->name_at[id - t->images + 1] - at - 1;
    return t->names + at;
}
