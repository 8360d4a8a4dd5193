/*
 * fake_engine: engine.h without a model.  What happens to a request is written
 * in its prompt, in a word list that begins with "fake:", or in the defaults.
 * Everything else (wire, rings, spool) is the real server.
 *
 *   tokens=N     how many (default: max_tokens, 16 when that is -1)
 *   delay=MS     before each token;  first=MS before the first;  burst=N a step
 *   accept=MS    before ACCEPTED (slowaccept: 500)
 *   bytes=N      text of a token: N letters;  text=WORD: that word ('_': blank)
 *   utf8         one byte of "é漢😀" a token, text held back until it is whole
 *   held         no text before the last token
 *   bychoice     token i of choice c is "cC.I "
 *   echo         the answer is the prompt's bytes
 *   reason=stop|length|error  stopindex=N  stopid=ID  (of FINISH)
 *   error=STATUS code=W param=W message=W retry=S limit=N value=N at submit;
 *   errorat=K    after K tokens, with the same fields
 *   hang hangat=K die dieat=K garbage garbageat=K   at submit or after K tokens:
 *                say nothing more; end the process; break the client's ring
 *   nofinish nodone nocancel noids nofilled          leave that out
 *   blanks=N     of INFILL (default: as many as the prompt has [MASK] and [sMASK])
 *   badspan skipblank                                of INFILL: nonsense
 *   stall=MS     the whole engine stands still (0: for good), heartbeat too
 *   queue=N cached=N                                 in ACCEPTED, DONE
 *
 * ECHO and prompt_logprobs are answered: an id and a group a byte, logprob
 * -0.5 - index / 8, the first one none.  best_of counts its tokens.
 *
 * INFILL fills each blank with tokens=N and puts the fills where the masks are; no mask
 * is a 400.  Beams come at once, after the time of their tokens, candidate c with the
 * score -1.5 (c + 1); of several blanks the first candidate tells all but the last.
 * SCORE: an id a byte, id i has the log-probability -(i % 8 + 1) / 8, twice that after
 * an empty prompt.
 *
 * Vocabulary: ids 0..255 are bytes, id N above prints "tN ", 19990 is [MASK],
 * 19991 <eos>, 19992 <sop>.  A prompt has an id a byte.
 */
#ifndef GLM_FAKE_ENGINE_H
#define GLM_FAKE_ENGINE_H

#include "engine.h"

#define FAKE_VOCAB  20000
#define FAKE_MASK   19990
#define FAKE_EOS    19991
#define FAKE_SOP    19992

typedef struct {
    const char  *name;        /* model name */
    const char  *defaults;    /* words for requests that have none */
    const char  *script;      /* file: "PATTERN words" a line, first match in the
                                 prompt wins; '*' matches all */
    int          max_seq;     /* 2048 */
    int          slots;       /* requests that run at a time; 0: all */
    int          max_queue;   /* that wait for one; beyond: 503 */
} fake_opts_t;

/* Before glm_engine_start().  Kept by reference. */
void fake_engine_opts(const fake_opts_t *o);

/* What an id prints; for glm_server_opts_t.token_text. */
const char *fake_token_text(void *arg, int32_t id, size_t *n);

/* Tests: requests that the engine has now, and those it ever got. */
int fake_engine_jobs(void);

#endif
