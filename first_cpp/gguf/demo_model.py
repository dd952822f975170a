"""The demo model with its bundled adapter folded in: one GGUF, made once and kept."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import os
from collections.abc import Callable

from .._version import __version__
from ..errors import MissingExtraError
from .bundled import DEMO_ADAPTER, PACKAGE, find_adapter, find_demo_model
from .merge import merge
from .new_file import OutputError

QUANTIZE = "Q4_0"  # what the adapter was trained for


def cache_folder() -> str:
    """Where files that can be made again are kept: $XDG_CACHE_HOME/first_cpp, or ~/.cache/first_cpp.

    >>> os.path.basename(cache_folder())
    'first_cpp'
    """
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache"), "first_cpp")


def demo_model_with_routers(folder: str | None = None, say: Callable[[str], object] = lambda _text: None) -> str:
    """Path of the demo model with the adapter for everyday prompts, in `folder`, by default `cache_folder()`.

    The first call makes it, which takes seconds; `say` is told before.
    Raises MissingExtraError, naming the extra, where a package is missing; OutputError for a folder that cannot be written.

    >>> demo_model_with_routers()  # doctest: +SKIP
    '/home/me/.cache/first_cpp/4f2c1d7a90be/smollm2-135m-everyday.gguf'
    """
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtraError('the demo model needs gguf, which is not installed: pip install "first-cpp[demo]"')
    base, adapter, path = find_demo_model(), find_adapter(DEMO_ADAPTER), path_with_routers(folder)
    if not os.path.exists(path):
        _make_folder(os.path.dirname(path))
        say(f"preparing {os.path.basename(base)}, once: the adapter for everyday prompts is folded in, a few seconds")
        merge(adapter, base, path, quantize=QUANTIZE, force=True, quiet=True)
    return path


def _make_folder(folder: str) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise OutputError(
            f"the demo model with its routers cannot be kept in {folder}: {error.strerror}; let the variable XDG_CACHE_HOME "
            "name a folder that can be written"
        ) from None


def path_with_routers(folder: str | None = None) -> str:
    """Where `demo_model_with_routers` keeps its file, made or not. Raises MissingFileError without the demo extra."""
    base, adapter = find_demo_model(), find_adapter(DEMO_ADAPTER)
    return os.path.join(folder or cache_folder(), _key(base, adapter), f"{DEMO_ADAPTER}.gguf")


def _key(base: str, adapter: str) -> str:
    """Twelve digits that differ where the file would: by base, adapter and version."""
    digest = hashlib.sha256(f"{__version__} {PACKAGE} {os.path.basename(base)} {os.path.getsize(base)} {QUANTIZE}".encode())
    for folder, _, names in sorted(os.walk(adapter)):
        for name in sorted(names):
            with open(os.path.join(folder, name), "rb") as file:
                digest.update(file.read())
    return digest.hexdigest()[:12]
