/*
 * fake_script: see fake_script.h.  Unknown words are ignored: a prompt is text.
 */
#include "fake_script.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    const char  *name;
    size_t       offset;
    int          alone;       /* the value when there is no "=N" */
} field_t;

#define F(n, alone)  { #n, offsetof(fake_script_t, n), alone }

static const field_t  fields[] = {
    F(tokens, 16), F(delay, 10), F(first, 100), F(burst, 1), F(accept, 500), F(bytes, 4),
    F(utf8, 1), F(held, 1), F(echo, 1), F(nofinish, 1), F(nodone, 1), F(nocancel, 1),
    F(noids, 1), F(bychoice, 1), F(blanks, 2), F(nofilled, 1), F(badspan, 1), F(skipblank, 1),
    F(error, 500), F(errorat, 0), F(hangat, 0), F(dieat, 0), F(garbageat, 0), F(stall, 0),
    F(queue, 0), F(cached, 0),
    { "slowaccept", offsetof(fake_script_t, accept), 500 },
    { "hang", offsetof(fake_script_t, hangat), 0 },
    { "die", offsetof(fake_script_t, dieat), 0 },
    { "garbage", offsetof(fake_script_t, garbageat), 0 },
    { "stopindex", offsetof(fake_script_t, stop_index), 0 },
    { "stopid", offsetof(fake_script_t, stop_id), 0 },
    { "retry", offsetof(fake_script_t, refusal.retry_after), 1 },
};

static void
copy(char *dst, size_t size, const char *s)
{
    size_t  i;

    for (i = 0; i + 1 < size && s[i]; i++) dst[i] = s[i] == '_' ? ' ' : s[i];
    dst[i] = '\0';
}

/* code= and param= are names: their underscores stay. */
static void
name(char *dst, size_t size, const char *s)
{
    snprintf(dst, size, "%s", s);
}

static int
text_field(fake_script_t *s, const char *key, const char *value)
{
    if (value == NULL) return 0;
    if (strcmp(key, "text") == 0) copy(s->text, sizeof(s->text), value);
    else if (strcmp(key, "code") == 0) name(s->refusal.code, sizeof(s->refusal.code), value);
    else if (strcmp(key, "param") == 0) name(s->refusal.param, sizeof(s->refusal.param), value);
    else if (strcmp(key, "message") == 0) copy(s->refusal.text, sizeof(s->refusal.text), value);
    else if (strcmp(key, "limit") == 0) s->refusal.limit = atoll(value);
    else if (strcmp(key, "value") == 0) s->refusal.value = atoll(value);
    else if (strcmp(key, "reason") != 0) return 0;
    else if (strcmp(value, "stop") == 0) s->reason = GLM_FINISH_STOP;
    else if (strcmp(value, "length") == 0) s->reason = GLM_FINISH_LENGTH;
    else s->reason = GLM_FINISH_ERROR;
    return 1;
}

static void
word(fake_script_t *s, char *w)
{
    int     value;
    char   *eq = strchr(w, '=');
    size_t  i;

    if (eq != NULL) *eq++ = '\0';
    if (text_field(s, w, eq)) return;
    for (i = 0; i < sizeof(fields) / sizeof(fields[0]); i++) {
        if (strcmp(w, fields[i].name) != 0) continue;
        value = eq != NULL ? atoi(eq) : fields[i].alone;
        memcpy((char *) s + fields[i].offset, &value, sizeof(value));
        return;
    }
}

void
fake_script_parse(fake_script_t *s, const char *words, size_t n)
{
    char        w[600];
    size_t      len;
    const char *end = memchr(words, '\n', n);

    *s = (fake_script_t) {
        .tokens = -1, .burst = 1, .errorat = -1, .hangat = -1, .dieat = -1, .garbageat = -1,
        .stall = -1, .stop_index = -1, .stop_id = -1,
    };
    if (end != NULL) n = (size_t) (end - words);

    while (n > 0) {
        len = 0;
        while (len < n && words[len] != ' ') len++;
        if (len > 0 && len < sizeof(w)) {
            memcpy(w, words, len);
            w[len] = '\0';
            word(s, w);
        }
        if (len < n) len++;
        words += len;
        n -= len;
    }
    if (s->error && s->errorat < 0) s->errorat = 0;
    if (s->errorat >= 0 && s->error == 0) s->error = 500;
    s->refusal.status = s->error;
    if (s->refusal.text[0] == '\0') copy(s->refusal.text, sizeof(s->refusal.text), "fake_error");
}
