"""Trains with an idea that `first-cpp train` does not have, to measure what it would bring.

    python research/try_ideas.py IDEA OPTION ...

The options are those of `first-cpp train`. IDEA is one of

    alone         an order is by what each layer costs alone: it does not know which others are left out
    more          an order is searched on twice as many examples
    mixed         an order is searched on a task's examples and half as many of the other tasks
    known         orders that runs found are not searched: --orders RUN [RUN], tasks' own and that for all
    given         known orders are taken as they are: a task's own, surely better than that for all or not
    last-tokens   routers read the last 32 tokens of a prompt
    windows       routers read four windows of a prompt; a layer's score is that of the window that needs it most
    stand-ins     for a skipped layer stands a map of rank 16, started from a least-squares fit of the layer's update
    one-step      all passes over a batch's answers make one optimizer step
    borrow        half of the answers skip the layers that another prompt chose
    tails         the last tokens of a prompt are read as its answer is, to predict what the dense model does
    feed-forward  feed-forward blocks alone are skipped, as many as weigh what a share of the layers weighs
    curriculum    the largest share grows from 0 over the first half of the run
    all-weights   prompts pass gradients to every weight, not to their keys and values alone
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from first_cpp.train import command as train
from first_cpp.train import layer_orders, objective, result, router_bank, run_setup
from first_cpp.train import trainer as training_loop
from first_cpp.train.batch import Batch, collate
from first_cpp.train.examples import Example, draw
from first_cpp.train.fit_routers import fit_routers
from first_cpp.train.model import decoder_layers
from first_cpp.train.objective import Objective
from first_cpp.train.routed_model import RoutedModel
from first_cpp.train.router_bank import RouterBank
from first_cpp.train.trainer import Trainer

IDEAS = [
    "alone",
    "more",
    "mixed",
    "known",
    "given",
    "last-tokens",
    "windows",
    "stand-ins",
    "one-step",
    "borrow",
    "tails",
    "feed-forward",
    "curriculum",
    "all-weights",
]
RANK = 16
GROWN = 0.5
"""Part of a run over which a curriculum lets the shares grow."""
WINDOWS, LAST = 4, 32
LENT, TAIL = 64, 16


class LastTokens(RouterBank):
    """Scores of the last tokens of what is read, weighted as if they were all of it."""

    def mean_input(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return super().mean_input(hidden, last_of(mask))

    def score_sums(self, layer: int, hidden: Tensor, mask: Tensor) -> Tensor:
        last = last_of(mask)
        return super().score_sums(layer, hidden, last) * mask.sum(1) / last.sum(1).clamp(min=1)


def last_of(mask: Tensor) -> Tensor:
    """The last tokens of those masked: bool [b, t]."""
    return mask & (mask.flip(1).cumsum(1).flip(1) <= LAST)


class Windows(RouterBank):
    """The highest of the scores of equal windows, weighted as if it were that of all."""

    def score_sums(self, layer: int, hidden: Tensor, mask: Tensor) -> Tensor:
        place = (mask.cumsum(1) - 1) * WINDOWS // mask.sum(1, keepdim=True).clamp(min=1)
        windows = [mask & (place == i) for i in range(WINDOWS)]
        means = [super(Windows, self).score_sums(layer, hidden, window) / window.sum(1).clamp(min=1) for window in windows]
        return torch.stack(means).amax(0) * mask.sum(1)


class FeedForward(RoutedModel):
    """Skips the feed-forward block of a layer alone."""

    def __init__(self, model: nn.Module, layers: nn.ModuleList, *rest: Any) -> None:
        super().__init__(model, layers, *rest)
        self._handles += [layer.get_submodule("mlp").register_forward_hook(self._block(i)) for i, layer in enumerate(layers)]

    def _gated(self, i: int, gate: Tensor, before: Tensor, after: Tensor) -> Tensor:
        return after

    def _block(self, i: int) -> Any:
        def hook(_module: nn.Module, _args: Any, update: Tensor) -> Tensor:
            if self._gate is None:
                return update
            split = update.shape[1] - self._n_answer
            return torch.cat([update[:, :split], self._gate[:, i].to(update.dtype)[:, None, None] * update[:, split:]], dim=1)

        return hook


def weigh_alike(layer: nn.Module) -> None:
    """A share of feed-forward blocks is as many as weigh what that share of whole layers weighs."""
    linear = {
        name: m.in_features * m.out_features
        for name, m in layer.named_modules()
        if isinstance(m, nn.Linear) and "lora" not in name
    }
    factor = sum(linear.values()) / sum(weight for name, weight in linear.items() if name.startswith("mlp"))
    layers_for_share = objective.layers_for_share

    def count(share: float, n_layer: int) -> int:
        return min(n_layer - 1, round(factor * layers_for_share(share, n_layer)))

    objective.layers_for_share = count
    objective.fixed_layers = lambda kind, share, n_layer, order, seed: tuple(order[: count(share, n_layer)])


class StandIns(RoutedModel):
    """Adds to the hidden states that skip a layer what a map of low rank makes of them."""

    def __init__(self, model: nn.Module, layers: nn.ModuleList, *rest: Any) -> None:
        super().__init__(model, layers, *rest)
        n_embd = self.bank.weight.shape[1]
        for layer in layers:
            layer.stand_in = nn.Sequential(nn.Linear(n_embd, RANK, bias=False), nn.Linear(RANK, n_embd))
        self.stand_ins: list[Any] = [layer.stand_in for layer in layers]

    def _gated(self, i: int, gate: Tensor, before: Tensor, after: Tensor) -> Tensor:
        return super()._gated(i, gate, before + self.stand_ins[i](before).to(before.dtype), after)


@torch.no_grad()
def fit_stand_ins(trainer: Trainer, examples: Sequence[Example]) -> None:
    """Fit each layer's update at answer positions, nothing skipped: ridge regression cut to its RANK best directions."""
    found: list[list[tuple[Tensor, Tensor]]] = [[] for _ in trainer.routed.stand_ins]  # type: ignore[attr-defined]
    mask: list[Tensor] = []

    def watch(i: int) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            before = (args[0] if args else kwargs["hidden_states"])[:, 1:][mask[0]].float()
            after = (output[0] if isinstance(output, tuple) else output)[:, 1:][mask[0]].float()
            found[i].append((before, after - before))

        return hook

    for k in range(0, len(examples), 8):
        prompts = trainer.routed.prefill(trainer.to_device(collate(examples[k : k + 8])))
        mask[:] = [prompts.batch.mask[:, prompts.batch.split : -1]]
        handles = [
            layer.register_forward_hook(watch(i), with_kwargs=True) for i, layer in enumerate(decoder_layers(trainer.lora))
        ]
        trainer.routed.answer_logits(prompts)
        for handle in handles:
            handle.remove()
    for stand_in, pairs in zip(trainer.routed.stand_ins, found, strict=True):  # type: ignore[attr-defined]
        x, y = (torch.cat(parts).double() for parts in zip(*pairs, strict=True))
        mean_x, mean_y = x.mean(0), y.mean(0)
        gram = (x - mean_x).T @ (x - mean_x)
        gram += 0.01 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        full = torch.linalg.solve(gram, (x - mean_x).T @ (y - mean_y))
        best = torch.linalg.svd((x - mean_x) @ full, full_matrices=False)[2][:RANK]
        down, up = stand_in
        down.weight.copy_((full @ best.T).T)
        up.weight.copy_(best.T)
        up.bias.copy_(mean_y - mean_x @ full @ best.T @ best)


def after_start(then: Callable[[Trainer], None]) -> None:
    """Does something more once routers have their start."""
    start_orders = layer_orders.start_orders

    def start_and(trainer: Trainer, *rest: Any) -> None:
        start_orders(trainer, *rest)
        with trainer.autocast():
            then(trainer)

    layer_orders.start_orders = start_and


class OneStep(Objective):
    """Makes all passes over a batch's answers one, of their mean loss."""

    n_passes = 1  # type: ignore[assignment]

    def passes(self, batch: Batch, step: int, weight: float = 1.0) -> Iterator[tuple[Tensor, float]]:
        prompts = self.routed.prefill(batch)
        dense = self.routed.answer_logits(prompts)
        loss = objective.AnswerLoss(batch, dense, self.settings.distill)
        losses, left = [objective.answer_cross_entropy(dense, batch).mean()], 0.0
        shares = objective.skip_shares(step, self.n_steps, self.settings)[1:]
        for share in shares:
            skipped = self.skipped_layers(prompts.keep.detach(), share)
            gate = self.routed.straight_through(prompts.keep, skipped)
            losses.append(loss(self.routed.answer_logits(prompts, gate)).mean())
            left += float(skipped.float().mean())
        yield weight * torch.stack(losses).mean(), weight * left / (len(shares) + 1)


class Borrow(Objective):
    """Lends the choices of the last LENT prompts to half of the answers, in training alone."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.lent: deque[Tensor] = deque(maxlen=LENT)
        self.rng = random.Random(f"borrow-{self.settings.seed}")

    def skipped_layers(self, keep: Tensor, share: float) -> Tensor:
        if torch.is_grad_enabled():
            self.lent.extend(keep)
            keep = torch.stack([self.rng.choice(self.lent) if self.rng.random() < 0.5 else own for own in keep])
        return super().skipped_layers(keep, share)


class OwnChoice(RoutedModel):
    """An answer read with a borrowed choice teaches no scores."""

    def straight_through(self, keep: Tensor, skipped: Tensor) -> Tensor:
        own = (skipped == router_bank.lowest(keep, int(skipped[0].sum()))).all(1, keepdim=True)
        return super().straight_through(torch.where(own, keep, keep.detach()), skipped)


class TailLoss(objective.AnswerLoss):
    """Adds KL to the dense output over the first TAIL tokens, which are the prompt's last."""

    def __call__(self, logits: Tensor) -> Tensor:
        found = logits[self.mask].float().log_softmax(-1)
        tokens = -found.gather(1, self.batch.targets[self.mask][:, None])[:, 0]
        both = self.constant - (self.target * found).sum(-1)  # type: ignore[operator]
        both, tokens = (torch.zeros(self.mask.shape).masked_scatter(self.mask, each) for each in (both, tokens))
        answer = self.mask[:, TAIL:]
        return both[:, TAIL:].sum(1) / answer.sum(1) + (both - tokens)[:, :TAIL].mean(1)


def read_tails() -> None:
    """The answers of training begin TAIL tokens before the prompt ends; cross entropy is of the true answer alone."""
    examples, answer_cross_entropy = Trainer.batch_examples, objective.answer_cross_entropy

    def earlier(self: Trainer, number: int) -> list[Example]:
        return [replace(e, prompt=e.prompt[:-TAIL], response=e.prompt[-TAIL:] + e.response) for e in examples(self, number)]

    def of_answer(logits: Tensor, batch: Batch) -> Tensor:
        return answer_cross_entropy(logits[:, TAIL:], replace(batch, split=batch.split + TAIL))

    Trainer.batch_examples = earlier  # type: ignore[method-assign]
    objective.AnswerLoss, objective.answer_cross_entropy = TailLoss, of_answer  # type: ignore[misc]


def known_orders(runs: Sequence[str]) -> dict[str, list[int]]:
    """The orders of layers that runs found, by task; that for all tasks under "all"."""
    orders = dict[str, list[int]]()
    for run in runs:
        with open(os.path.join(run, "train.json"), encoding="utf-8") as file:
            orders |= json.load(file)["orders"]
    return orders


def teach_anew(trainer: Trainer) -> None:
    """Start the routers on their input from the orders that the run of --init found."""
    orders = known_orders([sys.argv[sys.argv.index("--init") + 1]])
    fit_routers(trainer, orders, draw(trainer.examples, layer_orders.N_FITTED * len(orders), trainer.settings.seed))


def apply(idea: str, runs: Sequence[str] = ()) -> None:
    """Put an idea in the place of what `first-cpp train` does. runs: that found orders, for `known` and `given`."""
    replaced = {
        "windows": (run_setup, "RouterBank", Windows),
        "one-step": (training_loop, "Objective", OneStep),
        "curriculum": (objective, "skip_shares", functools.partial(_growing_shares, objective.skip_shares)),
        "all-weights": (run_setup, "RoutedModel", functools.partial(RoutedModel, prompt_gradient="all")),
    }
    if idea in replaced:
        setattr(*replaced[idea])
    elif idea == "alone":
        layer_orders.skip_order = functools.partial(_order_alone, layer_orders.skip_order)
    elif idea == "more":
        layer_orders.N_TOKENS, layer_orders.MOST_EXAMPLES = 2 * layer_orders.N_TOKENS, 2 * layer_orders.MOST_EXAMPLES
    elif idea == "mixed":
        layer_orders.find_order = functools.partial(_order_for_all, layer_orders.find_order)
    elif idea in ("known", "given"):
        layer_orders.find_order = functools.partial(_known_order, layer_orders.find_order, known_orders(runs))
        if idea == "given":
            layer_orders.own_or_shared = lambda _trainer, _task, own, *_: own
    elif idea == "last-tokens":
        run_setup.RouterBank = LastTokens
        after_start(teach_anew)
    elif idea == "stand-ins":
        run_setup.RoutedModel = StandIns
        after_start(lambda trainer: fit_stand_ins(trainer, draw(trainer.examples, 96, trainer.settings.seed)))
    elif idea == "borrow":
        training_loop.Objective, run_setup.RoutedModel = Borrow, OwnChoice  # type: ignore[misc]
    elif idea == "tails":
        read_tails()
    elif idea == "feed-forward":
        run_setup.RoutedModel = FeedForward
        after_start(lambda trainer: weigh_alike(decoder_layers(trainer.lora)[0]))


def _growing_shares(shares: Any, step: int, n_steps: int, settings: Any) -> list[float]:
    grown = min(1.0, (step + 1) / (GROWN * n_steps))
    return [grown * share for share in shares(step, n_steps, settings)]


def _order_alone(search: Any, routed: RoutedModel, batches: Any, _most: int, *rest: Any) -> list[int]:
    return search(routed, batches, 0, *rest)


def _order_for_all(find: Any, trainer: Trainer, kind: str, examples: Sequence[Example], *rest: Any) -> list[int]:
    others = [example for example in trainer.examples if example.task != examples[0].task]
    return find(trainer, kind, [*examples, *draw(others, len(examples) // 2, trainer.settings.seed)], *rest)


def _known_order(
    find: Any, known: dict[str, list[int]], trainer: Trainer, kind: str, examples: Sequence[Example], *rest: Any
) -> Any:
    tasks = {example.task for example in examples}
    name = tasks.pop() if len(tasks) == 1 else "all"
    return known[name] if name in known else find(trainer, kind, examples, *rest)


def setup_arg_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("idea", choices=IDEAS)
    parser.add_argument(
        "--orders", nargs="+", default=[], metavar="RUN", help="for known and given: runs of --start search, --layers search"
    )
    return parser


def main() -> None:
    parser = setup_arg_parser()
    args, options = parser.parse_known_args()
    if (args.idea in ("known", "given")) is not bool(args.orders):
        parser.error("known and given need --orders, the other ideas do not take it")
    training = argparse.ArgumentParser()
    train.add_arguments(training)
    apply(args.idea, args.orders)
    known = ["--orders", *args.orders] if args.orders else []
    record_command(" ".join(["python research/try_ideas.py", args.idea, *options, *known]))
    train.command(training.parse_args(options))


def record_command(command: str) -> None:
    """Let a run record this command: training would record `first-cpp`, which has no ideas."""
    run_record = result.run_record
    result.run_record = lambda *of: run_record(*of) | {"command": command}


if __name__ == "__main__":
    main()
