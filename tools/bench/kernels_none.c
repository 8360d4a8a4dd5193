/* kernels_none: in the place of kernels.cu where CUDA is not built in. */
#include <stdio.h>

#include "kernels.h"

int
bench_kernels(int argc, char **argv)
{
    (void) argc;
    (void) argv;
    fprintf(stderr, "glm-bench: kernels: this program was built without CUDA\n");
    return 1;
}
