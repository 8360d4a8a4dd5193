/*
 * kv_write: rotates the keys of a step and stores keys and values in their pages,
 * as fp16 or as int8 with a scale a token and head.  A warp takes a head of a
 * row, of a pass four rows.  An ideal run moves rows * heads * d * (4 + 2 or 4) bytes, and
 * of a pass 4 more.
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

/* As fp16, rounded.  127 times a key's scale larger than 515.5 would be infinite: such a key, with
 * an element past 65468, is made smaller as a whole. */
__device__ __forceinline__ __half dequantise(uint8_t q, __half scale)
{
    return __hmul(__int2half_rn((int8_t) q), __hmin_nan(scale, __float2half(515.5f)));
}

__device__ __forceinline__ __half finite_or_nan(float v)
{
    const __half  h = __float2half_rn(v);

    return __hisinf(h) ? not_a_number() : h;
}

/* A row's key and value of a head; a lane has E pairs, from E lane on, dimensions D / 2 apart. */
template <int D>
struct Token {
    static constexpr int  E = D / 64;

    int      slot, page;
    __half2  turn[E];
    float    k[2][E], v[2][E];

    __device__ __forceinline__ static int dim(int half, int e) { return half * (D / 2) + threadIdx.x % 32 * E + e; }

    /* What no kernel of a step writes. */
    __device__ __forceinline__ void look(const Rows &r, const __half2 *rope, int row)
    {
        const __half2  *cs = rope + (size_t) r.position[row] * (D / 2) + dim(0, 0);

        page = r.pages[(size_t) row * r.ldpages + slot / kPage];
#pragma unroll
        for (int e = 0; e < E; e++) turn[e] = cs[e];
    }

    /* from: the head's key, its value behind it. */
    __device__ __forceinline__ void load(const __half *from)
    {
#pragma unroll
        for (int e = 0; e < E; e++) {
            const float2  c = __half22float2(turn[e]);
            const float   x = __half2float(from[dim(0, e)]), y = __half2float(from[dim(1, e)]);

            k[0][e] = fmaf(x, c.x, -(y * c.y));
            k[1][e] = fmaf(y, c.x, x * c.y);
            v[0][e] = __half2float(from[D + dim(0, e)]);
            v[1][e] = __half2float(from[D + dim(1, e)]);
        }
    }

    /* Of key and value, NaN if either is not finite. */
    __device__ __forceinline__ void scales(__half &ks, __half &vs) const
    {
        float  kmax = 0.f, vmax = 0.f;

#pragma unroll
        for (int i = 0; i < 2 * E; i++) {
            kmax = max_or_nan(kmax, fabsf((&k[0][0])[i]));
            vmax = max_or_nan(vmax, fabsf((&v[0][0])[i]));
        }
        kmax = warp_max(kmax), vmax = warp_max(vmax);
        const bool  finite = kmax < INFINITY && vmax < INFINITY;

        ks = finite ? scale_of(kmax) : not_a_number();
        vs = finite ? value_scale_of(vmax) : not_a_number();
    }
};

/* Byte of a dimension of a token's value in its page's head. */
template <int D, bool INT8>
__device__ __forceinline__ int value_at(int slot, int dim)
{
    return kPage * Head<D, INT8>::kToken
           + (INT8 ? slot % kPage / 4 * D * 4 + slot % 4 + dim * 4 : slot % kPage * D * 2 + dim * 2);
}

template <int D, bool INT8>
__global__ void __launch_bounds__(128) kv_write_kernel(const Kv kv, const Rows r, const __half *qkv,
                                                       const __half2 *rope)
{
    using      H = Head<D, INT8>;
    const int  i = (blockIdx.x * blockDim.x + threadIdx.x) / 32, row = i / kv.heads, head = i % kv.heads;
    Token<D>   t;

    grid_go();
    if (row >= r.rows) return;
    t.slot = r.slot[row];                     /* rows do not change within a step */
    if (t.slot < 0) {
        grid_wait();                          /* no kernel ends before those in front */
        return;
    }
    t.look(r, rope, row);
    uint8_t  *to = head_at<D, INT8>(kv, t.page, head), *key = to + t.slot % kPage * H::kToken;

    grid_wait();
    t.load(qkv + ((size_t) row * kv.heads + head) * 3 * D + D);
    __half  ks = {}, vs = {};

    if (INT8) {
        __half  *scales = scales_at<D, INT8>(kv, t.page, head) + t.slot % kPage;

        t.scales(ks, vs);
        if (threadIdx.x % 32 == 0) scales[0] = ks, scales[kPage] = vs;
    }
#pragma unroll
    for (int n = 0; n < 2 * t.E; n++) {
        const int    dim = t.dim(n / t.E, n % t.E);
        const float  k = t.k[n / t.E][n % t.E], v = t.v[n / t.E][n % t.E];
        uint8_t     *value = to + value_at<D, INT8>(t.slot, dim);

        if (INT8) key[dim] = quantise(k, __half2float(ks)), *value = quantise(v, __half2float(vs));
        else ((__half *) key)[dim] = finite_or_nan(k), *(__half *) value = finite_or_nan(v);
    }
}

template <int N> struct Bytes;
template <> struct Bytes<1> { using T = uint8_t; };
template <> struct Bytes<2> { using T = uint16_t; };
template <> struct Bytes<4> { using T = uint32_t; };
template <> struct Bytes<8> { using T = uint2; };

/* N values next to each other. */
template <typename V, int N>
__device__ __forceinline__ void put(void *to, const V (&v)[N])
{
    using  T = typename Bytes<sizeof(V) * N>::T;
    union { V v[N]; T t; }  u;

#pragma unroll
    for (int i = 0; i < N; i++) u.v[i] = v[i];
    *(T *) to = u.t;
}

/*
 * A pass of a context: rows in slots one after the other, from a multiple of four on, so a warp
 * has four rows of a head, and a dimension's values of int8 are a word.  What a page holds
 * of a row takes the place of its key and value in qkv, as fp16: attn_context reads it there.
 */
template <int D, bool INT8>
__global__ void __launch_bounds__(128) kv_write_pass_kernel(const Kv kv, const Rows r, __half *qkv,
                                                            const __half2 *rope)
{
    using          H = Head<D, INT8>;
    constexpr int  E = Token<D>::E;
    const int      i = (blockIdx.x * blockDim.x + threadIdx.x) / 32, row = i / kv.heads * 4, head = i % kv.heads;
    const int      n = min(4, r.rows - row);
    Token<D>       t[4];
    uint32_t       words[2][E] = {};

    grid_go();
    if (n <= 0) return;
#pragma unroll
    for (int x = 0; x < 4; x++) {
        t[x].slot = r.slot[row + min(x, n - 1)];
        t[x].look(r, rope, row + min(x, n - 1));
    }
    uint8_t  *to = head_at<D, INT8>(kv, t[0].page, head);         /* four slots share a page */
    __half   *scales = scales_at<D, INT8>(kv, t[0].page, head);

    grid_wait();
#pragma unroll
    for (int x = 0; x < 4; x++) t[x].load(qkv + ((size_t) (row + min(x, n - 1)) * kv.heads + head) * 3 * D + D);
#pragma unroll
    for (int x = 0; x < 4; x++) {
        if (x >= n) break;
        uint8_t  *key = to + t[x].slot % kPage * H::kToken;
        __half   *back = qkv + ((size_t) (row + x) * kv.heads + head) * 3 * D + D;
        __half    ks = {}, vs = {}, k[E], v[E];

        if (INT8) {
            t[x].scales(ks, vs);
            if (threadIdx.x % 32 == 0) scales[t[x].slot % kPage] = ks, scales[kPage + t[x].slot % kPage] = vs;
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int  dim = t[x].dim(half, 0);
            uint8_t    q[E];

#pragma unroll
            for (int e = 0; e < E; e++) {
                if (!INT8) {
                    k[e] = finite_or_nan(t[x].k[half][e]), v[e] = finite_or_nan(t[x].v[half][e]);
                    continue;
                }
                const uint8_t  b = quantise(t[x].v[half][e], __half2float(vs));

                q[e] = quantise(t[x].k[half][e], __half2float(ks));
                words[half][e] |= (uint32_t) b << 8 * x;
                k[e] = dequantise(q[e], ks), v[e] = dequantise(b, vs);
                if (n < 4) to[value_at<D, true>(t[x].slot, dim + e)] = b;
            }
            if (INT8) put(key + dim, q);
            else put(key + dim * 2, k), put(to + value_at<D, false>(t[x].slot, dim), v);
            put(back + dim, k), put(back + D + dim, v);
        }
    }
    if (INT8 && n == 4) {
#pragma unroll
        for (int half = 0; half < 2; half++) put(to + value_at<D, true>(t[0].slot, t[0].dim(half, 0)), words[half]);
    }
}

template <int D, bool INT8>
int run(const glm_attn_args_t *a, glm_stream_t *s)
{
    const Kv    kv = {(uint8_t *) a->kv->base, a->kv->page_bytes, a->kv->heads};
    const Rows  r = {a->rows->slot, a->rows->position, a->rows->pages, a->rows->ldpages, a->rows->rows};

    if (r.ldpages == 0)
        return launch("kv_write", kv_write_pass_kernel<D, INT8>, ((r.rows + 3) / 4 * kv.heads + 3) / 4, 128, 0, 1, s,
                      kv, r, (__half *) a->qkv, (const __half2 *) a->rope);
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
