/* copies_none: in the place of copies.c where CUDA is not built in. */
#include "load.h"

int
bench_copies_new(bench_copies_t **out, int n, size_t piece, glm_err_t *err)
{
    (void) n;
    (void) piece;
    *out = NULL;
    return glm_fail(err, GLM_EGPU, "this program was built without CUDA");
}

void
bench_copies_free(bench_copies_t *c)
{
    (void) c;
}

const char *
bench_copies_card(const bench_copies_t *c)
{
    (void) c;
    return "";
}

int
bench_copies_run(bench_copies_t *c, uint64_t bytes, double *seconds, glm_err_t *err)
{
    (void) c;
    (void) bytes;
    (void) seconds;
    return glm_fail(err, GLM_EGPU, "this program was built without CUDA");
}
