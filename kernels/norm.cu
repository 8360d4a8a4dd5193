/*
 * norm: residual + LayerNorm in one pass, the rows of the embedding, and rows moved
 * between buckets.  A row is
 * cut in four parts whatever its width; on sm_90 a cluster of four CTAs takes a
 * row (from buckets of 64 on, two), on sm_80 one CTA takes the parts in turn: the bits are the same.
 * An ideal run moves rows * dim * (4 + 2 + 2) bytes and 4 * dim of weights.
 */
#include "cluster.cuh"

namespace {

constexpr int  kParts = 4, kThreads = 384, kWarps = kThreads / 32;

struct Norm {
    const float   *y;
    const uint4   *a, *weight, *bias;
    uint4         *out;
    size_t         ldy;
    float          alpha, eps;
    int            dim, rows, bucket, early;
};

__device__ __forceinline__ float warp_sum(float v)
{
#pragma unroll
    for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(~0u, v, o);
    return v;
}

/* Sums over the CTA, the same bits in every thread.  warps: not those of the sums before. */
template <int ROWS>
__device__ __forceinline__ void part_sum(float (&v)[ROWS], float (&warps)[ROWS][kWarps])
{
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        v[r] = warp_sum(v[r]);
        if (threadIdx.x % 32 == 0) warps[r][threadIdx.x / 32] = v[r];
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        v[r] = 0.f;
#pragma unroll
        for (int i = 0; i < kWarps; i++) v[r] += warps[r][i];
    }
}

/*
 * Piece c of a row, or of it and the next in packed order, where the two are a sector: a lane
 * and its neighbour take the two rows of a piece, then of the next one, and swap.
 */
template <int ROWS>
struct Pieces {
    /* v[i] as they lie to piece c of row i, and back. */
    __device__ __forceinline__ static void turn(int c, uint4 (&v)[ROWS])
    {
        if constexpr (ROWS == 2) {
            uint4  o = c & 1 ? v[0] : v[1];

            o = make_uint4(__shfl_xor_sync(~0u, o.x, 1), __shfl_xor_sync(~0u, o.y, 1),
                           __shfl_xor_sync(~0u, o.z, 1), __shfl_xor_sync(~0u, o.w, 1));
            if (c & 1) v[0] = o;
            else v[1] = o;
        }
    }

    __device__ __forceinline__ static size_t place(const Norm &n, int row, int c, int i)
    {
        const int  odd = ROWS == 2 ? c & 1 : 0;

        return piece_at(n.dim / 8, c - odd + i, row + odd, n.bucket);
    }

    __device__ __forceinline__ static bool is(const Norm &n, int row, int c, bool in)
    {
        return in && (ROWS == 1 || row + (c & 1) < n.rows);
    }

    __device__ __forceinline__ static void load(const Norm &n, int row, int c, bool in, uint4 (&v)[ROWS])
    {
#pragma unroll
        for (int i = 0; i < ROWS; i++) v[i] = is(n, row, c, in) ? __ldcg(n.a + place(n, row, c, i)) : uint4{};
        turn(c, v);
    }

    __device__ __forceinline__ static void store(const Norm &n, int row, int c, bool in, uint4 (&v)[ROWS])
    {
        turn(c, v);
#pragma unroll
        for (int i = 0; i < ROWS; i++)
            if (is(n, row, c, in)) n.out[place(n, row, c, i)] = v[i];
    }
};

/* x of 8 elements of each row; zeros past the end of a part. */
template <int ROWS>
__device__ __forceinline__ void load_x(const Norm &n, int row, int c, bool in, float (&x)[ROWS][8])
{
    uint4  a[ROWS] = {};

    if (n.a != nullptr) Pieces<ROWS>::load(n, row, c, in, a);
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const int      at = ROWS == 1 ? row : min(row + r, n.rows - 1);
        const float4  *y = (const float4 *) (n.y + (size_t) at * n.ldy) + c * 2;
        const float4   q = in ? __ldcg(y) : float4{}, s = in ? __ldcg(y + 1) : float4{};
        float          f[8];

        x[r][0] = q.x, x[r][1] = q.y, x[r][2] = q.z, x[r][3] = q.w;
        x[r][4] = s.x, x[r][5] = s.y, x[r][6] = s.z, x[r][7] = s.w;
        if (n.a == nullptr) continue;
        unpack8(a[r], f);
#pragma unroll
        for (int i = 0; i < 8; i++) x[r][i] = fmaf(n.alpha, f[i], x[r][i]);
    }
}

template <int ROWS>
struct Room {
    float  sums[2][ROWS][kWarps];
};

/* Mean of a part of each row, and its sum of squared deviations. */
template <int ROWS>
__device__ __forceinline__ void part_stats(const float (&x)[ROWS][8], bool in, float len, Room<ROWS> &room,
                                           float2 (&st)[ROWS])
{
    float  mean[ROWS], q[ROWS];

#pragma unroll
    for (int r = 0; r < ROWS; r++)
        mean[r] = ((x[r][0] + x[r][1]) + (x[r][2] + x[r][3])) + ((x[r][4] + x[r][5]) + (x[r][6] + x[r][7]));
    part_sum(mean, room.sums[0]);
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        mean[r] /= len, q[r] = 0.f;
#pragma unroll
        for (int i = 0; i < 8; i++) q[r] = fmaf(x[r][i] - mean[r], x[r][i] - mean[r], q[r]);
        if (!in) q[r] = 0.f;
    }
    part_sum(q, room.sums[1]);
#pragma unroll
    for (int r = 0; r < ROWS; r++) st[r] = make_float2(mean[r], q[r]);
}

/* Joins the parts: (mean, 1 / standard deviation). */
__device__ __forceinline__ float2 join(const float2 p[kParts], float len, float eps)
{
    const float  mean = ((p[0].x + p[1].x) + (p[2].x + p[3].x)) / kParts;
    float        q = 0.f;

#pragma unroll
    for (int i = 0; i < kParts; i++) q += fmaf(len * (p[i].x - mean), p[i].x - mean, p[i].y);
    return make_float2(mean, 1.f / sqrtf(q / (len * kParts) + eps));
}

/* weight, bias: of the piece. */
__device__ __forceinline__ uint4 normal(const float x[8], float2 st, uint4 weight, uint4 bias)
{
    float  w[8], b[8], o[8];

    unpack8(weight, w);
    unpack8(bias, b);
#pragma unroll
    for (int i = 0; i < 8; i++) o[i] = fmaf((x[i] - st.x) * st.y, w[i], b[i]);
    return float8_half8(o);
}

#if GLM_ARCH == 90

/* Writes v to another CTA, whose bar counts its bytes: no fence, which would wait for loads. */
__device__ __forceinline__ void tell(uint32_t to, float2 v, uint32_t bar)
{
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(to),
                 "f"(v.x), "f"(v.y), "r"(bar) : "memory");
}

/* ROWS: of a cluster.  Two from 64 on, whose pieces then are whole sectors. */
template <int ROWS>
__global__ void __launch_bounds__(kThreads, ROWS == 1 ? 5 : 3) norm_kernel(const Norm n)
{
    __shared__ Room<ROWS>  room;
    __shared__ float2      parts[ROWS][kParts];
    __shared__ uint64_t    told;
    const int           row = blockIdx.x / kParts * ROWS, part = blockIdx.x % kParts, per = n.dim / (8 * kParts);
    const int           c = part * per + threadIdx.x;
    const bool          in = (int) threadIdx.x < per, step = n.bucket <= GLM_CUDA_MAX_ROWS;
    const float         len = (float) n.dim / kParts;
    const uint32_t      bar = smem_addr(&told);
    uint4               weight = {}, bias = {}, o[ROWS];
    float               x[ROWS][8];
    float2              st[ROWS];

    /* The others write here only when this CTA has started. */
    if (threadIdx.x == 0) {
        bar_init(bar, 1);
        bar_init_done();
        bar_expect(bar, sizeof(parts));
    }
    cluster_arrive();
    /* They come from far and do not change: in a step, on their way before the kernels in
     * front end. */
    if (in && step) weight = __ldg(n.weight + c), bias = __ldg(n.bias + c);
    if (n.early) grid_go();
    grid_wait();
    if (!n.early) grid_go();
    load_x(n, row, c, in, x);
    part_stats(x, in, len, room, st);
    cluster_wait();
    if (threadIdx.x < kParts) {
#pragma unroll
        for (int r = 0; r < ROWS; r++)
            tell(of_cta(smem_addr(&parts[r][part]), threadIdx.x), st[r], of_cta(bar, threadIdx.x));
    }
    bar_wait_cluster(bar, 0);
    if (in && !step) weight = __ldg(n.weight + c), bias = __ldg(n.bias + c);
#pragma unroll
    for (int r = 0; r < ROWS; r++) o[r] = normal(x[r], join(parts[r], len, n.eps), weight, bias);
    Pieces<ROWS>::store(n, row, c, in, o);
}

#else

__global__ void __launch_bounds__(kThreads) norm_kernel(const Norm n)
{
    __shared__ Room<1>  room;
    const int    row = blockIdx.x, per = n.dim / (8 * kParts);
    const bool   in = (int) threadIdx.x < per;
    const float  len = (float) n.dim / kParts;
    float        x[kParts][1][8];
    float2       st[kParts][1], parts[kParts];

#pragma unroll
    for (int p = 0; p < kParts; p++) {
        const int  c = p * per + threadIdx.x;

        load_x(n, row, c, in, x[p]);
        part_stats(x[p], in, len, room, st[p]);
        parts[p] = st[p][0];
    }
    const float2  all = join(parts, len, n.eps);

#pragma unroll
    for (int p = 0; p < kParts; p++) {
        const int  c = p * per + threadIdx.x;
        uint4      o[1];

        if (!in) continue;
        o[0] = normal(x[p][0], all, __ldg(n.weight + c), __ldg(n.bias + c));
        Pieces<1>::store(n, row, c, true, o);
    }
}

#endif

__global__ void embed_kernel(float *y, size_t ldy, const uint4 *table, const int32_t *token,
                             const int32_t *ids, int vocab, int dim)
{
    const int  row = blockIdx.x, c = blockIdx.y * blockDim.x + threadIdx.x;

    grid_go();
    grid_wait();
    if (c >= dim / 8) return;
    int    id = token[row];
    float  f[8] = {};

    if (id < 0 && ids != nullptr) id = ids[-1 - id];
    if (id >= 0 && id < vocab) unpack8(table[(size_t) id * (dim / 8) + c], f);
    float4  *out = (float4 *) (y + (size_t) row * ldy) + c * 2;

    out[0] = make_float4(f[0], f[1], f[2], f[3]);
    out[1] = make_float4(f[4], f[5], f[6], f[7]);
}

__global__ void repack_kernel(uint4 *out, const uint4 *x, int pieces, int from_bucket, int to_bucket,
                              int from, int to, int rows)
{
    const int  i = blockIdx.x * blockDim.x + threadIdx.x, c = i / rows, row = i % rows;

    grid_go();
    grid_wait();
    if (c < pieces)
        out[piece_at(pieces, c, to + row, to_bucket)] = x[piece_at(pieces, c, from + row, from_bucket)];
}

}  // namespace

int GLM_OP(norm)(const glm_gnorm_args_t *a, glm_stream_t *s)
{
    if (a == NULL || s == NULL || !bucket_ok(a->rows, a->bucket) || a->y == NULL || a->out == NULL
        || a->weight == NULL || a->bias == NULL || a->dim < 256 || a->dim % 256
        || a->dim > kParts * kThreads * 8 || a->ldy % 4 || a->ldy < (size_t) a->dim
        || !aligned16(a->y) || !aligned16(a->a) || !aligned16(a->out) || !aligned16(a->weight)
        || !aligned16(a->bias))
    {
        return GLM_EINVAL;
    }
    const Norm  n = {a->y, (const uint4 *) a->a, (const uint4 *) a->weight, (const uint4 *) a->bias,
                     (uint4 *) a->out, a->ldy, a->alpha, a->eps, a->dim, a->rows, a->bucket, a->bucket <= 16};

#if GLM_ARCH == 90
    if (a->bucket >= GLM_CUDA_BLOCK)
        return launch("norm", norm_kernel<2>, (a->rows + 1) / 2 * kParts, kThreads, 0, kParts, s, n);
    return launch("norm", norm_kernel<1>, a->rows * kParts, kThreads, 0, kParts, s, n);
#else
    return launch("norm", norm_kernel, a->rows, kThreads, 0, 1, s, n);
#endif
}

int GLM_OP(embed)(const glm_embed_args_t *a, glm_stream_t *s)
{
    if (a == NULL || s == NULL || a->y == NULL || a->table == NULL || a->token == NULL
        || a->rows < 1 || a->dim < 8 || a->dim % 8 || a->ldy % 4 || a->ldy < (size_t) a->dim
        || !aligned16(a->y) || !aligned16(a->table))
    {
        return GLM_EINVAL;
    }
    return launch("embed", embed_kernel, dim3(a->rows, (a->dim / 8 + 127) / 128), 128, 0, 1, s, a->y,
                  a->ldy, (const uint4 *) a->table, a->token, a->ids, a->vocab, a->dim);
}

int GLM_OP(repack)(const glm_repack_args_t *a, glm_stream_t *s)
{
    if (a == NULL || s == NULL || a->x == NULL || a->out == NULL || !aligned16(a->x)
        || !aligned16(a->out) || a->width < 8 || a->width % 8 || a->from < 0 || a->to < 0
        || a->rows < 1 || !bucket_ok(a->from + a->rows, a->from_bucket)
        || !bucket_ok(a->to + a->rows, a->to_bucket))
    {
        return GLM_EINVAL;
    }
    return launch("repack", repack_kernel, (a->rows * (a->width / 8) + 127) / 128, 128, 0, 1, s,
                  (uint4 *) a->out, (const uint4 *) a->x, a->width / 8, a->from_bucket, a->to_bucket,
                  a->from, a->to, a->rows);
}
