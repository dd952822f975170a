"""Runs every benchmark of docs/BENCHMARKS.md into benchmarks/results, then writes the document. Under 20 minutes on two cores.

Nothing else may run meanwhile. With names, only those are run anew: python benchmarks/all.py depth drafts
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time

import document
from common import RESULTS, smollm2_q4_0

from first_cpp.bench.command import default_cache

BENCH = [sys.executable, "-m", "first_cpp", "bench", "-o", "json", "--no-resident"]
LIMIT = [*BENCH, "--skip", "0,0.25", "-p", "0"]


def commands(smollm2: str) -> dict[str, list[str]]:
    """What is run for each file of results."""
    script = [sys.executable, os.path.join(os.path.dirname(__file__), "")]
    three = ["--type", "q4_0,q8_0,q4_k_m", "-r", "1"]
    scored = ["--routers", f"{smollm2}.routers", "--skip", "0.25", "--engines", "stock,first_cpp"]
    resident = [word for word in BENCH if word != "--no-resident"]
    found = {
        "limit-smollm2": [*LIMIT, "-m", smollm2, "-n", "60", "-r", "1", "--loads", "10"],
        "ttft": [*BENCH, "-m", smollm2, *scored, "-n", "0", "-r", "8"],
        "limit-1b": [*LIMIT, "--synthetic", "llama-3.2-1b", *three, "-n", "24", "--loads", "3"],
        "limit-3b": [*LIMIT, "--synthetic", "llama-3.2-3b", *three, "-n", "16", "--loads", "2"],
        "depth": [*LIMIT, "--synthetic", "llama-3.2-3b", "--type", "q4_0", "-n", "20", "-r", "1", "-d", "0,2048,8192"],
        "resident": [
            *resident,
            "-m",
            smollm2,
            "--skip",
            "0,0.25,0.4",
            "--release-kv",
            "-p",
            "0",
            "-n",
            "16",
            "-d",
            "7680",
            "-r",
            "1",
        ],
    }
    for name in ("whole_answer", "load_time", "memory_limit", "routed_prefill", "drafts", "chat_turns"):
        found[name] = [script[0], f"{script[1]}{name}.py", "--out", os.path.join(RESULTS, f"{name}.json")]
    found["chat_turns"] += ["--rounds", "1"]
    return found


def main() -> None:
    os.makedirs(RESULTS, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        smollm2 = smollm2_q4_0(folder)
        document.write_routers_beside(smollm2)
        found = commands(smollm2)
        for name in sys.argv[1:] or found:
            start = time.monotonic()
            print(f"== {name}", flush=True)
            run(name, found[name], folder)
            print(f"   {time.monotonic() - start:.0f} s", flush=True)
    document.write()


def run(name: str, command: list[str], folder: str) -> None:
    target = os.path.join(RESULTS, f"{name}.json")
    if "--out" in command:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    words = ["first-cpp", *command[3:]]
    document.save_bench(target, done.stdout, " ".join(word.replace(folder + os.sep, "") for word in words))


if __name__ == "__main__":
    print(f"synthetic models are kept in {default_cache()}")
    main()
