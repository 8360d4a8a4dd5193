/*
 * config: a config.json is read as written, and each wrong field is refused
 * by its name.  What would break: a model run with sizes it does not have.
 */
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "config.h"
#include "tap.h"

/* A valid file; each case replaces the first occurrence of from by to. */
static const char *good =
    "{\"name\": \"m\", \"num_layers\": 2, \"hidden_size\": 256, \"inner_hidden_size\": 512,\n"
    " \"num_attention_heads\": 4, \"vocab_size\": 512, \"max_sequence_length\": 128,\n"
    " \"layernorm_order\": \"post\", \"layernorm_epsilon\": 1e-05,\n"
    " \"special_tokens\": {\"[MASK]\": 496, \"sop\": 500, \"eop\": 501, \"eos\": 2},\n"
    " \"end_tokens\": [501, 2]}";


static char *
replaced(const char *from, const char *to)
{
    static char  text[4096];
    const char  *at = strstr(good, from);

    if (at == NULL) bail_out("a case replaces what is not there");
    snprintf(text, sizeof(text), "%.*s%s%s", (int) (at - good), good, to, at + strlen(from));
    return text;
}


static void
test_quant_text(void)
{
    static const char *const  good_texts[] = { "fp16", "int8", "int4", "int8-g32", "int4-g128" };
    static const char *const  bad[] = { "", "int", "int4-", "int4-g", "int4-g0", "int4-g-1",
                                        "int4-g1x", "fp16-g32", "int4-g99999999999", "INT4" };
    glm_quant_t  q;
    char         text[32];
    size_t       i;
    int          good_ones = 1, refused = 1;

    for (i = 0; i < sizeof(good_texts) / sizeof(good_texts[0]); i++) {
        good_ones &= glm_quant_parse(&q, good_texts[i]) == 0
                     && strcmp(glm_quant_text(q, text), good_texts[i]) == 0;
    }
    ok(good_ones, "choices as text and back");
    for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) refused &= glm_quant_parse(&q, bad[i]) != 0;
    ok(refused, "other texts are refused");
}


static void
test_good(void)
{
    glm_config_t  c;
    glm_err_t     err = { "" };
    char         *t;

    ok(glm_config_parse(&c, good, strlen(good), "c", &err) == 0, "valid text: %s", err.text);
    ok(c.layers == 2 && c.hidden == 256 && c.inner == 512 && c.heads == 4 && c.head_dim == 64
       && c.vocab == 512 && c.max_seq == 128, "sizes");
    ok(c.mask == 496 && c.sop == 500 && c.eop == 501 && c.eos == 2 && c.gmask == GLM_NO_TOKEN
       && c.eod == GLM_NO_TOKEN, "special tokens, absent ones marked");
    ok(c.nend_tokens == 2 && c.end_tokens[0] == 501 && c.end_tokens[1] == 2, "end tokens");
    ok(c.ln_eps == 1e-5f && !c.recorded && c.quant.type == GLM_T_F16, "epsilon, no quantization");
    ok(strcmp(c.name, "m") == 0, "name");

    t = replaced("\"name\"", "\"model\"");
    ok(glm_config_parse(&c, t, strlen(t), "c", NULL) == 0 && strcmp(c.name, "m") == 0,
       "\"model\" is the name in older files");
    t = replaced(",\n \"end_tokens\": [501, 2]", "");
    ok(glm_config_parse(&c, t, strlen(t), "c", NULL) == 0 && c.nend_tokens == 2
       && c.end_tokens[0] == 501 && c.end_tokens[1] == 2, "end tokens default to eop and eos");
    t = replaced(" \"layernorm_order\"", " \"quantization\": {\"type\": \"int4\", \"group_size\": 128,"
                 " \"tensors\": {\"a\": \"int8\", \"b\": \"fp16\", \"c\": \"int4-g32\"}},"
                 " \"layernorm_order\"");
    ok(glm_config_parse(&c, t, strlen(t), "c", NULL) == 0 && c.recorded
       && c.quant.type == GLM_T_INT4 && c.quant.group == 128, "quantization and its group");
    ok(c.nquant_tensors == 3 && glm_config_quant(&c, "a").type == GLM_T_INT8
       && glm_config_quant(&c, "a").group == 0 && glm_config_quant(&c, "b").type == GLM_T_F16
       && glm_config_quant(&c, "c").group == 32 && glm_config_quant(&c, "d").group == 128,
       "tensors of their own");
    test_quant_text();
    t = replaced(", \"layernorm_epsilon\": 1e-05", "");
    ok(glm_config_parse(&c, t, strlen(t), "c", NULL) == 0 && c.ln_eps == 1e-5f, "epsilon defaults");
}


static void
test_refused(void)
{
    static const struct {
        const char  *from, *to, *says;
    } cases[] = {
        { "\"num_layers\": 2, ", "", "\"num_layers\" is missing" },
        { "\"num_layers\": 2", "\"num_layers\": 0", "\"num_layers\" is 0" },
        { "\"num_layers\": 2", "\"num_layers\": -2", "\"num_layers\" is -2" },
        { "\"num_layers\": 2", "\"num_layers\": 2.0", "\"num_layers\" is not an integer" },
        { "\"num_layers\": 2", "\"num_layers\": \"2\"", "\"num_layers\" is not an integer" },
        { "\"num_layers\": 2", "\"num_layers\": 16777216", "\"num_layers\" is 16777216" },
        { "\"num_layers\": 2", "\"num_layers\": 4294967298", "\"num_layers\" is 4294967298" },
        { "\"num_layers\": 2", "\"num_layers\": 99999999999999999999", "not JSON" },
        { "\"num_layers\": 2", "\"num_layers\": 2, \"num_layers\": 3", "a key occurs twice" },
        { "\"inner_hidden_size\": 512", "\"inner_hidden_size\": 1e300", "\"inner_hidden_size\"" },
        { "\"num_attention_heads\": 4", "\"num_attention_heads\": 3", "not a multiple" },
        { "\"num_attention_heads\": 4", "\"num_attention_heads\": 256", "cannot halve" },
        { "1e-05", "0", "layernorm_epsilon" },
        { "1e-05", "\"x\"", "layernorm_epsilon" },
        { "1e-05", "1e-300", "layernorm_epsilon" },
        { "\"[MASK]\": 496", "\"[MASK]\": 512", "\"special_tokens.[MASK]\" is 512" },
        { "\"[MASK]\": 496", "\"[MASK]\": -1", "\"special_tokens.[MASK]\" is -1" },
        { "\"[MASK]\": 496", "\"[MASK]\": true", "\"special_tokens.[MASK]\" is not an integer" },
        { "{\"[MASK]\": 496, \"sop\": 500, \"eop\": 501, \"eos\": 2}", "[]", "\"special_tokens\" is not" },
        { "[501, 2]", "[501, 4294967298]", "\"end_tokens\" is 4294967298" },
        { "[501, 2]", "[1, 2, 3, 4, 5, 6, 7, 8, 9]", "\"end_tokens\" has 9 ids" },
        { "[501, 2]", "7", "\"end_tokens\" is not an array" },
        { "\"m\"", "\"\"", "\"name\"" },
        { "\"m\"", "\"a\\nb\"", "control character" },
        { "\"m\"", "7", "\"name\"" },
        { "\"post\"", "\"pre\"", "\"layernorm_order\"" },
        { "\"post\"", "\"post\", \"no_glu\": true", "\"no_glu\"" },
        { "\"post\"", "\"post\", \"position_encoding_2d\": true", "\"position_encoding_2d\"" },
        { "\"post\"", "\"post\", \"quantization\": \"int8\"", "\"quantization\" is not an object" },
        { "\"post\"", "\"post\", \"quantization\": {\"type\": \"int3\"}",
          "\"quantization.type\" is \"int3\"" },
        { "\"post\"", "\"post\", \"quantization\": {\"type\": \"int4\", \"group_size\": -1}",
          "\"quantization.group_size\"" },
        { "\"post\"", "\"post\", \"quantization\": {\"type\": \"fp16\", \"group_size\": 128}",
          "\"quantization.group_size\"" },
        { "\"post\"", "\"post\", \"quantization\": {\"type\": \"int4\", \"tensors\": {\"x\": 4}}",
          "\"quantization.tensors\": \"x\"" },
        { "\"post\"", "\"post\", \"quantization\": {\"type\": \"int4\", \"tensors\": []}",
          "\"quantization.tensors\" is not an object" },
    };
    glm_config_t  c;
    glm_err_t     err;
    const char   *t;
    size_t        i;
    int           rc;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        err.text[0] = '\0';
        t = replaced(cases[i].from, cases[i].to);
        rc = glm_config_parse(&c, t, strlen(t), "some/config.json", &err);
        ok(rc < 0 && strstr(err.text, cases[i].says) != NULL
           && strncmp(err.text, "some/config.json: ", 18) == 0, "%s", err.text);
    }
    for (i = 0; i < strlen(good); i++) {
        if (glm_config_parse(&c, good, i, "c", NULL) == 0) break;
    }
    ok(i == strlen(good), "every truncation is refused");
}


static void
test_files(void)
{
    char          dir[] = "/tmp/glm-config.XXXXXX", path[64], name[200];
    const char   *t;
    glm_config_t  c;
    glm_err_t     err = { "" };
    FILE         *f;

    ok(mkdtemp(dir) != NULL && glm_config_load(&c, dir, &err) == GLM_ENOENT
       && strstr(err.text, "/config.json: No such file") != NULL, "no file: %s", err.text);
    snprintf(path, sizeof(path), "%s/config.json", dir);
    if ((f = fopen(path, "w")) == NULL) bail_out("cannot write a test file");
    t = replaced("\"name\": \"m\", ", "");
    fputs(t, f);
    fclose(f);
    err.text[0] = '\0';
    ok(glm_config_load(&c, dir, &err) == 0 && strcmp(c.name, strrchr(dir, '/') + 1) == 0,
       "a model without a name goes by its directory's");

    memset(name, 'x', 128);
    name[128] = '\0';
    snprintf(path + strlen(dir), sizeof(path) - strlen(dir), "/config.json");
    if ((f = fopen(path, "w")) == NULL) bail_out("cannot write a test file");
    fprintf(f, "%.*s%s%s", 10, good, name, good + 11);
    fclose(f);
    ok(glm_config_load(&c, dir, &err) == GLM_ELIMIT && strstr(err.text, "longer than 127") != NULL,
       "a name of 128 bytes: %s", err.text);
    unlink(path);
    ok(mkdir(path, 0700) == 0 && glm_config_load(&c, dir, NULL) == GLM_EIO, "config.json is a directory");
    rmdir(path);
    rmdir(dir);
}


int
main(void)
{
    test_good();
    test_refused();
    test_files();
    return tap_done();
}
