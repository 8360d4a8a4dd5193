/*
 * load_files: a model directory to load: whole layers of a shape with the values that
 * --load-format dummy has, as one safetensors file with checksums.  A mark tells
 * that a directory is of this making and for which plan; the file gets its name
 * when it is complete.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <zlib.h>

#include "load.h"
#include "loader.h"
#include "progress.h"

#define MARK       "glm-bench-load"
#define WEIGHTS    "model.safetensors"
#define RUN_BYTES  ((size_t) 8 << 20)   /* of a tensor that a thread makes at a time */
#define THREADS    32
#define ALIGN      64                   /* of the first value in the file */

static const glm_config_t  shape_130b = {
    .name = "130b", .layers = 70, .hidden = 12288, .inner = 32768, .heads = 96,
    .head_dim = 128, .vocab = 150528, .max_seq = 2048, .ln_eps = 1e-5f
};

/* Values of a tensor, or its scales. */
typedef struct {
    char          name[160];
    glm_tensor_t  t;
    int           scales;
    uint64_t      at, size, width;      /* in the file; bytes of a row */
    int32_t       rows_a_run, runs, first;      /* first: number of its first run */
    atomic_uint   crc;
} item_t;

typedef struct {
    bench_files_t  *f;
    item_t         *item;
    int             n, runs, fd;
    uint64_t        base;               /* of the values */
    atomic_int      next;               /* run */
    atomic_ullong   done;               /* bytes */
    atomic_int      failed;             /* errno */
} writer_t;

/* ---- the plan ---- */

static uint64_t
model_bytes(const bench_files_t *f, int layers, glm_err_t *err)
{
    glm_config_t   cfg = f->cfg;
    glm_loader_t  *l;
    char           text[128];
    uint64_t       bytes = 0;

    cfg.layers = layers;
    if (glm_loader_open(&l, f->dir, &cfg, 1, err) != 0) return 0;
    if (glm_loader_check(l, err) == 0) glm_loader_describe(l, text, &bytes);
    glm_loader_close(l);
    return bytes;
}

static const char *
path_in(const char *dir, const char *name, char path[512])
{
    snprintf(path, 512, "%s/%s", dir, name);
    return path;
}

int
bench_files_plan(bench_files_t *f, const char *dir, const char *shape, glm_quant_t as,
    int64_t size, glm_err_t *err)
{
    int       rc;
    int64_t   layers;
    uint64_t  two;

    f->dir = dir;
    if (strlen(dir) > 400) return glm_fail(err, GLM_EINVAL, "--dir: longer than 400 bytes");
    f->cfg = shape_130b;
    if (strcmp(shape, "130b") != 0 && (rc = glm_config_load(&f->cfg, shape, err)) != 0) return rc;
    f->cfg.recorded = 1;
    f->cfg.quant = as;
    f->cfg.nquant_tensors = 0;
    f->whole = f->cfg.layers;
    if ((two = model_bytes(f, 2, err)) == 0) return GLM_EFORMAT;
    f->layer_bytes = two - model_bytes(f, 1, err);
    layers = (size + (int64_t) f->layer_bytes - 1) / (int64_t) f->layer_bytes;
    if (layers > f->whole) {
        return glm_fail(err, GLM_EINVAL, "--size: %lld bytes are more than the %d layers of %llu "
            "bytes that %s has", (long long) size, f->whole, (unsigned long long) f->layer_bytes,
            shape);
    }
    f->cfg.layers = (int32_t) layers;
    f->cfg.vocab = (int32_t) ((f->cfg.vocab * layers + f->whole - 1) / f->whole);
    f->cfg.vocab = (f->cfg.vocab + 255) / 256 * 256;
    f->bytes = model_bytes(f, f->cfg.layers, err);
    (void) path_in(dir, WEIGHTS, f->path);
    return 0;
}

static void
config_text(const bench_files_t *f, char out[1024])
{
    const glm_config_t  *c = &f->cfg;
    static const char   *types[] = { "fp16", "int8", "int4" };
    char                 group[40] = "";

    if (c->quant.group > 0) snprintf(group, sizeof(group), ", \"group_size\": %d", c->quant.group);
    snprintf(out, 1024, "{\n \"name\": \"%.64s, %d layers\",\n \"num_layers\": %d,\n"
        " \"hidden_size\": %d,\n \"inner_hidden_size\": %d,\n \"num_attention_heads\": %d,\n"
        " \"vocab_size\": %d,\n \"max_sequence_length\": %d,\n \"layernorm_epsilon\": %g,\n"
        " \"quantization\": {\"type\": \"%s\"%s},\n \"end_tokens\": [1]\n}\n", c->name, c->layers,
        c->layers, c->hidden, c->inner, c->heads, c->vocab, c->max_seq, (double) c->ln_eps,
        types[c->quant.type], group);
}

/* ---- what is there ---- */

static int
failed(const char *path, glm_err_t *err)
{
    return glm_fail(err, GLM_EIO, "%s: %s", path, strerror(errno));
}

static int
put_text(const char *path, const char *text, glm_err_t *err)
{
    FILE  *f = fopen(path, "we");

    if (f == NULL) return failed(path, err);
    fputs(text, f);
    return fclose(f) == 0 ? 0 : failed(path, err);
}

/* The mark of a directory; "" where there is none. */
static void
mark_of(const char *dir, char text[1024])
{
    char    path[512];
    FILE   *f = fopen(path_in(dir, MARK, path), "re");
    size_t  n = 0;

    if (f != NULL) {
        n = fread(text, 1, 1023, f);
        fclose(f);
    }
    text[n] = '\0';
}

int
bench_files_remove(const char *dir, glm_err_t *err)
{
    static const char *const  names[] = { WEIGHTS, WEIGHTS ".part", "config.json", MARK };
    char                      text[1024], path[512];

    mark_of(dir, text);
    if (text[0] == '\0') {
        return glm_fail(err, GLM_ENOENT, "%s: nothing that glm-bench load wrote is there", dir);
    }
    for (int i = 0; i < 4; i++) {
        if (unlink(path_in(dir, names[i], path)) != 0 && errno != ENOENT) return failed(path, err);
    }
    (void) rmdir(dir);            /* stays where there is more in it */
    return 0;
}

/* A directory for this plan: new, empty, or of another run.  1: it is complete. */
static int
prepare(const bench_files_t *f, glm_err_t *err)
{
    char            want[1024], has[1024], path[512];
    struct statvfs  v;
    uint64_t        room, need = f->bytes + f->bytes / 64;
    int             rc;

    config_text(f, want);
    mark_of(f->dir, has);
    if (strcmp(has, want) == 0 && access(f->path, F_OK) == 0) return 1;
    if (has[0] != '\0' && (rc = bench_files_remove(f->dir, err)) != 0) return rc;
    if (mkdir(f->dir, 0777) != 0) {
        if (errno != EEXIST) return failed(f->dir, err);
        if (access(path_in(f->dir, "config.json", path), F_OK) == 0
            || access(f->path, F_OK) == 0)
        {
            return glm_fail(err, GLM_EINVAL, "%s: a model is there that glm-bench load did not "
                "write", f->dir);
        }
    }
    if (statvfs(f->dir, &v) != 0) return failed(f->dir, err);
    room = (uint64_t) v.f_bavail * v.f_frsize;
    if (room < need) {
        (void) rmdir(f->dir);
        return glm_fail(err, GLM_ENOMEM, "%s: %llu bytes are needed, there is room for %llu",
            f->dir, (unsigned long long) need, (unsigned long long) room);
    }
    if ((rc = put_text(path_in(f->dir, MARK, path), want, err)) != 0) return rc;
    return put_text(path_in(f->dir, "config.json", path), want, err);
}

/* ---- writing ---- */

static void
add_item(writer_t *w, const char *name, const glm_tensor_t *t, int scales)
{
    item_t   *it = &w->item[w->n++];
    uint64_t  end = w->n > 1 ? it[-1].at + it[-1].size : 0;

    snprintf(it->name, sizeof(it->name), "%s%s", name, scales ? "_scale" : "");
    it->t = *t;
    it->scales = scales;
    it->at = end;
    it->size = scales ? t->scale_size : t->size;
    it->width = it->size / (uint64_t) t->rows;
    it->rows_a_run = (int32_t) (RUN_BYTES / it->width) + 1;
    it->runs = (t->rows + it->rows_a_run - 1) / it->rows_a_run;
    it->first = w->runs;
    w->runs += it->runs;
}

static int
list_items(writer_t *w, const glm_loader_t *l, glm_err_t *err)
{
    glm_tensor_t  t;
    char          name[128];
    int           n = 0;

    while (glm_loader_name(l, n, name) == 0) n++;
    if ((w->item = calloc((size_t) n * 2, sizeof(*w->item))) == NULL) {
        return glm_fail(err, GLM_ENOMEM, "no memory");
    }
    for (int i = 0; glm_loader_name(l, i, name) == 0; i++) {
        (void) glm_loader_tensor(l, name, &t, err);
        add_item(w, name, &t, 0);
        if (t.groups > 0) add_item(w, name, &t, 1);
    }
    return 0;
}

/* Checksums are always eight digits, so the header is as long before they are known. */
static char *
header(const writer_t *w, size_t *len)
{
    char  *text = NULL;
    FILE  *m = open_memstream(&text, len);

    if (m == NULL) return NULL;
    fprintf(m, "{\"__metadata__\":{\"format\":\"pt\"");
    for (int i = 0; i < w->n; i++) {
        fprintf(m, ",\"crc32.%s\":\"%08x\"", w->item[i].name, atomic_load(&w->item[i].crc));
    }
    fprintf(m, "}");
    for (int i = 0; i < w->n; i++) {
        const item_t        *it = &w->item[i];
        const glm_tensor_t  *t = &it->t;
        int                  half = it->scales || t->type == GLM_T_F16;

        fprintf(m, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[%d", it->name, half ? "F16" : "I8",
            t->rows);
        if (it->scales || t->cols > 1) {
            fprintf(m, ",%llu", (unsigned long long) it->width / (half ? 2 : 1));
        }
        fprintf(m, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long) it->at,
            (unsigned long long) (it->at + it->size));
    }
    fprintf(m, "}");
    fflush(m);
    while ((*len + 8) % ALIGN != 0) {
        fputc(' ', m);
        fflush(m);
    }
    return fclose(m) == 0 ? text : NULL;
}

static int
put(int fd, const void *data, size_t n, uint64_t at)
{
    const char  *p = data;
    ssize_t      k;

    for ( ; n > 0; p += k, n -= (size_t) k, at += (uint64_t) k) {
        k = pwrite(fd, p, n, (off_t) at);
        if (k < 0 && errno == EINTR) k = 0;
        if (k < 0) return errno;
    }
    return 0;
}

static int
write_run(writer_t *w, item_t *it, int32_t row, uint8_t *buf)
{
    int32_t      n = it->t.rows - row < it->rows_a_run ? it->t.rows - row : it->rows_a_run;
    glm_slice_t  s = { row, n, 0, it->t.cols };
    size_t       bytes = (size_t) n * it->width;
    uint32_t     crc;
    int          rc;

    if (it->scales) (void) glm_tensor_scales(&it->t, &s, (uint16_t *) (void *) buf);
    else glm_tensor_slice(&it->t, &s, buf);
    /* as digest.c has it: parts of a CRC add up by xor */
    crc = (uint32_t) crc32_z(0, buf, bytes);
    crc = (uint32_t) crc32_combine(crc, 0, (off_t) (it->size - (uint64_t) (row + n) * it->width));
    atomic_fetch_xor(&it->crc, crc);
    rc = put(w->fd, buf, bytes, w->base + it->at + (uint64_t) row * it->width);
    atomic_fetch_add(&w->done, bytes);
    return rc;
}

static void *
write_some(void *arg)
{
    writer_t  *w = arg;
    size_t     most = 0;
    uint8_t   *buf;
    int        i, at = 0, rc;

    for (int k = 0; k < w->n; k++) {
        size_t  run = (size_t) w->item[k].rows_a_run * w->item[k].width;

        if (run > most) most = run;
    }
    buf = malloc(most);
    rc = buf == NULL ? ENOMEM : 0;
    while (rc == 0 && atomic_load(&w->failed) == 0
           && (i = atomic_fetch_add(&w->next, 1)) < w->runs)
    {
        while (i >= w->item[at].first + w->item[at].runs) at++;
        rc = write_run(w, &w->item[at], (i - w->item[at].first) * w->item[at].rows_a_run, buf);
    }
    free(buf);
    if (rc != 0) atomic_store(&w->failed, rc);
    return NULL;
}

/* All values, on all cores, while this thread tells how far they are. */
static int
write_values(writer_t *w)
{
    pthread_t       thread[THREADS];
    glm_progress_t  p;
    uint64_t        seen = 0, now;
    int             n = 0, cores = glm_comm_cores();

    while (n < cores && n < THREADS && pthread_create(&thread[n], NULL, write_some, w) == 0) n++;
    if (n == 0) return EAGAIN;
    glm_progress_begin(&p, w->f->bytes, NULL, !isatty(STDERR_FILENO));
    while ((now = atomic_load(&w->done)) < w->f->bytes && atomic_load(&w->failed) == 0) {
        glm_progress_add(&p, now - seen, "writing");
        seen = now;
        usleep(50000);
    }
    glm_progress_clear(&p);
    while (n > 0) pthread_join(thread[--n], NULL);
    return atomic_load(&w->failed);
}

static int
write_file(writer_t *w, const char *path, glm_err_t *err)
{
    char      *text;
    size_t     len;
    uint64_t   n;
    int        rc;

    if ((text = header(w, &len)) == NULL) return glm_fail(err, GLM_ENOMEM, "no memory");
    free(text);
    w->base = len + 8;
    w->fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (w->fd < 0) return failed(path, err);
    if ((rc = write_values(w)) == 0 && (text = header(w, &len)) == NULL) rc = ENOMEM;
    if (rc == 0) {
        n = len;                  /* little-endian, as everything here */
        rc = put(w->fd, &n, 8, 0);
        if (rc == 0) rc = put(w->fd, text, len, 8);
        free(text);
    }
    if (rc == 0 && fsync(w->fd) != 0) rc = errno;
    close(w->fd);
    return rc == 0 ? 0 : glm_fail(err, GLM_EIO, "%s: %s", path, strerror(rc));
}

int
bench_files_write(bench_files_t *f, glm_err_t *err)
{
    writer_t       w = { .f = f };
    glm_loader_t  *l = NULL;
    double         t = bench_now();
    char           part[512];
    int            rc = prepare(f, err);

    f->written_s = 0;
    if (rc != 0) return rc < 0 ? rc : 0;
    (void) path_in(f->dir, WEIGHTS ".part", part);
    if ((rc = glm_loader_open(&l, f->dir, &f->cfg, 1, err)) == 0
        && (rc = list_items(&w, l, err)) == 0
        && (rc = write_file(&w, part, err)) == 0
        && rename(part, f->path) != 0) rc = failed(part, err);
    if (rc != 0) (void) unlink(part);
    free(w.item);
    glm_loader_close(l);
    f->written_s = bench_now() - t;
    return rc;
}
