/*
 * tensors: one after another is merged, quantised, written and, where the conversion is
 * calibrated, run.  Holds one whole tensor at a time.
 */
#include <stdatomic.h>
#include <stdlib.h>

#include "job.h"
#include "merge.h"
#include "quant.h"


/* Room for a tensor as it is merged, its integers behind it, and its scales. */
typedef struct {
    void      *whole;
    uint8_t   *q;             /* of the tensor at hand */
    uint16_t  *scale;
} cv_room_t;


static uint64_t
cv_values(const cv_item_t *item)
{
    return (uint64_t) (item->dim[0] * item->dim[1]);
}


static int
cv_merge_said(cv_job_t *j, const cv_item_t *item, void *whole)
{
    int  differ, rc = cv_merge(&j->source, item, whole, &differ, j->opt->stop, j->err);

    if (rc != 0 || !differ) return rc;
    glm_progress_clear(&j->progress);
    fprintf(stderr, "%s: ranks 0 and %d have different values; those of rank 0 are taken\n",
            item->name, differ);
    return 0;
}


/* A weight that threads quantise together, each its share of the rows. */
typedef struct {
    glm_quantize_t   z;
    const cv_room_t *room;
    _Atomic int64_t  bad;     /* the first element that is not finite; INT64_MAX: none */
} cv_shared_t;


static void
cv_run_quantise(const glm_member_t *me, void *arg)
{
    cv_shared_t     *t = arg;
    glm_quantize_t   z = t->z;
    const uint16_t  *w = t->room->whole;
    int64_t          row, col, at, was;
    int              first, last;

    glm_comm_share(me, (int) t->z.rows, &first, &last);
    z.rows = last - first;
    if (glm_quantize(&z, w + first * z.cols, t->room->q + first * glm_quant_row_bytes(z.type, z.cols),
                     t->room->scale + first * (z.cols / z.group), &row, &col) == 0)
    {
        return;
    }
    at = (first + row) * z.cols + col;
    was = atomic_load(&t->bad);
    while (at < was && !atomic_compare_exchange_weak(&t->bad, &was, at)) { /* void */ }
}


static int
cv_quantise(cv_job_t *j, size_t i, const cv_item_t *item, const cv_room_t *room)
{
    const cv_form_t  *form = &j->forms.of[i];
    cv_shared_t       t = {
        .z = { form->choice.type, item->dim[0], item->dim[1], item->dim[1] / form->groups },
        .room = room, .bad = INT64_MAX,
    };
    int64_t           row = 0, col = 0;

    if (j->calib == NULL) {
        glm_comm_run(j->team, cv_run_quantise, &t);
        if (t.bad == INT64_MAX) return 0;
        row = t.bad / t.z.cols;
        col = t.bad % t.z.cols;

    } else if (cv_calib_quantize(j->calib, i, &t.z, room->whole, room->q, room->scale, &row, &col) == 0) {
        return 0;
    }
    return glm_fail(j->err, GLM_EFORMAT, "%s: row %lld, column %lld is not a finite number, which "
                    "cannot be quantised", item->name, (long long) row, (long long) col);
}


/* Makes the values of a tensor: integers and scales, or fp16. */
static int
cv_make(cv_job_t *j, size_t i, const cv_item_t *item, const cv_room_t *room)
{
    const cv_form_t  *form = &j->forms.of[i];
    cv_item_t         bytes, scale;
    int               rc;

    if (form->given) {
        cv_plan_quantised(item, form->choice.type, j->source.ranks, &bytes, &scale);
        rc = cv_merge_said(j, &bytes, room->q);
        return rc ? rc : cv_merge_said(j, &scale, room->scale);
    }
    rc = cv_merge_said(j, item, room->whole);
    return rc || form->choice.type == GLM_T_F16 ? rc : cv_quantise(j, i, item, room);
}


/* The same from what an unfinished conversion wrote. */
static int
cv_fetch(cv_job_t *j, size_t i, const cv_room_t *room)
{
    int  rc;

    if (j->forms.of[i].choice.type == GLM_T_F16) return stw_read(j->stw, 0, room->whole, j->err);
    rc = stw_read(j->stw, 0, room->q, j->err);
    return rc ? rc : stw_read(j->stw, 1, room->scale, j->err);
}


static int
cv_put_tensor(cv_job_t *j, size_t i, cv_room_t *room)
{
    const cv_form_t  *form = &j->forms.of[i];
    int               quantised = form->choice.type != GLM_T_F16, rc = 0, found;
    const void       *values;
    uint64_t          scales;
    cv_item_t         item;

    cv_plan_at(&j->cfg, i, &item);
    room->q = (uint8_t *) room->whole + (form->given ? 0 : cv_values(&item) * 2);
    values = quantised ? room->q : room->whole;
    scales = (uint64_t) (item.dim[0] * form->groups * 2);
    found = stw_there(j->stw, quantised ? 2 : 1);
    if (!found) {
        rc = cv_make(j, i, &item, room);

    } else if (j->calib != NULL) {
        rc = cv_fetch(j, i, room);
    }
    if (rc == 0) rc = stw_write(j->stw, values, cv_form_bytes(form, &item) - scales, j->err);
    if (rc == 0 && quantised) rc = stw_write(j->stw, room->scale, scales, j->err);
    if (rc == 0 && j->calib != NULL) rc = cv_calib_take(j->calib, i, values, room->scale, j->err);
    if (rc == 0 && found) glm_progress_found(&j->progress, cv_values(&item) * 2, item.name);
    else if (rc == 0) glm_progress_add(&j->progress, cv_values(&item) * 2, item.name);
    return rc;
}


int
cv_declare(cv_job_t *j)
{
    const cv_form_t  *form;
    cv_item_t         item, bytes, scale;
    size_t            i;
    int               rc = 0;

    for (i = 0; i < j->forms.n && rc == 0; i++) {
        form = &j->forms.of[i];
        cv_plan_at(&j->cfg, i, &item);
        if (form->choice.type == GLM_T_F16) {
            rc = stw_declare(j->stw, item.name, GLM_F16, item.ndim, item.dim, j->err);
            continue;
        }
        cv_plan_quantised(&item, form->choice.type, form->groups, &bytes, &scale);
        rc = stw_declare(j->stw, bytes.name, GLM_I8, 2, bytes.dim, j->err);
        scale.dim[1] = form->groups;
        if (rc == 0) rc = stw_declare(j->stw, scale.name, GLM_F16, 2, scale.dim, j->err);
    }
    return rc;
}


void
cv_needs(const cv_job_t *j, size_t *whole, size_t *scale)
{
    cv_item_t  item;
    size_t     i, size, scales;

    *whole = *scale = 0;
    for (i = 0; i < j->forms.n; i++) {
        const cv_form_t  *form = &j->forms.of[i];

        cv_plan_at(&j->cfg, i, &item);
        scales = (size_t) (item.dim[0] * form->groups * 2);
        size = form->given ? 0 : cv_values(&item) * 2;
        if (form->choice.type != GLM_T_F16) size += cv_form_bytes(form, &item) - scales;
        if (size > *whole) *whole = size;
        if (scales > *scale) *scale = scales;
    }
}


int
cv_put_tensors(cv_job_t *j)
{
    cv_room_t  room;
    size_t     i, whole, scale;
    int        rc = 0;

    cv_needs(j, &whole, &scale);
    room = (cv_room_t) { malloc(whole), NULL, malloc(scale ? scale : 1) };
    if (room.whole == NULL || room.scale == NULL) {
        rc = glm_fail(j->err, GLM_ENOMEM, "no memory for the largest tensor, %zu bytes", whole);
    }
    if (rc == 0) rc = glm_comm_new(&j->team, 1, glm_comm_cores(), j->err);
    for (i = 0; i < j->forms.n && rc == 0; i++) rc = cv_put_tensor(j, i, &room);
    glm_comm_free(j->team);
    free(room.whole);
    free(room.scale);
    return rc ? rc : stw_finish(j->stw, j->err);
}
