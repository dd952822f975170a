"""Block influence in PyTorch, where the routers' biases start: the least influential layers first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .data import Example
from .rule import collate


@torch.no_grad()
def start_bias(model: nn.Module, layers: nn.ModuleList, examples: Sequence[Example], device: Any) -> Tensor:
    """Biases whose keep scores are influence / (influence + median); influence = mean over tokens of 1 - cosine of a
    layer's input and output (ShortGPT, arXiv 2403.03853)."""
    sums = torch.zeros(len(layers), dtype=torch.float64)
    tokens = 0

    def watch(i: int) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            cosine = torch.cosine_similarity(before.double(), after.double(), dim=-1)
            sums[i] += float((1 - cosine).sum())

        return hook

    handles = [layer.register_forward_hook(watch(i), with_kwargs=True) for i, layer in enumerate(layers)]
    try:
        for example in examples:
            batch = collate([example])
            model(input_ids=batch.ids.to(device), use_cache=False, logits_to_keep=1)
            tokens += int(batch.mask.sum())
    finally:
        for handle in handles:
            handle.remove()
    influence = sums / tokens + 1e-9
    return (influence.log() - influence.median().log()).float()
