/*
 * server_hostile: a client that lies, floods, never reads or vanishes is dropped
 * or paused alone: a good one beside it keeps getting the right bytes in time,
 * and memory and descriptors stay flat.
 */
#include <sys/ioctl.h>

#include "server_util.h"

#include "../fake/fake_engine.c"
#include "../fake/fake_job.c"
#include "../fake/fake_say.c"
#include "../fake/fake_script.c"

static world_t      world;
static neighbour_t  good;
static int          scale = 1;       /* sanitized builds do less */

/* Every trick starts from a client that is served and ends with it dropped. */
typedef void (*trick_pt)(raw_t *r);

static void
drops(trick_pt trick, const char *what)
{
    int    dropped;
    raw_t  r;

    if (!raw_join(&r, &world)) bail_out("no welcome");
    trick(&r);
    raw_bell(&r);
    dropped = raw_dropped(&r);
    ok(dropped, "dropped: %s", what);
    raw_close(&r);
}

/* ---- counters and records ---- */

static void
tail_misaligned(raw_t *r)
{
    r->sub.shared->tail = 13;
}

static void
tail_ahead(raw_t *r)
{
    r->sub.shared->tail = GLM_WIRE_MIN_RING + 8;
}

static void
tail_back(raw_t *r)
{
    raw_put(r, GLM_MSG_CANCEL, 0, 1, NULL, 0);
    raw_put(r, GLM_MSG_CANCEL, 0, 1, NULL, 0);
    raw_go(r);
    WAIT_FOR(__atomic_load_n(&r->sub.shared->head, __ATOMIC_SEQ_CST) == 32);
    __atomic_store_n(&r->sub.shared->tail, 16, __ATOMIC_SEQ_CST);
}

/* The completion ring's head beyond what was written. */
static void
head_ahead(raw_t *r)
{
    int  i;

    r->com.shared->head = 1 << 20;
    for (i = 0; i < 1000; i++) raw_ask(r, (uint64_t) i, "fake: error=400", 1, 0);
    raw_go(r);
}

static void
record(raw_t *r, uint32_t size, uint16_t type, uint16_t flags)
{
    glm_rec_t  rec = { .size = size, .type = type, .flags = flags };

    memcpy(r->sub.data, &rec, sizeof(rec));
    __atomic_store_n(&r->sub.shared->tail, 4096, __ATOMIC_SEQ_CST);
}

static void size_zero(raw_t *r) { record(r, 0, GLM_MSG_CANCEL, 0); }
static void size_small(raw_t *r) { record(r, 8, GLM_MSG_CANCEL, 0); }
static void size_huge(raw_t *r) { record(r, UINT32_MAX, GLM_MSG_SUBMIT, 0); }
static void size_beyond(raw_t *r) { record(r, 5000, GLM_MSG_SUBMIT, 0); }
static void type_unknown(raw_t *r) { record(r, 4096, 99, 0); }
static void type_answer(raw_t *r) { record(r, 4096, GLM_MSG_DONE, 0); }
static void pad_short(raw_t *r) { record(r, 4096, GLM_MSG_PAD, 0); }

static void
flags_unknown(raw_t *r)
{
    raw_put(r, GLM_MSG_CANCEL, 0x8000, 1, NULL, 0);
    raw_go(r);
}

static void
more_cancel(raw_t *r)
{
    raw_put(r, GLM_MSG_CANCEL, GLM_REC_MORE, 1, NULL, 0);
    raw_go(r);
}

/* ---- messages ---- */

static void
submit_empty(raw_t *r)
{
    raw_put(r, GLM_MSG_SUBMIT, 0, 1, NULL, 0);
    raw_go(r);
}

static void
submit_lying_section(raw_t *r)
{
    struct { glm_msg_submit_t m; glm_sec_t s; }  x = {
        { .size = sizeof(glm_msg_submit_t), .op = 1, .n = 1 }, { GLM_SEC_TEXT, 0, 1u << 31 } };

    raw_put(r, GLM_MSG_SUBMIT, 0, 1, &x, sizeof(x));
    raw_go(r);
}

static void
twice_the_same(raw_t *r)
{
    raw_ask(r, 1, "fake: hang", 1, 0);
    raw_ask(r, 1, "fake: hang", 1, 0);
    raw_go(r);
}

static void
window_cut(raw_t *r)
{
    raw_put(r, GLM_MSG_WINDOW, 0, 1, "12345678", 8);
    raw_go(r);
}

static void
cancel_with_load(raw_t *r)
{
    raw_put(r, GLM_MSG_CANCEL, 0, 1, "12345678", 8);
    raw_go(r);
}

static void
cancel_inside(raw_t *r)
{
    raw_put(r, GLM_MSG_SUBMIT, GLM_REC_MORE, 1, "12345678", 8);
    raw_put(r, GLM_MSG_CANCEL, 0, 1, NULL, 0);
    raw_go(r);
}

static void
many_begun(raw_t *r)
{
    uint64_t  i;

    for (i = 0; i < 100; i++) raw_put(r, GLM_MSG_SUBMIT, GLM_REC_MORE, i, "12345678", 8);
    raw_go(r);
}

/* Puts and waits for room until the server closes. */
static int
push(raw_t *r, uint16_t flags, uint64_t id, const void *s, size_t n)
{
    char  b[64];

    while (raw_put(r, GLM_MSG_SUBMIT, flags, id, s, n) != 0) {
        raw_go(r);
        if (recv(r->fd, b, sizeof(b), MSG_DONTWAIT) == 0) return -1;
        usleep(100);
    }
    return 0;
}

static void
too_large(raw_t *r)
{
    static uint8_t  junk[16000];
    int             i;

    for (i = 0; i < 200 && push(r, GLM_REC_MORE, 1, junk, sizeof(junk)) == 0; i++) { /* 3 MB */ }
    raw_go(r);
}

static void
too_many_live(raw_t *r)
{
    uint64_t          i;
    glm_wbuf_t        b = {0};
    glm_msg_submit_t  m = { .size = sizeof(m), .op = GLM_SUBMIT_GENERATE, .n = 1 };

    glm_wbuf_put(&b, &m, sizeof(m));
    glm_wire_section(&b, GLM_SEC_TEXT, "fake: hang", 10);
    for (i = 0; i < 1100 && push(r, 0, i, b.p, b.n) == 0; i++) { /* one more, always */ }
    raw_go(r);
    glm_wbuf_free(&b);
}

/* ---- the socket ---- */

static void socket_garbage(raw_t *r) { send(r->fd, "garbage!", 8, MSG_NOSIGNAL); }
static void socket_short(raw_t *r) { send(r->fd, "GLM", 3, MSG_NOSIGNAL); }

static void
socket_hello_again(raw_t *r)
{
    glm_sock_hello_t  h = raw_valid_hello();

    send(r->fd, &h, sizeof(h), MSG_NOSIGNAL);
}

static void
socket_large(raw_t *r)
{
    static char  big[100000];

    send(r->fd, big, sizeof(big), MSG_NOSIGNAL);
}

static void
test_drops(void)
{
    drops(tail_misaligned, "tail that is no multiple of 8");
    drops(tail_ahead, "tail more than a ring ahead");
    drops(tail_back, "tail that runs backwards");
    drops(head_ahead, "head beyond what was written");
    drops(size_zero, "record of no bytes");
    drops(size_small, "record below its header");
    drops(size_huge, "record of 4 GiB");
    drops(size_beyond, "record beyond the tail");
    drops(type_unknown, "unknown type");
    drops(type_answer, "an engine's type");
    drops(flags_unknown, "unknown flags");
    drops(more_cancel, "a CANCEL in pieces");
    drops(pad_short, "pad in the middle");
    drops(submit_empty, "SUBMIT of nothing");
    drops(submit_lying_section, "section of 2 GiB");
    drops(twice_the_same, "an id that is live");
    drops(window_cut, "half a WINDOW");
    drops(cancel_with_load, "a CANCEL that carries something");
    drops(cancel_inside, "a CANCEL inside of its SUBMIT");
    drops(many_begun, "a hundred messages begun");
    drops(too_large, "a message without end");
    drops(too_many_live, "more requests than allowed");
    drops(socket_garbage, "garbage on the socket");
    drops(socket_short, "three bytes on the socket");
    drops(socket_hello_again, "a second HELLO");
    drops(socket_large, "100 kB on the socket");
    ok(neighbour_well(&good), "a good client saw nothing of it");
}

/* ---- noise ---- */

static uint64_t
rnd(uint64_t *x)
{
    *x = *x * 6364136223846793005u + 1442695040888963407u;
    return *x >> 16;
}

/* Plausible records with damage, and plain noise. */
static void
noise(raw_t *r, uint64_t *x)
{
    uint32_t   i, at = 0, n;
    glm_rec_t  rec;

    for (i = 0; i < GLM_WIRE_MIN_RING; i += 8) {
        uint64_t  v = rnd(x) % 4 ? rnd(x) & 0x0000ffff0000ffffu : rnd(x) << 20;

        memcpy(r->sub.data + i, &v, 8);
    }
    for (i = 0; i < 40 && at < 60000; i++) {
        n = 16 + (uint32_t) (rnd(x) % 300);
        rec = (glm_rec_t) { .size = n, .type = (uint16_t) (1 + rnd(x) % 4),
                            .flags = (uint16_t) (rnd(x) % 8 == 0), .id = rnd(x) % 10 };
        if (rnd(x) % 30 == 0) rec.size = (uint32_t) rnd(x);
        memcpy(r->sub.data + at, &rec, sizeof(rec));
        if (rec.type == GLM_MSG_SUBMIT && n > 120) {
            glm_msg_submit_t  m = { .size = 96, .op = (uint8_t) (1 + rnd(x) % 6), .n = 1 };
            memcpy(r->sub.data + at + 16, &m, sizeof(m));
        }
        at += (n + 7) & ~7u;
    }
    __atomic_store_n(&r->sub.shared->tail, rnd(x) % 3 ? at : rnd(x) % 70000, __ATOMIC_SEQ_CST);
}

static void
test_noise(void)
{
    int       i, n = 400 / scale;
    raw_t     r;
    uint64_t  x = 4711;

    for (i = 0; i < n; i++) {
        if (!raw_join(&r, &world)) break;
        noise(&r, &x);
        raw_bell(&r);
        if (i % 8 == 0) raw_dropped(&r);     /* most leave before they are thrown out */
        raw_close(&r);
    }
    ok(i == n, "%d clients of noise", i);
    ok(neighbour_well(&good), "a good client saw nothing of it");
    ok(WAIT_FOR(fake_engine_jobs() <= 1), "the engine has only the good one's");
}

/* ---- silence ---- */

/* The ring is never read; windows are wide open. */
static void
test_ring_unread(void)
{
    int       i, ends = 0, last = 0;
    long      t;
    raw_t     r;
    glm_rec_t rec;
    uint8_t  *buf = malloc(GLM_WIRE_MAX_RECORD);
    size_t    most = 0, share = world.server->o.spool_bytes / 4;

    raw_join(&r, &world);
    for (i = 0; i < 20; i++) {
        raw_ask(&r, (uint64_t) i, "fake: tokens=1000000 bytes=100", 1000000, (uint64_t) 1 << 40);
    }
    raw_go(&r);
    WAIT_FOR(atomic_load(&world.server->spool) > share);
    for (t = ms_now(); ms_now() - t < 1500; usleep(2000)) {
        if (atomic_load(&world.server->spool) > most) most = atomic_load(&world.server->spool);
    }
    ok(most > share && most < 3 * share, "ring never drained: %zu bytes kept of a share of %zu",
       most, share);
    ok(neighbour_well(&good), "a good client saw nothing of it");
    ok(WAIT_FOR(fake_engine_jobs() <= 1), "its requests were paused, then ended");

    for (t = ms_now(); ends < 20 && ms_now() - t < 60000; ) {
        i = glm_ring_read(&r.com, buf, GLM_WIRE_MAX_RECORD);
        if (i == GLM_RING_BROKEN) break;
        if (i == GLM_RING_EMPTY) {
            glm_ring_release(&r.com);
            raw_bell(&r);
            usleep(1000);
            continue;
        }
        memcpy(&rec, buf, sizeof(rec));
        last = rec.type;
        ends += rec.type == GLM_MSG_ERROR;
    }
    ok(ends == 20 && last == GLM_MSG_ERROR, "read at last: %d errors wait for it", ends);
    raw_close(&r);
    free(buf);
}

/* Its socket's buffer fills with bells, for it says that it sleeps all the time. */
static void
test_socket_unread(void)
{
    int    i, bells = 0, now;
    long   t;
    raw_t  r;

    raw_join(&r, &world);
    for (i = 0; i < 20; i++) {
        raw_ask(&r, (uint64_t) i, "fake: tokens=1000000 delay=1", 1000000, 1 << 30);
    }
    raw_go(&r);
    for (t = ms_now(); ms_now() - t < 300; ) {       /* until no more come */
        ioctl(r.fd, FIONREAD, &now);
        if (now != bells) t = ms_now();
        bells = now;
        __atomic_store_n(&r.com.shared->reader_sleeps, 1, __ATOMIC_SEQ_CST);
        /* drains without asking anyone */
        __atomic_store_n(&r.com.shared->head,
                         __atomic_load_n(&r.com.shared->tail, __ATOMIC_SEQ_CST), __ATOMIC_SEQ_CST);
    }
    ok(bells > 1000, "socket never read: %d bytes of bells fill it", bells);
    ok(neighbour_well(&good), "a good client saw nothing of it");
    raw_close(&r);
    ok(WAIT_FOR(fake_engine_jobs() <= 1), "and its requests end with it");
}

/* Bells without end, and nothing in the ring. */
static void
test_bell_flood(void)
{
    long   t;
    raw_t  r;

    raw_join(&r, &world);
    for (t = ms_now(); ms_now() - t < 500; ) raw_bell(&r);
    ok(neighbour_well(&good), "bells without end: a good client saw nothing of it");
    raw_close(&r);
}

/* ---- coming and going ---- */

static long
resident_kb(void)
{
    long   kb = 0;
    char   line[256];
    FILE  *f = fopen("/proc/self/status", "r");

    while (f != NULL && fgets(line, sizeof(line), f)) sscanf(line, "VmRSS: %ld", &kb);
    if (f != NULL) fclose(f);
    return kb;
}

/* One of the ways to be a client for a moment. */
static void
visit(int how)
{
    int               fds[2] = { 0, 1 };
    raw_t             r;
    struct iovec      iov = { .iov_base = (char[8]) {0}, .iov_len = 8 };
    union { struct cmsghdr a; char b[CMSG_SPACE(sizeof(fds))]; }  ctl = {0};
    struct msghdr     mh = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = ctl.b,
                             .msg_controllen = sizeof(ctl.b) };

    raw_connect(&r, &world);
    if (how == 0) {                      /* gone before a word */
        raw_close(&r);
        return;
    }
    if (how == 1) {                      /* descriptors instead of a HELLO */
        CMSG_FIRSTHDR(&mh)->cmsg_level = SOL_SOCKET;
        CMSG_FIRSTHDR(&mh)->cmsg_type = SCM_RIGHTS;
        CMSG_FIRSTHDR(&mh)->cmsg_len = CMSG_LEN(sizeof(fds));
        memcpy(CMSG_DATA(CMSG_FIRSTHDR(&mh)), fds, sizeof(fds));
        sendmsg(r.fd, &mh, MSG_NOSIGNAL);
    }
    raw_close(&r);
    if (how < 2 || !raw_join(&r, &world)) return;
    if (how == 3) raw_put(&r, GLM_MSG_SUBMIT, GLM_REC_MORE, 1, "half of it......", 16);
    if (how >= 4) raw_ask(&r, 1, how == 4 ? "fake: hang" : "fake: tokens=100000", 100000, 1 << 20);
    raw_go(&r);
    raw_close(&r);
}

static int
settled(void)
{
    return atomic_load(&world.server->nlive) <= 1 && fake_engine_jobs() <= 1;
}

static void
test_visitors(void)
{
    int   i, fds, n = 3000 / scale;
    long  kb;

    for (i = 0; i < 200; i++) visit(i % 6);
    WAIT_FOR(settled());
    usleep(50000);
    fds = open_fds();
    kb = resident_kb();
    for (i = 0; i < n; i++) visit(i % 6);
    ok(WAIT_FOR(settled()), "%d visitors: their requests have ended", n);
    ok(WAIT_FOR(open_fds() <= fds), "descriptors are flat: %d, then %d", fds, open_fds());
    ok(scale > 1 || resident_kb() < kb + 4096, "memory is flat: %ld kB, then %ld", kb,
       resident_kb());
    ok(neighbour_well(&good), "a good client saw nothing of it");
}

/* Connections that say nothing: the oldest make way. */
static void
test_mute(void)
{
    int    i, n = 300;
    raw_t  r, *mute = calloc((size_t) n, sizeof(*mute));

    for (i = 0; i < n; i++) raw_connect(&mute[i], &world);
    ok(raw_join(&r, &world), "%d connections without a word: another is welcome", n);
    ok(raw_dropped(&mute[0]), "the first of them was dropped");
    ok(neighbour_well(&good), "a good client saw nothing of it");
    raw_close(&r);
    for (i = 0; i < n; i++) raw_close(&mute[i]);
    free(mute);
}

/* Nobody can shrink the ring under the server. */
static void
test_seals(void)
{
    int                fds[2] = { -1, -1 };
    raw_t              r;
    glm_sock_hello_t   h = raw_valid_hello();
    glm_sock_welcome_t w;
    struct iovec       iov = { .iov_base = &w, .iov_len = sizeof(w) };
    union { struct cmsghdr a; char b[CMSG_SPACE(sizeof(fds))]; }  ctl = {0};
    struct msghdr      mh = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = ctl.b,
                              .msg_controllen = sizeof(ctl.b) };

    raw_connect(&r, &world);
    send(r.fd, &h, sizeof(h), MSG_NOSIGNAL);
    recvmsg(r.fd, &mh, 0);
    memcpy(fds, CMSG_DATA(CMSG_FIRSTHDR(&mh)), sizeof(fds));
    ok(ftruncate(fds[0], 0) != 0 && ftruncate(fds[0], 1 << 24) != 0, "the ring keeps its size");
    ok(fcntl(fds[0], F_ADD_SEALS, F_SEAL_WRITE) != 0, "and its seals");
    ok((fcntl(fds[1], F_GETFL) & O_ACCMODE) == O_RDONLY && ftruncate(fds[1], 0) != 0,
       "the statistics are read-only");
    /* holes are made of zeros: no crash, and no more than that */
    fallocate(fds[0], FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t) w.ring_bytes);
    raw_bell(&r);
    ok(neighbour_well(&good), "a hole in the ring hurts nobody");
    close(fds[0]);
    close(fds[1]);
    raw_close(&r);
}

int
main(void)
{
    const fake_opts_t   fake = { .max_seq = 1 << 22, .max_queue = 100 };
    glm_server_opts_t   so = GLM_SERVER_OPTS_DEFAULT;

    if (getenv("GLM_SANITIZED") != NULL) scale = 10;
    glm_log_level(getenv("GLM_LOG") != NULL ? getenv("GLM_LOG") : "error");
    so.spool_bytes = 1 << 20;
    so.pause_ms = 1000;
    world = world_start(&so, &fake);
    neighbour_start(&good, &world);
    test_drops();
    test_noise();
    test_ring_unread();
    test_socket_unread();
    test_bell_flood();
    test_visitors();
    test_mute();
    test_seals();
    ok(neighbour_end(&good), "the good client: %d answers, the slowest after %ld ms",
       good.answers, good.slowest_ms);
    world_stop(&world);
    return tap_done();
}
