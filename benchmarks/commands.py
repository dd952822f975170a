"""The commands of `make bench`: what all.py runs and what the documents print, from one list."""

from __future__ import annotations

import os
import sys

SMOLLM2 = "smollm2-135m-instruct-q4_0.gguf"
"""The demo model as Q4_0: all.py writes it into a temporary folder."""

_BENCH = "first-cpp bench -o json"
_STEPS = f"{_BENCH} --no-resident --skip 0,0.25 -p 0"
_TYPES = "--type q4_0,q8_0,q4_k_m -r 1"

COMMANDS = {
    "limit-smollm2": f"{_STEPS} -m {SMOLLM2} -n 60 -r 1 --loads 16",
    "ttft": f"{_BENCH} --no-resident -m {SMOLLM2} --routers {SMOLLM2}.routers --skip 0.25 -n 0 --engines stock,first_cpp -r 10",
    "limit-1b": f"{_STEPS} --synthetic llama-3.2-1b {_TYPES} -n 24 --loads 5",
    "limit-3b": f"{_STEPS} --synthetic llama-3.2-3b {_TYPES} -n 16 --loads 2",
    "depth": f"{_STEPS} --synthetic llama-3.2-3b --type q4_0 -n 20 -r 1 -d 0,2048,8192",
    "resident": f"{_BENCH} -m {SMOLLM2} --skip 0,0.25,0.4 --release-kv -p 0 -n 16 -d 7680 -r 1",
    "whole_answer": "python benchmarks/whole_answer.py",
    "load_time": "python benchmarks/load_time.py --loads 5",
    "memory_limit": "python benchmarks/memory_limit.py",
    "routed_prefill": "python benchmarks/routed_prefill.py",
    "drafts": "python benchmarks/drafts.py",
    "chat_turns": "python benchmarks/chat_turns.py",
    "conversation": "python benchmarks/conversation.py",
    "conversation-1b": "python benchmarks/conversation.py --synthetic llama-3.2-1b --rounds 3",
    "busy": "python benchmarks/busy.py",
    "what_else": "python benchmarks/what_else.py",
    "llama_bench": "python benchmarks/llama_bench.py --rounds 3",
}
"""The command of each file in benchmarks/results, by its name. held, calibration and calibrate_runs are there too: they need
models and prompts that are not in the repository, and are run by hand."""


def words(name: str, folder: str) -> list[str]:
    """The command as a process of this Python; SmolLM2 and its routers are in `folder`."""
    first, *rest = COMMANDS[name].split()
    if first == "python":
        script, *options = rest
        root = os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir)
        return [sys.executable, os.path.join(root, script), *options]
    return [sys.executable, "-m", "first_cpp", *(os.path.join(folder, word) if SMOLLM2 in word else word for word in rest)]
