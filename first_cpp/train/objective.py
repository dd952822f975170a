"""What a batch teaches: which layers its answers are read without, and the losses."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..skip import fixed_layers, layers_for_share
from .rule import Batch, Prompts, Routed, lowest


@dataclass(frozen=True)
class Settings:
    """What decides a run: two runs with equal settings, data and model end with the same weights."""

    epochs: float = 1.0
    batch_size: int = 8
    accumulate: int = 1
    part_tokens: int = 4096
    """Tokens, padding included, that are in memory at once: a larger batch goes in parts, to the same gradient."""
    lr: float = 3e-4
    router_lr: float = 1e-4
    warmup: float = 0.05
    average: float = 0.0
    """Part of the run, its end, over whose updates the weights are averaged: the result is their mean."""
    recipe: str = "exact"
    layers: str = "routers"
    """Who chooses: the routers, or a set that is the same for all prompts (`policy.fixed_layers`)."""
    max_share: float = 0.5
    passes: int = 3
    """Times that a batch's answers are read, an optimizer step each: dense, and in each of as many parts of 0..max_share."""
    curriculum: float = 0.0
    """Part of the run over which the largest share grows from 0."""
    distill: float = 1.0
    """Weight of KL to the model's own dense output, beside cross entropy, or to the teacher's, in place of it."""
    teacher: str = ""
    """Run whose dense output, not rounded, all passes are to match; empty: the answers teach, and the own dense output."""
    router_part: float = 0.3
    """two-step: part of the run in which the routers learn."""
    alpha: float = 0.1
    """two-step: weight of the mean keep score, the penalty for not skipping."""
    regulariser: float = 0.01
    """two-step: lambda, the weight of p (1 - p), which sends each probability to a side of the border at 0.5."""
    precision: str = "float32"
    """Of the base's arithmetic: "float32" or "bf16"; routers, LoRA weights and losses are float32 in both."""
    quantize: str = ""
    """Type of the weights that will run, which LoRA is folded into; empty: they are not rounded."""
    prompt_gradient: str = "keys"
    """What prompt positions teach: "keys", the keys and values that answers read; "all", every weight before them too."""
    seed: int = 0
    checkpoint: int = 200
    """Steps, of `accumulate` batches each, between checkpoints."""


def shares_of(step: int, n_steps: int, s: Settings) -> list[float]:
    """The shares to leave out at a step: seed and step alone decide, so that a resumed run draws the same."""
    if s.max_share == 0:
        return [0.0]
    rng = random.Random(f"share-{s.seed}-{step}")
    top = s.max_share * (1.0 if s.curriculum <= 0 else min(1.0, (step + 1) / (s.curriculum * n_steps)))
    if s.passes == 1:
        return [top * rng.random()]
    parts = s.passes - 1
    return [0.0, *(top * (i + rng.random()) / parts for i in range(parts))]


def answer_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Cross entropy of each row's answer, mean over its tokens: [b]."""
    mask = batch.targets != -100
    return _mean(F.cross_entropy(logits[mask].float(), batch.targets[mask], reduction="none"), mask)


class Lesson:
    """What a batch's answer positions are to predict: the answer's tokens and what the dense model predicts there.

    dense: logits of the dense model, [b, t - split, n_vocab], taken without their gradient; weight: of KL(dense || found)
    beside the cross entropy. Both are one cross entropy with the mixed target, plus a constant. alone: KL only.
    """

    def __init__(self, batch: Batch, dense: Tensor | None = None, weight: float = 0.0, alone: bool = False) -> None:
        self.batch, self.mask = batch, batch.targets != -100
        self.mixed: Tensor | None = None
        if dense is not None and weight > 0:
            teacher = dense.detach()[self.mask].float().log_softmax(-1)
            probabilities = teacher.exp()
            self.constant = weight * (probabilities * teacher).sum(-1)
            tokens = batch.targets[self.mask][:, None]
            labels = torch.full(tokens.shape, 0.0 if alone else 1.0, device=tokens.device)
            self.mixed = (weight * probabilities).scatter_add_(1, tokens, labels)

    def loss(self, logits: Tensor) -> Tensor:
        """Of each row's answer, mean over its tokens: [b]."""
        if self.mixed is None:
            return answer_loss(logits, self.batch)
        found = logits[self.mask].float().log_softmax(-1)
        return _mean(self.constant - (self.mixed * found).sum(-1), self.mask)


def _mean(per_token: Tensor, mask: Tensor) -> Tensor:
    """The mean of each row: a short answer counts as much as a long one. per_token: of the masked positions, in order."""
    rows = torch.zeros(mask.shape, device=mask.device).masked_scatter(mask, per_token)
    return rows.sum(1) / mask.sum(1)


class Objective:
    """What a batch's passes teach. order: all layers as `layers="search"`, "influence" and "given" leave them out."""

    def __init__(self, routed: Routed, settings: Settings, n_steps: int, order: Sequence[int] = ()) -> None:
        self.routed, self.s, self.n_steps = routed, settings, n_steps
        self.n_layer = routed.bank.bias.shape[0]
        self.order = order
        self.teacher: Callable[[Batch], Tensor] | None = None

    def learns(self, step: int) -> tuple[bool, bool]:
        """Whether routers and LoRA learn at a step."""
        if self.s.recipe == "exact":
            return self.s.layers == "routers", True
        first = step < round(self.s.router_part * self.n_steps)
        return first, not first

    @property
    def n_passes(self) -> int:
        """Times that a batch's answers are read, and the weights change."""
        return self.s.passes if self.s.recipe == "exact" and self.s.max_share > 0 else 1

    def passes(self, batch: Batch, step: int, weight: float = 1.0) -> Iterator[tuple[Tensor, float]]:
        """Of every pass over the answers, the loss and the mean share of layers left out, both times `weight`.

        The weights may change between passes; the prompts are read once.
        """
        prompts = self.routed.read(batch)
        if self.s.recipe == "exact":
            yield from self._exact(prompts, shares_of(step, self.n_steps, self.s), weight)
        else:
            loss, share = self._soft(prompts) if self.learns(step)[0] else self._decided(prompts)
            yield weight * loss, weight * share

    def left_out(self, keep: Tensor, share: float) -> Tensor:
        """The layers that a share leaves out: bool [b, n_layer]."""
        if self.s.layers == "routers":
            return lowest(keep, layers_for_share(share, self.n_layer))
        chosen = torch.zeros_like(keep, dtype=torch.bool)
        chosen[:, list(fixed_layers(self.s.layers, share, self.n_layer, self.order, self.s.seed))] = True
        return chosen

    def _exact(self, prompts: Prompts, shares: Sequence[float], weight: float) -> Iterator[tuple[Tensor, float]]:
        """Exactly each share, chosen as inference chooses; the dense output teaches the others, or the teacher all of them.

        The prompts' keys and values teach in the first pass. What all passes teach the scores goes to the routers in the last.
        """
        taught = None if self.teacher is None else self.teacher(prompts.batch)
        with torch.set_grad_enabled(torch.is_grad_enabled() and 0.0 in shares):
            dense = self.routed.logits(prompts) if 0.0 in shares or (self.s.distill > 0 and taught is None) else None
        lesson = Lesson(prompts.batch, dense if taught is None else taught, self.s.distill, alone=taught is not None)
        keep = prompts.keep if self.s.layers == "routers" else prompts.keep.detach()
        scores, last = keep.detach().requires_grad_(keep.requires_grad), len(shares) - 1
        for i, share in enumerate(shares):
            left_out = self.left_out(keep.detach(), share)
            if not bool(left_out.any()):
                logits = dense if share == 0 and dense is not None else self.routed.logits(prompts)
                loss = weight * (answer_loss(logits, prompts.batch) if taught is None else lesson.loss(logits)).mean()
            else:
                run = self.routed.straight_through(keep if i == last else scores, left_out)
                loss = weight * lesson.loss(self.routed.logits(prompts, run)).mean()
            if i == last and scores.grad is not None:
                loss = loss + (scores.grad * (keep - keep.detach())).sum()
            yield loss, weight * float(left_out.float().mean())
            prompts, dense = prompts.detached(), None

    def _soft(self, prompts: Prompts) -> tuple[Tensor, float]:
        """Two-step, first: every layer's update is weighted by its router's probability."""
        p = prompts.keep
        loss = answer_loss(self.routed.logits(prompts, p), prompts.batch).mean()
        loss = loss + self.s.alpha * p.mean() + self.s.regulariser * (p * (1 - p)).mean()
        return loss, float((p < 0.5).float().mean())

    def _decided(self, prompts: Prompts) -> tuple[Tensor, float]:
        """Two-step, second: layers below 0.5 are left out."""
        left_out = below_half(prompts.keep)
        logits = self.routed.logits(prompts, (~left_out).float())
        return answer_loss(logits, prompts.batch).mean(), float(left_out.float().mean())


def below_half(keep: Tensor) -> Tensor:
    """Layers whose score is below 0.5, but never all of a row: bool [b, n_layer]."""
    return (keep < 0.5) & ~lowest(-keep, 1)
