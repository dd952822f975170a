"""How the cost of a calibration grows with layers, prompts and answer length: the tokens evaluated, one changed at a time.

python benchmarks/calibration_growth.py --out benchmarks/results/calibration_growth.json

Models have random weights and are small: what is counted are the tokens of answers that were evaluated with some set of layers,
which no machine changes. A token takes as many operations as a model has weights.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from common import parser, save

from first_cpp.calibrate.calibration import Calibration
from first_cpp.calibrate.prompts import in_turns, read_prompts
from first_cpp.gguf.synthetic import SHAPES, write_random

MIDDLE = {"layers": 16, "prompts": 48, "answer tokens": 24}
OTHERS = {"layers": (8, 32), "prompts": (96,), "answer tokens": (12, 48)}


def cases() -> Iterator[dict[str, int]]:
    """The middle, and each other value of one of the three.

    >>> sum(1 for _ in cases())
    6
    """
    yield MIDDLE
    for name, values in OTHERS.items():
        yield from (MIDDLE | {name: value} for value in values)


def run(case: dict[str, int], folder: str, threads: int) -> dict[str, object]:
    """Calibrate a random model of that many layers on the first built-in prompts."""
    model, prompts, out = (os.path.join(folder, name) for name in ("model.gguf", "prompts.jsonl", "out.gguf"))
    write_random(model, dataclasses.replace(SHAPES["tiny"], n_layer=case["layers"]))
    with open(prompts, "w", encoding="utf-8") as file:
        for prompt in itertools.islice(in_turns(read_prompts(None), 0), case["prompts"]):
            file.write(json.dumps({"prompt": prompt.text, "task": prompt.task}) + "\n")
    words = ["calibrate", "-m", model, "--prompts", prompts, "--sidecar", "--force", "--quiet", "--out", out]
    words += ["-n", str(case["answer tokens"]), "-t", str(threads)]
    subprocess.run([sys.executable, "-m", "first_cpp", *words], check=True, stdout=subprocess.DEVNULL)
    origin = Calibration.load(out.removesuffix(".gguf") + ".calibration.safetensors").origin
    return {**case, "evaluated_tokens": origin["evaluated_tokens"], "levels": origin["levels_measured"]}


def powers(rows: list[dict[str, object]]) -> dict[str, float]:
    """For each of the three, p of tokens ~ value ** p, by least squares through its rows.

    >>> row = {"layers": 16, "prompts": 96, "answer tokens": 24, "evaluated_tokens": 10}
    >>> powers([row, row | {"layers": 32, "evaluated_tokens": 40}])["layers"]
    2.0
    """
    found = {}
    for name in MIDDLE:
        own = [row for row in rows if all(row[other] == MIDDLE[other] for other in MIDDLE if other != name)]
        x, y = ([math.log(float(str(row[key]))) for row in own] for key in (name, "evaluated_tokens"))
        mx, my = sum(x) / len(x), sum(y) / len(y)
        square = sum((a - mx) ** 2 for a in x)
        found[name] = round(sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / square, 6) if square else math.nan
    return found


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--threads", type=int, default=1)
    args = options.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases():
            rows.append(run(case, folder, args.threads))
            print(rows[-1], flush=True)
    save(args.out, {"rows": rows, "powers": powers(rows)})


if __name__ == "__main__":
    main()
