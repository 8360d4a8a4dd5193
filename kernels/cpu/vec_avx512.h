/* vec_avx512: sixteen floats in a register; see vec_plain.h. */
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define VEC_ISA     "avx512"
#define VEC_MR      12

typedef __m512  v16;

#define V_INLINE  static inline __attribute__((always_inline))

V_INLINE v16 v_zero(void) { return _mm512_setzero_ps(); }
V_INLINE v16 v_set1(float x) { return _mm512_set1_ps(x); }
V_INLINE v16 v_load(const float *p) { return _mm512_loadu_ps(p); }
V_INLINE void v_store(float *p, v16 a) { _mm512_storeu_ps(p, a); }
V_INLINE v16 v_add(v16 a, v16 b) { return _mm512_add_ps(a, b); }
V_INLINE v16 v_sub(v16 a, v16 b) { return _mm512_sub_ps(a, b); }
V_INLINE v16 v_mul(v16 a, v16 b) { return _mm512_mul_ps(a, b); }
V_INLINE v16 v_div(v16 a, v16 b) { return _mm512_div_ps(a, b); }
V_INLINE v16 v_max(v16 a, v16 b) { return _mm512_max_ps(a, b); }
V_INLINE v16 v_fma(v16 a, v16 b, v16 c) { return _mm512_fmadd_ps(a, b, c); }
V_INLINE v16 v_abs(v16 a) { return _mm512_abs_ps(a); }

V_INLINE v16
v_loadh(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) p));
}

V_INLINE v16
v_loadb(const int8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *) p)));
}

typedef __m512i  w16;

V_INLINE w16 w_load(const uint32_t *p) { return _mm512_loadu_si512(p); }

/* The look-up reads the lowest four bits of a lane only. */
V_INLINE v16
w_take(w16 *w)
{
    v16  q = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1);

    *w = _mm512_rol_epi32(*w, 4);
    return _mm512_permutexvar_ps(*w, q);
}

V_INLINE v16
v_less(v16 a, v16 b, v16 x, v16 y)
{
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
}

V_INLINE v16
v_sign(v16 a, v16 s)
{
    v16  m = _mm512_set1_ps(-0.0f);

    return _mm512_or_ps(_mm512_andnot_ps(m, a), _mm512_and_ps(m, s));
}

V_INLINE v16
v_scale(v16 a, v16 z)
{
    __m512i  k = _mm512_slli_epi32(_mm512_castps_si512(z), 23);

    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), k));
}

V_INLINE v16
v_first(v16 a, int n, v16 x)
{
    __mmask16  m = n >= 16 ? 0xffff : (__mmask16) ((1u << n) - 1);

    return _mm512_mask_blend_ps(m, x, a);
}

V_INLINE float
v_sum(v16 a)
{
    __m256  b = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128  c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));

    c = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}

V_INLINE float
v_top(v16 a)
{
    __m256  b = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128  c = _mm_max_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));

    c = _mm_max_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_max_ss(c, _mm_movehdup_ps(c)));
}
