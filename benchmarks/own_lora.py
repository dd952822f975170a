"""Ways to choose layers, each with its own LoRA: trained equally on the model's own answers, judged by what it answers.

python benchmarks/own_lora.py --model SmolLM2-135M-Instruct.gguf --data data --folder rows --out own_lora.json

--data: a folder of KIND.SPLIT.jsonl with `prompt`, the test files with `response`; the kinds of `chat` are its tasks. All
rows have the same prompts, dense answers, steps, LoRA and type. What is in --folder is not made again: stopped, it goes on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

from common import parser, save

from first_cpp.calibrate.calibration import Calibration
from first_cpp.cli.jsonl import lines
from first_cpp.evaluate.answer_file import AnswerFile
from first_cpp.evaluate.metrics import kinds_of_tasks
from first_cpp.evaluate.questions import read_questions, tasks_of_prompts
from first_cpp.evaluate.report import summarise
from first_cpp.evaluate.rows import Row
from first_cpp.gguf.quantise import quantise
from first_cpp.runtime.machine import physical_cores

FILES = ("chat", "tldr", "qa", "translation", "dialogue")
LONGEST = 48
"""Tokens of an answer, in training and in the test."""
LONGEST_PROMPT = 463
"""Tokens of a prompt that is trained on: with its answer 511 of a context of 512."""
SHARES = (0.1, 0.25, 0.4)
EVERYWHERE = ("budget", "single set")
"""Rows measured at every share; the others at the middle one."""
DENSE = "dense + LoRA"
KINDS = {"budget": "budget:", "single set": "given:", "block influence": "influence:", "evenly spaced": "even:"}
"""What a row's file skips at a share, as `first-cpp eval --row` takes it; the share itself is what routers choose."""
TYPES = ("Q8_0", "Q4_0")
"""The model as it came, in other types."""
SCHEDULE = {"--batch-size": 8, "--passes": 2, "--lr": 4e-4, "--average": 0.25, "--quantize": "Q4_0", "--max-share": 0.45}
ANSWERS = "answers.jsonl"


class Rows:
    """The folder of all rows, and the commands that fill it."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.folder = args, args.folder
        os.makedirs(self.folder, exist_ok=True)

    def path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def make(self, name: str, write: Callable[[str], object]) -> str:
        """The file or folder of that name, written first where it is missing."""
        path = self.path(name)
        if not os.path.exists(path):
            print(f"== {name}", flush=True)
            write(path)
        return path

    def draw(self, split: str, per_kind: int, path: str) -> None:
        """So many records of each kind of a split, in one file, kinds in turns; what is learned from are prompts alone."""
        kinds: dict[str, list[dict[str, object]]] = defaultdict(list)
        for name in FILES:
            for _, record in lines(os.path.join(self.args.data, f"{name}.{split}.jsonl")):
                kinds[record["task"]].append(record)
        drawn = [random.Random(0).sample(found, min(per_kind, len(found))) for _, found in sorted(kinds.items())]
        with open(path, "w", encoding="utf-8") as file:
            for turn in itertools.zip_longest(*drawn):
                for record in filter(None, turn):
                    kept = record if split == "test" else {key: record[key] for key in ("task", "prompt")}
                    file.write(json.dumps(kept) + "\n")

    def sets(self, path: str) -> None:
        """Layers to leave out, searched on prompts that no row is trained on."""
        given = ["--prompts", self.path("valid.jsonl"), "--minutes", self.args.minutes]
        self.first_cpp("calibrate", "-m", self.args.model, *given, "--sidecar", "--out", path)

    def first_cpp(self, *words: object) -> None:
        run([sys.executable, "-m", "first_cpp", *map(str, words), "-t", str(self.args.threads), "--quiet"])

    def train(self, layers: list[str], path: str) -> None:
        """A LoRA; the dense answers are those of the first one trained."""
        os.makedirs(f"{path}.part", exist_ok=True)
        if os.path.exists(answers := self.path(ANSWERS)):
            shutil.copy(answers, os.path.join(f"{path}.part", ANSWERS))
        own = self.make("own.jsonl", self.as_data) if "two-step" in layers else None
        data = ["--data", own] if own else ["--prompts", self.path("train.jsonl"), "-n", str(LONGEST)]
        words = ["train", "--model", self.args.model, *data, "--max-prompt", str(LONGEST_PROMPT), *layers, "--quiet"]
        words += [str(word) for option in SCHEDULE.items() if option[0] not in layers for word in option]
        resumed = ["--resume"] if os.path.exists(os.path.join(f"{path}.part", "checkpoint.pt")) else []
        environment = os.environ | {"OMP_NUM_THREADS": str(self.args.threads)}
        run([sys.executable, "-m", "first_cpp", *words, *resumed, "--out", f"{path}.part"], env=environment)
        if not os.path.exists(answers):
            shutil.copy(os.path.join(f"{path}.part", ANSWERS), answers)
        os.rename(f"{path}.part", path)

    def as_data(self, path: str) -> None:
        """The dense answers as training data: the paper's two steps learn responses, of what the others learn."""
        with open(path, "w", encoding="utf-8") as file:
            for _, record in lines(self.path(ANSWERS)):
                if record["response"] and len(record["prompt_tokens"]) <= LONGEST_PROMPT:
                    file.write(json.dumps({key: record[key] for key in ("task", "prompt", "response")}) + "\n")

    def merged(self, name: str, layers: list[str]) -> str:
        """The file of a row: its LoRA folded in, rounded to Q4_0."""
        run_folder = self.make(f"{name}.run", lambda path: self.train(layers, path))
        words = ["--routers", run_folder, "--model", self.args.model, "--merge", "--quantize", "Q4_0", "--quiet", "--out"]
        return self.make(f"{name}.gguf", lambda path: run([sys.executable, "-m", "convert", *words, path]))

    def as_it_came(self, kind: str) -> str:
        return self.make(f"as-it-came-{kind}.gguf", lambda path: quantise(self.args.model, path, kind))


def run(words: list[str], **more: object) -> None:
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, **more)  # type: ignore[call-overload]


def of_layers(sets: str) -> dict[str, list[str]]:
    """How each row's LoRA is trained, by name."""
    found = Calibration.load(f"{sets.removesuffix('.gguf')}.calibration.safetensors")
    order = found.order[: max(one.level for one in found.sets)]
    return {
        "budget": ["--sets", sets],
        "single set": ["--layers", ",".join(map(str, order))],
        DENSE: ["--layers", "influence", "--max-share", "0"],
        "block influence": ["--layers", "influence"],
        "evenly spaced": ["--layers", "even"],
        "the paper's routers": ["--recipe", "two-step", "--start", "influence"],
    }


def compared(rows: Rows, files: dict[str, str]) -> Iterator[str]:
    """The rows beside the model as it came, as `first-cpp eval --row` takes them."""
    for name, file in files.items():
        if name == DENSE:
            yield f"{name}={file}"
        else:
            kind, shares = KINDS.get(name, ""), SHARES if name in EVERYWHERE else SHARES[1:2]
            yield from (f"{name}={file}@{kind}{share}" for share in shares)
    yield from (f"{kind}={rows.as_it_came(kind)}" for kind in TYPES)


def without(task: str, report: dict[str, Any], tests: str, answers: str) -> dict[str, Any]:
    """What the same answers come to over all tasks but one: `ratio` and `share_skipped` by row, and `leads` of the budget."""
    questions = read_questions([tests])
    kept = [number for number, question in enumerate(questions) if question.task != task]
    others = [questions[number] for number in kept]
    found = AnswerFile(answers).found
    few = SimpleNamespace(of=lambda row, _n: [found[row.name, number] for number in kept])
    rows = [Row(one["row"], "", one["share"], None) for one in report["rows"]]
    kinds = kinds_of_tasks([], list(dict.fromkeys(one.task for one in others)), tasks_of_prompts(others))
    bootstrap = report["bootstrap"]
    over = summarise(rows, others, few, kinds, report["reference"], bootstrap["draws"], bootstrap["seed"])  # type: ignore[arg-type]
    leads = [{key: one[key] for key in ("row", "share", "over", "lead")} for one in over["leads"]]
    of_rows = {key: {one["row"]: one[key] for one in over["rows"]} for key in ("ratio", "share_skipped")}
    return {**of_rows, "leads": leads}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", required=True, help="a GGUF as it came")
    options.add_argument("--data", required=True, help="a folder of KIND.SPLIT.jsonl")
    options.add_argument("--folder", required=True, help="where rows are made and kept")
    options.add_argument("--per-kind", type=int, default=54, help="prompts to train on of each kind (default: %(default)s)")
    options.add_argument("--minutes", type=float, default=8, help="for each calibration (default: %(default)s)")
    options.add_argument("--tests", type=int, default=30, help="test prompts of each kind (default: %(default)s)")
    options.add_argument("--streams", type=int, default=32, help="test answers decoded together (default: %(default)s)")
    options.add_argument("--without", metavar="TASK", help="say also what the score is over all tasks but this one")
    options.add_argument("--threads", type=int, default=physical_cores())
    options.add_argument("--until", choices=("trained", "fitted", "judged"), default="judged")
    args = options.parse_args()
    rows = Rows(args)
    rows.make("train.jsonl", lambda path: rows.draw("train", args.per_kind, path))
    valid = rows.make("valid.jsonl", lambda path: rows.draw("valid", 34, path))
    sets = rows.make("sets.gguf", rows.sets)
    files = {name: rows.merged(name.replace(" ", "-").replace("'", ""), layers) for name, layers in of_layers(sets).items()}
    if args.until == "trained":
        return
    given = ["-m", files["budget"], "--sets", sets, "--replace", "--prompts", valid, "--minutes", args.minutes]
    files["budget"] = rows.make("calibrated.gguf", lambda path: rows.first_cpp("calibrate", *given, "--out", path))
    if args.until == "fitted":
        return
    tests = rows.make(f"test-{args.tests}.jsonl", lambda path: rows.draw("test", args.tests, path))
    beside = [word for row in compared(rows, files) for word in ("--row", row)]
    judged = ["--data", tests, "--kl", args.tests, "-n", LONGEST, "--streams", args.streams]
    rows.first_cpp(
        "eval", "--model", args.model, "--skip", 0, *beside, "--reference", DENSE, *judged, "--out", rows.path("report")
    )
    with open(os.path.join(rows.path("report"), "report.json"), encoding="utf-8") as file:
        report = json.load(file)
    if args.without:
        report["without"] = {args.without: without(args.without, report, tests, os.path.join(rows.path("report"), ANSWERS))}
    save(args.out, report)


if __name__ == "__main__":
    main()
