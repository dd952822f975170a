"""One dense answer, kept so that any set of layers can be tried on it in one evaluation."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..streams.cost import Floats, Targets
from ..streams.engine import Engine

NOTHING: frozenset[int] = frozenset()


class AnswerCosts:
    """A prompt's state and its dense answer in an engine: `cost` says what skipping a set of layers costs on it.

    Prompt positions ran all layers, answer positions skip. Layers before the first one that `base` does not skip already
    are not computed again: the hidden states that enter the layers are known for `base`.

    influence: 1 - cosine of what enters and leaves each layer, mean over the answer, float64 [n_layer] (ShortGPT, arXiv
    2403.03853); None where the hidden states cannot be read.
    """

    def __init__(self, engine: Engine, prompt: Sequence[int], answer: Sequence[int]) -> None:
        self._engine, self._answer, self._position = engine, list(answer), len(prompt)
        engine.read_prompt(prompt)
        self._prefix = engine.saved()
        logits, self._states = engine.rows(self._answer, self._position, read_from=0 if engine.readable else None)
        self._targets = Targets.of(logits)
        self.influence = _influence(self._states) if self._states else None
        self.base = NOTHING
        self.dense = self._targets.dense
        """The cost of skipping nothing."""

    @property
    def n_bytes(self) -> int:
        """What it holds."""
        return len(self._prefix) + self._targets.packed.nbytes + sum(states.nbytes for states in self._states)

    def cost(self, skipped: frozenset[int], base: frozenset[int] = NOTHING) -> Floats:
        """Cost of skipping `skipped`, float32 [3] as `cost.KL` and its neighbours name them; quicker from a `base` in it."""
        if base != self.base:
            self.rebase(base)
        return self._targets.cost(self._rows(skipped, None)[0])

    def rebase(self, base: frozenset[int]) -> Floats:
        """Learn the hidden states with `base` skipped; returns its cost."""
        first = self._first(base)
        logits, states = self._rows(base, first if self._states else None)
        if self._states:
            self._states = [*self._states[:first], *states]
        self.base = base
        return self._targets.cost(logits)

    def _first(self, skipped: frozenset[int]) -> int:
        """The first layer whose input is known and that has to be computed, or skipped, another way."""
        first = min(skipped ^ self.base, default=0)
        last_run = max(layer for layer in range(self._engine.n_layer) if layer not in skipped)
        return min(first, last_run) if self._engine.starts_anywhere else 0

    def _rows(self, skipped: frozenset[int], read_from: int | None) -> tuple[Floats, list[Floats]]:
        first = self._first(skipped)
        start = (first, self._states[first]) if first > 0 else None
        self._engine.restore(self._prefix)
        return self._engine.rows(self._answer, self._position, skipped, start, read_from)


def _influence(states: Sequence[Floats]) -> npt.NDArray[np.float64]:
    found = []
    for before, after in itertools.pairwise(states):
        dot = (before.astype(np.float64) * after).sum(axis=1)
        norms = np.linalg.norm(before.astype(np.float64), axis=1) * np.linalg.norm(after.astype(np.float64), axis=1)
        found.append((1 - dot / np.maximum(norms, 1e-30)).mean())
    return np.array(found)
