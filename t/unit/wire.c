/*
 * wire: a SUBMIT becomes a request, or the right refusal, whatever its bytes; and
 * what the engine says is laid out as docs/wire.md has it.
 */
#include <math.h>
#include <string.h>

#include "spool.h"
#include "wire_util.h"

/* ---- what is right ---- */

static void
test_fields(void)
{
    msg_t             m = valid();
    glm_wbuf_t        stops = {0};
    const int32_t     ids[] = { 1, 99 };
    const glm_req_t  *r = &out.req;

    m.m.flags = GLM_F_HOLD | GLM_F_ADD_SPECIAL | GLM_F_IGNORE_EOS | GLM_F_INCLUDE_STOP
                | GLM_F_PROMPT_IDS;
    m.m.mode = 1;
    m.m.deadline = 77;
    m.s.flags = GLM_SAMPLING_SEED;
    m.s.seed = 0x123456789abcdef0u;
    m.s.temperature = 0.5f;
    m.s.top_p = 0.25f;
    m.s.min_p = 0.125f;
    m.s.top_k = 9;
    m.s.logprobs = 20;
    glm_wire_section(&m.more, GLM_SEC_PLAIN, "[MASK]", 6);
    glm_wire_section(&m.more, GLM_SEC_IDS, ids, sizeof(ids));
    glm_wire_string(&stops, "\n", 1);
    glm_wire_string(&stops, "stop", 4);
    glm_wire_section(&m.more, GLM_SEC_STOPS, stops.p, stops.n);
    glm_wbuf_free(&stops);
    accepts(&m, "everything that is there now");

    ok(r->nseg == 3 && r->seg[0].kind == GLM_SEG_TEXT && r->seg[0].n == 5
       && memcmp(r->seg[0].text, "hello", 5) == 0, "text");
    ok(r->seg[1].kind == GLM_SEG_PLAIN && memcmp(r->seg[1].text, "[MASK]", 6) == 0, "plain text");
    ok(r->seg[2].kind == GLM_SEG_IDS && r->seg[2].n == 2 && r->seg[2].ids[1] == 99, "ids");
    ok(r->nstop == 2 && r->stop[0].n == 1 && r->stop[1].n == 4
       && memcmp(r->stop[1].s, "stop", 4) == 0, "stops");
    ok(r->hold && r->add_special && r->ignore_eos && r->include_stop && r->want_ids, "flags");
    ok(r->mode == GLM_UNIDIRECTIONAL && r->max_tokens == 5 && r->n == 1, "mode, max_tokens, n");
    ok(r->has_seed && r->sample.seed == 0x123456789abcdef0u && r->sample.temperature == 0.5f
       && r->sample.top_p == 0.25f && r->sample.min_p == 0.125f && r->sample.top_k == 9
       && r->sample.nlogprobs == 20, "sampling");
    ok(out.window == 1000 && out.deadline_us == 77, "window and deadline");
}

static void
test_neutral(void)
{
    int       i;
    msg_t     m = valid();
    int32_t   score = 7;
    uint16_t  empty[] = { GLM_SEC_STOPS, GLM_SEC_STOP_IDS, GLM_SEC_BIAS, GLM_SEC_BAD,
                          GLM_SEC_SCORE_IDS, GLM_SEC_SUFFIX };

    m.m.best_of = 1;
    m.m.group_count = 1;
    m.m.flags = GLM_F_NO_CACHE | GLM_F_TRUNCATE_RIGHT;
    m.m.tenant = 7;
    m.m.tenant_weight = 3;
    m.m.cache_salt = 8;
    m.s.repetition = 1;
    m.s.length_penalty = 1;
    m.s.beams = 1;
    m.s.top_p = 1;
    for (i = 0; i < 6; i++) glm_wire_section(&m.more, empty[i], NULL, 0);
    glm_wire_section(&m.more, GLM_SEC_USER, "req-1", 5);
    glm_wire_section(&m.more, 999, "who knows", 9);
    accepts(&m, "neutral values and an unknown section");

    m = valid();
    m.no_sampling = 1;
    accepts(&m, "no sampling section");
    m = valid();
    m.m.n = 2;
    m.m.best_of = 8;
    accepts(&m, "two of eight");
    ok(out.req.n == 2 && out.req.best_of == 8, "n and best_of");
    m = valid();
    m.m.truncate = -1;
    m.m.flags = GLM_F_TRUNCATE_RIGHT | GLM_F_SPECIAL_TEXT;
    m.m.priority = INT64_MIN;
    m.s.logprobs = 0;
    glm_wire_section(&m.more, GLM_SEC_SCORE_IDS, &score, 4);
    accepts(&m, "truncation, priority, names, ids to score");
    ok(out.req.truncate == -1 && out.req.truncate_right && out.req.special_text
       && out.req.priority == INT64_MIN && out.req.nscore_id == 1 && out.req.score_id[0] == 7,
       "each in its place");
    m = valid();
    m.m.group = 77;
    m.m.group_index = 1;
    m.m.group_count = 3;
    accepts(&m, "one of three prompts");
    ok(out.group == 77 && out.group_index == 1 && out.group_count == 3, "the group");
    m = valid();
    m.m.flags = GLM_F_ECHO;
    m.s.prompt_logprobs = 0;
    accepts(&m, "echo");
    ok(out.req.echo && out.req.want_text && out.req.want_prompt_logprobs
       && out.req.nprompt_logprobs == 0, "with log-probabilities of the prompt");
    m = valid();
    m.m.flags = GLM_F_PROMPT_TEXT;
    accepts(&m, "the prompt's text");
    ok(!out.req.echo && out.req.want_text && !out.req.want_prompt_logprobs, "without echo");
    ok(out.req.sample.nlogprobs == -1 && out.req.sample.temperature == 0, "is greedy");
}

static void
test_sizes(void)
{
    msg_t       m = valid();
    glm_wbuf_t  b = {0};
    uint32_t    size = sizeof(m.m) + 8;
    uint64_t    tail = 0;

    /* an older client's structure: what is missing is zero */
    m.m.size = 32;
    glm_wbuf_put(&b, &m.m, 32);
    glm_wire_section(&b, GLM_SEC_TEXT, "x", 1);
    glm_submit_free(&out);
    ok(glm_wire_decode_submit(&out, b.p, b.n, &lim, &why) == 0 && out.window == 0,
       "missing bytes are zero");

    /* a newer client's */
    m = valid();
    for (tail = 0; tail < 2; tail++) {
        b = (glm_wbuf_t) {0};
        m.m.size = size;
        glm_wbuf_put(&b, &m.m, sizeof(m.m));
        glm_wbuf_put(&b, &tail, 8);
        glm_wire_section(&b, GLM_SEC_TEXT, "x", 1);
        glm_submit_free(&out);
        ok(glm_wire_decode_submit(&out, b.p, b.n, &lim, &why) == (tail ? GLM_ELIMIT : 0)
           && (!tail || why.status == 501), "unknown bytes that are %s", tail ? "set" : "zero");
    }
}

static void
test_prompts(void)
{
    msg_t    m = valid();
    int32_t  id = 100;

    m.text = NULL;
    refuses(&m, 400, "prompt", "no prompt at all");
    m = valid();
    m.text = "";
    refuses(&m, 400, "prompt", "an empty one");
    m = valid();
    m.text = "ab\xff";
    refuses(&m, 400, "prompt", "not UTF-8");
    ok(strstr(why.text, "byte 2") != NULL, "and where");
    m = valid();
    glm_wire_section(&m.more, GLM_SEC_PLAIN, "\xed\xa0\x80", 3);
    refuses(&m, 400, "prompt", "a surrogate in plain text");
    m = valid();
    glm_wire_section(&m.more, GLM_SEC_IDS, &id, 4);
    refuses(&m, 400, "prompt", "an id that is the vocabulary's size");
    ok(why.value == 100 && why.limit == 99, "with value and limit");
    id = -1;
    m = valid();
    glm_wire_section(&m.more, GLM_SEC_IDS, &id, 4);
    refuses(&m, 400, "prompt", "a negative id");
    m = valid();
    m.m.op = GLM_SUBMIT_DETOKENIZE;
    refuses(&m, 400, "tokens", "DETOKENIZE of text");
    m = valid();
    m.m.op = GLM_SUBMIT_DETOKENIZE;
    m.text = NULL;
    refuses(&m, 400, "tokens", "DETOKENIZE of nothing");
    id = 5;
    m = valid();
    m.m.op = GLM_SUBMIT_DETOKENIZE;
    m.text = NULL;
    glm_wire_section(&m.more, GLM_SEC_IDS, &id, 4);
    accepts(&m, "DETOKENIZE of ids");
    ok(out.req.op == GLM_OP_DETOKENIZE, "is one");
    m = valid();
    m.m.op = GLM_SUBMIT_TOKENIZE;
    m.text = NULL;
    glm_wire_section(&m.more, GLM_SEC_IDS, &id, 4);
    refuses(&m, 400, "prompt", "TOKENIZE of ids");
    m = valid();
    m.m.op = GLM_SUBMIT_TOKENIZE;
    m.m.flags = GLM_F_TOKEN_STRS | GLM_F_EOS_TEXT;
    accepts(&m, "TOKENIZE");
    ok(out.req.op == GLM_OP_TOKENIZE && out.token_strs && out.eos_text, "with its flags");
}

/* ---- what comes later ---- */

#define FIELD(part, field, value, param)                                          \
    do {                                                                          \
        msg_t  m_ = valid();                                                      \
        m_.part.field = value;                                                    \
        refuses(&m_, 501, param, #field " = " #value);                            \
    } while (0)

static void
test_later(void)
{
    msg_t              m;
    glm_sec_grammar_t  g = { .size = 8 };

    m = valid();
    glm_wire_section(&m.more, GLM_SEC_RESUME, "12345678", 8);
    refuses(&m, 501, "resume", "section");
    for (g.kind = 1; g.kind <= 5; g.kind++) {
        m = valid();
        glm_wire_section(&m.more, GLM_SEC_GRAMMAR, &g, sizeof(g));
        refuses(&m, 501, g.kind <= 2 ? "response_format" : "structured_outputs", "grammar");
    }

    FIELD(m, op, 0, "");
    FIELD(m, op, 6, "");
    FIELD(m, mode, 2, "mode");
    FIELD(m, reserved0, 1, "");
    FIELD(m, reserved1, 1, "");
    FIELD(m, reserved2, 1, "");
    FIELD(m, flags, GLM_F_ALL + 1, "");
    FIELD(s, reserved, 1, "");
    FIELD(s, flags, 2, "");
}

static void
test_unknown_section(void)
{
    glm_sec_t  sec = { .type = 777, .flags = GLM_SEC_CRITICAL, .size = 8 };
    msg_t      m = valid();

    glm_wbuf_put(&m.more, &sec, sizeof(sec));
    glm_wbuf_put(&m.more, "12345678", 8);
    refuses(&m, 501, "", "an unknown section that is critical");
    ok(strstr(why.text, "777") != NULL, "is refused by name: %s", why.text);
    sec = (glm_sec_t) { .type = GLM_SEC_USER, .flags = 2 };
    m = valid();
    glm_wbuf_put(&m.more, &sec, sizeof(sec));
    refuses(&m, 501, "", "unknown flags of a section");
}

/* ---- lists ---- */

#define LIST(status, param, type, p, n)                                           \
    do {                                                                          \
        msg_t  m_ = valid();                                                      \
        glm_wire_section(&m_.more, type, p, n);                                   \
        refuses(&m_, status, param, #p);                                          \
    } while (0)

static void
test_lists(void)
{
    msg_t                   m = valid();
    glm_wbuf_t              words = {0};
    static int32_t          many[2 * GLM_MAX_LIST + 2];
    const int32_t           ids[2] = { 7, 99 }, beyond[1] = { 100 }, below[1] = { -1 };
    const glm_bias_t        bias[2] = { { 7, -100 }, { 99, 100 } }, high[1] = { { 7, 100.5f } };
    const glm_bias_t        nan_[1] = { { 7, NAN } }, no_id[1] = { { 100, 1 } };
    const glm_sec_repeat_t  rep = { 16, 2, 5, 3 }, off = { 16, 0, 0, 0 }, once = { 16, 2, 5, 1 };
    const glm_sec_repeat_t  turned = { 16, 6, 5, 3 }, big = { 16, 1, GLM_MAX_REPEAT + 1, 3 };
    const glm_sec_repeat_t  newer = { 24, 1, 2, 3 };

    glm_wire_string(&words, "bad", 3);
    glm_wire_string(&words, "worse", 5);
    glm_wire_section(&m.more, GLM_SEC_STOP_IDS, ids, 8);
    glm_wire_section(&m.more, GLM_SEC_ALLOW, ids, 8);
    glm_wire_section(&m.more, GLM_SEC_BIAS, bias, 16);
    glm_wire_section(&m.more, GLM_SEC_BAD, words.p, words.n);
    glm_wire_section(&m.more, GLM_SEC_REPEAT, &rep, 16);
    m.s.presence = -2;
    m.s.frequency = 2;
    m.s.repetition = 1.5f;
    m.s.min_tokens = 5;
    accepts(&m, "what changes single ids");
    ok(out.req.nstop_id == 2 && out.req.stop_id[1] == 99, "stop ids");
    ok(out.req.nallow == 2 && out.req.allow[0] == 7, "allowed ids");
    ok(out.req.nbias == 2 && out.req.bias[1].id == 99 && out.req.bias[1].bias == 100, "biases");
    ok(out.req.nbad == 2 && out.req.bad[1].n == 5 && memcmp(out.req.bad[1].s, "worse", 5) == 0,
       "bad words");
    ok(out.req.repeat.min_length == 2 && out.req.repeat.max_length == 5
       && out.req.repeat.min_count == 3, "repetition detection");
    ok(out.req.sample.presence == -2 && out.req.sample.frequency == 2
       && out.req.sample.repetition == 1.5f && out.req.min_tokens == 5, "penalties, min_tokens");
    m = valid();
    glm_wire_section(&m.more, GLM_SEC_REPEAT, &off, 16);
    accepts(&m, "no repetition detection");
    ok(out.req.repeat.max_length == 0 && out.req.allow == NULL, "is none");

    LIST(400, "stop_token_ids", GLM_SEC_STOP_IDS, beyond, 4);
    ok(why.value == 100 && why.limit == 99, "with value and limit");
    LIST(400, "stop_token_ids", GLM_SEC_STOP_IDS, many, 4 * GLM_MAX_LIST + 4);
    ok(why.value == GLM_MAX_LIST + 1 && why.limit == GLM_MAX_LIST, "with value and limit");
    LIST(400, "logprob_token_ids", GLM_SEC_SCORE_IDS, ids, 8);
    LIST(400, "logprob_token_ids", GLM_SEC_SCORE_IDS, beyond, 4);
    LIST(400, "logprob_token_ids", GLM_SEC_SCORE_IDS, many, 84);
    LIST(400, "allowed_token_ids", GLM_SEC_ALLOW, below, 4);
    LIST(400, "allowed_token_ids", GLM_SEC_ALLOW, NULL, 0);
    LIST(400, "allowed_token_ids", GLM_SEC_ALLOW, many, 404);
    LIST(400, "logit_bias", GLM_SEC_BIAS, high, 8);
    ok(why.value == 100 && why.limit == 100, "with value and limit");
    LIST(400, "logit_bias", GLM_SEC_BIAS, nan_, 8);
    LIST(400, "logit_bias", GLM_SEC_BIAS, no_id, 8);
    LIST(400, "logit_bias", GLM_SEC_BIAS, many, 8 * GLM_MAX_LIST + 8);
    LIST(400, "bad_words", GLM_SEC_BAD, "\0\0\0\0", 4);
    LIST(400, "bad_words", GLM_SEC_BAD, "\1\0\0\0\xff\0\0", 8);
    LIST(400, "repetition_detection", GLM_SEC_REPEAT, &once, 16);
    LIST(400, "repetition_detection", GLM_SEC_REPEAT, &turned, 16);
    LIST(400, "repetition_detection", GLM_SEC_REPEAT, &big, 16);
    ok(why.value == GLM_MAX_REPEAT + 1 && why.limit == GLM_MAX_REPEAT, "with value and limit");

    m = valid();
    glm_wire_section(&m.more, GLM_SEC_STOP_IDS, ids, 6);
    rejects(&m, "one and a half stop ids");
    m = valid();
    glm_wire_section(&m.more, GLM_SEC_BIAS, bias, 12);
    rejects(&m, "one and a half biases");
    m = valid();
    glm_wire_section(&m.more, GLM_SEC_BAD, words.p, words.n - 6);
    rejects(&m, "a bad word that is cut");
    m = valid();
    glm_wire_section(&m.more, GLM_SEC_REPEAT, &newer, 16);
    rejects(&m, "a repetition structure beyond its section");
    glm_wbuf_free(&words);
}

/* ---- what is out of range ---- */

#define RANGE(part, field, value, param)                                          \
    do {                                                                          \
        msg_t  m_ = valid();                                                      \
        m_.part.field = value;                                                    \
        refuses(&m_, 400, param, #field " = " #value);                            \
    } while (0)

static void
test_ranges(void)
{
    int         i;
    msg_t       m;
    glm_wbuf_t  s = {0};

    RANGE(m, max_tokens, -2, "max_tokens");
    RANGE(m, group_count, GLM_WIRE_MAX_GROUP + 1, "prompt");
    ok(why.limit == GLM_WIRE_MAX_GROUP && why.value == GLM_WIRE_MAX_GROUP + 1
       && out.group_count == 1, "with limit and value, and no group");
    RANGE(m, truncate, -2, "truncate_prompt_tokens");
    ok(why.limit == -1 && why.value == -2, "with limit and value");
    RANGE(m, n, 9, "n");
    ok(why.limit == 8 && why.value == 9, "with limit and value");
    RANGE(m, n, UINT32_MAX, "n");
    RANGE(m, best_of, 9, "best_of");
    m = valid();
    m.m.n = 3;
    m.m.best_of = 2;
    refuses(&m, 400, "best_of", "best_of below n");
    ok(why.limit == 3 && why.value == 2, "with limit and value");
    RANGE(s, presence, 2.5f, "presence_penalty");
    ok(why.limit == 2 && why.value == 2, "with limit and value");
    RANGE(s, presence, NAN, "presence_penalty");
    RANGE(s, frequency, -2.5f, "frequency_penalty");
    ok(why.limit == -2, "with the limit");
    RANGE(s, frequency, -INFINITY, "frequency_penalty");
    RANGE(s, repetition, -1, "repetition_penalty");
    RANGE(s, repetition, NAN, "repetition_penalty");
    RANGE(s, repetition, INFINITY, "repetition_penalty");
    RANGE(s, min_tokens, -1, "min_tokens");
    RANGE(s, min_tokens, 6, "min_tokens");
    ok(why.limit == 5 && why.value == 6, "with limit and value");
    RANGE(s, temperature, -0.1f, "temperature");
    RANGE(s, temperature, NAN, "temperature");
    RANGE(s, temperature, INFINITY, "temperature");
    RANGE(s, top_p, 1.1f, "top_p");
    RANGE(s, top_p, NAN, "top_p");
    RANGE(s, min_p, -0.1f, "min_p");
    RANGE(s, top_k, -1, "top_k");
    RANGE(s, logprobs, 21, "logprobs");
    RANGE(s, logprobs, -2, "logprobs");
    RANGE(s, prompt_logprobs, 21, "prompt_logprobs");
    RANGE(s, prompt_logprobs, -2, "prompt_logprobs");

    m = valid();
    glm_wire_string(&s, "", 0);
    glm_wire_section(&m.more, GLM_SEC_STOPS, s.p, s.n);
    refuses(&m, 400, "stop", "an empty stop");
    glm_wbuf_free(&s);
    m = valid();
    glm_wire_string(&s, "\x80", 1);
    glm_wire_section(&m.more, GLM_SEC_STOPS, s.p, s.n);
    refuses(&m, 400, "stop", "a stop that is no UTF-8");
    glm_wbuf_free(&s);
    m = valid();
    for (i = 0; i < 5; i++) glm_wire_string(&s, "x", 1);
    glm_wire_section(&m.more, GLM_SEC_STOPS, s.p, s.n);
    refuses(&m, 400, "stop", "five stops of four");
    ok(why.limit == 4, "with the limit");
    glm_wbuf_free(&s);
    m = valid();
    for (i = 0; i <= GLM_WIRE_MAX_SEGMENTS; i++) glm_wire_section(&m.more, GLM_SEC_TEXT, "x", 1);
    refuses(&m, 400, "prompt", "more parts than a prompt has");
}

/* ---- what no client sends ---- */

static void
raw(const void *p, size_t n, const char *what)
{
    uint8_t  *copy = malloc(n ? n : 1);

    memcpy(copy, p, n);
    glm_submit_free(&out);
    ok(glm_wire_decode_submit(&out, copy, n, &lim, &why) == GLM_EINVAL, "nonsense: %s", what);
}

static void
test_nonsense(void)
{
    msg_t      m = valid();
    uint32_t   size[3] = { 0 };
    glm_str_t  str = { .size = 100 };
    glm_sec_t  sec = { .type = GLM_SEC_TEXT, .size = 100 };

    raw("", 0, "no bytes");
    raw("\x60\0\0", 3, "three bytes");
    raw(size, 8, "a size of 0");
    m.m.size = 97;
    rejects(&m, "a size that is no multiple of 8");
    m.m.size = 4096;
    rejects(&m, "a size beyond the message");
    m = valid();
    glm_wbuf_put(&m.more, &sec, sizeof(sec));
    rejects(&m, "a section longer than its message");
    m = valid();
    sec.size = UINT32_MAX;
    glm_wbuf_put(&m.more, &sec, sizeof(sec));
    rejects(&m, "a section of 4 GiB");
    m = valid();
    glm_wbuf_put(&m.more, "1234", 4);
    rejects(&m, "half a section header");
    m = valid();
    glm_wire_section(&m.more, GLM_SEC_IDS, "123456", 6);
    rejects(&m, "one and a half ids");
    m = valid();
    glm_wire_section(&m.more, GLM_SEC_SAMPLING, &m.s, sizeof(m.s));
    rejects(&m, "two sampling sections");
    m = valid();
    m.s.size = 64;
    rejects(&m, "bytes behind the sampling structure");
    m = valid();
    glm_wire_section(&m.more, GLM_SEC_STOPS, &str, sizeof(str));
    rejects(&m, "a stop longer than its list");
    m = valid();
    glm_wire_section(&m.more, GLM_SEC_STOPS, "12", 2);
    rejects(&m, "half a string header");
    m = valid();
    m.m.group_count = 3;
    m.m.group_index = 3;
    rejects(&m, "a group index beyond its group");
    m = valid();
    m.m.group_count = 3;
    m.m.op = GLM_SUBMIT_TOKENIZE;
    rejects(&m, "a group of texts to tokenize");
}

static void
test_short(void)
{
    uint64_t            bytes_ = 0, z[3] = {0};
    glm_msg_window_t    w = { .size = sizeof(w), .bytes = 5 };
    struct { glm_msg_window_t w; uint64_t more; }  big = { { .size = 24, .bytes = 6 }, 0 };

    ok(glm_wire_decode_window((uint8_t *) &w, sizeof(w), &bytes_) == 0 && bytes_ == 5, "window");
    ok(glm_wire_decode_window((uint8_t *) &w, 15, &bytes_) != 0, "window: short");
    w.reserved = 1;
    ok(glm_wire_decode_window((uint8_t *) &w, sizeof(w), &bytes_) != 0, "window: reserved");
    ok(glm_wire_decode_window((uint8_t *) &big, 24, &bytes_) == 0 && bytes_ == 6, "window: newer");
    big.more = 1;
    ok(glm_wire_decode_window((uint8_t *) &big, 24, &bytes_) != 0, "window: newer and set");
    ok(glm_wire_decode_empty(NULL, 0) == 0 && glm_wire_decode_empty((uint8_t *) z, 24) == 0,
       "an empty payload, or zeros");
    z[2] = 1;
    ok(glm_wire_decode_empty((uint8_t *) z, 24) != 0, "anything else");
}

/* Changes bytes of a valid message: any answer but a crash (sanitizers look on). */
static void
test_mutations(void)
{
    int         i, k, kinds[3] = {0}, rc;
    uint64_t    x = 42;
    size_t      at;
    glm_wbuf_t  b;
    msg_t       m;

    for (i = 0; i < 100000; i++) {
        m = valid();
        glm_wire_section(&m.more, GLM_SEC_STOPS, "\1\0\0\0a\0\0\0\3\0\0\0abc\0", 16);
        glm_wire_section(&m.more, GLM_SEC_IDS, "\1\0\0\0\2\0\0\0", 8);
        glm_wire_section(&m.more, GLM_SEC_BIAS, "\1\0\0\0\0\0\200\77", 8);
        glm_wire_section(&m.more, GLM_SEC_ALLOW, "\1\0\0\0\2\0\0\0", 8);
        glm_wire_section(&m.more, GLM_SEC_BAD, "\1\0\0\0a\0\0\0", 8);
        b = bytes(&m);
        for (k = 0; k < 1 + i % 4; k++) {
            x = x * 6364136223846793005u + 1442695040888963407u;
            at = (size_t) (x >> 33) % b.n;
            b.p[at] = (x >> 20) % 3 ? (uint8_t) (x >> 24) : b.p[at] ^ (uint8_t) (1 << (x >> 60) % 8);
        }
        b.n -= i % 7 ? 0 : (size_t) (x >> 40) % b.n;
        glm_submit_free(&out);
        rc = glm_wire_decode_submit(&out, b.p, b.n, &lim, &why);
        kinds[rc == 0 ? 0 : rc == GLM_ELIMIT ? 1 : 2]++;
    }
    ok(kinds[0] > 100 && kinds[1] > 100 && kinds[2] > 100,
       "100,000 damaged messages: %d accepted, %d refused, %d nonsense", kinds[0], kinds[1],
       kinds[2]);
}

/* ---- answers ---- */

static const char *
text_of(void *arg, int32_t id, size_t *n)
{
    (void) arg;
    *n = (size_t) id;
    return "abcdefgh";
}

static void
test_merge(void)
{
    int                i;
    uint16_t           type;
    glm_wbuf_t         b = {0};
    glm_outbox_t       o = {0};
    glm_msg_tokens_t   m;
    glm_sampled_t      s = { .id = 3, .logprob = -1, .ntop = 1, .top = { { 5, -0.5f } } };
    glm_token_out_t    t = { .text = "xy", .ntext = 2, .sampled = &s };

    for (i = 0; i < 6; i++) {
        t.choice = i % 2;
        t.id = i;
        glm_outbox_token(&o, &t, text_of, NULL);
    }
    ok(glm_outbox_costs(&o) == 1 && glm_outbox_take(&o, &type, &b) == 1
       && type == GLM_MSG_TOKENS, "tokens wait");
    memcpy(&m, b.p, sizeof(m));
    ok(m.size == 16 && m.choice == 0 && m.ntokens == 3, "those of a choice are one message");
    ok(b.n == 16 + (8 + 16) + (8 + 8) + (8 + 3 * (16 + 4 + 16 + 8)) + 4, "%zu bytes of it", b.n);
    ok(memcmp(b.p + 24, "\0\0\0\0\2\0\0\0\4\0\0\0", 12) == 0, "its ids");
    ok(memcmp(b.p + 48, "xyxyxy", 6) == 0, "its text");
    ok(memcmp(b.p + 64 + 16, "abc", 3) == 0 && memcmp(b.p + 64 + 36, "abcde", 5) == 0,
       "the texts of its log-probabilities");
    glm_wbuf_free(&b);
    glm_outbox_drop_output(&o);
    ok(o.head == NULL && o.bytes == 0, "dropped: nothing is charged");

    for (i = 0; i < 2000; i++) glm_outbox_token(&o, &t, text_of, NULL);
    for (i = 0; glm_outbox_take(&o, &type, &b) == 1; i++) {
        if (b.n > GLM_SPOOL_MERGE + 200) break;
        glm_wbuf_free(&b);
    }
    ok(o.head == NULL && i > 10, "merging ends: %d messages, none above %d bytes", i,
       GLM_SPOOL_MERGE);
    glm_outbox_free(&o);
}

static void
test_end(void)
{
    _Alignas(8) uint8_t  e[GLM_WIRE_END_MAX];
    size_t               n;
    glm_done_t           d = { .prompt_tokens = 3, .completion_tokens = 4, .cancelled = 9,
                               .t_submit = 100, .t_admit = 150, .t_done = 400 };
    glm_msg_done_t       md;
    glm_msg_error_t      me;
    glm_refusal_t        r = { .status = 503, .retry_after = 2, .limit = 7, .value = 8,
                               .code = "c", .param = "p" };

    n = glm_wire_done(e, &d);
    memcpy(&md, e, sizeof(md));
    ok(n == 48 && md.cancelled == 1 && md.queue_ns == 50 && md.first_ns == 0 && md.total_ns == 300,
       "DONE");
    memset(r.text, 'x', sizeof(r.text));     /* no NUL anywhere */
    memset(r.param, 'p', sizeof(r.param));
    n = glm_wire_error(e, &r);
    memcpy(&me, e, sizeof(me));
    ok(n == GLM_WIRE_END_MAX && me.status == 503 && me.retry_after == 2 && me.limit == 7
       && me.value == 8 && me.param[47] == '\0', "ERROR of any length fits");
}

int
main(void)
{
    test_fields();
    test_neutral();
    test_sizes();
    test_prompts();
    test_later();
    test_unknown_section();
    test_lists();
    test_ranges();
    test_nonsense();
    test_short();
    test_mutations();
    test_merge();
    test_end();
    glm_submit_free(&out);
    return tap_done();
}
