/*
 * eval: runs the items of a task in several threads, shows how far it is, and adds
 * the results up as the original does.
 */
#include <locale.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "eval.h"
#include "progress.h"

typedef struct {
    const glm_eval_opts_t  *o;
    glm_eval_file_t        *file;
    glm_journal_t          *journal;
    pthread_mutex_t         lock;
    int                     next_file;
    size_t                  next_item;
    size_t                  total;
    int                     failed;
    glm_progress_t          progress;
} run_t;

typedef struct {
    pthread_t     thread;
    run_t        *run;
    glm_link_t    link;
    glm_eval_t    e;
} worker_t;

/* ---- items ---- */

/* The next item without a result; 0: none is left, or something failed. */
static int
next_item(run_t *r, int *file, size_t *item)
{
    int  found = 0;

    pthread_mutex_lock(&r->lock);
    while (!found && !r->failed && !glm_cli_interrupted() && r->next_file < r->o->nfile) {
        const glm_eval_file_t  *f = &r->file[r->next_file];

        if (r->next_item == f->n) {
            r->next_file++;
            r->next_item = 0;
            continue;
        }
        *file = r->next_file;
        *item = r->next_item++;
        found = !f->result[*item].done;
    }
    pthread_mutex_unlock(&r->lock);
    return found;
}

static int
evaluate(glm_eval_t *e, const glm_eval_file_t *f, size_t i, glm_eval_result_t *out)
{
    switch (e->o->kind) {
    case GLM_EVAL_MUL: return glm_eval_mul(e, f->line[i], out);
    case GLM_EVAL_GEN: return glm_eval_gen(e, f->line[i], out);
    default:           return glm_eval_ppl(e, f, i, out);
    }
}

/* The first failure is told; the others stop. */
static void
fail(run_t *r, const char *file, size_t item, const char *text)
{
    pthread_mutex_lock(&r->lock);
    if (!r->failed) {
        glm_progress_clear(&r->progress);
        fprintf(stderr, "glm: %s, item %zu: %s\n", file, item + 1, text);
    }
    r->failed = 1;
    pthread_mutex_unlock(&r->lock);
}

static void *
work(void *arg)
{
    worker_t           *w = arg;
    run_t              *r = w->run;
    int                 file;
    size_t              item;
    glm_eval_result_t   res;

    while (next_item(r, &file, &item)) {
        res = (glm_eval_result_t) {0};
        if (evaluate(&w->e, &r->file[file], item, &res) != 0) {
            fail(r, r->file[file].name, item, w->e.err.text);
            break;
        }
        res.done = 1;
        if (glm_journal_add(r->journal, file, item, &res) != 0) {
            fail(r, r->o->resume, item, "the journal cannot be written");
            break;
        }
        pthread_mutex_lock(&r->lock);
        r->file[file].result[item] = res;
        glm_progress_add(&r->progress, 1, r->file[file].name);
        pthread_mutex_unlock(&r->lock);
    }
    return NULL;
}

/* ---- results ---- */

typedef struct {
    const char  *name;
    double       value;
} metric_t;

/* As the original names and scales them.  How many. */
static int
metrics(const glm_eval_opts_t *o, const glm_eval_file_t *f, metric_t m[4])
{
    double  sum[2] = {0}, n = (double) f->n;

    for (size_t i = 0; i < f->n; i++) {
        sum[0] += f->result[i].score[0];
        sum[1] += f->result[i].score[1];
    }
    if (o->kind == GLM_EVAL_MUL) {
        m[0] = (metric_t) { "Accuracy", 100 * sum[0] / n };
        return 1;
    }
    if (o->kind == GLM_EVAL_GEN) {
        m[0] = (metric_t) { "EM", 100 * sum[0] / n };
        m[1] = (metric_t) { "F1", 100 * sum[1] / n };
        return 2;
    }
    m[0] = (metric_t) { "PPL", exp(fmin(20, sum[0] / (double) f->words)) };
    m[1] = (metric_t) { "loss", sum[0] / sum[1] };
    m[2] = (metric_t) { "token_PPL", exp(fmin(700, sum[0] / sum[1])) };
    m[3] = (metric_t) { "bits_per_byte", sum[0] / log(2) / (double) f->bytes };
    return 4;
}

static int
by_value(const void *a, const void *b)
{
    double  x = *(const double *) a, y = *(const double *) b;

    return (x > y) - (x < y);
}

static double
median(double *v, int n)
{
    qsort(v, (size_t) n, sizeof(*v), by_value);
    return n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2;
}

/* Over the files: the largest, the median, and the mean weighted by items. */
static json_t *
summary(const run_t *r)
{
    metric_t   m[4];
    int        n = metrics(r->o, &r->file[0], m), k = r->o->nfile;
    json_t    *all = json_object();
    double    *v = calloc((size_t) k, sizeof(*v));

    for (int i = 0; i < n && v != NULL; i++) {
        double  sum = 0, weight = 0, best = -INFINITY;

        for (int f = 0; f < k; f++) {
            metrics(r->o, &r->file[f], m);
            v[f] = m[i].value;
            sum += m[i].value * (double) r->file[f].n;
            weight += (double) r->file[f].n;
            best = fmax(best, m[i].value);
        }
        json_object_set_new(all, m[i].name, json_pack("{s:f, s:f, s:f}", "max", best, "median",
                                                      median(v, k), "average", sum / weight));
    }
    free(v);
    return all;
}

static json_t *
report(const run_t *r)
{
    static const char *const  kinds[] = { "mul", "gen", "ppl" };
    metric_t                  m[4];
    json_t                   *files = json_array(), *one;

    for (int i = 0; i < r->o->nfile; i++) {
        const glm_eval_file_t  *f = &r->file[i];
        int                     n = metrics(r->o, f, m);

        one = json_pack("{s:s, s:I}", "file", f->name, "items", (json_int_t) f->n);
        for (int k = 0; k < n; k++) json_object_set_new(one, m[k].name, json_real(m[k].value));
        json_array_append_new(files, one);
    }
    return json_pack("{s:s, s:o, s:o}", "task", kinds[r->o->kind], "files", files, "metrics",
                     summary(r));
}

static void
print_metrics(const json_t *object)
{
    const char  *key;
    json_t      *v;

    json_object_foreach((json_t *) object, key, v) {
        if (json_is_real(v)) printf(", %s = %.3f", key, json_real_value(v));
    }
    putchar('\n');
}

static int
print(const run_t *r)
{
    json_t      *all = report(r), *v;
    const char  *key;

    if (all == NULL) return glm_cli_fail("no memory for the report");
    if (r->o->cli->json) {
        json_dumpf(all, stdout, JSON_REAL_PRECISION(12));
        putchar('\n');
    } else {
        for (size_t i = 0; i < json_array_size(json_object_get(all, "files")); i++) {
            v = json_array_get(json_object_get(all, "files"), i);
            printf("%s: %lld items", json_string_value(json_object_get(v, "file")),
                   (long long) json_integer_value(json_object_get(v, "items")));
            print_metrics(v);
        }
        json_object_foreach(json_object_get(all, "metrics"), key, v) {
            printf("%s: max = %.3f, median = %.3f, average = %.3f\n", key,
                   json_real_value(json_object_get(v, "max")),
                   json_real_value(json_object_get(v, "median")),
                   json_real_value(json_object_get(v, "average")));
        }
    }
    json_decref(all);
    return fflush(stdout) != 0 || ferror(stdout) ? GLM_CLI_FAIL : GLM_CLI_OK;
}

/* ---- the run ---- */

static int
one_id(glm_eval_t *e, const char *name, int32_t *id)
{
    glm_answer_t  a = {0};
    int           rc = glm_eval_tokenize(e, name, strlen(name), &a);

    if (rc == 0 && a.ids.n != sizeof(*id)) {
        rc = glm_fail(&e->err, GLM_EFORMAT, "the model has no token %s", name);
    }
    if (rc == 0) memcpy(id, a.ids.p, sizeof(*id));
    glm_answer_free(&a);
    return rc;
}

/* eop has no name in text: it follows the masks, eod and sop (section 5). */
static int
setup(glm_eval_t *e, const glm_eval_opts_t *o, glm_client_t *c)
{
    int      rc;
    int32_t  first;

    *e = (glm_eval_t) { .o = o, .client = c };
    e->max_seq = (int32_t) glm_client_welcome(c)->max_seq;
    if (o->max_seq_length > e->max_seq) {
        return glm_fail(&e->err, GLM_EINVAL, "--max-seq-length: the model has %d", e->max_seq);
    }
    if (o->max_seq_length > 0) e->max_seq = o->max_seq_length;
    if (e->max_seq <= o->max_gen_length + 2 || e->max_seq <= o->generation_length + 1) {
        return glm_fail(&e->err, GLM_EINVAL, "a generation length leaves no room in %d tokens",
                        e->max_seq);
    }
    rc = one_id(e, o->gmask ? "[gMASK]" : "[MASK]", &e->mask);
    if (rc == 0) rc = one_id(e, "[MASK]", &first);
    e->eop = rc == 0 ? first + 5 : 0;
    return rc;
}

static int
load(run_t *r, glm_eval_t *e)
{
    for (int i = 0; i < r->o->nfile; i++) {
        int  rc = glm_eval_load(e, &r->file[i]);

        if (rc != 0) return rc;
        r->total += r->file[i].n;
    }
    return 0;
}

/* Drawn on a terminal only; what the journal has is done. */
static void
begin(run_t *r)
{
    size_t  old = 0;

    for (int i = 0; i < r->o->nfile; i++)
        for (size_t k = 0; k < r->file[i].n; k++) old += (size_t) r->file[i].result[k].done;
    glm_progress_begin(&r->progress, r->total, "items", !isatty(STDERR_FILENO));
    glm_progress_found(&r->progress, old, "");
}

/* The first worker has link's own client. */
static int
start(run_t *r, worker_t *w, glm_link_t *link, glm_err_t *err)
{
    int  n;

    for (n = 0; n < r->o->parallel; n++) {
        w[n] = (worker_t) { .run = r };
        if (n > 0 && glm_cli_join(&w[n].link, link, r->o->cli, err) != 0) break;
        if (n == 0) w[n].link.client = link->client;
        if (setup(&w[n].e, r->o, w[n].link.client) != 0) break;
        if (pthread_create(&w[n].thread, NULL, work, &w[n]) != 0) break;
    }
    return n;
}

static int
run(run_t *r, glm_link_t *link)
{
    int         n;
    worker_t   *w = calloc((size_t) r->o->parallel, sizeof(*w));
    glm_err_t   err = {{0}};

    if (w == NULL) return glm_cli_fail("no memory");
    begin(r);
    n = start(r, w, link, &err);
    for (int i = 0; i < n; i++) pthread_join(w[i].thread, NULL);
    for (int i = 1; i < r->o->parallel; i++) glm_client_free(w[i].link.client);
    free(w);
    glm_progress_clear(&r->progress);
    if (n == 0) return glm_cli_fail("no client could be started");
    if (glm_cli_interrupted()) return glm_cli_fail("interrupted");
    return r->failed ? GLM_CLI_FAIL : print(r);
}

int
glm_cli_eval(const glm_eval_opts_t *o)
{
    int          rc;
    glm_err_t    err = {{0}};
    glm_eval_t   e;
    glm_link_t   link;
    run_t        r = { .o = o, .lock = PTHREAD_MUTEX_INITIALIZER };

    setlocale(LC_CTYPE, "C.UTF-8");
    r.file = calloc((size_t) o->nfile, sizeof(*r.file));
    if (r.file == NULL) return glm_cli_fail("no memory");
    for (int i = 0; i < o->nfile; i++) r.file[i].name = o->file[i];
    rc = glm_cli_open(&link, o->cli);
    if (rc != GLM_CLI_OK) {
        free(r.file);
        return rc;
    }
    if (setup(&e, o, link.client) != 0 || load(&r, &e) != 0) rc = glm_cli_fail(e.err.text);
    if (rc == GLM_CLI_OK
        && glm_journal_open(&r.journal, o, r.file, glm_client_welcome(link.client), &err) != 0)
        rc = glm_cli_fail(err.text);
    if (rc == GLM_CLI_OK) rc = run(&r, &link);
    glm_journal_close(r.journal);
    glm_cli_close(&link);
    for (int i = 0; i < o->nfile; i++) glm_eval_unload(&r.file[i]);
    free(r.file);
    return rc;
}
