"""Three prompts, answered by the full model and then with layers skipped, with what that gains and keeps.

The full model runs in stock llama_cpp.Llama, the skipping one in first_cpp.Llama, on the same file.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import llama_cpp

from ..errors import OptionError
from ..gguf.bundled import find_demo_model
from ..gguf.model_file import ModelFile
from ..gguf.router_format import read_routers
from ..gguf.routers import Routers
from ..llama import Llama
from ..runtime.arguments import MOST_THREADS
from ..runtime.chat_prompt import chat_prompt
from ..runtime.greedy import answer_tokens
from ..runtime.interleaved import BUSY, busy_by, decode_times, ratio
from ..runtime.machine import cpu_name, physical_cores
from ..runtime.routing import picture
from ..skip import Skip, SkipSetting, skip_from_text
from .demo_texts import CALIBRATION, EVERYDAY
from .execute import add_debug
from .model_name import HELP, add_offline, find_model_to_use, is_demo
from .next_commands import next_commands
from .options import whole_number
from .output import columns
from .wrapped_text import WrappedText

STEPS = 64
"""Decoding steps of each model, in turns, that a speed-up is the median of."""
WIDTH = 76
SKIP_WITHOUT_ADVICE = 0.1
FULL, SKIPPING = "full model", "skipping"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add all arguments of the verb."""
    add = parser.add_argument
    add("-m", "--model", metavar="MODEL", help=f"{HELP}, for chats (default: demo, with trained routers)")
    add_offline(add)
    add("--skip", default="auto", metavar="SKIP", help="auto, a share like 0.25, or layers like 7,11 (default: %(default)s)")
    add("-n", "--max-tokens", type=whole_number(1), default=100, metavar="N", help="longest answer (default: %(default)s)")
    add(
        "-t",
        "--threads",
        type=whole_number(1, MOST_THREADS),
        default=physical_cores(),
        metavar="N",
        help="threads (default: physical cores, %(default)s)",
    )
    add_debug(parser)


@dataclass(frozen=True)
class Result:
    """What one prompt showed. steps: seconds of decoding steps in turns, by model."""

    name: str
    n_skipped: int
    n_layer: int
    fidelity: float
    steps: dict[str, list[float]]

    @property
    def speed_up(self) -> float | None:
        """Median over the turns of the full model's time over the skipping one's; None where the machine was too busy."""
        return None if busy_by(self.steps) > BUSY else ratio(self.steps, FULL, SKIPPING)


def command(args: argparse.Namespace) -> None:
    """Answer, measure and sum up."""
    skip = skip_from_text(args.skip)
    if not skip:
        raise OptionError(f"--skip {args.skip} skips nothing: there is nothing to show; give auto, a share, or layers")
    settings = {"n_ctx": 1024, "n_threads": args.threads, "n_threads_batch": args.threads, "verbose": False}
    machine = f"{cpu_name()}, {args.threads} thread{'s' * (args.threads > 1)}"
    path, name, routers, following = _model(args)
    full = llama_cpp.Llama(path, **settings)
    skipping = Llama(path, routers=routers, skip=None, **settings)
    try:
        skipping.skip = _setting(skip, skipping.routers)
        results = [_compare(short, text, full, skipping, args.max_tokens) for short, text in EVERYDAY.items()]
    finally:
        full.close()
        skipping.close()
    print("\n".join(summary(results, name, machine)))
    print(f"\n{next_commands(*following)}")


def _setting(skip: Skip, routers: Routers | None) -> SkipSetting:
    """The setting as `Llama` takes it; a share of its own where the routers recommend none."""
    if skip == "auto" and routers is not None and routers.cost is None and not routers.skip:
        return SKIP_WITHOUT_ADVICE
    return list(skip) if isinstance(skip, tuple) else skip


def _model(args: argparse.Namespace) -> tuple[str, str, Routers | None, list[list[str]]]:
    """The model file, its name, routers where the file has none, and the commands to try next."""
    path = find_model_to_use(args.model, args.offline)
    if is_demo(args.model):
        name = f"{os.path.basename(find_demo_model()).split('.')[0]} Q4_0 with its everyday adapter"
        return path, name, None, [["first-cpp", "chat"], ["first-cpp", "bench", "-m", "demo"]]
    own = read_routers(ModelFile.open(path).first, path)
    return path, os.path.basename(path), None if own is not None else _measured_routers(path), _following(path, own)


def _following(model: str, routers: Routers | None) -> list[list[str]]:
    """What to try next with a model file: talk to it; layers that it can spare, where nothing knows them."""
    if routers is not None:
        return [["first-cpp", "chat", "-m", model], ["first-cpp", "bench", "-m", model]]
    first = f"{os.path.basename(model).removesuffix('.gguf')}-first.gguf"
    return [["first-cpp", "calibrate", "-m", model, "--out", first], ["first-cpp", "chat", "-m", first]]


def _measured_routers(model: str) -> Routers:
    """Input-blind routers, measured now, for a model without trained ones."""
    from ..runtime.block_influence import MAX_TOKENS, influence_routers

    print(
        "This model has no routers: block influence is measured on "
        f"{len(CALIBRATION)} texts.\nEvery prompt then skips the same layers: expect worse answers than with trained\nrouters.",
        flush=True,
    )
    llm = Llama(model, n_ctx=MAX_TOKENS, skip=None, verbose=False)
    try:
        return influence_routers(llm, CALIBRATION)
    finally:
        llm.close()


# -- one prompt ----------------------------------------------------------------------------------------------------


def _compare(short: str, text: str, full: llama_cpp.Llama, skipping: Llama, max_tokens: int) -> Result:
    """Stream both answers, then measure: what the full model would have chosen, and both models' steps in turns."""
    prompt = chat_prompt(full, text)
    print(f"\n== {short} ==\n{_wrapped(text)}\n")
    full.reset()
    skipping.reset()
    _stream(full, prompt, max_tokens)
    answer = _stream(skipping, prompt, max_tokens)
    skipping.catch_up()
    kept = skipping.fidelity.share if skipping.fidelity is not None else 1.0
    times = decode_times({FULL: full, SKIPPING: skipping}, prompt, max(STEPS, len(answer)))
    assert skipping.routing is not None
    result = Result(short, len(skipping.routing.skipped), skipping.routing.n_layer, kept, times)
    print(f"   {_speed(result)}\n   {kept:.0%} of its tokens are the full model's first choice")
    return result


def _wrapped(text: str) -> str:
    return "\n".join(textwrap.fill(line, _width()) for line in text.splitlines())


def _width() -> int:
    """Of what is shown: less in a narrow terminal."""
    return min(WIDTH, columns(sys.stdout) or WIDTH)


def _stream(llm: llama_cpp.Llama, prompt: list[int], max_tokens: int) -> list[int]:
    """Print an answer as it is made, words wrapped; returns its tokens."""
    out = WrappedText(sys.stdout, _width(), indent="   ", blank_lines=False)
    tokens: list[int] = []
    shown = ""
    for token, _ in answer_tokens(llm, prompt, max_tokens):
        if not tokens:
            print(_heading(llm))  # by now the prompt has decided
        tokens.append(token)
        text = llm.detokenize(tokens).decode("utf-8", errors="ignore").lstrip()
        out.write(text[len(shown) :])
        shown = text
    out.end()
    return tokens


def _heading(llm: llama_cpp.Llama) -> str:
    if not isinstance(llm, Llama) or llm.routing is None:
        n_layer = llama_cpp.llama_model_n_layer(llm.model)
        return f"-- {FULL} {picture((), n_layer)} {n_layer} layers"
    skipped, n_layer = llm.routing.skipped, llm.routing.n_layer
    return f"-- {SKIPPING}   {picture(skipped, n_layer)} {n_layer - len(skipped)} layers"


# -- the summary ---------------------------------------------------------------------------------------------------


def _speed(result: Result) -> str:
    if result.speed_up is None:
        return f"the machine is busy (steps vary by {busy_by(result.steps):.0%}): no speed-up"
    steps = {name: statistics.median(times) * 1e3 for name, times in result.steps.items()}
    return f"median step {steps[FULL]:.2f} -> {steps[SKIPPING]:.2f} ms in turns: {result.speed_up:.2f}x"


def summary(results: Sequence[Result], model: str, machine: str) -> list[str]:
    """The lines that a person keeps: each prompt, and all together."""
    rows = [["prompt", "skipped", "full", "skipping", "speed-up", "fidelity"]]
    for one in results:
        steps = [f"{1 / statistics.median(one.steps[name]):.0f}/s" if one.speed_up else "" for name in (FULL, SKIPPING)]
        gain = f"{one.speed_up:.2f}x" if one.speed_up else "busy"
        rows.append([one.name, f"{one.n_skipped} of {one.n_layer}", *steps, gain, f"{one.fidelity:.2f}"])
    speed_ups = [one.speed_up for one in results if one.speed_up]
    together = statistics.mean(one.fidelity for one in results)
    gain = f"{statistics.geometric_mean(speed_ups):.2f}x" if speed_ups else "busy"
    rows.append(["together", "", "", "", gain, f"{together:.2f}"])
    lines = ["", f"== {model} ==", machine, "", *_aligned(rows), ""]
    if not speed_ups:
        lines += ["The machine is busy: steps of one model vary too much for a speed-up.", "Run again when it is idle.", ""]
    return [
        *lines,
        f"full, skipping: tokens a second, by the median of at least {STEPS} steps in turns.",
        "fidelity: share of its tokens that are the full model's first choice.",
    ]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: the first column to the left, the others to the right."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
