"""A copy of a model for many evaluations, where llama.cpp is slow with batches of its type."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator

from ..gguf.model_file import ModelFile
from ..gguf.new_file import check_output
from ..gguf.quantise import QuantizeError, quantise

SLOW_IN_BATCHES = ("q4_1", "q5_0", "q5_1")
"""Types that llama.cpp multiplies row by row: Q8_0 reads a prompt in less than half the time."""


@contextlib.contextmanager
def quick_copy(model: ModelFile, path: str, say: Callable[[str], object]) -> Iterator[str]:
    """The file to evaluate: the model's own, or a Q8_0 copy at `path`, removed afterwards, where batches of its type are slow.

    What follows compares the model with itself, so what Q8_0 rounds does not matter: it is far finer than those types.
    Raises OutputError where the copy cannot be written. say: told of the copy.
    """
    n_bytes = Counter[str]()
    for _, tensor in model.tensors():
        n_bytes[tensor.type] += tensor.n_bytes
    if 2 * sum(n_bytes[kind] for kind in SLOW_IN_BATCHES) < n_bytes.total():
        yield model.path
        return
    check_output(path, model.paths, True, 2 * n_bytes.total())
    say(f"evaluating a copy in Q8_0, {path}: batches of {n_bytes.most_common(1)[0][0]} are slow in llama.cpp")
    found = path
    try:
        try:
            quantise(model.path, path, "Q8_0")
        except QuantizeError as error:
            say(f"{error}: evaluating the model itself")
            found = model.path
        yield found
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)
