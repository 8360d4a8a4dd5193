/* ops: the tables of the CPU backend; choosing is glm_cpu_ops()'s business. */
#ifndef GLM_CPU_OPS_H
#define GLM_CPU_OPS_H

#include "glm_kernels.h"

extern const glm_ops_t  glm_ops_plain;
/* Empty (isa NULL) where the compiler had no such instructions. */
extern const glm_ops_t  glm_ops_avx2, glm_ops_avx512;

#endif
