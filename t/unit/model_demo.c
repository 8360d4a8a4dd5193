/*
 * model_demo: the demo model against its trainer's goldens: greedy ids of the
 * completions, and log-probabilities of given continuations of both masks.
 */
#include <jansson.h>

#include "model_util.h"

#define MASK   7808
#define GMASK  7809
#define SOP    7812

static glm_model_t  *m;
static int32_t       pages[64];

typedef struct {
    int32_t  prompt[1024];
    int      n;                   /* context; sop goes to slot n */
    int      mask;                /* of [MASK]; -1: positions count on */
} start_t;

static void
start(start_t *s, json_t *ids)
{
    json_t  *e;
    size_t   i;

    s->n = 0;
    s->mask = -1;
    if (json_array_size(ids) > 1024) bail_out("a prompt longer than the model takes");
    json_array_foreach(ids, i, e) {
        s->prompt[s->n] = (int32_t) json_integer_value(e);
        if (s->prompt[s->n] == MASK && s->mask < 0) s->mask = s->n;
        s->n++;
    }
    glm_model_prefill(m, s->prompt, s->n, pages, 0, glm_model_config(m)->layers, NULL);
}

/* Feeds a token at slot n + k; out is the pick after it. */
static void
feed(const start_t *s, int k, int32_t id, const glm_sample_t *how, glm_sampled_t *out,
    float *logits)
{
    glm_row_t  row = { id, s->mask >= 0 ? s->mask : s->n + k, s->n + k, pages, how };

    glm_model_step(m, &row, 1, out, logits);
}

static void
check_greedy(json_t *c, int number)
{
    glm_sample_t   greedy = { .nlogprobs = -1 };
    glm_sampled_t  out = { .id = SOP };
    json_t        *ids = json_object_get(c, "ignore_eos_ids"), *e;
    start_t        s;
    size_t         i;
    int            equal = 1;

    start(&s, json_object_get(c, "prompt_ids"));
    json_array_foreach(ids, i, e) {
        feed(&s, (int) i, out.id, &greedy, &out, NULL);
        equal &= out.id == json_integer_value(e);
    }
    /* two ids nearly as good as each other: fp16 may take the other one */
    equal |= model_cuda && json_number_value(json_object_get(c, "ignore_eos_min_margin")) < FP16_GAP;
    ok(equal && i == 48, "case %d: 48 greedy ids", number);
}

static double
logprob(const float *l, int n, int id)
{
    double  top = -INFINITY, sum = 0;

    for (int i = 0; i < n; i++) if (l[i] > top) top = l[i];
    for (int i = 0; i < n; i++) sum += exp(l[i] - top);
    return l[id] - top - log(sum);
}

static void
check_score(json_t *c, int number)
{
    int      vocab = glm_model_config(m)->vocab;
    float   *logits = malloc((size_t) vocab * sizeof(float));
    json_t  *choice, *id;
    start_t  s;
    size_t   i, k;
    double   d, worst = 0;

    start(&s, json_object_get(c, "prompt_ids"));
    json_array_foreach(json_object_get(c, "choices"), i, choice) {
        int32_t  last = SOP;

        json_array_foreach(json_object_get(choice, "ids"), k, id) {
            feed(&s, (int) k, last, NULL, NULL, logits);
            last = (int32_t) json_integer_value(id);
            d = fabs(logprob(logits, vocab, last)
                - json_number_value(json_array_get(json_object_get(choice, "logprobs"), k)));
            if (!(d <= worst)) worst = d;
        }
    }
    ok(worst < model_tolerance(1e-4, 2e-2), "score %d: log-probabilities off by %.1e", number, worst);
    free(logits);
}

int
main(void)
{
    const char  *dir = model_dir("demo");
    json_t      *golden = json_load_file("t/data/demo/goldens.json", 0, NULL), *c;
    size_t       i;

    if (golden == NULL) golden = json_load_file("../shared/demo/goldens.json", 0, NULL);
    if (dir == NULL || golden == NULL) skip_all("no demo model");
    m = model_open(dir, 1, 0, NULL);
    if (!ok(m != NULL, "the demo model loads")) return tap_done();
    shuffle_pages(pages, 64, 3);
    json_array_foreach(json_object_get(golden, "cases"), i, c) {
        if (i % (size_t) model_few() == 0) check_greedy(c, (int) i);
    }
    json_array_foreach(json_object_get(golden, "score"), i, c) check_score(c, (int) i);
    glm_model_free(m);
    json_decref(golden);
    return tap_done();
}
