"""A JSON schema as a mask on the logits: llguidance says which tokens of the vocabulary can go on."""

from __future__ import annotations

import functools
import json
from typing import Any

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from ..errors import GrammarError
from .json_schema import Schema, as_text, close, ready

# One space, or a line and its indentation: a model can run away in whitespace without end.
_SPACE = r"(?: |\n[ \t]{0,20})"
_LIMITS = LLParserLimits(verbose_errors=False)
Mask = npt.NDArray[np.uint32]


def grammar_of(schema: str | Schema | bool) -> str:
    """The grammar of a JSON schema for llguidance. Raises GrammarError for a schema that cannot be held."""
    return _grammar_of(as_text(schema))


@functools.lru_cache(maxsize=16)  # a request's schema is checked first, and used when its turn comes
def _grammar_of(text: str) -> str:
    held = ready(text)
    _compiled(held)  # before it is closed: branches of oneOf must exclude each other by themselves
    return _compiled(close(held))


def _compiled(held: Schema) -> str:
    schema = json.dumps({**held, "x-guidance": {"whitespace_pattern": _SPACE}})
    # no_forcing: the model chooses the tokens of what is certain too, as with GBNF
    grammar = f'%llguidance {{"no_forcing": true}}\nstart: %json {schema}'
    failed, said = LLMatcher.validate_grammar_with_warnings(grammar, limits=_LIMITS)
    if failed:
        raise GrammarError(f"this JSON schema cannot be held: {_first_line(said)}")
    return grammar


def _first_line(said: list[str]) -> str:
    lines = [line for line in "\n".join(said).splitlines() if line.strip()] or ["no reason given"]
    reason = lines[0].rpartition("failed to compile JSON schema: ")[2][:300]
    return "the branches of oneOf do not exclude each other" if reason.startswith("oneOf constraints") else reason


class _Vocabulary:
    """What llguidance asks of a tokenizer."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, pieces: list[bytes], ends: list[int]) -> None:
        self.tokens = pieces
        self.eos_token_id = ends[0]
        self.special_token_ids = sorted({i for i, piece in enumerate(pieces) if not piece} | set(ends))

    def __call__(self, text: object) -> list[int]:
        raise RuntimeError("nothing is forced, so nothing is tokenised")


def make_tokenizer(pieces: list[bytes], ends: list[int]) -> LLTokenizer:
    """llguidance's view of a vocabulary. pieces: the bytes of each token as answers show them; ends: what ends answers."""
    if not ends:
        raise GrammarError("this model has no token that ends an answer, so no JSON could end")
    vocabulary: Any = _Vocabulary(pieces, ends)
    return LLTokenizer(vocabulary, n_vocab=len(pieces), eos_token=ends, slices=LLTokenizer.json_slices())


class JsonMask:
    """The tokens with which one answer can go on, by a JSON schema. One per answer."""

    def __init__(self, tokenizer: LLTokenizer, schema: str | Schema | bool) -> None:
        """Raises GrammarError for a schema that cannot be held."""
        self._matcher = LLMatcher(tokenizer, grammar_of(schema), log_level=0, limits=_LIMITS)
        self._mask = np.zeros((tokenizer.vocab_size + 31) // 32, np.uint32)
        self._check()

    def mask(self) -> Mask:
        """uint32 [n_vocab / 32, rounded up], a bit per token, lowest first."""
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        self._check()
        return self._mask

    def accept(self, token: int) -> None:
        self._matcher.consume_token(token)

    def close(self) -> None:
        """Nothing is held that would have to be given back."""

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GrammarError(f"this JSON schema cannot be held: {_first_line([self._matcher.get_error()])}")
