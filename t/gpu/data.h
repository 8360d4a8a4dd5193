/*
 * data: what the tests of kernels work on: weights packed on the card, one call of
 * a linear, pages of keys and values, and their float64 values.
 */
#ifndef T_GPU_DATA_H
#define T_GPU_DATA_H

#include "cuda_size.h"
#include "host.h"

/* Relative Frobenius norms of a dtype: one rounding to fp16 is 2.8e-4 at most. */
static const double  kTolF16 = 5e-4, kTolF32 = 2e-6;
#ifdef GLM_FAKECUDA               /* twins on a CPU, the same for either architecture */
static bool          small_only = true;
static int           only = 80;
#else
static bool          small_only;
static int           only;
#endif
static std::vector<const glm_cuda_ops_t *>  tables;

/* ---- linear ---- */

struct Weight {
    int                    type, k, n, groups, glu;
    std::vector<uint8_t>   q;         /* neutral */
    std::vector<uint16_t>  scale, bias;
};

static inline Weight make_weight(int type, int k, int n, int groups, int glu, uint32_t seed)
{
    Weight    w = {type, k, n, groups, glu, {}, {}, {}};
    Random    r(seed);
    size_t    bytes = (size_t) n * k * (type == GLM_W_INT4 ? 1 : type == GLM_W_INT8 ? 2 : 4) / 2;

    w.bias = random_halves(n, seed + 1, 1.f);
    if (type == GLM_W_F16) {
        std::vector<uint16_t>  h = random_halves((size_t) n * k, seed + 2, 0.02f);

        w.q.assign((uint8_t *) h.data(), (uint8_t *) h.data() + bytes);
        return w;
    }
    w.q.resize(bytes);
    for (size_t i = 0; i < bytes; i += 4) {
        uint32_t  b = r.bits();

        memcpy(&w.q[i], &b, 4);
    }
    w.scale.resize((size_t) n * groups);
    for (auto &s : w.scale) s = to_h((type == GLM_W_INT4 ? 0.004f : 0.0003f) * (0.5f + r.uniform()));
    return w;
}

/* q * scale: of a small integer and an fp16 value, exact in fp32. */
static inline float weight_at(const Weight &w, int o, int i)
{
    const size_t  at = (size_t) o * w.k + i;

    if (w.type == GLM_W_F16) {
        uint16_t  h;

        memcpy(&h, &w.q[at * 2], 2);
        return to_f(h);
    }
    const float  s = to_f(w.scale[(size_t) o * w.groups + (w.groups == 1 ? 0 : i / 128)]);
    int          q;

    if (w.type == GLM_W_INT8) q = (int8_t) w.q[at];
    else q = (int8_t) (i % 2 ? w.q[at / 2] << 4 : w.q[at / 2] & 0xf0) >> 4;
    return (float) q * s;
}

static inline double gelu_ref(double u) { return 0.5 * u * (1 + erf(u / sqrt(2.0))); }

struct Device {                   /* a weight on the card, packed */
    Dev<uint8_t>   tiles;
    Dev<uint16_t>  bias;
    glm_tiles_t    t;

    Device(const glm_cuda_ops_t *ops, const Weight &w)
        : tiles(glm_cuda_tile_bytes(w.type, w.k, w.n)), bias(w.bias)
    {
        Dev<uint8_t>   src(w.q);
        Dev<uint16_t>  scale(w.scale);

        t = {tiles.p, bias.p, w.k, w.n, w.type, w.glu};
        const glm_pack_args_t  a = {&t, src.p, scale.p, w.groups};

        must(ops->pack(&a, stream), "pack");
        sync();
    }
};

/* Of a linear's workspace: bytes of counters that are not back at 0. */
static inline int counters_left(const Dev<uint8_t> &ws)
{
    const std::vector<uint8_t>  v = ws.get();
    int                         left = 0;

    for (size_t i = 0; i < (size_t) GLM_COUNTERS * 4; i++) left += v[i] != 0;
    return left;
}

/* Output bits of rows `pick` of x in a bucket: [row][n or n / 2] as 32-bit words. */
static inline std::vector<uint32_t> linear(const glm_cuda_ops_t *ops, const Device &d, int out,
                                    const std::vector<uint16_t> &x, int bucket,
                                    const std::vector<int> &pick, int ctas, Dev<uint8_t> &ws,
                                    int block = 0, int ring = 0)
{
    const int      n = d.t.n, rows = (int) pick.size(), width = out == GLM_OUT_GLU ? n / 2 : n;
    const size_t   ldy = n + 8;
    Dev<uint16_t>  xd(packed(x, d.t.k, bucket, pick));
    Dev<uint32_t>  y((size_t) bucket * ldy);
    const glm_linear_args_t  a = {&d.t, xd.p, y.p, ldy, out, rows, bucket, ws.p, ring, ctas, block};
    std::vector<uint32_t>    got((size_t) rows * width);

    must(ops->linear(&a, stream), "linear");
    sync();
    std::vector<uint32_t>   v = y.get();
    const uint16_t         *h = (const uint16_t *) v.data();

    for (int r = 0; r < rows; r++)
        for (int i = 0; i < width; i++) {
            uint32_t  *g = &got[(size_t) r * width + i];

            if (out == GLM_OUT_F32) *g = v[r * ldy + i];
            else if (out == GLM_OUT_F16) *g = h[r * ldy + i];
            else *g = h[glm_cuda_packed(width, i, r, bucket)];
        }
    if (out != GLM_OUT_GLU)       /* nothing past a row's end, nor past the last row */
        for (int r = 0; r < bucket; r++)
            for (int i = r < rows ? n : 0; i < (int) ldy; i++)
                if (out == GLM_OUT_F32 ? v[r * ldy + i] != 0xffffffff : h[r * ldy + i] != 0xffff)
                    got[0] = 0x7fc00000;
    return got;
}

static inline std::vector<int> iota(int n)
{
    std::vector<int>  v(n);

    for (int i = 0; i < n; i++) v[i] = i;
    return v;
}

static inline float out_value(int out, uint32_t bits)
{
    float  f;

    if (out != GLM_OUT_F32) return to_f((uint16_t) bits);
    memcpy(&f, &bits, 4);
    return f;
}

/* ---- attention ---- */

/* fp16 angle and functions, as section 1 of the reference has them. */
static inline std::vector<uint16_t> rope_table(int d, int positions)
{
    std::vector<uint16_t>  t((size_t) positions * d);

    for (int p = 0; p < positions; p++)
        for (int i = 0; i < d / 2; i++) {
            const float  inv = to_f(to_h(1.f / powf(10000.f, (float) (2 * i) / (float) d)));
            const float  ang = to_f(to_h(to_f(to_h((float) p)) * inv));

            t[((size_t) p * (d / 2) + i) * 2] = to_h(cosf(ang));
            t[((size_t) p * (d / 2) + i) * 2 + 1] = to_h(sinf(ang));
        }
    return t;
}

struct Pages {                    /* the sequences of a test, on random pages */
    int                    heads, d, int8, npages, ld;
    size_t                 head_bytes, page_bytes;
    std::vector<int32_t>   slot, position, pages;
    Dev<uint8_t>           kv;

    Pages(int h, int dd, int i8, const std::vector<int> &lens, int per_seq)
        : heads(h), d(dd), int8(i8), npages((int) lens.size() * per_seq + 3), ld(per_seq),
          head_bytes(glm_cuda_kv_head_bytes(dd, i8)), page_bytes((head_bytes * h + 127) / 128 * 128),
          kv(page_bytes * npages) {}

    int page(int seq, int i) const { return (int) ((uint32_t) (seq * ld + i) * 7919u % (uint32_t) npages); }
};

/* K or V of a token as the page holds it. */
static inline double kv_at(const Pages &p, const std::vector<uint8_t> &kv, const int32_t *table, int token, int head,
                    int v, int i)
{
    const uint8_t  *page = &kv[(size_t) table[token / 16] * p.page_bytes];
    const uint8_t  *at = page + (size_t) head * 32 * p.d * (p.int8 ? 1 : 2);
    const int       t = v * 16 + token % 16;
    uint16_t        s;

    if (!p.int8) {
        memcpy(&s, at + ((size_t) t * p.d + i) * 2, 2);
        return to_f(s);
    }
    memcpy(&s, page + (size_t) p.heads * 32 * p.d + head * 64 + t * 2, 2);
    const int  place = v ? 16 * p.d + token % 16 / 4 * p.d * 4 + i * 4 + token % 4 : token % 16 * p.d + i;

    return (int8_t) at[place] * (double) to_f(s);
}

static inline void rotated(const uint16_t *x, const uint16_t *rope, int pos, int d, double *out)
{
    for (int i = 0; i < d / 2; i++) {
        const double  c = to_f(rope[((size_t) pos * (d / 2) + i) * 2]);
        const double  s = to_f(rope[((size_t) pos * (d / 2) + i) * 2 + 1]);
        const double  a = to_f(x[i]), b = to_f(x[i + d / 2]);

        out[i] = a * c - b * s;
        out[i + d / 2] = b * c + a * s;
    }
}

/* ---- the program around the tests ---- */

/* Of compute-sanitizer; takes a hundred times as long. */
static inline bool racecheck()
{
    const char  *tool = getenv("GLM_SANITIZED");

    return tool != NULL && strcmp(tool, "racecheck") == 0;
}

/* [--small] [--arch 80|90]; both tables without --arch.  False: nothing to do. */
static inline bool begin(const char *name, int argc, char **argv)
{
    cudaDeviceProp  prop;

    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--small") == 0) small_only = true;
        else if (strcmp(argv[i], "--arch") == 0 && i + 1 < argc) only = atoi(argv[++i]);
        else { fprintf(stderr, "usage: %s [--small] [--arch 80|90]\n", name); exit(2); }
    }
    for (int arch : {80, 90}) {
        const glm_cuda_ops_t  *ops = only == 0 || only == arch ? glm_cuda_ops(arch) : NULL;

        if (ops != NULL) tables.push_back(ops);
    }
    if (tables.empty()) {
        printf("1..0 # SKIP no card these kernels run on\n");
        return false;
    }
    CK(cudaGetDeviceProperties(&prop, 0));
    printf("# %s, %d SMs; tables:", prop.name, prop.multiProcessorCount);
    for (const glm_cuda_ops_t *ops : tables) printf(" sm_%d", ops->arch);
    printf("\n");
    must(glm_cuda_stream(&stream), "stream");
    return true;
}

static inline int finish()
{
    glm_cuda_stream_free(stream);
    CK(cudaDeviceSynchronize());
    printf("1..%d\n# %d failed\n", ntests, nfailed);
    return nfailed != 0;
}

#endif
