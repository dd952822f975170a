"""llama.cpp's own llama-bench beside `first-cpp bench`, on the same files, in turns: do both measure the same?

llama-bench is built once from the source distribution of the pinned llama-cpp-python and linked against the libraries that it
has installed: both programs run the same kernels. It does not sample; `first-cpp bench` does, as a user waits for it too: how
long that takes is measured apart, and compared are the two without it.
The whole file, and the one without a quarter of the layers: llama-bench against the row `stock`. Then a quarter skipped:
llama-bench on the file without them against the row `first_cpp`, which skips them in the whole file; decoding alone, as prompts
are read by all layers. Needs a C++ compiler and cmake; the build takes some minutes.

python benchmarks/llama_bench.py
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import llama_cpp
from common import SETTINGS, THREADS, parser, save

from first_cpp.bench.models import default_cache, synthetic_model
from first_cpp.gguf.model_file import ModelFile
from first_cpp.gguf.pruned import write_pruned

HERE = Path(__file__).resolve().parent
TOLERANCE = 0.05


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--shape", default="llama-3.2-1b")
    arguments.add_argument("--type", default="q4_0")
    arguments.add_argument("--rounds", type=int, default=4)
    arguments.add_argument("--prompt", type=int, default=128)
    arguments.add_argument("--tokens", type=int, default=32)
    arguments.add_argument("--cache", default=default_cache(), help="where llama-bench and the model are kept")
    arguments.add_argument("--sdist", help="the source distribution of llama-cpp-python (default: downloaded by pip)")
    args = arguments.parse_args()
    program = build(Path(args.cache) / f"llama-bench-{llama_cpp.__version__}", args.sdist)
    model = synthetic_model(args.shape, args.type, args.cache).path
    n_layer = ModelFile.open(model).n_layer
    layers = [*range(n_layer * 3 // 8, n_layer * 5 // 8)]  # a quarter, amid the model
    with tempfile.TemporaryDirectory(dir=args.cache) as folder:
        pruned = os.path.join(folder, "pruned.gguf")
        write_pruned(model, pruned, layers)
        both = ["-p", str(args.prompt), "-n", str(args.tokens), "-t", str(THREADS), "-r", "3", "-o", "json"]
        decoding = ["-p", "0", *both[2:]]
        skip = str(layers).replace(" ", "")
        pairs = {
            "whole": (theirs(program, model, both), ours(model, both, "stock", "0")),
            "without a quarter": (theirs(program, pruned, decoding), ours(pruned, decoding, "stock", "0")),
            "a quarter skipped": (theirs(program, pruned, decoding), ours(model, decoding, "first_cpp", skip)),
        }
        speeds = {(name, who): [] for name in pairs for who in (0, 1)}
        for number in range(args.rounds + 1):
            for name, commands in pairs.items():
                for who in (0, 1) if number % 2 else (1, 0):
                    found = rates(commands[who])
                    if number:  # the first round warms the page cache up
                        speeds[name, who].append(found)
    seconds = sampling(model, 2 * args.tokens)
    rows = [
        compare(name, test, speeds, seconds if test == "decoding" else 0.0)
        for name in pairs
        for test in ("prompt", "decoding")
        if test in speeds[name, 0][0]
    ]
    figures = {"shape": args.shape, "type": args.type, "layers": layers, "rounds": args.rounds, "tolerance": TOLERANCE}
    save(args.out, {**figures, "sampling_ms": seconds * 1e3, "rows": rows})
    if off := [f"{row['file']}, {row['test']}" for row in rows if abs(row["ratio"] - 1) > TOLERANCE]:
        print(f"more than {TOLERANCE:.0%} apart: {'; '.join(off)}", file=sys.stderr)


def theirs(program: str, model: str, tests: list[str]) -> list[str]:
    return [program, "-m", model, "-fa", "off", *tests]


def ours(model: str, tests: list[str], engine: str, skip: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "first_cpp",
        "bench",
        "-m",
        model,
        "--engines",
        engine,
        "--skip",
        skip,
        "--no-resident",
        *tests,
    ]


def rates(command: list[str]) -> dict[str, float]:
    """Tokens a second of a command's two tests."""
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {"decoding" if one["n_gen"] else "prompt": one["avg_ts"] for one in json.loads(done.stdout)}


def sampling(model: str, n_tokens: int) -> float:
    """Median seconds that a decoding step of `first-cpp bench` spends on choosing its token."""
    llm = llama_cpp.Llama(model, n_ctx=256, **SETTINGS)
    choose, seconds = llm.sample, []

    def timed(*args: Any, **kwargs: Any) -> int:
        start = time.perf_counter()
        token = choose(*args, **kwargs)
        seconds.append(time.perf_counter() - start)
        return token

    llm.sample = timed
    for _ in itertools.islice(llm.generate([300], temp=0.0), n_tokens):
        pass
    llm.close()
    return statistics.median(seconds)


def compare(name: str, test: str, speeds: dict[tuple[str, int], list[dict[str, float]]], sampled: float) -> dict[str, object]:
    """Medians over the rounds. ratio: the median of the ratios round by round, ours over theirs, without the `sampled` seconds
    of each of our tokens; ratio_whole: with them."""
    llama_bench, first_cpp = ([one[test] for one in speeds[name, who]] for who in (0, 1))
    alone = [1 / (1 / mine - sampled) for mine in first_cpp]
    ratios = [mine / other for mine, other in zip(alone, llama_bench, strict=True)]
    return {
        "file": name,
        "test": test,
        "llama_bench_ts": statistics.median(llama_bench),
        "first_cpp_bench_ts": statistics.median(first_cpp),
        "ratio": statistics.median(ratios),
        "ratio_stderr": statistics.stdev(ratios) / len(ratios) ** 0.5 if len(ratios) > 1 else None,
        "ratio_whole": statistics.median(mine / other for mine, other in zip(first_cpp, llama_bench, strict=True)),
    }


def build(folder: Path, sdist: str | None) -> str:
    """The path of llama-bench, built in `folder` unless it is there."""
    program = folder / "build" / "llama-bench" / "llama-bench"
    if program.exists():
        return str(program)
    if shutil.which("cmake") is None:
        sys.exit("benchmarks/llama_bench.py needs cmake to build llama-bench")
    folder.mkdir(parents=True, exist_ok=True)
    archive = Path(sdist) if sdist else download(folder)
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    source = next(folder.glob("llama_cpp_python-*/vendor/llama.cpp"))
    installed = Path(llama_cpp.__file__).parents[1]
    made = folder / "build"
    configure = ["cmake", "-S", HERE / "llama_bench", "-B", made, "-D", "CMAKE_BUILD_TYPE=Release"]
    subprocess.run([*configure, "-D", f"LLAMA_CPP={source}", "-D", f"LLAMA_CPP_ROOT={installed}"], check=True)
    subprocess.run(["cmake", "--build", made, "--target", "llama-bench", "-j", str(THREADS)], check=True)
    return str(program)


def download(folder: Path) -> Path:
    package = f"llama-cpp-python=={llama_cpp.__version__}"
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-build-isolation", "--no-binary", "llama-cpp-python"]
    subprocess.run([*pip, "--dest", folder, package], check=True)
    return next(folder.glob("llama_cpp_python-*.tar.gz"))


if __name__ == "__main__":
    main()
