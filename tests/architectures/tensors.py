"""The tensors that an architecture has, as llama.cpp itself derives them from the hyper-parameters."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

import llama_cpp

_lib = llama_cpp.llama_cpp._lib  # finds the symbols of libggml-base too
_LOG_LEVEL_ERROR = 4  # ggml.h; llama_cpp._logger takes 3 for it
_SetData = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)


class _Params(ctypes.Structure):
    """struct gguf_init_params { bool no_alloc; struct ggml_context ** ctx; }"""

    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


class _TensorHead(ctypes.Structure):
    """The first members of struct ggml_tensor."""

    _fields_ = (("type", ctypes.c_int), ("buffer", ctypes.c_void_p), ("ne", ctypes.c_int64 * 4))


_lib.gguf_init_from_file.argtypes = (ctypes.c_char_p, _Params)
_lib.gguf_init_from_file.restype = ctypes.c_void_p
_lib.gguf_free.argtypes = (ctypes.c_void_p,)
_lib.ggml_get_name.argtypes = _lib.ggml_n_dims.argtypes = (ctypes.c_void_p,)
_lib.ggml_get_name.restype = ctypes.c_char_p
_lib.llama_model_init_from_user.argtypes = (ctypes.c_void_p, _SetData, ctypes.c_void_p, llama_cpp.llama_model_params)
_lib.llama_model_init_from_user.restype = ctypes.c_void_p


class ModelRefused(Exception):
    """llama.cpp makes no model of these hyper-parameters."""


def list_tensors(metadata: str | os.PathLike[str]) -> dict[str, tuple[int, ...]]:
    """The numpy shapes (rows first) of all tensors that a model with the metadata of this GGUF file has."""
    shapes: dict[str, tuple[int, ...]] = {}

    @_SetData
    def record(tensor: int, _: object) -> None:
        ne = _TensorHead.from_address(tensor).ne[: _lib.ggml_n_dims(tensor)]
        shapes[_lib.ggml_get_name(tensor).decode()] = tuple(reversed(ne))

    context = _lib.gguf_init_from_file(os.fsencode(metadata), _Params(True, None))
    try:
        with _errors() as errors:
            model = _lib.llama_model_init_from_user(context, record, None, llama_cpp.llama_model_default_params())
        if not model:
            raise ModelRefused(" ".join(errors))
        llama_cpp.llama_model_free(model)
    finally:
        _lib.gguf_free(context)
    return shapes


@contextlib.contextmanager
def _errors() -> Iterator[list[str]]:
    """Collects what llama.cpp logs as errors inside, and drops the rest."""
    errors: list[str] = []

    @llama_cpp.llama_log_callback
    def log(level: int, text: bytes, _: object) -> None:
        if level == _LOG_LEVEL_ERROR:
            errors.append(text.decode(errors="replace").strip())

    llama_cpp.llama_log_set(log, None)
    try:
        yield errors
    finally:
        llama_cpp.llama_log_set(llama_cpp._logger.llama_log_callback, None)
