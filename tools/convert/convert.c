/*
 * convert: reads the configuration, checks the source, says what it takes, and has it
 * written.
 */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <zlib.h>

#include "job.h"
#include "preset.h"
#include "tokenizer.h"

#define CV_MAX_SMALL  (64u << 20)       /* bytes of a tokenizer's file */

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


static void
cv_find_home(cv_job_t *j)
{
    const char   *src = j->opt->src, *slash = strrchr(src, '/');
    struct stat   sb;

    if (stat(src, &sb) == 0 && !S_ISDIR(sb.st_mode)) {
        snprintf(j->home, sizeof(j->home), "%.*s", slash ? (int) (slash - src + 1) : 1,
                 slash ? src : ".");

    } else {
        snprintf(j->home, sizeof(j->home), "%s", src);
    }
}


static int
cv_read_config(cv_job_t *j)
{
    const cv_options_t  *opt = j->opt;
    const char          *preset = opt->config ? cv_preset_config(opt->config) : NULL;
    char                 path[PATH_MAX];
    int                  rc;

    snprintf(path, sizeof(path), opt->config ? "%s" : "%s/config.json",
             opt->config ? opt->config : j->home);
    if (preset != NULL) {
        j->text = strdup(preset);
        j->text_len = strlen(preset);
        rc = j->text ? 0 : glm_fail(j->err, GLM_ENOMEM, "%s: no memory", path);

    } else {
        rc = cv_slurp(&j->text, &j->text_len, path, 1u << 20, j->err);
    }
    if (rc == GLM_ENOENT) {
        rc = glm_fail(j->err, rc, "%s: no such file; --config names one, --config glm-130b is that "
                      "of the published model", path);
    }
    return rc ? rc : glm_config_parse(&j->cfg, j->text, j->text_len, path, j->err);
}


/* What becomes of each tensor: known when the source is. */
static int
cv_choose(cv_job_t *j)
{
    int  rc = cv_forms_choose(&j->forms, &j->opt->quant, &j->source, &j->cfg, j->err);

    if (rc != 0) return rc;
    j->config = cv_forms_config(&j->forms, &j->cfg, j->text, j->text_len);
    return j->config ? 0 : glm_fail(j->err, GLM_ENOMEM, "no memory for config.json");
}


static int
cv_put_file(cv_job_t *j, const char *name, const char *text, size_t len)
{
    int  rc = cv_out_create(j->out, name, 0, j->err);

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


/* The tokenizer that the model will have. */
static int
cv_load_tokenizer(cv_job_t *j, glm_tokenizer_t **out)
{
    const char  *dir = j->opt->tokenizer ? j->opt->tokenizer : j->home;
    char         path[PATH_MAX], *model = NULL;
    size_t       len = 0;
    int          rc = glm_tokenizer_load(out, dir, j->err);

    if (rc != 0 || *out != NULL) return rc;
    snprintf(path, sizeof(path), "%s/ice_text.model", dir);
    if (j->cfg.vocab == CV_PRESET_VOCAB && cv_slurp(&model, &len, path, CV_MAX_SMALL, j->err) == 0) {
        rc = glm_tokenizer_load_mem(out, cv_preset_tokenizer, strlen(cv_preset_tokenizer), model, len,
                                    j->err);
        free(model);
        return rc;
    }
    return glm_fail(j->err, GLM_ENOENT, "%s: no tokenizer in it, which --calibrate needs; --tokenizer "
                    "names another directory", dir);
}


/* What --calibrate asks for: the ids of its text, and room to run it. */
static int
cv_calibrate(cv_job_t *j)
{
    glm_tokenizer_t  *t = NULL;
    glm_ids_t         ids = { 0 };
    char             *text = NULL;
    size_t            len = 0;
    int               rc;

    if (j->opt->calibrate == NULL) return 0;
    rc = cv_slurp(&text, &len, j->opt->calibrate, CV_MAX_SMALL, j->err);
    if (rc == GLM_ENOENT) rc = glm_fail(j->err, rc, "%s: no such file", j->opt->calibrate);
    if (rc == 0) rc = cv_load_tokenizer(j, &t);
    if (rc == 0 && glm_encode(t, text, len, &ids) != 0) rc = glm_fail(j->err, GLM_ENOMEM, "no memory");
    if (ids.n > j->opt->calibrate_tokens) ids.n = j->opt->calibrate_tokens;
    if (rc == 0) {
        j->text_crc = (uint32_t) crc32_z(0, (const uint8_t *) ids.id, ids.n * sizeof(*ids.id));
        rc = cv_calib_new(&j->calib, &j->cfg, &j->forms, ids.id, ids.n, j->err);
    }
    glm_ids_free(&ids);
    glm_tokenizer_free(t);
    free(text);
    return rc;
}


static int
cv_copy_tokenizer(cv_job_t *j)
{
    const char  *dir = j->opt->tokenizer ? j->opt->tokenizer : j->home;
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


/* Before hours of work: what they will take. */
static void
cv_say_needs(const cv_job_t *j)
{
    size_t           whole, scale;
    cv_calib_cost_t  cost = { .bytes = 0 };

    cv_needs(j, &whole, &scale);
    if (j->calib != NULL) cv_calib_cost(j->calib, &cost);
    fprintf(stderr, "needs %.1f MB of disk, %.1f MB of memory\n",
            (double) cv_forms_bytes(&j->forms, &j->cfg) / 1e6,
            (double) (whole + scale + cost.bytes) / 1e6);
    if (j->calib != NULL) {
        fprintf(stderr, "calibrates with %zu tokens in %zu windows: about %.0f s on this machine\n",
                cost.tokens, cost.windows, ceil(cost.seconds));
    }
}


static void
cv_say(const char *line)
{
    fprintf(stderr, "%s\n", line);
}


/* What makes two conversions the same; the caller's, NULL without memory. */
static char *
cv_identity(const cv_job_t *j)
{
    const cv_options_t  *opt = j->opt;
    const vol_file_t    *f;
    const char          *slash;
    char                *text = NULL;
    size_t               i, len = 0;
    FILE                *m = open_memstream(&text, &len);

    if (m == NULL) return NULL;
    fprintf(m, "glm-convert 1\nconfig.json %08lx\nquant-ranks %d\nshard-size %llu\nchecksums %d\n",
            crc32_z(0, (const uint8_t *) j->config, strlen(j->config)), opt->quant.ranks,
            (unsigned long long) opt->shard_bytes, !opt->no_checksums);
    if (opt->calibrate) fprintf(m, "calibrated %08x\n", j->text_crc);
    for (i = 0; (f = cv_source_file(&j->source, i)) != NULL; i++) {
        slash = strrchr(f->path, '/');
        fprintf(m, "%s of %llu bytes, time %lld\n", slash ? slash + 1 : f->path,
                (unsigned long long) f->size, (long long) f->mtime);
    }
    if (fclose(m) == 0) return text;
    free(text);
    return NULL;
}


/* The journal, and what an unfinished conversion left. */
static int
cv_begin(cv_job_t *j)
{
    const cv_options_t  *opt = j->opt;
    char                *identity = cv_identity(j);
    int                  rc;

    if (identity == NULL) return glm_fail(j->err, GLM_ENOMEM, "no memory for the journal");
    rc = cv_journal_open(&j->journal, j->out, identity, opt->force, j->err);
    free(identity);
    if (rc != 0) return rc;
    if ((rc = stw_open(&j->stw, j->out, j->journal, opt->shard_bytes, !opt->no_checksums, j->err)) != 0) {
        return rc;
    }
    if ((rc = cv_declare(j)) != 0) return rc;
    if (cv_journal_count(j->journal) > 0 && !opt->quiet) {
        fprintf(stderr, "going on with an unfinished conversion, of which %zu tensors are marked as "
                "written\n", cv_journal_count(j->journal));
    }
    return stw_resume(j->stw, j->err);
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
    if ((rc = cv_begin(j)) != 0) return rc;
    if ((rc = cv_out_room(j->out, cv_forms_bytes(&j->forms, &j->cfg), j->err)) != 0) return rc;
    if ((rc = cv_copy_tokenizer(j)) != 0) return rc;
    glm_progress_begin(&j->progress, cv_plan_bytes(&j->cfg), NULL, opt->quiet);
    rc = cv_put_tensors(j);
    glm_progress_clear(&j->progress);
    if (rc == 0) rc = cv_put_file(j, "config.json", j->config, strlen(j->config));
    return rc ? rc : cv_out_commit(j->out, j->err);
}


static void
cv_say_done(const cv_job_t *j)
{
    printf("%s %s: %zu tensors, %llu bytes, from %d rank file%s\n",
           j->opt->dry_run ? "would write" : "wrote", j->opt->dst, j->forms.n,
           (unsigned long long) cv_forms_bytes(&j->forms, &j->cfg), j->source.ranks,
           j->source.ranks == 1 ? "" : "s");
}


int
cv_convert(const cv_options_t *opt, glm_err_t *err)
{
    cv_job_t  j = { .opt = opt, .err = err };
    int       rc;

    cv_find_home(&j);
    rc = cv_read_config(&j);
    if (rc == 0) rc = cv_source_open(&j.source, opt->src, &j.cfg, err);
    if (rc == 0) rc = cv_choose(&j);
    if (rc == 0) rc = cv_calibrate(&j);
    if (rc == 0) {
        if (!opt->quiet) {
            cv_source_unused(&j.source, cv_say);
            cv_say_needs(&j);
        }
        if (!opt->dry_run) rc = cv_write(&j);
    }
    /* what stopped may be gone on with, what is wrong with the source may not */
    if ((rc == GLM_ECANCEL || rc == GLM_EIO) && j.journal && cv_journal_count(j.journal) > 0) {
        cv_out_keep(j.out);
        if (!opt->quiet) fprintf(stderr, "%s: unfinished; the same command goes on\n", opt->dst);
    }
    if (rc == 0 && !opt->quiet) cv_say_done(&j);
    cv_source_close(&j.source);
    stw_close(j.stw);
    cv_journal_close(j.journal);
    cv_out_close(j.out);
    cv_calib_free(j.calib);
    cv_forms_free(&j.forms);
    free(j.config);
    free(j.text);
    return rc;
}
