"""Inference's rule, differentiable: the prompt runs every layer, answer positions pass by the layers their prompt chose."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .data import Example


class RouterBank(nn.Module):
    """One linear router per layer. weight: [n_layer, n_embd]; bias: [n_layer]."""

    def __init__(self, n_layer: int, n_embd: int, norm_eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n_layer, n_embd))
        self.bias = nn.Parameter(torch.zeros(n_layer))
        self.norm_eps = norm_eps

    @torch.no_grad()
    def start(self, layer: int, weight: Tensor, bias: Tensor) -> None:
        """Begin anew with the router of one layer: weight [n_embd], bias one number."""
        self.weight[layer], self.bias[layer] = weight, bias

    def normed(self, hidden: Tensor) -> Tensor:
        """What routers read: the RMS-normalised hidden state, float32."""
        h = hidden.float()
        return h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.norm_eps)

    def mean_input(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """The mean of what a router reads over the masked positions: hidden [b, t, n_embd], mask [b, t] -> [b, n_embd]."""
        return (self.normed(hidden) * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)

    def sum(self, layer: int, hidden: Tensor, mask: Tensor) -> Tensor:
        """Sum of the scores of one layer over the masked positions: hidden [b, t, n_embd], mask [b, t] -> [b]."""
        with torch.autocast(hidden.device.type, enabled=False):  # scores of bf16 would be equal for many layers
            score = torch.sigmoid(self.normed(hidden) @ self.weight[layer] + self.bias[layer])
        return (score * mask).sum(1)


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


@dataclass
class Prompts:
    """A batch whose prompts the model has read, every layer of it.

    keep: [b, n_layer], float32, with a gradient to the routers while they learn.
    cache: keys and values of all prompt positions but the last, which is read with the answer; None for models with a state
    that cannot be read twice.
    """

    batch: Batch
    keep: Tensor
    cache: Any

    def detached(self) -> Prompts:
        """The same without gradients: once weights have changed, those of the keys and values are of no use."""
        cache = _copy(self.cache)
        for layer in cache.layers if cache is not None else ():
            if layer.is_initialized:
                layer.keys, layer.values = layer.keys.detach(), layer.values.detach()
        return Prompts(self.batch, self.keep.detach(), cache)


class Routed:
    """A causal language model whose decoder layers follow the rule.

    Hooks on the decoder layers do it, so any architecture whose layers transformers exposes as a list works.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: nn.ModuleList,
        bank: RouterBank,
        temperature: float = 0.05,
        prompt_gradient: str = "keys",
    ) -> None:
        self.model, self.layers = model, layers
        self.bank = bank
        self.temperature = temperature
        self.prompt_gradient = prompt_gradient
        self.tuples = False  # whether layers give their output in a tuple, as some architectures' do
        self._mask: Tensor | None = None  # while prompts are read: [b, t]
        self._detach = False
        self._sums: list[Tensor] = []
        self._run: Tensor | None = None  # while answers are: [b, n_layer], 1 for a layer that is computed
        self._n_answer = 0
        self._handles = [layer.register_forward_hook(self._hook(i), with_kwargs=True) for i, layer in enumerate(layers)]

    def remove(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()

    def _hook(self, i: int) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            before = args[0] if args else kwargs["hidden_states"]
            self.tuples = isinstance(output, tuple)
            after = output[0] if self.tuples else output
            if self._mask is not None:
                self._sums.append(self.bank.sum(i, before.detach(), self._mask))
            if self._run is not None:
                after = self._mix(i, self._run[:, i], before, after)
            elif self._detach:
                after = after.detach()
            else:
                return None
            return (after, *output[1:]) if self.tuples else after

        return hook

    def _mix(self, i: int, run: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """Layer i: answer positions, the last ones, of rows that leave it out keep their input."""
        split = after.shape[1] - self._n_answer
        answer = before[:, split:] + run.to(after.dtype)[:, None, None] * (after[:, split:] - before[:, split:])
        return torch.cat([after[:, :split], answer], dim=1) if split else answer

    def read(self, batch: Batch) -> Prompts:
        """Run all layers over the prompts, as prefill does."""
        cache, last = _new_cache(self.model), batch.split - 1
        self._detach = cache is not None and self.prompt_gradient == "keys"
        try:
            if cache is None or last == 0:
                sums = self._prefill(batch, _copy(cache), 0, batch.split)
            else:
                sums = self._prefill(batch, cache, 0, last)
                sums = sums + self._prefill(batch, _copy(cache), last, batch.split)
        finally:
            self._detach = False
        return Prompts(batch, sums / batch.prompt_mask.sum(1, keepdim=True), cache)

    def _prefill(self, batch: Batch, cache: Any, begin: int, end: int) -> Tensor:
        """Read prompt columns begin to end: sums of keep scores, [b, n_layer]."""
        self._mask, self._sums = batch.mask[:, begin:end], []
        try:
            self.model(
                input_ids=batch.ids[:, begin:end],
                attention_mask=batch.mask[:, :end].long(),
                position_ids=batch.positions[:, begin:end],
                past_key_values=cache,
                use_cache=cache is not None,
                logits_to_keep=1,
            )
        finally:
            self._mask = None
        return torch.stack(self._sums, dim=1)

    def logits(self, prompts: Prompts, run: Tensor | None = None) -> Tensor:
        """Logits that predict the answer tokens: [b, t - split, n_vocab].

        The prompt's last position, which predicts the first of them, runs every layer. run: [b, n_layer], how much of a
        layer's update answer positions take: 1 all, 0 nothing; None is 1 everywhere.
        """
        batch = prompts.batch
        self._n_answer = batch.ids.shape[1] - batch.split - 1  # nothing is predicted from the last token
        begin = 0 if prompts.cache is None else batch.split - 1
        self._run = run
        try:
            out = self.model(
                input_ids=batch.ids[:, begin:-1],
                attention_mask=batch.mask[:, :-1].long(),
                position_ids=batch.positions[:, begin:-1],
                past_key_values=_copy(prompts.cache),
                use_cache=prompts.cache is not None,
                logits_to_keep=self._n_answer + 1,
            )
        finally:
            self._run = None
        logits: Tensor = out.logits
        return logits

    def straight_through(self, keep: Tensor, left_out: Tensor) -> Tensor:
        """0 for layers left out and 1 for the others; backward, a ramp of the score across the border between them.

        The ramp is 4 temperatures wide, as steep as a sigmoid's middle. Beyond it there is no gradient at all: however small,
        the optimizer would make steps of full size of it, away from the order that the routers started from.
        """
        run = (~left_out).float()
        if not keep.requires_grad or not bool(left_out.any()):
            return run
        inside = keep.detach().masked_fill(~left_out, -1).amax(1, keepdim=True)
        outside = keep.detach().masked_fill(left_out, 2).amin(1, keepdim=True)
        ramp = (keep - (inside + outside) / 2) / (4 * self.temperature) + 0.5
        near = ((ramp > 0) & (ramp < 1)).float()
        mean = (near * ramp).sum(1, keepdim=True) / near.sum(1, keepdim=True).clamp(min=1)
        soft = (ramp - (mean - mean.detach())).clamp(0, 1)  # only differences choose: without it, all scores would rise
        return run + (soft - soft.detach())

    @torch.no_grad()
    def scores(self, batch: Batch) -> Tensor:
        """Keep scores of every row's prompt: [b, n_layer], float32."""
        return self.read(batch).keep


def _new_cache(model: nn.Module) -> Any:
    """An empty cache that can be read more than once, if all the model's state is keys and values."""
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    cache = DynamicCache(config=model.config)
    return cache if all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers) else None


def _copy(cache: Any) -> Any:
    """A cache that grows on its own from the same keys and values: they are concatenated, never written to."""
    if cache is None:
        return None
    grown = copy.copy(cache)
    grown.layers = [copy.copy(layer) for layer in cache.layers]
    return grown
