/*
 * eval_call: requests of an evaluation, one at a time, and the forms in which its
 * files give text.
 */
#include <stdlib.h>
#include <string.h>

#include "eval.h"

#define POLL_MS  200

void
glm_answer_free(glm_answer_t *a)
{
    glm_wbuf_free(&a->ids);
    glm_wbuf_free(&a->text);
    glm_wbuf_free(&a->logprobs);
    free(a->sum);
    *a = (glm_answer_t) {0};
}

/* The log-probabilities of a choice's tokens, added as doubles. */
static int
add_scores(glm_answer_t *a, const glm_event_t *ev)
{
    size_t              at = 0, k = ev->tokens.choice;
    const char         *text;
    double             *p;
    glm_logprob_rec_t   rec;

    if (k >= GLM_MAX_SCORED) return -1;
    if (k >= a->nsum) {
        p = realloc(a->sum, (k + 1) * sizeof(*p));
        if (p == NULL) return -1;
        memset(p + a->nsum, 0, (k + 1 - a->nsum) * sizeof(*p));
        a->sum = p;
        a->nsum = k + 1;
    }
    while (glm_event_logprob(ev, &at, &rec, &text)) {
        a->sum[k] += (double) rec.logprob;
        for (int i = rec.ntop; i > 0; i--) glm_event_logprob(ev, &at, &rec, &text);
    }
    return 0;
}

static int
take(glm_answer_t *a, const glm_event_t *ev, uint8_t op)
{
    if (ev->type == GLM_MSG_TOKENS && op == GLM_SUBMIT_SCORE) return add_scores(a, ev);
    if (ev->type == GLM_MSG_FINISH && ev->finish.choice == 0) {
        a->nkept = ev->finish.nkept;
        if (a->nkept > a->ids.n / sizeof(int32_t)) a->nkept = (uint32_t) (a->ids.n / sizeof(int32_t));
    }
    if (ev->type != GLM_MSG_PROMPT && ev->type != GLM_MSG_TOKENS) return 0;
    if (ev->type == GLM_MSG_TOKENS && ev->tokens.choice != 0) return 0;
    glm_wbuf_put(&a->ids, ev->ids, ev->nids * sizeof(int32_t));
    glm_wbuf_put(&a->text, ev->text, ev->ntext);
    return a->ids.failed || a->text.failed ? -1 : 0;
}

int
glm_eval_call(glm_eval_t *e, glm_client_submit_t *s, glm_answer_t *a)
{
    uint8_t      op = s->m.op;
    int          rc, cancelled = 0, failed = 0;
    glm_event_t  ev;

    s->m.window = GLM_CLIENT_WINDOW;
    rc = glm_client_submit(e->client, 1, s, &e->err);
    while (rc >= 0) {
        rc = glm_client_next(e->client, &ev, POLL_MS, &e->err);
        if (rc == 1 && !failed && take(a, &ev, op) != 0) failed = 1;
        if (rc == 1 && ev.type == GLM_MSG_ERROR) {
            return glm_fail(&e->err, GLM_ELIMIT, "%.*s (%u)", (int) ev.ntext,
                            ev.ntext ? ev.text : "", ev.error.status);
        }
        if (rc == 1 && ev.type == GLM_MSG_DONE) {
            if (ev.done.cancelled) return glm_fail(&e->err, GLM_EIO, "interrupted");
            return failed ? glm_fail(&e->err, GLM_ENOMEM, "no memory for an answer") : 0;
        }
        if (glm_cli_interrupted() && !cancelled) {
            cancelled = 1;
            glm_client_cancel(e->client, 1);
        }
    }
    return rc;
}

int
glm_eval_tokenize(glm_eval_t *e, const char *s, size_t n, glm_answer_t *a)
{
    glm_client_submit_t  sub = { .m = { .op = GLM_SUBMIT_TOKENIZE } };

    glm_wire_section(&sub.sections, GLM_SEC_TEXT, s, n);
    return glm_eval_call(e, &sub, a);
}

int
glm_eval_detokenize(glm_eval_t *e, const int32_t *ids, size_t n, glm_answer_t *a)
{
    glm_client_submit_t  sub = { .m = { .op = GLM_SUBMIT_DETOKENIZE } };

    if (n == 0) return 0;
    glm_wire_section(&sub.sections, GLM_SEC_IDS, ids, n * sizeof(*ids));
    return glm_eval_call(e, &sub, a);
}

int
glm_eval_has(const glm_wbuf_t *ids, int32_t id)
{
    const int32_t  *p = (const int32_t *) (const void *) ids->p;

    for (size_t i = 0; i < ids->n / sizeof(int32_t); i++)
        if (p[i] == id) return 1;
    return 0;
}

/* ---- text or ids ---- */

static int
add_id(glm_eval_t *e, const json_t *v, glm_wbuf_t *ids)
{
    json_int_t  n = json_integer_value(v);
    int32_t     id = (int32_t) n;

    if (!json_is_integer(v) || n < 0 || n > INT32_MAX) {
        return glm_fail(&e->err, GLM_EFORMAT, "an id is no whole number from 0 to %d", INT32_MAX);
    }
    glm_wbuf_put(ids, &id, sizeof(id));
    return ids->failed ? glm_fail(&e->err, GLM_ENOMEM, "no memory for ids") : 0;
}

int
glm_eval_ids(glm_eval_t *e, const json_t *value, glm_wbuf_t *ids)
{
    int            rc;
    glm_answer_t   a = {0};

    if (json_is_array(value)) {
        for (size_t i = 0; i < json_array_size(value); i++) {
            if ((rc = add_id(e, json_array_get(value, i), ids)) != 0) return rc;
        }
        return 0;
    }
    if (json_is_integer(value)) return add_id(e, value, ids);
    if (!json_is_string(value)) {
        return glm_fail(&e->err, GLM_EFORMAT, "neither text nor a list of ids");
    }
    rc = glm_eval_tokenize(e, json_string_value(value), json_string_length(value), &a);
    if (rc == 0) glm_wbuf_put(ids, a.ids.p, a.ids.n);
    glm_answer_free(&a);
    return rc;
}

/* The value of key, or of key_pretokenized. */
static const json_t *
value_of(const json_t *item, const char *key)
{
    char           name[64];
    const json_t  *v = json_object_get(item, key);

    if (v != NULL) return v;
    snprintf(name, sizeof(name), "%s_pretokenized", key);
    return json_object_get(item, name);
}

int
glm_eval_input(glm_eval_t *e, const json_t *item, const char *key, glm_wbuf_t *ids)
{
    const json_t  *v = value_of(item, key);

    if (v == NULL) {
        return glm_fail(&e->err, GLM_EFORMAT, "\"%s_pretokenized\" is missing", key);
    }
    return glm_eval_ids(e, v, ids);
}

const json_t *
glm_eval_list(const json_t *item, const char *key)
{
    const json_t  *v = value_of(item, key);

    return json_is_array(v) ? v : NULL;
}
