/*
 * eval_metrics: exact match and F1 as the original's metrics.py gives them.
 */
#include <locale.h>
#include <math.h>

#include "../../tools/glm/eval.h"
#include "tap.h"

static const struct { const char *said, *want; int em; double f1; }  cases[] = {
    { "The cat", "cat", 1, 1 },
    { "a", "the", 1, 0 },
    { "", "", 1, 0 },
    { "A.B.C.", "abc", 1, 1 },
    { "the the dog dog", "dog", 0, 0.666667 },
    { "New  York\nCity", "york new city", 0, 1 },
    { "anthem", "them", 0, 0 },
    { "\u00c4rger", "\u00e4RGER", 1, 1 },
    { "don't", "dont", 1, 1 },
    { "the-cat", "cat", 0, 0 },
    { "the\u2026end", "end", 0, 0 },
    { "a_b a", "ab", 1, 1 },
    { "x y z", "x q z w", 0, 0.571429 },
    { "\u4e2d\u6587 the \u5b57", "\u4e2d\u6587\u5b57", 0, 0 },
    { "\u201cthe\u201d", "\u201c\u201d", 0, 0 },
    { "10,000", "10000", 1, 1 },
    { "an apple a day", "apple day keeps", 0, 0.8 },
    { "The\u3000end", "end", 1, 1 },
    { "\u00c5\u00c9 the", "\u00e5\u00e9", 1, 1 },
};

int
main(void)
{
    setlocale(LC_CTYPE, "C.UTF-8");
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        double  em = glm_eval_em(cases[i].said, cases[i].want);
        double  f1 = glm_eval_f1(cases[i].said, cases[i].want);

        ok(em == cases[i].em && fabs(f1 - cases[i].f1) < 1e-6, "case %zu, for \"%s\": EM %g, F1 %g",
           i, cases[i].want, em, f1);
    }
    ok(glm_eval_em("\xff x", "\xff x") == 1, "bytes that are no UTF-8");
    return tap_done();
}
