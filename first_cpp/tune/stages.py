"""Stages one after another, each kept by the file it leaves: a rerun goes on with the first that is not done."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..cli.duration import in_words
from ..cli.main import module_of, setup_arg_parser

LOG = "tune.log"
"""What the stages print: their own tables and summaries."""


@dataclass(frozen=True)
class Stage:
    """One step. name, what: in words. results: any of these files says that it is done.

    work: does it, and leaves one of `results`.
    """

    name: str
    what: str
    results: tuple[str, ...]
    work: Callable[[], None]

    @property
    def done(self) -> bool:
        """Whether an earlier run did it."""
        return any(os.path.exists(path) for path in self.results)


def run_verb(*words: str) -> None:
    """Carry out a command line of `first-cpp`, errors and all.

    >>> run_verb("inspect", "model-first.gguf")  # doctest: +ELLIPSIS
    model-first.gguf
    routers      6 layers x 128 values, linear, ...
    """
    args = setup_arg_parser().parse_args(words)
    module_of(args.verb).command(args)


def run_stages(stages: Sequence[Stage], folder: str, say: Callable[[str], object]) -> None:
    """Do what is not done yet. What stages print goes to LOG in `folder`. say: called with a line for the user."""
    for number, stage in enumerate(stages, 1):
        head = f"[{number}/{len(stages)}] {stage.name}"
        if stage.done:
            say(f"{head}: done before")
            continue
        say(f"{head}: {stage.what}")
        started = time.monotonic()
        try:
            with open(os.path.join(folder, LOG), "a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
                print(f"\n== {stage.name} ==\n", flush=True)
                stage.work()
        except KeyboardInterrupt:
            say(f"stopped in stage {number} of {len(stages)}, {stage.name}; the same command goes on from there")
            raise
        except Exception:
            print(f"stage {number} of {len(stages)}, {stage.name}, failed; those before it are kept", file=sys.stderr)
            raise
        say(f"[{number}/{len(stages)}] {stage.name}: done in {in_words(time.monotonic() - started)}")
