"""Fewer bits, fewer layers or drafts: what makes a laptop with few threads faster? Tokens a second of each.

Models with random weights in every type, dense and with a quarter of the layers skipped, with 1 and 2 threads; what a decoding
step of several tokens costs, which is what a draft has to earn back; and prompt-lookup drafts on real text by the real model.
The types take turns in rounds, so that a slow minute of the machine does not fall on one of them alone. What is measured is
kept beside --out: with --stop-after it stops in time, and the next run goes on.

python benchmarks/what_else.py --stop-after 4
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import llama_cpp
from common import SETTINGS, influence_routers, parser, save, smollm2_q4_0
from drafts import measure, step_costs
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding
from texts import summaries

from first_cpp import Llama
from first_cpp.bench.models import default_cache, synthetic_model
from first_cpp.gguf.byte_limit import weight_reads
from first_cpp.gguf.model_file import ModelFile
from first_cpp.gguf.new_file import new_file
from first_cpp.runtime.chat_prompt import chat_prompt
from first_cpp.runtime.interleaved import decode_times, ratio
from first_cpp.skip import layers_for_share

TYPES = ("q8_0", "q6_k", "q4_k_m", "q4_0", "iq4_nl", "q3_k_m", "q2_k")
TOKENS = {"llama-3.2-1b": 24, "llama-3.2-3b": 12}
"""Decoded tokens of each row, by shape."""
THREADS = (1, 2)
ROUNDS = 3
DRAFT = 3
"""Tokens of a draft."""
SHARE = 0.25
Part = Callable[[], list[dict[str, Any]]]


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument(
        "--stop-after", type=float, default=float("inf"), metavar="MINUTES", help="begin nothing new after so many minutes"
    )
    arguments.add_argument("--cache", default=default_cache(), help="where the models are kept")
    arguments.add_argument("--prepare", action="store_true", help="only write the models")
    args = arguments.parse_args()
    if args.prepare:
        for shape, kind in itertools.product(TOKENS, TYPES):
            synthetic_model(shape, kind, args.cache)
        return
    kept = f"{args.out or 'what_else.json'}.part"
    done = read(kept)
    end = time.monotonic() + 60 * args.stop_after
    for name, part in parts(args.cache):
        if name in done:
            continue
        if time.monotonic() > end:
            sys.exit(f"stopped after {args.stop_after:g} minutes with {len(done)} parts measured; run it again to go on")
        print(name, file=sys.stderr, flush=True)
        done[name] = part()
        with new_file(kept, "w") as file:
            json.dump(done, file)
    rows = {
        kind: [row for name, found in done.items() if name.startswith(kind) for row in found]
        for kind in ("decode", "step", "text")
    }
    save(args.out, {"share": SHARE, "draft": DRAFT, "rounds": ROUNDS, **rows})
    if args.out:
        os.remove(kept)


def read(path: str) -> dict[str, list[dict[str, Any]]]:
    """The parts that an earlier run has measured, by name."""
    try:
        with open(path, encoding="utf-8") as file:
            found: dict[str, list[dict[str, Any]]] = json.load(file)
    except FileNotFoundError:
        return {}
    return found


def parts(cache: str) -> Iterator[tuple[str, Part]]:
    """Everything to be measured, in order, by name."""
    for shape, number, kind in itertools.product(TOKENS, range(ROUNDS), TYPES):
        yield f"decode {shape} {number + 1} {kind}", lambda shape=shape, kind=kind: decoding(shape, kind, cache)
    for shape, threads in itertools.product(TOKENS, THREADS):
        yield f"step {shape} {threads}", lambda shape=shape, threads=threads: steps(shape, threads, cache)
    for threads in THREADS:
        yield f"text {threads}", lambda threads=threads: texts(threads)


def decoding(shape: str, kind: str, cache: str) -> list[dict[str, Any]]:
    """Dense and with layers skipped, in turns step by step."""
    path = synthetic_model(shape, kind, cache).path
    n_layer = ModelFile.open(path).n_layer
    count = layers_for_share(SHARE, n_layer)
    first = (n_layer - count + 1) // 2
    reads = weight_reads(path)
    layers = [*range(first, first + count)]
    settings = {**SETTINGS, "n_ctx": 256}
    models = {"dense": llama_cpp.Llama(path, **settings), "skipping": Llama(path, skip=layers, **settings)}
    rows = []
    for threads in THREADS:
        for llm in models.values():
            llama_cpp.llama_set_n_threads(llm.ctx, threads, threads)
        times = decode_times(models, [300], TOKENS[shape], warm_up=2)
        row = {"shape": shape, "type": kind, "n_threads": threads, "n_layer": n_layer, "n_skipped": count}
        row |= {f"{name}_ms": statistics.median(seconds) * 1e3 for name, seconds in times.items()}
        row |= {"speedup": ratio(times, "dense", "skipping")}
        row |= {"dense_bytes": reads.weights(), "skipping_bytes": reads.weights(layers)}
        rows.append(row)
    for llm in models.values():
        llm.close()
    return rows


def steps(shape: str, threads: int, cache: str) -> list[dict[str, Any]]:
    """What a step costs that checks a draft, over one of a single token."""
    settings = {**SETTINGS, "n_threads": threads, "n_threads_batch": threads, "n_ctx": 256}
    llm = llama_cpp.Llama(synthetic_model(shape, "q4_0", cache).path, **settings)
    try:
        cost = step_costs(llm, (1, 1 + DRAFT), 5)[1 + DRAFT]
    finally:
        llm.close()
    return [{"shape": shape, "type": "q4_0", "n_threads": threads, "cost": cost}]


def texts(threads: int) -> list[dict[str, Any]]:
    """Summaries by SmolLM2: dense, with drafts, with layers skipped, with both."""
    settings = {**SETTINGS, "n_threads": threads, "n_threads_batch": threads, "n_ctx": 1024}
    with tempfile.TemporaryDirectory() as folder:
        model = smollm2_q4_0(folder)
        routers = influence_routers(model)
        models: dict[tuple[str, int], llama_cpp.Llama] = {}
        for n in (0, DRAFT):
            draft = {"draft_model": LlamaPromptLookupDecoding(num_pred_tokens=n)} if n else {}
            models["stock", n] = llama_cpp.Llama(model, **draft, **settings)
            models["first_cpp", n] = Llama(model, routers=routers, skip=SHARE, **draft, **settings)
        prompts = [chat_prompt(models["stock", 0], text) for text in summaries()]
        rows = measure("summaries", models, prompts, 64)
        for llm in models.values():
            llm.close()
    return [{"n_threads": threads, **row} for row in rows]


if __name__ == "__main__":
    main()
