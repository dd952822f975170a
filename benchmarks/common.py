"""What the benchmarks share: the machine's line, where figures go, SmolLM2 as Q4_0, and input-blind routers."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

import llama_cpp

from first_cpp import Llama, __version__
from first_cpp.cli.demo_texts import CALIBRATION
from first_cpp.gguf.bundled import find_demo_model
from first_cpp.gguf.new_file import new_file
from first_cpp.gguf.quantise import quantise
from first_cpp.gguf.routers import Routers
from first_cpp.runtime.block_influence import MAX_TOKENS
from first_cpp.runtime.block_influence import influence_routers as measure_influence
from first_cpp.runtime.machine import describe_machine, physical_cores

RESULTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "results")
THREADS = physical_cores()
SETTINGS: dict[str, Any] = {"n_threads": THREADS, "n_threads_batch": THREADS, "verbose": False}


def parser(description: str | None) -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--out", help="JSON file for the figures")
    return found


def save(path: str | None, rows: Any) -> None:
    """Write figures with what they come from; print them as well."""
    command = "python benchmarks/" + os.path.basename(sys.argv[0]) + "".join(f" {word}" for word in _figures_of(sys.argv[1:]))
    record = {
        "command": command,
        "machine": describe_machine(),
        "first_cpp": __version__,
        "llama_cpp_python": llama_cpp.__version__,
        "rows": rows,
    }
    print(json.dumps(rows, indent=1))
    if path:
        with new_file(path, "w") as file:
            json.dump(record, file, indent=1)
            file.write("\n")


WHERE = ("--out", "--cache", "--sdist", "--stop-after")
"""Options that say where files lie and when a run is to pause: they change no figure."""


def _figures_of(words: list[str]) -> list[str]:
    return [word for i, word in enumerate(words) if word not in WHERE and (i == 0 or words[i - 1] not in WHERE)]


def smollm2_q4_0(folder: str) -> str:
    """SmolLM2-135M-Instruct of the demo extra (Q4_1) as Q4_0, by llama.cpp's quantizer."""
    out = os.path.join(folder, "smollm2-135m-instruct-q4_0.gguf")
    quantise(find_demo_model(), out, "Q4_0")
    return out


def influence_routers(model: str) -> Routers:
    """Input-blind routers: block influence on the demo's texts."""
    llm = Llama(model, n_ctx=MAX_TOKENS, skip=None, verbose=False)
    try:
        return measure_influence(llm, CALIBRATION)
    finally:
        llm.close()
