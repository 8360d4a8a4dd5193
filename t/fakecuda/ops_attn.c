/*
 * ops_attn: twins of kv_write, attn_row and attn_context over pages in the layout of
 * glm_cuda.h.
 */
#include "ops.h"

#define MOST_SCALE  515.5f        /* 127 times the next one is infinite in fp16 */

typedef struct { glm_attn_args_t a; glm_gkv_t kv; glm_grows_t rows; } attn_t;

/* ---- pages ---- */

/* Where the value i of a token's key (v 0) or value (1) lies in its page. */
static void *
place(const glm_gkv_t *kv, int32_t page, int token, int head, int v, int i)
{
    char  *base = (char *) kv->base + (size_t) page * kv->page_bytes;
    int    d = kv->d, t = token % GLM_CUDA_KV_TOKENS;

    base += (size_t) (head * 2 * GLM_CUDA_KV_TOKENS * d) * (kv->int8 ? 1 : 2);
    if (!kv->int8) return base + (size_t) ((v * GLM_CUDA_KV_TOKENS + t) * d + i) * 2;
    if (!v) return base + t * d + i;
    return base + GLM_CUDA_KV_TOKENS * d + t / 4 * d * 4 + i * 4 + t % 4;
}

static uint16_t *
scale_of(const glm_gkv_t *kv, int32_t page, int token, int head, int v)
{
    char  *base = (char *) kv->base + (size_t) page * kv->page_bytes;

    base += (size_t) (kv->heads * 2 * GLM_CUDA_KV_TOKENS * kv->d);
    return (uint16_t *) (void *) base + head * 2 * GLM_CUDA_KV_TOKENS + v * GLM_CUDA_KV_TOKENS
        + token % GLM_CUDA_KV_TOKENS;
}

static void
get(const glm_gkv_t *kv, int32_t page, int token, int head, int v, float *out)
{
    float  s = kv->int8 ? glm_half_to_float(*scale_of(kv, page, token, head, v)) : 1;

    for (int i = 0; i < kv->d; i++) {
        void  *p = place(kv, page, token, head, v, i);

        out[i] = kv->int8 ? (float) *(int8_t *) p * s : glm_half_to_float(*(uint16_t *) p);
    }
}

/* NaN when an element is: fmaxf() would lose it. */
static float
absmax(const float *x, int d)
{
    float  most = 0;

    for (int i = 0; i < d; i++) {
        if (isnan(x[i])) return NAN;
        most = fmaxf(most, fabsf(x[i]));
    }
    return most;
}

/* absmax / 127 in fp16, rounded up. */
static uint16_t
scale_for(float most)
{
    uint16_t  h = glm_float_to_half(most / 127);

    if (glm_half_to_float(h) * 127 < most) h++;
    return h;
}

/* The scale's bits; of int8 alone. */
static void
set(const glm_gkv_t *kv, int32_t page, int token, int head, int v, const float *x, uint16_t scale)
{
    float  s = glm_half_to_float(scale), q;

    if (kv->int8) *scale_of(kv, page, token, head, v) = scale;
    for (int i = 0; i < kv->d; i++) {
        void  *p = place(kv, page, token, head, v, i);

        q = s > 0 ? fminf(fmaxf(rintf(x[i] / s), -127), 127) : 0;
        if (kv->int8) *(int8_t *) p = (int8_t) q;
        else *(uint16_t *) p = glm_float_to_half(fabsf(x[i]) < 65520 ? x[i] : NAN);
    }
}

static void
set_token(const glm_gkv_t *kv, int32_t page, int token, int head, const float *k, const float *v)
{
    uint16_t  ks = 0x7fff, vs = 0x7fff, most = glm_float_to_half(MOST_SCALE);
    float     kmax = absmax(k, kv->d), vmax = absmax(v, kv->d);

    if (kmax < INFINITY && vmax < INFINITY) {
        ks = scale_for(kmax);
        vs = scale_for(vmax) < most ? scale_for(vmax) : most;
    }
    set(kv, page, token, head, 0, k, ks);
    set(kv, page, token, head, 1, v, vs);
}

/* ---- rotary ---- */

static void
rotate(const uint16_t *x, const uint16_t *rope, int position, int d, float *out)
{
    for (int i = 0; i < d / 2; i++) {
        const uint16_t  *cs = rope + ((size_t) position * (size_t) (d / 2) + (size_t) i) * 2;
        float            c = glm_half_to_float(cs[0]), s = glm_half_to_float(cs[1]);
        float            a = glm_half_to_float(x[i]), b = glm_half_to_float(x[i + d / 2]);

        out[i] = fmaf(a, c, -(b * s));
        out[i + d / 2] = fmaf(b, c, a * s);
    }
}

static int
kv_ok(const glm_gkv_t *kv)
{
    return kv != NULL && (kv->d == 64 || kv->d == 128) && kv->heads >= 1 && kv->base != NULL
        && fc_aligned(kv->base) && kv->page_bytes % 16 == 0
        && kv->page_bytes >= (size_t) kv->heads * glm_cuda_kv_head_bytes(kv->d, kv->int8);
}

static int
attn_ok(const glm_attn_args_t *a)
{
    const glm_grows_t  *r;

    if (a == NULL || a->rows == NULL || a->qkv == NULL || a->rope == NULL) return 0;
    r = a->rows;
    return kv_ok(a->kv) && r->slot != NULL && r->position != NULL && r->pages != NULL
        && r->ldpages >= 0 && fc_bucket_ok(r->rows, a->bucket) && fc_aligned(a->qkv)
        && fc_aligned(a->rope);
}

static int
may_rows(const attn_t *t)
{
    size_t  rows = (size_t) t->rows.rows;

    return fakecuda_may(t->rows.slot, rows * 4) && fakecuda_may(t->rows.position, rows * 4)
        && fakecuda_may(t->a.qkv, rows * (size_t) (t->kv.heads * 3 * t->kv.d) * 2);
}

static int32_t
page_of(const attn_t *t, int r, int token)
{
    return t->rows.pages[(size_t) r * (size_t) t->rows.ldpages
                         + (size_t) (token / GLM_CUDA_KV_TOKENS)];
}

static int
may_page(const glm_gkv_t *kv, int32_t page)
{
    return fakecuda_may((char *) kv->base + (size_t) page * kv->page_bytes, kv->page_bytes);
}

/* ---- kv_write ---- */

static float
half(float x)
{
    return glm_half_to_float(glm_float_to_half(x));
}

/* What the page holds of a token, to x: its key, and its value behind. */
static void
leave(const glm_gkv_t *kv, int32_t page, int token, int head, uint16_t *x)
{
    float  held[128];

    for (int v = 0; v < 2; v++) {
        get(kv, page, token, head, v, held);
        for (int i = 0; i < kv->d; i++) {
            float  s = kv->int8 ? glm_half_to_float(*scale_of(kv, page, token, head, v)) : 0;

            if (s > MOST_SCALE) held[i] *= MOST_SCALE / s;
            x[v * kv->d + i] = glm_float_to_half(held[i]);
        }
    }
}

/* Slots of a pass: one after the other, from a multiple of 4 on.  Else a card would write astray. */
static int
may_pass(const glm_grows_t *r)
{
    for (int i = 0; i < r->rows; i++) {
        if (r->slot[0] < 0 || r->slot[0] % 4 != 0 || r->slot[i] != r->slot[0] + i) {
            return fakecuda_may(NULL, 1);
        }
    }
    return 1;
}

static void
run_write(void *arg)
{
    const attn_t    *t = arg;
    int              d = t->kv.d;
    float            k[128], v[128];

    if (!may_rows(t) || (t->rows.ldpages == 0 && !may_pass(&t->rows))) return;
    for (int r = 0; r < t->rows.rows; r++) {
        int32_t  slot = t->rows.slot[r], page;

        if (slot < 0) continue;
        page = page_of(t, r, slot);
        if (!may_page(&t->kv, page)) return;
        for (int h = 0; h < t->kv.heads; h++) {
            uint16_t  *x = (uint16_t *) t->a.qkv + (size_t) (r * t->kv.heads + h) * 3 * (size_t) d;

            rotate(x + d, t->a.rope, t->rows.position[r], d, k);
            for (int i = 0; i < d; i++) v[i] = glm_half_to_float(x[2 * d + i]);
            set_token(&t->kv, page, slot, h, k, v);
            if (t->rows.ldpages == 0) leave(&t->kv, page, slot, h, x + d);
        }
    }
}

int
fc_kv_write(const glm_attn_args_t *a, glm_stream_t *s)
{
    attn_t  t;

    if (s == NULL || !attn_ok(a)) return GLM_EINVAL;
    t = (attn_t) { *a, *a->kv, *a->rows };
    return fakecuda_enqueue(s, run_write, &t, sizeof(t));
}

/* ---- attention ---- */

/* Tokens that a row sees: of pages, or of a context's qkv, where weights are rounded, too. */
typedef struct {
    const glm_gkv_t           *kv;
    const int32_t             *pages;
    const glm_context_args_t  *context;
    int                        n, head, d;
} seen_t;

static void
get_seen(const seen_t *a, int token, int v, float *x)
{
    const uint16_t  *from;

    if (a->context == NULL) {
        get(a->kv, a->pages[token / GLM_CUDA_KV_TOKENS], token, a->head, v, x);
        return;
    }
    from = (const uint16_t *) a->context->qkv
           + (size_t) ((token * a->context->heads + a->head) * 3 + 1 + v) * (size_t) a->d;
    for (int i = 0; i < a->d; i++) x[i] = glm_half_to_float(from[i]);
}

/* q is scaled.  p: room for n weights. */
static void
attend(const seen_t *a, const float *q, float *p, float *out)
{
    int    d = a->d;
    float  x[128], top = -INFINITY, sum = 0;

    for (int t = 0; t < a->n; t++) {
        get_seen(a, t, 0, x);
        p[t] = fc_dot(q, x, d);
        top = fmaxf(top, p[t]);
    }
    for (int i = 0; i < d; i++) out[i] = 0;
    for (int t = 0; t < a->n; t++) {
        p[t] = expf(p[t] - top);
        sum += p[t];
        get_seen(a, t, 1, x);
        for (int i = 0; i < d; i++) out[i] += (a->context != NULL ? half(p[t]) : p[t]) * x[i];
    }
    for (int i = 0; i < d; i++) out[i] /= sum;
}

static void
attend_row(const attn_t *t, int r, float *p)
{
    int       d = t->kv.d;
    seen_t    seen = { .kv = &t->kv, .pages = t->rows.pages + (size_t) r * (size_t) t->rows.ldpages,
                       .n = t->rows.slot[r] + 1, .d = d };
    float     q[128], out[128];
    uint16_t *o = t->a.out;

    for (seen.head = 0; seen.head < t->kv.heads; seen.head++) {
        rotate((const uint16_t *) t->a.qkv + (size_t) (r * t->kv.heads + seen.head) * 3 * (size_t) d,
            t->a.rope, t->rows.position[r], d, q);
        for (int i = 0; i < d; i++) q[i] /= sqrtf((float) d);
        attend(&seen, q, p, out);
        for (int i = 0; i < d; i++) {
            o[glm_cuda_packed(t->kv.heads * d, seen.head * d + i, r, t->a.bucket)] =
                glm_float_to_half(out[i]);
        }
    }
}

static void
run_row(void *arg)
{
    const attn_t  *t = arg;
    float         *p = malloc((size_t) t->rows.ldpages * GLM_CUDA_KV_TOKENS * sizeof(float));

    if (may_rows(t)
        && fakecuda_may(t->rows.pages, (size_t) t->rows.rows * (size_t) t->rows.ldpages * 4)
        && fakecuda_may(t->a.ws, t->a.ws_bytes)
        && fakecuda_may(t->a.out, (glm_cuda_packed(t->kv.heads * t->kv.d, t->kv.heads * t->kv.d - 1,
                                                   t->rows.rows - 1, t->a.bucket) + 1) * 2))
    {
        for (int r = 0; r < t->rows.rows; r++) {
            if (t->rows.slot[r] >= 0) attend_row(t, r, p);
        }
    }
    free(p);
}

int
fc_attn_row(const glm_attn_args_t *a, glm_stream_t *s)
{
    attn_t  t;

    if (s == NULL || !attn_ok(a) || a->bucket > GLM_CUDA_MAX_ROWS || a->rows->ldpages < 1
        || a->out == NULL || a->ws == NULL || !fc_aligned(a->out) || !fc_aligned(a->ws)
        || a->ws_bytes < glm_cuda_attn_ws(a->rows->rows, a->kv->heads, a->kv->d,
                                          a->rows->ldpages * GLM_CUDA_KV_TOKENS))
    {
        return GLM_EINVAL;
    }
    t = (attn_t) { *a, *a->kv, *a->rows };
    return fakecuda_enqueue(s, run_row, &t, sizeof(t));
}

static void
context_row(const glm_context_args_t *a, int r, float *p)
{
    int        d = a->d, width = a->heads * d;
    seen_t     seen = { .context = a, .n = a->tokens, .d = d };
    float      q[128], out[128];
    uint16_t  *o = a->out;

    for (seen.head = 0; seen.head < a->heads; seen.head++) {
        rotate((const uint16_t *) a->qkv + (size_t) (r * a->heads + seen.head) * 3 * (size_t) d,
            a->rope, a->position[r], d, q);
        for (int i = 0; i < d; i++) q[i] = half(q[i] / sqrtf((float) d));
        attend(&seen, q, p, out);
        for (int i = 0; i < d; i++) {
            o[glm_cuda_packed(width, seen.head * d + i, r, GLM_CUDA_PREFILL_ROWS)] =
                glm_float_to_half(out[i]);
        }
    }
}

static void
run_context(void *arg)
{
    const glm_context_args_t  *a = arg;
    size_t                     n = (size_t) a->tokens, pass = GLM_CUDA_PREFILL_ROWS;
    float                     *p = malloc(n * sizeof(float));

    if (fakecuda_may(a->position, n * 4)
        && fakecuda_may(a->qkv, n * (size_t) (a->heads * 3 * a->d) * 2)
        && fakecuda_may(a->out, (n + pass - 1) / pass * pass * (size_t) (a->heads * a->d) * 2))
    {
        for (int r = a->first; r < a->first + a->rows; r++) context_row(a, r, p);
    }
    free(p);
}

int
fc_attn_context(const glm_context_args_t *a, glm_stream_t *s)
{
    if (a == NULL || s == NULL || (a->d != 64 && a->d != 128) || a->heads < 1
        || a->position == NULL || a->qkv == NULL || a->rope == NULL || a->out == NULL
        || !fc_aligned(a->qkv) || !fc_aligned(a->rope) || !fc_aligned(a->out) || a->first < 0
        || a->rows < 1 || a->tokens < a->first + a->rows)
    {
        return GLM_EINVAL;
    }
    return fakecuda_enqueue(s, run_context, a, sizeof(*a));
}
