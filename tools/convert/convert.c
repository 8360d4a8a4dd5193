/*
 * convert: reads the configuration, checks the source, writes tensor by
 * tensor.  Holds one whole tensor at a time.
 */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <jansson.h>

#include "convert.h"
#include "merge.h"
#include "preset.h"
#include "progress.h"
#include "stw.h"

#define CV_MAX_SMALL  (64u << 20)       /* bytes of a tokenizer's file */

typedef struct {
    const cv_options_t  *opt;
    glm_config_t         cfg;
    char                *config;        /* text of the new config.json */
    cv_source_t          source;
    cv_out_t            *out;
    stw_t               *stw;
    cv_progress_t        progress;
    glm_err_t           *err;
} cv_job_t;


/* All bytes of a small file; *text is the caller's.  GLM_ENOENT is silent. */
static int
cv_slurp(char **text, size_t *len, const char *path, size_t max, glm_err_t *err)
{
    struct stat   sb;
    FILE         *f = fopen(path, "re");
    int           rc = 0;

    *text = NULL;
    if (f == NULL) {
        return errno == ENOENT ? GLM_ENOENT
                               : glm_fail(err, GLM_EIO, "%s: %s", path, strerror(errno));
    }
    if (fstat(fileno(f), &sb) != 0 || !S_ISREG(sb.st_mode) || (uint64_t) sb.st_size > max) {
        rc = glm_fail(err, GLM_EFORMAT, "%s: not a plain file of at most %zu bytes", path, max);

    } else if ((*text = malloc((size_t) sb.st_size + 1)) == NULL) {
        rc = glm_fail(err, GLM_ENOMEM, "%s: no memory", path);

    } else {
        *len = fread(*text, 1, (size_t) sb.st_size, f);
        (*text)[*len] = '\0';
        if (ferror(f)) rc = glm_fail(err, GLM_EIO, "%s: read() failed", path);
    }
    fclose(f);
    return rc;
}


/* The source's fields stay, but for those that are about how it was cut. */
static int
cv_config_text(cv_job_t *j, const char *text, size_t len, const char *path)
{
    json_t  *root;
    char    *body;

    if (j->cfg.recorded) {
        return glm_fail(j->err, GLM_EINVAL, "%s: \"quantization\" is set; only unquantised "
                        "checkpoints are converted", path);
    }
    root = json_loadb(text, len, 0, NULL);
    if (root == NULL) return glm_fail(j->err, GLM_ENOMEM, "%s: no memory", path);
    json_object_del(root, "model_parallel_size");
    body = json_dumps(root, JSON_INDENT(1) | JSON_REAL_PRECISION(15));
    json_decref(root);
    if (body == NULL || asprintf(&j->config, "%s\n", body) < 0) {
        j->config = NULL;
        free(body);
        return glm_fail(j->err, GLM_ENOMEM, "%s: no memory", path);
    }
    free(body);
    return 0;
}


static int
cv_read_config(cv_job_t *j)
{
    const cv_options_t  *opt = j->opt;
    const char          *preset = opt->config ? cv_preset_config(opt->config) : NULL;
    char                 path[PATH_MAX], *text = NULL;
    size_t               len = 0;
    int                  rc;

    if (preset != NULL) {
        rc = glm_config_parse(&j->cfg, preset, strlen(preset), opt->config, j->err);
        return rc ? rc : cv_config_text(j, preset, strlen(preset), opt->config);
    }
    snprintf(path, sizeof(path), opt->config ? "%s" : "%s/config.json",
             opt->config ? opt->config : opt->src);
    rc = cv_slurp(&text, &len, path, 1u << 20, j->err);
    if (rc == GLM_ENOENT) {
        rc = glm_fail(j->err, rc, "%s: no such file; --config names one, --config glm-130b is that "
                      "of the published model", path);
    }
    if (rc == 0) rc = glm_config_parse(&j->cfg, text, len, path, j->err);
    if (rc == 0) rc = cv_config_text(j, text, len, path);
    free(text);
    return rc;
}


static int
cv_put_file(cv_job_t *j, const char *name, const char *text, size_t len)
{
    int  rc = cv_out_create(j->out, name, NULL, j->err);

    return rc ? rc : cv_out_write(j->out, text, len, j->err);
}


/* Copies dir/name when it is there. */
static int
cv_copy_file(cv_job_t *j, const char *dir, const char *name, int *there)
{
    char    path[PATH_MAX], *text = NULL;
    size_t  len = 0;
    int     rc;

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    rc = cv_slurp(&text, &len, path, CV_MAX_SMALL, j->err);
    *there = rc == 0;
    if (rc == GLM_ENOENT) return 0;
    if (rc == 0) rc = cv_put_file(j, name, text, len);
    free(text);
    return rc;
}


static int
cv_copy_tokenizer(cv_job_t *j)
{
    const char  *dir = j->opt->tokenizer ? j->opt->tokenizer : j->opt->src;
    int          config, model, ice, rc;

    if ((rc = cv_copy_file(j, dir, "tokenizer_config.json", &config)) != 0) return rc;
    if ((rc = cv_copy_file(j, dir, "tokenizer.model", &model)) != 0) return rc;
    if ((rc = cv_copy_file(j, dir, "ice_text.model", &ice)) != 0) return rc;
    if (ice && !config && j->cfg.vocab == CV_PRESET_VOCAB) {
        return cv_put_file(j, "tokenizer_config.json", cv_preset_tokenizer,
                           strlen(cv_preset_tokenizer));
    }
    if (j->opt->tokenizer != NULL && !config) {
        return glm_fail(j->err, GLM_ENOENT, "%s: no tokenizer_config.json in it", dir);
    }
    if (!config && !j->opt->quiet) {
        fprintf(stderr, "no tokenizer_config.json in %s: prompts will have to be token ids\n", dir);
    }
    return 0;
}


static int
cv_put_tensor(cv_job_t *j, const cv_item_t *item, uint16_t *whole)
{
    size_t  size = (size_t) (item->dim[0] * item->dim[1]) * 2;
    int     differ, rc;

    rc = cv_merge(&j->source, item, whole, &differ, j->opt->stop, j->err);
    if (rc == 0) rc = stw_write(j->stw, whole, size, j->err);
    if (rc != 0) return rc;
    if (differ) {
        cv_progress_clear(&j->progress);
        fprintf(stderr, "%s: ranks 0 and %d have different values; those of rank 0 are taken\n",
                item->name, differ);
    }
    cv_progress_add(&j->progress, size, item->name);
    return 0;
}


static int
cv_put_tensors(cv_job_t *j)
{
    cv_item_t  item;
    uint16_t  *whole;
    size_t     i, size, most = 0, n = cv_plan_count(&j->cfg);
    int        rc = 0;

    for (i = 0; i < n && rc == 0; i++) {
        cv_plan_at(&j->cfg, i, &item);
        size = (size_t) (item.dim[0] * item.dim[1]) * 2;
        if (size > most) most = size;
        rc = stw_declare(j->stw, item.name, GLM_F16, item.ndim, item.dim, j->err);
    }
    if (rc != 0) return rc;
    whole = malloc(most);
    if (whole == NULL) {
        return glm_fail(j->err, GLM_ENOMEM, "no memory for the largest tensor, %zu bytes", most);
    }
    for (i = 0; i < n && rc == 0; i++) {
        cv_plan_at(&j->cfg, i, &item);
        rc = cv_put_tensor(j, &item, whole);
    }
    free(whole);
    return rc ? rc : stw_finish(j->stw, j->err);
}


static void
cv_say(const char *line)
{
    fprintf(stderr, "%s\n", line);
}


static int
cv_write(cv_job_t *j)
{
    const cv_options_t  *opt = j->opt;
    struct stat          a, b;
    int                  rc;

    if (stat(opt->src, &a) == 0 && stat(opt->dst, &b) == 0 && a.st_dev == b.st_dev
        && a.st_ino == b.st_ino)
    {
        return glm_fail(j->err, GLM_EINVAL, "%s: is the source too", opt->dst);
    }
    if ((rc = cv_out_open(&j->out, opt->dst, opt->force, j->err)) != 0) return rc;
    if ((rc = cv_out_room(j->out, cv_plan_bytes(&j->cfg), j->err)) != 0) return rc;
    if ((rc = cv_copy_tokenizer(j)) != 0) return rc;
    if ((rc = stw_open(&j->stw, j->out, opt->shard_bytes, j->err)) != 0) return rc;
    cv_progress_begin(&j->progress, cv_plan_bytes(&j->cfg), opt->quiet);
    rc = cv_put_tensors(j);
    cv_progress_clear(&j->progress);
    if (rc == 0) rc = cv_put_file(j, "config.json", j->config, strlen(j->config));
    return rc ? rc : cv_out_commit(j->out, j->err);
}


int
cv_convert(const cv_options_t *opt, glm_err_t *err)
{
    cv_job_t  j = { .opt = opt, .err = err };
    int       rc;

    rc = cv_read_config(&j);
    if (rc == 0) rc = cv_source_open(&j.source, opt->src, &j.cfg, err);
    if (rc == 0) {
        if (!opt->quiet) cv_source_unused(&j.source, cv_say);
        if (!opt->dry_run) rc = cv_write(&j);
    }
    if (rc == 0 && !opt->quiet) {
        printf("%s %s: %zu tensors, %llu bytes, from %d rank file%s\n",
               opt->dry_run ? "would write" : "wrote", opt->dst, cv_plan_count(&j.cfg),
               (unsigned long long) cv_plan_bytes(&j.cfg), j.source.ranks,
               j.source.ranks == 1 ? "" : "s");
    }
    cv_source_close(&j.source);
    stw_close(j.stw);
    cv_out_close(j.out);
    free(j.config);
    return rc;
}
