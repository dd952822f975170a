"""Block influence of a PyTorch model's layers, on training examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .batch import collate
from .examples import Example


@torch.no_grad()
def influence_order(model: nn.Module, layers: nn.ModuleList, examples: Sequence[Example], device: Any) -> list[int]:
    """All layers from the least block influence up: mean over tokens of 1 - cosine of a layer's input and output.

    Block influence is ShortGPT's (arXiv 2403.03853).
    """
    sums = torch.zeros(len(layers), dtype=torch.float64)  # as many tokens for every layer: sums order as means do

    def watch(i: int) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]  # [1, t, n_embd]
            after = output[0] if isinstance(output, tuple) else output
            cosine = torch.cosine_similarity(before.double(), after.double(), dim=-1)  # [1, t]
            sums[i] += float((1 - cosine).sum())

        return hook

    handles = [layer.register_forward_hook(watch(i), with_kwargs=True) for i, layer in enumerate(layers)]
    try:
        for example in examples:
            batch = collate([example])
            model(input_ids=batch.ids.to(device), use_cache=False, logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()
    return [int(layer) for layer in torch.argsort(sums, stable=True)]
