"""How a summary ends: with the commands that come next."""

from __future__ import annotations

import shlex
from collections.abc import Sequence


def next_commands(*commands: Sequence[str]) -> str:
    """Lines with a command each, to be copied into a shell: words that need it are quoted.

    >>> print(next_commands(["first-cpp", "chat", "-m", "my model.gguf"]))
    next:
      first-cpp chat -m 'my model.gguf'
    """
    return "\n".join(["next:", *(f"  {shlex.join(words)}" for words in commands)])
