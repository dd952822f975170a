"""The routers in PyTorch: one linear layer for each decoder layer, and the choice that their scores make."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RouterBank(nn.Module):
    """One linear router per layer, all zero at first. weight: [n_layer, n_embd]; bias: [n_layer].

    >>> bank = RouterBank(n_layer=2, n_embd=4, norm_eps=1e-5)
    >>> bank.score_sums(0, torch.ones(1, 3, 4), torch.ones(1, 3, dtype=torch.bool)).tolist()  # sigmoid(0) at 3 positions
    [1.5]
    """

    def __init__(self, n_layer: int, n_embd: int, norm_eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n_layer, n_embd))
        self.bias = nn.Parameter(torch.zeros(n_layer))
        self.norm_eps = norm_eps

    @torch.no_grad()
    def set_router(self, layer: int, weight: Tensor, bias: Tensor) -> None:
        """Replace the router of one layer: weight [n_embd], bias one number."""
        self.weight[layer], self.bias[layer] = weight, bias

    def normed(self, hidden: Tensor) -> Tensor:
        """What a router reads, the RMS-normalised hidden state: [.., n_embd] -> float32 [.., n_embd]."""
        h = hidden.float()
        return h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.norm_eps)

    def mean_input(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """The mean of what a router reads over the masked positions: hidden [b, t, n_embd], mask [b, t] -> [b, n_embd]."""
        return (self.normed(hidden) * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)

    def score_sums(self, layer: int, hidden: Tensor, mask: Tensor) -> Tensor:
        """Sum of one layer's keep scores over the masked positions: hidden [b, t, n_embd], mask [b, t] -> [b]."""
        with torch.autocast(hidden.device.type, enabled=False):  # scores of bf16 would be equal for many layers
            score = torch.sigmoid(self.normed(hidden) @ self.weight[layer] + self.bias[layer])  # [b, t]
        return (score * mask).sum(1)


def lowest(keep: Tensor, count: int) -> Tensor:
    """Which layers have the `count` lowest scores, ties by layer number: keep [b, n_layer] -> bool [b, n_layer].

    >>> lowest(torch.tensor([[0.5, 0.1, 0.9, 0.1]]), 1).tolist()
    [[False, True, False, False]]
    """
    order = torch.argsort(keep, dim=1, stable=True)  # [b, n_layer]
    chosen = torch.zeros_like(keep, dtype=torch.bool)
    return chosen.scatter(1, order[:, :count], True)
