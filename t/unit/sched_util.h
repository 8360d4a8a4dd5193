/*
 * sched_util: the scheduler driven by hand, without threads, over the fake model, and
 * what a request must be given, from first principles.  Needs fake_model.h (or a model
 * of the CUDA backend: then there are no such principles), scheduler.h, engine_util.h and
 * tap.h before it.
 */
#ifndef GLM_T_SCHED_UTIL_H
#define GLM_T_SCHED_UTIL_H

#include <unistd.h>

#ifndef LAYERS
#define LAYERS  6
#endif
#define MASK    496
#define GMASK   497
#define SOP     500

static char         dir[] = "/tmp/glm-sched-XXXXXX";
static glm_model_t *model;
static glm_sched_t  S;
static glm_limits_t lim;
static atomic_int   live;
static uint64_t     now = 1000;

__attribute__((unused))
static void
write_config(void)
{
    char   path[64];
    FILE  *f;

    if (mkdtemp(dir) == NULL) bail_out("no temporary directory");
    snprintf(path, sizeof(path), "%s/config.json", dir);
    f = fopen(path, "w");
    fprintf(f, "{\"name\": \"fake\", \"num_layers\": %d, \"hidden_size\": 256, "
            "\"inner_hidden_size\": 256, \"num_attention_heads\": 4, \"vocab_size\": 512, "
            "\"max_sequence_length\": 512, \"special_tokens\": {\"[MASK]\": 496, "
            "\"[gMASK]\": 497, \"[sMASK]\": 498, \"eod\": 499, \"sop\": 500, \"eop\": 501, "
            "\"ENC\": 502, \"dBLOCK\": 503, \"eos\": 2}, \"end_tokens\": [501, 2]}", LAYERS);
    fclose(f);
}

__attribute__((unused))
static void
remove_config(void)
{
    char  path[64];

    snprintf(path, sizeof(path), "%s/config.json", dir);
    unlink(path);
    rmdir(dir);
}

__attribute__((unused))
static void
up(int max_seqs, int max_rows, int kv_pages, int max_queue, int budget)
{
    glm_model_opts_t  o = { .backend = GLM_BACKEND_CUDA, .dir = dir, .dummy = 1, .tp = 1,
                            .kv_pages = kv_pages, .max_rows = max_rows };
    glm_err_t         err = {0};

    if (glm_model_load(&model, &o, &err) != 0) bail_out(err.text);
    memset(&S, 0, sizeof(S));
    S = (glm_sched_t) { .model = model, .cfg = &model->cfg, .max_seqs = max_seqs,
                        .max_rows = max_rows, .max_queue = max_queue, .budget = budget,
                        .live = &live };
    if (glm_sched_init(&S, kv_pages, &err) != 0) bail_out(err.text);
    lim = (glm_limits_t) { .vocab = { &model->cfg, NULL }, .max_seqs = max_seqs,
                           .kv_pages = kv_pages };
    fake_steps = fake_slices = fake_max_rows_seen = 0;
}

__attribute__((unused))
static void
down_quietly(void)
{
    glm_sched_wake(&S);
    glm_sched_destroy(&S);
    glm_model_free(model);
}

__attribute__((unused))
static void
down(const char *what)
{
    ok(live == 0 && S.kv.nfree == S.kv.total && S.nrun == 0 && S.nqueue == 0 && fake_wrong == 0,
       "%s: nothing is left, every page is back", what);
    down_quietly();
}

static uint64_t  serial;

/* Makes and hands over; 0 when it was refused while being made. */
__attribute__((unused))
static int
arrive(t_req_t *t)
{
    glm_job_t      *j;
    glm_refusal_t   no;

    t->r.link.serial = serial++;
    if (glm_job_make(&j, &t->r, &lim, &no) != 0) {
        t->no = no;
        return 0;
    }
    live++;
    glm_sched_arrive(&S, j, now);
    return 1;
}

__attribute__((unused))
static int
step(void)
{
    return glm_sched_step(&S, now);
}

__attribute__((unused))
static void
run_all(void)
{
    for (int i = 0; i < 100000 && step(); i++) { }
}

/* n ids from 20 on; t keeps them. */
__attribute__((unused))
static t_req_t *
request(int32_t first, int32_t n, int32_t max_tokens)
{
    static int32_t  ids[2000];

    for (int i = 0; i < 2000; i++) ids[i] = 20 + i % 400;
    t_req_t  *t = t_new_ids(NULL, ids + first, (size_t) n);

    t->r.max_tokens = max_tokens;
    t->r.ignore_eos = 1;
    t->r.sample.temperature = 1;
    t->r.has_seed = 1;
    t->r.sample.seed = 99;
    return t;
}

#ifdef GLM_T_FAKE_MODEL_H
/* ---- what a request must be given, from first principles ---- */

/* The row of tok[n - 1]. */
__attribute__((unused))
static void
sample_of(const int32_t *tok, const int32_t *pos, int n, const glm_sample_t *a,
    glm_sampled_t *out)
{
    static float   x[512];
    static void   *scratch;
    uint64_t       hash = 0;

    if (scratch == NULL && posix_memalign(&scratch, 64, glm_sample_scratch(512)) != 0) abort();
    for (int s = 0; s < n; s++) hash = fake_mix(hash ^ fake_entry(tok[s], pos[s], s));
    fake_logits(hash, 512, x);
    glm_sample(x, 512, a, scratch, out);
}

__attribute__((unused))
static int32_t
next_token(const int32_t *tok, const int32_t *pos, int n, const glm_sample_t *a)
{
    glm_sampled_t  out;

    sample_of(tok, pos, n, a, &out);
    return out.id;
}

/* tok[0 .. n) is the input with sop; frozen: position from slot c on, or -1. */
__attribute__((unused))
static int
as_alone(const t_req_t *t, int k, const int32_t *input, int n, int c, int frozen)
{
    int32_t       tok[600], pos[600];
    glm_sample_t  a = t->r.sample;

    for (int i = 0; i < n; i++) {
        tok[i] = input[i];
        pos[i] = i >= c && frozen >= 0 ? frozen : i;
    }
    a.choice = (uint32_t) k;
    if ((int32_t) t->c[k].n != t->r.max_tokens || t->wrong || t->ended != 1) return 0;
    for (int i = 0; i < t->r.max_tokens; i++) {
        a.ntokens = (uint32_t) i;
        tok[n] = next_token(tok, pos, n, &a);
        pos[n] = frozen >= 0 ? frozen : n;
        if (t->c[k].id[i] != tok[n]) return 0;
        n++;
    }
    return 1;
}

/* The input of a plain prompt of request(first, n). */
__attribute__((unused))
static int
right(const t_req_t *t)
{
    int32_t  input[600];
    int      n = (int) t->seg.n, good = 1;

    memcpy(input, t->seg.ids, t->seg.n * sizeof(int32_t));
    input[n] = GMASK;
    input[n + 1] = SOP;
    for (int k = 0; k < t->r.n; k++) good &= as_alone(t, k, input, n + 2, n + 1, -1);
    return good;
}

#endif

__attribute__((unused))
static void
cancel(t_req_t *t)
{
    atomic_store(&t->r.cancel, 1);
    glm_sched_sweep(&S, now);
}

#endif
