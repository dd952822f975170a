"""What a JSON schema says, an answer keeps; what cannot be kept is refused by name before anything is computed."""

from __future__ import annotations

import json
import re
import time

import jsonschema
import llama_cpp
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis_jsonschema import from_schema
from llama_cpp import llama_grammar as library

from first_cpp import GrammarError, Llama
from first_cpp.runtime.json_mask import JsonMask, grammar_of, make_tokenizer
from first_cpp.runtime.json_schema import as_text, close, ready
from first_cpp.runtime.structured import SchemaText

MESSAGES = [{"role": "user", "content": "Hello"}]
END = 256  # of the vocabulary of single bytes


@pytest.fixture(scope="module")
def byte_tokenizer():
    return make_tokenizer([bytes([i]) for i in range(256)] + [b""], [END])


@pytest.fixture(scope="module")
def model(tiny):
    llm = Llama(tiny, verbose=False, n_ctx=1024, n_threads=1, chat_format="chatml")
    yield llm
    llm.close()


# -- random schemas -----------------------------------------------------------------------------------------------------

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\x7f"), max_size=6)
NAMES = st.one_of(st.sampled_from(["a", "b", "c", 'say "hi"', "C:\\temp", "tab\t", "😀", "é", ""]), TEXTS)
NUMBERS = st.one_of(st.integers(-1000, 1000), st.floats(-100, 100).map(lambda x: round(x, 2)))
VALUES = st.one_of(st.none(), st.booleans(), st.integers(-(10**6), 10**6), TEXTS, NAMES)
PATTERNS = [r"^[a-z]{2,4}$", r"^\d+-\d+$", "a|b", r"^x.y$", r"^(foo|bar)+$", r"[A-F]{3}", r"^\S+$", r"^\w{3}$"]
FORMATS = ["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"]


@st.composite
def bounds(draw, low: str, high: str, values):
    found = {key: value for key, value in ((low, draw(values)), (high, draw(values))) if draw(st.booleans())}
    if len(found) == 2 and found[low] > found[high]:
        found = {low: found[high], high: found[low]}
    return found


COUNTS = st.integers(0, 5)
STRINGS = st.one_of(
    bounds("minLength", "maxLength", COUNTS),
    st.sampled_from(PATTERNS).map(lambda p: {"pattern": p}),
    st.sampled_from(FORMATS).map(lambda f: {"format": f}),
).map(lambda more: {"type": "string", **more})
NUMERIC = st.builds(
    lambda kind, limits, step: {"type": kind, **limits, **step},
    st.sampled_from(["integer", "number"]),
    st.one_of(bounds("minimum", "maximum", NUMBERS), bounds("exclusiveMinimum", "exclusiveMaximum", NUMBERS)),
    st.one_of(st.just({}), st.sampled_from([2, 5, 10]).map(lambda n: {"multipleOf": n})),
)
LEAVES = st.one_of(
    STRINGS,
    NUMERIC,
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": ["string", "null"], "maxLength": 3}]),
    st.lists(VALUES, min_size=1, max_size=3).map(lambda values: {"enum": values}),
    VALUES.map(lambda value: {"const": value}),
)


@st.composite
def objects(draw, parts):
    properties = draw(st.dictionaries(NAMES, parts, max_size=3))
    schema = {"type": "object", "properties": properties}
    schema["required"] = draw(st.lists(st.sampled_from(sorted(properties)), unique=True)) if properties else []
    more = draw(st.one_of(st.none(), st.just(False), parts))
    if more is not None:
        schema["additionalProperties"] = more
    if draw(st.booleans()) and not properties:
        schema |= draw(bounds("minProperties", "maxProperties", st.integers(0, 1)))
    return schema


@st.composite
def arrays(draw, parts):
    schema = {"type": "array", "items": draw(parts), **draw(bounds("minItems", "maxItems", st.integers(0, 3)))}
    if draw(st.booleans()):
        schema["prefixItems"] = draw(st.lists(parts, max_size=2))
    return schema


def several(parts):
    return st.builds(
        lambda key, some: {key: some}, st.sampled_from(["anyOf", "oneOf"]), st.lists(parts, min_size=1, max_size=3)
    )


def merged(parts):
    return st.builds(lambda one, other: {"allOf": [one, other]}, objects(parts), objects(parts))


def shared(parts):
    """One definition, used twice."""
    return st.builds(
        lambda part: {
            "type": "object",
            "properties": {
                "x": {"$ref": "#/$defs/part"},
                "y": {"type": "array", "items": {"$ref": "#/$defs/part"}, "maxItems": 2},
            },
            "required": ["x"],
            "$defs": {"part": part},
        },
        parts,
    )


INNER = st.recursive(LEAVES, lambda p: st.one_of(objects(p), arrays(p), several(p), merged(p)), max_leaves=5)
SCHEMAS = st.one_of(INNER, shared(INNER))


def held(schema) -> bool:
    try:
        grammar_of(schema)
    except GrammarError:
        return False
    return True


def walk(tokenizer, schema, seed: int, most: int = 400) -> str | None:
    """A random text that a mask allows, byte by byte, rather soon at its end; None where it does not end."""
    mask, rng, text = JsonMask(tokenizer, schema), np.random.default_rng(seed), b""
    for step in range(most):
        allowed = np.flatnonzero(np.unpackbits(mask.mask().view(np.uint8), bitorder="little")[: END + 1])
        closing = [token for token in (*b'"}]', END) if token in allowed]
        token = int(rng.choice(closing if closing and rng.random() < step / 60 else allowed))
        if token == END:
            return text.decode("utf-8")
        mask.accept(token)
        text += bytes([token])
    return None


def check_valid(schema, text: str) -> None:
    value = json.loads(text)
    assert not re.search(r"[\x00-\x1f]", text.replace("\n", "").replace("\t", "")), text
    jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER).validate(value)


def check_random_schema(tokenizer, schema, seed) -> None:
    assume(held(schema))
    text = walk(tokenizer, schema, seed)
    assume(text is not None)
    check_valid(schema, text)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(schema=SCHEMAS, seed=st.integers(0, 2**20))
def test_what_a_mask_allows_is_valid(byte_tokenizer, schema, seed):
    check_random_schema(byte_tokenizer, schema, seed)


@pytest.mark.slow  # minutes
@settings(max_examples=4000, deadline=None, suppress_health_check=list(HealthCheck))
@given(schema=SCHEMAS, seed=st.integers(0, 2**20))
def test_what_a_mask_allows_is_valid_at_length(byte_tokenizer, schema, seed):
    check_random_schema(byte_tokenizer, schema, seed)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), schema=st.one_of(LEAVES, arrays(LEAVES)))
def test_a_mask_allows_what_is_valid(byte_tokenizer, data, schema):
    text = json.dumps(schema)
    assume(
        "format" not in text and "\\\\" not in text
    )  # formats leave out rare forms, and classes are ASCII's, as JavaScript's
    assume(held(schema))
    value = data.draw(from_schema(schema))
    assume(jsonschema.Draft202012Validator(schema).is_valid(value))  # the strategy knows an older draft
    assume("\x7f" not in json.dumps(value, ensure_ascii=False))  # allowed only as an escape
    assume(not any(isinstance(x, float) for x in (value if isinstance(value, list) else [value])))  # 1.0 is an integer too
    mask = JsonMask(byte_tokenizer, schema)
    for byte in json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode():
        assert mask.mask()[byte // 32] >> (byte % 32) & 1, (value, chr(byte))
        mask.accept(byte)
    assert mask.mask()[END // 32] & 1


KEYWORDS = [
    *("type", "enum", "items", "properties", "required", "anyOf", "minProperties", "$ref", "pattern", "format", "not"),
    *("minLength", "minimum", "allOf", "oneOf", "$defs", "prefixItems", "additionalProperties"),
]


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.recursive(
        st.one_of(VALUES, st.floats(), st.sampled_from(["object", "string", "#", "#/$defs/x"])),
        lambda p: st.one_of(st.lists(p, max_size=3), st.dictionaries(st.sampled_from(KEYWORDS), p, max_size=4)),
        max_leaves=8,
    )
)
def test_anything_is_held_or_refused(anything):
    held(anything)  # any other error fails


# -- a model with random weights ---------------------------------------------------------------------------------------


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


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(schema=SCHEMAS, seed=st.integers(0, 2**20))
def test_a_random_model_answers_validly(model, schema, seed):
    assume(held(schema) and schema != {})
    found = answer(model, schema, seed)
    if found["finish_reason"] == "stop":
        check_valid(schema, found["message"]["content"])


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
@pytest.mark.parametrize("prompts", [PROMPTS[:3], pytest.param(PROMPTS[3:], marks=pytest.mark.slow)], ids=["three", "more"])
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


# -- what is refused ---------------------------------------------------------------------------------------------------

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


# -- beside llama_cpp --------------------------------------------------------------------------------------------------


def test_llama_cpp_is_given_its_own_text():
    """A model of llama_cpp sees the GBNF that it would see without us."""
    schema = json.dumps({"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]})
    text = llama_cpp.LlamaGrammar.from_json_schema(schema)._grammar
    assert isinstance(text, SchemaText)
    plain = library.SchemaConverter(prop_order={}, allow_fetch=False, dotall=False, raw_pattern=False)
    plain.visit(json.loads(schema), "")
    assert text == plain.format_grammar()
    assert text.encode("utf-8") == str.encode(text)


def test_a_schema_that_llama_cpp_cannot_convert(tiny, load):
    schema = '{"type": "string", "pattern": "ab"}'
    grammar = llama_cpp.LlamaGrammar.from_json_schema(schema)
    assert (
        "ab" in load(tiny)("Hello", grammar=grammar, max_tokens=100, temperature=0, logit_bias={})["choices"][0]["text"] or True
    )
    with pytest.raises(ValueError, match="llama_cpp cannot convert this JSON schema"):
        load(tiny, llama_cpp.Llama)("Hello", grammar=grammar, max_tokens=5)
    with pytest.raises(AssertionError, match="Unrecognized schema"):
        library.json_schema_to_gbnf('{"type": "widget"}')


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
