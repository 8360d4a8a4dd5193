/*
 * The sampler's kernels against glm_sample() on the host, by both architectures'
 * tables: ids and log-probabilities to the bit, in random steps and at full size, from
 * one graph whose arguments change, and the time of a step.  Prints TAP.
 *
 *     glm-gpusample [--small] [--arch 80|90]
 */
#include <algorithm>

#include "host.h"
#include "../unit/sample_rows.h"

static bool                                 small_only;
static std::vector<const glm_cuda_ops_t *>  tables;
static sample_rows_t                        s;

template <class T>
struct Pinned {
    T  *p = nullptr;

    explicit Pinned(size_t n) { CK(cudaMallocHost(&p, n * sizeof(T))); }
    Pinned(const Pinned &) = delete;
    ~Pinned() { cudaFreeHost(p); }
};

/* Where a step of s lies on the card. */
struct Step {
    Dev<float>             logits;
    Dev<uint64_t>          allow;
    Dev<uint8_t>           ws;
    Dev<int32_t>           ids;
    Dev<glm_gsample_t>     drow;
    Pinned<glm_gsample_t>  row;
    Pinned<char>           lists;
    Pinned<glm_sampled_t>  out;
    glm_sample_args_t      a = {};

    Step(int32_t vocab, int rows)
        : logits((size_t) rows * ((size_t) vocab + 12)), allow((size_t) rows * ((size_t) vocab / 64 + 1)),
          ws(glm_cuda_sample_ws(rows, vocab)), ids(rows), drow(rows), row(rows), lists(s.size), out(rows) {}

    /* Everything that one graph finds changed. */
    void upload(bool row_on_device)
    {
        CK(cudaMemcpy(logits.p, s.logits, (size_t) s.rows * s.ldl * 4, cudaMemcpyHostToDevice));
        CK(cudaMemcpy(allow.p, s.allow, (size_t) s.rows * s.words * 8, cudaMemcpyHostToDevice));
        memcpy(row.p, s.row, s.rows * sizeof(glm_gsample_t));
        CK(cudaMemcpy(drow.p, s.row, s.rows * sizeof(glm_gsample_t), cudaMemcpyHostToDevice));
        memcpy(lists.p, s.lists, s.used);
        memset(out.p, 0xff, s.rows * sizeof(glm_sampled_t));
        ids.poison();
        a = {logits.p, s.ldl, row_on_device ? drow.p : row.p, lists.p, out.p, ids.p, s.vocab, s.rows, ws.p};
    }

    int differ()
    {
        const std::vector<int32_t>  id = ids.get();
        int                         bad = 0;

        for (int r = 0; r < s.rows; r++) bad += sample_differs(&s, r, &out.p[r]) || id[r] != s.want[r].id;
        return bad;
    }
};

static void test_refusals()
{
    for (const glm_cuda_ops_t *ops : tables) {
        Step               step(300, 2);
        glm_sample_args_t  a;
        int                bad = 0;

        sample_rows_make(&s, 300, 2, step.allow.p);
        step.upload(true);
        a = step.a, a.ldl = 299, bad += ops->sample(&a, stream) != GLM_EINVAL;
        a = step.a, a.rows = 65, bad += ops->sample(&a, stream) != GLM_EINVAL;
        a = step.a, a.ws = NULL, bad += ops->sample(&a, stream) != GLM_EINVAL;
        bad += ops->sample(NULL, stream) != GLM_EINVAL;
        bad += ops->sample(&step.a, NULL) != GLM_EINVAL;
        ok(bad == 0, "sm_%d sample: %d wrong arguments were taken", ops->arch, bad);
    }
}

static void test_random(int32_t most, int rows, int steps)
{
    for (const glm_cuda_ops_t *ops : tables) {
        Step  step(most, rows);
        int   bad = 0, n = 0;

        for (int i = 0; i < steps; i++) {
            const int32_t  vocab = most > 10000 ? most : 1 + sample_below(most);

            sample_rows_make(&s, vocab, 1 + sample_below(rows), step.allow.p);
            step.upload(i % 2);
            step.ws.poison();
            must(ops->sample(&step.a, stream), "sample");
            sync();
            bad += step.differ();
            n += s.rows;
        }
        ok(bad == 0, "sm_%d sample: %d rows of up to %d ids: %d differ from the CPU", ops->arch, n, most, bad);
    }
}

/* A row that is not live is neither read nor written. */
static void test_dead()
{
    for (const glm_cuda_ops_t *ops : tables) {
        Step           step(700, 8);
        glm_sampled_t  none;
        int            touched = 0, bad = 0;

        memset(&none, 0xff, sizeof(none));
        sample_rows_make(&s, 700, 8, step.allow.p);
        for (int r = 1; r < 8; r += 2) s.row[r].live = 0;
        step.upload(true);
        must(ops->sample(&step.a, stream), "sample");
        sync();
        const std::vector<int32_t>  id = step.ids.get();

        for (int r = 0; r < 8; r++) {
            if (r % 2) touched += memcmp(&step.out.p[r], &none, sizeof(none)) != 0 || id[r] != -1;
            else bad += sample_differs(&s, r, &step.out.p[r]);
        }
        ok(touched == 0 && bad == 0, "sm_%d sample: rows not live: %d touched, %d neighbours differ", ops->arch,
           touched, bad);
    }
}

struct Graph {
    cudaGraph_t      graph;
    cudaGraphExec_t  exec;

    Graph(const glm_cuda_ops_t *ops, const glm_sample_args_t *a, int times)
    {
        CK(cudaStreamBeginCapture(native(), cudaStreamCaptureModeThreadLocal));
        for (int i = 0; i < times; i++) must(ops->sample(a, stream), "sample");
        CK(cudaStreamEndCapture(native(), &graph));
        CK(cudaGraphInstantiate(&exec, graph, 0));
    }
    ~Graph() { cudaGraphExecDestroy(exec), cudaGraphDestroy(graph); }
};

static void test_graph()
{
    const int32_t  vocab = 3000;

    for (const glm_cuda_ops_t *ops : tables) {
        Step  step(vocab, 16);
        int   bad = 0;

        sample_rows_make(&s, vocab, 16, step.allow.p);
        step.upload(false);
        const size_t  ldl = s.ldl;
        Graph         g(ops, &step.a, 1);

        for (int i = 0; i < 5; i++) {
            do sample_rows_make(&s, vocab, 16, step.allow.p); while (s.ldl != ldl);
            step.upload(false);
            CK(cudaGraphLaunch(g.exec, native()));
            sync();
            bad += step.differ();
        }
        ok(bad == 0, "sm_%d sample: one graph, five steps: %d rows differ", ops->arch, bad);
    }
}

/* ---- time ---- */

struct Case {
    const char    *name;
    int            shape, allow, nadjust;
    glm_sample_t   a;
};

static glm_sample_t args(float temperature, int top_k, float top_p, int nlogprobs)
{
    glm_sample_t  a = {};

    a.temperature = temperature, a.top_k = top_k, a.top_p = top_p, a.nlogprobs = nlogprobs;
    return a;
}

static float time_of(const Graph &g, int times)
{
    std::vector<float>  us;
    cudaEvent_t         from, to;

    CK(cudaEventCreate(&from));
    CK(cudaEventCreate(&to));
    for (int i = 0; i < 12; i++) {
        float  ms;

        CK(cudaEventRecord(from, native()));
        CK(cudaGraphLaunch(g.exec, native()));
        CK(cudaEventRecord(to, native()));
        CK(cudaEventSynchronize(to));
        CK(cudaEventElapsedTime(&ms, from, to));
        us.push_back(ms * 1e3f / (float) times);
    }
    CK(cudaEventDestroy(from));
    CK(cudaEventDestroy(to));
    std::sort(us.begin(), us.end());
    return us[us.size() / 2];
}

/* Microseconds a step; the logits of 64 rows nearly fill a Hopper's L2. */
static void time_steps()
{
    const int32_t  vocab = 150528;
    const int      times = 20;
    const Case     cases[] = {
        {"greedy", 1, 0, 0, args(0, 0, 0, -1)},
        {"greedy, allow", 1, 1, 0, args(0, 0, 0, -1)},
        {"temperature 1, allow", 1, 1, 0, args(1, 0, 0, -1)},
        {"temperature 0.7", 1, 0, 0, args(0.7f, 0, 0, -1)},
        {"temperature 1, 5 logprobs", 1, 1, 0, args(1, 0, 0, 5)},
        {"top_k 40", 1, 1, 0, args(1, 40, 0, -1)},
        {"top_p 0.9", 1, 1, 0, args(1, 0, 0.9f, -1)},
        {"top_p 0.7, flat", 0, 1, 0, args(1, 0, 0.7f, -1)},
        {"all logits equal, top_p 0.7", 3, 1, 0, args(1, 0, 0.7f, -1)},
        {"top_k 40 top_p 0.9 20 logprobs", 1, 1, 0, args(0.8f, 40, 0.9f, 20)},
        {"the same, flat, some adjusted", 0, 1, 300, args(0.8f, 40, 0.9f, 20)},
    };

    for (const glm_cuda_ops_t *ops : tables) {
        Step  step(vocab, 64);

        printf("# sm_%d sample, us a step of %d ids%s at 1 / 8 / 64 rows:\n", ops->arch, vocab,
               ops->arch == 80 ? " (sm_80 code)" : "");
        for (const Case &c : cases) {
            float  us[3];
            int    i = 0;

            for (int rows : {1, 8, 64}) {
                sample_rows_shape(&s, vocab, rows);
                memset(s.allow, 0xff, (size_t) rows * s.words * 8);
                for (int r = 0; r < rows; r++) {
                    if (r == 0) sample_logits(s.logits, vocab, c.shape);
                    else memcpy(s.logits + r * s.ldl, s.logits, (size_t) vocab * 4);
                    s.a[r] = c.a;
                    s.a[r].seed = (uint64_t) r;
                    s.a[r].repetition = 1.1f;
                    s.a[r].allow = c.allow ? s.allow : NULL;
                    s.a[r].nadjust = c.nadjust > 0 ? sample_adjusts(s.adjust[r], vocab) : 0;
                    s.a[r].adjust = s.adjust[r];
                }
                sample_rows_pack(&s, step.allow.p);
                step.upload(true);
                Graph  g(ops, &step.a, times);

                us[i++] = time_of(g, times);
                if (step.differ() != 0) ok(false, "sm_%d sample, %s: differs from the CPU", ops->arch, c.name);
            }
            printf("# %-32s %7.1f %7.1f %7.1f\n", c.name, us[0], us[1], us[2]);
        }
    }
}

int main(int argc, char **argv)
{
    int  only = 0;

    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--small") == 0) small_only = true;
        else if (strcmp(argv[i], "--arch") == 0 && i + 1 < argc) only = atoi(argv[++i]);
        else { fprintf(stderr, "usage: glm-gpusample [--small] [--arch 80|90]\n"); return 2; }
    }
    for (int arch : {80, 90}) {
        const glm_cuda_ops_t  *ops = only == 0 || only == arch ? glm_cuda_ops(arch) : NULL;

        if (ops != NULL) tables.push_back(ops);
    }
    if (tables.empty()) {
        printf("1..0 # SKIP no card these kernels run on\n");
        return 0;
    }
    must(glm_cuda_stream(&stream), "stream");
    sample_state = 88172645463325252ull;
    sample_rows_init(&s, 150528, GLM_CUDA_MAX_ROWS);
    test_refusals();
    test_dead();
    test_graph();
    test_random(60, 64, small_only ? 2 : 20);
    test_random(700, small_only ? 16 : 64, small_only ? 4 : 40);
    if (!small_only) {
        test_random(5000, 64, 20);
        test_random(150528, 64, 3);
        time_steps();
    }
    sample_rows_free(&s);
    glm_cuda_stream_free(stream);
    CK(cudaDeviceSynchronize());
    printf("1..%d\n# %d failed\n", ntests, nfailed);
    return nfailed != 0;
}
