/*
 * linear (sm_90a): y[rows][n] = x W^T for 1..512 rows.  One warp streams
 * tiles and activations with cp.async.bulk into a ring in shared memory; eight
 * warps dequantise in registers and multiply, weights as the matrix unit's row
 * operand: to 8 rows mma.sync; from 16 on wgmma, two CTAs a cluster that fetches
 * activations once; 64 rows twelve warps, a tile and a half for the same activations.
 * All give the same bits.  With dependent launch the ring fills
 * with weights before the previous kernel ends.  A pass of prefill (bucket 512) is
 * worked on 64 rows at a time, as decode's 64, or 128: weights are dequantised half as
 * often, the sums of a tile in shared memory.
 * An ideal run reads the tiles once: n * k / 2 + n * k / 64 bytes (int4).
 */
#include "cluster.cuh"
#include "linear.cuh"
#include "wgmma.cuh"

namespace {

constexpr int  kMaxStages = 16;
constexpr int  kMaxRing = 226 * 1024;

/* A warp frees a stage, in every CTA of the cluster: a lane each, bar is that CTA's. */
template <int CL>
__device__ __forceinline__ void bar_arrive(uint32_t bar)
{
    if (threadIdx.x % 32 >= CL) return;
    if constexpr (CL == 1)
        bar_arrive(bar);
    else
        asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(bar) : "memory");
}

__device__ __forceinline__ void bulk(uint32_t dst, const void *src, int bytes, uint32_t bar)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], "
                 "%2, [%3];" ::"r"(dst), "l"(src), "r"(bytes), "r"(bar)
                 : "memory");
}

/* To the same place in all CTAs of the cluster. */
template <int CL>
__device__ __forceinline__ void bulk_all(uint32_t dst, const void *src, int bytes, uint32_t bar)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes."
                 "multicast::cluster [%0], [%1], %2, [%3], %4;" ::"r"(dst), "l"(src),
                 "r"(bytes), "r"(bar), "h"((uint16_t) ((1 << CL) - 1)) : "memory");
}

/* Read once: leaves L2 first (the constant evict-first policy). */
__device__ __forceinline__ void bulk_stream(uint32_t dst, const void *src, int bytes, uint32_t bar)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes."
                 "L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(dst), "l"(src),
                 "r"(bytes), "r"(bar), "l"(0x12F0000000000000ull) : "memory");
}

/*
 * True in one thread of a whole warp.  To be asked where it is needed: a condition kept from
 * before does not tell ptxas that one thread at most is there, and it makes a loop over
 * threads of every copy.
 */
__device__ __forceinline__ bool one_of_warp()
{
    uint32_t  one;

    asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.u32 %0, 1, 0, p;\n}" : "=r"(one));
    return one;
}

/* A place in the ring; at: of its stage, in 16 bytes. */
template <class C>
struct Turn {
    int       st, ph;
    uint32_t  at;

    __device__ __forceinline__ void next(int stages)
    {
        st++, at += C::kStage / 16;
        if (st == stages) st = 0, at = 0, ph ^= 1;
    }
};

/* What the stages of a CTA's range hold, one after the other: groups of its tiles in order. */
template <class C>
struct Source {
    static constexpr int   kPart = C::KG * C::kXBlock / C::CL;     /* of activations, this CTA's */
    static constexpr bool  kSplit = C::kN % kGroup != 0;           /* a tile and a half */
    static_assert(!kSplit || (C::CL == 2 && C::KG == 1), "one of two CTAs begins with the half");

    const uint8_t  *w, *w2, *x;           /* w2: of the second tile, if kSplit */
    int             row, left;            /* tile row; groups left of it */

    __device__ __forceinline__ void start(const Linear &a, int rank, int unit)
    {
        enter(a, rank, row_of(a, unit), seg_of(a, unit) * a.seg_groups);
    }

    __device__ __forceinline__ void enter(const Linear &a, int rank, int row_, int group)
    {
        const int  band = (strip_of<C>(a, row_) * C::CL + rank) * (C::kN / 64);

        row = row_;
        left = a.groups - group;
        w = of_tile(a, band / 2, group);
        if constexpr (kSplit) w += band % 2 * (C::kTile / 2), w2 = of_tile(a, band / 2 + 1, group);
        x = a.x + ((size_t) (first_row<C>(a, row) / C::kBlock) * a.groups + group) * C::kXBlock
            + kPart * rank;
    }

    /* Past the end: any. */
    __device__ __forceinline__ static const uint8_t *of_tile(const Linear &a, int tile, int group)
    {
        return a.w + ((size_t) min(tile, a.tiles - 1) * a.groups + group) * C::kTile;
    }

    __device__ __forceinline__ void next(const Linear &a, int rank)
    {
        w += C::KG * C::kTile;
        if constexpr (kSplit) w2 += C::KG * C::kTile;
        x += C::KG * C::kXBlock;
        left -= C::KG;
        if (left == 0) enter(a, rank, row + 1, 0);
    }
};

/*
 * The copying warp: every stage of this CTA's range, in order.  One thread issues; the
 * others go along, so that all addresses are the warp's and lie in uniform registers.
 * A stage has few cycles: with a division, and addresses of a lane's own, this warp
 * was what all others waited for.
 */
template <class C>
struct Producer {
    static_assert(C::WM == 1 && (C::kBlocks == 1 || (C::KG == 1 && C::CL > 1)),
                  "a tile a group; blocks of activations lie a group apart");

    Source<C>  from;
    uint32_t   smem, full, empty;
    int        rank, n, pre;

    __device__ __forceinline__ void weights(const Source<C> &s, int st)
    {
        if (!one_of_warp()) return;
        bar_expect(full + st * 8, C::kW + C::kX);
        if constexpr (s.kSplit) {
            const int  first = C::kTile / 2 * (2 - rank);      /* of its three bands */

            bulk_stream(smem + st * C::kStage, s.w, first, full + st * 8);
            bulk_stream(smem + st * C::kStage + first, s.w2, C::kW - first, full + st * 8);
        } else if constexpr (C::MANY) {
            bulk(smem + st * C::kStage, s.w, C::kW, full + st * 8);
        } else {
            bulk_stream(smem + st * C::kStage, s.w, C::kW, full + st * 8);
        }
    }

    __device__ __forceinline__ void activations(const Linear &a, const Source<C> &s, int st)
    {
        const uint32_t  to = smem + st * C::kStage + C::kW + s.kPart * rank;

        if (!one_of_warp()) return;
#pragma unroll
        for (int b = 0; b < C::kBlocks; b++) {
            const uint8_t  *x = s.x + (size_t) b * a.groups * C::kXBlock;

            if constexpr (C::CL == 1) bulk(to, x, s.kPart, full + st * 8);
            else bulk_all<C::CL>(to + b * C::KG * C::kXBlock, x, s.kPart, full + st * 8);
        }
    }

    /* Barriers, and the ring's first weights: they are constant, activations are not. */
    __device__ __forceinline__ void begin(const Linear &a, int u0)
    {
        if (one_of_warp()) {
            for (int i = 0; i < a.stages; i++) {
                bar_init(full + i * 8, 1);
                bar_init(empty + i * 8, C::WARPS * C::CL);
            }
            bar_init_done();
        }
        __syncwarp();
        from.start(a, rank, u0);
#pragma unroll 1
        for (int i = 0; i < pre; i++) {
            weights(from, i);
            from.next(a, rank);
        }
        __syncwarp();
    }

    /* The rest, when every CTA of the cluster has its barriers. */
    __device__ __forceinline__ void go_on(const Linear &a, int u0)
    {
        Turn<C>    t = {0, 0, 0};
        Source<C>  first;

        first.start(a, rank, u0);
        grid_wait();
#pragma unroll 1
        for (int i = 0; i < pre; i++) {
            activations(a, first, i);
            first.next(a, rank);
        }
        __syncwarp();
#pragma unroll 1
        for (int i = pre; i < n; i++) {
            bar_wait(empty + t.st * 8, t.ph);
            weights(from, t.st);
            activations(a, from, t.st);
            from.next(a, rank);
            t.next(a.stages);
        }
        if constexpr (C::CL > 1) leave(a, t);
    }

    /* Not before the other CTA has freed every stage: it does so here. */
    __device__ __forceinline__ void leave(const Linear &a, Turn<C> t)
    {
#pragma unroll 1
        for (int i = 0; i < pre; i++) {
            bar_wait(empty + t.st * 8, t.ph);
            t.next(a.stages);
        }
    }
};

/*
 * What wgmma works on after its instruction is issued: fragments, scales and sums of two
 * groups in turn.  With 128 rows, or twelve warps, registers hold the sums of one.
 */
template <class C>
struct Flight {
    static constexpr int   kSums = C::kSums > 0 ? 1 : 2;

    uint32_t  f[2][8][4];
    float2    s[2];
    float     p[kSums][C::NT][4];

    __device__ __forceinline__ float (&sums(int i))[C::NT][4] { return p[i % kSums]; }
};

/* Group I from its tile. */
template <class C, int I>
__device__ __forceinline__ void dequantise(const uint8_t *w, const Share<C::WT> &mine, Flight<C> &g)
{
    static_assert(C::WM == 1 && C::KG <= 2, "one block of outputs a warpgroup, a pair of groups");
    fragments<C::WT>(w + mine.w, 0, *(uint32_t (*)[4][4]) g.f[I][0]);
    fragments<C::WT>(w + mine.w, 1, *(uint32_t (*)[4][4]) g.f[I][4]);
    g.s[I] = scales<C::WT>(w + mine.s);
}

/*
 * The descriptor of activations in shared memory at x, its low word: K-major, no swizzle,
 * 8 x 16-byte core matrices, kBlock * 16 bytes apart along k and 128 along rows.
 */
template <class C>
__device__ __forceinline__ uint32_t descriptor(uint32_t x)
{
    x &= 0x3ffff;                                  /* without the CTA's place in the cluster */
    return x / 16 + ((uint32_t) C::kBlock << 16);
}

/* Issues group I by wgmma; x: the descriptor of its activations. */
template <class C, int I>
__device__ __forceinline__ void issue(uint32_t x, Flight<C> &g)
{
    constexpr uint32_t  kHigh = 128 / 16;
    constexpr int       kRows = C::kBlock / 8, kFirst = Flight<C>::kSums == 1 ? kZeroInPlace : kZero;

    wgmma_fence();
#pragma unroll
    for (int j = 0; j < 8; j++) {
#pragma unroll
        for (int b = 0; b < C::kBlocks; b++) {
            const uint32_t  low = x + (b * C::kXBlock + j * C::kBlock * 32) / 16;

            if (j == 0) wgmma<C::kBlock, kFirst>(&g.sums(I)[b * kRows][0], g.f[I][j], low, kHigh);
            else wgmma<C::kBlock, kAdd>(&g.sums(I)[b * kRows][0], g.f[I][j], low, kHigh);
        }
    }
    wgmma_commit();
}

/* Waits for group I. */
template <class C, int I>
__device__ __forceinline__ void land(Flight<C> &g)
{
    wgmma_wait<0, C::NT * 4>(&g.sums(I)[0][0]);
}

/* The ring as consumers see it; empty: in the CTA of the cluster that this lane tells; x: the
 * descriptor of stage 0. */
struct Ring {
    const uint8_t  *smem;
    uint32_t        full, empty, x;
    int             stages;
};

/*
 * Units u0 .. u1 - 1 by wgmma; of each an even number of groups.  A group is dequantised,
 * and the one before it added, while the tensor cores work on the one in between.  That is
 * a block of its own between branches, for the odd group by a condition that always
 * holds: in one block with the wait for the group in between, ptxas would put it behind
 * that wait.  The end of a unit comes while the first group of the next one is at work,
 * where it is short enough for the middle of this loop (kSums); else the caller goes from
 * unit to unit.  With a way past the loop (for, while) ptxas would wait for each product.
 * settle(unit, last): acc is its segment.  A stage has both groups of a pair (KG), and is
 * waited for and freed once, or one.
 */
template <class C, class Settle>
__device__ __forceinline__ void wgmma_units(const Linear &a, const Ring &r, const Share<C::WT> &mine,
                                            int u0, int u1, Turn<C> &turn, Flight<C> &g,
                                            float (&acc)[C::WM][C::NT][4], Settle settle)
{
    constexpr bool  kLate = Flight<C>::kSums == 2;         /* added after the next is issued */
    constexpr bool  kPair = C::KG == 2;
    const int       groups = first_group(a, u1) - first_group(a, u0);
    uint32_t        stage = 0;

    auto ready = [&] { bar_wait(r.full + turn.st * 8, turn.ph); };
    auto w = [&](int i) { return r.smem + turn.at * 16 + (kPair ? i * C::kTile : 0); };
    auto x = [&](int i) { return r.x + turn.at + (kPair ? i * (C::kXBlock / 16) : 0); };
    auto go = [&] { stage = r.empty + turn.st * 8, turn.next(r.stages); };
    auto add = [&](int i) { add_group<C::NT>(acc[0], g.sums(i), g.s[i]); };
    auto in = [&](int unit) { return first_group(a, unit + 1) - first_group(a, unit); };

    zero<C>(*(float (*)[1][C::NT][4]) g.sums(1));          /* nothing to add before the first */
    zero<C>(acc);
    g.s[1] = make_float2(0.f, 0.f);
    ready();
    dequantise<C, 0>(w(0), mine, g);
    [[maybe_unused]] int  u = u0, left = in(u0);
    int                   i = 0;

    do {
        land<C, 1>(g);
        if (i > 0) bar_arrive<C::CL>(stage);
        if (!kLate) add(1);
        issue<C, 0>(x(0), g);
        if (!kPair) go();
        if constexpr (C::kSums > 0) {
            static_assert(!kLate, "the unit's last group is added");
            if (left == 0) {
                settle(u++, false);
                zero<C>(acc);
                left = in(u);
            }
            left -= 2;
        }
        if (i + 1 < groups) {
            if (kLate) add(1);
            if (!kPair) ready();
            dequantise<C, 1>(w(1), mine, g);
        }
        land<C, 0>(g);
        if (!kPair) bar_arrive<C::CL>(stage);
        if (!kLate) add(0);
        issue<C, 1>(x(1), g);
        go();
        if (i + 2 < groups) {
            if (kLate) add(0);
            ready();
            dequantise<C, 0>(w(0), mine, g);
        }
        i += 2;
    } while (i < groups);
    if (kLate) add(0);
    land<C, 1>(g);
    bar_arrive<C::CL>(stage);
    add(1);
    settle(u1 - 1, true);
}

template <class C>
__device__ __forceinline__ void mma_segment(const Ring &r, const Share<C::WT> &mine, int stages,
                                            Turn<C> &turn, float (&acc)[C::WM][C::NT][4])
{
    for (int i = 0; i < stages; i++) {
        bar_wait(r.full + turn.st * 8, turn.ph);
        mma_stage<C>(r.smem + turn.at * 16, mine, acc);
        __syncwarp();
        bar_arrive<C::CL>(r.empty + turn.st * 8);
        turn.next(r.stages);
    }
}

constexpr int  kOthers = 96;

/* Eight outputs of a row, from o on. */
__device__ __forceinline__ void put8(const Linear &a, int row, int o, float (&v)[8])
{
    if (row >= a.rows || o >= a.n) return;
    if (a.bias) add_bias(a.bias + o, v);
    if (a.out == GLM_OUT_F32) {
        float4  *y = (float4 *) ((float *) a.y + (size_t) row * a.ldy + o);

        y[0] = make_float4(v[0], v[1], v[2], v[3]);
        y[1] = make_float4(v[4], v[5], v[6], v[7]);
    } else {
        *(uint4 *) ((__half *) a.y + (size_t) row * a.ldy + o) = float8_half8(v);
    }
}

/* Eight u1 of a row, the first i, with their gates: a piece of 16 bytes, block rows apart. */
__device__ __forceinline__ void put8_glu(const Linear &a, uint4 *y, int i, float (&u)[8], float (&gate)[8])
{
    if (a.bias) add_bias(a.bias + i, u), add_bias(a.bias + a.n / 2 + i, gate);
#pragma unroll
    for (int g = 0; g < 8; g++) u[g] *= gelu(gate[g]);
    *y = float8_half8(u);
}

/*
 * Sums of a CTA's outputs in shared memory, [NT][consumer]: what the end of a unit adds to.  The
 * three warps beside the copying one publish or store what is complete, while consumers go
 * on with the next unit; nobody goes on after the last, and consumers store it.
 */
template <class C>
struct Sums {
    static constexpr int  kBoth = C::kThreads + kOthers;

    __device__ __forceinline__ static float4 *place(const Linear &a)
    {
        extern __shared__ __align__(128) uint8_t  smem[];

        return (float4 *) (smem + a.stages * C::kStage);
    }

    /* Complete, or others', after this unit. */
    __device__ __forceinline__ static bool handed(const Linear &a, int unit, int u0)
    {
        const int  seg = seg_of(a, unit);

        return seg + 1 == a.segs || unit - seg < u0;
    }

    /* Adds what is there. */
    __device__ __forceinline__ static void add(const Linear &a, float (&acc)[C::NT][4])
    {
        const float4  *s = place(a) + threadIdx.x;

#pragma unroll
        for (int i = 0; i < C::NT; i++) Late<C>::add(acc[i], s[i * C::kThreads]);
    }

    __device__ __forceinline__ static void put(const Linear &a, const float (&acc)[C::NT][4])
    {
        float4  *s = place(a) + threadIdx.x;

#pragma unroll
        for (int i = 0; i < C::NT; i++)
            s[i * C::kThreads] = make_float4(acc[i][0], acc[i][1], acc[i][2], acc[i][3]);
    }

    /* A consumer's end of a unit. */
    __device__ __forceinline__ static void settle(const Linear &a, int unit, int u0, bool last,
                                                  float (&acc)[C::WM][C::NT][4], Late<C> &late)
    {
        const int  seg = seg_of(a, unit), tile = tile_of<C>(a, unit);

        if (unit > u0 && handed(a, unit - 1, u0))
            asm volatile("bar.sync 3, %0;" ::"n"(kBoth) : "memory");       /* the others are done with it */
        if (unit - seg >= u0 && seg > 0) add(a, acc[0]);
        if (!last) {
            put(a, acc[0]);
            if (handed(a, unit, u0)) asm volatile("bar.arrive 2, %0;" ::"n"(kBoth) : "memory");
            return;
        }
        if (unit - seg < u0) {
            publish<C>(a, tile, seg, true, acc);
            return;
        }
        if (seg + 1 < a.segs) late.gather(a, unit, tile, acc);
        put(a, acc[0]);
        consumers_sync<C>();
        if (seg + 1 < a.segs && threadIdx.x == 0) a.counters[tile] = 0;    /* all have seen it */
        store_all(a, tile, threadIdx.x, C::kThreads);
    }

    /*
     * Of a row and half of a warp's outputs, or u1 or gates: every 16th value.  Odd warps
     * begin with the second, so that a read of 32 lanes has each bank once (of a GLU twice).
     */
    __device__ __forceinline__ static void take8(const float *s, int warp, float (&v)[8])
    {
        const int  odd = warp & 1;

#pragma unroll
        for (int g = 0; g < 8; g += 2) {
            const float  x = s[(g + odd) * 16], y = s[(g + 1 - odd) * 16];

            v[g] = odd ? y : x, v[g + 1] = odd ? x : y;
        }
    }

    /* Row of a tile, outputs next to each other: whole sectors.  Rows and halves as in store(). */
    __device__ __forceinline__ static void store_all(const Linear &a, int tile, int thread, int threads)
    {
        const int  row0 = first_row<C>(a, tile / C::CL), n0 = first_output<C>(a, tile);

        if (a.out == GLM_OUT_GLU) {
            for (int i = thread; i < C::NT * C::WARPS * 8; i += threads) {
                const int     b = i / (C::WARPS * 8), warp = i / 8 % C::WARPS, o0 = n0 + warp * 16;
                const int     row = row0 + b * 8 + i % 8;
                const float  *s = (const float *) (place(a) + b * C::kThreads + warp * 32)
                                  + i % 8 / 2 * 4 + i % 2;
                float         u[8], gate[8];

                if (o0 >= a.n) continue;
                take8(s, warp, u), take8(s + 2, warp, gate);
                put8_glu(a, (uint4 *) a.y + piece_at(a.n / 16, o0 / 16, row, GLM_CUDA_PREFILL_ROWS), o0 / 2, u,
                         gate);
            }
            return;
        }
        for (int i = thread; i < C::NT * C::WARPS * 16; i += threads) {
            const int  b = i / (C::WARPS * 16), warp = i / 16 % C::WARPS;
            const int  row = row0 + b * 8 + i % 16 / 4 * 2 + i % 2;
            float      v[8];

            take8((const float *) (place(a) + b * C::kThreads + warp * 32) + i % 16, warp, v);
            put8(a, row, n0 + warp * 16 + i / 2 % 2 * 8, v);
        }
    }

    __device__ __forceinline__ static void publish_all(const Linear &a, int unit, int thread)
    {
        const int  seg = seg_of(a, unit);
        float4    *to = slot<C>(a, blockIdx.x / C::CL, seg);

#pragma unroll 4
        for (int i = thread; i < C::NT * C::kThreads; i += kOthers) to[i] = place(a)[i];
        if (seg + 1 < a.segs) return;
        asm volatile("bar.sync 4, %0;" ::"n"(kOthers) : "memory");
        if (thread == 0) count(a, tile_of<C>(a, unit));
    }

    /* The other warps' part; thread: 0 .. kOthers - 1. */
    __device__ __forceinline__ static void follow(const Linear &a, int u0, int u1, int thread)
    {
        for (int u = u0; u + 1 < u1; u++) {
            if (!handed(a, u, u0)) continue;
            asm volatile("bar.sync 2, %0;" ::"n"(kBoth) : "memory");
            if (u - seg_of(a, u) < u0) publish_all(a, u, thread);
            else store_all(a, tile_of<C>(a, u), thread, kOthers);
            asm volatile("bar.arrive 3, %0;" ::"n"(kBoth) : "memory");
        }
    }
};

/*
 * Registers of a thread: at launch, as many as a CTA of kBound threads could have; then the
 * consumers' and the other warps', together no more.  16 and 32 rows need few, and leave room
 * beside a matrix for CTAs of norm (12 warps of 32): those start before it ends, and the next
 * matrix before they do, as with 8 rows.
 */
template <class C>
struct Registers {
    static constexpr bool  kFew = C::NT <= 4, kMany = C::WARPS > 8;
    static constexpr int   kCta = C::kThreads + (C::WG ? 128 : 32), kBound = C::WG && kFew ? 512 : kCta;
    enum { kConsumer = kMany ? 152 : kFew ? 176 : 224, kProducer = kMany ? 56 : kFew ? 24 : 56 };
};

template <class C>
__global__ void __launch_bounds__(Registers<C>::kBound, 1)
linear90_kernel(const __grid_constant__ Linear a)
{
    extern __shared__ __align__(128) uint8_t smem[];
    __shared__ uint64_t  bars[2][kMaxStages];
    const int  worker = blockIdx.x / C::CL;
    const int  u0 = first_unit<C>(a, worker), u1 = first_unit<C>(a, worker + 1);
    const int  warp = __shfl_sync(~0u, threadIdx.x / 32, 0);       /* the same in all, as ptxas sees */
    const int  lane = threadIdx.x % 32;
    const uint32_t  full = smem_addr(bars[0]), empty = smem_addr(bars[1]);
    const int  n = (first_group(a, u1) - first_group(a, u0)) / C::KG;
    Producer<C>  p = {{}, smem_addr(smem), full, empty, (int) blockIdx.x % C::CL, n, min(n, a.stages)};

    if (warp == C::WARPS) p.begin(a, u0);
    if constexpr (C::CL > 1) cluster_arrive(), cluster_wait();
    else __syncthreads();
    grid_go();

    if (warp >= C::WARPS) {
        if constexpr (C::WG)
            asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"((int) Registers<C>::kProducer));
        if (warp == C::WARPS) p.go_on(a, u0);
        else if constexpr (C::kSums > 0) Sums<C>::follow(a, u0, u1, threadIdx.x - (C::WARPS + 1) * 32);
    } else {
        /* The shuffle keeps ptxas from making this anew for every group. */
        const uint32_t  x = __shfl_sync(~0u, descriptor<C>(smem_addr(smem) + C::kW), 0);
        const Ring  ring = {smem, full, C::CL > 1 ? of_cta(empty, lane % C::CL) : empty, x, a.stages};
        float       acc[C::WM][C::NT][4];
        Turn<C>     turn = {0, 0, 0};
        Late<C>     late;

        Share<C::WT>  mine(warp * C::WM, lane);

        mine.keep(lane);
        [[maybe_unused]] float      sum[C::WM][C::NT][4];
        [[maybe_unused]] Flight<C>  g = {};

        if constexpr (C::WG)
            asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"((int) Registers<C>::kConsumer));
        fetch_bias<C>(a, u0, u1);
        if constexpr (C::kSums > 0) {
            wgmma_units<C>(a, ring, mine, u0, u1, turn, g, acc, [&](int u, bool last) {
                Sums<C>::settle(a, u, u0, last, acc, late);
            });
        } else {
            for (int u = u0; u < u1; u++) {
                late.look(a, u, u0, u1);
                if constexpr (C::WG) {
                    wgmma_units<C>(a, ring, mine, u, u + 1, turn, g, acc, [](int, bool) {});
                } else {
                    zero<C>(acc);
                    mma_segment<C>(ring, mine, (first_group(a, u + 1) - first_group(a, u)) / C::KG, turn, acc);
                }
                settle<C>(a, u, u0, u + 1 == u1, acc, sum, late);
            }
        }
    }
}

template <class C, int ST>
int run(const glm_linear_args_t *a, glm_stream_t *s)
{
    Linear  l;

    static_assert(ST * C::kStage + C::kSums <= kMaxRing && ST <= kMaxStages, "ring does not fit");
    const int  stages = a->ring ? a->ring : ST;

    if (stages < 2 || stages > kMaxStages || stages * C::kStage + C::kSums > kMaxRing)
        return GLM_EINVAL;
    linear_args<C>(&l, a, s);
    l.stages = stages;
    return launch("linear", linear90_kernel<C>, l.workers * C::CL,
                  Registers<C>::kCta, (size_t) l.stages * C::kStage + C::kSums, C::CL,
                  s, l);
}

/* A pass of prefill.  fp16 weights fill too many registers for blocks of 128. */
template <int WT, int ST64, int ST128>
int pass(const glm_linear_args_t *a, glm_stream_t *s)
{
    if constexpr (WT != GLM_W_F16)
        if (a->block != 64 && a->rows > 64) return run<Cfg<WT, 16, 1, 1, true, 2, true>, ST128>(a, s);
    return run<Cfg<WT, 8, 1, 1, true, 2, true>, ST64>(a, s);
}

}  // namespace

int GLM_OP(linear)(const glm_linear_args_t *a, glm_stream_t *s)
{
    if (a == NULL || s == NULL || !linear_ok(a)) return GLM_EINVAL;
    switch (a->w->type * 1000 + a->bucket) {
    case GLM_W_INT4 * 1000 + 8:   return run<Cfg<GLM_W_INT4, 1, 1, 2, false>, 9>(a, s);
    case GLM_W_INT4 * 1000 + 16:  return run<Cfg<GLM_W_INT4, 2, 1, 2, true, 2>, 9>(a, s);
    case GLM_W_INT4 * 1000 + 32:  return run<Cfg<GLM_W_INT4, 4, 1, 2, true, 2>, 6>(a, s);
    case GLM_W_INT4 * 1000 + 64:  return run<Cfg<GLM_W_INT4, 8, 1, 1, true, 2, false, 12>, 6>(a, s);
    case GLM_W_INT8 * 1000 + 8:   return run<Cfg<GLM_W_INT8, 1, 1, 2, false>, 5>(a, s);
    case GLM_W_INT8 * 1000 + 16:  return run<Cfg<GLM_W_INT8, 2, 1, 2, true, 2>, 5>(a, s);
    case GLM_W_INT8 * 1000 + 32:  return run<Cfg<GLM_W_INT8, 4, 1, 2, true, 2>, 4>(a, s);
    case GLM_W_INT8 * 1000 + 64:  return run<Cfg<GLM_W_INT8, 8, 1, 1, true, 2, false, 12>, 4>(a, s);
    case GLM_W_F16 * 1000 + 8:    return run<Cfg<GLM_W_F16, 1, 1, 2, false>, 3>(a, s);
    case GLM_W_F16 * 1000 + 16:   return run<Cfg<GLM_W_F16, 2, 1, 1, true, 2>, 6>(a, s);
    case GLM_W_F16 * 1000 + 32:   return run<Cfg<GLM_W_F16, 4, 1, 1, true, 2>, 5>(a, s);
    case GLM_W_F16 * 1000 + 64:   return run<Cfg<GLM_W_F16, 8, 1, 1, true, 2>, 4>(a, s);
    case GLM_W_INT4 * 1000 + GLM_CUDA_PREFILL_ROWS: return pass<GLM_W_INT4, 9, 4>(a, s);
    case GLM_W_INT8 * 1000 + GLM_CUDA_PREFILL_ROWS: return pass<GLM_W_INT8, 7, 3>(a, s);
    case GLM_W_F16 * 1000 + GLM_CUDA_PREFILL_ROWS:  return pass<GLM_W_F16, 4, 0>(a, s);
    default:                      return GLM_EINVAL;
    }
}
