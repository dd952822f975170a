"""A teacher: an earlier run or the base, dense and not rounded, whose output the answers of this run are to match."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from ..errors import MissingFileError, ModelFileError
from .batch import Batch
from .model import decoder_layers, hold_in_bf16
from .routed_model import RoutedModel
from .router_bank import RouterBank


class Teacher:
    """A base model, which is changed, with the LoRA of a run's folder folded in; without one where `run` is None.

    Raises MissingFileError, or ModelFileError where the LoRA is of another model.
    """

    def __init__(self, base: Any, run: str | None) -> None:
        merged = base.requires_grad_(False) if run is None else self._merged(base, run)
        layers = decoder_layers(merged)
        bank = RouterBank(len(layers), merged.config.get_text_config().hidden_size, 1e-5)  # its scores are not used
        self._routed = RoutedModel(merged, layers, bank)
        self._routed.scores_prompts = False

    @staticmethod
    def _merged(base: Any, run: str) -> Any:
        from peft import PeftModel

        adapter = os.path.join(run, "adapter")
        if not os.path.exists(os.path.join(adapter, "adapter_config.json")):
            raise MissingFileError(f"--teacher {run}: there is no peft adapter in {adapter}")
        try:
            return PeftModel.from_pretrained(base, adapter).merge_and_unload().requires_grad_(False)
        except (RuntimeError, ValueError) as error:  # torch's and peft's, for shapes and names
            raise ModelFileError(f"--teacher {run} is of another model: {error}") from error

    def hold_in_bf16(self) -> Teacher:
        """Keep the weights as a run in bf16 computes with them."""
        hold_in_bf16(self._routed.model)
        return self

    def to(self, device: Any) -> Teacher:
        """Move the weights to a device."""
        self._routed.model.to(device)
        self._routed.bank.to(device)
        return self

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        """Logits that predict the answer tokens: [b, t - split, n_vocab]."""
        return self._routed.answer_logits(self._routed.prefill(batch))
