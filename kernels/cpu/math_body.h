/*
 * math_body: exp and erf of sixteen lanes.  erf's coefficients are least-squares
 * fits of this project, weights iterated towards equal ripple.  Errors below are
 * the largest over 20 million arguments; t/unit/kernels*.c see them through gelu
 * and softmax.
 */

/* e^x for x <= 0, within 2.3e-7 of itself; 0 below -87. */
V_INLINE v16
m_exp(v16 x)
{
    v16  magic = v_set1(0x1.8p23f), z, n, r, p;

    z = v_fma(x, v_set1(1.44269504f), magic);       /* low bits: round(x / ln 2) */
    n = v_sub(z, magic);
    r = v_fma(n, v_set1(-0.693359375f), x);         /* ln 2 in two pieces */
    r = v_fma(n, v_set1(2.12194440e-4f), r);
    p = v_set1(1.0f / 720);                         /* Taylor: |r| <= 0.347 */
    p = v_fma(p, r, v_set1(1.0f / 120));
    p = v_fma(p, r, v_set1(1.0f / 24));
    p = v_fma(p, r, v_set1(1.0f / 6));
    p = v_fma(p, r, v_set1(0.5f));
    p = v_fma(p, r, v_set1(1));
    p = v_fma(p, r, v_set1(1));
    return v_less(x, v_set1(-87), v_zero(), v_scale(p, z));
}

/* erf within 1.3e-7: x P(x^2) below 1, 1 - t Q(t) e^(-x^2), t = 1 / (1 + x/2) above. */
V_INLINE v16
m_erf(v16 x)
{
    v16  a = v_abs(x), s = v_mul(a, a), t, p, q;

    p = v_set1(7.889119297e-05f);
    p = v_fma(p, s, v_set1(-8.020841051e-04f));
    p = v_fma(p, s, v_set1(5.189535208e-03f));
    p = v_fma(p, s, v_set1(-2.685444430e-02f));
    p = v_fma(p, s, v_set1(1.128360033e-01f));
    p = v_fma(p, s, v_set1(-3.761262596e-01f));
    p = v_fma(p, s, v_set1(1.128379107f));
    p = v_mul(p, a);

    t = v_div(v_set1(1), v_fma(a, v_set1(0.5f), v_set1(1)));
    q = v_set1(-4.570003226e-02f);
    q = v_fma(q, t, v_set1(-6.910762191e-02f));
    q = v_fma(q, t, v_set1(3.991088867e-01f));
    q = v_fma(q, t, v_set1(1.210531294e-01f));
    q = v_fma(q, t, v_set1(3.156098723e-01f));
    q = v_fma(q, t, v_set1(2.785818875e-01f));
    q = v_mul(v_mul(q, t), m_exp(v_sub(v_zero(), s)));
    q = v_sub(v_set1(1), q);
    return v_sign(v_less(a, v_set1(1), p, q), x);
}
