"""Time from Llama(...) to ready beyond stock's: routers beside an 8B-sized file with a 128k vocabulary (and 280k merges).

python benchmarks/load_time.py --loads 5
"""

from __future__ import annotations

import statistics
import tempfile
import time
from typing import Any

import llama_cpp
from common import SETTINGS, parser, save

from first_cpp import Llama
from first_cpp.bench.models import synthetic_model
from first_cpp.gguf.embed import write_sidecar


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--shape", default="llama-3-8b")
    arguments.add_argument("--loads", type=int, default=5)
    args = arguments.parse_args()
    base_init = llama_cpp.Llama.__init__
    base_seconds = 0.0

    def timed_init(self: Any, *values: Any, **keywords: Any) -> None:
        nonlocal base_seconds
        start = time.perf_counter()
        base_init(self, *values, **keywords)
        base_seconds = time.perf_counter() - start

    # What stock does too is timed within the same load: loading 5 GB varies by more than what is looked for.
    llama_cpp.Llama.__init__ = timed_init
    beyond, whole = [], []
    with tempfile.TemporaryDirectory() as folder:
        model = synthetic_model(args.shape, "q4_0", folder)
        routers = f"{model.path}.routers"
        write_sidecar(model.routers, model.path, routers)
        for _ in range(args.loads + 1):
            start = time.perf_counter()
            llm = Llama(model.path, routers=routers, skip=0.25, n_ctx=512, **SETTINGS)
            whole.append(time.perf_counter() - start)
            beyond.append(whole[-1] - base_seconds)
            llm.close()
    save(
        args.out,
        {
            "shape": args.shape,
            "beyond_stock_ms": statistics.median(beyond[1:]) * 1e3,
            "beyond_stock_first_ms": beyond[0] * 1e3,
            "whole_load_s": statistics.median(whole[1:]),
            "samples_ms": [value * 1e3 for value in beyond],
        },
    )


if __name__ == "__main__":
    main()
