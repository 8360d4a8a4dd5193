
#include "ngx_http_glm_module.h"


static ngx_int_t ngx_http_glm_section_fixed(void *dst, size_t size, u_char **p,
    size_t *len);
static ngx_int_t ngx_http_glm_section_all(ngx_http_glm_sections_t *s, u_char *p,
    size_t len);


/* A message: its fixed part into dst, and where its sections are. */

ngx_int_t
ngx_http_glm_section_read(void *dst, size_t size, ngx_http_glm_sections_t *s,
    u_char *p, size_t len)
{
    if (ngx_http_glm_section_fixed(dst, size, &p, &len) != NGX_OK) {
        return NGX_ERROR;
    }

    return ngx_http_glm_section_all(s, p, len);
}


/*
 * Copies the fixed part, whose first field is its size: what is missing is
 * zero, and what is unknown must be.
 */

static ngx_int_t
ngx_http_glm_section_fixed(void *dst, size_t size, u_char **p, size_t *len)
{
    size_t    i, n;
    uint32_t  have;

    if (*len < 8) {
        return NGX_ERROR;
    }

    ngx_memcpy(&have, *p, sizeof(uint32_t));

    if (have < 8 || have > *len || have % GLM_WIRE_ALIGN) {
        return NGX_ERROR;
    }

    n = ngx_min(have, size);

    ngx_memzero(dst, size);
    ngx_memcpy(dst, *p, n);

    for (i = n; i < have; i++) {
        if ((*p)[i]) {
            return NGX_ERROR;
        }
    }

    *p += have;
    *len -= have;

    return NGX_OK;
}


static ngx_int_t
ngx_http_glm_section_all(ngx_http_glm_sections_t *s, u_char *p, size_t len)
{
    size_t      n;
    glm_sec_t   sec;
    ngx_str_t  *where;

    ngx_memzero(s, sizeof(ngx_http_glm_sections_t));

    while (len >= sizeof(glm_sec_t)) {

        ngx_memcpy(&sec, p, sizeof(glm_sec_t));

        p += sizeof(glm_sec_t);
        len -= sizeof(glm_sec_t);

        if (sec.size > len || (sec.flags & ~GLM_SEC_CRITICAL)) {
            return NGX_ERROR;
        }

        switch (sec.type) {

        case GLM_SEC_TEXT:
            where = &s->text;
            break;

        case GLM_SEC_IDS:
            where = &s->ids;
            break;

        case GLM_SEC_LOGPROBS:
            where = &s->logprobs;
            break;

        case GLM_SEC_STOPTEXT:
            where = &s->stop;
            break;

        case GLM_SEC_SPANS:
            where = &s->spans;
            break;

        default:
            if (sec.flags & GLM_SEC_CRITICAL) {
                return NGX_ERROR;
            }

            where = NULL;
        }

        if (where) {
            if (where->data) {
                return NGX_ERROR;    /* twice */
            }

            where->data = p;
            where->len = sec.size;
        }

        n = ngx_min(len, glm_ring_round(sec.size));
        p += n;
        len -= n;
    }

    return len ? NGX_ERROR : NGX_OK;
}


/* n groups, each a token's record and its ntop best; n 0: any number. */

ngx_int_t
ngx_http_glm_section_logprobs(ngx_str_t *s, uint32_t n)
{
    size_t              len, size;
    u_char             *p;
    uint32_t            groups, left;
    glm_logprob_rec_t   rec;

    p = s->data;
    len = s->len;
    groups = 0;
    left = 0;

    while (len) {

        if (len < sizeof(glm_logprob_rec_t)) {
            return NGX_ERROR;
        }

        ngx_memcpy(&rec, p, sizeof(glm_logprob_rec_t));

        size = sizeof(glm_logprob_rec_t) + ngx_align(rec.text_size, 4);

        /* a prompt's first token has none */

        if (size > len || rec.logprob > 1e-3
            || (rec.logprob != rec.logprob && (n || groups)))
        {
            return NGX_ERROR;
        }

        if (left == 0) {
            if (rec.ntop > NGX_HTTP_GLM_MAX_TOP) {
                return NGX_ERROR;
            }

            groups++;
            left = rec.ntop;

        } else if (rec.ntop) {
            return NGX_ERROR;

        } else {
            left--;
        }

        p += size;
        len -= size;
    }

    return left || (n && groups != n) ? NGX_ERROR : NGX_OK;
}
