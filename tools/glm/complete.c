/*
 * complete: text as it comes to standard output, or one JSON object at the end.
 */
#include <inttypes.h>
#include <string.h>

#include "cli.h"

typedef struct {
    const glm_cli_t     *o;
    glm_wbuf_t           text, ids, prompt_ids, logprobs, stop;
    glm_msg_accepted_t   accepted;
    glm_msg_finish_t     finish;
    glm_msg_done_t       done;
} complete_t;

/* ---- plain output ---- */

static int
print_tokens(const complete_t *c, const glm_event_t *ev)
{
    size_t  i;

    if (c->o->ids) {
        for (i = 0; i < ev->nids; i++) printf("%d ", ev->ids[i]);
    } else if (ev->ntext) {
        fwrite(ev->text, 1, ev->ntext, stdout);
    }
    return fflush(stdout) != 0 || ferror(stdout);
}

/* ---- JSON output ---- */

typedef struct { glm_logprob_rec_t rec; const char *text; } token_t;

/* The next token's own record; its best ones follow at *at. */
static int
next_token(const glm_event_t *ev, size_t *at, token_t *t, int skip_top)
{
    int                i;
    const char        *text;
    glm_logprob_rec_t  rec;

    if (!glm_event_logprob(ev, at, &t->rec, &t->text)) return 0;
    for (i = 0; skip_top && i < t->rec.ntop; i++) {
        if (!glm_event_logprob(ev, at, &rec, &text)) return 0;
    }
    return 1;
}

static void
print_top(FILE *f, const glm_event_t *ev, size_t *at, const token_t *t)
{
    int                i;
    const char        *text;
    glm_logprob_rec_t  rec;

    putc('{', f);
    for (i = 0; i < t->rec.ntop && glm_event_logprob(ev, at, &rec, &text); i++) {
        if (i) fputs(", ", f);
        glm_json_string(f, text, rec.text_size);
        fprintf(f, ": %.9g", (double) rec.logprob);
    }
    putc('}', f);
}

/* The four lists of the completions API. */
static void
print_logprobs(FILE *f, const complete_t *c)
{
    int                 list;
    size_t              at;
    token_t             t;
    const char         *comma;
    const glm_event_t   ev = { .logprobs = c->logprobs.p, .nlogprobs = c->logprobs.n };
    static const char  *names[] = { "tokens", "token_logprobs", "top_logprobs", "text_offset" };

    fputs(", \"logprobs\": {", f);
    for (list = 0; list < 4; list++) {
        fprintf(f, "%s\"%s\": [", list ? ", " : "", names[list]);
        comma = "";
        for (at = 0; next_token(&ev, &at, &t, list != 2); comma = ", ") {
            fputs(comma, f);
            if (list == 0) glm_json_string(f, t.text, t.rec.text_size);
            else if (list == 1) fprintf(f, "%.9g", (double) t.rec.logprob);
            else if (list == 2) print_top(f, &ev, &at, &t);
            else fprintf(f, "%u", t.rec.offset);
        }
        putc(']', f);
    }
    putc('}', f);
}

static int
print_json(const complete_t *c)
{
    FILE  *f = stdout;

    fputs("{\"text\": ", f);
    glm_json_string(f, (const char *) c->text.p, c->text.n);
    fputs(", \"token_ids\": ", f);
    glm_json_ids(f, (const int32_t *) (const void *) c->ids.p, c->ids.n / sizeof(int32_t));
    fputs(", \"prompt_token_ids\": ", f);
    glm_json_ids(f, (const int32_t *) (const void *) c->prompt_ids.p,
                 c->prompt_ids.n / sizeof(int32_t));
    fprintf(f, ", \"finish_reason\": %s, \"stop_reason\": ", glm_json_reason(c->finish.reason));
    if (c->stop.n) glm_json_string(f, (const char *) c->stop.p, c->stop.n);
    else fputs("null", f);
    fprintf(f, ", \"seed\": %" PRIu64, c->accepted.seed);
    if (c->o->sampling.logprobs >= 0) print_logprobs(f, c);
    fprintf(f, ", \"usage\": {\"prompt_tokens\": %u, \"completion_tokens\": %u, "
            "\"total_tokens\": %u}}\n", c->done.prompt_tokens, c->done.completion_tokens,
            c->done.prompt_tokens + c->done.completion_tokens);
    return fflush(f) != 0 || ferror(f) ? -1 : 0;
}

/* ---- messages ---- */

static int
failed(const complete_t *c)
{
    if (!c->text.failed && !c->ids.failed && !c->prompt_ids.failed && !c->logprobs.failed
        && !c->stop.failed)
        return 0;
    return glm_cli_fail("no memory for the answer");
}

static int
on_tokens(complete_t *c, const glm_event_t *ev)
{
    glm_wbuf_put(&c->text, ev->text, ev->ntext);
    glm_wbuf_put(&c->ids, ev->ids, ev->nids * sizeof(int32_t));
    glm_wbuf_put(&c->logprobs, ev->logprobs, ev->nlogprobs);
    return c->o->json ? failed(c) : print_tokens(c, ev);
}

static int
on_prompt(complete_t *c, const glm_event_t *ev)
{
    glm_wbuf_put(&c->prompt_ids, ev->ids, ev->nids * sizeof(int32_t));
    glm_wbuf_put(&c->text, ev->text, ev->ntext);
    return c->o->json || c->o->ids ? failed(c) : print_tokens(c, ev);
}

/* What a stop string or an end token cut off is no part of the answer. */
static int
on_finish(complete_t *c, const glm_event_t *ev)
{
    size_t  kept = ev->finish.nkept * sizeof(int32_t);

    c->finish = ev->finish;
    if (kept < c->ids.n) c->ids.n = kept;
    glm_wbuf_put(&c->stop, ev->text, ev->ntext);
    return c->o->json ? failed(c) : 0;
}

static int
on_event(void *arg, const glm_event_t *ev)
{
    complete_t  *c = arg;

    switch (ev->type) {
    case GLM_MSG_ACCEPTED: c->accepted = ev->accepted; break;
    case GLM_MSG_PROMPT:   return on_prompt(c, ev);
    case GLM_MSG_TOKENS:   return on_tokens(c, ev);
    case GLM_MSG_FINISH:   return on_finish(c, ev);
    case GLM_MSG_DONE:     c->done = ev->done; break;
    }
    return 0;
}

int
glm_cli_build(const glm_cli_t *o, uint8_t op, glm_client_submit_t *s)
{
    int         i;
    glm_wbuf_t  stops = {0};

    s->m.op = op;
    s->m.mode = (uint8_t) o->mode;
    s->m.n = 1;
    s->m.max_tokens = o->max_tokens;
    s->m.flags = (o->no_special ? 0 : GLM_F_ADD_SPECIAL) | (o->json ? GLM_F_PROMPT_IDS : 0)
                 | (o->echo ? GLM_F_ECHO : 0);
    glm_wire_section(&s->sections, GLM_SEC_SAMPLING, &o->sampling, sizeof(o->sampling));
    for (i = 0; i < o->nstop; i++) glm_wire_string(&stops, o->stop[i], strlen(o->stop[i]));
    if (stops.n) glm_wire_section(&s->sections, GLM_SEC_STOPS, stops.p, stops.n);
    s->sections.failed |= stops.failed;
    glm_wbuf_free(&stops);
    return glm_cli_prompt(o, s);
}

int
glm_cli_complete(const glm_cli_t *o)
{
    int                  rc;
    glm_link_t           l;
    complete_t           c = { .o = o };
    glm_client_submit_t  s = {0};

    rc = glm_cli_build(o, GLM_SUBMIT_GENERATE, &s);
    if (rc == GLM_CLI_OK) rc = glm_cli_open(&l, o);
    if (rc != GLM_CLI_OK) {
        glm_wbuf_free(&s.sections);
        return rc;
    }
    rc = glm_cli_run(&l, &s, on_event, &c);
    if (rc == GLM_CLI_OK && !o->json) putchar('\n');
    if (rc == GLM_CLI_OK && (o->json ? print_json(&c) : fflush(stdout)) != 0) rc = GLM_CLI_FAIL;
    glm_cli_close(&l);
    glm_wbuf_free(&c.text);
    glm_wbuf_free(&c.ids);
    glm_wbuf_free(&c.prompt_ids);
    glm_wbuf_free(&c.logprobs);
    glm_wbuf_free(&c.stop);
    return rc;
}
