/*
 * score: see score.h.
 */
#include "score.h"

#include <stdlib.h>
#include <string.h>

/* ---- making ---- */

static int
check_count(const glm_req_t *r, glm_refusal_t *no)
{
    if (r->nchoice >= 1 && r->nchoice <= GLM_MAX_SCORED) return 0;
    glm_refuse(no, 400, "", "choices", "\"choices\" must be a list of 1 to %d, it has %zu.",
               GLM_MAX_SCORED, r->nchoice);
    return glm_refuse_limit(no, r->nchoice == 0 ? 1 : GLM_MAX_SCORED, (int64_t) r->nchoice);
}

/* Ids of a choice: in the vocabulary, and none that the model cannot say. */
static int
check_ids(const glm_segment_t *seg, size_t k, const glm_vocab_t *v, const uint64_t *allow,
    glm_refusal_t *no)
{
    if (glm_prompt_check_ids(seg->ids, seg->n, v, "choices", no) != 0) return GLM_EINVAL;
    for (size_t i = 0; i < seg->n && allow != NULL; i++) {
        int32_t  id = seg->ids[i];

        if (allow[id / 64] >> (id % 64) & 1) continue;
        glm_refuse(no, 400, "", "choices", "Token id %d at index %zu of choice %zu is no text: masks "
                   "and other control tokens cannot be scored.", id, i, k);
        return glm_refuse_limit(no, 0, id);
    }
    return 0;
}

static int
encode_choice(glm_ids_t *out, const glm_segment_t *seg, size_t k, const glm_vocab_t *v,
    const uint64_t *allow, glm_refusal_t *no)
{
    size_t  before = out->n;

    if (seg->kind == GLM_SEG_IDS) {
        if (check_ids(seg, k, v, allow, no) != 0) return GLM_EINVAL;
        for (size_t i = 0; i < seg->n; i++)
            if (glm_ids_push(out, seg->ids[i]) != 0) return glm_refuse_memory(no);

    } else if (v->tok == NULL) {
        return glm_refuse(no, 400, "", "choices", "The model \"%s\" has no tokenizer: its choices are "
                          "token ids.", v->cfg->name);
    } else if (glm_encode(v->tok, seg->text, seg->n, out) != 0) {
        return glm_refuse_memory(no);
    }
    if (out->n > before) return 0;
    return glm_refuse(no, 400, "", "choices", "Choice %zu is empty.", k);
}

static int32_t
length(const glm_score_t *c, int32_t choice)
{
    return (int32_t) (c->at[choice + 1] - c->at[choice]);
}

static int
encode(glm_score_t *c, const uint64_t *allow, const glm_req_t *r, glm_refusal_t *no)
{
    glm_ids_t  ids = {0};
    int        rc = 0;

    for (size_t k = 0; k < r->nchoice && rc == 0; k++) {
        rc = encode_choice(&ids, &r->choice[k], k, &c->vocab, allow, no);
        c->at[k + 1] = ids.n;
    }
    c->ids = ids.id;
    for (int32_t k = 0; k < c->nchoices && rc == 0; k++)
        if (length(c, k) > c->longest) c->longest = length(c, k);
    return rc;
}

/* Choices of one id, `share` to a run, before the others. */
static void
plan(glm_score_t *c, int32_t share)
{
    int32_t  n = 0;

    for (int32_t k = 0; k < c->nchoices; k++) {
        if (length(c, k) > 1) continue;
        if (n % share == 0) c->run[c->nruns++] = (glm_run_t) { .first = n };
        c->run[c->nruns - 1].n++;
        c->single[n] = c->ids[c->at[k]];
        c->order[n++] = k;
    }
    c->nrows = c->nruns;
    for (int32_t k = 0; k < c->nchoices; k++) {
        if (length(c, k) == 1) continue;
        c->run[c->nruns++] = (glm_run_t) { .first = n, .n = 1 };
        c->nrows += length(c, k);
        c->order[n++] = k;
    }
}

int
glm_score_make(glm_score_t **out, const glm_vocab_t *v, const uint64_t *allow,
    const glm_req_t *r, glm_refusal_t *no)
{
    size_t        n = r->nchoice;
    glm_score_t  *c;

    *out = NULL;
    if (check_count(r, no) != 0) return GLM_EINVAL;
    c = *out = calloc(1, sizeof(*c));
    if (c == NULL) return glm_refuse_memory(no);
    c->vocab = *v;
    c->nchoices = (int32_t) n;
    c->at = calloc(n + 1, sizeof(*c->at));
    c->order = malloc(n * sizeof(*c->order));
    c->single = malloc(n * sizeof(*c->single));
    c->told = calloc(n, sizeof(*c->told));
    c->run = malloc(n * sizeof(*c->run));
    if (c->at == NULL || c->order == NULL || c->single == NULL || c->told == NULL
        || c->run == NULL)
        return glm_refuse_memory(no);
    if (encode(c, allow, r, no) != 0) return GLM_EINVAL;
    plan(c, r->sample.nlogprobs > 0 || r->nscore_id > 0 ? 1 : GLM_MAX_LOGPROBS);
    return 0;
}

void
glm_score_free(glm_score_t *c)
{
    if (c == NULL) return;
    free(c->ids);
    free(c->at);
    free(c->order);
    free(c->single);
    free(c->told);
    free(c->run);
    free(c->lane);
    glm_text_free(&c->text);
    free(c);
}

int
glm_score_fit(const glm_score_t *c, glm_prompt_t *p, glm_refusal_t *no)
{
    int32_t  k = 0, room = p->max_tokens;

    p->max_tokens = c->longest;
    if (c->longest <= room) return 0;
    while (length(c, k) <= room) k++;
    glm_refuse(no, 400, "context_length_exceeded", "choices", "Choice %d has %d tokens, and this "
               "model's maximum context length of %d tokens leaves room for %d behind the %d in "
               "the prompt.", k, length(c, k), c->vocab.cfg->max_seq, room, p->prompt_tokens);
    return glm_refuse_limit(no, room, length(c, k));
}

int32_t
glm_score_lanes(const glm_score_t *c, int32_t max_rows)
{
    int64_t  n = 1 + (int64_t) max_rows * c->nruns / c->nrows;

    return n < c->nruns ? (int32_t) n : c->nruns;
}

int
glm_score_set_lanes(glm_score_t *c, int32_t n)
{
    c->lane = calloc((size_t) n, sizeof(*c->lane));
    if (c->lane == NULL) return GLM_ENOMEM;
    c->nlanes = n;
    for (int32_t i = 0; i < n; i++) c->lane[i].run = -1;
    return 0;
}

/* ---- rows ---- */

int
glm_score_start(glm_score_t *c, int32_t lane)
{
    glm_scoring_t  *l = &c->lane[lane];

    if (c->next == c->nruns) return 0;
    *l = (glm_scoring_t) { .run = c->next++ };
    if (c->vocab.tok != NULL) glm_detok_init(&l->detok, c->vocab.tok);
    return 1;
}

int
glm_score_row(glm_score_t *c, int32_t lane, const glm_req_t *r, glm_scored_row_t *out)
{
    glm_scoring_t    *l = &c->lane[lane];
    const glm_run_t  *run;
    const int32_t    *ids;

    if (l->run < 0) return 0;
    run = &c->run[l->run];
    if (l->nfed == length(c, c->order[run->first])) return 0;
    ids = c->ids + c->at[c->order[run->first]];
    *out = (glm_scored_row_t) {
        .token = l->nfed > 0 ? ids[l->nfed - 1] : -1, .slot = l->nfed,
        .sample = { .nlogprobs = r->sample.nlogprobs > 0 ? r->sample.nlogprobs : 0,
                    .force = ids[l->nfed] + 1, .score = r->score_id,
                    .nscore = (int32_t) r->nscore_id }
    };
    if (run->n > 1) {
        out->sample.score = c->single + run->first;
        out->sample.nscore = run->n;
    }
    l->nfed++;
    return 1;
}

/* ---- what the owner hears ---- */

static int
tell_id(glm_score_t *c, glm_scoring_t *l, int32_t choice, const glm_sampled_t *o, glm_req_t *r)
{
    glm_token_out_t  t = { .choice = choice, .id = o->id, .text = "", .offset = l->nchars,
                           .sampled = o };

    c->text.n = 0;
    if (c->vocab.tok != NULL && glm_detok_push(&l->detok, o->id, &c->text) != 0) return GLM_ENOMEM;
    for (size_t i = 0; i < c->text.n; i++) l->nchars += (c->text.s[i] & 0xC0) != 0x80;
    if (c->text.n > 0) t.text = c->text.s;
    t.ntext = c->text.n;
    l->sum += (double) o->logprob;
    c->told[choice]++;
    c->ntold++;
    r->sink->token(r, &t);
    return 0;
}

static void
tell_finish(glm_req_t *r, int32_t choice, int32_t n, glm_finish_t reason, double sum)
{
    glm_finish_out_t  f = {
        .choice = choice, .reason = reason, .stop_id = -1, .stop_index = -1, .ntokens = n,
        .nkept = n, .score = (float) sum
    };

    r->sink->finish(r, &f);
}

/* One row's word on several choices: each is told as if it were alone. */
static int
take_shared(glm_score_t *c, glm_scoring_t *l, const glm_sampled_t *o, glm_req_t *r)
{
    const glm_run_t  *run = &c->run[l->run];

    for (int32_t i = run->first; i < run->first + run->n; i++) {
        glm_sampled_t  one = { .id = c->single[i] };
        int32_t        k = 0;

        while (o->top[k].id != one.id) k++;
        one.logprob = o->top[k].logprob;
        l->sum = 0;
        l->nchars = 0;
        if (c->vocab.tok != NULL) glm_detok_init(&l->detok, c->vocab.tok);
        if (tell_id(c, l, c->order[i], &one, r) != 0) return GLM_ENOMEM;
        tell_finish(r, c->order[i], 1, GLM_FINISH_LENGTH, l->sum);
    }
    return run->n;
}

int
glm_score_take(glm_score_t *c, int32_t lane, int32_t slot, const glm_sampled_t *o,
    glm_req_t *r)
{
    glm_scoring_t    *l = &c->lane[lane];
    const glm_run_t  *run = &c->run[l->run];
    int32_t           choice = c->order[run->first], n = 1;

    if (run->n > 1) {
        n = take_shared(c, l, o, r);
    } else {
        if (tell_id(c, l, choice, o, r) != 0) return GLM_ENOMEM;
        if (slot + 1 < length(c, choice)) return 0;
        tell_finish(r, choice, length(c, choice), GLM_FINISH_LENGTH, l->sum);
    }
    l->run = -1;
    return n;
}

void
glm_score_finish(const glm_score_t *c, glm_req_t *r, glm_finish_t reason)
{
    for (int32_t k = 0; k < c->nchoices; k++)
        if (c->told[k] < length(c, k)) tell_finish(r, k, c->told[k], reason, 0);
}
