"""The loss of validation data by task and skip share, and the keep scores of its prompts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from .batch import Batch, collate
from .examples import Example, batches
from .losses import answer_cross_entropy
from .objective import Objective
from .processes import Processes
from .routed_model import RoutedModel

SHARES = (0.0, 0.1, 0.25, 0.4)
"""Skip shares that are validated."""

Losses: TypeAlias = dict[str, dict[float, float]]
"""Mean loss by task and skip share; under "mean" the mean over tasks."""
Scores: TypeAlias = dict[str, Tensor]
"""Keep scores of prompts by task: [n prompts, n_layer]."""


@torch.no_grad()
def validate(
    objective: Objective,
    examples: Sequence[Example],
    batch_size: int,
    to_device: Callable[[Batch], Batch],
    processes: Processes,
    step: Callable[[int, int], object] = lambda _done, _total: None,
) -> tuple[Losses, Scores]:
    """Of each task, the mean answer cross entropy at each of `validated_shares`, and the keep scores.

    Each process reads some of the batches; all know the result. step: for a progress bar.
    """
    shares, groups = validated_shares(objective), batches(examples, batch_size, 0, 0)
    rows, own = list[tuple[Tensor, list[list[float]]]](), processes.own(groups)
    for group in own:
        rows.append(_read(objective, to_device(collate(group)), shares))
        step(len(rows), len(own))
    found: dict[str, dict[float, list[float]]] = defaultdict(lambda: {share: [] for share in shares})
    scores: dict[str, list[Tensor]] = defaultdict(list)
    for group, (keep, losses) in zip(groups, processes.gathered(rows), strict=True):
        for i, example in enumerate(group):
            scores[example.task].append(keep[i])  # [n_layer]
            for share, of_share in zip(shares, losses, strict=True):
                found[example.task][share].append(of_share[i])
    return _means(found, shares), {task: torch.stack(rows) for task, rows in scores.items()}


def _read(objective: Objective, batch: Batch, shares: Sequence[float]) -> tuple[Tensor, list[list[float]]]:
    """Of a batch, the keep scores [b, n_layer], and by share the losses of its answers."""
    prefilled, losses = objective.routed.prefill(batch), list[list[float]]()
    for share in shares:
        gate = (~objective.chosen_layers(prefilled, share)).float() if share else None  # [b, n_layer]
        losses.append(answer_cross_entropy(objective.routed.answer_logits(prefilled, gate), prefilled.batch).tolist())
    return prefilled.keep.cpu(), losses


def validated_shares(objective: Objective) -> tuple[float, ...]:
    """Those of SHARES that a run validates: for a dense one 0 alone, for a budget up to its largest level."""
    most = 0.0 if objective.settings.max_share == 0 else 1.0 if objective.budget is None else objective.budget.most
    return tuple(share for share in SHARES if share <= most)


def _means(found: dict[str, dict[float, list[float]]], shares: Sequence[float]) -> Losses:
    means = {task: {share: sum(one) / len(one) for share, one in by_share.items()} for task, by_share in sorted(found.items())}
    mean = {share: sum(task[share] for task in means.values()) / len(means) for share in shares}
    return {"mean": mean, **means}


def by_share(losses: dict[float, float]) -> str:
    """Losses by share, in one line.

    >>> by_share({0.0: 1.5, 0.25: 1.75})
    '0: 1.500, 0.25: 1.750'
    """
    return ", ".join(f"{share:g}: {loss:.3f}" for share, loss in losses.items())


@torch.no_grad()
def prompt_scores(
    routed: RoutedModel, examples: Sequence[Example], batch_size: int, to_device: Callable[[Batch], Batch]
) -> Scores:
    """The keep scores of each task's prompts."""
    found: dict[str, list[Tensor]] = defaultdict(list)
    for group in batches(examples, batch_size, 0, 0):
        for example, keep in zip(group, routed.scores(to_device(collate(group))).cpu(), strict=True):
            found[example.task].append(keep)  # [n_layer]
    return {task: torch.stack(rows) for task, rows in found.items()}
