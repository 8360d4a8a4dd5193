/* vec_avx2: sixteen floats in two registers; see vec_plain.h. */
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define VEC_ISA     "avx2"
#define VEC_MR      3

typedef struct { __m256 a, b; } v16;

#define V_INLINE  static inline __attribute__((always_inline))
#define V_BOTH(op, x, y)  (v16) { op((x).a, (y).a), op((x).b, (y).b) }

V_INLINE v16 v_set1(float x) { return (v16) { _mm256_set1_ps(x), _mm256_set1_ps(x) }; }
V_INLINE v16 v_zero(void) { return (v16) { _mm256_setzero_ps(), _mm256_setzero_ps() }; }
V_INLINE v16 v_add(v16 x, v16 y) { return V_BOTH(_mm256_add_ps, x, y); }
V_INLINE v16 v_sub(v16 x, v16 y) { return V_BOTH(_mm256_sub_ps, x, y); }
V_INLINE v16 v_mul(v16 x, v16 y) { return V_BOTH(_mm256_mul_ps, x, y); }
V_INLINE v16 v_div(v16 x, v16 y) { return V_BOTH(_mm256_div_ps, x, y); }
V_INLINE v16 v_max(v16 x, v16 y) { return V_BOTH(_mm256_max_ps, x, y); }

V_INLINE v16
v_load(const float *p)
{
    return (v16) { _mm256_loadu_ps(p), _mm256_loadu_ps(p + 8) };
}

V_INLINE void
v_store(float *p, v16 x)
{
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}

V_INLINE v16
v_loadh(const uint16_t *p)
{
    return (v16) { _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) p)),
                   _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) (p + 8))) };
}

V_INLINE v16
v_loadb(const int8_t *p)
{
    __m128i  b = _mm_loadu_si128((const __m128i *) p);

    return (v16) { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(b)),
                   _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(b, 8))) };
}

typedef struct { __m256i a, b; } w16;

V_INLINE w16
w_load(const uint32_t *p)
{
    return (w16) { _mm256_loadu_si256((const __m256i *) p),
                   _mm256_loadu_si256((const __m256i *) (p + 8)) };
}

V_INLINE v16
w_take(w16 *w)
{
    v16  r = { _mm256_cvtepi32_ps(_mm256_srai_epi32(w->a, 28)),
               _mm256_cvtepi32_ps(_mm256_srai_epi32(w->b, 28)) };

    w->a = _mm256_slli_epi32(w->a, 4);
    w->b = _mm256_slli_epi32(w->b, 4);
    return r;
}

V_INLINE v16
v_fma(v16 x, v16 y, v16 z)
{
    return (v16) { _mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b) };
}

V_INLINE v16
v_less(v16 p, v16 q, v16 x, v16 y)
{
    return (v16) { _mm256_blendv_ps(y.a, x.a, _mm256_cmp_ps(p.a, q.a, _CMP_LT_OQ)),
                   _mm256_blendv_ps(y.b, x.b, _mm256_cmp_ps(p.b, q.b, _CMP_LT_OQ)) };
}

V_INLINE v16
v_abs(v16 x)
{
    __m256  m = _mm256_set1_ps(-0.0f);

    return (v16) { _mm256_andnot_ps(m, x.a), _mm256_andnot_ps(m, x.b) };
}

V_INLINE v16
v_sign(v16 x, v16 s)
{
    __m256  m = _mm256_set1_ps(-0.0f);

    x = v_abs(x);
    return (v16) { _mm256_or_ps(x.a, _mm256_and_ps(m, s.a)),
                   _mm256_or_ps(x.b, _mm256_and_ps(m, s.b)) };
}

V_INLINE __m256
v8_scale(__m256 x, __m256 z)
{
    __m256i  k = _mm256_slli_epi32(_mm256_castps_si256(z), 23);

    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), k));
}

V_INLINE v16 v_scale(v16 x, v16 z) { return V_BOTH(v8_scale, x, z); }

V_INLINE v16
v_first(v16 x, int n, v16 y)
{
    __m256i  lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    __m256i  lo = _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane);
    __m256i  hi = _mm256_cmpgt_epi32(_mm256_set1_epi32(n - 8), lane);

    return (v16) { _mm256_blendv_ps(y.a, x.a, _mm256_castsi256_ps(lo)),
                   _mm256_blendv_ps(y.b, x.b, _mm256_castsi256_ps(hi)) };
}

V_INLINE float
v_sum(v16 x)
{
    __m256  b = _mm256_add_ps(x.a, x.b);
    __m128  c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));

    c = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}

V_INLINE float
v_top(v16 x)
{
    __m256  b = _mm256_max_ps(x.a, x.b);
    __m128  c = _mm_max_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));

    c = _mm_max_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_max_ss(c, _mm_movehdup_ps(c)));
}
