/*
 * ring: records arrive whole and in order whatever their sizes, both sides
 * sleep and are woken, and a peer that lies is found out.  Also between two
 * processes, and (tsan) without a data race.
 */
#include <poll.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "glm_ring.h"
#include "tap.h"

#define SIZE  GLM_WIRE_MIN_RING

static uint64_t
next(uint64_t *x)
{
    *x ^= *x << 13;
    *x ^= *x >> 7;
    *x ^= *x << 17;
    return *x;
}

/* ---- one thread ---- */

static _Alignas(128) uint8_t  memory[sizeof(glm_ring_shared_t) + SIZE];
static glm_ring_t             w, r;
static uint8_t                buf[GLM_WIRE_MAX_RECORD];

static void
fresh(void)
{
    memset(memory, 0, sizeof(memory));
    glm_ring_init(&w, memory, SIZE);
    glm_ring_init(&r, memory, SIZE);
}

static int
put(uint64_t id, uint32_t size)
{
    int        rc;
    void      *at;
    glm_rec_t  rec = { .size = size, .type = GLM_MSG_CANCEL, .id = id };

    rc = glm_ring_reserve(&w, size, &at);
    if (rc != GLM_RING_OK) return rc;
    memcpy(at, &rec, sizeof(rec));
    memset((uint8_t *) at + sizeof(rec), (int) id, size - sizeof(rec));
    return rc;
}

static int
get(uint64_t id, uint32_t size)
{
    uint32_t   i;
    glm_rec_t  rec;

    if (glm_ring_read(&r, buf, sizeof(buf)) != GLM_RING_OK) return 0;
    memcpy(&rec, buf, sizeof(rec));
    for (i = sizeof(rec); i < size; i++) if (buf[i] != (uint8_t) id) return 0;
    return rec.id == id && rec.size == size;
}

static void
test_single(void)
{
    int       bad = 0, i;
    uint32_t  size;
    uint64_t  x = 88172645463325252u;

    fresh();
    ok(glm_ring_read(&r, buf, sizeof(buf)) == GLM_RING_EMPTY, "a new ring is empty");
    put(1, 16);
    ok(glm_ring_read(&r, buf, sizeof(buf)) == GLM_RING_EMPTY, "not published: not seen");
    ok(glm_ring_publish(&w) == 0, "no bell for a reader that is awake");
    ok(get(1, 16), "published: read");
    put(2, 100);
    glm_ring_abort(&w);
    put(3, 24);
    glm_ring_publish(&w);
    ok(get(3, 24), "an aborted record was never there");

    for (i = 0; i < 200000; i++) {
        size = (uint32_t) (sizeof(glm_rec_t) + next(&x) % (glm_ring_max_record(&w) - 15));
        bad += put((uint64_t) i, size) != GLM_RING_OK;
        glm_ring_publish(&w);
        bad += !get((uint64_t) i, size);
        glm_ring_release(&r);
    }
    ok(bad == 0, "200,000 records of every size, over every end of the ring");
}

static void
test_full(void)
{
    int  n = 0;

    fresh();
    while (put(7, 1000) == GLM_RING_OK) n++;
    ok(n == SIZE / 1000, "%d records of 1000 bytes fill it", n);
    glm_ring_publish(&w);
    glm_ring_want_room(&w);
    ok(put(7, 1000) == GLM_RING_FULL, "full is full");
    ok(get(7, 1000) && put(7, 1000) == GLM_RING_FULL, "read, not released: still full");
    ok(glm_ring_release(&r) == 1, "a writer that waits gets a bell");
    ok(get(7, 1000) && glm_ring_release(&r) == 0, "and one bell only");
    ok(glm_ring_room(&w) >= 2000, "there is room");
}

static void
test_sleep(void)
{
    fresh();
    ok(glm_ring_sleep(&r) == 1, "nothing there: may sleep");
    put(1, 16);
    ok(glm_ring_publish(&w) == 1, "a reader that sleeps gets a bell");
    put(2, 16);
    ok(glm_ring_publish(&w) == 0, "once");
    ok(glm_ring_sleep(&r) == 0 && get(1, 16), "something there: may not sleep");
}

/* ---- a peer that lies ---- */

static void
lie_tail(uint64_t tail, const char *what)
{
    fresh();
    put(1, 16);
    put(2, 16);
    glm_ring_publish(&w);
    glm_ring_read(&r, buf, sizeof(buf));
    r.mine = r.peer;          /* so that the tail is looked at */
    w.shared->tail = tail;
    ok(glm_ring_read(&r, buf, sizeof(buf)) == GLM_RING_BROKEN, "tail %s: broken", what);
    ok(glm_ring_sleep(&r) == GLM_RING_BROKEN, "tail %s: no sleep either", what);
}

static void
lie_head(uint64_t head, const char *what)
{
    fresh();
    put(1, 16);
    put(2, 16);
    glm_ring_publish(&w);
    w.shared->head = 16;
    glm_ring_room(&w);
    w.shared->head = head;
    ok(glm_ring_room(&w) == GLM_RING_BROKEN, "head %s: broken", what);
}

static void
lie_record(uint32_t size, uint16_t type, const char *what)
{
    glm_rec_t  rec = { .size = size, .type = type };

    fresh();
    put(1, 64);
    glm_ring_publish(&w);
    memcpy(w.data, &rec, 8);
    ok(glm_ring_read(&r, buf, sizeof(buf)) == GLM_RING_BROKEN, "record %s: broken", what);
}

static void
test_lies(void)
{
    lie_tail(24, "back");
    lie_tail(37, "not a multiple of 8");
    lie_tail(SIZE + 40, "more than a ring ahead");
    lie_tail(UINT64_MAX - 7, "at the end of numbers");
    lie_head(8, "back");
    lie_head(40, "ahead of the tail");
    lie_head(20, "not a multiple of 8");
    lie_record(0, GLM_MSG_CANCEL, "of no bytes");
    lie_record(15, GLM_MSG_CANCEL, "below its header");
    lie_record(65, GLM_MSG_CANCEL, "beyond what was published");
    lie_record(SIZE / 4 + 8, GLM_MSG_CANCEL, "above a quarter of the ring");
    lie_record(UINT32_MAX, GLM_MSG_CANCEL, "of 4 GiB");
    lie_record(64, GLM_MSG_PAD, "pad in the middle");
    lie_record(0, GLM_MSG_PAD, "pad of nothing");
    /* what it has seen already goes away again */
    fresh();
    put(1, 16);
    put(2, 16);
    put(3, 16);
    glm_ring_publish(&w);
    get(1, 16);
    w.shared->tail = 32;
    ok(glm_ring_sleep(&r) == GLM_RING_BROKEN, "tail back, but not behind the head: broken");
    /* published in full, but larger than a record may be */
    fresh();
    put(1, SIZE / 4);
    put(2, SIZE / 4);
    glm_ring_publish(&w);
    ((glm_rec_t *) (void *) w.data)->size = SIZE / 4 + 8;
    ok(glm_ring_read(&r, buf, sizeof(buf)) == GLM_RING_BROKEN, "record above a quarter: broken");
    fresh();
    put(1, 1000);
    glm_ring_publish(&w);
    ok(glm_ring_read(&r, buf, 999) == GLM_RING_BROKEN, "record above the buffer: broken");
}

/* ---- two sides, threads or processes ---- */

typedef struct {
    void      *shared;
    int        fd[2];         /* bells: [0] the writer's end, [1] the reader's */
    long       n;
    int        naps;          /* each side dozes now and then */
    long       waits, sleeps, bad;
} pair_t;

static void
ring_bell(int fd)
{
    ssize_t  n = send(fd, "12345678", 8, MSG_DONTWAIT | MSG_NOSIGNAL);

    (void) n;
}

/* 0 when no bell came in a minute: it was lost. */
static int
await_bell(int fd)
{
    char           b[8];
    struct pollfd  p = { .fd = fd, .events = POLLIN };

    if (poll(&p, 1, 60000) != 1) return 0;
    while (recv(fd, b, sizeof(b), MSG_DONTWAIT) > 0) { /* all of them */ }
    return 1;
}

static uint32_t
size_of(uint64_t *x)
{
    uint64_t  n = next(x);

    return (uint32_t) (16 + (n % 50 == 0 ? (n >> 8) % 16000 : (n >> 8) % 300));
}

/* 0 when the ring broke or no bell came. */
static int
reserve(pair_t *p, glm_ring_t *ring, uint32_t size, void **at)
{
    int  rc;

    for ( ;; ) {
        rc = glm_ring_reserve(ring, size, at);
        if (rc != GLM_RING_FULL) return rc == GLM_RING_OK;
        if (glm_ring_publish(ring)) ring_bell(p->fd[0]);
        glm_ring_want_room(ring);
        rc = glm_ring_reserve(ring, size, at);
        if (rc != GLM_RING_FULL) return rc == GLM_RING_OK;
        p->waits++;
        if (!await_bell(p->fd[0])) return 0;
    }
}

/* Until the other side has said that it waits, however the machine shares its cores. */
static void
until_set(const uint32_t *flag)
{
    for (int i = 0; i < 100000 && __atomic_load_n(flag, __ATOMIC_RELAXED) == 0; i++) usleep(100);
}

static void *
writer(void *arg)
{
    long        i;
    void       *at = NULL;
    pair_t     *p = arg;
    uint64_t    x = 12345, y = 999;
    glm_rec_t   rec = { .type = GLM_MSG_WINDOW };
    glm_ring_t  ring;

    glm_ring_init(&ring, p->shared, SIZE);
    for (i = 0; i < p->n; i++) {
        rec.size = size_of(&x);
        rec.id = (uint64_t) i;
        if (!reserve(p, &ring, rec.size, &at)) {
            p->bad++;
            return NULL;
        }
        memcpy(at, &rec, sizeof(rec));
        memset((uint8_t *) at + sizeof(rec), (int) i, rec.size - sizeof(rec));
        if (next(&y) % 8 == 0 || i == p->n - 1) {
            if (glm_ring_publish(&ring)) ring_bell(p->fd[0]);
        }
        if (i == p->n / 2) {
            if (glm_ring_publish(&ring)) ring_bell(p->fd[0]);
            until_set(&((glm_ring_shared_t *) p->shared)->reader_sleeps);
        }
        if (p->naps && next(&y) % 5000 == 0) {
            if (glm_ring_publish(&ring)) ring_bell(p->fd[0]);
            usleep(200);
        }
    }
    return NULL;
}

static int
right(const uint8_t *b, long i, uint64_t *x)
{
    uint32_t   size = size_of(x), k;
    glm_rec_t  rec;

    memcpy(&rec, b, sizeof(rec));
    if (rec.size != size || rec.id != (uint64_t) i || rec.type != GLM_MSG_WINDOW) return 0;
    for (k = sizeof(rec); k < size; k++) if (b[k] != (uint8_t) i) return 0;
    return 1;
}

static void *
reader(void *arg)
{
    int         rc;
    long        i = 0;
    pair_t     *p = arg;
    uint8_t    *b = malloc(GLM_WIRE_MAX_RECORD);
    uint64_t    x = 12345, y = 7;
    glm_ring_t  ring;

    glm_ring_init(&ring, p->shared, SIZE);
    while (i < p->n && p->bad == 0) {
        if (i == p->n / 4) until_set(&((glm_ring_shared_t *) p->shared)->writer_waits);
        rc = glm_ring_read(&ring, b, GLM_WIRE_MAX_RECORD);
        if (rc == GLM_RING_OK) {
            p->bad += !right(b, i++, &x);
            if (next(&y) % 16 == 0 && glm_ring_release(&ring)) ring_bell(p->fd[1]);
            if (p->naps && next(&y) % 5000 == 0) usleep(200);
            continue;
        }
        if (glm_ring_release(&ring)) ring_bell(p->fd[1]);
        rc = rc == GLM_RING_BROKEN ? rc : glm_ring_sleep(&ring);
        if (rc == 1) {
            p->sleeps++;
            p->bad += !await_bell(p->fd[1]);
        }
        p->bad += rc < 0;
    }
    if (glm_ring_release(&ring)) ring_bell(p->fd[1]);
    free(b);
    return NULL;
}

static pair_t
make_pair(long n, int naps)
{
    pair_t  p = { .n = n, .naps = naps };

    p.shared = mmap(NULL, sizeof(glm_ring_shared_t) + SIZE, PROT_READ | PROT_WRITE,
                    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (p.shared == MAP_FAILED || socketpair(AF_UNIX, SOCK_SEQPACKET, 0, p.fd) != 0) {
        bail_out("mmap or socketpair");
    }
    return p;
}

static void
end_pair(pair_t *p)
{
    munmap(p->shared, sizeof(glm_ring_shared_t) + SIZE);
    close(p->fd[0]);
    close(p->fd[1]);
}

static void
test_threads(long n, int naps)
{
    pair_t     p = make_pair(n, naps), q = p;
    pthread_t  t;

    pthread_create(&t, NULL, writer, &p);
    reader(&q);
    pthread_join(t, NULL);
    ok(p.bad == 0 && q.bad == 0, "threads: %ld records in order", n);
    ok(p.waits > 0 && q.sleeps > 0, "threads: the writer waited (%ld) and the reader slept (%ld)",
       p.waits, q.sleeps);
    end_pair(&p);
}

static void
test_processes(long n, int naps)
{
    int     status;
    pair_t  p = make_pair(n, naps);
    pid_t   pid = fork();

    if (pid == 0) {
        writer(&p);
        _exit(p.bad != 0);
    }
    reader(&p);
    waitpid(pid, &status, 0);
    ok(p.bad == 0 && status == 0, "processes: %ld records in order", n);
    ok(p.sleeps > 0, "processes: the reader slept (%ld)", p.sleeps);
    end_pair(&p);
}

/* ---- statistics ---- */

static glm_wire_stats_t  shared;
static int               stats_done;

static void *
stats_writer(void *arg)
{
    uint64_t          i, n = *(uint64_t *) arg;
    glm_wire_stats_t  s = {0};

    for (i = 1; i <= n; i++) {
        s.requests = s.accepted = s.ttft.count = s.queue.bucket[GLM_STATS_BUCKETS - 1] = i;
        glm_stats_write(&shared, &s);
    }
    __atomic_store_n(&stats_done, 1, __ATOMIC_RELEASE);
    return NULL;
}

static void
test_stats(void)
{
    long              good = 0, torn = 0;
    uint64_t          n = 200000;
    pthread_t         t;
    glm_wire_stats_t  s = {0};

    glm_stats_write(&shared, &s);
    pthread_create(&t, NULL, stats_writer, &n);
    while (!__atomic_load_n(&stats_done, __ATOMIC_ACQUIRE)) {
        if (glm_stats_read(&shared, sizeof(shared), &s) != 0) continue;
        good++;
        torn += s.requests != s.accepted || s.requests != s.ttft.count
                || s.requests != s.queue.bucket[GLM_STATS_BUCKETS - 1];
    }
    pthread_join(t, NULL);
    ok(torn == 0, "statistics: %ld copies, none torn", good);
    ok(glm_stats_read(&shared, sizeof(shared), &s) == 0 && s.requests == n, "and the last is there");
    shared.seq |= 1;
    ok(glm_stats_read(&shared, sizeof(shared), &s) == -1, "a writer that stands still: bounded");
    shared.seq++;
    shared.size = 4096;
    ok(glm_stats_read(&shared, sizeof(shared), &s) == -1, "a size beyond the mapping is refused");
}

int
main(void)
{
    long  scale = getenv("GLM_SANITIZED") != NULL ? 10 : 1;

    test_single();
    test_full();
    test_sleep();
    test_lies();
    test_threads(1000000 / scale, 0);
    test_threads(200000 / scale, 1);
    test_processes(3000000 / scale, 0);
    test_processes(200000 / scale, 1);
    test_stats();
    return tap_done();
}
