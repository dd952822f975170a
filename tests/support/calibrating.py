"""For tests of calibrating: a model of which two layers do nothing, the command, and a procedure on an engine."""

from __future__ import annotations

import numpy as np

from first_cpp.calibrate.cost_store import CostStore
from first_cpp.calibrate.procedure import Plan, Procedure, Show
from first_cpp.calibrate.prompts import Prompt
from first_cpp.cli.main import main
from first_cpp.gguf.synthetic import tensor_shapes

IDLE = {1, 4}
"""Layers of the model below that do nothing."""


def idle_tensors(shape):
    rng = np.random.default_rng(3)
    for name, dims in tensor_shapes(shape):
        layer = int(name.split(".")[1]) if name.startswith("blk.") else -1
        if len(dims) == 1:
            yield name, dims, rng.uniform(0.5, 1.5, dims).astype(np.float32)
        elif layer in IDLE and name.endswith(("attn_output.weight", "ffn_down.weight")):
            yield name, dims, np.zeros(dims, np.float32)
        else:
            yield name, dims, rng.normal(0, 0.1, dims).astype(np.float32)


def calibrate(model, prompts, out, *more, quiet=True):
    more = [*more, "--quiet"] if quiet else more
    return main(["calibrate", "-m", model, "--prompts", prompts, "--out", str(out), "-n", "8", "-t", "1", *more])


def make(engine, folder, plan=None, show=None):
    prompts = [Prompt(f"q{i}") for i in range(40)]
    tokens = [engine.tokenize(f"Question {i}: what is it?".encode()) for i in range(40)]
    store = CostStore(str(folder / "state"), {"of": "this"}, len(prompts))
    plan = plan or Plan(max_tokens=6, search_prompts=12, search_tokens=5, first=4)
    return Procedure(engine, prompts, tokens, 1e-5, store, plan, show or Show())
