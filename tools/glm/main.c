/*
 * glm: the smallest client of an engine.  Its commands.
 * Exit status: 0; 1 the engine or the way to it failed; 2 wrong use.
 */
#include <stdlib.h>
#include <string.h>

#include "eval.h"
#include "log.h"
#include "options.h"
#include "version.h"

static const char  usage[] =
    "Usage: glm complete [options] PROMPT|-\n"
    "       glm infill [options] PROMPT|-\n"
    "       glm score [options] PROMPT|- CHOICE...\n"
    "       glm tokenize [options] TEXT|-\n"
    "       glm eval [options] mul|gen|ppl FILE...\n"
    "\n"
    "  --socket PATH          of a running glm-engine ($GLM_SOCKET, or " GLM_DAEMON_SOCKET ")\n"
    "  --model DIR            no server: an engine inside of this process; also takes\n"
    "                         --backend --tp --threads --isa --load-format --kv-tokens\n"
    "  --ids                  complete, infill: the prompt is ids, ids are printed\n"
    "                         score: prompt and choices are ids\n"
    "                         tokenize: TEXT is ids, its text is printed\n"
    "  --json                 one JSON object\n"
    "  --plain                [MASK], [gMASK] and [sMASK] in the prompt are text\n"
    "  --no-special           add no mask and eos to the prompt\n"
    "\n"
    "complete; infill, which fills every mask of the prompt:\n"
    "  --max-tokens N         of a blank; -1: as many as the context leaves (128)\n"
    "  --temperature X        0: greedy (0)\n"
    "  --top-k N  --top-p X  --min-p X  --seed N\n"
    "  --presence-penalty X  --frequency-penalty X       -2 to 2 (0)\n"
    "  --repetition-penalty X (1)  --min-tokens N\n"
    "  --stop TEXT            may be repeated\n"
    "  --num-beams N          a beam search; --length-penalty X (1) --no-repeat-ngram-size N\n"
    "  --echo                 the prompt's text comes first\n"
    "  --logprobs N           0 to 20, with --json\n"
    "  --mode bidirectional|unidirectional\n"
    "\n"
    "score, log-probabilities of choices, best first:\n"
    "  --gmask                a prompt without a mask gets [gMASK], else [MASK]\n"
    "  --mode bidirectional|unidirectional\n"
    "\n"
    "eval, the tasks of the original's evaluation (docs/GLM.md):\n"
    "  mul FILE.jsonl         accuracy; inputs_pretokenized, choices_pretokenized, label\n"
    "  gen FILE.jsonl         exact match and F1; inputs_pretokenized, targets_pretokenized;\n"
    "                         greedy, or --num-beams with its options; --max-gen-length N (128)\n"
    "  ppl FILE               perplexity of a text; --generation-length N (256);\n"
    "                         --documents LINE: such lines part it; --eop: each ends with eop\n"
    "  --gmask  --unidirectional  --max-seq-length N     as the original's use_task_mask, ..\n"
    "  --resume FILE          results are kept there, and not computed again\n"
    "  --parallel N           items at a time (8)\n"
    "\n"
    "A prompt of - is read from standard input, newlines and all.  Text is printed as it\n"
    "comes; Ctrl-C cancels.\n";

static const char *const  commands[] = { "complete", "infill", "score", "tokenize", "eval" };

static int
run(const glm_args_t *a)
{
    switch (a->command) {
    case GLM_COMPLETE: return glm_cli_complete(&a->cli);
    case GLM_INFILL:   return glm_cli_infill(&a->cli);
    case GLM_SCORE:    return glm_cli_score(a);
    case GLM_TOKENIZE: return glm_cli_tokenize(&a->cli);
    case GLM_EVAL:     return glm_cli_eval(&a->eval);
    default:           return fputs(usage, stdout) < 0 ? GLM_CLI_FAIL : GLM_CLI_OK;
    }
}

int
main(int argc, char **argv)
{
    int          rc;
    glm_err_t    err = {{0}};
    const char  *socket = getenv("GLM_SOCKET");
    glm_args_t   a = {
        .command = GLM_HELP,
        .cli = {
            .socket = socket != NULL && *socket ? socket : GLM_DAEMON_SOCKET, .max_tokens = 128,
            .sampling = { .size = sizeof(glm_sec_sampling_t), .logprobs = -1,
                          .prompt_logprobs = -1, .length_penalty = 1 },
            .engine = GLM_ENGINE_OPTS_DEFAULT,
        },
        .eval = { .max_gen_length = 128, .generation_length = 256, .parallel = 8 },
    };

    if (argc >= 2 && strcmp(argv[1], "--version") == 0) {
        printf("glm %s, wire ABI %d\n", GLM_VERSION, GLM_WIRE_ABI);
        return GLM_CLI_OK;
    }
    if (argc >= 2 && strcmp(argv[1], "--help") == 0) return run(&a);
    for (int i = 0; i < (int) (sizeof(commands) / sizeof(commands[0])); i++)
        if (argc >= 2 && strcmp(argv[1], commands[i]) == 0) a.command = (glm_command_t) i;
    if (a.command == GLM_HELP) {
        return glm_cli_wrong("a command is needed: complete, infill, score, tokenize or eval; "
                             "glm --help tells more");
    }
    glm_cli_signals();
    glm_log_level("warn");       /* an engine inside has no log of its own */
    rc = glm_cli_args(&a, argc - 2, argv + 2);
    if (rc == GLM_CLI_OK && glm_model_backend(a.cli.engine.model.backend, &err) != 0) {
        rc = glm_cli_fail(err.text);
    }
    if (rc == GLM_CLI_OK) rc = run(&a);
    glm_text_free(&a.cli.prompt);
    return rc;
}
