"""How llama.cpp's threads wait for each other."""

from __future__ import annotations

import os
import sys

SPINS = "500"
"""Turns of a loop that a thread waits in before it sleeps. libgomp's own are many: on a busy machine the threads then take the
cores that the one they wait for needs. Far fewer, and they wake too late on a quiet machine. benchmarks/busy.py measures it."""


def wait_gently() -> None:
    """Before llama_cpp is imported, which loads libgomp: libgomp reads its settings then, and only then.

    Nothing where somebody has set OMP_WAIT_POLICY or GOMP_SPINCOUNT.
    """
    if "llama_cpp" not in sys.modules and not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:
        os.environ["GOMP_SPINCOUNT"] = SPINS
