"""What `first-cpp serve` refuses, and that it lives on."""

from __future__ import annotations

import httpx
import openai
import pytest
from server import chat, error_of

USER = [{"role": "user", "content": "Hello"}]
N_CTX = 2048


def test_key(strict):
    with pytest.raises(openai.AuthenticationError, match="wrong API key") as refused:
        strict.client("wrong").models.list()
    assert refused.value.code == "invalid_api_key"
    for path in ("/v1/models", "/metrics", "/openapi.json", "/nothing"):
        response = httpx.get(strict.url + path)
        assert (response.status_code, error_of(response)["code"]) == (401, "invalid_api_key")
        assert response.headers["www-authenticate"] == "Bearer"
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/extras/tokenize", "/extras/detokenize"):
        assert httpx.post(strict.url + path, json=chat()).status_code == 401
    for given in ("Bearer", "Basic s3cret", "s3cret", "Bearer s3cret2", "Bearer \u00e9"):
        assert httpx.get(strict.url + "/v1/models", headers={"Authorization": given.encode("latin-1")}).status_code == 401
    for path in ("/health", "/", "/page/app.js"):
        assert httpx.get(strict.url + path).status_code == 200
    assert len(strict.client().models.list().data) == 1


def test_prompt_that_is_too_long_names_both_lengths(server, strict):
    with pytest.raises(openai.BadRequestError, match=r"has \d{4} tokens, at most 2047 .*context 2048") as refused:
        server.client().chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x " * 1100}])
    assert refused.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match=r"has \d{4} tokens, at most 2047"):
        server.client().completions.create(model="tiny", prompt="x" * 3000, stream=True)
    with pytest.raises(openai.BadRequestError, match=r"has \d+ tokens, at most 100 "):
        strict.client().completions.create(model="routed-31", prompt="x" * 200)


def test_longest_prompt_fits(server):
    n = server.http.post("/extras/tokenize/count", json={"input": "x" * 100}).json()["count"] - 100
    body = {"prompt": "x" * (N_CTX - 1 - n), "max_tokens": 5}
    assert server.http.post("/v1/completions", json=body).json()["usage"]["prompt_tokens"] == N_CTX - 1
    body["prompt"] += "x"
    assert server.http.post("/v1/completions", json=body).status_code == 400


def test_body_that_is_too_large(strict):
    large = strict.http.post("/v1/completions", json={"prompt": "x" * 3000})
    assert (large.status_code, error_of(large)["code"]) == (413, "body_too_large")
    chunked = strict.http.post("/v1/completions", content=(b"x" * 1000 for _ in range(5)))
    assert (chunked.status_code, error_of(chunked)["code"]) == (413, "body_too_large")


def test_unknown_model(server):
    client = server.client()
    for ask in (
        lambda: client.chat.completions.create(model="gpt", messages=USER),
        lambda: client.completions.create(model="gpt", prompt="x"),
        lambda: client.embeddings.create(model="gpt", input="x"),
    ):
        with pytest.raises(openai.NotFoundError, match="'gpt' does not exist; this server has 'tiny'") as refused:
            ask()
        assert refused.value.code == "model_not_found"
    assert server.http.post("/extras/tokenize", json={"input": "x", "model": "gpt"}).status_code == 404


USERS = b'"messages": [{"role": "user", "content": "x"}]'
BAD_BODIES = [
    b"{}",
    b'{"messages": []}',
    b'{"messages": null}',
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xff\xfe",
    b'{"messages": 3}',
    b'{"messages": [{"role": "user"}]}',
    b'{"messages": [{"role": "king", "content": "x"}]}',
    b'{"messages": [{"role": "user", "content": [{"type": "text"}]}]}',
    b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    b"{" + USERS + b', "temperature": NaN}',
    b"{" + USERS + b', "temperature": "hot"}',
    b"{" + USERS + b', "repeat_penalty": 1e999}',
    b"{" + USERS + b', "max_tokens": "many"}',
    b"{" + USERS + b', "n": 2}',
    b"{" + USERS + b', "stop": 5}',
    b"{" + USERS + b', "logit_bias": {"x": 1}}',
    b"{" + USERS + b', "logit_bias": {"-1": 1}}',
    b"{" + USERS + b', "logit_bias": {"320": 1}}',
    b"{" + USERS + b', "grammar": "root ::= ("}',
    b"{" + USERS + b', "grammar": "no ::= \\"a\\""}',
    b"{" + USERS + b', "grammar": "root ::= root"}',
    b"{" + USERS + b', "grammar": "root ::= [z-a]"}',
    b"{" + USERS + b', "grammar": "root ::= <[320]>"}',
    b"{" + USERS + b', "grammar": "root ::= \\"a\\"", "min_tokens": 3}',
    b"{" + USERS + b', "min_tokens": 9, "response_format": {"type": "json_object", "schema": {"type": "boolean"}}}',
    b"{" + USERS + b', "logit_bias": {"5": -1e38}}',
    b"{" + USERS + b', "grammar": "root ::= ' + b"(" * 20000 + b'"}',
    b"{" + USERS + b', "logprobs": true, "top_logprobs": 5000}',
    b"{" + USERS + b', "response_format": {"type": "json_schema"}}',
    b"{" + USERS + b', "response_format": {"type": "xml"}}',
    b"{" + USERS + b', "response_format": {"type": "json_object", "schema": {"$ref": "#/nowhere"}}}',
    b"{" + USERS + b', "tools": [], "tool_choice": {"type": "function", "function": {"name": "none"}}}',
    b"[" * 100000,
    b"{" + USERS + b', "response_format": {"type": "json_object", "schema": ' + b'{"items":' * 5000 + b"1" + b"}" * 5002,
]


@pytest.mark.parametrize("body", BAD_BODIES, ids=lambda body: repr(body[:60]))
def test_bad_body_is_a_400_and_the_server_lives(server, body):
    refused = server.http.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert (refused.status_code, error_of(refused)["type"]) == (400, "invalid_request_error")
    assert server.health()["status"] == "ok"


@pytest.mark.parametrize(
    "body",
    [{"prompt": ["a", "b"]}, {"prompt": 5}, {"prompt": "x", "best_of": 3}, {"prompt": "x", "logprobs": -1}, {"input": "x"}],
    ids=repr,
)
def test_bad_completion(server, body):
    route = "/v1/embeddings" if "input" in body else "/v1/completions"
    refused = server.http.post(route, json=body)
    assert (refused.status_code, error_of(refused)["type"]) == (400, "invalid_request_error")


def test_logprobs_without_logits_all(strict):
    with pytest.raises(openai.BadRequestError, match="--logits-all"):
        strict.client().chat.completions.create(model="routed-31", messages=USER, logprobs=True)
    with pytest.raises(openai.BadRequestError, match="--logits-all"):
        strict.client().completions.create(model="routed-31", prompt="x", logprobs=1)


def test_detokenize(server):
    """llama.cpp ends the process for a token that does not exist."""
    tokens = server.http.post("/extras/tokenize", json={"input": "abc"}).json()["tokens"]
    assert server.http.post("/extras/detokenize", json={"tokens": tokens}).json()["text"].endswith("abc")
    for tokens in ([-1], [320], [10**20], ["x"]):
        assert error_of(server.http.post("/extras/detokenize", json={"tokens": tokens}))["type"] == "invalid_request_error"
    assert server.http.post("/extras/detokenize", json={"tokens": [230]}).json()["text"] == "\ufffd"
    lone = server.http.post("/extras/tokenize", content=b'{"input": "\\ud800"}', headers={"Content-Type": "application/json"})
    assert (lone.status_code, error_of(lone)["type"]) == (400, "invalid_request_error")


def test_odd_requests_are_answered(server):
    for body in (
        {"prompt": "hello", "suffix": "you", "max_tokens": 3},
        {"prompt": "", "max_tokens": 3},
        {"prompt": "hello", "echo": True, "logprobs": 1, "max_tokens": 3},
        {"prompt": "hello", "logprobs": 1, "max_tokens": 3, "stream": True},
    ):
        assert server.http.post("/v1/completions", json=body).status_code == 200, body
    assert server.http.post("/v1/engines/copilot-codex/completions", json={"prompt": "x", "model": "any"}).status_code == 200


def test_unknown_route_and_method(server):
    assert error_of(server.http.get("/nothing"))["message"] == "GET /nothing: Not Found"
    wrong = server.http.get("/v1/chat/completions")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")


def test_other_sites_cannot_use_it_through_a_browser(server, embedding_server):
    def ask(url=server.url, **headers):
        return httpx.post(url + "/v1/chat/completions", json=chat(), headers=headers)

    assert ask(Origin=server.url).status_code == 200
    assert error_of(ask(Origin="https://example.org"))["code"] == "wrong_origin"
    error = error_of(ask(Origin="null"))  # of a file, or of a sandbox, which no --cors can name
    assert error["code"] == "wrong_origin"
    assert "--cors '*'" in error["message"]
    assert error_of(ask(Host="example.org"))["code"] == "wrong_host"
    assert "access-control-allow-origin" not in ask(Origin=server.url).headers
    assert error_of(ask(Host="[::1"))["code"] == "wrong_host"
    assert error_of(ask(Origin="http://[::1"))["code"] == "wrong_origin"
    preflight = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    assert httpx.options(server.url + "/v1/chat/completions", headers=preflight).status_code == 403
    allowed = httpx.options(embedding_server.url + "/v1/chat/completions", headers=preflight)
    assert allowed.headers["access-control-allow-origin"] == "https://example.org"
    assert ask(embedding_server.url, Origin="https://example.org").status_code == 200
    assert ask(embedding_server.url, Origin="https://example.com").status_code == 403
