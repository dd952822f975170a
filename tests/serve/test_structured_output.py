"""Grammars and schemas of clients: what cannot be kept is a 400, and the server answers the next request."""

from __future__ import annotations

import json
import time

import httpx
import pytest
from server import chat, error_of, serving

ENDLESS = 'root ::= opt{2000} opt{2000} opt{2000}\nopt ::= "a"?'
PLAIN = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}


@pytest.fixture(scope="module")
def server(tiny):
    with serving(tiny, "--chat-format", "chatml") as started:
        yield started


def ask(server, **more: object) -> httpx.Response:
    return server.http.post("/v1/chat/completions", json={**PLAIN, **more})


def answered(server) -> None:
    assert ask(server).status_code == 200


@pytest.mark.parametrize(
    "grammar", ['root ::= "\\x00"', 'root ::= <[2]> "a"', 'root ::= "a" [z-a]', "root ::= (", "[" * 20_000, "(" * 20_000]
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_grammar_that_nothing_can_go_on_with(server, grammar, stream):
    begun = time.monotonic()
    refused = ask(server, grammar=grammar, stream=stream)
    if refused.status_code == 200:  # a stream that had begun
        assert b'"invalid_request_error"' in refused.content
    else:
        assert (refused.status_code, error_of(refused)["type"]) == (400, "invalid_request_error")
    assert time.monotonic() - begun < 4
    answered(server)


def schema_format(schema: object) -> dict:
    return {"type": "json_schema", "json_schema": {"name": "it", "schema": schema, "strict": True}}


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "object", "properties": {"a": {"not": {}}}}, "#/properties/a"),
        ({"$ref": "#/nowhere"}, "nowhere"),
        ({"type": "string", "pattern": "("}, "regex"),
    ],
)
def test_schemas_are_refused_by_name(server, schema, said):
    refused = ask(server, response_format=schema_format(schema))
    assert refused.status_code == 400
    assert error_of(refused)["param"] == "response_format"
    assert said in error_of(refused)["message"]
    answered(server)


@pytest.mark.parametrize("values", [["😀", "😢"], ["C:\\temp"], ["a\tb"], ['say "hi"'], [1, 2, 5]])
def test_values_come_as_they_were_given(server, values):
    found = ask(server, max_tokens=60, response_format=schema_format({"enum": values}))
    assert json.loads(found.json()["choices"][0]["message"]["content"]) in values


def test_json_object(server):
    found = ask(server, max_tokens=5, response_format={"type": "json_object"})
    assert found.json()["choices"][0]["message"]["content"].startswith("{")


def test_a_large_count_costs_nothing(server):
    begun = time.monotonic()
    assert ask(server, response_format=schema_format({"type": "string", "maxLength": 10**8})).status_code == 200
    assert time.monotonic() - begun < 3


def test_an_endless_grammar_ends_with_its_client(server):
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/chat/completions", json={**PLAIN, "grammar": ENDLESS}, timeout=0.5)
    assert server.wait_for(answering=False) < 2
    answered(server)


def test_an_endless_grammar_meets_a_time_limit(server):
    refused = ask(server, grammar=ENDLESS)
    assert refused.status_code == 400
    assert "too ambiguous" in error_of(refused)["message"]
    answered(server)


def test_an_endless_grammar_does_not_keep_the_server_from_ending(tiny):
    with serving(tiny, "--chat-format", "chatml") as started, pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{started.url}/v1/chat/completions", json=chat(grammar=ENDLESS), timeout=0.5)
    begun = time.monotonic()
    assert started.stop() in (0, 143, -15)
    assert time.monotonic() - begun < 10
