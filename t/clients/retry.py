"""openai-python: its own retries bridge an engine that is not there yet.  clients.t starts it after the first 503."""

import sys

import openai

client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="none", max_retries=30, timeout=60)
a = client.completions.create(model="glm-demo-9m", prompt="English: Where is the file? German:", temperature=0)
ok = a.choices[0].text == "Wo ist die Datei?"
print("ok" if ok else "not ok", "served after retries", "" if ok else repr(a), sep="\t")
