"""Grammars and schemas of clients: what cannot be kept is a 400, and the server answers the next request."""

from __future__ import annotations

import json
import time

import httpx
import jsonschema
import pytest
from server import chat, error_of, serving

from first_cpp.serve.tools import Tools

ENDLESS = 'root ::= opt{2000} opt{2000} opt{2000}\nopt ::= "a"?'
PLAIN = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, "temperature": 0}


@pytest.fixture(scope="module")
def server(tiny):
    """With a shorter time limit for grammars than the product has."""
    code = (
        "import sys; from first_cpp.runtime import grammar; grammar.SECONDS = 1.0; "
        "from first_cpp.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    with serving(tiny, "--chat-format", "chatml", code=code) as started:
        yield started


def ask(server, **more: object) -> httpx.Response:
    return server.http.post("/v1/chat/completions", json={**PLAIN, **more})


def answered(server) -> None:
    assert ask(server).status_code == 200


@pytest.mark.timed
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


def tool_of(name: str, parameters: dict) -> dict:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def referring(*kinds: str) -> dict:
    """Parameters that refer to themselves, to a definition, and name a property as a keyword."""
    return {
        "$id": "https://example.org/a",
        "$defs": {"kind": {"enum": list(kinds)}},
        "type": "object",
        "properties": {
            "kind": {"$ref": "#/$defs/kind"},
            "again": {"$ref": "#/properties/kind"},
            "inner": {"anyOf": [{"type": "null"}, {"$ref": "#"}]},  # the answers of a random model end all the same
            "enum": {"const": {"$ref": "#/$defs/kind"}},
        },
        "required": ["kind", "again"],
        "additionalProperties": False,
    }


def test_tools_that_refer_to_definitions_of_one_name(server):
    """Each tool's references mean its own definitions, beside those of the others too."""
    tools = Tools((tool_of("one", referring("a", "b")), tool_of("two", referring("x", "y"))), "required")
    schema, text = tools.schema(), {"$ref": "#/$defs/kind"}
    good = {"name": "two", "arguments": {"kind": "x", "again": "y", "inner": {"kind": "y", "again": "x"}, "enum": text}}
    jsonschema.validate(good, schema)
    for wrong in (
        {"name": "two", "arguments": {"kind": "a", "again": "x"}},
        {"name": "one", "arguments": {"kind": "a", "again": "x"}},
        {"name": "one", "arguments": {"kind": "a", "again": "a", "inner": {"kind": "x", "again": "a"}}},
    ):
        assert not jsonschema.Draft202012Validator(schema).is_valid(wrong)
    for seed in range(3):
        answer = ask(server, tools=list(tools.tools), tool_choice="required", max_tokens=400, temperature=1.0, seed=seed).json()
        assert answer["choices"][0]["finish_reason"] == "tool_calls"
        called = answer["choices"][0]["message"]["tool_calls"][0]["function"]
        jsonschema.validate({"name": called["name"], "arguments": json.loads(called["arguments"])}, schema)


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


@pytest.mark.timed
def test_a_large_count_costs_nothing(server):
    begun = time.monotonic()
    assert ask(server, response_format=schema_format({"type": "string", "maxLength": 10**8})).status_code == 200
    assert time.monotonic() - begun < 3


@pytest.mark.timed
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


@pytest.mark.timed
def test_an_endless_grammar_does_not_keep_the_server_from_ending(tiny):
    with serving(tiny, "--chat-format", "chatml") as started, pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{started.url}/v1/chat/completions", json=chat(grammar=ENDLESS), timeout=0.5)
    begun = time.monotonic()
    assert started.stop() in (0, 143, -15)
    assert time.monotonic() - begun < 10


# -- other fields, of this model without routers ---------------------------------------------------------------------------


def test_a_tolerance_needs_cost_probes(server):
    assert server.health()["tolerance"] is None
    refused = ask(server, tolerance=0.1)
    assert refused.status_code == 400
    assert "needs cost probes" in error_of(refused)["message"]
