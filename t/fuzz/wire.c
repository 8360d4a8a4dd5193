/*
 * Fuzz entry of the wire.  The first byte picks what the rest is: the bytes of a
 * SUBMIT, of a WINDOW, or a submission ring's memory with its tail in front.
 * Seeds: t/data/wire/fuzz (t/fuzz/wire_seeds.pl makes them).
 *
 *   clang -std=gnu11 -D_GNU_SOURCE -Iengine -Ingx_http_glm_module -g -O1 \
 *       -fsanitize=fuzzer,address,undefined t/fuzz/wire.c engine/wire_decode.c engine/utf8.c -lm
 */
#include <stdlib.h>
#include <string.h>

#include "glm_ring.h"
#include "utf8.h"
#include "wire_decode.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
must(int cond)
{
    if (!cond) abort();
}

/* Whatever is accepted lies inside of the message and is what it says. */
static void
check(const glm_submit_t *s, size_t len)
{
    size_t          i, k;
    const uint8_t  *p, *end = s->msg + len;

    must(s->req.nseg > 0 && s->req.nseg <= GLM_WIRE_MAX_SEGMENTS);
    for (i = 0; i < s->req.nseg; i++) {
        const glm_segment_t  *g = &s->req.seg[i];

        p = g->kind == GLM_SEG_IDS ? (const uint8_t *) g->ids : (const uint8_t *) g->text;
        must(p >= s->msg && p <= end && g->n > 0);
        if (g->kind == GLM_SEG_IDS) {
            must(g->n <= (size_t) (end - p) / 4);
            for (k = 0; k < g->n; k++) must(g->ids[k] >= 0 && g->ids[k] < 1000);
        } else {
            must(g->n <= (size_t) (end - p) && glm_utf8_valid(g->text, g->n) == g->n);
        }
    }
    for (i = 0; i < s->req.nstop; i++) {
        p = (const uint8_t *) s->req.stop[i].s;
        must(p >= s->msg && s->req.stop[i].n > 0 && s->req.stop[i].n <= (size_t) (end - p));
    }
    must(s->req.nstop <= 4 && s->req.n == 1 && s->req.max_tokens >= -1);
    must(s->req.sample.temperature >= 0 && s->req.sample.top_p >= 0 && s->req.sample.top_p <= 1);
}

static void
submit(const uint8_t *data, size_t size)
{
    int                        rc;
    uint8_t                   *copy = malloc(size ? size : 1);
    glm_submit_t               s;
    glm_refusal_t              why;
    const glm_decode_limits_t  lim = { .vocab = 1000, .max_stops = 4, .max_n = 1,
                                       .max_logprobs = 20 };

    memcpy(copy, data, size);
    rc = glm_wire_decode_submit(&s, copy, size, &lim, &why);
    must(rc == 0 || rc == GLM_ELIMIT || rc == GLM_EINVAL);
    if (rc == 0) check(&s, size);
    else must(why.text[0] != '\0' && memchr(why.text, 0, sizeof(why.text)) != NULL);
    glm_submit_free(&s);
}

/* The reader of a ring takes what lies in memory, and never leaves it. */
static void
ring(const uint8_t *data, size_t size)
{
    int                          i;
    uint64_t                     tail = 0;
    glm_ring_t                   r;
    static _Alignas(128) uint8_t memory[sizeof(glm_ring_shared_t) + GLM_WIRE_MIN_RING];
    static uint8_t               buf[GLM_WIRE_MAX_RECORD];

    if (size < 8) return;
    memset(memory, 0, sizeof(memory));
    memcpy(&tail, data, 8);
    size -= 8;
    memcpy(memory + sizeof(glm_ring_shared_t), data + 8,
           size < GLM_WIRE_MIN_RING ? size : GLM_WIRE_MIN_RING);
    glm_ring_init(&r, memory, GLM_WIRE_MIN_RING);
    r.shared->tail = tail;
    for (i = 0; i < 10000 && glm_ring_read(&r, buf, sizeof(buf)) == GLM_RING_OK; i++) {
        must(r.mine <= tail && ((glm_rec_t *) (void *) buf)->size <= GLM_WIRE_MIN_RING / 4);
    }
    must(i < 10000);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint64_t  bytes;

    if (size == 0) return 0;
    switch (data[0] % 3) {
    case 0:  submit(data + 1, size - 1); break;
    case 1:  ring(data + 1, size - 1); break;
    default:
        glm_wire_decode_window(data + 1, size - 1, &bytes);
        glm_wire_decode_empty(data + 1, size - 1);
    }
    return 0;
}
