"""Block influence as input-blind routers: layers that change the residual stream least are left out first.

Influence of a layer = mean over tokens of 1 - cosine(what enters it, what leaves it) (ShortGPT, arXiv 2403.03853),
measured on llama.cpp's own hidden states. The router has zero weights; its bias makes the keep score
influence / (influence + median influence).
"""

from __future__ import annotations

import json
import os

import numpy as np
import numpy.typing as npt

from first_cpp import Llama
from first_cpp.errors import FirstCppError, MissingFileError
from first_cpp.model_file import normal_path, open_model

from .embed import base_of
from .output import check_output, new_file

DEFAULT_SKIP = 0.1  # input-blind: quality falls early
MAX_TOKENS = 1024


class TextError(FirstCppError, ValueError):
    """Prompts that nothing can be measured on."""


def write_influence(
    model: str, text: str, out: str, *, skip: float | None = None, force: bool = False, quiet: bool = False
) -> None:
    """Measure the block influence of `model` on the lines of `text` and write routers to `out` (safetensors).

    Raises TextError for a text without prompts, OutputError for an output that must not be written.
    """
    from safetensors.numpy import save

    model, out = normal_path(model), normal_path(out)
    text = normal_path(text)
    prompts = read_prompts(text)
    parts = open_model(model)
    base, norm_eps = base_of(parts)
    check_output(out, [*(path for path, _ in parts), text], force, 1 << 20)
    with_llama = Llama(model, n_ctx=MAX_TOKENS, skip=None, verbose=False)
    try:
        influence, n_tokens = block_influence(with_llama, prompts, quiet)
        skippable = [not why for why in with_llama._layers.trouble]
    finally:
        with_llama.close()
    metadata = {
        "norm_eps": repr(norm_eps),
        "skip": repr(DEFAULT_SKIP if skip is None else skip),
        "skippable": json.dumps(skippable),
        "base.fingerprint": base.fingerprint,
        "train.method": "block influence, input-blind",
        "train.data": f"{os.path.basename(text)}: {len(prompts)} prompts, {n_tokens} tokens",
    }
    tensors = {"weight": np.zeros((base.n_layer, base.n_embd), np.float32), "bias": bias_of(influence)}
    with new_file(out) as file:
        file.write(save(tensors, metadata=metadata))


def read_prompts(path: str) -> list[str]:
    """The non-empty lines of a UTF-8 file. Raises MissingFileError or TextError."""
    try:
        with open(path, encoding="utf-8") as file:
            prompts = [line.strip() for line in file if line.strip()]
    except FileNotFoundError:
        raise MissingFileError(f"--text {path} does not exist") from None
    except UnicodeDecodeError as error:
        raise TextError(f"--text {path} is not UTF-8: {error}") from None
    if not prompts:
        raise TextError(f"--text {path} has no prompts: one a line is expected")
    return prompts


def block_influence(llm: Llama, prompts: list[str], quiet: bool = True) -> tuple[npt.NDArray[np.float64], int]:
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
