
#include "ngx_http_glm_module.h"


static char *ngx_http_glm_pass(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
static char *ngx_http_glm_api(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);
static char *ngx_http_glm_positive(ngx_conf_t *cf, void *post, void *data);
static char *ngx_http_glm_check_n(ngx_conf_t *cf, void *post, void *data);
static char *ngx_http_glm_check_stops(ngx_conf_t *cf, void *post, void *data);
static char *ngx_http_glm_check_buffer(ngx_conf_t *cf, void *post,
    void *data);
static char *ngx_http_glm_check_prompt(ngx_conf_t *cf, void *post,
    void *data);
static void *ngx_http_glm_create_main_conf(ngx_conf_t *cf);
static void *ngx_http_glm_create_loc_conf(ngx_conf_t *cf);
static char *ngx_http_glm_merge_loc_conf(ngx_conf_t *cf, void *parent,
    void *child);
static ngx_int_t ngx_http_glm_add_variables(ngx_conf_t *cf);
static ngx_int_t ngx_http_glm_value(ngx_http_variable_value_t *v, u_char *p,
    size_t len);
static ngx_int_t ngx_http_glm_string_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_glm_number_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_glm_time_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_glm_tpot_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_glm_seconds(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uint64_t us);
static ngx_int_t ngx_http_glm_finish_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_glm_init_module(ngx_cycle_t *cycle);
static ngx_int_t ngx_http_glm_init_process(ngx_cycle_t *cycle);
static void ngx_http_glm_exit_process(ngx_cycle_t *cycle);


static ngx_conf_post_t  ngx_http_glm_positive_post = { ngx_http_glm_positive };
static ngx_conf_post_t  ngx_http_glm_n_post = { ngx_http_glm_check_n };
static ngx_conf_post_t  ngx_http_glm_stops_post = { ngx_http_glm_check_stops };
static ngx_conf_post_t  ngx_http_glm_buffer_post =
    { ngx_http_glm_check_buffer };
static ngx_conf_post_t  ngx_http_glm_prompt_post =
    { ngx_http_glm_check_prompt };


static ngx_conf_enum_t  ngx_http_glm_suffix_masks[] = {
    { ngx_string("mask"), 0 },
    { ngx_string("gmask"), 1 },
    { ngx_null_string, 0 }
};


static ngx_command_t  ngx_http_glm_commands[] = {

    { ngx_string("glm_pass"),
      NGX_HTTP_LOC_CONF|NGX_HTTP_LIF_CONF|NGX_HTTP_LMT_CONF|NGX_CONF_TAKE1,
      ngx_http_glm_pass,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("glm_api"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_1MORE,
      ngx_http_glm_api,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("glm_first_token_timeout"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_msec_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_glm_loc_conf_t, first_token_timeout),
      &ngx_http_glm_positive_post },

    { ngx_string("glm_read_timeout"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_msec_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_glm_loc_conf_t, read_timeout),
      &ngx_http_glm_positive_post },

    { ngx_string("glm_ping_interval"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_msec_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_glm_loc_conf_t, ping_interval),
      NULL },

    { ngx_string("glm_max_prompt"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_size_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_glm_loc_conf_t, max_prompt),
      &ngx_http_glm_prompt_post },

    { ngx_string("glm_max_n"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_num_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_glm_loc_conf_t, max_n),
      &ngx_http_glm_n_post },

    { ngx_string("glm_max_stops"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_num_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_glm_loc_conf_t, max_stops),
      &ngx_http_glm_stops_post },

    { ngx_string("glm_buffer_size"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_size_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_glm_loc_conf_t, buffer_size),
      &ngx_http_glm_buffer_post },

    { ngx_string("glm_chat_template"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_2MORE,
      ngx_http_glm_chat_template,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("glm_suffix_mask"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_enum_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_glm_loc_conf_t, suffix_gmask),
      &ngx_http_glm_suffix_masks },

    { ngx_string("glm_model_alias"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_str_array_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_glm_loc_conf_t, aliases),
      NULL },

    { ngx_string("glm_json_errors"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_FLAG,
      ngx_conf_set_flag_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_glm_loc_conf_t, json_errors),
      NULL },

      ngx_null_command
};


static ngx_http_module_t  ngx_http_glm_module_ctx = {
    ngx_http_glm_add_variables,            /* preconfiguration */
    ngx_http_glm_error_filter_init,        /* postconfiguration */

    ngx_http_glm_create_main_conf,         /* create main configuration */
    NULL,                                  /* init main configuration */

    NULL,                                  /* create server configuration */
    NULL,                                  /* merge server configuration */

    ngx_http_glm_create_loc_conf,          /* create location configuration */
    ngx_http_glm_merge_loc_conf            /* merge location configuration */
};


ngx_module_t  ngx_http_glm_module = {
    NGX_MODULE_V1,
    &ngx_http_glm_module_ctx,              /* module context */
    ngx_http_glm_commands,                 /* module directives */
    NGX_HTTP_MODULE,                       /* module type */
    NULL,                                  /* init master */
    ngx_http_glm_init_module,              /* init module */
    ngx_http_glm_init_process,             /* init process */
    NULL,                                  /* init thread */
    NULL,                                  /* exit thread */
    ngx_http_glm_exit_process,             /* exit process */
    NULL,                                  /* exit master */
    NGX_MODULE_V1_PADDING
};


static ngx_http_variable_t  ngx_http_glm_vars[] = {

    { ngx_string("glm_model"), NULL, ngx_http_glm_string_variable,
      offsetof(ngx_http_glm_ctx_t, model), NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("glm_request_id"), NULL, ngx_http_glm_string_variable,
      offsetof(ngx_http_glm_ctx_t, request_id), NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("glm_prompt_tokens"), NULL, ngx_http_glm_number_variable,
      offsetof(ngx_http_glm_ctx_t, prompt_tokens),
      NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("glm_completion_tokens"), NULL, ngx_http_glm_number_variable,
      offsetof(ngx_http_glm_ctx_t, completion_tokens),
      NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("glm_finish_reason"), NULL, ngx_http_glm_finish_variable,
      0, NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("glm_queue_time"), NULL, ngx_http_glm_time_variable,
      offsetof(ngx_http_glm_ctx_t, queue_us), NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("glm_ttft"), NULL, ngx_http_glm_time_variable,
      offsetof(ngx_http_glm_ctx_t, ttft_us), NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("glm_tpot"), NULL, ngx_http_glm_tpot_variable,
      0, NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("glm_engine"), NULL, ngx_http_glm_string_variable,
      offsetof(ngx_http_glm_ctx_t, engine), NGX_HTTP_VAR_NOCACHEABLE, 0 },

      ngx_http_null_variable
};


static char *
ngx_http_glm_pass(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_glm_loc_conf_t *glcf = conf;

    size_t                     len;
    ngx_str_t                 *value;
    ngx_uint_t                 i;
    ngx_http_glm_peer_t       *peer, **peers;
    ngx_http_core_loc_conf_t  *clcf;
    ngx_http_glm_main_conf_t  *gmcf;

    if (glcf->peer) {
        return "is duplicate";
    }

    value = cf->args->elts;

    if (value[1].len < sizeof("unix:/") - 1
        || ngx_strncmp(value[1].data, "unix:/", sizeof("unix:/") - 1) != 0)
    {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "invalid engine \"%V\", it must be "
                           "\"unix:/path\"", &value[1]);
        return NGX_CONF_ERROR;
    }

    len = value[1].len - (sizeof("unix:") - 1);

    if (len >= sizeof(peer->sockaddr.sun_path)) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "too long path in \"%V\", it may have %uz bytes",
                           &value[1], sizeof(peer->sockaddr.sun_path) - 1);
        return NGX_CONF_ERROR;
    }

    clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);
    clcf->handler = ngx_http_glm_handler;

    gmcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_glm_module);
    peers = gmcf->peers.elts;

    for (i = 0; i < gmcf->peers.nelts; i++) {
        if (peers[i]->name.len == value[1].len
            && ngx_strncmp(peers[i]->name.data, value[1].data, value[1].len)
               == 0)
        {
            glcf->peer = peers[i];
            return NGX_CONF_OK;
        }
    }

    peer = ngx_pcalloc(cf->pool, sizeof(ngx_http_glm_peer_t));
    peers = ngx_array_push(&gmcf->peers);
    if (peer == NULL || peers == NULL) {
        return NGX_CONF_ERROR;
    }

    peer->name = value[1];
    peer->sockaddr.sun_family = AF_UNIX;
    ngx_memcpy(peer->sockaddr.sun_path,
               value[1].data + sizeof("unix:") - 1, len);

    *peers = peer;
    glcf->peer = peer;

    return NGX_CONF_OK;
}


static char *
ngx_http_glm_api(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_glm_loc_conf_t *glcf = conf;

    ngx_str_t                 *value;
    ngx_uint_t                 i, bits;
    const ngx_http_glm_api_t  *api;

    if (glcf->api) {
        return "is duplicate";
    }

    value = cf->args->elts;

    for (i = 1; i < cf->args->nelts; i++) {

        bits = 0;

        for (api = ngx_http_glm_apis; api->name.len; api++) {
            if (api->name.len == value[i].len
                && ngx_strncmp(api->name.data, value[i].data, value[i].len)
                   == 0)
            {
                bits |= api->bit;
            }
        }

        if (bits == 0) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "unknown API \"%V\"", &value[i]);
            return NGX_CONF_ERROR;
        }

        if (glcf->api & bits) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "duplicate API \"%V\"", &value[i]);
            return NGX_CONF_ERROR;
        }

        glcf->api |= bits;
    }

    return NGX_CONF_OK;
}


static char *
ngx_http_glm_positive(ngx_conf_t *cf, void *post, void *data)
{
    ngx_msec_t *p = data;

    return *p ? NGX_CONF_OK : "must be positive";
}


static char *
ngx_http_glm_check_n(ngx_conf_t *cf, void *post, void *data)
{
    ngx_int_t *p = data;

    return *p >= 1 && *p <= 1024 ? NGX_CONF_OK : "must be from 1 to 1024";
}


static char *
ngx_http_glm_check_stops(ngx_conf_t *cf, void *post, void *data)
{
    ngx_int_t *p = data;

    return *p >= 0 && *p <= 1024 ? NGX_CONF_OK : "must be from 0 to 1024";
}


static char *
ngx_http_glm_check_buffer(ngx_conf_t *cf, void *post, void *data)
{
    size_t *p = data;

    /* a window below a few records would starve streams */

    return *p >= 1024 && *p <= 64 * 1024 * 1024
           ? NGX_CONF_OK : "must be from 1k to 64m";
}


static char *
ngx_http_glm_check_prompt(ngx_conf_t *cf, void *post, void *data)
{
    size_t *p = data;

    return *p >= 1 && *p <= 1024 * 1024 * 1024
           ? NGX_CONF_OK : "must be from 1 to 1g";
}


static void *
ngx_http_glm_create_main_conf(ngx_conf_t *cf)
{
    ngx_http_glm_main_conf_t  *gmcf;

    gmcf = ngx_pcalloc(cf->pool, sizeof(ngx_http_glm_main_conf_t));
    if (gmcf == NULL) {
        return NULL;
    }

    if (ngx_array_init(&gmcf->peers, cf->pool, 1,
                       sizeof(ngx_http_glm_peer_t *))
        != NGX_OK)
    {
        return NULL;
    }

    return gmcf;
}


static void *
ngx_http_glm_create_loc_conf(ngx_conf_t *cf)
{
    ngx_http_glm_loc_conf_t  *glcf;

    glcf = ngx_pcalloc(cf->pool, sizeof(ngx_http_glm_loc_conf_t));
    if (glcf == NULL) {
        return NULL;
    }

    /*
     * set by ngx_pcalloc():
     *
     *     glcf->peer = NULL;
     *     glcf->api = 0;
     *     glcf->chat = NULL;
     */

    glcf->first_token_timeout = NGX_CONF_UNSET_MSEC;
    glcf->read_timeout = NGX_CONF_UNSET_MSEC;
    glcf->ping_interval = NGX_CONF_UNSET_MSEC;
    glcf->max_prompt = NGX_CONF_UNSET_SIZE;
    glcf->max_n = NGX_CONF_UNSET;
    glcf->max_stops = NGX_CONF_UNSET;
    glcf->buffer_size = NGX_CONF_UNSET_SIZE;
    glcf->aliases = NGX_CONF_UNSET_PTR;
    glcf->json_errors = NGX_CONF_UNSET;
    glcf->suffix_gmask = NGX_CONF_UNSET_UINT;

    return glcf;
}


static char *
ngx_http_glm_merge_loc_conf(ngx_conf_t *cf, void *parent, void *child)
{
    ngx_http_glm_loc_conf_t *prev = parent;
    ngx_http_glm_loc_conf_t *conf = child;

    ngx_http_core_loc_conf_t  *clcf;

    if (conf->api == 0) {
        conf->api = prev->api ? prev->api : NGX_HTTP_GLM_API_DEFAULT;
    }

    ngx_conf_merge_msec_value(conf->first_token_timeout,
                              prev->first_token_timeout, 60000);
    ngx_conf_merge_msec_value(conf->read_timeout, prev->read_timeout, 60000);
    ngx_conf_merge_msec_value(conf->ping_interval, prev->ping_interval,
                              15000);
    ngx_conf_merge_size_value(conf->max_prompt, prev->max_prompt,
                              256 * 1024);
    ngx_conf_merge_value(conf->max_n, prev->max_n, 128);
    ngx_conf_merge_value(conf->max_stops, prev->max_stops, 16);
    ngx_conf_merge_size_value(conf->buffer_size, prev->buffer_size,
                              16 * 1024);
    ngx_conf_merge_ptr_value(conf->aliases, prev->aliases, NULL);
    ngx_conf_merge_value(conf->json_errors, prev->json_errors, 1);
    ngx_conf_merge_uint_value(conf->suffix_gmask, prev->suffix_gmask, 0);

    if (conf->chat == NULL) {
        conf->chat = prev->chat ? prev->chat : ngx_http_glm_chat_default(cf);
        if (conf->chat == NULL) {
            return NGX_CONF_ERROR;
        }
    }

    clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);

    if ((clcf->noname || clcf->lmt_excpt) && conf->peer == NULL) {
        conf->peer = prev->peer;
    }

    if (clcf->lmt_excpt && clcf->handler == NULL && conf->peer) {
        clcf->handler = ngx_http_glm_handler;
    }

    return NGX_CONF_OK;
}


static ngx_int_t
ngx_http_glm_add_variables(ngx_conf_t *cf)
{
    ngx_http_variable_t  *var, *v;

    for (v = ngx_http_glm_vars; v->name.len; v++) {
        var = ngx_http_add_variable(cf, &v->name, v->flags);
        if (var == NULL) {
            return NGX_ERROR;
        }

        var->get_handler = v->get_handler;
        var->data = v->data;
    }

    return NGX_OK;
}


/* Nothing: "-" in a log. */

static ngx_int_t
ngx_http_glm_value(ngx_http_variable_value_t *v, u_char *p, size_t len)
{
    v->data = p;
    v->len = len;
    v->valid = len ? 1 : 0;
    v->no_cacheable = 0;
    v->not_found = len ? 0 : 1;

    return NGX_OK;
}


static ngx_int_t
ngx_http_glm_string_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    ngx_str_t           *s;
    ngx_http_glm_ctx_t  *ctx;

    ctx = ngx_http_get_module_ctx(r, ngx_http_glm_module);
    s = ctx ? (ngx_str_t *) ((char *) ctx + data) : NULL;

    return ngx_http_glm_value(v, s ? s->data : NULL, s ? s->len : 0);
}


static ngx_int_t
ngx_http_glm_number_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    u_char              *p;
    ngx_http_glm_ctx_t  *ctx;

    ctx = ngx_http_get_module_ctx(r, ngx_http_glm_module);

    if (ctx == NULL || !ctx->has_usage) {
        return ngx_http_glm_value(v, NULL, 0);
    }

    p = ngx_pnalloc(r->pool, NGX_INT64_LEN);
    if (p == NULL) {
        return NGX_ERROR;
    }

    return ngx_http_glm_value(v, p, ngx_sprintf(p, "%uL", *(uint64_t *)
                                                ((char *) ctx + data))
                                    - p);
}


static ngx_int_t
ngx_http_glm_time_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    ngx_http_glm_ctx_t  *ctx;

    ctx = ngx_http_get_module_ctx(r, ngx_http_glm_module);

    return ngx_http_glm_seconds(r, v, ctx
                                      ? *(uint64_t *) ((char *) ctx + data)
                                      : 0);
}


static ngx_int_t
ngx_http_glm_tpot_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    ngx_http_glm_ctx_t  *ctx;

    ctx = ngx_http_get_module_ctx(r, ngx_http_glm_module);

    return ngx_http_glm_seconds(r, v, ctx ? ngx_http_glm_tpot(ctx) : 0);
}


static ngx_int_t
ngx_http_glm_seconds(ngx_http_request_t *r, ngx_http_variable_value_t *v,
    uint64_t us)
{
    u_char  *p;

    if (us == 0) {
        return ngx_http_glm_value(v, NULL, 0);
    }

    p = ngx_pnalloc(r->pool, NGX_INT64_LEN + 8);
    if (p == NULL) {
        return NGX_ERROR;
    }

    return ngx_http_glm_value(v, p, ngx_sprintf(p, "%uL.%06uL", us / 1000000,
                                                us % 1000000)
                                    - p);
}


static ngx_int_t
ngx_http_glm_finish_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    const char          *s;
    ngx_http_glm_ctx_t  *ctx;

    ctx = ngx_http_get_module_ctx(r, ngx_http_glm_module);

    s = ctx ? ngx_http_glm_finish_reason(ctx) : NULL;

    return ngx_http_glm_value(v, (u_char *) s, s ? ngx_strlen(s) : 0);
}


static ngx_int_t
ngx_http_glm_init_module(ngx_cycle_t *cycle)
{
    /* before fork; a second call does nothing */

    json_object_seed(0);

    return NGX_OK;
}


static ngx_int_t
ngx_http_glm_init_process(ngx_cycle_t *cycle)
{
    ngx_uint_t                 i;
    ngx_http_glm_peer_t      **peers;
    ngx_http_glm_main_conf_t  *gmcf;

    if (ngx_process != NGX_PROCESS_WORKER && ngx_process != NGX_PROCESS_SINGLE)
    {
        return NGX_OK;
    }

    gmcf = ngx_http_cycle_get_module_main_conf(cycle, ngx_http_glm_module);
    if (gmcf == NULL) {
        return NGX_OK;    /* no http block */
    }

    peers = gmcf->peers.elts;

    for (i = 0; i < gmcf->peers.nelts; i++) {
        (void) ngx_http_glm_attach(peers[i], cycle->log);
    }

    return NGX_OK;
}


static void
ngx_http_glm_exit_process(ngx_cycle_t *cycle)
{
    ngx_uint_t                 i;
    ngx_http_glm_peer_t      **peers;
    ngx_http_glm_main_conf_t  *gmcf;

    if (ngx_process != NGX_PROCESS_WORKER && ngx_process != NGX_PROCESS_SINGLE)
    {
        return;
    }

    gmcf = ngx_http_cycle_get_module_main_conf(cycle, ngx_http_glm_module);
    if (gmcf == NULL) {
        return;
    }

    peers = gmcf->peers.elts;

    for (i = 0; i < gmcf->peers.nelts; i++) {
        ngx_http_glm_attach_exit(peers[i]);
    }
}
