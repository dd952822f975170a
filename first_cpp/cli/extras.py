"""Packages that only some verbs need: a missing one is an error that names its extra."""

from __future__ import annotations

import importlib.util

from ..errors import MissingExtraError


def need_extra(what: str, extra: str, *packages: str) -> None:
    """Raise MissingExtraError unless all `packages` are installed; `what` needs them, `extra` brings them.

    >>> need_extra("--plot", "bench", "no_such_package")
    Traceback (most recent call last):
    first_cpp.errors.MissingExtraError: --plot needs no_such_package, which is not installed: pip install "first-cpp[bench]"
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f'{what} needs {" and ".join(missing)}, which is not installed: pip install "first-cpp[{extra}]"'
        )
