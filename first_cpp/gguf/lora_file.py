"""LoRA in GGUF, as llama.cpp loads it: a file of its own, or the one in a side file with routers."""

from __future__ import annotations

import os

from ..errors import MissingFileError, ModelFileError, RouterError
from .model_file import open_gguf


def carries_lora(path: str) -> bool:
    """Whether a GGUF holds a LoRA. Raises as `open_gguf` does.

    >>> carries_lora("adapter.gguf")  # a side file with routers alone
    False
    """
    file = open_gguf(path)
    return file.kind("adapter.type") == "str" and file.get("adapter.type") == b"lora"


def check_lora(path: str) -> None:
    """Raise MissingFileError, or ModelFileError for what holds no LoRA: llama.cpp's loader would end the process."""
    if not os.path.exists(path):
        raise MissingFileError(f"LoRA path does not exist: {path}")
    if not carries_lora(path):
        raise ModelFileError(f'{path} is no LoRA: a GGUF with general.type "adapter" and adapter.type "lora" is needed')


def find_lora(routers: str | None, given: str | None) -> str | None:
    """The LoRA to load: the one in the side file `routers`, or the one `given`; both are paths.

    Raises RouterError where there are two, and what `check_lora` does.
    """
    if routers and carries_lora(routers):
        if given:
            raise RouterError(f"{routers} carries a LoRA of its own: lora_path cannot be given beside it")
        return routers
    if given:
        check_lora(given)
    return given
