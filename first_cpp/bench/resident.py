"""Resident memory of a process that runs one row of a benchmark alone: `python -m first_cpp.bench.resident`."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any

from .engines import Row


def resident_bytes(row: Row, settings: dict[str, Any], own: dict[str, Any], n_prompt: int) -> int:
    """Resident bytes of such a process after a prompt: Python, weights that were read, KV cache, buffers.

    Raises RuntimeError with what the process said where it failed.
    """
    given = pickle.dumps((row, settings, own, n_prompt))
    done = subprocess.run([sys.executable, "-m", __name__], input=given, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the process of {row.key} failed: {done.stderr.decode(errors='replace').strip()[-400:]}")
    return int(done.stdout)


def _main() -> None:
    import psutil

    row, settings, own, n_prompt = pickle.load(sys.stdin.buffer)
    llm = row.load(settings, own)
    answer = llm.generate([40 + i % 200 for i in range(n_prompt)], temp=0.0)
    for _ in range(4):
        next(answer)
    print(psutil.Process().memory_info().rss)


if __name__ == "__main__":
    _main()
