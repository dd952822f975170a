"""Block influence as routers that do not look at the prompt: layers that change the residual stream least are skipped first.

The router has zero weights; its bias makes the keep score influence / (influence + median influence).
"""

from __future__ import annotations

import json
import os

import numpy as np

from first_cpp import Llama
from first_cpp.errors import MissingFileError
from first_cpp.gguf.embed import base_of
from first_cpp.gguf.model_file import normal_path, open_model
from first_cpp.gguf.new_file import check_output, new_file
from first_cpp.runtime.block_influence import MAX_TOKENS, TextError, bias_of, block_influence

DEFAULT_SKIP = 0.1  # input-blind: quality falls early


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
        skippable = [not why for why in with_llama.unskippable]
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
