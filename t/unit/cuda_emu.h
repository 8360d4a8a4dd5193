/*
 * cuda_emu: runs a CUDA kernel that is written in C without a GPU: each thread of a
 * block is a coroutine that goes on until a barrier or an exchange between lanes.
 * Blocks run one after another.  emu_seed stirs the order of blocks and threads, so
 * that a missing barrier or a dependence on the order shows.  A barrier that not all
 * threads reach is a deadlock, and ends the test.
 */
#ifndef GLM_CUDA_EMU_H
#define GLM_CUDA_EMU_H

#undef _FORTIFY_SOURCE            /* its longjmp() knows one stack only */

#include <setjmp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include "tap.h"

#pragma GCC diagnostic ignored "-Wunknown-pragmas"    /* unroll */

#define __global__            __attribute__((unused))
#define __device__            __attribute__((unused))
#define __shared__            static
#define __launch_bounds__(n)

enum { EMU_THREADS = 1024, EMU_STACK = 64 * 1024, EMU_WARPS = EMU_THREADS / 32 };

typedef struct { unsigned x, y, z; }  emu_dim_t;
typedef struct { float x, y, z, w; }  float4;

typedef struct {
    ucontext_t  start;
    jmp_buf     at;
    int         begun;
    unsigned    id, exchanges;
} emu_thread_t;

static emu_thread_t  emu_threads[EMU_THREADS], *emu_now;
static emu_dim_t     blockIdx, blockDim, gridDim;
static unsigned      emu_ready[EMU_THREADS], emu_head, emu_nready, emu_live;
static unsigned      emu_waiting, emu_warp_waiting[EMU_WARPS];
static uint64_t      emu_lane[EMU_WARPS][2][32];
static uint32_t      emu_seed;
static jmp_buf       emu_out;
static void        (*emu_run)(void);

#define threadIdx  ((emu_dim_t) { emu_now->id, 0, 0 })

static uint32_t
emu_random(uint32_t below)
{
    static uint64_t  s = 0x9e3779b97f4a7c15u;

    s = s * 6364136223846793005u + emu_seed * 2u + 1;
    return (uint32_t) ((s >> 33) % below);
}

static void
emu_push(unsigned id)
{
    emu_ready[(emu_head + emu_nready++) % EMU_THREADS] = id;
}

/* first .. first + n - 1 go on, in order, or from a random one on in either direction. */
static void
emu_release(unsigned first, unsigned n)
{
    unsigned  from = emu_seed ? emu_random(n) : 0, step = emu_seed && emu_random(2) ? n - 1 : 1;

    for (unsigned i = 0; i < n; i++) emu_push(first + (from + i * step) % n);
}

static void
emu_next(void)
{
    if (emu_nready == 0) {
        if (emu_live > 0) bail_out("a barrier that not every thread of its block or warp reaches");
        _longjmp(emu_out, 1);
    }
    emu_now = &emu_threads[emu_ready[emu_head]];
    emu_head = (emu_head + 1) % EMU_THREADS;
    emu_nready--;
    if (emu_now->begun) _longjmp(emu_now->at, 1);
    emu_now->begun = 1;
    setcontext(&emu_now->start);
}

static void
emu_main(void)
{
    for ( ;; ) {
        emu_run();
        emu_live--;
        if (_setjmp(emu_now->at) == 0) emu_next();
    }
}

static void
__syncthreads(void)
{
    if (++emu_waiting == blockDim.x) {
        emu_waiting = 0;
        emu_release(0, blockDim.x);
    }
    if (_setjmp(emu_now->at) == 0) emu_next();
}

static void
__syncwarp(void)
{
    unsigned  w = emu_now->id / 32;

    if (++emu_warp_waiting[w] == 32) {
        emu_warp_waiting[w] = 0;
        emu_release(w * 32, 32);
    }
    if (_setjmp(emu_now->at) == 0) emu_next();
}

/* What the lanes of the warp bring, good until the exchange after the next. */
static const uint64_t *
emu_exchange(uint64_t bits)
{
    uint64_t  *lane = emu_lane[emu_now->id / 32][emu_now->exchanges++ % 2];

    lane[emu_now->id % 32] = bits;
    __syncwarp();
    return lane;
}

#define EMU_SHUFFLE(name, type)                                                          \
    __attribute__((unused)) static type                                                  \
    name(type v, unsigned from)                                                          \
    {                                                                                    \
        uint64_t  bits = 0;                                                              \
                                                                                         \
        memcpy(&bits, &v, sizeof(v));                                                    \
        bits = emu_exchange(bits)[from % 32];                                            \
        memcpy(&v, &bits, sizeof(v));                                                    \
        return v;                                                                        \
    }

EMU_SHUFFLE(emu_shuffle_f, float)
EMU_SHUFFLE(emu_shuffle_d, double)
EMU_SHUFFLE(emu_shuffle_u, uint32_t)
EMU_SHUFFLE(emu_shuffle_ul, uint64_t)

#define EMU_LANE  (threadIdx.x % 32)
#define EMU_SHUFFLED(v, from)                                                            \
    _Generic((v), float: emu_shuffle_f, double: emu_shuffle_d, uint32_t: emu_shuffle_u,  \
             uint64_t: emu_shuffle_ul)(v, from)
#define __shfl_xor_sync(mask, v, o)  EMU_SHUFFLED(v, EMU_LANE ^ (unsigned) (o))
#define __shfl_up_sync(mask, v, o)                                                       \
    EMU_SHUFFLED(v, EMU_LANE >= (unsigned) (o) ? EMU_LANE - (unsigned) (o) : EMU_LANE)

__attribute__((unused)) static uint32_t
__reduce_max_sync(unsigned mask, uint32_t v)
{
    const uint64_t  *lane = emu_exchange(v);

    (void) mask;
    for (int i = 0; i < 32; i++) v = lane[i] > v ? (uint32_t) lane[i] : v;
    return v;
}

__attribute__((unused)) static uint32_t
__reduce_min_sync(unsigned mask, uint32_t v)
{
    return ~__reduce_max_sync(mask, ~v);
}

__attribute__((unused)) static uint32_t
emu_add_u(uint32_t *p, uint32_t v)
{
    uint32_t  old = *p;

    *p += v;
    return old;
}

__attribute__((unused)) static unsigned long long
emu_add_ul(void *p, unsigned long long v)
{
    unsigned long long  old;

    memcpy(&old, p, sizeof(old));
    v += old;
    memcpy(p, &v, sizeof(v));
    return old;
}

#define atomicAdd(p, v)                                                                  \
    _Generic((p), uint32_t *: emu_add_u, unsigned long long *: emu_add_ul)(p, v)

/* Programmatic launches: each kernel here starts when the one before has ended. */
#define grid_go()    ((void) 0)
#define grid_wait()  ((void) 0)

__attribute__((noinline))
static void
emu_block(unsigned x, unsigned y)
{
    blockIdx = (emu_dim_t) { x, y, 0 };
    emu_live = blockDim.x;
    emu_head = emu_nready = 0;
    emu_release(0, blockDim.x);
    if (_setjmp(emu_out) == 0) emu_next();
}

/* getcontext() may return twice, as far as gcc knows: it has no loop around it. */
__attribute__((noinline))
static void
emu_prepare(emu_thread_t *t, unsigned id, char *stack)
{
    getcontext(&t->start);
    t->id = id;
    t->start.uc_stack.ss_sp = stack;
    t->start.uc_stack.ss_size = EMU_STACK;
    makecontext(&t->start, emu_main, 0);
}

/* run calls the kernel: run<<<(x, y), threads>>>(). */
static void
emu_launch(void (*run)(void), unsigned x, unsigned y, unsigned threads)
{
    static char  *stacks;
    unsigned      n = x * y, from = emu_seed ? emu_random(n) : 0, step = emu_seed & 1 ? n - 1 : 1;

    if (stacks == NULL) {
        stacks = malloc((size_t) EMU_THREADS * EMU_STACK);
        if (stacks == NULL) bail_out("no memory");
        for (unsigned i = 0; i < EMU_THREADS; i++)
            emu_prepare(&emu_threads[i], i, stacks + (size_t) i * EMU_STACK);
    }
    emu_run = run;
    blockDim = (emu_dim_t) { threads, 1, 1 };
    gridDim = (emu_dim_t) { x, y, 1 };
    for (unsigned i = 0; i < n; i++) {
        unsigned  at = (from + i * step) % n;

        emu_block(at % x, at / x);
    }
}

#endif
