"""How long OpenMP's threads spin at a barrier, on a quiet and on a busy machine: median and mean step, and prefill.

llama.cpp's threads meet at a barrier after every graph node. Who spins there takes a core from the thread that is waited for,
where other processes want the cores too; who sleeps at once wakes too late on a quiet machine. Stock llama_cpp, SmolLM2-135M,
each setting in a process of its own, in turns.

python benchmarks/busy.py --rounds 3
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from common import THREADS, parser, save

from first_cpp.gguf.bundled import find_demo_model

SETTINGS: dict[str, dict[str, str]] = {
    "libgomp's default": {},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "GOMP_SPINCOUNT=500": {"GOMP_SPINCOUNT": "500"},
    "GOMP_SPINCOUNT=100": {"GOMP_SPINCOUNT": "100"},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
    "one thread": {},
}
TEXT = "The quick brown fox jumps over the lazy dog and runs. " * 8


def measure(model: str, n_threads: int, n_tokens: int) -> None:
    """In a process of its own: print median and mean step and prefill, ms."""
    import llama_cpp

    llm = llama_cpp.Llama(model, n_ctx=512, verbose=False, n_threads=n_threads, n_threads_batch=n_threads)
    start = time.perf_counter()
    answer = llm.generate(llm.tokenize(TEXT.encode()), temp=0.0)
    next(answer)
    seconds = [time.perf_counter() - start]
    for _ in range(n_tokens):
        start = time.perf_counter()
        next(answer)
        seconds.append(time.perf_counter() - start)
    prefill, *steps = (1e3 * one for one in seconds)
    print(statistics.median(steps), statistics.mean(steps), prefill)


@contextlib.contextmanager
def busy(n: int) -> Iterator[None]:
    """`n` processes that want a core each."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
    try:
        yield
    finally:
        for other in others:
            other.kill()


def asked(model: str, name: str, n_tokens: int) -> list[float]:
    n_threads = 1 if name == "one thread" else THREADS
    quiet = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, __file__, "--one", model, str(n_threads), str(n_tokens)]
    done = subprocess.run(command, env={**quiet, **SETTINGS[name]}, check=True, capture_output=True, text=True)
    return [float(word) for word in done.stdout.split()]


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--tokens", type=int, default=40)
    arguments.add_argument("--busy", type=int, nargs="+", default=[0, 1, THREADS], help="how many other processes are busy")
    args = arguments.parse_args()
    model, rows = find_demo_model(), []
    for n in args.busy:
        with busy(n):
            found = [{name: asked(model, name, args.tokens) for name in SETTINGS} for _ in range(args.rounds)]
        for name in SETTINGS:
            middle = [statistics.median(column) for column in zip(*(round_[name] for round_ in found), strict=True)]
            row: dict[str, Any] = dict(zip(("step_ms", "mean_step_ms", "prefill_ms"), middle, strict=True))
            rows.append({"busy": n, "setting": name, "n_threads": 1 if name == "one thread" else THREADS, **row})
    save(args.out, rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        measure(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
