"""JSON schemas that are kept or refused, and a random model's answer to one."""

from __future__ import annotations

import json
import re

import jsonschema
import llama_cpp

from first_cpp import GrammarError
from first_cpp.runtime.json_mask import grammar_of

MESSAGES = [{"role": "user", "content": "Hello"}]


def held(schema) -> bool:
    try:
        grammar_of(schema)
    except GrammarError:
        return False
    return True


def check_valid(schema, text: str) -> None:
    value = json.loads(text)
    assert not re.search(r"[\x00-\x1f]", text.replace("\n", "").replace("\t", "")), text
    jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER).validate(value)


class Closing:
    """Draws an answer to its end: the longer it is, the likelier what closes it."""

    def __init__(self, llm) -> None:
        self.start = None
        self.tokens = [i for i in range(llm.n_vocab()) if llm.detokenize([i]) in (b'"', b"}", b"]")] + [llm.token_eos()]

    def __call__(self, tokens, scores):
        self.start = len(tokens) if self.start is None else self.start
        scores[self.tokens] += (len(tokens) - self.start) / 10
        return scores


def answer(llm, schema, seed: int = 1, temperature: float = 1.0) -> dict:
    found = llm.create_chat_completion(
        MESSAGES,
        response_format={"type": "json_schema", "json_schema": {"name": "it", "schema": schema}},
        temperature=temperature,
        seed=seed,
        max_tokens=400,
        logits_processor=llama_cpp.LogitsProcessorList([Closing(llm)]),
    )
    return found["choices"][0]


EXACT = {
    "emoji": {"enum": ["😀", "😢"]},
    "backslash": {"enum": ["C:\\temp"]},
    "tab": {"enum": ["a\tb"]},
    "quotes": {"const": 'say "hi"'},
    "newline": {"const": "a\nb"},
    "names": {
        "type": "object",
        "properties": {'a "b"': {"const": 1}, "c\\d": {"const": 2}, "😀\t": {"const": 3}},
        "required": ['a "b"', "c\\d", "😀\t"],
    },
    "integer": {"type": "integer", "minimum": 1, "maximum": 5},
    "number": {"type": "number", "exclusiveMinimum": 0.5, "maximum": 0.75},
    "multiple": {"type": "integer", "multipleOf": 7, "minimum": 1, "maximum": 30},
    "lengths": {"type": "string", "minLength": 3, "maxLength": 4},
    "items": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3},
    "pattern": {"type": "string", "pattern": "^[ab]{2}-[0-9]$"},
    "date": {"type": "string", "format": "date"},
    "closed": {"type": "object", "properties": {"x": {"type": "null"}}, "required": ["x"], "additionalProperties": False},
    "open": {"type": "object", "additionalProperties": {"type": "boolean"}, "maxProperties": 1},
    "union": {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
    "tagged": {
        "oneOf": [
            {"type": "object", "properties": {"kind": {"const": kind}, kind: {"type": "boolean"}}, "required": ["kind", kind]}
            for kind in ("cat", "dog")
        ]
    },
}
REFUSED = [
    ({"type": "array", "uniqueItems": True}, "the keyword uniqueItems at # "),
    ({"properties": {"a": {"not": {}}}}, "the keyword not at #/properties/a "),
    ({"if": {}, "then": {}}, "the keyword if at # "),
    ({"type": "object", "dependentRequired": {"a": ["b"]}}, "dependentRequired"),
    ({"type": "array", "contains": {"type": "null"}}, "contains"),
    ({"type": "object", "unevaluatedProperties": False}, "unevaluatedProperties"),
    ({"type": "object", "propertyNames": {"maxLength": 2}}, "propertyNames"),
    ({"type": "string", "format": "regex"}, "the format 'regex' at # "),
    ({"type": "string", "pattern": "(?=a)b"}, "regex"),
    ({"type": "string", "pattern": "("}, "regex"),
    ({"type": "widget"}, "widget"),
    ({"$ref": "#/nowhere"}, "nowhere"),
    ({"$ref": "https://example.org/schema"}, "a place in the schema itself"),
    ({"enum": []}, "empty"),
    ({"type": "integer", "minimum": 3, "maximum": 2}, "minimum"),
    ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "the branches of oneOf do not exclude each other"),
    ({"type": "object", "minProperties": 2}, "minProperties"),
    ({"type": "string", "maxLength": 2**40}, "maxLength of the JSON schema is 1099511627776; allowed: 0 to"),
    ({"type": "string", "maxLength": -1}, "maxLength"),
    ({"type": "array", "minItems": 1.5}, "minItems"),
    ({"properties": []}, "#/properties of the JSON schema is []; allowed: an object"),
    ({"items": 5}, "#/items of the JSON schema is 5"),
    (False, "a JSON schema is an object"),
    ("[", "is not JSON"),
    ("[" * 20_000, "nested deeper"),
    ('{"items":' * 5000 + "1" + "}" * 5000, "nested deeper"),
    ({"properties": {f"p{i}": {} for i in range(3000)}}, "holds more than 2000 schemas"),
    ({"enum": ["a" * (1 << 20)]}, "at most 1048576 are allowed"),
    ({"const": float("nan")}, "is not JSON"),
    ({"const": {1, 2}}, "is not JSON"),
]
