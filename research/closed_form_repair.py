"""Whether a closed-form map in place of each run of skipped layers is worth its matrix product.

    python research/closed_form_repair.py --model smollm2-q8_0.gguf --calibration NAME.calibration.safetensors --out repair.json

On the first prompts of the built-in ones: the map of a run is fitted on answer positions, from what enters the run (earlier
runs repaired already) to what leaves it in the dense model; KL and fidelity are of other prompts' dense answers, with the first
layers of the calibration's order skipped. Maps: none; a scale and a bias for each channel; a ridge map of all channels, shrunk
towards the identity (after Ghosted Layers, arXiv 2605.15491), the penalty chosen by a part of the fitted positions.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from first_cpp.calibrate.calibration import Calibration
from first_cpp.calibrate.first_pass import answer_all
from first_cpp.calibrate.prompts import in_turns, read_prompts
from first_cpp.gguf.model_file import ModelFile
from first_cpp.runtime.chat_prompt import chat_prompt
from first_cpp.streams.cost import Targets
from first_cpp.streams.engine import Engine

Map = Callable[[np.ndarray], np.ndarray]
PENALTIES = (0.01, 0.1, 1.0, 10.0)
"""Of the ridge, times the mean square of a channel and the number of positions."""


def same(x: np.ndarray) -> np.ndarray:
    return x


def scale_and_bias(x: np.ndarray, y: np.ndarray) -> Map:
    """Least squares for each channel."""
    mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
    scale = ((x - mean_x) * (y - mean_y)).mean(axis=0) / np.maximum(((x - mean_x) ** 2).mean(axis=0), 1e-12)
    return lambda states: ((states - mean_x) * scale + mean_y).astype(np.float32)


def ridge(x: np.ndarray, y: np.ndarray) -> Map:
    """y - x = (x - mean) W + b, W shrunk towards nothing; the penalty by the last quarter of the positions."""
    most = 3 * len(x) // 4
    errors = {penalty: float(((_ridge(x[:most], y[:most], penalty)(x[most:]) - y[most:]) ** 2).mean()) for penalty in PENALTIES}
    return _ridge(x, y, min(errors, key=errors.__getitem__))


def _ridge(x: np.ndarray, y: np.ndarray, penalty: float) -> Map:
    mean, bias = x.mean(axis=0), (y - x).mean(axis=0)
    centred = (x - mean).astype(np.float64)
    scale = np.sqrt((centred**2).mean(axis=0) + 1e-12)  # channels differ by orders of magnitude
    centred /= scale
    gram = centred.T @ centred + penalty * len(x) * np.eye(x.shape[1])
    weight = np.linalg.solve(gram, centred.T @ (y - x - bias))
    return lambda states: (states + ((states - mean) / scale) @ weight + bias).astype(np.float32)


def runs(skipped: Sequence[int]) -> list[tuple[int, int]]:
    """The first and the last layer of each run.

    >>> runs([3, 4, 5, 14])
    [(3, 5), (14, 14)]
    """
    found: list[tuple[int, int]] = []
    for layer in sorted(skipped):
        if found and found[-1][1] == layer - 1:
            found[-1] = found[-1][0], layer
        else:
            found.append((layer, layer))
    return found


class Answer:
    """A prompt and its dense answer in the engine."""

    def __init__(self, engine: Engine, prompt: Sequence[int], answer: Sequence[int]) -> None:
        self.engine, self.answer, self.position = engine, answer, len(prompt)
        engine.read_prompt(prompt)
        self.prefix = engine.saved()
        logits, self.dense = engine.rows(answer, self.position, read_from=0)
        self.targets = Targets.of(logits)

    def entering(self, skipped: frozenset[int], maps: dict[int, Map], layer: int) -> np.ndarray:
        """The hidden states that enter a layer with the runs before it replaced by their maps."""
        first, states = self._repaired(skipped, maps, layer)
        return states[layer - first]

    def cost(self, skipped: frozenset[int], maps: dict[int, Map]) -> np.ndarray:
        start, at = None, 0
        for first, last in runs(tuple(skipped)):
            start = last + 1, maps[first](self.entering(skipped, maps, first))
            at = last + 1
        assert at < self.engine.n_layer
        self.engine.restore(self.prefix)
        return self.targets.cost(self.engine.rows(self.answer, self.position, skipped, start)[0])

    def _repaired(self, skipped: frozenset[int], maps: dict[int, Map], before: int) -> tuple[int, list[np.ndarray]]:
        """States from after the last run before a layer on."""
        start = None
        for first, last in runs(tuple(skipped)):
            if first >= before:
                break
            start = last + 1, maps[first](self.entering(skipped, maps, first))
        self.engine.restore(self.prefix)
        read_from = start[0] if start else 0
        return read_from, self.engine.rows(self.answer, self.position, skipped, start, read_from)[1]


def fit(answers: Sequence[Answer], skipped: frozenset[int], make: Callable[[np.ndarray, np.ndarray], Map]) -> dict[int, Map]:
    """The map of each run by its first layer, one after another."""
    maps: dict[int, Map] = {}
    for first, last in runs(tuple(skipped)):
        x = np.concatenate([one.entering(skipped, maps, first) for one in answers])
        y = np.concatenate([one.dense[last + 1] for one in answers])
        maps[first] = make(x, y)
    return maps


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", required=True)
    options.add_argument("--calibration", required=True)
    options.add_argument("--prompts", type=int, default=90, help="a third of them are kept out of the fits")
    options.add_argument("--levels", type=int, nargs="+", default=[3, 8])
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--out", required=True)
    options.add_argument("--notes", action="store_true", help="write the table into research/notes.md as well")
    args = options.parse_args()
    order = Calibration.load(args.calibration).order
    engine = Engine(args.model, 400, args.threads, streams=8)
    tokens = [chat_prompt(engine, prompt.text) for prompt in in_turns(read_prompts(), 0)[: args.prompts]]
    answered = [one for _, one in sorted(answer_all(engine, tokens, 48, ModelFile.open(args.model).norm_eps))]
    answers = [Answer(engine, one.prompt, one.answer) for one in answered if len(one.answer) > 4]
    kept_out, fitted = answers[::3], [one for i, one in enumerate(answers) if i % 3]
    rows = []
    for level in args.levels:
        skipped = frozenset(order[:level])
        for name, make in (("none", lambda _x, _y: same), ("scale and bias", scale_and_bias), ("ridge", ridge)):
            maps = fit(fitted, skipped, make)
            costs = np.stack([one.cost(skipped, maps) for one in kept_out]).astype(np.float64)
            rows.append({"level": level, "map": name, "kl": costs[:, 0].mean(), "fidelity": costs[:, 1].mean()})
            error = costs[:, 0].std(ddof=1) / len(costs) ** 0.5
            rows[-1] |= {"kl_error": error, "n": len(costs), "layers": sorted(skipped), "positions": len(fitted)}
            print(rows[-1], flush=True)
    engine.close()
    with open(args.out, "w", encoding="utf-8") as file:
        json.dump(rows, file, indent=1)
    if args.notes:
        sys.path.insert(0, os.path.join(os.path.dirname(__file__), os.pardir, "tools"))
        from marks import NOTES, fill

        fill(NOTES, "research/closed_form_repair.py", table(rows))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [f"{rows[0]['n']} prompts kept out, {rows[0]['positions']} fitted on.\n"]
    lines += ["| layers skipped | map | KL | fidelity |", "| --- | --- | --- | --- |"]
    for row in rows:
        layers = ", ".join(map(str, row["layers"]))
        lines.append(f"| {layers} | {row['map']} | {row['kl']:.3f} ± {row['kl_error']:.3f} | {row['fidelity']:.3f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
