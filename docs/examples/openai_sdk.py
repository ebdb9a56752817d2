"""Talks to a relay through the official OpenAI SDK: models, chat, streams, typed errors, receipts.

Usage: openai_sdk.py RELAY_URL MODEL, with the API key in ZORAI_AI_API_KEY. Prints what it saw as JSON.
"""

import json
import os
import sys
import time
import urllib.error
import urllib.request

import openai

relay, model = sys.argv[1].rstrip("/"), sys.argv[2]
key = os.environ["ZORAI_AI_API_KEY"]
client = openai.OpenAI(base_url=f"{relay}/v1", api_key=key, max_retries=0, timeout=60)
question = [{"role": "user", "content": "hello"}]

models = [entry.id for entry in client.models.list()]

raw = client.chat.completions.with_raw_response.create(model=model, messages=question, max_tokens=16)
answer = raw.parse()

pieces, finish = 0, None
for chunk in client.chat.completions.create(model=model, messages=question, max_tokens=16, stream=True):
    pieces += 1
    finish = chunk.choices[0].finish_reason or finish if chunk.choices else finish

errors = {}
try:
    client.chat.completions.create(model=f"{model}x", messages=question)
except openai.NotFoundError as error:
    errors["unknown model"] = error.code
try:
    openai.OpenAI(base_url=f"{relay}/v1", api_key="wrong", max_retries=0).models.list()
except openai.AuthenticationError as error:
    errors["wrong key"] = error.code


def receipt(request_id, patience=10):
    """The provider's signed receipt, which the relay commits within a second."""
    request = urllib.request.Request(f"{relay}/v1/receipts/{request_id}", headers={"Authorization": f"Bearer {key}"})
    until = time.monotonic() + patience
    while True:
        try:
            with urllib.request.urlopen(request) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            if error.code != 404 or time.monotonic() > until:
                raise
            time.sleep(0.1)


kept = receipt(raw.headers["x-request-id"])
json.dump(
    {
        "models": models,
        "completion_tokens": answer.usage.completion_tokens,
        "attempts": raw.headers["x-zorai-attempts"],
        "pieces": pieces,
        "finish": finish,
        "errors": errors,
        "receipt": {name: kept[name] for name in ("outcome", "completion_tokens", "cost", "fault")},
        "signed": kept["receipt"]["mutation"]["provider"] == raw.headers["x-zorai-provider"],
    },
    sys.stdout,
)
