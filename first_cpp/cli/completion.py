"""Print a script that completes verbs and options in a shell."""

from __future__ import annotations

import argparse

from .execute import add_debug

EPILOG = """examples:
  first-cpp completion bash >> ~/.bash_completion
  first-cpp completion zsh > ~/.zfunc/_first-cpp
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    import shtab

    parser.epilog, parser.formatter_class = EPILOG, argparse.RawDescriptionHelpFormatter
    parser.add_argument("shell", choices=shtab.SUPPORTED_SHELLS, help="the shell to complete for")
    add_debug(parser)


def command(args: argparse.Namespace) -> None:
    import shtab

    from .main import setup_arg_parser

    print(shtab.complete(setup_arg_parser(), shell=args.shell))
