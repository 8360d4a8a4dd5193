/*
 * pickle: a reader of the pickles that torch.save writes: tensors and
 * containers, nothing that runs.  Every global outside a short list, every
 * opcode outside another, is refused.  Memory is bounded, and nothing recurs:
 * values are built on a stack of our own and shared, never copied.
 */
#ifndef GLM_PICKLE_H
#define GLM_PICKLE_H

#include <stddef.h>
#include <stdint.h>

#include "error.h"

#define PK_MAX_INPUT   (16u << 20)      /* bytes of a pickle */
#define PK_MAX_MEMORY  (64u << 20)      /* bytes of its values, stack, memo */
#define PK_MAX_DIMS    8

/* Element types of torch storages. */
typedef enum {
    PT_HALF, PT_FLOAT, PT_BFLOAT16, PT_DOUBLE, PT_CHAR, PT_BYTE, PT_SHORT, PT_INT, PT_LONG, PT_BOOL
} pt_dtype_t;

#define PT_NDTYPES  (PT_BOOL + 1)

const char *pt_dtype_name(pt_dtype_t t);        /* "float16" */
size_t pt_dtype_size(pt_dtype_t t);

typedef struct {
    const char  *s;           /* in the input, no NUL at its end */
    size_t       len;
} pk_str_t;

/* A storage as a persistent id names it. */
typedef struct pk_storage_s  pk_storage_t;

struct pk_storage_s {
    pk_str_t    key;          /* letters, digits, underscore */
    pt_dtype_t  dtype;
    uint64_t    numel;
    uint64_t    view_offset;  /* elements; legacy views only, else 0 */
    uint64_t    view_numel;   /* numel without a view */
    const pk_storage_t  *next;          /* of all in the arena */
};

/* Furthest element checked: it lies inside the storage's view. */
typedef struct {
    const pk_storage_t  *storage;
    int                  ndim;
    int64_t              dim[PK_MAX_DIMS], stride[PK_MAX_DIMS];   /* elements, >= 0 */
    uint64_t             offset;        /* elements from the storage's start, view included */
    uint64_t             numel;
} pk_tensor_t;

typedef enum {
    PK_NONE, PK_BOOL, PK_INT, PK_BIGINT, PK_FLOAT, PK_STR, PK_TUPLE, PK_LIST, PK_DICT,
    PK_GLOBAL, PK_STORAGE, PK_TENSOR, PK_MARK
} pk_type_t;

typedef struct pk_value_s  pk_value_t;

struct pk_value_s {
    pk_type_t  type;
    int        global;        /* PK_GLOBAL: which of the list */
    union {
        int64_t       i;      /* PK_INT, PK_BOOL */
        double        d;
        pk_str_t      str;    /* PK_STR; PK_BIGINT: its bytes, low first */
        pk_storage_t *storage;
        pk_tensor_t  *tensor;
        struct {
            pk_value_t  **item;         /* PK_DICT: key, value, key, .. */
            size_t        n, cap;
        } seq;
    };
};

typedef struct pk_arena_s  pk_arena_t;

/* Values live until the arena ends; strings point into data, which must
   outlive them.  NULL without memory. */
pk_arena_t *pk_arena_new(void);
void pk_arena_free(pk_arena_t *a);              /* NULL is fine */
/* Every storage that was named in any pickle of the arena, once a naming. */
const pk_storage_t *pk_storages(const pk_arena_t *a);

/*
 * Reads one pickle from data; *used is the number of bytes to its STOP.  The
 * error says what was refused and at which byte, and begins with where.
 */
int pk_load(pk_arena_t *a, const uint8_t *data, size_t len, const char *where,
    const pk_value_t **root, size_t *used, glm_err_t *err);

/* NULL when v is no dict or has no such key; the last of equal keys. */
const pk_value_t *pk_get(const pk_value_t *v, const char *key);
int pk_str_is(pk_str_t s, const char *text);

#endif
