"""Training for quantised weights: LoRA folded into the base and rounded to a type of llama.cpp's.

A LoRA changes a weight by less than a step of a 4-bit type, so rounding the sum can undo what was learned. Here the frozen base
carries the error of rounding: before every step base + LoRA is what `convert --merge --quantize` will write; LoRA learns on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

BLOCK = 32
KINDS = {"Q4_0": (4, False), "Q4_1": (4, True), "Q5_0": (5, False), "Q5_1": (5, True)}
"""Bits a weight, and whether a block has a lowest value of its own. The formats are ggml's (ggml/src/ggml-quants.c)."""


def rounded(weight: Tensor, kind: str) -> Tensor:
    """The values that llama.cpp's quantiser gives each row's blocks of 32: weight [.., n * 32] -> float32 [.., n * 32].

    kind: one of KINDS.

    >>> rounded(torch.linspace(-1, 1, 32)[None], "Q4_0").unique().tolist()  # doctest: +ELLIPSIS
    [-1.0, -0.875, ...]
    """
    bits, has_low = KINDS[kind]
    blocks = weight.float().reshape(-1, BLOCK)  # [n_blocks, 32]; low and step: [n_blocks, 1]
    low, high = blocks.amin(1, keepdim=True), blocks.amax(1, keepdim=True)
    if has_low:
        step = (high - low) / (2**bits - 1)
        level, zero = blocks - low, 0
    else:
        step = _largest(blocks, low, high) / -(2 ** (bits - 1))
        level, zero = blocks.clone(), 2 ** (bits - 1)
    inverse = torch.where(step == 0, 0.0, 1 / step)
    level.mul_(inverse).add_(zero + 0.5).floor_().clamp_(max=2**bits - 1)  # in place: memory is what takes the time
    values = level.sub_(zero).mul_(step.half().float())
    if has_low:
        values.add_(low.half().float())
    return values.reshape(weight.shape)


def _largest(blocks: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The value of largest magnitude of each block, the first where two of either sign have it: [n_blocks, 1]."""
    largest = torch.where(high > -low, high, low)
    tied = (high == -low).squeeze(1).nonzero().squeeze(1)
    if len(tied):
        of_tied = blocks[tied]
        largest[tied] = of_tied.gather(1, of_tied.abs().argmax(1, keepdim=True))
    return largest


class Rounding:
    """Keeps the frozen base of a peft model such that base + LoRA is rounded.

    kind: one of KINDS; empty for no rounding.
    """

    def __init__(self, lora: Any, kind: str) -> None:
        from peft.tuners.lora import LoraLayer

        found = [module for module in lora.modules() if isinstance(module, LoraLayer)] if kind else []
        whole = [module for module in found if module.base_layer.weight.shape[-1] % BLOCK == 0]  # others llama.cpp keeps finer
        self.kind, self._bases = kind, [(module, module.base_layer.weight.detach().clone()) for module in whole]

    @torch.no_grad()
    def apply(self) -> None:
        """Round anew: the LoRA has changed."""
        for module, base in self._bases:
            change = module.get_delta_weight("default")
            module.base_layer.weight.copy_(rounded(base + change, self.kind).sub_(change))
