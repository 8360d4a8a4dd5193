/*
 * Every CUDA kernel against float64 on the host, by both architectures' tables,
 * and the bits of a row under every change that must not matter: its bucket,
 * its place, its neighbours, the number of CTAs, the architecture.  Prints TAP.
 *
 *     glm-gputest [--small] [--arch 80|90]     both tables without --arch
 *
 * Tolerances are relative Frobenius norms of a dtype: fp16 results 5e-4 (one
 * rounding is 2.8e-4 at most), fp32 results 2e-6.
 */
#include <algorithm>

#include "data.h"

/* ---- linear ---- */

static void test_linear(int type, int k, int n, int groups, int out)
{
    static const char *const  names[] = {"int4", "int8", "fp16"}, *const outs[] = {"fp32", "fp16", "glu"};
    const int       glu = out == GLM_OUT_GLU, width = glu ? n / 2 : n;
    const Weight    w = make_weight(type, k, n, groups, glu, (uint32_t) (k + n + type));
    std::vector<uint16_t>  x = random_halves((size_t) 64 * k, 77, 1.f);
    std::vector<uint32_t>  first;
    const int       stride = width <= 1536 ? 1 : width / 160;
    const int       outputs = (width + stride - 1) / stride;
    std::vector<double>    ref((size_t) 64 * outputs);

    for (int r = 0; r < 64; r += 9)            /* loud columns, as real activations have */
        x[(size_t) r * k + 17] = to_h(60.f);
#pragma omp parallel for schedule(dynamic, 1)
    for (int c = 0; c < outputs; c++) {
        std::vector<float>  row(k), gate(glu ? k : 0);
        const int           o = c * stride;

        for (int i = 0; i < k; i++) row[i] = weight_at(w, o, i);
        for (int i = 0; glu && i < k; i++) gate[i] = weight_at(w, n / 2 + o, i);
        for (int r = 0; r < 64; r++) {
            double  s = to_f(w.bias[o]), g = glu ? to_f(w.bias[n / 2 + o]) : 0;

            for (int i = 0; i < k; i++) {
                const double  v = to_f(x[(size_t) r * k + i]);

                s += v * row[i];
                if (glu) g += v * gate[i];
            }
            ref[(size_t) r * outputs + c] = glu ? s * gelu_ref(g) : s;
        }
    }
    for (const glm_cuda_ops_t *ops : tables) {
        Dev<uint8_t>  ws(glm_cuda_linear_ws(stream, 64));
        Device        d(ops, w);
        Error         e;
        int           differ = 0, tried = 0;

        ws.clear();
        const std::vector<uint32_t>  all = linear(ops, d, out, x, 64, iota(64), 0, ws);

        for (int r = 0; r < 64; r++)
            for (int c = 0; c < outputs; c++)
                e.add(out_value(out, all[(size_t) r * width + c * stride]), ref[(size_t) r * outputs + c]);
        ok(e.below(out == GLM_OUT_F32 ? kTolF32 : kTolF16),
           "sm_%d linear %s %dx%d groups %d -> %s: error %.2e", ops->arch, names[type], n, k, groups,
           outs[out], e.rel());

        /* The same row alone, elsewhere, in company, on fewer CTAs, so that the ring goes round,
         * and with as few stages as there can be. */
        struct { int bucket, rows, ctas, ring; }  cases[] = {
            {8, 1, 0, 0}, {8, 8, 0, 0}, {16, 11, 0, 0}, {16, 16, 37, 0}, {32, 32, 0, 0}, {32, 17, 5, 0},
            {64, 64, 23, 0}, {8, 3, 50, 0}, {16, 16, 4, 0}, {8, 5, 3, 2}, {16, 9, 7, 2}, {32, 20, 4, 2},
            {64, 33, 6, 2}
        };
        for (auto &cs : cases) {
            std::vector<int>  pick;

            for (int i = 0; i < cs.rows; i++) pick.push_back((i * 29 + 5) % 64);
            const std::vector<uint32_t>  some = linear(ops, d, out, x, cs.bucket, pick, cs.ctas, ws, 0,
                                                       cs.ring);

            for (int i = 0; i < cs.rows; i++, tried++)
                differ += memcmp(&some[(size_t) i * width], &all[(size_t) pick[i] * width],
                                 (size_t) width * 4) != 0;
        }
        ok(differ == 0, "sm_%d linear %s %dx%d -> %s: %d of %d rows change with the batch", ops->arch,
           names[type], n, k, outs[out], differ, tried);
        if (first.empty()) first = all;
        else ok(first == all, "linear %s %dx%d -> %s: sm_80 and sm_90 give the same bits", names[type],
                n, k, outs[out]);
    }
}

static void test_linears()
{
    for (int type : {GLM_W_INT4, GLM_W_INT8, GLM_W_F16}) {
        test_linear(type, 256, 768, type == GLM_W_INT4 ? 2 : 1, GLM_OUT_F16);
        test_linear(type, 512, 1000, 1, GLM_OUT_F32);
        test_linear(type, 512, 3072, type == GLM_W_INT4 ? 4 : 1, GLM_OUT_GLU);
        test_linear(type, 1536, 512, type == GLM_W_INT4 ? 12 : 1, GLM_OUT_F32);
    }
    test_linear(GLM_W_INT4, 2816, 1552, 22, GLM_OUT_GLU);     /* an uneven last segment */
    if (small_only) return;
    test_linear(GLM_W_INT4, 12288, 36864, 96, GLM_OUT_F16);
    test_linear(GLM_W_INT4, 12288, 12288, 96, GLM_OUT_F32);
    test_linear(GLM_W_INT4, 12288, 65536, 96, GLM_OUT_GLU);
    test_linear(GLM_W_INT4, 32768, 12288, 256, GLM_OUT_F32);
    test_linear(GLM_W_INT4, 12288, 12288, 1, GLM_OUT_F16);
    test_linear(GLM_W_INT8, 12288, 150528, 1, GLM_OUT_F32);
    test_linear(GLM_W_F16, 12288, 12288, 1, GLM_OUT_F32);
}

/* ---- norm, embedding ---- */

static void test_norm(int dim, bool residual, float loud)
{
    const float            alpha = 11.832159566f, eps = 1e-5f;
    std::vector<uint16_t>  a = random_halves((size_t) 64 * dim, 5, 1.f), w = random_halves(dim, 6, 0.3f, 1.f),
                           b = random_halves(dim, 7, 0.5f);
    std::vector<float>     y((size_t) 64 * dim);
    std::vector<uint16_t>  first;
    Random                 r(8);

    for (auto &v : y) v = 4.f * r.normal();
    for (int i = 0; i < 64; i++) y[(size_t) i * dim + i * 3] = loud;
    for (const glm_cuda_ops_t *ops : tables) {
        std::vector<uint16_t>  alone;
        Error                  e;
        int                    differ = 0;

        for (int bucket : {64, 8, 16, 32}) {
            const int              rows = bucket == 64 ? 64 : bucket - 3;
            std::vector<int>       pick;
            std::vector<float>     yp((size_t) bucket * (dim + 4), NAN);

            for (int i = 0; i < rows; i++) pick.push_back(bucket == 64 ? i : (i * 29 + 5) % 64);
            for (int i = 0; i < rows; i++)
                memcpy(&yp[(size_t) i * (dim + 4)], &y[(size_t) pick[i] * dim], (size_t) dim * 4);
            Dev<uint16_t>          ad(packed(a, dim, bucket, pick)), wd(w), bd(b);
            Dev<float>             yd(yp);
            const glm_gnorm_args_t n = {yd.p, (size_t) dim + 4, residual ? ad.p : NULL, wd.p, bd.p, ad.p,
                                        alpha, eps, dim, rows, bucket};

            must(ops->norm(&n, stream), "norm");
            sync();
            const std::vector<uint16_t>  o = ad.get();

            if (bucket == 64) {
                alone = o;
                for (int i = 0; i < 64; i++) {
                    std::vector<double>  x(dim);
                    double               mean = 0, var = 0;

                    for (int c = 0; c < dim; c++) {
                        x[c] = y[(size_t) i * dim + c];
                        if (residual) x[c] += (double) alpha * to_f(a[(size_t) i * dim + c]);
                        mean += x[c] / dim;
                    }
                    for (int c = 0; c < dim; c++) var += (x[c] - mean) * (x[c] - mean) / dim;
                    for (int c = 0; c < dim; c++)
                        e.add(to_f(packed_at(o, 64, i, c)),
                              (x[c] - mean) / sqrt(var + eps) * to_f(w[c]) + to_f(b[c]));
                }
            } else {
                for (int i = 0; i < rows; i++)
                    for (int c = 0; c < dim; c++)
                        differ += packed_at(o, bucket, i, c) != packed_at(alone, 64, pick[i], c);
            }
        }
        ok(e.below(kTolF16), "sm_%d norm %d%s loud %g: error %.2e", ops->arch, dim,
           residual ? " with residual" : "", loud, e.rel());
        ok(differ == 0, "sm_%d norm %d: %d elements change with the batch", ops->arch, dim, differ);
        if (first.empty()) first = alone;
        else ok(first == alone, "norm %d: sm_80 and sm_90 give the same bits", dim);
    }
}

static int wrong_rows(const std::vector<float> &y, const std::vector<uint16_t> &e,
                      const std::vector<int32_t> &ids, int vocab, int dim)
{
    int  bad = 0;

    for (size_t r = 0; r < ids.size(); r++)
        for (int c = 0; c < dim; c++) {
            const bool  in = ids[r] >= 0 && ids[r] < vocab;

            bad += y[r * dim + c] != (in ? to_f(e[(size_t) ids[r] * dim + c]) : 0.f);
        }
    return bad;
}

static void test_embed()
{
    const int                dim = 512, vocab = 100;
    std::vector<uint16_t>    e = random_halves((size_t) vocab * dim, 3, 1.f);
    std::vector<int32_t>     ids = {0, 99, 50, -1, 100, 50, 7}, picked = {77, -2, 100, 3, 8, 12};

    for (const glm_cuda_ops_t *ops : tables) {
        Dev<int32_t>            id(ids);
        Dev<float>              y(ids.size() * dim);
        uint16_t               *table;
        int                     bad = 0;

        CK(cudaMallocHost(&table, e.size() * 2));
        memcpy(table, e.data(), e.size() * 2);
        glm_embed_args_t  a = {y.p, (size_t) dim, table, id.p, vocab, dim, (int) ids.size(), NULL};

        must(ops->embed(&a, stream), "embed");
        sync();
        bad = wrong_rows(y.get(), e, ids, vocab, dim);
        ok(bad == 0, "sm_%d embed from pinned host memory: %d wrong", ops->arch, bad);

        /* token -1 - k is picked[k], whatever that is */
        Dev<int32_t>  from(picked), refs(std::vector<int32_t>{-1, 5, -4, -2, -3, 99, -6});

        a.token = refs.p;
        a.ids = from.p;
        must(ops->embed(&a, stream), "embed");
        sync();
        bad = wrong_rows(y.get(), e, {77, 5, 3, -2, 100, 99, 12}, vocab, dim);
        ok(bad == 0, "sm_%d embed of ids that a sampler left on the card: %d wrong", ops->arch, bad);
        CK(cudaFreeHost(table));
    }
}

/* ---- attention ---- */

/*
 * Sequences are written token by token (kv_write in steps of up to 64 rows, any
 * mixture), then every sequence's last rows are attended to in one step: several
 * rows of one sequence, a padding row, tokens past the end NaN.
 */
static void test_attention(int heads, int d, int int8, const std::vector<int> &lens)
{
    const int              qkv_width = heads * 3 * d, longest = *std::max_element(lens.begin(), lens.end());
    const int              per_seq = (longest + 15) / 16, tol_rows = 3;
    std::vector<uint16_t>  rope = rope_table(d, 2048);
    size_t                 total = 0;

    for (int l : lens) total += l;
    std::vector<uint16_t>  qkv = random_halves(total * qkv_width, 21, 1.f), firsts;

    for (const glm_cuda_ops_t *ops : tables) {
        Pages                 p(heads, d, int8, lens, per_seq);
        Dev<uint16_t>         ropes(rope), step((size_t) 64 * qkv_width), out((size_t) heads * d * 64);
        Dev<int32_t>          slots(64), positions(64), tables_d((size_t) 64 * per_seq);
        Dev<uint8_t>          ws(glm_cuda_attn_ws(64, heads, d, per_seq * 16));
        const glm_gkv_t       kv = {p.kv.p, p.page_bytes, heads, d, int8};
        struct Row { int seq, token; size_t at; };
        std::vector<Row>      rows, queries;
        size_t                at = 0;

        ws.clear();
        for (size_t s = 0; s < lens.size(); s++)
            for (int t = 0; t < lens[s]; t++, at++) {
                rows.push_back({(int) s, t, at});
                if (t >= lens[s] - tol_rows && queries.size() < 63) queries.push_back({(int) s, t, at});
            }
        queries.insert(queries.begin() + 1, {-1, -1, 0});
        auto put = [&](const std::vector<Row> &r, int bucket) {
            std::vector<int32_t>   sl(64, -1), po(64, 0), pg((size_t) 64 * per_seq, 0);
            std::vector<uint16_t>  q((size_t) 64 * qkv_width, 0x7e00);

            for (size_t i = 0; i < r.size(); i++) {
                if (r[i].seq < 0) continue;
                sl[i] = r[i].token;
                po[i] = r[i].token * 2047 / longest;
                for (int j = 0; j < per_seq; j++) pg[i * per_seq + j] = p.page(r[i].seq, j);
                memcpy(&q[i * qkv_width], &qkv[r[i].at * qkv_width], (size_t) qkv_width * 2);
            }
            slots.put(sl), positions.put(po), tables_d.put(pg), step.put(q);
            (void) bucket;
        };
        auto call = [&](bool write, int n, int bucket) {
            const glm_grows_t      gr = {slots.p, positions.p, tables_d.p, per_seq, n};
            const glm_attn_args_t  a = {&kv, &gr, step.p, ropes.p, out.p, bucket, ws.p, ws.n};

            must((write ? ops->kv_write : ops->attn_row)(&a, stream), write ? "kv_write" : "attn_row");
            sync();
        };

        for (size_t i = 0; i < rows.size(); i += 64) {
            std::vector<Row>  some(rows.begin() + i, rows.begin() + std::min(rows.size(), i + 64));

            put(some, 64);
            call(true, (int) some.size(), 64);
        }
        const std::vector<uint8_t>  host = p.kv.get();
        Error                       ek, ev, eo;
        double                      worst = 0;
        std::vector<double>         k(d);
        std::vector<int32_t>        table(per_seq);

        for (const Row &r : rows) {
            for (int j = 0; j < per_seq; j++) table[j] = p.page(r.seq, j);
            for (int h = 0; h < heads; h++) {
                const uint16_t  *x = &qkv[r.at * qkv_width + (size_t) h * 3 * d];
                double           kmax = 0, vmax = 0, kd = 0, vd = 0;

                rotated(x + d, rope.data(), r.token * 2047 / longest, d, k.data());
                for (int i = 0; i < d; i++) {
                    const double  gk = kv_at(p, host, table.data(), r.token, h, 0, i);
                    const double  gv = kv_at(p, host, table.data(), r.token, h, 1, i), v = to_f(x[2 * d + i]);

                    ek.add(gk, k[i]), ev.add(gv, v);
                    kmax = fmax(kmax, fabs(k[i])), vmax = fmax(vmax, fabs(v));
                    kd = fmax(kd, fabs(gk - k[i])), vd = fmax(vd, fabs(gv - v));
                }
                worst = fmax(worst, fmax(kd / kmax, vd / vmax));
            }
        }
        /* int8: half a step of absmax / 127, and the scale's rounding (2^-10). */
        ok(int8 ? worst <= 0.5 / 127 * 1.002 : ek.below(kTolF16) && ev.rel() == 0,
           "sm_%d kv_write %s heads %d d %d: K %.2e V %.2e, worst %.4f of absmax", ops->arch,
           int8 ? "int8" : "fp16", heads, d, ek.rel(), ev.rel(), worst);

        put(queries, 64);
        out.poison();
        call(false, (int) queries.size(), 64);
        const std::vector<uint16_t>  o = out.get();
        std::vector<uint16_t>        kept;

        for (size_t n = 0; n < queries.size(); n++) {
            const Row  &r = queries[n];

            if (r.seq < 0) continue;
            for (int j = 0; j < per_seq; j++) table[j] = p.page(r.seq, j);
            std::vector<double>  ref((size_t) heads * d);
#pragma omp parallel for
            for (int h = 0; h < heads; h++) {
                std::vector<double>  q(d), s(r.token + 1);
                double               top = -1e30, sum = 0;

                rotated(&qkv[r.at * qkv_width + (size_t) h * 3 * d], rope.data(), r.token * 2047 / longest,
                        d, q.data());
                for (int t = 0; t <= r.token; t++) {
                    s[t] = 0;
                    for (int i = 0; i < d; i++) s[t] += q[i] * kv_at(p, host, table.data(), t, h, 0, i);
                    s[t] /= sqrt((double) d);
                    top = fmax(top, s[t]);
                }
                for (auto &v : s) sum += v = exp(v - top);
                for (int t = 0; t <= r.token; t++)
                    for (int i = 0; i < d; i++)
                        ref[(size_t) h * d + i] += s[t] / sum * kv_at(p, host, table.data(), t, h, 1, i);
            }
            for (int i = 0; i < heads * d; i++) {
                eo.add(to_f(packed_at(o, 64, (int) n, i)), ref[i]);
                kept.push_back(packed_at(o, 64, (int) n, i));
            }
        }
        ok(eo.below(kTolF16), "sm_%d attn_row %s heads %d d %d, to %d tokens: error %.2e", ops->arch,
           int8 ? "int8" : "fp16", heads, d, longest, eo.rel());
        int  differ = 0;

        for (size_t n = 0; n < queries.size(); n += 5) {
            if (queries[n].seq < 0) continue;
            put({queries[n]}, 8);
            out.poison();
            call(false, 1, 8);
            const std::vector<uint16_t>  lone = out.get();

            for (int i = 0; i < heads * d; i++)
                differ += packed_at(lone, 8, 0, i) != packed_at(o, 64, (int) n, i);
        }
        ok(differ == 0, "sm_%d attn_row: %d elements change with the batch", ops->arch, differ);
        /*
         * Steps of rows that see about as much, one of them none.  24 heads of the longest
         * sequence are enough for teams of warps: of 4 with 16 rows, 2 with 40, 1 with 64.
         */
        const int                                L = lens.back();
        const std::vector<std::vector<int>>      seen = {
            {L, L - 1, L - 2}, {L, L - 6, L - 30, L - 31}, {std::min(L, 256), std::min(L, 200), std::min(L, 255)}
        };

        differ = 0;
        for (const auto &tokens : seen) {
            std::vector<std::vector<uint16_t>>  alone;

            if (tokens.back() < 1) continue;
            auto row = [&](int i) {
                const int  t = tokens[i % tokens.size()] - 1;

                return Row{(int) lens.size() - 1, t, total - (size_t) L + t};
            };
            for (size_t i = 0; i < tokens.size(); i++) {
                put({row((int) i)}, 8);
                out.poison();
                call(false, 1, 8);
                alone.push_back(out.get());
            }
            for (int count : {4, 8, 16, 40, 64}) {
                std::vector<Row>  many;

                for (int i = 0; i < count; i++) many.push_back(i == 2 ? Row{-1, -1, 0} : row(i));
                put(many, 64);
                out.poison();
                call(false, count, 64);
                const std::vector<uint16_t>  got = out.get();

                for (int r = 0; r < count; r++)
                    for (int i = 0; i < heads * d; i++)
                        differ += packed_at(got, 64, r, i)
                                  != (r == 2 ? 0xffff : packed_at(alone[r % tokens.size()], 8, 0, i));
            }
        }
        ok(differ == 0, "sm_%d attn_row of 4 to 64 rows: %d elements differ from a row alone", ops->arch, differ);
        if (firsts.empty()) firsts = kept;
        else ok(firsts == kept, "attn_row %s d %d: sm_80 and sm_90 give the same bits",
                int8 ? "int8" : "fp16", d);
    }
}

/* ---- what must be refused, and the fill ---- */

static void test_refusals()
{
    for (const glm_cuda_ops_t *ops : tables) {
        Dev<uint16_t>      b(65536);
        glm_tiles_t        w = {b.p, NULL, 256, 64, GLM_W_INT4, 0};
        glm_linear_args_t  a = {&w, b.p, b.p, 64, GLM_OUT_F16, 3, 8, b.p, 0, 0, 0};
        int                bad = 0;

        w.k = 128, bad += ops->linear(&a, stream) != GLM_EINVAL, w.k = 256;
        a.rows = 9, bad += ops->linear(&a, stream) != GLM_EINVAL, a.rows = 0;
        bad += ops->linear(&a, stream) != GLM_EINVAL, a.rows = 3;
        a.bucket = 24, bad += ops->linear(&a, stream) != GLM_EINVAL, a.bucket = 8;
        a.out = GLM_OUT_GLU, bad += ops->linear(&a, stream) != GLM_EINVAL, a.out = GLM_OUT_F16;
        a.x = (char *) b.p + 8, bad += ops->linear(&a, stream) != GLM_EINVAL, a.x = b.p;
        a.ldy = 63, bad += ops->linear(&a, stream) != GLM_EINVAL;
        a.ldy = 68, bad += ops->linear(&a, stream) != GLM_EINVAL, a.ldy = 64;
        w.bias = (char *) b.p + 8, bad += ops->linear(&a, stream) != GLM_EINVAL, w.bias = NULL;
        bad += ops->linear(NULL, stream) != GLM_EINVAL;
        bad += ops->norm(NULL, stream) != GLM_EINVAL;
        ok(bad == 0, "sm_%d: %d wrong arguments were taken", ops->arch, bad);
    }
}

static void test_fill()
{
    for (const glm_cuda_ops_t *ops : tables) {
        Dev<uint32_t>          w(100003);
        Dev<uint16_t>          h(100003);
        const glm_fill_args_t  a = {w.p, w.n, 42, 0, 0, 0, 7}, f = {h.p, h.n, 43, 1, -0.5f, 1.5f, 9};
        int                    bad = 0;

        must(ops->fill(&a, stream), "fill"), must(ops->fill(&f, stream), "fill");
        sync();
        const std::vector<uint32_t>  wv = w.get();
        const std::vector<uint16_t>  hv = h.get();

        for (size_t i = 0; i < w.n; i++) {
            bad += wv[i] != glm_hash(42, i + 7);
            bad += hv[i] != to_h(fmaf(2.f, (float) (glm_hash(43, i + 9) >> 8) * 0x1p-24f, -0.5f));
        }
        ok(bad == 0, "sm_%d fill: the host computes the same values (%d differ)", ops->arch, bad);
    }
}

/*
 * Linears one behind the other without a wait in between, as in a step: they share the
 * counters, and a kernel starts before the one in front has ended.  With so few outputs a
 * worker has one segment of a tile, and meets the others' at once.
 */
static void test_chain()
{
    const Weight                 wide = make_weight(GLM_W_INT4, 1024, 3072, 8, 0, 91);
    const Weight                 deep = make_weight(GLM_W_INT4, 2048, 1024, 16, 0, 92);
    const std::vector<uint16_t>  x = random_halves((size_t) 64 * 2048, 93, 1.f);

    for (const glm_cuda_ops_t *ops : tables) {
        Dev<uint8_t>  ws(glm_cuda_linear_ws(stream, 64));
        Device        a(ops, wide), b(ops, deep);
        int           differ = 0;

        ws.clear();
        for (int bucket : {8, 16, 32, 64}) {
            Dev<uint16_t>            xa(packed(x, 1024, bucket, iota(bucket)));
            Dev<uint16_t>            xb(packed(x, 2048, bucket, iota(bucket)));
            Dev<float>               ya((size_t) bucket * 3072), yb((size_t) bucket * 1024);
            const glm_linear_args_t  la = {&a.t, xa.p, ya.p, 3072, GLM_OUT_F32, bucket, bucket, ws.p, 0, 0, 0};
            const glm_linear_args_t  lb = {&b.t, xb.p, yb.p, 1024, GLM_OUT_F32, bucket, bucket, ws.p, 0, 0, 0};

            must(ops->linear(&la, stream), "linear");
            sync();
            must(ops->linear(&lb, stream), "linear");
            sync();
            const std::vector<float>  ra = ya.get(), rb = yb.get();

            for (int round = 0; round < (small_only ? 2 : 20); round++) {
                for (int i = 0; i < 50; i++) {
                    must(ops->linear(&la, stream), "linear");
                    must(ops->linear(&lb, stream), "linear");
                }
                sync();
                differ += ya.get() != ra || yb.get() != rb;
            }
        }
        const int  left = counters_left(ws);

        ok(differ == 0 && left == 0, "sm_%d linears one behind the other: %d rounds differ, %d bytes of counters left",
           ops->arch, differ, left);
    }
}

/*
 * kv_write and attn_row behind a matrix of few CTAs, as in a step: attn_row starts while the
 * matrix is at work, and must not have read what kv_write has yet to write.
 */
static void test_new_tokens(int int8, int count)
{
    const int                    heads = small_only ? 4 : 24, d = 128, width = heads * 3 * d;
    const int                    n = 300, per_seq = (n + 15) / 16, rounds = small_only ? 1 : 5;
    const Weight                 deep = make_weight(GLM_W_INT4, 2048, 1024, 16, 0, 95);
    const std::vector<uint16_t>  rope = rope_table(d, 2048), x = random_halves((size_t) 8 * 2048, 96, 1.f);
    const std::vector<uint16_t>  qkv = random_halves((size_t) n * width, 97, 1.f);
    const std::vector<uint16_t>  other = random_halves((size_t) n * width, 98, 1.f);

    for (const glm_cuda_ops_t *ops : tables) {
        Pages                    p(heads, d, int8, {n}, per_seq);
        Device                   w(ops, deep);
        Dev<uint16_t>            ropes(rope), right(qkv), wrong(other), xd(packed(x, 2048, 8, iota(8)));
        Dev<uint16_t>            out((size_t) heads * d * 64);
        Dev<uint8_t>             ws(glm_cuda_linear_ws(stream, 8)), attn(glm_cuda_attn_ws(64, heads, d, per_seq * 16));
        Dev<float>               y((size_t) 8 * 1024);
        const glm_linear_args_t  busy = {&w.t, xd.p, y.p, 1024, GLM_OUT_F32, 8, 8, ws.p, 0, 2, 0};
        const glm_gkv_t          kv = {p.kv.p, p.page_bytes, heads, d, int8};
        std::vector<int32_t>     slot(n), pages((size_t) n * per_seq);
        int                      differ = 0;

        for (int i = 0; i < n; i++) {
            slot[i] = i;
            for (int j = 0; j < per_seq; j++) pages[(size_t) i * per_seq + j] = p.page(0, j);
        }
        Dev<int32_t>  slots(slot), tables_d(pages);
        auto call = [&](int (*op)(const glm_attn_args_t *, glm_stream_t *), uint16_t *from, int first, int rows) {
            const glm_grows_t      r = {slots.p + first, slots.p + first, tables_d.p, per_seq, rows};
            const glm_attn_args_t  a = {&kv, &r, from + (size_t) first * width, ropes.p, out.p, 64, attn.p, attn.n};

            must(op(&a, stream), "attention");
        };

        ws.clear(), attn.clear();
        for (int i = 0; i < n; i += 64) call(ops->kv_write, right.p, i, std::min(64, n - i));
        sync();
        out.poison();
        call(ops->attn_row, right.p, n - count, count);
        sync();
        const std::vector<uint16_t>  want = out.get();

        for (int round = 0; round < rounds; round++) {
            call(ops->kv_write, wrong.p, n - count, count);
            sync();
            out.poison();
            must(ops->linear(&busy, stream), "linear");
            call(ops->kv_write, right.p, n - count, count);
            call(ops->attn_row, right.p, n - count, count);
            sync();
            differ += out.get() != want;
        }
        ok(differ == 0, "sm_%d attn_row %s right behind kv_write of %d rows: %d rounds differ", ops->arch,
           int8 ? "int8" : "fp16", count, differ);
    }
}

int main(int argc, char **argv)
{
    if (!begin("glm-gputest", argc, argv)) return 0;
    test_refusals();
    test_fill();
    test_embed();
    for (int dim : {256, 512, 1536}) test_norm(dim, true, 30.f);
    test_norm(512, false, 3.f);
    if (!small_only) test_norm(12288, true, 30.f), test_norm(12288, true, 20000.f);
    for (int int8 : {0, 1})
        for (int d : {64, 128})
            if (small_only) test_attention(4, d, int8, {1, 5, 16, 17, 33, 256, 300});
            else test_attention(4, d, int8, {1, 5, 16, 17, 255, 256, 257, 700});
    for (int d : {64, 128})
        if (d == 128 || !racecheck()) test_attention(24, d, 1, {1030});
    if (!small_only) {
        test_attention(96, 128, 0, {130, 1030});
        test_attention(96, 128, 1, {130, 2048});
    }
    test_linears();
    if (!racecheck()) {                       /* it looks within a CTA alone: all of that was above */
        test_chain();
        for (int int8 : {0, 1})
            for (int count : {1, 40}) test_new_tokens(int8, count);
    }
    return finish();
}
