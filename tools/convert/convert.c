/*
 * convert: reads the configuration, checks the source, writes tensor by
 * tensor.  Holds one whole tensor at a time.
 */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <zlib.h>

#include "convert.h"
#include "merge.h"
#include "preset.h"
#include "progress.h"
#include "quant.h"
#include "stw.h"

#define CV_MAX_SMALL  (64u << 20)       /* bytes of a tokenizer's file */

typedef struct {
    const cv_options_t  *opt;
    glm_config_t         cfg;
    char                 home[PATH_MAX - 64];   /* the source's directory, or an archive's */
    char                *text;          /* the source's config.json */
    size_t               text_len;
    char                *config;        /* text of the new one */
    cv_source_t          source;
    cv_forms_t           forms;
    cv_out_t            *out;
    cv_journal_t        *journal;
    stw_t               *stw;
    glm_progress_t        progress;
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


/* Room for a tensor as it is merged, and for its scales. */
typedef struct {
    void      *whole;
    uint16_t  *scale;
} cv_room_t;


static uint64_t
cv_values(const cv_item_t *item)
{
    return (uint64_t) (item->dim[0] * item->dim[1]);
}


static int
cv_merge_said(cv_job_t *j, const cv_item_t *item, void *whole)
{
    int  differ, rc = cv_merge(&j->source, item, whole, &differ, j->opt->stop, j->err);

    if (rc != 0 || !differ) return rc;
    glm_progress_clear(&j->progress);
    fprintf(stderr, "%s: ranks 0 and %d have different values; those of rank 0 are taken\n",
            item->name, differ);
    return 0;
}


static int
cv_quantise(cv_job_t *j, const cv_form_t *form, const cv_item_t *item, const cv_room_t *room)
{
    glm_quantize_t  z = { form->choice.type, item->dim[0], item->dim[1], item->dim[1] / form->groups };
    int64_t     row, col;

    if (glm_quantize(&z, room->whole, room->whole, room->scale, &row, &col) == 0) return 0;
    return glm_fail(j->err, GLM_EFORMAT, "%s: row %lld, column %lld is not a finite number, which "
                    "cannot be quantised", item->name, (long long) row, (long long) col);
}


/* A quantised weight: its integers, then its scales. */
static int
cv_put_quantised(cv_job_t *j, const cv_form_t *form, const cv_item_t *item, const cv_room_t *room)
{
    cv_item_t  bytes, scale;
    int        rc;

    cv_plan_quantised(item, form->choice.type, form->groups, &bytes, &scale);
    if (form->given) {
        rc = cv_merge_said(j, &bytes, room->whole);
        if (rc == 0) rc = cv_merge_said(j, &scale, room->scale);

    } else {
        rc = cv_merge_said(j, item, room->whole);
        if (rc == 0) rc = cv_quantise(j, form, item, room);
    }
    if (rc == 0) rc = stw_write(j->stw, room->whole, cv_values(&bytes), j->err);
    if (rc != 0) return rc;
    return stw_write(j->stw, room->scale, (size_t) (item->dim[0] * form->groups * 2), j->err);
}


/* A tensor that is there already, with its scales. */
static int
cv_pass(cv_job_t *j, const cv_form_t *form, const cv_item_t *item)
{
    cv_item_t  bytes, scale;
    int        rc;

    if (form->choice.type == GLM_T_F16) return stw_write(j->stw, NULL, cv_values(item) * 2, j->err);
    cv_plan_quantised(item, form->choice.type, form->groups, &bytes, &scale);
    rc = stw_write(j->stw, NULL, cv_values(&bytes), j->err);
    return rc ? rc : stw_write(j->stw, NULL, (size_t) (item->dim[0] * form->groups * 2), j->err);
}


static int
cv_put_tensor(cv_job_t *j, size_t i, const cv_room_t *room)
{
    const cv_form_t  *form = &j->forms.of[i];
    cv_item_t         item;
    int               rc;

    cv_plan_at(&j->cfg, i, &item);
    if (stw_there(j->stw, form->choice.type != GLM_T_F16 ? 2 : 1)) {
        rc = cv_pass(j, form, &item);

    } else if (form->choice.type != GLM_T_F16) {
        rc = cv_put_quantised(j, form, &item, room);

    } else {
        rc = cv_merge_said(j, &item, room->whole);
        if (rc == 0) rc = stw_write(j->stw, room->whole, cv_values(&item) * 2, j->err);
    }
    if (rc == 0) glm_progress_add(&j->progress, cv_values(&item) * 2, item.name);
    return rc;
}


/* Tells the writer what will come, in the order of the plan. */
static int
cv_declare(cv_job_t *j)
{
    const cv_form_t  *form;
    cv_item_t         item, bytes, scale;
    size_t            i;
    int               rc = 0;

    for (i = 0; i < j->forms.n && rc == 0; i++) {
        form = &j->forms.of[i];
        cv_plan_at(&j->cfg, i, &item);
        if (form->choice.type == GLM_T_F16) {
            rc = stw_declare(j->stw, item.name, GLM_F16, item.ndim, item.dim, j->err);
            continue;
        }
        cv_plan_quantised(&item, form->choice.type, form->groups, &bytes, &scale);
        rc = stw_declare(j->stw, bytes.name, GLM_I8, 2, bytes.dim, j->err);
        scale.dim[1] = form->groups;
        if (rc == 0) rc = stw_declare(j->stw, scale.name, GLM_F16, 2, scale.dim, j->err);
    }
    return rc;
}


/* Bytes of room for any tensor of the plan, and for the scales of any. */
static void
cv_needs(const cv_job_t *j, size_t *whole, size_t *scale)
{
    cv_item_t  item;
    size_t     i, size;

    *whole = *scale = 0;
    for (i = 0; i < j->forms.n; i++) {
        cv_plan_at(&j->cfg, i, &item);
        size = cv_values(&item) * (j->forms.of[i].given ? 1 : 2);
        if (size > *whole) *whole = size;
        size = (size_t) (item.dim[0] * j->forms.of[i].groups * 2);
        if (size > *scale) *scale = size;
    }
}


/* Before hours of work: what they will take. */
static void
cv_say_needs(const cv_job_t *j)
{
    size_t  whole, scale;

    cv_needs(j, &whole, &scale);
    fprintf(stderr, "needs %.1f MB of disk, %.1f MB of memory\n",
            (double) cv_forms_bytes(&j->forms, &j->cfg) / 1e6, (double) (whole + scale) / 1e6);
}


static int
cv_put_tensors(cv_job_t *j)
{
    cv_room_t  room;
    size_t     i, whole, scale;
    int        rc = 0;

    cv_needs(j, &whole, &scale);
    room = (cv_room_t) { malloc(whole), malloc(scale ? scale : 1) };
    if (room.whole == NULL || room.scale == NULL) {
        rc = glm_fail(j->err, GLM_ENOMEM, "no memory for the largest tensor, %zu bytes", whole);
    }
    for (i = 0; i < j->forms.n && rc == 0; i++) rc = cv_put_tensor(j, i, &room);
    free(room.whole);
    free(room.scale);
    return rc ? rc : stw_finish(j->stw, j->err);
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
    glm_progress_begin(&j->progress, cv_plan_bytes(&j->cfg), opt->quiet);
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
    cv_forms_free(&j.forms);
    free(j.config);
    free(j.text);
    return rc;
}
