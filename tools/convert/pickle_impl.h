/*
 * pickle_impl: what the two halves of the pickle reader share: the machine
 * (pickle.c) and the few torch objects that it may build (pickle_torch.c).
 */
#ifndef GLM_PICKLE_IMPL_H
#define GLM_PICKLE_IMPL_H

#include "pickle.h"

enum {
    OP_MARK = '(', OP_STOP = '.', OP_BININT = 'J', OP_BININT1 = 'K', OP_BININT2 = 'M',
    OP_NONE = 'N', OP_BINPERSID = 'Q', OP_REDUCE = 'R', OP_BINUNICODE = 'X', OP_EMPTY_LIST = ']',
    OP_APPEND = 'a', OP_BUILD = 'b', OP_GLOBAL = 'c', OP_APPENDS = 'e', OP_BINGET = 'h',
    OP_LONG_BINGET = 'j', OP_BINPUT = 'q', OP_LONG_BINPUT = 'r', OP_SETITEM = 's', OP_TUPLE = 't',
    OP_EMPTY_TUPLE = ')', OP_SETITEMS = 'u', OP_EMPTY_DICT = '}', OP_BINFLOAT = 'G',
    OP_PROTO = 0x80, OP_TUPLE1 = 0x85, OP_TUPLE2 = 0x86, OP_TUPLE3 = 0x87, OP_NEWTRUE = 0x88,
    OP_NEWFALSE = 0x89, OP_LONG1 = 0x8a
};

typedef struct {
    pk_arena_t      *arena;
    const uint8_t   *data;
    size_t           len, pos;
    size_t           op;      /* where the current opcode is, for messages */
    pk_value_t     **stack;
    size_t           depth, stack_cap;
    pk_value_t     **memo;    /* NULL: never put */
    size_t           nmemo, memo_cap;
    const char      *where;
    glm_err_t       *err;
} pk_vm_t;

void *pk_alloc(pk_arena_t *a, size_t size);
void pk_note_storage(pk_arena_t *a, pk_storage_t *s);
pk_value_t *pk_new(pk_vm_t *vm, pk_type_t type);
int pk_bad(pk_vm_t *vm, const char *what);      /* GLM_EFORMAT */
int pk_full(pk_vm_t *vm);                       /* GLM_ELIMIT */

/* The number of an accepted global; an error names any other. */
int pk_global(pk_vm_t *vm, pk_str_t module, pk_str_t name, int *which);
/* What the global makes of args, a tuple. */
int pk_call(pk_vm_t *vm, int which, pk_value_t *args, pk_value_t **out);
/* ("storage", class, key, location, numel[, view]) -> PK_STORAGE */
int pk_persistent(pk_vm_t *vm, pk_value_t *id, pk_value_t **out);

#endif
