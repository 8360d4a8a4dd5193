/*
 * ring_group: the prompts of one HTTP request come as a group of SUBMITs.  They
 * wait here until all have come, and go to the engine as one; a refusal of any is
 * the answer to all.  Who never completes a group is told so after a while, and a
 * client that leaves leaves nothing.  I/O thread.
 */
#include "ring_impl.h"

#include <stdlib.h>

#define GATHER_NS  5000000000u    /* a correct client sends them in one go */

struct glm_group_s {
    glm_group_t    *next;         /* of its client */
    uint64_t        id;
    uint32_t        count, n;     /* members; how many have come */
    uint64_t        since;        /* ns */
    int             refused;
    glm_refusal_t   why;          /* the first refusal */
    glm_live_t     *member[];     /* (count) by index; NULL: not here yet */
};

static const glm_refusal_t  never_came = {
    .status = 400, .param = "prompt",
    .text = "the other prompts of this request did not come",
};

static glm_group_t *
find(const glm_conn_t *c, uint64_t id)
{
    glm_group_t  *g;

    for (g = c->groups; g != NULL && g->id != id; g = g->next) { /* few */ }
    return g;
}

static glm_group_t *
group_new(glm_conn_t *c, uint64_t id, uint32_t count)
{
    glm_group_t  *g = calloc(1, sizeof(*g) + count * sizeof(glm_live_t *));

    if (g == NULL) return NULL;
    g->id = id;
    g->count = count;
    g->since = glm_server_now();
    g->next = c->groups;
    c->groups = g;
    return g;
}

/* Its members are nobody's from here on. */
static void
detach(glm_conn_t *c, glm_group_t *g)
{
    uint32_t       i;
    glm_group_t  **p = &c->groups;

    while (*p != g) p = &(*p)->next;
    *p = g->next;
    for (i = 0; i < g->count; i++) {
        if (g->member[i] != NULL) g->member[i]->group = NULL;
    }
}

static void
refuse(glm_conn_t *c, glm_group_t *g, const glm_refusal_t *why)
{
    uint32_t  i;

    detach(c, g);
    for (i = 0; i < g->count; i++) {
        if (g->member[i] != NULL) glm_live_error(g->member[i], why);
    }
    free(g);
}

static void
complete(glm_conn_t *c, glm_group_t *g)
{
    uint32_t    i;
    glm_req_t  *r[GLM_WIRE_MAX_GROUP];

    if (g->refused) {
        refuse(c, g, &g->why);
        return;
    }
    detach(c, g);
    for (i = 0; i < g->count; i++) r[i] = glm_live_start(g->member[i]);
    glm_engine_submit_group(c->s->engine, r, g->count);
    free(g);
}

int
glm_group_join(glm_live_t *l, const glm_refusal_t *no)
{
    glm_conn_t          *c = l->client;
    const glm_submit_t  *s = &l->sub;
    glm_group_t         *g = find(c, s->group);

    if (g == NULL) g = group_new(c, s->group, s->group_count);
    if (g == NULL) {
        glm_live_error(l, &glm_no_request);
        return 0;
    }
    if (g->count != s->group_count || g->member[s->group_index] != NULL) {
        glm_conn_drop(c, "sent a member that its group has no place for");
        return -1;
    }
    g->member[s->group_index] = l;
    l->group = g;
    if (no != NULL && !g->refused) {
        g->refused = 1;
        g->why = *no;
    }
    if (++g->n == g->count) complete(c, g);
    return 0;
}

void
glm_group_cancel(glm_live_t *l)
{
    uint32_t      i;
    glm_group_t  *g = l->group;

    detach(l->client, g);
    for (i = 0; i < g->count; i++) {
        if (g->member[i] != NULL) glm_live_cancelled(g->member[i]);
    }
    free(g);
}

void
glm_groups_tick(glm_conn_t *c, uint64_t now)
{
    glm_group_t  *g, *next;

    for (g = c->groups; g != NULL; g = next) {
        next = g->next;
        if (now - g->since >= GATHER_NS) refuse(c, g, g->refused ? &g->why : &never_came);
    }
}

void
glm_groups_free(glm_conn_t *c)
{
    glm_group_t  *g;

    while ((g = c->groups) != NULL) {
        detach(c, g);
        free(g);
    }
}
