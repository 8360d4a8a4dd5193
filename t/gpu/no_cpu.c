/*
 * no_cpu: in place of the CPU's backend in the bundle's tests, which never use it:
 * its kernels are 0.6 MB a program.
 */
#include "model_backend.h"

static int
no_cpu(glm_err_t *err)
{
    return glm_fail(err, GLM_EINVAL, "this program is for a card");
}

const glm_backend_t  glm_backend_cpu = { .name = "cpu", .size = sizeof(glm_model_t),
                                         .probe = no_cpu };
