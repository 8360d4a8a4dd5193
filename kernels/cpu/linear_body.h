/*
 * linear_body: y = x w^T + b over packed panels.  A tile is mr rows by np
 * panels whose sums stay in registers for the whole of k, so an output is one
 * fma chain whatever the tile is.  An ideal run moves the weights once.
 */

#define TILE_GROUP  (256 * 1024)  /* bytes of weights that stay in the L2 while
                                     all row blocks pass over them */
#define TILE_AHEAD  64            /* steps of k fetched ahead, 4 KiB: measured best
                                     of 8 .. 128 for weights in the L3 */

#define TILE_BOUND  6             /* rows from which arithmetic is the bound */
#define TILE_PIECE  256           /* steps of k, a line of KV fetched in each */

/* The next piece of what attention will read; x where there is none left. */
static const char *
fetch_piece(glm_fetch_t *f, const float *x)
{
    const char  *p;
    size_t       head, size;

    if (f == NULL || f->row >= f->rows) return (const char *) x;
    head = 2 * (size_t) f->kv->d * GLM_KV_TOKENS * sizeof(float);
    size = (size_t) (f->h1 - f->h0) * head;
    p = (const char *) (f->kv->base
        + (size_t) f->at[f->row].pages[f->page] * f->kv->page_floats);
    p += (size_t) f->h0 * head + f->off;

    f->off += TILE_PIECE * 64;
    if (f->off < size) return p;
    f->off = 0;
    if (++f->page <= f->at[f->row].slot / GLM_KV_TOKENS) return p;
    f->page = 0;
    f->row++;
    return p;
}

/* np panels from p on; x (mr, k). */
V_INLINE void
tile(const int mr, const int np, float *y, size_t ldy, const float *x, size_t ldx,
    const glm_mat_t *w, int p, glm_fetch_t *fetch)
{
    const size_t     k = (size_t) w->k;
    const uint16_t  *b = w->w + (size_t) p * GLM_PANEL * k;
    const char      *ahead = NULL;
    v16              acc[VEC_MR][2 * 4], b0[4], b1[4], xr;

    _Pragma("GCC unroll 12")
    for (int r = 0; r < mr; r++) {
        _Pragma("GCC unroll 8")
        for (int j = 0; j < 2 * np; j++) acc[r][j] = v_zero();
    }

    for (size_t i = 0, end; i < k; ) {
        end = k - i > TILE_PIECE ? i + TILE_PIECE : k;
        if (mr >= TILE_BOUND) ahead = fetch_piece(fetch, x);

        for ( ; i < end; i++, b += GLM_PANEL, ahead += 64) {
            if (mr >= TILE_BOUND) __builtin_prefetch(ahead, 0, 2);
            _Pragma("GCC unroll 4")
            for (int j = 0; j < np; j++) {
                const uint16_t  *bj = b + (size_t) j * GLM_PANEL * k;

                b0[j] = v_loadh(bj);
                b1[j] = v_loadh(bj + 16);
                __builtin_prefetch(bj + TILE_AHEAD * GLM_PANEL);
            }
            _Pragma("GCC unroll 12")
            for (int r = 0; r < mr; r++) {
                xr = v_set1(x[(size_t) r * ldx + i]);
                _Pragma("GCC unroll 4")
                for (int j = 0; j < np; j++) {
                    acc[r][2 * j] = v_fma(xr, b0[j], acc[r][2 * j]);
                    acc[r][2 * j + 1] = v_fma(xr, b1[j], acc[r][2 * j + 1]);
                }
            }
        }
    }

    _Pragma("GCC unroll 4")
    for (int j = 0; j < np; j++) {
        size_t  c = (size_t) (p + j) * GLM_PANEL;
        float   t[GLM_PANEL];
        int     full = c + GLM_PANEL <= (size_t) w->n;
        v16     c0 = v_zero(), c1 = v_zero();

        if (w->bias != NULL) {
            c0 = v_load(w->bias + c);
            c1 = v_load(w->bias + c + 16);
        }
        _Pragma("GCC unroll 12")
        for (int r = 0; r < mr; r++) {
            float  *d = full ? y + (size_t) r * ldy + c : t;

            if (w->bias != NULL) {
                acc[r][2 * j] = v_add(acc[r][2 * j], c0);
                acc[r][2 * j + 1] = v_add(acc[r][2 * j + 1], c1);
            }
            v_store(d, acc[r][2 * j]);
            v_store(d + 16, acc[r][2 * j + 1]);
            if (!full) memcpy(y + (size_t) r * ldy + c, t, ((size_t) w->n - c) * sizeof(float));
        }
    }
}

typedef void (*tile_pt)(float *y, size_t ldy, const float *x, size_t ldx,
    const glm_mat_t *w, int p, glm_fetch_t *fetch);

#define TILE(mr, np)                                                          \
static void                                                                   \
tile_##mr##_##np(float *y, size_t ldy, const float *x, size_t ldx,            \
    const glm_mat_t *w, int p, glm_fetch_t *fetch)                            \
{                                                                             \
    tile(mr, np, y, ldy, x, ldx, w, p, fetch);                                \
}

TILE(1, 1) TILE(2, 1) TILE(3, 1)
#if VEC_MR == 12
TILE(4, 1) TILE(5, 1) TILE(6, 1) TILE(7, 1) TILE(8, 1) TILE(9, 1)
TILE(10, 1) TILE(11, 1) TILE(12, 1)
TILE(1, 4) TILE(2, 2) TILE(3, 2) TILE(4, 2) TILE(5, 2) TILE(6, 2)

static const struct { tile_pt one, wide; int np; } tiles[VEC_MR + 1] = {
    { NULL, NULL, 1 }, { tile_1_1, tile_1_4, 4 }, { tile_2_1, tile_2_2, 2 },
    { tile_3_1, tile_3_2, 2 }, { tile_4_1, tile_4_2, 2 }, { tile_5_1, tile_5_2, 2 },
    { tile_6_1, tile_6_2, 2 }, { tile_7_1, tile_7_1, 1 }, { tile_8_1, tile_8_1, 1 },
    { tile_9_1, tile_9_1, 1 }, { tile_10_1, tile_10_1, 1 }, { tile_11_1, tile_11_1, 1 },
    { tile_12_1, tile_12_1, 1 },
};
#else
TILE(1, 2)

static const struct { tile_pt one, wide; int np; } tiles[VEC_MR + 1] = {
    { NULL, NULL, 1 }, { tile_1_1, tile_1_2, 2 }, { tile_2_1, tile_2_1, 1 },
    { tile_3_1, tile_3_1, 1 },
};
#endif

/* Panels p0 .. p1-1 for a block of at most VEC_MR rows. */
static void
tile_row(float *y, size_t ldy, const float *x, size_t ldx, int mr, const glm_mat_t *w,
    int p0, int p1, glm_fetch_t *fetch)
{
    int  np = tiles[mr].np;

    for ( ; p0 + np <= p1; p0 += np) tiles[mr].wide(y, ldy, x, ldx, w, p0, fetch);
    for ( ; p0 < p1; p0++) tiles[mr].one(y, ldy, x, ldx, w, p0, fetch);
}

static void
op_linear(float *y, size_t ldy, const float *x, size_t ldx, int rows,
    const glm_mat_t *w, int p0, int p1, glm_fetch_t *fetch)
{
    int  blocks = (rows + VEC_MR - 1) / VEC_MR, group, end, r0, r1;

    group = TILE_GROUP / (int) (GLM_PANEL * sizeof(uint16_t)) / w->k / 4 * 4;
    if (group < 4) group = 4;
    if (blocks <= 1) group = p1 - p0;               /* nothing to reuse */

    for ( ; p0 < p1; p0 = end) {
        end = p1 - p0 > group ? p0 + group : p1;
        for (int i = 0; i < blocks; i++) {          /* blocks of even size */
            r0 = (int) ((int64_t) rows * i / blocks);
            r1 = (int) ((int64_t) rows * (i + 1) / blocks);
            tile_row(y + (size_t) r0 * ldy, ldy, x + (size_t) r0 * ldx, ldx, r1 - r0, w,
                p0, end, fetch);
        }
    }
}

static void
op_pack(uint16_t *dst, int32_t first, const uint16_t *src, int32_t nrows, int32_t k)
{
    for (int32_t o = first; o < first + nrows; o++) {
        uint16_t  *d = dst + (size_t) (o / GLM_PANEL) * GLM_PANEL * (size_t) k + o % GLM_PANEL;

        for (int32_t i = 0; i < k; i++) d[(size_t) i * GLM_PANEL] = *src++;
    }
}
