/*
 * score: choices after a prompt with their log-probabilities, best first.
 */
#include <stdlib.h>
#include <string.h>

#include "eval.h"

static int
add_choice(const glm_args_t *a, const char *s, glm_wbuf_t *list)
{
    glm_wbuf_t     ids = {0};
    glm_choice_t   c = { .kind = GLM_SEC_PLAIN, .size = (uint32_t) strlen(s) };

    if (a->cli.ids && glm_cli_ids(s, strlen(s), &ids) != 0) {
        glm_wbuf_free(&ids);
        return glm_cli_wrong("--ids: a choice must be numbers");
    }
    if (a->cli.ids) c = (glm_choice_t) { .kind = GLM_SEC_IDS, .size = (uint32_t) ids.n };
    glm_wbuf_put(list, &c, sizeof(c));
    glm_wbuf_put(list, a->cli.ids ? (const void *) ids.p : s, c.size);
    glm_wbuf_pad(list, 4);
    list->failed |= ids.failed;
    glm_wbuf_free(&ids);
    return GLM_CLI_OK;
}

static int
build(const glm_args_t *a, glm_client_submit_t *s)
{
    int                       rc = GLM_CLI_OK;
    glm_wbuf_t                list = {0};
    const glm_sec_sampling_t  sampling = { .size = sizeof(sampling), .prompt_logprobs = -1 };

    s->m.op = GLM_SUBMIT_SCORE;
    s->m.mode = (uint8_t) a->cli.mode;
    s->m.flags = (a->cli.no_special ? 0 : GLM_F_ADD_SPECIAL) | (a->eval.gmask ? GLM_F_GMASK : 0);
    glm_wire_section(&s->sections, GLM_SEC_SAMPLING, &sampling, sizeof(sampling));
    for (int i = 0; i < a->nchoice && rc == GLM_CLI_OK; i++) {
        rc = add_choice(a, a->choice[i], &list);
    }
    glm_wire_section(&s->sections, GLM_SEC_CHOICES, list.p, list.n);
    s->sections.failed |= list.failed;
    glm_wbuf_free(&list);
    return rc == GLM_CLI_OK ? glm_cli_prompt(&a->cli, s) : rc;
}

/* ---- output ---- */

typedef struct { int choice; double sum; } scored_t;

static int
by_score(const void *a, const void *b)
{
    const scored_t  *x = a, *y = b;

    if (x->sum != y->sum) return x->sum < y->sum ? 1 : -1;
    return x->choice - y->choice;
}

static void
print_json(const glm_args_t *a, const glm_answer_t *ans)
{
    size_t  best = 0;

    fputs("{\"choices\": [", stdout);
    for (size_t i = 0; i < ans->nsum; i++) {
        if (ans->sum[i] > ans->sum[best]) best = i;
        printf("%s{\"index\": %zu, \"text\": ", i ? ", " : "", i);
        glm_json_string(stdout, a->choice[i], strlen(a->choice[i]));
        printf(", \"logprob\": %.9g}", ans->sum[i]);
    }
    printf("], \"best\": %zu}\n", best);
}

static int
print_table(const glm_args_t *a, const glm_answer_t *ans)
{
    scored_t  *s = calloc(ans->nsum, sizeof(*s));

    if (s == NULL) return glm_cli_fail("no memory");
    for (size_t i = 0; i < ans->nsum; i++) s[i] = (scored_t) { (int) i, ans->sum[i] };
    qsort(s, ans->nsum, sizeof(*s), by_score);
    for (size_t i = 0; i < ans->nsum; i++) {
        printf("%12.6f  %s\n", s[i].sum, a->choice[s[i].choice]);
    }
    free(s);
    return GLM_CLI_OK;
}

static int
print(const glm_args_t *a, const glm_answer_t *ans)
{
    int  rc = GLM_CLI_OK;

    if (ans->nsum != (size_t) a->nchoice) return glm_cli_fail("the engine left choices out");
    if (a->cli.json) print_json(a, ans);
    else rc = print_table(a, ans);
    return rc == GLM_CLI_OK && (fflush(stdout) != 0 || ferror(stdout)) ? GLM_CLI_FAIL : rc;
}

int
glm_cli_score(const glm_args_t *a)
{
    int                  rc;
    glm_link_t           l;
    glm_answer_t         ans = {0};
    glm_client_submit_t  s = {0};
    glm_eval_t           e = {0};

    rc = build(a, &s);
    if (rc == GLM_CLI_OK) rc = glm_cli_open(&l, &a->cli);
    if (rc != GLM_CLI_OK) {
        glm_wbuf_free(&s.sections);
        return rc;
    }
    e.client = l.client;
    if (glm_eval_call(&e, &s, &ans) != 0) rc = glm_cli_fail(e.err.text);
    else rc = print(a, &ans);
    glm_answer_free(&ans);
    glm_cli_close(&l);
    return rc;
}
