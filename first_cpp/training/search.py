"""An order of the layers found by search: those that answers miss least, one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from .objective import Lesson
from .rule import Batch, Prompts, Routed


@torch.no_grad()
def removal_order(
    routed: Routed, batches: Iterable[Batch], most: int, distill: float = 0.0, advance: Callable[[], object] = lambda: None
) -> list[int]:
    """All layers, in the order in which leaving them out costs the least.

    Greedy: to the layers left out so far comes the one without which the loss of the answers is lowest, cross entropy and
    `distill` times KL to the dense output, up to `most` layers; the others follow by what each costs alone. Lazy: what a layer
    adds to the loss grows with the layers left out, so it is tried again only when what it added before would make it the next.
    advance: called after each layer tried alone or chosen.
    """
    prompts = [routed.read(batch) for batch in batches]
    lessons = [Lesson(one.batch, routed.logits(one) if distill > 0 else None, distill) for one in prompts]
    before = mean_loss(routed, prompts, lessons, [])
    alone = dict[int, float]()
    for layer in range(prompts[0].keep.shape[1]):
        alone[layer] = mean_loss(routed, prompts, lessons, [layer]) - before
        advance()
    added, chosen = dict(alone), list[int]()
    while len(chosen) < most:
        fresh = set(alone) if not chosen else set[int]()
        while (layer := min(added, key=added.__getitem__)) not in fresh:
            added[layer] = mean_loss(routed, prompts, lessons, [*chosen, layer]) - before
            fresh.add(layer)
        before += added.pop(layer)
        chosen.append(layer)
        advance()
    return [*chosen, *sorted(added, key=alone.__getitem__)]


@torch.no_grad()
def mean_loss(routed: Routed, prompts: Sequence[Prompts], lessons: Sequence[Lesson], left_out: Sequence[int]) -> float:
    """Mean loss of the answers with the same layers left out for all."""
    losses: list[Tensor] = []
    for one, lesson in zip(prompts, lessons, strict=True):
        run = torch.ones_like(one.keep)
        run[:, list(left_out)] = 0
        losses.append(lesson.loss(routed.logits(one, run)))
    return float(torch.cat(losses).mean())
