"""Runs every benchmark of docs/reference/benchmarks.md into benchmarks/results, then writes that page.

About 35 minutes on two cores, with nothing else running. With names, only those run: python benchmarks/all.py depth drafts
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time

import document
from commands import COMMANDS, words
from common import RESULTS, smollm2_q4_0

from first_cpp.bench.models import default_cache


def main() -> None:
    os.makedirs(RESULTS, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        smollm2 = smollm2_q4_0(folder)
        document.write_routers_beside(smollm2)
        for name in sys.argv[1:] or COMMANDS:
            start = time.monotonic()
            print(f"== {name}", flush=True)
            run(name, folder)
            print(f"   {time.monotonic() - start:.0f} s", flush=True)
    document.write()


def run(name: str, folder: str) -> None:
    target, command = os.path.join(RESULTS, f"{name}.json"), words(name, folder)
    if COMMANDS[name].startswith("python "):
        subprocess.run([*command, "--out", target], check=True, stdout=subprocess.DEVNULL)
        return
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    document.save_bench(target, done.stdout, COMMANDS[name])


if __name__ == "__main__":
    print(f"synthetic models are kept in {default_cache()}")
    main()
