
#include "ngx_http_glm_module.h"


typedef struct {
    const char  *name;
    const char  *type;
    const char  *label;          /* more labels, or "" */
    const char  *help;           /* NULL: one more series of the name before */
    size_t       offset;         /* in glm_wire_stats_t */
    size_t       size;           /* 4 or 8; 0: a ratio of kv pages */
    ngx_uint_t   both;           /* under vllm: too */
} ngx_http_glm_metric_t;


#define ngx_http_glm_gauge(name, field, help, both)                           \
    { name, "gauge", "", help, offsetof(glm_wire_stats_t, field), 4, both }

#define ngx_http_glm_counter(name, field, help, both)                         \
    { name, "counter", "", help, offsetof(glm_wire_stats_t, field), 8, both }

#define ngx_http_glm_success(label, field, help)                              \
    { "request_success_total", "counter", ",finished_reason=\"" label "\"",   \
      help, offsetof(glm_wire_stats_t, field), 8, 1 }


static const ngx_http_glm_metric_t  ngx_http_glm_metric_table[] = {

    ngx_http_glm_gauge("num_requests_running", running,
                       "Requests in the running batch.", 1),
    ngx_http_glm_gauge("num_requests_waiting", waiting,
                       "Requests waiting to be run.", 1),
    { "kv_cache_usage_perc", "gauge", "",
      "Part of the KV cache in use, 1 is all of it.", 0, 0, 1 },

    ngx_http_glm_counter("num_preemptions_total", preemptions,
                         "Sequences that were preempted.", 1),
    ngx_http_glm_counter("prompt_tokens_total", prompt_tokens,
                         "Prompt tokens processed.", 1),
    ngx_http_glm_counter("generation_tokens_total", generated_tokens,
                         "Tokens generated.", 1),
    ngx_http_glm_counter("prompt_tokens_cached_total", cached_tokens,
                         "Prompt tokens taken from a cache.", 1),

    ngx_http_glm_success("stop", finished_stop,
                         "Requests finished, by reason."),
    ngx_http_glm_success("length", finished_length, NULL),
    ngx_http_glm_success("abort", finished_cancel, NULL),
    ngx_http_glm_success("error", finished_error, NULL),

    ngx_http_glm_gauge("num_requests_paused", paused,
                       "Requests paused because their reader is slow.", 0),
    ngx_http_glm_gauge("kv_pages_used", kv_pages_used,
                       "Pages of the KV cache in use.", 0),
    ngx_http_glm_gauge("kv_pages_total", kv_pages_total,
                       "Pages of the KV cache.", 0),
    ngx_http_glm_gauge("engine_clients", clients,
                       "Clients attached to the engine.", 0),
    ngx_http_glm_gauge("engine_draining", draining,
                       "1 while the engine shuts down.", 0),
    ngx_http_glm_counter("requests_total", requests,
                         "Requests that reached the engine.", 0),
    ngx_http_glm_counter("requests_accepted_total", accepted,
                         "Requests accepted.", 0),
    ngx_http_glm_counter("requests_refused_total", refused,
                         "Requests refused.", 0),
    ngx_http_glm_counter("steps_total", steps,
                         "Steps of the model.", 0),
    ngx_http_glm_counter("prefills_total", prefills,
                         "Contexts computed.", 0),
    ngx_http_glm_counter("rows_total", rows,
                         "Rows of all decode steps.", 0),
    { "spool_bytes", "gauge", "",
      "Output kept for slow readers.",
      offsetof(glm_wire_stats_t, spool_bytes), 8, 0 },
    ngx_http_glm_counter("ring_full_total", ring_full,
                         "Times that a completion ring was full.", 0),

    { NULL, NULL, NULL, NULL, 0, 0, 0 }
};


typedef struct {
    const char  *name;
    const char  *help;
    size_t       offset;
} ngx_http_glm_histogram_t;


static const ngx_http_glm_histogram_t  ngx_http_glm_histograms[] = {

    { "time_to_first_token_seconds", "Submission to first token.",
      offsetof(glm_wire_stats_t, ttft) },
    { "request_time_per_output_token_seconds",
      "Time of a token after the first, by request.",
      offsetof(glm_wire_stats_t, tpot) },
    { "e2e_request_latency_seconds", "Submission to end.",
      offsetof(glm_wire_stats_t, e2e) },
    { "request_queue_time_seconds", "Submission to start.",
      offsetof(glm_wire_stats_t, queue) },

    { NULL, NULL, 0 }
};


static const uint64_t  ngx_http_glm_bounds[] = GLM_STATS_BOUNDS_US;


static void ngx_http_glm_put_histograms(ngx_http_glm_out_t *out,
    glm_wire_stats_t *st, ngx_str_t *model, const char *prefix);
static void ngx_http_glm_put_series(ngx_http_glm_out_t *out,
    const char *prefix, const char *name, const char *suffix,
    ngx_str_t *model);
static void ngx_http_glm_put_head(ngx_http_glm_out_t *out,
    const char *prefix, const char *name, const char *type,
    const char *help);
static void ngx_http_glm_put_metrics(ngx_http_glm_out_t *out,
    glm_wire_stats_t *st, ngx_str_t *model, const char *prefix,
    ngx_uint_t all);
static void ngx_http_glm_put_value(ngx_http_glm_out_t *out,
    const ngx_http_glm_metric_t *m, glm_wire_stats_t *st);
static void ngx_http_glm_put_label(ngx_http_glm_out_t *out, ngx_str_t *s);


ngx_int_t
ngx_http_glm_metrics(ngx_http_request_t *r, ngx_http_glm_ctx_t *ctx)
{
    ngx_uint_t            up;
    glm_wire_stats_t      st;
    ngx_http_glm_out_t   *out;
    ngx_http_glm_peer_t  *peer;

    peer = ctx->peer;
    out = &ctx->out;

    up = ngx_http_glm_attach(peer, r->connection->log) == NGX_OK
         && ngx_http_glm_stats(peer, &st) == NGX_OK;

    ngx_http_glm_lit(out, "# HELP glm:engine_up 1 when the engine answers.\n"
                          "# TYPE glm:engine_up gauge\n"
                          "glm:engine_up ");
    ngx_http_glm_put_int(out, up && !ngx_http_glm_stale(peer));
    ngx_http_glm_lit(out, "\n");

    if (up) {
        ngx_http_glm_put_metrics(out, &st, &peer->model, "vllm:", 0);
        ngx_http_glm_put_histograms(out, &st, &peer->model, "vllm:");
        ngx_http_glm_put_metrics(out, &st, &peer->model, "glm:", 1);
        ngx_http_glm_put_histograms(out, &st, &peer->model, "glm:");
    }

    return ngx_http_glm_send(r, ctx, NGX_HTTP_OK,
                             "text/plain; version=0.0.4; charset=utf-8");
}


static void
ngx_http_glm_put_metrics(ngx_http_glm_out_t *out, glm_wire_stats_t *st,
    ngx_str_t *model, const char *prefix, ngx_uint_t all)
{
    const ngx_http_glm_metric_t  *m;

    for (m = ngx_http_glm_metric_table; m->name; m++) {

        if (!m->both && !all) {
            continue;
        }

        if (m->help) {
            ngx_http_glm_put_head(out, prefix, m->name, m->type, m->help);
        }

        ngx_http_glm_put_series(out, prefix, m->name, "", model);
        ngx_http_glm_put_str(out, m->label);
        ngx_http_glm_lit(out, "} ");
        ngx_http_glm_put_value(out, m, st);
        ngx_http_glm_lit(out, "\n");
    }
}


/* Buckets are cumulative here, and the last one is the count. */

static void
ngx_http_glm_put_histograms(ngx_http_glm_out_t *out, glm_wire_stats_t *st,
    ngx_str_t *model, const char *prefix)
{
    uint64_t                         sum;
    ngx_uint_t                       i;
    glm_stats_hist_t                *hist;
    const ngx_http_glm_histogram_t  *h;

    for (h = ngx_http_glm_histograms; h->name; h++) {

        hist = (glm_stats_hist_t *) ((u_char *) st + h->offset);
        sum = 0;

        ngx_http_glm_put_head(out, prefix, h->name, "histogram", h->help);

        for (i = 0; i < GLM_STATS_BUCKETS; i++) {
            sum += hist->bucket[i];

            ngx_http_glm_put_series(out, prefix, h->name, "_bucket", model);
            ngx_http_glm_lit(out, ",le=\"");

            if (i < GLM_STATS_BUCKETS - 1) {
                ngx_http_glm_put_num(out, ngx_http_glm_bounds[i] / 1e6);

            } else {
                ngx_http_glm_lit(out, "+Inf");
            }

            ngx_http_glm_lit(out, "\"} ");
            ngx_http_glm_put_int(out, sum);
            ngx_http_glm_lit(out, "\n");
        }

        ngx_http_glm_put_series(out, prefix, h->name, "_sum", model);
        ngx_http_glm_lit(out, "} ");
        ngx_http_glm_put_num(out, hist->sum_us / 1e6);
        ngx_http_glm_lit(out, "\n");

        ngx_http_glm_put_series(out, prefix, h->name, "_count", model);
        ngx_http_glm_lit(out, "} ");
        ngx_http_glm_put_int(out, sum);
        ngx_http_glm_lit(out, "\n");
    }
}


static void
ngx_http_glm_put_head(ngx_http_glm_out_t *out, const char *prefix,
    const char *name, const char *type, const char *help)
{
    ngx_http_glm_lit(out, "# HELP ");
    ngx_http_glm_put_str(out, prefix);
    ngx_http_glm_put_str(out, name);
    ngx_http_glm_lit(out, " ");
    ngx_http_glm_put_str(out, help);
    ngx_http_glm_lit(out, "\n# TYPE ");
    ngx_http_glm_put_str(out, prefix);
    ngx_http_glm_put_str(out, name);
    ngx_http_glm_lit(out, " ");
    ngx_http_glm_put_str(out, type);
    ngx_http_glm_lit(out, "\n");
}


/* Up to where more labels go. */

static void
ngx_http_glm_put_series(ngx_http_glm_out_t *out, const char *prefix,
    const char *name, const char *suffix, ngx_str_t *model)
{
    ngx_http_glm_put_str(out, prefix);
    ngx_http_glm_put_str(out, name);
    ngx_http_glm_put_str(out, suffix);
    ngx_http_glm_lit(out, "{model_name=\"");
    ngx_http_glm_put_label(out, model);
    ngx_http_glm_lit(out, "\",engine=\"0\"");
}


static void
ngx_http_glm_put_value(ngx_http_glm_out_t *out, const ngx_http_glm_metric_t *m,
    glm_wire_stats_t *st)
{
    u_char    *p;
    uint32_t   n;
    uint64_t   nn;

    p = (u_char *) st + m->offset;

    switch (m->size) {

    case 0:
        ngx_http_glm_put_num(out, st->kv_pages_total
                                  ? (double) st->kv_pages_used
                                    / st->kv_pages_total : 0);
        return;

    case 4:
        ngx_memcpy(&n, p, sizeof(uint32_t));
        ngx_http_glm_put_int(out, n);
        return;

    default:
        ngx_memcpy(&nn, p, sizeof(uint64_t));
        ngx_http_glm_put_int(out, nn);
    }
}


static void
ngx_http_glm_put_label(ngx_http_glm_out_t *out, ngx_str_t *s)
{
    size_t  i;

    for (i = 0; i < s->len; i++) {

        switch (s->data[i]) {

        case '\n':
            ngx_http_glm_lit(out, "\\n");
            break;

        case '"':
        case '\\':
            ngx_http_glm_lit(out, "\\");

            /* fall through */

        default:
            ngx_http_glm_put(out, &s->data[i], 1);
        }
    }
}
