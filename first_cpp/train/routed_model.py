"""Inference's rule, differentiable: the prompt runs every layer, answer positions skip the layers their prompt chose."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .batch import Batch
from .router_bank import RouterBank


@dataclass
class Prefilled:
    """A batch whose prompts have run through every layer.

    keep: float32 [b, n_layer], the keep scores, with a gradient to the routers while they learn.
    cache: keys and values of all prompt positions but the last, which is read with the answer; None for models that hold
    another state than keys and values, and read the prompt again with every answer.
    """

    batch: Batch
    keep: Tensor
    cache: Any

    def detached(self) -> Prefilled:
        """The same without gradients: those of the keys and values are of the weights that computed them."""
        cache = _copy(self.cache)
        for layer in cache.layers if cache is not None else ():
            if layer.is_initialized:
                layer.keys, layer.values = layer.keys.detach(), layer.values.detach()
        return Prefilled(self.batch, self.keep.detach(), cache)


class RoutedModel:
    """A causal language model that prefills prompts, scores layers, and skips layers in answers.

    Hooks on the decoder layers do it, so any architecture whose layers transformers exposes as a list works.

    model: with or without LoRA; layers: its decoder layers. temperature: width of the straight-through gradient.
    prompt_gradient: where prompt positions pass gradients to: "keys", the keys and values that answers read; "all", every
    weight below, which costs time and gained nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: nn.ModuleList,
        bank: RouterBank,
        temperature: float = 0.05,
        prompt_gradient: str = "keys",
    ) -> None:
        self.model, self.layers, self.bank = model, layers, bank
        self.temperature, self.prompt_gradient = temperature, prompt_gradient
        self.scores_prompts = True  # False where something else chooses the layers: keep scores are then 0
        self.output_in_tuple = False  # whether layers return their output in a tuple, as in some architectures
        self._prompt_mask: Tensor | None = None  # during prefill: [b, t]
        self._detach_layers = False  # no gradient from one layer's output to the layer before it
        self._score_sums: list[Tensor] = []  # during prefill, by layer: [b]
        self._gate: Tensor | None = None  # while answers are read: [b, n_layer]
        self._n_answer = 0  # positions at the end that the gate is for
        self._handles = [layer.register_forward_hook(self._hook(i), with_kwargs=True) for i, layer in enumerate(layers)]

    def remove(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()

    def _hook(self, i: int) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            before = args[0] if args else kwargs["hidden_states"]  # [b, t, n_embd]
            self.output_in_tuple = isinstance(output, tuple)
            after = output[0] if self.output_in_tuple else output  # [b, t, n_embd]
            if self._prompt_mask is not None and self.scores_prompts:
                self._score_sums.append(self.bank.score_sums(i, before.detach(), self._prompt_mask))
            if self._gate is not None:
                after = self._gated(i, self._gate[:, i], before, after)
            elif self._detach_layers:
                after = after.detach()
            else:
                return None
            return (after, *output[1:]) if self.output_in_tuple else after

        return hook

    def _gated(self, i: int, gate: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """The output of layer i: answer positions, the last ones, take as much of its update as the gate lets through.

        gate [b], before and after [b, t, n_embd] -> [b, t, n_embd].
        """
        split = after.shape[1] - self._n_answer
        update = after[:, split:] - before[:, split:]  # [b, n_answer, n_embd]
        answer = before[:, split:] + gate.to(after.dtype)[:, None, None] * update
        return torch.cat([after[:, :split], answer], dim=1) if split else answer

    def prefill(self, batch: Batch) -> Prefilled:
        """Run all layers over the prompts."""
        cache, last = _new_cache(self.model), batch.split - 1
        self._detach_layers = cache is not None and self.prompt_gradient == "keys"
        try:
            whole = cache is None or last == 0
            sums = batch.mask.new_zeros(len(batch.ids), len(self.layers), dtype=torch.float32)  # [b, n_layer]
            if not whole:
                sums = sums + self._read_prompt(batch, cache, 0, last)
            if self.scores_prompts:
                sums = sums + self._read_prompt(batch, _copy(cache), 0 if whole else last, batch.split)
        finally:
            self._detach_layers = False
        return Prefilled(batch, sums / batch.prompt_mask.sum(1, keepdim=True), cache)

    def _read_prompt(self, batch: Batch, cache: Any, begin: int, end: int) -> Tensor:
        """Read prompt columns begin to end: sums of their keep scores, [b, n_layer]; 0 where they are not scored."""
        self._prompt_mask, self._score_sums = batch.mask[:, begin:end], []
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
            self._prompt_mask = None
        return torch.stack(self._score_sums, dim=1) if self.scores_prompts else torch.zeros(())  # of [b], to [b, n_layer]

    def answer_logits(self, prefilled: Prefilled, gate: Tensor | None = None) -> Tensor:
        """Logits that predict the answer tokens: [b, t - split, n_vocab].

        gate: [b, n_layer], how much of a layer's update answer positions take: 1 all, 0 nothing, which skips the layer; None
        is 1 everywhere. The prompt's last position, which predicts the first answer token, runs every layer.
        """
        batch = prefilled.batch
        self._n_answer = batch.ids.shape[1] - batch.split - 1  # nothing is predicted from the last token
        begin = 0 if prefilled.cache is None else batch.split - 1
        self._gate = gate
        try:
            out = self.model(
                input_ids=batch.ids[:, begin:-1],
                attention_mask=batch.mask[:, :-1].long(),
                position_ids=batch.positions[:, begin:-1],
                past_key_values=_copy(prefilled.cache),
                use_cache=prefilled.cache is not None,
                logits_to_keep=self._n_answer + 1,
            )
        finally:
            self._gate = None
        logits: Tensor = out.logits
        return logits

    def straight_through(self, keep: Tensor, skipped: Tensor) -> Tensor:
        """The gate of a choice, 0 where a layer is skipped and 1 elsewhere, with a gradient to the keep scores.

        keep, skipped: [b, n_layer] -> [b, n_layer]. The gradient is that of a ramp across the border between skipped layers
        and the others, 4 temperatures wide, as steep as a sigmoid's middle. Beyond it there is no gradient at all: however
        small it were, Adam would make steps of full size of it, away from the order that the routers started from.
        """
        gate = (~skipped).float()
        if not keep.requires_grad or not bool(skipped.any()):
            return gate
        highest_skipped = keep.detach().masked_fill(~skipped, -1).amax(1, keepdim=True)  # [b, 1]
        lowest_kept = keep.detach().masked_fill(skipped, 2).amin(1, keepdim=True)  # [b, 1]
        ramp = (keep - (highest_skipped + lowest_kept) / 2) / (4 * self.temperature) + 0.5  # [b, n_layer]
        near = ((ramp > 0) & (ramp < 1)).float()
        mean = (near * ramp).sum(1, keepdim=True) / near.sum(1, keepdim=True).clamp(min=1)  # [b, 1]
        soft = (ramp - (mean - mean.detach())).clamp(0, 1)  # only differences choose: without it, all scores would rise
        return gate + (soft - soft.detach())

    @torch.no_grad()
    def scores(self, batch: Batch) -> Tensor:
        """Keep scores of every row's prompt: float32 [b, n_layer]."""
        return self.prefill(batch).keep


def _new_cache(model: nn.Module) -> Any:
    """An empty cache that can be read more than once, if all the model's state is keys and values; else None."""
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
