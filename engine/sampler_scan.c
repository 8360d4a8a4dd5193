/*
 * sampler_scan: see the header.  The body is compiled once for each instruction
 * set; here is what they share, and the choice among them.
 */
#include <math.h>
#include <string.h>

#include "sampler_scan.h"

/* Vectors never cross a real function call: every helper is inlined. */
#pragma GCC diagnostic ignored "-Wpsabi"
#define INLINE  static inline __attribute__((always_inline))

#define LANES  16

typedef float    v16f __attribute__((vector_size(64)));
typedef int32_t  v16i __attribute__((vector_size(64)));
typedef double   v8d __attribute__((vector_size(64)));

#define PICK(mask, a, b)  ((v16f) (((mask) & (v16i) (a)) | (~(mask) & (v16i) (b))))

#define NAME(x)  x##_plain
#include "sampler_scan_body.h"
#undef NAME

#if defined(__x86_64__)

#pragma GCC push_options
#pragma GCC target("avx2")
#define NAME(x)  x##_avx2
#include "sampler_scan_body.h"
#undef NAME
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,prefer-vector-width=512")
#define NAME(x)  x##_avx512
#include "sampler_scan_body.h"
#undef NAME
#pragma GCC pop_options

#endif

static const glm_scan_t *
get_x86(const char *isa)
{
#if defined(__x86_64__)
    if (isa == NULL || strcmp(isa, "avx512") == 0) {
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")
            && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
            return &scan_avx512;
    }
    if (isa == NULL || strcmp(isa, "avx2") == 0) {
        if (__builtin_cpu_supports("avx2")) return &scan_avx2;
    }
#endif
    (void) isa;
    return NULL;
}

const glm_scan_t *
glm_scan_get(const char *isa)
{
    const glm_scan_t  *s = get_x86(isa);

    if (s == NULL && (isa == NULL || strcmp(isa, "plain") == 0)) s = &scan_plain;
    return s;
}
