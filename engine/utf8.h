/*
 * utf8: strict UTF-8 (no overlong forms, no surrogates, nothing above
 * U+10FFFF), shared by the tokenizer and by whoever takes text from outside.
 * Pure functions, no state, any thread.
 */
#ifndef GLM_UTF8_H
#define GLM_UTF8_H

#include <stddef.h>
#include <stdint.h>

#define GLM_UTF8_REPLACEMENT  "\xEF\xBF\xBD"     /* U+FFFD, 3 bytes */

/* Bytes of the character that a lead byte announces, 0 if it leads none. */
static inline size_t
glm_utf8_need(uint8_t lead)
{
    if (lead < 0x80) return 1;
    if (lead < 0xC2) return 0;
    if (lead < 0xE0) return 2;
    if (lead < 0xF0) return 3;
    return lead < 0xF5 ? 4 : 0;
}

/* Bytes (1-4) of the valid character at s, 0 if there is none in n bytes. */
static inline size_t
glm_utf8_char(const char *s, size_t n)
{
    const uint8_t  *p = (const uint8_t *) s;
    size_t          i, need;

    if (n == 0) return 0;
    if (p[0] < 0x80) return 1;
    need = glm_utf8_need(p[0]);
    if (need == 0 || need > n) return 0;
    for (i = 1; i < need; i++) {
        if ((p[i] & 0xC0) != 0x80) return 0;
    }
    /* The second byte alone tells overlong forms, surrogates and > 10FFFF. */
    if ((p[0] == 0xE0 && p[1] < 0xA0) || (p[0] == 0xED && p[1] > 0x9F)
        || (p[0] == 0xF0 && p[1] < 0x90) || (p[0] == 0xF4 && p[1] > 0x8F))
    {
        return 0;
    }
    return need;
}

/*
 * n if the n bytes are valid UTF-8 (NUL is allowed), else the offset of the
 * first byte of the first bad sequence: the length of the valid prefix.
 */
size_t glm_utf8_valid(const char *s, size_t n);

#endif
