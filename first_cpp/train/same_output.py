"""Whether PyTorch computes of a GGUF what llama.cpp does: transformers reads some of its settings and tensors, and is silent
about the others (the rotary base of starcoder2 and stablelm, biases of llama, the attention scale of the largest gemma2)."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
import torch

from ..errors import ModelFileError
from ..gguf.quantise import quiet_llama_cpp
from ..runtime.machine import physical_cores

TEXT = (
    "The old bridge across the river was built in 1874 by two brothers, who had never seen a larger town than their own. "
    "When the water rises in spring, people still walk out to its middle and ask each other how it can stand there after all."
)
MOST = 0.2
"""Of a difference, in parts of the logits' length: quantised weights and activations come to a few hundredths."""


def check_same_output(path: str, model: Any, tokens: Sequence[int]) -> None:
    """Raise ModelFileError where the model that PyTorch made of a GGUF gives these tokens other logits than llama.cpp does.

    tokens: of `TEXT`; the second half of their positions is compared.
    """
    with torch.no_grad():
        ours = model(torch.tensor([list(tokens)]), use_cache=False).logits[0].float().numpy()
    if not (difference := relative_difference(ours, llama_cpp_logits(path, tokens))) <= MOST:
        raise ModelFileError(
            f"PyTorch computes other outputs of {path} than llama.cpp (they differ by {difference:.0%}, at most {MOST:.0%} "
            "is rounding): transformers loses some of its settings or tensors, and would train another model than the "
            "one that runs. Train from the model's Hugging Face folder, and convert with this file"
        )


def llama_cpp_logits(path: str, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
    """Stock llama_cpp's logits at every position: [n, n_vocab]. Raises ModelFileError for a file that it cannot load."""
    n_threads = physical_cores()
    with quiet_llama_cpp():
        try:
            opened = llama_cpp.Llama(
                path, n_ctx=len(tokens) + 1, logits_all=True, n_threads=n_threads, n_threads_batch=n_threads, verbose=False
            )
        except ValueError as error:
            raise ModelFileError(f"llama.cpp cannot load {path}: {error}") from error
    with contextlib.closing(opened):
        opened.eval(list(tokens))
        return np.array(opened.scores[: len(tokens)], np.float32)


def relative_difference(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> float:
    """How far two logits [n, n_vocab] are apart in their second half, in parts of the other's length.

    What is added to all of a position's logits, and columns that one has alone, do not count.

    >>> logits = np.array([[0, 0], [3, 1], [2, 4]], np.float32)
    >>> relative_difference(logits, logits + 1), relative_difference(0 * logits, logits)
    (0.0, 1.0)
    """
    n_vocab, half = min(one.shape[1], other.shape[1]), len(one) // 2
    a, b = (of[half:, :n_vocab] - of[half:, :n_vocab].mean(1, keepdims=True) for of in (one, other))
    return float(np.linalg.norm(a - b) / max(float(np.linalg.norm(b)), 1e-30))
