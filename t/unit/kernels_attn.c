/*
 * kernels_attn: rotary embedding, KV pages and both attentions of each
 * instruction set against loops in double and against each other.
 */
#include <math.h>
#include <string.h>

#include "glm_kernels.h"
#include "tap.h"

#define HEADS  3
#define MAX    160                /* slots */
#define PAGES  16

static const glm_ops_t  *sets[3];
static int               nsets;
static uint32_t          seed = 7;

static float
rnd(void)
{
    seed = seed * 1664525 + 1013904223;
    return (float) (int32_t) seed * 0x1p-31f;
}

static float *
floats(size_t n, float scale)
{
    float  *p = aligned_alloc(64, (n * sizeof(float) + 63) / 64 * 64);

    for (size_t i = 0; i < n; i++) p[i] = rnd() * scale;
    return p;
}

typedef struct {
    int          d;
    size_t       ld, ldo;
    glm_rope_t   rope;
    glm_kv_t     kv;
    int32_t      pages[PAGES];
    float       *k, *v;           /* (MAX, HEADS, d), what pages should hold */
    float       *out;             /* of the first set */
} fix_t;

static void
fix_init(fix_t *f, int d)
{
    size_t  half = (size_t) d / 2;

    f->d = d;
    f->ld = (size_t) (HEADS * 3 * d) + 16;
    f->ldo = (size_t) (HEADS * d) + 16;
    f->rope = (glm_rope_t) { floats(MAX * half, 1), floats(MAX * half, 1), d };
    f->kv = (glm_kv_t) { NULL, (size_t) (2 * HEADS * d * 16), HEADS, d };
    f->kv.base = floats(f->kv.page_floats * PAGES, 1);
    for (int i = 0; i < PAGES; i++) f->pages[i] = (i * 7 + 3) % PAGES;
    f->k = floats((size_t) (MAX * HEADS * d), 1);
    f->v = floats((size_t) (MAX * HEADS * d), 1);
}

static void
fix_free(fix_t *f)
{
    free((void *) (uintptr_t) f->rope.cos);
    free((void *) (uintptr_t) f->rope.sin);
    free(f->kv.base);
    free(f->k);
    free(f->v);
}

/* One row into the pages: q rotated, k rotated and stored, v stored. */
static int
check_rope(const glm_ops_t *ops, fix_t *f, float *qkv, int rows, int slot0)
{
    int        d = f->d, half = d / 2, good = 1;
    float     *was = floats((size_t) rows * f->ld, 1);
    glm_at_t   at[MAX];

    memcpy(was, qkv, (size_t) rows * f->ld * sizeof(float));
    for (int r = 0; r < rows; r++) {
        at[r] = (glm_at_t) { (slot0 + r) * 5 % MAX, slot0 + r, f->pages };
    }
    ops->rope_kv(qkv, f->ld, at, rows, &f->rope, &f->kv, 0, 1);       /* in two parts */
    ops->rope_kv(qkv, f->ld, at, rows, &f->rope, &f->kv, 1, HEADS);
    for (int r = 0; r < rows; r++) {
        for (int h = 0; h < HEADS; h++) {
            const float  *x = was + (size_t) r * f->ld + (size_t) (h * 3 * d);
            const float  *q = qkv + (size_t) r * f->ld + (size_t) (h * 3 * d);
            const float  *page = f->kv.base + (size_t) f->pages[(slot0 + r) / 16]
                                 * f->kv.page_floats + (size_t) (h * 2 * d * 16);
            int           t = (slot0 + r) % 16;
            float        *k = f->k + (size_t) (((slot0 + r) * HEADS + h) * d);

            for (int i = 0; i < d; i++) {
                int     j = i % half, p = at[r].position * half + j;
                double  c = f->rope.cos[p], s = f->rope.sin[p], want[2];

                for (int b = 0; b < 2; b++) {   /* q, then k */
                    double  lo = x[b * d + j], hi = x[b * d + j + half];

                    want[b] = i < half ? lo * c - hi * s : hi * c + lo * s;
                }
                good &= fabs(q[i] - want[0]) < 1e-6 && fabs(q[d + i] - want[1]) < 1e-6;
                good &= page[i * 16 + t] == q[d + i];
                good &= page[d * 16 + t * d + i] == x[2 * d + i];
                k[i] = q[d + i];
                f->v[((slot0 + r) * HEADS + h) * d + i] = x[2 * d + i];
            }
        }
    }
    free(was);
    return good;
}

/* Row q over slots 0 .. n-1 of head h, in double. */
static int
attn_close(const fix_t *f, const float *q, const float *out, int h, int n)
{
    double  p[MAX], top = -INFINITY, sum = 0, o;
    int     d = f->d, good = 1;

    for (int t = 0; t < n; t++) {
        p[t] = 0;
        for (int i = 0; i < d; i++) p[t] += (double) q[i] * f->k[(t * HEADS + h) * d + i];
        p[t] /= sqrt(d);
        if (p[t] > top) top = p[t];
    }
    for (int t = 0; t < n; t++) sum += p[t] = exp(p[t] - top);
    for (int i = 0; i < d; i++) {
        o = 0;
        for (int t = 0; t < n; t++) o += p[t] / sum * f->v[(t * HEADS + h) * d + i];
        good &= fabs(out[i] - o) < 2e-6;
    }
    return good;
}

static void
check_attn(fix_t *f, int s, float *qkv, int n, int context, float **first)
{
    const glm_ops_t  *ops = sets[s];
    float            *out = floats(MAX * f->ldo, 1);
    float            *scratch = floats(glm_attn_scratch(MAX), 1);
    glm_at_t          at[MAX];
    int               good = 1;

    for (int r = 0; r < n; r++) at[r] = (glm_at_t) { 0, r, f->pages };
    if (context) {
        ops->attn_context(out, f->ldo, qkv, f->ld, n, n, f->pages, &f->kv, 0, 2, scratch);
        ops->attn_context(out, f->ldo, qkv, f->ld, n, n, f->pages, &f->kv, 2, HEADS, scratch);
    } else {
        ops->attn_row(out, f->ldo, qkv, f->ld, at, n, &f->kv, 0, HEADS, scratch);
    }
    for (int r = 0; r < n; r++) {
        for (int h = 0; h < HEADS; h++) {
            good &= attn_close(f, qkv + (size_t) r * f->ld + (size_t) (h * 3 * f->d),
                out + (size_t) r * f->ldo + (size_t) (h * f->d), h, context ? n : r + 1);
        }
    }
    ok(good, "%s: %s attention, %d slots, heads of %d", ops->isa, context ? "context" : "row",
        n, f->d);
    if (s == 0) {
        *first = out;
    } else {
        good = 1;
        for (int r = 0; r < n; r++) {
            good &= memcmp(out + (size_t) r * f->ldo, *first + (size_t) r * f->ldo,
                           (size_t) (HEADS * f->d) * sizeof(float)) == 0;
        }
        ok(good, "%s: the bits of %s", ops->isa, sets[0]->isa);
        free(out);
    }
    free(scratch);
}

/* Blocks of context rows, wherever they are cut: the same bits. */
static void
check_blocks(fix_t *f, const glm_ops_t *ops, const float *qkv, int n)
{
    float  *a = floats(MAX * f->ldo, 1), *b = floats(MAX * f->ldo, 1);
    float  *scratch = floats(glm_attn_scratch(MAX), 1);
    int     equal = 1;

    ops->attn_context(a, f->ldo, qkv, f->ld, n, n, f->pages, &f->kv, 0, HEADS, scratch);
    for (int r = 0, c = 1; r < n; r += c, c = c % 8 + 1) {
        if (c > n - r) c = n - r;
        ops->attn_context(b + (size_t) r * f->ldo, f->ldo, qkv + (size_t) r * f->ld, f->ld, c, n,
            f->pages, &f->kv, 0, HEADS, scratch);
    }
    for (int r = 0; r < n; r++) {
        equal &= memcmp(a + (size_t) r * f->ldo, b + (size_t) r * f->ldo,
                        (size_t) (HEADS * f->d) * sizeof(float)) == 0;
    }
    ok(equal, "%s: context attention in any blocks: the same bits", ops->isa);
    free(a);
    free(b);
    free(scratch);
}

static void
check_size(int d, int n)
{
    fix_t   f;
    float  *first[2] = { NULL, NULL };

    fix_init(&f, d);
    for (int s = 0; s < nsets; s++) {
        float  *qkv;

        seed = (uint32_t) (d + n);              /* the same values for each set */
        qkv = floats(MAX * f.ld, 2);
        ok(check_rope(sets[s], &f, qkv, n, 0), "%s: rotary and KV, heads of %d", sets[s]->isa,
            d);
        check_attn(&f, s, qkv, n, 0, &first[0]);
        check_attn(&f, s, qkv, n, 1, &first[1]);
        check_blocks(&f, sets[s], qkv, n);
        free(qkv);
    }
    free(first[0]);
    free(first[1]);
    fix_free(&f);
}

int
main(void)
{
    static const char  *names[] = { "avx512", "avx2", "plain" };

    for (int i = 0; i < 3; i++) {
        if (glm_cpu_ops(names[i]) != NULL) sets[nsets++] = glm_cpu_ops(names[i]);
    }
    check_size(64, 1);
    check_size(64, 16);
    check_size(64, 157);
    check_size(128, 75);
    check_size(32, 33);
    check_size(48, 50);                         /* not a multiple of 32 */
    return tap_done();
}
