"""The `first-cpp` command: finds the verb, leaves the rest to its module."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from .exit import USAGE, run

VERBS = {
    "bench": "measure speed, the limit and memory on this machine",
    "chat": "chat with a model in the terminal",
    "completion": "print a completion script for a shell",
    "demo": "three prompts, dense and with fewer layers, side by side",
    "eval": "measure the quality that skipping keeps",
    "inspect": "print the routers that a GGUF file carries",
    "run": "answer one prompt",
    "serve": "an OpenAI-compatible server, with a page to chat on",
    "train": "train routers and LoRA in PyTorch",
}


def setup_arg_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="first-cpp",
        description="Faster answers from local language models: each prompt chooses the layers its answer can do without.",
        epilog="`first-cpp VERB --help` tells more. Routers come into GGUF files with `python -m convert`.",
    )
    parser.add_argument("--version", action="store_true", help="print versions and the loaded libllama")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    for verb, help_text in VERBS.items():
        module = importlib.import_module(f"first_cpp.{verb}")
        module.add_arguments(verbs.add_parser(verb, help=help_text, description=module.__doc__))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = setup_arg_parser()
    args = parser.parse_args(argv)
    if args.version:
        from ._version import describe

        print(describe())
        return 0
    if args.verb is None:
        parser.print_usage(sys.stderr)
        print("error: a verb is missing", file=sys.stderr)
        return USAGE
    return run(importlib.import_module(f"first_cpp.{args.verb}").command, args)
