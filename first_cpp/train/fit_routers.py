"""Routers that start from an order of layers for each task: ridge regression on what the routers read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from .batch import Batch, collate
from .examples import Example, micro_batches
from .routed_model import RoutedModel
from .trainer import Trainer


def fit_routers(
    trainer: Trainer,
    orders: dict[str, list[int]],
    prompts: Sequence[Example],
    advance: Callable[[int], object] = lambda _n: None,
) -> None:
    """Start the routers so that prompts like a task's score the layers from 0.2 to 0.8 in its order.

    Ridge regression of the scores' logits on the mean input of each router; with one order for all, zero weights and the
    logits as biases. advance: called with the number of prompts read, for a progress bar.
    """
    bank, one = trainer.routed.bank, next(iter(orders.values()))
    if all(order == one for order in orders.values()):
        for layer, logit in enumerate(scores_in_order(one).logit()):
            bank.set_router(layer, torch.zeros_like(bank.weight[layer]), logit)
        advance(len(prompts))
        return
    by_length = sorted(prompts, key=lambda example: len(example.prompt))
    targets = torch.stack([scores_in_order(orders[example.task]).logit() for example in by_length])  # [n, n_layer]
    inputs = list[Tensor]()
    for group in micro_batches(by_length, trainer.settings.part_tokens):
        with trainer.autocast():
            inputs.append(mean_inputs(trainer.routed, trainer.to_device(collate(group))))  # [b, n_layer, n_embd]
        advance(len(group))
    for layer, x in enumerate(torch.cat(inputs).unbind(1)):  # x: [n, n_embd]
        bank.set_router(layer, *ridge(x, targets[:, layer]))


def scores_in_order(order: Sequence[int]) -> Tensor:
    """Scores that rise evenly from 0.2 to 0.8 in this order of all layers: [n_layer].

    >>> scores_in_order([2, 0, 1])
    tensor([0.5000, 0.8000, 0.2000])
    """
    scores = torch.empty(len(order))
    scores[list(order)] = torch.linspace(0.2, 0.8, len(order))
    return scores


def ridge(x: Tensor, y: Tensor, penalty: float = 0.1) -> tuple[Tensor, Tensor]:
    """Weights [d] and bias that give y [n] from x [n, d]; penalty: part of the mean squared length of centred rows."""
    x, y = x.double(), y.double()
    centred = x - x.mean(0)  # [n, d]
    gram = centred @ centred.T  # [n, n]
    strength = penalty * gram.diagonal().mean() + 1e-12
    weight = centred.T @ torch.linalg.solve(gram + strength * torch.eye(len(x)), y - y.mean())  # [d]
    return weight.float(), (y.mean() - x.mean(0) @ weight).float()


def mean_inputs(routed: RoutedModel, batch: Batch) -> Tensor:
    """The mean over each prompt of what each router reads: float32 [b, n_layer, n_embd]."""
    return prompt_inputs(routed, batch)[:, : len(routed.layers)]


@torch.no_grad()
def prompt_inputs(routed: RoutedModel, batch: Batch) -> Tensor:
    """What each router reads of each prompt: the means, and then the last positions: float32 [b, 2 * n_layer, n_embd]."""
    means, ends = list[Tensor](), list[Tensor]()  # by layer: [b, n_embd]
    mask = batch.prompt_mask
    rows, last = torch.arange(len(mask), device=mask.device), (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1)

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        means.append(routed.bank.mean_input(hidden, mask).cpu())
        ends.append(routed.bank.normed(hidden[rows, last]).cpu())

    with ExitStack() as stack:
        for layer in routed.layers:
            stack.callback(layer.register_forward_pre_hook(hook, with_kwargs=True).remove)
        routed.model(
            input_ids=batch.ids[:, : batch.split],
            attention_mask=mask.long(),
            position_ids=batch.positions[:, : batch.split],
            use_cache=False,
            logits_to_keep=1,
        )
    return torch.stack([*means, *ends], dim=1)
