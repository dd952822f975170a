"""Find the layers that this model can spare: calibrated by llama.cpp on this machine, in minutes, on prompts alone.

The dense model answers the prompts; a search orders the layers by what skipping them costs on those answers; probes learn to
predict the cost from the prompt. Ends with what is kept at which speed, measured on prompts kept out.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import os
import shlex
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from ..cli.duration import in_words
from ..cli.execute import add_debug
from ..cli.model_name import HELP, add_offline, find_model
from ..cli.next_commands import next_commands
from ..cli.options import number, whole_number
from ..errors import ModelFileError, OptionError, RouterError
from ..gguf.embed import embed, write_sidecar
from ..gguf.model_file import ModelFile, normal_path, weights_fingerprint
from ..gguf.new_file import check_output, check_regular
from ..gguf.quantise import quiet_llama_cpp
from ..gguf.router_format import router_keys
from ..runtime.arguments import MOST_THREADS
from ..runtime.machine import physical_cores
from .given_sets import by_kind, read_given
from .prompts import Prompt, in_turns, read_prompts

if TYPE_CHECKING:
    from ..gguf.cost_probes import CostProbes
    from ..streams.engine import Engine
    from .calibration import Calibration
    from .cost_store import CostStore
    from .findings import Findings, Speed
    from .procedure import Measured, Show

EPILOG = """examples:
  first-cpp calibrate -m model.gguf --out model-first.gguf
  first-cpp calibrate -m model.gguf --prompts mine.txt --minutes 20 \\
      --sidecar --out mine.gguf
  first-cpp calibrate -m merged.gguf --sets model-first.gguf --replace \\
      --out tuned.gguf

Writes the model with levels, sets of layers and cost probes (--sidecar: these
alone, for `--routers FILE`), and beside it NAME.calibration.safetensors, and
the table as NAME.calibration.png where matplotlib is installed. Prompts: text,
one a line, or JSON Lines (*.jsonl) with "prompt", perhaps "task"; the answers
are the model's own. Ctrl-C stops; the same command goes on from
NAME.calibration.state.
"""

MOST_POSITIONS = 2048
"""Of a prompt and its answer: longer prompts are not used."""
SPEED_PART = 0.08
"""Of the time is for measuring how fast a step is."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = EPILOG, argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("-m", "--model", metavar="MODEL", help=f"{HELP} (default: the one of the demo extra)")
    add_offline(add)
    add("--out", required=True, metavar="FILE", help="the GGUF to write")
    add("--sets", metavar="FILE", help="keep the sets of layers of an earlier calibrated file, as after the merge of a LoRA "
        "that learned them: no search, the rest is fitted anew")  # fmt: skip
    add("--prompts", metavar="FILE", help="prompts like those the model will get (default: 314 built-in ones)")
    add(
        "--minutes",
        type=number(0.1),
        default=30,
        metavar="N",
        help="end after so long, with what was found until then (default: %(default)s)",
    )
    add(
        "--fidelity",
        type=number(0.5, 0.9999),
        default=0.95,
        metavar="SHARE",
        help="share of tokens at which the dense model would choose the same, to hold on average (default: %(default)s)",
    )
    add("--sidecar", action="store_true", help="write the routers alone, a small file to give beside the model")
    add("--force", action="store_true", help="an existing --out may be replaced")
    add("--replace", action="store_true", help="the model's own routers, if it carries some, are replaced")
    add("-n", "--max-tokens", type=whole_number(8, 256), default=48, help="longest answer measured on (default: %(default)s)")
    add("--seed", type=whole_number(0), default=0, help="of the order of prompts (default: %(default)s)")
    add("-t", "--threads", metavar="N", type=whole_number(1, MOST_THREADS), help="threads (default: physical cores)")
    many = "processes that measure, each with the model and a part of the threads (default: %(default)s)"
    add("--processes", metavar="N", type=whole_number(1), default=1, help=many)
    add("--quiet", action="store_true", help="no progress")
    add_debug(parser)


def command(args: argparse.Namespace) -> None:
    started = time.monotonic()
    model = ModelFile.open(find_model(args.model, args.offline))
    args.out = normal_path(args.out)
    prompts = in_turns(read_prompts(args.prompts), args.seed)
    _check(args, model)
    given = read_given(args.sets, model) if args.sets else None
    from .findings import sentence
    from .show import LEGEND, draw, progress, table, wrapped

    with progress(args.quiet) as show:
        found = _calibrate(args, model, prompts, given, show, started)
    stem = _stem(args.out)
    found.calibration.save(f"{stem}.calibration.safetensors")
    _write(args, model, found.calibration)
    if plotted := importlib.util.find_spec("matplotlib") is not None:
        draw(found, f"{stem}.calibration.png")
    with contextlib.suppress(FileNotFoundError):
        os.remove(_state(args.out))
    print(wrapped(f"{found.n_kept_out} prompts kept out of all fits; the searched layers: {_first(found.calibration)}"))
    print(f"\n{table(found)}\n\n{wrapped(LEGEND.format(n_layer=model.base.n_layer))}\n")
    print(wrapped(sentence(found)))
    alike = f"{found.calibration.share:.0%} of the layers" if found.calibration.share else "no layer"
    print(wrapped(f"For every prompt alike, rather than by prompt, {alike} can go."))
    written = [args.out, f"{stem}.calibration.safetensors"] + [f"{stem}.calibration.png"] * plotted
    print(wrapped(f"Written: {', '.join(written)}"))
    use = [model.path, "--routers", args.out] if args.sidecar else [args.out]
    print(next_commands(*(["first-cpp", verb, "-m", *use] for verb in ("chat", "serve"))))


def _stem(out: str) -> str:
    return out.removesuffix(".gguf")


def _state(out: str) -> str:
    return f"{_stem(out)}.calibration.state"


def _first(calibration: Calibration) -> str:
    return ", ".join(str(layer) for layer in calibration.order[: len(calibration.sets)])


def _check(args: argparse.Namespace, model: ModelFile) -> None:
    """Refuse what cannot be measured or written before anything is."""
    threads = args.threads or physical_cores()
    if args.processes > threads:
        raise OptionError(f"--processes is {args.processes}, allowed: 1 to {threads}, as many as there are threads (--threads)")
    if len(model.files) > 1 and not args.sidecar:
        raise ModelFileError(f"{model.path} is split in {len(model.files)} files: write a --sidecar, or merge it before")
    if router_keys(model.first) and not args.sidecar and not args.replace:
        raise RouterError(f"{model.path} already carries routers; --replace puts the new ones in their place")
    inputs = [*model.paths, *filter(None, (args.prompts, args.sets))]
    size = (1 << 20) if args.sidecar else os.path.getsize(model.path)
    check_output(args.out, inputs, args.force, size)
    check_output(_state(args.out), inputs, True, 64 << 20)
    for end in ("safetensors", "png"):
        check_regular(f"{_stem(args.out)}.calibration.{end}")


def _calibrate(
    args: argparse.Namespace, model: ModelFile, prompts: list[Prompt], given: CostProbes | None, show: Show, started: float
) -> Findings:
    from ..streams.engine import Engine, streams_for
    from ..streams.quick_copy import quick_copy
    from .cost_store import CostStore
    from .findings import conclude
    from .procedure import LEAST_PROMPTS, Plan, Procedure
    from .workers import measuring

    used, tokens = _tokens(args, model, prompts, show)
    longest = max(map(len, tokens)) + args.max_tokens + 1
    store = CostStore(_state(args.out), _identity(args, model, used), len(used), started)
    if store.stale:
        show.say(f"{store.path} is of another model, other prompts or another -n, or damaged: beginning anew")
    elif store.answered:
        show.say(f"going on from {store.path}: {len(store.answered)} answers and {len(store.costs)} sets of layers are known")
    left = in_words(max(1.0, 60 * args.minutes - store.elapsed))
    show.say(
        f"plan: {len(used)} prompts, or as many as about {left} allow, {LEAST_PROMPTS} at least; "
        "Ctrl-C stops, and the same command goes on"
    )
    threads = args.threads or physical_cores()
    with (
        quick_copy(model, f"{_stem(args.out)}.calibration.gguf", show.say) as path,
        measuring(path, longest, threads, streams_for(longest), args.processes, store) as (engine, workers),
    ):
        plan = Plan(max_tokens=args.max_tokens, seconds=60 * args.minutes)
        procedure = Procedure(engine, used, tokens, model.norm_eps, store, plan, show, workers)
        try:
            measured = procedure.carry_out() if given is None else procedure.keep_sets(given)
        except KeyboardInterrupt:
            kept = f"what was measured is in {store.path}, and the same command goes on from there"
            show.say(f"stopped; {kept if store.answered else 'nothing was measured yet'}")
            raise
        finally:
            store.save()
        skippable = [not why for why in engine.unskippable]
        prompt, answer = (one := store.answered[procedure.usable()[0]]).prompt, one.answer
    with contextlib.closing(Engine(model.path, longest, threads, streams=1)) as engine:
        until = time.monotonic() + SPEED_PART * 60 * args.minutes
        speed = _speed(engine, prompt, answer, measured, model, until)
    return conclude(measured, speed, model.base, model.norm_eps, skippable, args.fidelity, _origin(args, measured, store))


def _tokens(
    args: argparse.Namespace, model: ModelFile, prompts: list[Prompt], show: Show
) -> tuple[list[Prompt], list[list[int]]]:
    """The prompts that fit, and their tokens in the model's chat template; plain text for a model without one."""
    import llama_cpp

    from ..runtime.chat_prompt import chat_prompt

    with quiet_llama_cpp():
        opened = llama_cpp.Llama(model.path, vocab_only=True, verbose=False)
    with contextlib.closing(opened) as vocabulary:
        if "tokenizer.chat_template" not in vocabulary.metadata:
            show.say("this model has no chat template: it continues the prompts as plain text")
        tokens = [chat_prompt(vocabulary, prompt.text) for prompt in prompts]
    most = min(MOST_POSITIONS, model.context_length) - args.max_tokens - 1
    fitting = [i for i, found in enumerate(tokens) if 0 < len(found) <= most]
    if len(fitting) < len(tokens):
        show.say(f"{len(tokens) - len(fitting)} prompts are longer than {most} tokens and are not used")
    if not fitting:
        raise OptionError(f"no prompt has 1 to {most} tokens; give shorter ones with --prompts")
    return [prompts[i] for i in fitting], [tokens[i] for i in fitting]


def _identity(args: argparse.Namespace, model: ModelFile, prompts: list[Prompt]) -> dict[str, Any]:
    """What costs depend on."""
    digest = hashlib.sha256(repr([(prompt.task, prompt.text) for prompt in prompts]).encode())
    return {
        "model": weights_fingerprint(model.path),
        "read": ("mean", "last"),
        "prompts": digest.hexdigest(),
        "max_tokens": args.max_tokens,
    }


def _speed(engine: Engine, prompt: list[int], answer: list[int], measured: Measured, model: ModelFile, until: float) -> Speed:
    """What skipping gains on this machine, and the most that its bytes allow."""
    from ..gguf.byte_limit import kv_reads, weight_reads
    from ..runtime.interleaved import BUSY, busy_by
    from .answer_costs import NOTHING
    from .findings import Speed, too_fast
    from .procedure import SEARCHED
    from .step_times import step_times

    levels = (0, *measured.levels)
    kept = by_kind(measured.given, SEARCHED[:1]).get(SEARCHED[0])
    sets = [NOTHING, *(kept or (frozenset(measured.orders[0][:k]) for k in measured.levels))]
    times = step_times(engine, prompt, answer, sets, until)
    reads = weight_reads(model.path)
    n_bytes = [reads.weights(layers) + kv_reads(engine.kv_cache, engine.n_ctx(), len(prompt), layers) for layers in sets]
    wanted = range(levels[-1] + 1)
    read_bytes = np.interp(wanted, levels, n_bytes)
    medians = np.interp(wanted, levels, [float(np.median(of_level)) for of_level in times])
    spread = busy_by({str(level): of_level for level, of_level in zip(levels, times, strict=True)})
    return Speed(None if spread > BUSY or too_fast(medians, read_bytes) else medians, read_bytes)


def _origin(args: argparse.Namespace, measured: Measured, store: CostStore) -> dict[str, object]:
    return {
        "source": os.path.basename(args.prompts) if args.prompts else "the built-in prompts of first_cpp",
        "command": shlex.join(["first-cpp", *sys.argv[1:]]),
        **({"sets": os.path.basename(args.sets)} if args.sets else {}),
        "answers": measured.n_answers,
        "levels_measured": list(measured.levels),
        "orders": [list(order) for order in measured.orders],
        "influence": store.influence,
        "seconds": round(store.elapsed),
        "evaluated_tokens": store.evaluated_tokens(),
    }


def _write(args: argparse.Namespace, model: ModelFile, found: Calibration) -> None:
    routers = found.routers()
    if args.sidecar:
        write_sidecar(routers, model.path, args.out, force=args.force)
    else:
        embed(routers, model.path, args.out, force=args.force, replace=args.replace, quiet=args.quiet)
