"""One tuning: its settings, its files, and the stages that make them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import sys
from dataclasses import dataclass

from ..errors import FirstCppError, OptionError
from ..gguf.merge import merge
from ..gguf.model_file import ModelFile, weights_fingerprint
from ..gguf.new_file import OutputError, new_file
from .examples_split import Split, digest, metrics
from .lengths import Lengths
from .stages import Stage, run_verb

ROUNDED_IN_TRAINING = ("Q4_0", "Q4_1", "Q5_0", "Q5_1")
"""File types whose rounding `first-cpp train` trains for."""
FILES = ("tune.json", "tune.log", "train.jsonl", "valid.jsonl", "test.jsonl", "prompts.jsonl", "sets.gguf", "merged.gguf")
"""Of a tuning's folder."""
MOST_TOKENS = 256
"""Of an answer in the report."""
BATCH = 4
WANTED_STEPS = 50
"""Steps of BATCH examples that a small file is read again for; at most MOST_EPOCHS times."""
MOST_EPOCHS = 4.0


@dataclass(frozen=True)
class Settings:
    """What decides the tuned model, beside the model and the examples. quantize: its file type."""

    quantize: str
    rank: int
    lr: float = 1e-3
    minutes: float = 1.0
    epochs: float = 1.0
    seed: int = 0


def epochs_for(n_train: int) -> float:
    """How often examples are read: few ones several times.

    >>> epochs_for(42), epochs_for(160), epochs_for(2000)
    (4.0, 1.25, 1.0)
    """
    return min(MOST_EPOCHS, max(1.0, WANTED_STEPS / math.ceil(n_train / BATCH)))


def check_same_job(folder: str, model: ModelFile, parts: Split, settings: Settings) -> None:
    """Note in `folder` what its files are made of. Raises OptionError where another tuning's are there, naming what differs, or
    files of the same names that no tuning wrote."""
    mine = {
        "model": weights_fingerprint(model.path),
        "examples": digest([*parts.train, *parts.valid, *parts.test]),
        **dataclasses.asdict(settings),
    }
    path = os.path.join(folder, "tune.json")
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            before = json.load(file)
        if different := [key for key in mine if before.get(key) != mine[key]]:
            raise OptionError(f"--out {folder} holds a tuning with other {', '.join(different)}; choose another folder")
    elif found := [name for name in (*FILES, "run", "report", tuned_name(model)) if os.path.exists(os.path.join(folder, name))]:
        raise OptionError(
            f"--out {folder} has {', '.join(found)} and no tune.json: no tuning wrote that, and this one would take it for its "
            "own or replace it; choose another folder"
        )
    with new_file(path, "w") as file:
        json.dump(mine, file)


def tuned_name(model: ModelFile) -> str:
    """The file name of the model that comes out."""
    return f"{os.path.basename(model.path).removesuffix('.gguf')}-tuned.gguf"


@dataclass(frozen=True)
class Job:
    """A tuning in the folder `out`, on which all its files depend."""

    model: ModelFile
    out: str
    parts: Split
    settings: Settings
    lengths: Lengths
    threads: int
    quiet: bool = False

    def path(self, name: str) -> str:
        """A file of this tuning."""
        return os.path.join(self.out, name)

    @property
    def tuned(self) -> str:
        """The model that comes out."""
        return self.path(tuned_name(self.model))

    @property
    def merged(self) -> str:
        """The tuned model before it is calibrated."""
        return self.path("merged.gguf")

    @property
    def max_tokens(self) -> int:
        """The longest answer in the report: twice the longest response there is."""
        return min(MOST_TOKENS, 2 * self.lengths.response + 8)

    def stages(self) -> list[Stage]:
        """All stages."""
        s = self.settings
        times = f"{'once' if s.epochs == 1 else f'{s.epochs:.3g} times'} over the examples"
        sets, run, report = map(self.path, ("sets.gguf", "run/train.json", "report/report.json"))
        answers = f"the model as it came and the tuned one answer {len(self.parts.test)} test examples"
        return [
            Stage("calibrate", "find the layers that your prompts can spare", (sets,), self._sets),
            Stage("train", f"a LoRA that makes up for them, {times}", (run,), self._train),
            Stage("merge", f"fold it into the weights, as {s.quantize}", (self.merged, self.tuned), self._merge),
            Stage("calibrate", "again, the same sets on the tuned model", (self.tuned,), self._fit),
            Stage("eval", answers, (report,), self._eval),
        ]

    @property
    def _quiet(self) -> list[str]:
        return ["--quiet"] if self.quiet else []

    def _calibrate(self, *words: str) -> None:
        prompts, minutes = self.path("prompts.jsonl"), str(self.settings.minutes)
        given = ["--prompts", prompts, "--minutes", minutes, "--seed", str(self.settings.seed), "-t", str(self.threads)]
        run_verb("calibrate", *given, *words, *self._quiet)

    def _sets(self) -> None:
        self._calibrate("-m", self.model.path, "--out", self.path("sets.gguf"), "--sidecar")

    def _train(self) -> None:
        s, run = self.settings, self.path("run")
        words = ["--model", self.model.path, "--data", self.path("train.jsonl"), "--valid", self.path("valid.jsonl")]
        words += ["--out", run, "--sets", self.path("sets.gguf")]
        words += ["--rank", str(s.rank), "--lr", str(s.lr), "--epochs", str(s.epochs), "--batch-size", str(BATCH)]
        words += ["--seed", str(s.seed), "--max-prompt", str(max(1024, self.lengths.prompt + 8))]
        words += ["--max-response", str(max(512, self.lengths.response + 8))]
        words += ["--quantize", s.quantize] if s.quantize in ROUNDED_IN_TRAINING else []
        words += ["--resume"] if os.path.exists(os.path.join(run, "checkpoint.pt")) else []
        run_verb("train", *words, *self._quiet)

    def _merge(self) -> None:
        quantize = None if self.settings.quantize == "F32" else self.settings.quantize
        merge(self.path("run"), self.model.path, self.merged, quantize=quantize, force=True, quiet=self.quiet)

    def _fit(self) -> None:
        """Predictors and tolerance anew, for the sets that the LoRA learned.

        Answers of a single token, as of a tuned classifier, cannot be calibrated on: all stays as it was found.
        """
        try:
            self._calibrate("-m", self.merged, "--out", self.tuned, "--replace", "--sets", self.path("sets.gguf"))
        except OutputError:  # as of a full disk: it can be done when there is room
            raise
        except FirstCppError as error:
            print(f"not calibrated again: {error}", file=sys.stderr)
            os.replace(self.merged, self.tuned)
        with contextlib.suppress(FileNotFoundError):
            os.remove(self.merged)

    def _eval(self) -> None:
        self._drop_answers_by_other_threads()
        words = ["--model", self.tuned, "--base", self.model.path, "--data", self.path("test.jsonl"), "--skip", "0.25,auto"]
        words += ["--reference", "base", "--out", self.path("report"), "-n", str(self.max_tokens), "-t", str(self.threads)]
        for metric in metrics(self.parts):
            words += ["--metric", metric]
        run_verb("eval", *words, *self._quiet)

    def _drop_answers_by_other_threads(self) -> None:
        """A report that was stopped goes on with the threads of now; answers by others, of another speed, are given again."""
        with contextlib.suppress(FileNotFoundError):
            with open(self.path("report/run.json"), encoding="utf-8") as file:
                before = json.load(file)
            if before.get("threads") != self.threads:
                os.remove(self.path("report/answers.jsonl"))
