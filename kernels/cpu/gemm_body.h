/*
 * gemm_body: c += a b, all fp32.  Columns of b are packed 32 at a time for some
 * rows of it, and a tile of c stays in registers for those.
 */

#define GEMM_K  256               /* rows of b at once: 32 KB packed */

/* mr rows by 32 columns; b (k, 32) packed. */
V_INLINE void
gemm_tile(const int mr, float *c, size_t ldc, const float *a, size_t row, size_t col,
    const float *b, int k)
{
    v16  acc[VEC_MR][2];

    _Pragma("GCC unroll 12")
    for (int r = 0; r < mr; r++) {
        acc[r][0] = v_load(c + (size_t) r * ldc);
        acc[r][1] = v_load(c + (size_t) r * ldc + 16);
    }
    for (int p = 0; p < k; p++) {
        v16  b0 = v_load(b + (size_t) p * 32), b1 = v_load(b + (size_t) p * 32 + 16);

        _Pragma("GCC unroll 12")
        for (int r = 0; r < mr; r++) {
            v16  x = v_set1(a[(size_t) r * row + (size_t) p * col]);

            acc[r][0] = v_fma(x, b0, acc[r][0]);
            acc[r][1] = v_fma(x, b1, acc[r][1]);
        }
    }
    _Pragma("GCC unroll 12")
    for (int r = 0; r < mr; r++) {
        v_store(c + (size_t) r * ldc, acc[r][0]);
        v_store(c + (size_t) r * ldc + 16, acc[r][1]);
    }
}

/* All rows of a panel of w = 16 or 32 columns; packed has zeros beyond w. */
static void
gemm_panel(float *c, size_t ldc, const float *a, size_t row, size_t col, const float *b, int m,
    int k, int w)
{
    float  part[VEC_MR * 32];
    int    i;

    for (i = 0; i + VEC_MR <= m && w == 32; i += VEC_MR) {
        gemm_tile(VEC_MR, c + (size_t) i * ldc, ldc, a + (size_t) i * row, row, col, b, k);
    }
    for ( ; i < m; i++) {                       /* what is left goes through a full row */
        memset(part, 0, 32 * sizeof(float));
        memcpy(part, c + (size_t) i * ldc, (size_t) w * sizeof(float));
        gemm_tile(1, part, 32, a + (size_t) i * row, row, col, b, k);
        memcpy(c + (size_t) i * ldc, part, (size_t) w * sizeof(float));
    }
}

static void
op_gemm(float *c, size_t ldc, const float *a, size_t row, size_t col, const float *b, size_t ldb,
    int m, int n, int k)
{
    float  packed[GEMM_K * 32] __attribute__((aligned(64)));
    int    j, p, i, w, kk;

    for (j = 0; j < n; j += 32) {
        w = n - j < 32 ? n - j : 32;
        for (p = 0; p < k; p += kk) {
            kk = k - p < GEMM_K ? k - p : GEMM_K;
            if (w < 32) memset(packed, 0, sizeof(packed));
            for (i = 0; i < kk; i++) {
                memcpy(packed + i * 32, b + (size_t) (p + i) * ldb + j, (size_t) w * sizeof(float));
            }
            gemm_panel(c + j, ldc, a + (size_t) p * col, row, col, packed, m, kk, w);
        }
    }
}
