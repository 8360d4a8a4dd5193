/*
 * pickle: the opcodes.  Each is a few bytes of input that push or pop a few
 * pointers, so work and memory are linear in the input, and both are capped.
 */
#include <stdlib.h>
#include <string.h>

#include "pickle_impl.h"

#define PK_CHUNK  (256u << 10)

typedef struct pk_chunk_s {
    struct pk_chunk_s  *next;
    size_t              used, size;
    max_align_t         bytes[];
} pk_chunk_t;

struct pk_arena_s {
    pk_chunk_t  *chunks;
    size_t       total;
    const pk_storage_t  *storages;
};


pk_arena_t *
pk_arena_new(void)
{
    return calloc(1, sizeof(pk_arena_t));
}


void
pk_arena_free(pk_arena_t *a)
{
    pk_chunk_t  *c, *next;

    if (a == NULL) return;
    for (c = a->chunks; c != NULL; c = next) {
        next = c->next;
        free(c);
    }
    free(a);
}


/* Zeroed; NULL when the budget or the memory is at its end. */
void *
pk_alloc(pk_arena_t *a, size_t size)
{
    pk_chunk_t  *c = a->chunks;
    size_t       want;
    char        *p;

    if (size > PK_MAX_MEMORY) return NULL;
    size = (size + 15) & ~(size_t) 15;
    if (c == NULL || c->size - c->used < size) {
        want = size > PK_CHUNK ? size : PK_CHUNK;
        if (want > PK_MAX_MEMORY - a->total) return NULL;
        c = calloc(1, sizeof(*c) + want);
        if (c == NULL) return NULL;
        c->size = want;
        c->next = a->chunks;
        a->chunks = c;
        a->total += want;
    }
    p = (char *) c->bytes + c->used;
    c->used += size;
    return p;
}


void
pk_note_storage(pk_arena_t *a, pk_storage_t *s)
{
    s->next = a->storages;
    a->storages = s;
}


const pk_storage_t *
pk_storages(const pk_arena_t *a)
{
    return a->storages;
}


int
pk_bad(pk_vm_t *vm, const char *what)
{
    return glm_fail(vm->err, GLM_EFORMAT, "%s: pickle byte %zu: %s", vm->where, vm->op, what);
}


int
pk_full(pk_vm_t *vm)
{
    return glm_fail(vm->err, GLM_ELIMIT, "%s: pickle byte %zu: more values than %u MiB hold",
                    vm->where, vm->op, PK_MAX_MEMORY >> 20);
}


/* Room for n pointers in an array that grows by doubling inside the arena. */
static int
pk_reserve(pk_vm_t *vm, pk_value_t ***array, size_t used, size_t *cap, size_t n)
{
    pk_value_t  **bigger;
    size_t        want = *cap ? *cap : 8;

    if (n <= *cap) return 0;
    if (n > PK_MAX_MEMORY / sizeof(**array)) return pk_full(vm);
    while (want < n) want *= 2;
    bigger = pk_alloc(vm->arena, want * sizeof(**array));
    if (bigger == NULL) return pk_full(vm);
    if (used) memcpy(bigger, *array, used * sizeof(**array));
    *array = bigger;
    *cap = want;
    return 0;
}


static int
pk_push(pk_vm_t *vm, pk_value_t *v)
{
    int  rc = pk_reserve(vm, &vm->stack, vm->depth, &vm->stack_cap, vm->depth + 1);

    if (rc == 0) vm->stack[vm->depth++] = v;
    return rc;
}


pk_value_t *
pk_new(pk_vm_t *vm, pk_type_t type)
{
    pk_value_t  *v = pk_alloc(vm->arena, sizeof(*v));

    if (v == NULL) {
        pk_full(vm);
        return NULL;
    }
    v->type = type;
    return v;
}


static int
pk_push_new(pk_vm_t *vm, pk_type_t type)
{
    pk_value_t  *v = pk_new(vm, type);

    return v ? pk_push(vm, v) : GLM_ELIMIT;
}


static int
pk_push_int(pk_vm_t *vm, pk_type_t type, int64_t i)
{
    int  rc = pk_push_new(vm, type);

    if (rc == 0) vm->stack[vm->depth - 1]->i = i;
    return rc;
}


/* The top value; a mark is nobody's argument. */
static pk_value_t *
pk_top(pk_vm_t *vm, size_t below)
{
    pk_value_t  *v;

    if (vm->depth <= below) {
        pk_bad(vm, "the stack is empty");
        return NULL;
    }
    v = vm->stack[vm->depth - 1 - below];
    if (v->type == PK_MARK) {
        pk_bad(vm, "a mark where a value belongs");
        return NULL;
    }
    return v;
}


/* Index of the topmost mark. */
static int
pk_mark(pk_vm_t *vm, size_t *at)
{
    size_t  i = vm->depth;

    while (i > 0) {
        if (vm->stack[--i]->type == PK_MARK) {
            *at = i;
            return 0;
        }
    }
    return pk_bad(vm, "no mark on the stack");
}


/* n bytes of input, or NULL past its end. */
static const uint8_t *
pk_take(pk_vm_t *vm, size_t n)
{
    const uint8_t  *p = vm->data + vm->pos;

    if (n > vm->len - vm->pos) {
        pk_bad(vm, "cut short");
        return NULL;
    }
    vm->pos += n;
    return p;
}


static uint32_t
pk_u32(const uint8_t *p)
{
    return p[0] | (uint32_t) p[1] << 8 | (uint32_t) p[2] << 16 | (uint32_t) p[3] << 24;
}


static int
pk_op_number(pk_vm_t *vm, int op)
{
    size_t          n = op == OP_BININT1 ? 1 : op == OP_BININT2 ? 2 : 4;
    const uint8_t  *p = pk_take(vm, n);

    if (p == NULL) return GLM_EFORMAT;
    if (n == 1) return pk_push_int(vm, PK_INT, p[0]);
    if (n == 2) return pk_push_int(vm, PK_INT, p[0] | p[1] << 8);
    return pk_push_int(vm, PK_INT, (int32_t) pk_u32(p));
}


/* Up to 8 bytes are a number; longer ones are kept as bytes, for the magic. */
static int
pk_op_long1(pk_vm_t *vm)
{
    const uint8_t  *p = pk_take(vm, 1);
    uint64_t        u = 0;
    size_t          i, n;
    int             rc;

    if (p == NULL) return GLM_EFORMAT;
    n = p[0];
    if ((p = pk_take(vm, n)) == NULL) return GLM_EFORMAT;
    if (n > 8) {
        if ((rc = pk_push_new(vm, PK_BIGINT)) != 0) return rc;
        vm->stack[vm->depth - 1]->str = (pk_str_t) { (const char *) p, n };
        return 0;
    }
    if (n > 0 && p[n - 1] & 0x80) u = ~(uint64_t) 0;
    for (i = n; i > 0; i--) u = u << 8 | p[i - 1];
    return pk_push_int(vm, PK_INT, (int64_t) u);
}


static int
pk_op_float(pk_vm_t *vm)
{
    const uint8_t  *p = pk_take(vm, 8);
    uint64_t        u = 0;
    int             i, rc;

    if (p == NULL) return GLM_EFORMAT;
    for (i = 0; i < 8; i++) u = u << 8 | p[i];
    if ((rc = pk_push_new(vm, PK_FLOAT)) != 0) return rc;
    memcpy(&vm->stack[vm->depth - 1]->d, &u, 8);
    return 0;
}


static int
pk_op_unicode(pk_vm_t *vm)
{
    const uint8_t  *p = pk_take(vm, 4);
    size_t          n;
    int             rc;

    if (p == NULL) return GLM_EFORMAT;
    n = pk_u32(p);
    if ((p = pk_take(vm, n)) == NULL) return GLM_EFORMAT;
    if ((rc = pk_push_new(vm, PK_STR)) != 0) return rc;
    vm->stack[vm->depth - 1]->str = (pk_str_t) { (const char *) p, n };
    return 0;
}


static int
pk_op_put(pk_vm_t *vm, int wide)
{
    const uint8_t  *p = pk_take(vm, wide ? 4 : 1);
    pk_value_t     *v;
    size_t          i;
    int             rc;

    if (p == NULL || (v = pk_top(vm, 0)) == NULL) return GLM_EFORMAT;
    i = wide ? pk_u32(p) : p[0];
    /* writers count up from 0, so a number above the bytes read is a bomb */
    if (i >= vm->pos) return pk_bad(vm, "a memo number that no writer gives");
    if ((rc = pk_reserve(vm, &vm->memo, vm->nmemo, &vm->memo_cap, i + 1)) != 0) return rc;
    vm->memo[i] = v;
    if (i >= vm->nmemo) vm->nmemo = i + 1;
    return 0;
}


static int
pk_op_get(pk_vm_t *vm, int wide)
{
    const uint8_t  *p = pk_take(vm, wide ? 4 : 1);
    size_t          i;

    if (p == NULL) return GLM_EFORMAT;
    i = wide ? pk_u32(p) : p[0];
    if (i >= vm->nmemo || vm->memo[i] == NULL) return pk_bad(vm, "an empty memo entry is used");
    return pk_push(vm, vm->memo[i]);
}


/* The n topmost values become one tuple. */
static int
pk_tuple(pk_vm_t *vm, size_t n)
{
    pk_value_t  *t;
    size_t       i;
    int          rc;

    for (i = 0; i < n; i++) {
        if (pk_top(vm, i) == NULL) return GLM_EFORMAT;
    }
    if ((t = pk_new(vm, PK_TUPLE)) == NULL) return GLM_ELIMIT;
    if ((rc = pk_reserve(vm, &t->seq.item, 0, &t->seq.cap, n)) != 0) return rc;
    if (n) memcpy(t->seq.item, vm->stack + vm->depth - n, n * sizeof(*t->seq.item));
    t->seq.n = n;
    vm->depth -= n;
    return pk_push(vm, t);
}


static int
pk_op_tuple(pk_vm_t *vm)
{
    pk_value_t  *t;
    size_t       at = 0;
    int          rc;

    if ((rc = pk_mark(vm, &at)) != 0) return rc;
    if ((rc = pk_tuple(vm, vm->depth - at - 1)) != 0) return rc;
    t = vm->stack[vm->depth - 1];
    vm->stack[at] = t;
    vm->depth = at + 1;
    return 0;
}


/* Moves the n topmost values to the end of the container below them. */
static int
pk_extend(pk_vm_t *vm, pk_type_t type, size_t n, size_t below)
{
    pk_value_t  *c = pk_top(vm, n + below);
    size_t       i;
    int          rc;

    if (c == NULL) return GLM_EFORMAT;
    if (c->type != type) return pk_bad(vm, "items for what is no container of theirs");
    if (type == PK_DICT && n % 2 != 0) return pk_bad(vm, "a key without a value");
    for (i = 0; i < n; i++) {
        if (pk_top(vm, i) == NULL) return GLM_EFORMAT;
    }
    rc = pk_reserve(vm, &c->seq.item, c->seq.n, &c->seq.cap, c->seq.n + n);
    if (rc != 0) return rc;
    if (n) memcpy(c->seq.item + c->seq.n, vm->stack + vm->depth - n, n * sizeof(*c->seq.item));
    c->seq.n += n;
    vm->depth -= n + below;
    return 0;
}


static int
pk_op_extend_many(pk_vm_t *vm, pk_type_t type)
{
    size_t  at = 0;
    int     rc = pk_mark(vm, &at);

    return rc ? rc : pk_extend(vm, type, vm->depth - at - 1, 1);
}


/* One line of a GLOBAL, without its newline. */
static int
pk_line(pk_vm_t *vm, pk_str_t *line)
{
    const uint8_t  *p = vm->data + vm->pos, *nl;
    size_t          left = vm->len - vm->pos;

    nl = memchr(p, '\n', left < 256 ? left : 256);
    if (nl == NULL) return pk_bad(vm, left < 256 ? "cut short" : "a global's name is too long");
    *line = (pk_str_t) { (const char *) p, (size_t) (nl - p) };
    vm->pos += line->len + 1;
    return 0;
}


static int
pk_op_global(pk_vm_t *vm)
{
    pk_str_t  module, name;
    int       rc, which;

    if ((rc = pk_line(vm, &module)) != 0 || (rc = pk_line(vm, &name)) != 0) return rc;
    if ((rc = pk_global(vm, module, name, &which)) != 0) return rc;
    if ((rc = pk_push_new(vm, PK_GLOBAL)) != 0) return rc;
    vm->stack[vm->depth - 1]->global = which;
    return 0;
}


static int
pk_op_reduce(pk_vm_t *vm)
{
    pk_value_t  *args = pk_top(vm, 0), *callable = pk_top(vm, 1), *v = NULL;
    int          rc;

    if (args == NULL || callable == NULL) return GLM_EFORMAT;
    if (callable->type != PK_GLOBAL || args->type != PK_TUPLE) {
        return pk_bad(vm, "a call of what is no function");
    }
    if ((rc = pk_call(vm, callable->global, args, &v)) != 0) return rc;
    vm->depth -= 2;
    return pk_push(vm, v);
}


static int
pk_op_persid(pk_vm_t *vm)
{
    pk_value_t  *id = pk_top(vm, 0), *v = NULL;
    int          rc;

    if (id == NULL) return GLM_EFORMAT;
    if ((rc = pk_persistent(vm, id, &v)) != 0) return rc;
    vm->stack[vm->depth - 1] = v;
    return 0;
}


/* The state of an OrderedDict is torch's _metadata: nothing we need. */
static int
pk_op_build(pk_vm_t *vm)
{
    pk_value_t  *obj;

    if (pk_top(vm, 0) == NULL || (obj = pk_top(vm, 1)) == NULL) return GLM_EFORMAT;
    if (obj->type != PK_DICT) return pk_bad(vm, "a state for what is no dict is refused");
    vm->depth--;
    return 0;
}


static int
pk_op_proto(pk_vm_t *vm)
{
    const uint8_t  *p = pk_take(vm, 1);

    if (p == NULL) return GLM_EFORMAT;
    if (p[0] > 2) {
        return glm_fail(vm->err, GLM_EFORMAT, "%s: pickle protocol %d is refused; torch.save "
                        "writes 2 unless told otherwise", vm->where, p[0]);
    }
    return 0;
}


static int
pk_refuse(pk_vm_t *vm, int op)
{
    return glm_fail(vm->err, GLM_EFORMAT, "%s: pickle byte %zu: opcode 0x%02x is refused: only "
                    "tensors and containers are read", vm->where, vm->op, op);
}


static int
pk_step(pk_vm_t *vm, int op)
{
    switch (op) {
    case OP_PROTO:          return pk_op_proto(vm);
    case OP_MARK:           return pk_push_new(vm, PK_MARK);
    case OP_NONE:           return pk_push_new(vm, PK_NONE);
    case OP_NEWTRUE:        return pk_push_int(vm, PK_BOOL, 1);
    case OP_NEWFALSE:       return pk_push_int(vm, PK_BOOL, 0);
    case OP_BININT:
    case OP_BININT1:
    case OP_BININT2:        return pk_op_number(vm, op);
    case OP_LONG1:          return pk_op_long1(vm);
    case OP_BINFLOAT:       return pk_op_float(vm);
    case OP_BINUNICODE:     return pk_op_unicode(vm);
    case OP_EMPTY_DICT:     return pk_push_new(vm, PK_DICT);
    case OP_EMPTY_LIST:     return pk_push_new(vm, PK_LIST);
    case OP_EMPTY_TUPLE:    return pk_push_new(vm, PK_TUPLE);
    case OP_TUPLE:          return pk_op_tuple(vm);
    case OP_TUPLE1:         return pk_tuple(vm, 1);
    case OP_TUPLE2:         return pk_tuple(vm, 2);
    case OP_TUPLE3:         return pk_tuple(vm, 3);
    case OP_APPEND:         return pk_extend(vm, PK_LIST, 1, 0);
    case OP_APPENDS:        return pk_op_extend_many(vm, PK_LIST);
    case OP_SETITEM:        return pk_extend(vm, PK_DICT, 2, 0);
    case OP_SETITEMS:       return pk_op_extend_many(vm, PK_DICT);
    case OP_BINPUT:         return pk_op_put(vm, 0);
    case OP_LONG_BINPUT:    return pk_op_put(vm, 1);
    case OP_BINGET:         return pk_op_get(vm, 0);
    case OP_LONG_BINGET:    return pk_op_get(vm, 1);
    case OP_GLOBAL:         return pk_op_global(vm);
    case OP_REDUCE:         return pk_op_reduce(vm);
    case OP_BINPERSID:      return pk_op_persid(vm);
    case OP_BUILD:          return pk_op_build(vm);
    default:                return pk_refuse(vm, op);
    }
}


int
pk_load(pk_arena_t *a, const uint8_t *data, size_t len, const char *where,
    const pk_value_t **root, size_t *used, glm_err_t *err)
{
    pk_vm_t         vm = { .arena = a, .data = data, .where = where, .err = err };
    const uint8_t  *op;
    int             rc;

    vm.len = len < PK_MAX_INPUT ? len : PK_MAX_INPUT;
    for ( ;; ) {
        vm.op = vm.pos;
        if ((op = pk_take(&vm, 1)) == NULL) return GLM_EFORMAT;
        if (*op == OP_STOP) break;
        if ((rc = pk_step(&vm, *op)) != 0) return rc;
    }
    if (pk_top(&vm, 0) == NULL) return GLM_EFORMAT;
    if (vm.depth != 1) return pk_bad(&vm, "values are left on the stack");
    *root = vm.stack[0];
    *used = vm.pos;
    return 0;
}


int
pk_str_is(pk_str_t s, const char *text)
{
    return s.len == strlen(text) && memcmp(s.s, text, s.len) == 0;
}


const pk_value_t *
pk_get(const pk_value_t *v, const char *key)
{
    size_t  i;

    if (v->type != PK_DICT) return NULL;
    for (i = v->seq.n; i >= 2; i -= 2) {
        if (v->seq.item[i - 2]->type == PK_STR && pk_str_is(v->seq.item[i - 2]->str, key)) {
            return v->seq.item[i - 1];
        }
    }
    return NULL;
}
