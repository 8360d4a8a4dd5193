/*
 * job: makes jobs: how many lanes, how many pages, the prompt's text.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "beam.h"

static int
check_min_tokens(const glm_job_t *j, glm_refusal_t *no)
{
    int32_t  max = j->prompt.max_tokens;

    if (j->r->min_tokens <= max) return 0;
    glm_refuse(no, 400, "", "min_tokens", "\"min_tokens\" is %d, and a choice may have %d tokens.",
               j->r->min_tokens, max);
    return glm_refuse_limit(no, max, j->r->min_tokens);
}

static int
refuse_beams(const glm_job_t *j, int64_t limit, int64_t value, const char *of, glm_refusal_t *no)
{
    glm_refuse(no, 400, "", "num_beams", "%d beams of this request need room for %lld %s, and the "
               "server has %lld.", j->r->beams, (long long) value, of, (long long) limit);
    return glm_refuse_limit(no, limit, value);
}

/* Beams run all at once. */
static int
size_beams(glm_job_t *j, const glm_limits_t *lim, int32_t mine, int32_t extra, glm_refusal_t *no)
{
    int64_t  pages = mine + (int64_t) (j->r->beams - 1) * extra;

    if (j->r->beams > lim->max_seqs)
        return refuse_beams(j, lim->max_seqs, j->r->beams, "choices at a time", no);
    if (pages > lim->kv_pages)
        return refuse_beams(j, (int64_t) lim->kv_pages * GLM_KV_PAGE, pages * GLM_KV_PAGE,
                            "tokens in the KV cache", no);
    j->width = j->r->beams;
    j->npages = (int32_t) pages;
    return 0;
}

/* As many as could be of use. */
static int32_t
most_lanes(const glm_job_t *j, const glm_limits_t *lim)
{
    int32_t  n;

    if (j->score != NULL) return glm_score_lanes(j->score, lim->max_rows);
    n = j->nchoices - j->next_choice;
    return n < lim->max_seqs ? n : lim->max_seqs;
}

static int
refuse_room(const glm_job_t *j, int64_t slots, const glm_limits_t *lim, glm_refusal_t *no)
{
    glm_refuse(no, 400, "", j->score != NULL ? "choices" : "max_tokens", "This request needs room "
               "for %lld tokens in the KV cache, which holds %lld.", (long long) slots,
               (long long) lim->kv_pages * GLM_KV_PAGE);
    return glm_refuse_limit(no, (int64_t) lim->kv_pages * GLM_KV_PAGE, slots);
}

/* The last round has the longest context: when that fits, all do. */
static int
check_rounds(const glm_job_t *j, const glm_limits_t *lim, glm_refusal_t *no)
{
    int64_t  slots = j->nshared + (int64_t) j->infill->nblanks * j->prompt.max_tokens;

    if (j->infill->beams)
        slots += (int64_t) (j->r->beams - 1) * (j->prompt.max_tokens + 2 * GLM_KV_PAGE);
    return slots <= (int64_t) lim->kv_pages * GLM_KV_PAGE ? 0 : refuse_room(j, slots, lim, no);
}

/*
 * How many lanes, and how many pages for them.  As few lanes as it takes to fit
 * the cache: the other choices wait for one.
 */
static int
size_job(glm_job_t *j, const glm_limits_t *lim, glm_refusal_t *no)
{
    int32_t  mine, shared = j->nshared / GLM_KV_PAGE, extra, most = most_lanes(j, lim);
    int64_t  slots = (int64_t) j->nshared + j->prompt.max_tokens;

    if (j->prompt.max_tokens == 0 && glm_job_scored(j) >= j->nshared) return 0;

    mine = glm_kv_pages(slots);
    if (mine > lim->kv_pages) return refuse_room(j, slots, lim, no);
    if (j->infill != NULL && j->blank == 0 && check_rounds(j, lim, no) != 0) return GLM_EINVAL;
    if (j->prompt.max_tokens == 0) {        /* only the prompt is computed */
        j->width = 1;
        j->npages = mine;
        return 0;
    }
    extra = mine - shared;                  /* never 0: the first token has a slot */
    if (j->r->beams > 1) return size_beams(j, lim, mine, extra, no);
    j->width = 1 + (lim->kv_pages - mine) / extra;
    if (j->width > most) j->width = most;
    j->npages = mine + (j->width - 1) * extra;
    return 0;
}

static int
make_lane(glm_job_t *j, glm_seq_t *q, const glm_limits_t *lim)
{
    q->job = j;
    if (glm_table_init(&q->table, glm_kv_pages((int64_t) j->nshared + j->prompt.max_tokens)) != 0)
        return GLM_ENOMEM;
    if (j->score != NULL) return 0;

    q->sample = j->r->sample;
    q->sample.blank = (uint32_t) j->blank;
    q->sample.score = j->r->score_id;
    q->sample.nscore = (int32_t) j->r->nscore_id;
    if (j->best != NULL && q->sample.nlogprobs < 0) q->sample.nlogprobs = 0;
    q->sample.allow = lim->allow;
    if (glm_ruled_init(&q->ruled, j->rules) != 0 || glm_stopper_init(&q->stopper, j->stops) != 0)
        return GLM_ENOMEM;

    if (j->stops == NULL || j->prompt.max_tokens == 0) return 0;
    q->start = malloc((size_t) j->prompt.max_tokens * sizeof(uint64_t));
    return q->start != NULL ? 0 : GLM_ENOMEM;
}

static int
make_lanes(glm_job_t *j, const glm_limits_t *lim)
{
    const glm_req_t  *r = j->r;

    /* Without a tokenizer there is no text that a stop could be found in. */
    if (lim->vocab.tok != NULL && j->score == NULL
        && glm_stops_make(&j->stops, r->stop, r->nstop, r->include_stop) != 0)
        return GLM_ENOMEM;

    if (j->score != NULL && glm_score_set_lanes(j->score, j->width) != 0) return GLM_ENOMEM;
    if (r->best_of > r->n && glm_best_make(&j->best, j->nchoices, r->n) != 0) return GLM_ENOMEM;

    j->lane = calloc((size_t) (j->width > 0 ? j->width : 1), sizeof(glm_seq_t));
    if (j->lane == NULL) return GLM_ENOMEM;
    for (int32_t i = 0; i < j->width; i++)
        if (make_lane(j, &j->lane[i], lim) != 0) return GLM_ENOMEM;
    return r->beams > 1 && j->prompt.max_tokens > 0 ? glm_beam_make(j) : 0;
}

/* Decodes the user's own ids as a stream, so that offsets and text fit. */
static int
decode_prompt(glm_job_t *j)
{
    const glm_req_t  *r = j->r;
    const int32_t    *own = j->prompt.ids + j->prompt.own;

    if (r->want_prompt_logprobs) {
        j->offset = calloc((size_t) j->prompt.nown, sizeof(uint32_t));
        if (j->offset == NULL) return GLM_ENOMEM;
    }
    if (j->vocab.tok == NULL || !(r->want_prompt_logprobs || r->want_text || r->echo)) return 0;

    glm_detok_init(&j->behind, j->vocab.tok);
    j->behind.flags = r->special_text ? GLM_DECODE_ALL_NAMES : GLM_DECODE_MASK_NAMES;
    for (int32_t i = 0; i < j->prompt.nown; i++) {
        size_t  from = j->text.n;

        if (j->offset != NULL) j->offset[i] = j->nchars;
        if (glm_detok_push(&j->behind, own[i], &j->text) != 0) return GLM_ENOMEM;
        for (; from < j->text.n; from++) j->nchars += (j->text.s[from] & 0xC0) != 0x80;
    }
    return 0;
}

/* A drawn seed fits 53 bits, so that a client can read it from JSON and send it. */
static int
draw_seed(glm_req_t *r)
{
    if (r->has_seed) return 0;
    if (getrandom(&r->sample.seed, sizeof(r->sample.seed), 0) != sizeof(r->sample.seed))
        return GLM_EIO;
    r->sample.seed >>= 11;
    return 0;
}

static glm_job_t *
new_job(glm_req_t *r, const glm_limits_t *lim)
{
    glm_job_t  *j = calloc(1, sizeof(*j));

    if (j == NULL) return NULL;
    j->r = r;
    j->vocab = lim->vocab;
    j->usage = &j->own;
    return j;
}

/* Which choices a round makes: its own, or of a search the best, in the end n. */
static void
set_round(glm_job_t *j, glm_infill_t *f, int32_t choice)
{
    j->infill = f;
    j->usage = &f->usage;
    j->blank = f->choice[choice].blank;
    if (f->beams) {
        j->nchoices = j->blank < f->nblanks - 1 ? 1 : f->nchoices;
    } else if (j->blank > 0) {
        j->next_choice = j->nfinished = choice;
        j->nchoices = choice + 1;
    }
}

static int
make_prompt(glm_job_t *j, const glm_limits_t *lim, glm_refusal_t *no)
{
    glm_req_t     *r = j->r;
    glm_infill_t  *f = NULL;

    j->nchoices = r->best_of > 0 ? r->best_of : r->n;
    if (glm_prompt_make(&j->prompt, &lim->vocab, r, 0, no) != 0) return GLM_EINVAL;
    if (check_min_tokens(j, no) != 0) return GLM_EINVAL;
    if (r->op != GLM_OP_INFILL) return 0;
    if (glm_infill_make(&f, r, lim, &j->prompt) != 0) {
        glm_infill_free(f);
        return glm_refuse_memory(no);
    }
    set_round(j, f, 0);
    return 0;
}

static int
make_score(glm_job_t *j, const glm_limits_t *lim, glm_refusal_t *no)
{
    const glm_req_t  *r = j->r;

    j->nchoices = (int32_t) r->nchoice;
    if (glm_score_make(&j->score, &lim->vocab, lim->allow, r, no) != 0) return GLM_EINVAL;
    if (glm_prompt_make(&j->prompt, &lim->vocab, r, j->score->longest, no) != 0)
        return GLM_EINVAL;
    return glm_score_fit(j->score, &j->prompt, no);
}

/* All but the prompt. */
static int
make_rest(glm_job_t *j, const glm_limits_t *lim, glm_refusal_t *no)
{
    j->nshared = j->prompt.n - 1;
    if (size_job(j, lim, no) != 0) return GLM_EINVAL;
    if (j->score == NULL && glm_rules_make(&j->rules, &lim->vocab, j->r, &j->prompt, no) != 0)
        return GLM_EINVAL;
    if (make_lanes(j, lim) != 0) return glm_refuse_memory(no);
    for (int32_t i = 0; i < j->width; i++) j->lane[i].sample.seed = j->r->sample.seed;
    return 0;
}

int
glm_job_make(glm_job_t **out, glm_req_t *r, const glm_limits_t *lim, glm_refusal_t *no)
{
    int         rc = glm_fields_check(r, &lim->vocab, no);
    glm_job_t  *j;

    *out = NULL;
    if (rc != 0) return rc;
    j = new_job(r, lim);
    if (j == NULL || draw_seed(r) != 0) rc = glm_refuse_memory(no);
    else rc = r->op == GLM_OP_SCORE ? make_score(j, lim, no) : make_prompt(j, lim, no);
    if (rc == 0) rc = make_rest(j, lim, no);
    if (rc == 0 && decode_prompt(j) != 0) rc = glm_refuse_memory(no);
    if (rc != 0) {
        glm_job_free(j);
        return rc;
    }
    j->usage->prompt_tokens = j->prompt.prompt_tokens;
    *out = j;
    return 0;
}

int
glm_job_make_round(glm_job_t **out, glm_infill_t *f, int32_t choice, glm_refusal_t *no)
{
    glm_job_t  *j = new_job(f->r, f->lim);
    int         rc;

    *out = NULL;
    if (j == NULL) return glm_refuse_memory(no);
    rc = glm_infill_context(f, choice, &j->prompt) != 0 ? glm_refuse_memory(no) : 0;
    if (rc == 0) {
        set_round(j, f, choice);
        f->nrefs++;
        rc = make_rest(j, f->lim, no);
    }
    if (rc != 0) {
        glm_job_free(j);
        return rc;
    }
    f->nopen++;
    *out = j;
    return 0;
}

void
glm_job_free(glm_job_t *j)
{
    if (j == NULL) return;
    for (int32_t i = 0; i < j->width && j->lane != NULL; i++) {
        glm_table_destroy(&j->lane[i].table);
        glm_stopper_destroy(&j->lane[i].stopper);
        glm_ruled_destroy(&j->lane[i].ruled);
        free(j->lane[i].start);
    }
    free(j->lane);
    glm_stops_free(j->stops);
    glm_best_free(j->best);
    glm_beam_free(j->beams);
    glm_score_free(j->score);
    if (j->infill != NULL && --j->infill->nrefs == 0) glm_infill_free(j->infill);
    glm_rules_free(j->rules);
    glm_text_free(&j->text);
    free(j->offset);
    glm_prompt_free(&j->prompt);
    free(j);
}
