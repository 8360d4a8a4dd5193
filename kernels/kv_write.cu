/*
 * kv_write: rotates the keys of a step and stores keys and values in their pages,
 * as fp16 or as int8 with a scale a token and head.  A warp takes a head of a
 * row.  An ideal run moves rows * heads * d * (4 + 2 or 4) bytes.
 * What is not finite, or no longer is as fp16, becomes NaN, so that it shows in every row
 * that sees the token: in int8 the scales of both, as decode needs no V of weight 0.
 */
#include "attn.cuh"

namespace {

__device__ __forceinline__ float warp_max(float v)
{
#pragma unroll
    for (int o = 16; o; o >>= 1) v = max_or_nan(v, __shfl_xor_sync(~0u, v, o));
    return v;
}

__device__ __forceinline__ __half not_a_number()
{
    return __ushort_as_half(0x7fff);
}

/* fp16 scale = absmax / 127, rounded up so that |q| <= 127; 0 for zeros. */
__device__ __forceinline__ __half scale_of(float absmax)
{
    return __float2half_ru(absmax / 127.f);
}

/* Of values: 127 times a larger one is infinite in fp16, as a mean of values would be. */
__device__ __forceinline__ __half value_scale_of(float absmax)
{
    return __hmin(scale_of(absmax), __float2half(515.5f));
}

__device__ __forceinline__ uint8_t quantise(float v, float scale)
{
    return (uint8_t) (scale > 0.f ? __float2int_rn(fminf(fmaxf(v / scale, -127.f), 127.f)) : 0);
}

/* Value i of a token, `stride` values from the next. */
template <bool INT8>
__device__ __forceinline__ void put(uint8_t *token, int i, int stride, float v, float scale)
{
    if (INT8) {
        token[i * stride] = quantise(v, scale);
    } else {
        const __half  h = __float2half_rn(v);

        ((__half *) token)[i * stride] = __hisinf(h) ? not_a_number() : h;
    }
}

template <int D, bool INT8>
__global__ void __launch_bounds__(128) kv_write_kernel(const Kv kv, const Rows r, const __half *qkv,
                                                       const __half2 *rope)
{
    constexpr int  E = D / 64;
    using          H = Head<D, INT8>;
    const int      i = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
    const int      row = i / kv.heads, head = i % kv.heads;

    grid_go();
    if (row >= r.rows) return;
    const int  slot = r.slot[row];            /* rows do not change within a step */

    if (slot < 0) {
        grid_wait();                          /* no kernel ends before those in front */
        return;
    }
    const __half   *k = qkv + ((size_t) row * kv.heads + head) * 3 * D + D, *v = k + D;
    const __half2  *cs = rope + (size_t) r.position[row] * (D / 2) + lane * E;
    const int       page = r.pages[(size_t) row * r.ldpages + slot / kPage];
    uint8_t        *at = head_at<D, INT8>(kv, page, head);
    __half2         turn[E];

#pragma unroll
    for (int e = 0; e < E; e++) turn[e] = cs[e];
    grid_wait();
    float           k0[E], k1[E], v0[E], v1[E], kmax = 0.f, vmax = 0.f, ks = 0.f, vs = 0.f;

#pragma unroll
    for (int e = 0; e < E; e++) {
        const int     j = lane * E + e;
        const float2  c = __half22float2(turn[e]);
        const float   x = __half2float(k[j]), y = __half2float(k[j + D / 2]);

        k0[e] = fmaf(x, c.x, -(y * c.y));
        k1[e] = fmaf(y, c.x, x * c.y);
        v0[e] = __half2float(v[j]);
        v1[e] = __half2float(v[j + D / 2]);
        kmax = max_or_nan(kmax, max_or_nan(fabsf(k0[e]), fabsf(k1[e])));
        vmax = max_or_nan(vmax, max_or_nan(fabsf(v0[e]), fabsf(v1[e])));
    }
    if (INT8) {
        kmax = warp_max(kmax), vmax = warp_max(vmax);
        const bool    finite = kmax < INFINITY && vmax < INFINITY;
        const __half  kh = finite ? scale_of(kmax) : not_a_number();
        const __half  vh = finite ? value_scale_of(vmax) : not_a_number();
        __half       *scales = scales_at<D, INT8>(kv, page, head) + slot % kPage;

        if (lane == 0) scales[0] = kh, scales[kPage] = vh;
        ks = __half2float(kh), vs = __half2float(vh);
    }
    uint8_t    *kt = at + slot % kPage * H::kToken;
    uint8_t    *vt = at + kPage * H::kToken
                     + (INT8 ? slot % kPage / 4 * D * 4 + slot % 4 : slot % kPage * H::kToken);
    const int   apart = INT8 ? 4 : 1;

#pragma unroll
    for (int e = 0; e < E; e++) {
        const int  j = lane * E + e;

        put<INT8>(kt, j, 1, k0[e], ks), put<INT8>(kt, j + D / 2, 1, k1[e], ks);
        put<INT8>(vt, j, apart, v0[e], vs), put<INT8>(vt, j + D / 2, apart, v1[e], vs);
    }
}

template <int D, bool INT8>
int run(const glm_attn_args_t *a, glm_stream_t *s)
{
    const Kv    kv = {(uint8_t *) a->kv->base, a->kv->page_bytes, a->kv->heads};
    const Rows  r = {a->rows->slot, a->rows->position, a->rows->pages, a->rows->ldpages, a->rows->rows};

    return launch("kv_write", kv_write_kernel<D, INT8>, (r.rows * kv.heads + 3) / 4, 128, 0, 1, s, kv,
                  r, (const __half *) a->qkv, (const __half2 *) a->rope);
}

}  // namespace

int GLM_OP(kv_write)(const glm_attn_args_t *a, glm_stream_t *s)
{
    if (s == NULL || !attn_ok(a)) return GLM_EINVAL;
    if (a->kv->int8) return a->kv->d == 128 ? run<128, true>(a, s) : run<64, true>(a, s);
    return a->kv->d == 128 ? run<128, false>(a, s) : run<64, false>(a, s);
}
