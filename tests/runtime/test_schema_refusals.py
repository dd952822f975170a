"""JSON schemas that cannot be kept are refused by name, before anything is computed."""

from __future__ import annotations

import re
import time

import pytest
from json_schemas import MESSAGES, REFUSED

from first_cpp import GrammarError, Llama
from first_cpp.runtime.json_mask import grammar_of
from first_cpp.runtime.json_schema import as_text, close, ready


@pytest.fixture(scope="module")
def model(tiny):
    llm = Llama(tiny, verbose=False, n_ctx=1024, n_threads=1, chat_format="chatml")
    yield llm
    llm.close()


@pytest.mark.timed
@pytest.mark.parametrize(("schema", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_refused_by_name(schema, said):
    begun = time.monotonic()
    with pytest.raises(GrammarError, match=re.escape(said)):
        grammar_of(schema)
    assert time.monotonic() - begun < 1


@pytest.mark.parametrize(
    ("response_format", "said"),
    [
        ({"type": "xml"}, "'xml'; allowed: text, json_object, json_schema"),
        ({}, "has type None"),
        ("json", "'json'; allowed: an object"),
        ({"type": "json_schema"}, "json_schema with a schema"),
        ({"type": "json_object", "schema": {"not": {}}}, "the keyword not"),
    ],
)
def test_formats_are_refused_before_the_prompt_is_read(model, response_format, said):
    model.reset()
    with pytest.raises(GrammarError, match=re.escape(said)):
        model.create_chat_completion(MESSAGES, response_format=response_format)
    assert model.n_tokens == 0


def test_a_tool_that_cannot_be_kept_is_refused(model):
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}]
    with pytest.raises(GrammarError, match="the keyword not"):
        model.create_chat_completion(MESSAGES, tools=tools, tool_choice={"type": "function", "function": {"name": "f"}})


def test_annotations_are_no_keywords():
    schema = {
        "type": "string",
        "title": "It",
        "x-guidance": {"lenient": True},
        "nullable": True,
        "format": "int32",
        "uniqueItems": False,
    }
    assert ready(as_text(schema)) == {"type": "string"}


@pytest.mark.parametrize(
    ("schema", "at", "closed"),
    [
        ({"properties": {"a": {}}}, (), True),
        ({"properties": {"a": {}}, "required": ["b"]}, (), False),
        ({"properties": {"a": {}}, "additionalProperties": {}}, (), False),
        ({"properties": {"a": {"properties": {"b": {}}}}}, ("properties", "a"), True),
        ({"anyOf": [{"properties": {"a": {}}}]}, ("anyOf", 0), True),
        ({"anyOf": [{"properties": {"a": {}}}], "required": ["x"]}, ("anyOf", 0), False),
        ({"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]}, ("allOf", 1), False),
        ({"allOf": [{"properties": {"a": {"properties": {"x": {}}}}}, {}]}, ("allOf", 0, "properties", "a"), False),
        ({"$ref": "#/$defs/d", "$defs": {"d": {"properties": {"a": {}}}}}, ("$defs", "d"), True),
        ({"allOf": [{"$ref": "#/$defs/d"}, {}], "$defs": {"d": {"properties": {"a": {}}}}}, ("$defs", "d"), False),
    ],
)
def test_objects_are_closed_where_nothing_else_describes_them(schema, at, closed):
    part = close(ready(as_text(schema)))
    for key in at:
        part = part[key]
    assert (part.get("additionalProperties") is False) == closed
