"""The `first-cpp` command: finds the verb, leaves the rest to its module."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from types import ModuleType

from .execute import USAGE, run

VERBS = {  # help, and the module with add_arguments() and command()
    "bench": ("measure speed, the limit and memory on this machine", "bench.command"),
    "calibrate": ("find the layers that any model can spare, on this machine", "calibrate.command"),
    "chat": ("chat with a model in the terminal", "chat.command"),
    "completion": ("print a completion script for a shell", "cli.completion"),
    "demo": ("three prompts, dense and with fewer layers, side by side", "cli.demo"),
    "eval": ("measure the quality that skipping keeps", "evaluate.command"),
    "inspect": ("print the routers that a GGUF file carries", "cli.inspect_file"),
    "run": ("answer one prompt", "cli.run"),
    "serve": ("an OpenAI-compatible server, with a page to chat on", "serve.command"),
    "train": ("train routers and LoRA in PyTorch", "train.command"),
}


def module_of(verb: str) -> ModuleType:
    """The module that adds a verb's arguments and carries it out."""
    return importlib.import_module(f"first_cpp.{VERBS[verb][1]}")


def setup_arg_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="first-cpp",
        description="Faster answers from local language models: each prompt chooses the layers its answer can do without.",
        epilog="`first-cpp VERB --help` tells more. Routers come into GGUF files with `python -m convert`.",
    )
    parser.add_argument("--version", action="store_true", help="print versions and the loaded libllama")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    for verb, (help_text, _) in VERBS.items():
        module = module_of(verb)
        module.add_arguments(verbs.add_parser(verb, help=help_text, description=module.__doc__))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = setup_arg_parser()
    args = parser.parse_args(argv)
    if args.version:
        from .._version import describe

        print(describe())
        return 0
    if args.verb is None:
        parser.print_usage(sys.stderr)
        print("error: a verb is missing", file=sys.stderr)
        return USAGE
    return run(module_of(args.verb).command, args)
