/*
 * log: see log.h.  A line is formatted into a buffer and written by one call,
 * so lines of several threads and processes do not mix.
 */
#include "log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "error.h"

#define LINE  1024

static const char *const  names[] = { "error", "warn", "notice", "info", "debug" };
static atomic_int         max_level = GLM_LOG_NOTICE;

int
glm_log_level(const char *name)
{
    int  i;

    for (i = 0; i < (int) (sizeof(names) / sizeof(names[0])); i++) {
        if (strcmp(name, names[i]) == 0) {
            atomic_store(&max_level, i);
            return 0;
        }
    }
    return GLM_EINVAL;
}

/* Text may come from a client: it must not forge lines or drive a terminal. */
static void
clean(char *s)
{
    for (; *s; s++) {
        if ((unsigned char) *s < 0x20 || *s == 0x7f) *s = '?';
    }
}

void
glm_log(glm_log_level_t level, const char *fmt, ...)
{
    int        n, at;
    char       line[LINE];
    va_list    ap;
    ssize_t    written;
    time_t     now;
    struct tm  tm;

    if ((int) level > atomic_load(&max_level)) return;

    now = time(NULL);
    localtime_r(&now, &tm);
    at = (int) strftime(line, sizeof(line), "%Y/%m/%d %H:%M:%S", &tm);
    at += snprintf(line + at, sizeof(line) - (size_t) at, " [%s] %d: ", names[level],
                   (int) getpid());

    va_start(ap, fmt);
    n = vsnprintf(line + at, sizeof(line) - (size_t) at - 1, fmt, ap);
    va_end(ap);
    if (n < 0) return;
    clean(line + at);

    at = (int) strlen(line);
    line[at++] = '\n';
    written = write(STDERR_FILENO, line, (size_t) at);
    (void) written;           /* nowhere to complain */
}
