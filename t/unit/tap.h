/*
 * tap: the smallest TAP producer.  A test program calls ok() and ends with
 * return tap_done(); prove runs it.  skip_all() ends at once with a reason.
 */
#ifndef GLM_TAP_H
#define GLM_TAP_H

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

static int  tap_count, tap_failed;

__attribute__((format(printf, 2, 3), unused))
static int
ok(int cond, const char *fmt, ...)
{
    va_list  ap;

    printf("%sok %d - ", cond ? "" : "not ", ++tap_count);
    va_start(ap, fmt);
    vprintf(fmt, ap);
    va_end(ap);
    printf("\n");
    fflush(stdout);
    tap_failed += !cond;
    return cond;
}

__attribute__((format(printf, 1, 2), unused))
static void
diag(const char *fmt, ...)
{
    va_list  ap;

    printf("# ");
    va_start(ap, fmt);
    vprintf(fmt, ap);
    va_end(ap);
    printf("\n");
}

/* One test of a plan that cannot run here, with the reason. */
__attribute__((unused))
static void
skip(const char *why)
{
    printf("ok %d # SKIP %s\n", ++tap_count, why);
}

__attribute__((noreturn, unused))
static void
skip_all(const char *why)
{
    printf("1..0 # SKIP %s\n", why);
    exit(0);
}

__attribute__((noreturn, unused))
static void
bail_out(const char *why)
{
    printf("Bail out! %s\n", why);
    exit(255);
}

__attribute__((unused))
static int
tap_done(void)
{
    printf("1..%d\n", tap_count);
    return tap_failed != 0;
}

#endif
