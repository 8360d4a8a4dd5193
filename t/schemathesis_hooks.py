"""Makes most valid requests of schemathesis.t small enough to be answered, not refused.

Valid by the schema are a model of any name, an answer as long as a context and thirty
fields at once, of which one is always too much.  Every fourth request stays as it is.
"""

import json
import random
import zlib

import schemathesis
from schemathesis import GenerationMode

FIELDS = 4
TOKENS = 24


@schemathesis.hook
def before_call(context, case, kwargs):
    body = case.body
    if case.meta is None or case.meta.generation.mode != GenerationMode.POSITIVE or not isinstance(body, dict):
        return
    if "messages" in body:
        body.setdefault("max_tokens", TOKENS)    # else the rest of the context
    chance = random.Random(zlib.crc32(json.dumps(body, sort_keys=True).encode()))
    if chance.random() < 0.25:
        return
    keys = [k for k in body if k not in ("prompt", "tokens", "messages", "model", "choices")]
    for k in chance.sample(keys, max(0, len(keys) - FIELDS)):
        del body[k]
    body.pop("model", None)
    for k in ("max_tokens", "max_completion_tokens", "n_predict"):
        if isinstance(body.get(k), (int, float)):
            body[k] = int(body[k]) % TOKENS
    for k in ("prompt", "tokens"):
        if isinstance(body.get(k), list) and all(isinstance(i, int) for i in body[k]):
            body[k] = [i % 7000 for i in body[k]]


@schemathesis.hook
def after_call(context, case, response):
    kind = response.headers.get("content-type", ["none"])[0].split(";")[0]
    with open("answers", "a") as f:
        f.write(f"{case.method} {case.operation.path} {response.status_code} {kind}\n")
