"""Inference's rule, differentiable: the prompt runs every layer, answer positions pass by the layers their prompt chose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .data import Example


class RouterBank(nn.Module):
    """One linear router per layer. weight: [n_layer, n_embd]; bias: [n_layer]."""

    def __init__(self, n_layer: int, n_embd: int, norm_eps: float, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n_layer, n_embd))
        self.bias = nn.Parameter(torch.zeros(n_layer) if bias is None else bias.clone().float())
        self.norm_eps = norm_eps

    def keep(self, layer: int, hidden: Tensor, mask: Tensor) -> Tensor:
        """Mean keep score of one layer over the masked positions: hidden [b, t, n_embd], mask [b, t] -> [b]."""
        h = hidden.float()
        h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.norm_eps)
        score = torch.sigmoid(h @ self.weight[layer] + self.bias[layer])
        return (score * mask).sum(1) / mask.sum(1)


@dataclass
class Batch:
    """Prompts padded on the left, answers on the right: answers begin at column `split` in every row.

    ids, mask: [b, t]. The token of column split is the first answer token; its position passes by layers.
    """

    ids: Tensor
    mask: Tensor
    split: int

    @property
    def prompt_mask(self) -> Tensor:
        return self.mask[:, : self.split]

    @property
    def positions(self) -> Tensor:
        return (self.mask.long().cumsum(1) - 1).clamp(min=0)

    @property
    def targets(self) -> Tensor:
        """Answer tokens [b, t - split], -100 where there is none."""
        answer = self.ids[:, self.split :]
        return answer.masked_fill(~self.mask[:, self.split :], -100)


def collate(examples: Sequence[Example], pad: int = 0) -> Batch:
    split, answer = max(len(e.prompt) for e in examples), max(len(e.response) for e in examples)
    ids = torch.full((len(examples), split + answer), pad)
    mask = torch.zeros(len(examples), split + answer, dtype=torch.bool)
    for row, example in enumerate(examples):
        begin, end = split - len(example.prompt), split + len(example.response)
        ids[row, begin:end] = torch.tensor(example.prompt + example.response)
        mask[row, begin:end] = True
    return Batch(ids, mask, split)


def lowest(keep: Tensor, count: int) -> Tensor:
    """Which layers have the `count` lowest scores; ties by layer number. keep [b, n_layer] -> bool [b, n_layer]."""
    order = torch.argsort(keep, dim=1, stable=True)
    chosen = torch.zeros_like(keep, dtype=torch.bool)
    return chosen.scatter(1, order[:, :count], True)


class Routed:
    """A causal language model whose decoder layers follow the rule.

    Hooks on the decoder layers do it, so any architecture whose layers transformers exposes as a list works.
    """

    def __init__(self, model: nn.Module, layers: nn.ModuleList, bank: RouterBank, temperature: float = 0.05) -> None:
        self.model = model
        self.bank = bank
        self.temperature = temperature
        self._mode = "dense"
        self._batch: Batch | None = None
        self._keep: list[Tensor] = []
        self._left_out: Tensor | None = None  # bool [b, n_layer]
        self._border: Tensor | None = None  # [b, 1]: between the scores left out and those kept
        self._handles = [layer.register_forward_hook(self._hook(i), with_kwargs=True) for i, layer in enumerate(layers)]

    def remove(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()

    def _hook(self, i: int) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            if self._mode == "dense":
                return None
            before = args[0] if args else kwargs["hidden_states"]
            if self._mode == "scores":
                assert self._batch is not None
                self._keep.append(self.bank.keep(i, before, self._batch.prompt_mask))
                return None
            after = output[0] if isinstance(output, tuple) else output
            mixed = self._mix(i, before, after)
            return (mixed, *output[1:]) if isinstance(output, tuple) else mixed

        return hook

    def _mix(self, i: int, before: Tensor, after: Tensor) -> Tensor:
        """Answer positions of rows that leave layer i out keep their input; straight-through gradient to the score."""
        assert self._batch is not None
        assert self._left_out is not None
        split = self._batch.split
        run = (~self._left_out[:, i]).to(after.dtype)
        if self._border is not None:
            keep = self.bank.keep(i, before[:, :split], self._batch.prompt_mask)
            soft = torch.sigmoid((keep - self._border[:, 0]) / self.temperature)
            run = run + (soft - soft.detach()).to(after.dtype)
        answer = before[:, split:] + run[:, None, None] * (after[:, split:] - before[:, split:])
        return torch.cat([after[:, :split], answer], dim=1)

    @torch.no_grad()
    def scores(self, batch: Batch) -> Tensor:
        """Keep scores of every row's prompt: [b, n_layer], float32."""
        self._mode, self._batch, self._keep = "scores", batch, []
        try:
            self.model(
                input_ids=batch.ids[:, : batch.split],
                attention_mask=batch.prompt_mask.long(),
                position_ids=batch.positions[:, : batch.split],
                use_cache=False,
                logits_to_keep=1,
            )
        finally:
            self._mode = "dense"
        return torch.stack(self._keep, dim=1)

    def logits(self, batch: Batch, left_out: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        """Logits that predict the answer tokens: [b, t - split, n_vocab].

        left_out: bool [b, n_layer], None for dense. keep: the scores it was chosen by, for a gradient to the routers.
        """
        self._batch, self._left_out, self._border = batch, left_out, None
        if left_out is not None:
            self._mode = "masked"
            if keep is not None and bool(left_out.any()):
                inside = keep.masked_fill(~left_out, -1).amax(1, keepdim=True)
                outside = keep.masked_fill(left_out, 2).amin(1, keepdim=True)
                self._border = (inside + outside) / 2
        try:
            out = self.model(
                input_ids=batch.ids,
                attention_mask=batch.mask.long(),
                position_ids=batch.positions,
                use_cache=False,
                logits_to_keep=batch.ids.shape[1] - batch.split + 1,
            )
        finally:
            self._mode = "dense"
        logits: Tensor = out.logits[:, :-1]
        return logits
