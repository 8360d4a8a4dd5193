/*
 * kernels_model: GLM-130B at full shape on the card with dummy weights, and the launches
 * of one decode step.  For measurements: one arena, fixed pages, no sampling.
 */
#ifndef GLM_BENCH_KERNELS_MODEL_H
#define GLM_BENCH_KERNELS_MODEL_H

#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include <algorithm>
#include <vector>

#include "glm_cuda.h"

#define CK(x)                                                                                  \
    do {                                                                                       \
        cudaError_t  e_ = (x);                                                                 \
        if (e_ != cudaSuccess) {                                                               \
            fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #x, cudaGetErrorString(e_)); \
            exit(1);                                                                           \
        }                                                                                      \
    } while (0)

#define OP(x)                                                                                  \
    do {                                                                                       \
        int  rc_ = (x);                                                                        \
        if (rc_ != 0) {                                                                        \
            fprintf(stderr, "%s:%d: %s: %d %s\n", __FILE__, __LINE__, #x, rc_, glm_cuda_error()); \
            exit(1);                                                                           \
        }                                                                                      \
    } while (0)

enum { kHidden = 12288, kInner = 32768, kVocab = 150528, kHeads = 96, kD = 128, kTableRows = 1024 };

struct Shape { const char *name; int k, n, glu; };
static const Shape  kShapes[4] = {{"qkv", kHidden, 3 * kHidden, 0}, {"dense", kHidden, kHidden, 0},
                                  {"h_to_4h", kHidden, 2 * kInner, 1}, {"4h_to_h", kInner, kHidden, 0}};

struct Arena {
    uint8_t  *base = nullptr;
    size_t    size = 0, used = 0;

    void *take(size_t bytes)
    {
        used = (used + 255) / 256 * 256;
        void  *p = base + used;

        used += bytes;
        if (used > size) fprintf(stderr, "arena: %zu of %zu bytes\n", used, size), exit(1);
        return p;
    }
};

struct Layer {
    glm_tiles_t  m[4];
    void        *norm[4];         /* LN1 weight, bias, LN2 weight, bias */
};

struct Model {
    const glm_cuda_ops_t  *ops;
    glm_stream_t          *s;
    cudaStream_t           st;
    int                    layers;
    Arena                  arena;
    std::vector<Layer>     layer;
    glm_tiles_t            head;
    void                  *final_norm[2], *table, *rope;
    void                  *a, *ctx, *act, *qkv, *ws, *attn_ws;
    float                 *y, *logits;
    int32_t               *token, *slot, *position, *pages;
    uint8_t               *kv;
    size_t                 kv_bytes, attn_ws_bytes;
    int                    ring[4] = {0, 0, 0, 0};      /* by bucket; 0: the default */
    uint32_t               seed = 1;

    void halves(void *p, size_t n, float lo, float hi)
    {
        const glm_fill_args_t  f = {p, n, seed++, 1, lo, hi, 0};

        OP(ops->fill(&f, s));
    }

    void matrix(glm_tiles_t *t, int type, int k, int n, int glu, uint8_t *scratch)
    {
        const size_t  q = (size_t) n * k / (type == GLM_W_INT4 ? 2 : 1);
        const int     groups = type == GLM_W_INT4 ? k / 128 : 1;
        const float   scale = 1.f / sqrtf((float) k) / (type == GLM_W_INT4 ? 4.6f : 74.f);
        void         *bias = type == GLM_W_INT4 ? arena.take((size_t) n * 2) : NULL;

        *t = {arena.take(glm_cuda_tile_bytes(type, k, n)), bias, k, n, type, glu};
        const glm_fill_args_t  f = {scratch, q / 4, seed++, 0, 0, 0, 0};
        const glm_pack_args_t  p = {t, scratch, scratch + q, groups};

        OP(ops->fill(&f, s));
        halves(scratch + q, (size_t) n * groups, 0.5f * scale, 1.5f * scale);
        OP(ops->pack(&p, s));
        if (bias) halves(bias, n, -0.1f, 0.1f);
    }

    /* All but the KV, which gets what is left up to kv_want bytes. */
    void load(int nlayers, size_t kv_want)
    {
        size_t  bytes = glm_cuda_tile_bytes(GLM_W_INT8, kHidden, kVocab) + ((size_t) 400 << 20), left, all;

        layers = nlayers;
        for (auto &sh : kShapes)
            bytes += nlayers * (glm_cuda_tile_bytes(GLM_W_INT4, sh.k, sh.n) + (size_t) sh.n * 2 + 1024);
        CK(cudaMemGetInfo(&left, &all));
        kv_bytes = std::min(kv_want, left - ((size_t) 128 << 20) - bytes) / 256 * 256;
        arena.size = bytes + kv_bytes;
        CK(cudaMalloc(&arena.base, arena.size));
        kv = (uint8_t *) arena.take(kv_bytes);          /* also the scratch of the fill */
        layer.resize(nlayers);
        for (auto &l : layer) {
            for (int i = 0; i < 4; i++)
                matrix(&l.m[i], GLM_W_INT4, kShapes[i].k, kShapes[i].n, kShapes[i].glu, kv);
            for (int i = 0; i < 4; i++) {
                l.norm[i] = arena.take(kHidden * 2);
                halves(l.norm[i], kHidden, i % 2 ? -0.1f : 0.5f, i % 2 ? 0.1f : 1.5f);
            }
        }
        matrix(&head, GLM_W_INT8, kHidden, kVocab, 0, kv);
        for (int i = 0; i < 2; i++) {
            final_norm[i] = arena.take(kHidden * 2);
            halves(final_norm[i], kHidden, i ? -0.1f : 0.5f, i ? 0.1f : 1.5f);
        }
        CK(cudaMallocHost(&table, (size_t) kTableRows * kHidden * 2));
        rope = arena.take((size_t) 2048 * kD * 2);
        a = arena.take(64 * kHidden * 2), ctx = arena.take(64 * kHidden * 2);
        act = arena.take(64 * (size_t) kInner * 2), qkv = arena.take(64 * 3 * kHidden * 2);
        y = (float *) arena.take(64 * kHidden * 4), logits = (float *) arena.take(64 * (size_t) kVocab * 4);
        halves(table, (size_t) kTableRows * kHidden, -1, 1);
        halves(rope, (size_t) 2048 * kD, -1, 1);
        for (void *p : {a, ctx}) halves(p, 64 * kHidden, -1, 1);
        halves(act, 64 * (size_t) kInner, -1, 1), halves(qkv, 64 * 3 * kHidden, -1, 1);
        attn_ws_bytes = glm_cuda_attn_ws(64, kHeads, kD, 2048);
        ws = arena.take(glm_cuda_linear_ws(s, 64)), attn_ws = arena.take(attn_ws_bytes);
        CK(cudaMemsetAsync(ws, 0, glm_cuda_linear_ws(s, 64), st));
        CK(cudaMemsetAsync(attn_ws, 0, attn_ws_bytes, st));
        token = (int32_t *) arena.take(64 * 4), slot = (int32_t *) arena.take(64 * 4);
        position = (int32_t *) arena.take(64 * 4), pages = (int32_t *) arena.take(64 * 128 * 4);
        halves(kv, kv_bytes / 2, 0.01f, 0.02f);         /* valid as fp16, int8 and scales */
        CK(cudaStreamSynchronize(st));
    }

    /* Rows that end at a context; every row has pages of its own, scattered. */
    int rows(int n, int context)
    {
        const int             per = (context + 15) / 16, all = n * per;
        std::vector<int32_t>  t(64), sl(64, -1), po(64), pg(64 * 128);

        for (int r = 0; r < n; r++) {
            t[r] = r * 13 % kTableRows, sl[r] = context - 1, po[r] = context - 1;
            for (int i = 0; i < per; i++) pg[r * 128 + i] = (int) ((r * per + i) * 7919ll % all);
        }
        CK(cudaMemcpy(token, t.data(), 256, cudaMemcpyHostToDevice));
        CK(cudaMemcpy(slot, sl.data(), 256, cudaMemcpyHostToDevice));
        CK(cudaMemcpy(position, po.data(), 256, cudaMemcpyHostToDevice));
        CK(cudaMemcpy(pages, pg.data(), pg.size() * 4, cudaMemcpyHostToDevice));
        CK(cudaDeviceSynchronize());
        return all;
    }

    static int bucket(int n) { return n <= 8 ? 8 : n <= 16 ? 16 : n <= 32 ? 32 : 64; }

    void linear(const glm_tiles_t &t, const void *x, void *out, int kind, int n)
    {
        const int  b = bucket(n), i = b == 8 ? 0 : b == 16 ? 1 : b == 32 ? 2 : 3;
        const glm_linear_args_t  args = {&t, x, out, (size_t) t.n, kind, n, b, ws,
                                         t.type == GLM_W_INT4 ? ring[i] : 0, 0, 0};

        OP(ops->linear(&args, s));
    }

    /* Matrix i of layer l. */
    void layer_linear(int l, int i, int n)
    {
        const void         *x[4] = {a, ctx, a, act};
        void               *out[4] = {qkv, y, act, y};
        const int           kind[4] = {GLM_OUT_F16, GLM_OUT_F32, GLM_OUT_GLU, GLM_OUT_F32};

        linear(layer[l].m[i], x[i], out[i], kind[i], n);
    }

    void head_linear(int n) { linear(head, a, logits, GLM_OUT_F32, n); }

    void norm(const void *res, void *const w[2], int n)
    {
        const glm_gnorm_args_t  args = {y, kHidden, res, w[0], w[1], a, sqrtf(140.f), 1e-5f, kHidden, n,
                                        bucket(n)};

        OP(ops->norm(&args, s));
    }

    void attention(int l, int n, int npages, int int8, bool write)
    {
        const size_t           page = kHeads * glm_cuda_kv_head_bytes(kD, int8);
        const glm_gkv_t        g = {kv + (size_t) l * npages * page, page, kHeads, kD, int8};
        const glm_grows_t      r = {slot, position, pages, 128, n};
        const glm_attn_args_t  args = {&g, &r, qkv, rope, ctx, bucket(n), attn_ws, attn_ws_bytes};

        if (write) OP(ops->kv_write(&args, s));
        else OP(ops->attn_row(&args, s));
    }

    void step(int n, int npages)
    {
        const glm_embed_args_t  e = {y, kHidden, table, token, kTableRows, kHidden, n, NULL};

        OP(ops->embed(&e, s));
        for (int l = 0; l < layers; l++) {
            norm(l ? a : NULL, &layer[l].norm[0], n);
            layer_linear(l, 0, n);
            attention(l, n, npages, 1, true);
            attention(l, n, npages, 1, false);
            layer_linear(l, 1, n);
            norm(a, &layer[l].norm[2], n);
            layer_linear(l, 2, n);
            layer_linear(l, 3, n);
        }
        norm(a, final_norm, n);
        head_linear(n);
    }
};

#endif
