/*
 * pickle: the .pt reader gives what torch saved, and anything else is
 * refused.  What would break: a checkpoint from a stranger that runs code,
 * reads outside its file or eats all memory.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <jansson.h>
#include <zip.h>

#include "../../tools/convert/pt.h"
#include "tap.h"

#define SAMPLES  "t/data/pt-samples/"

static char  dir[] = "/tmp/glm-pt.XXXXXX";


static uint8_t *
slurp(const char *path, size_t *len)
{
    static uint8_t  buf[65536];
    FILE           *f = fopen(path, "r");

    if (f == NULL) bail_out("a sample is missing: run from the repository's root");
    *len = fread(buf, 1, sizeof(buf), f);
    fclose(f);
    return buf;
}


static const char *
put(const void *bytes, size_t n)
{
    static char  path[64];
    FILE        *f;

    snprintf(path, sizeof(path), "%s/x.pt", dir);
    if ((f = fopen(path, "w")) == NULL || fwrite(bytes, 1, n, f) != n || fclose(f) != 0) {
        bail_out("cannot write a test file");
    }
    return path;
}


/* Values as doubles: the sink knows its dtype. */
typedef struct {
    pt_dtype_t  dtype;
    double      v[64];
    size_t      n;
} values_t;


static double
half(uint16_t h)
{
    int     e = h >> 10 & 31, m = h & 1023;
    double  x = e ? (double) (1024 + m) : (double) m;

    for (e = e ? e - 25 : -24; e < 0; e++) x /= 2;
    for (; e > 0; e--) x *= 2;
    return h & 0x8000 ? -x : x;
}


static int
take(void *arg, const void *elems, size_t n)
{
    values_t       *v = arg;
    const uint8_t  *p = elems;
    uint16_t        h = 0;
    float           f = 0;
    int64_t         l = 0;
    size_t          i, size = pt_dtype_size(v->dtype);

    for (i = 0; i < n && v->n < 64; i++, p += size) {
        memcpy(&h, p, size < 2 ? size : 2);
        if (size >= 4) memcpy(&f, p, 4);
        if (size >= 8) memcpy(&l, p, 8);
        v->v[v->n++] = v->dtype == PT_HALF ? half(h) : v->dtype == PT_FLOAT ? (double) f
                       : v->dtype == PT_CHAR ? (double) (int8_t) *p : (double) l;
    }
    return 0;
}


static int
same_as(pt_file_t *f, const pt_tensor_t *t, json_t *want)
{
    values_t  v = { .dtype = t->t->storage->dtype };
    json_t   *shape = json_object_get(want, "shape"), *values = json_object_get(want, "values");
    size_t    i;

    if (strcmp(pt_dtype_name(v.dtype), json_string_value(json_object_get(want, "dtype"))) != 0) return 0;
    if ((size_t) t->t->ndim != json_array_size(shape)) return 0;
    for (i = 0; i < json_array_size(shape); i++) {
        if (t->t->dim[i] != json_integer_value(json_array_get(shape, i))) return 0;
    }
    if (pt_read(f, t, take, &v, NULL) != 0 || v.n != json_array_size(values)) return 0;
    for (i = 0; i < v.n; i++) {
        if (v.v[i] != json_number_value(json_array_get(values, i))) return 0;
    }
    return 1;
}


static void
test_sample(const char *path)
{
    json_t       *all = json_load_file(SAMPLES "expected.json", 0, NULL), *want;
    pt_tensor_t  *t;
    pt_file_t    *f;
    glm_err_t     err = { "" };
    const char   *name;

    if (all == NULL) bail_out("expected.json is missing: run from the repository's root");
    if (!ok(pt_open(&f, path, &err) == 0, "%s opens%s", path, err.text)) return;
    ok(pt_count(f) == json_object_size(all), "%zu tensors", pt_count(f));
    json_object_foreach(all, name, want) {
        t = pt_find(f, name);
        ok(t != NULL && same_as(f, t, want), "%s: dtype, shape and values", name);
    }
    ok(strcmp(pt_others(f), "iteration, rng, flags") == 0, "what is skipped: %s", pt_others(f));
    pt_close(f);
    json_decref(all);
}


/* Opens and reads everything; 0 only if all of it worked. */
static int
read_all(const char *path, glm_err_t *err)
{
    values_t    v;
    pt_file_t  *f;
    size_t      i;
    int         rc = pt_open(&f, path, err);

    for (i = 0; rc == 0 && i < pt_count(f); i++) {
        v.n = 0;
        v.dtype = pt_at(f, i)->t->storage->dtype;
        rc = pt_read(f, pt_at(f, i), take, &v, err);
    }
    pt_close(f);
    return rc;
}


static void
test_refused_samples(void)
{
    glm_err_t  err = { "" };

    ok(read_all(SAMPLES "refuse-global.pt", &err) < 0
       && strstr(err.text, "refuse-global.pt: pickle byte 29: global \"__builtin__.print\" is refused"),
       "%s", err.text);
    err.text[0] = '\0';
    ok(read_all(SAMPLES "refuse-short-storage.pt", &err) < 0
       && strstr(err.text, "plain: its storage 0 has 20 bytes of 96"), "%s", err.text);
    err.text[0] = '\0';
    ok(read_all(SAMPLES "none.pt", &err) == GLM_ENOENT, "%s", err.text);
    err.text[0] = '\0';
    ok(read_all(SAMPLES "expected.json", &err) < 0 && strstr(err.text, "neither form"), "%s", err.text);
    err.text[0] = '\0';
    ok(read_all(dir, &err) < 0 && strstr(err.text, "not a plain file"), "%s", err.text);
}


static void
test_truncated(const char *sample)
{
    size_t       left, len;
    uint8_t     *bytes = slurp(sample, &len);
    const char  *path = put(bytes, len);
    glm_err_t    err = { "" };

    ok(read_all(path, NULL) == 0, "%s: the whole copy is read", sample);
    for (left = len; left > 0; left--) {
        err.text[0] = '\0';
        if (truncate(path, (off_t) left - 1) != 0) bail_out("truncate() failed");
        if (read_all(path, &err) == 0 || err.text[0] == '\0') break;
    }
    ok(left == 0, "%s: each of %zu truncations is refused (not %zu)", sample, len, left);
}


/* Nothing to expect but that it ends, without a crash. */
static void
test_damaged(const char *sample)
{
    static const uint8_t  masks[] = { 0xff, 0x01, 0x80 };
    size_t                i, m, len, refused = 0;
    uint8_t              *bytes = slurp(sample, &len), b;
    const char           *path = put(bytes, len);
    int                   fd = open(path, O_WRONLY);

    for (i = 0; i < len; i++) {
        for (m = 0; m <= sizeof(masks); m++) {          /* the last time it is put right */
            b = m < sizeof(masks) ? bytes[i] ^ masks[m] : bytes[i];
            if (pwrite(fd, &b, 1, (off_t) i) != 1) bail_out("pwrite() failed");
            if (m < sizeof(masks)) refused += read_all(path, NULL) != 0;
        }
    }
    close(fd);
    ok(refused > len, "%s: %zu of %zu damaged copies are refused", sample, refused,
       sizeof(masks) * len);
}


/* A member whose values changed is noticed by its CRC. */
static void
test_crc(void)
{
    size_t      len;
    uint8_t    *bytes = slurp(SAMPLES "zip.pt", &len), *at;
    glm_err_t   err = { "" };

    at = memmem(bytes, len, "\x1a\xbe\x00\xba", 4);     /* first values of "plain" */
    if (at == NULL) bail_out("the sample is not as it was");
    at[0] ^= 1;
    ok(read_all(put(bytes, len), &err) < 0 && strstr(err.text, "the file is damaged")
       && strstr(err.text, "plain"), "a changed value: %s", err.text);
}


/* Legacy files count each storage's elements a second time. */
static void
test_legacy_count(void)
{
    size_t      len;
    uint8_t    *bytes = slurp(SAMPLES "legacy.pt", &len), *at;
    glm_err_t   err = { "" };

    at = memmem(bytes, len, "\x30\0\0\0\0\0\0\0\x1a\xbe", 10);
    if (at == NULL) bail_out("the sample is not as it was");
    at[0]++;
    ok(read_all(put(bytes, len), &err) < 0 && strstr(err.text, "has 49 elements, its tensors say 48"),
       "a count of its own: %s", err.text);
    at[0]--;
    at[7] = 0x80;
    err.text[0] = '\0';
    ok(read_all(put(bytes, len), &err) < 0 && strstr(err.text, "its tensors say 48"),
       "a negative count: %s", err.text);
}


static int
program(const void *bytes, size_t n, glm_err_t *err)
{
    pk_arena_t        *a = pk_arena_new();
    const pk_value_t  *root;
    size_t             used;
    int                rc = pk_load(a, bytes, n, "p", &root, &used, err);

    pk_arena_free(a);
    return rc;
}


/* Each opcode that is not on the list, whatever surrounds it. */
static void
test_opcodes(void)
{
    static const char  allowed[] = "(.JKMNQRX]abceh\x6aqrst)u}G\x80\x85\x86\x87\x88\x89\x8a";
    uint8_t            text[] = { 0x80, 2, 'N', '(', 'N', 0, '\n', '\n', 0, 0, 0, 0, '.' };
    char               says[32];
    glm_err_t          err;
    int                op, bad = 0, refused = 0;

    for (op = 0; op < 256; op++) {
        err.text[0] = '\0';
        text[5] = (uint8_t) op;
        snprintf(says, sizeof(says), "opcode 0x%02x is refused", op);
        if (program(text, sizeof(text), &err) == 0) bad++;
        if (strstr(err.text, says) != NULL) refused++;
        if ((strstr(err.text, says) != NULL) != (op == 0 || strchr(allowed, op) == NULL)) {
            diag("opcode 0x%02x: %s", op, err.text);
            bad++;
        }
    }
    ok(bad == 0 && refused == 256 - (int) strlen(allowed), "%d opcodes are refused by name", refused);
}


#define STORAGE(key, numel)                                                                        \
    "(X\7\0\0\0storagectorch\nHalfStorage\nX\1\0\0\0" key "X\3\0\0\0cpu" numel "tQ"
#define REBUILD  "ctorch._utils\n_rebuild_tensor_v2\n"
#define HOOKS    "\x89" "ccollections\nOrderedDict\n)R"
#define TENSOR(numel, offset, size, stride)                                                        \
    REBUILD "(" STORAGE("0", numel) offset size stride HOOKS "tR."
#define INT8(bytes)  "\x8a\x08" bytes

static void
test_programs(void)
{
    static const struct {
        const char  *text;
        size_t       len;
        const char  *says;    /* NULL: accepted */
    } cases[] = {
#define P(text, says)  { text, sizeof(text) - 1, says }
        P("\x80\2N.", NULL),
        P("\x80\2}.", NULL),
        P("", "cut short"),
        P("\x80", "cut short"),
        P("\x80\2", "cut short"),
        P("\x80\2.", "the stack is empty"),
        P("\x80\4N.", "pickle protocol 4 is refused"),
        P("NN.", "values are left on the stack"),
        P("(.", "a mark where a value belongs"),
        P("t.", "no mark on the stack"),
        P("Nt.", "no mark on the stack"),
        P("(N\x87.", "a mark where a value belongs"),
        P("N\x87.", "the stack is empty"),
        P("]Na.", NULL),
        P("](NNe.", NULL),
        P("}Na.", "no container of theirs"),
        P("NNa.", "no container of theirs"),
        P("(Na.", "a mark where a value belongs"),
        P("]NNs.", "no container of theirs"),
        P("](NNu.", "no container of theirs"),
        P("}(NNNu.", "a key without a value"),
        P("}(NNu.", NULL),
        P("}Nb.", NULL),
        P("]Nb.", "a state for what is no dict is refused"),
        P("ccollections\nOrderedDict\nNb.", "a state for what is no dict is refused"),
        P("h\0.", "an empty memo entry"),
        P("Nq\1h\0.", "an empty memo entry"),
        P("NNNq\1h\1.", "values are left"),
        P("q\0.", "the stack is empty"),
        P("Nr\xff\xff\xff\xff.", "a memo number that no writer gives"),
        P("Nr\0\0\0\x01.", "a memo number that no writer gives"),
        P("Nj\xff\xff\xff\xff.", "an empty memo entry"),
        P("X\xff\xff\xff\xff" "a.", "cut short"),
        P("X\5\0\0\0a.", "cut short"),
        P("X\0\0\0\0.", NULL),
        P("\x8a\xff" "a.", "cut short"),
        P("\x8a\0.", NULL),
        P("G\0\0.", "cut short"),
        P("cos\nsystem\n.", "global \"os.system\" is refused"),
        P("c__builtin__\neval\n.", "global \"__builtin__.eval\" is refused"),
        P("cbuiltins\ngetattr\n.", "global \"builtins.getattr\" is refused"),
        P("cnumpy.core.multiarray\n_reconstruct\n.", "is refused"),
        P("ctorch._utils\n_rebuild_tensor\n.", "is refused"),
        P("ctorch\n_utils._rebuild_tensor_v2\n.", "is refused"),
        P("ccollections\nOrderedDict.fromkeys\n.", "is refused"),
        P("ctorch.storage\n_load_from_bytes\n.", "is refused"),
        P("c\x1b[31m\nx\n.", "global \"?[31m.x\" is refused"),
        P("c\n\n.", "global \".\" is refused"),
        P("cos", "cut short"),
        P("cos\nsystem", "cut short"),
        P("ccollections\nOrderedDict\n)R.", NULL),
        P("ccollections\nOrderedDict\n]\x85R.", "made with arguments is refused"),
        P("ccollections\nOrderedDict\n]R.", "a call of what is no function"),
        P("}])R.", "a call of what is no function"),
        P("X\2\0\0\0os)R.", "a call of what is no function"),
        P("ctorch\nHalfStorage\n)R.", "a storage class is called"),
        P("NQ.", "a persistent id that is no storage"),
        P(")Q.", "a persistent id that is no storage"),
        P("(X\6\0\0\0moduleNNNNtQ.", "a persistent id that is no storage"),
        P("(X\7\0\0\0storageNNNNtQ.", "a storage of no known type"),
        P("(X\7\0\0\0storageccollections\nOrderedDict\nNNNtQ.", "a storage of no known type"),
        P("(X\7\0\0\0storagectorch\nHalfStorage\nX\4\0\0\0../aNK\1tQ.", "not a plain name"),
        P("(X\7\0\0\0storagectorch\nHalfStorage\nX\2\0\0\0a\0NK\1tQ.", "not a plain name"),
        P("(X\7\0\0\0storagectorch\nHalfStorage\nX\1\0\0\0" "0NNtQ.", "no number of elements"),
        P(STORAGE("0", "J\xff\xff\xff\xff") ".", "no number of elements"),
        P(STORAGE("0", INT8("\xff\xff\xff\xff\xff\xff\xff\x7f")) ".", "no number of elements"),
        P(TENSOR("K\x06", "K\0", "K\2K\3\x86", "K\3K\1\x86"), NULL),
        P(TENSOR("K\x06", "K\0", ")", ")"), NULL),
        P(TENSOR("K\x06", "K\5", ")", ")"), NULL),
        P(TENSOR("K\x06", "K\6", ")", ")"), "outside its storage"),
        P(TENSOR("K\0", "K\0", ")", ")"), "outside its storage"),
        P(TENSOR("K\0", "K\0", "K\0\x85", "K\1\x85"), NULL),
        P(TENSOR("K\x06", "K\1", "K\2K\3\x86", "K\3K\1\x86"), "outside its storage"),
        P(TENSOR("K\x06", "K\0", "K\2K\3\x86", "K\4K\1\x86"), "outside its storage"),
        P(TENSOR("K\x06", "J\xff\xff\xff\xff", "K\3\x85", "K\1\x85"), "without an offset"),
        P(TENSOR("K\x06", "\x8a\1\xff", "K\3\x85", "K\1\x85"), "without an offset"),
        P(TENSOR("K\x06", "\x8a\2\x02\0", "K\3\x85", "K\1\x85"), NULL),
        P(TENSOR("K\x06", "K\0", "J\xff\xff\xff\xff\x85", "K\1\x85"), "impossible size"),
        P(TENSOR("K\x06", "K\5", "K\3\x85", "J\xff\xff\xff\xff\x85"), "impossible size"),
        P(TENSOR("K\x06", "K\0", "K\3\x85", ")"), "without size and stride"),
        P(TENSOR("K\x06", "K\0", "N\x85", "K\1\x85"), "impossible size"),
        P(TENSOR("K\x06", "K\0", "N", "N"), "without size and stride"),
        P(TENSOR("K\x06", INT8("\xff\xff\xff\xff\xff\xff\xff\x7f"), "K\3\x85", "K\1\x85"), "outside"),
        P(TENSOR("K\x06", "K\0", "K\3\x85", INT8("\xff\xff\xff\xff\xff\xff\xff\x7f") "\x85"), "outside"),
        P(TENSOR("K\x06", "K\0", INT8("\0\0\0\0\1\0\0\0") "K\2\x86", "K\0K\0\x86"), NULL),
        P(TENSOR("K\x06", "K\0", INT8("\0\0\0\0\1\0\0\0") INT8("\0\0\0\0\1\0\0\0") "\x86",
                 "K\0K\0\x86"), "impossible size"),
        P(TENSOR("K\x06", "K\0", "(K\1K\1K\1K\1K\1K\1K\1K\1K\1t", "(K\1K\1K\1K\1K\1K\1K\1K\1K\1t"),
          "too many dimensions"),
        P(REBUILD ")R.", "a tensor without a storage"),
        P(REBUILD "(NNNNNNtR.", "a tensor without a storage"),
        P("ctorch._utils\n_rebuild_parameter\n(NNNtR.", "a parameter without a tensor"),
#undef P
    };
    glm_err_t  err;
    size_t     i;
    int        rc;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        err.text[0] = '\0';
        rc = program(cases[i].text, cases[i].len, &err);
        if (cases[i].says == NULL) {
            ok(rc == 0, "program %zu is read%s%s", i, rc ? ": " : "", err.text);
            continue;
        }
        ok(rc < 0 && strstr(err.text, cases[i].says) != NULL, "program %zu: %s", i,
           err.text[0] ? err.text : cases[i].says);
    }
}


/* n times unit, between head and tail. */
static int
flood(const char *head, size_t nhead, const char *unit, size_t nunit, size_t n, const char *tail,
    glm_err_t *err)
{
    size_t    i, len = nhead + nunit * n + strlen(tail);
    uint8_t  *bytes = malloc(len);
    int       rc;

    if (bytes == NULL) bail_out("no memory");
    memcpy(bytes, head, nhead);
    for (i = 0; i < n; i++) memcpy(bytes + nhead + i * nunit, unit, nunit);
    memcpy(bytes + nhead + nunit * n, tail, strlen(tail));
    err->text[0] = '\0';
    rc = program(bytes, len, err);
    free(bytes);
    return rc;
}


static void
test_floods(void)
{
    struct timespec  a, b;
    glm_err_t        err;

    clock_gettime(CLOCK_MONOTONIC, &a);
    ok(flood("N", 1, "\x85", 1, 200000, ".", &err) == 0, "a tuple 200000 deep is read and freed");
    ok(flood("", 0, "(", 1, 200000, "t.", &err) < 0, "200000 marks: %s", err.text);
    ok(flood("", 0, "(", 1, 8000000, ".", &err) == GLM_ELIMIT, "8 million marks: %s", err.text);
    ok(flood("", 0, "]", 1, 8000000, ".", &err) == GLM_ELIMIT, "8 million lists: %s", err.text);
    ok(flood("]q\0", 3, "h\0\x86q\0", 5, 100000, ".", &err) == 0,
       "2^100000 elements by sharing take no room");
    ok(flood("]q\0", 3, "h\0a", 3, 1000000, ".", &err) == 0, "a list in itself a million times");
    ok(flood("]q\0", 3, "(h\0h\0h\0e", 8, 200000, ".", &err) == 0, "three items at a time");
    ok(flood("]", 1, "((e", 3, 1, ".", &err) < 0, "a mark among the items: %s", err.text);
    ok(flood("N", 1, "r\xff\xff\x0f\0", 5, 300000, ".", &err) < 0, "a memo number ahead: %s", err.text);
    ok(flood("", 0, "X\0\0\0\0", 5, 4000000, ".", &err) < 0, "more than is read at all: %s", err.text);
    clock_gettime(CLOCK_MONOTONIC, &b);
    ok(b.tv_sec - a.tv_sec < 30, "in bounded time");
}


/* Any bytes as a program, from a generator that never changes. */
static void
test_noise(void)
{
    static const char  ops[] = "(.JKMNQRX]abcehjqrst)u}G\x80\x85\x86\x87\x88\x89\x8a";
    uint64_t           s = 1;
    uint8_t            bytes[256];
    size_t             i, k, n, refused = 0;

    for (i = 0; i < 100000; i++) {
        for (k = 0; k < sizeof(bytes); k++) {
            s = s * 6364136223846793005u + 1442695040888963407u;
            bytes[k] = s >> 63 ? (uint8_t) ops[(s >> 33) % (sizeof(ops) - 1)] : (uint8_t) (s >> 40) & 7;
        }
        n = (s >> 20) % sizeof(bytes);
        refused += program(bytes, n, NULL) != 0;
    }
    ok(refused > 50000, "%zu of 100000 random programs are refused, none crashes", refused);
}


/* torch never compresses, but a zip that was packed again reads the same. */
static void
test_packed(void)
{
    char          path[64];
    struct zip   *in = zip_open(SAMPLES "zip.pt", ZIP_RDONLY, NULL), *out;
    zip_int64_t   i, n = zip_get_num_entries(in, 0), at;

    snprintf(path, sizeof(path), "%s/x.pt", dir);
    out = zip_open(path, ZIP_CREATE | ZIP_TRUNCATE, NULL);
    if (out == NULL) bail_out("zip_open() failed");
    for (i = 0; i < n; i++) {
        at = zip_file_add(out, zip_get_name(in, (zip_uint64_t) i, 0),
                          zip_source_zip(out, in, (zip_uint64_t) i, 0, 0, -1), ZIP_FL_OVERWRITE);
        if (at < 0 || zip_set_file_compression(out, (zip_uint64_t) at, ZIP_CM_DEFLATE, 9) != 0) {
            bail_out("zip_file_add() failed");
        }
    }
    if (zip_close(out) != 0) bail_out("zip_close() failed");
    zip_discard(in);
    test_sample(path);
}


int
main(void)
{
    if (mkdtemp(dir) == NULL) bail_out("mkdtemp() failed");
    test_sample(SAMPLES "zip.pt");
    test_sample(SAMPLES "legacy.pt");
    test_packed();
    test_refused_samples();
    test_truncated(SAMPLES "zip.pt");
    test_truncated(SAMPLES "legacy.pt");
    test_damaged(SAMPLES "zip.pt");
    test_damaged(SAMPLES "legacy.pt");
    test_crc();
    test_legacy_count();
    test_opcodes();
    test_programs();
    test_floods();
    test_noise();
    unlink(put("", 0));
    rmdir(dir);
    return tap_done();
}
