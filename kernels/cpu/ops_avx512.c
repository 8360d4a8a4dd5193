/* ops_avx512: the operations for AVX-512 (F, BW, VL, DQ). */
#include "ops.h"

#if defined(__x86_64__) && !defined(__AVX512F__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,fma,f16c")     /* where the command line lacks it */
#endif

#ifdef __AVX512F__

#include "vec_avx512.h"
#include "ops_body.h"

const glm_ops_t  glm_ops_avx512 = OPS_TABLE;

#else

const glm_ops_t  glm_ops_avx512 = { .isa = NULL };

#endif
