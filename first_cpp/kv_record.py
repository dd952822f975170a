"""Which positions of the KV cache lack which layers."""

from __future__ import annotations

from collections.abc import Set

NOTHING: frozenset[int] = frozenset()
_LOST = frozenset({-1})  # beside lost layers: the position was not evaluated without them


class KvRecord:
    """For each position, the layers that were left out when it was evaluated, as runs of equal sets."""

    def __init__(self) -> None:
        self._runs: list[tuple[int, frozenset[int]]] = []  # (end position, layers left out), ascending
        self.end = 0
        """Positions recorded."""

    def copy(self) -> KvRecord:
        other = KvRecord()
        other._runs, other.end = list(self._runs), self.end
        return other

    def truncate(self, n_positions: int) -> None:
        """Forget the positions from `n_positions` on."""
        if n_positions >= self.end:
            return
        while self._runs and self._start_of_last() >= n_positions:
            self._runs.pop()
        if self._runs:
            self._runs[-1] = (n_positions, self._runs[-1][1])
        self.end = n_positions if self._runs else 0

    def _start_of_last(self) -> int:
        return self._runs[-2][0] if len(self._runs) > 1 else 0

    def append(self, end: int, left_out: Set[int]) -> None:
        """The positions up to `end` were evaluated without `left_out`."""
        if end <= self.end:
            return
        if self._runs and self._runs[-1][1] == left_out:
            self._runs[-1] = (end, self._runs[-1][1])
        else:
            self._runs.append((end, frozenset(left_out)))
        self.end = end

    def lose(self, layers: Set[int]) -> None:
        """All positions now lack `layers` too."""
        if not layers:
            return
        runs, self._runs, self.end = self._runs, [], 0
        for end, left_out in runs:
            self.append(end, left_out | layers | _LOST)

    def evaluated_like(self, left_out: Set[int], start: int = 0) -> int:
        """Up to where the positions from `start` on were evaluated without exactly `left_out`."""
        for end, run in self._runs:
            if end > start:
                if run != left_out:
                    break
                start = end
        return start

    def readable_with(self, left_out: Set[int]) -> int:
        """How many leading positions have all that an evaluation without `left_out` reads."""
        start = 0
        for end, run in self._runs:
            if not run - _LOST <= left_out:
                break
            start = end
        return start
