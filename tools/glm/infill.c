/*
 * infill: the prompt with every mask filled, or one JSON object with the blanks.
 */
#include <inttypes.h>
#include <stdlib.h>

#include "cli.h"

typedef struct {
    glm_wbuf_t          text, ids;
    glm_msg_finish_t    finish;
} blank_t;

typedef struct {
    const glm_cli_t     *o;
    blank_t             *blank;          /* (n) */
    size_t               n;
    glm_wbuf_t           text, spans;
    glm_msg_accepted_t   accepted;
    glm_msg_done_t       done;
} infill_t;

/* NULL: no memory, or more blanks than there can be. */
static blank_t *
blank(infill_t *f, uint32_t i)
{
    blank_t  *p;

    if (i >= GLM_MAX_BLANKS) return NULL;
    if (i >= f->n) {
        p = realloc(f->blank, (i + 1) * sizeof(*p));
        if (p == NULL) return NULL;
        f->blank = p;
        for (; f->n <= i; f->n++) f->blank[f->n] = (blank_t) {0};
    }
    return &f->blank[i];
}

static int
on_tokens(infill_t *f, const glm_event_t *ev)
{
    blank_t  *b = blank(f, ev->tokens.blank);

    if (b == NULL) return -1;
    glm_wbuf_put(&b->text, ev->text, ev->ntext);
    glm_wbuf_put(&b->ids, ev->ids, ev->nids * sizeof(int32_t));
    return b->text.failed || b->ids.failed ? -1 : 0;
}

static int
on_finish(infill_t *f, const glm_event_t *ev)
{
    blank_t  *b = blank(f, ev->finish.blank);

    if (b == NULL) return -1;
    b->finish = ev->finish;
    if (ev->finish.nkept * sizeof(int32_t) < b->ids.n) {
        b->ids.n = ev->finish.nkept * sizeof(int32_t);
    }
    return 0;
}

static int
on_event(void *arg, const glm_event_t *ev)
{
    infill_t  *f = arg;

    switch (ev->type) {
    case GLM_MSG_ACCEPTED: f->accepted = ev->accepted; break;
    case GLM_MSG_TOKENS:   return on_tokens(f, ev);
    case GLM_MSG_FINISH:   return on_finish(f, ev);
    case GLM_MSG_DONE:     f->done = ev->done; break;
    case GLM_MSG_FILLED:
        glm_wbuf_put(&f->text, ev->text, ev->ntext);
        glm_wbuf_put(&f->spans, ev->spans, ev->nspans * sizeof(*ev->spans));
    }
    return f->text.failed || f->spans.failed ? -1 : 0;
}

static void
print_blank(const infill_t *f, size_t i)
{
    const blank_t         *b = &f->blank[i];
    const glm_span_rec_t  *span = (const glm_span_rec_t *) (const void *) f->spans.p;

    printf("%s{\"index\": %zu, ", i ? ", " : "", i);
    if ((i + 1) * sizeof(*span) <= f->spans.n) {
        printf("\"start\": %u, \"end\": %u, ", span[i].start, span[i].end);
    }
    fputs("\"text\": ", stdout);
    glm_json_string(stdout, (const char *) b->text.p, b->text.n);
    fputs(", \"token_ids\": ", stdout);
    glm_json_ids(stdout, (const int32_t *) (const void *) b->ids.p, b->ids.n / sizeof(int32_t));
    printf(", \"finish_reason\": %s}", glm_json_reason(b->finish.reason));
}

static void
print_json(const infill_t *f)
{
    fputs("{\"text\": ", stdout);
    glm_json_string(stdout, (const char *) f->text.p, f->text.n);
    fputs(", \"blanks\": [", stdout);
    for (size_t i = 0; i < f->n; i++) print_blank(f, i);
    printf("], \"seed\": %" PRIu64 ", \"usage\": {\"prompt_tokens\": %u, "
           "\"completion_tokens\": %u, \"total_tokens\": %u}}\n", f->accepted.seed,
           f->done.prompt_tokens, f->done.completion_tokens,
           f->done.prompt_tokens + f->done.completion_tokens);
}

/* With --ids the blanks' ids, a line each. */
static int
print(const infill_t *f)
{
    if (f->o->json) print_json(f);
    if (!f->o->json && !f->o->ids) {
        fwrite(f->text.n ? (char *) f->text.p : "", 1, f->text.n, stdout);
        putchar('\n');
    }
    for (size_t i = 0; i < f->n && f->o->ids && !f->o->json; i++) {
        const int32_t  *ids = (const int32_t *) (const void *) f->blank[i].ids.p;

        for (size_t k = 0; k < f->blank[i].ids.n / sizeof(*ids); k++) printf("%d ", ids[k]);
        putchar('\n');
    }
    return fflush(stdout) != 0 || ferror(stdout) ? GLM_CLI_FAIL : GLM_CLI_OK;
}

int
glm_cli_infill(const glm_cli_t *o)
{
    int                  rc;
    glm_link_t           l;
    infill_t             f = { .o = o };
    glm_client_submit_t  s = {0};

    rc = glm_cli_build(o, GLM_SUBMIT_INFILL, &s);
    if (rc == GLM_CLI_OK) rc = glm_cli_open(&l, o);
    if (rc != GLM_CLI_OK) {
        glm_wbuf_free(&s.sections);
        return rc;
    }
    rc = glm_cli_run(&l, &s, on_event, &f);
    if (rc == GLM_CLI_OK) rc = print(&f);
    glm_cli_close(&l);
    for (size_t i = 0; i < f.n; i++) {
        glm_wbuf_free(&f.blank[i].text);
        glm_wbuf_free(&f.blank[i].ids);
    }
    free(f.blank);
    glm_wbuf_free(&f.text);
    glm_wbuf_free(&f.spans);
    return rc;
}
