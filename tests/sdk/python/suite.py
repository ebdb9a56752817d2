"""The official OpenAI SDK for Python against a relay with real engines behind it. Fails where the SDK does not see what it should.

Usage: suite.py RELAY_URL CHAT_MODEL TOOL_MODEL EMBEDDING_MODEL, with the API key in ZORAI_AI_API_KEY. Its chat model has one slot. Prints the names of the
checks that held.
"""

import json
import os
import sys
import threading
import time

import openai

relay, model, caller, embedder = sys.argv[1].rstrip("/"), *sys.argv[2:5]
key = os.environ["ZORAI_AI_API_KEY"]
settings = {"base_url": f"{relay}/v1", "api_key": key, "max_retries": 0, "timeout": 60}
client = openai.OpenAI(**settings)
question = [{"role": "user", "content": "hello"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Oslo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
checks = []


def check(function):
    checks.append(function)
    return function


def raised(kind, call):
    try:
        call()
    except kind as error:
        assert type(error) is kind, f"{type(error)} is not {kind}"
        return error
    raise AssertionError(f"no {kind.__name__} was raised")


def wait_for_the_slot():
    """llama.cpp's server does not notice that the client of an answer that is not streamed has left: it works on to its end."""
    client.chat.completions.create(model=model, messages=question, max_tokens=1)


@check
def models():
    assert {entry.id for entry in client.models.list()} == {model, caller, embedder}
    entry = client.models.retrieve(model)
    assert (entry.id, entry.object) == (model, "model")


@check
def chat():
    raw = client.chat.completions.with_raw_response.create(model=model, messages=question, max_tokens=16, seed=1)
    answer = raw.parse()
    assert answer.choices[0].message.role == "assistant" and answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    usage = answer.usage
    assert usage.completion_tokens == 16 and usage.total_tokens == usage.prompt_tokens + 16
    assert raw.headers["x-zorai-attempts"] == "1" and raw.headers["x-zorai-provider"].startswith("0x")
    assert int(raw.headers["x-zorai-cost"]) == usage.prompt_tokens + 2 * usage.completion_tokens
    # Fields that the relay knows nothing of reach the engine.
    again = client.chat.completions.create(
        model=model, messages=question, max_tokens=4, logprobs=True, top_logprobs=2, extra_body={"grammar": 'root ::= "yes"'}
    )
    assert again.choices[0].message.content == "yes" and again.choices[0].logprobs.content


@check
def streaming_with_usage():
    stream = client.chat.completions.create(
        model=model, messages=question, max_tokens=16, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text and [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 16
    plain = list(client.chat.completions.create(model=model, messages=question, max_tokens=4, stream=True))
    assert all(chunk.usage is None for chunk in plain), "usage that was not asked for"


@check
def completions():
    answer = client.completions.create(model=model, prompt="the relay", max_tokens=8)
    assert answer.choices[0].text and answer.usage.completion_tokens == 8
    pieces = list(client.completions.create(model=model, prompt="the relay", max_tokens=8, stream=True))
    assert "".join(piece.choices[0].text for piece in pieces if piece.choices)


@check
def tools_round_trip():
    # The model has learnt nothing: that it calls is llama.cpp's doing, by a grammar of calls that chance leads most seeds into.
    ask = lambda seed: client.chat.completions.create(
        model=caller, messages=question, tools=[TOOL], tool_choice="required", max_tokens=400, seed=seed
    )
    answers = (ask(seed) for seed in range(1, 20))
    asked = next(answer for answer in answers if answer.choices[0].finish_reason == "tool_calls")
    message = asked.choices[0].message
    for call in message.tool_calls:
        assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Oslo"})
    told = [{"role": "tool", "tool_call_id": call.id, "content": "rain"} for call in message.tool_calls]
    turns = [*question, message.model_dump(exclude_none=True), *told]
    answer = client.chat.completions.create(model=model, messages=turns, max_tokens=8)
    assert answer.choices[0].message.content


@check
def structured_output():
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    answer = client.chat.completions.create(model=model, messages=question, response_format=form, max_tokens=200)
    assert '"ok"' in answer.choices[0].message.content


@check
def embeddings():
    answer = client.embeddings.create(model=embedder, input=["the task", "a market"])
    assert [entry.index for entry in answer.data] == [0, 1]
    assert len(answer.data[0].embedding) == len(answer.data[1].embedding) > 0
    assert answer.usage.prompt_tokens > 0
    floats = client.embeddings.create(model=embedder, input="the task", encoding_format="float")
    assert len(floats.data[0].embedding) == len(answer.data[0].embedding)


@check
def responses():
    answer = client.responses.create(model=model, input="hello", max_output_tokens=16)
    assert answer.output_text and answer.usage.output_tokens == 16
    events = list(client.responses.create(model=model, input="hello", max_output_tokens=16, stream=True))
    assert events[0].type == "response.created" and events[-1].type == "response.completed"
    assert events[-1].response.usage.output_tokens == 16


@check
def errors_are_typed():
    ask = lambda **more: lambda: client.chat.completions.create(**{"model": model, "messages": question, **more})
    unknown = raised(openai.NotFoundError, ask(model=f"{model}x"))
    assert unknown.code == "model_not_found" and model in unknown.message and unknown.request_id
    assert raised(openai.NotFoundError, lambda: client.models.retrieve("nothing")).code == "model_not_found"
    wrong = openai.OpenAI(**{**settings, "api_key": "wrong"})
    assert raised(openai.AuthenticationError, wrong.models.list).code == "invalid_api_key"
    malformed = raised(openai.BadRequestError, ask(extra_body={"stream": "yes"}))
    assert (malformed.code, malformed.param) == ("malformed_request", "stream")
    # This one is the engine's own word.
    raised(openai.BadRequestError, ask(extra_body={"messages": "none"}))
    late = raised(openai.InternalServerError, ask(max_tokens=2000, extra_headers={"x-zorai-timeout-ms": "100"}))
    assert (late.status_code, late.code) == (504, "deadline_exceeded")


@check
def errors_within_streams_are_raised():
    wait_for_the_slot()
    stream = client.chat.completions.create(
        model=model, messages=question, max_tokens=7000, stream=True, extra_headers={"x-zorai-timeout-ms": "500"}
    )
    assert raised(openai.APIError, lambda: list(stream)).code == "deadline_exceeded"


@check
def cancellation():
    stream = client.chat.completions.create(model=model, messages=question, max_tokens=7000, stream=True)
    next(iter(stream))
    stream.close()
    # The one slot is free again long before those tokens would be through.
    begun = time.monotonic()
    wait_for_the_slot()
    assert time.monotonic() - begun < 5


@check
def timeouts():
    hasty = client.with_options(timeout=0.1)
    raised(openai.APITimeoutError, lambda: hasty.chat.completions.create(model=model, messages=question, max_tokens=2000))


@check
def retries():
    wait_for_the_slot()
    stream = client.chat.completions.create(model=model, messages=question, max_tokens=7000, stream=True)
    next(iter(stream))
    # The slot is taken, and free when the SDK comes back as Retry-After says.
    threading.Timer(1, stream.close).start()
    patient = client.with_options(max_retries=2)
    raw = patient.chat.completions.with_raw_response.create(
        model=model, messages=question, max_tokens=1, extra_headers={"x-queue-timeout": "0"}
    )
    assert raw.retries_taken == 1 and raw.parse().choices
    refused = openai.OpenAI(**settings)
    with refused.chat.completions.create(model=model, messages=question, max_tokens=7000, stream=True) as busy:
        next(iter(busy))
        none = raised(
            openai.InternalServerError,
            lambda: refused.chat.completions.create(
                model=model, messages=question, extra_headers={"x-queue-timeout": "0"}
            ),
        )
    assert (none.status_code, none.code, none.response.headers["retry-after"]) == (503, "no_provider_available", "5")


for function in checks:
    try:
        function()
    except Exception as error:
        raise SystemExit(f"{function.__name__}: {type(error).__name__}: {error}") from error
    print(function.__name__)
