/*
 * host: what the tests on the card share: checked CUDA calls, device buffers,
 * random data, packed activations, TAP.
 */
#ifndef T_GPU_HOST_H
#define T_GPU_HOST_H

#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <vector>

#include "glm_cuda.h"

#define CK(x)                                                                                  \
    do {                                                                                       \
        cudaError_t  e_ = (x);                                                                 \
        if (e_ != cudaSuccess) {                                                               \
            printf("Bail out! %s:%d: %s: %s\n", __FILE__, __LINE__, #x, cudaGetErrorString(e_)); \
            exit(2);                                                                           \
        }                                                                                      \
    } while (0)

static int            ntests, nfailed;
static glm_stream_t  *stream;

static inline cudaStream_t native() { return (cudaStream_t) glm_cuda_stream_native(stream); }

static inline void sync() { CK(cudaStreamSynchronize(native())); }

__attribute__((format(printf, 2, 3)))
static inline bool ok(bool good, const char *fmt, ...)
{
    va_list  ap;

    printf("%sok %d - ", good ? "" : "not ", ++ntests);
    va_start(ap, fmt);
    vprintf(fmt, ap);
    va_end(ap);
    printf("\n");
    fflush(stdout);
    if (!good) nfailed++;
    return good;
}

/* A launcher that must work. */
static inline void must(int rc, const char *what)
{
    if (rc == 0) return;
    printf("Bail out! %s: code %d, %s\n", what, rc, glm_cuda_error());
    exit(2);
}

template <class T>
struct Dev {                      /* a device buffer; poisoned with NaN bit patterns */
    T       *p = nullptr;
    size_t   n;

    explicit Dev(size_t count) : n(count)
    {
        CK(cudaMalloc(&p, (n ? n : 1) * sizeof(T)));
        poison();
    }
    explicit Dev(const std::vector<T> &v) : Dev(v.size()) { put(v); }
    Dev(const Dev &) = delete;
    ~Dev() { cudaFree(p); }
    /* The tested stream does not wait for the default one: each of these does. */
    void set(int byte)
    {
        CK(cudaMemset(p, byte, n * sizeof(T)));
        CK(cudaDeviceSynchronize());
    }
    void poison() { set(0xff); }
    void clear() { set(0); }
    void put(const std::vector<T> &v)
    {
        CK(cudaMemcpy(p, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice));
        CK(cudaDeviceSynchronize());
    }
    std::vector<T> get() const
    {
        std::vector<T>  v(n);

        CK(cudaMemcpy(v.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost));
        return v;
    }
};

static inline float to_f(uint16_t h) { __half_raw r; r.x = h; return __half2float(__half(r)); }
static inline uint16_t to_h(float f) { return __half_raw(__float2half_rn(f)).x; }

struct Random {
    uint32_t  seed;
    uint64_t  i = 0;

    explicit Random(uint32_t s) : seed(s) {}
    uint32_t bits() { return glm_hash(seed, i++); }
    float uniform() { return (float) (bits() >> 8) * 0x1p-24f; }
    float normal() { return (uniform() + uniform() + uniform() + uniform() - 2.f) * 1.7320508f; }
};

static inline std::vector<uint16_t> random_halves(size_t n, uint32_t seed, float scale, float mean = 0)
{
    std::vector<uint16_t>  v(n);
    Random                 r(seed);

    for (auto &h : v) h = to_h(mean + scale * r.normal());
    return v;
}

/* Rows of x [.][k], picked, in the packed order of a bucket; the rest is noise. */
static inline std::vector<uint16_t> packed(const std::vector<uint16_t> &x, int k, int bucket,
                                           const std::vector<int> &pick)
{
    std::vector<uint16_t>  v((size_t) k * bucket, to_h(3.5f));

    for (size_t r = 0; r < pick.size(); r++)
        for (int i = 0; i < k; i++)
            v[glm_cuda_packed(k, i, (int) r, bucket)] = x[(size_t) pick[r] * k + i];
    return v;
}

/* Of a whole buffer. */
static inline uint16_t packed_at(const std::vector<uint16_t> &v, int bucket, int row, int i)
{
    return v[glm_cuda_packed((int) (v.size() / bucket), i, row, bucket)];
}

struct Error {                    /* relative, Frobenius; NaN never passes */
    double  d = 0, r = 0;

    void add(double got, double want)
    {
        d += (got - want) * (got - want);
        r += want * want;
    }
    double rel() const { return r > 0 ? sqrt(d / r) : sqrt(d); }
    bool below(double tol) const { return rel() <= tol; }
};

#endif
