/*
 * safetensors: well-formed files read as they are, hostile ones are refused
 * by name.  What would break: a lying header that makes the loader read
 * outside a mapping.
 */
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "safetensors.h"
#include "tap.h"

static char  dir[] = "/tmp/glm-st.XXXXXX";


static void
put(const char *name, const void *bytes, size_t n)
{
    char   path[128];
    FILE  *f;

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    if ((f = fopen(path, "w")) == NULL || fwrite(bytes, 1, n, f) != n || fclose(f) != 0) {
        bail_out("cannot write a test file");
    }
}


static void
drop(const char *name)
{
    char  path[128];

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    if (unlink(path) != 0) bail_out("cannot remove a test file");
}


/* A file of header hlen bytes long by its own word, and n values 0, 1, .. */
static size_t
make(uint8_t *out, const char *header, uint64_t hlen, size_t n)
{
    size_t  i, len = strlen(header);

    for (i = 0; i < 8; i++) out[i] = (uint8_t) (hlen >> (8 * i));
    memcpy(out + 8, header, len);
    for (i = 0; i < n; i++) out[8 + len + i] = (uint8_t) i;
    return 8 + len + n;
}


static void
put_st(const char *name, const char *header, size_t n)
{
    static uint8_t  bytes[65536];

    put(name, bytes, make(bytes, header, strlen(header), n));
}


static const char *
error_of(int *rc)
{
    static glm_err_t  err;
    glm_st_reader_t  *r;

    err.text[0] = '\0';
    *rc = glm_st_open(&r, dir, &err);
    glm_st_close(r);
    return err.text;
}


static void
test_good(void)
{
    const glm_stored_t  *t;
    glm_st_reader_t     *r;
    glm_err_t            err = { "" };
    int                  rc;

    put_st("a.safetensors",
           "{\"__metadata__\":{\"format\":\"pt\"},"
           "\"w\":{\"dtype\":\"F16\",\"shape\":[2,3],\"data_offsets\":[0,12]},"
           "\"e\":{\"dtype\":\"F32\",\"shape\":[0,7],\"data_offsets\":[12,12]},"
           "\"s\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[12,20]},"
           "\"b\":{\"dtype\":\"I8\",\"shape\":[5],\"data_offsets\":[20,25]}}     ", 25);
    rc = glm_st_open(&r, dir, &err);
    if (!ok(rc == 0, "valid file: %s", err.text)) return;
    ok(glm_st_count(r) == 4 && glm_st_at(r, 4) == NULL, "four tensors");
    ok(strcmp(glm_st_at(r, 0)->name, "b") == 0 && strcmp(glm_st_at(r, 3)->name, "w") == 0,
       "in the order of their names");
    t = glm_st_find(r, "w");
    ok(t && t->dtype == GLM_F16 && t->ndim == 2 && t->dim[0] == 2 && t->dim[1] == 3 && t->size == 12,
       "dtype and shape");
    t = glm_st_find(r, "s");
    ok(t && t->ndim == 0 && t->size == 8 && ((const uint8_t *) t->data)[0] == 12
       && ((const uint8_t *) t->data)[7] == 19, "values of a scalar");
    ok(t && (uintptr_t) t->data % 8 == 0, "misplaced values are copied to a multiple of 8");
    t = glm_st_find(r, "e");
    ok(t && t->size == 0 && t->dim[1] == 7, "empty tensor");
    t = glm_st_find(r, "b");
    ok(t && ((const uint8_t *) t->data)[4] == 24 && strstr(t->file, "/a.safetensors") != NULL,
       "last value, and the file's path");
    ok(glm_st_find(r, "x") == NULL, "no such tensor");
    glm_st_close(r);
    ok(glm_dtype_size(GLM_BF16) == 2 && strcmp(glm_dtype_name(GLM_I32), "I32") == 0, "dtype table");
    drop("a.safetensors");
}


#define T(name, dtype, shape, offsets)                                                             \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"

static void
test_headers(void)
{
    static const struct {
        const char  *header;
        size_t       n;
        const char  *says;
    } cases[] = {
        { "{" T("w", "F16", "[2]", "[0,4]") "}", 3, "w: values end at byte 4 of 3: the file is cut short" },
        { "{" T("w", "F16", "[2]", "[0,4]") "}", 5, "the last 1 bytes belong to no tensor" },
        { "{" T("w", "F16", "[2]", "[2,6]") "}", 6, "2 bytes before w belong to no tensor" },
        { "{" T("v", "F16", "[2]", "[0,4]") "," T("w", "F16", "[2]", "[2,6]") "}", 6, "v and w overlap" },
        { "{" T("v", "F16", "[2]", "[0,4]") "," T("w", "F16", "[2]", "[0,4]") "}", 4, "overlap" },
        { "{" T("w", "F16", "[3]", "[0,4]") "}", 4, "w: 4 bytes of values, but its shape takes 6" },
        { "{" T("w", "F16", "[2]", "[4,0]") "}", 4, "is not [begin, end]" },
        { "{" T("w", "F16", "[2]", "[-4,0]") "}", 4, "is not [begin, end]" },
        { "{" T("w", "F16", "[2]", "[0,4,8]") "}", 4, "is not [begin, end]" },
        { "{" T("w", "F16", "[2]", "[0.0,4.0]") "}", 4, "is not [begin, end]" },
        { "{" T("w", "F16", "[2]", "[0,9223372036854775807]") "}", 4, "the file is cut short" },
        { "{" T("w", "F16", "[2]", "[0,9223372036854775808]") "}", 4, "is not JSON" },
        { "{" T("w", "F16", "[4294967296,4294967296]", "[0,0]") "}", 0, "too large for any file" },
        { "{" T("w", "F16", "[9223372036854775807]", "[0,0]") "}", 0, "w: 0 bytes of values, but its shape takes" },
        { "{" T("w", "F32", "[4611686018427387904]", "[0,0]") "}", 0, "too large for any file" },
        { "{" T("w", "F16", "[-1]", "[0,4]") "}", 4, "holds what is no size" },
        { "{" T("w", "F16", "[\"2\"]", "[0,4]") "}", 4, "holds what is no size" },
        { "{" T("w", "F16", "2", "[0,4]") "}", 4, "\"shape\" is not an array" },
        { "{" T("w", "F16", "[1,1,1,1,2]", "[0,4]") "}", 4, "5 dimensions" },
        { "{" T("w", "F64", "[2]", "[0,16]") "}", 16, "dtype F64" },
        { "{" T("w", "F\\n4", "[2]", "[0,16]") "}", 16, "dtype ?" },
        { "{\"w\":{\"dtype\":\"F16\",\"shape\":[2]}}", 4, "is not [begin, end]" },
        { "{\"w\":{\"shape\":[2],\"data_offsets\":[0,4]}}", 4, "\"dtype\" is missing" },
        { "{\"w\":7}", 4, "\"dtype\" is missing" },
        { "{" T("w", "F16", "[2]", "[0,4]") "," T("w", "F16", "[2]", "[4,8]") "}", 8, "a key occurs twice" },
        { "{" T("", "F16", "[2]", "[0,4]") "}", 4, "a tensor name is empty" },
        { "{" T("a\\nb", "F16", "[2]", "[0,4]") "}", 4, "control character" },
        { "{" T("a\\u0000b", "F16", "[2]", "[0,4]") "}", 4, "is not JSON" },
        { "[]", 0, "its header is not a JSON object" },
        { "{\"a\":[[[[[[[[[[1]]]]]]]]]]}", 0, "its header is nested deeper than 8" },
        { "{\"a\\\"[[[[[[[[[[[[\":1", 0, "its header is not JSON" },
        { "", 0, "is not JSON" },
    };
    const char  *text;
    size_t       i;
    int          rc;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        put_st("h.safetensors", cases[i].header, cases[i].n);
        text = error_of(&rc);
        ok(rc < 0 && strstr(text, cases[i].says) != NULL && strstr(text, "h.safetensors: ") != NULL,
           "%s", text[0] ? text : cases[i].says);
    }
    drop("h.safetensors");
}


static void
test_lengths(void)
{
    const char      *header = "{" T("w", "F16", "[4]", "[0,8]") "}";
    static uint8_t   bytes[8192], deep[8 + 100000];
    const char      *text;
    size_t           i, n;
    int              rc;

    n = make(bytes, header, strlen(header), 8);
    for (i = 0; i < n; i++) {
        put("l.safetensors", bytes, i);
        error_of(&rc);
        if (rc == 0) break;
    }
    ok(i == n, "every truncation is refused (%zu of %zu)", i, n);

    put("l.safetensors", bytes, make(bytes, header, strlen(header) + 9, 8));
    text = error_of(&rc);
    ok(rc < 0 && strstr(text, "cut short within its header"), "header longer than the file: %s", text);
    put("l.safetensors", bytes, make(bytes, header, UINT64_MAX, 8));
    text = error_of(&rc);
    ok(rc == GLM_ELIMIT && strstr(text, "18446744073709551615"), "header of 2^64-1 bytes: %s", text);
    put("l.safetensors", bytes, make(bytes, header, UINT64_MAX - 7, 8));
    error_of(&rc);
    ok(rc == GLM_ELIMIT, "header length that wraps with its own 8 bytes");
    put("l.safetensors", bytes, make(bytes, header, strlen(header) - 1, 8));
    error_of(&rc);
    ok(rc < 0, "header one byte short");
    put("l.safetensors", bytes, 0);
    text = error_of(&rc);
    ok(rc < 0 && strstr(text, "0 bytes are no safetensors file"), "empty file: %s", text);

    memset(deep, '[', sizeof(deep));
    memcpy(deep, "\xa0\x86\x01\0\0\0\0\0", 8);
    put("l.safetensors", deep, sizeof(deep));
    text = error_of(&rc);
    ok(rc == GLM_ELIMIT && strstr(text, "nested deeper"), "100000 brackets: %s", text);
    drop("l.safetensors");
}


static void
index_case(const char *map, const char *says)
{
    char         text[1024];
    const char  *msg;
    int          rc;

    snprintf(text, sizeof(text), "{\"metadata\":{},\"weight_map\":%s}", map);
    put(GLM_ST_INDEX, text, strlen(text));
    msg = error_of(&rc);
    if (says == NULL) {
        ok(rc == 0, "index %s%s", map, msg);
        return;
    }
    ok(rc < 0 && strstr(msg, says) != NULL, "%s", msg[0] ? msg : says);
}


static void
test_dirs(void)
{
    const char  *msg;
    char         path[128];
    int          rc;

    msg = error_of(&rc);
    ok(rc == GLM_ENOENT && strstr(msg, "no *.safetensors in it"), "empty directory: %s", msg);
    put_st("1.safetensors", "{" T("v", "F16", "[4]", "[0,8]") "}", 8);
    put_st("2.safetensors", "{" T("w", "F16", "[4]", "[0,8]") "," T("x", "I8", "[1]", "[8,9]") "}", 9);
    error_of(&rc);
    ok(rc == 0, "two files without an index");

    index_case("{\"v\":\"1.safetensors\",\"w\":\"2.safetensors\",\"x\":\"2.safetensors\"}", NULL);
    index_case("{\"w\":\"2.safetensors\",\"x\":\"2.safetensors\"}", NULL);
    index_case("{\"v\":\"1.safetensors\",\"w\":\"1.safetensors\"}", "w is not in 1.safetensors");
    index_case("{\"v\":\"1.safetensors\",\"w\":\"2.safetensors\",\"x\":\"1.safetensors\"}",
               "x is not in 1.safetensors");
    index_case("{\"v\":\"1.safetensors\",\"w\":\"2.safetensors\"}", "x is not in model.safetensors.index");
    index_case("{\"v\":\"3.safetensors\"}", "3.safetensors: No such file");
    index_case("{\"v\":\"../1.safetensors\"}", "not a plain name");
    index_case("{\"v\":\"/etc/passwd\"}", "not a plain name");
    index_case("{\"v\":\"..\"}", "not a plain name");
    index_case("{\"v\":7}", "not a plain name");
    index_case("{}", "missing or empty");
    index_case("[]", "missing or empty");
    put(GLM_ST_INDEX, "{", 1);
    msg = error_of(&rc);
    ok(rc < 0 && strstr(msg, "is not JSON"), "index cut short: %s", msg);
    drop(GLM_ST_INDEX);

    put_st("2.safetensors", "{" T("v", "F16", "[4]", "[0,8]") "}", 8);
    msg = error_of(&rc);
    ok(rc < 0 && strstr(msg, "v is in") != NULL, "a tensor in two files: %s", msg);
    drop("2.safetensors");
    snprintf(path, sizeof(path), "%s/2.safetensors", dir);
    if (mkfifo(path, 0600) != 0) bail_out("mkfifo() failed");
    msg = error_of(&rc);
    ok(rc < 0 && strstr(msg, "not a plain file"), "a fifo does not hang: %s", msg);
    drop("2.safetensors");
    drop("1.safetensors");
}


int
main(void)
{
    if (mkdtemp(dir) == NULL) bail_out("mkdtemp() failed");
    test_good();
    test_headers();
    test_lengths();
    test_dirs();
    rmdir(dir);
    return tap_done();
}
