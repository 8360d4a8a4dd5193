/*
 * linear_body: y = x w^T + b over packed panels.  A tile is mr rows by np
 * panels whose sums stay in registers for a group of k (fp16: all of k), so an
 * output is the same chain whatever the tile is.  An ideal run moves the weights
 * once.
 */

#define TILE_GROUP  (256 * 1024)  /* bytes of weights that stay in the L2 while
                                     all row blocks pass over them */
#define TILE_AHEAD  4096          /* bytes fetched ahead: measured best of 512 ..
                                     8192 for weights in the L3 */

#define TILE_BOUND  6             /* rows from which arithmetic is the bound */
#define TILE_PIECE  256           /* steps of k, a line of KV fetched in each */

/* The next piece, a line a step, of what attention will read; x where there is
 * none left. */
static const char *
fetch_piece(glm_fetch_t *f, const float *x, size_t steps)
{
    const char  *p;
    size_t       head, size;

    if (f == NULL || f->row >= f->rows) return (const char *) x;
    head = 2 * (size_t) f->kv->d * GLM_KV_TOKENS * sizeof(float);
    size = (size_t) (f->h1 - f->h0) * head;
    p = (const char *) (f->kv->base
        + (size_t) f->at[f->row].pages[f->page] * f->kv->page_floats);
    p += (size_t) f->h0 * head + f->off;

    f->off += steps * 64;
    if (f->off < size) return p;
    f->off = 0;
    if (++f->page <= f->at[f->row].slot / GLM_KV_TOKENS) return p;
    f->page = 0;
    f->row++;
    return p;
}

/* Steps of k that a load of 64 bytes has, or two for a panel's words. */
V_INLINE int
block_steps(const int bits)
{
    return bits == 4 ? 8 : bits == 8 ? 2 : 1;
}

/* acc += x w of one block of each of np panels, `panel` bytes apart. */
V_INLINE void
block(const int bits, const int mr, const int np, v16 acc[][8], const uint8_t *b, size_t panel,
    const float *x, size_t ldx)
{
    w16  w0[4], w1[4];
    v16  b0[4], b1[4], xr;

    _Pragma("GCC unroll 4")
    for (int j = 0; j < np && bits == 4; j++) {
        w0[j] = w_load((const uint32_t *) (b + (size_t) j * panel));
        w1[j] = w_load((const uint32_t *) (b + (size_t) j * panel) + 16);
    }
    _Pragma("GCC unroll 8")
    for (int s = 0; s < block_steps(bits); s++) {
        _Pragma("GCC unroll 4")
        for (int j = 0; j < np; j++) {
            const uint8_t  *bj = b + (size_t) j * panel;

            if (bits == 4) {
                b0[j] = w_take(&w0[j]);
                b1[j] = w_take(&w1[j]);
            } else if (bits == 8) {
                b0[j] = v_loadb((const int8_t *) bj + s * GLM_PANEL);
                b1[j] = v_loadb((const int8_t *) bj + s * GLM_PANEL + 16);
            } else {
                b0[j] = v_loadh((const uint16_t *) bj);
                b1[j] = v_loadh((const uint16_t *) bj + 16);
            }
        }
        _Pragma("GCC unroll 12")
        for (int r = 0; r < mr; r++) {
            xr = v_set1(x[(size_t) r * ldx + (size_t) s]);
            _Pragma("GCC unroll 4")
            for (int j = 0; j < np; j++) {
                acc[r][2 * j] = v_fma(xr, b0[j], acc[r][2 * j]);
                acc[r][2 * j + 1] = v_fma(xr, b1[j], acc[r][2 * j + 1]);
            }
        }
    }
}

/* sum = scale * acc + sum, or acc alone in fp16, of np panels. */
V_INLINE void
add_group(const int bits, const int mr, const int np, v16 acc[][8], float *sum,
    const uint8_t *scale, size_t panel)
{
    v16  s;

    _Pragma("GCC unroll 8")
    for (int j = 0; j < 2 * np; j++) {
        if (bits != 16) {
            s = v_loadh((const uint16_t *) (scale + (size_t) (j / 2) * panel) + j % 2 * 16);
        }
        _Pragma("GCC unroll 12")
        for (int r = 0; r < mr; r++) {
            float  *at = sum + (r * 2 * np + j) * 16;

            v_store(at, bits == 16 ? acc[r][j] : v_fma(s, acc[r][j], v_load(at)));
        }
    }
}

/* y = sum + bias, not past column n. */
V_INLINE void
put(const int mr, const int np, float *y, size_t ldy, const float *sum, const glm_mat_t *w, int p)
{
    _Pragma("GCC unroll 8")
    for (int j = 0; j < 2 * np; j++) {
        size_t  c = (size_t) p * GLM_PANEL + (size_t) j * 16, left = (size_t) w->n - c;
        v16     bias = w->bias != NULL ? v_load(w->bias + c) : v_zero(), v;
        float   t[16];

        if (c >= (size_t) w->n) break;
        _Pragma("GCC unroll 12")
        for (int r = 0; r < mr; r++) {
            v = v_load(sum + (r * 2 * np + j) * 16);
            if (w->bias != NULL) v = v_add(v, bias);
            if (left >= 16) {
                v_store(y + (size_t) r * ldy + c, v);
            } else {
                v_store(t, v);
                memcpy(y + (size_t) r * ldy + c, t, left * sizeof(float));
            }
        }
    }
}

/* np panels from p on; x (mr, k). */
V_INLINE void
tile(const int bits, const int mr, const int np, float *y, size_t ldy, const float *x,
    size_t ldx, const glm_mat_t *w, int p, glm_fetch_t *fetch)
{
    const int       steps = block_steps(bits), bytes = steps * GLM_PANEL * bits / 8;
    const size_t    k = (size_t) w->k, group = bits == 16 ? k : (size_t) w->group;
    const size_t    panel = glm_panel_bytes(w);
    const uint8_t  *b = (const uint8_t *) w->w + (size_t) p * panel;
    const char     *ahead = NULL;
    v16             acc[VEC_MR][8];
    float           store[VEC_MR * 2 * 4 * 16] __attribute__((aligned(64))), *sum = store;

    /* sums of groups stay in memory: registers are for acc */
    __asm__ volatile ("" : "+r" (sum) : : "memory");
    if (bits != 16) memset(sum, 0, (size_t) (mr * 2 * np * 16) * sizeof(float));

    for (size_t g = 0; g < k; g += group) {
        _Pragma("GCC unroll 12")
        for (int r = 0; r < mr; r++) {
            _Pragma("GCC unroll 8")
            for (int j = 0; j < 2 * np; j++) acc[r][j] = v_zero();
        }
        for (size_t i = g, end; i < g + group; ) {
            end = g + group - i > TILE_PIECE ? i + TILE_PIECE : g + group;
            if (mr >= TILE_BOUND) ahead = fetch_piece(fetch, x, end - i);

            for ( ; i < end; i += (size_t) steps, b += bytes, ahead += 64 * steps) {
                for (int s = 0; s < steps && mr >= TILE_BOUND; s++) {
                    __builtin_prefetch(ahead + 64 * s, 0, 2);
                }
                _Pragma("GCC unroll 4")
                for (int j = 0; j < np; j++) {
                    __builtin_prefetch(b + (size_t) j * panel + TILE_AHEAD);
                    if (bytes > 64) __builtin_prefetch(b + (size_t) j * panel + TILE_AHEAD + 64);
                }
                block(bits, mr, np, acc, b, panel, x + i, ldx);
            }
        }
        add_group(bits, mr, np, acc, sum, b, panel);
        if (bits != 16) b += GLM_PANEL * 2;
    }
    put(mr, np, y, ldy, sum, w, p);
}

typedef void (*tile_pt)(float *y, size_t ldy, const float *x, size_t ldx,
    const glm_mat_t *w, int p, glm_fetch_t *fetch);

#define TILE(bits, mr, np)                                                    \
static void                                                                   \
tile_##bits##_##mr##_##np(float *y, size_t ldy, const float *x, size_t ldx,   \
    const glm_mat_t *w, int p, glm_fetch_t *fetch)                            \
{                                                                             \
    tile(bits, mr, np, y, ldy, x, ldx, w, p, fetch);                          \
}

typedef struct { tile_pt one, wide; int np; } tiles_t;

#define USE(bits, mr, np)  { tile_##bits##_##mr##_1, tile_##bits##_##mr##_##np, np }

#if VEC_MR == 12
#define TILES(b)                                                              \
TILE(b, 1, 1) TILE(b, 2, 1) TILE(b, 3, 1) TILE(b, 4, 1) TILE(b, 5, 1)         \
TILE(b, 6, 1) TILE(b, 7, 1) TILE(b, 8, 1) TILE(b, 9, 1) TILE(b, 10, 1)        \
TILE(b, 11, 1) TILE(b, 12, 1) TILE(b, 1, 4) TILE(b, 2, 2) TILE(b, 3, 2)       \
TILE(b, 4, 2) TILE(b, 5, 2) TILE(b, 6, 2)                                     \
                                                                              \
static const tiles_t  tiles_##b[VEC_MR + 1] = {                               \
    { NULL, NULL, 1 }, USE(b, 1, 4), USE(b, 2, 2), USE(b, 3, 2), USE(b, 4, 2), \
    USE(b, 5, 2), USE(b, 6, 2), USE(b, 7, 1), USE(b, 8, 1), USE(b, 9, 1),     \
    USE(b, 10, 1), USE(b, 11, 1), USE(b, 12, 1),                              \
};
#else
#define TILES(b)                                                              \
TILE(b, 1, 1) TILE(b, 2, 1) TILE(b, 3, 1) TILE(b, 1, 2)                       \
                                                                              \
static const tiles_t  tiles_##b[VEC_MR + 1] = {                               \
    { NULL, NULL, 1 }, USE(b, 1, 2), USE(b, 2, 1), USE(b, 3, 1),              \
};
#endif

TILES(16)
TILES(8)
TILES(4)

/* Panels p0 .. p1-1 for a block of at most VEC_MR rows. */
static void
tile_row(float *y, size_t ldy, const float *x, size_t ldx, int mr, const glm_mat_t *w,
    int p0, int p1, glm_fetch_t *fetch)
{
    const tiles_t  *t = w->bits == 4 ? tiles_4 : w->bits == 8 ? tiles_8 : tiles_16;
    int             np = t[mr].np;

    for ( ; p0 + np <= p1; p0 += np) t[mr].wide(y, ldy, x, ldx, w, p0, fetch);
    for ( ; p0 < p1; p0++) t[mr].one(y, ldy, x, ldx, w, p0, fetch);
}

static void
op_linear(float *y, size_t ldy, const float *x, size_t ldx, int rows,
    const glm_mat_t *w, int p0, int p1, glm_fetch_t *fetch)
{
    int  blocks = (rows + VEC_MR - 1) / VEC_MR, group, end, r0, r1;

    group = (int) (TILE_GROUP / glm_panel_bytes(w)) / 4 * 4;
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

/* One output's values of a panel of fp16. */
static void
pack_halves(uint16_t *dst, const uint16_t *src, int32_t k)
{
    for (int32_t i = 0; i < k; i++) dst[(size_t) i * GLM_PANEL] = src[i];
}

/* The same of a group, `lane` of the panel. */
static void
pack_group(const glm_mat_t *w, uint8_t *dst, int lane, const uint8_t *src, uint16_t scale)
{
    uint32_t  word;

    if (w->bits == 8) {
        for (int32_t i = 0; i < w->group; i++, dst += GLM_PANEL) dst[lane] = src[i];
    } else {
        for (int32_t i = 0; i < w->group / 2; i += 4, dst += GLM_PANEL * sizeof(word)) {
            word = (uint32_t) src[i] << 24 | (uint32_t) src[i + 1] << 16
                   | (uint32_t) src[i + 2] << 8 | src[i + 3];
            memcpy(dst + (size_t) lane * sizeof(word), &word, sizeof(word));
        }
    }
    memcpy(dst + (size_t) lane * sizeof(scale), &scale, sizeof(scale));
}

static void
op_pack(const glm_mat_t *w, int32_t first, const void *src, const uint16_t *scale, int32_t nrows)
{
    size_t          width = (size_t) w->k * (size_t) w->bits / 8;
    const uint8_t  *from = src;

    for (int32_t o = first; o < first + nrows; o++, from += width) {
        uint8_t  *d = (uint8_t *) w->w + (size_t) (o / GLM_PANEL) * glm_panel_bytes(w);
        int       lane = o % GLM_PANEL, groups;

        if (w->bits == 16) {
            pack_halves((uint16_t *) (void *) d + lane, (const uint16_t *) (const void *) from,
                w->k);
            continue;
        }
        groups = w->k / w->group;
        for (int g = 0; g < groups; g++) {
            pack_group(w, d + (size_t) g * glm_group_bytes(w), lane,
                from + (size_t) g * (width / (size_t) groups), *scale++);
        }
    }
}
