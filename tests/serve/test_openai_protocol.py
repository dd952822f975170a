"""The OpenAI protocol, field by field, with the real Python client: honoured, or refused by name."""

from __future__ import annotations

import base64
import pathlib

import httpx
import numpy as np
import openai
import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsBase as CompletionParams
from openai.types.embedding_create_params import EmbeddingCreateParams
from openai.types.responses.response_create_params import ResponseCreateParamsBase as ResponseParams
from protocol import CHAT, TEXT, USER, ask, refusal
from server import NO_END, error_of

from first_cpp.serve.completions import MinTokens
from first_cpp.serve.requests import (
    FIELDS_OF_CALLERS,
    ONLY_DEFAULTS,
    REFUSED,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
)

NEWEST = {"access_programs", "background_options", "image"}
"""Fields of some releases of the client, unknown here and so refused by name."""


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
def test_null_is_the_default_of_a_chat(protocol_server, field):
    body = {"messages": USER, "max_tokens": 2, "temperature": 0, field: None}
    response = protocol_server.http.post(CHAT, json=body)
    assert response.status_code == 200, response.text


@pytest.mark.parametrize("field", sorted(set(CompletionParams.__annotations__) - {"prompt"} | {"stream", "min_p"}))
def test_null_is_the_default_of_a_completion(protocol_server, field):
    response = protocol_server.http.post(TEXT, json={"prompt": "x", field: None})
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
def test_what_cannot_be_honoured_is_refused_by_name(protocol_server, field, value):
    error = refusal(protocol_server, **{field: value})
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


def test_a_near_name_is_suggested(protocol_server):
    assert "did you mean 'temperature'?" in refusal(protocol_server, temprature=1)["message"]


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
def test_a_wrong_message_is_named(protocol_server, messages, said):
    error = refusal(protocol_server, messages=messages)
    assert error["param"] == "messages"
    assert said in error["message"]


def test_no_messages_is_refused(protocol_server):
    response = protocol_server.http.post(CHAT, json={"max_tokens": 3})
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


# -- models, embeddings, browsers --------------------------------------------------------------------------------------


def test_models(client):
    (model,) = client.models.list().data
    assert client.models.retrieve("tiny") == model
    assert model.created > 0
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt")


def test_embeddings(embedding_server, protocol_model, load):
    expected = load(protocol_model, embedding=True, pooling_type=1, n_ctx=512).embed(["one text"])[0]
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


def test_min_tokens_beside_a_bias(protocol_server):
    """llama_cpp.server drops both where both are given."""
    body = {"prompt": "Once", "temperature": 0, "max_tokens": 9, "logit_bias": {"2": 1e5, "100": 1e4}}
    assert protocol_server.http.post(TEXT, json=body).json()["usage"]["completion_tokens"] == 0
    answer = protocol_server.http.post(TEXT, json={**body, "min_tokens": 5}).json()
    assert (answer["choices"][0]["text"], answer["usage"]["completion_tokens"]) == ("aaaaa", 5)


def test_min_tokens_knows_every_token_that_ends_an_answer(tiny, load):
    """llama_cpp.server's knows of EOS alone."""
    llm = load(tiny, kv_overrides={"tokenizer.ggml.eot_token_id": 99})
    assert llm.end_tokens == (2, 99)
    ask = {"max_tokens": 9, "temperature": 0, "logit_bias": {99: 1e5}}
    assert llm([1, 50], **ask)["usage"]["completion_tokens"] == 0
    assert llm([1, 50], logits_processor=[MinTokens(llm, 5)], **ask)["usage"]["completion_tokens"] == 5


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/metrics", "/"])
def test_head_is_get_without_a_body(protocol_server, path):
    """As busybox's wget --spider and other health checks ask."""
    response = protocol_server.http.head(path)
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-type"] == protocol_server.http.get(path).headers["content-type"]


def test_models_with_a_slash_at_the_end(protocol_server):
    assert protocol_server.http.get("/v1/models/").json() == protocol_server.http.get("/v1/models").json()
    assert protocol_server.http.get("/v1/models/tiny/").json()["id"] == "tiny"
    assert protocol_server.http.get("/v1/models/tin/").status_code == 404
