"""`first-cpp serve` on a model that can write: tools, JSON schema, and a client that goes away while its prompt is read."""

from __future__ import annotations

import json
import time

import httpx
import numpy as np
import pytest
from server import chat, serving

pytestmark = pytest.mark.smollm2

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "minimum": 0, "maximum": 150}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
MESSAGES = [{"role": "user", "content": "Jason is 30 years old. Tell his name and age."}]


@pytest.fixture(scope="module")
def server(smollm2):
    with serving(smollm2, "--alias", "smol") as started:
        yield started


def test_json_schema(server):
    answer = server.client().chat.completions.create(
        model="smol",
        messages=MESSAGES,
        temperature=0,
        max_tokens=80,
        response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}},
        extra_body={"skip": [7, 11]},
    )
    person = json.loads(answer.choices[0].message.content)
    assert set(person) == {"name", "age"}
    assert isinstance(person["age"], int)
    assert answer.model_extra["first_cpp"]["skipped_layers"] == [7, 11]


@pytest.mark.parametrize("stream", [False, True])
def test_tools(server, stream):
    tool = {"type": "function", "function": {"name": "person", "description": "Keeps a person", "parameters": PERSON}}
    answer = server.client().chat.completions.create(
        model="smol",
        messages=MESSAGES,
        tools=[tool],
        tool_choice={"type": "function", "function": {"name": "person"}},
        temperature=0,
        max_tokens=80,
        stream=stream,
    )
    if stream:
        chunks = list(answer)
        calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
        name, arguments = calls[0].function.name, "".join(call.function.arguments or "" for call in calls)
        told = chunks[-1].model_extra["first_cpp"]
    else:
        (call,) = answer.choices[0].message.tool_calls
        name, arguments = call.function.name, call.function.arguments
        told = answer.model_extra["first_cpp"]
    assert name == "person"
    assert set(json.loads(arguments)) == {"name", "age"}
    assert told["n_layer"] == 30


def test_answer_to_a_tool_call(server):
    messages = [
        *MESSAGES,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "person", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "kept"},
    ]
    answer = server.client().chat.completions.create(model="smol", messages=messages, max_tokens=4, temperature=0)
    assert answer.usage.completion_tokens > 0


@pytest.mark.timed
def test_client_that_goes_away_while_its_prompt_is_read(server):
    """Within a micro-batch, so long before the whole prompt is read."""

    def capital():
        answer = server.http.post("/v1/chat/completions", json=chat("What is the capital of France?"))
        return answer.json()["choices"][0]["message"]["content"]

    expected = capital()
    prompt = "word " * 3000
    started = time.monotonic()
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(server.url + "/v1/chat/completions", json=chat(prompt), timeout=0.5)
    assert server.wait_for(answering=False) < 1
    gave_up = time.monotonic() - started
    assert capital() == expected
    started = time.monotonic()
    server.http.post("/v1/completions", json={"prompt": "word " * 300, "max_tokens": 1})
    assert gave_up < 3 * (time.monotonic() - started)  # reading all would have taken ten times as long


def test_share_without_routers_is_refused(server):
    refused = server.http.post("/v1/chat/completions", json=chat(skip=0.3))
    assert refused.status_code == 400
    assert "needs routers" in refused.json()["error"]["message"]
    assert server.http.post("/v1/chat/completions", json=chat(skip=0, max_tokens=1)).status_code == 200
    assert server.health()["max_skip"] == 0
    assert "no routers" in server.greeting


def test_echoed_tokens_are_the_text_and_their_logprobs_the_models(smollm2, load):
    text = "The capital of France is Paris, and that of Italy is Rome."
    llm = load(smollm2, logits_all=True, skip=None)
    tokens = llm.tokenize(text.encode(), special=True)
    llm.eval(tokens)
    logits = np.asarray(llm.scores[: len(tokens) - 1], np.float64)
    logits -= logits.max(1, keepdims=True)
    logprobs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = [logprobs[i, token] for i, token in enumerate(tokens[1:])]
    with serving(smollm2, "--logits-all", "-c", 256) as server:
        body = {"prompt": text, "max_tokens": 0, "echo": True, "logprobs": 1}
        found = server.http.post("/v1/completions", json=body).json()["choices"][0]["logprobs"]
    assert "".join(found["tokens"]) == text
    assert [text[i:].startswith(token) for i, token in zip(found["text_offset"], found["tokens"], strict=True)]
    assert found["token_logprobs"][-len(expected) :] == pytest.approx(expected, abs=0.02)
    assert sum(logprob or 0 for logprob in found["token_logprobs"]) / len(tokens) > -4  # chance is -10.8


@pytest.mark.parametrize("stream", [False, True])
def test_required_tool_of_two(server, stream):
    other = {"type": "function", "function": {"name": "weather", "description": "Tells the weather", "parameters": {}}}
    tool = {"type": "function", "function": {"name": "person", "description": "Keeps a person", "parameters": PERSON}}
    answer = server.client().chat.completions.create(
        model="smol",
        messages=MESSAGES,
        tools=[tool, other],
        tool_choice="required",
        temperature=0,
        max_tokens=80,
        stream=stream,
    )
    if stream:
        calls = [call for chunk in answer for call in chunk.choices[0].delta.tool_calls or ()]
    else:
        calls = answer.choices[0].message.tool_calls
    assert calls[0].function.name in ("person", "weather")
    json.loads(calls[0].function.arguments)
