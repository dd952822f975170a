"""JSON schemas as they are given, checked and made ready for the token mask (json_mask.py): what it cannot hold is refused by
name, and what a schema leaves open that nobody means (any other property, any type) is closed as llama_cpp closes it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, cast
from urllib.parse import unquote

from ..errors import GrammarError

MAX_BYTES = 1 << 20
MAX_DEPTH = 200
MAX_SCHEMAS = 2000  # llguidance's time grows with the square of an object's properties: 5,000 take a second
MOST = 2**31 - 1  # of lengths and counts
_ONE = ("items", "additionalItems", "additionalProperties")
_MANY = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_NAMED = ("properties", "patternProperties", "$defs", "definitions")
_LENGTHS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_PLAIN = ("$ref", "$schema", "$id", "id", "const", "enum", "type", "required", "pattern", "format", *_NUMBERS)
_HELD = frozenset((*_ONE, *_MANY, *_NAMED, *_LENGTHS, *_PLAIN))
_REFUSED = (
    *("not", "if", "then", "else", "dependentRequired", "dependentSchemas", "dependencies", "contains", "minContains"),
    *("maxContains", "uniqueItems", "propertyNames", "unevaluatedItems", "unevaluatedProperties"),
    *("$dynamicRef", "$recursiveRef"),
)
_NOTHING_SAID = (("uniqueItems", False), ("unevaluatedItems", True), ("unevaluatedProperties", True))
_FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
_OTHER_FORMATS = (  # of JSON Schema itself; any other name is an annotation
    *("idn-email", "idn-hostname", "uri-reference", "iri", "iri-reference", "uri-template", "json-pointer"),
    *("relative-json-pointer", "regex"),
)
_MONTHS = r"(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8])"
_LEAP = r"(?:[12][0-9](?:0[48]|[2468][048]|[13579][26])|(?:1[26]|2[048])00)-02-29"
_DATE = f"(?:[12][0-9]{{3}}-(?:{_MONTHS})|{_LEAP})"
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,9})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_DATES = {"date": f"^{_DATE}$", "time": f"^{_TIME}$", "date-time": f"^{_DATE}T{_TIME}$"}  # llguidance has a 31st of February
_OF_TYPE = {
    "object": ("properties", "patternProperties", "additionalProperties", "required", "minProperties", "maxProperties"),
    "array": ("items", "prefixItems", "additionalItems", "minItems", "maxItems"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": _NUMBERS,
}
_OPEN = ("additionalProperties", "patternProperties", "minProperties")
_SHARED = ("$ref", "anyOf", "oneOf", "allOf", "enum", "const")
Schema = dict[str, Any]


def as_text(schema: str | Schema | bool) -> str:
    """A schema as JSON. Raises GrammarError for one that is too long, or that JSON cannot write."""
    try:
        text = schema if isinstance(schema, str) else json.dumps(schema, allow_nan=False)
    except RecursionError:
        raise GrammarError(f"the JSON schema is nested deeper than {MAX_DEPTH}") from None
    except (TypeError, ValueError) as error:
        raise GrammarError(f"the JSON schema is not JSON: {error}") from error
    if len(text) > MAX_BYTES:
        raise GrammarError(f"the JSON schema has {len(text)} characters, at most {MAX_BYTES} are allowed")
    return text


def ready(text: str) -> Schema:
    """The schema that a mask is made of. Raises GrammarError for one that cannot be held, with the keyword and its place.

    >>> ready('{"type": "string", "title": "Name", "maxLength": 20}')
    {'type': 'string', 'maxLength': 20}
    """
    try:
        parsed = json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise GrammarError(f"the JSON schema is nested deeper than {MAX_DEPTH}") from None
    except ValueError as error:
        raise GrammarError(f"the JSON schema is not JSON: {error}") from error
    if parsed is True or parsed == {}:
        return {"type": "object"}  # as llama_cpp reads it
    if not isinstance(parsed, dict):
        raise GrammarError(f"a JSON schema is an object, not {json.dumps(parsed)[:40]}")
    return cast(Schema, _held(parsed, "#", iter(range(MAX_SCHEMAS))))


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _held(schema: Any, where: str, left: Iterator[int], depth: int = 0) -> Any:
    """A copy with what the mask holds; annotations are dropped. left: as many more schemas as may follow."""
    if depth > MAX_DEPTH:
        raise GrammarError(f"the JSON schema is nested deeper than {MAX_DEPTH}")
    if next(left, None) is None:
        raise GrammarError(f"the JSON schema holds more than {MAX_SCHEMAS} schemas")
    if isinstance(schema, bool):
        return schema
    if not isinstance(schema, dict):
        raise GrammarError(f"{where} of the JSON schema is {json.dumps(schema)[:40]}, not a schema")
    _check_keywords(schema, where)
    held: Schema = {}
    for key, value in schema.items():
        place = f"{where}/{key}"
        if key in _NAMED:
            _check(isinstance(value, dict), place, value, "an object")
            held[key] = {name: _held(part, f"{place}/{name}", left, depth + 1) for name, part in value.items()}
        elif key in _MANY and isinstance(value, list):
            held[key] = [_held(part, f"{place}/{i}", left, depth + 1) for i, part in enumerate(value)]
        elif key in _ONE:
            held[key] = _held(value, place, left, depth + 1)
        elif key in _LENGTHS:
            held[key] = int(value)  # 1e3 is a whole number too
        elif key in _HELD and not (key == "format" and value not in _FORMATS):
            held[key] = value
    if (pattern := _DATES.get(held.get("format", ""))) is not None:
        held["allOf"] = [*held.get("allOf", []), {"pattern": pattern}]
    return held


def _check(fine: bool, place: str, value: Any, allowed: str) -> None:
    if not fine:
        raise GrammarError(f"{place} of the JSON schema is {json.dumps(value)[:40]}; allowed: {allowed}")


def _check_keywords(schema: Schema, where: str) -> None:
    for key, value in schema.items():
        place = f"{where}/{key}"
        if key in _REFUSED and (key, value) not in _NOTHING_SAID:
            raise GrammarError(f"the keyword {key} at {where} of the JSON schema cannot be held")
        if key == "format" and value in _OTHER_FORMATS:
            raise GrammarError(f"the format {value!r} at {where} of the JSON schema cannot be held")
        if key in _LENGTHS:
            whole = isinstance(value, (int, float)) and not isinstance(value, bool) and value % 1 == 0
            _check(whole and 0 <= value <= MOST, place, value, f"0 to {MOST}")
        if key == "$ref":
            _check(isinstance(value, str) and value.startswith("#"), place, value, "a place in the schema itself, #/...")
    least, named = schema.get("minProperties", 0), schema.get("required")
    enough = isinstance(named, list) and least <= len(named)  # further names may repeat, and a reader counts them once
    _check(least < 2 or enough, f"{where}/minProperties", least, "0, 1 or what is required")


def moved(schema: Schema, place: str) -> Schema:
    """A schema for a place in a larger one: what it refers to in itself is there.

    >>> moved({"$defs": {"a": {"type": "string"}}, "items": {"$ref": "#/$defs/a"}}, "#/anyOf/0")["items"]
    {'$ref': '#/anyOf/0/$defs/a'}
    """
    whole = {key: value for key, value in schema.items() if key not in ("$id", "id", "$schema")}
    return cast(Schema, _moved(whole, place, 0))


def _moved(schema: Any, place: str, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise GrammarError(f"the JSON schema is nested deeper than {MAX_DEPTH}")
    if not isinstance(schema, dict):
        return schema
    new: Schema = {}
    for key, value in schema.items():
        if key in _NAMED and isinstance(value, dict):
            new[key] = {name: _moved(part, place, depth + 1) for name, part in value.items()}
        elif key in _MANY and isinstance(value, list):
            new[key] = [_moved(part, place, depth + 1) for part in value]
        elif key == "$ref" and isinstance(value, str) and (value == "#" or value.startswith("#/")):
            new[key] = place + value[1:]
        else:
            new[key] = _moved(value, place, depth + 1) if key in _ONE else value
    return new


def close(root: Schema) -> Schema:
    """Close objects, and name types, where nothing else describes the same value: what is then allowed, the schema allows too.

    Changes `root`, which must be one that can be held, and returns it.
    """
    every: dict[int, Schema] = {}
    shared: set[int] = set()  # schemas that describe a value together with others
    waiting: list[tuple[Any, bool]] = [(root, False)]
    seen: set[tuple[int, bool]] = set()
    while waiting:
        part, together = waiting.pop()
        if not isinstance(part, dict) or (id(part), together) in seen:
            continue
        seen.add((id(part), together))
        every[id(part)] = part
        if together:
            shared.add(id(part))
        waiting.extend(_parts(root, part, together))
    for key, part in every.items():
        if key not in shared:
            _narrow(part)
    return root


def _parts(root: Schema, schema: Schema, together: bool) -> Iterator[tuple[Any, bool]]:
    """The schemas in one, and whether they describe their values together with others."""
    own = any(key in schema for keys in _OF_TYPE.values() for key in keys)
    together = together or own + sum(key in schema for key in _SHARED[:4]) > 1
    for key, value in schema.items():
        if key in _NAMED:
            yield from ((part, together and key not in ("$defs", "definitions")) for part in value.values())
        elif key in _MANY and isinstance(value, list):
            several = key == "allOf" and len(value) > 1
            yield from ((part, together or several) for part in value)
        elif key in _ONE:
            yield value, together
        elif key == "$ref":
            yield _target(root, value), together


def _target(root: Schema, ref: str) -> Any:
    part: Any = root
    for step in unquote(ref[1:]).split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(part, list) and name.isdigit() and int(name) < len(part):
            part = part[int(name)]
        else:
            part = part.get(name) if isinstance(part, dict) else None
    return part


def _narrow(schema: Schema) -> None:
    if any(key in schema for key in _SHARED):
        return
    if "type" not in schema:
        kinds = [kind for kind, keys in _OF_TYPE.items() if any(key in schema for key in keys)]
        if len(kinds) == 1:
            schema["type"] = kinds[0]
    names = schema.get("properties")
    if names and not any(key in schema for key in _OPEN) and set(schema.get("required", ())) <= set(names):
        schema["additionalProperties"] = False
