"""Versions, and the check that the extension runs with the llama.cpp it was compiled against."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os

import llama_cpp

__version__ = importlib.metadata.version("first-cpp")


def check_versions() -> None:
    """Raise ImportError unless the loaded ggml and llama-cpp-python are those the extension was compiled against.

    The extension reads and changes ggml's tensors in memory: another version may lay them out differently.
    """
    from . import _ext

    for name, built, running in (
        ("llama-cpp-python", _ext.built_with_llama_cpp_python, llama_cpp.__version__),
        ("ggml", _ext.built_with_ggml, _ext.ggml_version()),
    ):
        if built != running:
            raise ImportError(
                f"first_cpp {__version__} was compiled against {name} {built}, but {running} is installed; "
                f"install llama-cpp-python=={_ext.built_with_llama_cpp_python} or reinstall first-cpp"
            )


def libllama_path() -> str:
    """Path of the libllama that this process has loaded."""
    name: str = llama_cpp.llama_cpp._lib._name
    return os.path.realpath(name)


def describe() -> str:
    """The versions that matter in a report, a line each."""
    from . import _ext

    lib: ctypes.CDLL = llama_cpp.llama_cpp._lib
    lib.llama_version.restype = ctypes.c_char_p
    return "\n".join(
        [
            f"first_cpp {__version__}",
            f"llama-cpp-python {llama_cpp.__version__}",
            f"libllama {lib.llama_version().decode()} {libllama_path()}",
            f"ggml {_ext.ggml_version()}",
        ]
    )
