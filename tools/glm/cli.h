/*
 * cli: what the commands of the glm program share: parsed options, the way to an
 * engine, and output.
 */
#ifndef GLM_CLI_H
#define GLM_CLI_H

#include <stdio.h>

#include "client.h"
#include "engine.h"
#include "ring_server.h"

#define GLM_CLI_OK     0
#define GLM_CLI_FAIL   1          /* the engine, or the way to it */
#define GLM_CLI_USAGE  2

#define GLM_CLI_STOPS  64

typedef struct {
    const char         *socket;
    glm_engine_opts_t   engine;   /* model_dir set: an engine inside this process */

    int                 ids, json, plain, no_special;
    glm_sec_sampling_t  sampling;
    int32_t             max_tokens;
    int                 mode;     /* 1: unidirectional */
    int                 echo;
    const char         *stop[GLM_CLI_STOPS];
    int                 nstop;
    glm_text_t          prompt;   /* bytes as given, or from standard input */
} glm_cli_t;

/* A client, and the engine behind it when it is in this process. */
typedef struct {
    glm_client_t  *client;
    glm_engine_t  *engine;
    glm_server_t  *server;
} glm_link_t;

/* link.c: the error line is printed.  Exit status. */
int glm_cli_open(glm_link_t *l, const glm_cli_t *o);
void glm_cli_close(glm_link_t *l);

/* Prints "glm: text" and returns GLM_CLI_FAIL. */
int glm_cli_fail(const char *text);
int glm_cli_refused(const glm_event_t *ev);          /* an ERROR message */

/* Adds the prompt's section; GLM_CLI_USAGE, with a line, for wrong ids. */
int glm_cli_prompt(const glm_cli_t *o, glm_client_submit_t *s);

/* Whether Ctrl-C was pressed; glm_cli_signals() makes it ask. */
void glm_cli_signals(void);
int glm_cli_interrupted(void);

/*
 * Submits s and hands each message to event until the request ends; Ctrl-C, or
 * event returning nonzero, cancels it.  Exit status.
 */
typedef int (*glm_cli_event_pt)(void *arg, const glm_event_t *ev);
int glm_cli_run(glm_link_t *l, glm_client_submit_t *s, glm_cli_event_pt event, void *arg);

/* A further client of an open link's engine, closed with glm_client_free(). */
int glm_cli_join(glm_link_t *out, const glm_link_t *l, const glm_cli_t *o, glm_err_t *err);

/* Numbers of a text, for --ids; 0 or -1. */
int glm_cli_ids(const char *s, size_t n, glm_wbuf_t *out);

/* Prints "glm: text" and returns GLM_CLI_USAGE. */
int glm_cli_wrong(const char *text);

/* A SUBMIT of one choice with all options; GLM_CLI_USAGE as glm_cli_prompt(). */
int glm_cli_build(const glm_cli_t *o, uint8_t op, glm_client_submit_t *s);

/* complete.c, infill.c, tokenize.c: exit status */
int glm_cli_complete(const glm_cli_t *o);
int glm_cli_infill(const glm_cli_t *o);
int glm_cli_tokenize(const glm_cli_t *o);

/* json_out.c */
void glm_json_string(FILE *f, const char *s, size_t n);   /* not UTF-8: "bytes:\xNN" */
void glm_json_ids(FILE *f, const int32_t *ids, size_t n);
const char *glm_json_reason(uint32_t reason);             /* GLM_REASON_*, quoted */

#endif
