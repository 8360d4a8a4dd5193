
#include "ngx_http_glm_module.h"

#include <stdlib.h>


void
ngx_http_glm_out_init(ngx_http_glm_out_t *out, ngx_pool_t *pool)
{
    ngx_memzero(out, sizeof(ngx_http_glm_out_t));

    out->pool = pool;
    out->last = &out->first;
}


static ngx_buf_t *
ngx_http_glm_out_next(ngx_http_glm_out_t *out)
{
    ngx_buf_t    *b;
    ngx_chain_t  *cl;

    if (out->failed) {
        return NULL;
    }

    if (out->free) {
        cl = out->free;
        out->free = cl->next;
        b = cl->buf;

    } else {
        cl = ngx_alloc_chain_link(out->pool);
        b = ngx_create_temp_buf(out->pool, NGX_HTTP_GLM_BUFFER);
        if (cl == NULL || b == NULL) {
            out->failed = 1;
            return NULL;
        }

        b->tag = (ngx_buf_tag_t) &ngx_http_glm_module;
        cl->buf = b;
    }

    b->pos = b->start;
    b->last = b->start;
    b->flush = 0;
    b->last_buf = 0;
    b->last_in_chain = 0;

    cl->next = NULL;
    *out->last = cl;
    out->last = &cl->next;
    out->buf = b;

    return b;
}


void
ngx_http_glm_put(ngx_http_glm_out_t *out, const void *p, size_t n)
{
    size_t         size;
    ngx_buf_t     *b;
    const u_char  *s;

    if (n == 0) {
        return;
    }

    s = p;
    b = out->buf;

    for ( ;; ) {

        if (b) {
            size = ngx_min(n, (size_t) (b->end - b->last));
            b->last = ngx_cpymem(b->last, s, size);
            out->size += size;
            s += size;
            n -= size;
        }

        if (n == 0) {
            return;
        }

        b = ngx_http_glm_out_next(out);
        if (b == NULL) {
            return;
        }
    }
}


void
ngx_http_glm_put_str(ngx_http_glm_out_t *out, const char *s)
{
    ngx_http_glm_put(out, s, ngx_strlen(s));
}


void
ngx_http_glm_put_int(ngx_http_glm_out_t *out, int64_t n)
{
    u_char  buf[NGX_INT64_LEN];

    ngx_http_glm_put(out, buf, ngx_sprintf(buf, "%L", n) - buf);
}


/* JSON has no infinity: -9999.0 as elsewhere. */

void
ngx_http_glm_put_logprob(ngx_http_glm_out_t *out, double x)
{
    ngx_http_glm_put_num(out, x >= -9999.0 ? x : -9999.0);
}


/* Reads back as the same double. */

void
ngx_http_glm_put_num(ngx_http_glm_out_t *out, double x)
{
    int   n;
    char  buf[40];

    x = x >= -1e300 ? ngx_min(x, 1e300) : -1e300;

    n = snprintf(buf, sizeof(buf), "%.9g", x);

    if (strtod(buf, NULL) != x) {
        n = snprintf(buf, sizeof(buf), "%.17g", x);
    }

    ngx_http_glm_put(out, buf, n);

    if (strpbrk(buf, ".e") == NULL) {
        ngx_http_glm_lit(out, ".0");
    }
}


/* The inside of a JSON string: p is valid UTF-8. */

void
ngx_http_glm_put_escaped(ngx_http_glm_out_t *out, const u_char *p, size_t n)
{
    u_char         ch, esc[6];
    const u_char  *last, *run;

    static const u_char  hex[] = "0123456789abcdef";

    last = p + n;
    run = p;

    while (p < last) {
        ch = *p;

        if (ch >= 0x20 && ch != '"' && ch != '\\' && ch != 0xe2) {
            p++;
            continue;
        }

        /* U+2028 and U+2029 end a line in JavaScript */

        if (ch == 0xe2
            && (last - p < 3 || p[1] != 0x80 || (p[2] & 0xfe) != 0xa8))
        {
            p++;
            continue;
        }

        if (p != run) {
            ngx_http_glm_put(out, run, p - run);
        }

        if (ch == 0xe2) {
            ngx_http_glm_put(out, p[2] == 0xa8 ? "\\u2028" : "\\u2029", 6);
            p += 3;
            run = p;
            continue;
        }

        esc[0] = '\\';

        switch (ch) {

        case '"':
        case '\\':
            esc[1] = ch;
            ngx_http_glm_put(out, esc, 2);
            break;

        case '\n':
            ngx_http_glm_lit(out, "\\n");
            break;

        case '\r':
            ngx_http_glm_lit(out, "\\r");
            break;

        case '\t':
            ngx_http_glm_lit(out, "\\t");
            break;

        default:
            esc[1] = 'u';
            esc[2] = '0';
            esc[3] = '0';
            esc[4] = hex[ch >> 4];
            esc[5] = hex[ch & 0xf];
            ngx_http_glm_put(out, esc, 6);
        }

        p++;
        run = p;
    }

    if (p != run) {
        ngx_http_glm_put(out, run, p - run);
    }
}


void
ngx_http_glm_put_string(ngx_http_glm_out_t *out, const u_char *p, size_t n)
{
    ngx_http_glm_lit(out, "\"");
    ngx_http_glm_put_escaped(out, p, n);
    ngx_http_glm_lit(out, "\"");
}


/* Hands the chain over, which is not empty; links come back by out->free. */

ngx_chain_t *
ngx_http_glm_out_take(ngx_http_glm_out_t *out, ngx_uint_t last,
    ngx_uint_t flush)
{
    ngx_chain_t  *cl;

    out->buf->flush = flush ? 1 : 0;
    out->buf->last_buf = last ? 1 : 0;
    out->buf->last_in_chain = last ? 1 : 0;

    cl = out->first;

    out->first = NULL;
    out->last = &out->first;
    out->buf = NULL;
    out->size = 0;

    return cl;
}


ngx_int_t
ngx_http_glm_blob_add(ngx_http_glm_blob_t *b, ngx_pool_t *pool, const void *p,
    size_t n)
{
    size_t   size;
    u_char  *start;

    if (n > b->size - b->len) {
        if (n > NGX_HTTP_GLM_MAX_MESSAGE - b->len) {
            return NGX_DECLINED;
        }

        size = ngx_max(b->size * 2, ngx_max(b->len + n, 64));

        start = ngx_pnalloc(pool, size);
        if (start == NULL) {
            return NGX_ERROR;
        }

        if (b->start) {
            ngx_memcpy(start, b->start, b->len);
            (void) ngx_pfree(pool, b->start);
        }

        b->start = start;
        b->size = size;
    }

    ngx_memcpy(b->start + b->len, p, n);
    b->len += n;

    return NGX_OK;
}


/* Strict: no overlong forms, surrogates, or code points above U+10FFFF. */

ngx_int_t
ngx_http_glm_utf8(const u_char *p, size_t n, ngx_uint_t *chars)
{
    ngx_uint_t     count, len;
    const u_char  *last;

    count = 0;
    last = p + n;

    while (p < last) {
        count++;

        if (*p < 0x80) {
            p++;
            continue;
        }

        if (*p < 0xc2 || *p > 0xf4) {
            return NGX_ERROR;
        }

        len = *p < 0xe0 ? 2 : *p < 0xf0 ? 3 : 4;

        if ((size_t) (last - p) < len
            || (p[1] & 0xc0) != 0x80
            || (len > 2 && (p[2] & 0xc0) != 0x80)
            || (len > 3 && (p[3] & 0xc0) != 0x80)
            || (*p == 0xe0 && p[1] < 0xa0)
            || (*p == 0xed && p[1] > 0x9f)
            || (*p == 0xf0 && p[1] < 0x90)
            || (*p == 0xf4 && p[1] > 0x8f))
        {
            return NGX_ERROR;
        }

        p += len;
    }

    if (chars) {
        *chars = count;
    }

    return NGX_OK;
}


/* No line of the log may be made by a client. */

void
ngx_http_glm_printable(u_char *p, size_t n)
{
    for ( /* void */ ; n; p++, n--) {
        if (*p < 0x20 || *p == 0x7f) {
            *p = ' ';
        }
    }
}


/* Counts brackets before the parser would recurse over them. */

ngx_int_t
ngx_http_glm_json_depth(const u_char *p, size_t n, ngx_uint_t max)
{
    ngx_uint_t     depth, quoted;
    const u_char  *last;

    depth = 0;
    quoted = 0;

    for (last = p + n; p < last; p++) {

        if (quoted) {
            if (*p == '\\') {
                p++;

            } else if (*p == '"') {
                quoted = 0;
            }

            continue;
        }

        switch (*p) {

        case '"':
            quoted = 1;
            break;

        case '[':
        case '{':
            if (++depth > max) {
                return NGX_ERROR;
            }
            break;

        case ']':
        case '}':
            if (depth) {
                depth--;
            }
            break;
        }
    }

    return NGX_OK;
}


/* The key of the outermost object whose value holds byte pos. */

ngx_str_t
ngx_http_glm_json_key(const u_char *p, size_t n, size_t pos)
{
    ngx_str_t      key, string;
    ngx_uint_t     depth;
    const u_char  *last, *start;

    ngx_str_null(&key);
    ngx_str_null(&string);
    depth = 0;

    for (last = p + ngx_min(n, pos); p < last; p++) {

        switch (*p) {

        case '"':
            start = p + 1;

            for (p = start; p < last && *p != '"'; p++) {
                if (*p == '\\') {
                    p++;
                }
            }

            if (depth == 1 && p < last) {
                string.data = (u_char *) start;
                string.len = p - start;
            }
            break;

        case ':':
            if (depth == 1) {
                key = string;
            }
            break;

        case ',':
            if (depth == 1) {
                ngx_str_null(&key);
            }
            break;

        case '[':
        case '{':
            depth++;
            break;

        case ']':
        case '}':
            depth--;
            break;
        }
    }

    return key;
}
