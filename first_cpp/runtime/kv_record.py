"""Which positions of the KV cache lack which layers."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, replace

NOTHING: frozenset[int] = frozenset()


@dataclass(slots=True)
class Run:
    """Positions up to `end`, evaluated without the layers `left_out`; their KV is there but for the layers `lacking`."""

    end: int
    left_out: frozenset[int]
    lacking: frozenset[int]


class KvRecord:
    """For each position, the layers that were left out when it was evaluated, and those whose KV it lacks."""

    def __init__(self) -> None:
        self._runs: list[Run] = []  # ends ascending
        self.end = 0
        """Positions recorded."""

    def copy(self) -> KvRecord:
        other = KvRecord()
        other._runs, other.end = [replace(run) for run in self._runs], self.end
        return other

    def truncate(self, n_positions: int) -> None:
        """Forget the positions from `n_positions` on."""
        if n_positions >= self.end:
            return
        while self._runs and self._start_of_last() >= n_positions:
            self._runs.pop()
        if self._runs:
            self._runs[-1].end = n_positions
        self.end = n_positions if self._runs else 0

    def _start_of_last(self) -> int:
        return self._runs[-2].end if len(self._runs) > 1 else 0

    def append(self, end: int, left_out: Set[int], lacking: Set[int] | None = None) -> None:
        """The positions up to `end` were evaluated without `left_out`; they lack the KV of the same layers, or of `lacking`."""
        if end <= self.end:
            return
        if lacking is None:
            lacking = left_out
        last = self._runs[-1] if self._runs else None
        if last is not None and last.left_out == left_out and last.lacking == lacking:
            last.end = end
        else:
            self._runs.append(Run(end, frozenset(left_out), frozenset(lacking)))
        self.end = end

    def lose(self, layers: Set[int]) -> None:
        """All positions now lack `layers` too."""
        runs, self._runs, self.end = self._runs, [], 0
        for run in runs:
            self.append(run.end, run.left_out, run.lacking | layers)

    def evaluated_like(self, left_out: Set[int], start: int = 0) -> int:
        """Up to where the positions from `start` on were evaluated without exactly `left_out`, and lack no other."""
        for run in self._runs:
            if run.end > start:
                if run.left_out != left_out or not run.lacking <= left_out:
                    break
                start = run.end
        return start

    def readable_with(self, left_out: Set[int]) -> int:
        """How many leading positions have all that an evaluation without `left_out` reads."""
        start = 0
        for run in self._runs:
            if not run.lacking <= left_out:
                break
            start = run.end
        return start
