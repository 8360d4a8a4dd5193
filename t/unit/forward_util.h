/*
 * forward_util: goldens of the forward pass, and how far logits are from them.
 */
#ifndef FORWARD_UTIL_H
#define FORWARD_UTIL_H

#include <jansson.h>

#include "model_util.h"

#define TOLERANCE  1e-3

static inline double
ids_diff(json_t *pairs, const float *logits)
{
    double   d, worst = 0;
    json_t  *e;
    size_t   i;

    json_array_foreach(pairs, i, e) {
        d = fabs(logits[json_integer_value(json_array_get(e, 0))]
                 - json_number_value(json_array_get(e, 1)));
        if (!(d <= worst)) worst = d;
    }
    return worst;
}

static inline double
logits_diff(json_t *rows, const float *logits, int vocab)
{
    double   worst = 0, d, sum;
    json_t  *r;
    size_t   i;

    json_array_foreach(rows, i, r) {
        const float  *l = logits + json_integer_value(json_object_get(r, "row")) * vocab;

        d = ids_diff(json_object_get(r, "top20"), l);
        if (!(d <= worst)) worst = d;
        d = ids_diff(json_object_get(r, "at"), l);
        if (!(d <= worst)) worst = d;
        sum = 0;
        for (int k = 0; k < vocab; k++) sum += l[k];
        d = fabs(sum - json_number_value(json_object_get(r, "sum"))) / vocab;
        if (!(d <= worst)) worst = d;
    }
    return worst;
}

static inline int
ints(json_t *a, int32_t *out)
{
    json_t  *e;
    size_t   i;

    json_array_foreach(a, i, e) out[i] = (int32_t) json_integer_value(e);
    return (int) json_array_size(a);
}

static inline json_t *
goldens(const char *model, const char *file)
{
    char     path[256];
    json_t  *j;

    snprintf(path, sizeof(path), "t/data/goldens/glm-%s-random/%s", model, file);
    j = json_load_file(path, 0, NULL);
    if (j == NULL) {
        snprintf(path, sizeof(path), "../shared/reference/goldens/glm-%s-random/%s", model, file);
        j = json_load_file(path, 0, NULL);
    }
    return j;
}

#endif
