"""The same model without some layers, written by llama.cpp's own quantizer: the oracle and the speed limit of skipping."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
from collections.abc import Iterable, Iterator

import llama_cpp


def write_pruned(model: str, out: str, layers: Iterable[int]) -> None:
    """Copy the GGUF `model` to `out` without `layers`; all other tensors keep their bytes.

    Raises RuntimeError when llama.cpp cannot prune this architecture.
    """
    pruned = sorted(layers)
    params = llama_cpp.llama_model_quantize_default_params()
    params.only_copy = True
    params.prune_layers = (ctypes.c_int32 * (len(pruned) + 1))(*pruned, -1)
    with quiet_llama_cpp():
        failed = llama_cpp.llama_model_quantize(os.fsencode(model), os.fsencode(out), ctypes.byref(params)) != 0
    if failed:
        raise RuntimeError(f"llama.cpp could not prune layers {pruned} of {model}")


@contextlib.contextmanager
def quiet_llama_cpp() -> Iterator[None]:
    """llama.cpp's quantizer logs a line for every tensor, a vocabulary without its model a false warning."""
    logger = logging.getLogger("llama-cpp-python")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # llama_cpp logs llama.cpp's warnings as errors
    try:
        yield
    finally:
        logger.setLevel(level)
