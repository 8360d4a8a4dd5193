/*
 * ops_body: all operations over whatever vec_*.h came before; one source for
 * every instruction set is what makes their bits equal.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "glm_kernels.h"

#ifndef V_INLINE
#define V_INLINE  static inline __attribute__((always_inline))
#endif

#include "math_body.h"
#include "linear_body.h"
#include "norm_body.h"
#include "attn_body.h"
#include "gemm_body.h"

#define OPS_TABLE  {                                                          \
    .isa = VEC_ISA, .pack = op_pack, .embed = op_embed,                       \
    .layernorm = op_layernorm, .residual = op_residual, .linear = op_linear,  \
    .rope_kv = op_rope_kv, .attn_row = op_attn_row,                           \
    .attn_context = op_attn_context, .geglu = op_geglu, .gemm = op_gemm,      \
}
