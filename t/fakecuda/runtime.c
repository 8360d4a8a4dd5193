/*
 * runtime: the CUDA runtime on host memory; see fakecuda.h.  One lock for all.
 */
#include "fakecuda.h"
#include "gpu.h"

#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef struct op_s {
    void        (*run)(void *arg);
    void         *arg;
    int           kept;           /* of a graph: not freed when it has run */
    struct op_s  *next;
} op_t;

typedef struct {
    op_t  *first, **last;
} ops_t;

typedef struct graph_s {
    ops_t  ops;
    int    uploaded;
} graph_t;

typedef struct {
    void (*run)(void *arg);
    int    variant;
} code_t;

typedef struct stream_s {
    ops_t             queue;
    graph_t          *capture;
    unsigned          looks;
    struct stream_s  *next;
} stream_t;

typedef struct {
    stream_t  *stream;
    int        pending, looks;
} event_t;

typedef struct range_s {
    char            *base;
    size_t           size;
    int              device;
    struct range_s  *next;
} range_t;

static pthread_mutex_t  lock;
static pthread_once_t   once = PTHREAD_ONCE_INIT;
static size_t           memory = (size_t) 4 << 30, used, pinned, most_pinned;
static int              devices = 1, capability = 90, hang = -1, doze, live, early, fail_launch,
                        late, ncode, launches;
static code_t           code[64];
static char             launch_error[80];
static int              launch_code;
static cudaError_t      sticky, last;
static range_t         *ranges;
static stream_t        *streams;

static size_t
number(const char *name, size_t otherwise)
{
    const char  *v = getenv(name);

    return v != NULL ? (size_t) strtoull(v, NULL, 10) : otherwise;
}

/* The driver has threads of its own, with the signals of who made the first call. */
static void *
idle(void *arg)
{
    for ( ;; ) pause();
    return arg;
}

static void
set_up(void)
{
    pthread_mutexattr_t  a;
    pthread_t            driver;

    if (pthread_create(&driver, NULL, idle, NULL) == 0) pthread_detach(driver);

    pthread_mutexattr_init(&a);
    pthread_mutexattr_settype(&a, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&lock, &a);
    memory = number("FAKECUDA_MEMORY", memory);
    devices = (int) number("FAKECUDA_DEVICES", 1);
    capability = (int) number("FAKECUDA_CAPABILITY", 90);
}

static void
enter(void)
{
    pthread_once(&once, set_up);
    pthread_mutex_lock(&lock);
}

/* Out of a call, with the state of the card or what went wrong in it. */
static cudaError_t
leave(cudaError_t e)
{
    if (sticky != cudaSuccess) e = sticky;
    if (e != cudaSuccess && e != cudaErrorNotReady) last = e;
    pthread_mutex_unlock(&lock);
    return e;
}

/* ---- operations ---- */

static void
append(ops_t *q, op_t *op)
{
    op->next = NULL;
    *q->last = op;
    q->last = &op->next;
}

static op_t *
new_op(void (*run)(void *), const void *arg, size_t size)
{
    op_t  *op = calloc(1, sizeof(*op));

    op->run = run;
    op->arg = malloc(size ? size : 1);
    memcpy(op->arg, arg, size);
    return op;
}

static void
free_op(op_t *op)
{
    if (!op->kept) free(op->arg);
    free(op);
}

static int
run_one(stream_t *s)
{
    op_t  *op = s->queue.first;

    if (op == NULL) return 0;
    s->queue.first = op->next;
    if (op->next == NULL) s->queue.last = &s->queue.first;
    if (sticky == cudaSuccess) op->run(op->arg);
    free_op(op);
    return 1;
}

static cudaError_t
enqueue(stream_t *s, void (*run)(void *), const void *arg, size_t size)
{
    append(s->capture != NULL ? &s->capture->ops : &s->queue, new_op(run, arg, size));
    return cudaSuccess;
}

int
fakecuda_may(const void *p, size_t bytes)
{
    for (const range_t *r = ranges; r != NULL; r = r->next) {
        if ((const char *) p >= r->base && (const char *) p + bytes <= r->base + r->size) {
            return 1;
        }
    }
    sticky = cudaErrorIllegalAddress;
    return 0;
}

static int
known(const void *p)
{
    for (const range_t *r = ranges; r != NULL; r = r->next) {
        if ((const char *) p >= r->base && (const char *) p < r->base + r->size) return 1;
    }
    return 0;
}

/* ---- control ---- */

static void
set(int *v, int to)
{
    enter();
    *v = to;
    (void) leave(cudaSuccess);
}

static int
get(const int *v)
{
    int  n;

    enter();
    n = *v;
    (void) leave(cudaSuccess);
    return n;
}

void
fakecuda_memory(size_t bytes)
{
    enter();
    memory = bytes;
    (void) leave(cudaSuccess);
}

void fakecuda_devices(int n) { set(&devices, n); }
void fakecuda_capability(int mm) { set(&capability, mm); }
void fakecuda_hang(int after) { set(&hang, after); }
void fakecuda_doze(int ms) { set(&doze, ms); }
void fakecuda_fail_launch(int status) { set(&fail_launch, status); }
void fakecuda_unload(void) { set(&ncode, 0); }

int fakecuda_live(void) { return get(&live); }
int fakecuda_late(void) { return get(&late); }
int fakecuda_early(void) { return get(&early); }
int fakecuda_launches(void) { return get(&launches); }

size_t
fakecuda_pinned(void)
{
    size_t  n;

    enter();
    n = most_pinned;
    most_pinned = pinned;
    (void) leave(cudaSuccess);
    return n;
}

int
fakecuda_pending(void)
{
    int  n = 0;

    enter();
    for (const stream_t *s = streams; s != NULL; s = s->next) {
        for (const op_t *op = s->queue.first; op != NULL; op = op->next) n++;
    }
    (void) leave(cudaSuccess);
    return n;
}

void
fakecuda_reset(void)
{
    enter();
    sticky = last = cudaSuccess;
    (void) leave(cudaSuccess);
}

/* ---- the device ---- */

cudaError_t
cudaGetDeviceCount(int *count)
{
    enter();
    *count = devices;
    return leave(devices > 0 ? cudaSuccess : cudaErrorNoDevice);
}

cudaError_t
cudaSetDevice(int device)
{
    enter();
    return leave(device < devices ? cudaSuccess : cudaErrorInvalidDevice);
}

cudaError_t
cudaGetDevice(int *device)
{
    enter();
    *device = 0;
    return leave(devices > 0 ? cudaSuccess : cudaErrorNoDevice);
}

cudaError_t
cudaGetDeviceProperties(struct cudaDeviceProp *p, int device)
{
    (void) device;
    enter();
    memset(p, 0, sizeof(*p));
    snprintf(p->name, sizeof(p->name), "a fake card");
    p->major = capability / 10;
    p->minor = capability % 10;
    p->multiProcessorCount = 4;
    p->sharedMemPerBlockOptin = capability == 86 ? 99 * 1024 : 163 * 1024;
    p->totalGlobalMem = memory;
    return leave(cudaSuccess);
}

cudaError_t
cudaMemGetInfo(size_t *left, size_t *total)
{
    enter();
    *total = memory;
    *left = used < memory ? memory - used : 0;
    return leave(cudaSuccess);
}

const char *
cudaGetErrorString(cudaError_t e)
{
    switch (e) {
    case cudaErrorMemoryAllocation:  return "out of memory";
    case cudaErrorIllegalAddress:    return "an illegal memory access was encountered";
    case cudaErrorLaunchTimeout:     return "the launch timed out and was terminated";
    case cudaErrorNoDevice:          return "no CUDA-capable device is detected";
    case cudaErrorDevicesUnavailable: return "CUDA-capable device(s) is/are busy or unavailable";
    case cudaErrorUnknown:           return "unknown error";
    default:                         return "an error";
    }
}

cudaError_t
cudaGetLastError(void)
{
    cudaError_t  e;

    enter();
    e = last;
    last = cudaSuccess;
    (void) leave(cudaSuccess);
    return e;
}

/* ---- memory ---- */

static cudaError_t
add_range(void **p, size_t size, int device)
{
    range_t  *r;
    size_t    pages = (size + 4095) / 4096 * 4096;

    *p = NULL;
    if (device && size > memory - used) return cudaErrorMemoryAllocation;
    r = calloc(1, sizeof(*r));
    r->base = mmap(NULL, pages, PROT_READ | PROT_WRITE,
        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (r->base == MAP_FAILED) {
        free(r);
        return cudaErrorMemoryAllocation;
    }
    /* what was never written is NaN in fp16 and fp32 */
    if (pages <= (size_t) 64 << 20) memset(r->base, 0xff, pages);
    r->size = size;
    r->device = device;
    r->next = ranges;
    ranges = r;
    if (device) used += size;
    else pinned += size;
    if (pinned > most_pinned) most_pinned = pinned;
    live++;
    *p = r->base;
    return cudaSuccess;
}

static cudaError_t
drop_range(void *p, int device)
{
    for (range_t **at = &ranges; *at != NULL; at = &(*at)->next) {
        range_t  *r = *at;

        if (r->base != p || r->device != device) continue;
        *at = r->next;
        if (device) used -= r->size;
        else pinned -= r->size;
        munmap(r->base, (r->size + 4095) / 4096 * 4096);
        free(r);
        live--;
        return cudaSuccess;
    }
    return p == NULL ? cudaSuccess : cudaErrorInvalidValue;
}

/* Memory is given back when nothing can use it any more; a card would not always wait. */
static void
drain(void)
{
    for (stream_t *s = streams; s != NULL; s = s->next) {
        early += hang != 0 && s->queue.first != NULL;
        while (hang != 0 && run_one(s)) { /* all */ }
    }
}

cudaError_t
cudaMalloc(void **p, size_t size)
{
    enter();
    return leave(add_range(p, size, 1));
}

cudaError_t
cudaFree(void *p)
{
    enter();
    drain();
    return leave(drop_range(p, 1));
}

cudaError_t
cudaHostAlloc(void **p, size_t size, unsigned int flags)
{
    (void) flags;
    enter();
    return leave(add_range(p, size, 0));
}

cudaError_t
cudaMallocHost(void **p, size_t size)
{
    return cudaHostAlloc(p, size, 0);
}

cudaError_t
cudaFreeHost(void *p)
{
    enter();
    drain();
    return leave(drop_range(p, 0));
}

typedef struct {
    char        *dst;
    const char  *src;             /* NULL: value */
    size_t       dst_pitch, src_pitch, width, rows;
    int          value;
} copy_t;

static void
run_copy(void *arg)
{
    const copy_t  *c = arg;

    for (size_t i = 0; i < c->rows; i++) {
        char        *dst = c->dst + i * c->dst_pitch;
        const char  *src = c->src == NULL ? NULL : c->src + i * c->src_pitch;

        if (known(c->dst) && !fakecuda_may(dst, c->width)) return;
        if (src != NULL && known(c->src) && !fakecuda_may(src, c->width)) return;
        if (src == NULL) memset(dst, c->value, c->width);
        else memmove(dst, src, c->width);
    }
}

/* To or from pageable memory a copy is over when the call returns. */
static cudaError_t
copy(const copy_t *c, cudaStream_t stream)
{
    stream_t  *s = (stream_t *) stream;
    copy_t     now = *c;

    if (known(c->dst) && (c->src == NULL || known(c->src))) {
        return enqueue(s, run_copy, c, sizeof(*c));
    }
    if (s->capture != NULL) return cudaErrorStreamCaptureUnsupported;
    if (!known(c->dst) && (c->src == NULL || !known(c->src))) return cudaErrorInvalidValue;
    while (run_one(s)) { /* all */ }
    run_copy(&now);
    return cudaSuccess;
}

cudaError_t
cudaMemcpyAsync(void *dst, const void *src, size_t n, enum cudaMemcpyKind kind, cudaStream_t s)
{
    copy_t  c = { dst, src, n, n, n, 1, 0 };

    (void) kind;
    enter();
    return leave(copy(&c, s));
}

cudaError_t
cudaMemcpy2DAsync(void *dst, size_t dst_pitch, const void *src, size_t src_pitch, size_t width,
    size_t rows, enum cudaMemcpyKind kind, cudaStream_t s)
{
    copy_t  c = { dst, src, dst_pitch, src_pitch, width, rows, 0 };

    (void) kind;
    enter();
    return leave(copy(&c, s));
}

cudaError_t
cudaMemsetAsync(void *dst, int value, size_t n, cudaStream_t s)
{
    copy_t  c = { dst, NULL, n, n, n, 1, value };

    enter();
    return leave(copy(&c, s));
}

cudaError_t
cudaMemcpy(void *dst, const void *src, size_t n, enum cudaMemcpyKind kind)
{
    copy_t  c = { dst, src, n, n, n, 1, 0 };

    (void) kind;
    enter();
    run_copy(&c);
    return leave(cudaSuccess);
}

cudaError_t
cudaMemset(void *dst, int value, size_t n)
{
    copy_t  c = { dst, NULL, n, n, n, 1, value };

    enter();
    run_copy(&c);
    return leave(cudaSuccess);
}

/* ---- streams ---- */

/* What is not done yet, to a process that may have been stopped since. */
static cudaError_t
not_ready(void)
{
    int  ms = doze;

    doze = 0;
    (void) leave(cudaSuccess);
    if (ms > 0) usleep((useconds_t) ms * 1000);
    return cudaErrorNotReady;
}

struct glm_stream_s { stream_t s; };

/* Kept in words and as a number, as the launchers do. */
static int
launched(cudaError_t e)
{
    e = leave(e);
    if (e == cudaSuccess) return 0;
    snprintf(launch_error, sizeof(launch_error), "a kernel: %s", cudaGetErrorString(e));
    launch_code = (int) e;
    (void) cudaGetLastError();
    return GLM_EGPU;
}

int
glm_cuda_stream(glm_stream_t **out)
{
    glm_stream_t  *s = calloc(1, sizeof(*s));

    enter();
    s->s.queue.last = &s->s.queue.first;
    s->s.next = streams;
    streams = &s->s;
    live++;
    *out = s;
    return launched(cudaSuccess);
}

void
glm_cuda_stream_free(glm_stream_t *s)
{
    if (s == NULL) return;
    enter();
    early += s->s.queue.first != NULL;
    while (run_one(&s->s)) { /* all */ }
    for (stream_t **at = &streams; *at != NULL; at = &(*at)->next) {
        if (*at != &s->s) continue;
        *at = s->s.next;
        break;
    }
    live--;
    free(s);
    (void) leave(cudaSuccess);
}

void *
glm_cuda_stream_native(const glm_stream_t *s)
{
    return (void *) (uintptr_t) &s->s;
}

void
fakecuda_code(void (*run)(void *arg), int variant)
{
    int  i;

    enter();
    for (i = 0; i < ncode && (code[i].run != run || code[i].variant != variant); i++) { /* look */ }
    if (i == ncode) {
        late++;
        if (ncode < (int) (sizeof(code) / sizeof(code[0]))) code[ncode++] = (code_t) { run, variant };
    }
    (void) leave(cudaSuccess);
}

int
fakecuda_enqueue(glm_stream_t *s, void (*run)(void *arg), const void *arg, size_t size)
{
    int  e;

    enter();
    launches++;
    e = fail_launch;
    fail_launch = 0;
    if (e != 0) return launched((cudaError_t) e);
    fakecuda_code(run, 0);
    return launched(enqueue(&s->s, run, arg, size));
}

/* As of an event: not at the first look. */
cudaError_t
cudaStreamQuery(cudaStream_t stream)
{
    stream_t  *s = (stream_t *) stream;

    enter();
    if (s->queue.first == NULL || sticky != cudaSuccess) return leave(cudaSuccess);
    if (s->looks++ % 2 == 0 || hang == 0) return not_ready();
    while (run_one(s)) { /* all */ }
    return leave(cudaSuccess);
}

cudaError_t
cudaStreamSynchronize(cudaStream_t stream)
{
    stream_t  *s = (stream_t *) stream;

    enter();
    if (s->capture != NULL) return leave(cudaErrorStreamCaptureUnsupported);
    while (run_one(s)) { /* all */ }
    return leave(cudaSuccess);
}

/* Tests of kernels have one stream, and wait for it by itself. */
cudaError_t
cudaDeviceSynchronize(void)
{
    enter();
    return leave(cudaSuccess);
}

/* ---- events ---- */

cudaError_t
cudaEventCreateWithFlags(cudaEvent_t *out, unsigned int flags)
{
    (void) flags;
    enter();
    *out = calloc(1, sizeof(event_t));
    live++;
    return leave(cudaSuccess);
}

cudaError_t
cudaEventDestroy(cudaEvent_t e)
{
    event_t  *ev = (event_t *) e;

    enter();
    while (ev->pending > 0 && run_one(ev->stream)) { /* its marks lie there */ }
    free(e);
    live--;
    return leave(cudaSuccess);
}

static void
run_event(void *arg)
{
    (*(event_t **) arg)->pending--;
}

cudaError_t
cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    event_t  *e = (event_t *) event;

    enter();
    e->stream = (stream_t *) stream;
    if (e->stream->capture != NULL) return leave(cudaErrorStreamCaptureUnsupported);
    e->pending++;
    e->looks = 0;
    return leave(enqueue(e->stream, run_event, &e, sizeof(e)));
}

/* Not there at the first look, then it is, with all before it; or never. */
cudaError_t
cudaEventQuery(cudaEvent_t event)
{
    event_t  *e = (event_t *) event;

    enter();
    if (e->pending == 0 || sticky != cudaSuccess) return leave(cudaSuccess);
    if (e->looks++ == 0 || hang == 0) return not_ready();
    while (e->pending > 0 && run_one(e->stream)) { /* up to it */ }
    if (hang > 0) hang--;
    return leave(cudaSuccess);
}

/* ---- graphs ---- */

cudaError_t
cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode)
{
    stream_t  *s = (stream_t *) stream;

    (void) mode;
    enter();
    if (s->capture != NULL) return leave(cudaErrorIllegalState);
    s->capture = calloc(1, sizeof(graph_t));
    s->capture->ops.last = &s->capture->ops.first;
    live++;
    return leave(cudaSuccess);
}

cudaError_t
cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *out)
{
    stream_t  *s = (stream_t *) stream;

    enter();
    *out = (cudaGraph_t) s->capture;
    if (s->capture == NULL) return leave(cudaErrorIllegalState);
    s->capture = NULL;
    return leave(cudaSuccess);
}

static graph_t *
copy_graph(const graph_t *g)
{
    graph_t  *c = calloc(1, sizeof(*c));

    c->ops.last = &c->ops.first;
    for (const op_t *op = g->ops.first; op != NULL; op = op->next) {
        op_t  *n = calloc(1, sizeof(*n));

        *n = *op;
        n->kept = 1;
        append(&c->ops, n);
    }
    return c;
}

static void
free_graph(graph_t *g, int args)
{
    op_t  *op;

    while ((op = g->ops.first) != NULL) {
        g->ops.first = op->next;
        if (args) free(op->arg);
        free(op);
    }
    free(g);
    live--;
}

/* An executable graph owns the arguments; of the graph itself only the list is left. */
cudaError_t
cudaGraphInstantiate(cudaGraphExec_t *x, cudaGraph_t graph, unsigned long long flags)
{
    graph_t  *g = (graph_t *) graph;

    (void) flags;
    enter();
    *x = (cudaGraphExec_t) copy_graph(g);
    for (op_t *op = g->ops.first; op != NULL; op = op->next) op->arg = NULL;
    live++;
    return leave(cudaSuccess);
}

cudaError_t
cudaGraphUpload(cudaGraphExec_t x, cudaStream_t stream)
{
    enter();
    if (((stream_t *) stream)->capture != NULL) return leave(cudaErrorStreamCaptureUnsupported);
    ((graph_t *) x)->uploaded = 1;
    return leave(cudaSuccess);
}

cudaError_t
cudaGraphDestroy(cudaGraph_t g)
{
    enter();
    free_graph((graph_t *) g, 1);
    return leave(cudaSuccess);
}

cudaError_t
cudaGraphExecDestroy(cudaGraphExec_t x)
{
    enter();
    drain();                      /* a launch that is under way has its arguments there */
    free_graph((graph_t *) x, 1);
    return leave(cudaSuccess);
}

cudaError_t
cudaGraphLaunch(cudaGraphExec_t x, cudaStream_t stream)
{
    graph_t  *c;
    op_t     *op;
    stream_t *s = (stream_t *) stream;

    enter();
    launches++;
    late += !((graph_t *) x)->uploaded;
    c = copy_graph((graph_t *) x);
    while ((op = c->ops.first) != NULL) {
        c->ops.first = op->next;
        append(&s->queue, op);
    }
    free(c);
    return leave(cudaSuccess);
}

/* ---- a card that fails by itself ---- */

void
glm_broken_hang(glm_stream_t *s)
{
    (void) s;
    fakecuda_hang(0);
    fprintf(stderr, "fakecuda: hangs\n");
}

static void
run_astray(void *arg)
{
    (void) fakecuda_may(*(void **) arg, 1);
}

void
glm_broken_astray(glm_stream_t *s)
{
    void  *nowhere = NULL;

    (void) fakecuda_enqueue(s, run_astray, &nowhere, sizeof(nowhere));
}

/* ---- the table: the same launchers under either name ---- */

const char *
glm_cuda_error(void)
{
    return launch_error;
}

int
glm_cuda_error_code(void)
{
    return launch_code;
}

extern const glm_cuda_ops_t  fakecuda_ops80, fakecuda_ops90;

const glm_cuda_ops_t *
glm_cuda_ops(int arch)
{
    pthread_once(&once, set_up);
    if (capability < 80) return NULL;
    if (arch == 0) arch = capability == 90 ? 90 : 80;
    return arch == 90 && capability == 90 ? &fakecuda_ops90
         : arch == 80 ? &fakecuda_ops80 : NULL;
}

size_t
glm_cuda_linear_ws(const glm_stream_t *s, int bucket)
{
    (void) s;
    return glm_cuda_linear_ws_sms(4, bucket);
}
