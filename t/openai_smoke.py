"""Runs the checks of openai_smoke.t: base URL in, one line a check out."""

import sys
import openai

PROMPT = "English: Where is the file? German:"
TEXT = "Wo ist die Datei?"
MODEL = "glm-demo-9m"

client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="none", max_retries=0, timeout=20)
ASK = {"model": MODEL, "prompt": PROMPT, "temperature": 0}


def check(name, ok, why=""):
    print("ok" if ok else "not ok", name, repr(why) if not ok else "", sep="\t", flush=True)


def fails(kind, **body):
    try:
        got = client.completions.create(**{**ASK, **body})
    except kind as e:
        return e
    except Exception as e:
        return f"{type(e).__name__}: {e}"
    return f"answered: {got}"


# plain
a = client.completions.create(**ASK)
check("text", a.choices[0].text == TEXT, a)
check("finish_reason", a.choices[0].finish_reason == "stop", a)
check("usage", (a.usage.prompt_tokens, a.usage.completion_tokens, a.usage.total_tokens) == (11, 6, 17), a)
check("cached_tokens", a.usage.prompt_tokens_details.cached_tokens == 0, a)
check("types", isinstance(a, openai.types.Completion) and isinstance(a.created, int), a)
check("request id", bool(a._request_id), a)

# token ids
raw = client.completions.create(**ASK, extra_body={"return_token_ids": True}).choices[0]
check("token_ids", raw.token_ids == [3252, 230, 94, 1157, 143], raw)
again = client.completions.create(**{**ASK, "prompt": raw.prompt_token_ids})
check("token-id prompt", again.choices[0].text == TEXT, again)

# stream
chunks = list(client.completions.create(**ASK, stream=True, stream_options={"include_usage": True}))
check("stream", "".join(c.choices[0].text for c in chunks if c.choices) == TEXT, chunks)
check("usage chunk", chunks[-1].choices == [] and chunks[-1].usage.total_tokens == 17, chunks[-1])
chunks = list(client.completions.create(**ASK, stream=True))
check("no usage unasked", all(c.choices and c.usage is None for c in chunks), chunks)

# leaving in mid-stream
s = client.completions.create(**ASK, stream=True, max_tokens=900, extra_body={"ignore_eos": True})
next(iter(s))
s.close()
check("after leaving", client.completions.create(**ASK).choices[0].text == TEXT)

# logprobs, stop, seed
a = client.completions.create(**ASK, logprobs=2)
lp = a.choices[0].logprobs
check("logprobs", len(lp.tokens) == len(lp.token_logprobs) == len(lp.top_logprobs) == len(lp.text_offset) == 5, lp)
check("same double", all(t[k] == x for t, k, x in zip(lp.top_logprobs, lp.tokens, lp.token_logprobs)), lp)
a = client.completions.create(**ASK, stop=["st di"])
check("stop", a.choices[0].text == "Wo i", a)
hot = {**ASK, "temperature": 1.5, "seed": 42}
check("seed", client.completions.create(**hot).choices[0].text == client.completions.create(**hot).choices[0].text)

# errors
e = fails(openai.BadRequestError, temperature=9)
check("400", isinstance(e, openai.BadRequestError) and e.param == "temperature" and e.code is None
      and e.type == "invalid_request_error", e)
e = fails(openai.NotFoundError, model="gpt-4")
check("404", isinstance(e, openai.NotFoundError) and e.code == "model_not_found" and e.param == "model", e)
e = fails(openai.BadRequestError, prompt="file " * 2000)
check("context length", isinstance(e, openai.BadRequestError) and e.code == "context_length_exceeded", e)
e = fails(openai.InternalServerError, extra_body={"cache_salt": "x"})
check("501", isinstance(e, openai.InternalServerError) and e.status_code == 501 and e.param == "cache_salt", e)

# several prompts and choices, echo
a = client.completions.create(**{**ASK, "prompt": [PROMPT, "English: Save the file German:"]}, n=2)
check("prompts", [c.text for c in a.choices] == [TEXT, TEXT, "Datei speichern", "Datei speichern"], a)
a = client.completions.create(**{**ASK, "max_tokens": 0}, echo=True, logprobs=1).choices[0]
check("echo", a.text == PROMPT and a.logprobs.token_logprobs[0] is None and len(a.logprobs.tokens) == 10, a)

# chat
TALK = {"model": MODEL, "messages": [{"role": "user", "content": PROMPT}], "temperature": 0, "max_tokens": 8}
m = client.chat.completions.create(**TALK, logprobs=True, top_logprobs=2).choices[0]
check("chat", m.message.role == "assistant" and m.message.content and m.logprobs.content[0].top_logprobs, m)
chunks = list(client.chat.completions.create(**TALK, stream=True))
check("chat stream", chunks[0].choices[0].delta.role == "assistant"
      and "".join(c.choices[0].delta.content or "" for c in chunks) == m.message.content, chunks)

# models
models = client.models.list().data
check("models", [m.id for m in models] == [MODEL], models)
check("model", client.models.retrieve(MODEL).id == MODEL)

# x-request-id goes there and back
r = client.completions.with_raw_response.create(**ASK, extra_headers={"x-request-id": "smoke-1"})
check("x-request-id", r.headers["x-request-id"] == "smoke-1", dict(r.headers))
