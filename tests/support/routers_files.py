"""Router files for tests."""

from __future__ import annotations

import numpy as np
from safetensors.numpy import save_file

from first_cpp import Routers
from first_cpp.gguf.cost_probes import CostProbes, LayerSet, TolerancePoint
from first_cpp.gguf.embed import embed, write_sidecar
from first_cpp.gguf.model_file import ModelFile


def random_routers(path: str, n_layer: int = 6, n_embd: int = 128, seed: int = 0, **metadata: str) -> str:
    """A safetensors file of routers that tell prompts apart."""
    rng = np.random.default_rng(seed)
    tensors = {
        "weight": rng.normal(0, 0.3, (n_layer, n_embd)).astype(np.float32),
        "bias": rng.normal(0, 0.1, n_layer).astype(np.float32),
    }
    save_file(tensors, path, metadata={"norm_eps": "1e-5", "skip": "0.34", **metadata})
    return path


def routed_model(model: str, folder, seed: int = 0, sidecar: bool = False, **metadata: str) -> str:
    """`model` with random routers in it, or a side file for it."""
    routers = random_routers(str(folder / f"routers-{seed}.safetensors"), seed=seed, **metadata)
    out = str(folder / f"routed-{seed}{'-side' if sidecar else ''}.gguf")
    if sidecar:
        write_sidecar(routers, model, out, force=True)
    else:
        embed(routers, model, out, force=True, quiet=True)
    return out


ORDER = (3, 4, 1, 2, 5, 0)
SETS = (LayerSet(1, (3,)), LayerSet(1, (1,)), LayerSet(2, (3, 4)), LayerSet(4, (1, 2, 3, 4)))
TABLE = (TolerancePoint(0.01, 0.05, 0.01, 0.99), TolerancePoint(0.05, 0.2, 0.04, 0.96), TolerancePoint(0.5, 0.4, 0.3, 0.8))


def cost_probes(
    kind: str = "sets", seed: int = 0, read: tuple[int, ...] = (1, 4), last: tuple[int, ...] = (), scale: float = 0.05, **other
) -> CostProbes:
    """Cost probes that tell prompts apart: of levels 1, with two sets, 2 and 4, or of the same levels for routers."""
    rng = np.random.default_rng(seed)
    sets = SETS if kind == "sets" else tuple(LayerSet(level) for level in (1, 2, 4))
    values = {
        "sets": sets,
        "read": read,
        "last": last,
        "weight": rng.normal(0, scale, (len(sets), len(read) + len(last), 128)).astype(np.float32),
        "bias": np.array([-3.5, -3.5, -2.8, -2.0] if kind == "sets" else [-3.5, -2.8, -2.0], np.float32),
        "norm_eps": 1e-5,
        "tolerance": 0.1,
        "fidelity": 0.95,
        "margin": 0.125,
        "order": ORDER if kind == "sets" else (),
        "table": TABLE,
    }
    return CostProbes(**(values | other))


def budget_routers(model: str, kind: str = "sets", seed: int = 0, skippable=(True,) * 6, **cost) -> Routers:
    """Routers of either kind with cost probes, as values, for a model of 6 layers x 128."""
    n_router = 6 if kind == "layers" else 0
    rng = np.random.default_rng(seed + 1)
    weight = rng.normal(0, 0.3, (n_router, 128)).astype(np.float32)
    bias, probes = np.zeros(n_router, np.float32), cost_probes(kind, seed, **cost)
    return Routers(ModelFile.open(model).base, weight, bias, 1e-5, skippable, 0.34, "a test", {"data": "none"}, probes)
