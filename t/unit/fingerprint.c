/*
 * fingerprint: one hash of a model's weights by whichever way they are read: mapped,
 * or in pieces of any size by any number of readers, which read each byte once.
 * Would break: a damaged file that serves, streams that go on from other weights,
 * a load that reads its files twice.
 */
#include "model_util.h"

#ifndef GLM_FAKECUDA

int
main(void)
{
    skip_all("the headers of CUDA are not here");
}

#else

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <unistd.h>
#include <zlib.h>

#include "fakecuda.h"
#include "model_cuda_load.h"
#include "st_util.h"

enum { VOCAB = 1024, HIDDEN = 256, INNER = 768, LAYERS = 2, MAX_TENSORS = 64 };

#ifdef __SANITIZE_THREAD__
#define STRIDE  4                 /* tensors: a load takes a second there */
#else
#define STRIDE  1
#endif

static char  dir[] = "/tmp/glm-print-XXXXXX";

/* Where a tensor lies in the file, as the loader saw it. */
static struct { char name[160]; uint64_t at, size; } place[MAX_TENSORS];
static int       nplaces;
static uint64_t  all_bytes, file_bytes;

/* ---- what the loader asks of the system ---- */

int __real_open(const char *path, int flags, ...);
ssize_t __real_pread(int fd, void *buf, size_t n, off_t at);
int __real_munmap(void *p, size_t n);
int __wrap_open(const char *path, int flags, ...);
ssize_t __wrap_pread(int fd, void *buf, size_t n, off_t at);
int __wrap_munmap(void *p, size_t n);

static int            no_direct;  /* 1: open() refuses it, 2: pread() does */
static int            fail_read;  /* the n-th fails; 0: none */
static atomic_ullong  read_bytes;
static atomic_int     reads, overlaps;    /* overlaps: while the card had something to do */
static long           touched, pages;   /* of the mapped file; pages -1: not told */

int
__wrap_open(const char *path, int flags, ...)
{
    va_list  ap;
    int      mode;

    va_start(ap, flags);
    mode = flags & O_CREAT ? va_arg(ap, int) : 0;
    va_end(ap);
    if (no_direct == 1 && flags & O_DIRECT) {
        errno = EINVAL;
        return -1;
    }
    return __real_open(path, flags, mode);
}

ssize_t
__wrap_pread(int fd, void *buf, size_t n, off_t at)
{
    ssize_t  got;

    if (no_direct == 2 && fcntl(fd, F_GETFL) & O_DIRECT) {
        errno = EINVAL;
        return -1;
    }
    if (atomic_fetch_add(&reads, 1) + 1 == fail_read) {
        errno = EIO;
        return -1;
    }
    if (fakecuda_pending() > 0) atomic_fetch_add(&overlaps, 1);
    got = __real_pread(fd, buf, n, at);
    if (got > 0) atomic_fetch_add(&read_bytes, (unsigned long long) got);
    return got;
}

/* Which pages of a file's map this process has looked at. */
int
__wrap_munmap(void *p, size_t n)
{
    int       ours = n == file_bytes, fd = ours ? __real_open("/proc/self/pagemap", O_RDONLY) : -1;
    uint64_t  e;

    if (ours) pages = -1;
    if (fd >= 0) {
        touched = 0;
        pages = (long) ((n + 4095) / 4096);
        for (long i = 0; i < pages; i++) {
            if (__real_pread(fd, &e, 8, (off_t) (((uintptr_t) p / 4096 + (size_t) i) * 8)) == 8) {
                touched += (long) (e >> 63);
            }
        }
        close(fd);
    }
    return __real_munmap(p, n);
}

/* ---- a model ---- */

static const char *
in_dir(const char *name)
{
    static char  path[128];

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    return path;
}

static void
write_config(const char *quant)
{
    FILE  *f = fopen(in_dir("config.json"), "w");

    if (f == NULL || fprintf(f, "{\"name\": \"p\", \"num_layers\": %d, \"hidden_size\": %d, "
        "\"inner_hidden_size\": %d, \"num_attention_heads\": 4, \"vocab_size\": %d, "
        "\"max_sequence_length\": 64, \"end_tokens\": [1], \"quantization\": %s}", LAYERS, HIDDEN,
        INNER, VOCAB, quant) < 0 || fclose(f) != 0) bail_out("cannot write config.json");
}

/* All values of a tensor, as a file has them; the caller frees them. */
static uint8_t *
values(const glm_tensor_t *t, int scale)
{
    glm_slice_t  s = { 0, t->rows, 0, t->cols };
    uint8_t     *p = malloc(scale ? t->scale_size : t->size);

    if (scale) (void) glm_tensor_scales(t, &s, (uint16_t *) (void *) p);
    else glm_tensor_slice(t, &s, p);
    return p;
}

/* Dummy weights as a file, with checksums or without. */
static void
write_model(const char *quant, int crc)
{
    static const char *types[] = { [GLM_T_F16] = "F16", [GLM_T_INT8] = "I8", [GLM_T_INT4] = "I8" };
    static char        meta[8192];
    glm_config_t       cfg;
    glm_loader_t      *l;
    glm_tensor_t       t;
    glm_err_t          err = { "" };
    st_out_t           f;
    char               name[128], full[160];
    int                len = 0;

    write_config(quant);
    if (glm_config_load(&cfg, dir, &err) != 0 || glm_loader_open(&l, dir, &cfg, 1, &err) != 0) {
        bail_out(err.text);
    }
    nplaces = 0;
    all_bytes = 0;
    for (int turn = 0; turn < 2; turn++) {      /* checksums, then values */
        if (turn == 1) st_begin(&f, crc ? meta : NULL);
        for (int i = 0; glm_loader_name(l, i, name) == 0; i++) {
            (void) glm_loader_tensor(l, name, &t, &err);
            for (int s = 0; s <= (t.groups > 0); s++) {
                uint8_t   *p = values(&t, s);
                uint64_t   size = s ? t.scale_size : t.size;
                int        width = t.type == GLM_T_INT4 ? t.cols / 2 : t.cols;

                snprintf(full, sizeof(full), "%s%s", name, s ? "_scale" : "");
                if (turn == 0) {
                    len += snprintf(meta + len, sizeof(meta) - (size_t) len,
                        "%c\"crc32.%s\": \"%08x\"", len ? ',' : '{', full,
                        (unsigned) crc32_z(0, p, size));
                } else {
                    snprintf(place[nplaces].name, sizeof(place[0].name), "%s", full);
                    place[nplaces++].size = size;
                    all_bytes += size;
                    st_put(&f, full, s ? "F16" : types[t.type], t.rows,
                        s ? t.groups : t.cols == 1 ? -1 : width, p, size);
                }
                free(p);
            }
        }
        snprintf(meta + len, sizeof(meta) - (size_t) len, "}");
    }
    glm_loader_close(l);
    place[0].at = 8 + (f.nhead + 1 + 7) / 8 * 8;
    for (int i = 1; i < nplaces; i++) place[i].at = place[i - 1].at + place[i - 1].size;
    file_bytes = place[nplaces - 1].at + place[nplaces - 1].size;
    st_end(&f, in_dir("model.safetensors"));
}

/* Xors the byte at `at`. */
static void
flip(uint64_t at, int bits)
{
    FILE  *f = fopen(in_dir("model.safetensors"), "r+b");
    int    c;

    if (f == NULL || fseek(f, (long) at, SEEK_SET) != 0 || (c = fgetc(f)) == EOF
        || fseek(f, (long) at, SEEK_SET) != 0 || fputc(c ^ bits, f) == EOF || fclose(f) != 0)
    {
        bail_out("cannot change the file");
    }
}

/* 0, and the hash. */
static int
load(int backend, int readers, size_t piece, uint64_t *digest, glm_err_t *err)
{
    glm_model_opts_t  o = { .backend = backend, .dir = dir, .tp = 1, .threads = 1,
                            .kv_pages = 128, .max_rows = 128, .readers = readers, .piece = piece };
    glm_model_t      *m;
    int               rc;

    err->text[0] = '\0';
    atomic_store(&read_bytes, 0);
    atomic_store(&reads, 0);
    atomic_store(&overlaps, 0);
    *digest = 0;
    if ((rc = glm_model_load(&m, &o, err)) != 0) return rc;
    *digest = m->digest;
    glm_model_free(m);
    return 0;
}

/* ---- */

static void
check_ways(const char *quant)
{
    static const struct { int readers; size_t piece; int no_direct; } ways[] = {
        { 1, 0, 0 }, { 1, 1, 0 }, { 2, 300000, 0 }, { 5, 1, 0 }, { 16, 1, 0 }, { 0, 0, 0 },
        { 3, 1, 1 }, { 3, 200000, 2 },
    };
    uint64_t   want, got, most;
    glm_err_t  err;
    int        rc;

    write_model(quant, 1);
    rc = load(GLM_BACKEND_CPU, 0, 0, &want, &err);
    ok(rc == 0 && want != 0, "%s: mapped, %016llx %s", quant,
        (unsigned long long) want, err.text);
    for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
        no_direct = ways[i].no_direct;
        rc = load(GLM_BACKEND_CUDA, ways[i].readers, ways[i].piece, &got, &err);
        ok(rc == 0 && got == want, "%d readers, pieces of %zu, %s: %016llx %s", ways[i].readers,
            ways[i].piece,
            no_direct == 0 ? "O_DIRECT" : no_direct == 1 ? "no O_DIRECT" : "O_DIRECT refused late",
            (unsigned long long) got, err.text);
        no_direct = 0;
        /* O_DIRECT reads whole blocks: no more than two of them beside a row of tiles */
        most = all_bytes + all_bytes / 4 + 2 * 4096 * MAX_TENSORS;
        ok(read_bytes >= all_bytes && read_bytes < most, "%llu bytes read of %llu",
            (unsigned long long) read_bytes, (unsigned long long) all_bytes);
        if (pages < 0) skip("no /proc/self/pagemap");
        else ok(pages > 256 && touched < pages / 4, "%ld of %ld mapped pages looked at", touched, pages);
    }
}

/* Without checksums: it changes the hash, whoever reads; with them it is told. */
static void
check_flips(const char *quant)
{
    uint64_t   want, cpu, card;
    glm_err_t  one, two;
    int        unseen = 0, differ = 0, untold = 0, n = 0;

    for (int crc = 0; crc < 2; crc++) {
        write_model(quant, crc);
        (void) load(GLM_BACKEND_CPU, 0, 0, &want, &one);
        for (int i = 0; i < nplaces; i += STRIDE, n++) {
            uint64_t  last = place[i].size - 1;
            uint64_t  at = place[i].at + (i % 3 == 0 ? 0 : i % 3 == 1 ? last : last * 2 / 3);
            int       bit = i % 2;     /* of a low byte of fp16: still a number */

            at -= strstr(place[i].name, "_scale") ? at % 2 : 0;
            flip(at, 1 << bit);
            load(GLM_BACKEND_CPU, 0, 0, &cpu, &one);
            load(GLM_BACKEND_CUDA, 2, 1, &card, &two);
            flip(at, 1 << bit);
            unseen += cpu == want || card == want;
            differ += cpu != card || strcmp(one.text, two.text) != 0;
            if (crc) untold += !strstr(two.text, place[i].name) || !strstr(two.text, "damaged");
            if (crc != (two.text[0] != '\0')) diag("%s: %s", place[i].name, two.text);
        }
    }
    ok(unseen == 0 && n > 50 / STRIDE, "%s: a bit of each of %d tensors: %d not seen", quant,
        n / 2, unseen);
    ok(differ == 0, "the same from either backend (%d not)", differ);
    ok(untold == 0, "with checksums each is told by name (%d not)", untold);
}

/* Rows in another order are other weights; bad scales are told as such. */
static void
check_rows(void)
{
    uint64_t   want, got, at = 0, scale = 0;
    glm_err_t  one, two = { "" };
    int        rc;

    write_model("{\"type\": \"int8\"}", 0);
    (void) load(GLM_BACKEND_CUDA, 1, 0, &want, &one);
    for (int i = 0; i < nplaces; i++) {
        const char  *of = "layers.1.mlp.dense_h_to_4h.weight";

        if (strncmp(place[i].name, of, strlen(of)) != 0) continue;
        *(place[i].name[strlen(of)] == '_' ? &scale : &at) = place[i].at;
    }
    {
        FILE    *f = fopen(in_dir("model.safetensors"), "r+b");
        uint8_t  a[2 * HIDDEN], b[2 * HIDDEN];

        fseek(f, (long) at, SEEK_SET);
        (void) !fread(a, 1, sizeof(a), f);
        memcpy(b, a + HIDDEN, HIDDEN);
        memcpy(b + HIDDEN, a, HIDDEN);
        fseek(f, (long) at, SEEK_SET);
        fwrite(b, 1, sizeof(b), f);
        fclose(f);
        ok(load(GLM_BACKEND_CUDA, 1, 0, &got, &one) == 0 && got != want, "two rows changed places");
        f = fopen(in_dir("model.safetensors"), "r+b");
        fseek(f, (long) at, SEEK_SET);
        fwrite(a, 1, sizeof(a), f);
        fclose(f);
    }
    ok(load(GLM_BACKEND_CUDA, 1, 0, &got, &one) == 0 && got == want, "and back");
    flip(scale + (INNER + 300) * 2 + 1, 0x80);  /* of a row of the gate: its sign */
    rc = load(GLM_BACKEND_CPU, 0, 0, &got, &one);
    ok(rc == GLM_EFORMAT && load(GLM_BACKEND_CUDA, 3, 1, &got, &two) == GLM_EFORMAT
       && strcmp(one.text, two.text) == 0 && strstr(two.text, "row 1068, group 0 is -"), "%s",
        two.text);
    ok(fakecuda_live() == 0, "nothing is left");
}

/* One reader reads the next piece while the card still has the last one to do. */
static void
check_overlap(void)
{
    uint64_t   got;
    glm_err_t  err;
    int        rc;

    write_model("{\"type\": \"int4\", \"group_size\": 128}", 1);
    rc = load(GLM_BACKEND_CUDA, 1, 1, &got, &err);
    ok(rc == 0 && reads > nplaces && overlaps == reads - 1,
        "%d of %d reads began before the card was done", (int) overlaps, (int) reads);
}

/* A read that fails, when other parts of its piece are on their way to the card. */
static void
check_bad_reads(void)
{
    uint64_t   got;
    glm_err_t  err;
    int        all = reads, untold = 0, early = fakecuda_early();

    for (fail_read = 1; fail_read <= all; fail_read++) {
        untold += load(GLM_BACKEND_CUDA, 1, 1, &got, &err) != GLM_EIO
                  || strstr(err.text, "reading weights failed: Input/output error") == NULL;
    }
    fail_read = 0;
    early = fakecuda_early() - early;
    ok(all > nplaces && untold == 0, "each of %d reads that fails is told (%d not)", all, untold);
    ok(early == 0 && fakecuda_live() == 0, "no buffer went while the card used it (%d did)", early);
}

/* More files than a load keeps open are told, and no part is left out for it: there are
 * so many already, and one more that has the weights. */
static void
check_files(void)
{
    glm_model_opts_t   o = { .dir = dir, .tp = 1, .max_rows = 8, .kv_pages = 8 };
    glm_cuda_model_t  *m = calloc(1, sizeof(*m));
    glm_loader_t      *l = NULL;
    glm_err_t          err = { "" };
    char              *arena;

    if (glm_model_setup(&m->base, &glm_backend_cuda, &o, &err) != 0
        || glm_loader_open(&l, dir, &m->base.cfg, 0, &err) != 0) bail_out(err.text);
    glm_cuda_options(m, &o);
    if (glm_cuda_describe(m, l, &err) != 0 || glm_cuda_plan(m, &err) != 0) bail_out(err.text);
    arena = malloc(m->plan.total);
    m->table = malloc((size_t) VOCAB * HIDDEN * 2);
    glm_cuda_lay(m, arena);
    for (int before = GLM_LOAD_FILES - 1; before <= GLM_LOAD_FILES; before++) {
        glm_pieces_t  *p = calloc(1, sizeof(*p));
        int            rc, room = before < GLM_LOAD_FILES;

        p->nfiles = before;
        memset(p->fd, 0xff, sizeof(p->fd));
        err.text[0] = '\0';
        rc = glm_cuda_pieces(p, m, l, &err);
        ok(rc == (room ? 0 : GLM_ELIMIT) && (room || strstr(err.text, "more than 4096 files")),
            "%d files and one more: %s", before, err.text);
        free(p->list);
        free(p);
    }
    glm_loader_close(l);
    free(m->table);
    free(arena);
    free(m->layer);
    free(m);
}

/* A backend that leaves rows out, or reads some twice. */
static void
check_complete(void)
{
    glm_config_t   cfg;
    glm_loader_t  *l;
    glm_digest_t  *d;
    glm_tensor_t   t;
    glm_err_t      err = { "" };
    uint64_t       h;

    (void) glm_config_load(&cfg, dir, &err);
    (void) glm_loader_open(&l, dir, &cfg, 0, &err);
    (void) glm_digest_new(&d, l, &err);
    ok(glm_digest_end(d, &h, &err) == GLM_EIO && strstr(err.text, "0 of 256 rows"), "%s", err.text);
    (void) glm_digest_mapped(d, &err);
    ok(glm_digest_end(d, &h, &err) == 0, "complete");
    (void) glm_loader_tensor(l, "final_layernorm.bias", &t, &err);
    err.text[0] = '\0';
    (void) glm_digest_rows(d, t.index, 0, t.rows, t.data, NULL, &err);
    ok(glm_digest_end(d, &h, &err) == GLM_EIO
       && strstr(err.text, "final_layernorm.bias: 512 of 256"), "%s", err.text);
    glm_digest_free(d);
    glm_loader_close(l);
}

int
main(void)
{
    if (mkdtemp(dir) == NULL) bail_out("mkdtemp() failed");
    check_ways("{\"type\": \"fp16\"}");
    check_ways("{\"type\": \"int8\"}");
    check_ways("{\"type\": \"int4\", \"group_size\": 128, \"tensors\": "
        "{\"layers.1.mlp.dense_h_to_4h.weight\": \"int8\"}}");
    check_flips("{\"type\": \"int4\", \"group_size\": 128}");
    check_flips("{\"type\": \"fp16\"}");
    check_rows();
    check_overlap();
    check_bad_reads();
    check_files();
    check_complete();
    unlink(in_dir("config.json"));
    unlink(in_dir("model.safetensors"));
    rmdir(dir);
    return tap_done();
}
#endif
