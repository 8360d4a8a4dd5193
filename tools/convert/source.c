/*
 * source: finds and checks the files before a byte is written, so that what
 * can be known to fail fails in the first second and not after an hour.
 */
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

#include "source.h"

#define CV_RANK_FILE  "mp_rank_%02d_model_states.pt"


/* The name of the iteration's folder, which `latest` holds; n bytes of room for one more. */
static int
cv_iteration(char *text, size_t n, const char *where, glm_err_t *err)
{
    while (n > 0 && strchr(" \t\r\n", text[n - 1]) != NULL) n--;
    text[n] = '\0';
    if (n > 0 && n < 64 && text[0] != '.' && strpbrk(text, "/\r\n\t ") == NULL) return 0;
    return glm_fail(err, GLM_EFORMAT, "%s: not the name of a folder", where);
}


static int
cv_read_latest(char *text, size_t size, const char *dir, glm_err_t *err)
{
    char    path[PATH_MAX];
    FILE   *f;
    size_t  n;

    snprintf(path, sizeof(path), "%s/latest", dir);
    f = fopen(path, "re");
    if (f == NULL) {
        return glm_fail(err, errno == ENOENT ? GLM_ENOENT : GLM_EIO, "%s: %s (a checkpoint has "
                        "this file, with the iteration)", path, strerror(errno));
    }
    n = fread(text, 1, size - 1, f);
    fclose(f);
    return cv_iteration(text, n, path, err);
}


/* Which rank files have been seen. */
typedef struct {
    char  seen[CV_MAX_RANKS];
    int   last;               /* -1 at first */
} cv_seen_t;


static void
cv_see(cv_seen_t *s, const char *base)
{
    char  name[64];
    int   n;

    if (sscanf(base, "mp_rank_%2d_", &n) != 1 || n < 0) return;
    snprintf(name, sizeof(name), CV_RANK_FILE, n);
    if (strcmp(name, base) != 0) return;
    s->seen[n] = 1;
    if (n > s->last) s->last = n;
}


/* How many rank files there are; a gap in their numbers is a missing file. */
static int
cv_count_ranks(const cv_seen_t *s, const char *dir, int *ranks, glm_err_t *err)
{
    int  i;

    if (s->last < 0) {
        return glm_fail(err, GLM_ENOENT, "%s: no " CV_RANK_FILE " in it", dir, 0);
    }
    for (i = 0; i < s->last; i++) {
        if (s->seen[i]) continue;
        return glm_fail(err, GLM_ENOENT, "%s/" CV_RANK_FILE ": missing, but rank %d is there", dir,
                        i, s->last);
    }
    *ranks = s->last + 1;
    return 0;
}


static void
cv_shape_text(char *out, size_t size, int ndim, const int64_t *dim)
{
    int     i;
    size_t  n = 0;

    n += (size_t) snprintf(out, size, "[");
    for (i = 0; i < ndim && n < size; i++) {
        n += (size_t) snprintf(out + n, size - n, "%s%lld", i ? ", " : "", (long long) dim[i]);
    }
    if (n < size) snprintf(out + n, size - n, "]");
}


/*
 * The last ranks can be missing without a gap.  The embedding and the fused
 * projection of rank 0 both say into how many parts the model was cut.
 */
static int
cv_check_degree(const cv_source_t *s, const char *dir, const glm_config_t *cfg, glm_err_t *err)
{
    pt_tensor_t  *e = pt_find(s->rank[0], CV_PREFIX "word_embeddings.weight");
    pt_tensor_t  *q = pt_find(s->rank[0], CV_PREFIX "layers.0.attention.query_key_value.weight");
    int64_t       parts;

    if (e == NULL || q == NULL || e->t->ndim != 2 || q->t->ndim != 2 || e->t->dim[0] <= 0) return 0;
    parts = cfg->vocab / e->t->dim[0];
    if (parts == s->ranks || parts < 1 || cfg->vocab % e->t->dim[0] != 0
        || e->t->dim[1] != cfg->hidden || q->t->dim[1] != cfg->hidden
        || q->t->dim[0] * parts != 3 * (int64_t) cfg->hidden)
    {
        return 0;
    }
    if (parts > s->ranks) {
        return glm_fail(err, GLM_ENOENT, "%s/" CV_RANK_FILE ": missing: the tensors are cut for %d "
                        "ranks, and there are %d", dir, s->ranks, (int) parts, s->ranks);
    }
    return glm_fail(err, GLM_EFORMAT, "%s: the tensors are cut for %d ranks, but there are %d rank "
                    "files", dir, (int) parts, s->ranks);
}


/* A linear's weight is int8 in all files or in none. */
static int
cv_check_dtype(pt_file_t *f, const pt_tensor_t *t, int quantised, glm_err_t *err)
{
    char        scale[300];
    pt_dtype_t  dtype = t->t->storage->dtype;

    if (quantised) {
        if (dtype == PT_CHAR) return 0;
        return glm_fail(err, GLM_EFORMAT, "%s: %s is %s, but int8 in the file of rank 0",
                        pt_path(f), t->name, pt_dtype_name(dtype));
    }
    if (dtype != PT_HALF && dtype != PT_FLOAT && dtype != PT_BFLOAT16) {
        return glm_fail(err, GLM_EFORMAT, "%s: %s is %s; only fp16, bf16 and fp32 are converted, "
                        "and int8 of a linear's weight", pt_path(f), t->name, pt_dtype_name(dtype));
    }
    snprintf(scale, sizeof(scale), "%s_scale", t->name);
    if (pt_find(f, scale) == NULL) return 0;
    return glm_fail(err, GLM_EFORMAT, "%s: %s is %s, but has a scale", pt_path(f), t->name,
                    pt_dtype_name(dtype));
}


static int
cv_check_part(const cv_source_t *s, int rank, const cv_item_t *item, int quantised, glm_err_t *err)
{
    pt_file_t    *f = s->rank[rank];
    pt_tensor_t  *t;
    char          name[128], has[256], wants[64];
    int64_t       dim[2];
    int           rc;

    snprintf(name, sizeof(name), CV_PREFIX "%s", item->name);
    t = pt_find(f, name);
    if (t == NULL) return glm_fail(err, GLM_ENOENT, "%s: %s is missing", pt_path(f), name);
    t->used = 1;
    if ((rc = cv_check_dtype(f, t, quantised, err)) != 0) return rc;
    cv_part_dims(item, s->ranks, dim);
    if (t->t->ndim != item->ndim || t->t->dim[0] != dim[0]
        || (item->ndim == 2 && t->t->dim[1] != dim[1]))
    {
        cv_shape_text(has, sizeof(has), t->t->ndim, t->t->dim);
        cv_shape_text(wants, sizeof(wants), item->ndim, dim);
        return glm_fail(err, GLM_EFORMAT, "%s: %s has the shape %s, the configuration asks for %s "
                        "(rank %d of %d)", pt_path(f), name, has, wants, rank, s->ranks);
    }
    return 0;
}


glm_ttype_t
cv_source_quant(const cv_source_t *s, const cv_item_t *item)
{
    pt_tensor_t  *t;
    char          name[128];
    int64_t       dim[2];

    snprintf(name, sizeof(name), CV_PREFIX "%s", item->name);
    t = pt_find(s->rank[0], name);
    if (!item->linear || t == NULL || t->t->storage->dtype != PT_CHAR) return GLM_T_F16;
    cv_part_dims(item, s->ranks, dim);
    return t->t->ndim == 2 && t->t->dim[1] == dim[1] ? GLM_T_INT8 : GLM_T_INT4;
}


static int
cv_check_tensor(const cv_source_t *s, int rank, const cv_item_t *item, glm_err_t *err)
{
    glm_ttype_t  quant = cv_source_quant(s, item);
    cv_item_t    bytes, scale;
    int          rc;

    if (quant == GLM_T_F16) return cv_check_part(s, rank, item, 0, err);
    cv_plan_quantised(item, quant, s->ranks, &bytes, &scale);
    rc = cv_check_part(s, rank, &bytes, 1, err);
    return rc ? rc : cv_check_part(s, rank, &scale, 0, err);
}


/* The files of a checkpoint that is a directory; dir gets the iteration's. */
static int
cv_open_dir(cv_source_t *s, const char *path, char dir[PATH_MAX], glm_err_t *err)
{
    char            text[256], name[PATH_MAX];
    cv_seen_t       seen = { .last = -1 };
    DIR            *d;
    struct dirent  *e;
    int             rc, ranks;

    if ((rc = cv_read_latest(text, sizeof(text), path, err)) != 0) return rc;
    snprintf(dir, PATH_MAX, "%.3900s/%.64s", path, text);
    if ((d = opendir(dir)) == NULL) {
        return glm_fail(err, errno == ENOENT ? GLM_ENOENT : GLM_EIO, "%s: %s", dir, strerror(errno));
    }
    while ((e = readdir(d)) != NULL) cv_see(&seen, e->d_name);
    closedir(d);
    rc = cv_count_ranks(&seen, dir, &ranks, err);
    for ( ; rc == 0 && s->ranks < ranks; s->ranks += rc == 0) {
        snprintf(name, sizeof(name), "%.3990s/" CV_RANK_FILE, dir, s->ranks);
        rc = pt_open(&s->rank[s->ranks], name, err);
    }
    return rc;
}


static int
cv_open_member(cv_source_t *s, const char *name, glm_err_t *err)
{
    const cv_archive_t  *a = &s->archive;
    const tar_file_t    *f = cv_archive_find(a, name);
    char                 where[PATH_MAX];
    int                  rc;

    snprintf(where, sizeof(where), "%.3000s: %.900s", a->name, name);
    if (f == NULL) return glm_fail(err, GLM_ENOENT, "%s: missing", where);
    rc = pt_open_at(&s->rank[s->ranks], a->vol, f->at, f->size, where, err);
    s->ranks += rc == 0;
    return rc;
}


/* The files of one in an archive: FOLDER/latest, FOLDER/ITERATION/mp_rank_... */
static int
cv_open_archive(cv_source_t *s, char dir[PATH_MAX], glm_err_t *err)
{
    const cv_archive_t  *a = &s->archive;
    const tar_file_t    *latest = cv_archive_base(a, "latest");
    char                 text[256] = "", folder[1024], name[1200];
    cv_seen_t            seen = { .last = -1 };
    size_t               i, n;
    int                  rc, ranks = 0;

    if (latest == NULL || latest->size >= sizeof(text) || strlen(latest->name) >= sizeof(folder) - 70) {
        return glm_fail(err, GLM_ENOENT, "%s: no file `latest` in it (a checkpoint has it, with the "
                        "iteration)", a->name);
    }
    if ((rc = vol_read(a->vol, text, (size_t) latest->size, latest->at, err)) != 0) return rc;
    snprintf(dir, PATH_MAX, "%.3000s: %.1000s", a->name, latest->name);
    if ((rc = cv_iteration(text, (size_t) latest->size, dir, err)) != 0) return rc;
    n = (size_t) snprintf(folder, sizeof(folder), "%.*s%.64s/", (int) (strlen(latest->name) - 6),
                          latest->name, text);
    for (i = 0; i < a->tar.n; i++) {
        if (strncmp(a->tar.file[i].name, folder, n) == 0) cv_see(&seen, a->tar.file[i].name + n);
    }
    snprintf(dir, PATH_MAX, "%.3000s: %.*s", a->name, (int) n - 1, folder);
    rc = cv_count_ranks(&seen, dir, &ranks, err);
    while (rc == 0 && s->ranks < ranks) {
        snprintf(name, sizeof(name), "%s" CV_RANK_FILE, folder, s->ranks);
        rc = cv_open_member(s, name, err);
    }
    return rc;
}


static int
cv_check_all(const cv_source_t *s, const glm_config_t *cfg, glm_err_t *err)
{
    cv_item_t  item;
    size_t     i;
    int        r, rc;

    for (i = 0; i < cv_plan_count(cfg); i++) {
        cv_plan_at(cfg, i, &item);
        for (r = 0; r < s->ranks; r++) {
            if ((rc = cv_check_tensor(s, r, &item, err)) != 0) return rc;
        }
    }
    return 0;
}


int
cv_source_open(cv_source_t *s, const char *path, const glm_config_t *cfg, glm_err_t *err)
{
    char  dir[PATH_MAX] = "";
    int   rc;

    memset(s, 0, sizeof(*s));
    if (strlen(path) + 128 >= sizeof(dir)) {
        return glm_fail(err, GLM_EINVAL, "%.64s...: path is too long", path);
    }
    snprintf(dir, sizeof(dir), "%s/latest", path);
    rc = access(dir, F_OK) == 0 ? GLM_ENOENT : cv_archive_open(&s->archive, path, err);
    if (rc == 0) {
        rc = cv_open_archive(s, dir, err);

    } else if (rc == GLM_ENOENT && err->text[0] == '\0') {
        rc = cv_open_dir(s, path, dir, err);
    }
    if (rc == 0) rc = cv_check_degree(s, dir, cfg, err);
    if (rc == 0) rc = cv_plan_divides(cfg, s->ranks, err);
    if (rc == 0) rc = cv_check_all(s, cfg, err);
    if (rc != 0) cv_source_close(s);
    return rc;
}


void
cv_source_close(cv_source_t *s)
{
    while (s->ranks > 0) pt_close(s->rank[--s->ranks]);
    cv_archive_close(&s->archive);
}


const vol_file_t *
cv_source_file(const cv_source_t *s, size_t i)
{
    if (s->archive.vol != NULL) return vol_file(s->archive.vol, i);
    return i < (size_t) s->ranks ? pt_vol_file(s->rank[i]) : NULL;
}


/* The rotary table is computed, never loaded; its tensors are no surprise. */
static int
cv_is_rotary(const char *name)
{
    size_t  n = strlen(name), m = strlen("inv_freq");

    return n >= m && strcmp(name + n - m, "inv_freq") == 0;
}


void
cv_source_unused(cv_source_t *s, void (*say)(const char *line))
{
    char          line[512];
    pt_tensor_t  *t;
    size_t        i;
    int           r;

    for (r = 0; r < s->ranks; r++) {
        for (i = 0; (t = pt_at(s->rank[r], i)) != NULL; i++) {
            if (t->used || cv_is_rotary(t->name)) continue;
            if (r > 0 && pt_find(s->rank[0], t->name) != NULL) continue;
            snprintf(line, sizeof(line), "skipped: unknown tensor %s", t->name);
            say(line);
        }
    }
    if (s->ranks > 0 && pt_others(s->rank[0])[0] != '\0') {
        snprintf(line, sizeof(line), "skipped: no tensors of the model: %s",
                 pt_others(s->rank[0]));
        say(line);
    }
}
