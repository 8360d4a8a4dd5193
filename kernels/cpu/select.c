/* select: the best table this machine runs, or the one asked for. */
#include <string.h>

#include "ops.h"

#if defined(__x86_64__)
#include <cpuid.h>

/* clang 14 does not know __builtin_cpu_supports("f16c"). */
static int
has_f16c(void)
{
    unsigned  a, b, c, d;

    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

static int
runs(const glm_ops_t *ops)
{
    if (ops->isa == NULL) return 0;
#if defined(__x86_64__)
    if (ops == &glm_ops_avx512) {
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
            && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    }
    if (ops == &glm_ops_avx2) {
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")
            && has_f16c();
    }
#endif
    return ops == &glm_ops_plain;
}

const glm_ops_t *
glm_cpu_ops(const char *isa)
{
    static const glm_ops_t  *all[] = { &glm_ops_avx512, &glm_ops_avx2, &glm_ops_plain };

    for (int i = 0; i < 3; i++) {
        if (!runs(all[i])) continue;
        if (isa == NULL || isa[0] == '\0' || strcmp(isa, all[i]->isa) == 0) return all[i];
    }
    return NULL;
}
