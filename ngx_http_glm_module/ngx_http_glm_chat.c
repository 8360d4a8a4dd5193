
#include "ngx_http_glm_module.h"


static ngx_int_t ngx_http_glm_chat_compile(ngx_conf_t *cf,
    ngx_http_glm_chat_t *chat, ngx_str_t *s);
static ngx_int_t ngx_http_glm_chat_part(ngx_conf_t *cf,
    ngx_http_glm_chat_t *chat, ngx_uint_t what, u_char *p, u_char *last);
static ngx_uint_t ngx_http_glm_chat_variable(u_char **p, u_char *last);
static char *ngx_http_glm_chat_stops(ngx_conf_t *cf,
    ngx_http_glm_chat_t *chat, ngx_str_t *value, ngx_uint_t n);
static ngx_int_t ngx_http_glm_chat_role(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v, ngx_uint_t i,
    ngx_http_glm_msg_t *m);
static ngx_int_t ngx_http_glm_chat_content(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v, ngx_uint_t i,
    ngx_http_glm_msg_t *m);
static ngx_int_t ngx_http_glm_chat_parts(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v, ngx_uint_t i,
    ngx_http_glm_msg_t *m);
static ngx_int_t ngx_http_glm_chat_fields(ngx_http_glm_ctx_t *ctx);
static ngx_int_t ngx_http_glm_chat_prompt(ngx_http_glm_ctx_t *ctx,
    ngx_http_glm_chat_t *chat);
static u_char *ngx_http_glm_chat_render(ngx_http_glm_ctx_t *ctx,
    ngx_http_glm_chat_t *chat, u_char *p, size_t *size);
static ngx_int_t ngx_http_glm_chat_add_stops(ngx_http_glm_ctx_t *ctx,
    ngx_http_glm_chat_t *chat);


/* glm_chat_template message final [stop=string ...] */

char *
ngx_http_glm_chat_template(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_glm_loc_conf_t *glcf = conf;

    ngx_str_t            *value;
    ngx_uint_t            i;
    ngx_http_glm_chat_t  *chat;

    if (glcf->chat) {
        return "is duplicate";
    }

    chat = ngx_pcalloc(cf->pool, sizeof(ngx_http_glm_chat_t));
    if (chat == NULL) {
        return NGX_CONF_ERROR;
    }

    value = cf->args->elts;

    for (i = 1; i < cf->args->nelts; i++) {
        if (ngx_http_glm_utf8(value[i].data, value[i].len, NULL) != NGX_OK) {
            return "must be valid UTF-8";
        }
    }

    if (ngx_http_glm_chat_compile(cf, chat, &value[1]) != NGX_OK) {
        return NGX_CONF_ERROR;
    }

    if (chat->content == 0) {
        return "must have $content in its first part";
    }

    if (ngx_strlchr(value[2].data, value[2].data + value[2].len, '$')) {
        return "must not have variables in its final part";
    }

    chat->final = value[2];
    glcf->chat = chat;

    return ngx_http_glm_chat_stops(cf, chat, &value[3], cf->args->nelts - 3);
}


static char *
ngx_http_glm_chat_stops(ngx_conf_t *cf, ngx_http_glm_chat_t *chat,
    ngx_str_t *value, ngx_uint_t n)
{
    ngx_uint_t  i;

    chat->stops = ngx_palloc(cf->pool, (n + 1) * sizeof(ngx_str_t));
    if (chat->stops == NULL) {
        return NGX_CONF_ERROR;
    }

    for (i = 0; i < n; i++) {
        if (value[i].len <= sizeof("stop=") - 1
            || ngx_strncmp(value[i].data, "stop=", sizeof("stop=") - 1) != 0)
        {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "invalid parameter \"%V\"", &value[i]);
            return NGX_CONF_ERROR;
        }

        chat->stops[i].data = value[i].data + sizeof("stop=") - 1;
        chat->stops[i].len = value[i].len - (sizeof("stop=") - 1);
    }

    chat->nstops = n;

    return NGX_CONF_OK;
}


/* What holds without the directive. */

ngx_http_glm_chat_t *
ngx_http_glm_chat_default(ngx_conf_t *cf)
{
    ngx_http_glm_chat_t       *chat;
    ngx_http_glm_main_conf_t  *gmcf;

    static ngx_str_t  message = ngx_string("$role: $content\n");
    static ngx_str_t  final = ngx_string("assistant:");
    static ngx_str_t  stop = ngx_string("\nuser:");

    gmcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_glm_module);

    if (gmcf->chat) {
        return gmcf->chat;
    }

    chat = ngx_pcalloc(cf->pool, sizeof(ngx_http_glm_chat_t));
    if (chat == NULL) {
        return NULL;
    }

    if (ngx_http_glm_chat_compile(cf, chat, &message) != NGX_OK) {
        return NULL;
    }

    chat->final = final;
    chat->stops = &stop;
    chat->nstops = 1;

    gmcf->chat = chat;

    return chat;
}


static ngx_int_t
ngx_http_glm_chat_compile(ngx_conf_t *cf, ngx_http_glm_chat_t *chat,
    ngx_str_t *s)
{
    u_char      *p, *last, *text, *name;
    ngx_uint_t   what;

    if (ngx_array_init(&chat->parts, cf->pool, 4,
                       sizeof(ngx_http_glm_chat_part_t))
        != NGX_OK)
    {
        return NGX_ERROR;
    }

    p = s->data;
    last = p + s->len;
    text = p;

    while (p < last) {

        if (*p != '$') {
            p++;
            continue;
        }

        name = p;
        what = ngx_http_glm_chat_variable(&p, last);

        if (what == NGX_HTTP_GLM_CHAT_TEXT) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "unknown variable in \"%V\", there are $role "
                               "and $content", s);
            return NGX_ERROR;
        }

        if (ngx_http_glm_chat_part(cf, chat, NGX_HTTP_GLM_CHAT_TEXT, text,
                                   name)
            != NGX_OK
            || ngx_http_glm_chat_part(cf, chat, what, name, p) != NGX_OK)
        {
            return NGX_ERROR;
        }

        text = p;

        if (what == NGX_HTTP_GLM_CHAT_CONTENT) {
            chat->content = chat->parts.nelts;
        }
    }

    return ngx_http_glm_chat_part(cf, chat, NGX_HTTP_GLM_CHAT_TEXT, text,
                                  last);
}


/* $role, ${role}, $content, ${content}; *p goes behind it. */

static ngx_uint_t
ngx_http_glm_chat_variable(u_char **p, u_char *last)
{
    u_char      *s;
    size_t       len;
    ngx_uint_t   brace;

    s = *p + 1;
    brace = s < last && *s == '{';

    if (brace) {
        s++;
    }

    for (len = 0; s + len < last; len++) {
        if (!((s[len] >= 'a' && s[len] <= 'z') || s[len] == '_')) {
            break;
        }
    }

    if (brace && (s + len == last || s[len] != '}')) {
        return NGX_HTTP_GLM_CHAT_TEXT;
    }

    *p = s + len + brace;

    if (len == 4 && ngx_strncmp(s, "role", 4) == 0) {
        return NGX_HTTP_GLM_CHAT_ROLE;
    }

    if (len == 7 && ngx_strncmp(s, "content", 7) == 0) {
        return NGX_HTTP_GLM_CHAT_CONTENT;
    }

    return NGX_HTTP_GLM_CHAT_TEXT;
}


static ngx_int_t
ngx_http_glm_chat_part(ngx_conf_t *cf, ngx_http_glm_chat_t *chat,
    ngx_uint_t what, u_char *p, u_char *last)
{
    ngx_http_glm_chat_part_t  *part;

    if (p == last) {
        return NGX_OK;
    }

    part = ngx_array_push(&chat->parts);
    if (part == NULL) {
        return NGX_ERROR;
    }

    part->what = what;
    part->text.data = p;
    part->text.len = last - p;

    return NGX_OK;
}


/* The template as clients know it: Jinja. */

void
ngx_http_glm_chat_jinja(ngx_http_glm_out_t *out, ngx_http_glm_chat_t *chat)
{
    ngx_uint_t                 i;
    ngx_http_glm_chat_part_t  *part;

    ngx_http_glm_lit(out, "\"{% for message in messages %}");

    part = chat->parts.elts;

    for (i = 0; i < chat->parts.nelts; i++) {

        switch (part[i].what) {

        case NGX_HTTP_GLM_CHAT_ROLE:
            ngx_http_glm_lit(out, "{{ message.role }}");
            break;

        case NGX_HTTP_GLM_CHAT_CONTENT:
            ngx_http_glm_lit(out, "{{ message.content }}");
            break;

        default:
            ngx_http_glm_put_escaped(out, part[i].text.data,
                                     part[i].text.len);
        }
    }

    ngx_http_glm_lit(out, "{% endfor %}{% if add_generation_prompt %}");
    ngx_http_glm_put_escaped(out, chat->final.data, chat->final.len);
    ngx_http_glm_lit(out, "{% endif %}\"");
}


ngx_int_t
ngx_http_glm_set_messages(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v)
{
    json_t                 *e;
    ngx_uint_t              i, n;
    ngx_http_glm_params_t  *p;

    p = &ctx->params;

    if (!json_is_array(v)) {
        return ngx_http_glm_field_type(ctx, f, "a list");
    }

    n = json_array_size(v);

    if (n == 0) {
        return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL, f->name,
                                  "messages must not be empty.");
    }

    p->messages = ngx_pcalloc(ctx->request->pool,
                              n * sizeof(ngx_http_glm_msg_t));
    if (p->messages == NULL) {
        return NGX_ERROR;
    }

    for (i = 0; i < n; i++) {
        e = json_array_get(v, i);

        if (!json_is_object(e)) {
            return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL,
                                      f->name, "messages[%ui] must be an "
                                      "object.", i);
        }

        if (ngx_http_glm_chat_role(ctx, f, json_object_get(e, "role"), i,
                                   &p->messages[i])
            != NGX_OK
            || ngx_http_glm_chat_content(ctx, f,
                                         json_object_get(e, "content"), i,
                                         &p->messages[i])
               != NGX_OK)
        {
            return NGX_ERROR;
        }
    }

    p->nmessages = n;

    return NGX_OK;
}


static ngx_int_t
ngx_http_glm_chat_role(ngx_http_glm_ctx_t *ctx, const ngx_http_glm_field_t *f,
    json_t *v, ngx_uint_t i, ngx_http_glm_msg_t *m)
{
    ngx_str_t  *role;

    static ngx_str_t  roles[] = {
        ngx_string("user"),
        ngx_string("assistant"),
        ngx_string("system"),
        ngx_string("developer"),
        ngx_string("tool"),
        ngx_null_string
    };

    for (role = roles; role->len; role++) {
        if (ngx_http_glm_is(v, (char *) role->data)) {
            m->role = *role;
            m->assistant = role == &roles[1];
            return NGX_OK;
        }
    }

    return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL, f->name,
                              "messages[%ui].role must be \"system\", "
                              "\"developer\", \"user\", \"assistant\" or "
                              "\"tool\".", i);
}


static ngx_int_t
ngx_http_glm_chat_content(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v, ngx_uint_t i,
    ngx_http_glm_msg_t *m)
{
    if (json_is_string(v)) {
        return ngx_http_glm_get_string(ctx, f, v, &m->content);
    }

    if (json_is_array(v)) {
        return ngx_http_glm_chat_parts(ctx, f, v, i, m);
    }

    return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL, f->name,
                              "messages[%ui].content must be a string or a "
                              "list of parts of type \"text\".", i);
}


/* Parts are lines. */

static ngx_int_t
ngx_http_glm_chat_parts(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v, ngx_uint_t i,
    ngx_http_glm_msg_t *m)
{
    size_t      size;
    u_char     *p;
    json_t     *e, *type;
    ngx_str_t   s;
    ngx_uint_t  k, n;

    size = 0;
    n = json_array_size(v);

    for (k = 0; k < n; k++) {
        e = json_array_get(v, k);
        type = json_object_get(e, "type");

        if (!ngx_http_glm_is(type, "text")
            || !json_is_string(json_object_get(e, "text")))
        {
            return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL,
                                      f->name, "messages[%ui].content[%ui] "
                                      "must have the type \"text\" and a "
                                      "text.", i, k);
        }

        if (ngx_http_glm_get_string(ctx, f, json_object_get(e, "text"), &s)
            != NGX_OK)
        {
            return NGX_ERROR;
        }

        size += s.len + 1;
    }

    p = ngx_pnalloc(ctx->request->pool, size + 1);
    if (p == NULL) {
        return NGX_ERROR;
    }

    m->content.data = p;

    for (k = 0; k < n; k++) {
        e = json_object_get(json_array_get(v, k), "text");

        if (k) {
            *p++ = '\n';
        }

        p = ngx_cpymem(p, json_string_value(e), json_string_length(e));
    }

    m->content.len = p - m->content.data;

    return NGX_OK;
}


/* tools and functions: there are none to call. */

ngx_int_t
ngx_http_glm_set_tools(ngx_http_glm_ctx_t *ctx, const ngx_http_glm_field_t *f,
    json_t *v)
{
    if (!json_is_array(v)) {
        return ngx_http_glm_field_type(ctx, f, "a list");
    }

    if (json_array_size(v)) {
        ctx->params.tools = f->name;
    }

    return NGX_OK;
}


ngx_int_t
ngx_http_glm_set_tool_choice(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v)
{
    if (ngx_http_glm_is(v, "none")) {
        ctx->params.no_tools = 1;
        return NGX_OK;
    }

    return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL, f->name,
                              "%s must be \"none\": the model calls no "
                              "tools.", f->name);
}


/* Messages to the one prompt, and what only a chat has. */

ngx_int_t
ngx_http_glm_chat_together(ngx_http_glm_ctx_t *ctx)
{
    ngx_http_glm_chat_t      *chat;
    ngx_http_glm_params_t    *p;
    ngx_http_glm_loc_conf_t  *glcf;

    p = &ctx->params;
    glcf = ngx_http_get_module_loc_conf(ctx->request, ngx_http_glm_module);
    chat = glcf->chat;

    if (p->nmessages == 0) {
        return NGX_OK;    /* /tokenize of a prompt; else it is required */
    }

    if (p->has_text) {
        return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL, "messages",
                                  "There may be a prompt or messages, "
                                  "not both.");
    }

    if (p->continue_final && p->add_generation == 1) {
        return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL,
                                  "continue_final_message",
                                  "continue_final_message excludes "
                                  "add_generation_prompt.");
    }

    if (ngx_http_glm_chat_prompt(ctx, chat) != NGX_OK) {
        return NGX_ERROR;
    }

    if (ctx->api->bit != NGX_HTTP_GLM_API_CHAT) {
        return NGX_OK;
    }

    if (ngx_http_glm_chat_fields(ctx) != NGX_OK) {
        return NGX_ERROR;
    }

    return ngx_http_glm_chat_add_stops(ctx, chat);
}


static ngx_int_t
ngx_http_glm_chat_fields(ngx_http_glm_ctx_t *ctx)
{
    ngx_http_glm_params_t  *p;

    p = &ctx->params;

    if (p->tools && !p->no_tools) {
        return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL, p->tools,
                                  "The model calls no tools: %s must be "
                                  "empty, or tool_choice \"none\".",
                                  p->tools);
    }

    if (p->top_logprobs > 0 && !p->chat_logprobs) {
        return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL,
                                  "top_logprobs",
                                  "top_logprobs needs logprobs: true.");
    }

    if (p->chat_logprobs) {
        p->logprobs = ngx_max(p->top_logprobs, 0);
    }

    if (p->max_completion_tokens >= 0) {
        p->max_tokens = p->max_completion_tokens;
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_glm_chat_prompt(ngx_http_glm_ctx_t *ctx, ngx_http_glm_chat_t *chat)
{
    size_t                    size;
    u_char                   *data;
    ngx_http_glm_msg_t       *m;
    ngx_http_glm_params_t    *p;
    ngx_http_glm_loc_conf_t  *glcf;

    p = &ctx->params;
    glcf = ngx_http_get_module_loc_conf(ctx->request, ngx_http_glm_module);

    size = 0;
    (void) ngx_http_glm_chat_render(ctx, chat, NULL, &size);

    if (size > glcf->max_prompt) {
        return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL, "messages",
                                  "The messages have %uz bytes with their "
                                  "template, the limit is %uz.", size,
                                  glcf->max_prompt);
    }

    p->prompts = ngx_pcalloc(ctx->request->pool,
                             sizeof(ngx_http_glm_prompt_t));
    data = ngx_pnalloc(ctx->request->pool, size + 1);
    if (p->prompts == NULL || data == NULL) {
        return NGX_ERROR;
    }

    p->prompts->text.data = data;
    p->prompts->text.len = ngx_http_glm_chat_render(ctx, chat, data, NULL)
                           - data;
    p->nprompts = 1;
    p->has_text = 1;

    /* what people write to each other holds no masks */

    p->parse_masks = 0;

    m = &p->messages[p->nmessages - 1];

    if (p->echo && m->assistant) {
        p->prefix = m->content;
    }

    return NGX_OK;
}


/* Into p, or with size its length only. */

static u_char *
ngx_http_glm_chat_render(ngx_http_glm_ctx_t *ctx, ngx_http_glm_chat_t *chat,
    u_char *p, size_t *size)
{
    ngx_str_t                 *s;
    ngx_uint_t                 i, k, n;
    ngx_http_glm_params_t     *params;
    ngx_http_glm_chat_part_t  *part;

    params = &ctx->params;
    part = chat->parts.elts;

    for (i = 0; i < params->nmessages; i++) {

        n = params->continue_final && i == params->nmessages - 1
            ? chat->content : chat->parts.nelts;

        for (k = 0; k < n; k++) {
            s = part[k].what == NGX_HTTP_GLM_CHAT_ROLE
                ? &params->messages[i].role
                : part[k].what == NGX_HTTP_GLM_CHAT_CONTENT
                ? &params->messages[i].content : &part[k].text;

            if (size) {
                *size += s->len;

            } else {
                p = ngx_cpymem(p, s->data, s->len);
            }
        }
    }

    if (params->continue_final || params->add_generation == 0) {
        return p;
    }

    if (size) {
        *size += chat->final.len;
        return p;
    }

    return ngx_cpymem(p, chat->final.data, chat->final.len);
}


/* The template's stops follow the request's own; a beam search has none. */

static ngx_int_t
ngx_http_glm_chat_add_stops(ngx_http_glm_ctx_t *ctx, ngx_http_glm_chat_t *chat)
{
    ngx_str_t              *stops;
    ngx_uint_t              i;
    ngx_http_glm_params_t  *p;

    p = &ctx->params;

    if (chat->nstops == 0 || p->beams > 1) {
        return NGX_OK;
    }

    stops = ngx_palloc(ctx->request->pool, (p->nstops + chat->nstops)
                                           * sizeof(ngx_str_t));
    if (stops == NULL) {
        return NGX_ERROR;
    }

    for (i = 0; i < p->nstops; i++) {
        stops[i] = p->stops[i];
    }

    for (i = 0; i < chat->nstops; i++) {
        stops[p->nstops + i] = chat->stops[i];
    }

    p->stops = stops;
    p->nstops += chat->nstops;

    return NGX_OK;
}
