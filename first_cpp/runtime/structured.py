"""What an answer must look like: JSON schemas and grammars, from how callers of llama_cpp give them to a mask of tokens.

llama_cpp turns a schema into GBNF as soon as it sees it, and its GBNF says less than the schema. Here the schema is remembered
beside the text, and the answer is held to the schema.
"""

from __future__ import annotations

import contextlib
import contextvars
import re
from collections.abc import Callable, Iterator
from typing import Any

import llama_cpp
from llama_cpp import llama_grammar
from llguidance import LLTokenizer

from ..errors import GrammarError
from .grammar import GrammarMask, GrammarProcess
from .json_mask import JsonMask, grammar_of, make_tokenizer
from .sampling import Errors, Sampler

_MOST_IN_GBNF = 10_000  # repetitions that llama_cpp's converter may write out
_COUNT = re.compile(r'"(?:min|max)(?:Length|Items)"\s*:\s*([0-9.eE+]+)|\{(\d+)(?:,(\d*))?\}')
_exact: contextvars.ContextVar[bool] = contextvars.ContextVar("first_cpp exact schemas", default=False)
_convert = llama_grammar.json_schema_to_gbnf


class SchemaText(str):
    """GBNF that was made of a JSON schema.

    schema: the schema's text. trouble: why llama_cpp has no GBNF for it; empty where the text is that GBNF.
    """

    schema: str
    trouble: str

    @classmethod
    def of(cls, gbnf: str, schema: str, trouble: str = "") -> SchemaText:
        text = cls(gbnf)
        text.schema, text.trouble = schema, trouble
        return text

    def encode(self, *args: Any, **kwargs: Any) -> bytes:
        """As of any text; raises ValueError where only a `first_cpp.Llama` can hold the schema."""
        if self.trouble:
            raise ValueError(self.trouble)
        return super().encode(*args, **kwargs)


def json_schema_to_gbnf(schema: str, prop_order: list[str] | None = None) -> str:
    """llama_cpp's function of this name, which it replaces: the same text, which remembers its schema.

    Raises what llama_cpp raises for a schema that it cannot convert, unless a `first_cpp.Llama` can hold it.
    """
    if _exact.get():
        return SchemaText.of("", schema)
    try:
        _check_counts(schema)
        return SchemaText.of(_convert(schema, prop_order), schema)
    except Exception as error:
        with contextlib.suppress(GrammarError):
            grammar_of(schema)
            return SchemaText.of("", schema, f"llama_cpp cannot convert this JSON schema: {error!r}")
        raise


def _check_counts(schema: str) -> None:
    for found in _COUNT.finditer(schema):
        for count in found.groups():
            if count and float(count) > _MOST_IN_GBNF:
                raise ValueError(f"a count of {count}: llama_cpp writes repetitions out, at most {_MOST_IN_GBNF} are allowed")


def remember_schemas() -> None:
    """Make what `llama_cpp.LlamaGrammar.from_json_schema` gives remember its schema; models of llama_cpp see no change."""
    llama_grammar.json_schema_to_gbnf = json_schema_to_gbnf


@contextlib.contextmanager
def exact_schemas() -> Iterator[None]:
    """Inside, no schema is converted to GBNF: a `first_cpp.Llama` needs none, and where the conversion fails llama_cpp's chat
    handlers would answer with any JSON."""
    token = _exact.set(True)
    try:
        yield
    finally:
        _exact.reset(token)


def check_grammar(grammar: llama_cpp.LlamaGrammar | None) -> None:
    """Raise GrammarError for a schema that cannot be held, before anything is computed."""
    if grammar is not None and isinstance(text := grammar._grammar, SchemaText):
        grammar_of(text.schema)


def plain_format(response_format: Any) -> Any:
    """`response_format` as llama_cpp's chat handlers know it, always with a schema where JSON is asked for.

    Raises GrammarError for a type that is none of OpenAI's, and for a schema that cannot be held.
    """
    if response_format is None:
        return None
    if not isinstance(response_format, dict):
        raise GrammarError(f"response_format is {response_format!r}; allowed: an object with a type")
    kind = response_format.get("type")
    if kind == "text":
        return None
    if kind == "json_schema":
        given = response_format.get("json_schema")
        if not isinstance(given, dict) or "schema" not in given:
            raise GrammarError("response_format of type json_schema needs json_schema with a schema")
        schema = given["schema"]
    elif kind == "json_object":
        schema = response_format.get("schema")
    else:
        raise GrammarError(f"response_format has type {kind!r}; allowed: text, json_object, json_schema")
    schema = {"type": "object"} if schema is None else schema
    grammar_of(schema)
    return {"type": "json_object", "schema": schema}


def check_forced_tool(arguments: dict[str, Any]) -> None:
    """Raise GrammarError for the parameters of a tool that must be called, if their schema cannot be held."""
    choice, tools = arguments.get("tool_choice"), arguments.get("tools")
    if isinstance(call := arguments.get("function_call"), dict):
        choice = {"function": call}
    if functions := arguments.get("functions"):
        tools = [{"function": function} for function in functions]
    name = choice.get("function", {}).get("name") if isinstance(choice, dict) else None
    for tool in tools or ():
        function = tool.get("function", {})
        if name is not None and function.get("name") == name:
            grammar_of(function.get("parameters") or {})


class Structured:
    """The masks of one model: its vocabulary, read with the first schema, and the process of its grammars."""

    def __init__(self, model_path: str, cancelled: Callable[[], bool]) -> None:
        """cancelled: whether the answer going on has been cancelled."""
        self._cancelled = cancelled
        self._tokenizer: LLTokenizer | None = None
        self._process = GrammarProcess(model_path)
        self._mask: JsonMask | GrammarMask | None = None

    def sampler(self, llm: llama_cpp.Llama, make: Callable[..., Any], settings: dict[str, Any]) -> Sampler:
        """What `make`, llama_cpp's `_init_sampler`, makes of its settings; a grammar becomes a mask.

        Raises GrammarError for a grammar or schema that cannot be held.
        """
        settings = dict(settings)
        grammar = settings.pop("grammar", None)
        errors = Errors()
        if settings.get("logits_processor") is not None:
            settings["logits_processor"] = errors.guard(settings["logits_processor"])
        if self._mask is not None:
            self._mask.close()
        self._mask = None if grammar is None else self._make_mask(llm, grammar._grammar)
        return Sampler(make(**settings), llm.n_vocab(), self._mask, errors)

    def _make_mask(self, llm: llama_cpp.Llama, text: str) -> JsonMask | GrammarMask:
        if not isinstance(text, SchemaText):
            return GrammarMask(self._process, text, frozenset(llm.end_tokens), self._cancelled)
        if self._tokenizer is None:
            pieces = [llm.detokenize([token]) for token in range(llm.n_vocab())]
            self._tokenizer = make_tokenizer(pieces, list(llm.end_tokens))
        return JsonMask(self._tokenizer, text.schema)

    def close(self) -> None:
        """End the process of grammars."""
        self._process.close()
