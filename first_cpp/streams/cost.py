"""What skipping costs on an answer that the dense model gave: KL per token, fidelity, and surprise at the dense choices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import LogitsError

Floats = npt.NDArray[np.float32]

KL, AGREE, SURPRISE = range(3)
"""Columns of a cost: KL from the dense distribution in nats a token; share of positions where the first choice is the dense
one; mean -log probability of the dense choice."""
_SHIFT = 14  # a float32 of 0 to 1 has its upper two bits empty: so many lower ones go, and ten of the mantissa stay


@dataclass(frozen=True)
class Targets:
    """The dense model's next-token distributions after each token of an answer.

    packed: uint16 [n, n_vocab], probabilities in half of their bits; numpy's float16 has as many of the mantissa, but takes
    ten times as long to read. total: sum of each row as packed. entropy: of each row, in nats. choice: the most probable
    token of each row.
    """

    packed: npt.NDArray[np.uint16]
    total: Floats
    entropy: Floats
    choice: npt.NDArray[np.intp]

    @classmethod
    def of(cls, logits: Floats) -> Targets:
        """From the dense logits, float32 [n, n_vocab]. Raises LogitsError where they are no numbers."""
        _check(logits)
        packed = np.empty(logits.shape, np.uint16)
        total, entropy = np.empty(len(logits), np.float32), np.empty(len(logits), np.float32)
        for i, row in enumerate(logits):
            p = np.exp(row - row.max())
            packed[i] = _pack(p / p.sum())
            p = _unpack(packed[i])
            total[i] = p.sum(dtype=np.float64)
            p /= total[i]
            entropy[i] = -(p * np.log(np.maximum(p, 1e-30))).sum(dtype=np.float64)
        return cls(packed, total, entropy, logits.argmax(axis=1))

    @staticmethod
    def n_bytes(n: int, n_vocab: int) -> int:
        """About the bytes that `n` tokens take."""
        return 2 * n * max(1, n_vocab)

    @property
    def dense(self) -> Floats:
        """The cost of skipping nothing, float32 [3]."""
        p = _unpack(self.packed[np.arange(len(self.choice)), self.choice]) / self.total
        return np.array([0, 1, -np.log(p).mean()], np.float32)

    def cost(self, logits: Floats) -> Floats:
        """The cost of decoding with `logits`, float32 [n, n_vocab], instead: float32 [3], means over the answer. Raises as `of`
        does.

        >>> import numpy as np
        >>> dense = Targets.of(np.log(np.array([[0.5, 0.25, 0.25]], np.float32)))
        >>> dense.cost(np.log(np.array([[0.25, 0.5, 0.25]], np.float32))).round(4).tolist()  # doctest: +ELLIPSIS
        [0.173..., 0.0, 1.386...]
        """
        _check(logits)
        found = np.empty((len(logits), 3), np.float32)
        for i, row in enumerate(logits):
            shifted = row - row.max()
            log_sum = np.log(np.exp(shifted).sum(dtype=np.float64))
            expected = float(_unpack(self.packed[i]) @ shifted) / self.total[i]
            choice = self.choice[i]
            kl = max(0.0, log_sum - expected - self.entropy[i])  # rounded probabilities may leave a little less
            found[i] = kl, row.argmax() == choice, log_sum - shifted[choice]
        mean: Floats = found.mean(axis=0)
        return mean


def _check(logits: Floats) -> None:
    if np.isnan(logits.max(axis=1)).any():
        raise LogitsError("the model computed logits that are no numbers (NaN)")


def _pack(p: Floats) -> npt.NDArray[np.uint16]:
    """Probabilities, float32 of 0 to 1, rounded to what `_unpack` reads: to within 1 in 2048, however small.

    >>> _unpack(_pack(np.array([1, 0.25, 1e-20, 0], np.float32))).tolist()
    [1.0, 0.25, 1.0005576689441423e-20, 0.0]
    """
    bits: npt.NDArray[np.uint32] = p.view(np.uint32) + np.uint32(1 << _SHIFT - 1)
    return (bits >> _SHIFT).astype(np.uint16)


def _unpack(packed: npt.NDArray[np.uint16]) -> Floats:
    return (packed.astype(np.uint32) << _SHIFT).view(np.float32)
