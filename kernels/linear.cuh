/*
 * linear: what both architectures share of y = x W^T.  Work is cut in units, a
 * unit being one segment of K of one tile row (CL * kN outputs); a worker, which
 * is a CTA or a cluster of CL CTAs side by side, takes a contiguous range of
 * units.  The worker that has a tile's first segment finishes the tile: it meets
 * it at the END of its range, when the others, who met it first, published their
 * segments long ago.  Whoever computes a segment, its bits and the order of
 * addition are the same.  A pass of prefill is cut in blocks of rows as well: then
 * "tile" is a tile's outputs for one block, all tiles of a block before the next's,
 * so that workers on the same weights run side by side and share them in L2.
 */
#pragma once
#include "cuda_common.cuh"
#include "mma.cuh"
#include "tiles.cuh"

namespace {

struct Linear {
    const uint8_t  *w, *x;
    void           *y;
    const __half   *bias;
    float4         *slots;        /* [CTA][segment]: only the first tile of a range */
    int            *counters;     /* CTAs that published; of a tile; 0 between launches */
    size_t          ldy;
    int             n, tiles, groups, seg_groups, segs, rows, out, stages;
    int             strips;                       /* of CL * kN outputs */
    int             workers, share, extra;        /* units of a worker; workers with one more */
    int             block_units, block_workers;   /* of a block of rows, which are cut alike */
    uint32_t        per_seg, per_block;           /* 2^32 / segs, / block_workers, up; of 1: 0 */
};

/*
 * NT: groups of 8 rows.  WM: blocks of 16 outputs a warp.  KG: groups a stage.
 * CL: CTAs of a cluster.  MANY: NT * 8 rows at a time of a bucket of 512.  WARPS that
 * multiply: 8, or 12 on a tile and a half.
 */
template <int WT_, int NT_, int WM_, int KG_, bool WG_, int CL_ = 1, bool MANY_ = false, int WARPS_ = 8>
struct Cfg {
    static constexpr int   WT = WT_, NT = NT_, WM = WM_, KG = KG_, CL = CL_, WARPS = WARPS_;
    static constexpr bool  WG = WG_, MANY = MANY_;         /* WG: wgmma */
    static constexpr int   kThreads = WARPS * 32, kN = WM * WARPS * 16, kTile = tile_bytes(WT);
    static constexpr int   kBlock = NT < 8 ? NT * 8 : GLM_CUDA_BLOCK;    /* rows that lie together */
    static constexpr int   kBlocks = NT * 8 / kBlock, kXBlock = kBlock * kGroup * 2;  /* bytes a group */
    static constexpr int   kW = kN / 64 * KG * band_bytes(WT), kX = KG * kBlocks * kXBlock;
    static constexpr int   kStage = (kW + kX + 127) / 128 * 128;
    /* Sums of a tile that are in shared memory, as registers hold one segment only. */
    static constexpr int   kSums = WG && NT * WARPS > 64 ? WM * NT * kThreads * 16 : 0;
};

/* Of tile row t (all of a cluster): its strip of outputs, its first row. */
template <class C>
__device__ __forceinline__ int strip_of(const Linear &a, int t)
{
    return C::MANY ? t % a.strips : t;
}

template <class C>
__device__ __forceinline__ int first_row(const Linear &a, int t)
{
    return C::MANY ? t / a.strips * (C::NT * 8) : 0;
}

/* First output of a tile, which is one for a block of rows. */
template <class C>
__device__ __forceinline__ int first_output(const Linear &a, int tile)
{
    if constexpr (C::MANY) tile = strip_of<C>(a, tile / C::CL) * C::CL + tile % C::CL;
    return tile * C::kN;
}

/* No division: a worker knows where it starts before it can fetch anything. */
template <class C>
__device__ __forceinline__ int first_unit(const Linear &a, int worker)
{
    int  units = 0;

    if constexpr (C::MANY) {
        const int  block = a.per_block ? (int) __umulhi((uint32_t) worker, a.per_block) : worker;

        units = block * a.block_units;
        worker -= block * a.block_workers;
    }
    return units + worker * a.share + min(worker, a.extra);
}

/* unit / segs */
__device__ __forceinline__ int row_of(const Linear &a, int unit)
{
    return a.per_seg ? (int) __umulhi((uint32_t) unit, a.per_seg) : unit;
}

__device__ __forceinline__ int seg_of(const Linear &a, int unit)
{
    return unit - row_of(a, unit) * a.segs;
}

/* This CTA's tile of a unit. */
template <class C>
__device__ __forceinline__ int tile_of(const Linear &a, int unit)
{
    return row_of(a, unit) * C::CL + blockIdx.x % C::CL;
}

/* Groups before a unit, counted over all tiles. */
__device__ __forceinline__ int first_group(const Linear &a, int unit)
{
    return row_of(a, unit) * a.groups + seg_of(a, unit) * a.seg_groups;
}

template <class C>
__device__ __forceinline__ void consumers_sync()
{
    asm volatile("bar.sync 1, %0;" ::"n"(C::kThreads) : "memory");
}

template <class C>
__device__ __forceinline__ void zero(float (&v)[C::WM][C::NT][4])
{
#pragma unroll
    for (int i = 0; i < C::WM * C::NT * 4; i++) (&v[0][0][0])[i] = 0.f;
}

/* sum += scale * group */
template <int NT>
__device__ __forceinline__ void add_group(float (&sum)[NT][4], const float (&p)[NT][4], float2 s)
{
#pragma unroll
    for (int b = 0; b < NT; b++) {
#pragma unroll
        for (int e = 0; e < 4; e++) sum[b][e] = fmaf(e < 2 ? s.x : s.y, p[b][e], sum[b][e]);
    }
}

/* First of the 16 outputs of block m of this warp; a warpgroup owns 64 in a row. */
template <class C>
__device__ __forceinline__ int block_of(int warp, int m)
{
    return C::WG ? (warp / 4 * C::WM + m) * 4 + warp % 4 : warp * C::WM + m;
}

__device__ __forceinline__ float gelu(float u)
{
    return 0.5f * u * (1.f + erff(u * 0.70710678118654752f));
}

/* v += bias */
__device__ __forceinline__ void add_bias(const __half *bias, float (&v)[8])
{
    float  f[8];

    unpack8(__ldg((const uint4 *) bias), f);
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] += f[i];
}

template <class C>
__device__ __forceinline__ void store(const Linear &a, int tile, float (&v)[C::WM][C::NT][4])
{
    const int  warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const int  row0 = first_row<C>(a, tile / C::CL), n0 = first_output<C>(a, tile);

#pragma unroll
    for (int m = 0; m < C::WM; m++) {
        const int  o0 = n0 + block_of<C>(warp, m) * 16;

        if (o0 >= a.n) continue;
        if (a.out == GLM_OUT_GLU) {
            const int    i = o0 / 2 + g;                   /* u1; its gate is n / 2 on */
            const float  b1 = a.bias ? __half2float(a.bias[i]) : 0.f;
            const float  b2 = a.bias ? __half2float(a.bias[a.n / 2 + i]) : 0.f;

#pragma unroll
            for (int b = 0; b < C::NT; b++) {
                /* piece_at(), but for what is the same in all rows of a block */
                const size_t  block = (size_t) (row0 / C::kBlock + b / 8) * (a.n / 16) + o0 / 16;
                __half       *y = (__half *) a.y + (block * C::kBlock + b % 8 * 8 + t * 2) * 8 + g;

#pragma unroll
                for (int e = 0; e < 2; e++)
                    y[e * 8] = __float2half_rn((v[m][b][e] + b1) * gelu(v[m][b][e + 2] + b2));
            }
            continue;
        }
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int    o = o0 + h * 8 + g;
            const float  bias = a.bias && o < a.n ? __half2float(a.bias[o]) : 0.f;

#pragma unroll
            for (int b = 0; b < C::NT; b++) {
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    const int     row = row0 + b * 8 + t * 2 + e;
                    const size_t  at = (size_t) row * a.ldy + o;
                    const float   y = v[m][b][h * 2 + e] + bias;

                    if (row >= a.rows || o >= a.n) continue;
                    if (a.out == GLM_OUT_F32) ((float *) a.y)[at] = y;
                    else ((__half *) a.y)[at] = __float2half_rn(y);
                }
            }
        }
    }
}

/* Of the CTA that has this one's place in a worker. */
template <class C>
__device__ __forceinline__ float4 *slot(const Linear &a, int worker, int seg)
{
    const int  cta = worker * C::CL + blockIdx.x % C::CL;

    return a.slots + ((size_t) cta * kSegments + seg) * (C::WM * C::NT * C::kThreads);
}

/* What this CTA has of the tile is published, by threads that this one has met. */
__device__ __forceinline__ void count(const Linear &a, int tile)
{
    asm volatile("fence.acq_rel.gpu;\nred.relaxed.gpu.global.add.s32 [%0], 1;" ::"l"(a.counters + tile)
                 : "memory");
}

/* last: this CTA's last segment of the tile; one fence then covers them all. */
template <class C>
__device__ __forceinline__ void publish(const Linear &a, int tile, int seg, bool last,
                                        float (&v)[C::WM][C::NT][4])
{
    float4  *mine = slot<C>(a, blockIdx.x / C::CL, seg) + threadIdx.x;

#pragma unroll
    for (int i = 0; i < C::WM * C::NT; i++) {
        const float  *f = &v[0][0][0] + i * 4;

        mine[i * C::kThreads] = make_float4(f[0], f[1], f[2], f[3]);
    }
    if (!last) return;
    consumers_sync<C>();
    if (threadIdx.x == 0) count(a, tile);
}

/*
 * What later workers publish of the tile that this one finishes.  Where registers
 * allow it is fetched before the last unit, if it is there by then (as a rule it
 * is), so that the kernel's end does not wait for L2.  Not before the first one, when
 * the kernel in front may still count and publish in the same places: activations are
 * there from the second on, and so it has ended.  Every thread looks for itself.
 * Waiting cannot hang: a multiprocessor has one CTA at least, so all workers run at once.
 */
template <class C>
struct Late {
    static constexpr int   kN = C::WM * C::NT;
    static constexpr bool  kEarly = kN <= 2;

    float4  v[kEarly ? kSegments - 1 : 1][kEarly ? kN : 1];
    bool    have = false;

    __device__ __forceinline__ static bool published(const Linear &a, int unit, int tile)
    {
        const int  worker = blockIdx.x / C::CL, end = unit - seg_of(a, unit) + a.segs;
        int        last = worker, seen;

        while (first_unit<C>(a, last + 1) < end) last++;
        asm volatile("ld.acquire.gpu.global.s32 %0, [%1];"
                     : "=r"(seen) : "l"(a.counters + tile) : "memory");
        return seen == last - worker;
    }

    /* What was published of segment seg of the unit's tile. */
    __device__ __forceinline__ static const float4 *segment(const Linear &a, int unit, int seg)
    {
        const int  u = unit - seg_of(a, unit) + seg;
        int        worker = blockIdx.x / C::CL + 1;

        while (first_unit<C>(a, worker + 1) <= u) worker++;
        return slot<C>(a, worker, seg) + threadIdx.x;
    }

    __device__ __forceinline__ void fetch(const Linear &a, int unit)
    {
#pragma unroll
        for (int j = 0; j < kSegments - 1; j++) {
            if (seg_of(a, unit) + 1 + j >= a.segs) break;
            const float4  *from = segment(a, unit, seg_of(a, unit) + 1 + j);

#pragma unroll
            for (int i = 0; i < kN; i++) v[j][i] = __ldcg(from + i * C::kThreads);
        }
    }

    /* Before the unit is computed. */
    __device__ __forceinline__ void look(const Linear &a, int unit, int u0, int u1)
    {
        const int  seg = seg_of(a, unit);

        have = false;
        if (!kEarly || unit == u0 || unit + 1 < u1 || seg + 1 == a.segs || unit - seg < u0) return;
        have = published(a, unit, tile_of<C>(a, unit));
        if (have) fetch(a, unit);
    }

    __device__ __forceinline__ static void add(float *sum, float4 p)
    {
        sum[0] += p.x, sum[1] += p.y, sum[2] += p.z, sum[3] += p.w;
    }

    __device__ __forceinline__ void gather(const Linear &a, int unit, int tile,
                                           float (&sum)[C::WM][C::NT][4])
    {
        float  *to = &sum[0][0][0];

        if (!have) while (!published(a, unit, tile)) {}
        if constexpr (kEarly) {
            if (!have) fetch(a, unit);
#pragma unroll
            for (int j = 0; j < kSegments - 1; j++) {
                if (seg_of(a, unit) + 1 + j >= a.segs) break;
#pragma unroll
                for (int i = 0; i < kN; i++) add(to + i * 4, v[j][i]);
            }
        } else {
            for (int seg = seg_of(a, unit) + 1; seg < a.segs; seg++) {
                const float4  *from = segment(a, unit, seg);

#pragma unroll
                for (int i = 0; i < kN; i++) add(to + i * 4, __ldcg(from + i * C::kThreads));
            }
        }
    }
};

/* The worker's last unit of a tile that others go on with. */
template <class C>
__device__ __forceinline__ void finish(const Linear &a, int unit, int tile,
                                       float (&sum)[C::WM][C::NT][4], Late<C> &late)
{
    late.gather(a, unit, tile, sum);
    store<C>(a, tile, sum);
    consumers_sync<C>();                 /* all have seen the counter */
    if (threadIdx.x == 0) a.counters[tile] = 0;
}

/* End of a unit, of this CTA's last or not: acc is its segment, sum what the CTA has of the tile. */
template <class C>
__device__ __forceinline__ void settle(const Linear &a, int unit, int u0, bool last,
                                       float (&acc)[C::WM][C::NT][4],
                                       float (&sum)[C::WM][C::NT][4], Late<C> &late)
{
    const int  seg = seg_of(a, unit), tile = tile_of<C>(a, unit);

    if (unit - seg < u0) {
        publish<C>(a, tile, seg, seg + 1 == a.segs || last, acc);
        return;
    }
#pragma unroll
    for (int i = 0; i < C::WM * C::NT * 4; i++) {
        float  *s = &sum[0][0][0] + i, v = (&acc[0][0][0])[i];

        *s = seg == 0 ? v : *s + v;
    }
    if (seg + 1 == a.segs) store<C>(a, tile, sum);
    else if (last) finish<C>(a, unit, tile, sum, late);
}

/*
 * One stage by mma.sync: sw its weights [WM][KG] tiles, then x [KG][16][R][8].  The
 * chains of its groups run side by side: one alone waits for each product.
 */
template <class C>
__device__ __forceinline__ void mma_stage(const uint8_t *sw, const Share<C::WT> &mine,
                                          float (&acc)[C::WM][C::NT][4])
{
    static_assert(C::WM == 1 || C::KG == 1, "a warp's outputs lie together");
    constexpr int   NT = C::NT, NB = NT == 1 ? 4 : 2 * NT;
    const uint32_t  sx = smem_addr(sw + C::kW) + threadIdx.x % 32 * 16;
    float           p[C::KG][C::WM][NT][4];

#pragma unroll
    for (int kg = 0; kg < C::KG; kg++) zero<C>(p[kg]);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        uint32_t  a[C::KG][C::WM][4][4];

#pragma unroll
        for (int kg = 0; kg < C::KG; kg++) {
#pragma unroll
            for (int m = 0; m < C::WM; m++)
                fragments<C::WT>(sw + mine.w + kg * C::kTile + sub_at(C::WT, m), half, a[kg][m]);
        }
#pragma unroll
        for (int j = 0; j < 4; j += NT == 1 ? 2 : 1) {
            uint32_t  b[C::KG][NB];

#pragma unroll
            for (int kg = 0; kg < C::KG; kg++) {
#pragma unroll
                for (int i = 0; i < NB; i += 4)
                    ldmatrix(b[kg] + i, sx + (kg * 8 + half * 4 + j) * NT * 256 + i * 128);
            }
#pragma unroll
            for (int s = 0; s < (NT == 1 ? 2 : 1); s++) {
#pragma unroll
                for (int m = 0; m < C::WM; m++) {
#pragma unroll
                    for (int i = 0; i < NT; i++) {
#pragma unroll
                        for (int kg = 0; kg < C::KG; kg++)
                            mma(p[kg][m][i], a[kg][m][j + s], b[kg][NT == 1 ? 2 * s : i],
                                b[kg][NT == 1 ? 2 * s + 1 : NT + i]);
                    }
                }
            }
        }
    }
#pragma unroll
    for (int kg = 0; kg < C::KG; kg++) {
#pragma unroll
        for (int m = 0; m < C::WM; m++)
            add_group<NT>(acc[m], p[kg][m], scales<C::WT>(sw + mine.s + kg * C::kTile + m * 32));
    }
}

/* Biases of this CTA's outputs, from far, on their way to L2. */
template <class C>
__device__ __forceinline__ void fetch_bias(const Linear &a, int u0, int u1)
{
    /* 64 of fp16, but half of that where a GLU's 96 outputs are no whole lines. */
    constexpr int  kLine = C::kN % 128 ? 32 : 64, kLines = C::kN / kLine;
    const int      t0 = row_of(a, u0), n = (row_of(a, u1 - 1) - t0 + 1) * kLines;

    if (a.bias == nullptr) return;
    for (int i = threadIdx.x; i < n; i += C::kThreads) {
        const int  tile = strip_of<C>(a, t0 + i / kLines) * C::CL + blockIdx.x % C::CL;
        const int  part = i % kLines, half = kLines / 2;
        const int  o = a.out == GLM_OUT_GLU
                           ? part / half * (a.n / 2) + tile * (C::kN / 2) + part % half * kLine
                           : tile * C::kN + part * kLine;

        if (o < a.n) asm volatile("prefetch.global.L2 [%0];" ::"l"(a.bias + o));
    }
}

template <class C>
void linear_args(Linear *l, const glm_linear_args_t *a, const glm_stream_t *s)
{
    const int           ctas = a->ctas && a->ctas < s->sms ? a->ctas : s->sms;
    int                 blocks = 1, units, most, share;
    const glm_tiles_t  *w = a->w;

    l->w = (const uint8_t *) w->tiles;
    l->x = (const uint8_t *) a->x;
    l->y = a->y;
    l->bias = (const __half *) w->bias;
    l->counters = (int *) a->ws;
    l->slots = (float4 *) ((uint8_t *) a->ws + kCounterBytes);
    l->ldy = a->ldy;
    l->n = w->n;
    l->groups = w->k / kGroup;
    l->seg_groups = segment_groups(l->groups);
    l->segs = segment_count(l->groups);
    l->strips = (w->n + C::CL * C::kN - 1) / (C::CL * C::kN);
    units = l->strips * l->segs;
    if (C::MANY) blocks = (a->rows + C::NT * 8 - 1) / (C::NT * 8);
    l->tiles = (w->n + 127) / 128;
    most = ctas / C::CL > 0 ? ctas / C::CL : 1;
    if (blocks > most) units *= blocks, blocks = 1;
    /*
     * As few workers as do not add to the largest share: with 132 multiprocessors that is
     * 128 CTAs at GLM's shapes, all with equal shares.  Each block of rows is cut alike:
     * then those on the same weights are at the same place at any time, and L2 has it.
     */
    share = (units + most / blocks - 1) / (most / blocks);
    l->block_units = units;
    l->block_workers = (units + share - 1) / share;
    l->workers = l->block_workers * blocks;
    l->share = units / l->block_workers;
    l->extra = units % l->block_workers;
    l->per_block = l->block_workers > 1 ? UINT32_MAX / (uint32_t) l->block_workers + 1 : 0;
    l->per_seg = l->segs > 1 ? UINT32_MAX / (uint32_t) l->segs + 1 : 0;
    l->rows = a->rows;
    l->out = a->out;
}

inline bool tiles_ok(const glm_tiles_t *w)
{
    return w->k >= 256 && w->k % 256 == 0 && w->n >= 8 && w->n % 8 == 0 && w->n <= kMaxTiles * 128
           && w->type >= GLM_W_INT4 && w->type <= GLM_W_F16 && w->tiles && aligned16(w->tiles)
           && aligned16(w->bias);
}

inline bool linear_ok(const glm_linear_args_t *a)
{
    const glm_tiles_t  *w = a->w;

    if (w == NULL || !tiles_ok(w)) return false;
    if ((w->glu != 0) != (a->out == GLM_OUT_GLU) || (w->glu && w->n % 16)) return false;
    if (a->out < GLM_OUT_F32 || a->out > GLM_OUT_GLU || !bucket_ok(a->rows, a->bucket)) return false;
    if (a->out != GLM_OUT_GLU && (a->ldy < (size_t) w->n || a->ldy % 8)) return false;
    return a->x && a->y && a->ws && aligned16(a->x)
           && aligned16(a->y) && aligned16(a->ws) && a->ring >= 0 && a->ctas >= 0
           && (a->block == 0 || a->block == 64 || a->block == 128);
}

}  // namespace
