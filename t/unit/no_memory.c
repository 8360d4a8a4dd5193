/*
 * no_memory: breaks when the engine crashes, goes on with half of something, loses a
 * page or leaks where an allocation fails.  Each allocation of a request's life, of its
 * message and of its answers fails in turn, alone and with all behind it; the scheduler
 * by hand, over the fake model with the demo's tokenizer.
 */
#include "fake_model.h"
#include "scheduler.h"
#include "spool.h"
#include "wire_decode.h"
#define T_CHOICES  64
#include "engine_util.h"
#include "tap.h"
#include "sched_util.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)

int
main(void)
{
    skip_all("the sanitizer has the allocations");
}

#else

extern void *__libc_malloc(size_t n);
extern void *__libc_calloc(size_t n, size_t size);
extern void *__libc_realloc(void *p, size_t n);
extern void __libc_free(void *p);

/* volatile: a compiler believes that malloc() looks at none of them */
static volatile long  blocks;    /* allocated */
static volatile long  calls;     /* while armed */
static volatile long  fail_at;   /* the call that fails; 0: none */
static volatile int   armed, all_behind;

static int
fails(void)
{
    if (!armed) return 0;
    calls++;
    return fail_at > 0 && (calls == fail_at || (all_behind && calls > fail_at));
}

void *
malloc(size_t n)
{
    void  *p = fails() ? NULL : __libc_malloc(n);

    blocks += p != NULL;
    return p;
}

void *
calloc(size_t n, size_t size)
{
    void  *p = fails() ? NULL : __libc_calloc(n, size);

    blocks += p != NULL;
    return p;
}

void *
realloc(void *p, size_t n)
{
    void  *q = fails() ? NULL : __libc_realloc(p, n);

    blocks += p == NULL && q != NULL;
    return q;
}

void
free(void *p)
{
    blocks -= p != NULL;
    __libc_free(p);
}

/* ---- the owner's memory does not fail ---- */

#define OWNERS(...)  do { int  was_ = armed; armed = 0; __VA_ARGS__; armed = was_; } while (0)

static void safe_accepted(glm_req_t *r, const glm_accepted_t *a) { OWNERS(t_accepted(r, a)); }
static void safe_token(glm_req_t *r, const glm_token_out_t *t)   { OWNERS(t_token(r, t)); }
static void safe_finish(glm_req_t *r, const glm_finish_out_t *f) { OWNERS(t_finish(r, f)); }
static void safe_ids(glm_req_t *r, const int32_t *ids, size_t n) { OWNERS(t_ids(r, ids, n)); }
static void safe_text(glm_req_t *r, const char *s, size_t n)     { OWNERS(t_text(r, s, n)); }
static void safe_done(glm_req_t *r, const glm_done_t *d)         { OWNERS(t_done(r, d)); }
static void safe_error(glm_req_t *r, const glm_refusal_t *no)    { OWNERS(t_error(r, no)); }
static void safe_prompt(glm_req_t *r, const glm_token_out_t *t)  { OWNERS(t_prompt(r, t)); }
static void safe_filled(glm_req_t *r, const glm_filled_t *f)     { OWNERS(t_filled(r, f)); }

static const glm_sink_t  safe_sink = {
    .accepted = safe_accepted, .token = safe_token, .finish = safe_finish, .ids = safe_ids,
    .text = safe_text, .done = safe_done, .error = safe_error, .prompt = safe_prompt,
    .filled = safe_filled
};

/* ---- requests ---- */

static const glm_stop_t        stops[2] = { { "the", 3 }, { "e", 1 } };
static const glm_stop_t        bad_words[2] = { { "Datei", 5 }, { "package manager", 15 } };
static const glm_logit_bias_t  bias[2] = { { 300, 2 }, { 301, -3 } };
static const glm_segment_t     choices[3] = {
    { .kind = GLM_SEG_PLAIN, .text = "a", .n = 1 },
    { .kind = GLM_SEG_PLAIN, .text = "package manager", .n = 15 },
    { .kind = GLM_SEG_PLAIN, .text = "b", .n = 1 }
};

static void
plain_one(glm_req_t *r)
{
    (void) r;
}

static void
with_all(glm_req_t *r)
{
    r->n = 2;
    r->best_of = 3;
    r->stop = stops;
    r->nstop = 1;
    r->bad = bad_words;
    r->nbad = 2;
    r->bias = bias;
    r->nbias = 2;
    r->sample.repetition = 1.2f;
    r->sample.nlogprobs = 2;
    r->min_tokens = 2;
    r->repeat = (glm_repeat_t) { 1, 4, 3 };
    r->want_ids = r->want_text = r->echo = 1;
}

static void
with_prompt_logprobs(glm_req_t *r)
{
    r->mode = GLM_UNIDIRECTIONAL;
    r->want_prompt_logprobs = 1;
    r->want_text = 1;
}

static void
with_suffix(glm_req_t *r)
{
    r->suffix = "is empty.";
    r->nsuffix = 9;
}

static void
with_beams(glm_req_t *r)
{
    r->n = 2;
    r->beams = 3;
    r->has_seed = 0;
    r->sample.temperature = 0;
    r->sample.nlogprobs = 1;
    r->no_repeat_ngram = 2;
    r->length_penalty = 1;
}

static void
blanks(glm_req_t *r)
{
    r->op = GLM_OP_INFILL;
    r->n = 2;
    r->stop = stops;
    r->nstop = 2;
}

static void
blanks_beams(glm_req_t *r)
{
    with_beams(r);
    r->op = GLM_OP_INFILL;
}

static void
score(glm_req_t *r)
{
    r->op = GLM_OP_SCORE;
    r->choice = choices;
    r->nchoice = 3;
    r->n = 3;
}

static const struct {
    const char  *what, *text;
    void       (*set)(glm_req_t *);
} kinds[] = {
    { "a completion", "Where is the file?", plain_one },
    { "with all there is", "Where is the file?", with_all },
    { "log-probabilities of a prompt", "Where is the file?", with_prompt_logprobs },
    { "a suffix", "The file", with_suffix },
    { "beams", "Where is the file?", with_beams },
    { "blanks", "The [MASK] is a [MASK] and [MASK].", blanks },
    { "blanks with beams", "The [MASK] is a [MASK].", blanks_beams },
    { "a score", "The package manager of", score },
};

static t_req_t *
make(int kind)
{
    t_req_t     *t = t_new_text(NULL, kinds[kind].text);

    t->r.sink = &safe_sink;
    t->r.max_tokens = 8;
    t->r.sample.temperature = 1;
    t->r.sample.seed = 11;
    t->r.has_seed = 1;
    t->r.min_tokens = 1;
    kinds[kind].set(&t->r);
    t->blanks = 0;
    for (const char *s = t->seg.text; (s = strstr(s, "[MASK]")) != NULL; s++) t->blanks++;
    if (t->blanks == 0) t->blanks = 1;
    return t;
}

/* One life with the n-th allocation failing; whether it came to that. */
static int
life(int kind, long n, int behind, int *bad)
{
    long      before = blocks;
    t_req_t  *t = make(kind);
    int       made, wrong;

    calls = 0;
    fail_at = n;
    all_behind = behind;
    armed = 1;
    made = arrive(t);
    if (made) run_all();
    armed = 0;
    wrong = made ? t->ended == 0 || t->wrong || (t->ended == 2 && t->no.status != 500)
                 : t->no.status != 500 || t->ended;
    wrong += n == 0 && t->ended != 1;
    wrong += live != 0 || S.kv.nfree != S.kv.total || S.nrun != 0 || S.nqueue != 0;
    if (wrong) diag("%s, call %ld: made %d, ended %d, wrong %d: %d %s", kinds[kind].what, n, made,
                    t->ended, t->wrong, t->no.status, t->no.text);
    t_free(t);
    if (blocks != before) diag("%s, call %ld: %ld blocks are left", kinds[kind].what, n, blocks - before);
    *bad += wrong || blocks != before;
    return calls >= n && n > 0;
}

/* ---- the wire ---- */

static void
add_list(glm_wbuf_t *b, uint16_t type, const char *a, const char *z)
{
    glm_wbuf_t  list = {0};

    glm_wire_string(&list, a, strlen(a));
    glm_wire_string(&list, z, strlen(z));
    glm_wire_section(b, type, list.p, list.n);
    glm_wbuf_free(&list);
}

/* A SUBMIT with all that is allocated for. */
static glm_wbuf_t
submit(void)
{
    const glm_msg_submit_t  m = { .size = sizeof(m), .op = GLM_SUBMIT_SCORE, .n = 1 };
    const uint32_t          two[5] = { GLM_SEC_PLAIN, 0x61, GLM_SEC_IDS, 4, 7 };
    glm_wbuf_t              b = {0}, list = {0};
    glm_choice_t            c = { GLM_SEC_PLAIN, 1 };

    glm_wbuf_put(&b, &m, sizeof(m));
    for (int i = 0; i < 9; i++) glm_wire_section(&b, i % 2 ? GLM_SEC_TEXT : GLM_SEC_PLAIN, "abc", 3);
    add_list(&b, GLM_SEC_STOPS, "a", "b");
    add_list(&b, GLM_SEC_BAD, "c", "d");
    glm_wbuf_put(&list, &c, sizeof(c));
    glm_wbuf_put(&list, two + 1, 4);
    glm_wbuf_put(&list, two + 2, 12);
    glm_wire_section(&b, GLM_SEC_CHOICES, list.p, list.n);
    glm_wbuf_free(&list);
    return b;
}

static int
decode(long n, int behind, int *bad)
{
    const glm_decode_limits_t  limits = { 100, 4, 8, 20 };
    long                       before = blocks;
    glm_wbuf_t                 b = submit();
    glm_submit_t               out;
    glm_refusal_t              why;
    int                        rc;

    calls = 0;
    fail_at = n;
    all_behind = behind;
    armed = 1;
    rc = glm_wire_decode_submit(&out, b.p, b.n, &limits, &why);
    armed = 0;
    *bad += n == 0 ? rc != 0 : rc != (calls >= n ? GLM_ENOMEM : 0);
    if (rc == 0) *bad += out.req.nchoice != 2 || out.req.nbad != 2 || out.req.nseg != 9;
    glm_submit_free(&out);
    *bad += blocks != before;
    return calls >= n && n > 0;
}

static const char *
no_text(void *arg, int32_t id, size_t *n)
{
    (void) arg;
    (void) id;
    *n = 3;
    return "abc";
}

/* What is said of a request, and taken again; each failure is told. */
static int
outbox(long n, int behind, int *bad)
{
    static const glm_sampled_t  s = { .id = 5, .ntop = 3 };
    glm_token_out_t             t = { .id = 5, .text = "xyz", .ntext = 3, .sampled = &s };
    const glm_span_t            span = { 1, 2 };
    const glm_filled_t          filled = { 0, "text", 4, &span, 1 };
    long                        before = blocks;
    glm_outbox_t                o = {0};
    glm_wbuf_t                  b = {0};
    uint16_t                    type;
    int                         failed = 0, rc;

    calls = 0;
    fail_at = n;
    all_behind = behind;
    armed = 1;
    for (int i = 0; i < 40; i++) failed |= glm_outbox_prompt(&o, &t, no_text, NULL) != 0;
    for (int i = 0; i < 400; i++) {
        t.choice = i % 3;
        failed |= glm_outbox_token(&o, &t, no_text, NULL) != 0;
    }
    glm_wire_filled(&b, &filled);
    failed |= glm_outbox_add(&o, GLM_MSG_FILLED, &b) != 0;
    while ((rc = glm_outbox_take(&o, &type, &b)) != 0) {
        failed |= rc < 0;
        glm_wbuf_free(&b);
    }
    armed = 0;
    *bad += failed != (n > 0 && calls >= n) || o.bytes != 0 || o.head != NULL;
    glm_outbox_free(&o);
    *bad += blocks != before;
    return calls >= n && n > 0;
}

static void
each(int (*one)(long n, int behind, int *bad), const char *what)
{
    int   bad = 0;
    long  n = 1;

    one(0, 0, &bad);
    for (; bad < 5 && one(n, 0, &bad); n++) one(n, 1, &bad);
    ok(bad == 0 && n > 3, "%s: each of %ld allocations fails", what, n - 1);
}

int
main(void)
{
    glm_tokenizer_t  *tok = NULL;
    glm_err_t         err = {0};

    if (access("models/demo/config.json", R_OK) != 0) skip_all("no demo model");
    snprintf(dir, sizeof(dir), "models/demo");
    if (glm_tokenizer_load(&tok, dir, &err) != 0) bail_out(err.text);
    up(4, 64, 64, 10, 0);
    lim.vocab.tok = tok;
    lim.max_rows = 64;

    for (int k = 0; k < (int) (sizeof(kinds) / sizeof(kinds[0])); k++) {
        int   bad = 0;
        long  n = 1;

        life(k, 0, 0, &bad);
        ok(bad == 0, "%s, with all memory", kinds[k].what);
        for (; bad < 5 && life(k, n, 0, &bad); n++) life(k, n, 1, &bad);
        ok(bad == 0 && n > 5, "%s: each of %ld allocations fails", kinds[k].what, n - 1);
    }
    each(decode, "a SUBMIT");
    each(outbox, "what is told");
    ok(fake_wrong == 0, "the model was called as its header says");
    down("no memory");
    glm_tokenizer_free(tok);
    return tap_done();
}
#endif
