/*
 * gpu_none: in the place of the CUDA backend where it is not built in.
 */
#include "model_cuda.h"

int
glm_cuda_card(glm_gpu_info_t *info, glm_err_t *err)
{
    (void) info;
    return glm_fail(err, GLM_EGPU, "this program was built without CUDA");
}

static int
none_probe(glm_err_t *err)
{
    return glm_cuda_card(NULL, err);
}

const glm_backend_t  glm_backend_cuda = { .name = "cuda", .probe = none_probe };
