"""The same model without some layers, written by llama.cpp's own quantizer: the oracle and the speed limit of skipping."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable

import llama_cpp

from .quantise import run_quantizer


def write_pruned(model: str | os.PathLike[str], out: str | os.PathLike[str], layers: Iterable[int]) -> None:
    """Copy the GGUF `model` to `out` without `layers`; all other tensors keep their bytes.

    Raises QuantizeError (a RuntimeError) where llama.cpp cannot prune this architecture, OutputError as `new_file` does.

    >>> from first_cpp.gguf.model_file import ModelFile
    >>> write_pruned("model.gguf", "pruned.gguf", [2, 3])
    >>> ModelFile.open("pruned.gguf").n_layer
    4
    """
    pruned = sorted(layers)
    params = llama_cpp.llama_model_quantize_default_params()
    params.only_copy = True
    params.prune_layers = (ctypes.c_int32 * (len(pruned) + 1))(*pruned, -1)
    run_quantizer(model, out, params, f"prune layers {pruned} of {os.fspath(model)}")
