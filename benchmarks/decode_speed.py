"""What leaving layers out costs and gains: against the pruned file, against stock, and the routers' share of prefill.

python benchmarks/decode_speed.py --out benchmarks/results/decode_speed.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
from typing import Any

import llama_cpp
import numpy as np
from interleaved import decode_times, prefill_times, ratio
from safetensors.numpy import save_file

from convert.embed import write_sidecar
from first_cpp import Llama, __version__
from first_cpp.demo_model import find_demo_model
from first_cpp.pruned import write_pruned
from first_cpp.synthetic import SHAPES, write_random


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loads", type=int, default=6, help="times each model is loaded: memory falls differently each time")
    parser.add_argument("--tokens", type=int, default=100, help="decoding steps per load")
    parser.add_argument("--rounds", type=int, default=2, help="prefills per load")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--models", nargs="+", default=["smollm2", "llama-3.2-1b"])
    parser.add_argument("--out", help="JSON file for the figures")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.models:
            rows.append(measure(name, folder, args))
            print(describe(rows[-1]), flush=True)
    if args.out:
        with open(args.out, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)
            file.write("\n")


def measure(name: str, folder: str, args: argparse.Namespace) -> dict[str, Any]:
    model, source = os.path.join(folder, "whole.gguf"), os.path.join(folder, "source.gguf")
    if name == "smollm2":
        source, label = find_demo_model(), "SmolLM2-135M-Instruct Q4_1"
    else:
        label = f"{name} shape, random weights, Q4_0"
        write_random(source, SHAPES[name], "q4_0")
    # Written as the pruned file is: a file mapped from the page cache is as fast as its pages lie.
    write_pruned(source, model, [])
    settings = {"n_ctx": 1024, "n_threads": args.threads, "n_threads_batch": args.threads, "verbose": False}
    probe = Llama(model, **settings)
    n_layer, n_embd = llama_cpp.llama_model_n_layer(probe.model), probe.n_embd()
    probe.close()
    skipped = list(range(n_layer // 4, n_layer // 2))  # a quarter of the layers, amid the model
    pruned_file, adapter = os.path.join(folder, "pruned.gguf"), os.path.join(folder, "adapter.gguf")
    write_pruned(model, pruned_file, skipped)
    write_routers(os.path.join(folder, "r.safetensors"), model, adapter, n_layer, n_embd)
    makers = {
        "stock": lambda: llama_cpp.Llama(model, **settings),
        "idle": lambda: Llama(model, skip=None, **settings),
        "skipping": lambda: Llama(model, skip=skipped, **settings),
        "pruned": lambda: llama_cpp.Llama(pruned_file, **settings),
        "routed": lambda: Llama(model, routers=adapter, skip=0.25, **settings),
    }
    rng = np.random.default_rng(0)
    loads: list[dict[str, float]] = []
    for load in range(args.loads):
        order = list(makers)[load % 5 :] + list(makers)[: load % 5]
        models = {key: makers[key]() for key in order}
        loads.append(measure_load(models, rng, args))
        for llm in models.values():
            llm.close()

    def over_loads(key: str) -> list[float]:
        values = [load[key] for load in loads]
        return [statistics.median(values), statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0]

    return {
        "model": label,
        "command": f"python benchmarks/decode_speed.py --models {name} --loads {args.loads} --tokens {args.tokens} "
        f"--rounds {args.rounds} --threads {args.threads}",
        "machine": machine(),
        "first_cpp": __version__,
        "llama_cpp_python": llama_cpp.__version__,
        "layers_left_out": f"{len(skipped)} of {n_layer}",
        **{key: over_loads(key) for key in loads[0]},
        "loads": loads,
    }


def measure_load(models: dict[str, llama_cpp.Llama], rng: np.random.Generator, args: argparse.Namespace) -> dict[str, float]:
    """The ratios of one set of loaded models, each a median over interleaved turns."""
    decoding = {key: models[key] for key in ("stock", "idle", "skipping", "pruned")}
    decode = decode_times(decoding, rng.integers(300, 40000, 64).tolist(), args.tokens)
    scores = models["routed"]._scores_read
    before = scores.seconds
    reading = {key: models[key] for key in ("stock", "routed")}
    prefill = prefill_times(reading, rng.integers(300, 40000, 512).tolist(), args.rounds)
    return {
        **{f"tpot_ms_{key}": statistics.median(values) * 1e3 for key, values in decode.items()},
        "tpot_skipping_over_pruned": ratio(decode, "skipping", "pruned"),
        "tpot_idle_over_stock": ratio(decode, "idle", "stock"),
        "speed_up_over_stock": 1 / ratio(decode, "skipping", "stock"),
        **{f"ttft_512_ms_{key}": statistics.median(values) * 1e3 for key, values in prefill.items()},
        "ttft_routed_over_stock": ratio(prefill, "routed", "stock"),
        "scoring_share_of_prefill": (scores.seconds - before) / sum(prefill["routed"]),
    }


def write_routers(path: str, model: str, adapter: str, n_layer: int, n_embd: int) -> None:
    rng = np.random.default_rng(0)
    tensors = {
        "weight": rng.normal(0, 0.02, (n_layer, n_embd)).astype(np.float32),
        "bias": np.zeros(n_layer, np.float32),
    }
    save_file(tensors, path, metadata={"norm_eps": "1e-5"})
    write_sidecar(path, model, adapter, force=True)


def machine() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {len(names)} cores, {platform.system()} {platform.machine()}"


def describe(row: dict[str, Any]) -> str:
    lines = [f"{row['model']}: {row['layers_left_out']} layers left out, {row['machine']}"]
    lines += [f"  {key:<28} {row[key][0]:9.4f} +- {row[key][1]:.4f}" for key in row["loads"][0]]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
