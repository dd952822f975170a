"""Trained routers and LoRA that come with the package: folders as `first-cpp train` leaves them."""

from __future__ import annotations

import os

FOLDER = os.path.join(os.path.dirname(__file__), "adapters")


def shipped_adapters() -> list[str]:
    """The names of the adapters that come with the package."""
    return sorted(name for name in os.listdir(FOLDER) if os.path.isdir(os.path.join(FOLDER, name)))


def find_adapter(routers: str) -> str:
    """The folder of the adapter of that name; `routers` itself where it is a path or no adapter has the name."""
    shipped = not os.path.exists(routers) and routers in shipped_adapters()
    return os.path.join(FOLDER, routers) if shipped else routers
