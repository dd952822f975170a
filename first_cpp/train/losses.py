"""The loss of answers: cross entropy with the answer's tokens, KL to a dense model's output, or both."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .batch import Batch

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


def _mean_by_row(per_token: Tensor, mask: Tensor) -> Tensor:
    """The mean of each row: a short answer counts as much as a long one. per_token [n], mask [b, a] -> [b]."""
    rows = torch.zeros(mask.shape, device=mask.device).masked_scatter(mask, per_token)  # [b, a]
    return rows.sum(1) / mask.sum(1)
