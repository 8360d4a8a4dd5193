/*
 * A malformed sequence passes as UTF-8 and reaches a JSON document, or a valid
 * one is refused.
 */
#include <string.h>

#include "tap.h"
#include "utf8.h"

/* Bytes of a code point; independent of utf8.h. */
static size_t
put(uint32_t c, uint8_t *s)
{
    if (c < 0x80) {
        s[0] = (uint8_t) c;
        return 1;
    }
    if (c < 0x800) {
        s[0] = (uint8_t) (0xC0 | c >> 6);
        s[1] = (uint8_t) (0x80 | (c & 0x3F));
        return 2;
    }
    if (c < 0x10000) {
        s[0] = (uint8_t) (0xE0 | c >> 12);
        s[1] = (uint8_t) (0x80 | (c >> 6 & 0x3F));
        s[2] = (uint8_t) (0x80 | (c & 0x3F));
        return 3;
    }
    s[0] = (uint8_t) (0xF0 | c >> 18);
    s[1] = (uint8_t) (0x80 | (c >> 12 & 0x3F));
    s[2] = (uint8_t) (0x80 | (c >> 6 & 0x3F));
    s[3] = (uint8_t) (0x80 | (c & 0x3F));
    return 4;
}

static size_t
valid(const uint8_t *s, size_t n)
{
    return glm_utf8_valid((const char *) s, n);
}

/* Every code point, and every beginning of it. */
static void
all_code_points(void)
{
    int       whole = 1, cut = 1;
    size_t    n, k;
    uint8_t   s[4];
    uint32_t  c;

    for (c = 0; c <= 0x10FFFF; c++) {
        if (c >= 0xD800 && c < 0xE000) continue;
        n = put(c, s);
        whole &= valid(s, n) == n && glm_utf8_char((char *) s, n) == n;
        whole &= glm_utf8_need(s[0]) == n;
        for (k = 1; k < n; k++) cut &= valid(s, k) == 0;
    }
    ok(whole, "every code point is valid");
    ok(cut, "none is when its last bytes are missing");
}

/*
 * All sequences of three bytes, and those of four over bytes at the edges: the
 * valid ones must be as many as there are code points of that length.
 */
static void
count_sequences(void)
{
    size_t                i, j, k, l, three = 0, four = 0;
    uint8_t               s[4];
    static const uint8_t  edge[] = { 0x00, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xFF };

    for (i = 0; i < 1 << 24; i++) {
        s[0] = (uint8_t) (i >> 16);
        s[1] = (uint8_t) (i >> 8);
        s[2] = (uint8_t) i;
        three += glm_utf8_char((char *) s, 3) == 3;
    }
    ok(three == 0x10000 - 0x800 - 2048, "%zu sequences of three bytes are characters", three);
    for (i = 0xE0; i < 0x100; i++) {
        for (j = 0; j < 256; j++) {
            for (k = 0; k < sizeof(edge); k++) {
                for (l = 0; l < sizeof(edge); l++) {
                    s[0] = (uint8_t) i;
                    s[1] = (uint8_t) j;
                    s[2] = edge[k];
                    s[3] = edge[l];
                    four += glm_utf8_char((char *) s, 4) == 4;
                }
            }
        }
    }
    /* 256 pairs of first bytes (10000 - 10FFFF in steps of 1000), 6 x 6 edges */
    ok(four == 256 * 36, "%zu sequences of four edge bytes are characters", four);
}

static void
offsets(void)
{
    size_t  i;
    static const struct {
        const char  *s;
        size_t       n, want;
    } t[] = {
        { "", 0, 0 },
        { "plain text of some length", 25, 25 },
        { "a\0b", 3, 3 },
        { "0123456789abcde\xFFxyz", 19, 15 },
        { "0123456\xE4\xBD\xA0 and more text", 24, 24 },
        { "0123456\xE4\xBD", 9, 7 },
        { "\xED\xA0\x80", 3, 0 },
        { "x\xC0\x80", 3, 1 },
        { "x\xF4\x90\x80\x80", 5, 1 },
        { "\xF0\x9F\x98\x80\x80", 5, 4 },
    };

    for (i = 0; i < sizeof(t) / sizeof(t[0]); i++) {
        ok(glm_utf8_valid(t[i].s, t[i].n) == t[i].want, "text %zu: first bad byte at %zu of %zu",
           i, t[i].want, t[i].n);
    }
}

int
main(void)
{
    all_code_points();
    count_sequences();
    offsets();
    return tap_done();
}
