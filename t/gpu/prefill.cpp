/*
 * Passes of 512 rows and the attention of whole contexts.  A row of a pass must have
 * the bits of the same row in a step of decode, by both architectures' tables and
 * with blocks of 64 and of 128 rows; attn_context is compared with float64, and a
 * context's bits may not change with what runs in between.  Prints TAP.
 *
 *     glm-prefilltest [--small] [--arch 80|90]     both tables without --arch
 */
#include <algorithm>

#include "data.h"

/* q, weights and int8 keys and values are rounded to fp16 for the matrix units, so
 * there are three roundings where attn_row has the last alone. */
static const double  kTolContext = 1e-3;
static const int     kPass = GLM_CUDA_PREFILL_ROWS;

static std::vector<int> range(int from, int rows)
{
    std::vector<int>  v(rows);

    for (int i = 0; i < rows; i++) v[i] = from + i;
    return v;
}

/* ---- linear ---- */

/* Relative error of some rows and outputs against float64. */
static double linear_error(const Weight &w, int out, const std::vector<uint16_t> &x,
                           const std::vector<uint32_t> &got)
{
    const int  width = w.glu ? w.n / 2 : w.n, stride = width <= 640 ? 1 : width / 97;
    Error      e;

    for (int o = 0; o < width; o += stride)
        for (int r = 3; r < kPass; r += 31) {
            double  s = to_f(w.bias[o]), g = w.glu ? to_f(w.bias[width + o]) : 0;

            for (int i = 0; i < w.k; i++) {
                s += (double) to_f(x[(size_t) r * w.k + i]) * weight_at(w, o, i);
                if (w.glu) g += (double) to_f(x[(size_t) r * w.k + i]) * weight_at(w, width + o, i);
            }
            e.add(out_value(out, got[(size_t) r * width + o]), w.glu ? s * gelu_ref(g) : s);
        }
    return e.rel();
}

static void test_pass(int type, int k, int n, int groups, int out)
{
    static const char *const  names[] = {"int4", "int8", "fp16"}, *const outs[] = {"fp32", "fp16", "glu"};
    const int       glu = out == GLM_OUT_GLU, width = glu ? n / 2 : n;
    const Weight    w = make_weight(type, k, n, groups, glu, (uint32_t) (k + n + type));
    std::vector<uint16_t>  x = random_halves((size_t) kPass * k, 78, 1.f);
    std::vector<uint32_t>  first;

    for (int r = 0; r < kPass; r += 9) x[(size_t) r * k + 17] = to_h(60.f);
    for (const glm_cuda_ops_t *ops : tables) {
        Dev<uint8_t>           ws(glm_cuda_linear_ws(stream, kPass));
        Device                 d(ops, w);
        std::vector<uint32_t>  decode;

        ws.clear();
        for (int r = 0; r < kPass; r += 64) {
            const std::vector<uint32_t>  some = linear(ops, d, out, x, 64, range(r, 64), 0, ws);

            decode.insert(decode.end(), some.begin(), some.end());
        }
        const double  err = linear_error(w, out, x, decode);

        ok(err <= (out == GLM_OUT_F32 ? kTolF32 : kTolF16), "sm_%d %s %dx%d -> %s: decode's error %.2e",
           ops->arch, names[type], n, k, outs[out], err);
        for (int block : {64, 128}) {
            struct { int from, rows, ctas; }  cases[] = {
                {0, 512, 0}, {0, 512, 37}, {56, 400, 0}, {0, 257, 23}, {100, 65, 0}, {7, 64, 0}, {511, 1, 2},
                {0, 300, 5}, {0, 512, 0}
            };
            int  differ = 0, tried = 0;

            for (auto &c : cases) {
                const std::vector<uint32_t>  some =
                    linear(ops, d, out, x, kPass, range(c.from, c.rows), c.ctas, ws, block);

                for (int i = 0; i < c.rows; i++, tried++)
                    differ += memcmp(&some[(size_t) i * width], &decode[(size_t) (c.from + i) * width],
                                     (size_t) width * 4) != 0;
            }
            ok(differ == 0, "sm_%d %s %dx%d -> %s, blocks of %d: %d of %d rows differ from decode's",
               ops->arch, names[type], n, k, outs[out], block, differ, tried);
        }
        const int  left = counters_left(ws);

        ok(left == 0, "sm_%d %s %dx%d: %d bytes of counters left", ops->arch, names[type], n, k, left);
        if (first.empty()) first = decode;
        else ok(first == decode, "%s %dx%d -> %s: sm_80 and sm_90 give the same bits", names[type], n, k,
                outs[out]);
    }
}

static void test_passes()
{
    for (int type : {GLM_W_INT4, GLM_W_INT8, GLM_W_F16}) {
        test_pass(type, 256, 768, type == GLM_W_INT4 ? 2 : 1, GLM_OUT_F16);
        if (!racecheck()) test_pass(type, 512, 1000, 1, GLM_OUT_F32);
        if (!racecheck()) test_pass(type, 1536, 512, type == GLM_W_INT4 ? 12 : 1, GLM_OUT_F32);
        test_pass(type, 512, 3072, type == GLM_W_INT4 ? 4 : 1, GLM_OUT_GLU);
    }
    test_pass(GLM_W_INT4, 2816, 1552, 22, GLM_OUT_GLU);       /* an uneven last segment */
    if (small_only) return;
    test_pass(GLM_W_INT4, 12288, 12288, 96, GLM_OUT_F16);
    test_pass(GLM_W_INT4, 32768, 12288, 256, GLM_OUT_F32);
    test_pass(GLM_W_INT8, 12288, 9216, 1, GLM_OUT_F32);
}

/* ---- norm ---- */

static void test_norm(int dim)
{
    std::vector<uint16_t>  a = random_halves((size_t) kPass * dim, 5, 1.f),
                           w = random_halves(dim, 6, 0.3f, 1.f), b = random_halves(dim, 7, 0.5f);
    std::vector<float>     y((size_t) kPass * dim);
    Random                 r(8);

    for (auto &v : y) v = 4.f * r.normal();
    for (int i = 0; i < kPass; i++) y[(size_t) i * dim + i % dim] = 20000.f;
    for (const glm_cuda_ops_t *ops : tables) {
        Dev<uint16_t>  wd(w), bd(b);
        Dev<float>     yd(y);
        int            differ = 0;

        auto norm = [&](int from, int rows, int bucket) {
            Dev<uint16_t>           ad(packed(a, dim, bucket, range(from, rows)));
            const glm_gnorm_args_t  n = {yd.p + (size_t) from * dim, (size_t) dim, ad.p, wd.p, bd.p, ad.p,
                                         11.832159566f, 1e-5f, dim, rows, bucket};

            must(ops->norm(&n, stream), "norm");
            sync();
            return ad.get();
        };
        const std::vector<uint16_t>  whole = norm(0, kPass, kPass), some = norm(40, 150, kPass);

        for (int r = 0; r < kPass; r += 64) {
            const std::vector<uint16_t>  step = norm(r, 64, 64);

            for (int i = 0; i < 64; i++)
                for (int c = 0; c < dim; c++)
                    differ += packed_at(whole, kPass, r + i, c) != packed_at(step, 64, i, c);
        }
        for (int i = 0; i < 150; i++)
            for (int c = 0; c < dim; c++)
                differ += packed_at(some, kPass, i, c) != packed_at(whole, kPass, 40 + i, c);
        ok(differ == 0, "sm_%d norm %d of 512 rows: %d elements differ from decode's", ops->arch, dim, differ);
    }
}

/* ---- attention ---- */

struct Context {                  /* one context on the card, keys and values written */
    const glm_cuda_ops_t  *ops;
    int                    heads, d, n, width;
    Pages                  pages;
    glm_gkv_t              kv;
    std::vector<int32_t>   table, position;
    Dev<uint16_t>          rope, qkv, out;
    Dev<int32_t>           table_d, position_d;

    Context(const glm_cuda_ops_t *o, int h, int dd, int int8, int tokens, bool fixed,
            const std::vector<uint16_t> &x, const std::vector<uint16_t> &ropes, int pass)
        : ops(o), heads(h), d(dd), n(tokens), width(h * 3 * dd),
          pages(h, dd, int8, {tokens}, (tokens + 15) / 16),
          kv{pages.kv.p, pages.page_bytes, h, dd, int8}, rope(ropes), qkv(x),
          out((size_t) (tokens + kPass - 1) / kPass * kPass * h * dd), table_d((size_t) pages.ld),
          position_d((size_t) tokens)
    {
        for (int i = 0; i < pages.ld; i++) table.push_back(pages.page(0, i));
        for (int i = 0; i < n; i++) position.push_back(fixed ? 7 : (int) (i * 577ll % 2048));
        table_d.put(table), position_d.put(position);
        for (int r = 0; r < n; r += pass) rows(r, std::min(pass, n - r), true, NULL, pass);
    }

    /* kv_write or attn_row of rows from..; a causal row sees its own token last. */
    void rows(int from, int count, bool write, uint16_t *to, int bucket)
    {
        std::vector<int32_t>  slot(count), pg;

        for (int i = 0; i < count; i++) {
            slot[i] = from + i;
            pg.insert(pg.end(), table.begin(), table.end());
        }
        Dev<int32_t>           slots(slot), tables_d(pg);
        Dev<uint8_t>           ws(glm_cuda_attn_ws(count, heads, d, pages.ld * 16));
        const bool             one = write && bucket == kPass;       /* one table for all rows */
        const glm_grows_t      gr = {slots.p, position_d.p + from, one ? table_d.p : tables_d.p,
                                     one ? 0 : pages.ld, count};
        const glm_attn_args_t  a = {&kv, &gr, qkv.p + (size_t) from * width, rope.p, to, bucket, ws.p, ws.n};

        ws.clear();
        must((write ? ops->kv_write : ops->attn_row)(&a, stream), write ? "kv_write" : "attn_row");
        sync();
    }

    std::vector<uint16_t> attend(int first, int count)
    {
        const glm_context_args_t  a = {position_d.p, qkv.p, rope.p, out.p, heads, d, n, first, count};

        out.poison();
        must(ops->attn_context(&a, stream), "attn_context");
        sync();
        return out.get();
    }

    uint16_t at(const std::vector<uint16_t> &o, int row, int i) const
    {
        return o[glm_cuda_packed(heads * d, i, row, kPass)];
    }
};

/* Rows to compare: all of a short context, else some around every edge. */
static std::vector<int> sample(int n)
{
    std::vector<int>  v;

    for (int r = 0; r < n; r++)
        if (n <= 40 || r < 2 || r >= n - 2 || r % 64 == 63 || r % 256 == 0 || r % 191 == 5) v.push_back(r);
    if (n > 40 && v.size() > 24) {
        std::vector<int>  some;

        for (size_t i = 0; i < v.size(); i += v.size() / 12) some.push_back(v[i]);
        some.push_back(n - 1);
        return some;
    }
    return v;
}

static Error context_error(const Context &c, const std::vector<uint16_t> &qkv,
                           const std::vector<uint16_t> &rope, const std::vector<uint16_t> &got)
{
    const std::vector<uint8_t>  host = c.pages.kv.get();
    const std::vector<int>      some = sample(c.n);
    std::vector<Error>          each(c.heads);
    Error                       e;

#pragma omp parallel for schedule(dynamic, 1)
    for (int h = 0; h < c.heads; h++) {
        std::vector<double>  k((size_t) c.n * c.d), v((size_t) c.n * c.d), q(c.d), s(c.n);

        for (int t = 0; t < c.n; t++)
            for (int i = 0; i < c.d; i++) {
                k[(size_t) t * c.d + i] = kv_at(c.pages, host, c.table.data(), t, h, 0, i);
                v[(size_t) t * c.d + i] = kv_at(c.pages, host, c.table.data(), t, h, 1, i);
            }
        for (int r : some) {
            std::vector<double>  o(c.d);
            double               top = -1e30, sum = 0;

            rotated(&qkv[(size_t) r * c.width + (size_t) h * 3 * c.d], rope.data(), c.position[r], c.d,
                    q.data());
            for (int t = 0; t < c.n; t++) {
                s[t] = 0;
                for (int i = 0; i < c.d; i++) s[t] += q[i] * k[(size_t) t * c.d + i];
                s[t] /= sqrt((double) c.d);
                top = fmax(top, s[t]);
            }
            for (auto &w : s) sum += w = exp(w - top);
            for (int t = 0; t < c.n; t++)
                for (int i = 0; i < c.d; i++) o[i] += s[t] / sum * v[(size_t) t * c.d + i];
            for (int i = 0; i < c.d; i++) each[h].add(to_f(c.at(got, r, h * c.d + i)), o[i]);
        }
    }
    for (const Error &x : each) e.d += x.d, e.r += x.r;
    return e;
}

/* Of keys: random; outliers as real activations have them, the same in every token; such that
 * scores rise all along a context, for every third row steeply. */
enum Keys { PLAIN, LOUD, RISING };

static void test_context(int heads, int d, int int8, int n, Keys keys)
{
    static const char *const     names[] = {"", ", loud", ", rising"};
    const bool                   loud = keys == LOUD;
    const std::vector<uint16_t>  rope = rope_table(d, 2048);
    std::vector<uint16_t>        qkv = random_halves((size_t) n * heads * 3 * d, 31, 1.f), first;

    for (int t = 0; keys != PLAIN && t < n; t++)
        for (int h = 0; h < heads; h++) {
            uint16_t  *x = &qkv[((size_t) t * heads + h) * 3 * d];

            if (loud) x[5] = to_h(60.f), x[d + 5] = to_h(60.f), x[2 * d + 9] = to_h(60000.f);
            else x[d / 2 - 1] = to_h(t % 3 ? 2.f : 20.f), x[d + d / 2 - 1] = to_h(0.02f * (float) t);
        }
    for (const glm_cuda_ops_t *ops : tables) {
        Context                      c(ops, heads, d, int8, n, loud, qkv, rope, kPass);
        const std::vector<uint16_t>  whole = c.attend(0, n);
        const Error                  e = context_error(c, qkv, rope, whole);
        int                          differ = 0;

        ok(e.below(kTolContext), "sm_%d attn_context %s heads %d d %d, %d tokens%s: error %.2e", ops->arch,
           int8 ? "int8" : "fp16", heads, d, n, names[keys], e.rel());
        for (int from : {0, n / 3, n - 1}) {
            const int                    count = std::min(n - from, 77);
            const std::vector<uint16_t>  part = c.attend(from, count);

            for (int r = 0; r < n; r++)
                for (int i = 0; i < heads * d; i++) {
                    const bool  in = r >= from && r < from + count;

                    differ += c.at(part, r, i) != (in ? c.at(whole, r, i) : 0xffff);
                }
        }
        ok(differ == 0, "sm_%d attn_context, some rows: %d elements differ", ops->arch, differ);
        if (first.empty()) first = whole;
        else ok(first == whole, "attn_context %s d %d, %d tokens: sm_80 and sm_90 give the same bits",
                int8 ? "int8" : "fp16", d, n);
    }
}

/*
 * A NaN or an infinity that a faulty card, or a layer past fp16, leaves in one token does
 * not come out as a number anywhere it is seen; other heads do not see it.  A value may be
 * infinite in its own dimension alone.
 */
static void test_not_finite(int d, int int8)
{
    const int                    heads = 2, n = 300, token = 41, part = 3 * d;
    const std::vector<uint16_t>  rope = rope_table(d, 2048);
    const std::vector<uint16_t>  good = random_halves((size_t) n * heads * part, 33, 1.f);

    for (const glm_cuda_ops_t *ops : tables) {
        int  hidden = 0, spread = 0;

        for (int what = 0; what < 3; what++)                /* q, k, v */
            for (uint16_t bad : {0x7e00, 0x7c00, 0xfc00}) {
                std::vector<uint16_t>  qkv = good;

                qkv[(size_t) (token * heads + 1) * part + what * d + 3] = bad;
                Context                      c(ops, heads, d, int8, n, false, qkv, rope, kPass);
                const std::vector<uint16_t>  whole = c.attend(0, n);
                Dev<uint16_t>                row((size_t) heads * d * 64);
                auto look = [&](const std::vector<uint16_t> &o, int bucket, int r, bool sees) {
                    int  odd[2] = {0, 0};

                    for (int i = 0; i < heads * d; i++)
                        odd[i / d] += !isfinite(to_f(o[glm_cuda_packed(heads * d, i, r, bucket)]));
                    hidden += sees && odd[1] == 0;
                    spread += odd[0] != 0 || (!sees && odd[1] != 0);
                };

                for (int r : {0, token, n - 1}) look(whole, kPass, r, what > 0 || r == token);
                for (int r : {token - 1, token, n - 1}) {
                    c.rows(r, 1, false, row.p, 8);
                    look(row.get(), 8, 0, r == token || (what > 0 && r > token));
                }
            }
        ok(hidden == 0 && spread == 0, "sm_%d %s d %d: what is not finite is seen (hidden in %d rows, elsewhere in %d)",
           ops->arch, int8 ? "int8" : "fp16", d, hidden, spread);
    }
}

/* Keys and values in a context's qkv that are not what its pages hold, rounded. */
static int not_left(const Context &c)
{
    const std::vector<uint8_t>   pages = c.pages.kv.get();
    const std::vector<uint16_t>  qkv = c.qkv.get();
    int                          differ = 0;

    for (int t = 0; t < c.n; t++)
        for (int h = 0; h < c.heads; h++)
            for (int i = 0; i < 2 * c.d; i++)
                differ += qkv[(size_t) t * c.width + (size_t) (3 * h + 1) * c.d + i]
                          != to_h((float) kv_at(c.pages, pages, c.table.data(), t, h, i / c.d, i % c.d));
    return differ;
}

/* Causal rows of a pass: pages and attn_row have the bits of steps of 64 rows. */
static void test_causal(int d, int int8, int n)
{
    const int                    heads = 3;
    const std::vector<uint16_t>  rope = rope_table(d, 2048);
    std::vector<uint16_t>        qkv = random_halves((size_t) n * heads * 3 * d, 41, 1.f);

    for (const glm_cuda_ops_t *ops : tables) {
        Context        c(ops, heads, d, int8, n, false, qkv, rope, kPass);
        Context        steps(ops, heads, d, int8, n, false, qkv, rope, 64);
        Dev<uint16_t>  out((size_t) heads * d * kPass), step((size_t) heads * d * 64);
        int            differ = not_left(c);

        ok(differ == 0 && steps.qkv.get() == qkv, "sm_%d kv_write %s d %d: a pass leaves in qkv what pages hold "
           "(%d differ)", ops->arch, int8 ? "int8" : "fp16", d, differ);
        differ = 0;
        ok(c.pages.kv.get() == steps.pages.kv.get(), "sm_%d kv_write %s d %d: pages of passes are those of steps",
           ops->arch, int8 ? "int8" : "fp16", d);
        for (int r = 0; r < std::min(n, kPass); r += 64) {
            const int  count = std::min(64, n - r);

            c.rows(r, count, false, out.p + (size_t) r * heads * d, 64);
            steps.rows(r, count, false, step.p, 64);
            const std::vector<uint16_t>  o = out.get(), s = step.get();

            for (int i = 0; i < count; i++)
                for (int k = 0; k < heads * d; k++)
                    differ += packed_at(o, kPass, r + i, k) != packed_at(s, 64, i, k);
        }
        ok(differ == 0, "sm_%d attn_row %s d %d in a pass: %d elements differ", ops->arch,
           int8 ? "int8" : "fp16", d, differ);
    }
}

/* ---- a whole layer ---- */

struct Layer {                    /* of dummy weights; norms with outliers */
    const glm_cuda_ops_t           *ops;
    int                             dim, heads, d, inner;
    Dev<uint8_t>                    ws;
    Dev<uint16_t>                   norm, rope;       /* weight, bias */
    std::vector<Dev<uint8_t> *>     tiles;
    std::vector<Dev<uint16_t> *>    bias;
    glm_tiles_t                     m[4];

    Layer(const glm_cuda_ops_t *o, int h, int dd, int in)
        : ops(o), dim(h * dd), heads(h), d(dd), inner(in), ws(glm_cuda_linear_ws(stream, kPass)),
          norm((size_t) 2 * h * dd), rope(rope_table(dd, 2048))
    {
        std::vector<uint16_t>  w = random_halves(2 * (size_t) dim, 51, 0.2f, 1.f);

        for (int i = 0; i < dim; i += 199) w[i] = to_h(9.f), w[dim + i] = to_h(-30.f);
        norm.put(w);
        ws.clear();
        matrix(0, dim, 3 * dim, 0), matrix(1, dim, dim, 0);
        matrix(2, dim, 2 * inner, 1), matrix(3, inner, dim, 0);
    }
    ~Layer()
    {
        for (auto *p : tiles) delete p;
        for (auto *p : bias) delete p;
    }
    void halves(uint16_t *p, size_t n, uint32_t seed, float lo, float hi)
    {
        const glm_fill_args_t  f = {p, n, seed, 1, lo, hi, 0};

        must(ops->fill(&f, stream), "fill");
    }
    void matrix(int i, int k, int n, int glu)
    {
        const float            scale = 0.2f / sqrtf((float) k);
        Dev<uint32_t>          q((size_t) n * k / 8);
        Dev<uint16_t>          scales((size_t) n * k / 128);
        const glm_fill_args_t  f = {q.p, q.n, (uint32_t) (60 + i), 0, 0, 0, 0};
        const glm_pack_args_t  p = {&m[i], q.p, scales.p, k / 128};

        tiles.push_back(new Dev<uint8_t>(glm_cuda_tile_bytes(GLM_W_INT4, k, n)));
        bias.push_back(new Dev<uint16_t>((size_t) n));
        m[i] = {tiles[i]->p, bias[i]->p, k, n, GLM_W_INT4, glu};
        must(ops->fill(&f, stream), "fill");
        halves(scales.p, scales.n, (uint32_t) (70 + i), 0.5f * scale, 1.5f * scale);
        halves(bias[i]->p, (size_t) n, (uint32_t) (80 + i), -0.1f, 0.1f);
        must(ops->pack(&p, stream), "pack");
        sync();
    }
};

struct Flow {                     /* a context on its way through a layer */
    Layer               &l;
    int                  n, block, passes;
    Pages                pages;
    glm_gkv_t            kv;
    Dev<uint8_t>         memory;
    Dev<int32_t>         table, index;
    glm_prefill_bufs_t   b;

    Flow(Layer &layer, int tokens, int rows, int int8)
        : l(layer), n(tokens), block(rows), passes((tokens + kPass - 1) / kPass),
          pages(l.heads, l.d, int8, {tokens}, (tokens + 15) / 16),
          kv{pages.kv.p, pages.page_bytes, l.heads, l.d, int8},
          memory(glm_cuda_prefill_ws(tokens, l.dim, l.dim, l.inner, NULL, NULL)),
          table((size_t) pages.ld), index((size_t) tokens)
    {
        std::vector<float>     y((size_t) n * l.dim);
        std::vector<int32_t>   ids, at;
        Random                 r((uint32_t) n);

        glm_cuda_prefill_ws(n, l.dim, l.dim, l.inner, memory.p, &b);
        for (auto &v : y) v = 3.f * r.normal();
        for (int t = 0; t < n; t++) y[(size_t) t * l.dim + 11] = 20000.f;
        for (int i = 0; i < pages.ld; i++) ids.push_back(pages.page(0, i));
        for (int i = 0; i < n; i++) at.push_back(i);
        table.put(ids), index.put(at);
        CK(cudaMemcpy(b.y, y.data(), y.size() * 4, cudaMemcpyHostToDevice));
        CK(cudaDeviceSynchronize());     /* `stream` does not wait for copies from here */
        for (int p = 0; p < passes; p++) normalise(p, NULL);          /* an `a` to start from */
    }
    int rows(int p) const { return std::min(kPass, n - p * kPass); }
    float *y(int p) const { return b.y + (size_t) p * kPass * l.dim; }
    uint16_t *packed_pass(void *base, int p) const { return (uint16_t *) base + (size_t) p * kPass * l.dim; }

    void normalise(int p, void *residual)
    {
        const glm_gnorm_args_t  g = {y(p), (size_t) l.dim, residual, l.norm.p, l.norm.p + l.dim,
                                     packed_pass(b.a, p), 11.832159566f, 1e-5f, l.dim, rows(p), kPass};

        must(l.ops->norm(&g, stream), "norm");
    }
    void linear(int i, const void *x, void *out, int kind, int p)
    {
        const glm_linear_args_t  g = {&l.m[i], x, out, (size_t) l.m[i].n, kind, rows(p), kPass, l.ws.p, 0, 0,
                                      block};

        must(l.ops->linear(&g, stream), "linear");
    }
    int stages() const { return 2 * passes + 1; }
    void stage(int i)
    {
        const int  p = i % (passes + 1);

        if (i < passes) {
            uint16_t               *qkv = (uint16_t *) b.qkv + (size_t) p * kPass * 3 * l.dim;
            const glm_grows_t       gr = {index.p + p * kPass, index.p + p * kPass, table.p, 0, rows(p)};
            const glm_attn_args_t   a = {&kv, &gr, qkv, l.rope.p, NULL, kPass, NULL, 0};

            normalise(p, packed_pass(b.a, p));
            linear(0, packed_pass(b.a, p), qkv, GLM_OUT_F16, p);
            must(l.ops->kv_write(&a, stream), "kv_write");
        } else if (i == passes) {
            const glm_context_args_t  a = {index.p, b.qkv, l.rope.p, b.attn, l.heads, l.d, n, 0, n};

            must(l.ops->attn_context(&a, stream), "attn_context");
        } else {
            linear(1, packed_pass(b.attn, p), y(p), GLM_OUT_F32, p);
            normalise(p, packed_pass(b.a, p));
            linear(2, packed_pass(b.a, p), b.glu, GLM_OUT_GLU, p);
            linear(3, b.glu, y(p), GLM_OUT_F32, p);
        }
    }
    std::vector<float> run()
    {
        for (int i = 0; i < stages(); i++) stage(i);
        return result();
    }
    std::vector<float> result()
    {
        std::vector<float>  v((size_t) n * l.dim);

        sync();
        CK(cudaMemcpy(v.data(), b.y, v.size() * 4, cudaMemcpyDeviceToHost));
        return v;
    }
};

/* The last row alone, as a head of 8 rows takes it. */
static void test_last_row(Flow &f)
{
    const int                 last = f.passes - 1, row = f.rows(last) - 1;
    Dev<uint16_t>             out((size_t) 8 * f.l.dim), whole((size_t) kPass * f.l.dim);
    const glm_repack_args_t   a = {f.packed_pass(f.b.a, last), out.p, f.l.dim, kPass, 8, row, 3, 1};
    int                       bad = 0;

    must(f.l.ops->repack(&a, stream), "repack");
    sync();
    const std::vector<uint16_t>  o = out.get();

    CK(cudaMemcpy(whole.p, a.x, whole.n * 2, cudaMemcpyDeviceToDevice));
    const std::vector<uint16_t>  w = whole.get();

    for (int i = 0; i < f.l.dim; i++)
        for (int r = 0; r < 8; r++)
            bad += packed_at(o, 8, r, i) != (r == 3 ? packed_at(w, kPass, row, i) : 0xffff);
    ok(bad == 0, "sm_%d repack of the last row: %d elements wrong", f.l.ops->arch, bad);
}

static void test_layer(int heads, int d, int inner, int n)
{
    std::vector<float>  first;

    for (const glm_cuda_ops_t *ops : tables) {
        Layer                      l(ops, heads, d, inner);
        Flow                       lone(l, n, 64, 1), wide(l, n, 128, 1), beside(l, n, 64, 1);
        Flow                       other(l, n / 2 + 9, 128, 1);
        const std::vector<float>   y = lone.run();
        int                        bad = 0;

        for (float v : y) bad += !isfinite(v);
        ok(bad == 0, "sm_%d a layer of %d, %d rows: %d values are not finite", ops->arch, l.dim, n, bad);
        ok(wide.run() == y, "sm_%d a layer of %d, %d rows: blocks of 64 and 128 give the same bits",
           ops->arch, l.dim, n);
        for (int i = 0; i < beside.stages(); i++) {
            beside.stage(i);
            if (i < other.stages()) other.stage(i);
        }
        ok(beside.result() == y, "sm_%d a layer of %d: another context in between changes nothing",
           ops->arch, l.dim);
        test_last_row(lone);
        if (first.empty()) first = y;
        else ok(first == y, "a layer of %d: sm_80 and sm_90 give the same bits", l.dim);
    }
}

int main(int argc, char **argv)
{
    if (!begin("glm-prefilltest", argc, argv)) return 0;
    for (int dim : {256, 1536}) test_norm(dim);
    if (!small_only) test_norm(12288);
    for (int int8 : {0, 1})
        for (int d : {64, 128}) {
            for (int n : {1, 15, 16, 17, 64, 65, 255, 300}) test_context(2, d, int8, n, PLAIN);
            test_context(2, d, int8, 130, LOUD);
            if (!int8) test_context(2, d, int8, 300, RISING);        /* keys of int8 are rounded once more */
            test_not_finite(d, int8);
            test_causal(d, int8, small_only ? 130 : 600);
            if (small_only) continue;
            for (int n : {512, 1000, 2048}) test_context(3, d, int8, n, PLAIN);
            if (!int8) test_context(3, d, int8, 1000, RISING);
        }
    if (!small_only) test_context(96, 128, 0, 2048, PLAIN), test_context(96, 128, 1, 512, PLAIN);
    test_passes();
    test_layer(4, 128, 1024, 600);
    if (!small_only) test_layer(96, 128, 32768, 640);
    return finish();
}
