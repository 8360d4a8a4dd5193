/*
 * stop: one Knuth-Morris-Pratt automaton a stop string, all fed byte by byte.
 * The state of each is the length of the longest suffix of the text that may
 * still become the stop; the longest of these is what must be held back.
 */
#include <stdlib.h>
#include <string.h>

#include "stop.h"

/* fail[i]: the longest proper prefix of s[0..i) that is its suffix as well. */
static int32_t *
borders(const char *s, size_t n)
{
    int32_t  *fail = malloc((n + 1) * sizeof(int32_t)), k = 0;

    if (fail == NULL) return NULL;
    fail[0] = fail[1] = 0;
    for (size_t i = 1; i < n; i++) {
        while (k > 0 && s[i] != s[k]) k = fail[k];
        if (s[i] == s[k]) k++;
        fail[i + 1] = k;
    }
    return fail;
}

int
glm_stops_make(glm_stops_t **out, const glm_stop_t *stop, size_t n, int include)
{
    glm_stops_t  *s;

    *out = NULL;
    if (n == 0) return 0;

    s = calloc(1, sizeof(*s));
    if (s == NULL) return GLM_ENOMEM;
    s->include = include;
    s->stop = malloc(n * sizeof(*stop));
    s->fail = calloc(n, sizeof(*s->fail));
    if (s->stop == NULL || s->fail == NULL) goto fail;
    memcpy(s->stop, stop, n * sizeof(*stop));

    for (; s->n < n; s->n++)
        if ((s->fail[s->n] = borders(stop[s->n].s, stop[s->n].n)) == NULL) goto fail;

    *out = s;
    return 0;

fail:
    glm_stops_free(s);
    return GLM_ENOMEM;
}

void
glm_stops_free(glm_stops_t *s)
{
    if (s == NULL) return;
    for (size_t i = 0; i < s->n; i++) free(s->fail[i]);
    free(s->fail);
    free(s->stop);
    free(s);
}

int
glm_stopper_init(glm_stopper_t *s, const glm_stops_t *stops)
{
    *s = (glm_stopper_t) { .stops = stops, .hit = -1 };
    if (stops == NULL) return 0;
    s->state = calloc(stops->n, sizeof(int32_t));
    return s->state != NULL ? 0 : GLM_ENOMEM;
}

void
glm_stopper_reset(glm_stopper_t *s)
{
    if (s->stops != NULL) memset(s->state, 0, s->stops->n * sizeof(int32_t));
    s->text.n = s->head = s->seen = 0;
    s->base = 0;
    s->hit = -1;
    s->deaf = 0;
}

void
glm_stopper_destroy(glm_stopper_t *s)
{
    free(s->state);
    glm_text_free(&s->text);
    *s = (glm_stopper_t) {0};
}

/* Feeds a byte to every automaton; the longest stop that it completes, or -1. */
static int32_t
feed(glm_stopper_t *s, char c)
{
    int32_t  hit = -1;

    for (size_t i = 0; i < s->stops->n; i++) {
        const glm_stop_t  *stop = &s->stops->stop[i];
        int32_t            k = s->state[i];

        while (k > 0 && stop->s[k] != c) k = s->stops->fail[i][k];
        if (stop->s[k] == c) k++;
        s->state[i] = k;
        if ((size_t) k == stop->n && s->deaf) s->state[i] = s->stops->fail[i][k];
        else if ((size_t) k == stop->n && (hit < 0 || stop->n > s->stops->stop[hit].n))
            hit = (int32_t) i;
    }
    return hit;
}

/* Moves what is left to the front once that is less than what went before it,
 * so that each byte is moved a bounded number of times. */
static void
compact(glm_stopper_t *s)
{
    size_t  rest = s->text.n - s->head;

    if (s->head == 0 || rest > s->head) return;
    memmove(s->text.s, s->text.s + s->head, rest);
    s->base += s->head;
    s->seen -= s->head;
    s->text.n = rest;
    s->head = 0;
}

void
glm_stopper_scan(glm_stopper_t *s)
{
    compact(s);
    if (s->stops == NULL) {
        s->seen = s->text.n;
        return;
    }
    while (s->seen < s->text.n && s->hit < 0) s->hit = feed(s, s->text.s[s->seen++]);

    if (s->hit >= 0)
        s->text.n = s->seen - (s->stops->include ? 0 : s->stops->stop[s->hit].n);
}

static size_t
held(const glm_stopper_t *s)
{
    int32_t  most = 0;

    if (s->stops == NULL || s->hit >= 0) return 0;
    for (size_t i = 0; i < s->stops->n; i++)
        if (s->state[i] > most) most = s->state[i];
    return (size_t) most;
}

const char *
glm_stopper_take(glm_stopper_t *s, int last, size_t *n)
{
    size_t  from = s->head;

    s->head = s->text.n - (last ? 0 : held(s));
    *n = s->head - from;
    return *n > 0 ? s->text.s + from : "";
}

uint64_t
glm_stopper_length(const glm_stopper_t *s)
{
    return s->base + s->text.n;
}
