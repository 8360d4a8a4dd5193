/*
 * kernels_prefill: a bidirectional context through that model, in passes of 512
 * rows, and the kernels of a pass alone.  Its buffers are at the end of the KV.
 */
#ifndef GLM_BENCH_KERNELS_PREFILL_H
#define GLM_BENCH_KERNELS_PREFILL_H

#include "kernels_model.h"

enum { kPass = GLM_CUDA_PREFILL_ROWS };

struct Prefill {
    Model               &m;
    int                  n, npages, block;
    glm_prefill_bufs_t   b;
    int32_t             *index, *table, *token;

    /* false: no room for the keys and values of this many layers. */
    bool place(int tokens, int int8, int layers)
    {
        const size_t  ws = glm_cuda_prefill_ws(tokens, kHidden, kHidden, kInner, NULL, NULL) + (64 << 10);
        const size_t  kv = (size_t) layers * ((tokens + 15) / 16) * kHeads * glm_cuda_kv_head_bytes(kD, int8);

        n = tokens, npages = (tokens + 15) / 16;
        if (kv + ws > m.kv_bytes) return false;
        index = (int32_t *) (m.kv + (m.kv_bytes - ws) / 256 * 256);
        table = index + 4096, token = table + 1024;
        glm_cuda_prefill_ws(n, kHidden, kHidden, kInner, token + 4096, &b);

        std::vector<int32_t>  at(n), pg(npages), id(n);

        for (int i = 0; i < n; i++) at[i] = i, id[i] = i * 13 % kTableRows;
        for (int i = 0; i < npages; i++) pg[i] = (int) (i * 7919ll % npages);
        CK(cudaMemcpy(index, at.data(), n * 4, cudaMemcpyHostToDevice));
        CK(cudaMemcpy(table, pg.data(), npages * 4, cudaMemcpyHostToDevice));
        CK(cudaMemcpy(token, id.data(), n * 4, cudaMemcpyHostToDevice));
        for (void *p : {b.a, b.attn})
            m.halves(p, (size_t) (n + kPass - 1) / kPass * kPass * kHidden, -1, 1);
        m.halves(b.qkv, (size_t) n * 3 * kHidden, -1, 1);
        m.halves(b.glu, (size_t) kPass * kInner, -1, 1);
        CK(cudaDeviceSynchronize());
        return true;
    }

    int rows(int p) const { return std::min((int) kPass, n - p * kPass); }
    float *y(int p) const { return b.y + (size_t) p * kPass * kHidden; }
    void *packed(void *base, int p) const { return (uint16_t *) base + (size_t) p * kPass * kHidden; }
    void *qkv(int p) const { return (uint16_t *) b.qkv + (size_t) p * kPass * 3 * kHidden; }

    void norm(void *const w[2], void *residual, int p)
    {
        const glm_gnorm_args_t  g = {y(p), kHidden, residual, w[0], w[1], packed(b.a, p), sqrtf(140.f), 1e-5f,
                                     kHidden, rows(p), kPass};

        OP(m.ops->norm(&g, m.s));
    }
    void linear(const glm_tiles_t &t, const void *x, void *out, int kind, int nrows)
    {
        const glm_linear_args_t  g = {&t, x, out, (size_t) t.n, kind, nrows, kPass, m.ws, 0, 0, block};

        OP(m.ops->linear(&g, m.s));
    }
    /* Matrix i of layer l for a pass. */
    void matrix(int l, int i, int p)
    {
        const void *x[4] = {packed(b.a, p), packed(b.attn, p), packed(b.a, p), b.glu};
        void       *out[4] = {qkv(p), y(p), b.glu, y(p)};
        const int   kind[4] = {GLM_OUT_F16, GLM_OUT_F32, GLM_OUT_GLU, GLM_OUT_F32};

        linear(m.layer[l].m[i], x[i], out[i], kind[i], rows(p));
    }
    glm_gkv_t kv(int l, int int8) const
    {
        const size_t  page = kHeads * glm_cuda_kv_head_bytes(kD, int8);

        return {m.kv + (size_t) l * npages * page, page, kHeads, kD, int8};
    }
    void write(int l, int int8, int p)
    {
        const glm_gkv_t        g = kv(l, int8);
        const glm_grows_t      r = {index + p * kPass, index + p * kPass, table, 0, rows(p)};
        const glm_attn_args_t  a = {&g, &r, qkv(p), m.rope, NULL, kPass, NULL, 0};

        OP(m.ops->kv_write(&a, m.s));
    }
    void attend()
    {
        const glm_context_args_t  a = {index, b.qkv, m.rope, b.attn, kHeads, kD, n, 0, n};

        OP(m.ops->attn_context(&a, m.s));
    }

    /* Everything to the logits of the last row. */
    void whole()
    {
        const glm_embed_args_t  e = {b.y, kHidden, m.table, token, kTableRows, kHidden, n, NULL};
        const int               passes = (n + kPass - 1) / kPass, last = passes - 1;

        OP(m.ops->embed(&e, m.s));
        for (int l = 0; l < m.layers; l++) {
            const Layer  &w = m.layer[l];

            for (int p = 0; p < passes; p++) {
                norm(&w.norm[0], l ? packed(b.a, p) : NULL, p);
                matrix(l, 0, p);
                write(l, 1, p);
            }
            attend();
            for (int p = 0; p < passes; p++) {
                matrix(l, 1, p);
                norm(&w.norm[2], packed(b.a, p), p);
                matrix(l, 2, p);
                matrix(l, 3, p);
            }
        }
        norm(m.final_norm, packed(b.a, last), last);
        const glm_repack_args_t  r = {packed(b.a, last), m.a, kHidden, kPass, 8, rows(last) - 1, 0, 1};

        OP(m.ops->repack(&r, m.s));
        m.head_linear(1);
    }
};

#endif
