/*
 * gateway_client: PORT STREAMS WORD < request
 * Opens STREAMS connections, asks each for /warm, says "open" and waits for a line; then
 * sends the request on each and reads all answers as they come, up to the last chunk of
 * each.  Says how often WORD came.
 *
 * nginx sets TCP_NODELAY on a connection that is kept, so only from the second request
 * on is a send also a segment; before, the kernel puts sends together.
 */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

typedef struct {
    int     fd;
    size_t  matched;            /* of WORD: it may be cut by a read */
    char    tail[7];            /* last bytes that came */
} stream_t;

static const char  warm[] = "GET /warm HTTP/1.1\r\nHost: a\r\n\r\n";
static const char  end_mark[] = "\r\n0\r\n\r\n";
static char        buf[65536];

static int
fail(const char *what)
{
    perror(what);
    exit(1);
}

static int
dial(int port)
{
    int                 fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in  a = { .sin_family = AF_INET, .sin_port = htons((uint16_t) port) };

    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd < 0 || connect(fd, (struct sockaddr *) &a, sizeof(a)) != 0) fail("connect");
    if (write(fd, warm, sizeof(warm) - 1) < 0 || read(fd, buf, sizeof(buf)) <= 0) fail("warm");
    return fd;
}

/* WORD's first byte occurs in it once: no way back is needed. */
static long
count(stream_t *s, const char *word, const char *p, size_t n)
{
    long    found = 0;
    size_t  i;

    for (i = 0; i < n; i++) {
        s->matched = p[i] == word[s->matched] ? s->matched + 1 : p[i] == word[0];
        if (word[s->matched] == '\0') {
            found++;
            s->matched = 0;
        }
    }
    return found;
}

/* True: the answer is whole. */
static int
ended(stream_t *s, const char *p, size_t n)
{
    size_t  k = n < sizeof(s->tail) ? n : sizeof(s->tail);

    memmove(s->tail, s->tail + k, sizeof(s->tail) - k);
    memcpy(s->tail + sizeof(s->tail) - k, p + n - k, k);
    return memcmp(s->tail, end_mark, sizeof(s->tail)) == 0;
}

int
main(int argc, char **argv)
{
    int                 i, n, ep = epoll_create1(0), left = argc > 3 ? atoi(argv[2]) : 0;
    long                found = 0;
    char                line[8];
    size_t              size;
    ssize_t             got;
    stream_t           *all = calloc((size_t) left + 1, sizeof(*all));
    static char         request[4096];
    struct epoll_event  ev[256];

    if (argc != 4 || all == NULL) return 2;
    for (i = 0; i < left; i++) {
        all[i].fd = dial(atoi(argv[1]));
        ev[0] = (struct epoll_event) { .events = EPOLLIN, .data.ptr = &all[i] };
        if (epoll_ctl(ep, EPOLL_CTL_ADD, all[i].fd, &ev[0]) != 0) fail("epoll_ctl");
    }
    printf("open\n");
    fflush(stdout);
    if (fgets(line, sizeof(line), stdin) == NULL) return 2;
    size = fread(request, 1, sizeof(request), stdin);
    for (i = 0; i < left; i++) {
        if (write(all[i].fd, request, size) != (ssize_t) size) fail("write");
    }
    while (left > 0) {
        n = epoll_wait(ep, ev, 256, 20000);
        if (n <= 0) fail("epoll_wait");
        for (i = 0; i < n; i++) {
            stream_t  *s = ev[i].data.ptr;

            got = read(s->fd, buf, sizeof(buf));
            if (got <= 0) fail("read");
            found += count(s, argv[3], buf, (size_t) got);
            if (!ended(s, buf, (size_t) got)) continue;
            epoll_ctl(ep, EPOLL_CTL_DEL, s->fd, NULL);
            left--;
        }
    }
    printf("%ld\n", found);
    return 0;
}
