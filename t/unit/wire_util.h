/*
 * wire_util: a SUBMIT that is right, to be spoilt, and what the decoder says of it.
 */
#ifndef GLM_T_WIRE_UTIL_H
#define GLM_T_WIRE_UTIL_H

#include <string.h>

#include "tap.h"
#include "wire_decode.h"
#include "wire_encode.h"

static const glm_decode_limits_t  lim = { .vocab = 100, .max_stops = 4, .max_n = 8,
                                          .max_logprobs = 20 };

/* A message under construction, as each case starts: valid. */
typedef struct {
    glm_msg_submit_t    m;
    glm_sec_sampling_t  s;
    glm_wbuf_t          more;      /* sections behind prompt and sampling */
    const char         *text;      /* NULL: no prompt */
    int                 no_sampling;
} msg_t;

static inline msg_t
valid(void)
{
    return (msg_t) {
        .m = { .size = sizeof(glm_msg_submit_t), .op = GLM_SUBMIT_GENERATE, .n = 1,
               .max_tokens = 5, .window = 1000 },
        .s = { .size = sizeof(glm_sec_sampling_t), .logprobs = -1, .prompt_logprobs = -1 },
        .text = "hello",
    };
}

static glm_wbuf_t
bytes(msg_t *m)
{
    glm_wbuf_t  b = {0};

    glm_wbuf_put(&b, &m->m, sizeof(m->m));
    if (m->text != NULL) glm_wire_section(&b, GLM_SEC_TEXT, m->text, strlen(m->text));
    if (!m->no_sampling) glm_wire_section(&b, GLM_SEC_SAMPLING, &m->s, sizeof(m->s));
    glm_wbuf_put(&b, m->more.p, m->more.n);
    glm_wbuf_free(&m->more);
    return b;
}

static glm_submit_t   out;
static glm_refusal_t  why;

static int
decode(msg_t *m)
{
    glm_wbuf_t  b = bytes(m);

    glm_submit_free(&out);
    return glm_wire_decode_submit(&out, b.p, b.n, &lim, &why);
}

static void
accepts(msg_t *m, const char *what)
{
    int  rc = decode(m);

    ok(rc == 0, "accepted: %s", what);
    if (rc != 0) diag("%d %s: %s", rc, why.param, why.text);
}

static void
refuses(msg_t *m, int status, const char *param, const char *what)
{
    int  rc = decode(m);

    ok(rc == GLM_ELIMIT && why.status == status && strcmp(why.param, param) == 0
       && strcmp(why.code, status == 501 ? "not_implemented" : "") == 0 && why.text[0],
       "%d %s: %s", status, param, what);
    if (rc != GLM_ELIMIT) diag("rc %d", rc);
    else if (why.status != status || strcmp(why.param, param)) diag("%d %s", why.status, why.param);
}

static void
rejects(msg_t *m, const char *what)
{
    ok(decode(m) == GLM_EINVAL && why.text[0], "nonsense: %s", what);
}

#endif
