
#ifndef _NGX_HTTP_GLM_MODULE_H_INCLUDED_
#define _NGX_HTTP_GLM_MODULE_H_INCLUDED_


#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_http.h>

#include <float.h>
#include <jansson.h>

#include "glm_wire.h"
#include "glm_ring.h"


#define NGX_HTTP_GLM_VERSION           "0.1.0"

/* bits of glm_api, one a name */

#define NGX_HTTP_GLM_API_CHAT          0x0001
#define NGX_HTTP_GLM_API_COMPLETIONS   0x0002
#define NGX_HTTP_GLM_API_MODELS        0x0004
#define NGX_HTTP_GLM_API_HEALTH        0x0008
#define NGX_HTTP_GLM_API_PING          0x0010
#define NGX_HTTP_GLM_API_VERSION       0x0020
#define NGX_HTTP_GLM_API_TOKENIZE      0x0040
#define NGX_HTTP_GLM_API_DETOKENIZE    0x0080
#define NGX_HTTP_GLM_API_METRICS       0x0100
#define NGX_HTTP_GLM_API_STATUS        0x0200
#define NGX_HTTP_GLM_API_INFO          0x0400
#define NGX_HTTP_GLM_API_OPENAPI       0x0800
#define NGX_HTTP_GLM_API_INFILL        0x1000
#define NGX_HTTP_GLM_API_SCORE         0x2000
#define NGX_HTTP_GLM_API_EDITOR        0x4000    /* /infill */

/* what a location without glm_api answers */
#define NGX_HTTP_GLM_API_DEFAULT                                              \
    (NGX_HTTP_GLM_API_CHAT|NGX_HTTP_GLM_API_COMPLETIONS                       \
     |NGX_HTTP_GLM_API_MODELS                                                 \
     |NGX_HTTP_GLM_API_HEALTH|NGX_HTTP_GLM_API_PING                           \
     |NGX_HTTP_GLM_API_VERSION|NGX_HTTP_GLM_API_TOKENIZE                      \
     |NGX_HTTP_GLM_API_DETOKENIZE|NGX_HTTP_GLM_API_INFO                       \
     |NGX_HTTP_GLM_API_OPENAPI|NGX_HTTP_GLM_API_INFILL                        \
     |NGX_HTTP_GLM_API_SCORE|NGX_HTTP_GLM_API_EDITOR)

#define NGX_HTTP_GLM_EOS               "</s>"
#define NGX_HTTP_GLM_MAX_DEPTH         64        /* of JSON */
#define NGX_HTTP_GLM_MAX_LOGPROBS      20
#define NGX_HTTP_GLM_MAX_SCORE_IDS     20
#define NGX_HTTP_GLM_MAX_BEAMS         16
#define NGX_HTTP_GLM_MAX_BLANKS        256
#define NGX_HTTP_GLM_MAX_SCORED        1000      /* choices of a score */
#define NGX_HTTP_GLM_MAX_TOP           32        /* records after a token's */
#define NGX_HTTP_GLM_MAX_PROMPTS       256       /* of a group, on the wire */
#define NGX_HTTP_GLM_MAX_CHOICES       16384     /* of a request, all prompts */
#define NGX_HTTP_GLM_MIN_WINDOW        1024      /* of each prompt's answer */
#define NGX_HTTP_GLM_MAX_SLOTS         65536     /* live requests a peer */
#define NGX_HTTP_GLM_MAX_MESSAGE       (16 * 1024 * 1024)
#define NGX_HTTP_GLM_MAX_ASSEMBLY      (64 * 1024 * 1024)   /* a peer */
#define NGX_HTTP_GLM_MAX_TEXT          900       /* bytes of an error message */
#define NGX_HTTP_GLM_BUFFER            4096      /* of output */
#define NGX_HTTP_GLM_STALE             10000     /* ms of a still heartbeat */
#define NGX_HTTP_GLM_HANDSHAKE         2000      /* ms from HELLO to WELCOME */


typedef struct ngx_http_glm_peer_s    ngx_http_glm_peer_t;
typedef struct ngx_http_glm_call_s    ngx_http_glm_call_t;
typedef struct ngx_http_glm_ctx_s     ngx_http_glm_ctx_t;
typedef struct ngx_http_glm_field_s   ngx_http_glm_field_t;


typedef enum {
    NGX_HTTP_GLM_CHAT_TEXT = 0,
    NGX_HTTP_GLM_CHAT_ROLE,
    NGX_HTTP_GLM_CHAT_CONTENT
} ngx_http_glm_chat_e;


typedef struct {
    ngx_uint_t                what;          /* ngx_http_glm_chat_e */
    ngx_str_t                 text;
} ngx_http_glm_chat_part_t;


/* glm_chat_template */

typedef struct {
    ngx_array_t               parts;         /* of each message */
    ngx_uint_t                content;       /* parts up to the last $content */
    ngx_str_t                 final;
    ngx_str_t                *stops;
    ngx_uint_t                nstops;
} ngx_http_glm_chat_t;


typedef struct {
    ngx_array_t               peers;         /* ngx_http_glm_peer_t * */
    ngx_http_glm_chat_t      *chat;          /* the default, once it is used */
} ngx_http_glm_main_conf_t;


typedef struct {
    ngx_http_glm_peer_t      *peer;          /* glm_pass */
    ngx_uint_t                api;           /* NGX_HTTP_GLM_API_* */
    ngx_msec_t                first_token_timeout;
    ngx_msec_t                read_timeout;
    ngx_msec_t                ping_interval;
    size_t                    max_prompt;
    ngx_int_t                 max_n;
    ngx_int_t                 max_stops;
    size_t                    buffer_size;
    ngx_array_t              *aliases;       /* ngx_str_t: other model names */
    ngx_flag_t                json_errors;
    ngx_uint_t                suffix_gmask;  /* glm_suffix_mask */
    ngx_http_glm_chat_t      *chat;
} ngx_http_glm_loc_conf_t;


typedef struct {
    ngx_str_t                 name;          /* in glm_api */
    ngx_str_t                 path;
    ngx_uint_t                bit;
    ngx_uint_t                methods;
    ngx_int_t               (*handler)(ngx_http_request_t *r,
                                       ngx_http_glm_ctx_t *ctx);
} ngx_http_glm_api_t;


typedef struct {
    ngx_uint_t                status;        /* 0: no error */
    ngx_uint_t                retry_after;   /* seconds; 0: no header */
    const char               *code;          /* NULL: null */
    const char               *param;
    ngx_str_t                 text;
    char                      code_data[48];
    char                      param_data[64];
    u_char                    text_data[NGX_HTTP_GLM_MAX_TEXT];
} ngx_http_glm_error_t;


/* Text being made: a chain of buffers, a failed allocation sticks. */

typedef struct {
    ngx_pool_t               *pool;
    ngx_chain_t              *first;
    ngx_chain_t             **last;
    ngx_buf_t                *buf;           /* the last one */
    ngx_chain_t              *free;
    ngx_chain_t              *busy;
    size_t                    size;          /* bytes in first */
    unsigned                  failed:1;
} ngx_http_glm_out_t;


/* Bytes being collected; doubled, so that the pool holds one block of them. */

typedef struct {
    u_char                   *start;
    size_t                    len;
    size_t                    size;
} ngx_http_glm_blob_t;


/* A field of a body: how its value is checked and where it goes. */

typedef enum {
    NGX_HTTP_GLM_BOOL = 0,
    NGX_HTTP_GLM_INT,
    NGX_HTTP_GLM_NUM,
    NGX_HTTP_GLM_STR,
    NGX_HTTP_GLM_LIST,
    NGX_HTTP_GLM_OBJECT,
    NGX_HTTP_GLM_OWN                 /* set does it all */
} ngx_http_glm_kind_e;


struct ngx_http_glm_field_s {
    const char           *name;
    ngx_uint_t            api;       /* where it is known */
    ngx_http_glm_kind_e   kind;
    ngx_uint_t            later;     /* only the neutral value works now */
    double                neutral;
    double                min;       /* of a number, or of a length */
    double                max;
    size_t                offset;    /* in params; NGX_HTTP_GLM_NOWHERE */
    ngx_int_t           (*set)(ngx_http_glm_ctx_t *ctx,
                               const ngx_http_glm_field_t *f, json_t *v);
};


typedef struct {
    int32_t                  *elts;
    ngx_uint_t                n;
} ngx_http_glm_ids_t;


/* One prompt: text, or ids. */

typedef struct {
    ngx_str_t                 text;
    ngx_http_glm_ids_t        ids;
} ngx_http_glm_prompt_t;


typedef enum {
    NGX_HTTP_GLM_NORMAL_NONE = 0,
    NGX_HTTP_GLM_NORMAL_TOKEN,
    NGX_HTTP_GLM_NORMAL_BYTE
} ngx_http_glm_normal_e;


/* A message of a chat. */

typedef struct {
    ngx_str_t                 role;
    ngx_str_t                 content;
    ngx_uint_t                assistant;
} ngx_http_glm_msg_t;


/* What /infill has of its own. */

typedef struct {
    ngx_str_t                 prefix;
    json_t                   *extra;         /* list of files */
    ngx_uint_t                fields;        /* of the answer, bits */
    ngx_uint_t                named;         /* they are response_fields */
    json_int_t                max_ms;        /* t_max_predict_ms */
} ngx_http_glm_editor_t;


/* What a checked body asks for. */

typedef struct {
    ngx_http_glm_prompt_t    *prompts;       /* all text, or all ids */
    ngx_uint_t                nprompts;
    ngx_http_glm_ids_t        stop_ids;
    ngx_http_glm_ids_t        allow;
    ngx_http_glm_ids_t        score_ids;
    glm_bias_t               *bias;
    ngx_uint_t                nbias;
    ngx_str_t                *bad;           /* bad_words */
    ngx_uint_t                nbad;
    glm_sec_repeat_t          repeat;        /* size 0: not given */
    ngx_str_t                *stops;         /* the template's come last */
    ngx_uint_t                nstops;
    ngx_uint_t                nown;          /* of them, the request's own */
    ngx_http_glm_msg_t       *messages;
    ngx_uint_t                nmessages;
    ngx_str_t                 prefix;        /* echo of a chat */
    ngx_str_t                 suffix;        /* of the blank */
    ngx_http_glm_prompt_t    *scored;        /* choices of a score */
    ngx_uint_t                nscored;
    ngx_uint_t                normal;        /* ngx_http_glm_normal_e */
    ngx_uint_t                gmask;         /* what a score adds */
    const char               *tools;         /* field that is not empty */
    ngx_str_t                 model;
    ngx_str_t                 user;
    ngx_str_t                 request_id;
    json_int_t                n;
    json_int_t                best_of;       /* -1 here and below: not given */
    json_int_t                max_tokens;    /* -1: what the context leaves */
    json_int_t                max_completion_tokens;
    json_int_t                top_logprobs;
    json_int_t                min_tokens;
    json_int_t                min_gen_length;
    json_int_t                logprobs;      /* -1: none */
    json_int_t                prompt_logprobs;
    json_int_t                top_k;
    json_int_t                seed;
    json_int_t                truncate;      /* 0: off */
    json_int_t                priority;
    json_int_t                stream_interval;
    json_int_t                beams;         /* -1: not given, then checked */
    json_int_t                no_repeat_ngram;
    double                    length_penalty;
    double                    presence;
    double                    frequency;
    double                    repetition;
    double                    temperature;   /* -1: not given, then checked */
    double                    top_p;
    double                    min_p;
    ngx_uint_t                mode;          /* 0 bidirectional */
    const char               *later;         /* field not implemented yet */
    unsigned                  has_text:1;
    unsigned                  has_ids:1;
    unsigned                  has_seed:1;
    unsigned                  has_stream_options:1;
    unsigned                  has_mode:1;
    unsigned                  no_tools:1;
    unsigned                  truncate_right:1;
    unsigned                  untrained:1;   /* the prompt has an [sMASK] */
    ngx_uint_t                stream;        /* booleans, found by offset */
    ngx_uint_t                include_usage;
    ngx_uint_t                continuous_usage;
    ngx_uint_t                echo;
    ngx_uint_t                chat_logprobs;
    ngx_uint_t                add_generation;    /* 2: not given */
    ngx_uint_t                continue_final;
    ngx_uint_t                skip_special;
    ngx_uint_t                tokens_as_ids;
    ngx_uint_t                return_token_ids;
    ngx_uint_t                return_token_strs;
    ngx_uint_t                parse_masks;
    ngx_uint_t                add_special;
    ngx_uint_t                ignore_eos;
    ngx_uint_t                include_stop;
    ngx_uint_t                use_beams;
    ngx_uint_t                unconditional;
    ngx_http_glm_editor_t     editor;
} ngx_http_glm_params_t;


typedef struct {
    uint32_t                  offset;        /* characters before the token */
    uint32_t                  size;          /* bytes of its records */
} ngx_http_glm_mark_t;


/* A message's sections: where they are in it. */

typedef struct {
    ngx_str_t                 text;
    ngx_str_t                 ids;
    ngx_str_t                 logprobs;
    ngx_str_t                 stop;
    ngx_str_t                 spans;
} ngx_http_glm_sections_t;


/* One answer of a call; of several blanks the one that is being filled. */

typedef struct {
    ngx_uint_t                index;
    ngx_uint_t                blank;
    ngx_array_t              *blanks;        /* before it, of a plain answer */
    ngx_uint_t                before;        /* tokens of those before */
    ngx_http_glm_blob_t       text;          /* not yet sent, or all of it */
    ngx_http_glm_blob_t       ids;
    ngx_http_glm_blob_t       logprobs;      /* records as they came */
    ngx_http_glm_blob_t       marks;         /* ngx_http_glm_mark_t a token */
    ngx_uint_t                chars;         /* of text that came */
    ngx_uint_t                begins;        /* chars before the last message */
    ngx_uint_t                ntokens;       /* that came */
    ngx_uint_t                shown;         /* of them, with the last chunk */
    ngx_uint_t                released;      /* of them sent */
    ngx_uint_t                nkept;         /* of FINISH */
    ngx_uint_t                told;          /* the prompt was sent, or role */
    ngx_uint_t                told_ids;      /* prompt_token_ids of a chat */
    ngx_uint_t                reason;        /* GLM_REASON_*, 0: not finished */
    int32_t                   stop_id;
    int32_t                   stop_index;
    float                     score;         /* of beams, or of a score */
    ngx_http_glm_blob_t       whole;         /* text with all blanks filled */
    ngx_http_glm_blob_t       spans;         /* glm_span_rec_t a blank */
    unsigned                  filled:1;
} ngx_http_glm_choice_t;


/* One request at the engine: a prompt, or a text to tokenize. */

struct ngx_http_glm_call_s {
    ngx_http_glm_ctx_t       *ctx;
    ngx_http_glm_peer_t      *peer;          /* NULL: not submitted */
    ngx_queue_t               queue;         /* in peer->starved */
    uint64_t                  id;
    uint64_t                  owed;          /* bytes read, not granted again */
    int64_t                   window;        /* bytes that may come */
    uint64_t                  share;         /* of it, granted at first */
    uint32_t                  max_tokens;    /* of ACCEPTED */
    uint32_t                  prompt_tokens;
    uint32_t                  ntokens;       /* of all choices, that came */
    ngx_http_glm_prompt_t    *prompt;
    ngx_http_glm_choice_t    *choices;
    ngx_uint_t                nchoices;
    ngx_uint_t                nfinished;
    ngx_http_glm_blob_t       text;          /* of PROMPT */
    ngx_http_glm_blob_t       ids;
    ngx_http_glm_blob_t       strs;          /* glm_logprob_rec_t each */
    ngx_uint_t                chars;         /* of text */
    unsigned                  starved:1;     /* WINDOW found no room */
    unsigned                  cancelled:1;
    unsigned                  echo:1;        /* the prompt is in the answer */
    unsigned                  accepted:1;
    unsigned                  prompted:1;
    unsigned                  ended:1;       /* DONE came */
};


struct ngx_http_glm_ctx_s {
    ngx_http_request_t       *request;
    ngx_http_glm_peer_t      *peer;
    const ngx_http_glm_api_t *api;
    ngx_queue_t               queue;         /* in peer->waiting or ->dirty */
    ngx_str_t                 request_id;    /* x-request-id */
    ngx_str_t                 id;            /* of the answer */
    ngx_str_t                 model_id;      /* of GET /v1/models/{id} */
    ngx_str_t                 model;         /* served name */
    time_t                    created;
    uint64_t                  fingerprint;
    uint32_t                  max_seq;
    ngx_http_glm_params_t     params;
    json_t                   *root;          /* body: params point into it */
    ngx_http_glm_error_t     *error;
    ngx_http_glm_call_t      *calls;         /* one a prompt */
    ngx_uint_t                ncalls;        /* 0: not checked yet */
    uint64_t                  group;         /* of several */
    ngx_uint_t                naccepted;
    ngx_uint_t                ndone;
    ngx_http_glm_out_t        out;
    ngx_str_t                 head;          /* of each chunk, up to index */
    ngx_event_t               timer;         /* owned while at the engine */
    ngx_msec_t                start;
    ngx_msec_t                last_token;
    ngx_msec_t                last_sent;
    uint64_t                  prompt_tokens;     /* of all calls */
    uint64_t                  completion_tokens;
    uint64_t                  cached_tokens;
    uint64_t                  queue_us;
    uint64_t                  ttft_us;
    uint64_t                  span_us;       /* first token to the end */
    ngx_msec_t                came;          /* the last token */
    ngx_str_t                 engine;        /* that has or had it */
    unsigned                  queued:1;      /* link is in a queue */
    unsigned                  waiting:1;     /* for the engine's WELCOME */
    unsigned                  stream:1;
    unsigned                  header_sent:1;
    unsigned                  got_token:1;
    unsigned                  finished:1;    /* all is in out */
    unsigned                  lost:1;        /* engine went */
    unsigned                  has_usage:1;
    unsigned                  keep_ids:1;    /* ids or logprobs are asked for */
    unsigned                  rearm:1;       /* a deadline comes nearer */
    unsigned                  new_line:1;    /* came, for an editor */
    unsigned                  cut:1;         /* cancelled: enough has come */
    unsigned                  nomem:1;
    unsigned                  replace:1;     /* of an HTML page by out */
};


/* A request's place at the engine; lives until DONE or ERROR. */

typedef struct {
    ngx_http_glm_call_t      *call;          /* NULL: its client has left */
    uint64_t                  id;            /* 0: free */
    ngx_http_glm_blob_t       part;          /* of a message */
    uint32_t                  next;          /* free list */
    uint16_t                  type;          /* of part; 0: none */
} ngx_http_glm_slot_t;


typedef enum {
    NGX_HTTP_GLM_PEER_IDLE = 0,
    NGX_HTTP_GLM_PEER_HELLO,                 /* waits for WELCOME */
    NGX_HTTP_GLM_PEER_READY
} ngx_http_glm_peer_state_e;


/* An engine's socket; the state below name is the worker's own. */

struct ngx_http_glm_peer_s {
    ngx_str_t                 name;          /* unix:/path */
    struct sockaddr_un        sockaddr;

    ngx_http_glm_peer_state_e state;
    ngx_uint_t                refused;       /* GLM_REFUSE_*, 0: absent */
    ngx_connection_t         *connection;
    u_char                   *rings;         /* mapping */
    size_t                    rings_size;
    const u_char             *stats;         /* mapping, read-only */
    size_t                    stats_size;
    glm_ring_t                submit;
    glm_ring_t                complete;
    glm_sock_welcome_t        welcome;
    ngx_str_t                 model;         /* points into welcome */

    ngx_http_glm_slot_t      *slots;
    uint32_t                  nslots;
    uint32_t                  nlive;
    uint32_t                  free;          /* first free slot, or nslots */
    uint32_t                  turn;          /* high half of the next id */
    size_t                    assembled;     /* bytes in parts */
    ngx_msec_t                busy;          /* since when nlive is not 0 */

    ngx_queue_t               waiting;       /* for WELCOME */
    ngx_queue_t               dirty;         /* something to send */
    ngx_queue_t               starved;       /* calls with a WINDOW to send */
    ngx_event_t               reconnect;
    ngx_msec_t                backoff;
    u_char                   *record;        /* GLM_WIRE_MAX_RECORD bytes */
    unsigned                  failed:1;      /* torn down at the next turn */
    unsigned                  quiet:1;       /* absence has been logged */
};


/* _module.c */

extern ngx_module_t  ngx_http_glm_module;

/* _handler.c */

extern const ngx_http_glm_api_t  ngx_http_glm_apis[];

ngx_int_t ngx_http_glm_handler(ngx_http_request_t *r);
ngx_http_glm_ctx_t *ngx_http_glm_get_ctx(ngx_http_request_t *r);
ngx_uint_t ngx_http_glm_sane_id(ngx_str_t *s);
void ngx_http_glm_wake(ngx_http_glm_ctx_t *ctx);
void ngx_http_glm_finalize(ngx_http_glm_ctx_t *ctx, ngx_int_t rc);

/* _request.c, _field.c */

#define ngx_http_glm_generates(ctx)                                           \
    ((ctx)->api->bit                                                          \
     & (NGX_HTTP_GLM_API_CHAT|NGX_HTTP_GLM_API_COMPLETIONS                    \
        |NGX_HTTP_GLM_API_INFILL|NGX_HTTP_GLM_API_EDITOR))

ngx_int_t ngx_http_glm_request_parse(ngx_http_request_t *r,
    ngx_http_glm_ctx_t *ctx);
ngx_int_t ngx_http_glm_request_info(ngx_http_request_t *r,
    ngx_http_glm_ctx_t *ctx);
ngx_int_t ngx_http_glm_request_check(ngx_http_request_t *r,
    ngx_http_glm_ctx_t *ctx);
ngx_int_t ngx_http_glm_request_ids(ngx_http_glm_ctx_t *ctx, const char *name,
    ngx_http_glm_ids_t *ids);
const ngx_http_glm_field_t *ngx_http_glm_field_find(const char *name,
    ngx_uint_t api);
ngx_int_t ngx_http_glm_field_set(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v);
ngx_int_t ngx_http_glm_field_type(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, const char *what);
void ngx_http_glm_field_later(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f);
ngx_int_t ngx_http_glm_get_int(json_t *v, json_int_t *n);
ngx_int_t ngx_http_glm_get_string(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v, ngx_str_t *s);

/* _together.c */

ngx_int_t ngx_http_glm_together(ngx_http_glm_ctx_t *ctx);

/* _prompt.c */

ngx_int_t ngx_http_glm_set_prompt(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v);
ngx_int_t ngx_http_glm_set_tokens(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v);
ngx_int_t ngx_http_glm_set_text(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v);
ngx_int_t ngx_http_glm_prompt_one(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v, ngx_http_glm_prompt_t *prompt);
const char *ngx_http_glm_prompt_param(ngx_http_glm_ctx_t *ctx);
ngx_uint_t ngx_http_glm_prompt_masked(ngx_str_t *s);
ngx_int_t ngx_http_glm_prompt_empty(ngx_http_glm_ctx_t *ctx);
ngx_int_t ngx_http_glm_prompt_mask(ngx_http_glm_ctx_t *ctx);
ngx_int_t ngx_http_glm_prompt_check(ngx_http_glm_ctx_t *ctx);

/* _chat.c */

char *ngx_http_glm_chat_template(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
ngx_http_glm_chat_t *ngx_http_glm_chat_default(ngx_conf_t *cf);
void ngx_http_glm_chat_jinja(ngx_http_glm_out_t *out,
    ngx_http_glm_chat_t *chat);
ngx_int_t ngx_http_glm_set_messages(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v);
ngx_int_t ngx_http_glm_set_tools(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v);
ngx_int_t ngx_http_glm_set_tool_choice(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v);
ngx_int_t ngx_http_glm_chat_together(ngx_http_glm_ctx_t *ctx);

/* _infill.c */

ngx_int_t ngx_http_glm_infill_together(ngx_http_glm_ctx_t *ctx);
ngx_int_t ngx_http_glm_infill_blank(ngx_http_glm_call_t *call, ngx_uint_t i,
    ngx_uint_t n);
ngx_int_t ngx_http_glm_reply_filled(ngx_http_glm_call_t *call, u_char *p,
    size_t len);
void ngx_http_glm_put_warnings(ngx_http_glm_out_t *out,
    ngx_http_glm_ctx_t *ctx);
void ngx_http_glm_put_filled(ngx_http_glm_out_t *out,
    ngx_http_glm_call_t *call, ngx_http_glm_choice_t *ch);
void ngx_http_glm_stream_blank(ngx_http_glm_call_t *call,
    ngx_http_glm_choice_t *ch, ngx_uint_t n);

/* _score.c */

ngx_int_t ngx_http_glm_set_choices(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v);
ngx_int_t ngx_http_glm_set_normalize(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v);
ngx_int_t ngx_http_glm_set_mask(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v);
ngx_int_t ngx_http_glm_score_together(ngx_http_glm_ctx_t *ctx);
void ngx_http_glm_put_scores(ngx_http_glm_out_t *out,
    ngx_http_glm_ctx_t *ctx);

/* _editor.c: /infill */

ngx_int_t ngx_http_glm_set_extra(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v);
ngx_int_t ngx_http_glm_set_response_fields(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v);
ngx_int_t ngx_http_glm_editor_together(ngx_http_glm_ctx_t *ctx);
const char *ngx_http_glm_editor_param(const char *name);
void ngx_http_glm_editor_fit(ngx_http_glm_ctx_t *ctx);
void ngx_http_glm_editor_late(ngx_http_glm_call_t *call, ngx_str_t *text);
void ngx_http_glm_put_editor(ngx_http_glm_out_t *out,
    ngx_http_glm_ctx_t *ctx);
void ngx_http_glm_stream_editor(ngx_http_glm_call_t *call,
    ngx_http_glm_choice_t *ch);

/* _value.c: fields with a shape of their own */

ngx_uint_t ngx_http_glm_is(json_t *v, const char *s);
ngx_int_t ngx_http_glm_set_stop(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v);
ngx_int_t ngx_http_glm_set_n(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v);
ngx_int_t ngx_http_glm_set_seed(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v);
ngx_int_t ngx_http_glm_set_mode(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v);
ngx_int_t ngx_http_glm_set_request_id(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v);
ngx_int_t ngx_http_glm_set_stream_options(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v);
ngx_int_t ngx_http_glm_set_response_format(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v);
ngx_int_t ngx_http_glm_set_bias(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v);
ngx_int_t ngx_http_glm_set_bad_words(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v);
ngx_int_t ngx_http_glm_set_repeat(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v);
ngx_int_t ngx_http_glm_set_id_list(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v);
ngx_int_t ngx_http_glm_set_truncate(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v);
ngx_int_t ngx_http_glm_set_side(ngx_http_glm_ctx_t *ctx,
    const ngx_http_glm_field_t *f, json_t *v);

/* _attach.c */

ngx_int_t ngx_http_glm_attach(ngx_http_glm_peer_t *peer, ngx_log_t *log);
void ngx_http_glm_attach_exit(ngx_http_glm_peer_t *peer);
void ngx_http_glm_attach_lost(ngx_http_glm_peer_t *peer);

/* _ring.c */

void ngx_http_glm_ring_bell(ngx_http_glm_peer_t *peer);
void ngx_http_glm_ring_fail(ngx_http_glm_peer_t *peer, const char *why);
ngx_int_t ngx_http_glm_ring_drain(ngx_http_glm_peer_t *peer);
void ngx_http_glm_ring_flush(ngx_http_glm_peer_t *peer);
void ngx_http_glm_ring_dirty(ngx_http_glm_peer_t *peer,
    ngx_http_glm_ctx_t *ctx);
void ngx_http_glm_ring_detach(ngx_http_glm_call_t *call);
void ngx_http_glm_ring_cancel(ngx_http_glm_call_t *call);
void ngx_http_glm_ring_grant(ngx_http_glm_call_t *call);

/* _submit.c */

ngx_int_t ngx_http_glm_submit(ngx_http_glm_ctx_t *ctx);

/* _reply.c */

const char *ngx_http_glm_finish_reason(ngx_http_glm_ctx_t *ctx);
uint64_t ngx_http_glm_tpot(ngx_http_glm_ctx_t *ctx);

ngx_int_t ngx_http_glm_reply(ngx_http_glm_call_t *call, ngx_uint_t type,
    u_char *p, size_t len);
void ngx_http_glm_reply_grant(ngx_http_glm_call_t *call);
ngx_int_t ngx_http_glm_reply_nonsense(ngx_http_glm_call_t *call,
    const char *why);
ngx_int_t ngx_http_glm_reply_add(ngx_http_glm_call_t *call,
    ngx_http_glm_blob_t *b, ngx_str_t *s);

/* _section.c */

ngx_int_t ngx_http_glm_section_read(void *dst, size_t size,
    ngx_http_glm_sections_t *s, u_char *p, size_t len);
ngx_int_t ngx_http_glm_section_logprobs(ngx_str_t *s, uint32_t n);

/* _sse.c */

ngx_int_t ngx_http_glm_stream_start(ngx_http_glm_ctx_t *ctx);
void ngx_http_glm_stream_choice(ngx_http_glm_call_t *call,
    ngx_http_glm_choice_t *ch);
ngx_http_glm_out_t *ngx_http_glm_stream_begin(ngx_http_glm_ctx_t *ctx,
    ngx_http_glm_choice_t *ch);
void ngx_http_glm_stream_tail(ngx_http_glm_call_t *call, ngx_uint_t ntokens);
void ngx_http_glm_stream_done(ngx_http_glm_ctx_t *ctx);
void ngx_http_glm_stream_error(ngx_http_glm_ctx_t *ctx);
ngx_int_t ngx_http_glm_stream_send(ngx_http_glm_ctx_t *ctx);
void ngx_http_glm_stream_writer(ngx_http_request_t *r);
void ngx_http_glm_plain(ngx_http_glm_ctx_t *ctx);

/* _choice.c */

void ngx_http_glm_put_answer(ngx_http_glm_out_t *out, ngx_http_glm_ctx_t *ctx);
void ngx_http_glm_put_index(ngx_http_glm_out_t *out, ngx_uint_t i);
void ngx_http_glm_put_choice(ngx_http_glm_out_t *out,
    ngx_http_glm_call_t *call, ngx_http_glm_choice_t *ch, ngx_uint_t n);
void ngx_http_glm_put_finish(ngx_http_glm_out_t *out, ngx_http_glm_ctx_t *ctx,
    ngx_http_glm_choice_t *ch);
void ngx_http_glm_put_score(ngx_http_glm_out_t *out, ngx_http_glm_ctx_t *ctx,
    ngx_http_glm_choice_t *ch);
void ngx_http_glm_put_logprobs(ngx_http_glm_out_t *out,
    ngx_http_glm_call_t *call, ngx_http_glm_choice_t *ch, ngx_uint_t n);
u_char *ngx_http_glm_next_token(u_char *p);
void ngx_http_glm_put_ids(ngx_http_glm_out_t *out, u_char *p, ngx_uint_t n);
void ngx_http_glm_put_prompt_logprobs(ngx_http_glm_out_t *out,
    ngx_http_glm_call_t *call);
void ngx_http_glm_put_token(ngx_http_glm_out_t *out, ngx_http_glm_ctx_t *ctx,
    glm_logprob_rec_t *rec, u_char *text);
void ngx_http_glm_put_usage(ngx_http_glm_out_t *out, uint64_t prompt,
    uint64_t completion, uint64_t cached);

/* _message.c: the same of a chat */

void ngx_http_glm_put_message(ngx_http_glm_out_t *out,
    ngx_http_glm_call_t *call, ngx_http_glm_choice_t *ch, ngx_uint_t n);
void ngx_http_glm_stream_message(ngx_http_glm_call_t *call,
    ngx_http_glm_choice_t *ch, ngx_uint_t n);
void ngx_http_glm_stream_role(ngx_http_glm_call_t *call,
    ngx_http_glm_choice_t *ch);

/* _status.c, _metrics.c */

ngx_uint_t ngx_http_glm_is_model(ngx_http_request_t *r, ngx_str_t *served,
    ngx_str_t *name);
ngx_int_t ngx_http_glm_models(ngx_http_request_t *r, ngx_http_glm_ctx_t *ctx);
ngx_int_t ngx_http_glm_health(ngx_http_request_t *r, ngx_http_glm_ctx_t *ctx);
ngx_int_t ngx_http_glm_version(ngx_http_request_t *r,
    ngx_http_glm_ctx_t *ctx);
ngx_int_t ngx_http_glm_status(ngx_http_request_t *r, ngx_http_glm_ctx_t *ctx);
ngx_int_t ngx_http_glm_metrics(ngx_http_request_t *r,
    ngx_http_glm_ctx_t *ctx);
ngx_int_t ngx_http_glm_stats(ngx_http_glm_peer_t *peer, glm_wire_stats_t *st);
ngx_uint_t ngx_http_glm_stale(ngx_http_glm_peer_t *peer);

/* _openapi.c */

ngx_int_t ngx_http_glm_openapi(ngx_http_request_t *r,
    ngx_http_glm_ctx_t *ctx);

/* _error.c */

ngx_int_t ngx_http_glm_error(ngx_http_glm_ctx_t *ctx, ngx_uint_t status,
    const char *code, const char *param, const char *fmt, ...);
ngx_int_t ngx_http_glm_error_engine(ngx_http_glm_ctx_t *ctx);
void ngx_http_glm_error_out(ngx_http_glm_out_t *out,
    ngx_http_glm_error_t *e);
ngx_int_t ngx_http_glm_error_send(ngx_http_request_t *r,
    ngx_http_glm_ctx_t *ctx);
ngx_int_t ngx_http_glm_header(ngx_http_request_t *r, const char *name,
    ngx_str_t *value);
ngx_int_t ngx_http_glm_headers(ngx_http_request_t *r,
    ngx_http_glm_ctx_t *ctx);
ngx_int_t ngx_http_glm_send(ngx_http_request_t *r, ngx_http_glm_ctx_t *ctx,
    ngx_uint_t status, const char *type);
ngx_int_t ngx_http_glm_error_filter_init(ngx_conf_t *cf);

/* _json.c */

#define ngx_http_glm_lit(out, s)                                              \
    ngx_http_glm_put(out, s, sizeof(s) - 1)

void ngx_http_glm_out_init(ngx_http_glm_out_t *out, ngx_pool_t *pool);
void ngx_http_glm_put(ngx_http_glm_out_t *out, const void *p, size_t n);
void ngx_http_glm_put_str(ngx_http_glm_out_t *out, const char *s);
void ngx_http_glm_put_int(ngx_http_glm_out_t *out, int64_t n);
void ngx_http_glm_put_num(ngx_http_glm_out_t *out, double x);
void ngx_http_glm_put_logprob(ngx_http_glm_out_t *out, double x);
void ngx_http_glm_put_escaped(ngx_http_glm_out_t *out, const u_char *p,
    size_t n);
void ngx_http_glm_put_string(ngx_http_glm_out_t *out, const u_char *p,
    size_t n);
ngx_chain_t *ngx_http_glm_out_take(ngx_http_glm_out_t *out, ngx_uint_t last,
    ngx_uint_t flush);
ngx_int_t ngx_http_glm_blob_add(ngx_http_glm_blob_t *b, ngx_pool_t *pool,
    const void *p, size_t n);
ngx_int_t ngx_http_glm_utf8(const u_char *p, size_t n, ngx_uint_t *chars);
void ngx_http_glm_printable(u_char *p, size_t n);
ngx_int_t ngx_http_glm_json_depth(const u_char *p, size_t n, ngx_uint_t max);
ngx_str_t ngx_http_glm_json_key(const u_char *p, size_t n, size_t pos);


#endif /* _NGX_HTTP_GLM_MODULE_H_INCLUDED_ */
