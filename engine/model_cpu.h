/*
 * model_cpu: what model_cpu.c, model_cpu_weights.c and model_cpu_forward.c share.
 * A rank owns its slice of the weights, its heads' KV and its activations;
 * threads of the rank share them.
 */
#ifndef GLM_MODEL_CPU_H
#define GLM_MODEL_CPU_H

#include "comm.h"
#include "glm_kernels.h"
#include "model_backend.h"

/* Rows up to which each thread norms all rows for itself: cheaper than a
 * barrier. */
#define GLM_OWN_ROWS  8

typedef struct {
    glm_norm_t  ln1;              /* its ybias: the bias of the layer below */
    glm_mat_t   qkv;              /* H -> 3H/t, whole heads */
    glm_mat_t   dense;            /* H/t -> H, bias in ln2.ybias */
    glm_norm_t  ln2;
    glm_mat_t   u1, u2;           /* H -> I/t each: halves of dense_h_to_4h */
    glm_mat_t   down;             /* I/t -> H */
    float      *down_bias;        /* (H); the ybias of the norm above */
    glm_kv_t    kv;
} glm_layer_t;

typedef struct {
    void         *arena;          /* everything of this rank */
    size_t        arena_size;
    glm_layer_t  *layer;          /* (L) */
    glm_norm_t    final;
    glm_mat_t     embed;          /* ids v0 .. v0 + V/t - 1; also the head */
    int32_t       v0;

    /* Activations, R = max(max_rows, max_seq) rows. */
    float        *a, *y;          /* (R, H) normed input; sublayer's output */
    float        *pa, *py;        /* the same, of the prefill under way */
    float        *h;              /* (R, H) normed rows for the head */
    float        *qkv;            /* (R, 3H/t) */
    float        *att;            /* (R, H/t) */
    float        *u1, *u2;        /* (R, I/t) */
} glm_rank_t;

/* Of one thread. */
typedef struct {
    float  *a;                    /* (GLM_OWN_ROWS, H) */
    float  *attn;                 /* scratch of attention */
    void   *sample;               /* scratch of glm_sample() */
} glm_thread_t;

/* One call of step or prefill, read by all threads. */
typedef struct {
    int                context;   /* a prefill: rows see all n slots */
    int                n;         /* rows */
    int                first, last;   /* layers */
    const int32_t     *token;     /* (n); read when first is 0 */
    const glm_at_t    *at;        /* (n) */
    int                keys_only; /* last layer: keys and values, no more */
    int                nhead;     /* rows that get logits */
    const int32_t     *head;      /* (nhead) ascending row numbers */
    float             *logits;    /* (nhead, V) */
    const glm_row_t   *rows;      /* for sampling; NULL: none */
    glm_sampled_t     *out;
} glm_pass_t;

typedef struct {
    glm_model_t       base;
    const glm_ops_t  *ops;
    glm_comm_t       *comm;
    int               nthreads;
    int               fused;      /* a thread's heads are whole panels of qkv */

    glm_rank_t       *rank;       /* (tp) */
    glm_thread_t     *thread;     /* (nthreads) */
    void             *shared;     /* arena of what follows, and of threads */
    size_t            shared_size;
    float            *rope_cos, *rope_sin;
    glm_rope_t        rope;
    float            *logits;     /* (max_rows, V) */
    float            *trace_x;    /* (R, H) */
    glm_at_t         *at, *prefill_at;    /* (max_rows), (max_seq) */
    int32_t          *token, *head;       /* (max_rows), (R) */
    size_t            ld_h, ld_qkv, ld_att, ld_i;   /* floats between rows */
} glm_cpu_model_t;

/* Memory of all ranks and threads; sizes are known from the shared part and from
 * how l's weights are stored. */
int glm_cpu_alloc(glm_cpu_model_t *m, const glm_loader_t *l, glm_err_t *err);
void glm_cpu_release(glm_cpu_model_t *m);
/* Fills the weights of every rank. */
int glm_cpu_fill(glm_cpu_model_t *m, const glm_loader_t *l, glm_err_t *err);

/* Runs pass on the team. */
void glm_cpu_run(glm_cpu_model_t *m, const glm_pass_t *pass);

#endif
