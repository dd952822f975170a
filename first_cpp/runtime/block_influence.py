"""Block influence: how little each layer changes the residual stream, as routers that do not look at the prompt.

Influence of a layer = mean over tokens of 1 - cosine(what enters it, what leaves it) (ShortGPT, arXiv 2403.03853),
measured on llama.cpp's own hidden states.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..errors import FirstCppError
from ..gguf.model_file import ModelFile
from ..gguf.router_format import WRITER
from ..gguf.routers import Routers, check_values

MAX_TOKENS = 1024
"""Of a prompt, so many tokens are measured."""
DEFAULT_SKIP = 0.1
"""The share to recommend: routers that do not look at the prompt cost quality early."""


class TextError(FirstCppError, ValueError):
    """Prompts that nothing can be measured on."""


class Model(Protocol):
    """What is measured: a `first_cpp.Llama` whose context holds MAX_TOKENS."""

    model_path: str

    @property
    def unskippable(self) -> tuple[str, ...]: ...

    def tokenize(self, text: bytes) -> list[int]: ...

    def hidden_states(self, tokens: list[int]) -> npt.NDArray[np.float32]: ...


def influence_routers(
    llm: Model, prompts: Sequence[str], skip: float = DEFAULT_SKIP, *, source: str = "", quiet: bool = True
) -> Routers:
    """Routers whose keep scores are the block influence of `llm`'s layers on `prompts`, whatever the prompt.

    Their weights are 0; their biases [n_layer] make a layer's keep score influence / (influence + median influence), so layers
    that change the residual stream least are skipped first. skip: the share to recommend. source: where the prompts come from,
    for the training record. quiet: no progress bar. Raises TextError where the prompts have no tokens, and as `hidden_states`.

    >>> from first_cpp import Llama
    >>> llm = Llama("model.gguf", n_ctx=1024, verbose=False)
    >>> influence_routers(llm, ["some text", "another"]).bias.shape
    (6,)
    >>> llm.close()
    """
    model = ModelFile.open(llm.model_path)
    influence, n_tokens = block_influence(llm, prompts, quiet)
    of = f"{source}: " if source else ""
    routers = Routers(
        base=model.base,
        weight=np.zeros((model.n_layer, model.n_embd), np.float32),
        bias=bias_of(influence),
        norm_eps=model.norm_eps,
        skippable=tuple(not why for why in llm.unskippable),
        skip=skip,
        writer=WRITER,
        train={
            "method": "block influence, input-blind",
            "data": f"{of}{len(prompts)} prompts, {n_tokens} tokens",
        },
    )
    check_values(routers, "block influence")
    return routers


def block_influence(llm: Model, prompts: Sequence[str], quiet: bool = True) -> tuple[npt.NDArray[np.float64], int]:
    """Mean over all tokens of 1 - cosine of each layer's input and output: float64 [n_layer], and the tokens read."""
    from rich.console import Console
    from rich.progress import track

    total: npt.NDArray[np.float64] = np.zeros(0)  # [n_layer], summed over tokens
    n_tokens = 0
    for prompt in track(prompts, "measuring", console=Console(stderr=True), transient=True, disable=quiet):
        tokens = llm.tokenize(prompt.encode("utf-8"))[:MAX_TOKENS]
        if not tokens:
            continue
        states = llm.hidden_states(tokens).astype(np.float64)  # [n_layer + 1, n_tokens, n_embd]
        norms = np.linalg.norm(states, axis=-1)
        cosine = (states[:-1] * states[1:]).sum(axis=-1) / np.maximum(norms[:-1] * norms[1:], 1e-30)  # [n_layer, n_tokens]
        change = (1 - cosine).sum(axis=1)
        total = change if n_tokens == 0 else total + change
        n_tokens += len(tokens)
    if n_tokens == 0:
        raise TextError("the prompts have no tokens")
    return total / n_tokens, n_tokens


def bias_of(influence: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Router biases [n_layer] whose keep scores are influence / (influence + median)."""
    tiny = 1e-9  # a layer that changes nothing at all
    bias: npt.NDArray[np.float32] = (np.log(influence + tiny) - np.log(np.median(influence) + tiny)).astype(np.float32)
    return bias
