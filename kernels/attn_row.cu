/*
 * attn_row: attention of decode rows over paged keys and values, one query a
 * head.  A unit is (row, chunk of 256 tokens, head), whatever else runs.  Its steps
 * of 8, 16 or 32 tokens go to four shares in turn, which are joined in order, and then
 * the chunks of a (row, head).  With few units the warps of a CTA have a share each,
 * and whoever ends a (row, head) last joins it.  Where (row, head)s of about the same
 * length can occupy the card, one or some warps of a CTA have each to themselves, all
 * shares one after the other: nobody waits for the whole card to see what he wrote,
 * which takes as long as all loads under way.  It is the same arithmetic.  The grid is
 * fixed and walks the lengths it finds, so that one graph serves any context.  An ideal
 * run reads the visible pages once: tokens * heads * 2 d * (2, or 1 + 2 / d) bytes.
 */
#include "attn.cuh"
#include "cuda_size.h"
#include "mma.cuh"

namespace {

constexpr int  kWarps = 4, kThreads = kWarps * 32, kShares = kWarps;

struct Attn {
    Kv              kv;
    Rows            r;
    const __half   *qkv;
    const __half2  *rope;
    __half         *out;
    int            *counters;     /* (rows, heads): warps done; 0 between launches */
    float          *partial;      /* (rows, heads, chunks)[d + 4]: o, m, l */
    int             bucket, max_chunks;
    float           rsqrt_d;
};

/*
 * A step of tokens, as a warp reads it.  kTeams: a warp may take all shares of a unit
 * (fp16 has no registers for that).  fp16: LT lanes a token, E values a lane, kPer
 * tokens side by side; every LT-th lane has the same outputs.
 */
template <int D, bool INT8>
struct Step {
    static constexpr int  E = 8, LT = D / E, kPer = 32 / LT, NI = 4, kTokens = NI * kPer;
    static constexpr int  kHalf = NI * 512, kBytes = 2 * kHalf;      /* K, then V */
    static constexpr int   kAhead = 2, kCtas = GLM_ARCH == 80 ? 4 : 6;
    static constexpr bool  kTeams = false;
    static constexpr int   kOut = E;                                 /* outputs of a lane */

    __device__ __forceinline__ static int first_out(int lane) { return lane * E; }
    __device__ __forceinline__ static bool has_out(int lane) { return lane < LT; }
};

/*
 * int8: two pages, and matrix instructions.  A lane 4 g + t weighs token 8 t + g, and has
 * four outputs in a row.  In shared memory 16-byte pieces change places so that eight
 * of them, read at a time, are in eight banks: of K those of eight tokens, of V those of
 * four quads.
 */
template <int D>
struct Step<D, true> {
    static constexpr int  LT = 1, kTokens = 2 * kPage;
    static constexpr int  kHalf = kPage * D, kOne = 2 * kHalf + 64, kBytes = 2 * kOne;
    static constexpr int   kAhead = 2, kCtas = GLM_ARCH == 80 ? 2 : 3;
    static constexpr bool  kTeams = true;
    static constexpr int   kOut = 4;

    __device__ __forceinline__ static int first_out(int lane) { return lane % 4 * 32 + lane / 4 * 4; }
    __device__ __forceinline__ static bool has_out(int lane) { return lane % 4 * 32 < D; }

    /* Piece c of a token's K, and of a quad's V. */
    __device__ __forceinline__ static int key(int token, int c)
    {
        return token * D + (D == 128 ? c ^ token % 8 : c ^ token / 2 % 4) * 16;
    }
    __device__ __forceinline__ static int value(int quad, int c)
    {
        return kHalf + quad * (D * 4) + (c ^ quad * 2) * 16;
    }
};

constexpr float  kFix = 32639.f;  /* fixed point of q and of weights: 256 * 127 + 127 */

template <int D, bool INT8>
struct alignas(16) Shared {
    uint8_t  ring[kWarps][Step<D, INT8>::kAhead][Step<D, INT8>::kBytes];
    alignas(16) float  q[kWarps][D];        /* of a unit; int8: bytes [2][D], high and low, and the scale */
    alignas(16) uint8_t  p[kWarps][2][2 * kPage];         /* int8: weights of a step, high, low */
    float    o[kShares][D];                 /* where each warp has a share */
    float    m[kShares], l[kShares];
    int      chunks[GLM_CUDA_MAX_ROWS + 1];   /* prefix sums over rows */
    int      team;
};

/*
 * What a warp has to do.  team 0: of every `stride`-th unit the share of its place in the
 * CTA.  Else the chunks member, member + team, .. of every `stride`-th (row, head).
 */
struct Walk {
    int  first, stride, team, member;
};

/* A unit; u < 0: past the end. */
struct Unit {
    int  u, row, head, chunk, len;
};

template <class S>
__device__ __forceinline__ Unit unit_at(const Attn &a, const S &sh, const Walk &w, int u)
{
    Unit  n = {-1, 0, 0, 0, 0};

    if (w.team) {
        const int  pair = u / a.max_chunks;

        if (pair >= a.r.rows * a.kv.heads) return n;
        n.row = pair / a.kv.heads, n.head = pair % a.kv.heads, n.chunk = u % a.max_chunks;
    } else {
        if (u >= sh.chunks[a.r.rows] * a.kv.heads) return n;
        const int  flat = u / a.kv.heads;

        for (int x = 32; x; x >>= 1)
            if (n.row + x < a.r.rows && sh.chunks[n.row + x] <= flat) n.row += x;
        n.head = u % a.kv.heads, n.chunk = flat - sh.chunks[n.row];
    }
    n.u = u, n.len = a.r.slot[n.row] + 1;
    return n;
}

__device__ __forceinline__ int after(const Attn &a, const Walk &w, const Unit &n)
{
    if (w.team == 0) return n.u + w.stride;
    if ((n.chunk + w.team) * kChunk < n.len) return n.u + w.team;
    return (n.u / a.max_chunks + w.stride) * a.max_chunks + w.member;
}

/* The copies of a warp: its steps, one unit after the other, kAhead early; pages are
 * looked up a unit early. */
template <int D, bool INT8>
struct Copies {
    using  S = Step<D, INT8>;
    using  H = Head<D, INT8>;

    Unit  n;
    int   t, t1, share, stage;
    int   page;                   /* of the chunk's page `lane` */
    int   next, next_page;        /* unit; < 0: none */

    /*
     * The next step has no token of this step's rows, which kv_write may not have written:
     * they are the last of their sequence.
     */
    __device__ __forceinline__ bool old(const Attn &a) const
    {
        return n.u >= 0 && min(t + S::kTokens, t1) <= n.len - a.r.rows;
    }

    /* Looks for the unit from u on where the warp has a step. */
    __device__ __forceinline__ void look(const Attn &a, const Shared<D, INT8> &sh, const Walk &w, int u)
    {
        Unit  m;

        for (;; u = after(a, w, m)) {
            m = unit_at(a, sh, w, u);
            if (m.u < 0 || m.chunk * kChunk + first_share(w) * S::kTokens < m.len) break;
        }
        next = m.u;
        if (next < 0) return;
        const int  first = m.chunk * (kChunk / kPage), i = first + threadIdx.x % (kChunk / kPage);

        next_page = a.r.pages[(size_t) m.row * a.r.ldpages + (i * kPage < m.len ? i : first)];
    }

    __device__ __forceinline__ static int first_share(const Walk &w) { return w.team ? 0 : w.member; }

    __device__ __forceinline__ void enter(const Attn &a, const Shared<D, INT8> &sh, const Walk &w)
    {
        n.u = -1;
        if (next < 0) return;
        n = unit_at(a, sh, w, next), page = next_page, share = first_share(w);
        t = n.chunk * kChunk + share * S::kTokens;
        t1 = min(n.len, (n.chunk + 1) * kChunk);
        look(a, sh, w, after(a, w, n));
    }

    __device__ __forceinline__ void advance(const Attn &a, const Shared<D, INT8> &sh, const Walk &w)
    {
        t += kShares * S::kTokens;
        if (t < t1) return;
        t = n.chunk * kChunk + ++share * S::kTokens;
        if (w.team == 0 || share == kShares || t >= t1) enter(a, sh, w);
    }

    /* A step of fp16 lies in one page. */
    __device__ __forceinline__ void copy_fp16(const Attn &a, uint32_t dst) const
    {
        const int       lane = threadIdx.x % 32, at = t % kPage;
        const int       id = __shfl_sync(~0u, page, t / kPage % (kChunk / kPage));
        const uint8_t  *head = head_at<D, false>(a.kv, id, n.head);

#pragma unroll
        for (int i = 0; i < S::NI; i++) {
            copy16(dst + i * 512 + lane * 16, head + at * H::kToken + i * 512 + lane * 16);
            copy16(dst + S::kHalf + i * 512 + lane * 16,
                   head + (kPage + at) * H::kToken + i * 512 + lane * 16);
        }
    }

    __device__ __forceinline__ void copy_int8(const Attn &a, uint32_t dst) const
    {
        const int  lane = threadIdx.x % 32;

#pragma unroll
        for (int p = 0; p < 2; p++, dst += S::kOne) {
            const int       id = __shfl_sync(~0u, page, (t / kPage + p) % (kChunk / kPage));
            const uint8_t  *head = head_at<D, true>(a.kv, id, n.head) + lane * 16;

#pragma unroll
            for (int i = 0; i < D / 32; i++) {
                const int  piece = i * 32 + lane;

                copy16(dst + S::key(piece / (D / 16), piece % (D / 16)), head + i * 512);
                copy16(dst + S::value(piece / (D / 4), piece % (D / 4)), head + S::kHalf + i * 512);
            }
            if (lane < 4)
                copy16(dst + 2 * S::kHalf + lane * 16, scales_at<D, true>(a.kv, id, n.head) + lane * 8);
        }
    }

    __device__ __forceinline__ void issue(const Attn &a, Shared<D, INT8> &sh, const Walk &w)
    {
        if (n.u >= 0) {
            const uint32_t  dst = smem_addr(sh.ring[threadIdx.x / 32][stage]);

            if constexpr (INT8) copy_int8(a, dst);
            else copy_fp16(a, dst);
            stage = stage + 1 == S::kAhead ? 0 : stage + 1;
            advance(a, sh, w);
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    }
};

/* What a lane needs for q of a unit: pairs D/64 lane + e. */
template <int D>
struct Query {
    __half   x[D / 64], y[D / 64];
    __half2  c[D / 64];
};

/* A row's place in the rotary table; neither changes within a step. */
__device__ __forceinline__ int position_of(const Attn &a, const Unit &n)
{
    return n.u < 0 ? 0 : a.r.position[n.row];
}

template <int D>
__device__ __forceinline__ void fetch_turn(const Attn &a, const Unit &n, int position, Query<D> &q)
{
    if (n.u < 0 || n.len < 1) return;
    const __half2  *c = a.rope + (size_t) position * (D / 2) + threadIdx.x % 32 * (D / 64);

#pragma unroll
    for (int e = 0; e < D / 64; e++) q.c[e] = c[e];
}

template <int D>
__device__ __forceinline__ void fetch_q(const Attn &a, const Unit &n, Query<D> &q)
{
    if (n.u < 0 || n.len < 1) return;
    const __half  *p = a.qkv + ((size_t) n.row * a.kv.heads + n.head) * 3 * D + threadIdx.x % 32 * (D / 64);

#pragma unroll
    for (int e = 0; e < D / 64; e++) q.x[e] = p[e], q.y[e] = p[e + D / 2];
}

/* f = 256 high + low, both signed. */
__device__ __forceinline__ void put_digits(uint8_t *high, int low, int f)
{
    *high = (uint8_t) ((f + 128) >> 8), high[low] = (uint8_t) f;
}

/* Rotated, times 1 / sqrt(d); for int8 keys in fixed point of the largest. */
template <int D, bool INT8>
__device__ __forceinline__ void place_q(const Attn &a, const Query<D> &q, float *to)
{
    constexpr int  E = D / 64;
    const int      i = threadIdx.x % 32 * E;
    float          v[2 * E], top = 0.f;

#pragma unroll
    for (int e = 0; e < E; e++) {
        const float2  r = rotated(__half2float(q.x[e]), __half2float(q.y[e]), q.c[e]);

        v[e] = r.x * a.rsqrt_d, v[e + E] = r.y * a.rsqrt_d;
        top = max_or_nan(top, max_or_nan(fabsf(v[e]), fabsf(v[e + E])));
    }
    if (INT8) {
        top = warp_max(top);
        if (threadIdx.x % 32 == 0) to[D - 1] = top / kFix;
    }
#pragma unroll
    for (int e = 0; e < 2 * E; e++) {
        const int  at = i + e % E + e / E * (D / 2);

        if (INT8) {
            put_digits((uint8_t *) to + at, D, top > 0.f ? __float2int_rn(v[e] * (kFix / top)) : 0);
        } else {
            to[at] = v[e];
        }
    }
}

/* Sums of 16 x 8 products over 32 values, exactly. */
__device__ __forceinline__ void mma_int8(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                         uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/* v[t], t = lane % 4. */
__device__ __forceinline__ int of_four(const int (&v)[4])
{
    const int  a = threadIdx.x & 1 ? v[1] : v[0], b = threadIdx.x & 1 ? v[3] : v[2];

    return threadIdx.x & 2 ? b : a;
}

/* Of a share: the largest score, its weights' sum, outputs. */
template <int D, bool INT8>
struct State {
    float  m, l, o[Step<D, INT8>::kOut];
};

/* The largest of a warp; a NaN of its own may be taken for the smallest or the largest.
 * glm_logit_key() would do, with twice the instructions in every step. */
__device__ __forceinline__ float warp_top(float v)
{
    const int  key = __float_as_int(v), top = __reduce_max_sync(~0u, key ^ (key >> 31 & 0x7fffffff));

    return __int_as_float(top ^ (top >> 31 & 0x7fffffff));
}

/* New largest score; what was summed fades. */
template <int D, bool INT8>
__device__ __forceinline__ void raise(State<D, INT8> &w, float top)
{
    using        S = Step<D, INT8>;

    if constexpr (S::LT == 1) {
        top = warp_top(top);
    } else {
#pragma unroll
        for (int x = S::LT; x < 32; x <<= 1) top = fmaxf(top, __shfl_xor_sync(~0u, top, x));
    }
    top = fmaxf(top, w.m);
    const float  fade = __expf(w.m - top);

    w.m = top;
    w.l *= fade;
#pragma unroll
    for (int e = 0; e < S::kOut; e++) w.o[e] *= fade;
}

/* One step, `left` tokens of it visible; k: its bytes in shared memory. */
template <int D>
__device__ __forceinline__ void step_fp16(const uint8_t *k, int left, const float *shq, State<D, false> &w)
{
    using          S = Step<D, false>;
    const int      lane = threadIdx.x % 32, c = lane % S::LT, tg = lane / S::LT;
    float          s[S::NI], q[S::E], top = -INFINITY;

#pragma unroll
    for (int e = 0; e < S::E; e += 4) *(float4 *) (q + e) = *(const float4 *) (shq + c * S::E + e);
#pragma unroll
    for (int i = 0; i < S::NI; i++) {
        float  f[S::E], p = 0.f;

        unpack8(*(const uint4 *) (k + i * 512 + lane * 16), f);
#pragma unroll
        for (int e = 0; e < S::E; e++) p = fmaf(q[e], f[e], p);
#pragma unroll
        for (int x = 1; x < S::LT; x <<= 1) p += __shfl_xor_sync(~0u, p, x);
        s[i] = i * S::kPer + tg < left ? p : -INFINITY;
        top = fmaxf(top, s[i]);
    }
    raise(w, top);
#pragma unroll
    for (int i = 0; i < S::NI; i++) {
        float        f[S::E];
        const float  p = __expf(s[i] - w.m);

        w.l += p;
        unpack8(*(const uint4 *) (k + S::kHalf + i * 512 + lane * 16), f);
#pragma unroll
        for (int e = 0; e < S::E; e++)      /* a token past the end may hold NaN */
            w.o[e] = p > 0.f ? fmaf(p, f[e], w.o[e]) : w.o[e];
    }
}

/*
 * In integers: q and the weights of the step are fixed point, products exact.  Keys are
 * the rows of the matrix instruction, then values, 16 dimensions by all tokens; even
 * columns are the high digits of q or the weights, odd ones the low, so that a lane has
 * both of its sums: of tokens g and g + 8, of dimensions 4 g + 32 i ..
 */
template <int D>
__device__ __forceinline__ void step_int8(const uint8_t *k, int left, const float *shq,
                                          uint8_t (*shp)[2 * kPage], State<D, true> &w)
{
    using           S = Step<D, true>;
    const int       lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, token = t * 8 + g;
    const uint8_t  *q = (const uint8_t *) shq + g % 2 * D + t * 4;
    const __half   *scales = (const __half *) (k + t / 2 * S::kOne + 2 * S::kHalf) + token % kPage;
    int             c[2][4] = {};

#pragma unroll
    for (int p = 0; p < 2; p++) {
        const uint32_t  page = smem_addr(k) + p * S::kOne;

#pragma unroll
        for (int kk = 0; kk < D / 32; kk++) {
            uint32_t  a[4];

            ldmatrix(a, page + S::key(lane % 16, 2 * kk + lane / 16));
            mma_int8(c[p], a[0], a[1], a[2], a[3], *(const uint32_t *) (q + kk * 32),
                     *(const uint32_t *) (q + kk * 32 + 16));
        }
    }
    const int    dots[4] = {c[0][0] * 256 + c[0][1], c[0][2] * 256 + c[0][3],
                            c[1][0] * 256 + c[1][1], c[1][2] * 256 + c[1][3]};
    const float  s = token < left ? (float) of_four(dots) * (shq[D - 1] * __half2float(*scales)) : -INFINITY;

    raise(w, s);
    float  p = __expf(s - w.m);

    w.l += p;
    p = p > 0.f ? p * __half2float(scales[kPage]) : 0.f;
    const float  most = warp_top(p);

    put_digits(&shp[0][token], 2 * kPage, most > 0.f ? __float2int_rn(p * (kFix / most)) : 0);
    __syncwarp();
    const float     unfix = most / kFix;
    const uint32_t  b0 = *(const uint32_t *) &shp[g % 2][t * 4], b1 = *(const uint32_t *) &shp[g % 2][kPage + t * 4];
    int             v[4][4] = {};       /* dimension 4 g + 32 i + e: v[e][i] */

#pragma unroll
    for (int i = 0; i < D / 32; i++) {
        const uint4  x = *(const uint4 *) (k + S::value(t, i * 8 + g));
        const uint4  y = *(const uint4 *) (k + S::kOne + S::value(t, i * 8 + g));
        int          d[2][4] = {};

        mma_int8(d[0], x.x, x.y, y.x, y.y, b0, b1);
        mma_int8(d[1], x.z, x.w, y.z, y.w, b0, b1);
#pragma unroll
        for (int e = 0; e < 4; e++) v[e][i] = d[e / 2][e % 2 * 2] * 256 + d[e / 2][e % 2 * 2 + 1];
    }
#pragma unroll
    for (int e = 0; e < 4; e++) w.o[e] = fmaf(unfix, (float) of_four(v[e]), w.o[e]);
}

/* A share of a unit. */
template <int D, bool INT8>
__device__ __forceinline__ State<D, INT8> take_share(const Attn &a, const Unit &n, int share, const Walk &walk,
                                                     Copies<D, INT8> &copies, int &stage, const float *q,
                                                     Shared<D, INT8> &sh)
{
    using           S = Step<D, INT8>;
    const int       warp = threadIdx.x / 32;
    const int       t0 = n.chunk * kChunk, t1 = min(n.len, t0 + kChunk);
    State<D, INT8>  w = {-INFINITY, 0.f, {}};

    for (int t = t0 + share * S::kTokens; t < t1; t += kShares * S::kTokens) {
        asm volatile("cp.async.wait_group %0;" ::"n"(S::kAhead - 1) : "memory");
        __syncwarp();
        if constexpr (INT8) step_int8<D>(sh.ring[warp][stage], t1 - t, q, sh.p[warp], w);
        else step_fp16<D>(sh.ring[warp][stage], t1 - t, q, w);
        __syncwarp();
        copies.issue(a, sh, walk);
        stage = stage + 1 == S::kAhead ? 0 : stage + 1;
    }
#pragma unroll
    for (int x = S::LT; x < 32; x <<= 1) w.l += __shfl_xor_sync(~0u, w.l, x);
    if constexpr (!INT8) {
#pragma unroll
        for (int x = S::LT; x < 32; x <<= 1) {
#pragma unroll
            for (int e = 0; e < S::kOut; e++) w.o[e] += __shfl_xor_sync(~0u, w.o[e], x);
        }
    }
    return w;
}

template <int D>
__device__ __forceinline__ void put_out(const Attn &a, const Unit &n, int dim, float o)
{
    const int  i = n.head * D + dim;

    a.out[((size_t) (i / 8) * a.bucket + n.row) * 8 + i % 8] = __float2half_rn(o);
}

/* All chunks of a (row, head), by one warp. */
template <int D>
__device__ __forceinline__ void join_chunks(const Attn &a, const Unit &n, const float *p, int nchunks)
{
    float  m = -INFINITY, l = 0.f, o[D / 32] = {};

    for (int c = 0; c < nchunks; c++) m = fmaxf(m, __ldcg(p + c * (D + 4) + D));
    for (int c = 0; c < nchunks; c++) {
        const float  *q = p + c * (D + 4), f = __expf(__ldcg(q + D) - m);

        l = fmaf(__ldcg(q + D + 1), f, l);
#pragma unroll
        for (int e = 0; e < D / 32; e++) o[e] = fmaf(__ldcg(q + threadIdx.x % 32 + 32 * e), f, o[e]);
    }
#pragma unroll
    for (int e = 0; e < D / 32; e++) put_out<D>(a, n, threadIdx.x % 32 + 32 * e, o[e] / l);
}

/* Of a unit with others: what is to be joined, [D] o, m, l. */
template <int D>
__device__ __forceinline__ float *partial_at(const Attn &a, const Unit &n, int chunk)
{
    return a.partial + (((size_t) n.row * a.kv.heads + n.head) * a.max_chunks + chunk) * (D + 4);
}

/* This warp has written its dimensions of a unit; the last of all joins the chunks. */
template <int D>
__device__ __forceinline__ void arrive(const Attn &a, const Unit &n, int nchunks)
{
    int  *done = a.counters + (size_t) n.row * a.kv.heads + n.head, before = 0;

    __syncwarp();
    if (threadIdx.x % 32 == 0)
        asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], 1;" : "=r"(before) : "l"(done) : "memory");
    if (__shfl_sync(~0u, before, 0) != nchunks * kWarps - 1) return;
    __syncwarp();
    if (threadIdx.x % 32 == 0) *done = 0;
    join_chunks<D>(a, n, partial_at<D>(a, n, 0), nchunks);
}

/* Joins the shares that the warps left in shared memory, a dimension a thread. */
template <int D, bool INT8>
__device__ __forceinline__ void join_warps(const Attn &a, const Unit &n, Shared<D, INT8> &sh)
{
    const int  i = threadIdx.x, nchunks = (n.len + kChunk - 1) / kChunk;
    float      m = sh.m[0], l = 0.f, o = 0.f;

#pragma unroll
    for (int w = 1; w < kShares; w++) m = fmaxf(m, sh.m[w]);
#pragma unroll
    for (int w = 0; w < kShares; w++) {
        const float  f = __expf(sh.m[w] - m);

        l = fmaf(sh.l[w], f, l);
        if (i < D) o = fmaf(sh.o[w][i], f, o);
    }
    if (nchunks == 1) {
        if (i < D) put_out<D>(a, n, i, o / l);
        return;
    }
    float  *mine = partial_at<D>(a, n, n.chunk);

    if (i < D) mine[i] = o;
    if (i == 0) mine[D] = m, mine[D + 1] = l;
    arrive<D>(a, n, nchunks);
}

/* The same of a warp that has all shares; joins no chunks. */
template <int D, bool INT8>
__device__ __forceinline__ void join_shares(const Attn &a, const Unit &n, const State<D, INT8> (&w)[kShares])
{
    using      S = Step<D, INT8>;
    const int  lane = threadIdx.x % 32;
    float      m = w[0].m, l = 0.f, o[S::kOut] = {};

#pragma unroll
    for (int i = 1; i < kShares; i++) m = fmaxf(m, w[i].m);
#pragma unroll
    for (int i = 0; i < kShares; i++) {
        const float  f = __expf(w[i].m - m);

        l = fmaf(w[i].l, f, l);
#pragma unroll
        for (int e = 0; e < S::kOut; e++) o[e] = fmaf(w[i].o[e], f, o[e]);
    }
    float  *mine = partial_at<D>(a, n, n.chunk);

    if (S::has_out(lane)) {
#pragma unroll
        for (int e = 0; e < S::kOut; e++) {
            if (n.len <= kChunk) put_out<D>(a, n, S::first_out(lane) + e, o[e] / l);
            else mine[S::first_out(lane) + e] = o[e];
        }
    }
    if (lane == 0 && n.len > kChunk) mine[D] = m, mine[D + 1] = l;
}

/* Units of a CTA, a share a warp; each warp has a copy of q. */
template <int D, bool INT8>
__device__ __forceinline__ void walk_units(const Attn &a, const Walk &walk, Unit n, Query<D> &q,
                                           Copies<D, INT8> &copies, Shared<D, INT8> &sh)
{
    using      S = Step<D, INT8>;
    const int  warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int        stage = 0;

    while (n.u >= 0) {
        place_q<D, INT8>(a, q, sh.q[warp]);
        __syncwarp();
        const Unit  then = unit_at(a, sh, walk, n.u + walk.stride);

        fetch_turn<D>(a, then, position_of(a, then), q), fetch_q<D>(a, then, q);
        const State<D, INT8>  v = take_share<D, INT8>(a, n, warp, walk, copies, stage, sh.q[warp], sh);

        if (S::has_out(lane)) {
#pragma unroll
            for (int e = 0; e < S::kOut; e++) sh.o[warp][S::first_out(lane) + e] = v.o[e];
        }
        if (lane == 0) sh.m[warp] = v.m, sh.l[warp] = v.l;
        __syncthreads();
        join_warps<D, INT8>(a, n, sh);
        __syncthreads();
        n = then;
    }
}

/* Waits for the warps of a team, which are neighbours in the CTA. */
__device__ __forceinline__ void team_sync(int team)
{
    if (team == 1) __syncwarp();
    else asm volatile("bar.sync %0, %1;" ::"r"(1 + (int) threadIdx.x / 32 / team), "r"(team * 32) : "memory");
}

/* (row, head)s of a team. */
template <int D, bool INT8>
__device__ __forceinline__ void walk_pairs(const Attn &a, const Walk &walk, Unit n, Query<D> &q,
                                           Copies<D, INT8> &copies, Shared<D, INT8> &sh)
{
    float  *mine = sh.q[threadIdx.x / 32];
    int     stage = 0, pair = walk.first / a.max_chunks;

    while (n.u >= 0) {
        const int   nchunks = (n.len + kChunk - 1) / kChunk;

        place_q<D, INT8>(a, q, mine);
        __syncwarp();
        pair += walk.stride;
        const Unit  then = unit_at(a, sh, walk, pair * a.max_chunks);

        fetch_turn<D>(a, then, position_of(a, then), q), fetch_q<D>(a, then, q);
        for (n.chunk = walk.member; n.chunk < nchunks; n.chunk += walk.team) {
            State<D, INT8>  w[kShares];

#pragma unroll 1
            for (int s = 0; s < kShares; s++) {
                const State<D, INT8>  v = take_share<D, INT8>(a, n, s, walk, copies, stage, mine, sh);

#pragma unroll
                for (int i = 0; i < kShares; i++) w[i] = s == i ? v : w[i];
            }
            join_shares<D, INT8>(a, n, w);
        }
        if (nchunks > 1) {
            team_sync(walk.team);
            if (walk.member == 0) join_chunks<D>(a, n, partial_at<D>(a, n, 0), nchunks);
        }
        __syncwarp();
        n = then;
    }
}

/*
 * Warps a (row, head), or 0: as few as make nine tenths of the card's busy, if the
 * longest row is at most a quarter longer than the mean, and has a chunk for each.
 */
__device__ __forceinline__ int team_of(const Attn &a, int rows, int longest, int chunks)
{
    const int  warps = gridDim.x * kWarps;

    if (4 * rows * longest > 5 * chunks) return 0;
    for (int team = 1; team <= kWarps && team <= longest; team *= 2)
        if (10 * rows * a.kv.heads * team >= 9 * warps) return team;
    return 0;
}

template <int D, bool INT8>
__global__ void __launch_bounds__(kThreads, Step<D, INT8>::kCtas) attn_row_kernel(const Attn a)
{
    extern __shared__ __align__(128) uint8_t smem[];
    Shared<D, INT8>  &sh = *(Shared<D, INT8> *) smem;

    grid_go();
    if (threadIdx.x == 0) sh.chunks[0] = 0;
    if (threadIdx.x < 32) {                   /* rows do not change within a step */
        int  before = 0, rows = 0, longest = 0;

        for (int r0 = 0; r0 < a.r.rows; r0 += 32) {
            const int  r = r0 + threadIdx.x;
            int        n = r < a.r.rows ? (max(a.r.slot[r], -1) + kChunk) / kChunk : 0;

            rows += __popc(__ballot_sync(~0u, n > 0));
            longest = max(longest, n);
#pragma unroll
            for (int x = 1; x < 32; x <<= 1) {
                const int  v = __shfl_up_sync(~0u, n, x);

                if ((int) threadIdx.x >= x) n += v;
            }
            if (r < a.r.rows) sh.chunks[r + 1] = before + n;
            before += __shfl_sync(~0u, n, 31);
        }
#pragma unroll
        for (int x = 1; x < 32; x <<= 1) longest = max(longest, __shfl_xor_sync(~0u, longest, x));
        if (threadIdx.x == 0) sh.team = Step<D, INT8>::kTeams ? team_of(a, rows, longest, before) : 0;
    }
    __syncthreads();
    const int   warp = threadIdx.x / 32, team = Step<D, INT8>::kTeams ? sh.team : 0;
    const int   member = team ? warp % team : warp, one = team ? (blockIdx.x * kWarps + warp) / team : 0;
    const Walk  walk = {(int) (team ? one * a.max_chunks + member : blockIdx.x),
                        (int) (team ? gridDim.x * kWarps / team : gridDim.x), team, member};
    const Unit  n = unit_at(a, sh, walk, walk.first);
    Copies<D, INT8>  copies;
    Query<D>         q = {};
    const int        position = position_of(a, n);

    copies.stage = 0;
    copies.look(a, sh, walk, walk.first);
    copies.enter(a, sh, walk);
    fetch_turn<D>(a, n, position, q);         /* before the copies: it would wait for them */
#pragma unroll 1
    for (int i = 0; i < Step<D, INT8>::kAhead; i++) {
        if (!copies.old(a)) grid_wait();
        copies.issue(a, sh, walk);
    }
    grid_wait();
    fetch_q<D>(a, n, q);
    if constexpr (Step<D, INT8>::kTeams) {
        if (team) {
            walk_pairs<D, INT8>(a, walk, n, q, copies, sh);
            return;
        }
    }
    walk_units<D, INT8>(a, walk, n, q, copies, sh);
}

template <int D, bool INT8>
int run(const glm_attn_args_t *a, glm_stream_t *s)
{
    const size_t  pairs = (size_t) a->rows->rows * a->kv->heads;
    const size_t  counters = GLM_ATTN_COUNTERS(a->kv->heads);
    const size_t  chunk = pairs * (D + 4) * 4;
    Attn          t = {};

    if (a->ws_bytes < counters + chunk) return GLM_EINVAL;
    t.kv = {(uint8_t *) a->kv->base, a->kv->page_bytes, a->kv->heads};
    t.r = {a->rows->slot, a->rows->position, a->rows->pages, a->rows->ldpages, a->rows->rows};
    t.qkv = (const __half *) a->qkv;
    t.rope = (const __half2 *) a->rope;
    t.out = (__half *) a->out;
    t.counters = (int *) a->ws;
    t.partial = (float *) ((uint8_t *) a->ws + counters);
    t.bucket = a->bucket;
    t.max_chunks = (a->rows->ldpages * kPage + kChunk - 1) / kChunk;
    t.rsqrt_d = 1.f / sqrtf((float) D);
    if (a->ws_bytes < counters + chunk * t.max_chunks) return GLM_EINVAL;
    return launch("attn_row", attn_row_kernel<D, INT8>, s->sms * Step<D, INT8>::kCtas, kThreads,
                  sizeof(Shared<D, INT8>), 1, s, t);
}

}  // namespace

int GLM_OP(attn_row)(const glm_attn_args_t *a, glm_stream_t *s)
{
    if (s == NULL || !attn_ok(a) || a->bucket > GLM_CUDA_MAX_ROWS || a->rows->ldpages < 1
        || a->out == NULL || a->ws == NULL || !aligned16(a->out) || !aligned16(a->ws))
    {
        return GLM_EINVAL;
    }
    if (a->kv->int8) return a->kv->d == 128 ? run<128, true>(a, s) : run<64, true>(a, s);
    return a->kv->d == 128 ? run<128, false>(a, s) : run<64, false>(a, s);
}
