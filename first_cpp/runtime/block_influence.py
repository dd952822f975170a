"""Block influence: how little each layer changes the residual stream, without looking at the prompt.

Influence of a layer = mean over tokens of 1 - cosine(what enters it, what leaves it) (ShortGPT, arXiv 2403.03853),
measured on llama.cpp's own hidden states.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..errors import FirstCppError

MAX_TOKENS = 1024


class TextError(FirstCppError, ValueError):
    """Prompts that nothing can be measured on."""


class Model(Protocol):
    """What is measured: a `first_cpp.Llama`."""

    def tokenize(self, text: bytes) -> list[int]: ...

    def hidden_states(self, tokens: list[int]) -> npt.NDArray[np.float32]: ...


def block_influence(llm: Model, prompts: list[str], quiet: bool = True) -> tuple[npt.NDArray[np.float64], int]:
    """Mean over all tokens of 1 - cosine of each layer's input and output: float64 [n_layer], and the tokens read."""
    from rich.console import Console
    from rich.progress import track

    total: npt.NDArray[np.float64] = np.zeros(0)
    n_tokens = 0
    for prompt in track(prompts, "measuring", console=Console(stderr=True), transient=True, disable=quiet):
        tokens = llm.tokenize(prompt.encode("utf-8"))[:MAX_TOKENS]
        if not tokens:
            continue
        states = llm.hidden_states(tokens).astype(np.float64)
        norms = np.linalg.norm(states, axis=-1)
        cosine = (states[:-1] * states[1:]).sum(axis=-1) / np.maximum(norms[:-1] * norms[1:], 1e-30)
        change = (1 - cosine).sum(axis=1)
        total = change if n_tokens == 0 else total + change
        n_tokens += len(tokens)
    if n_tokens == 0:
        raise TextError("the prompts have no tokens")
    return total / n_tokens, n_tokens


def bias_of(influence: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Router biases whose keep scores are influence / (influence + median)."""
    tiny = 1e-9  # a layer that changes nothing at all
    bias: npt.NDArray[np.float32] = (np.log(influence + tiny) - np.log(np.median(influence) + tiny)).astype(np.float32)
    return bias
