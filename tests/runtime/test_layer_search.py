"""The search for an order of layers, on costs that are made up."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from first_cpp.runtime.layer_search import is_close, removal_order


class Made:
    """Costs of sets, for each example: what each layer adds alone, and more where two meet."""

    def __init__(self, alone, pairs=None, noise=0.0, n=1, seed=0):
        self.alone, self.pairs, self.n_examples = alone, pairs or {}, n
        self._noise = np.random.default_rng(seed).normal(0, noise, (n, len(alone)))
        self.skipped, self.tried = [], []

    def of(self, layers, n):
        found = np.full(n, sum(self.alone[layer] for layer in layers), float)
        found += sum(more for pair, more in self.pairs.items() if pair <= set(layers))
        return found + self._noise[:n, sorted(layers)].sum(axis=1)

    def cost(self, n):
        return self.of(self.skipped, n)

    def without(self, layer, n):
        self.tried.append((tuple(self.skipped), layer, n))
        return self.of([*self.skipped, layer], n)

    def skip(self, layer):
        self.skipped.append(layer)


def test_few_layers_are_tried_again():
    """Where layers add to the cost on their own, every step after the first tries one."""
    made = Made([0.3, 0.1, 0.6, 0.2, 0.5, 0.4])
    assert removal_order(made, range(6), 3) == [1, 3, 0, 5, 4, 2]
    assert [layer for _, layer, _ in made.tried] == [0, 1, 2, 3, 4, 5, 3, 0]


def test_it_is_greedy():
    """Against the greedy choice by every layer tried at every step, on costs that grow with the layers skipped."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        pairs = {frozenset(pair): float(rng.uniform(0, 0.3)) for pair in itertools.combinations(range(7), 2)}
        made = Made(rng.uniform(0, 1, 7).tolist(), pairs)
        expected: list[int] = []
        while len(expected) < 5:
            rest = [layer for layer in range(7) if layer not in expected]
            expected.append(min(rest, key=lambda layer: made.of([*expected, layer], 1)[0]))
        assert removal_order(made, range(7), 5)[:5] == expected


def test_close_calls_are_made_on_more_examples():
    alone = [0.5, 0.10, 0.5, 0.14, 0.5]
    sure = Made(alone, noise=0.001, n=64)
    removal_order(sure, range(5), 1, first=8)
    assert max(n for *_, n in sure.tried) == 8
    wrong = {n: 0 for n in (8, 64)}
    for seed in range(40):
        for n in wrong:
            made = Made(alone, noise=0.1, n=n, seed=seed)
            wrong[n] += removal_order(made, range(5), 1, first=8)[0] != 1
            assert all(layer in (1, 3) for *_, layer, n in made.tried if n == 64)
    assert wrong[64] < wrong[8] / 2


def test_only_the_layers_given_and_as_many_as_asked_for():
    made = Made([0.3, 0.1, 0.6, 0.2])
    assert removal_order(made, [0, 2, 3], 9) == [3, 0, 2]
    assert len(made.skipped) == 3


def test_it_ends_when_it_has_had_enough():
    found = []
    made = Made([0.3, 0.1, 0.6, 0.2])
    assert removal_order(made, range(4), 4, chosen=found.append, enough=lambda: len(found) == 2) == [1, 3, 0, 2]
    assert found == [1, 3]


@pytest.mark.parametrize(("difference", "close"), [([0.1, 0.1, 0.11], False), ([0.1, -0.1, 0.02], True), ([0.1], True)])
def test_too_close_to_call(difference, close):
    best = np.arange(len(difference)) / 3
    assert is_close(best + difference, best) is close
