"""An order of the layers found by search: next is always the layer whose skipping costs answers the least."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..runtime.layer_search import Costs, removal_order
from .batch import Batch
from .losses import AnswerLoss
from .routed_model import Prefilled, RoutedModel


@torch.no_grad()
def skip_order(
    routed: RoutedModel, batches: Iterable[Batch], most: int, distill: float = 0.0, advance: Callable[[], object] = lambda: None
) -> list[int]:
    """All layers, in the order in which skipping them costs the least.

    As `runtime.layer_search.removal_order` says, by the loss of the answers: cross entropy and `distill` times KL to the dense
    output. most: layers that are searched for, the others follow by what each costs alone. advance: called after each layer
    tried alone or chosen.
    """
    skipped = GrowingSet(routed, *prefilled_with_losses(routed, batches, distill))
    layers = range(len(routed.layers))
    return removal_order(skipped, layers, most, chosen=lambda _layer: advance(), tried=advance)


@torch.no_grad()
def losses_by_order(
    routed: RoutedModel, batches: Iterable[Batch], orders: Sequence[Sequence[int]], counts: Sequence[int], distill: float = 0.0
) -> Tensor:
    """The loss of each example's answer with the first layers of each order skipped: [len(orders), n examples].

    The mean over `counts`, the numbers of skipped layers.
    """
    prefilled, losses = prefilled_with_losses(routed, batches, distill)
    found = [
        torch.stack([loss(routed.answer_logits(one, gate_of(order[:count], one))) for count in counts]).mean(0)  # [b]
        for order in orders
        for one, loss in zip(prefilled, losses, strict=True)
    ]
    return torch.cat(found).view(len(orders), -1)


def prefilled_with_losses(
    routed: RoutedModel, batches: Iterable[Batch], distill: float
) -> tuple[list[Prefilled], list[AnswerLoss]]:
    """The batches, their prompts read once, and the losses of their answers. distill: weight of KL to the dense output."""
    prefilled = [routed.prefill(batch) for batch in batches]
    return prefilled, [AnswerLoss(one.batch, routed.answer_logits(one) if distill > 0 else None, distill) for one in prefilled]


def gate_of(skipped: Sequence[int], prefilled: Prefilled) -> Tensor:
    """The gate by which all answers skip the same layers: [b, n_layer]."""
    gate = torch.ones_like(prefilled.keep)
    gate[:, list(skipped)] = 0
    return gate


LayerInputs = list[Tensor]
"""The input of every layer: float [b, t, n_embd]."""


class GrowingSet:
    """The `Skipping` of a search: layers that all answers skip, which grow by one at a time.

    The layers before the one that is tried are not computed: their outputs are known from the last pass.
    """

    def __init__(self, routed: RoutedModel, prefilled: Sequence[Prefilled], losses: Sequence[AnswerLoss]) -> None:
        self.routed, self.prefilled, self.losses = routed, prefilled, losses
        self.layers: list[int] = []
        self._inputs: list[LayerInputs] = [[] for _ in prefilled]  # by batch
        self._costs, self._inputs = self._read([], 0)
        self.n_examples = len(self._costs)  # of all batches, which are always tried together
        self._tried: tuple[int, Costs, list[LayerInputs]] | None = None

    def cost(self, n: int) -> Costs:
        """The losses of the answers with the layers skipped so far, float64 [n_examples]."""
        return self._costs[:n]

    def without(self, layer: int, n: int) -> Costs:
        """Their losses with one more layer skipped."""
        costs, inputs = self._read([*self.layers, layer], layer)
        self._tried = layer, costs, inputs
        return costs[:n]

    def skip(self, layer: int) -> None:
        """Skip one more layer from now on."""
        if self._tried is None or self._tried[0] != layer:
            self.without(layer, self.n_examples)
        assert self._tried is not None
        _, self._costs, self._inputs = self._tried
        self.layers.append(layer)
        self._tried = None

    def _read(self, skipped: Sequence[int], first: int) -> tuple[Costs, list[LayerInputs]]:
        """Losses and inputs of all layers, computed from layer `first` on."""
        losses, found = list[Tensor](), list[LayerInputs]()
        for one, loss, known in zip(self.prefilled, self.losses, self._inputs, strict=True):
            gate = gate_of(skipped, one)
            reusable = one.cache is not None  # without one, the inputs are of whole prompts, too many to be kept
            with computing_from(self.routed, first if reusable else 0, known) as inputs:
                losses.append(loss(self.routed.answer_logits(one, gate)))
            found.append(inputs if reusable else [])
        return torch.cat(losses).double().cpu().numpy(), found


@contextmanager
def computing_from(routed: RoutedModel, first: int, known: LayerInputs) -> Iterator[LayerInputs]:
    """The model computes no layer before `first`, whose input is known. Yields the inputs of all layers, known and new."""
    layers, inputs = routed.layers, known[:first]

    def start(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return ((known[first], *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": known[first]})

    def keep(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _output: Any) -> None:
        inputs.append(args[0] if args else kwargs["hidden_states"])

    with ExitStack() as stack:
        for layer in layers[:first]:
            stack.enter_context(identity(layer, routed.output_in_tuple))
        if first:
            stack.callback(layers[first].register_forward_pre_hook(start, with_kwargs=True).remove)
        for layer in layers[first:]:
            stack.callback(layer.register_forward_hook(keep, with_kwargs=True).remove)
        yield inputs


@contextmanager
def identity(layer: nn.Module, in_tuple: bool) -> Iterator[None]:
    """The layer returns its input. in_tuple: as the only element of a tuple."""
    forward = layer.forward

    def same(hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Any:
        return (hidden_states,) if in_tuple else hidden_states

    layer.forward = same
    try:
        yield
    finally:
        layer.forward = forward
