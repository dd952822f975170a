"""Routers from your own numbers, in a side file, that choose by prompt. python examples/own_routers.py [MODEL.gguf]

Random weights stand for yours; trained ones come from `first-cpp train` (docs/guide/train.md).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile

import numpy as np
from safetensors.numpy import save_file

from first_cpp import Llama
from first_cpp.gguf.bundled import find_demo_model


def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else find_demo_model()
    dense = Llama(model, skip=None, n_ctx=512, verbose=False)
    n_layer, n_embd = len(dense.unskippable), dense.n_embd()
    dense.close()

    rng = np.random.default_rng(0)
    weight = rng.normal(0, n_embd**-0.5, (n_layer, n_embd)).astype(np.float32)
    bias = np.zeros(n_layer, np.float32)
    skippable = [0 < layer < n_layer - 1 for layer in range(n_layer)]  # the first and the last layer always run
    with tempfile.TemporaryDirectory() as folder:
        settings = {"skip": "0.2", "skippable": str(skippable).lower()}
        save_file({"weight": weight, "bias": bias}, f"{folder}/routers.safetensors", settings)
        convert = [sys.executable, "-m", "convert", "--routers", f"{folder}/routers.safetensors", "--model", model]
        subprocess.run([*convert, "--sidecar", "--out", f"{folder}/adapter.gguf"], check=True)

        llm = Llama(model, routers=f"{folder}/adapter.gguf", n_ctx=512, verbose=False)  # skip="auto": the file's share
        for prompt in ("The capital of France is", "def add(a, b): return", "Once upon a time"):
            llm(prompt, max_tokens=8)
            print(f"{prompt!r}: skipped {llm.routing.skipped} ({llm.routing.why})")
        llm.close()


if __name__ == "__main__":
    main()
