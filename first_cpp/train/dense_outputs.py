"""What the dense model gave each answer token: its most probable tokens, recorded while llama.cpp writes the answer.

A run learns from these in place of a second model in memory, which would read every prompt and answer again.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

N_TOP = 32
"""Tokens recorded at each position; the others' probability is known as a sum."""


@dataclass(frozen=True)
class Outputs:
    """The output at every position of an answer, end token included where the model ended it.

    tokens: int32 [n, k], the most probable first; log_probabilities: float32 [n, k], in nats.
    """

    tokens: npt.NDArray[np.int32]
    log_probabilities: npt.NDArray[np.float32]

    @classmethod
    def stack(cls, rows: Sequence[Output]) -> Outputs:
        """Of single positions, in order."""
        if not rows:
            return cls(np.zeros((0, 1), np.int32), np.zeros((0, 1), np.float32))
        return cls(np.stack([tokens for tokens, _ in rows]), np.stack([of for _, of in rows]))

    def packed(self) -> dict[str, object]:
        """As values of JSON; `unpacked` reads them."""
        return {
            "n_top": self.tokens.shape[1],
            "top_tokens": base64.b64encode(self.tokens.astype("<i4").tobytes()).decode("ascii"),
            "top_log_probabilities": base64.b64encode(self.log_probabilities.astype("<f4").tobytes()).decode("ascii"),
        }

    @classmethod
    def unpacked(cls, record: dict[str, object]) -> Outputs:
        """Of a record that holds `packed` ones.

        >>> one = Outputs(np.array([[3, 1]], np.int32), np.array([[-0.5, -1.5]], np.float32))
        >>> Outputs.unpacked(one.packed()).log_probabilities.tolist()
        [[-0.5, -1.5]]
        """
        shape = (-1, int(str(record["n_top"])))
        tokens = np.frombuffer(base64.b64decode(str(record["top_tokens"])), "<i4").reshape(shape)
        values = np.frombuffer(base64.b64decode(str(record["top_log_probabilities"])), "<f4").reshape(shape)
        return cls(tokens.astype(np.int32), values.astype(np.float32))


Output = tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]
"""Tokens and log probabilities of one position: [k] each."""


def most_probable(logits: npt.NDArray[np.float32]) -> Output:
    """The N_TOP most probable tokens, or all of a smaller vocabulary: logits [n_vocab].

    >>> tokens, values = most_probable(np.log(np.array([0.25, 0.5, 0.25], np.float32)))
    >>> int(tokens[0]), round(float(np.exp(values[0])), 3)
    (1, 0.5)
    """
    k = min(N_TOP, len(logits))
    top = _candidates(logits, k)
    top = top[np.argsort(-logits[top], kind="stable")][:k]
    highest = logits[top[0]]
    log_sum = highest + np.log(np.sum(np.exp(logits - highest), dtype=np.float64))
    return top.astype(np.int32), (logits[top] - log_sum).astype(np.float32)


def _candidates(logits: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.intp]:
    """Where the k highest logits are, among others: above a bound that a sample gives, a tenth of the time of a partition."""
    sample = logits[::64]
    if len(sample) >= 16:
        found = np.flatnonzero(logits >= np.partition(sample, -8)[-8])
        if len(found) >= k:
            return found
    return np.arange(len(logits))
