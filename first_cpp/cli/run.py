"""Answer one prompt: the text goes to stdout as it comes, all else to stderr."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Any

from ..errors import OptionError
from ..runtime.streaming import in_thread
from .execute import add_debug
from .model_options import add_model_arguments, add_sampling_arguments, load_model, sampling_of

EPILOG = """examples:
  first-cpp run "Who built the first lighthouse?"
  first-cpp run --skip 7,11 --temp 0 -n 40 "Say hello."
  echo "The ferry leaves at noon." | first-cpp run "Summarize this text."
  first-cpp run --raw -n 16 --json "Once upon a time"

With a prompt and a pipe, the text from the pipe follows the prompt. Exit codes: 0, 1 failure, 2 usage, 130 interrupted.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = EPILOG, argparse.RawDescriptionHelpFormatter
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="what to answer; - or none: read it from stdin")
    parser.add_argument("--system", metavar="TEXT", help="a system message before it")
    parser.add_argument("--raw", action="store_true", help="continue the text itself, without the model's chat template")
    parser.add_argument("--json", action="store_true", help="print one JSON object with the text, times and layers")
    add_model_arguments(parser)
    add_sampling_arguments(parser)
    add_debug(parser)


def command(args: argparse.Namespace) -> None:
    from .answer_record import Summary

    prompt = read_prompt(args.prompt)
    if args.raw and args.system:
        raise OptionError("--system is part of a chat, --raw leaves the chat template out; give one of them")
    llm = load_model(args)
    with contextlib.closing(llm):
        text, reason = "", None
        try:
            for piece, ended in in_thread(llm, lambda: pieces(llm, prompt, args)):
                text, reason = text + piece, ended
                if not args.json:
                    print(piece, end="", flush=True)
        except KeyboardInterrupt:
            reason = "interrupted"
        summary, routing = Summary(llm), llm.routing
        if args.json:
            told = summary.as_json(routing, llm.timing) if routing else {}
            print(json.dumps({"text": text, "finish_reason": reason, "model": llm.model_path, "first_cpp": told}))
        else:
            print()
            if routing is not None and sys.stderr.isatty():
                print(summary.line(routing, llm.timing), file=sys.stderr)
        if reason == "interrupted":
            raise KeyboardInterrupt


def read_prompt(given: str | None) -> str:
    """The prompt argument, and what a pipe holds after it. Raises OptionError when there is neither."""
    piped = ""
    if given in (None, "-") or not sys.stdin.isatty():
        if sys.stdin.isatty():
            print("Type the prompt, then Ctrl-D.", file=sys.stderr)
        try:
            piped = sys.stdin.read()
        except UnicodeDecodeError as error:
            raise OptionError(f"stdin is not text: {error}") from None
    parts = [part for part in (given if given != "-" else None, piped) if part and part.strip()]
    if not parts:
        raise OptionError('the prompt is empty: give it as an argument, first-cpp run "...", or through stdin')
    return "\n\n".join(parts)


def pieces(llm: Any, prompt: str, args: argparse.Namespace) -> Iterator[tuple[str, str | None]]:
    """The answer's text as it comes, and in the end why it ended."""
    if args.raw:
        for chunk in llm.create_completion(prompt, stream=True, **sampling_of(args)):
            choice = chunk["choices"][0]
            yield choice["text"], choice["finish_reason"]
        return
    messages = [{"role": "system", "content": args.system}] if args.system else []
    messages.append({"role": "user", "content": prompt})
    for chunk in llm.create_chat_completion(messages, stream=True, **sampling_of(args)):
        choice = chunk["choices"][0]
        yield choice["delta"].get("content") or "", choice["finish_reason"]
