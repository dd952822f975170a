"""The OpenAI protocol, field by field, with the real Python client: honoured, or refused by name."""

from __future__ import annotations

import base64
import json
import pathlib

import httpx
import numpy as np
import openai
import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsBase as CompletionParams
from openai.types.embedding_create_params import EmbeddingCreateParams
from openai.types.responses.response_create_params import ResponseCreateParamsBase as ResponseParams
from routers_files import routed_model
from server import NO_END, error_of, serving

from first_cpp.serve.completions import MinTokens
from first_cpp.serve.requests import (
    FIELDS_OF_CALLERS,
    ONLY_DEFAULTS,
    REFUSED,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
)

USER = [{"role": "user", "content": "Hello"}]
NEWEST = {"access_programs", "background_options", "image"}
"""Fields of some releases of the client, unknown here and so refused by name."""
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(scope="module")
def routed(tiny, models):
    return routed_model(tiny, models, seed=71)


@pytest.fixture(scope="module")
def server(routed):
    with serving(routed, "--chat-format", "chatml", "--alias", "tiny", "--logits-all", "-c", 1024) as started:
        yield started


@pytest.fixture(scope="module")
def client(server):
    return server.client()


def ask(client, **more):
    return client.chat.completions.create(**{"model": "tiny", "messages": USER, "max_tokens": 4, "temperature": 0, **more})


def refusal(server, path=CHAT, **body) -> dict:
    given = {"messages": USER} if path == CHAT else {}
    response = server.http.post(path, json={**given, **body})
    assert response.status_code == 400, response.text
    return error_of(response)


# -- every field of the clients is known -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "kind"),
    [(ChatParams, ChatRequest), (CompletionParams, CompletionRequest), (EmbeddingCreateParams, EmbeddingRequest)],
    ids=["chat", "completions", "embeddings"],
)
def test_every_field_of_the_client_is_honoured_or_refused_by_name(params, kind):
    known = set(kind.model_fields) | FIELDS_OF_CALLERS | set(ONLY_DEFAULTS) | REFUSED
    assert set(params.__annotations__) - known == set()


def test_every_field_has_a_row_in_the_table():
    page = (pathlib.Path(__file__).parents[2] / "docs/reference/openai.md").read_text()
    chat, rest = page.split("## `POST /v1/completions`")
    completions, rest = rest.split("## `POST /v1/embeddings`")
    embeddings, responses = rest.split("## `POST /v1/responses`")
    parts = {ChatParams: chat, CompletionParams: completions, EmbeddingCreateParams: embeddings, ResponseParams: responses}
    for params, part in parts.items():
        rows = " ".join(line.split("|")[1] for line in part.splitlines() if line.startswith("| `"))
        assert {field for field in params.__annotations__ if f"`{field}`" not in rows} - NEWEST == set()


@pytest.mark.parametrize("field", sorted(set(ChatParams.__annotations__) - {"messages"} | {"stream", "top_k", "grammar"}))
def test_null_is_the_default_of_a_chat(server, field):
    body = {"messages": USER, "max_tokens": 2, "temperature": 0, field: None}
    response = server.http.post(CHAT, json=body)
    assert response.status_code == 200, response.text


@pytest.mark.parametrize("field", sorted(set(CompletionParams.__annotations__) - {"prompt"} | {"stream", "min_p"}))
def test_null_is_the_default_of_a_completion(server, field):
    response = server.http.post(TEXT, json={"prompt": "x", field: None})
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("audio", {"voice": "x"}),
        ("prediction", {"type": "content", "content": "x"}),
        ("web_search_options", {}),
        ("n", 2),
        ("store", True),
        ("service_tier", "flex"),
        ("modalities", ["text", "audio"]),
        ("reasoning_effort", "high"),
        ("verbosity", "low"),
        ("stream_options", {"include_usage": True}),
        ("stop", ""),
        ("stop", ["a", ""]),
        ("max_tokens", 0),
        ("tool_choice", "required"),
        ("tool_choice", "maybe"),
        ("tools", [{"type": "custom", "custom": {"name": "x"}}]),
        ("temprature", 1),
        ("top_logprobs", 3),
    ],
    ids=str,
)
def test_what_cannot_be_honoured_is_refused_by_name(server, field, value):
    error = refusal(server, **{field: value})
    assert error["param"] == field
    assert error["message"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("user", "me"),
        ("metadata", {"a": "b"}),
        ("safety_identifier", "x"),
        ("prompt_cache_key", "x"),
        ("store", False),
        ("service_tier", "auto"),
        ("parallel_tool_calls", False),
        ("modalities", ["text"]),
        ("tools", []),
        ("tool_choice", "none"),
        ("response_format", {"type": "text"}),
    ],
    ids=str,
)
def test_what_changes_no_answer_is_taken(client, field, value):
    assert ask(client, **{field: value}).choices[0].message.content == ask(client).choices[0].message.content


def test_a_near_name_is_suggested(server):
    assert "did you mean 'temperature'?" in refusal(server, temprature=1)["message"]


# -- messages ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "there are none"),
        ([{"role": "user"}], "message 0 (user) has no content"),
        ([{"role": "king", "content": "x"}], "message 0 has the role 'king'"),
        ([*USER, {"role": "assistant", "content": 5}], "message 1 (assistant): content"),
        ([{"role": "user", "content": "x", "mood": "good"}], "message 0 (user): the field 'mood'"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "message 0 (user): a content part of type 'image_url'"),
        ([{"role": "assistant", "tool_calls": [{"type": "function"}]}], "message 0 (assistant): the function"),
        ("hello", "a list of messages"),
    ],
    ids=str,
)
def test_a_wrong_message_is_named(server, messages, said):
    error = refusal(server, messages=messages)
    assert error["param"] == "messages"
    assert said in error["message"]


def test_no_messages_is_refused(server):
    response = server.http.post(CHAT, json={"max_tokens": 3})
    assert (response.status_code, error_of(response)["param"]) == (400, "messages")


def test_an_answer_can_be_sent_back_as_it_came(client):
    first = ask(client).choices[0].message
    history = [*USER, first.model_dump(), {"role": "user", "content": "More"}]
    plain = [*USER, {"role": "assistant", "content": first.content}, {"role": "user", "content": "More"}]
    assert ask(client, messages=history).choices[0].message.content == ask(client, messages=plain).choices[0].message.content


# -- streams -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [None, "known"])
def test_the_usage_of_a_stream_is_that_of_the_whole_answer(client, stop):
    more = {"max_tokens": 24, "logit_bias": NO_END}
    if stop:
        more["stop"] = ask(client, **more).choices[0].message.content[5:7]
    expected = ask(client, **more).usage
    chunks = list(ask(client, **more, stream=True, stream_options={"include_usage": True}))
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert (chunks[-1].choices, chunks[-1].usage) == ([], expected)
    assert all(chunk.usage is None for chunk in ask(client, **more, stream=True))


def test_the_usage_of_a_stream_that_the_model_ended(client):
    more = {"logit_bias": {"2": 100}, "max_tokens": 9}
    chunks = list(ask(client, **more, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage == ask(client, **more).usage
    assert chunks[-1].usage.completion_tokens == 0


def test_the_usage_of_a_streamed_completion(client):
    given = {"model": "tiny", "prompt": "Hello", "max_tokens": 7, "temperature": 0, "logit_bias": NO_END}
    chunks = list(client.completions.create(**given, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage == client.completions.create(**given).usage


# -- tools -------------------------------------------------------------------------------------------------------------

SCHEMA = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}


def tool(name):
    return {"type": "function", "function": {"name": name, "description": "Counts", "parameters": SCHEMA}}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("names", "choice"),
    [
        (["one"], "required"),
        (["one", "two"], "required"),
        (["one", "two"], {"type": "function", "function": {"name": "two"}}),
        (
            ["one", "two"],
            {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [tool("two")]}},
        ),
    ],
    ids=["one", "any", "named", "allowed"],
)
def test_a_forced_call_is_a_call(client, names, choice, stream):
    answer = ask(client, tools=[tool(name) for name in names], tool_choice=choice, max_tokens=200, stream=stream)
    if stream:
        chunks = list(answer)
        call, *more = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
        assert {one.index for one in (call, *more)} == {0}
        call.function.arguments += "".join(one.function.arguments for one in more)
        reason = chunks[-1].choices[0].finish_reason
        assert not "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    else:
        (call,) = answer.choices[0].message.tool_calls
        reason = answer.choices[0].finish_reason
        assert answer.choices[0].message.content is None
    assert call.function.name in (["two"] if isinstance(choice, dict) else names)
    assert json.loads(call.function.arguments)["n"] in (1, 2)
    assert call.id
    assert reason == "tool_calls"


def test_older_functions_are_tools(client):
    answer = ask(client, functions=[tool("one")["function"]], function_call={"name": "one"}, max_tokens=60)
    assert answer.choices[0].message.tool_calls[0].function.name == "one"


def test_a_template_without_a_place_for_tools_refuses_them(server):
    error = refusal(server, tools=[tool("one")])
    assert error["param"] == "tools"
    assert "no place for tools" in error["message"]


def test_a_tool_that_is_not_there(server):
    choice = {"type": "function", "function": {"name": "three"}}
    assert refusal(server, tools=[tool("one")], tool_choice=choice)["param"] == "tool_choice"


@pytest.mark.parametrize(
    ("text", "content", "found"),
    [
        ('<tool_call>\n{"name": "one", "arguments": {"n": 1}}\n</tool_call>', "", [("one", '{"n": 1}')]),
        ('Yes. <tool_call>{"name": "one", "arguments": {}}</tool_call>', "Yes.", [("one", "{}")]),
        ('{"name": "two", "parameters": {"n": 2}}', "", [("two", '{"n": 2}')]),
        ('{"name": "three", "arguments": {}}', '{"name": "three", "arguments": {}}', []),
        ("<tool_call>{broken</tool_call>", "<tool_call>{broken</tool_call>", []),
        ("Just text.", "Just text.", []),
        ("one {of} us", "one {of} us", []),
        ("[1] says so.", "[1] says so.", []),
        ("<tool", "<tool", []),
        ('<tool_call>{"name": "one", "arguments": {}}', "", [("one", "{}")]),  # its end was a control token
        (
            '<tool_call>{"name": "one", "arguments": {}}</tool_call>\n<tool_call>{"name": "two", "arguments": {}}</tool_call>',
            "",
            [("one", "{}"), ("two", "{}")],
        ),
        (
            '<|python_tag|>{"name": "one", "parameters": {"n": 1}}; {"name": "two", "parameters": {}}',
            "",
            [("one", '{"n": 1}'), ("two", "{}")],
        ),
        (
            '{"name": "one", "parameters": {"n": 1}}; {"name": "two", "parameters": {}}',
            "",
            [("one", '{"n": 1}'), ("two", "{}")],
        ),
        (
            '[TOOL_CALLS] [{"name": "one", "arguments": {"n": 1}}, {"name": "two", "arguments": {}}]',
            "",
            [("one", '{"n": 1}'), ("two", "{}")],
        ),
        ('[{"name": "one", "arguments": {"n": 1}}]', "", [("one", '{"n": 1}')]),
        ('Yes.[TOOL_CALLS]one[ARGS]{"n": 1}[TOOL_CALLS]two[CALL_ID]abc[ARGS]{}', "Yes.", [("one", '{"n": 1}'), ("two", "{}")]),
        ('one{"n": 1}', "", [("one", '{"n": 1}')]),
        ('[TOOL_CALLS]three[ARGS]{"n": 1}', '[TOOL_CALLS]three[ARGS]{"n": 1}', []),
    ],
)
def test_calls_are_found_in_what_a_model_wrote(text, content, found):
    from first_cpp.serve.tool_calls import found_calls, stream_with_calls

    names = ["one", "two"]
    said, calls = found_calls(text, names, False)
    assert (said, [(call.name, call.arguments) for call in calls]) == (content, found)
    deltas = [{"role": "assistant"}, *({"content": text[i : i + 3]} for i in range(0, len(text), 3)), {}]
    chunks = [{"choices": [{"delta": delta, "finish_reason": None}]} for delta in deltas]
    chunks[-1]["choices"][0]["finish_reason"] = "stop"
    sent = [chunk["choices"][0] for chunk in stream_with_calls(iter(chunks), names, False) if chunk]
    assert "".join(one["delta"].get("content") or "" for one in sent).strip() == content
    assert [c["function"]["name"] for one in sent for c in one["delta"].get("tool_calls", ())] == [name for name, _ in found]
    assert sent[-1]["finish_reason"] == ("tool_calls" if found else "stop")


@pytest.mark.parametrize(
    "text", ["{no call}", '<tool_call>{"name": "one", "arguments": {}}</tool_call>', "<think>a</think>{b}", "<tool"]
)
def test_the_logprobs_of_text_that_is_held_back_are_sent_once(text):
    from first_cpp.serve.reasoning import Thinking, stream_with_reasoning
    from first_cpp.serve.tool_calls import stream_with_calls

    chunks = [
        {"choices": [{"delta": {"content": a}, "logprobs": {"content": [{"token": a}]}, "finish_reason": None}]} for a in text
    ]
    chunks.append({"choices": [{"delta": {}, "logprobs": None, "finish_reason": "stop"}]})
    parted = stream_with_reasoning(iter(chunks), Thinking("<think>", "</think>"))
    sent = [chunk["choices"][0]["logprobs"] for chunk in stream_with_calls(parted, ["one"], False) if chunk]
    assert "".join(one["token"] for logprobs in sent if logprobs for one in logprobs["content"]) == text


# -- logprobs and echo -------------------------------------------------------------------------------------------------


def truth(load, routed, tokens: list[int]) -> list[float]:
    """The logprob of each token after the first, from a dense model that reads them alone."""
    llm = load(routed, n_ctx=1024, logits_all=True, skip=None)
    llm.eval(tokens)
    logits = np.asarray(llm.scores[: len(tokens) - 1], np.float64)
    logits -= logits.max(1, keepdims=True)
    logprobs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return [float(logprobs[i, token]) for i, token in enumerate(tokens[1:])]


PROMPT_TOKENS = [1, 40, 77, 101, 3, 200]


def test_echoed_logprobs_are_those_of_the_prompts_tokens(client, load, routed):
    """As lm-evaluation-harness asks for them."""
    answer = client.completions.create(
        model="tiny", prompt=PROMPT_TOKENS, max_tokens=1, temperature=0, logprobs=1, echo=True, logit_bias=NO_END
    ).choices[0]
    assert answer.logprobs.token_logprobs[0] is None
    assert answer.logprobs.token_logprobs[1 : len(PROMPT_TOKENS)] == pytest.approx(truth(load, routed, PROMPT_TOKENS), abs=2e-3)
    assert len(answer.logprobs.tokens) == len(answer.logprobs.top_logprobs) == len(answer.logprobs.text_offset)
    for logprob, top in list(zip(answer.logprobs.token_logprobs, answer.logprobs.top_logprobs, strict=True))[1:]:
        assert max(top.values()) >= logprob


@pytest.mark.parametrize("prompt", ["Once upon", [1, 40, 77]])
def test_max_tokens_0_only_reads_the_prompt(client, prompt):
    given = {"model": "tiny", "prompt": prompt, "max_tokens": 0, "temperature": 0}
    answer = client.completions.create(**given, echo=True, logprobs=0)
    if isinstance(prompt, str):
        assert answer.choices[0].text == prompt
        assert answer.choices[0].logprobs.text_offset[0] == 0
    assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", 0)
    assert client.completions.create(**given).choices[0].text == ""
    chunks = list(client.completions.create(**given, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == ""


def test_echo_in_a_stream(client):
    given = {"model": "tiny", "prompt": "Once", "max_tokens": 5, "temperature": 0, "logit_bias": NO_END, "echo": True}
    whole = client.completions.create(**given).choices[0].text
    assert whole.startswith("Once")
    assert "".join(chunk.choices[0].text for chunk in client.completions.create(**given, stream=True)) == whole


def test_logprobs_without_echo_are_the_answers(client, load, routed):
    given = {"model": "tiny", "prompt": PROMPT_TOKENS, "max_tokens": 4, "temperature": 0, "logit_bias": NO_END}
    found = client.completions.create(**given, logprobs=3, extra_body={"skip": None}).choices[0].logprobs
    assert len(found.token_logprobs) == 4
    assert all(1 <= len(top) <= 4 for top in found.top_logprobs)
    llm = load(routed, n_ctx=1024, logits_all=True, skip=None)
    llm.create_completion(PROMPT_TOKENS, max_tokens=4, temperature=0, logit_bias={int(k): v for k, v in NO_END.items()})
    made = llm.input_ids[: llm.n_tokens].tolist()
    expected = truth(load, routed, made)[len(PROMPT_TOKENS) - 1 :]
    assert found.token_logprobs[: len(expected)] == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("echo", [False, True])
def test_logprobs_end_where_a_stop_ended_the_text(client, echo):
    given = {"model": "tiny", "prompt": "Hello", "max_tokens": 20, "temperature": 0, "logit_bias": NO_END, "echo": echo}
    text = client.completions.create(**given).choices[0].text
    stop = text[-8:-4]
    found = client.completions.create(**given, stop=stop, logprobs=1).choices[0]
    assert found.text == text[: text.index(stop)]
    assert "".join(found.logprobs.tokens).lstrip("▁ ") == found.text
    assert len(found.logprobs.token_logprobs) == len(found.logprobs.text_offset) == len(found.logprobs.tokens)


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_of_a_chat_end_where_a_stop_ended_the_text(client, stream):
    more = {"max_tokens": 20, "logit_bias": NO_END}
    text = ask(client, **more).choices[0].message.content
    answer = ask(client, **more, stop=text[8:11], logprobs=True, stream=stream)
    choices = [chunk.choices[0] for chunk in answer] if stream else answer.choices
    tokens = [one.token for choice in choices if choice.logprobs for one in choice.logprobs.content]
    assert "".join(tokens) == text[: text.index(text[8:11])]


@pytest.mark.parametrize("prompt", [["a", "b"], [[1], [2]], [1, "a"], [1.5], [True], [-1], [320], 5, [[]], []], ids=str)
def test_prompts_that_are_refused(server, prompt):
    assert refusal(server, TEXT, prompt=prompt)["param"] == "prompt"


# -- models, embeddings, browsers --------------------------------------------------------------------------------------


def test_models(client):
    (model,) = client.models.list().data
    assert client.models.retrieve("tiny") == model
    assert model.created > 0
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt")


def test_embeddings(embedding_server, routed, load):
    expected = load(routed, embedding=True, pooling_type=1, n_ctx=512).embed(["one text"])[0]
    create = embedding_server.client().embeddings.create
    for asked in ({"encoding_format": "float"}, {}):  # the client asks for base64 by itself
        found = create(model="tiny", input="one text", **asked)
        assert found.data[0].embedding == pytest.approx(expected, abs=1e-5)
    raw = create(model="tiny", input="one text", encoding_format="base64")
    assert np.frombuffer(base64.b64decode(raw.data[0].embedding), np.float32) == pytest.approx(expected, abs=1e-5)
    assert raw.usage.total_tokens == found.usage.total_tokens > 1
    for given in ("", ["a", ""], [], [1, 2], [[1, 2]], ["a"] * 2049, [None]):
        assert refusal(embedding_server, "/v1/embeddings", input=given)["param"] == "input"
    assert refusal(embedding_server, "/v1/embeddings", input="x", dimensions=8)["param"] == "dimensions"
    assert refusal(embedding_server, "/v1/embeddings", input="x", encoding_format="int8")["param"] == "encoding_format"


def test_a_browser_may_send_the_headers_of_the_javascript_client(embedding_server):
    headers = "authorization,content-type,x-stainless-lang,x-stainless-os,x-stainless-retry-count,x-stainless-timeout"
    preflight = {
        "Origin": "https://example.org",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": headers,
    }
    url = embedding_server.url + CHAT
    allowed = httpx.options(url, headers=preflight)
    assert allowed.status_code == 200
    assert set(headers.split(",")) <= set(allowed.headers["access-control-allow-headers"].lower().replace(" ", "").split(","))
    assert httpx.options(url, headers={**preflight, "Origin": "https://evil.org"}).status_code == 400


def test_min_tokens_beside_a_bias(server):
    """llama_cpp.server drops both where both are given."""
    body = {"prompt": "Once", "temperature": 0, "max_tokens": 9, "logit_bias": {"2": 1e5, "100": 1e4}}
    assert server.http.post(TEXT, json=body).json()["usage"]["completion_tokens"] == 0
    answer = server.http.post(TEXT, json={**body, "min_tokens": 5}).json()
    assert (answer["choices"][0]["text"], answer["usage"]["completion_tokens"]) == ("aaaaa", 5)


def test_min_tokens_knows_every_token_that_ends_an_answer(tiny, load):
    """llama_cpp.server's knows of EOS alone."""
    llm = load(tiny, kv_overrides={"tokenizer.ggml.eot_token_id": 99})
    assert llm.end_tokens == (2, 99)
    ask = {"max_tokens": 9, "temperature": 0, "logit_bias": {99: 1e5}}
    assert llm([1, 50], **ask)["usage"]["completion_tokens"] == 0
    assert llm([1, 50], logits_processor=[MinTokens(llm, 5)], **ask)["usage"]["completion_tokens"] == 5


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/metrics", "/"])
def test_head_is_get_without_a_body(server, path):
    """As busybox's wget --spider and other health checks ask."""
    response = server.http.head(path)
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-type"] == server.http.get(path).headers["content-type"]


def test_models_with_a_slash_at_the_end(server):
    assert server.http.get("/v1/models/").json() == server.http.get("/v1/models").json()
    assert server.http.get("/v1/models/tiny/").json()["id"] == "tiny"
    assert server.http.get("/v1/models/tin/").status_code == 404
