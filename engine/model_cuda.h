/*
 * model_cuda: what the files of the CUDA backend share.  model_cuda.c: entry points,
 * start and end; model_cuda_plan.c: every byte on the card, also where there is
 * none; model_cuda_load.c: weights from files to tiles; model_cuda_step.c: rows and
 * graphs; model_cuda_prefill.c: contexts.  One rank, one card; a rank of more would
 * own what glm_cuda_model_t owns from `gpu` on.
 */
#ifndef GLM_MODEL_CUDA_H
#define GLM_MODEL_CUDA_H

#include "gpu.h"
#include "model_backend.h"

#define GLM_CUDA_BUCKETS  4       /* of 8, 16, 32 and 64 rows */

/* ---- memory ---- */

enum {
    GLM_MEM_INT4, GLM_MEM_INT8, GLM_MEM_F16,    /* linears of layers */
    GLM_MEM_HEAD,
    GLM_MEM_VECTORS,              /* biases, norms, rotary table */
    GLM_MEM_STEP,                 /* activations, logits and workspaces of a step */
    GLM_MEM_PREFILL,              /* those of a context */
    GLM_MEM_KV,
    GLM_MEM_KINDS
};

typedef struct {
    char    card[160];            /* its name, or "a card" */
    int     sms;
    size_t  device;               /* bytes that may be used; 0: not known */
    size_t  bytes[GLM_MEM_KINDS];
    size_t  total;                /* of them: the one allocation there is */
    size_t  reserve;              /* left to CUDA: graphs, modules */
    size_t  pinned;               /* host memory that the card reads */
    size_t  loading;              /* and while loading, the readers' buffers; 0: not known */
    size_t  kv_token;             /* bytes of KV a token */
} glm_cuda_plan_t;

/* What a forward pass reads, in pinned memory and its copy on the card: this, then
 * pages[GLM_CUDA_MAX_ROWS][ldpages]. */
typedef struct {
    int32_t  token[GLM_CUDA_MAX_ROWS], slot[GLM_CUDA_MAX_ROWS];
    int32_t  position[GLM_CUDA_MAX_ROWS];
} glm_cuda_rows_t;

/* What its sampler reads, the same way: this, then masks and lists. */
typedef struct {
    glm_gsample_t  row[GLM_CUDA_MAX_ROWS];
} glm_cuda_picks_t;

/* A row of a step that is to be read. */
typedef struct {
    int      asked;               /* there is something to read */
    int32_t  token, slot;         /* what was fed, for messages */
} glm_cuda_asked_t;

/* Tokens that contexts have together: a block of rows costs the same however many it has. */
#define GLM_CUDA_TOGETHER  GLM_CUDA_BLOCK

/* Of a context, or of several one behind the other, in pinned memory and on the card. */
typedef struct {
    int32_t  *token, *slot, *position;  /* (max_seq) */
    int32_t  *pages;                    /* (ldpages, or GLM_CUDA_TOGETHER if that is more) */
} glm_cuda_context_t;

/* ---- weights ---- */

typedef struct {
    void  *weight, *bias;         /* fp16 (hidden) */
} glm_cuda_norm_t;

enum { GLM_CUDA_QKV, GLM_CUDA_DENSE, GLM_CUDA_UP, GLM_CUDA_DOWN, GLM_CUDA_LINEARS };

typedef struct {
    glm_cuda_norm_t  ln[2];       /* before attention, before the MLP */
    glm_tiles_t      w[GLM_CUDA_LINEARS];
    void            *bias[GLM_CUDA_LINEARS];    /* w[].bias, to write */
    int32_t          groups[GLM_CUDA_LINEARS];  /* scales a row in the files */
    glm_gkv_t        kv;
} glm_cuda_layer_t;

typedef struct {
    glm_model_t            base;
    int                    kv_int8, head_int8;
    int                    head_type;     /* GLM_HEAD_*, as asked for */
    int                    timeout;       /* s that a step may take */
    int                    readers;       /* of the weights; 0: by cores */
    size_t                 piece;         /* bytes that one takes at a time */
    float                  alpha;
    int32_t                ldpages;
    size_t                 page_bytes;    /* of a layer */
    size_t                 rows_bytes;    /* of glm_cuda_rows_t and what follows */
    size_t                 lists_bytes;   /* of what follows glm_cuda_picks_t */
    glm_cuda_plan_t        plan;
    glm_cuda_layer_t      *layer;         /* (L) */

    glm_gpu_t             *gpu;
    const glm_cuda_ops_t  *ops;
    glm_stream_t          *stream;
    glm_gpu_event_t       *done;
    char                  *arena;

    glm_tiles_t            head;
    glm_cuda_norm_t        final;
    uint16_t              *table;         /* pinned: the embedding, (V, H) fp16 */
    void                  *rope;          /* half2 (max_seq, d / 2) */
    char                  *stage;         /* while loading: prefill's and KV's room */
    size_t                 stage_bytes;

    char                  *rows, *host_rows[2]; /* glm_cuda_rows_t and what follows; one may
                                                   be on its way when the next is written */
    int                    turn;          /* which of them is next */
    char                  *picks, *host_picks;  /* glm_cuda_picks_t and what follows */
    glm_sampled_t         *sampled;       /* pinned (GLM_CUDA_MAX_ROWS) */
    glm_cuda_asked_t       asked[GLM_CUDA_MAX_ROWS];    /* (nasked) of the step sampled
                                                           last */
    int                    nasked;
    int32_t               *ids;           /* of the last step: the next one may begin with
                                             them */
    float                 *y;             /* [64][H] */
    void                  *a, *ctx, *act, *qkv;
    float                 *logits;        /* [64][V] */
    void                  *ws, *attn_ws, *sample_ws;
    size_t                 attn_ws_bytes;
    glm_gpu_graph_t       *forward[GLM_CUDA_BUCKETS], *sampler[GLM_CUDA_BUCKETS];

    glm_prefill_bufs_t     pre;
    glm_cuda_context_t     context, host_context;
    char                  *host;          /* all pinned memory but the table */
} glm_cuda_model_t;

void glm_cuda_options(glm_cuda_model_t *m, const glm_model_opts_t *o);

/* Types of the linears, and what these kernels cannot do.  Allocates m->layer. */
int glm_cuda_describe(glm_cuda_model_t *m, const glm_loader_t *l, glm_err_t *err);

/*
 * Fills m->plan, whose card, sms and device the caller has set; m->base.kv_pages 0
 * becomes what fits.  GLM_ENOMEM, with numbers, when it does not fit.
 */
int glm_cuda_plan(glm_cuda_model_t *m, glm_err_t *err);
/* After that: m->plan.loading. */
int glm_cuda_plan_load(glm_cuda_model_t *m, const glm_loader_t *l, glm_err_t *err);
/* Which card the plan is for: info, or NULL for one of device_memory bytes. */
void glm_cuda_plan_card(glm_cuda_model_t *m, const glm_gpu_info_t *info,
    uint64_t device_memory);
void glm_cuda_log_plan(const glm_cuda_model_t *m);

/* Everything on the card from `base` on (NULL: only counts). */
void glm_cuda_lay(glm_cuda_model_t *m, char *base);
/* Pinned memory but the table, the same way; returns its size. */
size_t glm_cuda_lay_host(glm_cuda_model_t *m, char *base);

/* Weights into the arena and the table, and into d. */
int glm_cuda_fill(glm_cuda_model_t *m, const glm_loader_t *l, glm_digest_t *d,
    glm_err_t *err);

/* Of a glm_cuda_context_t. */
size_t glm_cuda_context_bytes(const glm_cuda_model_t *m);

/* Captures the graphs of every bucket. */
int glm_cuda_graphs(glm_cuda_model_t *m);
int glm_cuda_step(glm_model_t *m, const glm_row_t *rows, int nrows, glm_sampled_t *out,
    float *logits);
int glm_cuda_begin(glm_model_t *m, const glm_row_t *rows, int nrows);
int glm_cuda_sample(glm_model_t *m, const glm_row_t *rows, int nrows);
int glm_cuda_read(glm_model_t *m, glm_sampled_t *out);
int glm_cuda_prefill(glm_model_t *m, const glm_context_t *c, int nc, int first, int last,
    float *logits);

/* Shared by step and prefill: one launch each, of `rows` rows in a bucket. */
int glm_cuda_linear(glm_cuda_model_t *m, const glm_tiles_t *w, const void *x, void *y,
    size_t ldy, int out, int rows, int bucket);
int glm_cuda_norm(glm_cuda_model_t *m, const glm_cuda_norm_t *nm, const float *y,
    const void *residual, void *out, int rows, int bucket);
/* Until the stream has done everything so far. */
int glm_cuda_sync(glm_cuda_model_t *m);
/* A layer's output, y + alpha a, to x (rows, hidden) of the host; for a trace. */
int glm_cuda_output(glm_cuda_model_t *m, const float *y, const void *a, int rows, int bucket,
    float *x);

/* What the card is, without a model; err when there is none that can be used.  In
 * gpu_none.c where CUDA is not built in. */
int glm_cuda_card(glm_gpu_info_t *info, glm_err_t *err);

#endif
