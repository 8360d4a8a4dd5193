/*
 * convert: a checkpoint of the original -> a model directory.
 */
#ifndef GLM_CV_CONVERT_H
#define GLM_CV_CONVERT_H

#include <signal.h>
#include <stdint.h>

#include "form.h"

typedef struct {
    const char    *src, *dst;
    const char    *config;    /* NULL: src/config.json; a preset's name or a file */
    const char    *tokenizer; /* NULL: src; directory with the tokenizer's files */
    cv_quantise_t  quant;
    const char    *calibrate; /* NULL, or the file of a text to quantise for */
    size_t         calibrate_tokens;
    uint64_t       shard_bytes;
    int            force, dry_run, quiet, no_checksums;
    const volatile sig_atomic_t  *stop;         /* may be NULL */
} cv_options_t;

#define CV_SHARD_BYTES  (5000000000ull)

int cv_convert(const cv_options_t *opt, glm_err_t *err);

#endif
