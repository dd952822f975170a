"""Writes the transcript of README.md: one prompt of the demo, as it prints it. python tools/transcript.py"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

from marks import ROOT, fill

COMMAND = "first-cpp demo --skip 0.25"
SHOWN = "an abstract"
WIDTH = 110


def excerpt(output: str) -> str:
    """What is printed about one prompt, long lines wrapped."""
    before, *parts = output.split("\n== ")
    (shown,) = (part for part in parts if part.startswith(SHOWN))
    lines = [line for line in f"== {shown}".splitlines() if line.strip()]
    wrapped = (textwrap.wrap(line, WIDTH, subsequent_indent=" " * (len(line) - len(line.lstrip()))) for line in lines)
    return "\n".join(
        ["```", f"$ {COMMAND}", before.splitlines()[0], "...", *(part for line in wrapped for part in line), "...", "```"]
    )


def main() -> None:
    words = [sys.executable, "-m", "first_cpp", *COMMAND.split()[1:]]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    fill(os.path.join(ROOT, "README.md"), "tools/transcript.py", excerpt(done.stdout))


if __name__ == "__main__":
    main()
