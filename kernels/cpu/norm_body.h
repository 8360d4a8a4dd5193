/* norm_body: embedding, layer norm with the residual, gated gelu. */

static void
op_embed(float *y, size_t ldy, const int32_t *token, int32_t first, int rows,
    const glm_mat_t *w)
{
    uint16_t         h[16];
    const uint16_t  *src;
    int32_t          t;

    for (int r = 0; r < rows; r++, y += ldy) {
        t = token[r] - first;
        if (t < 0 || t >= w->n) {
            memset(y, 0, (size_t) w->k * sizeof(float));
            continue;
        }
        src = (const uint16_t *) w->w + (size_t) (t / GLM_PANEL) * GLM_PANEL * (size_t) w->k
              + t % GLM_PANEL;
        for (int32_t i = 0; i < w->k; i += 16) {
            for (int l = 0; l < 16; l++) h[l] = src[(size_t) (i + l) * GLM_PANEL];
            v_store(y + i, v_loadh(h));
        }
    }
}

V_INLINE v16
norm_x(const float *a, const float *y, const glm_norm_t *nm, int i)
{
    v16  x = v_load(y + i);

    if (a == NULL) return x;
    if (nm->ybias != NULL) x = v_add(x, v_load(nm->ybias + i));
    return v_fma(v_set1(nm->alpha), v_load(a + i), x);
}

static void
op_layernorm(float *out, size_t ldo, const float *a, size_t lda, const float *y,
    size_t ldy, int rows, const glm_norm_t *nm)
{
    float  mean, rstd;
    v16    s, d;

    for (int r = 0; r < rows; r++, out += ldo, y += ldy) {
        s = v_zero();
        for (int i = 0; i < nm->dim; i += 16) {
            d = norm_x(a, y, nm, i);
            v_store(out + i, d);
            s = v_add(s, d);
        }
        mean = v_sum(s) / (float) nm->dim;

        s = v_zero();
        for (int i = 0; i < nm->dim; i += 16) {
            d = v_sub(v_load(out + i), v_set1(mean));
            s = v_fma(d, d, s);
        }
        rstd = 1 / sqrtf(v_sum(s) / (float) nm->dim + nm->eps);

        for (int i = 0; i < nm->dim; i += 16) {
            d = v_mul(v_sub(v_load(out + i), v_set1(mean)), v_set1(rstd));
            v_store(out + i, v_fma(d, v_load(nm->weight + i), v_load(nm->bias + i)));
        }
        if (a != NULL) a += lda;
    }
}

static void
op_residual(float *x, size_t ldx, const float *a, size_t lda, const float *y, size_t ldy,
    int rows, const glm_norm_t *nm)
{
    for (int r = 0; r < rows; r++, x += ldx, y += ldy) {
        for (int i = 0; i < nm->dim; i += 16) v_store(x + i, norm_x(a, y, nm, i));
        if (a != NULL) a += lda;
    }
}

static void
op_geglu(float *act, size_t lda, const float *u1, const float *u2, size_t ldu, int rows,
    int n)
{
    v16  u, e;

    for (int r = 0; r < rows; r++, act += lda, u1 += ldu, u2 += ldu) {
        for (int i = 0; i < n; i += 16) {
            u = v_load(u2 + i);
            e = m_erf(v_mul(u, v_set1(0.707106781f)));
            u = v_mul(v_mul(u, v_set1(0.5f)), v_add(v_set1(1), e));
            v_store(act + i, v_mul(v_load(u1 + i), u));
        }
    }
}
