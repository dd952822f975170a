"""While no request waits, the last answer is read again with all layers: the next turn is quick, and its fidelity known."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import asdict, dataclass
from typing import Any

from ..llama import Llama
from ..runtime.idle_thread import IdleThread
from .log import LOG
from .prometheus import Metrics

MOST_KEPT = 100
"""Answers whose fidelity is kept."""


@dataclass(frozen=True)
class MeasuredAnswer:
    """How one answer agrees with the dense model; its text is not kept.

    id: of the answer. created: seconds since 1970 when it was measured. tokens: generated. skipped_layers: ascending.
    positions, equal: those measured, and those at which the first choice is the dense model's. fidelity: equal / positions.
    kl: nats per token, None where it was not measured.

    >>> MeasuredAnswer("cmpl-1", 0, 41, 30, (4, 5), 40, 38, 0.95, None).fidelity
    0.95
    """

    id: str
    created: int
    tokens: int
    n_layer: int
    skipped_layers: tuple[int, ...]
    positions: int
    equal: int
    fidelity: float
    kl: float | None


class MeasuredAnswers:
    """The last MOST_KEPT answers measured, of all models of a server."""

    def __init__(self) -> None:
        self._answers: deque[MeasuredAnswer] = deque(maxlen=MOST_KEPT)

    def append(self, one: MeasuredAnswer) -> None:
        self._answers.append(one)

    def as_json(self) -> dict[str, Any]:
        """The answers, the newest first, as OpenAI's lists are."""
        return {"object": "list", "data": [asdict(one) for one in reversed(self._answers.copy())]}


class IdleReader:
    """Runs the idle pass once an answer; `pause` ends it within a graph node. enabled: whether it runs at all."""

    def __init__(self, llm: Llama, metrics: Metrics, enabled: bool = True, measured: MeasuredAnswers | None = None) -> None:
        self._llm, self._metrics, self._enabled = llm, metrics, enabled
        self._idle = IdleThread(llm, self._take)
        self._answer: str | None = None
        self._warned = False
        self.measured = measured or MeasuredAnswers()

    def begin(self, answer: str) -> None:
        """The answer of this id has ended, and no request waits."""
        if self._enabled:
            self._answer = answer
            self._idle.begin()

    def pause(self) -> None:
        """A request is to be answered, or the model freed: end the pass, and wait until it has ended."""
        self._idle.pause()

    def _take(self) -> None:
        """In the idle thread: a pass has ended, whole or not."""
        answer, self._answer = self._answer, None
        if self._idle.error is not None and not self._warned:
            self._warned = True
            LOG.warning("answers are not read again while idle: %s", self._idle.error)
        fidelity, routing, timing = self._llm.fidelity, self._llm.routing, self._llm.timing
        if answer is None or fidelity is None or routing is None or timing is None:
            return
        self._metrics.fidelity(fidelity.share)
        self.measured.append(
            MeasuredAnswer(
                id=answer,
                created=int(time.time()),
                tokens=timing.n_tokens,
                n_layer=routing.n_layer,
                skipped_layers=tuple(routing.skipped),
                positions=fidelity.positions,
                equal=fidelity.equal,
                fidelity=round(fidelity.share, 4),
                kl=fidelity.kl,
            )
        )
