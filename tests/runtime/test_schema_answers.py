"""A model with random weights answers what a JSON schema says; llama_cpp's own grammars too."""

from __future__ import annotations

import json
import time

import llama_cpp
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from json_schemas import EXACT, MESSAGES, Closing, answer, check_valid, held
from llama_cpp import llama_grammar as library
from random_schemas import SCHEMAS

from first_cpp import Llama
from first_cpp.runtime.structured import SchemaText


@pytest.fixture(scope="module")
def model(tiny):
    llm = Llama(tiny, verbose=False, n_ctx=1024, n_threads=1, chat_format="chatml")
    yield llm
    llm.close()


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(schema=SCHEMAS, seed=st.integers(0, 2**20))
def test_a_random_model_answers_validly(model, schema, seed):
    assume(held(schema) and schema != {})
    found = answer(model, schema, seed)
    if found["finish_reason"] == "stop":
        check_valid(schema, found["message"]["content"])


@pytest.mark.parametrize("schema", EXACT.values(), ids=EXACT)
def test_each_keyword_is_kept(model, schema):
    for seed in range(4):
        found = answer(model, schema, seed)
        assert found["finish_reason"] == "stop"
        check_valid(schema, found["message"]["content"])


@pytest.mark.parametrize("schema", EXACT.values(), ids=EXACT)
def test_grammars_of_llama_cpp_keep_their_schema(model, schema):
    """`from_json_schema` as callers of llama_cpp write it: what it cannot convert itself is kept too."""
    grammar = llama_cpp.LlamaGrammar.from_json_schema(json.dumps(schema))
    processors = llama_cpp.LogitsProcessorList([Closing(model)])
    found = model("Hello", grammar=grammar, max_tokens=400, seed=3, logits_processor=processors)["choices"][0]
    assert found["finish_reason"] == "stop"
    check_valid(schema, found["text"])


def test_arguments_of_a_chosen_tool_are_kept(model):
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 5}}, "required": ["n"]}
    tools = [{"type": "function", "function": {"name": "count", "parameters": schema}}]
    for seed in range(6):
        found = model.create_chat_completion(
            MESSAGES, tools=tools, tool_choice={"type": "function", "function": {"name": "count"}}, seed=seed, max_tokens=60
        )
        (call,) = found["choices"][0]["message"]["tool_calls"]
        check_valid(schema, call["function"]["arguments"])


def test_any_json_object(model):
    for seed in range(4):
        processors = llama_cpp.LogitsProcessorList([Closing(model)])
        found = model.create_chat_completion(
            MESSAGES, response_format={"type": "json_object"}, seed=seed, max_tokens=600, logits_processor=processors
        )
        assert isinstance(json.loads(found["choices"][0]["message"]["content"]), dict)


def test_a_format_that_is_text(model):
    plain = model.create_chat_completion(MESSAGES, max_tokens=9, temperature=0)
    text = model.create_chat_completion(MESSAGES, max_tokens=9, temperature=0, response_format={"type": "text"})
    assert text["choices"] == plain["choices"]


PROMPTS = [
    "Write a short Python function.", "Tell me a joke.", "Write a haiku.", "List three colours.", "Explain recursion.",
    "Write a limerick.", "Give me a recipe for pancakes.", "Write a JSON example.", "Show a C program.", "Write a letter.",
    "What is a tab character?", "Write a table of squares.",
]  # fmt: skip


@pytest.mark.smollm2
@pytest.mark.parametrize("prompts", [PROMPTS[:1], pytest.param(PROMPTS[1:], marks=pytest.mark.slow)], ids=["one", "more"])
def test_ordinary_answers_are_json(smollm2, load, prompts):
    llm = load(smollm2, n_ctx=2048)
    schema = {"type": "object", "properties": {"text": {"type": "string", "maxLength": 150}}, "required": ["text"]}
    for prompt in prompts:
        found = llm.create_chat_completion(
            [{"role": "user", "content": prompt}],
            response_format={"type": "json_object", "schema": schema},
            temperature=0,
            max_tokens=400,
        )
        check_valid(schema, found["choices"][0]["message"]["content"])


def test_llama_cpp_is_given_its_own_text():
    """A model of llama_cpp sees the GBNF that it would see without us."""
    schema = json.dumps({"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]})
    text = llama_cpp.LlamaGrammar.from_json_schema(schema)._grammar
    assert isinstance(text, SchemaText)
    plain = library.SchemaConverter(prop_order={}, allow_fetch=False, dotall=False, raw_pattern=False)
    plain.visit(json.loads(schema), "")
    assert text == plain.format_grammar()
    assert text.encode("utf-8") == str.encode(text)


def test_a_schema_that_llama_cpp_cannot_convert(model, tiny, load):
    schema = '{"type": "string", "pattern": "ab"}'
    grammar = llama_cpp.LlamaGrammar.from_json_schema(schema)
    found = model("Hello", grammar=grammar, max_tokens=100, temperature=0)["choices"][0]
    assert found["text"].lstrip().startswith('"')  # a random text hardly ever holds the pattern, and ends only with it
    assert found["finish_reason"] == "length" or "ab" in json.loads(found["text"])
    with pytest.raises(ValueError, match="llama_cpp cannot convert this JSON schema"):
        load(tiny, llama_cpp.Llama)("Hello", grammar=grammar, max_tokens=5)
    with pytest.raises(AssertionError, match="Unrecognized schema"):
        library.json_schema_to_gbnf('{"type": "widget"}')


@pytest.mark.timed
@pytest.mark.parametrize(
    "schema",
    ['{"type": "string", "maxLength": 100000000}', '{"type": "array", "items": {"type": "null"}, "minItems": 1e8}',
     '{"type": "string", "pattern": "^(a{1000}){99999999}$"}'],
)  # fmt: skip
def test_large_counts_cost_nothing(model, schema):
    """llama_cpp writes them out: 3.3 GB for 10^8."""
    resource = pytest.importorskip("resource")  # not on Windows
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    grammar = llama_cpp.LlamaGrammar.from_json_schema(schema)
    assert model("Hello", grammar=grammar, max_tokens=5)["usage"]["completion_tokens"] > 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KB
    assert time.monotonic() - begun < 2
