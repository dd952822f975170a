"""The idle pass: what decoding read with layers skipped is read again with all of them, while nobody waits for the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import llama_cpp

from .answer import CurrentAnswer
from .context import ReadContext
from .fidelity import AnswerMeasure
from .llama_batch import decode
from .one_thread import OneThread
from .policy import RoutingPolicy

PART = 64
"""Tokens read at once: enough to read them several times as fast as decoding would, few enough to lose when interrupted."""


class IdlePass:
    """Reads in parts, each under the model's lock; any other call ends it within a graph node.

    abort: ends evaluations while it is on, from any thread.
    """

    def __init__(
        self,
        llm: llama_cpp.Llama,
        read: ReadContext,
        policy: RoutingPolicy,
        current: CurrentAnswer,
        measure: AnswerMeasure,
        lock: OneThread,
        abort: Callable[[bool], None],
    ) -> None:
        self._llm, self._read, self._policy, self._current = llm, read, policy, current
        self._measure, self._lock, self._abort = measure, lock, abort
        self._interrupted = False

    def run(self, stop: Callable[[], bool] | None = None) -> bool:
        """Read until all is read, `stop()` says so, or another call arrives. Returns whether all is read."""
        entries = self._lock.entries
        while not (stop is not None and stop()):
            with self._lock.giving_way(self._interrupt) as held:
                if not held or self._lock.entries != entries or self._current.answer is not None:
                    return False
                try:
                    if not self._step():
                        self._policy.settle(self._measure.fidelity)
                        return True
                    if self._interrupted:
                        return False
                except RuntimeError:
                    if not self._interrupted:
                        raise
                    return False
        return False

    def _interrupt(self, on: bool) -> None:
        """Another thread wants the model, or the pass has made room for it."""
        self._interrupted = on
        self._abort(on)

    def _step(self) -> bool:
        """Read one part; False when there was none."""
        read, policy = self._read, self._policy
        read.sync()
        if not read.pending and policy.forced is None:
            read.pending = read.rewind(policy.usable_prefix())
        if not read.pending:
            return False
        start = self._llm.n_tokens
        skipped, n_most, score = policy.how_to_read(start)
        part = read.pending[: min(PART, n_most, read.micro_batch)]
        measured = not skipped and self._measure.wants(start, len(part))
        read.run(part, skipped, score, self._with_logits if measured else None)
        if measured:
            self._measure.compare(start, len(part))
        del read.pending[: len(part)]
        return True

    def _with_logits(self, tokens: Sequence[int]) -> None:
        """What the base class's eval does, with the logits of every position."""
        llm, start = self._llm, self._llm.n_tokens
        llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(llm.ctx), 0, start, -1)
        decode(llm, tokens, start, all_outputs=True)
        llm.input_ids[start : start + len(tokens)] = tokens
        if self._measure.logits_all:
            llm.scores[start : start + len(tokens)] = self._measure.logits(len(tokens))
        llm.n_tokens = start + len(tokens)
