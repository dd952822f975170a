"""A calibration, step by step: dense answers, search, the cost of each level on each prompt."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..errors import FirstCppError
from ..runtime.layer_search import removal_order
from ..skip import fixed_layers
from .answer_costs import NOTHING
from .cost import KL
from .cost_store import CostStore, Measure, Searched
from .engine import Engine
from .first_pass import answer_all
from .prompts import Prompt, is_kept_out

Floats64 = npt.NDArray[np.float64]

LEAST_PROMPTS = 16
"""Fewer answers tell nothing."""
LEAST_KEPT_OUT = 4
"""Prompts that nothing was fitted on, by which sets are compared and the table is made."""
SEARCHED = ("searched", "searched, relative")
"""The names of the sets that the orders give."""
CHEAP = 8
"""Layers, the cheapest alone, by whose mean cost the prompts are told apart."""
LEAST_TOKENS = 2
"""Of an answer: the first token costs nothing, whatever is skipped."""


class CalibrationError(FirstCppError, ValueError):
    """A model or prompts that nothing can be measured on."""


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    max_tokens: of each answer. search_prompts, search_tokens: what the search reads; first: prompts a layer is tried on at
    first. too_much: nats a token; levels that cost more on average are not looked at. seconds: for all of it, None: as long
    as it takes. answers_part, search_part: the parts of it after which there are answers enough, and an order.
    """

    max_tokens: int = 48
    search_prompts: int = 40
    search_tokens: int = 24
    first: int = 10
    too_much: float = 1.0
    seconds: float | None = None
    answers_part: float = 0.28
    search_part: float = 0.6


@dataclass
class Show:
    """Where progress goes. bar: what is done, how much, of how much. say: a line that stays."""

    bar: Callable[[str, float, float], object] = lambda _what, _done, _total: None
    say: Callable[[str], object] = lambda _text: None


@dataclass(frozen=True)
class Measured:
    """What there is to fit and to report on.

    orders: all layers, those missed least first, one order or two. levels: how many layers are skipped, ascending, as
    measured. costs: by kind of set, those of SEARCHED for each order, on prompts kept out also "influence" and "even": float64
    [n, n_level, 3]; "dense" [n, 1, 3]. hidden: float32 [n, n_layer, n_embd] of the same prompts. kept_out, in_search: bools
    [n]. tasks: [n]. n_answers: all that were given.
    """

    orders: tuple[tuple[int, ...], ...]
    levels: tuple[int, ...]
    costs: dict[str, Floats64]
    hidden: npt.NDArray[np.float32]
    kept_out: npt.NDArray[np.bool_]
    in_search: npt.NDArray[np.bool_]
    tasks: tuple[str, ...]
    n_answers: int


@dataclass
class Procedure:
    """Carries a plan out; all it finds goes into the store, so that it can be stopped and go on."""

    engine: Engine
    prompts: Sequence[Prompt]
    tokens: Sequence[list[int]]
    norm_eps: float
    store: CostStore
    plan: Plan = field(default_factory=Plan)
    show: Show = field(default_factory=Show)

    def __post_init__(self) -> None:
        self.measure = Measure(self.engine, self.store)
        self.skippable = [layer for layer, why in enumerate(self.engine.unskippable) if not why]
        if len(self.skippable) < 2:
            raise CalibrationError(f"{self.engine.model_path}: no layers to choose from: {self.engine.dense_because}")
        self.most = min(len(self.skippable), self.engine.n_layer - 1, math.ceil(self.engine.n_layer / 2))

    def _over(self, part: float) -> bool:
        return self.plan.seconds is not None and self.store.elapsed > part * self.plan.seconds

    # -- dense answers ----------------------------------------------------------------------------------------------------

    def answer(self) -> None:
        """Let the dense model answer the prompts, or as many as time allows."""
        missing = [i for i in range(len(self.prompts)) if i not in self.store.answered]
        done, total = len(self.prompts) - len(missing), len(self.prompts)
        chunk = 2 * self.engine.streams
        while missing and not (self._over(self.plan.answers_part) and done >= 2 * LEAST_PROMPTS):
            now, missing = missing[:chunk], missing[chunk:]
            for i, one in answer_all(self.engine, [self.tokens[i] for i in now], self.plan.max_tokens, self.norm_eps):
                self.store.answered[now[i]] = one
                done += 1
                self.show.bar("dense answers", done, total)
            self.store.save()
        if len(self.usable()) < LEAST_PROMPTS:
            raise CalibrationError(
                f"the model gave {len(self.usable())} answers of {LEAST_TOKENS} tokens or more to {len(self.prompts)} prompts; "
                f"at least {LEAST_PROMPTS} are needed: give more prompts (--prompts FILE)"
            )

    def usable(self) -> list[int]:
        """The prompts whose answers have tokens to measure on."""
        return [i for i in sorted(self.store.answered) if len(self.store.answered[i].answer) >= LEAST_TOKENS]

    def kept_out(self) -> dict[int, bool]:
        """Of each usable prompt, whether it is kept out of all fits."""
        usable = self.usable()
        return dict(zip(usable, is_kept_out([self.prompts[i] for i in usable]), strict=True))

    def searched(self) -> list[int]:
        """The prompts that the search reads."""
        return [i for i, kept in self.kept_out().items() if not kept][: self.plan.search_prompts]

    # -- search -----------------------------------------------------------------------------------------------------------

    def search(self) -> tuple[list[tuple[int, ...]], Floats64]:
        """Orders of the layers, and the mean KL of the first one, two ... of the first order on the prompts of the search.

        The first order is the one of least mean KL, which the hard prompts decide. The second counts each prompt's KL in units
        of what a layer costs it: prompts that cost little, and skip most under a budget, count as much.
        """
        prompts = self.searched()
        costs = list[float]()
        orders = list[tuple[int, ...]]()
        for which in ("on average", "relative to each prompt"):
            if orders and self._over(self.plan.search_part):
                break
            weights = self._relative(prompts) if orders else None
            most = self.levels(np.array(costs))[-1] if orders else self.most
            skipping = Searched(self.measure, prompts, self.plan.search_tokens, weights)
            found = self._search(skipping, which, [] if orders else costs, most)
            order = found + [layer for layer in range(self.engine.n_layer) if layer not in found]
            orders.append(tuple(order))
        if not self.store.influence:
            sessions = [self.measure.session(i, self.plan.search_tokens) for i in prompts[: self.plan.first]]
            known = [one.influence for one in sessions if one.influence is not None]
            self.store.influence = np.mean(known, axis=0).tolist() if known else []
        self.measure.forget()
        self.store.save()
        return list(dict.fromkeys(orders)), np.array(costs)

    def _search(self, skipping: Searched, which: str, costs: list[float], most: int) -> list[int]:
        n_first = min(self.plan.first, skipping.n_examples)
        tried = itertools.count(1)

        def chosen(layer: int) -> None:
            costs.append(float(skipping.kl(n_first).mean()))
            self.show.bar(f"order of the layers, {which}", len(costs), most)
            self.show.say(f"{len(costs):3d} layers skipped, {which}: KL {costs[-1]:.3f} nats a token (layer {layer})")

        return removal_order(
            skipping,
            self.skippable,
            most,
            self.plan.first,
            chosen,
            lambda: self.show.bar("each layer alone", next(tried), len(self.skippable)),
            lambda: bool(costs and costs[-1] > self.plan.too_much) or self._over(self.plan.search_part),
        )

    def _relative(self, prompts: Sequence[int]) -> Floats64:
        """Weights that make a prompt's KL one of what it pays for a cheap layer: 1 / its mean over the cheapest ones."""
        n = self.plan.search_tokens
        n_first = min(self.plan.first, len(prompts))
        alone = {
            layer: np.mean([self.measure.cost(frozenset({layer}), i, n)[KL] for i in prompts[:n_first]])
            for layer in self.skippable
        }
        cheap = sorted(alone, key=alone.__getitem__)[:CHEAP]
        typical = [np.mean([self.measure.cost(frozenset({layer}), i, n)[KL] for layer in cheap]) for i in prompts]
        return 1 / np.maximum(typical, 0.01)

    def levels(self, found: Floats64) -> tuple[int, ...]:
        """The levels to measure: close together where little is skipped, none that costs too much."""
        levels = [1]
        while (following := max(levels[-1] + 1, round(levels[-1] * 1.6))) <= len(found):
            levels.append(following)
        return tuple(k for k in levels if k == 1 or found[k - 1] <= self.plan.too_much)

    # -- the cost of each level ---------------------------------------------------------------------------------------------

    def sets(self, orders: Sequence[Sequence[int]], levels: Sequence[int]) -> dict[str, list[frozenset[int]]]:
        """The set of each level: of the orders found, and of those that they are compared with."""
        n_layer = self.engine.n_layer
        found = {name: [frozenset(order[:k]) for k in levels] for name, order in zip(SEARCHED, orders, strict=False)}
        if self.store.influence:
            by_influence = sorted(self.skippable, key=lambda layer: self.store.influence[layer])
            found["influence"] = [frozenset(by_influence[:k]) for k in levels]
        even = [frozenset(fixed_layers("even", k / n_layer, n_layer)) & set(self.skippable) for k in levels]
        found["even"] = even
        return found

    def measure_levels(self, orders: Sequence[tuple[int, ...]], levels: Sequence[int]) -> Measured:
        """The cost of every level on every prompt, or on as many as time allows."""
        kept_out, searched = self.kept_out(), set(self.searched())
        sets = self.sets(orders, levels)
        done = list[int]()
        for i in kept_out:
            enough = len(done) >= LEAST_PROMPTS and sum(kept_out[j] for j in done) >= LEAST_KEPT_OUT
            if self._over(1.0) and enough:
                break
            try:
                self._measure_prompt(i, sets if kept_out[i] else {name: sets[name] for name in SEARCHED if name in sets})
            except KeyboardInterrupt:
                if not enough:
                    raise
                self.show.say(f"interrupted: going by the {len(done)} prompts measured so far")
                break
            done.append(i)
            self.show.bar("cost of each level", len(done), len(kept_out))
        self.store.save()
        return self._measured(done, orders, levels, sets, kept_out, searched)

    def _measure_prompt(self, prompt: int, sets: dict[str, list[frozenset[int]]]) -> None:
        for layers in (NOTHING, *(layers for of_levels in sets.values() for layers in of_levels)):
            self.measure.cost(layers, prompt, self.plan.max_tokens)
        self.measure.forget()

    def _measured(
        self,
        done: list[int],
        orders: Sequence[tuple[int, ...]],
        levels: Sequence[int],
        sets: dict[str, list[frozenset[int]]],
        kept_out: dict[int, bool],
        searched: set[int],
    ) -> Measured:
        costs = {
            kind: np.stack([self.store.costs[self.plan.max_tokens, layers][done] for layers in of_levels], axis=1)
            for kind, of_levels in ({"dense": [NOTHING]} | sets).items()
        }
        return Measured(
            orders=tuple(orders),
            levels=tuple(levels),
            costs={kind: values.astype(np.float64) for kind, values in costs.items()},
            hidden=np.stack([self.store.answered[i].read for i in done]),
            kept_out=np.array([kept_out[i] for i in done]),
            in_search=np.array([i in searched for i in done]),
            tasks=tuple(self.prompts[i].task for i in done),
            n_answers=len(self.store.answered),
        )


def step_times(engine: Engine, prompt: Sequence[int], answer: Sequence[int], sets: Sequence[frozenset[int]]) -> list[float]:
    """Median seconds of a decoding step with each set skipped, all in turns so that a noisy machine slows them alike."""
    engine.read_prompt(prompt)
    prefix = engine.saved()
    times: list[list[float]] = [[] for _ in sets]
    for token in answer:
        for which, layers in enumerate(sets):
            for again in (False, True):  # the first builds the graph
                engine.restore(prefix)
                start = time.perf_counter()
                engine.rows([token], len(prompt), layers)
                if again:
                    times[which].append(time.perf_counter() - start)
    return [float(np.median(one)) for one in times]
