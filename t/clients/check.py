"""One line a check, for clients.t: ok, not ok or skip, name, why."""

import json
import sys
import urllib.error
import urllib.request

BASE = sys.argv[1]
MODEL = "glm-demo-9m"
PROMPT = "English: Where is the file? German:"
TEXT = "Wo ist die Datei?"


def check(name, ok, why=""):
    print("ok" if ok else "not ok", name, repr(why) if not ok else "", sep="\t", flush=True)


def skip(name, why):
    print("skip", name, why, sep="\t", flush=True)


def fails(kind, call):
    try:
        got = call()
    except kind as e:
        return e
    except Exception as e:
        return f"{type(e).__name__}: {e}"
    return f"answered: {got}"


def ask(path, body=None):
    """Status and JSON of a plain request, without any client."""
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(BASE + path, data), timeout=60) as r:
            return r.status, json.load(r)
    except urllib.error.HTTPError as e:
        return e.code, json.load(e)


def serves(path, body=None):
    """What a build without the feature answers with 501, or 404 for the path."""
    return ask(path, body)[0] not in (404, 501)


HAS_LISTS = serves("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 1})
HAS_CHAT = serves("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1})
HAS_ECHO = serves("/v1/completions", {"prompt": "a", "max_tokens": 1, "echo": True, "logprobs": 1})
