"""litellm: completions and chat, streams, and which of its exceptions our errors become."""

import litellm
from check import BASE, HAS_CHAT, MODEL, PROMPT, TEXT, check, fails, skip

litellm.suppress_debug_info = True
TO = {"api_base": BASE + "/v1", "api_key": "none", "temperature": 0, "timeout": 60, "max_retries": 0}
ASK = {**TO, "model": "text-completion-openai/" + MODEL, "prompt": PROMPT}

a = litellm.text_completion(**ASK)
check("text", a.choices[0].text == TEXT, a)
check("finish_reason", a.choices[0].finish_reason == "stop", a)
check("usage", (a.usage.prompt_tokens, a.usage.completion_tokens) == (11, 6), a)
chunks = list(litellm.text_completion(**ASK, stream=True))
check("stream", "".join(c.choices[0].text or "" for c in chunks) == TEXT, chunks)

e = fails(litellm.ContextWindowExceededError, lambda: litellm.text_completion(**{**ASK, "prompt": "file " * 2000}))
check("context length", isinstance(e, litellm.ContextWindowExceededError), e)
e = fails(litellm.BadRequestError, lambda: litellm.text_completion(**{**ASK, "temperature": 9}))
check("400", isinstance(e, litellm.BadRequestError) and "temperature" in str(e), e)
e = fails(litellm.NotFoundError, lambda: litellm.text_completion(**{**ASK, "model": "text-completion-openai/gpt-4"}))
check("404", isinstance(e, litellm.NotFoundError), e)

if HAS_CHAT:
    CHAT = {**TO, "model": "openai/" + MODEL, "messages": [{"role": "user", "content": "Where is the file?"}], "max_tokens": 12}
    a = litellm.completion(**CHAT)
    text = a.choices[0].message.content
    check("chat", a.choices[0].message.role == "assistant" and bool(text), a)
    check("chat usage", a.usage.total_tokens == a.usage.prompt_tokens + a.usage.completion_tokens, a)
    chunks = list(litellm.completion(**CHAT, stream=True, stream_options={"include_usage": True}))
    check("chat stream", "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text, chunks)
    check("chat stream usage", chunks[-1].usage.total_tokens == a.usage.total_tokens, (chunks[-1], a.usage))
else:
    skip("chat", "not in this build")
