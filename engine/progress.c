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
glm_progress_begin(glm_progress_t *p, uint64_t total, const char *unit, int quiet)
{
    memset(p, 0, sizeof(*p));
    p->unit = unit;
    p->total = total ? total : 1;
    p->quiet = quiet;
    p->bar = isatty(STDERR_FILENO);
    clock_gettime(CLOCK_MONOTONIC, &p->began);
}

int
glm_progress_left(const glm_progress_t *p)
{
    double  left = (double) (p->total > p->done ? p->total - p->done : 0);
    double  mine = (double) (p->done - p->before);

    return mine > 0 ? (int) (since(&p->began) * left / mine + 0.5) : 0;
}

/* "12 of 40 items", "1.2 of 4.0 MB" */
static const char *
amount(const glm_progress_t *p, char text[64])
{
    if (p->unit == NULL) snprintf(text, 64, "%.1f of %.1f MB", (double) p->done / 1e6,
                                  (double) p->total / 1e6);
    else snprintf(text, 64, "%llu of %llu %.16s", (unsigned long long) p->done,
                  (unsigned long long) p->total, p->unit);
    return text;
}

static void
draw(glm_progress_t *p, const char *what)
{
    double  part = (double) p->done / (double) p->total, s = since(&p->began);
    int     i, filled = (int) (part * BAR_WIDTH);
    char    bar[BAR_WIDTH + 1], speed[64];

    if (p->unit == NULL) snprintf(speed, sizeof(speed), "%.0f MB/s",
                                  s > 0 ? (double) (p->done - p->before) / s / 1e6 : 0);
    else amount(p, speed);
    for (i = 0; i < BAR_WIDTH; i++) bar[i] = i < filled ? '#' : '.';
    bar[BAR_WIDTH] = '\0';
    fprintf(stderr, "\r\033[K[%s] %3d%% %s %d s left %.32s", bar, (int) (part * 100), speed,
            glm_progress_left(p), what);
    p->drawn = 1;
}

void
glm_progress_add(glm_progress_t *p, uint64_t n, const char *what)
{
    int   tenths;
    char  text[64];

    p->done += n;
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
    fprintf(stderr, "%3d%%  %s  %s\n", tenths * 10, amount(p, text), what);
}

void
glm_progress_found(glm_progress_t *p, uint64_t n, const char *what)
{
    p->before += n;
    glm_progress_add(p, n, what);
}

void
glm_progress_clear(glm_progress_t *p)
{
    if (p->drawn) fprintf(stderr, "\r\033[K");
    p->drawn = 0;
}
