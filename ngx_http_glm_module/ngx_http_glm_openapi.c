
#include "ngx_http_glm_module.h"
#include "ngx_http_glm_openapi.h"


/* What the server answers, as OpenAPI; no engine is needed for that. */

ngx_int_t
ngx_http_glm_openapi(ngx_http_request_t *r, ngx_http_glm_ctx_t *ctx)
{
    ngx_http_glm_put(&ctx->out, ngx_http_glm_openapi_json,
                     sizeof(ngx_http_glm_openapi_json) - 1);

    return ngx_http_glm_send(r, ctx, NGX_HTTP_OK, "application/json");
}
