/*
 * eval_metrics: exact match and F1 of answers, as the original's metrics.py: in
 * lower case, without ASCII punctuation, articles and more than one blank.  The
 * locale must be a UTF-8 one.
 */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <wchar.h>
#include <wctype.h>

#include "eval.h"

typedef struct {
    wchar_t   *s;                /* words with a NUL behind each */
    wchar_t  **word;             /* (n) */
    size_t     n;
} words_t;

static void
words_free(words_t *w)
{
    free(w->s);
    free(w->word);
}

static int
is_article(const wchar_t *w)
{
    return wcscmp(w, L"a") == 0 || wcscmp(w, L"an") == 0 || wcscmp(w, L"the") == 0;
}

/* Python's \b: an article ends where a letter, digit or underscore does not go on. */
static int
is_word(wchar_t c)
{
    return iswalnum((wint_t) c) || c == L'_';
}

/* Articles become blanks, also inside of "the\u2026"; s holds no ASCII punctuation. */
static void
drop_articles(wchar_t *s)
{
    wchar_t  save, *end;

    for (; *s; s = end) {
        for (end = s; is_word(*end); end++) ;
        if (end == s) {
            end++;
            continue;
        }
        save = *end;
        *end = L'\0';
        if (is_article(s)) wmemset(s, L' ', (size_t) (end - s));
        *end = save;
    }
}

static int
split(words_t *w)
{
    wchar_t  *s = w->s;

    w->word = calloc(wcslen(s) + 1, sizeof(*w->word));
    if (w->word == NULL) return -1;
    for ( ;; ) {
        while (iswspace((wint_t) *s)) s++;
        if (*s == L'\0') return 0;
        w->word[w->n++] = s;
        while (*s && !iswspace((wint_t) *s)) s++;
        if (*s) *s++ = L'\0';
    }
}

static int
normalize(words_t *w, const char *text)
{
    size_t    n = strlen(text), k = 0, len;
    wchar_t   c;
    mbstate_t  st = {0};

    *w = (words_t) {0};
    w->s = calloc(n + 1, sizeof(wchar_t));
    if (w->s == NULL) return -1;
    for (; n > 0; text += len, n -= len) {
        len = mbrtowc(&c, text, n, &st);
        if (len == 0 || len > n) {           /* not UTF-8: as it is, byte by byte */
            c = (wchar_t) (unsigned char) *text;
            len = 1;
            st = (mbstate_t) {0};
        }
        if (c < 128 && ispunct((int) c)) continue;
        w->s[k++] = (wchar_t) towlower((wint_t) c);
    }
    drop_articles(w->s);
    return split(w);
}

/* Words in both, each as often as in the one that has it less often. */
static size_t
in_common(const words_t *a, words_t *b)
{
    size_t  n = 0;

    for (size_t i = 0; i < a->n; i++) {
        for (size_t j = 0; j < b->n; j++) {
            if (b->word[j] == NULL || wcscmp(a->word[i], b->word[j]) != 0) continue;
            b->word[j] = NULL;
            n++;
            break;
        }
    }
    return n;
}

static double
f1(const words_t *a, words_t *b)
{
    double  same = (double) in_common(a, b), precision, recall;

    if (same == 0) return 0;
    precision = same / (double) a->n;
    recall = same / (double) b->n;
    return 2 * precision * recall / (precision + recall);
}

static double
em(const words_t *a, words_t *b)
{
    if (a->n != b->n) return 0;
    for (size_t i = 0; i < a->n; i++)
        if (wcscmp(a->word[i], b->word[i]) != 0) return 0;
    return 1;
}

static double
compare(const char *prediction, const char *target, double (*fn)(const words_t *, words_t *))
{
    words_t  a, b = {0};
    double   x = 0;

    if (normalize(&a, prediction) == 0 && normalize(&b, target) == 0) x = fn(&a, &b);
    words_free(&a);
    words_free(&b);
    return x;
}

double
glm_eval_em(const char *prediction, const char *target)
{
    return compare(prediction, target, em);
}

double
glm_eval_f1(const char *prediction, const char *target)
{
    return compare(prediction, target, f1);
}
