"""A calibration, step by step: dense answers, search, the cost of each level on each prompt."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from ..gguf.cost_probes import CostProbes, LayerSet
from ..runtime.layer_search import removal_order
from ..skip import fixed_layers
from ..streams.cost import KL
from ..streams.engine import Engine
from .answer_costs import NOTHING
from .cost_store import CalibrationError, CostStore, Measure, Searched, Wanted
from .given_sets import by_kind
from .groups import groups_of
from .probes import fit
from .prompts import Prompt, is_kept_out
from .workers import Spread, Workers

Floats64 = npt.NDArray[np.float64]

LEAST_PROMPTS = 16
"""Fewer answers tell nothing."""
LEAST_KEPT_OUT = 4
"""Prompts that nothing was fitted on, by which sets are compared and the table is made."""
SEARCHED = ("searched", "group's own", "other group's")
"""The names of the sets that the orders give: the order for all prompts, and those of groups."""
LEAST_GROUP = 6
"""Prompts of a group that its order is made from, and as many by which it is judged."""
SURE = 1.5
"""Standard errors by which a group's own sets must be cheaper."""
LEAST_TYPICAL = 0.01
"""Nats a token: prompts that pay less for a layer count no more than one that pays this."""
TIMED = 3
"""Layers tried to learn how long one takes."""
ROUNDS = 3
"""A search takes about as long as trying every layer so often on its first prompts."""
LEAST_FIRST = 3
"""Prompts that each layer is tried on, however short the time."""
CHEAP = 8
"""Layers, the cheapest alone, by whose mean cost the prompts are told apart."""
LEAST_TOKENS = 2
"""Of an answer: the first token costs nothing, whatever is skipped."""


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    max_tokens: of each answer. search_prompts, search_tokens: what the search reads; first: prompts a layer is tried on at
    first. group_prompts: that a group's order is made from. seconds: for all of it, None: as long as it takes. The parts of it
    after which there are answers enough, an order, orders of groups, and all costs; the rest is for the speed.
    """

    max_tokens: int = 48
    search_prompts: int = 40
    search_tokens: int = 24
    first: int = 10
    group_prompts: int = 12
    seconds: float | None = None
    answers_part: float = 0.2
    search_part: float = 0.45
    groups_part: float = 0.7
    costs_part: float = 0.85


@dataclass
class Show:
    """Where progress goes. bar: what is done, how much, of how much. say: a line that stays."""

    bar: Callable[[str, float, float], object] = lambda _what, _done, _total: None
    say: Callable[[str], object] = lambda _text: None


@dataclass(frozen=True)
class Measured:
    """What there is to fit and to report on.

    orders: all layers, those missed least first; the first for all prompts, others for groups. levels: how many layers are
    skipped, ascending, as measured. costs: by kind of set, those of SEARCHED for each order, on prompts kept out also
    "influence" and "even": float64 [n, n_level, 3]; "dense" [n, 1, 3]. hidden: float32 [n, 2 * n_layer, n_embd],
    `Answered.read` of the same prompts. kept_out, in_search: bools [n]. tasks, numbers: of each prompt, [n]. n_answers: all
    that were given. given: the sets of an earlier file, where these are kept: the j-th set of a level is of the j-th kind
    of SEARCHED.
    """

    orders: tuple[tuple[int, ...], ...]
    levels: tuple[int, ...]
    costs: dict[str, Floats64]
    hidden: npt.NDArray[np.float32]
    kept_out: npt.NDArray[np.bool_]
    in_search: npt.NDArray[np.bool_]
    tasks: tuple[str, ...]
    numbers: tuple[int, ...]
    n_answers: int
    given: tuple[LayerSet, ...] = ()

    def read_by_probes(self) -> npt.NDArray[np.float32]:
        """What the probes of the first order read of each prompt: [n, n_read * n_embd]."""
        fitted = ~self.kept_out
        read = fit(self.hidden[fitted], self.costs["searched"][fitted][:, :, KL], range(self.hidden.shape[1])).read
        return self.hidden[:, list(read)].reshape(len(self.hidden), -1)


@dataclass
class Procedure:
    """Carries a plan out; all it finds goes into the store, so that it can be stopped and go on.

    workers: who measure, where the engine does not itself.
    """

    engine: Engine
    prompts: Sequence[Prompt]
    tokens: Sequence[list[int]]
    norm_eps: float
    store: CostStore
    plan: Plan = field(default_factory=Plan)
    show: Show = field(default_factory=Show)
    workers: Workers | None = None

    def __post_init__(self) -> None:
        spread = self.workers and Spread(self.engine, self.store, self.workers)
        self.measure: Measure = spread or Measure(self.engine, self.store)
        self._stopped = False
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
        chunk = 2 * self.measure.streams

        def chunks() -> Iterator[list[int]]:
            for begin in range(0, len(missing), chunk):
                if self._over(self.plan.answers_part) and len(self.usable()) >= 2 * LEAST_PROMPTS:
                    self.show.say(f"going on with {done} of {total} prompts: more would take too much of the time")
                    return
                self.store.save()
                yield missing[begin : begin + chunk]

        for i, one in self.measure.answers(chunks(), self.tokens, self.plan.max_tokens, self.norm_eps):
            self.store.answered[i] = one
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

    def search(self) -> tuple[int, ...]:
        """The order of the layers; those that time did not suffice for follow by what each costs alone.

        Each prompt's KL counts in units of what a layer costs it: prompts that cost little, and skip most under a budget, count
        as much as the hard ones, which would decide a plain mean.
        """
        prompts = self.searched()
        self.plan = self._paced(prompts[0])
        order = self._search(prompts, self._relative(prompts), "order of the layers", self.most, self.plan.search_part)
        if not self.store.influence:
            known = self.measure.influences(prompts[: self.plan.first], self.plan.search_tokens)
            self.store.influence = np.mean(known, axis=0).tolist() if known else []
        self.measure.forget()
        self.store.save()
        return order

    def _paced(self, prompt: int) -> Plan:
        """The plan, with fewer prompts for each layer where time is short: an order by few beats none."""
        if self.plan.seconds is None:
            return self.plan
        each = self.measure.pace(prompt, self.plan.search_tokens, self.skippable[:TIMED])
        left = self.plan.search_part * self.plan.seconds - self.store.elapsed
        first = int(left / (ROUNDS * len(self.skippable) * each))
        return replace(self.plan, first=max(LEAST_FIRST, min(self.plan.first, first)))

    def _search(self, prompts: Sequence[int], weights: Floats64, what: str, most: int, part: float) -> tuple[int, ...]:
        """An order of all layers by what they cost some prompts."""
        skipping = Searched(self.measure, prompts, self.plan.search_tokens, weights)
        n_first = min(self.plan.first, skipping.n_examples)
        tried, n_chosen = itertools.count(1), 0

        def chosen(layer: int) -> None:
            nonlocal n_chosen
            n_chosen += 1
            self.show.bar(what, n_chosen, most)
            mean = float(skipping.kl(n_first).mean())
            self.show.say(f"{what}: KL {mean:.3f} nats a token with {n_chosen} skipped (layer {layer})")

        found = removal_order(
            skipping,
            self.skippable,
            most,
            self.plan.first,
            chosen,
            lambda: self.show.bar("each layer alone", next(tried), len(self.skippable)),
            lambda: self._over(part),
        )
        if n_chosen < most:
            self.show.say(f"{what}: the time is over; the others follow by what each costs alone")
        return (*found, *(layer for layer in range(self.engine.n_layer) if layer not in found))

    def _relative(self, prompts: Sequence[int]) -> Floats64:
        """Weights that make a prompt's KL one of what it pays for a cheap layer: 1 / its mean over the cheapest ones."""
        n = self.plan.search_tokens
        n_first = min(self.plan.first, len(prompts))

        def alone(layer: int, of: Sequence[int]) -> list[float]:
            return [float(cost[KL]) for cost in self.measure.costs(frozenset({layer}), of, n)]

        means = dict[int, float]()
        for tried, layer in enumerate(self.skippable, 1):
            means[layer] = float(np.mean(alone(layer, prompts[:n_first])))
            self.show.bar("each layer alone", tried, len(self.skippable))
        cheap = sorted(means, key=means.__getitem__)[:CHEAP]
        of = prompts[:n_first] if self._over(self.plan.search_part) else prompts
        found = list[list[float]]()
        for layer in cheap:
            self.show.bar("what a layer costs each prompt", len(found), len(cheap))
            found.append(alone(layer, of))
        typical = np.mean(found, axis=0)
        typical = np.append(typical, [typical.mean()] * (len(prompts) - len(of)))
        return np.asarray(1 / np.maximum(typical, LEAST_TYPICAL))

    def own_orders(self, order: tuple[int, ...], measured: Measured) -> list[tuple[int, ...]]:
        """Orders of groups of prompts, each where it is surely cheaper for its group than the one for all."""
        labels = groups_of(measured.tasks, measured.read_by_probes())
        found = list[tuple[float, tuple[int, ...]]]()
        for number in range(max(labels) + 1):
            members = np.flatnonzero((labels == number) & ~measured.kept_out)
            if len(members) < 2 * LEAST_GROUP:
                continue
            if self._over(self.plan.groups_part):
                break
            gain, own = self._own_order(order, measured, members, number + 1)
            if gain > 0 and own != order:
                found.append((gain, own))
        self.measure.forget()
        self.store.save()
        best = sorted(found, reverse=True)[: len(SEARCHED) - 1]
        return list(dict.fromkeys(own for _, own in best))

    def _own_order(
        self, order: tuple[int, ...], measured: Measured, members: npt.NDArray[np.intp], number: int
    ) -> tuple[float, tuple[int, ...]]:
        """A group's own order, and what it surely saves of the relative cost of members that it was not made from."""
        shared = measured.costs["searched"][:, :, KL]
        weights = 1 / np.maximum(shared[:, : min(3, len(measured.levels))].mean(axis=1), LEAST_TYPICAL)
        most = max(k for k in measured.levels if k <= max(measured.levels[-1] // 2, 3))
        n_search = min(len(members) // 2, self.plan.group_prompts)
        made, judged = members[:n_search], members[n_search : 2 * n_search]
        what = f"order of group {number}"
        own = self._search([measured.numbers[i] for i in made], weights[made], what, most, self.plan.groups_part)
        self.measure.forget()
        levels = [i for i, k in enumerate(measured.levels) if k <= most and set(own[:k]) != set(order[:k])]
        if not levels:
            return 0.0, order
        sets, numbers = [frozenset(own[: measured.levels[level]]) for level in levels], [measured.numbers[i] for i in judged]
        for _ in self.measure.each([(number, sets) for number in numbers], self.plan.max_tokens):
            pass
        costs = np.array([self.store.costs[self.plan.max_tokens, layers][numbers, KL] for layers in sets]).T  # [n, n_level]
        gains = [float(weights[i] * (shared[i, levels] - costs[row]).mean()) for row, i in enumerate(judged)]
        gain, error = float(np.mean(gains)), float(np.std(gains, ddof=1)) / len(gains) ** 0.5
        taken = gain > SURE * error
        self.show.say(f"group {number}: {'its own sets' if taken else 'the sets for all'} (own gain {gain:.2f} +- {error:.2f})")
        return (gain - SURE * error if taken else 0.0), own

    def levels(self) -> tuple[int, ...]:
        """The levels to measure, up to half of the layers: close together where little is skipped."""
        levels = [1]
        while (following := max(levels[-1] + 1, round(levels[-1] * 1.6))) < self.most:
            levels.append(following)
        return tuple(dict.fromkeys((*levels, self.most)))

    def carry_out(self) -> Measured:
        """All of it: answers, search, the cost of each level; then groups, where there is time for their own orders."""
        self.answer()
        order = self.search()
        levels = self.levels()
        measured = self.measure_levels([order], levels)
        own = list[tuple[int, ...]]()
        if not self._stopped and not self._over(self.plan.search_part + 0.1):
            try:
                own = self.own_orders(order, measured)
            except KeyboardInterrupt:
                self.show.say("interrupted: going on without orders of groups")
                self._stopped = True
        return measured if self._stopped or not own else self.measure_levels([order, *own], levels)

    def keep_sets(self, given: CostProbes) -> Measured:
        """In place of a search: the costs of the sets of an earlier file, every one measured."""
        self.answer()
        return self.measure_levels([given.order], given.levels, given.sets)

    # -- the cost of each level ---------------------------------------------------------------------------------------------

    def sets(
        self, orders: Sequence[Sequence[int]], levels: Sequence[int], given: Sequence[LayerSet] = ()
    ) -> dict[str, list[frozenset[int]]]:
        """The set of each level: of the orders found, or those given, and of those that they are compared with."""
        n_layer = self.engine.n_layer
        found = {name: [frozenset(order[:k]) for k in levels] for name, order in zip(SEARCHED, orders, strict=False)}
        found |= by_kind(given, SEARCHED)
        if self.store.influence:
            by_influence = sorted(self.skippable, key=lambda layer: self.store.influence[layer])
            found["influence"] = [frozenset(by_influence[:k]) for k in levels]
        even = [frozenset(fixed_layers("even", k / n_layer, n_layer)) & set(self.skippable) for k in levels]
        found["even"] = even
        return found

    def measure_levels(
        self, orders: Sequence[tuple[int, ...]], levels: Sequence[int], given: Sequence[LayerSet] = ()
    ) -> Measured:
        """The cost of every level on every prompt, or on as many as time allows. given: sets that no search has chosen."""
        kept_out, searched = self.kept_out(), set() if given else set(self.searched())
        sets = self.sets(orders, levels, given)
        done = list[int]()

        def enough() -> bool:
            return len(done) >= LEAST_PROMPTS and sum(kept_out[j] for j in done) >= LEAST_KEPT_OUT

        def wanted() -> Iterator[Wanted]:
            for i in kept_out:
                if self._over(self.plan.costs_part) and enough():
                    self.show.say(f"going by {len(done)} of {len(kept_out)} answers: the time is over")
                    return
                kinds = sets if kept_out[i] else [name for name in SEARCHED if name in sets]
                yield i, [NOTHING, *(layers for kind in kinds for layers in sets[kind])]

        try:
            for i in self.measure.each(wanted(), self.plan.max_tokens):
                done.append(i)
                self.show.bar("cost of each level", len(done), len(kept_out))
        except KeyboardInterrupt:
            if not enough():
                raise
            self.show.say(f"interrupted: going by the {len(done)} prompts measured so far")
            self._stopped = True
        self.store.save()
        return replace(self._measured(sorted(done), orders, levels, sets, kept_out, searched), given=tuple(given))

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
            numbers=tuple(done),
            n_answers=len(self.store.answered),
        )
