/*
 * attn_body: rotary embedding, KV write and attention over KV pages.  A page's
 * keys are [d][16], so that a score is a lane and its sum a chain over d; its
 * values are [16][d], so that an output is a lane and its sum a chain over
 * slots.  Rows that see the same slots go through together, which changes
 * nothing in any row's arithmetic.
 */

static void
rotate(float *restrict x, const float *restrict c, const float *restrict s, int half)
{
    for (int i = 0; i < half; i++) {
        float  a = x[i], b = x[i + half];

        x[i] = fmaf(a, c[i], -(b * s[i]));
        x[i + half] = fmaf(b, c[i], a * s[i]);
    }
}

static void
op_rope_kv(float *qkv, size_t ld, const glm_at_t *at, int rows, const glm_rope_t *rope,
    const glm_kv_t *kv, int h0, int h1)
{
    const size_t  d = (size_t) kv->d, vals = d * GLM_KV_TOKENS;
    const int     half = kv->d / 2;

    for (int r = 0; r < rows; r++, qkv += ld) {
        const float  *c = rope->cos + (size_t) at[r].position * (size_t) half;
        const float  *s = rope->sin + (size_t) at[r].position * (size_t) half;
        int32_t       page = at[r].pages[at[r].slot / GLM_KV_TOKENS];
        size_t        t = (size_t) at[r].slot % GLM_KV_TOKENS;
        float        *base = kv->base + (size_t) page * kv->page_floats;

        for (int h = h0; h < h1; h++) {
            float  *q = qkv + (size_t) h * 3 * d;
            float  *k = base + (size_t) h * 2 * vals;

            rotate(q, c, s, half);
            rotate(q + d, c, s, half);
            for (size_t i = 0; i < d; i++) k[i * GLM_KV_TOKENS + t] = q[d + i];
            memcpy(k + vals + t * d, q + 2 * d, d * sizeof(float));
        }
    }
}

/* Page i, off floats in. */
V_INLINE const float *
kv_page(const glm_kv_t *kv, const int32_t *pages, int i, size_t off)
{
    return kv->base + (size_t) pages[i] * kv->page_floats + off;
}

/* Scores of mr rows with np pages from page i on. */
V_INLINE void
score_tile(const int mr, const int np, float *s, size_t lds, const float *q, size_t ldq,
    const glm_kv_t *kv, const int32_t *pages, int i, size_t off, float scale)
{
    const float  *k[4] = { NULL };
    v16           acc[VEC_MR][4], kk[4], x;

    _Pragma("GCC unroll 4")
    for (int j = 0; j < np; j++) k[j] = kv_page(kv, pages, i + j, off);
    _Pragma("GCC unroll 12")
    for (int r = 0; r < mr; r++) {
        _Pragma("GCC unroll 4")
        for (int j = 0; j < np; j++) acc[r][j] = v_zero();
    }

    for (size_t c = 0; c < (size_t) kv->d; c++) {
        _Pragma("GCC unroll 4")
        for (int j = 0; j < np; j++) kk[j] = v_load(k[j] + c * GLM_KV_TOKENS);
        _Pragma("GCC unroll 12")
        for (int r = 0; r < mr; r++) {
            x = v_set1(q[(size_t) r * ldq + c]);
            _Pragma("GCC unroll 4")
            for (int j = 0; j < np; j++) acc[r][j] = v_fma(x, kk[j], acc[r][j]);
        }
    }

    _Pragma("GCC unroll 12")
    for (int r = 0; r < mr; r++) {
        _Pragma("GCC unroll 4")
        for (int j = 0; j < np; j++) {
            v_store(s + (size_t) r * lds + (size_t) (i + j) * GLM_KV_TOKENS,
                v_mul(acc[r][j], v_set1(scale)));
        }
    }
}

/* s[0 .. n) -> exp(s - max), zeros up to the page's end; returns 1 / sum. */
static float
softmax(float *s, int n)
{
    const int  tail = (n - 1) / 16 * 16;
    v16        m, t, p;
    float      top;

    v_store(s + tail, v_first(v_load(s + tail), n - tail, v_set1(-INFINITY)));
    m = v_load(s);
    for (int i = 16; i < n; i += 16) m = v_max(m, v_load(s + i));
    top = v_top(m);

    t = v_zero();
    for (int i = 0; i < n; i += 16) {
        p = m_exp(v_sub(v_load(s + i), v_set1(top)));
        v_store(s + i, p);
        t = v_add(t, p);
    }
    return 1 / v_sum(t);
}

/* nc vectors of output of mr rows: p v over slots 0 .. n-1. */
V_INLINE void
value_tile(const int mr, const int nc, float *out, size_t ldo, const float *s, size_t lds,
    const float *inv, int n, const glm_kv_t *kv, const int32_t *pages, size_t off)
{
    v16  acc[VEC_MR][4], vv[4], p;

    _Pragma("GCC unroll 12")
    for (int r = 0; r < mr; r++) {
        _Pragma("GCC unroll 4")
        for (int j = 0; j < nc; j++) acc[r][j] = v_zero();
    }

    for (int i = 0; i * GLM_KV_TOKENS < n; i++) {
        const float  *v = kv_page(kv, pages, i, off);
        const float  *w = s + (size_t) i * GLM_KV_TOKENS;
        size_t        m = (size_t) (n - i * GLM_KV_TOKENS);

        if (m > GLM_KV_TOKENS) m = GLM_KV_TOKENS;
        for (size_t t = 0; t < m; t++, v += kv->d) {
            _Pragma("GCC unroll 4")
            for (int j = 0; j < nc; j++) vv[j] = v_load(v + 16 * j);
            _Pragma("GCC unroll 12")
            for (int r = 0; r < mr; r++) {
                p = v_set1(w[(size_t) r * lds + t]);
                _Pragma("GCC unroll 4")
                for (int j = 0; j < nc; j++) acc[r][j] = v_fma(p, vv[j], acc[r][j]);
            }
        }
    }

    _Pragma("GCC unroll 12")
    for (int r = 0; r < mr; r++) {
        _Pragma("GCC unroll 4")
        for (int j = 0; j < nc; j++) {
            v_store(out + (size_t) r * ldo + 16 * j, v_mul(acc[r][j], v_set1(inv[r])));
        }
    }
}

/* One head of mr rows that see slots 0 .. n-1; np pages, nc vectors at a time. */
V_INLINE void
attn_tile(const int mr, const int np, const int nc, float *out, size_t ldo, const float *q,
    size_t ldq, int n, const glm_kv_t *kv, const int32_t *pages, int h, float *s)
{
    const size_t  d = (size_t) kv->d, vals = d * GLM_KV_TOKENS;
    const size_t  off = (size_t) h * 2 * vals;
    const size_t  lds = ((size_t) n + 31) / 32 * 32 + 16;
    const int     npages = (n + GLM_KV_TOKENS - 1) / GLM_KV_TOKENS;
    float         inv[VEC_MR], scale = 1 / sqrtf((float) kv->d);
    int           i;
    size_t        c;

    for (i = 0; i + np <= npages; i += np) {
        score_tile(mr, np, s, lds, q, ldq, kv, pages, i, off, scale);
    }
    for ( ; i < npages; i++) score_tile(mr, 1, s, lds, q, ldq, kv, pages, i, off, scale);

    for (int r = 0; r < mr; r++) inv[r] = softmax(s + (size_t) r * lds, n);

    for (c = 0; c + 16 * (size_t) nc <= d; c += 16 * (size_t) nc) {
        value_tile(mr, nc, out + c, ldo, s, lds, inv, n, kv, pages, off + vals + c);
    }
    for ( ; c < d; c += 16) {
        value_tile(mr, 1, out + c, ldo, s, lds, inv, n, kv, pages, off + vals + c);
    }
}

#define ATTN(mr, np, nc)                                                      \
static void                                                                   \
attn_##mr(float *out, size_t ldo, const float *q, size_t ldq, int n,          \
    const glm_kv_t *kv, const int32_t *pages, int h, float *s)                \
{                                                                             \
    attn_tile(mr, np, nc, out, ldo, q, ldq, n, kv, pages, h, s);              \
}

ATTN(1, 4, 4)
#if VEC_MR == 12
ATTN(6, 4, 4)
ATTN(12, 2, 2)
#else
ATTN(3, 2, 2)
#endif

static void
op_attn_row(float *out, size_t ldo, const float *qkv, size_t ldq, const glm_at_t *at,
    int rows, const glm_kv_t *kv, int h0, int h1, float *scratch)
{
    const size_t  d = (size_t) kv->d;

    for (int r = 0; r < rows; r++, out += ldo, qkv += ldq) {
        for (int h = h0; h < h1; h++) {
            attn_1(out + (size_t) h * d, ldo, qkv + (size_t) h * 3 * d, ldq,
                at[r].slot + 1, kv, at[r].pages, h, scratch);
        }
    }
}

/* The largest tile that fits the rows left. */
static int
attn_block(float *out, size_t ldo, const float *q, size_t ldq, int rows, int n,
    const int32_t *pages, const glm_kv_t *kv, int h, float *scratch)
{
#if VEC_MR == 12
    if (rows >= 12) {
        attn_12(out, ldo, q, ldq, n, kv, pages, h, scratch);
        return 12;
    }
    if (rows >= 6) {
        attn_6(out, ldo, q, ldq, n, kv, pages, h, scratch);
        return 6;
    }
#else
    if (rows >= 3) {
        attn_3(out, ldo, q, ldq, n, kv, pages, h, scratch);
        return 3;
    }
#endif
    attn_1(out, ldo, q, ldq, n, kv, pages, h, scratch);
    return 1;
}

static void
op_attn_context(float *out, size_t ldo, const float *qkv, size_t ldq, int rows, int n,
    const int32_t *pages, const glm_kv_t *kv, int h0, int h1, float *scratch)
{
    const size_t  d = (size_t) kv->d;

    for (int h = h0; h < h1; h++) {
        for (int r = 0; r < rows; ) {
            r += attn_block(out + (size_t) r * ldo + (size_t) h * d, ldo,
                qkv + (size_t) r * ldq + (size_t) h * 3 * d, ldq, rows - r, n, pages, kv,
                h, scratch);
        }
    }
}
