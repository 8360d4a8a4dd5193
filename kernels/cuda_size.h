/*
 * cuda_size: numbers of the CUDA kernels' layouts that sizes are made of, for the
 * kernels and for a host without nvcc.
 */
#ifndef GLM_CUDA_SIZE_H
#define GLM_CUDA_SIZE_H

#define GLM_TILE        128       /* outputs, and inputs, of a tile; inputs of a group */
#define GLM_TILE_ROWS   256       /* outputs are padded to whole pairs of tiles */
#define GLM_TILE_DATA(type)                                                     \
    ((type) == GLM_W_INT4 ? 8192 : (type) == GLM_W_INT8 ? 16384 : 32768)
#define GLM_TILE_BYTES(type)                                                    \
    (GLM_TILE_DATA(type) + ((type) == GLM_W_F16 ? 0 : 2 * GLM_TILE))
#define GLM_SEGMENTS    4         /* most segments that K is cut into */
#define GLM_MAX_TILES   4096      /* of outputs */
#define GLM_COUNTERS    (GLM_CUDA_PREFILL_ROWS / GLM_CUDA_BLOCK * (GLM_MAX_TILES + 32))
                                  /* of all blocks of 64 rows; a cluster may pass the end */
/* Bytes of attn_row's counters.  As many for any rows: what comes behind is in the same
 * place for all, and no smaller step writes where a larger one counts. */
#define GLM_ATTN_COUNTERS(heads)                                                \
    (((size_t) GLM_CUDA_MAX_ROWS * (size_t) (heads) * 4 + 127) / 128 * 128)

#endif
