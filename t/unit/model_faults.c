/*
 * model_faults: the CUDA backend, over t/fakecuda or on a card, when a call of a life fails,
 * a kernel does not end, logits are NaN.  Would break: a wrong token after a fault, a fault
 * that is told as another or not at all, a leak, memory given back while it is in use.
 */
#include "dummy_util.h"

#if !defined(GLM_FAKECUDA) && !defined(GLM_TEST_CUDA)

int
main(void)
{
    skip_all("the headers of CUDA are not here");
}

#else

#include "gpu.h"
#include "model_cuda.h"

#ifdef __SANITIZE_THREAD__
#define STRIDE   7                /* calls: a life takes a second there */
#else
#define STRIDE   1
#endif

#ifdef __SANITIZE_ADDRESS__
#define HANGS    0                /* after a time-out nothing is given back */
#else
#define HANGS    1
#endif

#define ILLEGAL  700              /* cudaErrorIllegalAddress */
#define NO_ROOM  2                /* cudaErrorMemoryAllocation */
#define GONE     100              /* cudaErrorNoDevice */

#ifdef GLM_FAKECUDA

#include "fakecuda.h"

/* What is not given back. */
static long taken(void) { return fakecuda_live(); }
/* What was given back too early. */
static int early(void) { return fakecuda_early(); }
static long launches(void) { return fakecuda_launches(); }

#define HANG(n)  fakecuda_hang(n)
#define TWIN(x)  (x)

#else

/* Bytes of the card. */
static long
taken(void)
{
    glm_gpu_t  *g;
    glm_err_t   err;
    long        bytes;

    if (glm_gpu_open(&g, 0, 1, &err) != 0) bail_out(err.text);
    bytes = (long) (glm_gpu_info(g)->total - glm_gpu_info(g)->free);
    glm_gpu_close(g);
    return bytes;
}

/* A card does not tell: it faults, or a later life has other tokens. */
static int early(void) { return 0; }

static long
launches(void)
{
    static long  n;

    return n += glm_gpu_fault_at(NULL, 0, 0);     /* any call that is checked */
}

#define HANG(n)  ((void) (n))
#define TWIN(x)  (1)

#endif

/* A NaN in one row: no token of any row, and the card is not used again. */
static void
check_nan(void)
{
    glm_model_t           *m = loaded();
    static const uint64_t  none[VOCAB / 64];
    glm_sample_t           greedy = { .nlogprobs = -1 }, shut = { .nlogprobs = -1, .allow = none };
    glm_row_t              row[3];
    glm_sampled_t          out[3] = { { .id = 77 }, { .id = 77 }, { .id = 77 } };
    const char            *why = "";
    int                    fault;

    for (int i = 0; i < 3; i++) row[i] = (glm_row_t) { 5 + i, i, i, pages, i < 2 ? &greedy : NULL };
    row[1].sample = &shut;
    ok(glm_model_step(m, row, 3, out, NULL) == 0 && out[0].id >= 0 && out[1].id == -2
       && glm_model_fault(m, &why) == 0, "all ids forbidden: no failure of the card");

    row[1].sample = &greedy;
    out[0].id = 77;
    glm_gpu_fault_at("nan", 1, 0);
    ok(glm_model_step(m, row, 3, out, NULL) == GLM_ENAN && out[0].id == 77, "NaN: no token");
    fault = glm_model_fault(m, &why);
    ok(fault == GLM_ENAN
       && strcmp(why, "logits: NaN or infinity in 1 of 3 rows; row 1: token 6, slot 1") == 0,
       "and it is told where: %s", why);
    ok(glm_model_step(m, row, 3, out, NULL) == GLM_ENAN && out[0].id == 77, "nothing comes after it");
    glm_model_free(m);
}

/* Two steps, the second from the ids of the first before they are read.  id: the last
 * one read, or what a read that failed left there: -77, if it told nothing. */
static int
overlapped(glm_model_t *m, const glm_sample_t *s, int32_t *id)
{
    glm_row_t      row[2][2];
    glm_sampled_t  out[2][2] = { { { .id = -77 }, { .id = -77 } }, { { .id = -77 }, { .id = -77 } } };
    int            rc;

    for (int i = 0; i < 2; i++) {
        row[0][i] = (glm_row_t) { 6 + i, 23 + i, 23 + i, pages, s };
        row[1][i] = (glm_row_t) { GLM_PICKED(i), 25 + i, 25 + i, pages, s };
    }
    if ((rc = glm_model_begin(m, row[0], 2)) != 0 || (rc = glm_model_sample(m, row[0], 2)) != 0
        || (rc = glm_model_begin(m, row[1], 2)) != 0)
    {
        return rc;
    }
    if ((rc = glm_model_read(m, out[0])) != 0) *id = out[0][1].id;
    if (rc != 0 || (rc = glm_model_sample(m, row[1], 2)) != 0) return rc;
    rc = glm_model_read(m, out[1]);
    *id = out[1][1].id;
    return rc;
}

/* Loads and computes something; 0, or what failed.  *got is set to the last token, or to
 * what the call that failed told: -77, if it told nothing. */
static int
life(int32_t *got, glm_err_t *err, int *fault)
{
    glm_sample_t   greedy = { .nlogprobs = -1 };
    glm_row_t      row[3];
    glm_sampled_t  out[3] = { { .id = -77 }, { .id = -77 }, { .id = -77 } };
    glm_model_t   *m;
    const char    *why = "";
    int            rc;
    int32_t        id = -77;

    *got = -77;
    rc = load(&m, (glm_model_opts_t) { .backend = GLM_BACKEND_CUDA, .kv_pages = 8,
                                       .head = GLM_HEAD_INT8, .gpu_timeout = 1 }, err);
    if (rc != 0) return rc;
    for (int i = 0; i < 3; i++) row[i] = (glm_row_t) { 5, 20 + i, 20 + i, pages, &greedy };
    if ((rc = glm_model_prefill(m, token, 20, pages, 0, 1, NULL)) == 0
        && (rc = glm_model_copy_page(m, 7, 1)) == 0
        && (rc = glm_model_step(m, row, 3, out, NULL)) == 0)
    {
        rc = overlapped(m, &greedy, &id);
        *got = id;
    } else if (out[0].id != -77) {
        *got = out[0].id;
    }
    *fault = glm_model_fault(m, &why);
    if (rc != 0) snprintf(err->text, sizeof(err->text), "%s", why);
    glm_model_free(m);
    return rc;
}

static void
check_faults(int status, int code, const char *what)
{
    int32_t    got, right;
    glm_err_t  err;
    int        silent = 0, leaks = 0, tokens = 0, codes = 0, was_early = early(), fault;
    long       calls, before, probe;

    glm_gpu_fault_at(NULL, 0, 0);
    ok(glm_model_backend(GLM_BACKEND_CUDA, &err) == 0, "there is a card");
    probe = glm_gpu_fault_at(NULL, 0, 0);
    ok(life(&right, &err, &fault) == 0 && right >= 0, "a life without faults");
    before = taken();
    glm_gpu_fault_at(NULL, 0, 0);
    (void) life(&right, &err, &fault);
    calls = glm_gpu_fault_at(NULL, 0, 0);
    for (long n = 1; n <= calls; n += STRIDE) {
        int  rc;

        fault = 0;
        glm_gpu_fault_at(NULL, n, status);
        rc = life(&got, &err, &fault);
        silent += rc == 0 || err.text[0] == '\0';
        tokens += got != -77;
        codes += rc != (n <= probe ? GLM_EGPU : code);    /* there is none to use */
        leaks += taken() != before;
        if (rc == 0 || taken() != before || got != -77) {
            diag("call %ld: %d, token %d, %ld taken, %s", n, rc, got, taken() - before, err.text);
        }
    }
    glm_gpu_fault_at(NULL, 0, 0);
    ok(silent == 0 && codes == 0, "%s at each of %ld calls: told (%d not, %d by another code)",
        what, calls, silent, codes);
    was_early = early() - was_early;
    ok(tokens == 0 && leaks == 0 && was_early == 0, "%s: no token (%d), no leak (%d), nothing given "
        "back while it was in use (%d)", what, tokens, leaks, was_early);
    ok(life(&got, &err, &fault) == 0 && got == right, "and again without: the same token");
}

/* NaN in a step while the forward pass of the next one runs: it ends before what it uses
 * goes; or it does not end, and nothing goes. */
static void
check_running(int hang)
{
    glm_sample_t   greedy = { .nlogprobs = -1 };
    glm_row_t      row[1] = { { 5, 0, 0, pages, &greedy } };
    glm_sampled_t  out[1];
    glm_model_t   *m;
    int            was_early = early(), rc;
    long           before;

    m = loaded();
    glm_gpu_fault_at("nan", 1, 0);
    rc = glm_model_begin(m, row, 1) != 0 || glm_model_sample(m, row, 1) != 0;
    row[0].token = GLM_PICKED(0);
    row[0].slot = row[0].position = 1;
    ok(rc == 0 && glm_model_begin(m, row, 1) == 0 && glm_model_read(m, out) == GLM_ENAN
       && TWIN(fakecuda_pending() > 0), "NaN while the next step runs");
    if (hang) HANG(0);
    before = taken();
    glm_model_free(m);
    ok(early() == was_early, "nothing that it uses was given back");
    if (hang) ok(taken() == before, "nothing at all, as it did not end");
    HANG(-1);
}

/* What was begun and is not read is waited for, and can fail there. */
static void
check_wait(int hang)
{
    glm_sample_t   greedy = { .nlogprobs = -1 };
    glm_row_t      row[1] = { { 5, 0, 0, pages, &greedy } };
    glm_model_t   *m;
    const char    *why;
    int            want = hang ? GLM_ETIMEOUT : 0;

    m = loaded();
    if (hang) glm_gpu_fault_at("hang", 2, 0);
    if (glm_model_begin(m, row, 1) != 0 || glm_model_sample(m, row, 1) != 0) bail_out("no step");
    ok(glm_model_wait(m) == want && glm_model_fault(m, &why) == want
       && TWIN((fakecuda_pending() > 0) == hang), "a step that is not read %s", hang ? "hangs" : "ends");
    glm_model_free(m);
    HANG(-1);
}

/* A fault, with a context half done: nothing more is launched, whatever is asked for, and
 * what is found later does not take the place of the first. */
static void
check_after(const char *what, int code, const char *says)
{
    glm_sample_t   greedy = { .nlogprobs = -1 };
    glm_row_t      row[1] = { { 5, 20, 20, pages, &greedy } };
    glm_sampled_t  out[1];
    glm_model_t   *m;
    const char    *why = "";
    long           launched;
    int            first, bad;

    m = loaded();
    first = glm_model_prefill(m, token, 20, pages, 0, 1, NULL);
    glm_gpu_fault_at(what, 1, 0);
    ok(first == 0 && glm_model_step(m, row, 1, out, NULL) == code, "%s, a context half done", says);
    launched = launches();
    bad = glm_model_prefill(m, token, 20, pages, 1, 2, NULL) != code;
    bad += glm_model_prefill(m, token, 20, pages, 0, 1, NULL) != code;
    bad += glm_model_copy_page(m, 7, 1) != code;
    bad += glm_model_step(m, row, 1, out, NULL) != code;
    ok(bad == 0 && launches() == launched, "each call after it tells it (%d do not), none launches "
        "(%ld)", bad, launches() - launched);
    bad = glm_gpu_spoilt(((glm_cuda_model_t *) m)->gpu, GLM_EGPU, "a launch", "later") != code;
    bad += glm_model_fault(m, &why) != code;
    ok(bad == 0 && strstr(why, says), "and it stays: %s", why);
    glm_model_free(m);
    HANG(-1);
}

#ifdef GLM_FAKECUDA

/* A launch that fails is told as what it was, not as just any error; the lack of memory is
 * no fault of the card. */
static void
check_launches(void)
{
    static const struct { int status, code, fault; const char *says; } kinds[] = {
        { ILLEGAL, GLM_EGPU, GLM_EGPU, "illegal memory" },
        { GONE, GLM_ELOST, GLM_ELOST, "no CUDA-capable device" },
        { 999, GLM_ELOST, GLM_ELOST, "unknown error" },
        { NO_ROOM, GLM_ENOMEM, 0, "out of memory" },
    };
    glm_model_t  *m;
    glm_err_t     err;
    const char   *why;
    int           rc, fault;

    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        m = loaded();
        fakecuda_fail_launch(kinds[i].status);
        rc = glm_model_prefill(m, token, 20, pages, 0, 1, NULL);
        fault = glm_model_fault(m, &why);
        ok(rc == kinds[i].code && fault == kinds[i].fault && strstr(why, kinds[i].says), "%s", why);
        glm_model_free(m);
    }
    fakecuda_fail_launch(NO_ROOM);
    rc = load(&m, (glm_model_opts_t) { .backend = GLM_BACKEND_CUDA, .kv_pages = 8 }, &err);
    ok(rc == GLM_ENOMEM, "no memory for the first launch: %s", err.text);
}

static void
check_time_out(void)
{
    int32_t    got, right;
    glm_err_t  err;
    int        fault = 0, before, rc;

    ok(life(&right, &err, &fault) == 0, "a life without faults");
    before = fakecuda_live();
    glm_gpu_fault_at("hang", 2, 0);
    rc = life(&got, &err, &fault);
    ok(rc == GLM_ETIMEOUT && strstr(err.text, "1 s") && got == -77, "a kernel that never ends: %s",
        err.text);
    fakecuda_hang(-1);
    ok(before == 0, "nothing was left before");
}

/* A process that was stopped for longer than the time-out finds a step that has ended. */
static void
check_stopped(void)
{
    int32_t      got, want;
    glm_err_t    err;
    int          fault = 0;

    ok(life(&want, &err, &fault) == 0, "a life without faults");
    fakecuda_doze(1100);
    ok(life(&got, &err, &fault) == 0 && got == want, "stopped while it waited: no time-out %s",
        err.text);
}

static void
check_twin(void)
{
    check_launches();
    if (HANGS) check_time_out();
    check_stopped();              /* and what was left there runs */
    if (HANGS) check_running(1);
    if (HANGS) check_wait(1);
}

#endif

int
main(void)
{
    int  rc;

    dummy_begin();
    write_config(1, 256, 64, "{\"type\": \"int4\", \"group_size\": 128}");
    check_faults(ILLEGAL, GLM_EGPU, "an illegal address");
    check_faults(NO_ROOM, GLM_ENOMEM, "no memory");
    check_faults(GONE, GLM_ELOST, "a card that is gone");
    write_config(2, 512, 64, "");
    check_nan();
    check_running(0);
    check_wait(0);
    check_after("nan", GLM_ENAN, "NaN");
#ifdef GLM_FAKECUDA
    check_twin();
#endif
    /* a card that hangs still does: the last of all */
    if (HANGS) check_after("hang", GLM_ETIMEOUT, "not done after 1 s");
    dummy_end();
    rc = tap_done();
    fflush(NULL);
    _exit(rc);                    /* the runtime's own end would wait for what hangs */
}
#endif
