/*
 * form: how each tensor is stored: fp16, or a linear weight in integers with
 * scales.  Chosen by the options, or given by a source that is quantised.
 */
#ifndef GLM_CV_FORM_H
#define GLM_CV_FORM_H

#include "source.h"

/* "fp16", "int8", "int4", "int4-g32", "int4-g128", in which group 0 is a row, or a
   rank's part of it; -1: none of them. */
int cv_choice_parse(const char *text, glm_quant_t *out);

#define CV_MAX_EXCEPT  64

typedef struct {
    int          on;          /* otherwise weights stay as they are */
    glm_quant_t  choice;
    int32_t      ranks;       /* scales a row where ranks share the columns; 1 or more */
    struct {
        const char  *pattern;          /* of names, as fnmatch() takes it */
        glm_quant_t  choice;
    }            except[CV_MAX_EXCEPT]; /* the last that fits wins */
    int          nexcept;
} cv_quantise_t;

typedef struct {
    glm_quant_t  choice;
    int32_t      groups;      /* scales a row; 0 for fp16 */
    int          given;       /* the source has it so */
} cv_form_t;

typedef struct {
    cv_form_t   *of;          /* for each tensor of the plan */
    size_t       n;
    glm_quant_t  most;        /* what config.json says of all but the exceptions */
} cv_forms_t;

/*
 * Decides for every tensor.  Refused: options for a source that is quantised,
 * a group that does not divide a weight's columns, an exception that fits no
 * weight.
 */
int cv_forms_choose(cv_forms_t *f, const cv_quantise_t *q, const cv_source_t *s,
    const glm_config_t *cfg, glm_err_t *err);
/* Bytes on disk of a tensor, and of all. */
uint64_t cv_form_bytes(const cv_form_t *f, const cv_item_t *item);
uint64_t cv_forms_bytes(const cv_forms_t *f, const glm_config_t *cfg);
void cv_forms_free(cv_forms_t *f);

/* The text of config.json: the source's fields, but for those about how it was
   cut and stored, and "quantization".  The caller's, NULL without memory. */
char *cv_forms_config(const cv_forms_t *f, const glm_config_t *cfg, const char *text, size_t len);

#endif
