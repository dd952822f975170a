"""Router files for tests."""

from __future__ import annotations

import numpy as np
from safetensors.numpy import save_file

from first_cpp.gguf.embed import embed, write_sidecar


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
