"""The arguments of `first-cpp bench`: llama-bench's names and meanings, and what skipping adds."""

from __future__ import annotations

import argparse

from ..cli.execute import add_debug
from ..cli.model_name import HELP, add_offline
from ..cli.options import whole_number
from ..gguf.synthetic import FILE_TYPES, SHAPES
from ..runtime.machine import physical_cores
from .engines import OURS, PRUNED, STOCK
from .models import RANDOM, default_cache

FORMATS = ("md", "csv", "json", "jsonl", "sql")

EPILOG = """examples:
  first-cpp bench -m model.gguf --skip 0,0.1,0.25 -p 512 -n 128 -r 5 -t 2
  first-cpp bench -m model.gguf --skip "0,0.25,[7,11]" -p 0 -n 64
  first-cpp bench --synthetic llama-3.2-1b --type q4_0 --skip 0,0.25 -o json
  first-cpp bench --synthetic llama-3.2-3b --skip 0.25 -p 0 -n 64 \\
      -d 0,8192 --plot out.png

Numbers can be lists (1,2) and ranges (first-last, first-last+step,
first-last*factor); every combination is measured. A skip share takes the layers
that the routers choose for the prompt, or without routers those amid the model.

Engines: stock is llama_cpp.Llama; pruned is the same on a file without the
layers: the limit; first_cpp skips them.
t/s: tokens a second, mean and standard deviation over repetitions.
TTFT: time to first token. TPOT: mean time per output token after it.
speed-up: over stock, median of the ratios turn by turn.
limit: bytes that a token reads, dense / with the layers skipped.
reached: speed-up / limit. RAM: resident memory of a process with one row alone.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add all arguments of the verb."""
    parser.epilog, parser.formatter_class = EPILOG, argparse.RawDescriptionHelpFormatter
    _add_models(parser)
    _add_rows(parser)
    _add_tests(parser)
    _add_settings(parser)
    _add_output(parser)
    add_debug(parser)


def _add_models(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("models").add_argument
    add("-m", "--model", action="append", default=[], metavar="MODEL", help=f"{HELP}; can be repeated")
    add_offline(add)
    add("--synthetic", default="", metavar="SHAPE,...", help=f"random weights of a known shape: {', '.join(SHAPES)}")
    add("--type", default="q4_0", metavar="TYPE,...", help=f"of --synthetic: {', '.join(FILE_TYPES)} (default: %(default)s)")
    add("--routers", metavar="FILE", help=f"a GGUF to take routers from, or {RANDOM!r} (default: those in the model)")
    add("--vs", metavar="MODEL", help="another GGUF to compare with, run by stock: one of fewer bits, say")
    add(
        "--cache",
        default=default_cache(),
        metavar="FOLDER",
        help="where --synthetic models are kept, for the next time (default: %(default)s)",
    )


def _add_rows(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("rows").add_argument
    add(
        "--skip",
        default="0,0.1,0.25,0.4",
        metavar="SKIP,...",
        help="skip shares, auto, and layers as [7,11] (default: %(default)s)",
    )
    add("--engines", default=f"{STOCK},{OURS},{PRUNED}", metavar="ENGINE,...", help="(default: %(default)s)")
    add("--draft", default="0", metavar="N,...", help="also with prompt-lookup drafts of N tokens")
    add("--release-kv", action="store_true", help="first_cpp gives the KV memory of skipped layers back")
    add("--prefill", choices=("full", "routed"), default="full", help="how first_cpp reads a prompt (default: %(default)s)")
    add("--route-tokens", type=whole_number(1), metavar="N", help="with --prefill routed: prompt tokens that decide")


def _add_tests(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("tests").add_argument
    add("-p", "--n-prompt", default="512", metavar="N,...", help="read a prompt: pp (default: %(default)s)")
    add("-n", "--n-gen", default="128", metavar="N,...", help="decode: tg (default: %(default)s)")
    add("-pg", action="append", default=[], metavar="PP,TG", help="read a prompt, then decode; can be repeated")
    add("-d", "--n-depth", "--depth", default="0", metavar="N,...", help="tokens there already (default: %(default)s)")
    add("-f", "--file", metavar="FILE", help="text to take the prompts from (default: random tokens)")
    add("-r", "--repetitions", type=whole_number(1), default=5, metavar="N", help="of each test (default: %(default)s)")
    add("--loads", type=whole_number(1), default=1, metavar="N", help="load the models N times (default: %(default)s)")
    add("--delay", type=float, default=0, metavar="SECONDS", help="before each test (default: %(default)s)")
    add("--no-warmup", action="store_true", help="no run before the measured ones")
    add("--seed", type=whole_number(0), default=0, help="of the random prompts (default: %(default)s)")


def _add_settings(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("settings, as llama-bench's").add_argument
    add("-t", "--threads", default=str(physical_cores()), metavar="N,...", help="(default: physical cores, %(default)s)")
    add("-b", "--batch-size", default="2048", metavar="N,...", help="(default: %(default)s)")
    add("-ub", "--ubatch-size", default="512", metavar="N,...", help="(default: %(default)s)")
    add("-ctk", "--cache-type-k", default="f16", metavar="TYPE,...", help="of the KV cache (default: %(default)s)")
    add("-ctv", "--cache-type-v", default="f16", metavar="TYPE,...", help="of the KV cache (default: %(default)s)")
    add("-fa", "--flash-attn", default="0", metavar="0|1,...", help="(default: %(default)s)")
    add("-mmp", "--mmap", default="1", choices=("0", "1"), help="map the file (default: %(default)s)")


def _add_output(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("output").add_argument
    add("-o", "--output", choices=FORMATS, default="md", help="format on stdout (default: %(default)s)")
    add("-oe", "--output-err", choices=FORMATS, help="format on stderr, besides")
    add("--wide", action="store_true", help="all columns in md: median step, p95, the pruned file, KV memory")
    add("--plot", metavar="FILE", help="a picture of the median step and the speed-up by skip share")
    add("--no-resident", action="store_true", help="do not start a process per row to measure resident memory")
    add("--progress", action="store_true", help="show on stderr what is running")
