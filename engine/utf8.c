/*
 * utf8: see utf8.h.
 */
#include "utf8.h"

#include <string.h>

size_t
glm_utf8_valid(const char *s, size_t n)
{
    size_t    i = 0, len;
    uint64_t  word;

    while (i < n) {
        if (n - i >= sizeof(word)) {        /* most text is ASCII */
            memcpy(&word, s + i, sizeof(word));
            if ((word & 0x8080808080808080u) == 0) {
                i += sizeof(word);
                continue;
            }
        }
        len = glm_utf8_char(s + i, n - i);
        if (len == 0) break;
        i += len;
    }
    return i;
}
