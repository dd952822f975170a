"""Answer one prompt. The text goes to stdout as it is generated, everything else to stderr."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Any

from ..errors import ContextFull, OptionError
from ..gguf.printable import without_controls
from ..llama import Llama
from ..runtime.fidelity import Fidelity
from ..runtime.streaming import in_thread
from .answer_record import AnswerRecorder
from .execute import add_debug
from .model_options import add_model_arguments, add_sampling_arguments, model_options, sampling_of
from .options import prose
from .output import columns
from .wrapped_text import WrappedText

EPILOG = """examples:
  first-cpp run "Who built the first lighthouse?"
  first-cpp run --skip 7,11 --temp 0 -n 40 "Say hello."
  echo "The ferry leaves at noon." | first-cpp run "Summarize this text."
  first-cpp run --raw -n 16 --json "Once upon a time"

With a prompt and a pipe, the text from the pipe follows the prompt.
Exit codes: 0, 1 failure, 2 usage, 130 Ctrl-C, 143 SIGTERM.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = EPILOG, argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "prompt", nargs="?", metavar="PROMPT", type=prose, help="what to answer; it is read from stdin without it or with -"
    )
    parser.add_argument("--system", metavar="TEXT", type=prose, help="a system message before it")
    parser.add_argument("--raw", action="store_true", help="continue the prompt as plain text, without the chat template")
    parser.add_argument("--json", action="store_true", help="print one JSON object: the text, times and layers")
    parser.add_argument(
        "--fidelity", action="store_true", help="read the answer again with all layers afterwards, and say what skipping cost"
    )
    add_model_arguments(parser)
    add_sampling_arguments(parser)
    add_debug(parser)


def command(args: argparse.Namespace) -> None:
    if args.raw and args.system:
        raise OptionError("--system is part of a chat, --raw uses no chat template; give one of them")
    options = model_options(args)
    prompt = read_prompt(args.prompt)
    with contextlib.closing(options.load()) as llm:
        try:
            text, reason = _answer(llm, prompt, args)
        except ContextFull as error:
            raise OptionError(str(error).replace("n_ctx=", "-c TOKENS")) from error
        record = AnswerRecorder(llm).record()
        fidelity = _measure(llm) if args.fidelity and reason != "interrupted" else None
        if args.json:
            made = {"text": text, "finish_reason": reason, "model": llm.model_path}
            measured = {"fidelity": fidelity_json(fidelity)} if args.fidelity else {}
            print(json.dumps({**made, "first_cpp": record.as_json() if record else None, **measured}))
        elif record is not None and sys.stderr.isatty():
            print(record.line(columns(sys.stderr)), file=sys.stderr)
        if args.fidelity and not args.json:
            print(fidelity.line() if fidelity else "nothing was skipped", file=sys.stderr)
    if reason == "interrupted":
        raise KeyboardInterrupt


def _measure(llm: Llama) -> Fidelity | None:
    """The fidelity of the last answer; None where it was decoded with all layers."""
    llm.catch_up()
    return llm.fidelity


def fidelity_json(fidelity: Fidelity | None) -> dict[str, Any] | None:
    """A fidelity as an object of JSON.

    >>> fidelity_json(Fidelity(40, 38))
    {'positions': 40, 'equal': 38, 'share': 0.95}
    """
    if fidelity is None:
        return None
    return {"positions": fidelity.positions, "equal": fidelity.equal, "share": round(fidelity.share, 4)}


def _answer(llm: Llama, prompt: str, args: argparse.Namespace) -> tuple[str, str | None]:
    """Print the answer as it comes, unless it is to be JSON. Returns its text and why it ended."""
    text, reason = "", None
    with contextlib.nullcontext() if args.json else AnswerPrinter() as shown:
        try:
            for part, ended in in_thread(llm, lambda: text_parts(llm, prompt, args)):
                text, reason = text + part, ended
                if shown is not None:
                    shown.add(part)
        except KeyboardInterrupt:
            reason = "interrupted"
    return text, reason


class AnswerPrinter:
    """A context that prints an answer as it comes: into a file or a pipe as it is, on a terminal with whole words and without
    what a terminal takes for commands."""

    def __init__(self) -> None:
        width = columns(sys.stdout)
        self._wrapped = WrappedText(sys.stdout, width) if width else None

    def add(self, part: str) -> None:
        """More of the answer."""
        if self._wrapped is not None:
            self._wrapped.write(without_controls(part))
        else:
            print(part, end="", flush=True)

    def __enter__(self) -> AnswerPrinter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._wrapped is not None:
            self._wrapped.end()  # whatever happened: a word is held back
        elif kind is None:
            print()


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


def text_parts(llm: Any, prompt: str, args: argparse.Namespace) -> Iterator[tuple[str, str | None]]:
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
