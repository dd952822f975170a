"""A teacher: an earlier run with nothing left out and nothing rounded, whose output answers are to match."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from ..errors import MissingFileError
from .model import decoder_layers
from .rule import Batch, Routed, RouterBank


class Teacher:
    """A base model, which is changed, with the LoRA of a run's folder folded in. Raises MissingFileError."""

    def __init__(self, base: Any, run: str, device: Any) -> None:
        from peft import PeftModel

        adapter = os.path.join(run, "adapter")
        if not os.path.exists(os.path.join(adapter, "adapter_config.json")):
            raise MissingFileError(f"--teacher {run}: there is no peft adapter in {adapter}")
        merged = PeftModel.from_pretrained(base, adapter).merge_and_unload().requires_grad_(False).to(device)
        layers = decoder_layers(merged)
        bank = RouterBank(len(layers), merged.config.get_text_config().hidden_size, 1e-5).to(device)  # its scores are not used
        self._routed = Routed(merged, layers, bank)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        """Logits that predict the answer tokens: [b, t - split, n_vocab]."""
        return self._routed.logits(self._routed.read(batch))
