/*
 * tiles: the layout of weights, the cut of K, and the way from stored weights to
 * the fragments of the matrix instructions.  docs/KERNELS.md has the pictures.
 *
 * A tile is 128 outputs x 128 inputs (one group), contiguous: two bands of 64 outputs, a
 * warpgroup's, each with its scales at its end.  Tiles lie [n / 128][k / 128], n padded to
 * 256: a run of tiles along k is one bulk copy, and so is a band.  Inside, 16 outputs
 * ("sub") x 16 inputs are one A fragment of m16n8k16, in the order of the lanes: lane =
 * 4 g + t holds outputs g, g + 8 and inputs 2t, 2t+1, 2t+8, 2t+9.
 *   int4  [sub][half][lane][4 words]   word j: the fragment of k16 step 4 half + j
 *         as nibbles q + 8: 0,4 a0  1,5 a1 (output g+8)  2,6 a2 (inputs +8)  3,7 a3
 *   int8  [sub][half][pair][lane][4 words]  2 words a step: bytes q + 128, a0 a1 | a2 a3
 *   fp16  [sub][half][step][lane][4 words]  a0 a1 a2 a3
 *
 * Order of a sum.  A group is one chain of matrix instructions from zero in
 * ascending k, on the exact small integers; a segment is fma(scale, group, segment)
 * from zero over its groups in ascending order; segments are added in ascending
 * order.  The cut in segments depends on k alone: up to 4 of equally many groups
 * (an even number).
 */
#pragma once
#include <stdint.h>

#include "cuda_size.h"
#include "glm_cuda.h"

constexpr int kGroup = GLM_TILE;
constexpr int kSegments = GLM_SEGMENTS;

__host__ __device__ constexpr int tile_data(int type)
{
    return GLM_TILE_DATA(type);
}

__host__ __device__ constexpr int tile_bytes(int type)
{
    return GLM_TILE_BYTES(type);
}

__host__ __device__ constexpr int band_data(int type)
{
    return GLM_TILE_DATA(type) / 2;
}

__host__ __device__ constexpr int band_bytes(int type)
{
    return GLM_TILE_BYTES(type) / 2;
}

/* Where 16 outputs begin, from the start of a tile or of a run of bands. */
__host__ __device__ constexpr int sub_at(int type, int sub)
{
    return sub / 4 * band_bytes(type) + sub % 4 * (band_data(type) / 4);
}

/* Where the scale of an output is. */
__host__ __device__ constexpr int scale_at(int type, int output)
{
    return output / 64 * band_bytes(type) + band_data(type) + output % 64 * 2;
}

/* Groups of a segment, segments of k. */
__host__ __device__ constexpr int segment_groups(int groups)
{
    return (groups / 2 + kSegments - 1) / kSegments * 2;
}

__host__ __device__ constexpr int segment_count(int groups)
{
    return (groups + segment_groups(groups) - 1) / segment_groups(groups);
}

/* Workspace of the linears: a counter a tile, then published segments. */
constexpr int     kMaxTiles = GLM_MAX_TILES;
constexpr size_t  kCounterBytes = GLM_COUNTERS * 4;

#ifdef GLM_OP

namespace {

/* Four half2 = (q - 8) of the eight nibbles of a word, exactly. */
__device__ __forceinline__ void nibbles(uint32_t q, uint32_t a[4])
{
    uint32_t  q8 = q >> 8, l0, h0, l1, h1;

    asm("lop3.b32 %0, %1, 0x000f000f, 0x64006400, 0xea;" : "=r"(l0) : "r"(q));  /* 1024 + nibble */
    asm("lop3.b32 %0, %1, 0x00f000f0, 0x64006400, 0xea;" : "=r"(h0) : "r"(q));  /* 1024 + 16 nib. */
    asm("lop3.b32 %0, %1, 0x000f000f, 0x64006400, 0xea;" : "=r"(l1) : "r"(q8));
    asm("lop3.b32 %0, %1, 0x00f000f0, 0x64006400, 0xea;" : "=r"(h1) : "r"(q8));
    asm("sub.f16x2 %0, %1, %2;" : "=r"(a[0]) : "r"(l0), "r"(0x64086408));       /* - 1032 */
    asm("fma.rn.f16x2 %0, %1, %2, %3;"                                          /* / 16 - 72 */
        : "=r"(a[1]) : "r"(h0), "r"(0x2c002c00), "r"(0xd480d480));
    asm("sub.f16x2 %0, %1, %2;" : "=r"(a[2]) : "r"(l1), "r"(0x64086408));
    asm("fma.rn.f16x2 %0, %1, %2, %3;"
        : "=r"(a[3]) : "r"(h1), "r"(0x2c002c00), "r"(0xd480d480));
}

/* half2 = (b - 128) of bytes sel, sel + 1. */
__device__ __forceinline__ uint32_t byte_pair(uint32_t w, uint32_t sel)
{
    uint32_t  v, r;

    v = __byte_perm(w, 0x64646464, sel);                                        /* 1024 + b */
    asm("sub.f16x2 %0, %1, %2;" : "=r"(r) : "r"(v), "r"(0x64806480));           /* - 1152 */
    return r;
}

/*
 * A lane's share of 16 outputs: from the start of a tile, or of a run of bands, in shared
 * memory, to its weights and to its scales.
 */
template <int WT>
struct Share {
    uint32_t  w, s;

    __device__ __forceinline__ Share(int sub, int lane)
        : w(sub_at(WT, sub) + lane * 16), s(scale_at(WT, sub * 16) + lane / 4 * 2)
    {
    }

    /* In registers from here on: ptxas works nothing out anew that comes from a shuffle. */
    __device__ __forceinline__ void keep(int lane)
    {
        w = __shfl_sync(~0u, w, lane), s = __shfl_sync(~0u, s, lane);
    }
};

/* A fragments of 16 outputs x 64 inputs, without scale; exact.  p: a lane's weights. */
template <int WT>
__device__ __forceinline__ void fragments(const uint8_t *p, int half, uint32_t (&a)[4][4])
{
    p += half * (band_data(WT) / 8);
    if constexpr (WT == GLM_W_F16) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            uint4  v = *(const uint4 *) (p + j * 512);

            a[j][0] = v.x, a[j][1] = v.y, a[j][2] = v.z, a[j][3] = v.w;
        }
    } else if constexpr (WT == GLM_W_INT4) {
        uint4  v = *(const uint4 *) p;

        nibbles(v.x, a[0]), nibbles(v.y, a[1]), nibbles(v.z, a[2]), nibbles(v.w, a[3]);
    } else {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            uint4  v = *(const uint4 *) (p + i * 512);

            a[2 * i][0] = byte_pair(v.x, 0x4140), a[2 * i][1] = byte_pair(v.x, 0x4342);
            a[2 * i][2] = byte_pair(v.y, 0x4140), a[2 * i][3] = byte_pair(v.y, 0x4342);
            a[2 * i + 1][0] = byte_pair(v.z, 0x4140), a[2 * i + 1][1] = byte_pair(v.z, 0x4342);
            a[2 * i + 1][2] = byte_pair(v.w, 0x4140), a[2 * i + 1][3] = byte_pair(v.w, 0x4342);
        }
    }
}

/* Scales of a lane's outputs, g and g + 8; p: where they are. */
template <int WT>
__device__ __forceinline__ float2 scales(const uint8_t *p)
{
    if constexpr (WT == GLM_W_F16) return make_float2(1.f, 1.f);
    const __half  *s = (const __half *) p;

    return make_float2(__half2float(s[0]), __half2float(s[8]));
}

}  // namespace

#endif
