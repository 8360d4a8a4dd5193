/*
 * json_out: strings and lists of the --json output.
 */
#include "cli.h"
#include "utf8.h"

static void
escaped(FILE *f, unsigned char c)
{
    switch (c) {
    case '"':  fputs("\\\"", f); break;
    case '\\': fputs("\\\\", f); break;
    case '\n': fputs("\\n", f); break;
    case '\r': fputs("\\r", f); break;
    case '\t': fputs("\\t", f); break;
    default:
        if (c < 0x20 || c == 0x7f) fprintf(f, "\\u%04x", c);
        else putc(c, f);
    }
}

void
glm_json_string(FILE *f, const char *s, size_t n)
{
    size_t  i;

    putc('"', f);
    if (glm_utf8_valid(s, n) == n) {
        for (i = 0; i < n; i++) escaped(f, (unsigned char) s[i]);
    } else {                      /* a token that is one byte of a character */
        fputs("bytes:", f);
        for (i = 0; i < n; i++) fprintf(f, "\\\\x%02x", (unsigned char) s[i]);
    }
    putc('"', f);
}

void
glm_json_ids(FILE *f, const int32_t *ids, size_t n)
{
    size_t  i;

    putc('[', f);
    for (i = 0; i < n; i++) fprintf(f, "%s%d", i ? ", " : "", ids[i]);
    putc(']', f);
}

const char *
glm_json_reason(uint32_t reason)
{
    switch (reason) {
    case GLM_REASON_STOP:   return "\"stop\"";
    case GLM_REASON_LENGTH: return "\"length\"";
    case GLM_REASON_CANCEL: return "\"cancelled\"";
    case GLM_REASON_REPEAT: return "\"repetition\"";
    case GLM_REASON_ERROR:  return "\"error\"";
    default:                return "null";
    }
}
