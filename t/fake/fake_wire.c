/*
 * fake_wire: see fake_wire.h.  I/O thread only.
 */
#include "fake_wire.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "../../engine/wire_decode.h"

static FILE  *file;

int __real_glm_wire_decode_submit(glm_submit_t *out, uint8_t *msg, size_t len,
    const glm_decode_limits_t *lim, glm_refusal_t *why);
int __wrap_glm_wire_decode_submit(glm_submit_t *out, uint8_t *msg, size_t len,
    const glm_decode_limits_t *lim, glm_refusal_t *why);

void
fake_wire_record(const char *path)
{
    file = fopen(path, "we");
    if (file == NULL) perror(path);
}

/* ---- the file ---- */

static void
say(const char *fmt, ...)
{
    va_list  ap;

    if (file == NULL) return;
    va_start(ap, fmt);
    vfprintf(file, fmt, ap);
    va_end(ap);
}

static void
say_text(const uint8_t *s, size_t n)
{
    size_t  i;

    say("\"");
    for (i = 0; i < n; i++) {
        if (s[i] < 0x20 || s[i] == '"' || s[i] == '\\') say("\\u%04x", s[i]);
        else say("%c", s[i]);
    }
    say("\"");
}

static void
say_ids(const uint8_t *p, size_t n)
{
    size_t   i;
    int32_t  id;

    say("[");
    for (i = 0; i + sizeof(id) <= n; i += sizeof(id)) {
        memcpy(&id, p + i, sizeof(id));
        say("%s%" PRId32, i ? "," : "", id);
    }
    say("]");
}

static void
say_strings(const uint8_t *p, size_t n)
{
    size_t     at;
    glm_str_t  str;

    say("[");
    for (at = 0; at + sizeof(str) <= n; at += (str.size + 3) & ~(size_t) 3) {
        memcpy(&str, p + at, sizeof(str));
        if (at) say(",");
        at += sizeof(str);
        if (str.size > n - at) break;
        say_text(p + at, str.size);
    }
    say("]");
}

/* Texts as they are, ids as lists. */
static void
say_choices(const uint8_t *p, size_t n)
{
    size_t        at;
    glm_choice_t  c;

    say("[");
    for (at = 0; at + sizeof(c) <= n; at += (c.size + 3) & ~(size_t) 3) {
        memcpy(&c, p + at, sizeof(c));
        if (at) say(",");
        at += sizeof(c);
        if (c.size > n - at) break;
        if (c.kind == GLM_SEC_IDS) say_ids(p + at, c.size);
        else say_text(p + at, c.size);
    }
    say("]");
}

static void
say_bias(const uint8_t *p, size_t n)
{
    size_t      i;
    glm_bias_t  b;

    say("{");
    for (i = 0; i + sizeof(b) <= n; i += sizeof(b)) {
        memcpy(&b, p + i, sizeof(b));
        say("%s\"%" PRId32 "\":%.9g", i ? "," : "", b.id, (double) b.bias);
    }
    say("}");
}

static void
say_sampling(const glm_sec_sampling_t *s)
{
    say("{\"flags\":%u,\"seed\":%" PRIu64 ",\"temperature\":%.9g,\"top_p\":%.9g,\"min_p\":%.9g,"
        "\"top_k\":%d,\"presence\":%.9g,\"frequency\":%.9g,\"repetition\":%.9g,\"logprobs\":%d,"
        "\"prompt_logprobs\":%d,\"min_tokens\":%d,\"beams\":%u,\"length_penalty\":%.9g,"
        "\"no_repeat_ngram\":%u}",
        s->flags, s->seed, (double) s->temperature, (double) s->top_p, (double) s->min_p, s->top_k,
        (double) s->presence, (double) s->frequency, (double) s->repetition, s->logprobs,
        s->prompt_logprobs, s->min_tokens, s->beams, (double) s->length_penalty, s->no_repeat_ngram);
}

static void
say_fixed(const glm_msg_submit_t *m)
{
    say("{\"op\":%u,\"mode\":%u,\"flags\":%u,\"n\":%u,\"best_of\":%u,\"max_tokens\":%d,\"truncate\":%d,"
        "\"window\":%" PRIu64 ",\"group\":%" PRIu64 ",\"group_index\":%u,\"group_count\":%u,"
        "\"priority\":%" PRId64,
        m->op, m->mode, m->flags, m->n, m->best_of, m->max_tokens, m->truncate, m->window, m->group,
        m->group_index, m->group_count, m->priority);
}

static void
say_section(const glm_sec_t *sec, const uint8_t *p)
{
    uint32_t            r[4] = {0};
    glm_sec_sampling_t  s = {0};

    say(",\"%u\":", sec->type);
    switch (sec->type) {
    case GLM_SEC_SAMPLING:
        memcpy(&s, p, sec->size < sizeof(s) ? sec->size : sizeof(s));
        say_sampling(&s);
        break;
    case GLM_SEC_REPEAT:
        memcpy(r, p, sec->size < sizeof(r) ? sec->size : sizeof(r));
        say("[%u,%u,%u]", r[1], r[2], r[3]);
        break;
    case GLM_SEC_IDS: case GLM_SEC_STOP_IDS: case GLM_SEC_ALLOW: case GLM_SEC_SCORE_IDS:
        say_ids(p, sec->size);
        break;
    case GLM_SEC_STOPS: case GLM_SEC_BAD:
        say_strings(p, sec->size);
        break;
    case GLM_SEC_CHOICES:
        say_choices(p, sec->size);
        break;
    case GLM_SEC_BIAS:
        say_bias(p, sec->size);
        break;
    default:
        say_text(p, sec->size);
    }
}

/* Reads what is well-formed; the decoder judges the rest. */
static void
look(const uint8_t *msg, size_t len)
{
    size_t            at = sizeof(glm_msg_submit_t), padded;
    glm_sec_t         sec;
    glm_msg_submit_t  m;

    if (len < sizeof(m)) return;
    memcpy(&m, msg, sizeof(m));
    if (m.size != sizeof(m) || m.group_index >= (m.group_count ? m.group_count : 1)) return;
    say_fixed(&m);
    while (at + sizeof(sec) <= len) {
        memcpy(&sec, msg + at, sizeof(sec));
        if (sec.size > len - at - sizeof(sec)) break;
        say_section(&sec, msg + at + sizeof(sec));
        padded = ((size_t) sec.size + 7) & ~(size_t) 7;
        at += sizeof(sec) + padded;
    }
    say("}\n");
    fflush(file);
}

int
__wrap_glm_wire_decode_submit(glm_submit_t *out, uint8_t *msg, size_t len,
    const glm_decode_limits_t *lim, glm_refusal_t *why)
{
    if (file != NULL) look(msg, len);
    return __real_glm_wire_decode_submit(out, msg, len, lim, why);
}
