"""What a calibration is worth on prompts that it has not seen: KL and fidelity to the dense answers, at equal mean share.

For the model as it is (--model, a calibrated file's .calibration.safetensors as --calibration) on a folder of task data
(--data: KIND.SPLIT.jsonl with `prompt`; the kinds of `chat` are its tasks). Every way to skip layers is measured on the same
prompts: --per-kind of each kind, for each of three seeds others. Costs are the calibration's own (one evaluation of each dense
answer with each set of layers), linear between the levels measured. Stopped with Ctrl-C, it goes on from --state.
"""

from __future__ import annotations

import glob
import math
import os
import random
import time
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from common import parser, save

from first_cpp.calibrate.answer_costs import NOTHING
from first_cpp.calibrate.budget import Outcomes, at_mean
from first_cpp.calibrate.calibration import Calibration
from first_cpp.calibrate.cost_store import CostStore
from first_cpp.calibrate.findings import NEVER, Predicted, outcomes
from first_cpp.calibrate.probes import Floats64
from first_cpp.calibrate.procedure import SEARCHED, Measured, Plan, Procedure, Show
from first_cpp.calibrate.prompts import Prompt
from first_cpp.cli.jsonl import field, lines
from first_cpp.gguf.cost_probes import LayerSet
from first_cpp.gguf.model_file import ModelFile
from first_cpp.runtime.chat_prompt import chat_prompt
from first_cpp.runtime.machine import physical_cores
from first_cpp.streams.engine import Engine

N_SEEDS = 3
MOST_TOKENS = 700
"""Of a prompt; longer ones are left aside."""
UNIFORM = ("influence", "even")
DRAWS = 2000
"""Of the bootstrap."""
SYSTEMS = ("influence", "even", "single set", "sets by prompt", "budget", "budget and sets", "oracle")


class AllKeptOut(Procedure):
    """None of these prompts was seen by the calibration.

    uniform: the measured levels that block influence and evenly spaced layers are asked for.
    """

    uniform: frozenset[int] = frozenset()
    until = math.inf
    """On the monotonic clock."""

    def _over(self, part: float) -> bool:
        return time.monotonic() > self.until

    def kept_out(self) -> dict[int, bool]:
        return dict.fromkeys(self.usable(), True)

    def searched(self) -> list[int]:
        return []

    def sets(
        self, orders: Sequence[Sequence[int]], levels: Sequence[int], given: Sequence[LayerSet] = ()
    ) -> dict[str, list[frozenset[int]]]:
        found = super().sets(orders, levels, given)
        for kind in found.keys() & set(UNIFORM):  # a level not asked for costs nothing to measure, and is none below
            found[kind] = [one if k in self.uniform else NOTHING for k, one in zip(levels, found[kind], strict=True)]
        return found


def asked_for(levels: Sequence[int], means: Sequence[float]) -> frozenset[int]:
    """The measured levels between which the levels around `means` lie.

    >>> sorted(asked_for([1, 2, 3, 5, 8, 13], [3.0, 7.5]))
    [3, 5, 8]
    """
    around = {k for mean in means for k in (math.floor(mean), math.ceil(mean))}
    below = {max((k for k in levels if k <= one), default=levels[0]) for one in around}
    return frozenset(below | {min((k for k in levels if k >= one), default=levels[-1]) for one in around})


def read_kinds(folder: str, split: str) -> dict[str, list[Prompt]]:
    """The prompts of a folder by kind, each once."""
    kinds = defaultdict(dict)
    paths = sorted(glob.glob(os.path.join(folder, f"*.{split}.jsonl")))
    if not paths:
        raise SystemExit(f"{folder} has no *.{split}.jsonl")
    for path in paths:
        for where, record in lines(path):
            kind = str(record.get("task") or os.path.basename(path).split(".")[0])
            kinds[kind][field(record, "prompt", where)] = None
    return {kind: [Prompt(text, kind) for text in texts] for kind, texts in sorted(kinds.items())}


def draw_prompts(
    kinds: dict[str, list[Prompt]], per_kind: int, engine: Engine
) -> tuple[list[Prompt], list[list[int]], list[int]]:
    """For each seed so many of each kind, none twice: prompts, tokens, seeds; kinds in turns."""
    found = []
    for number, prompts in enumerate(kinds.values()):
        shuffled = random.Random(number).sample(prompts, len(prompts))
        tokens = ((prompt, chat_prompt(engine, prompt.text)) for prompt in shuffled)
        fitting = [one for one in tokens if len(one[1]) <= MOST_TOKENS][: N_SEEDS * per_kind]
        found += [(i, number, *one) for i, one in enumerate(fitting)]
    found.sort(key=lambda one: one[:2])
    return [one[2] for one in found], [one[3] for one in found], [one[0] % N_SEEDS for one in found]


def predicted_log_cost(calibration: Calibration, orders: Sequence[Sequence[int]], hidden: np.ndarray) -> Floats64:
    """What the file predicts of each order's set at each level, float64 [n_order, n, n_level]."""
    rows = [*calibration.read, *(calibration.base.n_layer + layer for layer in calibration.last)]
    of_set = np.einsum("nre,sre->ns", hidden[:, rows].astype(np.float64), calibration.weight) + calibration.bias
    numbers = {(one.level, one.layers): i for i, one in enumerate(calibration.sets)}
    levels = range(1, max(one.level for one in calibration.sets) + 1)
    return np.stack([of_set[:, [numbers[k, tuple(sorted(order[:k]))] for k in levels]] for order in orders])


def at_share(calibration: Calibration, measured: Measured, which: np.ndarray, share: float) -> dict[str, np.ndarray]:
    """Layers, KL and fidelity of each prompt, [n, 3], by system, at a mean share over the prompts `which`."""
    mean = round(share * calibration.base.n_layer, 6)
    kinds = [name for name in SEARCHED if name in measured.costs]
    predicted = Predicted(
        predicted_log_cost(calibration, measured.orders, measured.hidden[which]),
        tuple(outcomes(measured, kind, which) for kind in kinds),
    )
    alone_cost, alone = predicted.with_margin(NEVER)
    cost, both = predicted.with_margin(calibration.margin)
    true_cost, best = predicted.oracle()
    by_influence = (
        {"influence": _uniform(outcomes(measured, "influence", which), mean)} if "influence" in measured.costs else {}
    )
    return by_influence | {
        "even": _uniform(outcomes(measured, "even", which), mean),
        "single set": _uniform(alone, mean),
        "sets by prompt": _uniform(both, mean),
        "budget": _chosen(alone, at_mean(alone_cost, alone.levels, mean)),
        "budget and sets": _chosen(both, at_mean(cost, both.levels, mean)),
        "oracle": _chosen(best, at_mean(true_cost, best.levels, mean)),
    }


def _uniform(real: Outcomes, mean: float) -> np.ndarray:
    """Every prompt alike; where `mean` is no whole number, the mean of the levels around it."""
    low, part = int(mean), mean - int(mean)
    kl, fidelity = ((1 - part) * one[:, low] + part * one[:, low + bool(part)] for one in (real.kl, real.fidelity))
    return np.stack([np.full(len(kl), mean), kl, fidelity], axis=1)


def _chosen(real: Outcomes, chosen: np.ndarray) -> np.ndarray:
    rows = np.arange(len(chosen))
    return np.stack([np.asarray(real.levels)[chosen], real.kl[rows, chosen], real.fidelity[rows, chosen]], axis=1)


def table(calibration: Calibration, measured: Measured, seeds: np.ndarray, shares: Sequence[float]) -> list[dict[str, object]]:
    """The rows: by share, kind of prompts ("all" among them) and system."""
    tasks, rng = np.array(measured.tasks), np.random.default_rng(0)
    rows: list[dict[str, object]] = []
    for share in shares:
        systems = [name for name in SYSTEMS if name in measured.costs or name not in UNIFORM]
        found = {name: np.zeros((len(seeds), 3)) for name in systems}
        for seed in range(N_SEEDS):  # a budget at a mean is a matter of all prompts of one seed
            for name, values in at_share(calibration, measured, seeds == seed, share).items():
                found[name][seeds == seed] = values
        for kind in ("all", *sorted(set(tasks))):
            of = np.flatnonzero(tasks == kind) if kind != "all" else np.arange(len(tasks))
            draws = _resampled(tasks[of], rng)
            for name in systems:
                rows.append({"share": share, "kind": kind, "system": name, **_summary(found, name, of, seeds, draws)})
    return rows


def _resampled(tasks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Bootstrap draws [DRAWS, n], each kind from itself."""
    parts = [np.flatnonzero(tasks == kind) for kind in sorted(set(tasks))]
    return np.concatenate([part[rng.integers(0, len(part), (DRAWS, len(part)))] for part in parts], axis=1)


def _summary(
    found: dict[str, np.ndarray], name: str, of: np.ndarray, seeds: np.ndarray, draws: np.ndarray
) -> dict[str, object]:
    """Medians over seeds of the means; bootstrap intervals of 95 %; KL relative to block influence and to the single set."""
    values = found[name][of]
    layers, kl, fidelity = (
        float(np.median([values[seeds[of] == seed, column].mean() for seed in range(N_SEEDS) if (seeds[of] == seed).any()]))
        for column in range(3)
    )
    row: dict[str, object] = {"n": len(of), "layers": layers, "kl": kl, "fidelity": fidelity}
    row["kl_interval"] = _interval(values[draws, 1].mean(axis=1))
    row["fidelity_interval"] = _interval(values[draws, 2].mean(axis=1))
    for other in found.keys() & {"influence", "single set"}:
        base = found[other][of, 1]
        row[f"kl_over_{other}"] = float(values[:, 1].mean() / base.mean())
        row[f"kl_over_{other}_interval"] = _interval(values[draws, 1].mean(axis=1) / base[draws].mean(axis=1))
    return row


def _interval(draws: np.ndarray) -> list[float]:
    return [float(one) for one in np.percentile(draws, [2.5, 97.5])]


def measure(args, calibration: Calibration) -> tuple[Measured, np.ndarray]:
    """Costs of all levels on all prompts."""
    model = ModelFile.open(args.model)
    engine = Engine(args.model, MOST_TOKENS + 64, args.threads, streams=8)
    prompts, tokens, seeds = draw_prompts(read_kinds(args.data, args.split), args.per_kind, engine)
    identity = {"fingerprint": model.fingerprint, "prompts": [prompt.text for prompt in prompts]}
    store = CostStore(args.state, identity, len(prompts))
    if store.stale:
        raise SystemExit(f"{args.state} is of other prompts or another model; remove it")
    store.influence = calibration.origin.get("influence", [])  # not measured where sets were given
    procedure = AllKeptOut(engine, prompts, tokens, model.norm_eps, store, Plan(), Show(bar=_bar))
    means = [round(share * calibration.base.n_layer, 6) for share in args.shares]
    orders = [tuple(order) for order in calibration.origin["orders"]]
    levels = calibration.origin["levels_measured"]
    procedure.uniform, procedure.until = asked_for(levels, means), time.monotonic() + args.seconds
    try:
        procedure.answer()
        measured = procedure.measure_levels(orders, levels)
    finally:
        store.save()
    engine.close()
    if len(measured.numbers) < len(procedure.usable()) and time.monotonic() < procedure.until:
        raise SystemExit(f"stopped; what was measured is in {args.state}")
    for kind in measured.costs.keys() & set(UNIFORM):
        measured.costs[kind][:, [k not in procedure.uniform for k in levels]] = np.nan
    return measured, np.array(seeds)[list(measured.numbers)]


def _bar(what: str, done: float, total: float) -> None:
    if done % 10 == 0 or done == total:
        print(f"{what}: {done:.0f} of {total:.0f}", flush=True)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", required=True, help="the GGUF that was calibrated, or a Q8_0 copy")
    options.add_argument("--calibration", required=True, help="NAME.calibration.safetensors that first-cpp calibrate wrote")
    options.add_argument("--data", required=True, help="a folder of KIND.SPLIT.jsonl")
    options.add_argument("--split", default="test")
    options.add_argument("--per-kind", type=int, default=12, help="prompts of each kind for each seed (default: %(default)s)")
    options.add_argument("--shares", type=float, nargs="+", default=[0.10, 0.25])
    options.add_argument(
        "--seconds", type=float, default=math.inf, help="then go by the prompts measured so far (default: all)"
    )
    options.add_argument("--state", required=True, help="where measured costs are kept")
    options.add_argument("--threads", type=int, default=physical_cores())
    args = options.parse_args()
    calibration = Calibration.load(args.calibration)
    most = calibration.origin["levels_measured"][-1] / calibration.base.n_layer
    if max(args.shares) > most:
        raise SystemExit(f"--shares {max(args.shares):g}: this calibration measured up to {most:.3f} of the layers")
    measured, seeds = measure(args, calibration)
    save(args.out, table(calibration, measured, seeds, args.shares))


if __name__ == "__main__":
    main()
