/*
 * model_cuda_load: between model_cuda_pieces.c, which cuts the weights, and
 * model_cuda_load.c, which brings them to the card.
 */
#ifndef GLM_MODEL_CUDA_LOAD_H
#define GLM_MODEL_CUDA_LOAD_H

#include "model_cuda.h"

#define GLM_LOAD_FILES  4096      /* files of a model */
#define GLM_LOAD_BLOCK  4096      /* O_DIRECT: of offsets, lengths, addresses */

/* Bytes of a file, or of a dummy tensor's hash. */
typedef struct {
    int       file;               /* of glm_pieces_t.fd; -1: dummy */
    uint64_t  offset;
    size_t    bytes;
    size_t    at;                 /* where they go in the piece's staging area */
    int       f16;                /* dummy: as glm_fill_args_t */
    uint64_t  first;
    uint32_t  seed;
    float     lo, hi;
} glm_part_t;

typedef enum {
    GLM_PIECE_PACK,               /* packed into w */
    GLM_PIECE_COPY,               /* one part, to dst on the card */
    GLM_PIECE_TABLE               /* one part, rows of fp16, to dst in the table; then
                                     packed into w, as int8 where w is */
} glm_piece_kind_t;

typedef struct {
    glm_piece_kind_t  kind;
    glm_tiles_t       w;          /* a run of tiles of the whole matrix */
    int32_t           groups;
    size_t            scale_at;   /* of the scales, in the staging area */
    size_t            stage;      /* bytes of it, where more than the parts */
    void             *dst;
    int               tensor;     /* glm_tensor_t.index */
    int               runs;       /* of rows: 1, or 2 of a GLU matrix */
    int32_t           row[2], rows;       /* the first of each, and how many */
    int               nparts;     /* one a run, then the scales of each */
    glm_part_t        part[4];
} glm_piece_t;

typedef struct {
    glm_piece_t  *list;
    int           n, cap;
    int           fd[GLM_LOAD_FILES];
    int           nfiles;
    int           too_many;       /* parts are missing: they lie in files beyond those */
    uint64_t      bytes;          /* of all parts */
    size_t        stage, read;    /* most that a piece needs */
} glm_pieces_t;

/* Fills p, which is zeroed; the caller frees p->list. */
int glm_cuda_pieces(glm_pieces_t *p, const glm_cuda_model_t *m, const glm_loader_t *l,
    glm_err_t *err);

/* What readers take: one place for a piece, or two in turn. */
typedef struct {
    int     readers;              /* 0: there is no room to stage a piece */
    int     slots;                /* of each: 1 or 2 */
    size_t  dev, host;            /* bytes of one, on the card and pinned */
} glm_load_room_t;

/* As many readers as were asked for, or there are cores, where the staging area has room;
 * with room for one piece only, one that waits for each. */
glm_load_room_t glm_cuda_load_room(const glm_cuda_model_t *m, const glm_pieces_t *p);

#endif
