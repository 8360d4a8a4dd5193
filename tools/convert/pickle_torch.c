/*
 * pickle_torch: the only globals that a checkpoint may name, and what they
 * build.  None of them is looked up or run anywhere: a tensor here is a
 * record of where its elements lie, checked against its storage.
 */
#include <string.h>

#include "pickle_impl.h"

enum { G_REBUILD_TENSOR, G_REBUILD_PARAMETER, G_ORDERED_DICT, G_STORAGE };

static const struct {
    const char  *module, *name;
} pk_functions[] = {
    [G_REBUILD_TENSOR]    = { "torch._utils", "_rebuild_tensor_v2" },
    [G_REBUILD_PARAMETER] = { "torch._utils", "_rebuild_parameter" },
    [G_ORDERED_DICT]      = { "collections", "OrderedDict" },
};

static const struct {
    const char  *name, *storage;
    size_t       size;
} pk_dtypes[PT_NDTYPES] = {
    [PT_HALF]     = { "float16", "HalfStorage", 2 },
    [PT_FLOAT]    = { "float32", "FloatStorage", 4 },
    [PT_BFLOAT16] = { "bfloat16", "BFloat16Storage", 2 },
    [PT_DOUBLE]   = { "float64", "DoubleStorage", 8 },
    [PT_CHAR]     = { "int8", "CharStorage", 1 },
    [PT_BYTE]     = { "uint8", "ByteStorage", 1 },
    [PT_SHORT]    = { "int16", "ShortStorage", 2 },
    [PT_INT]      = { "int32", "IntStorage", 4 },
    [PT_LONG]     = { "int64", "LongStorage", 8 },
    [PT_BOOL]     = { "bool", "BoolStorage", 1 },
};


const char *
pt_dtype_name(pt_dtype_t t)
{
    return (unsigned) t < PT_NDTYPES ? pk_dtypes[t].name : "?";
}


size_t
pt_dtype_size(pt_dtype_t t)
{
    return (unsigned) t < PT_NDTYPES ? pk_dtypes[t].size : 0;
}


/* A stranger's text for a message of one line. */
static void
pk_printable(char *out, size_t size, pk_str_t s)
{
    size_t  i, n = s.len < size - 1 ? s.len : size - 1;

    for (i = 0; i < n; i++) out[i] = s.s[i] >= 0x20 && s.s[i] < 0x7f ? s.s[i] : '?';
    out[n] = '\0';
}


int
pk_global(pk_vm_t *vm, pk_str_t module, pk_str_t name, int *which)
{
    char  m[64], n[64];
    int   i;

    for (i = 0; i < G_STORAGE; i++) {
        if (pk_str_is(module, pk_functions[i].module) && pk_str_is(name, pk_functions[i].name)) {
            *which = i;
            return 0;
        }
    }
    for (i = 0; i < PT_NDTYPES; i++) {
        if (pk_str_is(module, "torch") && pk_str_is(name, pk_dtypes[i].storage)) {
            *which = G_STORAGE + i;
            return 0;
        }
    }
    pk_printable(m, sizeof(m), module);
    pk_printable(n, sizeof(n), name);
    return glm_fail(vm->err, GLM_EFORMAT, "%s: pickle byte %zu: global \"%s.%s\" is refused: only "
                    "tensors and containers are read", vm->where, vm->op, m, n);
}


/* A number that counts something. */
static int
pk_count(const pk_value_t *v, uint64_t *out)
{
    if (v->type != PK_INT || v->i < 0) return 0;
    *out = (uint64_t) v->i;
    return 1;
}


/* Keys become names of zip members, so nothing else may be in them. */
static int
pk_key_ok(const pk_value_t *v)
{
    size_t  i;
    char    c;

    if (v->type != PK_STR || v->str.len == 0 || v->str.len > 64) return 0;
    for (i = 0; i < v->str.len; i++) {
        c = v->str.s[i];
        if (!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')
              || c == '_'))
        {
            return 0;
        }
    }
    return 1;
}


/* view: (key, offset, numel), or None; only legacy files have it. */
static int
pk_view(pk_vm_t *vm, pk_storage_t *s, const pk_value_t *view)
{
    pk_value_t *const  *e = view->seq.item;

    if (view->type == PK_NONE) return 0;
    if (view->type != PK_TUPLE || view->seq.n != 3 || !pk_count(e[1], &s->view_offset)
        || !pk_count(e[2], &s->view_numel) || s->view_offset > s->numel
        || s->view_numel > s->numel - s->view_offset)
    {
        return pk_bad(vm, "a view that is not inside its storage");
    }
    return 0;
}


int
pk_persistent(pk_vm_t *vm, pk_value_t *id, pk_value_t **out)
{
    pk_value_t *const  *e = id->seq.item;
    pk_storage_t       *s;

    if (id->type != PK_TUPLE || id->seq.n < 5 || id->seq.n > 6 || e[0]->type != PK_STR
        || !pk_str_is(e[0]->str, "storage"))
    {
        return pk_bad(vm, "a persistent id that is no storage");
    }
    if (e[1]->type != PK_GLOBAL || e[1]->global < G_STORAGE) {
        return pk_bad(vm, "a storage of no known type");
    }
    if (!pk_key_ok(e[2])) return pk_bad(vm, "a storage key that is not a plain name");
    if ((*out = pk_new(vm, PK_STORAGE)) == NULL) return GLM_ELIMIT;
    if ((s = pk_alloc(vm->arena, sizeof(*s))) == NULL) return pk_full(vm);
    s->key = e[2]->str;
    s->dtype = (pt_dtype_t) (e[1]->global - G_STORAGE);
    if (!pk_count(e[4], &s->numel) || s->numel > INT64_MAX / 8) {
        return pk_bad(vm, "a storage with no number of elements");
    }
    s->view_numel = s->numel;
    (*out)->storage = s;
    pk_note_storage(vm->arena, s);
    return id->seq.n == 6 ? pk_view(vm, s, e[5]) : 0;
}


/*
 * Fills dims and strides and checks that the furthest element is inside the
 * view.  An empty tensor reads nothing, wherever it is said to lie.
 */
static int
pk_extent(pk_vm_t *vm, pk_tensor_t *t, const pk_value_t *dims, const pk_value_t *strides)
{
    uint64_t  furthest = t->offset, step;
    size_t    i;

    if (dims->type != PK_TUPLE || strides->type != PK_TUPLE || dims->seq.n != strides->seq.n) {
        return pk_bad(vm, "a tensor without size and stride");
    }
    if (dims->seq.n > PK_MAX_DIMS) return pk_bad(vm, "a tensor of too many dimensions");
    t->ndim = (int) dims->seq.n;
    t->numel = 1;
    for (i = 0; i < dims->seq.n; i++) {
        t->dim[i] = dims->seq.item[i]->i;
        t->stride[i] = strides->seq.item[i]->i;
        if (dims->seq.item[i]->type != PK_INT || strides->seq.item[i]->type != PK_INT
            || t->dim[i] < 0 || t->stride[i] < 0
            || __builtin_mul_overflow(t->numel, (uint64_t) t->dim[i], &t->numel))
        {
            return pk_bad(vm, "a tensor of an impossible size or stride");
        }
    }
    if (t->numel == 0) return 0;
    for (i = 0; i < dims->seq.n; i++) {
        if (__builtin_mul_overflow((uint64_t) t->dim[i] - 1, (uint64_t) t->stride[i], &step)
            || __builtin_add_overflow(furthest, step, &furthest))
        {
            return pk_bad(vm, "a tensor that reaches outside its storage");
        }
    }
    if (furthest >= t->storage->view_numel) {
        return pk_bad(vm, "a tensor that reaches outside its storage");
    }
    return 0;
}


/* (storage, offset, size, stride, requires_grad, hooks[, metadata]) */
static int
pk_rebuild_tensor(pk_vm_t *vm, pk_value_t *args, pk_value_t **out)
{
    pk_value_t *const  *a = args->seq.item;
    pk_tensor_t        *t;
    int                 rc;

    if (args->seq.n < 6 || args->seq.n > 7 || a[0]->type != PK_STORAGE) {
        return pk_bad(vm, "a tensor without a storage");
    }
    if ((*out = pk_new(vm, PK_TENSOR)) == NULL) return GLM_ELIMIT;
    if ((t = pk_alloc(vm->arena, sizeof(*t))) == NULL) return pk_full(vm);
    (*out)->tensor = t;
    t->storage = a[0]->storage;
    if (!pk_count(a[1], &t->offset)) return pk_bad(vm, "a tensor without an offset");
    if ((rc = pk_extent(vm, t, a[2], a[3])) != 0) return rc;
    return __builtin_add_overflow(t->offset, t->storage->view_offset, &t->offset)
           ? pk_bad(vm, "a tensor that reaches outside its storage") : 0;
}


int
pk_call(pk_vm_t *vm, int which, pk_value_t *args, pk_value_t **out)
{
    switch (which) {

    case G_REBUILD_TENSOR:
        return pk_rebuild_tensor(vm, args, out);

    case G_REBUILD_PARAMETER:       /* (data, requires_grad, hooks) */
        if (args->seq.n != 3 || args->seq.item[0]->type != PK_TENSOR) {
            return pk_bad(vm, "a parameter without a tensor");
        }
        *out = args->seq.item[0];
        return 0;

    case G_ORDERED_DICT:
        if (args->seq.n != 0) return pk_bad(vm, "an OrderedDict made with arguments is refused");
        *out = pk_new(vm, PK_DICT);
        return *out ? 0 : GLM_ELIMIT;

    default:
        return pk_bad(vm, "a storage class is called");
    }
}
