/*
 * beam: see beam.h.  All of a step's candidates are walked at once, when the last of
 * its rows is in; so rows of one search may come in different steps of the scheduler.
 */
#include "beam.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- making ---- */

static int
has(const int32_t *ids, int32_t n, int32_t id)
{
    for (int32_t i = 0; i < n; i++)
        if (ids[i] == id) return 1;
    return 0;
}

static void
add(int32_t *ids, int32_t *n, int32_t id)
{
    if (*n < GLM_MAX_RANK && !has(ids, *n, id)) ids[(*n)++] = id;
}

int32_t
glm_beam_ends(int32_t *end, const glm_req_t *r, const glm_config_t *cfg)
{
    int32_t  n = 0;

    if (!r->ignore_eos)
        for (int32_t i = 0; i < cfg->nend_tokens; i++) add(end, &n, cfg->end_tokens[i]);
    for (size_t i = 0; i < r->nstop_id; i++) add(end, &n, r->stop_id[i]);
    return n;
}

/* The tokens of beams and candidates, behind them the beams' bans. */
static int
make_memory(glm_beams_t *b, int32_t max_tokens, int32_t nban)
{
    size_t             max = (size_t) max_tokens, width = (size_t) b->width;
    size_t             tokens = (2 * width + 1) * max * sizeof(glm_beam_token_t);
    size_t             bans = b->ngram > 1 ? (max + (size_t) nban) : 0;
    glm_beam_token_t  *t = malloc(tokens + width * bans * sizeof(int32_t));
    int32_t           *ban;

    b->memory = t;
    if (t == NULL) return GLM_ENOMEM;
    ban = (int32_t *) (void *) ((char *) t + tokens);
    for (int32_t i = 0; i < b->width; i++, t += max) {
        b->beam[i].said = t;
        b->beam[i].ban = bans > 0 ? ban + (size_t) i * bans : NULL;
    }
    for (int32_t i = 0; i <= b->width; i++, t += max) b->done[i].said = t;

    if (b->ntop == 0) return 0;
    b->top = malloc(max * width * (size_t) b->ntop * sizeof(glm_logprob_t));
    return b->top != NULL ? 0 : GLM_ENOMEM;
}

int
glm_beam_make(glm_job_t *j)
{
    const glm_req_t    *r = j->r;
    const glm_rules_t  *u = j->rules;
    glm_beams_t        *b = calloc(1, sizeof(*b));

    j->beams = b;
    if (b == NULL) return GLM_ENOMEM;
    b->width = j->width;
    b->ngram = r->no_repeat_ngram;
    b->penalty = r->length_penalty;
    b->nend = glm_beam_ends(b->end, r, j->vocab.cfg);
    b->rank = ((b->nend > 0 ? b->nend : 1) + 1) * b->width;
    if (r->sample.nlogprobs >= 0)
        b->ntop = r->nscore_id > 0 ? (int32_t) r->nscore_id : r->sample.nlogprobs;
    if (b->ntop > j->vocab.cfg->vocab) b->ntop = j->vocab.cfg->vocab;

    for (int32_t i = 0; i < b->width; i++) j->lane[i].sample.rank = b->rank;
    if (glm_table_init(&b->spare, j->npages) != 0) return GLM_ENOMEM;
    return make_memory(b, j->prompt.max_tokens, u != NULL ? u->nbanned + u->nearly + u->nbad : 0);
}

void
glm_beam_free(glm_beams_t *b)
{
    if (b == NULL) return;
    glm_table_destroy(&b->spare);
    free(b->memory);
    free(b->top);
    free(b);
}

void
glm_beam_start(glm_job_t *j)
{
    glm_beams_t  *b = j->beams;
    glm_seq_t    *q = &j->lane[0];

    q->token = j->prompt.ids[j->nshared];
    q->slot = j->nshared;
    for (int32_t i = 0; i < b->width; i++)
        glm_ruled_start(&j->lane[i].ruled, &j->lane[i].sample);
    b->live[0] = 0;
    b->nlive = b->waiting = 1;
}

/* ---- a step's candidates ---- */

/* The best one not taken yet, its lane; -1: none is left.  at: how many of each lane
 * were taken. */
static int32_t
best_head(const glm_beams_t *b, const int32_t *at, float *score)
{
    int32_t  lane = -1;

    for (int32_t i = 0; i < b->nlive; i++) {
        int32_t               k = b->live[i];
        const glm_sampled_t  *o = &b->got[k];
        float                 s;

        if (at[k] == o->nrank) continue;
        s = b->beam[k].score + o->rank[at[k]].logprob;
        if (lane >= 0 && !(s > *score)) continue;
        lane = k;
        *score = s;
    }
    return lane;
}

/* len: all tokens, those of the prompt too. */
static float
penalised(const glm_beams_t *b, float score, int32_t len)
{
    return (float) ((double) score / pow((5.0 + len) / 6.0, (double) b->penalty));
}

/* Into the list of the best; an equal newcomer goes first. */
static void
finish(glm_job_t *j, const glm_beam_next_t *c)
{
    glm_beams_t      *b = j->beams;
    glm_candidate_t   k = b->done[b->ndone];
    int32_t           i = b->ndone;

    k.n = b->step + 1;
    k.score = penalised(b, c->score, j->prompt.n + k.n);
    while (i > 0 && !(k.score < b->done[i - 1].score)) i--;
    if (i == b->width) return;

    memcpy(k.said, b->beam[c->from].said, (size_t) b->step * sizeof(*k.said));
    k.said[b->step] = c->token;
    memmove(&b->done[i + 1], &b->done[i], (size_t) (b->ndone - i) * sizeof(k));
    b->done[i] = k;
    if (b->ndone < b->width) b->ndone++;
}

/* An end goes to the finished ones even when there are enough live ones; the first
 * other one that finds enough stops the walk. */
static void
walk(glm_job_t *j)
{
    glm_beams_t      *b = j->beams;
    int32_t           at[GLM_MAX_BEAMS] = {0};
    glm_beam_next_t   c = {0};

    b->nnext = 0;
    for (int32_t n = 0; n < b->rank && (c.from = best_head(b, at, &c.score)) >= 0; n++) {
        const glm_ranked_t  *r = &b->got[c.from].rank[at[c.from]++];

        c.token = (glm_beam_token_t) {
            .id = r->id, .row = b->step * b->width + c.from, .logprob = r->raw
        };
        if (has(b->end, b->nend, r->id)) finish(j, &c);
        else if (b->nnext < b->width) b->next[b->nnext++] = c;
        else break;
    }
}

/* Is the search over?  At the limit the live beams are candidates as well, unless the
 * finished ones have won already. */
static int
over(glm_job_t *j)
{
    glm_beams_t  *b = j->beams;
    int32_t       len = j->prompt.n + b->step + 1;

    if (b->nnext == 0) return 1;
    if (b->ndone == b->width
        && b->done[b->width - 1].score >= penalised(b, b->next[0].score, len))
        return 1;
    if (b->step + 1 < j->prompt.max_tokens) return 0;
    for (int32_t i = 0; i < b->nnext; i++) finish(j, &b->next[i]);
    return 1;
}

/* ---- lanes and pages ---- */

/*
 * The first new beam of an old one stays in its lane, the others take those that are
 * left; lanes whose beam has no successor give up their pages first, so that there are
 * always enough: a beam never has more than its share of what was reserved.
 */
static void
place(glm_kv_t *kv, glm_job_t *j)
{
    glm_beams_t  *b = j->beams;
    int32_t       taken[GLM_MAX_BEAMS] = {0}, free_lane = 0;

    for (int32_t i = 0; i < b->nnext; i++) {
        b->next[i].lane = taken[b->next[i].from] ? -1 : b->next[i].from;
        taken[b->next[i].from] = 1;
    }
    for (int32_t i = 0; i < b->nlive; i++)
        if (!taken[b->live[i]]) glm_table_recycle(kv, &j->lane[b->live[i]].table, &b->spare);
    for (int32_t i = 0; i < b->nnext; i++) {
        if (b->next[i].lane >= 0) continue;
        while (taken[free_lane]) free_lane++;
        b->next[i].lane = free_lane;
        taken[free_lane] = 1;
    }
}

/* A lane of its own for a beam; what the other one has in the page being written is
 * copied.  slot: the one written next. */
static void
fork_lane(glm_kv_t *kv, glm_job_t *j, const glm_beam_next_t *c, int32_t slot)
{
    glm_beams_t  *b = j->beams;
    glm_seq_t    *to = &j->lane[c->lane], *from = &j->lane[c->from];
    int32_t       full = slot / GLM_KV_PAGE;

    glm_table_fork(kv, &to->table, &from->table, full, full);
    if (slot % GLM_KV_PAGE != 0) {
        glm_table_move(&to->table, &b->spare);
        b->copy[b->ncopy++] = (glm_page_copy_t) { to->table.page[full], from->table.page[full] };
    }
    memcpy(b->beam[c->lane].said, b->beam[c->from].said,
           (size_t) b->step * sizeof(glm_beam_token_t));
    glm_ruled_copy(&to->ruled, &from->ruled);
}

/* ---- n-grams ---- */

static int32_t
token_at(const glm_job_t *j, const glm_beam_t *m, int32_t i)
{
    return i < j->prompt.n ? j->prompt.ids[i] : m->said[i - j->prompt.n].id;
}

/* Do the n tokens before i and those before k agree? */
static int
agree(const glm_job_t *j, const glm_beam_t *m, int32_t i, int32_t k, int32_t n)
{
    for (int32_t d = 1; d <= n; d++)
        if (token_at(j, m, i - d) != token_at(j, m, k - d)) return 0;
    return 1;
}

/*
 * Bans what was generated behind the same ngram - 1 tokens before.  Looks through what
 * the beam has said: that is less work than keeping maps, which forks would copy.
 */
static void
ban_ngrams(glm_job_t *j, glm_seq_t *q, glm_beam_t *m)
{
    int32_t  g = j->beams->ngram, n = j->prompt.n + j->beams->step, first, nban = q->sample.nban;

    if (m->ban == NULL || n <= g) return;
    if (nban > 0) memcpy(m->ban, q->sample.ban, (size_t) nban * sizeof(int32_t));
    first = j->prompt.n > g - 1 ? j->prompt.n : g - 1;
    for (int32_t i = first; i < n; i++)
        if (agree(j, m, i, n, g - 1)) m->ban[nban++] = token_at(j, m, i);
    q->sample.ban = m->ban;
    q->sample.nban = nban;
}

/* ---- steps ---- */

/* Gives a beam, whose past is in its lane, its new token and its next row. */
static void
advance(glm_job_t *j, const glm_beam_next_t *c)
{
    glm_beams_t  *b = j->beams;
    glm_beam_t   *m = &b->beam[c->lane];
    glm_seq_t    *q = &j->lane[c->lane];

    m->said[b->step - 1] = c->token;
    m->score = c->score;
    q->token = c->token.id;
    q->slot = j->nshared + b->step;
    q->sample.ban = NULL;
    q->sample.nban = 0;
    glm_ruled_token(&q->ruled, &q->sample, q->token);
    ban_ngrams(j, q, m);
    if (q->slot % GLM_KV_PAGE == 0) glm_table_move(&q->table, &b->spare);
}

static void
go_on(glm_kv_t *kv, glm_job_t *j)
{
    glm_beams_t  *b = j->beams;

    place(kv, j);
    b->ncopy = 0;
    for (int32_t i = 0; i < b->nnext; i++)
        if (b->next[i].lane != b->next[i].from)
            fork_lane(kv, j, &b->next[i], j->nshared + b->step + 1);

    b->step++;
    for (int32_t i = 0; i < b->nnext; i++) {
        b->live[i] = b->next[i].lane;
        advance(j, &b->next[i]);
    }
    b->nlive = b->waiting = b->nnext;
}

static glm_logprob_t *
top_of(const glm_beams_t *b, int32_t row)
{
    return b->top + (size_t) row * (size_t) b->ntop;
}

glm_beam_state_t
glm_beam_take(glm_kv_t *kv, glm_seq_t *q, const glm_sampled_t *o)
{
    glm_job_t    *j = q->job;
    glm_beams_t  *b = j->beams;
    int32_t       lane = (int32_t) (q - j->lane);

    b->got[lane] = *o;
    if (b->ntop > 0)
        memcpy(top_of(b, b->step * b->width + lane), o->top,
               (size_t) b->ntop * sizeof(*b->top));
    if (--b->waiting > 0) return GLM_BEAM_WAITS;
    walk(j);
    if (over(j)) return GLM_BEAM_OVER;
    go_on(kv, j);
    return GLM_BEAM_GOES_ON;
}

/* ---- the result ---- */

glm_finish_t
glm_beam_tell(glm_job_t *j)
{
    glm_beams_t            *b = j->beams;
    const glm_candidate_t  *c = &b->done[j->next_choice];
    glm_seq_t              *q = &j->lane[0];
    glm_sampled_t           o = { .ntop = b->ntop };
    glm_finish_t            reason = GLM_FINISH_NONE;

    glm_seq_start(q);
    q->score = c->score;
    for (int32_t i = 0; i < c->n && reason == GLM_FINISH_NONE; i++) {
        o.id = c->said[i].id;
        o.logprob = c->said[i].logprob;
        if (b->ntop > 0)
            memcpy(o.top, top_of(b, c->said[i].row), (size_t) b->ntop * sizeof(*b->top));
        reason = glm_seq_token(q, &o);
    }
    q->running = 0;
    return reason;
}
