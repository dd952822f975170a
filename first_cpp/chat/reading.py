"""While the user reads an answer, the model reads it again with all layers: the next turn is quick, and its fidelity known."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from ..llama import Llama
from ..runtime.fidelity import Fidelity
from ..runtime.idle_thread import IdleThread

NOTHING_SKIPPED = "no answer with skipped layers was measured"


class Reading:
    """The idle pass of a chat. in_background: run it by itself; `/fidelity` runs it in any case."""

    def __init__(self, llm: Llama, in_background: bool) -> None:
        self._llm, self._in_background = llm, in_background
        self._idle = IdleThread(llm)

    def __enter__(self) -> Reading:
        return self

    def __exit__(self, *exception: object) -> None:
        self._idle.pause()  # the model is freed next

    @contextlib.contextmanager
    def interrupted(self) -> Iterator[None]:
        """The model is free inside; afterwards what is left to read is read."""
        self._idle.pause()
        try:
            yield
        finally:
            if self._in_background:
                self._idle.begin()

    @property
    def fidelity(self) -> Fidelity | None:
        """Of the last answer, as far as it was read."""
        return self._llm.fidelity

    def report(self) -> str:
        """The answer with the tokens marked where the dense model's choice is another, and that choice."""
        self._llm.catch_up()
        fidelity = self._llm.fidelity
        if fidelity is None:
            return NOTHING_SKIPPED
        held = self._llm.held
        return f"{marked(self._llm)}\n{fidelity.line()}" + (f"\n{held.line()}" if held else "")


def marked(llm: Llama) -> str:
    """The last answer; a token with another choice of the dense model's stands in brackets, that choice after it."""
    parts: list[str] = []
    plain: list[int] = []

    def text(tokens: list[int]) -> str:
        special: Any = True
        return llm.detokenize(tokens, special=special).decode("utf-8", "replace")

    for one in llm.compared_answer():
        if one.dense is None:
            plain.append(one.token)
            continue
        parts.append(text(plain))
        plain = []
        parts.append(f"[{text([one.token])}|{text([one.dense])}]")
    return "".join([*parts, text(plain)])
