"""lm-eval-harness, local-completions: a multiple-choice and a generation task from files,
with the numbers that plain requests give."""

import json
import pathlib
import tempfile

from check import BASE, HAS_ECHO, HAS_LISTS, MODEL, ask, check, serves, skip

WORDS = [("Where is the file?", ["Wo ist die Datei?", "Was ist das?"], 0), ("Save the file", ["Ordner", "Datei speichern"], 1),
         ("Open the folder", ["Ordner öffnen", "Drucker"], 0), ("Cancel", ["Abbrechen", "Datei"], 0),
         ("The file is open.", ["Datei speichern", "Die Datei ist offen."], 0), ("Print", ["Abbrechen", "Drucken"], 1)]


def tokens(text):
    return ask("/tokenize", {"prompt": text, "add_special_tokens": False})[1]["tokens"]


def loglikelihood(context, more):
    """Sum over the ids of more, from one request of our own."""
    n = len(tokens(context))
    c = ask("/v1/completions", {"prompt": tokens(context + more), "max_tokens": 0, "echo": True, "logprobs": 0})[1]["choices"][0]
    return sum(c["logprobs"]["token_logprobs"][n:])


def evaluate(folder):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager
    docs = [{"en": en, "choices": ch, "gold": g, "answer": ch[g]} for en, ch, g in WORDS]
    (folder / "d.jsonl").write_text("".join(json.dumps(d) + "\n" for d in docs), encoding="utf-8")
    common = f"dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {folder}/d.jsonl\ntest_split: test\n" \
             'doc_to_text: "English: {{en}} German:"\n'
    (folder / "a.yaml").write_text(common + "task: glm_choice\noutput_type: multiple_choice\ndoc_to_choice: choices\n"
        "doc_to_target: gold\nmetric_list:\n  - metric: acc\n", encoding="utf-8")
    (folder / "b.yaml").write_text(common + "task: glm_generate\noutput_type: generate_until\ndoc_to_target: answer\n"
        'generation_kwargs:\n  until: ["\\n"]\n  max_gen_toks: 24\n  temperature: 0\nmetric_list:\n  - metric: exact_match\n',
        encoding="utf-8")
    return docs, simple_evaluate(
        model="local-completions", tasks=["glm_choice", "glm_generate"], log_samples=True, bootstrap_iters=0,
        model_args={"model": MODEL, "base_url": BASE + "/v1/completions", "tokenizer_backend": "remote", "max_length": 1024,
                    "batch_size": 4, "max_retries": 1},
        task_manager=TaskManager(include_path=str(folder), include_defaults=False))


if not (HAS_ECHO and HAS_LISTS and serves("/tokenizer_info")):
    skip("lm-eval", "echo, prompt lists or /tokenizer_info are not in this build")
else:
    with tempfile.TemporaryDirectory() as d:
        docs, got = evaluate(pathlib.Path(d))
    right = worst = 0
    for s in got["samples"]["glm_choice"]:
        doc = s["doc"]
        mine = [loglikelihood(f"English: {doc['en']} German:", " " + c) for c in doc["choices"]]
        theirs = [float(r[0][0]) for r in s["resps"]]
        worst = max([worst] + [abs(a - b) for a, b in zip(mine, theirs)])
        right += mine.index(max(mine)) == doc["gold"]
    check("log-likelihoods", worst == 0, worst)
    acc = got["results"]["glm_choice"]["acc,none"]
    check("accuracy of choices", acc == right / len(docs), (acc, right))
    check("better than chance", acc > 0.5, acc)
    texts = {s["doc"]["en"]: s["resps"][0][0] for s in got["samples"]["glm_generate"]}
    mine = {d["en"]: ask("/v1/completions", {"prompt": f"English: {d['en']} German:", "temperature": 0, "max_tokens": 24,
                                            "stop": ["\n"]})[1]["choices"][0]["text"] for d in docs}
    check("generated texts", texts == mine, (texts, mine))
    match = got["results"]["glm_generate"]["exact_match,none"]
    check("exact match", match == sum(mine[d["en"]] == d["answer"] for d in docs) / len(docs), match)
