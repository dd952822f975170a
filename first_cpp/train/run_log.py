"""What a run writes while it trains: log.csv, a row a step, and valid.jsonl, a line a validation."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable

from ..gguf.new_file import new_file
from .validation import Losses

STEPS, VALIDATIONS = "log.csv", "valid.jsonl"


class RunLog:
    """The logs in a run's folder. enabled: whether this process, of several that train, writes them."""

    def __init__(self, folder: str, enabled: bool = True) -> None:
        self.folder, self.enabled = folder, enabled

    def start(self) -> None:
        """Remove what a run that was killed before its first checkpoint wrote."""
        for name in (STEPS, VALIDATIONS) if self.enabled else ():
            path = os.path.join(self.folder, name)
            if os.path.exists(path):
                os.remove(path)

    def cut(self, step: int) -> None:
        """Remove what was written after a step, which will be written again, and a line that a kill left unfinished."""
        if self.enabled:
            self._keep_lines(STEPS, lambda line: line.startswith("step") or int(line.partition(",")[0]) <= step)
            self._keep_lines(VALIDATIONS, lambda line: json.loads(line)["step"] <= step)

    def _keep_lines(self, name: str, kept: Callable[[str], bool]) -> None:
        path = os.path.join(self.folder, name)
        if os.path.exists(path):
            with open(path, encoding="utf-8", newline="") as file:
                lines = [line for line in file if line.endswith("\n") and kept(line)]
            with new_file(path, "w") as out:
                out.writelines(lines)

    def add_step(self, step: int, loss: float, share: float, tokens_per_second: float) -> None:
        """A row of log.csv. share: mean skip share of the step's passes."""
        if not self.enabled:
            return
        with open(os.path.join(self.folder, STEPS), "a", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            if file.tell() == 0:
                writer.writerow(["step", "loss", "share", "tokens_per_second"])
            writer.writerow([step, f"{loss:.6f}", f"{share:.4f}", f"{tokens_per_second:.1f}"])

    def add_validation(self, step: int, losses: Losses) -> None:
        """A line of valid.jsonl."""
        if self.enabled:
            with open(os.path.join(self.folder, VALIDATIONS), "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, "loss": losses}) + "\n")
