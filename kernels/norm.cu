/*
 * norm: residual + LayerNorm in one pass, the rows of the embedding, and rows moved
 * between buckets.  A row is
 * cut in four parts whatever its width; on sm_90 a cluster of four CTAs takes a
 * row, on sm_80 one CTA takes the parts in turn: the bits are the same.
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
    int            dim, bucket, early;
};

__device__ __forceinline__ float warp_sum(float v)
{
#pragma unroll
    for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(~0u, v, o);
    return v;
}

/* Sum over the CTA, the same bits in every thread.  warps: not those of the sum before. */
__device__ __forceinline__ float part_sum(float v, float *warps)
{
    float  s = 0.f;

    v = warp_sum(v);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = v;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kWarps; i++) s += warps[i];
    return s;
}

__device__ __forceinline__ void unpack8(uint4 v, float f[8])
{
    const uint32_t  w[4] = {v.x, v.y, v.z, v.w};

#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2  p = half2_float2(w[i]);

        f[2 * i] = p.x, f[2 * i + 1] = p.y;
    }
}

/* x of 8 elements; zeros past the end of a part. */
__device__ __forceinline__ void load_x(const Norm &n, int row, int c, bool in, float x[8])
{
    if (!in) {
#pragma unroll
        for (int i = 0; i < 8; i++) x[i] = 0.f;
        return;
    }
    const float4  *y = (const float4 *) (n.y + (size_t) row * n.ldy) + c * 2;
    const float4   p = __ldcg(y), q = __ldcg(y + 1);

    x[0] = p.x, x[1] = p.y, x[2] = p.z, x[3] = p.w;
    x[4] = q.x, x[5] = q.y, x[6] = q.z, x[7] = q.w;
    if (n.a != nullptr) {
        float  f[8];

        unpack8(__ldcg(n.a + piece_at(n.dim / 8, c, row, n.bucket)), f);
#pragma unroll
        for (int i = 0; i < 8; i++) x[i] = fmaf(n.alpha, f[i], x[i]);
    }
}

/* Mean of a part, and its sum of squared deviations. */
__device__ __forceinline__ float2 part_stats(const float x[8], bool in, float len, float (&warps)[2][kWarps])
{
    const float  s = ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7]));
    const float  mean = part_sum(s, warps[0]) / len;
    float        q = 0.f;

#pragma unroll
    for (int i = 0; i < 8; i++) q = fmaf(x[i] - mean, x[i] - mean, q);
    return make_float2(mean, part_sum(in ? q : 0.f, warps[1]));
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

/* weight, bias: of piece c. */
__device__ __forceinline__ void write_out(const Norm &n, int row, int c, const float x[8], float2 st,
                                          uint4 weight, uint4 bias)
{
    float     w[8], b[8];
    uint32_t  o[4];

    unpack8(weight, w);
    unpack8(bias, b);
#pragma unroll
    for (int i = 0; i < 4; i++)
        o[i] = float2_half2(fmaf((x[2 * i] - st.x) * st.y, w[2 * i], b[2 * i]),
                            fmaf((x[2 * i + 1] - st.x) * st.y, w[2 * i + 1], b[2 * i + 1]));
    n.out[piece_at(n.dim / 8, c, row, n.bucket)] = make_uint4(o[0], o[1], o[2], o[3]);
}

#if GLM_ARCH == 90

/* Writes v to another CTA, whose bar counts its bytes: no fence, which would wait for loads. */
__device__ __forceinline__ void tell(uint32_t to, float2 v, uint32_t bar)
{
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(to),
                 "f"(v.x), "f"(v.y), "r"(bar) : "memory");
}

__global__ void __launch_bounds__(kThreads, 5) norm_kernel(const Norm n)
{
    __shared__ float     warps[2][kWarps];
    __shared__ float2    parts[kParts];
    __shared__ uint64_t  told;
    const int       row = blockIdx.x / kParts, part = blockIdx.x % kParts, per = n.dim / (8 * kParts);
    const int       c = part * per + threadIdx.x;
    const bool      in = (int) threadIdx.x < per;
    const float     len = (float) n.dim / kParts;
    const uint32_t  bar = smem_addr(&told);
    uint4           weight = {}, bias = {};
    float           x[8];

    /* The others write here only when this CTA has started. */
    if (threadIdx.x == 0) {
        bar_init(bar, 1);
        bar_init_done();
        bar_expect(bar, sizeof(parts));
    }
    cluster_arrive();
    /* They come from far and do not change: with few rows, on their way before the kernels
     * in front end. */
    if (in && n.early) weight = __ldg(n.weight + c), bias = __ldg(n.bias + c);
    if (n.early) grid_go();
    grid_wait();
    if (!n.early) grid_go();
    load_x(n, row, c, in, x);
    const float2  st = part_stats(x, in, len, warps);

    cluster_wait();
    if (threadIdx.x < kParts)
        tell(of_cta(smem_addr(parts + part), threadIdx.x), st, of_cta(bar, threadIdx.x));
    bar_wait_cluster(bar, 0);
    if (in && !n.early) weight = __ldg(n.weight + c), bias = __ldg(n.bias + c);
    if (in) write_out(n, row, c, x, join(parts, len, n.eps), weight, bias);
}

#else

__global__ void __launch_bounds__(kThreads) norm_kernel(const Norm n)
{
    __shared__ float  warps[2][kWarps];
    const int    row = blockIdx.x, per = n.dim / (8 * kParts);
    const bool   in = (int) threadIdx.x < per;
    const float  len = (float) n.dim / kParts;
    float        x[kParts][8];
    float2       st[kParts];

#pragma unroll
    for (int p = 0; p < kParts; p++) {
        load_x(n, row, p * per + threadIdx.x, in, x[p]);
        st[p] = part_stats(x[p], in, len, warps);
    }
    const float2  all = join(st, len, n.eps);

#pragma unroll
    for (int p = 0; p < kParts; p++) {
        const int  c = p * per + threadIdx.x;

        if (in) write_out(n, row, c, x[p], all, __ldg(n.weight + c), __ldg(n.bias + c));
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
                     (uint4 *) a->out, a->ldy, a->alpha, a->eps, a->dim, a->bucket, a->bucket <= 16};

    return launch("norm", norm_kernel, a->rows * (GLM_ARCH == 90 ? kParts : 1), kThreads, 0, kParts,
                  s, n);
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
