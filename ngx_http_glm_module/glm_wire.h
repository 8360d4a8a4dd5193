/*
 * glm_wire: the bytes between a client (nginx worker, glm, a test) and
 * glm-engine.  Layout only, no code.  docs/wire.md tells the same as a format.
 *
 * Rules.  Little-endian, natural alignment, 8-byte aligned records.  Structures
 * grow at their end only: each fixed part begins with its size, a reader takes
 * missing bytes as zero and refuses bytes beyond what it knows unless they are
 * zero.  Everything in shared memory is hostile: copy once, check the copy.
 */
#ifndef GLM_WIRE_H
#define GLM_WIRE_H

#include <stddef.h>
#include <stdint.h>

#define GLM_WIRE_MAGIC       0x314d4c47u     /* "GLM1" */
#define GLM_WIRE_ABI         1               /* what this tree speaks */
#define GLM_WIRE_ABI_OLDEST  1               /* oldest served: the previous one, when
                                                there is one */

#define GLM_WIRE_ALIGN       8
#define GLM_WIRE_MAX_RECORD  65536           /* bytes, header included */
#define GLM_WIRE_MIN_RING    (64 * 1024)     /* bytes of data, power of two */
#define GLM_WIRE_MAX_RING    (16 * 1024 * 1024)
#define GLM_WIRE_NAME        128

/* ---- the socket: SOCK_SEQPACKET, one datagram a message ---- */

enum {
    GLM_SOCK_HELLO   = 1,     /* client -> engine, the first message */
    GLM_SOCK_WELCOME = 2,     /* engine -> client, with two descriptors:
                                 ring memfd, statistics memfd */
    GLM_SOCK_REFUSE  = 3,     /* engine -> client, then EOF */
    GLM_SOCK_BELL    = 4      /* either way: look at your ring */
};

typedef struct {
    uint32_t  magic;          /* GLM_WIRE_MAGIC */
    uint16_t  type;           /* GLM_SOCK_* */
    uint16_t  reserved;       /* 0 */
} glm_sock_head_t;            /* a BELL is this alone */

typedef struct {
    glm_sock_head_t  head;
    uint32_t  size;           /* of this structure */
    uint16_t  abi_min;        /* the client speaks abi_min .. abi_max */
    uint16_t  abi_max;
    uint32_t  submit_bytes;   /* wished ring sizes; the engine clamps */
    uint32_t  complete_bytes;
    uint32_t  kind;           /* 0 other, 1 nginx worker, 2 glm, 3 test */
    uint32_t  reserved;       /* 0 */
    char      name[32];       /* for the log; not terminated when full */
} glm_sock_hello_t;

typedef struct {
    glm_sock_head_t  head;
    uint32_t  size;
    uint16_t  abi;            /* the one spoken from now on */
    uint16_t  flags;          /* GLM_WELCOME_* */
    uint64_t  instance;       /* random, new with each engine process */
    uint64_t  fingerprint;    /* weights, quantisation, kernels, generation of a card */
    uint64_t  created;        /* unix seconds the model was loaded */
    uint64_t  ring_bytes;     /* of the memfd */
    uint64_t  submit_offset;  /* of the submission ring's glm_ring_shared_t */
    uint64_t  complete_offset;
    uint32_t  submit_bytes;   /* data bytes, a power of two */
    uint32_t  complete_bytes;
    uint32_t  max_live;       /* requests of this client at a time */
    uint32_t  max_message;    /* bytes of a SUBMIT, all records' payloads */
    uint32_t  max_seq;        /* tokens: prompt + sop + completion */
    uint32_t  vocab;
    uint32_t  max_stops;
    uint32_t  max_logprobs;
    uint32_t  max_n;
    uint32_t  name_size;      /* bytes of name in use */
    uint64_t  spool_share;    /* bytes of output kept for this client */
    char      name[GLM_WIRE_NAME];   /* model name, UTF-8 */
} glm_sock_welcome_t;

#define GLM_WELCOME_TOKENIZER  1   /* text goes in and comes out */

typedef struct {
    glm_sock_head_t  head;
    uint32_t  size;
    uint32_t  reason;         /* GLM_REFUSE_* */
    char      text[240];      /* NUL-terminated */
} glm_sock_refuse_t;

enum {
    GLM_REFUSE_LOADING  = 1,  /* try again */
    GLM_REFUSE_ABI      = 2,
    GLM_REFUSE_CLIENTS  = 3,  /* too many */
    GLM_REFUSE_HELLO    = 4,  /* malformed */
    GLM_REFUSE_DRAINING = 5
};

/* ---- the ring memfd: two rings, each this and then its data ---- */

#define GLM_RING_LINE  128    /* two lines: neighbours are prefetched */

typedef struct {
    /* free-running byte counters, multiples of 8; masked on use */
    _Alignas(GLM_RING_LINE) uint64_t  head;             /* written by the reader */
    _Alignas(GLM_RING_LINE) uint64_t  tail;             /* written by the writer */
    _Alignas(GLM_RING_LINE) uint32_t  reader_sleeps;    /* set by the reader, taken
                                                           by the writer with a BELL */
    uint32_t  reserved0;
    _Alignas(GLM_RING_LINE) uint32_t  writer_waits;     /* for room: set by the writer,
                                                           taken by the reader, BELL */
    uint32_t  reserved1;
} glm_ring_shared_t;

/* ---- records and messages ---- */

typedef struct {
    uint32_t  size;           /* of the record with this header; the next record
                                 begins at the next multiple of 8 */
    uint16_t  type;           /* GLM_MSG_* */
    uint16_t  flags;          /* GLM_REC_* */
    uint64_t  id;             /* request; picked by the client, free again after
                                 DONE or ERROR */
} glm_rec_t;

#define GLM_REC_MORE  1       /* the message goes on in the next record of this id */

enum {
    GLM_MSG_PAD      = 0,     /* fills the end of the ring; only size and type
                                 need to be there (8 bytes) */
    GLM_MSG_SUBMIT   = 1,     /* client -> engine */
    GLM_MSG_GO       = 2,
    GLM_MSG_WINDOW   = 3,
    GLM_MSG_CANCEL   = 4,

    GLM_MSG_ACCEPTED = 16,    /* engine -> client */
    GLM_MSG_PROMPT   = 17,
    GLM_MSG_TOKENS   = 18,
    GLM_MSG_FINISH   = 19,
    GLM_MSG_DONE     = 20,
    GLM_MSG_ERROR    = 21,
    GLM_MSG_FILLED   = 22
};

/* Records of these take their size off the request's window. */
#define GLM_MSG_COSTS(type)                                                       \
    ((type) == GLM_MSG_TOKENS || (type) == GLM_MSG_PROMPT || (type) == GLM_MSG_FILLED)

/* A message is a fixed part and then sections, each padded to 8 bytes. */
typedef struct {
    uint16_t  type;           /* GLM_SEC_* */
    uint16_t  flags;          /* GLM_SEC_CRITICAL: refuse if unknown, by name */
    uint32_t  size;           /* of the payload after this header, unpadded */
} glm_sec_t;

#define GLM_SEC_CRITICAL  1

enum {
    /* prompt, in the order of the text (SUBMIT) */
    GLM_SEC_TEXT     = 1,     /* UTF-8, masks recognised; also the text of PROMPT,
                                 TOKENS and ERROR */
    GLM_SEC_PLAIN    = 2,     /* UTF-8, masks are text */
    GLM_SEC_IDS      = 3,     /* int32 ids; also the ids of PROMPT and TOKENS */

    GLM_SEC_SAMPLING = 16,    /* glm_sec_sampling_t */
    GLM_SEC_STOPS    = 17,    /* strings (glm_str_t) */
    GLM_SEC_STOP_IDS = 18,    /* int32 */
    GLM_SEC_BIAS     = 19,    /* glm_bias_t */
    GLM_SEC_ALLOW    = 20,    /* int32: allowed_token_ids */
    GLM_SEC_BAD      = 21,    /* strings: bad_words */
    GLM_SEC_SCORE_IDS = 22,   /* int32: logprob_token_ids */
    GLM_SEC_REPEAT   = 23,    /* glm_sec_repeat_t: repetition_detection */
    GLM_SEC_GRAMMAR  = 24,    /* glm_sec_grammar_t and its source text */
    GLM_SEC_CHOICES  = 25,    /* glm_choice_t each: SCORE */
    GLM_SEC_RESUME   = 26,    /* glm_sec_resume_t */
    GLM_SEC_SUFFIX   = 27,    /* UTF-8 after the blank */
    GLM_SEC_USER     = 28,    /* UTF-8 for the log: request id */
    GLM_SEC_STOPTEXT = 29,    /* FINISH: the stop string that hit */

    GLM_SEC_LOGPROBS = 32,    /* TOKENS, PROMPT: glm_logprob_rec_t each */
    GLM_SEC_SPANS    = 33     /* FILLED: glm_span_rec_t each */
};

/* A string in a list: size, bytes, padded to 4. */
typedef struct {
    uint32_t  size;           /* bytes that follow */
} glm_str_t;

enum {
    GLM_SUBMIT_GENERATE   = 1,
    GLM_SUBMIT_INFILL     = 2,
    GLM_SUBMIT_SCORE      = 3,
    GLM_SUBMIT_TOKENIZE   = 4,
    GLM_SUBMIT_DETOKENIZE = 5
};

/* flags of a SUBMIT */
#define GLM_F_HOLD            0x0001   /* ACCEPTED, then wait for GO */
#define GLM_F_ADD_SPECIAL     0x0002   /* add mask and eos as the original does */
#define GLM_F_ECHO            0x0004
#define GLM_F_IGNORE_EOS      0x0008
#define GLM_F_INCLUDE_STOP    0x0010
#define GLM_F_PROMPT_IDS      0x0020   /* send the prompt's ids in PROMPT */
#define GLM_F_PROMPT_TEXT     0x0040   /* and its text */
#define GLM_F_SPECIAL_TEXT    0x0080   /* skip_special_tokens false */
#define GLM_F_TOKEN_STRS      0x0100   /* TOKENIZE: names of the ids too */
#define GLM_F_BEAM            0x0200
#define GLM_F_TRUNCATE_RIGHT  0x0400   /* truncation_side */
#define GLM_F_NO_CACHE        0x0800
#define GLM_F_EOS_TEXT        0x1000   /* TOKENIZE: the exact eos name is its id */
#define GLM_F_GMASK           0x2000   /* the mask that SUFFIX or SCORE adds is [gMASK] */
#define GLM_F_COUNT_POSITIONS 0x4000   /* SCORE: positions go on after the context */
#define GLM_F_ALL             0x7fff

typedef struct {
    uint32_t  size;           /* of this structure */
    uint8_t   op;             /* GLM_SUBMIT_* */
    uint8_t   mode;           /* 0 bidirectional, 1 unidirectional */
    uint16_t  reserved0;      /* 0 */
    uint32_t  flags;          /* GLM_F_* */
    uint32_t  n;              /* choices */
    uint32_t  best_of;        /* 0: n */
    int32_t   max_tokens;     /* per choice and blank; -1: what the context leaves */
    int32_t   truncate;       /* truncate_prompt_tokens; 0: off, -1: model length */
    uint32_t  reserved1;
    uint64_t  window;         /* bytes of records granted, of GLM_MSG_COSTS */
    uint64_t  deadline;       /* us from receipt in which it must start; 0: none */
    uint64_t  group;          /* the prompts of one HTTP request share it */
    uint32_t  group_index;    /* 0 .. group_count - 1 */
    uint32_t  group_count;    /* admitted together or refused together; 0 as 1 */
    uint64_t  tenant;
    uint32_t  tenant_weight;  /* 0 as 1 */
    uint32_t  reserved2;
    int64_t   priority;       /* lower runs first */
    uint64_t  cache_salt;
} glm_msg_submit_t;

/* flags of glm_sec_sampling_t */
#define GLM_SAMPLING_SEED     1    /* seed is given; else the engine draws one */

typedef struct {
    uint32_t  size;
    uint32_t  flags;          /* GLM_SAMPLING_* */
    uint64_t  seed;
    float     temperature;    /* 0: greedy */
    float     top_p;          /* 0 or 1: off */
    float     min_p;          /* 0: off */
    int32_t   top_k;          /* 0: off */
    float     presence;       /* penalties; 0, 0 and 1 (or 0): off */
    float     frequency;
    float     repetition;
    int32_t   logprobs;       /* -1: none; else 0 .. max_logprobs */
    int32_t   prompt_logprobs;   /* -1: none */
    int32_t   min_tokens;
    uint32_t  beams;          /* 0 or 1: no beam search */
    float     length_penalty;
    uint32_t  no_repeat_ngram;   /* 0: off */
    uint32_t  reserved;
} glm_sec_sampling_t;

typedef struct { int32_t id; float bias; } glm_bias_t;

typedef struct {
    uint32_t  size, min_length, max_length, min_count;   /* tokens, tokens, times */
} glm_sec_repeat_t;

typedef struct {
    uint32_t  size;
    uint32_t  kind;           /* 1 JSON schema, 2 any JSON, 3 regex, 4 EBNF, 5 choice */
} glm_sec_grammar_t;          /* then the source, UTF-8 */

typedef struct {
    uint32_t  kind;           /* GLM_SEC_PLAIN or GLM_SEC_IDS */
    uint32_t  size;           /* bytes that follow, padded to 4 */
} glm_choice_t;

typedef struct {
    uint32_t  size;
    uint32_t  choice, blank;
    uint32_t  nids;           /* int32 ids follow: generated so far */
    uint64_t  sent;           /* bytes of text that the client has */
    uint64_t  seed;           /* from ACCEPTED */
} glm_sec_resume_t;

typedef struct {
    uint32_t  size;
    uint32_t  reserved;
    uint64_t  bytes;          /* more of them granted */
} glm_msg_window_t;           /* GO and CANCEL have no payload */

typedef struct {
    uint32_t  size;
    int32_t   prompt_tokens;
    int32_t   max_tokens;     /* largest completion of a choice */
    uint32_t  queue_depth;    /* requests waiting before this one */
    uint64_t  seed;           /* the seed used */
} glm_msg_accepted_t;

/* PROMPT: sections only (IDS, TEXT, LOGPROBS) after this; TOKENIZE answers with
 * IDS (and, asked for, STRS as LOGPROBS records), DETOKENIZE with TEXT. */
typedef struct {
    uint32_t  size;
    uint32_t  flags;          /* 0 */
} glm_msg_prompt_t;

typedef struct {
    uint32_t  size;
    uint32_t  choice;
    uint32_t  blank;
    uint32_t  ntokens;        /* ids in the IDS section */
} glm_msg_tokens_t;           /* sections IDS, TEXT (only whole UTF-8 characters),
                                 LOGPROBS (ntokens groups) */

/* One log-probability; a token's own record, then its ntop best ones. */
typedef struct {
    int32_t   id;
    float     logprob;        /* natural logarithm, raw distribution */
    uint32_t  offset;         /* characters of the answer before this token; 0 in
                                 the top list */
    uint16_t  ntop;           /* records that follow for this token */
    uint16_t  text_size;      /* bytes of the token's text that follow, padded to
                                 4; a byte token has its one byte */
} glm_logprob_rec_t;

enum {
    GLM_REASON_STOP   = 1,
    GLM_REASON_LENGTH = 2,
    GLM_REASON_CANCEL = 3,
    GLM_REASON_ERROR  = 4,
    GLM_REASON_REPEAT = 5
};

typedef struct {
    uint32_t  size;
    uint32_t  choice;
    uint32_t  blank;
    uint32_t  reason;         /* GLM_REASON_* */
    int32_t   stop_id;        /* stop_token_ids entry that hit, or -1 */
    int32_t   stop_index;     /* index of the stop string that hit, or -1 */
    uint32_t  ntokens;        /* generated, end token counted */
    uint32_t  nkept;          /* tokens that belong to the answer */
    float     score;          /* beams: with length penalty; SCORE: sum */
    uint32_t  reserved;
} glm_msg_finish_t;

/* INFILL: a choice with all its blanks filled; sections TEXT (the whole) and SPANS. */
typedef struct {
    uint32_t  size;
    uint32_t  choice;
} glm_msg_filled_t;

typedef struct { uint32_t start, end; } glm_span_rec_t;   /* characters of a blank */

typedef struct {
    uint32_t  size;
    uint32_t  cancelled;      /* 1 after a CANCEL that came in time */
    uint32_t  prompt_tokens;
    uint32_t  completion_tokens;
    uint32_t  cached_tokens;
    uint32_t  reserved;
    uint64_t  queue_ns;       /* submit to start */
    uint64_t  first_ns;       /* submit to first token; 0: none came */
    uint64_t  total_ns;       /* submit to end */
} glm_msg_done_t;

typedef struct {
    uint32_t  size;
    uint32_t  status;         /* HTTP class: 400, 404, 500, 501, 503, 504 */
    uint32_t  retry_after;    /* seconds; 0: none */
    uint32_t  reserved;
    int64_t   limit, value;
    char      code[48];       /* NUL-terminated, may be "" */
    char      param[48];
} glm_msg_error_t;            /* section TEXT: one sentence */

/* ---- the statistics memfd: read-only for clients ---- */

#define GLM_STATS_BUCKETS  24

/* Upper bounds (inclusive) of a histogram's buckets, us; the last has none. */
#define GLM_STATS_BOUNDS_US                                                       \
    { 100, 250, 500, 1000, 2500, 5000, 10000, 25000, 50000, 100000, 250000,       \
      500000, 1000000, 2500000, 5000000, 10000000, 25000000, 50000000, 100000000, \
      250000000, 500000000, 1000000000, 2500000000 }

typedef struct {
    uint64_t  count, sum_us;
    uint64_t  bucket[GLM_STATS_BUCKETS];   /* not cumulative */
} glm_stats_hist_t;

/* Sequence lock: seq is odd while the engine writes; read seq, copy, read seq
 * again, a bounded number of times. */
typedef struct {
    uint32_t  seq;
    uint32_t  size;           /* of this structure */
    uint64_t  heartbeat_ns;   /* CLOCK_MONOTONIC: the step thread last ended a step
                                 or was idle */
    uint64_t  started_ns;
    uint32_t  running, waiting, paused, draining;
    uint32_t  kv_pages_total, kv_pages_used;
    uint32_t  clients, reserved0;
    uint64_t  requests, accepted, refused;
    uint64_t  finished_stop, finished_length, finished_cancel, finished_error;
    uint64_t  prompt_tokens, generated_tokens, cached_tokens;
    uint64_t  steps, prefills, rows, preemptions;
    uint64_t  spool_bytes, ring_full;
    glm_stats_hist_t  ttft, tpot, e2e, queue;
} glm_wire_stats_t;

/* ---- layout as other programs rely on it ---- */

#define GLM_WIRE_AT(t, f, o)  _Static_assert(offsetof(t, f) == (o), #t "." #f " moved")
#define GLM_WIRE_IS(t, n)     _Static_assert(sizeof(t) == (n), #t " changed size")

GLM_WIRE_IS(glm_sock_head_t, 8);
GLM_WIRE_AT(glm_sock_hello_t, abi_min, 12);
GLM_WIRE_AT(glm_sock_hello_t, name, 32);
GLM_WIRE_IS(glm_sock_hello_t, 64);
GLM_WIRE_AT(glm_sock_welcome_t, instance, 16);
GLM_WIRE_AT(glm_sock_welcome_t, submit_bytes, 64);
GLM_WIRE_AT(glm_sock_welcome_t, spool_share, 104);
GLM_WIRE_AT(glm_sock_welcome_t, name, 112);
GLM_WIRE_IS(glm_sock_welcome_t, 240);
GLM_WIRE_IS(glm_sock_refuse_t, 256);
GLM_WIRE_AT(glm_ring_shared_t, head, 0);
GLM_WIRE_AT(glm_ring_shared_t, tail, 128);
GLM_WIRE_AT(glm_ring_shared_t, reader_sleeps, 256);
GLM_WIRE_AT(glm_ring_shared_t, writer_waits, 384);
GLM_WIRE_IS(glm_ring_shared_t, 512);
GLM_WIRE_AT(glm_rec_t, id, 8);
GLM_WIRE_IS(glm_rec_t, 16);
GLM_WIRE_IS(glm_sec_t, 8);
GLM_WIRE_AT(glm_msg_submit_t, window, 32);
GLM_WIRE_AT(glm_msg_submit_t, group, 48);
GLM_WIRE_AT(glm_msg_submit_t, priority, 80);
GLM_WIRE_IS(glm_msg_submit_t, 96);
GLM_WIRE_AT(glm_sec_sampling_t, temperature, 16);
GLM_WIRE_AT(glm_sec_sampling_t, logprobs, 44);
GLM_WIRE_IS(glm_sec_sampling_t, 72);
GLM_WIRE_IS(glm_sec_repeat_t, 16);
GLM_WIRE_IS(glm_sec_grammar_t, 8);
GLM_WIRE_IS(glm_choice_t, 8);
GLM_WIRE_IS(glm_sec_resume_t, 32);
GLM_WIRE_IS(glm_msg_window_t, 16);
GLM_WIRE_IS(glm_msg_accepted_t, 24);
GLM_WIRE_IS(glm_msg_prompt_t, 8);
GLM_WIRE_IS(glm_msg_tokens_t, 16);
GLM_WIRE_IS(glm_logprob_rec_t, 16);
GLM_WIRE_IS(glm_msg_finish_t, 40);
GLM_WIRE_IS(glm_msg_filled_t, 8);
GLM_WIRE_IS(glm_span_rec_t, 8);
GLM_WIRE_AT(glm_msg_done_t, queue_ns, 24);
GLM_WIRE_IS(glm_msg_done_t, 48);
GLM_WIRE_AT(glm_msg_error_t, limit, 16);
GLM_WIRE_AT(glm_msg_error_t, code, 32);
GLM_WIRE_IS(glm_msg_error_t, 128);
GLM_WIRE_IS(glm_stats_hist_t, 208);
GLM_WIRE_AT(glm_wire_stats_t, running, 24);
GLM_WIRE_AT(glm_wire_stats_t, requests, 56);
GLM_WIRE_AT(glm_wire_stats_t, ttft, 184);
GLM_WIRE_IS(glm_wire_stats_t, 1016);

#endif
