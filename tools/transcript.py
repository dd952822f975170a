"""Writes the transcript of README.md: one prompt of the demo and its summary, as it prints them. python tools/transcript.py"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

from marks import ROOT, fill

COMMAND = "first-cpp demo"
SHOWN = "review"
NEXT = "\nnext:\n"


def excerpt(output: str) -> str:
    """What is printed about one prompt, of which the first line, and the summary; without what to try next."""
    _, *parts = output.split("\n== ")
    (shown,) = (part for part in parts if part.startswith(SHOWN))
    summary = parts[-1].split(NEXT)[0]
    heading, prompt, *answers = (line for line in shown.splitlines() if line.strip())
    answers = list(itertools.dropwhile(lambda line: not line.startswith("-- "), answers))
    lines = [f"== {heading}", prompt, "...", *answers, "...", *f"== {summary}".strip().splitlines()]
    return "\n".join(["```", f"$ {COMMAND}", *(line for line in lines if line.strip()), "```"])


def main() -> None:
    words = [sys.executable, "-m", "first_cpp", *COMMAND.split()[1:]]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    fill(os.path.join(ROOT, "README.md"), "tools/transcript.py", excerpt(done.stdout))


if __name__ == "__main__":
    main()
