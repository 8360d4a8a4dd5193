/*
 * stop: breaks when a byte of a stop string gets out, text is held back that
 * nothing can match, the wrong stop wins, or time is not linear.
 */
#include <string.h>
#include <time.h>

#include "stop.h"
#include "tap.h"

static uint32_t
rnd(void)
{
    static uint64_t  s = 88172645463325252ull;

    s ^= s << 13;
    s ^= s >> 7;
    s ^= s << 17;
    return (uint32_t) (s >> 16);
}

/* Feeds text in pieces of `step` bytes; returns what was sent, and checks that
 * what is held back is no more than some stop can still match. */
static int
run(glm_stopper_t *s, const char *text, size_t n, size_t step, glm_text_t *sent)
{
    int  bad = 0;

    for (size_t i = 0; i < n && s->hit < 0; i += step) {
        size_t       k = i + step < n ? step : n - i, got;
        const char  *p;

        glm_text_add(&s->text, text + i, k);
        glm_stopper_scan(s);
        p = glm_stopper_take(s, s->hit >= 0 || i + k == n, &got);
        glm_text_add(sent, p, got);
        if (s->hit >= 0 || i + k == n) continue;
        for (size_t held = i + k - sent->n; held > 0; held = 0) {
            int  may = 0;

            for (size_t j = 0; s->stops != NULL && j < s->stops->n; j++)
                may |= held < s->stops->stop[j].n
                       && memcmp(s->stops->stop[j].s, text + i + k - held, held) == 0;
            bad += !may;
        }
    }
    return bad;
}

/* The definition: the smallest end; of those the longest.  The end, or n + 1. */
static size_t
slow(const glm_stop_t *stop, size_t nstop, const char *text, size_t n, int *which)
{
    *which = -1;
    for (size_t end = 1; end <= n; end++) {
        for (size_t j = 0; j < nstop; j++)
            if (stop[j].n <= end && memcmp(text + end - stop[j].n, stop[j].s, stop[j].n) == 0
                && (*which < 0 || stop[j].n > stop[*which].n)) *which = (int) j;
        if (*which >= 0) return end;
    }
    return n + 1;
}

static void
test_random(void)
{
    int  wrong = 0, held = 0, hits = 0;

    for (int round = 0; round < 20000; round++) {
        char            text[64], words[5][9];
        glm_stop_t      stop[5];
        glm_stops_t    *stops;
        glm_stopper_t   s;
        glm_text_t      sent = {0};
        size_t          n = rnd() % 64, nstop = 1 + rnd() % 5, end, want;
        int             which, include = rnd() % 2;

        for (size_t i = 0; i < n; i++) text[i] = (char) ('a' + rnd() % 3);
        for (size_t j = 0; j < nstop; j++) {
            stop[j] = (glm_stop_t) { words[j], 1 + rnd() % 8 };
            for (size_t i = 0; i < stop[j].n; i++) words[j][i] = (char) ('a' + rnd() % 3);
        }
        end = slow(stop, nstop, text, n, &which);
        glm_stops_make(&stops, stop, nstop, include);
        glm_stopper_init(&s, stops);
        held += run(&s, text, n, 1 + rnd() % 5, &sent);

        want = which < 0 ? n : include ? end : end - stop[which].n;
        hits += which >= 0;
        /* Of two equal strings either may be named. */
        wrong += sent.n != want || memcmp(sent.s ? sent.s : "", text, want) != 0
                 || (s.hit < 0) != (which < 0) || (which >= 0 && stop[s.hit].n != stop[which].n)
                 || glm_stopper_length(&s) != want;
        glm_text_free(&sent);
        glm_stopper_destroy(&s);
        glm_stops_free(stops);
    }
    ok(wrong == 0, "20,000 random texts are cut as the definition says (%d hits)", hits);
    ok(held == 0, "nothing is held back that no stop can match");
}

static void
one(const char *name, const char *text, const char *a, const char *b, const char *want, int index)
{
    glm_stop_t      stop[2] = { { a, strlen(a) }, { b, strlen(b) } };
    glm_stops_t    *stops;
    glm_stopper_t   s;

    glm_stops_make(&stops, stop, 2, 0);
    glm_stopper_init(&s, stops);
    for (size_t step = 1; step < 8; step += 3) {
        glm_text_t  sent = {0};

        glm_stopper_reset(&s);
        run(&s, text, strlen(text), step, &sent);
        ok(sent.n == strlen(want) && memcmp(sent.s ? sent.s : "", want, sent.n) == 0
           && s.hit == index, "%s, %zu bytes at a time", name, step);
        glm_text_free(&sent);
    }
    glm_stopper_destroy(&s);
    glm_stops_free(stops);
}

static double
seconds(void)
{
    struct timespec  t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double) t.tv_sec + (double) t.tv_nsec * 1e-9;
}

/* 16 stops of 4 KB that match all but their last byte, over and over. */
static void
test_speed(void)
{
    enum { STOPS = 16, LONG = 4096, TEXT = 1 << 20 };
    static char     word[STOPS][LONG], text[TEXT];
    glm_stop_t      stop[STOPS];
    glm_stops_t    *stops;
    glm_stopper_t   s;
    glm_text_t      sent = {0};
    double          t;

    memset(text, 'a', sizeof(text));
    for (int i = 0; i < STOPS; i++) {
        memset(word[i], 'a', LONG);
        word[i][LONG - 1] = (char) ('b' + i);
        stop[i] = (glm_stop_t) { word[i], LONG };
    }
    glm_stops_make(&stops, stop, STOPS, 0);
    glm_stopper_init(&s, stops);
    t = seconds();
    for (size_t i = 0; i < TEXT; i += 4) {
        size_t       got;
        const char  *p;

        glm_text_add(&s.text, text + i, 4);
        glm_stopper_scan(&s);
        p = glm_stopper_take(&s, i + 4 == TEXT, &got);
        glm_text_add(&sent, p, got);
    }
    t = seconds() - t;
    ok(sent.n == TEXT && t < 10, "16 stops of 4 KB over 1 MB of near misses: %.2f s", t);
    ok(s.text.cap < 64 * LONG, "the text kept back stays small: %zu bytes", s.text.cap);
    glm_text_free(&sent);
    glm_stopper_destroy(&s);
    glm_stops_free(stops);
}

int
main(void)
{
    glm_stopper_t  s;
    glm_stops_t   *none;
    glm_text_t     sent = {0};

    one("a stop in the middle", "Hello\nuser: x", "\nuser:", "zzz", "Hello", 0);
    one("the end that comes first wins", "abcde", "abcde", "cd", "ab", 1);
    one("equal ends: the longer wins", "xabcd", "cd", "abcd", "x", 1);
    one("a stop at the very start", "stop now", "stop", "now", "", 0);
    one("an overlapping try is not lost", "aab", "ab", "zz", "a", 0);
    one("no stop: all comes out", "almost sto", "stop", "now", "almost sto", -1);
    one("characters of several bytes", "\xE4\xBD\xA0\xE5\xA5\xBD\xE3\x80\x82", "\xE3\x80\x82",
        "\xE3\x80\x81", "\xE4\xBD\xA0\xE5\xA5\xBD", 0);

    glm_stops_make(&none, NULL, 0, 0);
    glm_stopper_init(&s, none);
    ok(none == NULL && run(&s, "plain", 5, 2, &sent) == 0 && sent.n == 5, "no stops at all");
    glm_text_free(&sent);
    glm_stopper_destroy(&s);

    test_random();
    test_speed();
    return tap_done();
}
