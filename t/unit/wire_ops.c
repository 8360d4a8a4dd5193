/*
 * wire_ops: INFILL, SCORE, suffixes and beams: what a SUBMIT of them may hold, and
 * how a filled choice is told.
 */
#include <math.h>

#include "spool.h"
#include "wire_util.h"

/* One choice of a list; the last may go without its padding. */
static void
put_choice(glm_wbuf_t *b, uint32_t kind, const void *s, uint32_t n)
{
    glm_choice_t  c = { kind, n };

    glm_wbuf_put(b, &c, sizeof(c));
    glm_wbuf_put(b, s, n);
    glm_wbuf_pad(b, 4);
}

static msg_t
score(glm_wbuf_t *list, size_t cut)
{
    msg_t  m = valid();

    m.m.op = GLM_SUBMIT_SCORE;
    glm_wire_section(&m.more, GLM_SEC_CHOICES, list->p, list->n - cut);
    glm_wbuf_free(list);
    return m;
}

static void
test_score(void)
{
    const int32_t  ids[] = { 0, 99 };
    glm_wbuf_t     list = {0};
    msg_t          m;

    put_choice(&list, GLM_SEC_PLAIN, "yes", 3);
    put_choice(&list, GLM_SEC_IDS, ids, 8);
    put_choice(&list, GLM_SEC_PLAIN, "[MASK]", 6);
    m = score(&list, 2);
    m.m.flags = GLM_F_GMASK | GLM_F_COUNT_POSITIONS;
    accepts(&m, "SCORE");
    ok(out.req.op == GLM_OP_SCORE && out.req.nchoice == 3 && out.req.gmask
       && out.req.count_positions, "is one");
    ok(out.req.choice[0].kind == GLM_SEG_PLAIN && out.req.choice[0].n == 3
       && memcmp(out.req.choice[0].text, "yes", 3) == 0, "a text");
    ok(out.req.choice[1].kind == GLM_SEG_IDS && out.req.choice[1].n == 2
       && out.req.choice[1].ids[1] == 99, "ids");
    ok(out.req.choice[2].kind == GLM_SEG_PLAIN && out.req.choice[2].n == 6,
       "the last one, without its padding");

    put_choice(&list, GLM_SEC_PLAIN, "yes", 3);
    m = score(&list, 0);
    m.text = NULL;
    m.m.group_count = 2;
    accepts(&m, "SCORE after nothing, in a group");
    for (int i = 0; i < GLM_MAX_SCORED; i++) put_choice(&list, GLM_SEC_PLAIN, "y", 1);
    m = score(&list, 0);
    accepts(&m, "as many choices as there may be");
}

static void
test_bad_score(void)
{
    const int32_t  beyond[] = { 0, 100 };
    glm_wbuf_t     list = {0};
    msg_t          m = valid();

    m.m.op = GLM_SUBMIT_SCORE;
    refuses(&m, 400, "choices", "SCORE without choices");
    put_choice(&list, GLM_SEC_PLAIN, "yes", 3);
    put_choice(&list, GLM_SEC_PLAIN, "", 0);
    m = score(&list, 0);
    refuses(&m, 400, "choices", "an empty choice");
    ok(why.value == 1 && strstr(why.text, "choice 1") != NULL, "is named");
    for (int i = 0; i < 100000; i++) put_choice(&list, GLM_SEC_PLAIN, "y", 1);
    m = score(&list, 0);
    refuses(&m, 400, "choices", "100,000 choices");
    ok(why.value == 100000 && why.limit == GLM_MAX_SCORED, "with value and limit");
    put_choice(&list, GLM_SEC_PLAIN, "y\xff", 2);
    m = score(&list, 0);
    refuses(&m, 400, "choices", "bad UTF-8");
    put_choice(&list, GLM_SEC_IDS, beyond, 8);
    m = score(&list, 0);
    refuses(&m, 400, "choices", "an id beyond the vocabulary");
    put_choice(&list, GLM_SEC_PLAIN, "yes", 3);
    m = score(&list, 0);
    m.m.op = GLM_SUBMIT_GENERATE;
    refuses(&m, 400, "choices", "choices without SCORE");

    put_choice(&list, GLM_SEC_IDS, beyond, 6);
    m = score(&list, 0);
    rejects(&m, "one and a half ids");
    put_choice(&list, GLM_SEC_TEXT, "yes", 3);
    m = score(&list, 0);
    rejects(&m, "a choice of another kind");
    put_choice(&list, GLM_SEC_PLAIN, "yes", 3);
    m = score(&list, 2);
    rejects(&m, "a choice longer than its list");
    put_choice(&list, GLM_SEC_PLAIN, "yes", 3);
    put_choice(&list, GLM_SEC_PLAIN, "yes", 3);
    m = score(&list, 8);
    rejects(&m, "a list that is cut");
}

static void
test_suffix(void)
{
    msg_t  m = valid();

    glm_wire_section(&m.more, GLM_SEC_SUFFIX, " end", 4);
    m.text = NULL;
    accepts(&m, "a suffix, and nothing before it");
    ok(out.req.nsuffix == 4 && memcmp(out.req.suffix, " end", 4) == 0 && !out.req.gmask, "is there");
    m = valid();
    glm_wire_section(&m.more, GLM_SEC_SUFFIX, "", 0);
    accepts(&m, "an empty suffix");
    ok(out.req.suffix == NULL && out.req.nsuffix == 0, "is none");
    m = valid();
    m.m.op = GLM_SUBMIT_INFILL;
    accepts(&m, "INFILL");
    ok(out.req.op == GLM_OP_INFILL, "is one");
    m = valid();
    m.m.op = GLM_SUBMIT_INFILL;
    glm_wire_section(&m.more, GLM_SEC_SUFFIX, " end", 4);
    refuses(&m, 400, "suffix", "INFILL with a suffix");
    m = valid();
    glm_wire_section(&m.more, GLM_SEC_SUFFIX, "\xff", 1);
    refuses(&m, 400, "suffix", "bad UTF-8");
}

static void
test_beams(void)
{
    msg_t  m = valid();

    m.s.beams = GLM_MAX_BEAMS;
    m.s.length_penalty = 0;
    m.s.no_repeat_ngram = 3;
    accepts(&m, "beams");
    ok(out.req.beams == GLM_MAX_BEAMS && out.req.length_penalty == 0
       && out.req.no_repeat_ngram == 3, "are there");
    m = valid();
    m.m.flags = GLM_F_BEAM;
    m.m.n = 4;
    accepts(&m, "use_beam_search");
    ok(out.req.beams == 4, "alone makes as many as choices");
    m = valid();
    m.m.flags = GLM_F_BEAM;
    accepts(&m, "use_beam_search, one choice");
    ok(out.req.beams == 0, "is no search");
    m = valid();
    m.s.beams = GLM_MAX_BEAMS + 1;
    refuses(&m, 400, "num_beams", "too many beams");
    ok(why.value == GLM_MAX_BEAMS + 1 && why.limit == GLM_MAX_BEAMS, "with value and limit");
    m = valid();
    m.s.beams = 2;
    m.s.length_penalty = NAN;
    refuses(&m, 400, "length_penalty", "no number");
    m = valid();
    m.s.no_repeat_ngram = 3;
    refuses(&m, 400, "no_repeat_ngram_size", "without beams");
}

static void
test_filled(void)
{
    const glm_span_t  span[] = { { 4, 6 }, { 9, 9 } };
    glm_filled_t      f = { .choice = 2, .text = "the text", .ntext = 8, .span = span,
                            .nblanks = 2 };
    glm_outbox_t      o = {0};
    glm_wbuf_t        b = {0};
    uint16_t          type;
    glm_sec_t         sec;

    glm_wire_filled(&b, &f);
    glm_outbox_add(&o, GLM_MSG_FILLED, &b);
    ok(glm_outbox_costs(&o), "FILLED costs window");
    ok(glm_outbox_take(&o, &type, &b) == 1 && type == GLM_MSG_FILLED
       && b.n == sizeof(glm_msg_filled_t) + 2 * sizeof(sec) + 8 + 16, "FILLED");
    memcpy(&sec, b.p + 8, sizeof(sec));
    ok(sec.type == GLM_SEC_TEXT && sec.size == 8 && memcmp(b.p + 16, "the text", 8) == 0, "text");
    memcpy(&sec, b.p + 24, sizeof(sec));
    ok(sec.type == GLM_SEC_SPANS && sec.size == 16 && memcmp(b.p + 32, span, 16) == 0, "spans");
    glm_wbuf_free(&b);
}

int
main(void)
{
    test_score();
    test_bad_score();
    test_suffix();
    test_beams();
    test_filled();
    glm_submit_free(&out);
    return tap_done();
}
