/*
 * rules: see rules.h.
 */
#include "rules.h"

#include <stdlib.h>
#include <string.h>

/* ---- of a request ---- */

static int
penalises(const glm_sample_t *s)
{
    return s->presence != 0 || s->frequency != 0;
}

static int
repeats(const glm_sample_t *s)
{
    return s->repetition != 0 && s->repetition != 1;
}

static int
has_rules(const glm_req_t *r)
{
    return penalises(&r->sample) || repeats(&r->sample) || r->nbias > 0 || r->allow != NULL
           || r->nbad > 0 || r->min_tokens > 0 || r->repeat.max_length > 0;
}

/* The mask is the client's own word: it may let through ids without text, too. */
static int
make_allow(glm_rules_t *u, const glm_vocab_t *v, const glm_req_t *r)
{
    if (r->allow == NULL) return 0;
    u->allow = calloc(((size_t) v->cfg->vocab + 63) / 64, sizeof(uint64_t));
    if (u->allow == NULL) return GLM_ENOMEM;
    for (size_t i = 0; i < r->nallow; i++) u->allow[r->allow[i] / 64] |= 1ull << (r->allow[i] % 64);
    return 0;
}

static int
by_id(const void *a, const void *b)
{
    int32_t  x = ((const glm_adjust_t *) a)->id, y = ((const glm_adjust_t *) b)->id;

    return x < y ? -1 : x > y;
}

/* Sorted, each id once. */
static void
merge(glm_rules_t *u)
{
    int32_t  n = 0;

    if (u->nfirst > 0) qsort(u->first, (size_t) u->nfirst, sizeof(*u->first), by_id);
    for (int32_t i = 0; i < u->nfirst; i++) {
        glm_adjust_t  *a = n > 0 ? &u->first[n - 1] : NULL;

        if (a == NULL || a->id != u->first[i].id) {
            u->first[n++] = u->first[i];
            continue;
        }
        a->bias += u->first[i].bias;
        a->seen |= u->first[i].seen;
    }
    u->nfirst = n;
}

/* What a choice begins with: biases, and for the repetition penalty the user's
 * own ids of the prompt. */
static int
make_first(glm_rules_t *u, const glm_req_t *r, const glm_prompt_t *p)
{
    int32_t  nprompt = repeats(&r->sample) ? p->nown : 0;
    size_t   n = r->nbias + (size_t) nprompt;

    u->counts = penalises(&r->sample) || repeats(&r->sample);
    if (n == 0 && !u->counts) return 0;
    u->first = malloc((n > 0 ? n : 1) * sizeof(*u->first));
    if (u->first == NULL) return GLM_ENOMEM;

    for (size_t i = 0; i < r->nbias; i++)
        u->first[u->nfirst++] = (glm_adjust_t) { .id = r->bias[i].id, .bias = r->bias[i].bias };
    for (int32_t i = 0; i < nprompt; i++)
        u->first[u->nfirst++] = (glm_adjust_t) { .id = p->ids[p->own + i], .seen = 1 };
    merge(u);
    u->cap = u->nfirst + (u->counts ? p->max_tokens : 0);
    return 0;
}

/* Takes ids: the ids of a bad word. */
static int
add_bad(glm_rules_t *u, glm_ids_t *ids)
{
    glm_bad_t  *last = u->nbad > 0 ? &u->bad[u->nbad - 1] : NULL;

    if (ids->n == 1) u->banned[u->nbanned++] = ids->id[0];
    if (ids->n < 2 || (last != NULL && last->n == (int32_t) ids->n
                       && memcmp(last->id, ids->id, ids->n * sizeof(int32_t)) == 0)) {
        glm_ids_free(ids);
        return 0;
    }
    u->bad[u->nbad++] = (glm_bad_t) { ids->id, (int32_t) ids->n };
    return 0;
}

/* Each word as it is written at the start of a text and inside of one. */
static int
make_bad(glm_rules_t *u, const glm_vocab_t *v, const glm_req_t *r)
{
    int  rc = 0;

    if (r->nbad == 0) return 0;
    u->banned = malloc(2 * r->nbad * sizeof(int32_t));
    u->bad = calloc(2 * r->nbad, sizeof(*u->bad));
    if (u->banned == NULL || u->bad == NULL) return GLM_ENOMEM;

    for (size_t i = 0; i < 2 * r->nbad && rc == 0; i++) {
        const glm_stop_t  *w = &r->bad[i / 2];
        glm_ids_t          ids = {0};

        rc = i % 2 == 0 ? glm_encode_no_prefix(v->tok, w->s, w->n, &ids)
                        : glm_encode(v->tok, w->s, w->n, &ids);
        if (rc == 0) rc = add_bad(u, &ids);
        else glm_ids_free(&ids);
    }
    return rc;
}

static int
make_early(glm_rules_t *u, const glm_vocab_t *v, const glm_req_t *r)
{
    size_t  nend = (size_t) v->cfg->nend_tokens;

    u->min_tokens = r->min_tokens;
    if (r->min_tokens == 0) return 0;
    u->early = malloc((nend + r->nstop_id + 1) * sizeof(int32_t));
    if (u->early == NULL) return GLM_ENOMEM;
    for (size_t i = 0; i < nend; i++) u->early[u->nearly++] = v->cfg->end_tokens[i];
    for (size_t i = 0; i < r->nstop_id; i++) u->early[u->nearly++] = r->stop_id[i];
    return 0;
}

int
glm_rules_make(glm_rules_t **out, const glm_vocab_t *v, const glm_req_t *r,
    const glm_prompt_t *p, glm_refusal_t *no)
{
    glm_rules_t  *u;

    *out = NULL;
    if (!has_rules(r) || p->max_tokens == 0) return 0;
    if (r->nbad > 0 && v->tok == NULL)
        return glm_refuse(no, 400, "", "bad_words", "The model \"%s\" has no tokenizer: "
                          "\"bad_words\" cannot be used.", v->cfg->name);
    u = calloc(1, sizeof(*u));
    if (u == NULL) return glm_refuse_memory(no);
    u->repeat = r->repeat;
    if (u->repeat.min_length < 1) u->repeat.min_length = 1;
    u->max_tokens = p->max_tokens;

    if (make_allow(u, v, r) != 0 || make_first(u, r, p) != 0 || make_bad(u, v, r) != 0
        || make_early(u, v, r) != 0) {
        glm_rules_free(u);
        return glm_refuse_memory(no);
    }
    *out = u;
    return 0;
}

void
glm_rules_free(glm_rules_t *u)
{
    if (u == NULL) return;
    for (int32_t i = 0; i < u->nbad; i++) free(u->bad[i].id);
    free(u->allow);
    free(u->first);
    free(u->banned);
    free(u->bad);
    free(u->early);
    free(u);
}

/* ---- of a choice ---- */

int
glm_ruled_init(glm_ruled_t *c, const glm_rules_t *u)
{
    size_t  slots = 2, cap, nban;

    *c = (glm_ruled_t) { .rules = u };
    if (u == NULL) return 0;
    cap = (size_t) u->cap;
    nban = (size_t) u->nbanned + (size_t) u->nearly + (size_t) u->nbad;
    while (slots < 2 * cap) slots *= 2;
    c->mask = (uint32_t) slots - 1;
    c->ban = malloc((nban + 1) * sizeof(int32_t));
    c->said = malloc((size_t) u->max_tokens * sizeof(int32_t));
    c->run = calloc((size_t) u->repeat.max_length + 1, sizeof(int32_t));
    c->adjust = malloc((cap + 1) * sizeof(*c->adjust));
    c->slot = malloc(slots * sizeof(int32_t));
    return c->ban != NULL && c->said != NULL && c->run != NULL && c->adjust != NULL
           && c->slot != NULL ? 0 : GLM_ENOMEM;
}

void
glm_ruled_destroy(glm_ruled_t *c)
{
    free(c->adjust);
    free(c->slot);
    free(c->ban);
    free(c->said);
    free(c->run);
    *c = (glm_ruled_t) {0};
}

/* The entry of an id, made when there is none. */
static glm_adjust_t *
entry(glm_ruled_t *c, int32_t id)
{
    uint32_t  h = (uint32_t) id * 2654435761u;

    for (h = (h ^ h >> 16) & c->mask; c->slot[h] >= 0; h = (h + 1) & c->mask)
        if (c->adjust[c->slot[h]].id == id) return &c->adjust[c->slot[h]];
    c->slot[h] = c->nadjust;
    c->adjust[c->nadjust] = (glm_adjust_t) { .id = id };
    return &c->adjust[c->nadjust++];
}

/* Have the ids of w but for its last one just been said? */
static int
begun(const glm_ruled_t *c, const glm_bad_t *w)
{
    int32_t  n = w->n - 1;

    return n <= c->nsaid
           && memcmp(c->said + c->nsaid - n, w->id, (size_t) n * sizeof(int32_t)) == 0;
}

static void
set_bans(glm_ruled_t *c, glm_sample_t *s)
{
    const glm_rules_t  *u = c->rules;
    int32_t             n = 0;

    for (int32_t i = 0; i < u->nbanned; i++) c->ban[n++] = u->banned[i];
    for (int32_t i = 0; i < u->nearly && c->nsaid < u->min_tokens; i++) c->ban[n++] = u->early[i];
    for (int32_t i = 0; i < u->nbad; i++)
        if (begun(c, &u->bad[i])) c->ban[n++] = u->bad[i].id[u->bad[i].n - 1];
    s->ban = c->ban;
    s->nban = n;
    s->adjust = c->adjust;
    s->nadjust = c->nadjust;
}

void
glm_ruled_start(glm_ruled_t *c, glm_sample_t *s)
{
    const glm_rules_t  *u = c->rules;

    if (u == NULL) return;
    c->nsaid = c->nadjust = 0;
    memset(c->slot, 0xff, ((size_t) c->mask + 1) * sizeof(int32_t));
    memset(c->run, 0, ((size_t) u->repeat.max_length + 1) * sizeof(int32_t));
    for (int32_t i = 0; i < u->nfirst; i++) *entry(c, u->first[i].id) = u->first[i];
    if (u->allow != NULL) s->allow = u->allow;
    set_bans(c, s);
}

void
glm_ruled_copy(glm_ruled_t *dst, const glm_ruled_t *src)
{
    const glm_rules_t  *u = src->rules;

    if (u == NULL) return;
    dst->nsaid = src->nsaid;
    dst->nadjust = src->nadjust;
    memcpy(dst->said, src->said, (size_t) src->nsaid * sizeof(*src->said));
    memcpy(dst->adjust, src->adjust, (size_t) src->nadjust * sizeof(*src->adjust));
    memcpy(dst->slot, src->slot, ((size_t) src->mask + 1) * sizeof(*src->slot));
    memcpy(dst->run, src->run, ((size_t) u->repeat.max_length + 1) * sizeof(*src->run));
}

/* A piece of n ids came k times in a row when the last n (k - 1) ids equal those
 * n before them. */
static int
repeated(glm_ruled_t *c)
{
    const glm_repeat_t  *r = &c->rules->repeat;
    int                  hit = 0;

    for (int32_t n = r->min_length; n <= r->max_length; n++) {
        int  equal = c->nsaid > n && c->said[c->nsaid - 1] == c->said[c->nsaid - 1 - n];

        c->run[n] = equal ? c->run[n] + 1 : 0;
        hit |= c->run[n] >= (int64_t) n * (r->min_count - 1);
    }
    return hit && c->nsaid >= c->rules->min_tokens;
}

int
glm_ruled_token(glm_ruled_t *c, glm_sample_t *s, int32_t id)
{
    if (c->rules == NULL) return 0;
    c->said[c->nsaid++] = id;
    if (c->rules->counts) {
        glm_adjust_t  *a = entry(c, id);

        a->count++;
        a->seen = 1;
    }
    set_bans(c, s);
    return repeated(c);
}
