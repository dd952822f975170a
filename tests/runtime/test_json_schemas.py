"""What the masks of a JSON schema allow is valid, and what is valid they allow: random schemas."""

from __future__ import annotations

import json

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis_jsonschema import from_schema
from json_schemas import check_valid, held
from random_schemas import LEAVES, SCHEMAS, VALUES, arrays

from first_cpp.runtime.json_mask import JsonMask, make_tokenizer

END = 256  # of the vocabulary of single bytes


@pytest.fixture(scope="module")
def byte_tokenizer():
    return make_tokenizer([bytes([i]) for i in range(256)] + [b""], [END])


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


def check_random_schema(tokenizer, schema, seed) -> None:
    assume(held(schema))
    text = walk(tokenizer, schema, seed)
    assume(text is not None)
    check_valid(schema, text)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(schema=SCHEMAS, seed=st.integers(0, 2**20))
def test_what_a_mask_allows_is_valid(byte_tokenizer, schema, seed):
    check_random_schema(byte_tokenizer, schema, seed)


@pytest.mark.slow  # minutes
@settings(max_examples=4000, deadline=None, suppress_health_check=list(HealthCheck))
@given(schema=SCHEMAS, seed=st.integers(0, 2**20))
def test_what_a_mask_allows_is_valid_at_length(byte_tokenizer, schema, seed):
    check_random_schema(byte_tokenizer, schema, seed)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), schema=st.one_of(LEAVES, arrays(LEAVES)))
def test_a_mask_allows_what_is_valid(byte_tokenizer, data, schema):
    check_valid_value(byte_tokenizer, data, schema)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), schema=st.one_of(LEAVES, arrays(LEAVES)))
def test_a_mask_allows_what_is_valid_at_length(byte_tokenizer, data, schema):
    check_valid_value(byte_tokenizer, data, schema)


def check_valid_value(byte_tokenizer, data, schema) -> None:
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
