"""llama.cpp's own quantizer: a model in another file type."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import llama_cpp
from llama_cpp._logger import llama_log_callback

from ..errors import FirstCppError, OptionError
from .deferred_signals import DeferredSignals
from .file_progress import growing
from .model_file import ModelFile
from .new_file import new_path

Watched: TypeAlias = Callable[[str], contextlib.AbstractContextManager[Any]]
"""Makes a context that a file is written in."""


class QuantizeError(FirstCppError, RuntimeError):
    """llama.cpp's quantizer refused."""


def _file_types() -> dict[str, int]:
    """llama.cpp's file types by name."""
    prefixes = ("LLAMA_FTYPE_MOSTLY_", "LLAMA_FTYPE_ALL_")
    return {
        key.removeprefix(prefix): value
        for key, value in vars(llama_cpp).items()
        for prefix in prefixes
        if key.startswith(prefix) and isinstance(value, int)
    }


def file_type(name: str) -> int:
    """llama.cpp's number for a file type. Raises OptionError with the names there are.

    >>> file_type("Q4_0"), file_type("q8_0")
    (2, 7)
    """
    known = _file_types()
    if name.upper() not in known:
        raise OptionError(f"--quantize {name} is not a type of llama.cpp; known: {', '.join(sorted(known))}")
    return known[name.upper()]


NEED_MATRIX = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "Q2_K_S")
"""File types that llama.cpp writes with an importance matrix alone, which we have not."""


def check_type(name: str) -> None:
    """Raise OptionError for a file type that we cannot write, naming what can be given.

    >>> check_type("IQ1_S")
    Traceback (most recent call last):
    first_cpp.errors.OptionError: --quantize IQ1_S needs an importance matrix; give another type, such as Q4_0 or Q8_0
    """
    file_type(name)
    if name.upper() in NEED_MATRIX:
        raise OptionError(f"--quantize {name} needs an importance matrix; give another type, such as Q4_0 or Q8_0")


def stored_type(model: ModelFile) -> str | None:
    """llama.cpp's name of the file type that a model is stored in: as it says, or by the type of most of its bytes; None for
    one that we do not know.

    >>> stored_type(ModelFile.open("model.gguf"))
    'F32'
    """
    key, known = "general.file_type", _file_types()
    number = int(model.first.get(key)) if model.first.kind(key) == "u32" else -1
    said = file_type_name(number)
    n_bytes = Counter[str]()
    for _, tensor in model.tensors():
        n_bytes[tensor.type.upper()] += tensor.n_bytes
    most = n_bytes.most_common(1)[0][0] if n_bytes else ""
    return said or next((name for name in (most, f"{most}_M") if name in known), None)


def file_type_name(number: int) -> str | None:
    """The name of llama.cpp's file type of that number, None where there is none.

    >>> file_type_name(15)
    'Q4_K_M'
    """
    return next((name for name, value in _file_types().items() if value == number), None)


def quantise(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    type_name: str,
    more: Callable[[float], object] | None = None,
) -> None:
    """Write `model` with its matrices in another type, "Q4_0"; what is quantised already is quantised again.

    more: told from time to time how much more of the work is done, 1 in all. Raises OptionError for a type that llama.cpp does
    not know, QuantizeError where it fails, OutputError as `new_file` does.

    >>> quantise("model.gguf", "small.gguf", "Q8_0")
    >>> os.path.getsize("small.gguf") < os.path.getsize("model.gguf") / 3
    True
    """
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = file_type(type_name)
    params.allow_requantize = True
    watched: Watched = contextlib.nullcontext
    if more is not None:
        watched = functools.partial(growing, expected=about_bytes(ModelFile.open(model), type_name), more=more)
    run_quantizer(model, out, params, f"quantise {os.fspath(model)} to {type_name}", watched)


def about_bytes(model: ModelFile, type_name: str) -> float:
    """About how large a model is in another type: its matrices in that, all else in F32. Needs the gguf package.

    >>> model = ModelFile.open("model.gguf")
    >>> quantise("model.gguf", "small.gguf", "Q4_0")
    >>> 0.7 < about_bytes(model, "Q4_0") / os.path.getsize("small.gguf") < 1.4
    True
    """
    import gguf

    named = [kind for kind in gguf.GGMLQuantizationType if type_name.upper().startswith(kind.name)]
    n_block, n_bytes = gguf.GGML_QUANT_SIZES[
        max(named, key=lambda kind: len(kind.name), default=gguf.GGMLQuantizationType.Q4_0)
    ]
    sizes = [(math.prod(tensor.shape), len(tensor.shape)) for _, tensor in model.tensors()]
    return sum(n * (n_bytes / n_block if n_dims > 1 else 4) for n, n_dims in sizes)


def run_quantizer(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    params: Any,
    what: str,
    watched: Watched = contextlib.nullcontext,
) -> None:
    """Let llama.cpp write `out` from `model`. Raises QuantizeError: could not `what`.

    params: llama_model_quantize_params. watched: makes a context for the file that is written, which it is given.
    """
    with new_path(out) as part:
        with watched(part), DeferredSignals(), quiet_llama_cpp():
            failed = llama_cpp.llama_model_quantize(os.fsencode(model), os.fsencode(part), ctypes.byref(params))
        if failed:
            raise QuantizeError(f"llama.cpp could not {what}")


@contextlib.contextmanager
def quiet_llama_cpp() -> Iterator[None]:
    """llama.cpp's quantizer logs a line for every tensor, a vocabulary without its model a false warning.

    Its log goes nowhere: the level of llama_cpp's logger is set anew by every `Llama` that is made.
    """
    llama_cpp.llama_log_set(_nowhere, ctypes.c_void_p(0))
    try:
        yield
    finally:
        llama_cpp.llama_log_set(llama_log_callback, ctypes.c_void_p(0))


_nowhere = llama_cpp.llama_log_callback(lambda _level, _text, _data: None)
