/*
 * model_cuda_pieces: the weights cut into pieces of some megabytes: rows of a linear
 * that fill whole pairs of tiles, vectors, rows of the embedding.  A piece is what
 * one reader reads, sends and packs at a time.  Needs no card and no CUDA.
 */
#include <stdlib.h>
#include <string.h>

#include "comm.h"
#include "model_cuda_load.h"

#define TILE_ROWS    256          /* outputs that tiles are padded to */
#define ALIGN        256          /* of what a kernel reads in the staging area */

static glm_piece_t *
add(glm_pieces_t *p)
{
    glm_piece_t  *more;

    if (p->n == p->cap) {
        p->cap = p->cap ? 2 * p->cap : 256;
        more = realloc(p->list, (size_t) p->cap * sizeof(*p->list));
        if (more == NULL) return NULL;
        p->list = more;
    }
    memset(&p->list[p->n], 0, sizeof(p->list[0]));
    return &p->list[p->n++];
}

/* ---- parts: bytes of a tensor, or what a dummy has in their place ---- */

static int
file_of(glm_pieces_t *p, int fd)
{
    for (int i = 0; i < p->nfiles; i++) {
        if (p->fd[i] == fd) return i;
    }
    if (fd < 0) return -1;
    if (p->nfiles == GLM_LOAD_FILES) {
        p->too_many = 1;          /* not -1 alone: zeros would take the part's place */
        return -1;
    }
    p->fd[p->nfiles] = fd;
    return p->nfiles++;
}

/* Rows of the data of a tensor. */
static void
data_part(glm_pieces_t *p, glm_piece_t *piece, const glm_tensor_t *t, int32_t row, int32_t rows,
    size_t at)
{
    size_t  width = (size_t) (t->size / (uint64_t) t->rows), first = (size_t) row * width;
    int     half = t->type == GLM_T_F16;

    piece->tensor = t->index;
    piece->row[piece->runs++] = row;
    piece->rows = rows;
    piece->part[piece->nparts++] = (glm_part_t) {
        .file = file_of(p, t->fd), .offset = t->offset + first, .bytes = (size_t) rows * width,
        .at = at, .f16 = half, .first = first / (half ? 2 : 4), .seed = t->seed, .lo = t->lo,
        .hi = t->hi
    };
}

static void
scale_part(glm_pieces_t *p, glm_piece_t *piece, const glm_tensor_t *t, int32_t row,
    int32_t rows, size_t at)
{
    size_t  width = (size_t) t->groups * 2, first = (size_t) row * width;

    piece->part[piece->nparts++] = (glm_part_t) {
        .file = file_of(p, t->scale_fd), .offset = t->scale_offset + first,
        .bytes = (size_t) rows * width, .at = at, .f16 = 1, .first = first / 2,
        .seed = t->seed ^ GLM_SCALE_SEED, .lo = t->lo, .hi = t->hi
    };
}

/* Counts the room that a piece takes, in the staging area and in a reader's buffer
 * (each part of which may begin and end inside a block of the disk). */
static void
count(glm_pieces_t *p, const glm_piece_t *piece)
{
    size_t  stage = 0, read = 0;

    for (int i = 0; i < piece->nparts; i++) {
        const glm_part_t  *s = &piece->part[i];

        if (s->at + s->bytes > stage) stage = s->at + s->bytes;
        read += s->bytes + 2 * GLM_LOAD_BLOCK;
        p->bytes += s->bytes;
    }
    if (stage < piece->stage) stage = piece->stage;
    if (stage > p->stage) p->stage = stage;
    if (read > p->read) p->read = read;
}

/* ---- pieces ---- */

static int32_t
rows_a_piece(size_t piece, size_t width, int32_t unit)
{
    int32_t  n = (int32_t) (piece / width) / unit * unit;

    return n > unit ? n : unit;
}

static size_t
up(size_t n)
{
    return (n + ALIGN - 1) / ALIGN * ALIGN;
}

/*
 * A linear in pieces of whole pairs of tiles; tiles lie in the order of outputs.  A
 * GLU matrix has its halves interleaved there, so a piece has the same rows of both.
 */
static int
add_linear(glm_pieces_t *p, const glm_tensor_t *t, const glm_tiles_t *w, size_t bytes)
{
    int32_t       halves = w->glu ? 2 : 1, rows = t->rows / halves, n;
    size_t        width = (size_t) (t->size / (uint64_t) t->rows);
    glm_piece_t  *piece;

    for (int32_t r = 0; r < rows; r += n) {
        n = rows_a_piece(bytes, width * (size_t) halves, TILE_ROWS / halves);
        if (n > rows - r) n = rows - r;
        if ((piece = add(p)) == NULL) return GLM_ENOMEM;
        piece->kind = GLM_PIECE_PACK;
        piece->w = *w;
        piece->w.n = n * halves;
        piece->w.tiles = (char *) w->tiles + glm_cuda_tile_bytes(w->type, w->k, r * halves);
        piece->groups = t->groups;
        piece->scale_at = up(width * (size_t) (n * halves));
        for (int h = 0; h < halves; h++) {
            data_part(p, piece, t, h * rows + r, n, (size_t) (h * n) * width);
        }
        for (int h = 0; h < halves && t->groups > 0; h++) {
            scale_part(p, piece, t, h * rows + r, n,
                piece->scale_at + (size_t) (h * n * t->groups) * 2);
        }
        count(p, piece);
    }
    return 0;
}

static int
add_vector(glm_pieces_t *p, const glm_tensor_t *t, void *dst)
{
    glm_piece_t  *piece = add(p);

    if (piece == NULL) return GLM_ENOMEM;
    piece->kind = GLM_PIECE_COPY;
    piece->dst = dst;
    data_part(p, piece, t, 0, t->rows, 0);
    count(p, piece);
    return 0;
}

/* Rows of the embedding go to the table, and packed to the head; as int8 they need
 * room for what is made of them. */
static int
add_table(glm_pieces_t *p, const glm_tensor_t *t, const glm_cuda_model_t *m)
{
    size_t        width = (size_t) t->cols * 2;
    int32_t       n;
    glm_piece_t  *piece;

    for (int32_t r = 0; r < t->rows; r += n) {
        n = rows_a_piece(m->piece, width, TILE_ROWS);
        if (n > t->rows - r) n = t->rows - r;
        if ((piece = add(p)) == NULL) return GLM_ENOMEM;
        piece->kind = GLM_PIECE_TABLE;
        piece->dst = (char *) m->table + (size_t) r * width;
        piece->w = m->head;
        piece->w.n = n;
        piece->w.tiles = (char *) m->head.tiles + glm_cuda_tile_bytes(m->head.type, t->cols, r);
        piece->groups = m->head_int8;
        piece->scale_at = m->head_int8 ? up((size_t) n * width / 2) : 0;
        piece->stage = m->head_int8 ? piece->scale_at + (size_t) n * 2 : (size_t) n * width;
        data_part(p, piece, t, r, n, 0);
        count(p, piece);
    }
    return 0;
}

/*
 * Pieces from `first` on take a reader longer than others (the host makes int8 of
 * them): they are spread among the rest, so that the disk is never left alone.
 */
static int
spread(glm_pieces_t *p, int first)
{
    glm_piece_t  *list = malloc((size_t) p->n * sizeof(*list));
    int64_t       rare = p->n - first;
    int           a = 0, b = first;

    if (list == NULL) return GLM_ENOMEM;
    for (int i = 0; i < p->n; i++) {
        list[i] = p->list[(b - first + 1) * (int64_t) p->n <= (i + 1) * rare ? b++ : a++];
    }
    free(p->list);
    p->list = list;
    return 0;
}

/* ---- all of them ---- */

static int
add_layer(glm_pieces_t *p, const glm_loader_t *l, const glm_cuda_model_t *m, int i,
    glm_err_t *err)
{
    static const char *const  linear[GLM_CUDA_LINEARS] = {
        "attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h",
        "mlp.dense_4h_to_h"
    };
    static const char *const  norm[2] = { "input_layernorm", "post_attention_layernorm" };
    const struct { const char *const *name; const char *what; int n; } kinds[4] = {
        { linear, "weight", GLM_CUDA_LINEARS }, { linear, "bias", GLM_CUDA_LINEARS },
        { norm, "weight", 2 }, { norm, "bias", 2 }
    };
    const glm_cuda_layer_t   *layer = &m->layer[i];
    glm_tensor_t              t;
    char                      name[128];
    int                       rc = 0;

    for (int k = 0; k < 4; k++) {
        for (int j = 0; j < kinds[k].n && rc == 0; j++) {
            snprintf(name, sizeof(name), "layers.%d.%s.%s", i, kinds[k].name[j], kinds[k].what);
            if ((rc = glm_loader_tensor(l, name, &t, err)) != 0) return rc;
            if (k == 0) rc = add_linear(p, &t, &layer->w[j], m->piece);
            else if (k == 1) rc = add_vector(p, &t, layer->bias[j]);
            else rc = add_vector(p, &t, k == 2 ? layer->ln[j].weight : layer->ln[j].bias);
        }
    }
    return rc;
}

int
glm_cuda_pieces(glm_pieces_t *p, const glm_cuda_model_t *m, const glm_loader_t *l,
    glm_err_t *err)
{
    glm_tensor_t  t;
    int           rc = 0, first;

    for (int i = 0; i < m->base.cfg.layers && rc == 0; i++) {
        rc = add_layer(p, l, m, i, err);
    }
    if (rc == 0 && (rc = glm_loader_tensor(l, "final_layernorm.weight", &t, err)) == 0) {
        rc = add_vector(p, &t, m->final.weight);
    }
    if (rc == 0 && (rc = glm_loader_tensor(l, "final_layernorm.bias", &t, err)) == 0) {
        rc = add_vector(p, &t, m->final.bias);
    }
    first = p->n;
    if (rc == 0 && (rc = glm_loader_tensor(l, "word_embeddings.weight", &t, err)) == 0) {
        rc = add_table(p, &t, m);
    }
    if (rc == 0 && p->too_many) {
        rc = glm_fail(err, GLM_ELIMIT, "the weights lie in more than %d files", GLM_LOAD_FILES);
    }
    if (rc == 0) rc = spread(p, first);
    return rc == GLM_ENOMEM ? glm_fail(err, rc, "no memory for the list of weights") : rc;
}

glm_load_room_t
glm_cuda_load_room(const glm_cuda_model_t *m, const glm_pieces_t *p)
{
    glm_load_room_t  r = { .dev = up(p->stage) };
    size_t           places = m->stage_bytes / r.dev;
    int              n = m->readers > 0 ? m->readers : glm_comm_cores();

    if (places > 2 * GLM_LOAD_READERS) places = 2 * GLM_LOAD_READERS;
    r.slots = places < 2 ? 1 : 2;
    r.readers = n < (int) places / r.slots ? n : (int) places / r.slots;
    /* int8 rows of the embedding are made where fp16 ones were read */
    r.host = p->read > p->stage ? p->read : p->stage;
    return r;
}

int
glm_cuda_plan_load(glm_cuda_model_t *m, const glm_loader_t *l, glm_err_t *err)
{
    glm_pieces_t     *p = calloc(1, sizeof(*p));
    glm_load_room_t   r;
    int               rc;

    if (p == NULL) return glm_fail(err, GLM_ENOMEM, "no memory for the list of weights");
    if ((rc = glm_cuda_pieces(p, m, l, err)) == 0) {
        r = glm_cuda_load_room(m, p);
        m->plan.loading = (size_t) (r.readers * r.slots) * r.host;
    }
    free(p->list);
    free(p);
    return rc;
}
