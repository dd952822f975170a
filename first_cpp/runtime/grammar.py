"""Grammars are tried before they reach a sampler: llama.cpp ends the process for one that it cannot follow."""

from __future__ import annotations

import re

import llama_cpp

MAX_BYTES = 1 << 20
MAX_DEPTH = 2000  # llama.cpp's parser calls itself for each parenthesis; 20,000 overflow its stack
# Whatever opens first wins: a quote in a class is no text, a bracket in a text no class.
_PART = re.compile(
    r'(?P<text>"(?:\\.|[^"\\])*")|<\[(?P<token>[^\]]*)\]>|(?P<signs>\[(?:\\.|[^\]\\])*\])|(?P<comment>#[^\n]*)'
    r"|\{(?P<times>[^}]*)\}|(?P<bracket>[()])",
    re.DOTALL,
)
_CODE = re.compile(r"\\\\|\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8}))")
_SIGN = r"(\\x[0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\U[0-9a-fA-F]{8}|\\.|[^\\])"
_RANGE = re.compile(f"{_SIGN}-{_SIGN}", re.DOTALL)


def check_grammar(llm: llama_cpp.Llama, grammar: str, root: str = "root") -> None:
    """Raise ValueError for a grammar that llama.cpp does not take, or that would leave it no token to go on with."""
    if len(grammar.encode()) > MAX_BYTES:
        raise ValueError(f"the grammar has {len(grammar.encode())} bytes, at most {MAX_BYTES} are allowed")
    if "\0" in grammar:
        raise ValueError("the grammar holds a NUL character; none is allowed")
    depth = 0
    for part in _PART.finditer(grammar):
        if part["bracket"]:
            depth += 1 if part["bracket"] == "(" else -1
            if depth > MAX_DEPTH:
                raise ValueError(f"the grammar's parentheses are nested deeper than {MAX_DEPTH}")
        elif part["token"] is not None:
            _check_token(llm, part["token"])
        elif part["times"] is not None:
            _check_times(part["times"])
        elif not part["comment"]:
            _check_signs(part["text"] or part["signs"], in_class=part["signs"] is not None)
    sampler = llama_cpp.llama_sampler_init_grammar(llm._model.vocab, grammar.encode(), root.encode())
    if not sampler:
        raise ValueError("the grammar is not valid GBNF, has no rule `root`, or is left-recursive")
    llama_cpp.llama_sampler_free(sampler)


def _check_token(llm: llama_cpp.Llama, number: str) -> None:
    if not re.fullmatch(r"\d{1,9}", number) or int(number) >= llm.n_vocab():
        raise ValueError(f"the grammar's token <[{number}]> is not one of this model: 0 to {llm.n_vocab() - 1}")
    if llama_cpp.llama_vocab_is_eog(llm._model.vocab, int(number)):
        raise ValueError(f"the grammar's token <[{number}]> ends an answer; the grammar's own end does that")


def _check_times(times: str) -> None:
    bounds = re.fullmatch(r"\s*(\d+)\s*,\s*(\d+)\s*", times)
    if bounds and int(bounds[2]) < int(bounds[1]):
        raise ValueError(f"the grammar's repetition {{{times}}} ends below its beginning")


def _check_signs(signs: str, in_class: bool) -> None:
    for found in _CODE.finditer(signs):
        code = int(found[1] or found[2] or found[3] or "1", 16)
        if code == 0 or code > 0x10FFFF:
            raise ValueError(f"the grammar's character {found[0]} is none: allowed are 1 to 10FFFF")
    for low, high in _RANGE.findall(signs[1:-1].removeprefix("^")) if in_class else ():
        if _code(low) > _code(high):
            raise ValueError(f"the grammar's range {low}-{high} is empty")


def _code(sign: str) -> int:
    return int(sign[2:], 16) if len(sign) > 2 else ord({"\\n": "\n", "\\r": "\r", "\\t": "\t"}.get(sign, sign[-1]))
