
#include "ngx_http_glm_module.h"


typedef struct {
    u_char                *start;
    u_char                *pos;
    u_char                *end;
} ngx_http_glm_message_t;


static const char *ngx_http_glm_submit_param(ngx_http_glm_ctx_t *ctx);
static ngx_int_t ngx_http_glm_submit_call(ngx_http_glm_ctx_t *ctx,
    ngx_http_glm_call_t *call, size_t *size);
static ngx_int_t ngx_http_glm_submit_publish(ngx_http_glm_peer_t *peer);
static void ngx_http_glm_submit_undo(ngx_http_glm_call_t *call);
static ngx_int_t ngx_http_glm_submit_build(ngx_http_glm_ctx_t *ctx,
    ngx_http_glm_call_t *call, ngx_http_glm_message_t *m);
static size_t ngx_http_glm_submit_size(ngx_http_glm_ctx_t *ctx,
    ngx_http_glm_prompt_t *prompt);
static void ngx_http_glm_submit_fixed(ngx_http_glm_ctx_t *ctx,
    ngx_http_glm_call_t *call, ngx_http_glm_message_t *m);
static uint32_t ngx_http_glm_submit_flags(ngx_http_glm_ctx_t *ctx,
    ngx_uint_t op);
static ngx_uint_t ngx_http_glm_submit_echo(ngx_http_glm_ctx_t *ctx);
static void ngx_http_glm_submit_sampling(ngx_http_glm_ctx_t *ctx,
    ngx_http_glm_message_t *m);
static void ngx_http_glm_submit_rules(ngx_http_glm_ctx_t *ctx,
    ngx_http_glm_message_t *m);
static void ngx_http_glm_submit_scored(ngx_http_glm_message_t *m,
    ngx_http_glm_prompt_t *choice, ngx_uint_t n);
static u_char *ngx_http_glm_submit_begin(ngx_http_glm_message_t *m);
static void ngx_http_glm_submit_end(ngx_http_glm_message_t *m, u_char *head,
    uint16_t type);
static void ngx_http_glm_submit_padded(ngx_http_glm_message_t *m,
    const void *p, size_t n);
static void ngx_http_glm_submit_ids(ngx_http_glm_message_t *m, uint16_t type,
    ngx_http_glm_ids_t *ids);
static void ngx_http_glm_submit_strings(ngx_http_glm_message_t *m,
    uint16_t type, ngx_str_t *s, ngx_uint_t n);
static void ngx_http_glm_submit_section(ngx_http_glm_message_t *m,
    uint16_t type, uint16_t flags, const void *p, size_t n);
static ngx_int_t ngx_http_glm_submit_write(ngx_http_glm_peer_t *peer,
    uint64_t id, u_char *p, size_t len);


/*
 * All prompts of a request, or none.  NGX_OK: the calls are live at the engine;
 * NGX_ERROR: ctx->error is set.
 */

ngx_int_t
ngx_http_glm_submit(ngx_http_glm_ctx_t *ctx)
{
    size_t                size;
    ngx_int_t             rc;
    ngx_uint_t            i;
    ngx_http_glm_peer_t  *peer;

    peer = ctx->peer;

    if (ctx->ncalls > peer->nslots - peer->nlive) {
        return ngx_http_glm_error(ctx, NGX_HTTP_SERVICE_UNAVAILABLE,
                                  "server_is_overloaded", NULL,
                                  "Too many requests are running (%uD).",
                                  peer->nslots);
    }

    if (ngx_http_glm_stale(peer)) {
        return ngx_http_glm_error(ctx, NGX_HTTP_SERVICE_UNAVAILABLE,
                                  "engine_unavailable", NULL,
                                  "The engine makes no progress.");
    }

    rc = NGX_OK;
    size = 0;
    ctx->group = (uint64_t) peer->turn + 1;

    for (i = 0; i < ctx->ncalls && rc == NGX_OK; i++) {
        rc = ngx_http_glm_submit_call(ctx, &ctx->calls[i], &size);
    }

    if (rc == NGX_OK) {
        rc = ngx_http_glm_submit_publish(peer);
    }

    if (rc == NGX_OK) {
        ctx->engine = peer->name;
        return NGX_OK;
    }

    glm_ring_abort(&peer->submit);

    while (i--) {
        ngx_http_glm_submit_undo(&ctx->calls[i]);
    }

    if (rc == NGX_AGAIN) {

        if (size > peer->submit.size / 2) {
            return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL,
                                      ngx_http_glm_submit_param(ctx),
                                      "The prompts are too long for the "
                                      "engine together: %uz bytes, %uD at "
                                      "most.", size, peer->submit.size / 2);
        }

        return ngx_http_glm_error(ctx, NGX_HTTP_SERVICE_UNAVAILABLE,
                                  "server_is_overloaded", NULL,
                                  "The engine's queue is full.");
    }

    if (rc == NGX_ERROR) {
        ngx_http_glm_ring_fail(peer, "the submission ring is broken");
        return ngx_http_glm_error_engine(ctx);
    }

    return NGX_ERROR;    /* NGX_DECLINED: the error is set, or no memory */
}


/* What makes a request long. */

static const char *
ngx_http_glm_submit_param(ngx_http_glm_ctx_t *ctx)
{
    return ctx->params.nscored ? "choices" : ngx_http_glm_prompt_param(ctx);
}


/* Into the ring, not yet seen by the engine. */

static ngx_int_t
ngx_http_glm_submit_call(ngx_http_glm_ctx_t *ctx, ngx_http_glm_call_t *call,
    size_t *size)
{
    uint64_t                 id;
    ngx_int_t                rc;
    ngx_http_glm_peer_t     *peer;
    ngx_http_glm_slot_t     *slot;
    ngx_http_glm_message_t   m;

    peer = ctx->peer;

    if (ngx_http_glm_submit_build(ctx, call, &m) != NGX_OK) {
        return NGX_DECLINED;
    }

    slot = &peer->slots[peer->free];

    if (++peer->turn == 0) {
        peer->turn = 1;
    }

    id = (uint64_t) peer->turn << 32 | peer->free;

    rc = ngx_http_glm_submit_write(peer, id, m.start, m.pos - m.start);

    *size += m.pos - m.start;
    (void) ngx_pfree(ctx->request->pool, m.start);

    if (rc != NGX_OK) {
        return rc;
    }

    if (peer->nlive++ == 0) {
        peer->busy = ngx_current_msec;
    }

    peer->free = slot->next;

    slot->id = id;
    slot->call = call;
    slot->type = 0;

    call->id = id;
    call->peer = peer;

    return NGX_OK;
}


/* Shows the records to the engine; one CANCEL a live request still fits. */

static ngx_int_t
ngx_http_glm_submit_publish(ngx_http_glm_peer_t *peer)
{
    int64_t  room;

    room = glm_ring_room(&peer->submit);

    if (room == GLM_RING_BROKEN) {
        return NGX_ERROR;
    }

    /* a pad, too */

    if (room < (int64_t) (peer->nlive + 1) * (int64_t) sizeof(glm_rec_t)) {
        return NGX_AGAIN;
    }

    if (glm_ring_publish(&peer->submit)) {
        ngx_http_glm_ring_bell(peer);
    }

    return NGX_OK;
}


static void
ngx_http_glm_submit_undo(ngx_http_glm_call_t *call)
{
    ngx_http_glm_peer_t  *peer;
    ngx_http_glm_slot_t  *slot;

    peer = call->peer;

    if (peer == NULL) {
        return;    /* the one that failed */
    }

    slot = &peer->slots[(uint32_t) call->id];

    slot->id = 0;
    slot->call = NULL;
    slot->next = peer->free;

    peer->free = slot - peer->slots;
    peer->nlive--;

    call->peer = NULL;
}


static ngx_int_t
ngx_http_glm_submit_build(ngx_http_glm_ctx_t *ctx, ngx_http_glm_call_t *call,
    ngx_http_glm_message_t *m)
{
    size_t                  size;
    ngx_http_glm_params_t  *p;
    ngx_http_glm_prompt_t  *prompt;

    p = &ctx->params;
    prompt = call->prompt;

    size = ngx_http_glm_submit_size(ctx, prompt);

    if (size > ctx->peer->welcome.max_message) {
        return ngx_http_glm_error(ctx, NGX_HTTP_BAD_REQUEST, NULL,
                                  ngx_http_glm_submit_param(ctx),
                                  "The request is too long for the engine: "
                                  "%uz bytes, %uD at most.", size,
                                  ctx->peer->welcome.max_message);
    }

    m->start = ngx_palloc(ctx->request->pool, size);
    if (m->start == NULL) {
        return NGX_ERROR;
    }

    m->pos = m->start;
    m->end = m->start + size;

    ngx_http_glm_submit_fixed(ctx, call, m);

    if (p->has_ids) {
        ngx_http_glm_submit_ids(m, GLM_SEC_IDS, &prompt->ids);

    } else {
        ngx_http_glm_submit_section(m, p->parse_masks ? GLM_SEC_TEXT
                                                      : GLM_SEC_PLAIN,
                                    GLM_SEC_CRITICAL, prompt->text.data,
                                    prompt->text.len);
    }

    if (ctx->api->bit == NGX_HTTP_GLM_API_SCORE) {
        ngx_http_glm_submit_scored(m, p->scored, p->nscored);

    } else if (call->nchoices) {
        ngx_http_glm_submit_sampling(ctx, m);
        ngx_http_glm_submit_rules(ctx, m);
    }

    ngx_http_glm_submit_section(m, GLM_SEC_USER, 0, ctx->request_id.data,
                                ctx->request_id.len);

    return NGX_OK;
}


static size_t
ngx_http_glm_submit_size(ngx_http_glm_ctx_t *ctx,
    ngx_http_glm_prompt_t *prompt)
{
    size_t                  size;
    ngx_uint_t              i;
    ngx_http_glm_params_t  *p;

    p = &ctx->params;

    size = sizeof(glm_msg_submit_t) + sizeof(glm_sec_sampling_t)
           + sizeof(glm_sec_repeat_t)
           + 16 * (sizeof(glm_sec_t) + GLM_WIRE_ALIGN)
           + prompt->text.len
           + (prompt->ids.n + p->stop_ids.n + p->allow.n + p->score_ids.n)
             * sizeof(int32_t)
           + p->nbias * sizeof(glm_bias_t)
           + p->suffix.len
           + ctx->request_id.len;

    for (i = 0; i < p->nscored; i++) {
        size += sizeof(glm_choice_t) + ngx_align(p->scored[i].text.len, 4)
                + p->scored[i].ids.n * sizeof(int32_t);
    }

    for (i = 0; i < p->nstops; i++) {
        size += sizeof(glm_str_t) + ngx_align(p->stops[i].len, 4);
    }

    for (i = 0; i < p->nbad; i++) {
        size += sizeof(glm_str_t) + ngx_align(p->bad[i].len, 4);
    }

    return size;
}


static void
ngx_http_glm_submit_fixed(ngx_http_glm_ctx_t *ctx, ngx_http_glm_call_t *call,
    ngx_http_glm_message_t *m)
{
    glm_msg_submit_t          s;
    ngx_http_glm_params_t    *p;
    ngx_http_glm_loc_conf_t  *glcf;

    p = &ctx->params;
    glcf = ngx_http_get_module_loc_conf(ctx->request, ngx_http_glm_module);

    ngx_memzero(&s, sizeof(glm_msg_submit_t));

    s.size = sizeof(glm_msg_submit_t);
    s.mode = p->mode;
    s.n = p->n;
    s.max_tokens = p->max_tokens;
    s.deadline = (uint64_t) glcf->first_token_timeout * 1000;

    s.priority = p->priority;
    s.truncate = p->truncate;

    if (p->best_of > p->n) {
        s.best_of = p->best_of;
    }

    if (ctx->ncalls > 1) {
        s.group = ctx->group;
        s.group_index = call - ctx->calls;
        s.group_count = ctx->ncalls;
    }

    /* a plain answer is collected, max_tokens bounds it */

    s.window = ctx->stream ? ngx_max(glcf->buffer_size / ctx->ncalls,
                                     NGX_HTTP_GLM_MIN_WINDOW)
                           : NGX_HTTP_GLM_MAX_ASSEMBLY;
    call->share = s.window;
    call->window = s.window;

    switch (ctx->api->bit) {

    case NGX_HTTP_GLM_API_INFO:
    case NGX_HTTP_GLM_API_TOKENIZE:
        s.op = GLM_SUBMIT_TOKENIZE;
        break;

    case NGX_HTTP_GLM_API_DETOKENIZE:
        s.op = GLM_SUBMIT_DETOKENIZE;
        break;

    case NGX_HTTP_GLM_API_INFILL:
        s.op = GLM_SUBMIT_INFILL;
        break;

    case NGX_HTTP_GLM_API_SCORE:
        s.op = GLM_SUBMIT_SCORE;
        break;

    default:
        s.op = GLM_SUBMIT_GENERATE;
        call->echo = ngx_http_glm_submit_echo(ctx);
    }

    s.flags = ngx_http_glm_submit_flags(ctx, s.op);

    m->pos = ngx_cpymem(m->pos, &s, sizeof(glm_msg_submit_t));
}


static uint32_t
ngx_http_glm_submit_flags(ngx_http_glm_ctx_t *ctx, ngx_uint_t op)
{
    uint32_t                  flags;
    ngx_http_glm_params_t    *p;
    ngx_http_glm_loc_conf_t  *glcf;

    p = &ctx->params;
    glcf = ngx_http_get_module_loc_conf(ctx->request, ngx_http_glm_module);

    if (op == GLM_SUBMIT_DETOKENIZE) {
        return 0;
    }

    flags = p->add_special ? GLM_F_ADD_SPECIAL : 0;

    if (op == GLM_SUBMIT_TOKENIZE) {
        flags |= p->return_token_strs ? GLM_F_TOKEN_STRS : 0;

        /* messages are plain */

        return flags | (p->parse_masks ? GLM_F_EOS_TEXT : 0);
    }

    if (op == GLM_SUBMIT_SCORE ? p->gmask
                               : p->suffix.len && glcf->suffix_gmask)
    {
        flags |= GLM_F_GMASK;
    }

    flags |= p->ignore_eos ? GLM_F_IGNORE_EOS : 0;
    flags |= p->include_stop ? GLM_F_INCLUDE_STOP : 0;
    flags |= p->return_token_ids && op == GLM_SUBMIT_GENERATE
             ? GLM_F_PROMPT_IDS : 0;
    flags |= p->skip_special ? 0 : GLM_F_SPECIAL_TEXT;
    flags |= p->truncate_right ? GLM_F_TRUNCATE_RIGHT : 0;

    return flags | (ngx_http_glm_submit_echo(ctx) ? GLM_F_ECHO : 0);
}


/* The prompt's text comes back: a completion, where chat has its own echo. */

static ngx_uint_t
ngx_http_glm_submit_echo(ngx_http_glm_ctx_t *ctx)
{
    return ctx->params.echo
           && ctx->api->bit == NGX_HTTP_GLM_API_COMPLETIONS;
}


static void
ngx_http_glm_submit_sampling(ngx_http_glm_ctx_t *ctx,
    ngx_http_glm_message_t *m)
{
    glm_sec_sampling_t      s;
    ngx_http_glm_params_t  *p;

    p = &ctx->params;

    ngx_memzero(&s, sizeof(glm_sec_sampling_t));

    s.size = sizeof(glm_sec_sampling_t);
    s.flags = p->has_seed ? GLM_SAMPLING_SEED : 0;
    s.seed = p->has_seed ? (uint64_t) p->seed : 0;
    s.temperature = p->temperature;
    s.top_p = p->top_p;
    s.min_p = p->min_p;
    s.top_k = p->top_k > 0 ? p->top_k : 0;
    s.presence = p->presence;
    s.frequency = p->frequency;
    s.repetition = p->repetition;
    s.logprobs = p->logprobs;
    s.prompt_logprobs = p->prompt_logprobs;
    s.min_tokens = p->min_tokens;
    s.beams = p->beams;
    s.length_penalty = p->length_penalty;
    s.no_repeat_ngram = p->no_repeat_ngram;

    if (ngx_http_glm_submit_echo(ctx)) {
        s.prompt_logprobs = ngx_max(s.prompt_logprobs, s.logprobs);
    }

    /* a stream sends an id when its text is sent: offsets tell, they come
       with logprobs */

    if (s.logprobs < 0 && ctx->stream && p->return_token_ids) {
        s.logprobs = 0;
    }

    ngx_http_glm_submit_section(m, GLM_SEC_SAMPLING, GLM_SEC_CRITICAL, &s,
                                sizeof(glm_sec_sampling_t));
}


/* Sections that are there only when they say something. */

static void
ngx_http_glm_submit_rules(ngx_http_glm_ctx_t *ctx, ngx_http_glm_message_t *m)
{
    ngx_http_glm_params_t  *p;

    p = &ctx->params;

    if (p->suffix.len) {
        ngx_http_glm_submit_section(m, GLM_SEC_SUFFIX, GLM_SEC_CRITICAL,
                                    p->suffix.data, p->suffix.len);
    }

    ngx_http_glm_submit_strings(m, GLM_SEC_STOPS, p->stops, p->nstops);
    ngx_http_glm_submit_strings(m, GLM_SEC_BAD, p->bad, p->nbad);
    ngx_http_glm_submit_ids(m, GLM_SEC_STOP_IDS, &p->stop_ids);
    ngx_http_glm_submit_ids(m, GLM_SEC_ALLOW, &p->allow);
    ngx_http_glm_submit_ids(m, GLM_SEC_SCORE_IDS, &p->score_ids);

    if (p->nbias) {
        ngx_http_glm_submit_section(m, GLM_SEC_BIAS, GLM_SEC_CRITICAL,
                                    p->bias, p->nbias * sizeof(glm_bias_t));
    }

    if (p->repeat.size) {
        ngx_http_glm_submit_section(m, GLM_SEC_REPEAT, GLM_SEC_CRITICAL,
                                    &p->repeat, sizeof(glm_sec_repeat_t));
    }
}


static void
ngx_http_glm_submit_ids(ngx_http_glm_message_t *m, uint16_t type,
    ngx_http_glm_ids_t *ids)
{
    if (ids->n) {
        ngx_http_glm_submit_section(m, type, GLM_SEC_CRITICAL, ids->elts,
                                    ids->n * sizeof(int32_t));
    }
}


static void
ngx_http_glm_submit_strings(ngx_http_glm_message_t *m, uint16_t type,
    ngx_str_t *s, ngx_uint_t n)
{
    u_char      *head;
    glm_str_t    str;
    ngx_uint_t   i;

    if (n == 0) {
        return;
    }

    head = ngx_http_glm_submit_begin(m);

    for (i = 0; i < n; i++) {
        str.size = s[i].len;

        m->pos = ngx_cpymem(m->pos, &str, sizeof(glm_str_t));
        ngx_http_glm_submit_padded(m, s[i].data, s[i].len);
    }

    ngx_http_glm_submit_end(m, head, type);
}


/* The choices of a score: their text is plain. */

static void
ngx_http_glm_submit_scored(ngx_http_glm_message_t *m,
    ngx_http_glm_prompt_t *choice, ngx_uint_t n)
{
    u_char        *head;
    ngx_uint_t     i;
    glm_choice_t   c;

    head = ngx_http_glm_submit_begin(m);

    for (i = 0; i < n; i++) {
        c.kind = choice[i].ids.n ? GLM_SEC_IDS : GLM_SEC_PLAIN;
        c.size = choice[i].ids.n ? choice[i].ids.n * sizeof(int32_t)
                                 : choice[i].text.len;

        m->pos = ngx_cpymem(m->pos, &c, sizeof(glm_choice_t));
        ngx_http_glm_submit_padded(m, choice[i].ids.n
                                      ? (void *) choice[i].ids.elts
                                      : choice[i].text.data, c.size);
    }

    ngx_http_glm_submit_end(m, head, GLM_SEC_CHOICES);
}


/* A section whose size is known at its end. */

static u_char *
ngx_http_glm_submit_begin(ngx_http_glm_message_t *m)
{
    u_char  *head;

    head = m->pos;
    m->pos += sizeof(glm_sec_t);

    return head;
}


static void
ngx_http_glm_submit_end(ngx_http_glm_message_t *m, u_char *head,
    uint16_t type)
{
    glm_sec_t  sec;

    sec.type = type;
    sec.flags = GLM_SEC_CRITICAL;
    sec.size = m->pos - head - sizeof(glm_sec_t);

    ngx_memcpy(head, &sec, sizeof(glm_sec_t));

    while ((m->pos - m->start) % GLM_WIRE_ALIGN) {
        *m->pos++ = 0;
    }
}


/* An entry of a list. */

static void
ngx_http_glm_submit_padded(ngx_http_glm_message_t *m, const void *p, size_t n)
{
    size_t  len;

    len = ngx_align(n, 4);

    ngx_memcpy(m->pos, p, n);
    ngx_memzero(m->pos + n, len - n);
    m->pos += len;
}


static void
ngx_http_glm_submit_section(ngx_http_glm_message_t *m, uint16_t type,
    uint16_t flags, const void *p, size_t n)
{
    glm_sec_t  sec;

    sec.type = type;
    sec.flags = flags;
    sec.size = n;

    m->pos = ngx_cpymem(m->pos, &sec, sizeof(glm_sec_t));

    if (n) {
        m->pos = ngx_cpymem(m->pos, p, n);
    }

    while ((m->pos - m->start) % GLM_WIRE_ALIGN) {
        *m->pos++ = 0;
    }
}


/* Reserves the records of one message. */

static ngx_int_t
ngx_http_glm_submit_write(ngx_http_glm_peer_t *peer, uint64_t id, u_char *p,
    size_t len)
{
    int          rc;
    void        *slot;
    size_t       n;
    uint32_t     max;
    glm_rec_t    rec;

    max = glm_ring_max_record(&peer->submit) - sizeof(glm_rec_t);

    do {
        n = ngx_min(len, max);

        rec.size = sizeof(glm_rec_t) + n;
        rec.type = GLM_MSG_SUBMIT;
        rec.flags = n < len ? GLM_REC_MORE : 0;
        rec.id = id;

        rc = glm_ring_reserve(&peer->submit, rec.size, &slot);

        if (rc == GLM_RING_FULL) {
            return NGX_AGAIN;
        }

        if (rc != GLM_RING_OK) {
            return NGX_ERROR;
        }

        slot = ngx_cpymem(slot, &rec, sizeof(glm_rec_t));
        ngx_memcpy(slot, p, n);

        p += n;
        len -= n;

    } while (len);

    return NGX_OK;
}
