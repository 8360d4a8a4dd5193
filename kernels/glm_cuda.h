/*
 * glm_cuda: launchers of the CUDA kernels, one table an architecture.
 * No CUDA type is named here.  A launcher allocates nothing, never waits for
 * the device, checks shape and alignment, and returns 0, GLM_EINVAL (arguments)
 * or GLM_EGPU (the launch failed; glm_cuda_error() says how).  Device pointers
 * are plain pointers; all are 16-byte aligned, weight tiles 128.
 *
 * On sm_90 a kernel starts before the one in front has ended.  What it reads and no
 * kernel of a step writes - weights, biases, rotary and page tables, rows - it reads at
 * once, so a copy must have brought it before the step, not one of these kernels.
 *
 * Rows and buckets.  A step has `rows` rows in a bucket R of 8, 16, 32 or 64
 * rows; a pass of prefill up to 512 rows in a bucket of 512.  The bits of a row
 * do not depend on rows, R, the row's place, the number of multiprocessors or the
 * architecture (attn_context alone has an order of its own).
 *
 * "Packed" activations are fp16 [width / 8][R][8]: 16 bytes of a row, then the
 * same 16 bytes of the next row.  A bucket of 512 is eight blocks of 64 rows, each in
 * this order, one after the other: what a matrix reads of a group of inputs is then in
 * one piece.  Every producer writes, and every matrix reads, this order
 * (glm_cuda_packed()).  Rows past `rows` may hold anything.
 */
#ifndef GLM_CUDA_H
#define GLM_CUDA_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "error.h"
#include "glm_hash.h"
#include "sampler.h"

#ifdef __cplusplus
extern "C" {
#endif

#define GLM_CUDA_GENERATION  4    /* goes up when any output bit may change */
#define GLM_CUDA_MAX_ROWS    64   /* of a step, of attn_row */
#define GLM_CUDA_PREFILL_ROWS 512 /* of a pass, and its bucket */
#define GLM_CUDA_BLOCK       64   /* rows of a bucket of 512 that lie together */
#define GLM_CUDA_KV_TOKENS   16   /* tokens of a KV page */
#define GLM_CUDA_CHUNK       256  /* tokens of an attention chunk */

typedef struct glm_stream_s  glm_stream_t;

/* Elements of a packed buffer, `width` wide, before element i of a row. */
static inline size_t
glm_cuda_packed(int width, int i, int row, int bucket)
{
    int  b = bucket < GLM_CUDA_BLOCK ? bucket : GLM_CUDA_BLOCK;

    return ((size_t) (row / b) * (size_t) (width / 8) + (size_t) (i / 8)) * (size_t) (b * 8)
           + (size_t) (row % b * 8 + i % 8);
}

/* ---- matrices ---- */

enum { GLM_W_INT4, GLM_W_INT8, GLM_W_F16 };

/*
 * A weight [n][k] in tiles (docs/KERNELS.md has the picture), as pack() makes it.
 * Scales multiply fp32 sums of a group of 128 inputs, so a quantised weight is
 * q * scale exactly (the original rounds that product to fp16).
 * glu: the rows of the two halves alternate by 8, so that the matrix itself can
 * make u1 * gelu(u2).
 */
typedef struct {
    void        *tiles;           /* glm_cuda_tile_bytes() */
    const void  *bias;            /* fp16 (n), in the order of the source; NULL */
    int32_t      k;               /* inputs, a multiple of 256 */
    int32_t      n;               /* outputs, a multiple of 8 (glu: 16), <= 2^19 */
    int32_t      type;            /* GLM_W_* */
    int32_t      glu;
} glm_tiles_t;

size_t glm_cuda_tile_bytes(int type, int k, int n);

enum {
    GLM_OUT_F32,                  /* y: fp32 [rows][ldy] */
    GLM_OUT_F16,                  /* y: fp16 [rows][ldy] */
    GLM_OUT_GLU                   /* y: packed fp16 (n / 2 wide), R rows */
};

typedef struct {
    const glm_tiles_t  *w;
    const void         *x;        /* packed, k wide */
    void               *y;
    size_t              ldy;      /* in elements, a multiple of 8; not of GLM_OUT_GLU */
    int32_t             out;      /* GLM_OUT_* */
    int32_t             rows, bucket;
    void               *ws;       /* glm_cuda_linear_ws() bytes, zeroed once; of one
                                     stream: linears share it */
    int32_t             ring;     /* stages of the ring (sm_90); 0: the best known */
    int32_t             ctas;     /* at most so many CTAs; 0: one a multiprocessor */
    int32_t             block;    /* bucket 512: rows a block, 64 or 128 (which sm_90 has
                                     for int4 and int8; else 64); 0: the best known */
} glm_linear_args_t;

/* Workspace for any linear of buckets up to this one (512 needs no more than 64). */
size_t glm_cuda_linear_ws(const glm_stream_t *s, int bucket);
size_t glm_cuda_linear_ws_sms(int sms, int bucket);     /* of a card not here */

/*
 * Neutral format on the device: src [n][k] int4 (two a byte along k, even column
 * in the high nibble), int8 or fp16; scale fp16 [n][groups], groups = k / 128 or
 * 1 (row-wise; always 1 for int8).
 */
typedef struct {
    const glm_tiles_t  *w;
    const void         *src;
    const void         *scale;
    int32_t             groups;
} glm_pack_args_t;

/* ---- norm, embedding ---- */

/*
 * x = y + alpha * a (a == NULL: y); out = LayerNorm(x) * weight + bias, in fp32,
 * rounded once.  x is in registers only: DeepNorm's sum (alpha 11.8 times the
 * norm's output) never becomes fp16.
 */
typedef struct {
    const float  *y;              /* [rows][ldy] */
    size_t        ldy;
    const void   *a;              /* packed, dim wide; may be out */
    const void   *weight, *bias;  /* fp16 (dim) */
    void         *out;            /* packed, dim wide */
    float         alpha, eps;
    int32_t       dim;            /* a multiple of 256, at most 12288 */
    int32_t       rows, bucket;
} glm_gnorm_args_t;

/* y[row] = fp32 of row token[row] of table [vocab][dim] fp16, which may lie in
 * pinned host memory; a token outside 0 .. vocab-1 gives zeros.  Where a sampler's ids
 * are given, a token below 0 stands for one of them: ids[-1 - token]. */
typedef struct {
    float          *y;
    size_t          ldy;
    const void     *table;
    const int32_t  *token;        /* device */
    int32_t         vocab, dim, rows;
    const int32_t  *ids;          /* device, as many as a token may name; NULL: none */
} glm_embed_args_t;

/* Rows to .. of out = rows from .. of x, both packed and `width` wide: the last row
 * of a pass of prefill goes to a head of a few rows this way. */
typedef struct {
    const void  *x;
    void        *out;
    int32_t      width;           /* a multiple of 8 */
    int32_t      from_bucket, to_bucket;
    int32_t      from, to, rows;
} glm_repack_args_t;

/* ---- attention ---- */

/*
 * Keys and values of one layer.  Page p starts at base + p * page_bytes:
 * fp16  [head]( K [16][d], V [16][d] )
 * int8  [head]( K [16][d], V [4][d][4 tokens] ), [head]( K scales [16], V scales [16] )
 *       scales fp16: absmax / 127 of a token and head, rounded up
 */
typedef struct {
    void     *base;
    size_t    page_bytes;         /* at least heads * glm_cuda_kv_head_bytes() */
    int32_t   heads, d;           /* d is 64 or 128 */
    int32_t   int8;
} glm_gkv_t;

/* Bytes of a page a head, scales included. */
size_t glm_cuda_kv_head_bytes(int d, int int8);

/* Rows of a step, all device arrays, written before its first kernel starts.
 * slot < 0: no row (nothing is written); in no pass. */
typedef struct {
    const int32_t  *slot;         /* (rows) KV index; the row sees 0 .. slot */
    const int32_t  *position;     /* (rows) row of the rotary table */
    const int32_t  *pages;        /* (rows, ldpages) block tables */
    int32_t         ldpages;      /* 0 (kv_write alone): a pass of a context.  All rows have the
                                     first table, and slots one after the other, from a
                                     multiple of 4 on */
    int32_t         rows;
} glm_grows_t;

/*
 * qkv: fp16 [rows][heads * 3d], head h: q k v of d each. rope: half2 (cos, sin)
 * [positions][d / 2], fp16 values as section 1 of the reference makes them.
 * kv_write of a pass of a context (ldpages 0) leaves k and v in qkv as the pages have them, k
 * rotated, int8 times its scale (a key's at most 515.5): that is what attn_context reads.  Once a
 * pass: a second call would rotate k again.
 * attn_row takes at most GLM_CUDA_MAX_ROWS rows; of a pass of prefill, a block of 64
 * rows after the other.  What a row sees before its last `rows` slots it may read as soon as it
 * starts, before the kernels in front have ended: no kernel of the same step may write
 * there (of a pass: the blocks before must have ended).  A key or value that is not
 * finite, or is not in its page's type, is stored as NaN and makes the head NaN in every
 * row that sees it (a value of fp16: in its own dimension, where its weight is not 0).
 */
typedef struct {
    const glm_gkv_t    *kv;
    const glm_grows_t  *rows;
    void               *qkv;      /* kv_write of a pass writes there */
    const void         *rope;
    void               *out;      /* attn_row: packed, heads * d wide */
    int32_t             bucket;
    void               *ws;       /* attn_row: glm_cuda_attn_ws(), zeroed once */
    size_t              ws_bytes;
} glm_attn_args_t;

/* For rows that see at most max_tokens tokens each. */
size_t glm_cuda_attn_ws(int rows, int heads, int d, int max_tokens);

/* ---- prefill of a bidirectional context ---- */

/*
 * A context of `tokens` rows goes through a layer at a time, in passes of 512 rows
 * (the last has fewer), every pass in a bucket of 512:
 *
 *     each pass   a = norm(y + alpha a); qkv = linear(a); kv_write(qkv)
 *     all rows    attn = attn_context(qkv), once kv_write has seen every pass
 *     each pass   y = dense(attn); a = norm(y + alpha a);
 *                 glu = h_to_4h(a); y = 4h_to_h(glu)
 *
 * Nothing else passes from one layer to the next than y and a, so a context can
 * stop after any layer and others can run in between.  A packed buffer of a
 * context is one pass after the other, 512 * width elements each: blocks of 64 rows.
 */
typedef struct {
    float  *y;                    /* [tokens][dim] */
    void   *a;                    /* packed passes, dim wide */
    void   *qkv;                  /* fp16 [tokens][3 attn] */
    void   *attn;                 /* packed passes, attn wide */
    void   *glu;                  /* packed, one pass, inner wide */
} glm_prefill_bufs_t;

/*
 * Bytes that a context needs beside decode's buffers, and, with out, its buffers
 * from base on (16-byte aligned).  attn: heads * d, inner: of this GPU.
 */
size_t glm_cuda_prefill_ws(int tokens, int dim, int attn, int inner, void *base,
                           glm_prefill_bufs_t *out);

/*
 * Rows first .. first + rows - 1 of a context, each seeing tokens 0 .. tokens - 1 as kv_write
 * left them in qkv.  A row's bits depend on its q and those tokens alone.
 * q (rotated, / sqrt(d)), the weights before they are divided by their sum, and int8
 * keys and values times their scale are rounded to fp16; sums are fp32.
 */
typedef struct {
    const int32_t    *position;   /* device: [tokens] row of the rotary table */
    const void       *qkv;        /* fp16 [tokens][heads * 3d]: of the whole context */
    const void       *rope;
    void             *out;        /* packed passes of the whole context; or its first row among
                                     others in a block of 64 that has room for it: row r is
                                     8 r elements behind the block's first */
    int32_t           heads, d;   /* d is 64 or 128 */
    int32_t           tokens, first, rows;
} glm_context_args_t;

/* ---- sampling ---- */

/*
 * glm_sample_t (see sampler.h for what the fields mean) of one row, in memory that
 * the device reads when the kernels run: one graph serves every step.  Lists are
 * byte offsets into glm_sample_args_t.lists; glm_cuda_sample_pack() fills it.
 */
typedef struct {
    uint64_t         seed;
    const uint64_t  *allow;       /* device, ceil(vocab / 64) words; NULL */
    float            temperature, top_p, min_p;
    int32_t          top_k;
    uint32_t         choice, blank, ntokens;
    int32_t          nlogprobs;
    float            presence, frequency, repetition;
    int32_t          force;
    uint32_t         adjust;      /* of glm_adjust_t (nadjust) */
    uint32_t         ban;         /* of int32_t (nban) */
    uint32_t         score;       /* of int32_t (nscore) */
    int32_t          nadjust, nban, nscore;
    int32_t          live;        /* 0: no such row; nothing is read or written */
    int32_t          rank;
} glm_gsample_t;

/*
 * Results are those of glm_sample(): plain draws, greedy ones and log-probabilities
 * to the bit; where filters are on, sums of weights are exact integers (2^-44), so
 * that an id differs only when the draw or top_p falls within some 2^-44 of a
 * boundary.  A row's result does not depend on the other rows, its place or the
 * device.
 */
typedef struct {
    const float          *logits; /* [rows][ldl], untouched */
    size_t                ldl;    /* a multiple of 4, at least vocab */
    const glm_gsample_t  *row;    /* (rows) device or pinned host memory, written
                                     before the first kernel starts */
    const void           *lists;  /* the same; NULL when no row has any */
    glm_sampled_t        *out;    /* (rows) device or pinned host memory; of top and
                                     rank, ntop and nrank are written */
    int32_t              *ids;    /* (rows) device: the chosen ids, for the next
                                     step's embed; negative: see glm_sampled_t */
    int32_t               vocab;  /* at most 2^19 */
    int32_t               rows;   /* at most GLM_CUDA_MAX_ROWS */
    void                 *ws;     /* glm_cuda_sample_ws() bytes, of one stream */
} glm_sample_args_t;

size_t glm_cuda_sample_ws(int rows, int vocab);

/*
 * Packs a row: its lists go to lists + *used, which grows; size is the room.  allow:
 * where the device finds a->allow.  GLM_ELIMIT: no room, nothing is changed.
 * glm_cuda_sample_lists(): the most that a row with such lists can take.
 */
static inline size_t
glm_cuda_sample_lists(size_t nadjust, size_t nban, size_t nscore)
{
    return (nadjust * sizeof(glm_adjust_t) + (nban + nscore) * sizeof(int32_t) + 15)
           & ~(size_t) 15;
}

static inline int
glm_cuda_sample_pack(const glm_sample_t *a, const uint64_t *allow, void *lists, size_t size,
    size_t *used, glm_gsample_t *row)
{
    const size_t  nadjust = (size_t) a->nadjust, nban = (size_t) a->nban, nscore = (size_t) a->nscore;
    const size_t  bytes = glm_cuda_sample_lists(nadjust, nban, nscore);
    char         *to = (char *) lists + *used;

    if (bytes > size || *used > size - bytes || *used + bytes > UINT32_MAX) return GLM_ELIMIT;

    memset(row, 0, sizeof(*row));
    row->seed = a->seed;
    row->allow = allow;
    row->temperature = a->temperature;
    row->top_p = a->top_p;
    row->min_p = a->min_p;
    row->top_k = a->top_k;
    row->choice = a->choice;
    row->blank = a->blank;
    row->ntokens = a->ntokens;
    row->nlogprobs = a->nlogprobs;
    row->presence = a->presence;
    row->frequency = a->frequency;
    row->repetition = a->repetition;
    row->force = a->force;
    row->rank = a->rank;
    row->nadjust = a->nadjust;
    row->nban = a->nban;
    row->nscore = a->nscore;
    row->live = 1;
    row->adjust = (uint32_t) *used;
    row->ban = row->adjust + (uint32_t) (nadjust * sizeof(glm_adjust_t));
    row->score = row->ban + (uint32_t) (nban * sizeof(int32_t));

    if (nadjust > 0) memcpy(to, a->adjust, nadjust * sizeof(glm_adjust_t));
    if (nban > 0) memcpy(to + row->ban - row->adjust, a->ban, nban * sizeof(int32_t));
    if (nscore > 0) memcpy(to + row->score - row->adjust, a->score, nscore * sizeof(int32_t));
    *used += bytes;
    return 0;
}

/* ---- dummy weights ---- */

/* As glm_hash.h says: words with f16 == 0, fp16 elements with 1; from number
 * `first` of the tensor on. */
typedef struct {
    void      *dst;
    uint64_t   count;             /* words or fp16 elements */
    uint32_t   seed;              /* of the tensor */
    int32_t    f16;
    float      lo, hi;
    uint64_t   first;
} glm_fill_args_t;

/* ---- the table ---- */

typedef struct {
    int  arch;                    /* 80 or 90 */
    int (*pack)(const glm_pack_args_t *, glm_stream_t *);
    int (*fill)(const glm_fill_args_t *, glm_stream_t *);
    int (*linear)(const glm_linear_args_t *, glm_stream_t *);
    int (*embed)(const glm_embed_args_t *, glm_stream_t *);
    int (*norm)(const glm_gnorm_args_t *, glm_stream_t *);
    int (*repack)(const glm_repack_args_t *, glm_stream_t *);
    int (*kv_write)(const glm_attn_args_t *, glm_stream_t *);   /* rotates k */
    int (*attn_row)(const glm_attn_args_t *, glm_stream_t *);   /* rotates q */
    int (*attn_context)(const glm_context_args_t *, glm_stream_t *);   /* rotates q */
    int (*sample)(const glm_sample_args_t *, glm_stream_t *);   /* three kernels */
} glm_cuda_ops_t;

/*
 * Kernels for the current device; arch 0: what GLM_CUDA_ARCH says, else the best.
 * NULL: none of them runs here (no device, older than sm_80).
 */
const glm_cuda_ops_t *glm_cuda_ops(int arch);

/* A stream of the current device. native: its cudaStream_t. */
int glm_cuda_stream(glm_stream_t **out);
void glm_cuda_stream_free(glm_stream_t *s);
void *glm_cuda_stream_native(const glm_stream_t *s);

/* What the last GLM_EGPU of this thread was: "linear: invalid argument"; its cudaError_t. */
const char *glm_cuda_error(void);
int glm_cuda_error_code(void);

#ifdef __cplusplus
}
#endif

#endif
