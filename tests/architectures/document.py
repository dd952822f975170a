"""docs/reference/architectures.md from the results of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import llama_cpp

from first_cpp._version import __version__

from .check import EFFECT, EXACT, Result

_HEADER = """# Architectures

Written by `make test-archs`; first_cpp {version}, llama-cpp-python {llama_cpp}. {n} architectures: {counts}.

A tiny model of each, random weights, is run with every single layer skipped that can be, and with pairs of them: from
the first token on, and from the first token of the answer on, with kv="drop" and kv="keep". The logits must be those of
stock llama.cpp on the oracle: the file in which everything that these layers add is zero (for the answer: with the state of
the unchanged model restored into it), and where a file pruned by llama.cpp's quantizer means the same, that agrees with it.

- exact: the logits of every such run are the oracle's. Error: the largest mean square difference over the mean square, which
  must be below {exact:.0e}; 0 is bit for bit. The oracle itself is more than {effect:.0e} away from the unchanged model.
- dense: first_cpp skips no layer of it, and says why; the logits, where it has a KV cache, are those of stock llama.cpp.
- not run: there is no such model to run.

| architecture | result | layers | memory | oracle | error | why |
| --- | --- | --- | --- | --- | --- | --- |
"""


def document(results: Sequence[Result]) -> str:
    """The whole page."""
    found = Counter(result.outcome for result in results)
    counts = ", ".join(f"{n} {outcome}" for outcome, n in found.most_common())
    header = _HEADER.format(
        version=__version__, llama_cpp=llama_cpp.__version__, n=len(results), counts=counts, exact=EXACT, effect=EFFECT
    )
    return header + "".join(_row(result) for result in results)


def _row(result: Result) -> str:
    exact = result.outcome == "exact"
    cells = (
        result.architecture,
        result.outcome,
        f"{result.skippable} of {result.n_layer}" if result.n_layer else "",
        result.memory,
        result.oracle,
        f"{result.error:.0e}" if result.error else "0" if exact else "",
        result.why,
    )
    return f"| {' | '.join(cells)} |\n"
