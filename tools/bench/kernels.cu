/*
 * kernels: what the kernels of decode and prefill reach on this card, beside its
 * measured read peak.
 *
 *     glm-bench kernels [--layers N] [--arch 80|90] [--ring ROWS,N] [what ..]
 *
 * what: linears (70 layers' matrices + int8 head, one graph), steps (whole decode
 * steps at context 128, int8 KV), attn, kernels (each alone), prefill (whole contexts
 * and the kernels of a pass of 512 rows); all by default.
 * "rested": the best of three replays after a second of rest, before the card
 * reaches its power limit; the other figure is the median of 21 or 51 replays.
 */
#include <string.h>
#include <unistd.h>

#include <string>

#include "kernels.h"
#include "kernels_model.h"
#include "kernels_prefill.h"

static __global__ void __launch_bounds__(512) read_kernel(const uint4 *p, size_t n, uint32_t *out)
{
    const size_t  stride = (size_t) gridDim.x * 512;
    size_t        i = blockIdx.x * (size_t) 512 + threadIdx.x;
    uint32_t      acc = 0;

    for (; i + 7 * stride < n; i += 8 * stride) {
        uint4  v[8];

#pragma unroll
        for (int j = 0; j < 8; j++) v[j] = __ldcs(p + i + j * stride);
#pragma unroll
        for (int j = 0; j < 8; j++) acc ^= v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
    }
    if (acc == 0x12345678) *out = acc;
}

static double  rested;            /* the best of the first replays of graph_ms() */

/* Median milliseconds of a replay of what f captures. */
template <class F>
static double graph_ms(cudaStream_t st, int reps, F f)
{
    cudaGraph_t         g;
    cudaGraphExec_t     x;
    cudaEvent_t         a, b;
    std::vector<float>  t(reps);

    CK(cudaStreamBeginCapture(st, cudaStreamCaptureModeThreadLocal));
    f();
    CK(cudaStreamEndCapture(st, &g));
    CK(cudaGraphInstantiate(&x, g, 0));
    CK(cudaEventCreate(&a));
    CK(cudaEventCreate(&b));
    for (int i = 0; i < 2; i++) CK(cudaGraphLaunch(x, st));
    CK(cudaStreamSynchronize(st));
    for (auto &ms : t) {
        CK(cudaEventRecord(a, st));
        CK(cudaGraphLaunch(x, st));
        CK(cudaEventRecord(b, st));
        CK(cudaEventSynchronize(b));
        CK(cudaEventElapsedTime(&ms, a, b));
    }
    CK(cudaGetLastError());
    CK(cudaEventDestroy(a));
    CK(cudaEventDestroy(b));
    CK(cudaGraphExecDestroy(x));
    CK(cudaGraphDestroy(g));
    rested = *std::min_element(t.begin(), t.begin() + 3);
    std::sort(t.begin(), t.end());
    return t[reps / 2];
}

static const int  kRows[] = {1, 8, 16, 32, 64};
static double     peak;           /* bytes a millisecond */

static size_t weight_bytes(const Model &m)
{
    size_t  b = (size_t) kVocab * kHidden + (size_t) kVocab * 2;

    for (auto &sh : kShapes) b += m.layers * ((size_t) sh.n * sh.k / 2 + (size_t) sh.n * (sh.k / 128) * 2);
    return b;
}

static void linears(Model &m)
{
    static const double  want[] = {22.5, 22.5, 23.3, 26.4, 35};

    printf("%d layers' matrices + int8 head, %.2f GB, floor %.2f ms\n", m.layers, weight_bytes(m) / 1e9,
           weight_bytes(m) / peak);
    printf("%6s %9s %9s %9s %9s\n", "rows", "ms", "% floor", "rested", "wanted");
    for (int i = 0; i < 5; i++) {
        sleep(1);
        const double  ms = graph_ms(m.st, 21, [&] {
            for (int l = 0; l < m.layers; l++)
                for (int k = 0; k < 4; k++) m.layer_linear(l, k, kRows[i]);
            m.head_linear(kRows[i]);
        });

        printf("%6d %9.2f %9.1f %9.2f %9.1f\n", kRows[i], ms, 100 * weight_bytes(m) / peak / ms, rested,
               want[i]);
        fflush(stdout);
    }
}

static void steps(Model &m)
{
    static const double  want[] = {23.9, 24.4, 25.6, 29.6, 40.5};
    const int            context = 128;

    printf("whole steps, %d layers, int8 head, int8 KV, every row at context %d\n", m.layers, context);
    printf("%6s %9s %10s %9s %9s %9s %9s\n", "rows", "ms/step", "tokens/s", "floor ms", "% floor", "rested",
           "wanted");
    for (int i = 0; i < 5; i++) {
        const int     n = kRows[i], npages = m.rows(n, context);
        const double  kv = (double) m.layers * n * context * kHeads * 2 * (kD + 2);
        const double  floor_ms = (weight_bytes(m) + kv) / peak;

        if ((size_t) npages * m.layers * kHeads * glm_cuda_kv_head_bytes(kD, 1) > m.kv_bytes) {
            printf("%6d  no room for its KV\n", n);
            continue;
        }
        sleep(1);
        const double        ms = graph_ms(m.st, 51, [&] { m.step(n, npages); });
        std::vector<float>  row(kVocab);
        double              sum = 0;

        CK(cudaMemcpy(row.data(), m.logits + (size_t) (n - 1) * kVocab, kVocab * 4, cudaMemcpyDeviceToHost));
        for (float v : row) sum += fabs(v);
        printf("%6d %9.2f %10.1f %9.2f %9.1f %9.2f %9.1f%s\n", n, ms, n * 1e3 / ms, floor_ms,
               100 * floor_ms / ms, rested, want[i],
               sum > 0 && isfinite(sum) ? "" : "  LOGITS ARE NOT FINITE");
        fflush(stdout);
    }
}

static void attn(Model &m)
{
    static const int  cases[][2] = {{1, 128}, {1, 2048}, {8, 128}, {8, 512}, {8, 2048}, {16, 128}, {32, 128},
                                    {32, 1024}, {64, 128}, {64, 512}};

    printf("attn_row, 96 heads x 128: us a layer (%% of read peak)\n%16s %18s %18s\n", "rows x context",
           "int8", "fp16");
    for (auto &c : cases) {
        const int  npages = m.rows(c[0], c[1]);

        printf("%9d x %4d", c[0], c[1]);
        for (int int8 = 1; int8 >= 0; int8--) {
            const size_t  layer = (size_t) npages * kHeads * glm_cuda_kv_head_bytes(kD, int8);
            const int     n = (int) std::min<size_t>(m.kv_bytes / layer, 24);

            if (n < 1) { printf(" %18s", "no room"); continue; }
            const int     total = n < 12 ? 12 : n;
            const double  us = graph_ms(m.st, 7, [&] {
                for (int l = 0; l < total; l++) m.attention(l % n, c[0], npages, int8, false);
            }) * 1e3 / total;
            const double  bytes = (double) c[0] * c[1] * kHeads * 2 * (int8 ? kD + 2 : 2 * kD);

            printf(" %10.1f (%4.1f)%s", us, 100 * bytes / (us * peak / 1e3),
                   layer * n > (160 << 20) ? " " : "*");
        }
        printf("\n");
        fflush(stdout);
    }
    printf("* fits in L2\n");
}

static void kernels(Model &m)
{
    printf("us a kernel, alone in a chain of its own kind (matrices: %% of read peak)\n%6s", "rows");
    for (auto &sh : kShapes) printf(" %16s", sh.name);
    printf(" %16s %9s %9s %9s\n%6s", "head int8", "norm", "kv_write", "embed", "MB");
    for (int i = 0; i < 5; i++) {
        const glm_tiles_t  &t = i < 4 ? m.layer[0].m[i] : m.head;

        printf(" %16.1f", glm_cuda_tile_bytes(t.type, t.k, t.n) / 1e6);
    }
    printf("\n");
    for (int n : kRows) {
        const int  npages = m.rows(n, 128), L = std::min(m.layers, 12);

        printf("%6d", n);
        for (int i = 0; i < 5; i++) {
            const glm_tiles_t  &t0 = i < 4 ? m.layer[0].m[i] : m.head;
            const double        us = graph_ms(m.st, 7, [&] {
                for (int l = 0; l < L; l++)
                    m.linear(i < 4 ? m.layer[l].m[i] : m.head, i == 3 ? m.act : m.a,
                             i == 0 ? m.qkv : i == 2 ? m.act : i == 4 ? m.logits : m.y,
                             i == 0 ? GLM_OUT_F16 : i == 2 ? GLM_OUT_GLU : GLM_OUT_F32, n);
            }) * 1e3 / L;

            printf("  %8.1f (%4.1f)", us,
                   100.0 * glm_cuda_tile_bytes(t0.type, t0.k, t0.n) / (us * peak / 1e3));
        }
        const double  un = graph_ms(m.st, 7, [&] {
            for (int l = 0; l < 50; l++) m.norm(m.a, m.final_norm, n);
        });
        const double  uw = graph_ms(m.st, 7, [&] {
            for (int l = 0; l < 50; l++) m.attention(l % 20, n, npages, 1, true);
        });
        const glm_embed_args_t  e = {m.y, kHidden, m.table, m.token, kTableRows, kHidden, n, NULL};
        const double  ue = graph_ms(m.st, 7, [&] {
            for (int l = 0; l < 50; l++) OP(m.ops->embed(&e, m.s));
        });

        printf(" %9.2f %9.2f %9.2f\n", un * 20, uw * 20, ue * 20);
        fflush(stdout);
    }
}

/* Multiplications and additions of a layer's matrix i, a row. */
static double matrix_flop(int i) { return 2.0 * kShapes[i].n * kShapes[i].k; }

static void prefill(Model &m)
{
    static const double  want[] = {0.23, 0.90};
    Prefill              f = {m, 0, 0, 0, {}, NULL, NULL, NULL};

    printf("a pass of 512 rows, us a kernel (matrices: TFLOP/s), by rows a block\n%6s", "block");
    for (auto &sh : kShapes) printf(" %16s", sh.name);
    printf(" %9s %9s\n", "norm", "kv_write");
    for (int block : {64, 128}) {
        const int  L = std::min(m.layers, 12);

        f.block = block;
        if (!f.place(kPass, 1, L)) { printf("no room\n"); return; }
        printf("%6d", block);
        for (int i = 0; i < 4; i++) {
            sleep(1);
            const double  us = graph_ms(m.st, 7, [&] {
                for (int l = 0; l < L; l++) f.matrix(l, i, 0);
            }) * 1e3 / L;

            printf("  %8.1f (%4.0f)", us, kPass * matrix_flop(i) / us / 1e6);
        }
        const double  un = graph_ms(m.st, 7, [&] {
            for (int l = 0; l < 50; l++) f.norm(m.final_norm, f.b.a, 0);
        });
        const double  uw = graph_ms(m.st, 7, [&] {
            for (int l = 0; l < 50; l++) f.write(l % L, 1, 0);
        });

        printf(" %9.2f %9.2f\n", un * 20, uw * 20);
        fflush(stdout);
    }
    printf("attn_context, 96 heads x 128: us a layer (TFLOP/s)\n%16s\n", "tokens");
    for (int n : {256, 512, 1024, 2048}) {
        if (!f.place(n, 1, 1)) { printf("%16d no room\n", n); continue; }
        const double  us = graph_ms(m.st, 7, [&] {
            for (int i = 0; i < 8; i++) f.attend();
        }) * 1e3 / 8;

        printf("%16d %11.1f (%4.0f)\n", n, us, 4.0 * n * n * kHeads * kD / us / 1e6);
        fflush(stdout);
    }
    printf("whole contexts, %d layers, int8 KV, logits of the last row: s (TFLOP/s)\n%8s %16s %16s %9s\n",
           m.layers, "tokens", "blocks of 64", "of 128", "wanted");
    for (int i = 0; i < 2; i++) {
        const int  n = i ? 2048 : 512;
        double     flop = m.layers * 4.0 * n * n * kHeads * kD;

        for (int k = 0; k < 4; k++) flop += m.layers * matrix_flop(k) * n;
        printf("%8d", n);
        for (int block : {64, 128}) {
            f.block = block;
            if (!f.place(n, 1, m.layers)) { printf(" %16s", "no room"); continue; }
            sleep(1);
            const double        ms = graph_ms(m.st, 3, [&] { f.whole(); });
            std::vector<float>  row(kVocab);
            double              sum = 0;

            CK(cudaMemcpy(row.data(), m.logits, kVocab * 4, cudaMemcpyDeviceToHost));
            for (float v : row) sum += fabs(v);
            printf(" %9.3f (%4.0f)%s", ms / 1e3, flop / ms / 1e9,
                   sum > 0 && isfinite(sum) ? "" : " NOT FINITE");
        }
        printf(" %9.2f\n", want[i]);
        fflush(stdout);
    }
}

int bench_kernels(int argc, char **argv)
{
    Model                     m;
    cudaDeviceProp            prop;
    int                       layers = 70, arch = 0;
    std::vector<std::string>  what;

    for (int i = 0; i < argc; i++) {
        int  r, n;

        if (strcmp(argv[i], "--layers") == 0 && i + 1 < argc) layers = atoi(argv[++i]);
        else if (strcmp(argv[i], "--arch") == 0 && i + 1 < argc) arch = atoi(argv[++i]);
        else if (strcmp(argv[i], "--ring") == 0 && i + 1 < argc && sscanf(argv[++i], "%d,%d", &r, &n) == 2)
            m.ring[r == 8 ? 0 : r == 16 ? 1 : r == 32 ? 2 : 3] = n;
        else if (argv[i][0] != '-') what.push_back(argv[i]);
        else {
            fprintf(stderr, "usage: glm-bench kernels [--layers N] [--arch A] [--ring ROWS,N] [what ..]\n");
            return 2;
        }
    }
    if (what.empty()) what = {"kernels", "attn", "linears", "steps", "prefill"};
    m.ops = glm_cuda_ops(arch);
    if (m.ops == NULL) { fprintf(stderr, "glm-bench: kernels: no card that they run on\n"); return 1; }
    CK(cudaGetDeviceProperties(&prop, 0));
    OP(glm_cuda_stream(&m.s));
    m.st = (cudaStream_t) glm_cuda_stream_native(m.s);
    m.load(layers, (size_t) 14400 << 20);
    const size_t  n = (size_t) std::min(layers, 16) << 29;
    const double  ms = graph_ms(m.st, 11, [&] {
        read_kernel<<<prop.multiProcessorCount * 4, 512, 0, m.st>>>(
            (const uint4 *) m.layer[0].m[0].tiles, n / 16, (uint32_t *) m.y);
    });

    peak = n / ms;
    printf("%s, %d SMs, sm_%d kernels; read peak %.0f GB/s, KV %.1f GB\n", prop.name,
           prop.multiProcessorCount, m.ops->arch, peak / 1e6, m.kv_bytes / 1e9);
    for (auto &w : what) {
        if (w == "linears") linears(m);
        else if (w == "steps") steps(m);
        else if (w == "attn") attn(m);
        else if (w == "kernels") kernels(m);
        else if (w == "prefill") prefill(m);
    }
    CK(cudaDeviceSynchronize());
    return 0;
}
