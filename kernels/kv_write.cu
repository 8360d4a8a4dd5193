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

__device__ __forceinline__ __half not_a_number()
{
    return __ushort_as_half(0x7fff);
}

/* v / b as a division rounds it, b of 11 bits at most: the first quotient is near enough that what
 * it leaves over is exact, and no such quotient lies as near to the middle of two floats as what
 * is then neglected. */
__device__ __forceinline__ float quotient(float v, float b, float inverse)
{
    const float  q = v * inverse;

    return fmaf(fmaf(-q, b, v), inverse, q);
}

/* fp16 scale = absmax / 127, rounded up so that |q| <= 127; 0 for zeros. */
__device__ __forceinline__ __half scale_of(float absmax)
{
    return __float2half_ru(quotient(absmax, 127.f, 1.f / 127.f));
}

constexpr float  kMostScale = 515.5f;     /* 127 times the next one is infinite in fp16 */

/* Of values: a mean of them would be, too. */
__device__ __forceinline__ __half value_scale_of(float absmax)
{
    return __hmin(scale_of(absmax), __float2half(kMostScale));
}

/* Plus this, a small number is rounded to an integer, which is the sum's last byte. */
constexpr float  kRound = 1.5f * (1 << 23);

/* To int8 and back. */
struct Quantiser {
    float  scale, inverse;

    __device__ __forceinline__ explicit Quantiser(__half s) : scale(__half2float(s))
    {
        asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(scale));
    }

    /* v / scale, rounded: -127 .. 127, as the scale is made so; 0 without one.  Plus kRound. */
    __device__ __forceinline__ float operator()(float v) const
    {
        return scale > 0.f ? quotient(v, scale, inverse) + kRound : kRound;
    }

    __device__ __forceinline__ static uint8_t byte(float rounded) { return (uint8_t) __float_as_uint(rounded); }

    /* To fp16, rounded.  A key with a larger scale, which has an element past 65468, is made smaller
     * as a whole. */
    __device__ __forceinline__ __half back(float rounded) const
    {
        return __float2half_rn((rounded - kRound) * (scale > kMostScale ? kMostScale : scale));
    }
};

__device__ __forceinline__ __half finite_or_nan(float v)
{
    const __half  h = __float2half_rn(v);

    return __hisinf(h) ? not_a_number() : h;
}

template <int N> struct Bytes;
template <> struct Bytes<1> { using T = uint8_t; };
template <> struct Bytes<2> { using T = uint16_t; };
template <> struct Bytes<4> { using T = uint32_t; };
template <> struct Bytes<8> { using T = uint2; };

/* N values next to each other. */
template <typename V, int N>
__device__ __forceinline__ void get(V (&v)[N], const void *from)
{
    using  T = typename Bytes<sizeof(V) * N>::T;
    union { T t; V v[N]; }  u;

    u.t = *(const T *) from;
#pragma unroll
    for (int i = 0; i < N; i++) v[i] = u.v[i];
}

template <typename V, int N>
__device__ __forceinline__ void put(void *to, const V (&v)[N])
{
    using  T = typename Bytes<sizeof(V) * N>::T;
    union { V v[N]; T t; }  u;

#pragma unroll
    for (int i = 0; i < N; i++) u.v[i] = v[i];
    *(T *) to = u.t;
}

/* A row's key and value of a head; a lane has E pairs, from E lane on, dimensions D / 2 apart. */
template <int D>
struct Token {
    static constexpr int  E = D / 64;

    __half2  turn[E];
    float    k[2][E], v[2][E];

    __device__ __forceinline__ static int dim(int half, int e) { return half * (D / 2) + threadIdx.x % 32 * E + e; }

    /* What no kernel of a step writes. */
    __device__ __forceinline__ void look(const __half2 *rope, int position)
    {
        get(turn, rope + (size_t) position * (D / 2) + dim(0, 0));
    }

    /* from: the head's key, its value behind it. */
    __device__ __forceinline__ void load(const __half *from)
    {
        __half  h[4][E];

#pragma unroll
        for (int i = 0; i < 4; i++) get(h[i], from + i / 2 * D + dim(i % 2, 0));
#pragma unroll
        for (int e = 0; e < E; e++) {
            const float2  r = rotated(__half2float(h[0][e]), __half2float(h[1][e]), turn[e]);

            k[0][e] = r.x, k[1][e] = r.y;
            v[0][e] = __half2float(h[2][e]);
            v[1][e] = __half2float(h[3][e]);
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
    const int  slot = r.slot[row];            /* rows do not change within a step */
    if (slot < 0) {
        grid_wait();                          /* no kernel ends before those in front */
        return;
    }
    const int  page = r.pages[(size_t) row * r.ldpages + slot / kPage];
    uint8_t   *to = head_at<D, INT8>(kv, page, head), *key = to + slot % kPage * H::kToken;

    t.look(rope, r.position[row]);
    grid_wait();
    t.load(qkv + ((size_t) row * kv.heads + head) * 3 * D + D);
    __half  ks = {}, vs = {};

    if (INT8) {
        __half  *scales = scales_at<D, INT8>(kv, page, head) + slot % kPage;

        t.scales(ks, vs);
        if (threadIdx.x % 32 == 0) scales[0] = ks, scales[kPage] = vs;
    }
    const Quantiser  kq(ks), vq(vs);

#pragma unroll
    for (int n = 0; n < 2 * t.E; n++) {
        const int    dim = t.dim(n / t.E, n % t.E);
        const float  k = t.k[n / t.E][n % t.E], v = t.v[n / t.E][n % t.E];
        uint8_t     *value = to + value_at<D, INT8>(slot, dim);

        if (INT8) key[dim] = kq.byte(kq(k)), *value = vq.byte(vq(v));
        else ((__half *) key)[dim] = finite_or_nan(k), *(__half *) value = finite_or_nan(v);
    }
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
    constexpr int  E = Token<D>::E, kToken = Head<D, INT8>::kToken;
    const int      i = (blockIdx.x * blockDim.x + threadIdx.x) / 32, row = i / kv.heads * 4, head = i % kv.heads;
    const int      n = min(4, r.rows - row);
    const size_t   width = (size_t) kv.heads * 3 * D;
    Token<D>       t[4];
    uint32_t       words[2][E] = {};

    grid_go();
    if (n <= 0) return;
    const int  slot = r.slot[row], page = r.pages[slot / kPage];           /* of all four */
    uint8_t   *to = head_at<D, INT8>(kv, page, head), *key = to + slot % kPage * kToken;
    __half    *scales = scales_at<D, INT8>(kv, page, head) + slot % kPage;
    __half    *from = qkv + row * width + head * 3 * D + D;

#pragma unroll
    for (int x = 0; x < 4; x++) t[x].look(rope, r.position[row + min(x, n - 1)]);
    grid_wait();
#pragma unroll
    for (int x = 0; x < 4; x++) t[x].load(from + min(x, n - 1) * width);
#pragma unroll
    for (int x = 0; x < 4; x++) {
        if (x >= n) break;
        __half  *back = from + x * width, ks = {}, vs = {}, k[E], v[E];

        if (INT8) {
            t[x].scales(ks, vs);
            if (threadIdx.x % 32 == 0) scales[x] = ks, scales[kPage + x] = vs;
        }
        const Quantiser  kq(ks), vq(vs);

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
                const float  kr = kq(t[x].k[half][e]), vr = vq(t[x].v[half][e]);

                q[e] = kq.byte(kr);
                words[half][e] |= (uint32_t) vq.byte(vr) << 8 * x;
                k[e] = kq.back(kr), v[e] = vq.back(vr);
            }
            if (INT8) put(key + x * kToken + dim, q);
            else put(key + x * kToken + dim * 2, k), put(to + value_at<D, false>(slot + x, dim), v);
            put(back + dim, k), put(back + D + dim, v);
        }
    }
    if constexpr (INT8) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            uint8_t  *value = to + value_at<D, true>(slot, Token<D>::dim(half, 0));

            if (n == 4) put(value, words[half]);
            else for (int b = 0; b < 4 * E; b++)
                if (b % 4 < n) value[b] = (uint8_t) (words[half][b / 4] >> b % 4 * 8);
        }
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
