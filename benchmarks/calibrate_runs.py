"""What `first-cpp calibrate` tells a user about models, how long it took and how much memory: one bounded run for each.

python benchmarks/calibrate_runs.py gemma-3-270m-q4_k_m.gguf llama-3.2-1b-q4_0.gguf --minutes 5 --out calibrate_runs.json
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time

from common import parser, save

from first_cpp.calibrate.calibration import Calibration
from first_cpp.gguf.model_file import ModelFile
from first_cpp.runtime.machine import physical_cores


def run(model: str, minutes: float, threads: int, folder: str) -> dict[str, object]:
    """Calibrate one model into a side file; what it prints, and what it took."""
    out = os.path.join(folder, os.path.basename(model))
    words = ["calibrate", "-m", model, "--out", out, "--sidecar", "--quiet", "--minutes", f"{minutes:g}", "-t", str(threads)]
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "first_cpp", *words], check=True, stdout=subprocess.PIPE, text=True)
    seconds = time.monotonic() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024  # of the largest so far: name large models last
    found = Calibration.load(f"{out.removesuffix('.gguf')}.calibration.safetensors")
    lines = [line for line in done.stdout.splitlines() if line]
    opened = ModelFile.open(model)
    return {
        "model": os.path.basename(model),
        "bytes": sum(os.path.getsize(path) for path in opened.paths),
        "n_layer": found.base.n_layer,
        "minutes": minutes,
        "threads": threads,
        "seconds": seconds,
        "peak_bytes": peak,
        **{
            name: found.origin[name] for name in ("answers", "prompts", "kept_out", "levels_measured", "evaluated_tokens", "r2")
        },
        "order": list(found.order[: found.origin["levels_measured"][-1]]),
        "table": [line for line in lines if line.startswith("|")],
        "sentence": next(line for line in lines if line.startswith(("At fidelity", "This model cannot"))),
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("models", nargs="+", metavar="MODEL", help="GGUF files, the smallest first")
    options.add_argument("--minutes", type=float, default=5)
    options.add_argument("--threads", type=int, default=physical_cores())
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        save(args.out, [run(model, args.minutes, args.threads, folder) for model in args.models])


if __name__ == "__main__":
    main()
