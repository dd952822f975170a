"""An order of the layers found by search: those that answers miss least, one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

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
    answers = Answers(routed, *lessons_of(routed, batches, distill))
    alone = dict[int, float]()
    for layer in range(len(routed.layers)):
        alone[layer] = answers.without(layer) - answers.loss
        advance()
    added, chosen = dict(alone), list[int]()
    while len(chosen) < most:
        fresh = set(alone) if not chosen else set[int]()
        while (layer := min(added, key=added.__getitem__)) not in fresh:
            added[layer] = answers.without(layer) - answers.loss
            fresh.add(layer)
        answers.leave_out(layer)
        del added[layer]
        chosen.append(layer)
        advance()
    return [*chosen, *sorted(added, key=alone.__getitem__)]


@torch.no_grad()
def costs(
    routed: Routed, batches: Iterable[Batch], orders: Sequence[Sequence[int]], depths: Sequence[int], distill: float = 0.0
) -> Tensor:
    """The loss of each example's answer without the first layers of each order, mean over `depths`, as many as are left out:
    [len(orders), n]."""
    prompts, lessons = lessons_of(routed, batches, distill)
    found = [
        torch.stack([lesson.loss(routed.logits(one, without(order[:depth], one))) for depth in depths]).mean(0)
        for order in orders
        for one, lesson in zip(prompts, lessons, strict=True)
    ]
    return torch.cat(found).view(len(orders), -1)


def lessons_of(routed: Routed, batches: Iterable[Batch], distill: float) -> tuple[list[Prompts], list[Lesson]]:
    """Prompts, read once, and what their answers are to predict. distill: weight of KL to the dense output."""
    prompts = [routed.read(batch) for batch in batches]
    return prompts, [Lesson(one.batch, routed.logits(one) if distill > 0 else None, distill) for one in prompts]


def without(left_out: Sequence[int], prompts: Prompts) -> Tensor:
    """1 for the layers that all answers run, 0 for those left out: [b, n_layer]."""
    run = torch.ones_like(prompts.keep)
    run[:, list(left_out)] = 0
    return run


Inputs = list[Tensor]
"""Of every layer: float [b, t, n_embd]."""


class Answers:
    """Answers read with the same layers left out for all, to be read with one more.

    Before that one, nothing changes: its input is known from the last reading, and the layers before it are not computed.

    loss: the mean loss with the layers left out so far.
    """

    def __init__(self, routed: Routed, prompts: Sequence[Prompts], lessons: Sequence[Lesson]) -> None:
        self.routed, self.prompts, self.lessons = routed, prompts, lessons
        self.left_out: list[int] = []
        self._inputs: list[Inputs] = [[] for _ in prompts]
        self.loss, self._inputs = self._read([], 0)
        self._tried: tuple[int, float, list[Inputs]] | None = None

    def without(self, layer: int) -> float:
        """The loss with one more layer left out."""
        loss, inputs = self._read([*self.left_out, layer], layer)
        self._tried = layer, loss, inputs
        return loss

    def leave_out(self, layer: int) -> None:
        """Leave one more layer out from now on."""
        if self._tried is None or self._tried[0] != layer:
            self.without(layer)
        assert self._tried is not None
        _, self.loss, self._inputs = self._tried
        self.left_out.append(layer)
        self._tried = None

    def _read(self, left_out: Sequence[int], first: int) -> tuple[float, list[Inputs]]:
        """Mean loss and inputs of all layers, read from layer `first` on."""
        losses, found = list[Tensor](), list[Inputs]()
        for one, lesson, known in zip(self.prompts, self.lessons, self._inputs, strict=True):
            run = without(left_out, one)
            again = one.cache is not None  # without one, the inputs are of whole prompts, too many to be kept
            with read_from(self.routed, first if again else 0, known) as inputs:
                losses.append(lesson.loss(self.routed.logits(one, run)))
            found.append(inputs if again else [])
        return float(torch.cat(losses).mean()), found


@contextmanager
def read_from(routed: Routed, first: int, known: Inputs) -> Iterator[Inputs]:
    """The model computes no layer before `first`, whose input is known. Gives the inputs of all layers, known and read."""
    layers, inputs = routed.layers, known[:first]

    def start(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return ((known[first], *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": known[first]})

    def keep(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _output: Any) -> None:
        inputs.append(args[0] if args else kwargs["hidden_states"])

    with ExitStack() as stack:
        for layer in layers[:first]:
            stack.enter_context(passing(layer, routed.tuples))
        if first:
            stack.callback(layers[first].register_forward_pre_hook(start, with_kwargs=True).remove)
        for layer in layers[first:]:
            stack.callback(layer.register_forward_hook(keep, with_kwargs=True).remove)
        yield inputs


@contextmanager
def passing(layer: nn.Module, in_tuple: bool) -> Iterator[None]:
    """The layer gives back what it is given."""
    forward = layer.forward

    def same(hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Any:
        return (hidden_states,) if in_tuple else hidden_states

    layer.forward = same
    try:
        yield
    finally:
        layer.forward = forward
