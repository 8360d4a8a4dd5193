/*
 * scheduler_prefill: contexts, some layers at a time, so that nobody's next token waits for
 * more than a slice.  Where a pass costs the same however few tokens it has, short contexts
 * that wait at the same time share one.
 */
#include "scheduler.h"

#define SLICE_NS        20e6       /* a context may hold the streams up this long */
#define FIRST_COST      20000.0    /* ns a token x layer, before one was measured */

int64_t
glm_sched_budget(const glm_sched_t *s)
{
    return s->budget > 0 ? s->budget
                         : (int64_t) (SLICE_NS / (s->cost > 0 ? s->cost : FIRST_COST)) + 1;
}

int
glm_sched_has_context(const glm_sched_t *s, const glm_job_t *j)
{
    return j->prompt.ncontext > 0 && j->layer < s->cfg->layers;
}

int
glm_sched_contexts_wait(const glm_sched_t *s)
{
    const glm_job_t  *j;

    if (s->prefill.n > 0) return 1;
    TAILQ_FOREACH(j, &s->run, link)
        if (glm_sched_has_context(s, j)) return 1;
    return 0;
}

/* The oldest one, and later ones that fit what it leaves of a pass. */
static void
begin_contexts(glm_sched_t *s)
{
    glm_prefill_t  *p = &s->prefill;
    int32_t         together = glm_model_together(s->model);
    glm_job_t      *j;

    p->tokens = p->layer = 0;
    TAILQ_FOREACH(j, &s->run, link) {
        int32_t  n = j->prompt.ncontext;

        if (p->n == GLM_SCHED_CONTEXTS || (p->n > 0 && p->tokens >= together)) return;
        if (!glm_sched_has_context(s, j) || (p->n > 0 && n > together - p->tokens)) continue;
        p->job[p->n] = j;
        p->context[p->n++] = (glm_context_t) { j->prompt.ids, j->lane[0].table.page, n };
        p->tokens += n;
    }
}

/* Its tokens stay in the pass, and are nobody's. */
void
glm_sched_forget_context(glm_sched_t *s, const glm_job_t *j)
{
    glm_prefill_t  *p = &s->prefill;
    int32_t         i, live = 0;

    for (i = 0; i < p->n && p->job[i] != j; i++) { /* find it */ }
    if (i == p->n) return;
    p->job[i] = NULL;
    p->context[i].pages = NULL;
    for (i = 0; i < p->n; i++) live += p->job[i] != NULL;
    if (live == 0) p->n = 0;
}

/* What a layer of them costs, in tokens. */
static int64_t
weight(const glm_sched_t *s)
{
    int32_t  together = glm_model_together(s->model);

    return s->prefill.tokens > together ? s->prefill.tokens : together;
}

static int
compute_slice(glm_sched_t *s, int last)
{
    glm_prefill_t  *p = &s->prefill;
    uint64_t        t = glm_now();
    double          cost;
    int             rc = glm_model_prefill_all(s->model, p->context, p->n, p->layer, last);

    if (rc != 0) return rc;
    cost = (double) (glm_now() - t) / ((double) weight(s) * (last - p->layer));
    s->cost = s->cost > 0 ? 0.8 * s->cost + 0.2 * cost : cost;

    p->layer = last;
    for (int32_t i = 0; i < p->n; i++) {
        glm_job_t  *j = p->job[i];

        if (j == NULL) continue;
        j->layer = last;
        if (last < s->cfg->layers) continue;
        j->nready = j->prompt.ncontext;
        s->st.prefills++;
    }
    if (last == s->cfg->layers) p->n = 0;
    return 0;
}

static void
fail_contexts(glm_sched_t *s)
{
    glm_prefill_t  *p = &s->prefill;

    for (int32_t i = 0; i < p->n; ) {
        if (p->job[i] == NULL) i++;
        else glm_sched_fail_job(s, p->job[i], "Computing the prompt failed.");     /* is forgotten */
    }
}

int
glm_sched_contexts(glm_sched_t *s)
{
    glm_prefill_t  *p = &s->prefill;
    int64_t         left = glm_sched_budget(s);
    int             worked = 0;

    while (left > 0 && glm_sched_contexts_wait(s)) {
        int64_t  n;
        int      last;

        if (p->n == 0) begin_contexts(s);
        n = left / weight(s);
        /* Further contexts that do not fit what is left wait for their turn, and for others
         * that come until then. */
        if (n < 1 && worked) {
            if (p->layer == 0) p->n = 0;
            break;
        }
        if (n < 1) n = 1;
        last = n < s->cfg->layers - p->layer ? p->layer + (int) n : s->cfg->layers;
        left -= (last - p->layer) * weight(s);
        worked = 1;
        if (compute_slice(s, last) != 0) fail_contexts(s);
    }
    return worked;
}
