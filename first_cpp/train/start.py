"""Where routers start: an order of the layers for each task, found by search, or block influence for all."""

from __future__ import annotations

import functools
import math
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .data import Example, draw, in_parts
from .hidden_influence import influence_order
from .loop import Trainer
from .model import decoder_layers
from .rule import Batch, Routed, collate
from .search import costs, removal_order

if TYPE_CHECKING:
    from rich.progress import Progress

N_TOKENS, MOST_EXAMPLES = 640, 96
"""An order is found on so many answer tokens: short answers need more examples to tell layers apart."""
N_TAUGHT = 256
"""Prompts of each task that routers learn its order from: it is to be told from the others on prompts never seen."""
SURE = 2.0
"""Standard errors by which a task's own order is to be better than the one for all: it was chosen by the same examples."""


def kind_of_order(layers: str | Sequence[int], start: str | None, initialised: bool, max_share: float) -> str | None:
    """How the layers are ordered before training: "search" or "influence"; None where no order is needed.

    layers, max_share: as in Settings. start: "search", "influence" or None for what the run needs. initialised: the routers are
    an earlier run's, and stay unless `start` says otherwise.
    """
    if max_share == 0 or layers not in ("routers", "search", "influence"):
        return None
    if layers != "routers":
        return str(layers)
    return start or (None if initialised else "search")


def begin(trainer: Trainer, start: str | None, initialised: bool, quiet: bool = True) -> None:
    """Give routers, or the fixed set that needs one, an order of the layers to start from: `trainer.orders`, by task.

    start, initialised: as in kind_of_order. quiet: no progress bar.
    """
    layers, pool = trainer.s.layers, trainer.order_on
    kind = kind_of_order(layers, start, initialised, trainer.s.max_share)
    if kind is None:
        return
    by_task = layers == "routers" and kind == "search"
    samples = sample_by_task(pool, trainer.s.seed) if by_task else {"all": draw(pool, MOST_EXAMPLES, trainer.s.seed)}
    with trainer.progress(quiet) as progress:
        find = functools.partial(_find_shown, trainer, kind, progress)
        orders = {task: find(task or "the task", examples) for task, examples in samples.items()}
        if len(orders) > 1:
            shared = find("all tasks", draw(pool, MOST_EXAMPLES, trainer.s.seed))
            say = progress.console.print
            orders = {task: _own_or_shared(trainer, task, own, shared, samples[task], say) for task, own in orders.items()}
        prompts = draw(pool, N_TAUGHT * len(orders), trainer.s.seed)
        bar = progress.add_task("teaching routers their orders", total=len(prompts))
        teach_orders(trainer, orders, prompts, functools.partial(progress.advance, bar))
    trainer.objective.order = next(iter(orders.values()))
    trainer.orders = orders
    trainer.save()  # a search takes minutes: a run killed after it goes on from here


def _own_or_shared(
    trainer: Trainer, task: str, own: list[int], shared: list[int], examples: Sequence[Example], say: Callable[[str], object]
) -> list[int]:
    """A task's own order where that is surely better than the one for all."""
    gain, error = gain_of(trainer, own, shared, examples) if own != shared else (0.0, 0.0)
    taken = own if gain > SURE * error else shared
    which = "its own order" if taken is own else "the order for all tasks"
    say(f"{task or 'the task'} takes {which}: its own gains {gain:.3f} +- {error:.3f}")
    return taken


def _find_shown(trainer: Trainer, kind: str, progress: Progress, name: str, examples: Sequence[Example]) -> list[int]:
    words = f"ordering the layers by {kind} for {name}, on {len(examples)} examples"
    bar = progress.add_task(words, total=trainer.objective.n_layer + _most(trainer) if kind == "search" else None)
    return find_order(trainer, kind, examples, functools.partial(progress.advance, bar))


def sample(examples: Sequence[Example], seed: int) -> list[Example]:
    """Examples drawn at random until their answers have N_TOKENS tokens, at most MOST_EXAMPLES."""
    found: list[Example] = []
    for example in random.Random(seed).sample(list(examples), min(MOST_EXAMPLES, len(examples))):
        found.append(example)
        if sum(len(one.response) for one in found) >= N_TOKENS:
            break
    return found


def sample_by_task(examples: Sequence[Example], seed: int) -> dict[str, list[Example]]:
    """Some examples of every task, by its name."""
    tasks: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        tasks[example.task].append(example)
    return {task: sample(tasks[task], seed) for task in sorted(tasks)}


def _most(trainer: Trainer) -> int:
    """So many layers are searched: half of them, or as many as training leaves out."""
    n_layer = trainer.objective.n_layer
    return min(n_layer - 1, round(max(trainer.s.max_share, 0.5) * n_layer))


def find_order(
    trainer: Trainer, kind: str, examples: Sequence[Example], advance: Callable[[], object] = lambda: None
) -> list[int]:
    """All layers in the order in which they are left out, the first ones cost the least. advance: for a progress bar."""
    with trainer.autocast():
        if kind == "influence":
            return influence_order(trainer.lora, decoder_layers(trainer.lora), examples, trainer.accelerator.device)
        return removal_order(trainer.routed, _groups(trainer, examples), _most(trainer), trainer.s.distill, advance)


def gain_of(trainer: Trainer, own: Sequence[int], shared: Sequence[int], examples: Sequence[Example]) -> tuple[float, float]:
    """How much lower the loss of the examples is with the first order than with the second, and its standard error.

    The mean with a quarter, half and three quarters of the searched layers left out.
    """
    depths = [math.ceil(_most(trainer) * part) for part in (0.25, 0.5, 0.75)]
    with trainer.autocast():
        with_own, with_shared = costs(trainer.routed, _groups(trainer, examples), [own, shared], depths, trainer.s.distill)
    gains = with_shared - with_own
    return float(gains.mean()), float(gains.std()) / math.sqrt(len(gains)) if len(gains) > 1 else math.inf


def _groups(trainer: Trainer, examples: Sequence[Example]) -> list[Batch]:
    """Small batches of answers of similar length, for little padding: answers are read a hundred times."""
    by_length = sorted(examples, key=lambda one: (len(one.response), len(one.prompt)))
    eights = [by_length[i : i + 8] for i in range(0, len(by_length), 8)]
    groups = [group for eight in eights for group in in_parts(eight, trainer.s.part_tokens)]
    return [trainer.to_device(collate(group)) for group in groups]


def teach_orders(
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
        for layer, logit in enumerate(scores_in(one).logit()):
            bank.start(layer, torch.zeros_like(bank.weight[layer]), logit)
        advance(len(prompts))
        return
    by_length = sorted(prompts, key=lambda example: len(example.prompt))
    wanted = torch.stack([scores_in(orders[example.task]).logit() for example in by_length])
    inputs = list[Tensor]()
    for group in in_parts(by_length, trainer.s.part_tokens):
        with trainer.autocast():
            inputs.append(mean_inputs(trainer.routed, trainer.to_device(collate(group))))
        advance(len(group))
    for layer, x in enumerate(torch.cat(inputs).unbind(1)):
        bank.start(layer, *ridge(x, wanted[:, layer]))


def scores_in(order: Sequence[int]) -> Tensor:
    """Scores that rise evenly from 0.2 to 0.8 in this order of all layers: [n_layer]."""
    scores = torch.empty(len(order))
    scores[list(order)] = torch.linspace(0.2, 0.8, len(order))
    return scores


def ridge(x: Tensor, y: Tensor, penalty: float = 0.1) -> tuple[Tensor, Tensor]:
    """Weights [d] and bias that give y [n] from x [n, d]; penalty: part of the mean squared length of centred rows."""
    x, y = x.double(), y.double()
    centred = x - x.mean(0)
    gram = centred @ centred.T
    strength = penalty * gram.diagonal().mean() + 1e-12
    weight = centred.T @ torch.linalg.solve(gram + strength * torch.eye(len(x)), y - y.mean())
    return weight.float(), (y.mean() - x.mean(0) @ weight).float()


@torch.no_grad()
def mean_inputs(routed: Routed, batch: Batch) -> Tensor:
    """The mean over each prompt of what each router reads: float32 [b, n_layer, n_embd]."""
    found: list[Tensor] = []
    mask = batch.prompt_mask

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(routed.bank.mean_input(args[0] if args else kwargs["hidden_states"], mask).cpu())

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
    return torch.stack(found, dim=1)
