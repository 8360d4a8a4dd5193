/*
 * philox: Philox4x32-10, the counter-based generator of Salmon et al., "Parallel
 * random numbers: as easy as 1, 2, 3" (SC 2011).  No state, no threads.
 */
#include "sampler.h"

#define ROUNDS  10

static void
round_once(uint32_t c[4], const uint32_t k[2])
{
    uint64_t  a = (uint64_t) 0xD2511F53u * c[0];
    uint64_t  b = (uint64_t) 0xCD9E8D57u * c[2];

    c[0] = (uint32_t) (b >> 32) ^ c[1] ^ k[0];
    c[1] = (uint32_t) b;
    c[2] = (uint32_t) (a >> 32) ^ c[3] ^ k[1];
    c[3] = (uint32_t) a;
}

void
glm_philox(const uint32_t ctr[4], const uint32_t key[2], uint32_t out[4])
{
    uint32_t  k[2] = { key[0], key[1] };

    for (int i = 0; i < 4; i++) out[i] = ctr[i];

    for (int i = 0; i < ROUNDS; i++) {
        round_once(out, k);
        k[0] += 0x9E3779B9u;
        k[1] += 0xBB67AE85u;
    }
}
