/*
 * sampler_gpu: breaks when the GPU's sampler picks another id than the CPU's, or
 * tells other log-probabilities, by a bit; when a row's result depends on its
 * neighbours, on the cut of rows into blocks or on the order in which they run.
 * The kernels are compiled as C and run thread by thread: see cuda_emu.h.
 */
#include <math.h>

#include "cuda_emu.h"
#include "sample_pick.cuh"
#include "sample_rows.h"

static glm_sample_args_t  args;

static void scan(void) { sample_scan_kernel(args); }
static void weigh(void) { sample_weigh_kernel(args); }
static void pick(void) { sample_pick_kernel(args); }

/* As the launcher does on a device of so many multiprocessors. */
static void
sample_on(const glm_sample_args_t *a, int sms)
{
    unsigned  parts = (unsigned) sample_parts(a, sms), rows = (unsigned) a->rows;

    args = *a;
    emu_launch(scan, parts, rows, kScanThreads);
    emu_launch(weigh, parts, rows, kScanThreads);
    emu_launch(pick, 3, rows, kPickThreads);
}

static sample_rows_t   s;
static void           *ws;
static glm_sampled_t   out[GLM_CUDA_MAX_ROWS];
static int32_t         ids[GLM_CUDA_MAX_ROWS];

/* Runs the step in s; how many rows differ from the CPU. */
static int
differ(int sms)
{
    glm_sample_args_t  a = {
        .logits = s.logits, .ldl = s.ldl, .row = s.row, .lists = s.lists, .out = out, .ids = ids,
        .vocab = s.vocab, .rows = s.rows, .ws = ws
    };
    int                bad = 0;

    memset(ws, 0xff, (size_t) s.rows * glm_sample_ws_row(s.vocab));
    memset(out, 0xff, sizeof(out));
    memset(ids, 0xff, sizeof(ids));
    emu_seed = sample_below(4) ? sample_rnd() : 0;
    if (!glm_sample_args_ok(&a)) bail_out("arguments");
    sample_on(&a, sms);
    for (int r = 0; r < s.rows; r++)
        bad += sample_differs(&s, r, &out[r]) || ids[r] != s.want[r].id;
    return bad;
}

static void
test_random(int32_t most, int rows, int steps)
{
    int  bad = 0, picked = 0, logprobs = 0;

    for (int i = 0; i < steps; i++) {
        sample_rows_make(&s, 1 + sample_below(most), 1 + sample_below(rows), s.allow);
        bad += differ(1 + sample_below(132));
        for (int r = 0; r < s.rows; r++) picked += s.want[r].id >= 0, logprobs += s.want[r].ntop;
    }
    ok(bad == 0, "%d rows of up to %d ids, %d log-probabilities: %d differ from the CPU", picked, most,
       logprobs, bad);
}

/* Both ends of what a block, a part, the whole can be. */
static void
test_sizes(void)
{
    static const int32_t  sizes[] = { 1, 2, 3, 63, 255, 256, 257, 511, 513, 4096, 4097 };
    int                   bad = 0, n = 0;

    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        sample_rows_make(&s, sizes[i], 8, s.allow);
        bad += differ(1 + (int) i * 13);
        n += s.rows;
    }
    for (int32_t v = 150528; v <= GLM_SAMPLE_MOST; v += GLM_SAMPLE_MOST - 150528) {
        sample_rows_make(&s, v, v == 150528 ? 6 : 2, s.allow);
        bad += differ(132);
        n += s.rows;
    }
    ok(bad == 0, "%d rows of 1 to %d ids: %d differ", n, GLM_SAMPLE_MOST, bad);
}

/* Where top_p ends among equal logits, by both ways to get there. */
static void
test_ties(void)
{
    static const float  top_p[] = { 0.1f, 0.25f, 0.5f, 0.75f, 0.9f };
    int                 bad = 0, n = 0;

    for (int i = 0; i < 15; i++) {
        sample_rows_shape(&s, 40 + i * 17, 8);
        for (int r = 0; r < s.rows; r++) {
            float  *x = s.logits + (size_t) r * s.ldl;

            for (int32_t k = 0; k < s.vocab; k++) x[k] = (float) (k * 7 % 5 % (1 + r / 2)) * 0.5f;
            s.a[r] = (glm_sample_t) {
                .temperature = 1, .top_p = SAMPLE_PICK(top_p), .top_k = r % 2 ? s.vocab / 2 : 0,
                .seed = sample_rnd(), .nlogprobs = GLM_MAX_LOGPROBS
            };
        }
        sample_rows_pack(&s, s.allow);
        bad += differ(7);
        n += s.rows;
    }
    ok(bad == 0, "%d rows of equal logits under top_p: %d differ", n, bad);
}

/* A row that is not live: nobody reads its logits or writes its result. */
static void
test_dead(void)
{
    glm_sampled_t  before;
    int            touched = 0, bad = 0;

    memset(&before, 0xff, sizeof(before));
    for (int i = 0; i < 10; i++) {
        sample_rows_make(&s, 300, 8, s.allow);
        for (int r = i % 2; r < 8; r += 2) {
            memset(&s.row[r], 0xff, sizeof(s.row[r]));
            s.row[r].live = 0;
            s.want[r] = before;
            s.want[r].ntop = s.want[r].nrank = -1;
        }
        bad += differ(132);
        for (int r = i % 2; r < 8; r += 2)
            touched += memcmp(&out[r], &before, sizeof(before)) != 0 || ids[r] != -1;
    }
    ok(touched == 0 && bad == 0, "rows that are not live: %d touched, %d of their neighbours differ", touched,
       bad);
}

static void
test_refused(void)
{
    glm_sample_args_t  good = {
        .logits = s.logits, .ldl = 12, .row = s.row, .out = out, .ids = ids, .vocab = 10, .rows = 3, .ws = ws
    }, a;
    glm_sample_t       t = { .nscore = 5, .score = s.score[0] };
    glm_gsample_t      row;
    size_t             used = 16;
    int                bad = !glm_sample_args_ok(&good) + glm_sample_args_ok(NULL);

#define REFUSED(change)  (a = good, change, bad += glm_sample_args_ok(&a))
    REFUSED(a.logits = NULL);
    REFUSED(a.logits = s.logits + 1);
    REFUSED(a.ldl = 8);
    REFUSED(a.ldl = 13);
    REFUSED(a.row = NULL);
    REFUSED(a.out = NULL);
    REFUSED(a.ids = NULL);
    REFUSED(a.ws = NULL);
    REFUSED(a.vocab = 0);
    REFUSED((a.vocab = GLM_SAMPLE_MOST + 1, a.ldl = 1 << 20));
    REFUSED(a.rows = 0);
    REFUSED(a.rows = GLM_CUDA_MAX_ROWS + 1);
    ok(bad == 0, "%d wrong arguments were taken", bad);

    bad = glm_cuda_sample_pack(&t, NULL, s.lists, 47, &used, &row) != GLM_ELIMIT || used != 16;
    bad += glm_cuda_sample_pack(&t, NULL, s.lists, 48, &used, &row) != 0 || used != 48;
    bad += glm_cuda_sample_pack(&t, NULL, s.lists, 48, &used, &row) != GLM_ELIMIT || used != 48;
    ok(bad == 0, "lists without room are refused");
}

int
main(void)
{
    const int  times = getenv("GLM_LONG") != NULL ? 20 : 1;

    sample_state = 88172645463325252ull;
    sample_rows_init(&s, GLM_SAMPLE_MOST, 8);
    ws = sample_memory(8 * glm_sample_ws_row(GLM_SAMPLE_MOST));
    test_refused();
    test_dead();
    test_sizes();
    test_ties();
    for (int i = 0; i < times; i++) {
        test_random(60, 8, 100);
        test_random(700, 8, 150);
        test_random(5000, 8, 70);
    }
    sample_rows_free(&s);
    free(ws);
    return tap_done();
}
