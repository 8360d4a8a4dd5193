/*
 * wire_decode_impl: what wire_decode.c and wire_lists.c share.  Every function gives
 * 0 or the error that glm_wire_decode_submit() returns, with d->why filled.
 */
#ifndef GLM_WIRE_DECODE_IMPL_H
#define GLM_WIRE_DECODE_IMPL_H

#include "wire_decode.h"

typedef struct {
    glm_submit_t               *out;
    const glm_decode_limits_t  *lim;
    glm_refusal_t              *why;
    glm_msg_submit_t            m;
    glm_sec_sampling_t          s;
    uint64_t                    seen;     /* bits of section types that come once */
    size_t                      nseg, segcap;
    size_t                      nstop;
} glm_decode_t;

/* The two ways to say no: no SUBMIT at all, or one that is refused. */
__attribute__((format(printf, 2, 3)))
int glm_wd_nonsense(glm_decode_t *d, const char *fmt, ...);
__attribute__((format(printf, 4, 5)))
int glm_wd_refuse(glm_decode_t *d, int status, const char *param, const char *fmt, ...);

/* Refuses a number outside lo .. hi; refuses x unless it is inside. */
int glm_wd_range(glm_decode_t *d, const char *param, int64_t value, int64_t lo, int64_t hi);
int glm_wd_interval(glm_decode_t *d, const char *param, float x, int lo, int hi);

int glm_wd_ids(glm_decode_t *d, const char *param, const int32_t *ids, size_t n);
int glm_wd_fixed(glm_decode_t *d, void *dst, size_t known, const uint8_t *src, size_t avail,
    size_t *used, const char *what);

/* Payloads of sections, into d->out. */
int glm_wd_stops(glm_decode_t *d, const uint8_t *p, size_t n);
int glm_wd_bad_words(glm_decode_t *d, const uint8_t *p, size_t n);
int glm_wd_stop_ids(glm_decode_t *d, const uint8_t *p, size_t n);
int glm_wd_score_ids(glm_decode_t *d, const uint8_t *p, size_t n);
int glm_wd_allowed_ids(glm_decode_t *d, const uint8_t *p, size_t n);
int glm_wd_biases(glm_decode_t *d, const uint8_t *p, size_t n);
int glm_wd_repeat(glm_decode_t *d, const uint8_t *p, size_t n);
int glm_wd_suffix(glm_decode_t *d, const uint8_t *p, size_t n);
int glm_wd_choices(glm_decode_t *d, const uint8_t *p, size_t n);

#endif
