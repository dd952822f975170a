"""Broken copies of good bytes, and the loop that the Python fuzzers share."""

from __future__ import annotations

import argparse
import random
import struct
import time
from collections.abc import Callable

EDGES = [0, 1, 2, 7, 8, 9, 10, 31, 32, 255, 256, 65535, 1 << 31, (1 << 32) - 1, 1 << 40, 1 << 62, (1 << 63) - 1, (1 << 64) - 1]


def mutate(rng: random.Random, data: bytes, reach: int | None = None) -> bytes:
    """A copy with one to four changes within the first `reach` bytes."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(max(1, min(len(changed), reach or len(changed))))
        how = rng.randrange(6)
        if how == 0:
            changed[at : at + 1] = bytes([rng.randrange(256)])
        elif how == 1:
            changed[at : at + 1] = bytes([changed[at] ^ (1 << rng.randrange(8))] if at < len(changed) else [0])
        elif how == 2:
            size = rng.choice([1, 2, 4, 8])
            changed[at : at + size] = struct.pack("<Q", rng.choice(EDGES))[:size]
        elif how == 3:
            del changed[at : at + rng.randint(1, 16)]
        elif how == 4:
            changed[at:at] = changed[at : at + rng.randint(1, 16)]
        else:
            del changed[at:]
    return bytes(changed)


def fuzz(case: Callable[[random.Random], None], seconds: float, seed: int) -> int:
    """Run `case` with random numbers of consecutive seeds until the time is over; the number of cases. An exception says
    which seed it came with."""
    end = time.monotonic() + seconds
    n = 0
    while n == 0 or time.monotonic() < end:
        try:
            case(random.Random(seed + n))
        except BaseException as error:
            error.add_note(f"with --seed {seed + n}") if hasattr(error, "add_note") else None
            raise
        n += 1
    return n


def main(name: str, run: Callable[[float, int], int]) -> None:
    parser = argparse.ArgumentParser(description=f"Fuzz {name}.")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0, help="of the first case; the next have the numbers after it")
    args = parser.parse_args()
    print(f"{name}: {run(args.seconds, args.seed)} cases")
