"""What a batch teaches: which layers its answers skip in each pass, and the loss of each pass."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..skip import fixed_layers, layers_for_share
from .batch import Batch
from .losses import AnswerLoss, Loss, RecordedLoss, answer_cross_entropy
from .routed_model import Prefilled, RoutedModel
from .router_bank import lowest
from .set_budget import SetBudget
from .settings import RECORDED, Settings


def skip_shares(step: int, n_steps: int, settings: Settings) -> list[float]:
    """The skip share of each pass of a step. Seed and step alone decide, so that a resumed run draws the same.

    >>> skip_shares(0, 10, Settings(max_share=0))
    [0.0]
    >>> len(skip_shares(0, 10, Settings(passes=3)))
    3
    """
    if settings.max_share == 0:
        return [0.0]
    rng = random.Random(f"share-{settings.seed}-{step}")
    if settings.passes == 1:
        return [settings.max_share * rng.random()]
    parts = settings.passes - 1
    return [0.0, *(settings.max_share * (i + rng.random()) / parts for i in range(parts))]


class Objective:
    """The losses of a batch's passes.

    order: all layers in the order of skipping, for the fixed sets that need one. teacher: computes the logits that all passes
    are to match, in place of the answers, [b, t - split, n_vocab], where the settings name one; none for "answers", whose
    outputs the batches have. budget: chooses each prompt's set, where a run trains for those of a file.
    """

    def __init__(self, routed: RoutedModel, settings: Settings, n_steps: int, order: Sequence[int] = ()) -> None:
        self.routed, self.settings, self.n_steps = routed, settings, n_steps
        self.n_layer = routed.bank.bias.shape[0]
        self.order = order
        self.teacher: Callable[[Batch], Tensor] | None = None
        self.budget: SetBudget | None = None

    def learns(self, step: int) -> tuple[bool, bool]:
        """Whether the routers and whether the LoRA learn at a step."""
        if self.settings.recipe == "exact":
            return self.settings.layers == "routers", True
        first = step < round(self.settings.router_part * self.n_steps)
        return first, not first

    @property
    def n_passes(self) -> int:
        """Passes over a batch's answers, each with an update of the weights."""
        return self.settings.passes if self.settings.recipe == "exact" and self.settings.max_share > 0 else 1

    def passes(self, batch: Batch, step: int, weight: float = 1.0) -> Iterator[tuple[Tensor, float]]:
        """Of every pass over the answers, the loss and the mean skip share, both times `weight`.

        The weights may change between passes; the prompts are read once.
        """
        prefilled = self.routed.prefill(batch)
        if self.settings.recipe == "exact":
            yield from self._exact(prefilled, skip_shares(step, self.n_steps, self.settings), weight)
        else:
            loss, share = self._soft(prefilled) if self.learns(step)[0] else self._decided(prefilled)
            yield weight * loss, weight * share

    def chosen_layers(self, prefilled: Prefilled, share: float) -> Tensor:
        """The layers that a share skips of a batch: bool [b, n_layer]. With a budget it is the mean share of all examples."""
        if self.budget is not None:
            return self.budget.skipped_layers(prefilled.batch.predictions, share).to(prefilled.keep.device)
        return self.skipped_layers(prefilled.keep.detach(), share)

    def skipped_layers(self, keep: Tensor, share: float) -> Tensor:
        """The layers that a share skips, for keep scores [b, n_layer]: bool [b, n_layer]."""
        s = self.settings
        if s.layers == "routers":
            return lowest(keep, layers_for_share(share, self.n_layer))
        skipped = torch.zeros_like(keep, dtype=torch.bool)
        skipped[:, list(fixed_layers(s.layers, share, self.n_layer, self.order, s.seed))] = True
        return skipped

    def _exact(self, prefilled: Prefilled, shares: Sequence[float], weight: float) -> Iterator[tuple[Tensor, float]]:
        """Exactly each share, chosen as inference chooses.

        The first pass alone gives a gradient to the prompts' keys and values, which the weights before it computed. Gradients
        of all passes with regard to the keep scores are summed and go on to the routers in the last one.
        """
        taught = bool(self.settings.teacher)
        dense, answer_loss = self._targets(prefilled, 0.0 in shares)
        keep = prefilled.keep if self.settings.layers == "routers" else prefilled.keep.detach()  # [b, n_layer]
        scores, last = keep.detach().requires_grad_(keep.requires_grad), len(shares) - 1
        for i, share in enumerate(shares):
            skipped = self.chosen_layers(prefilled, share)  # [b, n_layer]
            if not bool(skipped.any()):
                logits = dense if share == 0 and dense is not None else self.routed.answer_logits(prefilled)
                loss = weight * (answer_loss(logits) if taught else answer_cross_entropy(logits, prefilled.batch)).mean()
            else:
                gate = self.routed.straight_through(keep if i == last else scores, skipped)
                loss = weight * answer_loss(self.routed.answer_logits(prefilled, gate)).mean()
            if i == last and scores.grad is not None:
                loss = loss + (scores.grad * (keep - keep.detach())).sum()
            yield loss, weight * float(skipped.float().mean())
            prefilled, dense = prefilled.detached(), None

    def _targets(self, prefilled: Prefilled, has_dense_pass: bool) -> tuple[Tensor | None, Loss]:
        """The logits of the dense pass, where there is one or KL needs them, and the loss of passes that skip layers."""
        distill = self.settings.distill
        with torch.set_grad_enabled(torch.is_grad_enabled() and has_dense_pass):
            needed = has_dense_pass or (distill > 0 and not self.settings.teacher)
            dense = self.routed.answer_logits(prefilled) if needed else None
        if self.settings.teacher == RECORDED:
            return dense, RecordedLoss(prefilled.batch, distill)
        if self.teacher is not None:
            return dense, AnswerLoss(prefilled.batch, self.teacher(prefilled.batch), distill, kl_only=True)
        return dense, AnswerLoss(prefilled.batch, dense, distill)

    def _soft(self, prefilled: Prefilled) -> tuple[Tensor, float]:
        """Two-step, first: every layer's update is weighted by its router's probability."""
        p, s = prefilled.keep, self.settings  # [b, n_layer]
        loss = answer_cross_entropy(self.routed.answer_logits(prefilled, p), prefilled.batch).mean()
        loss = loss + s.alpha * p.mean() + s.regulariser * (p * (1 - p)).mean()
        return loss, float((p < 0.5).float().mean())

    def _decided(self, prefilled: Prefilled) -> tuple[Tensor, float]:
        """Two-step, second: layers below 0.5 are skipped."""
        skipped = below_half(prefilled.keep)
        logits = self.routed.answer_logits(prefilled, (~skipped).float())
        return answer_cross_entropy(logits, prefilled.batch).mean(), float(skipped.float().mean())


def below_half(keep: Tensor) -> Tensor:
    """Layers whose score is below 0.5, but never all of a row: keep [b, n_layer] -> bool [b, n_layer].

    >>> below_half(torch.tensor([[0.1, 0.7], [0.2, 0.3]])).tolist()
    [[True, False], [True, False]]
    """
    return (keep < 0.5) & ~lowest(-keep, 1)
