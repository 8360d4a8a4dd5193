/*
 * eval: tasks of the original's evaluation over an engine: multiple choice,
 * generation and perplexity.  A task is a list of files, a file a list of items; a
 * few threads, each with a client of its own, take items in turn.
 */
#ifndef GLM_EVAL_H
#define GLM_EVAL_H

#include <jansson.h>

#include "cli.h"

typedef enum { GLM_EVAL_MUL, GLM_EVAL_GEN, GLM_EVAL_PPL } glm_eval_kind_t;

/* The original's configuration, by its names in evaluation/configs.py. */
typedef struct {
    const glm_cli_t    *cli;
    glm_eval_kind_t     kind;
    char              **file;
    int                 nfile;
    int                 gmask;           /* use_task_mask */
    int                 unidirectional;
    int32_t             max_seq_length;  /* 0: the model's */
    int32_t             max_gen_length;
    int32_t             generation_length;
    int                 beams;           /* sampling_strategy BeamSearchStrategy */
    const char         *documents;       /* PPL: a line that parts documents */
    int                 eop;             /* PPL: each document ends with eop */
    const char         *resume;          /* journal of results */
    int                 parallel;
} glm_eval_opts_t;

/* What an item came to. */
typedef struct {
    int      done;
    double   score[2];    /* MUL: 1 if right, predicted index; GEN: EM, F1; PPL: loss in
                             nats, tokens */
} glm_eval_result_t;

typedef struct {
    const char         *name;            /* as given */
    json_t            **line;            /* MUL, GEN: (n) objects */
    int32_t            *ids;             /* PPL: tokens of the documents, one after another */
    size_t             *start;           /* (ndocs + 1) */
    size_t              ndocs;
    int64_t             words, bytes;    /* PPL: as the original counts; of the text */
    struct glm_eval_window_s {
        size_t   from, prompt, end;      /* ids from .. prompt-1 are given, then targets */
    }                  *window;          /* PPL: (n) */
    size_t              n;               /* items */
    glm_eval_result_t  *result;          /* (n) */
} glm_eval_file_t;

/* One thread's way to the engine; err has the sentence of what failed. */
typedef struct {
    const glm_eval_opts_t  *o;
    glm_client_t           *client;
    int32_t                 max_seq;
    int32_t                 mask;        /* the id that a text without one gets */
    int32_t                 eop;
    glm_err_t               err;
} glm_eval_t;

/* What a request answered; freed with glm_answer_free(). */
typedef struct {
    glm_wbuf_t   ids, text, logprobs;    /* of choice 0; SCORE: see sum */
    double      *sum;                    /* SCORE: (nsum) log-probabilities of choices */
    size_t       nsum;
    uint32_t     nkept;
} glm_answer_t;

typedef enum {
    GLM_COMPLETE, GLM_INFILL, GLM_SCORE, GLM_TOKENIZE, GLM_EVAL, GLM_HELP
} glm_command_t;

/* The command line. */
typedef struct {
    glm_command_t     command;
    glm_cli_t         cli;
    glm_eval_opts_t   eval;              /* gmask: of SCORE, too */
    char            **choice;            /* SCORE: (nchoice) */
    int               nchoice;
} glm_args_t;

/* args.c: the words behind the command.  Exit status; not 0: the line is printed. */
int glm_cli_args(glm_args_t *a, int argc, char **argv);

/* score.c, eval.c: exit status */
int glm_cli_score(const glm_args_t *a);
int glm_cli_eval(const glm_eval_opts_t *o);

/* eval_call.c: one request at a time over e->client; 0 or a negative error. */
int glm_eval_call(glm_eval_t *e, glm_client_submit_t *s, glm_answer_t *a);
void glm_answer_free(glm_answer_t *a);
/* Ids of a text, masks recognised, nothing added. */
int glm_eval_tokenize(glm_eval_t *e, const char *s, size_t n, glm_answer_t *a);
int glm_eval_detokenize(glm_eval_t *e, const int32_t *ids, size_t n, glm_answer_t *a);
/* Ids of item's key (ids) or key_pretokenized (text), as the original reads them. */
int glm_eval_input(glm_eval_t *e, const json_t *item, const char *key, glm_wbuf_t *ids);
int glm_eval_ids(glm_eval_t *e, const json_t *value, glm_wbuf_t *ids);
/* A list of them under key or key_pretokenized; NULL where there is none. */
const json_t *glm_eval_list(const json_t *item, const char *key);
int glm_eval_has(const glm_wbuf_t *ids, int32_t id);

/* eval_tasks.c, eval_ppl.c: an item's result */
int glm_eval_mul(glm_eval_t *e, const json_t *item, glm_eval_result_t *r);
int glm_eval_gen(glm_eval_t *e, const json_t *item, glm_eval_result_t *r);
int glm_eval_ppl(glm_eval_t *e, const glm_eval_file_t *f, size_t i, glm_eval_result_t *r);

/* eval_file.c: items of a file; PPL tokenizes through e. */
int glm_eval_load(glm_eval_t *e, glm_eval_file_t *f);
void glm_eval_unload(glm_eval_file_t *f);

/* eval_metrics.c: 0 to 1, as the original's metrics.py */
double glm_eval_em(const char *prediction, const char *target);
double glm_eval_f1(const char *prediction, const char *target);

/* eval_journal.c: results kept across runs of the same task on the same model. */
typedef struct glm_journal_s  glm_journal_t;
int glm_journal_open(glm_journal_t **out, const glm_eval_opts_t *o, glm_eval_file_t *files,
    const glm_sock_welcome_t *w, glm_err_t *err);
int glm_journal_add(glm_journal_t *j, int file, size_t item, const glm_eval_result_t *r);
void glm_journal_close(glm_journal_t *j);      /* NULL is fine */

#endif
