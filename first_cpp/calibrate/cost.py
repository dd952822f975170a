"""What skipping costs on an answer that the dense model gave: KL per token, fidelity, and surprise at the dense choices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

KL, AGREE, SURPRISE = range(3)
"""Columns of a cost: KL from the dense distribution in nats a token; share of positions where the first choice is the dense
one; mean -log probability of the dense choice."""
_SCALE = 32768.0  # float16 holds a probability times this down to 2e-12


@dataclass(frozen=True)
class Targets:
    """The dense model's next-token distributions after each token of an answer.

    scaled: float16 [n, n_vocab], probabilities times `_SCALE`. total: sum of each row. entropy: of each row, in nats.
    choice: the most probable token of each row.
    """

    scaled: npt.NDArray[np.float16]
    total: Floats
    entropy: Floats
    choice: npt.NDArray[np.intp]

    @classmethod
    def of(cls, logits: Floats) -> Targets:
        """From the dense logits, float32 [n, n_vocab]."""
        scaled = np.empty(logits.shape, np.float16)
        total, entropy = np.empty(len(logits), np.float32), np.empty(len(logits), np.float32)
        for i, row in enumerate(logits):
            p = np.exp(row - row.max())
            scaled[i] = p * np.float32(_SCALE / float(p.sum()))
            p = scaled[i].astype(np.float32)
            total[i] = p.sum(dtype=np.float64)
            p /= total[i]
            entropy[i] = -(p * np.log(np.maximum(p, 1e-30))).sum(dtype=np.float64)
        return cls(scaled, total, entropy, logits.argmax(axis=1))

    @property
    def dense(self) -> Floats:
        """The cost of skipping nothing, float32 [3]."""
        p = self.scaled[np.arange(len(self.choice)), self.choice].astype(np.float32) / self.total
        return np.array([0, 1, -np.log(p).mean()], np.float32)

    def cost(self, logits: Floats) -> Floats:
        """The cost of decoding with `logits`, float32 [n, n_vocab], instead: float32 [3], means over the answer.

        >>> import numpy as np
        >>> dense = Targets.of(np.log(np.array([[0.5, 0.25, 0.25]], np.float32)))
        >>> dense.cost(np.log(np.array([[0.25, 0.5, 0.25]], np.float32))).round(4).tolist()  # doctest: +ELLIPSIS
        [0.173..., 0.0, 1.386...]
        """
        found = np.empty((len(logits), 3), np.float32)
        for i, row in enumerate(logits):
            shifted = row - row.max()
            log_sum = np.log(np.exp(shifted).sum(dtype=np.float64))
            expected = float(self.scaled[i].astype(np.float32) @ shifted) / self.total[i]
            choice = self.choice[i]
            kl = max(0.0, log_sum - expected - self.entropy[i])  # rounded probabilities may leave a little less
            found[i] = kl, row.argmax() == choice, log_sum - shifted[choice]
        mean: Floats = found.mean(axis=0)
        return mean
