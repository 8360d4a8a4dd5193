/*
 * pack: from the neutral format of model files to tiles, on the device, and the
 * fill of dummy tensors.  Runs at load; moves each weight once in and once out.
 */
#include "cuda_common.cuh"
#include "tiles.cuh"

namespace {

struct Pack {
    uint8_t        *tiles;
    const uint8_t  *src;
    const __half   *scale;
    int             k, n, groups, glu;
};

/* Row of the source at a place of the tiles; -1: padding. */
__device__ __forceinline__ int source_row(const Pack &p, int at)
{
    if (at >= p.n) return -1;
    if (!p.glu) return at;
    return at % 16 < 8 ? at / 16 * 8 + at % 16 : p.n / 2 + at / 16 * 8 + at % 16 - 8;
}

/* q + 8 of column k, one of a pair (k even): low half first. */
__device__ __forceinline__ uint32_t nibble_pair(const Pack &p, int row, int k)
{
    const uint32_t  b = row < 0 ? 0 : p.src[((size_t) row * p.k + k) / 2];

    return ((b >> 4) ^ 8) | ((b & 15) ^ 8) << 16;
}

__device__ __forceinline__ uint32_t word_of(const Pack &p, int type, int r0, int r1, int k, int e)
{
    const int  row = e & 1 ? r1 : r0, col = k + (e & 2 ? 8 : 0);

    if (type == GLM_W_INT8) {
        const uint16_t  b = row < 0 ? 0 : *(const uint16_t *) (p.src + (size_t) row * p.k + col);

        return b ^ 0x8080;
    }
    return row < 0 ? 0 : *(const uint32_t *) (p.src + ((size_t) row * p.k + col) * 2);
}

/* One 16-byte item of a tile a thread; blockIdx.x: tile, .y: part of it. */
template <int WT>
__global__ void pack_kernel(const Pack p)
{
    constexpr int  kItems = tile_data(WT) / 16;
    const int      i = blockIdx.y * blockDim.x + threadIdx.x;
    const int      nk = p.k / kGroup, tr = blockIdx.x / nk, kg = blockIdx.x % nk;
    uint8_t       *tile = p.tiles + (size_t) blockIdx.x * tile_bytes(WT);

    grid_wait();
    if (WT != GLM_W_F16 && i < kGroup) {
        const int  row = source_row(p, tr * 128 + i);

        *(__half *) (tile + scale_at(WT, i)) =
            row < 0 ? __float2half(0.f)
                    : p.scale[(size_t) row * p.groups + (p.groups == 1 ? 0 : kg)];
    }
    if (i >= kItems) return;
    const int  lane = i % 32, sub = i / (kItems / 8), of_sub = i % (kItems / 8), part = i / 32 % (kItems / 256);
    const int  g = lane / 4, t = lane % 4;
    const int  r0 = source_row(p, tr * 128 + sub * 16 + g);
    const int  r1 = source_row(p, tr * 128 + sub * 16 + g + 8);
    const int  k0 = kg * kGroup + part * (128 / (kItems / 256)) + 2 * t;
    uint32_t   w[4];

#pragma unroll
    for (int j = 0; j < 4; j++) {
        if (WT == GLM_W_INT4) {                     /* part = half, j = step */
            const int  k = k0 + j * 16;

            w[j] = nibble_pair(p, r0, k) | nibble_pair(p, r1, k) << 4
                   | nibble_pair(p, r0, k + 8) << 8 | nibble_pair(p, r1, k + 8) << 12;
        } else if (WT == GLM_W_INT8) {              /* part = 2 half + pair */
            const int  k = k0 + j / 2 * 16, e = j % 2 * 2;

            w[j] = word_of(p, WT, r0, r1, k, e) | word_of(p, WT, r0, r1, k, e + 1) << 16;
        } else {                                    /* part = 4 half + step */
            w[j] = word_of(p, WT, r0, r1, k0, j);
        }
    }
    ((uint4 *) (tile + sub_at(WT, sub)))[of_sub] = make_uint4(w[0], w[1], w[2], w[3]);
}

template <int WT>
int run(const Pack &p, glm_stream_t *s)
{
    const int  items = tile_data(WT) / 16, threads = 256;

    return launch("pack", pack_kernel<WT>,
                  dim3((p.n + 255) / 256 * 2 * (p.k / kGroup), (items + threads - 1) / threads),
                  threads, 0, 1, s, p);
}

__global__ void fill_kernel(uint32_t *dst, uint64_t count, uint32_t seed, uint64_t first)
{
    grid_wait();
    for (uint64_t i = blockIdx.x * (uint64_t) blockDim.x + threadIdx.x; i < count;
         i += (uint64_t) gridDim.x * blockDim.x)
        dst[i] = glm_hash(seed, first + i);
}

__global__ void fill_half_kernel(__half *dst, uint64_t count, uint32_t seed, uint64_t first, float lo,
                                 float span)
{
    grid_wait();
    for (uint64_t i = blockIdx.x * (uint64_t) blockDim.x + threadIdx.x; i < count;
         i += (uint64_t) gridDim.x * blockDim.x)
        dst[i] = __float2half_rn(
            fmaf(span, (float) (glm_hash(seed, first + i) >> 8) * 0x1p-24f, lo));
}

}  // namespace

int GLM_OP(pack)(const glm_pack_args_t *a, glm_stream_t *s)
{
    if (a == NULL || s == NULL || a->w == NULL) return GLM_EINVAL;
    const glm_tiles_t  *w = a->w;
    const Pack          p = {(uint8_t *) w->tiles, (const uint8_t *) a->src, (const __half *) a->scale,
                             w->k, w->n, a->groups, w->glu};

    if (w->tiles == NULL || a->src == NULL || w->k < 256 || w->k % 256 || w->n < 8 || w->n % 8
        || w->n > kMaxTiles * 128 || (w->glu && w->n % 16) || !aligned16(w->tiles)
        || !aligned16(a->src))
    {
        return GLM_EINVAL;
    }
    if (w->type != GLM_W_F16
        && (a->scale == NULL || (a->groups != 1 && a->groups != w->k / kGroup)))
    {
        return GLM_EINVAL;
    }
    switch (w->type) {
    case GLM_W_INT4: return run<GLM_W_INT4>(p, s);
    case GLM_W_INT8: return run<GLM_W_INT8>(p, s);
    case GLM_W_F16:  return run<GLM_W_F16>(p, s);
    default:         return GLM_EINVAL;
    }
}

int GLM_OP(fill)(const glm_fill_args_t *a, glm_stream_t *s)
{
    if (a == NULL || s == NULL || a->dst == NULL || !aligned16(a->dst)) return GLM_EINVAL;
    if (a->f16)
        return launch("fill", fill_half_kernel, s->sms * 8, 256, 0, 1, s, (__half *) a->dst, a->count,
                      a->seed, a->first, a->lo, a->hi - a->lo);
    return launch("fill", fill_kernel, s->sms * 8, 256, 0, 1, s, (uint32_t *) a->dst, a->count,
                  a->seed, a->first);
}
