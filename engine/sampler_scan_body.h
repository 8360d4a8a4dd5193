/*
 * sampler_scan_body: the passes, for the instruction set that the includer chose
 * by #pragma GCC target.  NAME(x) names a function of that set.  Included by
 * sampler_scan.c alone: the vector types are lowered before inlining, so one
 * body shared by several targets would be lowered for the poorest.
 */

INLINE v16f
NAME(splat)(float v)
{
    return (v16f) {} + v;
}

/* Lanes past the end are -inf: never the largest, and their exp is 0. */
INLINE v16f
NAME(load)(const float *x, int32_t i, int32_t n)
{
    v16f   v;
    float  tail[LANES];

    if (i + LANES <= n) {
        memcpy(&v, x + i, sizeof(v));
        return v;
    }
    for (int j = 0; j < LANES; j++) tail[j] = i + j < n ? x[i + j] : -INFINITY;
    memcpy(&v, tail, sizeof(v));
    return v;
}

INLINE v16i
NAME(allowed)(const uint64_t *allow, int32_t i)
{
    const v16i  bit = { 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192,
                        16384, 32768 };
    int32_t     bits;

    if (allow == NULL) return (v16i) {} - 1;
    bits = (int32_t) (allow[i / 64] >> (i % 64)) & 0xffff;
    return (((v16i) {} + bits) & bit) != 0;
}

INLINE int
NAME(any)(const v16i *mask)
{
    uint64_t  w[8];

    memcpy(w, mask, sizeof(w));
    return (w[0] | w[1] | w[2] | w[3] | w[4] | w[5] | w[6] | w[7]) != 0;
}

INLINE float
NAME(largest)(const v16f *v)
{
    float  f[LANES], m;

    memcpy(f, v, sizeof(f));
    m = f[0];
    for (int j = 1; j < LANES; j++) m = f[j] > m ? f[j] : m;
    return m;
}

/* glm_exp_neg() of each lane. */
INLINE v16f
NAME(exp_neg)(const v16f *arg)
{
    v16f   x = *arg, z, t, p;
    v16i   live = x > GLM_EXP_LEAST;

    z = PICK(live, x, NAME(splat)(0));
    t = GLM_EXP_ROUND(z);
    z = GLM_EXP_REST(z, (t - GLM_EXP_MAGIC));
    p = GLM_EXP_POLY(z);
    p = (v16f) ((v16i) p + (((v16i) t - GLM_EXP_MAGIC_INT) << 23));
    return PICK(live, p, NAME(splat)(0));
}

static void
NAME(max)(const float *x, int32_t n, const uint64_t *allow, glm_scan_max_t *out)
{
    v16f  all = NAME(splat)(-INFINITY), ok = all;
    v16i  bad = {};

    for (int32_t i = 0; i < n; i += LANES) {
        v16f  v = NAME(load)(x, i, n);

        bad |= (v != v) | (v > 3.4028235e38f);
        all = PICK(v > all, v, all);
        if (allow != NULL) ok = PICK((v > ok) & NAME(allowed)(allow, i), v, ok);
    }
    out->max = NAME(largest)(&all);
    out->max_allowed = allow != NULL ? NAME(largest)(&ok) : out->max;
    out->bad = NAME(any)(&bad);
}

static int32_t
NAME(find)(const float *x, int32_t n, const uint64_t *allow, float v, int32_t from)
{
    int32_t  i = from;

    while (i < n) {
        if (i % 64 == 0 && i + 64 <= n) {
            v16i  m = {};

            for (int j = 0; j < 64; j += LANES)
                m |= (NAME(load)(x, i + j, n) >= v) & NAME(allowed)(allow, i + j);
            if (!NAME(any)(&m)) {
                i += 64;
                continue;
            }
        }
        for (int32_t end = i / 64 * 64 + 64; i < n && i < end; i++)
            if (x[i] >= v && (allow == NULL || allow[i / 64] >> (i % 64) & 1)) return i;
    }
    return n;
}

INLINE double
NAME(total)(const v16f *sum)
{
    v16f    s = *sum;
    double  d[8];
    v8d     v = __builtin_convertvector(
                    __builtin_shufflevector(s, s, 0, 1, 2, 3, 4, 5, 6, 7), v8d)
              + __builtin_convertvector(
                    __builtin_shufflevector(s, s, 8, 9, 10, 11, 12, 13, 14, 15), v8d);

    memcpy(d, &v, sizeof(d));
    return ((d[0] + d[4]) + (d[2] + d[6])) + ((d[1] + d[5]) + (d[3] + d[7]));
}

static void
NAME(exps)(const float *x, int32_t n, const uint64_t *allow, float max, float t,
    double *sums, float *w)
{
    for (int32_t b = 0; b < n; b += GLM_SCAN_BLOCK) {
        v16f     s = {};
        int32_t  end = b + GLM_SCAN_BLOCK < n ? b + GLM_SCAN_BLOCK : n;

        for (int32_t i = b; i < end; i += LANES) {
            v16f  e = (NAME(load)(x, i, n) - max) / t;

            if (allow != NULL) e = PICK(NAME(allowed)(allow, i), e, NAME(splat)(-INFINITY));
            e = NAME(exp_neg)(&e);
            s += e;
            if (w != NULL) memcpy(w + i, &e, sizeof(e));
        }
        sums[b / GLM_SCAN_BLOCK] = NAME(total)(&s);
    }
}

static const glm_scan_t  NAME(scan) = { NAME(max), NAME(find), NAME(exps) };
