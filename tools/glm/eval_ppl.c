/*
 * eval_ppl: a window of a text, as the original's LanguageModelTask cuts it: some
 * tokens are given, the log-probabilities of those behind them are added up.
 */
#include "eval.h"

/* Positions count on, whatever the mask: see section 6 of the reference. */
static int
window(glm_eval_t *e, const int32_t *ids, const struct glm_eval_window_s *w, glm_answer_t *a)
{
    const glm_sec_sampling_t  sampling = { .size = sizeof(sampling), .prompt_logprobs = -1 };
    size_t                    size = (w->end - w->prompt) * sizeof(int32_t);
    glm_choice_t              c = { .kind = GLM_SEC_IDS, .size = (uint32_t) size };
    glm_wbuf_t                list = {0};
    glm_client_submit_t       s = {
        .m = { .op = GLM_SUBMIT_SCORE,
               .flags = GLM_F_ADD_SPECIAL | GLM_F_COUNT_POSITIONS
                        | (e->o->gmask ? GLM_F_GMASK : 0) },
    };

    glm_wire_section(&s.sections, GLM_SEC_SAMPLING, &sampling, sizeof(sampling));
    if (w->prompt > w->from) {
        glm_wire_section(&s.sections, GLM_SEC_IDS, ids + w->from,
                         (w->prompt - w->from) * sizeof(*ids));
    }
    glm_wbuf_put(&list, &c, sizeof(c));
    glm_wbuf_put(&list, ids + w->prompt, size);
    glm_wire_section(&s.sections, GLM_SEC_CHOICES, list.p, list.n);
    s.sections.failed |= list.failed;
    glm_wbuf_free(&list);
    return glm_eval_call(e, &s, a);
}

int
glm_eval_ppl(glm_eval_t *e, const glm_eval_file_t *f, size_t i, glm_eval_result_t *r)
{
    glm_answer_t  a = {0};
    int           rc = window(e, f->ids, &f->window[i], &a);

    if (rc == 0 && a.nsum != 1) rc = glm_fail(&e->err, GLM_EFORMAT, "the engine gave no score");
    if (rc == 0) {
        r->score[0] = -a.sum[0];
        r->score[1] = (double) (f->window[i].end - f->window[i].prompt);
    }
    glm_answer_free(&a);
    return rc;
}
