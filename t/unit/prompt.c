/*
 * prompt: breaks when a prompt becomes other ids, positions or lengths than the
 * original's rules say, or when a refusal is missing or names the wrong numbers.
 */
#include <string.h>

#include "prompt.h"
#include "tap.h"

static glm_config_t  cfg = {
    .name = "test", .vocab = 8192, .max_seq = 100, .mask = 7808, .gmask = 7809, .smask = 7810,
    .eod = 7811, .sop = 7812, .eop = 7813, .enc = 7814, .dblock = 7815, .eos = 2,
    .end_tokens = { 7813, 2 }, .nend_tokens = 2
};
static glm_vocab_t    vocab = { &cfg, NULL };
static glm_segment_t  seg[4];
static glm_req_t      req;
static glm_prompt_t   p;
static glm_refusal_t  no;

static int
make(const int32_t *ids, size_t n)
{
    glm_prompt_free(&p);
    memset(&no, 0, sizeof(no));
    seg[0] = (glm_segment_t) { .kind = GLM_SEG_IDS, .ids = ids, .n = n };
    req.seg = seg;
    req.nseg = 1;
    return glm_prompt_make(&p, &vocab, &req, 0, &no);
}

/* want ends with -1 */
static int
is(const int32_t *want)
{
    int32_t  n = 0;

    while (want[n] != -1) n++;
    return n == p.n && memcmp(want, p.ids, (size_t) n * sizeof(int32_t)) == 0;
}

#define IDS(...)   (const int32_t[]) { __VA_ARGS__ }
#define MAKE(...)  make(IDS(__VA_ARGS__), sizeof(IDS(__VA_ARGS__)) / sizeof(int32_t))

static void
reset(int special, glm_mode_t mode, int32_t max_tokens)
{
    req = (glm_req_t) { .add_special = special, .mode = mode, .max_tokens = max_tokens };
}

static void
test_bidirectional(void)
{
    reset(1, GLM_BIDIRECTIONAL, 5);
    ok(MAKE(10, 11) == 0 && is(IDS(10, 11, 7809, 7812, -1)), "no mask: [gMASK] is added");
    ok(p.ncontext == 3 && p.prompt_tokens == 3 && p.frozen == -1 && p.max_tokens == 5,
       "sop is causal and not counted; positions run on");
    ok(MAKE(10, 7808, 11) == 0 && is(IDS(10, 7808, 11, 2, 7812, -1)) && p.frozen == 1,
       "[MASK] inside: eos is added, positions stay at the mask");
    ok(MAKE(10, 7808) == 0 && is(IDS(10, 7808, 7812, -1)) && p.frozen == 1, "[MASK] last: no eos");
    ok(MAKE(7810, 10) == 0 && is(IDS(7810, 10, 2, 7812, -1)) && p.frozen == 0,
       "[sMASK] freezes too");
    ok(MAKE(7809, 10) == 0 && is(IDS(7809, 10, 2, 7812, -1)) && p.frozen == -1,
       "[gMASK] inside: eos, positions run on");
    ok(MAKE(7809, 7810, 10, 7810, 7808, 9) == 0 && p.frozen == 4,
       "[MASK] is filled before any other kind");
    ok(MAKE(7810, 10, 7809) == 0 && is(IDS(7810, 10, 7809, 7812, -1)) && p.frozen == 0,
       "[sMASK] before [gMASK]; another kind at the end counts as a mask");
    ok(MAKE(7808) == 0 && is(IDS(7808, 7812, -1)), "a lone mask is a prompt");
    ok(MAKE(7808, 10, 7808) == GLM_EINVAL && no.status == 400 && !strcmp(no.param, "prompt")
       && no.value == 2 && no.limit == 1 && strstr(no.text, "/v1/infill"), "two [MASK]: %s",
       no.text);
    ok(MAKE(7809, 7809, 7809) == GLM_EINVAL && no.value == 3, "three [gMASK]: %s", no.text);
    ok(MAKE(10, 8191, 8192) == GLM_EINVAL && no.limit == 8191 && no.value == 8192
       && !strcmp(no.param, "prompt"), "past the vocabulary: %s", no.text);
    ok(MAKE(-5) == GLM_EINVAL && no.value == -5, "negative id: %s", no.text);
    ok(make(NULL, 0) == GLM_EINVAL && no.status == 400 && !strcmp(no.param, "prompt"),
       "nothing: %s", no.text);

    reset(0, GLM_BIDIRECTIONAL, 5);
    ok(MAKE(10, 11) == 0 && is(IDS(10, 11, 7812, -1)) && p.frozen == -1 && p.ncontext == 2,
       "add_special 0: exactly the ids, and sop");
    ok(MAKE(10, 7808, 11) == 0 && is(IDS(10, 7808, 11, 7812, -1)) && p.frozen == 1,
       "add_special 0: a mask freezes, no eos");
    ok(MAKE(7808, 7808) == GLM_EINVAL, "add_special 0: two masks are still too many");
}

static void
test_unidirectional(void)
{
    reset(1, GLM_UNIDIRECTIONAL, 5);
    ok(MAKE(10, 11) == 0 && is(IDS(7809, 7812, 10, 11, -1)), "[gMASK] sop text");
    ok(p.ncontext == 0 && p.prompt_tokens == 3 && p.frozen == -1, "causal from the start");
    ok(MAKE(10, 7808) == GLM_EINVAL && !strcmp(no.param, "prompt"), "with a mask: %s", no.text);
    ok(make(NULL, 0) == GLM_EINVAL, "nothing is refused");
    reset(0, GLM_UNIDIRECTIONAL, 5);
    ok(MAKE(7809, 7812, 10) == 0 && is(IDS(7809, 7812, 10, -1)) && p.prompt_tokens == 3,
       "add_special 0: exactly the ids");
}

static void
test_length(void)
{
    int32_t  ids[200];

    for (int i = 0; i < 200; i++) ids[i] = 20 + i;
    reset(0, GLM_BIDIRECTIONAL, 49);
    ok(make(ids, 50) == 0 && p.max_tokens == 49, "50 + 1 + 49 of 100 fit");
    req.max_tokens = 50;
    ok(make(ids, 50) == GLM_EINVAL && !strcmp(no.code, "context_length_exceeded")
       && no.limit == 100 && no.value == 101 && !strcmp(no.param, "max_tokens")
       && strstr(no.text, "maximum context length is 100 tokens") && strstr(no.text, "101 tokens")
       && strstr(no.text, "50 in the prompt") && strstr(no.text, "50 for the completion"),
       "one more: %s", no.text);
    req.max_tokens = -1;
    ok(make(ids, 50) == 0 && p.max_tokens == 49, "-1: the rest");
    ok(make(ids, 99) == GLM_EINVAL && !strcmp(no.param, "prompt"), "no rest: %s", no.text);
    req.max_tokens = 0;
    ok(make(ids, 99) == 0 && p.max_tokens == 0, "0 tokens after a full prompt");
    ok(make(ids, 200) == GLM_EINVAL && no.value == 201, "a prompt too long: %s", no.text);
    req.max_tokens = INT32_MAX;
    ok(make(ids, 50) == GLM_EINVAL && no.value == 51 + (int64_t) INT32_MAX, "huge max_tokens");

    reset(1, GLM_BIDIRECTIONAL, 0);
    ok(make(ids, 98) == 0 && make(ids, 99) == GLM_EINVAL, "an added mask counts");
    cfg.gmask = GLM_NO_TOKEN;
    ok(MAKE(10) == GLM_EINVAL, "a model without [gMASK]: %s", no.text);
    cfg.gmask = 7809;
}

static void
set_text(int i, glm_seg_kind_t kind, const char *s)
{
    seg[i] = (glm_segment_t) { .kind = kind, .text = s, .n = strlen(s) };
    req.seg = seg;
    req.nseg = (size_t) i + 1;
}

static int
make_text(void)
{
    glm_prompt_free(&p);
    memset(&no, 0, sizeof(no));
    return glm_prompt_make(&p, &vocab, &req, 0, &no);
}

static int
tokenize(glm_ids_t *ids)
{
    ids->n = 0;
    return glm_prompt_tokenize(ids, &vocab, &req, &no);
}

static void
set_suffix(const char *s)
{
    req.suffix = s;
    req.nsuffix = strlen(s);
}

static void
test_suffix(void)
{
    glm_ids_t  whole = {0};
    int32_t    with;

    reset(1, GLM_BIDIRECTIONAL, 5);
    set_text(0, GLM_SEG_TEXT, "Where [MASK] the file?");
    tokenize(&whole);
    set_text(0, GLM_SEG_TEXT, "Where ");
    set_suffix(" the file?");
    ok(make_text() == 0 && p.n == (int32_t) whole.n + 1
       && memcmp(p.ids, whole.id, whole.n * sizeof(int32_t)) == 0 && p.nown > 0
       && p.frozen == p.nown && p.ids[p.nown] == cfg.mask && p.kind == cfg.mask,
       "prompt and suffix are one prompt with [MASK] between them, and eos");
    with = p.prompt_tokens;
    req.gmask = 1;
    ok(make_text() == 0 && p.ids[p.nown] == cfg.gmask && p.frozen == -1 && p.prompt_tokens == with,
       "or with [gMASK]");
    req.gmask = 0;
    req.add_special = 0;
    ok(make_text() == 0 && p.prompt_tokens == with - 1, "add_special 0: no eos");
    req.add_special = 1;
    set_suffix(" [MASK]");
    ok(make_text() == 0 && p.nblanks == 1 && p.ids[p.n - 2] == cfg.eos,
       "a mask in a suffix is text");
    req.nseg = 0;
    ok(make_text() == 0 && p.nown == 0 && p.frozen == 0, "nothing before it");
    set_text(0, GLM_SEG_TEXT, "Where");
    set_suffix("");
    ok(make_text() == 0 && p.nblanks == 1 && p.kind == cfg.gmask, "an empty one is none");

    set_suffix("file");
    set_text(0, GLM_SEG_TEXT, "Where [sMASK]");
    ok(make_text() == GLM_EINVAL && no.status == 400 && !strcmp(no.param, "suffix"),
       "beside a mask: %s", no.text);
    set_text(0, GLM_SEG_PLAIN, "Where [sMASK]");
    ok(make_text() == 0, "that is text: none");
    req.mode = GLM_UNIDIRECTIONAL;
    ok(make_text() == GLM_EINVAL && !strcmp(no.param, "suffix"), "unidirectional: %s", no.text);
    req.mode = GLM_BIDIRECTIONAL;
    req.op = GLM_OP_INFILL;
    ok(make_text() == GLM_EINVAL && !strcmp(no.param, "suffix"), "INFILL: %s", no.text);
    req.op = GLM_OP_GENERATE;

    req.truncate = -1;
    req.max_tokens = cfg.max_seq - 10;
    set_text(0, GLM_SEG_TEXT, "one two three four five six seven eight nine ten eleven twelve");
    ok(make_text() == 0 && p.n + p.max_tokens == cfg.max_seq && p.ids[p.nown] == cfg.mask,
       "truncation leaves the suffix whole, and uses all the room");
    vocab.tok = NULL;
    seg[0] = (glm_segment_t) { .kind = GLM_SEG_IDS, .ids = IDS(10), .n = 1 };
    ok(make_text() == GLM_EINVAL && !strcmp(no.param, "suffix"), "no tokenizer: %s", no.text);
    glm_ids_free(&whole);
}

static void
test_text(void)
{
    glm_tokenizer_t  *tok;
    glm_ids_t         a = {0}, b = {0};

    reset(1, GLM_BIDIRECTIONAL, 5);
    set_text(0, GLM_SEG_TEXT, "Where is the file?");
    ok(glm_prompt_make(&p, &vocab, &req, 0, &no) == GLM_EINVAL && !strcmp(no.param, "prompt"),
       "text without a tokenizer: %s", no.text);
    if (glm_tokenizer_load(&tok, "models/demo", NULL) != 0 || tok == NULL) {
        skip("no demo model");
        return;
    }
    vocab.tok = tok;
    tokenize(&a);
    set_text(0, GLM_SEG_TEXT, "Where is");
    set_text(1, GLM_SEG_TEXT, "");
    set_text(2, GLM_SEG_TEXT, " the file?");
    tokenize(&b);
    ok(a.n == b.n && a.n > 3 && memcmp(a.id, b.id, a.n * sizeof(int32_t)) == 0
       && a.id[a.n - 1] == cfg.gmask, "adjacent text is encoded in one go; TOKENIZE adds [gMASK]");

    set_text(0, GLM_SEG_TEXT, "a [MASK] b");
    tokenize(&a);
    ok(a.id[a.n - 1] == cfg.eos, "TOKENIZE adds eos after a mask inside, never sop");
    set_text(0, GLM_SEG_PLAIN, "a [MASK] b");
    tokenize(&a);
    ok(a.id[a.n - 1] == cfg.gmask, "a mask in plain text is text");
    set_text(0, GLM_SEG_TEXT, "a [MASK]");
    tokenize(&a);
    ok(a.id[a.n - 1] == cfg.mask, "a mask at the end: no eos");
    set_text(0, GLM_SEG_TEXT, "a [MASK] ");
    tokenize(&a);
    ok(a.id[a.n - 1] == cfg.eos, "a blank after the mask: eos, as the original");
    set_text(0, GLM_SEG_TEXT, "a [MASK] b [MASK]");
    ok(tokenize(&a) == 0 && a.id[a.n - 1] == cfg.mask, "TOKENIZE takes several masks");
    req.add_special = 0;
    set_text(0, GLM_SEG_TEXT, "");
    ok(tokenize(&a) == 0 && a.n == 0, "TOKENIZE of nothing: no ids");
    req.add_special = 1;
    set_text(0, GLM_SEG_TEXT, " ");
    ok(glm_prompt_make(&p, &vocab, &req, 0, &no) == GLM_EINVAL && !strcmp(no.param, "prompt"),
       "a blank is no prompt");
    set_text(0, GLM_SEG_TEXT, "a b");
    seg[1] = (glm_segment_t) { .kind = GLM_SEG_IDS, .ids = IDS(7808, 11), .n = 2 };
    req.nseg = 2;
    glm_prompt_free(&p);
    ok(glm_prompt_make(&p, &vocab, &req, 0, &no) == 0 && p.frozen > 0 && p.ids[p.n - 2] == cfg.eos,
       "text and ids together follow the same rules");
    test_suffix();

    glm_ids_free(&a);
    glm_ids_free(&b);
    glm_prompt_free(&p);
    glm_tokenizer_free(tok);
}

int
main(void)
{
    test_bidirectional();
    test_unidirectional();
    test_length();
    glm_prompt_free(&p);
    test_text();
    return tap_done();
}
