"""`python -m convert` over broken inputs: an error of first_cpp or a whole file, never half of one."""

from __future__ import annotations

import json
import os
import pathlib
import random
import tempfile

import numpy as np
from mutate import main, mutate
from safetensors.numpy import save

from first_cpp import load_routers
from first_cpp._ext import GgufFile
from first_cpp.errors import FirstCppError
from first_cpp.gguf.embed import embed, write_lora_sidecar, write_sidecar
from first_cpp.gguf.merge import merge
from first_cpp.gguf.synthetic import Shape, write_random

SHAPE = Shape(n_layer=2, n_embd=32, n_head=2, n_head_kv=1, n_ff=32, n_vocab=260)
METADATA = {"norm_eps": "1e-5", "skip": "0.4", "skippable": "[true, false]", "train.data": "x"}
ODD_TEXTS = ["", "nan", "inf", "-1", "1e400", "0", "[]", "[1, 2]", "null", "{", "true", "\0", "x" * 5000, "\u00e9", "1_0"]
COST = {
    "norm_eps": 1e-5, "tolerance": 0.1, "fidelity": 0.95, "margin": 0.0, "read": [0, 1], "order": [], "sets": [[1, []]],
    "table": [[0.01, 0.1, 0.01, 0.99], [0.1, 0.4, 0.1, 0.9]],
}  # fmt: skip
CONFIG = {"r": 2, "lora_alpha": 4, "bias": "none", "use_dora": False, "target_modules": ["q_proj"], "peft_type": "LORA"}
ODD_VALUES = [None, 0, -1, 1e308, "x", [], {}, True, "2", [1], float("nan")]


class Inputs:
    """Good inputs, made once: a base model, routers, a training run with a LoRA."""

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            write_random(os.path.join(folder, "base.gguf"), SHAPE)
            self.base = pathlib.Path(folder, "base.gguf").read_bytes()
            self.metadata_size = GgufFile(os.path.join(folder, "base.gguf")).data_offset
        rng = np.random.default_rng(0)
        self.tensors = {
            "weight": rng.normal(0, 0.3, (SHAPE.n_layer, SHAPE.n_embd)).astype(np.float32),
            "bias": rng.normal(0, 0.1, SHAPE.n_layer).astype(np.float32),
        }
        self.lora = {
            f"base_model.model.model.layers.{il}.self_attn.{part}_proj.lora_{ab}.weight": np.ones(shape, np.float32)
            for il in range(SHAPE.n_layer)
            for part, n_out in (("q", 32), ("v", 16))
            for ab, shape in (("A", (2, 32)), ("B", (n_out, 2)))
        }

    def routers(self, rng: random.Random) -> bytes:
        tensors, metadata = dict(self.tensors), dict(METADATA)
        how = rng.randrange(6)
        if how == 0:
            metadata[rng.choice([*METADATA, "base.fingerprint", "train.\u00e9"])] = rng.choice(ODD_TEXTS)
        elif how == 1:
            name = rng.choice(list(tensors))
            tensors[name] = tensors[name].astype(rng.choice([np.float16, np.float64, np.int8, np.bool_]))
        elif how == 2:
            name = rng.choice(list(tensors))
            tensors[name] = tensors[name].copy()
            tensors[name].flat[rng.randrange(tensors[name].size)] = rng.choice([np.nan, np.inf, 3e38, -3e38, 1e-45])
        elif how == 3:
            name = rng.choice(list(tensors))
            tensors[name] = rng.choice(
                [tensors[name][:1], tensors[name].reshape(-1), tensors[name][None], np.zeros((0,), "f4")]
            )
        elif how == 4:
            del tensors[rng.choice(list(tensors))]
        if rng.random() < 0.5:
            self.add_cost(rng, tensors, metadata)
        data = save(tensors, metadata=metadata)
        return mutate(rng, data) if how == 5 else data

    def add_cost(self, rng: random.Random, tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
        """Cost probes of either kind, at times with something odd in them."""
        whole_sets = rng.random() < 0.5
        cost = {name: (list(value) if isinstance(value, list) else value) for name, value in COST.items()}
        if whole_sets:
            tensors.pop("weight", None)
            tensors.pop("bias", None)
            cost |= {"sets": [[1, [0]]], "order": [0, 1]}
        tensors["cost.weight"] = np.full((1, 2, SHAPE.n_embd), 0.01, np.float32)
        tensors["cost.bias"] = np.array([-3.0], np.float32)
        how = rng.randrange(5)
        if how == 0:
            cost[rng.choice(list(cost))] = rng.choice([*ODD_VALUES, [[1, [0]], [1, [0]]], [1, 0], [[2, [0, 1]]], [[1, [1]]]])
        elif how == 1:
            name = rng.choice(["cost.weight", "cost.bias"])
            tensors[name] = rng.choice([tensors[name][:0], tensors[name].reshape(-1), tensors[name].astype("f8")])
        elif how == 2:
            name = rng.choice(["cost.weight", "cost.bias"])
            tensors[name].flat[0] = rng.choice([np.nan, np.inf, 3e38])
        elif how == 3:
            del cost[rng.choice(list(cost))]
        metadata["cost"] = json.dumps(cost) if how != 4 or rng.random() < 0.9 else rng.choice(ODD_TEXTS)

    def model(self, rng: random.Random) -> bytes:
        # what matters stands before and after the vocabulary
        return mutate(rng, self.base, rng.choice([600, self.metadata_size, len(self.base)]))

    def write_run(self, rng: random.Random, folder: pathlib.Path) -> None:
        adapter = folder / "adapter"
        adapter.mkdir()
        config, tensors = dict(CONFIG), dict(self.lora)
        how = rng.randrange(6)
        if how == 0:
            config[rng.choice([*CONFIG, "use_rslora", "rank_pattern", "modules_to_save"])] = rng.choice(ODD_VALUES)
        elif how == 1:
            del config[rng.choice(list(config))]
        elif how == 2:
            key = rng.choice(list(tensors))
            tensors[key] = rng.choice(
                [tensors[key][:1], tensors[key].T.copy(), tensors[key].reshape(-1), tensors[key].astype("f2")]
            )
        elif how == 3:
            key = rng.choice(list(tensors))
            tensors[rng.choice(["x", key.replace("q_proj", "x_proj"), key.replace("layers.0", "layers.9")])] = tensors.pop(key)
        text, data = json.dumps(config).encode(), save(tensors)
        (adapter / "adapter_config.json").write_bytes(mutate(rng, text) if how == 4 else text)
        (adapter / "adapter_model.safetensors").write_bytes(mutate(rng, data, 2000) if how == 5 else data)


def run(seconds: float, seed: int) -> int:
    from mutate import fuzz

    inputs = Inputs()

    def case(rng: random.Random) -> None:
        with tempfile.TemporaryDirectory() as folder:
            check_case(rng, inputs, pathlib.Path(folder))

    return fuzz(case, seconds, seed)


def check_case(rng: random.Random, inputs: Inputs, folder: pathlib.Path) -> None:
    model, out, run_folder = folder / "base.gguf", folder / "out" / "out.gguf", folder / "run"
    out.parent.mkdir()
    run_folder.mkdir()
    what = rng.choice([embed, write_sidecar, merge, write_lora_sidecar])
    breaks_model = rng.random() < 0.5
    model.write_bytes(inputs.model(rng) if breaks_model else inputs.base)
    (run_folder / "routers.safetensors").write_bytes(inputs.routers(rng))
    inputs.write_run(rng, run_folder)
    before = b"an older file" if rng.random() < 0.3 else None
    if before is not None:
        out.write_bytes(before)
    skip = rng.choice([None, None, 0.0, 0.5, 0.9, -1.0, float("nan")])
    quiet = {"quiet": True} if what in (embed, merge) else {}
    try:
        what(str(run_folder), str(model), str(out), skip=skip, force=True, **quiet)
    except FirstCppError:
        assert (out.read_bytes() if out.exists() else None) == before, "a failed conversion left its mark"
    else:
        assert load_routers(str(out)).base.n_layer > 0
        if what is embed:
            start, end = GgufFile(str(model)).data_offset, GgufFile(str(out)).data_offset
            assert out.read_bytes()[end:] == model.read_bytes()[start:], "tensor bytes were changed"
    left = [path.name for path in out.parent.iterdir() if path != out]
    assert not left, f"left behind: {left}"


if __name__ == "__main__":
    main("convert", run)
