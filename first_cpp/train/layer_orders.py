"""Before training: the order of layers that a fixed set, or the routers of each task, start from."""

from __future__ import annotations

import functools
import math
import random
from collections import defaultdict
from collections.abc import Callable, Sequence

from torch import Tensor

from .batch import Batch, collate
from .examples import Example, draw, micro_batches
from .fit_routers import fit_routers
from .model import decoder_layers
from .order_search import losses_by_order, skip_order
from .run_progress import FITTING, ORDERS, Counter, RunProgress
from .settings import order_to_find
from .torch_block_influence import influence_order
from .trainer import Trainer

N_TOKENS, MOST_EXAMPLES = 640, 96
"""An order is searched on so many answer tokens: short answers need more examples to tell layers apart."""
N_FITTED = 256
"""Prompts of each task that routers are fitted on: its order is to be recognised on prompts never seen."""
STANDARD_ERRORS = 2.0
"""By so many a task's own order is to be better than the shared one: it was chosen by the same examples."""


def start_orders(trainer: Trainer, start: str | None, initialised: bool, progress: RunProgress | None = None) -> None:
    """Find the order of layers that the run needs, if any, and start the routers or the fixed set from it.

    `trainer.orders` holds it, by task. start, initialised: as in `order_to_find`. progress: of the whole run. Of several
    processes the main one searches.
    """
    progress = progress or RunProgress(shown=trainer.processes.is_main)
    kind = order_to_find(trainer.settings.layers, start, initialised, trainer.settings.max_share)
    if kind is None:
        return

    def found() -> tuple[dict[str, list[int]], list[Tensor]]:
        orders = _find_and_fit(trainer, kind, progress)
        return orders, [p.detach().cpu() for p in trainer.routed.bank.parameters()]

    trainer.orders, routers = trainer.processes.from_main(found)
    for p, value in zip(trainer.routed.bank.parameters(), routers, strict=True):
        p.data.copy_(value)
    trainer.objective.order = next(iter(trainer.orders.values()))
    trainer.save()  # a search takes minutes: a run killed after it goes on from here


def _find_and_fit(trainer: Trainer, kind: str, progress: RunProgress) -> dict[str, list[int]]:
    """The orders by task, the routers started from them."""
    layers, pool, seed = trainer.settings.layers, trainer.search_examples, trainer.settings.seed
    by_task = layers == "routers" and kind == "search"
    samples = sample_by_task(pool, seed) if by_task else {"all": draw(pool, MOST_EXAMPLES, seed)}
    n_orders = len(samples) + (len(samples) > 1)
    tried = Counter(progress.begin(ORDERS), n_orders * (trainer.objective.n_layer + _n_searched(trainer)))
    find = functools.partial(_find_shown, trainer, kind, progress, tried)
    orders = {task: find(task or "the task", examples) for task, examples in samples.items()}
    if len(orders) > 1:
        shared = find("all tasks", draw(pool, MOST_EXAMPLES, seed))
        say = progress.say
        orders = {task: own_or_shared(trainer, task, own, shared, samples[task], say) for task, own in orders.items()}
    prompts = draw(pool, N_FITTED * len(orders), seed)
    fit_routers(trainer, orders, prompts, Counter(progress.begin(FITTING), len(prompts)))
    return orders


def own_or_shared(
    trainer: Trainer, task: str, own: list[int], shared: list[int], examples: Sequence[Example], say: Callable[[str], object]
) -> list[int]:
    """A task's own order where that is surely better than the one for all tasks. say: called with a line for the user."""
    gain, error = gain_of(trainer, own, shared, examples) if own != shared else (0.0, 0.0)
    taken = own if gain > STANDARD_ERRORS * error else shared
    which = "its own order" if taken is own else "the order for all tasks"
    say(f"{task or 'the task'} takes {which}: its own gains {gain:.3f} +- {error:.3f}")
    return taken


def _find_shown(
    trainer: Trainer, kind: str, progress: RunProgress, tried: Counter, name: str, examples: Sequence[Example]
) -> list[int]:
    progress.word(f"ordering the layers by {kind} for {name}, on {len(examples)} examples")
    return find_order(trainer, kind, examples, tried)


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


def _n_searched(trainer: Trainer) -> int:
    """Layers whose order is searched: half of them, or as many as training skips."""
    n_layer = trainer.objective.n_layer
    return min(n_layer - 1, round(max(trainer.settings.max_share, 0.5) * n_layer))


def find_order(
    trainer: Trainer, kind: str, examples: Sequence[Example], advance: Callable[[], object] = lambda: None
) -> list[int]:
    """All layers in the order of skipping, the first ones cost the least. advance: for a progress bar."""
    with trainer.autocast():
        if kind == "influence":
            return influence_order(trainer.lora, decoder_layers(trainer.lora), examples, trainer.processes.device)
        distill = trainer.settings.distill
        return skip_order(trainer.routed, _answer_batches(trainer, examples), _n_searched(trainer), distill, advance)


def gain_of(trainer: Trainer, own: Sequence[int], shared: Sequence[int], examples: Sequence[Example]) -> tuple[float, float]:
    """How much lower the loss of the examples is with the first order than with the second, and its standard error.

    The mean with a quarter, half and three quarters of the searched layers skipped.
    """
    counts = [math.ceil(_n_searched(trainer) * part) for part in (0.25, 0.5, 0.75)]
    batches, distill = _answer_batches(trainer, examples), trainer.settings.distill
    with trainer.autocast():
        with_own, with_shared = losses_by_order(trainer.routed, batches, [own, shared], counts, distill)  # [n examples] each
    gains = with_shared - with_own
    return float(gains.mean()), float(gains.std()) / math.sqrt(len(gains)) if len(gains) > 1 else math.inf


def _answer_batches(trainer: Trainer, examples: Sequence[Example]) -> list[Batch]:
    """Small batches of answers of similar length, for little padding: answers are read a hundred times."""
    by_length = sorted(examples, key=lambda one: (len(one.response), len(one.prompt)))
    eights = [by_length[i : i + 8] for i in range(0, len(by_length), 8)]
    groups = [group for eight in eights for group in micro_batches(eight, trainer.settings.part_tokens)]
    return [trainer.to_device(collate(group)) for group in groups]
