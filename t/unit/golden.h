/*
 * golden: reads the JSON goldens of the tests: t/data/<name>, or where they were
 * handed over, ../shared/<name> seen from the repository's root.
 */
#ifndef GLM_T_GOLDEN_H
#define GLM_T_GOLDEN_H

#include <stdint.h>
#include <stdio.h>

#include <jansson.h>

/* NULL when neither place has it.  The caller owns the result. */
__attribute__((unused))
static json_t *
golden_load(const char *in_tree, const char *shared)
{
    const char  *dirs[2] = { "t/data", "../shared" };
    const char  *names[2] = { in_tree, shared };

    for (int i = 0; i < 2; i++) {
        char     path[512];
        json_t  *j;

        snprintf(path, sizeof(path), "%s/%s", dirs[i], names[i]);
        j = json_load_file(path, 0, NULL);
        if (j != NULL) return j;
    }
    return NULL;
}

/* A file of the random model "mini" or "tiny", as golden_load(); what a name has behind
 * these four characters is left out. */
__attribute__((unused))
static json_t *
golden_random(const char *model, const char *file)
{
    char  path[256], shared[300];

    snprintf(path, sizeof(path), "goldens/glm-%.4s-random/%s.json", model, file);
    snprintf(shared, sizeof(shared), "reference/%s", path);
    return golden_load(path, shared);
}

/* Array of ids; returns the count, at most cap. */
__attribute__((unused))
static int32_t
golden_ids(const json_t *a, int32_t *ids, size_t cap)
{
    size_t  n = json_array_size(a);

    for (size_t i = 0; i < n && i < cap; i++)
        ids[i] = (int32_t) json_integer_value(json_array_get(a, i));
    return (int32_t) (n < cap ? n : cap);
}

__attribute__((unused))
static double
golden_num(const json_t *o, const char *key)
{
    return json_number_value(json_object_get(o, key));
}

#endif
