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
from collections.abc import Sequence
from typing import Any

import llama_cpp
import numpy as np
from interleaved import decode_times, prefill_times, ratio, spread
from safetensors.numpy import save_file

from convert.embed import write_sidecar
from first_cpp import Llama, __version__
from first_cpp.demo_model import find_demo_model
from first_cpp.pruned import write_pruned
from first_cpp.synthetic import SHAPES, write_random


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=300, help="decoding steps per model")
    parser.add_argument("--rounds", type=int, default=9, help="prefills per model")
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
    if name == "smollm2":
        model, label = find_demo_model(), "SmolLM2-135M-Instruct Q4_1"
    else:
        model, label = os.path.join(folder, f"{name}.gguf"), f"{name} shape, random weights, Q4_0"
        write_random(model, SHAPES[name], "q4_0")
    settings = {"n_ctx": 1024, "n_threads": args.threads, "n_threads_batch": args.threads, "verbose": False}
    stock = llama_cpp.Llama(model, **settings)
    n_layer, n_embd = llama_cpp.llama_model_n_layer(stock.model), stock.n_embd()
    skipped = list(range(n_layer // 4, n_layer // 2))  # a quarter of the layers, amid the model
    pruned_file, adapter = os.path.join(folder, "pruned.gguf"), os.path.join(folder, "adapter.gguf")
    write_pruned(model, pruned_file, skipped)
    write_routers(os.path.join(folder, "r.safetensors"), model, adapter, n_layer, n_embd)
    models = {
        "stock": stock,
        "idle": Llama(model, skip=None, **settings),
        "skipping": Llama(model, skip=skipped, **settings),
        "pruned": llama_cpp.Llama(pruned_file, **settings),
    }
    prompt = np.random.default_rng(0).integers(300, 40000, 64).tolist()
    decode = decode_times(models, prompt, args.tokens)
    models["skipping"].close()
    models["pruned"].close()
    prefill = prefill_times(
        {"stock": stock, "routed": Llama(model, routers=adapter, skip=0.25, **settings)},
        np.random.default_rng(1).integers(300, 40000, 512).tolist(),
        args.rounds,
    )
    for llm in (stock, models["idle"]):
        llm.close()
    return {
        "model": label,
        "command": f"python benchmarks/decode_speed.py --models {name} --tokens {args.tokens} --rounds {args.rounds}"
        f" --threads {args.threads}",
        "machine": machine(),
        "first_cpp": __version__,
        "llama_cpp_python": llama_cpp.__version__,
        "layers_left_out": f"{len(skipped)} of {n_layer}",
        "tpot_ms": {key: statistics.median(values) * 1e3 for key, values in decode.items()},
        "tpot_skipping_over_pruned": [ratio(decode, "skipping", "pruned"), spread(decode, "skipping", "pruned")],
        "tpot_idle_over_stock": [ratio(decode, "idle", "stock"), spread(decode, "idle", "stock")],
        "speed_up_over_stock": 1 / ratio(decode, "skipping", "stock"),
        "ttft_512_ms": {key: statistics.median(values) * 1e3 for key, values in prefill.items()},
        "ttft_routed_over_stock": [ratio(prefill, "routed", "stock"), spread(prefill, "routed", "stock", 3)],
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
    def pm(pair: Sequence[float]) -> str:
        return f"{pair[0]:.4f} +- {pair[1]:.4f}"

    return "\n".join(
        [
            f"{row['model']}: {row['layers_left_out']} layers left out, {row['machine']}",
            "  TPOT ms                   " + ", ".join(f"{k} {v:.2f}" for k, v in row["tpot_ms"].items()),
            f"  TPOT skipping / pruned    {pm(row['tpot_skipping_over_pruned'])}",
            f"  TPOT idle / stock         {pm(row['tpot_idle_over_stock'])}",
            f"  speed-up over stock       {row['speed_up_over_stock']:.3f}",
            "  TTFT ms, 512 tokens       " + ", ".join(f"{k} {v:.0f}" for k, v in row["ttft_512_ms"].items()),
            f"  TTFT routed / stock       {pm(row['ttft_routed_over_stock'])}",
        ]
    )


if __name__ == "__main__":
    main()
