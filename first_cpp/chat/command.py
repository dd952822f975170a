"""Chat with a model in the terminal; each answer skips the layers that its prompt chose."""

from __future__ import annotations

import argparse
import contextlib

from ..cli.execute import add_debug
from ..cli.held_options import add_held_arguments, held_settings
from ..cli.model_options import add_model_arguments, add_sampling_arguments, model_options, sampling_of
from ..cli.options import prose

EPILOG = """examples:
  first-cpp chat
  first-cpp chat -m model-first.gguf --skip 0.25
  first-cpp chat --system "Answer in one sentence." --temp 0
  echo "Say hello." | first-cpp chat -n 20

Type /help while chatting. Ctrl-C stops an answer and keeps its text, twice it
quits; Ctrl-D quits.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = EPILOG, argparse.RawDescriptionHelpFormatter
    parser.add_argument("--system", metavar="TEXT", type=prose, help="a system message before the conversation")
    parser.add_argument("--load", metavar="FILE", help="continue a conversation that /save wrote")
    parser.add_argument("--no-history", action="store_true", help="keep no file of what was typed")
    parser.add_argument(
        "--no-catch-up", action="store_true", help="do not read an answer again with all layers while you read it"
    )
    add_held_arguments(parser)
    add_model_arguments(parser)
    add_sampling_arguments(parser)
    add_debug(parser)


def command(args: argparse.Namespace) -> None:
    from .conversation import Conversation
    from .reading import Reading
    from .session import Session
    from .terminal import Terminal

    options, held = model_options(args), held_settings(args)
    conversation = Conversation(args.system)
    if args.load:
        conversation.load(args.load)
    with contextlib.closing(options.load(**held)) as llm:
        terminal = Terminal(history=not args.no_history)
        with Reading(llm, in_background=terminal.interactive and not args.no_catch_up) as reading:
            Session(llm, conversation, terminal, sampling_of(args), reading).run()
