"""Which layers an answer skips: what is asked for, what was read of the prompt, what the model allows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..gguf.routers import Routers
from ..skip import Skip, choose_layers, layers_for_share, skip_in_words
from .layers import Layers
from .predicted_cost import Prediction, in_words, predict
from .prompt_probes import log_costs

UNREAD = "a part of the prompt came without scores (images, or unnamed hidden states)"


@dataclass(frozen=True)
class Choice:
    """keep: the mean keep score of each layer, where scores decided. skipped: ascending. why: in a few words.

    cost: what that is predicted to cost, nats per token; None where it is not. changed: the share of tokens that it is expected
    to change. level: the level taken, 0 for nothing; None where none was.
    """

    keep: tuple[float, ...] | None
    skipped: tuple[int, ...]
    why: str
    cost: float | None = None
    level: int | None = None
    changed: float | None = None


@dataclass(frozen=True)
class Setting:
    """skip: as checked. tolerance: what one more skipped layer may cost, as predicted, where "auto" is set: nats per token."""

    skip: Skip
    tolerance: float

    def reads_prompt(self, routers: Routers | None) -> bool:
        """Whether the routers, or the cost probes, are asked."""
        if self.skip == "auto":
            return routers is not None and (routers.skip > 0 if routers.cost is None else self.tolerance > 0)
        return isinstance(self.skip, float) and self.skip > 0


@dataclass(frozen=True)
class PromptMeans:
    """Means over the prompt's positions. keep: of each layer's scores, empty where whole sets are chosen. costs: of each level,
    None without cost probes."""

    keep: tuple[float, ...]
    costs: Prediction | None


def choose(
    setting: Setting, routers: Routers | None, layers: Layers, n_deciding: int, scores: npt.NDArray[np.float32] | None
) -> Choice:
    """What a prompt's answer skips.

    n_deciding: the prompt tokens that decide. scores: what was read at each, float32 [n_deciding, n_columns] as
    `prompt_probes` has them, NaN for tokens that have none; shorter, or None, where they were not read.
    """
    skip = setting.skip
    if isinstance(skip, tuple) and skip:
        return _fixed(skip, routers, layers)
    if not setting.reads_prompt(routers):
        return Choice(None, (), f"{_why_nothing(setting, routers)}: nothing is skipped")
    if layers.dense_because:
        return Choice(None, (), f"dense: {layers.dense_because}")
    assert routers is not None
    means = _means(routers, n_deciding, scores)
    if routers.cost is not None and skip == "auto":
        return Choice(None, (), f"dense: {UNREAD}") if means is None else _budgeted(setting.tolerance, routers, layers, means)
    share = routers.skip if skip == "auto" else skip
    assert isinstance(share, float)
    return _share(share, routers, layers, means)


def _why_nothing(setting: Setting, routers: Routers | None) -> str:
    if setting.skip != "auto":
        return f"skip {skip_in_words(setting.skip)}"
    if routers is None:
        return "no routers"
    return "skip auto" if routers.cost is None else f"tolerance {setting.tolerance:g}"


def _means(routers: Routers, n_deciding: int, scores: npt.NDArray[np.float32] | None) -> PromptMeans | None:
    """None where a part of the prompt was not read. Each prompt position counts the same; what probes read of the last position
    alone is that of the last one that decides."""
    if scores is None or len(scores) < n_deciding:
        return None
    text = scores[~np.isnan(scores).any(axis=1)].astype(np.float64)
    if not len(text):
        return None
    mean, n_keep = text.mean(axis=0), len(routers.bias)
    cost = routers.cost
    costs = None if cost is None else predict(cost, log_costs(cost, mean[n_keep:], text[-1, n_keep:]))
    return PromptMeans(tuple(mean[:n_keep].tolist()), costs)


def _share(share: float, routers: Routers, layers: Layers, means: PromptMeans | None) -> Choice:
    """That share of the layers."""
    count = layers_for_share(share, len(layers.unskippable))
    if routers.kind == "layers":
        if means is None:
            return Choice(None, (), f"dense: {UNREAD}")
        skipped, how = _lowest(means, count, routers, layers), "lowest keep scores"
    else:
        skipped, how = _searched(count, routers, layers), "the set for all prompts"
    few = f", only {len(skipped)} are skippable" if len(skipped) < count else ""
    why = f"{how}, share {share:g} asks for {count} of {len(layers.unskippable)} layers{few}"
    if means is None or means.costs is None:
        return Choice(means.keep if means else None, skipped, why)
    assert routers.cost is not None
    cost = means.costs.cost_of(len(skipped))
    level = None if cost is None else len(skipped)
    unmeasured = f"; what that costs is unknown: up to {max(routers.cost.levels)} layers were measured"
    expected = unmeasured if cost is None and count else "" if cost is None else f"; expected {in_words(routers.cost, cost)}"
    changed = None if cost is None else routers.cost.changed(cost)
    return Choice(means.keep or None, skipped, why + expected, cost, level, changed)


def _budgeted(tolerance: float, routers: Routers, layers: Layers, means: PromptMeans) -> Choice:
    """The level up to which each layer costs no more than the tolerance."""
    assert routers.cost is not None
    assert means.costs is not None
    costs, n_layer, keep = means.costs, len(layers.unskippable), means.keep or None
    index = costs.within(tolerance)
    level, cost = (costs.levels[0], costs.costs[0]) if index is None else (costs.levels[index], costs.costs[index])
    expected = f"expected {in_words(routers.cost, cost)}"
    # the tolerance is of one layer, so the cost beside it is too
    numbers = f"for each skipped layer: predicted cost {cost / level:.3g}, tolerance {tolerance:.3g} nats a token"
    if index is None:
        why = f"nothing is skipped: skipping {level} of {n_layer} layers is {expected} ({numbers})"
        return Choice(keep, (), why, 0.0, 0, 0.0)
    if routers.kind == "layers":
        skipped = _lowest(means, level, routers, layers)
    else:
        skipped = tuple(i for i in routers.cost.sets[costs.sets[index]].layers if not layers.unskippable[i])
    few = f", of which {len(skipped)} are skippable" if len(skipped) < level else ""
    why = f"skips {level} of {n_layer} layers{few}: {expected} ({numbers})"
    return Choice(keep, skipped, why, cost, level, routers.cost.changed(cost))


def _possible(routers: Routers, layers: Layers) -> list[bool]:
    return [ok and not why for ok, why in zip(routers.skippable, layers.unskippable, strict=True)]


def _lowest(means: PromptMeans, count: int, routers: Routers, layers: Layers) -> tuple[int, ...]:
    return choose_layers(means.keep, count / len(means.keep), _possible(routers, layers))


def _searched(count: int, routers: Routers, layers: Layers) -> tuple[int, ...]:
    """The level's set for all prompts; where there is no such level, the first layers of the order."""
    assert routers.cost is not None
    possible = _possible(routers, layers)
    if of_level := routers.cost.of_level(count):
        return tuple(layer for layer in routers.cost.sets[of_level[0]].layers if possible[layer])
    return tuple(sorted([layer for layer in routers.cost.order if possible[layer]][:count]))


def _fixed(asked: tuple[int, ...], routers: Routers | None, layers: Layers) -> Choice:
    if layers.dense_because:
        return Choice(None, (), f"dense: {layers.dense_because}")
    marked = () if routers is None else tuple(i for i in asked if not routers.skippable[i])
    stay = f", {list(marked)} stay: the router file marks them unskippable" if marked else ""
    return Choice(None, tuple(i for i in asked if i not in marked), f"fixed set{stay}")
