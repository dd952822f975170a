"""The settings of a training run and their defaults, which the command line shares. Needs no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import FirstCppError
from ..skip import needs_order

RECORDED = "answers"
"""The teacher of prompts that the dense model answered."""


class TrainingError(FirstCppError, RuntimeError):
    """Training that cannot go on; the last good checkpoint is kept."""


@dataclass(frozen=True)
class Settings:
    """What decides a run: two runs with equal settings, data and model end with the same weights.

    The field names are those in train.json and in checkpoints.

    >>> Settings(batch_size=4).max_share
    0.5
    """

    epochs: float = 1.0
    """Times that the data is read."""
    batch_size: int = 8
    """Examples in a batch."""
    accumulate: int = 1
    """Batches in a step."""
    part_tokens: int = 4096
    """Most tokens in a micro-batch, padding included: a larger batch is split into several, to the same gradient."""
    lr: float = 3e-4
    """Learning rate of the LoRA."""
    router_lr: float = 1e-4
    """Learning rate of the routers."""
    warmup: float = 0.05
    """Part of the run over which the learning rates rise to their values."""
    average: float = 0.0
    """Part of the run, its end, over whose updates the weights are averaged: the result is their mean."""
    recipe: str = "exact"
    """"exact" trains routers and LoRA together, by the rule of inference; "two-step" the routers first, then the LoRA."""
    layers: str = "routers"
    """Who chooses the skipped layers: the routers, a file's sets (sets), or a set that is the same for all prompts
    (`skip.fixed_layers`)."""
    max_share: float = 0.5
    """Largest skip share in training; 0 trains dense."""
    passes: int = 3
    """Forward passes over a batch's answers, an optimizer step each: one dense, one in each equal part of 0..max_share."""
    distill: float = 1.0
    """Weight of KL to the model's own dense output, beside cross entropy, or to the teacher's, in place of it."""
    teacher: str = ""
    """Run whose dense output, not rounded, all passes are to match; base, the model without LoRA; or answers, what was recorded
    with the dense model's answers. Empty: the answers and the model's own dense output."""
    router_part: float = 0.3
    """two-step: part of the run in which the routers learn."""
    alpha: float = 0.1
    """two-step: weight of the mean keep score, the penalty for not skipping."""
    regulariser: float = 0.01
    """two-step: lambda, the weight of p (1 - p), which moves each probability away from 0.5."""
    precision: str = "float32"
    """Of the base's arithmetic: "float32" or "bf16"; routers, LoRA weights and losses are float32 in both."""
    quantize: str = ""
    """Type that base + LoRA will be quantised to; empty: the weights are not rounded."""
    seed: int = 0
    """Of the LoRA's start, the order of examples, the shares and random sets."""


@dataclass(frozen=True)
class Ask:
    """How answers are drawn. n: of each prompt, 0 for the greedy one alone. temperature: of drawn ones. max_tokens: of each."""

    n: int = 0
    temperature: float = 0.8
    max_tokens: int = 128
    seed: int = 0


def order_to_find(layers: str, start: str | None, initialised: bool, max_share: float) -> str | None:
    """How a run orders the layers before it trains: "search" or "influence"; None where it needs no order, or has one.

    layers, max_share: as in `Settings`. start: "search", "influence", or None for what the run needs. initialised: the
    routers are an earlier run's, and stay unless `start` is given.

    >>> order_to_find("routers", None, False, 0.5)
    'search'
    >>> order_to_find("even", None, False, 0.5)
    """
    if max_share == 0 or layers in ("given", "sets"):
        return None
    if layers == "routers":
        return start or (None if initialised else "search")
    return layers if needs_order(layers) else None
