/*
 * glm_ring: operations on a single-producer single-consumer byte ring of
 * records in shared memory; the only atomics of the wire, for both sides.
 *
 * The peer is hostile: each side keeps its own counter in private memory and
 * never reads it back; the peer's counter is checked each time it is loaded
 * (multiple of 8, never backwards, never more than a ring ahead or behind).
 * A broken ring stays broken: GLM_RING_BROKEN, and its owner drops the peer.
 *
 * Sleeping: a reader says so (glm_ring_sleep), looks once more, and waits for
 * a BELL on the socket; a writer that published takes the flag and rings.
 * Both orders are sequentially consistent, so one of the two sees the other.
 */
#ifndef GLM_RING_H
#define GLM_RING_H

#include <stdint.h>
#include <string.h>

#include "glm_wire.h"

#define GLM_RING_OK      0
#define GLM_RING_EMPTY   1    /* nothing to read */
#define GLM_RING_FULL    1    /* no room to write */
#define GLM_RING_BROKEN  (-1)

typedef struct {
    glm_ring_shared_t  *shared;
    uint8_t            *data;
    uint32_t            size;     /* of data, a power of two */
    uint64_t            mine;     /* own counter: head of a reader, tail of a writer */
    uint64_t            open;     /* writer: tail with unpublished records */
    uint64_t            peer;     /* peer's counter as last seen */
} glm_ring_t;

static inline uint32_t
glm_ring_round(uint32_t n)
{
    return (n + (GLM_WIRE_ALIGN - 1)) & ~(uint32_t) (GLM_WIRE_ALIGN - 1);
}

/* Largest record that a ring of this size carries. */
static inline uint32_t
glm_ring_max_record(const glm_ring_t *r)
{
    return r->size / 4 < GLM_WIRE_MAX_RECORD ? r->size / 4 : GLM_WIRE_MAX_RECORD;
}

/* shared points into the mapping; data follows it.  Both sides start at zero. */
static inline void
glm_ring_init(glm_ring_t *r, void *shared, uint32_t size)
{
    r->shared = (glm_ring_shared_t *) shared;
    r->data = (uint8_t *) shared + sizeof(glm_ring_shared_t);
    r->size = size;
    r->mine = 0;
    r->open = 0;
    r->peer = 0;
}

/* ---- writer ---- */

static inline int
glm_ring_load_head(glm_ring_t *r)
{
    uint64_t  head;

    head = __atomic_load_n(&r->shared->head, __ATOMIC_SEQ_CST);
    if (head < r->peer || head > r->mine || head % GLM_WIRE_ALIGN) {
        return GLM_RING_BROKEN;
    }
    r->peer = head;
    return GLM_RING_OK;
}

/* Bytes that can be written now (pads not considered), or GLM_RING_BROKEN. */
static inline int64_t
glm_ring_room(glm_ring_t *r)
{
    if (glm_ring_load_head(r) != GLM_RING_OK) {
        return GLM_RING_BROKEN;
    }
    return (int64_t) (r->size - (r->open - r->peer));
}

/*
 * Room for a record of size bytes (header included, not above
 * glm_ring_max_record()): *rec points at it, contiguous.  Nothing is visible to
 * the reader until glm_ring_publish().
 */
static inline int
glm_ring_reserve(glm_ring_t *r, uint32_t size, void **rec)
{
    uint32_t  at, need, tail_room, pad;

    need = glm_ring_round(size);
    at = (uint32_t) (r->open & (r->size - 1));
    tail_room = r->size - at;
    pad = tail_room < need ? tail_room : 0;

    if (r->size - (r->open - r->peer) < (uint64_t) need + pad) {
        if (glm_ring_load_head(r) != GLM_RING_OK) {
            return GLM_RING_BROKEN;
        }
        if (r->size - (r->open - r->peer) < (uint64_t) need + pad) {
            return GLM_RING_FULL;
        }
    }

    if (pad) {
        uint64_t  head = (uint64_t) pad;   /* size = pad, type = PAD, flags = 0 */

        memcpy(r->data + at, &head, sizeof(head));
        r->open += pad;
        at = 0;
    }

    *rec = r->data + at;
    r->open += need;
    return GLM_RING_OK;
}

/* Forgets what was reserved since the last publish. */
static inline void
glm_ring_abort(glm_ring_t *r)
{
    r->open = r->mine;
}

/* Makes reserved records visible.  Returns 1 when the reader sleeps: ring the
 * bell; the flag is taken, so one bell is sent for one sleep. */
static inline int
glm_ring_publish(glm_ring_t *r)
{
    if (r->open == r->mine) {
        return 0;
    }
    r->mine = r->open;
    __atomic_store_n(&r->shared->tail, r->mine, __ATOMIC_SEQ_CST);
    return __atomic_load_n(&r->shared->reader_sleeps, __ATOMIC_SEQ_CST) != 0
           && __atomic_exchange_n(&r->shared->reader_sleeps, 0, __ATOMIC_SEQ_CST) != 0;
}

/* Asks for a BELL when the reader has made room; look for room once more
 * after this, then wait. */
static inline void
glm_ring_want_room(glm_ring_t *r)
{
    __atomic_store_n(&r->shared->writer_waits, 1, __ATOMIC_SEQ_CST);
}

/* ---- reader ---- */

static inline int
glm_ring_load_tail(glm_ring_t *r)
{
    uint64_t  tail;

    tail = __atomic_load_n(&r->shared->tail, __ATOMIC_SEQ_CST);
    if (tail < r->peer || tail - r->mine > r->size || tail % GLM_WIRE_ALIGN) {
        return GLM_RING_BROKEN;
    }
    r->peer = tail;
    return GLM_RING_OK;
}

/*
 * Copies the next record, header included, into buf (cap >= the largest record)
 * and steps over it.  The header in buf is checked: size within the ring's
 * limit, cap and what was published.  Pads are skipped.  The room is given back
 * by glm_ring_release().
 */
static inline int
glm_ring_read(glm_ring_t *r, void *buf, uint32_t cap)
{
    uint64_t   first;
    uint32_t   at, size, room;
    glm_rec_t  rec;

    for ( ;; ) {
        if (r->mine == r->peer) {
            if (glm_ring_load_tail(r) != GLM_RING_OK) {
                return GLM_RING_BROKEN;
            }
            if (r->mine == r->peer) {
                return GLM_RING_EMPTY;
            }
        }

        at = (uint32_t) (r->mine & (r->size - 1));
        room = r->size - at;
        if (r->peer - r->mine < room) {
            room = (uint32_t) (r->peer - r->mine);
        }

        memcpy(&first, r->data + at, sizeof(first));   /* at, peer: multiples of 8 */
        size = (uint32_t) first;

        if ((uint16_t) (first >> 32) != GLM_MSG_PAD) {
            break;
        }
        /* a pad goes to the end of the ring, no less and no more */
        if (size != r->size - at || size > room) {
            return GLM_RING_BROKEN;
        }
        r->mine += size;
    }

    if (size < sizeof(glm_rec_t) || size > cap || size > glm_ring_max_record(r)
        || glm_ring_round(size) > room)
    {
        return GLM_RING_BROKEN;
    }

    memcpy(buf, r->data + at, size);
    /* the peer may have changed it since: the copy's header is what was checked */
    memcpy(&rec, buf, sizeof(rec));
    rec.size = size;
    rec.type = (uint16_t) (first >> 32);
    rec.flags = (uint16_t) (first >> 48);
    memcpy(buf, &rec, sizeof(rec));

    r->mine += glm_ring_round(size);
    return GLM_RING_OK;
}

/* Gives the room of what was read back.  Returns 1 when the writer waits for
 * room: ring the bell. */
static inline int
glm_ring_release(glm_ring_t *r)
{
    if (__atomic_load_n(&r->shared->head, __ATOMIC_RELAXED) == r->mine) {
        return 0;
    }
    __atomic_store_n(&r->shared->head, r->mine, __ATOMIC_SEQ_CST);
    return __atomic_load_n(&r->shared->writer_waits, __ATOMIC_SEQ_CST) != 0
           && __atomic_exchange_n(&r->shared->writer_waits, 0, __ATOMIC_SEQ_CST) != 0;
}

/* Says that the reader is about to sleep.  Returns 1 when it may; 0 when
 * something is there (the flag is taken back); GLM_RING_BROKEN. */
static inline int
glm_ring_sleep(glm_ring_t *r)
{
    __atomic_store_n(&r->shared->reader_sleeps, 1, __ATOMIC_SEQ_CST);
    if (glm_ring_load_tail(r) != GLM_RING_OK) {
        return GLM_RING_BROKEN;
    }
    if (r->mine != r->peer) {
        __atomic_store_n(&r->shared->reader_sleeps, 0, __ATOMIC_SEQ_CST);
        return 0;
    }
    return 1;
}

/* ---- statistics: one writer, readers with a read-only mapping ---- */

#define GLM_STATS_TRIES  1000

/*
 * n bytes of 8-byte words, each copied whole.  Release and acquire on every word
 * instead of fences: who sees a word sees the odd seq before it, and loads seq
 * again after it.  Plain moves on x86.
 */
static inline void
glm_stats_copy(void *dst, const void *src, size_t n)
{
    size_t  i;

    for (i = 0; i < n / 8; i++) {
        __atomic_store_n((uint64_t *) dst + i,
            __atomic_load_n((const uint64_t *) src + i, __ATOMIC_ACQUIRE),
            __ATOMIC_RELEASE);
    }
}

/* Writer: everything after seq and size comes from src. */
static inline void
glm_stats_write(glm_wire_stats_t *shared, const glm_wire_stats_t *src)
{
    uint32_t  seq = __atomic_load_n(&shared->seq, __ATOMIC_RELAXED);

    __atomic_store_n(&shared->seq, seq + 1, __ATOMIC_RELAXED);
    __atomic_store_n(&shared->size, (uint32_t) sizeof(*src), __ATOMIC_RELEASE);
    glm_stats_copy((uint64_t *) shared + 1, (const uint64_t *) src + 1, sizeof(*src) - 8);
    __atomic_store_n(&shared->seq, seq + 2, __ATOMIC_RELEASE);
}

/*
 * Reader: a consistent copy of what the writer knows; the rest of out is zero.
 * size: of the mapping.  0, or -1 when the writer never stood still.
 */
static inline int
glm_stats_read(const void *map, size_t size, glm_wire_stats_t *out)
{
    int                      i;
    uint32_t                 seq, n;
    const glm_wire_stats_t  *shared = (const glm_wire_stats_t *) map;

    if (size < 8) {
        return -1;
    }
    memset(out, 0, sizeof(*out));

    for (i = 0; i < GLM_STATS_TRIES; i++) {
        seq = __atomic_load_n(&shared->seq, __ATOMIC_ACQUIRE);
        if (seq & 1) {
            continue;
        }
        n = __atomic_load_n(&shared->size, __ATOMIC_ACQUIRE);
        if (n < 8 || n > size) {
            return -1;
        }
        if (n > sizeof(*out)) {
            n = sizeof(*out);
        }
        glm_stats_copy((uint64_t *) out + 1, (const uint64_t *) shared + 1, n - 8);
        if (__atomic_load_n(&shared->seq, __ATOMIC_RELAXED) == seq) {
            out->seq = seq;
            out->size = n;
            return 0;
        }
    }
    return -1;
}

#endif
