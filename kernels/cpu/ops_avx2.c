/* ops_avx2: the operations for AVX2, FMA and F16C. */
#include "ops.h"

#if defined(__x86_64__) && !defined(__AVX2__)
#pragma GCC target("avx2,fma,f16c")     /* where the command line lacks it */
#endif

#ifdef __AVX2__

#include "vec_avx2.h"
#include "ops_body.h"

const glm_ops_t  glm_ops_avx2 = OPS_TABLE;

#else

const glm_ops_t  glm_ops_avx2 = { .isa = NULL };

#endif
