/*
 * glm-convert: options and signals.  Exit status: 0 done, 1 failed with a
 * line that says why, 2 wrong usage.
 */
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "calib.h"
#include "convert.h"

static volatile sig_atomic_t  stopped;

static const char  usage[] =
    "usage: glm-convert [options] SRC DST\n"
    "\n"
    "Converts a checkpoint of the original GLM-130B code to a model directory DST\n"
    "for glm-engine.  SRC is a directory with `latest` and\n"
    "<iteration>/mp_rank_NN_model_states.pt (any number of ranks; fp16, bf16, fp32,\n"
    "or quantised by the original), or the archive of one: a .tar, a part of it,\n"
    "or the directory with all the parts.\n"
    "\n"
    "  --config FILE      config.json of the model [SRC/config.json];\n"
    "                     \"glm-130b\" is that of the published model\n"
    "  --tokenizer DIR    take the tokenizer's files from DIR [SRC]\n"
    "  --quant TYPE       weights of linears as int8, int4 (a scale for each row),\n"
    "                     int4-g32 or int4-g128 (one for 32 or 128 columns)\n"
    "  --quant-ranks N    int8, int4: scales for each of N ranks' columns where\n"
    "                     ranks share them, as the original's files for N ranks\n"
    "  --quant-except PATTERN=TYPE  another type, or fp16, for some weights;\n"
    "                     '*.0.mlp.*=fp16'; may be repeated, the last wins\n"
    "  --calibrate FILE   quantise for the inputs that this text gives, instead of\n"
    "                     to the nearest: slower, and closer to the model\n"
    "  --calibrate-tokens N  of the text, at most [65536]\n"
    "  --shard-size SIZE  largest file, with suffix K, M or G (powers of 1000)\n"
    "                     [5G]; a single tensor may be larger\n"
    "  --no-checksums     leave the checksums of tensors out\n"
    "  -f, --force        replace the model, or the unfinished one, that is in DST\n"
    "  -n, --dry-run      check names, shapes and types, write nothing\n"
    "  -q, --quiet        errors only\n"
    "  -h, --help         this text\n";


static void
on_signal(int sig)
{
    (void) sig;
    stopped = 1;
}


static int
parse_size(const char *text, uint64_t *out)
{
    char                *end;
    unsigned long long   n, unit = 1;

    if (*text < '0' || *text > '9') return -1;
    n = strtoull(text, &end, 10);
    if (*end == 'K' || *end == 'k') unit = 1000;
    if (*end == 'M' || *end == 'm') unit = 1000000;
    if (*end == 'G' || *end == 'g') unit = 1000000000;
    if (unit > 1) end++;
    if (*end != '\0' || n == 0 || n > 1000000000000000ull / unit) return -1;
    *out = n * unit;
    return 0;
}


static int
bad_usage(const char *why)
{
    if (why != NULL) fprintf(stderr, "glm-convert: %s\n", why);
    fprintf(stderr, "glm-convert: --help tells how it is used\n");
    return 2;
}


/* PATTERN=TYPE; the text is cut there. */
static int
parse_except(char *text, cv_quantise_t *q)
{
    char  *type = strrchr(text, '=');

    if (q->nexcept == CV_MAX_EXCEPT) return bad_usage("too many --quant-except");
    if (type == NULL || type == text || cv_choice_parse(type + 1, &q->except[q->nexcept].choice) != 0) {
        return bad_usage("--quant-except is not PATTERN=TYPE, with a TYPE of fp16, int8, int4, "
                         "int4-g32, int4-g128");
    }
    *type = '\0';
    q->except[q->nexcept++].pattern = text;
    return 0;
}


static int
parse_quant(const char *text, cv_quantise_t *q)
{
    q->on = 1;
    if (cv_choice_parse(text, &q->choice) == 0 && q->choice.type != GLM_T_F16) return 0;
    return bad_usage("--quant is one of int8, int4, int4-g32, int4-g128; without it weights stay "
                     "as they are");
}


static int
parse_number(const char *text, long least, long most, long *out)
{
    char  *end;

    *out = strtol(text, &end, 10);
    return *text < '0' || *text > '9' || *end != '\0' || *out < least || *out > most ? -1 : 0;
}


/* 0, the exit status of a mistake, or -1 for help. */
static int
parse_options(int argc, char **argv, cv_options_t *opt)
{
    static const struct option  longs[] = {
        { "config", required_argument, NULL, 'c' }, { "tokenizer", required_argument, NULL, 't' },
        { "quant", required_argument, NULL, 'Q' }, { "quant-ranks", required_argument, NULL, 'R' },
        { "quant-except", required_argument, NULL, 'X' },
        { "calibrate", required_argument, NULL, 'A' },
        { "calibrate-tokens", required_argument, NULL, 'T' },
        { "shard-size", required_argument, NULL, 's' }, { "force", no_argument, NULL, 'f' },
        { "dry-run", no_argument, NULL, 'n' }, { "quiet", no_argument, NULL, 'q' },
        { "no-checksums", no_argument, NULL, 'C' }, { "help", no_argument, NULL, 'h' }, { NULL, 0, NULL, 0 }
    };
    long  n;
    int   c;

    while ((c = getopt_long(argc, argv, "fnqh", longs, NULL)) != -1) {
        switch (c) {
        case 'c': opt->config = optarg; break;
        case 't': opt->tokenizer = optarg; break;
        case 'f': opt->force = 1; break;
        case 'n': opt->dry_run = 1; break;
        case 'q': opt->quiet = 1; break;
        case 'A': opt->calibrate = optarg; break;
        case 'T':
            if (parse_number(optarg, 1, 1 << 24, &n) == 0) {
                opt->calibrate_tokens = (size_t) n;
                break;
            }
            return bad_usage("--calibrate-tokens is not a number from 1 to 16777216");
        case 'C': opt->no_checksums = 1; break;
        case 'h': return -1;
        case 'Q':
            if (parse_quant(optarg, &opt->quant) == 0) break;
            return 2;
        case 'R':
            if (parse_number(optarg, 1, CV_MAX_RANKS, &n) == 0) {
                opt->quant.ranks = (int32_t) n;
                break;
            }
            return bad_usage("--quant-ranks is not a number from 1 to 100");
        case 'X':
            if (parse_except(optarg, &opt->quant) == 0) break;
            return 2;
        case 's':
            if (parse_size(optarg, &opt->shard_bytes) == 0) break;
            return bad_usage("--shard-size is not a size such as 5G");
        default:
            return bad_usage(NULL);
        }
    }
    if (argc - optind != 2) return bad_usage("SRC and DST are needed, and nothing else");
    if (!opt->quant.on && (opt->quant.nexcept > 0 || opt->quant.ranks > 1 || opt->calibrate)) {
        return bad_usage("--quant-ranks, --quant-except and --calibrate need --quant");
    }
    opt->src = argv[optind];
    opt->dst = argv[optind + 1];
    return 0;
}


int
main(int argc, char **argv)
{
    cv_options_t      opt = { .shard_bytes = CV_SHARD_BYTES, .quant.ranks = 1,
                              .calibrate_tokens = CV_CALIB_TOKENS, .stop = &stopped };
    struct sigaction  sa = { .sa_handler = on_signal };
    glm_err_t         err = { "" };
    int               rc = parse_options(argc, argv, &opt);

    if (rc < 0) return fputs(usage, stdout) < 0;
    if (rc > 0) return rc;
    sigaction(SIGINT, &sa, NULL);
    sigaction(SIGTERM, &sa, NULL);
    sigaction(SIGHUP, &sa, NULL);
    if (cv_convert(&opt, &err) == 0) return 0;
    fprintf(stderr, "glm-convert: %s\n", err.text[0] ? err.text : "failed");
    return 1;
}
