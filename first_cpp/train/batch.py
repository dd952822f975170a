"""Examples as tensors: prompts and answers of a batch, aligned where the answers begin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..runtime.predicted_cost import Prediction
from .dense_outputs import Outputs
from .examples import Example

IGNORED = -100
"""In the place of a target where there is none."""


@dataclass
class Batch:
    """Prompts padded on the left, answers on the right: answers begin at column `split` in every row.

    ids, mask: [b, t]. In column `split` stands the first answer token, and from there on positions skip layers. predictions,
    outputs: of the examples that have one.
    """

    ids: Tensor
    mask: Tensor
    split: int
    predictions: Sequence[Prediction] = ()
    outputs: Sequence[Outputs] = ()

    @property
    def prompt_mask(self) -> Tensor:
        """Which prompt columns hold a token: [b, split]."""
        return self.mask[:, : self.split]

    @property
    def answer_mask(self) -> Tensor:
        """Which answer columns hold a token: [b, t - split]."""
        return self.mask[:, self.split :]

    @property
    def positions(self) -> Tensor:
        """Every token's position in its own row, padding not counted: [b, t]."""
        return (self.mask.long().cumsum(1) - 1).clamp(min=0)

    @property
    def targets(self) -> Tensor:
        """Answer tokens [b, t - split], IGNORED where there is none."""
        return self.ids[:, self.split :].masked_fill(~self.answer_mask, IGNORED)


def collate(examples: Sequence[Example], pad: int = 0) -> Batch:
    """One batch of the examples, `pad` in the empty columns.

    >>> batch = collate([Example("qa", [5, 6, 7], [8, 2]), Example("qa", [5], [2])])
    >>> batch.ids
    tensor([[5, 6, 7, 8, 2],
            [0, 0, 5, 2, 0]])
    >>> batch.split
    3
    """
    split, n_answer = max(len(e.prompt) for e in examples), max(len(e.response) for e in examples)
    ids = torch.full((len(examples), split + n_answer), pad)  # [b, t]
    mask = torch.zeros(len(examples), split + n_answer, dtype=torch.bool)
    for row, example in enumerate(examples):
        begin, end = split - len(example.prompt), split + len(example.response)
        ids[row, begin:end] = torch.tensor(example.prompt + example.response)
        mask[row, begin:end] = True
    predictions = [e.prediction for e in examples if e.prediction is not None]
    return Batch(ids, mask, split, predictions, [e.outputs for e in examples if e.outputs is not None])
