/*
 * gpu: see gpu.h.  A call of the runtime is CALL(g, function, arguments): made
 * unless the card has failed before, its status turned into one of our codes and
 * the first failure kept with its name.
 */
#include "gpu.h"

#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAX_ALLOCS  16
#define MIN_SHARED  (160 * 1024)  /* of the matrices' ring */
#define NAP_NS      20000         /* between two looks at an event */

struct glm_gpu_s {
    int                    device, timeout;
    glm_gpu_info_t         info;
    const glm_cuda_ops_t  *ops;
    void                  *alloc[MAX_ALLOCS];
    int                    nalloc;
    atomic_int             fault;     /* a code: the card cannot be used */
    atomic_int             hung;      /* something did not end, then or after the fault */
    pthread_mutex_t        lock;      /* of both texts, and of setting fault */
    char                   room[200]; /* the first GLM_ENOMEM */
    char                   text[200]; /* of fault; written before it is set */
};

/* ---- status ---- */

#ifdef GLM_GPU_FAULTS
static atomic_long  calls, fail_call;
static atomic_int   fail_status;
static char         fail_what[64];    /* "": any call that is checked */

static int status(glm_gpu_t *g, const char *what, cudaError_t e);

long
glm_gpu_fault_at(const char *what, long n, int status)
{
    snprintf(fail_what, sizeof(fail_what), "%s", what == NULL ? "" : what);
    atomic_store(&fail_status, status);
    atomic_store(&fail_call, n);
    return atomic_exchange(&calls, 0);
}

/* Whether this is the call to fail; if any may be, what counts among them. */
static int
due(const char *what, int any)
{
    if (fail_what[0] == '\0' ? !any : strcmp(fail_what, what) != 0) return 0;
    return atomic_fetch_add(&calls, 1) + 1 == atomic_load(&fail_call);
}

static cudaError_t
injected(const char *what)
{
    return due(what, 1) ? (cudaError_t) atomic_load(&fail_status) : cudaSuccess;
}

static void
faults_from_environment(void)
{
    const char  *env = getenv("GLM_GPU_FAULT");
    char         what[sizeof(fail_what)];
    long         n;
    int          e;

    if (env == NULL || fail_what[0] != '\0') return;
    if (sscanf(env, "%63[^,],%ld,%d", what, &n, &e) == 3) glm_gpu_fault_at(what, n, e);
}

/* Before a graph's launch: a kernel that makes the card fail by itself. */
static void
break_stream(glm_gpu_t *g, glm_stream_t *s)
{
    if (glm_gpu_fault(g) != 0) return;
    if (due("hang", 0)) glm_broken_hang(s);
    if (due("astray", 0)) glm_broken_astray(s);
}

int
glm_gpu_spoil(glm_gpu_t *g, float *x, glm_stream_t *s)
{
    if (!due("nan", 0)) return 0;
    return status(g, "nan", cudaMemsetAsync(x, 0xff, sizeof(*x), glm_cuda_stream_native(s)));
}
#else
static cudaError_t
injected(const char *what)
{
    (void) what;
    return cudaSuccess;
}

static void
faults_from_environment(void)
{
}

static void
break_stream(glm_gpu_t *g, glm_stream_t *s)
{
    (void) g;
    (void) s;
}

int
glm_gpu_spoil(glm_gpu_t *g, float *x, glm_stream_t *s)
{
    (void) g;
    (void) x;
    (void) s;
    return 0;
}
#endif

static int
code_of(cudaError_t e)
{
    switch (e) {
    case cudaSuccess:                   return 0;
    case cudaErrorMemoryAllocation:     return GLM_ENOMEM;
    case cudaErrorLaunchTimeout:        return GLM_ETIMEOUT;
    case cudaErrorNoDevice:
    case cudaErrorInvalidDevice:
    case cudaErrorDevicesUnavailable:
    case cudaErrorDeviceUninitialized:
    case cudaErrorUnknown:              return GLM_ELOST;     /* fallen off the bus */
    default:                            return GLM_EGPU;
    }
}

/* What fails after a fault fails because of it: the first one is kept, and returned. */
static int
failed(glm_gpu_t *g, int rc, const char *what, const char *text)
{
    char  *to = rc == GLM_ENOMEM ? g->room : g->text;
    int    first;

    if (rc == GLM_ETIMEOUT) atomic_store(&g->hung, 1);
    pthread_mutex_lock(&g->lock);
    first = atomic_load(&g->fault);
    if (first == 0 && to[0] == '\0') snprintf(to, sizeof(g->text), "%s: %s", what, text);
    if (first == 0 && rc != GLM_ENOMEM) atomic_store(&g->fault, rc);
    pthread_mutex_unlock(&g->lock);
    return first != 0 ? first : rc;
}

static int
status(glm_gpu_t *g, const char *what, cudaError_t e)
{
    if (e == cudaSuccess) return 0;
    (void) cudaGetLastError();
    return failed(g, code_of(e), what, cudaGetErrorString(e));
}

#define CALL(g, f, ...)                                                         \
    __extension__ ({                                                            \
        int          rc_ = atomic_load(&(g)->fault);                            \
        cudaError_t  e_ = rc_ == 0 ? injected(#f) : cudaSuccess;                  \
        if (rc_ == 0) rc_ = status(g, #f, e_ != cudaSuccess ? e_ : f(__VA_ARGS__)); \
        rc_;                                                                    \
    })

/* Gives something back, whatever state the card is in; but after a time-out any
 * call may wait for ever. */
#define FREE(g, f, x)                                                           \
    do {                                                                        \
        if (!atomic_load(&(g)->hung) && f(x) != cudaSuccess) {                  \
            (void) cudaGetLastError();                                          \
        }                                                                       \
    } while (0)

int
glm_gpu_fault(glm_gpu_t *g)
{
    return atomic_load(&g->fault);
}

const char *
glm_gpu_error(glm_gpu_t *g)
{
    return glm_gpu_fault(g) != 0 ? g->text : g->room;
}

int
glm_gpu_before(glm_gpu_t *g, const char *what)
{
    int  rc = glm_gpu_fault(g);

    return rc != 0 ? rc : status(g, what, injected(what));
}

static int
launch_failed(glm_gpu_t *g)
{
    return failed(g, code_of((cudaError_t) glm_cuda_error_code()), "launch", glm_cuda_error());
}

/* Arguments are our own making: a launcher that refuses them is a defect that
 * must not go unseen, so it counts as a failure of the card. */
int
glm_gpu_launched(glm_gpu_t *g, const char *what, int rc)
{
    if (rc == 0) return 0;
    if (rc == GLM_EGPU) return launch_failed(g);
    return failed(g, GLM_EGPU, what, "arguments refused");
}

int
glm_gpu_spoilt(glm_gpu_t *g, int rc, const char *what, const char *text)
{
    return failed(g, rc, what, text);
}

/* ---- the card ---- */

static int
read_info(glm_gpu_t *g)
{
    struct cudaDeviceProp  p;
    int                    rc = CALL(g, cudaGetDeviceProperties, &p, g->device);

    if (rc != 0) return rc;
    snprintf(g->info.name, sizeof(g->info.name), "%.127s", p.name);
    g->info.major = p.major;
    g->info.minor = p.minor;
    g->info.sms = p.multiProcessorCount;
    g->info.shared = p.sharedMemPerBlockOptin;
    return CALL(g, cudaMemGetInfo, &g->info.free, &g->info.total);
}

static int
find_device(glm_gpu_t *g, glm_err_t *err)
{
    int  n = 0, rc = CALL(g, cudaGetDeviceCount, &n);

    if (rc == 0 && n <= g->device) {
        return glm_fail(err, GLM_ELOST, "no CUDA device %d: there are %d", g->device, n);
    }
    if (rc != 0
        || (rc = CALL(g, cudaSetDevice, g->device)) != 0
        || (rc = read_info(g)) != 0)
    {
        return glm_fail(err, rc, "no CUDA device can be used: %s", glm_gpu_error(g));
    }
    g->ops = glm_cuda_ops(0);
    if (g->ops == NULL) {
        return glm_fail(err, GLM_EGPU, "%s has compute capability %d.%d, needed is 8.0 or above",
            g->info.name, g->info.major, g->info.minor);
    }
    if (g->info.shared >= MIN_SHARED) return 0;
    return glm_fail(err, GLM_EGPU, "%s lets a block have %zu bytes of shared memory, needed are "
        "%d: an A100's", g->info.name, g->info.shared, MIN_SHARED);
}

int
glm_gpu_open(glm_gpu_t **out, int device, int timeout, glm_err_t *err)
{
    glm_gpu_t  *g = calloc(1, sizeof(*g));
    int         rc;

    *out = NULL;
    if (g == NULL) return glm_fail(err, GLM_ENOMEM, "no memory for a device");
    faults_from_environment();
    pthread_mutex_init(&g->lock, NULL);
    g->device = device;
    g->timeout = timeout;
    if ((rc = find_device(g, err)) != 0) {
        glm_gpu_close(g);
        return rc;
    }
    *out = g;
    return 0;
}

void
glm_gpu_close(glm_gpu_t *g)
{
    if (g == NULL) return;
    for (int i = 0; i < g->nalloc; i++) FREE(g, cudaFree, g->alloc[i]);
    pthread_mutex_destroy(&g->lock);
    free(g);
}

int
glm_gpu_thread(glm_gpu_t *g)
{
    return CALL(g, cudaSetDevice, g->device);
}

const glm_gpu_info_t *
glm_gpu_info(const glm_gpu_t *g)
{
    return &g->info;
}

const glm_cuda_ops_t *
glm_gpu_ops(const glm_gpu_t *g)
{
    return g->ops;
}

/* ---- memory ---- */

int
glm_gpu_alloc(glm_gpu_t *g, void **p, size_t bytes)
{
    int  rc;

    *p = NULL;
    if (g->nalloc == MAX_ALLOCS) return failed(g, GLM_EGPU, "device memory", "too many pieces");
    rc = CALL(g, cudaMalloc, p, bytes);
    if (rc == 0) g->alloc[g->nalloc++] = *p;
    return rc;
}

int
glm_gpu_pin(glm_gpu_t *g, void **p, size_t bytes)
{
    *p = NULL;
    return CALL(g, cudaHostAlloc, p, bytes, cudaHostAllocPortable);
}

void
glm_gpu_unpin(glm_gpu_t *g, void *p)
{
    if (p != NULL) FREE(g, cudaFreeHost, p);
}

/* ---- streams ---- */

static cudaStream_t
native(const glm_stream_t *s)
{
    return glm_cuda_stream_native(s);
}

int
glm_gpu_stream(glm_gpu_t *g, glm_stream_t **out)
{
    cudaError_t  e = injected("stream");
    int          rc = glm_gpu_fault(g);

    *out = NULL;
    if (rc != 0) return rc;
    if (e != cudaSuccess) return status(g, "stream", e);
    rc = glm_cuda_stream(out);
    return rc == GLM_EGPU ? launch_failed(g) : rc;
}

void
glm_gpu_stream_free(glm_gpu_t *g, glm_stream_t *s)
{
    if (!atomic_load(&g->hung)) glm_cuda_stream_free(s);
}

int
glm_gpu_copy(glm_gpu_t *g, void *dst, const void *src, size_t bytes, glm_stream_t *s)
{
    return CALL(g, cudaMemcpyAsync, dst, src, bytes, cudaMemcpyDefault, native(s));
}

int
glm_gpu_copy_rows(glm_gpu_t *g, void *dst, size_t dst_pitch, const void *src,
    size_t src_pitch, size_t width, size_t rows, glm_stream_t *s)
{
    return CALL(g, cudaMemcpy2DAsync, dst, dst_pitch, src, src_pitch, width, rows,
        cudaMemcpyDefault, native(s));
}

int
glm_gpu_zero(glm_gpu_t *g, void *dst, size_t bytes, glm_stream_t *s)
{
    return CALL(g, cudaMemsetAsync, dst, 0, bytes, native(s));
}

/* ---- events ---- */

static cudaEvent_t
event(glm_gpu_event_t *e)
{
    return (cudaEvent_t) e;
}

int
glm_gpu_event(glm_gpu_t *g, glm_gpu_event_t **out)
{
    cudaEvent_t  e = NULL;
    int          rc = CALL(g, cudaEventCreateWithFlags, &e, cudaEventDisableTiming);

    *out = (glm_gpu_event_t *) e;
    return rc;
}

void
glm_gpu_event_free(glm_gpu_t *g, glm_gpu_event_t *e)
{
    if (e != NULL) FREE(g, cudaEventDestroy, event(e));
}

int
glm_gpu_record(glm_gpu_t *g, glm_gpu_event_t *e, glm_stream_t *s)
{
    return CALL(g, cudaEventRecord, event(e), native(s));
}

static double
seconds(void)
{
    struct timespec  t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double) t.tv_sec + (double) t.tv_nsec * 1e-9;
}

/* An event, or all of a stream.  Looks again and again rather than wait inside the
 * driver: a kernel that never ends would hold it there.  The last look is after the
 * deadline, as this process may have been stopped between the one before and then. */
static cudaError_t
await(const glm_gpu_t *g, cudaEvent_t e, cudaStream_t stream)
{
    struct timespec  nap = { 0, NAP_NS };
    double           until = seconds() + g->timeout;
    cudaError_t      s;

    for (int late = 0; ; late = seconds() >= until) {
        s = e != NULL ? cudaEventQuery(e) : cudaStreamQuery(stream);
        if (s != cudaErrorNotReady || late) return s;
        nanosleep(&nap, NULL);
    }
}

static int
too_long(glm_gpu_t *g)
{
    char  text[64];

    snprintf(text, sizeof(text), "not done after %d s", g->timeout);
    return failed(g, GLM_ETIMEOUT, "waiting for the device", text);
}

int
glm_gpu_wait(glm_gpu_t *g, glm_gpu_event_t *e)
{
    cudaError_t  s = injected("cudaEventQuery");
    int          rc = glm_gpu_fault(g);

    if (rc != 0) return rc;
    if (s == cudaSuccess) s = await(g, event(e), NULL);
    return s == cudaErrorNotReady ? too_long(g) : status(g, "waiting for the device", s);
}

/* What the stream ends with, if not with a time-out, has been told or is of no interest. */
void
glm_gpu_settle(glm_gpu_t *g, glm_stream_t *s)
{
    if (s == NULL || atomic_load(&g->hung)) return;
    if (await(g, NULL, native(s)) == cudaErrorNotReady) (void) too_long(g);
    else (void) cudaGetLastError();
}

/* ---- graphs ---- */

int
glm_gpu_capture(glm_gpu_t *g, glm_stream_t *s)
{
    return CALL(g, cudaStreamBeginCapture, native(s), cudaStreamCaptureModeThreadLocal);
}

int
glm_gpu_captured(glm_gpu_t *g, glm_stream_t *s, int rc, glm_gpu_graph_t **out)
{
    cudaGraph_t      graph = NULL;
    cudaGraphExec_t  x = NULL;

    *out = NULL;
    if (rc == 0) rc = CALL(g, cudaStreamEndCapture, native(s), &graph);
    if (rc != 0 && graph == NULL) (void) cudaStreamEndCapture(native(s), &graph);
    if (rc == 0) rc = CALL(g, cudaGraphInstantiate, &x, graph, 0);
    if (rc == 0) rc = CALL(g, cudaGraphUpload, x, native(s));
    if (graph != NULL) FREE(g, cudaGraphDestroy, graph);
    *out = (glm_gpu_graph_t *) x;
    return rc;
}

int
glm_gpu_launch(glm_gpu_t *g, glm_gpu_graph_t *x, glm_stream_t *s)
{
    break_stream(g, s);
    return CALL(g, cudaGraphLaunch, (cudaGraphExec_t) x, native(s));
}

void
glm_gpu_graph_free(glm_gpu_t *g, glm_gpu_graph_t *x)
{
    if (x != NULL) FREE(g, cudaGraphExecDestroy, (cudaGraphExec_t) x);
}
