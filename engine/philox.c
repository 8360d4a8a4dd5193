/*
 * philox: Philox4x32-10, the counter-based generator of Salmon et al., "Parallel
 * random numbers: as easy as 1, 2, 3" (SC 2011).  No state, no threads.
 */
#include "sample_math.h"

void
glm_philox(const uint32_t ctr[4], const uint32_t key[2], uint32_t out[4])
{
    for (int i = 0; i < 4; i++) out[i] = ctr[i];
    glm_philox_rounds(out, key[0], key[1]);
}
