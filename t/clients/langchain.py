"""langchain-openai: OpenAI with one and several prompts, ChatOpenAI."""

import openai
from check import BASE, HAS_CHAT, HAS_LISTS, MODEL, PROMPT, TEXT, check, fails, skip
from langchain_openai import ChatOpenAI, OpenAI

TO = {"base_url": BASE + "/v1", "api_key": "none", "model": MODEL, "temperature": 0, "max_retries": 0, "timeout": 60}
OTHER = "English: Save the file German:"

llm = OpenAI(**TO, max_tokens=32)
check("text", llm.invoke(PROMPT) == TEXT, llm.invoke(PROMPT))
check("stream", "".join(llm.stream(PROMPT)) == TEXT, list(llm.stream(PROMPT)))
check("stop", llm.invoke(PROMPT, stop=["st di"]) == "Wo i", llm.invoke(PROMPT, stop=["st di"]))
e = fails(openai.BadRequestError, lambda: OpenAI(**{**TO, "temperature": 9}).invoke(PROMPT))
check("400", isinstance(e, openai.BadRequestError) and e.param == "temperature", e)

if HAS_LISTS:
    one = llm.invoke(OTHER)
    got = llm.generate([PROMPT, OTHER, PROMPT])
    check("prompts", [g[0].text for g in got.generations] == [TEXT, one, TEXT], got)
    check("usage of all", got.llm_output["token_usage"]["total_tokens"] > 34, got.llm_output)
    got = OpenAI(**TO, max_tokens=32, n=2, best_of=2).generate([OTHER, PROMPT])
    check("prompts and n", [[x.text for x in g] for g in got.generations] == [[one] * 2, [TEXT] * 2], got)
else:
    skip("prompts", "not in this build")

if HAS_CHAT:
    chat = ChatOpenAI(**TO, max_tokens=12)
    a = chat.invoke([("system", "Translate."), ("human", "Where is the file?")])
    check("chat", bool(a.content) and a.response_metadata["finish_reason"] in ("stop", "length"), a)
    check("chat usage", a.usage_metadata["total_tokens"] > 0, a)
    chunks = list(chat.stream([("system", "Translate."), ("human", "Where is the file?")], stream_usage=True))
    check("chat stream", "".join(c.content for c in chunks) == a.content, chunks)
else:
    skip("chat", "not in this build")
