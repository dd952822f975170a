"""How much of a decode step is not llama_decode: what decoding and sampling in one call of C++ could save at most.

Median steps of SmolLM2-135M in ms, in turns: first_cpp.Llama and stock llama_cpp.Llama by `generate`, and a bare loop over
llama_decode, which neither samples nor looks at the token.

python research/bare_decoding.py --rounds 12
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import time

import llama_cpp

from first_cpp import Llama
from first_cpp.gguf.bundled import find_demo_model

TEXT = b"The quick brown fox jumps over the lazy dog and"


def generated(llm: llama_cpp.Llama, temperature: float, n_tokens: int) -> float:
    llm.reset()
    answer, seconds = llm.generate(llm.tokenize(TEXT), temp=temperature), []
    next(answer)
    for _ in range(n_tokens):
        start = time.perf_counter()
        next(answer)
        seconds.append(time.perf_counter() - start)
    answer.close()
    return statistics.median(seconds)


def bare(llm: llama_cpp.Llama, n_tokens: int) -> float:
    llm.reset()
    llm.eval(llm.tokenize(TEXT))
    token, seconds = (ctypes.c_int32 * 1)(5), []
    for _ in range(n_tokens):
        start = time.perf_counter()
        llama_cpp.llama_decode(llm.ctx, llama_cpp.llama_batch_get_one(token, 1))
        llama_cpp.llama_get_logits_ith(llm.ctx, -1)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=40)
    args = parser.parse_args()
    path, settings = find_demo_model(), {"n_ctx": 512, "verbose": False, "seed": 1, "n_threads": 2, "n_threads_batch": 2}
    ours, stock, alone = (
        Llama(path, skip=None, **settings),
        llama_cpp.Llama(path, **settings),
        llama_cpp.Llama(path, **settings),
    )
    for temperature in (0.0, 0.8):
        ways = {
            "first_cpp": lambda t=temperature: generated(ours, t, args.tokens),
            "stock": lambda t=temperature: generated(stock, t, args.tokens),
            "bare": lambda: bare(alone, args.tokens),
        }
        rows = [{name: measure() for name, measure in ways.items()} for _ in range(args.rounds)]
        for name in ways:
            step = statistics.median(row[name] for row in rows) * 1e3
            ratio = statistics.median(row[name] / row["stock"] for row in rows)
            print(f"temperature {temperature}: {name:9} {step:.2f} ms, / stock {ratio:.3f}")


if __name__ == "__main__":
    main()
