"""How a summary ends: with the commands that come next."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Sequence

PROGRAM, PYTHON = "first-cpp", "python"


def next_commands(*commands: Sequence[str]) -> str:
    """Lines with a command each, to be copied into a shell: words that need it are quoted, programs that a shell would not find
    are named by the path of the one that runs.

    >>> print(next_commands(["first-cpp", "chat", "-m", "my model.gguf"]))
    next:
      first-cpp chat -m 'my model.gguf'
    """
    how = {PROGRAM: _own_program, PYTHON: _own_python}
    lines = (shlex.join([*(how[word]() if word in how else [word]), *more]) for word, *more in commands)
    return "\n".join(["next:", *(f"  {line}" for line in lines)])


def _own_program() -> list[str]:
    """The words that run this `first-cpp`."""
    if shutil.which(PROGRAM):
        return [PROGRAM]
    here = sys.argv[0] if os.path.splitext(os.path.basename(sys.argv[0]))[0] == PROGRAM else None
    script = here or shutil.which(PROGRAM, path=sysconfig.get_path("scripts"))
    return [_near(script)] if script else [_near(sys.executable), "-m", "first_cpp"]


def _own_python() -> list[str]:
    """The words that run this Python: by its path in an environment that no shell has activated."""
    apart = sys.prefix != sys.base_prefix
    found = shutil.which(PYTHON)
    activated = found is not None and os.path.dirname(os.path.abspath(found)) == os.path.dirname(sys.executable)
    return [_near(sys.executable)] if apart and not activated else [PYTHON]


def _near(path: str) -> str:
    """A path as it is typed: from the working folder where it is below that, else from the root."""
    with contextlib.suppress(OSError, ValueError):  # the folder was removed, or is on another drive
        near = os.path.relpath(path)
        if near.split(os.sep)[0] != os.pardir:
            return near if os.sep in near else os.path.join(os.curdir, near)
    return os.path.abspath(path)
