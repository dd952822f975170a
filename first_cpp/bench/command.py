"""Measure what leaving layers out gains on this machine: stock llama_cpp.Llama, first_cpp and the pruned file, in turns.

Flags, tests and formats are llama-bench's; sampling is timed with the decoding it follows, as a user waits for both.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import llama_cpp

from .._version import __version__
from ..cli.execute import add_debug
from ..cli.options import shares_from_text
from ..errors import FirstCppError, MissingFileError
from ..gguf.quantise import quiet_llama_cpp
from ..gguf.synthetic import FILE_TYPES, SHAPES, write_random
from ..runtime.arguments import MOST_THREADS
from ..runtime.machine import cpu_name, describe_machine, physical_cores
from .engines import OTHER, OURS, PRUNED, STOCK, Files, Row, layers_by_share, prepared, write_random_routers
from .measure import Measured, Plan, Test, run
from .records import FORMATS, Record, record, write

EPILOG = """examples:
  first-cpp bench -m model.gguf --skip 0,0.1,0.25 -p 512 -n 128 -r 5 -t 2
  first-cpp bench --synthetic llama-3.2-1b --type q4_0 --skip 0,0.25,0.5 -o json
  first-cpp bench --synthetic llama-3.2-3b --skip 0.25 -p 0 -n 64 -d 0,8192 --plot out.png

Numbers can be lists (1,2) and ranges (first-last, first-last+step, first-last*factor); every combination is measured.
Engines: stock is llama_cpp.Llama, pruned is the same on a file without the layers (the limit), first_cpp leaves them out.
speed-up: over stock, median of the ratios turn by turn. limit: bytes a token reads, dense / with the layers left out.
"""


class BenchError(FirstCppError, ValueError):
    """A benchmark that cannot be run as asked."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = EPILOG, argparse.RawDescriptionHelpFormatter
    model = parser.add_argument_group("models")
    model.add_argument("-m", "--model", action="append", default=[], metavar="FILE", help="a GGUF model; can be given again")
    model.add_argument(
        "--synthetic", default="", metavar="SHAPE,...", help=f"random weights of a known shape: {', '.join(SHAPES)}"
    )
    model.add_argument(
        "--type", default="q4_0", metavar="TYPE,...", help=f"of --synthetic: {', '.join(FILE_TYPES)} (default: %(default)s)"
    )
    model.add_argument("--routers", metavar="FILE", help="a GGUF with routers, when the model has none of its own")
    model.add_argument("--vs", metavar="FILE", help="another GGUF, run by stock: a lower-bit file, say")
    model.add_argument(
        "--cache", default=default_cache(), metavar="FOLDER", help="where --synthetic files are kept (default: %(default)s)"
    )
    rows = parser.add_argument_group("rows")
    rows.add_argument(
        "--skip", default="0,0.1,0.25,0.4", metavar="SHARE,...", help="shares of layers left out (default: %(default)s)"
    )
    rows.add_argument("--engines", default=f"{STOCK},{OURS},{PRUNED}", metavar="ENGINE,...", help="(default: %(default)s)")
    rows.add_argument("--draft", default="0", metavar="N,...", help="also with prompt-lookup drafts of so many tokens")
    rows.add_argument("--release-kv", action="store_true", help="first_cpp gives the KV memory of skipped layers back")
    rows.add_argument(
        "--prefill", choices=("full", "routed"), default="full", help="how first_cpp reads a prompt (default: %(default)s)"
    )
    rows.add_argument("--route-tokens", type=int, metavar="N", help="with --prefill routed: prompt tokens that decide")
    test = parser.add_argument_group("tests")
    test.add_argument("-p", "--n-prompt", default="512", metavar="N,...", help="read a prompt: pp (default: %(default)s)")
    test.add_argument("-n", "--n-gen", default="128", metavar="N,...", help="decode: tg (default: %(default)s)")
    test.add_argument(
        "-pg", action="append", default=[], metavar="PP,TG", help="read a prompt, then decode; can be given again"
    )
    test.add_argument(
        "-d", "--n-depth", "--depth", default="0", metavar="N,...", help="tokens there already (default: %(default)s)"
    )
    test.add_argument("-f", "--file", metavar="FILE", help="text to take the prompts from (default: random tokens)")
    test.add_argument("-r", "--repetitions", type=int, default=5, metavar="N", help="of each test (default: %(default)s)")
    test.add_argument(
        "--loads", type=int, default=1, metavar="N", help="load anew so often, memory falls differently (default: %(default)s)"
    )
    test.add_argument("--delay", type=float, default=0, metavar="SECONDS", help="before each test (default: %(default)s)")
    test.add_argument("--no-warmup", action="store_true", help="no run before the measured ones")
    test.add_argument("--seed", type=int, default=0, help="of the random prompts (default: %(default)s)")
    machine = parser.add_argument_group("settings, as llama-bench's")
    machine.add_argument(
        "-t", "--threads", default=str(physical_cores()), metavar="N,...", help="(default: physical cores, %(default)s)"
    )
    machine.add_argument("-b", "--batch-size", default="2048", metavar="N,...", help="(default: %(default)s)")
    machine.add_argument("-ub", "--ubatch-size", default="512", metavar="N,...", help="(default: %(default)s)")
    machine.add_argument("-ctk", "--cache-type-k", default="f16", metavar="TYPE,...", help="(default: %(default)s)")
    machine.add_argument("-ctv", "--cache-type-v", default="f16", metavar="TYPE,...", help="(default: %(default)s)")
    machine.add_argument("-fa", "--flash-attn", default="0", metavar="0|1,...", help="(default: %(default)s)")
    machine.add_argument("-mmp", "--mmap", default="1", choices=("0", "1"), help="map the file (default: %(default)s)")
    output = parser.add_argument_group("output")
    output.add_argument("-o", "--output", choices=FORMATS, default="md", help="format on stdout (default: %(default)s)")
    output.add_argument("-oe", "--output-err", choices=FORMATS, help="format on stderr, besides")
    output.add_argument("--plot", metavar="FILE", help="a picture of TPOT and speed-up against the share")
    output.add_argument("--no-resident", action="store_true", help="do not start a process per row to measure resident memory")
    output.add_argument("--progress", action="store_true", help="say on stderr what is running")
    add_debug(parser)


def command(args: argparse.Namespace) -> None:
    configurations = list(_configurations(args))
    shares = shares_from_text(args.skip)
    tests = _tests(args)
    if args.plot:
        _need_matplotlib(args.plot, tests)
    if max(one["n_threads"] for one in configurations) > physical_cores():
        print(
            f"warning: more threads than the {physical_cores()} physical cores: expect slower and noisier runs", file=sys.stderr
        )
    records: list[Record] = []
    for model, routers, synthetic in _models(args):
        for configuration in configurations:
            records += _measure(model, routers, synthetic, configuration, shares, tests, args)
    print(write(records, args.output), end="")
    if args.output == "md":
        print(f"\nbuild: first_cpp {__version__}, llama-cpp-python {llama_cpp.__version__}; {describe_machine()}")
    if args.output_err:
        print(write(records, args.output_err), end="", file=sys.stderr)
    if args.plot:
        from .plot import draw

        draw(records, args.plot)


# -- what is asked for ---------------------------------------------------------------------------------------------


def default_cache() -> str:
    """Where synthetic models are kept."""
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache"), "first_cpp")


def numbers(text: str, what: str, least: int = 0) -> list[int]:
    """llama-bench's lists and ranges: "1,2,4-16*2,3-5,10-30+10". Raises BenchError."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+)(?:([+*])(\d+))?)?", part.strip())
        if match is None:
            raise BenchError(f"{what}: {part!r} is no number and no range like 1-8, 512-2048+512 or 1-16*2")
        first, last, sign, step = match[1], match[2] or match[1], match[3] or "+", int(match[4] or 1)
        value, end = int(first), int(last)
        if end < value or step < (2 if sign == "*" else 1) or (sign == "*" and value == 0):
            raise BenchError(f"{what}: the range {part!r} does not end")
        while value <= end:
            found.append(value)
            value = value + step if sign == "+" else value * step
    for value in found:
        if value < least:
            raise BenchError(f"{what}: {value} is below {least}")
    return found


def _tests(args: argparse.Namespace) -> list[Test]:
    tests = []
    for depth in numbers(args.n_depth, "-d"):
        tests += [Test(n, 0, depth) for n in numbers(args.n_prompt, "-p") if n]
        tests += [Test(0, n, depth) for n in numbers(args.n_gen, "-n") if n]
        for pair in args.pg:
            both = numbers(pair, "-pg", least=1)
            if len(both) != 2:
                raise BenchError(f"-pg: {pair!r} is not PP,TG: prompt tokens and decoded tokens")
            tests.append(Test(both[0], both[1], depth))
    if not tests:
        raise BenchError("nothing to measure: -p, -n and -pg are all empty")
    for name in ("repetitions", "loads"):
        if getattr(args, name) < 1:
            raise BenchError(f"--{name}: {getattr(args, name)} is below 1")
    return tests


def _configurations(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every combination of the settings."""
    choices: dict[str, list[Any]] = {
        "n_threads": numbers(args.threads, "-t", least=1),
        "n_batch": numbers(args.batch_size, "-b", least=1),
        "n_ubatch": numbers(args.ubatch_size, "-ub", least=1),
        "type_k": [_kv_type(name) for name in args.cache_type_k.split(",")],
        "type_v": [_kv_type(name) for name in args.cache_type_v.split(",")],
        "flash_attn": [bool(one) for one in numbers(args.flash_attn, "-fa")],
    }
    for value in choices["n_threads"]:
        if value > MOST_THREADS:
            raise BenchError(f"-t: {value} is above {MOST_THREADS}")
    for values in itertools.product(*choices.values()):
        found = {**dict(zip(choices, values, strict=True)), "use_mmap": args.mmap == "1"}
        if found["type_v"] not in ("f32", "f16", "bf16") and not found["flash_attn"]:
            raise BenchError(f"-ctv {found['type_v']}: llama.cpp quantises the V cache with flash attention only; add -fa 1")
        yield found


KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")


def _kv_type(name: str) -> str:
    if name not in KV_TYPES:
        raise BenchError(f"-ctk, -ctv: {name!r} is no type of a KV cache; allowed: {', '.join(KV_TYPES)}")
    return name


def _need_matplotlib(path: str, tests: list[Test]) -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise BenchError('--plot needs matplotlib: pip install "first-cpp[bench]"') from None
    if not any(test.n_gen for test in tests):
        raise BenchError("--plot draws decoding: give -n or -pg")
    if not os.path.isdir(os.path.dirname(os.path.abspath(path))):
        raise BenchError(f"--plot: the folder of {path} does not exist")


def _models(args: argparse.Namespace) -> Iterator[tuple[str, str | None, str]]:
    """Model file, routers file, and the name of a synthetic shape (empty for a real model)."""
    shapes = [name for name in args.synthetic.split(",") if name]
    types = args.type.split(",")
    for name, allowed, values in (("--synthetic", SHAPES, shapes), ("--type", FILE_TYPES, types)):
        for value in values:
            if value not in allowed:
                raise BenchError(f"{name}: {value!r} is unknown; allowed: {', '.join(allowed)}")
    if not args.model and not shapes:
        raise BenchError("no model: give -m FILE or --synthetic SHAPE")
    for path in [*args.model, *([args.vs] if args.vs else []), *([args.routers] if args.routers else [])]:
        if not os.path.isfile(path):
            raise MissingFileError(f"there is no file {path}")
    for path in args.model:
        yield path, args.routers, ""
    for shape, kind in itertools.product(shapes, types):
        model, routers = synthetic_model(shape, kind, args.cache)
        yield model, routers, f"{shape} {kind.upper()} (random weights)"


def synthetic_model(shape: str, kind: str, cache: str) -> tuple[str, str]:
    """Paths of a random-weight model and of a side file with random routers; written once, then kept."""
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise BenchError('--synthetic needs the gguf package: pip install "first-cpp[bench]"') from None
    os.makedirs(cache, exist_ok=True)
    stem = os.path.join(cache, f"{shape}-{kind}-{__version__}")
    model, routers = f"{stem}.gguf", f"{stem}.routers.gguf"
    if not os.path.exists(model):
        write_random(f"{model}.part", SHAPES[shape], kind)
        os.replace(f"{model}.part", model)
    if not os.path.exists(routers):
        write_random_routers(routers, model, SHAPES[shape].n_layer, SHAPES[shape].n_embd)
    return model, routers


# -- one configuration ---------------------------------------------------------------------------------------------


def _measure(
    model: str,
    routers: str | None,
    synthetic: str,
    configuration: dict[str, Any],
    shares: list[float],
    tests: list[Test],
    args: argparse.Namespace,
) -> list[Record]:
    def progress(what: str) -> None:
        if args.progress:
            print(f"first-cpp bench: {os.path.basename(model)}: {what}", file=sys.stderr, flush=True)

    settings = _settings(configuration, tests)
    own = {"release_kv": args.release_kv, "prefill": args.prefill, "route_tokens": args.route_tokens}
    engines = args.engines.split(",")
    with prepared(model, routers, copy=PRUNED in engines) as files:
        progress("choosing layers")
        text = _prompt(args.file, files.model, max(test.n_prompt for test in tests))
        rows = _rows(files, shares, engines, args, text, settings)
        plan = Plan(tests, args.repetitions, args.loads, not args.no_warmup, args.delay, text, args.seed)
        measured = run(rows, plan, settings, own, progress)
        resident: dict[str, int | None] = {row.key: None for row in rows}
        if not args.no_resident:
            for row in rows:
                progress(f"resident memory of {row.key}")
                resident[row.key] = _resident(row, settings, own, max(1, *(test.n_prompt for test in tests)))
    return [record(one, _fields(one, model, synthetic, configuration), resident[one.row.key]) for one in measured]


def _settings(configuration: dict[str, Any], tests: list[Test]) -> dict[str, Any]:
    """Keywords of llama_cpp.Llama."""
    types = {key: getattr(llama_cpp, f"GGML_TYPE_{configuration[key].upper()}") for key in ("type_k", "type_v")}
    n_ctx = max(test.n_depth + test.n_tokens for test in tests) + 16
    return {
        **configuration,
        **types,
        "n_threads_batch": configuration["n_threads"],
        "n_ctx": -(-n_ctx // 256) * 256,
        "verbose": False,
    }


def _rows(
    files: Files, shares: list[float], engines: list[str], args: argparse.Namespace, text: list[int], settings: dict[str, Any]
) -> list[Row]:
    unknown = set(engines) - {STOCK, OURS, PRUNED}
    if unknown:
        raise BenchError(f"--engines: {', '.join(sorted(unknown))} unknown; allowed: {STOCK}, {OURS}, {PRUNED}")
    prompt = text or _random_prompt(max(int(n) for n in numbers(args.n_prompt, "-p")) or 64, args.seed)
    chosen = layers_by_share(files, shares, prompt, settings)
    rows = []
    for draft in sorted({0, *numbers(args.draft, "--draft")}):
        rows += [Row(STOCK, files.model, draft=draft)] if STOCK in engines else []
        for share, left_out in chosen.items():
            routed = bool(files.routers) and not draft
            if OURS in engines:
                rows.append(Row(OURS, files.model, share, left_out, draft, files.routers, routed))
            if PRUNED in engines and left_out and not draft:
                rows.append(Row(PRUNED, files.pruned(left_out), share, left_out))
    if args.vs:
        rows.append(Row(OTHER, args.vs))
    if not rows:
        raise BenchError(f"no rows: --engines {args.engines} has none at --skip {args.skip}")
    return rows


def _random_prompt(n: int, seed: int) -> list[int]:
    import numpy as np

    return np.random.default_rng(seed).integers(40, 240, n).tolist()  # type: ignore[no-any-return]


def _prompt(path: str | None, model: str, n_tokens: int) -> list[int]:
    """The first tokens of a text file; none without a file. Raises BenchError when the text is too short."""
    if path is None:
        return []
    with open(path, "rb") as file:
        text = file.read()
    with quiet_llama_cpp():
        vocabulary = llama_cpp.Llama(model, vocab_only=True, verbose=False)
    tokens = vocabulary.tokenize(text)
    vocabulary.close()
    if len(tokens) < n_tokens:
        raise BenchError(f"{path} has {len(tokens)} tokens, the longest prompt needs {n_tokens}")
    return [int(token) for token in tokens[:n_tokens]]


def _fields(measured: Measured, model: str, synthetic: str, configuration: dict[str, Any]) -> Record:
    """llama-bench's fields of a configuration. Those of GPUs have the values that it gives a CPU."""
    row, facts = measured.row, measured.model
    assert facts is not None
    return {
        "build_commit": f"llama-cpp-python {llama_cpp.__version__}",
        "build_number": 0,
        "cpu_info": cpu_name(),
        "gpu_info": "",
        "backends": "CPU",
        "model_filename": row.file if row.engine == OTHER else model,
        "model_type": synthetic if synthetic and row.engine != OTHER else facts.kind,
        "model_size": facts.size,
        "model_n_params": facts.n_params,
        **{key: configuration[key] for key in ("n_batch", "n_ubatch", "n_threads")},
        "cpu_mask": "0x0",
        "cpu_strict": False,
        "poll": 50,
        **{key: configuration[key] for key in ("type_k", "type_v")},
        "n_gpu_layers": 0,
        "n_cpu_moe": 0,
        "split_mode": "layer",
        "main_gpu": 0,
        "no_kv_offload": False,
        "flash_attn": configuration["flash_attn"],
        "devices": "auto",
        "tensor_split": "0.00",
        "tensor_buft_overrides": "none",
        "load_mode": "mmap" if configuration["use_mmap"] else "none",
        "embeddings": False,
        "no_op_offload": 0,
        "no_host": False,
        "repack": True,
        "test_time": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "first_cpp": __version__,
        "machine": describe_machine(),
        "random_weights": bool(synthetic),
        "n_layer": facts.n_layer + (len(row.left_out) if row.engine == PRUNED else 0),
    }


_RESIDENT = """
import json, sys, psutil
from first_cpp.bench.engines import Row
row, settings, own, n_prompt = json.load(sys.stdin)
llm = Row(**{**row, "left_out": tuple(row["left_out"])}).load(settings, own)
answer = llm.generate([40 + i % 200 for i in range(n_prompt)], temp=0.0)
for _ in range(4):
    next(answer)
print(psutil.Process().memory_info().rss)
"""


def _resident(row: Row, settings: dict[str, Any], own: dict[str, Any], n_prompt: int) -> int:
    """Resident bytes of a process that runs this row alone: Python, weights that were read, KV cache, buffers."""
    given = json.dumps([row.__dict__, settings, own, n_prompt])
    done = subprocess.run([sys.executable, "-c", _RESIDENT], input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the process of {row.key} failed: {done.stderr.strip()[-400:]}")
    return int(done.stdout)
