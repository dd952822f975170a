"""What predicts what skipping will cost a prompt: its mean hidden state, its last one, or the first tokens of its answer?

    python research/predict_costs.py --model smollm2-q8_0.gguf --calibration NAME.calibration.safetensors --out predict.json

On the built-in prompts and their dense answers of up to 48 tokens: KL of skipping the first layers of the calibration's order
at several levels; then ridge regressions of its logarithm, as `first-cpp calibrate` fits them, each prompt predicted by a fit
without the eighth of the prompts that it is in. R2 is over all levels; KL and fidelity are with the levels that a tolerance
gives by these predictions, at a mean number of skipped layers, beside the same number for every prompt and the true costs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from first_cpp.calibrate.answer_costs import AnswerCosts
from first_cpp.calibrate.budget import at_mean
from first_cpp.calibrate.calibration import Calibration
from first_cpp.calibrate.first_pass import answer_all, rmsnorm
from first_cpp.calibrate.probes import LEAST_COST, fit, interpolated, monotone
from first_cpp.calibrate.prompts import in_turns, read_prompts
from first_cpp.gguf.model_file import ModelFile
from first_cpp.runtime.chat_prompt import chat_prompt
from first_cpp.streams.cost import AGREE, KL
from first_cpp.streams.engine import Engine

FOLDS = 8
FIRST = (4, 16)
"""Tokens of the answer, read dense before the layers are chosen."""
LEVELS = (1, 2, 3, 5, 8)
MEANS = (2, 3, 5)
"""Mean numbers of skipped layers that are compared."""
SHORTEST = 5
"""Tokens of an answer: a shorter one says little."""


def reads(engine: Engine, prompt: Sequence[int], answer: Sequence[int], norm_eps: float) -> dict[str, np.ndarray]:
    """What could be read of a prompt, each float32 [n_layer, n_embd]."""
    states = engine.read_prompt([*prompt, *answer[: max(FIRST)]], hidden=True)
    normed = np.stack([rmsnorm(layer, norm_eps) for layer in states])  # [n_layer, n_tokens, n_embd]
    n = len(prompt)
    found = {"mean of the prompt": normed[:, :n].mean(axis=1), "last position": normed[:, n - 1]}
    return found | {f"first {k} tokens of the answer": normed[:, n : n + k].mean(axis=1) for k in FIRST}


def joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Inputs side by side, each of the same mean length over prompts: [n, n_layer, n_embd] -> [n, n_layer, parts * n_embd]."""
    centred = [part - part.mean(axis=0) for part in parts]
    return np.concatenate([one / np.sqrt((one**2).sum(axis=-1).mean()) for one in centred], axis=-1)


def predictions(inputs: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """Log costs [n, n_level] of prompts that the fits did not see."""
    folds = np.random.default_rng(0).permutation(len(costs)) % FOLDS
    found = np.empty(costs.shape)
    for fold in range(FOLDS):
        probes = fit(inputs[folds != fold].astype(np.float32), costs[folds != fold], range(inputs.shape[1]))
        found[folds == fold] = probes.log_cost(inputs[folds == fold].astype(np.float32))
    return found


def measure(engine: Engine, prompts: Sequence[list[int]], order: Sequence[int], norm_eps: float) -> Iterator[dict[str, Any]]:
    """What can be read of each prompt, and the KL and fidelity of each level."""
    answered = [one for _, one in sorted(answer_all(engine, prompts, 48, norm_eps), key=lambda found: found[0])]
    for one in answered:
        if len(one.answer) >= SHORTEST:
            costs = AnswerCosts(engine, one.prompt, one.answer)
            of_levels = np.stack([costs.cost(frozenset(order[:level])) for level in LEVELS])
            yield {"read": reads(engine, one.prompt, one.answer, norm_eps), "costs": of_levels}


def rows(measured: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A row for each way to predict."""
    costs = np.stack([one["costs"] for one in measured]).astype(np.float64)  # [n, n_level, 3]
    kl, levels = costs[:, :, KL], tuple(range(LEVELS[-1] + 1))
    points = (0, *LEVELS)
    whole = np.concatenate([np.zeros((len(kl), 1)), kl], axis=1)
    agree = np.concatenate([np.ones((len(kl), 1)), costs[:, :, AGREE]], axis=1)
    real, same = interpolated(whole, points, levels), interpolated(agree, points, levels)

    def row(name: str, chosen: Sequence[np.ndarray], r2: float | None = None) -> dict[str, Any]:
        at = np.arange(len(kl))
        pairs = zip(MEANS, chosen, strict=True)
        of = [{"mean": mean, "kl": real[at, one].mean(), "fidelity": same[at, one].mean()} for mean, one in pairs]
        return {"by": name, "r2": r2, "at": of, "n": len(kl)}

    def by(name: str, log_cost: np.ndarray) -> dict[str, Any]:
        spread = ((target - target.mean(axis=0)) ** 2).mean()
        cost = np.exp(monotone(interpolated(log_cost, LEVELS, levels[1:])))
        return row(name, [at_mean(cost, levels, mean) for mean in MEANS], 1 - ((log_cost - target) ** 2).mean() / spread)

    target = np.log(np.maximum(kl, LEAST_COST))
    yield row("the same for every prompt", [np.full(len(kl), mean) for mean in MEANS])
    read = {name: np.stack([one["read"][name] for one in measured]) for name in measured[0]["read"]}
    for name, inputs in read.items():
        yield by(name, predictions(inputs, kl))
    mean, last, few, _ = read
    yield by(f"{mean}, {last}", predictions(joined([read[mean], read[last]]), kl))
    yield by(f"{mean}, {last}, {few}", predictions(joined([read[mean], read[last], read[few]]), kl))
    yield by("the true costs", target)


def table(found: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    heads = [f"KL, fidelity at {mean} layers" for mean in MEANS]
    lines = [f"{found[0]['n']} prompts.\n", f"| predicted from | R2 | {' | '.join(heads)} |", "| --- " * (2 + len(MEANS)) + "|"]
    for row in found:
        cells = [f"{one['kl']:.3f}, {one['fidelity']:.3f}" for one in row["at"]]
        lines.append(f"| {row['by']} | {'' if row['r2'] is None else format(row['r2'], '.2f')} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", required=True)
    options.add_argument("--calibration", required=True)
    options.add_argument("--prompts", type=int, default=300)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--out", required=True)
    options.add_argument("--notes", action="store_true", help="write the table into research/notes.md as well")
    args = options.parse_args()
    order = Calibration.load(args.calibration).order
    engine = Engine(args.model, 512, args.threads, streams=8)
    tokens = [chat_prompt(engine, prompt.text) for prompt in in_turns(read_prompts(), 0)[: args.prompts]]
    fitting = [one for one in tokens if len(one) + 48 < engine.room]
    found = list(rows(list(measure(engine, fitting, order, ModelFile.open(args.model).norm_eps))))
    engine.close()
    with open(args.out, "w", encoding="utf-8") as file:
        json.dump(found, file, indent=1)
    print(table(found))
    if args.notes:
        sys.path.insert(0, os.path.join(os.path.dirname(__file__), os.pardir, "tools"))
        from marks import NOTES, fill

        fill(NOTES, "research/predict_costs.py", table(found))


if __name__ == "__main__":
    main()
