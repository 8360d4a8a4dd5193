/*
 * eval_tasks: one item of a multiple choice or generation task, put to the model as
 * the original's evaluation/dataset.py does.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "eval.h"

/* The end of a text that is too long stays. */
static void
keep_end(glm_wbuf_t *ids, int64_t most)
{
    size_t  n = most > 0 ? (size_t) most * sizeof(int32_t) : 0;

    if (ids->n <= n) return;
    memmove(ids->p, ids->p + (ids->n - n), n);
    ids->n = n;
}

/* ---- multiple choice ---- */

/* Adds every choice to list; *total: slots they take after the context. */
static int
add_choices(glm_eval_t *e, const json_t *choices, glm_wbuf_t *list, int64_t *total)
{
    int            rc = 0, single = 1;
    size_t         i, n = json_array_size(choices);
    glm_wbuf_t     ids = {0};
    glm_choice_t   c = { .kind = GLM_SEC_IDS };

    *total = 0;
    for (i = 0; i < n && rc == 0; i++) {
        ids.n = 0;
        rc = glm_eval_ids(e, json_array_get(choices, i), &ids);
        if (rc == 0 && ids.n == 0) rc = glm_fail(&e->err, GLM_EFORMAT, "choice %zu is empty", i);
        c.size = (uint32_t) ids.n;
        single &= ids.n == sizeof(int32_t);
        *total += (int64_t) (ids.n / sizeof(int32_t));
        glm_wbuf_put(list, &c, sizeof(c));
        glm_wbuf_put(list, ids.p, ids.n);
    }
    if (single) *total = 1;       /* they share one sop */
    if (rc == 0 && list->failed) rc = glm_fail(&e->err, GLM_ENOMEM, "no memory for choices");
    glm_wbuf_free(&ids);
    return rc;
}

/* A text without the mask gets it; no eos follows one inside of it: the original adds
 * none here. */
static int
score(glm_eval_t *e, glm_wbuf_t *text, const glm_wbuf_t *choices, glm_answer_t *a)
{
    const glm_sec_sampling_t  sampling = { .size = sizeof(sampling), .prompt_logprobs = -1 };
    glm_client_submit_t       s = {
        .m = { .op = GLM_SUBMIT_SCORE, .mode = (uint8_t) e->o->unidirectional,
               .flags = (e->o->gmask ? GLM_F_GMASK : 0)
                        | (glm_eval_has(text, e->mask) ? 0 : GLM_F_ADD_SPECIAL) },
    };

    glm_wire_section(&s.sections, GLM_SEC_SAMPLING, &sampling, sizeof(sampling));
    glm_wire_section(&s.sections, GLM_SEC_IDS, text->p, text->n);
    glm_wire_section(&s.sections, GLM_SEC_CHOICES, choices->p, choices->n);
    return glm_eval_call(e, &s, a);
}

static size_t
best(const glm_answer_t *a)
{
    size_t  k = 0;

    for (size_t i = 1; i < a->nsum; i++)
        if (a->sum[i] > a->sum[k]) k = i;
    return k;
}

int
glm_eval_mul(glm_eval_t *e, const json_t *item, glm_eval_result_t *r)
{
    int            rc;
    int64_t        total;
    glm_wbuf_t     text = {0}, list = {0};
    glm_answer_t   a = {0};
    const json_t  *label = json_object_get(item, "label");
    const json_t  *choices = glm_eval_list(item, "choices");

    if (!json_is_integer(label)) return glm_fail(&e->err, GLM_EFORMAT, "\"label\" is missing");
    if (choices == NULL || json_array_size(choices) == 0) {
        return glm_fail(&e->err, GLM_EFORMAT, "\"choices_pretokenized\" is missing");
    }
    rc = glm_eval_input(e, item, "inputs", &text);
    if (rc == 0) rc = add_choices(e, choices, &list, &total);
    if (rc == 0) {
        keep_end(&text, e->max_seq - total - 2);
        rc = score(e, &text, &list, &a);
    }
    if (rc == 0 && a.nsum != json_array_size(choices)) {
        rc = glm_fail(&e->err, GLM_EFORMAT, "the engine scored %zu choices of %zu", a.nsum,
                      json_array_size(choices));
    }
    if (rc == 0) {
        r->score[1] = (double) best(&a);
        r->score[0] = r->score[1] == (double) json_integer_value(label);
    }
    glm_wbuf_free(&text);
    glm_wbuf_free(&list);
    glm_answer_free(&a);
    return rc;
}

/* ---- generation ---- */

/* As above, no eos. */
static int
generate(glm_eval_t *e, glm_wbuf_t *text, glm_answer_t *a)
{
    const glm_cli_t     *c = e->o->cli;
    glm_sec_sampling_t   sampling = c->sampling;
    glm_client_submit_t  s = {
        .m = { .op = GLM_SUBMIT_GENERATE, .mode = (uint8_t) e->o->unidirectional, .n = 1,
               .max_tokens = e->o->max_gen_length },
    };

    sampling.temperature = 0;
    sampling.flags = 0;
    if (!e->o->unidirectional && !glm_eval_has(text, e->mask)) {
        glm_wbuf_put(text, &e->mask, sizeof(e->mask));
    }
    glm_wire_section(&s.sections, GLM_SEC_SAMPLING, &sampling, sizeof(sampling));
    glm_wire_section(&s.sections, GLM_SEC_IDS, text->p, text->n);
    return glm_eval_call(e, &s, a);
}

/* The text that ids print, or that a target prints once it was tokenized. */
static int
printed(glm_eval_t *e, const int32_t *ids, size_t n, char **out)
{
    glm_answer_t  a = {0};
    int           rc = glm_eval_detokenize(e, ids, n, &a);

    *out = rc == 0 ? calloc(1, a.text.n + 1) : NULL;
    if (rc == 0 && *out == NULL) rc = glm_fail(&e->err, GLM_ENOMEM, "no memory for a text");
    if (rc == 0 && a.text.n) memcpy(*out, a.text.p, a.text.n);
    glm_answer_free(&a);
    return rc;
}

/* The best match of all targets. */
static int
compare(glm_eval_t *e, const json_t *targets, const char *said, glm_eval_result_t *r)
{
    int          rc = 0;
    char        *want;
    glm_wbuf_t   ids = {0};

    for (size_t i = 0; i < json_array_size(targets) && rc == 0; i++) {
        ids.n = 0;
        rc = glm_eval_ids(e, json_array_get(targets, i), &ids);
        if (rc != 0) break;
        rc = printed(e, (const int32_t *) (const void *) ids.p, ids.n / sizeof(int32_t), &want);
        if (rc != 0) break;
        r->score[0] = fmax(r->score[0], glm_eval_em(said, want));
        r->score[1] = fmax(r->score[1], glm_eval_f1(said, want));
        free(want);
    }
    glm_wbuf_free(&ids);
    return rc;
}

int
glm_eval_gen(glm_eval_t *e, const json_t *item, glm_eval_result_t *r)
{
    int            rc;
    char          *said = NULL;
    glm_wbuf_t     text = {0};
    glm_answer_t   a = {0};
    const json_t  *targets = glm_eval_list(item, "targets");

    if (targets == NULL) {
        return glm_fail(&e->err, GLM_EFORMAT, "\"targets_pretokenized\" is missing");
    }
    rc = glm_eval_input(e, item, "inputs", &text);
    if (rc == 0) {
        keep_end(&text, e->max_seq - e->o->max_gen_length - 2);
        rc = generate(e, &text, &a);
    }
    if (rc == 0) rc = printed(e, (const int32_t *) (const void *) a.ids.p, a.nkept, &said);
    r->score[0] = r->score[1] = 0;
    if (rc == 0) rc = compare(e, targets, said, r);
    free(said);
    glm_wbuf_free(&text);
    glm_answer_free(&a);
    return rc;
}
