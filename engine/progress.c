/*
 * progress: drawing is bounded by time, not by calls.
 */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "progress.h"

#define BAR_WIDTH  30

static double
since(const struct timespec *t)
{
    struct timespec  now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double) (now.tv_sec - t->tv_sec) + (double) (now.tv_nsec - t->tv_nsec) * 1e-9;
}

void
glm_progress_begin(glm_progress_t *p, uint64_t total, int quiet)
{
    memset(p, 0, sizeof(*p));
    p->total = total ? total : 1;
    p->quiet = quiet;
    p->bar = isatty(STDERR_FILENO);
    clock_gettime(CLOCK_MONOTONIC, &p->began);
}

int
glm_progress_left(const glm_progress_t *p)
{
    double  left = (double) (p->total > p->done ? p->total - p->done : 0);

    return p->done > 0 ? (int) (since(&p->began) * left / (double) p->done + 0.5) : 0;
}

static void
draw(glm_progress_t *p, const char *what)
{
    double  part = (double) p->done / (double) p->total, s = since(&p->began);
    int     i, filled = (int) (part * BAR_WIDTH);
    char    bar[BAR_WIDTH + 1];

    for (i = 0; i < BAR_WIDTH; i++) bar[i] = i < filled ? '#' : '.';
    bar[BAR_WIDTH] = '\0';
    fprintf(stderr, "\r\033[K[%s] %3d%% %.0f MB/s %d s left %.32s", bar, (int) (part * 100),
            s > 0 ? (double) p->done / s / 1e6 : 0, glm_progress_left(p), what);
    p->drawn = 1;
}

void
glm_progress_add(glm_progress_t *p, uint64_t bytes, const char *what)
{
    int  tenths;

    p->done += bytes;
    if (p->quiet) return;
    if (p->bar) {
        if (p->drawn && p->done < p->total && since(&p->last) < 0.1) return;
        clock_gettime(CLOCK_MONOTONIC, &p->last);
        draw(p, what);
        return;
    }
    tenths = (int) ((double) p->done / (double) p->total * 10);
    if (tenths <= p->tenths) return;
    p->tenths = tenths;
    fprintf(stderr, "%3d%%  %.1f of %.1f MB  %s\n", tenths * 10, (double) p->done / 1e6,
            (double) p->total / 1e6, what);
}

void
glm_progress_clear(glm_progress_t *p)
{
    if (p->drawn) fprintf(stderr, "\r\033[K");
    p->drawn = 0;
}
