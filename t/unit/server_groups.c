/*
 * server_groups: the prompts of one HTTP request are accepted together or refused
 * together, whatever order they come in; what is never completed ends and leaves
 * nothing behind.
 */
#include "server_util.h"

#include "../fake/fake_engine.c"
#include "../fake/fake_job.c"
#include "../fake/fake_say.c"
#include "../fake/fake_script.c"

static const fake_opts_t  fake = { .max_seq = 1 << 16, .max_queue = 100 };
static world_t            world;

static int
member(glm_client_t *c, uint64_t id, uint64_t group, uint32_t index, uint32_t count,
    const char *prompt)
{
    glm_err_t            err = {{0}};
    glm_client_submit_t  s = {
        .m = { .op = GLM_SUBMIT_GENERATE, .n = 1, .max_tokens = 2, .window = 1 << 20,
               .group = group, .group_index = index, .group_count = count }
    };

    glm_wire_section(&s.sections, GLM_SEC_TEXT, prompt, strlen(prompt));
    return glm_client_submit(c, id, &s, &err);
}

/* Nothing comes for so long. */
static int
silent(glm_client_t *c, int ms)
{
    glm_event_t  ev;
    glm_err_t    err = {{0}};

    return glm_client_next(c, &ev, ms, &err) == 0;
}

/* The ends of requests 1 .. n, in whatever order they come. */
static void
ends(glm_client_t *c, answer_t *a, int n)
{
    glm_event_t  ev;
    int          left = n;

    for (int i = 0; i < n; i++) a[i] = (answer_t) { .order = 1 };
    while (left > 0 && hear(c, &ev) != 0) {
        take(&a[ev.id - 1], &ev);
        left -= ev.type == GLM_MSG_DONE || ev.type == GLM_MSG_ERROR;
    }
}

static void
test_together(void)
{
    static answer_t  a[3];
    glm_client_t    *c = join(&world, NULL);
    int              good = 1;

    member(c, 3, 9, 2, 3, "fake: tokens=2 bytes=1");
    member(c, 1, 9, 0, 3, "fake: tokens=2 bytes=1");
    ok(silent(c, 100) && fake_engine_jobs() == 0, "two of three: they wait");
    member(c, 2, 9, 1, 3, "fake: tokens=2 bytes=1");
    ends(c, a, 3);
    for (int i = 0; i < 3; i++)
        good = good && a[i].ended == GLM_MSG_DONE && a[i].order && right_text(&a[i], 2, 1);
    ok(good, "with the third all run");

    member(c, 1, 9, 0, 2, "fake: tokens=2 bytes=1");
    member(c, 2, 9, 1, 2, "\xff");
    ends(c, a, 2);
    ok(a[0].ended == GLM_MSG_ERROR && a[1].ended == GLM_MSG_ERROR && !a[0].accepted
       && a[0].error.status == 400 && strcmp(a[0].error.param, "prompt") == 0
       && memcmp(&a[0].error, &a[1].error, sizeof(a[0].error)) == 0,
       "one that is refused refuses all, with the same error");
    member(c, 1, 9, 0, 2, "\xff");
    ok(silent(c, 50), "the refused one waits, too");
    member(c, 2, 9, 1, 2, "fake: tokens=2 bytes=1");
    ends(c, a, 2);
    ok(a[0].error.status == 400 && a[1].error.status == 400, "whichever comes first");

    member(c, 1, 5, 0, 2, "fake: tokens=2 bytes=1");
    member(c, 2, 6, 0, 2, "fake: tokens=2 bytes=1");
    ok(silent(c, 50), "groups of two ids are two");
    glm_client_cancel(c, 1);
    glm_client_cancel(c, 2);
    ends(c, a, 2);
    ok(a[0].ended == GLM_MSG_DONE && a[0].done.cancelled && a[1].done.cancelled,
       "cancelled while they wait");

    member(c, 1, 7, 0, 3, "fake: tokens=2 bytes=1");
    member(c, 2, 7, 1, 3, "fake: tokens=2 bytes=1");
    glm_client_cancel(c, 2);
    ends(c, a, 2);
    ok(a[0].ended == GLM_MSG_DONE && a[0].done.cancelled && a[1].done.cancelled,
       "a member that is cancelled takes those that wait with it");
    glm_client_free(c);
}

static void
test_lost(void)
{
    static answer_t  a[2];
    glm_client_t    *c = join(&world, NULL);
    long             t = ms_now();

    for (uint64_t i = 0; i < 300; i++) member(c, i, i, 0, 2, "fake: hang");
    glm_client_free(c);
    ok(WAIT_FOR(glm_server_idle(world.server)) && fake_engine_jobs() == 0,
       "a client that leaves 300 halves of groups leaves nothing");

    c = join(&world, NULL);
    member(c, 1, 1, 0, 2, "fake: tokens=2 bytes=1");
    member(c, 2, 2, 1, 2, "\xff");
    ends(c, a, 2);
    ok(a[0].error.status == 400 && strcmp(a[0].error.param, "prompt") == 0
       && a[1].error.status == 400 && ms_now() - t >= 4000,
       "what is never completed is refused after a while");
    ok(strcmp(a[0].error.code, "") == 0, "by the engine");
    member(c, 1, 1, 0, 1, "fake: tokens=2 bytes=1");
    ok(answer(c, 1).ended == GLM_MSG_DONE, "and a group of one is none");
    glm_client_free(c);
}

static int
dropped(uint32_t index, uint32_t count)
{
    glm_client_t  *c = join(&world, NULL);
    glm_event_t    ev;
    glm_err_t      err = {{0}};
    int            rc;

    member(c, 1, 4, 0, 3, "fake: hang");
    member(c, 2, 4, index, count, "fake: hang");
    rc = glm_client_next(c, &ev, 60000, &err);
    glm_client_free(c);
    return rc == GLM_EIO;
}

int
main(void)
{
    glm_server_opts_t  so = GLM_SERVER_OPTS_DEFAULT;

    glm_log_level("error");
    world = world_start(&so, &fake);
    test_together();
    ok(dropped(0, 3), "a place taken twice: dropped");
    ok(dropped(1, 2), "another count: dropped");
    test_lost();
    ok(WAIT_FOR(glm_server_idle(world.server)) && fake_engine_jobs() == 0, "nothing is left");
    world_stop(&world);
    return tap_done();
}
