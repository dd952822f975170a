"""What a batch teaches: which layers its answers are read without, and the losses."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..policy import fixed_layers, layers_for_share
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
    recipe: str = "exact"
    layers: str = "routers"
    """Who chooses: the routers, or a set that is the same for all prompts (`policy.fixed_layers`)."""
    max_share: float = 0.5
    passes: int = 3
    """Times that a batch's answers are read: once dense, then once for each of as many parts of 0..max_share."""
    curriculum: float = 0.0
    """Part of the run over which the largest share grows from 0."""
    distill: float = 1.0
    """Weight of KL to the model's own dense output, beside cross entropy."""
    router_part: float = 0.3
    """two-step: part of the run in which the routers learn."""
    alpha: float = 0.1
    """two-step: weight of the mean keep score, the penalty for not skipping."""
    regulariser: float = 0.01
    """two-step: lambda, the weight of p (1 - p), which sends each probability to a side of the border at 0.5."""
    precision: str = "float32"
    """Of the base's arithmetic: "float32" or "bf16"; routers, LoRA weights and losses are float32 in both."""
    prompt_gradient: str = "keys"
    """What prompt positions teach: "keys", the keys and values that answers read; "all", every weight before them too."""
    seed: int = 0
    checkpoint: int = 200
    """Optimizer steps between checkpoints."""


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
    beside the cross entropy. Both are one cross entropy with the mixed target, plus a constant.
    """

    def __init__(self, batch: Batch, dense: Tensor | None = None, weight: float = 0.0) -> None:
        self.batch, self.mask = batch, batch.targets != -100
        self.mixed: Tensor | None = None
        if dense is not None and weight > 0:
            teacher = dense.detach()[self.mask].float().log_softmax(-1)
            probabilities = teacher.exp()
            self.constant = weight * (probabilities * teacher).sum(-1)
            tokens = batch.targets[self.mask][:, None]
            self.mixed = (weight * probabilities).scatter_add_(1, tokens, torch.ones(tokens.shape, device=tokens.device))

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
    """The loss of a step. order: all layers in the order that `layers="search"` and "influence" leave them out."""

    def __init__(self, routed: Routed, settings: Settings, n_steps: int, order: Sequence[int] = ()) -> None:
        self.routed, self.s, self.n_steps = routed, settings, n_steps
        self.n_layer = routed.bank.bias.shape[0]
        self.order = order

    def learns(self, step: int) -> tuple[bool, bool]:
        """Whether routers and LoRA learn at a step."""
        if self.s.recipe == "exact":
            return self.s.layers == "routers", True
        first = step < round(self.s.router_part * self.n_steps)
        return first, not first

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, float]:
        """The loss of one batch and the mean share of layers that it left out."""
        prompts = self.routed.read(batch)
        if self.s.recipe == "exact":
            return self._exact(prompts, shares_of(step, self.n_steps, self.s))
        return self._soft(prompts) if self.learns(step)[0] else self._decided(prompts)

    def left_out(self, keep: Tensor, share: float) -> Tensor:
        """The layers that a share leaves out: bool [b, n_layer]."""
        if self.s.layers == "routers":
            return lowest(keep, layers_for_share(share, self.n_layer))
        chosen = torch.zeros_like(keep, dtype=torch.bool)
        chosen[:, list(fixed_layers(self.s.layers, share, self.n_layer, self.order, self.s.seed))] = True
        return chosen

    def _exact(self, prompts: Prompts, shares: Sequence[float]) -> tuple[Tensor, float]:
        """Exactly the share, chosen as inference chooses; the dense pass teaches the others."""
        dense = self.routed.logits(prompts) if 0.0 in shares or self.s.distill > 0 else None
        lesson = Lesson(prompts.batch, dense, self.s.distill)
        keep = prompts.keep if self.s.layers == "routers" else prompts.keep.detach()
        losses, left = [], 0.0
        for share in shares:
            left_out = self.left_out(keep.detach(), share)
            if dense is not None and not bool(left_out.any()):
                losses.append(answer_loss(dense, prompts.batch).mean())
                continue
            losses.append(lesson.loss(self.routed.logits(prompts, self.routed.straight_through(keep, left_out))).mean())
            left += float(left_out.float().mean())
        return torch.stack(losses).mean(), left / len(shares)

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
