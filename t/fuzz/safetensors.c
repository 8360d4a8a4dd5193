/*
 * safetensors fuzzer: any bytes as a weight file, as an index beside a good
 * file, and as a config.json.  Whatever is accepted is read to its last byte.
 * Build with -fsanitize=fuzzer,address,undefined; needs /dev/shm.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "config.h"
#include "safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char  dir[64], weights[128], idx[128];

static const char  good[] =
    "\x3f\0\0\0\0\0\0\0{\"w\":{\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":[0,4]}}         abcd";


static void
put(const char *path, const void *bytes, size_t n)
{
    FILE  *f = fopen(path, "w");

    if (f == NULL || fwrite(bytes, 1, n, f) != n || fclose(f) != 0) abort();
}


static void
tidy(void)
{
    unlink(weights);
    unlink(idx);
    rmdir(dir);
}


static void
prepare(void)
{
    snprintf(dir, sizeof(dir), "/dev/shm/glm-fuzz.XXXXXX");
    if (mkdtemp(dir) == NULL) abort();
    snprintf(weights, sizeof(weights), "%s/a.safetensors", dir);
    snprintf(idx, sizeof(idx), "%s/" GLM_ST_INDEX, dir);
    atexit(tidy);
}


static int
read_dir(void)
{
    volatile unsigned    sum = 0;
    const glm_stored_t  *t;
    glm_st_reader_t     *r;
    glm_err_t            err = { "" };
    size_t               i, k;
    int                  rc = glm_st_open(&r, dir, &err);

    if (rc != 0) {
        if (err.text[0] == '\0' || strchr(err.text, '\n') != NULL) abort();
        return rc;
    }
    for (i = 0; i < glm_st_count(r); i++) {
        t = glm_st_at(r, i);
        if ((uintptr_t) t->data % 8 != 0 && t->size > 0) abort();
        if (glm_st_find(r, t->name) != t) abort();
        for (k = 0; k < t->size; k++) sum += ((const unsigned char *) t->data)[k];
    }
    (void) sum;
    glm_st_close(r);
    return 0;
}


int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static glm_config_t  cfg;
    glm_err_t            err = { "" };

    if (dir[0] == '\0') prepare();
    put(weights, data, size);
    unlink(idx);
    read_dir();

    put(weights, good, sizeof(good) - 1);
    if (read_dir() != 0) abort();
    put(idx, data, size);
    read_dir();

    if (glm_config_parse(&cfg, (const char *) data, size, "fuzz", &err) == 0) {
        if (cfg.head_dim * cfg.heads != cfg.hidden || strlen(cfg.name) >= sizeof(cfg.name)) abort();

    } else if (err.text[0] == '\0' || strchr(err.text, '\n') != NULL) {
        abort();
    }
    return 0;
}
