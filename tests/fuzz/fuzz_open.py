"""Open, load, first token: tiny models with changed metadata, vocabulary or weights, each in a process of its own.

    python tests/fuzz/fuzz_open.py --cases 2000 --out build/fuzz/open.jsonl
    python tests/fuzz/fuzz_open.py --cases 2000 --engine stock --out build/fuzz/open-stock.jsonl
    python tests/fuzz/fuzz_open.py --case 17

A case is good when it answers or raises an error that the API names: one of first_cpp, or the ValueError with which
llama_cpp refuses a model. Cases in --out are not run again, so a killed run goes on. --seed and a case's number make its file.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import random
import sys
import tempfile
import time
from collections import Counter

os.environ["GGML_NO_BACKTRACE"] = "1"  # it would start a debugger
HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "support")]

import llama_cpp  # noqa: E402
from apart import run_apart  # noqa: E402
from changes import Models, change  # noqa: E402

from first_cpp import FirstCppError, Llama  # noqa: E402

SECONDS = 20
"""A case that takes longer hangs."""
GOOD = ("answered", "refused")
SETTINGS = {"n_ctx": 64, "n_threads": 1, "n_threads_batch": 1, "verbose": True, "seed": 1}


def first_token(path: str, engine: str, rng: random.Random) -> str:
    """What comes of loading a file and asking it for one token."""
    settings = SETTINGS | ({"skip": [1]} if engine == "ours" and rng.random() < 0.5 else {})
    llm = None
    try:
        llm = (Llama if engine == "ours" else llama_cpp.Llama)(path, **settings)
        llm.create_completion("Hi", max_tokens=1, temperature=rng.choice([0.0, 0.8]))
        return "answered"
    except FirstCppError as error:
        return f"refused: {type(error).__name__}: {error}"
    except ValueError as error:
        if "Failed to load model" in str(error) or "Failed to create llama_context" in str(error):
            return f"refused: {error}"
        return f"unnamed: {type(error).__name__}: {error}"
    except Exception as error:
        return f"unnamed: {type(error).__name__}: {error}"
    finally:
        if llm is not None:
            llm.close()


def run_case(models: Models, seed: int, case: int, engine: str, path: str) -> tuple[str, str]:
    """What was changed, and what came of it."""
    rng = random.Random(f"{seed}/{case}")
    what, raw = change(models, rng)
    pathlib.Path(path).write_bytes(raw)
    return what, run_apart(lambda: first_token(path, engine, rng), SECONDS)


def run_cases(args: argparse.Namespace) -> Counter[str]:
    """Run cases until there are enough, or the time is over; the outcomes counted, those in --out among them."""
    done = {}
    if args.out and os.path.exists(args.out):
        with open(args.out, encoding="utf-8") as file:
            done = {row["case"]: row["came"] for row in map(json.loads, file) if row["seed"] == args.seed}
    end = time.monotonic() + args.seconds
    cases = [args.case] if args.case is not None else range(args.cases)
    with tempfile.TemporaryDirectory() as folder:
        models = Models(pathlib.Path(folder))
        for case in cases:
            if case in done:
                continue
            if time.monotonic() > end:
                break
            what, came = run_case(models, args.seed, case, args.engine, args.keep or os.path.join(folder, "case.gguf"))
            done[case] = came
            if args.case is not None or came.split(":")[0] not in GOOD:
                print(f"case {case}: {what}\n  {came}", flush=True)
            if args.out:
                with open(args.out, "a", encoding="utf-8") as file:
                    file.write(json.dumps({"seed": args.seed, "case": case, "what": what, "came": came}) + "\n")
    return Counter(came.split(":")[0] for came in done.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long (default: never)")
    parser.add_argument("--cases", type=int, default=2000, help="stop after so many cases (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=["ours", "stock"], default="ours")
    parser.add_argument("--out", help="JSON lines: what was changed in each case, and what came of it")
    parser.add_argument("--case", type=int, help="run this one alone")
    parser.add_argument("--keep", metavar="FILE", help="keep the last case's model here")
    args = parser.parse_args()
    counts = run_cases(args)
    bad = sum(n for outcome, n in counts.items() if outcome not in GOOD)
    print(f"open: {sum(counts.values())} cases of {args.engine}, {dict(counts)}")
    return int(args.engine == "ours" and bad > 0)


if __name__ == "__main__":
    sys.exit(main())
