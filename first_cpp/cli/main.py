"""The `first-cpp` command: finds the verb and calls its module."""

from __future__ import annotations

import argparse
import importlib
import sys
import textwrap
from collections.abc import Sequence
from types import ModuleType

from .execute import USAGE, run

VERBS = {  # help, and the module with add_arguments and command
    "bench": ("measure speed and memory on this machine", "bench.command"),
    "calibrate": ("find the layers that any model can spare, on this machine", "calibrate.command"),
    "chat": ("chat with a model in the terminal", "chat.command"),
    "completion": ("print a completion script for a shell", "cli.completion"),
    "demo": ("three prompts, by the full model and with layers skipped", "cli.demo"),
    "eval": ("measure the quality that skipping keeps", "evaluate.command"),
    "inspect": ("print the routers that a GGUF file carries", "cli.inspect_file"),
    "models": ("list the models that are there", "cli.list_models"),
    "run": ("answer one prompt", "cli.run"),
    "serve": ("an OpenAI-compatible server, with a page to chat on", "serve.command"),
    "train": ("train routers and LoRA in PyTorch", "train.command"),
    "tune": ("from your examples to a tuned model that skips layers", "tune.command"),
}


def module_of(verb: str) -> ModuleType:
    """The module that adds a verb's arguments and carries it out."""
    return importlib.import_module(f"first_cpp.{VERBS[verb][1]}")


def setup_arg_parser() -> argparse.ArgumentParser:
    """The parser of the whole command; no model is loaded for it.

    >>> setup_arg_parser().parse_args(["run", "--skip", "0.25", "Hello"]).skip
    '0.25'
    """
    parser = argparse.ArgumentParser(
        prog="first-cpp",
        description="Faster answers from local language models: each prompt chooses layers to skip.",
        epilog="`first-cpp VERB --help` explains a verb. `python -m convert` writes routers into GGUF files.",
    )
    parser.add_argument("--version", action="store_true", help="print versions and the loaded libllama")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    for verb, (help_text, _) in VERBS.items():
        module = module_of(verb)
        description = textwrap.fill(module.__doc__ or "", 78)  # formatters that keep examples as they are do not wrap
        module.add_arguments(verbs.add_parser(verb, help=help_text, description=description))
    return parser


def print_version(_: argparse.Namespace) -> None:
    from .._version import describe

    print(describe())


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code; see `execute.run` for the codes.

    >>> main(["inspect", "model-first.gguf"])  # doctest: +ELLIPSIS
    model-first.gguf
    routers      6 layers x 128 values, linear, ...
    0
    """
    parser = setup_arg_parser()
    args = parser.parse_args(argv)
    if args.version:
        return run(print_version, args)
    if args.verb is None:
        parser.print_help(sys.stderr)
        print("error: a verb is missing", file=sys.stderr)
        return USAGE
    return run(module_of(args.verb).command, args)
