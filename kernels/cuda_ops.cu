/*
 * cuda_ops: the tables of launchers, the stream, the last error.
 */
#include <stdio.h>
#include <stdlib.h>

#include "cuda_common.cuh"

#define GLM_TABLE(arch)                                                                        \
    int glm_pack_sm##arch(const glm_pack_args_t *, glm_stream_t *);                            \
    int glm_fill_sm##arch(const glm_fill_args_t *, glm_stream_t *);                            \
    int glm_linear_sm##arch(const glm_linear_args_t *, glm_stream_t *);                        \
    int glm_embed_sm##arch(const glm_embed_args_t *, glm_stream_t *);                          \
    int glm_norm_sm##arch(const glm_gnorm_args_t *, glm_stream_t *);                           \
    int glm_repack_sm##arch(const glm_repack_args_t *, glm_stream_t *);                        \
    int glm_kv_write_sm##arch(const glm_attn_args_t *, glm_stream_t *);                        \
    int glm_attn_row_sm##arch(const glm_attn_args_t *, glm_stream_t *);                        \
    int glm_attn_context_sm##arch(const glm_context_args_t *, glm_stream_t *);                 \
    int glm_sample_sm##arch(const glm_sample_args_t *, glm_stream_t *);                        \
    static const glm_cuda_ops_t ops_sm##arch = {                                               \
        arch, glm_pack_sm##arch, glm_fill_sm##arch, glm_linear_sm##arch, glm_embed_sm##arch,   \
        glm_norm_sm##arch, glm_repack_sm##arch, glm_kv_write_sm##arch, glm_attn_row_sm##arch,  \
        glm_attn_context_sm##arch, glm_sample_sm##arch                                         \
    };

GLM_TABLE(80)
GLM_TABLE(90)

static thread_local char         last_error[160];
static thread_local cudaError_t  last_code;

int glm_cuda_status(const char *name, cudaError_t e)
{
    if (e == cudaSuccess) return 0;
    snprintf(last_error, sizeof(last_error), "%s: %s", name, cudaGetErrorString(e));
    last_code = e;
    (void) cudaGetLastError();
    return GLM_EGPU;
}

extern "C" const char *glm_cuda_error(void)
{
    return last_error;
}

extern "C" int glm_cuda_error_code(void)
{
    return (int) last_code;
}

extern "C" const glm_cuda_ops_t *glm_cuda_ops(int arch)
{
    int          dev, major, minor;
    const char  *env = getenv("GLM_CUDA_ARCH");

    if (cudaGetDevice(&dev) != cudaSuccess
        || cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, dev) != cudaSuccess
        || cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, dev) != cudaSuccess)
    {
        (void) cudaGetLastError();
        return NULL;
    }
    if (arch == 0 && env != NULL) arch = atoi(env);
    if (arch == 0) arch = major == 9 ? 90 : 80;      /* sm_90a runs on 9.0 alone */
    if (arch == 90 && major == 9 && minor == 0) return &ops_sm90;
    if (arch == 80 && major >= 8) return &ops_sm80;
    return NULL;
}

extern "C" int glm_cuda_stream(glm_stream_t **out)
{
    int            dev;
    cudaError_t    e;
    glm_stream_t  *s = (glm_stream_t *) calloc(1, sizeof(*s));

    *out = NULL;
    if (s == NULL) return GLM_ENOMEM;
    if ((e = cudaGetDevice(&dev)) != cudaSuccess
        || (e = cudaDeviceGetAttribute(&s->sms, cudaDevAttrMultiProcessorCount, dev)) != cudaSuccess
        || (e = cudaStreamCreateWithFlags(&s->cuda, cudaStreamNonBlocking)) != cudaSuccess)
    {
        free(s);
        return glm_cuda_status("stream", e);
    }
    *out = s;
    return 0;
}

extern "C" void glm_cuda_stream_free(glm_stream_t *s)
{
    if (s == NULL) return;
    (void) glm_cuda_status("stream", cudaStreamDestroy(s->cuda));
    free(s);
}

extern "C" void *glm_cuda_stream_native(const glm_stream_t *s)
{
    return s->cuda;
}

extern "C" size_t glm_cuda_linear_ws(const glm_stream_t *s, int bucket)
{
    return glm_cuda_linear_ws_sms(s->sms, bucket);
}
