/*
 * progress: breaks when a bar counts what an earlier run did as speed, shows the wrong
 * unit, or is drawn where nobody looks.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "progress.h"
#include "tap.h"

static char  text[4096];

/* What fn writes to stderr; where: the other end of what stderr is. */
static const char *
drawn(int err, int where, void (*fn)(void))
{
    int      old = dup(STDERR_FILENO);
    size_t   n = 0;
    ssize_t  got = 1;

    dup2(err, STDERR_FILENO);
    fn();
    fputs("$", stderr);
    dup2(old, STDERR_FILENO);
    close(old);
    for (; got > 0 && (n == 0 || text[n - 1] != '$'); n += (size_t) got) {
        got = read(where, text + n, sizeof(text) - 1 - n);
        if (got <= 0) bail_out("nothing to read");
    }
    text[n - 1] = '\0';
    return text;
}

/* Seconds left behind this in s; -1 without it.  A busy machine takes longer. */
static int
left(const char *s, const char *before)
{
    int          n = -1;
    const char  *at = strstr(s, before);

    if (at == NULL || sscanf(at + strlen(before), " %d s left", &n) != 1) return -1;
    return n;
}

static void
items(void)
{
    glm_progress_t  p;

    glm_progress_begin(&p, 12, "items", 0);
    glm_progress_found(&p, 6, "old");
    p.began.tv_sec -= 3000;
    p.last.tv_sec -= 1;
    glm_progress_add(&p, 3, "new");
    glm_progress_add(&p, 3, "end");
    glm_progress_clear(&p);
}

static void
bytes(void)
{
    glm_progress_t  p;

    glm_progress_begin(&p, 4000000000, NULL, 0);
    p.began.tv_sec -= 1000;
    glm_progress_add(&p, 1000000000, "a");
    p.last.tv_sec += 3600;
    glm_progress_add(&p, 100000000, "b");
    glm_progress_add(&p, 2900000000, "c");
    glm_progress_clear(&p);
}

static void
quiet(void)
{
    glm_progress_t  p;

    glm_progress_begin(&p, 10, NULL, 1);
    glm_progress_add(&p, 10, "a");
    glm_progress_clear(&p);
}

int
main(void)
{
    int          master = posix_openpt(O_RDWR | O_NOCTTY), slave, fd[2];
    const char  *s;

    if (master < 0 || grantpt(master) != 0 || unlockpt(master) != 0
        || (slave = open(ptsname(master), O_RDWR | O_NOCTTY)) < 0 || pipe(fd) != 0)
    {
        skip_all("no terminal to be had");
    }
    s = drawn(slave, master, items);
    ok(left(s, "[###############...............]  50% 6 of 12 items") == 0, "what was found has no speed");
    ok(left(s, "[######################........]  75% 9 of 12 items") / 100 == 30,
       "3 in 3,000 s: 3 more take as long");
    ok(strstr(s, "] 100% 12 of 12 items 0 s left end\r\033[K") != NULL, "the end, and away with it");
    s = drawn(slave, master, bytes);
    ok(left(s, "]  25% 1 MB/s") / 100 == 30 && left(s, "] 100% 4 MB/s") == 0, "bytes have a speed");
    ok(strstr(s, "left b") == NULL, "not drawn at each call");
    ok(strcmp(drawn(fd[1], fd[0], bytes), " 20%  1000.0 of 4000.0 MB  a\n"
                                          "100%  4000.0 of 4000.0 MB  c\n") == 0, "a pipe has lines");
    ok(strcmp(drawn(fd[1], fd[0], items), " 50%  6 of 12 items  old\n 70%  9 of 12 items  new\n"
                                          "100%  12 of 12 items  end\n") == 0, "of items");
    ok(drawn(slave, master, quiet)[0] == '\0', "quiet");
    close(slave);
    close(master);
    close(fd[0]);
    close(fd[1]);
    return tap_done();
}
