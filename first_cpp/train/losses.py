"""The loss of answers: cross entropy with the answer's tokens, KL to a dense model's output, or both."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .batch import Batch

Loss: TypeAlias = Callable[[Tensor], Tensor]
"""The loss of each row's answer in nats, mean over its tokens: logits [b, a, v] -> [b]."""

# In shapes: b rows of a batch, a answer columns (padding included), n answer tokens of all rows, v tokens of the vocabulary.


def answer_cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    """Cross entropy of each row's answer in nats, mean over its tokens: logits [b, a, v] -> [b]."""
    mask = batch.answer_mask  # [b, a]
    per_token = F.cross_entropy(logits[mask].float(), batch.targets[mask], reduction="none")  # [n, v] and [n] -> [n]
    return _mean_by_row(per_token, mask)


class AnswerLoss:
    """The loss of a batch's answers, whose targets are computed once and compared with the logits of several passes.

    dense_logits: [b, a, v] of the dense model, used without their gradient. kl_weight: of KL(dense || logits) beside the cross
    entropy. kl_only: no cross entropy. Both together are one cross entropy with a mixed target, plus a constant.
    """

    def __init__(self, batch: Batch, dense_logits: Tensor | None = None, kl_weight: float = 0.0, kl_only: bool = False) -> None:
        self.batch, self.mask = batch, batch.answer_mask
        self.target: Tensor | None = None  # [n, v]: probabilities, those of the dense model and of the answer's token summed
        if dense_logits is not None and kl_weight > 0:
            dense = dense_logits.detach()[self.mask].float().log_softmax(-1)  # [b, a, v] -> [n, v]
            probabilities = dense.exp()
            self.constant = kl_weight * (probabilities * dense).sum(-1)  # [n]
            tokens = batch.targets[self.mask][:, None]  # [n, 1]
            answer_weight = torch.full(tokens.shape, 0.0 if kl_only else 1.0, device=tokens.device)
            self.target = (kl_weight * probabilities).scatter_add_(1, tokens, answer_weight)

    def __call__(self, logits: Tensor) -> Tensor:
        """The loss of each row's answer in nats, mean over its tokens: logits [b, a, v] -> [b]."""
        if self.target is None:
            return answer_cross_entropy(logits, self.batch)
        log_probabilities = logits[self.mask].float().log_softmax(-1)  # [n, v]
        return _mean_by_row(self.constant - (self.target * log_probabilities).sum(-1), self.mask)


class RecordedLoss:
    """KL of a batch's answers to what was recorded with them (`Batch.outputs`): the recorded tokens, and all others as one.

    At most the KL of the whole outputs, and 0 where they are equal. weight: of the KL.
    """

    def __init__(self, batch: Batch, weight: float = 1.0) -> None:
        self.mask, device = batch.answer_mask, batch.ids.device
        self.tokens = torch.from_numpy(np.concatenate([one.tokens for one in batch.outputs])).long().to(device)  # [n, k]
        log_top = torch.from_numpy(np.concatenate([one.log_probabilities for one in batch.outputs])).to(device)  # [n, k]
        self.target = weight * with_others(log_top)  # [n, k + 1]
        self.constant = (self.target * self.target.div(weight).clamp(min=LEAST).log()).sum(-1)  # [n]

    def __call__(self, logits: Tensor) -> Tensor:
        """The loss of each row's answer in nats, mean over its tokens: logits [b, a, v] -> [b]."""
        found = logits[self.mask].float()  # [n, v]
        log_top = found.gather(1, self.tokens) - found.logsumexp(-1, keepdim=True)  # [n, k]
        log_others = (1 - log_top.exp().sum(-1, keepdim=True)).clamp(min=LEAST).log()  # [n, 1]
        per_token = self.constant - (self.target * torch.cat([log_top, log_others], -1)).sum(-1)
        return _mean_by_row(per_token, self.mask)


LEAST = 1e-6
"""A probability below which float32 sums say nothing."""


def with_others(log_top: Tensor) -> Tensor:
    """Probabilities of the recorded tokens and of all others together: log probabilities [n, k] -> [n, k + 1].

    >>> with_others(torch.tensor([[0.5, 0.25]]).log()).tolist()
    [[0.5, 0.25, 0.25]]
    """
    top = log_top.exp()
    return torch.cat([top, (1 - top.sum(-1, keepdim=True)).clamp(min=0)], -1)


def _mean_by_row(per_token: Tensor, mask: Tensor) -> Tensor:
    """The mean of each row: a short answer counts as much as a long one. per_token [n], mask [b, a] -> [b]."""
    rows = torch.zeros(mask.shape, device=mask.device).masked_scatter(mask, per_token)  # [b, a]
    return rows.sum(1) / mask.sum(1)
