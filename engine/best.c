/*
 * best: see best.h.
 */
#include "best.h"

#include <stdlib.h>
#include <string.h>

/* A token as it is packed: this, its best log-probabilities, its text. */
typedef struct {
    int32_t   id, ntop;
    float     logprob;
    uint32_t  offset, ntext;
} packed_t;

int
glm_best_make(glm_best_t **out, int32_t of, int32_t n)
{
    glm_best_t  *b = calloc(1, sizeof(*b));

    *out = b;
    if (b == NULL) return GLM_ENOMEM;
    b->of = of;
    b->n = n;
    b->take = calloc((size_t) of, sizeof(glm_take_t));
    if (b->take != NULL) return 0;
    free(b);
    *out = NULL;
    return GLM_ENOMEM;
}

void
glm_best_free(glm_best_t *b)
{
    if (b == NULL) return;
    for (int32_t i = 0; i < b->of; i++) glm_text_free(&b->take[i].said);
    free(b->take);
    free(b);
}

int
glm_best_token(glm_best_t *b, const glm_token_out_t *t)
{
    glm_take_t           *k = &b->take[t->choice];
    const glm_sampled_t  *s = t->sampled;
    packed_t              p = { .id = t->id, .ntop = s->ntop, .logprob = s->logprob,
                                .offset = t->offset, .ntext = (uint32_t) t->ntext };

    k->sum += (double) s->logprob;
    if (glm_text_add(&k->said, (const char *) &p, sizeof(p)) != 0) return GLM_ENOMEM;
    if (glm_text_add(&k->said, (const char *) s->top, (size_t) s->ntop * sizeof(s->top[0])) != 0)
        return GLM_ENOMEM;
    return glm_text_add(&k->said, t->text, t->ntext);
}

static double
score(const glm_take_t *k)
{
    return k->fin.ntokens > 0 ? k->sum / k->fin.ntokens : 0;
}

/* The kept one that comes first (worst 0) or last (1) in the order of telling. */
static int32_t
extreme(const glm_best_t *b, int worst)
{
    int32_t  at = -1;

    for (int32_t i = 0; i < b->of; i++) {
        if (!b->take[i].finished) continue;
        if (at < 0 || (worst ? score(&b->take[i]) <= score(&b->take[at])
                             : score(&b->take[i]) > score(&b->take[at])))
            at = i;
    }
    return at;
}

static void
forget(glm_best_t *b, int32_t i)
{
    b->take[i].finished = 0;
    b->nfinished--;
    glm_text_free(&b->take[i].said);
}

void
glm_best_finish(glm_best_t *b, const glm_finish_out_t *f)
{
    b->take[f->choice].fin = *f;
    b->take[f->choice].finished = 1;
    if (++b->nfinished > b->n) forget(b, extreme(b, 1));
}

static void
tell_tokens(const glm_take_t *k, glm_req_t *r, int32_t choice)
{
    glm_sampled_t  s;
    packed_t       p;

    for (size_t at = 0; at < k->said.n; at += p.ntext) {
        glm_token_out_t  t = { .choice = choice, .text = "" };

        memcpy(&p, k->said.s + at, sizeof(p));
        at += sizeof(p);
        s.id = t.id = p.id;
        s.logprob = p.logprob;
        s.ntop = p.ntop;
        memcpy(s.top, k->said.s + at, (size_t) p.ntop * sizeof(s.top[0]));
        at += (size_t) p.ntop * sizeof(s.top[0]);

        t.offset = p.offset;
        t.ntext = p.ntext;
        if (p.ntext > 0) t.text = k->said.s + at;
        if (r->sample.nlogprobs >= 0) t.sampled = &s;
        r->sink->token(r, &t);
    }
}

void
glm_best_tell(glm_best_t *b, glm_req_t *r)
{
    for (int32_t choice = 0; b->nfinished > 0; choice++) {
        int32_t      i = extreme(b, 0);
        glm_take_t  *k = &b->take[i];

        k->fin.choice = choice;
        tell_tokens(k, r, choice);
        r->sink->finish(r, &k->fin);
        forget(b, i);
    }
}
