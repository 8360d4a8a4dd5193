/*
 * eval_journal: one JSON line a result, behind a first line that says what they are
 * results of.  A line that a kill cut short is dropped.
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "eval.h"

struct glm_journal_s {
    FILE             *f;
    pthread_mutex_t   lock;
};

/* What must be equal for old results to stand: model, task, files. */
static json_t *
identity(const glm_eval_opts_t *o, const glm_eval_file_t *files, const glm_sock_welcome_t *w)
{
    char     hex[20];
    json_t  *j, *list = json_array();

    for (int i = 0; i < o->nfile; i++) {
        json_array_append_new(list, json_pack("[s, I]", files[i].name, (json_int_t) files[i].n));
    }
    snprintf(hex, sizeof(hex), "%016" PRIx64, w->fingerprint);
    j = json_pack("{s:s, s:i, s:b, s:b, s:i, s:i, s:i, s:b, s:s, s:i, s:f, s:i, s:i, s:o}",
                  "fingerprint", hex, "kind", (int) o->kind, "use_task_mask", o->gmask,
                  "unidirectional", o->unidirectional, "max_seq_length", (int) o->max_seq_length,
                  "max_gen_length", (int) o->max_gen_length,
                  "generation_length", (int) o->generation_length, "eop", o->eop,
                  "documents", o->documents != NULL ? o->documents : "",
                  "num_beams", (int) o->cli->sampling.beams,
                  "length_penalty", (double) o->cli->sampling.length_penalty,
                  "no_repeat_ngram_size", (int) o->cli->sampling.no_repeat_ngram,
                  "min_gen_length", (int) o->cli->sampling.min_tokens, "files", list);
    return j;
}

static void
take(glm_eval_file_t *files, int nfile, const json_t *line)
{
    json_int_t           file, item;
    glm_eval_result_t    r = { .done = 1 };

    if (json_unpack((json_t *) line, "[I, I, F, F]", &file, &item, &r.score[0], &r.score[1]) != 0)
        return;
    if (file < 0 || file >= nfile || item < 0 || (size_t) item >= files[file].n) return;
    files[file].result[item] = r;
}

/* Reads the old lines; *end: where the last whole one ends. */
static int
replay(FILE *f, const json_t *want, glm_eval_file_t *files, int nfile, long *end)
{
    int        rc = 1;
    char      *line = NULL;
    size_t     cap = 0;
    ssize_t    n;
    json_t    *j;

    *end = 0;
    while (rc > 0 && (n = getline(&line, &cap, f)) > 0 && line[n - 1] == '\n') {
        j = json_loadb(line, (size_t) n, 0, NULL);
        if (*end == 0 && !json_equal(j, want)) rc = 0;
        else if (j != NULL) take(files, nfile, j);
        json_decref(j);
        *end = ftell(f);
    }
    free(line);
    return rc;
}

static int
begin(glm_journal_t *j, json_t *id, glm_eval_file_t *files, const glm_eval_opts_t *o,
    glm_err_t *err)
{
    long  end;

    if (!replay(j->f, id, files, o->nfile, &end)) {
        return glm_fail(err, GLM_EINVAL, "--resume: %s holds results of another model, task or "
                        "files; remove it to start anew", o->resume);
    }
    if (ftruncate(fileno(j->f), end) != 0 || fseek(j->f, end, SEEK_SET) != 0) {
        return glm_fail(err, GLM_EIO, "--resume: %s: %s", o->resume, strerror(errno));
    }
    if (end == 0) {
        json_dumpf(id, j->f, JSON_COMPACT);
        putc('\n', j->f);
    }
    return fflush(j->f) == 0 ? 0 : glm_fail(err, GLM_EIO, "--resume: %s cannot be written",
                                            o->resume);
}

int
glm_journal_open(glm_journal_t **out, const glm_eval_opts_t *o, glm_eval_file_t *files,
    const glm_sock_welcome_t *w, glm_err_t *err)
{
    int             rc;
    json_t         *id;
    glm_journal_t  *j;

    *out = NULL;
    if (o->resume == NULL) return 0;
    j = calloc(1, sizeof(*j));
    id = identity(o, files, w);
    if (j == NULL || id == NULL) {
        free(j);
        json_decref(id);
        return glm_fail(err, GLM_ENOMEM, "no memory for the journal");
    }
    pthread_mutex_init(&j->lock, NULL);
    j->f = fopen(o->resume, "a+");
    if (j->f == NULL) rc = glm_fail(err, GLM_EIO, "--resume: %s: %s", o->resume, strerror(errno));
    else {
        rewind(j->f);
        rc = begin(j, id, files, o, err);
    }
    json_decref(id);
    if (rc != 0) glm_journal_close(j);
    else *out = j;
    return rc;
}

int
glm_journal_add(glm_journal_t *j, int file, size_t item, const glm_eval_result_t *r)
{
    int  rc;

    if (j == NULL) return 0;
    pthread_mutex_lock(&j->lock);
    fprintf(j->f, "[%d, %zu, %.17g, %.17g]\n", file, item, r->score[0], r->score[1]);
    rc = fflush(j->f);
    pthread_mutex_unlock(&j->lock);
    return rc == 0 ? 0 : GLM_EIO;
}

void
glm_journal_close(glm_journal_t *j)
{
    if (j == NULL) return;
    if (j->f != NULL) fclose(j->f);
    pthread_mutex_destroy(&j->lock);
    free(j);
}
