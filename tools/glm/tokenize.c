/*
 * tokenize: text to ids, and with --ids back.
 */
#include "cli.h"

typedef struct {
    const glm_cli_t  *o;
    glm_wbuf_t        ids, names, text;
} tokenize_t;

static int
on_event(void *arg, const glm_event_t *ev)
{
    tokenize_t  *t = arg;

    if (ev->type != GLM_MSG_PROMPT) return 0;
    glm_wbuf_put(&t->ids, ev->ids, ev->nids * sizeof(int32_t));
    glm_wbuf_put(&t->names, ev->logprobs, ev->nlogprobs);
    glm_wbuf_put(&t->text, ev->text, ev->ntext);
    return t->ids.failed || t->names.failed || t->text.failed;
}

static void
print_names(const tokenize_t *t)
{
    size_t              at = 0;
    const char         *name, *comma = "";
    const glm_event_t   ev = { .logprobs = t->names.p, .nlogprobs = t->names.n };
    glm_logprob_rec_t   rec;

    putchar('[');
    for (; glm_event_logprob(&ev, &at, &rec, &name); comma = ", ") {
        fputs(comma, stdout);
        glm_json_string(stdout, name, rec.text_size);
    }
    putchar(']');
}

static int
print(const tokenize_t *t)
{
    size_t          i, n = t->ids.n / sizeof(int32_t);
    const int32_t  *ids = (const int32_t *) (const void *) t->ids.p;

    if (t->o->ids && t->o->json) {
        fputs("{\"prompt\": ", stdout);
        glm_json_string(stdout, (const char *) t->text.p, t->text.n);
        putchar('}');
    } else if (t->o->ids) {
        fwrite(t->text.p, 1, t->text.n, stdout);
    } else if (t->o->json) {
        printf("{\"count\": %zu, \"tokens\": ", n);
        glm_json_ids(stdout, ids, n);
        fputs(", \"token_strs\": ", stdout);
        print_names(t);
        putchar('}');
    } else {
        for (i = 0; i < n; i++) printf("%s%d", i ? " " : "", ids[i]);
    }
    putchar('\n');
    return fflush(stdout) != 0 || ferror(stdout) ? GLM_CLI_FAIL : GLM_CLI_OK;
}

int
glm_cli_tokenize(const glm_cli_t *o)
{
    int                  rc;
    glm_link_t           l;
    tokenize_t           t = { .o = o };
    glm_client_submit_t  s = {0};

    s.m.op = o->ids ? GLM_SUBMIT_DETOKENIZE : GLM_SUBMIT_TOKENIZE;
    s.m.flags = (o->no_special ? 0 : GLM_F_ADD_SPECIAL) | (o->json ? GLM_F_TOKEN_STRS : 0);
    rc = glm_cli_prompt(o, &s);
    if (rc == GLM_CLI_OK) rc = glm_cli_open(&l, o);
    if (rc != GLM_CLI_OK) {
        glm_wbuf_free(&s.sections);
        return rc;
    }
    rc = glm_cli_run(&l, &s, on_event, &t);
    if (rc == GLM_CLI_OK) rc = print(&t);
    glm_cli_close(&l);
    glm_wbuf_free(&t.ids);
    glm_wbuf_free(&t.names);
    glm_wbuf_free(&t.text);
    return rc;
}
