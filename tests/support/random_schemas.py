"""Random JSON schemas, as strategies of hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

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
