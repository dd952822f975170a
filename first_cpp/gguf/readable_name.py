"""What people call a model: its `general.name` made readable, or its file's name."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from .printable import is_hidden

_MOST = 40  # characters
_LABEL_WORDS = 3  # a finetune of so many words is the label of a training run


def readable_name(metadata: Mapping[str, str], path: str) -> str:
    """The name of the model in the file `path` with this metadata: words with blanks between, at most 40
    characters, all of them printable.

    >>> readable_name({"general.name": "meta-llama_Llama-3.2-1B-Instruct"}, "model.gguf")
    'meta-llama Llama-3.2-1B-Instruct'
    >>> readable_name({"general.name": "Smollm2 135M 8k Lc100K Ep2", "general.finetune": "8k-lc100k-ep2"}, "model.gguf")
    'Smollm2 135M'
    >>> readable_name({}, "models/SmolLM2-135M-Instruct.Q4_1.gguf")
    'SmolLM2-135M-Instruct.Q4_1'
    """
    given = metadata.get("general.name", "").replace("_", " ")
    name = _one_line(os.path.basename(given.rstrip("/\\").replace("\\", "/")))
    label = re.split(r"[\s-]+", _one_line(metadata.get("general.finetune", "").replace("_", " ")))
    if len(label) >= _LABEL_WORDS:
        name = re.sub(r"[\s-]+" + r"[\s-]+".join(map(re.escape, label)) + "$", "", name, flags=re.IGNORECASE)
    name = name or _one_line(os.path.splitext(os.path.basename(path))[0])
    return name if len(name) <= _MOST else f"{name[: _MOST - 3].rstrip()}..."


def _one_line(text: str) -> str:
    """Printable signs alone: a file may hold any, and terminals obey some."""
    printable = "".join(" " if is_hidden(sign) else sign for sign in text)
    return " ".join(printable.split())
