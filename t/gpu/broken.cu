/*
 * broken: kernels that make a card fail by itself (engine/gpu.h, GLM_GPU_FAULTS): one that
 * does not end, one that writes where no memory is.
 */
#include <cuda_runtime.h>

#include "glm_cuda.h"

#define GLM_GPU_FAULTS
#include "gpu.h"

#define HANG_NS  60000000000ull   /* far past every time-out; the card is not ours for ever */

static __device__ unsigned long long
now()
{
    unsigned long long  t;

    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t));
    return t;
}

static __global__ void
hang()
{
    unsigned long long  end = now() + HANG_NS;

    while (now() < end) __nanosleep(1000);
}

static __global__ void
astray(volatile int *nowhere)
{
    *nowhere = 1;
}

static cudaStream_t
native(glm_stream_t *s)
{
    return (cudaStream_t) glm_cuda_stream_native(s);
}

void
glm_broken_hang(glm_stream_t *s)
{
    hang<<<1, 1, 0, native(s)>>>();
}

void
glm_broken_astray(glm_stream_t *s)
{
    astray<<<1, 1, 0, native(s)>>>(nullptr);
}
